"""Exploratory figures about two arms of a study that its report does not show, each as one JSON line.

    python -m bench.study_checks runs/study --arms rlvr permix

identifiability_own_answers: identifiability by a classifier trained on each model's own answers instead of the base model's. It
    distinguishes a model whose characters are alike from one that only plays them in another way than the base model.
persona_effect_joint_p: the p-value of "no persona has an effect", of all seeds of an arm together and of each. spread_ratio: the
ratio of the arms' standard deviations over training seeds of the mean accuracy, with an exact test: all 2^S ways
    to swap the arms within seeds are compared, each by the mean distances of both arms' values from their medians.
dev_curve_worst: the means over seeds of the dev evaluations in training, by step, and the number of seeds in which that step is
    the best.
cut_off_rollouts, cut_off_open_answers: the shares that reached the limit of new tokens; of the rollouts, in the first ten steps
    and in the later ones.
pss_without_effect: the estimate of PSS on simulated grids of this size in which no persona has an effect.

A unit counts if it has all of `NEEDED`, which a study of docs/study.md gives to the arms that are trained by reward.
"""

import argparse
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t as student

from bench.figures import show
from bench.training_seeds import ACCURACY, SHARES, Study, draw_study
from permix.evals.open_ended import measure_identifiability
from permix.evals.stability import read_stability_grid
from permix.metrics.posterior import posterior_estimates
from permix.metrics.stability import joint_persona_effect_p
from permix.metrics.statistics import Array, mean_over_samples
from permix.storage.files import read_json
from permix.training.run_log import read_training_log

SIMULATED_GRIDS = 30

EARLY_STEPS = 10

EVALUATIONS = ("accuracy/metrics.json", "dev-accuracy/metrics.json", "character/metrics.json")
NEEDED = (*EVALUATIONS, "train/dev_eval.jsonl", "train/log.jsonl")
"""The files that a unit must have to count."""


def units_of(study: Path, arm: str) -> dict[str, Path]:
    """Return the folders of an arm's units that have all files of `NEEDED`, by seed."""
    by_seed = {path.name.removeprefix(f"{arm}-"): path for path in study.glob(f"{arm}-*")}
    return {seed: path for seed, path in by_seed.items() if seed.isdigit() and all((path / file).exists() for file in NEEDED)}


def common_units(study: Path, arms: Sequence[str]) -> list[list[Path]]:
    """Return the units of each arm, ordered by seed, for the seeds that all arms have.

    Raises SystemExit if there are fewer than two such seeds, or if the untrained model is not measured.
    """
    if missing := [file for file in EVALUATIONS if not (study / "base" / file).exists()]:
        raise SystemExit(f"{study}: base/{missing[0]} is missing: measure the untrained model first")
    by_seed = [units_of(study, arm) for arm in arms]
    seeds = sorted(set.intersection(*map(set, by_seed)), key=int)
    if len(seeds) < 2:
        raise SystemExit(
            f"{study}: the arms {' and '.join(arms)} have {len(seeds)} measured seeds in common; two or more are needed"
        )
    return [[units[seed] for seed in seeds] for units in by_seed]


def own_identifiability(unit: Path) -> float:
    """Return identifiability by a classifier that is trained on the unit's own answers."""
    value = measure_identifiability(unit / "character", None, resamples=2).accuracy.value
    assert value is not None
    return value


def paired_difference(first_S: Array, other_S: Array) -> dict[str, float]:
    """Return the mean of other − first over seeds, with the 95 % t interval over seeds."""
    difference_S = other_S - first_S
    half = float(student.ppf(0.975, len(difference_S) - 1) * difference_S.std(ddof=1) / np.sqrt(len(difference_S)))
    mean = float(difference_S.mean())
    return {"difference": round(mean, 4), "low": round(mean - half, 4), "high": round(mean + half, 4)}


def swap_test(first_S: Array, other_S: Array) -> float:
    """Return the two-sided p-value of equal spread over seeds.

    It is the share of all swaps within seeds in which the log ratio of the mean distances from the median is at least as large as
    observed; 1 if the values of an arm do not differ.
    """
    centred_2_S = np.stack([first_S - np.median(first_S), other_S - np.median(other_S)])

    def log_ratio(swapped_S: Array) -> float:
        first_S, other_S = np.where(swapped_S, centred_2_S[::-1], centred_2_S)
        return abs(float(np.log(np.abs(first_S).mean() / np.abs(other_S).mean())))

    if not np.abs(centred_2_S).sum(axis=1).all():
        return 1.0
    swaps_S = [np.array(swaps) for swaps in itertools.product([False, True], repeat=len(first_S))]
    observed = log_ratio(swaps_S[0])
    return float(np.mean([log_ratio(swapped_S) >= observed - 1e-12 for swapped_S in swaps_S]))


def mean_accuracies(units: Sequence[Path], evaluation: str) -> Array:
    """Return `accuracy_S`, the mean accuracy over personas of each unit."""
    return np.array([read_json(unit / evaluation / "metrics.json")["mean"]["value"] for unit in units])


