"""Compares two models in every measure, with intervals and tests, for `permix compare` and for the report.

Contract: everything is computed from the runs' records, as in the report. Two runs are compared only when questions, personas,
prompts, sampling and scorer are the same; otherwise the comparison is refused and the reason is given. Names may be hostile text.

A difference of two models, methods or arms is what is measured − what it is measured `against`, and functions take the two in
this order. Only `permix compare` keeps the order of its command line: `first` and `other`, with other − first.
"""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import numpy as np
from pydantic import Field
from rich.console import Console
from rich.table import Table as TerminalTable
from rich.text import Text

from permix.config import CompareConfig
from permix.errors import ConfigError, DataError
from permix.evals.grid import CutOffCounts
from permix.evals.in_character import measure_right_in_character
from permix.evals.stability import StabilityGrid, read_context_grids, read_stability_grid
from permix.metrics import statistics
from permix.metrics.measures import CHARACTER_MEASURES, STABILITY_MEASURES, CharacterRecord, character_measures_of
from permix.metrics.model_comparison import (
    MeasureDifference,
    PairedComparison,
    PersonaDifference,
    compare_models_paired,
    compare_right_in_character,
)
from permix.metrics.right_in_character import RightInCharacter, right_in_character_difference
from permix.metrics.stability import stability_differences
from permix.metrics.statistics import Array
from permix.progress import add_result
from permix.rendering import table
from permix.rendering.table import (
    MISSING_TEXT,
    NOT_SIGNIFICANT,
    difference_direction,
    format_count,
    format_ratio,
    markdown_table,
    one_line,
    plain_text,
    terminal_table,
)
from permix.report.judges import (
    INTERVIEW_KIND,
    OPEN_ENDED_KIND,
    JudgeScoreDifference,
    bootstrap_settings,
    judge_incompatibilities,
    judge_score_differences,
)
from permix.report.runs import (
    FIDELITY_RUN_KINDS,
    WHOLE_GRID_STRATEGIES,
    ModelRuns,
    Run,
    collect_models,
    find_reference_run,
    find_runs,
    model_label,
)
from permix.sanitize import escape_control
from permix.storage.cells import conflicting_answers_note
from permix.storage.files import write_json, write_text
from permix.types import Estimate, true_minus


class Comparison(CharacterRecord):
    """The differences between two models. If they cannot be compared, `measures` is empty and `reasons` say why."""

    VIEW = "differences"

    label: str
    against: str
    measures: dict[str, Estimate] = Field(default_factory=dict)
    identifiability: Estimate | None = None
    recognisability: Estimate | None = None
    right_in_character: Estimate | None = None
    judged: tuple[JudgeScoreDifference, ...] = ()
    reasons: tuple[str, ...] = ()
    fidelity_reasons: tuple[str, ...] = ()
    recognisability_reasons: tuple[str, ...] = ()
    right_in_character_reasons: tuple[str, ...] = ()
    judged_reasons: tuple[str, ...] = ()


def compare_models(model: ModelRuns, against: ModelRuns) -> Comparison:
    """`model` − `against` in every measure, each with the reasons where it is not compared."""
    reasons, fidelity_reasons = stability_incompatibilities(against, model), identifiability_incompatibilities(against, model)
    differences: dict[str, Estimate] = {}
    if model.grid is not None and against.grid is not None and not reasons:
        differences = compare_stability_grids(model.grid, against.grid, *bootstrap_settings(against.runs["stability"].config))
    recognisability_reasons = recognisability_incompatibilities(against, model)
    in_character_reasons = right_in_character_incompatibilities(against, model)
    in_character = None
    if model.right_in_character is not None and against.right_in_character is not None and not in_character_reasons:
        settings = bootstrap_settings(against.runs["stability"].config)
        in_character = right_in_character_difference([model.right_in_character], [against.right_in_character], *settings)
    judged, judged_reasons = compare_judge_scores(model, against)
    identifiability = recognisability = None
    if not fidelity_reasons:
        identifiability = _share_difference(model.identifiability, against.identifiability, against)
    if not recognisability_reasons:
        recognisability = _share_difference(model.recognisability, against.recognisability, against)
    return Comparison(
        label=model.label, against=against.label, measures=differences,
        identifiability=identifiability, recognisability=recognisability,
        right_in_character=in_character, judged=judged, reasons=reasons, fidelity_reasons=fidelity_reasons,
        recognisability_reasons=recognisability_reasons, right_in_character_reasons=in_character_reasons,
        judged_reasons=judged_reasons,
    )  # fmt: skip


