"""Writes a training plan for verl: its data sets, its configuration and the script that starts it.

    train.parquet   one row a group, in the plan's order: step k of the training is step k of the plan
    val.parquet     the dev evaluation: questions without a persona and under each dev persona (with dev_eval.every above 0)
    agent.yaml      names `permix.interop.verl_agent.PermixAgentLoop`, which gives each rollout its own prompt and seed
    config.yaml     the settings, for hydra; paths are relative to `permix.folder`, which launch.sh sets
    launch.sh       starts the training on one node; its comments say how on several
    tests.jsonl     the tests of programming questions, if the plan has any

The rewards come from `permix.interop.verl_reward`. docs/engines.md has the mapping of settings and what differs.
"""

import io
import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from permix import __version__
from permix.errors import ConfigError
from permix.interop.engine_export import EngineFiles, PlanExport, TrainingEngine, dropped, harmless, mapped, refused
from permix.tasks import TASKS
from permix.tasks.code import registered_suite
from permix.types import PlanRow, reward_tags

VERL_VERSION = "0.9.1"
"""The release whose source and configuration schema the files were written against."""

AGENT_NAME = "permix"
"""Name of the agent loop: a column of the data sets, and the entry of agent.yaml."""

MIXED_TAG = "mixed"
"""Last part of the data source of a group whose rollouts have different tags."""

_BY_LOSS = {
    "grpo": "seq-mean-token-mean",
    "dr_grpo": "seq-mean-token-sum-norm",
    "dapo": "token-mean",
    "bnpo": "token-mean",
}

DEFAULT_MAX_TOKENS = 16384
"""verl's own default of ppo_max_token_len_per_gpu."""

NO_DUAL_CLIP = 1e6
"""verl bounds the loss of negative advantages by clip_ratio_c, 3 by default; permix does not, so the bound is out of reach."""

_IN_ROWS = harmless("it is in the rows")
_WITH_SERVER = "verl starts its own vLLM servers on the GPUs that train; leave it out"
_NO_IDENTIFIABILITY = (
    "verl's validation asks the task's questions only; measure identifiability on a checkpoint with `permix fidelity`"
)

