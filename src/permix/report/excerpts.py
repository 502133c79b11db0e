"""Builds the parts of a report that quote the runs: footnotes, completions side by side, step times, and provenance.

Contract: all text from a model, a persona pool, a task or a command line is cut, and escaped when it is rendered, so it is
displayed and never interpreted. The order and the text depend only on the runs.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from permix import sanitize
from permix.config import BACKENDS
from permix.inference.addresses import read_addresses
from permix.metrics.dev_curve import selection_text
from permix.prompts import persona_prompt
from permix.rendering.table import (
    SourceRun,
    Table,
    TableCell,
    count_cell,
    label_cell,
    md_label,
    one_line,
    quote_markdown,
    tabulate,
    text_cell,
    trusted_cell,
)
from permix.report.document import DocumentPart, Folded
from permix.report.judges import INTERVIEW_KIND, KIND_TITLES, OPEN_ENDED_KIND, PERSONAGYM_KIND
from permix.report.runs import ModelRuns, Run
from permix.sanitize import escape_control, escape_markdown, truncate
from permix.storage.run_dir import last_start, revisions_text
from permix.types import Cell as Asked
from permix.types import CellKey, count_text, digest

_T = TypeVar("_T")


_MAX_PERSONAS = 3

_MAX_QUESTIONS = 4

_MAX_LINE_CHARS = 200  # maximal characters of one line of a completion

_MAX_LINES = 8

_MAX_PACKAGES_CHARS = 2000

EXCERPT_KINDS = {kind: KIND_TITLES[kind] for kind in (OPEN_ENDED_KIND, PERSONAGYM_KIND, INTERVIEW_KIND)} | {
    "stability": "questions with checkable answers"
}


def build_footnotes(models: Sequence[ModelRuns]) -> str:
    """The footnotes: n, the meaning of the intervals, seeds, runs that are not held out, and the prompt
    without a persona.
    """
    lines = [
        "Cells: value [95 % interval]; n counts questions for accuracy and PSS, and answers for identifiability.",
        "Intervals are over questions, because the cells of one question are not independent; they do not cover other "
        "training seeds, unless they are called “over questions and seeds”. Judge a difference by its own paired interval, "
        "not by the intervals of two columns.",
        "PSS is our definition: accuracy under the worst persona / under the best one. Noise lowers the worst and raises the "
        "best; PSS and the worst persona are corrected for it. Compare PSS as observed with its value if personas had no effect "
        "(with the middle 95 % of its permutations). Identifiability is about distinctness, not correctness.",
        "A cell without a score is left out and counted, and is never 0; – means not measured.",
        *_unmeasured_recognisability(models),
        *_sample_sizes(models),
        *_judge_score_footnote(models),
        *_adaptive_allocation_footnotes(models),
        *_not_held_out(models),
        *_no_persona_footnotes(models),
        *_imported_trainings(models),
    ]
    return "\n".join(f"- {line}" for line in lines)


def completion_excerpts(models: Sequence[ModelRuns], kind: str) -> list[DocumentPart]:
    """A few answers of every model to the same questions as the same personas; empty when no model has a run
    of this kind.
    """
    cells_by_model = {model.label: model.runs[kind].cells for model in models if kind in model.runs}
    if not cells_by_model:
        return []
    # Not every recorded cell is an answer of the grid: an interviewer's questions and the cells of a persona search are not.
    keys = _shared_keys([model.runs[kind].cell_summaries for model in models if kind in model.runs])
    parts: list[DocumentPart] = [f"### Completions under the same persona: {EXCERPT_KINDS[kind]}"]
    for number, persona_id in enumerate(_evenly_spaced(dict.fromkeys(key.persona_id for key in keys), _MAX_PERSONAS), start=1):
        persona_keys = _evenly_spaced((key for key in keys if key.persona_id == persona_id), _MAX_QUESTIONS)
        cells = next(iter(cells_by_model.values()))
        lines = [
            [_cut_text_cell(_asked_text(cells[key], kind)), *(_answer_cell(run.get(key)) for run in cells_by_model.values())]
            for key in persona_keys
        ]
        persona_text = quote_markdown(_persona_text(cells[persona_keys[0]]), _MAX_LINE_CHARS, _MAX_LINES)
        parts.append(f"**{md_label(persona_id or '')}** – {persona_text}")
        parts.append(tabulate(f"said-{kind.replace(', ', '-')}-{number}", ["asked", *map(one_line, cells_by_model)], lines))
    return parts


def step_time_table(models: Sequence[ModelRuns]) -> Table | None:
    """How long the parts of a training step took: mean wall seconds, with CPU seconds in brackets. None when no log has
    times.
    """
    logs = {model.label: model.runs["train"].log for model in models if "train" in model.runs}
    timed = {name: log for name, log in logs.items() if log and all("cpu_seconds" in step for step in log)}
    if not timed:
        return None
    parts = list(dict.fromkeys(part for log in timed.values() for step in log for part in step["seconds"]))
    lines = []
    for name, log in timed.items():
        cells = [*(trusted_cell(_mean_time(log, part)) for part in parts), count_cell(len(log))]
        lines.append([label_cell(name), *(cell.with_sources(SourceRun(name, "train")) for cell in cells)])
    return tabulate("step-times", ["seconds a step [CPU]", *map(one_line, parts), "steps"], lines)


def dev_eval_choices(models: Sequence[ModelRuns]) -> str:
    """The step that each training's dev evaluations chose, in words; for a training that has not ended, the
    choice so far.
    """
    lines = []
    for model in models:
        if model.dev_curve is not None:
            ended = not model.dev_curve.chooses_weights or (model.runs["train"].path / "model" / "config.json").exists()
            so_far = "" if ended else " (training has not ended; this is the choice so far)"
            lines.append(f"- **{md_label(model.label)}**{so_far}: {selection_text(model.dev_curve)}")
    return "\n".join(lines)


def _mean_time(log: Sequence[Mapping[str, Any]], part: str) -> str:
    wall, cpu = (sum(step[clock].get(part, 0.0) for step in log) / len(log) for clock in ("seconds", "cpu_seconds"))
    return f"{wall:.2f} [{cpu:.2f}]"


_PROVENANCE_HEADINGS = (
    "model",
    "stage",
    "run",
    "command",
    "seed",
    "configuration",
    "revision",
    "packages",
    "tokens",
    "CPU s",
    "peak MB",
)


def subject_text(models: Sequence[ModelRuns]) -> str:
    """One line on what was measured, in Markdown: tasks, sizes, and the day of the newest run; empty if nothing is known."""
    stable = [(model.runs["stability"], model.stability) for model in models if model.stability is not None]
    tasks = list(dict.fromkeys(_task_text(run) for run, _ in stable))
    sizes = {
        f"{count_text(summary.n_questions, 'question')} × {count_text(summary.n_personas, 'persona')}" for _, summary in stable
    }
    has_open_questions = any(model.identifiability is not None for model in models)
    days = [str(run.provenance.get("created", ""))[:10] for model in models for run in model.runs.values()]
    parts = [
        ", ".join(tasks),
        sizes.pop() if len(sizes) == 1 else "",
        "open-ended questions" if has_open_questions else "",
        max(days, default=""),
    ]
    return " · ".join(escape_markdown(truncate(escape_control(part), 80)) for part in parts if part)


def _task_text(run: Run) -> str:
    """The name of a run's task; of the user's own questions, the file's name."""
    task = run.config.get("task") or {}
    return Path(str(task["path"])).name if task.get("path") else str(task.get("name", ""))


