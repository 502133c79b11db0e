/* Learning curves as small multiples: one panel a figure, one line each, so that nothing hangs on colour. */
"use strict";
(() => {
  const { el, svg: mark } = permix;
  const WIDTH = 260, HEIGHT = 110, LEFT = 40, RIGHT = 8, TOP = 8, BOTTOM = 20;
  const NAMES = {
    reward: "mean reward", loss: "loss", completion_tokens: "tokens a completion", frac_nonzero_advantage_groups: "share of groups with a signal",
    truncated: "share cut off", entropy: "entropy", kl: "KL from the reference model", replay_kl: "KL of character replay", lr: "learning rate",
    grad_norm: "gradient norm",
  };

  /** A number short enough for an axis. */
  const short = (value) =>
    value !== 0 && (Math.abs(value) < 0.001 || Math.abs(value) >= 1e5) ? value.toExponential(1) : String(+value.toPrecision(3));

  /** One panel: `points` are [step, value], value null where there is none, which breaks the line. */
  const panel = (name, points) => {
    const known = points.filter(([, value]) => value !== null);
    const steps = points.map(([step]) => step), values = known.map(([, value]) => value);
    const [first, last] = [Math.min(...steps), Math.max(...steps)];
    const [low, high] = [Math.min(...values), Math.max(...values)];
    const x = (step) => LEFT + ((step - first) / (last - first || 1)) * (WIDTH - LEFT - RIGHT);
    const y = (value) => HEIGHT - BOTTOM - ((value - low) / (high - low || 1)) * (HEIGHT - BOTTOM - TOP);
    let drawn = "", pen = "M";
    for (const [step, value] of points) {
      drawn += value === null ? "" : `${pen}${x(step).toFixed(1)} ${y(value).toFixed(1)}`;
      pen = value === null ? "M" : "L";
    }
    const now = values.at(-1);
    const label = `${NAMES[name]}: from ${short(values[0])} at step ${known[0][0]} to ${short(now)} at step ${known.at(-1)[0]}`;
    const svg = mark("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": label });
    svg.append(
      mark("path", { class: "axis", d: `M${LEFT} ${TOP}V${HEIGHT - BOTTOM}H${WIDTH - RIGHT}` }),
      mark("text", { x: LEFT - 4, y: TOP + 8, "text-anchor": "end" }, short(high)),
      mark("text", { x: LEFT - 4, y: HEIGHT - BOTTOM, "text-anchor": "end" }, high === low ? "" : short(low)),
      mark("text", { x: LEFT, y: HEIGHT - 5 }, `step ${first}`),
      mark("text", { x: WIDTH - RIGHT, y: HEIGHT - 5, "text-anchor": "end" }, last === first ? "" : String(last)),
      mark("path", { class: "line", d: drawn }),
      mark("circle", { class: "now", cx: x(known.at(-1)[0]), cy: y(now), r: 3 }),
    );
    return el("figure", {}, el("figcaption", {}, `${NAMES[name]}: now ${short(now)}`), svg);
  };

  /** All curves of a training: `curve` is a list of {step, reward, ...}; a figure that no step has is left out. */
  permix.curves = (curve) =>
    Object.keys(NAMES)
      .filter((name) => curve.some((point) => point[name] !== null))
      .map((name) => panel(name, curve.map((point) => [point.step, point[name]])));
})();
