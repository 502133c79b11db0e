"""verl's own code reads an export: its configuration, data set, sampler, loader, reward manager and agent loop. Needs verl."""

import asyncio
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from permix.interop.engine_export import PlanExport
from permix.interop.verl_export import VERL_VERSION, verl_settings
from permix.pipelines.engine_export import prepare_export
from permix.types import seed_from
from tests.engines.exports import export_training, exported_plan

verl = pytest.importorskip("verl", reason="verl is not installed: make test-engines builds an environment that has it")

DEV_EVAL = {"every": 2, "personas": 2, "questions": 3, "characters": 0, "metric": "mean"}

OUTSIDE_SCHEMA = ("mixed_precision", "reward_kwargs")
"""Keys that verl reads and its YAML does not list: fields of FSDPEngineConfig and of `get_custom_reward_fn`."""


def compose(out: Path, *overrides: str) -> Any:
    """The configuration of an export as its launch.sh starts verl: hydra's own command line prints it, resolved."""
    from omegaconf import OmegaConf

    done = subprocess.run(
        ["sh", str(out / "launch.sh"), *overrides, "--cfg", "job", "--resolve"],
        env=os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        cwd="/",
    )
    assert done.returncode == 0, done.stderr[-2000:]
    text = done.stdout
    return OmegaConf.create(text[text.index("actor_rollout_ref:") :])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp('a folder\'s "name" $HOME')


@pytest.fixture(scope="module")
def out(folder: Path, tiny_model: Path) -> Path:
    """An export whose folder has a name that a shell and hydra must quote."""
    return export_training(folder, tiny_model, dev_eval=DEV_EVAL)


@pytest.fixture(scope="module")
def config(out: Path) -> Any:
    return compose(out)


def load(config: Any, file: str) -> tuple[Any, list[dict[str, Any]]]:
    """verl's data set of a file, and the batches of its loader, as `PPOTrainer._init_dataloader` makes them."""
    from torchdata.stateful_dataloader import StatefulDataLoader
    from transformers import AutoTokenizer
    from verl.trainer.ppo.utils import create_rl_dataset, create_rl_sampler
    from verl.utils.dataset.rl_dataset import collate_fn

    tokenizer = AutoTokenizer.from_pretrained(config.actor_rollout_ref.model.path)
    data = create_rl_dataset(config.data[file], config.data, tokenizer, None)
    loader = StatefulDataLoader(
        dataset=data,
        batch_size=config.data.train_batch_size,
        num_workers=0,
        drop_last=True,
        collate_fn=collate_fn,
        sampler=create_rl_sampler(config.data, data),
    )
    return data, list(loader)


def test_this_is_the_release_that_the_export_is_written_against() -> None:
    assert verl.__version__ == VERL_VERSION


def test_the_launch_script_gives_verl_the_paths_of_its_own_folder(out: Path, config: Any, tiny_model: Path) -> None:
    assert config.data.train_files == f"{out}/train.parquet"
    assert config.data.val_files == f"{out}/val.parquet"
    assert config.actor_rollout_ref.rollout.agent.agent_loop_config_path == f"{out}/agent.yaml"
    assert config.trainer.rollout_data_dir == f"{out}/rollouts"
    assert config.actor_rollout_ref.model.path == str(tiny_model)


def test_arguments_of_the_script_override_settings(out: Path) -> None:
    assert compose(out, "trainer.save_freq=7", "trainer.nnodes=3").trainer.nnodes == 3


def test_every_key_is_one_of_verls_schema(folder: Path, tiny_model: Path, out: Path) -> None:
    from hydra import compose as compose_base
    from hydra import initialize_config_module
    from omegaconf import DictConfig, OmegaConf

    from permix.config import ExportConfig

    with initialize_config_module("verl.trainer.config", version_base=None):
        base = compose_base("ppo_trainer")
    _, export = prepare_export(ExportConfig(plan=folder / "training.json", format="verl"))
    everything = verl_settings(with_every_setting(export), has_tests=True)
    assert len(everything) > 70
    for path in everything:
        section, parts = base, path.split(".")
        if any(part in OUTSIDE_SCHEMA for part in parts):
            continue
        for part in parts:
            assert isinstance(section, DictConfig), path
            assert part in section.keys(), path  # noqa: SIM118, `in` leaves out keys without a default
            section = None if OmegaConf.is_missing(section, part) else section[part]


