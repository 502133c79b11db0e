"""Show the progress of long work on stderr: on a terminal a bar with rate and time left, elsewhere a plain line every 10 s.

Also holds how this process shows a command (`command_output`): with --quiet none of this, with --json one object on stdout.
"""

import contextlib
import functools
import json
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

MIN_DONE = 0.02
"""Share of the work that this process must have done before the time left is estimated: the start is slower than the rest."""

PLAIN_INTERVAL_S, TERMINAL_INTERVAL_S = 10.0, 1.0
"""Pause between two lines of a progress, and between two looks at the jobs that a terminal shows."""


class CommandOutput:
    """How a command is shown, and its result as data.

    `stdout` is where the JSON object goes; None if the result is text for people, for which nothing is collected. `result`: what
    the object will hold. `notes`: the lines that begin with "note:" or "warning:", also if `is_quiet` keeps them off stderr.
    """

    def __init__(self, stdout: TextIO | None = None, *, is_quiet: bool = False) -> None:
        self.stdout, self.is_quiet = stdout, is_quiet
        self.collects = stdout is not None
        self.result: dict[str, Any] = {}
        self.notes: list[str] = []

    def print_json(self) -> None:
        """Print the object, the first time that this is called. Text outside ASCII is escaped, as are control characters."""
        stdout, self.stdout = self.stdout, None  # before it is printed: a signal right after that must not print it again
        if stdout is not None:
            content = self.result | {"notes": self.notes}
            print(json.dumps(content, indent=2, allow_nan=False, default=str), file=stdout, flush=True)


_output = CommandOutput()


@contextlib.contextmanager
def command_output(*, as_json: bool, is_quiet: bool) -> Iterator[CommandOutput]:
    """Show what happens in the block in this way. With `as_json` all other text for stdout is dropped: one object is all."""
    global _output
    before, _output = _output, CommandOutput(sys.stdout if as_json else None, is_quiet=is_quiet)
    try:
        with contextlib.ExitStack() as stack:
            if as_json:
                stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
            yield _output
    finally:
        _output = before


def add_result(**values: Any) -> None:
    """Add values to the object that --json prints; a mapping is added to the mapping that has this name already."""
    if not _output.collects:
        return
    for name, value in values.items():
        known = _output.result.get(name)
        _output.result[name] = {**known, **value} if isinstance(known, Mapping) and isinstance(value, Mapping) else value


@contextlib.contextmanager
def separate_result() -> Iterator[dict[str, Any]]:
    """Collect what the block adds to the result in a dict of its own, which the caller may add under a name."""
    outer, _output.result = _output.result, {}
    try:
        yield _output.result
    finally:
        _output.result = outer


def print_result_now() -> None:
    """With --json, print the object now: for a command that goes on after its result is known."""
    _output.print_json()


class MultiProgress:
    """The progress of several parts of work, done one after the other. `weights` [N]: their expected durations, in any unit.

    The speed is that of the work of this process, over the time since its first work; what an earlier process did is left out.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        self._weights = weights
        self._part_index, self._weight_done, self._seconds = 0, 0.0, 0.0
        self._part_started, self._done_now = time.monotonic(), 0.0

    @contextlib.contextmanager
    def part(self, number: int, name: str) -> Iterator[None]:
        """Run part `number` (from 0) in the block. Its progress bars also show the part's number and the time left in total."""
        global _current_progress
        self._part_index, outer, _current_progress = number, _current_progress, self
        self._part_started, self._done_now = time.monotonic(), 0.0
        print_status(f"[{number + 1}/{len(self._weights)}] {name}")
        try:
            yield
        finally:
            _current_progress = outer
        if self._done_now:  # else an earlier process did all of it, and this one only loaded a model and looked
            self._weight_done += self._weights[number] * self._done_now
            self._seconds += time.monotonic() - self._part_started

    def record(self, fraction_done_now: float) -> None:
        """Record the share of this part that this process has done (0 to 1)."""
        self._done_now = max(self._done_now, fraction_done_now)

    def time_left_text(self, fraction_done: float, fraction_done_now: float) -> str:
        """The part's number and the time left in total.

        `fraction_done`: the share of this part that is done (0 to 1). `fraction_done_now`: the share that this process did; an
        earlier process did the rest. Only this process's work enters the estimate of the speed.
        """
        self.record(fraction_done_now)
        weight = self._weights[self._part_index]
        done = self._weight_done + weight * fraction_done_now
        left = weight * (1 - fraction_done) + sum(self._weights[self._part_index + 1 :])
        spent = self._seconds + time.monotonic() - self._part_started
        seconds = spent * left / done if done > 0 else None
        part = f"part {self._part_index + 1} of {len(self._weights)}"
        return part if seconds is None else f"{part}, {format_duration(seconds)} left in total"


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

    @property
    def fraction_done_now(self) -> float:
        """The share of the units that this process has done, 0 to 1."""
        return (self.done - self._already_done) / max(self.total, 1)

    def status_text(self, status: str) -> str:
        """The text next to the count: the caller's status and, inside a `MultiProgress`, its part and the time left in total."""
        done = self.done / max(self.total, 1)
        parts = [status, _current_progress.time_left_text(done, self.fraction_done_now) if _current_progress else ""]
        return "; ".join(filter(None, parts))

    @property
    def seconds_left(self) -> float | None:
        """Estimated seconds left; None before this process has done 2 % of the units, of which the first include the start-up."""
        done_now = self.done - self._already_done
        return (self.total - self.done) / self.rate if done_now > 0 and done_now >= MIN_DONE * self.total else None


