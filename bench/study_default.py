"""The dev results of the arms of a study, and the arm that the rule of docs/study.md recommends as the default.

    python -m bench.study_default runs/study --arms rlvr permix --seeds 1 2 3

Printed is one JSON line an arm, then the choice:

worst: accuracy under the worst persona (*dev-accuracy*), the mean over the seeds, with its interval over questions and seeds
identifiability: that of *dev-character*; identifiability_minus_base: its difference from the base model's, with both intervals

The choice is the arm with the highest `worst` among those whose identifiability is not shown to be below the base model's. If
other arms are less than .01 below it, the one of them with the highest identifiability is chosen.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from permix.report.methods import ReportMethod, group_methods
from permix.report.pooled import method_difference, pool_seeds
from permix.report.runs import collect_models
from permix.types import Estimate

EVALUATIONS = ("dev-accuracy", "dev-character")

CLOSE = 0.01
"""A smaller difference of accuracies under the worst persona does not decide."""


class Arm(NamedTuple):
    """The dev results of one arm. `is_below_base`: its identifiability is shown to be below the base model's."""

    name: str
    worst: float
    identifiability: float
    is_below_base: bool


def choose(arms: Sequence[Arm]) -> Arm:
    """Return the arm that the rule chooses. Raises SystemExit if every arm is below the base model."""
    eligible = [arm for arm in arms if not arm.is_below_base]
    if not eligible:
        raise SystemExit("the identifiability of every arm is shown to be below the base model's")
    highest = max(arm.worst for arm in eligible)
    return max((arm for arm in eligible if highest - arm.worst < CLOSE), key=lambda arm: arm.identifiability)


def dev_methods(study: Path, arms: Sequence[str], seeds: Sequence[int]) -> dict[str, ReportMethod]:
    """Return the arms and "base" by name, with their dev runs. Raises SystemExit if a run is missing."""
    units = ["base", *(f"{arm}-{seed}" for arm in arms for seed in seeds)]
    runs = [study / unit / evaluation for unit in units for evaluation in EVALUATIONS]
    if missing := [run for run in runs if not (run / "metrics.json").exists()]:
        raise SystemExit(f"{missing[0]}: this run has no measures yet")
    named = [f"{arm}={','.join(f'{arm} {seed}' for seed in seeds)}" for arm in arms]
    return {method.name: method for method in group_methods(collect_models(runs), named)}


def measure(method: ReportMethod, base: ReportMethod) -> Arm:
    """Print the results of an arm, and return those that the rule uses. Raises SystemExit if one is missing."""
    pooled, change = pool_seeds(method), method_difference(method, base)
    if pooled.worst is None or pooled.identifiability is None or "identifiability" not in change.over_seeds:
        raise SystemExit(f"{method.name}: {'; '.join((*pooled.reasons, *pooled.fidelity_reasons, *change.fidelity_reasons))}")
    difference = change.over_seeds["identifiability"]
    results = {
        "worst": pooled.over_seeds.get("worst", pooled.worst), "worst_over_questions": pooled.worst,
        "identifiability": pooled.over_seeds.get("identifiability", pooled.identifiability),
        "identifiability_minus_base": difference.over_seeds,
        "identifiability_minus_base_over_questions": difference.over_questions,
    }  # fmt: skip
    print(
        json.dumps(
            {"arm": method.name, "seeds": len(method.models)}
            | {name: _value_and_ends(result) for name, result in results.items()}
        )
    )
    high = difference.over_seeds.high
    return Arm(
        method.name,
        _require_value(pooled.worst),
        _require_value(pooled.identifiability),
        is_below_base=high is not None and high < 0,
    )


def _value_and_ends(estimate: Estimate) -> list[float | None]:
    """Return [value, low, high], to four significant digits."""
    return [None if end is None else float(f"{end:.4g}") for end in (estimate.value, estimate.low, estimate.high)]


def _require_value(estimate: Estimate) -> float:
    if estimate.value is None:
        raise SystemExit("a measure has no value")
    return estimate.value


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("study", type=Path, help="the folder of the study")
    parser.add_argument("--arms", nargs="+", required=True, help="the arms to choose from")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3], help="the training seeds that every arm must have")
    return parser


def main() -> None:
    options = parser().parse_args()
    methods = dev_methods(options.study, options.arms, options.seeds)
    base = methods.pop("base")
    chosen = choose([measure(method, base) for method in methods.values()])
    print(json.dumps({"chosen": chosen.name}))


if __name__ == "__main__":
    main()
