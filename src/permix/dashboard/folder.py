"""Watch all runs below a folder with two threads of low priority: one reads new lines, the other lets measures be computed.

Contract: after each piece of work a thread waits several times as long as the work took, so both threads together use a small
share of one core, whatever the size of the runs. A run with broken files shows its own error and does not delay other runs. The
results can be dumped as JSON. No lock is held: each thread replaces its results as a whole, so a request never waits for a file.
Measures are computed in a process of its own (`MeasureProcess`), with bounds on memory and time.

`find_report` and `find_report_file` find a built report below the viewed folder. They serve only files that `permix report`
writes for a browser, by name, and never a path that leads outside the viewed folder through dots or symbolic links.
"""

import multiprocessing
import os
import re
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

from permix.dashboard.live_metrics import MEASURED_STAGES, LiveMeasures, measure_live
from permix.dashboard.run_monitor import READ_ERRORS, RunMonitor, read_locks, readable_error
from permix.sanitize import escape_control, redact_command, truncate
from permix.storage.run_dir import is_set_aside

_REPORT_FILES = re.compile(
    r"(index\.html|report\.md|table\.json|cells/[\w.-]+\.js|tables/[\w.-]+\.csv|[\w.-]+\.(png|svg))", re.ASCII
)

REPORT_CONTENT_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".md": "text/markdown; charset=utf-8",
    ".json": "application/json; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".csv": "text/csv; charset=utf-8",
    ".png": "image/png",
    ".svg": "image/svg+xml",
}

