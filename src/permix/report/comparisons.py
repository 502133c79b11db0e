"""`permix compare`: is one model more stable than another? Every measure of two stability runs, with interval and test.

Contract: from the runs' records alone, as the report; two runs that were not asked the same, or not judged the same, are refused
with the reason. Names may be hostile text.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from permix.config import CompareStage
from permix.errors import ConfigError, DataError
from permix.evals.stability import StabilityGrid, grids
from permix.metrics import statistics
from permix.metrics.identifiability import Identifiability
from permix.metrics.model_comparison import Difference, Paired, PersonaDifference, paired
from permix.metrics.stability import differences
from permix.metrics.statistics import Array
from permix.rendering import table
from permix.rendering.table import MISSING, grid, one_line
from permix.report.judges import INTERVIEW, JudgedDifference, unlike_judges
from permix.report.judges import differences_of as judged_differences
from permix.report.runs import FIDELITY, WHOLE_GRID, ModelRuns, Run, find, label_of, reference_of
from permix.sanitize import visible
from permix.storage.files import write_json, write_text
from permix.types import Estimate, Record


class Comparison(Record):
    """One model against another. The differences are None, and `reasons` say why, where the two may not be compared."""

    label: str
    against: str
    pss: Estimate | None = None
    worst: Estimate | None = None
    mean: Estimate | None = None
    identifiability: Estimate | None = None
    judged: tuple[JudgedDifference, ...] = ()
    reasons: tuple[str, ...] = ()
    fidelity_reasons: tuple[str, ...] = ()
    judged_reasons: tuple[str, ...] = ()


def compare_models(first: ModelRuns, other: ModelRuns) -> Comparison:
    reasons, apart = stability_reasons(first, other), fidelity_reasons(first, other)
    differences: dict[str, Estimate] = {}
    if first.grid is not None and other.grid is not None and not reasons:
        config = first.runs["stability"].config
        differences = differences_of(first.grid, other.grid, int(config.get("seed", 0)), int(config.get("resamples", 2000)))
    if first.fidelity is not None and other.fidelity is not None and not apart:
        config = first.runs["fidelity"].config
        seed, resamples = int(config.get("seed", 0)), int(config.get("resamples", 2000))
        differences["identifiability"] = distinctness([first.fidelity], [other.fidelity], seed, resamples)
    judged, judged_reasons = judged_between(first, other)
    return Comparison(
        label=other.label, against=first.label, reasons=reasons, fidelity_reasons=apart,
        judged=judged, judged_reasons=judged_reasons,
        pss=differences.get("pss"), worst=differences.get("worst"), mean=differences.get("mean"),
        identifiability=differences.get("identifiability"),
    )  # fmt: skip


NAMES = {
    "baseline": "no persona", "mean": "mean over personas", "worst": "worst persona", "best": "best persona",
    "pss": "PSS", "pss_crossfit": "PSS cross-fitted", "spread": "best − worst", "persona_sd": "sd of personas",
    "shift": "mean − no persona", "worst_minus_baseline": "worst − no persona", "case_worst": "each question's worst persona",
}  # fmt: skip

NOTE = (
    "Second − first, paired by persona and question, with 95 % intervals over {questions} questions; p: the models "
    "swapped question by question, two-sided, for each measure alone. Personas: sign-flip test, corrected for their number "
    "(Holm)."
)


class Compared(NamedTuple):
    """What stands in the tables."""

    first: Run
    other: Run
    found: Paired

    @property
    def labels(self) -> tuple[str, str]:
        runs = (self.first, self.other)
        named = [label_of(run, runs) for run in runs]
        one, two = named if named[0] != named[1] else [str(run.path) for run in runs]
        return one, two


def compare_stage(config: CompareStage) -> None:
    """The command: print both tables; write them where the configuration says."""
    if len(config.runs) != 2:
        raise ConfigError(f"runs: compare takes two, and {len(config.runs)} came: permix compare FIRST SECOND [--out DIR]")
    compared = compare_runs(*config.runs, seed=config.seed, resamples=config.resamples)
    console = Console()
    for shown in terminal(compared):
        console.print(shown)
    console.print(NOTE.format(questions=compared.found.n_questions), markup=False, highlight=False)
    if config.out is not None:
        write_text(config.out / "comparison.md", document(compared))
        about = {"first": str(compared.first.path), "other": str(compared.other.path)}
        write_json(config.out / "comparison.json", about | compared.found.model_dump(mode="json"))
        console.print(str(config.out / "comparison.md"), markup=False, highlight=False, soft_wrap=True)


def compare_runs(first: Path, other: Path, *, seed: int = 0, resamples: int = 2000) -> Compared:
    """Two stability runs, or folders that hold one each. Raises DataError when they are not that, or may not be compared."""
    one, two = _stability_run(first), _stability_run(other)
    grid, there = grids(one.path), grids(two.path)
    if reasons := unlike(one, two, grid, there):
        raise DataError(f"{one.path} and {two.path} cannot be compared: {'; '.join(reasons).lower()}")
    scores = (in_order_of(grid, one_grid) for one_grid in (grid, there))
    rows = [np.vstack([under_P_Q, without_Q[None]]) for under_P_Q, without_Q in scores]
    return Compared(one, two, paired(rows[0], rows[1], grid.persona_ids, seed=seed, resamples=resamples))


def _stability_run(path: Path) -> Run:
    whole = [run for run in find(path) if run.stage == "stability" and run.strategy in {"none", *WHOLE_GRID}]
    if len(whole) != 1:
        held = ", ".join(str(run.path) for run in whole) or "none"
        raise DataError(f"{path}: give one stability run; it holds {held}")
    return whole[0]


def terminal(compared: Compared) -> list[Table]:
    """For a terminal: measures, then personas, the one that lost most first."""
    labels = [Text(one_line(label)) for label in compared.labels]
    found = []
    for heading, lines in (("", _measures(compared.found)), ("persona", _personas(compared.found))):
        table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
        table.add_column(heading)
        for column in (*labels, Text("second − first"), Text("p")):
            table.add_column(column, overflow="fold")
        for line in lines:
            table.add_row(*(Text(visible(cell)) for cell in line))
        found.append(table)
    return found


def document(compared: Compared) -> str:
    """The same as Markdown."""
    one, two = map(table.md_label, compared.labels)
    parts = [
        f"# {two} against {one}",
        NOTE.format(questions=compared.found.n_questions),
        grid(["", one, two, "second − first", "p"], _measures(compared.found)),
        grid(
            ["persona", one, two, "second − first", "p"],
            [[table.md_label(line[0]), *line[1:]] for line in _personas(compared.found)],
        ),
    ]
    return "\n\n".join(parts) + "\n"


def _measures(found: Paired) -> list[Sequence[str]]:
    return [(NAMES[one.name], *_cells(one, one.p)) for one in found.measures]


def _personas(found: Paired) -> list[Sequence[str]]:
    ordered = sorted(found.personas, key=lambda one: (one.difference.value is None, one.difference.value or 0.0, one.id))
    return [(one.id, *_cells(one, one.holm_p)) for one in ordered]


def _cells(one: Difference | PersonaDifference, p: float | None) -> tuple[str, ...]:
    signed = MISSING if one.difference.value is None else one.difference.signed()
    alone = (table.number(value).replace("-", "−") for value in (one.first, one.other))
    return (*alone, signed, table.probability(p))


def differences_of(first: StabilityGrid, other: StabilityGrid, seed: int, resamples: int) -> dict[str, Estimate]:
    """Other − first in PSS, worst and mean accuracy, over the personas that both have a score for; same draws of questions."""
    mean_P_Q = statistics.sample_mean(np.asarray(first.correct_P_Q_S, dtype=float))
    return differences([mean_P_Q], [in_order_of(first, other)[0]], seed, resamples)


def distinctness(first: Sequence[Identifiability], other: Sequence[Identifiability], seed: int, resamples: int) -> Estimate:
    """Other − first in identifiability, each the mean over its models; n is the questions, which are drawn alike for all."""
    questions = sorted(set.intersection(*(set(one.right_by_question) for one in (*first, *other))))

    def measures(counts_R_Q: Array) -> dict[str, Array]:
        one, two = (told_apart(models, questions, counts_R_Q) for models in (first, other))
        return {"identifiability": two - one}

    drawn = statistics.bootstrap(measures, len(questions), np.random.default_rng(seed), resamples, block=resamples)
    value, replicate_R = drawn["identifiability"]
    return statistics.estimate(float(value), replicate_R, len(questions))


def told_apart(models: Sequence[Identifiability], questions: Sequence[str], counts_R_Q: Array) -> Array:
    """Share of the answers to these questions that were told right, the mean over the models [R]."""
    tables = [np.array([one.right_by_question[question] for question in questions], dtype=float) for one in models]
    shares = [counts_R_Q @ right_Q / (counts_R_Q @ answered_Q) for right_Q, answered_Q in (table.T for table in tables)]
    return np.asarray(np.mean(shares, axis=0))


def stability_reasons(first: ModelRuns, other: ModelRuns) -> tuple[str, ...]:
    """Why the two must not be compared in accuracy or PSS; empty when they may be, or one was not measured."""
    if first.grid is None or other.grid is None:
        return ()
    return unlike(first.runs["stability"], other.runs["stability"], first.grid, other.grid)


def unlike(one: Run, two: Run, first: StabilityGrid, other: StabilityGrid) -> tuple[str, ...]:
    """Why the scores of two stability runs must not be held against each other; empty when they may be."""
    here, there = ((set(grid.persona_ids), set(grid.question_ids)) for grid in (first, other))
    return _asked_differently(one, two) or (() if here == there else ("Not the same personas and questions",))


def fidelity_reasons(first: ModelRuns, other: ModelRuns) -> tuple[str, ...]:
    """The same of identifiability."""
    if first.fidelity is None or other.fidelity is None:
        return ()
    one, two = first.runs["fidelity"], other.runs["fidelity"]
    taught = [(reference_of(run) or run.path).resolve() for run in (one, two)]
    return _asked_differently(one, two) + (
        () if taught[0] == taught[1] else ("Not the same classifier (trained on other answers)",)
    )


def judged_between(first: ModelRuns, other: ModelRuns) -> tuple[tuple[JudgedDifference, ...], tuple[str, ...]]:
    """The differences on judges' scores, of each kind that both were asked alike; and why there are none of the others."""
    found: list[JudgedDifference] = []
    reasons: list[str] = []
    for kind in FIDELITY:
        one, two = first.runs.get(kind), other.runs.get(kind)
        if one is None or two is None or one.judged is None or two.judged is None:
            continue
        here, there = one.judged.verdicts, two.judged.verdicts
        reasons += [reason for name in here if name in there for reason in unlike_judges(here[name], there[name])]
        if differs := _asked_differently(one, two, words=kind != INTERVIEW):
            reasons += differs
        else:
            found += judged_differences(one.judged, two.judged)
    return tuple(found), tuple(dict.fromkeys(reasons))


