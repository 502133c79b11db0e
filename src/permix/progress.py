"""Progress of long work: a bar with rate and time left on a terminal, a plain line now and then where there is none."""

import contextlib
import sys
import time
from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

PLAIN_INTERVAL_S = 10.0


class MultiProgress:
    """Several pieces of work in a row. `weights` are their expected shares of the time, in any unit."""

    def __init__(self, weights: Sequence[float]) -> None:
        self._weights = weights
        self._part_index, self._weight_done, self._started = 0, 0.0, time.monotonic()

    @contextlib.contextmanager
    def part(self, number: int, name: str) -> Iterator[None]:
        """Do part `number` (from 0). Meters inside it say which part it is and what is left of the whole."""
        global _current_progress
        self._part_index, outer, _current_progress = number, _current_progress, self
        print_status(f"[{number + 1}/{len(self._weights)}] {name}")
        started = time.monotonic()
        try:
            yield
        finally:
            _current_progress = outer
        if time.monotonic() - started < RESUMED_PART_MAX_S:
            self._started = time.monotonic() if self._weight_done == 0 else self._started
        else:
            self._weight_done += self._weights[number]

    def time_left_text(self, fraction_done: float, fraction_done_now: float) -> str:
        """Time left of the whole, when this part is done to `fraction_done` and this process did `fresh` of it itself."""
        weight = self._weights[self._part_index]
        done = self._weight_done + weight * fraction_done_now
        ahead = weight * (1 - fraction_done) + sum(self._weights[self._part_index + 1 :])
        seconds = (time.monotonic() - self._started) * ahead / done if done > 0 else None
        place = f"step {self._part_index + 1} of {len(self._weights)}"
        return place if seconds is None else f"{place}, {format_duration(seconds)} left in all"


RESUMED_PART_MAX_S = 2.0  # a part this quick was done by an earlier process and says nothing of the speed

_current_progress: MultiProgress | None = None


class ProgressBar:
    """Counts units of one piece of work. `note` is shown beside the count (a loss, a rate)."""

    def __init__(self, description: str, total: int, unit: str) -> None:
        self.description, self.total, self.unit = description, total, unit
        self.done = 0
        self._started = time.monotonic()
        self._already_done = 0

    def start_at(self, done: int) -> None:
        """Units finished by an earlier, interrupted process: counted, but not in the rate."""
        self.done = self._already_done = done
        self.show("")

    def advance(self, units: int = 1, status: str = "") -> None:
        self.done += units
        self.show(status)

    def show(self, status: str) -> None:
        raise NotImplementedError

    @property
    def rate(self) -> float:
        """Units a second since this process began."""
        return (self.done - self._already_done) / max(time.monotonic() - self._started, 1e-9)

    def status_text(self, status: str) -> str:
        """What is shown beside the count: the caller's own word, and the place in the whole journey."""
        fresh = (self.done - self._already_done) / max(self.total, 1)
        parts = [status, _current_progress.time_left_text(self.done / max(self.total, 1), fresh) if _current_progress else ""]
        return "; ".join(filter(None, parts))

    @property
    def seconds_left(self) -> float | None:
        return (self.total - self.done) / self.rate if self.done > self._already_done else None


class _TerminalBar(ProgressBar):
    def __init__(self, description: str, total: int, unit: str, progress: Progress) -> None:
        super().__init__(description, total, unit)
        self._progress = progress
        self._task = progress.add_task(description, total=total, note="")

    def show(self, status: str) -> None:
        self._progress.update(
            self._task, completed=self.done, note=f"{self.rate:.2f} {self.unit}/s {self.status_text(status)}".strip()
        )


class _PlainLines(ProgressBar):
    def __init__(self, description: str, total: int, unit: str) -> None:
        super().__init__(description, total, unit)
        self._last_printed = self._started

    def show(self, status: str) -> None:
        now = time.monotonic()
        if now - self._last_printed < PLAIN_INTERVAL_S and self.done < self.total:
            return
        self._last_printed = now
        left = self.seconds_left
        ahead = "" if not left else f", about {format_duration(left)} left"
        line = (
            f"{self.description}: {self.done}/{self.total} {self.unit} ({self.rate:.2f}/s{ahead}) {self.status_text(status)}"
        ).rstrip()
        print_status(line)


def print_status(line: str) -> None:
    """One line for the person who waits, beside the results on stdout."""
    print(line, file=sys.stderr, flush=True)


def format_duration(seconds: float) -> str:
    """75 -> "1:15"."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"


@contextlib.contextmanager
def progress_bar(description: str, total: int, unit: str) -> Iterator[ProgressBar]:
    """Show the progress of `total` units of work on stderr while the block runs."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _PlainLines(description, total, unit)
        return
    columns = (
        TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(),
        TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[note]}"),
    )  # fmt: skip
    with Progress(*columns, console=console) as progress:
        yield _TerminalBar(description, total, unit, progress)
