"""How often 95 % intervals contain the true value, how biased estimates are, and how often tests reject: by simulation.

Grids with known true values are drawn and measured by `permix.metrics.stability.summarize_stability` itself. The difficulty of
questions is normal on the logit scale (sd 1.5) and the same for all personas; a persona shifts the logit. The true value of a
measure is its value over all such questions. Printed is one JSON line a setting; with --page, the tables of docs/measures.md are
made from such lines.

    python -m bench.calibration > calibration.jsonl
    python -m bench.calibration --pairs --data-sets 100 >> calibration.jsonl
    python -m bench.calibration --page calibration.jsonl

With --training-seeds, models of three training seeds answer the same questions and are pooled by
`permix.metrics.stability.pool_stability`. With --pairs, two models answer the same questions and are compared by
`permix.metrics.model_comparison.compare_models_paired`.

With --in-character, whole answers are drawn and measured by `permix.metrics.right_in_character.summarize_right_in_character`.
Each persona has its own distribution of words: the common one times exp(distinctness z), with normal z. An answer is in character
with probability `in_character`; otherwise its words have the common distribution. The true value of a share is the mean of the
estimates over all grids of the setting, which is what classifiers trained on this many answers attain.

In a line, `held` is the share of intervals that contain the true value, and `below` the share that lie above it.
"""

import argparse
import json
import math
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit, ndtri

from permix.metrics import priors, stability
from permix.metrics.model_comparison import MeasureDifference, compare_models_paired
from permix.metrics.right_in_character import RightInCharacter, summarize_right_in_character
from permix.metrics.stability import StabilitySummary, pool_stability, summarize_stability
from permix.metrics.statistics import Array, mean_over_samples
from permix.types import Estimate

DIFFICULTY_SD = 1.5
MANY_Q = ndtri((np.arange(4000) + 0.5) / 4000) * DIFFICULTY_SD
"""Difficulties at equally spaced quantiles; a mean over them replaces the mean over all questions."""
MEASURES = (
    "baseline",
    "mean",
    "mean_minus_baseline",
    "worst",
    "best",
    "spread",
    "pss",
    "worst_minus_baseline",
    "persona_sd",
    "relative_persona_sd",
    "pss_crossfit",
)
PAIRED = ("mean", "worst", "best", "spread", "pss")
LEVEL = 0.05


class Setting(NamedTuple):
    """A kind of grid. `effect`: the kind of shifts of the logit by personas; `size`: their sd, or the loss of the bad personas.

    With the effect "rest right" all personas but one are always right; that one is wrong with probability `size`. `accuracy` is
    that without a persona, `missing` the share of answers without a score, and `interaction` the sd of a shift of each single
    cell.
    """

    effect: str
    size: float
    personas: int
    questions: int
    accuracy: float
    samples: int = 1
    missing: float = 0.0
    interaction: float = 0.0


SETTINGS = (
    Setting("none", 0, 8, 30, 0.5),
    Setting("none", 0, 16, 100, 0.5),
    Setting("none", 0, 64, 100, 0.5),
    Setting("none", 0, 16, 1319, 0.5),
    Setting("none", 0, 16, 100, 0.05),
    Setting("none", 0, 16, 100, 0.95),
    Setting("one bad", 1.5, 8, 100, 0.5),
    Setting("one bad", 1.5, 64, 100, 0.5),
    Setting("one bad", 1.5, 16, 100, 0.95),
    Setting("one bad", 1.5, 16, 400, 0.3),
    Setting("one bad", 0.5, 16, 100, 0.5),
    Setting("half bad", 0.7, 16, 100, 0.5),
    Setting("graded", 0.2, 16, 100, 0.5),
    Setting("graded", 0.2, 16, 400, 0.5),
    Setting("graded", 0.2, 64, 400, 0.7),
    Setting("graded", 0.6, 8, 30, 0.5),
    Setting("graded", 0.6, 16, 100, 0.5),
    Setting("graded", 0.6, 64, 100, 0.5),
    Setting("graded", 0.6, 16, 1319, 0.3),
    Setting("graded", 0.6, 16, 100, 0.05),
    Setting("graded", 0.6, 16, 100, 0.95),
    Setting("graded", 0.4, 16, 100, 0.5, samples=4),
    Setting("graded", 0.4, 8, 30, 0.5, samples=8),
    Setting("graded", 0.4, 16, 100, 0.5, missing=0.2),
    Setting("rest right", 0.15, 3, 20, 1.0),
    Setting("rest right", 0.1, 8, 30, 1.0),
    Setting("rest right", 0.05, 16, 100, 1.0),
    Setting("rest right", 0.0, 12, 20, 1.0),
    Setting("heavy", 0.3, 16, 100, 0.5),
    Setting("one bad", 0.7, 16, 150, 0.6, interaction=1.0),
    Setting("graded", 0.3, 16, 150, 0.6, interaction=1.0),
)