VERL_SETTINGS = {
    "model.name": mapped("actor_rollout_ref.model.path"),
    "model.thinking": mapped("actor_rollout_ref.model.custom_chat_template, or data.apply_chat_template_kwargs"),
    "model.thinking_budget": harmless("no training has one"),
    "plan.mix": _IN_ROWS,
    "plan.tag_weights": _IN_ROWS,
    "plan.templates": _IN_ROWS,
    "plan.contexts": _IN_ROWS,
    "plan.context_turns": _IN_ROWS,
    "plan.scope": mapped("extra_info.rollouts of a row, read by PermixAgentLoop"),
    "plan.steps": mapped("trainer.total_training_steps"),
    "plan.questions_per_step": mapped("data.train_batch_size, actor_rollout_ref.actor.ppo_mini_batch_size"),
    "plan.group_size": mapped("actor_rollout_ref.rollout.n"),
    "plan.dynamic_sampling_groups": refused(
        lambda value: value > 0,
        "verl replaces groups of equal rewards by rows of later steps, so its steps would not be the plan's; give 0, which keeps "
        "the plan's other groups as they are",
    ),
    "plan.curriculum_strength": refused(
        lambda value: value > 0,
        "a curriculum chooses personas by the rewards so far, and verl reads a plan that is fixed beforehand; give 0",
    ),
    "plan.curriculum_update_every": harmless("it matters with plan.curriculum_strength only"),
    "plan.curriculum_floor": harmless("it matters with plan.curriculum_strength only"),
    "plan.seed": _IN_ROWS,
    "train.lr": mapped("actor_rollout_ref.actor.optim.lr"),
    "train.lr_schedule": mapped(
        "actor_rollout_ref.actor.optim.lr_scheduler_type",
        refuses=lambda value: value == "linear",
        reason='verl has the schedules "constant" and "cosine"; give one of them',
    ),
    "train.warmup_steps": mapped("actor_rollout_ref.actor.optim.lr_warmup_steps, in steps of the plan"),
    "train.weight_decay": mapped("actor_rollout_ref.actor.optim.weight_decay"),
    "train.max_grad_norm": mapped("actor_rollout_ref.actor.optim.clip_grad"),
    "train.beta": mapped("actor_rollout_ref.actor.use_kl_loss, kl_loss_coef, kl_loss_type = k3+"),
    "train.kl_reference_prompt": refused(
        lambda value: value == "no-persona",
        "verl's reference model reads the rollout's own prompt; give \"same-persona\"",
    ),
    "train.loss": mapped("actor_rollout_ref.actor.loss_agg_mode"),
    "train.scale_rewards": mapped(
        "algorithm.norm_adv_by_std_in_grpo",
        refuses=lambda value: value == "batch",
        reason='verl divides by the standard deviation of the group or not at all; give "group" or "none"',
    ),
    "train.clip_low": mapped("actor_rollout_ref.actor.clip_ratio_low, clip_ratio"),
    "train.clip_high": mapped("actor_rollout_ref.actor.clip_ratio_high"),
    "train.updates_per_rollout": mapped("actor_rollout_ref.actor.ppo_epochs"),
    "train.epochs": harmless("it belongs to the supervised methods"),
    "train.temperature": mapped("actor_rollout_ref.rollout.temperature"),
    "train.top_p": mapped("actor_rollout_ref.rollout.top_p"),
    "train.max_new_tokens": mapped("data.max_response_length"),
    "train.max_prompt_tokens": mapped("data.max_prompt_length"),
    "train.microbatch_tokens": mapped("actor_rollout_ref.actor.ppo_max_token_len_per_gpu, which holds one rollout at least"),
    "train.importance_ratio_cap": mapped("algorithm.rollout_correction.rollout_is, rollout_is_threshold"),
    "train.lora_rank": mapped("actor_rollout_ref.model.lora_rank"),
    "train.lora_alpha": mapped("actor_rollout_ref.model.lora_alpha"),
    "train.precision": mapped("actor_rollout_ref.actor.fsdp_config.mixed_precision, actor_rollout_ref.rollout.dtype"),
    "train.gradient_checkpointing": mapped("actor_rollout_ref.model.enable_gradient_checkpointing"),
    "train.save_every": mapped("trainer.save_freq, in steps of the plan"),
    "train.keep_checkpoints": dropped("verl keeps its newest checkpoint, which holds the trained model"),
    "train.save_dtype": dropped("verl.model_merger decides the number format of the weights"),
    "train.samples_every": dropped("verl writes every rollout (trainer.rollout_data_dir)"),
    "train.seed": mapped("data.seed, actor_rollout_ref.actor.data_loader_seed, fsdp_config.seed, rollout.seed"),
    "train.report_to": mapped("trainer.logger"),
    "train.use_vllm": harmless("verl always generates with vLLM"),
    "train.vllm_mode": refused(lambda value: value == "server", _WITH_SERVER),
    "train.vllm_server_base_url": refused(lambda value: value is not None, _WITH_SERVER),
    "train.vllm_server_host": refused(lambda value: value != "0.0.0.0", _WITH_SERVER),
    "train.vllm_server_port": refused(lambda value: value != 8000, _WITH_SERVER),
    "train.vllm_gpu_memory_utilization": mapped("actor_rollout_ref.rollout.gpu_memory_utilization, if it is given"),
    "train.vllm_tensor_parallel_size": mapped("actor_rollout_ref.rollout.tensor_model_parallel_size"),
    "character.replay": refused(
        lambda value: value > 0,
        "verl's GRPO has no term on other answers than the rollouts; give 0, or train with `permix train`",
    ),
    "character.replay_policy": harmless("it matters with character.replay only"),
    "character.replay_answers": harmless("it matters with character.replay only"),
    "character.expressivity": refused(
        lambda value: value > 0,
        "the bonus needs a classifier of the base model's answers, which verl's workers do not have; give 0",
    ),
    "character.personas": harmless("it matters with character.replay and character.expressivity only"),
    "character.questions": harmless("it matters with character.replay and character.expressivity only"),
    "character.temperature": harmless("it matters with character.replay and character.expressivity only"),
    "character.max_new_tokens": harmless("it matters with character.replay and character.expressivity only"),
    "dev_eval.every": mapped("trainer.test_freq, in steps of the plan; val_before_train"),
    "dev_eval.personas": mapped("the rows of val.parquet"),
    "dev_eval.questions": mapped("the rows of val.parquet"),
    "dev_eval.characters": harmless(_NO_IDENTIFIABILITY),
    "dev_eval.roleplay_questions": harmless(_NO_IDENTIFIABILITY),
    "dev_eval.max_new_tokens": refused(
        lambda value: value is not None,
        "verl's validation has the limit of the rollouts; leave it out, which takes train.max_new_tokens",
    ),
    "dev_eval.roleplay_max_new_tokens": harmless(_NO_IDENTIFIABILITY),
    "dev_eval.metric": dropped("verl logs the accuracy by kind of persona and chooses nothing by it"),
    "dev_eval.select": refused(lambda value: value == "best", 'verl keeps the weights of the last step; give "last"'),
    "dev_eval.patience": refused(lambda value: value is not None, "verl trains all steps; leave it out"),
}
"""What becomes of each setting of a training in verl."""


