// Draws the heat map. Colours run from dark blue to yellow and only get lighter, so they can be read in grey. A cell without a score
// is hatched, and a cell with enough room shows its number. Only the visible part is drawn, so a grid may have any number of columns.
(() => {
  "use strict";
  const permix = (globalThis.permix ??= {});
  // cividis (Nuñez, Anderton and Renslow 2018) at eleven points; colour-blind readers see it the same way.
  const RAMP = ["#00224e", "#083370", "#35456c", "#4f576c", "#666970", "#7d7c78", "#948e77", "#aea371", "#c8b866", "#e5cf52", "#fee838"];
  const ROW = 20, GAP = 4, NAMES = 190, LEAST = 3, WIDEST = 46; // pixels
  const FONT = "11px system-ui, sans-serif";
  const SHADES = Array.from({ length: 101 }, (_, share) => shade(share / 100));

  function shade(share) {
    const place = Math.min(share * 10, 9.999), low = Math.floor(place), part = place - low;
    const [one, two] = [RAMP[low], RAMP[low + 1]].map((hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16)));
    return `rgb(${one.map((level, at) => Math.round(level + part * (two[at] - level))).join(" ")})`;
  }

  const colourOf = (value, from) => SHADES[Math.round((100 * (value - from)) / (1 - from))];
  const inkOn = (value, from) => (value - from > 0.55 * (1 - from) ? "#000" : "#fff");

  /** Returns the shortest text: "1", "0", ".67", "−.5". */
  function short(value, signed) {
    const text = Math.abs(value).toFixed(2).replace(/\.?0+$/, "").replace(/^0\./, ".");
    return (value < 0 ? "−" : signed && value > 0 ? "+" : "") + (text || "0");
  }

  function hatched(context, ink) {
    const tile = Object.assign(document.createElement("canvas"), { width: 6, height: 6 });
    const pen = tile.getContext("2d");
    pen.strokeStyle = ink;
    pen.globalAlpha = 0.55;
    pen.beginPath();
    for (const shift of [-6, 0, 6]) {
      pen.moveTo(shift, 6);
      pen.lineTo(shift + 6, 0);
    }
    pen.stroke();
    return context.createPattern(tile, "repeat");
  }

  function paintCell(pen, hatch, value, from, x, y, width, height) {
    if (value === undefined) return;
    pen.fillStyle = value === null ? hatch : colourOf(value, from);
    pen.fillRect(x, y, width, height);
  }

  /** Returns swatches with their meaning. */
  permix.heatLegend = ({ from, grid, value }, element) => {
    const ink = getComputedStyle(element).color;
    const swatch = (shown, text) => {
      const canvas = permix.el("canvas", { width: "18", height: "12", "aria-hidden": "true" });
      const pen = canvas.getContext("2d");
      paintCell(pen, hatched(pen, ink), shown, from, 0, 0, 18, 12);
      return permix.el("span", {}, canvas, ` ${text}`);
    };
    const steps = from ? [-1, -0.5, 0, 0.5, 1] : [0, 0.25, 0.5, 0.75, 1];
    const some = (what) => grid.rows.some((row) => grid.columns.some((column) => value(row, column) === what));
    return [
      permix.el("span", {}, from ? "difference:" : "mean score:"),
      ...steps.map((one) => swatch(one, short(one, from < 0))),
      ...(some(null) ? [swatch(null, "no score")] : []),
      ...(some(undefined) ? [permix.el("span", {}, "empty: not asked")] : []),
    ];
  };

  /** Zoom levels, from all columns in view (a column may then be the mean of several questions) to a number in each column. */
  function levels(room, Q) {
    const step = Math.max(1, Math.ceil((Q * LEAST) / room));
    const zooms = [{ step, width: Math.min(WIDEST, room / Math.ceil(Q / step)) }];
    for (let finer = Math.ceil(step / 4); finer > 1; finer = Math.ceil(finer / 4)) zooms.push({ step: finer, width: LEAST });
    for (const width of [4, 12, 24, WIDEST]) if (step > 1 || width > 1.2 * zooms[0].width) zooms.push({ step: 1, width });
    return zooms;
  }

  /**
   * Draws the visible part of the map on the canvas. `state`: {grid, value(row, column), from, at, zoom}; rows and columns are in
   * display order.
   */
  permix.heatView = (canvas, scroller, stage, state) => {
    const pen = canvas.getContext("2d");
    let names = NAMES, level = { step: 1, width: WIDEST };

    /** Measures and draws again, after a change of grid, zoom, size or theme. */
    function lay() {
      const { P, Q } = state.grid, room = scroller.clientWidth;
      if (!room) return;
      names = Math.min(NAMES, Math.round(room * 0.36));
      const steps = levels(room - names, Q);
      state.zoom = Math.max(0, Math.min(steps.length - 1, state.zoom));
      level = steps[state.zoom];
      stage.style.width = `${names + Math.ceil(Q / level.step) * level.width}px`;
      stage.style.height = `${ROW + GAP + P * ROW}px`;
      draw();
    }

    const xOf = (column) => names + Math.floor(column / level.step) * level.width - scroller.scrollLeft;
    const yOf = (row) => (row === 0 ? 0 : ROW + GAP + (row - 1) * ROW - scroller.scrollTop);

    function draw() {
      if (!state.grid) return;
      const width = scroller.clientWidth, height = scroller.clientHeight, dense = globalThis.devicePixelRatio || 1;
      canvas.width = width * dense;
      canvas.height = height * dense;
      canvas.style.width = `${width}px`;
      canvas.style.height = `${height}px`;
      pen.scale(dense, dense);
      const look = { ink: getComputedStyle(scroller).color, hatch: null, width };
      look.hatch = hatched(pen, look.ink);
      const first = Math.max(1, 1 + Math.floor(scroller.scrollTop / ROW));
      const last = Math.min(state.grid.P, first + Math.ceil((height - ROW - GAP) / ROW));
      inside(0, ROW + GAP, width, height, () => {
        for (let row = first; row <= last; row++) drawRow(row, look);
        if (state.at.row > 0) ring(look);
      });
      drawRow(0, look);
      if (state.at.row === 0) inside(0, 0, width, ROW + 2, () => ring(look));
    }

    function inside(x, y, width, height, paint) {
      pen.save();
      pen.beginPath();
      pen.rect(x, y, width, height);
      pen.clip();
      paint();
      pen.restore();
    }

    function drawRow(row, look) {
      const y = yOf(row), bins = Math.ceil(state.grid.Q / level.step), line = level.width >= 6 ? 1 : 0;
      const first = Math.max(0, Math.floor(scroller.scrollLeft / level.width));
      const last = Math.min(bins, first + Math.ceil((look.width - names) / level.width) + 1);
      inside(names, y, look.width - names, ROW, () => {
        for (let bin = first; bin < last; bin++) {
          const value = binned(row, bin), x = xOf(bin * level.step);
          paintCell(pen, look.hatch, value, state.from, x, y, level.width - line, ROW - 1);
          if (typeof value === "number" && level.step === 1) number(value, x, y);
        }
      });
      name(row, y, look.ink);
    }

    /** The mean of a column of several questions; null or undefined as in `permix.grid`. */
    function binned(row, bin) {
      const { grid, value } = state;
      let sum = 0, scored = 0, asked = false;
      for (let place = bin * level.step; place < Math.min(grid.Q, (bin + 1) * level.step); place++) {
        const one = value(grid.rows[row], grid.columns[place]);
        asked ||= one !== undefined;
        if (typeof one !== "number") continue;
        sum += one;
        scored++;
      }
      return scored ? sum / scored : asked ? null : undefined;
    }

    function number(value, x, y) {
      const text = short(value, state.from < 0);
      if (text.length * 6.5 + 3 > level.width) return;
      pen.font = FONT;
      pen.textAlign = "center";
      pen.textBaseline = "middle";
      pen.fillStyle = inkOn(value, state.from);
      pen.fillText(text, x + (level.width - 1) / 2, y + ROW / 2);
    }

    function name(row, y, ink) {
      const persona = state.grid.sheet.personas[state.grid.rows[row]];
      pen.font = persona === null ? `italic ${FONT}` : FONT;
      pen.textAlign = "left";
      pen.textBaseline = "middle";
      pen.fillStyle = ink;
      pen.fillText(fitted(persona ?? "no persona"), 2, y + ROW / 2);
    }

    function fitted(text) {
      if (pen.measureText(text).width <= names - 8) return text;
      let kept = text.slice(0, 60);
      while (kept && pen.measureText(`${kept}…`).width > names - 8) kept = kept.slice(0, -1);
      return `${kept}…`;
    }

    /** Draws two frames around the current cell, light and dark, so that one of them is visible on every colour. */
    function ring(look) {
      const x = xOf(state.at.column), y = yOf(state.at.row), width = Math.max(level.width, 5);
      const focused = document.activeElement === canvas;
      inside(names - 3, 0, look.width, scroller.clientHeight, () => {
        for (const [colour, wide] of [["#fff", focused ? 6 : 4], ["#d00", focused ? 3 : 2]]) {
          pen.strokeStyle = colour;
          pen.lineWidth = wide;
          pen.strokeRect(x - 0.5, y + 0.5, width, ROW - 2);
        }
      });
    }

    /** Scrolls until the current cell is in view. */
    function reveal() {
      const x = xOf(state.at.column), y = yOf(state.at.row), right = scroller.clientWidth, bottom = scroller.clientHeight;
      if (x < names) scroller.scrollLeft -= names - x;
      else if (x + level.width > right) scroller.scrollLeft += x + level.width - right;
      if (state.at.row > 0 && y < ROW + GAP) scroller.scrollTop -= ROW + GAP - y;
      else if (y + ROW > bottom) scroller.scrollTop += y + ROW - bottom;
      draw();
    }

    /** The cell under the pointer: {row, column, until, exact}; null outside the cells. */
    function under({ offsetX, offsetY }) {
      if (!Number.isFinite(offsetX) || !Number.isFinite(offsetY)) return null; // an event of a script
      const { P, Q } = state.grid;
      const row = offsetY < ROW ? 0 : 1 + Math.floor((offsetY - ROW - GAP + scroller.scrollTop) / ROW);
      const across = (offsetX - names + scroller.scrollLeft) / level.width;
      const column = Math.floor(across) * level.step;
      if (offsetX < names || (row > 0 && offsetY < ROW + GAP) || row > P || column >= Q) return null;
      const exact = Math.min(Q - 1, Math.floor(across * level.step));
      return { row, column, until: Math.min(Q, column + level.step), exact };
    }

    return { lay, draw, reveal, under };
  };
})();
