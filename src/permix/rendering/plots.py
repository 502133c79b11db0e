"""Draws figures of stability, training, dev evaluations, drift and identifiability, as PNG and SVG.

Contract: each function draws one figure from records or arrays alone, with the same bytes for the same input. Intervals are those
of the estimates passed in. A value that cannot be computed is left out, a cell without a score is hatched; neither is drawn as 0.
Pass the same `styles` everywhere to give a model the same look in every figure. Titles and names may be hostile text.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import call
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np

from permix.evals.drift_report import Drift, TurnSeries
from permix.metrics.dev_curve import DevCurve, marked_step
from permix.metrics.identifiability import Identifiability
from permix.metrics.measures import MEASURE_VIEWS, measures_in
from permix.metrics.stability import StabilitySummary
from permix.metrics.statistics import nanmean_along
from permix.rendering import theme
from permix.rendering.table import md_label
from permix.rendering.theme import HOLLOW_MARKER_NOTE, QUESTION_INTERVAL_NOTE, PlotArray, Style
from permix.sanitize import escape_for_figure
from permix.types import NO_PERSONA_TAG, Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DRIFT_AXIS_LABELS = {
    "identifiability": "identifiability",
    "breaks": "answers that\nbreak character",
    "repetition": "share repeated\nfrom earlier answers",
    "echo": "share repeated\nfrom the question",
    "words": "words per\nanswer",
}


def plot_drift(drift_by_model: Mapping[str, Drift], path: Path, styles: Mapping[str, Style] | None = None) -> None:
    """Measures of interviews by turn: one panel per measure that any model has. A turn without a score leaves a gap."""
    styles = styles or theme.styles_for(drift_by_model)
    names = list(dict.fromkeys(one.name for drift in drift_by_model.values() for one in drift.series))
    n_personas = theme.join_distinct_counts(len(drift.persona_ids) for drift in drift_by_model.values())
    dotted = "; dotted: chance" if "identifiability" in names else ""
    all_series = [one for drift in drift_by_model.values() for one in drift.series]
    hollow = HOLLOW_MARKER_NOTE if any(map(_is_untrusted, all_series)) else ""
    note = f"n = {n_personas} personas, means over them; bands: 95 % intervals over personas, for each turn alone{dotted}{hollow}"
    fig = theme.new_figure(1.0 + 1.35 * len(names), "Interviews by turn", note)
    axes = theme.stacked_axes(fig, len(names))
    for ax, name in zip(axes, names, strict=True):
        for label, drift in drift_by_model.items():
            if (series := drift.find_series(name)) is not None:
                _plot_turn_series(ax, series, styles[label])
        judge = next((one.judge for one in all_series if one.name == name), None)
        ax.set_ylabel(DRIFT_AXIS_LABELS[name] if judge is None else f"judge\n{escape_for_figure(judge, 24)}")
        _set_y_limits(ax, name, is_judge_score=judge is not None)
        if name == "identifiability":
            for chance in {drift.chance for drift in drift_by_model.values()}:
                ax.axhline(chance, color="0.4", lw=1.2, ls=":")
    axes[-1].set_xlabel("turn")
    theme.integer_ticks(axes[-1])
    theme.draw_legend(fig, list(drift_by_model), styles)
    theme.save_figure(fig, path)


def _plot_turn_series(ax: Axes, series: TurnSeries, style: Style) -> None:
    turn_I = np.arange(1, len(series.by_turn) + 1)
    value_I = np.array([np.nan if one.value is None else one.value for one in series.by_turn])
    band_I_2 = np.array([theme.interval_ends(one) for one in series.by_turn])
    face = "w" if _is_untrusted(series) else style.colour
    ax.plot(turn_I, value_I, color=style.colour, marker=style.marker, mfc=face, ms=4.5, lw=1.6, ls=style.line, clip_on=False)
    ax.fill_between(turn_I, *band_I_2.T, color=style.colour, alpha=0.13, lw=0)


def _is_untrusted(series: TurnSeries) -> bool:
    return series.judge is not None and not series.discriminates_persona


def _set_y_limits(ax: Axes, name: str, *, is_judge_score: bool) -> None:
    """1 to 5 for a judge's scores; other measures from 0, shares at most to 1."""
    if is_judge_score:
        ax.set_ylim(1, 5)
    else:
        top = ax.get_ylim()[1]
        ax.set_ylim(0, top if name == "words" else min(1.0, max(top, 0.1)))


