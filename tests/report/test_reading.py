"""What the report dares to say, from numbers a person can check."""

import numpy as np
import pytest

from permix.evals.stability import StabilityGrid
from permix.metrics.identifiability import Identifiability
from permix.metrics.statistics import relative_change
from permix.rendering.table import difference_direction
from permix.report.comparisons import compare_stability_grids, question_share_difference
from permix.types import Estimate


def at(value: float, low: float | None, high: float | None) -> Estimate:
    return Estimate(value=value, low=low, high=high, n=20)


@pytest.mark.parametrize(
    ("difference", "said"),
    [
        (at(0.1, 0.01, 0.2), "higher"),
        (at(-0.1, -0.2, -0.01), "lower"),
        (at(0.1, 0.0, 0.2), "no difference shown"),
        (at(0.0, 0.0, 0.0), "no difference shown"),
        (at(0.9, None, None), "not measured"),
        (None, "not measured"),
    ],
)
def test_a_difference_is_said_only_when_its_interval_leaves_out_zero(difference: Estimate | None, said: str) -> None:
    assert difference_direction(difference) == said


def told(right: dict[str, tuple[int, int]]) -> Identifiability:
    some = at(0.5, 0.4, 0.6)
    return Identifiability(
        accuracy=some, chance=0.5, question_only=some, length_only=some, permuted=some, persona_ids=("a", "b"),
        confusion=((1, 1), (1, 1)), per_persona=(some, some), n_asked=8, n_answered=8, n_questions=4,
        classifier="linear", reference="own answers", right_by_question=right,
    )  # fmt: skip


def test_distinctness_is_paired_by_question_whatever_the_order() -> None:
    base = told({"q1": (2, 2), "q2": (1, 2), "q3": (2, 2), "q4": (1, 2), "q5": (2, 2), "q6": (1, 2)})  # 9 of 12
    less = told(
        {"q6": (0, 2), "q5": (1, 2), "q4": (0, 2), "q3": (1, 2), "q2": (0, 2), "q1": (1, 2)}
    )  # one less in every question
    difference = question_share_difference([less], [base], seed=0, resamples=200)
    unseen = 1 - 0.025 ** (1 / 6)  # the share of other questions that may differ in the direction in which none of 6 does
    assert (difference.value, difference.low, difference.high) == pytest.approx((-0.5, -0.5, -0.5 + unseen))
    assert difference.n == 6
    assert difference_direction(difference) == "lower"
    same = question_share_difference([base], [base], seed=0, resamples=200)
    assert (same.value, same.low, same.high) == pytest.approx((0, -unseen, unseen))
    assert difference_direction(same) == "no difference shown"


def test_a_relative_change_of_distinctness_has_the_plain_interval() -> None:
    base, less = told({f"q{n}": (2, 2) for n in range(6)}), told({f"q{n}": (1, 2) for n in range(6)})
    found = question_share_difference([less], [base], seed=0, resamples=200, change=relative_change)
    assert (found.value, found.low, found.high) == pytest.approx((-0.5, -0.5, -0.5))


def test_differences_pair_personas_and_questions_by_name() -> None:
    right_P_Q = np.array([[1.0, 1.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]])  # A = .5 and .25
    other_P_Q = np.array([[1.0, 1.0, 1.0, 0.0], [1.0, 1.0, 0.0, 0.0]])  # A = .75 and .5
    none_Q_S = np.full((4, 1), np.nan)
    first = StabilityGrid(right_P_Q[..., None], none_Q_S, ("a", "b"), ("1", "2", "3", "4"))
    other = StabilityGrid(other_P_Q[::-1, ::-1, None], none_Q_S, ("b", "a"), ("4", "3", "2", "1"))
    measured = compare_stability_grids(other, first, seed=0, resamples=200)
    values = {name: one.value for name, one in measured.items()}
    assert values["mean"] == 0.25
    in_order = compare_stability_grids(StabilityGrid(other_P_Q[..., None], none_Q_S, *first[2:]), first, seed=0, resamples=200)
    assert values == {name: one.value for name, one in in_order.items()}
    unseen = 1 - 0.025 ** (1 / 4)  # what may still differ, where no question of 4 does
    for name, one in compare_stability_grids(first, first, seed=0, resamples=200).items():
        reach = unseen if name == "mean" else 0.0
        assert [one.low, one.value, one.high] == pytest.approx([-reach, 0.0, reach], abs=0.005)


def test_personas_that_only_one_model_has_scores_for_are_left_out() -> None:
    scored = np.array([[1.0, 0.0], [0.0, 0.0]])
    missing = np.array([[1.0, 0.0], [np.nan, np.nan]])
    grids = [StabilityGrid(one[..., None], np.full((2, 1), np.nan), ("a", "b"), ("1", "2")) for one in (scored, missing)]
    assert compare_stability_grids(grids[1], grids[0], seed=0, resamples=100)["worst"].value == 0.0
