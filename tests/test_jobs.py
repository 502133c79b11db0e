"""Jobs in their own processes: their order, what a failure does, and how they are shown."""

import contextlib
import os
import pty
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from permix import __version__
from permix.inference.hardware import JOBS_PER_GPU_VARIABLE
from permix.pipelines import jobs as jobs_module
from permix.pipelines.jobs import Job, run_jobs
from permix.progress import JobsDisplay, JobSize

WORKS, FAILS = ["--version"], ["no-such-command"]


def job(folder: Path, name: str, arguments: list[str], *after: str) -> Job:
    return Job(name, arguments, folder / "logs" / f"{name}.txt", after=after)


def test_a_job_waits_for_those_that_it_needs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = run_jobs(
        [job(tmp_path, "last", WORKS, "first", "unknown"), job(tmp_path, "first", WORKS), job(tmp_path, "free", WORKS)], 3
    )
    lines = [line.split(";")[0] for line in capsys.readouterr().err.splitlines()]
    assert found == []
    assert sorted(lines) == sorted([f"{name}: {what}" for name in ("first", "free", "last") for what in ("started", "finished")])
    assert lines.index("first: finished") < lines.index("last: started")
    assert lines.index("free: started") < lines.index("first: finished"), "both run at the same time"
    assert (tmp_path / "logs" / "last.txt").read_text(encoding="utf-8") == f"{__version__}\n"


def test_one_at_a_time_keeps_the_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_jobs([job(tmp_path, "a", WORKS), job(tmp_path, "b", WORKS)], 1) == []
    lines = [line.split(";")[0] for line in capsys.readouterr().err.splitlines()]
    assert lines == ["a: started", "a: finished", "b: started", "b: finished"]


def test_a_failure_stops_only_the_jobs_that_need_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = [job(tmp_path, "bad", FAILS), job(tmp_path, "needs", WORKS, "bad"), job(tmp_path, "needs it too", WORKS, "needs")]
    (failure,) = run_jobs([*broken, job(tmp_path, "other", WORKS)], 1)
    assert (failure.job, failure.exit_code, failure.log) == ("bad", 2, tmp_path / "logs" / "bad.txt")
    assert "no-such-command" in failure.text
    errors = capsys.readouterr().err
    assert "other: finished" in errors
    assert "needs: not started: it needs bad\n" in errors
    assert "needs it too: not started: it needs needs\n" in errors
    assert not (tmp_path / "logs" / "needs.txt").exists()


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr("permix.progress.time.monotonic", lambda: self.now)


def shown_after(clock: Clock, display: JobsDisplay, seconds: float, lines: Mapping[str, str]) -> None:
    clock.now += seconds
    display.show(lines)


