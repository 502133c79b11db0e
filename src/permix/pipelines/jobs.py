"""Run jobs in their own processes, several at a time: each on its own GPUs, or with its share of the cores.

A job is a command of permix. Its output goes to a log file. A job may need other jobs to be finished first.

A job may name a folder, which is claimed before its process starts. The process inherits the claim, so the claim still holds if
this process is killed. A job that another command has claimed is skipped; if it is unclaimed and still pending at the end, it is
run here.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from permix.inference.hardware import JOBS_PER_GPU_VARIABLE, visible_gpus
from permix.progress import JobsDisplay, JobSize, print_status
from permix.sanitize import escape_control, truncate
from permix.storage.files import guard_writes, last_lines, open_regular, read_file_state
from permix.storage.workers import claim_folder

CLAIM_VARIABLE = "PERMIX_JOB_CLAIM"
"""The environment variable that names the inherited file descriptor of a job's claim."""

POLL_S, END_S = 0.2, 60.0
"""Pause between two looks at the processes; how long they have to end after Ctrl-C."""

MAX_LINE_CHARS, MAX_NOTES_BYTES = 200, 2**20
"""The longest line of a job that is shown, and how much of its output is searched for notes."""


class Job(NamedTuple):
    """A command that runs in a process of its own."""

    name: str
    arguments: Sequence[str]
    """The arguments of permix."""
    log: Path
    is_finished: Callable[[], bool] = lambda: False
    """Whether another command has finished it meanwhile."""
    claimed_folder: Path | None = None
    after: tuple[str, ...] = ()
    """The names of jobs that must be finished before this one starts. A name that is not among the jobs counts as finished."""


class JobFailure(NamedTuple):
    """A job whose process ended with an exit code other than 0."""

    job: str
    exit_code: int
    log: Path
    last_line: str

    @property
    def text(self) -> str:
        ended = f"signal {-self.exit_code}" if self.exit_code < 0 else f"exit code {self.exit_code}"
        return f"{self.job} ({ended}, {self.log}): {self.last_line or 'printed nothing'}"


def run_jobs(
    jobs: Sequence[Job],
    at_a_time: int,
    *,
    sizes: Mapping[str, JobSize] | None = None,
    one_gpu_each: bool = False,
    inherited: Sequence[int] = (),
) -> list[JobFailure]:
    """Run these jobs, `at_a_time` of them, in their order. Returns those that failed.

    A failure stops no other job, but jobs that need it do not start. `sizes`: the sizes of all jobs by name, for the time that is
    left in total. `one_gpu_each`: a job gets one GPU also if there are more. `inherited`: file descriptors for all processes.
    After Ctrl-C the processes are interrupted too, and have a minute to end before KeyboardInterrupt goes on.
    """
    return _Processes(at_a_time, JobsDisplay(sizes or {}), one_gpu_each, inherited).run(jobs)


class _RunningJob(NamedTuple):
    job: Job
    process: "subprocess.Popen[bytes]"
    slot: int
    log_start: int
    """The size of the log before the job was started; what an earlier process has written is not shown again."""


