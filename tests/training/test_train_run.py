"""`permix train`: what it writes, what it refuses, and that a killed run ends bitwise where an undisturbed one does."""

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from permix.config import (
    CHANGEABLE_FIELDS,
    CharacterConfig,
    ModelConfig,
    OptimConfig,
    PersonasConfig,
    PlanConfig,
    RolloutPlanConfig,
    TaskConfig,
    TrainableModelConfig,
    TrainConfig,
    TrainMethod,
)
from permix.errors import ConfigError, DataError, PermixError
from permix.inference.hf import HFModel, folder_fingerprint
from permix.personas.pool import PersonaSource, select_personas
from permix.personas.recorded_turns import RecordedTurns
from permix.pipelines.train import build_trained_on, run_training
from permix.plan import compile_plan, compile_plan_from_config, plan_builder_from_config, read_plan, write_plan
from permix.storage.files import read_json
from permix.tasks.base import TrainedOn, read_trained_on, write_trained_on
from permix.trackers import TRACKERS, TrackedRun
from permix.training.checkpoints import newest_checkpoint
from permix.training.job import TrainJob
from permix.training.run_log import read_training_log
from permix.types import Completion, Message, RecordedTurn, Request, Sampling, digest
from tests.cell_files import read_cells
from tests.killable import Moment, command
from tests.test_trackers import scalars
from tests.tiny import CHATML_DEFAULT, make_base_folder, make_tokenizer

pytestmark = pytest.mark.slow

QUICK = {"lr": 1e-2, "max_new_tokens": 6, "microbatch_tokens": 256, "precision": "float32", "save_every": 2}


CHARACTER = {"personas": 3, "questions": 4, "max_new_tokens": 6, "replay_answers": 5}


def stage(
    tiny_model: Path, out: Path, *, plan: dict[str, Any] | None = None, character: dict[str, Any] | None = None, **settings: Any
) -> TrainConfig:
    """A training of 3 steps of 2 groups of 16: the chance that a model right once in ten is never right is 4e-5."""
    sizes = {"steps": 3, "questions_per_step": 2, "group_size": 16, "mix": 0.6} | (plan or {})
    return TrainConfig(
        out=out, threads=1, model=TrainableModelConfig(name=str(tiny_model)), label="tiny",
        task=TaskConfig(split="train", levels=("sub-1",), n=20), personas=PersonasConfig(split="train", n=4),
        plan=RolloutPlanConfig.model_validate(sizes), train=OptimConfig.model_validate(QUICK | settings),
        character=CharacterConfig.model_validate(CHARACTER | (character or {})),
    )  # fmt: skip


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(load_file(folder / "model.safetensors"))


def assert_trained(before: Path, after: Path) -> None:
    """The same tensors, adapters merged, and not the same numbers."""
    start, end = weights(before), weights(after)
    assert start.keys() == end.keys()
    assert any(not torch.equal(start[name], end[name]) for name in start)


def log_of(out: Path) -> list[dict[str, Any]]:
    """The log without its wall seconds."""
    return [
        {name: value for name, value in line.items() if name not in ("seconds", "cpu_seconds")}
        for line in read_training_log(out / "log.jsonl")
    ]


