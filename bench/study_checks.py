"""What a study's report does not show about two of its arms: exploratory figures, each as one JSON line.

identifiability_own_answers: identifiability by a classifier that each model's own answers train, in place of the base model's: it
    tells a model whose characters are alike from one whose characters are only played in another way than the base model's.
persona_effect_joint_p: the p of "no persona matters", of all seeds of an arm together and of each.
spread_ratio: the ratio of the arms' standard deviations over training seeds of the mean accuracy, with an exact test: in each of
    the 2^S ways to swap the arms within seeds, both arms' values less their medians are compared by their mean distance.
dev_curve_worst: the means over seeds of the dev evaluations in training, by step, and in how many seeds that step is the best.
cut_off_rollouts, cut_off_open_answers: the shares that reached the limit of new tokens; of the rollouts, in the first ten steps
    and in the later ones.
pss_without_effect: what the estimate of PSS is on simulated grids of this size where no persona has an effect.

A unit counts if it has all of `NEEDED`, which a study of docs/study.md gives to the arms that are trained by reward.

    python -m bench.study_checks runs/study --arms rlvr permix
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
"""Files of a unit."""


def units_of(study: Path, arm: str) -> dict[str, Path]:
    """The folders of an arm's units with all files of `NEEDED`, by seed."""
    found = {path.name.removeprefix(f"{arm}-"): path for path in study.glob(f"{arm}-*")}
    return {seed: path for seed, path in found.items() if seed.isdigit() and all((path / file).exists() for file in NEEDED)}


def common_units(study: Path, arms: Sequence[str]) -> list[list[Path]]:
    """The units of each arm with the seeds that all arms have, by seed. Raises SystemExit if there are fewer than two, or if the
    untrained model is not measured.
    """
    if missing := [file for file in EVALUATIONS if not (study / "base" / file).exists()]:
        raise SystemExit(f"{study}: base/{missing[0]} is missing: the untrained model has to be measured")
    by_seed = [units_of(study, arm) for arm in arms]
    seeds = sorted(set.intersection(*map(set, by_seed)), key=int)
    if len(seeds) < 2:
        raise SystemExit(
            f"{study}: the arms {' and '.join(arms)} have {len(seeds)} measured seeds in common; two or more are needed"
        )
    return [[units[seed] for seed in seeds] for units in by_seed]


def own_identifiability(unit: Path) -> float:
    """Identifiability by a classifier of the unit's own answers."""
    value = measure_identifiability(unit / "character", None, resamples=2).accuracy.value
    assert value is not None
    return value


def paired_difference(first_S: Array, other_S: Array) -> dict[str, float]:
    """The mean of other − first over seeds, with the 95 % t interval over seeds."""
    difference_S = other_S - first_S
    half = float(student.ppf(0.975, len(difference_S) - 1) * difference_S.std(ddof=1) / np.sqrt(len(difference_S)))
    mean = float(difference_S.mean())
    return {"difference": round(mean, 4), "low": round(mean - half, 4), "high": round(mean + half, 4)}


def swap_test(first_S: Array, other_S: Array) -> float:
    """The two-sided p of equal spread over seeds: the share of all swaps within seeds with as large a log ratio of the mean
    distances from the median. 1 if the values of an arm do not differ."""
    centred_2_S = np.stack([first_S - np.median(first_S), other_S - np.median(other_S)])

    def log_ratio(swapped_S: Array) -> float:
        one_S, two_S = np.where(swapped_S, centred_2_S[::-1], centred_2_S)
        return abs(float(np.log(np.abs(one_S).mean() / np.abs(two_S).mean())))

    if not np.abs(centred_2_S).sum(axis=1).all():
        return 1.0
    every = [np.array(swaps) for swaps in itertools.product([False, True], repeat=len(first_S))]
    observed = log_ratio(every[0])
    return float(np.mean([log_ratio(swapped_S) >= observed - 1e-12 for swapped_S in every]))


def mean_accuracies(units: Sequence[Path], evaluation: str) -> Array:
    """The mean accuracy over personas of each unit [S]."""
    return np.array([read_json(unit / evaluation / "metrics.json")["mean"]["value"] for unit in units])


def dev_curve(units: Sequence[Path]) -> Iterator[dict[str, Any]]:
    """For each step: the means over units of the dev evaluation, and in how many units that step is the best one."""
    lines = [read_training_log(unit / "train" / "dev_eval.jsonl") for unit in units]
    best = [of_unit[-1]["best_step"] for of_unit in lines]
    for step in sorted({line["step"] for of_unit in lines for line in of_unit}):
        at_step = [line for of_unit in lines for line in of_unit if line["step"] == step]
        means = {name: round(float(np.mean([line[name]["value"] for line in at_step])), 3) for name in ("mean", "worst", "pss")}
        yield {"step": step, "seeds": len(at_step), **means, "best_in": best.count(step)}


