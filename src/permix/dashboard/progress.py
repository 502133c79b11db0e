"""Count a run's progress line by line: finished units, failures by type of error, and the number of steps of a training.

A tally keeps one number for each cell, and the error of each failed cell, so a million cells fit into memory. Malformed lines
raise no error: they are counted, and the first one is named. The last record of a cell counts, as everywhere.

Contract: no model and no registry is contacted. If the number of units of a run is unknown, its total is None, and the page shows
no percentage. Memory is bounded: texts are cut before they are kept, and a training's curve keeps `MAX_STEPS` steps.
"""

import sys
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from permix.evals.grid import ExpectedCells
from permix.judges.types import Judgement
from permix.sanitize import escape_control, truncate
from permix.storage.cells import CellLine, cell_line_key, parse_cell_line
from permix.storage.files import LONG_LINE, LONG_LINE_TEXT, PARSE_ERRORS, parse_error_text, read_file_state
from permix.storage.run_dir import parse_log_step


def expected_steps(run: Path, config: Mapping[str, Any]) -> int | None:
    """The number of optimizer steps of a training, which is the last step of its log. None if it is not known yet."""
    if "imported" in config:  # a step of another engine is a step of the plan
        return int(config["plan"]["steps"])
    train = config["train"]
    if config["method"] in ("permix", "rlvr"):
        rounds, steps = (
            int(train["updates_per_rollout"]),
            _plan_steps(run) if config.get("plan_file") else int(config["plan"]["steps"]),
        )
    else:
        rounds, steps = int(train["epochs"]), _example_steps(run)
    return None if steps is None else steps * rounds


MAX_JSON_BYTES = 8_000_000
"""Largest JSON file, plan or list of examples that the viewer reads; a larger one would hold up the page."""


def _plan_steps(run: Path) -> int | None:
    from permix.plan import read_plan

    path = run / "plan.parquet"
    return read_plan(path).steps if _is_readable(path) else None


def _is_readable(path: Path) -> bool:
    state = read_file_state(path)
    return state is not None and state.size <= MAX_JSON_BYTES


def _example_steps(run: Path) -> int | None:
    """The number of plan steps with at least one training example. None if the dataset is not written yet or too large."""
    from permix.training.sft_data import SFT_EXAMPLES_FILE, examples_by_step, load_sft_dataset

    chosen = load_sft_dataset(run) if _is_readable(run / SFT_EXAMPLES_FILE) else None
    return None if chosen is None else len(examples_by_step(chosen.examples))


_MAX_TYPE_CHARS, _MAX_MESSAGE_CHARS = 80, 200

_MAX_STEP = 2**53 - 1  # largest whole number that a browser keeps exactly

MAX_STEPS = 200_000

CURVE_METRICS = (
    "reward",
    "loss",
    "completion_tokens",
    "frac_nonzero_advantage_groups",
    "truncated",
    "entropy",
    "kl",
    "replay_kl",
    "lr",
    "grad_norm",
)


class RecordTally:
    """Counts of the lines of one file. `malformed` is the number of unreadable lines; `first_error` describes the first one."""

    unit = "lines"

    def __init__(self, file: str) -> None:
        self.file = file
        self.lines = self.malformed = 0
        self.first_error = ""
        self._lines_of = Counter[str]()
        self._done: dict[int, str] = {}
        self._failing: dict[int, tuple[str, str]] = {}

    @property
    def done(self) -> int:
        return len(self._done)

    @property
    def n_failing(self) -> int:
        """Number of units that were tried and have no result."""
        return len(self._failing)

    def add_lines(self, lines: Iterable[bytes], file: str | None = None) -> None:
        """Count the next lines of a file: of `file` where several workers write one each, else of the tally's own."""
        name = sys.intern(file or self.file)
        for line in lines:
            self.lines += 1
            self._lines_of[name] += 1
            try:
                if line is LONG_LINE:
                    raise ValueError(LONG_LINE_TEXT)
                self._add_line(line, name)
            except PARSE_ERRORS as error:
                self.malformed += 1
                where = f"{name}:{self._lines_of[name]}"
                self.first_error = self.first_error or f"{where}: not a record: {_cut(parse_error_text(error))}"

    def errors(self) -> list[dict[str, Any]]:
        """The ten most frequent types of error among units without a result, each with its count and one message."""
        counts = Counter(kind for kind, _ in self._failing.values())
        message_by_type = dict(self._failing.values())
        return [
            {"type": _cut(kind, _MAX_TYPE_CHARS), "count": count, "message": _cut(message_by_type[kind])}
            for kind, count in counts.most_common(10)
        ]

    def _add_line(self, line: bytes, file: str) -> None:
        raise NotImplementedError

    def _set_outcome(self, unit: Hashable, error: tuple[str, str] | None, file: str) -> None:
        """Store the outcome of one record of a unit. The unit is done if `error` is None.

        The last record in a file counts. Of several files, one in which the unit is done counts.
        """
        key = hash(unit)
        self._failing.pop(key, None)
        if error is None:
            self._done.setdefault(key, file)
        elif self._done.get(key, file) == file:
            self._done.pop(key, None)
            self._failing[key] = sys.intern(error[0][: _MAX_TYPE_CHARS + 1]), error[1][: _MAX_MESSAGE_CHARS + 1]