def _share_difference(
    shares: "QuestionShares | None", against: "QuestionShares | None", settings_of: ModelRuns
) -> Estimate | None:
    """`shares` − `against`, with the draws of this model's fidelity run; None where one was not measured."""
    if shares is None or against is None:
        return None
    return question_share_difference([shares], [against], *bootstrap_settings(settings_of.runs["fidelity"].config))


_STABILITY_TEMPLATE = "{} stable: under its worst persona it keeps a {} share of its best persona's accuracy"

_STABILITY_CLAIMS = {
    "higher": _STABILITY_TEMPLATE.format("more", "larger"),
    "lower": _STABILITY_TEMPLATE.format("less", "smaller"),
    NOT_SIGNIFICANT: (
        f"{NOT_SIGNIFICANT} in stability, the share of its best persona's accuracy that a model keeps under its worst"
    ),
}

MIN_SCORED_SHARE = 0.9
"""Minimal share of the asked cells that must have a score before anything is claimed about accuracy."""


def stability_claim(pss: Estimate, p: float | None = None) -> str:
    """What a difference in PSS says about stability, with its value and, if given, the p of its test. The difference must
    have an interval.
    """
    tested = "" if p is None else f", {table.p_text(p)}"
    return f"{_STABILITY_CLAIMS[difference_direction(pss)]} (PSS {pss.format_difference()}{tested})"


_COMPARISON_NOTE = (
    "Second − first, paired by persona and question, with 95 % intervals over {questions} questions. p: two-sided permutation "
    "test that swaps the models question by question, not corrected over the measures. Personas: sign-flip test, Holm-corrected "
    "over the personas."
)


class CharacterComparison(NamedTuple):
    """The runs of open-ended questions of the two models whose stability runs are compared, and other − first in the measures of
    their answers."""

    first: ModelRuns
    other: ModelRuns
    differences: Comparison

    @property
    def rows(self) -> list[tuple[str, str, str, str]]:
        """For each measure that both models have: its name, both values, and the difference or why there is none."""
        rows = []
        for measure in character_measures_of(OPEN_ENDED_KIND):
            first, other = (model.character_estimate(measure.name) for model in (self.first, self.other))
            difference = self.differences.estimate(measure.name)
            reasons = "; ".join(self.differences.reasons_for(measure.name))
            if first is not None and other is not None:
                shown = reasons if difference is None else difference.format_difference()
                rows.append((measure.label, str(first), str(other), shown))
        return rows


class RunComparison(NamedTuple):
    """Two stability runs and their paired comparison: the content of both tables. `characters`: the comparison of the fidelity
    runs in the same folders."""

    first: Run
    other: Run
    result: PairedComparison
    right_in_character: MeasureDifference | None = None
    """None unless both runs ask for it, with the same classifier, and their answers allow it."""
    characters: CharacterComparison | None = None
    contexts: Mapping[str, PairedComparison] = MappingProxyType({})
    """The same comparison within each context, for runs with contexts."""

    @property
    def labels(self) -> tuple[str, str]:
        runs = (self.first, self.other)
        named = [model_label(run, runs) for run in runs]
        one, two = named if named[0] != named[1] else [str(run.path) for run in runs]
        return one, two

    @property
    def cut_off(self) -> tuple[CutOffCounts, CutOffCounts]:
        """The answers of each run that were cut off at the token limit."""
        return self.first.cut_off, self.other.cut_off


