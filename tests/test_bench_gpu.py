"""The script of the GPU checks: their order, the time limit by a clock that the test moves, resuming, and what each end means."""

import argparse
import json
import os
import re
import select
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from bench.gpu import Ended, Runner, State, broken_bounds, figures_text, judge, launch, main, table
from bench.gpu_checks import CHECKS, NOT_POSSIBLE, ROOT, Check, figures_of, keeps_schema, parser, train_words
from permix.types import Completion

MACHINE = {"device": "H-GPU", "gpus": 1, "memory_gib": 139.0, "torch": "2.13.0", "python": "3.11", "revision": "abc123"}


def figure(name: str, value: float, **about: Any) -> str:
    return json.dumps({"figure": name, "value": value, **about}) + "\n"


def check(number: int, name: str, seconds: float = 100, **bounds: Any) -> Check:
    return Check(number, name, f"what {name} is", ("module", name), ("--small",), seconds, ("speed",), **bounds)


THREE = (check(1, "one"), check(2, "two"), check(3, "three", 30))


class Launched:
    """A launch that only moves the clock: `ends` has (status, seconds, stdout, stderr) by the command's last word."""

    def __init__(self, **ends: tuple[int | BaseException, float, str, str]) -> None:
        self.ends, self.now = ends, 0.0
        self.seen: list[tuple[str, float]] = []

    def __call__(self, command: Sequence[str], folder: Path, limit_s: float) -> Ended:
        folder.mkdir(parents=True, exist_ok=True)
        name = command[-1] if "bench.gpu_checks" not in command else command[command.index("bench.gpu_checks") + 1]
        if name == "device":
            (folder / "stdout").write_text(json.dumps(MACHINE) + "\n")
            (folder / "stderr").write_text("")
            return Ended(0, 1.0)
        self.seen.append((name, limit_s))
        status, seconds, out, err = self.ends.get(name, (0, 50.0, figure("speed", 2.0), ""))
        self.now += min(seconds, limit_s)
        if isinstance(status, BaseException):
            raise status
        (folder / "stdout").write_text(out)
        (folder / "stderr").write_text(err)
        return Ended(None if seconds > limit_s else status, min(seconds, limit_s))

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.seen]


def run(
    out: Path, launched: Launched, *, minutes: float = 8, again: Sequence[str] = (), checks: Sequence[Check] = THREE
) -> dict[str, Any]:
    options = argparse.Namespace(out=out, minutes=minutes, model="bundled", again=list(again), dry=False, answers=None, data=None)
    Runner(options, launched, lambda: launched.now).run(checks)
    return outcomes(out)


def outcomes(out: Path) -> dict[str, Any]:
    return {name: one["outcome"] for name, one in json.loads((out / "gpu.json").read_text())["checks"].items()}


# Order and time


def test_the_order_is_by_value() -> None:
    names = [one.name for one in CHECKS]
    assert [one.number for one in CHECKS] == list(range(1, len(CHECKS) + 1))
    assert len(set(names)) == len(names)
    assert names[:2] == ["step-60", "step-300"]
    assert names[2:9] == [
        "steps-arithmetic-permix", "steps-gsm8k-permix-gpu", "steps-math-permix-lora-gpu", "steps-arithmetic-rlvr",
        "steps-arithmetic-sft", "steps-arithmetic-sft-personas", "steps-arithmetic-seqkd",
    ]  # fmt: skip
    assert names[9:12] == ["stability-float32", "stability-bfloat16", "grid"]
    configs = {path.stem for path in (ROOT / "configs").glob("*.toml") if 'stage = "train"' in path.read_text()}
    assert {name.removeprefix("steps-") for name in names if name.startswith("steps-")} == configs


def test_checks_run_in_their_order(tmp_path: Path) -> None:
    launched = Launched()
    assert run(tmp_path, launched) == {"one": "passed", "two": "passed", "three": "passed"}
    assert launched.names == ["one", "two", "three"]


def test_what_does_not_fit_is_skipped_and_the_next_may_fit(tmp_path: Path) -> None:
    """150 s: one takes 100 as planned, two needs 100 of the 50 that are left, three needs 30."""
    launched = Launched(one=(0, 100.0, "", ""), three=(0, 30.0, "", ""))
    assert run(tmp_path, launched, minutes=2.5) == {"one": "passed", "two": "skipped", "three": "passed"}
    told = json.loads((tmp_path / "gpu.json").read_text())["checks"]["two"]["text"]
    assert told == "needs about 100 s, 50 s were left"


