"""One run directory under watch: how far it is, whether it goes on, what failed, and what it measures.

Contract: the directory is only read, and its lock is never taken. `poll` is cheap however long the run is: files are read from
where the last look ended. Whatever is broken in the directory becomes `errors`, in words, and never an error.

Who holds a run, found out without touching it.

Taking the lock of a run to see whether it is free would refuse whoever starts that run in the same moment. Linux tells of all
locks of the machine in /proc/locks, by inode; where there is no such file nothing is known.

How fast a run goes, as far as it was watched: never from what it had done before.
"""

import os
import sys
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from permix.dashboard.live_metrics import LiveMeasures, newest_completions
from permix.dashboard.progress import (
    CellTally,
    JudgeCallTally,
    RecordTally,
    StepTally,
    expected_steps,
)
from permix.errors import PermixError
from permix.evals.fidelity_records import read_expected_cells
from permix.evals.grid import ExpectedCells
from permix.sanitize import escape_control, redact_command, redact_secrets, truncate
from permix.storage.jsonl import JsonlTail, read_file_state
from permix.storage.run_dir import RunReader
from permix.types import digest

_PROC_LOCKS = Path("/proc/locks")

_LOCK_FILE = ".lock"


class LockHolder(NamedTuple):
    """A line of the table: the device as the kernel names it, and the process, 0 where it is in another container."""

    device: str
    pid: int


LocksByInode = Mapping[int, tuple[LockHolder, ...]]
"""Who holds a lock on the file of an inode."""


def read_locks(table: Path = _PROC_LOCKS) -> LocksByInode | None:
    """None where the system does not tell. A line: `1: FLOCK  ADVISORY  WRITE 812 fe:00:1234 0 EOF`; "->" marks who waits."""
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


def lock_holder(run: Path, locks: LocksByInode | None) -> int | None:
    """The process that holds the run, 0 where it cannot be named; None where nobody holds it, or nothing is known.

    Some file systems name another device to the kernel than to us; then the process that the lock file names must hold it.
    """
    try:
        found = (run / _LOCK_FILE).stat()
        named = (run / _LOCK_FILE).read_bytes()[:20].strip()
    except OSError:
        return None
    device = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}"
    for holder in (locks or {}).get(found.st_ino, ()):
        if holder.device == device or str(holder.pid).encode() == named:
            return max(holder.pid, 0)
    return None


RATE_WINDOW_S = 60.0


