"""CPU seconds of the statistics of a large run: a summary of one model, and a comparison of two. One JSON line a figure.

Answers of two models are drawn: questions of unlike difficulty, personas that differ a little. One thread.

    python -m bench.bench_statistics [--personas 64] [--questions 1000]
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
    """correct_P_Q_S and baseline_Q_S of a model whose log odds of a right answer are `shift` higher than the question's."""
    odds_Q = np.random.default_rng(0).normal(0, 1.5, questions) + shift
    rng = np.random.default_rng(seed)
    chance_P_Q = 1 / (1 + np.exp(-(odds_Q + rng.normal(0, 0.3, (personas, 1)))))
    chance_Q = 1 / (1 + np.exp(-odds_Q))
    correct_P_Q_S = rng.random((personas, questions, 1)) < chance_P_Q[..., None]
    return correct_P_Q_S.astype(np.float64), (rng.random((questions, 1)) < chance_Q[:, None]).astype(np.float64)


def cpu_seconds(work: Callable[[], Any]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(description=(__doc__ or "").partition(":")[0])
    options.add_argument("--personas", type=int, default=64)
    options.add_argument("--questions", type=int, default=1000)
    options.add_argument("--resamples", type=int, default=2000)
    return options


def main() -> None:
    given = parser().parse_args()
    about = {"personas": given.personas, "questions": given.questions, "resamples": given.resamples}
    (first, first_baseline), (other, other_baseline) = (
        draw_scores(given.personas, given.questions, *one) for one in ((0.0, 1), (0.3, 2))
    )
    summarize_stability(first[:2, :20], first_baseline[:20], resamples=20)  # imports and first calls
    show("summarize_cpu_s", cpu_seconds(lambda: summarize_stability(first, first_baseline, resamples=given.resamples)), **about)
    work = lambda: compare_scores(first, other, first_baseline, other_baseline, seed=1, resamples=given.resamples)  # noqa: E731
    show("compare_cpu_s", cpu_seconds(work), **about)


if __name__ == "__main__":
    main()