def cut_off_rollouts(unit: Path) -> tuple[float, float]:
    """The shares of rollouts that were cut off, in the first `EARLY_STEPS` steps and in the later ones; NaN without steps."""
    lines = read_training_log(unit / "train" / "log.jsonl")
    share_T = np.array([line["truncated"] for line in lines if "truncated" in line], dtype=float)
    first, later = (float(part.mean()) if part.size else float("nan") for part in np.split(share_T, [EARLY_STEPS]))
    return first, later


def show_arm(arm: str, units: Sequence[Path]) -> None:
    """The figures of one arm."""
    stability = [read_json(unit / "accuracy" / "metrics.json") for unit in units]
    grids_P_Q = [mean_over_samples(read_stability_grid(unit / "accuracy").correct_P_Q_S) for unit in units]
    joint = joint_persona_effect_p(grids_P_Q, 0, 2000)
    show("persona_effect_joint_p", float("nan") if joint is None else joint, arm=arm,
         by_seed=[one["permutation_p"]["value"] for one in stability])  # fmt: skip
    for point in dev_curve(units):
        show("dev_curve_worst", point["worst"], arm=arm, **{name: value for name, value in point.items() if name != "worst"})
    shares = np.array([cut_off_rollouts(unit) for unit in units])
    for name, share_S in zip(("first", "later"), shares.T, strict=True):
        show_range("cut_off_rollouts", share_S, arm=arm, steps=name)
    cut = [read_json(unit / "character" / "metrics.json")["unjudged"]["truncated_share"]["value"] for unit in units]
    show_range("cut_off_open_answers", np.array(cut), arm=arm)


def show_range(figure: str, value_S: Array, **about: object) -> None:
    """The mean over seeds, the least and the greatest."""
    show(figure, float(value_S.mean()), **about, min=round(float(value_S.min()), 3), max=round(float(value_S.max()), 3))


def show_spread_of_seeds(arms: Mapping[str, Sequence[Path]], evaluation: str) -> None:
    (first, units), (other, other_units) = arms.items()
    one_S, two_S = (mean_accuracies(each, evaluation) for each in (units, other_units))
    sds = [float(each.std(ddof=1)) for each in (one_S, two_S)]
    show("spread_ratio", sds[0] / sds[1], evaluation=evaluation, arms=[first, other], sds=[round(sd, 4) for sd in sds],
         p=round(swap_test(one_S, two_S), 4), seeds=len(one_S))  # fmt: skip


def pss_without_effect(personas: int, questions: int, grids: int) -> Array:
    """Estimates of PSS on simulated grids where no persona has an effect; the accuracy is `bench.training_seeds.ACCURACY`."""
    study = Study("none", (1.0, 1.0), 2, "none", personas=personas, questions=questions)
    drawn = [grid for place in range(grids // 2) for grid in draw_study(study, np.random.default_rng([7, place]))[0]]
    return np.array([posterior_estimates(*grid, seed=place)["pss"].value for place, grid in enumerate(drawn)], dtype=float)


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(prog="python -m bench.study_checks", description=(__doc__ or "").partition(":")[0])
    options.add_argument("study", type=Path, help="the study's folder; `python -m bench.archive unpack` writes a recorded one")
    options.add_argument("--arms", nargs=2, default=["rlvr", "permix"])
    return options


def main() -> None:
    given = parser().parse_args()
    units = common_units(given.study, given.arms)
    arms = dict(zip(given.arms, units, strict=True))
    for arm, of_arm in arms.items():
        show_arm(arm, of_arm)
    for evaluation in ("accuracy", "dev-accuracy"):
        show_spread_of_seeds(arms, evaluation)
    own = [np.array([own_identifiability(unit) for unit in of_arm]) for of_arm in units]
    base = own_identifiability(given.study / "base")
    show("identifiability_own_answers", float(own[1].mean() - own[0].mean()), arms=given.arms, **paired_difference(*own),
         means=[round(float(each.mean()), 4) for each in own], base=round(base, 4), seeds=len(own[0]))  # fmt: skip
    grid = read_stability_grid(units[0][0] / "accuracy")
    personas, questions = len(grid.persona_ids), len(grid.question_ids)
    found = pss_without_effect(personas, questions, SIMULATED_GRIDS)
    show("pss_without_effect", float(found.mean()), sd=round(float(found.std(ddof=1)), 4), grids=len(found),
         personas=personas, questions=questions, accuracy=ACCURACY, shares=SHARES)  # fmt: skip


if __name__ == "__main__":
    main()
