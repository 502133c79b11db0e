"""Summarize how one model's accuracy depends on the persona, as one frozen record of estimates.

Contract: `summarize_stability` takes scores by persona, question and sample, and the scores of the same questions without a
persona. It returns values, 95 % intervals over questions, and counts. The formulas are in `permix.metrics.statistics`;
docs/measures.md explains how to read them. Cells without a score (NaN) are left out and counted. A value that cannot be computed
is None. The same input and seed give the same record.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from permix.metrics import posterior, statistics
from permix.metrics.measures import (
    STABILITY_MEASURES,
    MeasureRecord,
    MeasureView,
    ResampledScores,
    ScoredQuestions,
    StabilityMeasure,
    measures_estimated_by,
    measures_in,
)
from permix.metrics.posterior import AccuracyGrid
from permix.metrics.statistics import Array, BootstrapResult, none_if_nan
from permix.metrics.training_seeds import (
    QuestionNoise,
    SeedDifference,
    SeedPairing,
    SeedValues,
    cover_seed_differences,
    cover_training_seeds,
    limit_ends,
)
from permix.types import Estimate, Record, require_unique

CROSSFIT_SPLITS = 100  # random half splits of pss_crossfit, the same ones in every resample

MAX_SPLIT_SCORES = 20_000_000  # scores in all splits together: a large grid gets fewer splits, but at least a tenth of them

PERSONA_EFFECT_ALPHA = 0.05  # p below which the test shows a persona effect

BOOTSTRAP_BLOCK_FLOATS = 2_000_000  # floats in the largest array of one bootstrap block: 16 MB


NO_RIGHT_ANSWER = "no answer was right under any persona, so PSS has no value"

ONE_PERSONA = "only one persona has answers, and PSS compares personas, so it has no value"


class PersonaSummary(Record):
    """One persona. `difference` (persona − baseline) and its test use the questions that have both scores."""

    id: str
    accuracy: Estimate
    difference: Estimate
    mcnemar_p: float | None
    holm_p: float | None
    n: int


class StabilitySummary(MeasureRecord):
    """Every measure of docs/measures.md. `Estimate.n` counts questions; n_scored and n_asked count persona cells.

    `measures` has all of `STABILITY_MEASURES` by name; some are attributes too. `expected_best_of_k[k-1]` is the expected best
    accuracy of k personas. `permutation_p` and `minimum_detectable_effect` have no interval. The latter is the smallest
    difference between a persona and the baseline that this number of questions and personas detects with 80 % power
    (`permix.metrics.statistics`); None without a baseline, or if not even a difference of 1 is detected.
    """

    measures: dict[str, Estimate]
    permutation_p: Estimate
    minimum_detectable_effect: Estimate
    expected_best_of_k: tuple[Estimate, ...]
    personas: tuple[PersonaSummary, ...]
    n_scored: int
    n_asked: int
    n_questions: int
    n_personas: int

    @property
    def pss(self) -> Estimate:
        return self.measures["pss"]

    @property
    def pss_reason(self) -> str | None:
        """Why PSS has no value although there are scores. None if it has a value, or without any score."""
        if self.pss.value is not None:
            return None
        if sum(persona.n > 0 for persona in self.personas) == 1:
            return ONE_PERSONA
        return NO_RIGHT_ANSWER if self.mean.value == 0 else None

    @property
    def pss_observed(self) -> Estimate:
        return self.measures["pss_observed"]

    @property
    def pss_null(self) -> Estimate:
        return self.measures["pss_null"]

    @property
    def worst(self) -> Estimate:
        return self.measures["worst"]

    @property
    def best(self) -> Estimate:
        return self.measures["best"]

    @property
    def mean(self) -> Estimate:
        return self.measures["mean"]

    @property
    def baseline(self) -> Estimate:
        return self.measures["baseline"]

    @property
    def mean_minus_baseline(self) -> Estimate:
        return self.measures["mean_minus_baseline"]


def summarize_stability(
    correct_P_Q_S: ArrayLike,
    baseline_Q_S: ArrayLike | None = None,
    *,
    persona_ids: Sequence[str] | None = None,
    seed: int = 0,
    resamples: int = 2000,
) -> StabilitySummary:
    """Measure how accuracy depends on the persona.

    `correct_P_Q_S` has the scores in [0, 1] by persona, question and sample; NaN is no score. `baseline_Q_S` has the scores of
    the same questions without a persona; its number of samples may differ. Without `persona_ids` the ids are "0", "1", ...
    `resamples` is the number of bootstrap draws and of permutations.

    Raises ValueError for an empty array or a wrong shape, a score outside [0, 1], repeated ids or a wrong number of ids.
    """
    correct = _check_scores(correct_P_Q_S, 3, "correct_P_Q_S")
    P, Q, S = correct.shape
    baseline = np.full((Q, 1), np.nan) if baseline_Q_S is None else _check_scores(baseline_Q_S, 2, "baseline_Q_S")
    if len(baseline) != Q:
        raise ValueError(f"baseline_Q_S has {len(baseline)} questions and correct_P_Q_S has {Q}; they must be the same questions")
    ids = _check_persona_ids(persona_ids, P)
    if resamples < 1:
        raise ValueError(f"resamples is {resamples}; it must be at least 1")

    mean_P_Q, baseline_Q = statistics.mean_over_samples(correct), statistics.mean_over_samples(baseline)
    draws, labels = (np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(2))
    halves_K_Q = statistics.random_half_splits(Q, n_crossfit_splits(P * Q), draws)
    observed = observed_measures(mean_P_Q, baseline_Q, halves_K_Q, list(STABILITY_MEASURES.values()))
    bootstrapped = _bootstrap_measures(mean_P_Q, baseline_Q, draws, resamples)
    compared_P_Q = _drop_unscored_personas(mean_P_Q)
    permuted = _permutation_test(compared_P_Q, labels, resamples)
    no_effect = permuted.p.value is None or permuted.p.value >= PERSONA_EFFECT_ALPHA
    from_draws = posterior.posterior_estimates(compared_P_Q, baseline_Q, seed=seed, no_effect=no_effect)
    n_by_questions = _count_scored_questions(mean_P_Q, baseline_Q)
    n, n_both = n_by_questions["personas"], n_by_questions["both"]
    discordance = statistics.discordance(mean_P_Q, baseline_Q)
    best_of_k = bootstrapped["expected_best_K"]
    return StabilitySummary(
        measures={
            measure.name: _measure_estimate(
                measure,
                observed,
                bootstrapped,
                from_draws,
                permuted.null_R_P,
                None if measure.question_formula is None else measure.question_formula(mean_P_Q, baseline_Q),
                n_by_questions[measure.questions],
            )
            for measure in STABILITY_MEASURES.values()
        },
        permutation_p=permuted.p,
        minimum_detectable_effect=Estimate(
            value=None if discordance is None else statistics.minimum_detectable_effect(n_both, discordance, P), n=n_both
        ),
        expected_best_of_k=tuple(_estimates(best_of_k, [n] * best_of_k.value.size, statistics.bootstrap_share)) if n else (),
        personas=_persona_summaries(ids, mean_P_Q, mean_P_Q - baseline_Q, bootstrapped),
        n_scored=int((~np.isnan(correct)).sum()),
        n_asked=P * Q * S,
        n_questions=Q,
        n_personas=P,
    )


def _measure_estimate(
    measure: StabilityMeasure,
    observed: Mapping[str, float],
    bootstrapped: Mapping[str, BootstrapResult],
    drawn: Mapping[str, Estimate],
    null_R_P: Array | None,
    value_Q: Array | None,
    n: int,
) -> Estimate:
    match measure.estimator:
        case "bootstrap":
            return _estimate(bootstrapped[measure.name], n)
        case "paired":
            assert value_Q is not None
            return statistics.bootstrap_paired(
                float(bootstrapped[measure.name].value), bootstrapped[measure.name].replicates, value_Q
            )
        case "share":
            return _estimate(bootstrapped[measure.name], n, statistics.bootstrap_share)
        case "posterior":
            return drawn[measure.name]
        case "hull":
            return _interval_hull(_estimate(bootstrapped[measure.name], n), drawn[measure.name])
        case "observed":
            return Estimate(value=none_if_nan(observed[measure.name]), n=n)
        case "permuted":
            return _permuted_estimate(measure, null_R_P, n)


def _permuted_estimate(measure: StabilityMeasure, null_R_P: Array | None, n: int) -> Estimate:
    """The measure if personas had no effect: mean and middle 95 % over the permutations. The formula gets no baseline."""
    if null_R_P is None:
        return Estimate(value=None, n=0)
    value_R = measure.of_accuracies(np.clip(null_R_P, 0.0, 1.0), np.full(len(null_R_P), np.nan))
    if np.isnan(value_R).any():
        return Estimate(value=None, n=n)
    low, high = np.quantile(value_R, (0.025, 0.975))
    return Estimate(value=float(value_R.mean()), low=float(low), high=float(high), n=n)


def _count_scored_questions(mean_P_Q: Array, baseline_Q: Array) -> dict[ScoredQuestions, int]:
    with_persona_Q, with_baseline_Q = ~np.isnan(mean_P_Q).all(axis=0), ~np.isnan(baseline_Q)
    return {
        "personas": int(with_persona_Q.sum()),
        "baseline": int(with_baseline_Q.sum()),
        "both": int((with_persona_Q & with_baseline_Q).sum()),
    }


def stability_differences(
    grids: Sequence[AccuracyGrid],
    against: Sequence[AccuracyGrid],
    seed: int,
    resamples: int,
    change: statistics.Change = np.subtract,
) -> dict[str, Estimate]:
    """`grids` − `against`, or another change, in the measures of the view "differences"; the grids of each are those of a
    method's training seeds.

    Each measure is the mean over the grids, on the personas that have a score in all grids. All grids share the draws of
    questions. Empty if no persona has a score in all grids.
    """
    shared_P = _scored_in_all([*against, *grids])
    if not shared_P.any():
        return {}
    measures = measures_in("differences")
    if all(measure.questions == "personas" for measure in measures):
        # These measures need no baseline. In the joint draws it would be one more level and change the last digits of all values.
        grids, against = (
            [(mean_P_Q, np.full_like(baseline_Q, np.nan)) for mean_P_Q, baseline_Q in method_grids]
            for method_grids in (grids, against)
        )
    grids, against = (
        [(mean_P_Q[shared_P], baseline_Q) for mean_P_Q, baseline_Q in method_grids] for method_grids in (grids, against)
    )
    n_by_questions = _count_scored_in_all([*against, *grids])
    means, means_against = (_bootstrap_grid_means(measures, each, seed, resamples) for each in (grids, against))
    from_draws = posterior.posterior_differences(grids, against, seed=seed, change=change)
    differences = {}
    for measure in measures:
        if measure.estimator == "posterior":
            differences[measure.name] = from_draws[measure.name]
        else:
            mean, mean_against = means[measure.name], means_against[measure.name]
            difference = BootstrapResult(change(mean.value, mean_against.value), change(mean.replicates, mean_against.replicates))
            n = n_by_questions[measure.questions]
            differences[measure.name] = difference_estimate(measure, difference, n, grids, against, from_draws, change)
    return differences


def difference_estimate(
    measure: StabilityMeasure,
    bootstrapped: BootstrapResult,
    n: int,
    grids: Sequence[AccuracyGrid],
    against: Sequence[AccuracyGrid],
    from_draws: Mapping[str, Estimate],
    change: statistics.Change = np.subtract,
) -> Estimate:
    """A bootstrapped change from the mean over the grids `against` to the mean over `grids`, with its interval.

    Resamples cannot show what no question has shown. So a difference of means over questions has `statistics.bootstrap_paired`,
    and other measures have the interval of `from_draws` too where all personas of a grid answered alike.
    """
    if measure.question_formula is not None and change is np.subtract:
        difference_Q = _mean_on_questions(measure.question_formula, grids) - _mean_on_questions(measure.question_formula, against)
        estimate = statistics.bootstrap_paired(float(bootstrapped.value), bootstrapped.replicates, difference_Q)
        return estimate.model_copy(update={"n": n})
    estimate = _estimate(bootstrapped, n)
    drawn = from_draws.get(measure.name)
    if drawn is None or not any(posterior.answered_alike(mean_P_Q) for mean_P_Q, _ in (*against, *grids)):
        return estimate
    return _interval_hull(estimate, drawn)


def _mean_on_questions(question_formula: Callable[[Array, Array], Array], grids: Sequence[AccuracyGrid]) -> Array:
    """value_Q: the mean over the grids."""
    return np.asarray(np.mean([question_formula(*grid) for grid in grids], axis=0))


def pool_stability(
    grids: Sequence[AccuracyGrid], seed: int, resamples: int, view: MeasureView = "methods"
) -> dict[str, Estimate]:
    """The measures of the view: means over the grids of a model's training seeds.

    Only personas that have a score in all grids count; empty if there is no such persona.
    """
    scored_P = _scored_in_all(grids)
    if not scored_P.any():
        return {}
    measures = measures_in(view)
    grids = [(mean_P_Q[scored_P], baseline_Q) for mean_P_Q, baseline_Q in grids]
    n_by_questions = _count_scored_in_all(grids)
    bootstrapped = _bootstrap_grid_means(measures, grids, seed, resamples)
    p = joint_persona_effect_p([mean_P_Q for mean_P_Q, _ in grids], seed, resamples)
    from_draws = posterior.pooled_estimates(grids, seed=seed, no_effect=p is None or p >= PERSONA_EFFECT_ALPHA)
    pooled = {}
    for measure in measures:
        if measure.estimator == "posterior":
            pooled[measure.name] = from_draws[measure.name]
        else:
            interval = statistics.bootstrap_share if measure.estimator == "share" else statistics.bootstrap_estimate
            estimate = _estimate(bootstrapped[measure.name], n_by_questions[measure.questions], interval)
            pooled[measure.name] = _interval_hull(estimate, from_draws[measure.name]) if measure.estimator == "hull" else estimate
    return pooled


def seed_differences(
    grids: Sequence[AccuracyGrid],
    against: Sequence[AccuracyGrid],
    pairing: SeedPairing,
    over_questions: Mapping[str, Estimate],
    seed: int,
    resamples: int,
    change: statistics.Change = np.subtract,
) -> dict[str, SeedDifference]:
    """`grids` − `against` in the measures of the view "seed_differences": over questions, and over questions and training seeds.

    `over_questions` has the result of `stability_differences` on the same grids; differences that it lacks are computed here.
    With the pairing "paired" the grids of both have the same seeds in the same order. With `relative_change` as `change` the
    result has the measures of `over_questions` alone. Empty if no persona has a score in all grids.
    """
    shared_P = _scored_in_all([*against, *grids])
    if not shared_P.any():
        return {}
    all_grids = [(mean_P_Q[shared_P], baseline_Q) for mean_P_Q, baseline_Q in (*against, *grids)]
    n_by_questions = _count_scored_in_all(all_grids)
    is_relative = change is statistics.relative_change
    measures, n_against = measures_in("seed_differences"), len(against)
    if is_relative:
        measures = [one for one in measures if one.name in over_questions]
    by_grid = _values_by_grid(measures, all_grids, seed, resamples)
    differences = {}
    for measure in measures:
        n = n_by_questions[measure.questions]
        if (values := by_grid.get(measure.name)) is None:
            without = over_questions.get(measure.name, Estimate(value=None, n=n))
            differences[measure.name] = SeedDifference(over_questions=without, over_seeds=Estimate(value=without.value, n=n))
            continue
        of_grids, of_against = values.seeds(slice(n_against, None)), values.seeds(slice(None, n_against))
        alone = over_questions.get(measure.name) or _difference_over_questions(measure, of_grids, of_against, n)
        difference = cover_seed_differences(alone, of_grids, of_against, pairing, question_noise(measure), change)
        if is_relative:
            difference = difference.limited(-1.0, np.inf)
        elif measure.estimator != "hull":  # shares differ by at most 1
            difference = difference.limited(-1.0, 1.0)
        differences[measure.name] = difference
    return differences


def question_noise(measure: StabilityMeasure) -> QuestionNoise:
    """How much question noise an interval over training seeds of this measure adds to that of the seeds."""
    return "whole" if measure.estimator == "posterior" else "shared"


def _difference_over_questions(measure: StabilityMeasure, values: SeedValues, against: SeedValues, n: int) -> Estimate:
    """`values` − `against` of the means over the seeds, with the interval of the replicates."""
    value = float(values.value_S.mean() - against.value_S.mean())
    replicate_R = values.replicate_S_R.mean(axis=0) - against.replicate_S_R.mean(axis=0)
    if measure.estimator != "posterior":
        return statistics.bootstrap_estimate(value, replicate_R, n)
    return posterior.interval_around(none_if_nan(value), replicate_R, n)


def pool_over_seeds(
    grids: Sequence[AccuracyGrid], pooled: Mapping[str, Estimate], seed: int, resamples: int, view: MeasureView = "methods"
) -> dict[str, Estimate]:
    """The numbers of `pool_stability` on the same grids and view with intervals over questions and training seeds.

    A measure whose interval cannot be computed has no ends.
    """
    scored_P = _scored_in_all(grids)
    if not scored_P.any():
        return {}
    measures = [one for one in measures_in(view) if one.name in pooled]
    by_grid = _values_by_grid(measures, [(mean_P_Q[scored_P], baseline_Q) for mean_P_Q, baseline_Q in grids], seed, resamples)
    intervals = {}
    for measure in measures:
        alone = pooled[measure.name]
        if (values := by_grid.get(measure.name)) is None:
            intervals[measure.name] = Estimate(value=alone.value, n=alone.n)
            continue
        interval = cover_training_seeds(alone, [values], question_noise(measure)).over_seeds
        is_sd = measure.estimator == "hull"
        intervals[measure.name] = limit_ends(interval, -1.0 if measure.is_difference else 0.0, np.inf if is_sd else 1.0)
    return intervals


def _values_by_grid(
    measures: Sequence[StabilityMeasure], grids: Sequence[AccuracyGrid], seed: int, resamples: int
) -> dict[str, SeedValues]:
    """The value of each grid and its replicates from draws of questions, or from the posterior, that all grids share."""
    bootstrapped = _bootstrap_grids(measures, grids, seed, resamples, lambda values: np.stack(values, axis=1))
    found = {name: SeedValues(one.value, one.replicates.T) for name, one in bootstrapped.items()}
    if any(one.estimator == "posterior" for one in measures):
        drawn = posterior.posterior_by_grid(grids, seed=seed)
        found |= {one.name: SeedValues(*drawn[one.name]) for one in measures if one.estimator == "posterior" and drawn}
    return found


def _scored_in_all(grids: Sequence[AccuracyGrid]) -> NDArray[np.bool_]:
    """For each persona [P], whether it has a score in every grid."""
    return np.asarray(np.all([~np.isnan(mean_P_Q).all(axis=1) for mean_P_Q, _ in grids], axis=0))


def _count_scored_in_all(grids: Sequence[AccuracyGrid]) -> dict[ScoredQuestions, int]:
    """The smallest number of scored questions over the grids."""
    counts = [_count_scored_questions(*grid) for grid in grids]
    return {questions: min(one[questions] for one in counts) for questions in counts[0]}


def _bootstrap_grid_means(
    measures: Sequence[StabilityMeasure], grids: Sequence[AccuracyGrid], seed: int, resamples: int
) -> dict[str, BootstrapResult]:
    """Means over the grids of the measures without posterior draws."""
    return _bootstrap_grids(measures, grids, seed, resamples, lambda values: np.asarray(np.mean(values, axis=0)))


def _bootstrap_grids(
    measures: Sequence[StabilityMeasure],
    grids: Sequence[AccuracyGrid],
    seed: int,
    resamples: int,
    combine: Callable[[list[Array]], Array],
) -> dict[str, BootstrapResult]:
    """The measures without posterior draws; `combine` makes one array of the grids' values. All grids share the draws of
    questions, and the same seed gives the same draws.
    """
    Q = grids[0][0].shape[1]
    resampled = [measure for measure in measures if measure.estimator != "posterior"]
    block_size = min(resamples_per_block(mean_P_Q) for mean_P_Q, _ in grids)

    def values(counts_R_Q: Array) -> dict[str, Array]:
        each = [resample_scores(*grid, counts_R_Q) for grid in grids]
        return {measure.name: combine([measure.of_resamples(scores) for scores in each]) for measure in resampled}

    return statistics.bootstrap(values, Q, np.random.default_rng(seed), resamples, block_size)


def observed_measures(
    mean_P_Q: Array, baseline_Q: Array, halves_K_Q: Array, measures: Sequence[StabilityMeasure]
) -> dict[str, float]:
    """The observed value of each measure by name; NaN where it cannot be computed.

    `mean_P_Q` and `baseline_Q` are an `AccuracyGrid`; `halves_K_Q` as of `statistics.random_half_splits`.
    """
    scores = resample_scores(mean_P_Q, baseline_Q, np.ones((1, mean_P_Q.shape[1])), halves_K_Q)
    return {measure.name: float(measure.of_resamples(scores)[0]) for measure in measures if measure.estimator != "permuted"}


def _bootstrap_measures(
    mean_P_Q: Array, baseline_Q: Array, rng: np.random.Generator, resamples: int
) -> dict[str, BootstrapResult]:
    """Every measure with a bootstrap interval by name, and each persona's accuracy and difference, all on the same draws."""
    Q = mean_P_Q.shape[1]
    resampled = measures_estimated_by("bootstrap", "share", "paired", "hull")

    def measures(counts_R_Q: Array) -> dict[str, Array]:
        scores = resample_scores(mean_P_Q, baseline_Q, counts_R_Q)
        return {measure.name: measure.of_resamples(scores) for measure in resampled} | {
            "expected_best_K": statistics.expected_best_of_k(scores.accuracy_R_P),
            "accuracy_P": statistics.weighted_question_mean(mean_P_Q, counts_R_Q),
            "difference_P": statistics.weighted_question_mean(mean_P_Q - baseline_Q, counts_R_Q),
        }

    return statistics.bootstrap(measures, Q, rng, resamples, resamples_per_block(mean_P_Q))