def _asked_differently(one: Run, two: Run, *, words: bool = True) -> tuple[str, ...]:
    """What differs between two runs that should have been asked the same; read from the records and the sampling.

    `words`: whether the messages should be the same too; those of a conversation hold what the model has said itself.
    """
    keys = [list(run.grid) for run in (one, two)]
    shared = one.grid.keys() & two.grid.keys()
    checks = (
        ("Cells were spent where they decided for one model (budget, precision)", bool(one.rounds or two.rounds)),
        ("Not the same task", _identity(one, "task") != _identity(two, "task")),
        ("Not judged by the same verifier", _judge(one) != _judge(two)),
        ("Not the same questions", len({frozenset(key.question_id for key in some) for some in keys}) > 1),
        ("Not the same personas", len({frozenset(key.persona_id for key in some) for some in keys}) > 1),
        (
            "Not asked in the same words",
            set(one.answers.templates) != set(two.answers.templates)
            or (not words and _talk(one) != _talk(two))
            or (words and any(one.grid[key].words != two.grid[key].words for key in shared)),
        ),
        ("Not the same sampling", _setting(one) != _setting(two)),
    )
    return tuple(reason for reason, differs in checks if differs)


def _talk(run: Run) -> tuple[Any, Any]:
    """What an interview was held by: the persona's wording, and the questions. A model's own questions are never another's."""
    asked = run.answers.question_ids if run.config.get("interviewer", {}).get("name", "script") == "script" else run.path
    return _identity(run, "template"), (_identity(run, "interview"), asked)


