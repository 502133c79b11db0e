"""The measures against numbers worked by hand, against brute force, and against simulations with a known truth."""

from itertools import combinations, product
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import ndtr

from permix.metrics import statistics

MANY = 10**9
NAN = float("nan")
# Three personas on four questions: A = .75, .50, .25.
LADDER_P_Q = np.array([[1.0, 1, 1, 0], [1, 0, 1, 0], [0, 0, 1, 0]])
ONCE_1_4 = np.ones((1, 4))
accuracies = arrays(float, st.integers(1, 7), elements=st.floats(0, 1, width=32))


def test_sample_mean_leaves_unscored_samples_out() -> None:
    mean_P_Q = statistics.mean_over_samples(np.array([[[1.0, NAN, 0], [NAN, NAN, 1], [NAN, NAN, NAN]]]))
    np.testing.assert_array_equal(mean_P_Q, [[0.5, 1.0, NAN]])


def test_question_mean_weighs_questions_and_skips_unscored_ones() -> None:
    mean_P_Q = np.array([[1.0, 0, NAN], [1, 0, 1], [NAN, NAN, NAN]])
    counts_R_Q = np.array([[1.0, 1, 1], [2, 0, 1], [0, 0, 3]])
    # persona 0 has two scored questions; the third draw takes only the one it lacks
    np.testing.assert_allclose(
        statistics.weighted_question_mean(mean_P_Q, counts_R_Q), [[1 / 2, 2 / 3, NAN], [1, 1, NAN], [NAN, 1, NAN]]
    )


@pytest.mark.parametrize(
    ("accuracy_P", "expected"),
    [([0.75, 0.5, 0.25], 1 / 3), ([0.4], NAN), ([0.5, 0.0], 0.0), ([0.0, 0.0], NAN), ([NAN, 0.5], NAN)],
)
def test_pss(accuracy_P: list[float], expected: float) -> None:
    np.testing.assert_allclose(statistics.pss(np.array(accuracy_P)), expected)


@given(accuracies)
def test_pss_is_a_share_and_ignores_order(accuracy_P: statistics.Array) -> None:
    found = statistics.pss(accuracy_P)
    assert np.isnan(found) if len(accuracy_P) < 2 or not accuracy_P.any() else 0 <= found <= 1
    np.testing.assert_equal(found, statistics.pss(accuracy_P[::-1]))


def test_expected_best_of_k_by_hand() -> None:
    # k=2: {.75 .50} {.75 .25} {.50 .25} have best .75, .75, .50
    np.testing.assert_allclose(statistics.expected_best_of_k(np.array([0.5, 0.75, 0.25])), [0.5, 2 / 3, 0.75])


@given(accuracies)
def test_expected_best_of_k_is_the_mean_over_all_draws(accuracy_P: statistics.Array) -> None:
    draws = [[max(draw) for draw in combinations(accuracy_P, k)] for k in range(1, len(accuracy_P) + 1)]
    np.testing.assert_allclose(statistics.expected_best_of_k(accuracy_P), [np.mean(best) for best in draws], atol=1e-9)


def test_expected_best_of_k_stays_exact_for_many_personas() -> None:
    curve_K = statistics.expected_best_of_k(np.linspace(0, 1, 200))
    assert curve_K[0] == pytest.approx(0.5)
    assert curve_K[-1] == 1.0
    assert (np.diff(curve_K) >= -1e-12).all()


def test_case_worst_takes_each_questions_own_worst_persona() -> None:
    assert statistics.worst_per_question(LADDER_P_Q, ONCE_1_4) == [0.25]  # minima 0 0 1 0
    opposite_P_Q = np.array([[1.0, 0, NAN], [0, 1, NAN]])  # both A_p = .5, yet no question is safe; the third is unscored
    assert statistics.worst_per_question(opposite_P_Q, np.ones((1, 3))) == [0.0]


def test_persona_sd_by_hand() -> None:
    # var_p(A) = .0625. Residuals x_pq - x_p - x_q + .5, in twelfths: 1 5 -3 -3 | 4 -4 0 0 | -5 -1 3 3, so SS = 120/144,
    # MS = (5/6)/6 = 5/36; 5/36/4 = 5/144. sd² = 9/144 - 5/144 = 1/36.
    np.testing.assert_allclose(statistics.persona_sd(LADDER_P_Q, ONCE_1_4), [1 / 6])


