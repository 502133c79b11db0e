"""The arithmetic of judges' scores: values worked out by hand, and intervals that cover what is true."""

import numpy as np
import pytest
from scipy.stats import norm, spearmanr

from permix.metrics import statistics
from permix.metrics.judge_scores import (
    PersonaBootstrap,
    auc,
    length_correlation,
    persona_contributions,
    persona_score,
    rubric_means,
    weighted_mean,
)
from permix.metrics.statistics import Array
from permix.types import Estimate

_ = np.nan
ALL = np.ones((1, 2))
SCORES_P_U_Q = np.array([[[5.0, 3.0], [2.0, _]], [[4.0, _], [_, _]]])  # two personas, two rubrics, two answers each


def test_task_means_and_their_mean_leave_out_what_has_no_score() -> None:
    assert rubric_means(SCORES_P_U_Q, ALL).tolist() == [[4.0, 2.0]]  # (5 + 3 + 4) / 3 and 2
    assert persona_score(SCORES_P_U_Q, ALL).tolist() == [3.0]
    assert weighted_mean(SCORES_P_U_Q, ALL).tolist() == [3.5]


def test_a_persona_drawn_twice_counts_twice_with_all_its_answers() -> None:
    assert rubric_means(SCORES_P_U_Q, np.array([[2.0, 0.0], [1.0, 3.0]])).tolist() == [[4.0, 2.0], [4.0, 2.0]]
    assert weighted_mean(SCORES_P_U_Q, np.array([[0.0, 2.0]])).tolist() == [4.0]


def test_a_rubric_without_any_score_leaves_no_persona_score() -> None:
    assert np.isnan(persona_score(SCORES_P_U_Q, np.array([[0.0, 1.0]]))).all()


def test_contributions_of_personas_add_up_to_the_difference() -> None:
    difference_P_U_Q = np.array([[[1.0, 0.0], [-2.0, _]], [[2.0, _], [1.0, 1.0]]])
    added_P = persona_contributions(difference_P_U_Q)
    assert added_P == pytest.approx([(1 / 3 - 2 / 3) / 2, (2 / 3 + 2 / 3) / 2])
    assert added_P.sum() == pytest.approx(persona_score(difference_P_U_Q, ALL)[0])


def test_auc_counts_every_pair_of_a_rubric_once() -> None:
    right = np.array([[[5.0, 3.0]], [[4.0, _]]])
    wrong = np.array([[[3.0, _]], [[4.0, _]]])
    # 5 beats 3 and 4; 3 ties with 3, loses to 4; 4 beats 3, ties with 4
    assert auc(right, wrong, ALL) == pytest.approx([(2 + 0.5 + 1 + 0.5) / 6])


def test_auc_holds_no_answer_against_one_of_another_rubric() -> None:
    right = np.array([[[5.0], [1.0]]])
    wrong = np.array([[[5.0], [1.0]]])
    assert auc(right, wrong, np.ones((1, 1))).tolist() == [0.5]
    assert np.isnan(auc(right, np.full_like(wrong, _), np.ones((1, 1)))).all()


def test_a_judge_that_always_says_five_is_at_one_half_exactly() -> None:
    fives = np.full((12, 4, 3), 5.0)
    found = PersonaBootstrap(12, 0, 500).estimate(lambda counts_R_P: auc(fives, fives[:, :, :1], counts_R_P), 12)
    assert (found.value, found.low, found.high) == (0.5, 0.5, 0.5)


def test_length_correlation_is_spearman_within_the_rubric() -> None:
    rng = np.random.default_rng(0)
    words = rng.integers(5, 30, size=(6, 2, 4)).astype(float)
    scores = np.clip(np.round(words / 8 + rng.normal(size=words.shape)), 1, 5)
    by_rubric = [spearmanr(scores[:, t].ravel(), words[:, t].ravel()).statistic for t in range(2)]
    assert length_correlation(scores, words, np.ones((1, 6))) == pytest.approx([np.mean(by_rubric)])
    counts = np.array([[2.0, 0.0, 1.0, 1.0, 2.0, 0.0]])
    rows = np.repeat(np.arange(6), counts[0].astype(int))
    resampled = [spearmanr(scores[rows, t].ravel(), words[rows, t].ravel()).statistic for t in range(2)]
    assert length_correlation(scores, words, counts) == pytest.approx([np.mean(resampled)])


