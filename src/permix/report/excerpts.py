"""The parts of a report that quote the runs: what the numbers rest on, completions side by side, where everything was born.

Contract: whatever came from a model, a persona pool, a task or a command line is cut, and escaped where it is rendered, so it is
shown and never acts. Order and wording depend on the runs alone.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from permix import sanitize
from permix.metrics.dev_curve import told
from permix.prompts import brought_in_by
from permix.rendering.table import Cell, Source, Table, counted, md_label, named, one_line, quoted, stated, tabulate
from permix.report.document import Part
from permix.report.judges import GYM, INTERVIEW, OPEN, TITLES
from permix.report.runs import ModelRuns, Run
from permix.sanitize import clip, markdown, visible
from permix.types import Cell as Asked
from permix.types import CellKey, digest

T = TypeVar("T")


PERSONAS = 3

QUESTIONS = 4

COLUMN = 200  # characters of a line of a completion

LINES = 8

KINDS = {kind: TITLES[kind] for kind in (OPEN, GYM, INTERVIEW)} | {"stability": "questions with checkable answers"}


def caption(models: Sequence[ModelRuns]) -> str:
    """n, what the intervals are, seeds, what was not held out, and what "no persona" means."""
    lines = [
        "Cells: value [95 % interval]; n is what was counted: questions for accuracy and PSS, answers for identifiability.",
        "Intervals are over questions (the cells of one question are not independent); they do not cover another "
        "training seed, and a difference is judged by its own paired interval above, not by two columns.",
        "PSS is our definition: worst / best persona's accuracy. Noise makes the worst worse and the best better; it is taken "
        "off in PSS and the worst persona, and PSS as observed is to be read beside its value if personas did nothing (with the "
        "middle 95 % of its permutations). Identifiability is distinctness, not correctness.",
        "A cell without a score is left out and counted, never 0; – is not measured.",
        *_sizes(models),
        *_judged(models),
        *_spent(models),
        *_not_held_out(models),
        *_no_persona(models),
    ]
    return "\n".join(f"- {line}" for line in lines)


def completions(models: Sequence[ModelRuns], stage: str) -> list[Part]:
    """A few answers of every model to the same questions as the same personas; empty when no model has this stage."""
    asked = {model.label: model.runs[stage].cells for model in models if stage in model.runs}
    if not asked:
        return []
    keys = _shared(list(asked.values()))
    parts: list[Part] = [f"### As the same persona: {KINDS[stage]}"]
    for place, persona_id in enumerate(_spread(dict.fromkeys(key.persona_id for key in keys), PERSONAS), start=1):
        mine = _spread((key for key in keys if key.persona_id == persona_id), QUESTIONS)
        cells = next(iter(asked.values()))
        lines = [[_words(_message(cells[key], "user")), *(_answer(run.get(key)) for run in asked.values())] for key in mine]
        parts.append(f"**{md_label(persona_id or '')}** – {_quote(_persona(cells[mine[0]]))}")
        parts.append(tabulate(f"said-{stage.replace(', ', '-')}-{place}", ["asked", *map(one_line, asked)], lines))
    return parts


def step_times(models: Sequence[ModelRuns]) -> Table | None:
    """Where a training step's time went: mean wall seconds of each part, CPU seconds in brackets; None without such a log."""
    logs = {model.label: model.runs["train"].log for model in models if "train" in model.runs}
    timed = {name: log for name, log in logs.items() if log and all("cpu_seconds" in step for step in log)}
    if not timed:
        return None
    parts = list(dict.fromkeys(part for log in timed.values() for step in log for part in step["seconds"]))
    lines = []
    for name, log in timed.items():
        cells = [*(stated(_mean_time(log, part)) for part in parts), counted(len(log))]
        lines.append([named(name), *(cell.of(Source(name, "train")) for cell in cells)])
    return tabulate("step-times", ["seconds a step [CPU]", *map(one_line, parts), "steps"], lines)


def choices(models: Sequence[ModelRuns]) -> str:
    """What each training's probes chose; of one that goes on, what they would choose now."""
    lines = []
    for model in models:
        if model.curve is not None:
            ended = (model.runs["train"].path / "model" / "config.json").exists()
            so_far = "" if ended else " (training has not ended; this is what the probes say so far)"
            lines.append(f"- **{md_label(model.label)}**{so_far}: {told(model.curve)}")
    return "\n".join(lines)


def _mean_time(log: Sequence[Mapping[str, Any]], part: str) -> str:
    wall, cpu = (sum(step[clock].get(part, 0.0) for step in log) / len(log) for clock in ("seconds", "cpu_seconds"))
    return f"{wall:.2f} [{cpu:.2f}]"


ORIGIN = ("model", "stage", "run", "command", "seed", "configuration", "revision", "packages", "tokens", "CPU s", "peak MB")


def provenance(models: Sequence[ModelRuns]) -> Table:
    """Every run behind the report: how it was made and what it cost."""
    return tabulate(
        "runs", ORIGIN, [_origin(model.label, kind, run) for model in models for kind, run in model.every_run.items()], names=2
    )


def command_of(run: Run) -> str:
    """As it was typed, secrets left out."""
    return sanitize.shown(run.provenance.get("command", []))


def settings_hash(run: Run) -> str:
    """Of the whole resolved configuration."""
    return digest(json.dumps(run.config, sort_keys=True), length=12)