Styles = Mapping[str, Style]

_TrainLog = Sequence[Mapping[str, Any]]


NO_PERSONA_DASHES = (0, (6, 3))

SHARED_ROWS_NOTE = "; several training seeds: their mean, a bar over their range, a small mark for each seed, and no band"

TRAINING_PANELS = (
    ("reward", "mean reward"),
    ("completion_tokens", "completion tokens"),
    ("frac_nonzero_advantage_groups", "share of groups with\nnonzero advantage"),
    ("kl", "KL from the\nreference model"),
)


DEV_CURVE_NAME_WIDTH = 16
"""Characters of a line of an axis' name."""


def dev_curve_panels(*, with_identifiability: bool) -> list[tuple[str, str]]:
    """(key, name) of each panel of a dev evaluation."""
    measures = [(measure.name, measure.sentence_label) for measure in measures_in("dev_eval_curves")]
    return [*measures, ("identifiability", "identifiability")] if with_identifiability else measures


def dev_curve_marks(curves: Iterable[DevCurve], *, has_chance: bool) -> str:
    """What the marks of a figure of dev evaluations mean. There is a ring only where it is known which weights were kept."""
    ring = "ring: the selected weights; " if any(marked_step(curve) is not None for curve in curves) else ""
    return f"{ring}thin dashed lines without markers: no persona{'; dotted: chance' if has_chance else ''}"


def plot_persona_accuracy(summaries: Mapping[str, StabilitySummary], path: Path, styles: Styles | None = None) -> None:
    """Accuracy by persona, with the first model's best persona on top; dashed line and band: the same model without a persona.

    The training seeds of one method share a row: a small mark for each seed, and their mean with a bar over their range.
    """
    styles = styles or theme.styles_for(summaries)
    row_of = {id: row for row, id in enumerate(_persona_order(list(summaries.values())))}
    groups = list(theme.labels_by_legend_name(list(summaries), styles).values())
    note = (
        f"n = {_question_count_text(summaries)}; bars: {QUESTION_INTERVAL_NOTE}; dashed line and band: no persona, "
        f"with its 95 % interval{SHARED_ROWS_NOTE if len(groups) < len(summaries) else ''}"
    )
    fig = theme.new_figure(1.2 + len(row_of) * (0.14 + 0.13 * len(groups)), "Accuracy by persona", note)
    (ax,) = theme.stacked_axes(fig, 1)
    for number, group in enumerate(groups):
        style, offset = styles[group[0]], (number - (len(groups) - 1) / 2) * 0.72 / len(groups)
        of_group = [summaries[label] for label in group]
        _plot_no_persona_level(ax, [one.baseline for one in of_group], style)
        for id, row in row_of.items():
            accuracies = [persona.accuracy for one in of_group for persona in one.personas if persona.id == id]
            _plot_interval_or_range(ax, accuracies, row + offset, style, n_seeds=len(group))
    ax.set_yticks(range(len(row_of)), [escape_for_figure(id, 30) for id in row_of])
    ax.set_ylim(len(row_of) - 0.4, -0.6)
    ax.grid(visible=False, axis="y")
    ax.set_xlabel("accuracy")
    theme.draw_legend(fig, list(summaries), styles)
    theme.save_figure(fig, path)


def plot_heatmap(
    mean_P_Q: PlotArray, persona_ids: Sequence[str], path: Path, title: str, baseline_Q: PlotArray | None = None
) -> None:
    """Mean score of each persona × question: easiest question on the left, best persona on top, unscored cells hatched."""
    rows = np.argsort(-np.nan_to_num(nanmean_along(mean_P_Q, axis=1), nan=-1.0), kind="stable")
    columns = np.argsort(-np.nan_to_num(nanmean_along(mean_P_Q, axis=0), nan=-1.0), kind="stable")
    P, Q = mean_P_Q.shape
    note = f"{P} personas × {Q} questions; {int((~np.isnan(mean_P_Q)).sum())} of {P * Q} cells scored; hatched: no score"
    fig = theme.new_figure(1.1 + 0.24 * (P + (baseline_Q is not None)), title, note)
    heights = [P] if baseline_Q is None else [1, P]
    axes = list(fig.subplots(len(heights), 1, sharex=True, squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0])
    if baseline_Q is not None:
        _plot_score_matrix(axes[0], baseline_Q[None, columns], ["no persona"])
        axes[0].tick_params(bottom=False)
    image = _plot_score_matrix(axes[-1], mean_P_Q[rows][:, columns], [escape_for_figure(persona_ids[row], 30) for row in rows])
    axes[-1].set_xlabel("questions, easiest first (by mean over personas)")
    fig.colorbar(image, ax=axes, label="mean score", fraction=0.04, pad=0.02)
    theme.save_figure(fig, path)


