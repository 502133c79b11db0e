from collections.abc import Sequence
from typing import NamedTuple

from permix.config import DevEvalConfig, DevMetric
from permix.metrics.measures import MeasureRecord, measures_in
from permix.types import Estimate, Record

# What is measured


class DevEvalPoint(MeasureRecord):
    """One probe. `identifiability` and `chance` are None without characters; `n_scored` of `n_asked` counts persona cells."""

    VIEW = "dev_eval"

    step: int
    measures: dict[str, Estimate]
    identifiability: Estimate | None
    chance: float | None
    completion_tokens: float | None
    n_questions: int
    n_scored: int
    n_asked: int

    def __str__(self) -> str:
        told = [f"{one.log_label} {_format_score(self.measures[one.name].value)}" for one in measures_in("dev_eval_log")]
        if self.identifiability is not None:
            told.append(f"identifiability {_format_score(self.identifiability.value)} (chance {_format_score(self.chance)})")
        if self.n_scored < self.n_asked:
            told.append(f"{self.n_scored} of {self.n_asked} cells scored")
        return ", ".join(told)

    def estimate(self, name: str) -> Estimate | None:
        """A measure by name, or "identifiability"."""
        return self.identifiability if name == "identifiability" else self.measures[name]


class DevCurve(NamedTuple):
    """The probes of a run so far, by step: at least one."""

    points: tuple[DevEvalPoint, ...]
    config: DevEvalConfig

    @property
    def selection(self) -> "DevSelection":
        return select_checkpoint(self.points, self.config.metric, self.config.patience)


# What is chosen


class DevSelection(Record):
    """What the points so far say. `best` is the step of the first highest score; None where no point has a score.

    `stale` counts the points with a score after it. `stop` says that patience has run out.
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
    """A number a point, more is better; None where it cannot be computed, which is neither better nor worse.

    balanced: the worst persona's accuracy less what identifiability has lost since the first point. Both are shares of answers:
    a character told right less often costs as much as answers right less often. A gain earns nothing: against the base model's
    own answers it is noise or caricature. There is no ratio, which would be wild where the base is hardly told at all.
    """
    if metric != "balanced":
        return [point.measures[metric].value for point in points]
    return [_balanced_score(point, points[0]) for point in points]


def _balanced_score(point: DevEvalPoint, first_point: DevEvalPoint) -> float | None:
    values = (point.measures["worst"], point.identifiability, first_point.identifiability)
    worst, now, before = (None if one is None else one.value for one in values)
    return None if worst is None or now is None or before is None else worst - max(0.0, before - now)


def select_checkpoint(points: Sequence[DevEvalPoint], metric: DevMetric, patience: int | None = None) -> DevSelection:
    """What these points (at least one, by step) say. A tie goes to the earlier one: less training for the same."""
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


def selection_text(curve: DevCurve) -> str:
    """Which weights became the model, by what, and why training ended: for the card, the report and the terminal."""
    choice, config, step = curve.selection, curve.config, selected_step(curve)
    which = f"The weights are those of step {step}" + (", the last" if step == choice.last_step else "")
    by = "no probe has a score"
    if choice.best_step is not None:
        last = (
            ""
            if choice.best_step == choice.last_step
            else f"; step {choice.last_step}, the last, has {_format_score(choice.last_score)}"
        )
        by = (
            f"of {choice.n_scored} probes the best by {choice.metric} is that of step {choice.best_step}, "
            f"{_format_score(choice.best_score)}{last}"
        )
    untrained = " No probe was better than the model before training." if 0 == choice.best_step == step < choice.last_step else ""
    since = f"no probe since step {choice.best_step} was better (patience = {config.patience})"
    ended = f" Training ended at step {choice.last_step}: {since}." if choice.should_stop else ""
    return f"{which} (select = {config.select}; {by}).{untrained}{ended}"


def _format_score(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