def with_every_setting(export: PlanExport) -> PlanExport:
    """The export with the settings that add keys of their own."""
    from dataclasses import replace

    train = export.config.train.model_copy(update={"precision": "float32", "loss": "dr_grpo", "beta": 0.1, "lora_rank": 8})
    train.model_fields_set.add("vllm_gpu_memory_utilization")
    return replace(export, config=export.config.model_copy(update={"train": train}))


def test_verl_accepts_the_configuration(config: Any) -> None:
    from verl.trainer.ppo.utils import need_critic, need_reference_policy
    from verl.utils.config import omega_conf_to_dataclass, validate_config

    assert not need_critic(config)
    validate_config(config, use_reference_policy=need_reference_policy(config), use_critic=False)
    actor = omega_conf_to_dataclass(config.actor_rollout_ref.actor)
    assert (actor.optim.lr, actor.optim.weight_decay, actor.clip_ratio_c) == (1e-5, 0.0, 1e6)
    rollout = omega_conf_to_dataclass(config.actor_rollout_ref.rollout)
    assert (rollout.n, rollout.temperature, rollout.prompt_length, rollout.response_length) == (2, 1.0, 200, 32)


def test_float32_and_kl_are_accepted_too(tmp_path: Path, tiny_model: Path) -> None:
    from verl.trainer.ppo.utils import need_reference_policy
    from verl.utils.config import omega_conf_to_dataclass, validate_config

    train = {"precision": "float32", "beta": 0.25, "loss": "dr_grpo", "lr_schedule": "cosine", "clip_high": 0.28}
    config = compose(export_training(tmp_path, tiny_model, train=train | {"importance_ratio_cap": 3.0}))
    assert need_reference_policy(config)
    validate_config(config, use_reference_policy=True, use_critic=False)
    actor = omega_conf_to_dataclass(config.actor_rollout_ref.actor)
    assert actor.fsdp_config.mixed_precision == {"param_dtype": "fp32", "reduce_dtype": "fp32", "buffer_dtype": "fp32"}
    assert (actor.kl_loss_coef, actor.clip_ratio_high, actor.loss_scale_factor) == (0.25, 0.28, 32)
    assert config.algorithm.rollout_correction.rollout_is_threshold == 3.0


def test_adapters_are_those_of_permix(config: Any) -> None:
    """Checking a rank would import vLLM, so only the model's part is built: rank and alpha, on every linear layer."""
    from omegaconf import OmegaConf
    from verl.utils.config import omega_conf_to_dataclass

    changed = OmegaConf.merge(config.actor_rollout_ref.model, {"lora_rank": 8, "lora_alpha": 16})
    model = omega_conf_to_dataclass(changed)
    assert (model.lora_rank, model.lora_alpha, model.target_modules) == (8, 16, "all-linear")


def test_step_k_of_verl_is_step_k_of_the_plan(out: Path, config: Any) -> None:
    plan = exported_plan(out)
    _, batches = load(config, "train_files")
    assert len(batches) == plan.steps == config.trainer.total_training_steps == 3
    for step, batch in enumerate(batches):
        rows = plan.rows_at(step)
        assert [list(one) for one in batch["raw_prompt"]] == [[dict(one) for one in row.messages] for row in rows]
        assert [one["question_id"] for one in batch["extra_info"]] == [row.question_id for row in rows]
        assert [one["persona_id"] for one in batch["extra_info"]] == [row.persona_id for row in rows]
        assert [(one["step"], one["group"]) for one in batch["extra_info"]] == [(step, group) for group in range(4)]
        assert [one["ground_truth"] for one in batch["reward_model"]] == [row.gold for row in rows]


def test_the_validation_has_a_source_for_each_kind_of_persona(config: Any) -> None:
    data, _ = load(config, "val_files")
    sources = [data[at]["data_source"] for at in range(len(data))]
    assert sorted(sources) == [
        *["permix/arithmetic/character"] * 3, *["permix/arithmetic/neutral"] * 3, *["permix/arithmetic/none"] * 3,
    ]  # fmt: skip