class _TerminalBar(ProgressBar):
    def __init__(self, description: str, total: int, unit: str, progress: Progress) -> None:
        super().__init__(description, total, unit)
        self._progress = progress
        self._task = progress.add_task(description, total=total, note="")

    def show(self, status: str) -> None:
        self._progress.update(
            self._task, completed=self.done, note=f"{self.rate:.2f} {self.unit}/s {self.status_text(status)}".strip()
        )


class _NoBar(ProgressBar):
    def show(self, status: str) -> None:
        pass


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


class JobSize(NamedTuple):
    """How long a job is expected to take, in any unit.

    `bars`: for each of the job's progress bars, in their order, by the first word of its text ("stability"), the duration of the
    work that it counts. `start_up`: what passes before the first count, such as the loading of a model.
    """

    bars: Mapping[str, float]
    start_up: float = 0.0


class JobsDisplay:
    """Shows jobs that run in other processes, by the newest line that each has printed.

    On a terminal each has a bar; elsewhere its line is printed every `PLAIN_INTERVAL_S` seconds if it has changed. `sizes`: the
    sizes of all jobs by name, from which the time left in total is computed; without them it is not shown.
    """

    def __init__(self, sizes: Mapping[str, JobSize]) -> None:
        self._sizes = sizes
        self._started = self._shown_at = time.monotonic()
        self._counting: set[str] = set()  # jobs that have shown a count of any bar, so have loaded
        self._fractions: dict[tuple[str, str], float] = {}  # done of a job's bar, 0 to 1
        self._fractions_before: dict[tuple[str, str], float] = {}  # done by an earlier process
        self._shown: dict[str, str] = {}
        self._bars: Progress | None = None
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> "JobsDisplay":
        console = Console(stderr=True)
        if console.is_terminal and not _output.is_quiet:
            # A line of a job may hold brackets, which are no markup here.
            columns = (
                TextColumn("{task.description}", markup=False), BarColumn(bar_width=24), MofNCompleteColumn(),
                TextColumn("{task.fields[note]}", markup=False),
            )  # fmt: skip
            self._bars = Progress(*columns, console=console)
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars is not None:
            self._bars.stop()

    @property
    def is_due(self) -> bool:
        """Whether `show` would show anything now."""
        return time.monotonic() - self._shown_at >= (PLAIN_INTERVAL_S if self._bars is None else TERMINAL_INTERVAL_S)

    def start(self, name: str, *, is_resumed: bool) -> None:
        """Note that a job starts. `is_resumed`: an earlier process may have done a part of it."""
        if not is_resumed:
            self._fractions_before |= dict.fromkeys(self._bars_of(name), 0.0)

    def show(self, lines: Mapping[str, str]) -> None:
        """Show the newest lines of the running jobs, by name; an empty line of a job that has printed nothing."""
        self._shown_at = time.monotonic()
        for name, line in lines.items():
            self._note_fraction(name, line)
        total = self._total_text()
        if self._bars is not None:
            self._show_bars(lines, total)
            return
        for name, line in lines.items():
            if line.startswith(("note: ", "warning: ")):
                continue  # `run_jobs` prints them when the job has ended
            if line and self._shown.get(name) != line:
                self._shown[name] = line
                print_status((line if line.startswith(f"{name}: ") else f"{name}: {line}") + (f"; {total}" if total else ""))

    def finish(self, name: str) -> None:
        """Count a job as done."""
        self._counting.add(name)
        for bar in self._bars_of(name):
            self._fractions_before.setdefault(bar, 0.0)
            self._fractions[bar] = 1.0

    def _show_bars(self, lines: Mapping[str, str], total: str) -> None:
        assert self._bars is not None
        for name in self._tasks.keys() - lines.keys():
            self._bars.remove_task(self._tasks.pop(name))
        for name, line in lines.items():
            if name not in self._tasks:
                self._tasks[name] = self._bars.add_task(name, total=None, note="")
            counts = _COUNTS.search(line)
            note = "; ".join(filter(None, ((counts[3] if counts else line).strip(), total)))
            done, of = (int(counts[1]), int(counts[2])) if counts else (None, None)  # None changes nothing
            self._bars.update(self._tasks[name], completed=done, total=of, note=note, refresh=True)

    def _bars_of(self, name: str) -> list[tuple[str, str]]:
        """The keys of a job's progress bars, in their order; none for a job without a size."""
        return [(name, word) for word in self._sizes[name].bars] if name in self._sizes else []

    def _note_fraction(self, name: str, line: str) -> None:
        counts, word = _COUNTS.search(line), line.partition(" ")[0]
        bars = self._bars_of(name)
        if counts is not None:
            self._counting.add(name)
        if counts is None or (name, word) not in bars:
            return
        place = bars.index((name, word))
        for bar in bars[:place]:  # the display may have seen no line of it
            self._fractions_before.setdefault(bar, 1.0)
            self._fractions[bar] = 1.0
        self._fractions[bars[place]] = int(counts[1]) / max(int(counts[2]), 1)
        self._fractions_before.setdefault(bars[place], self._fractions[bars[place]])

    def _total_text(self) -> str:
        """The time left in total. Only what was done since the start enters the estimate of the speed."""
        left = done_now = 0.0
        for name, size in self._sizes.items():
            if name in self._counting:
                done_now += size.start_up
            else:
                left += size.start_up
            for bar, weight in zip(self._bars_of(name), size.bars.values(), strict=True):
                done = self._fractions.get(bar, 0.0)
                left += weight * (1 - done)
                done_now += weight * (done - self._fractions_before.get(bar, 0.0))
        if done_now <= 0 or done_now < MIN_DONE * (done_now + left):
            return ""
        return f"{format_duration(left * (time.monotonic() - self._started) / done_now)} left in total"


