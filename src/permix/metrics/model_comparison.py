"""Compare two models on the same questions and personas: the difference of every measure, with an interval and a test.

Contract: pure functions of scores. Only cells that both models have a score for count. Measures made from the worst or the best
persona have the intervals of `permix.metrics.posterior`; all others have bootstrap intervals over questions, with the same draws
for both models.

The test is exact for every measure: if the models were alike, the answers of one model to a question could as well be those of
the other. So the models are swapped on a random half of the questions, many times, and
p = (1 + #{|difference after swapping| ≥ |difference|}) / (1 + swaps).

Axes: P personas, Q questions, S samples, R resamples, K random half splits; N is the personas followed by the baseline.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from permix.metrics import posterior, statistics
from permix.metrics.measures import StabilityMeasure, measures_in
from permix.metrics.right_in_character import RightInCharacter, right_in_character_difference, swap_test_p
from permix.metrics.stability import (
    BOOTSTRAP_BLOCK_FLOATS,
    difference_estimate,
    n_crossfit_splits,
    observed_measures,
    resample_scores,
    resamples_per_block,
)
from permix.metrics.statistics import Array, BootstrapResult, none_if_nan
from permix.types import Estimate, Record


class MeasureDifference(Record):
    """One measure of both models, and the difference other − first. `p` is two-sided and not corrected for other measures."""

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
    """Two models on the same grid. `n_cells` counts persona cells that both models have a score for."""

    measures: tuple[MeasureDifference, ...]
    personas: tuple[PersonaDifference, ...]
    n_questions: int
    n_cells: int


def compare_right_in_character(
    first: RightInCharacter, other: RightInCharacter, *, seed: int = 0, resamples: int = 2000
) -> MeasureDifference:
    """Compare two models in right and in character, on the cells that both have; both must have the same classifier.

    The test swaps the models question by question: what one model says to a question could as well be the other's.
    """
    return MeasureDifference(
        name="right_in_character", first=first.share.value, other=other.share.value,
        difference=right_in_character_difference([other], [first], seed, resamples),
        p=swap_test_p(first, other, seed, resamples),
    )  # fmt: skip


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
    """Compare two models by their scores in [0, 1] on the same personas and questions. Differences are other − first.

    NaN is no score. The models may have different numbers of samples S. `first_Q_S`, `other_Q_S`: scores of the same questions
    without a persona. Raises ValueError if personas or questions differ in number.
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
    """As `compare_scores`, from sample means whose last row is the baseline.

    `resamples` is the number of bootstrap draws and of swaps.
    """
    absent_N_Q = np.isnan(first_N_Q) | np.isnan(other_N_Q)
    models = _BothModels(*(np.where(absent_N_Q, np.nan, rows_N_Q) for rows_N_Q in (first_N_Q, other_N_Q)))
    N, Q = absent_N_Q.shape
    # Two generators: one draws half splits and then resamples, the other swaps. In another order every interval would be another.
    draws, swaps = (np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(2))
    halves_K_Q = statistics.random_half_splits(Q, n_crossfit_splits(N * Q), draws)
    bootstrapped = _resampled_differences(models, draws, resamples)
    null = _swap_null_distribution(models.first_N_Q, models.other_N_Q, halves_K_Q, swaps, resamples)
    personas = _persona_differences(models, persona_ids, bootstrapped["accuracy_P"])
    return PairedComparison(
        measures=_measure_differences(models, halves_K_Q, bootstrapped, null, seed),
        personas=personas, n_questions=Q, n_cells=sum(one.n for one in personas),
    )  # fmt: skip


class _BothModels(NamedTuple):
    """Scores of two models, NaN in both where either has none."""

    first_N_Q: Array
    other_N_Q: Array

    @property
    def grids(self) -> list[tuple[Array, Array]]:
        """(mean_P_Q, baseline_Q) of each model."""
        return [(rows_N_Q[:-1], rows_N_Q[-1]) for rows_N_Q in self]

    @property
    def has_score_N_Q(self) -> Array:
        return ~np.isnan(self.first_N_Q)


def _resampled_differences(models: _BothModels, rng: np.random.Generator, resamples: int) -> dict[str, BootstrapResult]:
    """The difference of every measure with a bootstrap interval, and `accuracy_P`, of all questions and of each resample."""
    measures = _bootstrapped_measures()

    def values_of(mean_P_Q: Array, baseline_Q: Array, counts_R_Q: Array) -> dict[str, Array]:
        scores = resample_scores(mean_P_Q, baseline_Q, counts_R_Q)
        accuracy_R_P = statistics.weighted_question_mean(mean_P_Q, counts_R_Q)
        return {one.name: one.of_resamples(scores) for one in measures} | {"accuracy_P": accuracy_R_P}

    def resampled(counts_R_Q: Array) -> dict[str, Array]:
        first, other = (values_of(*grid, counts_R_Q) for grid in models.grids)
        return {name: other[name] - first[name] for name in first}

    block_size = resamples_per_block(models.first_N_Q[:-1])
    return statistics.bootstrap(resampled, models.first_N_Q.shape[1], rng, resamples, block_size)


def _bootstrapped_measures() -> list[StabilityMeasure]:
    return [one for one in measures_in("comparison") if one.estimator not in ("posterior", "observed")]


