"""Read the cells of a run: a summary of each cell is kept in memory, and the whole cell is parsed on first access.

A run may have a million cells, which would take many gigabytes of memory. Contract: each file is read once, and it only grows.
The last record of a cell in a file counts. Cells are in the order of their first records.

A run that several workers wrote has several files of records, which `read_run_cells` merges by cell. If two files have the same
cell, a record with a score counts before one with a completion alone, and that before a failure; of two equal ones the one whose
line has the smaller SHA-256, whatever the names and the order of the files.
"""

import hashlib
import os
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from sys import intern
from typing import IO, NamedTuple, NotRequired

from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict

from permix.errors import DataError
from permix.storage.files import bad_line_error, jsonl_lines, open_regular
from permix.storage.workers import worker_files
from permix.types import Cell, CellKey, Message, is_cut_off, is_thinking_unclosed


class CellSummary(NamedTuple):
    """The part of a cell that is kept in memory. `reward` is None without a score, `completion_tokens` None if it is unknown.

    `cut_off` as `Completion.is_cut_off`, `thinking_unclosed` as `Completion.is_thinking_unclosed`.

    Two cells with the same messages have the same `messages_hash`, within this process only. `offset` and `length` give the
    cell's place in its file, in bytes; `file` is the file's place in `CellIndex.paths`.
    """

    reward: float | None
    has_completion: bool
    completion_tokens: int | None
    messages_hash: int
    offset: int = 0
    length: int = 0
    cut_off: bool | None = None
    thinking_unclosed: bool = False
    file: int = 0


class _VerdictLine(TypedDict):
    correct: bool | None
    error: NotRequired[str | None]


class _CompletionLine(TypedDict):
    text: str
    completion_tokens: int | None
    finish: NotRequired[str | None]
    reasoning: NotRequired[str | None]


class _FailureLine(TypedDict):
    type: str
    message: str


class CellLine(TypedDict):
    """The fields of a `types.Cell` that are read from every line. A field that may be missing has its default in `types.Cell`."""

    persona_id: str | None
    question_id: str
    sample: NotRequired[int]
    template: NotRequired[str]
    context: NotRequired[str]
    seed: int
    messages: tuple[Message, ...]
    gold: NotRequired[str | None]
    completion: NotRequired[_CompletionLine | None]
    verdict: NotRequired[_VerdictLine | None]
    failure: NotRequired[_FailureLine | None]


_CELL_RECORD = "a cell record"

_CELL_LINE_ADAPTER = TypeAdapter(CellLine)

parse_cell_line = _CELL_LINE_ADAPTER.validate_json
"""(line) -> `CellLine`. Raises ValidationError. Several times faster than making a `Cell`."""


def cell_line_key(cell: CellLine) -> CellKey:
    """The key of the cell that a line records."""
    persona = cell["persona_id"]
    # Interning keeps one copy of an id in memory instead of one for each of a million cells.
    return CellKey(
        None if persona is None else intern(persona),
        intern(cell["question_id"]),
        cell.get("sample", 0),
        intern(cell.get("template", "")),
        intern(cell.get("context", "")),
    )


class CellIndex(Mapping[CellKey, Cell]):
    """The cells of files, by key. Accessing a cell parses it and keeps it; raises DataError if its line is not a valid cell.

    `n_conflicting`: the number of cells that several files answer differently; one answer of each counts.
    """

    def __init__(self, paths: Sequence[Path], summaries: dict[CellKey, CellSummary]) -> None:
        self.paths, self.summaries, self.n_conflicting = tuple(paths), summaries, 0
        self._parsed: dict[CellKey, Cell] = {}
        self._open_files: dict[int, IO[bytes]] = {}

    def __getitem__(self, key: CellKey) -> Cell:
        if key not in self._parsed:
            self._parsed[key] = self.parse_uncached(key)
        return self._parsed[key]

    def parse_uncached(self, key: CellKey) -> Cell:
        """The cell, without keeping it in memory: for callers that read every cell once."""
        summary = self.summaries[key]
        return self._parse(self.read_line(summary), summary)

    def read_line(self, summary: CellSummary) -> bytes:
        """The line of a cell, as it is in its file."""
        if summary.file not in self._open_files:
            file = self._open_files[summary.file] = open_regular(self.paths[summary.file])
            weakref.finalize(self, file.close)
        return os.pread(self._open_files[summary.file].fileno(), summary.length, summary.offset)

    def has_completion(self, key: CellKey) -> bool:
        """Whether the cell is recorded with a completion; reads nothing."""
        summary = self.summaries.get(key)
        return summary is not None and summary.has_completion

    @property
    def n_completions(self) -> int:
        """Number of recorded cells with a completion."""
        return sum(one.has_completion for one in self.summaries.values())

    def __contains__(self, key: object) -> bool:
        return key in self.summaries  # Mapping.__contains__ would parse the cell

    def __iter__(self) -> Iterator[CellKey]:
        return iter(self.summaries)

    def __len__(self) -> int:
        return len(self.summaries)

    def _parse(self, line: bytes, summary: CellSummary) -> Cell:
        try:
            return Cell.model_validate_json(line)
        except ValidationError as error:
            path = self.paths[summary.file]
            with open_regular(path) as lines:
                number = lines.read(summary.offset).count(b"\n") + 1
            raise bad_line_error(path, number, _CELL_RECORD, error) from error


