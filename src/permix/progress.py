"""Progress of long work: a bar with rate and time left on a terminal, a plain line now and then where there is none."""

import contextlib
import sys
import time
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

PLAIN_EVERY_S = 10.0


class Meter:
    """Counts units of one piece of work. `note` is shown beside the count (a loss, a rate)."""

    def __init__(self, what: str, total: int, unit: str) -> None:
        self.what, self.total, self.unit = what, total, unit
        self.done = 0
        self._started = time.monotonic()
        self._already_done = 0

    def start_at(self, done: int) -> None:
        """Units finished by an earlier, interrupted process: counted, but not in the rate."""
        self.done = self._already_done = done
        self.show("")

    def advance(self, units: int = 1, note: str = "") -> None:
        self.done += units
        self.show(note)

    def show(self, note: str) -> None:
        raise NotImplementedError

    @property
    def rate(self) -> float:
        """Units a second since this process began."""
        return (self.done - self._already_done) / max(time.monotonic() - self._started, 1e-9)

    @property
    def seconds_left(self) -> float | None:
        return (self.total - self.done) / self.rate if self.done > self._already_done else None


class _Bar(Meter):
    def __init__(self, what: str, total: int, unit: str, progress: Progress) -> None:
        super().__init__(what, total, unit)
        self._progress = progress
        self._task = progress.add_task(what, total=total, note="")

    def show(self, note: str) -> None:
        self._progress.update(self._task, completed=self.done, note=f"{self.rate:.2f} {self.unit}/s {note}".strip())


class _Lines(Meter):
    def __init__(self, what: str, total: int, unit: str) -> None:
        super().__init__(what, total, unit)
        self._last = self._started

    def show(self, note: str) -> None:
        now = time.monotonic()
        if now - self._last < PLAIN_EVERY_S and self.done < self.total:
            return
        self._last = now
        left = self.seconds_left
        ahead = "" if not left else f", about {clock(left)} left"
        line = f"{self.what}: {self.done}/{self.total} {self.unit} ({self.rate:.2f}/s{ahead}) {note}".rstrip()
        print(line, file=sys.stderr, flush=True)


def clock(seconds: float) -> str:
    """75 -> "1:15"."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"


@contextlib.contextmanager
def meter(what: str, total: int, unit: str) -> Iterator[Meter]:
    """Show the progress of `total` units of work on stderr while the block runs."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _Lines(what, total, unit)
        return
    columns = (
        TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(),
        TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[note]}"),
    )  # fmt: skip
    with Progress(*columns, console=console) as progress:
        yield _Bar(what, total, unit, progress)
