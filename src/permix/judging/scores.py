"""The arithmetic of judges' scores, on plain arrays.

Its contract: pure functions; no files, no records but `Estimate`, no global random state. A score is 1 to 5; NaN is a cell
without a score, left out and never read as zero, and a NaN result means "cannot be computed". Suffixes name axes: P personas,
T rubrics (PersonaGym's tasks), Q a persona's answers under one rubric, R resamples, C score classes. The unit that is drawn
is the persona, with all its answers: a measure takes counts_R_P, how often replicate r drew each persona, and a row of ones is
the data itself. A control is an array of the same axes that holds, where an answer was tried, the score it got then; answers
travel with the persona that gave them.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from permix.evals import stats
from permix.evals.stats import Array
from permix.types import Estimate

SCORES = np.arange(1.0, 6.0)
BLOCK = 250  # replicates at a time: ranks of 250 × 10,000 answers take 20 MB

Measure = Callable[[Array], Array]
"""counts_R_P -> value_R."""


class Draws:
    """The same R draws of P personas for every measure."""

    def __init__(self, personas: int, seed: int, resamples: int) -> None:
        rng = np.random.default_rng(seed)
        self.counts_R_P = rng.multinomial(personas, np.full(personas, 1 / personas), size=resamples).astype(float)

    def estimate(self, measure: Measure, n: int, interval: Callable[[float, Array, int], Estimate] = stats.estimate) -> Estimate:
        """The measure of the data with its 95 % interval; `n` is how many personas it stands on."""
        value = float(measure(np.ones((1, self.counts_R_P.shape[1])))[0])
        blocks = [measure(self.counts_R_P[start : start + BLOCK]) for start in range(0, len(self.counts_R_P), BLOCK)]
        return interval(value, np.concatenate(blocks), n)


def mean(value_P_T_Q: Array, counts_R_P: Array) -> Array:
    """Σ c_p x_ptq / Σ c_p over the scored cells, value_R; takes any axes behind the first."""
    scored_P_N = ~np.isnan(value_P_T_Q.reshape(len(value_P_T_Q), -1))
    value_P_N = np.where(scored_P_N, value_P_T_Q.reshape(scored_P_N.shape), 0.0)
    return ratio(counts_R_P @ value_P_N.sum(axis=1), counts_R_P @ scored_P_N.sum(axis=1))


def task_means(score_P_T_Q: Array, counts_R_P: Array) -> Array:
    """mean_R_T: the mean score of each rubric, over the answers that have one."""
    return np.stack([mean(score_P_Q, counts_R_P) for score_P_Q in np.moveaxis(score_P_T_Q, 1, 0)], axis=1)


def persona_score(score_P_T_Q: Array, counts_R_P: Array) -> Array:
    """PersonaScore, value_R: the mean of the task means. NaN where a rubric has no score: four tasks are not five.

    Source: Samuel et al., PersonaGym (arXiv 2407.18416).
    """
    return np.asarray(task_means(score_P_T_Q, counts_R_P).mean(axis=1))


def contributions(difference_P_T_Q: Array) -> Array:
    """What each persona adds to a difference of PersonaScores, value_P; their sum is the difference.

    D_p = mean_t (Σ_q d_ptq / n_t), n_t the paired answers of rubric t. Swapping the models for one persona turns its sign.
    """
    paired_P_T_Q = ~np.isnan(difference_P_T_Q)
    total_P_T = np.where(paired_P_T_Q, difference_P_T_Q, 0.0).sum(axis=2)
    return np.asarray(ratio(total_P_T, paired_P_T_Q.sum(axis=(0, 2))).mean(axis=1))


def auc(right_P_T_Q: Array, wrong_P_T_Q: Array, counts_R_P: Array) -> Array:
    """P(right > wrong) + ½ P(right = wrong), value_R, over all pairs of answers of one rubric; ½ tells nothing apart.

    Σ_t (Σ_{a>b} r_ta w_tb + ½ Σ_a r_ta w_ta) / Σ_t r_t w_t, with r_ta and w_ta the answers of rubric t that got score a as right
    and as wrong ones, each counted as often as its persona was drawn.
    """
    right_R_T_C, wrong_R_T_C = (_classes(score_P_T_Q, counts_R_P) for score_P_T_Q in (right_P_T_Q, wrong_P_T_Q))
    below_R_T_C = np.cumsum(wrong_R_T_C, axis=2) - wrong_R_T_C / 2
    won_R = (right_R_T_C * below_R_T_C).sum(axis=(1, 2))
    return ratio(won_R, (right_R_T_C.sum(axis=2) * wrong_R_T_C.sum(axis=2)).sum(axis=1))


def length_correlation(score_P_T_Q: Array, words_P_T_Q: Array, counts_R_P: Array) -> Array:
    """Spearman's rank correlation of score and words of the answer within a rubric, mean over the rubrics, value_R.

    Ties get their mean rank. A rubric where all scores, or all lengths, are alike has no correlation and is left out.
    """
    scored_P_T_Q = ~np.isnan(score_P_T_Q) & ~np.isnan(words_P_T_Q)
    rho_R_T = np.full((len(counts_R_P), score_P_T_Q.shape[1]), np.nan)
    for t in range(score_P_T_Q.shape[1]):
        scored_P_Q = scored_P_T_Q[:, t]
        weight_R_N = counts_R_P[:, np.nonzero(scored_P_Q)[0]]
        ranks = [_ranks(value_P_T_Q[:, t][scored_P_Q], weight_R_N) for value_P_T_Q in (score_P_T_Q, words_P_T_Q)]
        rho_R_T[:, t] = _correlation(ranks[0], ranks[1], weight_R_N)
    return stats.sample_mean(rho_R_T)


def ratio(top: Array | NDArray[np.int64], bottom: Array | NDArray[np.int64]) -> Array:
    """top / bottom, NaN where bottom is not positive."""
    top, bottom = np.broadcast_arrays(np.asarray(top, dtype=float), np.asarray(bottom, dtype=float))
    return np.asarray(np.divide(top, bottom, out=np.full(top.shape, np.nan), where=bottom > 0))


def _classes(score_P_T_Q: Array, counts_R_P: Array) -> Array:
    """How many answers of each rubric got each score, count_R_T_C."""
    count_P_T_C = (score_P_T_Q[..., None] == SCORES).sum(axis=2).astype(float)
    return np.tensordot(counts_R_P, count_P_T_C, axes=1)


def _ranks(value_N: Array, weight_R_N: Array) -> Array:
    """Mean rank of each value, rank_R_N, where value n stands in the data weight_rn times."""
    order_N = np.argsort(value_N, kind="stable")
    level_N, first = np.unique(value_N[order_N], return_inverse=True)[1], np.unique(value_N[order_N], return_index=True)[1]
    if not len(first):
        return np.zeros_like(weight_R_N)
    weight_R_L = np.add.reduceat(weight_R_N[:, order_N], first, axis=1)
    rank_R_L = np.cumsum(weight_R_L, axis=1) - weight_R_L / 2
    rank_R_N = np.empty_like(weight_R_N)
    rank_R_N[:, order_N] = rank_R_L[:, level_N]
    return rank_R_N


def _correlation(one_R_N: Array, two_R_N: Array, weight_R_N: Array) -> Array:
    """Weighted Pearson correlation of each row; NaN where one of the two does not vary."""
    total_R = weight_R_N.sum(axis=1)
    centred = [row_R_N - ratio((weight_R_N * row_R_N).sum(axis=1), total_R)[:, None] for row_R_N in (one_R_N, two_R_N)]
    covariance_R = (weight_R_N * centred[0] * centred[1]).sum(axis=1)
    square_R = [(weight_R_N * row_R_N**2).sum(axis=1) for row_R_N in centred]
    return ratio(covariance_R, np.sqrt(square_R[0] * square_R[1]))
