"""Compute PersonaScore, the validation and the agreement of judges, and PersonaGym's published aggregation from judges' scores.

Contract: pure functions of arrays; no files, no records except `Estimate` and `PublishedAggregation`, no global random state. A
score is 1 to 5. NaN in the input means no score: it is left out, never read as zero. NaN in a result means that it cannot be
computed.

Axes: P personas, U rubrics (PersonaGym's tasks), Q a persona's answers under one rubric, R resamples, C score classes, J judges,
N anything. The resampled unit is the persona with all its answers: a measure takes counts_R_P, the number of times that replicate
r drew each persona; a row of ones is the data itself. A control has the same axes: the scores of answers that were judged once
more in another way, in the place of the persona that gave the answer, and NaN elsewhere.

Judges that agree need not be right: two that give every answer a 4 or a 5 agree within one point, so Krippendorff's alpha is
given with the shares of agreement.

`aggregate_as_published` computes PersonaScore as PersonaGym's released code does, next to ours. The differences:

- The code sends five answers in one call to a judge, averages scores in blocks of five, and averages blocks with equal weight,
  whatever number of scores they hold. Ours: every score has the same weight.
- A reply that cannot be parsed scores 0. The mean of a block leaves zeros out, so such answers disappear uncounted; but if no
  reply of a block can be parsed, its mean is 0, below the lowest score. Ours: no score, which never lowers a mean.
- Judges are averaged block by block, so the failure of one judge changes the score. Ours: each judge is kept separate.
- The code gives no interval and no count of scores.
- The code saves only the scores of the last persona. (As released it does not even do that: it writes into a folder that is never
  created.) Published tables are means over personas, computed elsewhere.

Other errors of the released code are not reproduced: a judge sees one character of each score example, because a text is taken
for a list of texts; the second judge is called with an argument that its function lacks; scores of single answers are not saved.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import ArrayLike, NDArray

from permix.metrics import statistics
from permix.metrics.statistics import Array, nanmean_along, none_if_nan, safe_divide
from permix.types import Estimate, Record

QUESTIONS_PER_BLOCK = 5
"""Answers that PersonaGym's code sends to a judge in one call."""


class PublishedAggregation(Record):
    """PersonaScores of one model; tasks are in the order of the array. None where there is nothing to average.

    `persona_score`, `tasks`: by the released code, as a mean over personas; `last_...`: those of the last persona, which is all
    that the code means to save. `permix_...`: the same scores by our arithmetic, as a mean over judges. `difference`: published −
    ours. `empty_blocks` of `blocks` have no score of a judge and count as a score of 0 in the published arithmetic.
    """

    persona_score: float | None
    tasks: tuple[float | None, ...]
    last_persona_score: float | None
    last_tasks: tuple[float | None, ...]
    permix_persona_score: float | None
    permix_tasks: tuple[float | None, ...]
    difference: float | None
    blocks: int
    empty_blocks: int


def aggregate_as_published(score_J_P_U_Q: Array, asked_P_U_Q: NDArray[np.bool_] | None = None) -> PublishedAggregation:
    """PersonaScore by the released code and by permix, from scores 1 to 5 (NaN: none), personas and questions in the order asked.

    `asked_P_U_Q`: which questions exist, if not all personas have the same number in each task; None means all. Published: for
    persona p, task u and block b of five questions, m_jpub is the mean of judge j's scores in the block, or 0 without any; the
    score of (p, u) is mean_b mean_j m_jpub, and the PersonaScore of p is the mean over its tasks. Ours: for judge j and task u
    the mean of all scores, then the mean over judges, then over tasks; None where a task has no score.
    """
    asked = np.ones(score_J_P_U_Q.shape[1:], dtype=bool) if asked_P_U_Q is None else asked_P_U_Q
    mean_J_P_U_B, is_block_P_U_B = _block_means(score_J_P_U_Q, asked)
    task_P_U = nanmean_along(np.where(is_block_P_U_B, mean_J_P_U_B.mean(axis=0), np.nan), axis=-1)
    overall_P = nanmean_along(task_P_U, axis=-1)
    permix_U = nanmean_along(nanmean_along(np.concatenate(list(np.moveaxis(score_J_P_U_Q, 1, 0)), axis=-1), axis=-1), axis=0)
    published, permix = float(nanmean_along(overall_P, axis=0)), permix_U[asked.any(axis=(0, 2))].mean()
    return PublishedAggregation(
        persona_score=none_if_nan(published),
        tasks=_none_if_nan_each(nanmean_along(task_P_U, axis=0)),
        last_persona_score=none_if_nan(overall_P[-1]),
        last_tasks=_none_if_nan_each(task_P_U[-1]),
        permix_persona_score=none_if_nan(permix),
        permix_tasks=_none_if_nan_each(permix_U),
        difference=none_if_nan(published - permix),
        blocks=int(is_block_P_U_B.sum()) * len(score_J_P_U_Q),
        empty_blocks=int((is_block_P_U_B & (mean_J_P_U_B == 0)).sum()),
    )


