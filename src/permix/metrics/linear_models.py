"""Several wordings of the same personas: is it the persona that moves the accuracy, or the words that bring it in?

Its contract: pure functions of scores by template, persona and question. Templates and personas are these ones and no sample of
any, questions are drawn; so an effect is judged by how it differs from question to question, which is what every interval here is
over. The standard deviations are the components of a three-way analysis of variance on the questions that have a score
under every template and persona; the rest stay in each template's own row.

The arithmetic of drift: how a measure changes with the turns of an interview, and what an answer repeats.

Contract: pure functions; no files, no records, no global random state. Suffixes name axes: P personas, I turns, R resamples of
personas. NaN is no score: left out, never zero. `question_P_I` numbers the question that each persona was asked at each turn.

Turn and question are told apart by least squares on  value_pi = a_p + c_q(p,i) + b z_i + noise:  every persona has a level of its
own, every question one that all personas share, and b is what the turn itself adds. With a balanced order each question stands
equally often at every turn, the c drop out, and b is the mean over personas of their own slopes. With one number for all
questions nothing is taken off: b is then what turn and question do together.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from permix.metrics import statistics
from permix.metrics.stability import summarize_stability
from permix.metrics.statistics import TIE_TOLERANCE, Array
from permix.metrics.text_stats import ngrams, tokenize_words
from permix.types import Estimate, Record


class TemplateSummary(Record):
    """The stability of one template by itself; fields as in `StabilitySummary`."""

    id: str
    text: str
    mean: Estimate
    worst: Estimate
    pss: Estimate
    mean_minus_baseline: Estimate


class TemplateEffects(Record):
    """`persona_sd`: of personas' accuracies, each averaged over the templates. `template_sd`: of templates' accuracies, each
    averaged over the personas. `persona_template_sd`: of what the two do together besides. n counts complete questions.
    """

    templates: tuple[TemplateSummary, ...]
    persona_sd: Estimate
    template_sd: Estimate
    persona_template_sd: Estimate


def summarize_template_effects(
    correct_W_P_Q_S: ArrayLike, baseline_Q_S: ArrayLike, template_texts: dict[str, str], *, seed: int = 0, resamples: int = 2000
) -> TemplateEffects:
    """Scores in [0, 1], NaN where there is none; `template_texts` are the wordings by id, in the order of W. ValueError as
    `summarize_stability`."""
    correct = np.asarray(correct_W_P_Q_S, dtype=float)
    alone = [summarize_stability(one_P_Q_S, baseline_Q_S, seed=seed, resamples=resamples) for one_P_Q_S in correct]
    rows = [
        TemplateSummary(
            id=id, text=text, mean=one.mean, worst=one.worst, pss=one.pss, mean_minus_baseline=one.mean_minus_baseline
        )
        for (id, text), one in zip(template_texts.items(), alone, strict=True)
    ]
    return TemplateEffects(templates=tuple(rows), **variance_components(statistics.mean_over_samples(correct))._asdict())


class VarianceComponents(NamedTuple):
    persona_sd: Estimate
    template_sd: Estimate
    persona_template_sd: Estimate


def variance_components(mean_W_P_Q: Array) -> VarianceComponents:
    """The components with their intervals; None for a factor of one level, and for fewer than two complete questions.

    With x_wpq = μ + b_w + a_p + (ab)_wp + q + (bq) + (aq) + e, questions random, a mean square of effects is judged by that of
    the same effects' interaction with questions: sd_w² = (MS_w − MS_wq) / (P Q), sd_p² = (MS_p − MS_pq) / (W Q),
    sd_wp² = (MS_wp − MS_wpq) / Q.
    """
    whole_W_P_Q = mean_W_P_Q[:, :, ~np.isnan(mean_W_P_Q).any(axis=(0, 1))]
    W, P, Q = whole_W_P_Q.shape
    by_question = {
        "persona_sd": (whole_W_P_Q.mean(axis=0) - whole_W_P_Q.mean(axis=(0, 1)), P - 1, W),
        "template_sd": (whole_W_P_Q.mean(axis=1) - whole_W_P_Q.mean(axis=(0, 1)), W - 1, P),
        "persona_template_sd": (_interaction(whole_W_P_Q).reshape(W * P, Q), (W - 1) * (P - 1), 1),
    }
    return VarianceComponents(**{name: _variance_component(*one) for name, one in by_question.items()})


def _interaction(complete_W_P_Q: Array) -> Array:
    """What template and persona do together, question by question: x − x_w − x_p + x."""
    over = [complete_W_P_Q.mean(axis=axis, keepdims=True) for axis in (1, 0, (0, 1))]
    return np.asarray(complete_W_P_Q - over[0] - over[1] + over[2])


def _variance_component(effect_N_Q: Array, df: int, scores_per_effect: int) -> Estimate:
    """`effect_N_Q`: each level's effect on each question, a mean of `scores_per_effect` scores; adds up to 0 over the levels."""
    Q = effect_N_Q.shape[1]
    if df < 1 or Q < 2:
        return Estimate(value=None, n=Q)
    effect_N = effect_N_Q.mean(axis=1)
    square = scores_per_effect * Q * float((effect_N**2).sum()) / df
    error = scores_per_effect * float(((effect_N_Q - effect_N[:, None]) ** 2).sum()) / (df * (Q - 1))
    return statistics.variance_component_sd(square, error, df, df * (Q - 1), scores_per_effect * Q)


