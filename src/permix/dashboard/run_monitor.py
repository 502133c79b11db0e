"""Watch one run directory: its progress, its state, its failures, its rate and its measures.

Contract: the directory is only read. `poll` is cheap for a run of any length, since each file is read from where the last call
ended. Errors in the directory become texts in `errors` and are never raised.

One thread polls. It publishes its results in one assignment, and other threads read only those, so that no reader waits for a
file. Only regular files below the viewed folder are read, and no JSON file above `MAX_JSON_BYTES`.

The process that holds the run is read from /proc/locks, where Linux lists all locks of the machine by inode. The run's lock is
never taken, since that would refuse a command that starts the run at the same moment. Without /proc/locks the holder is unknown.

The rate of progress covers only the time during which the run was watched.
"""

import os
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from permix.dashboard.live_metrics import LiveMeasures, newest_completions
from permix.dashboard.progress import (
    CURVE_METRICS,
    MAX_JSON_BYTES,
    CellTally,
    JudgeCallTally,
    RecordTally,
    StepTally,
    expected_steps,
)
from permix.errors import DataError, PermixError
from permix.evals.grid import ExpectedCells, read_expected_cells
from permix.sanitize import escape_control, redact_command, redact_secrets, truncate
from permix.storage.files import READ_CHUNK_BYTES, FileState, JsonlTail, open_regular, read_file_state
from permix.storage.run_dir import RunReader, last_start
from permix.storage.workers import LOCK_FILE, lock_files, worker_files
from permix.types import digest

_PROC_LOCKS = Path("/proc/locks")


class LockHolder(NamedTuple):
    """One lock: the kernel's name of the device, and the process id, which is 0 for a process in another container."""

    device: str
    pid: int


LocksByInode = Mapping[int, tuple[LockHolder, ...]]
"""The holders of locks, by the inode of the locked file."""


def read_locks(table: Path = _PROC_LOCKS) -> LocksByInode | None:
    """Read the table of locks; None if the system has no such table.

    A line is `1: FLOCK ADVISORY WRITE 812 fe:00:1234 0 EOF`; "->" marks a process that waits for the lock.
    """
    try:
        lines = table.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    found: dict[int, tuple[LockHolder, ...]] = {}
    for words in map(str.split, lines):
        if len(words) < 6 or words[1] == "->":
            continue
        device, _, inode = words[5].rpartition(":")
        if inode.isdigit() and words[4].lstrip("-").isdigit():
            found[int(inode)] = (*found.get(int(inode), ()), LockHolder(device, int(words[4])))
    return found


def lock_holders(run: Path, locks: LocksByInode | None) -> tuple[int, ...]:
    """The ids of the processes that hold a lock of the run, one for each worker; 0 for a process whose id is unknown.

    On some file systems the kernel names another device than stat does. Then the holder must be the process that the lock file
    names.
    """
    return tuple(dict.fromkeys(pid for file in lock_files(run) for pid in _holders_of_file(file, locks)))


def _holders_of_file(path: Path, locks: LocksByInode | None) -> Iterator[int]:
    try:
        with open_regular(path) as file:
            lock, named = os.fstat(file.fileno()), file.read(20).strip()
    except (OSError, PermixError):
        return
    device = f"{os.major(lock.st_dev):02x}:{os.minor(lock.st_dev):02x}"
    for holder in (locks or {}).get(lock.st_ino, ()):
        if holder.device == device or str(holder.pid).encode() == named:
            yield max(holder.pid, 0)


