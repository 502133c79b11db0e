"""Every stability measure, declared once: its name, its formula, its kind of interval, and where it is shown.

Contract: `STABILITY_MEASURES` and `MEASURE_VIEWS` are read when something is measured, written or shown, never at import. So a
measure that is added to the two is computed, written to JSON and shown by every table, sentence and page of its views; no other
module names it. Formulas are pure functions of arrays, with suffixes as in `permix.metrics.statistics`.

The p of the permutation test and the minimum detectable effect are no measures of a model; `StabilitySummary` has fields for
them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
from pydantic import SerializerFunctionWrapHandler, model_serializer, model_validator

from permix.metrics import statistics
from permix.metrics.statistics import Array
from permix.types import Estimate, Record

MeasureEstimator = Literal["bootstrap", "share", "posterior", "hull", "observed", "permuted"]
"""How a value and its interval come about:

bootstrap: the value observed, with the bootstrap's interval over questions
share: the same of a mean of scores in [0, 1] (`statistics.bootstrap_share`)
posterior: median and middle 95 % of the draws of true accuracies (`permix.metrics.posterior`)
hull: the value observed; its interval holds the bootstrap's and that of the draws
observed: the value observed, without an interval
permuted: mean and middle 95 % over permutations of the persona labels within each question

A difference of two models, and a mean over training seeds, is made of the draws (posterior) or of the bootstrap (all others).
"""

ScoredQuestions = Literal["personas", "baseline", "both"]
"""The questions that n counts: those with a score of some persona, without persona, or of both."""

MeasureView = Literal[
    "main_table", "table_row", "templates", "comparison", "differences", "methods", "method_table",
    "dev_eval", "dev_eval_log", "dev_eval_card", "dev_eval_curves", "live_page",
]  # fmt: skip


class ResampledScores(NamedTuple):
    """Scores of the personas that have any, and what they come to in each resample of questions, drawn counts_R_Q times."""

    mean_P_Q: Array
    counts_R_Q: Array
    halves_K_Q: Array
    """Random halves of the questions, the same in every resample."""
    accuracy_R_P: Array
    baseline_R: Array
    """Accuracy without persona, NaN where none was asked."""


@dataclass(frozen=True)
class StabilityMeasure:
    """`formula` maps accuracy_R_P and baseline_R to value_R, of resamples and of draws alike; `scores_formula` is for what
    accuracies do not tell, and goes before it on resamples.
    """

    name: str
    """Its key in JSON."""
    label: str
    """What a column or line of it is called."""
    estimator: MeasureEstimator
    formula: Callable[[Array, Array], Array] | None = None
    scores_formula: Callable[[ResampledScores], Array] | None = None
    questions: ScoredQuestions = "personas"
    null_end: Literal["low", "high"] = "high"
    """The end of the interval that lies where personas do not differ; only the draws' estimators read it."""
    is_difference: bool = False
    """Shown with its sign."""
    short_label: str = ""
    """In a line of a log; the label by default."""
    phrase: str = ""
    """In a sentence; the label by default."""

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
        """value_R of every draw. Raises TypeError without a formula of accuracies alone."""
        if self.formula is None:
            raise TypeError(f"{self.name} has no formula of accuracies, which its estimator ({self.estimator}) needs")
        return self.formula(accuracy_R_P, baseline_R)


def _pss(accuracy_R_P: Array, _: Array) -> Array:
    return statistics.pss(accuracy_R_P)


def _sd_of_draws(accuracy_R_P: Array, _: Array) -> Array:
    """0 where personas are one: a single one, or all taken for alike."""
    return accuracy_R_P.std(axis=1, ddof=1) if accuracy_R_P.shape[1] > 1 else np.zeros(len(accuracy_R_P))


