// Completions side by side: the answers of all shown models under one persona, a few questions at a time.
(() => {
  "use strict";
  const permix = (globalThis.permix ??= {});
  const charts = (permix.charts ??= {});
  const SHOWN = 3; // questions at a time
  const drawers = new WeakMap();

  /** Draws into `element`, or draws it again. Resolves when the answers, or the reasons why they are missing, are on the page. */
  charts.completions = async (element) => {
    if (!drawers.has(element)) drawers.set(element, make(element));
    await drawers.get(element)();
  };

  function make(element) {
    const { el } = permix;
    const kinds = new Map(permix.data.sheets.map(({ kind, title }) => [kind, title]));
    const kind = field("Asked", [...kinds]);
    const persona = field("Persona", []);
    const [previous, next] = ["‹ previous questions", "next questions ›"].map((text) => el("button", { type: "button" }, text));
    const where = el("span", { class: "completions-where" }), body = el("div", { class: "completions" });
    element.replaceChildren(
      el("div", { class: "heat-controls" }, ...(kinds.size > 1 ? [kind.label] : []), persona.label, previous, next, where), body,
    );
    let from = 0, lastDraw = 0;

    const shown = () => permix.data.sheets.filter((one) => one.kind === kind.select.value && permix.shown.has(one.label));

    function setPersonas() {
      const known = new Set(permix.data.sheets.filter((one) => one.kind === kind.select.value).flatMap((one) => one.personas));
      const offered = [...known].map((one) => [JSON.stringify(one), one ?? "no persona"]);
      persona.select.replaceChildren(...offered.map(([value, text]) => el("option", { value }, text)));
      persona.select.selectedIndex = Math.min(known.has(null) ? 1 : 0, offered.length - 1);
      from = 0;
    }

    async function draw() {
      const thisDraw = ++lastDraw, who = JSON.parse(persona.select.value);
      const sheets = await Promise.all(shown().map((one) => permix.sheet(one.label, one.kind)));
      const questions = [...new Set(sheets.flatMap((sheet) => questionsOf(sheet, who)))];
      from = Math.max(0, Math.min(from, questions.length - 1));
      const some = questions.slice(from, from + SHOWN);
      const parts = await Promise.all(some.map((question) => one(sheets, who, question)));
      if (thisDraw !== lastDraw) return; // a newer draw has started meanwhile
      where.textContent = some.length ? `${from + 1} to ${from + some.length} of ${questions.length}` : "no shown model was asked as this persona";
      previous.disabled = from === 0;
      next.disabled = from + SHOWN >= questions.length;
      body.replaceChildren(...parts);
      element.dataset.drawn = "true";
    }

    /** A question and each model's first answer to it. Where prompts differ, each answer has its own prompt. */
    async function one(sheets, who, question) {
      const results = await Promise.all(sheets.map((sheet) => firstAnswer(sheet, sheet.find(who, question))));
      const some = results.filter(({ cell }) => cell);
      const samePrompt = new Set(some.map(({ cell }) => JSON.stringify(prompt(cell)))).size < 2;
      const own = ({ cell, sheet }) => [...variant(cell, sheet), ...(samePrompt ? [] : [el("h4", {}, "Asked"), ...promptText(cell, sheet)])];
      const articles = results.map((each) => permix.answer(each, each.cell ? own(each) : [], opener(each)));
      const shared = samePrompt && some.length ? promptText(some[0].cell, some[0].sheet) : [];
      return el("section", {}, el("h3", {}, question), ...shared, el("div", { class: "transcript-models" }, ...articles));
    }

    function opener({ sheet, place }) {
      if (!place) return [];
      const button = el("button", { type: "button" }, "full transcript");
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
    previous.addEventListener("click", () => turnTo(-SHOWN));
    next.addEventListener("click", () => turnTo(SHOWN));
    setPersonas();
    return draw;
  }

  const questionsOf = (sheet, who) => {
    const row = sheet.personas.indexOf(who);
    return row < 0 ? [] : sheet.columns(row);
  };

  /** The last message to the model. */
  const prompt = (cell) => cell.messages.findLast(([role]) => role === "user")?.[1];

  function promptText(cell, sheet) {
    const text = prompt(cell);
    return text === undefined ? [] : permix.longText(text, sheet);
  }

  /** The sample, template and context of a cell, if its run has several. */
  function variant(cell, sheet) {
    const several = sheet.samples > 1 || Object.keys(sheet.templates).length > 1 || sheet.contexts.length > 1;
    return several ? [permix.el("p", { class: "variant" }, permix.variantName(cell, sheet))] : [];
  }

  async function firstAnswer(sheet, place) {
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
