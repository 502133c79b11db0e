"""The trade-off figure: stability upwards, distinctness to the right; a point a method, with both intervals.

Contract: a method stands at the mean of its training seeds, and each seed is a small point of the same look. A method that has
one of the two numbers only is left out.

The figures of judges' scores: tasks by model, and what a judge does with answers that it should score lower or alike.

Contract as in `permix.rendering.plots`; a judge that is not trusted has hollow marks.
"""

from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.patches import Patch
from matplotlib.transforms import Bbox

from permix.judges.summary import Judged
from permix.rendering import theme
from permix.rendering.theme import HOLLOW, INTERVAL, Style
from permix.report.judges import FILES, SCORE_OF, TITLES, UNTRIED, UNTRUSTED, JudgedRun, mark
from permix.report.methods import Method, Pooled
from permix.sanitize import figure as safe
from permix.types import Control, Estimate

Runs = Mapping[str, JudgedRun]


PERSONA_INTERVAL = "95 % intervals over personas"

BARS: dict[Control, str] = {
    "none": "own persona",
    "wrong-persona": "wrong persona",
    "no-persona": "no persona",
    "padded": "padded",
    "retest": "asked again",
    "injected": "injected",
}

SHADES = colormaps["cividis"](np.linspace(0.05, 1.0, 5))

LEGIBLE = 0.06  # of a bar: a narrower piece has no room for its number


def draw(models: Mapping[str, Sequence[JudgedRun]], out: Path, styles: Mapping[str, Style]) -> dict[str, str]:
    """Two figures for each kind of run that was judged; {file name: what it shows}."""
    figures: dict[str, str] = {}
    for kind in FILES:
        runs = {label: run for label, judged in models.items() for run in judged if run.kind == kind}
        if runs:
            by_task, tried = files(kind)
            scores(runs, kind, out / by_task, styles)
            trial(runs, kind, out / tried)
            figures |= {by_task: f"judges' scores, {TITLES[kind]}", tried: f"the judges on trial, {TITLES[kind]}"}
    return figures


def files(kind: str) -> tuple[str, str]:
    """The names of both figures of a kind."""
    return f"judged-{FILES[kind]}.png", f"trial-{FILES[kind]}.png"


def scores(runs: Runs, kind: str, path: Path, styles: Mapping[str, Style]) -> None:
    """One panel a judge: the mean over the tasks, then each task, every model with its interval."""
    judges = list(dict.fromkeys(judge for run in runs.values() for judge in run.judges))
    found = {judge: {label: run.judges[judge] for label, run in runs.items() if judge in run.judges} for judge in judges}
    rows = {judge: [SCORE_OF[kind], *_tasks(list(by_model.values()))] for judge, by_model in found.items()}
    height = sum(0.45 + len(rows[judge]) * (0.16 + 0.13 * len(runs)) for judge in judges)
    n = theme.counts(one.persona_score.n for by_model in found.values() for one in by_model.values())
    hollow = any(not one.trusted for by_model in found.values() for one in by_model.values())
    marks = HOLLOW if hollow else ""
    fig = theme.sheet(0.7 + height, f"Judges' scores: {TITLES[kind]}", f"n = {n} personas; bars: {PERSONA_INTERVAL}{marks}")
    for ax, judge in zip(theme.panels(fig, len(judges)), judges, strict=True):
        for place, (label, one) in enumerate(found[judge].items()):
            offset = (place - (len(found[judge]) - 1) / 2) * 0.7 / len(runs)
            for row, task in enumerate(rows[judge]):
                _point(
                    ax, one.tasks.get(task) if row else one.persona_score, row + offset, styles[label], filled=bool(one.trusted)
                )
        ax.set_yticks(range(len(rows[judge])), [safe(task, 30) for task in rows[judge]])
        ax.set_ylim(len(rows[judge]) - 0.4, -0.6)
        ax.set_xlim(0.95, 5.05)
        ax.set_title(safe(f"judge {judge}", 60), loc="left", fontsize=10)
        ax.grid(visible=False, axis="y")
    ax.set_xlabel("mean score, 1 to 5")
    theme.legend(fig, list(runs), styles)
    theme.save(fig, path)


