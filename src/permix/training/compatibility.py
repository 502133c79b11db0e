"""Checks that a plan, the settings and the started processes fit together, before anything is loaded.

`check_plan` checks the plan against the settings, `check_launch` how the processes were started. Both raise ConfigError with the
value and what would be valid.
"""

import importlib.metadata
import importlib.util
import json
import os
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from permix.config import SUPERVISED_METHODS, OptimConfig, TrainConfig
from permix.errors import ConfigError
from permix.inference.chat_template import encode_chat
from permix.inference.hf import context_window
from permix.plan import Plan
from permix.training import distributed
from permix.types import PlanRow

Sharding = Literal["none", "fsdp1", "fsdp2", "zero1", "zero2", "zero3"]


class Launch(NamedTuple):
    """How this process was started: the number of processes, and how they shard the weights."""

    world_size: int = 1
    sharding: Sharding = "none"
    visible_gpus: int = 0


def detect_launch() -> Launch:
    """Read the launch from the environment that `accelerate launch` or torchrun set. Imports torch only for a single process."""
    count = distributed.world_size()
    return Launch(count, detect_sharding(), _visible_gpus() if count == 1 else 1)


def detect_sharding() -> Sharding:
    """The sharding that `accelerate launch --config_file` chose; "none" under torchrun."""
    if os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true":
        return "fsdp1" if os.environ.get("FSDP_VERSION", "1") == "1" else "fsdp2"
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() == "true":
        return _SHARDING_BY_ZERO_STAGE.get(_zero_stage(), "zero2")
    return "none"


def has_sharded_weights() -> bool:
    """Whether each process holds only a shard of every weight."""
    return detect_sharding() in ("fsdp2", "zero3")


_SHARDING_BY_ZERO_STAGE: dict[str, Sharding] = {"0": "none", "1": "zero1", "2": "zero2", "3": "zero3"}


def _zero_stage() -> str:
    file = os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "none")
    if file == "none":
        return os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")
    try:
        return str(json.loads(Path(file).read_text(encoding="utf-8"))["zero_optimization"]["stage"])
    except OSError as error:
        raise ConfigError(f"{file}: the DeepSpeed configuration cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(
            f"{file}: the DeepSpeed configuration has no zero_optimization.stage; give 0, 1, 2 or 3, as in configs/launch"
        ) from error


def _visible_gpus() -> int:
    import torch

    return int(torch.cuda.device_count())


def check_plan(plan: Plan, config: OptimConfig) -> None:
    """Raise ConfigError if the groups are uneven, or if these settings cannot train this plan correctly."""
    _check_group_sizes(plan)
    if config.scale_rewards == "batch" and plan.dynamic_sampling_groups:
        raise ConfigError(
            'train.scale_rewards = "batch": the spare groups of plan.dynamic_sampling_groups would be divided by another '
            'deviation; give "group" or "none"'
        )
    if config.kl_reference_prompt == "no-persona" and (row := next(filter(_has_persona_in_user_message, plan.rows), None)):
        raise ConfigError(
            f'train.kl_reference_prompt = "no-persona": persona {row.persona_id} of step {row.step} is in the user\'s message, '
            'with the question, and cannot be removed from it; give "same-persona", or a personas.template without {question}'
        )
    if config.kl_reference_prompt == "no-persona" and (row := next(filter(_is_persona_beyond_system, plan.rows), None)):
        raise ConfigError(
            f'train.kl_reference_prompt = "no-persona": step {row.step} has a row in context {row.context!r}, whose turns or '
            'question belong to the persona too; give "same-persona", or a plan without contexts'
        )
    mixed = len({(row.step, row.group) for row in plan.rows}) < len(plan.rows)
    if config.use_vllm and config.vllm_mode == "server" and mixed:
        raise ConfigError(
            'train.vllm_mode = "server": TRL\'s server mode generates for the first prompt of each group alone, so with '
            'plan.scope = "rollout" every rollout of a group would have the persona of the first; give plan.scope = "group", '
            'train.vllm_mode = "colocate" or train.use_vllm = false'
        )


