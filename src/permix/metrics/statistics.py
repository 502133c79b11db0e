"""Compute persona stability from arrays: measures, exact tests, the bootstrap, and statistical power.

Contract: pure functions; no files, no records except `Estimate`, no global random state. NaN in the input means no score: it is
left out, never read as zero. NaN in a result means that it cannot be computed. Scores and accuracies lie in [0, 1].

Axes: P personas, Q questions, S samples, R resamples, K random half splits, N anything. A measure of `accuracy_P` works on the
last axis, so it also takes `accuracy_R_P`. A measure that takes `counts_R_Q` weights question q of resample r by the number of
times it was drawn. A row of ones is the data itself, so a value and its replicates come from the same code.

Power (`required_questions`, `minimum_detectable_effect`) is that of the paired test of a persona against no persona on the same
questions. Besides the number of questions it depends on their `discordance`. Several personas are several tests: the level is
divided by their number, as in the first step of Holm's correction.
Source: Connor (1987), Sample size for testing differences in proportions for the paired-sample design, Biometrics 43.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.special import betaincinv, ncfdtr, ndtr, ndtri, stdtrit
from scipy.stats import binomtest, rankdata

from permix.types import Estimate

Array = NDArray[np.float64]


TIE_TOLERANCE = 1e-9
"""Accuracies closer than this count as equal: the order of a floating-point sum must not break a tie."""

MAX_BIAS_CORRECTION_Z = 0.5
"""Largest bias correction z0 of a bootstrap interval, in standard normal units; docs/measures.md has the simulation."""


def mean_over_samples(correct_P_Q_S: Array) -> Array:
    """Mean [P, Q] over the scored samples of each cell, NaN where no sample is scored. Takes any leading axes."""
    return nanmean_along(correct_P_Q_S, axis=-1)


def nanmean_along(value_N: Array, axis: int) -> Array:
    """Mean along one axis of the values that are not NaN; NaN where all are NaN, without numpy's warning."""
    scored = ~np.isnan(value_N)
    return safe_divide(np.where(scored, value_N, 0.0).sum(axis=axis), scored.sum(axis=axis).astype(float))


def weighted_question_mean(mean_P_Q: Array, counts_R_Q: Array) -> Array:
    """accuracy_R_P: A_p = Σ_q c_q x_pq / Σ_q c_q over the questions with a score of persona p; NaN without one."""
    value_Q_P, scored_Q_P = _values_and_mask(mean_P_Q)
    return safe_divide(counts_R_Q @ value_Q_P, counts_R_Q @ scored_Q_P)


def pss(accuracy_P: ArrayLike) -> Array:
    """Persona stability score: min_p A_p / max_p A_p; NaN if no persona has a right answer, or for one persona. Our definition.

    Noise in the accuracies biases it down.
    """
    accuracies = np.asarray(accuracy_P, dtype=float)
    if accuracies.shape[-1] < 2:
        return np.full(accuracies.shape[:-1], np.nan)
    return safe_divide(accuracies.min(axis=-1), accuracies.max(axis=-1))


def expected_best_of_k(accuracy_P: Array) -> Array:
    """E[max accuracy of k personas drawn without replacement from the P], for k = 1..P on the last axis. Exact.

    Σ_i A_(i) C(i-1, k-1) / C(P, k) over the sorted accuracies: the i-th smallest is the best of k in C(i-1, k-1) draws.
    """
    P = accuracy_P.shape[-1]
    k_K = np.arange(1, P + 1)
    weight_K_P = np.zeros((P, P))
    weight_K_P[:, P - 1] = k_K / P
    for i in range(P, 1, -1):  # C(i-2, k-1) = C(i-1, k-1) (i-k) / (i-1): no binomial that could overflow
        weight_K_P[:, i - 2] = weight_K_P[:, i - 1] * np.maximum(i - k_K, 0) / (i - 1)
    return np.asarray(np.sort(accuracy_P, axis=-1) @ weight_K_P.T)


def lowest_per_question(mean_P_Q: Array) -> Array:
    """value_Q = min_p x_pq among the personas scored on the question; NaN without any."""
    min_Q = np.where(np.isnan(mean_P_Q), np.inf, mean_P_Q).min(axis=0)
    return np.asarray(np.where(np.isinf(min_Q), np.nan, min_Q))


def worst_per_question(mean_P_Q: Array, counts_R_Q: Array) -> Array:
    """value_R = mean_q min_p x_pq: the accuracy if each question got its worst persona, among the personas scored on it."""
    return weighted_question_mean(lowest_per_question(mean_P_Q)[None], counts_R_Q)[:, 0]