def provenance_parts(models: Sequence[ModelRuns]) -> list[DocumentPart]:
    """A table of every run behind the report (its command, seed, configuration and costs), the addresses at which models
    behind endpoints answered, and the versions of packages.

    Runs with equal packages share one list. With several lists, the table has a column with the number of each run's list.
    """
    runs = [(model.label, kind, run) for model in models for kind, run in model.runs_with_judges.items()]
    lists = list(dict.fromkeys(_packages_text(run) for _, _, run in runs))
    rows = [_provenance_row(label, kind, run, lists.index(_packages_text(run)) + 1) for label, kind, run in runs]
    headings: tuple[str, ...] = _PROVENANCE_HEADINGS
    if len(lists) < 2:
        column = headings.index("packages")
        headings, rows = headings[:column] + headings[column + 1 :], [row[:column] + row[column + 1 :] for row in rows]
    texts = [escape_markdown(truncate(escape_control(text), _MAX_PACKAGES_CHARS)) or "–" for text in lists]
    numbered = texts if len(lists) < 2 else [f"{number}: {text}" for number, text in enumerate(texts, start=1)]
    packages = Folded("Packages of these runs", "\n\n".join(numbered))
    return [tabulate("runs", headings, rows, n_label_columns=2), *_address_tables(runs), packages]


_ADDRESS_HEADINGS = ("model", "stage", "section", "address", "first used", "the server says", "same weights confirmed by")


