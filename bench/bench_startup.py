"""CPU seconds of whole commands: the help of each permix command, and a report of the recorded runs.

    python -m bench.bench_startup [--starts 3] [--commands stability train ...]

Each command is a process of its own. A figure is the least of several starts, since other work of the machine can only add time.
Python may write bytecode, as for an installed package, so only the first start compiles modules. One JSON line a figure.
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
    """Return the CPU seconds, user and system, of `permix WORDS`. Raises SystemExit with its stderr if it fails."""
    before = os.times()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    process = subprocess.run(
        [sys.executable, "-m", "permix", *words], capture_output=True, text=True, check=False, env=environment
    )
    if process.returncode:
        raise SystemExit(f"permix {' '.join(words)}: exit code {process.returncode}\n{process.stderr[-2000:]}")
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--starts", type=int, default=3, help="how often each command is started")
    parser.add_argument(
        "--commands", nargs="*", default=sorted(COMMANDS), help="commands whose help is measured; the report is always measured"
    )
    return parser


def main() -> None:
    options = parser().parse_args()
    show("startup_help_cpu_s", min(cpu_seconds(["--help"]) for _ in range(options.starts)), starts=options.starts)
    for command in options.commands:
        cpu_s = min(cpu_seconds([command, "--help"]) for _ in range(options.starts))
        show("startup_verb_help_cpu_s", cpu_s, command=command, starts=options.starts)
    runs = sorted(map(str, RECORDED.iterdir()))
    with tempfile.TemporaryDirectory() as scratch:
        cpu_s = min(cpu_seconds(["report", *runs, "--out", f"{scratch}/{number}"]) for number in range(options.starts))
    show("report_of_recorded_runs_cpu_s", cpu_s, runs=len(runs), starts=options.starts)


if __name__ == "__main__":
    main()