@pytest.fixture(scope="module")
def plain(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of a small finished training."""
    return run_training(stage(tiny_model, tmp_path_factory.mktemp("plain") / "run")).parent


def test_the_result_is_a_plain_model_folder_that_answers(plain: Path, tiny_model: Path) -> None:
    model = HFModel(ModelConfig(name=str(plain / "model"), dtype="float32"))
    (answer,) = model.generate([Request((Message(role="user", content="What is 1 + 1?"),), 0)], Sampling(max_new_tokens=4))
    assert isinstance(answer.result, Completion)
    assert_trained(tiny_model, plain / "model")
    assert {value.dtype for value in weights(plain / "model").values()} == {torch.float32}
    for name in ("chat_template.jinja", "generation_config.json", "config.json"):
        assert (plain / "model" / name).read_text() == (tiny_model / name).read_text()


@pytest.mark.parametrize("method", ["permix", "sft"])
def test_a_base_model_learns_to_end_its_turn_and_says_so(tiny_model: Path, tmp_path: Path, method: TrainMethod) -> None:
    """Rollouts end there, examples end with it, and the trained model's generation config has it for every engine."""
    config = stage(make_base_folder(tiny_model, tmp_path / "base"), tmp_path / "run", plan={"steps": 1}, max_new_tokens=12)
    folder = run_training(config.model_copy(update={"method": method}))
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == [0, 1]
    if method == "permix":
        assert log_of(tmp_path / "run")[0]["truncated"] < 0.5
    trained = HFModel(ModelConfig(name=str(folder), dtype="float32"))
    assert trained.fingerprint == digest(folder_fingerprint(folder), "torch.float32")


def test_rollouts_keep_the_thinking_that_the_template_opens(tiny_model: Path, tmp_path: Path) -> None:
    """The model answers with digits and never closes the thinking, so nothing is an answer and nothing is paid."""
    folder = Path(shutil.copytree(tiny_model, tmp_path / "thinker"))
    opens = "{% if add_generation_prompt %}<|im_start|>assistant\n"
    assert CHATML_DEFAULT.count(opens) == 1
    make_tokenizer(CHATML_DEFAULT.replace(opens, opens + "<think>\n")).save_pretrained(folder)
    run_training(stage(folder, tmp_path / "run", plan={"steps": 1}))
    rollouts = read_training_log(tmp_path / "run" / "rollouts.jsonl")
    assert len(rollouts) == 32
    assert all(one["completion"].startswith("<think>\n") for one in rollouts)
    assert any(any(digit in one["completion"] for digit in "0123456789") for one in rollouts)
    assert {(one["verdict"]["correct"], one["verdict"]["extracted"]) for one in rollouts} == {(False, None)}


def test_the_model_carries_its_card_and_the_questions_it_saw(plain: Path) -> None:
    plan = read_plan(plain / "plan.parquet")
    card = (plain / "model" / "README.md").read_text(encoding="utf-8")
    assert plan.hash in card
    assert "PerMix-RLVR (persona-mixed RLVR), trained by permix from" in card
    assert read_trained_on(plain / "model").question_hashes == {row.question_hash for row in plan.rows}


@pytest.mark.parametrize("lora_rank", [0, 2])
def test_the_result_is_saved_in_bfloat16_on_request(tiny_model: Path, tmp_path: Path, lora_rank: int) -> None:
    """Tied weights are saved once, the configuration says the format, and everybody may read the files."""
    before = os.umask(0o027)
    try:
        run_training(stage(tiny_model, tmp_path / "run", plan={"steps": 1}, save_dtype="bfloat16", lora_rank=lora_rank))
    finally:
        os.umask(before)
    folder = tmp_path / "run" / "model"
    assert {value.dtype for value in weights(folder).values()} == {torch.bfloat16}
    assert weights(folder).keys() == weights(tiny_model).keys()
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir() if path.is_file()} == {0o640}
    model = HFModel(ModelConfig(name=str(folder), dtype="float32"))
    (answer,) = model.generate([Request((Message(role="user", content="What is 1 + 1?"),), 0)], Sampling(max_new_tokens=4))
    assert isinstance(answer.result, Completion)


def test_a_run_leaves_its_log_and_no_scratch(plain: Path) -> None:
    assert sorted(path.name for path in plain.iterdir() if path.name != ".lock") == [
        "config.json", "log.jsonl", "model", "plan.parquet", "provenance.json", "rollouts.jsonl", "samples.md", "usage.json",
    ]  # fmt: skip
    log, rollouts = read_training_log(plain / "log.jsonl"), read_training_log(plain / "rollouts.jsonl")
    assert [line["step"] for line in log] == [1, 2, 3]
    assert [line["step"] for line in rollouts] == [1] * 32 + [2] * 32 + [3] * 32
    assert log[-1]["tokens"] == sum(line["tokens"] for line in rollouts)
    assert log[0]["lr"] == 1e-2
    assert {"reward", "grad_norm", "completion_tokens", "truncated", "frac_nonzero_advantage_groups"} <= log[0].keys()
    assert (plain / "samples.md").read_text(encoding="utf-8").count("## Step") == 1
    assert "answers" not in json.loads((plain / "usage.json").read_text())