def _cut(text: str, width: int = _MAX_MESSAGE_CHARS) -> str:
    """Printable text; it is cut before it is escaped, since a damaged file may hold a megabyte in one field."""
    return truncate(escape_control(text[: width + 1]), width)


class CellTally(RecordTally):
    """Tally of the cells in a run's files of records that are in the grid (`expected`). A cell is done once it has a result.

    Cells outside the grid are only counted (`n_outside_grid`): a strategy may ask them, or the grid was larger in an earlier run.
    """

    unit = "cells"

    def __init__(self, file: str, expected: ExpectedCells) -> None:
        super().__init__(file)
        self.expected = expected
        self._outside_grid: set[int] = set()

    @property
    def n_outside_grid(self) -> int:
        return len(self._outside_grid)

    def _add_line(self, line: bytes, file: str) -> None:
        cell = parse_cell_line(line)
        key = cell_line_key(cell)
        if self.expected.contains(key):
            self._set_outcome(key, _cell_error(cell), file)
        else:
            self._outside_grid.add(hash(key))


def _cell_error(cell: CellLine) -> tuple[str, str] | None:
    """(type, message) of the reason why a cell has no result; None if it has one."""
    failure, verdict = cell.get("failure"), cell.get("verdict")
    if cell.get("completion") is None:
        return (failure["type"], failure["message"]) if failure else ("no completion", "")
    if cell.get("gold") is None or (verdict is not None and verdict["correct"] is not None):
        return None
    return ("no verdict", (verdict.get("error") if verdict else None) or "")


class JudgeCallTally(RecordTally):
    """Tally of the judged inputs in judgements.jsonl. A later call without a score does not remove an earlier score."""

    unit = "scores"

    def _add_line(self, line: bytes, file: str) -> None:
        call = Judgement.model_validate_json(line)
        if call.score is not None:
            self._set_outcome(call.key, None, file)
        elif hash(call.key) not in self._done:
            failure = call.failure
            self._set_outcome(call.key, (failure.type, failure.message) if failure else ("no score", call.error or ""), file)


class Step(NamedTuple):
    """One optimizer step: the values of `CURVE_METRICS`, None where missing or not finite, and the rollouts without a verdict."""

    metrics: tuple[float | None, ...]
    unscored: int


class StepTally(RecordTally):
    """Tally of the steps in log.jsonl of a training. The last line of a step counts. `steps` has the first `MAX_STEPS` steps."""

    unit = "steps"

    def __init__(self, file: str) -> None:
        super().__init__(file)
        self.steps: dict[int, Step] = {}
        self._last = 0

    @property
    def done(self) -> int:
        return self._last

    def errors(self) -> list[dict[str, Any]]:
        unscored = sum(step.unscored for step in self.steps.values())
        return [{"type": "no verdict", "count": unscored, "message": "rollouts left out of their step"}] if unscored else []

    def _add_line(self, line: bytes, file: str) -> None:
        number, step = parse_log_step(line)
        if not 0 <= number <= _MAX_STEP:
            raise ValueError(f"step = {number}: must be from 0 to {_MAX_STEP}")
        self._last = max(self._last, number)
        if number in self.steps or len(self.steps) < MAX_STEPS:
            unscored = _finite_or_none(step.get("unscored"))
            self.steps[number] = Step(tuple(_finite_or_none(step.get(name)) for name in CURVE_METRICS), int(unscored or 0))


def _finite_or_none(value: object) -> float | None:
    """The value as a number; None if it is not a number or not finite."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    return float(value) if abs(value) <= sys.float_info.max else None
