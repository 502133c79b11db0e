"""Write files so that a kill at any moment leaves them readable: whole files atomically, JSON Lines line by line.

    whole files    `replace_when_done` and the `write_*` functions write a scratch file in the same folder and rename it
    JSON Lines     `JsonlWriter` appends lines to a file; `write_jsonl` writes a whole file
    read           `read_jsonl` parses every line of a file, `jsonl_lines` yields the lines unparsed
    follow         `JsonlTail` reads the lines that another process appends; `last_lines` reads from the end of a file

Contract: when `JsonlWriter.append` returns, the operating system has the record. A kill may leave the last line incomplete:
readers skip a line without a newline, and the next writer deletes it. One process at a time may write or append to a file.
"""

import contextlib
import json
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeVar

from pydantic import BaseModel, ValidationError

from permix.errors import DataError, PermixError
from permix.types import Record


@contextlib.contextmanager
def replace_when_done(path: Path) -> Iterator[Path]:
    """Yield a scratch path in the same folder to write to; when the block ends, the scratch file replaces `path`.

    A reader sees the old file or the new one, never a part. If the block raises, the old file stays and the scratch file is
    deleted. All writers of a path use the same scratch file, so only one process at a time may write a path.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.part")
    scratch.unlink(missing_ok=True)
    try:
        yield scratch
        os.replace(scratch, path)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write a whole text file atomically. Lone surrogates, which a model may generate, are written as "?"."""
    with replace_when_done(path) as scratch:
        scratch.write_text(text, encoding="utf-8", errors="replace")


def write_json(path: Path, value: BaseModel | Mapping[str, Any]) -> None:
    """Write a whole JSON file atomically."""
    plain = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    write_text(path, json.dumps(plain, indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object. Raises DataError naming the file if it is missing or not a JSON object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; is this a run directory?") from error
    except (ValueError, RecursionError) as error:  # a syntax error, no UTF-8, too many digits, nested too deeply
        raise DataError(f"{path}: not JSON: {error}") from error
    if not isinstance(value, dict):
        raise DataError(f"{path}: contains {type(value).__name__}, not an object")
    return value


@contextlib.contextmanager
def guard_writes(path: Path, *error_types: type[BaseException]) -> Iterator[None]:
    """Turn an OSError of the block (a full disk, a quota) into a PermixError that says that the run can be resumed.

    `error_types`: errors that are turned too, by which libraries report that they could not write a file.
    """
    try:
        yield
    except (OSError, *error_types) as error:  # type: ignore[misc]
        raise write_error(path, error) from error


def write_error(path: Path, error: BaseException) -> PermixError:
    """The PermixError for a `path` that could not be written; it names the reason and the remedy."""
    reason = (isinstance(error, OSError) and error.strerror) or str(error).strip().partition("\n")[0]
    return PermixError(f"{path}: cannot be written: {reason}; make room, then run the same command again: finished work is saved")


Parsed = TypeVar("Parsed")

PARSE_ERRORS = (ValueError, KeyError, TypeError, OverflowError, RecursionError)
"""The errors that parsing an invalid line raises; pydantic's ValidationError is a ValueError."""


class JsonlWriter:
    """Appends records to a file. The first record opens the file and creates it if it is missing."""

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
    """Cut the file after its last newline: a line after it is incomplete."""
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
    """One line of UTF-8, with its newline. Lone surrogates, which have no UTF-8, are written as "?"."""
    plain = record.model_dump(mode="python") if isinstance(record, Record) else record
    return (json.dumps(plain, ensure_ascii=False) + "\n").encode("utf-8", "replace")


def write_jsonl(path: Path, records: Iterable[Record | Mapping[str, Any]]) -> None:
    """Write a whole file atomically."""
    with replace_when_done(path) as scratch:
        scratch.write_bytes(b"".join(map(encode_line, records)))


def jsonl_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """(line number from 1, line with its newline) of every whole line; a missing file has no lines."""
    if not path.exists():
        return
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.endswith(b"\n"):
                return
            yield number, line


def read_jsonl(path: Path, parse: Callable[[bytes], Parsed], what: str) -> Iterator[Parsed]:
    """Every whole line, parsed. Raises DataError naming file and line if `parse` fails: "not {what}: ..."."""
    for number, line in jsonl_lines(path):
        try:
            record = parse(line)
        except PARSE_ERRORS as error:
            raise bad_line_error(path, number, what, error) from error
        yield record


def bad_line_error(path: Path, number: int, what: str, error: Exception) -> DataError:
    """The DataError for a line that is "not {what}", with the reason."""
    return DataError(f"{path}:{number}: not {what}: {parse_error_text(error)}")


def parse_error_text(error: Exception) -> str:
    """The reason why a line could not be parsed, in a few words."""
    return error.errors()[0]["msg"] if isinstance(error, ValidationError) else repr(error)


READ_CHUNK_BYTES = 4_000_000

TAIL_BYTES, MAX_TAIL_BYTES = 256_000, 16_000_000


class FileState(NamedTuple):
    """A file's inode, its size in bytes and the time of its last change, in seconds since the epoch."""

    inode: int
    size: int
    modified: float


def read_file_state(path: Path) -> FileState | None:
    """The state of a file; None if `path` is not a regular file."""
    try:
        status = path.stat()
    except OSError:
        return None
    return FileState(status.st_ino, status.st_size, status.st_mtime) if stat.S_ISREG(status.st_mode) else None


class JsonlTail:
    """Reads a growing file; each `read_lines` continues where the last one ended.

    It returns every whole line once, in order, without its newline. A file that was replaced, or that is shorter than before, is
    read from its beginning. A path that is not a regular file (a pipe, a folder) has no lines, so reading never blocks.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.state: FileState | None = None
        self.offset = 0
        self.restarts = 0
        self._partial_bytes = 0

    def read_lines(self, limit: int = READ_CHUNK_BYTES) -> list[bytes]:
        """The next whole lines, about `limit` bytes; [] if there are none yet. `restarts` counts how often it began again."""
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
        """Whether there is more to read without waiting."""
        return self.state is not None and self.state.size > self.offset + self._partial_bytes

    def _read_whole_lines(self, file: IO[bytes], limit: int) -> list[bytes]:
        file.seek(self.offset)
        chunk = file.read(limit)
        while not (end := chunk.rfind(b"\n") + 1):
            more = file.read(limit)
            if not more:
                self._partial_bytes = len(chunk)
                return []
            chunk += more
        self.offset, self._partial_bytes = self.offset + end, 0
        return chunk[: end - 1].split(b"\n")  # not splitlines, which would also split at a "\r" inside a line


def last_lines(path: Path, count: int) -> list[bytes]:
    """Up to `count` of the last whole lines, oldest first; [] if the last 16 MB of the file contain no whole line."""
    if read_file_state(path) is None:
        return []
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        n_bytes = TAIL_BYTES
        while True:
            start = max(0, size - n_bytes)
            file.seek(start)
            whole = _whole_lines(file.read(size - start), from_start=start == 0)
            if whole or start == 0 or n_bytes >= MAX_TAIL_BYTES:
                return whole[-count:]
            n_bytes *= 8


def _whole_lines(text: bytes, *, from_start: bool) -> list[bytes]:
    """The lines that begin and end in `text`. Unless `text` starts where the file starts, its first line is incomplete."""
    lines = text.split(b"\n")[:-1]
    return lines if from_start else lines[1:]
