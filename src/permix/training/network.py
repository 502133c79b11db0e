"""The network that is trained: loaded, copied for generation, and saved.

The weights may be sharded. Gathering a sharded parameter (a DTensor of FSDP2) is collective: every process must do it, in the
same order of parameters.
"""

import contextlib
import copy
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch.distributed.tensor import DTensor

from permix.config import OptimConfig
from permix.errors import DataError
from permix.inference.generation import stop_at_end_of_turn
from permix.inference.hardware import pick_device, pick_dtype
from permix.inference.hf import load_causal_lm, load_empty_causal_lm
from permix.storage.files import guard_writes, read_json, replace_when_done, write_json
from permix.training import distributed
from permix.training.compatibility import detect_sharding, has_sharded_weights


def load_trainable_model(source: str) -> Any:
    """The network to train, in float32. Under FSDP2 only the main process reads the weights; the others get shards later."""
    # float32 even if train.precision is bfloat16: bfloat16 weights would lose small updates. Autocast is for forward passes only.
    if detect_sharding() == "fsdp2" and not distributed.is_main():
        return load_empty_causal_lm(source, torch.float32).train()
    return load_causal_lm(source, torch.float32, "cpu" if has_sharded_weights() else pick_device()).train()


def seed_trainer(seed: int) -> None:
    """Seed torch's global generator. TRL draws LoRA's first weights before it seeds anything, and all processes need the same."""
    torch.manual_seed(seed)


def autocast_context(config: OptimConfig) -> Any:
    """A context with the precision of the trainer's forward passes."""
    device = pick_device()
    dtype = pick_dtype(config.precision, device)
    return torch.autocast(device, dtype=dtype, enabled=dtype == torch.bfloat16)


def build_lora_config(config: OptimConfig) -> Any:
    """peft's configuration of adapters on every linear layer; None without LoRA."""
    if config.lora_rank == 0:
        return None
    from peft import LoraConfig

    return LoraConfig(r=config.lora_rank, lora_alpha=config.lora_alpha, target_modules="all-linear", task_type="CAUSAL_LM")


def inference_copy(network: Any, dtype: torch.dtype, device: Any = None) -> Any:
    """A frozen copy of the network with uninitialised weights in `dtype`. `sync_weights` fills it.

    Make it before the network is sharded, while its parameters still have their whole shapes.
    """
    # Parameters only: buffers keep their precision, since rotary frequencies in bfloat16 would be too coarse.
    blank = {
        id(one): torch.nn.Parameter(torch.empty_like(one, dtype=dtype, device=device), requires_grad=False)
        for one in network.parameters()
    }
    frozen_copy = copy.deepcopy(network, blank).eval()
    # TRL replaces `forward` by a function bound to the first network, so the copy would run with that one's weights. accelerate
    # keeps the function that it wraps as `_original_forward`.
    for name in ("forward", "_original_forward"):
        vars(frozen_copy).pop(name, None)
    return frozen_copy if device is None else frozen_copy.to(device)


@torch.no_grad()
def sync_weights(target: Any, source: Any, *, include_frozen: bool) -> None:
    """Copy the weights of `source` into its `inference_copy`. Frozen weights never change: include them the first time only."""
    for ours, theirs in zip(target.parameters(), source.parameters(), strict=True):
        if include_frozen or theirs.requires_grad:
            # Gathered, since the copy runs alone: its processes generate for different numbers of passes.
            ours.copy_(full_tensor(theirs))


def full_tensor(parameter: torch.Tensor) -> torch.Tensor:
    """The whole parameter. Collective if it is sharded."""
    return parameter.full_tensor() if isinstance(parameter, DTensor) else parameter


def save_model(
    trainer: Any, tokenizer: Any, config: OptimConfig, source: str, folder: Path, selected_weights: Path | None
) -> None:
    """Write a trainer's network, adapters merged, and the tokenizer into `folder`. Every process calls it; the main one writes.

    `source` is the model that training began with. `selected_weights`: a file of `save_weights` that replaces the last weights.
    """
    network, state = _merged_model(trainer, config, source, selected_weights)
    if not distributed.is_main():
        return
    stop_at_end_of_turn(network, tokenizer)  # adapters may have been merged into a newly loaded network
    if config.save_dtype == "bfloat16":
        state = _cast_state(network.state_dict() if state is None else state, torch.bfloat16)
    with guard_writes(folder, SafetensorError):
        network.save_pretrained(folder, state_dict=state)
        tokenizer.save_pretrained(folder)
        if config.save_dtype != "float32":  # save_pretrained writes the dtype of the network, which was not cast
            write_json(folder / "config.json", read_json(folder / "config.json") | {"dtype": config.save_dtype})
        _make_readable(folder)


def _cast_state(state: Mapping[str, Any], dtype: Any) -> dict[str, Any]:
    """The floating-point tensors of a state in another format. Tied tensors stay one tensor, so that they are saved once."""
    cast: dict[tuple[int, tuple[int, ...]], Any] = {}
    return {
        name: cast.setdefault((value.data_ptr(), tuple(value.shape)), value.to(dtype)) if value.is_floating_point() else value
        for name, value in state.items()
    }


def _make_readable(folder: Path) -> None:
    """Give every file the permissions of a new file: safetensors writes files that only their owner may read."""
    mask = os.umask(0)
    os.umask(mask)
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(0o666 & ~mask)


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
    """Write the trainable weights and their hash to one file, whole or not at all. All processes call it; the main one writes."""
    kept: dict[str, Any] = {}
    for name, one in network.named_parameters():
        if one.requires_grad:
            tensor = full_tensor(one.detach())  # collective: all processes must call it, though one keeps the result
            kept |= {name: tensor.cpu().contiguous()} if distributed.is_main() else {}
    if distributed.is_main():
        with guard_writes(path, SafetensorError), replace_when_done(path) as scratch:
            safetensors.torch.save_file(kept, scratch, {"sha256": _tensors_sha256(kept)})


def load_weights(path: Path) -> dict[str, Any]:
    """The weights that `save_weights` wrote, by name. Raises DataError if the file is missing or damaged."""
    weights: dict[str, Any] = {}
    with contextlib.suppress(OSError, SafetensorError), safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
        if (file.metadata() or {}).get("sha256") == _tensors_sha256(tensors):
            weights = tensors
    if not weights:
        raise DataError(
            f"{path}: the weights that the dev evaluations chose are missing or damaged; restore the file, or remove this run's "
            "checkpoints to train again"
        )
    return weights


def _tensors_sha256(tensors: Mapping[str, Any]) -> str:
    sha = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        sha.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        sha.update(tensor.flatten().view(torch.uint8).numpy())
    return sha.hexdigest()


def restore_weights(network: Any, path: Path | None, state: dict[str, Any] | None = None) -> None:
    """Copy the weights that `save_weights` wrote into the network, or into `state` if the network holds shards only.

    Does nothing if `path` is None. Raises DataError if the file is missing or damaged.
    """
    if path is None:
        return
    kept = load_weights(path)
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
