"""Loads the network that is trained, finds and completes checkpoints, and writes the trained model.

With `train.updates_per_rollout` > 1 a checkpoint may fall between two optimizer steps on the same rollouts, so it holds them.
Every process writes its own rollouts as `permix_rollouts-RANK-of-COUNT.pt`, even if there are none. The file names therefore say
how many processes wrote the checkpoint, and only the same number may resume from it: with another number, gradients would be
added in another order, and the result would match neither run.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from permix.config import OptimConfig
from permix.errors import ConfigError, DataError, PermixError
from permix.inference.hardware import pick_device, pick_dtype
from permix.inference.hf import load_causal_lm, load_empty_causal_lm
from permix.storage.files import guard_writes, read_json, replace_when_done
from permix.training import distributed
from permix.training.compatibility import detect_sharding, has_sharded_weights

if TYPE_CHECKING:
    from permix.training.rollouts import Sample


def save_rollouts(checkpoint: Path, samples: "Sequence[Sample]", rank: int, world_size: int) -> None:
    """Write this process's rollouts into the checkpoint."""
    import torch

    torch.save([asdict(sample) for sample in samples], _rollouts_path(checkpoint, rank, world_size))


def load_rollouts(checkpoint: Path, rank: int, world_size: int) -> "list[Sample]":
    """The rollouts that this process wrote into the checkpoint."""
    import torch

    from permix.training.rollouts import Sample

    return [Sample(**one) for one in torch.load(_rollouts_path(checkpoint, rank, world_size), weights_only=True)]


def _rollouts_path(checkpoint: Path, rank: int, world_size: int) -> Path:
    return checkpoint / f"permix_rollouts-{rank}-of-{world_size}.pt"


def check_world_size(checkpoint: Path, world_size: int) -> None:
    """Raise ConfigError if another number of processes wrote the checkpoint, DataError if a process's file is missing."""
    counts = sorted(path.stem.rpartition("-")[2] for path in checkpoint.glob("permix_rollouts-*-of-*.pt"))
    others = [one for one in counts if one != str(world_size)]
    if others:
        raise ConfigError(
            f"{checkpoint}: was written by {others[0]} processes, and this run has {world_size}; continue with {others[0]} "
            f"(torchrun --nproc_per_node {others[0]}), or start a new run in another folder"
        )
    if len(counts) != world_size:
        raise DataError(
            f"{checkpoint}: holds the rollouts of {len(counts)} of {world_size} processes; remove it, or start in another folder"
        )


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint, or None. A checkpoint is complete if trainer_state.json, its last file, can be read."""
    newest_first = sorted(folder.glob("checkpoint-*"), key=_step_in_name, reverse=True)
    return next((path for path in newest_first if _is_complete(path)), None)


def checkpoint_step(checkpoint: Path | None) -> int:
    """Number of optimizer steps that the checkpoint contains; 0 without one."""
    return _step_in_name(checkpoint) if checkpoint else 0


def _step_in_name(checkpoint: Path) -> int:
    return int(checkpoint.name.rsplit("-", 1)[1])


def _is_complete(checkpoint: Path) -> bool:
    try:
        return bool(read_json(checkpoint / "trainer_state.json")["global_step"] == _step_in_name(checkpoint))
    except (PermixError, KeyError):
        return False


def load_trainable_model(source: str) -> Any:
    """The network to train, in float32. Under FSDP2 only the main process reads the weights; the others get shards later."""
    import torch

    # float32 even if train.precision is bfloat16: bfloat16 weights would lose small updates. Autocast is for forward passes only.
    if detect_sharding() == "fsdp2" and not distributed.is_main():
        return load_empty_causal_lm(source, torch.float32).train()
    return load_causal_lm(source, torch.float32, "cpu" if has_sharded_weights() else pick_device()).train()


def seed_trainer(seed: int) -> None:
    """Seed torch's global generator. TRL draws LoRA's first weights before it seeds anything, and all processes need the same."""
    import torch

    torch.manual_seed(seed)


def autocast_context(config: OptimConfig) -> Any:
    """A context with the precision of the trainer's forward passes."""
    import torch

    device = pick_device()
    dtype = pick_dtype(config.precision, device)
    return torch.autocast(device, dtype=dtype, enabled=dtype == torch.bfloat16)


