"""Show the progress of long work on stderr: on a terminal a bar with rate and time left, elsewhere a plain line every 10 s."""

import contextlib
import functools
import sys
import time
from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

PLAIN_INTERVAL_S = 10.0


class MultiProgress:
    """The progress of several parts of work, done one after the other. `weights` [N]: their expected durations, in any unit."""

    def __init__(self, weights: Sequence[float]) -> None:
        self._weights = weights
        self._part_index, self._weight_done, self._started = 0, 0.0, time.monotonic()

    @contextlib.contextmanager
    def part(self, number: int, name: str) -> Iterator[None]:
        """Run part `number` (from 0) in the block. Its progress bars also show the part's number and the time left in total."""
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
        """The part's number and the time left in total.

        `fraction_done`: the share of this part that is done (0 to 1). `fraction_done_now`: the share that this process did; an
        earlier process did the rest. Only this process's work enters the estimate of the speed.
        """
        weight = self._weights[self._part_index]
        done = self._weight_done + weight * fraction_done_now
        left = weight * (1 - fraction_done) + sum(self._weights[self._part_index + 1 :])
        seconds = (time.monotonic() - self._started) * left / done if done > 0 else None
        part = f"part {self._part_index + 1} of {len(self._weights)}"
        return part if seconds is None else f"{part}, {format_duration(seconds)} left in total"


# A part that ends sooner was already done by an earlier process, so it is left out of the estimate of the speed.
RESUMED_PART_MAX_S = 2.0

_current_progress: MultiProgress | None = None


class ProgressBar:
    """Counts the finished units of one piece of work. A `status` (such as a loss) is shown next to the count."""

    def __init__(self, description: str, total: int, unit: str) -> None:
        self.description, self.total, self.unit = description, total, unit
        self.done = 0
        self._started = time.monotonic()
        self._already_done = 0

    def start_at(self, done: int) -> None:
        """Count `done` units that an earlier, interrupted process finished; they do not enter the rate."""
        self.done = self._already_done = done
        self.show("")

    def advance(self, units: int = 1, status: str = "") -> None:
        self.done += units
        self.show(status)

    def show(self, status: str) -> None:
        raise NotImplementedError

    @property
    def rate(self) -> float:
        """Units per second in this process."""
        return (self.done - self._already_done) / max(time.monotonic() - self._started, 1e-9)

    def status_text(self, status: str) -> str:
        """The text next to the count: the caller's status and, inside a `MultiProgress`, its part and the time left in total."""
        done_now = (self.done - self._already_done) / max(self.total, 1)
        parts = [status, _current_progress.time_left_text(self.done / max(self.total, 1), done_now) if _current_progress else ""]
        return "; ".join(filter(None, parts))

    @property
    def seconds_left(self) -> float | None:
        """Estimated seconds left; None before this process has done 2 % of the units, of which the first include the start-up."""
        done_now = self.done - self._already_done
        return (self.total - self.done) / self.rate if done_now > 0 and done_now >= 0.02 * self.total else None


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
        seconds = self.seconds_left
        left = "" if not seconds else f", about {format_duration(seconds)} left"
        line = (
            f"{self.description}: {self.done}/{self.total} {self.unit} ({self.rate:.2f}/s{left}) {self.status_text(status)}"
        ).rstrip()
        print_status(line)


def print_status(line: str) -> None:
    """Print a line on stderr; stdout is for results."""
    print(line, file=sys.stderr, flush=True)


@functools.cache
def print_status_once(line: str) -> None:
    """`print_status`, unless this process has printed the line before."""
    print_status(line)


def format_duration(seconds: float) -> str:
    """Format seconds as minutes and seconds: 75 -> "1:15"."""
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
