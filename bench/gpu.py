"""Runs the checks of docs/gpu.md on a machine with a GPU, in order of value and inside a time limit, and writes their table.

    python -m bench.gpu --prepare --answers cpu_answers.json           beforehand, on any machine: writes the CPU's answers
    python -m bench.gpu --minutes 8 --answers cpu_answers.json --out runs/gpu
    python -m bench.gpu --dry --out runs/gpu-dry                       a rehearsal of all checks on CPUs, with a tiny model

Each check is a process of its own with a time limit, so one that crashes or hangs does not stop the others. A check is skipped if
its estimated time is more than the time that is left; a later, shorter check may still run. When the command is started again
with the same `--out`, it does not repeat the checks that have finished. `OUT/gpu.json` holds all outcomes and figures,
`OUT/gpu.md` the rows for docs/gpu.md, and `OUT/NAME/` the output of a check.
"""

import argparse
import contextlib
import datetime
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bench.gpu_checks import CHECKS, NOT_POSSIBLE, ROOT, Check, figures_of

FORMAT = 1
STATE_FILE, TABLE_FILE = "gpu.json", "gpu.md"

FINISHED = ("passed", "failed", "out of memory", "crashed", "hung")
"""Outcomes after which a check is not run again, unless `--again` names it."""

UNFINISHED = ("skipped", "cut off", "interrupted", "not possible")
"""Outcomes after which the next start runs the check again."""

HANG_FACTOR = 4.0
"""A check that takes this many times its estimated time counts as hung and is ended."""
MIN_LIMIT_S = 90.0
"""The least time limit of a check: on a slow disk, starting and loading alone may take this long."""
GRACE_S = 5.0
"""Seconds between SIGTERM and SIGKILL."""
MAX_TEXT = 300
"""The most characters of a line that is taken from a check's output."""


class Ended(NamedTuple):
    """How a process ended: its exit status (negative for a signal, None if the time limit ended it) and its wall seconds."""

    status: int | None
    seconds: float


Launch = Callable[[Sequence[str], Path, float], Ended]
"""Runs a command with its output in `FOLDER/stdout` and `FOLDER/stderr`; its arguments are command, folder and limit in s."""


def launch(command: Sequence[str], folder: Path, limit_s: float) -> Ended:
    """Run a command for at most `limit_s` seconds, with its output in the files `stdout` and `stderr` of the folder.

    It runs in a session of its own, so that all processes that it starts can be ended with it, also after Ctrl-C.
    """
    folder.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    with (folder / "stdout").open("w") as out, (folder / "stderr").open("w") as err:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, cwd=ROOT, start_new_session=True)
        status: int | None = None
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                status = process.wait(limit_s)
        finally:
            end_group(process)
    return Ended(status, time.monotonic() - started)


def end_group(process: "subprocess.Popen[bytes]") -> None:
    """End all processes of the session that this process leads."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_S)


class Result(NamedTuple):
    """The result of one check. `text` is the reason of a failure, `seconds` the wall time."""

    outcome: str
    text: str = ""
    seconds: float = 0.0
    figures: tuple[dict[str, Any], ...] = ()


def judge(check: Check, ended: Ended, out: str, err: str, *, cut_off: bool) -> Result:
    """Return the result of a check from the status and the output of its process.

    `cut_off` says that the limit was the end of the whole time, so that a process that reached it need not have hung.
    """
    figures = tuple(figures_of(out))
    reason = last_line(err)
    if ended.status is None:
        text = f"ended after {ended.seconds:.0f} s" + (": no time was left" if cut_off else "")
        return Result("cut off" if cut_off else "hung", text, ended.seconds, figures)
    if ended.status == NOT_POSSIBLE:
        return Result("not possible", reason, ended.seconds, figures)
    if ended.status and (memory := memory_line(err)) is not None:
        return Result("out of memory", memory, ended.seconds, figures)
    if ended.status < 0:
        return Result("crashed", f"{signal_name(-ended.status)}: {reason}", ended.seconds, figures)
    if ended.status:
        return Result("failed", reason or f"exit status {ended.status}", ended.seconds, figures)
    broken = "; ".join(broken_bounds(check, figures))
    return Result("failed" if broken else "passed", broken, ended.seconds, figures)


def broken_bounds(check: Check, figures: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a sentence for each bound of the check that its figures break. A figure that is missing or NaN breaks its bound."""
    values: dict[str, list[float]] = {}
    for figure in figures:
        values.setdefault(figure["figure"], []).append(figure["value"])
    broken = []
    for name, bound in (*check.at_most.items(), *check.at_least.items()):
        is_most = name in check.at_most
        if name not in values:
            broken.append(f"{name} is missing")
        elif not all(value <= bound if is_most else value >= bound for value in values[name]):
            worst = max(values[name]) if is_most else min(values[name])
            broken.append(f"{name} = {worst:g}, not at {'most' if is_most else 'least'} {bound:g}")
    return broken


