"""How many questions a comparison of two models needs to detect a difference in persona stability, by simulation.

Two models answer the same questions under the same personas. The PSS of the first is lower than that of the second by a known
factor. Question difficulty is normal on the logit scale (sd 1.5). Each cell has a shift of its own (sd .5, correlation .5
between the models). The test is the swap test of `permix.metrics.model_comparison` on the measure as observed, at level .05,
two-sided.

Printed is one JSON line for each comparison and number of questions: the share of pairs in which the test of each measure
rejects, with its exact 95 % interval. A last line for each comparison has the number of questions at which each measure reaches a
power of .8, interpolated linearly in the logarithm of the number of questions.

    python -m bench.power > power.jsonl
"""

import argparse
import json
import math
from typing import NamedTuple

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit
from scipy.stats import binomtest

from bench.calibration import DIFFICULTY_SD, MANY_Q
from permix.metrics.measures import STABILITY_MEASURES
from permix.metrics.stability import resample_scores
from permix.metrics.statistics import Array, permutation_p

MEASURES = [STABILITY_MEASURES[name] for name in ("pss", "persona_sd", "relative_persona_sd")]
INTERACTION_SD, CORRELATION, LEVEL, POWER = 0.5, 0.5, 0.05, 0.8
SIZES = (100, 200, 400, 800)


class Comparison(NamedTuple):
    """Two models: the shape of the personas' effects, the number of personas, and each model's true PSS and mean accuracy."""

    effect: str
    personas: int
    pss: float
    other_pss: float
    accuracy: float = 0.6
    other_accuracy: float = 0.6


COMPARISONS = (
    Comparison("graded", 16, 0.75, 0.75),
    Comparison("graded", 16, 0.75, 0.75, other_accuracy=0.75),
    Comparison("graded", 16, 0.6, 0.72),
    Comparison("graded", 16, 0.75, 0.9),
    Comparison("graded", 8, 0.75, 0.9),
    Comparison("one bad", 16, 0.75, 0.9),
)


def logits(shape_P: Array, pss: float, accuracy: float) -> Array:
    """Return `logit_P` of a question of mean difficulty, with effects of this shape, this PSS and this mean accuracy."""
    spread_Q = MANY_Q * math.hypot(DIFFICULTY_SD, INTERACTION_SD) / DIFFICULTY_SD

    def accuracies(size: float) -> tuple[Array, Array]:
        def excess(intercept: float) -> float:
            return float(expit(intercept + size * shape_P[:, None] + spread_Q).mean()) - accuracy

        logit_P = brentq(excess, -10, 10) + size * shape_P
        return logit_P, expit(logit_P[:, None] + spread_Q).mean(axis=1)

    size = brentq(lambda size: float(np.divide(*accuracies(size)[1][[shape_P.argmin(), shape_P.argmax()]])) - pss, 1e-6, 10)
    return accuracies(size)[0]


def draw_pair(logit_2_P: Array, questions: int, rng: np.random.Generator) -> list[Array]:
    """Draw the scores `correct_P_Q` of two models on the same questions."""
    difficulty_Q = rng.normal(0, DIFFICULTY_SD, questions)
    shared_P_Q, *own_2_P_Q = rng.normal(0, INTERACTION_SD, (3, logit_2_P.shape[1], questions))
    return [
        (rng.random(own_P_Q.shape) < expit(
            logit_P[:, None] + difficulty_Q + math.sqrt(CORRELATION) * shared_P_Q + math.sqrt(1 - CORRELATION) * own_P_Q
        )).astype(float)
        for logit_P, own_P_Q in zip(logit_2_P, own_2_P_Q, strict=True)
    ]  # fmt: skip


def rejections(logit_2_P: Array, questions: int, swaps: int, rng: np.random.Generator) -> dict[str, bool]:
    """Draw one pair of models, and return for each measure whether the swap test rejects."""
    both_P_2Q = np.concatenate(draw_pair(logit_2_P, questions, rng), axis=1)
    no_baseline_2Q = np.full(2 * questions, np.nan)
    # Row 0 swaps nothing. Weights of 0 and 1 choose the columns of a swapped grid from the grids of both models.
    swap_R_Q = np.concatenate([np.zeros((1, questions)), rng.integers(0, 2, (swaps, questions))])
    first, second = (
        resample_scores(both_P_2Q, no_baseline_2Q, np.concatenate(weights, axis=1))
        for weights in ([1 - swap_R_Q, swap_R_Q], [swap_R_Q, 1 - swap_R_Q])
    )
    difference_R = {measure.name: measure.of_resamples(second) - measure.of_resamples(first) for measure in MEASURES}
    return {name: permutation_p(abs(value_R[0]), np.abs(value_R[1:])) < LEVEL for name, value_R in difference_R.items()}


def questions_for_power(power_by_size: dict[int, float]) -> int | None:
    """Return the number of questions at which the power reaches `POWER`; None if it does not at any size."""
    reached = [size for size, power in power_by_size.items() if power >= POWER]
    if not reached:
        return None
    above = min(reached)
    if (below := max((size for size in power_by_size if size < above), default=None)) is None:
        return above
    share = (POWER - power_by_size[below]) / (power_by_size[above] - power_by_size[below])
    return round(math.exp(math.log(below) + share * (math.log(above) - math.log(below))))


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=400, help="pairs of models for each comparison and number of questions")
    parser.add_argument("--swaps", type=int, default=200, help="random swaps of each test")
    parser.add_argument("--seed", type=int, default=7)
    return parser


def main() -> None:
    options = parser().parse_args()
    for comparison in COMPARISONS:
        rng = np.random.default_rng(options.seed)
        shape_P = rng.normal(size=comparison.personas) if comparison.effect == "graded" else -np.eye(comparison.personas)[0]
        targets = (comparison.pss, comparison.accuracy), (comparison.other_pss, comparison.other_accuracy)
        logit_2_P = np.stack([logits(shape_P, pss, accuracy) for pss, accuracy in targets])
        power: dict[str, dict[int, float]] = {measure.name: {} for measure in MEASURES}
        for questions in SIZES:
            outcomes = [rejections(logit_2_P, questions, options.swaps, rng) for _ in range(options.pairs)]
            line = comparison._asdict() | {"questions": questions, "pairs": options.pairs, "seed": options.seed, "rejected": {}}
            for name, by_size in power.items():
                rejected = sum(outcome[name] for outcome in outcomes)
                by_size[questions] = rejected / options.pairs
                interval = binomtest(rejected, options.pairs).proportion_ci()
                line["rejected"][name] = [round(value, 3) for value in (by_size[questions], interval.low, interval.high)]
            print(json.dumps(line), flush=True)
        needed = {name: questions_for_power(by_size) for name, by_size in power.items()}
        print(json.dumps(comparison._asdict() | {"questions for power .8": needed}), flush=True)


if __name__ == "__main__":
    main()