@pytest.mark.parametrize(
    ("settings", "plan"),
    [
        ({"beta": 0.1}, {}),
        ({"lora_rank": 2}, {}),
        ({"lora_rank": 2, "beta": 0.1}, {}),
        ({"updates_per_rollout": 2}, {}),
        ({"beta": 0.1, "kl_reference_prompt": "no-persona"}, {}),
        ({"loss": "grpo", "scale_rewards": "none", "precision": "bfloat16"}, {"scope": "rollout"}),
        ({"loss": "dr_grpo", "gradient_checkpointing": True, "lr_schedule": "cosine", "warmup_steps": 1}, {"mix": 0.0}),
    ],
    ids=["kl", "lora", "lora-kl", "updates_per_rollout", "no-persona-anchor", "bfloat16-rollout-scope", "checkpointing"],
)
def test_every_kind_of_training_runs(tiny_model: Path, tmp_path: Path, settings: dict[str, Any], plan: dict[str, Any]) -> None:
    config = stage(tiny_model, tmp_path / "run", plan=plan, **settings)
    folder = run_training(config)
    log = read_training_log(tmp_path / "run" / "log.jsonl")
    assert len(log) == 3 * config.train.updates_per_rollout
    assert_trained(tiny_model, folder)
    assert (folder / "generation_config.json").read_text() == (tiny_model / "generation_config.json").read_text()
    if config.train.beta:
        same = config.train.kl_reference_prompt == "same-persona"
        assert (abs(log[0]["kl"]) < 1e-6) == same, "the first step is the reference itself, when it reads the same prompt"
        assert log[2]["kl"] > 1e-6
    if config.train.updates_per_rollout == 2:
        assert [line["reward"] is None for line in log] == [False, True] * 3
        assert {line["step"] for line in read_training_log(tmp_path / "run" / "rollouts.jsonl")} == {1, 3, 5}


@pytest.mark.parametrize(
    ("character", "settings"),
    [
        ({"replay": 2.0}, {}),
        ({"replay": 2.0, "replay_policy": "on"}, {}),
        ({"replay": 2.0, "replay_policy": "on"}, {"lora_rank": 2}),
        ({"replay": 2.0, "expressivity": 0.5}, {"precision": "bfloat16", "beta": 0.1}),
    ],
    ids=["off-policy", "on-policy", "on-policy-lora", "all-together"],
)
def test_what_keeps_the_character_composes(
    tiny_model: Path, tmp_path: Path, character: dict[str, Any], settings: dict[str, Any]
) -> None:
    config = stage(tiny_model, tmp_path / "run", character=character, **settings)
    run_training(config)
    log = read_training_log(tmp_path / "run" / "log.jsonl")
    tolerance = 1e-2 if config.train.precision == "bfloat16" else 1e-4
    assert abs(log[0]["replay_kl"]) < tolerance, "before the first step nothing has moved"
    assert log[2]["replay_kl"] > abs(log[0]["replay_kl"])
    assert ("expressivity" in log[0]) == ("expressivity" in character)
    bank = read_cells(tmp_path / "run" / "reference_answers" / "records.jsonl")
    assert len(bank) == (4 if "expressivity" in character else 3) * 4
    assert all(cell.completion is not None for cell in bank.values())


