"""Sequential allocation: rounds, ends and tests by hand; what holds although cells were chosen in the light of answers."""

import numpy as np
import pytest

from permix.metrics import priors, sequential, statistics
from permix.metrics.priors import fit_noise_model
from permix.metrics.sequential import (
    Round,
    SequentialProgress,
    StoppingRule,
    contenders,
    count_cells,
    first_round,
    fisher_combined_p,
    later_rounds_p,
    next_round,
)
from permix.metrics.stability import summarize_stability
from permix.metrics.statistics import Array
from permix.types import Estimate

NAN = float("nan")
IDS = ("a", "b", "c", "d")


def pss(half_width: float) -> Estimate:
    return Estimate(value=0.5, low=0.5 - half_width, high=0.5 + half_width, n=30)


def at(half_width: float, *who: str) -> SequentialProgress:
    return SequentialProgress(pss(half_width), who)


OPENED = (Round(until=30, personas=IDS),)


def test_the_opening_asks_everyone() -> None:
    assert first_round(IDS, 100) == OPENED[0]
    assert first_round(IDS, 12).until == 12
    # Four personas and none: 30 questions, then two and none 10 more, each cell twice.
    assert count_cells([*OPENED, Round(until=40, personas=("a", "d"))], n_samples=2) == 2 * (5 * 30 + 3 * 10)


def test_the_next_round_asks_the_contenders() -> None:
    assert next_round(OPENED, at(0.2, "a", "d"), StoppingRule(None, 0.1), n_questions=100, n_samples=1) == Round(
        until=60, personas=("a", "d")
    )


@pytest.mark.parametrize(
    ("half_width", "limits", "questions", "until"),
    [
        (0.1, StoppingRule(None, 0.1), 100, None),  # close enough
        (0.11, StoppingRule(None, 0.1), 100, 60),
        (0.2, StoppingRule(None, 0.1), 30, None),  # no question is left
        (0.2, StoppingRule(None, 0.1), 37, 37),
        (0.2, StoppingRule(150, None), 100, None),  # the opening took it all
        (0.2, StoppingRule(152, 0.1), 100, None),  # two cells are less than the three of one question
        (0.2, StoppingRule(171, None), 100, 37),  # seven questions for 21 cells
        (0.0, StoppingRule(1000, None), 100, 60),  # nobody asked for an end at this width
    ],
)
def test_it_ends_when_it_is_enough(half_width: float, limits: StoppingRule, questions: int, until: int | None) -> None:
    one = next_round(OPENED, at(half_width, "a", "d"), limits, n_questions=questions, n_samples=1)
    assert (None if one is None else one.until) == until


def test_without_an_interval_no_precision_is_reached() -> None:
    unknown = SequentialProgress(Estimate(value=0.5, n=30), IDS)
    assert next_round(OPENED, unknown, StoppingRule(None, 0.9), n_questions=60, n_samples=1) == Round(until=60, personas=IDS)


def test_contenders_are_who_may_be_worst_or_best() -> None:
    # b is the worst in nine of ten draws and c in one, d the best in all: nine of ten are enough.
    draws = np.tile([0.5, 0.1, 0.4, 0.9], (10, 1))
    draws[0, 2] = 0.0
    assert contenders(draws) == [1, 3]
    draws[1, 2] = 0.0  # now b has eight of ten, and c is asked too
    assert contenders(draws) == [1, 2, 3]


def test_of_many_alike_only_some_are_asked() -> None:
    draws = np.random.default_rng(0).random((5000, 40))
    assert len(contenders(draws)) <= 2 * sequential.MAX_CONTENDERS


# The test of any effect


def test_who_led_before_leads_again() -> None:
    # One question before (1 against 0), one after (1 against 0): t = ½·½ + ½·½ = ½, var = ½·½ / 1 = ¼, z = 1.
    ahead = np.array([[1.0, 1.0], [0.0, 0.0]])
    assert later_rounds_p(ahead, [1, 2]) == pytest.approx(0.158655, abs=1e-6)
    behind = np.array([[1.0, 0.0], [0.0, 1.0]])
    assert later_rounds_p(behind, [1, 2]) == pytest.approx(1 - 0.158655, abs=1e-6)


def test_whoever_was_not_asked_does_not_count() -> None:
    scores = np.array([[1.0, 1.0], [0.0, 0.0], [1.0, NAN]])
    assert later_rounds_p(scores, [1, 2]) == later_rounds_p(scores[:2], [1, 2])