class ProgressRate:
    """Counts at moments (seconds of one clock). Nothing is known of a count that was never seen to grow."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int]] = deque()
        self._has_grown = False

    def update(self, now: float, count: int) -> None:
        """A count that shrinks is one of another beginning: what was seen before is forgotten."""
        if self._samples and count < self._samples[-1][1]:
            self._samples.clear()
            self._has_grown = False
        self._has_grown = self._has_grown or (bool(self._samples) and count > self._samples[-1][1])
        self._samples.append((now, count))
        while len(self._samples) > 2 and self._samples[1][0] <= now - RATE_WINDOW_S:
            self._samples.popleft()

    def per_second(self) -> float | None:
        """Over the last minute, or since watching began; 0 for one that moved before and does not now."""
        if not self._has_grown:
            return None
        (start, before), (end, after) = self._samples[0], self._samples[-1]
        return (after - before) / (end - start) if end > start else None


RunState = Literal["going", "finished", "stopped", "broken"]

STALE_AFTER_S = 90.0

_MAX_CURVE_POINTS = 400

CURVE_METRICS = (
    "reward",
    "loss",
    "completion_tokens",
    "frac_nonzero_advantage_groups",
    "truncated",
    "entropy",
    "replay_kl",
    "lr",
    "grad_norm",
)

_PROGRESS_FILES = {"train": "log.jsonl", "judge": "judgements.jsonl"}

READ_ERRORS = (PermixError, OSError, ValueError, OverflowError, KeyError, TypeError, AttributeError, RecursionError)
"""What a broken directory raises, wherever it is read."""

WATCHED_STAGES = ("stability", "fidelity", "train", "judge", "questions")

RunVersion = tuple[int, bool, str]


class RunMonitor:
    """`name`: where it lies below the folder that is viewed. `id` is the same for the same name."""

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name, self.id = path, name, digest(name)
        self.config: Mapping[str, Any] = {}
        self._run: RunReader | None = None
        self.total: int | None = None
        self.holder_pid: int | None = None
        self.state: RunState = "broken"
        self.measures: LiveMeasures | None = None
        self.measured_version: RunVersion | None = None
        self._config_error = self._read_error = ""
        self._config_files: object = ()
        self._tail = JsonlTail(path / "records.jsonl")
        self._tally: RecordTally = CellTally("records.jsonl", ExpectedCells())
        self._rate = ProgressRate()
        self._remote_writer = _RemoteWriterDetector()

    @property
    def stage(self) -> str:
        return str(self.config.get("stage", ""))

    @property
    def is_caught_up(self) -> bool:
        """Whether all that could be read at the last look has been."""
        return bool(self._read_error) or not self._tail.is_behind

    @property
    def version(self) -> RunVersion:
        """Lines, whether it goes on, why it cannot be read: changes when there is something new to measure."""
        return self._tally.lines, self.state == "going", self._read_error

    def poll(self, locks: LocksByInode | None, now: float, wall_time: float) -> None:
        """See what is new. `now` never goes back (for rates); `wall_time` is seconds since the epoch (for ages of files)."""
        try:
            self._update(locks, now, wall_time)
            self._read_error = ""
        except READ_ERRORS as error:
            self._read_error, self.state = readable_error(error), "broken"

    def _update(self, locks: LocksByInode | None, now: float, wall_time: float) -> None:
        self.holder_pid = lock_holder(self.path, locks)
        self._reload_config()
        restarts = self._tail.restarts
        lines = self._tail.read_lines()
        if self._tail.restarts != restarts:
            self._reset_tally()
        self._tally.add_lines(lines)
        self._try_read(self._update_total)
        if self.is_caught_up:
            self._rate.update(now, self._tally.done)
        self.state = self._state(locks, now, wall_time)

    def summary(self) -> dict[str, Any]:
        """A line of the overview, JSON-ready."""
        going, rate, owed = self.state == "going", self._rate.per_second(), self.pending
        left = owed / rate if going and rate and owed else None
        return {
            "id": self.id,
            "name": truncate(escape_control(self.name), 200),
            "label": truncate(escape_control(self.label), 80),
            "stage": self._stage_text(),
            "model": truncate(escape_control(redact_secrets(self._model_name())), 120),
            "state": self.state,
            "said": self._state_text(),
            "unit": self._tally.unit,
            "done": self._tally.done,
            "asked": self.total,
            "pending": owed,
            "rate": rate if going else None,
            "left_s": None if left is None else round(left),
            "written": self._tail.state.modified if self._tail.state else None,
            "read": None if self.is_caught_up else self._fraction_read(),
            "failures": sum(error["count"] for error in self._tally.errors()),
            "troubles": self.errors(),
        }

    def detail(self) -> dict[str, Any]:
        """What is shown of the one run that somebody looks at."""
        return self.summary() | {
            "command": self._command_text() if self.config else "",
            "beside": getattr(self._tally, "n_outside_grid", 0),
            "errors": self._tally.errors(),
            "measured": None if self.measures is None else self.measures.to_json(),
            "curve": self._curve_points(),
            "newest": newest_completions(self.path, self.stage) if self.stage in WATCHED_STAGES else [],
        }

    @property
    def label(self) -> str:
        judge = self.config.get("judge")
        if self.stage == "judge" and isinstance(judge, Mapping):
            return str(judge.get("label") or judge.get("name"))
        return str(self.config.get("label") or self.path.name)

    @property
    def pending(self) -> int | None:
        """Cells, scores or steps without a result; None where the run does not say how many it asks."""
        return None if self.total is None else max(self.total - self._tally.done, 0)

    def errors(self) -> list[str]:
        """What is broken in the directory."""
        broken = self._tally.malformed
        lines = [] if not broken else [f"{self._tally.first_error}" + (f" (and {broken - 1} more lines)" if broken > 1 else "")]
        unmeasured = self.measures.error if self.measures else ""
        return [trouble for trouble in (self._config_error, self._read_error, unmeasured) if trouble] + lines

    def _reload_config(self) -> None:
        """Read config.json, provenance.json and grid.json when they have changed; then the records are counted anew."""
        settings = tuple(read_file_state(self.path / name) for name in ("config.json", "provenance.json", "grid.json"))
        if settings != self._config_files:
            self._config_files, self._config_error = settings, ""
            self._try_read(self._load_config)
            self._reset_tally()

    def _load_config(self) -> None:
        self.config, self._run = {}, None
        run = RunReader(self.path)
        if run.stage not in WATCHED_STAGES:
            stage = run.config.get("stage")
            raise ValueError(f"config.json: has stage {stage!r}; a run has one of {', '.join(WATCHED_STAGES)}")
        self.config, self._run = run.config, run

    def _reset_tally(self) -> None:
        """Count from the beginning of the file."""
        file, asked = _PROGRESS_FILES.get(self.stage, "records.jsonl"), ExpectedCells()
        if self.stage == "train":
            self._tally = StepTally(file)
        elif self.stage == "judge":
            self._tally = JudgeCallTally(file)
        else:
            if (run := self._run) is not None:
                asked = self._try_read(lambda: read_expected_cells(run)) or asked
            self._tally = CellTally(file, asked)
        self.total = asked.total
        self._tail = JsonlTail(self.path / file)

    def _update_total(self) -> None:
        """What becomes known only while the run goes on."""
        if self.stage == "train" and self.total is None:
            self.total = expected_steps(self.path, self.config)
        if self.stage == "judge" and self.measures is not None:
            self.total = self.measures.n_scores_asked

    def _try_read(self, read: Any) -> Any:
        """What `read` gives; None, and its error among the troubles, where the directory is broken."""
        try:
            return read()
        except READ_ERRORS as error:
            self._config_error = readable_error(error)
            return None

    def _state(self, locks: LocksByInode | None, now: float, wall_time: float) -> RunState:
        seen = self._tail.state
        if self.holder_pid is not None:
            self._remote_writer.reset()
            return "going"
        grows = self._remote_writer.is_growing(now, seen.size if seen else 0)
        if not self.config:
            return "broken"
        if self._has_result():
            return "finished"
        fresh = locks is None and seen is not None and wall_time - seen.modified < STALE_AFTER_S
        return "going" if grows or fresh else "stopped"

    def _has_result(self) -> bool:
        if self.stage == "train":
            return (self.path / "model" / "config.json").is_file()
        return (self.path / "metrics.json").is_file() and not self.pending and not self._tally.n_failing

    def _state_text(self) -> str:
        """The state in words."""
        unit = self._tally.unit
        if self.state == "going":
            return f"going on (process {self.holder_pid})" if self.holder_pid else "going on"
        if self.state == "finished":
            return "finished"
        if self.state == "broken":
            return "this directory cannot be read"
        if "imported" in self.config:
            return f"imported, with {self.pending} {unit} missing"
        what = (
            "its result not written" if self.pending == 0 else f"{self.pending} {unit} owed" if self.pending else "not finished"
        )
        return f"stopped, {what}: run the same command again"

    def _stage_text(self) -> str:
        """Stage, and its method, strategy or kind."""
        more = self.config.get("method") if self.stage == "train" else self.config.get("strategy")
        return truncate(
            escape_control(self.stage or "?") + (f" ({escape_control(str(more))})" if more and more != "none" else ""), 60
        )

    def _model_name(self) -> str:
        section = self.config.get("judge" if self.stage == "judge" else "model")
        return str(section.get("name", "")) if isinstance(section, Mapping) else ""

    def _command_text(self) -> str:
        """What was typed to start the run; where that is not known, what goes on with it from its own configuration."""
        try:
            typed = (self._run or RunReader(self.path)).provenance["command"]
            return redact_command([str(word) for word in typed])
        except READ_ERRORS:
            return redact_command(["permix", self.stage or "STAGE", str(self.path / "config.json")])

    def _fraction_read(self) -> float:
        seen = self._tail.state
        return self._tail.offset / seen.size if seen and seen.size else 1.0

    def _curve_points(self) -> list[dict[str, Any]]:
        """A training's steps, a few hundred at most, the last one always among them."""
        steps = self._tally.steps if isinstance(self._tally, StepTally) else {}
        numbers = sorted(steps)
        stride = -(-len(numbers) // _MAX_CURVE_POINTS) or 1
        kept = sorted({*numbers[::stride], *numbers[-1:]})
        return [{"step": number} | {name: _finite_or_none(steps[number].get(name)) for name in CURVE_METRICS} for number in kept]


class _RemoteWriterDetector:
    """Growth that nobody here holds a lock for: another machine writes the run over a shared folder."""

    def __init__(self) -> None:
        self._size: int | None = None
        self._grew_at: float | None = None

    def is_growing(self, now: float, size: int) -> bool:
        """Asked at each look at which no lock was seen, with the bytes of the run's file."""
        if self._size is not None and size > self._size:
            self._grew_at = now
        self._size = size
        return self._grew_at is not None and now - self._grew_at < STALE_AFTER_S

    def reset(self) -> None:
        """A lock was seen: what grew until the next look may have been its holder's work."""
        self._size = self._grew_at = None


def readable_error(error: Exception) -> str:
    """What is wrong with a directory, as text that may be shown."""
    said = str(error) if isinstance(error, PermixError | ValueError) else f"{type(error).__name__}: {error}"
    return truncate(escape_control(said), 300)


def _finite_or_none(value: object) -> float | None:
    """None for what is no number, or not a finite one."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    return float(value) if abs(value) <= sys.float_info.max else None
