"""The posterior of personas' true accuracies, and from it worst, best, spread and PSS without the winner's curse.

The lowest of many noisy accuracies is on average too low, the highest too high, and resampling the questions adds noise instead
of removing it. So true accuracies are drawn from their posterior given the scores of all personas, and the measures are computed
in every draw.

There are two priors (`permix.metrics.priors`). Under the horseshoe no two personas are exactly equal; it fits personas that all
differ, and turns ties into small differences. Under the Dirichlet process many personas share a value; it fits ties, and turns
small differences into ties. Point estimate and interval come from the horseshoe; the end towards "no difference" is the farther
one of the two priors' ends. Away from it, worst and best reach at least as far as the persona's own interval. A normal prior
would shrink a single bad persona among many away: see tests/metrics/test_extremes.py.

Several grids (training seeds pooled, or two models compared) are drawn together, because they have the same questions: the error
that the choice of questions causes in all of them is drawn once. A grid is (mean_P_Q, baseline_Q); all grids have the same
personas and questions in the same order, and every persona has a score. An interval covers other questions, not other seeds.

Axes: P personas, Q questions, R draws, G grids, L sets of answers to the questions (each grid's personas, and its baseline).
Source: the priors are cited in `permix.metrics.priors`; their combination is ours (simulated coverage: docs/measures.md).
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import chdtri, stdtrit

from permix.metrics import priors, statistics
from permix.metrics.measures import StabilityMeasure, measures_estimated_by
from permix.metrics.priors import NoiseModel, QuestionLevels, fit_noise_model, is_connected
from permix.metrics.statistics import Array
from permix.types import Estimate

HORSESHOE_STREAM, DIRICHLET_STREAM = 1, 2
"""Streams of random numbers under a seed, so that the draws of one prior do not depend on the other."""

MAX_NOISE_CORRELATION = 1 - 1e-6
"""Largest correlation of two models' noise, reached where every cell is equal: 1 would make the covariance singular."""


def sample_horseshoe_accuracies(grids: Sequence[tuple[NoiseModel, Array]], rng: np.random.Generator) -> list[tuple[Array, Array]]:
    """For each (noise model, baseline_Q): drawn accuracies of personas [R, P] and without persona [R] (NaN without a baseline).

    The grids have the same questions. Errors that the questions cause are drawn jointly: the one that all answers of a grid
    share (`_shared_errors`), and each persona's own (`_noise_covariance`).
    """
    seen = [one for one, _ in grids]
    angle_P_G = np.stack([one.angle_P for one in seen], axis=1)
    order_P = _canonical_order(*angle_P_G.T, *(one.noise_var_P for one in seen))
    angle_R_P_G = _sample_angles(seen, angle_P_G, order_P, rng)[:, np.argsort(order_P)]
    errors_R = _shared_errors(seen, [baseline_Q for _, baseline_Q in grids], rng)
    return [
        (_accuracy_from_angle(angle_R_P_G[:, :, place] - error_R[:, None]), without_R)
        for place, (error_R, without_R) in enumerate(errors_R)
    ]


def _sample_angles(
    noise_models: Sequence[NoiseModel], angle_P_G: Array, order_P: NDArray[np.intp], rng: np.random.Generator
) -> Array:
    """angle_R_P_G, with personas in the order `order_P`."""
    own_P_P = noise_models[0].noise_cov_P_P
    if own_P_P is not None:
        (angle_P,) = angle_P_G.T  # with cells missing by design there is one grid only
        return priors.sample_correlated_horseshoe(angle_P[order_P], own_P_P[np.ix_(order_P, order_P)], rng)[..., None]
    return priors.sample_horseshoe(angle_P_G[order_P], _noise_covariance(noise_models)[order_P], rng)


