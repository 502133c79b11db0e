"""How often intervals over questions and training seeds contain the true difference, and the power of comparisons: by simulation.

Two methods are trained with the same S seeds. All models answer the same questions, under the same personas and without one, and
are compared by `permix.metrics.stability.seed_differences`. An answer is right if a normal number exceeds a threshold. The number
is the sum of the persona's effect, the seed's effects on all answers and on single personas, and parts of the question, of
question and method, of question, method and seed, and of the cell. The shares of these parts (`SHARES`) give about the intervals
of the quickstart and of the study with three seeds in docs/history/training.md. The true difference is its mean over many seeds.

    python -m bench.training_seeds > training_seeds.jsonl
    python -m bench.training_seeds --page training_seeds.jsonl

Printed is one JSON line a study. For each measure it has, for the interval over questions alone and for that over questions and
seeds, how often it contains the true difference (`held`), how often it excludes 0, and its mean width; and the power that
`permix.metrics.training_seeds` expects from the mean of the estimated variance components.

With --normal, the values of seeds are drawn from the normal model itself: 100,000 data sets a line.
"""

import argparse
import itertools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import brentq
from scipy.special import ndtr, ndtri, stdtrit

from bench.calibration import markdown
from permix.metrics import priors
from permix.metrics.measures import MEASURE_VIEWS, STABILITY_MEASURES
from permix.metrics.posterior import AccuracyGrid
from permix.metrics.stability import question_noise, seed_differences
from permix.metrics.statistics import Array
from permix.metrics.training_seeds import SeedDifference, SeedVarianceComponents, power_over_seeds

SHARES = {"question": 0.902, "question and method": 0.048, "question, method and seed": 0.029, "cell": 0.021}
"""Variances of the parts of an answer; they add up to 1."""

ACCURACY = 0.6
MANY_SEEDS = 20_000

SEED_SDS = {"none": (0.0, 0.0), "moderate": (0.03, 0.02), "large": (0.06, 0.04)}
"""Standard deviations of accuracy between training seeds: of all personas together, and of single personas."""


class Study(NamedTuple):
    """Two methods: the kind of persona effects, the true PSS of each without seed effects, and the sizes of the study."""

    effect: str
    pss: tuple[float, float]
    seeds: int
    seed_effects: str
    personas: int = 18
    questions: int = 200


STUDIES = (
    Study("none", (1.0, 1.0), 2, "none"),
    Study("none", (1.0, 1.0), 3, "moderate"),
    Study("none", (1.0, 1.0), 5, "large", questions=100),
    Study("one bad", (0.85, 0.85), 3, "none"),
    Study("one bad", (0.85, 0.95), 2, "moderate"),
    Study("one bad", (0.85, 0.95), 3, "moderate"),
    Study("one bad", (0.85, 0.95), 3, "large"),
    Study("one bad", (0.85, 0.95), 5, "moderate", personas=24),
    Study("graded", (0.85, 0.85), 3, "moderate", questions=400),
    Study("graded", (0.85, 0.95), 3, "none"),
    Study("graded", (0.85, 0.95), 5, "moderate"),
    Study("graded", (0.85, 0.95), 8, "moderate", questions=100),
    Study("graded", (0.85, 0.95), 8, "large"),
)


def thresholds(effect: str, pss: float, personas: int) -> Array:
    """Return `effect_P` of personas whose accuracies have this PSS and the mean `ACCURACY`."""
    shape_P = np.linspace(-1, 1, personas) if effect == "graded" else -np.eye(personas)[0]

    def effects_of_size(size: float) -> Array:
        return np.asarray(size * shape_P + brentq(lambda x: float(ndtr(x + size * shape_P).mean()) - ACCURACY, -9, 9))

    def excess(size: float) -> float:
        accuracy_P = ndtr(effects_of_size(size))
        return float(accuracy_P.min() / accuracy_P.max()) - pss

    return effects_of_size(0.0 if effect == "none" else float(brentq(excess, 0, 3)))


def seed_shifts(study: Study, n: int, rng: np.random.Generator) -> Array:
    """Draw the shifts [n, P + 1] of the thresholds by `n` training seeds; the last column is that without a persona."""
    density = float(np.exp(-(ndtri(ACCURACY) ** 2) / 2) / np.sqrt(2 * np.pi))  # turns an sd of accuracy into one of thresholds
    common_sd, single_sd = (sd / density for sd in SEED_SDS[study.seed_effects])
    return np.asarray(rng.normal(0, common_sd, (n, 1)) + rng.normal(0, single_sd, (n, study.personas + 1)))


