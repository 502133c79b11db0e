"""CPU microseconds and peak memory to write and to read a line of a batch file.

    python bench/bench_batch_files.py [--lines 100000] [--work lines cells]

"lines" handles the files alone: requests are made one at a time, and results are dropped. "cells" handles a grid whose cells are
written, read and recorded as in a run, but not scored. In between, the benchmark itself answers each request with 200 characters.
Each piece of work has a process of its own, in which imported modules alone take about 100 MB. One JSON line a figure.
"""

import argparse
import contextlib
import json
import os
import re
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.figures import show
from bench.many_cells import personas, questions
from permix.config import ModelConfig, StabilityConfig
from permix.evals.grid import PromptFormat, build_grid, run_cells
from permix.inference.batch_model import BatchFlags, BatchModel, open_batch_model
from permix.storage.run_dir import RunDir
from permix.types import Cell, Message, Request, Sampling

ANSWER = "Let me think about this step by step. " * 5 + "It is 72."
CONFIG = ModelConfig(name="served", backend="batch")
QUESTIONS_OF_A_PERSONA = 5000


class MadeRequests(Sequence[Request]):
    """A sequence of requests of about 200 characters, each of which is made when it is read."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._questions = questions(QUESTIONS_OF_A_PERSONA)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: int) -> Request:  # type: ignore[override]
        if number >= self._count:
            raise IndexError(number)
        persona, question = divmod(number, QUESTIONS_OF_A_PERSONA)
        system = Message(role="system", content=f"You are person number {persona}, who has a name.")
        return Request((system, Message(role="user", content=self._questions[question].text)), number)


@contextlib.contextmanager
def batch_model(folder: Path, flags: BatchFlags) -> Iterator[BatchModel]:
    """Open a model that writes or reads batch files."""
    with open_batch_model(flags, CONFIG, stage="stability", run=folder / "run", read_back="") as model:
        assert model is not None
        yield model


def handle_lines(folder: Path, flags: BatchFlags, count: int) -> int:
    """Write or read `count` requests, and return the number of results."""
    with batch_model(folder, flags) as model:
        return sum(1 for _ in model.generate(MadeRequests(count), Sampling()))


def handle_cells(folder: Path, flags: BatchFlags, count: int) -> int:
    """Write or read a grid of `count` cells in a run, and return the number of cells that have a result."""
    prompt_format = PromptFormat(lambda question: question.text, "you_are", empty_system_prompt=False)
    n_questions = min(count, QUESTIONS_OF_A_PERSONA)
    cells: list[Cell] = build_grid(personas(count // n_questions), questions(n_questions), prompt_format, samples=1, seed=0)
    out = folder / "run"
    with RunDir.open(out, StabilityConfig(out=out), {"model": "served"}) as run, batch_model(folder, flags) as model:
        return len(cells) - run_cells(model, cells, Sampling(), run, None, "cells")


def answer_requests(batch: Path) -> None:
    """Write a file of results for every file of requests."""
    body: dict[str, object] = {"choices": [{"message": {"role": "assistant", "content": ANSWER}, "finish_reason": "stop"}]}
    body |= {"usage": {"prompt_tokens": 60, "completion_tokens": 50}}
    response = json.dumps({"status_code": 200, "request_id": "batch-1", "body": body})
    custom_id = re.compile('"custom_id": "([^"]+)"')
    for path in batch.glob("requests-*.jsonl"):
        with path.open() as requests, (batch / path.name.replace("requests", "results")).open("w") as results:
            for line in requests:
                match = custom_id.search(line)
                assert match is not None
                results.write(f'{{"id": "x", "custom_id": "{match[1]}", "response": {response}, "error": null}}\n')


def in_own_process(work: Callable[[], int], expected: int) -> dict[str, float]:
    """Do the work in a forked process, and return its CPU seconds and its peak memory in MB.

    Raises SystemExit if the work fails or does not return `expected`.
    """
    child = os.fork()
    if child == 0:
        os._exit(0 if work() == expected else 1)
    _, status, usage = os.wait4(child, 0)
    if status:
        raise SystemExit(f"the work ended with status {status}")
    return {"cpu_s": usage.ru_utime + usage.ru_stime, "peak_mb": usage.ru_maxrss / 1024}


def measure(name: str, handle: Callable[[Path, BatchFlags, int], int], count: int) -> None:
    """Print the figures of one kind of work."""
    with tempfile.TemporaryDirectory() as scratch:
        folder, batch = Path(scratch), Path(scratch) / "batch"
        started = time.monotonic()
        show_usage(f"{name}_write", in_own_process(partial(handle, folder, BatchFlags(batch_out=batch), count), 0), count)
        show(f"{name}_bytes_of_a_request", sum(path.stat().st_size for path in batch.glob("requests-*")) / count, lines=count)
        answer_requests(batch)
        show_usage(f"{name}_read", in_own_process(partial(handle, folder, BatchFlags(batch_in=batch), count), count), count)
        show(f"{name}_wall_s", time.monotonic() - started, lines=count)


def show_usage(name: str, usage: dict[str, float], count: int) -> None:
    show(f"{name}_cpu_us", usage["cpu_s"] / count * 1e6, lines=count, cpu_s=round(usage["cpu_s"], 1))
    show(f"{name}_peak_mb", usage["peak_mb"], lines=count)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--lines", type=int, default=100_000, help="number of requests: a multiple of 5000, or fewer than 5000")
    parser.add_argument(
        "--work", choices=["lines", "cells"], nargs="+", default=["lines", "cells"], help="the kinds of work to measure"
    )
    return parser


def main() -> None:
    options = parser().parse_args()
    show("imports_mb", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
        for name in options.work:
            measure(name, {"lines": handle_lines, "cells": handle_cells}[name], options.lines)


if __name__ == "__main__":
    main()
