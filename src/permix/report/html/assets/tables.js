// Sorts and filters tables, and shows the provenance of each number. The tables are in the page even without scripts.
"use strict";

(() => {
  const {data, el, popover} = permix;

  const value = (cell) => (cell.dataset.value === undefined ? null : Number(cell.dataset.value));

  /** Compares two cells: numbers come before texts; numbers inside texts are compared by value. */
  function compare(one, two, descending) {
    const [a, b] = [value(one), value(two)];
    if (a !== null && b !== null) return descending ? b - a : a - b;
    if (a !== null || b !== null) return a !== null ? -1 : 1;
    const order = one.textContent.localeCompare(two.textContent, undefined, {numeric: true});
    return descending ? -order : order;
  }

  function sort(table, column, descending) {
    const body = table.tBodies[0];
    const rows = [...body.rows];
    const fixed = rows.filter((row) => row.dataset.fixed !== undefined);
    const free = rows.filter((row) => row.dataset.fixed === undefined);
    free.sort((one, two) => compare(one.cells[column], two.cells[column], descending));
    body.append(...fixed, ...free);
  }

  /** A heading's button sorts the table by its column: numbers largest first, texts A first; pressed again, in reverse. */
  function sortable(table) {
    for (const heading of table.tHead.rows[0].cells) {
      const button = heading.querySelector("button");
      button?.addEventListener("click", () => {
        const numeric = [...table.tBodies[0].rows].some((row) => value(row.cells[heading.cellIndex]) !== null);
        const now = heading.getAttribute("aria-sort");
        const descending = now ? now === "ascending" : numeric;
        for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
        heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
        sort(table, heading.cellIndex, descending);
      });
    }
  }

  /** Shows only rows whose name or tags contain the text, and which have the selected tag. */
  function filterable(table) {
    const controls = document.getElementById(`${table.id}-filter`);
    if (!controls) return;
    const [text, tag] = [controls.querySelector("input"), controls.querySelector("select")];
    const count = controls.querySelector("output");
    const rows = [...table.tBodies[0].rows].filter((row) => row.dataset.fixed === undefined);
    const apply = () => {
      const wanted = text.value.trim().toLocaleLowerCase();
      for (const row of rows) {
        const tags = JSON.parse(row.dataset.tags ?? "[]");
        const matches = row.cells[0].textContent.toLocaleLowerCase().includes(wanted) || tags.some((one) => one.toLocaleLowerCase().includes(wanted));
        row.hidden = !matches || (Boolean(tag?.value) && !tags.includes(tag.value));
      }
      count.textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length} shown`;
    };
    text.addEventListener("input", apply);
    tag?.addEventListener("change", apply);
    apply();
  }

  function fact(name, text) {
    return text ? [el("dt", {}, name), el("dd", {}, text)] : [];
  }

  /** Lists the facts of a run. */
  function origin(run) {
    return el("dl", {},
      fact("run", `${run.label}, ${run.kind}`), fact("command", run.command), fact("configuration", run.configuration),
      fact("seed", run.seed), fact("revision", run.revision), fact("created", run.created), fact("folder", run.path));
  }

  function provenance(button) {
    const runs = button.dataset.runs.split(" ").map((index) => data.runs[Number(index)]);
    popover(button, el("div", {}, el("p", {class: "value"}, button.dataset.what), runs.map(origin)));
  }

  /** Says above a table that is wider than its place that it scrolls. */
  function scrollable(scroller) {
    const hint = el("p", {class: "hint sideways", hidden: true}, "more columns: scroll sideways →");
    scroller.before(hint);
    new ResizeObserver(() => { hint.hidden = scroller.scrollWidth <= scroller.clientWidth + 1; }).observe(scroller);
  }

  document.querySelectorAll(".scroll").forEach(scrollable);
  for (const table of document.querySelectorAll("table.data")) {
    sortable(table);
    filterable(table);
  }
  document.addEventListener("click", (event) => {
    const button = event.target.closest?.("button[data-runs]");
    if (button) provenance(button);
  });
})();