def last_line(text: str) -> str:
    """Return the last line of a text that is not blank, shortened to `MAX_TEXT` characters."""
    return next((line.strip()[:MAX_TEXT] for line in reversed(text.splitlines()) if line.strip()), "")


def memory_line(text: str) -> str | None:
    """Return the last line of a text that reports a lack of memory; None if no line does."""
    marks = ("out of memory", "outofmemory", "cannot allocate memory", "memoryerror")
    return next(
        (line.strip()[:MAX_TEXT] for line in reversed(text.splitlines()) if any(mark in line.lower() for mark in marks)), None
    )


def signal_name(number: int) -> str:
    with contextlib.suppress(ValueError):
        return signal.Signals(number).name
    return f"signal {number}"


class State:
    """The contents of `gpu.json`: the last outcome of each check, with the machine. The file is rewritten after every check."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checks: dict[str, dict[str, Any]] = {}
        if path.exists():
            self.checks = self._read(path)

    @staticmethod
    def _read(path: Path) -> dict[str, dict[str, Any]]:
        try:
            state = json.loads(path.read_text(encoding="utf-8"))
            outcomes = [check["outcome"] for check in state["checks"].values()]
            if state["format"] == FORMAT and all(outcome in FINISHED + UNFINISHED for outcome in outcomes):
                return dict(state["checks"])
        except (ValueError, KeyError, TypeError, AttributeError):
            pass
        raise SystemExit(f"--out {path.parent}: {path.name} was not written by this script; move it away, or give another folder")

    def record(self, check: Check, result: Result, fields: Mapping[str, Any]) -> None:
        """Store the result of a check with these fields, and write the file."""
        earlier = self.checks.get(check.name, {}).get("seconds", 0.0)
        # A skipped check keeps the seconds of its earlier run, since they estimate its time better than the plan does.
        seconds = result.seconds if result.seconds else earlier
        self.checks[check.name] = {
            "number": check.number, "outcome": result.outcome, "text": result.text, "seconds": round(seconds, 2),
            "planned": check.seconds, "figures": list(result.figures), **fields,
        }  # fmt: skip
        scratch = self.path.with_suffix(".tmp")
        scratch.write_text(json.dumps({"format": FORMAT, "checks": self.checks}, indent=1), encoding="utf-8")
        scratch.replace(self.path)

    def is_finished(self, check: Check) -> bool:
        return self.checks.get(check.name, {}).get("outcome") in FINISHED

    def estimate(self, check: Check) -> float:
        """Return the expected seconds of a check: its planned seconds times the pace of the other checks.

        For a check that was ended before it finished, it is at least 1.5 times the seconds that it had.
        """
        last = self.checks.get(check.name, {})
        if last.get("outcome") in ("cut off", "interrupted", "skipped") and last.get("seconds"):
            return max(1.5 * float(last["seconds"]), check.seconds * self.pace())
        return check.seconds * self.pace()

    def pace(self) -> float:
        """Return the median ratio of measured to planned seconds over the checks that passed; 1 if none did."""
        passed = [check for check in self.checks.values() if check["outcome"] == "passed" and check["seconds"]]
        return statistics.median(check["seconds"] / check["planned"] for check in passed) if passed else 1.0


class Runner:
    """Runs the checks in their order until no time is left. Raises SystemExit if `--out` mixes checks with and without --dry."""

    def __init__(self, options: argparse.Namespace, launch: Launch = launch, clock: Callable[[], float] = time.monotonic) -> None:
        self.options, self.launch, self.clock = options, launch, clock
        self.deadline = clock() + 60 * options.minutes
        options.out.mkdir(parents=True, exist_ok=True)
        self.state = State(options.out / STATE_FILE)
        if any(bool(check.get("dry")) != options.dry for check in self.state.checks.values()):
            raise SystemExit(f"--out {options.out}: holds checks {'without' if options.dry else 'of'} --dry; give another folder")
        self.machine: dict[str, Any] = {}
        self.model = options.model

    def run(self, checks: Sequence[Check] = CHECKS) -> None:
        """Run the checks that have not finished, and write the table. Raises KeyboardInterrupt after writing the state."""
        todo = [check for check in checks if check.name in self.options.again or not self.state.is_finished(check)]
        if todo:
            self._prepare_machine()
        for check in todo:
            self._run_check(check)
        (self.options.out / TABLE_FILE).write_text(table(self.state.checks), encoding="utf-8")

    def _prepare_machine(self) -> None:
        """Read the properties of the machine; with --dry also write the tiny model and its answers."""
        if self.options.dry:
            self.model = str((self.options.out / "tiny-model").resolve())
            if not Path(self.model).exists():
                self._run_setup("tiny", "--out", self.model)
        self.machine = json.loads(last_line(self._run_setup("device", "--out", str(self.options.out))) or "{}")
        if self.options.dry and not self.answers.exists():
            self.prepare()

    @property
    def answers(self) -> Path:
        default = self.options.out / "cpu_answers.json"
        return Path(self.options.answers or default).resolve()

    def prepare(self) -> None:
        """Write the file of the CPU's answers, in a process that cannot see a GPU."""
        words = ["--out", str(self.options.out / "prepare"), "--model", self.model, "--answers", str(self.answers)]
        self._run_setup("prepare", *words, *(("--cells", "4") if self.options.dry else ()))
        print(f"{self.answers}: {self.answers.stat().st_size / 1e3:.0f} kB")

    def _run_setup(self, body: str, *words: str) -> str:
        """Run a part of the set-up, which may take an hour, and return its output. Raises SystemExit if it fails."""
        folder = self.options.out / body
        hide_gpu = ("env", "CUDA_VISIBLE_DEVICES=") if body == "prepare" else ()
        ended = self.launch([*hide_gpu, sys.executable, "-m", "bench.gpu_checks", body, *words], folder, 3600.0)
        if ended.status:
            raise SystemExit(f"{body} failed: {last_line((folder / 'stderr').read_text(errors='replace'))} (see {folder}/stderr)")
        return Path(folder / "stdout").read_text(encoding="utf-8", errors="replace")

    def _run_check(self, check: Check) -> None:
        left, estimate = self.deadline - self.clock(), self.state.estimate(check)
        if estimate > left:
            self._record(check, Result("skipped", f"needs about {estimate:.0f} s, {max(left, 0.0):.0f} s were left"))
            return
        hang_limit = max(HANG_FACTOR * estimate, MIN_LIMIT_S)
        folder = self.options.out / check.name
        shutil.rmtree(folder, ignore_errors=True)  # remove the output of a run that was ended
        started = self.clock()
        try:
            ended = self.launch(self.command(check), folder, min(hang_limit, left))
        except KeyboardInterrupt:
            self._record(check, Result("interrupted", "by Ctrl-C", self.clock() - started))
            raise
        out, err = ((folder / name).read_text(encoding="utf-8", errors="replace") for name in ("stdout", "stderr"))
        self._record(check, judge(check, ended, out, err, cut_off=left < hang_limit))

    def command(self, check: Check) -> list[str]:
        """Return the command of a check."""
        values = {"model": self.model, "data": str(Path(self.options.data or "data").resolve())}
        words = [word.format(**values) for word in check.words]
        if words[0] == "bench.gpu_checks":
            words += [
                "--model",
                self.model,
                "--out",
                str((self.options.out / check.name).resolve()),
                "--answers",
                str(self.answers),
            ]
        return [sys.executable, "-m", *words, *(check.dry_words if self.options.dry else ())]

    def _record(self, check: Check, result: Result) -> None:
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        fields = {"date": now, "dry": self.options.dry, "command": " ".join(self.command(check)[1:]), **self.machine}
        self.state.record(check, result, fields)
        (self.options.out / TABLE_FILE).write_text(table(self.state.checks), encoding="utf-8")
        reason = f" ({result.text})" if result.text else ""
        print(f"{check.number:2} {check.name:24} {result.outcome:13} {result.seconds:6.0f} s{reason}", flush=True)