def _block_means(score_J_P_U_Q: Array, asked_P_U_Q: NDArray[np.bool_]) -> tuple[Array, NDArray[np.bool_]]:
    """mean_J_P_U_B of each block, 0 without a score; and is_block_P_U_B, True where a block has a question."""
    blocks = [slice(start, start + QUESTIONS_PER_BLOCK) for start in range(0, score_J_P_U_Q.shape[-1], QUESTIONS_PER_BLOCK)]
    mean_J_P_U_B = np.stack([nanmean_along(score_J_P_U_Q[..., block], axis=-1) for block in blocks], axis=-1)
    return np.nan_to_num(mean_J_P_U_B), np.stack([asked_P_U_Q[..., block].any(axis=-1) for block in blocks], axis=-1)


def _none_if_nan_each(values: Array) -> tuple[float | None, ...]:
    return tuple(none_if_nan(value) for value in values)


SCORE_CLASSES = np.arange(1.0, 6.0)

_BOOTSTRAP_BLOCK = 250
"""Replicates computed at a time: the ranks of 250 × 10,000 answers take 20 MB."""


PersonaMeasure = Callable[[Array], Array]
"""counts_R_P -> value_R."""


class PersonaBootstrap:
    """A bootstrap over personas; every measure sees the same R draws, so that measures can be compared."""

    def __init__(self, n_personas: int, seed: int, resamples: int) -> None:
        rng = np.random.default_rng(seed)
        self.counts_R_P = rng.multinomial(n_personas, np.full(n_personas, 1 / n_personas), size=resamples).astype(float)

    def estimate(
        self, measure: PersonaMeasure, n: int, interval: Callable[[float, Array, int], Estimate] = statistics.bootstrap_estimate
    ) -> Estimate:
        """The measure of the data with its 95 % interval; `n` is the number of personas it is based on."""
        value = float(measure(np.ones((1, self.counts_R_P.shape[1])))[0])
        blocks = [
            measure(self.counts_R_P[start : start + _BOOTSTRAP_BLOCK])
            for start in range(0, len(self.counts_R_P), _BOOTSTRAP_BLOCK)
        ]
        return interval(value, np.concatenate(blocks), n)


def weighted_mean(value_P_U_Q: Array, counts_R_P: Array) -> Array:
    """value_R = Σ c_p x_puq / Σ c_p over the scored cells; any axes may follow the first."""
    scored_P_N = ~np.isnan(value_P_U_Q.reshape(len(value_P_U_Q), -1))
    value_P_N = np.where(scored_P_N, value_P_U_Q.reshape(scored_P_N.shape), 0.0)
    return safe_divide(counts_R_P @ value_P_N.sum(axis=1), counts_R_P @ scored_P_N.sum(axis=1))


def rubric_means(score_P_U_Q: Array, counts_R_P: Array) -> Array:
    """mean_R_U: the mean score of each rubric over the scored answers."""
    return np.stack([weighted_mean(score_P_Q, counts_R_P) for score_P_Q in np.moveaxis(score_P_U_Q, 1, 0)], axis=1)


