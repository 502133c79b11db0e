"""What goes wrong in a training: a full disk, a verifier that dies, a model or a plan that will not do. Each says what to do."""

import errno
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.api import CheckpointException
from trl import GRPOTrainer

from permix import cli
from permix.config import PersonasConfig, TaskConfig, TrainConfig
from permix.errors import ConfigError, PermixError
from permix.pipelines import train
from permix.pipelines.train import run_training
from permix.plan import read_plan
from permix.training import grpo_trainer, network
from permix.training.checkpoints import newest_checkpoint, write_checkpoint
from permix.training.job import prepare_training
from permix.training.run_log import RolloutLogger, read_training_log
from tests import tiny
from tests.training.test_train_log import Notes, rollout
from tests.training.test_train_run import log_of, stage

FULL = Path("/dev/full")
"""A device on which every write meets a full disk."""

pytestmark = pytest.mark.skipif(not FULL.exists(), reason="needs /dev/full")

GO_ON = "No space left on device; make room, then run the same command again: finished work is saved"


def write_a_step(log: RolloutLogger) -> None:
    log.log_rollouts(1, [rollout(1)])
    log.log_metrics(1, {"reward": 0.5, "tokens": 3})


@pytest.mark.parametrize("name", ["rollouts.jsonl", "samples.md", "log.jsonl"])
def test_a_log_on_a_full_disk_says_so(tmp_path: Path, name: str) -> None:
    log = RolloutLogger(tmp_path, 0, 1, Notes())
    (tmp_path / name).unlink()
    (tmp_path / name).symlink_to(FULL)
    with pytest.raises(PermixError) as refused:
        write_a_step(log)
    assert str(refused.value) == f"{tmp_path / name}: cannot be written: {GO_ON}"


