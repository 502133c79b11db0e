"""Run the units of a study in their own processes, several at a time: each on its own GPUs, or with its share of the cores.

A unit is claimed before its process starts. The process inherits the claim, so the claim still holds if this process is killed.
The output of a process goes to log.txt in the unit's folder. A unit that another command has claimed is skipped; if it is
unclaimed and still pending at the end, it is run here.
"""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from permix.config import StudyConfig, StudyUnit
from permix.inference.hardware import visible_gpus
from permix.progress import PLAIN_INTERVAL_S, print_status
from permix.sanitize import escape_control, truncate
from permix.storage.files import guard_writes, last_lines, write_json
from permix.storage.workers import claim_folder

UNIT_CLAIM_VARIABLE = "PERMIX_STUDY_CLAIM"
"""The environment variable that names the inherited file descriptor of a unit's claim."""

POLL_S, END_S = 0.2, 60.0
"""Pause between two looks at the processes; how long they have to end after Ctrl-C."""

MAX_LINE_CHARS = 200


class UnitFailure(NamedTuple):
    """A unit whose process ended with an exit code other than 0."""

    unit: str
    exit_code: int
    log: Path
    last_line: str

    @property
    def text(self) -> str:
        ended = f"signal {-self.exit_code}" if self.exit_code < 0 else f"exit code {self.exit_code}"
        return f"{self.unit} ({ended}, {self.log}): {self.last_line or 'printed nothing'}"


class _RunningUnit(NamedTuple):
    unit: StudyUnit
    process: "subprocess.Popen[bytes]"
    slot: int


def run_in_processes(
    config: StudyConfig, units: Sequence[StudyUnit], is_finished: Callable[[StudyUnit], bool]
) -> list[UnitFailure]:
    """Run these units, `config.jobs` at a time, in their order. Returns those that failed; a failure stops no other unit.

    After Ctrl-C the processes are interrupted too, and have a minute to end before KeyboardInterrupt goes on.
    """
    with tempfile.TemporaryDirectory(prefix="permix-study-") as scratch:
        return _UnitProcesses(config, Path(scratch) / "study.json", is_finished).run(units)


