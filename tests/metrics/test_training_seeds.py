"""Intervals over questions and training seeds, and the power of a comparison by them: by hand, and by simulation."""

import numpy as np
import pytest
from scipy.stats import nct, norm, t

from permix.metrics.measures import MEASURE_VIEWS
from permix.metrics.posterior import AccuracyGrid
from permix.metrics.stability import pool_over_seeds, pool_stability, seed_differences, stability_differences
from permix.metrics.statistics import relative_change
from permix.metrics.training_seeds import (
    SeedValues,
    SeedVarianceComponents,
    cover_seed_differences,
    cover_training_seeds,
    limit_ends,
    power_over_seeds,
    scale_questions,
    seed_variance_components,
)
from permix.types import Estimate


def are_near(found: SeedVarianceComponents | None, seed: float | None, own: float, shared: float) -> bool:
    assert found is not None
    expected = {"seed": seed, "own": own, "shared": shared}
    return found.model_dump() == {name: one if one is None else pytest.approx(one) for name, one in expected.items()}


WAVE_R = np.array([-0.02, -0.01, 0.0, 0.01, 0.02])
"""Replicates with mean 0 and variance .00025."""


def test_one_noise_of_all_seeds_is_added_to_that_of_the_seeds() -> None:
    """Both seeds have the same question noise, so all of it is shared: √((12.706 × .1414)² / 2 + .03²) = 1.2710."""
    values = SeedValues(np.array([0.1, 0.3]), np.stack([0.1 + WAVE_R, 0.3 + WAVE_R]))
    found = cover_training_seeds(Estimate(value=0.2, low=0.17, high=0.24, n=50), [values])
    assert are_near(found.components, 0.02, 0.0, 0.00025)
    assert found.over_seeds.low == pytest.approx(0.2 - np.hypot(12.7062 * 0.1, 0.03), abs=1e-5)
    assert found.over_seeds.high == pytest.approx(0.2 + np.hypot(12.7062 * 0.1, 0.04), abs=1e-5)
    assert found.over_seeds.n == 50
    assert found.p == pytest.approx(2 * t.sf(0.2 / 0.1, 1), abs=0.01)  # the questions add little


def test_noise_that_each_seed_has_of_its_own_is_counted_once() -> None:
    """Replicates of opposite sign are negatively correlated: nothing is shared, and the interval is Student's t of the seeds."""
    values = SeedValues(np.array([0.10, 0.12, 0.14]), np.stack([0.1 + WAVE_R, 0.12 - WAVE_R, 0.14 + 0 * WAVE_R]))
    found = cover_training_seeds(Estimate(value=0.12, low=0.115, high=0.125, n=50), [values])
    assert found.components is not None
    assert found.components.shared == 0
    half = 4.302653 * 0.02 / np.sqrt(3)
    assert found.over_seeds.low == pytest.approx(0.12 - half)
    assert found.over_seeds.high == pytest.approx(0.12 + half)
    assert found.p == pytest.approx(2 * t.sf(0.12 / (0.02 / np.sqrt(3)), 2))


def test_seeds_that_agree_never_make_the_interval_narrower() -> None:
    over_questions = Estimate(value=0.2, low=0.15, high=0.22, n=50)
    values = SeedValues(np.array([0.2, 0.2]), np.stack([0.2 + WAVE_R, 0.2 - WAVE_R]))
    found = cover_training_seeds(over_questions, [values])
    assert found.over_seeds.low == pytest.approx(0.15)
    assert found.over_seeds.high == pytest.approx(0.22)


def test_one_seed_is_not_covered_and_its_variance_not_known() -> None:
    over_questions = Estimate(value=0.2, low=0.15, high=0.22, n=50)
    found = cover_training_seeds(over_questions, [SeedValues(np.array([0.2]), 0.2 + WAVE_R[None])])
    assert (found.over_seeds, found.p) == (Estimate(value=0.2, n=50), None)
    assert are_near(found.components, None, 0.00025, 0.0)
    several = SeedValues(np.array([0.1, 0.3]), np.stack([0.1 + WAVE_R, 0.3 + WAVE_R]))
    one = SeedValues(np.array([0.0]), WAVE_R[None])
    assert cover_seed_differences(over_questions, several, one, "unpaired").over_seeds.low is None
    assert cover_seed_differences(over_questions, several, one, "untrained").over_seeds.low is not None


