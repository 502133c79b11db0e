"""CPU seconds, wall seconds and peak memory of a run by one worker, by several at once, and by batch files.

    python -m bench.shards --personas 19 --questions 5000 --workers 2

The grid and its answers are the same in all cases, and an answer takes almost no time to compute. Each worker is a process of its
own that asks its part by `permix.evaluate_stability(..., shard=(i, n))`. With batch files, one process writes the requests and
another reads the results, in another order and in other files; the time to answer the files is not counted.

The benchmark fails unless the workers' records, as a set, and metrics.json equal those of one worker, and unless the answers,
their scores and the measures of the batch files do. One JSON line a figure.
"""

import argparse
import hashlib
import json
import multiprocessing
import random
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from bench.figures import show
from permix import IncompleteRunError, evaluate_stability
from permix.storage.cells import read_run_cells
from permix.storage.files import read_json, write_json
from permix.types import CellKey, Message


def answer(messages: list[Message]) -> str:
    """Return a sum that is wrong in about a third of the cells; it depends on the prompt alone."""
    text = "".join(message["content"] for message in messages)
    numbers = [int(word) for word in messages[-1]["content"].split() if word.isdigit()]
    return f"It is {sum(numbers) + (hashlib.sha256(text.encode()).digest()[0] % 3 == 0)}."


def run_worker(folder: str, personas: int, questions: int, shard: tuple[int, int] | None) -> None:
    """Ask one worker's part of the grid, or the whole grid if `shard` is None, and write the used resources."""
    options: dict[str, Any] = {} if shard is None else {"shard": shard}
    evaluate_stability(answer, name="adder", out=folder, **grid(personas, questions), **options)
    write_usage(Path(folder).parent / f"used-{shard[0] if shard else 0}.json")


def run_with_files(folder: str, personas: int, questions: int, files: dict[str, Any]) -> None:
    """Write the requests to batch files, or read their results; then write the used resources."""
    with suppress(IncompleteRunError):  # the run is incomplete until the results are read
        evaluate_stability("adder", out=folder, **grid(personas, questions), **files)
    write_usage(Path(folder).parent / f"used-{next(iter(files))}.json")


def grid(personas: int, questions: int) -> dict[str, Any]:
    """Return the arguments of `evaluate_stability` that define the grid."""
    sums = [{"question": f"Add {number} to 5 .", "answer": number + 5} for number in range(questions)]
    descriptions = [f"person number {number}, who has a name" for number in range(personas)]
    return {"task": sums, "answer": "number", "personas": descriptions}


