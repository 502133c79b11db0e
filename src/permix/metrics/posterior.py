"""The posterior of personas' true accuracies, and from it worst, best, spread and PSS without the winner's curse.

The lowest of many noisy accuracies is on average too low, the highest too high, and resampling the questions adds noise instead
of removing it. So true accuracies are drawn from their posterior given the scores of all personas, and the measures are computed
in every draw.

There are two priors (`permix.metrics.priors`). Under the horseshoe no two personas are exactly equal: it fits personas that all
differ, and turns ties into small differences. Under the Dirichlet process many personas share a value: it fits ties, and turns
small differences into ties. Estimate and interval come from the horseshoe. The end of the interval towards "no difference" is the
farther one of the two priors. The other end of worst and best reaches at least as far as the persona's own interval. A normal
prior would shrink a single bad persona among many towards the others (tests/metrics/test_extremes.py).

Several grids (training seeds pooled, or two models compared) are drawn together, since they have the same questions: the error
that the choice of questions causes in all of them is drawn once. A grid is (mean_P_Q, baseline_Q); all grids have the same
personas and questions in the same order, and every persona has a score. An interval covers other questions, not other seeds.

Axes: P personas, Q questions, R draws, G grids, L sets of answers to the questions (each grid's personas, and its baseline).
Source: the priors are cited in `permix.metrics.priors`; their combination is ours (simulated coverage: docs/measures.md).
"""

from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import chdtri, stdtrit

from permix.metrics import priors, statistics
from permix.metrics.measures import StabilityMeasure, measures_estimated_by
from permix.metrics.priors import NoiseModel, QuestionLevels, fit_noise_model, is_connected
from permix.metrics.statistics import Array, none_if_nan
from permix.types import Estimate

HORSESHOE_STREAM, DIRICHLET_STREAM = 1, 2
"""Streams of random numbers of one seed: the draws of one prior do not depend on those of the other."""

MAX_NOISE_CORRELATION = 1 - 1e-6
"""Largest correlation of two models' noise, reached where every cell is equal: 1 would make the covariance singular."""


