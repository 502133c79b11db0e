"""What one model's accuracy does under personas, as one frozen record of estimates.

Its contract: `summarize_stability` takes scores by persona, question and sample (and the same questions asked without a
persona) and
answers with numbers, 95 % intervals over questions, and counts. It does no arithmetic of its own: each formula stands in
`permix.metrics.statistics`, each reading in docs/measures.md. A missing score stays missing: NaN cells are left out and
counted, and a
number that cannot be computed is None. The same input and seed give the same record.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from permix.metrics import posterior, statistics
from permix.metrics.statistics import Array, BootstrapResult
from permix.types import Estimate, Record, require_unique

CROSSFIT_SPLITS = 100  # random half splits behind pss_crossfit, the same ones in every resample

MAX_SPLIT_SCORES = 20_000_000  # scores in all splits together: a large grid needs fewer of them, never under a tenth

PERSONA_EFFECT_ALPHA = 0.05  # below this p the personas are told apart

BOOTSTRAP_BLOCK_FLOATS = 2_000_000  # floats in the largest array of one bootstrap block: 16 MB


class PersonaSummary(Record):
    """One persona. `difference` and its test use the questions scored both with and without the persona."""

    id: str
    accuracy: Estimate
    difference: Estimate
    mcnemar_p: float | None
    holm_p: float | None
    n: int


class StabilitySummary(Record):
    """Every measure of docs/measures.md. `Estimate.n` counts questions; n_scored and n_asked count persona cells.

    `pss`, `worst`, `best`, `spread` and `worst_minus_baseline` are those of the true accuracies, the noise taken off
    (`permix.metrics.posterior`); `pss_observed` is the plain ratio of these answers and has no interval. `lottery[k-1]` is the
    expected best accuracy of k personas. `pss_null` carries the 2.5 and 97.5 percentiles of its permutation distribution instead
    of an interval; `permutation_p` and `detectable` have none. `detectable` is the smallest difference
    of one persona to no persona that as many questions and personas show with 80 % power (`permix.metrics.statistics`);
    None without a baseline, or where not even 1 is shown.
    """

    pss: Estimate
    pss_observed: Estimate
    pss_null: Estimate
    pss_crossfit: Estimate
    worst: Estimate
    best: Estimate
    mean: Estimate
    baseline: Estimate
    mean_minus_baseline: Estimate
    worst_minus_baseline: Estimate
    spread: Estimate
    persona_sd: Estimate
    worst_per_question: Estimate
    permutation_p: Estimate
    minimum_detectable_effect: Estimate
    expected_best_of_k: tuple[Estimate, ...]
    personas: tuple[PersonaSummary, ...]
    n_scored: int
    n_asked: int
    n_questions: int
    n_personas: int


def summarize_stability(
    correct_P_Q_S: ArrayLike,
    baseline_Q_S: ArrayLike | None = None,
    *,
    persona_ids: Sequence[str] | None = None,
    seed: int = 0,
    resamples: int = 2000,
) -> StabilitySummary:
    """Measure how accuracy depends on the persona.

    `correct_P_Q_S` holds the score in [0, 1] of persona × question × sample, NaN where there is none; `baseline_Q_S` the same
    questions without a persona (its S may differ). Without `persona_ids` personas are called "0", "1", ... `resamples` is the
    number of bootstrap draws, of permutations and of sign flips.

    ValueError: an empty or misshapen array, a score outside [0, 1], ids that do not fit or repeat.
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
    draws, labels, signs = (np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(3))
    measured = _bootstrap_measures(mean_P_Q, baseline_Q, draws, resamples)
    compared_P_Q = _drop_unscored_personas(mean_P_Q)
    permuted = _permutation_test(compared_P_Q, labels, resamples)
    alike = permuted.p.value is None or permuted.p.value >= PERSONA_EFFECT_ALPHA
    extreme = posterior.posterior_estimates(compared_P_Q, baseline_Q, seed=seed, no_effect=alike)
    scored_Q = ~np.isnan(mean_P_Q).all(axis=0)
    n, n_baseline, n_both = (int(one.sum()) for one in (scored_Q, ~np.isnan(baseline_Q), scored_Q & ~np.isnan(baseline_Q)))
    seen = statistics.discordance(mean_P_Q, baseline_Q)
    return StabilitySummary(
        minimum_detectable_effect=Estimate(
            value=None if seen is None else statistics.minimum_detectable_effect(n_both, seen, P), n=n_both
        ),
        pss=extreme["pss"],
        pss_observed=Estimate(value=none_if_nan(float(measured["pss"].value)), n=n),
        pss_null=permuted.pss_null,
        pss_crossfit=_estimate(measured["pss_crossfit"], n),
        worst=extreme["worst"],
        best=extreme["best"],
        mean=_estimate(measured["mean"], n, statistics.bootstrap_share),
        baseline=_estimate(measured["baseline"], n_baseline, statistics.bootstrap_share),
        mean_minus_baseline=_estimate(measured["mean_minus_baseline"], n_both),
        worst_minus_baseline=extreme["worst_minus_baseline"],
        spread=extreme["spread"],
        persona_sd=_interval_hull(_estimate(measured["persona_sd"], n), extreme["persona_sd"]),
        worst_per_question=_estimate(measured["worst_per_question"], n, statistics.bootstrap_share),
        permutation_p=permuted.p,
        expected_best_of_k=tuple(
            _estimates(
                measured["expected_best_of_k"], [n] * measured["expected_best_of_k"].value.size, statistics.bootstrap_share
            )
        )
        if n
        else (),
        personas=_persona_summaries(ids, mean_P_Q, mean_P_Q - baseline_Q, measured, signs, resamples),
        n_scored=int((~np.isnan(correct)).sum()),
        n_asked=P * Q * S,
        n_questions=Q,
        n_personas=P,
    )


