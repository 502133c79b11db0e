"use strict";
/** Charts that are curves with bands: the persona lottery, probes while training, what identifiability learnt from, drift. */
(() => {
  const { curves, legend, sheet, shown } = permix.drawing;

  permix.charts.lottery = (element, { note, models }) => {
    const made = sheet(element, note);
    const labels = shown(models);
    const series = labels.map((label) => ({
      label,
      points: models[label].best.map((estimate, place) => ({ x: place + 1, estimate })),
      level: models[label].best.map((_, place) => ({ x: place + 1, estimate: models[label].none })),
    }));
    legend(made, labels);
    made.body.replaceChildren(curves(made, { title: "Expected accuracy of the best of k personas", series, x: { label: "personas tried" }, y: "expected best accuracy", height: 320 }));
  };

  permix.charts.probes = (element, { note, panels, models }) => {
    const made = sheet(element, note);
    const labels = shown(models);
    legend(made, labels);
    made.body.replaceChildren(...panels.map(({ key, name }, place) => {
      const series = labels.map((label) => probed(label, models[label], key, place === 0));
      const chances = key === "identifiability" ? distinct(labels.flatMap((label) => models[label].points.map((one) => one.chance))) : [];
      return curves(made, { title: `Probes while training: ${name}`, series, chances, x: { label: "step" }, y: name, low: 0 });
    }));
  };

  function probed(label, { points, taken }, key, first) {
    const level = first ? points.map(({ step, none }) => ({ x: step, estimate: none })) : [];
    return { label, level, ring: taken, points: points.map((one) => ({ x: one.step, estimate: one[key] })) };
  }

  permix.charts.learnt = (element, { note, models }) => {
    const made = sheet(element, note);
    const labels = shown(models);
    const series = labels.map((label) => ({
      label,
      points: models[label].points.map(({ questions, accuracy }) => ({ x: questions, estimate: accuracy })),
    }));
    const ticks = distinct(series.flatMap(({ points }) => points.map((one) => one.x)));
    const x = { label: "questions learnt from", type: "log", base: 2, ticks };
    const chances = distinct(labels.map((label) => models[label].chance));
    legend(made, labels);
    made.body.replaceChildren(curves(made, { title: "Identifiability by what it learnt from", series, chances, x, y: "identifiability", low: 0, height: 300 }));
  };

  permix.charts.drift = (element, { note, panels, models }) => {
    const made = sheet(element, note);
    const labels = shown(models);
    legend(made, labels);
    made.body.replaceChildren(...panels.map(({ key, name, low, high }) => {
      const series = labels.filter((label) => Object.hasOwn(models[label].courses, key)).map((label) => {
        const { trusted, by_turn } = models[label].courses[key];
        return { label, hollow: !trusted, points: by_turn.map((estimate, turn) => ({ x: turn + 1, estimate })) };
      });
      const chances = key === "identifiability" ? distinct(labels.map((label) => models[label].chance)) : [];
      return curves(made, { title: `By turn of the interview: ${name}`, series, chances, x: { label: "turn" }, y: name, low, high, height: 180 });
    }));
  };

  const distinct = (values) => [...new Set(values.filter((value) => value !== null))].sort(d3.ascending);
})();