def test_estimates_follow_what_was_measured(tmp_path: Path) -> None:
    """On a machine that takes twice as long, 100 s become 200: of 300 s, 100 are left, and three needs 60."""
    launched = Launched(one=(0, 200.0, "", ""), three=(0, 60.0, "", ""))
    assert run(tmp_path, launched, minutes=5) == {"one": "passed", "two": "skipped", "three": "passed"}
    quick = Launched(one=(0, 50.0, "", ""))
    assert run(tmp_path / "quick", quick, minutes=110 / 60) == {"one": "passed", "two": "passed", "three": "skipped"}


def test_the_end_of_the_time_cuts_a_check_off_and_a_hang_is_no_such_end(tmp_path: Path) -> None:
    """Of 500 s: one hangs until 4 × 100; the 100 that are left are two's limit."""
    launched = Launched(one=(0, 1e9, "", ""), two=(0, 1e9, figure("speed", 1.0), ""))
    assert run(tmp_path, launched, minutes=500 / 60) == {"one": "hung", "two": "cut off", "three": "skipped"}
    assert launched.seen == [("one", 400.0), ("two", pytest.approx(100.0))]
    again = Launched()
    assert run(tmp_path, again, minutes=140 / 60)["two"] == "skipped", "it had 100 s and needs more: 150"
    assert run(tmp_path, again, minutes=300 / 60) == {"one": "hung", "two": "passed", "three": "passed"}


# Resuming


def test_a_finished_check_is_not_run_again(tmp_path: Path) -> None:
    first = Launched(two=(1, 5.0, "", "ValueError: no"))
    run(tmp_path, first, minutes=2.6)
    assert outcomes(tmp_path) == {"one": "passed", "two": "failed", "three": "passed"}
    second = Launched()
    run(tmp_path, second)
    assert second.names == []
    assert run(tmp_path, second, again=["two"]) == {"one": "passed", "two": "passed", "three": "passed"}
    assert second.names == ["two"]


def test_ctrl_c_leaves_a_state_that_goes_on(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, Launched(two=(KeyboardInterrupt(), 20.0, "", "")))
    assert outcomes(tmp_path) == {"one": "passed", "two": "interrupted"}
    assert "| 2 | `two`" not in (tmp_path / "gpu.md").read_text(), "these three are no checks of the document"
    launched = Launched()
    assert run(tmp_path, launched) == {"one": "passed", "two": "passed", "three": "passed"}
    assert launched.names == ["two", "three"]


def test_what_a_machine_lacks_is_tried_again(tmp_path: Path) -> None:
    lacking = Launched(one=(NOT_POSSIBLE, 3.0, "", "warning\nvllm is not installed\n"))
    assert run(tmp_path, lacking)["one"] == "not possible"
    assert json.loads((tmp_path / "gpu.json").read_text())["checks"]["one"]["text"] == "vllm is not installed"
    assert run(tmp_path, Launched())["one"] == "passed"


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"format": 2, "checks": {}}', '{"format": 1, "checks": {"one": {"outcome": "great"}}}']
)
def test_another_file_is_not_written_over(tmp_path: Path, text: str) -> None:
    (tmp_path / "gpu.json").write_text(text)
    with pytest.raises(SystemExit, match=f"--out {tmp_path}: gpu.json was not written by this script"):
        run(tmp_path, Launched())
    assert (tmp_path / "gpu.json").read_text() == text


def test_dry_checks_and_real_ones_do_not_mix(tmp_path: Path) -> None:
    run(tmp_path, Launched())
    options = argparse.Namespace(out=tmp_path, minutes=1, model="bundled", again=[], dry=True, answers=None, data=None)
    with pytest.raises(SystemExit, match="holds checks without --dry; give another folder"):
        Runner(options, Launched())


# What an end means


BOUNDED = check(4, "bounded", at_most={"gap": 0.1}, at_least={"equal": 0.9})
GOOD = figure("gap", 0.1) + figure("equal", 0.9)