class WorkerTails:
    """Reads a growing file, and those of a run's workers beside it (`worker_files`), as one: like `JsonlTail`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._tails = {path: JsonlTail(path)}

    def read_lines(self) -> list[tuple[str, list[bytes]]]:
        """The next whole lines of each file that has some, with its name; about `READ_CHUNK_BYTES` in all."""
        self._tails |= {path: JsonlTail(path) for path in worker_files(self._path) if path not in self._tails}
        limit = max(READ_CHUNK_BYTES // len(self._tails), _MIN_CHUNK_BYTES)
        return [(path.name, lines) for path, tail in self._tails.items() if (lines := tail.read_lines(limit))]

    @property
    def restarts(self) -> int:
        """How often a file began again, or went away."""
        return sum(tail.restarts for tail in self._tails.values())

    @property
    def is_behind(self) -> bool:
        return any(tail.is_behind for tail in self._tails.values())

    @property
    def size(self) -> int:
        """Bytes of all files when they were last looked at."""
        return sum(tail.state.size for tail in self._tails.values() if tail.state)

    @property
    def offset(self) -> int:
        """Bytes read."""
        return sum(tail.offset for tail in self._tails.values())

    @property
    def modified(self) -> float | None:
        """When a file last changed, in seconds since the epoch; None without a file."""
        return max((tail.state.modified for tail in self._tails.values() if tail.state), default=None)


_MIN_CHUNK_BYTES = 64_000


RATE_WINDOW_S = 60.0


class ProgressRate:
    """Progress per second, from counts at several times (seconds of one clock). The rate is unknown until a count has grown."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int]] = deque()
        self._has_grown = False

    def update(self, now: float, count: int) -> None:
        """Add a count. If it is smaller than the last one, the file was restarted, and earlier counts are dropped."""
        if self._samples and count < self._samples[-1][1]:
            self._samples.clear()
            self._has_grown = False
        self._has_grown = self._has_grown or (bool(self._samples) and count > self._samples[-1][1])
        self._samples.append((now, count))
        while len(self._samples) > 2 and self._samples[1][0] <= now - RATE_WINDOW_S:
            self._samples.popleft()

    def per_second(self) -> float | None:
        """The rate over the last minute, or since watching began; 0 if growth has stopped, None if the rate is unknown."""
        if not self._has_grown:
            return None
        (start, before), (end, after) = self._samples[0], self._samples[-1]
        return (after - before) / (end - start) if end > start else None


RunState = Literal["going", "finished", "stopped", "broken"]

STALE_AFTER_S = 90.0

_MAX_CURVE_POINTS = 400

_PROGRESS_FILES = {"train": "log.jsonl", "judge": "judgements.jsonl"}

READ_ERRORS = (PermixError, OSError, ValueError, OverflowError, LookupError, TypeError, AttributeError, RecursionError)
"""Errors that reading a broken run directory can raise."""

WATCHED_STAGES = ("stability", "fidelity", "train", "judge", "questions")

_SETTINGS_FILES = ("config.json", "provenance.json", "grid.json")

_READ_FILES = (
    *_SETTINGS_FILES, LOCK_FILE, "inputs.json", "records.jsonl", "judgements.jsonl", "log.jsonl", "rollouts.jsonl",
    "plan.parquet", "examples.jsonl", "examples.json",
)  # fmt: skip


def check_run_files(run: Path, root: Path) -> None:
    """Raise DataError for a file of a run that leads out of `root`, is not a regular file, or is JSON above `MAX_JSON_BYTES`."""
    for path in (path for name in _READ_FILES for path in worker_files(run / name)):
        if not os.path.lexists(path):
            continue
        if path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root)):
            raise DataError(f"{path.name}: is a link that leads out of the viewed folder, so it is not read")
        if not path.exists():
            continue
        state = read_file_state(path)
        if state is None:
            raise DataError(f"{path.name}: is a folder, a pipe or a device, not a file, so it is not read")
        if path.suffix == ".json" and state.size > MAX_JSON_BYTES:
            raise DataError(f"{path.name}: has {state.size} bytes; the viewer reads JSON files of up to {MAX_JSON_BYTES} bytes")


RunVersion = tuple[int, bool, str]


