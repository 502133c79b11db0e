"""The trade-off of PSS against a measure of character: its methods, its arrows and its line of chance.

Contract: figures and the page take them from here, so they agree. A trade-off contains the methods that have PSS and
whose models can all be compared in accuracy with the first model of the report: an arrow to a point is such a comparison. A
method has no point for a measure that it lacks, or in which one of its models cannot be compared. An arrow has a point at both
ends. One line shows chance if it is the same for all methods of the trade-off.

A judge's score is a measure too, on the page alone. It has an interval only for a method with one model: judges' scores are not
pooled over seeds, so the mean of several seeds has no interval.
"""

from collections.abc import Callable, Mapping, Sequence, Set
from types import MappingProxyType
from typing import NamedTuple

from permix.metrics.measures import CHARACTER_MEASURES
from permix.rendering import theme
from permix.report.comparisons import Comparison
from permix.report.judges import JudgeScoreEntry
from permix.report.methods import ReportMethod, training_arrows
from permix.report.pooled import PooledMethod
from permix.report.runs import ModelRuns
from permix.types import Estimate

PSS_AXIS_LABEL = "PSS: worst / best persona's accuracy"


class TradeoffView(NamedTuple):
    """What a trade-off has on its x axis.

    `measure` is its name: a field of `PooledMethod`, or the name of a judge's score; `counted` says what its n counts. `limits`
    are its smallest and largest possible value. `file` is the figure; None for a judge's score.
    """

    measure: str
    title: str
    axis_label: str
    counted: str
    file: str | None = None
    limits: tuple[int, int] = (0, 1)


def _counted(name: str) -> str:
    return f"{CHARACTER_MEASURES[name].counted} ({CHARACTER_MEASURES[name].label})"


IDENTIFIABILITY_VIEW = TradeoffView(
    "identifiability", "PSS against identifiability",
    "identifiability: how often a classifier names the persona that wrote an answer", _counted("identifiability"), "tradeoff.png",
)  # fmt: skip

RIGHT_IN_CHARACTER_VIEW = TradeoffView(
    "right_in_character", "PSS against right and in character",
    "right and in character: share of the task's answers", _counted("right_in_character"),
    "tradeoff-right-in-character.png",
)  # fmt: skip

_CHARACTER_VIEWS = (IDENTIFIABILITY_VIEW, RIGHT_IN_CHARACTER_VIEW)


class TradeoffPoint(NamedTuple):
    """A method. `x` is its measure on the x axis.

    `seeds` has (x, PSS) of each training seed by its label; it is empty for a method with one model. `chance` is what chance
    gives for this method, where each method has its own. `is_trusted` is False for a score of a judge that does not tell right
    from wrong persona, or was not validated.
    """

    name: str
    pss: Estimate
    x: Estimate
    seeds: Mapping[str, tuple[float, float]] = MappingProxyType({})
    chance: float | None = None
    is_trusted: bool = True

    @property
    def xy(self) -> tuple[float, float]:
        return (self.x.value or 0.0, self.pss.value or 0.0)


class Tradeoff(NamedTuple):
    """The points of one measure, by the name of their method, and the arrows between them as pairs of these names.

    `chance` is the level of identifiability by chance; None where the methods have different ones, and for other measures.
    """

    view: TradeoffView
    points: Mapping[str, TradeoffPoint]
    arrows: tuple[tuple[str, str], ...] = ()
    chance: float | None = None

    @property
    def counts_text(self) -> str:
        """The n of both axes: "20 questions (PSS), 80 answers (identifiability)"."""
        questions, counted = (
            theme.join_distinct_counts(one.n for one in estimates)
            for estimates in zip(*((point.pss, point.x) for point in self.points.values()), strict=True)
        )
        return f"{questions} questions (PSS), {counted} {self.view.counted}"


class ReportTradeoffs(NamedTuple):
    """The methods that the trade-offs contain, the arrows between them, and each trade-off that has a point."""

    methods: tuple[ReportMethod, ...]
    arrows: tuple[tuple[str, str], ...]
    tradeoffs: tuple[Tradeoff, ...]