def stability_differences(first: Sequence[Array], other: Sequence[Array], seed: int, resamples: int) -> dict[str, Estimate]:
    """Other − first in "pss", "worst" and "mean" accuracy, each the mean over its grids (mean_P_Q of one model, or of a model's
    training seeds), over the personas that all have a score for; same draws of questions for all.

    Empty when there is no such persona.
    """
    both_P = np.all([~np.isnan(mean_P_Q).all(axis=1) for mean_P_Q in (*first, *other)], axis=0)
    Q = first[0].shape[1]

    def level(grids: Sequence[Array], counts_R_Q: Array) -> Array:
        each = [statistics.weighted_question_mean(mean_P_Q[both_P], counts_R_Q).mean(axis=1) for mean_P_Q in grids]
        return np.asarray(np.mean(each, axis=0))

    def measures(counts_R_Q: Array) -> dict[str, Array]:
        return {"mean": level(other, counts_R_Q) - level(first, counts_R_Q)}

    if not both_P.any():
        return {}
    mean = statistics.bootstrap(
        measures, Q, np.random.default_rng(seed), resamples, block_size=max(1, BOOTSTRAP_BLOCK_FLOATS // Q)
    )["mean"]
    one, two = ([(mean_P_Q[both_P], np.full(Q, np.nan)) for mean_P_Q in grids] for grids in (first, other))
    found = posterior.posterior_differences(one, two, seed=seed)
    return {"pss": found["pss"], "worst": found["worst"], "mean": _estimate(mean, Q)}


def _bootstrap_measures(
    mean_P_Q: Array, baseline_Q: Array, rng: np.random.Generator, resamples: int
) -> dict[str, BootstrapResult]:
    """Every measure, all on the same draws of questions."""
    P, Q = mean_P_Q.shape
    splits = n_crossfit_splits(P * Q)
    measures = build_measures(mean_P_Q, baseline_Q, statistics.random_half_splits(Q, splits, rng))
    return statistics.bootstrap(measures, Q, rng, resamples, block_size=max(1, BOOTSTRAP_BLOCK_FLOATS // (splits * max(P, Q))))


def n_crossfit_splits(n_scores: int) -> int:
    return max(CROSSFIT_SPLITS // 10, min(CROSSFIT_SPLITS, MAX_SPLIT_SCORES // n_scores))


def build_measures(mean_P_Q: Array, baseline_Q: Array, halves_K_Q: Array) -> Callable[[Array], dict[str, Array]]:
    """Every measure as a function of how often each question counts (counts_R_Q), as `stats.bootstrap` wants it."""
    compared_P_Q = _drop_unscored_personas(mean_P_Q)

    def measures(counts_R_Q: Array) -> dict[str, Array]:
        accuracy_R_P = statistics.weighted_question_mean(compared_P_Q, counts_R_Q)
        baseline_R = statistics.weighted_question_mean(baseline_Q[None], counts_R_Q)[:, 0]
        worst_R, best_R, mean_R = accuracy_R_P.min(axis=1), accuracy_R_P.max(axis=1), accuracy_R_P.mean(axis=1)
        return {
            "pss": statistics.pss(accuracy_R_P),
            "pss_crossfit": statistics.pss_crossfit(compared_P_Q, halves_K_Q, counts_R_Q),
            "worst": worst_R,
            "best": best_R,
            "mean": mean_R,
            "baseline": baseline_R,
            "mean_minus_baseline": mean_R - baseline_R,
            "worst_minus_baseline": worst_R - baseline_R,
            "spread": best_R - worst_R,
            "persona_sd": statistics.persona_sd(compared_P_Q, counts_R_Q),
            "worst_per_question": statistics.worst_per_question(compared_P_Q, counts_R_Q),
            "expected_best_of_k": statistics.expected_best_of_k(accuracy_R_P),
            "accuracy": statistics.weighted_question_mean(mean_P_Q, counts_R_Q),
            "difference": statistics.weighted_question_mean(mean_P_Q - baseline_Q, counts_R_Q),
        }

    return measures


def persona_effect_p(mean_P_Q: Array, seed: int, n_permutations: int) -> float | None:
    """p of the test that `summarize_stability` makes of the same scores and seed: that personas do nothing."""
    labels = np.random.default_rng(np.random.SeedSequence(seed).spawn(3)[1])
    return _permutation_test(_drop_unscored_personas(mean_P_Q), labels, n_permutations).p.value


class _PermutationTest(NamedTuple):
    pss_null: Estimate
    p: Estimate


def _permutation_test(mean_P_Q: Array, rng: np.random.Generator, n_permutations: int) -> _PermutationTest:
    """PSS if personas did nothing, and the test that they do; its statistic is the variance of A_p. p is None for one persona."""
    n = int((~np.isnan(mean_P_Q).all(axis=0)).sum())
    if not n:
        return _PermutationTest(Estimate(value=None, n=0), Estimate(value=None, n=0))
    null_R_P = statistics.null_accuracies(mean_P_Q, rng, n_permutations)
    pss_R = statistics.pss(np.clip(null_R_P, 0.0, 1.0))
    low, high = np.quantile(pss_R, (0.025, 0.975))
    variance = statistics.weighted_question_mean(mean_P_Q, np.ones((1, mean_P_Q.shape[1]))).var()
    p = statistics.permutation_p(float(variance), null_R_P.var(axis=1)) if len(mean_P_Q) > 1 else None
    null = Estimate(value=float(pss_R.mean()), low=float(low), high=float(high), n=n)
    return _PermutationTest(null, Estimate(value=p, n=n))


def _persona_summaries(
    ids: Sequence[str],
    mean_P_Q: Array,
    difference_P_Q: Array,
    bootstrapped: dict[str, BootstrapResult],
    rng: np.random.Generator,
    n_flips: int,
) -> tuple[PersonaSummary, ...]:
    """The per-persona table, in the order given."""
    p_P = np.array([statistics.sign_flip_p(difference_Q, rng, n_flips) for difference_Q in difference_P_Q])
    n_P, paired_P = (~np.isnan(mean_P_Q)).sum(axis=1).tolist(), (~np.isnan(difference_P_Q)).sum(axis=1).tolist()
    columns = zip(
        ids,
        _estimates(bootstrapped["accuracy"], n_P, statistics.bootstrap_share),
        _estimates(bootstrapped["difference"], paired_P),
        p_P.tolist(),
        statistics.holm_adjust(p_P).tolist(),
        n_P,
        strict=True,
    )
    return tuple(
        PersonaSummary(id=id, accuracy=accuracy, difference=difference, mcnemar_p=none_if_nan(p), holm_p=none_if_nan(holm_p), n=n)
        for id, accuracy, difference, p, holm_p, n in columns
    )


def _drop_unscored_personas(mean_P_Q: Array) -> Array:
    """The rows that can be compared: personas with at least one score; all rows when there is no score at all."""
    scored_P = ~np.isnan(mean_P_Q).all(axis=1)
    return mean_P_Q[scored_P] if scored_P.any() else mean_P_Q


def _interval_hull(one: Estimate, other: Estimate) -> Estimate:
    """`one`, with an interval that holds both: resampling questions cannot tell how one persona far from the rest got there."""
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


def none_if_nan(p: float) -> float | None:
    """NaN becomes None."""
    return None if np.isnan(p) else p


def _check_scores(scores: ArrayLike, ndim: int, name: str) -> Array:
    """The scores as floats; ValueError naming the shape or the first bad value."""
    array = np.asarray(scores, dtype=float)
    if array.ndim != ndim or not array.size:
        raise ValueError(f"{name} has shape {array.shape}; it needs {ndim} axes, none of them empty")
    bad = np.argwhere(~np.isnan(array) & ~((array >= 0) & (array <= 1)))
    if len(bad):
        where = tuple(int(i) for i in bad[0])
        raise ValueError(f"{name}{list(where)} is {array[where]}; a score is in [0, 1], or NaN where there is none")
    return array


def _check_persona_ids(persona_ids: Sequence[str] | None, n_personas: int) -> Sequence[str]:
    ids = [str(p) for p in range(n_personas)] if persona_ids is None else persona_ids
    if len(ids) != n_personas:
        raise ValueError(f"persona_ids has {len(ids)} ids and correct_P_Q_S has {n_personas} personas")
    require_unique(ids, "persona")
    return ids
