"""What every payload of the page is made of: numbers, estimates and names that JSON can hold and a reader can see.

Contract: no NaN and no infinity, None instead; every text printable, in one line and short; names that differ stay different.

How a model looks on the page: the colours, marks and lines of the printed figures, and their colours on a dark ground.

Contract: the same model looks the same in every figure, printed or on the page, told apart by colour, by mark and by line.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from permix.rendering.theme import Style
from permix.sanitize import escape_control, truncate
from permix.types import Estimate

DARK_COLOURS = {"#000000": "#f0f0ea", "#D55E00": "#f08a4b", "#0072B2": "#5aaee8", "#009E73": "#35c79b"}
"""Colours that would not stand out on a dark ground; the others serve on both."""

D3_SYMBOLS = {"o": "circle", "s": "square", "^": "triangle", "D": "diamond", "v": "wye", "P": "cross", "X": "star"}
"""matplotlib's marks as d3 names its symbols, each the nearest that differs from all others."""

_DASH_UNIT = 1.8
"""Width of a line that dashes are given in multiples of, as matplotlib does."""


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
    """An SVG dash array; empty for a whole line."""
    return "" if line == "-" else " ".join(f"{_DASH_UNIT * part:g}" for part in line[1])


def model_looks(styles: Mapping[str, Style], methods: Mapping[str, str]) -> list[dict[str, Any]]:
    """Of every label, in order; `methods`: which method each is a training seed of."""
    return [model_look(label, methods.get(label, label), style) for label, style in styles.items()]


_MAX_NAME_CHARS = 80
"""Characters of a model's, persona's or judge's name."""

MAX_PERSONA_TEXT_CHARS = 300
"""Characters of a persona's text."""

_SIGNIFICANT_DIGITS = 5
"""Significant digits: more than any interval supports, and half the bytes of a float."""


def json_number(value: float | None) -> float | None:
    """Rounded; None for what is no finite number."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.{_SIGNIFICANT_DIGITS}g}")


def json_estimate(estimate: Estimate | None) -> dict[str, Any] | None:
    """{value, low, high, n}; None where nothing was measured."""
    if estimate is None:
        return None
    return {
        "value": json_number(estimate.value),
        "low": json_number(estimate.low),
        "high": json_number(estimate.high),
        "n": estimate.n,
    }


def printable_text(text: str, width: int = _MAX_NAME_CHARS) -> str:
    """One printable line."""
    return truncate(escape_control(text).replace("\n", " "), width)


def unique_display_names(originals: Iterable[str]) -> dict[str, str]:
    """{original: its name on the page}: where two would look the same, the later ones are numbered."""
    found: dict[str, str] = {}
    taken: set[str] = set()
    for original in originals:
        shown, place = printable_text(original), 1
        while shown in taken:
            place += 1
            shown = f"{printable_text(original, _MAX_NAME_CHARS - 6)} ({place})"
        found.setdefault(original, shown)
        taken.add(found[original])
    return found
