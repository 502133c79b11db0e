"""Which checkpoint a run goes on from."""

from pathlib import Path

from permix.errors import PermixError
from permix.records import read_json


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was written to its end: its trainer_state.json, written last, is whole."""
    found = sorted(folder.glob("checkpoint-*"), key=_number, reverse=True)
    return next((path for path in found if _is_whole(path)), None)


def step_of(checkpoint: Path | None) -> int:
    """Optimizer steps that are done."""
    return _number(checkpoint) if checkpoint else 0


def _number(checkpoint: Path) -> int:
    return int(checkpoint.name.rsplit("-", 1)[1])


def _is_whole(checkpoint: Path) -> bool:
    try:
        return bool(read_json(checkpoint / "trainer_state.json")["global_step"] == _number(checkpoint))
    except (PermixError, KeyError):
        return False
