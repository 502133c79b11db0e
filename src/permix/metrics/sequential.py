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
from permix.metrics.posterior import Drawn
from permix.metrics.stability import ALPHA, PersonaSummary, StabilitySummary, alike_p, known, summarize
from permix.metrics.statistics import Array
from permix.types import Estimate, Record

OPENING, ROUND = 30, 30
"""Questions of the first round, and of each later one."""

COVER, MOST = 0.9, 4
"""The likeliest worst personas are asked until they hold this share of the draws, at most so many; and so the best."""

SIGNS = 4
"""The stream of random numbers of sign flips; `permix.metrics.posterior` has the others."""


class Round(Record):
    """The questions up to this one (counted from the first of the run) were put to these personas, and to none."""

    until: int
    personas: tuple[str, ...]


class Limits(NamedTuple):
    """When to end. `budget` counts cells, `precision` is half the width of PSS's interval; None sets no such end."""

    budget: int | None
    precision: float | None


class Progress(NamedTuple):
    """Where a run stands: PSS as it would be reported, and who may be worst or best."""

    pss: Estimate
    contenders: tuple[str, ...]


def cells_of(one: Round, before: int, samples: int) -> int:
    """How many cells a round asks, `before` being the questions of the rounds before it."""
    return (one.until - before) * (len(one.personas) + 1) * samples


def spent(rounds: Sequence[Round], samples: int) -> int:
    starts = [0, *(one.until for one in rounds)]
    return sum(cells_of(one, before, samples) for one, before in zip(rounds, starts, strict=False))


def opening(persona_ids: Sequence[str], questions: int) -> Round:
    return Round(until=min(OPENING, questions), personas=tuple(persona_ids))


