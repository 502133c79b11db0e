"""The judge on trial: what it is asked besides the answers themselves, to see what its scores are worth."""

from collections.abc import Sequence

from permix.judging.base import Item


def controls(items: Sequence[Item], n: int, seed: int) -> list[Item]:
    """Of the answers in `items` (control "none"), `n` for each control, spread over personas and rubrics."""
    raise NotImplementedError
