"""The files and locks of a run that several workers write at once, each with its own part of the cells (`types.Shard`).

    records-2of4.jsonl      the records of worker 2 of 4; likewise usage-2of4.json and provenance-2of4.json
    .lock                   held alone by a start without a shard, shared by all workers with one
    .lock-2of4              held by worker 2 of 4
    .lock-shared            held while a worker starts, and while it reads and writes a file that all workers share
    .lock-unit              held by the process that works on a unit of a study (`claim_folder`)

Contract: a worker appends to its own files only. A file that all of them share is written in `hold_shared_files`. Locks are
the operating system's (flock), so a killed process holds none; a file system that machines share must support them. The content
of a lock file is the id of the process that took it last, for messages alone.
"""

import contextlib
import fcntl
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from permix.errors import ConfigError
from permix.storage.files import guard_writes, open_regular
from permix.types import Shard

LOCK_FILE = ".lock"

SHARED_LOCK_FILE = ".lock-shared"


def worker_file(path: Path, shard: Shard | None) -> Path:
    """The worker's own file: "records-2of4.jsonl" for "records.jsonl"; the path itself without a shard."""
    return path if shard is None else path.with_name(f"{path.stem}-{shard.file_suffix}{path.suffix}")


def worker_files(path: Path) -> list[Path]:
    """The files of all workers that `path` stands for: `path` first, whether it is there or not, then those of shards by
    (count, number).
    """
    pattern = re.compile(rf"{re.escape(path.stem)}-([1-9]\d*)of([1-9]\d*){re.escape(path.suffix)}")
    try:
        names = os.listdir(path.parent)
    except OSError:  # no folder yet, or a file in its place, which whoever opens `path` reports
        return [path]
    found = [(int(match[2]), int(match[1]), name) for name in names if (match := pattern.fullmatch(name))]
    return [path, *(path.with_name(name) for *_, name in sorted(found))]


def lock_files(run: Path) -> list[Path]:
    """The lock files of all workers of a run, `LOCK_FILE` first."""
    return worker_files(run / LOCK_FILE)


@contextlib.contextmanager
def lock_run(path: Path, shard: Shard | None, prepare: Callable[[bool], None]) -> Iterator[None]:
    """Lock the run at `path` for this worker during the block.

    `prepare` (is_alone) is called first; `is_alone`: no other worker has the run, and none starts before `prepare` returns.
    Raises ConfigError if another process has the run or this shard of it.
    """
    whole = _LockFile(path / LOCK_FILE)
    if shard is None:
        with whole:
            if not whole.try_lock(fcntl.LOCK_EX):
                raise ConfigError(_owner_text(path, whole))
            whole.write_owner()
            prepare(True)
            yield
        return
    with _LockFile(worker_file(path / LOCK_FILE, shard)) as own, whole:
        if not own.try_lock(fcntl.LOCK_EX):
            raise ConfigError(
                f"shard = {shard}: process {own.read_owner()} is asking this part of {path}; wait for it or give another number"
            )
        own.write_owner()
        with hold_shared_files(path):
            is_alone = whole.try_lock(fcntl.LOCK_EX)
            if not is_alone and not whole.try_lock(fcntl.LOCK_SH):
                raise ConfigError(_owner_text(path, whole))
            prepare(is_alone)
            if is_alone and not whole.try_lock(fcntl.LOCK_SH):  # between the two kinds the system may give it to another process
                raise ConfigError(_owner_text(path, whole))
        yield


@contextlib.contextmanager
def hold_shared_files(run: Path) -> Iterator[None]:
    """Wait until no other worker writes a file that all workers share, and keep others from it during the block.

    Creates the folder if it is missing. Blocks of one process are not nested: the inner one would wait for ever.
    """
    with guard_writes(run):
        run.mkdir(parents=True, exist_ok=True)
    with _LockFile(run / SHARED_LOCK_FILE) as lock:
        lock.wait()
        yield


UNIT_LOCK_FILE = ".lock-unit"

CLAIM_ATTEMPTS, CLAIM_PAUSE_S = 10, 0.05
"""`is_claimed` holds the lock for a moment, which must not look like a claim."""


def claim_folder(folder: Path) -> int | None:
    """Claim a folder for this process and all that inherit the file descriptor that is returned; None if another one has it.

    The claim ends when the last of these processes has closed the descriptor, or ended. Creates the folder if it is missing.
    """
    with guard_writes(folder):
        folder.mkdir(parents=True, exist_ok=True)
    lock = _LockFile(folder / UNIT_LOCK_FILE).__enter__()
    for _ in range(CLAIM_ATTEMPTS):
        if lock.try_lock(fcntl.LOCK_EX):
            lock.write_owner()
            descriptor = os.dup(lock.fileno())
            lock.__exit__()
            return descriptor
        time.sleep(CLAIM_PAUSE_S)
    lock.__exit__()
    return None


def is_claimed(folder: Path) -> bool:
    """Whether a process has claimed the folder with `claim_folder`."""
    if not (folder / UNIT_LOCK_FILE).exists():
        return False
    with _LockFile(folder / UNIT_LOCK_FILE) as lock:
        return not lock.try_lock(fcntl.LOCK_SH)


def holds_claim(folder: Path, descriptor: int) -> bool:
    """Whether an inherited file descriptor is the claim of the folder."""
    with contextlib.suppress(OSError):
        return os.path.samestat(os.fstat(descriptor), os.stat(folder / UNIT_LOCK_FILE))
    return False


class _LockFile:
    """A file that processes lock, open during a `with` block, whose end releases the lock."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> "_LockFile":
        with guard_writes(self.path):
            self._file = open_regular(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW)
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def fileno(self) -> int:
        return self._file.fileno()

    def try_lock(self, kind: int) -> bool:
        """Whether the lock was free for this kind of holder; if so, this process holds it."""
        with guard_writes(self.path):
            try:
                fcntl.flock(self._file, kind | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
        return True

    def wait(self) -> None:
        with guard_writes(self.path):
            fcntl.flock(self._file, fcntl.LOCK_EX)

    def write_owner(self) -> None:
        with guard_writes(self.path):
            self._file.truncate(0)
            self._file.write(str(os.getpid()).encode())

    def read_owner(self) -> str:
        return _owner(self._file.read(20))


def _owner(content: bytes) -> str:
    owner = content.strip().decode("ascii", "replace")
    return owner if owner.isdigit() else "unknown"


def _owner_text(path: Path, whole: _LockFile) -> str:
    """Who has the run: the process that holds it alone, or the workers whose processes run on this machine."""
    workers = []
    for file in lock_files(path)[1:] if whole.try_lock(fcntl.LOCK_SH) else ():
        with contextlib.suppress(OSError), open_regular(file) as other:
            owner = _owner(other.read(20))
            if Path("/proc", owner).exists():
                workers.append(f"{file.name.rpartition('-')[2].replace('of', '/')} is process {owner}")
    if workers:
        found = ", ".join(workers)
        return f"out = {path}: workers with --shard are writing this run ({found}); wait for them or give another folder"
    return f"out = {path}: process {whole.read_owner()} is writing this run; wait for it or give another folder"
