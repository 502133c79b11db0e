"""Converts values for the page: numbers, estimates and names for JSON, and the look of each model.

Contract: NaN and infinity become None. Every text is printable, short and on one line; different names stay different. The same
model has the same colour, mark and line in every figure, printed or on the page; colours are adapted to a dark background.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from permix.rendering.theme import Style
from permix.sanitize import escape_control, truncate
from permix.types import Estimate

DARK_COLOURS = {"#000000": "#f0f0ea", "#D55E00": "#f08a4b", "#0072B2": "#5aaee8", "#009E73": "#35c79b"}
"""Colours for a dark background, for printed colours that are hard to see there; the other colours serve on both backgrounds."""

D3_SYMBOLS = {"o": "circle", "s": "square", "^": "triangle", "D": "diamond", "v": "wye", "P": "cross", "X": "star"}
"""The d3 symbol for each matplotlib mark: the nearest one that differs from all others."""

_DASH_UNIT = 1.8
"""Width of the line whose multiples give the lengths of dashes, as in matplotlib."""


def model_look(label: str, method: str, style: Style) -> dict[str, Any]:
    return {
        "label": label,
        "method": method,
        "colour": style.colour,
        "dark": DARK_COLOURS.get(style.colour, style.colour),
        "symbol": D3_SYMBOLS[style.marker],
        "dash": svg_dash(style.line),
    }


def svg_dash(line: Any) -> str:
    """An SVG dash array; empty for a solid line."""
    return "" if line == "-" else " ".join(f"{_DASH_UNIT * part:g}" for part in line[1])


def model_looks(styles: Mapping[str, Style], methods: Mapping[str, str]) -> list[dict[str, Any]]:
    """The look of every label, in order. `methods` gives the method of each label."""
    return [model_look(label, methods.get(label, label), style) for label, style in styles.items()]


_MAX_NAME_CHARS = 80
"""Largest number of characters of a model's, persona's or judge's name."""

MAX_PERSONA_TEXT_CHARS = 300
"""Largest number of characters of a persona's text."""

_SIGNIFICANT_DIGITS = 5
"""Significant digits of numbers: more than any interval supports, in half the bytes of a float."""


def json_number(value: float | None) -> float | None:
    """The rounded number. None when the value is missing or not finite."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.{_SIGNIFICANT_DIGITS}g}")


def json_estimate(estimate: Estimate | None) -> dict[str, Any] | None:
    """{value, low, high, n}. None where nothing was measured."""
    if estimate is None:
        return None
    return {
        "value": json_number(estimate.value),
        "low": json_number(estimate.low),
        "high": json_number(estimate.high),
        "n": estimate.n,
    }


def printable_text(text: str, width: int = _MAX_NAME_CHARS) -> str:
    """The text as one printable line of at most `width` characters."""
    return truncate(escape_control(text).replace("\n", " "), width)


def unique_display_names(originals: Iterable[str]) -> dict[str, str]:
    """{original: its name on the page}. When two names would look the same, the later ones are numbered."""
    names: dict[str, str] = {}
    used: set[str] = set()
    for original in originals:
        name, number = printable_text(original), 1
        while name in used:
            number += 1
            name = f"{printable_text(original, _MAX_NAME_CHARS - 6)} ({number})"
        names.setdefault(original, name)
        used.add(names[original])
    return names