@pytest.mark.parametrize("missing", ["value", "seed", "ends"])
def test_without_a_value_or_an_interval_there_is_none_over_seeds(missing: str) -> None:
    over_questions = Estimate(
        value=None if missing == "value" else 0.2,
        low=None if missing == "ends" else 0.1,
        high=None if missing == "ends" else 0.3,
        n=9,
    )
    values = SeedValues(np.array([0.1, np.nan if missing == "seed" else 0.3]), np.stack([WAVE_R, WAVE_R]))
    found = cover_training_seeds(over_questions, [values])
    assert (found.over_seeds.low, found.over_seeds.high, found.p) == (None, None, None)


def test_pairs_differ_less_than_methods_whose_seeds_move_together() -> None:
    """Seeds move both methods by the same: paired there is nothing left, unpaired both variances count."""
    noise_S_R = np.zeros((3, 5)) + WAVE_R
    first, other = (SeedValues(np.array([0.1, 0.2, 0.6]) + more, noise_S_R) for more in (0.0, 0.05))
    over_questions = Estimate(value=0.05, low=0.03, high=0.07, n=50)
    paired = cover_seed_differences(over_questions, other, first, "paired")
    unpaired = cover_seed_differences(over_questions, other, first, "unpaired")
    assert paired.over_seeds.low == pytest.approx(0.03)
    assert paired.over_seeds.high == pytest.approx(0.07)
    # The replicates of the difference do not vary, so they say nothing, and the half-width over questions counts in full.
    half = np.hypot(4.302653 * np.sqrt(2 * first.value_S.var(ddof=1) / 3), 0.02)
    assert unpaired.over_seeds.high == pytest.approx(0.05 + half, rel=1e-6)
    assert paired.p is not None
    assert unpaired.p is not None
    assert paired.p < 0.001 < 0.05 < unpaired.p


def test_p_is_below_the_level_where_the_interval_excludes_zero() -> None:
    rng = np.random.default_rng(0)
    sides = []
    for _ in range(200):
        value_S, noise_S_R = rng.normal(0.06, 0.04, 3), rng.normal(0, 0.01, (3, 50)) + rng.normal(0, 0.01, 50)
        mean = float(value_S.mean())
        found = cover_training_seeds(
            Estimate(value=mean, low=mean - 0.02, high=mean + 0.03, n=50), [SeedValues(value_S, value_S[:, None] + noise_S_R)]
        )
        assert found.p is not None
        assert found.over_seeds.low is not None
        assert found.over_seeds.high is not None
        shown = found.over_seeds.low > 0 or found.over_seeds.high < 0
        assert shown == (found.p < 0.05)
        sides.append(shown)
    assert 20 < sum(sides) < 180


def test_a_relative_change_has_the_variance_of_its_first_order_approximation() -> None:
    # Means .5 and .6: ratio 1.2. The values of a seed are .6 / .5 − 1.2 y / .5: .24 and −.24, standard error .24.
    first, other = (SeedValues(np.array(values), np.array([values] * 3).T) for values in ([0.4, 0.6], [0.6, 0.6]))
    found = cover_seed_differences(Estimate(value=0.2, low=0.2, high=0.2, n=9), other, first, "paired", change=relative_change)
    assert found.over_seeds.low == pytest.approx(0.2 - t.ppf(0.975, 1) * 0.24)
    assert found.over_seeds.high == pytest.approx(0.2 + t.ppf(0.975, 1) * 0.24)
    unpaired = cover_seed_differences(
        Estimate(value=0.2, low=0.2, high=0.2, n=9), other, first, "unpaired", change=relative_change
    )
    assert unpaired.over_seeds == found.over_seeds  # the other method's seeds do not differ
    nothing = Estimate(value=None, n=0)
    zero = SeedValues(np.zeros(2), np.zeros((2, 3)))
    assert cover_seed_differences(nothing, other, zero, "paired", change=relative_change).over_seeds == nothing


def test_ends_stay_within_what_is_possible() -> None:
    assert limit_ends(Estimate(value=0.5, low=-2.0, high=3.0, n=5), 0.0, 1.0) == Estimate(value=0.5, low=0.0, high=1.0, n=5)
    assert limit_ends(Estimate(value=0.5, n=5), 0.0, 1.0) == Estimate(value=0.5, n=5)


