"""The noise model of a grid of scores, and Gibbs samplers of personas' true angles under two priors.

The scale is the angle arcsin √A of an accuracy A, on which the noise of a share hardly depends on the share. A persona's observed
angle is its true one, plus noise of its own (the residual of the two-way persona × question analysis), plus an error that all
personas share, because they were asked the same questions. Where personas were asked different questions, they are compared on
their common questions. But if cells are missing by design, all questions count: each persona has a random sample of them.

    horseshoe    θ_p = μ + τ λ_p z_p, z_p standard normal, τ and λ_p half-Cauchy: most personas near each other, any one far away
    Dirichlet    a Dirichlet process: few values, each shared by many personas

Contract: pure functions of arrays; `N_DRAWS` draws, from parallel chains after `WARMUP_STEPS` steps each.

Axes: P personas, Q questions, G grids, R draws, C chains, V values of the Dirichlet process.
Sources: Carvalho, Polson, Scott (2010), The horseshoe estimator for sparse signals, Biometrika 97; Makalic, Schmidt (2016), A
simple sampler for the horseshoe estimator, IEEE SPL 23; Ishwaran, James (2001), Gibbs sampling methods for stick-breaking priors,
JASA 96; Anscombe (1948), The transformation of Poisson, binomial and negative-binomial data, Biometrika 35.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components

from permix.metrics import statistics
from permix.metrics.statistics import Array

MAX_VARIANCE_RATIO = 1e4
"""Largest ratio of the questions' variance to the residual's: beyond it, `fit_mixed_model` inverts a nearly singular matrix."""


class QuestionLevels(NamedTuple):
    """Mean scores of a set of answers by question. All answers to the same questions share the error that these levels have."""

    value_Q: Array
    """Accuracy on each question without the personas' effects; NaN without a score."""
    variance: float
    """Variance of the mean level, on the scale of angles."""
    scale: float
    """Divide a squared difference of accuracies by this to get a squared difference of angles."""


class NoiseModel(NamedTuple):
    """Observed angles of a grid's personas, and their noise."""

    angle_P: Array
    noise_var_P: Array
    """Variance of each persona's own noise, of angles."""
    residual_P_Q: Array
    """Scores without the effects of persona and question; NaN without a score."""
    levels: QuestionLevels
    noise_cov_P_P: Array | None = None
    """Covariance of the personas' own noise where cells are missing by design: personas that were asked more questions together
    are compared more exactly. None: independent."""


def fit_noise_model(mean_P_Q: Array, *, missing_by_design: bool = False) -> NoiseModel:
    """Fit the noise model. At least two questions must have a score, and the personas must be connected (`is_connected`).

    `missing_by_design`: questions came in random order, and the choice of personas for a question did not depend on answers to
    it. Then accuracies come from `fit_mixed_model`, which also uses questions that a persona shares with no other. Cells missing
    for other reasons may be the hard ones, so there only common questions count (`fit_two_way`).
    """
    P = len(mean_P_Q)
    scored_P_Q = ~np.isnan(mean_P_Q)
    effects = _fit_persona_effects(mean_P_Q)
    level_Q, known_Q = _question_levels(mean_P_Q, effects.effect_P)
    Q = int(known_Q.sum())
    accuracy_P, answer_variance = _clipped_accuracy_and_variance(level_Q[known_Q].mean() + effects.effect_P)
    # Without degrees of freedom the residual is unknown: take that of equally hard questions, the largest it could be.
    residual = answer_variance if np.isnan(effects.residual) else effects.residual
    noise = residual * (1 / scored_P_Q.sum(axis=0)[known_Q]).mean()
    question_variance = max(level_Q[known_Q].var(ddof=1) - noise, 0.0)
    effect_P, share_P, share_P_P = effects.effect_P, effects.noise_share_P, None
    if missing_by_design:
        variance_ratio = min(question_variance / max(residual, statistics.TIE_TOLERANCE), MAX_VARIANCE_RATIO)
        mixed = statistics.fit_mixed_model(mean_P_Q, variance_ratio)
        effect_P, share_P_P = mixed.accuracy_P - mixed.accuracy_P.mean(), mixed.noise_cov_P_P
        share_P = np.diag(share_P_P)
        accuracy_P, answer_variance = _clipped_accuracy_and_variance(mixed.accuracy_P)
        level_Q, _ = _question_levels(mean_P_Q, effect_P)
    levels = _fit_question_levels(level_Q, answer_variance, question_variance)
    # Add half a disagreement: personas that agreed on all these questions need not agree on all others. Without it their noise
    # would be 0 and their difference certain.
    unit = (residual + 0.125 * levels.scale / (P * Q)) / levels.scale
    residual_P_Q = mean_P_Q - effect_P[:, None] - level_Q
    return NoiseModel(
        anscombe_angle(accuracy_P, Q), unit * share_P, residual_P_Q, levels, None if share_P_P is None else unit * share_P_P
    )


