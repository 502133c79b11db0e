"use strict";
/** Judges' scores by task, and their validation: the scores of each control. */
(() => {
  const { clip, dots, known, legend, panelTitle, plot, sheet, shown, tips, withCount } = permix.drawing;
  const SHADES = d3.range(5).map((place) => d3.interpolateCividis(0.05 + (0.95 * place) / 4));
  const INKS = ["white", "white", "black", "black", "black"];
  const LEGIBLE = 38; // pixels of a piece that shows its share

  permix.charts.judged = (element, kinds) => {
    const labels = shown(Object.assign({}, ...kinds.flatMap(({ judges }) => judges.map(({ models }) => models))));
    const made = sheet(element, kinds.length === 1 ? kinds[0].note : "");
    legend(made, labels, { lines: false });
    made.body.replaceChildren(...kinds.flatMap((kind) => [
      ...kind.judges.flatMap((judge) => [panelTitle(`judge ${judge.judge}: ${kind.title}`), scores(made, kind, judge)]),
      ...(kinds.length > 1 ? [permix.el("p", { class: "chart-note" }, kind.note)] : []),
    ]));
  };

  function scores(made, { score, title }, { judge, tasks, models }) {
    const labels = shown(models);
    const width = made.narrow ? 18 : 30;
    const rows = labels.map((label, place) => row(label, models[label], tasks, (place - (labels.length - 1) / 2) * 10));
    const values = labels.map((label) => `${label}: ${permix.estimate(models[label].scores[0])}${models[label].valid ? "" : ", judge not trusted"}`);
    return plot(made, `${score} by judge ${judge}, ${title}. ${values.join("; ")}`, {
      height: 52 + tasks.length * Math.max(22, 10 * labels.length + 8),
      marginLeft: Math.min(made.narrow ? 130 : 220, 14 + 6.8 * d3.max(tasks, (task) => Math.min(task.length, width))),
      x: { label: "mean score, 1 to 5", domain: [1, 5], ticks: 5, grid: true },
      y: { type: "point", label: null, domain: tasks, padding: 0.6 },
      marks: [
        Plot.axisY({ tickFormat: (task) => clip(task, width), tickSize: 0 }),
        ...rows.flatMap(({ label, hollow, bars, dy }) => marks(bars, permix.look(label), hollow, dy)),
        ...rows.map(({ bars, dy }) => tips(bars, { dy })),
      ],
    });
  }

  function row(label, { valid, scores }, tasks, dy) {
    const caveat = valid ? "" : valid === null ? "\nthe judge was not validated" : "\nthe judge does not tell right from wrong persona";
    const scored = tasks.map((task, place) => ({ task, estimate: scores[place] })).filter(({ estimate }) => known(estimate));
    return {
      label, dy, hollow: valid !== true,
      bars: scored.map(({ task, estimate }) => ({ x: estimate.value, y: task, low: estimate.low ?? estimate.value, high: estimate.high ?? estimate.value, text: `${label}, ${task}\n${withCount(estimate)}${caveat}` })),
    };
  }

  const marks = (bars, look, hollow, dy) => [
    Plot.ruleY(bars, { y: "y", x1: "low", x2: "high", dy, stroke: look.colour, strokeWidth: 1.5 }),
    dots(bars, look, { x: "x", y: "y", dy, hollow, r: 5 }),
  ];

  permix.charts.trial = (element, { note, kinds }) => {
    const made = sheet(element, note);
    made.legend.replaceChildren(...SHADES.map((shade, place) => permix.el("span", { class: "chart-key" }, patch(shade), `score ${place + 1}`)));
    const panels = kinds.flatMap(({ title, panels }) => panels.filter(({ label }) => permix.shown.has(label)).map((panel) => ({ title, ...panel })));
    made.body.replaceChildren(...panels.flatMap((panel) => [panelTitle(`${panel.label}, judge ${panel.judge}: ${panel.title}; AUC ${panel.auc}`), stacks(made, panel)]));
  };

  function patch(shade) {
    const picture = permix.svg("svg", { width: 16, height: 14, "aria-hidden": "true" });
    picture.append(permix.svg("rect", { width: 16, height: 14, fill: shade, stroke: "currentColor", "stroke-opacity": 0.5 }));
    return picture;
  }

  function stacks(made, { label, judge, auc, bars }) {
    const pieces = bars.flatMap(({ name, counts }) => cut(name, counts));
    const [left, right] = [104, 46];
    const legible = pieces.filter(({ x1, x2 }) => (x2 - x1) * (made.width - left - right) >= LEGIBLE);
    const counted = bars.map(({ name, counts }) => `${name}: ${counts.map((count, place) => `${count} scored ${place + 1}`).join(", ")}`);
    return plot(made, `Validation of judge ${judge} on ${label}, AUC ${auc}. ${counted.join("; ")}`, {
      height: 46 + bars.length * 27,
      marginLeft: left,
      marginRight: right,
      x: { label: "share of answers", domain: [0, 1], tickFormat: "%", ticks: made.narrow ? 3 : 6 },
      y: { label: null, domain: bars.map(({ name }) => name), padding: 0.16 },
      marks: [
        Plot.axisY({ tickSize: 0 }),
        Plot.barX(pieces, { x1: "x1", x2: "x2", y: "y", fill: ({ place }) => SHADES[place], stroke: "var(--plot-background)", strokeWidth: 0.8 }),
        Plot.text(legible, { x: "x", y: "y", text: ({ share }) => `${Math.round(100 * share)} %`, fill: ({ place }) => INKS[place], pointerEvents: "none" }),
        Plot.text(bars, { x: 1, y: "name", text: ({ counts }) => String(d3.sum(counts)), dx: 5, textAnchor: "start" }),
        tips(pieces),
      ],
    });
  }

  /** The five pieces of a bar, end to end. */
  function cut(name, counts) {
    const total = d3.sum(counts);
    const ends = d3.cumsum(counts, (count) => count / total);
    return counts.map((count, place) => {
      const [x1, x2] = [place ? ends[place - 1] : 0, ends[place]];
      return { place, x1, x2, x: (x1 + x2) / 2, y: name, share: count / total, text: `${name}\nscore ${place + 1}: ${count} of ${total} answers (${Math.round((100 * count) / total)} %)` };
    }).filter(({ share }) => share > 0);
  }
})();
