"""The figures of judges' scores: tasks by model, and what a judge does with answers that it should score lower or alike.

Contract as in `permix.report.plots`; a judge that is not trusted has hollow marks.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from permix.escape import figure as safe
from permix.judging.base import Control
from permix.judging.measure import Judged
from permix.report import canvas
from permix.report.canvas import HOLLOW, Style
from permix.report.judged import FILES, SCORE_OF, TITLES, UNTRIED, UNTRUSTED, JudgedRun, mark
from permix.types import Estimate

Runs = Mapping[str, JudgedRun]

INTERVAL = "95 % intervals over personas"
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
    n = canvas.counts(one.persona_score.n for by_model in found.values() for one in by_model.values())
    hollow = any(not one.trusted for by_model in found.values() for one in by_model.values())
    marks = HOLLOW if hollow else ""
    fig = canvas.sheet(0.7 + height, f"Judges' scores: {TITLES[kind]}", f"n = {n} personas; bars: {INTERVAL}{marks}")
    for ax, judge in zip(canvas.panels(fig, len(judges)), judges, strict=True):
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
    canvas.legend(fig, list(runs), styles)
    canvas.save(fig, path)


def trial(runs: Runs, kind: str, path: Path) -> None:
    """One panel a model and judge: which scores the answers got, and the same answers under each control."""
    judged = [(label, one) for label, run in runs.items() for one in run.judges.values()]
    shown = [[control for control in BARS if any(one.histogram[control])] for _, one in judged]
    note = (
        "answers that got each score, n at the right, without Toxicity Control; a good judge scores wrong and no persona lower "
        f"than the own one, the last three alike; {UNTRUSTED} does not tell right from wrong persona; {UNTRIED} was not tried"
    )
    fig = canvas.sheet(0.8 + sum(0.55 + 0.24 * len(bars) for bars in shown), f"The judges on trial: {TITLES[kind]}", note)
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
    canvas.save(fig, path)


def _tasks(every: Sequence[Judged]) -> list[str]:
    """Tasks of any model; none where there is but one, which is the mean itself."""
    tasks = list(dict.fromkeys(task for one in every for task in one.tasks))
    return tasks if len(tasks) > 1 else []


def _point(ax: Axes, estimate: Estimate | None, row: float, style: Style, *, filled: bool) -> None:
    if estimate is not None and estimate.value is not None:
        face = style.colour if filled else "w"
        ax.errorbar(
            estimate.value, row, xerr=canvas.sides(estimate), fmt=style.marker, color=style.colour, ms=5, lw=1.3, mfc=face
        )


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
