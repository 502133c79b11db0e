/* The tab "Try it": asks this machine's server, which asks the models. Every text becomes a text node, whatever it says.

The token is in the address that `permix view` printed, behind the "#", which no browser sends. It stays in this tab of the browser. */
"use strict";
(() => {
  const { el } = permix;
  const EVERY_MS = 700;
  const at = (id) => document.getElementById(id);
  const OFF = "This page only shows. To ask models from here, end the viewer with Ctrl-C, start it again with --try-it, and open the address that it prints.";
  const HELP = "Choose models, a persona and a question, then press Ask. Models answer one after the other, on this machine or at the endpoint that is named. Nothing is stored unless you save it.";

  const given = /^#token=([\w-]{20,100})$/.exec(location.hash);
  if (given) {
    sessionStorage.setItem("permix-token", given[1]);
    history.replaceState(null, "", location.pathname);
  }
  const token = sessionStorage.getItem("permix-token") ?? "";

  let prompts = { personas: [], questions: [], note: "" }, savedFile = "", loaded = false, last = null, shown = "";
  let cards = []; // of the answers to one question: an open "Thinking" stays open when the next answer comes

  /** The JSON at an address; throws an Error with the server's one line. */
  const call = async (address, value) => {
    const headers = { "X-Permix-Token": token };
    const options = value === undefined ? { headers } : { method: "POST", headers: { ...headers, "Content-Type": "application/json" }, body: JSON.stringify(value) };
    let answer;
    try {
      answer = await fetch(address, { ...options, signal: AbortSignal.timeout(20000) });
    } catch {
      throw new Error("the viewer does not answer");
    }
    if (!answer.ok) throw new Error((await answer.text()).trim() || `HTTP ${answer.status}`);
    return answer.json();
  };

  const say = (text) => {
    at("try-error").hidden = !text;
    at("try-error").textContent = text;
  };

  // What can be chosen

  const showModels = (models, notes, most) => {
    const was = new Set([...document.querySelectorAll("#try-models input:checked")].map((box) => box.value));
    const boxes = models.map((one) => {
      const box = el("input", { type: "checkbox", value: one.id });
      box.checked = was.has(one.id);
      return el("label", { class: "choice" }, box, el("span", {}, el("strong", {}, one.name), el("span", { class: "quiet" }, one.origin)));
    });
    const none = boxes.length ? [] : [el("p", {}, "No run here names a model that can be asked.")];
    const left = notes.length ? [el("details", {}, el("summary", {}, `Not listed: ${notes.length}`), el("ul", {}, ...notes.map((note) => el("li", {}, note))))] : [];
    at("try-models").replaceChildren(...none, ...boxes, ...left);
    at("try-models-legend").textContent = boxes.length > 1 ? `Models, up to ${most} side by side` : "Models";
    if (boxes.length && !loaded) boxes[0].querySelector("input").checked = true;
  };

  const options = (select, entries) => {
    const was = select.value;
    select.replaceChildren(...entries.map(([value, text]) => el("option", { value }, text)));
    if (entries.some(([value]) => value === was)) select.value = was;
  };

  const oneLine = (text) => (text.length > 70 ? `${text.slice(0, 69)}…` : text).replace(/\s+/g, " ");

  const loadPrompts = async () => {
    const run = at("try-run").value;
    if (!run) return;
    let found, trouble = "";
    try {
      found = await call(`/try/prompts.json?run=${encodeURIComponent(run)}`);
    } catch (error) {
      found = { personas: [], questions: [], note: "" };
      trouble = error.message;
    }
    if (run !== at("try-run").value) return; // another run was chosen while this one's prompts were on their way
    prompts = found;
    say(trouble);
    options(at("try-persona"), prompts.personas.map((one) => [one.id, one.shown]));
    options(at("try-question"), prompts.questions.map((one) => [one.id, oneLine(one.text)]));
    for (const [kind, count] of [["persona", prompts.personas.length], ["question", prompts.questions.length]]) {
      const select = at(`try-${kind}-kind`);
      const choice = select.querySelector("option[value=run]");
      choice.disabled = !count;
      if (!count && choice.selected) select.selectedIndex = 0;
    }
    at("try-run-note").textContent = [`${prompts.personas.length} personas, ${prompts.questions.length} questions`, prompts.note].filter(Boolean).join("; ");
    showChosen();
  };

  /** Shows the models and runs that there are now, and keeps what was chosen. Returns false if the chosen run is another one now. */
  const loadChoices = async () => {
    const choices = await call("/try/choices.json");
    savedFile = choices.saved_file;
    showModels(choices.models, choices.notes, choices.max_models);
    loaded ||= choices.models.length > 0;
    const was = at("try-run").value;
    options(at("try-run"), choices.runs.map((run) => [run.id, `${run.label}: ${run.stage}, ${run.name}`]));
    at("try-run").closest("fieldset").hidden = !choices.runs.length;
    return at("try-run").value === was;
  };

  const load = async () => {
    try {
      await loadChoices();
      say("");
      await loadPrompts();
      await follow();
    } catch (error) {
      say(error.message);
    }
  };

  /** The viewer reads one run after the other: runs that it read after the tab was opened join the lists. */
  const onRunsChanged = async () => {
    if (at("page-try").hidden || at("try-form").hidden) return;
    try {
      if (!(await loadChoices())) await loadPrompts();
    } catch {
      // The next change, or opening the tab again, asks once more.
    }
  };

  const showChosen = () => {
    const [persona, question] = [at("try-persona-kind").value, at("try-question-kind").value];
    const mine = persona === "text" || persona === "system";
    const role = prompts.personas.find((one) => one.id === at("try-persona").value);
    const asked = prompts.questions.find((one) => one.id === at("try-question").value);
    at("try-persona").hidden = persona !== "run";
    at("try-persona-shown").hidden = persona !== "run" || !role;
    at("try-persona-shown").textContent = role?.text ?? "";
    at("try-persona-own").hidden = !mine;
    at("try-persona-own").placeholder = persona === "text" ? "a retired sailor who distrusts numbers" : "You are the support assistant of …";
    at("try-question").hidden = question !== "run";
    at("try-question-shown").hidden = question !== "run" || !asked;
    at("try-question-shown").textContent = asked ? asked.text + (asked.gold === null ? "" : `\n\nright answer: ${asked.gold}`) : "";
    at("try-own").hidden = question !== "own";
  };

  // The answers

  const facts = (one) => {
    const parts = [];
    if (one.completion_tokens !== null) parts.push(`${one.completion_tokens} tokens`);
    if (one.prompt_tokens !== null) parts.push(`prompt ${one.prompt_tokens} tokens`);
    parts.push(`${one.seconds} s`);
    return parts.join(" · ");
  };

  const verdict = (one) => {
    if (one.unscored) return el("p", { class: "quiet" }, one.unscored);
    if (one.correct === undefined) return null;
    const read = one.extracted === null ? "no answer found" : `read ${one.extracted}`;
    return el("p", {}, el("strong", { class: one.correct ? "right" : "wrong" }, one.correct ? "✓ right" : "✗ wrong"), `: ${read}`);
  };

  const attribution = (one) => {
    if (one.not_attributed) return el("p", { class: "quiet" }, `The classifier was not asked: ${one.not_attributed}`);
    const found = one.attributed;
    if (!found) return null;
    return el("p", { class: "quiet" }, `A classifier, trained on this model's ${found.n_answers} answers to other questions, names the persona ${found.named}: ${found.right ? "✓ right" : "✗ wrong"}. `
      + `By chance it is right 1 time in ${found.n_personas}; one answer is not a rate.`);
  };

  const card = (one) => {
    const head = [el("h3", {}, one.name), one.address ? el("p", { class: "path quiet" }, one.address) : null];
    if (one.error) return el("article", { class: "card" }, ...head, el("p", { class: "warning" }, one.error));
    const cut = one.cut_off ? [el("p", { class: "warning" }, one.unclosed ? "✂ cut off: the thinking never ended, so there is no answer" : "✂ cut off at the token limit")] : [];
    const thinking = one.thinking ? [el("details", {}, el("summary", {}, "Thinking"), el("pre", { tabindex: "0" }, one.thinking))] : [];
    return el("article", { class: "card" }, ...head, verdict(one), ...cut, ...thinking, el("pre", { tabindex: "0" }, one.text === "" ? "(empty)" : one.text), attribution(one), el("p", { class: "quiet" }, facts(one)));
  };

  const showAnswers = () => {
    const place = at("answers");
    const now = JSON.stringify(last);
    if (now === shown) return;
    shown = now;
    if (!last.number) return place.replaceChildren(el("h2", {}, "Try it"), el("p", {}, HELP));
    if (last.number !== Number(place.dataset.number)) cards = [];
    place.dataset.number = last.number;
    last.answers.forEach((one, nth) => (cards[nth] ??= card(one)));
    const messages = last.messages.map((one) => el("p", { class: "asked" }, el("strong", {}, `${one.role}: `), one.content));
    const gold = last.gold === null ? [] : [el("p", { class: "asked" }, el("strong", {}, "right answer: "), last.gold)];
    const waiting = (last.busy ? last.waiting : []).map((one, nth) => el("article", { class: "card" }, el("h3", {}, one.name), el("p", { class: "quiet" }, nth ? "waiting" : "answering …")));
    const error = last.error ? [el("p", { class: "warning", role: "alert" }, last.error)] : [];
    const save = el("button", { type: "button", disabled: last.saved }, last.saved ? `Saved to ${savedFile}` : `Save to ${savedFile}`);
    save.addEventListener("click", keep);
    const kept = last.busy || !last.answers.length ? [] : [el("p", {}, save, el("span", { class: "quiet" }, " one line of JSON in the viewed folder"))];
    place.replaceChildren(el("h2", {}, "Answers"), el("details", { open: true }, el("summary", {}, "What was sent"), ...messages, ...gold), ...error,
      el("div", { class: "cards" }, ...cards, ...waiting), ...kept);
  };

  const keep = async () => {
    try {
      await call("/try/save", { number: last.number });
      await follow();
    } catch (error) {
      say(error.message);
    }
  };

  let following = false;
  /** Shows the answers as they come. */
  const follow = async () => {
    if (following) return;
    following = true;
    try {
      do {
        const was = last;
        last = await call("/try/answers.json");
        at("try-ask").disabled = last.busy;
        at("try-stop").disabled = !last.busy;
        showAnswers();
        if (was?.busy && !last.busy) permix.announce(last.error || "All answers are there");
        if (last.busy) await new Promise((resolve) => setTimeout(resolve, EVERY_MS));
      } while (last.busy);
    } catch (error) {
      at("try-ask").disabled = false;
      say(error.message);
    } finally {
      following = false;
    }
  };

  at("try-form").addEventListener("submit", async (event) => {
    event.preventDefault();
    const models = [...document.querySelectorAll("#try-models input:checked")].map((box) => box.value);
    if (!models.length) return say("models: choose one at least");
    const [persona, question] = [at("try-persona-kind").value, at("try-question-kind").value];
    say("");
    at("try-ask").disabled = true;
    try {
      await call("/try/ask", {
        models, run: at("try-run").value, persona_kind: persona, question_kind: question,
        persona: persona === "none" ? "" : at(persona === "run" ? "try-persona" : "try-persona-own").value,
        question: at(question === "run" ? "try-question" : "try-question-own").value,
        gold: question === "own" ? at("try-gold").value : "", compare: at("try-compare").value,
        temperature: Number(at("try-temperature").value), max_new_tokens: Number(at("try-tokens").value), seed: Number(at("try-seed").value),
      });
      if (matchMedia("(max-width: 44rem)").matches) at("answers").scrollIntoView();
      await follow();
    } catch (error) {
      at("try-ask").disabled = false;
      say(error.message);
    }
  });
  at("try-stop").addEventListener("click", () => call("/try/stop", {}).catch((error) => say(error.message)));
  at("try-run").addEventListener("change", loadPrompts);
  for (const id of ["try-persona-kind", "try-persona", "try-question-kind", "try-question"]) at(id).addEventListener("change", showChosen);

  // Which page is shown

  const showPage = () => {
    const trying = ["#try", "#answers"].includes(location.hash);
    at("page-runs").hidden = trying;
    at("page-try").hidden = !trying;
    at("skip").href = trying ? "#answers" : "#detail";
    at("skip").textContent = trying ? "Skip to the answers" : "Skip to the run";
    for (const [id, current] of [["tab-runs", !trying], ["tab-try", trying]]) {
      if (current) at(id).setAttribute("aria-current", "page");
      else at(id).removeAttribute("aria-current");
    }
    if (trying) openTab();
  };

  /** What the tab shows: why it is off, or the choices. It waits for the first look of the viewer. */
  const openTab = async () => {
    for (let waits = 0; permix.tryItIsOn === undefined && waits < 100; waits += 1) await new Promise((resolve) => setTimeout(resolve, 100));
    const on = permix.tryItIsOn === true;
    at("try-form").hidden = !on;
    if (!on) return at("answers").replaceChildren(el("h2", {}, "Try it"), el("p", {}, OFF));
    if (!loaded) at("answers").replaceChildren(el("h2", {}, "Try it"), el("p", {}, HELP));
    await load();
  };

  addEventListener("hashchange", showPage);
  addEventListener("permix-runs", onRunsChanged);
  showChosen();
  showPage();
})();