def test_nothing_to_tell_apart_is_no_test() -> None:
    assert later_rounds_p(np.ones((3, 4)), [2, 4]) is None
    assert later_rounds_p(np.array([[1.0, 0.0]]), [1, 2]) is None
    assert later_rounds_p(np.eye(2), [2]) is None


def test_two_tests_are_one() -> None:
    # For two, Fisher's is x (1 − ln x) with x their product: .01 (1 + 4.60517).
    assert fisher_combined_p(0.1, 0.1) == pytest.approx(0.0560517)
    assert (fisher_combined_p(0.1, None), fisher_combined_p(None, 0.1)) == (0.1, None)
    assert fisher_combined_p(0.5, 0.0) == pytest.approx(0, abs=1e-200)


def test_choosing_who_seems_apart_does_not_reject_more_often() -> None:
    """No effect at all; after ten questions the luckiest and the unluckiest are asked forty more."""
    rng, rejected = np.random.default_rng(3), 0
    for _ in range(400):
        scores = (rng.random((12, 50)) < rng.uniform(0.2, 0.8, size=50)).astype(float)
        seen = scores[:, :10].mean(axis=1)
        between = np.setdiff1d(np.arange(12), [seen.argmin(), seen.argmax()])
        scores[between, 10:] = NAN
        p = later_rounds_p(scores, [10, 50])
        rejected += p is not None and p < 0.05
    assert rejected / 400 < 0.08


# Missing by design


def test_of_a_whole_grid_personas_are_their_means() -> None:
    scores = np.array([[1.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 0.0]])
    for ratio in (0.0, 0.7, 100.0):
        found = statistics.fit_mixed_model(scores, ratio)
        assert found.accuracy_P == pytest.approx([0.75, 0.25])
        assert found.noise_cov_P_P == pytest.approx(np.eye(2) / 4)


def test_a_persona_asked_the_hard_questions_is_put_right_by_what_it_shares() -> None:
    # Questions differ only: b was asked the first two, which a got wrong. With all variance between questions, b is a's equal.
    scores = np.array([[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, NAN, NAN]])
    assert statistics.fit_mixed_model(scores, 1e6).accuracy_P == pytest.approx([0.5, 0.5], abs=1e-3)
    assert statistics.fit_mixed_model(scores, 0.0).accuracy_P == pytest.approx(
        [0.5, 0.0]
    )  # with none of it, its own mean is all there is


def test_correlated_noise_without_correlation_is_noise_of_ones_own() -> None:
    y_P = np.array([-0.3, 0.0, 0.05, 0.1, 0.6])
    noise_P = np.array([0.01, 0.02, 0.01, 0.03, 0.01])
    alone = priors.sample_horseshoe(y_P[:, None], noise_P[:, None, None], np.random.default_rng(0))[..., 0]
    joint = priors.sample_correlated_horseshoe(y_P, np.diag(noise_P), np.random.default_rng(1))
    assert joint.mean(axis=0) == pytest.approx(alone.mean(axis=0), abs=0.03)
    assert joint.std(axis=0) == pytest.approx(alone.std(axis=0), rel=0.25)


def test_what_is_missing_by_design_keeps_its_noise_together() -> None:
    scores = (np.random.default_rng(1).random((6, 90)) < 0.5).astype(float)
    scores[2:, 30:] = NAN
    seen = fit_noise_model(scores, missing_by_design=True)
    assert seen.noise_cov_P_P is not None
    assert np.diag(seen.noise_cov_P_P) == pytest.approx(seen.noise_var_P)
    assert seen.noise_var_P[:2].max() < 0.5 * seen.noise_var_P[2:].min()
    assert fit_noise_model(scores).noise_cov_P_P is None


# The summary


def world(rng: np.random.Generator, accuracy_P: Array, questions: int) -> tuple[Array, Array]:
    """Answers of personas and, at .5, of none; questions differ by ± .2 for all alike."""
    level_Q = 0.2 * rng.choice([-1, 1], size=questions)
    chance_N_Q = np.append(accuracy_P, 0.5)[:, None] + level_Q
    right_N_Q = (rng.random(chance_N_Q.shape) < chance_N_Q).astype(float)
    return right_N_Q[:-1, :, None], right_N_Q[-1, :, None]


