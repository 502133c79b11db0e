"""How small a persona effect a grid can show, and how many questions an effect asks for: paired, as the tests are.

Its contract: pure functions of numbers. A persona is held against no persona on the same questions; what matters besides their
number is `discordance`, the mean squared difference of a question's two scores (with one sample a cell: the share of questions
that are right under one and wrong under the other). Several personas are several tests, so the level is divided by their number,
which is what Holm's first step does.

Source: Connor, R. J. (1987), Sample size for testing differences in proportions for the paired-sample design, Biometrics 43.
"""

import math
from functools import partial

import numpy as np
from scipy.special import ndtri

from permix.evals.stats import Array

LEVEL, POWER = 0.05, 0.8


def discordance(mean_P_Q: Array, baseline_Q: Array) -> float | None:
    """Mean over personas and questions of the squared difference to no persona; None where no question has both scores."""
    squares_P_Q = (mean_P_Q - baseline_Q) ** 2
    known = squares_P_Q[~np.isnan(squares_P_Q)]
    return float(known.mean()) if known.size else None


def questions_needed(effect: float, discordance: float, tests: int, *, level: float = LEVEL, power: float = POWER) -> int:
    """Questions at which a true difference of `effect` is shown with probability `power`.

    n = ((z_a √ψ + z_b √(ψ − d²)) / d)² with ψ the discordance, z_a = Φ⁻¹(1 − level / (2 tests)), z_b = Φ⁻¹(power). A difference
    of d needs a discordance of at least d, which is taken where less was seen. Raises ValueError for an effect outside (0, 1].
    """
    if not 0 < effect <= 1:
        raise ValueError(f"effect is {effect}; a difference of accuracies that is to be shown lies in (0, 1]")
    spread = max(discordance, effect)
    against, beside = float(ndtri(1 - level / (2 * tests))), float(ndtri(power))
    return math.ceil(((against * math.sqrt(spread) + beside * math.sqrt(spread - effect**2)) / effect) ** 2)


def smallest_effect(
    questions: int, discordance: float, tests: int, *, level: float = LEVEL, power: float = POWER
) -> float | None:
    """The difference that so many questions show with probability `power`, to three digits; None where not even 1 is shown."""
    effects = (step / 1000 for step in range(1, 1001))
    needed = partial(questions_needed, discordance=discordance, tests=tests, level=level, power=power)
    return next((effect for effect in effects if needed(effect) <= questions), None)
