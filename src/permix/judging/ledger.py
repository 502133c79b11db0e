"""`judgements.jsonl`: every call of one judge, appended as it comes back, and what stands at the end.

Its contract: one line a call, whatever came of it, so nothing that was paid for is lost; a torn last line is passed over. A run
has one folder a judge, `judges/NAME`, NAME being the judge's label made fit for a file system; the label is in config.json.
"""

import re
from collections.abc import Iterable
from pathlib import Path

from pydantic import ValidationError

from permix.errors import DataError
from permix.judging.base import ItemKey, Judgement
from permix.types import digest

FILE = "judgements.jsonl"
NAME_CHARS = 60


def judge_folder(run: Path, label: str) -> Path:
    """Where the judge of this label writes. Labels that differ have folders that differ."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", label).strip("-.")[:NAME_CHARS]
    return run / "judges" / (name if name and name == label else f"{name or 'judge'}-{digest(label, length=8)}")


def judges_of(run: Path) -> list[Path]:
    """The folders of the judges of a run, in the order of their names."""
    return sorted(path.parent for path in (run / "judges").glob("*/config.json"))


def read_calls(folder: Path) -> list[Judgement]:
    """Every call, in order. No file, no calls; DataError naming file and line when a whole line is not a judgement."""
    path = folder / FILE
    if not path.exists():
        return []
    calls = []
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.endswith(b"\n"):
                break
            try:
                calls.append(Judgement.model_validate_json(line))
            except ValidationError as error:
                raise DataError(f"{path}:{number}: not a judgement: {error.errors()[0]['msg']}") from error
    return calls


def read_judgements(folder: Path) -> dict[ItemKey, Judgement]:
    """Of each item the last call that has a score; the last one of all where none has.

    Calls in other words than those that followed do not count: the answer, or the rubric, was another one then.
    """
    return standing(read_calls(folder))


def standing(calls: Iterable[Judgement]) -> dict[ItemKey, Judgement]:
    """`read_judgements` of calls that are there already, in order."""
    found: dict[ItemKey, Judgement] = {}
    for call in calls:
        if stands(call, found.get(call.key)):
            found[call.key] = call
    return found


def stands(call: Judgement, before: Judgement | None) -> bool:
    """Whether a call takes the place of what stood for its item. One without a score takes no score away."""
    return before is None or before.prompt != call.prompt or call.score is not None or before.score is None