def plot_best_of_k(summaries: Mapping[str, StabilitySummary], path: Path, styles: Styles | None = None) -> None:
    """Expected accuracy of the best of k personas drawn at random, by k; dashed line: the same model without a persona."""
    styles = styles or theme.styles_for(summaries)
    note = (
        f"n = {_question_count_text(summaries)}; bands: {QUESTION_INTERVAL_NOTE}; thin dashed lines without markers: no persona"
    )
    fig = theme.new_figure(4.2, "Expected accuracy of the best of k personas", note)
    (ax,) = theme.stacked_axes(fig, 1)
    for label, summary in summaries.items():
        style = styles[label]
        known = [(k, one) for k, one in enumerate(summary.expected_best_of_k, start=1) if one.value is not None]
        k_K, value_K = np.array([k for k, _ in known]), np.array([one.value for _, one in known])
        band_K_2 = np.array([theme.interval_ends(one) for _, one in known]).reshape(-1, 2)
        ax.plot(k_K, value_K, color=style.colour, marker=style.marker, ms=5, lw=1.6, ls=style.line)
        ax.fill_between(k_K, *band_K_2.T, color=style.colour, alpha=0.15, lw=0)
        if summary.baseline.value is not None:
            ax.axhline(summary.baseline.value, color=style.colour, lw=1.0, ls=NO_PERSONA_DASHES, zorder=1)
    theme.integer_ticks(ax)
    ax.set_xlabel("k, personas tried")
    ax.set_ylabel("expected best accuracy")
    theme.draw_legend(fig, list(summaries), styles)
    theme.save_figure(fig, path)


def plot_learning_curves(logs: Mapping[str, _TrainLog], path: Path, styles: Styles | None = None) -> None:
    """Training logs by step: one panel for each of `TRAINING_PANELS` that some log has. A step without a value leaves a gap."""
    panels = {name: _values_by_log(logs, lambda line, key=key: line.get(key)) for key, name in TRAINING_PANELS}  # type: ignore[misc]
    _plot_training_panels(logs, panels, path, styles, "Training", "")


def plot_reward_by_tag(logs: Mapping[str, _TrainLog], path: Path, styles: Styles | None = None) -> None:
    """Mean reward by step, one panel for each tag of `frequent_tags`. A step without rollouts of a tag leaves a gap."""
    tags, n_tags = frequent_tags(logs.values())
    panels = {
        escape_for_figure(tag_name(tag), 24): _values_by_log(logs, lambda line, tag=tag: reward_of_tag(line, tag))  # type: ignore[misc]
        for tag in tags
    }
    _plot_training_panels(logs, panels, path, styles, "Mean reward by kind of persona", tag_count_note(len(tags), n_tags))


def _values_by_log(logs: Mapping[str, _TrainLog], value_of: Callable[[Mapping[str, Any]], Any]) -> dict[str, PlotArray]:
    """value_N of each log, NaN where a step has no value."""
    values = {label: [value_of(line) for line in log] for label, log in logs.items()}
    return {label: np.array([math.nan if one is None else float(one) for one in own]) for label, own in values.items()}