class ModelPair(NamedTuple):
    """Two models. The second has the first one's persona effects times `factor`, and `gain` added to every logit.

    `same`: the share of cells in which both models use the same random number.
    """

    setting: Setting
    factor: float = 1.0
    gain: float = 0.0
    same: float = 0.0


PAIRS = (
    ModelPair(Setting("none", 0, 16, 100, 0.5)),
    ModelPair(Setting("graded", 0.4, 16, 100, 0.5)),
    ModelPair(Setting("graded", 0.4, 16, 100, 0.5), same=0.8),
    ModelPair(Setting("one bad", 1.5, 16, 100, 0.5)),
    ModelPair(Setting("one bad", 1.5, 16, 100, 0.5), same=0.8),
    ModelPair(Setting("graded", 0.6, 16, 100, 0.5), factor=0.3),
    ModelPair(Setting("graded", 0.6, 16, 100, 0.5), factor=0.3, same=0.8),
    ModelPair(Setting("one bad", 1.5, 16, 100, 0.5), factor=0.3, gain=0.3),
    ModelPair(Setting("graded", 0.4, 16, 400, 0.5), factor=0.6, same=0.8),
)


class SimulatedModel(NamedTuple):
    """The logit of a question of mean difficulty, the shifts of the personas, and the true accuracies with and without them."""

    intercept: float
    shift_P: Array
    accuracy_P: Array
    baseline: float

    def true_values(self) -> dict[str, float]:
        """Return the true value of each of `MEASURES`."""
        worst, best, mean = float(self.accuracy_P.min()), float(self.accuracy_P.max()), float(self.accuracy_P.mean())
        sd = float(self.accuracy_P.std(ddof=1))
        return {
            "baseline": self.baseline, "mean": mean, "mean_minus_baseline": mean - self.baseline, "worst": worst, "best": best,
            "spread": best - worst, "pss": worst / best, "worst_minus_baseline": worst - self.baseline, "persona_sd": sd,
            "relative_persona_sd": sd / mean, "pss_crossfit": worst / best,
        }  # fmt: skip


