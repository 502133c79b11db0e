"""How often the 95 % intervals of `permix.evals.stats` hold the true value, by simulation: the table of docs/measures.md.

Grids are drawn with known truth: question difficulty is normal on the logit scale (sd 1.5), a persona shifts the logit. One JSON
line a setting. Some minutes in all; run by hand: python bench/coverage.py [PERSONAS QUESTIONS SHIFT].
"""

import json
import sys
from collections.abc import Callable

import numpy as np
from scipy.special import expit

from permix.evals import stats
from permix.evals.stats import Array

SETTINGS = [(16, 400, 0.0), (16, 400, 0.2), (16, 400, 0.6), (16, 60, 0.2), (16, 60, 0.6), (4, 60, 0.2), (4, 60, 0.6)]
DIFFICULTY_SD, DATA_SETS, DRAWS, SPLITS = 1.5, 300, 400, 20


def main() -> None:
    settings = [(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))] if len(sys.argv) > 1 else SETTINGS
    for personas, questions, shift_sd in settings:
        print(json.dumps(simulate(personas, questions, shift_sd)), flush=True)


def simulate(personas: int, questions: int, shift_sd: float) -> dict[str, object]:
    """Coverage and mean of each measure over `DATA_SETS` grids of one setting."""
    rng = np.random.default_rng(7)
    shift_P = rng.normal(size=personas)
    shift_P = shift_sd * (shift_P - shift_P.mean()) / shift_P.std()
    many_Q = rng.normal(0, DIFFICULTY_SD, 200_000)
    truth = of_accuracies(np.array([expit(many_Q + shift).mean() for shift in shift_P]))
    held: dict[str, list[bool]] = {name: [] for name in (*truth, "pss, plain percentiles")}
    found: dict[str, list[float]] = {name: [] for name in truth}
    for _ in range(DATA_SETS):
        easy_Q = rng.normal(0, DIFFICULTY_SD, questions)
        right_P_Q = (rng.random((personas, questions)) < expit(easy_Q + shift_P[:, None])).astype(float)
        splits = stats.half_splits(questions, SPLITS, rng)
        for name, drawn in stats.bootstrap(measures_of(right_P_Q, splits), questions, rng, DRAWS, 100).items():
            one = stats.estimate(float(drawn.value), drawn.replicates, questions)
            assert one.value is not None
            assert one.low is not None
            assert one.high is not None
            held[name].append(one.low - 1e-9 <= truth[name] <= one.high + 1e-9)
            found[name].append(one.value)
            if name == "pss":
                low, high = np.quantile(drawn.replicates, [0.025, 0.975])
                held["pss, plain percentiles"].append(bool(low <= truth[name] <= high))
    return {
        "personas": personas,
        "questions": questions,
        "true": {name: round(value, 3) for name, value in truth.items()},
        "mean": {name: round(float(np.mean(values)), 3) for name, values in found.items()},
        "held": {name: round(float(np.mean(hits)), 3) for name, hits in held.items()},
    }


def of_accuracies(accuracy_P: Array) -> dict[str, float]:
    """The true value of each measure."""
    worst, best = float(accuracy_P.min()), float(accuracy_P.max())
    sd, mean = float(accuracy_P.std(ddof=1)), float(accuracy_P.mean())
    return {
        "pss": worst / best,
        "worst": worst,
        "spread": best - worst,
        "persona_sd": sd,
        "pss_crossfit": worst / best,
        "mean": mean,
    }


def measures_of(right_P_Q: Array, splits: Array) -> Callable[[Array], dict[str, Array]]:
    def measures(counts_R_Q: Array) -> dict[str, Array]:
        accuracy_R_P = stats.question_mean(right_P_Q, counts_R_Q)
        worst, best = accuracy_R_P.min(axis=1), accuracy_R_P.max(axis=1)
        return {
            "pss": stats.pss(accuracy_R_P),
            "worst": worst,
            "spread": best - worst,
            "persona_sd": stats.persona_sd(right_P_Q, counts_R_Q),
            "pss_crossfit": stats.pss_crossfit(right_P_Q, splits, counts_R_Q),
            "mean": accuracy_R_P.mean(axis=1),
        }

    return measures


if __name__ == "__main__":
    main()
