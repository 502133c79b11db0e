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


class Brief(NamedTuple):
    """What is kept of a cell. `reward`: None without a score. `answered`: whether there is a completion; `written`: its tokens,
    None where nobody counted them. `words` is the same for two cells of this process whose messages are the same.
    """

    reward: float | None
    answered: bool
    written: int | None
    words: int
    offset: int = 0
    length: int = 0


class _Verdict(TypedDict):
    correct: bool | None


class _Completion(TypedDict):
    completion_tokens: int | None


class _Line(TypedDict):
    """Of a record, what a brief is made of; the rest of the line is looked at when the cell is."""

    persona_id: str | None
    question_id: str
    sample: NotRequired[int]
    template: NotRequired[str]
    seed: int
    messages: tuple[Message, ...]
    completion: NotRequired[_Completion | None]
    verdict: NotRequired[_Verdict | None]


_LINE = TypeAdapter(_Line)


class Records(Mapping[CellKey, Cell]):
    """The cells of a file, by key. Raises DataError where one that is asked for turns out not to be a cell."""

    def __init__(self, path: Path, briefs: dict[CellKey, Brief]) -> None:
        self.path, self.briefs = path, briefs
        self._parsed: dict[CellKey, Cell] = {}

    def __getitem__(self, key: CellKey) -> Cell:
        if key not in self._parsed:
            self._parsed[key] = self.read(key)
        return self._parsed[key]

    def read(self, key: CellKey) -> Cell:
        """The cell, which is not kept: for whoever goes through all of them once."""
        brief = self.briefs[key]
        return self._parse(os.pread(self._file, brief.length, brief.offset), brief)

    @cached_property
    def _file(self) -> int:
        file = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, file)
        return file

    def __contains__(self, key: object) -> bool:
        return key in self.briefs  # a mapping's own would parse the cell

    def __iter__(self) -> Iterator[CellKey]:
        return iter(self.briefs)

    def __len__(self) -> int:
        return len(self.briefs)

    def _parse(self, line: bytes, brief: Brief) -> Cell:
        try:
            return Cell.model_validate_json(line)
        except ValidationError as error:
            with self.path.open("rb") as lines:
                number = lines.read(brief.offset).count(b"\n") + 1
            raise _not_a_cell(self.path, number, error) from error


def read_cells(path: Path) -> Records:
    """A file that is not there has no cells. Raises DataError naming file and line when a whole line is not a cell."""
    briefs: dict[CellKey, Brief] = {}
    if not path.exists():
        return Records(path, briefs)
    names: dict[str, str] = {}  # so that an id is in memory once, and not in every key
    offset = 0
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.endswith(b"\n"):
                break
            try:
                found = _LINE.validate_json(line)
            except ValidationError as error:
                raise _not_a_cell(path, number, error) from error
            persona, question, template = found["persona_id"], found["question_id"], found.get("template", "")
            key = CellKey(
                None if persona is None else names.setdefault(persona, persona),
                names.setdefault(question, question),
                found.get("sample", 0),
                names.setdefault(template, template),
            )
            briefs[key] = _brief(found, offset, len(line))
            offset += len(line)
    return Records(path, briefs)


def briefs_of(cells: Mapping[CellKey, Cell]) -> Mapping[CellKey, Brief]:
    """Of cells that are in memory too."""
    if isinstance(cells, Records):
        return cells.briefs
    return {
        key: Brief(
            None if cell.verdict is None else cell.verdict.reward,
            cell.completion is not None,
            None if cell.completion is None else cell.completion.completion_tokens,
            _words(cell.messages),
        )
        for key, cell in cells.items()
    }


def _brief(found: _Line, offset: int, length: int) -> Brief:
    verdict, completion = found.get("verdict"), found.get("completion")
    correct = None if verdict is None else verdict["correct"]
    return Brief(
        None if correct is None else float(correct),
        completion is not None,
        None if completion is None else completion["completion_tokens"],
        _words(found["messages"]), offset, length,
    )  # fmt: skip


def _words(messages: tuple[Message, ...]) -> int:
    return hash(tuple((message["role"], message["content"]) for message in messages))


def _not_a_cell(path: Path, number: int, error: ValidationError) -> DataError:
    return DataError(f"{path}:{number}: not a cell record: {error.errors()[0]['msg']}")
