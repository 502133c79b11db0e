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
from numpy.typing import ArrayLike

from permix.metrics import posterior, statistics
from permix.metrics.stability import BOOTSTRAP_BLOCK_FLOATS, build_measures, n_crossfit_splits
from permix.metrics.statistics import Array
from permix.types import Estimate, Record

COMPARED_MEASURES = (
    "baseline",
    "mean",
    "worst",
    "best",
    "pss",
    "pss_crossfit",
    "spread",
    "persona_sd",
    "mean_minus_baseline",
    "worst_minus_baseline",
    "worst_per_question",
)
"""Fields of `StabilitySummary` that are compared, in the order of tables."""


class MeasureDifference(Record):
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


class PairedComparison(Record):
    """Two models on the same grid. `n_cells` counts persona cells with a score of both."""

    measures: tuple[MeasureDifference, ...]
    personas: tuple[PersonaDifference, ...]
    n_questions: int
    n_cells: int


def compare_scores(
    first_P_Q_S: ArrayLike,
    other_P_Q_S: ArrayLike,
    first_Q_S: ArrayLike | None = None,
    other_Q_S: ArrayLike | None = None,
    *,
    persona_ids: Sequence[str] | None = None,
    seed: int = 0,
    resamples: int = 2000,
) -> PairedComparison:
    """Two models' scores in [0, 1] on the same personas and questions, NaN without one; S may differ. Differences: other − first.

    `first_Q_S`, `other_Q_S`: the scores of the same questions asked without a persona. Raises ValueError for other shapes.
    """
    first_N_Q, other_N_Q = _stack_baseline(first_P_Q_S, first_Q_S), _stack_baseline(other_P_Q_S, other_Q_S)
    if first_N_Q.shape != other_N_Q.shape:
        raise ValueError(
            f"the first model has scores of {len(first_N_Q) - 1} personas × {first_N_Q.shape[1]} questions and the other of "
            f"{len(other_N_Q) - 1} × {other_N_Q.shape[1]}; they must be the same personas and questions"
        )
    ids = [str(place) for place in range(len(first_N_Q) - 1)] if persona_ids is None else persona_ids
    return compare_models_paired(first_N_Q, other_N_Q, ids, seed=seed, resamples=resamples)


def _stack_baseline(correct_P_Q_S: ArrayLike, correct_Q_S: ArrayLike | None) -> Array:
    """mean_N_Q: the sample means of every persona and, last, of no persona (NaN where that is not given)."""
    mean_P_Q = statistics.mean_over_samples(np.asarray(correct_P_Q_S, dtype=float))
    if correct_Q_S is None:
        return np.vstack([mean_P_Q, np.full(mean_P_Q.shape[1], np.nan)])
    return np.vstack([mean_P_Q, statistics.mean_over_samples(np.asarray(correct_Q_S, dtype=float))])