def _question_levels(mean_P_Q: Array, effect_P: Array) -> tuple[Array, NDArray[np.bool_]]:
    """For each question [Q]: the mean score after subtracting the personas' effects, and whether it has a score."""
    level_Q = statistics.mean_over_samples((mean_P_Q - effect_P[:, None]).T)
    return level_Q, ~np.isnan(level_Q)


def _clipped_accuracy_and_variance(accuracy_P: Array) -> tuple[Array, float]:
    """The accuracies clipped to [0, 1], and the mean over personas of the variance A (1 − A) of one answer."""
    clipped_P = np.clip(accuracy_P, 0.0, 1.0)
    return clipped_P, float((clipped_P * (1 - clipped_P)).mean())


def is_connected(mean_P_Q: Array) -> bool:
    """Whether any two personas can be compared through common questions, if necessary through a chain of other personas."""
    scored_P_Q = (~np.isnan(mean_P_Q)).astype(float)
    return int(connected_components(csr_matrix(scored_P_Q @ scored_P_Q.T), directed=False)[0]) == 1


class _PersonaEffects(NamedTuple):
    """Effects of personas (they add up to 0); the residual's mean square (NaN without degrees of freedom); and the variance of
    each persona's own noise in units of that mean square, 1 / Q in a complete grid.
    """

    effect_P: Array
    residual: float
    noise_share_P: Array


def _fit_persona_effects(mean_P_Q: Array) -> _PersonaEffects:
    """The effects by `fit_two_way`; for a single persona effect and residual are 0."""
    P, Q = mean_P_Q.shape
    if P == 1:
        return _PersonaEffects(np.zeros(1), 0.0, np.full(1, 1 / Q))
    fit = statistics.fit_two_way(mean_P_Q, np.ones((1, Q)))
    # Effects add up to 0, so in a complete grid the variance of one is (1 − 1/P) times that of a persona's own noise.
    return _PersonaEffects(fit.effect_R_P[0], max(float(fit.residual_R[0]), 0.0), fit.pinv_diagonal_R_P[0] * P / (P - 1))


def _fit_question_levels(value_Q: Array, answer_variance: float, question_variance: float) -> QuestionLevels:
    """The levels of questions from `value_Q`, and the variance of their mean on the scale of angles.

    `answer_variance`: mean variance of one answer; `question_variance`: the part of it that lies between questions.

    Delta method: d arcsin √A = dA / (2 √(A (1 − A))), so a squared difference of accuracies is 4 A (1 − A) times that of angles.
    """
    known_Q = value_Q[~np.isnan(value_Q)]
    Q = len(known_Q)
    mean = (np.clip(known_Q.mean(), 0, 1) * Q + 0.5) / (Q + 1)
    scale = 4 * max(answer_variance, mean * (1 - mean) / Q)
    # If all questions have the same level, their variance cannot be estimated: it is taken as that of one answer per question.
    n_different = int((np.abs(known_Q - np.median(known_Q)) > statistics.TIE_TOLERANCE).sum())
    share = (n_different * min(4 * question_variance / scale, 1.0) + 0.5) / (n_different + 0.5)
    return QuestionLevels(value_Q, share / (4 * Q), scale)


def anscombe_angle(accuracy: Array, n_questions: int) -> Array:
    """Anscombe's arcsin √((x + 3/8) / (n + 3/4)) for x = A n: an accuracy of 0 or 1 on few questions is not taken as certain."""
    return np.asarray(np.arcsin(np.sqrt((accuracy * n_questions + 0.375) / (n_questions + 0.75))))


N_DRAWS, WARMUP_STEPS = 10_000, 100

MAX_CHAINS, MAX_CHAIN_PERSONAS = 200, 12_800
"""Parallel chains; fewer for many personas, so that chains × personas is at most `MAX_CHAIN_PERSONAS` (memory)."""

DIRICHLET_TRUNCATION = 12
"""Most different values in one draw of the Dirichlet process, which is truncated there."""


def _inverse_gamma(shape: Array | float, rate: Array, rng: np.random.Generator) -> Array:
    """Draws from inverse gamma distributions, at least 1e-14: a scale of 0 would make the next precision infinite."""
    return np.asarray(np.maximum(rate / rng.gamma(shape, size=rate.shape), 1e-14))


