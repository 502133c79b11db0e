"""What cannot work together is refused before anything is loaded, with what would do; rollouts by vLLM are TRL's."""

import importlib.util
import json
import re
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from trl.trainer import grpo_trainer

from permix.config import (
    CharacterConfig,
    DevEvalConfig,
    OptimConfig,
    PersonasConfig,
    RolloutPlanConfig,
    TaskConfig,
    TrainableModelConfig,
    TrainConfig,
)
from permix.errors import ConfigError
from permix.inference.generation import generate_tokens
from permix.pipelines import train
from permix.pipelines.preflight import check_config
from permix.plan import Plan
from permix.prompts import build_messages
from permix.training.compatibility import (
    Launch,
    Sharding,
    check_answer_fits,
    check_launch,
    check_plan,
    check_vllm_logprobs_mode,
    detect_launch,
    detect_sharding,
)
from permix.training.trl_setup import grpo_arguments
from permix.types import Persona, Sampling
from tests.launches import FOLDER, environment
from tests.training.test_grpo import QUICK, plan_of, trainer_of

SAILOR = Persona(id="sailor", text="a sailor")
VLLM: dict[str, Any] = {"use_vllm": True}


def stage(character: dict[str, Any] | None = None, **settings: Any) -> TrainConfig:
    return TrainConfig(train=OptimConfig.model_validate(settings), character=CharacterConfig.model_validate(character or {}))


def probing() -> TrainConfig:
    return stage(**VLLM).model_copy(update={"dev_eval": DevEvalConfig(every=5)})