def _plot_training_panels(
    logs: Mapping[str, _TrainLog],
    panels: Mapping[str, Mapping[str, PlotArray]],
    path: Path,
    styles: Styles | None,
    title: str,
    further_note: str,
) -> None:
    """Draw {name of the panel: value_N by log}: each step thin, a centred mean bold. A panel without a value is left out."""
    styles = styles or theme.styles_for(logs)
    panels = {name: by_log for name, by_log in panels.items() if any(np.isfinite(one).any() for one in by_log.values())}
    window = max(1, max((len(log) for log in logs.values()), default=0) // 20 * 2 + 1)
    n_steps = theme.join_distinct_counts(len(log) for log in logs.values())
    note = (
        f"n = {n_steps} steps, one run each, so no interval; thin: each step; bold: centred mean of {window} steps{further_note}"
    )
    fig = theme.new_figure(max(2.6, round(7 / 3 * len(panels) if len(panels) < 4 else 1.5 * len(panels), 2)), title, note)
    axes = theme.stacked_axes(fig, max(1, len(panels)))
    for ax, (name, by_log) in zip(axes, panels.items(), strict=False):
        for label, value_N in by_log.items():
            step_N = [line["step"] for line in logs[label]]
            ax.plot(step_N, value_N, color=styles[label].colour, lw=0.7, alpha=0.45)
            ax.plot(step_N, moving_average(value_N, window), color=styles[label].colour, lw=2.2, ls=styles[label].line)
        ax.set_ylabel(name)
        ax.set_ylim(bottom=0)
    axes[-1].set_xlabel("step")
    theme.integer_ticks(axes[-1])
    theme.draw_legend(fig, list(logs), styles, marker=False)
    theme.save_figure(fig, path)


MAX_TAG_PANELS = 6

MIN_TAG_STEPS = 5
"""A tag that a training has in fewer steps has no curve: a point is the mean of a few rollouts."""


def frequent_tags(logs: Iterable[_TrainLog], min_steps: int = MIN_TAG_STEPS) -> tuple[list[str], int]:
    """(the tags in most of these logs and their steps, at most `MAX_TAG_PANELS`; the number of all tags). None without personas.

    Only tags that some log has in `min_steps` steps. "none", the tag of rollouts without a persona, comes last: the others are
    compared with it.
    """
    by_log = [
        Counter(tag for line in log for tag in _rewards_by_tag(line) if reward_of_tag(line, tag) is not None) for log in logs
    ]
    counts, n_logs = sum(by_log, Counter[str]()), Counter(tag for own in by_log for tag in own)
    lasting = {tag for own in by_log for tag, n_steps in own.items() if n_steps >= min_steps}
    tags = sorted(lasting - {NO_PERSONA_TAG}, key=lambda tag: (-n_logs[tag], -counts[tag], tag))
    if not tags:
        return [], 0
    without_persona = [NO_PERSONA_TAG] if NO_PERSONA_TAG in lasting else []
    return tags[: MAX_TAG_PANELS - len(without_persona)] + without_persona, len(counts)


def reward_of_tag(line: Mapping[str, Any], tag: str) -> float | None:
    """Mean reward of a step's rollouts under personas of a tag; None if it has none."""
    value = _rewards_by_tag(line).get(tag)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) else None


def _rewards_by_tag(line: Mapping[str, Any]) -> Mapping[str, Any]:
    found = line.get("reward_by_tag")
    return found if isinstance(found, Mapping) else {}


def tag_name(tag: str) -> str:
    return "no persona" if tag == NO_PERSONA_TAG else tag


def tag_count_note(n_shown: int, n_tags: int) -> str:
    """The end of a figure's note where not all tags are shown."""
    return f"; {n_shown} of {n_tags} tags, those in most steps" if n_shown < n_tags else ""