def _address_tables(runs: Sequence[tuple[str, str, Run]]) -> Iterable[Table]:
    """Yield the table of addresses, if a run recorded one: where each model answered, and who confirmed its weights."""
    rows = []
    for label, kind, run in runs:
        for section, model in read_addresses(run.path).items():
            for use in model.addresses:
                said = ", ".join(f"{field} {value}" for field, value in use.server_says.items()) or "nothing of its weights"
                by = use.confirmed_by or "– (first address)"
                texts = [sanitize.redact_secrets(text) for text in (section, use.address, use.first_used, said, by)]
                stage = run.description if kind == run.stage else kind
                rows.append([label_cell(label), TableCell(one_line(stage)), *map(_cut_text_cell, texts)])
    if rows:
        yield tabulate("addresses", _ADDRESS_HEADINGS, rows, n_label_columns=2)


def _packages_text(run: Run) -> str:
    """The versions of packages; first, which models an engine ran: "model by vllm 0.33.0; permix 0.1.0, torch 2.14.0"."""
    versions = last_start(run.provenance).get("packages", {})
    packages = ", ".join(f"{package} {version}" for package, version in versions.items())
    return "; ".join([*_engine_texts(run.config, versions), packages])


def _engine_texts(config: Mapping[str, Any], versions: Mapping[str, str]) -> Iterator[str]:
    for name in ("model", "judge", "interviewer", "teacher"):
        section = config.get(name)
        backend = BACKENDS.get(str(section.get("backend"))) if isinstance(section, Mapping) else None
        if backend is not None and backend.runs_engine:
            engine = ", ".join(f"{one} {versions.get(one, 'of unknown version')}" for one in backend.packages)
            yield f"{name} by {engine}"


def command_text(run: Run) -> str:
    """The command of the newest start as it was typed, with secrets removed."""
    return sanitize.redact_command(last_start(run.provenance).get("command", []))


def settings_hash(run: Run) -> str:
    """A hash of the whole resolved configuration."""
    return digest(json.dumps(run.config, sort_keys=True), length=12)


def _provenance_row(name: str, kind: str, run: Run, packages: int) -> list[TableCell]:
    texts = [
        str(run.path),
        command_text(run),
        seed_text(run),
        settings_hash(run),
        revisions_text(run.provenance),
        str(packages),
    ]
    cells = [_cut_text_cell(text) if text.strip() else trusted_cell("–") for text in texts]
    return [
        label_cell(name),
        TableCell(one_line(run.description if kind == run.stage else kind)),
        *cells,
        *map(count_cell, (run.tokens, run.cpu_seconds, run.peak_mb)),
    ]


def seed_text(run: Run) -> str:
    if run.stage == "train":
        return f"plan {run.config.get('plan', {}).get('seed', '–')}, training {run.config.get('train', {}).get('seed', '–')}"
    return str(run.config.get("seed", "–"))


def _sample_sizes(models: Sequence[ModelRuns]) -> Iterable[str]:
    for model in models:
        one, two = model.stability, model.identifiability
        parts = (
            [
                f"{count_text(one.n_questions, 'question')} × {count_text(one.n_personas, 'persona')}, "
                f"{one.n_scored} of {one.n_asked} persona cells scored"
            ]
            if one
            else []
        )
        parts += [f"{two.n_questions} open-ended questions, {two.n_answered} of {two.n_asked} answers"] if two else []
        seeds = [f"{run.description} seed {seed_text(run)}" for run in model.runs.values()]
        yield f"{md_label(model.label)}: {'; '.join([*parts, *seeds])}."


def _unmeasured_recognisability(models: Sequence[ModelRuns]) -> Iterable[str]:
    """Yield a footnote for each reason why recognisability was not measured, with the models; embedder = "none" is no news."""
    labels_by_reason: dict[str, list[str]] = {}
    for model in models:
        if model.recognisability_reason and model.runs["fidelity"].config.get("embedder") != "none":
            labels_by_reason.setdefault(model.recognisability_reason, []).append(md_label(model.label))
    for reason, labels in labels_by_reason.items():
        yield f"Recognisability was not measured for {', '.join(labels)}: {md_label(reason, 300)}."


def _judge_score_footnote(models: Sequence[ModelRuns]) -> Iterable[str]:
    """Yield the footnote on judges' scores, if there are any."""
    if any(model.judged_runs for model in models):
        yield (
            "Judges' scores are 1 to 5, n counts personas, and intervals are over personas. A mark (†, ‡) means that the judge "
            'failed its validation, or was not validated: see "Fidelity by judges".'
        )


def _adaptive_allocation_footnotes(models: Sequence[ModelRuns]) -> Iterable[str]:
    """Yield a footnote for each run with adaptive allocation: it names the measures that need all of its personas."""
    for model in models:
        rounds = model.runs["stability"].rounds if "stability" in model.runs else ()
        if rounds:
            yield (
                f"{md_label(model.label)}: cells were allocated in {len(rounds)} rounds to the personas that may be worst or "
                "best. The mean over personas, PSS as observed, its value if personas had no effect, each question's worst "
                f"persona and the heat map are from the first {rounds[0].until} questions, which every persona was asked. "
                "Accuracies of personas and their differences to no persona are medians of posterior draws, not shares."
            )