@pytest.fixture
def with_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if vllm could be imported."""
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True if name == "vllm" else found(name))


# The plan


def rows(plan: Plan, *sizes: tuple[int, int, int]) -> Plan:
    """The plan's first row over and over: (step, group, rollouts)."""
    changed = [plan.rows[0].model_copy(update={"step": s, "group": g, "rollouts": n}) for s, g, n in sizes]
    return Plan(tuple(changed), {})


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ([(0, 0, 1), (0, 1, 1)], r"a group has 1 rollout; its baseline needs 2 or more \(plan.group_size\)"),
        ([(0, 0, 4), (0, 1, 3)], "group 1 of step 0 has 3 rollouts, the first group has 4"),
        ([(0, 0, 4), (0, 1, 4), (1, 0, 4)], "step 1 has 1 groups, step 0 has 2"),
    ],
)
def test_a_plan_of_uneven_groups_is_refused(sizes: list[tuple[int, int, int]], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        check_plan(rows(plan_of(), *sizes), OptimConfig())


def test_a_persona_in_the_users_message_cannot_be_left_out_of_it() -> None:
    said = {
        bare: build_messages(SAILOR, "What is 1?", template="in_question", empty_system_prompt=bare) for bare in (False, True)
    }
    for messages in said.values():
        row = plan_of().rows[0].model_copy(update={"persona_id": "sailor", "messages": messages})
        plan = Plan((row.model_copy(update={"rollouts": 4}),), {})
        check_plan(plan, OptimConfig())
        refused = r'kl_reference_prompt = "no-persona": persona sailor of step 0 is in the user\'s message'
        with pytest.raises(ConfigError, match=refused):
            check_plan(plan, OptimConfig(kl_reference_prompt="no-persona"))


@pytest.mark.parametrize("scope", ["group", "rollout"])
def test_plans_made_here_fit(scope: str) -> None:
    check_plan(plan_of(scope=scope, steps=3), OptimConfig())


def test_spare_groups_cannot_be_divided_by_the_deviation_of_their_step() -> None:
    spared = plan_of(dynamic_sampling_groups=1)
    refused = 'train.scale_rewards = "batch": the spare groups of plan.dynamic_sampling_groups .*; give "group" or "none"$'
    with pytest.raises(ConfigError, match=refused):
        check_plan(spared, OptimConfig(scale_rewards="batch"))
    check_plan(plan_of(), OptimConfig(scale_rewards="batch"))
    check_plan(spared, OptimConfig(scale_rewards="group"))
    check_plan(spared, OptimConfig(scale_rewards="none"))


@pytest.mark.parametrize(
    ("prompt_tokens", "advice"),
    [
        (6, None),
        (7, "give train.max_new_tokens = 3 or less, or shorter prompts"),
        (9, "give train.max_new_tokens = 1 or less, or shorter prompts"),
        (10, "it leaves no token for an answer; give shorter personas or questions, or a model that reads more"),
        (11, "it leaves no token for an answer; give shorter personas or questions, or a model that reads more"),
    ],
)
def test_an_answer_fits_beside_its_prompt(prompt_tokens: int, advice: str | None) -> None:
    """The model reads 10 tokens and an answer has 4. No setting of 0 tokens is ever advised: it would be refused."""
    if advice is None:
        check_answer_fits("train.max_new_tokens", 4, "question q", prompt_tokens, 10)
        return
    with pytest.raises(ConfigError) as refused:
        check_answer_fits("train.max_new_tokens", 4, "question q", prompt_tokens, 10)
    expected = f"train.max_new_tokens = 4: question q has {prompt_tokens} tokens and the model reads 10; {advice}"
    assert str(refused.value) == expected


# The processes


@pytest.mark.parametrize("count", [1, 2, 3, 6])
def test_processes_that_share_the_groups_evenly_may_train(count: int) -> None:
    check_launch(plan_of(questions_per_step=6), stage(), Launch(world_size=count))


def test_processes_that_do_not_are_refused_with_those_that_would() -> None:
    with pytest.raises(ConfigError, match=r"step = 6: .* 4 processes cannot share 6 evenly; start 1, 2, 3 or 6, or .* of 4"):
        check_launch(plan_of(questions_per_step=6), stage(), Launch(world_size=4))


def test_a_process_alone_among_several_gpus_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    with pytest.raises(ConfigError, match=r"4 GPUs are visible to one process.*torchrun --nproc_per_node 4 -m permix"):
        check_launch(plan_of(), stage(), detect_launch())


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, "none"),
        ({"ACCELERATE_USE_FSDP": "true"}, "fsdp1"),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}, "fsdp2"),
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "zero2"),
        ({"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}, "zero3"),
        ({"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "1"}, "zero1"),
    ],
)
def test_the_environment_says_who_holds_the_weights(
    settings: dict[str, str], expected: Sharding, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    assert detect_sharding() == expected


def test_a_deepspeed_file_says_it_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ds.json").write_text(json.dumps({"zero_optimization": {"stage": 3}}))
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", str(tmp_path / "ds.json"))
    assert detect_sharding() == "zero3"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{}", "has no zero_optimization.stage; give 0, 1, 2 or 3"),
        ('{"zero_optimization": {}}', "has no zero_optimization.stage"),
        ('{"zero_optimization": true}', "has no zero_optimization.stage"),
        ("[1]", "has no zero_optimization.stage"),
        ("zero_stage: 3", "has no zero_optimization.stage"),
        (None, "cannot be read: No such file or directory"),
    ],
)
def test_a_deepspeed_file_without_its_stage_is_refused(
    text: str | None, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "ds.json"
    if text is not None:
        path.write_text(text)
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", str(path))
    with pytest.raises(ConfigError, match=f"^{re.escape(str(path))}: the DeepSpeed configuration {said}"):
        detect_sharding()


@pytest.mark.parametrize(("name", "expected"), [("ddp", "none"), ("fsdp2", "fsdp2"), ("zero3", "zero3")])
def test_the_shipped_launches_are_what_accelerate_makes_of_them(
    name: str, expected: Sharding, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = environment(name)
    for key, value in found.items():
        monkeypatch.setenv(key, value)
    assert detect_sharding() == expected
    assert found["ACCELERATE_MIXED_PRECISION"] == "no", "train.precision says it"
    if name == "fsdp2":
        assert found["FSDP_CPU_RAM_EFFICIENT_LOADING"] == "true"
        assert found["FSDP_ACTIVATION_CHECKPOINTING"] == "false", "train.gradient_checkpointing says it"
    if name == "zero3":
        assert found["ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL"] == "true", "else no model could be saved"


def test_every_launch_has_a_header_and_is_tested() -> None:
    assert sorted(path.stem for path in FOLDER.glob("*")) == ["ddp", "fsdp2", "zero3"]
    for path in FOLDER.glob("*.yaml"):
        lines = path.read_text(encoding="utf-8").splitlines()
        assert [line.split(":")[0] for line in lines[:4]] == ["# Purpose", "# Hardware", "# Time", "# Use"]
        assert f"accelerate launch --config_file configs/launch/{path.name} -m permix train" in lines[3]


@pytest.mark.parametrize(
    ("started", "asked", "said"),
    [
        (Launch(sharding="fsdp1"), stage(), "fsdp_version: 1 is not supported: launch with fsdp_version: 2"),
        (Launch(sharding="zero3"), stage(), "use_vllm = false: under DeepSpeed ZeRO-3 .* none has a network that could generate"),
        (Launch(sharding="zero3"), stage(lora_rank=4, **VLLM), "lora_rank = 4: under ZeRO-3 adapters cannot be merged"),
        (Launch(sharding="zero3"), stage({"replay": 0.5}, **VLLM), "character.replay = 0.5: under ZeRO-3 the base model cannot"),
        (
            Launch(sharding="fsdp2"),
            probing(),
            "dev_eval.every = 5: .* no process holds a network that could answer; give dev_eval.every = 0",
        ),
        (Launch(sharding="zero3"), probing(), "dev_eval.every = 5: a dev evaluation asks the network in training"),
    ],
    ids=["fsdp1", "zero3", "zero3-lora", "zero3-replay", "fsdp2-vllm-probe", "zero3-probe"],
)
def test_what_a_launch_cannot_do_is_refused(started: Launch, asked: TrainConfig, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        check_launch(plan_of(), asked, started)


@pytest.mark.parametrize(
    ("character", "settings", "said"),
    [
        (
            {},
            {"beta": 0.1},
            "train.beta = 0.1: needs a reference model, whose weights are wrong under FSDP2 with transformers 5.22.0",
        ),
        ({"replay": 0.5, "replay_policy": "on"}, {}, 'character.replay_policy = "on": needs a reference model'),
    ],
    ids=["kl", "on-policy replay"],
)
def test_an_old_transformers_cannot_shard_a_reference_model(
    character: dict[str, Any], settings: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = {"transformers": "5.22.0"}
    monkeypatch.setattr("importlib.metadata.version", lambda name: versions[name])
    sharded = Launch(world_size=2, sharding="fsdp2")
    with pytest.raises(ConfigError, match=re.escape(said)):
        check_launch(plan_of(questions_per_step=2), stage(character, **settings), sharded)
    # Whole weights, adapters, no reference model at all, or a newer release: nothing is refused.
    check_launch(plan_of(questions_per_step=2), stage(character, **settings), Launch(world_size=2))
    check_launch(plan_of(questions_per_step=2), stage(character, **settings, lora_rank=2), sharded)
    check_launch(plan_of(questions_per_step=2), stage(), sharded)
    versions["transformers"] = "5.23.0.dev1"
    check_launch(plan_of(questions_per_step=2), stage(character, **settings), sharded)


def test_refusals_come_before_anything_is_loaded_or_written(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("something was loaded")

    for name in ("load_tokenizer", "folder_fingerprint", "_train_and_save"):
        monkeypatch.setattr(train, name, never)
    for key, value in environment("zero3").items():
        monkeypatch.setenv(key, value)
    config = TrainConfig(
        out=tmp_path / "run", threads=1, model=TrainableModelConfig(name=str(tiny_model)),
        task=TaskConfig(split="train", n=20), personas=PersonasConfig(split="train", n=4), plan=RolloutPlanConfig(steps=1),
    )  # fmt: skip
    with pytest.raises(ConfigError, match="under DeepSpeed ZeRO-3"):
        train.run_training(config)
    assert not (tmp_path / "run").exists()


# Rollouts by vLLM


def test_vllm_is_off_and_then_none_of_its_arguments_are_given(tmp_path: Path) -> None:
    arguments = grpo_arguments(OptimConfig(), plan_of(), tmp_path)
    assert not arguments.use_vllm


def test_settings_reach_trl_under_its_names(tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "vllm_mode": "server", "vllm_server_base_url": "http://10.0.0.7:9000", "vllm_server_host": "10.0.0.8",
        "vllm_server_port": 9001, "vllm_gpu_memory_utilization": 0.45, "vllm_tensor_parallel_size": 2,
    }  # fmt: skip
    asked = stage(**VLLM, **settings, max_prompt_tokens=300, max_new_tokens=100)
    arguments = grpo_arguments(asked.train, plan_of(), tmp_path)
    assert {name: getattr(arguments, name) for name in settings} == settings
    assert arguments.use_vllm
    assert arguments.vllm_max_model_length == 400
    assert not arguments.vllm_importance_sampling_correction, "the correction is train.importance_ratio_cap's"


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vllm is here")
def test_without_vllm_it_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"use_vllm = true: vllm is not installed; pip install 'trl\[vllm\]'"):
        check_launch(plan_of(), stage(**VLLM), Launch())


@pytest.mark.usefixtures("with_vllm")
def test_vllm_spreads_over_a_number_of_processes_that_divides_theirs() -> None:
    plan = plan_of(questions_per_step=6)
    check_launch(plan, stage(**VLLM, vllm_tensor_parallel_size=3), Launch(world_size=6))
    check_launch(plan, stage(**VLLM, vllm_tensor_parallel_size=4, vllm_mode="server"), Launch(world_size=6))
    with pytest.raises(ConfigError, match=r"vllm_tensor_parallel_size = 4: .* processes, 6; give 1, 2, 3 or 6"):
        check_launch(plan, stage(**VLLM, vllm_tensor_parallel_size=4), Launch(world_size=6))


def test_personas_that_differ_within_a_group_are_not_given_to_a_server(tmp_path: Path) -> None:
    mixed = plan_of(scope="rollout")
    with pytest.raises(ConfigError, match="server mode generates for the first prompt of each group alone"):
        check_plan(mixed, stage(**VLLM, vllm_mode="server").train)
    check_plan(mixed, stage(**VLLM, vllm_mode="colocate").train)
    check_plan(mixed, stage(vllm_mode="server").train)
    check_plan(plan_of(scope="group"), stage(**VLLM, vllm_mode="server").train)

    config = tmp_path / "train.toml"
    config.write_text('stage = "train"\nplan.scope = "rollout"\ntrain = { use_vllm = true, vllm_mode = "server" }\n')
    with pytest.raises(ConfigError, match=r'give plan\.scope = "group"'):
        check_config(config)


def test_a_server_must_say_log_probabilities_at_the_sampling_temperature() -> None:
    check_vllm_logprobs_mode({"model_config": {"logprobs_mode": "processed_logprobs"}})
    with pytest.raises(ConfigError, match="--logprobs-mode raw_logprobs; start it with --logprobs-mode processed_logprobs"):
        check_vllm_logprobs_mode({"model_config": {"logprobs_mode": "raw_logprobs"}})


def test_an_address_holds_no_credentials_and_is_not_what_a_run_is() -> None:
    with pytest.raises(ValueError, match="vllm_server_base_url holds credentials") as refused:
        OptimConfig(vllm_server_base_url="http://me:secret@host:8000")
    assert "secret" not in str(refused.value)


class FakeVLLM:
    """TRL's engine, but for the engine: it answers as this program's own decoding does."""

    made: "FakeVLLM"
    seeds: Any

    def __init__(self, **options: Any) -> None:
        self.options, self.synced = options, 0
        FakeVLLM.made = self

    def sync_weights(self) -> None:
        self.synced += 1

    def generate(self, prompts: list[list[int]], images: Any, num_generations: int, profiler: Any) -> tuple[Any, ...]:
        sampling = Sampling(temperature=1, max_new_tokens=self.options["max_completion_length"])
        drawn = generate_tokens(self.options["model"].eval(), self.options["processing_class"], prompts, self.seeds(), sampling)
        self.options["model"].train()
        return prompts, [one.token_ids for one in drawn], [[[logp] for logp in one.logprobs] for one in drawn], None


@pytest.fixture
def fake_engine(monkeypatch: pytest.MonkeyPatch) -> type[FakeVLLM]:
    monkeypatch.setattr(grpo_trainer, "VLLMGeneration", FakeVLLM)
    monkeypatch.setattr(grpo_trainer, "profiling_context", lambda *_: nullcontext())
    return FakeVLLM


@pytest.mark.parametrize("scope", ["group", "rollout"])
def test_rollouts_of_vllm_train_as_our_own_do(tiny_model: Path, tmp_path: Path, fake_engine: type[FakeVLLM], scope: str) -> None:
    plan = plan_of(scope=scope, group_size=16)
    plain, plain_notes = trainer_of(tiny_model, tmp_path / "plain", plan)
    plain.train()
    config = QUICK.model_copy(update=VLLM | {"vllm_gpu_memory_utilization": 0.4})
    trainer, notes = trainer_of(tiny_model, tmp_path / "vllm", plan, config)
    fake_engine.seeds = lambda _: trainer._rollout_seeds
    trainer.train()
    assert notes.kept == plain_notes.kept
    assert [line["loss"] for line in notes.figures] == [line["loss"] for line in plain_notes.figures]
    assert notes.figures[0]["rollout_logprob_gap"] < 1e-4
    for ours, theirs in zip(trainer.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    engine = fake_engine.made
    assert engine.synced == 2, "once a generation"
    asked = {name: engine.options[name] for name in ("mode", "gpu_memory_utilization", "max_model_length", "max_num_seqs")}
    assert asked == {"mode": "colocate", "gpu_memory_utilization": 0.4, "max_model_length": 1024 + 8, "max_num_seqs": 32}
