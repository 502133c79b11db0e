"use strict";
/** Training curves: each step thin, a centred moving average bold. There is no interval, because each curve is one run. */
(() => {
  const { fixed, legend, plot, sheet, shown, tips, whole } = permix.drawing;

  permix.charts.training = (element, { note, panels, models }) => {
    const labels = shown(models);
    const window = span(Math.max(0, ...labels.map((label) => models[label].length)));
    const made = sheet(element, `${note}; bold: centred mean of ${window} points`);
    legend(made, labels, { symbols: false });
    made.body.replaceChildren(...panels.map((panel) => draw(made, panel, labels, models, window)));
  };

  /** An odd number of points, about a tenth of them. */
  const span = (count) => Math.floor(count / 20) * 2 + 1;

  function draw(made, { key, name }, labels, models, window) {
    const everyLine = labels.map((label) => line(label, models[label], key, window));
    const lines = everyLine.filter(({ points }) => points.some((one) => Number.isFinite(one.y)));
    const [first, last] = d3.extent(everyLine.flatMap(({ points }) => points.map(({ x }) => x)));
    const ends = lines.map(({ label, points }) => `${label}: ${fixed(points.findLast((one) => Number.isFinite(one.mean)).mean)} at the end`);
    return plot(made, `Training: ${name} by step. ${ends.join("; ")}`, {
      height: 190,
      marginLeft: 48,
      x: { label: "step", domain: first < last ? [first, last] : undefined, ticks: whole(everyLine, made), tickFormat: String },
      y: { label: name, grid: true, zero: true },
      marks: [...lines.flatMap(strokes), tips(lines.flatMap(({ points }) => points.filter((one) => Number.isFinite(one.y))))],
    });
  }

  function strokes({ label, points }) {
    const { colour, dash } = permix.look(label);
    return [
      Plot.lineY(points, { x: "x", y: "y", stroke: colour, strokeWidth: 0.8, strokeOpacity: 0.45 }),
      Plot.lineY(points, { x: "x", y: "mean", stroke: colour, strokeWidth: 2.2, strokeDasharray: dash, strokeLinecap: "butt" }),
    ];
  }

  function line(label, rows, key, window) {
    const values = rows.map((row) => row[key] ?? NaN);
    const means = movingMean(values, window);
    return {
      label,
      points: rows.map(({ step }, place) => ({
        x: step,
        y: values[place],
        mean: means[place],
        text: `${label}\nstep ${step}: ${fixed(values[place])}\nmean around it: ${fixed(means[place])}\nno interval: one run`,
      })),
    };
  }

  /** Centred mean over `window` (odd) values, fewer at both ends; missing values are left out, and NaN where all are missing. */
  function movingMean(values, window) {
    const half = (window - 1) / 2;
    return values.map((_, place) => d3.mean(values.slice(Math.max(0, place - half), place + half + 1)) ?? NaN);
  }

  permix.drawing.movingMean = movingMean;
})();
