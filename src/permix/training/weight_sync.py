"""Weights that lie spread over processes, made whole again: for the copy that generates, and for the model that is saved.

What touches a parameter that is shared out (a DTensor of FSDP2) is collective: every process must do it, in the same order.
"""

import copy
from typing import Any

import torch
from torch.distributed.tensor import DTensor


def inference_copy(network: Any, dtype: torch.dtype, device: Any = None) -> Any:
    """A frozen twin without values yet, its weights in `dtype`; buffers stay as they are: bfloat16 would spoil rotary ones.

    Make it before the network is shared out, while its parameters still have their whole shapes.
    """
    blank = {
        id(one): torch.nn.Parameter(torch.empty_like(one, dtype=dtype, device=device), requires_grad=False)
        for one in network.parameters()
    }
    twin = copy.deepcopy(network, blank).eval()
    # TRL puts a function in place of `forward` that holds on to the first network: the twin would run that one's weights.
    # accelerate keeps what it finds there beside its own.
    for name in ("forward", "_original_forward"):
        vars(twin).pop(name, None)
    return twin if device is None else twin.to(device)


@torch.no_grad()
def sync_weights(target: Any, source: Any, *, include_frozen: bool) -> None:
    """Copy the trained weights into the twin; those that are not trained change once, with `include_frozen`."""
    for ours, theirs in zip(target.parameters(), source.parameters(), strict=True):
        if include_frozen or theirs.requires_grad:
            ours.copy_(full_tensor(theirs))


def full_tensor(parameter: torch.Tensor) -> torch.Tensor:
    return parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
