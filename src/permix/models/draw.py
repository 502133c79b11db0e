"""Drawing tokens: each row from its own stream of uniform numbers, by inverting its distribution."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from permix.errors import PermixError
from permix.types import Sampling


class Drawer:
    """Picks the next token of each row: the likeliest at temperature 0, else by the row's own uniform numbers."""

    def __init__(self, seeds: Sequence[int], sampling: Sampling) -> None:
        self.sampling = sampling
        if sampling.temperature > 0:
            # NumPy's generators take all 63 bits of a seed; torch's on the CPU would keep 32.
            draws_B_T = np.stack([np.random.default_rng(seed).random(sampling.max_new_tokens) for seed in seeds])
            self.uniform_B_T = torch.from_numpy(draws_B_T)

    def pick(self, rows_N: torch.Tensor, step: int, logits_N_V: torch.Tensor) -> "Picked":
        """The `step`-th token of these rows, and its log-probability before the nucleus is cut."""
        if self.sampling.temperature == 0:
            return Picked(logits_N_V.argmax(-1), None)
        probs_N_V = torch.softmax(logits_N_V.float() / self.sampling.temperature, dim=-1)
        uniform_N = self.uniform_B_T[rows_N.cpu(), step].to(logits_N_V.device)
        token_N = draw(probs_N_V, uniform_N, self.sampling.top_p)
        return Picked(token_N, probs_N_V.gather(1, token_N[:, None])[:, 0].log())


class Picked(NamedTuple):
    """Tokens, and the log-probability of each at the sampling temperature (None where nothing was drawn)."""

    token_N: torch.Tensor
    logp_N: torch.Tensor | None


def draw(probs_B_V: torch.Tensor, uniform_B: torch.Tensor, top_p: float) -> torch.Tensor:
    """The token whose share of the (nucleus-cut) cumulative distribution each uniform number falls into; shape [B]."""
    if top_p >= 1:
        return _invert(probs_B_V, uniform_B)
    ordered_B_V, order_B_V = probs_B_V.sort(dim=-1, descending=True, stable=True)
    # A token stays when the mass before it is still short of top_p: the first one always does.
    before_B_V = ordered_B_V.cumsum(-1) - ordered_B_V
    rank_B = _invert(torch.where(before_B_V < top_p, ordered_B_V, 0.0), uniform_B)
    return order_B_V.gather(1, rank_B[:, None])[:, 0]


def _invert(mass_B_V: torch.Tensor, uniform_B: torch.Tensor) -> torch.Tensor:
    """Find each target first among blocks of the vocabulary, then inside its block: a running sum over all of it is slow."""
    short = -mass_B_V.shape[1] % BLOCK
    padded_B_V = torch.nn.functional.pad(mass_B_V, (0, short)) if short else mass_B_V
    blocks_B_N_K = padded_B_V.view(len(mass_B_V), -1, BLOCK)
    cumulative_B_N = blocks_B_N_K.sum(-1, dtype=torch.float64).cumsum(-1)
    if not bool((cumulative_B_N[:, -1] > 0).all()):
        raise PermixError("the model's probabilities are not numbers: its weights have diverged, or its precision is too low")
    target_B = uniform_B * cumulative_B_N[:, -1]
    block_B = _first_above(cumulative_B_N, target_B)
    row_B = torch.arange(len(block_B), device=block_B.device)
    before_B = torch.where(block_B > 0, cumulative_B_N[row_B, (block_B - 1).clamp(min=0)], 0.0)
    inside_B = _first_above(blocks_B_N_K[row_B, block_B].cumsum(-1, dtype=torch.float64), target_B - before_B)
    return block_B * BLOCK + inside_B


def _first_above(cumulative_B_N: torch.Tensor, target_B: torch.Tensor) -> torch.Tensor:
    """Index of the first running sum above the target; by rounding a target may reach the last one, which then it is.

    The last one that grew, that is: an entry of no mass, such as padding or a token cut from the nucleus, is never drawn.
    """
    place_B = torch.searchsorted(cumulative_B_N, target_B[:, None], right=True)[:, 0]
    last_B = torch.searchsorted(cumulative_B_N, cumulative_B_N[:, -1:].contiguous(), right=False)[:, 0]
    return torch.minimum(place_B, last_B)


BLOCK = 256
