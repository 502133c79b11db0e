"""Several grids on the same questions: training seeds pooled, and models held against each other, by worst and best persona.

Contract: a grid is (mean_P_Q, baseline_Q), and all have the same personas and questions in the same order, each persona with a
score. The accuracies of all grids are drawn together (`permix.evals.extremes.draw`): what the questions did to all is drawn once.
So an interval says what other questions might have given; what another training seed might have given it does not.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from permix.evals.extremes import EXTREMES, TOWARDS, draw, estimates, measures, questions_scored
from permix.evals.observed import connected, observe
from permix.evals.stats import Array
from permix.types import Estimate

Grid = tuple[Array, Array]
TOGETHER = 3
"""Stream of random numbers under a seed, after those of a grid by itself."""


def differences(first: Sequence[Grid], other: Sequence[Grid], *, seed: int) -> dict[str, Estimate]:
    """Other − first, each the mean over its grids. A value is the difference of `estimates`' values."""
    n = min(questions_scored(mean_P_Q) for mean_P_Q, _ in (*first, *other))
    one, two = (_values([estimates(*grid, seed=seed) for grid in grids]) for grids in (first, other))
    drawn = _drawn([*first, *other], seed)
    found = {}
    for name in EXTREMES:
        a, b = one[name], two[name]
        value = None if a is None or b is None else b - a
        sides = [_mean(some, name) for some in (drawn[: len(first)], drawn[len(first) :])] if drawn else []
        found[name] = _around(value, sides[1] - sides[0] if sides else None, n)
    return found


def pooled(grids: Sequence[Grid], alone: Sequence[Mapping[str, Estimate]], *, seed: int) -> dict[str, Estimate]:
    """The mean over the grids; `alone` holds what `estimates` says of each by itself.

    A value is the mean of theirs. The end of an interval that lies towards no difference reaches at least as far as the mean of
    their ends, since those heed a second prior and the test that personas are alike.
    """
    n = min(questions_scored(mean_P_Q) for mean_P_Q, _ in grids)
    values, drawn = _values(alone), _drawn(grids, seed)
    found = {name: _around(values[name], _mean(drawn, name) if drawn else None, n) for name in EXTREMES}
    return {name: _reaching(name, one, [each[name] for each in alone]) for name, one in found.items()}


def _drawn(grids: Sequence[Grid], seed: int) -> list[dict[str, Array]]:
    """The measures of each grid in every draw; empty where nothing can be drawn."""
    if not all(questions_scored(mean_P_Q) > 1 and connected(mean_P_Q) for mean_P_Q, _ in grids):
        return []
    seen = [(observe(mean_P_Q), baseline_Q) for mean_P_Q, baseline_Q in grids]
    return [measures(*one) for one in draw(seen, np.random.default_rng([seed, TOGETHER]))]


def _mean(drawn: Sequence[Mapping[str, Array]], name: str) -> Array:
    return np.asarray(np.mean([one[name] for one in drawn], axis=0))


def _values(alone: Sequence[Mapping[str, Estimate]]) -> dict[str, float | None]:
    """Means over the grids; None where one of them has none."""
    each = {name: [one[name].value for one in alone] for name in EXTREMES}
    return {name: None if None in some else float(np.mean(np.array(some, dtype=float))) for name, some in each.items()}


def _around(value: float | None, drawn_R: Array | None, n: int) -> Estimate:
    """The middle 95 % of the draws, stretched to the value where they leave it out."""
    if value is None or drawn_R is None:
        return Estimate(value=value, n=n)
    low, high = np.quantile(drawn_R, (0.025, 0.975))
    return Estimate(value=value, low=min(float(low), value), high=max(float(high), value), n=n)


def _reaching(name: str, found: Estimate, alone: Sequence[Estimate]) -> Estimate:
    """With the end towards no difference as far out as the mean of the grids' own."""
    end = "high" if TOWARDS[name] > 0 else "low"
    mine, theirs = getattr(found, end), [getattr(one, end) for one in alone]
    if mine is None or None in theirs:
        return found
    farther = max if end == "high" else min
    return found.model_copy(update={end: farther(mine, float(np.mean(theirs)))})
