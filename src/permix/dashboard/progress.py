"""What the lines of a run amount to, added up line by line: how much is done, and what failed by what error.

A tally of a million cells must not hold them: of each it keeps one number, of a failed one its error too. A line that is not what
it should be is counted, and the first is named; it takes nothing down. The last record of a cell counts, as everywhere.

What a run asks in all, from its own files: which cells belong to it, and how many there are.

Contract: nothing is asked of a model or a registry; a run that does not say how much it asks has a total of None, and no share.
"""

import json
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, NotRequired

from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict

from permix.evals.fidelity_records import fidelity_kind
from permix.metrics.sequential import Round, count_cells
from permix.sanitize import escape_control, truncate
from permix.storage.files import read_json

PersonaQuestionPairs = frozenset[tuple[str | None, str]]


class ExpectedCells(NamedTuple):
    """`personas`, `questions`: those of the grid, None where every one belongs; `pairs`: of a run that asks each persona its own.

    `cells`: how many, None where the run does not say.
    """

    total: int | None = None
    personas: frozenset[str | None] | None = None
    questions: frozenset[str] | None = None
    pairs: PersonaQuestionPairs | None = None
    samples: int | None = None

    def contains(self, persona: str | None, question: str, sample: int, template: str) -> bool:
        """Whether a recorded cell is one of them."""
        if self.pairs is not None and (persona, question) not in self.pairs:
            return False
        inside = (self.personas is None or persona in self.personas) and (self.questions is None or question in self.questions)
        return inside and (self.samples is None or sample < self.samples)


def read_expected_cells(run: Path, config: Mapping[str, Any]) -> ExpectedCells:
    """Of a run that has cells. DataError, KeyError, TypeError or ValueError: its files are not what they should be."""
    path = run / "grid.json"
    if config["stage"] not in ("stability", "fidelity") or not path.exists():
        return ExpectedCells()
    asked = read_json(path)
    return _expected_grid_cells(asked) if config["stage"] == "stability" else _expected_fidelity_cells(asked, config)


def _expected_grid_cells(asked: Mapping[str, Any]) -> ExpectedCells:
    """Every question under every persona (by every template) and under none."""
    personas, questions, samples = asked["persona_ids"], asked["question_ids"], int(asked["samples"])
    brought_in = len(personas) * len(asked.get("templates", ("",)))
    cells = (brought_in + 1) * len(questions) * samples
    if asked.get("rounds"):
        cells = count_cells([Round.model_validate(one) for one in asked["rounds"]], samples)
    return ExpectedCells(cells, frozenset([None, *personas]), frozenset(questions), samples=samples)


def _expected_fidelity_cells(asked: Mapping[str, Any], config: Mapping[str, Any]) -> ExpectedCells:
    """Of a fidelity run, by its kind."""
    personas = frozenset[str | None](asked["persona_ids"])
    match fidelity_kind(config):
        case "interview":
            return ExpectedCells(len(personas) * int(config["interview"]["turns"]), personas)
        case "personagym":
            own: PersonaQuestionPairs = frozenset((one["persona_id"], one["id"]) for one in asked["questions_asked"])
            alone: PersonaQuestionPairs = frozenset((None, id) for id in asked.get("asked_without_persona", ()))
            return ExpectedCells(len(own | alone), pairs=own | alone)
        case "open":
            questions, samples = frozenset[str](asked["question_ids"]), int(asked["samples"])
            return ExpectedCells(len(personas) * len(questions) * samples, personas, questions, samples=samples)


def expected_steps(run: Path, config: Mapping[str, Any]) -> int | None:
    """The optimizer steps of a training: what its log ends at. None until it has said so."""
    train = config["train"]
    if config["method"] in ("permix", "rlvr"):
        rounds, steps = (
            int(train["updates_per_rollout"]),
            _plan_steps(run) if config.get("plan_file") else int(config["plan"]["steps"]),
        )
    else:
        rounds, steps = int(train["epochs"]), _example_steps(run)
    return None if steps is None else steps * rounds


def _plan_steps(run: Path) -> int | None:
    from permix.plan import read_plan

    path = run / "plan.parquet"
    return read_plan(path).steps if path.is_file() else None


