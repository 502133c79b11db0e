"""`judgements.jsonl`: every call of one judge, appended as it comes back, and what stands at the end."""

from pathlib import Path

from permix.judging.base import ItemKey, Judgement


def read_judgements(folder: Path) -> dict[ItemKey, Judgement]:
    """Of each item the last call that has a score; the last one of all where none has."""
    raise NotImplementedError


def judges_of(run: Path) -> list[Path]:
    """The folders of the judges of a run, in the order of their names."""
    raise NotImplementedError
