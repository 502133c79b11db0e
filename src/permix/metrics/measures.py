"""Declare every measure once: of stability its name, its formula, its kind of interval, and where it is shown; of character its
names and what it counts.

Contract: a measure that is added to `STABILITY_MEASURES` and `MEASURE_VIEWS` is computed, written to JSON and shown in every
table, sentence and page of its views; no other module names it. Both dicts are read when they are needed, never at import.
Formulas are pure functions of arrays, with axes as in `permix.metrics.statistics`.

The p of the permutation test and the minimum detectable effect are not measures of a model: they are fields of
`StabilitySummary`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
from pydantic import SerializerFunctionWrapHandler, model_serializer, model_validator

from permix.metrics import statistics
from permix.metrics.statistics import Array
from permix.types import Estimate, Record

MeasureEstimator = Literal["bootstrap", "share", "paired", "posterior", "hull", "observed", "permuted"]
"""How the value and the interval of a measure are computed:

bootstrap: the observed value, with a bootstrap interval over questions
share: the same for a mean of scores in [0, 1] (`statistics.bootstrap_share`)
paired: the same for mean − no persona (`statistics.bootstrap_paired`)
posterior: median and middle 95 % of the draws of true accuracies (`permix.metrics.posterior`)
hull: the observed value, with an interval that contains the bootstrap's and that of the draws
observed: the observed value, without an interval
permuted: mean and middle 95 % over permutations of the persona labels within each question