def draw_model(setting: Setting, rng: np.random.Generator) -> SimulatedModel:
    """Draw the persona effects of a setting, and find the intercept with which it has its accuracy."""
    P = setting.personas
    match setting.effect:
        case "none":
            shift_P = np.zeros(P)
        case "one bad":
            shift_P = np.where(np.arange(P) == 0, -setting.size, 0.0)
        case "half bad":
            shift_P = np.where(np.arange(P) < P // 2, -setting.size, 0.0)
        case "rest right":
            bad = brentq(lambda shift: expit(30 + MANY_Q + shift).mean() - (1 - setting.size), -60, 0) if setting.size else 0.0
            return _simulated_model(30.0, np.where(np.arange(P) == 0, bad, 0.0))
        case "heavy":
            shift_P = setting.size * rng.standard_t(1.5, size=P)
        case _:
            shift_P = rng.normal(size=P)
            shift_P = setting.size * (shift_P - shift_P.mean()) / shift_P.std()
    many_Q = _difficulties(setting.interaction)
    intercept = float(brentq(lambda logit: expit(logit + many_Q).mean() - setting.accuracy, -30, 30))
    return _simulated_model(intercept, shift_P, setting.interaction)


def _difficulties(interaction: float) -> Array:
    """Return difficulties at equally spaced quantiles of question difficulty plus the shifts of single cells."""
    return np.asarray(MANY_Q * math.hypot(DIFFICULTY_SD, interaction) / DIFFICULTY_SD)


def _simulated_model(intercept: float, shift_P: Array, interaction: float = 0.0) -> SimulatedModel:
    many_Q = _difficulties(interaction)
    accuracy_N = np.array([expit(intercept + many_Q + shift).mean() for shift in [*shift_P, 0.0]])
    return SimulatedModel(intercept, shift_P, accuracy_N[:-1], float(accuracy_N[-1]))


def draw_grid(
    setting: Setting, model: SimulatedModel, rng: np.random.Generator, ease_Q: Array | None = None
) -> tuple[Array, Array]:
    """Draw `correct_P_Q_S` and `baseline_Q_S` of a model. `ease_Q` is added to the logit of each question; drawn when None."""
    ease_Q = model.intercept + (rng.normal(0, DIFFICULTY_SD, setting.questions) if ease_Q is None else ease_Q)
    cell_N_Q = setting.interaction * rng.normal(size=(setting.personas + 1, setting.questions)) if setting.interaction else 0.0
    chance_N_Q = expit(ease_Q + np.concatenate([model.shift_P, [0.0]])[:, None] + cell_N_Q)
    right_N_Q_S = (rng.random((*chance_N_Q.shape, setting.samples)) < chance_N_Q[:, :, None]).astype(float)
    right_N_Q_S[rng.random(right_N_Q_S.shape) < setting.missing] = np.nan
    return right_N_Q_S[:-1], right_N_Q_S[-1]


def simulate(setting: Setting, data_sets: int, resamples: int, seed: int) -> dict[str, Any]:
    """Return the line of a setting: coverage, bias and mean width of each interval, and how often the tests reject at .05."""
    rng = np.random.default_rng(seed)
    model = draw_model(setting, rng)
    summaries = [
        summarize_stability(*draw_grid(setting, model, rng), seed=int(rng.integers(2**31)), resamples=resamples)
        for _ in range(data_sets)
    ]
    measures = {
        name: _coverage([summary.measures[name] for summary in summaries], value) for name, value in model.true_values().items()
    }
    measures["a persona's accuracy"] = _coverage_of_personas(summaries, "accuracy", model.accuracy_P)
    measures["a persona's difference"] = _coverage_of_personas(summaries, "difference", model.accuracy_P - model.baseline)
    permutation_p = [summary.permutation_p.value for summary in summaries]
    least_holm_p = [min((persona.holm_p or 1.0) for persona in summary.personas) for summary in summaries]
    observed = [summary.pss_observed.value for summary in summaries if summary.pss_observed.value is not None]
    return {
        **setting._asdict(), "data_sets": data_sets, "resamples": resamples, "seed": seed, "measures": measures,
        "pss_observed": round(float(np.mean(observed)), 4),
        "rejected": {
            "permutation": round(float(np.mean([p is not None and p < LEVEL for p in permutation_p])), 4),
            "any persona, Holm": round(float(np.mean([p < LEVEL for p in least_holm_p])), 4),
        },
    }  # fmt: skip


POOLED = ("mean", "worst", "pss", "persona_sd", "relative_persona_sd")
N_TRAINING_SEEDS = 3
SEED_SETTINGS = (
    Setting("none", 0, 16, 150, 0.5),
    Setting("graded", 0.2, 16, 150, 0.6),
    Setting("one bad", 0.7, 16, 150, 0.6),
)


class TextSetting(NamedTuple):
    """A kind of grid of texts, as the module's docstring describes.

    `cost` is subtracted from the logit of an answer in character. `always_wrong`: the first persona is never right.
    `numbers_only`: an answer consists of its number alone.
    """

    distinctness: float
    in_character: float
    cost: float
    personas: int
    questions: int
    samples: int = 1
    missing: float = 0.0
    always_wrong: bool = False
    numbers_only: bool = False


TEXT_SETTINGS = (
    TextSetting(4.0, 0.7, 0.0, 6, 40),
    TextSetting(4.0, 0.7, 2.0, 6, 40),
    TextSetting(0.8, 0.7, 0.0, 6, 40),
    TextSetting(0.8, 0.7, 2.0, 6, 40),
    TextSetting(0.8, 0.7, 2.0, 6, 40, samples=2, missing=0.1),
    TextSetting(0.0, 0.7, 2.0, 6, 40),
    TextSetting(0.8, 0.7, 0.0, 6, 40, always_wrong=True),
    TextSetting(0.0, 0.0, 0.0, 6, 40, always_wrong=True),
    TextSetting(0.0, 0.0, 0.0, 6, 40, always_wrong=True, numbers_only=True),
)
VOCABULARY = tuple(f"{a}{b}{c}" for a in "bdfkmt" for b in "aeiou" for c in ("ll", "n"))
WORDS_OF_ANSWER = 10
SHARES = ("share", "right", "recognised", "recognised_if_right", "recognised_if_wrong")
BY_CHANCE = ("share_by_chance", "permuted", "length_only", "score_only")


def simulate_in_character(setting: TextSetting, data_sets: int, resamples: int, seed: int) -> dict[str, Any]:
    """Return the line of a setting of texts: coverage of the intervals of `SHARES`, and the means of the controls `BY_CHANCE`."""
    rng = np.random.default_rng(seed)
    weight_P_V = np.exp(setting.distinctness * rng.normal(size=(setting.personas, len(VOCABULARY))))
    summaries = [
        _measure_drawn_texts(setting, weight_P_V / weight_P_V.sum(axis=1, keepdims=True), rng, resamples)
        for _ in range(data_sets)
    ]
    means = {name: _mean_value([getattr(summary, name) for summary in summaries]) for name in (*SHARES, *BY_CHANCE)}
    return {
        **setting._asdict(), "data_sets": data_sets, "resamples": resamples, "seed": seed, "chance": 1 / setting.personas,
        "in_character_measures": {
            name: _coverage([getattr(summary, name) for summary in summaries], means[name]) for name in SHARES
        },
        "controls": {name: round(means[name], 4) for name in BY_CHANCE},
    }  # fmt: skip


def _mean_value(estimates: list[Estimate]) -> float:
    known = [estimate.value for estimate in estimates if estimate.value is not None]
    return float(np.mean(known)) if known else math.nan


def _measure_drawn_texts(setting: TextSetting, share_P_V: Array, rng: np.random.Generator, resamples: int) -> RightInCharacter:
    """Draw the answers of a grid, with the words of each persona from `share_P_V`, and measure them."""
    P, Q, S = setting.personas, setting.questions, setting.samples
    in_character_P_Q_S = rng.random((P, Q, S)) < setting.in_character
    ease_Q = rng.normal(0.5, DIFFICULTY_SD, Q)
    right_P_Q_S = rng.random((P, Q, S)) < expit(ease_Q[None, :, None] - setting.cost * in_character_P_Q_S)
    right_P_Q_S[0] &= not setting.always_wrong
    common_V = np.full(len(VOCABULARY), 1 / len(VOCABULARY))

    def draw_text(p: int, q: int, s: int) -> str | None:
        if rng.random() < setting.missing:
            return None
        number = str(q + 20 if right_P_Q_S[p, q, s] else rng.integers(100, 10_000))
        words = rng.choice(VOCABULARY, WORDS_OF_ANSWER, p=share_P_V[p] if in_character_P_Q_S[p, q, s] else common_V)
        return number if setting.numbers_only else f"{' '.join(words)} {number}"

    texts = [[[draw_text(p, q, s) for s in range(S)] for q in range(Q)] for p in range(P)]
    ids = [f"p{p}" for p in range(P)]
    return summarize_right_in_character(
        texts, right_P_Q_S.astype(float), ids, persona_ids=ids, question_ids=[f"q{q}" for q in range(Q)],
        seed=int(rng.integers(2**31)), resamples=resamples,
    )  # fmt: skip


def in_character_table(lines: list[dict[str, Any]]) -> str:
    """Return a Markdown table with the mean and the coverage of each share, and the means of the controls."""
    rows = [
        ["personas × questions", "distinctness", "in character", "cost", *(f"{name}: mean, held" for name in SHARES), *BY_CHANCE]
    ]
    for line in lines:
        notes = [name.replace("_", " ") for name in ("always_wrong", "numbers_only") if line[name]]
        notes += [f"{line['missing']:.0%} missing"] if line["missing"] else []
        size = _size(line) + "".join(f", {note}" for note in notes)
        measures = [line["in_character_measures"][name] for name in SHARES]
        shares = ["–" if not measure["n"] else f"{measure['true']:.2f}, {_coverage_text(measure)}" for measure in measures]
        controls = [f"{line['controls'][name]:.2f}" for name in BY_CHANCE]
        rows.append([size, f"{line['distinctness']:g}", f"{line['in_character']:.0%}", f"{line['cost']:g}", *shares, *controls])
    return markdown(rows)


def simulate_training_seeds(setting: Setting, data_sets: int, resamples: int, seed: int) -> dict[str, Any]:
    """Return the line of a setting: coverage and width of the intervals that pool three training seeds.

    All seeds have the same persona effects and answer the same questions.
    """
    rng = np.random.default_rng(seed)
    model = draw_model(setting, rng)
    true_values = model.true_values()
    pooled = []
    for _ in range(data_sets):
        ease_Q = rng.normal(0, DIFFICULTY_SD, setting.questions)
        grids = [
            (mean_over_samples(correct_P_Q_S), mean_over_samples(baseline_Q_S))
            for correct_P_Q_S, baseline_Q_S in (draw_grid(setting, model, rng, ease_Q) for _ in range(N_TRAINING_SEEDS))
        ]
        pooled.append(pool_stability(grids, seed=int(rng.integers(2**31)), resamples=resamples))
    measures = {name: _coverage([estimates[name] for estimates in pooled], true_values[name]) for name in POOLED}
    return {
        **setting._asdict(), "training_seeds": N_TRAINING_SEEDS, "data_sets": data_sets, "resamples": resamples, "seed": seed,
        "measures": measures,
    }  # fmt: skip


def simulate_pair(pair: ModelPair, data_sets: int, resamples: int, seed: int) -> dict[str, Any]:
    """Return the line of a pair of models, about the differences of their measures.

    It has the coverage of the intervals, how often they exclude 0, and how often the swap test rejects at .05.
    """
    rng = np.random.default_rng(seed)
    first = draw_model(pair.setting, rng)
    second = _simulated_model(first.intercept + pair.gain, first.shift_P * pair.factor)
    first_true, second_true = first.true_values(), second.true_values()
    differences: dict[str, list[MeasureDifference]] = {}
    for _ in range(data_sets):
        ease_Q = rng.normal(0, DIFFICULTY_SD, pair.setting.questions)
        first_uniform_N_Q = rng.random((pair.setting.personas + 1, pair.setting.questions))
        is_same_N_Q = rng.random(first_uniform_N_Q.shape) < pair.same
        second_uniform_N_Q = np.where(is_same_N_Q, first_uniform_N_Q, rng.random(first_uniform_N_Q.shape))
        first_N_Q, second_N_Q = (
            (uniform_N_Q < expit(model.intercept + ease_Q + np.concatenate([model.shift_P, [0.0]])[:, None])).astype(float)
            for model, uniform_N_Q in ((first, first_uniform_N_Q), (second, second_uniform_N_Q))
        )
        ids = [str(p) for p in range(pair.setting.personas)]
        comparison = compare_models_paired(first_N_Q, second_N_Q, ids, seed=int(rng.integers(2**31)), resamples=resamples)
        for difference in comparison.measures:
            differences.setdefault(difference.name, []).append(difference)
    measures = {}
    for name in PAIRED:
        coverage = _coverage([each.difference for each in differences[name]], second_true[name] - first_true[name])
        coverage["not 0"] = round(float(np.mean([_excludes_0(each.difference) for each in differences[name]])), 4)
        rejected = [each.p is not None and each.p < LEVEL for each in differences[name]]
        coverage["rejected"] = round(float(np.mean(rejected)), 4)
        measures[name] = coverage
    return {
        **pair.setting._asdict(), **pair._asdict() | {"setting": None}, "data_sets": data_sets, "resamples": resamples,
        "seed": seed, "pair": measures,
    }  # fmt: skip


def _excludes_0(estimate: Estimate) -> bool:
    return estimate.low is not None and estimate.high is not None and (estimate.low > 0 or estimate.high < 0)


def _coverage(estimates: list[Estimate], truth: float) -> dict[str, float]:
    """Return the coverage, the bias and the mean width of these estimates, given the true value."""
    value_N = np.array([estimate.value for estimate in estimates if estimate.value is not None])
    known = [(each.low, each.high) for each in estimates if each.low is not None and each.high is not None]
    low_N, high_N = np.array(known, dtype=float).T if known else np.full((2, 1), np.nan)
    return {
        "true": round(truth, 4),
        "held": round(float(((low_N <= truth + 1e-9) & (truth <= high_N + 1e-9)).mean()), 4) if known else math.nan,
        "below": round(float((truth < low_N - 1e-9).mean()), 4),
        "bias": round(float(value_N.mean() - truth), 4),
        "width": round(float((high_N - low_N).mean()), 4),
        "n": len(known),
    }


def _coverage_of_personas(summaries: list[StabilitySummary], name: str, truth_P: Array) -> dict[str, float]:
    """Return the means over personas of `_coverage` of an estimate that each persona has."""
    by_persona = [
        _coverage([getattr(summary.personas[p], name) for summary in summaries], float(truth)) for p, truth in enumerate(truth_P)
    ]
    return {key: round(float(np.mean([coverage[key] for coverage in by_persona])), 4) for key in by_persona[0]}


def markdown_tables(lines: list[dict[str, Any]]) -> str:
    """Return Markdown tables of lines of all kinds: coverage, bias of PSS and rejections, pairs, pooled seeds, texts."""
    pairs, pooled, texts = (
        [line for line in lines if key in line] for key in ("pair", "training_seeds", "in_character_measures")
    )
    single = [line for line in lines if line not in pairs and line not in pooled and line not in texts]
    headings = ["personas × questions", "accuracy", "effect"]
    coverage_rows = [[*headings, *MEASURE_LABELS.values()]]
    bias_rows = [[*headings, "true PSS", "PSS, mean", "as observed", "cross-fitted", "worst, bias", "test rejects"]]
    for line in single:
        measures = line["measures"]
        coverage_rows.append([*_setting_cells(line), *(_coverage_text(measures[name]) for name in MEASURE_LABELS)])
        pss, crossfit = (measures[name]["true"] + measures[name]["bias"] for name in ("pss", "pss_crossfit"))
        ratios = [f"{value:.2f}" for value in (measures["pss"]["true"], pss, line["pss_observed"], crossfit)]
        bias = f"{measures['worst']['bias']:+.3f}".replace("-", "−")
        bias_rows.append([*_setting_cells(line), *ratios, bias, f"{100 * line['rejected']['permutation']:.1f} %"])
    pair_rows = [[*headings, "second model", "same luck", *(f"{MEASURE_LABELS[name]}: held, not 0, test" for name in PAIRED)]]
    for line in pairs:
        second = "alike" if line["factor"] == 1 and not line["gain"] else f"effects × {line['factor']:g}, + {line['gain']:g}"
        differences = [line["pair"][name] for name in PAIRED]
        shares = [", ".join(f"{100 * each[key]:.0f}" for key in ("held", "not 0", "rejected")) for each in differences]
        pair_rows.append([*_setting_cells(line), second, f"{line['same']:.0%}", *shares])
    seed_rows = [[*headings, "training seeds", *(MEASURE_LABELS[name] for name in POOLED)]]
    for line in pooled:
        coverage = [_coverage_text(line["measures"][name]) for name in POOLED]
        seed_rows.append([*_setting_cells(line), str(line["training_seeds"]), *coverage])
    tables = [markdown(rows) for rows in (coverage_rows, bias_rows, pair_rows, seed_rows) if len(rows) > 1]
    return "\n\n".join([*tables, *([in_character_table(texts)] if texts else [])])


MEASURE_LABELS = {
    "baseline": "$A_0$",
    "mean": "mean",
    "mean_minus_baseline": "shift",
    "a persona's accuracy": "$A_p$",
    "a persona's difference": "$A_p-A_0$",
    "worst": "worst",
    "best": "best",
    "spread": "spread",
    "pss": "PSS",
    "worst_minus_baseline": "worst $-A_0$",
    "persona_sd": "sd",
    "relative_persona_sd": "sd / mean",
}


def _setting_cells(line: dict[str, Any]) -> list[str]:
    return [_size(line), f"{line['accuracy']:g}", _effect(line)]


def _size(line: dict[str, Any]) -> str:
    samples = f" × {line['samples']}" if line["samples"] > 1 else ""
    return f"{line['personas']} × {line['questions']}{samples}"


def _effect(line: dict[str, Any]) -> str:
    size = f" {line['size']:g}" if line["size"] else ""
    size += f", interaction {line['interaction']:g}" if line.get("interaction") else ""
    return f"{line['effect']}{size}" + (f", {line['missing']:.0%} missing" if line["missing"] else "")


def _coverage_text(measure: dict[str, float]) -> str:
    return "–" if math.isnan(measure["held"]) else f"{100 * measure['held']:.0f}"


def markdown(rows: list[list[str]]) -> str:
    """Return a Markdown table whose first row is the heading."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|" + "---:|" * len(rows[0]), *lines[1:]])


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-sets", type=int, default=300, help="simulated grids of each setting")
    parser.add_argument("--resamples", type=int, default=400, help="bootstrap resamples and permutations of each grid")
    parser.add_argument("--draws", type=int, default=2000, help="posterior draws of each grid")
    parser.add_argument("--splits", type=int, default=20, help="splits into halves for the cross-fitted PSS")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--only", type=int, nargs="+", help="indices of the settings to simulate, from 0; by default all")
    parser.add_argument("--training-seeds", action="store_true", help="simulate three training seeds, pooled")
    parser.add_argument("--pairs", action="store_true", help="simulate pairs of models")
    parser.add_argument("--in-character", action="store_true", help="simulate whole answers, for right and in character")
    parser.add_argument("--page", type=Path, help="print the tables of the lines in this file, and simulate nothing")
    return parser


def main() -> None:
    options = parser().parse_args()
    if options.page:
        print(markdown_tables([json.loads(line) for line in options.page.read_text(encoding="utf-8").splitlines()]))
        return
    priors.N_DRAWS, stability.CROSSFIT_SPLITS = options.draws, options.splits
    priors.MAX_CHAIN_PERSONAS = options.draws  # fewer chains with the same number of steps
    size = options.data_sets, options.resamples, options.seed
    if options.pairs:
        simulations = [partial(simulate_pair, pair, *size) for pair in PAIRS]
    elif options.in_character:
        simulations = [partial(simulate_in_character, setting, *size) for setting in TEXT_SETTINGS]
    elif options.training_seeds:
        simulations = [partial(simulate_training_seeds, setting, *size) for setting in SEED_SETTINGS]
    else:
        simulations = [partial(simulate, setting, *size) for setting in SETTINGS]
    for index, simulation in enumerate(simulations):
        if options.only is None or index in options.only:
            print(json.dumps(simulation()), flush=True)


if __name__ == "__main__":
    main()
