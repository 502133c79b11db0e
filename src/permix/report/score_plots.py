"""Draws the figures of scores: PSS against identifiability and against right and in character, judges' scores, and the validation
of judges.

Contract: as in `permix.rendering.plots`. In a trade-off figure (`permix.report.tradeoff`) the y axis is PSS. Each method is one
point with both intervals, at the mean of its training seeds; each seed is a small point in the same style. In the figures of
judges, a judge that is not trusted has hollow marks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from operator import call
from pathlib import Path
from typing import TYPE_CHECKING

from permix.judges.summary import JudgeSummary
from permix.rendering import theme
from permix.rendering.theme import HOLLOW_MARKER_NOTE, QUESTION_INTERVAL_NOTE, Style
from permix.report.judges import (
    KIND_FILE_STEMS,
    KIND_TITLES,
    UNTESTED_MARK,
    UNTRUSTED_MARK,
    JudgedRun,
    listed_rubrics,
    score_name,
    trust_mark,
)
from permix.report.tradeoff import PSS_AXIS_LABEL, Tradeoff, TradeoffPoint
from permix.sanitize import escape_for_figure
from permix.types import Estimate, JudgeControl

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.transforms import Bbox

JudgedRuns = Mapping[str, JudgedRun]


PERSONA_INTERVAL_NOTE = "95 % intervals over personas"

CONTROL_NAMES: dict[JudgeControl, str] = {
    "none": "own persona",
    "wrong-persona": "wrong persona",
    "no-persona": "no persona",
    "padded": "padded",
    "retest": "retest",
    "injected": "injected",
}

SCORE_COLOURS = ("#002b62", "#4c556c", "#828079", "#bfb06b", "#fee838")
"""Of the scores 1 to 5: cividis from 0.05 to 1."""

_MIN_LABELLED_WIDTH = 0.06  # as a share of the bar; a narrower piece has no room for its number


def plot_judge_figures(
    models: Mapping[str, Sequence[JudgedRun]], out: Path, styles: Mapping[str, Style], draw: Callable[..., None] = call
) -> dict[str, str]:
    """Draw two figures for each judged kind of run. Returns {file name: what the figure shows}.

    `draw(plot, ...)` draws a figure, or nothing where figures cannot be drawn.
    """
    figures: dict[str, str] = {}
    for kind in KIND_FILE_STEMS:
        runs = {label: run for label, judged in models.items() for run in judged if run.kind == kind}
        if runs:
            scores_file, validation_file = judge_figure_files(kind)
            draw(plot_judge_scores, runs, kind, out / scores_file, styles)
            draw(plot_judge_reliability, runs, kind, out / validation_file)
            figures[scores_file] = f"judges' scores, {KIND_TITLES[kind]}"
            figures[validation_file] = f"validation of judges, {KIND_TITLES[kind]}"
    return figures


def judge_figure_files(kind: str) -> tuple[str, str]:
    """The file names of the two figures of a kind of run: scores, and validation."""
    return f"judged-{KIND_FILE_STEMS[kind]}.png", f"trial-{KIND_FILE_STEMS[kind]}.png"


def plot_judge_scores(runs: JudgedRuns, kind: str, path: Path, styles: Mapping[str, Style]) -> None:
    """Draw a panel for each judge: the mean over the tasks, then each task, with every model and its interval."""
    judges = list(dict.fromkeys(judge for run in runs.values() for judge in run.judges))
    summaries = {judge: {label: run.judges[judge] for label, run in runs.items() if judge in run.judges} for judge in judges}
    rows = {judge: _row_names(kind, list(by_model.values())) for judge, by_model in summaries.items()}
    height = sum(0.45 + len(rows[judge]) * (0.16 + 0.13 * len(runs)) for judge in judges)
    n = theme.join_distinct_counts(one.persona_score.n for by_model in summaries.values() for one in by_model.values())
    hollow = any(not one.discriminates_persona for by_model in summaries.values() for one in by_model.values())
    marks = HOLLOW_MARKER_NOTE if hollow else ""
    fig = theme.new_figure(
        0.7 + height, f"Judges' scores: {KIND_TITLES[kind]}", f"n = {n} personas; bars: {PERSONA_INTERVAL_NOTE}{marks}"
    )
    for ax, judge in zip(theme.stacked_axes(fig, len(judges)), judges, strict=True):
        for place, (label, one) in enumerate(summaries[judge].items()):
            offset = (place - (len(summaries[judge]) - 1) / 2) * 0.7 / len(runs)
            for row, task in enumerate(rows[judge]):
                _plot_score(
                    ax,
                    one.tasks.get(task) if row else one.persona_score,
                    row + offset,
                    styles[label],
                    filled=bool(one.discriminates_persona),
                )
        ax.set_yticks(range(len(rows[judge])), [escape_for_figure(task, 30) for task in rows[judge]])
        ax.set_ylim(len(rows[judge]) - 0.4, -0.6)
        ax.set_xlim(0.95, 5.05)
        ax.set_title(escape_for_figure(f"judge {judge}", 60), loc="left", fontsize=10)
        ax.grid(visible=False, axis="y")
    ax.set_xlabel("mean score, 1 to 5")
    theme.draw_legend(fig, list(runs), styles)
    theme.save_figure(fig, path)


def plot_judge_reliability(runs: JudgedRuns, kind: str, path: Path) -> None:
    """Draw a panel for each model and judge: how many answers got each score, in the measurement and under each control."""
    judged = [(label, one) for label, run in runs.items() for one in run.judges.values()]
    shown = [[control for control in CONTROL_NAMES if any(one.histogram[control])] for _, one in judged]
    note = (
        "answers that got each score, n on the right, without rubrics that ask the same of every persona; a good judge gives "
        "lower scores under a wrong persona and without a persona, and the same scores for padded, retest and injected answers; "
        f"{UNTRUSTED_MARK} does not tell right from wrong persona; {UNTESTED_MARK} was not validated"
    )
    fig = theme.new_figure(
        0.8 + sum(0.55 + 0.24 * len(bars) for bars in shown), f"Validation of judges: {KIND_TITLES[kind]}", note
    )
    heights = [max(1, len(bars)) for bars in shown]
    axes = list(fig.subplots(len(judged), 1, sharex=True, squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0])
    for ax, (label, one), bars in zip(axes, judged, shown, strict=True):
        for row, control in enumerate(bars):
            _plot_stacked_bar(ax, row, one.histogram[control])
        ax.set_yticks(range(len(bars)), [CONTROL_NAMES[control] for control in bars])
        ax.set_ylim(len(bars) - 0.4, -0.6)
        ax.set_xlim(0, 1)
        ax.spines[["top", "right", "left"]].set_visible(False)
        ax.set_title(
            escape_for_figure(
                f"{label}, judge {one.label}: AUC {one.reliability.auc}{trust_mark(one.discriminates_persona)}", 90
            ),
            loc="left",
            fontsize=10,
        )
    axes[-1].set_xlabel("share of answers")
    from matplotlib.patches import Patch

    patches = [Patch(facecolor=shade, label=f"score {score}") for score, shade in enumerate(SCORE_COLOURS, start=1)]
    fig.legend(handles=patches, loc="outside lower center", ncols=5, frameon=False)
    theme.save_figure(fig, path)


def _row_names(kind: str, judges: Sequence[JudgeSummary]) -> list[str]:
    """The name of the mean, then the rubrics of any model that have their own row."""
    tasks = [task for one in judges for task in one.tasks]
    return [score_name(kind, tasks), *listed_rubrics(kind, tasks)]


def _plot_score(ax: Axes, estimate: Estimate | None, row: float, style: Style, *, filled: bool) -> None:
    if estimate is not None and estimate.value is not None:
        face = style.colour if filled else "w"
        ax.errorbar(
            estimate.value,
            row,
            xerr=theme.error_bar_lengths(estimate),
            fmt=style.marker,
            color=style.colour,
            ms=5,
            lw=1.3,
            mfc=face,
        )


def _plot_stacked_bar(ax: Axes, row: int, counts: Sequence[int]) -> None:
    """Draw one bar of five pieces; each piece shows its share when there is room."""
    total, left = sum(counts), 0.0
    for place, (count, shade) in enumerate(zip(counts, SCORE_COLOURS, strict=True)):
        width = count / total
        ax.barh(row, width, left=left, height=0.78, color=shade, edgecolor="w", lw=0.6)
        if width >= _MIN_LABELLED_WIDTH:
            ink = "w" if place < 2 else "k"
            ax.text(left + width / 2, row, f"{100 * width:.0f} %", ha="center", va="center", fontsize=8, color=ink)
        left += width
    ax.text(1.005, row, f"{total}", ha="left", va="center", fontsize=8.5, color="0.3")


def plot_tradeoff(tradeoff: Tradeoff, path: Path, styles: Mapping[str, Style] | None = None) -> None:
    """Draw a trade-off figure; `styles` are by the method's name."""
    points, chance = tradeoff.points.values(), tradeoff.chance
    styles = styles or theme.styles_for(point.name for point in points)
    fig = theme.new_figure(5.2, tradeoff.view.title, _tradeoff_note(tradeoff))
    (ax,) = theme.stacked_axes(fig, 1)
    for point in points:
        _plot_tradeoff_point(ax, point, styles[point.name])
    at = {point.name: point.xy for point in points}
    for start, end in tradeoff.arrows:
        arrow = {"arrowstyle": "-|>", "color": "0.45", "lw": 1.1, "shrinkA": 8, "shrinkB": 8, "ls": (0, (4, 3))}
        ax.annotate("", xy=at[end], xytext=at[start], arrowprops=arrow, zorder=1)
    if chance is not None:
        ax.axvline(chance, color="0.4", lw=1.2, ls=":")
        ax.annotate(
            "chance", (chance, 0.02), xycoords=("data", "axes fraction"), xytext=(4, 0), textcoords="offset points", color="0.3"
        )
    ax.set_xlabel(tradeoff.view.axis_label)
    ax.set_ylabel(PSS_AXIS_LABEL)
    ax.margins(0.15)
    low, high = ax.get_ylim()
    ax.set_ylim(max(0.0, low), min(1.06, high))
    theme.label_points(ax, at, [box for point in points for box in _point_boxes(point)], styles)
    theme.save_figure(fig, path)