def run_compare(config: CompareConfig) -> None:
    """Run `permix compare`: print both tables, and write them to `config.out` when it is set. Raises ConfigError unless there are
    two runs.
    """
    _require_two_paths(config)
    compared = compare_runs(*config.runs, seed=config.seed, resamples=config.resamples)
    result = compared.result.model_dump(mode="json") | _contexts_json(compared)
    add_result(claim=plain_text(comparison_claim(compared)), comparison=result)
    console = Console()
    for line in (comparison_claim(compared), *comparison_cautions(compared)):
        console.print(plain_text(line), markup=False, highlight=False, soft_wrap=not console.is_terminal)
    for one in terminal_comparison_tables(compared):
        console.print(one)
    console.print(_COMPARISON_NOTE.format(questions=compared.result.n_questions), markup=False, highlight=False)
    if config.out is not None:
        write_text(config.out / "comparison.md", comparison_markdown(compared))
        paths = {"first": str(compared.first.path), "other": str(compared.other.path)}
        cut_off = dict(zip(paths, (one.model_dump(mode="json") for one in compared.cut_off), strict=True))
        in_character = compared.right_in_character
        shares = {} if in_character is None else {"right_in_character": in_character.model_dump(mode="json")}
        content = paths | compared.result.model_dump(mode="json") | shares | {"cut_off": cut_off} | _contexts_json(compared)
        if compared.characters is not None:
            content["characters"] = compared.characters.differences.model_dump(mode="json")
        write_json(config.out / "comparison.json", content)
        add_result(paths={"comparison": config.out / "comparison.json", "report": config.out / "comparison.md"})
        console.print(str(config.out / "comparison.md"), markup=False, highlight=False, soft_wrap=True)


def compare_runs(first: Path, other: Path, *, seed: int = 0, resamples: int = 2000) -> RunComparison:
    """Compare two stability runs, or two folders that hold one stability run each.

    Raises DataError when a path does not hold exactly one stability run, or when the two runs cannot be compared.
    """
    one, two = _find_stability_run(first), _find_stability_run(other)
    grid, other_grid = read_stability_grid(one.path), read_stability_grid(two.path)
    if reasons := run_incompatibilities(one, two, grid, other_grid):
        why = "; ".join(escape_control(reason[:1].lower() + reason[1:]) for reason in reasons)
        raise DataError(f"{one.path} and {two.path} cannot be compared: {why}")
    grids, other_grids = read_context_grids(one.path, one.grid_results), read_context_grids(two.path, two.grid_results)
    contexts = {id: _compare_grids(grids[id], other_grids[id], seed, resamples) for id in grids}
    return RunComparison(
        one, two, _compare_grids(grid, other_grid, seed, resamples),
        right_in_character=_compare_right_in_character(one, two, seed, resamples),
        characters=_compare_characters(first, other), contexts=contexts,
    )  # fmt: skip


def _compare_grids(grid: StabilityGrid, other_grid: StabilityGrid, seed: int, resamples: int) -> PairedComparison:
    scores = (aligned_sample_means(grid, one_grid) for one_grid in (grid, other_grid))
    rows = [np.vstack([under_P_Q, without_Q[None]]) for under_P_Q, without_Q in scores]
    return compare_models_paired(rows[0], rows[1], grid.persona_ids, seed=seed, resamples=resamples)


def _contexts_json(comparison: RunComparison) -> dict[str, Any]:
    """The comparison within each context, by its name, under the key "contexts"; empty for runs without contexts."""
    found = {id: one.model_dump(mode="json") for id, one in comparison.contexts.items()}
    return {"contexts": found} if found else {}