def build_verl_files(export: PlanExport) -> EngineFiles:
    """The files of an export. Raises ConfigError for what verl cannot train on."""
    _check_for_verl(export)
    tests = dict(_test_lines(export))
    files = {
        "train.parquet": _parquet([verl_row(index, rows, export, "train") for index, rows in enumerate(export.groups)]),
        **({"val.parquet": _parquet([verl_row(index, (row,), export, "dev") for index, row in enumerate(export.dev_rows)])}
           if export.dev_rows else {}),
        **({"tests.jsonl": "".join(tests.values()).encode()} if tests else {}),
        "agent.yaml": f"- name: {AGENT_NAME}\n  _target_: permix.interop.verl_agent.PermixAgentLoop\n".encode(),
        "config.yaml": _config_text(export, has_tests=bool(tests)).encode(),
        "launch.sh": _launch_text(export).encode(),
    }  # fmt: skip
    no_counterpart = ["permix's log.jsonl; verl keeps its own log, and writes the rollouts to the folder rollouts"]
    if export.dev_rows and export.config.dev_eval.characters:
        no_counterpart.append(f"dev_eval.characters = {export.config.dev_eval.characters}: {_NO_IDENTIFIABILITY}")
    return EngineFiles(files, {"verl": VERL_VERSION}, no_counterpart)


VERL = TrainingEngine("verl", VERL_SETTINGS, build_verl_files)