def test_persona_sd_is_cut_off_at_zero_and_undefined_without_error_degrees() -> None:
    assert statistics.persona_sd(np.array([[1.0, 0], [0, 1]]), np.ones((1, 2))) == [0.0]  # A_p equal, all is interaction
    assert np.isnan(statistics.persona_sd(np.array([[1.0, 0, 1]]), np.ones((1, 3)))).all()  # one persona
    assert np.isnan(statistics.persona_sd(np.array([[1.0], [0]]), np.ones((1, 1)))).all()  # one question


@pytest.mark.parametrize("missing", [0.0, 0.2])
def test_persona_sd_finds_the_true_sd_where_the_plain_sd_does_not(missing: float) -> None:
    rng = np.random.default_rng(0)
    chance_P_Q = np.array([[-0.1], [0.0], [0.1]]) + np.repeat([0.3, 0.7], 50)  # true persona sd .1
    noisy, corrected = [], []
    for _ in range(200):
        mean_P_Q = (rng.random(chance_P_Q.shape) < chance_P_Q).astype(float)
        mean_P_Q[rng.random(chance_P_Q.shape) < missing] = NAN
        noisy.append(np.nanmean(mean_P_Q, axis=1).var(ddof=1))
        corrected.append(statistics.persona_sd(mean_P_Q, np.ones((1, 100)))[0] ** 2)
    assert np.mean(noisy) > 0.0115
    assert np.mean(corrected) == pytest.approx(0.01, abs=0.001)


def test_half_splits_are_halves() -> None:
    halves_K_Q = statistics.random_half_splits(7, 50, np.random.default_rng(0))
    assert (halves_K_Q.sum(axis=1) == 3).all()
    assert len(np.unique(halves_K_Q, axis=0)) > 20


def test_pss_crossfit_by_hand() -> None:
    best_and_worst_P_Q = LADDER_P_Q[[0, 2]]
    evens = np.array([[1.0, 0, 1, 0]])
    # q0 q2 choose (A = 1, .5), q1 q3 score: best .5, worst 0. The other way round: best 1, worst .5. (0 + .5) / (.5 + 1)
    np.testing.assert_allclose(statistics.pss_crossfit(best_and_worst_P_Q, evens, ONCE_1_4), [1 / 3])
    # q0 q1 choose: best .5, worst .5. q2 q3 choose: a tie, so the mean of (1, 0) is both. Over the two splits 1.5 / 2.5
    both = np.array([[1.0, 0, 1, 0], [1, 1, 0, 0]])
    np.testing.assert_allclose(statistics.pss_crossfit(best_and_worst_P_Q, both, ONCE_1_4), [0.6])


def test_pss_crossfit_keeps_copies_of_a_question_in_one_half() -> None:
    evens = np.array([[1.0, 0, 1, 0]])
    # q0 drawn twice, q1 never: q0 q0 q2 choose (A = 1, 1/3) and q3 scores 0 and 0; then q3 ties, and the mean 2/3 is both.
    counts_R_Q = np.array([[2.0, 0, 1, 1]])
    np.testing.assert_allclose(statistics.pss_crossfit(LADDER_P_Q[[0, 2]], evens, counts_R_Q), [1.0])
    # q0 drawn four times stands on one side only, so nothing can score the choice
    assert np.isnan(statistics.pss_crossfit(LADDER_P_Q, evens, np.array([[4.0, 0, 0, 0]]))).all()


def test_pss_crossfit_edges() -> None:
    first = np.array([[1.0, 0]])
    once = np.ones((1, 2))
    assert np.isnan(statistics.pss_crossfit(np.zeros((2, 2)), first, once)).all()  # 0/0
    assert np.isnan(
        statistics.pss_crossfit(np.array([[1.0, 0], [0, 1]]), first, once)
    ).all()  # the chosen best scores 0, the worst 1
    unscored_P_Q = np.array([[1.0, NAN], [0.5, 0.5]])  # persona 0 is chosen best on q0 and has no score on q1; backwards is fine
    np.testing.assert_allclose(statistics.pss_crossfit(unscored_P_Q, first, once), [1.0])


