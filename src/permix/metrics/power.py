"""Power of a comparison of two trained methods, with the training seed as a random effect.

A difference is shown if the interval over questions and training seeds of `permix.metrics.training_seeds` excludes 0. The
difference of S paired seeds is assumed to be normal with mean δ and variance c + (σ² + e) / S (that module explains the letters).
c and e are inversely proportional to the number of questions; σ² does not depend on it. The power is the mean, over the
chi-squared distribution of the observed variance of the seeds, of the probability that the interval excludes 0. It is computed by
an integral.

With one seed there is only the interval over questions, which ignores σ². It also excludes 0 when only the two seeds differ;
`power_over_seeds` with the effect 0 gives the rate.

Contract: pure functions of numbers.
"""

import numpy as np
from scipy.special import chdtri, ndtr, ndtri, stdtrit

from permix.metrics.statistics import SIGNIFICANCE_LEVEL
from permix.metrics.training_seeds import QuestionNoise, SeedVarianceComponents

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