def table(results: Mapping[str, Mapping[str, Any]], checks: Sequence[Check] = CHECKS) -> str:
    """Return the table of docs/gpu.md in Markdown, with a row for every check."""
    lines = ["| # | check | date | revision | device | outcome | figures |", "|---|---|---|---|---|---|---|"]
    for check in checks:
        result = results.get(check.name)
        if result is None:
            lines.append(f"| {check.number} | `{check.name}`: {check.what} | – | – | – | not yet run | – |")
            continue
        device = str(result.get("device", "–")) + (", tiny model" if result.get("dry") else "")
        outcome = result["outcome"] + (f": {cell_text(result['text'])}" if result["text"] else "")
        cells = (
            str(result.get("date", "–"))[:10],
            str(result.get("revision") or "–"),
            device,
            outcome,
            figures_text(check, result["figures"]),
        )
        lines.append(f"| {check.number} | `{check.name}`: {check.what} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def cell_text(text: str) -> str:
    """Return a text in the form of a cell of a Markdown table."""
    return " ".join(text.replace("|", "\\|").split())


def figures_text(check: Check, figures: Sequence[Mapping[str, Any]]) -> str:
    """Return the last value of each figure of the check, with its range if it has one: "step_ratio 1.9 [1.8, 2]"."""
    last = {figure["figure"]: figure for figure in figures}
    texts = []
    for name in dict.fromkeys((*check.figures, *check.at_most, *check.at_least)):
        if (figure := last.get(name)) is not None:
            spread = (
                f" [{figure['min']:g}, {figure['max']:g}]"
                if figure.get("n", 0) > 1 and "min" in figure and "max" in figure
                else ""
            )
            texts.append(f"{name} {figure['value']:g}{spread}")
    return ", ".join(texts) or "–"


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu", description="Runs the checks of docs/gpu.md inside a time limit."
    )
    parser.add_argument("--minutes", type=positive, default=8.0, help="the time for all checks")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"), help="the folder of the state and of all outputs")
    parser.add_argument("--model", default="bundled", help="the model of all checks: bundled, or a folder")
    parser.add_argument("--answers", type=Path, help="the file of the CPU's answers; by default OUT/cpu_answers.json")
    parser.add_argument(
        "--data", type=Path, help="a folder with local copies of gsm8k/ and math/; arithmetic replaces those that are missing"
    )
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="only these checks")
    parser.add_argument(
        "--again", nargs="+", default=[], metavar="NAME", help="run these checks again, also if they have finished"
    )
    parser.add_argument("--prepare", action="store_true", help="only write the CPU's answers")
    parser.add_argument("--dry", action="store_true", help="a rehearsal on CPUs, with a tiny model and small sizes")
    return parser


def positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be more than 0, not {text}")
    return value


def main(words: Sequence[str] | None = None) -> int:
    options = parser().parse_args(words)
    names = [check.name for check in CHECKS]
    for name in (*options.only, *options.again):
        if name not in names:
            raise SystemExit(f"no check is named {name!r}; valid: {', '.join(names)}")
    if options.dry:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    runner = Runner(options)
    try:
        if options.prepare:
            runner.prepare()
            return 0
        wanted = {*options.only, *options.again} or {*names}
        runner.run([check for check in CHECKS if check.name in wanted])
    except KeyboardInterrupt:
        print(f"interrupted; run the command again with --out {options.out} to continue", file=sys.stderr)
        return 130
    print(f"{options.out / STATE_FILE}\n{options.out / TABLE_FILE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
