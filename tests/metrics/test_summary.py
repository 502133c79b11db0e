"""`summarize_stability`: the literal example end to end, missing scores, degenerate inputs, and invariances."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pydantic import ValidationError

from permix.metrics.stability import (
    StabilitySummary,
    joint_persona_effect_p,
    persona_effect_p,
    pool_stability,
    resamples_per_block,
    summarize_stability,
)
from permix.metrics.statistics import Array
from permix.types import Estimate

NAN = float("nan")
# Three personas (A = .75, .50, .25) on four questions, one sample; without a persona 3 of 4 are right.
LADDER_P_Q_S = np.array([[1.0, 1, 1, 0], [1, 0, 1, 0], [0, 0, 1, 0]])[:, :, None]
BASELINE_Q_S = np.array([1.0, 0, 1, 1])[:, None]


def estimates(summary: StabilitySummary) -> dict[str, Estimate]:
    """Every estimate of the summary by name."""
    named = dict(summary.measures)
    named |= {name: getattr(summary, name) for name in ("permutation_p", "minimum_detectable_effect")}
    named |= {f"lottery {k}": one for k, one in enumerate(summary.expected_best_of_k, 1)}
    named |= {f"{one.id} accuracy": one.accuracy for one in summary.personas}
    return named | {f"{one.id} difference": one.difference for one in summary.personas}


def values(summary: StabilitySummary) -> dict[str, float]:
    return {name: NAN if one.value is None else one.value for name, one in estimates(summary).items()}


def some_scores(personas: int = 5, questions: int = 40, samples: int = 1, seed: int = 0) -> Array:
    rng = np.random.default_rng(seed)
    chance_P_Q = np.clip(rng.normal(0, 0.15, (personas, 1)) + rng.uniform(0.1, 0.9, questions), 0, 1)
    return (rng.random((personas, questions, samples)) < chance_P_Q[:, :, None]).astype(float)


def test_the_worked_example() -> None:
    summary = summarize_stability(LADDER_P_Q_S, BASELINE_Q_S, persona_ids=["sailor", "clerk", "troll"])
    expected = {
        "pss_observed": 1 / 3,
        "mean": 0.5,
        "baseline": 0.75,
        "mean_minus_baseline": -0.25,
        "persona_sd": 1 / 6,  # worked in test_stats
        "worst_per_question": 0.25,  # minima 0 0 1 0
        "lottery 1": 0.5,
        "lottery 2": 2 / 3,
        "lottery 3": 0.75,
        "troll accuracy": 0.25,
        "sailor difference": 0.0,
        "clerk difference": -0.25,
        "troll difference": -0.5,
    }
    measured = values(summary)
    assert {name: measured[name] for name in expected} == pytest.approx(expected)
    # discordant with the baseline: sailor 1 better 1 worse, clerk 0 and 1, troll 0 and 2 -> p = 1, 1, 2/4
    assert [one.mcnemar_p for one in summary.personas] == pytest.approx([1.0, 1.0, 0.5])
    assert [one.holm_p for one in summary.personas] == pytest.approx([1.0, 1.0, 1.0])
    assert (summary.n_scored, summary.n_asked, summary.n_questions, summary.n_personas) == (12, 12, 4, 3)
    assert summary.pss.n == summary.baseline.n == summary.personas[0].n == 4


def test_null_and_permutation_test_by_enumeration() -> None:
    # Two personas, two questions, A = 1 and 0. Of the four labelings two keep A = (1, 0), PSS 0; two give (.5, .5), PSS 1.
    summary = summarize_stability(np.array([[[1.0], [1]], [[0], [0]]]), resamples=4000)
    assert summary.pss_observed.value == 0.0
    assert summary.pss_null.value == pytest.approx(0.5, abs=0.03)
    assert (summary.pss_null.low, summary.pss_null.high) == (0.0, 1.0)
    assert summary.permutation_p.value == pytest.approx(0.5, abs=0.03)
    assert summary.permutation_p.low is None


def test_a_strong_effect_is_found_and_none_is_not() -> None:
    rng = np.random.default_rng(0)
    chance_P = np.array([0.9, 0.8, 0.8, 0.3])
    strong = summarize_stability((rng.random((4, 100, 1)) < chance_P[:, None, None]).astype(float), resamples=400)
    nothing = summarize_stability((rng.random((4, 100, 1)) < 0.8).astype(float), resamples=400)
    assert strong.permutation_p.value == pytest.approx(1 / 401)
    assert strong.pss.high is not None
    assert strong.pss_null.low is not None
    assert strong.pss.high < strong.pss_null.low
    assert nothing.pss.high == 1.0
    assert nothing.permutation_p.value is not None
    assert nothing.permutation_p.value > 0.05
    assert nothing.pss_null.low is not None
    assert nothing.pss_null.high is not None
    assert nothing.pss_observed.value is not None
    assert nothing.pss_null.low <= nothing.pss_observed.value <= nothing.pss_null.high


def test_samples_are_averaged_within_the_question() -> None:
    # q0 has one scored sample, q1 two: A = (1 + 1/2) / 2, not 2 of 3.
    summary = summarize_stability(np.array([[[1, NAN], [1, 0]]]), resamples=50)
    assert summary.mean.value == pytest.approx(0.75)
    assert (summary.n_scored, summary.n_asked) == (3, 4)


def test_no_score_is_not_zero() -> None:
    scores = LADDER_P_Q_S.copy()
    scores[0, 3] = NAN  # the sailor's only wrong answer is not scored
    summary = summarize_stability(scores, BASELINE_Q_S, resamples=50)
    assert summary.personas[0].accuracy.value == 1.0
    assert summary.personas[0].n == summary.personas[0].difference.n == 3
    # the difference is taken on the three questions scored both ways: (0 + 1 + 0) / 3, not 1 - .75
    assert summary.personas[0].difference.value == pytest.approx(1 / 3)
    assert summary.pss_observed.value == pytest.approx(0.25)
    assert (summary.n_scored, summary.n_asked) == (11, 12)


def test_a_persona_without_a_score_is_listed_and_not_compared() -> None:
    without = summarize_stability(LADDER_P_Q_S, BASELINE_Q_S, resamples=50)
    scores = np.concatenate([LADDER_P_Q_S, np.full((1, 4, 1), NAN)])
    summary = summarize_stability(scores, BASELINE_Q_S, resamples=50)
    assert {name: values(summary)[name] for name in values(without)} == pytest.approx(values(without), nan_ok=True)
    silent = summary.personas[3]
    assert (silent.accuracy, silent.difference) == (Estimate(value=None, n=0), Estimate(value=None, n=0))
    assert (silent.mcnemar_p, silent.holm_p, silent.n) == (None, None, 0)
    assert len(summary.expected_best_of_k) == 3
    assert summary.n_personas == 4


def test_nothing_scored_gives_no_number() -> None:
    summary = summarize_stability(np.full((2, 3, 1), NAN), np.full((3, 1), NAN), resamples=20)
    assert all(one.value is None and one.n == 0 for one in estimates(summary).values())
    assert summary.expected_best_of_k == ()
    assert (summary.n_scored, summary.n_asked) == (0, 6)


def test_without_a_baseline_only_the_comparisons_are_missing() -> None:
    named = estimates(summarize_stability(some_scores(), resamples=50))
    missing = {name for name, one in named.items() if one.value is None}
    assert missing == {
        "baseline",
        "mean_minus_baseline",
        "worst_minus_baseline",
        "minimum_detectable_effect",
        *(f"{p} difference" for p in range(5)),
    }


def test_one_persona_has_no_measure_that_compares_personas() -> None:
    scores = some_scores(personas=1)
    for asked in (scores, np.concatenate([scores, np.full_like(scores, NAN)])):
        summary = summarize_stability(asked, resamples=50)
        names = ("pss", "pss_observed", "pss_null", "pss_crossfit", "spread", "persona_sd", "relative_persona_sd")
        assert [name for name in names if summary.measures[name].value is not None] == []
        assert summary.pss_reason is not None
        assert "only one persona" in summary.pss_reason
        assert summary.permutation_p.value is None
        for value in (summary.mean.value, summary.worst.value, summary.best.value):
            assert value == pytest.approx(scores.mean(), abs=0.005)


@pytest.mark.parametrize(("personas", "questions", "right"), [(8, 30, 15), (12, 20, 19), (3, 20, 10), (12, 20, 20), (3, 5, 5)])
def test_equal_answers_of_all_personas_do_not_prove_that_none_differs(personas: int, questions: int, right: int) -> None:
    """Of the next questions a share of 1 − .025^(1/n) may still differ, and be wrong under the worst persona alone."""
    answers_Q_S = (np.arange(questions) < right).astype(float)[:, None]
    summary = summarize_stability(np.stack([answers_Q_S] * personas), resamples=100)
    share, unseen = right / questions, 1 - 0.025 ** (1 / questions)
    assert summary.pss.low is not None
    assert summary.pss.low <= 1 - unseen / share + 0.01
    assert summary.pss.low >= (1 - unseen / share) * 0.9
    assert summary.pss.high == 1.0
    spread = summary.measures["spread"]
    assert spread.high is not None
    assert spread.high >= unseen - 0.01


def test_one_question_has_values_and_no_interval() -> None:
    summary = summarize_stability(np.array([[[1.0]], [[0.0]]]), np.array([[1.0]]), resamples=50)
    assert (summary.pss.value, summary.pss.low, summary.pss.n) == (0.0, None, 1)
    assert (summary.measures["pss_crossfit"].value, summary.measures["persona_sd"].value) == (None, None)


def test_a_model_that_is_never_right_has_no_pss_and_no_worst_above_the_mean() -> None:
    summary = summarize_stability(np.zeros((3, 5, 1)), resamples=50)
    assert {summary.measures[name].value for name in ("pss", "pss_observed", "pss_crossfit", "pss_null")} == {None}
    assert (summary.worst.value, summary.mean.value) == (0.0, 0.0)


def test_one_always_wrong_persona_of_108_is_significant_with_two_samples() -> None:
    rng = np.random.default_rng(0)
    scores_P_Q_S = (rng.random((108, 60, 2)) < 0.7).astype(float)
    scores_P_Q_S[0] = 0
    summary = summarize_stability(scores_P_Q_S, (rng.random((60, 2)) < 0.7).astype(float), resamples=100)
    p = summary.personas[0].holm_p
    assert p is not None
    assert p < 1e-6


def test_all_right_on_few_questions_is_not_certain() -> None:
    """No interval of a worst persona excludes what 20 questions without an error cannot exclude: .832."""
    summary = summarize_stability(np.ones((12, 20, 1)), np.ones((20, 1)), resamples=50)
    low = 0.025 ** (1 / 20)
    for name in ("pss", "worst"):
        assert summary.measures[name].low == pytest.approx(low, abs=0.02)
    shift = summary.mean_minus_baseline
    assert (shift.low, shift.high) == pytest.approx((low - 1, 1 - low))


def test_the_test_of_any_effect_sees_one_bad_persona_among_many() -> None:
    """In 20 grids of 64 equal personas and one that is right .15 less often. Their variance alone shows it in fewer than half."""
    found = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        accuracy_P = np.where(np.arange(64) == 0, 0.45, 0.6)
        scores_P_Q = (rng.random((64, 150)) < accuracy_P[:, None]).astype(float)
        found.append(persona_effect_p(scores_P_Q, seed, 200))
    assert sum(p is not None and p < 0.05 for p in found) >= 11


@pytest.mark.parametrize(
    ("scores", "baseline", "ids", "message"),
    [
        (np.zeros((2, 3)), None, None, r"correct_P_Q_S has shape \(2, 3\)"),
        (np.zeros((0, 3, 1)), None, None, r"shape \(0, 3, 1\)"),
        (np.zeros((2, 0, 1)), None, None, r"shape \(2, 0, 1\)"),
        (np.array([[[0.0], [2.0]]]), None, None, r"correct_P_Q_S\[0, 1, 0\] is 2.0"),
        (np.array([[[np.inf]]]), None, None, "is inf"),
        (np.zeros((1, 2, 1)), np.zeros((3, 1)), None, "3 questions and correct_P_Q_S has 2"),
        (np.zeros((1, 2, 1)), np.zeros(2), None, r"baseline_Q_S has shape \(2,\)"),
        (np.zeros((2, 2, 1)), None, ["a"], "1 ids and correct_P_Q_S has 2"),
        (np.zeros((2, 2, 1)), None, ["a", "a"], "'a' occurs twice"),
    ],
)
def test_bad_input_is_named(scores: Array, baseline: Array | None, ids: list[str] | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        summarize_stability(scores, baseline, persona_ids=ids)


def test_resamples_must_be_positive() -> None:
    with pytest.raises(ValueError, match="resamples is 0"):
        summarize_stability(LADDER_P_Q_S, resamples=0)


def test_the_seed_decides_everything() -> None:
    scores, baseline = some_scores(samples=2), some_scores(1, samples=2, seed=1)[0]
    first = summarize_stability(scores, baseline, seed=3, resamples=100)
    np.random.seed(99)  # a disturbed global generator must not matter
    assert summarize_stability(scores, baseline, seed=3, resamples=100) == first
    assert summarize_stability(scores, baseline, seed=4, resamples=100) != first


def test_the_record_is_frozen_and_survives_json() -> None:
    summary = summarize_stability(LADDER_P_Q_S, resamples=50)
    assert StabilitySummary.model_validate_json(summary.model_dump_json()) == summary
    with pytest.raises(ValidationError):
        summary.n_scored = 0


def test_a_question_everyone_gets_right_shrinks_spread_and_lifts_the_worst_case() -> None:
    scores = some_scores(questions=30)
    before = summarize_stability(scores, resamples=20)
    after = summarize_stability(np.concatenate([scores, np.ones((5, 1, 1))], axis=1), resamples=20)
    spread = [np.ptp([one.accuracy.value for one in summary.personas]) for summary in (before, after)]
    assert spread[1] == pytest.approx(spread[0] * 30 / 31)
    assert values(after)["worst_per_question"] == pytest.approx((values(before)["worst_per_question"] * 30 + 1) / 31)


def test_the_interval_of_an_accuracy_is_the_binomial_one() -> None:
    accuracy = summarize_stability((np.arange(400) < 320).astype(float).reshape(1, 400, 1)).mean  # .8 ± 1.96 sqrt(.16 / 400)
    assert [accuracy.low, accuracy.high] == pytest.approx([0.7608, 0.8392], abs=0.006)


def test_cells_of_a_question_travel_together() -> None:
    # Every persona answers exactly as the baseline does: accuracy is uncertain, the shift is not.
    answers_Q_S = (np.arange(50) % 2).astype(float)[:, None]
    summary = summarize_stability(np.stack([answers_Q_S] * 3), answers_Q_S, resamples=200)
    unseen = 1 - 0.025 ** (1 / 50)
    assert [summary.mean_minus_baseline.low, summary.mean_minus_baseline.high] == pytest.approx([-unseen, unseen], abs=1e-12)
    assert summary.pss.low == pytest.approx(1 - unseen / 0.5, abs=0.01)
    assert summary.pss.high == 1.0
    assert summary.mean.low is not None
    assert summary.mean.low < 0.45


@pytest.mark.parametrize("missing", [0, 3])
def test_more_resamples_than_a_block_holds_give_the_same_numbers(missing: int, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = some_scores()
    scores[0, :missing] = NAN
    whole = summarize_stability(scores, resamples=50)
    monkeypatch.setattr("permix.metrics.stability.BOOTSTRAP_BLOCK_FLOATS", 7 * max(scores.shape[:2]))
    assert resamples_per_block(scores.mean(axis=2)) == (1 if missing else 7)
    blocked = summarize_stability(scores, resamples=50)
    assert values(blocked) == pytest.approx(values(whole), nan_ok=True)
    assert blocked.measures["pss_crossfit"].low == pytest.approx(whole.measures["pss_crossfit"].low)


def test_a_resample_needs_the_whole_grid_only_where_cells_are_missing() -> None:
    complete = np.ones((100, 1000))
    with_gap, without_a_persona = complete.copy(), complete.copy()
    with_gap[3, 7] = NAN
    without_a_persona[3] = NAN
    assert [resamples_per_block(one) for one in (complete, with_gap, without_a_persona)] == [2000, 20, 2000]
    assert resamples_per_block(np.ones((10_000, 1000))) == 200


grids = arrays(
    float, st.tuples(st.integers(1, 4), st.integers(1, 8), st.integers(1, 2)), elements=st.sampled_from([0.0, 1.0, NAN])
)


@settings(max_examples=40, deadline=None)
@given(grids)
def test_any_grid_gives_ordered_intervals_around_bounded_values(scores: Array) -> None:
    summary = summarize_stability(scores, scores[0], resamples=30)
    for name, one in estimates(summary).items():
        if one.low is not None and one.high is not None and one.value is not None and name != "pss_null":
            assert one.low <= one.value <= one.high, name
    for name in ("pss", "worst", "best", "mean", "worst_per_question"):
        assert not values(summary)[name] < 0
        assert not values(summary)[name] > 1


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(st.integers(0, 100), st.permutations(range(5)))
def test_the_order_of_personas_does_not_matter(seed: int, order: list[int]) -> None:
    scores, baseline = some_scores(questions=12, seed=seed), some_scores(1, 12, seed=seed + 1)[0]
    scores[seed % 5, :3] = NAN
    ids = np.array(list("abcde"))
    one = summarize_stability(scores, baseline, persona_ids=ids.tolist(), resamples=60)
    other = summarize_stability(scores[order], baseline, persona_ids=ids[order].tolist(), resamples=60)
    drawn = {"pss_null", "permutation_p"}  # these shuffle labels, so another order is another draw
    before = {name: value for name, value in values(one).items() if name not in drawn}
    assert {name: values(other)[name] for name in before} == pytest.approx(before, abs=1e-7)
    assert {p.id: p.holm_p for p in other.personas} == pytest.approx({p.id: p.holm_p for p in one.personas})
    assert other.pss.low == pytest.approx(one.pss.low)


def seeds_without_effect(seed: int) -> list[tuple[Array, Array]]:
    rng = np.random.default_rng(seed)
    return [((rng.random((8, 30)) < 0.5).astype(float), (rng.random(30) < 0.5).astype(float)) for _ in range(3)]


def test_one_test_decides_for_all_training_seeds() -> None:
    """Of 40 methods of three seeds without any effect, some have a seed whose own p is below .05; few have a joint p below it."""
    alone, joint, undecided = 0, 0, []
    for seed in range(40):
        grids = seeds_without_effect(seed)
        own = [persona_effect_p(mean_P_Q, 0, 200) for mean_P_Q, _ in grids]
        p = joint_persona_effect_p([mean_P_Q for mean_P_Q, _ in grids], 0, 200)
        assert p is not None
        is_shown_by_one = any(one is not None and one < 0.05 for one in own)
        alone, joint = alone + is_shown_by_one, joint + (p < 0.05)
        if is_shown_by_one and p >= 0.05:
            undecided.append(grids)
    assert joint <= 6
    assert alone >= joint
    pooled = pool_stability(undecided[0], seed=0, resamples=200)
    assert pooled["pss"].high == pytest.approx(1.0, abs=1e-6)


def test_the_joint_test_sees_an_effect_that_all_seeds_share_and_leaves_out_cells_that_one_lacks() -> None:
    rng = np.random.default_rng(3)
    accuracy_P = np.array([0.2, 0.6, 0.6, 0.6])
    grids = [(rng.random((4, 40)) < accuracy_P[:, None]).astype(float) for _ in range(3)]
    grids[1][2, :5] = np.nan
    p = joint_persona_effect_p(grids, 0, 400)
    assert p is not None
    assert p < 0.02
    assert joint_persona_effect_p([grids[0][:1]], 0, 50) is None
    alone = persona_effect_p(grids[0], 0, 400)
    assert joint_persona_effect_p([grids[0]], 0, 400) == pytest.approx(alone, abs=0.03)