def _plot_tradeoff_point(ax: Axes, point: TradeoffPoint, style: Style) -> None:
    x, y = theme.error_bar_lengths(point.x), theme.error_bar_lengths(point.pss)
    ax.errorbar(*point.xy, xerr=x, yerr=y, fmt=style.marker, color=style.colour, ms=8, capsize=3, lw=1.4)
    if point.chance is not None:
        x_value, y_value = point.xy
        ax.plot([point.chance, x_value], [y_value, y_value], ":", color=style.colour, lw=1, zorder=1)
        ax.plot(point.chance, y_value, "|", color=style.colour, ms=14, mew=2)
    for seed in point.seeds.values():
        ax.plot(*seed, style.marker, color=style.colour, ms=4.5, mfc="w", mew=1.2, zorder=3)


def _point_boxes(point: TradeoffPoint) -> list[Bbox]:
    """The two interval bars through the point, and its seeds, as boxes without width."""
    from matplotlib.transforms import Bbox

    (x, y), (left, right), (low, high) = point.xy, theme.interval_ends(point.x), theme.interval_ends(point.pss)
    return [Bbox([[left, y], [right, y]]), Bbox([[x, low], [x, high]]), *(Bbox([seed, seed]) for seed in point.seeds.values())]


def _tradeoff_note(tradeoff: Tradeoff) -> str:
    points = tradeoff.points.values()
    chance = "; upright stroke: by chance" if any(point.chance is not None for point in points) else ""
    seeds = "; large: mean over training seeds; small and open: each seed" if any(point.seeds for point in points) else ""
    return f"n = {tradeoff.counts_text}; bars: {QUESTION_INTERVAL_NOTE}{seeds}{chance}"
