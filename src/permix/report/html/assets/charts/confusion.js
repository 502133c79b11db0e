"use strict";
/** Who is taken for whom: a matrix of the model chosen and one beside it, in the order of the first model. */
(() => {
  const { choose, clip, PAPER, panelTitle, plot, sheet, shown } = permix.drawing;
  const MANY = 3000; // cells beyond which they are painted as one image
  const LEGIBLE = 15; // pixels that a count needs
  const NAMED = 11; // pixels that a row needs to carry its name

  permix.charts.confusion = (element, { models }) => {
    const made = sheet(element, "rows: whose answer it was; columns, in the same order: who the classifier says");
    const redraw = () => permix.charts.confusion(element, { models });
    const labels = shown(models);
    const options = labels.map((label) => [`=${label}`, clip(label, 40)]);
    made.legend.replaceChildren();
    if (!labels.length) return made.body.replaceChildren(permix.el("p", {}, "Nothing is selected."));
    const one = choose(made, "one", "Model", options, redraw);
    const beside = [...options.filter(([value]) => value !== one), ["", "no other"]];
    const other = choose(made, "other", "beside model", beside, redraw);
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
    const said = `Who is taken for whom, ${label}: ${right} of ${d3.sum(cells, ([, , count]) => count)} answers of ${ids.length} personas are told right`;
    const named = step >= NAMED ? ids : ids.filter((_, place) => place % Math.ceil(NAMED / step) === 0);
    return plot(made, said, {
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

  /** The shade is ink over paper, so that it reads in any theme. */
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
      const who = row === column ? "told right" : `taken for ${ids[column]}`;
      return { row, column, count, share, text: `${ids[row]}\n${who}: ${count} of ${total.get(row)} answers (${Math.round(100 * share)} %)` };
    });
  }
})();
