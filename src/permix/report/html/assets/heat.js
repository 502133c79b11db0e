// The heat map of persona × question: a canvas that draws the visible part; pointer and keyboard reach every cell.
// heat-draw.js draws; this file has the controls, the current cell, and the text about it.
(() => {
  "use strict";
  const permix = (globalThis.permix ??= {});
  const charts = (permix.charts ??= {});
  const MAX_SUGGESTIONS = 40; // questions in the list below the field
  const PAGE = 10; // rows of one Page Up or Page Down
  const maps = new WeakMap();

  /** Draws into `element`, or draws it again. Resolves when it is drawn. */
  charts.grid = async (element) => {
    if (maps.has(element)) return maps.get(element).draw();
    const map = make(element, Object.keys(permix.data.grids));
    maps.set(element, map);
    await map.choose();
  };

  function make(element, labels) {
    const { el } = permix;
    const model = select("Model", labels.map((label) => [label, label]));
    const minus = select("Show", [["", "scores"], ...labels.map((label) => [label, `scores minus those of ${label}`])]);
    const persona = select("Go to persona", []);
    const question = el("input", { type: "text", list: `${element.id || "heat"}-questions`, autocomplete: "off", spellcheck: "false" });
    const offered = el("datalist", { id: `${element.id || "heat"}-questions` });
    const [out, into, open] = ["−", "+", "Open transcript"].map((text) => el("button", { type: "button" }, text));
    out.setAttribute("aria-label", "Narrower columns");
    into.setAttribute("aria-label", "Wider columns");
    const canvas = el("canvas", {
      class: "heat-canvas", tabindex: "0", role: "application", "aria-roledescription": "heat map",
      "aria-label": "Persona by question. Arrow keys move, Enter opens the transcript.",
    });
    const stage = el("div", { class: "heat-stage" }, canvas), scroller = el("div", { class: "heat-scroller" }, stage);
    const readout = el("p", { class: "heat-readout" }), legend = el("p", { class: "heat-legend" });
    const axis = el("p", { class: "heat-axis" }, "Rows: no persona, then personas, best first. Columns: questions, easiest first →");
    element.replaceChildren(
      el("div", { class: "heat-controls" }, model.label, ...(labels.length > 1 ? [minus.label] : []), persona.label,
        el("label", {}, "Go to question ", question), offered, el("span", { class: "heat-zoom" }, "Columns ", out, into), open),
      axis, scroller, readout, legend,
    );

    const state = { at: { row: 0, column: 0 }, zoom: 0, grid: null, other: null, value: null };
    const view = permix.heatView(canvas, scroller, stage, state);

    async function choose() {
      if (minus.field.value === model.field.value) minus.field.value = "";
      for (const option of minus.field.options) option.disabled = option.value === model.field.value;
      const [grid, other] = await Promise.all([permix.grid(model.field.value), minus.field.value ? permix.grid(minus.field.value) : null]);
      const at = sameCell(grid);
      Object.assign(state, { at, grid, other, value: other ? difference(grid, other) : grid.value, from: other ? -1 : 0 });
      persona.field.replaceChildren(...grid.rows.map((row, place) => el("option", { value: String(place) }, nameOf(row))));
      legend.replaceChildren(...permix.heatLegend(state, scroller));
      view.lay();
      element.dataset.drawn = "true";
      update();
    }

    /** The place of the current cell in another grid, or the first cell if the other grid does not have it. */
    function sameCell(grid) {
      const { grid: before, at } = state;
      const place = before && grid.sheet.find(before.sheet.personas[before.rows[at.row]], idOf(before.columns[at.column]));
      return place ? { row: grid.rows.indexOf(place.row), column: grid.columns.indexOf(place.column) } : { row: 0, column: 0 };
    }

    const nameOf = (row) => state.grid.sheet.personas[row] ?? "no persona";
    const idOf = (column) => state.grid.sheet.columns(0)[column];

    /** Scores of `grid` minus those of `other` for the same persona and question, where both have one. */
    function difference(grid, other) {
      const rows = grid.sheet.personas.map((one) => other.sheet.personas.indexOf(one));
      const places = new Map(other.sheet.columns(0).map((id, column) => [id, column]));
      const columns = grid.sheet.columns(0).map((id) => places.get(id));
      return (row, column) => {
        if (rows[row] < 0 || columns[column] === undefined) return undefined;
        const mine = grid.value(row, column), theirs = other.value(rows[row], columns[column]);
        return typeof mine === "number" && typeof theirs === "number" ? mine - theirs : mine === undefined ? undefined : null;
      };
    }

    /** The score at a displayed row and column, in words; the mean of several columns. */
    function describe({ row, column, until = column + 1 }) {
      const { grid, value } = state;
      const who = nameOf(grid.rows[row]);
      const columns = grid.columns.slice(column, until);
      if (columns.length === 1) return `${who} × ${idOf(columns[0])}: ${inWords(value(grid.rows[row], columns[0]))}`;
      const scores = columns.map((one) => value(grid.rows[row], one)).filter((one) => typeof one === "number");
      const mean = scores.length ? (scores.reduce((sum, one) => sum + one, 0) / scores.length).toFixed(2) : "–";
      return `${who} × questions ${column + 1} to ${column + columns.length} of ${grid.Q}: mean ${mean}, ${scores.length} scored`;
    }

    function inWords(value) {
      if (value === undefined) return "not asked";
      if (value === null) return "no score";
      if (state.other) return `${value > 0 ? "+" : ""}${value.toFixed(2)} against ${state.other.sheet.label}`.replace("-", "−");
      const { samples, templates, contexts } = state.grid.sheet;
      const asked = samples * Math.max(1, Object.keys(templates).length) * Math.max(1, contexts.length);
      if (asked === 1) return value === 1 ? "right (1)" : "wrong (0)";
      return `mean score ${value.toFixed(2)}`;
    }

    function update(announce = false) {
      readout.textContent = describe(state.at);
      persona.field.value = String(state.at.row);
      question.value = idOf(state.grid.columns[state.at.column]);
      if (announce) permix.announce(readout.textContent);
    }

    function go(row, column) {
      const { P, Q } = state.grid;
      state.at = { row: Math.max(0, Math.min(P, row)), column: Math.max(0, Math.min(Q - 1, column)) };
      view.reveal();
      update(true);
    }

    function transcript() {
      const { grid, at } = state;
      return permix.transcript({ label: grid.sheet.label, kind: "stability", row: grid.rows[at.row], column: grid.columns[at.column] });
    }

    function zoom(by) {
      state.zoom += by;
      view.lay();
      view.reveal();
    }

    const KEYS = {
      ArrowLeft: ({ row, column }) => [row, column - 1],
      ArrowRight: ({ row, column }) => [row, column + 1],
      ArrowUp: ({ row, column }) => [row - 1, column],
      ArrowDown: ({ row, column }) => [row + 1, column],
      Home: ({ row }) => [row, 0],
      End: ({ row }) => [row, Infinity],
      PageUp: ({ row, column }) => [row - PAGE, column],
      PageDown: ({ row, column }) => [row + PAGE, column],
    };

    canvas.addEventListener("keydown", (event) => {
      if (event.altKey || event.metaKey) return;
      const ends = event.ctrlKey && { Home: [0, 0], End: [Infinity, Infinity] }[event.key];
      const next = ends || (!event.ctrlKey && KEYS[event.key]?.(state.at));
      if (next) go(...next);
      else if (event.key === "Enter" || event.key === " ") transcript();
      else if (event.key === "+" || event.key === "-") zoom(event.key === "+" ? 1 : -1);
      else return;
      event.preventDefault();
    });
    canvas.addEventListener("pointermove", (event) => {
      const place = view.under(event);
      readout.textContent = describe(place ?? state.at);
    });
    canvas.addEventListener("pointerleave", () => update());
    canvas.addEventListener("click", (event) => {
      const place = view.under(event);
      if (!place) return;
      state.at = { row: place.row, column: place.exact };
      view.draw();
      update();
      transcript();
    });
    for (const kind of ["focus", "blur"]) canvas.addEventListener(kind, () => view.draw());
    model.field.addEventListener("change", choose);
    minus.field.addEventListener("change", choose);
    persona.field.addEventListener("change", () => go(Number(persona.field.value), state.at.column));
    question.addEventListener("input", () => {
      const ids = state.grid.sheet.columns(0), wanted = question.value;
      const some = ids.filter((id) => id.includes(wanted)).slice(0, MAX_SUGGESTIONS);
      offered.replaceChildren(...some.map((id) => el("option", { value: id })));
      const place = state.grid.columns.indexOf(ids.indexOf(wanted));
      if (place >= 0) go(state.at.row, place);
    });
    question.addEventListener("change", () => {
      if (!state.grid.sheet.columns(0).includes(question.value)) permix.announce(`There is no question ${question.value}.`);
      update();
    });
    question.addEventListener("focus", () => question.select());
    out.addEventListener("click", () => zoom(-1));
    into.addEventListener("click", () => zoom(1));
    open.addEventListener("click", transcript);
    scroller.addEventListener("scroll", () => requestAnimationFrame(view.draw));
    new ResizeObserver(() => state.grid && view.lay()).observe(scroller);
    document.addEventListener("permix-cell", ({ detail: { label, kind, row, column } }) => {
      if (kind !== "stability" || label !== state.grid?.sheet.label) return;
      state.at = { row: state.grid.rows.indexOf(row), column: state.grid.columns.indexOf(column) };
      view.reveal();
      update();
    });
    /** Draws the whole grid for print, all rows and all columns; then the visible part again. */
    function print(whole) {
      if (!state.grid) return;
      if (whole) Object.assign(state, { screenZoom: state.zoom, zoom: 0 });
      else state.zoom = state.screenZoom ?? state.zoom;
      scroller.style.maxHeight = whole ? "none" : "";
      if (whole) scroller.scrollTo(0, 0);
      view.lay();
    }
    addEventListener("beforeprint", () => print(true));
    addEventListener("afterprint", () => print(false));
    return { choose, draw: () => state.grid && view.lay() };
  }

  function select(name, options) {
    const { el } = permix;
    const field = el("select", {}, ...options.map(([value, text]) => el("option", { value }, text)));
    return { field, label: el("label", {}, `${name} `, field) };
  }
})();