def plot_dev_curves(curves: Mapping[str, DevCurve], path: Path, styles: Styles | None = None) -> None:
    """Accuracy and identifiability of dev evaluations by training step, with bands; a ring marks the selected weights."""
    styles = styles or theme.styles_for(curves)
    points = [point for curve in curves.values() for point in curve.points]
    answers = [point.identifiability.n for point in points if point.identifiability is not None]
    counts = f"{theme.join_distinct_counts(point.n_questions for point in points)} questions"
    counts += f", {theme.join_distinct_counts(answers)} answers (identifiability)" if answers else ""
    marks = dev_curve_marks(curves.values(), has_chance=bool(answers))
    panels = dev_curve_panels(with_identifiability=bool(answers))
    fig = theme.new_figure(
        round(1.0 + 2.2 * len(panels), 1),
        "Dev evaluations during training",
        f"n = {counts}; bands: {QUESTION_INTERVAL_NOTE}; {marks}",
    )
    axes = theme.stacked_axes(fig, len(panels))
    for ax, (key, name) in zip(axes, panels, strict=True):
        for label, curve in curves.items():
            _plot_band(ax, _estimates_by_step(curve, key), styles[label], ring_step=marked_step(curve))
        ax.set_ylabel(fill(name, DEV_CURVE_NAME_WIDTH))
    for label, curve in curves.items():
        known = _estimates_by_step(curve, "baseline")
        value_N = [one.value or 0.0 for one in known.values()]
        axes[0].plot(list(known), value_N, color=styles[label].colour, lw=1.0, ls=NO_PERSONA_DASHES, zorder=1)
    for chance in {point.chance for point in points if point.chance is not None}:
        axes[-1].axhline(chance, color="0.4", lw=1.2, ls=":")
    accuracy_axes = axes[: len(MEASURE_VIEWS["dev_eval_curves"])]
    top = max(ax.get_ylim()[1] for ax in accuracy_axes)
    for ax in axes:
        ax.set_ylim(0, min(1.04, top if ax in accuracy_axes else ax.get_ylim()[1]))
    axes[-1].set_xlabel("step")
    theme.integer_ticks(axes[-1], steps=[1, 2, 5, 10])
    theme.draw_legend(fig, list(curves), styles)
    theme.save_figure(fig, path)


def moving_average(value_N: PlotArray, window: int) -> PlotArray:
    """Centred mean [N] over `window` (odd) values, fewer at both ends; NaN values are left out, and NaN where all are NaN."""
    half = window // 2
    return np.array([nanmean_along(value_N[max(0, i - half) : i + half + 1], axis=0) for i in range(len(value_N))], dtype=float)


def _persona_order(summaries: Sequence[StabilitySummary]) -> list[str]:
    """Every persona id once: the first model's by falling accuracy, then the other models' in the same way."""
    accuracy: dict[str, float] = {}
    for one in reversed(summaries):
        accuracy |= {persona.id: -1.0 if persona.accuracy.value is None else persona.accuracy.value for persona in one.personas}
    first = {persona.id for one in summaries[:1] for persona in one.personas}
    return sorted(accuracy, key=lambda id: (id not in first, -accuracy[id], id))


def _plot_interval_or_range(ax: Axes, estimates: Sequence[Estimate], row: float, style: Style, *, n_seeds: int) -> None:
    """One model: its value and interval. Several seeds: a small mark for each, and their mean with a bar over their range."""
    values = _known_values(estimates)
    if not values:
        return
    mean = min(max(math.fsum(values) / len(values), min(values)), max(values))  # the mean of equal values is rounded
    if n_seeds == 1:
        bar = theme.error_bar_lengths(estimates[0])
    else:
        bar = [[mean - min(values)], [max(values) - mean]]
        ax.plot(values, [row] * len(values), ls="", marker="|", color=style.colour, ms=5, mew=0.8)
    ax.errorbar(mean, row, xerr=bar, fmt=style.marker, color=style.colour, ms=4.5, lw=1.3)


def _known_values(estimates: Iterable[Estimate]) -> list[float]:
    return [one.value for one in estimates if one.value is not None]


def _estimates_by_step(curve: DevCurve, key: str) -> dict[int, Estimate]:
    """One measure of a run's dev evaluations by step; steps without a value are left out."""
    estimates = {point.step: point.estimate(key) for point in curve.points}
    return {step: one for step, one in estimates.items() if one is not None and one.value is not None}


def _plot_band(ax: Axes, estimate_at: Mapping[int, Estimate], style: Style, ring_step: int | None) -> None:
    """A measure by step with its intervals, and a ring at `ring_step`. Markers at 0 are not clipped by the axis."""
    value_N = [one.value or 0.0 for one in estimate_at.values()]
    band_N_2 = np.array([theme.interval_ends(one) for one in estimate_at.values()]).reshape(-1, 2)
    ax.plot(list(estimate_at), value_N, color=style.colour, marker=style.marker, ms=4.5, lw=1.6, ls=style.line, clip_on=False)
    ax.fill_between(list(estimate_at), *band_N_2.T, color=style.colour, alpha=0.13, lw=0)
    if ring_step is not None and ring_step in estimate_at:
        ax.plot(
            [ring_step], [estimate_at[ring_step].value or 0.0], "o", color=style.colour, ms=12, mfc="none", mew=1.8, clip_on=False
        )