def _check_for_verl(export: PlanExport) -> None:
    """Raise ConfigError for a plan or a model name that verl, or the shell that starts it, cannot be given."""
    if re.search(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", export.model) or not export.model.strip():
        raise ConfigError(f"model = {export.model!r}: holds a control character, or nothing; give a hub id or a folder")
    for what, text in (("model", export.model), ("the model's chat template", _chat_template(export) or "")):
        if "${" in text:  # verl resolves its configuration more than once, so an escaped one does not survive
            raise ConfigError(f"{what}: holds ${{, which verl's configuration would replace by a setting; give another model")
    gpus = export.nnodes * export.gpus_per_node
    n_rollouts = export.plan.groups_per_step * export.plan.group_size
    if n_rollouts % gpus:
        raise ConfigError(
            f"n_gpus_per_node = {export.gpus_per_node}, nnodes = {export.nnodes}: a step has {export.plan.groups_per_step} × "
            f"{export.plan.group_size} = {n_rollouts} rollouts, which {gpus} GPUs cannot share evenly; give a number of GPUs "
            "that divides it, or other plan.questions_per_step and plan.group_size"
        )
    parallel = export.config.train.vllm_tensor_parallel_size
    if export.gpus_per_node % parallel:
        raise ConfigError(
            f"train.vllm_tensor_parallel_size = {parallel}: must divide the {export.gpus_per_node} GPUs of a node "
            "(n_gpus_per_node)"
        )


# Data sets


def verl_row(index: int, rows: Sequence[PlanRow], export: PlanExport, split: str) -> dict[str, Any]:
    """One row of a data set: a group. `rows` are its rows of the plan, one or, with scope "rollout", one a rollout."""
    first = rows[0]
    personas = {row.persona_id for row in rows}
    shared = len(personas) == 1
    return {
        "data_source": data_source(rows),
        "prompt": [dict(message) for message in first.messages],
        "ability": first.task,
        "agent_name": AGENT_NAME,
        "reward_model": {"style": "rule", "ground_truth": first.gold},
        "env_class": AGENT_NAME,
        "reward_spec": {"method": "rule", "ground_truth": first.gold},
        "extra_info": {
            "index": index,
            "split": split,
            "plan": export.plan.hash,
            "step": first.step,
            "group": first.group,
            "task": first.task,
            "question_id": first.question_id,
            "question_hash": first.question_hash,
            "persona_id": first.persona_id if shared else None,
            "persona_tags": list(first.persona_tags) if shared else [],
            "rollouts": json.dumps(
                [
                    {
                        "persona_id": row.persona_id,
                        "persona_tags": row.persona_tags,
                        "seed": row.seed,
                        "messages": [dict(one) for one in row.messages],
                    }
                    for row in rows
                ],
                ensure_ascii=False,
            ),
        },
    }


def data_source(rows: Sequence[PlanRow]) -> str:
    """ "permix/TASK/TAG", where TAG is the persona's kind, its first tag: verl averages its validation over a data source."""
    tags = {reward_tags(row.persona_id, row.persona_tags)[0] for row in rows}
    tag = tags.pop() if len(tags) == 1 else MIXED_TAG
    plain_tag = re.sub(r"[^\w.+-]+", "-", tag)
    return f"permix/{rows[0].task}/{plain_tag}"


def _parquet(rows: Sequence[Mapping[str, Any]]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    text, message = pa.string(), pa.struct([("role", pa.string()), ("content", pa.string())])
    schema = pa.schema(
        [
            ("data_source", text),
            ("prompt", pa.list_(message)),
            ("ability", text),
            ("agent_name", text),
            ("reward_model", pa.struct([("style", text), ("ground_truth", text)])),
            ("env_class", text),
            ("reward_spec", pa.struct([("method", text), ("ground_truth", text)])),
            (
                "extra_info",
                pa.struct(
                    [
                        ("index", pa.int64()),
                        ("split", text),
                        ("plan", text),
                        ("step", pa.int32()),
                        ("group", pa.int32()),
                        ("task", text),
                        ("question_id", text),
                        ("question_hash", text),
                        ("persona_id", text),
                        ("persona_tags", pa.list_(text)),
                        ("rollouts", text),
                    ]
                ),
            ),
        ]
    )
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), buffer)
    return buffer.getvalue()


def _test_lines(export: PlanExport) -> Iterator[tuple[str, str]]:
    """By gold, a line of tests.jsonl for each programming question: its gold is a hash of tests that the workers must have."""
    for row in (*export.plan.rows, *export.dev_rows):
        if row.task in TASKS and TASKS[row.task].scorer is not None:
            yield row.gold, json.dumps({"gold": row.gold, "suite": registered_suite(row.gold)}, ensure_ascii=False) + "\n"


# Configuration and script