def score(config: Any, row: dict[str, Any], text: str, **added: Any) -> dict[str, Any]:
    """What verl's reward manager makes of a completion. `added`: what the agent loop put into its output's extra fields."""
    import numpy as np
    import torch
    from tensordict import TensorDict
    from transformers import AutoTokenizer
    from verl import DataProto
    from verl.trainer.ppo.reward import load_reward_manager

    tokenizer = AutoTokenizer.from_pretrained(config.actor_rollout_ref.model.path)
    prompt = tokenizer.apply_chat_template(row["raw_prompt"], add_generation_prompt=True, return_dict=False)
    answer = tokenizer(f"{text}<|im_end|>", add_special_tokens=False).input_ids
    batch = TensorDict(
        {
            "prompts": torch.tensor([prompt]),
            "responses": torch.tensor([answer]),
            "attention_mask": torch.ones(1, len(prompt) + len(answer), dtype=torch.long),
        },
        batch_size=1,
    )
    columns = {name: np.array([row[name]], dtype=object) for name in ("data_source", "reward_model")}
    columns["extra_info"] = np.array([dict(row["extra_info"])], dtype=object)
    columns["tool_extra_fields"] = np.array([{"permix_rollout": 0} | added], dtype=object)

    async def run() -> dict[str, Any]:
        return dict(await load_reward_manager(config, tokenizer).run_single(DataProto(batch=batch, non_tensor_batch=columns)))

    return asyncio.run(run())