def _origin(name: str, kind: str, run: Run) -> list[Cell]:
    packages = " ".join(f"{package} {version}" for package, version in run.provenance.get("packages", {}).items())
    texts = [
        str(run.path),
        command_of(run),
        seed_of(run),
        settings_hash(run),
        str(run.provenance.get("revision") or ""),
        packages,
    ]
    words = [_words(text) if text.strip() else stated("–") for text in texts]
    return [
        named(name),
        Cell(one_line(run.described if kind == run.stage else kind)),
        *words,
        *map(counted, (run.tokens, run.cpu_seconds, run.peak_mb)),
    ]


def seed_of(run: Run) -> str:
    if run.stage == "train":
        return f"plan {run.config.get('plan', {}).get('seed', '–')}, training {run.config.get('train', {}).get('seed', '–')}"
    return str(run.config.get("seed", "–"))


def _sizes(models: Sequence[ModelRuns]) -> Iterable[str]:
    for model in models:
        one, two = model.stability, model.fidelity
        parts = (
            [f"{one.n_questions} questions × {one.n_personas} personas, {one.n_scored} of {one.n_asked} cells scored"]
            if one
            else []
        )
        parts += [f"{two.n_questions} open-ended questions, {two.n_answered} of {two.n_asked} answers"] if two else []
        seeds = [f"{run.described} seed {seed_of(run)}" for run in model.runs.values()]
        yield f"{md_label(model.label)}: {'; '.join([*parts, *seeds])}."


def _judged(models: Sequence[ModelRuns]) -> Iterable[str]:
    """What judges' scores rest on, where there are some."""
    if any(model.judged for model in models):
        yield (
            "Judges' scores are 1 to 5, n is personas, and intervals are over personas; a mark beside one (†, ‡) says that the "
            'judge did not pass its trial, or had none: see "Fidelity by judges".'
        )


def _spent(models: Sequence[ModelRuns]) -> Iterable[str]:
    """The runs whose cells were spent where they decided, and what stands on all of their personas."""
    for model in models:
        rounds = model.runs["stability"].rounds if "stability" in model.runs else ()
        if rounds:
            yield (
                f"{md_label(model.label)}: cells were spent in {len(rounds)} rounds on who may be worst or best. The mean over "
                "personas, PSS as observed, its value if personas did nothing, each question's worst persona and the map of who "
                f"answers what stand on the first {rounds[0].until} questions, which every persona was asked; accuracies of "
                "personas and their differences to none are medians of draws, not shares."
            )


def _not_held_out(models: Sequence[ModelRuns]) -> Iterable[str]:
    """The runs that asked on a side which is there to train or to choose on."""
    for model in models:
        for run in model.runs.values():
            sides = {f"{part}.split": run.config.get(part, {}).get("split") for part in ("task", "personas")}
            sides["questions_split"] = run.config.get("questions_split")
            named = [f"{field} = {side}" for field, side in sides.items() if side in ("train", "dev")]
            if named and run.stage != "train":
                fields = ", ".join(named)
                yield f"{md_label(model.label)}, {run.kind}: {fields}; not held out: to choose by, not to conclude from."


def _no_persona(models: Sequence[ModelRuns]) -> Iterable[str]:
    """What a prompt without persona carried, said once for models that agree."""
    said: dict[str, list[str]] = {}
    for model in models:
        if "stability" in model.runs:
            said.setdefault(_default_system(model.runs["stability"]), []).append(md_label(model.label))
    for what, names in said.items():
        yield f"Without persona, the prompt of {', '.join(names)} carries {what}."


def _default_system(run: Run) -> str:
    identity = run.provenance.get("identity", {})
    if run.config.get("personas", {}).get("bare"):
        return "an empty system message"
    if "default_system" not in identity:
        return "whatever its chat template inserts (not recorded)"
    text = identity["default_system"]
    whose = "the system text" if "imported" in identity else "the chat template's own default system text:"
    return f"{whose} “{_quote(text)}”" if text else "no default system text that is known"


def _shared(runs: Sequence[Mapping[CellKey, Asked]]) -> list[CellKey]:
    """Persona cells of the first sample and template that every run has; those of the first run when they share none."""
    under = [key for key in runs[0] if key.persona_id is not None and key.sample == 0]
    mine = [key for key in under if key.template == under[0].template]
    return [key for key in mine if all(key in run for run in runs)] or mine


def _spread(items: Iterable[T], wanted: int) -> list[T]:
    """The first, the last and evenly between."""
    every = list(items)
    if len(every) <= wanted:
        return every
    return [every[place * (len(every) - 1) // (wanted - 1)] for place in range(wanted)]


def _persona(cell: Asked) -> str:
    return "" if cell.persona_id is None else brought_in_by(cell.messages)


def _message(cell: Asked, role: str) -> str:
    return "\n".join(message["content"] for message in cell.messages if message["role"] == role)


def _answer(cell: Asked | None) -> Cell:
    """The completion as text, and what the verifier said of it."""
    if cell is None or cell.completion is None:
        return Cell(f"– ({one_line(cell.failure.type)})") if cell and cell.failure else stated("–")
    said = "" if cell.verdict is None else {True: "right", False: "wrong", None: "not scored"}[cell.verdict.correct]
    return _words(cell.completion.text)._replace(note=said)


def _words(text: str) -> Cell:
    return quoted(text, COLUMN, LINES)


def _quote(text: str) -> str:
    return markdown(clip(visible(text).strip(), COLUMN, LINES))
