"""The benchmark of statistics prints its figures, on few answers."""

import json
import sys

import pytest

from bench import bench_statistics


def test_its_figures_are_those_of_a_summary_and_a_comparison(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["bench_statistics", "--personas", "3", "--questions", "12", "--resamples", "20"])
    bench_statistics.main()
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(one["figure"], one["personas"], one["questions"]) for one in lines] == [
        ("summarize_cpu_s", 3, 12),
        ("compare_cpu_s", 3, 12),
    ]
    assert all(one["value"] > 0 for one in lines)
