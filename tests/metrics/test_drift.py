"""The arithmetic of drift, on numbers worked out by hand, and how often its intervals hold the truth."""

import numpy as np
import pytest

from permix.evals.drift_report import TrainExample, attribute_turns, compute_turn_series, scores_by_turn
from permix.evals.interview import williams_design
from permix.metrics.linear_models import (
    QuestionIndex,
    late_regressor,
    slope_regressor,
    turn_effect,
)
from permix.metrics.statistics import Array
from permix.metrics.text_stats import question_echo_share, repetition_shares
from permix.types import AnswerKey

NONE_P_I = np.zeros((2, 4), dtype=np.int64)


def effect(value_P_I: Array, question_P_I: QuestionIndex, regressor_I: Array) -> float:
    return float(turn_effect(value_P_I, question_P_I, regressor_I, np.ones((1, len(value_P_I))))[0])


def test_without_questions_it_is_the_mean_of_the_personas_own_slopes() -> None:
    value_P_I = np.array([[1.0, 2, 3, 4], [10, 10, 10, 10]])  # slopes 1 and 0, levels far apart
    assert effect(value_P_I, NONE_P_I, slope_regressor(1, 4)) == pytest.approx(0.5)


def test_a_question_that_is_asked_late_by_one_and_early_by_the_other_leaves_nothing_in_the_slope() -> None:
    question_P_I = np.array([[0, 1, 2], [2, 1, 0]])
    level_Q = np.array([0.0, 5.0, -9.0])
    value_P_I = level_Q[question_P_I] + np.array([[3.0], [7.0]]) + 0.25 * np.arange(1, 4)
    assert effect(value_P_I, question_P_I, slope_regressor(1, 3)) == pytest.approx(0.25)


def test_an_unbalanced_order_misleads_own_slopes_and_not_the_fit() -> None:
    question_P_I = np.array([[0, 1, 2], [0, 2, 1]])  # question 0 always comes first
    level_Q = np.array([0.0, 4.0, 6.0])
    value_P_I = level_Q[question_P_I] + 1.0 * np.arange(1, 4)
    assert effect(value_P_I, np.zeros_like(question_P_I), slope_regressor(1, 3)) == pytest.approx(3.5)
    assert effect(value_P_I, question_P_I, slope_regressor(2, 3)) == pytest.approx(1.0)  # turn 2 against turn 3 alone


def test_what_cannot_be_told_apart_is_nan_and_not_zero() -> None:
    alike_P_I = np.array([[0, 1, 2], [0, 1, 2]])
    assert np.isnan(effect(np.array([[1.0, 2, 3], [1, 2, 3]]), alike_P_I, slope_regressor(1, 3)))
    assert np.isnan(effect(np.full((2, 4), np.nan), NONE_P_I, slope_regressor(1, 4)))


def test_a_missing_turn_is_left_out() -> None:
    value_P_I = np.array([[1.0, np.nan, 3, np.nan], [np.nan, np.nan, np.nan, 100.0]])  # one turn alone says nothing of a slope
    assert effect(value_P_I, NONE_P_I, slope_regressor(1, 4)) == pytest.approx(1.0)


def test_weights_count_a_persona_as_often_as_it_was_drawn() -> None:
    value_P_I = np.array([[0.0, 3, 6, 9], [0, 0, 0, 0]])
    found = turn_effect(value_P_I, NONE_P_I, slope_regressor(1, 4), np.array([[1.0, 1], [2, 0], [1, 2]]))
    assert found == pytest.approx([1.5, 3.0, 1.0])


def test_late_less_early_is_the_difference_of_halves() -> None:
    nan = np.nan
    assert late_regressor(1, 4).tolist() == [0, 0, 1, 1]
    np.testing.assert_equal(late_regressor(2, 6), [nan, 0, 0, nan, 1, 1])
    np.testing.assert_equal(late_regressor(1, 3), [0, nan, 1])
    np.testing.assert_equal(slope_regressor(2, 4), [nan, 2, 3, 4])
    value_P_I = np.array([[1.0, 3, 4, 8], [0, 0, 1, 1]])  # (6 − 2) and (1 − 0)
    assert effect(value_P_I, NONE_P_I, late_regressor(1, 4)) == pytest.approx(2.5)


def test_repetition_counts_runs_of_four_words_said_before() -> None:
    said = [
        "I keep bees and goats",
        "Well, I keep bees and goats!",
        "No.",
        "i KEEP bees and honey",
        None,
        "I keep bees and goats",
    ]
    # second: (well i keep bees) is new, (i keep bees and), (keep bees and goats) are not; fourth: one of two
    assert repetition_shares(said) == pytest.approx([np.nan, 2 / 3, np.nan, 0.5, np.nan, 1.0], nan_ok=True)


def test_words_are_those_of_the_measures_without_a_judge() -> None:
    """Both apostrophes part a word, and a ligature is its letters."""
    assert repetition_shares(["I don't fight", "I DON’T ﬁght"]) == pytest.approx([np.nan, 1.0], nan_ok=True)


def test_an_echo_is_what_the_question_said() -> None:
    assert question_echo_share("How did you spend it? I slept.", "How did you spend yesterday evening?") == pytest.approx(2 / 5)
    assert np.isnan(question_echo_share("I slept", "How did you sleep?"))


