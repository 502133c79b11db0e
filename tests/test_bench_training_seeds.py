"""The simulation of intervals over training seeds: what it draws, and its tables."""

import json

import numpy as np
import pytest
from scipy.special import ndtr

from bench import training_seeds
from bench.training_seeds import (
    ACCURACY,
    SHARES,
    Study,
    markdown_tables,
    seed_shifts,
    simulate,
    simulate_normal,
    thresholds,
    true_values,
)
from permix.metrics import priors


@pytest.mark.parametrize(("effect", "pss"), [("none", 1.0), ("graded", 0.8), ("one bad", 0.7)])
def test_effects_have_the_mean_and_the_pss_that_were_asked_for(effect: str, pss: float) -> None:
    accuracy_P = ndtr(thresholds(effect, pss, 12))
    assert accuracy_P.mean() == pytest.approx(ACCURACY)
    assert accuracy_P.min() / accuracy_P.max() == pytest.approx(pss)
    assert sum(SHARES.values()) == pytest.approx(1)


def test_seeds_shift_accuracies_by_the_sd_that_was_asked_for() -> None:
    study = Study("none", (1.0, 1.0), 3, "moderate", personas=4)
    shift_N_P = seed_shifts(study, 20_000, np.random.default_rng(0))
    accuracy_N_P = ndtr(thresholds("none", 1.0, 4)[0] + shift_N_P)
    assert accuracy_N_P.std() == pytest.approx(np.hypot(0.03, 0.02), rel=0.03)
    truth = true_values(Study("none", (1.0, 1.0), 3, "none", personas=4), 1.0, np.random.default_rng(0))
    assert [truth[name] for name in ("pss", "mean", "mean_minus_baseline")] == pytest.approx([1, ACCURACY, 0])


def test_intervals_of_the_normal_model_hold() -> None:
    found = simulate_normal(3, 1.0, 200, 20_000, 7)["normal"]
    assert all(0.94 < one["seeds"] < 0.99 for one in found.values())
    assert found[0.0]["questions"] == pytest.approx(0.95, abs=0.01)
    assert found[20.0]["questions"] < 0.65


def test_a_study_is_one_line_and_a_row_of_both_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(priors, "N_DRAWS", 100)
    study = Study("one bad", (0.7, 0.9), 2, "moderate", personas=4, questions=40)
    line = simulate(study, 2, 50, 7)
    assert simulate(study, 2, 50, 7) == line
    assert line["measures"]["pss"]["true"] > 0.1
    assert all(0 <= one["seeds"]["held"] <= 1 for one in line["measures"].values())
    normal = json.loads(json.dumps(simulate_normal(3, 1.0, 200, 1000, 7)))
    text = markdown_tables([json.loads(json.dumps(line)), normal])
    assert text.count("| 4 × 40 | one bad 0.7 → 0.9 | 2 | moderate |") == 2
    assert "| 3 | 1 |" in text
    assert len(training_seeds.STUDIES) == len(set(training_seeds.STUDIES))