class TwoWayFit(NamedTuple):
    """An additive fit of persona + question. The variance of an effect is `residual_R` × its entry of `pinv_diagonal_R_P`."""

    effect_R_P: Array
    """Effects of personas, which add up to 0."""
    residual_R: Array
    """Mean square of the residual; NaN without degrees of freedom."""
    pinv_diagonal_R_P: Array
    """Diagonal of L⁺ (see `fit_two_way`)."""


def fit_two_way(mean_P_Q: Array, counts_R_Q: Array) -> TwoWayFit:
    """Least squares (Henderson's method 3), so that a persona gains nothing from missing hard questions. Memory R × P × Q.

    With m the 0/1 mask of scored cells, d = x − x_.q and L = diag(Σ_q m_pq) − Σ_q m_q m_qᵀ / m_.q, the effects are
    a = L⁺ Σ_q d_q. The residual sum of squares, Σ (x_pq − x_p. − x_.q + x..)² in a complete grid, has N − Q − P + 1 degrees of
    freedom for N scores. In a complete grid L⁺ = (I − J/P) / Q with J all ones, and no matrix is inverted.
    """
    P = len(mean_P_Q)
    # A question with a score of one persona only says nothing about differences between personas.
    scored_P_Q = ~np.isnan(mean_P_Q) & ((~np.isnan(mean_P_Q)).sum(axis=0) > 1)
    personas_Q = scored_P_Q.sum(axis=0).astype(float)
    centred_P_Q = np.where(scored_P_Q, mean_P_Q - mean_over_samples(mean_P_Q.T), 0.0)
    seen_R_P = counts_R_Q @ scored_P_Q.T
    total_R_P = counts_R_Q @ centred_P_Q.T
    if scored_P_Q.all():
        effect_R_P, diagonal_R_P = total_R_P / seen_R_P, (1 - 1 / P) / seen_R_P
    else:
        share_R_P_Q = scored_P_Q * (counts_R_Q / np.maximum(personas_Q, 1))[:, None, :]
        inverse_R_P_P = np.linalg.pinv(
            np.eye(P) * seen_R_P[:, None, :] - share_R_P_Q @ scored_P_Q.T, rcond=TIE_TOLERANCE, hermitian=True
        )
        effect_R_P = (inverse_R_P_P @ total_R_P[:, :, None])[:, :, 0]
        diagonal_R_P = np.diagonal(inverse_R_P_P, axis1=1, axis2=2)
    freedom_R = seen_R_P.sum(axis=1) - counts_R_Q @ (personas_Q > 1) - P + 1
    residual_R = safe_divide(counts_R_Q @ (centred_P_Q**2).sum(axis=0) - (effect_R_P * total_R_P).sum(axis=1), freedom_R)
    return TwoWayFit(effect_R_P, np.where((seen_R_P > 0).all(axis=1), residual_R, np.nan), diagonal_R_P)


class MixedModelFit(NamedTuple):
    """Accuracies of personas over all questions, and the covariance of each persona's own noise, divided by var e."""

    accuracy_P: Array
    noise_cov_P_P: Array


def fit_mixed_model(mean_P_Q: Array, variance_ratio: float) -> MixedModelFit:
    """Generalised least squares for x_pq = A_p + u_q + e_pq with random questions; `variance_ratio` is var u / var e.

    With m_q the 0/1 column of question q, n_q its sum and ρ_q = ratio / (1 + n_q ratio), the accuracies solve
    Σ_q (diag m_q − ρ_q m_q m_qᵀ) A = Σ_q (m_q x_q − ρ_q m_q Σ_p x_pq), and the inverse of that matrix is their covariance. All
    personas share the part ratio / Q of the drawn questions; the rest is their own noise. In a complete grid A is the plain mean
    and the noise is 1 / Q on the diagonal. Every persona must have a score.
    """
    scored_P_Q = ~np.isnan(mean_P_Q)
    value_P_Q, mask_P_Q = np.where(scored_P_Q, mean_P_Q, 0.0), scored_P_Q.astype(float)
    shared_P_Q = mask_P_Q * (variance_ratio / (1 + mask_P_Q.sum(axis=0) * variance_ratio))
    known_P_P = np.diag(mask_P_Q.sum(axis=1)) - shared_P_Q @ mask_P_Q.T
    covariance_P_P = np.linalg.inv(known_P_P)
    accuracy_P = covariance_P_P @ (value_P_Q.sum(axis=1) - shared_P_Q @ value_P_Q.sum(axis=0))
    # The part that all personas share cancels in their differences; the caller adds it once for all of them.
    return MixedModelFit(accuracy_P, covariance_P_P - variance_ratio / scored_P_Q.any(axis=0).sum())