def test_a_curriculum_asks_more_often_as_those_under_whom_it_fails_and_can_be_audited(tiny_model: Path, tmp_path: Path) -> None:
    plan = {"steps": 4, "curriculum_strength": 5.0, "curriculum_update_every": 2, "mix": 1.0}
    run_training(stage(tiny_model, tmp_path / "run", plan=plan))
    (block,) = read_training_log(tmp_path / "run" / "plan_blocks.jsonl")
    lines = [line for line in read_training_log(tmp_path / "run" / "rollouts.jsonl") if line["step"] <= 2]
    for persona, count in block["rollouts"].items():
        assert count == sum(line["persona_id"] == persona for line in lines)
    by_accuracy = sorted(block["accuracy"], key=lambda name: block["accuracy"][name])
    assert block["chance"][by_accuracy[0]] > block["chance"][by_accuracy[-1]]
    rows = read_plan(tmp_path / "run" / "plan.parquet").rows
    assert block["rows"] == digest(*(row.model_dump_json() for row in rows if row.step >= 2))
    asked = {(row.step + 1, row.group, row.persona_id) for row in rows}
    assert {
        (line["step"], line["group"], line["persona_id"]) for line in read_training_log(tmp_path / "run" / "rollouts.jsonl")
    } == asked
    assert read_trained_on(tmp_path / "run" / "model").persona_ids >= set(block["chance"])


def test_replay_holds_the_model_nearer_to_its_base(tiny_model: Path, tmp_path: Path) -> None:
    divergences = []
    for weight in (1e-9, 5.0):
        config = stage(tiny_model, tmp_path / str(weight), character={"replay": weight, "replay_answers": 12}, plan={"steps": 8})
        run_training(config)
        divergences.append(read_training_log(tmp_path / str(weight) / "log.jsonl")[-1]["replay_kl"])
    assert divergences[1] < 0.5 * divergences[0]


def test_a_bank_that_cannot_be_filled_is_refused_before_it_begins(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"character\.questions = 500: the train split has 48 open-ended questions"):
        run_training(stage(tiny_model, tmp_path / "run", character={"replay": 1.0, "questions": 500}))


def test_a_finished_run_started_again_does_nothing(plain: Path, tiny_model: Path) -> None:
    def stamps() -> dict[str, int]:
        return {str(path): path.stat().st_mtime_ns for path in plain.rglob("*") if path.is_file() and path.name != ".lock"}

    before = stamps()
    assert run_training(stage(tiny_model, plain)) == plain / "model"
    after = stamps()
    changed = {name for name in after if after[name] != before.get(name)}
    assert changed == {str(plain / "config.json")}
    assert after.keys() == before.keys()


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"lr": 2e-2}, r"train.lr = 0.01, not 0.02"),
        ({"plan": {"mix": 0.0}}, r"plan.mix = .*, not 0.0"),
        ({"plan": {"seed": 1}}, r"plan.seed = 0, not 1"),
        ({"beta": 0.1, "lr": 2e-2}, r"train.beta = 0.0, not 0.1; train.lr = 0.01, not 0.02"),
    ],
)
def test_another_plan_or_setting_in_its_folder_is_refused(
    plain: Path, tiny_model: Path, changed: dict[str, Any], named: str
) -> None:
    with pytest.raises(ConfigError, match=f"this run was made with {named}; give another folder"):
        run_training(stage(tiny_model, plain, **changed))


def test_where_an_engine_stands_is_not_what_a_run_is_but_that_there_is_one_is(plain: Path, tiny_model: Path) -> None:
    places: dict[str, Any] = {
        "vllm_server_port": 9001,
        "vllm_server_base_url": "http://elsewhere:8000",
        "vllm_gpu_memory_utilization": 0.5,
    }
    assert run_training(stage(tiny_model, plain, **places)) == plain / "model"
    with pytest.raises(ConfigError, match=r"this run was made with train.vllm_mode = 'colocate', not 'server'; give"):
        run_training(stage(tiny_model, plain, vllm_mode="server"))


CHANGED: dict[str, Any] = {
    "report_to": ("tensorboard",), "save_every": 1, "samples_every": 1, "keep_checkpoints": True, "microbatch_tokens": 64,
}  # fmt: skip


def test_what_changes_nothing_that_is_learnt_may_change_between_starts(plain: Path, tiny_model: Path) -> None:
    assert {*CHANGED, "save_dtype"} == set(CHANGEABLE_FIELDS)
    with pytest.raises(ConfigError, match=r"^train.save_dtype = 'bfloat16': .*model is there already, in float32; leave"):
        run_training(stage(tiny_model, plain, save_dtype="bfloat16"))
    assert run_training(stage(tiny_model, plain, **CHANGED)) == plain / "model"
    assert read_json(plain / "config.json")["train"]["save_every"] == 1
    assert read_json(plain / "config.json")["train"]["microbatch_tokens"] == 64
    run_training(stage(tiny_model, plain))


