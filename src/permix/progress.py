"""Progress of long work: a bar with rate and time left on a terminal, a plain line now and then where there is none."""

import contextlib
import sys
import time
from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

PLAIN_EVERY_S = 10.0


class Journey:
    """Several pieces of work in a row. `weights` are their expected shares of the time, in any unit."""

    def __init__(self, weights: Sequence[float]) -> None:
        self._weights = weights
        self._number, self._gained, self._began = 0, 0.0, time.monotonic()

    @contextlib.contextmanager
    def part(self, number: int, name: str) -> Iterator[None]:
        """Do part `number` (from 0). Meters inside it say which part it is and what is left of the whole."""
        global _journey
        self._number, outer, _journey = number, _journey, self
        say(f"[{number + 1}/{len(self._weights)}] {name}")
        started = time.monotonic()
        try:
            yield
        finally:
            _journey = outer
        if time.monotonic() - started < DONE_BEFORE_S:
            self._began = time.monotonic() if self._gained == 0 else self._began
        else:
            self._gained += self._weights[number]

    def left(self, share: float, fresh: float) -> str:
        """Time left of the whole, when this part is done to `share` and this process did `fresh` of it itself."""
        weight = self._weights[self._number]
        done = self._gained + weight * fresh
        ahead = weight * (1 - share) + sum(self._weights[self._number + 1 :])
        seconds = (time.monotonic() - self._began) * ahead / done if done > 0 else None
        place = f"step {self._number + 1} of {len(self._weights)}"
        return place if seconds is None else f"{place}, {clock(seconds)} left in all"


DONE_BEFORE_S = 2.0  # a part this quick was done by an earlier process and says nothing of the speed

_journey: Journey | None = None


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

    def note(self, own: str) -> str:
        """What is shown beside the count: the caller's own word, and the place in the whole journey."""
        fresh = (self.done - self._already_done) / max(self.total, 1)
        parts = [own, _journey.left(self.done / max(self.total, 1), fresh) if _journey else ""]
        return "; ".join(filter(None, parts))

    @property
    def seconds_left(self) -> float | None:
        return (self.total - self.done) / self.rate if self.done > self._already_done else None


class _Bar(Meter):
    def __init__(self, what: str, total: int, unit: str, progress: Progress) -> None:
        super().__init__(what, total, unit)
        self._progress = progress
        self._task = progress.add_task(what, total=total, note="")

    def show(self, note: str) -> None:
        self._progress.update(self._task, completed=self.done, note=f"{self.rate:.2f} {self.unit}/s {self.note(note)}".strip())


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
        line = f"{self.what}: {self.done}/{self.total} {self.unit} ({self.rate:.2f}/s{ahead}) {self.note(note)}".rstrip()
        say(line)


def say(line: str) -> None:
    """One line for the person who waits, beside the results on stdout."""
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
