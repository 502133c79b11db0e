"""What every payload of the page is made of: numbers, estimates and names that JSON can hold and a reader can see.

Contract: no NaN and no infinity, None instead; every text printable, in one line and short; names that differ stay different.

How a model looks on the page: the colours, marks and lines of the printed figures, and their colours on a dark ground.

Contract: the same model looks the same in every figure, printed or on the page, told apart by colour, by mark and by line.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from permix.rendering.theme import Style
from permix.sanitize import clip, visible
from permix.types import Estimate

DARK = {"#000000": "#f0f0ea", "#D55E00": "#f08a4b", "#0072B2": "#5aaee8", "#009E73": "#35c79b"}
"""Colours that would not stand out on a dark ground; the others serve on both."""

SYMBOLS = {"o": "circle", "s": "square", "^": "triangle", "D": "diamond", "v": "wye", "P": "cross", "X": "star"}
"""matplotlib's marks as d3 names its symbols, each the nearest that differs from all others."""

LINE = 1.8
"""Width of a line that dashes are given in multiples of, as matplotlib does."""


def look(label: str, method: str, style: Style) -> dict[str, Any]:
    return {
        "label": label,
        "method": method,
        "colour": style.colour,
        "dark": DARK.get(style.colour, style.colour),
        "symbol": SYMBOLS[style.marker],
        "dash": dash(style.line),
    }


def dash(line: Any) -> str:
    """An SVG dash array; empty for a whole line."""
    return "" if line == "-" else " ".join(f"{LINE * part:g}" for part in line[1])


def looks(styles: Mapping[str, Style], methods: Mapping[str, str]) -> list[dict[str, Any]]:
    """Of every label, in order; `methods`: which method each is a training seed of."""
    return [look(label, methods.get(label, label), style) for label, style in styles.items()]


NAME = 80
"""Characters of a model's, persona's or judge's name."""

TEXT = 300
"""Characters of a persona's text."""

DIGITS = 5
"""Significant digits: more than any interval supports, and half the bytes of a float."""


def number(value: float | None) -> float | None:
    """Rounded; None for what is no finite number."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.{DIGITS}g}")


def estimate(one: Estimate | None) -> dict[str, Any] | None:
    """{value, low, high, n}; None where nothing was measured."""
    if one is None:
        return None
    return {"value": number(one.value), "low": number(one.low), "high": number(one.high), "n": one.n}


def text(said: str, width: int = NAME) -> str:
    """One printable line."""
    return clip(visible(said).replace("\n", " "), width)


def names(originals: Iterable[str]) -> dict[str, str]:
    """{original: its name on the page}: where two would look the same, the later ones are numbered."""
    found: dict[str, str] = {}
    taken: set[str] = set()
    for original in originals:
        shown, place = text(original), 1
        while shown in taken:
            place += 1
            shown = f"{text(original, NAME - 6)} ({place})"
        found.setdefault(original, shown)
        taken.add(found[original])
    return found
