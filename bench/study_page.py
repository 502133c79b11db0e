"""What a study leaves for reading: one table of every model, seed by seed, and one figure that shows what each knob trades."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from permix.rendering import theme
from permix.rendering.theme import QUESTION_INTERVAL_NOTE, Style
from permix.report.comparisons import compare_models
from permix.report.runs import ModelRuns
from permix.types import Estimate

BASE = "base"
KNOBS: dict[str, dict[str, str]] = {
    "method": {
        "RLVR": "rlvr", "PerMix": "permix", "+ replay": "replay", "SFT": "sft", "SFT, personas": "sft-personas", "seqkd": "seqkd",
    },
    "character replay, weight": {"0": "permix", "0.5": "replay", "2": "replay-strong", "0.5, on-policy": "replay-on"},
    "KL to the reference": {"0": "permix", "0.02": "kl", "0.02, no persona": "kl-no-persona"},
    "mix": {"0": "rlvr", "0.5": "mix-0.5", "0.8": "permix", "1": "mix-1.0"},
    "learning rate, LoRA": {"3e-5": "permix", "1e-5": "lr-1e-5", "LoRA, 3e-4": "lora"},
    "draws, rewards, words": {
        "none": "permix", "adaptive": "adaptive", "spares": "spares", "expressive": "expressive", "reason first": "reason",
    },
}  # fmt: skip
"""Of each knob, its settings in order and the arm that has it."""
UNORDERED = ("method", "draws, rewards, words")
BLUE = "#0072B2"

MEASURES = ("baseline", "mean", "worst", "pss")
HEAD = (
    "arm", "seed", "no persona", "mean", "worst", "PSS", "identifiability", "PSS − RLVR's", "worst − RLVR's",
    "identifiability − base's", "training CPU s",
)  # fmt: skip


def table(models: Mapping[str, ModelRuns]) -> str:
    """Markdown: a row a model, in the order given; differences are paired, RLVR's is that of the same seed."""
    rows = [HEAD, ("---",) * len(HEAD)]
    for label, model in models.items():
        arm, _, seed = label.partition(" ")
        plain = models.get(f"rlvr {seed}")
        against_plain = compare_models(plain, model) if plain is not None and plain is not model else None
        against_base = compare_models(models[BASE], model) if label != BASE else None
        seconds = model.row.train_cpu_s
        rows.append((
            arm, seed, *(_told(model.row.measures.get(name)) for name in MEASURES), _told(model.row.identifiability),
            *(_told(against_plain.measures.get(name) if against_plain else None, signed=True) for name in ("pss", "worst")),
            _told(against_base.identifiability if against_base else None, signed=True),
            "–" if seconds is None else f"{seconds:.0f}",
        ))  # fmt: skip
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _told(estimate: Estimate | None, *, signed: bool = False) -> str:
    if estimate is None or estimate.value is None:
        return "–"
    sign = "+" if signed else ""
    ends = "" if estimate.low is None else f" [{estimate.low:{sign}.2f}, {estimate.high:{sign}.2f}]"
    return f"{estimate.value:{sign}.3f}{ends}".replace("-", "−")


def knobs(models: Mapping[str, ModelRuns], seed: int, path: Path) -> None:
    """A panel a knob: the worst persona's accuracy upwards, identifiability to the right, settings joined in their order."""
    base = models[BASE].row
    asked = f"{base.n_questions} questions, {base.n_answers} answers"
    note = f"seed {seed}, one run a point; n = {asked}; bars: {QUESTION_INTERVAL_NOTE}; circle: base model; dotted: chance"
    found = {
        knob: {setting: point for setting, arm in settings.items() if (point := _point(models.get(f"{arm} {seed}"))) is not None}
        for knob, settings in KNOBS.items()
    }
    turned = {knob: known for knob, known in found.items() if len(known) > 1}
    rows = max(1, math.ceil(len(turned) / 2))
    fig = theme.new_figure(0.6 + 3 * rows, "What each knob trades: the worst persona's accuracy and identifiability", note)
    axes = fig.subplots(rows, 2, sharex=True, sharey=True, squeeze=False)
    for ax in axes.ravel()[len(turned) :]:
        ax.set_visible(False)
    for ax, (knob, known) in zip(axes.ravel(), turned.items(), strict=False):
        _panel(ax, [*known.values()], _point(models[BASE]), joined=knob not in UNORDERED)
        ax.set_title(knob, fontsize=10.5, loc="left")
        ax.axvline(base.chance, color="0.4", lw=1.0, ls=":")
    for ax in axes[-1]:
        ax.set_xlabel("identifiability")
        ax.xaxis.set_major_locator(MaxNLocator(5))
    for ax in axes[:, 0]:
        ax.set_ylabel("worst persona's accuracy")
    for ax, known in zip(
        axes.ravel(), turned.values(), strict=False
    ):  # once all points stand, since names go where there is room
        at = {setting: _centre(point) for setting, point in known.items()}
        theme.label_points(ax, at, [], dict.fromkeys(at, Style("#000000", "s", "-")))
    theme.save_figure(fig, path)


Point = tuple[Estimate, Estimate]
"""Identifiability, and the worst persona's accuracy."""


def _point(model: ModelRuns | None) -> Point | None:
    worst = None if model is None else model.row.measures.get("worst")
    if model is None or model.row.identifiability is None or worst is None:
        return None
    return model.row.identifiability, worst


def _centre(point: Point) -> tuple[float, float]:
    return point[0].value or 0.0, point[1].value or 0.0


def _panel(ax: Axes, settings: Sequence[Point], base: Point | None, *, joined: bool) -> None:
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(alpha=0.3)
    looks = [(point, "s", BLUE) for point in settings] + ([(base, "o", "#000000")] if base else [])
    for point, marker, colour in looks:
        x, y = map(theme.error_bar_lengths, point)
        ax.errorbar(*_centre(point), xerr=x, yerr=y, fmt=marker, color=colour, ms=6, lw=0.9, alpha=0.8)
    if joined:
        ax.plot(*zip(*map(_centre, settings), strict=True), color=BLUE, lw=1.0)