def _plot_no_persona_level(ax: Axes, estimates: Sequence[Estimate], style: Style) -> None:
    """One model: its value and interval. Several seeds: their mean."""
    if values := _known_values(estimates):
        ax.axvline(math.fsum(values) / len(values), color=style.colour, lw=1.0, ls=NO_PERSONA_DASHES, zorder=1)
        if len(estimates) == 1:
            ax.axvspan(*theme.interval_ends(estimates[0]), color=style.colour, alpha=0.08, lw=0, zorder=0)


def _plot_score_matrix(ax: Axes, value_R_Q: PlotArray, names: Sequence[str]) -> Any:
    """One block of cells, one row per name; where a value is NaN the hatched background shows."""
    from matplotlib.patches import Rectangle

    R, Q = value_R_Q.shape
    ax.add_patch(Rectangle((-0.5, -0.5), Q, R, facecolor="0.85", edgecolor="0.55", hatch="/////", lw=0))
    cells = np.ma.masked_invalid(value_R_Q)
    image = ax.imshow(cells, aspect="auto", cmap="cividis", vmin=0, vmax=1, interpolation="nearest", zorder=2)
    ax.set_yticks(range(R), names, fontsize=9)
    ax.tick_params(left=False)
    return image


def _question_count_text(summaries: Mapping[str, StabilitySummary]) -> str:
    return f"{theme.join_distinct_counts(one.n_questions for one in summaries.values())} questions"


_IDENTIFIABILITY_CURVE_FILE = "learnt.png"

_CONFUSION_FILE_PREFIX = "confusion-"

_MAX_PERSONAS_WITH_NAMES = 30
"""Most personas for which columns carry names; with more they carry the numbers of the rows."""

_MAX_PERSONAS_WITH_COUNTS = 24
"""Most personas for which a count fits into its cell."""


def plot_identifiability_figures(
    results: Mapping[str, Identifiability], out: Path, styles: Mapping[str, Style], draw: Callable[..., None] = call
) -> dict[str, str]:
    """Write every figure that these results have data for; returns {file name: caption}.

    `draw(plot, ...)` draws a figure, or nothing where figures cannot be drawn.
    """
    figures = {}
    if any(len(one.learning_curve) > 1 for one in results.values()):
        draw(plot_identifiability_curves, results, out / _IDENTIFIABILITY_CURVE_FILE, styles)
        figures[_IDENTIFIABILITY_CURVE_FILE] = "identifiability by the number of questions that the classifier was trained on"
    first = personas_by_recall(next(iter(results.values()))) if results else ()
    for number, (name, one) in enumerate(results.items(), start=1):
        file = out / f"{_CONFUSION_FILE_PREFIX}{number}.png"
        draw(plot_confusion_matrix, one, file, f"{name}: confusion of personas", first)
        figures[f"{_CONFUSION_FILE_PREFIX}{number}.png"] = f"confusion of personas, {md_label(name)}"
    return figures


def plot_identifiability_curves(
    results: Mapping[str, Identifiability], path: Path, styles: Mapping[str, Style] | None = None
) -> None:
    """Identifiability by the number of questions whose answers the classifier was trained on; dotted: chance."""
    styles = styles or theme.styles_for(results)
    answers = theme.join_distinct_counts(one.n_answered for one in results.values())
    note = (
        f"n = {answers} answers, the same at every point; bands: {QUESTION_INTERVAL_NOTE}; dotted: chance. A curve that "
        "still rises at its right end would rise further with more questions"
    )
    fig = theme.new_figure(4.2, "Identifiability by the classifier's training questions", note)
    (ax,) = theme.stacked_axes(fig, 1)
    for name, one in results.items():
        points = [point for point in one.learning_curve if point.accuracy.value is not None]
        questions, style = [point.questions for point in points], styles[name]
        ax.plot(
            questions,
            [point.accuracy.value or 0.0 for point in points],
            color=style.colour,
            marker=style.marker,
            ms=5,
            lw=1.6,
            ls=style.line,
        )
        band_N_2 = np.array([theme.interval_ends(point.accuracy) for point in points]).reshape(-1, 2)
        ax.fill_between(questions, *band_N_2.T, color=style.colour, alpha=0.12, lw=0)
    for chance in {one.chance for one in results.values()}:
        ax.axhline(chance, color="0.4", lw=1.2, ls=":")
    _set_log2_axis(ax, sorted({point.questions for one in results.values() for point in one.learning_curve}))
    ax.set_ylim(bottom=0)
    ax.set_xlabel("questions that the classifier was trained on, per persona (log scale)")
    ax.set_ylabel("identifiability")
    theme.draw_legend(fig, list(results), styles)
    theme.save_figure(fig, path)