def test_pss_crossfit_is_less_biased_than_the_plug_in_where_personas_do_nothing() -> None:
    rng = np.random.default_rng(0)
    halves_K_Q = statistics.random_half_splits(100, 20, rng)
    plain, crossed = [], []
    for _ in range(100):
        mean_P_Q = (rng.random((8, 100)) < 0.5).astype(float)
        plain.append(statistics.pss(mean_P_Q.mean(axis=1)))
        crossed.append(statistics.pss_crossfit(mean_P_Q, halves_K_Q, np.ones((1, 100)))[0])
    assert np.mean(plain) < 0.80
    assert np.mean(crossed) == pytest.approx(1.0, abs=0.03)


@pytest.mark.parametrize(("questions", "accuracy", "expected"), [(500, 0.5, 0.854), (30, 0.5, 0.513), (500, 0.15, 0.688)])
def test_noise_alone_pulls_the_plug_in_pss_of_16_equal_personas_down(questions: int, accuracy: float, expected: float) -> None:
    rng = np.random.default_rng(1)
    simulated = [statistics.pss((rng.random((16, questions)) < accuracy).mean(axis=1)) for _ in range(200)]
    assert np.mean(simulated) == pytest.approx(expected, abs=0.02)
    # and the permutation null, which sees one such data set, says the same
    mean_P_Q = (rng.random((16, questions)) < accuracy).astype(float)
    assert statistics.pss(statistics.null_accuracies(mean_P_Q, rng, 100)).mean() == pytest.approx(expected, abs=0.06)


def test_permutation_stays_within_the_question_and_leaves_gaps_where_they_were() -> None:
    mean_P_Q = np.random.default_rng(0).random((5, 40))
    mean_P_Q[1, :10] = mean_P_Q[:4, 3] = NAN
    permuted_P_Q = statistics.permute_within_question(mean_P_Q, np.random.default_rng(1))
    np.testing.assert_array_equal(np.isnan(permuted_P_Q), np.isnan(mean_P_Q))
    np.testing.assert_array_equal(np.sort(permuted_P_Q, axis=0), np.sort(mean_P_Q, axis=0))
    assert (permuted_P_Q != mean_P_Q).any()


def test_permutation_p_counts_the_data_itself_and_ties() -> None:
    assert statistics.permutation_p(2.0, np.array([1.0, 2.0, 3.0])) == 3 / 4
    assert statistics.permutation_p(9.0, np.array([1.0, 2.0, 3.0])) == 1 / 4
    assert statistics.permutation_p(0.0, np.zeros(3)) == 1.0


def test_permutation_p_is_small_one_time_in_twenty_without_an_effect() -> None:
    rng = np.random.default_rng(0)
    p_values = []
    for _ in range(200):
        mean_P_Q = (rng.random((4, 20)) < rng.random(20)).astype(float)
        null_R = statistics.null_accuracies(mean_P_Q, rng, 99).var(axis=1)
        p_values.append(statistics.permutation_p(float(mean_P_Q.mean(axis=1).var()), null_R))
    assert 0.01 <= np.mean(np.array(p_values) <= 0.05) <= 0.10
    assert np.mean(p_values) == pytest.approx(0.5, abs=0.1)


def test_mcnemar_by_hand() -> None:
    assert statistics.mcnemar_exact(1, 5) == pytest.approx(2 * (1 + 6) / 64)
    assert statistics.mcnemar_exact(0, 4) == pytest.approx(2 / 16)
    assert statistics.mcnemar_exact(3, 3) == 1.0
    assert statistics.mcnemar_exact(0, 0) == 1.0


@given(st.integers(0, 40), st.integers(0, 40))
def test_mcnemar_is_the_two_sided_binomial_tail(wins: int, losses: int) -> None:
    n, fewer = wins + losses, min(wins, losses)
    tail = sum(comb(n, k) for k in range(fewer + 1)) / 2**n
    assert statistics.mcnemar_exact(wins, losses) == pytest.approx(min(1.0, 2 * tail))


