"""JSON Lines: files of one JSON object a line that only ever grow and survive a kill at any moment.

    write      `JsonlWriter` adds lines to a file; `write_jsonl` writes a whole file in one step
    read       `read_jsonl` parses every line of a file, `jsonl_lines` gives them unparsed
    follow     `JsonlTail` reads on from where it ended, while another process appends; `last_lines` reads from the end

Contract: a record is with the operating system when `JsonlWriter.append` returns. A kill may tear the last line: readers pass
over a line without an end, and the next writer drops it. One process at a time may add to a file.
"""

import json
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeVar

from pydantic import ValidationError

from permix.errors import DataError
from permix.storage.files import replace_when_done
from permix.types import Record

Parsed = TypeVar("Parsed")

PARSE_ERRORS = (ValueError, KeyError, TypeError, OverflowError, RecursionError)
"""What parsing a line raises that is not what it should be; pydantic's ValidationError is a ValueError."""


class JsonlWriter:
    """Adds records to a file, which is opened, and created, with the first of them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: IO[bytes] | None = None

    def append(self, records: Iterable[Record]) -> None:
        if self._file is None:
            drop_torn_line(self.path)
            self._file = self.path.open("ab")
        self._file.write(b"".join(map(encode_line, records)))
        self._file.flush()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def drop_torn_line(path: Path) -> None:
    """Cut the file after its last newline."""
    if not path.exists():
        return
    with path.open("rb+") as file:
        end = file.seek(0, os.SEEK_END)
        while end > 0:
            start = max(0, end - 65536)
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            if newline >= 0:
                file.truncate(start + newline + 1)
                return
            end = start
        file.truncate(0)


def encode_line(record: Record | Mapping[str, Any]) -> bytes:
    """One line of UTF-8, with its end. Lone surrogates, which UTF-8 cannot hold, are written as "?"."""
    plain = record.model_dump(mode="python") if isinstance(record, Record) else record
    return (json.dumps(plain, ensure_ascii=False) + "\n").encode("utf-8", "replace")


def write_jsonl(path: Path, records: Iterable[Record | Mapping[str, Any]]) -> None:
    """Write a whole file in one step."""
    with replace_when_done(path) as scratch:
        scratch.write_bytes(b"".join(map(encode_line, records)))


def jsonl_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """(line number from 1, line with its end) of every whole line. A file that is not there has none."""
    if not path.exists():
        return
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.endswith(b"\n"):
                return
            yield number, line


def read_jsonl(path: Path, parse: Callable[[bytes], Parsed], what: str) -> Iterator[Parsed]:
    """Every whole line, parsed. Raises DataError naming file and line for one that `parse` cannot read: "not {what}: ..."."""
    for number, line in jsonl_lines(path):
        try:
            record = parse(line)
        except PARSE_ERRORS as error:
            raise bad_line_error(path, number, what, error) from error
        yield record


def bad_line_error(path: Path, number: int, what: str, error: Exception) -> DataError:
    """The DataError that says that a line is "not {what}", and why."""
    return DataError(f"{path}:{number}: not {what}: {parse_error_text(error)}")


def parse_error_text(error: Exception) -> str:
    """Why a line could not be parsed, in a few words."""
    return error.errors()[0]["msg"] if isinstance(error, ValidationError) else repr(error)


READ_CHUNK_BYTES = 4_000_000

TAIL_BYTES, MAX_TAIL_BYTES = 256_000, 16_000_000


class FileState(NamedTuple):
    """A file as it stands: which one it is, its size in bytes, when it was last written (seconds since the epoch)."""

    inode: int
    size: int
    modified: float


def read_file_state(path: Path) -> FileState | None:
    """None where there is no regular file."""
    try:
        found = path.stat()
    except OSError:
        return None
    return FileState(found.st_ino, found.st_size, found.st_mtime) if stat.S_ISREG(found.st_mode) else None


class JsonlTail:
    """Reads a file as it grows, from where the last `read_lines` ended.

    Every whole line is given once, in order, without its end. A file that was replaced by another, or is shorter than what was
    read of it, is read from its beginning. What is no regular file (a pipe, a folder) has no lines, so that nothing here blocks.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.state: FileState | None = None
        self.offset = 0
        self.restarts = 0
        self._partial_bytes = 0

    def read_lines(self, limit: int = READ_CHUNK_BYTES) -> list[bytes]:
        """The next whole lines, about `limit` bytes of them; [] where there are none yet. `restarts` counts new beginnings."""
        now = read_file_state(self.path)
        if now is None or (self.state is not None and (now.inode != self.state.inode or now.size < self.offset)):
            self.restart()
        self.state = now
        if now is None or now.size <= self.offset + self._partial_bytes:
            return []
        with self.path.open("rb") as file:
            return self._read_whole_lines(file, limit)

    def restart(self) -> None:
        self.restarts += self.offset > 0
        self.state, self.offset, self._partial_bytes = None, 0, 0

    @property
    def is_behind(self) -> bool:
        """Whether there is more to read at once."""
        return self.state is not None and self.state.size > self.offset + self._partial_bytes

    def _read_whole_lines(self, file: IO[bytes], limit: int) -> list[bytes]:
        file.seek(self.offset)
        found = file.read(limit)
        while not (end := found.rfind(b"\n") + 1):
            more = file.read(limit)
            if not more:
                self._partial_bytes = len(found)
                return []
            found += more
        self.offset, self._partial_bytes = self.offset + end, 0
        return found[: end - 1].split(b"\n")  # not splitlines: a "\r" inside a line ends none


def last_lines(path: Path, count: int) -> list[bytes]:
    """Up to `count` of the last whole lines, oldest first, read from the end; [] where none ends within 16 MB of it."""
    seen = read_file_state(path)
    if seen is None:
        return []
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        reach = TAIL_BYTES
        while True:
            start = max(0, size - reach)
            file.seek(start)
            whole = _whole_lines(file.read(size - start), from_start=start == 0)
            if whole or start == 0 or reach >= MAX_TAIL_BYTES:
                return whole[-count:]
            reach *= 8


def _whole_lines(text: bytes, *, from_start: bool) -> list[bytes]:
    """The lines of a stretch that begin and end in it."""
    lines = text.split(b"\n")[:-1]
    return lines if from_start else lines[1:]
