"""The differences between the arms of a study in one evaluation, as records and as a table."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from permix.judges.summary import score_change_over_seeds
from permix.metrics import statistics
from permix.metrics.measures import MEASURE_VIEWS, character_measures_of, measures_in
from permix.metrics.training_seeds import SeedDifference
from permix.rendering.table import (
    NOT_SIGNIFICANT,
    Table,
    TableCell,
    difference_cell,
    difference_direction,
    estimate_cell,
    label_cell,
    p_text,
    tabulate,
    trusted_cell,
)
from permix.report.comparisons import compare_judge_scores
from permix.report.judges import OPEN_ENDED_KIND, RUN_KIND_OF_FIDELITY, UNTRUSTED_MARK, score_name
from permix.report.methods import ReportMethod
from permix.report.pooled import (
    ComparedSeeds,
    MethodDifference,
    PairedModels,
    PooledContext,
    compare_stability,
    method_difference,
    pair_models,
)
from permix.report.tables import compared_seeds_text, difference_label
from permix.types import Estimate

JUDGE_SCORE_MEASURE = "score"
"""The measure of a headline that is a judge's mean score."""

INTERVAL_INCLUDES_ZERO = "the interval includes 0"

SEEDS_NOT_COVERED = "seeds not covered"


class ArmDifference(NamedTuple):
    """The change from one arm to another in one evaluation. `scores`: of each judge, by name of its score and judge.

    `over_seeds` has the measures whose interval over questions and training seeds is known. `seeds` has the training seeds behind
    each measure. `n_seeds` counts the models that are compared: the largest numbers of all measures. `context`: the one context
    of the evaluation that is compared; empty for all.
    """

    arm: str
    against: str
    evaluation: str
    n_seeds: tuple[int, int]
    measures: Mapping[str, Estimate]
    scores: Mapping[str, Estimate]
    reasons: tuple[str, ...]
    over_seeds: Mapping[str, SeedDifference]
    seeds: Mapping[str, ComparedSeeds]
    context: str = ""

    def of_measure(self, name: str) -> Estimate | None:
        """The change of a headline's measure, over training seeds too if that is known; of several judges that of the first."""
        name = self._name_of(name)
        found = self.over_seeds.get(name)
        return {**self.measures, **self.scores}.get(name) if found is None else found.over_seeds

    def covers_seeds(self, name: str) -> bool:
        """Whether `of_measure` has an interval over training seeds too."""
        return self._name_of(name) in self.over_seeds

    def _name_of(self, name: str) -> str:
        """The name of a headline's measure here; empty for a score where no judge has one."""
        return next(iter(self.scores), "") if name == JUDGE_SCORE_MEASURE else name

    def seeds_text(self, name: str) -> str:
        """Which seeds are behind a measure: "3 of each, paired; 5 further seeds of rlvr left out"."""
        return compared_seeds_text(self.seeds[name], self.arm, self.against)

    @property
    def seeds_texts(self) -> list[str]:
        """The different texts of all measures."""
        counts = f"{self.n_seeds[0]} and {self.n_seeds[1]}"
        return list(dict.fromkeys(map(self.seeds_text, self.seeds))) or [counts]

    def to_json(self) -> dict[str, Any]:
        values = {name: one.model_dump(mode="json") for name, one in {**self.measures, **self.scores}.items()}
        context = {"context": self.context} if self.context else {}
        return context | {
            "arm": self.arm, "against": self.against, "evaluation": self.evaluation, "n_seeds": list(self.n_seeds),
            "measures": values, "reasons": list(self.reasons),
            "over_seeds": {name: one.over_seeds.model_dump(mode="json") for name, one in self.over_seeds.items()},
            "p": {name: one.p for name, one in self.over_seeds.items()},
            "seeds": {
                name: one.model_dump(mode="json") | {"text": self.seeds_text(name)} for name, one in self.seeds.items()
            },
        }  # fmt: skip