def split_by_template(correct_P_Q_S: Array, templates: Sequence[str]) -> Array:
    """correct_W_P_Q_S of scores whose samples stand template by template, as `Answers.scores` gives them."""
    P, Q, _ = correct_P_Q_S.shape
    return np.moveaxis(correct_P_Q_S.reshape(P, Q, len(templates), -1), 2, 0)


QuestionIndex = NDArray[np.int64]


REPETITION_NGRAM = 4  # words: chance rarely makes four in a row again

ECHO_NGRAM = 3


def turn_effect(value_P_I: Array, question_P_I: QuestionIndex, regressor_I: Array, counts_R_P: Array) -> Array:
    """b of the model above for each row of persona weights; a turn whose regressor is NaN is left out.

    Persona levels are taken off by centring each persona on its own scored turns, question levels by the Schur complement of
    the normal equations: b = (S_zx − S_zq S_qq⁺ S_qx) / (S_zz − S_zq S_qq⁺ S_qz). NaN where questions and turns cannot be told
    apart, as when all personas of a resample were asked in the same order.
    """
    known_P_I = ~np.isnan(value_P_I) & ~np.isnan(regressor_I)
    asked_P_I_Q = np.eye(int(question_P_I.max()) + 1)[question_P_I]
    regressor_P_I_1 = np.broadcast_to(np.nan_to_num(regressor_I), value_P_I.shape)[:, :, None]
    design_P_I_D = _center_by_persona(np.concatenate([asked_P_I_Q, regressor_P_I_1], axis=2), known_P_I)
    value_P_I_1 = _center_by_persona(np.nan_to_num(value_P_I)[:, :, None], known_P_I)

    normal_R_D_D = np.tensordot(counts_R_P, design_P_I_D.transpose(0, 2, 1) @ design_P_I_D, axes=1)
    right_R_D = np.tensordot(counts_R_P, design_P_I_D.transpose(0, 2, 1) @ value_P_I_1, axes=1)[:, :, 0]
    inverse_R_Q_Q = np.linalg.pinv(normal_R_D_D[:, :-1, :-1], rcond=TIE_TOLERANCE, hermitian=True)
    taken_R_Q = np.einsum("rq,rqk->rk", normal_R_D_D[:, -1, :-1], inverse_R_Q_Q)
    left_R = normal_R_D_D[:, -1, -1] - (taken_R_Q * normal_R_D_D[:, :-1, -1]).sum(axis=1)
    top_R = right_R_D[:, -1] - (taken_R_Q * right_R_D[:, :-1]).sum(axis=1)
    told_R = left_R > 1e-6 * np.maximum(normal_R_D_D[:, -1, -1], TIE_TOLERANCE)
    return np.asarray(np.divide(top_R, left_R, out=np.full(len(left_R), np.nan), where=told_R))


def _center_by_persona(value_P_I_D: Array, known_P_I: NDArray[np.bool_]) -> Array:
    """Less each persona's mean over its known turns; 0 where nothing is known."""
    known_P_I_1 = known_P_I[:, :, None]
    count_P_1_1 = np.maximum(known_P_I_1.sum(axis=1, keepdims=True), 1)
    mean_P_1_D = (value_P_I_D * known_P_I_1).sum(axis=1, keepdims=True) / count_P_1_1
    return np.asarray((value_P_I_D - mean_P_1_D) * known_P_I_1)


def slope_regressor(first_turn: int, n_turns: int) -> Array:
    """The regressor of a slope: the turn's number, NaN before turn `first_turn`."""
    turn_I = np.arange(1, n_turns + 1, dtype=float)
    return np.where(turn_I < first_turn, np.nan, turn_I)


def late_regressor(first_turn: int, n_turns: int) -> Array:
    """The regressor of late − early: 0 in the first half of the turns from `first_turn` on, 1 in the second, NaN elsewhere."""
    place_I = np.arange(1, n_turns + 1) - first_turn
    half = (n_turns - first_turn + 1) // 2
    early_I, late_I = (place_I >= 0) & (place_I < half), place_I >= n_turns - first_turn + 1 - half
    return np.where(late_I, 1.0, np.where(early_I, 0.0, np.nan))


def repetition_shares(answers: Sequence[str | None]) -> list[float]:
    """Of each answer of one conversation, the share of its runs of four words that an earlier answer of it holds already.

    NaN for the first answer, which has nothing to repeat, and for one of under four words. What an answer repeats within itself
    is not counted.
    """
    said: set[tuple[str, ...]] = set()
    found: list[float] = []
    for answer in answers:
        runs = _ngram_set(answer or "", REPETITION_NGRAM)
        found.append(_overlap_share(runs, said) if any(one is not None for one in answers[: len(found)]) else np.nan)
        said |= runs
    return found


def question_echo_share(answer: str, question: str) -> float:
    """The share of an answer's runs of three words that stand in the question it answers; NaN under three words."""
    return _overlap_share(_ngram_set(answer, ECHO_NGRAM), _ngram_set(question, ECHO_NGRAM))


def _overlap_share(runs: set[tuple[str, ...]], reference: set[tuple[str, ...]]) -> float:
    return len(runs & reference) / len(runs) if runs else np.nan


def _ngram_set(text: str, n: int) -> set[tuple[str, ...]]:
    return set(ngrams(tokenize_words(text), n))
