"""Write files so that a kill at any moment leaves them readable: whole files atomically, JSON Lines line by line.

    whole files    `replace_when_done` and the `write_*` functions write a scratch file in the same folder and rename it
    JSON Lines     `JsonlWriter` appends lines to a file; `write_jsonl` writes a whole file
    read           `read_jsonl` parses every line of a file, `jsonl_lines` yields the lines unparsed
    follow         `JsonlTail` reads the lines that another process appends; `last_lines` reads from the end of a file

Contract: when `JsonlWriter.append` returns, the operating system has the record. A kill may leave the last line incomplete, and
a crash of the machine may leave NULs there: readers skip a line without a newline, and the next writer deletes it. One process at
a time may write or append to a file.

Every reader opens its file with `open_regular`: a pipe, a device, a socket or a folder raises DataError at once. No line is read
beyond `MAX_LINE_BYTES`. An appending writer follows no link, so that a run directory from elsewhere cannot name another file.
"""

import contextlib
import errno
import json
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeVar

from pydantic import BaseModel, ValidationError

from permix.errors import DataError, PermixError
from permix.types import Record


def open_regular(path: Path, flags: int = os.O_RDONLY) -> IO[bytes]:
    """Open a regular file, unbuffered unless it is opened for reading; never waits, as opening a pipe would.

    Raises FileNotFoundError if there is none, and DataError, naming the path, for anything else that cannot be opened.
    """
    try:
        file = os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC, 0o666)
    except FileNotFoundError:
        raise
    except OSError as error:
        reason = _UNOPENED.get(error.errno or 0) or f"cannot be opened: {error.strerror}"
        raise DataError(f"{path}: {reason}") from error
    mode = os.fstat(file).st_mode
    if not stat.S_ISREG(mode):
        os.close(file)
        raise DataError(f"{path}: is a {_file_kind(mode)}, not a file; remove it, or put the file of the run in its place")
    return os.fdopen(file, "rb") if flags == os.O_RDONLY else os.fdopen(file, "r+b", buffering=0)


_UNOPENED = {
    errno.ELOOP: "is a link; put the file itself in its place",
    errno.EISDIR: "is a folder, not a file; remove it, or put the file of the run in its place",
    errno.ENXIO: "is a socket or a pipe, not a file; remove it, or put the file of the run in its place",
}


def _file_kind(mode: int) -> str:
    tests = {"folder": stat.S_ISDIR, "pipe": stat.S_ISFIFO, "socket": stat.S_ISSOCK}
    return next((name for name, is_kind in tests.items() if is_kind(mode)), "device")


@contextlib.contextmanager
def replace_when_done(path: Path) -> Iterator[Path]:
    """Yield a scratch path in the same folder to write to; when the block ends, the scratch file replaces `path`.

    A reader sees the old file or the new one, never a part. If the block raises, the old file stays and the scratch file is
    deleted. All writers of a path use the same scratch file, so only one process at a time may write a path. Raises PermixError,
    naming the path, if the system refuses to write.
    """
    with guard_writes(path):
        if path.is_dir():  # also ".", which has no name
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        scratch = path.with_name(f".{path.name}.part")
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch.unlink(missing_ok=True)
        try:
            yield scratch
            os.replace(scratch, path)
        except BaseException:
            with contextlib.suppress(OSError):
                scratch.unlink(missing_ok=True)
            raise


def write_text(path: Path, text: str) -> None:
    """Write a whole text file atomically. Lone surrogates, which a model may generate, are written as "?"."""
    with replace_when_done(path) as scratch:
        scratch.write_text(text, encoding="utf-8", errors="replace")


