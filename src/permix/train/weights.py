"""The weights that are trained: read, given adapters, seeded, and written as a model folder."""

import shutil
from pathlib import Path
from typing import Any

from permix.config import TrainConfig, TrainStage
from permix.errors import DataError
from permix.models.hf import load_skeleton, load_weights, resolve
from permix.models.machine import pick_device, pick_dtype
from permix.records import writing
from permix.tasks.overlap import Seen, write_seen
from permix.train import processes
from permix.train.card import write_card
from permix.train.fit import sharding, weights_are_spread
from permix.train.plan import Plan


def network_of(source: str) -> Any:
    """The weights to train, in float32. Where FSDP2 is going to share them out, only the main process has them until then."""
    import torch

    if sharding() == "fsdp2" and not processes.is_main():
        return load_skeleton(source, torch.float32).train()
    return load_weights(source, torch.float32, "cpu" if weights_are_spread() else pick_device()).train()


def seed_trainer(seed: int) -> None:
    """What the trainer draws as it is made (LoRA's first weights) depends on the seed alone, and is the same in every process."""
    import torch

    torch.manual_seed(seed)


def autocast(config: TrainConfig) -> Any:
    """The precision in which the trainer runs its forward passes."""
    import torch

    device = pick_device()
    dtype = pick_dtype(config.precision, device)
    return torch.autocast(device, dtype=dtype, enabled=dtype == torch.bfloat16)


def lora(config: TrainConfig) -> Any:
    """peft's configuration of adapters on every linear layer, or None."""
    if config.lora_rank == 0:
        return None
    from peft import LoraConfig

    return LoraConfig(r=config.lora_rank, lora_alpha=config.lora_alpha, target_modules="all-linear", task_type="CAUSAL_LM")


def write_model(
    trainer: Any, tokenizer: Any, plan: Plan, seen: Seen, config: TrainStage, out: Path, target: Path, chosen: Path | None
) -> None:
    """Write the model beside its final place, then move it there, so that a folder named `model` is always whole.

    `chosen`: weights that were kept while training, to be taken instead of the last ones.
    """
    network, state = _trained(trainer, config.train, resolve(config.model.name), chosen)
    if not processes.is_main():
        return
    from safetensors import SafetensorError

    scratch = target.with_name(".model.part")
    shutil.rmtree(scratch, ignore_errors=True)
    with writing(scratch, SafetensorError):
        network.save_pretrained(scratch, state_dict=state)
        tokenizer.save_pretrained(scratch)
        write_seen(scratch, seen)
        write_card(scratch, config, plan, out / "log.jsonl")
        scratch.rename(target)


def _trained(trainer: Any, config: TrainConfig, source: str, chosen: Path | None) -> tuple[Any, dict[str, Any] | None]:
    """The trained network with its adapters merged, and its weights where it does not hold them itself: the main process's."""
    network, state = trainer.accelerator.unwrap_model(trainer.model), None
    if weights_are_spread():
        state = trainer.accelerator.get_state_dict(trainer.model_wrapped)
        if not processes.is_main():
            return None, None
        put_back(network, chosen, state)
        if hasattr(network, "merge_and_unload"):  # a part of a weight cannot be merged: put the whole ones into a new network
            from peft import get_peft_model

            network, whole = get_peft_model(network_of(source), lora(config)), state
            network.load_state_dict(whole, assign=True)
            network.get_base_model().tie_weights()
            state = None
    else:
        put_back(network, chosen)
    return (network.merge_and_unload() if hasattr(network, "merge_and_unload") else network), state


def keep_weights(network: Any, path: Path) -> None:
    """What is trained of a network, as one file that is whole or not there. Every process calls it; the main one writes."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    from permix.train.sharded import whole

    kept: dict[str, Any] = {}
    for name, one in network.named_parameters():
        if one.requires_grad:
            tensor = whole(one.detach())
            kept |= {name: tensor.cpu().contiguous()} if processes.is_main() else {}
    if processes.is_main():
        scratch = path.with_name(f".{path.name}.part")
        with writing(path, SafetensorError):
            save_file(kept, scratch)
            scratch.replace(path)


def put_back(network: Any, path: Path | None, state: dict[str, Any] | None = None) -> None:
    """Give a network the weights that `keep_weights` kept; or its `state`, where other processes hold parts of it.

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