A difference of two models, and a mean over training seeds, uses the draws for posterior and the bootstrap for all others.
"""

ScoredQuestions = Literal["personas", "baseline", "both"]
"""The questions that n counts: with a score of some persona ("personas"), with a baseline score ("baseline"), or with both."""

MeasureView = Literal[
    "main_table", "table_row", "templates", "contexts", "comparison", "differences", "seed_differences", "methods",
    "method_table", "dev_eval", "dev_eval_log", "dev_eval_card", "dev_eval_curves", "live_page",
]  # fmt: skip


@dataclass(frozen=True)
class ResampledScores:
    """Scores of the personas that have any score, and the accuracies in R resamples of the questions.

    Question q is drawn counts_R_Q[r, q] times in resample r.
    """

    mean_P_Q: Array
    counts_R_Q: Array
    halves_K_Q: Array
    """Random halves of the questions, the same in every resample."""
    accuracy_R_P: Array
    baseline_R: Array
    """Accuracy without persona; NaN without a baseline."""

    @cached_property
    def persona_sd_R(self) -> Array:
        """`statistics.persona_sd`, which two measures need."""
        return statistics.persona_sd(self.mean_P_Q, self.counts_R_Q)


@dataclass(frozen=True)
class StabilityMeasure:
    """One measure.

    `formula` maps accuracy_R_P and baseline_R to value_R, for resamples and for draws. `scores_formula` is for a measure that
    accuracies do not determine; resamples use it instead of `formula`. `question_formula` maps mean_P_Q and baseline_Q to
    value_Q, for a measure that is a mean over questions. `swapped_formula` gives the same values of two models that swap their
    scores on some questions (`statistics.swapped_pss_crossfit` has the arguments), where that is much faster.
    """

    name: str
    """Key in JSON."""
    label: str
    """Heading of its column, or name of its line, in tables."""
    estimator: MeasureEstimator
    formula: Callable[[Array, Array], Array] | None = None
    scores_formula: Callable[[ResampledScores], Array] | None = None
    question_formula: Callable[[Array, Array], Array] | None = None
    swapped_formula: Callable[[Array, Array, Array, Array, int], tuple[Array, Array]] | None = None
    questions: ScoredQuestions = "personas"
    null_end: Literal["low", "high"] = "high"
    """The end of the interval towards "personas do not differ"; only the estimators posterior and hull use it."""
    is_difference: bool = False
    """Whether it is shown with its sign."""
    short_label: str = ""
    """Name in a line of a log; the label by default."""
    phrase: str = ""
    """Name in a sentence; the label by default."""

    @property
    def log_label(self) -> str:
        return self.short_label or self.label

    @property
    def sentence_label(self) -> str:
        return self.phrase or self.label

    def of_resamples(self, scores: ResampledScores) -> Array:
        """value_R of every resample."""
        if self.scores_formula is not None:
            return self.scores_formula(scores)
        return self.of_accuracies(scores.accuracy_R_P, scores.baseline_R)

    def of_accuracies(self, accuracy_R_P: Array, baseline_R: Array) -> Array:
        """value_R of every draw. Raises TypeError for a measure without `formula`."""
        if self.formula is None:
            raise TypeError(f"{self.name} has no formula of accuracies, which its estimator ({self.estimator}) needs")
        return self.formula(accuracy_R_P, baseline_R)


def _pss(accuracy_R_P: Array, _: Array) -> Array:
    return statistics.pss(accuracy_R_P)


def _sd_of_draws(accuracy_R_P: Array, _: Array) -> Array:
    """Standard deviation [R] over personas; NaN for a single persona."""
    return accuracy_R_P.std(axis=1, ddof=1) if accuracy_R_P.shape[1] > 1 else np.full(len(accuracy_R_P), np.nan)


def _spread(accuracy_R_P: Array, _: Array) -> Array:
    """Best − worst [R]; NaN for a single persona."""
    return np.asarray(np.ptp(accuracy_R_P, axis=1)) if accuracy_R_P.shape[1] > 1 else np.full(len(accuracy_R_P), np.nan)


def _mean_on_question(mean_P_Q: Array, _: Array) -> Array:
    return statistics.nanmean_along(mean_P_Q, axis=0)


STABILITY_MEASURES: dict[str, StabilityMeasure] = {
    measure.name: measure
    for measure in (
        StabilityMeasure("pss", "PSS (estimate)", "posterior", _pss, short_label="PSS", phrase="PSS"),
        StabilityMeasure("pss_observed", "PSS as observed (worst / best)", "observed", _pss),
        StabilityMeasure("pss_null", "PSS if personas did nothing", "permuted", _pss),
        StabilityMeasure(
            "pss_crossfit", "PSS cross-fitted", "observed",
            scores_formula=lambda scores: statistics.pss_crossfit(scores.mean_P_Q, scores.halves_K_Q, scores.counts_R_Q),
            swapped_formula=statistics.swapped_pss_crossfit,
        ),
        StabilityMeasure(
            "worst", "worst persona", "posterior", lambda accuracy_R_P, _: accuracy_R_P.min(axis=1),
            short_label="worst", phrase="worst persona's accuracy",
        ),
        StabilityMeasure(
            "best", "best persona", "posterior", lambda accuracy_R_P, _: accuracy_R_P.max(axis=1),
            null_end="low", short_label="best", phrase="best persona's accuracy",
        ),
        StabilityMeasure(
            "mean", "mean over personas", "share", lambda accuracy_R_P, _: accuracy_R_P.mean(axis=1),
            short_label="mean", phrase="mean accuracy over personas", question_formula=_mean_on_question,
        ),
        StabilityMeasure(
            "baseline", "no persona", "share", lambda _, baseline_R: baseline_R,
            questions="baseline", phrase="accuracy without persona", question_formula=lambda _, baseline_Q: baseline_Q,
        ),
        StabilityMeasure(
            "mean_minus_baseline", "mean − no persona", "paired",
            lambda accuracy_R_P, baseline_R: accuracy_R_P.mean(axis=1) - baseline_R,
            questions="both", is_difference=True,
            question_formula=lambda mean_P_Q, baseline_Q: _mean_on_question(mean_P_Q, baseline_Q) - baseline_Q,
        ),
        StabilityMeasure(
            "worst_minus_baseline", "worst − no persona", "posterior",
            lambda accuracy_R_P, baseline_R: accuracy_R_P.min(axis=1) - baseline_R,
            questions="both", is_difference=True,
        ),
        StabilityMeasure(
            "spread", "best − worst", "posterior", _spread, null_end="low",
        ),
        StabilityMeasure(
            "persona_sd", "sd of personas", "hull", _sd_of_draws,
            scores_formula=lambda scores: scores.persona_sd_R, null_end="low",
        ),
        StabilityMeasure(
            "relative_persona_sd", "sd of personas / mean", "hull",
            lambda accuracy_R_P, _: statistics.safe_divide(_sd_of_draws(accuracy_R_P, _), accuracy_R_P.mean(axis=1)),
            scores_formula=lambda scores: statistics.safe_divide(scores.persona_sd_R, scores.accuracy_R_P.mean(axis=1)),
            null_end="low",
            phrase="sd of personas relative to the mean",
        ),
        StabilityMeasure(
            "worst_per_question", "each question's worst persona", "share",
            scores_formula=lambda scores: statistics.worst_per_question(scores.mean_P_Q, scores.counts_R_Q),
            question_formula=lambda mean_P_Q, _: statistics.lowest_per_question(mean_P_Q),
        ),
    )
}  # fmt: skip
"""By name, in the order in which a summary is written to JSON."""

MEASURE_VIEWS: dict[MeasureView, tuple[str, ...]] = {
    # table of models: its columns, and their rows in table.json
    "main_table": ("baseline", "mean", "worst", "pss", "persona_sd", "relative_persona_sd", "pss_observed", "pss_null"),
    "table_row": (
        "baseline", "mean", "worst", "pss", "persona_sd", "relative_persona_sd", "pss_observed", "pss_null", "pss_crossfit",
    ),
    # a line for each persona template
    "templates": ("mean", "worst", "pss", "mean_minus_baseline"),
    # a line for each context
    "contexts": ("baseline", "mean", "worst", "pss", "mean_minus_baseline"),
    # `permix compare`
    "comparison": (
        "baseline", "mean", "worst", "best", "pss", "pss_crossfit", "spread", "persona_sd", "relative_persona_sd",
        "mean_minus_baseline", "worst_minus_baseline", "worst_per_question",
    ),
    # differences of two models or methods in a report's sentences
    "differences": ("pss", "relative_persona_sd", "worst", "mean"),
    # differences of two methods with an interval over questions and training seeds
    "seed_differences": ("pss", "relative_persona_sd", "worst", "mean", "mean_minus_baseline", "worst_minus_baseline"),
    # means over a method's training seeds: in table.json, and the columns of their table
    "methods": ("baseline", "mean", "worst", "pss", "persona_sd", "relative_persona_sd"),
    "method_table": ("pss", "persona_sd", "relative_persona_sd", "worst", "mean", "baseline"),
    # a point of a dev evaluation: in dev_eval.jsonl; on the status line and for trackers; in the model card; as curves
    "dev_eval": ("mean", "baseline", "worst", "best", "pss"),
    "dev_eval_log": ("mean", "worst", "pss", "baseline"),
    "dev_eval_card": ("baseline", "mean", "worst", "pss"),
    "dev_eval_curves": ("mean", "worst"),
    # the page of a running evaluation
    "live_page": ("baseline", "mean", "worst", "best", "pss", "mean_minus_baseline"),
}  # fmt: skip
"""The measures that each view shows, in its order."""


def measures_in(view: MeasureView) -> list[StabilityMeasure]:
    """The measures of a view, in its order."""
    return [STABILITY_MEASURES[name] for name in MEASURE_VIEWS[view]]


def measures_estimated_by(*estimators: MeasureEstimator) -> list[StabilityMeasure]:
    """The measures with one of these estimators, in the order of `STABILITY_MEASURES`."""
    return [measure for measure in STABILITY_MEASURES.values() if measure.estimator in estimators]


def select_measures(view: MeasureView, estimates: Mapping[str, Estimate]) -> dict[str, Estimate]:
    """The estimates of a view's measures, in its order; missing measures are left out."""
    return {name: estimates[name] for name in MEASURE_VIEWS[view] if name in estimates}


