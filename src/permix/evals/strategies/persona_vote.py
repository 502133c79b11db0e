"""Majority vote over personas: every persona and none answer a question once, and the answer given most often stands.

Answers count together when `same_answer` says so (0.5 and 1/2, $12 and 12; it never asks the symbolic engine, so 2x and x*2 are
two candidates); each is compared with the first of its kind. A ballot without an answer does not vote. Of answers given equally
often the one first given stands: no persona votes first, then the personas in the order of their ids. Where nobody gives an
answer the vote is wrong; where a ballot is still owed, or the verifier failed on the answer that won, it has no score.

Asks what plain stability asks and nothing more.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from permix.evals.grid import Answers
from permix.evals.strategies.base import Calls, Strategy, StrategySummary, compared, cost, said, score
from permix.metrics import statistics
from permix.metrics.statistics import Array
from permix.types import Cell, Estimate
from permix.verification.math_verifier import same_answer


class VoteSummary(StrategySummary):
    """`gain_over_mean` is paired with the mean persona. Of the complete votes: `n_tied` fell to the first of equals, in
    `n_silent` nobody gave an answer; `n_unparsed` ballots of theirs had none."""

    strategy: Literal["persona-vote"] = "persona-vote"
    gain_over_mean: Estimate
    n_voters: int
    n_tied: int
    n_silent: int
    n_unparsed: int

    @property
    def details(self) -> str:
        return (
            f"{self.n_voters} voters; {self.gain_over_mean.signed()} over the mean persona; {self.n_tied} votes tied, "
            f"{self.n_unparsed} ballots without an answer"
        )


class Elected(NamedTuple):
    """Whose ballot stands (None: nobody gave an answer), and whether another answer was given as often."""

    voter: int | None
    tied: bool


def elect(ballots: Sequence[str | None]) -> Elected:
    """The outcome of one vote; ballots in the order of the voters."""
    groups: list[list[int]] = []
    for voter, ballot in enumerate(ballots):
        if ballot is None:
            continue
        own = next((group for group in groups if same_answer(ballot, ballots[group[0]] or "")), None)
        if own is None:
            groups.append([voter])
        else:
            own.append(voter)
    most = max(map(len, groups), default=0)
    leading = [group[0] for group in groups if len(group) == most]
    return Elected(leading[0] if leading else None, len(leading) > 1)


class Vote(NamedTuple):
    """One vote, once every ballot is in."""

    score: float
    elected: Elected
    unparsed: int


def hold(cells: Sequence[Cell | None]) -> Vote | None:
    """The vote of these cells, one a voter; None while a ballot is owed."""
    ballots = [said(cell) for cell in cells]
    if not all(known for known, _ in ballots):
        return None
    elected = elect([answer for _, answer in ballots])
    right = 0.0 if elected.voter is None else score(cells[elected.voter])
    return Vote(right, elected, sum(answer is None for _, answer in ballots))


def measure(answers: Answers, seed: int, resamples: int) -> VoteSummary:
    voters = (None, *answers.persona_ids)
    ballots_Q_S = [
        [[answers.get(voter, question, sample) for voter in voters] for sample in range(answers.samples)]
        for question in answers.question_ids
    ]
    votes_Q_S = [[hold(cells) for cells in row] for row in ballots_Q_S]
    correct_Q_S = np.array([[np.nan if vote is None else vote.score for vote in row] for row in votes_Q_S])
    baseline_Q_S = answers.scores([None], answers.question_ids)[0]
    held = [vote for row in votes_Q_S for vote in row if vote is not None]
    found = compared(correct_Q_S, baseline_Q_S, seed, resamples)
    price = cost(Calls(cells, cells[0]) for row in ballots_Q_S for cells in row)
    return VoteSummary(
        **found._asdict(), **price._asdict(),
        gain_over_mean=statistics.bootstrap_mean(over_mean(correct_Q_S, answers), seed, resamples),
        n_voters=len(voters), n_tied=sum(vote.elected.tied for vote in held),
        n_silent=sum(vote.elected.voter is None for vote in held), n_unparsed=sum(vote.unparsed for vote in held),
        n_scored=int((~np.isnan(correct_Q_S)).sum()), n_asked=correct_Q_S.size,
    )  # fmt: skip


def over_mean(correct_Q_S: Array, answers: Answers) -> Array:
    """difference_Q: the vote's score minus the mean persona's, NaN where the vote has none."""
    mean_P_Q = statistics.sample_mean(answers.scores(answers.persona_ids, answers.question_ids))
    return statistics.sample_mean(correct_Q_S) - statistics.sample_mean(mean_P_Q.T)


PERSONA_VOTE = Strategy(measure=measure)
