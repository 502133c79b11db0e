"""What every payload of the page is made of: numbers, estimates and names that JSON can hold and a reader can see.

Contract: no NaN and no infinity, None instead; every text printable, in one line and short; names that differ stay different.
"""

import math
from collections.abc import Iterable
from typing import Any

from permix.escape import clip, visible
from permix.types import Estimate

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
