// Starts the page: the selection of models, the theme, and each chart when the reader scrolls near it.
"use strict";

(() => {
  const {data, charts, drawing, shown, setTheme, changed, onChange} = permix;

  /** One box per method; it selects all its training seeds. */
  function selection() {
    for (const box of document.querySelectorAll("#choose-models input")) {
      const labels = data.models.filter((model) => model.method === box.value).map((model) => model.label);
      box.addEventListener("change", () => {
        labels.forEach((label) => (box.checked ? shown.add(label) : shown.delete(label)));
        changed();
      });
    }
  }

  function swatches() {
    for (const element of document.querySelectorAll("[data-look]")) {
      element.replaceChildren(drawing.swatch(permix.look(element.dataset.look), true, true));
    }
  }

  const THEMES = ["system", "light", "dark"];

  function theme() {
    const button = document.getElementById("theme");
    button?.addEventListener("click", () => {
      const next = THEMES[(THEMES.indexOf(button.dataset.now) + 1) % THEMES.length];
      button.dataset.now = next;
      button.textContent = `theme: ${next}`;
      setTheme(next === "system" ? null : next);
    });
  }

  /** Draws the chart now, and again after each change of models, theme or width. */
  function begin(element) {
    const name = element.dataset.chart;
    const draw = () => charts[name](element, data.charts[name]);
    draw();
    onChange(draw);
    element.dataset.drawn = "";
  }

  const idle = globalThis.requestIdleCallback ?? ((run) => setTimeout(run, 200)); // Safari has none

  /** Draws all other charts when the page has nothing else to do, so that a print has them: one that is drawn for it may come late. */
  function whenIdle(elements) {
    const next = elements.find((element) => !("drawn" in element.dataset));
    if (!next) return;
    idle(() => {
      if (!("drawn" in next.dataset)) begin(next);
      whenIdle(elements.filter((element) => element !== next));
    });
  }

  function whenNear(elements) {
    const near = new IntersectionObserver((entries) => {
      for (const {isIntersecting, target} of entries) {
        if (!isIntersecting) continue;
        near.unobserve(target);
        if (!("drawn" in target.dataset)) begin(target);
      }
    }, {rootMargin: "600px"});
    elements.forEach((element) => near.observe(element));
  }

  selection();
  swatches();
  onChange(swatches);
  theme();
  whenNear(document.querySelectorAll("[data-chart]"));
  whenIdle([...document.querySelectorAll("[data-chart]")]);
  addEventListener("beforeprint", () => {
    document.querySelectorAll("[data-chart]:not([data-drawn])").forEach(begin);
    document.querySelectorAll("main details:not([open])").forEach((one) => Object.assign(one, { open: true }).setAttribute("data-closed", ""));
  });
  addEventListener("afterprint", () => document.querySelectorAll("main details[data-closed]").forEach((one) => {
    one.open = false;
    one.removeAttribute("data-closed");
  }));
  document.documentElement.dataset.ready = "";
})();