@pytest.mark.parametrize(
    ("status", "out", "err", "expected"),
    [
        (0, GOOD, "a warning", ("passed", "")),
        (0, figure("gap", 0.2) + GOOD, "", ("failed", "gap = 0.2, not at most 0.1")),
        (0, figure("gap", 0.0) + figure("equal", 0.5), "", ("failed", "equal = 0.5, not at least 0.9")),
        (0, figure("gap", float("nan")) + figure("equal", 1.0), "", ("failed", "gap = nan, not at most 0.1")),
        (0, figure("gap", 0.0), "", ("failed", "equal is missing")),
        (1, GOOD, "Traceback\nValueError: too odd\n\n", ("failed", "ValueError: too odd")),
        (1, "", "", ("failed", "exit status 1")),
        (1, "", "OutOfMemoryError: tried 2 GiB\n  at x", ("out of memory", "OutOfMemoryError: tried 2 GiB")),
        (-11, "", "loading\n", ("crashed", "SIGSEGV: loading")),
        (NOT_POSSIBLE, "", "there is no such thing", ("not possible", "there is no such thing")),
    ],
)  # fmt: skip
def test_an_outcome(status: int, out: str, err: str, expected: tuple[str, str]) -> None:
    result = judge(BOUNDED, Ended(status, 7.0), out, err, cut_off=False)
    assert (result.outcome, result.text, result.seconds) == (*expected, 7.0)


def test_figures_that_were_printed_before_the_end_are_kept() -> None:
    result = judge(BOUNDED, Ended(None, 9.0), figure("gap", 0.05) + '{"figure": "cut', "", cut_off=False)
    assert (result.outcome, result.figures) == ("hung", ({"figure": "gap", "value": 0.05},))


def test_lines_that_are_no_figures_are_left_out() -> None:
    text = 'note\n{"figure": "a", "value": 1}\n{"figure": 3, "value": 1}\n{"value": 1}\n[1]\n{"figure": "b", "value": "x"}\n'
    assert list(figures_of(text)) == [{"figure": "a", "value": 1}]


def test_a_real_process_ends_by_itself_by_a_signal_and_by_its_limit(tmp_path: Path) -> None:
    def python(code: str, limit_s: float) -> int | None:
        return launch([sys.executable, "-c", code], tmp_path / "ran", limit_s).status

    assert python("import sys; print('said'); print('why', file=sys.stderr); sys.exit(3)", 600) == 3
    assert ((tmp_path / "ran/stdout").read_text(), (tmp_path / "ran/stderr").read_text()) == ("said\n", "why\n")
    assert python("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", 600) == -signal.SIGKILL
    assert python("import signal; signal.pause()", 0) is None, "its limit was over when it began"


LEAVES = """
import subprocess, sys
code = "import signal; held = open({fifo!r}, 'w'); print('open', flush=True); signal.pause()"
left = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
left.stdout.readline()
"""


def test_processes_that_a_check_leaves_end_with_it(tmp_path: Path) -> None:
    """The process that is left holds the write end of a pipe; the pipe ends when it is gone."""
    fifo = tmp_path / "alive"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    try:
        assert launch([sys.executable, "-c", LEAVES.format(fifo=str(fifo))], tmp_path / "ran", 600).status == 0
        assert select.select([reader], [], [], 600)[0]
        assert os.read(reader, 1) == b""
    finally:
        os.close(reader)


# The table


def test_the_table_has_every_check_in_its_order(tmp_path: Path) -> None:
    launched = Launched(
        one=(0, 40.0, figure("speed", 2.5, min=2.25, max=3.0, n=3), ""),
        two=(1, 5.0, "", "CUDA out of memory | tried"),
    )
    run(tmp_path, launched, checks=THREE[:2])
    state = State(tmp_path / "gpu.json")
    date = state.checks["one"]["date"][:10]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", date)
    assert table(state.checks, THREE).splitlines() == [
        "| # | check | date | revision | device | outcome | figures |",
        "|---|---|---|---|---|---|---|",
        f"| 1 | `one`: what one is | {date} | abc123 | H-GPU | passed | speed 2.5 [2.25, 3] |",
        f"| 2 | `two`: what two is | {date} | abc123 | H-GPU | out of memory: CUDA out of memory \\| tried | – |",
        "| 3 | `three`: what three is | – | – | – | not yet run | – |",
    ]
    assert state.checks["one"]["command"] == "-m module one"
    assert figures_text(BOUNDED, [{"figure": "gap", "value": 0.05}, {"figure": "other", "value": 1}]) == "gap 0.05"
    assert broken_bounds(BOUNDED, list(figures_of(GOOD))) == []