def compare_arms(
    arm: ReportMethod,
    against: ReportMethod,
    evaluation: str,
    kind: str,
    change: statistics.Change = np.subtract,
    difference: MethodDifference | None = None,
) -> ArmDifference:
    """The change from `against` to `arm` in the evaluation that is the run of this kind of their models.

    `difference`: the result of `method_difference` for the two, where it is known.
    """
    measures: dict[str, Estimate] = {}
    scores: dict[str, Estimate] = {}
    over_seeds: dict[str, SeedDifference] = {}
    seeds: dict[str, ComparedSeeds] = {}
    reasons: tuple[str, ...] = ()
    measured = [[model for model in method.models if kind in model.runs] for method in (arm, against)]
    if kind in ("stability", OPEN_ENDED_KIND):
        difference = difference or method_difference(arm, against, change)
        if kind == "stability":
            measures = dict(stability_measures(difference))
            reasons = (*difference.reasons, *difference.right_in_character_reasons)
        else:
            measures, reasons = dict(character_measures(difference)), difference.fidelity_reasons
        over_seeds = {name: difference.over_seeds[name] for name in measures if difference.covers_seeds(name)}
        seeds = {name: difference.seeds_of(name) for name in measures}
    if kind in RUN_KIND_OF_FIDELITY.values() and all(measured):
        pairs = pair_models(measured[0], measured[1])
        score_changes, score_reasons = _score_changes(pairs, kind, change)
        reasons = (*reasons, *score_reasons)
        scores = {name: each.over_questions for name, each in score_changes.items()}
        over_seeds |= {name: each for name, each in score_changes.items() if each.over_seeds.low is not None}
        seeds |= dict.fromkeys(scores, pairs.seeds)
    n_seeds = (len(measured[0]), len(measured[1]))
    if seeds:
        n_seeds = (max(each.n[0] for each in seeds.values()), max(each.n[1] for each in seeds.values()))
    return ArmDifference(
        arm.name, against.name, evaluation, n_seeds, measures, scores, tuple(dict.fromkeys(reasons)), over_seeds, seeds
    )


def compare_arms_by_context(
    arm: Mapping[str, ReportMethod], against: Mapping[str, ReportMethod], evaluation: str
) -> Iterator[ArmDifference]:
    """The change from one arm to another in each context of a stability evaluation; arms as of `divide_by_context`."""
    for context, method in arm.items():
        if context in against:
            found = compare_stability(method.models, against[context].models)
            measures = {**found.measures, **_seed_measures(found.measures, found.over_seeds)}
            over_seeds = {name: each for name, each in found.over_seeds.items() if each.over_seeds.low is not None}
            yield ArmDifference(
                method.name, against[context].name, evaluation, found.seeds.n, measures, {}, found.reasons, over_seeds,
                dict.fromkeys(measures, found.seeds), context,
            )  # fmt: skip


def _seed_measures(measures: Mapping[str, Estimate], over_seeds: Mapping[str, SeedDifference]) -> dict[str, Estimate]:
    """The differences over questions of the measures of stability that have only an entry over seeds."""
    names = [name for name in MEASURE_VIEWS["seed_differences"] if name in over_seeds and name not in measures]
    return {name: over_seeds[name].over_questions for name in names}


def stability_measures(difference: MethodDifference) -> Iterator[tuple[str, Estimate]]:
    """The differences of a stability evaluation by name."""
    yield from difference.measures.items()
    yield from _seed_measures(difference.measures, difference.over_seeds).items()
    yield from _character_differences(difference, "stability")


def character_measures(difference: MethodDifference) -> Iterator[tuple[str, Estimate]]:
    """The differences of an evaluation of characters by open-ended questions, by name."""
    yield from _character_differences(difference, OPEN_ENDED_KIND)


def _character_differences(difference: MethodDifference, kind: str) -> Iterator[tuple[str, Estimate]]:
    for measure in character_measures_of(kind):
        if (estimate := difference.estimate(measure.name)) is not None:
            yield measure.name, estimate