def run(correct_P_Q_S: Array, baseline_Q_S: Array, limits: StoppingRule) -> tuple[tuple[Round, ...], Array]:
    """The rounds, and the answers that they got."""
    P, Q, _ = correct_P_Q_S.shape
    ids = [str(place) for place in range(P)]
    rounds, seen = [first_round(ids, Q)], np.full_like(correct_P_Q_S, NAN)
    before = 0
    while True:
        rows = [int(id) for id in rounds[-1].personas]
        seen[rows, before : rounds[-1].until] = correct_P_Q_S[rows, before : rounds[-1].until]
        before = rounds[-1].until
        mean_P_Q, baseline_Q = statistics.mean_over_samples(seen[:, :before]), statistics.mean_over_samples(baseline_Q_S[:before])
        found = sequential.sequential_progress(
            sequential.measure_rounds(mean_P_Q, baseline_Q, rounds, ids, seed=0, resamples=100), ids
        )
        one = next_round(rounds, found, limits, n_questions=Q, n_samples=1)
        if one is None:
            return tuple(rounds), seen[:, :before]
        rounds.append(one)


def test_one_round_is_a_whole_grid() -> None:
    correct, baseline = world(np.random.default_rng(0), np.linspace(0.3, 0.7, 4), 30)
    found = sequential.summarize_rounds(correct, baseline, OPENED, IDS, resamples=100)
    whole = summarize_stability(correct, baseline, persona_ids=IDS, resamples=100)
    for name in ("pss_null", "pss_observed", "worst_per_question"):
        assert found.measures[name] == whole.measures[name]
    for name in ("permutation_p", "n_asked", "n_scored", "n_questions", "minimum_detectable_effect"):
        assert getattr(found, name) == getattr(whole, name)
    assert found.pss.value == pytest.approx(whole.pss.value, abs=0.03)
    assert [one.mcnemar_p for one in found.personas] == [one.mcnemar_p for one in whole.personas]


def test_cells_go_to_the_worst_and_the_best() -> None:
    accuracy_P = np.array([0.25, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.75])
    correct, baseline = world(np.random.default_rng(4), accuracy_P, 300)
    rounds, seen = run(correct, baseline, StoppingRule(None, 0.08))
    asked_P = (~np.isnan(seen)).sum(axis=(1, 2))
    assert asked_P[[0, 7]].min() > 2 * asked_P[1:7].mean()
    found = sequential.summarize_rounds(seen, baseline[: seen.shape[1]], rounds, list("01234567"), resamples=100)
    assert found.n_asked == asked_P.sum()
    assert found.pss_null.n == found.pss_observed.n == 30
    assert (found.pss.n, found.baseline.n) == (seen.shape[1], seen.shape[1])
    assert [one.n for one in found.personas] == asked_P.tolist()
    assert found.permutation_p.value is not None
    assert found.permutation_p.value < 0.001
    assert found.pss.high is not None
    assert found.pss.low is not None
    assert (found.pss.high - found.pss.low) / 2 <= 0.08


def test_a_persona_without_a_score_is_listed_and_not_compared() -> None:
    correct, baseline = world(np.random.default_rng(0), np.linspace(0.3, 0.7, 4), 30)
    correct[1] = NAN
    found = sequential.summarize_rounds(correct, baseline, OPENED, IDS, resamples=100)
    assert (found.personas[1].accuracy.value, found.personas[1].n) == (None, 0)
    assert (found.pss.value is not None, found.n_scored) == (True, 90)


@pytest.mark.slow
@pytest.mark.parametrize(
    "accuracy_P", [np.full(10, 0.5), np.array([0.25, *[0.5] * 9]), np.linspace(0.3, 0.7, 10)], ids=["alike", "one bad", "graded"]
)
def test_intervals_hold_the_truth_although_cells_were_chosen(accuracy_P: Array) -> None:
    """The lucky of the opening fall back in later rounds; that may pull neither them nor the others."""
    rng, held = np.random.default_rng(11), []
    truth = {
        "worst": accuracy_P.min(),
        "best": accuracy_P.max(),
        "mean": accuracy_P.mean(),
        "mean_minus_baseline": accuracy_P.mean() - 0.5,
    }
    for _ in range(12):
        correct, baseline = world(rng, accuracy_P, 150)
        rounds, seen = run(correct, baseline, StoppingRule(700, None))
        ids = [str(place) for place in range(10)]
        found = sequential.summarize_rounds(seen, baseline[: seen.shape[1]], rounds, ids, seed=1, resamples=100)
        for name, value in truth.items():
            one = found.measures[name]
            held.append(one.low <= value <= one.high)
    assert np.mean(held) > 0.88
