"""The trade-off figure: stability upwards, distinctness to the right; a point a method, with both intervals.

Contract: a method stands at the mean of its training seeds, and each seed is a small point of the same look. A method that has
one of the two numbers only is left out.
"""

from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.transforms import Bbox

from permix.report import canvas
from permix.report.canvas import INTERVAL, Style
from permix.report.methods import Method
from permix.report.seeds import Pooled
from permix.types import Estimate


class Point(NamedTuple):
    """A method; `seeds` are (identifiability, PSS) of each of several trainings, and empty of one."""

    name: str
    pss: Estimate
    identifiability: Estimate
    seeds: tuple[tuple[float, float], ...] = ()

    @property
    def at(self) -> tuple[float, float]:
        return (self.identifiability.value or 0.0, self.pss.value or 0.0)

    @property
    def bars(self) -> list[Bbox]:
        """The two interval bars through the point, and its seeds, as boxes without width."""
        (x, y), (left, right), (low, high) = self.at, canvas.ends(self.identifiability), canvas.ends(self.pss)
        return [Bbox([[left, y], [right, y]]), Bbox([[x, low], [x, high]]), *(Bbox([seed, seed]) for seed in self.seeds)]


def points_of(methods: Sequence[Method], pooled: Sequence[Pooled], apart: Set[str] = frozenset()) -> list[Point]:
    """The methods that have both numbers, but for those with a label that stands `apart`: not to be held against the others."""
    return [
        Point(method.name, mean.pss, mean.identifiability, _seeds(method))
        for method, mean in zip(methods, pooled, strict=True)
        if mean.pss is not None and mean.pss.value is not None and not apart & set(method.labels)
        and mean.identifiability is not None and mean.identifiability.value is not None
    ]  # fmt: skip


def chance_of(pooled: Sequence[Pooled]) -> float | None:
    """One line needs one chance: None where methods were told from different numbers of personas."""
    found = {mean.chance for mean in pooled if mean.chance is not None}
    return found.pop() if len(found) == 1 else None


def tradeoff(
    points: Sequence[Point],
    arrows: Sequence[tuple[str, str]],
    chance: float | None,
    path: Path,
    styles: Mapping[str, Style] | None = None,
) -> None:
    """Draw it. `arrows` are pairs of names, those without a point left out; `styles` are by name of the method."""
    styles = styles or canvas.styles_for(point.name for point in points)
    fig = canvas.sheet(5.2, "Stability against distinctness", _note(points))
    (ax,) = canvas.panels(fig, 1)
    for point in points:
        _draw(ax, point, styles[point.name])
    at = {point.name: point.at for point in points}
    for start, end in arrows:
        if start in at and end in at:
            arrow = {"arrowstyle": "-|>", "color": "0.45", "lw": 1.1, "shrinkA": 8, "shrinkB": 8, "ls": (0, (4, 3))}
            ax.annotate("", xy=at[end], xytext=at[start], arrowprops=arrow, zorder=1)
    if chance is not None:
        ax.axvline(chance, color="0.4", lw=1.2, ls=":")
        ax.annotate(
            "chance", (chance, 0.02), xycoords=("data", "axes fraction"), xytext=(4, 0), textcoords="offset points", color="0.3"
        )
    ax.set_xlabel("identifiability: how often a classifier tells which persona wrote an answer")
    ax.set_ylabel("PSS: worst / best persona's accuracy")
    ax.margins(0.15)
    low, high = ax.get_ylim()
    ax.set_ylim(max(0.0, low), min(1.06, high))
    canvas.name_points(ax, at, [bar for point in points for bar in point.bars], styles)
    canvas.save(fig, path)


def _draw(ax: Axes, point: Point, style: Style) -> None:
    x, y = canvas.sides(point.identifiability), canvas.sides(point.pss)
    ax.errorbar(*point.at, xerr=x, yerr=y, fmt=style.marker, color=style.colour, ms=8, capsize=3, lw=1.4)
    for seed in point.seeds:
        ax.plot(*seed, style.marker, color=style.colour, ms=4.5, mfc="w", mew=1.2, zorder=3)


def _seeds(method: Method) -> tuple[tuple[float, float], ...]:
    pairs = [
        (model.fidelity.accuracy.value, model.stability.pss.value)
        for model in method.models
        if model.fidelity and model.stability
    ]
    return tuple((x, y) for x, y in pairs if x is not None and y is not None) if len(method.models) > 1 else ()


def _note(points: Sequence[Point]) -> str:
    asked = f"{canvas.counts(point.pss.n for point in points)} questions (PSS)"
    answered = f"{canvas.counts(point.identifiability.n for point in points)} answers (identifiability)"
    small = "; large: mean over training seeds; small and open: each seed" if any(point.seeds for point in points) else ""
    return f"n = {asked}, {answered}; bars: {INTERVAL}{small}"
