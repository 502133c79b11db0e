"""Intervals of means over training seeds, and of their differences, that cover further training seeds and further questions.

A method is trained with S seeds, and all models answer the same questions. The value of seed s is d_s: a measure of that model,
or the difference of two methods trained with that seed. Its error has three parts: the seed's own effect (variance σ²), the part
of the question noise that all seeds share (variance c), and the part of it that differs between seeds (variance e). So the mean
of S seeds has the variance c + (σ² + e) / S.

The observed variance s² of the d_s estimates σ² + e. Resampled questions, or joint posterior draws, give replicates of the d_s: c
is the mean covariance of two seeds' replicates. No part is counted twice: s² / S contains e, and c is the rest.
The interval has the half-width √((t s)² / S + (h √(c / v))²), with t of S − 1 degrees of freedom, h the half-width over questions
alone, and v the variance that h stands for, c + e / S. The half-width is at least h. It may differ between the two ends.

Values of posterior draws also have a small bias from shrinkage, which depends on the true value and which the covariances of
replicates do not contain. For these values h counts in full (`QuestionNoise`): that counts e twice, so the interval is rather too
wide.

Power: the difference of S paired seeds is assumed to be normal with mean δ and this variance. c and e are inversely proportional
to the number of questions; σ² does not depend on it. The power is the mean, over the chi-squared distribution of the observed
variance of the seeds, of the probability that the interval excludes 0. It is computed by an integral. With one seed there is only
the interval over questions, which ignores σ². It also excludes 0 when only the two seeds differ; `power_over_seeds` with the
effect 0 gives the rate.

Contract: pure functions. With one seed σ² is not known, and there is no interval. `bench/training_seeds.py` measures the
coverage.

Axes: S seeds, R replicates. Sources: Graybill, Wang (1980), Confidence intervals on nonnegative linear combinations of variances,
JASA 75; Zou, Donner (2008), Construction of confidence limits about effect measures, Statistics in Medicine 27.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from scipy.optimize import brentq
from scipy.special import chdtri, ndtr, ndtri, stdtrit

from permix.metrics.statistics import SIGNIFICANCE_LEVEL, Array, Change, relative_change
from permix.types import Estimate, Record

MIN_P = 1e-12
"""Smallest p that is computed."""


class SeedValues(NamedTuple):
    """One number of the models of S training seeds. Replicates of all seeds come from the same draws of questions."""

    value_S: Array
    replicate_S_R: Array

    def seeds(self, part: slice) -> "SeedValues":
        """The values of some of the seeds."""
        return SeedValues(self.value_S[part], self.replicate_S_R[part])

    def scaled(self, factor: float) -> "SeedValues":
        """All values and replicates times this factor."""
        return SeedValues(factor * self.value_S, factor * self.replicate_S_R)


SeedPairing = Literal["paired", "unpaired", "untrained"]
"""How the seeds of two methods belong together.

paired: both methods were trained with the same seeds, which stand in the same order
unpaired: the seeds of one have nothing to do with those of the other
untrained: one of the two is a single model that has no training seed, such as the base model
"""


QuestionNoise = Literal["shared", "whole"]
"""How much of the half-width over questions is added to that of the seeds: the part that seeds share, or all of it."""


class SeedVarianceComponents(Record):
    """Variances of the value of one seed (of the difference of two methods: one seed of each); the letters as in the module.

    `seed`: σ², of training seeds, at least 0; None with one seed. `own`: e, of the questions, different in each seed. `shared`:
    c, of the questions, the same in all seeds; with one seed it is 0, and `own` holds all question noise.
    """

    seed: float | None
    own: float
    shared: float


class SeedDifference(Record):
    """A number with its interval over questions, and with its interval over questions and training seeds; a judge's score has
    personas in place of questions.

    `p` is the two-sided p of the value 0 over questions and seeds: it is below .05 if that interval excludes 0. With one seed,
    `over_seeds` has no ends, and there is no p. `components` are None where nothing can be resampled or drawn.
    """

    over_questions: Estimate
    over_seeds: Estimate
    p: float | None = None
    components: SeedVarianceComponents | None = None

    def limited(self, lowest: float, highest: float) -> "SeedDifference":
        """The same with `over_seeds` between the smallest and the largest possible value."""
        return self.model_copy(update={"over_seeds": limit_ends(self.over_seeds, lowest, highest)})


def seed_variance_components(arms: Sequence[SeedValues]) -> SeedVarianceComponents:
    """Estimate the variances of the sum of one seed's values of each arm (`cover_training_seeds` says what the arms are)."""
    by_seed = [_seed_variances(arm) for arm in arms]
    own = sum(one.own for one in by_seed)
    shared = _variance_of_mean(arms) - sum(one.own / one.seeds for one in by_seed)
    seeds = [one.seed for one in by_seed if one.seed is not None]
    return SeedVarianceComponents(
        seed=max(0.0, sum(seeds)) if len(seeds) == len(arms) else None, own=own, shared=max(0.0, shared)
    )