def test_paired_p_is_mcnemar_for_single_answers_and_a_sign_flip_test_for_means() -> None:
    assert statistics.sign_flip_p(np.array([1.0, -1, -1, -1, -1, -1, 0, NAN])) == pytest.approx(14 / 64)
    assert statistics.sign_flip_p(np.zeros(5)) == 1.0
    assert np.isnan(statistics.sign_flip_p(np.array([NAN])))
    # .5 four times: only ++++ and ---- of the 16 signings are as far from 0
    assert statistics.sign_flip_p(np.full(4, 0.5)) == pytest.approx(2 / 16)
    # size counts, not only sign: sums of ±1 ±.25 ±.25 reach |.5| in all eight signings
    assert statistics.sign_flip_p(np.array([1.0, -0.25, -0.25])) == 1.0


@pytest.mark.parametrize("denominator", [1, 2, 3, 4, 6, 12])
def test_sign_flip_p_counts_every_choice_of_signs(denominator: int) -> None:
    rng = np.random.default_rng(denominator)
    signs_R_Q = np.array(list(product((-1.0, 1.0), repeat=9)))
    for _ in range(10):
        difference_Q = rng.integers(-denominator, denominator + 1, size=9) / denominator
        as_far = np.abs(signs_R_Q @ difference_Q) >= abs(difference_Q.sum()) - 1e-9
        assert statistics.sign_flip_p(difference_Q) == pytest.approx(as_far.mean())


def test_sign_flip_p_of_any_numbers_is_exact_up_to_rounding_and_free_of_scale() -> None:
    rng = np.random.default_rng(0)
    signs_R_Q = np.array(list(product((-1.0, 1.0), repeat=11)))
    for scale in (1e-5, 1.0, 1e4):
        difference_Q = rng.normal(size=11) * scale
        as_far = np.abs(signs_R_Q @ difference_Q) >= abs(difference_Q.sum())
        assert statistics.sign_flip_p(difference_Q) == pytest.approx(as_far.mean(), abs=0.005)


def test_sign_flip_p_is_as_small_as_the_answers_make_it_and_never_0() -> None:
    assert statistics.sign_flip_p(np.full(60, 0.5)) == pytest.approx(2.0**-59)
    assert 0 < statistics.sign_flip_p(np.tile([0.5, 1.0], 800)) < 1e-300


def test_min_p_by_hand() -> None:
    # The observed 3 is the largest of the first statistic: p 1/4. In the second it is the smallest: p 1. Of the permutations only
    # the one with 9 has a p as small.
    null_2_R = np.array([[1.0, 2.0, 2.5], [5.0, 9.0, 4.0]])
    assert statistics.min_p(np.array([3.0, 0.0]), null_2_R) == 2 / 4
    assert statistics.min_p(np.array([3.0, 9.5]), null_2_R) == 1 / 4
    assert statistics.min_p(np.zeros(2), np.zeros((2, 5))) == 1.0


def test_the_statistics_of_a_persona_effect_by_hand() -> None:
    np.testing.assert_allclose(
        statistics.persona_effect_statistics(np.array([[0.2, 0.6, 0.7], [0.5, 0.5, 0.5]])), [[0.14 / 3, 0.0], [0.3, 0.0]]
    )


def test_one_permutation_moves_the_labels_of_all_grids_alike() -> None:
    mean_P_Q = np.random.default_rng(0).random((4, 6))
    mean_P_Q[1, 2] = NAN
    null_2_R_P = statistics.joint_null_accuracies(np.stack([mean_P_Q, 1 - mean_P_Q]), np.random.default_rng(1), 20)
    np.testing.assert_allclose(null_2_R_P[1], 1 - null_2_R_P[0])
    counts_P = (~np.isnan(mean_P_Q)).sum(axis=1)
    np.testing.assert_allclose((null_2_R_P[0] * counts_P).sum(axis=1), np.nansum(mean_P_Q))


def test_the_low_end_of_paired_differences_by_hand() -> None:
    # never worse on 20 questions: nothing below 1 - .025^(1/20) is excluded
    assert statistics.paired_low(np.zeros(20)) == pytest.approx(-(1 - 0.025 ** (1 / 20)))
    # two of 100 worse: Clopper-Pearson's high end of 2 in 100 is .0704
    assert statistics.paired_low(np.array([-1.0] * 2 + [0.0] * 98)) == pytest.approx(-0.0704, abs=1e-4)
    # many differences: Student's t
    many_Q = np.tile([-1.0, 1.0, 0.0, 0.0], 50)
    assert statistics.paired_low(many_Q) == pytest.approx(-1.972 * many_Q.std(ddof=1) / np.sqrt(200), abs=1e-3)
    assert statistics.paired_low(np.array([0.0, NAN])) == -1.0
    assert statistics.paired_low(np.full(5, -1.0)) == -1.0