def test_a_killed_run_goes_on_with_changed_settings_and_ends_with_the_same_weights(
    plain: Path, tiny_model: Path, tmp_path: Path
) -> None:
    """Its identity has the settings that earlier versions of permix recorded, and its checkpoint a hash of it."""
    config, killed = tmp_path / "train.json", tmp_path / "killed"
    config.write_text(stage(tiny_model, killed).model_dump_json())
    dies = Moment("permix.storage.run_dir:RunDir._open_or_resume")
    assert command("train", str(config), dies=dies) == -9
    born = read_json(killed / "provenance.json")
    assert born["identity"]["train"].keys().isdisjoint(CHANGEABLE_FIELDS)
    born["identity"]["train"] |= {
        "microbatch_tokens": 1024,
        "report_to": [],
        "save_every": 2,
        "samples_every": 5,
        "keep_checkpoints": False,
    }
    (killed / "provenance.json").write_text(json.dumps(born))
    assert command("train", str(config), dies=Moment("permix.training.grpo_trainer:PlanGRPOTrainer._save_checkpoint")) == -9
    kept = newest_checkpoint(killed / "checkpoints")
    assert kept is not None
    assert kept.name == "checkpoint-2"

    settings = ("--train.save-every", "1", "--train.samples-every", "1", "--train.keep-checkpoints")
    assert command("train", str(config), *settings, "--train.report-to", "tensorboard") == 0
    assert (killed / "model/model.safetensors").read_bytes() == (plain / "model/model.safetensors").read_bytes()
    assert log_of(killed) == log_of(plain)
    assert (killed / "checkpoints/checkpoint-3").is_dir(), "kept, and written by the new interval"
    assert read_json(killed / "provenance.json") == born
    assert [step for step, _ in scalars(killed / "tensorboard")["train/loss"]] == [3]


