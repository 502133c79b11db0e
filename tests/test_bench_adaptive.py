"""The benchmark of sequential allocation: its own arithmetic, and a run of it small enough for a test."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from bench import adaptive
from bench.calibration import Setting
from permix.metrics.sequential import Round
from permix.types import Estimate

IDS = ["0", "1", "2"]


def test_a_run_gets_the_answers_of_its_rounds() -> None:
    answers = np.ones((3, 5, 1))
    seen = adaptive.answers_of_rounds(answers, [Round(until=2, personas=tuple(IDS)), Round(until=4, personas=("2",))], IDS)
    assert (~np.isnan(seen[..., 0])).astype(int).tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1]]


def test_an_interval_contains_its_ends() -> None:
    one = Estimate(value=0.5, low=0.4, high=0.6, n=9)
    assert [adaptive.contains(one, truth) for truth in (0.39, 0.4, 0.6, 0.61)] == [False, True, True, False]
    assert adaptive.width(one) == pytest.approx(0.2)
    unknown = Estimate(value=0.5, n=1)
    assert (adaptive.contains(unknown, 0.5), adaptive.width(unknown)) == (False, float("inf"))


def test_a_small_setting_becomes_a_line_and_a_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(adaptive, "SETTINGS", (Setting("one bad", 1.5, 6, 60, 0.5),))
    monkeypatch.setattr(sys, "argv", ["adaptive", "--data-sets", "2", "--resamples", "100", "--draws", "400"])
    adaptive.main()
    (line,) = capsys.readouterr().out.splitlines()
    found = json.loads(line)
    assert found["cells_whole"] == 6 * 60
    assert found["fewer"] == pytest.approx(360 / found["cells_sequential"], abs=0.01)
    assert set(found["held"]) == set(adaptive.MEASURES)
    file = tmp_path / "lines.jsonl"
    file.write_text(line + "\n")
    monkeypatch.setattr(sys, "argv", ["adaptive", "--page", str(file)])
    adaptive.main()
    assert f"| one bad 1.5, 6 × 60, accuracy 0.5 | 360 | {found['cells_sequential']:,.0f} |" in capsys.readouterr().out