def _not_held_out(models: Sequence[ModelRuns]) -> Iterable[str]:
    """Yield a footnote for each run that asked questions or personas of the train or dev split."""
    for model in models:
        for run in model.runs.values():
            splits = {f"{part}.split": run.config.get(part, {}).get("split") for part in ("task", "personas")}
            splits["questions_split"] = run.config.get("questions_split")
            named = [f"{field} = {split}" for field, split in splits.items() if split in ("train", "dev")]
            if named and run.stage != "train":
                fields = ", ".join(named)
                yield f"{md_label(model.label)}, {run.kind}: {fields}; not held out: use for choices, not for conclusions."


def _no_persona_footnotes(models: Sequence[ModelRuns]) -> Iterable[str]:
    """Yield what a prompt without a persona contained; models with the same content share one footnote."""
    names_by_text: dict[str, list[str]] = {}
    for model in models:
        if "stability" in model.runs:
            names_by_text.setdefault(_default_system_text(model.runs["stability"]), []).append(md_label(model.label))
    for text, names in names_by_text.items():
        yield f"Without persona, the prompt of {', '.join(names)} contains {text}."


def _imported_trainings(models: Sequence[ModelRuns]) -> Iterable[str]:
    """Yield what is known of each training that another engine ran, and what is not."""
    for model in models:
        run = model.runs.get("train")
        if run is not None and run.is_imported:
            identity, log = run.provenance.get("identity", {}), run.log
            engine = f"{identity.get('engine')} (exported for {identity.get('engine_version', 'an unknown release')})"
            missing = sum(int(step.get("unscored") or 0) for step in log)
            plan, n_steps = md_label(str(identity.get("plan"))), run.config["plan"]["steps"]
            settings = "its settings are those of the export" if run.config.get("train") else "nor are its settings"
            yield (
                f"{md_label(model.label)}, {run.description}: trained by {md_label(engine)} on plan {plan}, and imported: "
                f"{len(log)} of {n_steps} steps; rollouts without a score: {missing}. Its CPU time and memory are not known; "
                f"{settings}. Packages, revision and command are those of the import."
            )


def _default_system_text(run: Run) -> str:
    identity = run.provenance.get("identity", {})
    if run.config.get("personas", {}).get("empty_system_prompt"):
        return "an empty system message"
    if "default_system" not in identity:
        return "the text that its chat template inserts, if any (not recorded)"
    text = identity["default_system"]
    source = "the system text" if "imported" in identity else "the chat template's default system text:"
    return f"{source} “{quote_markdown(text, _MAX_LINE_CHARS, _MAX_LINES)}”" if text else "no known default system text"


def _shared_keys(runs: Sequence[Mapping[CellKey, object]]) -> list[CellKey]:
    """The persona cells of the first sample, template and context that every run has; when the runs share no cell, the
    cells of the first run.
    """
    persona_keys = [key for key in runs[0] if key.persona_id is not None and key.sample == 0]
    keys = [key for key in persona_keys if (key.template, key.context) == (persona_keys[0].template, persona_keys[0].context)]
    return [key for key in keys if all(key in run for run in runs)] or keys


def _evenly_spaced(items: Iterable[_T], count: int) -> list[_T]:
    """The first item, the last item, and items evenly spaced between them: `count` in all, or every item when there are
    fewer.
    """
    all_items = list(items)
    if len(all_items) <= count:
        return all_items
    return [all_items[i * (len(all_items) - 1) // (count - 1)] for i in range(count)]


def _persona_text(cell: Asked) -> str:
    return "" if cell.persona_id is None else persona_prompt(cell.messages)


def _asked_text(cell: Asked, kind: str) -> str:
    """What the user said; of a question with a checkable answer only the question, without the turns before it."""
    return cell.prompt if kind == "stability" else _message_text(cell, "user")


def _message_text(cell: Asked, role: str) -> str:
    return "\n".join(message["content"] for message in cell.messages if message["role"] == role)


def _answer_cell(cell: Asked | None) -> TableCell:
    """The completion as text, with the scorer's verdict as its note."""
    if cell is None or cell.completion is None:
        return TableCell(f"– ({one_line(cell.failure.type)})") if cell and cell.failure else trusted_cell("–")
    verdict = "" if cell.verdict is None else {True: "right", False: "wrong", None: "not scored"}[cell.verdict.correct]
    return _cut_text_cell(cell.completion.answer)._replace(note=verdict)


def _cut_text_cell(text: str) -> TableCell:
    return text_cell(text, _MAX_LINE_CHARS, _MAX_LINES)
