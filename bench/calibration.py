"""How often the 95 % intervals hold the truth, how far estimates lie from it, and how often the tests reject: by simulation.

Grids with known truth are drawn and measured by `permix.metrics.stability.summarize_stability` itself. Question difficulty
is normal on the logit scale (sd 1.5) and shared by all personas; a persona shifts the logit. The truth of a measure is its value
over all such questions. One JSON line a setting; with --page, the tables of docs/measures.md from such lines.

    python -m bench.calibration > calibration.jsonl
    python -m bench.calibration --pairs --data-sets 100 >> calibration.jsonl
    python -m bench.calibration --page calibration.jsonl

With --training-seeds the models of three training seeds answer the same questions and are pooled by
`permix.metrics.stability.pool_stability`. With --pairs two models answer the same questions and are compared by
`permix.metrics.model_comparison.compare_models_paired`.

With --in-character whole answers are drawn and measured by `permix.metrics.right_in_character.summarize_right_in_character`. Each
persona has its own distribution of words: the common one times exp(distinctness z), with normal z. An answer is in character with
probability `in_character`, and otherwise drawn from the common words. The truth of a share is the mean of the estimates over all
grids of the setting, which is what classifiers trained on so many answers attain.
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
"""The difficulties that stand for all questions."""
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
    """A kind of grid. `effect`: what a persona shifts the logit by; `size` is its sd, or what the bad ones lose.

    With the effect "rest right" all personas but one are always right; that one is wrong with probability `size`. `interaction`
    is the sd of a shift that each cell has of its own.
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


class Pair(NamedTuple):
    """A grid, and a second model whose personas have `factor` of the first one's effects, `gain` added to every logit.

    `same`: the share of cells that both would answer by the same luck.
    """

    setting: Setting
    factor: float = 1.0
    gain: float = 0.0
    same: float = 0.0


PAIRS = (
    Pair(Setting("none", 0, 16, 100, 0.5)),
    Pair(Setting("graded", 0.4, 16, 100, 0.5)),
    Pair(Setting("graded", 0.4, 16, 100, 0.5), same=0.8),
    Pair(Setting("one bad", 1.5, 16, 100, 0.5)),
    Pair(Setting("one bad", 1.5, 16, 100, 0.5), same=0.8),
    Pair(Setting("graded", 0.6, 16, 100, 0.5), factor=0.3),
    Pair(Setting("graded", 0.6, 16, 100, 0.5), factor=0.3, same=0.8),
    Pair(Setting("one bad", 1.5, 16, 100, 0.5), factor=0.3, gain=0.3),
    Pair(Setting("graded", 0.4, 16, 400, 0.5), factor=0.6, same=0.8),
)


class World(NamedTuple):
    """The logit of a question of mean difficulty, what personas add to it, and the true accuracies."""

    intercept: float
    shift_P: Array
    accuracy_P: Array
    baseline: float

    def truth(self) -> dict[str, float]:
        worst, best, mean = (float(found) for found in (self.accuracy_P.min(), self.accuracy_P.max(), self.accuracy_P.mean()))
        sd = float(self.accuracy_P.std(ddof=1))
        return {
            "baseline": self.baseline, "mean": mean, "mean_minus_baseline": mean - self.baseline, "worst": worst, "best": best,
            "spread": best - worst, "pss": worst / best, "worst_minus_baseline": worst - self.baseline, "persona_sd": sd,
            "relative_persona_sd": sd / mean, "pss_crossfit": worst / best,
        }  # fmt: skip


def world(setting: Setting, rng: np.random.Generator) -> World:
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
            return _world(30.0, np.where(np.arange(P) == 0, bad, 0.0))
        case "heavy":
            shift_P = setting.size * rng.standard_t(1.5, size=P)
        case _:
            shift_P = rng.normal(size=P)
            shift_P = setting.size * (shift_P - shift_P.mean()) / shift_P.std()
    many_Q = _difficulties(setting.interaction)
    intercept = float(brentq(lambda logit: expit(logit + many_Q).mean() - setting.accuracy, -30, 30))
    return _world(intercept, shift_P, setting.interaction)


