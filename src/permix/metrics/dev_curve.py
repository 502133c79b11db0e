"""Choose a checkpoint by the dev evaluations of a training run.

Contract: pure functions of points; no files. A higher score is better. A point without a score is never chosen, and it does not
count towards the patience.
"""

from collections.abc import Sequence
from typing import NamedTuple

from permix.config import DevEvalConfig, DevMetric
from permix.metrics.measures import MeasureRecord, measures_in
from permix.types import Estimate, Record


class DevEvalPoint(MeasureRecord):
    """One dev evaluation. `identifiability` and `chance` are None without open-ended questions. `n_scored` and `n_asked` count
    cells with a persona. `completion_tokens` is the mean per answer, `cut_off` the share of answers to task questions that the
    token limit cut off; None if not known.
    """

    VIEW = "dev_eval"

    step: int
    measures: dict[str, Estimate]
    identifiability: Estimate | None
    chance: float | None
    completion_tokens: float | None
    cut_off: float | None = None
    n_questions: int
    n_scored: int
    n_asked: int

    def __str__(self) -> str:
        parts = [f"{one.log_label} {_format_score(self.measures[one.name].value)}" for one in measures_in("dev_eval_log")]
        if self.identifiability is not None:
            parts.append(f"identifiability {_format_score(self.identifiability.value)} (chance {_format_score(self.chance)})")
        if self.cut_off:
            parts.append(f"cut off {self.cut_off:.0%}")
        if self.n_scored < self.n_asked:
            parts.append(f"{self.n_scored} of {self.n_asked} cells scored")
        return ", ".join(parts)

    def estimate(self, name: str) -> Estimate | None:
        """A measure by name, or "identifiability"."""
        return self.identifiability if name == "identifiability" else self.measures[name]


class DevCurve(NamedTuple):
    """The dev evaluations of a run so far: at least one, by ascending step.

    `chooses_weights` is False for those of another engine: which weights were kept there is not known.
    """

    points: tuple[DevEvalPoint, ...]
    config: DevEvalConfig
    chooses_weights: bool = True

    @property
    def selection(self) -> "DevSelection":
        return select_checkpoint(self.points, self.config.metric, self.config.patience)


class DevSelection(Record):
    """The choice by the points so far.

    `best_step` is the first step with the highest score; None if no point has a score. `n_since_best` counts later points with a
    score. `should_stop`: this number has reached the patience.
    """

    metric: DevMetric
    best_step: int | None
    best_score: float | None
    last_step: int
    last_score: float | None
    n_scored: int
    n_since_best: int
    should_stop: bool


def selection_scores(points: Sequence[DevEvalPoint], metric: DevMetric) -> list[float | None]:
    """A score for each point, higher is better; None where it cannot be computed.

    "balanced": worst persona's accuracy − max(0, identifiability of the first point − identifiability now). Both are shares of
    answers, so a loss in identifiability costs as much as the same loss in accuracy. A gain adds nothing: compared with the base
    model's own answers, a gain is noise or caricature. A ratio would be unstable where the base's identifiability is near 0.
    """
    if metric != "balanced":
        return [point.measures[metric].value for point in points]
    return [_balanced_score(point, points[0]) for point in points]


def _balanced_score(point: DevEvalPoint, first_point: DevEvalPoint) -> float | None:
    values = (point.measures["worst"], point.identifiability, first_point.identifiability)
    worst, now, before = (None if one is None else one.value for one in values)
    return None if worst is None or now is None or before is None else worst - max(0.0, before - now)


def select_checkpoint(points: Sequence[DevEvalPoint], metric: DevMetric, patience: int | None = None) -> DevSelection:
    """The choice by these points: at least one, by ascending step. Of equal scores the earlier step wins: less training."""
    known = selection_scores(points, metric)
    scored = [(point.step, score) for point, score in zip(points, known, strict=True) if score is not None]
    top = max((score for _, score in scored), default=None)
    best = next((step for step, score in scored if score == top), None)
    stale = sum(step > best for step, _ in scored) if best is not None else 0
    return DevSelection(
        metric=metric,
        best_step=best,
        best_score=top,
        last_step=points[-1].step,
        last_score=known[-1],
        n_scored=len(scored),
        n_since_best=stale,
        should_stop=patience is not None and stale >= patience,
    )


def selected_step(curve: DevCurve) -> int:
    """The step whose weights become the model."""
    choice = curve.selection
    return choice.last_step if curve.config.select == "last" or choice.best_step is None else choice.best_step


def marked_step(curve: DevCurve) -> int | None:
    """The step that figures mark as the selected weights; None if it is not known."""
    return selected_step(curve) if curve.chooses_weights else None


def _score_text(choice: DevSelection) -> str:
    if choice.best_step is None:
        return "no dev evaluation has a score"
    last_text = (
        ""
        if choice.best_step == choice.last_step
        else f"; step {choice.last_step}, the last, has {_format_score(choice.last_score)}"
    )
    return (
        f"of {choice.n_scored} dev evaluations the best by {choice.metric} is that of step {choice.best_step}, "
        f"{_format_score(choice.best_score)}{last_text}"
    )


def selection_text(curve: DevCurve) -> str:
    """A text for model card, report and terminal: whose weights the model has, by which score, and why training ended."""
    choice, config, step = curve.selection, curve.config, selected_step(curve)
    if not curve.chooses_weights:
        text = _score_text(choice)
        return f"{text[0].upper()}{text[1:]}. Another engine trained: which weights it kept is not known here."
    chosen_text = f"The weights are those of step {step}" + (", the last" if step == choice.last_step else "")
    score_text = _score_text(choice)
    untrained_text = (
        " No dev evaluation was better than that of the model before training."
        if 0 == choice.best_step == step < choice.last_step
        else ""
    )
    patience_text = f"no dev evaluation after step {choice.best_step} was better (patience = {config.patience})"
    ended_text = f" Training ended at step {choice.last_step}: {patience_text}." if choice.should_stop else ""
    return f"{chosen_text} (select = {config.select}; {score_text}).{untrained_text}{ended_text}"


def _format_score(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