def test_the_time_left_counts_what_was_done_since_the_start(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock(monkeypatch)
    display = JobsDisplay({"a": JobSize({"stability": 100.0}), "b": JobSize({"train": 300.0})})
    with display:
        display.start("a", is_resumed=True)
        display.start("b", is_resumed=False)
        shown_after(clock, display, 10, {"a": "", "b": "loading"})
        # An earlier process did half of a: 350 of 400 are left, and the speed is unknown.
        shown_after(clock, display, 10, {"a": "stability base: 5/10 cells (1.00/s)", "b": "loading"})
        # A tenth of a more in 40 s, so the other 340 need 1,360 s. A bar that the size does not have counts for nothing.
        shown_after(clock, display, 20, {"a": "stability base: 6/10 cells (1.00/s)", "b": "characters: 9/9 answers"})
        # A note between keeps what was counted. It is printed when the job has ended.
        shown_after(clock, display, 20, {"a": "note: a line without counts", "b": "characters: 9/9 answers"})
        display.finish("a")
        # All of a and a third of b: 200 of 400 are left, and 150 were done in 100 s.
        shown_after(clock, display, 40, {"b": "train RLVR: 1/3 steps"})
    assert capsys.readouterr().err.splitlines() == [
        "b: loading",
        "a: stability base: 5/10 cells (1.00/s)",
        "a: stability base: 6/10 cells (1.00/s); 22:40 left in total",
        "b: characters: 9/9 answers; 22:40 left in total",
        "b: train RLVR: 1/3 steps; 2:13 left in total",
    ]


def test_a_job_that_starts_anew_counts_from_its_first_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock(monkeypatch)
    with JobsDisplay({"a": JobSize({"stability": 1.0})}) as display:
        display.start("a", is_resumed=False)
        assert not display.is_due
        shown_after(clock, display, 10, {"a": "stability base: 1/10 cells"})
    assert capsys.readouterr().err == "a: stability base: 1/10 cells; 1:30 left in total\n"


def test_what_a_job_takes_to_load_is_no_slow_work(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock(monkeypatch)
    with JobsDisplay(
        {"a": JobSize({"stability": 20.0}, start_up=5.0), "train b": JobSize({"train": 40.0}, start_up=5.0)}
    ) as display:
        display.start("a", is_resumed=False)
        # Loading (5) and a tenth of a (2) took 14 s, 2 s a unit. Of a 18 are left, of b 45: 126 s.
        shown_after(clock, display, 14, {"a": "stability base: 1/10 cells"})
        display.finish("a")
        display.start("train b", is_resumed=True)
        # A count that is no bar of the size shows that the job has loaded: 25 + 5 in 14 s, and 40 are left.
        shown_after(clock, display, 0, {"train b": "in-character answers of the base model: 1/9 cells"})
        # An earlier process did a half of b, which this one loads again: 25 + 5 in 60 s, and 20 are left.
        shown_after(clock, display, 46, {"train b": "train b: 5/10 steps"})
    assert capsys.readouterr().err.splitlines() == [
        "a: stability base: 1/10 cells; 2:06 left in total",
        "train b: in-character answers of the base model: 1/9 cells; 0:19 left in total",
        "train b: 5/10 steps; 0:40 left in total",
    ]


def test_the_bars_of_one_job_count_in_their_order(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock(monkeypatch)
    sizes = {"a": JobSize({"stability": 30.0, "fidelity": 10.0}), "b": JobSize({"stability": 30.0, "fidelity": 10.0})}
    with JobsDisplay(sizes) as display:
        display.start("a", is_resumed=False)
        shown_after(clock, display, 15, {"a": "stability base: 3/6 cells"})  # 15 of 80 in 15 s
        # No line of the first bar's end was seen: 30 + 5 in 70 s, and 45 are left.
        shown_after(clock, display, 55, {"a": "fidelity base: 2/4 cells"})
        display.finish("a")
        display.start("b", is_resumed=True)
        # An earlier process finished the first bar and half of the second: 40 in 100 s, and 5 of the second are left.
        shown_after(clock, display, 30, {"b": "fidelity RLVR: 2/4 cells"})
    assert capsys.readouterr().err.splitlines() == [
        "a: stability base: 3/6 cells; 1:05 left in total",
        "a: fidelity base: 2/4 cells; 1:30 left in total",
        "b: fidelity RLVR: 2/4 cells; 0:12 left in total",
    ]


def test_without_sizes_there_is_no_time_left(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock(monkeypatch)
    with JobsDisplay({}) as display:
        shown_after(clock, display, 10, {"a": "a: 1/2 cells"})
        shown_after(clock, display, 10, {"a": "a: 1/2 cells"})
    assert capsys.readouterr().err == "a: 1/2 cells\n"


def in_a_terminal(code: str) -> str:
    """What a Python program writes when its output is a terminal of 160 columns."""
    ours, theirs = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "160"}
    with subprocess.Popen([sys.executable, "-c", code], stdin=theirs, stdout=theirs, stderr=theirs, env=environment) as process:
        os.close(theirs)
        parts = list[bytes]()
        with contextlib.suppress(OSError):  # EIO: the program has ended
            while part := os.read(ours, 4096):
                parts.append(part)
    os.close(ours)
    assert process.returncode == 0
    return b"".join(parts).decode("utf-8")


def test_a_terminal_shows_a_bar_for_each_running_job() -> None:
    shown = in_a_terminal(
        "from permix.progress import JobsDisplay\n"
        "with JobsDisplay({}) as display:\n"
        "    display.show({'one': 'base: 3/12 cells (2.00/s, about 0:05 left)', 'two': 'loading [/bold] list[int]'})\n"
        "    display.show({'two': 'RLVR: 1/4 steps (0.10/s)'})\n"
        "    display.show({'two': 'note: no counts'})\n"
    )
    assert "3/12" in shown
    assert "cells (2.00/s, about 0:05 left)" in shown
    assert "loading [/bold] list[int]" in shown, "a line is no markup"
    last = [line for line in shown.splitlines() if "note: no counts" in line][-1]
    assert "1/4" in last


def test_notes_of_a_job_are_repeated_and_what_it_wrote_before_is_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    again = job(tmp_path, "again", FAILS)
    again.log.parent.mkdir()
    again.log.write_text("warning: of an earlier start\nerror: of an earlier start\n", encoding="utf-8")
    (failure,) = run_jobs([again], 1)
    assert "no-such-command" in failure.last_line or "permix" in failure.last_line
    assert "earlier start" not in capsys.readouterr().err
    start = again.log.stat().st_size
    with again.log.open("a", encoding="utf-8") as log:
        log.write("note: 3 answers were cut off\nfine\nwarning: \x1b[31mred\n")
    jobs_module._repeat_notes(again, start)
    assert capsys.readouterr().err == "note: again: 3 answers were cut off\nwarning: again: \\x1b[31mred\n"


def test_a_note_that_a_job_writes_at_once_is_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started = subprocess.Popen

    def write_first(arguments: list[str], **options: Any) -> subprocess.Popen[bytes]:
        options["stdout"].write(b"note: written at once\n")
        options["stdout"].flush()
        return started(arguments, **options)

    monkeypatch.setattr("permix.pipelines.jobs.subprocess.Popen", write_first)
    assert run_jobs([job(tmp_path, "quick", WORKS)], 1) == []
    assert "note: quick: written at once" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("gpus", "at_a_time", "one_each", "devices"),
    [
        (0, 2, True, [None, None]),
        (8, 3, True, ["0", "1", "2"]),
        (8, 2, False, ["0,1,2,3", "4,5,6,7"]),
        (1, 2, True, ["0", "0"]),
        (2, 1, True, [None]),
    ],
)
def test_the_gpus_of_a_job(
    monkeypatch: pytest.MonkeyPatch, gpus: int, at_a_time: int, one_each: bool, devices: list[str | None]
) -> None:
    monkeypatch.setattr(jobs_module, "visible_gpus", lambda: [str(number) for number in range(gpus)])
    processes = jobs_module._Processes(at_a_time, JobsDisplay({}), one_each, ())
    found = [processes._device_of(slot) for slot in range(at_a_time)]
    assert [one.get("CUDA_VISIBLE_DEVICES") for one in found] == devices
    assert {one.get(JOBS_PER_GPU_VARIABLE) for one in found} == {None if devices[0] is None else "2" if gpus < at_a_time else "1"}
