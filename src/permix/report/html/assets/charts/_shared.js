"use strict";
/**
 * Shared by all charts: the sheet of a chart, the legend, marks with intervals, and a panel of curves.
 *
 * This file is loaded before the other charts. A chart is a function (element, data) in `permix.charts`. It may be called again at
 * any time (other models, theme or width) and then draws itself again; its controls keep their choices. Text enters the page only as
 * text nodes.
 */
(() => {
  const { el } = permix;
  const PAPER = "var(--plot-background)";
  const MAX_SYMBOLS = 25; // with more points on a line its symbols would touch
  const sheets = new WeakMap();

  /** The parts of a chart's element, made once: controls, legend, body and caption. `choices`: the values of its controls. */
  function sheet(element, note) {
    if (!sheets.has(element)) {
      const [controls, legend, body, caption] = ["controls", "legend", "body", "note"].map((name) => el("div", { class: `chart-${name}` }));
      element.classList.add("chart");
      element.replaceChildren(controls, legend, body, caption);
      sheets.set(element, { controls, legend, body, caption, choices: {} });
    }
    const made = sheets.get(element);
    made.caption.textContent = note;
    made.width = Math.max(280, Math.floor(element.clientWidth) || 640);
    made.narrow = made.width < 560;
    return made;
  }

  /** A labelled select, kept over redraws so that it keeps the focus. `options`: [[value, text]]. Returns the selected value. */
  function choose(made, name, title, options, redraw) {
    let select = made.controls.querySelector(`select[data-choice="${name}"]`);
    if (!select) {
      select = el("select", { "data-choice": name, "aria-label": title });
      select.addEventListener("change", () => {
        made.choices[name] = select.value;
        redraw();
      });
      made.controls.append(el("label", {}, `${title} `, select));
    }
    const values = options.map(([value]) => value);
    if (!values.includes(made.choices[name])) made.choices[name] = values[0];
    select.replaceChildren(...options.map(([value, text]) => el("option", { value }, text)));
    select.value = made.choices[name];
    return made.choices[name];
  }

  /** The selected labels of `models` (an object by label), in order. */
  const shown = (models) => Object.keys(models).filter((label) => permix.shown.has(label));

  const own = (object, key) => (Object.hasOwn(object, key) ? object[key] : null);
  const known = (estimate) => estimate !== null && estimate.value !== null;
  const clip = (text, width) => (text.length > width ? `${text.slice(0, width - 1)}…` : text);
  const withCount = (estimate) => `${permix.estimate(estimate)}, n = ${estimate.n}`;
  const fixed = (value) => value.toFixed(3);

  /** The legend: symbol, line and name, so that models differ without colour too. Seeds of a method have one entry. */
  function legend(made, labels, { symbols = true, lines = true } = {}) {
    const keys = methods(labels).map(([name, of]) => {
      const text = of.length > 1 ? `${name}, ${of.length} seeds` : of[0];
      return el("span", { class: "chart-key" }, swatch(permix.look(of[0]), symbols, lines), text);
    });
    made.legend.replaceChildren(...keys);
  }

  /** Returns [[method, its labels]] for these labels, in order. */
  function methods(labels) {
    const of = new Map(permix.data.models.map(({ label, method }) => [label, method]));
    return [...d3.group(labels, (label) => of.get(label) ?? label)];
  }

  function swatch(look, symbols, lines) {
    const picture = permix.svg("svg", { width: 34, height: 14, "aria-hidden": "true" });
    const line = { x1: 1, x2: 33, y1: 7, y2: 7, stroke: look.colour, "stroke-width": 1.8, "stroke-dasharray": look.dash || "none" };
    if (lines) picture.append(permix.svg("line", line));
    if (symbols) picture.append(permix.svg("path", { d: d3.symbol(symbol(look), 42)(), transform: "translate(17,7)", fill: look.colour }));
    return picture;
  }

  const symbol = (look) => d3[`symbol${look.symbol[0].toUpperCase()}${look.symbol.slice(1)}`];

  /** Draws a plot. Screen readers get one image with `label` as its description. */
  function plot(made, label, options) {
    const drawn = Plot.plot({ width: made.width, marginRight: 16, style: { fontSize: "12px", overflow: "visible" }, ...options });
    for (const part of drawn.querySelectorAll("[aria-label]")) {
      part.dataset.mark = part.getAttribute("aria-label"); // an aria-label without a role is not allowed
      part.removeAttribute("aria-label");
    }
    drawn.setAttribute("role", "img");
    drawn.setAttribute("aria-label", label);
    for (const type of ["pointerenter", "pointermove", "pointerdown", "pointerleave"]) drawn.addEventListener(type, dropWithoutPlace, { capture: true });
    return drawn;
  }

  /** Keeps an event without coordinates, which a script or an extension may send, from Plot: it would raise an error there. */
  function dropWithoutPlace(event) {
    if (!Number.isFinite(event.clientX) || !Number.isFinite(event.clientY)) event.stopImmediatePropagation();
  }

  /** A model's points; hollow if the judge is not trusted. */
  function dots(points, look, { hollow = false, r = 4, ...options }) {
    const fill = hollow ? PAPER : look.colour;
    return Plot.dot(points, { symbol: look.symbol, r, fill, stroke: look.colour, strokeWidth: 1.4, ...options });
  }

  /** Shows the text of the point nearest to the pointer. Points are {x, y, text}. */
  const tips = (points, options = {}) => Plot.tip(points, Plot.pointer({ x: "x", y: "y", title: "text", maxRadius: 30, lineWidth: 22, ...options }));

  /**
   * One panel of curves over x with bands.
   * series: [{label, points: [{x, estimate}], level (the points without persona), hollow, ring (an x)}]; a missing value leaves a gap.
   */
  function curves(made, { title, series, x, y, chances = [], low, high, height = 220 }) {
    const points = series.flatMap((one) => one.points.filter((at) => known(at.estimate)).map((at) => point(one, at, x.label)));
    const domain = [low ?? undefined, high ?? undefined];
    return plot(made, `${title}. ${lastValues(series)}`, {
      height,
      marginLeft: 48,
      x: { tickFormat: String, ...x, ticks: x.ticks ?? whole(series, made) },
      y: { label: y, grid: true, zero: low === 0, ...(high == null ? {} : { domain }) },
      marks: [
        ...chances.map((chance) => Plot.ruleY([chance], { stroke: "currentColor", strokeOpacity: 0.6, strokeDasharray: "1 4", strokeWidth: 1.4 })),
        ...series.flatMap((one) => curve(one, series.length)),
        tips(points),
      ],
    });
  }

  /** Ticks at whole numbers, as many as fit. */
  function whole(series, { width }) {
    const [first = 0, last = 1] = d3.extent(series.flatMap(({ points }) => points.map(({ x }) => x)));
    return d3.ticks(first, last, Math.max(2, Math.floor(width / 70))).filter(Number.isInteger);
  }

  function curve({ label, points, hollow = false, level = [], ring = null }, count) {
    const look = permix.look(label);
    const at = points.map(({ x, estimate }) => ({ x, y: estimate?.value ?? NaN, low: estimate?.low ?? NaN, high: estimate?.high ?? NaN }));
    const measured = at.filter((one) => !Number.isNaN(one.y));
    const withSymbols = measured.length <= MAX_SYMBOLS ? measured : [];
    return [
      Plot.areaY(at, { x: "x", y1: "low", y2: "high", fill: look.colour, fillOpacity: Math.min(0.13, 0.4 / count) }),
      Plot.lineY(level.filter(({ estimate }) => known(estimate)), { x: "x", y: (one) => one.estimate.value, stroke: look.colour, strokeDasharray: "6 3", strokeWidth: 1 }),
      Plot.lineY(at, { x: "x", y: "y", stroke: look.colour, strokeWidth: 1.8, strokeDasharray: look.dash, strokeLinecap: "butt" }),
      dots(withSymbols, look, { x: "x", y: "y", hollow }),
      Plot.dot(measured.filter((one) => one.x === ring), { x: "x", y: "y", r: 9, stroke: look.colour, strokeWidth: 2 }),
    ];
  }

  function point(one, { x, estimate }, xName) {
    const caveat = one.hollow ? "\nthe judge is not trusted" : "";
    return { x, y: estimate.value, text: `${one.label}\n${xName} ${x}: ${withCount(estimate)}${caveat}` };
  }

  /** The last known value of every series, in words. */
  function lastValues(series) {
    const last = ({ label, points }) => {
      const at = points.findLast((one) => known(one.estimate));
      return `${label}: ${at ? `${permix.estimate(at.estimate)} at ${at.x}` : "not measured"}`;
    };
    return series.map(last).join("; ");
  }

  const panelTitle = (text) => el("p", { class: "chart-title" }, text);

  permix.drawing = { PAPER, choose, clip, curves, dots, fixed, known, legend, own, panelTitle, plot, sheet, shown, swatch, tips, whole, withCount };
})();
