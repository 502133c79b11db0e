"""What sharing a run costs: one worker, several at once, and batch files, on the same grid of answers that cost nothing to make.

Every worker is a process of its own that asks its part by `permix.evaluate_stability(..., shard=(i, n))`. The records of the
workers must be those of one, as sets, and so must metrics.json. With batch files one process writes the requests and another
reads the results, which come in another order; there the answers, their scores and the measures must be those of one worker. If
not, the benchmark fails. What answers the files is not counted. One JSON line a figure.

    python -m bench.shards --personas 19 --questions 5000 --workers 2
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
    """A sum, wrong in a third of the cells, which depends on the prompt alone."""
    text = "".join(message["content"] for message in messages)
    numbers = [int(word) for word in messages[-1]["content"].split() if word.isdigit()]
    return f"It is {sum(numbers) + (hashlib.sha256(text.encode()).digest()[0] % 3 == 0)}."


def work(folder: str, personas: int, questions: int, shard: tuple[int, int] | None) -> None:
    """Ask one worker's part, or the whole grid."""
    options: dict[str, Any] = {} if shard is None else {"shard": shard}
    evaluate_stability(answer, name="adder", out=folder, **grid(personas, questions), **options)
    write_used(Path(folder).parent / f"used-{shard[0] if shard else 0}.json")


def work_with_files(folder: str, personas: int, questions: int, files: dict[str, Any]) -> None:
    """Write the requests to batch files, or read their results."""
    with suppress(IncompleteRunError):  # as long as the results have not been read
        evaluate_stability("adder", out=folder, **grid(personas, questions), **files)
    write_used(Path(folder).parent / f"used-{next(iter(files))}.json")


def grid(personas: int, questions: int) -> dict[str, Any]:
    sums = [{"question": f"Add {number} to 5 .", "answer": number + 5} for number in range(questions)]
    people = [f"person number {number}, who has a name" for number in range(personas)]
    return {"task": sums, "answer": "number", "personas": people}


def write_used(path: Path) -> None:
    used = resource.getrusage(resource.RUSAGE_SELF)
    write_json(path, {"cpu_s": used.ru_utime + used.ru_stime, "peak_mb": used.ru_maxrss / 1024})


def run_workers(folder: Path, personas: int, questions: int, shards: Sequence[tuple[int, int] | None]) -> list[dict[str, Any]]:
    """CPU seconds and peak memory of each worker."""
    run_processes(work, [(str(folder), personas, questions, shard) for shard in shards])
    return [read_json(folder.parent / f"used-{shard[0] if shard else 0}.json") for shard in shards]


def run_processes(target: Callable[..., None], arguments: Sequence[tuple[Any, ...]]) -> None:
    context = multiprocessing.get_context("forkserver")
    processes = [context.Process(target=target, args=args) for args in arguments]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        raise SystemExit(f"workers ended with {[process.exitcode for process in processes]}")


def run_files(folder: Path, personas: int, questions: int, seed: int = 0) -> list[dict[str, Any]]:
    """CPU seconds and peak memory of writing batch files, and of reading results in another order and other files."""
    batch = folder.parent / "batch"
    run_processes(work_with_files, [(str(folder), personas, questions, {"batch_out": str(batch), "batch_files": 4})])
    lines = []
    for path in sorted(batch.glob("requests-*.jsonl")):
        with path.open(encoding="utf-8") as requests:
            lines += [answer_line(json.loads(line)) for line in requests]
    random.Random(seed).shuffle(lines)
    for number in range(3):
        (batch / f"results-{number}.jsonl").write_text("".join(lines[number::3]), encoding="utf-8")
    run_processes(work_with_files, [(str(folder), personas, questions, {"batch_in": str(batch)})])
    return [read_json(folder.parent / f"used-{name}.json") for name in ("batch_out", "batch_in")]


def answer_line(request: dict[str, Any]) -> str:
    reply = {"choices": [{"message": {"content": answer(request["body"]["messages"])}, "finish_reason": "stop"}]}
    return json.dumps({"custom_id": request["custom_id"], "response": {"status_code": 200, "body": reply}, "error": None}) + "\n"


def scored_answers(run: Path) -> dict[CellKey, tuple[str, bool | None]]:
    """The text of each answer, and whether it is right."""
    found = {}
    for key, cell in read_run_cells(run).items():
        assert cell.completion is not None
        assert cell.verdict is not None
        found[key] = cell.completion.text, cell.verdict.correct
    return found


def record_hashes(run: Path) -> set[bytes]:
    cells = read_run_cells(run)
    return {hashlib.sha256(cells.read_line(one)).digest() for one in cells.summaries.values()}


def measures(run: Path) -> dict[str, Any]:
    """metrics.json without the counts of cut-off answers: a function does not say how its answer ended, a file does."""
    return {name: value for name, value in read_json(run / "metrics.json").items() if name != "cut_off"}


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
        in_files = Path(scratch) / "files" / "run"
        in_files.parent.mkdir()
        for part, used_by in zip(("write", "read"), run_files(in_files, options.personas, options.questions), strict=True):
            show("cpu_s", used_by["cpu_s"], batch_files=part, **about)
            show("peak_mb", used_by["peak_mb"], batch_files=part, **about)
        same = scored_answers(one) == scored_answers(in_files), measures(one) == measures(in_files)
        if same != (True, True):
            raise SystemExit(f"of batch files: answers, metrics as of one worker: {same}")


if __name__ == "__main__":
    main()
