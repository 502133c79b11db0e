// The transcript of a cell, in a dialog: as text only, with the same cell of the other models beside it. #cell=KIND/MODEL/PERSONA/
// QUESTION in the address opens one. Left and right step through questions, with Shift through personas.
(() => {
  "use strict";
  const permix = (globalThis.permix ??= {});
  const HASH = "#cell=";
  const LONG = 3000; // characters of a text that gets a scroll bar of its own
  const parts = {}; // of the dialog, made when first needed
  let at = null; // {label, kind, row, column}
  let chosen = ""; // template and sample
  let turn = 0; // only the last thing asked for is shown

  /** Open the transcript at {label, kind, row, column}; Promise of when it is shown. */
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
    parts.sample = el("select", { "aria-label": "sample and template" });
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

  /** The neighbour of a place in the order of the heat map, or of the run where there is none; null past the end. */
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
    if (!next) return permix.announce("There is nothing further that way.");
    at = next;
    await show();
  }

  async function show() {
    const mine = ++turn;
    const sheet = await permix.sheet(at.label, at.kind);
    const persona = sheet.personas[at.row], question = sheet.columns(at.row)[at.column];
    if (!parts.body.hasChildNodes()) parts.body.replaceChildren(permix.el("p", {}, "Loading the transcript…"));
    await setSteps();
    const models = await Promise.all(beside().map((label) => lookUp(label, persona, question)));
    if (mine !== turn || !parts.dialog.open) return; // another cell was asked for meanwhile, or none
    parts.title.textContent = `${persona ?? "no persona"} × ${question}`;
    setSamples(models);
    setHash(hashOf(at.kind, at.label, persona, question));
    parts.body.replaceChildren(...drawn(models));
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

  /** The model that was asked for, then the others that are shown and have a run of this kind. */
  function beside() {
    const others = permix.data.sheets.filter((one) => one.kind === at.kind && one.label !== at.label && permix.shown.has(one.label));
    return [at.label, ...others.map((one) => one.label)];
  }

  /** A model's cells of one place: {sheet, cells, asked} or {sheet, error}. */
  async function lookUp(label, persona, question) {
    const sheet = await permix.sheet(label, at.kind);
    const place = sheet.find(persona, question);
    if (!place) return { sheet, cells: [], asked: false };
    try {
      const grid = at.kind === "stability" ? await permix.grid(label) : null;
      return { sheet, cells: await permix.cellsAt(sheet, place), asked: grid?.value(place.row, place.column) !== undefined };
    } catch (error) {
      return { sheet, error };
    }
  }

  const variant = (cell) => JSON.stringify([cell.template ?? "", cell.sample]);

  function setSamples(models) {
    const variants = new Map();
    for (const { sheet, cells } of models)
      for (const cell of cells ?? []) variants.set(variant(cell), permix.saidOf(cell, sheet));
    if (!variants.has(chosen)) chosen = variants.keys().next().value ?? "";
    parts.sample.replaceChildren(...[...variants].map(([value, text]) => permix.el("option", { value }, text)));
    parts.sample.value = chosen;
    parts.sample.hidden = variants.size < 2;
  }

  /** In words, which sample and template a cell is. */
  permix.saidOf = (cell, sheet) => {
    const template = cell.template ? `, “${sheet.templates[cell.template] ?? cell.template}”` : "";
    return `sample ${cell.sample + 1}${template}`;
  };

  function drawn(models) {
    const { el } = permix;
    const found = models.map((one) => ({ ...one, cell: one.cells?.find((cell) => variant(cell) === chosen) }));
    const prompts = found.map(({ cell, sheet }) => (cell ? JSON.stringify([cell.messages, systemOf(cell, sheet)]) : null));
    const alike = new Set(prompts.filter(Boolean)).size === 1;
    const first = found.find((one) => one.cell);
    const shared = alike ? [el("section", { class: "transcript-asked" }, ...asked(first.cell, first.sheet))] : [];
    const columns = found.map((one) => permix.answer(one, alike ? [] : one.cell ? asked(one.cell, one.sheet) : []));
    return [...shared, el("div", { class: "transcript-models" }, ...columns)];
  }

  const ROLES = { system: "System prompt", user: "Asked", assistant: "Answered earlier" };
  const systemOf = (cell, sheet) => (cell.messages.some(([role]) => role === "system") ? "" : sheet.without_system);

  /** What the model read, as elements. */
  function asked(cell, sheet) {
    const { el } = permix;
    const without = systemOf(cell, sheet);
    return [
      ...(without ? [el("h3", {}, ROLES.system), el("p", {}, without)] : []),
      ...cell.messages.flatMap(([role, text]) => [el("h3", {}, ROLES[role] ?? role), ...permix.longText(text, sheet)]),
    ];
  }

  /** A text as it was written; of a very long one its beginning, and where the rest is. */
  permix.longText = (text, sheet) => {
    const { el } = permix;
    const [shown, cut] = Array.isArray(text) ? text : [text, 0];
    const more = `${cut.toLocaleString("en")} more characters are not shown here; ${sheet.records} has all of them.`;
    const look = shown.length > LONG ? { class: "long", tabindex: "0" } : {}; // whoever has no pointer scrolls it too
    return [shown ? el("pre", look, shown) : el("p", {}, "(empty)"), ...(cut ? [el("p", { class: "cut" }, more)] : [])];
  };

  /** One model's answer with its verdict. `one`: {sheet, cell, asked, error}; `before` and `after`: elements around it. */
  permix.answer = ({ sheet, cell, asked, error }, before = [], after = []) => {
    const { el } = permix;
    const look = permix.look(sheet.label);
    const heading = el("h3", { style: { borderColor: look?.colour ?? "currentColor" } }, sheet.label);
    if (error) return el("article", {}, heading, el("p", { class: "failed", role: "alert" }, error.message));
    if (!cell) return el("article", {}, heading, el("p", {}, asked ? "Asked, but there is no record of it." : "Was not asked this."));
    const said = cell.text === undefined ? [] : [el("h4", {}, "Completion"), ...permix.longText(cell.text, sheet)];
    return el("article", {}, heading, el("p", { class: "verdict" }, ...verdict(cell)), ...before, ...said, facts(cell, sheet), ...after);
  };

  function verdict(cell) {
    const because = (text) => (text === undefined ? "" : `: ${plain(text)}`);
    if (cell.failure) return [`– no completion: ${cell.failure[0]}${because(cell.failure[1])}`];
    if (cell.correct === true) return ["✓ right"];
    if (cell.correct === false) return [cell.extracted === undefined ? "✗ wrong: no answer was found in it" : "✗ wrong"];
    if (cell.judged) return [`– not scored${because(cell.error)}`];
    return [cell.gold === undefined ? "open-ended: nothing to check it against" : "– not scored: it was not verified"];
  }

  const plain = (text) => (Array.isArray(text) ? `${text[0]}…` : text);

  function facts(cell, sheet) {
    const { el } = permix;
    const ends = { stop: "ended by itself", length: "cut off at the token limit" };
    const rows = [
      ["Extracted answer", cell.extracted], ["Gold", cell.gold], ["End", ends[cell.finish]],
      ["Tokens read", cell.read], ["Tokens written", cell.written],
      ["Brought in by", cell.template && (sheet.templates[cell.template] ?? cell.template)],
    ].filter(([, value]) => value !== undefined);
    return el("dl", {}, ...rows.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, String(plain(value)))]));
  }

  const hashOf = (kind, label, persona, question) =>
    HASH + [kind, label, persona ?? "", question].map(encodeURIComponent).join("/");

  function setHash(hash) {
    if (hash) parts.link.setAttribute("href", hash);
    history.replaceState(null, "", hash || location.pathname + location.search);
  }

  /** Open what the address names; says so when there is no such cell. */
  async function followHash() {
    if (!location.hash.startsWith(HASH)) return;
    const place = await named(location.hash.slice(HASH.length));
    if (place) await permix.transcript(place);
    else permix.announce("The address names a cell that this report does not have.");
  }

  async function named(address) {
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
