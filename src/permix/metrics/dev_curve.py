from collections.abc import Sequence
from typing import NamedTuple

from permix.config import ProbeConfig, ProbeMetric
from permix.types import Estimate, Record

# What is measured


class Point(Record):
    """One probe. `identifiability` and `chance` are None without characters; `n_scored` of `n_asked` counts persona cells."""

    step: int
    mean: Estimate
    baseline: Estimate
    worst: Estimate
    best: Estimate
    pss: Estimate
    identifiability: Estimate | None
    chance: float | None
    completion_tokens: float | None
    n_questions: int
    n_scored: int
    n_asked: int

    def __str__(self) -> str:
        found = {"mean": self.mean, "worst": self.worst, "PSS": self.pss, "no persona": self.baseline}
        told = [f"{name} {_number(one.value)}" for name, one in found.items()]
        if self.identifiability is not None:
            told.append(f"identifiability {_number(self.identifiability.value)} (chance {_number(self.chance)})")
        if self.n_scored < self.n_asked:
            told.append(f"{self.n_scored} of {self.n_asked} cells scored")
        return ", ".join(told)


class Curve(NamedTuple):
    """The probes of a run so far, by step: at least one."""

    points: tuple[Point, ...]
    config: ProbeConfig

    @property
    def choice(self) -> "Choice":
        return choose(self.points, self.config.metric, self.config.patience)


# What is chosen


class Choice(Record):
    """What the points so far say. `best` is the step of the first highest score; None where no point has a score.

    `stale` counts the points with a score after it. `stop` says that patience has run out.
    """

    metric: ProbeMetric
    best: int | None
    score: float | None
    last: int
    last_score: float | None
    scored: int
    stale: int
    stop: bool


def scores(points: Sequence[Point], metric: ProbeMetric) -> list[float | None]:
    """A number a point, more is better; None where it cannot be computed, which is neither better nor worse.

    balanced: the worst persona's accuracy less what identifiability has lost since the first point. Both are shares of answers:
    a character told right less often costs as much as answers right less often. A gain earns nothing: against the base model's
    own answers it is noise or caricature. There is no ratio, which would be wild where the base is hardly told at all.
    """
    if metric != "balanced":
        return [getattr(point, metric).value for point in points]
    return [_balanced(point, points[0]) for point in points]


def _balanced(point: Point, first: Point) -> float | None:
    values = (point.worst, point.identifiability, first.identifiability)
    worst, now, before = (None if one is None else one.value for one in values)
    return None if worst is None or now is None or before is None else worst - max(0.0, before - now)


def choose(points: Sequence[Point], metric: ProbeMetric, patience: int | None = None) -> Choice:
    """What these points (at least one, by step) say. A tie goes to the earlier one: less training for the same."""
    known = scores(points, metric)
    scored = [(point.step, score) for point, score in zip(points, known, strict=True) if score is not None]
    top = max((score for _, score in scored), default=None)
    best = next((step for step, score in scored if score == top), None)
    stale = sum(step > best for step, _ in scored) if best is not None else 0
    return Choice(
        metric=metric, best=best, score=top, last=points[-1].step, last_score=known[-1], scored=len(scored), stale=stale,
        stop=patience is not None and stale >= patience,
    )  # fmt: skip


def taken(curve: Curve) -> int:
    """The step whose weights become the model."""
    choice = curve.choice
    return choice.last if curve.config.select == "last" or choice.best is None else choice.best


def told(curve: Curve) -> str:
    """Which weights became the model, by what, and why training ended: for the card, the report and the terminal."""
    choice, config, step = curve.choice, curve.config, taken(curve)
    which = f"The weights are those of step {step}" + (", the last" if step == choice.last else "")
    by = "no probe has a score"
    if choice.best is not None:
        last = "" if choice.best == choice.last else f"; step {choice.last}, the last, has {_number(choice.last_score)}"
        by = f"of {choice.scored} probes the best by {choice.metric} is that of step {choice.best}, {_number(choice.score)}{last}"
    untrained = " No probe was better than the model before training." if 0 == choice.best == step < choice.last else ""
    since = f"no probe since step {choice.best} was better (patience = {config.patience})"
    ended = f" Training ended at step {choice.last}: {since}." if choice.stop else ""
    return f"{which} (select = {config.select}; {by}).{untrained}{ended}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