class _SeedVariances(NamedTuple):
    """The number of seeds, and the variances of one arm; `seed` is None with one seed, and below 0 where noise exceeds it."""

    seeds: int
    seed: float | None
    own: float


def _seed_variances(arm: SeedValues) -> _SeedVariances:
    """Resamples in which a seed has no value are left out."""
    complete_S_R = arm.replicate_S_R[:, ~np.isnan(arm.replicate_S_R).any(axis=0)]
    covariance_S_S = np.atleast_2d(np.cov(complete_S_R))
    S, total = len(covariance_S_S), float(np.trace(covariance_S_S))
    if S == 1:
        return _SeedVariances(1, None, total)
    own = total / S - (float(covariance_S_S.sum()) - total) / (S * (S - 1))
    return _SeedVariances(S, float(arm.value_S.var(ddof=1)) - own, own)


def cover_training_seeds(over_questions: Estimate, arms: Sequence[SeedValues], noise: QuestionNoise = "shared") -> SeedDifference:
    """The number of `over_questions` with an interval over questions and training seeds too.

    The number is the sum of the arms' means over their seeds: of a method's values, of the differences of two methods paired by
    seed, or of one method's values and the other's negative ones.
    """
    value, low, high = over_questions.value, over_questions.low, over_questions.high
    values = np.concatenate([arm.value_S for arm in arms])
    if value is None or low is None or high is None or np.isnan(values).any():
        return SeedDifference(over_questions=over_questions, over_seeds=Estimate(value=value, n=over_questions.n))
    components = seed_variance_components(arms)
    if min(len(arm.value_S) for arm in arms) < 2:
        over_seeds = Estimate(value=value, n=over_questions.n)
        return SeedDifference(over_questions=over_questions, over_seeds=over_seeds, components=components)
    whole = _variance_of_mean(arms)
    # Replicates that do not vary say nothing: then the half-width over questions counts in full.
    scale = float(np.sqrt(components.shared / whole)) if whole > 0 and noise == "shared" else 1.0
    below, above = (_half_width(half, SIGNIFICANCE_LEVEL, arms, scale) for half in (value - low, high - value))
    return SeedDifference(
        over_questions=over_questions,
        over_seeds=Estimate(value=value, low=min(low, value - below), high=max(high, value + above), n=over_questions.n),
        p=_p_of_zero(abs(value), value - low if value > 0 else high - value, arms, scale),
        components=components,
    )


def cover_seed_differences(
    over_questions: Estimate,
    values: SeedValues,
    against: SeedValues,
    pairing: SeedPairing,
    noise: QuestionNoise = "shared",
    change: Change = np.subtract,
) -> SeedDifference:
    """`cover_training_seeds` of values − against, or of their relative change. With the pairing "paired" both have as many seeds.

    A relative change is that of the means over seeds, (values − against) / against. Its variances are those of
    values / m − (k / m) against, with m the mean of `against` and k the ratio of the means: the ratio's first-order
    approximation.
    """
    if change is relative_change and (mean := float(against.value_S.mean())) > 0:  # without it the change has no value
        values, against = values.scaled(1 / mean), against.scaled(float(values.value_S.mean()) / mean**2)
    if pairing == "unpaired":
        return cover_training_seeds(over_questions, [values, SeedValues(-against.value_S, -against.replicate_S_R)], noise)
    difference = SeedValues(values.value_S - against.value_S, values.replicate_S_R - against.replicate_S_R)
    return cover_training_seeds(over_questions, [difference], noise)


