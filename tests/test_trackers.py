"""Experiment trackers: what they receive, where it is written, and that none can end a run."""

import importlib.util
import json
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from permix import cli, trackers
from permix.config import TRACKER_PACKAGES, OptimConfig, StabilityConfig, build_config
from permix.errors import ConfigError
from permix.evals.stability import run_stability
from permix.storage.files import read_json
from permix.storage.run_dir import RunDir
from permix.trackers import TRACKERS, TrackedRun, check_trackers, flatten_measures, flatten_settings, log_measures, open_trackers
from tests.sample_runs import asked_what, fidelity_values, solve, stability_config, stability_values, toml
from tests.servers import openai_server


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for name in ("OPENAI_API_KEY", "TENSORBOARD_LOGGING_DIR", "WANDB_DIR", "WANDB_PROJECT", "TRACKIO_DIR", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)


def right(body: Mapping[str, Any], nth: int = 0, headers: Mapping[str, str] | None = None) -> str:
    return f"It is {solve(asked_what(body))}."


def scalars(folder: Path) -> dict[str, list[tuple[int, Any]]]:
    """(step, value) of each scalar in the event files below the folder, as tensorboard shows them."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator").EventAccumulator
    (run,) = {file.parent for file in folder.rglob("events.out.tfevents.*")}
    events = accumulator(str(run)).Reload()
    return {tag: [(one.step, one.value) for one in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def run_folder(path: Path, label: str = "base") -> Path:
    with RunDir.open(path, StabilityConfig(label=label), {}):
        pass
    return path


# Names


def test_the_registry_is_what_a_configuration_may_name() -> None:
    assert TRACKERS.keys() == TRACKER_PACKAGES.keys()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("wandbb", "no tracker is named 'wandbb'; did you mean wandb? valid: tensorboard, wandb, trackio, mlflow"),
        ("TensorBoard", "no tracker is named 'TensorBoard'; did you mean tensorboard? valid:"),
        ("none", "no tracker is named 'none'; valid: tensorboard"),
    ],
)
@pytest.mark.parametrize(("cls", "prefix"), [(OptimConfig, ""), (StabilityConfig, "")])
def test_an_unknown_name_is_refused_with_the_nearest(cls: type[Any], prefix: str, given: str, said: str) -> None:
    with pytest.raises(ConfigError, match="report_to") as refused:
        build_config(cls, {"report_to": ["mlflow", given]}, source="test")
    assert said in str(refused.value)


def test_a_name_counts_once() -> None:
    assert OptimConfig(report_to=("wandb", "mlflow", "wandb")).report_to == ("wandb", "mlflow")


@pytest.fixture
def nothing_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in TRACKERS else found(name))


@pytest.mark.usefixtures("nothing_installed")
def test_a_tracker_that_is_not_installed_is_refused_with_its_install_line() -> None:
    check_trackers((), "report_to")
    for name, package in TRACKER_PACKAGES.items():
        with pytest.raises(ConfigError) as refused:
            check_trackers((name,), "train.report_to")
        said = f"train.report_to = {name}: the package {name} is not installed; pip install '{package}', or leave it out"
        assert str(refused.value) == said


@pytest.mark.usefixtures("nothing_installed")
@pytest.mark.parametrize("stage", ["stability", "fidelity", "train"])
def test_check_and_the_command_refuse_it_before_anything_is_asked_or_written(
    stage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with openai_server(right) as server:
        training = {"stage": "train", "out": str(tmp_path / "run"), "task": {"n": 4, "levels": ["add-1"]}}
        values: dict[str, dict[str, Any]] = {
            "stability": stability_values(tmp_path, server.base_url, report_to=["wandb"]),
            "fidelity": fidelity_values(tmp_path, server.base_url, report_to=["wandb"]),
            "train": training | {"train": {"report_to": ["wandb"]}},
        }
        file = tmp_path / "config.toml"
        file.write_text(toml(values[stage]))
        for command in (["check", str(file)], [stage, str(file)]):
            assert cli.run_cli(command) == 2
            said = " ".join(capsys.readouterr().err.split())
            assert "report_to = wandb: the package wandb is not installed; pip install 'wandb'" in said
        assert server.asked == []
    assert not (tmp_path / "run").exists()


# What is sent


def test_measures_are_flattened_to_numbers_by_path() -> None:
    measures = {
        "pss": {"value": 0.5, "low": 0.25, "high": 0.75, "n": 20, "kind": "posterior"},
        "mean": {"value": None, "low": 0.1, "high": None},
        "cut_off": {"share": 0.1, "by_persona": {"a": 1}},
        "n_asked": 20,
        "whole": True,
        "nan": float("nan"),
        "personas": [{"id": "a", "accuracy": 1.0}],
        "label": "base",
    }
    assert flatten_measures(measures) == {
        **{"pss": 0.5, "pss/low": 0.25, "pss/high": 0.75, "pss/n": 20.0, "mean/low": 0.1},
        **{"cut_off/share": 0.1, "cut_off/by_persona/a": 1.0, "n_asked": 20.0},
    }


def test_settings_are_flattened_to_texts() -> None:
    config = {"label": None, "seed": 0, "train": {"lr": 1e-5, "report_to": ["wandb"]}}
    assert flatten_settings(config) == {"seed": "0", "train.lr": "1e-05", "train.report_to": "['wandb']"}


# tensorboard


def test_tensorboard_reads_what_was_logged(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run")
    with open_trackers(["tensorboard"], run, "base") as log:
        log.log({"train/loss": 0.5, "text": "x", "nothing": None, "nan": float("nan"), "flag": True, "n": 3}, 1)
        log.log({"text": "no number"}, 2)
        log.log({"train/loss": 0.25}, 3)
    assert scalars(run / "tensorboard") == {"train/loss": [(1, 0.5), (3, 0.25)], "n": [(1, 3.0)]}


def test_steps_that_a_resumed_run_repeats_count_once(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run")
    for steps, value in ((range(1, 6), 0.5), (range(4, 8), 0.25)):  # killed after step 5, resumed from a checkpoint at 3
        with open_trackers(["tensorboard"], run, "base") as log:
            for step in steps:
                log.log({"loss": value}, step)
    assert scalars(run / "tensorboard") == {"loss": [(1, 0.5), (2, 0.5), (3, 0.5), (4, 0.25), (5, 0.25), (6, 0.25), (7, 0.25)]}


def test_the_users_folder_counts_and_holds_runs_of_one_label_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "all"))
    for number in range(2):
        log_measures(["tensorboard"], run_folder(tmp_path / f"run-{number}", "a/b"), "a/b", {"x": number})
        assert not (tmp_path / f"run-{number}" / "tensorboard").exists()
    found = sorted((tmp_path / "all").iterdir())
    assert [one.name.rpartition("-")[0] for one in found] == ["a-b", "a-b"]
    assert sorted(scalars(one)["x"][0][1] for one in found) == [0.0, 1.0]


# Failures


class Faulty:
    """A tracker that raises in the method `where`."""

    def __init__(self, where: str, run: TrackedRun) -> None:
        self.where = where
        self.seen: list[tuple[dict[str, float], int]] = []
        self._raise_in("open")

    def _raise_in(self, method: str) -> None:
        if self.where == method:
            raise OSError(28, "No space left\nat https://user:secret@host", method)

    def log(self, values: Mapping[str, float], step: int) -> None:
        self.seen.append((dict(values), step))
        self._raise_in("log")

    def close(self) -> None:
        self._raise_in("close")


@pytest.mark.parametrize("where", ["open", "log", "close"])
def test_a_tracker_that_fails_is_dropped_with_one_warning_and_the_others_go_on(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened: list[Faulty] = []

    def open_faulty(run: TrackedRun) -> Faulty:
        opened.append(Faulty(where, run))
        return opened[-1]

    monkeypatch.setitem(trackers.TRACKERS, "wandb", open_faulty)
    run = run_folder(tmp_path / "run")
    with open_trackers(["wandb", "tensorboard"], run, "base") as log:
        for step in (1, 2, 3):
            log.log({"loss": step / 4}, step)
    said = capsys.readouterr().err
    assert said.count("warning: wandb: OSError: ") == said.count("\n") == 1
    assert "secret" not in said
    assert scalars(run / "tensorboard") == {"loss": [(1, 0.25), (2, 0.5), (3, 0.75)]}
    assert [len(one.seen) for one in opened] == {"open": [], "log": [1], "close": [3]}[where]


def test_an_evaluation_whose_tracker_fails_has_its_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(trackers.TRACKERS, "tensorboard", lambda run: Faulty("log", run))
    with openai_server(right) as server:
        file = tmp_path / "config.toml"
        file.write_text(toml(stability_values(tmp_path, server.base_url, report_to=["tensorboard"])))
        assert cli.run_cli(["stability", str(file)]) == 0
    assert "warning: tensorboard: OSError: " in capsys.readouterr().err
    assert read_json(tmp_path / "run" / "metrics.json")["mean"]["value"] == 1.0
    assert (tmp_path / "run" / "report" / "report.md").exists()


# Evaluations


def test_a_stability_run_logs_the_numbers_of_its_metrics(tmp_path: Path) -> None:
    with openai_server(right) as server:
        config = stability_config(tmp_path, server.base_url, report_to=["tensorboard"])
        run_stability(config)
        run_stability(config)  # again, and nothing is there twice
    found = scalars(config.out / "tensorboard")
    assert found["mean"] == [(0, 1.0)]
    assert found["mean/low"] == [(0, pytest.approx(read_json(config.out / "metrics.json")["mean"]["low"]))]
    assert found["cut_off/n_cut_off"] == [(0, 0.0)]
    assert found["n_asked"] == [(0, 18.0)]


def test_a_change_of_trackers_is_the_same_run(tmp_path: Path) -> None:
    with openai_server(right) as server:
        run_stability(stability_config(tmp_path, server.base_url))
        run_stability(stability_config(tmp_path, server.base_url, report_to=["tensorboard"]))
        assert len(server.asked) == 24
    assert scalars(tmp_path / "run" / "tensorboard")["mean"] == [(0, 1.0)]


# The other trackers, where they are installed


@pytest.fixture
def logged(tmp_path: Path) -> Path:
    return run_folder(tmp_path / "run")


def test_wandb_writes_below_the_run(logged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    for step in (1, 2):  # the second start goes on with the run of the first
        with open_trackers(["wandb"], logged, "base") as log:
            log.log({"train/loss": 0.5}, step)
            assert log._writers.keys() == {"wandb"}
    files = list(logged.rglob("run-*.wandb"))
    assert len({file.name for file in files}) == 1
    assert wandb.run is None, "the process has no global run"


def test_trackio_writes_below_the_run(logged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if importlib.util.find_spec("trackio") is None:  # not importorskip: trackio reads its folder when it is imported
        pytest.skip("trackio is not installed")
    with open_trackers(["trackio"], logged, "base") as log:
        log.log({"train/loss": 0.5}, 1)
    with sqlite3.connect(logged / "trackio" / "permix.db") as database:
        rows = database.execute("SELECT step, metrics FROM metrics").fetchall()
    assert [(step, json.loads(values)) for step, values in rows] == [(1, {"train/loss": 0.5})]
    assert capsys.readouterr().out == "", "stdout is for results"


def test_mlflow_writes_below_the_run(logged: Path) -> None:
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    for step, value in ((1, 0.5), (2, 0.25)):
        with open_trackers(["mlflow"], logged, "base") as log:
            log.log({"train/loss (mean)": value}, step)
            assert log._writers.keys() == {"mlflow"}
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{logged}/mlflow/mlflow.db")
    experiment = client.get_experiment_by_name("permix")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == "base"
    assert run.info.status == "FINISHED"
    assert run.data.params["sampling.max_new_tokens"] == "256"
    history = client.get_metric_history(run.info.run_id, "train/loss _mean_")
    assert [(one.step, one.value) for one in history] == [(1, 0.5), (2, 0.25)]
    assert experiment.artifact_location == (logged / "mlflow" / "artifacts").as_uri()
