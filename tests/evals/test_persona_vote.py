"""The vote: who wins, who does not vote, what is owed, and what it costs, on ballots that can be counted by hand."""

import math

import pytest

from permix.evals.grid import GridResults
from permix.evals.strategies.base import answer_comparison
from permix.evals.strategies.persona_vote import majority_vote, measure_persona_vote, score_vote
from permix.types import Cell, Failure, Verdict
from permix.verification.math_verifier import same_answer
from tests.sample_runs import answered, cell


@pytest.mark.parametrize(
    ("ballots", "voter", "tied"),
    [
        (["7", "8", "8"], 1, False),
        (["7", "8", "8", "7"], 0, True),  # as many each: the first voter's answer
        (["9", "8", "7", "8", "7"], 1, True),  # no persona is not among the equals
        ([None, None, "8"], 2, False),  # who gives no answer does not vote
        (["7", None, None, None], 0, False),
        ([None, None], None, False),
        ([], None, False),
        (["2", "0.5", "1/2", r"\frac{1}{2}", "2.0"], 1, False),  # one half, three times, against two
        (["$1,000", "1000", "12"], 0, False),
        (["Paris", "London", "paris"], 0, False),
        (["y", "2x", "x*2", "y"], 0, False),  # equal, but not without the symbolic engine: two candidates
    ],
)
def test_the_answer_given_most_often_wins(ballots: list[str | None], voter: int | None, tied: bool) -> None:
    assert majority_vote(ballots) == (voter, tied)


def test_answers_are_one_when_it_takes_no_engine_to_say_so() -> None:
    for a, b in (("0.5", "1/2"), ("12", "$12"), ("12", "12.0"), ("x+1", "x + 1"), ("Yes", "yes"), ("(B)", "B")):
        assert same_answer(a, b)
        assert same_answer(b, a)
    for a, b in (("12", "21"), ("2x", "x*2"), ("1 2", "12"), ("", ""), ("Amy", "May")):
        assert not same_answer(a, b)


def judged(verdict: Verdict) -> Cell:
    return answered(text=verdict.extracted or "hm").model_copy(update={"verdict": verdict})


def ballot(text: str | None, correct: bool | None = False) -> Cell:
    return judged(Verdict(correct=correct, extracted=text))


def verdict_of(*cells: Cell | None) -> float | None:
    vote = score_vote(cells)
    return None if vote is None else vote.score


def test_a_vote_is_as_right_as_the_ballot_that_won() -> None:
    assert verdict_of(ballot("7"), ballot("8", True), ballot("8", True)) == 1.0
    assert verdict_of(ballot("7"), ballot("8", True), ballot("7")) == 0.0
    assert verdict_of(ballot(None), ballot(None)) == 0.0  # nobody gave an answer: wrong, not missing


def test_no_score_is_not_zero() -> None:
    failed = cell(failure=Failure(type="HTTP", message="503"))
    assert verdict_of(ballot("7"), ballot("7"), failed) is None  # a ballot is owed
    assert verdict_of(ballot("7"), None) is None
    assert verdict_of(ballot("7"), judged(Verdict(correct=None, error="out of memory"))) is None
    # The verifier failed on a ballot that was read all the same: it votes, and only if it wins there is no score.
    assert verdict_of(ballot("8", True), ballot("8", True), ballot("x^2", None)) == 1.0
    won = verdict_of(ballot("8", True), ballot("x^2", None), ballot("x^2", None))
    assert won is not None
    assert math.isnan(won)


def grid(rows: dict[str | None, list[tuple[str | None, bool]]]) -> GridResults:
    """Voters' (answer, right) by question; six tokens a call (`answered`)."""
    cells = [
        ballot(text, right).model_copy(update={"persona_id": persona, "question_id": f"q{number}"})
        for persona, row in rows.items()
        for number, (text, right) in enumerate(row)
    ]
    personas = tuple(persona for persona in rows if persona is not None)
    return GridResults({one.key: one for one in cells}, personas, ("q0", "q1", "q2", "q3"), 1)


ROWS: dict[str | None, list[tuple[str | None, bool]]] = {
    None: [("1", True), ("9", False), ("9", False), (None, False)],
    "a": [("1", True), ("2", True), ("3", True), (None, False)],
    "b": [("8", False), ("2.0", True), ("9", False), (None, False)],
    "c": [("8", False), ("9", False), ("3", True), ("4", True)],
}
"""q0: 1 twice (none, a), 8 twice: a tie that none decides, right. q1: 9 twice (none, c), 2 twice: a tie that none decides, wrong.
q2: 9 twice (none, b), 3 twice: the same. q3: one ballot, right."""