def test_a_finished_training_has_its_curves_and_no_checkpoints(plain: Path, tiny_model: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    config = stage(tiny_model, tmp_path / "run", report_to=("tensorboard",))
    folder = run_training(config)
    assert not (tmp_path / "run" / "checkpoints").exists()
    found = scalars(tmp_path / "run" / "tensorboard")
    assert found["train/reward"] == [(line["step"], pytest.approx(line["reward"], abs=1e-6)) for line in log_of(tmp_path / "run")]
    assert [step for step, _ in found["train/loss"]] == [1, 2, 3]
    assert (folder / "model.safetensors").read_bytes() == (plain / "model/model.safetensors").read_bytes()


@pytest.mark.parametrize("method", ["permix", "sft"])
def test_a_tracker_that_fails_does_not_end_a_training(
    method: TrainMethod, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Broken:
        def __init__(self, run: TrackedRun) -> None:
            assert run.label == "tiny"

        def log(self, values: Any, step: int) -> None:
            assert any(name.startswith("train/") for name in values)
            raise RuntimeError("the server is gone")

        def close(self) -> None:
            raise AssertionError("it was dropped")

    monkeypatch.setitem(TRACKERS, "tensorboard", Broken)
    config = stage(tiny_model, tmp_path / "run", report_to=("tensorboard",), plan={"steps": 2}, max_new_tokens=12)
    folder = run_training(config.model_copy(update={"method": method}))
    assert (folder / "model.safetensors").exists()
    assert capsys.readouterr().err.count("warning: tensorboard: RuntimeError: the server is gone; it gets no more metrics") == 1


def test_another_model_in_its_folder_is_refused(plain: Path) -> None:
    with pytest.raises(ConfigError, match=r"this run was made with model.name = '.*', not '.*'; give"):
        run_training(stage(plain / "model", plain))


def test_a_plan_file_trains_as_the_sections_it_was_compiled_from(plain: Path, tiny_model: Path, tmp_path: Path) -> None:
    config = stage(tiny_model, tmp_path / "run")
    sections = PlanConfig(task=config.task, personas=config.personas, plan=config.plan)
    write_plan(compile_plan_from_config(sections.task, sections.personas, sections.plan), tmp_path / "plan.parquet")
    other_sizes = config.model_copy(update={"plan_file": tmp_path / "plan.parquet", "plan": RolloutPlanConfig()})
    folder = run_training(other_sizes)
    assert log_of(tmp_path / "run") == log_of(plain)
    assert (folder / "model.safetensors").read_bytes() == (plain / "model" / "model.safetensors").read_bytes()


def test_a_plan_trains_in_its_contexts(tiny_model: Path, tmp_path: Path) -> None:
    config = stage(tiny_model, tmp_path / "run", plan={"steps": 1, "questions_per_step": 4, "group_size": 16, "mix": 1})
    contexts = {"system": 1, "user": 1, "in-character": 1, "turns-2": 1}
    drawn = RolloutPlanConfig.model_validate(
        config.plan.model_dump() | {"contexts": contexts, "context_turns": "turns", "seed": 1}
    )
    pool = select_personas(config.personas)
    turns = {one.id: (RecordedTurn("Who are you?", "Me."), RecordedTurn("And?", "Still me.")) for one in pool.personas}
    plain, _ = plan_builder_from_config(
        config.task, config.personas, config.plan, PersonaSource(config.personas.pool, config.personas.column)
    )
    recorded = RecordedTurns(tmp_path / "turns", turns, {}, is_conversation=True)
    plan = compile_plan(plain._replace(config=drawn, turns=recorded))
    assert {row.context for row in plan.rows} >= {"turns-2", "user"}
    write_plan(plan, tmp_path / "plan.parquet")
    folder = run_training(config.model_copy(update={"plan_file": tmp_path / "plan.parquet"}))
    assert_trained(tiny_model, folder)
    assert read_plan(tmp_path / "run" / "plan.parquet").rows == plan.rows
    assert "turns-2" in (folder / "README.md").read_text()


def test_a_prompt_over_the_limit_is_refused_before_training_and_names_its_row(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"max_prompt_tokens = 20: the prompt of step 0, group 0 \(question arithmetic:"):
        run_training(stage(tiny_model, tmp_path / "run", max_prompt_tokens=20))
    assert not (tmp_path / "run" / "log.jsonl").exists()


def test_completions_that_leave_the_models_window_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train.max_new_tokens = 500: .* the model reads 512; give train.max_new_tokens = 4"):
        run_training(stage(tiny_model, tmp_path / "run", max_new_tokens=500))


def test_a_broken_plan_file_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "plan.parquet").write_bytes(b"PAR1")
    config = stage(tiny_model, tmp_path / "run").model_copy(update={"plan_file": tmp_path / "plan.parquet"})
    with pytest.raises(DataError, match="not a plan file"):
        run_training(config)


def test_a_model_whose_weights_diverged_is_named_as_one(tiny_model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "diverged"))
    save_file(
        {name: value * torch.nan for name, value in weights(tiny_model).items()}, folder / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(PermixError, match="its weights have diverged"):
        run_training(stage(folder, tmp_path / "run"))


MOMENTS = [
    Moment("permix.training.run_log:RolloutLogger.log_metrics", 1),
    Moment("transformers.trainer_callback:TrainerState.save_to_json", 1, torn=True),
    Moment("permix.training.checkpoints:_write_manifest", 1),
    Moment("permix.training.run_log:_append_lines", 3, torn=True),
    Moment("permix.training.run_log:RolloutLogger.log_metrics", 1),
    Moment("permix.training.checkpoints:_write_manifest", 1),
    Moment("permix.pipelines.train:write_model_card", 1),
]
"""Where each start of the run dies: before the first checkpoint; in the middle of writing it; just after it; in the middle of
logging step 3; after step 3; after the last checkpoint; in the middle of writing the model."""


@pytest.mark.parametrize(
    "settings",
    [
        (),
        ("--train.lora-rank", "2", "--train.beta", "0.1"),
        ("--train.updates_per_rollout", "2"),
        (
            "--plan.curriculum_strength",
            "4",
            "--plan.curriculum-update-every",
            "1",
            "--plan.dynamic_sampling_groups",
            "2",
            "--plan.group-size",
            "6",
        ),
        ("--character.replay", "1", "--character.replay-policy", "on", "--character.personas", "3", "--character.questions", "4"),
        ("--character.replay", "1", "--character.expressivity", "0.5", "--character.questions", "4"),
    ],
    ids=["plain", "lora-kl", "updates_per_rollout", "adaptive-spares", "replay-on", "replay-off-expressivity"],
)
def test_a_run_killed_again_and_again_ends_where_an_undisturbed_one_does(
    tiny_model: Path, tmp_path: Path, settings: tuple[str, ...]
) -> None:
    config = tmp_path / "train.toml"
    config.write_text(
        f"""
        threads = 1
        model.name = {json.dumps(str(tiny_model))}
        task = {{ split = "train", levels = ["sub-1"], n = 20 }}
        personas = {{ split = "train", n = 4 }}
        plan = {{ steps = 4, questions_per_step = 2, group_size = 16 }}
        train = {{ lr = 1e-2, max_new_tokens = 6, microbatch_tokens = 256, precision = "float32", save_every = 2, samples_every = 2 }}
        """  # noqa: E501
    )
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    assert command("train", str(config), "--out", str(undisturbed), *settings) == 0
    moments = MOMENTS if not settings else MOMENTS[1::3]
    for moment in moments:
        assert command("train", str(config), "--out", str(killed), *settings, dies=moment) == -9, moment
        assert not (killed / "model").exists()
    assert command("train", str(config), "--out", str(killed), *settings) == 0
    assert (killed / "model/model.safetensors").read_bytes() == (undisturbed / "model/model.safetensors").read_bytes()
    assert log_of(killed) == log_of(undisturbed)
    laid = ["plan_blocks.jsonl"] if "--plan.curriculum_strength" in settings else []
    assert read_plan(killed / "plan.parquet").hash == read_plan(undisturbed / "plan.parquet").hash
    for name in ("rollouts.jsonl", "samples.md", "model/README.md", *laid):
        assert (killed / name).read_bytes().replace(b"# killed", b"# undisturbed") == (undisturbed / name).read_bytes()
    assert sorted(path.name for path in killed.iterdir()) == sorted(path.name for path in undisturbed.iterdir())
    assert not list(killed.glob("**/.*.part"))


AMID = [
    Moment("permix.training.checkpoints:_write_manifest", 1),
    Moment("permix.training.grpo_trainer:save_rollouts", 1),
    Moment("permix.training.checkpoints:_write_manifest", 1),
    Moment("permix.training.run_log:RolloutLogger.log_metrics", 1),
]
"""Generations serve steps 1 to 3, 4 to 6 and 7 to 9; checkpoints fall after every second step. The starts die: just after
checkpoint 2; in the middle of checkpoint 4, which does not count; just after checkpoint 4; after step 5, whose rollouts were
those of checkpoint 4."""


@pytest.mark.parametrize(
    "settings",
    [(), ("--train.beta", "0.1", "--train.lora-rank", "2", "--character.replay", "0.5", "--character.replay-policy", "on")],
    ids=["all weights", "lora, kl and replay"],
)
def test_a_run_killed_amid_the_steps_of_a_generation_ends_where_an_undisturbed_one_does(
    tiny_model: Path, tmp_path: Path, settings: tuple[str, ...]
) -> None:
    config = tmp_path / "train.toml"
    config.write_text(
        f"""
        threads = 1
        model.name = {json.dumps(str(tiny_model))}
        task = {{ split = "train", levels = ["sub-1"], n = 20 }}
        personas = {{ split = "train", n = 4 }}
        plan = {{ steps = 3, questions_per_step = 2, group_size = 16 }}
        character = {{ personas = 2, questions = 2, max_new_tokens = 6, replay_answers = 3 }}
        train = {{ lr = 1e-2, max_new_tokens = 6, microbatch_tokens = 256, precision = "float32", updates_per_rollout = 3, save_every = 2 }}
        """  # noqa: E501
    )
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    assert command("train", str(config), "--out", str(undisturbed), *settings) == 0
    found = []
    for moment in AMID:
        assert command("train", str(config), "--out", str(killed), *settings, dies=moment) == -9, moment
        found.append(newest_checkpoint(killed / "checkpoints"))
    assert [path and path.name for path in found] == ["checkpoint-2", "checkpoint-2", "checkpoint-4", "checkpoint-4"]
    assert command("train", str(config), "--out", str(killed), *settings) == 0
    assert (killed / "model/model.safetensors").read_bytes() == (undisturbed / "model/model.safetensors").read_bytes()
    assert log_of(killed) == log_of(undisturbed)
    for name in ("rollouts.jsonl", "samples.md"):
        assert (killed / name).read_bytes() == (undisturbed / name).read_bytes()


@pytest.mark.parametrize("settings", [{}, {"lora_rank": 2}], ids=["all weights", "lora"])
def test_a_plan_and_a_seed_say_every_bit_of_the_result(tiny_model: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    """Whatever this process drew before."""
    for name, drawn_before in (("one", 1), ("two", 2)):
        torch.manual_seed(drawn_before)
        run_training(stage(tiny_model, tmp_path / name, **settings))
    one, two = (tmp_path / name / "model" / "model.safetensors" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()
    assert log_of(tmp_path / "one") == log_of(tmp_path / "two")
    other = run_training(stage(tiny_model, tmp_path / "other", **settings, seed=1))
    assert ((other / "model.safetensors").read_bytes() == one.read_bytes()) == (not settings), "only LoRA draws its first weights"


def test_steps_are_optimizer_steps_and_samples_fall_on_generations(tiny_model: Path, tmp_path: Path) -> None:
    run_training(stage(tiny_model, tmp_path / "run", plan={"steps": 5}, updates_per_rollout=2, samples_every=2))
    log, rollouts = read_training_log(tmp_path / "run" / "log.jsonl"), read_training_log(tmp_path / "run" / "rollouts.jsonl")
    assert [line["step"] for line in log] == list(range(1, 11))
    assert sorted({line["step"] for line in rollouts}) == [line["step"] for line in log if line["reward"] is not None]
    samples = (tmp_path / "run" / "samples.md").read_text(encoding="utf-8")
    assert re.findall(r"^## Step (\d+)$", samples, re.MULTILINE) == ["1", "5", "9"]


def test_a_run_killed_after_its_model_was_written_still_clears_its_checkpoints(tiny_model: Path, tmp_path: Path) -> None:
    done = run_training(stage(tiny_model, tmp_path / "run", keep_checkpoints=True))
    assert [path.name for path in (tmp_path / "run" / "checkpoints").glob("checkpoint-*")] == ["checkpoint-3"]
    cleared = shutil.copytree(tmp_path / "run", tmp_path / "killed")
    identity = json.loads((cleared / "provenance.json").read_text())
    identity["identity"]["train"]["keep_checkpoints"] = False
    (cleared / "provenance.json").write_text(json.dumps(identity))
    assert run_training(stage(tiny_model, cleared)) == cleared / "model"
    assert not (cleared / "checkpoints").exists()
    assert done.exists()


def test_a_model_trained_on_has_seen_all_that_its_beginning_had(tmp_path: Path) -> None:
    """Also a checkpoint, whose file lies in the folder above it."""
    plan = compile_plan_from_config(
        TaskConfig(split="train", n=20), PersonasConfig(split="train", n=4), RolloutPlanConfig(mix=1, steps=2)
    )
    before = TrainedOn(frozenset({"an earlier question"}), frozenset({"an earlier persona"}))
    write_trained_on(tmp_path / "checkpoints", before)
    (tmp_path / "checkpoints" / "checkpoint-5").mkdir()
    job = TrainJob(TrainConfig(), plan, None, (), None)
    seen = build_trained_on(job, str(tmp_path / "checkpoints" / "checkpoint-5"))
    assert seen.question_hashes == {row.question_hash for row in plan.rows} | {"an earlier question"}
    assert seen.persona_ids == {row.persona_id for row in plan.rows} | {"an earlier persona"}
