/* The page of `permix view`: asks this machine's server what is new and shows it. Every text becomes a text node, whatever it says. */
"use strict";
(() => {
  const { el } = permix;
  const EVERY_MS = 2000;
  const STATES = { going: "▶ going on", finished: "✓ finished", stopped: "■ stopped", broken: "✗ broken" };
  const at = (id) => document.getElementById(id);
  const tags = new Map(); // of each address, the ETag of what is shown
  const rows = new Map(); // of each run, its line in the list
  let state = null, chosen = "", seen = null, knownRuns = "";

  const clock = (date) => date.toTimeString().slice(0, 8);
  const span = (seconds) => {
    const [hours, minutes, rest] = [Math.floor(seconds / 3600), Math.floor((seconds % 3600) / 60), Math.floor(seconds % 60)];
    return hours ? `${hours} h ${minutes} min` : minutes ? `${minutes} min ${rest} s` : `${rest} s`;
  };
  const rateOf = (rate) => (rate >= 1 ? `${rate.toFixed(1)}/s` : `${(rate * 60).toFixed(1)}/min`);
  const set = (node, text) => { if (node.textContent !== text) node.textContent = text; };

  /** "12 of 60 cells · 3.1/s · 16 s left" */
  const progress = (run) => {
    if (run.read !== null) return `reading its records: ${Math.floor(run.read * 100)} %`;
    const parts = [run.asked === null ? `${run.done} ${run.unit}` : `${run.done} of ${run.asked} ${run.unit}`];
    if (run.rate !== null) parts.push(run.rate > 0 ? rateOf(run.rate) : "nothing new for a minute");
    if (run.left_s !== null) parts.push(`${span(run.left_s)} left`);
    if (run.failures) parts.push(`${run.failures} failed`);
    return parts.join(" · ");
  };

  // The list

  const newRow = (run) => {
    const parts = { label: el("strong"), stage: el("span", { class: "quiet" }), state: el("span", { class: "state" }) };
    const bar = el("progress", { max: "1", "aria-hidden": "true" });
    const count = el("span", { class: "quiet" }), name = el("span", { class: "path quiet" });
    const link = el("a", { href: `#${run.id}` }, el("span", { class: "pair" }, parts.label, parts.state), parts.stage, bar, count, name);
    return { item: el("li", {}, link), link, bar, count, name, ...parts };
  };

  const showRow = (run) => {
    if (!rows.has(run.id)) rows.set(run.id, newRow(run));
    const row = rows.get(run.id);
    set(row.label, run.label);
    set(row.stage, run.stage);
    set(row.state, STATES[run.state]);
    row.state.className = `state ${run.state}`;
    row.bar.hidden = run.asked === null;
    row.bar.value = run.asked ? run.done / run.asked : 0;
    set(row.count, progress(run));
    set(row.name, run.name);
    row.link.toggleAttribute("aria-current", run.id === chosen);
    if (run.id === chosen) row.link.setAttribute("aria-current", "true");
    return row.item;
  };

  /** Whether the label, the stage and the folder of a run hold every word of the filter, whatever their case. */
  const matches = (run) => {
    const text = `${run.label} ${run.stage} ${run.name}`.toLowerCase();
    return at("filter").value.toLowerCase().split(/\s+/).every((word) => text.includes(word));
  };

  const showFiltered = () => {
    if (!state) return;
    const shown = state.runs.filter((run) => !(rows.get(run.id).item.hidden = !matches(run))).length;
    set(at("count"), shown === state.runs.length ? `(${shown})` : `(${shown} of ${state.runs.length})`);
  };

  const showList = () => {
    const items = state.runs.map(showRow);
    const there = new Set(state.runs.map((run) => run.id));
    for (const id of rows.keys()) if (!there.has(id)) rows.delete(id);
    const list = at("runs");
    if (items.length !== list.children.length || items.some((item, place) => item !== list.children[place])) {
      const focused = list.contains(document.activeElement) ? document.activeElement : null;
      list.replaceChildren(...items);
      focused?.focus({ preventScroll: true }); // an element that is moved loses the focus
    }
    showFiltered();
    at("notes").replaceChildren(...state.notes.map((note) => el("p", { class: "quiet" }, note)));
    if (!items.length) at("notes").append(el("p", {}, "No run here yet. The page shows one as soon as its folder appears."));
  };

  const showHead = () => {
    set(at("root"), state.root);
    const report = at("report");
    report.replaceChildren(
      ...(state.report ? [el("a", { href: "/report/" }, "Open the report"), " · build it again: "] : ["To build a report: "]),
      el("code", {}, state.report_command),
    );
  };

  // One run

  const titled = (title, ...children) => el("section", {}, el("h3", {}, title), ...children);

  const shownHead = (run) => {
    const facts = [
      ["state", run.state === "going" ? `▶ ${run.said}` : STATES[run.state]], ["progress", progress(run)],
      ["model", run.model], ["folder", run.name],
      ["last record", run.written === null ? "none yet" : clock(new Date(run.written * 1000))],
    ];
    if (run.beside) facts.push(["beside these", `${run.beside} cells that a strategy asked, or an earlier, larger run`]);
    const list = el("dl", {});
    for (const [name, value] of facts) list.append(el("div", {}, el("dt", {}, name), el("dd", {}, value)));
    const again = run.state === "stopped" ? [el("p", {}, "To go on, run the same command again, where it was run before:")] : [];
    const stopped = run.state === "stopped" ? [el("p", { class: "warning" }, `■ ${run.said}`)] : [];
    return el("section", {}, el("h2", {}, run.label, " ", el("span", { class: "quiet" }, run.stage)), ...stopped, list, ...again,
      ...(run.command ? [el("pre", { class: "command" }, run.command)] : []));
  };

  const shownTroubles = (run) =>
    run.troubles.length ? titled("Broken", el("ul", { class: "warning" }, ...run.troubles.map((one) => el("li", {}, one)))) : null;

  const shownErrors = (run) => {
    if (!run.errors.length) return null;
    const lines = run.errors.map((one) => el("tr", {}, el("th", { scope: "row" }, one.type), el("td", {}, String(one.count)), el("td", {}, one.message)));
    const head = el("tr", {}, ...["error", "now", "such as"].map((name) => el("th", { scope: "col" }, name)));
    return titled("Without a result", el("div", { class: "wide", tabindex: "0" }, el("table", {}, el("thead", {}, head), el("tbody", {}, ...lines))));
  };

  const shownMeasures = (run) => {
    const found = run.measured;
    if (found === null) return ["stability", "fidelity", "judge"].some((one) => run.stage.startsWith(one)) ? titled("Measures", el("p", {}, "measuring …")) : null;
    const lines = found.lines.map((one) =>
      el("tr", {}, el("th", { scope: "row" }, one.name), el("td", {}, one.text), el("td", {}, `n = ${one.n}`), el("td", { class: "quiet" }, one.beside)));
    const head = el("tr", {}, ...["measure", "value [95 % interval]", "n", ""].map((name) => el("th", { scope: "col" }, name)));
    const table = lines.length ? [el("div", { class: "wide", tabindex: "0" }, el("table", {}, el("thead", {}, head), el("tbody", {}, ...lines)))] : [];
    return titled("Measures", ...table, el("p", { class: "quiet" }, found.note));
  };

  /** A scale from 0 to 1 with a dot and its interval; the numbers stand beside it. */
  const scale = (one) => {
    const bar = el("span", { class: "scale", "aria-hidden": "true" });
    if (one.value === null) return bar;
    const place = (value) => `${(100 * Math.min(1, Math.max(0, value))).toFixed(1)}%`;
    const dot = el("span", { class: "dot" });
    dot.style.left = place(one.value);
    if (one.low !== null) {
      const interval = el("span", { class: "interval" });
      interval.style.left = place(one.low);
      interval.style.width = `calc(${place(one.high)} - ${place(one.low)})`;
      bar.append(interval);
    }
    bar.append(dot);
    return bar;
  };

  const shownPersonas = (run) => {
    const personas = run.measured?.personas ?? [];
    if (!personas.length) return null;
    const lines = personas.map((one) => el("tr", {}, el("th", { scope: "row" }, one.id), el("td", {}, one.text), el("td", {}, scale(one))));
    const head = el("tr", {}, ...["persona, worst first", "accuracy", "0 to 1"].map((name) => el("th", { scope: "col" }, name)));
    return titled("Accuracy by persona", el("div", { class: "wide", tabindex: "0" }, el("table", {}, el("thead", {}, head), el("tbody", {}, ...lines))));
  };

  const shownCurve = (run) => (run.curve.length ? titled("Learning curves", el("div", { class: "curves" }, ...permix.curves(run.curve))) : null);

  const shownNewest = (run) => {
    if (!run.newest.length) return null;
    const articles = run.newest.map((one) =>
      el("article", {}, el("h4", {}, one.persona, el("span", { class: "quiet" }, ` · ${one.verdict}`)), el("p", { class: "asked" }, one.asked),
        el("pre", { class: one.kind }, one.said === "" ? "(empty)" : one.said)));
    return titled("Newest", ...articles);
  };

  const SECTIONS = {
    head: [shownHead, ({ newest, curve, measured, errors, troubles, ...rest }) => rest],
    troubles: [shownTroubles, (run) => run.troubles], errors: [shownErrors, (run) => run.errors],
    measures: [shownMeasures, (run) => [run.stage, run.measured]], personas: [shownPersonas, (run) => run.measured?.personas],
    curve: [shownCurve, (run) => run.curve], newest: [shownNewest, (run) => run.newest],
  };
  const drawn = new Map();

  /** Only what has changed is drawn anew, so that a selection or a place scrolled to is kept elsewhere. */
  const showRun = (run) => {
    for (const [name, [show, part]] of Object.entries(SECTIONS)) {
      const now = JSON.stringify([run.id, part(run)]);
      if (drawn.get(name) === now) continue;
      drawn.set(name, now);
      const place = at(`part-${name}`) ?? at("detail").appendChild(el("div", { id: `part-${name}` }));
      const made = show(run);
      place.replaceChildren(...(made ? [made] : []));
    }
  };

  // What is new

  /** The JSON at an address; null when it is as it was. */
  const ask = async (address) => {
    const answer = await fetch(address, { headers: tags.has(address) ? { "If-None-Match": tags.get(address) } : {}, signal: AbortSignal.timeout(10000) });
    if (answer.status === 304) return null;
    if (!answer.ok) throw new Error(`${address}: ${answer.status}`);
    const found = await answer.json();
    tags.set(address, answer.headers.get("ETag")); // after the body, which may end early: what has a tag is not sent again
    return found;
  };

  const choose = () => {
    const named = location.hash.slice(1);
    const found = state.runs.find((run) => run.id === named) ?? state.runs.find((run) => run.id === chosen);
    const next = (found ?? state.runs.find((run) => run.state === "going") ?? state.runs[0])?.id ?? "";
    if (next !== chosen) tags.delete(`/run.json?run=${next}`);
    chosen = next;
  };

  const tell = (before) => {
    const was = new Map((before?.runs ?? []).map((run) => [run.id, run.state]));
    const changed = state.runs.filter((run) => was.has(run.id) && was.get(run.id) !== run.state);
    if (changed.length) permix.announce(changed.map((run) => `${run.label}, ${run.stage}: ${STATES[run.state]}`).join("; "));
  };

  const look = async () => {
    const news = await ask("/state.json");
    if (news) {
      const before = state;
      state = news;
      permix.tryItIsOn = news.try_it;
      tell(before);
      const runs = JSON.stringify(state.runs.map((run) => [run.id, run.state]).sort());
      if (runs !== knownRuns) dispatchEvent(new Event("permix-runs"));
      knownRuns = runs;
      showHead();
    }
    choose();
    showList();
    if (chosen) {
      const run = await ask(`/run.json?run=${chosen}`);
      if (run && run.id === chosen) showRun(run);
    } else {
      at("detail").replaceChildren();
      drawn.clear();
    }
    seen = new Date();
    showWatch();
  };

  const showWatch = () => {
    const gone = at("gone");
    if (!state.watching) set(gone, "Watching has stopped: this page is no longer updated. Start permix view again; its terminal shows the reason.");
    gone.hidden = state.watching;
    set(at("live"), state.watching ? `live: seen at ${clock(seen)}` : "not live: watching has stopped");
  };

  const lost = () => {
    const gone = at("gone");
    set(gone, seen ? `The viewer has ended; what you see is from ${clock(seen)}.` : "The viewer does not answer.");
    gone.hidden = false;
    set(at("live"), "not live");
  };

  let looking = null, again = false;
  const lookUntilCurrent = async () => {
    try {
      do {
        again = false;
        await look();
      } while (again);
    } catch {
      lost();
    } finally {
      looking = null;
    }
  };
  /** Looks what is new, and once more after a look that had begun before: it may show another run than the one chosen now. */
  const poll = () => {
    again = looking !== null;
    return (looking ??= lookUntilCurrent());
  };
  const keepPolling = async () => {
    if (!document.hidden) await poll();
    setTimeout(keepPolling, EVERY_MS);
  };

  addEventListener("hashchange", async () => {
    if (!state || !state.runs.some((run) => run.id === location.hash.slice(1))) return;
    await poll();
    at("detail").scrollTop = 0;
    at("detail").focus({ preventScroll: false });
  });
  at("filter").addEventListener("input", () => {
    showFiltered();
    at("runs").scrollTop = 0;
  });
  document.addEventListener("visibilitychange", () => { if (!document.hidden) poll(); });
  keepPolling();
})();
