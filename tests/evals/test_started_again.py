"""A finished run that is started again and stopped at any write keeps its result."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from permix.config import FidelityConfig, StabilityConfig, build_config
from permix.evals import interview, stability
from permix.evals.drift_report import measure_drift
from permix.evals.interview import evaluate_interview, prepare_interview
from permix.evals.stability import measure_stability, run_stability
from permix.evals.strategies import measure_strategy
from permix.inference.scripted import ScriptedModel
from permix.judges.results import read_judge_inputs
from permix.storage.files import read_json, write_json

ENDPOINT = {"backend": "openai", "base_url": "http://127.0.0.1:9/v1"}


def interrupt_after(n: int, module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C after the n-th grid.json of this start."""
    written = 0

    def write(path: Path, value: Any) -> None:
        nonlocal written
        write_json(path, value)
        written += path.name == "grid.json"
        if written >= n and path.name == "grid.json":
            raise KeyboardInterrupt

    monkeypatch.setattr(module, "write_json", write)


def started_again(start: Callable[[], object], run: Path, module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    start()
    grid = read_json(run / "grid.json")
    for n in range(1, 6):
        with monkeypatch.context() as patched:
            interrupt_after(n, module, patched)
            try:
                start()
            except KeyboardInterrupt:
                pass
            else:
                break
        assert read_json(run / "grid.json") == grid
    assert read_json(run / "grid.json") == grid


@pytest.mark.parametrize("strategy", ["none", "persona-search", "persona-vote", "persona-ensemble"])
def test_a_stability_run(strategy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    search = {"strategy_questions": 4} if strategy == "persona-search" else {}
    values = {"task": {"levels": ["add-1"], "n": 5}, "personas": {"n": 3}, "resamples": 100, "strategy": strategy, **search}
    config = build_config(StabilityConfig, values | {"out": tmp_path / "run"}, source="x")
    model = ScriptedModel(lambda request: f"{request.seed}")
    run_stability(config, model)
    before = measure_stability(config.out), measure_strategy(config.out)
    started_again(lambda: run_stability(config, model), config.out, stability, monkeypatch)
    assert (measure_stability(config.out), measure_strategy(config.out)) == before


@pytest.mark.parametrize("asker", ["script", "model"])
def test_an_interview(asker: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interviewer = {"interviewer": {"name": "asker", **ENDPOINT}} if asker == "model" else {}
    values = {"personas": {"n": 2, "include": ["character"]}, "interview": {"turns": 4}, "resamples": 100, **interviewer}
    config = build_config(FidelityConfig, values | {"out": tmp_path / "run"}, source="x")
    plan = prepare_interview(config)
    model = ScriptedModel(lambda request: f"I mend nets and I like the sea, {request.seed}.")
    asking = ScriptedModel(lambda request: f"What did you do in year {len(request.messages)}?") if interviewer else None

    def start() -> object:
        return evaluate_interview(model, config, plan, asking)

    start()
    before = measure_drift(config.out, None), len(read_judge_inputs(config.out))
    started_again(start, config.out, interview, monkeypatch)
    assert (measure_drift(config.out, None), len(read_judge_inputs(config.out))) == before