def trial(runs: Runs, kind: str, path: Path) -> None:
    """One panel a model and judge: which scores the answers got, and the same answers under each control."""
    judged = [(label, one) for label, run in runs.items() for one in run.judges.values()]
    shown = [[control for control in BARS if any(one.histogram[control])] for _, one in judged]
    note = (
        "answers that got each score, n at the right, without Toxicity Control; a good judge scores wrong and no persona lower "
        f"than the own one, the last three alike; {UNTRUSTED} does not tell right from wrong persona; {UNTRIED} was not tried"
    )
    fig = theme.sheet(0.8 + sum(0.55 + 0.24 * len(bars) for bars in shown), f"The judges on trial: {TITLES[kind]}", note)
    heights = [max(1, len(bars)) for bars in shown]
    axes = list(fig.subplots(len(judged), 1, sharex=True, squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0])
    for ax, (label, one), bars in zip(axes, judged, shown, strict=True):
        for row, control in enumerate(bars):
            _stack(ax, row, one.histogram[control])
        ax.set_yticks(range(len(bars)), [BARS[control] for control in bars])
        ax.set_ylim(len(bars) - 0.4, -0.6)
        ax.set_xlim(0, 1)
        ax.spines[["top", "right", "left"]].set_visible(False)
        ax.set_title(safe(f"{label}, judge {one.label}: AUC {one.trial.auc}{mark(one.trusted)}", 90), loc="left", fontsize=10)
    axes[-1].set_xlabel("share of answers")
    patches = [Patch(facecolor=shade, label=f"score {score}") for score, shade in enumerate(SHADES, start=1)]
    fig.legend(handles=patches, loc="outside lower center", ncols=5, frameon=False)
    theme.save(fig, path)


def _tasks(every: Sequence[Judged]) -> list[str]:
    """Tasks of any model; none where there is but one, which is the mean itself."""
    tasks = list(dict.fromkeys(task for one in every for task in one.tasks))
    return tasks if len(tasks) > 1 else []


def _point(ax: Axes, estimate: Estimate | None, row: float, style: Style, *, filled: bool) -> None:
    if estimate is not None and estimate.value is not None:
        face = style.colour if filled else "w"
        ax.errorbar(estimate.value, row, xerr=theme.sides(estimate), fmt=style.marker, color=style.colour, ms=5, lw=1.3, mfc=face)


def _stack(ax: Axes, row: int, counts: Sequence[int]) -> None:
    """One bar of five pieces, each with its share where there is room for it."""
    total, left = sum(counts), 0.0
    for place, (count, shade) in enumerate(zip(counts, SHADES, strict=True)):
        width = count / total
        ax.barh(row, width, left=left, height=0.78, color=shade, edgecolor="w", lw=0.6)
        if width >= LEGIBLE:
            ink = "w" if place < 2 else "k"
            ax.text(left + width / 2, row, f"{100 * width:.0f} %", ha="center", va="center", fontsize=8, color=ink)
        left += width
    ax.text(1.005, row, f"{total}", ha="left", va="center", fontsize=8.5, color="0.3")


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
        (x, y), (left, right), (low, high) = self.at, theme.ends(self.identifiability), theme.ends(self.pss)
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
    styles = styles or theme.styles_for(point.name for point in points)
    fig = theme.sheet(5.2, "Stability against distinctness", _note(points))
    (ax,) = theme.panels(fig, 1)
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
    theme.name_points(ax, at, [bar for point in points for bar in point.bars], styles)
    theme.save(fig, path)


def _draw(ax: Axes, point: Point, style: Style) -> None:
    x, y = theme.sides(point.identifiability), theme.sides(point.pss)
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
    asked = f"{theme.counts(point.pss.n for point in points)} questions (PSS)"
    answered = f"{theme.counts(point.identifiability.n for point in points)} answers (identifiability)"
    small = "; large: mean over training seeds; small and open: each seed" if any(point.seeds for point in points) else ""
    return f"n = {asked}, {answered}; bars: {INTERVAL}{small}"
