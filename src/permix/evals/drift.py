"""The arithmetic of drift: how a measure changes with the turns of an interview, and what an answer repeats.

Contract: pure functions; no files, no records, no global random state. Suffixes name axes: P personas, T turns, R resamples of
personas. NaN is no score: left out, never zero. `question_P_T` numbers the question that each persona was asked at each turn.

Turn and question are told apart by least squares on  value_pt = a_p + u_q(p,t) + b z_t + noise:  every persona has a level of its
own, every question one that all personas share, and b is what the turn itself adds. With a balanced order each question stands
equally often at every turn, the u drop out, and b is the mean over personas of their own slopes. With one number for all
questions nothing is taken off: b is then what turn and question do together.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from permix.evals.stats import TIE, Array
from permix.evals.texts import ngrams, words_of

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