def _difficulties(interaction: float) -> Array:
    """The difficulties of all cells: of questions, and the cells' own shifts."""
    return np.asarray(MANY_Q * math.hypot(DIFFICULTY_SD, interaction) / DIFFICULTY_SD)


def _world(intercept: float, shift_P: Array, interaction: float = 0.0) -> World:
    many_Q = _difficulties(interaction)
    accuracy_N = np.array([expit(intercept + many_Q + shift).mean() for shift in [*shift_P, 0.0]])
    return World(intercept, shift_P, accuracy_N[:-1], float(accuracy_N[-1]))


def grid(setting: Setting, of: World, rng: np.random.Generator, easy_Q: Array | None = None) -> tuple[Array, Array]:
    """Scores with personas [P, Q, S] and without [Q, S]. `easy_Q`: the questions' difficulties; drawn when not given."""
    easy_Q = of.intercept + (rng.normal(0, DIFFICULTY_SD, setting.questions) if easy_Q is None else easy_Q)
    own_N_Q = setting.interaction * rng.normal(size=(setting.personas + 1, setting.questions)) if setting.interaction else 0.0
    chance_N_Q = expit(easy_Q + np.concatenate([of.shift_P, [0.0]])[:, None] + own_N_Q)
    right_N_Q_S = (rng.random((*chance_N_Q.shape, setting.samples)) < chance_N_Q[:, :, None]).astype(float)
    right_N_Q_S[rng.random(right_N_Q_S.shape) < setting.missing] = np.nan
    return right_N_Q_S[:-1], right_N_Q_S[-1]


