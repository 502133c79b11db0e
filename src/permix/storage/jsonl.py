"""A file of records, one JSON object a line, that only ever grows and survives a kill at any moment.

Its contract: a record is with the operating system when `append` returns; a last line that a kill has torn is dropped before the
next one is added. Whoever reads the file passes over such a line. One process at a time may add to it.

A file of lines that another process appends to, read as it grows.

Contract: every whole line is given once, in order, without its end; a last line that has none yet waits for it. A file that
became another one, or shorter than what was read of it, is read from its beginning. What is no regular file (a pipe, a folder)
has no lines, so that nothing here ever blocks.
"""

import json
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import IO, NamedTuple

from permix.types import Record


class JsonlWriter:
    """The file is opened, and made, when the first records are added."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: IO[bytes] | None = None

    def append(self, records: Iterable[Record]) -> None:
        if self._file is None:
            drop_torn_line(self.path)
            self._file = self.path.open("ab")
        self._file.write(b"".join(_encode_line(record) for record in records))
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


def _encode_line(record: Record) -> bytes:
    """Lone surrogates cannot be UTF-8, so such a (rare, hostile) text is written with "?" in their place."""
    return (json.dumps(record.model_dump(mode="python"), ensure_ascii=False) + "\n").encode("utf-8", "replace")


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
    """What of a file was read. `read` is asked again and again."""

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