def true_values(study: Study, pss: float, rng: np.random.Generator) -> dict[str, float]:
    """Return the mean of each measure over `MANY_SEEDS` training seeds of a method."""
    mean_P = np.append(thresholds(study.effect, pss, study.personas), ndtri(ACCURACY))
    accuracy_R_N = ndtr(mean_P + seed_shifts(study, MANY_SEEDS, rng))
    accuracy_R_P, none_R = accuracy_R_N[:, :-1], accuracy_R_N[:, -1]
    worst_R, mean_R = accuracy_R_P.min(axis=1), accuracy_R_P.mean(axis=1)
    each = {
        "pss": worst_R / accuracy_R_P.max(axis=1), "relative_persona_sd": accuracy_R_P.std(axis=1, ddof=1) / mean_R,
        "worst": worst_R, "mean": mean_R, "mean_minus_baseline": mean_R - none_R, "worst_minus_baseline": worst_R - none_R,
    }  # fmt: skip
    return {name: float(value_R.mean()) for name, value_R in each.items()}


def draw_study(study: Study, rng: np.random.Generator) -> list[list[AccuracyGrid]]:
    """Draw the grids of all seeds of both methods, on the same questions."""
    sd = {name: float(np.sqrt(share)) for name, share in SHARES.items()}
    P, Q = study.personas, study.questions
    question_Q = rng.normal(0, sd["question"], Q)
    methods = []
    for pss in study.pss:
        mean_P = np.append(thresholds(study.effect, pss, P), ndtri(ACCURACY))
        method_Q = question_Q + rng.normal(0, sd["question and method"], Q)
        grids = []
        for shift_P in seed_shifts(study, study.seeds, rng):
            seed_Q = method_Q + rng.normal(0, sd["question, method and seed"], Q)
            right_P_Q = ((mean_P + shift_P)[:, None] + seed_Q + rng.normal(0, sd["cell"], (P + 1, Q)) > 0).astype(float)
            grids.append((right_P_Q[:-1], right_P_Q[-1]))
        methods.append(grids)
    return methods


def simulate(study: Study, data_sets: int, resamples: int, seed: int) -> dict[str, Any]:
    """Return the line of a study, from `data_sets` simulated studies."""
    rng = np.random.default_rng([seed, *json.dumps(study).encode()])
    first_true, second_true = (true_values(study, pss, np.random.default_rng(seed)) for pss in study.pss)
    differences: dict[str, list[SeedDifference]] = {}
    for data_set in range(data_sets):
        first, second = draw_study(study, rng)
        for name, difference in seed_differences(second, first, "paired", {}, data_set, resamples).items():
            differences.setdefault(name, []).append(difference)
    measures = {
        name: summarize(name, differences[name], second_true[name] - first_true[name], study.seeds)
        for name in MEASURE_VIEWS["seed_differences"]
    }
    return {**study._asdict(), "data_sets": data_sets, "resamples": resamples, "seed": seed, "measures": measures}


def summarize(name: str, differences: Sequence[SeedDifference], truth: float, seeds: int) -> dict[str, Any]:
    """Return how often each interval contains the true difference and excludes 0, its mean width, and the expected power."""
    values = [difference.over_questions.value for difference in differences if difference.over_questions.value is not None]
    components = mean_components([difference.components for difference in differences])
    expected = power_over_seeds(float(np.mean(values)), components, seeds, question_noise(STABILITY_MEASURES[name]))
    summary: dict[str, Any] = {"true": round(truth, 4), "mean": round(float(np.mean(values)), 4), "expected": round(expected, 3)}
    for kind, estimates in (
        ("questions", [difference.over_questions for difference in differences]),
        ("seeds", [difference.over_seeds for difference in differences]),
    ):
        end_N_2 = np.array([(difference.low, difference.high) for difference in estimates], dtype=float)
        low_N, high_N = end_N_2.T
        summary[kind] = {
            "held": round(float(((low_N <= truth) & (truth <= high_N)).mean()), 4),
            "not 0": round(float(((low_N > 0) | (high_N < 0)).mean()), 4),
            "width": round(float((high_N - low_N).mean()), 4),
        }
    return summary


def mean_components(components: Iterable[SeedVarianceComponents | None]) -> SeedVarianceComponents:
    """Return the mean of each variance component. Truncation at 0 makes that of the seeds slightly too large."""
    known = [each for each in components if each is not None]
    seed, own, shared = (float(np.mean([getattr(each, name) for each in known])) for name in ("seed", "own", "shared"))
    return SeedVarianceComponents(seed=seed, own=own, shared=shared)


NORMAL_RATIOS = (0.0, 0.25, 1.0, 4.0, 20.0)
"""Variances between seeds, relative to the question noise of a single seed."""


