"use strict";
/** Accuracy by persona for each model, with the accuracy without persona; it has its own controls to sort and filter. */
(() => {
  const { choose, clip, dots, known, legend, own, plot, sheet, shown, tips, withCount } = permix.drawing;
  const FIRST = 60; // personas shown before the reader asks for all
  const NOBODY = "\u0000"; // the row without persona; no id has this character
  const ORDERS = [["accuracy", "accuracy"], ["difference", "difference to no persona"], ["name", "name"]];

  permix.charts.personas = (element, data) => {
    const made = sheet(element, data.note);
    const redraw = () => permix.charts.personas(element, data);
    const labels = shown(data.models);
    const rows = chosen(made, data, labels, redraw);
    const drawn = made.choices.all ? rows : rows.slice(0, FIRST);
    legend(made, labels, { lines: true });
    made.body.replaceChildren(...(rows.length && labels.length ? [draw(made, data, labels, drawn)] : [permix.el("p", {}, "Nothing is selected.")]));
    if (rows.length > FIRST) made.body.append(more(made, rows.length, redraw));
  };

  /** The personas selected by the controls, in order. */
  function chosen(made, data, labels, redraw) {
    const tags = d3.rollup(data.ids.flatMap(({ tags }) => tags), (every) => every.length, (tag) => tag);
    const order = choose(made, "order", "Sort by", ORDERS, redraw);
    const label = choose(made, "model", "of model", Object.keys(data.models).map((one) => [`=${one}`, clip(one, 40)]), redraw).slice(1);
    const everyone = ["all", `all ${data.ids.length} personas`];
    const options = [everyone, ...d3.sort(tags, ([tag]) => tag).map(([tag, count]) => [`=${tag}`, `${tag} (${count})`])];
    const tag = choose(made, "tag", "Show", options, redraw);
    const kept = data.ids.filter(({ tags }) => tag === "all" || tags.includes(tag.slice(1)));
    return d3.sort(kept, comparison(data.models[label], order));
  }

  /** Best first; personas without a value last; equal ones by name. */
  function comparison(model, order) {
    const value = ({ id }) => own(order === "difference" ? model.difference : model.of, id)?.value ?? -Infinity;
    const byName = (one, other) => d3.ascending(one.id, other.id);
    return order === "name" ? byName : (one, other) => d3.descending(value(one), value(other)) || byName(one, other);
  }

  function draw(made, { models }, labels, rows) {
    const height = Math.max(18, 9 * labels.length + 7);
    const width = made.narrow ? 16 : 30;
    const wide = Math.min(made.narrow ? 126 : 220, 14 + 7.2 * d3.max(rows, ({ id }) => Math.min(id.length, width)));
    const level = labels.some((label) => known(models[label].no_persona)) ? [{ id: NOBODY, text: "" }] : [];
    const lines = [...level, ...rows];
    const points = labels.map((label, place) => series(label, models[label], lines, (place - (labels.length - 1) / 2) * 9));
    return plot(made, describe(labels, models, rows), {
      height: 56 + lines.length * height,
      marginLeft: wide,
      marginTop: 26,
      marginBottom: 34,
      x: { label: "accuracy", domain: extent(points), grid: true, ticks: made.narrow ? 4 : 8 },
      y: { type: "point", label: null, domain: lines.map(({ id }) => id), padding: 0.6 },
      marks: [
        Plot.axisX({ anchor: "top", label: null, ticks: made.narrow ? 4 : 8 }),
        Plot.axisX({ anchor: "bottom", label: "accuracy", ticks: made.narrow ? 4 : 8 }),
        Plot.axisY({ tickFormat: (id) => (id === NOBODY ? "no persona" : clip(id, width)), tickSize: 0 }),
        ...labels.flatMap((label) => baseline(models[label].no_persona, permix.look(label))),
        ...points.flatMap(({ label, bars, dy }) => marks(bars, permix.look(label), dy)),
        ...points.map(({ bars, dy }) => tips(bars, { dy })),
      ],
    });
  }

  function series(label, model, rows, dy) {
    const of = (id) => (id === NOBODY ? model.no_persona : own(model.of, id));
    const bars = rows.filter(({ id }) => known(of(id))).map(({ id, text }) => {
      const [estimate, difference] = [of(id), own(model.difference, id)];
      const suffix = known(difference) ? `\ndifference to no persona ${withCount(difference)}` : "";
      const name = id === NOBODY ? "no persona" : id;
      return { x: estimate.value, y: id, low: estimate.low ?? estimate.value, high: estimate.high ?? estimate.value, text: `${name}, ${label}\naccuracy ${withCount(estimate)}${suffix}\n${clip(text, 120)}` };
    });
    return { label, bars, dy };
  }

  function extent(points) {
    const ends = points.flatMap(({ bars }) => bars.flatMap(({ low, high }) => [low, high]));
    const [low, high] = d3.extent(ends);
    return low === undefined ? [0, 1] : [Math.max(0, low - 0.03), Math.min(1, high + 0.03)];
  }

  /** A line through all rows; its interval is in the row without persona, because bands of several models hide each other. */
  const baseline = (estimate, look) => (known(estimate)
    ? [Plot.ruleX([estimate.value], { stroke: look.colour, strokeDasharray: "6 3", strokeWidth: 1, strokeOpacity: 0.7 })] : []);

  const marks = (bars, look, dy) => [
    Plot.ruleY(bars, { y: "y", x1: "low", x2: "high", dy, stroke: look.colour, strokeWidth: 1.4 }),
    dots(bars, look, { x: "x", y: "y", dy }),
  ];

  function describe(labels, models, rows) {
    const ranges = labels.map((label) => {
      const baseline = known(models[label].no_persona) ? `, ${permix.estimate(models[label].no_persona)} without persona` : "";
      const values = rows.map(({ id }) => own(models[label].of, id)?.value).filter((value) => value != null);
      return `${label}: ${values.length ? `${d3.min(values).toFixed(3)} to ${d3.max(values).toFixed(3)}` : "not measured"}${baseline}`;
    });
    return `Accuracy under each of ${rows.length} personas. ${ranges.join("; ")}`;
  }

  function more(made, count, redraw) {
    const button = permix.el("button", { type: "button" }, made.choices.all ? `Show the first ${FIRST}` : `Show all ${count} personas`);
    button.addEventListener("click", () => {
      made.choices.all = !made.choices.all;
      redraw();
      made.body.querySelector("button").focus();
    });
    return button;
  }
})();