def test_variances_are_found_again() -> None:
    """3,000 data sets of 4 seeds: σ² = .0004, e = .0003, c = .0002. Those below 0 count as 0, so σ² is a little high."""
    rng = np.random.default_rng(1)
    found = []
    for _ in range(3000):
        noise_S_R = rng.normal(0, np.sqrt(0.0003), (4, 100)) + rng.normal(0, np.sqrt(0.0002), 100)
        value_S = rng.normal(0, np.sqrt(0.0004 + 0.0003), 4) + rng.normal(0, np.sqrt(0.0002))
        found.append(seed_variance_components([SeedValues(value_S, noise_S_R)]))
    assert np.mean([one.own for one in found]) == pytest.approx(0.0003, rel=0.02)
    assert np.mean([one.shared for one in found]) == pytest.approx(0.0002, rel=0.03)
    assert 0.00038 < np.mean([one.seed for one in found if one.seed is not None]) < 0.00046


# Power


@pytest.mark.parametrize(("seeds", "effect"), [(3, 0.05), (5, 0.05), (8, 0.03), (8, 0.0)])
def test_without_shared_noise_the_power_is_that_of_a_t_test(seeds: int, effect: float) -> None:
    """Where the seeds differ much more than the questions. The non-centrality is δ / √((σ² + e) / S)."""
    components = SeedVarianceComponents(seed=0.0012, own=0.00003, shared=0.0)
    quantile, shift = t.ppf(0.975, seeds - 1), effect / np.sqrt(0.00123 / seeds)
    expected = nct.sf(quantile, seeds - 1, shift) + nct.cdf(-quantile, seeds - 1, shift)
    assert power_over_seeds(effect, components, seeds) == pytest.approx(expected, abs=0.003)


def test_with_shared_noise_alone_the_power_is_that_of_a_normal_test() -> None:
    components = SeedVarianceComponents(seed=0.0, own=0.0, shared=0.0004)
    by_hand = norm.sf(1.96 - 0.05 / 0.02) + norm.cdf(-1.96 - 0.05 / 0.02)  # .705
    assert power_over_seeds(0.05, components, 3) == pytest.approx(by_hand, abs=1e-4) == pytest.approx(0.7054, abs=1e-3)
    assert power_over_seeds(0.05, components, 1) == pytest.approx(by_hand, abs=1e-4)


def test_one_seed_shows_differences_that_are_of_the_seeds() -> None:
    """σ² as large as the question noise: the interval excludes 0 in P(|z| > 1.96 / √2) = 16.6 % of equal methods."""
    components = SeedVarianceComponents(seed=0.0004, own=0.0004, shared=0.0)
    assert power_over_seeds(0.0, components, 1) == pytest.approx(2 * norm.sf(1.959964 / np.sqrt(2)), abs=1e-6)
    assert power_over_seeds(0.0, components, 3) < 0.05


def test_questions_divide_their_own_noise_only() -> None:
    components = scale_questions(SeedVarianceComponents(seed=0.0004, own=0.0003, shared=0.0002), 100, 400)
    assert are_near(components, 0.0004, 0.000075, 0.00005)


