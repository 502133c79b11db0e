"use strict";
/** The trade-off: PSS on the y axis, a measure of fidelity on the x axis; one point per method, a small point per training seed. */
(() => {
  const { choose, clip, dots, fixed, known, plot, sheet, tips, withCount } = permix.drawing;
  const SPREAD = 0.15; // share of the range left free around the points

  permix.charts.tradeoff = (element, data) => {
    const made = sheet(element, "");
    const options = data.measures.map(({ key, name }) => [key, clip(name, made.narrow ? 40 : 90)]);
    const key = choose(made, "measure", "Fidelity by", options, () => permix.charts.tradeoff(element, data));
    const measure = data.measures.find((one) => one.key === key);
    const points = data.points.filter(({ labels, x }) => labels.some((label) => permix.shown.has(label)) && known(x[key]));
    made.controls.hidden = data.measures.length < 2;
    made.caption.textContent = measure.note;
    made.body.replaceChildren(draw(made, data, measure, points.map((point) => pointOf(point, key))));
  };

  function pointOf(point, key) {
    const x = point.x[key];
    const seeds = point.seeds.filter((seed) => permix.shown.has(seed.label) && seed.y !== null && (seed.x[key] ?? null) !== null);
    const hollow = point.valid[key] !== true;
    const of = point.labels.length > 1 ? `, mean of ${point.labels.length} seeds` : "";
    const caveat = hollow ? "\nthe judge is not trusted" : "";
    return {
      name: point.name, look: permix.look(point.labels[0]), hollow, estimates: [x, point.y],
      x: x.value, y: point.y.value, left: x.low ?? x.value, right: x.high ?? x.value, low: point.y.low ?? point.y.value, high: point.y.high ?? point.y.value,
      text: `${point.name}${of}\nPSS ${withCount(point.y)}\nfidelity ${withCount(x)}${caveat}`,
      seeds: seeds.map((seed) => ({ x: seed.x[key], y: seed.y, text: `${seed.label}, one seed of ${point.name}\nPSS ${fixed(seed.y)}\nfidelity ${fixed(seed.x[key])}` })),
    };
  }

  function draw(made, data, measure, points) {
    const seeds = points.flatMap((point) => point.seeds);
    const drawn = plot(made, describe(measure, points), {
      height: Math.min(480, Math.max(340, made.width * 0.55)),
      marginLeft: 48,
      marginBottom: 44,
      x: { label: made.narrow ? clip(measure.name, 44) : measure.name, domain: range(points, "left", "right", seeds, "x", measure.low, measure.high, measure.chance), grid: true, ticks: made.narrow ? 4 : 8 },
      y: { label: data.y_name, domain: range(points, "low", "high", seeds, "y", 0, 1), grid: true },
      marks: [
        ...chance(measure.chance),
        Plot.arrow(arrows(data.arrows, points), { x1: "x1", y1: "y1", x2: "x2", y2: "y2", stroke: "currentColor", strokeOpacity: 0.65, strokeDasharray: "5 3", bend: 24, inset: 11, headLength: 8 }),
        ...points.flatMap(cross),
        tips([...points, ...seeds]),
      ],
    });
    writeNames(drawn, points, seeds);
    return drawn;
  }

  /** The range of the values with some room around them, within the possible range. */
  function range(points, low, high, seeds, at, least, most, also = null) {
    const values = [...points.flatMap((one) => [one[low], one[high]]), ...seeds.map((one) => one[at]), ...(also === null ? [] : [also])];
    const [start, end] = values.length ? d3.extent(values) : [least, most];
    const room = SPREAD * (end - start || 0.1);
    return [Math.max(least, start - room), Math.min(most + 0.06 * (most - least), end + room)];
  }

  const chance = (value) => (value === null ? [] : [
    Plot.ruleX([value], { stroke: "currentColor", strokeOpacity: 0.6, strokeDasharray: "1 4", strokeWidth: 1.4 }),
    Plot.text([value], { x: (one) => one, frameAnchor: "bottom", text: () => "chance", dx: 5, dy: -5, textAnchor: "start", fillOpacity: 0.85 }),
  ]);

  function arrows(pairs, points) {
    const at = new Map(points.map((point) => [point.name, point]));
    const both = pairs.filter((pair) => pair.every((name) => at.has(name))).map((pair) => pair.map((name) => at.get(name)));
    return both.map(([from, to]) => ({ x1: from.x, y1: from.y, x2: to.x, y2: to.y }));
  }

  function cross(point) {
    const { look } = point;
    return [
      Plot.ruleY([point], { y: "y", x1: "left", x2: "right", stroke: look.colour, strokeWidth: 1.5 }),
      Plot.ruleX([point], { x: "x", y1: "low", y2: "high", stroke: look.colour, strokeWidth: 1.5 }),
      dots(point.seeds, look, { x: "x", y: "y", r: 2.6, fillOpacity: 0.55, strokeOpacity: 0.55 }),
      dots([point], look, { x: "x", y: "y", r: 7, hollow: point.hollow }),
    ];
  }

  /** Writes each name next to its point, where it overlaps least with points, bars and other names. */
  function writeNames(drawn, points, seeds) {
    const [x, y] = [drawn.scale("x"), drawn.scale("y")];
    const [left, right] = x.range;
    const [bottom, top] = y.range;
    const box = (one, r) => [x.apply(one.x) - r, y.apply(one.y) - r, x.apply(one.x) + r, y.apply(one.y) + r];
    const bars = ({ left: a, right: b, low, high, x: px, y: py }) => [
      [x.apply(a), y.apply(py) - 3, x.apply(b), y.apply(py) + 3], [x.apply(px) - 3, y.apply(high), x.apply(px) + 3, y.apply(low)],
    ];
    const obstacles = [...points.map((one) => box(one, 9)), ...seeds.map((one) => box(one, 6)), ...points.flatMap(bars)];
    const layer = d3.select(drawn).insert("g", "[data-mark=tip]").attr("class", "chart-names").attr("text-anchor", "start").attr("font-weight", "600").attr("pointer-events", "none");
    for (const point of points) {
      const text = clip(point.name, right - left < 400 ? 24 : 36);
      const node = layer.append("text").text(text).style("fill", `color-mix(in oklab, ${point.look.colour} 65%, currentColor)`).node();
      const length = node.getComputedTextLength?.() || text.length * 7;
      const cost = (one) => d3.sum(obstacles, (other) => overlap(one, other)) + 4 * (14 * length - overlap(one, [left, top, right, bottom]));
      const best = d3.least(places(x.apply(point.x), y.apply(point.y), length), cost);
      obstacles.push(best);
      d3.select(node).attr("x", best[0]).attr("y", best[3] - 3);
    }
  }

  /** Candidate boxes for a name, the nearest first. */
  const places = (x, y, length) => [-8, 20, -24, 36, -40, 52].flatMap((down) =>
    [10, -10 - length, -length / 2].map((right) => [x + right, y + down - 12, x + right + length, y + down + 3]));

  function overlap([a, b, c, d], [e, f, g, h]) {
    return Math.max(0, Math.min(c, g) - Math.max(a, e)) * Math.max(0, Math.min(d, h) - Math.max(b, f));
  }

  const describe = (measure, points) =>
    `Stability (PSS) against ${measure.name}. ${points.map(({ name, estimates: [x, y] }) => `${name}: PSS ${permix.estimate(y)}, fidelity ${permix.estimate(x)}`).join("; ")}`;
})();
