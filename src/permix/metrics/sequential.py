"""Sequential allocation: cells are spent where they decide who is worst, who is best, and by how much.

In the opening round every persona is asked. After it, round by round, the next questions are put to no persona and to those alone
that may yet be the worst or the best, by draws of what the true accuracies may be (`permix.metrics.posterior`). It ends
when PSS is
known as closely as was asked, when the budget is spent, or with the last question.

Its contract: pure functions of scores and rounds. Questions stand in an order drawn beforehand and no question is gone back to,
so whom a question was put to depends on other questions alone. That is what makes the numbers hold:

- worst, best and what is made of them come from draws given all answers, to which it is the same why the others are missing;
- the test of any persona effect joins the opening's permutation test and a martingale of the later rounds, by Fisher's method;
- what needs a whole grid (the mean over personas, PSS as observed and its null, the cross-fit, each question's worst persona) is
  that of the opening: where personas fall into two camps, draws take the fall of the opening's lucky ones for harder questions.

The values chosen below were settled on simulated grids; `bench/adaptive.py` measures them on others.
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
    none_if_nan,
    persona_effect_p,
    summarize_stability,
)
from permix.metrics.statistics import Array
from permix.types import Estimate, Record

FIRST_ROUND_QUESTIONS, LATER_ROUND_QUESTIONS = 30, 30
"""Questions of the first round, and of each later one."""

CONTENDER_COVERAGE, MAX_CONTENDERS = 0.9, 4
"""The likeliest worst personas are asked until they hold this share of the draws, at most so many; and so the best."""

SIGN_FLIP_STREAM = 4
"""The stream of random numbers of sign flips; `permix.metrics.posterior` has the others."""


class Round(Record):
    """The questions up to this one (counted from the first of the run) were put to these personas, and to none."""

    until: int
    personas: tuple[str, ...]


class StoppingRule(NamedTuple):
    """When to end. `budget` counts cells, `precision` is half the width of PSS's interval; None sets no such end."""

    budget: int | None
    precision: float | None


class SequentialProgress(NamedTuple):
    """Where a run stands: PSS as it would be reported, and who may be worst or best."""

    pss: Estimate
    contenders: tuple[str, ...]


def count_round_cells(this_round: Round, questions_before: int, n_samples: int) -> int:
    """How many cells a round asks, `before` being the questions of the rounds before it."""
    return (this_round.until - questions_before) * (len(this_round.personas) + 1) * n_samples


def count_cells(rounds: Sequence[Round], n_samples: int) -> int:
    starts = [0, *(one.until for one in rounds)]
    return sum(count_round_cells(one, before, n_samples) for one, before in zip(rounds, starts, strict=False))


def first_round(persona_ids: Sequence[str], n_questions: int) -> Round:
    return Round(until=min(FIRST_ROUND_QUESTIONS, n_questions), personas=tuple(persona_ids))