def write_json(path: Path, value: BaseModel | Mapping[str, Any]) -> None:
    """Write a whole JSON file atomically. Characters that a terminal does not print are written as escapes."""
    plain = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    text = json.dumps(plain, indent=1, ensure_ascii=False).encode("utf-8", "replace").decode("utf-8")
    if not text.replace("\n", "").isprintable():
        text = "".join(char if char == "\n" or char.isprintable() else json.dumps(char)[1:-1] for char in text)
    write_text(path, text + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object. Raises DataError naming the file if it is missing or not a JSON object."""
    try:
        with open_regular(path) as file:
            value = json.loads(file.read().decode("utf-8"))
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
    path = next((parent for parent in path.parents if parent.exists() and not parent.is_dir()), path)
    remedy = _WRITE_REMEDIES.get(getattr(error, "errno", None), "make room")
    return PermixError(f"{path}: cannot be written: {reason}; {remedy}, then run the same command again: finished work is saved")


FULL_DISK_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

_WRITE_REMEDIES: dict[int | None, str] = {
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "allow writing there or give another folder"),
    **dict.fromkeys((errno.EEXIST, errno.ENOTDIR), "move away the file that is in the folder's place"),
    **dict.fromkeys((errno.EISDIR, errno.ENOTEMPTY), "move away the folder that is in the file's place"),
}


Parsed = TypeVar("Parsed")

PARSE_ERRORS = (ValueError, KeyError, TypeError, OverflowError, RecursionError)
"""The errors that parsing an invalid line raises; pydantic's ValidationError is a ValueError."""


class LongRecordError(PermixError):
    """A record whose line would be longer than readers accept; nothing of it is written. `sizes` says how long both are."""

    def __init__(self, path: Path, n_bytes: int) -> None:
        self.sizes = f"a record of {n_bytes / 1e6:.1f} MB; a line has at most {MAX_LINE_BYTES // 1_000_000} MB"
        super().__init__(f"{path}: {self.sizes}")


class JsonlWriter:
    """Appends records to a file. The first record opens the file and creates it if it is missing.

    Raises PermixError, naming the file, if the system refuses to write, and LongRecordError for a record that no reader would
    accept; the records written before stay readable.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: IO[bytes] | None = None

    def append(self, records: Iterable[Record | Mapping[str, Any]]) -> None:
        lines = list(map(encode_line, records))
        if (longest := max(map(len, lines), default=0)) > MAX_LINE_BYTES:
            raise LongRecordError(self.path, longest)
        rest = memoryview(b"".join(lines))
        with guard_writes(self.path):
            if self._file is None:
                drop_torn_line(self.path)
                self._file = open_regular(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW)
            try:
                while rest:
                    rest = rest[self._file.write(rest) :]  # unbuffered: a full disk takes a part
            except OSError:
                self.close()  # the next record opens the file again, which drops the incomplete line
                raise

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def drop_torn_line(path: Path) -> None:
    """Cut the file after its last newline: a line after it is incomplete. A missing file stays missing."""
    try:
        file = open_regular(path, os.O_RDWR | os.O_NOFOLLOW)
    except FileNotFoundError:
        return
    with file:
        size = end = file.seek(0, os.SEEK_END)
        newline = -1
        while end > 0 and newline < 0:
            start = max(0, end - 65536)
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            end = start
        complete = end + newline + 1
        if complete < size:  # a file that is whole keeps its time of change
            file.truncate(complete)


def encode_line(record: Record | Mapping[str, Any]) -> bytes:
    """One line of UTF-8, with its newline. Lone surrogates, which have no UTF-8, are written as "?"."""
    plain = record.model_dump(mode="python") if isinstance(record, Record) else record
    return (json.dumps(plain, ensure_ascii=False) + "\n").encode("utf-8", "replace")


def write_jsonl(path: Path, records: Iterable[Record | Mapping[str, Any]]) -> None:
    """Write a whole file atomically."""
    with replace_when_done(path) as scratch:
        scratch.write_bytes(b"".join(map(encode_line, records)))


MAX_LINE_BYTES = 16_000_000
"""Longest line that a reader accepts, far above any record, so that a damaged file cannot fill the memory."""


def jsonl_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """(line number from 1, line with its newline) of every whole line; a missing file has no lines.

    Raises DataError for a line longer than `MAX_LINE_BYTES`, and as `open_regular` does.
    """
    try:
        file = open_regular(path)
    except FileNotFoundError:
        return
    with file:
        for number, line in enumerate(iter(lambda: file.readline(MAX_LINE_BYTES), b""), start=1):
            if not line.endswith(b"\n"):
                # A shorter one is the end of the file; what follows it by now, another process is writing.
                is_long = len(line) >= MAX_LINE_BYTES
                if is_long and any(b"\n" in chunk for chunk in iter(lambda: file.read(READ_CHUNK_BYTES), b"")):
                    raise DataError(f"{path}:{number}: {LONG_LINE_TEXT}")
                return
            yield number, line


LONG_LINE_TEXT = f"a line longer than {MAX_LINE_BYTES // 1_000_000} MB, which no record has; the file is damaged"


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

TAIL_BYTES, MAX_TAIL_BYTES = 256_000, 4_000_000

LONG_LINE = LONG_LINE_TEXT.encode()
"""What `JsonlTail` gives in place of a line longer than `MAX_LINE_BYTES`. It is no JSON, so no parser takes it for a record."""


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

    It returns every whole line once, in order, without its newline; `LONG_LINE` for a line longer than `MAX_LINE_BYTES`. A file
    that was replaced, or that is shorter than before, is read from its beginning. A path that is not a regular file (a pipe, a
    folder) has no lines, so reading never blocks.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.state: FileState | None = None
        self.offset = 0
        self.restarts = 0
        self._partial_bytes = 0
        self._inside_long_line = False

    def read_lines(self, limit: int = READ_CHUNK_BYTES) -> list[bytes]:
        """The next whole lines, about `limit` bytes; [] if there are none yet. `restarts` counts how often it began again."""
        now = read_file_state(self.path)
        if now is None or (self.state is not None and (now.inode != self.state.inode or now.size < self.offset)):
            self.restart()
        elif self.state is not None and now.size < self.state.size:
            self._partial_bytes = 0  # the next writer has cut the incomplete line, and may have written a shorter one
        self.state = now
        if now is None or now.size <= self.offset + self._partial_bytes:
            return []
        with open_regular(self.path) as file:
            return self._read_whole_lines(file, limit)

    def restart(self) -> None:
        self.restarts += self.offset > 0
        self.state, self.offset, self._partial_bytes, self._inside_long_line = None, 0, 0, False

    @property
    def is_behind(self) -> bool:
        """Whether there is more to read without waiting."""
        return self.state is not None and self.state.size > self.offset + self._partial_bytes

    def _read_whole_lines(self, file: IO[bytes], limit: int) -> list[bytes]:
        file.seek(self.offset)
        chunk = file.read(limit)
        while not (end := chunk.rfind(b"\n") + 1):
            if self._inside_long_line or len(chunk) > MAX_LINE_BYTES:
                self.offset, self._partial_bytes, self._inside_long_line = self.offset + len(chunk), 0, True
                return []
            more = file.read(limit)
            if not more:
                self._partial_bytes = len(chunk)
                return []
            chunk += more
        self.offset, self._partial_bytes = self.offset + end, 0
        lines = chunk[: end - 1].split(b"\n")  # not splitlines, which would also split at a "\r" inside a line
        if self._inside_long_line:
            lines[0], self._inside_long_line = LONG_LINE, False
        return [LONG_LINE if len(line) > MAX_LINE_BYTES else line for line in lines]


def last_lines(path: Path, count: int) -> list[bytes]:
    """Up to `count` of the last whole lines, oldest first; [] if the last 4 MB of the file contain no whole line."""
    if read_file_state(path) is None:
        return []
    with open_regular(path) as file:
        size = file.seek(0, os.SEEK_END)
        n_bytes = TAIL_BYTES
        while True:
            start = max(0, size - n_bytes)
            file.seek(start)
            whole = _whole_lines(file.read(size - start), from_start=start == 0)
            if whole or start == 0 or n_bytes >= MAX_TAIL_BYTES:
                return whole[-count:]
            n_bytes = min(8 * n_bytes, MAX_TAIL_BYTES)


def _whole_lines(text: bytes, *, from_start: bool) -> list[bytes]:
    """The lines that begin and end in `text`. Unless `text` starts where the file starts, its first line is incomplete."""
    lines = text.split(b"\n")[:-1]
    return lines if from_start else lines[1:]