@pytest.mark.parametrize(
    ("seed", "n_seeds", "text"),
    [(0.1, 0, "n_seeds is 0; it must be at least 1"), (None, 3, "components.seed is None: one training")],
)
def test_what_cannot_be_planned_is_refused(seed: float | None, n_seeds: int, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        power_over_seeds(0.05, SeedVarianceComponents(seed=seed, own=0.1, shared=0.0), n_seeds)


def test_the_power_is_how_often_the_interval_excludes_zero() -> None:
    """2,000 data sets of 4 seeds; the replicates are a third of the noise of all. ± .03."""
    rng, components = np.random.default_rng(2), SeedVarianceComponents(seed=0.0003, own=0.0002, shared=0.0002)
    shown = 0
    for _ in range(2000):
        noise_S_R = rng.normal(0, np.sqrt(0.0002), (4, 200)) + rng.normal(0, np.sqrt(0.0002), 200)
        value_S = 0.05 + rng.normal(0, np.sqrt(0.0005), 4) + rng.normal(0, np.sqrt(0.0002))
        mean, half = float(value_S.mean()), 1.96 * np.sqrt(0.0002 + 0.0002 / 4)
        over_seeds = cover_training_seeds(
            Estimate(value=mean, low=mean - half, high=mean + half, n=100), [SeedValues(value_S, noise_S_R)]
        ).over_seeds
        shown += over_seeds.low is not None and over_seeds.high is not None and (over_seeds.low > 0 or over_seeds.high < 0)
    assert shown / 2000 == pytest.approx(power_over_seeds(0.05, components, 4), abs=0.03)


# Of grids


def grids(shifts: list[float], seed: int) -> list[AccuracyGrid]:
    """Of each shift 6 personas × 60 questions, and none; the questions are the same everywhere."""
    level_Q = np.random.default_rng(0).normal(0, 1, 60)
    rng = np.random.default_rng(seed)
    found = []
    for shift in shifts:
        right_N_Q = (shift + level_Q + rng.normal(0, 0.3, (7, 60)) > 0).astype(float)
        found.append((right_N_Q[:-1], right_N_Q[-1]))
    return found


@pytest.fixture(scope="module")
def pair() -> tuple[list[AccuracyGrid], list[AccuracyGrid]]:
    return grids([0.0, 0.3, 0.6], 1), grids([0.4, 0.7, 1.0], 2)


def test_differences_over_questions_are_those_known_and_seeds_are_added(
    pair: tuple[list[AccuracyGrid], list[AccuracyGrid]],
) -> None:
    first, other = pair
    known = stability_differences(other, first, 0, 200)
    found = seed_differences(other, first, "paired", known, 0, 200)
    assert tuple(found) == MEASURE_VIEWS["seed_differences"]
    for name, one in found.items():
        over_questions, over_seeds = one.over_questions, one.over_seeds
        assert over_questions == known.get(name, over_questions)
        assert over_questions.value == over_seeds.value
        assert over_questions.low is not None
        assert over_seeds.low is not None
        assert over_seeds.low <= over_questions.low
    mean_S = [under.mean() - before.mean() for (before, _), (under, _) in zip(first, other, strict=True)]
    assert found["mean"].over_seeds.value == pytest.approx(np.mean(mean_S))
    assert found["mean"].components is not None
    assert found["mean"].components.seed is not None
    assert found["mean"].components.seed <= np.var(mean_S, ddof=1)


def test_other_order_of_paired_seeds_and_personas_that_are_missing(pair: tuple[list[AccuracyGrid], list[AccuracyGrid]]) -> None:
    first, other = pair
    turned = seed_differences(other[::-1], first[::-1], "paired", {}, 0, 200)["mean"].over_seeds
    assert turned.low == pytest.approx(seed_differences(other, first, "paired", {}, 0, 200)["mean"].over_seeds.low)
    unasked = [(np.full_like(mean_P_Q, np.nan), baseline_Q) for mean_P_Q, baseline_Q in other]
    assert seed_differences(unasked, first, "paired", {}, 0, 50) == {}
    without = [(mean_P_Q, np.full_like(baseline_Q, np.nan)) for mean_P_Q, baseline_Q in other]
    found = seed_differences(without, first, "paired", {}, 0, 50)
    assert found["mean"].over_seeds.low is not None
    assert (found["mean_minus_baseline"].over_questions.value, found["mean_minus_baseline"].over_seeds.value) == (None, None)


def test_numbers_of_a_method_over_seeds_contain_those_over_questions(pair: tuple[list[AccuracyGrid], list[AccuracyGrid]]) -> None:
    pooled = pool_stability(pair[0], 0, 200)
    found = pool_over_seeds(pair[0], pooled, 0, 200)
    assert found.keys() == pooled.keys()
    for name, one in found.items():
        alone = pooled[name]
        assert None not in (one.low, one.high, alone.low, alone.high)
        assert one.value == alone.value
        assert 0 <= (one.low or 0.0) <= (alone.low or 0.0) <= (alone.high or 0.0) <= (one.high or 0.0)
    # Accuracies of .5, .6 and .7: t × s / √3 = 4.3 × .1 / 1.73 = .25 at least.
    assert (found["mean"].high or 0.0) - (found["mean"].low or 0.0) > 0.4