def test_verls_reward_manager_gives_one_zero_and_no_score(config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from permix.interop import verl_reward
    from permix.types import Verdict

    data, _ = load(config, "train_files")
    row = data[0]
    gold = row["reward_model"]["ground_truth"]
    right = score(config, row, f"Aye! The answer is {gold}.")
    assert (right["reward_score"], right["reward_extra_info"]) == (1.0, {"score": 1.0})
    assert score(config, row, f"The answer is {int(gold) + 1}.")["reward_score"] == 0.0
    assert score(config, row, "Rather not.")["reward_score"] == 0.0
    cut_off = f"The answer is {gold}."
    assert score(config, row, cut_off, permix_completion=f"<think>\n{cut_off}")["reward_score"] == 0.0

    lost = Verdict(correct=None, error="out of memory")
    monkeypatch.setattr(verl_reward, "verify_completion", lambda *_: lost)
    # verl loads the module by name: the same one, in which the verifier now fails.
    with pytest.raises(verl_reward.MissingRewardError, match=r"permix/arithmetic/.*: the verifier failed.*out of memory"):
        score(config, row, f"{gold}")


class ScriptedServer:
    """In place of vLLM's client: keeps what it is asked and answers with the same tokens."""

    def __init__(self, answer: list[int]) -> None:
        self.answer = answer
        self.asked: list[dict[str, Any]] = []

    async def generate(self, request_id: str, *, prompt_ids: list[int], sampling_params: dict[str, Any], **_: Any) -> Any:
        from verl.workers.rollout.replica import TokenOutput

        self.asked.append({"prompt_ids": prompt_ids, **sampling_params})
        return TokenOutput(token_ids=self.answer, log_probs=[-0.5] * len(self.answer), stop_reason="completed", extra_fields={})


async def roll_out(config: Any, row: dict[str, Any], numbers: range) -> tuple[ScriptedServer, list[Any], Any]:
    """Run the agent loop of agent.yaml for these rollouts of a row, made as verl's worker makes it."""
    import hydra
    from omegaconf import OmegaConf
    from verl.experimental.agent_loop.agent_loop import DictConfigWrap, ToolListWrap
    from verl.utils.config import omega_conf_to_dataclass
    from verl.utils.dataset.rl_dataset import get_dataset_class

    model = omega_conf_to_dataclass(config.actor_rollout_ref.model)
    model.tokenizer.chat_template = model.custom_chat_template
    server = ScriptedServer(model.tokenizer("12<|im_end|>", add_special_tokens=False).input_ids)
    [entry] = OmegaConf.load(config.actor_rollout_ref.rollout.agent.agent_loop_config_path)
    assert entry.name == row["agent_name"] == config.actor_rollout_ref.rollout.agent.default_agent_loop
    outputs = []
    for number in numbers:
        loop = hydra.utils.instantiate(
            config=entry,
            trainer_config=DictConfigWrap(config=config),
            server_manager=server,
            tokenizer=model.tokenizer,
            processor=None,
            hf_model_type="llama",
            dataset_cls=get_dataset_class(config.data),
            data_config=DictConfigWrap(config.data),
            tools=ToolListWrap([]),
        )
        outputs.append(await loop.run({"temperature": 1.0}, session_id=number, **row))
    return server, outputs, model.tokenizer


def test_the_rollouts_of_a_group_share_the_prompt_and_have_permixs_seeds(out: Path, config: Any) -> None:
    data, _ = load(config, "train_files")
    row = exported_plan(out).rows[0]
    server, outputs, tokenizer = asyncio.run(roll_out(config, data[0], range(2)))
    assert [one["seed"] for one in server.asked] == [seed_from(row.seed, 0), seed_from(row.seed, 1)]
    expected = tokenizer.apply_chat_template([dict(one) for one in row.messages], add_generation_prompt=True, return_dict=False)
    assert [one["prompt_ids"] for one in server.asked] == [expected, expected]
    assert [one.extra_fields["permix_rollout"] for one in outputs] == [0, 1]
    assert [one.extra_fields["permix_completion"] for one in outputs] == ["12", "12"]


def test_thinking_that_the_prompt_opened_is_part_of_the_text_that_is_scored(config: Any) -> None:
    from omegaconf import OmegaConf

    template = str(config.actor_rollout_ref.model.custom_chat_template)
    opening = template + "{% if add_generation_prompt %}{{ '<think>\n' }}{% endif %}"
    opened = OmegaConf.merge(config, {"actor_rollout_ref": {"model": {"custom_chat_template": opening}}})
    data, _ = load(config, "train_files")
    _, (output,), _ = asyncio.run(roll_out(opened, data[0], range(1)))
    assert output.extra_fields["permix_completion"] == "<think>\n12"


def test_prompts_are_those_that_permix_writes(folder: Path, config: Any) -> None:
    from permix.config import ExportConfig
    from permix.inference.chat_template import encode_chat

    _, export = prepare_export(ExportConfig(plan=folder / "training.json", format="verl"))
    data, _ = load(config, "train_files")
    for at, row in enumerate(export.plan.rows):
        server, _, _ = asyncio.run(roll_out(config, data[at], range(1)))
        assert server.asked[0]["prompt_ids"] == encode_chat(export.tokenizer, row.messages)


def test_with_scope_rollout_each_rollout_has_its_own_persona_and_seed(tmp_path: Path, tiny_model: Path) -> None:
    out = export_training(tmp_path, tiny_model, plan={"scope": "rollout", "group_size": 4})
    config, plan = compose(out), exported_plan(out)
    data, batches = load(config, "train_files")
    assert (len(data), len(batches)) == (12, 3), "one row a group"
    rows = [row for row in plan.rows if (row.step, row.group) == (0, 0)]
    assert len({row.persona_id for row in rows}) > 1, "the plan must mix personas in this group"
    assert data[0]["data_source"] == "permix/arithmetic/mixed"
    server, _, tokenizer = asyncio.run(roll_out(config, data[0], range(4)))
    for row, asked in zip(rows, server.asked, strict=True):
        assert asked["seed"] == seed_from(row.seed, 0)
        text = tokenizer.decode(asked["prompt_ids"])
        assert all(message["content"] in text for message in row.messages)


def test_a_prompt_over_the_limit_is_never_cut(out: Path, config: Any) -> None:
    from omegaconf import OmegaConf

    data, _ = load(config, "train_files")
    shorter = OmegaConf.merge(config, {"actor_rollout_ref": {"rollout": {"prompt_length": 5}}})
    with pytest.raises(ValueError, match=r"data\.max_prompt_length = 5: a prompt has [0-9]+ tokens"):
        asyncio.run(roll_out(shorter, data[0], range(1)))


def test_a_model_name_that_yaml_omegaconf_and_a_shell_must_quote_arrives_whole(tmp_path: Path, tiny_model: Path) -> None:
    name = 'it\'s a "model": #1 $HOME $(id) \\ {x} %s ☃'
    shutil.copytree(tiny_model, tmp_path / name)
    config = compose(export_training(tmp_path, tmp_path / name))
    assert config.actor_rollout_ref.model.path == str(tmp_path / name)
