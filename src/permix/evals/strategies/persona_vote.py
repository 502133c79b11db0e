"""Majority vote: each question is asked once with every persona and once without; the most frequent answer wins.

Two answers count as the same if the task's `answer_comparison` says so. For mathematics 0.5 and 1/2 are the same, or $12 and 12;
the symbolic engine is not used, so 2x and x*2 are different answers. Each answer is compared with the first answer of each group.
A ballot without an answer is ignored. In a tie the answer that was given first wins; the order is no persona, then the personas
by id. If no ballot has an answer the vote is wrong. If a ballot is pending, or the verifier failed on the winning answer, there
is no score.

The strategy asks the same cells as a stability run without a strategy.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from permix.evals.grid import GridResults
from permix.evals.strategies.base import (
    AnswerCalls,
    AnswerComparison,
    Strategy,
    StrategySummary,
    accuracy_gain,
    mean_token_cost,
    recorded_answer,
    recorded_score,
)
from permix.metrics import statistics
from permix.metrics.statistics import Array
from permix.types import Cell, Estimate
from permix.verification.math_verifier import same_answer


class VoteSummary(StrategySummary):
    """Measures of the vote.

    `gain_over_mean` is the gain over the mean persona, paired by question. Of the complete votes, `n_tied` were ties and
    `n_unanswered` had no answer on any ballot. `n_unparsed` counts their ballots without an answer.
    """

    strategy: Literal["persona-vote"] = "persona-vote"
    gain_over_mean: Estimate
    n_voters: int
    n_tied: int
    n_unanswered: int
    n_unparsed: int

    @property
    def details_text(self) -> str:
        return (
            f"{self.n_voters} voters; {self.gain_over_mean.format_difference()} over the mean persona; {self.n_tied} votes tied, "
            f"{self.n_unparsed} ballots without an answer"
        )


class MajorityVote(NamedTuple):
    """Index of the winning ballot (None if no ballot has an answer), and whether another answer got as many votes."""

    winner: int | None
    tied: bool


def majority_vote(ballots: Sequence[str | None], compare_answers: AnswerComparison = same_answer) -> MajorityVote:
    """Count one vote; the order of the ballots decides ties."""
    groups: list[list[int]] = []
    for voter, ballot in enumerate(ballots):
        if ballot is None:
            continue
        matching = next((group for group in groups if compare_answers(ballot, ballots[group[0]] or "")), None)
        if matching is None:
            groups.append([voter])
        else:
            matching.append(voter)
    most = max(map(len, groups), default=0)
    leading = [group[0] for group in groups if len(group) == most]
    return MajorityVote(leading[0] if leading else None, len(leading) > 1)


class ScoredVote(NamedTuple):
    """The score and result of one complete vote."""

    score: float
    result: MajorityVote
    n_unparsed: int


def score_vote(cells: Sequence[Cell | None], compare_answers: AnswerComparison = same_answer) -> ScoredVote | None:
    """Count and score the vote of these cells, one per voter; None while a ballot is pending."""
    ballots = [recorded_answer(cell) for cell in cells]
    if not all(known for known, _ in ballots):
        return None
    result = majority_vote([answer for _, answer in ballots], compare_answers)
    score = 0.0 if result.winner is None else recorded_score(cells[result.winner])
    return ScoredVote(score, result, sum(answer is None for _, answer in ballots))


def measure_persona_vote(
    results: GridResults, seed: int, resamples: int, compare_answers: AnswerComparison = same_answer
) -> VoteSummary:
    """Measure gain and cost of the vote from the cells of a run."""
    voters = (None, *results.persona_ids)
    ballots_Q_S = [
        [[results.get_cell(voter, question, sample) for voter in voters] for sample in range(results.samples)]
        for question in results.question_ids
    ]
    votes_Q_S = [[score_vote(cells, compare_answers) for cells in row] for row in ballots_Q_S]
    correct_Q_S = np.array([[np.nan if vote is None else vote.score for vote in row] for row in votes_Q_S])
    baseline_Q_S = results.scores([None], results.question_ids)[0]
    complete = [vote for row in votes_Q_S for vote in row if vote is not None]
    gain = accuracy_gain(correct_Q_S, baseline_Q_S, seed, resamples)
    difference_Q = gain_over_mean_persona(correct_Q_S, results)
    cost = mean_token_cost(AnswerCalls(cells, cells[0]) for row in ballots_Q_S for cells in row)
    return VoteSummary(
        **gain._asdict(), **cost._asdict(),
        gain_over_mean=statistics.bootstrap_mean(
            difference_Q, seed, resamples,
            lambda value, replicate_R, n: statistics.bootstrap_paired(value, replicate_R, difference_Q),
        ),
        n_voters=len(voters), n_tied=sum(vote.result.tied for vote in complete),
        n_unanswered=sum(vote.result.winner is None for vote in complete), n_unparsed=sum(vote.n_unparsed for vote in complete),
        n_scored=int((~np.isnan(correct_Q_S)).sum()), n_asked=correct_Q_S.size,
    )  # fmt: skip


def gain_over_mean_persona(correct_Q_S: Array, results: GridResults) -> Array:
    """difference_Q: score of the vote − mean score of the personas; NaN if the vote has no score."""
    mean_P_Q = statistics.mean_over_samples(results.scores(results.persona_ids, results.question_ids))
    return statistics.mean_over_samples(correct_Q_S) - statistics.mean_over_samples(mean_P_Q.T)


PERSONA_VOTE = Strategy(measure=measure_persona_vote)
