"""What the lines of a run amount to, added up line by line: how much is done, and what failed by what error.

A tally of a million cells must not hold them: of each it keeps one number, of a failed one its error too. A line that is not what
it should be is counted, and the first is named; it takes nothing down. The last record of a cell counts, as everywhere.
"""

import json
from collections import Counter
from collections.abc import Hashable, Iterable
from typing import Any, NotRequired

from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict

from permix.escape import clip, visible
from permix.view.asked import Asked

MESSAGE_CHARS = 200
LAST_STEP = 2**53 - 1  # whole numbers that a browser keeps exactly


class Tally:
    """Counts of one file. `broken`: lines that could not be read; `trouble` is the first of them."""

    unit = "lines"

    def __init__(self, file: str) -> None:
        self.file = file
        self.lines = self.broken = 0
        self.trouble = ""
        self._done: set[int] = set()
        self._failing: dict[int, tuple[str, str]] = {}

    @property
    def done(self) -> int:
        return len(self._done)

    @property
    def failing(self) -> int:
        """Units that were tried and have no result."""
        return len(self._failing)

    def take(self, lines: Iterable[bytes]) -> None:
        for line in lines:
            self.lines += 1
            try:
                self._enter(line)
            except (ValidationError, ValueError, OverflowError, KeyError, TypeError, RecursionError) as error:
                self.broken += 1
                self.trouble = self.trouble or f"{self.file}:{self.lines}: {clip(visible(_what(error)), MESSAGE_CHARS)}"

    def errors(self) -> list[dict[str, Any]]:
        """What stands without a result, by type, the most frequent first, each with one message."""
        counts = Counter(kind for kind, _ in self._failing.values())
        said = dict(self._failing.values())
        return [
            {"type": clip(visible(kind), 80), "count": count, "message": clip(visible(said[kind]), MESSAGE_CHARS)}
            for kind, count in counts.most_common(10)
        ]

    def _enter(self, line: bytes) -> None:
        raise NotImplementedError

    def _settle(self, unit: Hashable, error: tuple[str, str] | None) -> None:
        """One record of a unit: done where there is no error."""
        key = hash(unit)
        self._failing.pop(key, None)
        if error is None:
            self._done.add(key)
        else:
            self._done.discard(key)
            self._failing[key] = error


def _what(error: Exception) -> str:
    return f"not a record: {error.errors()[0]['msg']}" if isinstance(error, ValidationError) else f"not a record: {error!r}"


class _Failure(TypedDict):
    type: str
    message: str


class _Verdict(TypedDict):
    correct: bool | None
    error: NotRequired[str | None]


class _Completion(TypedDict):
    text: str


class _Cell(TypedDict):
    persona_id: str | None
    question_id: str
    sample: NotRequired[int]
    template: NotRequired[str]
    gold: NotRequired[str | None]
    completion: NotRequired[_Completion | None]
    verdict: NotRequired[_Verdict | None]
    failure: NotRequired[_Failure | None]


_CELL = TypeAdapter(_Cell)


class CellTally(Tally):
    """Of records.jsonl: cells that are asked (`asked`) and have their result. Others, which a strategy asks beside the grid or a
    run asked before it was made smaller, are only counted (`beside`)."""

    unit = "cells"

    def __init__(self, file: str, asked: Asked) -> None:
        super().__init__(file)
        self.asked = asked
        self._beside: set[int] = set()

    @property
    def beside(self) -> int:
        return len(self._beside)

    def _enter(self, line: bytes) -> None:
        cell = _CELL.validate_json(line)
        key = (cell["persona_id"], cell["question_id"], cell.get("sample", 0), cell.get("template", ""))
        if self.asked.holds(*key):
            self._settle(key, _error_of(cell))
        else:
            self._beside.add(hash(key))


def _error_of(cell: _Cell) -> tuple[str, str] | None:
    """Why a cell has no result; None where it has one."""
    failure, verdict = cell.get("failure"), cell.get("verdict")
    if cell.get("completion") is None:
        return (failure["type"], failure["message"]) if failure else ("no completion", "")
    if cell.get("gold") is None or (verdict is not None and verdict["correct"] is not None):
        return None
    return ("no verdict", (verdict.get("error") if verdict else None) or "")


class _Call(TypedDict):
    control: NotRequired[str]
    persona_id: str
    answered_by: str | None
    question_id: str
    sample: NotRequired[int]
    rubric: str
    score: int | None
    failure: NotRequired[_Failure | None]
    error: NotRequired[str | None]


_CALL = TypeAdapter(_Call)


class CallTally(Tally):
    """Of a judge's judgements.jsonl: items with a score. A call without one takes no score away."""

    unit = "scores"

    def _enter(self, line: bytes) -> None:
        call = _CALL.validate_json(line)
        key = (
            call.get("control", "none"), call["persona_id"], call["answered_by"], call["question_id"],
            call.get("sample", 0), call["rubric"],
        )  # fmt: skip
        failure = call.get("failure")
        if call["score"] is not None:
            self._settle(key, None)
        elif hash(key) not in self._done:
            self._settle(key, (failure["type"], failure["message"]) if failure else ("no score", call.get("error") or ""))


class StepTally(Tally):
    """Of a training's log.jsonl: its steps, each as it was last logged."""

    unit = "steps"

    def __init__(self, file: str) -> None:
        super().__init__(file)
        self.steps: dict[int, dict[str, Any]] = {}

    @property
    def done(self) -> int:
        return max(self.steps, default=0)

    def errors(self) -> list[dict[str, Any]]:
        unscored = sum(count for step in self.steps.values() if isinstance(count := step.get("unscored"), int))
        return [{"type": "no verdict", "count": unscored, "message": "rollouts left out of their step"}] if unscored else []

    def _enter(self, line: bytes) -> None:
        step = json.loads(line)
        number = int(step["step"])
        if not 0 <= number <= LAST_STEP:
            raise ValueError(f"step {number}; a step is from 0 to {LAST_STEP}")
        self.steps[number] = step