def _score_changes(
    pairs: PairedModels, kind: str, change: statistics.Change
) -> tuple[dict[str, SeedDifference], tuple[str, ...]]:
    """The change of each judge's mean score over personas, by its name, and why scores cannot be compared."""
    runs, runs_against = ([model.runs[kind].judged_run for model in models] for models in (pairs.models, pairs.against))
    judged, judged_against = ([run for run in each if run is not None] for each in (runs, runs_against))
    if len(judged) < len(runs) or len(judged_against) < len(runs_against):
        return {}, ()
    first, *others = pairs.all_models
    reasons = tuple(reason for model in others for reason in compare_judge_scores(model, first)[1])
    if reasons:
        return {}, reasons
    changes, settings_of = {}, judged_against[0]
    for label, first_results in settings_of.results_by_judge.items():
        if all(label in run.results_by_judge for run in (*judged, *judged_against)):
            is_trusted = all(run.judges[label].discriminates_persona for run in (*judged, *judged_against))
            results, results_against = ([run.results_by_judge[label] for run in each] for each in (judged, judged_against))
            mark = "" if is_trusted else f" {UNTRUSTED_MARK}"
            changes[f"{score_name(kind, first_results.rubrics)}, judge {label}{mark}"] = score_change_over_seeds(
                results, results_against, pairs.seeds.pairing,
                seed=settings_of.seed, resamples=settings_of.resamples, change=change,
            )  # fmt: skip
    return changes, ()


def arm_difference_table(name: str, rows: Sequence[ArmDifference]) -> Table:
    """A row for each pair of arms, and each context if there are any, and a column for each measure.

    A note has the interval over questions and seeds with its p, and says where an interval includes 0.
    """
    names = list(dict.fromkeys(key for one in rows for key in (*one.measures, *one.scores)))
    by_context = any(one.context for one in rows)
    lines = [
        [
            *([label_cell(one.context)] if by_context else []),
            label_cell(one.arm),
            label_cell(one.against),
            TableCell("; ".join(one.seeds_texts)),
            *(
                _difference_cell(
                    {**one.measures, **one.scores}.get(key),
                    one.over_seeds.get(key),
                    "personas" if key in one.scores else "questions",
                )
                for key in names
            ),
        ]
        for one in rows
    ]
    labels = [*(["context"] if by_context else []), "arm", "against"]
    return tabulate(name, [*labels, "seeds", *map(difference_label, names)], lines, n_label_columns=len(labels))


def pooled_context_table(name: str, rows: Mapping[tuple[str, str], PooledContext]) -> Table:
    """A row for each context and arm (the keys of `rows`): means over the arm's training seeds."""
    measures = measures_in("contexts")
    lines = [
        [
            label_cell(context),
            label_cell(arm),
            trusted_cell(str(one.n_seeds), number=one.n_seeds),
            *(_pooled_cell(one.measures.get(measure.name), one.over_seeds.get(measure.name)) for measure in measures),
        ]
        for (context, arm), one in rows.items()
    ]
    headings = ["context", "arm", "models", *(measure.label for measure in measures)]
    return tabulate(name, headings, lines, n_label_columns=2)


def _pooled_cell(pooled: Estimate | None, over_seeds: Estimate | None) -> TableCell:
    cell = estimate_cell(pooled)
    if not cell.note or over_seeds is None or over_seeds.low is None:
        return cell
    return cell._replace(note=f"{cell.note}; over questions and seeds {str(over_seeds).partition(' ')[2]}")


def _difference_cell(difference: Estimate | None, found: SeedDifference | None, drawn: str) -> TableCell:
    """`drawn`: what the interval of the difference draws, questions or personas."""
    cell = difference_cell(difference)
    if not cell.note:
        return cell
    notes = [SEEDS_NOT_COVERED]
    if found is not None:
        ends = found.over_seeds.format_difference().partition(" ")[2]
        notes = [f"over {drawn} and seeds {ends}, {p_text(found.p)}"]
    if difference_direction(difference if found is None else found.over_seeds) == NOT_SIGNIFICANT:
        notes.append(INTERVAL_INCLUDES_ZERO)
    return cell._replace(note="; ".join([cell.note, *notes]))