STABILITY_MEASURES: dict[str, StabilityMeasure] = {
    measure.name: measure
    for measure in (
        StabilityMeasure("pss", "PSS", "posterior", _pss),
        StabilityMeasure("pss_observed", "PSS as observed (worst / best)", "observed", _pss),
        StabilityMeasure("pss_null", "PSS if personas did nothing", "permuted", _pss),
        StabilityMeasure(
            "pss_crossfit", "PSS cross-fitted", "bootstrap",
            scores_formula=lambda scores: statistics.pss_crossfit(scores.mean_P_Q, scores.halves_K_Q, scores.counts_R_Q),
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
            short_label="mean", phrase="mean accuracy over personas",
        ),
        StabilityMeasure(
            "baseline", "no persona", "share", lambda _, baseline_R: baseline_R,
            questions="baseline", phrase="accuracy without persona",
        ),
        StabilityMeasure(
            "mean_minus_baseline", "mean − no persona", "bootstrap",
            lambda accuracy_R_P, baseline_R: accuracy_R_P.mean(axis=1) - baseline_R,
            questions="both", is_difference=True,
        ),
        StabilityMeasure(
            "worst_minus_baseline", "worst − no persona", "posterior",
            lambda accuracy_R_P, baseline_R: accuracy_R_P.min(axis=1) - baseline_R,
            questions="both", is_difference=True,
        ),
        StabilityMeasure(
            "spread", "best − worst", "posterior",
            lambda accuracy_R_P, _: accuracy_R_P.max(axis=1) - accuracy_R_P.min(axis=1), null_end="low",
        ),
        StabilityMeasure(
            "persona_sd", "sd of personas", "hull", _sd_of_draws,
            scores_formula=lambda scores: statistics.persona_sd(scores.mean_P_Q, scores.counts_R_Q), null_end="low",
        ),
        StabilityMeasure(
            "worst_per_question", "each question's worst persona", "share",
            scores_formula=lambda scores: statistics.worst_per_question(scores.mean_P_Q, scores.counts_R_Q),
        ),
    )
}  # fmt: skip
"""By name, in the order in which a summary is written to JSON."""

MEASURE_VIEWS: dict[MeasureView, tuple[str, ...]] = {
    # table of models: its columns, and their rows in table.json
    "main_table": ("baseline", "mean", "worst", "pss", "pss_observed", "pss_null"),
    "table_row": ("baseline", "mean", "worst", "pss", "pss_observed", "pss_null", "pss_crossfit"),
    # a line for each wording of the personas
    "templates": ("mean", "worst", "pss", "mean_minus_baseline"),
    # `permix compare`
    "comparison": (
        "baseline", "mean", "worst", "best", "pss", "pss_crossfit", "spread", "persona_sd", "mean_minus_baseline",
        "worst_minus_baseline", "worst_per_question",
    ),
    # differences of two models or methods in a report's sentences
    "differences": ("pss", "worst", "mean"),
    # means over a method's training seeds: in table.json, and the columns of their table
    "methods": ("baseline", "mean", "worst", "pss"),
    "method_table": ("pss", "worst", "mean", "baseline"),
    # a point of a dev evaluation: in dev_eval.jsonl; on the status line and for trackers; in the model card; as curves
    "dev_eval": ("mean", "baseline", "worst", "best", "pss"),
    "dev_eval_log": ("mean", "worst", "pss", "baseline"),
    "dev_eval_card": ("baseline", "mean", "worst", "pss"),
    "dev_eval_curves": ("mean", "worst"),
    # the page of a run that goes on
    "live_page": ("baseline", "mean", "worst", "best", "pss", "mean_minus_baseline"),
}  # fmt: skip
"""Which measures each view shows, in its order."""


def measures_in(view: MeasureView) -> list[StabilityMeasure]:
    """The measures of a view, in its order."""
    return [STABILITY_MEASURES[name] for name in MEASURE_VIEWS[view]]


def measures_estimated_by(*estimators: MeasureEstimator) -> list[StabilityMeasure]:
    """The measures of these estimators, in the order of the registry."""
    return [measure for measure in STABILITY_MEASURES.values() if measure.estimator in estimators]


def select_measures(view: MeasureView, estimates: Mapping[str, Estimate]) -> dict[str, Estimate]:
    """Those of a view, in its order; what is not there is left out."""
    return {name: estimates[name] for name in MEASURE_VIEWS[view] if name in estimates}


class MeasureRecord(Record):
    """Base of a record with a field `measures`, estimates by name, which JSON has under their own names at its place.

    `VIEW` says which measures these are; None: all. Where the field has no default each must be there, else a missing one is
    null in JSON. ValidationError for a missing or an unknown name.
    """

    VIEW: ClassVar[MeasureView | None] = None

    @classmethod
    def measure_names(cls) -> tuple[str, ...]:
        return tuple(STABILITY_MEASURES) if cls.VIEW is None else MEASURE_VIEWS[cls.VIEW]

    @classmethod
    def json_keys(cls) -> tuple[str, ...]:
        """The keys of the record in JSON."""
        keys = ((name,) if name != "measures" else cls.measure_names() for name in cls.model_fields)
        return tuple(key for some in keys for key in some)

    @model_validator(mode="before")
    @classmethod
    def _collect_measures(cls, data: Any) -> Any:
        """From the keys of JSON; in Python also from `measures` itself."""
        if not isinstance(data, Mapping):
            return data
        names = cls.measure_names()
        if "measures" not in data:
            found = {name: data[name] for name in names if data.get(name) is not None}
            data = {key: value for key, value in data.items() if key not in names} | {"measures": found}
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