def build_lora_config(config: OptimConfig) -> Any:
    """peft's configuration of adapters on every linear layer; None without LoRA."""
    if config.lora_rank == 0:
        return None
    from peft import LoraConfig

    return LoraConfig(r=config.lora_rank, lora_alpha=config.lora_alpha, target_modules="all-linear", task_type="CAUSAL_LM")


def save_model(
    trainer: Any, tokenizer: Any, config: OptimConfig, source: str, folder: Path, selected_weights: Path | None
) -> None:
    """Write a trainer's network, adapters merged, and the tokenizer into `folder`. Every process calls it; the main one writes.

    `source` is the model that training began with. `selected_weights`: a file of `save_weights` that replaces the last weights.
    """
    network, state = _merged_model(trainer, config, source, selected_weights)
    if not distributed.is_main():
        return
    from safetensors import SafetensorError

    from permix.inference.generation import stop_at_end_of_turn

    stop_at_end_of_turn(network, tokenizer)  # adapters may have been merged into a newly loaded network
    with guard_writes(folder, SafetensorError):
        network.save_pretrained(folder, state_dict=state)
        tokenizer.save_pretrained(folder)


def _merged_model(
    trainer: Any, config: OptimConfig, source: str, selected_weights: Path | None
) -> tuple[Any, dict[str, Any] | None]:
    """The trained network with adapters merged. With sharded weights: and its state; (None, None) in other processes."""
    network, state = trainer.accelerator.unwrap_model(trainer.model), None
    if has_sharded_weights():
        state = trainer.accelerator.get_state_dict(trainer.model_wrapped)  # collective: before the other processes return
        if not distributed.is_main():
            return None, None
        restore_weights(network, selected_weights, state)
        if hasattr(network, "merge_and_unload"):  # shards cannot be merged: load the whole weights into a new network
            from peft import get_peft_model

            network, full_state = get_peft_model(load_trainable_model(source), build_lora_config(config)), state
            network.load_state_dict(full_state, assign=True)
            network.get_base_model().tie_weights()
            state = None
    else:
        restore_weights(network, selected_weights)
    return (network.merge_and_unload() if hasattr(network, "merge_and_unload") else network), state


def save_weights(network: Any, path: Path) -> None:
    """Write the trainable weights to one file, completely or not at all. Every process calls it; the main one writes."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    from permix.training.weight_sync import full_tensor

    kept: dict[str, Any] = {}
    for name, one in network.named_parameters():
        if one.requires_grad:
            tensor = full_tensor(one.detach())  # collective: all processes must call it, though one keeps the result
            kept |= {name: tensor.cpu().contiguous()} if distributed.is_main() else {}
    if distributed.is_main():
        with guard_writes(path, SafetensorError), replace_when_done(path) as scratch:
            save_file(kept, scratch)


def restore_weights(network: Any, path: Path | None, state: dict[str, Any] | None = None) -> None:
    """Copy the weights that `save_weights` wrote into the network, or into `state` if the network holds shards only.

    Does nothing if `path` is None. Raises DataError if the file is missing.
    """
    if path is None:
        return
    import torch
    from safetensors.torch import load_file

    if not path.exists():
        raise DataError(
            f"{path}: the weights that the dev evaluations chose are missing; remove this run's checkpoints to train again"
        )
    kept = load_file(path)
    names = {id(one): name for name, one in reversed(list(network.named_parameters()))}
    with torch.no_grad():
        # Tied weights have several names, and the file holds the first of them.
        for name, one in network.named_parameters(remove_duplicate=False):
            if names[id(one)] not in kept:
                continue
            if state is None:
                one.copy_(kept[names[id(one)]])
            else:
                state[name] = kept[names[id(one)]]
