"""One run directory under watch: how far it is, whether it goes on, what failed, and what it measures.

Contract: the directory is only read, and its lock is never taken. `look` is cheap however long the run is: files are read from
where the last look ended. Whatever is broken in the directory becomes `troubles`, in words, and never an error.

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

from permix.dashboard.live_metrics import Measured, newest
from permix.dashboard.progress import Asked, CallTally, CellTally, StepTally, Tally, read_asked, steps_asked
from permix.errors import PermixError
from permix.sanitize import clip, shown, visible, without_secrets
from permix.storage.files import read_json
from permix.storage.jsonl import Growing, look
from permix.types import digest

TABLE = Path("/proc/locks")

LOCK = ".lock"


class Holder(NamedTuple):
    """A line of the table: the device as the kernel names it, and the process, 0 where it is in another container."""

    device: str
    pid: int


Locks = Mapping[int, tuple[Holder, ...]]
"""Who holds a lock on the file of an inode."""


def read_locks(table: Path = TABLE) -> Locks | None:
    """None where the system does not tell. A line: `1: FLOCK  ADVISORY  WRITE 812 fe:00:1234 0 EOF`; "->" marks who waits."""
    try:
        lines = table.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    found: dict[int, tuple[Holder, ...]] = {}
    for words in map(str.split, lines):
        if len(words) < 6 or words[1] == "->":
            continue
        device, _, inode = words[5].rpartition(":")
        if inode.isdigit() and words[4].lstrip("-").isdigit():
            found[int(inode)] = (*found.get(int(inode), ()), Holder(device, int(words[4])))
    return found


def holder_of(run: Path, locks: Locks | None) -> int | None:
    """The process that holds the run, 0 where it cannot be named; None where nobody holds it, or nothing is known.

    Some file systems name another device to the kernel than to us; then the process that the lock file names must hold it.
    """
    try:
        found = (run / LOCK).stat()
        named = (run / LOCK).read_bytes()[:20].strip()
    except OSError:
        return None
    device = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}"
    for holder in (locks or {}).get(found.st_ino, ()):
        if holder.device == device or str(holder.pid).encode() == named:
            return max(holder.pid, 0)
    return None


WINDOW_S = 60.0


class Rate:
    """Counts at moments (seconds of one clock). Nothing is known of a count that was never seen to grow."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()
        self._moved = False

    def note(self, now: float, count: int) -> None:
        """A count that shrinks is one of another beginning: what was seen before is forgotten."""
        if self._seen and count < self._seen[-1][1]:
            self._seen.clear()
            self._moved = False
        self._moved = self._moved or (bool(self._seen) and count > self._seen[-1][1])
        self._seen.append((now, count))
        while len(self._seen) > 2 and self._seen[1][0] <= now - WINDOW_S:
            self._seen.popleft()

    def per_second(self) -> float | None:
        """Over the last minute, or since watching began; 0 for one that moved before and does not now."""
        if not self._moved:
            return None
        (start, before), (end, after) = self._seen[0], self._seen[-1]
        return (after - before) / (end - start) if end > start else None


State = Literal["going", "finished", "stopped", "broken"]

QUIET_S = 90.0

MOST_POINTS = 400

FIGURES = ("reward", "loss", "completion_tokens", "signal_groups", "truncated", "entropy", "replay_kl", "lr", "grad_norm")

_FILE = {"train": "log.jsonl", "judge": "judgements.jsonl"}

BAD = (PermixError, OSError, ValueError, OverflowError, KeyError, TypeError, AttributeError, RecursionError)
"""What a broken directory raises, wherever it is read."""

STAGES = ("stability", "fidelity", "train", "judge", "questions")

Version = tuple[int, bool, str]


