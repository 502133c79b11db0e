"""The checks of docs/gpu.md on a machine with a GPU, in order of value, inside a time limit. One JSON file, and the table.

    python -m bench.gpu --prepare --answers cpu_answers.json           beforehand, on any machine: the CPU's answers
    python -m bench.gpu --minutes 8 --answers cpu_answers.json --out runs/gpu
    python -m bench.gpu --dry --out runs/gpu-dry                       all of it on CPUs, with a tiny model

Each check is a process of its own with a limit, so a crash or a hang of one leaves the others. A check whose estimated time does
not fit into what is left is skipped; the next one may fit. Started again with the same `--out`, the checks that have an outcome
are not run again. `OUT/gpu.json` holds everything, `OUT/gpu.md` the rows for docs/gpu.md, `OUT/NAME/` what a check printed.
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

OPEN = ("skipped", "cut off", "interrupted", "not possible")
"""Outcomes after which the next start tries again."""

HANG_FACTOR = 4.0
"""A check that takes so many times its estimate is ended: it hangs."""
LEAST_LIMIT_S = 90.0
"""No check is taken for hung before: starting and loading alone may take this long on a slow disk."""
GRACE_S = 5.0
"""What a process gets to end after SIGTERM, before SIGKILL."""
MAX_TEXT = 300


class Ended(NamedTuple):
    """How a process ended: its exit status (negative: of a signal), None if its limit ended it; and its seconds."""

    status: int | None
    seconds: float


Launch = Callable[[Sequence[str], Path, float], Ended]
"""Runs a command with its output in `FOLDER/stdout` and `FOLDER/stderr`, for at most so many seconds."""


def launch(command: Sequence[str], folder: Path, limit_s: float) -> Ended:
    """Run in a session of its own, so that the processes that it starts end with it. Ctrl-C ends it too."""
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
    """End what is left of the session that the process leads."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_S)


class Result(NamedTuple):
    """What came of one check."""

    outcome: str
    text: str = ""
    seconds: float = 0.0
    figures: tuple[dict[str, Any], ...] = ()


def judge(check: Check, ended: Ended, out: str, err: str, *, cut_off: bool) -> Result:
    """The outcome of a process by its status and what it printed. `cut_off`: its limit was the end of the time, not a hang."""
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
    """A sentence for each bound of the check that its figures break. A figure that is missing, or NaN, breaks its bound."""
    values: dict[str, list[float]] = {}
    for one in figures:
        values.setdefault(one["figure"], []).append(one["value"])
    found = []
    for name, bound in (*check.at_most.items(), *check.at_least.items()):
        is_most = name in check.at_most
        if name not in values:
            found.append(f"{name} is missing")
        elif not all(value <= bound if is_most else value >= bound for value in values[name]):
            worst = max(values[name]) if is_most else min(values[name])
            found.append(f"{name} = {worst:g}, not at {'most' if is_most else 'least'} {bound:g}")
    return found


def last_line(text: str) -> str:
    """The last line of a text that says anything, shortened."""
    return next((line.strip()[:MAX_TEXT] for line in reversed(text.splitlines()) if line.strip()), "")


def memory_line(text: str) -> str | None:
    """The last line of a text that says that memory is short; None without one."""
    marks = ("out of memory", "outofmemory", "cannot allocate memory", "memoryerror")
    return next(
        (line.strip()[:MAX_TEXT] for line in reversed(text.splitlines()) if any(one in line.lower() for one in marks)), None
    )


def signal_name(number: int) -> str:
    with contextlib.suppress(ValueError):
        return signal.Signals(number).name
    return f"signal {number}"


