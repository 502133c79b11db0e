"""The benchmark of very many cells, of few: what it writes is a run, and what it prints are the figures of its report."""

import json
import sys
from pathlib import Path

import pytest

from bench import many_cells
from permix.evals.stability import read_stability_grid


def test_what_is_written_is_a_run(tmp_path: Path) -> None:
    assert many_cells.write_run(tmp_path, many_cells.personas(3), many_cells.questions(5), 2) == 4 * 5 * 2
    found = read_stability_grid(tmp_path)
    assert (found.correct_P_Q_S.shape, found.baseline_Q_S.shape) == ((3, 5, 2), (5, 2))
    assert set(found.correct_P_Q_S.ravel()) == {0.0, 1.0}


def test_its_figures_are_those_of_a_process(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["many_cells", "--personas", "3", "--questions", "8"])
    many_cells.main()
    figures = {
        one["figure"]: one for line in capfd.readouterr().out.splitlines() if line.startswith("{") for one in [json.loads(line)]
    }
    assert set(figures) == {f"{work}_{name}" for work in ("summarize", "report") for name in ("cpu_s", "peak_mb", "wall_s")}
    assert figures["report_cpu_s"]["cells"] == 4 * 8
    assert figures["report_peak_mb"]["value"] > 20