def simulate_normal(seeds: int, shared: float, questions: int, data_sets: int, seed: int) -> dict[str, Any]:
    """Return the line of the normal model: coverage for each of `NORMAL_RATIOS`, with a variance of 1 of a seed's own question
    noise.

    The interval "seeds" is the formula of `permix.metrics.training_seeds` for arrays; "satterthwaite" is Student's t with
    Satterthwaite's degrees of freedom, which that module does not use.
    """
    rng = np.random.default_rng([seed, seeds, int(10 * shared)])
    coverage: dict[float, dict[str, float]] = {}
    t_seeds, t_questions = stdtrit(seeds - 1, 0.975), stdtrit(questions - 1, 0.975)
    for ratio in NORMAL_RATIOS:
        observed_N = (ratio + 1) * rng.chisquare(seeds - 1, data_sets) / (seeds - 1)
        own_N = rng.chisquare((seeds - 1) * (questions - 1), data_sets) / ((seeds - 1) * (questions - 1))
        question_variance_N = (shared + 1 / seeds) * rng.chisquare(questions - 1, data_sets) / (questions - 1)
        shared_N = np.maximum(0.0, question_variance_N - own_N / seeds)
        half_N = np.maximum(
            t_questions * np.sqrt(question_variance_N), np.sqrt(t_seeds**2 * observed_N / seeds + t_questions**2 * shared_N)
        )
        error_N = rng.normal(0, np.sqrt(shared + (1 + ratio) / seeds), data_sets)
        variance_N = observed_N / seeds + shared_N
        freedom_N = variance_N**2 / ((observed_N / seeds) ** 2 / (seeds - 1) + shared_N**2 / (questions - 1))
        half_widths = {
            "questions": t_questions * np.sqrt(question_variance_N),
            "seeds": half_N,
            "satterthwaite": stdtrit(freedom_N, 0.975) * np.sqrt(variance_N),
        }
        coverage[ratio] = {
            name: round(float((np.abs(error_N) <= half_width_N).mean()), 4) for name, half_width_N in half_widths.items()
        }
    return {"seeds": seeds, "shared": shared, "questions": questions, "data_sets": data_sets, "seed": seed, "normal": coverage}


def markdown_tables(lines: Sequence[dict[str, Any]]) -> str:
    """Return Markdown tables of the lines: coverage and power of the studies, and coverage in the normal model."""
    studies, normal = ([line for line in lines if kind in line] for kind in ("measures", "normal"))
    tables = []
    if studies:
        headings = ["personas × questions", "effect, PSS", "seeds", "seed effects", *MEASURE_VIEWS["seed_differences"]]
        coverage_rows, power_rows = [headings], [headings]
        for line in studies:
            first_pss, second_pss = line["pss"]
            study = [
                f"{line['personas']} × {line['questions']}",
                f"{line['effect']} {first_pss:g} → {second_pss:g}",
                str(line["seeds"]),
                line["seed_effects"],
            ]
            measures = line["measures"].values()
            coverage = [f"{_per_cent(each['questions']['held'])} / {_per_cent(each['seeds']['held'])}" for each in measures]
            power = [f"{_per_cent(each['seeds']['not 0'])} ({_per_cent(each['expected'])})" for each in measures]
            coverage_rows.append([*study, *coverage])
            power_rows.append([*study, *power])
        tables += [markdown(coverage_rows), markdown(power_rows)]
    if normal:
        rows = [["seeds", "shared / own", *(f"seed / own {ratio:g}" for ratio in NORMAL_RATIOS)]]
        for line in normal:
            cells = [" / ".join(_per_cent(share) for share in each.values()) for each in line["normal"].values()]
            rows.append([str(line["seeds"]), f"{line['shared']:g}", *cells])
        tables.append(markdown(rows))
    return "\n\n".join(tables)


def _per_cent(share: float) -> str:
    return f"{100 * share:.0f}"


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-sets", type=int, default=100, help="simulated data sets of each study")
    parser.add_argument("--resamples", type=int, default=200, help="bootstrap resamples of each data set")
    parser.add_argument("--draws", type=int, default=500, help="posterior draws of each grid")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--only", type=int, nargs="+", help="indices of the studies to simulate, from 0; by default all")
    parser.add_argument("--normal", action="store_true", help="simulate the normal model instead of studies")
    parser.add_argument("--page", type=Path, help="print the tables of the lines in this file, and simulate nothing")
    return parser


def main() -> None:
    options = parser().parse_args()
    if options.page:
        print(markdown_tables([json.loads(line) for line in options.page.read_text(encoding="utf-8").splitlines()]))
        return
    priors.N_DRAWS = priors.MAX_CHAIN_PERSONAS = options.draws  # fewer chains with the same number of steps
    if options.normal:
        for seeds, shared in itertools.product((2, 3, 5, 8), (0.0, 0.5, 1.0, 4.0)):
            print(json.dumps(simulate_normal(seeds, shared, 200, 100_000, options.seed)), flush=True)
        return
    for index, study in enumerate(STUDIES):
        if options.only is None or index in options.only:
            print(json.dumps(simulate(study, options.data_sets, options.resamples, options.seed)), flush=True)


if __name__ == "__main__":
    main()