def test_a_rubric_where_all_scores_are_alike_has_no_length_correlation() -> None:
    words = np.array([[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]])
    scores = np.array([[[5.0, 5.0, 5.0], [1.0, _, 3.0]]])
    assert length_correlation(scores, words, np.ones((1, 1))).tolist() == [1.0]
    assert np.isnan(length_correlation(scores[:, :1], words[:, :1], np.ones((1, 1)))).all()


CUTS = np.array([-1.2, -0.4, 0.3, 1.0])


def judged(latent: Array) -> Array:
    """Scores 1 to 5 of a latent quality."""
    return np.asarray(1.0 + (latent[..., None] > CUTS).sum(axis=-1))


def holds(found: Estimate, truth: float) -> bool:
    return found.low is not None and found.high is not None and found.low <= truth <= found.high


def class_shares(centre: float, sd: float) -> Array:
    return np.asarray(np.diff(norm.cdf([-np.inf, *CUTS, np.inf], centre, sd)))


def test_the_interval_of_persona_score_covers_the_truth() -> None:
    """20 personas that differ: resampling answers instead of personas would cover in about 70 % of the sets."""
    rng, P, sets = np.random.default_rng(1), 20, 300
    centres = np.array([0.0, 0.4, -0.3, 0.8, 0.1])
    truth = np.mean([class_shares(centre, np.sqrt(1 + 0.36)) @ np.arange(1, 6) for centre in centres])
    covered = 0
    for seed in range(sets):
        latent = centres[:, None] + rng.normal(size=(P, 1, 1)) * 0.6 + rng.normal(size=(P, 5, 3))
        scores = judged(latent)
        found = PersonaBootstrap(P, seed, 400).estimate(lambda counts, scores=scores: persona_score(scores, counts), P)  # type: ignore[misc]
        covered += holds(found, float(truth))
    assert 0.91 <= covered / sets <= 0.985


@pytest.mark.parametrize("gap", [0.0, 0.6])
def test_the_interval_of_the_auc_covers_the_truth(gap: float) -> None:
    """40 personas, 2 rubrics, some answers tried; answerers and personas judged as both have effects of their own.

    A little too often: who is judged as the same persona is alike on both sides, and drawing answerers does not see that.
    """
    rng, P, sets = np.random.default_rng(2), 40, 300
    sd = np.sqrt(1 + 2 * 0.16)
    right_C, wrong_C = class_shares(gap, sd), class_shares(0.0, sd)
    truth = right_C @ (np.cumsum(wrong_C) - wrong_C / 2)
    covered = 0
    for seed in range(sets):
        answerer_P, judged_as_P = rng.normal(size=(2, P, 1, 1)) * 0.4
        right = judged(gap + answerer_P + judged_as_P + rng.normal(size=(P, 2, 3)))
        wrong = judged(answerer_P + np.roll(judged_as_P, 1) + rng.normal(size=(P, 2, 3)))
        wrong[:, :, 1:] = _
        found = PersonaBootstrap(P, seed, 400).estimate(lambda counts, r=right, w=wrong: auc(r, w, counts), P)  # type: ignore[misc]
        covered += holds(found, float(truth))
    assert 0.92 <= covered / sets <= 0.997


@pytest.mark.slow
def test_the_test_of_a_difference_keeps_its_level_and_finds_an_effect() -> None:
    """16 personas, each of whom one of two equal models may suit better; then the second is half a score better."""
    rng, sets, level, power = np.random.default_rng(4), 200, 0, 0
    for _set in range(sets):
        difference = np.round(rng.normal(size=(16, 1, 1)) * 0.5 + rng.normal(size=(16, 5, 3)))
        difference[rng.random(difference.shape) < 0.1] = _
        level += statistics.sign_flip_p(persona_contributions(difference)) <= 0.05
        power += statistics.sign_flip_p(persona_contributions(difference + 0.5)) <= 0.05
    assert 0.01 <= level / sets <= 0.09
    assert power / sets > 0.8


def test_a_judge_of_pure_noise_is_rarely_trusted() -> None:
    """Of 200 such judges about one in forty has an interval above one half."""
    rng, P, trusted = np.random.default_rng(3), 30, 0
    for seed in range(200):
        right, wrong = rng.integers(1, 6, size=(2, P, 4, 2)).astype(float)
        bootstrap = PersonaBootstrap(P, seed, 400)
        found = bootstrap.estimate(lambda counts, r=right, w=wrong: auc(r, w, counts), P, statistics.bootstrap_share)  # type: ignore[misc]
        trusted += found.low is not None and found.low > 0.5
    assert trusted <= 12
