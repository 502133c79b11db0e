"""Judges held against each other on one run, and models on one judge's scores.

Contract: an answer counts where both (of an alpha: at least two) have a score for it. Intervals draw personas; the test is
exact: were the models alike, all of a persona's answers by the one could as well be the other's, so signs are flipped persona by
persona.
"""

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from permix.evals import stats
from permix.evals.stats import Array
from permix.judging import agreement, scores
from permix.judging.scores import Draws
from permix.judging.verdicts import Grid, Verdicts, lay_out
from permix.types import Estimate, Record


class Pair(Record):
    """Two judges, on the `n_answers` that both have scored."""

    first: str
    second: str
    exact: Estimate
    within_one: Estimate
    alpha: Estimate
    n_answers: int


class Agreement(Record):
    """All judges of a run; `n_answers` have a score of at least two."""

    judges: tuple[str, ...]
    alpha: Estimate
    n_answers: int
    pairs: tuple[Pair, ...]


class ScoreDifference(Record):
    """Other − first on one judge's scores, paired by persona, question, sample and rubric; `p` is for PersonaScore alone."""

    judge: str
    persona_score: Estimate
    p: float | None
    tasks: dict[str, Estimate]
    n_answers: int


def measure_agreement(judges: Sequence[Verdicts], *, seed: int, resamples: int) -> Agreement | None:
    """Of the judges of one run; None for fewer than two."""
    if len(judges) < 2:
        return None
    score_J_P_T_Q = lay_out(judges).score_J_P_T_Q
    score_J_P_N = score_J_P_T_Q.reshape(*score_J_P_T_Q.shape[:2], -1)
    draws = Draws(score_J_P_N.shape[1], seed, resamples)
    return Agreement(
        judges=tuple(judge.label for judge in judges),
        alpha=_alpha(score_J_P_N, draws),
        n_answers=_shared(score_J_P_N),
        pairs=tuple(
            _pair(judges[one].label, judges[two].label, score_J_P_N[[one, two]], draws)
            for one, two in combinations(range(len(judges)), 2)
        ),
    )


def measure_difference(first: Verdicts, other: Verdicts, *, seed: int, resamples: int) -> ScoreDifference:
    """Of two models that one judge has scored."""
    one, two = first.of("none"), other.of("none")
    grid = Grid(place for place in one if place in two)
    difference_P_T_Q = grid.lay(two) - grid.lay(one)
    P, draws = len(grid.persona_ids), Draws(max(1, len(grid.persona_ids)), seed, resamples)
    if not P:
        return ScoreDifference(judge=first.label, persona_score=Estimate(value=None, n=0), p=None, tasks={}, n_answers=0)
    signs = np.random.default_rng(seed)
    return ScoreDifference(
        judge=first.label,
        persona_score=draws.estimate(lambda counts_R_P: scores.persona_score(difference_P_T_Q, counts_R_P), P),
        p=stats.paired_p(scores.contributions(difference_P_T_Q), signs, resamples),
        tasks={
            rubric: draws.estimate(
                lambda counts_R_P, t=t: scores.mean(difference_P_T_Q[:, t], counts_R_P),  # type: ignore[misc]
                int((~np.isnan(difference_P_T_Q[:, t])).any(axis=1).sum()),
            )
            for t, rubric in enumerate(grid.rubrics)
        },
        n_answers=int((~np.isnan(difference_P_T_Q)).sum()),
    )


def _pair(first: str, second: str, score_J_P_N: Array, draws: Draws) -> Pair:
    one_P_N, two_P_N = score_J_P_N
    exact, near = (agreement.within(one_P_N, two_P_N, tolerance) for tolerance in (0, 1))
    n = int((~np.isnan(exact)).any(axis=1).sum())
    return Pair(
        first=first, second=second, alpha=_alpha(score_J_P_N, draws), n_answers=_shared(score_J_P_N),
        exact=draws.estimate(lambda counts_R_P: scores.mean(exact, counts_R_P), n, stats.share),
        within_one=draws.estimate(lambda counts_R_P: scores.mean(near, counts_R_P), n, stats.share),
    )  # fmt: skip


def _alpha(score_J_P_N: Array, draws: Draws) -> Estimate:
    count_P_C_C = agreement.coincidences(score_J_P_N)
    n = int((count_P_C_C.sum(axis=(1, 2)) > 0).sum())
    return draws.estimate(lambda counts_R_P: agreement.alpha(count_P_C_C, counts_R_P), n)


def _shared(score_J_P_N: Array) -> int:
    return int(((~np.isnan(score_J_P_N)).sum(axis=0) >= 2).sum())