def dev_curve(units: Sequence[Path]) -> Iterator[dict[str, Any]]:
    """Yield for each step the means over units of the dev evaluation, and the number of units in which that step is the best."""
    lines = [read_training_log(unit / "train" / "dev_eval.jsonl") for unit in units]
    best_steps = [of_unit[-1]["best_step"] for of_unit in lines]
    for step in sorted({line["step"] for of_unit in lines for line in of_unit}):
        at_step = [line for of_unit in lines for line in of_unit if line["step"] == step]
        means = {name: round(float(np.mean([line[name]["value"] for line in at_step])), 3) for name in ("mean", "worst", "pss")}
        yield {"step": step, "seeds": len(at_step), **means, "best_in": best_steps.count(step)}


def cut_off_rollouts(unit: Path) -> tuple[float, float]:
    """Return the shares of cut-off rollouts in the first `EARLY_STEPS` steps and in the later ones; NaN without steps."""
    lines = read_training_log(unit / "train" / "log.jsonl")
    share_T = np.array([line["truncated"] for line in lines if "truncated" in line], dtype=float)
    first, later = (float(part.mean()) if part.size else float("nan") for part in np.split(share_T, [EARLY_STEPS]))
    return first, later


def show_arm(arm: str, units: Sequence[Path]) -> None:
    """Print the figures of one arm."""
    stability = [read_json(unit / "accuracy" / "metrics.json") for unit in units]
    grids_P_Q = [mean_over_samples(read_stability_grid(unit / "accuracy").correct_P_Q_S) for unit in units]
    joint_p = joint_persona_effect_p(grids_P_Q, 0, 2000)
    show("persona_effect_joint_p", float("nan") if joint_p is None else joint_p, arm=arm,
         by_seed=[measures["permutation_p"]["value"] for measures in stability])  # fmt: skip
    for point in dev_curve(units):
        show("dev_curve_worst", point["worst"], arm=arm, **{name: value for name, value in point.items() if name != "worst"})
    shares = np.array([cut_off_rollouts(unit) for unit in units])
    for name, share_S in zip(("first", "later"), shares.T, strict=True):
        show_range("cut_off_rollouts", share_S, arm=arm, steps=name)
    cut_off = [read_json(unit / "character" / "metrics.json")["unjudged"]["truncated_share"]["value"] for unit in units]
    show_range("cut_off_open_answers", np.array(cut_off), arm=arm)


def show_range(figure: str, value_S: Array, **settings: object) -> None:
    """Print the mean over seeds, the least and the greatest."""
    show(figure, float(value_S.mean()), **settings, min=round(float(value_S.min()), 3), max=round(float(value_S.max()), 3))


def show_spread_of_seeds(arms: Mapping[str, Sequence[Path]], evaluation: str) -> None:
    """Print the ratio of the standard deviations over seeds of both arms, with the p-value of the swap test."""
    first_S, other_S = (mean_accuracies(units, evaluation) for units in arms.values())
    sds = [float(accuracy_S.std(ddof=1)) for accuracy_S in (first_S, other_S)]
    show("spread_ratio", sds[0] / sds[1], evaluation=evaluation, arms=list(arms), sds=[round(sd, 4) for sd in sds],
         p=round(swap_test(first_S, other_S), 4), seeds=len(first_S))  # fmt: skip


def pss_without_effect(personas: int, questions: int, grids: int) -> Array:
    """Return the estimates of PSS on simulated grids in which no persona has an effect and the accuracy is `ACCURACY`."""
    study = Study("none", (1.0, 1.0), 2, "none", personas=personas, questions=questions)
    drawn = [grid for index in range(grids // 2) for grid in draw_study(study, np.random.default_rng([7, index]))[0]]
    return np.array([posterior_estimates(*grid, seed=index)["pss"].value for index, grid in enumerate(drawn)], dtype=float)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.study_checks", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("study", type=Path, help="the study's folder; `python -m bench.archive unpack` writes a recorded one")
    parser.add_argument("--arms", nargs=2, default=["rlvr", "permix"], help="the two arms to compare")
    return parser


def main() -> None:
    options = parser().parse_args()
    units = common_units(options.study, options.arms)
    arms = dict(zip(options.arms, units, strict=True))
    for arm, arm_units in arms.items():
        show_arm(arm, arm_units)
    for evaluation in ("accuracy", "dev-accuracy"):
        show_spread_of_seeds(arms, evaluation)
    own = [np.array([own_identifiability(unit) for unit in arm_units]) for arm_units in units]
    base = own_identifiability(options.study / "base")
    show("identifiability_own_answers", float(own[1].mean() - own[0].mean()), arms=options.arms, **paired_difference(*own),
         means=[round(float(own_S.mean()), 4) for own_S in own], base=round(base, 4), seeds=len(own[0]))  # fmt: skip
    grid = read_stability_grid(units[0][0] / "accuracy")
    personas, questions = len(grid.persona_ids), len(grid.question_ids)
    pss = pss_without_effect(personas, questions, SIMULATED_GRIDS)
    show("pss_without_effect", float(pss.mean()), sd=round(float(pss.std(ddof=1)), 4), grids=len(pss),
         personas=personas, questions=questions, accuracy=ACCURACY, shares=SHARES)  # fmt: skip


if __name__ == "__main__":
    main()
