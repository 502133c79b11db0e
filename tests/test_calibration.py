"""The simulation behind the published coverage: its true values are true, and its tables show what its lines contain."""

import numpy as np
import pytest

from bench.calibration import (
    MEASURES,
    PAIRED,
    ModelPair,
    Setting,
    TextSetting,
    draw_grid,
    draw_model,
    markdown_tables,
    simulate,
    simulate_in_character,
    simulate_pair,
    simulate_training_seeds,
)


def test_a_simulated_model_has_the_accuracy_of_its_setting() -> None:
    for setting in (Setting("none", 0, 4, 10, 0.05), Setting("one bad", 1.5, 4, 10, 0.95), Setting("graded", 0.6, 4, 10, 0.5)):
        assert draw_model(setting, np.random.default_rng(0)).baseline == pytest.approx(setting.accuracy, abs=1e-6)


def test_the_true_values_of_each_effect() -> None:
    rng = np.random.default_rng(0)
    none = draw_model(Setting("none", 0, 4, 10, 0.5), rng).true_values()
    assert (none["pss"], none["spread"], none["persona_sd"], none["mean_minus_baseline"]) == pytest.approx(
        (1.0, 0.0, 0.0, 0.0), abs=1e-6
    )
    bad = draw_model(Setting("one bad", 1.0, 4, 10, 0.5), rng)
    assert bad.accuracy_P[0] < bad.accuracy_P[1] == pytest.approx(0.5, abs=1e-6)
    assert bad.true_values()["pss"] == pytest.approx(bad.accuracy_P[0] / 0.5, abs=1e-6)
    graded = draw_model(Setting("graded", 0.6, 400, 10, 0.5), rng)
    assert (graded.shift_P.mean(), graded.shift_P.std()) == pytest.approx((0.0, 0.6))
    assert set(none) == set(MEASURES)


def test_a_model_where_all_personas_but_one_are_always_right() -> None:
    truth = draw_model(Setting("rest right", 0.15, 3, 20, 1.0), np.random.default_rng(0)).true_values()
    assert (truth["worst"], truth["best"], truth["pss"], truth["baseline"]) == pytest.approx((0.85, 1, 0.85, 1), abs=1e-6)
    assert draw_model(Setting("rest right", 0, 3, 20, 1.0), np.random.default_rng(0)).true_values()["worst"] == pytest.approx(1)


def test_a_shift_of_each_cell_is_in_the_true_values_and_in_the_answers() -> None:
    setting = Setting("one bad", 1.0, 3, 20_000, 0.3, interaction=2.0)
    model = draw_model(setting, np.random.default_rng(0))
    assert model.baseline == pytest.approx(0.3, abs=1e-6)
    under_P_Q_S, _ = draw_grid(setting, model, np.random.default_rng(1))
    assert under_P_Q_S.mean(axis=(1, 2)) == pytest.approx(model.accuracy_P, abs=0.015)


def test_answers_are_as_often_right_as_the_true_accuracy_says() -> None:
    setting = Setting("one bad", 1.5, 3, 20_000, 0.3, samples=2, missing=0.25)
    model = draw_model(setting, np.random.default_rng(0))
    under_P_Q_S, without_Q_S = draw_grid(setting, model, np.random.default_rng(1))
    assert under_P_Q_S.shape == (3, 20_000, 2)
    assert np.nanmean(under_P_Q_S, axis=(1, 2)) == pytest.approx(model.accuracy_P, abs=0.015)
    assert np.nanmean(without_Q_S) == pytest.approx(0.3, abs=0.015)
    assert np.isnan(under_P_Q_S).mean() == pytest.approx(0.25, abs=0.01)


def test_lines_become_tables() -> None:
    alone = simulate(Setting("none", 0, 3, 20, 0.5), data_sets=3, resamples=40, seed=0)
    assert {0 <= one["held"] <= 1 for name, one in alone["measures"].items() if name != "pss_crossfit"} == {True}
    assert np.isnan(alone["measures"]["pss_crossfit"]["held"])  # it has no interval
    assert alone["measures"]["mean"]["n"] == 3
    two = simulate_pair(ModelPair(Setting("none", 0, 3, 20, 0.5), same=1.0), data_sets=2, resamples=40, seed=0)
    assert [two["pair"][name]["held"] for name in PAIRED] == [1.0] * 5, "the same answers"
    assert [two["pair"][name]["rejected"] for name in PAIRED] == [0.0] * 5
    tables = markdown_tables([alone, two]).split("\n\n")
    assert [len(table.splitlines()) for table in tables] == [3, 3, 3]
    assert "| 3 × 20 | 0.5 | none | alike | 100% | 100, 0, 0 |" in tables[2]


def test_pooled_seeds_become_a_table() -> None:
    pooled = simulate_training_seeds(Setting("none", 0, 3, 20, 0.5), data_sets=2, resamples=40, seed=0)
    assert {0 <= one["held"] <= 1 for one in pooled["measures"].values()} == {True}
    (table,) = markdown_tables([pooled]).split("\n\n")
    assert table.splitlines()[2].startswith("| 3 × 20 | 0.5 | none | 3 |")


def test_drawn_texts_have_what_their_setting_says() -> None:
    """Unmistakable words: every answer in character is named. Numbers alone: the always wrong persona is not."""
    clear = simulate_in_character(TextSetting(9.0, 1.0, 0.0, 3, 20), data_sets=2, resamples=100, seed=0)
    measures = clear["in_character_measures"]
    assert measures["share"]["true"] == measures["right"]["true"]
    assert (measures["recognised"]["true"], measures["recognised"]["held"]) == (1.0, 1.0)
    bare = simulate_in_character(
        TextSetting(9.0, 1.0, 0.0, 3, 20, samples=2, always_wrong=True, numbers_only=True), data_sets=2, resamples=100, seed=0
    )
    assert bare["in_character_measures"]["recognised"]["true"] == pytest.approx(1 / 3, abs=1e-4)
    assert bare["controls"]["score_only"] > 0.4
    rows = markdown_tables([clear, bare]).splitlines()
    assert rows[2].startswith("| 3 × 20 | 9 | 100% | 0 |")
    assert rows[3].startswith("| 3 × 20 × 2, always wrong, numbers only |")