def persona_sd(mean_P_Q: Array, counts_R_Q: Array) -> Array:
    """Standard deviation [R] of the personas' true accuracies: their observed spread less the part that noise explains.

    The variance component of personas in the two-way persona × question layout with random questions:
    sd² = max(0, (MS_persona − MS_residual) / Q) = max(0, var_p(A_p) − MS_residual / Q), with var_p dividing by P−1,
    MS_persona = Q var_p(A_p) and MS_residual = Σ (x_pq − x_p. − x_.q + x..)² / ((P−1)(Q−1)). With one sample per cell the
    residual is interaction and error together. With missing cells, by `fit_two_way`: sd² = (|a|² − MS_residual tr L⁺) / (P−1).
    NaN for one persona, without residual degrees of freedom, or if a persona shares no question with another.
    """
    fit = fit_two_way(mean_P_Q, counts_R_Q)
    excess_R = (fit.effect_R_P**2).sum(axis=1) - fit.residual_R * fit.pinv_diagonal_R_P.sum(axis=1)
    return np.asarray(np.sqrt(np.maximum(safe_divide(excess_R, np.float64(len(mean_P_Q) - 1)), 0.0)))


def variance_component_sd(
    mean_square: float, error_mean_square: float, df: int, error_df: int, scores_per_effect: int
) -> Estimate:
    """Standard deviation of the true effects behind a mean square in an analysis of variance, with its 95 % interval.

    sd² = max(0, (MS − MS_error) / c), where each effect is a mean of c = `scores_per_effect` scores and MS_error is the MS to
    expect without effects. For independent normal errors MS / MS_error is non-central F with λ = df · c · sd² / MS_error. The
    interval ends are the λ at which an F of at most the observed one has probability .975 and .025. No interval where MS_error
    is 0, up to rounding. n is `error_df` / `df` + 1: the number of questions, where the error is the effects' interaction with
    questions.
    Source: Steiger (2004), Beyond the F test, Psychological Methods 9.
    """
    n = error_df // df + 1
    value = float(np.sqrt(max(0.0, mean_square - error_mean_square) / scores_per_effect))
    if error_mean_square <= TIE_TOLERANCE**2 * mean_square:
        return Estimate(value=value, n=n)
    f_value, per_lambda = mean_square / error_mean_square, error_mean_square / (df * scores_per_effect)
    ends = [float(np.sqrt(per_lambda * _noncentrality(f_value, df, error_df, p))) for p in (0.975, 0.025)]
    return Estimate(value=value, low=min(ends[0], value), high=max(ends[1], value), n=n)


def _noncentrality(f_value: float, df: int, error_df: int, p: float) -> float:
    """λ at which a non-central F is at most `f_value` with probability p; 0 if even λ = 0 gives p or less."""
    if ncfdtr(df, error_df, 0.0, f_value) <= p:
        return 0.0
    top = 1.0
    while ncfdtr(df, error_df, top, f_value) > p:
        top *= 2
    return float(brentq(lambda noncentrality: ncfdtr(df, error_df, noncentrality, f_value) - p, 0.0, top))


