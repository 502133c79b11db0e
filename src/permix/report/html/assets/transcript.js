// The transcript of a cell in a dialog, as text only, next to the same cell of the other models. #cell=KIND/MODEL/PERSONA/QUESTION
// in the address opens it. The left and right arrow keys step through questions, with Shift through personas.
(() => {
  "use strict";
  const permix = (globalThis.permix ??= {});
  const HASH = "#cell=";
  const LONG = 3000; // number of characters from which a text gets its own scroll bar
  const parts = {}; // elements of the dialog, made at first use
  let at = null; // the open cell: {label, kind, row, column}
  let chosen = ""; // the selected template, context and sample
  let lastShow = 0; // a slower earlier call must not overwrite a later one

  /** Opens the transcript at {label, kind, row, column}; the Promise resolves when it is shown. */
  permix.transcript = (place) => {
    if (!parts.dialog) make();
    at = place;
    if (!parts.dialog.open) parts.dialog.showModal();
    return show();
  };

  function make() {
    const { el } = permix;
    const button = (text, step) => {
      const made = el("button", { type: "button" }, text);
      made.addEventListener("click", () => move(step));
      return made;
    };
    parts.title = el("h2", { id: "transcript-title", "aria-live": "polite" });
    parts.steps = {
      personaBefore: button("‹ persona", [-1, 0]), personaAfter: button("persona ›", [1, 0]),
      questionBefore: button("‹ question", [0, -1]), questionAfter: button("question ›", [0, 1]),
    };
    parts.sample = el("select", { "aria-label": "sample, template and context" });
    parts.sample.addEventListener("change", () => {
      chosen = parts.sample.value;
      show();
    });
    parts.link = el("a", {}, "link to this cell");
    const close = el("button", { type: "button", class: "transcript-close" }, "Close");
    close.addEventListener("click", () => parts.dialog.close());
    parts.body = el("div", { class: "transcript-body" });
    parts.dialog = el(
      "dialog", { class: "transcript", "aria-labelledby": "transcript-title" },
      el("header", {}, parts.title, close),
      el("div", { class: "transcript-steps" }, ...Object.values(parts.steps), parts.sample, parts.link),
      el("p", { class: "transcript-keys" }, "Keys: ← → question, Shift with ← → persona, Esc closes."),
      parts.body,
    );
    parts.dialog.addEventListener("keydown", onKey);
    parts.dialog.addEventListener("close", () => {
      parts.body.replaceChildren();
      setHash("");
    });
    document.body.append(parts.dialog);
  }

  function onKey(event) {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step || event.target.matches("select, input") || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    move(event.shiftKey ? [step, 0] : [0, step]);
  }

  /** The next cell in this direction, in the order of the heat map or, without one, of the run; null past the end. */
  async function neighbour([personas, questions]) {
    const sheet = await permix.sheet(at.label, at.kind);
    const grid = at.kind === "stability" ? await permix.grid(at.label) : null;
    const rows = grid?.rows ?? [...sheet.personas.keys()];
    const row = rows[rows.indexOf(at.row) + personas];
    if (row === undefined) return null;
    const columns = grid?.columns ?? [...sheet.columns(row).keys()];
    const column = columns[columns.indexOf(at.column) + questions];
    return column === undefined ? null : { ...at, row, column };
  }

  async function move(step) {
    const next = await neighbour(step);
    if (!next) return permix.announce("There is no further cell in this direction.");
    at = next;
    await show();
  }

  async function show() {
    const thisShow = ++lastShow;
    const sheet = await permix.sheet(at.label, at.kind);
    const persona = sheet.personas[at.row], question = sheet.columns(at.row)[at.column];
    if (!parts.body.hasChildNodes()) parts.body.replaceChildren(permix.el("p", {}, "Loading the transcript…"));
    await setSteps();
    const models = await Promise.all(shownLabels().map((label) => lookUp(label, persona, question)));
    if (thisShow !== lastShow || !parts.dialog.open) return; // meanwhile another cell was opened, or the dialog closed
    parts.title.textContent = `${persona ?? "no persona"} × ${question}`;
    setSamples(models);
    setHash(hashOf(at.kind, at.label, persona, question));
    parts.body.replaceChildren(...modelElements(models));
    document.dispatchEvent(new CustomEvent("permix-cell", { detail: at }));
  }

  async function setSteps() {
    const { personaBefore, personaAfter, questionBefore, questionAfter } = parts.steps;
    const steps = [[personaBefore, [-1, 0]], [personaAfter, [1, 0]], [questionBefore, [0, -1]], [questionAfter, [0, 1]]];
    await Promise.all(steps.map(async ([button, step]) => {
      const end = (await neighbour(step)) === null;
      if (end && button === document.activeElement) parts.dialog.querySelector(".transcript-close").focus();
      button.disabled = end;
    }));
  }

  /** Labels: the model of the open cell, then the other shown models with a run of this kind. */
  function shownLabels() {
    const others = permix.data.sheets.filter((one) => one.kind === at.kind && one.label !== at.label && permix.shown.has(one.label));
    return [at.label, ...others.map((one) => one.label)];
  }

  /** A model's cells of one persona and question: {sheet, cells, asked}, or {sheet, error}. */
  async function lookUp(label, persona, question) {
    const sheet = await permix.sheet(label, at.kind);
    const place = sheet.find(persona, question);
    if (!place) return { sheet, cells: [], asked: false };
    try {
      const grid = at.kind === "stability" ? await permix.grid(label) : null;
      return { sheet, cells: await permix.cellsAt(sheet, place), asked: !grid || grid.value(place.row, place.column) !== undefined };
    } catch (error) {
      return { sheet, error };
    }
  }

  const variant = (cell) => JSON.stringify([cell.template ?? "", cell.context ?? "", cell.sample]);

  function setSamples(models) {
    const variants = new Map();
    for (const { sheet, cells } of models)
      for (const cell of cells ?? []) variants.set(variant(cell), permix.variantName(cell, sheet));
    if (!variants.has(chosen)) chosen = variants.keys().next().value ?? "";
    parts.sample.replaceChildren(...[...variants].map(([value, text]) => permix.el("option", { value }, text)));
    parts.sample.value = chosen;
    parts.sample.hidden = variants.size < 2;
  }

  /** The sample, template and context of a cell, in words. */
  permix.variantName = (cell, sheet) => {
    const template = cell.template ? `, “${sheet.templates[cell.template] ?? cell.template}”` : "";
    const context = cell.context ? `, context ${cell.context}` : "";
    return `sample ${cell.sample + 1}${template}${context}`;
  };

  function modelElements(models) {
    const { el } = permix;
    const chosenCells = models.map((one) => ({ ...one, cell: one.cells?.find((cell) => variant(cell) === chosen) }));
    const prompts = chosenCells.map(({ cell, sheet }) => (cell ? JSON.stringify([cell.messages, systemOf(cell, sheet)]) : null));
    const samePrompt = new Set(prompts.filter(Boolean)).size === 1;
    const first = chosenCells.find((one) => one.cell);
    const shared = samePrompt ? [el("section", { class: "transcript-asked" }, ...promptElements(first.cell, first.sheet))] : [];
    const columns = chosenCells.map((one) => permix.answer(one, samePrompt ? [] : one.cell ? promptElements(one.cell, one.sheet) : []));
    return [...shared, el("div", { class: "transcript-models" }, ...columns)];
  }

  const ROLES = { system: "System prompt", user: "Asked", assistant: "Answered earlier" };
  const systemOf = (cell, sheet) => (cell.messages.some(([role]) => role === "system") ? "" : sheet.without_system);

  /** The messages that the model read, as elements. */
  function promptElements(cell, sheet) {
    const { el } = permix;
    const without = systemOf(cell, sheet);
    return [
      ...(without ? [el("h3", {}, ROLES.system), el("p", {}, without)] : []),
      ...cell.messages.flatMap(([role, text]) => [el("h3", {}, ROLES[role] ?? role), ...permix.longText(text, sheet)]),
    ];
  }

  /** A text as it was written; for a very long text its beginning, and the file with the rest. */
  permix.longText = (text, sheet) => {
    const { el } = permix;
    const [shown, cut] = Array.isArray(text) ? text : [text, 0];
    const more = `${cut.toLocaleString("en")} more characters are not shown here; ${sheet.records} has the whole text.`;
    const look = shown.length > LONG ? { class: "long", tabindex: "0" } : {}; // with a tabindex the keyboard can scroll it
    return [shown ? el("pre", look, shown) : el("p", {}, "(empty)"), ...(cut ? [el("p", { class: "cut" }, more)] : [])];
  };

  /** One model's answer with its verdict. `one`: {sheet, cell, asked, error}; `before` and `after`: elements around the answer. */
  permix.answer = ({ sheet, cell, asked, error }, before = [], after = []) => {
    const { el } = permix;
    const look = permix.look(sheet.label);
    const heading = el("h3", { style: { borderColor: look?.colour ?? "currentColor" } }, sheet.label);
    if (error) return el("article", {}, heading, el("p", { class: "failed", role: "alert" }, error.message));
    if (!cell) return el("article", {}, heading, el("p", {}, asked ? "Asked, but no answer is recorded." : "Not asked."));
    const completion = cell.text === undefined ? [] : [el("h4", {}, "Completion"), ...permix.longText(cell.text, sheet)];
    const thinking = cell.thinking === undefined
      ? [] : [el("details", {}, el("summary", {}, "Thinking (not scored)"), ...permix.longText(cell.thinking, sheet))];
    return el(
      "article", {}, heading, el("p", { class: "verdict" }, ...verdict(cell)), ...before, ...thinking, ...completion, facts(cell, sheet), ...after,
    );
  };

  function verdict(cell) {
    const because = (text) => (text === undefined ? "" : `: ${plain(text)}`);
    if (cell.failure) return [`– no completion: ${cell.failure[0]}${because(cell.failure[1])}`];
    if (cell.correct === true) return ["✓ right"];
    if (cell.correct === false && cell.unclosed) return ["✗ wrong: the completion ends within its thinking, so it has no answer"];
    if (cell.correct === false) return [cell.extracted === undefined ? "✗ wrong: no answer was found in the completion" : "✗ wrong"];
    if (cell.judged) return [`– not scored${because(cell.error)}`];
    return [cell.gold === undefined ? "open-ended: no right answer to check against" : "– not scored: the scorer did not run"];
  }

  const plain = (text) => (Array.isArray(text) ? `${text[0]}…` : text);

  function facts(cell, sheet) {
    const { el } = permix;
    const finishes = { stop: "stop: the model ended its answer", length: "length: cut off at the token limit" };
    const rows = [
      ["Extracted answer", cell.extracted], ["Gold", cell.gold], ["Finish reason", finishes[cell.finish]],
      ["Prompt tokens", cell.read], ["Completion tokens", cell.written],
      ["Template", cell.template && (sheet.templates[cell.template] ?? cell.template)], ["Context", cell.context],
    ].filter(([, value]) => value !== undefined);
    return el("dl", {}, ...rows.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, String(plain(value)))]));
  }

  const hashOf = (kind, label, persona, question) =>
    HASH + [kind, label, persona ?? "", question].map(encodeURIComponent).join("/");

  function setHash(hash) {
    if (hash) parts.link.setAttribute("href", hash);
    history.replaceState(null, "", hash || location.pathname + location.search);
  }

  /** Opens the cell in the address, or announces that the report has no such cell. */
  async function followHash() {
    if (!location.hash.startsWith(HASH)) return;
    const place = await cellInAddress(location.hash.slice(HASH.length));
    if (place) await permix.transcript(place);
    else permix.announce("The address names a cell that this report does not have.");
  }

  async function cellInAddress(address) {
    try {
      const [kind, label, persona, question] = address.split("/").map(decodeURIComponent);
      const place = (await permix.sheet(label, kind))?.find(persona || null, question);
      return place ? { kind, label, ...place } : null;
    } catch (error) {
      if (error instanceof URIError) return null;
      throw error;
    }
  }

  globalThis.addEventListener("hashchange", followHash);
  document.addEventListener("DOMContentLoaded", followHash);
})();