def test_where_every_score_is_the_same_no_interval_is_claimed() -> None:
    found = compute_turn_series("breaks", np.zeros((5, 4)), np.zeros((5, 4), dtype=np.int64), 1, seed=0, resamples=100)
    assert (found.slope.value, found.slope.low, found.late_minus_early.value) == (0.0, None, 0.0)
    assert found.by_turn[0].high == pytest.approx(1 - 0.025 ** (1 / 5))  # five of five: the exact binomial interval
    assert found.overall == found.by_turn[0]


@pytest.mark.parametrize(
    ("value_P_I", "first_turn", "slope_has_interval", "late_has_interval"),
    [
        ([[0.0] * 5, [1.0] * 5, [0.5] * 5], 1, False, False),  # personas differ, and none changes
        ([[0.0, 1, 1, 1, 1], [1, 0, 0, 0, 0], [0, np.nan, 1, 1, np.nan]], 2, False, False),  # only turn 1 differs
        ([[0.0, 0, 1, 0, 0], [0] * 5, [1] * 5], 1, True, False),  # turn 3 is in the slope and in neither half
        ([[0.0, 0, 0, 0, 1], [0] * 5, [1] * 5], 1, True, True),
    ],
)
def test_where_no_persona_changes_no_interval_of_a_change_is_claimed(
    value_P_I: list[list[float]], first_turn: int, slope_has_interval: bool, late_has_interval: bool
) -> None:
    found = compute_turn_series(
        "breaks", np.array(value_P_I), np.zeros((3, 5), dtype=np.int64), first_turn, seed=0, resamples=100
    )
    assert (found.slope.low is not None, found.late_minus_early.low is not None) == (slope_has_interval, late_has_interval)
    if not late_has_interval:
        assert found.late_minus_early.value == 0


def test_without_two_personas_at_a_question_there_is_no_control_of_shuffled_labels() -> None:
    answers: dict[str, list[str | None]] = {"a": ["Aye, sea", None], "b": ["Hm, gate", "Hm, gate"]}
    own = [TrainExample(who, f"{who} {q}", answers[who][0] or "") for who in answers for q in range(3)]
    found = attribute_turns(answers, own, ["a man", "a woman"], seed=0)
    np.testing.assert_equal(found.correct_by_text_P_I, [[1, np.nan], [1, 1]])
    assert found.correct_by_shuffled_P_I is None
    shared = [*own, TrainExample("a", "b 0", "Aye, sea")]
    assert attribute_turns(answers, shared, ["a man", "a woman"], seed=0).correct_by_shuffled_P_I is not None


def test_a_course_counts_what_is_missing() -> None:
    value_P_I = np.array([[1.0, 2, np.nan], [1, 2, 3], [1, 3, 5]])
    found = compute_turn_series("words", value_P_I, np.zeros((3, 3), dtype=np.int64), 1, seed=0, resamples=200)
    assert (found.n_scored, found.n_asked, [one.n for one in found.by_turn]) == (8, 9, [3, 3, 2])
    assert found.by_turn[2].value == 4.0
    assert found.overall.value == pytest.approx((1.5 + 2 + 3) / 3)


def scored(score: int, question_id: str, who: str = "a", rubric: str = "In Character") -> tuple[AnswerKey, int]:
    return AnswerKey(who, rubric, question_id, 0), score


def test_a_judges_scores_by_turn_are_those_of_the_turns_that_were_asked() -> None:
    given = [
        scored(5, "turn-01-opening"), scored(4, "turn-02-x"), scored(2, "turn-02", who="b"), scored(3, "q1", who="b"),
        scored(1, "turn-01-opening", who="nobody"), scored(1, "turn-04-late"),
    ]  # fmt: skip
    found = scores_by_turn(dict(given), ["In Character"], ["a", "b"], 3)
    np.testing.assert_equal(found, [[5, 4, np.nan], [np.nan, 2, np.nan]])


def test_a_turns_score_by_several_rubrics_is_their_mean_where_there_are_all() -> None:
    given = [scored(5, "turn-01"), scored(2, "turn-01", rubric="Warmth"), scored(4, "turn-02")]
    np.testing.assert_equal(scores_by_turn(dict(given), ["Warmth", "In Character"], ["a"], 2), [[3.5, np.nan]])
    np.testing.assert_equal(scores_by_turn({}, ["Warmth"], ["a"], 2), [[np.nan, np.nan]])


@pytest.mark.parametrize("written", [False, True])
def test_intervals_hold_the_slope_where_turn_and_question_are_told_apart_and_not_where_they_are_not(written: bool) -> None:
    """9 personas × 8 turns, questions as far apart as answers are noisy; 95 % intervals of 80 interviews."""
    rng, rows = np.random.default_rng(0), williams_design(7)
    order_P_I = np.array([[0, *(1 + one for one in (rows[0] if written else rows[p % len(rows)]))] for p in range(9)])
    held = 0
    for _ in range(80):
        slope_P = 0.1 + rng.normal(0, 0.03, 9)
        value_P_I = rng.normal(0, 1, 8)[order_P_I] + slope_P[:, None] * np.arange(8) + rng.normal(0, 1, (9, 8))
        asked_P_I = np.zeros_like(order_P_I) if written else order_P_I
        found = compute_turn_series("words", value_P_I, asked_P_I, 2, seed=0, resamples=200).slope
        assert found.low is not None
        assert found.high is not None
        held += found.low <= 0.1 <= found.high
    assert (held < 60) if written else (held >= 70)
