"""verl's own code writes rollouts, validations, metrics and a checkpoint of an export; permix reads them. Needs verl."""

import os
import subprocess
import sys
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from permix.config import ImportConfig
from permix.interop.verl_dump import read_trained_plan
from permix.pipelines.verl_import import import_verl_training
from permix.storage.files import read_json
from permix.training.run_log import read_training_log
from permix.types import PlanRow
from tests.engines.exports import export_training, exported_plan

pytest.importorskip("verl", reason="verl is not installed: make test-engines builds an environment that has it")

DEV_EVAL = {"every": 2, "personas": 2, "questions": 3, "characters": 0, "metric": "mean"}


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    return export_training(tmp_path_factory.mktemp("verl"), tiny_model, dev_eval=DEV_EVAL)


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_model)


def writers() -> Iterator[Any]:
    """The trainers that dump rollouts: verl's own, and its legacy one."""
    from verl.trainer.ppo.ray_trainer import RayPPOTrainer
    from verl.trainer.ppo.v1.trainer_base import PPOTrainer

    yield from (PPOTrainer, RayPPOTrainer)


def dump(trainer: Any, tokenizer: Any, folder: Path, step: int, rows: Sequence[PlanRow], marks: str) -> None:
    """Write the rollouts of a step as the trainer does: prompt and completion are decoded from token ids. "-" is a failed one."""
    numbers: dict[int, int] = {}
    found: list[tuple[PlanRow, float, str]] = []
    prompt_uids = {row.group: str(uuid.uuid4()) for row in rows}
    for row, mark in zip([one for one in rows for _ in range(one.rollouts)], marks, strict=True):
        number = numbers[row.group] = numbers.get(row.group, -1) + 1
        if mark != "-":
            found.append((row, float(mark), f"{prompt_uids[row.group]}_{number}_0"))
    found.sort(key=lambda one: one[2])
    prompts = [tokenizer.apply_chat_template(list(row.messages), add_generation_prompt=True, tokenize=False) for row, *_ in found]
    inputs, outputs = (
        [tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) for text in texts]
        for texts in (prompts, [f"The answer is {row.gold if score else 'unknown'}.<|im_end|>" for row, score, _ in found])
    )
    further: dict[str, list[Any]] = {"uid": [uid for *_, uid in found]}
    golds, scores = [row.gold for row, *_ in found], [score for _, score, _ in found]
    if "-" in marks:  # verl fills the batch up, see `upsample_batch_to_divisible_size`
        pad = f"pad{uuid.uuid4().hex}_0_0"
        inputs, outputs, golds, scores = [*inputs, ""], [*outputs, ""], [*golds, golds[0]], [*scores, 0.0]
        further["uid"].append(pad)
    trainer._write_generations(inputs, outputs, golds, scores, further, str(folder), step)


def test_rollouts_that_verl_wrote_are_traced_to_the_plan(out: Path, tokenizer: Any, tmp_path: Path) -> None:
    """Three steps of four groups of two: all right, then the first of each group, then none, with one failed."""
    plan = exported_plan(out)
    all_marks = ("11111111", "10101010", "0000000-")
    for trainer in writers():
        folder = tmp_path / trainer.__name__
        for step, marks in enumerate(all_marks, start=1):
            dump(trainer, tokenizer, folder / "rollouts", step, plan.rows_at(step - 1), marks)
        config = ImportConfig(verl=folder / "rollouts", plan=out, out=folder / "run")
        import_verl_training(config, folder / "rollouts")
        log = read_training_log(folder / "run" / "log.jsonl")
        assert [(step["reward"], step["unscored"]) for step in log] == [(1.0, 0), (0.5, 0), (0.0, 1)]
        assert [step["frac_nonzero_advantage_groups"] for step in log] == [0.0, 1.0, 0.0]
        tags = [{tag for row in plan.rows_at(step) for tag in row.persona_tags or ("none",)} for step in range(3)]
        assert [set(step["reward_by_tag"]) for step in log] == tags
        lines = read_training_log(folder / "run" / "rollouts.jsonl")
        asked = [(row.step + 1, row.persona_id, row.question_id) for row in plan.rows for _ in range(row.rollouts)]
        assert [(line["step"], line["persona_id"], line["question_id"]) for line in lines] == asked[:-1]


