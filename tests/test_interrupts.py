"""Ctrl-C and SIGTERM, once or twice, at any moment: an exit code that says so, no traceback, and a run that goes on."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.cell_files import read_cells
from tests.sample_runs import asked_what, solve, stability_values, toml
from tests.servers import OpenAIServer, openai_server

pytestmark = pytest.mark.slow

WAIT_S = 60.0
INT, TERM = signal.SIGINT, signal.SIGTERM
CODES = {INT: 130, TERM: 143}


def answer(body: Mapping[str, Any], nth: int, headers: Mapping[str, str]) -> str:
    time.sleep(0.02)
    return f"It is {solve(asked_what(body))}."


@pytest.fixture
def server() -> Iterator[OpenAIServer]:
    with openai_server(answer) as server:
        yield server


@pytest.fixture
def config(tmp_path: Path, server: OpenAIServer) -> Path:
    (tmp_path / "run.toml").write_text(toml(stability_values(tmp_path, server.base_url)))
    return tmp_path / "run.toml"


def started(*argv: str) -> "subprocess.Popen[str]":
    return subprocess.Popen([sys.executable, *argv], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_until(process: "subprocess.Popen[str]", reached: Callable[[], bool]) -> None:
    until = time.monotonic() + WAIT_S
    while not reached() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.005)


def has_loaded(process: "subprocess.Popen[str]", library: str) -> bool:
    try:
        return library in Path(f"/proc/{process.pid}/maps").read_text()
    except OSError:
        return False


def ended(process: "subprocess.Popen[str]", *signals: signal.Signals) -> tuple[int, str]:
    for one in signals:
        process.send_signal(one)
    trouble = process.communicate(timeout=WAIT_S)[1]
    assert "Traceback" not in trouble
    assert "Exception ignored" not in trouble
    return process.returncode, trouble


@pytest.mark.parametrize("signals", [(INT,), (INT, INT), (TERM, TERM)], ids=str)
@pytest.mark.parametrize("moment", ["imports", "libraries", "first answers"])
def test_one_press_or_two_end_a_run_that_goes_on(
    moment: str, signals: tuple[signal.Signals, ...], config: Path, server: OpenAIServer, tmp_path: Path
) -> None:
    process = started("-m", "permix", "stability", str(config))
    reached = {
        "imports": lambda: has_loaded(process, "_pydantic_core"),
        "libraries": lambda: has_loaded(process, "numpy"),
        "first answers": lambda: len(server.asked) >= 5,
    }
    wait_until(process, reached[moment])
    code, trouble = ended(process, *signals)
    assert code == CODES[signals[0]]
    assert moment == "imports" or "interrupted; finished work is saved, run the same command again to continue" in trouble
    kept, asked = len(read_cells(tmp_path / "run" / "records.jsonl")), len(server.asked)
    assert kept < 24
    assert ended(started("-m", "permix", "stability", str(config)))[0] == 0
    # The one request in flight at the interruption may have reached the server after `asked` was read.
    assert len(server.asked) - asked - (24 - kept) in (0, 1)


PROCESS = """
import atexit, os, signal, sys, threading, time
from permix import cli
def press(number=signal.SIGINT):
    os.kill(os.getpid(), number)
sys.argv = ["permix", "--version"]
{setup}
cli.main()
"""


def in_process(setup: str) -> tuple[int, str]:
    return ended(started("-c", PROCESS.format(setup=setup)))


def command(body: str) -> str:
    """The command is replaced by these lines."""
    return "def run_cli(argv):\n    " + body.replace("\n", "\n    ") + "\n    return 0\ncli.process.run_cli = run_cli"


def test_a_signal_after_the_command_leaves_no_traceback() -> None:
    assert in_process("threading.Timer(0.5, press).start()")[0] == 130  # while Python waits for its threads
    assert in_process("threading.Timer(0.5, press, [signal.SIGTERM]).start()")[0] == 143
    assert in_process("atexit.register(press)")[0] == 0  # its work is done


def test_an_interrupt_that_python_or_a_library_swallows_ends_the_process() -> None:
    dropped = "class Dropped:\n    def __del__(self):\n        press()\nDropped()\ntime.sleep(5)"
    assert in_process(command(dropped))[0] == 130
    turned = "try:\n    press()\n    time.sleep(5)\nexcept KeyboardInterrupt:\n    raise ImportError('numpy failed to import')"
    assert in_process(command(turned))[0] == 130
    noted = "try:\n    exec('press(); time.sleep(5)', globals())\nexcept KeyboardInterrupt:\n    return 130"
    assert in_process(command(noted))[0] == 130


def test_a_second_signal_later_ends_a_command_that_hangs_while_it_ends() -> None:
    hangs = "try:\n    press()\n    time.sleep(5)\nfinally:\n    press()\n    time.sleep(1.2)\n    press()\n    time.sleep(30)"
    began = time.monotonic()
    assert in_process(command(hangs))[0] == 130
    assert time.monotonic() - began < 20


def test_a_job_in_the_background_goes_on() -> None:
    ignored = "signal.signal(signal.SIGINT, signal.SIG_IGN)\n" + command("press()\nprint('went on')")
    assert in_process(ignored)[0] == 0


def test_torchrun_ends_a_process_that_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert in_process(command("press(signal.SIGTERM)\ntime.sleep(5)"))[0] == -signal.SIGTERM


def test_a_forked_process_ends_in_silence() -> None:
    forks = "child = os.fork()\nif child == 0:\n    press(signal.SIGTERM)\n    time.sleep(5)\nprint(os.waitpid(child, 0)[1])"
    code, trouble = in_process(command(forks))
    assert (code, trouble) == (0, "")


def test_another_error_keeps_its_traceback() -> None:
    process = started("-c", PROCESS.format(setup=command("raise ZeroDivisionError('a fault of ours')")))
    assert "ZeroDivisionError: a fault of ours" in process.communicate(timeout=WAIT_S)[1]
    assert process.returncode == 1


def test_the_viewer_ends_in_peace_after_two_presses(tmp_path: Path) -> None:
    process = started("-m", "permix", "view", str(tmp_path), "--port", "0")
    assert process.stdout is not None
    assert process.stdout.readline().startswith("http://127.0.0.1:")
    assert ended(process, INT, INT) == (0, "")


def test_the_package_starts_where_signals_are_handled() -> None:
    project = (Path(__file__).parents[1] / "pyproject.toml").read_text()
    assert 'permix = "permix.__main__:start"' in project
    assert os.path.exists(Path(__file__).parents[1] / "src" / "permix" / "__main__.py")
