"""The figures: each function draws one from summaries or arrays alone and writes PNG and SVG, the same bytes for the same input.

Contract: intervals are those of the estimates handed in; what cannot be computed is left out, what was not scored is hatched, and
neither is drawn as zero. Pass the same `styles` to give a model one look in every figure. Titles and names may be hostile text.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from permix.escape import figure as safe
from permix.evals.stability_summary import StabilitySummary
from permix.evals.stats import mean_along
from permix.report import canvas
from permix.report.canvas import INTERVAL, Array, Style
from permix.train.probe import Curve, taken
from permix.types import Estimate

Styles = Mapping[str, Style]
Log = Sequence[Mapping[str, Any]]

NO_PERSONA = (0, (6, 3))
PROBE_PANELS = (
    ("mean", "mean accuracy\nover personas"), ("worst", "worst persona's\naccuracy"), ("identifiability", "identifiability"),
)  # fmt: skip
PANELS = (("reward", "mean reward"), ("completion_tokens", "completion tokens"), ("signal_groups", "groups with signal"))


def persona_accuracy(summaries: Mapping[str, StabilitySummary], path: Path, styles: Styles | None = None) -> None:
    """Accuracy under each persona, the first model's best at the top; dashed line and band: the same model without persona."""
    styles = styles or canvas.styles_for(summaries)
    row_of = {id: row for row, id in enumerate(_persona_order(list(summaries.values())))}
    note = f"n = {_questions(summaries)}; bars: {INTERVAL}; dashed line and band: no persona, with its interval"
    fig = canvas.sheet(1.2 + len(row_of) * (0.14 + 0.13 * len(summaries)), "Accuracy under each persona", note)
    (ax,) = canvas.panels(fig, 1)
    for place, (label, summary) in enumerate(summaries.items()):
        style, offset = styles[label], (place - (len(summaries) - 1) / 2) * 0.72 / len(summaries)
        _no_persona(ax, summary.baseline, style)
        for persona in summary.personas:
            _bar(ax, persona.accuracy, row_of[persona.id] + offset, style)
    ax.set_yticks(range(len(row_of)), [safe(id, 30) for id in row_of])
    ax.set_ylim(len(row_of) - 0.4, -0.6)
    ax.grid(visible=False, axis="y")
    ax.set_xlabel("accuracy")
    canvas.legend(fig, list(summaries), styles)
    canvas.save(fig, path)


def heatmap(mean_P_Q: Array, persona_ids: Sequence[str], path: Path, title: str, baseline_Q: Array | None = None) -> None:
    """Mean score of persona × question: easiest question left, best persona at the top, unscored cells hatched."""
    rows = np.argsort(-np.nan_to_num(mean_along(mean_P_Q, axis=1), nan=-1.0), kind="stable")
    columns = np.argsort(-np.nan_to_num(mean_along(mean_P_Q, axis=0), nan=-1.0), kind="stable")
    P, Q = mean_P_Q.shape
    note = f"{P} personas × {Q} questions; {int((~np.isnan(mean_P_Q)).sum())} of {P * Q} cells scored; hatched: no score"
    fig = canvas.sheet(1.1 + 0.24 * (P + (baseline_Q is not None)), title, note)
    heights = [P] if baseline_Q is None else [1, P]
    axes = list(fig.subplots(len(heights), 1, sharex=True, squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0])
    if baseline_Q is not None:
        _cells(axes[0], baseline_Q[None, columns], ["no persona"])
        axes[0].tick_params(bottom=False)
    image = _cells(axes[-1], mean_P_Q[rows][:, columns], [safe(persona_ids[row], 30) for row in rows])
    axes[-1].set_xlabel("questions, easiest first (by mean over personas)")
    fig.colorbar(image, ax=axes, label="mean score", fraction=0.04, pad=0.02)
    canvas.save(fig, path)


