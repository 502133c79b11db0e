"""Sequential allocation: spend cells on the personas that may be the worst or the best.

The first round asks every persona. Each later round asks the next questions without persona and under the contenders alone: the
personas that are worst or best in many posterior draws of the true accuracies (`permix.metrics.posterior`). Rounds end when the
interval of PSS is as narrow as requested, when the budget is spent, or with the last question.

Contract: pure functions of scores and rounds. Questions come in an order drawn beforehand, and a later round never returns to
earlier questions, so the choice of personas for a question depends on answers to other questions alone. Therefore:

- worst, best and measures of them come from the posterior given all answers, which ignores why the other cells are missing;
- the test of any persona effect combines, by Fisher's method, the first round's permutation test and a martingale test of the
  later rounds;
- measures that need a complete grid (mean over personas, observed PSS and its null, cross-fit, each question's worst persona) are
  those of the first round. Draws would bias them: where personas form two clusters, personas that were lucky in the first round
  fall back to their mean later, which looks like harder questions.

The constants were chosen on simulated grids; `bench/adaptive.py` measures them on others.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import chdtrc, ndtr

from permix.metrics import posterior, statistics
from permix.metrics.posterior import PosteriorDraws
from permix.metrics.stability import (
    PERSONA_EFFECT_ALPHA,
    PersonaSummary,
    StabilitySummary,
    persona_effect_p,
    summarize_stability,
)
from permix.metrics.statistics import Array, none_if_nan
from permix.types import Estimate, Record

FIRST_ROUND_QUESTIONS, LATER_ROUND_QUESTIONS = 30, 30
"""Questions of the first round, and of each later one."""

CONTENDER_COVERAGE, MAX_CONTENDERS = 0.9, 4
"""Contenders for worst are the most frequent worst personas that together cover this share of the draws, but at most this number;
the same for best."""


class Round(Record):
    """The questions after the previous round up to number `until` of the run, asked under these personas and without persona."""

    until: int
    personas: tuple[str, ...]


class StoppingRule(NamedTuple):
    """When to stop: `budget` in cells, `precision` as half the width of the interval of PSS. None is no limit."""

    budget: int | None
    precision: float | None


class SequentialProgress(NamedTuple):
    """PSS as it would be reported now, and the ids of the personas that may be worst or best."""

    pss: Estimate
    contenders: tuple[str, ...]


def count_round_cells(this_round: Round, questions_before: int, n_samples: int) -> int:
    """Number of cells of a round; `questions_before` is `until` of the round before it, 0 for the first."""
    return (this_round.until - questions_before) * (len(this_round.personas) + 1) * n_samples


def count_cells(rounds: Sequence[Round], n_samples: int) -> int:
    """Number of cells of all rounds, cells without persona included."""
    starts = [0, *(one.until for one in rounds)]
    return sum(count_round_cells(one, before, n_samples) for one, before in zip(rounds, starts, strict=False))


def first_round(persona_ids: Sequence[str], n_questions: int) -> Round:
    return Round(until=min(FIRST_ROUND_QUESTIONS, n_questions), personas=tuple(persona_ids))


def next_round(
    rounds: Sequence[Round], current: SequentialProgress, stopping_rule: StoppingRule, *, n_questions: int, n_samples: int
) -> Round | None:
    """The next round; None when the precision is reached, the budget allows no further question, or all questions were asked."""
    n_done = rounds[-1].until
    if n_done >= n_questions or (stopping_rule.precision is not None and _half_width(current.pss) <= stopping_rule.precision):
        return None
    n_more = min(LATER_ROUND_QUESTIONS, n_questions - n_done)
    if stopping_rule.budget is not None:
        n_more = min(
            n_more, (stopping_rule.budget - count_cells(rounds, n_samples)) // ((len(current.contenders) + 1) * n_samples)
        )
    return Round(until=n_done + n_more, personas=current.contenders) if n_more > 0 else None


def _half_width(estimate: Estimate) -> float:
    return float("inf") if estimate.low is None or estimate.high is None else (estimate.high - estimate.low) / 2


class SequentialResult(NamedTuple):
    """The draws (None if nothing can be drawn), the ids of their personas, and p of the test of any persona effect."""

    draws: PosteriorDraws | None
    persona_ids: tuple[str, ...]
    p: float | None

    @property
    def no_effect(self) -> bool:
        return self.p is None or self.p >= PERSONA_EFFECT_ALPHA


def measure_rounds(
    mean_P_Q: Array, baseline_Q: Array, rounds: Sequence[Round], persona_ids: Sequence[str], *, seed: int, resamples: int
) -> SequentialResult:
    """The result after these rounds; axis Q holds their questions in order. Personas without any score are left out."""
    scored_P = np.flatnonzero(~np.isnan(mean_P_Q).all(axis=1))
    if not scored_P.size:
        return SequentialResult(None, (), None)
    mean_P_Q, ends = mean_P_Q[scored_P], [one.until for one in rounds]
    # A permutation test of all rounds would be invalid: shuffled first scores would have led to other personas in later rounds.
    p = fisher_combined_p(persona_effect_p(mean_P_Q[:, : ends[0]], seed, resamples), later_rounds_p(mean_P_Q, ends))
    draws = posterior.sample_posterior(mean_P_Q, baseline_Q, seed=seed, missing_by_design=True)
    return SequentialResult(draws, tuple(persona_ids[int(place)] for place in scored_P), p)


def sequential_progress(result: SequentialResult, persona_ids: Sequence[str]) -> SequentialProgress:
    """PSS and contenders of a result; all personas are contenders if nothing can be drawn."""
    if result.draws is None:
        return SequentialProgress(Estimate(value=None, n=0), tuple(persona_ids))
    pss = posterior.estimates_from_draws(result.draws, no_effect=result.no_effect)["pss"]
    return SequentialProgress(pss, tuple(result.persona_ids[place] for place in contenders(result.draws.horseshoe[0])))


def contenders(accuracy_R_P: Array) -> list[int]:
    """Indices, ascending, of the personas that may be the worst or the best (see `CONTENDER_COVERAGE`)."""
    extremes = (accuracy_R_P.argmin(axis=1), accuracy_R_P.argmax(axis=1))
    return sorted({index for index_R in extremes for index in _likeliest(np.bincount(index_R, minlength=accuracy_R_P.shape[1]))})


def _likeliest(count_P: NDArray[np.intp]) -> list[int]:
    order_P = np.argsort(-count_P, kind="stable")
    needed = int(np.searchsorted(count_P[order_P].cumsum(), CONTENDER_COVERAGE * count_P.sum())) + 1
    return [int(index) for index in order_P[: min(needed, MAX_CONTENDERS)]]


def later_rounds_p(mean_P_Q: Array, round_ends: Sequence[int]) -> float | None:
    """One-sided p of no persona effect: do personas that were ahead in earlier rounds stay ahead? None without later scores.

    In each round, with a_p a persona's accuracy in the rounds before: t_q = Σ_p (a_p − a.) x_pq over the k personas asked q.
    Without a persona effect the x_pq of a question are exchangeable, so that given the past t_q has mean 0 and variance
    Σ (a_p − a.)² Σ (x_pq − x_.q)² / (k − 1); by the martingale central limit theorem Σ t_q / √Σ var is standard normal.
    """
    total = variance = 0.0
    for before, until in pairwise(round_ends):
        asked_P = ~np.isnan(mean_P_Q[:, before:until]).all(axis=1)
        # The weights use earlier rounds only: with this round's own scores t_q would not have mean 0.
        earlier_P = statistics.mean_over_samples(mean_P_Q[asked_P, :before])
        for score_K in mean_P_Q[asked_P, before:until].T:
            scored_K = ~np.isnan(score_K) & ~np.isnan(earlier_P)
            if (k := int(scored_K.sum())) > 1:
                earlier_K, now_K = (one[scored_K] - one[scored_K].mean() for one in (earlier_P, score_K))
                total += float(earlier_K @ now_K)
                variance += float((earlier_K @ earlier_K) * (now_K @ now_K)) / (k - 1)
    return float(ndtr(-total / np.sqrt(variance))) if variance > 0 else None


def fisher_combined_p(p_first: float | None, p_later: float | None) -> float | None:
    """Fisher's combined p: −2 (ln p₁ + ln p₂) is χ² with 4 degrees of freedom. `p_first` where one of the two is None.

    `p_later` must be valid whatever the data of `p_first` are. Source: Fisher (1932), Statistical Methods for Research Workers.
    """
    if p_first is None or p_later is None:
        return p_first
    return float(chdtrc(4, -2 * (np.log(p_first) + np.log(max(p_later, 1e-300)))))


def summarize_rounds(
    correct_P_Q_S: ArrayLike,
    baseline_Q_S: ArrayLike,
    rounds: Sequence[Round],
    persona_ids: Sequence[str],
    *,
    seed: int = 0,
    resamples: int = 2000,
) -> StabilitySummary:
    """`summarize_stability` for cells asked in rounds. Axis Q holds the questions of all rounds, NaN where a cell was not asked.

    The personas' accuracies, their differences to the baseline and the expected best of k are medians and 95 % intervals of the
    draws; a persona's exact test uses the questions with a score of it and of the baseline.
    """
    correct, baseline = np.asarray(correct_P_Q_S, dtype=float), np.asarray(baseline_Q_S, dtype=float)
    n_first = rounds[0].until
    first_round_summary = summarize_stability(
        correct[:, :n_first], baseline[:n_first], persona_ids=persona_ids, seed=seed, resamples=resamples
    )
    mean_P_Q, baseline_Q = statistics.mean_over_samples(correct), statistics.mean_over_samples(baseline)
    result = measure_rounds(mean_P_Q, baseline_Q, rounds, persona_ids, seed=seed, resamples=resamples)
    n = int((~np.isnan(mean_P_Q)).any(axis=0).sum())
    counts: dict[str, object] = {
        "n_questions": correct.shape[1], "n_scored": int((~np.isnan(correct)).sum()),
        "n_asked": count_cells(rounds, correct.shape[2]) - rounds[-1].until * correct.shape[2],
        "permutation_p": Estimate(value=result.p, n=n),
    }  # fmt: skip
    measures = first_round_summary.measures | {
        "baseline": statistics.bootstrap_mean(baseline_Q, seed, resamples, statistics.bootstrap_share)
    }
    if result.draws is None:
        return first_round_summary.model_copy(update=counts | {"measures": measures})
    accuracy_R_P, _ = result.draws.horseshoe
    measures |= posterior.estimates_from_draws(result.draws, no_effect=result.no_effect)
    if (mean := measures["mean"].value) is not None:  # that of the first round, which the table shows
        measures |= posterior.limit_extremes(measures, mean)
    return first_round_summary.model_copy(
        update=counts
        | {
            "measures": measures,
            "expected_best_of_k": tuple(
                posterior.summarize_draws(best_R, n) for best_R in statistics.expected_best_of_k(accuracy_R_P).T
            ),
            "personas": _persona_summaries(first_round_summary, result, mean_P_Q, mean_P_Q - baseline_Q),
        }
    )


def _persona_summaries(
    first_round_summary: StabilitySummary,
    result: SequentialResult,
    mean_P_Q: Array,
    difference_P_Q: Array,
) -> tuple[PersonaSummary, ...]:
    assert result.draws is not None
    accuracy_R_P, without_R = result.draws.horseshoe
    p_P = np.array([statistics.sign_flip_p(difference_Q) for difference_Q in difference_P_Q])
    holm_P, n_P, both_P = statistics.holm_adjust(p_P), (~np.isnan(mean_P_Q)).sum(axis=1), (~np.isnan(difference_P_Q)).sum(axis=1)
    rows = []
    for p, one in enumerate(first_round_summary.personas):
        update: dict[str, object] = {
            "mcnemar_p": none_if_nan(p_P[p]),
            "holm_p": none_if_nan(holm_P[p]),
            "n": int(n_P[p]),
        }
        if one.id in result.persona_ids:
            true_R = accuracy_R_P[:, result.persona_ids.index(one.id)]
            update["accuracy"] = posterior.summarize_draws(true_R, int(n_P[p]))
            update["difference"] = posterior.summarize_draws(true_R - without_R, int(both_P[p]))
        rows.append(one.model_copy(update=update))
    return tuple(rows)