def test_the_document_has_the_checks_of_the_script() -> None:
    text = (ROOT / "docs" / "gpu.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| `([\w-]+)`: ([^|]+) \|", text, flags=re.MULTILINE)
    assert rows == [(str(one.number), one.name, one.what) for one in CHECKS]
    by_hand = text.partition("\n## By hand")[2]
    manual = [int(number) for number in re.findall(r"^\| (\d+) \| ", by_hand, flags=re.MULTILINE)]
    assert manual
    assert manual == list(range(len(CHECKS) + 1, len(CHECKS) + 1 + len(manual)))


# The command


def test_every_check_is_a_command_that_its_module_takes(tmp_path: Path) -> None:
    from bench import train_step

    options = argparse.Namespace(out=tmp_path, minutes=1, model="M", again=[], dry=True, answers=None, data=None)
    runner = Runner(options, Launched())
    for one in CHECKS:
        _, dash, module, *words = runner.command(one)
        assert dash == "-m"
        parsed = (train_step if module == "bench.train_step" else sys.modules["bench.gpu_checks"]).parser().parse_args(words)
        assert parsed.model == "M"


def test_arithmetic_takes_the_place_of_a_data_set_that_is_not_here(tmp_path: Path) -> None:
    words = ["train", "--out", str(tmp_path), "--config", "gsm8k-permix-gpu", "--data", str(tmp_path / "gsm8k"), "--model", "M"]
    assert "--task.name arithmetic --task.n 1000" in " ".join(train_words(parser().parse_args(words)))
    (tmp_path / "gsm8k").mkdir()
    found = " ".join(train_words(parser().parse_args(words)))
    assert f"--task.path {tmp_path}/gsm8k" in found
    assert "--task.name" not in found


@pytest.mark.parametrize("option", ["--only", "--again"])
def test_an_unknown_check_is_refused(option: str, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no check is named 'step'; valid: step-60, "):
        main([option, "step", "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("minutes", ["0", "-1", "nan", "inf", "ten"])
def test_minutes_are_positive(minutes: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([f"--minutes={minutes}"])
    assert "--minutes" in capsys.readouterr().err


def test_a_failed_set_up_ends_with_its_reason(tmp_path: Path) -> None:
    def broken(command: Sequence[str], folder: Path, limit_s: float) -> Ended:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "stderr").write_text("ImportError: no torch\n")
        return Ended(1, 1.0)

    options = argparse.Namespace(out=tmp_path, minutes=1, model="M", again=[], dry=False, answers=None, data=None)
    with pytest.raises(SystemExit, match="device failed: ImportError: no torch"):
        Runner(options, broken).run(THREE)


@pytest.mark.parametrize(
    ("text", "finish", "kept"),
    [
        ('{"score": 4}', "stop", True),
        ('{"score": 9}', "stop", False),
        ("[4]", "stop", False),
        ('{"sco', "length", True),
        ("It is", "length", False),
    ],
)
def test_a_reply_keeps_the_schema(text: str, finish: Any, kept: bool) -> None:
    assert keeps_schema(Completion(text=text, prompt_tokens=1, completion_tokens=1, finish=finish)) is kept


@pytest.mark.slow
def test_dry_runs_on_the_tiny_model(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Real processes: the CPU's answers are made, compared with themselves, and a configuration takes a step."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    names = ["steps-arithmetic-permix", "stability-float32", "vllm-sampled"]
    assert main(["--dry", "--minutes", "60", "--out", str(tmp_path / "out"), "--only", *names]) == 0
    found = json.loads((tmp_path / "out" / "gpu.json").read_text())["checks"]
    assert {name: found[name]["outcome"] for name in names[:2]} == dict.fromkeys(names[:2], "passed"), found
    assert found["vllm-sampled"]["text"] in ("vllm is not installed", "")
    values = {one["figure"]: one["value"] for name in names[:2] for one in found[name]["figures"]}
    assert (values["equal_answers"], values["parted_gap"], values["steps"], values["not_finite"]) == (1.0, 0.0, 1.0, 0.0)
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "out" / "gpu.md")