def lottery(summaries: Mapping[str, StabilitySummary], path: Path, styles: Styles | None = None) -> None:
    """Expected accuracy of the best of k personas drawn at random; dashed line: the same model without persona."""
    styles = styles or canvas.styles_for(summaries)
    note = f"n = {_questions(summaries)}; bands: {INTERVAL}; thin dashed lines without markers: no persona"
    fig = canvas.sheet(4.2, "The persona lottery: expected best of k personas", note)
    (ax,) = canvas.panels(fig, 1)
    for label, summary in summaries.items():
        style = styles[label]
        known = [(k, one) for k, one in enumerate(summary.lottery, start=1) if one.value is not None]
        k_K, value_K = np.array([k for k, _ in known]), np.array([one.value for _, one in known])
        band_K_2 = np.array([canvas.ends(one) for _, one in known]).reshape(-1, 2)
        ax.plot(k_K, value_K, color=style.colour, marker=style.marker, ms=5, lw=1.6, ls=style.line)
        ax.fill_between(k_K, *band_K_2.T, color=style.colour, alpha=0.15, lw=0)
        if summary.baseline.value is not None:
            ax.axhline(summary.baseline.value, color=style.colour, lw=1.0, ls=NO_PERSONA, zorder=1)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel("k, personas tried")
    ax.set_ylabel("expected best accuracy")
    canvas.legend(fig, list(summaries), styles)
    canvas.save(fig, path)


