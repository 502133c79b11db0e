"""CPU seconds, wall seconds and peak memory to measure and to report a run of very many cells. One JSON line a figure.

    python -m bench.many_cells --personas 199 --questions 5000

A run with made-up answers, about 800 bytes a record, is written to a temporary folder. Then one process of its own computes its
measures, and another one writes its report, as `permix report` does.
"""

import argparse
import json
import os
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench.figures import show
from permix.config import ReportConfig, StabilityConfig
from permix.evals.grid import PromptFormat, build_grid, describe_grid
from permix.evals.stability import measure_stability
from permix.report.builder import run_report
from permix.storage.files import write_json
from permix.storage.run_dir import RunDir
from permix.types import Cell, Completion, Persona, Question, Verdict

THOUGHT = "Let me think about this step by step. " * 8


def personas(count: int) -> list[Persona]:
    """Return made-up personas."""
    return [Persona(id=f"persona-{p}", text=f"person number {p}, who has a name") for p in range(count)]


def questions(count: int) -> list[Question]:
    """Return made-up questions, all with the gold 72."""
    text = "Question {}: how many clips are left when Natalia has sold some to 48 friends? End with the number in \\boxed{{}}."
    return [Question(id=f"made:{q:06d}", task="gsm8k", text=text.format(q), gold="72") for q in range(count)]


def answer_cells(cells: list[Cell], correct_N: NDArray[np.bool_]) -> Iterator[Cell]:
    """Yield each cell with a completion and a verdict."""
    for cell, correct in zip(cells, correct_N, strict=True):
        text = THOUGHT + ("72" if correct else "71")
        yield cell.model_copy(
            update={
                "completion": Completion(text=text, prompt_tokens=80, completion_tokens=60, finish="stop"),
                "verdict": Verdict(correct=bool(correct), extracted=text[-2:]),
            }
        )


def write_run(out: Path, personas: list[Persona], questions: list[Question], samples: int) -> int:
    """Write a run, and return the number of its cells. Questions and personas shift the logit of a right answer."""
    rng = np.random.default_rng(0)
    difficulty_Q, written = rng.normal(0, 1.5, len(questions)), 0
    prompt_format = PromptFormat(lambda question: question.text, "you_are", empty_system_prompt=False)
    with RunDir.open(out, StabilityConfig(out=out, samples=samples), {"model": "made up"}) as run:
        write_json(out / "grid.json", describe_grid(personas, questions, samples))
        for persona in (None, *personas):  # one persona at a time, so that a million cells are never in memory at once
            cells = build_grid([persona], questions, prompt_format, samples=samples, seed=0)
            chance_N = 1 / (1 + np.exp(-np.repeat(difficulty_Q, samples) - rng.normal(0, 0.3)))
            run.append(answer_cells(cells, rng.random(len(cells)) < chance_N))
            written += len(cells)
    return written


def in_own_process(work: str, run: Path, out: Path) -> dict[str, float]:
    """Measure or report the run in a forked process; return its CPU and wall seconds and its peak memory in MB.

    Raises SystemExit if the process fails.
    """
    started, child = time.monotonic(), os.fork()
    if child == 0:
        if work == "summarize":
            measure_stability(run)
        else:
            run_report(ReportConfig(runs=(run,), out=out))
        usage = resource.getrusage(resource.RUSAGE_SELF)
        write_json(out / f"{work}.json", {"cpu_s": usage.ru_utime + usage.ru_stime, "peak_mb": usage.ru_maxrss / 1024})
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if status:
        raise SystemExit(f"{work} ended with status {status}")
    return {**json.loads((out / f"{work}.json").read_text()), "wall_s": time.monotonic() - started}


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.many_cells", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--personas", type=int, default=199)
    parser.add_argument("--questions", type=int, default=5000)
    parser.add_argument("--samples", type=int, default=1)
    return parser


def main() -> None:
    options = parser().parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        run, out = Path(scratch) / "run", Path(scratch) / "report"
        out.mkdir()
        cells = write_run(run, personas(options.personas), questions(options.questions), options.samples)
        for work in ("summarize", "report"):
            for figure, value in in_own_process(work, run, out).items():
                show(f"{work}_{figure}", value, cells=cells, **vars(options))


if __name__ == "__main__":
    main()