class State:
    """`gpu.json`: the machines, and for each check its last outcome. Written whole after every check."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checks: dict[str, dict[str, Any]] = {}
        if path.exists():
            self.checks = self._read(path)

    @staticmethod
    def _read(path: Path) -> dict[str, dict[str, Any]]:
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            if found["format"] == FORMAT and all(one["outcome"] in FINISHED + OPEN for one in found["checks"].values()):
                return dict(found["checks"])
        except (ValueError, KeyError, TypeError, AttributeError):
            pass
        raise SystemExit(f"--out {path.parent}: {path.name} is no state of this script; move it away, or give another folder")

    def record(self, check: Check, result: Result, about: Mapping[str, Any]) -> None:
        spent = self.checks.get(check.name, {}).get("seconds", 0.0)
        # A skipped check keeps what was measured before: it is the better estimate.
        seconds = result.seconds if result.seconds else spent
        self.checks[check.name] = {
            "number": check.number, "outcome": result.outcome, "text": result.text, "seconds": round(seconds, 2),
            "planned": check.seconds, "figures": list(result.figures), **about,
        }  # fmt: skip
        scratch = self.path.with_suffix(".tmp")
        scratch.write_text(json.dumps({"format": FORMAT, "checks": self.checks}, indent=1), encoding="utf-8")
        scratch.replace(self.path)

    def is_finished(self, check: Check) -> bool:
        return self.checks.get(check.name, {}).get("outcome") in FINISHED

    def estimate(self, check: Check) -> float:
        """Seconds that the check will take: as planned, at the pace of the others; more than it had when it was cut off."""
        known = self.checks.get(check.name, {})
        if known.get("outcome") in ("cut off", "interrupted", "skipped") and known.get("seconds"):
            return max(1.5 * float(known["seconds"]), check.seconds * self.pace())
        return check.seconds * self.pace()

    def pace(self) -> float:
        """The median, over the checks that passed, of measured over planned seconds; 1 before the first."""
        passed = [one for one in self.checks.values() if one["outcome"] == "passed" and one["seconds"]]
        return statistics.median(one["seconds"] / one["planned"] for one in passed) if passed else 1.0


class Runner:
    """Runs the checks in their order until the time is over."""

    def __init__(self, options: argparse.Namespace, launch: Launch = launch, clock: Callable[[], float] = time.monotonic) -> None:
        self.options, self.launch, self.clock = options, launch, clock
        self.deadline = clock() + 60 * options.minutes
        options.out.mkdir(parents=True, exist_ok=True)
        self.state = State(options.out / STATE_FILE)
        if any(bool(one.get("dry")) != options.dry for one in self.state.checks.values()):
            raise SystemExit(f"--out {options.out}: holds checks {'without' if options.dry else 'of'} --dry; give another folder")
        self.machine: dict[str, Any] = {}
        self.model = options.model

    def run(self, checks: Sequence[Check] = CHECKS) -> None:
        """Raises KeyboardInterrupt on Ctrl-C, after the state was written."""
        todo = [check for check in checks if check.name in self.options.again or not self.state.is_finished(check)]
        if todo:
            self._look_at_machine()
        for check in todo:
            self._run_one(check)
        (self.options.out / TABLE_FILE).write_text(table(self.state.checks), encoding="utf-8")

    def _look_at_machine(self) -> None:
        if self.options.dry:
            self.model = str((self.options.out / "tiny-model").resolve())
            if not Path(self.model).exists():
                self._own("tiny", "--out", self.model)
        self.machine = json.loads(last_line(self._own("device", "--out", str(self.options.out))) or "{}")
        if self.options.dry and not self.answers.exists():
            self.prepare()

    @property
    def answers(self) -> Path:
        default = self.options.out / "cpu_answers.json"
        return Path(self.options.answers or default).resolve()

    def prepare(self) -> None:
        """Write the CPU's answers. A GPU is hidden from the process that makes them."""
        words = ["--out", str(self.options.out / "prepare"), "--model", self.model, "--answers", str(self.answers)]
        self._own("prepare", *words, *(("--cells", "4") if self.options.dry else ()))
        print(f"{self.answers}: {self.answers.stat().st_size / 1e3:.0f} kB")

    def _own(self, body: str, *words: str) -> str:
        """Run a part of the set-up, which no time limit cuts off; its output. Raises SystemExit if it fails."""
        folder = self.options.out / body
        hidden = ("env", "CUDA_VISIBLE_DEVICES=") if body == "prepare" else ()
        ended = self.launch([*hidden, sys.executable, "-m", "bench.gpu_checks", body, *words], folder, 3600.0)
        if ended.status:
            raise SystemExit(f"{body} failed: {last_line((folder / 'stderr').read_text(errors='replace'))} (see {folder}/stderr)")
        return Path(folder / "stdout").read_text(encoding="utf-8", errors="replace")

    def _run_one(self, check: Check) -> None:
        left, estimate = self.deadline - self.clock(), self.state.estimate(check)
        if estimate > left:
            self._note(check, Result("skipped", f"needs about {estimate:.0f} s, {max(left, 0.0):.0f} s were left"))
            return
        patience = max(HANG_FACTOR * estimate, LEAST_LIMIT_S)
        folder = self.options.out / check.name
        shutil.rmtree(folder, ignore_errors=True)  # what is left of a check that was ended
        started = self.clock()
        try:
            ended = self.launch(self.command(check), folder, min(patience, left))
        except KeyboardInterrupt:
            self._note(check, Result("interrupted", "by Ctrl-C", self.clock() - started))
            raise
        out, err = ((folder / name).read_text(encoding="utf-8", errors="replace") for name in ("stdout", "stderr"))
        self._note(check, judge(check, ended, out, err, cut_off=left < patience))

    def command(self, check: Check) -> list[str]:
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

    def _note(self, check: Check, result: Result) -> None:
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        about = {"date": now, "dry": self.options.dry, "command": " ".join(self.command(check)[1:]), **self.machine}
        self.state.record(check, result, about)
        (self.options.out / TABLE_FILE).write_text(table(self.state.checks), encoding="utf-8")
        told = f" ({result.text})" if result.text else ""
        print(f"{check.number:2} {check.name:24} {result.outcome:13} {result.seconds:6.0f} s{told}", flush=True)


