"""The weights that are trained: read, given adapters, seeded, and written as a model folder.

The rollouts that a checkpoint was written in the midst of: with `train.updates_per_rollout` > 1 one generation serves
several steps.

Every process leaves its own in the checkpoint, as `permix_rollouts-RANK-of-COUNT.pt`, also when there are none to keep; so a
checkpoint says how many processes wrote it. Only as many can go on from it: another number would add gradients in another order,
and its result would be neither run's.

Which checkpoint a run goes on from.
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
    import torch

    torch.save([asdict(sample) for sample in samples], _rollouts_path(checkpoint, rank, world_size))


def load_rollouts(checkpoint: Path, rank: int, world_size: int) -> "list[Sample]":
    import torch

    from permix.training.rollouts import Sample

    return [Sample(**one) for one in torch.load(_rollouts_path(checkpoint, rank, world_size), weights_only=True)]


def _rollouts_path(checkpoint: Path, rank: int, world_size: int) -> Path:
    return checkpoint / f"permix_rollouts-{rank}-of-{world_size}.pt"


def check_world_size(checkpoint: Path, world_size: int) -> None:
    """Raise ConfigError when another number of processes wrote the checkpoint, DataError when a process's part is missing."""
    found = sorted(path.stem.rpartition("-")[2] for path in checkpoint.glob("permix_rollouts-*-of-*.pt"))
    others = [one for one in found if one != str(world_size)]
    if others:
        raise ConfigError(
            f"{checkpoint}: was written by {others[0]} processes, and this run has {world_size}; go on with {others[0]} "
            f"(torchrun --nproc_per_node {others[0]}), or begin anew in another folder"
        )
    if len(found) != world_size:
        raise DataError(
            f"{checkpoint}: holds the rollouts of {len(found)} of {world_size} processes; remove it, or begin in another folder"
        )


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was written to its end: its trainer_state.json, written last, is whole."""
    found = sorted(folder.glob("checkpoint-*"), key=_step_in_name, reverse=True)
    return next((path for path in found if _is_complete(path)), None)


def checkpoint_step(checkpoint: Path | None) -> int:
    """Optimizer steps that are done."""
    return _step_in_name(checkpoint) if checkpoint else 0


def _step_in_name(checkpoint: Path) -> int:
    return int(checkpoint.name.rsplit("-", 1)[1])


def _is_complete(checkpoint: Path) -> bool:
    try:
        return bool(read_json(checkpoint / "trainer_state.json")["global_step"] == _step_in_name(checkpoint))
    except (PermixError, KeyError):
        return False


def load_trainable_model(source: str) -> Any:
    """The weights to train, in float32. Where FSDP2 is going to share them out, only the main process has them until then."""
    import torch

    if detect_sharding() == "fsdp2" and not distributed.is_main():
        return load_empty_causal_lm(source, torch.float32).train()
    return load_causal_lm(source, torch.float32, "cpu" if has_sharded_weights() else pick_device()).train()


def seed_trainer(seed: int) -> None:
    """What the trainer draws as it is made (LoRA's first weights) depends on the seed alone, and is the same in every process."""
    import torch

    torch.manual_seed(seed)


def autocast_context(config: OptimConfig) -> Any:
    """The precision in which the trainer runs its forward passes."""
    import torch

    device = pick_device()
    dtype = pick_dtype(config.precision, device)
    return torch.autocast(device, dtype=dtype, enabled=dtype == torch.bfloat16)


def build_lora_config(config: OptimConfig) -> Any:
    """peft's configuration of adapters on every linear layer, or None."""
    if config.lora_rank == 0:
        return None
    from peft import LoraConfig

    return LoraConfig(r=config.lora_rank, lora_alpha=config.lora_alpha, target_modules="all-linear", task_type="CAUSAL_LM")


def save_model(
    trainer: Any, tokenizer: Any, config: OptimConfig, source: str, folder: Path, selected_weights: Path | None
) -> None:
    """Write a trainer's network, adapters merged, and the tokenizer into `folder`. Every process calls it; the main one writes.

    `source` is the model that training began with. `selected_weights`: weights that were kept while training, to be taken instead
    of the last ones.
    """
    network, state = _merged_model(trainer, config, source, selected_weights)
    if not distributed.is_main():
        return
    from safetensors import SafetensorError

    with guard_writes(folder, SafetensorError):
        network.save_pretrained(folder, state_dict=state)
        tokenizer.save_pretrained(folder)


def _merged_model(
    trainer: Any, config: OptimConfig, source: str, selected_weights: Path | None
) -> tuple[Any, dict[str, Any] | None]:
    """The trained network with its adapters merged, and its weights where it does not hold them itself: the main process's."""
    network, state = trainer.accelerator.unwrap_model(trainer.model), None
    if has_sharded_weights():
        state = trainer.accelerator.get_state_dict(trainer.model_wrapped)
        if not distributed.is_main():
            return None, None
        restore_weights(network, selected_weights, state)
        if hasattr(network, "merge_and_unload"):  # a part of a weight cannot be merged: put the whole ones into a new network
            from peft import get_peft_model

            network, whole = get_peft_model(load_trainable_model(source), build_lora_config(config)), state
            network.load_state_dict(whole, assign=True)
            network.get_base_model().tie_weights()
            state = None
    else:
        restore_weights(network, selected_weights)
    return (network.merge_and_unload() if hasattr(network, "merge_and_unload") else network), state


def save_weights(network: Any, path: Path) -> None:
    """What is trained of a network, as one file that is whole or not there. Every process calls it; the main one writes."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    from permix.training.weight_sync import full_tensor

    kept: dict[str, Any] = {}
    for name, one in network.named_parameters():
        if one.requires_grad:
            tensor = full_tensor(one.detach())
            kept |= {name: tensor.cpu().contiguous()} if distributed.is_main() else {}
    if distributed.is_main():
        with guard_writes(path, SafetensorError), replace_when_done(path) as scratch:
            save_file(kept, scratch)


def restore_weights(network: Any, path: Path | None, state: dict[str, Any] | None = None) -> None:
    """Give a network the weights that `save_weights` kept; or its `state`, where other processes hold parts of it.

    Raises DataError when they are gone. Without a path there is nothing to do.
    """
    if path is None:
        return
    import torch
    from safetensors.torch import load_file

    if not path.exists():
        raise DataError(f"{path}: the weights that the probes chose are gone; remove this run's checkpoints to train again")
    kept = load_file(path)
    names = {id(one): name for name, one in reversed(list(network.named_parameters()))}
    with torch.no_grad():
        for name, one in network.named_parameters(remove_duplicate=False):  # tied weights have several names
            if names[id(one)] not in kept:
                continue
            if state is None:
                one.copy_(kept[names[id(one)]])
            else:
                state[name] = kept[names[id(one)]]
