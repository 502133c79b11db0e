"""How often the 95 % interval of a slope over turns holds the truth, by simulation.

Interviews with a known slope are drawn: a level a persona, a level a question (sd 1, as large as an answer's noise), a slope a
persona (mean 0.05, sd 0.03); `permix.evals.drift_report.compute_turn_series` measures them, asked in orders of their own
("balanced") and all in one ("written"). `spread` is what the estimate itself varies by. One JSON line a setting.

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
    personas: int
    turns: int
    order: str
    missing: float = 0.0


SETTINGS = (
    Setting(6, 8, "balanced"), Setting(9, 8, "balanced"), Setting(9, 16, "balanced"), Setting(9, 16, "balanced", missing=0.1),
    Setting(20, 8, "balanced"), Setting(50, 16, "balanced"), Setting(9, 8, "written"), Setting(50, 16, "written"),
)  # fmt: skip


def coverage(setting: Setting, data_sets: int, resamples: int) -> dict[str, float | int | str]:
    P, turns, order, missing = setting
    rng, rows = np.random.default_rng(0), williams_design(turns - 1)
    order_P_I = np.array([[0, *(1 + one for one in rows[p % len(rows) if order == "balanced" else 0])] for p in range(P)])
    known_P_I = order_P_I if order == "balanced" else np.zeros_like(order_P_I)
    held, values = 0, list[float]()
    for _ in range(data_sets):
        slope_P_1 = SLOPE + rng.normal(0, SLOPE_SD, (P, 1))
        level_P_I = rng.normal(0, 0.5, (P, 1)) + rng.normal(0, QUESTION_SD, turns)[order_P_I]
        value_P_I = level_P_I + slope_P_1 * np.arange(turns) + rng.normal(0, NOISE_SD, (P, turns))
        value_P_I[rng.random((P, turns)) < missing] = np.nan
        found = compute_turn_series("words", value_P_I, known_P_I, 2, seed=0, resamples=resamples).slope
        held += found.low is not None and found.high is not None and found.low <= SLOPE <= found.high
        values.append(np.nan if found.value is None else found.value)
    told = {"coverage": round(held / data_sets, 3), "bias": round(float(np.nanmean(values)) - SLOPE, 4)}
    return setting._asdict() | told | {"spread": round(float(np.nanstd(values)), 4), "data_sets": data_sets}


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-sets", type=int, default=400)
    parser.add_argument("--resamples", type=int, default=400)
    return parser


def main() -> None:
    asked = parser().parse_args()
    for setting in SETTINGS:
        print(json.dumps(coverage(setting, asked.data_sets, asked.resamples)), flush=True)


if __name__ == "__main__":
    main()