def compare_models_paired(
    first_N_Q: Array, other_N_Q: Array, persona_ids: Sequence[str], *, seed: int, resamples: int
) -> PairedComparison:
    """Scores in [0, 1], NaN where there is none; the last row is without persona. `resamples`: draws, swaps and sign flips."""
    absent_N_Q = np.isnan(first_N_Q) | np.isnan(other_N_Q)
    first_N_Q, other_N_Q = (np.where(absent_N_Q, np.nan, rows_N_Q) for rows_N_Q in (first_N_Q, other_N_Q))
    N, Q = first_N_Q.shape
    draws, swaps, signs = (np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(3))
    splits = n_crossfit_splits(N * Q)
    halves_K_Q = statistics.random_half_splits(Q, splits, draws)
    one, two = (build_measures(rows_N_Q[:-1], rows_N_Q[-1], halves_K_Q) for rows_N_Q in (first_N_Q, other_N_Q))

    def resampled(counts_R_Q: Array) -> dict[str, Array]:
        of_one, of_two = one(counts_R_Q), two(counts_R_Q)
        return {name: of_two[name] - of_one[name] for name in (*COMPARED_MEASURES, "accuracy")}

    drawn = statistics.bootstrap(
        resampled, Q, draws, resamples, block_size=max(1, BOOTSTRAP_BLOCK_FLOATS // (splits * max(N, Q)))
    )
    alone = [measures(np.ones((1, Q))) for measures in (one, two)]
    null = _swap_null_distribution(first_N_Q, other_N_Q, halves_K_Q, swaps, resamples)
    under_Q, without_Q = ~absent_N_Q[:-1].all(axis=0), ~absent_N_Q[-1]
    n = dict.fromkeys(COMPARED_MEASURES, int(under_Q.sum())) | {"baseline": int(without_Q.sum())}
    n |= dict.fromkeys(("mean_minus_baseline", "worst_minus_baseline"), int((under_Q & without_Q).sum()))
    differences = {
        name: statistics.bootstrap_estimate(float(drawn[name].value), drawn[name].replicates, n[name])
        for name in COMPARED_MEASURES
    }
    values = [{name: _none_if_nan(one[name][0]) for name in COMPARED_MEASURES} for one in alone]
    scored_P = np.array([not row_Q.all() for row_Q in absent_N_Q[:-1]])
    if scored_P.any():
        grids = [(rows_N_Q[:-1][scored_P], rows_N_Q[-1]) for rows_N_Q in (first_N_Q, other_N_Q)]
        differences |= posterior.posterior_differences(grids[:1], grids[1:], seed=seed)
        for found, grid in zip(values, grids, strict=True):
            alone_too = posterior.posterior_estimates(*grid, seed=seed)
            found |= {name: alone_too[name].value for name in posterior.EXTREME_MEASURES}
    measures = tuple(
        MeasureDifference(
            name=name, first=values[0][name], other=values[1][name], difference=differences[name],
            p=_two_sided_p(drawn[name].value, null[name]),
        )
        for name in COMPARED_MEASURES
    )  # fmt: skip
    p_P = np.array([statistics.sign_flip_p(row_Q, signs, resamples) for row_Q in (other_N_Q - first_N_Q)[:-1]])
    holm_P, n_P = statistics.holm_adjust(p_P), (~absent_N_Q[:-1]).sum(axis=1).tolist()
    value_P, replicate_R_P = drawn["accuracy"]
    personas = tuple(
        PersonaDifference(
            id=id, first=_none_if_nan(alone[0]["accuracy"][0, row]), other=_none_if_nan(alone[1]["accuracy"][0, row]), n=n_P[row],
            difference=statistics.bootstrap_estimate(float(value_P[row]), replicate_R_P[:, row], n_P[row]),
            p=_none_if_nan(p_P[row]), holm_p=_none_if_nan(holm_P[row]),
        )
        for row, id in enumerate(persona_ids)
    )  # fmt: skip
    return PairedComparison(measures=measures, personas=personas, n_questions=Q, n_cells=sum(n_P))


def _swap_null_distribution(
    first_N_Q: Array, other_N_Q: Array, halves_K_Q: Array, rng: np.random.Generator, n_swaps: int
) -> dict[str, Array]:
    """null_R of every measure: its difference after the models were swapped on a random half of the questions."""
    once_1_Q = np.ones((1, first_N_Q.shape[1]))
    null_R: dict[str, list[float]] = {name: [] for name in COMPARED_MEASURES}
    for _ in range(n_swaps):
        swap_Q = rng.integers(0, 2, size=first_N_Q.shape[1]).astype(bool)
        rows = np.where(swap_Q, other_N_Q, first_N_Q), np.where(swap_Q, first_N_Q, other_N_Q)
        one, two = (build_measures(rows_N_Q[:-1], rows_N_Q[-1], halves_K_Q)(once_1_Q) for rows_N_Q in rows)
        for name in COMPARED_MEASURES:
            null_R[name].append(float(two[name][0] - one[name][0]))
    return {name: np.array(values) for name, values in null_R.items()}


def _two_sided_p(difference: Array, null_R: Array) -> float | None:
    """None where the difference, or most of its null, cannot be computed."""
    known_R = null_R[~np.isnan(null_R)]
    if np.isnan(difference) or 2 * len(known_R) < len(null_R):
        return None
    return statistics.permutation_p(abs(float(difference)), np.abs(known_R))


def _none_if_nan(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
