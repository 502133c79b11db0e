// Completions side by side: under one persona, a few questions at a time, what every model that is shown said to them.
(() => {
  "use strict";
  const permix = (globalThis.permix ??= {});
  const charts = (permix.charts ??= {});
  const SHOWN = 3; // questions at a time
  const drawers = new WeakMap();

  /** Draw into `element`, or draw again what is there. Resolves when answers, or why there are none, can be read. */
  charts.completions = async (element) => {
    if (!drawers.has(element)) drawers.set(element, make(element));
    await drawers.get(element)();
  };

  function make(element) {
    const { el } = permix;
    const kinds = new Map(permix.data.sheets.map(({ kind, title }) => [kind, title]));
    const kind = field("Asked", [...kinds]);
    const persona = field("Persona", []);
    const [back, on] = ["‹ questions before", "questions after ›"].map((text) => el("button", { type: "button" }, text));
    const where = el("span", { class: "completions-where" }), body = el("div", { class: "completions" });
    element.replaceChildren(
      el("div", { class: "heat-controls" }, ...(kinds.size > 1 ? [kind.label] : []), persona.label, back, on, where), body,
    );
    let from = 0, turn = 0;

    const shown = () => permix.data.sheets.filter((one) => one.kind === kind.select.value && permix.shown.has(one.label));

    function setPersonas() {
      const known = new Set(permix.data.sheets.filter((one) => one.kind === kind.select.value).flatMap((one) => one.personas));
      const offered = [...known].map((one) => [JSON.stringify(one), one ?? "no persona"]);
      persona.select.replaceChildren(...offered.map(([value, text]) => el("option", { value }, text)));
      persona.select.selectedIndex = Math.min(known.has(null) ? 1 : 0, offered.length - 1);
      from = 0;
    }

    async function draw() {
      const mine = ++turn, who = JSON.parse(persona.select.value);
      const sheets = await Promise.all(shown().map((one) => permix.sheet(one.label, one.kind)));
      const questions = [...new Set(sheets.flatMap((sheet) => asked(sheet, who)))];
      from = Math.max(0, Math.min(from, questions.length - 1));
      const some = questions.slice(from, from + SHOWN);
      const parts = await Promise.all(some.map((question) => one(sheets, who, question)));
      if (mine !== turn) return;
      where.textContent = some.length ? `${from + 1} to ${from + some.length} of ${questions.length}` : "no model that is shown was asked";
      back.disabled = from === 0;
      on.disabled = from + SHOWN >= questions.length;
      body.replaceChildren(...parts);
      element.dataset.drawn = "true";
    }

    /** A question and every model's first answer to it; each with its own prompt where they were asked in other words. */
    async function one(sheets, who, question) {
      const found = await Promise.all(sheets.map((sheet) => answered(sheet, sheet.find(who, question))));
      const some = found.filter(({ cell }) => cell);
      const alike = new Set(some.map(({ cell }) => JSON.stringify(prompt(cell)))).size < 2;
      const own = ({ cell, sheet }) => [...variant(cell, sheet), ...(alike ? [] : [el("h4", {}, "Asked"), ...said(cell, sheet)])];
      const articles = found.map((each) => permix.answer(each, each.cell ? own(each) : [], opener(each)));
      const shared = alike && some.length ? said(some[0].cell, some[0].sheet) : [];
      return el("section", {}, el("h3", {}, question), ...shared, el("div", { class: "transcript-models" }, ...articles));
    }

    function opener({ sheet, place }) {
      if (!place) return [];
      const button = el("button", { type: "button" }, "whole transcript");
      button.addEventListener("click", () => permix.transcript({ label: sheet.label, kind: sheet.kind, ...place }));
      return [button];
    }

    kind.select.addEventListener("change", () => {
      setPersonas();
      draw();
    });
    persona.select.addEventListener("change", () => {
      from = 0;
      draw();
    });
    const turnTo = (step) => {
      from += step;
      return draw();
    };
    back.addEventListener("click", () => turnTo(-SHOWN));
    on.addEventListener("click", () => turnTo(SHOWN));
    setPersonas();
    return draw;
  }

  const asked = (sheet, who) => {
    const row = sheet.personas.indexOf(who);
    return row < 0 ? [] : sheet.columns(row);
  };

  /** The last thing that the model was asked. */
  const prompt = (cell) => cell.messages.findLast(([role]) => role === "user")?.[1];

  function said(cell, sheet) {
    const text = prompt(cell);
    return text === undefined ? [] : permix.longText(text, sheet);
  }

  /** Which of several samples and templates of its run a cell is. */
  function variant(cell, sheet) {
    const several = sheet.samples > 1 || Object.keys(sheet.templates).length > 1;
    return several ? [permix.el("p", { class: "variant" }, permix.saidOf(cell, sheet))] : [];
  }

  async function answered(sheet, place) {
    if (!place) return { sheet, place, asked: false };
    try {
      const [cell] = await permix.cellsAt(sheet, place);
      return { sheet, place, cell, asked: true };
    } catch (error) {
      return { sheet, place, error };
    }
  }

  function field(name, options) {
    const { el } = permix;
    const select = el("select", {}, ...options.map(([value, text]) => el("option", { value }, text)));
    return { select, label: el("label", {}, `${name} `, select) };
  }
})();
