"""The released arithmetic, worked out by hand beside ours."""

import numpy as np
import pytest

from permix.metrics.judge_scores import aggregate_as_published

X = np.nan


def test_where_nothing_fails_and_blocks_are_full_both_are_the_plain_mean() -> None:
    score_J_P_U_Q = np.array([[[[5, 4, 3, 2, 1, 5, 5, 5, 5, 5]], [[1] * 10]]], dtype=float)  # one judge, two personas, one task
    found = aggregate_as_published(score_J_P_U_Q)
    assert found.persona_score == pytest.approx(2.5)  # (4 + 1) / 2
    assert found.permix_persona_score == pytest.approx(2.5)
    assert found.difference == pytest.approx(0)
    assert found.last_persona_score == 1.0
    assert (found.blocks, found.empty_blocks) == (4, 0)


def test_a_failed_verdict_vanishes_from_its_block_and_weighs_the_rest() -> None:
    found = aggregate_as_published(np.array([[[[1, X, X, X, X, 5, 5, 5, 5, 5]]]]))
    assert found.persona_score == pytest.approx(3.0)  # blocks (1) and (5), each half
    assert found.permix_persona_score == pytest.approx(26 / 6)  # six scores


def test_a_block_without_any_score_is_a_zero_there_and_nothing_here() -> None:
    found = aggregate_as_published(np.array([[[[X] * 5 + [4] * 5]]]))
    assert found.persona_score == pytest.approx(2.0)
    assert found.permix_persona_score == pytest.approx(4.0)
    assert found.difference == pytest.approx(-2.0)
    assert (found.blocks, found.empty_blocks) == (2, 1)


def test_judges_are_averaged_block_by_block() -> None:
    score_J_P_U_Q = np.array([[[[5] * 10]], [[[X] * 5 + [1] * 5]]])
    found = aggregate_as_published(score_J_P_U_Q)
    assert found.persona_score == pytest.approx(((5 + 0) / 2 + (5 + 1) / 2) / 2)  # 2.75
    assert found.permix_persona_score == pytest.approx((5 + 1) / 2)
    assert (found.blocks, found.empty_blocks) == (4, 1)


def test_tasks_are_averaged_within_each_persona_and_the_last_one_stands_alone() -> None:
    score_J_P_U_Q = np.array([[[[4, 4], [2, 2]], [[5, 5], [3, X]]]])
    found = aggregate_as_published(score_J_P_U_Q)
    assert found.tasks == pytest.approx((4.5, 2.5))
    assert found.persona_score == pytest.approx(3.5)
    assert found.last_tasks == pytest.approx((5.0, 3.0))
    assert found.last_persona_score == pytest.approx(4.0)
    assert found.permix_tasks == pytest.approx((4.5, 7 / 3))
    assert found.difference == pytest.approx(3.5 - (4.5 + 7 / 3) / 2)


def test_what_was_not_asked_is_no_block_and_no_task() -> None:
    score_J_P_U_Q = np.array([[[[4, 4, 4, 4, 4, 1], [X] * 6], [[2, 2, 2, X, X, X], [X] * 6]]])
    asked_P_U_Q = np.array([[[True] * 6, [False] * 6], [[True] * 3 + [False] * 3, [False] * 6]])
    found = aggregate_as_published(score_J_P_U_Q, asked_P_U_Q)
    assert found.tasks == (2.25, None)  # blocks (4) and (1) of one persona, (2) of the other
    assert found.persona_score == pytest.approx(2.25)
    assert found.permix_persona_score == pytest.approx(27 / 9)
    assert (found.blocks, found.empty_blocks) == (3, 0)


def test_without_any_score_published_is_zero_and_ours_is_nothing() -> None:
    found = aggregate_as_published(np.full((1, 2, 5, 1), X))
    assert found.persona_score == 0.0
    assert found.permix_persona_score is None
    assert found.difference is None
    assert found.empty_blocks == found.blocks == 10
