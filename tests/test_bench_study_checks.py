"""The exploratory figures of a study: numbers that can be checked by hand, and studies that are too small."""

import json
from pathlib import Path

import numpy as np
import pytest

from bench.study_checks import (
    common_units,
    cut_off_rollouts,
    dev_curve,
    paired_difference,
    pss_without_effect,
    swap_test,
    units_of,
)
from permix.storage.files import write_json


def study_folder(folder: Path, units: dict[str, list[tuple[int, float]]]) -> Path:
    """A study with these units: for each the steps and the worst accuracy of its dev evaluations; the last step is the best."""
    for name, curve in units.items():
        (folder / name / "train").mkdir(parents=True)
        lines = [
            {"step": step, "best_step": step, **{key: {"value": worst} for key in ("mean", "worst", "pss")}}
            for step, worst in curve
        ]
        (folder / name / "train" / "dev_eval.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
        (folder / name / "train" / "log.jsonl").write_text(
            '{"step": 1, "truncated": 0.5}\n{"note": "a line without it"}\n', "utf-8"
        )
        for evaluation in ("accuracy", "dev-accuracy", "character"):
            (folder / name / evaluation).mkdir()
            write_json(folder / name / evaluation / "metrics.json", {"mean": {"value": 0.5}})
    return folder


def test_the_exact_test_of_spread_by_hand() -> None:
    # Distances from the median: 1, 1 and .5, .5. Swapped in no or in both seeds the ratio is 2 or 1/2, in one seed it is 1.
    assert swap_test(np.array([0.0, 2.0]), np.array([0.0, 1.0])) == 0.5
    equal_S = np.array([0.1, 0.4, 0.2])
    assert swap_test(equal_S, equal_S + 3) == 1.0
    assert swap_test(equal_S, np.zeros(3)) == swap_test(np.zeros(3), np.zeros(3)) == 1.0
    # Eight seeds, one arm ten times as far from the median: only no swap and all swaps are as extreme.
    wide_S = np.array([-4.0, -3, -2, -1, 1, 2, 3, 4])
    assert swap_test(wide_S, wide_S / 10) == pytest.approx(2 / 256)


def test_the_paired_difference_has_the_t_interval() -> None:
    assert paired_difference(np.array([0.0, 0.0]), np.array([1.0, 3.0])) == {"difference": 2.0, "low": -10.7062, "high": 14.7062}


def test_only_seeds_that_both_arms_have_are_compared(tmp_path: Path) -> None:
    units = {name: [(0, 0.1)] for name in ("rlvr-1", "rlvr-2", "rlvr-10", "permix-2", "permix-10", "permix-replay-1", "base")}
    study = study_folder(tmp_path, units)
    (study / "permix-1" / "train").mkdir(parents=True)  # not measured yet
    assert [[path.name for path in arm] for arm in common_units(study, ["rlvr", "permix"])] == [
        ["rlvr-2", "rlvr-10"],
        ["permix-2", "permix-10"],
    ]
    with pytest.raises(SystemExit, match="have 1 measured seeds in common; two or more are needed"):
        common_units(study, ["rlvr", "permix-replay"])
    (study / "base" / "character" / "metrics.json").unlink()
    with pytest.raises(SystemExit, match=r"base/character/metrics\.json is missing: measure the untrained model first"):
        common_units(study, ["rlvr", "permix"])
    (study / "rlvr-2" / "dev-accuracy" / "metrics.json").unlink()
    assert sorted(units_of(study, "rlvr")) == ["1", "10"]


def test_rollouts_that_were_cut_off_by_part_of_the_training(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    lines = [{"step": step, "truncated": 0.4 if step <= 10 else 0.1} for step in range(1, 31)]
    (tmp_path / "train" / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    assert list(cut_off_rollouts(tmp_path)) == pytest.approx([0.4, 0.1])
    (tmp_path / "train" / "log.jsonl").write_text('{"step": 1, "truncated": 0.25}\n', "utf-8")
    first, later = cut_off_rollouts(tmp_path)
    assert (first, np.isnan(later)) == (0.25, True)


def test_the_curve_averages_seeds_and_counts_the_best_steps(tmp_path: Path) -> None:
    study = study_folder(tmp_path, {"a-1": [(0, 0.2), (20, 0.6)], "a-2": [(0, 0.4)]})
    assert list(dev_curve([study / "a-1", study / "a-2"])) == [
        {"step": 0, "seeds": 2, "mean": 0.3, "worst": 0.3, "pss": 0.3, "best_in": 1},
        {"step": 20, "seeds": 1, "mean": 0.6, "worst": 0.6, "pss": 0.6, "best_in": 1},
    ]


def test_without_an_effect_the_estimate_of_pss_is_below_one() -> None:
    found = pss_without_effect(3, 20, 2)
    assert found.shape == (2,)
    assert ((found > 0.5) & (found < 1)).all()