RECORDS_FILE = "records.jsonl"


def record_files(run: Path) -> list[Path]:
    """The files of records of a run: records.jsonl, whether it is there or not, and one of each worker that had a shard."""
    return worker_files(run / RECORDS_FILE)


def has_records(run: Path) -> bool:
    """Whether the run has a file of records."""
    return any(path.exists() for path in record_files(run))


def read_run_cells(run: Path) -> CellIndex:
    """The cells of a run, merged from its files of records by the rule of this module; no cells without a file.

    Raises DataError naming the first line that is not a cell, or two files that asked a cell with different messages.
    """
    paths = record_files(run)
    index = CellIndex(paths, read_summaries(paths[0]))
    conflicting: set[CellKey] = set()
    for number, path in enumerate(paths[1:], start=1):
        found = read_summaries(path, number)
        if not index.summaries:
            index.summaries = found
            continue
        for key, summary in found.items():
            known = index.summaries.setdefault(key, summary)
            if known is not summary:
                index.summaries[key] = _better(index, key, known, summary, conflicting)
    index.n_conflicting = len(conflicting)
    return index


def _better(index: CellIndex, key: CellKey, one: CellSummary, other: CellSummary, conflicting: set[CellKey]) -> CellSummary:
    """The record that counts of two files' records of a cell; adds the cell to `conflicting` if their completions differ."""
    if one.messages_hash != other.messages_hash:
        raise DataError(
            f"{index.paths[other.file]}: asked cell {key} with other messages than {index.paths[one.file].name}; "
            "these are files of two runs, or of two conversations: keep one of them in the folder"
        )
    lines = {summary: index.read_line(summary) for summary in (one, other)}
    if one.has_completion and other.has_completion:
        first, second = (parse_cell_line(line).get("completion") for line in lines.values())
        if first != second:
            conflicting.add(key)
    return min(lines, key=lambda summary: (*_rank(summary), hashlib.sha256(lines[summary]).digest()))


def _rank(summary: CellSummary) -> tuple[bool, bool]:
    return summary.reward is None, not summary.has_completion


def conflicting_answers_note(cells: CellIndex) -> str | None:
    """One sentence on the cells that several workers answered differently; None without any."""
    if not cells.n_conflicting:
        return None
    return (
        f"{cells.n_conflicting} of {len(cells)} cells were answered by several workers, differently: one answer counts for "
        "each cell, one with a score before one without, then the one whose record has the smaller hash"
    )


def read_summaries(path: Path, file: int = 0) -> dict[CellKey, CellSummary]:
    """The cells of one file of records, none if it is missing; `file` is its place in `CellIndex.paths`.

    Raises DataError naming the first line that is not a cell.
    """
    summaries: dict[CellKey, CellSummary] = {}
    offset = 0
    for number, line in jsonl_lines(path):
        try:
            cell = parse_cell_line(line)
        except ValidationError as error:
            raise bad_line_error(path, number, _CELL_RECORD, error) from error
        summaries[cell_line_key(cell)] = _summarize(cell, offset, len(line), file)
        offset += len(line)
    return summaries


def cell_summaries(cells: Mapping[CellKey, Cell]) -> Mapping[CellKey, CellSummary]:
    """The summary of every cell, for a `CellIndex` or for cells that are whole in memory."""
    if isinstance(cells, CellIndex):
        return cells.summaries
    return {
        key: CellSummary(
            None if cell.verdict is None else cell.verdict.reward,
            cell.completion is not None,
            None if cell.completion is None else cell.completion.completion_tokens,
            _hash_messages(cell.messages),
            cut_off=None if cell.completion is None else cell.completion.is_cut_off,
            thinking_unclosed=cell.completion is not None and cell.completion.is_thinking_unclosed,
        )
        for key, cell in cells.items()
    }


def _summarize(cell: CellLine, offset: int, length: int, file: int) -> CellSummary:
    verdict, completion = cell.get("verdict"), cell.get("completion")
    correct = None if verdict is None else verdict["correct"]
    is_unclosed, cut_off = False, None
    if completion is not None:  # a `Completion` for each of a million cells would take several times as long
        finish = completion.get("finish")
        is_unclosed = is_thinking_unclosed(completion["text"], finish, completion.get("reasoning"))
        cut_off = is_cut_off(finish, is_unclosed=is_unclosed)
    return CellSummary(
        None if correct is None else float(correct),
        completion is not None,
        None if completion is None else completion["completion_tokens"],
        _hash_messages(cell["messages"]), offset, length, cut_off, is_unclosed, file,
    )  # fmt: skip


def _hash_messages(messages: tuple[Message, ...]) -> int:
    return hash(tuple((message["role"], message["content"]) for message in messages))
