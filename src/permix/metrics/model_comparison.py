"""Two models asked the same: the difference of every measure, with an interval and a test.

Its contract: pure functions of scores. A cell counts when both models have a score for it, so the two stand on the same cells.
The intervals of what is made of a worst or a best persona are those of `permix.metrics.posterior`, the others the
bootstrap's over
questions, both models on the same draws. The test is exact whatever the measure: were the
models alike, a question's answers of the one could as well be the other's, so the two are swapped question by question at random,
and p = (1 + #{|difference after swapping| ≥ |difference|}) / (1 + swaps).

Suffixes as in `permix.metrics.statistics`; N runs over the personas and, last, no persona.
"""

from collections.abc import Sequence

import numpy as np

from permix.metrics import posterior, statistics
from permix.metrics.stability import BLOCK_FLOATS, measures_of, splits_for
from permix.metrics.statistics import Array
from permix.types import Estimate, Record

MEASURES = (
    "baseline", "mean", "worst", "best", "pss", "pss_crossfit", "spread", "persona_sd", "shift", "worst_minus_baseline",
    "case_worst",
)  # fmt: skip
"""Fields of `StabilitySummary` that are compared, in the order of tables."""


class Difference(Record):
    """One measure of both models, and other − first. `p` is two-sided and for this measure alone."""

    name: str
    first: float | None
    other: float | None
    difference: Estimate
    p: float | None


class PersonaDifference(Record):
    """One persona's accuracy under both models, on `n` questions. `holm_p` is corrected for the number of personas."""

    id: str
    first: float | None
    other: float | None
    difference: Estimate
    p: float | None
    holm_p: float | None
    n: int


class Paired(Record):
    """Two models on the same grid. `n_cells` counts persona cells with a score of both."""

    measures: tuple[Difference, ...]
    personas: tuple[PersonaDifference, ...]
    n_questions: int
    n_cells: int


def paired(first_N_Q: Array, other_N_Q: Array, persona_ids: Sequence[str], *, seed: int, resamples: int) -> Paired:
    """Scores in [0, 1], NaN where there is none; the last row is without persona. `resamples`: draws, swaps and sign flips."""
    absent_N_Q = np.isnan(first_N_Q) | np.isnan(other_N_Q)
    first_N_Q, other_N_Q = (np.where(absent_N_Q, np.nan, rows_N_Q) for rows_N_Q in (first_N_Q, other_N_Q))
    N, Q = first_N_Q.shape
    draws, swaps, signs = (np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(3))
    splits = splits_for(N * Q)
    halves_K_Q = statistics.half_splits(Q, splits, draws)
    one, two = (measures_of(rows_N_Q[:-1], rows_N_Q[-1], halves_K_Q) for rows_N_Q in (first_N_Q, other_N_Q))

    def resampled(counts_R_Q: Array) -> dict[str, Array]:
        of_one, of_two = one(counts_R_Q), two(counts_R_Q)
        return {name: of_two[name] - of_one[name] for name in (*MEASURES, "accuracy")}

    drawn = statistics.bootstrap(resampled, Q, draws, resamples, block=max(1, BLOCK_FLOATS // (splits * max(N, Q))))
    alone = [measures(np.ones((1, Q))) for measures in (one, two)]
    null = _swapped(first_N_Q, other_N_Q, halves_K_Q, swaps, resamples)
    under_Q, without_Q = ~absent_N_Q[:-1].all(axis=0), ~absent_N_Q[-1]
    n = dict.fromkeys(MEASURES, int(under_Q.sum())) | {"baseline": int(without_Q.sum())}
    n |= dict.fromkeys(("shift", "worst_minus_baseline"), int((under_Q & without_Q).sum()))
    differences = {name: statistics.estimate(float(drawn[name].value), drawn[name].replicates, n[name]) for name in MEASURES}
    values = [{name: _known(one[name][0]) for name in MEASURES} for one in alone]
    scored_P = np.array([not row_Q.all() for row_Q in absent_N_Q[:-1]])
    if scored_P.any():
        grids = [(rows_N_Q[:-1][scored_P], rows_N_Q[-1]) for rows_N_Q in (first_N_Q, other_N_Q)]
        differences |= posterior.differences(grids[:1], grids[1:], seed=seed)
        for found, grid in zip(values, grids, strict=True):
            alone_too = posterior.estimates(*grid, seed=seed)
            found |= {name: alone_too[name].value for name in posterior.EXTREMES}
    measures = tuple(
        Difference(
            name=name, first=values[0][name], other=values[1][name], difference=differences[name],
            p=_p(drawn[name].value, null[name]),
        )
        for name in MEASURES
    )  # fmt: skip
    p_P = np.array([statistics.paired_p(row_Q, signs, resamples) for row_Q in (other_N_Q - first_N_Q)[:-1]])
    holm_P, n_P = statistics.holm(p_P), (~absent_N_Q[:-1]).sum(axis=1).tolist()
    value_P, replicate_R_P = drawn["accuracy"]
    personas = tuple(
        PersonaDifference(
            id=id, first=_known(alone[0]["accuracy"][0, row]), other=_known(alone[1]["accuracy"][0, row]), n=n_P[row],
            difference=statistics.estimate(float(value_P[row]), replicate_R_P[:, row], n_P[row]),
            p=_known(p_P[row]), holm_p=_known(holm_P[row]),
        )
        for row, id in enumerate(persona_ids)
    )  # fmt: skip
    return Paired(measures=measures, personas=personas, n_questions=Q, n_cells=sum(n_P))


def _swapped(first_N_Q: Array, other_N_Q: Array, halves_K_Q: Array, rng: np.random.Generator, swaps: int) -> dict[str, Array]:
    """null_R of every measure: its difference after the models were swapped on a random half of the questions."""
    once_1_Q = np.ones((1, first_N_Q.shape[1]))
    null_R: dict[str, list[float]] = {name: [] for name in MEASURES}
    for _ in range(swaps):
        swap_Q = rng.integers(0, 2, size=first_N_Q.shape[1]).astype(bool)
        rows = np.where(swap_Q, other_N_Q, first_N_Q), np.where(swap_Q, first_N_Q, other_N_Q)
        one, two = (measures_of(rows_N_Q[:-1], rows_N_Q[-1], halves_K_Q)(once_1_Q) for rows_N_Q in rows)
        for name in MEASURES:
            null_R[name].append(float(two[name][0] - one[name][0]))
    return {name: np.array(values) for name, values in null_R.items()}


def _p(difference: Array, null_R: Array) -> float | None:
    """None where the difference, or most of its null, cannot be computed."""
    known_R = null_R[~np.isnan(null_R)]
    if np.isnan(difference) or 2 * len(known_R) < len(null_R):
        return None
    return statistics.permutation_p(abs(float(difference)), np.abs(known_R))


def _known(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