class RunMonitor:
    """The state of one run. `name` is its path below the viewed folder `root`; `id` is derived from `name`."""

    def __init__(self, path: Path, name: str, root: Path | None = None) -> None:
        self.path, self.name, self.id, self.root = path, name, digest(name), root or path
        self.published: dict[str, Any] | None = None
        self._tally_published: dict[str, Any] = {}
        self.config: Mapping[str, Any] = {}
        self._run: RunReader | None = None
        self.total: int | None = None
        self.holder_pids: tuple[int, ...] = ()
        self.state: RunState = "broken"
        self.measures: LiveMeasures | None = None
        self.measured_version: RunVersion | None = None
        self.measured_at = 0.0
        self._config_error = self._read_error = self._command = ""
        self._config_files: object = ()
        self._worker_starts: list[FileState | None] = []
        self._started: float | None = None
        self._tails = WorkerTails(path / "records.jsonl")
        self._tally: RecordTally = CellTally("records.jsonl", ExpectedCells())
        self._rate = ProgressRate()
        self._remote_writer = _RemoteWriterDetector()

    @property
    def stage(self) -> str:
        return str(self.config.get("stage", ""))

    @property
    def is_caught_up(self) -> bool:
        """Whether the last call of `poll` read everything that the file had."""
        return bool(self._read_error) or not self._tails.is_behind

    @property
    def is_measurable(self) -> bool:
        """Whether the last call of `poll` read everything, and found no error that forbids to read this run."""
        return not self._read_error and not self._tails.is_behind

    @property
    def version(self) -> RunVersion:
        """The number of lines, whether the run goes on, and the read error. It changes when there is something new to measure."""
        return self._tally.lines, self.state == "going", self._read_error

    def poll(self, locks: LocksByInode | None, now: float, wall_time: float) -> None:
        """Read new lines. `now` is a monotonic time in seconds, for rates; `wall_time` is seconds since the epoch, for ages."""
        try:
            check_run_files(self.path, self.root)
            self._update(locks, now, wall_time)
            self._read_error = ""
        except READ_ERRORS as error:
            self._read_error, self.state = readable_error(error), "broken"
        self.published = self._collect()

    def _update(self, locks: LocksByInode | None, now: float, wall_time: float) -> None:
        # The holder comes first: a run that ends before its last lines are read still counts as going until the next poll.
        self.holder_pids = lock_holders(self.path, locks)
        self._reload_config()
        if self.stage == "judge":
            check_run_files(self.path.parent.parent, self.root)  # its measures need the answers that it scored
        restarts = self._tails.restarts
        found = self._tails.read_lines()
        if self._tails.restarts != restarts:
            self._reset_tally()
            found = self._tails.read_lines()
        for name, lines in found:
            self._tally.add_lines(lines, name)
            self._tally_published = {}
        self._try_read(self._update_total)
        if self.is_caught_up:
            self._rate.update(now, self._tally.done)
        self.state = self._state(locks, now, wall_time)

    def summary(self) -> dict[str, Any]:
        """One line of the overview, as data for JSON. `poll` must have been called."""
        published = self.published or {}
        unmeasured = self.measures.error if self.measures else ""
        troubles = published["troubles"] + ([unmeasured] if unmeasured else [])
        return {name: published[name] for name in published if name not in _DETAIL_FIELDS} | {"troubles": troubles}

    def detail(self) -> dict[str, Any]:
        """All data of the page about the selected run, as data for JSON. `poll` must have been called."""
        published, measures = self.published or {}, self.measures
        is_broken = published["state"] == "broken"
        if is_broken:
            measures = LiveMeasures(note="not measured: this directory cannot be read")
        return (
            self.summary()
            | {name: published[name] for name in _DETAIL_FIELDS}
            | {
                "measured": None if measures is None else measures.to_json(),
                "newest": [] if is_broken else newest_completions(self.path, self.stage),
            }
        )

    def _collect(self) -> dict[str, Any]:
        """What other threads may see of this run."""
        going, rate, pending = self.state == "going", self._rate.per_second(), self.pending
        seconds_left = pending / rate if going and rate and pending else None
        self._tally_published = self._tally_published or {
            "failures": sum(error["count"] for error in self._tally.errors()),
            "errors": self._tally.errors(),
            "curve": self._curve_points(),
            "beside": getattr(self._tally, "n_outside_grid", 0),
        }
        return self._tally_published | {
            "id": self.id,
            "name": truncate(escape_control(self.name), 200),
            "label": truncate(escape_control(self.label[:_MAX_FIELD_CHARS]), 80),
            "stage": self._stage_text(),
            "model": truncate(escape_control(redact_secrets(self._model_name()[:_MAX_FIELD_CHARS])), 120),
            "state": self.state,
            "said": self._state_text(),
            "unit": self._tally.unit,
            "done": self._tally.done,
            "asked": self.total,
            "pending": pending,
            "rate": rate if going else None,
            "left_s": None if seconds_left is None else round(seconds_left),
            "started": self._started,
            "written": self._tails.modified,
            "read": None if self.is_caught_up else self._fraction_read(),
            "troubles": self.errors(),
            "command": self._command,
        }

    @property
    def label(self) -> str:
        judge = self.config.get("judge")
        if self.stage == "judge" and isinstance(judge, Mapping):
            return str(judge.get("label") or judge.get("name"))
        return str(self.config.get("label") or self.path.name)

    @property
    def pending(self) -> int | None:
        """Number of cells, scores or steps without a result; None if their total is unknown."""
        return None if self.total is None else max(self.total - self._tally.done, 0)

    def errors(self) -> list[str]:
        """One text for each problem of the directory."""
        broken = self._tally.malformed
        lines = [] if not broken else [f"{self._tally.first_error}" + (f" (and {broken - 1} more lines)" if broken > 1 else "")]
        return [trouble for trouble in (self._config_error, self._read_error) if trouble] + lines

    def _reload_config(self) -> None:
        """Reread config.json, provenance.json and grid.json if one has changed, and then count the records from the beginning."""
        settings = tuple(read_file_state(self.path / name) for name in _SETTINGS_FILES)
        if settings != self._config_files:
            self._config_files, self._config_error = settings, ""
            self._started = settings[0].modified if settings[0] else None  # every start writes config.json
            self._run = self._try_read(self._load_run)
            self.config = {} if self._run is None else self._run.config
            self._command = self._command_text() if self.config else ""
            self._reset_tally()
            self._worker_starts = self._find_worker_starts()
        elif self._run is not None and (starts := self._find_worker_starts()) != self._worker_starts:
            self._worker_starts, self._run = starts, self._try_read(self._load_run) or self._run
            self._command = self._command_text()

    def _find_worker_starts(self) -> list[FileState | None]:
        """What changes when a worker with a shard starts."""
        return [read_file_state(file) for file in worker_files(self.path / "provenance.json")[1:]]

    def _load_run(self) -> RunReader:
        run = RunReader(self.path)
        if run.stage not in WATCHED_STAGES:
            stage = repr(run.config.get("stage"))[:_MAX_FIELD_CHARS]
            raise ValueError(f"config.json: stage = {stage}; must be one of {', '.join(WATCHED_STAGES)}")
        return run

    def _reset_tally(self) -> None:
        """Restart the tally and read the file from the beginning."""
        file, expected = _PROGRESS_FILES.get(self.stage, "records.jsonl"), ExpectedCells()
        self._tally_published = {}
        if self.stage == "train":
            self._tally = StepTally(file)
        elif self.stage == "judge":
            self._tally = JudgeCallTally(file)
        else:
            if (run := self._run) is not None:
                expected = self._try_read(lambda: read_expected_cells(run)) or expected
            self._tally = CellTally(file, expected)
        self.total = expected.total
        self._tails = WorkerTails(self.path / file)

    def _update_total(self) -> None:
        """Update the total of stages whose total is known only after the run has started."""
        if self.stage == "train" and self.total is None:
            self.total = expected_steps(self.path, self.config)
        if self.stage == "judge" and self.measures is not None:
            self.total = self.measures.n_scores_asked

    def _try_read(self, read: Any) -> Any:
        """The result of `read`; None if the directory is broken, and then the error is stored."""
        try:
            return read()
        except READ_ERRORS as error:
            self._config_error = readable_error(error)
            return None

    def _state(self, locks: LocksByInode | None, now: float, wall_time: float) -> RunState:
        modified = self._tails.modified
        if self.holder_pids:
            self._remote_writer.reset()
            return "going"
        grows = self._remote_writer.is_growing(now, self._tails.size)
        if not self.config:
            return "broken"
        if self._has_result():
            return "finished"
        fresh = locks is None and modified is not None and wall_time - modified < STALE_AFTER_S
        return "going" if grows or fresh else "stopped"

    def _has_result(self) -> bool:
        if self.stage == "train":
            is_whole = "imported" in self.config and self.pending == 0
            return is_whole or (self.path / "model" / "config.json").is_file()
        return (self.path / "metrics.json").is_file() and not self.pending and not self._tally.n_failing

    def _state_text(self) -> str:
        """The state in words."""
        unit = self._tally.unit
        if self.state == "going":
            known = [str(pid) for pid in self.holder_pids if pid]
            return f"going on (process{'es' * (len(known) > 1)} {', '.join(known)})" if known else "going on"
        if self.state == "finished":
            return "finished"
        if self.state == "broken":
            return "this directory cannot be read"
        if "imported" in self.config:
            return f"imported, with {self.pending} {unit} missing"
        if self.pending == 0:
            return "stopped before its result was written: run the same command again"
        reason = f"{self.pending} {unit} pending" if self.pending else "not finished"
        return f"stopped, {reason}: run the same command again"

    def _stage_text(self) -> str:
        """The stage, with the method of a training or the strategy of an evaluation."""
        more = str(self.config.get("method" if self.stage == "train" else "strategy") or "none")[:_MAX_FIELD_CHARS]
        return truncate(escape_control(self.stage or "?") + (f" ({escape_control(more)})" if more != "none" else ""), 60)

    def _model_name(self) -> str:
        section = self.config.get("judge" if self.stage == "judge" else "model")
        return str(section.get("name") or "") if isinstance(section, Mapping) else ""

    def _command_text(self) -> str:
        """The command of the run's newest start; if it is unknown, one that resumes the run from its configuration."""
        try:
            typed = last_start((self._run or RunReader(self.path)).provenance)["command"]
            return redact_command([word[:_MAX_FIELD_CHARS] for word in typed[:_MAX_COMMAND_WORDS]])
        except READ_ERRORS:
            return redact_command(["permix", self.stage or "STAGE", str(self.path / "config.json")])

    def _fraction_read(self) -> float:
        return self._tails.offset / self._tails.size if self._tails.size else 1.0

    def _curve_points(self) -> list[dict[str, Any]]:
        """The steps of a training for the curve: at most about `_MAX_CURVE_POINTS`, always with the last one."""
        steps = self._tally.steps if isinstance(self._tally, StepTally) else {}
        numbers = sorted(steps)
        stride = -(-len(numbers) // _MAX_CURVE_POINTS) or 1
        kept = sorted({*numbers[::stride], *numbers[-1:]})
        return [{"step": number} | dict(zip(CURVE_METRICS, steps[number].metrics, strict=True)) for number in kept]


class _RemoteWriterDetector:
    """Detects another machine that writes to the run in a shared folder: the file grows, but no process here has the lock."""

    def __init__(self) -> None:
        self._size: int | None = None
        self._grew_at: float | None = None

    def is_growing(self, now: float, size: int) -> bool:
        """Whether the file grows. Call it at each poll that found no lock, with the size of the file in bytes."""
        if self._size is not None and size > self._size:
            self._grew_at = now
        self._size = size
        return self._grew_at is not None and now - self._grew_at < STALE_AFTER_S

    def reset(self) -> None:
        """Call it when a lock was found: growth up to the next poll may come from the holder of that lock."""
        self._size = self._grew_at = None


def readable_error(error: Exception) -> str:
    """The message of an error of a directory, as printable text."""
    text = str(error) if isinstance(error, PermixError | ValueError) else f"{type(error).__name__}: {error}"
    return truncate(escape_control(text[:_MAX_FIELD_CHARS]), 300)


_MAX_FIELD_CHARS = 1000
"""Longest text of a run that is made printable: a damaged file may hold megabytes in one field."""

_MAX_COMMAND_WORDS = 200

_DETAIL_FIELDS = ("command", "beside", "errors", "curve")
