"""What sharing a run costs: one worker, and then several at once on the same grid of answers that cost nothing to make.

Every worker is a process of its own that asks its part by `permix.evaluate_stability(..., shard=(i, n))`. The records of the
workers must be those of one, as sets, and so must metrics.json; otherwise the benchmark fails. One JSON line a figure.

    python -m bench.shards --personas 19 --questions 5000 --workers 2
"""

import argparse
import hashlib
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.figures import show
from permix import evaluate_stability
from permix.storage.cells import read_run_cells
from permix.storage.files import read_json, write_json
from permix.types import Message


def answer(messages: list[Message]) -> str:
    """A sum, wrong in a third of the cells, which depends on the prompt alone."""
    text = "".join(message["content"] for message in messages)
    numbers = [int(word) for word in messages[-1]["content"].split() if word.isdigit()]
    return f"It is {sum(numbers) + (hashlib.sha256(text.encode()).digest()[0] % 3 == 0)}."


def work(folder: str, personas: int, questions: int, shard: tuple[int, int] | None) -> None:
    sums = [{"question": f"Add {number} to 5 .", "answer": number + 5} for number in range(questions)]
    people = [f"person number {number}, who has a name" for number in range(personas)]
    options: dict[str, Any] = {} if shard is None else {"shard": shard}
    evaluate_stability(answer, name="adder", task=sums, answer="number", personas=people, out=folder, **options)
    used = resource.getrusage(resource.RUSAGE_SELF)
    name = f"used-{shard[0] if shard else 0}.json"
    write_json(Path(folder).parent / name, {"cpu_s": used.ru_utime + used.ru_stime, "peak_mb": used.ru_maxrss / 1024})


def run_workers(folder: Path, personas: int, questions: int, shards: Sequence[tuple[int, int] | None]) -> list[dict[str, Any]]:
    """CPU seconds and peak memory of each worker."""
    context = multiprocessing.get_context("forkserver")
    processes = [context.Process(target=work, args=(str(folder), personas, questions, shard)) for shard in shards]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        raise SystemExit(f"workers ended with {[process.exitcode for process in processes]}")
    return [read_json(folder.parent / f"used-{shard[0] if shard else 0}.json") for shard in shards]


def record_hashes(run: Path) -> set[bytes]:
    cells = read_run_cells(run)
    return {hashlib.sha256(cells.read_line(one)).digest() for one in cells.summaries.values()}


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(prog="python -m bench.shards", description=(__doc__ or "").partition(":")[0])
    options.add_argument("--personas", type=int, default=19)
    options.add_argument("--questions", type=int, default=5000)
    options.add_argument("--workers", type=int, default=2)
    return options


def main() -> None:
    options = parser().parse_args()
    about = {"cells": (options.personas + 1) * options.questions}
    with tempfile.TemporaryDirectory() as scratch:
        one, shared = Path(scratch) / "one" / "run", Path(scratch) / "shared" / "run"
        for run, total in ((one, 1), (shared, options.workers)):
            run.parent.mkdir()
            started = time.monotonic()
            shards = [None] if total == 1 else [(number, total) for number in range(1, total + 1)]
            used = run_workers(run, options.personas, options.questions, shards)
            show("wall_s", time.monotonic() - started, workers=total, **about)
            show("cpu_s", sum(worker["cpu_s"] for worker in used), workers=total, **about)
            show("peak_mb", max(worker["peak_mb"] for worker in used), workers=total, **about)
        started_cpu = time.process_time()
        cells = read_run_cells(shared)
        show("read_cpu_s", time.process_time() - started_cpu, files=len(cells.paths) - 1, **about)
        same = record_hashes(one) == record_hashes(shared), read_json(one / "metrics.json") == read_json(shared / "metrics.json")
        if same != (True, True) or len(cells) != about["cells"]:
            raise SystemExit(f"of {options.workers} workers: records, metrics as of one: {same}; {len(cells)} cells")


if __name__ == "__main__":
    main()