def sample_horseshoe_accuracies(grids: Sequence[tuple[NoiseModel, Array]], rng: np.random.Generator) -> list[tuple[Array, Array]]:
    """For each (noise model, baseline_Q): drawn accuracies of personas [R, P] and without persona [R] (NaN without a baseline).

    The grids have the same questions. Errors that the questions cause are drawn jointly: the one that all answers of a grid
    share (`_shared_errors`), and each persona's own (`_noise_covariance`).
    """
    noise_models = [one for one, _ in grids]
    angle_P_G = np.stack([one.angle_P for one in noise_models], axis=1)
    order_P = _canonical_order(*angle_P_G.T, *(one.noise_var_P for one in noise_models))
    angle_R_P_G = _sample_angles(noise_models, angle_P_G, order_P, rng)[:, np.argsort(order_P)]
    errors_R = _shared_errors(noise_models, [baseline_Q for _, baseline_Q in grids], rng)
    return [
        (_accuracy_from_angle(angle_R_P_G[:, :, g] - error_R[:, None]), without_R)
        for g, (error_R, without_R) in enumerate(errors_R)
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
    baseline_models = [
        fit_noise_model(baseline_Q[None]) if (~np.isnan(baseline_Q)).sum() > 1 else None for baseline_Q in baselines
    ]
    # Personas and baseline answered the same questions, so their errors are correlated: all are drawn in one call.
    error_R_L = _sample_level_errors([one.levels for one in (*noise_models, *baseline_models) if one is not None], rng)
    baseline_errors = iter(error_R_L.T[len(noise_models) :])
    baseline_accuracies = [
        np.full(priors.N_DRAWS, np.nan) if one is None else _accuracy_from_angle(one.angle_P[0] - next(baseline_errors))
        for one in baseline_models
    ]
    return list(zip(error_R_L.T, baseline_accuracies, strict=False))


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
            norm = np.sqrt((a @ a) * (b @ b))
            # Where all residuals are 0 there is no correlation to compute.
            if_constant = MAX_NOISE_CORRELATION if a.size and np.array_equal(a, b) else 0.0
            correlation = float(np.clip(a @ b / norm, -MAX_NOISE_CORRELATION, MAX_NOISE_CORRELATION)) if norm > 0 else if_constant
            common_share_P = both_P_Q.sum(axis=1) / np.sqrt(
                (~np.isnan(one.residual_P_Q)).sum(axis=1) * (~np.isnan(other.residual_P_Q)).sum(axis=1)
            )
            noise_P_G_G[:, row, column] *= correlation * common_share_P
            noise_P_G_G[:, column, row] *= correlation * common_share_P
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
                shared = float(np.cov(one.value_Q[both_Q], other.value_Q[both_Q])[0, 1])
                shared *= float(both_Q.sum() / (questions_L[row] * questions_L[column]))
                limit = np.sqrt(one.variance * other.variance)
                shared = float(np.clip(shared / np.sqrt(one.scale * other.scale), -limit, limit))
                covariance[row, column] = covariance[column, row] = shared
    t_scale_R_L = np.sqrt((questions_L - 1) / chdtri(questions_L - 1, rng.random(priors.N_DRAWS)[:, None]))
    # The factor is lower triangular, so the errors of a level do not depend on later levels: a grid's are the same with and
    # without a baseline.
    root_L_L = np.linalg.cholesky(_positive_definite(covariance))
    return np.asarray((root_L_L @ rng.normal(size=(len(levels), priors.N_DRAWS))).T * t_scale_R_L)


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
    """value_R of every measure by name, from draws accuracy_R_P and baseline_R."""
    return {measure.name: measure.of_accuracies(accuracy_R_P, baseline_R) for measure in drawn_measures()}


def combine_priors(measure: StabilityMeasure, horseshoe_R: Array, dirichlet_R: Array, n: int) -> Estimate:
    """Median and 95 % interval of the horseshoe's draws; the end towards "no difference" is the farther one of both priors.

    The horseshoe turns ties into small differences, so alone it would exclude "no difference" too often.
    """
    estimate = summarize_draws(horseshoe_R, n)
    if estimate.low is None or estimate.high is None:
        return estimate
    low, high = np.nanquantile(dirichlet_R, (0.025, 0.975))
    end = {"high": max(estimate.high, float(high))} if measure.null_end == "high" else {"low": min(estimate.low, float(low))}
    return estimate.model_copy(update=end)


def summarize_draws(value_R: Array, n: int) -> Estimate:
    """Median and central 95 % interval of the draws that have a value (a ratio of 0 to 0 has none); None if most have none."""
    if 2 * np.isnan(value_R).sum() >= len(value_R):
        return Estimate(value=None, n=n)
    low, value, high = np.nanquantile(value_R, (0.025, 0.5, 0.975))
    return Estimate(value=float(value), low=float(low), high=float(high), n=n)


class PosteriorDraws(NamedTuple):
    """The scores of one grid, and draws of the true accuracies under each prior: of personas [R, P] and without persona [R]."""

    mean_P_Q: Array
    baseline_Q: Array
    noise_model: NoiseModel
    horseshoe: tuple[Array, Array]
    dirichlet: tuple[Array, Array]

    @property
    def n(self) -> int:
        """Number of questions with a score of some persona."""
        return count_scored_questions(self.mean_P_Q)

    @property
    def n_paired(self) -> int:
        """Number of questions with a score of some persona and a baseline score."""
        return int(((~np.isnan(self.mean_P_Q)).any(axis=0) & ~np.isnan(self.baseline_Q)).sum())

    @property
    def accuracy_P(self) -> Array:
        """The observed accuracies."""
        return statistics.mean_over_samples(self.mean_P_Q)


def sample_posterior(mean_P_Q: Array, baseline_Q: Array, *, seed: int, missing_by_design: bool = False) -> PosteriorDraws | None:
    """Draws for one grid; None with fewer than two questions, or where personas share too few questions to be compared.

    Every persona of `mean_P_Q` must have a score. `missing_by_design` as in `fit_noise_model`.
    """
    if count_scored_questions(mean_P_Q) < 2 or not is_connected(mean_P_Q):
        return None
    noise_model = fit_noise_model(mean_P_Q, missing_by_design=missing_by_design)
    ((accuracy_R_P, baseline_R),) = sample_horseshoe_accuracies(
        [(noise_model, baseline_Q)], np.random.default_rng([seed, HORSESHOE_STREAM])
    )
    dirichlet = sample_dirichlet_accuracies(noise_model, baseline_Q, np.random.default_rng([seed, DIRICHLET_STREAM]))
    return PosteriorDraws(mean_P_Q, baseline_Q, noise_model, (accuracy_R_P, baseline_R), dirichlet)


KEPT_ESTIMATES = 512

_ESTIMATES: dict[tuple[object, ...], dict[str, Estimate]] = {}
"""Results of `posterior_estimates` by a hash of the scores, the other arguments and the measures; the oldest go first."""


def posterior_estimates(mean_P_Q: Array, baseline_Q: Array, *, seed: int, no_effect: bool = False) -> dict[str, Estimate]:
    """Estimates of the measures of one grid by name; where nothing can be drawn, the observed values without an interval.

    `no_effect` as in `estimates_from_draws`. The last `KEPT_ESTIMATES` results are kept: a report compares a model with several
    others, and each comparison needs its estimates.
    """
    content = blake2b(mean_P_Q.tobytes() + baseline_Q.tobytes(), digest_size=16).digest()
    key = (content, mean_P_Q.shape, seed, no_effect, priors.N_DRAWS, priors.WARMUP_STEPS, tuple(drawn_measures()))
    estimates = _ESTIMATES.get(key)
    if estimates is None:
        draws = sample_posterior(mean_P_Q, baseline_Q, seed=seed)
        estimates = (
            _plugin_estimates(mean_P_Q, baseline_Q, count_scored_questions(mean_P_Q))
            if draws is None
            else estimates_from_draws(draws, no_effect=no_effect)
        )
        for oldest in list(_ESTIMATES)[: len(_ESTIMATES) - KEPT_ESTIMATES + 1]:
            _ESTIMATES.pop(oldest, None)  # another thread may have been faster
        _ESTIMATES[key] = estimates
    return dict(estimates)


def estimates_from_draws(draws: PosteriorDraws, *, no_effect: bool) -> dict[str, Estimate]:
    """Estimates of the measures by name.

    `no_effect`: the test showed no persona effect; then every interval is widened to include "all personas are equal". If it
    showed one, Dirichlet draws in which all personas are equal are left out.
    """
    by_horseshoe, by_dirichlet = accuracy_measures(*draws.horseshoe), accuracy_measures(*draws.dirichlet)
    dirichlet_R_P, _ = draws.dirichlet
    # The test has already excluded "all equal", and these draws would pull the end of the interval back to it.
    if not no_effect and (differ_R := np.ptp(dirichlet_R_P, axis=1) > statistics.TIE_TOLERANCE).any():
        by_dirichlet = {name: one_R[differ_R] for name, one_R in by_dirichlet.items()}
    estimates = {
        one.name: combine_priors(one, by_horseshoe[one.name], by_dirichlet[one.name], draws.n) for one in drawn_measures()
    }
    estimates |= limit_extremes(estimates, float(draws.accuracy_P.mean()))
    estimates |= _widen_to_own_interval(draws, estimates)
    if no_effect:
        accuracy_R_P, baseline_R = draws.horseshoe
        equal_R_2 = np.repeat(accuracy_R_P.mean(axis=1, keepdims=True), 2, axis=1)
        if_equal = accuracy_measures(equal_R_2, baseline_R)
        estimates = {one.name: _widen_to_null(one, estimates[one.name], if_equal[one.name]) for one in drawn_measures()}
    if not draws.accuracy_P.any():
        estimates["pss"] = Estimate(value=None, n=draws.n)  # no right answer: 0 / 0
    paired = [one.name for one in drawn_measures() if one.questions == "both"]
    return estimates | {name: estimates[name].model_copy(update={"n": draws.n_paired}) for name in paired}


def count_scored_questions(mean_P_Q: Array) -> int:
    """Number of questions with a score of at least one persona."""
    return int((~np.isnan(mean_P_Q)).any(axis=0).sum())


def _plugin_estimates(mean_P_Q: Array, baseline_Q: Array, n: int) -> dict[str, Estimate]:
    """The measures of the observed accuracies, without intervals."""
    values = accuracy_measures(statistics.mean_over_samples(mean_P_Q)[None], statistics.mean_over_samples(baseline_Q[None]))
    return {name: Estimate(value=none_if_nan(one_R[0]), n=n) for name, one_R in values.items()}


def limit_extremes(estimates: Mapping[str, Estimate], mean: float) -> dict[str, Estimate]:
    """The estimates with worst at most and best at least the mean over the personas' accuracies.

    On few questions with nearly equal answers the draws shrink worst and best beyond the mean, which is not shrunk.
    """
    limited = {}
    for name, limit in (("worst", min), ("best", max)):
        one = estimates[name]
        if one.value is not None:
            value = limit(one.value, mean)
            ends = {} if one.low is None or one.high is None else {"low": min(one.low, value), "high": max(one.high, value)}
            limited[name] = one.model_copy(update={"value": value} | ends)
    return limited


def _widen_to_own_interval(draws: PosteriorDraws, estimates: Mapping[str, Estimate]) -> dict[str, Estimate]:
    """Widen the ends away from "no difference" to what the answers of the worst (or best) persona alone would give.

    A persona moderately far from all others is shrunk towards them; without this the intervals would miss its true accuracy too
    often. Ratio, spread and sd of personas take the persona's own noise only, since all personas share the error of the drawn
    questions. For sd: one persona that differs by d from P − 1 equal ones has an sd of d / √P.
    """
    noise_model, P = draws.noise_model, len(draws.mean_P_Q)
    worst, best = int(noise_model.angle_P.argmin()), int(noise_model.angle_P.argmax())
    reaches = {}
    for name, variance in (("own", 0.0), ("with questions", noise_model.levels.variance)):
        reach_P = stdtrit(max(draws.n - 1, 1), 0.975) * np.sqrt(noise_model.noise_var_P + variance)
        low, high = (_accuracy_from_angle(noise_model.angle_P + sign * reach_P) for sign in (-1, 1))
        reaches[name] = (min(float(low[worst]), _low_without_error(draws.mean_P_Q[worst])), float(high[best]))
    own_low, _ = reaches["own"]
    if answered_alike(draws.mean_P_Q):
        # Without a difference the model of the noise has none to fit, but the next questions may show one.
        own_low = min(own_low, max(0.0, float(draws.accuracy_P[worst]) - statistics.largest_unseen_share(draws.n)))
    others = float(np.delete(draws.accuracy_P, worst).mean()) if P > 1 else own_low
    one_bad_sd = max(others - own_low, 0.0) / float(np.sqrt(P))
    values = {name: estimates[name].value for name in ("best", "worst")}
    ends: dict[str, tuple[str, Callable[[float, float], float], float]] = {
        "worst": ("low", min, reaches["with questions"][0]),
        "best": ("high", max, reaches["with questions"][1]),
        "persona_sd": ("high", max, one_bad_sd),
    }
    if mean := float(draws.accuracy_P.mean()):
        ends["relative_persona_sd"] = ("high", max, one_bad_sd / mean)
    if P > 1 and values["best"]:
        ends["pss"] = ("low", min, own_low / values["best"])
        ends["spread"] = ("high", max, values["best"] - own_low)
    difference_Q = draws.mean_P_Q[worst] - draws.baseline_Q
    if not np.isnan(difference_Q).all():
        ends["worst_minus_baseline"] = ("low", min, statistics.paired_low(difference_Q))
    return {
        name: estimates[name].model_copy(update={end: farther(getattr(estimates[name], end), one)})
        for name, (end, farther, one) in ends.items()
        if getattr(estimates[name], end) is not None
    }


def answered_alike(mean_P_Q: Array) -> bool:
    """Whether there are several personas, and all scores of a question are equal, on every question."""
    absent_P_Q = np.isnan(mean_P_Q)
    low_Q, high_Q = (np.where(absent_P_Q, fill, mean_P_Q) for fill in (np.inf, -np.inf))
    return len(mean_P_Q) > 1 and bool((high_Q.max(axis=0) - low_Q.min(axis=0) <= statistics.TIE_TOLERANCE).all())


def _low_without_error(score_Q: Array) -> float:
    """The exact low end of an accuracy without a single error on n questions; 1 if there was an error."""
    scored_Q = score_Q[~np.isnan(score_Q)]
    return 1 - statistics.largest_unseen_share(len(scored_Q)) if (scored_Q > 1 - statistics.TIE_TOLERANCE).all() else 1.0


def _widen_to_null(measure: StabilityMeasure, estimate: Estimate, null_R: Array) -> Estimate:
    """Widen the end towards "no difference" so that it includes the interval of the measure if all personas are equal."""
    if estimate.value is None or estimate.low is None or estimate.high is None:
        return estimate
    low, high = np.nanquantile(null_R, (0.025, 0.975))
    ends = {"high": max(estimate.high, float(high))} if measure.null_end == "high" else {"low": min(estimate.low, float(low))}
    return estimate.model_copy(update=ends)


AccuracyGrid = tuple[Array, Array]
"""(mean_P_Q, baseline_Q): the sample means of every persona and without persona, in [0, 1]; NaN is no score. Grids that are
pooled or compared have the same personas and questions in the same order."""

JOINT_STREAM = 3
"""Stream of random numbers for several grids drawn together."""


def posterior_differences(
    grids: Sequence[AccuracyGrid], against: Sequence[AccuracyGrid], *, seed: int, change: statistics.Change = np.subtract
) -> dict[str, Estimate]:
    """Estimates of the change from the mean over the grids `against` to the mean over `grids`, by measure; the draws of all are
    joint.

    The value is the difference of the values of `posterior_estimates`; the interval is the central 95 % of the draws, stretched
    to include the value. Where all personas of a grid answered alike, draws hardly differ; then the interval is also stretched to
    what either side alone may be.
    """
    n = min(count_scored_questions(mean_P_Q) for mean_P_Q, _ in (*against, *grids))
    by_grid = [[posterior_estimates(*grid, seed=seed) for grid in each] for each in (grids, against)]
    drawn = _joint_measure_draws([*against, *grids], seed)  # another order would draw other numbers
    is_alike = any(answered_alike(mean_P_Q) for mean_P_Q, _ in (*against, *grids))
    estimates = {}
    for name in (measure.name for measure in drawn_measures()):
        mean, mean_against = (_mean_estimate([each[name] for each in estimates_by_grid], n) for estimates_by_grid in by_grid)
        value = None
        if mean.value is not None and mean_against.value is not None:
            value = none_if_nan(_changed(change, mean.value, mean_against.value))
        parts = (drawn[len(against) :], drawn[: len(against)]) if drawn else ()
        draws = [_mean_over_grids(part, name) for part in parts]
        estimates[name] = interval_around(value, change(*draws) if draws else None, n)
        if is_alike:
            estimates[name] = _stretch_to_each_side(estimates[name], mean, mean_against, change)
    return estimates


def _changed(change: statistics.Change, value: float, against: float) -> float:
    return float(change(np.asarray(value), np.asarray(against)))


def _stretch_to_each_side(difference: Estimate, mean: Estimate, against: Estimate, change: statistics.Change) -> Estimate:
    """The change with an interval that includes what it is at either end of the interval of one side, the other unchanged."""
    if difference.low is None or difference.high is None or mean.value is None or against.value is None:
        return difference
    pairs = [(end, against.value) for end in (mean.low, mean.high)] + [(mean.value, end) for end in (against.low, against.high)]
    ends = [_changed(change, a, b) for a, b in pairs if a is not None and b is not None]
    known = [end for end in ends if not np.isnan(end)]
    return difference.model_copy(update={"low": min(difference.low, *known), "high": max(difference.high, *known)})


def posterior_by_grid(grids: Sequence[AccuracyGrid], *, seed: int) -> dict[str, tuple[Array, Array]]:
    """For each measure the values of the grids [G], as of `posterior_estimates`, and their joint draws [G, R].

    Empty where some grid cannot be drawn. A value that cannot be computed is NaN.
    """
    drawn = _joint_measure_draws(grids, seed)
    if not drawn:
        return {}
    estimates = [posterior_estimates(*grid, seed=seed) for grid in grids]
    return {
        one.name: (
            np.array([np.nan if each[one.name].value is None else each[one.name].value for each in estimates], dtype=float),
            np.stack([each[one.name] for each in drawn]),
        )
        for one in drawn_measures()
    }


def pooled_estimates(grids: Sequence[AccuracyGrid], *, seed: int, no_effect: bool) -> dict[str, Estimate]:
    """Estimates of the mean over the grids: the means of the grids' values and of the ends of their intervals.

    `no_effect`: one test of all grids together showed no persona effect. Grids of the same questions have errors in common; the
    mean of the ends is the interval for errors that are the same in all grids, and at least as wide as for any others.
    """
    n = min(count_scored_questions(mean_P_Q) for mean_P_Q, _ in grids)
    estimates_by_grid = [posterior_estimates(*grid, seed=seed, no_effect=no_effect) for grid in grids]
    return {measure.name: _mean_estimate([each[measure.name] for each in estimates_by_grid], n) for measure in drawn_measures()}


def _mean_estimate(estimates: Sequence[Estimate], n: int) -> Estimate:
    """The means of values and ends; None where one of them is missing."""
    columns = zip(*((one.value, one.low, one.high) for one in estimates), strict=True)
    value, low, high = (None if None in column else float(np.mean(np.array(column, dtype=float))) for column in columns)
    return Estimate(value=value, low=None if high is None else low, high=None if low is None else high, n=n)


def _joint_measure_draws(grids: Sequence[AccuracyGrid], seed: int) -> list[dict[str, Array]]:
    """For each grid the measures in every draw {name: value_R}; empty where some grid cannot be drawn."""
    if not all(count_scored_questions(mean_P_Q) > 1 and is_connected(mean_P_Q) for mean_P_Q, _ in grids):
        return []
    noise_models = [(fit_noise_model(mean_P_Q), baseline_Q) for mean_P_Q, baseline_Q in grids]
    return [
        accuracy_measures(*one) for one in sample_horseshoe_accuracies(noise_models, np.random.default_rng([seed, JOINT_STREAM]))
    ]


def _mean_over_grids(drawn: Sequence[Mapping[str, Array]], name: str) -> Array:
    """value_R of one measure, averaged over the grids draw by draw."""
    return np.asarray(np.mean([one[name] for one in drawn], axis=0))


def interval_around(value: float | None, drawn_R: Array | None, n: int) -> Estimate:
    """The value with the central 95 % of the draws, stretched to include the value."""
    if value is None or drawn_R is None:
        return Estimate(value=value, n=n)
    low, high = np.nanquantile(drawn_R, (0.025, 0.975))
    return Estimate(value=value, low=min(float(low), value), high=max(float(high), value), n=n)
