"""The profile of a training step prints shares that add up to 1, on a tiny model."""

import json
import sys
from pathlib import Path

import pytest

from bench import profile_step
from permix.training import grpo_trainer
from permix.training.gradient_step import GradientStep

pytestmark = pytest.mark.slow


def test_the_shares_of_each_part_add_up(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for owner, name in ((grpo_trainer, "generate_tokens"), (GradientStep, "accumulate")):
        monkeypatch.setattr(owner, name, getattr(owner, name))  # put back afterwards
    monkeypatch.setattr(sys, "argv", ["profile_step", "--model", str(tiny_model), "--questions", "2", "--new-tokens", "8"])
    profile_step.main()
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    value = {line["figure"]: line["value"] for line in lines}
    assert 0 <= value["rollouts_with_gradient"] <= 16
    for part in ("generation", "training"):
        shares = [value[f"{part}_share_of_{kind}"] for kind in ("matrix_products", "attention", "other")]
        assert sum(shares) == pytest.approx(1, abs=1e-3)
        assert part == "training" or min(shares) > 0  # groups of equal rewards are not trained on


def test_kinds_are_summed_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    profile_step.show_shares("training", {"aten::mm": 60.0, "aten::addmm": 10.0, "aten::bmm": 20.0, "aten::mul": 10.0}, {})
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["figure"], line["value"]) for line in found] == [
        ("training_share_of_matrix_products", 0.7),
        ("training_share_of_attention", 0.2),
        ("training_share_of_other", 0.1),
    ]