def _has_persona_in_user_message(row: PlanRow) -> bool:
    return row.persona_id is not None and not any(message["role"] == "system" and message["content"] for message in row.messages)


def _is_persona_beyond_system(row: PlanRow) -> bool:
    """Whether the row's context brings the persona into other messages than the system message."""
    return row.context not in ("", "system")


def _check_group_sizes(plan: Plan) -> None:
    sizes = Counter[tuple[int, int]]()
    for row in plan.rows:
        sizes[row.step, row.group] += row.rollouts
    if plan.group_size < 2:
        raise ConfigError(f"plan: a group has {plan.group_size} rollout; its baseline needs 2 or more (plan.group_size)")
    for (step, group), size in sizes.items():
        if size != plan.group_size:
            raise ConfigError(f"plan: group {group} of step {step} has {size} rollouts, the first group has {plan.group_size}")
    required = {(row.step, row.group) for row in plan.rows if not row.spare}
    for step, groups in Counter(step for step, _ in required).items():
        if groups != plan.groups_per_step:
            raise ConfigError(f"plan: step {step} has {groups} groups, step 0 has {plan.groups_per_step}")


def check_launch(plan: Plan, config: TrainConfig, launch: Launch) -> None:
    """Raise ConfigError if these processes cannot share the groups of a step, cannot generate, or lack vLLM."""
    if config.method in SUPERVISED_METHODS and launch.world_size > 1:
        raise ConfigError(
            f'method = "{config.method}": the supervised methods train in one process, and {launch.world_size} were started; '
            "start one, or give method permix or rlvr"
        )
    groups, count = plan.groups_per_step, launch.world_size
    if groups % count:
        raise ConfigError(
            f"plan.questions_per_step = {groups}: a process trains whole groups, and {count} processes cannot share "
            f"{groups} evenly; start {_divisors(groups)}, or give plan.questions_per_step a multiple of {count}"
        )
    if launch.visible_gpus > 1:
        raise ConfigError(
            f"{launch.visible_gpus} GPUs are visible to one process, which trains on one; start a process for each (torchrun "
            f"--nproc_per_node {launch.visible_gpus} -m permix train ...), or show it one (CUDA_VISIBLE_DEVICES=0)"
        )
    if launch.sharding == "fsdp1":
        raise ConfigError("fsdp_version: 1 is not supported: launch with fsdp_version: 2, as configs/launch/fsdp2.yaml does")
    if launch.sharding == "fsdp2":
        _check_sharded_reference(config)
    if launch.sharding == "zero3":
        _check_zero3(config)
    if config.dev_eval.every and config.train.use_vllm and launch.sharding in ("fsdp2", "zero3"):
        raise ConfigError(
            f"dev_eval.every = {config.dev_eval.every}: a dev evaluation asks the network in training, and with sharded "
            "weights and rollouts by vLLM no process holds a network that could answer; give dev_eval.every = 0, or "
            "train.use_vllm = false"
        )
    if config.train.use_vllm:
        _check_vllm(config.train, count)


SHARDED_REFERENCE_TRANSFORMERS = (5, 23)
"""The first release of transformers with which a reference model that is sharded by FSDP2 has the right weights. With 5.0 to 5.22
two processes train towards another reference than one process does, without an error (tests/training/test_sharded.py)."""


def _check_sharded_reference(config: TrainConfig) -> None:
    """Refuse a reference model of its own under FSDP2 with an old transformers. With LoRA the reference is the model itself."""
    on_policy = config.character.replay > 0 and config.character.replay_policy == "on"
    installed = importlib.metadata.version("transformers")
    release = tuple(int(one) for one in re.findall(r"\d+", installed)[:2])
    if not (config.train.beta or on_policy) or config.train.lora_rank or release >= SHARDED_REFERENCE_TRANSFORMERS:
        return
    wanted = ".".join(map(str, SHARDED_REFERENCE_TRANSFORMERS))
    setting = f"train.beta = {config.train.beta}" if config.train.beta else 'character.replay_policy = "on"'
    raise ConfigError(
        f"{setting}: needs a reference model, whose weights are wrong under FSDP2 with transformers {installed}; install "
        f"transformers {wanted} or newer, give train.lora_rank, or launch with torchrun"
    )