def following(rounds: Sequence[Round], found: Progress, limits: Limits, *, questions: int, samples: int) -> Round | None:
    """The next round; None when it is enough."""
    done = rounds[-1].until
    if done >= questions or (limits.precision is not None and _half_width(found.pss) <= limits.precision):
        return None
    more = min(ROUND, questions - done)
    if limits.budget is not None:
        more = min(more, (limits.budget - spent(rounds, samples)) // ((len(found.contenders) + 1) * samples))
    return Round(until=done + more, personas=found.contenders) if more > 0 else None


def _half_width(one: Estimate) -> float:
    return float("inf") if one.low is None or one.high is None else (one.high - one.low) / 2


class Measured(NamedTuple):
    """What the answers of some rounds say: the draws (None where nothing can be drawn), of whom, and the test of any effect."""

    drawn: Drawn | None
    persona_ids: tuple[str, ...]
    p: float | None

    @property
    def alike(self) -> bool:
        return self.p is None or self.p >= ALPHA


def measured(
    mean_P_Q: Array, baseline_Q: Array, rounds: Sequence[Round], persona_ids: Sequence[str], *, seed: int, resamples: int
) -> Measured:
    """After these rounds; axis Q holds their questions. Personas without any score are left out."""
    scored_P = np.flatnonzero(~np.isnan(mean_P_Q).all(axis=1))
    if not scored_P.size:
        return Measured(None, (), None)
    mean_P_Q, ends = mean_P_Q[scored_P], [one.until for one in rounds]
    p = joint_p(alike_p(mean_P_Q[:, : ends[0]], seed, resamples), later_p(mean_P_Q, ends))
    drawn = posterior.drawn(mean_P_Q, baseline_Q, seed=seed, by_design=True)
    return Measured(drawn, tuple(persona_ids[int(place)] for place in scored_P), p)


def progress(found: Measured, persona_ids: Sequence[str]) -> Progress:
    """Everyone is a contender while nothing can be drawn."""
    if found.drawn is None:
        return Progress(Estimate(value=None, n=0), tuple(persona_ids))
    pss = posterior.read(found.drawn, alike=found.alike)["pss"]
    return Progress(pss, tuple(found.persona_ids[place] for place in contenders(found.drawn.apart[0])))


def contenders(accuracy_R_P: Array) -> list[int]:
    """Who may yet be the worst or the best, in the order of personas."""
    ends = (accuracy_R_P.argmin(axis=1), accuracy_R_P.argmax(axis=1))
    return sorted({place for end_R in ends for place in _likeliest(np.bincount(end_R, minlength=accuracy_R_P.shape[1]))})


def _likeliest(times_P: NDArray[np.intp]) -> list[int]:
    order_P = np.argsort(-times_P, kind="stable")
    needed = int(np.searchsorted(times_P[order_P].cumsum(), COVER * times_P.sum())) + 1
    return [int(place) for place in order_P[: min(needed, MOST)]]


def later_p(mean_P_Q: Array, ends: Sequence[int]) -> float | None:
    """One-sided p of "personas do as they did before", over the rounds after the first; None where there is nothing to test.

    Round by round, with a_p a persona's accuracy in the rounds before, t_q = Σ_p (a_p − a.) x_pq over who was asked q. Did
    personas not matter, x_pq could stand in any order among these, and t_q would have mean 0 and variance
    Σ (a_p − a.)² Σ (x_pq − x_.q)² / (k − 1), whatever came before: Σ t_q / √Σ var is then standard normal.
    """
    total = variance = 0.0
    for before, until in pairwise(ends):
        asked_P = ~np.isnan(mean_P_Q[:, before:until]).all(axis=1)
        earlier_P = statistics.sample_mean(mean_P_Q[asked_P, :before])
        for score_K in mean_P_Q[asked_P, before:until].T:
            both_K = ~np.isnan(score_K) & ~np.isnan(earlier_P)
            if (k := int(both_K.sum())) > 1:
                lead_K, rest_K = (one[both_K] - one[both_K].mean() for one in (earlier_P, score_K))
                total += float(lead_K @ rest_K)
                variance += float((lead_K @ lead_K) * (rest_K @ rest_K)) / (k - 1)
    return float(ndtr(-total / np.sqrt(variance))) if variance > 0 else None


def joint_p(first: float | None, later: float | None) -> float | None:
    """Fisher's: −2 (ln p₁ + ln p₂) is χ² with 4 degrees of freedom. `later` must be a p whatever `first` rests on."""
    if first is None or later is None:
        return first
    return float(chdtrc(4, -2 * (np.log(first) + np.log(max(later, 1e-300)))))


def summarize_rounds(
    correct_P_Q_S: ArrayLike,
    baseline_Q_S: ArrayLike,
    rounds: Sequence[Round],
    persona_ids: Sequence[str],
    *,
    seed: int = 0,
    resamples: int = 2000,
) -> StabilitySummary:
    """As `summarize`, of cells that were asked in these rounds. Axis Q holds their questions, NaN where nothing was asked.

    Accuracies of personas, their differences and the lottery are medians and 95 % intervals of the draws too; a persona's exact
    test is on the questions that it and no persona have a score for.
    """
    correct, baseline = np.asarray(correct_P_Q_S, dtype=float), np.asarray(baseline_Q_S, dtype=float)
    opened = rounds[0].until
    whole = summarize(correct[:, :opened], baseline[:opened], persona_ids=persona_ids, seed=seed, resamples=resamples)
    mean_P_Q, baseline_Q = statistics.sample_mean(correct), statistics.sample_mean(baseline)
    found = measured(mean_P_Q, baseline_Q, rounds, persona_ids, seed=seed, resamples=resamples)
    n = int((~np.isnan(mean_P_Q)).any(axis=0).sum())
    counts: dict[str, object] = {
        "n_questions": correct.shape[1], "n_scored": int((~np.isnan(correct)).sum()),
        "n_asked": spent(rounds, correct.shape[2]) - rounds[-1].until * correct.shape[2],
        "baseline": statistics.bootstrap_mean(baseline_Q, seed, resamples, statistics.share),
        "permutation_p": Estimate(value=found.p, n=n),
    }  # fmt: skip
    if found.drawn is None:
        return whole.model_copy(update=counts)
    accuracy_R_P, _ = found.drawn.apart
    return whole.model_copy(
        update=counts
        | posterior.read(found.drawn, alike=found.alike)
        | {
            "lottery": tuple(posterior.of_draws(best_R, n) for best_R in statistics.expected_best_of_k(accuracy_R_P).T),
            "personas": _personas(whole, found, mean_P_Q, mean_P_Q - baseline_Q, seed, resamples),
        }
    )


def _personas(
    whole: StabilitySummary, found: Measured, mean_P_Q: Array, difference_P_Q: Array, seed: int, flips: int
) -> tuple[PersonaSummary, ...]:
    assert found.drawn is not None
    accuracy_R_P, without_R = found.drawn.apart
    signs = np.random.default_rng([seed, SIGNS])
    p_P = np.array([statistics.paired_p(difference_Q, signs, flips) for difference_Q in difference_P_Q])
    holm_P, n_P, both_P = statistics.holm(p_P), (~np.isnan(mean_P_Q)).sum(axis=1), (~np.isnan(difference_P_Q)).sum(axis=1)
    rows = []
    for place, one in enumerate(whole.personas):
        update: dict[str, object] = {"mcnemar_p": known(p_P[place]), "holm_p": known(holm_P[place]), "n": int(n_P[place])}
        if one.id in found.persona_ids:
            true_R = accuracy_R_P[:, found.persona_ids.index(one.id)]
            update["accuracy"] = posterior.of_draws(true_R, int(n_P[place]))
            update["difference"] = posterior.of_draws(true_R - without_R, int(both_P[place]))
        rows.append(one.model_copy(update=update))
    return tuple(rows)
