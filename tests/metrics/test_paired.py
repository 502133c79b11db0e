"""Two models on the same cells: differences worked out by hand, and a test that keeps its promise."""

import numpy as np
import pytest

from permix.metrics.measures import MEASURE_VIEWS, measures_estimated_by
from permix.metrics.model_comparison import PairedComparison, compare_models_paired
from permix.metrics.posterior import posterior_estimates
from permix.metrics.statistics import Array

NAN = np.nan
FIRST = np.array([
    [1, 1, 0, 0],  # a: .5
    [1, 0, 0, 0],  # b: .25
    [1, 1, 1, 0],  # without persona: .75
], dtype=float)  # fmt: skip
OTHER = np.array([
    [1, 1, 1, 0],  # a: .75
    [1, 1, 0, 0],  # b: .5
    [1, 1, 0, 0],  # without persona: .5
], dtype=float)  # fmt: skip


def held(first: Array, other: Array, resamples: int = 200, seed: int = 0) -> PairedComparison:
    return compare_models_paired(
        first, other, [chr(ord("a") + row) for row in range(len(first) - 1)], seed=seed, resamples=resamples
    )


def test_every_difference_is_second_less_first() -> None:
    found = {one.name: one for one in held(FIRST, OTHER).measures}
    assert tuple(found) == MEASURE_VIEWS["comparison"]
    values = {name: (one.first, one.other, one.difference.value) for name, one in found.items()}
    assert values["baseline"] == (0.75, 0.5, -0.25)
    assert values["mean"] == (0.375, 0.625, 0.25)
    assert values["mean_minus_baseline"] == (-0.375, 0.125, 0.5)
    assert values["worst_per_question"] == (0.25, 0.5, 0.25)
    assert {one.difference.n for one in found.values()} == {4}
    for name in [one.name for one in measures_estimated_by("posterior")]:  # each model as by itself
        for rows, value in ((FIRST, values[name][0]), (OTHER, values[name][1])):
            assert value == posterior_estimates(rows[:-1], rows[-1], seed=0)[name].value
        one, two, difference = values[name]
        assert one is not None
        assert two is not None
        assert difference == pytest.approx(two - one)


def test_personas_are_compared_one_by_one() -> None:
    a, b = held(FIRST, OTHER).personas
    assert (a.id, a.first, a.other, a.difference.value, a.n) == ("a", 0.5, 0.75, 0.25, 4)
    assert (b.id, b.first, b.other, b.difference.value, b.n) == ("b", 0.25, 0.5, 0.25, 4)
    assert (a.p, b.p) == (1.0, 1.0)  # one question that differs tells nothing
    rows = np.zeros((2, 10)), np.vstack([np.ones(10), np.zeros(10)])
    (c,) = held(*rows).personas
    assert c.p == c.holm_p == pytest.approx(2 / 2**10)


def test_a_cell_counts_when_both_have_a_score() -> None:
    first, other = FIRST.copy(), OTHER.copy()
    first[0, 0], other[1, 1], other[2, 3] = NAN, NAN, NAN
    found = held(first, other)
    values = {one.name: (one.first, one.other, one.difference.n) for one in found.measures}
    assert values["baseline"] == pytest.approx((1.0, 2 / 3, 3))
    assert values["mean"] == pytest.approx((1 / 3, 1 / 2, 4))  # a: 1/3 -> 2/3; b: 1/3 -> 1/3
    assert values["worst"][2] == 4
    assert values["mean_minus_baseline"][2] == 3
    assert [one.n for one in found.personas] == [3, 3]
    assert found.n_cells == 6


def test_a_model_against_itself_differs_in_nothing() -> None:
    found = held(FIRST, FIRST)
    for one in found.measures:
        if one.difference.value is not None:
            assert (one.difference.value, one.p) == (0.0, 1.0)
            expected = [None, None] if one.name == "pss_crossfit" else pytest.approx([0.0, 0.0], abs=0.005)
            assert [one.difference.low, one.difference.high] == expected


def test_without_a_baseline_its_measures_are_none_and_the_others_there() -> None:
    first, other = FIRST.copy(), OTHER.copy()
    first[2] = NAN
    found = {one.name: one for one in held(first, other).measures}
    for name in ("baseline", "mean_minus_baseline", "worst_minus_baseline"):
        assert (found[name].first, found[name].difference.value, found[name].p) == (None, None, None)
    assert found["mean"].difference.value == 0.25
    assert found["worst"].difference.value is not None


def test_the_swap_tests_p_is_the_share_of_swaps_that_differ_as_much() -> None:
    """Five questions, all wrong against all right: only two of the 32 swaps leave a difference of 1."""
    rows = np.zeros((2, 5)), np.ones((2, 5))
    p = {one.name: one.p for one in held(*rows, resamples=4000).measures}
    assert p["mean"] == pytest.approx(2 / 32, abs=0.012)
    assert p["baseline"] == pytest.approx(2 / 32, abs=0.012)


@pytest.mark.slow
def test_models_that_are_alike_are_seldom_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the level .05, each measure in at most 5.5 % of the grids in expectation: 13 of 100 is far outside."""
    monkeypatch.setattr("permix.metrics.priors.N_DRAWS", 2)  # the test of a difference needs none
    monkeypatch.setattr("permix.metrics.priors.WARMUP_STEPS", 0)
    rejected = dict.fromkeys(MEASURE_VIEWS["comparison"], 0)
    for seed in range(100):
        rng = np.random.default_rng(seed)
        right_Q = rng.random(30)
        first, other = ((rng.random((5, 30)) < right_Q).astype(float) for _ in range(2))
        for one in held(first, other, resamples=99, seed=seed).measures:
            rejected[one.name] += one.p is not None and one.p <= 0.05
    assert max(rejected.values()) < 13


def test_a_difference_is_found() -> None:
    rng = np.random.default_rng(5)
    first, other = (rng.random((4, 80)) < 0.3).astype(float), (rng.random((4, 80)) < 0.7).astype(float)
    found = {one.name: one for one in held(first, other).measures}
    for name in ("baseline", "mean", "worst", "best"):
        low, p = found[name].difference.low, found[name].p
        assert low is not None
        assert low > 0
        assert p is not None
        assert p < 0.01