def _identity(run: Run, name: str) -> Any:
    return run.provenance.get("identity", {}).get(name)


def _judge(run: Run) -> tuple[Any, ...]:
    """What compares answers: the symbolic engine's version may change a verdict. Open-ended answers are not judged; those of an
    imported run may have been by another program."""
    if run.stage != "stability":
        return ()
    judge = _identity(run, "judge") or "permix"
    return (judge, run.provenance.get("packages", {}).get("math-verify") if judge.startswith("permix") else None)


def _setting(run: Run) -> tuple[Any, ...]:
    return (run.config.get("sampling"), run.config.get("samples"))


def in_order_of(first: StabilityGrid, other: StabilityGrid) -> tuple[Array, Array]:
    """The other grid's sample means with personas and questions in the first one's order; and those without persona."""
    persona_at = {id: place for place, id in enumerate(other.persona_ids)}
    question_at = {id: place for place, id in enumerate(other.question_ids)}
    rows, columns = [persona_at[id] for id in first.persona_ids], [question_at[id] for id in first.question_ids]
    under_P_Q_S, without_Q_S = (np.asarray(scores, dtype=float) for scores in (other.correct_P_Q_S, other.baseline_Q_S))
    return statistics.sample_mean(under_P_Q_S[np.ix_(rows, columns)]), statistics.sample_mean(without_Q_S[columns])
