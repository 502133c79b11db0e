"""Builds the arguments of TRL's trainers: the common ones, and those of GRPO."""

import os
from pathlib import Path
from typing import Any

from trl import GRPOConfig

from permix.config import OptimConfig
from permix.inference.hardware import pick_device, pick_dtype
from permix.plan import Plan
from permix.training import distributed

TRL_LOSS_TYPE = "dapo"
"""A value that passes TRL's check of its arguments. The loss itself is one of `permix.training.loss.LOSSES`, whose names TRL may
not know."""


def common_arguments(config: OptimConfig, steps: int, out: Path) -> dict[str, Any]:
    """Arguments for optimizer, precision, logs and checkpoints of `steps` optimizer steps; checkpoints go to `out`."""
    import torch

    device = pick_device()
    bf16 = pick_dtype(config.precision, device) == torch.bfloat16
    # transformers writes its choice into the environment, where a later run in this process, or a child process, would find it.
    os.environ["ACCELERATE_MIXED_PRECISION"] = "bf16" if bf16 else "no"
    return {
        "output_dir": str(out),
        "max_steps": steps,
        "shuffle_dataset": False,
        "remove_unused_columns": False,  # GRPO's only column, "place", is no argument of a network
        "learning_rate": config.lr,
        "lr_scheduler_type": "constant_with_warmup" if config.lr_schedule == "constant" else config.lr_schedule,
        "warmup_steps": config.warmup_steps,
        "weight_decay": config.weight_decay,
        "max_grad_norm": config.max_grad_norm,
        "use_cpu": device == "cpu",
        "bf16": bf16,
        "gradient_checkpointing": config.gradient_checkpointing,
        "seed": config.seed,
        "data_seed": config.seed,
        "save_steps": config.save_every,
        "save_total_limit": 1,
        "logging_steps": 1,
        "disable_tqdm": True,
        "report_to": list(config.report_to) or "none",
        "dataloader_pin_memory": False,
        "use_cache": True,  # else the trained model's configuration would turn its KV cache off
    }


def grpo_arguments(config: OptimConfig, plan: Plan, out: Path, *, with_reference: bool = False) -> GRPOConfig:
    """TRL's arguments for this plan, for one of the processes.

    One generation gives the rollouts of one step of the plan. Each process gets whole groups, in the plan's order.
    `with_reference`: the trainer needs a reference model even if the loss has no KL term.
    """
    # Only a beta other than 0 makes TRL load (and shard) a reference model. The loss takes its beta from `config`.
    return GRPOConfig(
        **common_arguments(config, plan.steps * config.updates_per_rollout, out), **vllm_arguments(config),
        num_iterations=config.updates_per_rollout, num_generations=plan.group_size,
        per_device_train_batch_size=plan.groups_per_step // distributed.world_size() * plan.group_size,
        beta=config.beta or float(with_reference), loss_type=TRL_LOSS_TYPE, scale_rewards=config.scale_rewards,
        epsilon=config.clip_low, epsilon_high=config.clip_high,
        temperature=config.temperature, top_p=config.top_p, max_completion_length=config.max_new_tokens,
    )  # fmt: skip


def vllm_arguments(config: OptimConfig) -> dict[str, Any]:
    """TRL's arguments for rollouts by vLLM. TRL's importance sampling is off: train.importance_ratio_cap replaces it."""
    if not config.use_vllm:
        return {}
    return {
        "use_vllm": True,
        "vllm_mode": config.vllm_mode,
        "vllm_server_base_url": config.vllm_server_base_url,
        "vllm_server_host": config.vllm_server_host,
        "vllm_server_port": config.vllm_server_port,
        "vllm_gpu_memory_utilization": config.vllm_gpu_memory_utilization,
        "vllm_tensor_parallel_size": config.vllm_tensor_parallel_size,
        "vllm_max_model_length": config.max_prompt_tokens + config.max_new_tokens,
        "vllm_importance_sampling_correction": False,
    }
