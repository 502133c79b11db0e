"""Several wordings of the same personas: is it the persona that moves the accuracy, or the words that bring it in?

Its contract: pure functions of scores by template, persona and question. Templates and personas are these ones and no sample of
any, questions are drawn; so an effect is judged by how it differs from question to question, which is what every interval here is
over. The standard deviations are the components of a three-way analysis of variance on the questions that have a score
under every template and persona; the rest stay in each template's own row.

The arithmetic of drift: how a measure changes with the turns of an interview, and what an answer repeats.

Contract: pure functions; no files, no records, no global random state. Suffixes name axes: P personas, T turns, R resamples of
personas. NaN is no score: left out, never zero. `question_P_T` numbers the question that each persona was asked at each turn.

Turn and question are told apart by least squares on  value_pt = a_p + u_q(p,t) + b z_t + noise:  every persona has a level of its
own, every question one that all personas share, and b is what the turn itself adds. With a balanced order each question stands
equally often at every turn, the u drop out, and b is the mean over personas of their own slopes. With one number for all
questions nothing is taken off: b is then what turn and question do together.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from permix.metrics import statistics
from permix.metrics.stability import summarize
from permix.metrics.statistics import TIE, Array
from permix.metrics.text_stats import ngrams, words_of
from permix.types import Estimate, Record


class TemplateSummary(Record):
    """The stability of one template by itself; fields as in `StabilitySummary`."""

    id: str
    text: str
    mean: Estimate
    worst: Estimate
    pss: Estimate
    shift: Estimate


class CrossedSummary(Record):
    """`persona_sd`: of personas' accuracies, each averaged over the templates. `template_sd`: of templates' accuracies, each
    averaged over the personas. `persona_template_sd`: of what the two do together besides. n counts complete questions.
    """

    templates: tuple[TemplateSummary, ...]
    persona_sd: Estimate
    template_sd: Estimate
    persona_template_sd: Estimate


def summarize_crossed(
    correct_T_P_Q_S: ArrayLike, baseline_Q_S: ArrayLike, texts: dict[str, str], *, seed: int = 0, resamples: int = 2000
) -> CrossedSummary:
    """Scores in [0, 1], NaN where there is none; `texts` are the wordings by id, in the order of T. ValueError as `summarize`."""
    correct = np.asarray(correct_T_P_Q_S, dtype=float)
    alone = [summarize(one_P_Q_S, baseline_Q_S, seed=seed, resamples=resamples) for one_P_Q_S in correct]
    rows = [
        TemplateSummary(id=id, text=text, mean=one.mean, worst=one.worst, pss=one.pss, shift=one.shift)
        for (id, text), one in zip(texts.items(), alone, strict=True)
    ]
    return CrossedSummary(templates=tuple(rows), **components(statistics.sample_mean(correct))._asdict())


class Components(NamedTuple):
    persona_sd: Estimate
    template_sd: Estimate
    persona_template_sd: Estimate


def components(mean_T_P_Q: Array) -> Components:
    """The components with their intervals; None for a factor of one level, and for fewer than two complete questions.

    With x_tpq = μ + b_t + a_p + (ab)_tp + q + (bq) + (aq) + e, questions random, a mean square of effects is judged by that of
    the same effects' interaction with questions: sd_t² = (MS_t − MS_tq) / (P Q), sd_p² = (MS_p − MS_pq) / (T Q),
    sd_tp² = (MS_tp − MS_tpq) / Q.
    """
    whole_T_P_Q = mean_T_P_Q[:, :, ~np.isnan(mean_T_P_Q).any(axis=(0, 1))]
    T, P, Q = whole_T_P_Q.shape
    by_question = {
        "persona_sd": (whole_T_P_Q.mean(axis=0) - whole_T_P_Q.mean(axis=(0, 1)), P - 1, T),
        "template_sd": (whole_T_P_Q.mean(axis=1) - whole_T_P_Q.mean(axis=(0, 1)), T - 1, P),
        "persona_template_sd": (_joint(whole_T_P_Q).reshape(T * P, Q), (T - 1) * (P - 1), 1),
    }
    return Components(**{name: _component(*one) for name, one in by_question.items()})


def _joint(whole_T_P_Q: Array) -> Array:
    """What template and persona do together, question by question: x − x_t − x_p + x."""
    over = [whole_T_P_Q.mean(axis=axis, keepdims=True) for axis in (1, 0, (0, 1))]
    return np.asarray(whole_T_P_Q - over[0] - over[1] + over[2])


def _component(effect_N_Q: Array, freedom: int, averaged: int) -> Estimate:
    """`effect_N_Q`: each level's effect on each question, a mean of `averaged` scores; adds up to 0 over the levels."""
    Q = effect_N_Q.shape[1]
    if freedom < 1 or Q < 2:
        return Estimate(value=None, n=Q)
    effect_N = effect_N_Q.mean(axis=1)
    square = averaged * Q * float((effect_N**2).sum()) / freedom
    error = averaged * float(((effect_N_Q - effect_N[:, None]) ** 2).sum()) / (freedom * (Q - 1))
    return statistics.component_sd(square, error, freedom, freedom * (Q - 1), averaged * Q)