def test_an_interval_of_paired_differences_reaches_what_was_not_seen() -> None:
    unseen = 1 - 0.025 ** (1 / 20)
    equal = statistics.bootstrap_paired(0.0, np.zeros(50), np.zeros(20))
    assert (equal.low, equal.high) == pytest.approx((-unseen, unseen))
    worse = np.array([-1.0] * 4 + [0.0] * 16)
    found = statistics.bootstrap_paired(-0.2, np.linspace(-0.4, 0.0, 200), worse)
    assert found.high == pytest.approx(-0.2 + max(unseen, 0.2), abs=0.01)
    assert found.low is not None
    assert found.low > -0.45


def test_holm_by_hand() -> None:
    # sorted .01 .03 .04 -> 3(.01) 2(.03) 1(.04) = .03 .06 .04, and never falling: .03 .06 .06
    np.testing.assert_allclose(statistics.holm_adjust(np.array([0.01, 0.04, NAN, 0.03])), [0.03, 0.06, NAN, 0.06])
    np.testing.assert_allclose(statistics.holm_adjust(np.array([0.6, 0.9])), [1.0, 1.0])
    assert statistics.holm_adjust(np.array([])).shape == (0,)


def test_estimate_corrects_a_biased_bootstrap_within_bounds() -> None:
    replicate_R = np.linspace(0, 1, 10_001)  # uniform: quantile = probability
    even = statistics.bootstrap_estimate(0.5, replicate_R, MANY)
    assert [even.low, even.high, even.n] == pytest.approx([0.025, 0.975, MANY])
    shifted = statistics.bootstrap_estimate(ndtr(0.25), replicate_R, MANY)  # z0 = .25
    assert [shifted.low, shifted.high] == pytest.approx([ndtr(0.5 - 1.96), ndtr(0.5 + 1.96)], abs=1e-4)
    above = statistics.bootstrap_estimate(
        1.5, replicate_R, MANY
    )  # every replicate is below: z0 stops at .5, and the interval reaches to the value
    assert [above.low, above.high] == pytest.approx([ndtr(1 - 1.96), 1.5], abs=1e-4)


def test_few_units_have_wider_intervals() -> None:
    found = statistics.bootstrap_estimate(0.5, np.linspace(0, 1, 10_001), 5)
    z = np.sqrt(5 / 4) * 2.776445  # Student's t, 4 degrees of freedom
    assert [found.low, found.high] == pytest.approx([ndtr(-z), ndtr(z)], abs=1e-4)


def test_a_share_of_nothing_or_all_has_the_exact_binomial_interval() -> None:
    """Of n right answers in n the lower end is the share at which that happens with probability .025."""
    none, all_right = statistics.bootstrap_share(0.0, np.zeros(10), 30), statistics.bootstrap_share(1.0, np.ones(10), 30)
    assert (none.low, none.high) == pytest.approx((0.0, 0.1157), abs=1e-4)
    assert (all_right.low, all_right.high) == pytest.approx((0.8843, 1.0), abs=1e-4)
    assert statistics.bootstrap_share(0.5, np.full(10, 0.5), 30) == statistics.bootstrap_estimate(0.5, np.full(10, 0.5), 30)


def test_estimate_claims_no_interval_it_cannot_have() -> None:
    assert statistics.bootstrap_estimate(NAN, np.ones(10), 5).value is None
    assert statistics.bootstrap_estimate(0.5, np.full(10, 0.5), 1).low is None  # one question
    assert statistics.bootstrap_estimate(0.5, np.array([0.4, NAN, NAN]), 5).low is None  # most replicates undefined
    assert statistics.bootstrap_estimate(0.5, np.array([0.4, 0.6, NAN]), 5).low is not None


