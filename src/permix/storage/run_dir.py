"""The run directory: what a stage was asked to do, on what, and every cell it produced.

    config.json        the resolved configuration
    provenance.json    versions, revision, fingerprints, command: where the numbers were born
    records.jsonl      one `Cell` a line, appended as each is finished
    metrics.json       the stage's result

`records.jsonl` survives a kill at any moment: a torn last line is dropped when the run is opened again, and only cells without a
result are owed. One process at a time may write a run.
"""

import contextlib
import fcntl
import importlib.metadata
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from pydantic import BaseModel

from permix import __version__
from permix.errors import ConfigError
from permix.storage.cells import Records, read_cells
from permix.storage.files import read_json, write_json
from permix.storage.jsonl import Appended
from permix.types import Cell, CellKey

PACKAGES = (
    "permix",
    "torch",
    "transformers",
    "trl",
    "accelerate",
    "peft",
    "datasets",
    "numpy",
    "scipy",
    "scikit-learn",
    "math-verify",
)


class RunDir:
    """A run directory held by this process. Open it with `RunDir.open`, as a context manager."""

    def __init__(self, path: Path, lock: IO[str]) -> None:
        self.path = path
        self._lock = lock
        self._records = Appended(self.records_path)

    @classmethod
    @contextlib.contextmanager
    def open(
        cls,
        path: Path,
        config: BaseModel,
        identity: Mapping[str, Any],
        asked: Iterable[Cell] = (),
        gains: Collection[str] = (),
    ) -> Iterator["RunDir"]:
        """Create the run, or go on with it.

        `identity` is what every record of a run has in common (model fingerprint, sampling, wording ...); `asked` are the cells
        that it is going to hold. A run on disk whose identity lacks one of the keys `gains` is given it, and keeps it. Raises
        ConfigError when another process holds the run, or when the run on disk has another identity or asked one of these cells
        otherwise; nothing on disk has changed then.
        """
        path.mkdir(parents=True, exist_ok=True)
        with _locked(path) as lock:
            run = cls(path, lock)
            run._claim(config, identity, asked, gains)
            try:
                yield run
            finally:
                run._records.close()

    def _claim(self, config: BaseModel, identity: Mapping[str, Any], asked: Iterable[Cell], gains: Collection[str]) -> None:
        settled = json.loads(json.dumps(identity))
        known = self.path / "provenance.json"
        if known.exists():
            born = read_json(known)
            gained = {key: settled[key] for key in gains if key in settled and born["identity"].get(key) is None}
            _refuse_other_identity(self.path, born["identity"] | gained, settled)
            refuse_other_words(self.cells(), asked)
            if gained:
                write_json(known, born | {"identity": born["identity"] | gained})
        else:
            write_json(known, provenance() | {"identity": settled})
        write_json(self.path / "config.json", config)

    @property
    def records_path(self) -> Path:
        return self.path / "records.jsonl"

    def cells(self) -> Records:
        return read_cells(self.records_path)

    @contextlib.contextmanager
    def accounted(self, team: Callable[[float], float] = float) -> Iterator[None]:
        """Add the CPU and wall seconds of the block to usage.json, also when it ends by an error or Ctrl-C.

        `team` turns this process's CPU seconds into those of all that worked with it; it is asked when the block ends by itself.
        """
        cpu, wall = cpu_seconds(), time.monotonic()
        try:
            yield
        except BaseException:
            with contextlib.suppress(OSError):  # the error itself may be a full disk
                self._account(cpu_seconds() - cpu, time.monotonic() - wall)
            raise
        self._account(team(cpu_seconds() - cpu), time.monotonic() - wall)

    def _account(self, cpu: float, wall: float) -> None:
        path = self.path / "usage.json"
        before = read_json(path) if path.exists() else {}
        used = {"cpu_seconds": cpu, "wall_seconds": wall, "starts": 1}
        totals = {key: round(before.get(key, 0) + value, 2) for key, value in used.items()}
        write_json(path, totals | {"peak_mb": max(before.get("peak_mb", 0), _peak_mb())})

    def append(self, cells: Iterable[Cell]) -> None:
        """Add cells; they are with the operating system when this returns, so a killed process loses none of them."""
        self._records.add(cells)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[IO[str]]:
    with (path / ".lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            owner = lock.read().strip() or "unknown"
            raise ConfigError(f"out = {path}: process {owner} is writing this run; wait for it or give another folder") from None
        lock.seek(0)
        lock.truncate()
        lock.write(str(os.getpid()))
        lock.flush()
        yield lock


def _refuse_other_identity(path: Path, known: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    for key in sorted(known.keys() | asked.keys()):
        if known.get(key) != asked.get(key):
            raise ConfigError(
                f"out = {path}: this run was made with {key} = {known.get(key)!r}, not {asked.get(key)!r}; "
                "give another folder, or the same settings to go on with it"
            )


def refuse_other_words(known: Mapping[CellKey, Cell], asked: Iterable[Cell]) -> None:
    """Raise ConfigError for the first cell that the run knows in other words, with another seed or with another answer."""
    for cell in asked:
        found = known.get(cell.key, cell)
        if (found.messages, found.seed, found.gold) != (cell.messages, cell.seed, cell.gold):
            raise ConfigError(
                f"cell {cell.key}: this run asked it in other words, with another seed or for another answer; "
                "give another folder, or the settings it was made with"
            )


def _peak_mb() -> int:
    """The largest resident memory this process has had, in MB (Linux counts it in KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def cpu_seconds() -> float:
    """CPU seconds of this process and of the workers it has waited for."""
    now = os.times()
    return now.user + now.system + now.children_user + now.children_system


def provenance() -> dict[str, Any]:
    """Where a number was born: versions, source revision, command, machine and time."""
    return {
        "permix": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
        "packages": dict(_versions()),
        "revision": source_revision(),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _versions() -> Iterator[tuple[str, str]]:
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            yield package, importlib.metadata.version(package)


def source_revision() -> str | None:
    """The git revision permix runs from ("+" when files are changed), or None when it is installed as a package."""
    here = Path(__file__).resolve().parent
    try:
        revision = _git(here, "rev-parse", "--short=12", "HEAD")
        return revision + ("+" if _git(here, "status", "--porcelain", "--untracked-files=no", ".") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(folder: Path, *words: str) -> str:
    return subprocess.run(["git", "-C", str(folder), *words], check=True, capture_output=True, text=True).stdout.strip()
