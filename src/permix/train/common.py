"""What TRL's trainers are told alike, whichever of them runs."""

import os
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from permix.config import TrainConfig
from permix.models.machine import pick_device, pick_dtype
from permix.train.clock import StepClock


def common_arguments(config: TrainConfig, steps: int, out: Path) -> dict[str, Any]:
    """Optimizer, precision, checkpoints and logs of `steps` optimizer steps on this machine; checkpoints go to `out`."""
    import torch

    device = pick_device()
    bf16 = pick_dtype(config.precision, device) == torch.bfloat16
    # transformers leaves its choice in the environment, where a later run of this process, or a child's, would find it.
    os.environ["ACCELERATE_MIXED_PRECISION"] = "bf16" if bf16 else "no"
    return {
        "output_dir": str(out),
        "max_steps": steps,
        "shuffle_dataset": False,
        "remove_unused_columns": False,
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
        "use_cache": True,  # else the trained model's configuration would say that it keeps none
    }


class ClockStarter(TrainerCallback):  # type: ignore[misc]
    """Keeps setting up and loading a checkpoint out of the first step's time."""

    def __init__(self, clock: StepClock) -> None:
        self._clock = clock

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._clock.restart()
