"""The records of a run, read: what measures need of every cell is kept, and a cell itself is parsed when it is asked for.

A run may hold a million cells; whole, they would take many gigabytes. Its contract: `read_cells` goes once through a file that
only ever grows. The last record of a cell counts, cells stand in order of first appearance, and a torn last line is passed over.
"""

import os
import weakref
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, NotRequired

from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict

from permix.errors import DataError
from permix.types import Cell, CellKey, Message


class CellSummary(NamedTuple):
    """What is kept of a cell. `reward`: None without a score. `has_completion`: whether there is a completion;
    `completion_tokens`: its tokens,
    None where nobody counted them. `messages_hash` is the same for two cells of this process whose messages are the same.
    """

    reward: float | None
    has_completion: bool
    completion_tokens: int | None
    messages_hash: int
    offset: int = 0
    length: int = 0


class _Verdict(TypedDict):
    correct: bool | None


class _Completion(TypedDict):
    completion_tokens: int | None


class _CellLine(TypedDict):
    """Of a record, what a brief is made of; the rest of the line is looked at when the cell is."""

    persona_id: str | None
    question_id: str
    sample: NotRequired[int]
    template: NotRequired[str]
    seed: int
    messages: tuple[Message, ...]
    completion: NotRequired[_Completion | None]
    verdict: NotRequired[_Verdict | None]


_CELL_LINE_ADAPTER = TypeAdapter(_CellLine)


class CellIndex(Mapping[CellKey, Cell]):
    """The cells of a file, by key. Raises DataError where one that is asked for turns out not to be a cell."""

    def __init__(self, path: Path, summaries: dict[CellKey, CellSummary]) -> None:
        self.path, self.summaries = path, summaries
        self._parsed: dict[CellKey, Cell] = {}

    def __getitem__(self, key: CellKey) -> Cell:
        if key not in self._parsed:
            self._parsed[key] = self.parse_uncached(key)
        return self._parsed[key]

    def parse_uncached(self, key: CellKey) -> Cell:
        """The cell, which is not kept: for whoever goes through all of them once."""
        brief = self.summaries[key]
        return self._parse(os.pread(self._descriptor, brief.length, brief.offset), brief)

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
            raise _bad_cell_error(self.path, number, error) from error


def read_cells(path: Path) -> CellIndex:
    """A file that is not there has no cells. Raises DataError naming file and line when a whole line is not a cell."""
    briefs: dict[CellKey, CellSummary] = {}
    if not path.exists():
        return CellIndex(path, briefs)
    names: dict[str, str] = {}  # so that an id is in memory once, and not in every key
    offset = 0
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.endswith(b"\n"):
                break
            try:
                found = _CELL_LINE_ADAPTER.validate_json(line)
            except ValidationError as error:
                raise _bad_cell_error(path, number, error) from error
            persona, question, template = found["persona_id"], found["question_id"], found.get("template", "")
            key = CellKey(
                None if persona is None else names.setdefault(persona, persona),
                names.setdefault(question, question),
                found.get("sample", 0),
                names.setdefault(template, template),
            )
            briefs[key] = _summarize(found, offset, len(line))
            offset += len(line)
    return CellIndex(path, briefs)


def cell_summaries(cells: Mapping[CellKey, Cell]) -> Mapping[CellKey, CellSummary]:
    """Of cells that are in memory too."""
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


def _summarize(found: _CellLine, offset: int, length: int) -> CellSummary:
    verdict, completion = found.get("verdict"), found.get("completion")
    correct = None if verdict is None else verdict["correct"]
    return CellSummary(
        None if correct is None else float(correct),
        completion is not None,
        None if completion is None else completion["completion_tokens"],
        _hash_messages(found["messages"]), offset, length,
    )  # fmt: skip


def _hash_messages(messages: tuple[Message, ...]) -> int:
    return hash(tuple((message["role"], message["content"]) for message in messages))


def _bad_cell_error(path: Path, number: int, error: ValidationError) -> DataError:
    return DataError(f"{path}:{number}: not a cell record: {error.errors()[0]['msg']}")
