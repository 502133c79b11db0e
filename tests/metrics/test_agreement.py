"""Agreement of judges: the published example, and values worked out by hand."""

import numpy as np
import pytest

from permix.metrics.judge_scores import PersonaBootstrap, coincidence_matrix, krippendorff_alpha, weighted_mean, within_tolerance
from permix.metrics.statistics import Array

_ = np.nan
KRIPPENDORFF_J_N = np.array(
    [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, _, _, _],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, _, 3],
        [_, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, _],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, _],
    ]
)
"""Four observers, twelve units: the example of Krippendorff (2011)."""


def alpha_of(score_J_N: Array) -> float:
    return float(krippendorff_alpha(coincidence_matrix(score_J_N[:, None, :]), np.ones((1, 1)))[0])


def test_the_published_example() -> None:
    assert alpha_of(KRIPPENDORFF_J_N) == pytest.approx(0.815, abs=5e-4)
    counts = coincidence_matrix(KRIPPENDORFF_J_N[:, None, :])[0]
    assert counts.sum() == pytest.approx(40)  # the single score of unit 12 has no pair
    assert counts[0, 0] == pytest.approx(7)
    assert counts[0, 1] == counts[1, 0] == pytest.approx(4 / 3)


def test_two_judges_by_hand() -> None:
    """Units (1,1), (1,2), (2,2): n = 3, 3 and δ² = 9 for each pair, so α = 1 − 5 · 2 · 9 / (2 · 9 · 9) = 4/9."""
    assert alpha_of(np.array([[1.0, 1.0, 2.0], [1.0, 2.0, 2.0]])) == pytest.approx(4 / 9)


def test_who_agrees_always_and_who_never_differs() -> None:
    assert alpha_of(np.array([[1.0, 3.0, 5.0], [1.0, 3.0, 5.0]])) == 1.0
    assert np.isnan(alpha_of(np.full((2, 6), 5.0)))
    assert np.isnan(alpha_of(np.array([[1.0, 2.0, 3.0]])))


def test_units_may_be_split_over_personas_and_judges_reordered() -> None:
    split = KRIPPENDORFF_J_N.reshape(4, 3, 4)
    assert krippendorff_alpha(coincidence_matrix(split), np.ones((1, 3)))[0] == pytest.approx(alpha_of(KRIPPENDORFF_J_N))
    assert alpha_of(KRIPPENDORFF_J_N[::-1]) == pytest.approx(alpha_of(KRIPPENDORFF_J_N))
    twice = np.concatenate([split, split[:, :1]], axis=1).reshape(4, -1)
    assert krippendorff_alpha(coincidence_matrix(split), np.array([[2.0, 1.0, 1.0]]))[0] == pytest.approx(alpha_of(twice))


def test_noise_has_no_agreement() -> None:
    noise = np.random.default_rng(0).integers(1, 6, size=(2, 40, 5)).astype(float)
    counts = coincidence_matrix(noise)
    found = PersonaBootstrap(40, 0, 500).estimate(lambda counts_R_P: krippendorff_alpha(counts, counts_R_P), 40)
    assert found.low is not None
    assert found.high is not None
    assert found.low < 0 < found.high


def test_exact_and_within_one() -> None:
    one, two = np.array([[5.0, 4.0, 1.0], [_, 3.0, 2.0]]), np.array([[5.0, 5.0, 4.0], [2.0, 3.0, _]])
    shares = [float(weighted_mean(within_tolerance(one, two, tolerance), np.ones((1, 2)))[0]) for tolerance in (0, 1)]
    assert shares == [2 / 4, 3 / 4]
