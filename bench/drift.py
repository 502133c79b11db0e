"""How often the 95 % interval of a slope over turns of an interview contains the true slope: by simulation.

Interviews with a known slope are drawn and measured by `permix.evals.drift_report.compute_turn_series`. Each persona has a level
and a slope (mean 0.05, sd 0.03), and each question a level (sd 1, as large as the noise of an answer). In the order "balanced"
the personas are asked in different orders, in "written" all in the same one. Printed is one JSON line a setting: the coverage,
the bias of the estimates, and `spread`, their standard deviation.

    python -m bench.drift --data-sets 400
"""

import argparse
import json
from typing import NamedTuple

import numpy as np

from permix.evals.drift_report import compute_turn_series
from permix.evals.interview import williams_design

SLOPE, SLOPE_SD, QUESTION_SD, NOISE_SD = 0.05, 0.03, 1.0, 1.0


class Setting(NamedTuple):
    """A kind of interview. The first of its `turns` is the same for all personas; `missing` is the share of missing answers."""

    personas: int
    turns: int
    order: str
    missing: float = 0.0


SETTINGS = (
    Setting(6, 8, "balanced"), Setting(9, 8, "balanced"), Setting(9, 16, "balanced"), Setting(9, 16, "balanced", missing=0.1),
    Setting(20, 8, "balanced"), Setting(50, 16, "balanced"), Setting(9, 8, "written"), Setting(50, 16, "written"),
)  # fmt: skip


def simulate(setting: Setting, data_sets: int, resamples: int) -> dict[str, float | int | str]:
    """Return the line of a setting."""
    P, turns, order, missing = setting
    rng, rows = np.random.default_rng(0), williams_design(turns - 1)
    order_P_I = np.array(
        [[0, *(1 + question for question in rows[p % len(rows) if order == "balanced" else 0])] for p in range(P)]
    )
    known_P_I = order_P_I if order == "balanced" else np.zeros_like(order_P_I)
    n_covered, values = 0, list[float]()
    for _ in range(data_sets):
        slope_P_1 = SLOPE + rng.normal(0, SLOPE_SD, (P, 1))
        level_P_I = rng.normal(0, 0.5, (P, 1)) + rng.normal(0, QUESTION_SD, turns)[order_P_I]
        value_P_I = level_P_I + slope_P_1 * np.arange(turns) + rng.normal(0, NOISE_SD, (P, turns))
        value_P_I[rng.random((P, turns)) < missing] = np.nan
        slope = compute_turn_series("words", value_P_I, known_P_I, 2, seed=0, resamples=resamples).slope
        n_covered += slope.low is not None and slope.high is not None and slope.low <= SLOPE <= slope.high
        values.append(np.nan if slope.value is None else slope.value)
    measured = {"coverage": round(n_covered / data_sets, 3), "bias": round(float(np.nanmean(values)) - SLOPE, 4)}
    return setting._asdict() | measured | {"spread": round(float(np.nanstd(values)), 4), "data_sets": data_sets}


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-sets", type=int, default=400, help="simulated data sets of each setting")
    parser.add_argument("--resamples", type=int, default=400, help="bootstrap resamples of each data set")
    return parser


def main() -> None:
    options = parser().parse_args()
    for setting in SETTINGS:
        print(json.dumps(simulate(setting, options.data_sets, options.resamples)), flush=True)


if __name__ == "__main__":
    main()
