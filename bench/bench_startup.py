"""CPU seconds of a command from its start to its end: the help of each command, and a report of the recorded runs.

Each command is a process of its own; a figure is the least of several starts, since a machine's other work only adds. Modules are
read from their bytecode, as those of an installed package are: the first start writes it. One JSON line a figure.

    python -m bench.bench_startup [--starts 3]
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.figures import show
from permix.cli import COMMANDS

RECORDED = Path(__file__).parents[1] / "docs" / "recorded" / "quickstart"


def cpu_seconds(words: Sequence[str]) -> float:
    """CPU seconds, user and system, of `permix WORDS`. Raises SystemExit with its output if it fails."""
    before = os.times()
    with_bytecode = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    ended = subprocess.run(
        [sys.executable, "-m", "permix", *words], capture_output=True, text=True, check=False, env=with_bytecode
    )
    if ended.returncode:
        raise SystemExit(f"permix {' '.join(words)}: exit code {ended.returncode}\n{ended.stderr[-2000:]}")
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(description=(__doc__ or "").partition(":")[0])
    options.add_argument("--starts", type=int, default=3)
    options.add_argument(
        "--commands", nargs="*", default=sorted(COMMANDS), help="of these commands; the report is always measured"
    )
    return options


def main() -> None:
    given = parser().parse_args()
    show("startup_help_cpu_s", min(cpu_seconds(["--help"]) for _ in range(given.starts)), starts=given.starts)
    for command in given.commands:
        spent = min(cpu_seconds([command, "--help"]) for _ in range(given.starts))
        show("startup_verb_help_cpu_s", spent, command=command, starts=given.starts)
    runs = sorted(map(str, RECORDED.iterdir()))
    with tempfile.TemporaryDirectory() as scratch:
        spent = min(cpu_seconds(["report", *runs, "--out", f"{scratch}/{number}"]) for number in range(given.starts))
    show("report_of_recorded_runs_cpu_s", spent, runs=len(runs), starts=given.starts)


if __name__ == "__main__":
    main()