def by_template(correct_P_Q_S: Array, templates: Sequence[str]) -> Array:
    """correct_T_P_Q_S of scores whose samples stand template by template, as `Answers.scores` gives them."""
    P, Q, _ = correct_P_Q_S.shape
    return np.moveaxis(correct_P_Q_S.reshape(P, Q, len(templates), -1), 2, 0)


Questions = NDArray[np.int64]


SAID = 4  # words: chance rarely makes four in a row again

ECHOED = 3


def turn_effect(value_P_T: Array, question_P_T: Questions, regressor_T: Array, counts_R_P: Array) -> Array:
    """b of the model above for each row of persona weights; a turn whose regressor is NaN is left out.

    Persona levels are taken off by centring each persona on its own scored turns, question levels by the Schur complement of
    the normal equations: b = (S_zx − S_zq S_qq⁺ S_qx) / (S_zz − S_zq S_qq⁺ S_qz). NaN where questions and turns cannot be told
    apart, as when all personas of a resample were asked in the same order.
    """
    known_P_T = ~np.isnan(value_P_T) & ~np.isnan(regressor_T)
    asked_P_T_Q = np.eye(int(question_P_T.max()) + 1)[question_P_T]
    regressor_P_T_1 = np.broadcast_to(np.nan_to_num(regressor_T), value_P_T.shape)[:, :, None]
    design_P_T_D = _centred(np.concatenate([asked_P_T_Q, regressor_P_T_1], axis=2), known_P_T)
    value_P_T_1 = _centred(np.nan_to_num(value_P_T)[:, :, None], known_P_T)

    normal_R_D_D = np.tensordot(counts_R_P, design_P_T_D.transpose(0, 2, 1) @ design_P_T_D, axes=1)
    right_R_D = np.tensordot(counts_R_P, design_P_T_D.transpose(0, 2, 1) @ value_P_T_1, axes=1)[:, :, 0]
    inverse_R_Q_Q = np.linalg.pinv(normal_R_D_D[:, :-1, :-1], rcond=TIE, hermitian=True)
    taken_R_Q = np.einsum("rq,rqk->rk", normal_R_D_D[:, -1, :-1], inverse_R_Q_Q)
    left_R = normal_R_D_D[:, -1, -1] - (taken_R_Q * normal_R_D_D[:, :-1, -1]).sum(axis=1)
    top_R = right_R_D[:, -1] - (taken_R_Q * right_R_D[:, :-1]).sum(axis=1)
    told_R = left_R > 1e-6 * np.maximum(normal_R_D_D[:, -1, -1], TIE)
    return np.asarray(np.divide(top_R, left_R, out=np.full(len(left_R), np.nan), where=told_R))


def _centred(value_P_T_D: Array, known_P_T: NDArray[np.bool_]) -> Array:
    """Less each persona's mean over its known turns; 0 where nothing is known."""
    known_P_T_1 = known_P_T[:, :, None]
    count_P_1_1 = np.maximum(known_P_T_1.sum(axis=1, keepdims=True), 1)
    mean_P_1_D = (value_P_T_D * known_P_T_1).sum(axis=1, keepdims=True) / count_P_1_1
    return np.asarray((value_P_T_D - mean_P_1_D) * known_P_T_1)


def turns_from(first: int, turns: int) -> Array:
    """The regressor of a slope: the turn's number, NaN before turn `first`."""
    turn_T = np.arange(1, turns + 1, dtype=float)
    return np.where(turn_T < first, np.nan, turn_T)


def late_from(first: int, turns: int) -> Array:
    """The regressor of late − early: 0 in the first half of the turns from `first` on, 1 in the second, NaN elsewhere."""
    place_T = np.arange(1, turns + 1) - first
    half = (turns - first + 1) // 2
    early_T, late_T = (place_T >= 0) & (place_T < half), place_T >= turns - first + 1 - half
    return np.where(late_T, 1.0, np.where(early_T, 0.0, np.nan))


def repeated(answers: Sequence[str | None]) -> list[float]:
    """Of each answer of one conversation, the share of its runs of four words that an earlier answer of it holds already.

    NaN for the first answer, which has nothing to repeat, and for one of under four words. What an answer repeats within itself
    is not counted.
    """
    said: set[tuple[str, ...]] = set()
    found: list[float] = []
    for answer in answers:
        runs = _runs(answer or "", SAID)
        found.append(_share(runs, said) if any(one is not None for one in answers[: len(found)]) else np.nan)
        said |= runs
    return found


def echoed(answer: str, question: str) -> float:
    """The share of an answer's runs of three words that stand in the question it answers; NaN under three words."""
    return _share(_runs(answer, ECHOED), _runs(question, ECHOED))


def _share(runs: set[tuple[str, ...]], known: set[tuple[str, ...]]) -> float:
    return len(runs & known) / len(runs) if runs else np.nan


def _runs(text: str, length: int) -> set[tuple[str, ...]]:
    return set(ngrams(words_of(text), length))