def write_usage(path: Path) -> None:
    """Write the CPU seconds and the peak memory in MB of this process."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    write_json(path, {"cpu_s": usage.ru_utime + usage.ru_stime, "peak_mb": usage.ru_maxrss / 1024})


def run_workers(folder: Path, personas: int, questions: int, shards: Sequence[tuple[int, int] | None]) -> list[dict[str, Any]]:
    """Run one process for each shard at the same time, and return the CPU seconds and the peak memory of each."""
    run_processes(run_worker, [(str(folder), personas, questions, shard) for shard in shards])
    return [read_json(folder.parent / f"used-{shard[0] if shard else 0}.json") for shard in shards]


def run_processes(target: Callable[..., None], arguments: Sequence[tuple[Any, ...]]) -> None:
    """Run a process for each tuple of arguments at the same time. Raises SystemExit if one fails."""
    context = multiprocessing.get_context("forkserver")
    processes = [context.Process(target=target, args=args) for args in arguments]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        raise SystemExit(f"workers ended with {[process.exitcode for process in processes]}")


def run_files(folder: Path, personas: int, questions: int, seed: int = 0) -> list[dict[str, Any]]:
    """Run the grid by batch files, and return the CPU seconds and the peak memory of writing and of reading.

    The results are shuffled and written to files of another number.
    """
    batch = folder.parent / "batch"
    run_processes(run_with_files, [(str(folder), personas, questions, {"batch_out": str(batch), "batch_files": 4})])
    lines = []
    for path in sorted(batch.glob("requests-*.jsonl")):
        with path.open(encoding="utf-8") as requests:
            lines += [answer_line(json.loads(line)) for line in requests]
    random.Random(seed).shuffle(lines)
    for number in range(3):
        (batch / f"results-{number}.jsonl").write_text("".join(lines[number::3]), encoding="utf-8")
    run_processes(run_with_files, [(str(folder), personas, questions, {"batch_in": str(batch)})])
    return [read_json(folder.parent / f"used-{name}.json") for name in ("batch_out", "batch_in")]


def answer_line(request: dict[str, Any]) -> str:
    """Return the line of results that answers a line of requests."""
    body = {"choices": [{"message": {"content": answer(request["body"]["messages"])}, "finish_reason": "stop"}]}
    return json.dumps({"custom_id": request["custom_id"], "response": {"status_code": 200, "body": body}, "error": None}) + "\n"


def scored_answers(run: Path) -> dict[CellKey, tuple[str, bool | None]]:
    """Return the text of each answer, and whether it is right."""
    answers = {}
    for key, cell in read_run_cells(run).items():
        assert cell.completion is not None
        assert cell.verdict is not None
        answers[key] = cell.completion.text, cell.verdict.correct
    return answers


def record_hashes(run: Path) -> set[bytes]:
    """Return the hash of each record of a run."""
    cells = read_run_cells(run)
    return {hashlib.sha256(cells.read_line(summary)).digest() for summary in cells.summaries.values()}


def measures(run: Path) -> dict[str, Any]:
    """Return metrics.json without the counts of cut-off answers, which are known for batch files but not for a function."""
    return {name: value for name, value in read_json(run / "metrics.json").items() if name != "cut_off"}


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.shards", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--personas", type=int, default=19, help="personas of the grid")
    parser.add_argument("--questions", type=int, default=5000, help="questions of the grid")
    parser.add_argument("--workers", type=int, default=2, help="workers that run at the same time")
    return parser


def main() -> None:
    options = parser().parse_args()
    settings = {"cells": (options.personas + 1) * options.questions}
    with tempfile.TemporaryDirectory() as scratch:
        one_worker, several_workers, batch_files = (Path(scratch) / name / "run" for name in ("one", "shared", "files"))
        for run, workers in ((one_worker, 1), (several_workers, options.workers)):
            measure_workers(run, workers, options, settings)
        started_cpu = time.process_time()
        cells = read_run_cells(several_workers)
        show("read_cpu_s", time.process_time() - started_cpu, files=len(cells.paths) - 1, **settings)
        same = (
            record_hashes(one_worker) == record_hashes(several_workers),
            read_json(one_worker / "metrics.json") == read_json(several_workers / "metrics.json"),
        )
        if same != (True, True) or len(cells) != settings["cells"]:
            raise SystemExit(f"of {options.workers} workers: records, metrics as of one: {same}; {len(cells)} cells")
        batch_files.parent.mkdir()
        for part, usage in zip(("write", "read"), run_files(batch_files, options.personas, options.questions), strict=True):
            show("cpu_s", usage["cpu_s"], batch_files=part, **settings)
            show("peak_mb", usage["peak_mb"], batch_files=part, **settings)
        same = scored_answers(one_worker) == scored_answers(batch_files), measures(one_worker) == measures(batch_files)
        if same != (True, True):
            raise SystemExit(f"of batch files: answers, metrics as of one worker: {same}")


def measure_workers(run: Path, workers: int, options: argparse.Namespace, settings: dict[str, int]) -> None:
    """Run the grid by this number of workers, and print the figures. A single worker asks the whole grid without a shard."""
    run.parent.mkdir()
    started = time.monotonic()
    shards = [None] if workers == 1 else [(number, workers) for number in range(1, workers + 1)]
    usage = run_workers(run, options.personas, options.questions, shards)
    show("wall_s", time.monotonic() - started, workers=workers, **settings)
    show("cpu_s", sum(worker["cpu_s"] for worker in usage), workers=workers, **settings)
    show("peak_mb", max(worker["peak_mb"] for worker in usage), workers=workers, **settings)


if __name__ == "__main__":
    main()