def test_a_log_cannot_be_cut_back_on_a_full_disk_and_stays_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = RolloutLogger(tmp_path, 0, 1, Notes())
    for step in (1, 2):
        log.log_rollouts(step, [rollout(step)])
        log.log_metrics(step, {"reward": 0.5, "tokens": 3})
    before = {name: (tmp_path / name).read_bytes() for name in ("rollouts.jsonl", "log.jsonl")}
    unlink = Path.unlink

    def unlinked(path: Path, missing_ok: bool = False) -> None:
        unlink(path, missing_ok)
        path.symlink_to(FULL)

    monkeypatch.setattr(Path, "unlink", unlinked)
    with pytest.raises(PermixError, match=r"\.log\.jsonl\.part: cannot be written: No space left"):
        RolloutLogger(tmp_path, 1, 1, Notes())
    assert before == {name: (tmp_path / name).read_bytes() for name in before}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["model.safetensors", "optimizer.pt", "rng_state.pth", "permix_rollouts-0-of-1.pt", "trainer_state.json"]
)
def test_a_checkpoint_on_a_full_disk_leaves_the_last_one_whole_and_the_run_goes_on(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = stage(tiny_model, tmp_path / "run", plan={"steps": 4})
    folder = tmp_path / "run" / "checkpoints"
    with monkeypatch.context() as patched:
        original = GRPOTrainer._save_checkpoint

        def save(trainer: Any, *arguments: Any) -> None:
            place = folder / f"checkpoint-{trainer.state.global_step}" / name
            if trainer.state.global_step == 4:
                place.parent.mkdir()
                # safetensors writes beside the name and then takes it: it is refused by a folder that has it.
                (place / "taken").mkdir(parents=True) if name == "model.safetensors" else place.symlink_to(FULL)
            original(trainer, *arguments)

        patched.setattr(GRPOTrainer, "_save_checkpoint", save)
        patched.setattr("permix.storage.run_dir.RunDir._add_usage", disk_is_full)
        with pytest.raises(PermixError, match=r"checkpoints/checkpoint-4: cannot be written: .*; make room, then run the same"):
            run_training(config)
    assert newest_checkpoint(folder) == folder / "checkpoint-2"
    assert not (folder / "checkpoint-4").exists(), "what was begun takes no room"
    run_training(config)
    run_training(stage(tiny_model, tmp_path / "undisturbed", plan={"steps": 4}))
    one, two = (tmp_path / one / "model" / "model.safetensors" for one in ("run", "undisturbed"))
    assert one.read_bytes() == two.read_bytes()
    assert log_of(tmp_path / "run") == log_of(tmp_path / "undisturbed")


def test_weights_that_are_shared_out_are_written_by_a_library_of_their_own(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any) -> None:
        raise CheckpointException("save", {0: (OSError(errno.ENOSPC, "No space left on device"), None)})  # type: ignore[dict-item]

    monkeypatch.setattr(GRPOTrainer, "_save_checkpoint", refused)
    with pytest.raises(PermixError, match=r"checkpoints/checkpoint-2: cannot be written: .*No space left on device"):
        run_training(stage(tiny_model, tmp_path / "run"))


@pytest.mark.parametrize("wrapped", [False, True], ids=["whole weights", "shards"])
def test_what_is_no_failed_write_is_not_called_a_full_disk(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrapped: bool
) -> None:
    cause = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    def exhausted(*_: Any) -> None:
        raise CheckpointException("save", {0: (cause, None)}) if wrapped else cause  # type: ignore[dict-item]

    monkeypatch.setattr(GRPOTrainer, "_save_checkpoint", exhausted)
    with pytest.raises(torch.OutOfMemoryError, match=r"^CUDA out of memory\. Tried to allocate 2\.00 GiB$"):
        run_training(stage(tiny_model, tmp_path / "run"))


@pytest.mark.parametrize("size", [10, 1_000_000])
@pytest.mark.parametrize("place", ["full", "folder", "in no folder"])
def test_every_way_in_which_a_tensor_cannot_be_written_is_a_failed_write(tmp_path: Path, place: str, size: int) -> None:
    checkpoint = tmp_path / "checkpoints" / "checkpoint-1"
    checkpoint.mkdir(parents=True)
    path = {"full": FULL, "folder": tmp_path, "in no folder": tmp_path / "none" / "optimizer.pt"}[place]
    with pytest.raises(PermixError, match=r"checkpoint-1: cannot be written: .*; make room"), write_checkpoint(checkpoint):
        torch.save(torch.zeros(size), path)


def disk_is_full(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device", "usage.json")


def test_a_model_that_cannot_be_written_is_written_by_the_next_start(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = stage(tiny_model, tmp_path / "run")
    with monkeypatch.context() as patched:
        patched.setattr(train, "write_model_card", disk_is_full)
        with pytest.raises(PermixError, match=r"run/\.model\.part: cannot be written: No space left on device; make room"):
            run_training(config)
    assert not (tmp_path / "run" / "model").exists()
    steps = len(read_training_log(tmp_path / "run" / "log.jsonl"))
    assert (run_training(config) / "config.json").exists()
    assert len(read_training_log(tmp_path / "run" / "log.jsonl")) == steps, "no step was done again"


def test_a_curriculum_restarted_after_its_last_step_keeps_the_rows_it_was_trained_on(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan_settings = {"curriculum_strength": 100.0, "curriculum_update_every": 1, "mix": 1.0, "questions_per_step": 6}
    config = stage(tiny_model, tmp_path / "run", plan=plan_settings)
    files = [tmp_path / "run" / name for name in ("plan.parquet", "plan_blocks.jsonl")]
    with monkeypatch.context() as patched:
        patched.setattr(train, "write_model_card", disk_is_full)
        with pytest.raises(PermixError, match="No space left"):
            run_training(config)
    before = [path.read_bytes() for path in files]
    card = run_training(config) / "README.md"
    assert [path.read_bytes() for path in files] == before
    plan, rollouts = read_plan(files[0]), read_training_log(tmp_path / "run" / "rollouts.jsonl")
    asked = {(row.step + 1, row.group, row.persona_id) for row in plan.rows}
    assert {(line["step"], line["group"], line["persona_id"]) for line in rollouts} == asked
    assert plan.hash != prepare_training(config).plan.hash, "the blocks were drawn as they would have been without one"
    assert f"| hash | {plan.hash} |" in card.read_text()


def test_a_full_disk_elsewhere_is_one_line_and_exit_code_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("pyarrow.parquet.write_table", disk_is_full)
    assert cli.run_cli(["plan", "--out", str(tmp_path / "plan.parquet")]) == 1
    assert capsys.readouterr().err == f"permix plan: {tmp_path / 'plan.parquet'}: cannot be written: {GO_ON}\n"


def never(*_: Any, **__: Any) -> None:
    raise AssertionError("weights were loaded")


@pytest.fixture
def unloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing may be loaded that takes long."""
    monkeypatch.setattr(network, "load_causal_lm", never)
    monkeypatch.setattr(grpo_trainer, "generate_reference_answers", never)


@pytest.mark.usefixtures("unloaded")
@pytest.mark.parametrize(
    ("template", "said"),
    [(None, "its tokenizer has no chat template"), (tiny.SYSTEM_IGNORED, "chat template takes no system message")],
)
def test_a_model_that_cannot_be_given_a_persona_is_refused(
    tiny_model: Path, tmp_path: Path, template: str | None, said: str
) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    (folder / "chat_template.jinja").unlink()
    if template:
        (folder / "chat_template.jinja").write_text(template)
    with pytest.raises(ConfigError, match=said):
        run_training(stage(folder, tmp_path / "run"))


@pytest.mark.usefixtures("unloaded")
@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"max_prompt_tokens": 20},
            r"max_prompt_tokens = 20: the prompt of step 0, group 0 \(question .*\) has \d+ tokens; raise",
        ),
        (
            {"max_new_tokens": 500},
            r"max_new_tokens = 500: the plan's longest prompt has \d+ tokens and the model reads 512; give",
        ),
    ],
)
def test_prompts_and_completions_that_do_not_fit_are_refused(
    tiny_model: Path, tmp_path: Path, settings: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        run_training(stage(tiny_model, tmp_path / "run", **settings))
    assert not (tmp_path / "run" / "log.jsonl").exists()


@pytest.mark.usefixtures("unloaded")
def test_prompts_that_a_curriculum_may_draw_later_are_checked_before_training(tiny_model: Path, tmp_path: Path) -> None:
    """The pool has one long persona; under the plan's seed no row has it, and a later block could."""
    pool = [{"id": f"p{n}", "text": f"a sailor {n}", "weight": 1} for n in range(4)]
    pool.append({"id": "long", "text": "a sailor" + " of the long seas" * 40})
    path = tmp_path / "pool.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in pool))
    plan = {"mix": 1.0, "steps": 2, "questions_per_step": 1, "curriculum_update_every": 1}
    config = stage(tiny_model, tmp_path / "run", plan=plan, max_prompt_tokens=100)
    config = config.model_copy(update={"personas": PersonasConfig(pool=str(path))})
    assert "long" not in {row.persona_id for row in prepare_training(config).plan.rows}
    adaptive = config.model_copy(update={"plan": config.plan.model_copy(update={"curriculum_strength": 1.0})})
    refused = r"max_prompt_tokens = 100: the prompt of step 1, group 0 \(question .*, persona long\) has \d+ tokens"
    with pytest.raises(ConfigError, match=refused):
        run_training(adaptive)
    with pytest.raises(AssertionError, match="weights were loaded"):
        run_training(config)


@pytest.mark.usefixtures("unloaded")
def test_fewer_questions_than_a_step_has_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    config = stage(tiny_model, tmp_path / "run").model_copy(update={"task": TaskConfig(split="train", levels=("sub-1",), n=1)})
    with pytest.raises(
        ConfigError, match=r"questions_per_step = 2: the task has only 1 questions; ask for more questions or fewer"
    ):
        run_training(config)
    assert not (tmp_path / "run").exists()


def test_fewer_personas_than_a_step_has_groups_are_drawn_again(tiny_model: Path, tmp_path: Path) -> None:
    config = stage(tiny_model, tmp_path / "run", plan={"mix": 1.0, "questions_per_step": 4, "steps": 1})
    run_training(config.model_copy(update={"personas": config.personas.model_copy(update={"n": 1})}))
    rollouts = read_training_log(tmp_path / "run" / "rollouts.jsonl")
    assert len({line["group"] for line in rollouts}) == 4
    assert len({line["persona_id"] for line in rollouts}) == 1


def test_a_group_of_one_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "train.toml"
    path.write_text(f"out = {json.dumps(str(tmp_path / 'run'))}\nplan = {{ group_size = 1 }}\n")
    assert cli.run_cli(["train", str(path)]) == 2
    assert "plan.group_size = 1: must be greater than or equal to 2" in capsys.readouterr().err
    assert TrainConfig().plan.group_size == 8