def _set_log2_axis(ax: Axes, questions: list[int]) -> None:
    from matplotlib.ticker import NullLocator, ScalarFormatter

    ax.set_xscale("log", base=2)
    ax.set_xticks(questions)
    ax.xaxis.set_major_formatter(ScalarFormatter())
    ax.xaxis.set_minor_locator(NullLocator())


def personas_by_recall(result: Identifiability) -> tuple[str, ...]:
    """Persona ids by falling recall: the share of a persona's answers that the classifier attributes to it."""
    recalls = {id: recall.value or 0.0 for id, recall in zip(result.persona_ids, result.per_persona, strict=True)}
    return tuple(sorted(recalls, key=lambda id: (-recalls[id], id)))


def plot_confusion_matrix(result: Identifiability, path: Path, title: str, first_ids: Sequence[str] = ()) -> None:
    """Rows: the persona that answered; columns: the persona that the classifier names; shade: share of the row's answers.

    Personas come in the order of `first_ids`, so that figures of several models can be compared; others follow by falling recall.
    """
    order = _persona_order_indices(result, first_ids)
    count_P_P = np.array(result.confusion, dtype=float)[np.ix_(order, order)]
    answered_P = count_P_P.sum(axis=1, keepdims=True)
    share_P_P = np.divide(count_P_P, answered_P, out=np.zeros_like(count_P_P), where=answered_P > 0)
    P = len(order)
    numbered = P > _MAX_PERSONAS_WITH_NAMES
    names = [escape_for_figure(result.persona_ids[p], 30) for p in order]
    counts = "numbers: counts of answers; " if P <= _MAX_PERSONAS_WITH_COUNTS else ""
    note = f"n = {result.n_answered} answers of {P} personas to {result.n_questions} questions; {counts}shade: share of the row"
    fig = theme.new_figure(1.5 + P * max(0.16, min(0.42, 5.0 / P)), title, note)
    ax = fig.subplots()
    image = ax.imshow(share_P_P, aspect="auto", cmap="Greys", vmin=0, vmax=1, interpolation="nearest")
    ax.set_yticks(
        range(P), [f"{name}  {row}" for row, name in enumerate(names, 1)] if numbered else names, fontsize=_font_size(P)
    )
    ax.set_xticks(range(P), [str(row) for row in range(1, P + 1)] if numbered else names, fontsize=_font_size(P), rotation=90)
    ax.tick_params(length=0)
    ax.set_ylabel("persona that answered")
    ax.set_xlabel("persona that the classifier names")
    if P <= _MAX_PERSONAS_WITH_COUNTS:
        _write_counts(ax, count_P_P, share_P_P)
    fig.colorbar(image, ax=ax, label="share of the persona's answers", fraction=0.04, pad=0.02)
    theme.save_figure(fig, path)


def _persona_order_indices(result: Identifiability, first_ids: Sequence[str]) -> list[int]:
    ids = [id for id in dict.fromkeys((*first_ids, *personas_by_recall(result))) if id in result.persona_ids]
    return [result.persona_ids.index(id) for id in ids]


def _write_counts(ax: Axes, count_P_P: PlotArray, share_P_P: PlotArray) -> None:
    """The count in every cell above 0, in white on dark cells."""
    for row, column in zip(*np.nonzero(count_P_P), strict=True):
        colour = "white" if share_P_P[row, column] > 0.5 else "black"
        ax.text(
            column,
            row,
            f"{count_P_P[row, column]:.0f}",
            ha="center",
            va="center",
            color=colour,
            fontsize=_font_size(len(count_P_P)),
        )


def _font_size(personas: int) -> float:
    """Font size of the names in points: 9 for few personas, down to 6 for many."""
    return max(6.0, min(9.0, 11 - personas / 8))
