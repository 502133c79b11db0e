"""Draws of personas' true angles from noisy ones, under two priors, by Gibbs sampling.

    horseshoe    μ + τ λ_p z_p, with half-Cauchy τ and λ_p: most personas near one another, any of them far out
    ties         a Dirichlet process: few values, each shared by many personas

Its contract: pure functions of angles and their noise; DRAWS draws, from chains side by side that were warmed up.

Sources: Carvalho, Polson, Scott (2010), The horseshoe estimator for sparse signals, Biometrika 97; Makalic, Schmidt (2016), A
simple sampler for the horseshoe estimator, IEEE SPL 23; Ishwaran, James (2001), Gibbs sampling methods for stick-breaking priors,
JASA 96.

What a grid says of its personas, with the noise of it: what the draws of `permix.metrics.posterior` start from.

The scale is the angle arcsin √A, where the noise of a share hardly depends on the share. A persona's observed angle is its true
one, plus noise of its own (the residual of the two-way persona × question analysis), less an error that all personas have alike,
because they were asked the same questions. A persona with other questions than the others is held against them on those that they
share; unless cells are missing by design, when the questions of one are as good a draw as those of another.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components

from permix.metrics import statistics
from permix.metrics.statistics import Array

MAX_VARIANCE_RATIO = 1e4
"""Of the questions' variance to the residual's: beyond it a matrix that is to be inverted is as good as singular."""


class QuestionLevels(NamedTuple):
    """How a set of answers to the questions did on each: what its accuracy shares with that of another set.

    `value_Q` is the level of a question (NaN: no score); `variance` that of the mean level, and `scale` what a squared difference
    of accuracies is divided by, both for angles.
    """

    value_Q: Array
    variance: float
    scale: float


class NoiseModel(NamedTuple):
    """What a grid says of its personas, in angles. `noise_var_P` is the variance of each persona's own noise; `rest_P_Q`
    that noise.

    `noise_cov_P_P` is the covariance of that noise where cells are missing by design: whoever were asked more are known to
    one another better than to the rest. None: each persona's is its own.
    """

    angle_P: Array
    noise_var_P: Array
    residual_P_Q: Array
    levels: QuestionLevels
    noise_cov_P_P: Array | None = None


def fit_noise_model(mean_P_Q: Array, *, missing_by_design: bool = False) -> NoiseModel:
    """`mean_P_Q`: two questions or more have a score, and personas are `is_connected`.

    `missing_by_design`: questions came in random order, and who was asked one was settled before anyone was; so how a
    persona did on
    questions of its own tells how it compares (`stats.mixed`). Cells that are missing for another reason may be the hard ones.
    """
    P = len(mean_P_Q)
    scored_P_Q = ~np.isnan(mean_P_Q)
    found = _fit_persona_effects(mean_P_Q)
    level_Q, known_Q = _question_levels(mean_P_Q, found.effect_P)
    Q = int(known_Q.sum())
    accuracy_P, spread = _clipped_accuracy_and_variance(level_Q[known_Q].mean() + found.effect_P)
    # No cell more than the fit takes: as if questions were all alike.
    residual = spread if np.isnan(found.residual) else found.residual
    noise = residual * (1 / scored_P_Q.sum(axis=0)[known_Q]).mean()
    between = max(level_Q[known_Q].var(ddof=1) - noise, 0.0)
    effect_P, share_P, share_P_P = found.effect_P, found.noise_share_P, None
    if missing_by_design:
        mixed = statistics.fit_mixed_model(mean_P_Q, min(between / max(residual, statistics.TIE_TOLERANCE), MAX_VARIANCE_RATIO))
        effect_P, share_P_P = mixed.accuracy_P - mixed.accuracy_P.mean(), mixed.noise_cov_P_P
        share_P = np.diag(share_P_P)
        accuracy_P, spread = _clipped_accuracy_and_variance(mixed.accuracy_P)
        level_Q, _ = _question_levels(mean_P_Q, effect_P)
    level = _fit_question_levels(level_Q, spread, between)
    # Half a disagreement more than was seen: personas that answered alike throughout need not always do so.
    unit = (residual + 0.125 * level.scale / (P * Q)) / level.scale
    rest_P_Q = mean_P_Q - effect_P[:, None] - level_Q
    return NoiseModel(
        anscombe_angle(accuracy_P, Q), unit * share_P, rest_P_Q, level, None if share_P_P is None else unit * share_P_P
    )


def _question_levels(mean_P_Q: Array, effect_P: Array) -> tuple[Array, NDArray[np.bool_]]:
    """How a question went when personas' effects are taken off, and which questions have a score."""
    level_Q = statistics.mean_over_samples((mean_P_Q - effect_P[:, None]).T)
    return level_Q, ~np.isnan(level_Q)


