"""Two models on the same cells: differences worked out by hand, and a test that keeps its promise."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from permix.metrics import model_comparison, posterior, priors, statistics
from permix.metrics.measures import MEASURE_VIEWS, STABILITY_MEASURES, measures_estimated_by, measures_in
from permix.metrics.model_comparison import PairedComparison, compare_models_paired
from permix.metrics.posterior import posterior_estimates
from permix.metrics.stability import BOOTSTRAP_BLOCK_FLOATS, observed_measures, stability_differences
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
            # On 4 questions, a share of up to 1 − .025^(1/4) of all questions may still differ, in either direction.
            reach = 1 - 0.025 ** (1 / one.difference.n) if STABILITY_MEASURES[one.name].question_formula else 0.0
            expected = [None, None] if one.name == "pss_crossfit" else pytest.approx([-reach, reach], abs=0.005)
            assert [one.difference.low, one.difference.high] == expected


def test_two_models_without_an_error_may_still_differ() -> None:
    """Of 8 questions that are right under all personas in both models: each model may be wrong on 37 % of all questions."""
    right = np.ones((5, 8))
    found = {one.name: one.difference for one in held(right, right).measures}
    unseen = 1 - 0.025 ** (1 / 8)
    for name in ("pss", "mean", "baseline", "mean_minus_baseline", "worst_per_question"):
        low, high = found[name].low, found[name].high
        assert low is not None
        assert high is not None
        assert low <= -unseen + 0.01, name
        assert high >= unseen - 0.01, name
    assert found["worst"].low == pytest.approx(1 - unseen - posterior_estimates(right[:-1], right[-1], seed=0)["worst"].value)
    assert found["persona_sd"].high is not None
    assert found["persona_sd"].high > 0.1
    of_seeds = stability_differences([(right[:-1], right[-1])], [(right[:-1], right[-1])], seed=0, resamples=50)
    assert of_seeds["pss"].low == found["pss"].low
    assert of_seeds["mean"].low == pytest.approx(-unseen)


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


@pytest.mark.parametrize("missing", [0.0, 0.15])
def test_swaps_are_measured_together_as_one_by_one(missing: float) -> None:
    """Every measure of a comparison, under swaps that are drawn question by question."""
    rng = np.random.default_rng(4)
    first_N_Q, other_N_Q = ((rng.random((6, 30)) < 0.6).astype(float) for _ in range(2))
    first_N_Q[0] = np.nan  # a persona that nobody answered
    first_N_Q[rng.random(first_N_Q.shape) < missing] = np.nan
    absent_N_Q = np.isnan(first_N_Q) | np.isnan(other_N_Q)
    first_N_Q, other_N_Q = (np.where(absent_N_Q, np.nan, rows_N_Q) for rows_N_Q in (first_N_Q, other_N_Q))
    halves_K_Q = statistics.random_half_splits(30, 7, rng)
    found = model_comparison._swap_null_distribution(first_N_Q, other_N_Q, halves_K_Q, np.random.default_rng(8), 25)
    measures, draws = measures_in("comparison"), np.random.default_rng(8)
    for swap in range(25):
        swap_Q = draws.integers(0, 2, size=30).astype(bool)
        rows = np.where(swap_Q, other_N_Q, first_N_Q), np.where(swap_Q, first_N_Q, other_N_Q)
        one, two = (observed_measures(rows_N_Q[:-1], rows_N_Q[-1], halves_K_Q, measures) for rows_N_Q in rows)
        for measure in measures:
            expected = two[measure.name] - one[measure.name]
            np.testing.assert_allclose(found[measure.name][swap], expected, atol=1e-12, err_msg=measure.name)
    assert set(found) == {measure.name for measure in measures}


@pytest.mark.parametrize("size", [1, 2])
def test_small_matrices_are_inverted_as_by_lapack(size: int) -> None:
    rng = np.random.default_rng(size)
    half = rng.normal(size=(4, 5, size, size))
    matrices = half @ half.swapaxes(-1, -2) + 0.1 * np.eye(size)
    inverse, root = priors._inverse_and_root(matrices)
    np.testing.assert_allclose(inverse @ matrices, np.broadcast_to(np.eye(size), matrices.shape), atol=1e-9)
    np.testing.assert_allclose(root, np.linalg.cholesky(np.linalg.inv(matrices)), rtol=1e-8, atol=1e-12)
    vectors = rng.normal(size=(4, 5, size))
    np.testing.assert_allclose(priors._multiply(matrices, vectors), (matrices @ vectors[..., None])[..., 0], atol=1e-12)


def test_small_matrices_are_multiplied_with_the_vectors_of_all_chains() -> None:
    rng = np.random.default_rng(0)
    for size in (1, 2, 3, 5):
        matrices, vectors = rng.normal(size=(5, size, size)), rng.normal(size=(4, 5, size))
        np.testing.assert_allclose(priors._multiply(matrices, vectors), (matrices @ vectors[..., None])[..., 0], atol=1e-12)


def test_draws_by_solving_have_the_mean_and_covariance_of_their_normal() -> None:
    rng = np.random.default_rng(0)
    half = rng.normal(size=(3, 3))
    part, diagonal, b = half @ half.T + 0.1 * np.eye(3), np.array([0.5, 2.0, 0.1]), np.array([1.0, -2.0, 0.5])
    part_noise = rng.multivariate_normal(np.zeros(3), part, size=40_000)
    precision = part + np.diag(diagonal)
    drawn = priors._sample_by_solving(np.tile(precision, (40_000, 1, 1)), part_noise, diagonal, np.tile(b, (40_000, 1)), rng)
    covariance = np.linalg.inv(precision)
    np.testing.assert_allclose(drawn.mean(axis=0), covariance @ b, atol=0.05 * np.sqrt(np.diag(covariance)).max())
    np.testing.assert_allclose(np.cov(drawn.T), covariance, atol=0.04 * np.diag(covariance).max())


def test_estimates_that_are_kept_are_those_of_their_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(posterior, "KEPT_ESTIMATES", 2)
    kept: dict[object, object] = {}
    monkeypatch.setattr(posterior, "_ESTIMATES", kept)
    rng = np.random.default_rng(1)
    grids = [((rng.random((3, 20)) < share).astype(float), np.full(20, NAN)) for share in (0.3, 0.6, 0.9)]
    first = [posterior_estimates(*grid, seed=0) for grid in grids]
    assert len(kept) == 2
    assert len({one["mean"].value if "mean" in one else one["worst"].value for one in first}) == 3
    first[2].clear()  # a caller's changes are its own
    assert posterior_estimates(*grids[2], seed=0)["worst"].value == posterior_estimates(*grids[2], seed=0)["worst"].value
    assert posterior_estimates(*grids[0], seed=0) == first[0]
    other_seed, no_effect = posterior_estimates(*grids[0], seed=1), posterior_estimates(*grids[0], seed=0, no_effect=True)
    assert other_seed["worst"] != first[0]["worst"]
    assert no_effect["worst"] != first[0]["worst"]
    values = (rng.random(80) < 0.5).astype(float)  # 4 × 20 and 8 × 10 with the same bytes, the last row without persona
    four, eight = (values.reshape(shape) for shape in ((4, 20), (8, 10)))
    assert [posterior_estimates(rows[:-1], rows[-1], seed=0)["worst"].n for rows in (four, eight)] == [20, 10]


@pytest.mark.slow
def test_a_difference_of_nothing_has_a_p_of_one() -> None:
    """Sample means of thirds: sums in another order differ by rounding."""
    for seed in range(20):
        rng = np.random.default_rng(seed)
        first = rng.integers(0, 4, size=(5, 8)) / 3
        other = first[:, rng.permutation(8)]  # the same accuracies of every persona, and of none
        found = {one.name: one for one in held(first, other, seed=seed).measures}
        for name in ("mean", "baseline", "mean_minus_baseline"):
            assert found[name].difference.value == pytest.approx(0.0, abs=1e-12)
            assert found[name].p == 1.0, (seed, name)


@pytest.mark.slow
def test_many_personas_on_few_questions_are_compared_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = list[int]()
    right = statistics.swapped_pss_crossfit

    def note(*given: Any) -> tuple[Array, Array]:
        blocks.append(given[-1] * len(given[2]) * max(given[0].shape))
        return right(*given)

    crossfit = dataclasses.replace(STABILITY_MEASURES["pss_crossfit"], swapped_formula=note)
    monkeypatch.setitem(STABILITY_MEASURES, "pss_crossfit", crossfit)
    rng = np.random.default_rng(0)
    first, other = ((rng.random((3001, 4)) < 0.5).astype(float) for _ in range(2))
    compare_models_paired(first, other, [str(row) for row in range(3000)], seed=0, resamples=2)
    assert blocks
    assert max(blocks) <= BOOTSTRAP_BLOCK_FLOATS