class CharacterMeasure(NamedTuple):
    """A measure of how well answers show their persona. In records it is a field with its name.

    `kind` is the kind of run that has it. `chance_label` names its value by chance, `counted` what its n counts for a method.
    `chance_field` and `reasons_field` are the fields of records with that value and with why there is no number.
    """

    name: str
    label: str
    kind: str
    chance_label: str
    counted: str
    chance_field: str
    reasons_field: str


CHARACTER_MEASURES: dict[str, CharacterMeasure] = {
    measure.name: measure
    for measure in (
        CharacterMeasure(
            "right_in_character", "right and in character", "stability", "by chance", "questions",
            "right_in_character_by_chance", "right_in_character_reasons",
        ),
        CharacterMeasure(
            "identifiability", "identifiability", "fidelity", "chance", "answers", "chance", "fidelity_reasons",
        ),
        CharacterMeasure(
            "recognisability", "recognisability", "fidelity", "chance", "answers", "chance", "recognisability_reasons",
        ),
    )
}  # fmt: skip
"""By name, in the order of the columns of tables."""


def character_measures_of(kind: str) -> list[CharacterMeasure]:
    """The measures of character that this kind of run has."""
    return [measure for measure in CHARACTER_MEASURES.values() if measure.kind == kind]


class MeasureRecord(Record):
    """Base of a record with a field `measures`: estimates by name. In JSON each measure is a key of the record itself.

    `VIEW` names the view whose measures these are; None: all measures. If the field has no default, every measure must be given;
    else a missing one is null in JSON. Raises ValidationError for an unknown or a missing name.
    """

    VIEW: ClassVar[MeasureView | None] = None

    @classmethod
    def measure_names(cls) -> tuple[str, ...]:
        return tuple(STABILITY_MEASURES) if cls.VIEW is None else MEASURE_VIEWS[cls.VIEW]

    @classmethod
    def json_keys(cls) -> tuple[str, ...]:
        """The keys of the record in JSON."""
        keys = ((name,) if name != "measures" else cls.measure_names() for name in cls.model_fields)
        return tuple(key for part in keys for key in part)

    @model_validator(mode="before")
    @classmethod
    def _collect_measures(cls, data: Any) -> Any:
        """Build `measures` from the keys of JSON. In Python `measures` may be given directly."""
        if not isinstance(data, Mapping):
            return data
        names = cls.measure_names()
        if "measures" not in data:
            by_name = {name: data[name] for name in names if data.get(name) is not None}
            data = {key: value for key, value in data.items() if key not in names} | {"measures": by_name}
        if unknown := [name for name in data["measures"] if name not in names]:
            raise ValueError(f"measures: {', '.join(unknown)}: not among {', '.join(names)}")
        missing = [name for name in names if name not in data["measures"]]
        if missing and cls.model_fields["measures"].is_required():
            raise ValueError(f"measures: {', '.join(missing)}: missing")
        return data

    @model_serializer(mode="wrap")
    def _spread_measures(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        spread: dict[str, Any] = {}
        for key, value in serialize(self).items():
            spread |= {name: value.get(name) for name in self.measure_names()} if key == "measures" else {key: value}
        return spread


class CharacterRecord(MeasureRecord):
    """Base of a record that has the measures of character as fields too, and perhaps their chance and reasons."""

    def estimate(self, name: str) -> Estimate | None:
        """A measure of stability or of character by name; None without it."""
        measures: dict[str, Estimate] = getattr(self, "measures", {})
        found: Estimate | None = getattr(self, name, None) if name in CHARACTER_MEASURES else measures.get(name)
        return found

    def chance_of(self, name: str) -> float | None:
        """The value of a measure of character by chance; None if it is not known."""
        found: float | None = getattr(self, CHARACTER_MEASURES[name].chance_field, None)
        return found

    def reasons_for(self, name: str) -> tuple[str, ...]:
        """Why a measure of stability or of character has no number; empty where no reason is recorded."""
        field = CHARACTER_MEASURES[name].reasons_field if name in CHARACTER_MEASURES else "reasons"
        found: tuple[str, ...] = getattr(self, field, ())
        return found
