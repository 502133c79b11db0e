// Shared by all parts of the page: the data, functions that make elements, the look of a model, the theme, popovers.
// Contract: text enters the page only as text nodes. `permix` is the page's only global.
"use strict";

globalThis.permix = (() => {
  const block = document.getElementById("data");
  const data = block ? JSON.parse(block.textContent) : {models: [], charts: {}, grids: {}, runs: []};
  const listeners = [];

  /** Sets attributes on an element; `style` is an object. An attribute with the value null or false is left out. */
  function dress(element, attributes) {
    for (const [name, value] of Object.entries(attributes)) {
      if (/^on/i.test(name)) throw new TypeError(`${name}: listeners are added with addEventListener`);
      if (name === "style") Object.assign(element.style, value);
      else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value === true ? "" : value);
    }
    return element;
  }

  /** An HTML element; strings and numbers become text nodes, null is left out. */
  function el(tag, attributes = {}, ...children) {
    const element = dress(document.createElement(tag), attributes);
    element.append(...children.flat().filter((child) => child !== null && child !== undefined).map((child) => child instanceof Node ? child : String(child)));
    return element;
  }

  /** The same for SVG. */
  function svg(tag, attributes = {}, ...children) {
    const element = dress(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes);
    element.append(...children);
    return element;
  }

  const digits = (value, places) => value.toFixed(places).replace("-", "−");

  /** The same for a value, where what rounds to zero has no sign. */
  const rounded = (value, places) => digits(Number(value.toFixed(places)) + 0, places);

  /** Whether an estimate has an interval. */
  const isBounded = (one) => one.low !== null && one.low !== undefined && one.high !== null && one.high !== undefined;

  /** How many decimals n supports: the rule of Estimate.decimals in permix/types.py. */
  const decimals = (one) => ((isBounded(one) ? Number((one.high - one.low).toFixed(9)) <= 0.1 : one.n >= 400) ? 3 : 2);

  /** Returns "0.812 [0.75, 0.87]", "0.81 [0.60, 0.94]" for a wide interval, or "–" if nothing was measured. */
  function estimate(one) {
    if (!one || one.value === null || one.value === undefined) return "–";
    return rounded(one.value, decimals(one)) + (isBounded(one) ? ` [${digits(one.low, 2)}, ${digits(one.high, 2)}]` : "");
  }

  const prefersDark = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (document.documentElement.dataset.theme ?? (prefersDark.matches ? "dark" : "light")) === "dark";

  const byLabel = new Map(data.models.map((model) => [model.label, model]));
  const plain = {label: "", method: "", colour: "#000000", dark: "#ffffff", symbol: "circle", dash: ""};

  /** Returns a model's colour, symbol and dash in the current theme. */
  function look(label) {
    const model = byLabel.get(label) ?? plain;
    return {colour: isDark() ? model.dark : model.colour, symbol: model.symbol, dash: model.dash};
  }

  const shown = new Set(data.models.map((model) => model.label));
  const onChange = (listener) => void listeners.push(listener);
  const changed = () => listeners.forEach((listener) => listener());

  prefersDark.addEventListener("change", changed);
  let width = innerWidth;
  let resizing = 0;
  addEventListener("resize", () => {
    if (innerWidth === width) return; // a phone's address bar changes only the height
    width = innerWidth;
    cancelAnimationFrame(resizing);
    resizing = requestAnimationFrame(changed);
  });

  /** Sets "light" or "dark"; null follows the system. */
  function setTheme(theme) {
    if (theme) document.documentElement.dataset.theme = theme;
    else delete document.documentElement.dataset.theme;
    changed();
  }

  /** Announces a text to screen readers. */
  function announce(text) {
    const region = document.getElementById("announced");
    if (region) region.textContent = text;
  }

  let openPopover = null;

  /** Shows `content` next to `anchor` until Escape, a click elsewhere or another popover. Escape moves the focus back to the anchor. */
  function popover(anchor, content) {
    openPopover?.remove();
    const box = el("div", {class: "popover", role: "dialog", "aria-label": "provenance of this number", tabindex: "-1"}, content);
    const close = (back) => {
      box.remove();
      anchor.setAttribute("aria-expanded", "false");
      document.removeEventListener("keydown", onKey);
      document.removeEventListener("pointerdown", onPointer);
      openPopover = null;
      if (back) anchor.focus();
    };
    const onKey = (event) => event.key === "Escape" && close(true);
    const onPointer = (event) => !box.contains(event.target) && !anchor.contains(event.target) && close(false);
    document.body.append(box);
    const place = anchor.getBoundingClientRect();
    const left = Math.max(8, Math.min(place.left, document.documentElement.clientWidth - box.offsetWidth - 8));
    const below = place.bottom + box.offsetHeight + 8 <= innerHeight;
    Object.assign(box.style, {left: `${left + scrollX}px`, top: `${(below ? place.bottom + 4 : Math.max(4, place.top - box.offsetHeight - 4)) + scrollY}px`});
    anchor.setAttribute("aria-expanded", "true");
    document.addEventListener("keydown", onKey);
    document.addEventListener("pointerdown", onPointer);
    openPopover = {remove: () => close(false)};
    box.focus({preventScroll: true});
  }

  return {data, charts: {}, el, svg, estimate, look, isDark, shown, onChange, changed, setTheme, announce, popover};
})();