def random_half_splits(n_questions: int, n_splits: int, rng: np.random.Generator) -> Array:
    """halves_K_Q: 1 where a question is in the first half of split k. Of an odd number the second half has one more."""
    half_Q = (np.arange(n_questions) < n_questions // 2).astype(float)
    return rng.permuted(np.tile(half_Q, (n_splits, 1)), axis=1)


def pss_crossfit(mean_P_Q: Array, halves_K_Q: Array, counts_R_Q: Array) -> Array:
    """PSS [R] without selection bias: worst and best persona are chosen on one half of the questions and scored on the other.

    Mean accuracy of the worst / mean accuracy of the best, both on the other half, over all splits and both directions. Tied
    personas are averaged. Our definition. Not clipped: noise can lift it above 1. Copies of a resampled question stay in one
    half. NaN if no split scores both choices (one question), if the mean of the best is 0, or for one persona.
    """
    (R, Q), K = counts_R_Q.shape, len(halves_K_Q)
    value_Q_P, scored_Q_P = _values_and_mask(mean_P_Q)
    # Weights, not positions, split the questions: copies of a question in both halves would bring the selection bias back.
    first_RK_Q = (counts_R_Q[:, None, :] * halves_K_Q).reshape(R * K, Q)
    sum_RK_P, count_RK_P = first_RK_Q @ value_Q_P, first_RK_Q @ scored_Q_P
    other_sum_RK_P = np.repeat(counts_R_Q @ value_Q_P, K, axis=0) - sum_RK_P
    other_count_RK_P = np.repeat(counts_R_Q @ scored_Q_P, K, axis=0) - count_RK_P
    return _pss_of_halves(safe_divide(sum_RK_P, count_RK_P), safe_divide(other_sum_RK_P, other_count_RK_P), K)


def swapped_pss_crossfit(
    first_P_Q: Array, other_P_Q: Array, halves_K_Q: Array, swap_R_Q: Array, block_size: int
) -> tuple[Array, Array]:
    """`pss_crossfit` [R] of two models after they have swapped their scores on the questions where `swap_R_Q` is 1.

    Both have scores in the same cells. Sums over a half are those without a swap plus what the swapped questions change, so each
    swap costs one product for both models. `block_size` swaps are computed at a time (memory).
    """
    (R, Q), K = swap_R_Q.shape, len(halves_K_Q)
    first_Q_P, scored_Q_P = _values_and_mask(first_P_Q)
    other_Q_P, _ = _values_and_mask(other_P_Q)
    change_Q_P = other_Q_P - first_Q_P
    # Sums of whole numbers are exact in float32 too, where the products below take half the time.
    is_whole = bool((change_Q_P == np.round(change_Q_P)).all()) and Q < 2**24
    narrow_halves_K_Q, narrow_change_Q_P = (each.astype(np.float32 if is_whole else float) for each in (halves_K_Q, change_Q_P))
    count_1_P = scored_Q_P.sum(axis=0, keepdims=True)
    count_K_P = halves_K_Q @ scored_Q_P
    found = list[tuple[Array, Array]]()
    for start in range(0, R, block_size):
        part_R_Q = swap_R_Q[start : start + block_size]
        chosen_RK_Q = (part_R_Q[:, None, :].astype(narrow_halves_K_Q.dtype) * narrow_halves_K_Q).reshape(-1, Q)
        moved_RK_P = (chosen_RK_Q @ narrow_change_Q_P).astype(float)
        moved_total_RK_P = np.repeat(part_R_Q @ change_Q_P, K, axis=0)
        first_count_RK_P, second_count_RK_P = (np.tile(each, (len(part_R_Q), 1)) for each in (count_K_P, count_1_P - count_K_P))
        pair = []
        for value_Q_P, sign in ((first_Q_P, 1.0), (other_Q_P, -1.0)):
            half_RK_P = np.tile(halves_K_Q @ value_Q_P, (len(part_R_Q), 1)) + sign * moved_RK_P
            rest_RK_P = value_Q_P.sum(axis=0) + sign * moved_total_RK_P - half_RK_P
            pair.append(_pss_of_halves(safe_divide(half_RK_P, first_count_RK_P), safe_divide(rest_RK_P, second_count_RK_P), K))
        found.append((pair[0], pair[1]))
    one, two = (np.concatenate(values) for values in zip(*found, strict=True))
    return one, two


def _pss_of_halves(half_RK_P: Array, other_RK_P: Array, n_splits: int) -> Array:
    """The cross-fitted PSS [R] from the accuracies on both halves of every split, the splits of a resample in a row."""
    if half_RK_P.shape[1] < 2:
        return np.full(len(half_RK_P) // n_splits, np.nan)
    shape = (2, -1, n_splits)
    pairs_2_RK = [_score_worst_and_best(half_RK_P, other_RK_P), _score_worst_and_best(other_RK_P, half_RK_P)]
    worst_R, best_R = mean_over_samples(np.concatenate([pair.reshape(shape) for pair in pairs_2_RK], axis=2))
    return safe_divide(worst_R, best_R)


def _score_worst_and_best(select_N_P: Array, score_N_P: Array) -> Array:
    """score_2_N: the `score_N_P` of the lowest and of the highest persona by `select_N_P`; both NaN unless both exist."""
    absent_N_P, unscored_N_P = np.isnan(select_N_P), np.isnan(score_N_P)
    is_complete = not (absent_N_P.any() or unscored_N_P.any())
    low_N_P = high_N_P = select_N_P
    if not is_complete:
        low_N_P, high_N_P = np.where(absent_N_P, np.inf, select_N_P), np.where(absent_N_P, -np.inf, select_N_P)
    chosen = (
        low_N_P <= low_N_P.min(axis=1, keepdims=True) + TIE_TOLERANCE,
        high_N_P >= high_N_P.max(axis=1, keepdims=True) - TIE_TOLERANCE,
    )
    if is_complete:  # a few times faster than the general case below
        return np.stack([np.einsum("np,np->n", score_N_P, one) / np.count_nonzero(one, axis=1) for one in chosen])
    scored_N_P = ~(absent_N_P | unscored_N_P)
    filled_N_P = np.where(scored_N_P, score_N_P, 0.0)
    pair_2_N = np.stack(
        [safe_divide((filled_N_P * one).sum(axis=1), (scored_N_P & one).sum(axis=1).astype(float)) for one in chosen]
    )
    return np.where(np.isnan(pair_2_N).any(axis=0), np.nan, pair_2_N)


def permute_within_question(mean_P_Q: Array, rng: np.random.Generator) -> Array:
    """The scores with persona labels shuffled within each question [P, Q]; cells without a score stay in place."""
    shuffled_Q_P = rng.permuted(mean_P_Q.T, axis=1)
    permuted_Q_P = np.full_like(shuffled_Q_P, np.nan)
    permuted_Q_P[~np.isnan(mean_P_Q.T)] = shuffled_Q_P[~np.isnan(shuffled_Q_P)]
    return permuted_Q_P.T


NORMAL_LIMIT_MIN_SCORES, NORMAL_LIMIT_MAX_PERSONAS, NORMAL_LIMIT_MIN_VARIANCE = 50_000, 1000, 25.0
"""Sums of permuted scores are drawn from their normal limit if there are at least this many scores, at most this many personas,
and at least this variance of each persona's sum. With less variance nearly all answers are equal, and the limit is inaccurate."""


def null_accuracies(mean_P_Q: Array, rng: np.random.Generator, n_permutations: int) -> Array:
    """accuracy_R_P under the null hypothesis of no persona effect: A_p after R permutations of the labels within each question.

    With very many scores they are drawn from the normal limit, and may then lie slightly outside [0, 1].
    """
    if mean_P_Q.size >= NORMAL_LIMIT_MIN_SCORES and len(mean_P_Q) <= NORMAL_LIMIT_MAX_PERSONAS:
        mean_P, covariance_P_P = _permutation_moments(mean_P_Q)
        if (np.diag(covariance_P_P) * (~np.isnan(mean_P_Q)).sum(axis=1) ** 2).min() >= NORMAL_LIMIT_MIN_VARIANCE:
            size_P, vector_P_P = np.linalg.eigh(covariance_P_P)
            root_P_P = vector_P_P * np.sqrt(np.maximum(size_P, 0.0))
            return np.asarray(mean_P + rng.normal(size=(n_permutations, len(mean_P))) @ root_P_P.T)
    counts_1_Q = np.ones((1, mean_P_Q.shape[1]))
    rows = [weighted_question_mean(permute_within_question(mean_P_Q, rng), counts_1_Q) for _ in range(n_permutations)]
    return np.concatenate(rows)


def joint_null_accuracies(mean_G_P_Q: Array, rng: np.random.Generator, n_permutations: int) -> Array:
    """accuracy_G_R_P as of `null_accuracies`, with the same permutation in all grids. NaN must be in the same cells of all."""
    G, P, Q = mean_G_P_Q.shape
    place_P_Q = np.where(np.isnan(mean_G_P_Q[0]), np.nan, np.arange(P * Q, dtype=float).reshape(P, Q))
    score_G_N = np.nan_to_num(mean_G_P_Q.reshape(G, P * Q))
    scored_P_Q = ~np.isnan(place_P_Q)
    accuracy_R_G_P = np.empty((n_permutations, G, P))
    for accuracy_G_P in accuracy_R_G_P:
        permuted_P_Q = np.where(scored_P_Q, permute_within_question(place_P_Q, rng), 0.0).astype(np.int64)
        accuracy_G_P[:] = (score_G_N[:, permuted_P_Q] * scored_P_Q).sum(axis=2) / scored_P_Q.sum(axis=1)
    return accuracy_R_G_P.transpose(1, 0, 2)


def _permutation_moments(mean_P_Q: Array) -> tuple[Array, Array]:
    """Exact mean [P] and covariance [P, P] of the accuracies under permutation within questions.

    On a question with n scored personas a permuted score has the question's mean and variance s² (dividing by n), and two of them
    have covariance −s² / (n − 1).
    """
    scored_P_Q = ~np.isnan(mean_P_Q)
    mask_P_Q, n_Q = scored_P_Q.astype(float), scored_P_Q.sum(axis=0)
    mean_Q = np.nan_to_num(mean_over_samples(mean_P_Q.T))
    square_Q = (np.where(scored_P_Q, mean_P_Q - mean_Q, 0.0) ** 2).sum(axis=0)
    unit_Q = square_Q / (np.maximum(n_Q, 1) * np.maximum(n_Q - 1, 1))  # s² / (n − 1)
    # The off-diagonal formula puts −unit on the diagonal as well; n · unit makes it (n − 1) · unit = s².
    covariance_P_P = np.diag(mask_P_Q @ (unit_Q * n_Q)) - (mask_P_Q * unit_Q) @ mask_P_Q.T
    count_P = mask_P_Q.sum(axis=1)
    return mask_P_Q @ mean_Q / count_P, covariance_P_P / np.outer(count_P, count_P)


def permutation_p(statistic: float, null_R: Array) -> float:
    """p = (1 + #{null ≥ statistic}) / (1 + R): valid for any R, never 0.

    Source: Phipson and Smyth (2010), Permutation p-values should never be zero, SAGMB 9.
    """
    return float((1 + (null_R >= statistic * (1 - TIE_TOLERANCE)).sum()) / (1 + len(null_R)))


def persona_effect_statistics(accuracy_R_P: Array) -> Array:
    """statistic_2_R: the variance of the accuracies over personas, and the largest distance of one from their mean.

    The variance is large where personas differ in general; the distance where one persona differs from all others.
    """
    deviation_R_P = accuracy_R_P - accuracy_R_P.mean(axis=1, keepdims=True)
    return np.stack([(deviation_R_P**2).mean(axis=1), np.abs(deviation_R_P).max(axis=1)])


def min_p(statistic_K: Array, null_K_R: Array) -> float:
    """p of the test that rejects where any of K statistics is large, from their joint values in R permutations.

    Each statistic becomes its p among the 1 + R values (observed and permuted); the smallest p of the data is compared with the
    smallest p of every permutation. So it needs no correction for K, is valid for any R and never 0.
    Source: Westfall and Young (1993), Resampling-Based Multiple Testing, section 2.3.
    """
    value_K_N = np.concatenate([statistic_K[:, None], null_K_R], axis=1)
    # Values that differ by rounding alone count as equal.
    value_K_N = np.round(value_K_N / np.maximum(value_K_N.max(axis=1, keepdims=True), 1e-300), 9)
    smallest_N = rankdata(-value_K_N, method="max", axis=1).min(axis=0)
    return float((smallest_N <= smallest_N[0]).mean())


def mcnemar_exact(wins: int, losses: int) -> float:
    """p of the exact two-sided McNemar test: binomial(wins + losses, ½) on the discordant pairs; 1 without such pairs."""
    return float(binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0


MAX_SCORE_DENOMINATOR, COARSE_STEPS = 840, 50_000
"""Differences of shares have a small common denominator: 840 = lcm(1, ..., 8) is that of up to 8 samples, some missing. Other
differences are rounded to steps, this number of them divided by the number of questions for the largest difference."""


def sign_flip_p(difference_Q: Array) -> float:
    """Exact p of the two-sided sign-flip test of mean difference 0 with questions as units; NaN without a difference.

    p is the probability that |Σ ±d| ≥ |Σ d| over all 2^Q choices of signs. The sum of ±d is determined by the sum of those |d|
    that get a plus, whose distribution is computed question by question on a grid of equal steps. Where every difference is −1, 0
    or 1 (one sample per cell) this is McNemar's test. Differences without a small common denominator are rounded, which keeps
    the test exact: any choice of signs of rounded differences is as likely as before.
    """
    paired_Q = difference_Q[~np.isnan(difference_Q)]
    if not len(paired_Q):
        return float("nan")
    steps_Q = _whole_steps(paired_Q)
    size_Q = np.abs(steps_Q[steps_Q != 0])
    if (size_Q == 1).all():
        return mcnemar_exact(int((steps_Q > 0).sum()), int((steps_Q < 0).sum()))
    share_N = np.ones(1)
    for size in np.sort(size_Q):
        padding = np.zeros(size)
        share_N = (np.concatenate([share_N, padding]) + np.concatenate([padding, share_N])) / 2
    smaller = (len(share_N) - 1 - abs(int(steps_Q.sum()))) // 2  # sum of the |d| with the rarer sign
    return min(1.0, max(2 * float(share_N[: smaller + 1].sum()), float(np.finfo(float).tiny)))


def _whole_steps(difference_Q: Array) -> NDArray[np.int64]:
    """The differences as multiples of 1 / their common denominator, or else rounded as `COARSE_STEPS` says."""
    for denominator in range(1, MAX_SCORE_DENOMINATOR + 1):
        steps_Q = np.round(difference_Q * denominator)
        if np.abs(difference_Q * denominator - steps_Q).max() < 1e-6:
            return np.asarray(steps_Q, dtype=np.int64)
    largest = np.abs(difference_Q).max()
    return np.asarray(np.round(difference_Q / largest * max(20, COARSE_STEPS // len(difference_Q))), dtype=np.int64)


def holm_adjust(p_N: Array) -> Array:
    """Holm's step-down correction: the running maximum of (N − rank) p over ascending p, rank from 0, at most 1.

    NaN entries are not tests: they do not count in N and stay NaN.
    """
    tested = np.flatnonzero(~np.isnan(p_N))
    ordered = tested[np.argsort(p_N[tested], kind="stable")]
    adjusted_N = np.full_like(p_N, np.nan)
    adjusted_N[ordered] = np.minimum(np.maximum.accumulate(p_N[ordered] * np.arange(len(ordered), 0, -1)), 1.0)
    return adjusted_N


class BootstrapResult(NamedTuple):
    """The value of a measure, and its values in R resamples (axes: R, then the measure's own)."""

    value: Array
    replicates: Array


def bootstrap(
    measures: Callable[[Array], dict[str, Array]], n_units: int, rng: np.random.Generator, resamples: int, block_size: int
) -> dict[str, BootstrapResult]:
    """Every array of `measures(counts_R_Q)` on the data and on R draws of the Q units, `block_size` draws at a time (memory).

    All measures have the same draws. The units are questions: the cells of a question are not independent, so they are drawn
    together.
    """
    counts_R_Q = rng.multinomial(n_units, np.full(n_units, 1 / n_units), size=resamples).astype(float)
    values = measures(np.ones((1, n_units)))
    blocks = [measures(counts_R_Q[start : start + block_size]) for start in range(0, resamples, block_size)]
    return {name: BootstrapResult(value[0], np.concatenate([one[name] for one in blocks])) for name, value in values.items()}


def bootstrap_estimate(value: float, replicate_R: Array, n: int) -> Estimate:
    """The value with its 95 % bias-corrected percentile interval (Efron's BC with a bounded correction), for n units.

    z0 = Φ⁻¹(share of replicates below the value + half the ties), within ±`MAX_BIAS_CORRECTION_Z`; the ends are the Φ(2 z0 ± z)
    quantiles, stretched to include the value; z = √(n / (n − 1)) t with t of n − 1 degrees of freedom, since percentiles of few
    units are too narrow (Hesterberg 2015, What teachers should know about the bootstrap, The American Statistician 69).
    No value if it is NaN; no interval for n < 2, or when under half of the replicates could be computed.
    """
    if np.isnan(value):
        return Estimate(value=None, n=n)
    finite_R = replicate_R[~np.isnan(replicate_R)]
    if n < 2 or 2 * len(finite_R) < len(replicate_R):
        return Estimate(value=float(value), n=n)
    share = (finite_R < value - TIE_TOLERANCE).mean() + (np.abs(finite_R - value) <= TIE_TOLERANCE).mean() / 2
    z0 = np.clip(ndtri(share), -MAX_BIAS_CORRECTION_Z, MAX_BIAS_CORRECTION_Z)
    z = np.sqrt(n / (n - 1)) * stdtrit(n - 1, 0.975)
    low, high = np.quantile(finite_R, ndtr(2 * z0 + np.array([-z, z])))
    return Estimate(value=float(value), low=float(min(low, value)), high=float(max(high, value)), n=n)


def bootstrap_share(value: float, replicate_R: Array, n: int) -> Estimate:
    """`bootstrap_estimate` of a mean of scores in [0, 1]; where all are 0 or all are 1, with the exact binomial interval.

    There every resample equals the data, so the bootstrap would give an interval of width 0.
    """
    estimate = bootstrap_estimate(value, replicate_R, n)
    if estimate.low is None or estimate.value is None or TIE_TOLERANCE < estimate.value < 1 - TIE_TOLERANCE:
        return estimate
    unseen = largest_unseen_share(n)
    return estimate.model_copy(update={"high": unseen} if estimate.value <= TIE_TOLERANCE else {"low": 1 - unseen})


def largest_unseen_share(n: int) -> float:
    """The share of all questions that none of n drawn ones shows with probability .025: the exact end of a share of 0."""
    return float(1 - 0.025 ** (1 / n))


def bootstrap_paired(value: float, replicate_R: Array, difference_Q: Array) -> Estimate:
    """`bootstrap_estimate` of a mean of paired differences in [−1, 1] (NaN: not paired).

    Where no question differs in one direction, resamples cannot show any: that end reaches `largest_unseen_share` further.
    """
    paired_Q = difference_Q[~np.isnan(difference_Q)]
    estimate = bootstrap_estimate(value, replicate_R, len(paired_Q))
    if estimate.value is None or estimate.low is None or estimate.high is None:
        return estimate
    ends, unseen = {}, largest_unseen_share(len(paired_Q))
    if not (paired_Q < -TIE_TOLERANCE).any():
        ends["low"] = max(-1.0, min(estimate.low, estimate.value - unseen))
    if not (paired_Q > TIE_TOLERANCE).any():
        ends["high"] = min(1.0, max(estimate.high, estimate.value + unseen))
    return estimate.model_copy(update=ends)


def paired_low(difference_Q: Array) -> float:
    """The low end of the 95 % interval of a mean of paired differences in [−1, 1] (NaN: not paired), by Student's t.

    At least one question must be paired; a single one gives −1. The share of negative differences reaches at least as far as its
    exact binomial interval: with few of them, t is too narrow.
    """
    paired_Q = difference_Q[~np.isnan(difference_Q)]
    n, mean = len(paired_Q), float(paired_Q.mean())
    negative = float(np.maximum(-paired_Q, 0.0).sum())
    if n < 2 or n - negative < TIE_TOLERANCE:
        return -1.0
    by_t = float(stdtrit(n - 1, 0.975) * paired_Q.std(ddof=1) / np.sqrt(n))
    exact = float(betaincinv(negative + 1, n - negative, 0.975)) - negative / n
    return max(-1.0, mean - max(by_t, exact))


def bootstrap_mean(
    values_N: Array, seed: int, resamples: int, interval: Callable[[float, Array, int], Estimate] = bootstrap_estimate
) -> Estimate:
    """Mean of the values with its 95 % interval over the N units. NaN values are left out; without any value the mean is None."""
    scored_N = values_N[~np.isnan(values_N)]
    n = len(scored_N)
    if not n:
        return Estimate(value=None, n=0)
    rng = np.random.default_rng(seed)
    mean = bootstrap(lambda counts_R_N: {"mean": counts_R_N @ scored_N / n}, n, rng, resamples, block_size=resamples)["mean"]
    return interval(float(mean.value), mean.replicates, n)


def _values_and_mask(mean_P_Q: Array) -> tuple[Array, Array]:
    """value_Q_P with 0 for NaN, and scored_Q_P as 0/1; in a complete grid the latter has one column, which saves a product."""
    scored_Q_P = ~np.isnan(mean_P_Q.T)
    if scored_Q_P.all():
        return mean_P_Q.T, np.ones((len(scored_Q_P), 1))
    return np.where(scored_Q_P, mean_P_Q.T, 0.0), scored_Q_P.astype(float)


def safe_divide(numerator: Array | NDArray[np.int64], denominator: Array | NDArray[np.int64] | np.float64) -> Array:
    """numerator / denominator, NaN where the denominator is not positive."""
    numerator, denominator = np.broadcast_arrays(np.asarray(numerator, dtype=float), np.asarray(denominator, dtype=float))
    return np.asarray(np.divide(numerator, denominator, out=np.full(numerator.shape, np.nan), where=denominator > 0))


def none_if_nan(value: float) -> float | None:
    """The value; None for NaN."""
    return None if np.isnan(value) else float(value)


Change = Callable[[Array, Array], Array]
"""How two models' values of a measure are compared: (value, against) -> value − against (`numpy.subtract`), or
`relative_change`."""


def relative_change(value: Array, against: Array) -> Array:
    """(value − against) / against, NaN where `against` is not positive."""
    return safe_divide(np.asarray(value, dtype=float), np.asarray(against, dtype=float)) - 1


SIGNIFICANCE_LEVEL, TARGET_POWER = 0.05, 0.8


def discordance(mean_P_Q: Array, baseline_Q: Array) -> float | None:
    """Mean squared difference between a persona's and the baseline's score on a question; None without a common question.

    With one sample per cell: the share of questions that are right in one of the two conditions and wrong in the other.
    """
    square_P_Q = (mean_P_Q - baseline_Q) ** 2
    paired = square_P_Q[~np.isnan(square_P_Q)]
    return float(paired.mean()) if paired.size else None


def required_questions(
    effect: float, discordance: float, n_tests: int, *, level: float = SIGNIFICANCE_LEVEL, power: float = TARGET_POWER
) -> int:
    """Questions needed to detect a true difference d = `effect` of accuracies with probability `power`.

    n = ((z_a √ψ + z_b √(ψ − d²)) / d)² with ψ the discordance, z_a = Φ⁻¹(1 − level / (2 tests)), z_b = Φ⁻¹(power). A difference
    of d implies a discordance of at least d, so a smaller ψ is raised to d. Raises ValueError for an effect outside (0, 1].
    Source: Connor (1987).
    """
    if not 0 < effect <= 1:
        raise ValueError(f"effect is {effect}; a difference of accuracies to detect lies in (0, 1]")
    psi = max(discordance, effect)
    z_level, z_power = float(ndtri(1 - level / (2 * n_tests))), float(ndtri(power))
    return math.ceil(((z_level * math.sqrt(psi) + z_power * math.sqrt(psi - effect**2)) / effect) ** 2)


def minimum_detectable_effect(
    n_questions: int, discordance: float, n_tests: int, *, level: float = SIGNIFICANCE_LEVEL, power: float = TARGET_POWER
) -> float | None:
    """Smallest difference, to 0.001, that `n_questions` detect with probability `power`; None if they cannot even detect 1."""
    effects = (step / 1000 for step in range(1, 1001))
    needed = partial(required_questions, discordance=discordance, n_tests=n_tests, level=level, power=power)
    return next((effect for effect in effects if needed(effect) <= n_questions), None)
