"""CPU seconds of the statistics of a large run: a summary of one model, and a comparison of two. One JSON line a figure.

    python -m bench.bench_statistics [--personas 64] [--questions 1000] [--resamples 2000]

The scores of two models are drawn at random; questions differ in difficulty, and personas a little in accuracy. numpy has one
thread.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np

from bench.figures import show
from permix.metrics.model_comparison import compare_scores
from permix.metrics.stability import summarize_stability
from permix.metrics.statistics import Array


def draw_scores(personas: int, questions: int, shift: float, seed: int) -> tuple[Array, Array]:
    """Draw `correct_P_Q_S` and `baseline_Q_S` of a model; `shift` is added to the log odds of a right answer to each question."""
    odds_Q = np.random.default_rng(0).normal(0, 1.5, questions) + shift
    rng = np.random.default_rng(seed)
    chance_P_Q = 1 / (1 + np.exp(-(odds_Q + rng.normal(0, 0.3, (personas, 1)))))
    chance_Q = 1 / (1 + np.exp(-odds_Q))
    correct_P_Q_S = rng.random((personas, questions, 1)) < chance_P_Q[..., None]
    return correct_P_Q_S.astype(np.float64), (rng.random((questions, 1)) < chance_Q[:, None]).astype(np.float64)


def cpu_seconds(work: Callable[[], Any]) -> float:
    """Return the CPU seconds that a call needs."""
    started = time.process_time()
    work()
    return time.process_time() - started


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--personas", type=int, default=64)
    parser.add_argument("--questions", type=int, default=1000)
    parser.add_argument("--resamples", type=int, default=2000, help="bootstrap resamples")
    return parser


def main() -> None:
    options = parser().parse_args()
    settings = {"personas": options.personas, "questions": options.questions, "resamples": options.resamples}
    first, first_baseline = draw_scores(options.personas, options.questions, shift=0.0, seed=1)
    other, other_baseline = draw_scores(options.personas, options.questions, shift=0.3, seed=2)
    summarize_stability(first[:2, :20], first_baseline[:20], resamples=20)  # warm up: imports and first calls
    show(
        "summarize_cpu_s",
        cpu_seconds(lambda: summarize_stability(first, first_baseline, resamples=options.resamples)),
        **settings,
    )
    compare = lambda: compare_scores(first, other, first_baseline, other_baseline, seed=1, resamples=options.resamples)  # noqa: E731
    show("compare_cpu_s", cpu_seconds(compare), **settings)


if __name__ == "__main__":
    main()