def _chains_and_draws(n_personas: int) -> tuple[int, int]:
    """Number of chains, and of draws to keep from each."""
    chains = max(1, min(MAX_CHAINS, MAX_CHAIN_PERSONAS // n_personas))
    return chains, -(-N_DRAWS // chains)


def sample_horseshoe(y_P_G: Array, noise_P_G_G: Array, rng: np.random.Generator) -> Array:
    """angle_R_P_G by Gibbs sampling in C parallel chains: a horseshoe for each grid, with noise correlated between grids.

    Model: y_p = μ + θ_p + noise_p with noise_p ~ N(0, noise_P_G_G[p]), θ_pg ~ N(0, τ_g² λ_pg²), a flat prior on μ_g. Each step
    draws θ given the rest, then μ, then the scales (`_sample_scales`).
    """
    P, G = y_P_G.shape
    C, n_kept = _chains_and_draws(P)
    noise_P_G_G = noise_P_G_G + 1e-12 * np.eye(G)
    unit_G = np.einsum("pgg->g", noise_P_G_G) / P
    precision_P_G_G = np.asarray(np.linalg.inv(noise_P_G_G), dtype=float)
    mu_cov_G_G = np.linalg.inv(precision_P_G_G.sum(axis=0))
    mu_root_G_G = np.linalg.cholesky(mu_cov_G_G)
    effect_C_P_G = np.tile(0.5 * (y_P_G - y_P_G.mean(axis=0)), (C, 1, 1))
    mu_C_G = np.tile(y_P_G.mean(axis=0), (C, 1))
    local = auxiliary = np.ones((C, P, G))
    global_C_G = np.tile(np.maximum(y_P_G.var(axis=0), 0.05 * unit_G), (C, 1))
    draws = []
    roots_P_G_G = np.linalg.cholesky(precision_P_G_G) if G > 2 else None
    for step in range(WARMUP_STEPS + n_kept):
        prior_precision_C_P_G = 1 / (global_C_G[:, None] * local)
        posterior_precision = np.tile(precision_P_G_G, (C, 1, 1, 1))
        np.einsum("cpgg->cpg", posterior_precision)[:] += prior_precision_C_P_G  # einsum gives a view of the diagonals
        weighted = _multiply(precision_P_G_G, y_P_G - mu_C_G[:, None])
        if roots_P_G_G is None:
            covariance, root = _inverse_and_root(posterior_precision)
            effect_C_P_G = _multiply(covariance, weighted) + _multiply(root, rng.normal(size=(C, P, G)))
        else:
            part_noise = _multiply(roots_P_G_G, rng.normal(size=(C, P, G)))
            effect_C_P_G = _sample_by_solving(posterior_precision, part_noise, prior_precision_C_P_G, weighted, rng)
        weighted_C_G = _multiply(precision_P_G_G, y_P_G - effect_C_P_G).sum(axis=1)
        mu_C_G = weighted_C_G @ mu_cov_G_G + rng.normal(size=(C, G)) @ mu_root_G_G.T
        local, auxiliary, global_C_G = _sample_scales(effect_C_P_G, auxiliary, global_C_G, unit_G, rng)
        if step >= WARMUP_STEPS:
            draws.append(mu_C_G[:, None] + effect_C_P_G)
    return np.concatenate(draws)[:N_DRAWS]


def _multiply(matrices_G_G: Array, vectors_G: Array) -> Array:
    """Products [C, P, G] of matrices and vectors; the matrices are [P, G, G], or [C, P, G, G] for G of 1 or 2."""
    G = vectors_G.shape[-1]
    if G > 2:  # one product of a matrix with the vectors of all chains, for each persona
        return np.asarray(np.matmul(vectors_G.swapaxes(0, 1), matrices_G_G.swapaxes(-1, -2)).swapaxes(0, 1), dtype=float)
    # einsum would loop over the leading axes, which are long.
    columns = [matrices_G_G[..., column] * vectors_G[..., column, None] for column in range(G)]
    return columns[0] if G == 1 else columns[0] + columns[1]


def _inverse_and_root(matrices_G_G: Array) -> tuple[Array, Array]:
    """The inverses of symmetric positive definite matrices [..., G, G] with G of 1 or 2, and the inverses' Cholesky factors.

    In closed form: calling LAPACK for every small matrix takes most of the time of a chain.
    """
    if matrices_G_G.shape[-1] == 1:
        inverse_G_G = np.asarray(1 / matrices_G_G, dtype=float)
        return inverse_G_G, np.asarray(np.sqrt(inverse_G_G), dtype=float)
    a, b, c = matrices_G_G[..., 0, 0], matrices_G_G[..., 1, 0], matrices_G_G[..., 1, 1]
    determinant = a * c - b * b
    inverse_G_G, root_G_G = np.empty_like(matrices_G_G), np.zeros_like(matrices_G_G)
    inverse_G_G[..., 0, 0], inverse_G_G[..., 1, 1] = c / determinant, a / determinant
    inverse_G_G[..., 0, 1] = inverse_G_G[..., 1, 0] = -b / determinant
    root_G_G[..., 0, 0] = np.sqrt(inverse_G_G[..., 0, 0])
    root_G_G[..., 1, 0] = inverse_G_G[..., 1, 0] / root_G_G[..., 0, 0]
    root_G_G[..., 1, 1] = np.sqrt(1 / c)  # what is left of the second variance given the first variable
    return inverse_G_G, root_G_G


def _sample_by_solving(
    precision: Array, part_noise_G: Array, diagonal_G: Array, weighted_G: Array, rng: np.random.Generator
) -> Array:
    """Draws [..., G] from N(M⁻¹ b, M⁻¹) for many M = `precision` [..., G, G] and b = `weighted_G`.

    M is a matrix with a known root, plus a diagonal; `part_noise_G` is drawn from N(0, that matrix). A draw is M⁻¹ (b + z) with
    z ~ N(0, M), so no M needs a Cholesky factor.
    """
    noise_G = part_noise_G + np.sqrt(diagonal_G) * rng.normal(size=weighted_G.shape)
    return np.asarray(np.linalg.solve(precision, (weighted_G + noise_G)[..., None])[..., 0], dtype=float)


def sample_correlated_horseshoe(y_P: Array, noise_P_P: Array, rng: np.random.Generator) -> Array:
    """angle_R_P of one grid, as `sample_horseshoe`, but with noise correlated between personas."""
    P = len(y_P)
    C, n_kept = _chains_and_draws(P)
    precision_P_P = np.linalg.inv(noise_P_P + 1e-12 * np.eye(P))
    root_P_P, unit_G = np.linalg.cholesky(precision_P_P), np.array([np.trace(noise_P_P) / P])
    mu_precision = float(precision_P_P.sum())
    effect_C_P_1 = np.tile(0.5 * (y_P - y_P.mean()), (C, 1))[..., None]
    mu_C = np.full(C, y_P.mean())
    local = auxiliary = np.ones((C, P, 1))
    global_C_1 = np.full((C, 1), max(float(y_P.var()), 0.05 * float(unit_G[0])))
    draws = []
    for step in range(WARMUP_STEPS + n_kept):
        prior_precision_C_P = 1 / (global_C_1[:, None] * local)[..., 0]
        precision_C_P_P = precision_P_P + prior_precision_C_P[:, None] * np.eye(P)
        weighted_C_P = (y_P - mu_C[:, None]) @ precision_P_P
        part_noise_C_P = rng.normal(size=(C, P)) @ root_P_P.T
        effect_C_P_1 = _sample_by_solving(precision_C_P_P, part_noise_C_P, prior_precision_C_P, weighted_C_P, rng)[..., None]
        mu_mean_C = ((y_P - effect_C_P_1[..., 0]) @ precision_P_P).sum(axis=1) / mu_precision
        mu_C = mu_mean_C + rng.normal(size=C) / np.sqrt(mu_precision)
        local, auxiliary, global_C_1 = _sample_scales(effect_C_P_1, auxiliary, global_C_1, unit_G, rng)
        if step >= WARMUP_STEPS:
            draws.append(mu_C[:, None] + effect_C_P_1[..., 0])
    return np.concatenate(draws)[:N_DRAWS]


def _sample_scales(
    effect: Array, auxiliary: Array, global_C_G: Array, unit_G: Array, rng: np.random.Generator
) -> tuple[Array, Array, Array]:
    """λ² and its auxiliary variable [C, P, G], and τ² [C, G], given effects [C, P, G]; `unit_G` is the squared scale of τ.

    A half-Cauchy scale is a mixture of inverse gammas over an auxiliary variable, so every conditional is an inverse gamma
    (Makalic and Schmidt 2016).
    """
    local = _inverse_gamma(1.0, 1 / auxiliary + effect**2 / (2 * global_C_G[:, None]), rng)
    auxiliary = _inverse_gamma(1.0, 1 + 1 / local, rng)
    global_auxiliary_C_G = _inverse_gamma(1.0, 1 / unit_G + 1 / global_C_G, rng)
    rate_C_G = 1 / global_auxiliary_C_G + (effect**2 / (2 * local)).sum(axis=1)
    return local, auxiliary, _inverse_gamma((effect.shape[1] + 1) / 2, rate_C_G, rng)


def sample_dirichlet(y_P: Array, noise_var_P: Array, rng: np.random.Generator) -> Array:
    """angle_R_P by blocked Gibbs sampling of a Dirichlet process truncated at V values, in C parallel chains.

    Model: y_p ~ N(value of p's label, noise_var_p); labels with stick-breaking weights of concentration α ~ Gamma(1, rate 4);
    values ~ N(μ, σ²), a flat prior on μ, σ half-Cauchy with squared scale = mean noise variance. Each step draws weights, α,
    values, labels, μ and σ² in turn (Ishwaran and James 2001).
    """
    noise_var_P = np.maximum(noise_var_P, 1e-12)
    P, V, unit = len(y_P), min(len(y_P), DIRICHLET_TRUNCATION), float(noise_var_P.mean())
    C, n_kept = _chains_and_draws(P)
    label_C_P = rng.integers(0, V, size=(C, P))
    label_C_P[::2] = 0  # half of the chains start with all personas equal, so that both ends of the posterior are reached
    mu_C, sigma2_C = np.full(C, y_P.mean()), np.full(C, max(2 * float(y_P.var()), 0.2 * unit))
    alpha_C = np.ones(C)
    draws = []
    cell_C_1 = V * np.arange(C)[:, None]
    noise_weight_C_P, y_weight_C_P = (np.tile(weight_P, (C, 1)) for weight_P in (1 / noise_var_P, y_P / noise_var_P))
    factor_P_1 = (-0.5 / noise_var_P)[:, None]

    def sum_by_label(weight_C_P: Array | None) -> Array:
        """Sums [C, V] over the personas of each label."""
        weights = None if weight_C_P is None else weight_C_P.ravel()
        sum_CV = np.bincount((label_C_P + cell_C_1).ravel(), weights, minlength=C * V)
        return np.asarray(sum_CV, dtype=float).reshape(C, V)

    count_C_V = sum_by_label(None)
    for step in range(WARMUP_STEPS + n_kept):
        later_C_V = count_C_V[:, ::-1].cumsum(axis=1)[:, ::-1] - count_C_V
        stick_C_V = np.clip(rng.beta(1.0 + count_C_V, alpha_C[:, None] + later_C_V), 1e-12, 1 - 1e-12)
        log_rest_C_V = np.log1p(-stick_C_V[:, :-1])
        log_before_C_V = np.concatenate([np.zeros((C, 1)), log_rest_C_V.cumsum(axis=1)], axis=1)
        # The last stick is what the others leave: truncation sets its fraction to 1, whose log is 0.
        log_weight_C_V = log_before_C_V + np.concatenate([np.log(stick_C_V[:, :-1]), np.zeros((C, 1))], axis=1)
        alpha_C = rng.gamma(V, size=C) / (4.0 - log_rest_C_V.sum(axis=1))
        precision_C_V = sum_by_label(noise_weight_C_P) + 1 / sigma2_C[:, None]
        value_C_V = (sum_by_label(y_weight_C_P) + (mu_C / sigma2_C)[:, None]) / precision_C_V
        value_C_V = value_C_V + rng.normal(size=(C, V)) / np.sqrt(precision_C_V)
        score_C_P_V = y_P[:, None] - value_C_V[:, None]
        score_C_P_V *= score_C_P_V
        score_C_P_V *= factor_P_1
        score_C_P_V += log_weight_C_V[:, None]
        # Gumbel-max: the argmax of log weights plus Gumbel noise, -log(exponential), is a draw from the weights.
        noise_C_P_V = rng.exponential(size=score_C_P_V.shape)
        score_C_P_V -= np.log(noise_C_P_V, out=noise_C_P_V)
        label_C_P = score_C_P_V.argmax(axis=2)
        count_C_V = sum_by_label(None)
        is_used_C_V = count_C_V > 0
        n_used_C = is_used_C_V.sum(axis=1)
        mu_C = (value_C_V * is_used_C_V).sum(axis=1) / n_used_C + rng.normal(size=C) * np.sqrt(sigma2_C / n_used_C)
        squares_C = ((value_C_V - mu_C[:, None]) ** 2 * is_used_C_V).sum(axis=1)
        auxiliary_C = _inverse_gamma(1.0, 1 / unit + 1 / sigma2_C, rng)
        sigma2_C = _inverse_gamma((n_used_C + 1) / 2, 1 / auxiliary_C + squares_C / 2, rng)
        if step >= WARMUP_STEPS:
            draws.append(np.take_along_axis(value_C_V, label_C_P, axis=1))
    return np.concatenate(draws)[:N_DRAWS]