def simulate(setting: Setting, data_sets: int, resamples: int, seed: int) -> dict[str, Any]:
    """Coverage, bias and mean width of every interval, and how often the tests reject at .05."""
    rng = np.random.default_rng(seed)
    of = world(setting, rng)
    truth = of.truth()
    found = [
        summarize_stability(*grid(setting, of, rng), seed=int(rng.integers(2**31)), resamples=resamples) for _ in range(data_sets)
    ]
    measures = {name: _coverage([one.measures[name] for one in found], value) for name, value in truth.items()}
    measures["a persona's accuracy"] = _coverage_of_personas(found, "accuracy", of.accuracy_P)
    measures["a persona's difference"] = _coverage_of_personas(found, "difference", of.accuracy_P - of.baseline)
    p = [one.permutation_p.value for one in found]
    holm = [min((persona.holm_p or 1.0) for persona in one.personas) for one in found]
    observed = [one.pss_observed.value for one in found if one.pss_observed.value is not None]
    return {
        **setting._asdict(), "data_sets": data_sets, "resamples": resamples, "seed": seed, "measures": measures,
        "pss_observed": round(float(np.mean(observed)), 4),
        "rejected": {
            "permutation": round(float(np.mean([one is not None and one < LEVEL for one in p])), 4),
            "any persona, Holm": round(float(np.mean([one < LEVEL for one in holm])), 4),
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
    """A kind of grid of texts. `cost`: what being in character subtracts from the logit of a right answer.

    `always_wrong`: the first persona is never right. `numbers_only`: an answer has no word but its number.
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
    """Coverage of the intervals of right and in character, and the means of its controls."""
    rng = np.random.default_rng(seed)
    weight_P_V = np.exp(setting.distinctness * rng.normal(size=(setting.personas, len(VOCABULARY))))
    found = [
        _measure_drawn_texts(setting, weight_P_V / weight_P_V.sum(axis=1, keepdims=True), rng, resamples)
        for _ in range(data_sets)
    ]
    means = {name: _mean_value([getattr(one, name) for one in found]) for name in (*SHARES, *BY_CHANCE)}
    return {
        **setting._asdict(), "data_sets": data_sets, "resamples": resamples, "seed": seed, "chance": 1 / setting.personas,
        "in_character_measures": {
            name: _coverage([getattr(one, name) for one in found], means[name]) for name in SHARES
        },
        "controls": {name: round(means[name], 4) for name in BY_CHANCE},
    }  # fmt: skip


def _mean_value(found: list[Estimate]) -> float:
    known = [one.value for one in found if one.value is not None]
    return float(np.mean(known)) if known else math.nan


def _measure_drawn_texts(setting: TextSetting, share_P_V: Array, rng: np.random.Generator, resamples: int) -> RightInCharacter:
    P, Q, S = setting.personas, setting.questions, setting.samples
    played_P_Q_S = rng.random((P, Q, S)) < setting.in_character
    easy_Q = rng.normal(0.5, DIFFICULTY_SD, Q)
    right_P_Q_S = rng.random((P, Q, S)) < expit(easy_Q[None, :, None] - setting.cost * played_P_Q_S)
    right_P_Q_S[0] &= not setting.always_wrong
    common_V = np.full(len(VOCABULARY), 1 / len(VOCABULARY))

    def text(p: int, q: int, s: int) -> str | None:
        if rng.random() < setting.missing:
            return None
        number = str(q + 20 if right_P_Q_S[p, q, s] else rng.integers(100, 10_000))
        words = rng.choice(VOCABULARY, WORDS_OF_ANSWER, p=share_P_V[p] if played_P_Q_S[p, q, s] else common_V)
        return number if setting.numbers_only else f"{' '.join(words)} {number}"

    texts = [[[text(p, q, s) for s in range(S)] for q in range(Q)] for p in range(P)]
    ids = [f"p{p}" for p in range(P)]
    return summarize_right_in_character(
        texts, right_P_Q_S.astype(float), ids, persona_ids=ids, question_ids=[f"q{q}" for q in range(Q)],
        seed=int(rng.integers(2**31)), resamples=resamples,
    )  # fmt: skip


def in_character_page(lines: list[dict[str, Any]]) -> str:
    """Markdown: coverage of each share with its mean, and the means of the controls."""
    rows = [
        ["personas × questions", "distinctness", "in character", "cost", *(f"{name}: mean, held" for name in SHARES), *BY_CHANCE]
    ]
    for one in lines:
        notes = [name.replace("_", " ") for name in ("always_wrong", "numbers_only") if one[name]]
        notes += [f"{one['missing']:.0%} missing"] if one["missing"] else []
        size = _size(one) + "".join(f", {note}" for note in notes)
        measures = [one["in_character_measures"][name] for name in SHARES]
        shares = ["–" if not found["n"] else f"{found['true']:.2f}, {_held(found)}" for found in measures]
        controls = [f"{one['controls'][name]:.2f}" for name in BY_CHANCE]
        rows.append([size, f"{one['distinctness']:g}", f"{one['in_character']:.0%}", f"{one['cost']:g}", *shares, *controls])
    return markdown(rows)


def simulate_training_seeds(setting: Setting, data_sets: int, resamples: int, seed: int) -> dict[str, Any]:
    """Coverage and width of the pooled intervals of three training seeds with the same personas' effects and questions."""
    rng = np.random.default_rng(seed)
    of = world(setting, rng)
    truth = of.truth()
    found = []
    for _ in range(data_sets):
        easy_Q = rng.normal(0, DIFFICULTY_SD, setting.questions)
        grids = [
            (mean_over_samples(under_P_Q_S), mean_over_samples(without_Q_S))
            for under_P_Q_S, without_Q_S in (grid(setting, of, rng, easy_Q) for _ in range(N_TRAINING_SEEDS))
        ]
        found.append(pool_stability(grids, seed=int(rng.integers(2**31)), resamples=resamples))
    measures = {name: _coverage([one[name] for one in found], truth[name]) for name in POOLED}
    return {
        **setting._asdict(), "training_seeds": N_TRAINING_SEEDS, "data_sets": data_sets, "resamples": resamples, "seed": seed,
        "measures": measures,
    }  # fmt: skip


def simulate_pair(pair: Pair, data_sets: int, resamples: int, seed: int) -> dict[str, Any]:
    """Coverage of the differences' intervals, how often they leave out 0, and how often the swap test rejects at .05."""
    rng = np.random.default_rng(seed)
    first = world(pair.setting, rng)
    other = _world(first.intercept + pair.gain, first.shift_P * pair.factor)
    one, two = first.truth(), other.truth()
    found: dict[str, list[MeasureDifference]] = {}
    for _ in range(data_sets):
        easy_Q = rng.normal(0, DIFFICULTY_SD, pair.setting.questions)
        luck_N_Q = rng.random((pair.setting.personas + 1, pair.setting.questions))
        anew_N_Q = np.where(rng.random(luck_N_Q.shape) < pair.same, luck_N_Q, rng.random(luck_N_Q.shape))
        rows = [
            (luck_N_Q < expit(of.intercept + easy_Q + np.concatenate([of.shift_P, [0.0]])[:, None])).astype(float)
            for of, luck_N_Q in ((first, luck_N_Q), (other, anew_N_Q))
        ]
        ids = [str(p) for p in range(pair.setting.personas)]
        for difference in compare_models_paired(
            rows[0], rows[1], ids, seed=int(rng.integers(2**31)), resamples=resamples
        ).measures:
            found.setdefault(difference.name, []).append(difference)
    measures = {}
    for name in PAIRED:
        found_coverage = _coverage([difference.difference for difference in found[name]], two[name] - one[name])
        found_coverage["not 0"] = round(float(np.mean([_leaves_out_0(one.difference) for one in found[name]])), 4)
        found_coverage["rejected"] = round(float(np.mean([one.p is not None and one.p < LEVEL for one in found[name]])), 4)
        measures[name] = found_coverage
    return {
        **pair.setting._asdict(), **pair._asdict() | {"setting": None}, "data_sets": data_sets, "resamples": resamples,
        "seed": seed, "pair": measures,
    }  # fmt: skip


def _leaves_out_0(one: Estimate) -> bool:
    return one.low is not None and one.high is not None and (one.low > 0 or one.high < 0)


def _coverage(found: list[Estimate], truth: float) -> dict[str, float]:
    value_N = np.array([one.value for one in found if one.value is not None])
    known = [(one.low, one.high) for one in found if one.low is not None and one.high is not None]
    low_N, high_N = np.array(known, dtype=float).T if known else np.full((2, 1), np.nan)
    return {
        "true": round(truth, 4),
        "held": round(float(((low_N <= truth + 1e-9) & (truth <= high_N + 1e-9)).mean()), 4) if known else math.nan,
        "below": round(float((truth < low_N - 1e-9).mean()), 4),
        "bias": round(float(value_N.mean() - truth), 4),
        "width": round(float((high_N - low_N).mean()), 4),
        "n": len(known),
    }


def _coverage_of_personas(found: list[StabilitySummary], name: str, truth_P: Array) -> dict[str, float]:
    """Mean over personas."""
    each = [_coverage([getattr(one.personas[p], name) for one in found], float(truth)) for p, truth in enumerate(truth_P)]
    return {key: round(float(np.mean([one[key] for one in each])), 4) for key in each[0]}


def page(lines: list[dict[str, Any]]) -> str:
    """Markdown: coverage of each interval, then bias of what is made of extremes, and the tests."""
    covered = [["personas × questions", "accuracy", "effect", *COVERED.values()]]
    pairs, pooled, texts = (
        [line for line in lines if key in line] for key in ("pair", "training_seeds", "in_character_measures")
    )
    lines = [line for line in lines if line not in pairs and line not in pooled and line not in texts]
    near = [[*covered[0][:3], "true PSS", "PSS, mean", "as observed", "cross-fitted", "worst, bias", "test rejects"]]
    for one in lines:
        measures = one["measures"]
        about = [_size(one), f"{one['accuracy']:g}", _effect(one)]
        covered.append([*about, *(_held(measures[name]) for name in COVERED)])
        pss, crossfit = (measures[name]["true"] + measures[name]["bias"] for name in ("pss", "pss_crossfit"))
        ratios = [f"{value:.2f}" for value in (measures["pss"]["true"], pss, one["pss_observed"], crossfit)]
        bias = f"{measures['worst']['bias']:+.3f}".replace("-", "−")
        near.append([*about, *ratios, bias, f"{100 * one['rejected']['permutation']:.1f} %"])
    together = [[*covered[0][:3], "second model", "same luck", *(f"{COVERED[name]}: held, not 0, test" for name in PAIRED)]]
    for one in pairs:
        second = "alike" if one["factor"] == 1 and not one["gain"] else f"effects × {one['factor']:g}, + {one['gain']:g}"
        found = [one["pair"][name] for name in PAIRED]
        shares = [", ".join(f"{100 * measure[key]:.0f}" for key in ("held", "not 0", "rejected")) for measure in found]
        together.append([_size(one), f"{one['accuracy']:g}", _effect(one), second, f"{one['same']:.0%}", *shares])
    seeds = [[*covered[0][:3], "training seeds", *(COVERED[name] for name in POOLED)]]
    for one in pooled:
        about = [_size(one), f"{one['accuracy']:g}", _effect(one), str(one["training_seeds"])]
        seeds.append([*about, *(_held(one["measures"][name]) for name in POOLED)])
    tables = [markdown(table) for table in (covered, near, together, seeds) if len(table) > 1]
    return "\n\n".join([*tables, *([in_character_page(texts)] if texts else [])])


COVERED = {
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


def _size(one: dict[str, Any]) -> str:
    samples = f" × {one['samples']}" if one["samples"] > 1 else ""
    return f"{one['personas']} × {one['questions']}{samples}"


def _effect(one: dict[str, Any]) -> str:
    size = f" {one['size']:g}" if one["size"] else ""
    size += f", interaction {one['interaction']:g}" if one.get("interaction") else ""
    return f"{one['effect']}{size}" + (f", {one['missing']:.0%} missing" if one["missing"] else "")


def _held(one: dict[str, float]) -> str:
    return "–" if math.isnan(one["held"]) else f"{100 * one['held']:.0f}"


def markdown(rows: list[list[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|" + "---:|" * len(rows[0]), *lines[1:]])


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-sets", type=int, default=300, help="grids of a setting")
    parser.add_argument("--resamples", type=int, default=400, help="bootstrap draws and permutations of a grid")
    parser.add_argument("--draws", type=int, default=2000, help="draws of true accuracies of a grid")
    parser.add_argument("--splits", type=int, default=20, help="half splits of the cross-fitted PSS")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--only", type=int, nargs="+", help="these settings, by place; all when not given")
    parser.add_argument("--training-seeds", action="store_true", help="three training seeds, pooled")
    parser.add_argument("--pairs", action="store_true", help="pairs of models instead of single ones")
    parser.add_argument("--in-character", action="store_true", help="whole answers, right and in character")
    parser.add_argument("--page", type=Path, help="simulate nothing: tables of the lines in this file")
    return parser


def main() -> None:
    options = parser().parse_args()
    if options.page:
        print(page([json.loads(line) for line in options.page.read_text(encoding="utf-8").splitlines()]))
        return
    priors.N_DRAWS, stability.CROSSFIT_SPLITS = options.draws, options.splits
    priors.MAX_CHAIN_PERSONAS = options.draws  # fewer chains, as many steps
    how = options.data_sets, options.resamples, options.seed
    if options.pairs:
        lines = [partial(simulate_pair, one, *how) for one in PAIRS]
    elif options.in_character:
        lines = [partial(simulate_in_character, one, *how) for one in TEXT_SETTINGS]
    elif options.training_seeds:
        lines = [partial(simulate_training_seeds, one, *how) for one in SEED_SETTINGS]
    else:
        lines = [partial(simulate, one, *how) for one in SETTINGS]
    for place, line in enumerate(lines):
        if options.only is None or place in options.only:
            print(json.dumps(line()), flush=True)


if __name__ == "__main__":
    main()