def _example_steps(run: Path) -> int | None:
    """Steps of the plan that have something to learn from."""
    from permix.training.sft_data import examples_by_step, load_sft_dataset

    chosen = load_sft_dataset(run)
    return None if chosen is None else len(examples_by_step(chosen.examples))


_MAX_MESSAGE_CHARS = 200

_MAX_STEP = 2**53 - 1  # whole numbers that a browser keeps exactly


class RecordTally:
    """Counts of one file. `malformed`: lines that could not be read; `first_error` is the first of them."""

    unit = "lines"

    def __init__(self, file: str) -> None:
        self.file = file
        self.lines = self.malformed = 0
        self.first_error = ""
        self._done: set[int] = set()
        self._failing: dict[int, tuple[str, str]] = {}

    @property
    def done(self) -> int:
        return len(self._done)

    @property
    def n_failing(self) -> int:
        """Units that were tried and have no result."""
        return len(self._failing)

    def add_lines(self, lines: Iterable[bytes]) -> None:
        for line in lines:
            self.lines += 1
            try:
                self._add_line(line)
            except (ValidationError, ValueError, OverflowError, KeyError, TypeError, RecursionError) as error:
                self.malformed += 1
                self.first_error = (
                    self.first_error
                    or f"{self.file}:{self.lines}: {truncate(escape_control(_error_text(error)), _MAX_MESSAGE_CHARS)}"
                )

    def errors(self) -> list[dict[str, Any]]:
        """What stands without a result, by type, the most frequent first, each with one message."""
        counts = Counter(kind for kind, _ in self._failing.values())
        said = dict(self._failing.values())
        return [
            {
                "type": truncate(escape_control(kind), 80),
                "count": count,
                "message": truncate(escape_control(said[kind]), _MAX_MESSAGE_CHARS),
            }
            for kind, count in counts.most_common(10)
        ]

    def _add_line(self, line: bytes) -> None:
        raise NotImplementedError

    def _set_outcome(self, unit: Hashable, error: tuple[str, str] | None) -> None:
        """One record of a unit: done where there is no error."""
        key = hash(unit)
        self._failing.pop(key, None)
        if error is None:
            self._done.add(key)
        else:
            self._done.discard(key)
            self._failing[key] = error


def _error_text(error: Exception) -> str:
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


class CellTally(RecordTally):
    """Of records.jsonl: cells that are asked (`asked`) and have their result. Others, which a strategy asks beside the grid or a
    run asked before it was made smaller, are only counted (`n_outside_grid`)."""

    unit = "cells"

    def __init__(self, file: str, expected: ExpectedCells) -> None:
        super().__init__(file)
        self.expected = expected
        self._outside_grid: set[int] = set()

    @property
    def n_outside_grid(self) -> int:
        return len(self._outside_grid)

    def _add_line(self, line: bytes) -> None:
        cell = _CELL.validate_json(line)
        key = (cell["persona_id"], cell["question_id"], cell.get("sample", 0), cell.get("template", ""))
        if self.expected.contains(*key):
            self._set_outcome(key, _cell_error(cell))
        else:
            self._outside_grid.add(hash(key))


def _cell_error(cell: _Cell) -> tuple[str, str] | None:
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


class JudgeCallTally(RecordTally):
    """Of a judge's judgements.jsonl: items with a score. A call without one takes no score away."""

    unit = "scores"

    def _add_line(self, line: bytes) -> None:
        call = _CALL.validate_json(line)
        key = (
            call.get("control", "none"), call["persona_id"], call["answered_by"], call["question_id"],
            call.get("sample", 0), call["rubric"],
        )  # fmt: skip
        failure = call.get("failure")
        if call["score"] is not None:
            self._set_outcome(key, None)
        elif hash(key) not in self._done:
            self._set_outcome(key, (failure["type"], failure["message"]) if failure else ("no score", call.get("error") or ""))


class StepTally(RecordTally):
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

    def _add_line(self, line: bytes) -> None:
        step = json.loads(line)
        number = int(step["step"])
        if not 0 <= number <= _MAX_STEP:
            raise ValueError(f"step {number}; a step is from 0 to {_MAX_STEP}")
        self.steps[number] = step