def _compare_right_in_character(first: Run, other: Run, seed: int, resamples: int) -> MeasureDifference | None:
    if not (first.config.get("right_in_character") and other.config.get("right_in_character")):
        return None
    if _in_character_mismatches(first, other):
        return None
    try:
        found = [
            measure_right_in_character(run.path, find_reference_run(run, "character_reference"), run.grid_results)
            for run in (first, other)
        ]
    except DataError:
        return None
    if _persona_mismatches(*found):
        return None
    return compare_right_in_character(found[0], found[1], seed=seed, resamples=resamples)


def _compare_characters(first: Path, other: Path) -> CharacterComparison | None:
    """The comparison of the runs of open-ended questions in two folders; None unless each folder holds exactly one."""
    found = [[run.path for run in find_runs(path) if run.kind == "fidelity"] for path in (first, other)]
    if any(len(paths) != 1 for paths in found):
        return None
    one, two = (collect_models(paths)[0] for paths in found)
    return CharacterComparison(one, two, compare_models(two, one))


def _require_two_paths(config: CompareConfig) -> None:
    if len(config.runs) != 2:
        raise ConfigError(f"runs: compare takes two runs, not {len(config.runs)}: permix compare FIRST SECOND [--out DIR]")


def require_two_runs(config: CompareConfig) -> None:
    """Raise ConfigError unless there are two paths, and DataError where a path does not hold exactly one stability run."""
    _require_two_paths(config)
    for path in config.runs:
        _find_stability_run(path)


def _find_stability_run(path: Path) -> Run:
    whole = [run for run in find_runs(path) if run.stage == "stability" and run.strategy in {"none", *WHOLE_GRID_STRATEGIES}]
    if len(whole) != 1:
        paths = ", ".join(str(run.path) for run in whole) or "no such run"
        raise DataError(f"{path}: give one stability run; found: {paths}")
    return whole[0]


def comparison_claim(comparison: RunComparison) -> str:
    """The conclusion as one sentence in Markdown: stability, and the mean accuracy over the personas."""
    one, two = map(table.md_label, comparison.labels)
    counts = [_count_persona_scores(run) for run in (comparison.first, comparison.other)]
    if any(scored < MIN_SCORED_SHARE * asked for scored, asked in counts):
        scored, asked = map(sum, zip(*counts, strict=True))
        ratio = format_ratio(scored, asked)
        return f"{two} against {one}: not compared, because the runs are incomplete ({ratio} persona cells scored)."
    measures = {measure.name: measure for measure in comparison.result.measures}
    (pss, pss_p), (mean, mean_p) = ((measures[name].difference, measures[name].p) for name in ("pss", "mean"))
    stable = "PSS has no value in one of the runs, so stability is not compared"
    if pss.low is not None:
        stable = stability_claim(pss, pss_p)
    direction, name = difference_direction(mean), STABILITY_MEASURES["mean"].sentence_label
    tested = "" if mean_p is None else f", {table.p_text(mean_p)}"
    accuracy = f"{name} {direction} ({mean.format_difference()}{tested})"
    return f"{two} against {one}: {stable}; {accuracy}."


def comparison_cautions(comparison: RunComparison) -> list[str]:
    """What a reader must know about the two runs, in Markdown: cells without a score, and answers that were cut off."""
    cautions = []
    for label, run in zip(comparison.labels, (comparison.first, comparison.other), strict=True):
        scored, asked = _count_persona_scores(run)
        if scored < asked:
            cautions.append(f"**Incomplete**: {table.md_label(label)} has {format_ratio(scored, asked)} persona cells scored.")
        if (warning := run.cut_off_warning) is not None:
            cautions.append(f"**Cut off**: {table.md_label(label)}: {warning}.")
        if (note := conflicting_answers_note(run.cells)) is not None:
            cautions.append(f"**Answered twice**: {table.md_label(label)}: {note}.")
    return cautions


def _count_persona_scores(run: Run) -> tuple[int, int]:
    """How many cells with a persona have a score, and how many were asked."""
    correct_P_Q_S = read_stability_grid(run.path, run.grid_results).correct_P_Q_S
    return int((~np.isnan(correct_P_Q_S)).sum()), correct_P_Q_S.size


