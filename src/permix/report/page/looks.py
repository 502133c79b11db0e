"""How a model looks on the page: the colours, marks and lines of the printed figures, and their colours on a dark ground.

Contract: the same model looks the same in every figure, printed or on the page, told apart by colour, by mark and by line.
"""

from collections.abc import Mapping
from typing import Any

from permix.report.canvas import Style

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
