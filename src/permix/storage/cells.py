"""The cells of a run: `read_cells` keeps a summary of each in memory and parses a whole cell when it is asked for.

A run may hold a million cells; whole, they would take many gigabytes. Contract: `read_cells` goes once through a file that only
ever grows. The last record of a cell counts, and cells are in the order of their first records.
"""

import os
import weakref
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from sys import intern
from typing import NamedTuple, NotRequired

from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict

from permix.storage.jsonl import bad_line_error, jsonl_lines
from permix.types import Cell, CellKey, Message


class CellSummary(NamedTuple):
    """What is kept of a cell in memory. `reward`: None without a score; `completion_tokens`: None where nobody counted them.

    `messages_hash` is the same for two cells of this process whose messages are the same. `offset` and `length`, in bytes, say
    where the file has the cell.
    """

    reward: float | None
    has_completion: bool
    completion_tokens: int | None
    messages_hash: int
    offset: int = 0
    length: int = 0


class _VerdictLine(TypedDict):
    correct: bool | None
    error: NotRequired[str | None]


class _CompletionLine(TypedDict):
    completion_tokens: int | None


class _FailureLine(TypedDict):
    type: str
    message: str


class CellLine(TypedDict):
    """The fields of a `types.Cell` that are read of every line; those with a default may be missing from it."""

    persona_id: str | None
    question_id: str
    sample: NotRequired[int]
    template: NotRequired[str]
    seed: int
    messages: tuple[Message, ...]
    gold: NotRequired[str | None]
    completion: NotRequired[_CompletionLine | None]
    verdict: NotRequired[_VerdictLine | None]
    failure: NotRequired[_FailureLine | None]


_CELL_RECORD = "a cell record"

_CELL_LINE_ADAPTER = TypeAdapter(CellLine)

parse_cell_line = _CELL_LINE_ADAPTER.validate_json
"""(line) -> `CellLine`. Raises ValidationError. Several times as fast as making a `Cell`."""


def cell_line_key(cell: CellLine) -> CellKey:
    """The key of the cell that a line records."""
    persona = cell["persona_id"]
    # Interned, so that an id of a million cells is in memory once.
    return CellKey(
        None if persona is None else intern(persona),
        intern(cell["question_id"]),
        cell.get("sample", 0),
        intern(cell.get("template", "")),
    )


class CellIndex(Mapping[CellKey, Cell]):
    """The cells of a file, by key. Raises DataError when a line that is asked for turns out not to be a cell."""

    def __init__(self, path: Path, summaries: dict[CellKey, CellSummary]) -> None:
        self.path, self.summaries = path, summaries
        self._parsed: dict[CellKey, Cell] = {}

    def __getitem__(self, key: CellKey) -> Cell:
        if key not in self._parsed:
            self._parsed[key] = self.parse_uncached(key)
        return self._parsed[key]

    def parse_uncached(self, key: CellKey) -> Cell:
        """The cell, which is not kept in memory: for a caller that goes through all of them once."""
        summary = self.summaries[key]
        return self._parse(os.pread(self._descriptor, summary.length, summary.offset), summary)

    @cached_property
    def _descriptor(self) -> int:
        file = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, file)
        return file

    def __contains__(self, key: object) -> bool:
        return key in self.summaries  # a mapping's own would parse the cell

    def __iter__(self) -> Iterator[CellKey]:
        return iter(self.summaries)

    def __len__(self) -> int:
        return len(self.summaries)

    def _parse(self, line: bytes, summary: CellSummary) -> Cell:
        try:
            return Cell.model_validate_json(line)
        except ValidationError as error:
            with self.path.open("rb") as lines:
                number = lines.read(summary.offset).count(b"\n") + 1
            raise bad_line_error(self.path, number, _CELL_RECORD, error) from error


def read_cells(path: Path) -> CellIndex:
    """The cells of a records.jsonl. A file that is not there has none. Raises DataError naming the first line that is no cell."""
    summaries: dict[CellKey, CellSummary] = {}
    offset = 0
    for number, line in jsonl_lines(path):
        try:
            cell = parse_cell_line(line)
        except ValidationError as error:
            raise bad_line_error(path, number, _CELL_RECORD, error) from error
        summaries[cell_line_key(cell)] = _summarize(cell, offset, len(line))
        offset += len(line)
    return CellIndex(path, summaries)


def cell_summaries(cells: Mapping[CellKey, Cell]) -> Mapping[CellKey, CellSummary]:
    """The summary of every cell, also of cells that are in memory already."""
    if isinstance(cells, CellIndex):
        return cells.summaries
    return {
        key: CellSummary(
            None if cell.verdict is None else cell.verdict.reward,
            cell.completion is not None,
            None if cell.completion is None else cell.completion.completion_tokens,
            _hash_messages(cell.messages),
        )
        for key, cell in cells.items()
    }


def _summarize(cell: CellLine, offset: int, length: int) -> CellSummary:
    verdict, completion = cell.get("verdict"), cell.get("completion")
    correct = None if verdict is None else verdict["correct"]
    return CellSummary(
        None if correct is None else float(correct),
        completion is not None,
        None if completion is None else completion["completion_tokens"],
        _hash_messages(cell["messages"]), offset, length,
    )  # fmt: skip


def _hash_messages(messages: tuple[Message, ...]) -> int:
    return hash(tuple((message["role"], message["content"]) for message in messages))