def _clipped_accuracy_and_variance(accuracy_P: Array) -> tuple[Array, float]:
    """The accuracies within [0, 1], and the mean variance of one answer."""
    within_P = np.clip(accuracy_P, 0.0, 1.0)
    return within_P, float((within_P * (1 - within_P)).mean())


def is_connected(mean_P_Q: Array) -> bool:
    """Whether any two personas can be compared, if need be by way of others: through questions that both have a score for."""
    scored_P_Q = (~np.isnan(mean_P_Q)).astype(float)
    return int(connected_components(csr_matrix(scored_P_Q @ scored_P_Q.T), directed=False)[0]) == 1


class _PersonaEffects(NamedTuple):
    """Effects of personas, which add up to 0; the residual's mean square (NaN without degrees of freedom); and which part of it
    is the variance of each persona's own noise, 1/Q where nothing is missing.
    """

    effect_P: Array
    residual: float
    noise_share_P: Array


def _fit_persona_effects(mean_P_Q: Array) -> _PersonaEffects:
    """For one persona there is no residual."""
    P, Q = mean_P_Q.shape
    if P == 1:
        return _PersonaEffects(np.zeros(1), 0.0, np.full(1, 1 / Q))
    found = statistics.fit_two_way(mean_P_Q, np.ones((1, Q)))
    return _PersonaEffects(found.effect_R_P[0], max(float(found.residual_R[0]), 0.0), found.pinv_diagonal_R_P[0] * P / (P - 1))


def _fit_question_levels(value_Q: Array, answer_variance: float, question_variance: float) -> QuestionLevels:
    """`spread`: mean variance of one answer; `between`: how much of it lies between questions."""
    known_Q = value_Q[~np.isnan(value_Q)]
    Q = len(known_Q)
    middle = (np.clip(known_Q.mean(), 0, 1) * Q + 0.5) / (Q + 1)
    scale = 4 * max(answer_variance, middle * (1 - middle) / Q)
    # Where all questions went alike nothing is known of how much they differ: then as if one answer stood for all personas'.
    varied = int((np.abs(known_Q - np.median(known_Q)) > statistics.TIE_TOLERANCE).sum())
    share = (varied * min(4 * question_variance / scale, 1.0) + 0.5) / (varied + 0.5)
    return QuestionLevels(value_Q, share / (4 * Q), scale)


def anscombe_angle(accuracy: Array, n_questions: int) -> Array:
    """Anscombe's: 0 and 1 of few questions are not read as certainties."""
    return np.asarray(np.arcsin(np.sqrt((accuracy * n_questions + 0.375) / (n_questions + 0.75))))


N_DRAWS, WARMUP_STEPS = 10_000, 100

MAX_CHAINS, MAX_CHAIN_PERSONAS = 200, 12_800
"""Chains side by side; fewer where there are so many personas that chains × personas would be more than `MAX_CHAIN_PERSONAS`."""

DIRICHLET_TRUNCATION = 12
"""The most different values that a draw with ties has: the process is cut off there."""


def _inverse_gamma(shape: Array | float, rate: Array, rng: np.random.Generator) -> Array:
    return np.asarray(np.maximum(rate / rng.gamma(shape, size=rate.shape), 1e-14))


