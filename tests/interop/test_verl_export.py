"""`permix export PLAN --format verl`: files of a plan that can be checked by hand, refusals, and the reward function."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from permix import cli
from permix.config import ExportConfig, TrainConfig, build_config
from permix.errors import ConfigError, DataError
from permix.interop import verl_export, verl_reward
from permix.interop.engine_export import (
    EXPORTED_SECTIONS,
    PlanExport,
    check_engine_settings,
    export_identity,
    exported_settings,
)
from permix.interop.verl_export import VERL, data_source, verl_settings
from permix.interop.verl_reward import MissingRewardError, compute_score
from permix.pipelines.engine_export import ENGINES, export_plan, prepare_export
from permix.plan import Plan, compile_plan_from_config, read_plan, write_plan
from permix.storage.files import read_json
from permix.tasks import code
from permix.types import PlanRow, Verdict
from tests.engines.exports import export_training, exported_plan, training_values, write_training
from tests.sandboxed import needs_sandbox

DEV_EVAL = {"every": 2, "personas": 2, "questions": 3, "characters": 0, "metric": "mean"}


def rows_of(path: Path) -> list[dict[str, Any]]:
    return list(pq.read_table(path).to_pylist())


def config_of(folder: Path, model: str | Path, /, *, options: dict[str, Any] | None = None, **sections: Any) -> ExportConfig:
    values = {"plan": write_training(folder, model, **sections), "format": "verl", "out": folder / "export", "n_gpus_per_node": 1}
    return ExportConfig.model_validate(values | (options or {}))


# Files


def test_the_files_of_an_export(tmp_path: Path, tiny_model: Path) -> None:
    out = export_training(tmp_path, tiny_model, dev_eval=DEV_EVAL)
    assert sorted(one.name for one in out.iterdir()) == [
        "agent.yaml", "config.yaml", "launch.sh", "permix.json", "plan.parquet", "train.parquet", "val.parquet",
    ]  # fmt: skip
    about, plan = read_json(out / "permix.json"), exported_plan(out)
    assert (about["format"], about["plan"], about["written_against"]) == ("verl", plan.hash, {"verl": "0.9.1"})
    assert (about["steps"], about["questions_per_step"], about["group_size"]) == (3, 4, 2)
    assert (about["model"], about["method"]) == (str(tiny_model), "permix")
    assert about["settings"]["train.max_new_tokens"] == 32
    assert (out / "agent.yaml").read_text() == "- name: permix\n  _target_: permix.interop.verl_agent.PermixAgentLoop\n"


def test_a_row_is_a_group_of_the_plan_in_its_order(tmp_path: Path, tiny_model: Path) -> None:
    out = export_training(tmp_path, tiny_model)
    plan, rows = exported_plan(out), rows_of(out / "train.parquet")
    assert len(rows) == len(plan.rows) == 12
    for index, (row, group) in enumerate(zip(rows, plan.rows, strict=True)):
        messages = [dict(one) for one in group.messages]
        tag = {None: "none", "clerk": "neutral", "sailor": "character"}[group.persona_id]
        assert row == {
            "data_source": f"permix/arithmetic/{tag}",
            "prompt": messages,
            "ability": "arithmetic",
            "agent_name": "permix",
            "reward_model": {"style": "rule", "ground_truth": group.gold},
            "env_class": "permix",
            "reward_spec": {"method": "rule", "ground_truth": group.gold},
            "extra_info": {
                "index": index, "split": "train", "plan": plan.hash, "step": index // 4, "group": index % 4,
                "task": "arithmetic", "question_id": group.question_id, "question_hash": group.question_hash,
                "persona_id": group.persona_id, "persona_tags": list(group.persona_tags),
                "rollouts": json.dumps(
                    [
                        {
                            "persona_id": group.persona_id, "persona_tags": list(group.persona_tags), "seed": group.seed,
                            "messages": messages,
                        }
                    ]
                ),
            },
        }  # fmt: skip


def test_with_scope_rollout_a_row_holds_the_persona_of_every_rollout(tmp_path: Path, tiny_model: Path) -> None:
    out = export_training(tmp_path, tiny_model, plan={"scope": "rollout", "group_size": 4})
    plan, rows = exported_plan(out), rows_of(out / "train.parquet")
    assert (len(plan.rows), len(rows)) == (48, 12)
    for index, row in enumerate(rows):
        own = plan.rows[4 * index : 4 * index + 4]
        assert json.loads(row["extra_info"]["rollouts"]) == [
            {
                "persona_id": one.persona_id,
                "persona_tags": list(one.persona_tags),
                "seed": one.seed,
                "messages": [dict(message) for message in one.messages],
            }
            for one in own
        ]
        personas = {one.persona_id for one in own}
        assert row["extra_info"]["persona_id"] == (personas.pop() if len(personas) == 1 else None)
    assert {row["data_source"] for row in rows} >= {"permix/arithmetic/mixed"}


def test_the_dev_evaluation_is_the_validation(tmp_path: Path, tiny_model: Path) -> None:
    out = export_training(tmp_path, tiny_model, dev_eval=DEV_EVAL)
    rows = rows_of(out / "val.parquet")
    by_persona: dict[str | None, set[str]] = {}
    for row in rows:
        by_persona.setdefault(row["extra_info"]["persona_id"], set()).add(row["extra_info"]["question_id"])
        [rollout] = json.loads(row["extra_info"]["rollouts"])
        assert rollout["messages"] == row["prompt"]
        assert row["extra_info"]["split"] == "dev"
    assert set(by_persona) == {None, "poet", "nurse"}
    assert len({frozenset(questions) for questions in by_persona.values()}) == 1
    assert all(len(questions) == 3 for questions in by_persona.values())
    trained = {row.question_id for row in exported_plan(out).rows}
    assert not trained & by_persona[None]
    text = (out / "config.yaml").read_text()
    assert '  val_files: "${permix.folder}/val.parquet"\n' in text
    assert "  test_freq: 2\n  val_before_train: true\n" in text


def test_without_dev_evaluations_nothing_is_validated(tmp_path: Path, tiny_model: Path) -> None:
    out = export_training(tmp_path, tiny_model)
    assert not (out / "val.parquet").exists()
    text = (out / "config.yaml").read_text()
    assert "  test_freq: -1\n  val_before_train: false\n" in text
    assert '  val_files: "${permix.folder}/train.parquet"\n' in text, "verl reads a file all the same"


def row(**fields: Any) -> PlanRow:
    values = {
        "step": 0, "group": 0, "rollouts": 1, "task": "gsm8k", "question_id": "q", "question_hash": "h", "persona_id": "p",
        "seed": 1, "messages": ({"role": "user", "content": "?"},), "gold": "1",
    }  # fmt: skip
    return PlanRow.model_validate(values | fields)


@pytest.mark.parametrize(
    ("rows", "source"),
    [
        ((row(persona_tags=("expert", "x")),), "permix/gsm8k/expert"),
        ((row(persona_id=None),), "permix/gsm8k/none"),
        ((row(),), "permix/gsm8k/untagged"),
        ((row(persona_tags=("a b/c",)),), "permix/gsm8k/a-b-c"),
        ((row(persona_tags=("expert",)), row(persona_tags=("expert", "y"))), "permix/gsm8k/expert"),
        ((row(persona_tags=("expert",)), row(persona_id=None)), "permix/gsm8k/mixed"),
    ],
)
def test_the_source_of_a_row_names_task_and_kind(rows: tuple[PlanRow, ...], source: str) -> None:
    assert data_source(rows) == source


def test_the_script_is_valid_and_finds_its_own_folder(tmp_path: Path, tiny_model: Path) -> None:
    folder = tmp_path / 'it\'s "here" $HOME \\ now'
    folder.mkdir()
    out = export_training(folder, "org/model", options={"n_gpus_per_node": 8})
    script = out / "launch.sh"
    assert os.access(script, os.X_OK)
    assert subprocess.run(["sh", "-n", str(script)]).returncode == 0
    (tmp_path / "bin").mkdir()
    fake = tmp_path / "bin" / "python3"
    fake.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    fake.chmod(0o755)
    path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [str(script), "trainer.save_freq=7"], cwd="/", env={"PATH": path}, capture_output=True, text=True, check=True
    )
    quoted = str(out).replace("'", "\\'")
    assert done.stdout.splitlines() == [
        "-m", "verl.trainer.main_ppo", "--config-dir", str(out), "--config-name", "config",
        f"permix.folder='{quoted}'", "trainer.save_freq=7",
    ]  # fmt: skip


def test_no_file_names_a_path_of_this_machine(tmp_path: Path) -> None:
    out = export_training(tmp_path, "org/model", dev_eval=DEV_EVAL)
    for name in ("config.yaml", "launch.sh", "agent.yaml", "permix.json"):
        text = (out / name).read_text()
        assert str(tmp_path) not in text
        assert os.path.expanduser("~") not in text


def test_the_same_export_again_writes_the_same_files_and_keeps_others(tmp_path: Path, tiny_model: Path) -> None:
    out = export_training(tmp_path, tiny_model)
    before = {one.name: one.read_bytes() for one in out.iterdir()}
    (out / "rollouts").mkdir()
    (out / "rollouts" / "1.jsonl").write_text("{}")
    (out / "launch.sh").unlink()
    export_training(tmp_path, tiny_model)
    assert {one.name: one.read_bytes() for one in out.iterdir() if one.is_file()} == before
    assert (out / "rollouts" / "1.jsonl").read_text() == "{}"
    assert os.access(out / "launch.sh", os.X_OK)


def test_an_interrupted_export_leaves_no_folder(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from permix.interop import engine_export

    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(engine_export, "write_json", fail)
        with pytest.raises(KeyboardInterrupt):
            export_training(tmp_path, tiny_model)
    assert not (tmp_path / "export").exists()
    assert (export_training(tmp_path, tiny_model) / "permix.json").exists()
    assert not list(tmp_path.glob(".*")), "what was left of the first start is gone"


# Settings


def test_every_setting_of_a_training_has_a_rule_in_every_engine() -> None:
    names = {f"{section}.{name}" for section, cls in EXPORTED_SECTIONS.items() for name in cls.model_fields}
    for engine in ENGINES.values():
        assert set(engine.settings) == names, engine.name
        for name, rule in engine.settings.items():
            assert rule.target or rule.note or rule.reason, f"{engine.name}: {name}"
            assert (rule.refuses is None) == (rule.reason == ""), f"{engine.name}: {name}"


def test_the_document_names_every_setting_that_is_mapped_dropped_or_refused() -> None:
    text = (Path(__file__).parents[2] / "docs" / "engines.md").read_text(encoding="utf-8")
    for name, rule in VERL.settings.items():
        if rule.target or rule.reason or rule.is_reported:
            assert f"`{name}`" in text, name


def test_every_section_of_a_training_is_exported_or_says_what_to_ask_and_where_to_write() -> None:
    elsewhere = {"stage", "out", "label", "threads", "method", "backend", "teacher", "plan_file", "task", "personas"}
    assert set(TrainConfig.model_fields) == set(EXPORTED_SECTIONS) | elsewhere


def test_the_default_settings_are_exported_but_for_the_scale_that_an_engine_lacks() -> None:
    settings = exported_settings(TrainConfig())
    check_engine_settings(ENGINES["verl"], settings)
    with pytest.raises(ConfigError, match=r"^train\.scale_rewards = 'group': [^;]*; give \"none\"$"):
        check_engine_settings(ENGINES["verifiers"], settings)
    for engine in ENGINES.values():
        check_engine_settings(engine, settings | {"train.scale_rewards": "none"})


@pytest.mark.parametrize(
    ("section", "values", "words"),
    [
        ("plan", {"dynamic_sampling_groups": 1}, "plan.dynamic_sampling_groups = 1: verl replaces groups of equal rewards"),
        ("plan", {"curriculum_strength": 0.5}, "plan.curriculum_strength = 0.5: a curriculum chooses personas by the rewards"),
        ("train", {"lr_schedule": "linear"}, "train.lr_schedule = 'linear': verl has the schedules"),
        ("train", {"scale_rewards": "batch"}, "train.scale_rewards = 'batch': verl divides by the standard deviation"),
        (
            "train",
            {"beta": 0.1, "kl_reference_prompt": "no-persona"},
            "train.kl_reference_prompt = 'no-persona': verl's reference",
        ),
        ("train", {"vllm_mode": "server"}, "train.vllm_mode = 'server': verl starts its own vLLM servers"),
        ("train", {"vllm_server_base_url": "http://h:1"}, "train.vllm_server_base_url = 'http://h:1': verl starts its own"),
        ("train", {"vllm_server_host": "h"}, "train.vllm_server_host = 'h': verl starts its own"),
        ("train", {"vllm_server_port": 1}, "train.vllm_server_port = 1: verl starts its own"),
        ("character", {"replay": 0.5}, "character.replay = 0.5: verl's GRPO has no term on other answers"),
        ("character", {"expressivity": 0.5}, "character.expressivity = 0.5: the bonus needs a classifier"),
        ("dev_eval", DEV_EVAL | {"max_new_tokens": 9}, "dev_eval.max_new_tokens = 9: verl's validation has the limit"),
        ("dev_eval", DEV_EVAL | {"select": "best"}, "dev_eval.select = 'best': verl keeps the weights of the last step"),
        ("dev_eval", DEV_EVAL | {"patience": 2}, "dev_eval.patience = 2: verl trains all steps"),
    ],
)
def test_what_verl_cannot_do_is_refused_with_its_reason(tmp_path: Path, section: str, values: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)):
        export_training(tmp_path, "org/model", **{section: values})
    assert not (tmp_path / "export").exists()


def test_all_refused_settings_are_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        export_training(tmp_path, "org/model", character={"replay": 0.5}, train={"lr_schedule": "linear"})
    assert "train.lr_schedule" in str(caught.value)
    assert "character.replay" in str(caught.value)


@pytest.mark.parametrize("method", ["sft", "sft-personas", "seqkd"])
def test_supervised_methods_are_refused(tmp_path: Path, method: str) -> None:
    with pytest.raises(ConfigError, match=f'method = "{method}": verl gets prompts and rewards, and a supervised method learns'):
        export_training(tmp_path, "org/model", method=method, plan={"mix": None})


def exported(tmp_path: Path, **sections: Any) -> PlanExport:
    return prepare_export(config_of(tmp_path, "org/model", **sections))[1]


@pytest.mark.parametrize(
    ("train", "path", "value"),
    [
        ({"lr": 2e-6}, "actor_rollout_ref.actor.optim.lr", 2e-6),
        ({"lr_schedule": "cosine"}, "actor_rollout_ref.actor.optim.lr_scheduler_type", "cosine"),
        ({"warmup_steps": 5}, "actor_rollout_ref.actor.optim.lr_warmup_steps", 5),
        ({"warmup_steps": 5, "updates_per_rollout": 2}, "actor_rollout_ref.actor.optim.lr_warmup_steps", 3),
        ({"weight_decay": 0.1}, "actor_rollout_ref.actor.optim.weight_decay", 0.1),
        ({"max_grad_norm": 0.5}, "actor_rollout_ref.actor.optim.clip_grad", 0.5),
        ({"beta": 0.04}, "actor_rollout_ref.actor.use_kl_loss", True),
        ({"beta": 0.04}, "actor_rollout_ref.actor.kl_loss_coef", 0.04),
        ({}, "actor_rollout_ref.actor.use_kl_loss", False),
        ({"loss": "grpo"}, "actor_rollout_ref.actor.loss_agg_mode", "seq-mean-token-mean"),
        ({"loss": "dapo"}, "actor_rollout_ref.actor.loss_agg_mode", "token-mean"),
        ({"loss": "bnpo"}, "actor_rollout_ref.actor.loss_agg_mode", "token-mean"),
        ({"loss": "dr_grpo"}, "actor_rollout_ref.actor.loss_agg_mode", "seq-mean-token-sum-norm"),
        ({"loss": "dr_grpo"}, "actor_rollout_ref.actor.loss_scale_factor", 32),
        ({"loss": "grpo"}, "actor_rollout_ref.actor.loss_scale_factor", None),
        ({"scale_rewards": "none"}, "algorithm.norm_adv_by_std_in_grpo", False),
        ({"scale_rewards": "group"}, "algorithm.norm_adv_by_std_in_grpo", True),
        ({"clip_low": 0.1}, "actor_rollout_ref.actor.clip_ratio_high", 0.1),
        ({"clip_low": 0.1}, "actor_rollout_ref.actor.clip_ratio_low", 0.1),
        ({"clip_high": 0.28}, "actor_rollout_ref.actor.clip_ratio_high", 0.28),
        ({"updates_per_rollout": 2}, "actor_rollout_ref.actor.ppo_epochs", 2),
        ({"temperature": 0.7}, "actor_rollout_ref.rollout.temperature", 0.7),
        ({"top_p": 0.9}, "actor_rollout_ref.rollout.top_p", 0.9),
        ({"max_prompt_tokens": 77}, "data.max_prompt_length", 77),
        ({"microbatch_tokens": 8192}, "actor_rollout_ref.actor.ppo_max_token_len_per_gpu", 8192),
        ({"microbatch_tokens": 8}, "actor_rollout_ref.actor.ppo_max_token_len_per_gpu", 232),
        ({"importance_ratio_cap": 3.0}, "algorithm.rollout_correction.rollout_is_threshold", 3.0),
        ({"importance_ratio_cap": 3.0}, "algorithm.rollout_correction.rollout_is", "token"),
        ({"importance_ratio_cap": None}, "algorithm.rollout_correction.rollout_is", None),
        ({"lora_rank": 16}, "actor_rollout_ref.model.lora_rank", 16),
        ({"lora_alpha": 64}, "actor_rollout_ref.model.lora_alpha", 64),
        ({"precision": "float32"}, "actor_rollout_ref.rollout.dtype", "float32"),
        ({"gradient_checkpointing": True}, "actor_rollout_ref.model.enable_gradient_checkpointing", True),
        ({"save_every": 4}, "trainer.save_freq", 4),
        ({"save_every": 5, "updates_per_rollout": 2}, "trainer.save_freq", 3),
        ({"seed": 5}, "data.seed", 5),
        ({"seed": 5}, "actor_rollout_ref.actor.fsdp_config.seed", 5),
        ({"report_to": ["tensorboard", "wandb"]}, "trainer.logger", ["console", "tensorboard", "wandb"]),
        ({"vllm_gpu_memory_utilization": 0.3}, "actor_rollout_ref.rollout.gpu_memory_utilization", 0.3),
        ({"vllm_tensor_parallel_size": 1}, "actor_rollout_ref.rollout.tensor_model_parallel_size", 1),
    ],
)
def test_settings_under_verls_names(tmp_path: Path, train: dict[str, Any], path: str, value: Any) -> None:
    settings = {"max_new_tokens": 32, "max_prompt_tokens": 200} | train
    config = build_config(TrainConfig, {"train": settings}, source="test")
    plan = Plan((row(rollouts=2),), {})
    found = verl_settings(PlanExport(plan, config, "org/model"))
    assert found[path] == value
    assert type(found[path]) is type(value)


def test_memory_of_vllm_is_verls_own_unless_it_is_given() -> None:
    found = verl_settings(PlanExport(Plan((row(rollouts=2),), {}), TrainConfig(), "m"))
    assert "actor_rollout_ref.rollout.gpu_memory_utilization" not in found


def test_steps_groups_and_machines(tmp_path: Path) -> None:
    export = exported(tmp_path, options={"nnodes": 2, "n_gpus_per_node": 4, "model": "other/name"})
    found = verl_settings(export)
    assert (found["trainer.total_training_steps"], found["data.train_batch_size"]) == (3, 4)
    assert (found["actor_rollout_ref.rollout.n"], found["actor_rollout_ref.actor.ppo_mini_batch_size"]) == (2, 4)
    assert (found["trainer.nnodes"], found["trainer.n_gpus_per_node"]) == (2, 4)
    assert found["actor_rollout_ref.model.path"] == "other/name"
    assert (found["data.shuffle"], found["data.filter_overlong_prompts"], found["trainer.total_epochs"]) == (False, False, 1)


def test_gpus_that_cannot_share_a_step_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"n_gpus_per_node = 3, nnodes = 1: a step has 4 × 2 = 8 rollouts, which 3 GPUs cannot"):
        export_training(tmp_path, "org/model", options={"n_gpus_per_node": 3})
    with pytest.raises(ConfigError, match=r"train.vllm_tensor_parallel_size = 2: must divide the 1 GPUs"):
        export_training(tmp_path, "org/model", train={"vllm_tensor_parallel_size": 2})


@pytest.mark.parametrize("switch", ["on", "off"])
def test_thinking_is_passed_on_where_the_tokenizer_cannot_be_loaded(tmp_path: Path, switch: str) -> None:
    export = exported(tmp_path, model={"name": "org/model", "thinking": switch})
    assert export.tokenizer is None
    found = verl_settings(export)
    for name in ("enable_thinking", "thinking"):
        assert found[f"data.apply_chat_template_kwargs.{name}"] is (switch == "on")


def test_the_chat_template_is_permixs_own(tmp_path: Path, tiny_model: Path) -> None:
    _, export = prepare_export(config_of(tmp_path, tiny_model))
    template = verl_settings(export)["actor_rollout_ref.model.custom_chat_template"]
    assert template == export.tokenizer.chat_template
    assert "data.apply_chat_template_kwargs.thinking" not in verl_settings(export)


# Text


def test_a_text_that_hydra_would_take_for_a_setting_is_refused(tmp_path: Path, tiny_model: Path) -> None:
    with pytest.raises(ConfigError, match=r"^model: holds \$\{, which verl's configuration would replace"):
        export_training(tmp_path, "org/model", options={"model": "a/${x}"})
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text() + "{# ${x} #}")
    with pytest.raises(ConfigError, match=r"^the model's chat template: holds \$\{"):
        export_training(tmp_path, folder)


def test_hostile_texts_are_the_same_text_in_yaml() -> None:
    yaml = pytest.importorskip("yaml")
    hostile = 'it\'s "q" #1: - {a} [b] %x \\ \t ☃ \u2028 \x7f \x85 \ufeff 😀 ${x} yes null 1e5'
    lines = "".join(verl_export._yaml_lines({"a": {"text": hostile, "n": 1e-05, "b": True, "none": None, "list": ["x", 1]}}))
    assert yaml.safe_load(lines) == {"a": {"text": hostile, "n": 1e-05, "b": True, "none": None, "list": ["x", 1]}}
    assert lines.count("\n") == 6


@pytest.mark.parametrize("number", [1e-05, 1.5e-07, 1e6, 0.1, 2e22, 1e300, 3.0])
def test_numbers_are_numbers_in_yaml(number: float) -> None:
    yaml = pytest.importorskip("yaml")
    assert yaml.safe_load(verl_export._yaml_scalar(number)) == number


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("a\nb", "holds a control character"),
        ("\x1b[0m", "holds a control character"),
        ("a\u2028b", "holds a control character"),
        (" ", "is empty; give a text, or leave it out"),
    ],
)
def test_a_model_name_that_no_line_can_hold_is_refused(tmp_path: Path, name: str, words: str) -> None:
    with pytest.raises((ConfigError, ValidationError), match=f"model = .*: {words}"):
        export_training(tmp_path, "org/model", options={"model": name})


# The plan, its configuration and the folder


def test_a_plan_file_is_exported_with_the_defaults(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = build_config(TrainConfig, training_values(tmp_path, "org/model"), source="test")
    plan = compile_plan_from_config(config.task, config.personas, config.plan)
    write_plan(plan, tmp_path / "my.parquet")
    argv = ["export", str(tmp_path / "my.parquet"), "--format", "verl", "--model", "org/model", "--out", str(tmp_path / "out")]
    assert cli.run_cli(argv) == 0, capsys.readouterr().err
    assert read_plan(tmp_path / "out" / "plan.parquet").hash == plan.hash
    about = read_json(tmp_path / "out" / "permix.json")
    assert (about["model"], about["method"], about["settings"]["train.lr"]) == ("org/model", "permix", 1e-5)
    assert (about["settings"]["plan.group_size"], about["settings"]["plan.scope"]) == (2, "group")


def test_a_plan_file_says_by_which_settings_its_rows_were_drawn(tmp_path: Path) -> None:
    """The same export by a configuration and by the plan file of it: also its identity is the same."""
    drawn = {"seed": 7, "mix": 0.9, "scope": "rollout", "templates": {"you_are": 2, "adopt": 1}, "tag_weights": {"neutral": 2}}
    drawn |= {"contexts": {"system": 1, "in-character": 1}}
    training = write_training(tmp_path, "org/model", plan=drawn)
    bare = tmp_path / "bare.json"
    bare.write_text(
        json.dumps({name: value for name, value in read_json(training).items() if name not in ("task", "personas", "plan")})
    )
    config = build_config(TrainConfig, read_json(training), source="test")
    write_plan(compile_plan_from_config(config.task, config.personas, config.plan), tmp_path / "my.parquet")
    given = {"format": "verl", "n_gpus_per_node": 1, "model": "org/model"}
    by_config = prepare_export(ExportConfig.model_validate(given | {"plan": training}))[1]
    by_file = prepare_export(ExportConfig.model_validate(given | {"plan": tmp_path / "my.parquet", "config": bare}))[1]
    assert by_file.settings == by_config.settings
    assert {name: by_file.settings[f"plan.{name}"] for name in drawn} == drawn
    assert export_identity("verl", by_file) == export_identity("verl", by_config)


@pytest.mark.parametrize("metadata", [{}, {"plan": None}, {"plan": {"seed": 7, "of_a_later_version": 1}}])
def test_what_a_plan_file_does_not_say_of_its_rows_is_left_out(tmp_path: Path, metadata: dict[str, Any]) -> None:
    config = build_config(TrainConfig, training_values(tmp_path, "org/model", plan={"seed": 7}), source="test")
    plan = compile_plan_from_config(config.task, config.personas, config.plan)
    write_plan(Plan(plan.rows, metadata), tmp_path / "my.parquet")
    options = {"plan": tmp_path / "my.parquet", "format": "verl", "n_gpus_per_node": 1, "model": "m/m", "out": tmp_path / "out"}
    export_plan(ExportConfig.model_validate(options))
    settings = read_json(tmp_path / "out" / "permix.json")["settings"]
    of_rows = {"steps": 3, "questions_per_step": 4, "group_size": 2, "dynamic_sampling_groups": 0, "scope": "group"}
    of_rows |= {"seed": 7} if metadata.get("plan") else {}
    assert {name: value for name, value in settings.items() if name.startswith("plan.")} == {
        f"plan.{name}": value for name, value in of_rows.items()
    }


def test_the_plan_of_a_curriculum_is_finished_rows(tmp_path: Path) -> None:
    config = build_config(TrainConfig, training_values(tmp_path, "org/model"), source="test")
    plan = compile_plan_from_config(config.task, config.personas, config.plan.model_copy(update={"curriculum_strength": 1.0}))
    write_plan(plan, tmp_path / "my.parquet")
    options = {"plan": tmp_path / "my.parquet", "format": "verl", "n_gpus_per_node": 1, "model": "m/m"}
    settings = prepare_export(ExportConfig.model_validate(options))[1].settings
    assert not [name for name in settings if name.startswith("plan.curriculum")]


def test_a_plan_without_personas_is_rlvr(tmp_path: Path) -> None:
    config = build_config(TrainConfig, training_values(tmp_path, "m/m", plan={"mix": 0.0}), source="test")
    write_plan(compile_plan_from_config(config.task, config.personas, config.plan), tmp_path / "my.parquet")
    options = ExportConfig(plan=tmp_path / "my.parquet", format="verl", n_gpus_per_node=1, model="m/m")
    assert prepare_export(options)[1].config.method == "rlvr"


def test_a_plan_file_with_spare_groups_is_refused(tmp_path: Path) -> None:
    values = training_values(tmp_path, "m/m", plan={"dynamic_sampling_groups": 1})
    config = build_config(TrainConfig, values, source="test")
    write_plan(compile_plan_from_config(config.task, config.personas, config.plan), tmp_path / "my.parquet")
    with pytest.raises(ConfigError, match=r"plan\.dynamic_sampling_groups = 1: verl replaces groups"):
        prepare_export(ExportConfig(plan=tmp_path / "my.parquet", format="verl"))


def test_a_configuration_beside_a_plan_file_must_have_that_plan(tmp_path: Path) -> None:
    training = write_training(tmp_path, "m/m", train={"lr": 3e-6})
    config = build_config(TrainConfig, read_json(training), source="test")
    plan = compile_plan_from_config(config.task, config.personas, config.plan)
    write_plan(plan, tmp_path / "same.parquet")
    other = config.plan.model_copy(update={"seed": 9})
    write_plan(compile_plan_from_config(config.task, config.personas, other), tmp_path / "other.parquet")
    options = {"format": "verl", "config": training, "n_gpus_per_node": 1}
    found = prepare_export(ExportConfig.model_validate(options | {"plan": tmp_path / "same.parquet"}))[1]
    assert (found.plan.hash, found.config.train.lr) == (plan.hash, 3e-6)
    with pytest.raises(ConfigError, match=f"other.parquet: has the hash .*, and the plan of config = {training} has {plan.hash}"):
        prepare_export(ExportConfig.model_validate(options | {"plan": tmp_path / "other.parquet"}))
    bare = tmp_path / "bare.toml"
    bare.write_text('stage = "train"\n[train]\nlr = 2e-6\nmax_new_tokens = 8\n[model]\nname = "m/m"\n')
    found = prepare_export(ExportConfig.model_validate(options | {"plan": tmp_path / "other.parquet", "config": bare}))[1]
    assert (found.config.train.lr, found.model) == (2e-6, "m/m")
    with pytest.raises(ConfigError, match="is a training configuration already; give one of the two"):
        prepare_export(ExportConfig.model_validate(options | {"plan": training}))


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--format", "verl"], 'plan is missing: format "verl" takes a configuration of `permix train` or a plan file'),
        (["runs/x", "--format", "verl"], "plan is missing"),
        (["plan.parquet"], "plan = PosixPath('plan.parquet'): has no effect with format \"inspect\""),
        (["--format", "verl", "none.parquet"], "plan = none.parquet: no such file; make one with `permix plan`"),
        (["none.toml", "--format", "verl"], "none.toml: no such configuration file"),
        (["plan.toml", "--format", "verl"], "plan.toml: configures stage 'plan'; give a configuration of `permix train`"),
        (["--format", "verl", "--nnodes", "0", "x.parquet"], "nnodes = 0: must be greater than 0"),
        (["--nnodes", "2", "runs/x"], 'nnodes = 2: has no effect with format "inspect"'),
    ],
)
def test_what_cannot_be_exported_is_one_line(
    argv: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plan.toml").write_text('stage = "plan"\n')
    assert cli.run_cli(["export", *argv]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_the_plan_may_come_after_the_options(tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    training, out = write_training(tmp_path, tiny_model), tmp_path / "out"
    assert cli.run_cli(["export", "--format=verl", str(training), "--out", str(out), "--n-gpus-per-node", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["paths"] == {"export": str(out)}
    assert (out / "launch.sh").exists()


def test_an_export_may_have_a_configuration_of_its_own(
    tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    training = write_training(tmp_path, tiny_model)
    own = tmp_path / "export.toml"
    own.write_text(f'stage = "export"\nformat = "verl"\nplan = "{training}"\nout = "{tmp_path / "out"}"\nn_gpus_per_node = 1\n')
    assert cli.run_cli(["check", str(own)]) == 0, capsys.readouterr().err
    assert "verl" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    assert cli.run_cli(["export", str(own)]) == 0
    assert (tmp_path / "out" / "permix.json").exists()


def test_neither_configuration_need_name_its_stage(tmp_path: Path, tiny_model: Path) -> None:
    training = write_training(tmp_path, tiny_model)
    values = json.loads(training.read_text())
    assert values.pop("stage") == "train"
    training.write_text(json.dumps(values))
    assert (
        cli.run_cli(["export", str(training), "--format", "verl", "--out", str(tmp_path / "one"), "--n-gpus-per-node", "1"]) == 0
    )
    own = tmp_path / "export.toml"
    own.write_text(f'format = "verl"\nplan = "{training}"\nout = "{tmp_path / "two"}"\nn_gpus_per_node = 1\n')
    assert cli.run_cli(["export", str(own)]) == 0
    one, two = (read_json(tmp_path / name / "permix.json") for name in ("one", "two"))
    assert one == two


def test_a_folder_with_other_content_is_left_alone(tmp_path: Path, tiny_model: Path) -> None:
    out = tmp_path / "export"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    with pytest.raises(DataError, match=f"out = {out}: has other content; give a new or empty folder"):
        export_training(tmp_path, tiny_model)
    assert [one.name for one in out.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    ("sections", "options", "words"),
    [
        ({"plan": {"seed": 4}}, {}, "its plan"),
        ({"train": {"lr": 1e-3}}, {}, "its model, settings, dev questions or machines"),
        ({}, {"model": "org/other"}, "its model, settings"),
        ({}, {"n_gpus_per_node": 2}, "its model, settings"),
    ],
)
def test_a_folder_with_another_export_is_left_alone(
    tmp_path: Path, tiny_model: Path, sections: dict[str, Any], options: dict[str, Any], words: str
) -> None:
    out = export_training(tmp_path, tiny_model)
    before = {one.name: one.read_bytes() for one in out.iterdir()}
    with pytest.raises(DataError, match=f"holds an export that differs in {words}"):
        export_training(tmp_path, tiny_model, options=options, **sections)
    assert {one.name: one.read_bytes() for one in out.iterdir()} == before


def test_prompts_over_the_limit_are_refused_before_anything_is_written(tmp_path: Path, tiny_model: Path) -> None:
    with pytest.raises(ConfigError, match=r"train.max_prompt_tokens = 20: the prompt of step 0, group \d .* has \d+ tokens"):
        export_training(tmp_path, tiny_model, train={"max_prompt_tokens": 20})
    with pytest.raises(ConfigError, match=r"train.max_new_tokens = 500: the plan's longest prompt has"):
        export_training(tmp_path, tiny_model, train={"max_new_tokens": 500})
    assert not (tmp_path / "export").exists()


def test_a_dev_prompt_over_the_limit_is_refused_too(tmp_path: Path, tiny_model: Path) -> None:
    config = config_of(tmp_path, tiny_model, dev_eval=DEV_EVAL)
    pool = tmp_path / "personas.jsonl"
    pool.write_text(pool.read_text().replace("a night nurse", "a night nurse " * 40))
    with pytest.raises(ConfigError, match=r"\[dev_eval\]: train.max_prompt_tokens = 200: .*persona nurse.* tokens"):
        export_plan(config)


def test_without_the_tokenizer_a_note_says_that_lengths_were_not_checked(tmp_path: Path) -> None:
    export = exported(tmp_path)
    [note] = export.notes
    assert note.startswith("the tokenizer of org/model cannot be loaded here, so the lengths of the prompts were not checked")
    out = export_training(tmp_path, "org/model")
    assert read_json(out / "permix.json")["notes"] == [note]


def test_a_local_model_without_a_chat_template_is_refused(tmp_path: Path, tiny_model: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(ConfigError, match="its tokenizer has no chat template"):
        export_training(tmp_path, folder)


def test_the_bundled_model_has_its_hub_id(tmp_path: Path) -> None:
    from permix.pipelines.engine_export import exported_model_name

    training = TrainConfig()
    assert exported_model_name(ExportConfig(plan=tmp_path, format="verl"), training) == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert exported_model_name(ExportConfig(plan=tmp_path, format="verl", model="x"), training) == "x"


# The reward


def info(task: str = "arithmetic", content: str = "What is 3 + 4?", **fields: Any) -> dict[str, Any]:
    rollouts = [{"persona_id": None, "seed": 1, "messages": [{"role": "user", "content": content}]}]
    return {"task": task, "rollouts": json.dumps(rollouts), **fields}


@pytest.mark.parametrize(
    ("text", "reward"), [("Arr, it is 7.", 1.0), ("It is 8.", 0.0), ("I do not count.", 0.0), ("", 0.0), ("\\boxed{7}", 1.0)]
)
def test_the_reward_is_the_verifiers(text: str, reward: float) -> None:
    assert compute_score("permix/arithmetic/none", text, "7", info()) == {"score": reward}


def test_what_verl_adds_is_ignored_and_keywords_are_taken() -> None:
    found = compute_score(
        data_source="d", solution_str="7", ground_truth="7", extra_info=info(num_turns=2), reward_router_address=None
    )
    assert found == {"score": 1.0}


def test_a_verifier_that_fails_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verl_reward, "verify_completion", lambda *_: Verdict(correct=None, error="out of memory"))
    with pytest.raises(MissingRewardError, match="d: the verifier failed, so this rollout has no reward: out of memory"):
        compute_score("d", "7", "7", info())


def test_the_question_is_that_of_the_rollout() -> None:
    """The letters that count are those of the question: with scope "rollout" each rollout has its own prompt."""
    asked = ["Which?\nA. one\nB. two", "Which?\nA. one\nB. two\nC. three\nD. four\nE. five"]
    rollouts = [{"persona_id": None, "seed": 1, "messages": [{"role": "user", "content": one}]} for one in asked]
    both = {"task": "own-choice", "rollouts": json.dumps(rollouts)}
    scores = [compute_score("d", "I take E.", "E", both | {"permix_rollout": number})["score"] for number in (0, 1, 2)]
    assert scores == [0.0, 1.0, 0.0]


@pytest.mark.parametrize(
    "extra",
    [
        None,
        {},
        {"task": "gsm8k", "rollouts": "[]"},
        {"task": "gsm8k", "rollouts": "{"},
        {"task": "gsm8k", "rollouts": '[{"messages": []}]'},
        {"task": "gsm8k", "rollouts": '[{"messages": [1]}]'},
    ],
)
def test_a_row_of_another_data_set_is_refused(extra: dict[str, Any] | None) -> None:
    with pytest.raises(DataError, match="extra_info: not of a data set that `permix export` wrote"):
        compute_score("d", "7", "7", extra)


def test_an_unknown_task_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"task\.name = 'gsm9k'.*did you mean gsm8k"):
        compute_score("d", "7", "7", info("gsm9k"))


def test_the_reward_needs_neither_verl_nor_torch() -> None:
    code_text = (
        "import sys; import permix.interop.verl_reward; "
        "print([name for name in ('verl', 'torch', 'transformers', 'ray', 'pyarrow') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code_text], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def program_problems(folder: Path) -> Path:
    path = folder / "problems.jsonl"
    rows = [
        {"question": f"Add {n}.", "function": "f", "tests": [{"args": [1], "output": n + 1}], "split": "train"} for n in range(12)
    ]
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    return path


def export_programs(tmp_path: Path) -> Path:
    task = {"name": "code", "path": str(program_problems(tmp_path)), "levels": [], "n": 12}
    return export_training(tmp_path, "org/model", task=task)


@needs_sandbox
def test_the_tests_of_programs_are_brought_to_the_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = export_programs(tmp_path)
    assert '    reward_kwargs:\n      tests: "${permix.folder}/tests.jsonl"\n' in (out / "config.yaml").read_text()
    rows = rows_of(out / "train.parquet")
    monkeypatch.setattr(code, "_SUITES", {})  # a worker that has loaded no question
    gold, number = rows[0]["reward_model"]["ground_truth"], int(re.findall(r"Add (\d+)\.", rows[0]["prompt"][-1]["content"])[0])
    with pytest.raises(ConfigError, match=r"the tests .* are not loaded"):
        compute_score("d", "```python\ndef f(x): return x\n```", gold, rows[0]["extra_info"])
    program = "```python\ndef f(x):\n    return x + {}\n```"
    for added, reward in ((number, 1.0), (number + 1, 0.0)):
        found = compute_score("d", program.format(added), gold, rows[0]["extra_info"], tests=str(out / "tests.jsonl"))
        assert found == {"score": reward}


def test_a_file_of_tests_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"tests = .*none\.jsonl: not a tests\.jsonl of an export: FileNotFoundError"):
        compute_score("d", "x", "g", info("code"), tests=str(tmp_path / "none.jsonl"))
    (tmp_path / "bad.jsonl").write_text('{"gold": "g"}\n')
    with pytest.raises(DataError, match=r"bad\.jsonl: not a tests\.jsonl of an export: KeyError"):
        compute_score("d", "x", "g", info("code"), tests=str(tmp_path / "bad.jsonl"))


def test_what_an_export_prints(tmp_path: Path, tiny_model: Path) -> None:
    facts = export_plan(config_of(tmp_path, tiny_model, dev_eval=DEV_EVAL, train={"samples_every": 2}))
    assert facts["format"] == "verl"
    assert facts["rows"] == "12 groups in 3 steps, 9 dev questions"
    assert "train.samples_every = 2: verl writes every rollout" in facts["no counterpart"]
    assert replace(prepare_export(config_of(tmp_path, tiny_model))[1], notes=("n",)).notes == ("n",)
    assert VERL.name == "verl"