def build_tradeoffs(
    models: Sequence[ModelRuns],
    methods: Sequence[ReportMethod],
    pooled: Sequence[PooledMethod],
    comparisons: Sequence[Comparison],
) -> ReportTradeoffs:
    """The trade-offs of a report. `pooled` has the numbers of each of `methods`, `comparisons` those with the first model."""
    incomparable = _incomparable_labels(models[0], comparisons)
    shown = [
        (method, mean)
        for method, mean in zip(methods, pooled, strict=True)
        if mean.pss is not None and mean.pss.value is not None and not incomparable["pss"] & set(method.labels)
    ]
    shown_methods = tuple(method for method, _ in shown)
    arrows = training_arrows(shown_methods)
    chances = {mean.chance for _, mean in shown if mean.chance is not None}
    chance = next(iter(chances)) if len(chances) == 1 else None
    points_by_view = {view: _character_points(view, shown, incomparable[view.measure]) for view in _CHARACTER_VIEWS}
    for name, entries in _judge_score_entries(shown_methods, incomparable["judged"]).items():
        view = TradeoffView(name, f"PSS against {name}", "mean score, 1 to 5", "personas (judge)", limits=(1, 5))
        points_by_view[view] = _judge_score_points(shown, entries)
    tradeoffs = tuple(
        Tradeoff(
            view, points, tuple(pair for pair in arrows if points.keys() >= set(pair)),
            chance if view is IDENTIFIABILITY_VIEW else None,
        )
        for view, points in points_by_view.items()
        if points
    )  # fmt: skip
    return ReportTradeoffs(shown_methods, tuple(arrows), tradeoffs)


def _incomparable_labels(first: ModelRuns, comparisons: Sequence[Comparison]) -> dict[str, set[str]]:
    """The labels of models that cannot be compared with the first model: in PSS, a measure of character, or judges' scores."""
    against_first = [one for one in comparisons if one.against == first.label]
    return {
        "pss": {one.label for one in against_first if one.reasons},
        **{name: {one.label for one in against_first if one.reasons_for(name)} for name in CHARACTER_MEASURES},
        "judged": {one.label for one in against_first if one.judged_reasons},
    }


_MethodNumbers = tuple[ReportMethod, PooledMethod]


def _character_points(view: TradeoffView, shown: Sequence[_MethodNumbers], excluded: Set[str]) -> dict[str, TradeoffPoint]:
    points = {}
    for method, mean in shown:
        x = mean.estimate(view.measure)
        if mean.pss is not None and x is not None and x.value is not None and not excluded & set(method.labels):
            chance = None if view is IDENTIFIABILITY_VIEW else mean.chance_of(view.measure)
            seeds = _seed_values(method, lambda model: model.character_estimate(view.measure))
            points[method.name] = TradeoffPoint(method.name, mean.pss, x, seeds, chance)
    return points


def _judge_score_entries(methods: Sequence[ReportMethod], excluded: Set[str]) -> dict[str, dict[str, JudgeScoreEntry]]:
    """Of each judge's score, by its name: the entries of the models, by label."""
    entries: dict[str, dict[str, JudgeScoreEntry]] = {}
    for model in (model for method in methods for model in method.models if model.label not in excluded):
        for judged in model.judged_runs:
            for entry in judged.score_entries:
                entries.setdefault(entry.name, {})[model.label] = entry
    return entries


def _judge_score_points(shown: Sequence[_MethodNumbers], entries: Mapping[str, JudgeScoreEntry]) -> dict[str, TradeoffPoint]:
    scores = {label: entry.persona_score for label, entry in entries.items()}
    points = {}
    for method, mean in shown:
        x = pooled_judge_score([scores.get(label) for label in method.labels])
        if mean.pss is not None and x is not None:
            seeds = _seed_values(method, lambda model: scores.get(model.label))
            is_trusted = all(entries[label].discriminates_persona for label in method.labels)
            points[method.name] = TradeoffPoint(method.name, mean.pss, x, seeds, is_trusted=is_trusted)
    return points


def pooled_judge_score(scores: Sequence[Estimate | None]) -> Estimate | None:
    """The score of a single model, or the mean of several models when all of them have one."""
    known = [one for one in scores if one is not None and one.value is not None]
    if len(known) < len(scores):
        return None
    if len(known) == 1:
        return known[0]
    return Estimate(value=sum(one.value or 0.0 for one in known) / len(known), n=min(one.n for one in known))


def _seed_values(method: ReportMethod, x_of: Callable[[ModelRuns], Estimate | None]) -> dict[str, tuple[float, float]]:
    """(x, PSS) of each seed that has both, by its label; empty for a method with one model."""
    values = {}
    for model in method.models if len(method.models) > 1 else ():
        x, pss = x_of(model), None if model.stability is None else model.stability.pss
        if x is not None and x.value is not None and pss is not None and pss.value is not None:
            values[model.label] = (x.value, pss.value)
    return values