def verl_settings(export: PlanExport, *, has_tests: bool = False) -> dict[str, Any]:
    """The settings for verl, by their path in its configuration."""
    config, plan = export.config.train, export.plan
    rollout_tokens = config.max_prompt_tokens + config.max_new_tokens
    actor, rollout, model = "actor_rollout_ref.actor", "actor_rollout_ref.rollout", "actor_rollout_ref.model"
    settings: dict[str, Any] = {
        "data.train_files": "${permix.folder}/train.parquet",
        "data.val_files": f"${{permix.folder}}/{'val' if export.dev_rows else 'train'}.parquet",
        "data.train_batch_size": plan.groups_per_step,
        "data.shuffle": False,
        "data.validation_shuffle": False,
        "data.seed": config.seed,
        "data.max_prompt_length": config.max_prompt_tokens,
        "data.max_response_length": config.max_new_tokens,
        "data.filter_overlong_prompts": False,
        "data.truncation": "error",
        f"{model}.path": export.model,
        f"{model}.enable_gradient_checkpointing": config.gradient_checkpointing,
        f"{model}.lora_rank": config.lora_rank,
        f"{model}.lora_alpha": config.lora_alpha,
        f"{model}.target_modules": "all-linear",
        f"{actor}.optim.lr": config.lr,
        f"{actor}.optim.lr_warmup_steps": _plan_steps(config.warmup_steps, export),
        f"{actor}.optim.lr_warmup_steps_ratio": 0.0,
        f"{actor}.optim.lr_scheduler_type": config.lr_schedule,
        f"{actor}.optim.weight_decay": config.weight_decay,
        f"{actor}.optim.clip_grad": config.max_grad_norm,
        f"{actor}.clip_ratio": config.clip_low,
        f"{actor}.clip_ratio_low": config.clip_low,
        f"{actor}.clip_ratio_high": config.clip_low if config.clip_high is None else config.clip_high,
        f"{actor}.clip_ratio_c": NO_DUAL_CLIP,
        f"{actor}.loss_agg_mode": _BY_LOSS[config.loss],
        f"{actor}.loss_scale_factor": config.max_new_tokens if config.loss == "dr_grpo" else None,
        f"{actor}.entropy_coeff": 0,
        f"{actor}.use_kl_loss": config.beta > 0,
        f"{actor}.kl_loss_coef": config.beta,
        f"{actor}.kl_loss_type": "k3+",
        f"{actor}.ppo_epochs": config.updates_per_rollout,
        f"{actor}.ppo_mini_batch_size": plan.groups_per_step,
        f"{actor}.use_dynamic_bsz": True,
        f"{actor}.ppo_max_token_len_per_gpu": max(config.microbatch_tokens or DEFAULT_MAX_TOKENS, rollout_tokens),
        f"{actor}.shuffle": False,
        f"{actor}.data_loader_seed": config.seed,
        f"{actor}.fsdp_config.seed": config.seed,
        f"{rollout}.name": "vllm",
        f"{rollout}.n": plan.group_size,
        f"{rollout}.temperature": config.temperature,
        f"{rollout}.top_p": config.top_p,
        f"{rollout}.top_k": -1,
        f"{rollout}.seed": config.seed,
        f"{rollout}.calculate_log_probs": True,
        f"{rollout}.tensor_model_parallel_size": config.vllm_tensor_parallel_size,
        f"{rollout}.val_kwargs.n": 1,
        f"{rollout}.val_kwargs.do_sample": False,
        f"{rollout}.val_kwargs.temperature": 0,
        f"{rollout}.agent.default_agent_loop": AGENT_NAME,
        f"{rollout}.agent.agent_loop_config_path": "${permix.folder}/agent.yaml",
        "algorithm.adv_estimator": "grpo",
        "algorithm.norm_adv_by_std_in_grpo": config.scale_rewards == "group",
        "algorithm.use_kl_in_reward": False,
        "algorithm.filter_groups.enable": False,
        "algorithm.rollout_correction.rollout_is": None if config.importance_ratio_cap is None else "token",
        "algorithm.rollout_correction.rollout_is_threshold": config.importance_ratio_cap or 2.0,
        "algorithm.rollout_correction.bypass_mode": False,
        "reward.custom_reward_function.path": "pkg://permix.interop.verl_reward",
        "reward.custom_reward_function.name": "compute_score",
        "reward.reward_manager.name": "naive",
        "trainer.v1.trainer_mode": "sync",
        "trainer.total_epochs": 1,
        "trainer.total_training_steps": plan.steps,
        "trainer.save_freq": _plan_steps(config.save_every, export),
        "trainer.max_actor_ckpt_to_keep": 1,
        "trainer.default_local_dir": "${permix.folder}/checkpoints",
        "trainer.rollout_data_dir": "${permix.folder}/rollouts",
        "trainer.validation_data_dir": "${permix.folder}/validation" if export.dev_rows else None,
        "trainer.resume_mode": "auto",
        "trainer.test_freq": _plan_steps(export.config.dev_eval.every, export) if export.dev_rows else -1,
        "trainer.val_before_train": bool(export.dev_rows),
        "trainer.project_name": "permix",
        "trainer.experiment_name": plan.hash,
        "trainer.logger": ["console", *config.report_to],
        "trainer.nnodes": export.nnodes,
        "trainer.n_gpus_per_node": export.gpus_per_node,
    }
    if has_tests:
        settings["reward.custom_reward_function.reward_kwargs.tests"] = "${permix.folder}/tests.jsonl"
    if "vllm_gpu_memory_utilization" in config.model_fields_set:
        settings[f"{rollout}.gpu_memory_utilization"] = config.vllm_gpu_memory_utilization
    if config.precision == "float32":
        for part in ("actor", "ref"):
            settings[f"actor_rollout_ref.{part}.fsdp_config.mixed_precision"] = dict.fromkeys(
                ("param_dtype", "reduce_dtype", "buffer_dtype"), "fp32"
            )
        settings[f"{rollout}.dtype"] = "float32"
    return settings | _template_settings(export)