def next_round(
    rounds: Sequence[Round], current: SequentialProgress, stopping_rule: StoppingRule, *, n_questions: int, n_samples: int
) -> Round | None:
    """The next round; None when it is enough."""
    done = rounds[-1].until
    if done >= n_questions or (stopping_rule.precision is not None and _half_width(current.pss) <= stopping_rule.precision):
        return None
    more = min(LATER_ROUND_QUESTIONS, n_questions - done)
    if stopping_rule.budget is not None:
        more = min(more, (stopping_rule.budget - count_cells(rounds, n_samples)) // ((len(current.contenders) + 1) * n_samples))
    return Round(until=done + more, personas=current.contenders) if more > 0 else None


def _half_width(estimate: Estimate) -> float:
    return float("inf") if estimate.low is None or estimate.high is None else (estimate.high - estimate.low) / 2


class SequentialResult(NamedTuple):
    """What the answers of some rounds say: the draws (None where nothing can be drawn), of whom, and the test of any effect."""

    draws: PosteriorDraws | None
    persona_ids: tuple[str, ...]
    p: float | None

    @property
    def no_effect(self) -> bool:
        return self.p is None or self.p >= PERSONA_EFFECT_ALPHA


def measure_rounds(
    mean_P_Q: Array, baseline_Q: Array, rounds: Sequence[Round], persona_ids: Sequence[str], *, seed: int, resamples: int
) -> SequentialResult:
    """After these rounds; axis Q holds their questions. Personas without any score are left out."""
    scored_P = np.flatnonzero(~np.isnan(mean_P_Q).all(axis=1))
    if not scored_P.size:
        return SequentialResult(None, (), None)
    mean_P_Q, ends = mean_P_Q[scored_P], [one.until for one in rounds]
    p = fisher_combined_p(persona_effect_p(mean_P_Q[:, : ends[0]], seed, resamples), later_rounds_p(mean_P_Q, ends))
    drawn = posterior.sample_posterior(mean_P_Q, baseline_Q, seed=seed, missing_by_design=True)
    return SequentialResult(drawn, tuple(persona_ids[int(place)] for place in scored_P), p)


def sequential_progress(result: SequentialResult, persona_ids: Sequence[str]) -> SequentialProgress:
    """Everyone is a contender while nothing can be drawn."""
    if result.draws is None:
        return SequentialProgress(Estimate(value=None, n=0), tuple(persona_ids))
    pss = posterior.estimates_from_draws(result.draws, no_effect=result.no_effect)["pss"]
    return SequentialProgress(pss, tuple(result.persona_ids[place] for place in contenders(result.draws.horseshoe[0])))


def contenders(accuracy_R_P: Array) -> list[int]:
    """Who may yet be the worst or the best, in the order of personas."""
    ends = (accuracy_R_P.argmin(axis=1), accuracy_R_P.argmax(axis=1))
    return sorted({place for end_R in ends for place in _likeliest(np.bincount(end_R, minlength=accuracy_R_P.shape[1]))})


def _likeliest(times_P: NDArray[np.intp]) -> list[int]:
    order_P = np.argsort(-times_P, kind="stable")
    needed = int(np.searchsorted(times_P[order_P].cumsum(), CONTENDER_COVERAGE * times_P.sum())) + 1
    return [int(place) for place in order_P[: min(needed, MAX_CONTENDERS)]]


def later_rounds_p(mean_P_Q: Array, round_ends: Sequence[int]) -> float | None:
    """One-sided p of "personas do as they did before", over the rounds after the first; None where there is nothing to test.

    Round by round, with a_p a persona's accuracy in the rounds before, t_q = Σ_p (a_p − a.) x_pq over who was asked q. Did
    personas not matter, x_pq could stand in any order among these, and t_q would have mean 0 and variance
    Σ (a_p − a.)² Σ (x_pq − x_.q)² / (k − 1), whatever came before: Σ t_q / √Σ var is then standard normal.
    """
    total = variance = 0.0
    for before, until in pairwise(round_ends):
        asked_P = ~np.isnan(mean_P_Q[:, before:until]).all(axis=1)
        earlier_P = statistics.mean_over_samples(mean_P_Q[asked_P, :before])
        for score_K in mean_P_Q[asked_P, before:until].T:
            both_K = ~np.isnan(score_K) & ~np.isnan(earlier_P)
            if (k := int(both_K.sum())) > 1:
                lead_K, rest_K = (one[both_K] - one[both_K].mean() for one in (earlier_P, score_K))
                total += float(lead_K @ rest_K)
                variance += float((lead_K @ lead_K) * (rest_K @ rest_K)) / (k - 1)
    return float(ndtr(-total / np.sqrt(variance))) if variance > 0 else None


def fisher_combined_p(p_first: float | None, p_later: float | None) -> float | None:
    """Fisher's: −2 (ln p₁ + ln p₂) is χ² with 4 degrees of freedom. `p_later` must be a p whatever `p_first` rests on."""
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
    """As `summarize_stability`, of cells that were asked in these rounds. Axis Q holds their questions, NaN where nothing
    was asked.

    Accuracies of personas, their differences and the lottery are medians and 95 % intervals of the draws too; a persona's exact
    test is on the questions that it and no persona have a score for.
    """
    correct, baseline = np.asarray(correct_P_Q_S, dtype=float), np.asarray(baseline_Q_S, dtype=float)
    opened = rounds[0].until
    whole = summarize_stability(correct[:, :opened], baseline[:opened], persona_ids=persona_ids, seed=seed, resamples=resamples)
    mean_P_Q, baseline_Q = statistics.mean_over_samples(correct), statistics.mean_over_samples(baseline)
    found = measure_rounds(mean_P_Q, baseline_Q, rounds, persona_ids, seed=seed, resamples=resamples)
    n = int((~np.isnan(mean_P_Q)).any(axis=0).sum())
    counts: dict[str, object] = {
        "n_questions": correct.shape[1], "n_scored": int((~np.isnan(correct)).sum()),
        "n_asked": count_cells(rounds, correct.shape[2]) - rounds[-1].until * correct.shape[2],
        "permutation_p": Estimate(value=found.p, n=n),
    }  # fmt: skip
    measures = whole.measures | {"baseline": statistics.bootstrap_mean(baseline_Q, seed, resamples, statistics.bootstrap_share)}
    if found.draws is None:
        return whole.model_copy(update=counts | {"measures": measures})
    accuracy_R_P, _ = found.draws.horseshoe
    return whole.model_copy(
        update=counts
        | {
            "measures": measures | posterior.estimates_from_draws(found.draws, no_effect=found.no_effect),
            "expected_best_of_k": tuple(
                posterior.summarize_draws(best_R, n) for best_R in statistics.expected_best_of_k(accuracy_R_P).T
            ),
            "personas": _persona_summaries(whole, found, mean_P_Q, mean_P_Q - baseline_Q, seed, resamples),
        }
    )


def _persona_summaries(
    first_round_summary: StabilitySummary,
    result: SequentialResult,
    mean_P_Q: Array,
    difference_P_Q: Array,
    seed: int,
    n_flips: int,
) -> tuple[PersonaSummary, ...]:
    assert result.draws is not None
    accuracy_R_P, without_R = result.draws.horseshoe
    signs = np.random.default_rng([seed, SIGN_FLIP_STREAM])
    p_P = np.array([statistics.sign_flip_p(difference_Q, signs, n_flips) for difference_Q in difference_P_Q])
    holm_P, n_P, both_P = statistics.holm_adjust(p_P), (~np.isnan(mean_P_Q)).sum(axis=1), (~np.isnan(difference_P_Q)).sum(axis=1)
    rows = []
    for place, one in enumerate(first_round_summary.personas):
        update: dict[str, object] = {
            "mcnemar_p": none_if_nan(p_P[place]),
            "holm_p": none_if_nan(holm_P[place]),
            "n": int(n_P[place]),
        }
        if one.id in result.persona_ids:
            true_R = accuracy_R_P[:, result.persona_ids.index(one.id)]
            update["accuracy"] = posterior.summarize_draws(true_R, int(n_P[place]))
            update["difference"] = posterior.summarize_draws(true_R - without_R, int(both_P[place]))
        rows.append(one.model_copy(update=update))
    return tuple(rows)