def learning_curves(logs: Mapping[str, Log], path: Path, styles: Styles | None = None) -> None:
    """Training logs: reward, completion length and share of groups with signal by step; a step without a value leaves a gap."""
    styles = styles or canvas.styles_for(logs)
    window = max(1, max((len(log) for log in logs.values()), default=0) // 20 * 2 + 1)
    steps = canvas.counts(len(log) for log in logs.values())
    note = f"n = {steps} steps, one run each, so no interval; thin: each step; bold: centred mean of {window} steps"
    fig = canvas.sheet(7.0, "Training", note)
    axes = canvas.panels(fig, len(PANELS))
    for ax, (key, name) in zip(axes, PANELS, strict=True):
        for label, log in logs.items():
            step_N = [line["step"] for line in log]
            value_N = np.array([math.nan if line.get(key) is None else float(line[key]) for line in log])
            ax.plot(step_N, value_N, color=styles[label].colour, lw=0.7, alpha=0.45)
            ax.plot(step_N, moving_average(value_N, window), color=styles[label].colour, lw=2.2, ls=styles[label].line)
        ax.set_ylabel(name)
        ax.set_ylim(bottom=0)
    axes[-1].set_xlabel("step")
    axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    canvas.legend(fig, list(logs), styles, marker=False)
    canvas.save(fig, path)


def probe_curves(curves: Mapping[str, Curve], path: Path, styles: Styles | None = None) -> None:
    """Accuracy and identifiability by training step, with bands; a ring on the weights that became the model."""
    styles = styles or canvas.styles_for(curves)
    every = [point for curve in curves.values() for point in curve.points]
    answers = [point.identifiability.n for point in every if point.identifiability is not None]
    asked = f"{canvas.counts(point.n_questions for point in every)} questions"
    asked += f", {canvas.counts(answers)} answers (identifiability)" if answers else ""
    marks = "ring: the weights taken; thin dashed lines without markers: no persona" + ("; dotted: chance" if answers else "")
    fig = canvas.sheet(
        7.6 if answers else 5.4, "Probes on the dev side, while training", f"n = {asked}; bands: {INTERVAL}; {marks}"
    )
    shown = PROBE_PANELS if answers else PROBE_PANELS[:2]
    axes = canvas.panels(fig, len(shown))
    for ax, (key, name) in zip(axes, shown, strict=True):
        for label, curve in curves.items():
            _band(ax, _known(curve, key), styles[label], ring=taken(curve))
        ax.set_ylabel(name)
    for label, curve in curves.items():
        known = _known(curve, "baseline")
        value_N = [one.value or 0.0 for one in known.values()]
        axes[0].plot(list(known), value_N, color=styles[label].colour, lw=1.0, ls=NO_PERSONA, zorder=1)
    for chance in {point.chance for point in every if point.chance is not None}:
        axes[-1].axhline(chance, color="0.4", lw=1.2, ls=":")
    top = max(ax.get_ylim()[1] for ax in axes[:2])
    for ax in axes:
        ax.set_ylim(0, min(1.04, top if ax in axes[:2] else ax.get_ylim()[1]))
    axes[-1].set_xlabel("step")
    axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    canvas.legend(fig, list(curves), styles)
    canvas.save(fig, path)


def moving_average(value_N: Array, window: int) -> Array:
    """Centred mean over `window` (odd) neighbours; shorter at both ends, missing values left out, NaN where all are missing."""
    half = window // 2
    return np.array([mean_along(value_N[max(0, i - half) : i + half + 1], axis=0) for i in range(len(value_N))], dtype=float)


def _persona_order(summaries: Sequence[StabilitySummary]) -> list[str]:
    """Every persona once, the first model's best first; then those only others met; those without a score last."""
    value: dict[str, float] = {}
    for one in reversed(summaries):
        value |= {persona.id: -1.0 if persona.accuracy.value is None else persona.accuracy.value for persona in one.personas}
    first = {persona.id for one in summaries[:1] for persona in one.personas}
    return sorted(value, key=lambda id: (id not in first, -value[id], id))


def _bar(ax: Axes, estimate: Estimate, row: float, style: Style) -> None:
    if estimate.value is not None:
        ax.errorbar(estimate.value, row, xerr=canvas.sides(estimate), fmt=style.marker, color=style.colour, ms=4.5, lw=1.3)


def _known(curve: Curve, key: str) -> dict[int, Estimate]:
    """One measure of a run's probes by step; steps without a value are left out."""
    found = {point.step: getattr(point, key) for point in curve.points}
    return {step: one for step, one in found.items() if one is not None and one.value is not None}


def _band(ax: Axes, known: Mapping[int, Estimate], style: Style, ring: int) -> None:
    """A measure over steps with its intervals, and a ring at one of them. What lies at 0 is not cut by the axis."""
    value_N = [one.value or 0.0 for one in known.values()]
    band_N_2 = np.array([canvas.ends(one) for one in known.values()]).reshape(-1, 2)
    ax.plot(list(known), value_N, color=style.colour, marker=style.marker, ms=4.5, lw=1.6, ls=style.line, clip_on=False)
    ax.fill_between(list(known), *band_N_2.T, color=style.colour, alpha=0.13, lw=0)
    if ring in known:
        ax.plot([ring], [known[ring].value or 0.0], "o", color=style.colour, ms=12, mfc="none", mew=1.8, clip_on=False)


def _no_persona(ax: Axes, estimate: Estimate, style: Style) -> None:
    if estimate.value is not None:
        ax.axvline(estimate.value, color=style.colour, lw=1.0, ls=NO_PERSONA, zorder=1)
        ax.axvspan(*canvas.ends(estimate), color=style.colour, alpha=0.08, lw=0, zorder=0)


def _cells(ax: Axes, value_R_Q: Array, names: Sequence[str]) -> Any:
    """One block of cells; where there is no value the hatched ground shows."""
    R, Q = value_R_Q.shape
    ax.add_patch(Rectangle((-0.5, -0.5), Q, R, facecolor="0.85", edgecolor="0.55", hatch="/////", lw=0))
    cells = np.ma.masked_invalid(value_R_Q)
    image = ax.imshow(cells, aspect="auto", cmap="cividis", vmin=0, vmax=1, interpolation="nearest", zorder=2)
    ax.set_yticks(range(R), names, fontsize=9)
    ax.tick_params(left=False)
    return image


def _questions(summaries: Mapping[str, StabilitySummary]) -> str:
    return f"{canvas.counts(one.n_questions for one in summaries.values())} questions"