def table(results: Mapping[str, Mapping[str, Any]], checks: Sequence[Check] = CHECKS) -> str:
    """The rows of docs/gpu.md, in Markdown: every check, in its order."""
    lines = ["| # | check | date | revision | device | outcome | figures |", "|---|---|---|---|---|---|---|"]
    for check in checks:
        one = results.get(check.name)
        if one is None:
            lines.append(f"| {check.number} | `{check.name}`: {check.what} | – | – | – | not yet run | – |")
            continue
        device = str(one.get("device", "–")) + (", tiny model" if one.get("dry") else "")
        outcome = one["outcome"] + (f": {cell_text(one['text'])}" if one["text"] else "")
        cells = (
            str(one.get("date", "–"))[:10],
            str(one.get("revision") or "–"),
            device,
            outcome,
            figures_text(check, one["figures"]),
        )
        lines.append(f"| {check.number} | `{check.name}`: {check.what} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def cell_text(text: str) -> str:
    """A text as one cell of a Markdown table."""
    return " ".join(text.replace("|", "\\|").split())


def figures_text(check: Check, figures: Sequence[Mapping[str, Any]]) -> str:
    """The last value of each of the check's figures, with its range where it has one: "step_ratio 1.9 [1.8, 2]"."""
    last = {one["figure"]: one for one in figures}
    found = []
    for name in dict.fromkeys((*check.figures, *check.at_most, *check.at_least)):
        if (one := last.get(name)) is not None:
            spread = f" [{one['min']:g}, {one['max']:g}]" if one.get("n", 0) > 1 and "min" in one and "max" in one else ""
            found.append(f"{name} {one['value']:g}{spread}")
    return ", ".join(found) or "–"


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description="The checks of docs/gpu.md inside a time limit.")
    parser.add_argument("--minutes", type=positive, default=8.0, help="time in all")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/gpu"), help="the folder of the state, which a later start goes on with"
    )
    parser.add_argument("--model", default="bundled", help="bundled, or a model folder, for all checks")
    parser.add_argument("--answers", type=Path, help="the file of the CPU's answers; OUT/cpu_answers.json when not given")
    parser.add_argument(
        "--data", type=Path, help="a folder with local copies of gsm8k/ and math/; arithmetic takes their place without"
    )
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="only these checks")
    parser.add_argument("--again", nargs="+", default=[], metavar="NAME", help="run these again, though they have an outcome")
    parser.add_argument("--prepare", action="store_true", help="write the CPU's answers and do nothing else")
    parser.add_argument("--dry", action="store_true", help="on CPUs, with a tiny model and sizes")
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
        print(f"interrupted; start it again with --out {options.out}, and it goes on", file=sys.stderr)
        return 130
    print(f"{options.out / STATE_FILE}\n{options.out / TABLE_FILE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
