"use strict";
/** Charts of curves with bands: best of k personas, dev evaluations, identifiability by training questions, drift. */
(() => {
  const { curves, legend, sheet, shown } = permix.drawing;

  permix.charts.lottery = (element, { note, models }) => {
    const made = sheet(element, note);
    const labels = shown(models);
    const series = labels.map((label) => ({
      label,
      points: models[label].best.map((estimate, place) => ({ x: place + 1, estimate })),
      level: models[label].best.map((_, place) => ({ x: place + 1, estimate: models[label].no_persona })),
    }));
    legend(made, labels);
    made.body.replaceChildren(curves(made, { title: "Expected accuracy of the best of k personas", series, x: { label: "personas tried" }, y: "expected best accuracy", height: 320 }));
  };

  permix.charts.dev_evals = (element, { note, panels, models }) => {
    const made = sheet(element, note);
    const labels = shown(models);
    legend(made, labels);
    made.body.replaceChildren(...panels.map(({ key, name }, place) => {
      const series = labels.map((label) => devEvalSeries(label, models[label], key, place === 0));
      const chances = key === "identifiability" ? distinct(labels.flatMap((label) => models[label].points.map((one) => one.chance))) : [];
      return curves(made, { title: `Dev evaluations during training: ${name}`, series, chances, x: { label: "step" }, y: name, low: 0 });
    }));
  };

  function devEvalSeries(label, { points, selected_step }, key, first) {
    const level = first ? points.map(({ step, no_persona }) => ({ x: step, estimate: no_persona })) : [];
    return { label, level, ring: selected_step, points: points.map((one) => ({ x: one.step, estimate: one[key] })) };
  }

  permix.charts.learnt = (element, { note, models }) => {
    const made = sheet(element, note);
    const labels = shown(models);
    const series = labels.map((label) => ({
      label,
      points: models[label].points.map(({ questions, accuracy }) => ({ x: questions, estimate: accuracy })),
    }));
    const ticks = distinct(series.flatMap(({ points }) => points.map((one) => one.x)));
    const x = { label: "questions that the classifier was trained on", type: "log", base: 2, ticks };
    const chances = distinct(labels.map((label) => models[label].chance));
    legend(made, labels);
    made.body.replaceChildren(curves(made, { title: "Identifiability by the classifier's training questions", series, chances, x, y: "identifiability", low: 0, height: 300 }));
  };

  permix.charts.drift = (element, { note, panels, models }) => {
    const made = sheet(element, note);
    const labels = shown(models);
    legend(made, labels);
    made.body.replaceChildren(...panels.map(({ key, name, low, high }) => {
      const series = labels.filter((label) => Object.hasOwn(models[label].courses, key)).map((label) => {
        const { valid, by_turn } = models[label].courses[key];
        return { label, hollow: !valid, points: by_turn.map((estimate, turn) => ({ x: turn + 1, estimate })) };
      });
      const chances = key === "identifiability" ? distinct(labels.map((label) => models[label].chance)) : [];
      return curves(made, { title: `By interview turn: ${name}`, series, chances, x: { label: "turn" }, y: name, low, high, height: 180 });
    }));
  };

  const distinct = (values) => [...new Set(values.filter((value) => value !== null))].sort(d3.ascending);
})();