_COUNTS = re.compile(r"(\d+)/(\d+) (.*)")
"""The counts of a plain progress line, and what follows them."""


def print_status(line: str) -> None:
    """Print a line on stderr, unless the command is quiet; stdout is for results."""
    if _output.collects and line.startswith(("note:", "warning:")):
        _output.notes.append(line)
    if not _output.is_quiet:
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
def progress_bar(description: str, total: int, unit: str, *, min_total: int = 0) -> Iterator[ProgressBar]:
    """Show the progress of `total` units of work on stderr while the block runs; nothing if there are fewer than `min_total`."""
    with _shown_bar(description, total, unit, min_total) as bar:
        try:
            yield bar
        finally:
            if _current_progress is not None:
                _current_progress.record(bar.fraction_done_now)


@contextlib.contextmanager
def _shown_bar(description: str, total: int, unit: str, min_total: int) -> Iterator[ProgressBar]:
    if total < min_total:
        yield _NoBar(description, total, unit)
        return
    console = Console(stderr=True)
    if _output.is_quiet or not console.is_terminal:
        yield _PlainLines(description, total, unit)
        return
    columns = (
        TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(),
        TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[note]}"),
    )  # fmt: skip
    with Progress(*columns, console=console) as progress:
        yield _TerminalBar(description, total, unit, progress)
