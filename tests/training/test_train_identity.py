"""What a training that is started again must have in common with the earlier start, and what its usage counts."""

from pathlib import Path
from typing import Any

import pytest

from permix.config import TrainConfig, build_config
from permix.errors import ConfigError
from permix.pipelines import train
from permix.storage.files import read_json, write_json
from permix.storage.run_dir import RunReader
from permix.training.job import prepare_training
from permix.verification.math_verifier import VERIFIER_VERSION


def opened_identity(config: TrainConfig) -> dict[str, Any]:
    """Open the run as a start of the training does; returns the identity that is recorded."""
    with train._open_run_dir(prepare_training(config), config.model.name) as run:
        assert run is not None
        return dict(RunReader(run.path).identity)


def test_a_training_goes_on_with_the_verifier_that_it_was_started_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = {
        "out": tmp_path / "run",
        "task": {"levels": ["add-1"], "n": 4},
        "plan": {"steps": 1, "questions_per_step": 2},
        "model": {"name": "a/b"},
    }
    config = build_config(TrainConfig, values, source="train.toml")
    assert opened_identity(config)["verifier"] == VERIFIER_VERSION
    assert opened_identity(config)["verifier"] == VERIFIER_VERSION
    monkeypatch.setattr(train, "VERIFIER_VERSION", "99")
    with pytest.raises(ConfigError, match=f"this run was made with verifier = '{VERIFIER_VERSION}', not '99'"):
        opened_identity(config)
    provenance = tmp_path / "run" / "provenance.json"
    born = read_json(provenance)
    identity = {name: value for name, value in born["identity"].items() if name != "verifier"}
    write_json(provenance, born | {"identity": identity})  # a run of a version that did not record it
    with pytest.raises(ConfigError, match="this run was made with verifier = none, not '99'"):
        opened_identity(config)
    write_json(tmp_path / "run" / "model" / "config.json", {})  # the training has ended
    assert "verifier" not in opened_identity(config)
    write_json(provenance, born)
    assert opened_identity(config)["verifier"] == VERIFIER_VERSION


@pytest.mark.parametrize(
    ("has_log", "has_checkpoint", "is_kept"), [(True, False, False), (True, True, True), (False, False, True)]
)
def test_the_usage_of_a_training_that_is_repeated_starts_anew(
    has_log: bool, has_checkpoint: bool, is_kept: bool, tmp_path: Path
) -> None:
    write_json(tmp_path / "usage.json", {"wall_seconds": 3.0})
    if has_log:
        (tmp_path / "log.jsonl").write_text('{"step": 1}\n')
    if has_checkpoint:
        (tmp_path / "checkpoints" / "checkpoint-1").mkdir(parents=True)
    train._forget_usage_of_repeated_steps(tmp_path)
    assert (tmp_path / "usage.json").exists() == is_kept