def persona_score(score_P_U_Q: Array, counts_R_P: Array) -> Array:
    """PersonaScore, value_R: the mean of the rubrics' means. NaN if a rubric has no score: a mean of four is another measure.

    Source: Samuel et al., PersonaGym (arXiv 2407.18416).
    """
    return np.asarray(rubric_means(score_P_U_Q, counts_R_P).mean(axis=1))


def estimate_persona_score(score_P_U_Q: ArrayLike, *, seed: int = 0, resamples: int = 2000) -> Estimate:
    """PersonaScore of one judge's scores (1 to 5, NaN without one), with its 95 % interval; `n` counts personas with a score."""
    scores = np.asarray(score_P_U_Q, dtype=float)
    n_scored = int((~np.isnan(scores)).any(axis=(1, 2)).sum())
    return PersonaBootstrap(len(scores), seed, resamples).estimate(partial(persona_score, scores), n_scored)


def persona_contributions(difference_P_U_Q: Array) -> Array:
    """The contribution of each persona to a difference of PersonaScores, value_P; they add up to the difference.

    D_p = mean_u (Σ_q d_puq / n_u) with n_u the number of paired answers of rubric u. Swapping the two models for one persona
    changes the sign of its contribution, which a sign-flip test uses.
    """
    paired_P_U_Q = ~np.isnan(difference_P_U_Q)
    total_P_U = np.where(paired_P_U_Q, difference_P_U_Q, 0.0).sum(axis=2)
    return np.asarray(safe_divide(total_P_U, paired_P_U_Q.sum(axis=(0, 2))).mean(axis=1))


def auc(right_P_U_Q: Array, wrong_P_U_Q: Array, counts_R_P: Array) -> Array:
    """value_R = P(right > wrong) + ½ P(right = wrong) over all pairs of scores within a rubric: Mann-Whitney's AUC; ½ is chance.

    Σ_u (Σ_{a>b} r_ua w_ub + ½ Σ_a r_ua w_ua) / Σ_u r_u w_u, with r_ua and w_ua the numbers of right and wrong answers of rubric u
    with score a, each counted as often as its persona was drawn.
    """
    right_R_U_C, wrong_R_U_C = (_count_score_classes(score_P_U_Q, counts_R_P) for score_P_U_Q in (right_P_U_Q, wrong_P_U_Q))
    below_R_U_C = np.cumsum(wrong_R_U_C, axis=2) - wrong_R_U_C / 2
    won_R = (right_R_U_C * below_R_U_C).sum(axis=(1, 2))
    return safe_divide(won_R, (right_R_U_C.sum(axis=2) * wrong_R_U_C.sum(axis=2)).sum(axis=1))


def length_correlation(score_P_U_Q: Array, words_P_U_Q: Array, counts_R_P: Array) -> Array:
    """Spearman's rank correlation of score and number of words within a rubric, averaged over rubrics, value_R.

    Ties get their mean rank. A rubric where all scores, or all lengths, are equal has no correlation and is left out.
    """
    scored_P_U_Q = ~np.isnan(score_P_U_Q) & ~np.isnan(words_P_U_Q)
    rho_R_U = np.full((len(counts_R_P), score_P_U_Q.shape[1]), np.nan)
    for u in range(score_P_U_Q.shape[1]):
        scored_P_Q = scored_P_U_Q[:, u]
        weight_R_N = counts_R_P[:, np.nonzero(scored_P_Q)[0]]
        ranks = [_weighted_mid_ranks(value_P_U_Q[:, u][scored_P_Q], weight_R_N) for value_P_U_Q in (score_P_U_Q, words_P_U_Q)]
        rho_R_U[:, u] = _weighted_correlation(ranks[0], ranks[1], weight_R_N)
    return statistics.mean_over_samples(rho_R_U)


def _count_score_classes(score_P_U_Q: Array, counts_R_P: Array) -> Array:
    """count_R_U_C: the number of answers of each rubric with each score."""
    count_P_U_C = (score_P_U_Q[..., None] == SCORE_CLASSES).sum(axis=2).astype(float)
    return np.tensordot(counts_R_P, count_P_U_C, axes=1)


