"""A run names the command of its newest start, which changes nothing when it is run again, and the code of all of its starts."""

import sys
from pathlib import Path
from typing import Any

import pytest

from permix.config import StabilityConfig, build_config
from permix.dashboard.run_monitor import RunMonitor
from permix.evals.stability import run_stability
from permix.inference.scripted import ScriptedModel
from permix.report.excerpts import command_text
from permix.report.runs import Run
from permix.storage import run_dir
from permix.storage.files import read_json
from permix.storage.run_dir import revisions_text


def start(folder: Path, n: int, monkeypatch: pytest.MonkeyPatch, revision: str) -> None:
    """Run `permix stability --task.n N` at a revision of the code."""
    monkeypatch.setattr(sys, "argv", ["permix", "stability", "--task.n", str(n)])
    monkeypatch.setattr(run_dir, "source_revision", lambda: revision)
    values: dict[str, Any] = {"out": folder, "task": {"levels": ["add-1"], "n": n}, "personas": {"n": 2}, "resamples": 100}
    run_stability(build_config(StabilityConfig, values, source="x"), ScriptedModel(lambda request: f"{request.seed}"))


def test_the_shown_command_is_that_of_the_newest_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    start(run, 2, monkeypatch, "aaa")
    first = read_json(run / "provenance.json")
    start(run, 2, monkeypatch, "aaa")
    assert read_json(run / "provenance.json") == first
    start(run, 3, monkeypatch, "bbb")
    assert command_text(Run(run)) == "permix stability --task.n 3"
    assert RunMonitor(run, "run")._command_text() == "permix stability --task.n 3"
    assert revisions_text(Run(run).provenance) == "aaa, bbb"
    grid = read_json(run / "grid.json")
    start(run, 3, monkeypatch, "aaa")  # the shown command
    assert read_json(run / "grid.json") == grid
    born = read_json(run / "provenance.json")
    assert (born["command"], born["created"], born["identity"]) == (first["command"], first["created"], first["identity"])
    assert born["revisions"] == ["aaa", "bbb"]