def test_validations_and_metrics_that_verl_wrote_are_read(
    out: Path, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from verl.trainer.ppo.v1.trainer_base import PPOTrainer
    from verl.utils.tracking import FileLogger

    rows = read_trained_plan(out).dev_rows
    marks = "".join("1" if row.persona_id is None else "0" for row in rows)
    dump(PPOTrainer, tokenizer, tmp_path / "rollouts", 1, exported_plan(out).rows_at(0), "1" * 8)
    dump(PPOTrainer, tokenizer, tmp_path / "validation", 0, rows, marks)
    monkeypatch.setenv("VERL_FILE_LOGGER_PATH", str(tmp_path / "metrics.jsonl"))
    logger = FileLogger("permix", "test")
    logger.log({"val-core/permix/arithmetic/none/reward/mean@1": 1.0}, 0)
    logger.log({"actor/loss": 0.25, "actor/kl_loss": float("nan"), "response_length/mean": 12.5}, 1)
    logger.finish()
    config = ImportConfig(
        verl=tmp_path / "rollouts", plan=out, validation=tmp_path / "validation", verl_log=(tmp_path / "metrics.jsonl",),
        out=tmp_path / "run", resamples=100,
    )  # fmt: skip
    import_verl_training(config, tmp_path / "rollouts")
    (step,) = read_training_log(tmp_path / "run" / "log.jsonl")
    assert {name: step.get(name) for name in ("loss", "kl", "completion_tokens")} == {
        "loss": 0.25, "kl": None, "completion_tokens": 12.5,
    }  # fmt: skip
    (point,) = read_training_log(tmp_path / "run" / "dev_eval.jsonl")
    assert (point["step"], point["baseline"]["value"], point["mean"]["value"]) == (0, 1.0, 0.0)
    assert read_json(tmp_path / "run" / "provenance.json")["identity"]["engine_version"] == "0.9.1"


def test_verl_spells_its_padding_as_the_reader_expects() -> None:
    import inspect

    from verl.trainer.ppo import padding_utils

    source = inspect.getsource(padding_utils.upsample_batch_to_divisible_size)
    assert 'f"pad{uuid.uuid4().hex}"' in source
    assert 'f"{pad_uid}_{local_idx}_0"' in source


CHECKPOINT = """
import sys
import torch
from omegaconf import OmegaConf
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import AutoModelForCausalLM, AutoTokenizer
from verl.utils.checkpoint.fsdp_checkpoint_manager import FSDPCheckpointManager

model, folder = sys.argv[1:]
torch.distributed.init_process_group("gloo", init_method=f"file://{folder}.store", rank=0, world_size=1)
network, tokenizer = AutoModelForCausalLM.from_pretrained(model), AutoTokenizer.from_pretrained(model)
fully_shard(network, mesh=init_device_mesh("cpu", (1,), mesh_dim_names=("fsdp",)))
optimizer = torch.optim.AdamW(network.parameters())
manager = FSDPCheckpointManager(
    model=network, optimizer=optimizer, lr_scheduler=torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0),
    processing_class=tokenizer,
    checkpoint_config=OmegaConf.create({"save_contents": ["model", "optimizer", "extra"], "load_contents": ["model"]}),
)
manager.save_checkpoint(local_path=folder, global_step=3, max_ckpt_to_keep=1)
"""


def test_a_checkpoint_becomes_a_model_folder(tiny_model: Path, tmp_path: Path) -> None:
    """verl saves an actor that FSDP shards over one process, and its merger makes a model folder of it, in bfloat16."""
    from safetensors.torch import load_file

    actor, merged = tmp_path / "global_step_3" / "actor", tmp_path / "model"
    actor.parent.mkdir()
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    merge = ["-m", "verl.model_merger", "merge", "--backend", "fsdp", "--local_dir", str(actor), "--target_dir", str(merged)]
    for arguments in (["-c", CHECKPOINT, str(tiny_model), str(actor)], merge):
        done = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
    before, after = (load_file(folder / "model.safetensors") for folder in (tiny_model, merged))
    assert before.keys() == after.keys()
    assert all(before[name].bfloat16().equal(after[name]) for name in before)
    from permix.inference.hf import load_tokenizer

    assert load_tokenizer(str(merged)).chat_template == load_tokenizer(str(tiny_model)).chat_template
