"""What it takes to measure and report a run of very many cells: CPU and wall seconds, and peak memory, one JSON line a figure.

A run of made-up answers, records of about 800 bytes, is written to a scratch folder; a process of its own then makes its report,
as `permix report` does, and is looked at when it ends.

    python -m bench.many_cells --personas 199 --questions 5000
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
    return [Persona(id=f"persona-{p}", text=f"person number {p}, who has a name") for p in range(count)]


def questions(count: int) -> list[Question]:
    text = "Question {}: how many clips are left when Natalia has sold some to 48 friends? End with the number in \\boxed{{}}."
    return [Question(id=f"made:{q:06d}", task="gsm8k", text=text.format(q), gold="72") for q in range(count)]


def answered(asked: list[Cell], right: NDArray[np.bool_]) -> Iterator[Cell]:
    for cell, correct in zip(asked, right, strict=True):
        text = THOUGHT + ("72" if correct else "71")
        yield cell.model_copy(
            update={
                "completion": Completion(text=text, prompt_tokens=80, completion_tokens=60, finish="stop"),
                "verdict": Verdict(correct=bool(correct), extracted=text[-2:]),
            }
        )


def write_run(out: Path, people: list[Persona], asked: list[Question], samples: int) -> int:
    """Personas and questions differ, each with a logit of its own; returns how many cells were written."""
    rng = np.random.default_rng(0)
    hard_Q, written = rng.normal(0, 1.5, len(asked)), 0
    wording = PromptFormat(lambda question: question.text, "you_are", empty_system_prompt=False)
    with RunDir.open(out, StabilityConfig(out=out, samples=samples), {"model": "made up"}) as run:
        write_json(out / "grid.json", describe_grid(people, asked, samples))
        for persona in (None, *people):  # one at a time: a million cells are not held in memory here either
            cells = build_grid([persona], asked, wording, samples=samples, seed=0)
            chance = 1 / (1 + np.exp(-np.repeat(hard_Q, samples) - rng.normal(0, 0.3)))
            run.append(answered(cells, rng.random(len(cells)) < chance))
            written += len(cells)
    return written


def in_a_child(work: str, run: Path, out: Path) -> dict[str, float]:
    """CPU and wall seconds of a process that measures, or reports, and its peak memory in MB."""
    started, child = time.monotonic(), os.fork()
    if child == 0:
        if work == "summarize":
            measure_stability(run)
        else:
            run_report(ReportConfig(runs=(run,), out=out))
        used = resource.getrusage(resource.RUSAGE_SELF)
        write_json(out / f"{work}.json", {"cpu_s": used.ru_utime + used.ru_stime, "peak_mb": used.ru_maxrss / 1024})
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if status:
        raise SystemExit(f"{work} ended with status {status}")
    return {**json.loads((out / f"{work}.json").read_text()), "wall_s": time.monotonic() - started}


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(prog="python -m bench.many_cells", description=(__doc__ or "").partition(":")[0])
    options.add_argument("--personas", type=int, default=199)
    options.add_argument("--questions", type=int, default=5000)
    options.add_argument("--samples", type=int, default=1)
    return options


def main() -> None:
    options = parser().parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        run, out = Path(scratch) / "run", Path(scratch) / "report"
        out.mkdir()
        cells = write_run(run, personas(options.personas), questions(options.questions), options.samples)
        for work in ("summarize", "report"):
            for figure, value in in_a_child(work, run, out).items():
                show(f"{work}_{figure}", value, cells=cells, **vars(options))


if __name__ == "__main__":
    main()