REPORT_PAGE_POLICY = (
    "default-src 'none'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'none'; worker-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Content security policy of the report's page, whose scripts are inline. The page carries a narrower policy itself; both apply.
"""


def find_report(root: Path) -> Path | None:
    """The folder of the report: `root` itself, or `root`/report, which may be no link. None if neither has a report."""
    inside = () if (root / "report").is_symlink() else (root / "report",)
    return next((folder for folder in (root, *inside) if find_report_file(folder, "index.html") is not None), None)


def find_report_file(report: Path, name: str) -> Path | None:
    """The path of this file of a report. None if the report has no such file, or if the path leaves its folder."""
    if not _REPORT_FILES.fullmatch(name):
        return None
    try:
        home, found = report.resolve(strict=True), (report / name).resolve(strict=True)
    except (OSError, RuntimeError):
        return None
    return found if found == home / name and found.is_file() else None


def start_process(work: Callable[[Connection], None]) -> tuple[Any, Any]:
    """Start a process that runs `work` with one end of a pipe; returns the process and the other end.

    Its end ends the pipe, so that reading raises EOFError.
    """
    context = multiprocessing.get_context("spawn")
    pipe, theirs = context.Pipe()
    process = context.Process(target=work, args=(theirs,), daemon=True)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        process.start()  # it inherits the mask: Ctrl-C ends the viewer, which ends the process
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    theirs.close()  # so that the end of the process ends the pipe
    return process, pipe


class Measure(Protocol):
    """Computes the measures of a run, as `measure_live` does."""

    def __call__(self, run: Path, stage: str, *, live: bool) -> LiveMeasures: ...


MEASURE_S, MAX_MEASURE_BYTES = 120.0, 8_000_000_000
"""Bounds on one computation of measures: seconds, and bytes of address space."""


class MeasureProcess:
    """A `Measure` that runs `measure_live` in a process of its own, so that no run, however large, holds up a request.

    The process starts with the first run and stays. It is ended when a run takes longer than `MEASURE_S`.
    """

    def __init__(self) -> None:
        self._process: Any = None
        self._pipe: Any = None

    def __call__(self, run: Path, stage: str, *, live: bool) -> LiveMeasures:
        try:
            if self._process is None:
                self._process, self._pipe = start_process(_answer_measure_requests)
            self._pipe.send((run, stage, live))
            if self._pipe.poll(MEASURE_S):
                return self._pipe.recv()  # type: ignore[no-any-return]
            reason = f"it takes longer than {MEASURE_S:.0f} s here; permix report has no limit"
        except (EOFError, OSError):
            reason = "its process ended"
        self.stop()
        return _not_measured(reason)

    def stop(self) -> None:
        process, self._process = self._process, None  # another thread may stop it at the same time
        if process is not None:
            process.kill()
            process.join()


def _answer_measure_requests(pipe: Connection) -> None:
    os.nice(10)
    _, allowed = resource.getrlimit(resource.RLIMIT_AS)
    bound = MAX_MEASURE_BYTES if allowed == resource.RLIM_INFINITY else min(MAX_MEASURE_BYTES, allowed)
    resource.setrlimit(resource.RLIMIT_AS, (bound, allowed))
    with suppress(EOFError, OSError):
        while True:
            run, stage, live = pipe.recv()
            pipe.send(_measure(measure_live, run, stage, live))


def _measure(measure: Measure, run: Path, stage: str, live: bool) -> LiveMeasures:
    try:
        return measure(run, stage, live=live)
    except MemoryError:
        return _not_measured(f"it needs more than {MAX_MEASURE_BYTES // 10**9} GB here; permix report has no limit")
    except READ_ERRORS as error:
        return _not_measured(readable_error(error))


def _not_measured(reason: str) -> LiveMeasures:
    return LiveMeasures(note="not measured", error=f"not measured: {reason}")


POLL_EVERY_S, RESCAN_EVERY_S = 1.0, 5.0

IDLE_FACTOR = 5  # waiting time between two pieces of work, as a multiple of the time that the work took

MAX_IDLE_S = 60.0

MAX_VIEWED_RUNS, MAX_SCANNED_FOLDERS, MAX_FOLDER_DEPTH = 500, 20_000, 8

RUN_SUBFOLDERS = {"model", "checkpoints", "report", "reference_answers"}
"""Subfolders of a run directory in which no runs are searched."""


class RunFolder:
    """All runs below `root`. `start` begins to watch them; `stop` ends it. Without `measure`, this process computes measures."""

    def __init__(self, root: Path, measure: MeasureProcess | None = None) -> None:
        self.root = root
        self._measure_process = measure
        self._runs: dict[str, RunMonitor] = {}
        self._notes: list[str] = []
        self._selected_id = ""
        self._stop_event = threading.Event()
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._poll_loop, self._measure_loop)]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stop_event.set()
        if self._measure_process is not None:
            self._measure_process.stop()
        for thread in self._threads:
            thread.join(timeout=2)

    @property
    def is_watching(self) -> bool:
        """False if a started thread has died."""
        return all(thread.is_alive() for thread in self._threads if thread.ident is not None)

    @property
    def monitors(self) -> list[RunMonitor]:
        """The monitors of all runs that were read at least once: running ones first, then by the time of the last record.

        Runs that go on are in the order of their starts, newest first, so that they do not change places with every record.
        """
        return sorted((run for run in self._runs.values() if run.published is not None), key=_list_position)

    def find(self, id: str) -> RunMonitor | None:
        """The monitor of the run with this id, or None if there is no such run."""
        return next((run for run in self._runs.values() if run.id == id and run.published is not None), None)

    def state(self) -> dict[str, Any]:
        """The overview: all runs, in the order of `monitors`, and notes about folders and runs that are left out."""
        return {
            "root": truncate(escape_control(str(self.root)), 300),
            "runs": [run.summary() for run in self.monitors],
            "notes": self._notes,
            "watching": self.is_watching,
            "report": find_report(self.root) is not None,
            "report_command": redact_command(["permix", "report", str(self.root), "--out", str(self.root / "report")]),
        }

    def detail(self, id: str) -> dict[str, Any] | None:
        """The details of one run, or None if there is no such run. From then on this run is measured before others."""
        self._selected_id = id
        found = self.find(id)
        return None if found is None else found.detail()

    def rescan(self) -> None:
        """Start to watch new runs, and forget runs whose directories are gone."""
        found, self._notes = _find_run_dirs(self.root)
        self._runs = {name: self._runs.get(name) or RunMonitor(path, name, self.root) for name, path in found.items()}

    def poll(self) -> None:
        """Read the new lines of each run."""
        for run in self._runs.values():
            run.poll(read_locks(), time.monotonic(), time.time())

    def measure_next(self) -> bool:
        """Measure one run: the selected one, else one never measured, else a running one, else the one measured longest ago.

        Returns False if no run waits.
        """
        waiting = [
            run
            for run in self._runs.values()
            if run.stage in MEASURED_STAGES and run.is_measurable and run.measured_version != run.version
        ]
        if not waiting:
            return False
        run = min(
            waiting,
            key=lambda one: (one.id != self._selected_id, one.measured_version is not None, not one.version[1], one.measured_at),
        )
        version = run.version  # taken before measuring, so that lines that arrive meanwhile are measured again
        found = _measure(self._measure_process or measure_live, run.path, run.stage, version[1])
        run.measures, run.measured_version, run.measured_at = found, version, time.monotonic()
        return True

    def _poll_loop(self) -> None:
        _lower_thread_priority()
        last_scan = -RESCAN_EVERY_S
        while not self._stop_event.is_set():
            start = time.monotonic()
            if start - last_scan >= RESCAN_EVERY_S:
                self.rescan()
                last_scan = start
            self.poll()
            has_unread = any(not run.is_caught_up for run in self._runs.values())
            self._stop_event.wait(max(0.0 if has_unread else POLL_EVERY_S, IDLE_FACTOR * (time.monotonic() - start)))

    def _measure_loop(self) -> None:
        _lower_thread_priority()
        while not self._stop_event.is_set():
            start = time.monotonic()
            self.measure_next()
            self._stop_event.wait(min(max(POLL_EVERY_S, IDLE_FACTOR * (time.monotonic() - start)), MAX_IDLE_S))


def _list_position(run: RunMonitor) -> tuple[bool, float, str]:
    published = run.published or {}
    going = published["state"] == "going"
    return not going, -((published["started"] if going else published["written"]) or published["started"] or 0.0), run.name


def _lower_thread_priority() -> None:
    """Lower the priority of the calling thread, so that the watched runs keep the processor. Linux has one per thread."""
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)


def _find_run_dirs(root: Path) -> tuple[dict[str, Path], list[str]]:
    """The runs by their path below `root`, and notes about runs that are left out. Links to folders are not followed."""
    found: dict[str, Path] = {}
    for number, (folder, is_run) in enumerate(_walk_folders(root)):
        if number >= MAX_SCANNED_FOLDERS:
            return found, [f"more than {MAX_SCANNED_FOLDERS} folders: only runs in the first {MAX_SCANNED_FOLDERS} are shown"]
        if is_run and len(found) >= MAX_VIEWED_RUNS:
            return found, [f"more than {MAX_VIEWED_RUNS} runs: only the first {MAX_VIEWED_RUNS} are shown"]
        if is_run:
            found[os.fsdecode(folder.relative_to(root)) if folder != root else "."] = folder
    return found, []


def _walk_folders(root: Path) -> Iterator[tuple[Path, bool]]:
    """Yield every folder below `root`, and whether it is a run directory: with config.json, and .lock or provenance.json.

    What a study has set aside is left out.
    """
    for place, names, files in os.walk(root):
        folder, here = Path(place), {*files, *names}
        is_run = "config.json" in here and bool(here & {".lock", "provenance.json"})
        hidden = RUN_SUBFOLDERS if is_run else ()
        shown = (name for name in names if not name.startswith(".") and name not in hidden)
        names[:] = sorted(name for name in shown if not is_set_aside(folder / name))
        if len(folder.relative_to(root).parts) >= MAX_FOLDER_DEPTH:
            names.clear()
        yield folder, is_run
