"""The figure of drift: every measure by turn, all models in one sheet. Same contract as `plots`."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from permix.escape import figure as safe
from permix.evals.drift_summary import Course, Drift
from permix.report import canvas
from permix.report.canvas import HOLLOW, Style

HEADINGS = {
    "identifiability": "persona told\n(identifiability)",
    "breaks": "answers that\nbreak character",
    "repetition": "said earlier\nin the interview",
    "echo": "said by the\ninterviewer",
    "words": "words of\nan answer",
}


def drift_curves(found: Mapping[str, Drift], path: Path, styles: Mapping[str, Style] | None = None) -> None:
    """One panel a measure that any model has, in the order of the table; turns without a score leave a gap."""
    styles = styles or canvas.styles_for(found)
    names = list(dict.fromkeys(one.name for drift in found.values() for one in drift.courses))
    asked = canvas.counts(len(drift.persona_ids) for drift in found.values())
    dotted = "; dotted: chance" if "identifiability" in names else ""
    courses = [one for drift in found.values() for one in drift.courses]
    hollow = HOLLOW if any(map(_means_nothing, courses)) else ""
    note = f"n = {asked} personas, means over them; bands: 95 % intervals over personas, of each turn by itself{dotted}{hollow}"
    fig = canvas.sheet(1.0 + 1.35 * len(names), "An interview, turn by turn", note)
    axes = canvas.panels(fig, len(names))
    for ax, name in zip(axes, names, strict=True):
        for label, drift in found.items():
            if (course := drift.course(name)) is not None:
                _band(ax, course, styles[label])
        judge = next((one.judge for one in courses if one.name == name), None)
        ax.set_ylabel(HEADINGS[name] if judge is None else f"judge\n{safe(judge, 24)}")
        _scale(ax, name, judged=judge is not None)
        if name == "identifiability":
            for chance in {drift.chance for drift in found.values()}:
                ax.axhline(chance, color="0.4", lw=1.2, ls=":")
    axes[-1].set_xlabel("turn")
    axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    canvas.legend(fig, list(found), styles)
    canvas.save(fig, path)


def _band(ax: Axes, course: Course, style: Style) -> None:
    turn_T = np.arange(1, len(course.by_turn) + 1)
    value_T = np.array([np.nan if one.value is None else one.value for one in course.by_turn])
    band_T_2 = np.array([canvas.ends(one) for one in course.by_turn])
    face = "w" if _means_nothing(course) else style.colour
    ax.plot(turn_T, value_T, color=style.colour, marker=style.marker, mfc=face, ms=4.5, lw=1.6, ls=style.line, clip_on=False)
    ax.fill_between(turn_T, *band_T_2.T, color=style.colour, alpha=0.13, lw=0)


def _means_nothing(course: Course) -> bool:
    return course.judge is not None and not course.trusted


def _scale(ax: Axes, name: str, *, judged: bool) -> None:
    """A judge's scores run from 1 to 5; all else begins at 0, and shares end at 1."""
    if judged:
        ax.set_ylim(1, 5)
    else:
        top = ax.get_ylim()[1]
        ax.set_ylim(0, top if name == "words" else min(1.0, max(top, 0.1)))