class Watched:
    """`name`: where it lies below the folder that is viewed. `id` is the same for the same name."""

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name, self.id = path, name, digest(name)
        self.config: Mapping[str, Any] = {}
        self.asked: int | None = None
        self.holder: int | None = None
        self.state: State = "broken"
        self.measured: Measured | None = None
        self.measured_at: Version | None = None
        self._trouble = self._unread = ""
        self._settings: object = ()
        self._growing = Growing(path / "records.jsonl")
        self._tally: Tally = CellTally("records.jsonl", Asked())
        self._rate = Rate()
        self._unheld = _Unheld()

    @property
    def stage(self) -> str:
        return str(self.config.get("stage", ""))

    @property
    def is_caught_up(self) -> bool:
        """Whether all that could be read at the last look has been."""
        return bool(self._unread) or not self._growing.is_behind

    @property
    def version(self) -> Version:
        """Lines, whether it goes on, why it cannot be read: changes when there is something new to measure."""
        return self._tally.lines, self.state == "going", self._unread

    def look(self, locks: Locks | None, now: float, clock: float) -> None:
        """See what is new. `now` never goes back (for rates); `clock` is seconds since the epoch (for ages of files)."""
        try:
            self._see(locks, now, clock)
            self._unread = ""
        except BAD as error:
            self._unread, self.state = told(error), "broken"

    def _see(self, locks: Locks | None, now: float, clock: float) -> None:
        self.holder = holder_of(self.path, locks)
        self._read_settings()
        restarts = self._growing.restarts
        lines = self._growing.read()
        if self._growing.restarts != restarts:
            self._renew()
        self._tally.take(lines)
        self._guard(self._read_total)
        if self.is_caught_up:
            self._rate.note(now, self._tally.done)
        self.state = self._state(locks, now, clock)

    def summary(self) -> dict[str, Any]:
        """A line of the overview, JSON-ready."""
        going, rate, owed = self.state == "going", self._rate.per_second(), self.owed
        left = owed / rate if going and rate and owed else None
        return {
            "id": self.id,
            "name": clip(visible(self.name), 200),
            "label": clip(visible(self.label), 80),
            "stage": self._described(),
            "model": clip(visible(without_secrets(self._model())), 120),
            "state": self.state,
            "said": self._said(),
            "unit": self._tally.unit,
            "done": self._tally.done,
            "asked": self.asked,
            "owed": owed,
            "rate": rate if going else None,
            "left_s": None if left is None else round(left),
            "written": self._growing.seen.written if self._growing.seen else None,
            "read": None if self.is_caught_up else self._share_read(),
            "failures": sum(error["count"] for error in self._tally.errors()),
            "troubles": self.troubles(),
        }

    def detail(self) -> dict[str, Any]:
        """What is shown of the one run that somebody looks at."""
        return self.summary() | {
            "command": self._command() if self.config else "",
            "beside": getattr(self._tally, "beside", 0),
            "errors": self._tally.errors(),
            "measured": None if self.measured is None else self.measured.plain(),
            "curve": self._curve(),
            "newest": newest(self.path, self.stage) if self.stage in STAGES else [],
        }

    @property
    def label(self) -> str:
        judge = self.config.get("judge")
        if self.stage == "judge" and isinstance(judge, Mapping):
            return str(judge.get("label") or judge.get("name"))
        return str(self.config.get("label") or self.path.name)

    @property
    def owed(self) -> int | None:
        """Cells, scores or steps without a result; None where the run does not say how many it asks."""
        return None if self.asked is None else max(self.asked - self._tally.done, 0)

    def troubles(self) -> list[str]:
        """What is broken in the directory."""
        broken = self._tally.broken
        lines = [] if not broken else [f"{self._tally.trouble}" + (f" (and {broken - 1} more lines)" if broken > 1 else "")]
        unmeasured = self.measured.trouble if self.measured else ""
        return [trouble for trouble in (self._trouble, self._unread, unmeasured) if trouble] + lines

    def _read_settings(self) -> None:
        """config.json and asked.json, when they have changed; then the records are counted anew."""
        settings = tuple(look(self.path / name) for name in ("config.json", "asked.json"))
        if settings != self._settings:
            self._settings, self._trouble = settings, ""
            self._guard(self._configure)
            self._renew()

    def _configure(self) -> None:
        self.config = {}
        config = read_json(self.path / "config.json")
        if config.get("stage") not in STAGES:
            raise ValueError(f"config.json: has stage {config.get('stage')!r}; a run has one of {', '.join(STAGES)}")
        self.config = config

    def _renew(self) -> None:
        """Count from the beginning of the file."""
        file, asked = _FILE.get(self.stage, "records.jsonl"), Asked()
        if self.stage == "train":
            self._tally = StepTally(file)
        elif self.stage == "judge":
            self._tally = CallTally(file)
        else:
            if self.stage:
                asked = self._guard(lambda: read_asked(self.path, self.config)) or asked
            self._tally = CellTally(file, asked)
        self.asked = asked.cells
        self._growing = Growing(self.path / file)

    def _read_total(self) -> None:
        """What becomes known only while the run goes on."""
        if self.stage == "train" and self.asked is None:
            self.asked = steps_asked(self.path, self.config)
        if self.stage == "judge" and self.measured is not None:
            self.asked = self.measured.asked

    def _guard(self, read: Any) -> Any:
        """What `read` gives; None, and its error among the troubles, where the directory is broken."""
        try:
            return read()
        except BAD as error:
            self._trouble = told(error)
            return None

    def _state(self, locks: Locks | None, now: float, clock: float) -> State:
        seen = self._growing.seen
        if self.holder is not None:
            self._unheld.forget()
            return "going"
        grows = self._unheld.grows(now, seen.size if seen else 0)
        if not self.config:
            return "broken"
        if self._has_result():
            return "finished"
        fresh = locks is None and seen is not None and clock - seen.written < QUIET_S
        return "going" if grows or fresh else "stopped"

    def _has_result(self) -> bool:
        if self.stage == "train":
            return (self.path / "model" / "config.json").is_file()
        return (self.path / "metrics.json").is_file() and not self.owed and not self._tally.failing

    def _said(self) -> str:
        """The state in words."""
        unit = self._tally.unit
        if self.state == "going":
            return f"going on (process {self.holder})" if self.holder else "going on"
        if self.state == "finished":
            return "finished"
        if self.state == "broken":
            return "this directory cannot be read"
        if "imported" in self.config:
            return f"imported, with {self.owed} {unit} missing"
        what = "its result not written" if self.owed == 0 else f"{self.owed} {unit} owed" if self.owed else "not finished"
        return f"stopped, {what}: run the same command again"

    def _described(self) -> str:
        """Stage, and its method, strategy or kind."""
        more = self.config.get("method") if self.stage == "train" else self.config.get("strategy")
        return clip(visible(self.stage or "?") + (f" ({visible(str(more))})" if more and more != "none" else ""), 60)

    def _model(self) -> str:
        section = self.config.get("judge" if self.stage == "judge" else "model")
        return str(section.get("name", "")) if isinstance(section, Mapping) else ""

    def _command(self) -> str:
        """What was typed to start the run; where that is not known, what goes on with it from its own configuration."""
        try:
            typed = read_json(self.path / "provenance.json")["command"]
            return shown([str(word) for word in typed])
        except BAD:
            return shown(["permix", self.stage or "STAGE", str(self.path / "config.json")])

    def _share_read(self) -> float:
        seen = self._growing.seen
        return self._growing.offset / seen.size if seen and seen.size else 1.0

    def _curve(self) -> list[dict[str, Any]]:
        """A training's steps, a few hundred at most, the last one always among them."""
        steps = self._tally.steps if isinstance(self._tally, StepTally) else {}
        numbers = sorted(steps)
        stride = -(-len(numbers) // MOST_POINTS) or 1
        kept = sorted({*numbers[::stride], *numbers[-1:]})
        return [{"step": number} | {name: _number(steps[number].get(name)) for name in FIGURES} for number in kept]


class _Unheld:
    """Growth that nobody here holds a lock for: another machine writes the run over a shared folder."""

    def __init__(self) -> None:
        self._size: int | None = None
        self._grew_at: float | None = None

    def grows(self, now: float, size: int) -> bool:
        """Asked at each look at which no lock was seen, with the bytes of the run's file."""
        if self._size is not None and size > self._size:
            self._grew_at = now
        self._size = size
        return self._grew_at is not None and now - self._grew_at < QUIET_S

    def forget(self) -> None:
        """A lock was seen: what grew until the next look may have been its holder's work."""
        self._size = self._grew_at = None


def told(error: Exception) -> str:
    """What is wrong with a directory, as text that may be shown."""
    said = str(error) if isinstance(error, PermixError | ValueError) else f"{type(error).__name__}: {error}"
    return clip(visible(said), 300)


def _number(value: object) -> float | None:
    """None for what is no number, or not a finite one."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    return float(value) if abs(value) <= sys.float_info.max else None