class _Processes:
    def __init__(self, at_a_time: int, display: JobsDisplay, one_gpu_each: bool, inherited: Sequence[int]) -> None:
        self.at_a_time, self.display, self.inherited = at_a_time, display, inherited
        gpus = visible_gpus() if at_a_time > 1 else []
        self.gpus = gpus[:at_a_time] if one_gpu_each else gpus
        self.running: list[_RunningJob] = []
        self.failed: list[JobFailure] = []
        self.skipped: set[str] = set()  # another command has claimed them

    def run(self, jobs: Sequence[Job]) -> list[JobFailure]:
        waiting = list(jobs)
        try:
            with self.display:
                while waiting:
                    taken = self._run_free(waiting)
                    # What other commands had claimed may be pending and free now, if they were stopped.
                    waiting = [job for job in waiting if job.name not in taken and not job.is_finished()]
                    if not taken:
                        break
        except BaseException:
            self._interrupt()
            raise
        names = {job.name for job in waiting} | {one.job for one in self.failed}
        for job in waiting:
            missing = next((name for name in job.after if name in names), None)
            print_status(f"{job.name}: {f'not started: it needs {missing}' if missing else 'another process is running it'}")
        return self.failed

    def _run_free(self, jobs: Sequence[Job]) -> set[str]:
        """Run the jobs that no other command has claimed and whose needs can be met; returns their names."""
        waiting, taken = list(jobs), set[str]()
        self.skipped.clear()
        while True:
            while (slot := self._free_slot()) is not None and (job := self._next_ready(waiting)) is not None:
                waiting.remove(job)
                if self._start(job, slot):
                    taken.add(job.name)
                elif not job.is_finished():
                    self.skipped.add(job.name)
            if not self.running:
                return taken
            self._collect_ended()
            if self.display.is_due:
                self.display.show({one.job.name: _last_line(one.job.log, one.log_start) for one in self.running})
            time.sleep(POLL_S if self.running else 0)

    def _next_ready(self, waiting: Sequence[Job]) -> Job | None:
        unfinished = {job.name for job in waiting} | {one.job.name for one in self.running} | {one.job for one in self.failed}
        return next((job for job in waiting if not (unfinished | self.skipped) & set(job.after)), None)

    def _free_slot(self) -> int | None:
        used = {one.slot for one in self.running}
        return next((slot for slot in range(self.at_a_time) if slot not in used), None)

    def _start(self, job: Job, slot: int) -> bool:
        """Start the process of a job; False if another command has the job, or has finished it meanwhile."""
        claim = None if job.claimed_folder is None else claim_folder(job.claimed_folder)
        if claim is None and job.claimed_folder is not None:
            return False
        try:
            if job.is_finished():
                return False
            claims = [] if claim is None else [claim]
            variables = {CLAIM_VARIABLE: str(claim)} if claims else {}
            device = self._device_of(slot)
            with guard_writes(job.log):
                job.log.parent.mkdir(parents=True, exist_ok=True)
                with job.log.open("ab") as output:
                    log_start = output.tell()  # before the process starts, which shares the position in the file
                    process = subprocess.Popen(
                        # -P: a file of the user's folder must not take the place of a module.
                        [sys.executable, "-P", "-m", "permix", *job.arguments],
                        env=os.environ | variables | device,
                        stdin=subprocess.DEVNULL, stdout=output, stderr=output, pass_fds=[*claims, *self.inherited],
                    )  # fmt: skip
                    # At once: what is not in the list is not interrupted.
                    self.running.append(_RunningJob(job, process, slot, log_start))
        finally:
            if claim is not None:
                os.close(claim)  # the process has inherited it
        self.display.start(job.name, is_resumed=self.running[-1].log_start > 0)
        where = f" on GPU {gpus}" if (gpus := device.get("CUDA_VISIBLE_DEVICES")) else ""
        print_status(f"{job.name}: started{where}; its output goes to {job.log}")
        return True

    def _device_of(self, slot: int) -> dict[str, str]:
        """The variables that give a slot its GPUs; none without a GPU, or for a single job, which has all of them."""
        gpus = gpus_of_slot(self.gpus, slot, self.at_a_time)
        if not gpus:
            return {}
        sharing = -(-self.at_a_time // len(self.gpus))
        return {"CUDA_VISIBLE_DEVICES": ",".join(gpus), JOBS_PER_GPU_VARIABLE: str(sharing)}

    def _collect_ended(self) -> None:
        for one in [one for one in self.running if one.process.poll() is not None]:
            self.running.remove(one)
            code, job = one.process.returncode, one.job
            _repeat_notes(job, one.log_start)
            if code == 0:
                self.display.finish(job.name)
                print_status(f"{job.name}: finished")
                continue
            failure = JobFailure(job.name, code, job.log, _last_line(job.log, one.log_start))
            self.failed = [other for other in self.failed if other.job != failure.job] + [failure]
            print_status(f"{job.name}: not finished: {failure.text}")

    def _interrupt(self) -> None:
        """Interrupt the processes, and wait until they have saved what is finished."""
        for one in self.running:
            with contextlib.suppress(ProcessLookupError):
                one.process.send_signal(signal.SIGTERM)  # a job of a shell in the background ignores SIGINT
        if self.running:
            print_status(f"waiting for {', '.join(one.job.name for one in self.running)} to save what is finished")
        end = time.monotonic() + END_S
        for one in self.running:
            try:
                one.process.wait(max(0.1, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                one.process.kill()
                one.process.wait()
            _repeat_notes(one.job, one.log_start)


def _last_line(log: Path, start: int) -> str:
    """The newest line of a log; empty if nothing was written from `start` on."""
    state = read_file_state(log)
    lines = last_lines(log, 1) if state is not None and state.size > start else []
    return truncate(escape_control(lines[-1].decode("utf-8", "replace").strip()), MAX_LINE_CHARS) if lines else ""


def _repeat_notes(job: Job, start: int) -> None:
    """Print the notes and warnings that an ended job has written from `start` on, with its name."""
    if read_file_state(job.log) is None:
        return
    with open_regular(job.log) as log:
        log.seek(start)
        lines = log.read(MAX_NOTES_BYTES).decode("utf-8", "replace").splitlines()
    for line in lines:
        kind, _, rest = line.partition(": ")
        if kind in ("note", "warning"):
            print_status(f"{kind}: {job.name}: {escape_control(rest)}")


def thread_arguments(threads: int | None, at_a_time: int) -> list[str]:
    """The option --threads of each of several jobs: `threads`, or else its share of the cores; none with GPUs or a single job."""
    if threads is None and at_a_time > 1 and not visible_gpus():
        threads = cores_of_job(at_a_time)
    return [] if threads is None else ["--threads", str(threads)]


def cores_of_job(jobs: int) -> int:
    """The CPU threads of each of several jobs: its share of the cores that this process may use, at least 1."""
    return max(1, len(os.sched_getaffinity(0)) // jobs)


def gpus_of_slot(gpus: Sequence[str], slot: int, jobs: int) -> list[str]:
    """The GPUs of one of several jobs: an equal share of them or, with more jobs than GPUs, one GPU that several jobs share."""
    if len(gpus) < jobs:
        return [gpus[slot % len(gpus)]] if gpus else []
    each = len(gpus) // jobs
    return list(gpus[slot * each : (slot + 1) * each])