def _chains_and_draws(n_personas: int) -> tuple[int, int]:
    """How many, and how many draws are kept of each."""
    chains = max(1, min(MAX_CHAINS, MAX_CHAIN_PERSONAS // n_personas))
    return chains, -(-N_DRAWS // chains)


def sample_horseshoe(y_P_G: Array, noise_P_G_G: Array, rng: np.random.Generator) -> Array:
    """angle_R_P_G by Gibbs sampling, in chains side by side [C, P, G]: a horseshoe for each grid, their noise correlated."""
    P, G = y_P_G.shape
    C, kept = _chains_and_draws(P)
    noise_P_G_G = noise_P_G_G + 1e-12 * np.eye(G)
    unit_G = np.einsum("pgg->g", noise_P_G_G) / P
    known_P_G_G = np.linalg.inv(noise_P_G_G)
    middle_G_G = np.linalg.inv(known_P_G_G.sum(axis=0))
    middle_root = np.linalg.cholesky(middle_G_G)
    effect = np.tile(0.5 * (y_P_G - y_P_G.mean(axis=0)), (C, 1, 1))
    middle_C_G = np.tile(y_P_G.mean(axis=0), (C, 1))
    local = helper = np.ones((C, P, G))
    whole_C_G = np.tile(np.maximum(y_P_G.var(axis=0), 0.05 * unit_G), (C, 1))
    found = []
    for step in range(WARMUP_STEPS + kept):
        precision = known_P_G_G + np.eye(G) / (whole_C_G[:, None] * local)[..., None]
        variance = np.linalg.inv(precision)
        told = np.einsum("pgh,cph->cpg", known_P_G_G, y_P_G - middle_C_G[:, None])
        drawn = np.einsum("cpgh,cph->cpg", np.linalg.cholesky(variance), rng.normal(size=(C, P, G)))
        effect = np.einsum("cpgh,cph->cpg", variance, told) + drawn
        told_C_G = np.einsum("pgh,cph->cg", known_P_G_G, y_P_G - effect)
        middle_C_G = told_C_G @ middle_G_G + rng.normal(size=(C, G)) @ middle_root.T
        local, helper, whole_C_G = _sample_scales(effect, helper, whole_C_G, unit_G, rng)
        if step >= WARMUP_STEPS:
            found.append(middle_C_G[:, None] + effect)
    return np.concatenate(found)[:N_DRAWS]


def sample_correlated_horseshoe(y_P: Array, noise_P_P: Array, rng: np.random.Generator) -> Array:
    """angle_R_P of one grid, as `sample_horseshoe`, where personas' noise is correlated."""
    P = len(y_P)
    C, kept = _chains_and_draws(P)
    known_P_P = np.linalg.inv(noise_P_P + 1e-12 * np.eye(P))
    root_P_P, unit_G = np.linalg.cholesky(known_P_P), np.array([np.trace(noise_P_P) / P])
    precision = float(known_P_P.sum())
    effect = np.tile(0.5 * (y_P - y_P.mean()), (C, 1))[..., None]
    middle_C = np.full(C, y_P.mean())
    local = helper = np.ones((C, P, 1))
    whole_C_G = np.full((C, 1), max(float(y_P.var()), 0.05 * float(unit_G[0])))
    found = []
    for step in range(WARMUP_STEPS + kept):
        prior_C_P = 1 / (whole_C_G[:, None] * local)[..., 0]
        # A draw from N(M⁻¹ b, M⁻¹) is M⁻¹ (b + z) with z from N(0, M), and M is a sum of two whose roots are known.
        told_C_P = (y_P - middle_C[:, None]) @ known_P_P
        chance_C_P = rng.normal(size=(C, P)) @ root_P_P.T + np.sqrt(prior_C_P) * rng.normal(size=(C, P))
        effect = np.linalg.solve(known_P_P + prior_C_P[:, None] * np.eye(P), (told_C_P + chance_C_P)[..., None])
        middle_C = ((y_P - effect[..., 0]) @ known_P_P).sum(axis=1) / precision + rng.normal(size=C) / np.sqrt(precision)
        local, helper, whole_C_G = _sample_scales(effect, helper, whole_C_G, unit_G, rng)
        if step >= WARMUP_STEPS:
            found.append(middle_C[:, None] + effect[..., 0])
    return np.concatenate(found)[:N_DRAWS]


def _sample_scales(
    effect: Array, auxiliary: Array, global_C_G: Array, unit_G: Array, rng: np.random.Generator
) -> tuple[Array, Array, Array]:
    """The half-Cauchy scales of effects [C, P, G], as inverse gammas: each effect's, its helper, and that of all."""
    local = _inverse_gamma(1.0, 1 / auxiliary + effect**2 / (2 * global_C_G[:, None]), rng)
    auxiliary = _inverse_gamma(1.0, 1 + 1 / local, rng)
    spread_C_G = _inverse_gamma(1.0, 1 / unit_G + 1 / global_C_G, rng)
    rate_C_G = 1 / spread_C_G + (effect**2 / (2 * local)).sum(axis=1)
    return local, auxiliary, _inverse_gamma((effect.shape[1] + 1) / 2, rate_C_G, rng)


def sample_dirichlet(y_P: Array, noise_var_P: Array, rng: np.random.Generator) -> Array:
    """angle_R_P by blocked Gibbs sampling of a Dirichlet process cut off at V values, in chains side by side [C, P, V]."""
    noise_var_P = np.maximum(noise_var_P, 1e-12)
    P, V, unit = len(y_P), min(len(y_P), DIRICHLET_TRUNCATION), float(noise_var_P.mean())
    C, kept = _chains_and_draws(P)
    takes_C_P = rng.integers(0, V, size=(C, P))
    takes_C_P[::2] = 0  # half of the chains begin with no persona apart
    middle_C, whole_C = np.full(C, y_P.mean()), np.full(C, max(2 * float(y_P.var()), 0.2 * unit))
    breadth_C = np.ones(C)
    found = []
    for step in range(WARMUP_STEPS + kept):
        taken_C_P_V = takes_C_P[:, :, None] == np.arange(V)
        count_C_V = taken_C_P_V.sum(axis=1)
        later_C_V = count_C_V[:, ::-1].cumsum(axis=1)[:, ::-1] - count_C_V
        stick_C_V = np.clip(rng.beta(1.0 + count_C_V, breadth_C[:, None] + later_C_V), 1e-12, 1 - 1e-12)
        rest_C_V = np.log1p(-stick_C_V[:, :-1])
        before_C_V = np.concatenate([np.zeros((C, 1)), rest_C_V.cumsum(axis=1)], axis=1)
        share_C_V = before_C_V + np.concatenate([np.log(stick_C_V[:, :-1]), np.zeros((C, 1))], axis=1)
        breadth_C = rng.gamma(V, size=C) / (4.0 - rest_C_V.sum(axis=1))
        precision_C_V = (taken_C_P_V / noise_var_P[:, None]).sum(axis=1) + 1 / whole_C[:, None]
        value_C_V = ((taken_C_P_V * (y_P / noise_var_P)[:, None]).sum(axis=1) + (middle_C / whole_C)[:, None]) / precision_C_V
        value_C_V = value_C_V + rng.normal(size=(C, V)) / np.sqrt(precision_C_V)
        log_C_P_V = share_C_V[:, None] - (y_P[:, None] - value_C_V[:, None]) ** 2 / (2 * noise_var_P[:, None])
        takes_C_P = (log_C_P_V - np.log(rng.exponential(size=log_C_P_V.shape))).argmax(axis=2)
        used_C_V = (takes_C_P[:, :, None] == np.arange(V)).any(axis=1)
        used_C = used_C_V.sum(axis=1)
        middle_C = (value_C_V * used_C_V).sum(axis=1) / used_C + rng.normal(size=C) * np.sqrt(whole_C / used_C)
        apart_C = ((value_C_V - middle_C[:, None]) ** 2 * used_C_V).sum(axis=1)
        spread_C = _inverse_gamma(1.0, 1 / unit + 1 / whole_C, rng)
        whole_C = _inverse_gamma((used_C + 1) / 2, 1 / spread_C + apart_C / 2, rng)
        if step >= WARMUP_STEPS:
            found.append(np.take_along_axis(value_C_V, takes_C_P, axis=1))
    return np.concatenate(found)[:N_DRAWS]
