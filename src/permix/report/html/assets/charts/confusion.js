"use strict";
/** Confusion matrix of personas for the selected model and, next to it, another one, both in the order of the first model. */
(() => {
  const { choose, clip, PAPER, panelTitle, plot, sheet, shown } = permix.drawing;
  const MANY = 3000; // with more cells the matrix is painted as one image
  const LEGIBLE = 15; // pixels of a cell that shows its count
  const NAMED = 11; // pixels of a row that shows its name

  permix.charts.confusion = (element, { models }) => {
    const made = sheet(element, "rows: persona that answered; columns, in the same order: persona that the classifier names");
    const redraw = () => permix.charts.confusion(element, { models });
    const labels = shown(models);
    const options = labels.map((label) => [`=${label}`, clip(label, 40)]);
    made.legend.replaceChildren();
    if (!labels.length) return made.body.replaceChildren(permix.el("p", {}, "Nothing is selected."));
    const one = choose(made, "one", "Model", options, redraw);
    const others = [...options.filter(([value]) => value !== one), ["", "no other"]];
    const other = choose(made, "other", "next to model", others, redraw);
    const panels = [one, other].filter((value) => value !== "").map((value) => value.slice(1));
    const width = made.narrow || panels.length === 1 ? Math.min(made.width, 620) : Math.floor(made.width / 2) - 8;
    made.body.replaceChildren(permix.el("div", { class: "chart-beside" }, ...panels.map((label) =>
      permix.el("div", {}, panelTitle(label), matrix({ ...made, width }, label, models[label]), permix.el("p", { class: "chart-note" }, models[label].note)))));
  };

  function matrix(made, label, { ids, cells }) {
    const marginLeft = Math.min(made.narrow ? 118 : 176, 14 + 7 * d3.max(ids, (id) => Math.min(id.length, 24)));
    const side = made.width - marginLeft - 16;
    const step = side / ids.length;
    const points = shares(ids, cells);
    const right = d3.sum(cells, ([row, column, count]) => (row === column ? count : 0));
    const description = `Confusion of personas, ${label}: the classifier names the right persona for ${right} of ${d3.sum(cells, ([, , count]) => count)} answers of ${ids.length} personas`;
    const named = step >= NAMED ? ids : ids.filter((_, place) => place % Math.ceil(NAMED / step) === 0);
    return plot(made, description, {
      height: side + 24,
      marginLeft,
      marginTop: 6,
      marginBottom: 18,
      x: { type: "band", domain: d3.range(ids.length), padding: 0, axis: null },
      y: { type: "band", domain: d3.range(ids.length), padding: 0, label: null },
      marks: [
        Plot.axisY({ ticks: named.map((id) => ids.indexOf(id)), tickFormat: (place) => clip(ids[place], made.narrow ? 15 : 24), tickSize: 0 }),
        ...(cells.length > MANY ? [painted(ids.length, points)] : drawn(points, step)),
        Plot.frame({ strokeOpacity: 0.5 }),
        Plot.tip(points, Plot.pointer({ x: "column", y: "row", title: "text", maxRadius: Math.max(10, step), lineWidth: 22 })),
      ],
    });
  }

  /** The shade is the ink's opacity, so it can be read in each theme. */
  const drawn = (points, step) => [
    Plot.cell(points, { x: "column", y: "row", fill: "currentColor", fillOpacity: "share", inset: 0 }),
    ...(step < LEGIBLE ? [] : [Plot.text(points, { x: "column", y: "row", text: "count", fill: ({ share }) => (share > 0.5 ? PAPER : "currentColor"), fontSize: Math.min(12, step * 0.6), pointerEvents: "none" })]),
  ];

  function painted(size, points) {
    const ink = d3.color(getComputedStyle(document.body).color);
    const canvas = permix.el("canvas", { width: size, height: size });
    const context = canvas.getContext("2d");
    for (const { row, column, share } of points) {
      context.fillStyle = ink.copy({ opacity: share }).formatRgb();
      context.fillRect(column, row, 1, 1);
    }
    return (index, scales, values, { width, height, marginLeft, marginTop, marginRight, marginBottom }) => permix.svg("image", {
      href: canvas.toDataURL(),
      x: marginLeft,
      y: marginTop,
      width: width - marginLeft - marginRight,
      height: height - marginTop - marginBottom,
      preserveAspectRatio: "none",
      "image-rendering": "pixelated",
    });
  }

  function shares(ids, cells) {
    const total = d3.rollup(cells, (row) => d3.sum(row, ([, , count]) => count), ([row]) => row);
    return cells.map(([row, column, count]) => {
      const share = count / total.get(row);
      const who = row === column ? "named correctly" : `named ${ids[column]}`;
      return { row, column, count, share, text: `${ids[row]}\n${who}: ${count} of ${total.get(row)} answers (${Math.round(100 * share)} %)` };
    });
  }
})();