class _UnitProcesses:
    def __init__(self, config: StudyConfig, file: Path, is_finished: Callable[[StudyUnit], bool]) -> None:
        self.jobs, self.file, self.is_finished = config.jobs, file, is_finished
        self.gpus = visible_gpus() if config.jobs > 1 else []
        threads = config.threads or (None if self.gpus or config.jobs == 1 else cores_of_job(config.jobs))
        one_unit = {"only": (), "only_seeds": (), "unit": None, "jobs": 1, "threads": threads, "report": False}
        write_json(file, config.model_copy(update=one_unit))
        self.running: list[_RunningUnit] = []
        self.failed: list[UnitFailure] = []
        self.shown: dict[str, str] = {}
        self.shown_at = time.monotonic()

    def run(self, units: Sequence[StudyUnit]) -> list[UnitFailure]:
        waiting = list(units)
        try:
            while waiting:
                taken = self._run_free(waiting)
                # What other commands had claimed may be pending and free now, if they were stopped.
                waiting = [unit for unit in waiting if unit.name not in taken and not self.is_finished(unit)]
                if not taken:
                    break
        except BaseException:
            self._interrupt()
            raise
        for unit in waiting:
            print_status(f"{unit.name}: another process is running it")
        return self.failed

    def _run_free(self, units: Sequence[StudyUnit]) -> set[str]:
        """Run the units that no other command has claimed; returns their names."""
        waiting, taken = list(units), set[str]()
        while waiting or self.running:
            while waiting and (slot := self._free_slot()) is not None:
                unit = waiting.pop(0)
                if self._start(unit, slot):
                    taken.add(unit.name)
            self._collect_ended()
            self._show_progress()
            if self.running:
                time.sleep(POLL_S)
        return taken

    def _free_slot(self) -> int | None:
        used = {one.slot for one in self.running}
        return next((slot for slot in range(self.jobs) if slot not in used), None)

    def _start(self, unit: StudyUnit, slot: int) -> bool:
        """Start the process of a unit; False if another command has the unit, or has finished it meanwhile."""
        claim = claim_folder(unit.folder)
        if claim is None:
            return False
        try:
            if self.is_finished(unit):
                return False
            environment = os.environ | {UNIT_CLAIM_VARIABLE: str(claim)} | self._device_of(slot)
            command = [sys.executable, "-m", "permix", "study", str(self.file), "--unit", unit.name]
            log = unit.folder / "log.txt"
            with guard_writes(log), log.open("ab") as output:
                process = subprocess.Popen(
                    command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output, pass_fds=[claim]
                )
                self.running.append(_RunningUnit(unit, process, slot))  # at once: what is not in the list is not interrupted
        finally:
            os.close(claim)  # the process has inherited it
        where = f" on GPU {gpus}" if (gpus := self._device_of(slot).get("CUDA_VISIBLE_DEVICES")) else ""
        print_status(f"{unit.name}: started{where}; its output goes to {log}")
        return True

    def _device_of(self, slot: int) -> dict[str, str]:
        """The variables that give a slot its GPUs; none without a GPU, or for a single job, which has all of them."""
        gpus = gpus_of_slot(self.gpus, slot, self.jobs)
        return {"CUDA_VISIBLE_DEVICES": ",".join(gpus)} if gpus else {}

    def _collect_ended(self) -> None:
        for one in [one for one in self.running if one.process.poll() is not None]:
            self.running.remove(one)
            code = one.process.returncode
            if code == 0:
                print_status(f"{one.unit.name}: finished")
                continue
            failure = UnitFailure(one.unit.name, code, one.unit.folder / "log.txt", _last_line(one.unit))
            self.failed = [other for other in self.failed if other.unit != failure.unit] + [failure]
            print_status(f"{one.unit.name}: not finished: {failure.text}")

    def _show_progress(self) -> None:
        """Print the newest line of each running unit, every `PLAIN_INTERVAL_S` seconds, where it has changed."""
        if time.monotonic() - self.shown_at < PLAIN_INTERVAL_S:
            return
        self.shown_at = time.monotonic()
        for one in self.running:
            line = _last_line(one.unit)
            if line and self.shown.get(one.unit.name) != line:
                self.shown[one.unit.name] = line
                print_status(line if line.startswith(f"{one.unit.name}: ") else f"{one.unit.name}: {line}")

    def _interrupt(self) -> None:
        """Interrupt the processes, and wait until they have saved what is finished."""
        for one in self.running:
            with contextlib.suppress(ProcessLookupError):
                one.process.send_signal(signal.SIGTERM)  # a job of a shell in the background ignores SIGINT
        end = time.monotonic() + END_S
        for one in self.running:
            try:
                one.process.wait(max(0.1, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                one.process.kill()
                one.process.wait()


def _last_line(unit: StudyUnit) -> str:
    lines = last_lines(unit.folder / "log.txt", 1)
    return truncate(escape_control(lines[-1].decode("utf-8", "replace").strip()), MAX_LINE_CHARS) if lines else ""


def cores_of_job(jobs: int) -> int:
    """The CPU threads of each of several jobs: its share of the cores that this process may use, at least 1."""
    return max(1, len(os.sched_getaffinity(0)) // jobs)


def gpus_of_slot(gpus: Sequence[str], slot: int, jobs: int) -> list[str]:
    """The GPUs of one of several jobs: an equal share of them or, with more jobs than GPUs, one GPU that several jobs share."""
    if len(gpus) < jobs:
        return [gpus[slot % len(gpus)]] if gpus else []
    each = len(gpus) // jobs
    return list(gpus[slot * each : (slot + 1) * each])