def _check_zero3(config: TrainConfig) -> None:
    """Refuse whatever needs whole weights, or a network that runs outside a training step: ZeRO-3 gives neither."""
    instead = "or launch with configs/launch/fsdp2.yaml, which can gather whole weights"
    if not config.train.use_vllm:
        raise ConfigError(
            "train.use_vllm = false: under DeepSpeed ZeRO-3 every process holds only a shard of each weight, so none "
            f"has a network that could generate; give train.use_vllm = true, {instead}"
        )
    if config.train.lora_rank:
        raise ConfigError(
            f"train.lora_rank = {config.train.lora_rank}: under ZeRO-3 adapters cannot be merged; give 0, {instead}"
        )
    if config.character.replay:
        raise ConfigError(
            f"character.replay = {config.character.replay}: under ZeRO-3 the base model cannot be asked; give 0, {instead}"
        )


def _check_vllm(config: OptimConfig, world_size: int) -> None:
    if importlib.util.find_spec("vllm") is None:
        raise ConfigError("train.use_vllm = true: vllm is not installed; pip install 'trl[vllm]', or give train.use_vllm = false")
    if config.vllm_mode == "colocate" and world_size % config.vllm_tensor_parallel_size:
        raise ConfigError(
            f"train.vllm_tensor_parallel_size = {config.vllm_tensor_parallel_size}: it must divide the number of processes, "
            f"{world_size}; give {_divisors(world_size)}"
        )


def _divisors(number: int) -> str:
    """6 -> "1, 2, 3 or 6"."""
    *first, last = [str(one) for one in range(1, number + 1) if number % one == 0]
    return f"{', '.join(first)} or {last}" if first else last


def check_vllm_logprobs_mode(server_info: Mapping[str, Any]) -> None:
    """Raise ConfigError if the server reports log-probabilities before temperature and top-p, not after them."""
    mode = server_info["model_config"]["logprobs_mode"]
    if mode != "processed_logprobs":
        raise ConfigError(
            f"the vLLM server runs with --logprobs-mode {mode}; start it with --logprobs-mode processed_logprobs, or train "
            "without train.importance_ratio_cap"
        )


def longest_prompt_tokens(plan: Plan, tokenizer: Any, limit: int) -> int:
    """Tokens of the plan's longest prompt. Raises ConfigError that names the row if a prompt is over the limit."""
    longest = 0
    for row in {row.messages.__repr__(): row for row in plan.rows}.values():
        count = len(encode_chat(tokenizer, row.messages))
        if count > limit:
            raise ConfigError(
                f"train.max_prompt_tokens = {limit}: the prompt of step {row.step}, group {row.group} "
                f"(question {row.question_id}, persona {row.persona_id}) has {count} tokens; raise the limit or drop the question"
            )
        longest = max(longest, count)
    return longest


def check_context_window(prompt_tokens: int, config: OptimConfig, source: str) -> None:
    """Raise ConfigError if the longest prompt and a completion do not fit into the model's context window."""
    prompt, window = "the plan's longest prompt", context_window(source)
    check_answer_fits("train.max_new_tokens", config.max_new_tokens, prompt, prompt_tokens, window)


def check_answer_fits(field: str, new_tokens: int, prompt: str, prompt_tokens: int, window: int) -> None:
    """Raise ConfigError if a prompt and an answer of `new_tokens` tokens do not fit into the model's `window` tokens.

    `field` is the setting of `new_tokens`; `prompt` names the prompt, for messages.
    """
    room = window - prompt_tokens
    if new_tokens <= room:
        return
    if room > 0:
        advice = f"give {field} = {room} or less, or shorter prompts"
    else:
        advice = "it leaves no token for an answer; give shorter personas or questions, or a model that reads more"
    raise ConfigError(f"{field} = {new_tokens}: {prompt} has {prompt_tokens} tokens and the model reads {window}; {advice}")