def terminal_comparison_tables(comparison: RunComparison) -> list[TerminalTable]:
    """The tables for a terminal: the measures, the contexts of runs with contexts, and the personas, with the largest loss
    of accuracy first.
    """
    labels = [Text(one_line(label)) for label in comparison.labels]
    tables = []
    parts = {
        "": [*_measure_rows(comparison), *_character_rows(comparison)],
        "context": _context_rows(comparison),
        "persona": _persona_rows(comparison.result),
    }
    for heading, lines in ((heading, lines) for heading, lines in parts.items() if lines or heading != "context"):
        shown = terminal_table()
        shown.add_column(heading)
        for column in (*labels, Text("second − first"), Text("p")):
            shown.add_column(column, overflow="fold")
        for line in lines:
            shown.add_row(*(Text(escape_control(cell)) for cell in line))
        tables.append(shown)
    return tables


def comparison_markdown(comparison: RunComparison) -> str:
    """The tables as a Markdown document."""
    one, two = map(table.md_label, comparison.labels)
    contexts = [[table.md_label(line[0]), *line[1:]] for line in _context_rows(comparison)]
    parts = [
        f"# {two} against {one}",
        f"**{comparison_claim(comparison)}**",
        "\n>\n".join(f"> {line}" for line in comparison_cautions(comparison)),
        _COMPARISON_NOTE.format(questions=comparison.result.n_questions),
        markdown_table(["", one, two, "second − first", "p"], [*_measure_rows(comparison), *_character_rows(comparison)]),
        markdown_table(["context", one, two, "second − first", "p"], contexts) if contexts else "",
        markdown_table(
            ["persona", one, two, "second − first", "p"],
            [[table.md_label(line[0]), *line[1:]] for line in _persona_rows(comparison.result)],
        ),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _measure_rows(comparison: RunComparison) -> list[Sequence[str]]:
    measures, in_character = comparison.result.measures, comparison.right_in_character
    label = CHARACTER_MEASURES["right_in_character"].label
    cut_off = (format_ratio(one.n_cut_off, one.n_known) if one.n_known else MISSING_TEXT for one in comparison.cut_off)
    return [
        *((STABILITY_MEASURES[one.name].label, *_comparison_cells(one, one.p)) for one in measures),
        *(() if in_character is None else ((label, *_comparison_cells(in_character, in_character.p)),)),
        ("cut off, of answered", *cut_off, MISSING_TEXT, MISSING_TEXT),
    ]


def _character_rows(comparison: RunComparison) -> list[Sequence[str]]:
    rows = comparison.characters.rows if comparison.characters is not None else []
    return [(*map(one_line, row), MISSING_TEXT) for row in rows]


_CONTEXT_MEASURES = ("mean", "pss")


def _context_rows(comparison: RunComparison) -> list[Sequence[str]]:
    """Mean and PSS within each context; empty for runs without contexts."""
    return [
        (f"{id}, {STABILITY_MEASURES[measure.name].label}", *_comparison_cells(measure, measure.p))
        for id, one in comparison.contexts.items()
        for measure in one.measures
        if measure.name in _CONTEXT_MEASURES
    ]


def _persona_rows(result: PairedComparison) -> list[Sequence[str]]:
    ordered = sorted(result.personas, key=lambda one: (one.difference.value is None, one.difference.value or 0.0, one.id))
    return [(one.id, *_comparison_cells(one, one.holm_p)) for one in ordered]


def _comparison_cells(difference: MeasureDifference | PersonaDifference, p: float | None) -> tuple[str, ...]:
    signed = MISSING_TEXT if difference.difference.value is None else difference.difference.format_difference()
    values = (true_minus(table.format_decimal(value)) for value in (difference.first, difference.other))
    return (*values, signed, table.format_p_value(p))


def compare_stability_grids(grid: StabilityGrid, against: StabilityGrid, seed: int, resamples: int) -> dict[str, Estimate]:
    """`grid` − `against` in every measure of the view "differences", paired by persona and question.

    Both models use the same bootstrap draws of questions. `seed` and `resamples` are those of the bootstrap.
    """
    means, means_against = (aligned_sample_means(against, each) for each in (grid, against))
    return stability_differences([means], [means_against], seed, resamples)


class QuestionShares(Protocol):
    """A measure that is a share of answers: identifiability or recognisability."""

    @property
    def right_by_question(self) -> Mapping[str, tuple[float, int]]:
        """For each question's text, how many answers count as right, and how many were scored."""


def question_share_difference(
    shares: Sequence[QuestionShares],
    against: Sequence[QuestionShares],
    seed: int,
    resamples: int,
    change: statistics.Change = np.subtract,
) -> Estimate:
    """`shares` − `against`, or another change, in a share of answers, where each is the mean over its models.

    All models use the same bootstrap draws of questions; only questions that every model answered count. n is the number of
    questions. The interval of shares − against is that of `bootstrap_paired`.
    """
    questions = sorted(set.intersection(*(set(one.right_by_question) for one in (*shares, *against))))
    if not questions:
        return Estimate(value=None, n=0)

    def measures(counts_R_Q: Array) -> dict[str, Array]:
        share, share_against = (mean_question_share(models, questions, counts_R_Q) for models in (shares, against))
        return {"difference": change(share, share_against)}

    drawn = statistics.bootstrap(measures, len(questions), np.random.default_rng(seed), resamples, block_size=resamples)
    value, replicate_R = drawn["difference"]
    if change is not np.subtract:
        return statistics.bootstrap_estimate(float(value), replicate_R, len(questions))
    share_Q, against_Q = (mean_question_share(models, questions, np.eye(len(questions))) for models in (shares, against))
    return statistics.bootstrap_paired(float(value), replicate_R, share_Q - against_Q)


def mean_question_share(models: Sequence[QuestionShares], questions: Sequence[str], counts_R_Q: Array) -> Array:
    """The share of answers to these questions that are attributed to their persona, as the mean over the models [R].

    `counts_R_Q` says how often each bootstrap resample drew each question.
    """
    tables = [np.array([one.right_by_question[question] for question in questions], dtype=float) for one in models]
    shares = [counts_R_Q @ right_Q / (counts_R_Q @ answered_Q) for right_Q, answered_Q in (table.T for table in tables)]
    return np.asarray(np.mean(shares, axis=0))


def stability_incompatibilities(first: ModelRuns, other: ModelRuns) -> tuple[str, ...]:
    """Why two models cannot be compared in accuracy or PSS; empty when they can be compared, or when one was
    not measured.
    """
    if first.grid is None or other.grid is None:
        return ()
    return run_incompatibilities(first.runs["stability"], other.runs["stability"], first.grid, other.grid)


def run_incompatibilities(
    first_run: Run, other_run: Run, first_grid: StabilityGrid, other_grid: StabilityGrid
) -> tuple[str, ...]:
    """Why the scores of two stability runs cannot be compared; empty when they can be."""
    first_ids, other_ids = ((set(grid.persona_ids), set(grid.question_ids)) for grid in (first_grid, other_grid))
    return _setup_mismatches(first_run, other_run) or (() if first_ids == other_ids else ("Not the same personas and questions",))


def identifiability_incompatibilities(first: ModelRuns, other: ModelRuns) -> tuple[str, ...]:
    """Why two models cannot be compared in identifiability; empty when they can be compared, or when one was
    not measured.
    """
    if first.identifiability is None or other.identifiability is None:
        return ()
    one, two = first.runs["fidelity"], other.runs["fidelity"]
    training_runs = [(find_reference_run(run) or run.path).resolve() for run in (one, two)]
    return _setup_mismatches(one, two) + (
        () if training_runs[0] == training_runs[1] else ("Not the same classifier (trained on other answers)",)
    )


def right_in_character_incompatibilities(first: ModelRuns, other: ModelRuns) -> tuple[str, ...]:
    """Why two models cannot be compared in right and in character; empty when they can be compared, or when one was not
    measured.
    """
    one, two = first.right_in_character, other.right_in_character
    if one is None or two is None:
        return ()
    return _in_character_mismatches(first.runs["stability"], other.runs["stability"]) + _persona_mismatches(one, two)


def _persona_mismatches(one: RightInCharacter, two: RightInCharacter) -> tuple[str, ...]:
    """Why the classifiers of two results do not choose among the same personas; empty when they do."""
    same = {persona.id for persona in one.personas} == {persona.id for persona in two.personas}
    return () if same else ("Not the same personas have enough answers for right and in character",)


def _in_character_mismatches(one: Run, two: Run) -> tuple[str, ...]:
    training_runs = [(find_reference_run(run, "character_reference") or run.path).resolve() for run in (one, two)]
    return _setup_mismatches(one, two) + (
        () if training_runs[0] == training_runs[1] else ("Not the same classifier of character (trained on other answers)",)
    )


def recognisability_incompatibilities(first: ModelRuns, other: ModelRuns) -> tuple[str, ...]:
    """Why two models cannot be compared in recognisability; empty when they can be compared, or when one was not
    measured.
    """
    if first.recognisability is None or other.recognisability is None:
        return ()
    embedders = [one.recognisability.embedder for one in (first, other) if one.recognisability is not None]
    return _setup_mismatches(first.runs["fidelity"], other.runs["fidelity"]) + (
        () if embedders[0] == embedders[1] else (f"Not the same embedder ({embedders[0]} against {embedders[1]})",)
    )


def compare_judge_scores(model: ModelRuns, against: ModelRuns) -> tuple[tuple[JudgeScoreDifference, ...], tuple[str, ...]]:
    """`model` − `against` in judges' scores for each kind of run with the same setup for both models, and the reasons for
    the other kinds.
    """
    differences: list[JudgeScoreDifference] = []
    reasons: list[str] = []
    for kind in FIDELITY_RUN_KINDS:
        run, run_against = model.runs.get(kind), against.runs.get(kind)
        if run is None or run_against is None or run.judged_run is None or run_against.judged_run is None:
            continue
        judges, judges_against = run.judged_run.results_by_judge, run_against.judged_run.results_by_judge
        shared = [name for name in judges_against if name in judges]
        reasons += [reason for name in shared for reason in judge_incompatibilities(judges_against[name], judges[name])]
        if mismatches := _setup_mismatches(run_against, run, compare_messages=kind != INTERVIEW_KIND):
            reasons += mismatches
        else:
            differences += judge_score_differences(run.judged_run, run_against.judged_run)
    return tuple(differences), tuple(dict.fromkeys(reasons))


def _setup_mismatches(first: Run, other: Run, *, compare_messages: bool = True) -> tuple[str, ...]:
    """Why two runs do not have the same setup, from their records and sampling settings; empty when they have.

    `compare_messages`: whether the messages must be equal too. The messages of an interview contain the model's own earlier
    answers, so they always differ between models.
    """
    shared = first.cell_summaries.keys() & other.cell_summaries.keys()
    question_ids, persona_ids = (
        [frozenset(getattr(key, name) for key in run.cell_summaries) for run in (first, other)]
        for name in ("question_id", "persona_id")
    )
    task, verifier, sampling = ([setup(run) for run in (first, other)] for setup in (_task, _verifier_identity, _sampling_setup))
    checks = (
        ("Cells were allocated adaptively for one model (budget, precision)", bool(first.rounds or other.rounds)),
        (f"Not the same task{_values_against(*task)}", task[0] != task[1]),
        (f"Not scored by the same verifier{_values_against(*verifier)}", verifier[0] != verifier[1]),
        (f"Not the same questions{_counts_against(*question_ids)}", question_ids[0] != question_ids[1]),
        (f"Not the same personas{_counts_against(*persona_ids)}", persona_ids[0] != persona_ids[1]),
        (
            "Not asked in the same words",
            set(first.grid_results.templates) != set(other.grid_results.templates)
            or set(first.grid_results.contexts) != set(other.grid_results.contexts)
            or (not compare_messages and _interview_setup(first) != _interview_setup(other))
            or (
                compare_messages
                and any(first.cell_summaries[key].messages_hash != other.cell_summaries[key].messages_hash for key in shared)
            ),
        ),
        (f"Not the same sampling{_values_against(*sampling)}", sampling[0] != sampling[1]),
    )
    return tuple(reason for reason, differs in checks if differs)


def _values_against(first: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """The fields that differ with both values, as in " (max_new_tokens 16 against 256)"; a value is one short line."""
    names = [name for name in dict.fromkeys([*first, *other]) if first.get(name) != other.get(name)]
    values = (f"{name} {_short_value(first.get(name))} against {_short_value(other.get(name))}".strip() for name in names)
    return f" ({', '.join(values)})" if names else ""


def _short_value(value: Any) -> str:
    return "unknown" if value is None else one_line(str(value))


def _counts_against(first: Collection[str | None], other: Collection[str | None]) -> str:
    """The numbers of ids of both runs and of those in common, as in " (20 against 19, 19 in common)". None, which is no
    persona, is named instead of counted.
    """
    one, two = (set(ids) - {None} for ids in (first, other))
    alone = "; only one was asked without a persona" if (None in first) != (None in other) else ""
    return f" ({format_count(len(one))} against {format_count(len(two))}, {format_count(len(one & two))} in common{alone})"


def _task(run: Run) -> dict[str, Any]:
    return {"": _identity_field(run, "task")}


def _interview_setup(run: Run) -> tuple[Any, Any]:
    """The setup of an interview: the persona's template, and the interview's settings and questions.

    When another model asked the questions, the run's path takes their place: two such interviews never have the same questions.
    """
    asked = run.grid_results.question_ids if run.config.get("interviewer", {}).get("name", "script") == "script" else run.path
    return _identity_field(run, "template"), (_identity_field(run, "interview"), asked)


def _identity_field(run: Run, name: str) -> Any:
    return run.provenance.get("identity", {}).get(name)


def _verifier_identity(run: Run) -> dict[str, Any]:
    """The program that scores answers, with its version, because the version can change a verdict.

    Empty for open-ended answers, which have no scorer. An imported run may have been scored by another program.
    """
    if run.stage != "stability":
        return {}
    judge = _identity_field(run, "judge") or "permix"
    if not judge.startswith("permix"):
        return {"": judge, "version": None}
    # Runs without a version were scored by math-verify, whose version was recorded among the packages.
    version = _identity_field(run, "verifier") or run.provenance.get("packages", {}).get("math-verify")
    return {"": judge, "version": version}


def _sampling_setup(run: Run) -> dict[str, Any]:
    return {**(run.config.get("sampling") or {}), "samples": run.config.get("samples")}


def aligned_sample_means(first: StabilityGrid, other: StabilityGrid) -> tuple[Array, Array]:
    """The sample means of `other` [P, Q], and the means of its baseline [Q], with personas and questions in the order of
    `first`.
    """
    persona_at = {id: place for place, id in enumerate(other.persona_ids)}
    question_at = {id: place for place, id in enumerate(other.question_ids)}
    rows, columns = [persona_at[id] for id in first.persona_ids], [question_at[id] for id in first.question_ids]
    under_P_Q_S, without_Q_S = (np.asarray(scores, dtype=float) for scores in (other.correct_P_Q_S, other.baseline_Q_S))
    return statistics.mean_over_samples(under_P_Q_S[np.ix_(rows, columns)]), statistics.mean_over_samples(without_Q_S[columns])
