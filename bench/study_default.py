"""The recommended default of a study, chosen on the dev side by the rule of docs/study.md. One JSON line an arm, then the choice.

worst: accuracy under the worst persona (*dev-accuracy*), the mean over the seeds, with its interval over questions and seeds
identifiability: that of *dev-character*; identifiability_minus_base: its difference to the base model's, with both intervals

The choice is the arm with the highest `worst` among those whose identifiability is not shown to be below the base model's. If
other arms are less than .01 below it, the one of them with the highest identifiability is chosen.

    python -m bench.study_default runs/study --arms rlvr permix --seeds 1 2 3
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


class Arm(NamedTuple):
    """The dev numbers of one arm. `is_below_base`: its identifiability is shown to be below the base model's."""

    name: str
    worst: float
    identifiability: float
    is_below_base: bool


def choose(arms: Sequence[Arm]) -> Arm:
    """The arm that the rule chooses. Raises SystemExit if the condition leaves none."""
    kept = [arm for arm in arms if not arm.is_below_base]
    if not kept:
        raise SystemExit("the identifiability of every arm is shown to be below the base model's")
    highest = max(arm.worst for arm in kept)
    return max((arm for arm in kept if highest - arm.worst < CLOSE), key=lambda arm: arm.identifiability)


def dev_methods(study: Path, arms: Sequence[str], seeds: Sequence[int]) -> dict[str, ReportMethod]:
    """The arms, and "base", with their dev runs. Raises SystemExit naming a run that is missing."""
    units = ["base", *(f"{arm}-{seed}" for arm in arms for seed in seeds)]
    runs = [study / unit / evaluation for unit in units for evaluation in EVALUATIONS]
    if missing := [run for run in runs if not (run / "metrics.json").exists()]:
        raise SystemExit(f"{missing[0]}: is not measured")
    named = [f"{arm}={','.join(f'{arm} {seed}' for seed in seeds)}" for arm in arms]
    return {method.name: method for method in group_methods(collect_models(runs), named)}


def measure(method: ReportMethod, base: ReportMethod) -> Arm:
    """Print the numbers of an arm, and return those that the rule needs."""
    pooled, change = pool_seeds(method), method_difference(method, base)
    if pooled.worst is None or pooled.identifiability is None or "identifiability" not in change.over_seeds:
        raise SystemExit(f"{method.name}: {'; '.join((*pooled.reasons, *pooled.fidelity_reasons, *change.fidelity_reasons))}")
    difference = change.over_seeds["identifiability"]
    numbers = {
        "worst": pooled.over_seeds.get("worst", pooled.worst), "worst_over_questions": pooled.worst,
        "identifiability": pooled.over_seeds.get("identifiability", pooled.identifiability),
        "identifiability_minus_base": difference.over_seeds,
        "identifiability_minus_base_over_questions": difference.over_questions,
    }  # fmt: skip
    print(json.dumps({"arm": method.name, "seeds": len(method.models)} | {name: _ends(one) for name, one in numbers.items()}))
    high = difference.over_seeds.high
    return Arm(method.name, _known(pooled.worst), _known(pooled.identifiability), is_below_base=high is not None and high < 0)


def _ends(one: Estimate) -> list[float | None]:
    """[value, low, high], to four digits."""
    return [None if end is None else float(f"{end:.4g}") for end in (one.value, one.low, one.high)]


def _known(one: Estimate) -> float:
    if one.value is None:
        raise SystemExit("a measure has no value")
    return one.value


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(description=(__doc__ or "").partition(".")[0])
    options.add_argument("study", type=Path)
    options.add_argument("--arms", nargs="+", required=True)
    options.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    return options


def main() -> None:
    given = parser().parse_args()
    methods = dev_methods(given.study, given.arms, given.seeds)
    base = methods.pop("base")
    chosen = choose([measure(method, base) for method in methods.values()])
    print(json.dumps({"chosen": chosen.name}))


if __name__ == "__main__":
    main()