def _weighted_mid_ranks(value_N: Array, weight_R_N: Array) -> Array:
    """rank_R_N: the mean rank of each value where value n occurs weight_rn times (up to a constant that correlation ignores)."""
    order_N = np.argsort(value_N, kind="stable")
    level_N, first = np.unique(value_N[order_N], return_inverse=True)[1], np.unique(value_N[order_N], return_index=True)[1]
    if not len(first):
        return np.zeros_like(weight_R_N)
    weight_R_L = np.add.reduceat(weight_R_N[:, order_N], first, axis=1)
    rank_R_L = np.cumsum(weight_R_L, axis=1) - weight_R_L / 2
    rank_R_N = np.empty_like(weight_R_N)
    rank_R_N[:, order_N] = rank_R_L[:, level_N]
    return rank_R_N


def _weighted_correlation(x_R_N: Array, y_R_N: Array, weight_R_N: Array) -> Array:
    """Weighted Pearson correlation of each row, value_R; NaN where x or y does not vary."""
    total_R = weight_R_N.sum(axis=1)
    centred = [row_R_N - safe_divide((weight_R_N * row_R_N).sum(axis=1), total_R)[:, None] for row_R_N in (x_R_N, y_R_N)]
    covariance_R = (weight_R_N * centred[0] * centred[1]).sum(axis=1)
    square_R = [(weight_R_N * row_R_N**2).sum(axis=1) for row_R_N in centred]
    return safe_divide(covariance_R, np.sqrt(square_R[0] * square_R[1]))


def coincidence_matrix(score_J_P_N: Array) -> Array:
    """count_P_C_C for each persona: o_ck = Σ_n (pairs of different judges that gave answer n scores c and k) / (m_n − 1).

    m_n judges scored answer n; an answer with fewer than two scores is left out.
    """
    judges_P_N_C = (score_J_P_N[..., None] == SCORE_CLASSES).sum(axis=0).astype(float)
    weight_P_N = safe_divide(np.ones(judges_P_N_C.shape[:2]), judges_P_N_C.sum(axis=2) - 1)
    weighted_P_N_C = judges_P_N_C * np.nan_to_num(weight_P_N)[..., None]
    own_P_C = weighted_P_N_C.sum(axis=1)
    return np.asarray(np.einsum("pnc,pnk->pck", weighted_P_N_C, judges_P_N_C) - own_P_C[:, :, None] * np.eye(len(SCORE_CLASSES)))


def krippendorff_alpha(count_P_C_C: Array, counts_R_P: Array) -> Array:
    """Krippendorff's alpha for ordinal scores, value_R; any number of judges, missing scores allowed.

    α = 1 − (n − 1) Σ_ck o_ck δ²_ck / Σ_ck n_c n_k δ²_ck, with δ_ck = Σ_{g=c}^{k} n_g − (n_c + n_k) / 2. 1 is perfect agreement, 0
    is chance. NaN where all scores are equal: the expected disagreement is 0 too.
    Source: Krippendorff (2011), Computing Krippendorff's alpha-reliability.
    """
    o_R_C_C = np.tensordot(counts_R_P, count_P_C_C, axes=1)
    n_R_C = o_R_C_C.sum(axis=2)
    middle_R_C = np.cumsum(n_R_C, axis=1) - n_R_C / 2
    square_R_C_C = (middle_R_C[:, :, None] - middle_R_C[:, None, :]) ** 2
    observed_R = (o_R_C_C * square_R_C_C).sum(axis=(1, 2))
    expected_R = (n_R_C[:, :, None] * n_R_C[:, None, :] * square_R_C_C).sum(axis=(1, 2))
    return 1 - safe_divide((n_R_C.sum(axis=1) - 1) * observed_R, expected_R)


def within_tolerance(first_P_N: Array, second_P_N: Array, tolerance: int) -> Array:
    """1 where two judges differ by at most `tolerance`, else 0; NaN where one has no score. Shape [P, N]."""
    apart_P_N = np.abs(first_P_N - second_P_N)
    return np.where(np.isnan(apart_P_N), np.nan, (apart_P_N <= tolerance).astype(float))