def sample_dirichlet_accuracies(noise_model: NoiseModel, baseline_Q: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    """Drawn accuracies [R, P] and without persona [R] of one grid under the Dirichlet process prior."""
    ((error_R, without_R),) = _shared_errors([noise_model], [baseline_Q], rng)
    order_P = _canonical_order(noise_model.angle_P, noise_model.noise_var_P)
    angle_R_P = priors.sample_dirichlet(noise_model.angle_P[order_P], noise_model.noise_var_P[order_P], rng)[
        :, np.argsort(order_P)
    ]
    return _accuracy_from_angle(angle_R_P - error_R[:, None]), without_R


def _canonical_order(*keys: Array) -> NDArray[np.intp]:
    """An order of personas by their values alone, so that the order of the file does not change anybody's draws.

    Keys are rounded, or another order of a floating-point sum could change it.
    """
    return np.lexsort([np.round(key, 9) for key in keys[::-1]])


def _shared_errors(
    noise_models: Sequence[NoiseModel], baselines: Sequence[Array], rng: np.random.Generator
) -> list[tuple[Array, Array]]:
    """For each grid: the error [R] that the angles of all its personas share, and the accuracy without persona [R]."""
    alone = [fit_noise_model(baseline_Q[None]) if (~np.isnan(baseline_Q)).sum() > 1 else None for baseline_Q in baselines]
    error_R_L = _sample_level_errors([one.levels for one in (*noise_models, *alone) if one is not None], rng)
    columns = iter(error_R_L.T[len(noise_models) :])
    without = [
        np.full(priors.N_DRAWS, np.nan) if one is None else _accuracy_from_angle(one.angle_P[0] - next(columns)) for one in alone
    ]
    return list(zip(error_R_L.T, without, strict=False))


def _noise_covariance(noise_models: Sequence[NoiseModel]) -> Array:
    """Covariance [P, G, G] of a persona's own noise in the grids.

    The correlation of two grids is that of their residuals over common cells, times the share of the persona's cells in common.
    """
    noise_P_G_G = np.stack(
        [np.stack([np.sqrt(one.noise_var_P * other.noise_var_P) for other in noise_models], axis=1) for one in noise_models],
        axis=1,
    )
    for row, one in enumerate(noise_models):
        for column, other in enumerate(noise_models[:row]):
            both_P_Q = ~np.isnan(one.residual_P_Q) & ~np.isnan(other.residual_P_Q)
            a, b = one.residual_P_Q[both_P_Q], other.residual_P_Q[both_P_Q]
            size = np.sqrt((a @ a) * (b @ b))
            same = MAX_NOISE_CORRELATION if a.size and np.array_equal(a, b) else 0.0  # all residuals 0: no correlation to compute
            alike = float(np.clip(a @ b / size, -MAX_NOISE_CORRELATION, MAX_NOISE_CORRELATION)) if size > 0 else same
            of_P = both_P_Q.sum(axis=1) / np.sqrt(
                (~np.isnan(one.residual_P_Q)).sum(axis=1) * (~np.isnan(other.residual_P_Q)).sum(axis=1)
            )
            noise_P_G_G[:, row, column] *= alike * of_P
            noise_P_G_G[:, column, row] *= alike * of_P
    return noise_P_G_G


def _accuracy_from_angle(angle: Array) -> Array:
    return np.asarray(np.sin(np.clip(angle, 0.0, np.pi / 2)) ** 2)


def _sample_level_errors(levels: Sequence[QuestionLevels], rng: np.random.Generator) -> Array:
    """error_R_L: drawn errors of the mean levels, correlated as the levels are over common questions.

    Each has a t distribution with (number of questions − 1) degrees of freedom, since the variance is estimated from them.
    """
    covariance = np.diag([one.variance for one in levels])
    questions_L = np.array([(~np.isnan(one.value_Q)).sum() for one in levels], dtype=float)
    for row, one in enumerate(levels):
        for column, other in enumerate(levels[:row]):
            both_Q = ~np.isnan(one.value_Q) & ~np.isnan(other.value_Q)
            if both_Q.sum() > 1:
                found = float(np.cov(one.value_Q[both_Q], other.value_Q[both_Q])[0, 1])
                found *= float(both_Q.sum() / (questions_L[row] * questions_L[column]))
                most = np.sqrt(one.variance * other.variance)
                found = float(np.clip(found / np.sqrt(one.scale * other.scale), -most, most))
                covariance[row, column] = covariance[column, row] = found
    heavy_R_L = np.sqrt((questions_L - 1) / chdtri(questions_L - 1, rng.random(priors.N_DRAWS)[:, None]))
    # The factor is lower triangular, so the errors of a level do not depend on later levels: a grid's are the same with and
    # without a baseline.
    root_L_L = np.linalg.cholesky(_positive_definite(covariance))
    return np.asarray((root_L_L @ rng.normal(size=(len(levels), priors.N_DRAWS))).T * heavy_R_L)


def _positive_definite(covariance: Array) -> Array:
    """The matrix with a slightly larger diagonal, so that it has a Cholesky factor.

    Covariances estimated pair by pair may contradict one another; then the negative eigenvalues are set to 0 first.
    """
    size_L, vector_L_L = np.linalg.eigh(covariance)
    if size_L[0] < 0:
        covariance = (vector_L_L * np.maximum(size_L, 0.0)) @ vector_L_L.T
    return np.asarray(covariance + 1e-9 * np.diag(np.diag(covariance) + size_L[-1]))


def drawn_measures() -> list[StabilityMeasure]:
    """The measures whose value or interval is made of draws."""
    return measures_estimated_by("posterior", "hull")


def accuracy_measures(accuracy_R_P: Array, baseline_R: Array) -> dict[str, Array]:
    """Of every draw."""
    return {measure.name: measure.of_accuracies(accuracy_R_P, baseline_R) for measure in drawn_measures()}


def combine_priors(measure: StabilityMeasure, horseshoe_R: Array, dirichlet_R: Array, n: int) -> Estimate:
    """Median and 95 % interval by the horseshoe; the end that lies towards no difference is the farther of both priors'."""
    found = summarize_draws(horseshoe_R, n)
    if found.low is None or found.high is None:
        return found
    low, high = np.quantile(dirichlet_R, (0.025, 0.975))
    end = {"high": max(found.high, float(high))} if measure.null_end == "high" else {"low": min(found.low, float(low))}
    return found.model_copy(update=end)


def summarize_draws(value_R: Array, n: int) -> Estimate:
    """Median and central 95 % interval of the draws; no value if one of them is NaN."""
    if np.isnan(value_R).any():
        return Estimate(value=None, n=n)
    low, value, high = np.quantile(value_R, (0.025, 0.5, 0.975))
    return Estimate(value=float(value), low=float(low), high=float(high), n=n)


class PosteriorDraws(NamedTuple):
    """Draws of the true accuracies of one grid under each prior: of personas [R, P] and without persona [R].

    `n` counts questions with a score of some persona, `n_paired` those with a baseline score too. `any_correct`: whether any
    answer scored above 0.
    """

    noise_model: NoiseModel
    horseshoe: tuple[Array, Array]
    dirichlet: tuple[Array, Array]
    n: int
    n_paired: int
    any_correct: bool


def sample_posterior(mean_P_Q: Array, baseline_Q: Array, *, seed: int, missing_by_design: bool = False) -> PosteriorDraws | None:
    """Draws for one grid; None with fewer than two questions, or where personas share too few questions to be compared.

    Every persona of `mean_P_Q` must have a score. `missing_by_design` as in `fit_noise_model`.
    """
    n = count_scored_questions(mean_P_Q)
    if n < 2 or not is_connected(mean_P_Q):
        return None
    seen = fit_noise_model(mean_P_Q, missing_by_design=missing_by_design)
    ((accuracy_R_P, without_R),) = sample_horseshoe_accuracies(
        [(seen, baseline_Q)], np.random.default_rng([seed, HORSESHOE_STREAM])
    )
    tied = sample_dirichlet_accuracies(seen, baseline_Q, np.random.default_rng([seed, DIRICHLET_STREAM]))
    both = (~np.isnan(mean_P_Q)).any(axis=0) & ~np.isnan(baseline_Q)
    return PosteriorDraws(seen, (accuracy_R_P, without_R), tied, n, int(both.sum()), bool(np.nansum(mean_P_Q)))


def posterior_estimates(mean_P_Q: Array, baseline_Q: Array, *, seed: int, no_effect: bool = False) -> dict[str, Estimate]:
    """Estimates of the measures of one grid by name; where nothing can be drawn, the observed values without an interval.

    `no_effect` as in `estimates_from_draws`.
    """
    found = sample_posterior(mean_P_Q, baseline_Q, seed=seed)
    return (
        _plugin_estimates(mean_P_Q, baseline_Q, count_scored_questions(mean_P_Q))
        if found is None
        else estimates_from_draws(found, no_effect=no_effect)
    )


def estimates_from_draws(draws: PosteriorDraws, *, no_effect: bool) -> dict[str, Estimate]:
    """Estimates of the measures by name.

    `no_effect`: the test showed no persona effect; then every interval is widened to include "all personas are equal". If it
    showed one, Dirichlet draws in which all personas are equal are left out.
    """
    apart, tied = accuracy_measures(*draws.horseshoe), accuracy_measures(*draws.dirichlet)
    tied_R_P, _ = draws.dirichlet
    if not no_effect and (differ_R := np.ptp(tied_R_P, axis=1) > statistics.TIE_TOLERANCE).any():
        tied = {name: one_R[differ_R] for name, one_R in tied.items()}
    found = {one.name: combine_priors(one, apart[one.name], tied[one.name], draws.n) for one in drawn_measures()}
    found |= _widen_to_own_interval(draws.noise_model, found)
    if no_effect:
        accuracy_R_P, without_R = draws.horseshoe
        same = accuracy_measures(accuracy_R_P.mean(axis=1, keepdims=True), without_R)
        found = {one.name: _widen_to_null(one, found[one.name], same[one.name]) for one in drawn_measures()}
    if not draws.any_correct:
        found["pss"] = Estimate(value=0.0, low=0.0, high=1.0, n=draws.n)  # 0/0, of which no more is known
    paired = [one.name for one in drawn_measures() if one.questions == "both"]
    return found | {name: found[name].model_copy(update={"n": draws.n_paired}) for name in paired}


def count_scored_questions(mean_P_Q: Array) -> int:
    """Number of questions with a score of at least one persona."""
    return int((~np.isnan(mean_P_Q)).any(axis=0).sum())


def _plugin_estimates(mean_P_Q: Array, baseline_Q: Array, n: int) -> dict[str, Estimate]:
    found = accuracy_measures(statistics.mean_over_samples(mean_P_Q)[None], statistics.mean_over_samples(baseline_Q[None]))
    return {name: Estimate(value=None if np.isnan(one_R[0]) else float(one_R[0]), n=n) for name, one_R in found.items()}


def _widen_to_own_interval(noise_model: NoiseModel, found: dict[str, Estimate]) -> dict[str, Estimate]:
    """Widen worst downwards and best upwards to the interval that this persona's scores alone would give.

    A persona moderately far from all others is shrunk towards them; without this the interval would miss its true accuracy too
    often.
    """
    t = float(stdtrit(max(found["worst"].n - 1, 1), 0.975))
    reach_P = t * np.sqrt(noise_model.noise_var_P + noise_model.levels.variance)
    worst, best = noise_model.angle_P.argmin(), noise_model.angle_P.argmax()
    low, high = (
        float(_accuracy_from_angle(end))
        for end in (noise_model.angle_P[worst] - reach_P[worst], noise_model.angle_P[best] + reach_P[best])
    )
    ends = {"worst": ("low", min, low), "best": ("high", max, high)}
    return {
        name: found[name].model_copy(update={end: of(getattr(found[name], end), one)}) for name, (end, of, one) in ends.items()
    }


def _widen_to_null(measure: StabilityMeasure, found: Estimate, null_R: Array) -> Estimate:
    if found.value is None or found.low is None or found.high is None:
        return found
    low, high = np.quantile(null_R, (0.025, 0.975))
    ends = {"high": max(found.high, float(high))} if measure.null_end == "high" else {"low": min(found.low, float(low))}
    return found.model_copy(update=ends)


AccuracyGrid = tuple[Array, Array]

JOINT_STREAM = 3
"""Stream of random numbers for several grids drawn together."""


def posterior_differences(first: Sequence[AccuracyGrid], other: Sequence[AccuracyGrid], *, seed: int) -> dict[str, Estimate]:
    """Estimates of (mean of `other`'s grids − mean of `first`'s grids) by measure; the draws of all grids are joint.

    The value is the difference of the values of `posterior_estimates`; the interval is the central 95 % of the draws, stretched
    to include the value.
    """
    n = min(count_scored_questions(mean_P_Q) for mean_P_Q, _ in (*first, *other))
    one, two = (_mean_values([posterior_estimates(*grid, seed=seed) for grid in grids]) for grids in (first, other))
    drawn = _joint_measure_draws([*first, *other], seed)
    found = {}
    for name in one:
        a, b = one[name], two[name]
        value = None if a is None or b is None else b - a
        sides = [_mean_over_grids(some, name) for some in (drawn[: len(first)], drawn[len(first) :])] if drawn else []
        found[name] = _interval_around(value, sides[1] - sides[0] if sides else None, n)
    return found


def pooled_estimates(
    grids: Sequence[AccuracyGrid], estimates_by_grid: Sequence[Mapping[str, Estimate]], *, seed: int
) -> dict[str, Estimate]:
    """Estimates of the mean over the grids; `estimates_by_grid` holds the `posterior_estimates` of each grid.

    The value is the mean of theirs. The end of the interval towards "no difference" reaches at least as far as the mean of their
    ends, which also allow for the second prior and for a test that showed no persona effect.
    """
    n = min(count_scored_questions(mean_P_Q) for mean_P_Q, _ in grids)
    values, drawn = _mean_values(estimates_by_grid), _joint_measure_draws(grids, seed)
    found = {}
    for measure in measures_estimated_by("posterior"):
        drawn_R = _mean_over_grids(drawn, measure.name) if drawn else None
        mean = _interval_around(values[measure.name], drawn_R, n)
        found[measure.name] = _widen_to_grids(measure, mean, [each[measure.name] for each in estimates_by_grid])
    return found


def _joint_measure_draws(grids: Sequence[AccuracyGrid], seed: int) -> list[dict[str, Array]]:
    """For each grid the measures in every draw {name: value_R}; empty where some grid cannot be drawn."""
    if not all(count_scored_questions(mean_P_Q) > 1 and is_connected(mean_P_Q) for mean_P_Q, _ in grids):
        return []
    seen = [(fit_noise_model(mean_P_Q), baseline_Q) for mean_P_Q, baseline_Q in grids]
    return [accuracy_measures(*one) for one in sample_horseshoe_accuracies(seen, np.random.default_rng([seed, JOINT_STREAM]))]


def _mean_over_grids(drawn: Sequence[Mapping[str, Array]], name: str) -> Array:
    return np.asarray(np.mean([one[name] for one in drawn], axis=0))


def _mean_values(estimates_by_grid: Sequence[Mapping[str, Estimate]]) -> dict[str, float | None]:
    """Means over the grids; None where one of them has none."""
    each = {one.name: [by_name[one.name].value for by_name in estimates_by_grid] for one in measures_estimated_by("posterior")}
    return {name: None if None in some else float(np.mean(np.array(some, dtype=float))) for name, some in each.items()}


def _interval_around(value: float | None, drawn_R: Array | None, n: int) -> Estimate:
    """The value with the central 95 % of the draws, stretched to include the value."""
    if value is None or drawn_R is None:
        return Estimate(value=value, n=n)
    low, high = np.quantile(drawn_R, (0.025, 0.975))
    return Estimate(value=value, low=min(float(low), value), high=max(float(high), value), n=n)


def _widen_to_grids(measure: StabilityMeasure, found: Estimate, estimates_by_grid: Sequence[Estimate]) -> Estimate:
    """With the end towards no difference as far out as the mean of the grids' own."""
    end = measure.null_end
    mine, theirs = getattr(found, end), [getattr(one, end) for one in estimates_by_grid]
    if mine is None or None in theirs:
        return found
    farther = max if end == "high" else min
    return found.model_copy(update={end: farther(mine, float(np.mean(theirs)))})