def limit_ends(estimate: Estimate, lowest: float, highest: float) -> Estimate:
    """The estimate with an interval that stays between the smallest and the largest possible value."""
    if estimate.low is None or estimate.high is None:
        return estimate
    return estimate.model_copy(update={"low": max(estimate.low, lowest), "high": min(estimate.high, highest)})


def _variance_of_mean(arms: Sequence[SeedValues]) -> float:
    """Variance over the replicates of the sum of the arms' means."""
    return float(np.nanvar(np.sum([arm.replicate_S_R.mean(axis=0) for arm in arms], axis=0), ddof=1))


def _half_width(half: float, level: float, arms: Sequence[SeedValues], scale: float) -> float:
    """Half-width at this level, where `half` is that over questions at the level .05."""
    at_level = half * float(ndtri(level / 2) / ndtri(SIGNIFICANCE_LEVEL / 2))
    of_seeds = sum(
        float(stdtrit(len(arm.value_S) - 1, 1 - level / 2)) ** 2 * float(arm.value_S.var(ddof=1)) / len(arm.value_S)
        for arm in arms
    )
    return max(at_level, float(np.sqrt(of_seeds + (scale * at_level) ** 2)))


def _p_of_zero(distance: float, half: float, arms: Sequence[SeedValues], scale: float) -> float:
    """The level at which the interval just reaches 0; at least `MIN_P`."""

    def excess(log_level: float) -> float:
        return _half_width(half, float(np.exp(log_level)), arms, scale) - distance

    least = float(np.log(MIN_P))
    if distance <= 0 or excess(0.0) >= 0:
        return 1.0
    return MIN_P if excess(least) <= 0 else float(np.exp(brentq(excess, least, 0.0)))


N_QUANTILES = 2000
"""Quantiles of the chi-squared distribution that the integral is a mean over."""


def power_over_seeds(
    effect: float,
    components: SeedVarianceComponents,
    n_seeds: int,
    noise: QuestionNoise = "shared",
    *,
    level: float = SIGNIFICANCE_LEVEL,
) -> float:
    """Probability that the interval over questions and seeds excludes 0 if the true difference is `effect`.

    `components` are those of one paired seed with the planned number of questions (`scale_questions`), `noise` the kind of the
    measure's interval. With `n_seeds` 1 the interval is that over questions alone. Raises ValueError for fewer seeds or without
    the variance of seeds.
    """
    if n_seeds < 1:
        raise ValueError(f"n_seeds is {n_seeds}; it must be at least 1")
    if components.seed is None:
        raise ValueError("components.seed is None: one training seed does not show how much seeds differ; assume a variance")
    shared = max(0.0, components.shared)
    of_questions = shared + components.own / n_seeds
    standard_error = float(np.sqrt(of_questions + components.seed / n_seeds))
    half_N = np.array([-float(ndtri(level / 2)) * np.sqrt(of_questions)])
    if n_seeds > 1:
        share_N = (np.arange(N_QUANTILES) + 0.5) / N_QUANTILES
        observed_N = (components.seed + components.own) * chdtri(n_seeds - 1, share_N) / (n_seeds - 1)
        t = float(stdtrit(n_seeds - 1, 1 - level / 2))
        added = of_questions if noise == "whole" else shared
        half_N = np.maximum(half_N, np.sqrt(t**2 * observed_N / n_seeds + float(ndtri(level / 2)) ** 2 * added))
    if standard_error == 0:
        return float((abs(effect) > half_N).mean())
    return float((ndtr((effect - half_N) / standard_error) + ndtr((-effect - half_N) / standard_error)).mean())


def scale_questions(components: SeedVarianceComponents, n_questions: int, planned: int) -> SeedVarianceComponents:
    """The variances, measured on `n_questions`, for a `planned` number of questions."""
    factor = n_questions / planned
    return components.model_copy(update={"own": components.own * factor, "shared": components.shared * factor})