def _plan_steps(optimizer_steps: int, export: PlanExport) -> int:
    """The number of steps of the plan, which verl counts, that hold this number of optimizer steps; rounded up."""
    return -(-optimizer_steps // export.config.train.updates_per_rollout)


def _template_settings(export: PlanExport) -> dict[str, Any]:
    """The chat template, so that verl writes the prompts as permix does.

    permix's tokenizer has its changes (a fixed date, the switch of thinking) in the template itself. Where the tokenizer cannot
    be loaded here, the switch alone is passed on.
    """
    if (template := _chat_template(export)) is not None:
        return {"actor_rollout_ref.model.custom_chat_template": template}
    thinking = export.config.model.thinking
    if thinking == "default":
        return {}
    return {f"data.apply_chat_template_kwargs.{name}": thinking == "on" for name in ("enable_thinking", "thinking")}


def _chat_template(export: PlanExport) -> str | None:
    """The template that chats use; None if the tokenizer cannot be loaded here."""
    if export.tokenizer is None:
        return None
    template = export.tokenizer.chat_template
    return str(template["default"] if isinstance(template, dict) else template)


def _config_text(export: PlanExport, *, has_tests: bool) -> str:
    nested: dict[str, Any] = {}
    for path, value in verl_settings(export, has_tests=has_tests).items():
        *parents, name = path.split(".")
        section = nested
        for parent in parents:
            section = section.setdefault(parent, {})
        section[name] = value
    return (
        f"# Written by permix {__version__} for verl {VERL_VERSION}. launch.sh starts a training with it.\n"
        "defaults:\n  - ppo_trainer\n  - _self_\n"
        "permix:\n"
        "  # The folder of this file. launch.sh sets it.\n"
        "  folder: .\n" + "".join(_yaml_lines(nested))
    )


def _yaml_lines(section: Mapping[str, Any], indent: str = "") -> Iterator[str]:
    """YAML of nested mappings. Scalars and lists are written as JSON, which is YAML too."""
    for name, value in section.items():
        if isinstance(value, Mapping):
            yield f"{indent}{name}:\n"
            yield from _yaml_lines(value, f"{indent}  ")
        else:
            yield f"{indent}{name}: {_yaml_scalar(value)}\n"


def _yaml_scalar(value: Any) -> str:
    if isinstance(value, float):  # 1e-05 would be a text in YAML 1.1, which wants a point
        text = repr(value)
        return text if "." in text or "e" not in text else text.replace("e", ".0e", 1)
    text = json.dumps(value, ensure_ascii=False)
    # YAML takes none of these characters as they are; JSON escapes only those below U+0020.
    return re.sub(r"[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]", lambda found: f"\\u{ord(found[0]):04x}", text)


def _launch_text(export: PlanExport) -> str:
    plan, machines = export.plan, f"{export.nnodes} x {export.gpus_per_node} GPUs"
    return f"""#!/bin/sh
# Trains {shlex.quote(export.model)} on the plan {plan.hash} with verl {VERL_VERSION}:
# {plan.steps} steps, {plan.groups_per_step} questions x {plan.group_size} rollouts, {machines}.
#
# Install on every machine: verl {VERL_VERSION} with vLLM 0.18 or newer, and permix. All of them must have this folder, and the
# model, at the same place.
# On several machines, first start Ray: on the first one
#     ray start --head --port=6379
# and on each of the others
#     ray start --address=FIRST_MACHINE:6379
# then start this script on the first one. Settings can be overridden: sh launch.sh trainer.save_freq=50
set -eu
folder=$(cd -- "$(dirname -- "$0")" && pwd)
# Hydra reads the value between single quotes, where a backslash comes before a quote that belongs to it.
quoted=$(printf %s "$folder" | sed "s/'/\\\\\\\\'/g")
exec python3 -m verl.trainer.main_ppo --config-dir "$folder" --config-name config "permix.folder='$quoted'" "$@"
"""