def _measure_differences(
    models: _BothModels,
    halves_K_Q: Array,
    bootstrapped: Mapping[str, BootstrapResult],
    null: Mapping[str, Array],
    seed: int,
) -> tuple[MeasureDifference, ...]:
    """Every measure of the comparison: both values, their difference by the measure's estimator, and the p of the swaps."""
    measures = measures_in("comparison")
    with_persona_Q, with_baseline_Q = models.has_score_N_Q[:-1].any(axis=0), models.has_score_N_Q[-1]
    scored_Q = {"personas": with_persona_Q, "baseline": with_baseline_Q, "both": with_persona_Q & with_baseline_Q}
    observed = [observed_measures(*grid, halves_K_Q, measures) for grid in models.grids]
    observed_difference = {one.name: observed[1][one.name] - observed[0][one.name] for one in measures}
    differences = {
        one.name: Estimate(value=none_if_nan(observed_difference[one.name]), n=int(scored_Q[one.questions].sum()))
        for one in measures
    }
    values = [{name: none_if_nan(value) for name, value in each.items()} for each in observed]
    scored_P = models.has_score_N_Q[:-1].any(axis=1)
    of_draws: dict[str, Estimate] = {}
    if scored_P.any():
        drawn = [one.name for one in measures if one.estimator == "posterior"]
        grids = [(mean_P_Q[scored_P], baseline_Q) for mean_P_Q, baseline_Q in models.grids]
        of_draws = posterior.posterior_differences(grids[1:], grids[:1], seed=seed)
        differences |= {name: of_draws[name] for name in drawn}
        for value_by_name, grid in zip(values, grids, strict=True):
            estimates = posterior.posterior_estimates(*grid, seed=seed)
            value_by_name |= {name: estimates[name].value for name in drawn}
    first, other = models.grids
    for one in _bootstrapped_measures():
        n = differences[one.name].n
        differences[one.name] = difference_estimate(one, bootstrapped[one.name], n, [other], [first], of_draws)
    return tuple(
        MeasureDifference(
            name=one.name, first=values[0][one.name], other=values[1][one.name], difference=differences[one.name],
            p=_two_sided_p(observed_difference[one.name], null[one.name]),
        )
        for one in measures
    )  # fmt: skip


def _persona_differences(
    models: _BothModels, persona_ids: Sequence[str], accuracy: BootstrapResult
) -> tuple[PersonaDifference, ...]:
    """The difference in each persona's accuracy; `accuracy` has its resamples."""
    difference_P_Q = (models.other_N_Q - models.first_N_Q)[:-1]
    p_P = np.array([statistics.sign_flip_p(difference_Q) for difference_Q in difference_P_Q])
    holm_P, n_P = statistics.holm_adjust(p_P), models.has_score_N_Q[:-1].sum(axis=1).tolist()
    first_P, other_P = (statistics.mean_over_samples(mean_P_Q) for mean_P_Q, _ in models.grids)
    return tuple(
        PersonaDifference(
            id=id, first=none_if_nan(first_P[row]), other=none_if_nan(other_P[row]), n=n_P[row],
            difference=statistics.bootstrap_paired(
                float(accuracy.value[row]), accuracy.replicates[:, row], difference_P_Q[row]
            ),
            p=none_if_nan(p_P[row]), holm_p=none_if_nan(holm_P[row]),
        )
        for row, id in enumerate(persona_ids)
    )  # fmt: skip


def _swap_null_distribution(
    first_N_Q: Array, other_N_Q: Array, halves_K_Q: Array, rng: np.random.Generator, n_swaps: int
) -> dict[str, Array]:
    """null_R of every measure: its difference after swapping the models on a random half of the questions.

    The questions of both models lie side by side, 2 Q in all, and a swap is a draw that takes each question from one of the two.
    """
    swap_R_Q = rng.integers(0, 2, size=(n_swaps, first_N_Q.shape[1])).astype(float)
    both_N_2Q = np.hstack([first_N_Q, other_N_Q])
    measures = [measure for measure in measures_in("comparison") if measure.swapped_formula is None]
    null_R: dict[str, list[Array]] = {measure.name: [] for measure in measures}
    block_size = resamples_per_block(both_N_2Q[:-1])
    for start in range(0, n_swaps, block_size):
        part_R_Q = swap_R_Q[start : start + block_size]
        one, two = (
            resample_scores(both_N_2Q[:-1], both_N_2Q[-1], counts_R_2Q)
            for counts_R_2Q in (np.hstack([1 - part_R_Q, part_R_Q]), np.hstack([part_R_Q, 1 - part_R_Q]))
        )
        for measure in measures:
            null_R[measure.name].append(measure.of_resamples(two) - measure.of_resamples(one))
    scored_P = ~np.isnan(first_N_Q[:-1]).all(axis=1)
    first_P_Q, other_P_Q = (rows_N_Q[:-1][scored_P if scored_P.any() else slice(None)] for rows_N_Q in (first_N_Q, other_N_Q))
    halves_block_size = max(1, BOOTSTRAP_BLOCK_FLOATS // (len(halves_K_Q) * max(first_P_Q.shape)))
    found = {name: np.concatenate(values) for name, values in null_R.items()}
    for measure in measures_in("comparison"):
        if measure.swapped_formula is not None:
            one_R, two_R = measure.swapped_formula(first_P_Q, other_P_Q, halves_K_Q, swap_R_Q, halves_block_size)
            found[measure.name] = two_R - one_R
    return found


def _two_sided_p(difference: float, null_R: Array) -> float | None:
    """p of the swap test; None if the difference, or more than half of its null distribution, cannot be computed."""
    known_R = null_R[~np.isnan(null_R)]
    if np.isnan(difference) or 2 * len(known_R) < len(null_R):
        return None
    # Sums of equal numbers in another order differ by rounding: then a difference of 0 must not count as a small one.
    return statistics.permutation_p(max(abs(difference) - statistics.TIE_TOLERANCE, 0.0), np.abs(known_R))