def test_the_numbers_are_exact() -> None:
    found = measure_persona_vote(grid(ROWS), seed=0, resamples=200)
    assert found.accuracy.value == pytest.approx(2 / 4)
    assert found.baseline.value == pytest.approx(1 / 4)
    assert found.gain.value == pytest.approx(1 / 4)
    # The mean persona: (3 + 1 + 2) of 12.
    assert found.gain_over_mean.value == pytest.approx(2 / 4 - 6 / 12)
    assert (found.n_voters, found.n_tied, found.n_unanswered, found.n_unparsed) == (4, 3, 0, 3)
    assert (found.n_scored, found.n_asked) == (4, 4)
    assert found.tokens_per_answer is not None
    assert found.baseline_tokens is not None
    assert (
        found.tokens_per_answer.prompt_tokens,
        found.tokens_per_answer.completion_tokens,
        found.baseline_tokens.total,
        found.token_ratio,
    ) == (20.0, 4.0, 6.0, 4.0)
    assert found.gain.low is not None
    assert found.gain.low <= 1 / 4


def test_a_gain_that_every_question_shows_has_no_interval_of_width_0() -> None:
    """On four questions the vote is right and the personas are right in two of four answers: 1/2 more, each time."""
    rows: dict[str | None, list[tuple[str | None, bool]]] = {
        None: [("1", True)] * 4, "a": [("1", True)] * 4, "b": [("8", False)] * 4,
    }  # fmt: skip
    found = measure_persona_vote(grid(rows), seed=0, resamples=200).gain_over_mean
    assert (found.value, found.low, found.high) == pytest.approx((0.5, 0.5 - (1 - 0.025 ** (1 / 4)), 0.5))


@pytest.mark.parametrize(
    ("task", "ballots", "winner"),
    [
        ("own-exact", ["40 km", "42 km", "42 KM"], 1),  # as the task's scores: not told apart by capitals
        ("own-exact", ["0.5", "1/2", "1/2"], 1),  # and a text is no number
        ("own-number", ["7", "1500", "1.500"], 1),  # 1500 as German writes it
        ("own-choice", ["A", "B", "(b)"], 1),
        ("mmlu", ["A", "none", "none"], 1),  # no letter, and all the same equal
        ("own-math", ["0.5", "2", "1/2"], 0),
        ("gsm8k", ["7", "$8", "8.0"], 1),
        ("code", ["x = 1", "x = 2", "x = 2"], 1),
        ("my.module:TASK", ["0.5", "2", "1/2"], 0),  # its module is not imported
        ("", ["0.5", "2", "1/2"], 0),
    ],
)
def test_ballots_are_compared_as_the_task_compares(task: str, ballots: list[str], winner: int) -> None:
    assert majority_vote(ballots, answer_comparison(task)).winner == winner


def test_an_answer_without_text_equals_none() -> None:
    assert not any(answer_comparison(task)("", "") for task in ("own-exact", "mmlu", "own-number", "gsm8k"))


def test_a_question_with_a_ballot_owed_is_left_out_of_score_and_cost() -> None:
    whole = grid(ROWS)
    lost = next(key for key in whole.cells if key.persona_id == "c" and key.question_id == "q3")
    found = measure_persona_vote(
        whole._replace(cells={key: one for key, one in whole.cells.items() if key != lost}), seed=0, resamples=200
    )
    assert (found.n_scored, found.n_asked) == (3, 4)
    assert found.accuracy.value == pytest.approx(1 / 3)
    assert found.gain.n == 3
    assert found.tokens_per_answer is not None
    assert found.tokens_per_answer.total == 24.0  # not the 23 that half a sum would give


def test_samples_are_votes_of_their_own() -> None:
    cells = [
        ballot(text, text == "5").model_copy(update={"persona_id": persona, "question_id": "q", "sample": sample})
        for persona, texts in ((None, "55"), ("a", "56"), ("b", "66"))
        for sample, text in enumerate(texts)
    ]
    found = measure_persona_vote(GridResults({one.key: one for one in cells}, ("a", "b"), ("q",), 2), seed=0, resamples=200)
    assert found.accuracy.value == 0.5  # 5, 5, 6 and then 5, 6, 6
    assert (found.n_scored, found.n_asked) == (2, 2)
