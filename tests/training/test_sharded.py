"""FSDP2 over two processes on CPUs: it trains, generates, saves and goes on as one process does."""

from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from permix.training.compatibility import SHARDED_REFERENCE_TRANSFORMERS
from tests.killable import Moment
from tests.launches import environment, shard_on_cpu
from tests.multi_process import Ended, command, each, team
from tests.tiny import generation_settings
from tests.training.test_processes import close, config, relative_distance, untimed

pytestmark = pytest.mark.slow

__all__ = ["config"]


def sharded(argv: tuple[str, ...], dies: dict[int, Moment]) -> None:
    shard_on_cpu()
    command(argv, dies)


def train(folder: Path, *argv: str, dies: dict[int, Moment] | None = None) -> list[Ended]:
    return each(folder, sharded, ("train", *argv), dies or {}, settings=environment("fsdp2"))


SETTINGS = {
    "kl, checkpointing": ("--train.beta", "0.1", "--train.gradient-checkpointing"),
    "lora-kl": ("--train.lora-rank", "2", "--train.beta", "0.1"),
    "replay": ("--character.replay", "0.5"),
    "on-policy replay": ("--character.replay", "0.5", "--character.replay-policy", "on"),
}

SHARDS_REFERENCE = tuple(map(int, version("transformers").split(".")[:2])) >= SHARDED_REFERENCE_TRANSFORMERS


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_shared_out_weights_train_like_whole_ones(
    config: Path, tiny_model: Path, tmp_path: Path, settings: tuple[str, ...]
) -> None:
    if not SHARDS_REFERENCE and settings in (SETTINGS["kl, checkpointing"], SETTINGS["on-policy replay"]):
        pytest.skip("this release of transformers shards no reference model, which check_launch refuses")
    one, two = tmp_path / "one", tmp_path / "two"
    assert team(tmp_path / "alone", "train", str(config), "--out", str(one), *settings, size=1)[0].code == 0
    found = train(tmp_path / "team", str(config), "--out", str(two), *settings)
    assert [end.code for end in found] == [0, 0], found
    noisy = "--character.replay" in settings  # as in test_processes.py
    assert relative_distance(one / "model", two / "model", tiny_model) <= (1e-3 if noisy else 1e-5)
    for name in ("rollouts.jsonl", "model/config.json", "model/tokenizer.json"):
        assert (one / name).read_bytes() == (two / name).read_bytes(), name
    assert generation_settings(one / "model") == generation_settings(two / "model")
    for ours, theirs in zip(untimed(two / "log.jsonl"), untimed(one / "log.jsonl"), strict=True):
        assert ours.keys() == theirs.keys()
        for name in ours:
            assert close(ours[name], theirs[name], 1e-2 if noisy else 2e-4), (name, ours[name], theirs[name])


def test_shared_out_weights_generate_from_a_whole_bfloat16_copy(config: Path, tmp_path: Path) -> None:
    """Held against two processes with the whole weights each, whose batches have the same shapes: bfloat16 rounds with those.

    Only the first step, before any weight has been added up in another order.
    """
    one, two = tmp_path / "one", tmp_path / "two"
    settings = ("--train.precision", "bfloat16", "--plan.steps", "1")
    whole = team(tmp_path / "whole", "train", str(config), "--out", str(one), *settings)
    assert [end.code for end in whole] == [0, 0], whole
    found = train(tmp_path / "team", str(config), "--out", str(two), *settings)
    assert [end.code for end in found] == [0, 0], found
    assert (one / "rollouts.jsonl").read_bytes() == (two / "rollouts.jsonl").read_bytes()
    (ours,), (theirs,) = untimed(two / "log.jsonl"), untimed(one / "log.jsonl")
    for name in ("loss", "grad_norm"):
        assert ours[name] == pytest.approx(theirs[name], rel=1e-2), name
    assert {value.dtype for value in load_file(two / "model" / "model.safetensors").values()} == {torch.float32}


@pytest.mark.parametrize("settings", [(), ("--train.lora-rank", "2")], ids=["all weights", "lora"])
def test_a_run_over_shared_out_weights_goes_on_where_it_was_killed(
    config: Path, tmp_path: Path, settings: tuple[str, ...]
) -> None:
    argv = (str(config), "--train.updates_per_rollout", "2", "--train.save-every", "3", *settings)
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    assert [end.code for end in train(tmp_path / "team", *argv, "--out", str(undisturbed))] == [0, 0]
    dies = {0: Moment("permix.training.checkpoints:_write_manifest", 1)}
    assert train(tmp_path / "kill", *argv, "--out", str(killed), dies=dies)[0].code == -9
    assert [path.name for path in (killed / "checkpoints").glob("checkpoint-*")] == ["checkpoint-3"]
    assert [end.code for end in train(tmp_path / "again", *argv, "--out", str(killed))] == [0, 0]
    assert (killed / "model/model.safetensors").read_bytes() == (undisturbed / "model/model.safetensors").read_bytes()
    assert untimed(killed / "log.jsonl") == untimed(undisturbed / "log.jsonl")