def resamples_per_block(mean_P_Q: Array) -> int:
    """The resamples that measures of these scores are computed for at a time, so that no array is above `BOOTSTRAP_BLOCK_FLOATS`.

    Where cells are missing, `statistics.fit_two_way` needs P × max(P, Q) numbers for every resample, and else max(P, Q).
    """
    P, Q = mean_P_Q.shape
    compared_P_Q = _drop_unscored_personas(mean_P_Q)
    floats: int = max(P, Q) * (P if np.isnan(compared_P_Q).any() else 1)
    return max(1, BOOTSTRAP_BLOCK_FLOATS // floats)


def n_crossfit_splits(n_scores: int) -> int:
    """The number of random half splits for a grid with this number of scores."""
    return max(CROSSFIT_SPLITS // 10, min(CROSSFIT_SPLITS, MAX_SPLIT_SCORES // n_scores))


def resample_scores(mean_P_Q: Array, baseline_Q: Array, counts_R_Q: Array, halves_K_Q: Array | None = None) -> ResampledScores:
    """The input of the measures, for an `AccuracyGrid` whose question q is drawn counts_R_Q[r, q] times in resample r.

    Personas without any score are left out. Only observed measures need `halves_K_Q` (`statistics.random_half_splits`).
    """
    compared_P_Q = _drop_unscored_personas(mean_P_Q)
    return ResampledScores(
        mean_P_Q=compared_P_Q,
        counts_R_Q=counts_R_Q,
        halves_K_Q=np.empty((0, mean_P_Q.shape[1])) if halves_K_Q is None else halves_K_Q,
        accuracy_R_P=statistics.weighted_question_mean(compared_P_Q, counts_R_Q),
        baseline_R=statistics.weighted_question_mean(baseline_Q[None], counts_R_Q)[:, 0],
    )


def persona_effect_p(mean_P_Q: Array, seed: int, n_permutations: int) -> float | None:
    """p of the test of no persona effect: the one that `summarize_stability` gives for the same scores and seed."""
    labels = np.random.default_rng(np.random.SeedSequence(seed).spawn(2)[1])
    return _permutation_test(_drop_unscored_personas(mean_P_Q), labels, n_permutations).p.value


def joint_persona_effect_p(grids_P_Q: Sequence[Array], seed: int, n_permutations: int) -> float | None:
    """p of one test of no persona effect in any of the grids, which have the same personas and questions; None for one persona.

    The labels of a question are permuted in the same way in all grids, so answers of the grids to one cell may be alike. The
    statistics of `statistics.persona_effect_statistics` are added over the grids; only cells with a score in all grids count.
    """
    mean_G_P_Q = np.stack(grids_P_Q)
    absent_P_Q = np.asarray(np.isnan(mean_G_P_Q).any(axis=0))
    if len(absent_P_Q) < 2 or absent_P_Q.all(axis=1).any():
        return None
    common_G_P_Q = np.where(absent_P_Q, np.nan, mean_G_P_Q)
    observed_G_1_P = [statistics.weighted_question_mean(one, np.ones((1, one.shape[1]))) for one in common_G_P_Q]
    labels = np.random.default_rng(np.random.SeedSequence(seed).spawn(2)[1])
    null_G_R_P = statistics.joint_null_accuracies(common_G_P_Q, labels, n_permutations)
    observed_2_1, null_2_R = (
        np.sum([statistics.persona_effect_statistics(one) for one in each], axis=0) for each in (observed_G_1_P, null_G_R_P)
    )
    return statistics.min_p(observed_2_1[:, 0], null_2_R)


class _PermutationTest(NamedTuple):
    """`null_R_P`: the personas' accuracies in every permutation; None without any score."""

    null_R_P: Array | None
    p: Estimate


def _permutation_test(mean_P_Q: Array, rng: np.random.Generator, n_permutations: int) -> _PermutationTest:
    """The permutation test of no persona effect, by `statistics.persona_effect_statistics`. p is None for one persona."""
    n = int((~np.isnan(mean_P_Q).all(axis=0)).sum())
    if not n:
        return _PermutationTest(None, Estimate(value=None, n=0))
    null_R_P = statistics.null_accuracies(mean_P_Q, rng, n_permutations)
    if len(mean_P_Q) < 2:
        return _PermutationTest(null_R_P, Estimate(value=None, n=n))
    accuracy_1_P = statistics.weighted_question_mean(mean_P_Q, np.ones((1, mean_P_Q.shape[1])))
    observed_2_1, null_2_R = map(statistics.persona_effect_statistics, (accuracy_1_P, null_R_P))
    return _PermutationTest(null_R_P, Estimate(value=statistics.min_p(observed_2_1[:, 0], null_2_R), n=n))


def _persona_summaries(
    ids: Sequence[str],
    mean_P_Q: Array,
    difference_P_Q: Array,
    bootstrapped: dict[str, BootstrapResult],
) -> tuple[PersonaSummary, ...]:
    """One summary per persona, in the order of `ids`."""
    p_P = np.array([statistics.sign_flip_p(difference_Q) for difference_Q in difference_P_Q])
    n_P, differences = (~np.isnan(mean_P_Q)).sum(axis=1).tolist(), bootstrapped["difference_P"]
    columns = zip(
        ids,
        _estimates(bootstrapped["accuracy_P"], n_P, statistics.bootstrap_share),
        map(statistics.bootstrap_paired, differences.value, differences.replicates.T, difference_P_Q),
        p_P.tolist(),
        statistics.holm_adjust(p_P).tolist(),
        n_P,
        strict=True,
    )
    return tuple(
        PersonaSummary(
            id=id,
            accuracy=accuracy,
            difference=difference,
            mcnemar_p=none_if_nan(p),
            holm_p=none_if_nan(holm_p),
            n=n,
        )
        for id, accuracy, difference, p, holm_p, n in columns
    )


def _drop_unscored_personas(mean_P_Q: Array) -> Array:
    """The rows of personas with at least one score; all rows if there is no score at all."""
    scored_P = ~np.isnan(mean_P_Q).all(axis=1)
    return mean_P_Q[scored_P] if scored_P.any() else mean_P_Q


def _interval_hull(one: Estimate, other: Estimate) -> Estimate:
    """`one` with an interval that contains both intervals.

    The bootstrap over questions is too narrow if one persona is far from the others, so the draws' interval is added.
    """
    if one.low is None or one.high is None or other.low is None or other.high is None:
        return one
    return one.model_copy(update={"low": min(one.low, other.low), "high": max(one.high, other.high)})


IntervalFunction = Callable[[float, Array, int], Estimate]


def _estimate(measure: BootstrapResult, n: int, interval: IntervalFunction = statistics.bootstrap_estimate) -> Estimate:
    return interval(float(measure.value), measure.replicates, n)


def _estimates(
    measure: BootstrapResult, n_N: Sequence[int], interval: IntervalFunction = statistics.bootstrap_estimate
) -> list[Estimate]:
    return [interval(v, replicate_R, n) for v, replicate_R, n in zip(measure.value, measure.replicates.T, n_N, strict=True)]


def _check_scores(scores: ArrayLike, ndim: int, name: str) -> Array:
    """The scores as floats. Raises ValueError naming the shape or the first bad value."""
    array = np.asarray(scores, dtype=float)
    if array.ndim != ndim or not array.size:
        raise ValueError(f"{name} has shape {array.shape}; it needs {ndim} axes, none of them empty")
    bad = np.argwhere(~np.isnan(array) & ~((array >= 0) & (array <= 1)))
    if len(bad):
        where = tuple(int(i) for i in bad[0])
        raise ValueError(f"{name}{list(where)} is {array[where]}; a score lies in [0, 1]; NaN means no score")
    return array


def _check_persona_ids(persona_ids: Sequence[str] | None, n_personas: int) -> Sequence[str]:
    ids = [str(p) for p in range(n_personas)] if persona_ids is None else persona_ids
    if len(ids) != n_personas:
        raise ValueError(f"persona_ids has {len(ids)} ids and correct_P_Q_S has {n_personas} personas")
    require_unique(ids, "persona")
    return ids
