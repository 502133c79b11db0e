"""Figures of identifiability: who is taken for whom, and what more questions would tell.

Contract: drawn from `Identifiability` records alone; the same bytes for the same input. Names may be hostile text.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator, ScalarFormatter

from permix.escape import figure as safe
from permix.evals.identify import Identifiability
from permix.report import canvas
from permix.report.canvas import INTERVAL, Array, Style
from permix.report.tables import label

CURVE = "learnt.png"
MATRIX = "confusion-"
NAMED = 30
"""Personas up to which columns carry names; beyond, numbers that stand before the names of the rows."""
COUNTED = 24
"""Personas up to which a count fits into its cell."""


def draw(told: Mapping[str, Identifiability], out: Path, styles: Mapping[str, Style]) -> dict[str, str]:
    """Every figure that these results allow; {file name: what it shows}."""
    figures = {}
    if any(len(one.learning_curve) > 1 for one in told.values()):
        learning_curves(told, out / CURVE, styles)
        figures[CURVE] = "identifiability by the number of questions learnt from"
    first = ranked(next(iter(told.values()))) if told else ()
    for place, (name, one) in enumerate(told.items(), start=1):
        confusion(one, out / f"{MATRIX}{place}.png", f"{name}: who is taken for whom", first)
        figures[f"{MATRIX}{place}.png"] = f"who is taken for whom, {label(name)}"
    return figures


def learning_curves(told: Mapping[str, Identifiability], path: Path, styles: Mapping[str, Style] | None = None) -> None:
    """Accuracy by the number of questions whose answers the classifier learnt from; dotted: chance."""
    styles = styles or canvas.styles_for(told)
    answers = canvas.counts(one.n_answered for one in told.values())
    note = f"n = {answers} answers, the same at every point; bands: {INTERVAL}; dotted: chance. Still climbing at its right end: "
    fig = canvas.sheet(4.2, "Identifiability by what it learnt from", note + "more questions would tell more")
    (ax,) = canvas.panels(fig, 1)
    for name, one in told.items():
        known = [point for point in one.learning_curve if point.accuracy.value is not None]
        questions, style = [point.questions for point in known], styles[name]
        ax.plot(
            questions,
            [point.accuracy.value or 0.0 for point in known],
            color=style.colour,
            marker=style.marker,
            ms=5,
            lw=1.6,
            ls=style.line,
        )
        band_N_2 = np.array([canvas.ends(point.accuracy) for point in known]).reshape(-1, 2)
        ax.fill_between(questions, *band_N_2.T, color=style.colour, alpha=0.12, lw=0)
    for chance in {one.chance for one in told.values()}:
        ax.axhline(chance, color="0.4", lw=1.2, ls=":")
    _by_doubling(ax, sorted({point.questions for one in told.values() for point in one.learning_curve}))
    ax.set_ylim(bottom=0)
    ax.set_xlabel("questions whose answers were learnt from, of each persona (log scale)")
    ax.set_ylabel("identifiability")
    canvas.legend(fig, list(told), styles)
    canvas.save(fig, path)


def _by_doubling(ax: Axes, questions: list[int]) -> None:
    ax.set_xscale("log", base=2)
    ax.set_xticks(questions)
    ax.xaxis.set_major_formatter(ScalarFormatter())
    ax.xaxis.set_minor_locator(NullLocator())


def ranked(one: Identifiability) -> tuple[str, ...]:
    """Its personas, best told first."""
    told = {id: recall.value or 0.0 for id, recall in zip(one.persona_ids, one.per_persona, strict=True)}
    return tuple(sorted(told, key=lambda id: (-told[id], id)))


def confusion(one: Identifiability, path: Path, title: str, first: Sequence[str] = ()) -> None:
    """Rows: whose answer it was; columns: who the classifier says; shade: share of the row's answers.

    Personas stand in the order of `first`, so that figures of several models can be laid side by side; others follow, best told
    first.
    """
    order = _order(one, first)
    count_P_P = np.array(one.confusion, dtype=float)[np.ix_(order, order)]
    answered_P = count_P_P.sum(axis=1, keepdims=True)
    share_P_P = np.divide(count_P_P, answered_P, out=np.zeros_like(count_P_P), where=answered_P > 0)
    P = len(order)
    numbered = P > NAMED
    names = [safe(one.persona_ids[p], 30) for p in order]
    told = "counts of answers; " if P <= COUNTED else ""
    note = f"n = {one.n_answered} answers of {P} personas to {one.n_questions} questions; {told}shade: share of the row"
    fig = canvas.sheet(1.5 + P * max(0.16, min(0.42, 5.0 / P)), title, note)
    ax = fig.subplots()
    image = ax.imshow(share_P_P, aspect="auto", cmap="Greys", vmin=0, vmax=1, interpolation="nearest")
    ax.set_yticks(range(P), [f"{name}  {row}" for row, name in enumerate(names, 1)] if numbered else names, fontsize=_size(P))
    ax.set_xticks(range(P), [str(row) for row in range(1, P + 1)] if numbered else names, fontsize=_size(P), rotation=90)
    ax.tick_params(length=0)
    ax.set_ylabel("whose answer it is")
    ax.set_xlabel("who the classifier says it is")
    if P <= COUNTED:
        _write_counts(ax, count_P_P, share_P_P)
    fig.colorbar(image, ax=ax, label="share of the persona's answers", fraction=0.04, pad=0.02)
    canvas.save(fig, path)


def _order(one: Identifiability, first: Sequence[str]) -> list[int]:
    ids = [id for id in dict.fromkeys((*first, *ranked(one))) if id in one.persona_ids]
    return [one.persona_ids.index(id) for id in ids]


def _write_counts(ax: Axes, count_P_P: Array, share_P_P: Array) -> None:
    """The count in every cell that is not empty, in white where the ground is dark."""
    for row, column in zip(*np.nonzero(count_P_P), strict=True):
        colour = "white" if share_P_P[row, column] > 0.5 else "black"
        ax.text(
            column, row, f"{count_P_P[row, column]:.0f}", ha="center", va="center", color=colour, fontsize=_size(len(count_P_P))
        )


def _size(personas: int) -> float:
    """Points of the names: smaller where there are many, never under 6."""
    return max(6.0, min(9.0, 11 - personas / 8))
