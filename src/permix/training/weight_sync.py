"""Gathers sharded weights: for the copy of the network that generates, and for the model that is saved.

Gathering a sharded parameter (a DTensor of FSDP2) is collective: every process must do it, in the same order of parameters.
"""

import copy
from typing import Any

import torch
from torch.distributed.tensor import DTensor


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