def test_bootstrap_draws_as_many_questions_as_there_are_and_ignores_block_size() -> None:
    def drawn(block: int) -> statistics.BootstrapResult:
        rng = np.random.default_rng(3)
        return statistics.bootstrap(lambda counts_R_Q: {"counts": counts_R_Q}, 6, rng, 20, block)["counts"]

    np.testing.assert_array_equal(drawn(20).value, np.ones(6))
    assert (drawn(20).replicates.sum(axis=1) == 6).all()
    np.testing.assert_array_equal(drawn(20).replicates, drawn(7).replicates)


def test_bootstrap_mean() -> None:
    assert statistics.bootstrap_mean(np.array([NAN]), 0, 10).value is None
    values_N = np.array([0.0, 1, 1, NAN, 0, 1, 1])
    result = statistics.bootstrap_mean(values_N, 0, 500)
    assert [result.value, result.n] == pytest.approx([4 / 6, 6])
    assert result == statistics.bootstrap_mean(values_N, 0, 500)
    assert result != statistics.bootstrap_mean(np.array([0.0, 1, 1, 0.1, 0, 1, 1]), 0, 500)


def test_bootstrap_mean_covers_the_truth_nineteen_times_in_twenty() -> None:
    rng = np.random.default_rng(0)
    estimates = [statistics.bootstrap_mean(rng.random(40), seed, 300) for seed in range(200)]
    covered = [one.low <= 0.5 <= one.high for one in estimates if one.low is not None and one.high is not None]
    assert 0.89 <= np.mean(covered) <= 0.99


@settings(max_examples=30)
@given(arrays(float, (4, 9), elements=st.sampled_from([0.0, 0.5, 1.0, NAN])), st.permutations(range(4)))
def test_measures_do_not_depend_on_the_order_of_personas(mean_P_Q: statistics.Array, order: list[int]) -> None:
    rng = np.random.default_rng(0)
    halves_K_Q, counts_R_Q = statistics.random_half_splits(9, 5, rng), rng.multinomial(9, np.full(9, 1 / 9), size=3).astype(float)
    for measure in (
        statistics.worst_per_question,
        statistics.persona_sd,
        lambda mean_P_Q, counts_R_Q: statistics.pss_crossfit(mean_P_Q, halves_K_Q, counts_R_Q),
    ):
        np.testing.assert_allclose(measure(mean_P_Q[order], counts_R_Q), measure(mean_P_Q, counts_R_Q), atol=1e-7)


# Large grids


def many(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let any grid be large."""
    monkeypatch.setattr(statistics, "NORMAL_LIMIT_MIN_SCORES", 0)
    monkeypatch.setattr(statistics, "NORMAL_LIMIT_MIN_VARIANCE", 1.0)


def test_the_limit_of_many_permutations_has_their_mean_and_covariance(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    scores = (rng.random((4, 60)) < rng.uniform(0.1, 0.9, size=60)).astype(float)
    scores[0, :25] = np.nan
    permuted = statistics.null_accuracies(scores, np.random.default_rng(1), 20_000)
    many(monkeypatch)
    limit = statistics.null_accuracies(scores, np.random.default_rng(2), 20_000)
    assert len(np.unique(limit[:, 1])) > 61  # no counts of 60 answers
    assert limit.mean(axis=0) == pytest.approx(permuted.mean(axis=0), abs=0.002)
    assert np.cov(limit.T) == pytest.approx(np.cov(permuted.T), abs=1e-4)
    assert np.cov(limit.T)[0, 0] > 1.3 * np.cov(limit.T)[1, 1]  # who was asked less is known less


def test_where_nearly_all_answers_are_alike_there_is_no_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """One wrong answer in 400: its place among the personas is no normal number."""
    many(monkeypatch)
    scores = np.ones((4, 100))
    scores[2, 7] = 0
    found = statistics.null_accuracies(scores, np.random.default_rng(0), 50)
    assert sorted(set(found.ravel().round(9))) == [0.99, 1.0]


def test_where_a_question_went_the_same_for_all_nothing_can_be_permuted(monkeypatch: pytest.MonkeyPatch) -> None:
    many(monkeypatch)
    same = np.tile([0.0, 1.0, 1.0, 0.0, 1.0], (3, 1))
    assert statistics.null_accuracies(same, np.random.default_rng(0), 5) == pytest.approx(np.full((5, 3), 0.6))
