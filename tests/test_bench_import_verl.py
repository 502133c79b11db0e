"""The benchmark of the import from verl counts the rollouts that it makes."""

import json
import sys

import pytest

from bench import import_verl


def test_figures_of_a_small_training(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["import_verl", "--steps", "2", "--questions", "3", "--group-size", "4"])
    import_verl.main()
    captured = capsys.readouterr()
    found = {line["figure"]: line for line in map(json.loads, captured.out.splitlines())}
    assert found["import_cpu_ms_a_rollout"]["n"] == 24
    assert found["import_cpu_ms_a_rollout"]["value"] > 0
    assert found["import_peak_mb"]["n"] == 24
    assert "imported 24 rollouts: 2 steps" in captured.err
