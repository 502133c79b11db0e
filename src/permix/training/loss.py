"""Policy losses: the loss of a step is a weighted sum over the completion tokens `N` of its rollouts.

Per token: −min(r A, clip(r) A) · w + β r (e^d − d − 1), where r = π(token) / π_old(token), A is the rollout's advantage,
w = min(π_old / π_sampler, cap) corrects for the numerical difference between the network that samples and the one that trains
(truncated importance sampling, Yao et al. 2025), and d = log π_ref − log π. The last term is the k3 estimate of the KL to the
reference (Schulman 2020), times r, so that its gradient is unbiased for the reverse KL (DeepSeek-V3.2, 2025; TRL's default).

A loss's `token_weights` average the tokens, under TRL's names: `grpo` (Shao et al. 2024) averages each rollout and then the
rollouts; `bnpo` and `dapo` (Yu et al. 2025) average all tokens; `dr_grpo` (Liu et al. 2025) divides by the longest length
allowed, so that a token's weight does not depend on its rollout's length. Weights come from counts of the whole step, so the sum
over its packs is the same however they are packed.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch


class TokenTerms(NamedTuple):
    """One number for each completion token; `kl_N` is None without a reference."""

    loss_N: torch.Tensor
    ratio_N: torch.Tensor
    clipped_N: torch.Tensor
    kl_N: torch.Tensor | None


def clipped_token_losses(
    logp_N: torch.Tensor,
    old_logp_N: torch.Tensor,
    advantage_N: torch.Tensor,
    *,
    clip_low: float,
    clip_high: float,
    sequence_N: torch.Tensor | None = None,
    importance_weight_N: torch.Tensor | None = None,
    ref_logp_N: torch.Tensor | None = None,
    beta: float = 0.0,
) -> TokenTerms:
    """The loss of the module docstring for each token; ignores `sequence_N`. Gradients flow through `logp_N` alone."""
    ratio_N = torch.exp(logp_N - old_logp_N)
    clamped_N = ratio_N.clamp(1 - clip_low, 1 + clip_high)
    loss_N = -torch.minimum(ratio_N * advantage_N, clamped_N * advantage_N)
    clipped_N = ((ratio_N < 1 - clip_low) & (advantage_N < 0)) | ((ratio_N > 1 + clip_high) & (advantage_N > 0))
    if importance_weight_N is not None:
        loss_N = loss_N * importance_weight_N
    if ref_logp_N is None:
        return TokenTerms(loss_N, ratio_N, clipped_N, None)
    kl_N = torch.exp(ref_logp_N - logp_N) - (ref_logp_N - logp_N) - 1
    return TokenTerms(loss_N + beta * ratio_N * kl_N, ratio_N, clipped_N, kl_N)


def importance_weights(old_logp_N: torch.Tensor, rollout_logp_N: torch.Tensor, cap: float) -> torch.Tensor:
    """min(π_old / π_sampler, cap) of each token, no gradient. A token whose π_sampler is unknown (NaN) has weight 1."""
    return torch.exp((old_logp_N - rollout_logp_N).detach().nan_to_num(nan=0.0)).clamp(max=cap)


class TokenWeights(Protocol):
    """The weight of one token of each rollout `B` of a pack."""

    def __call__(self, length_B: Sequence[int], *, n_rollouts: int, n_tokens: int, max_tokens: int) -> list[float]:
        """`length_B` are the completions' lengths in tokens. `n_rollouts` and `n_tokens` count the whole step, over all processes
        and rollouts without advantage too; `max_tokens` is the longest completion allowed."""


def mean_over_rollouts(length_B: Sequence[int], *, n_rollouts: int, n_tokens: int, max_tokens: int) -> list[float]:
    """The mean over rollouts of the mean over a rollout's tokens: weights 1 / (rollouts · length)."""
    return [1 / (n_rollouts * length) for length in length_B]


def mean_over_tokens(length_B: Sequence[int], *, n_rollouts: int, n_tokens: int, max_tokens: int) -> list[float]:
    """The mean over all tokens of the step: weights 1 / tokens."""
    return [1 / n_tokens] * len(length_B)


def mean_over_max_length(length_B: Sequence[int], *, n_rollouts: int, n_tokens: int, max_tokens: int) -> list[float]:
    """The sum over all tokens, divided by the most tokens that the step could have: weights 1 / (rollouts · max_tokens)."""
    return [1 / (n_rollouts * max_tokens)] * len(length_B)


class TokenLosses(Protocol):
    """The unweighted loss of each completion token `N` of a pack; gradients flow through `logp_N` alone.

    A pack holds whole rollouts. `sequence_N` numbers each token's rollout in the pack, from 0: a loss of whole sequences averages
    over the tokens of one number. Without a KL term, rollouts whose advantage is 0 are left out of the packs, so their
    loss must be 0.
    """

    def __call__(
        self,
        logp_N: torch.Tensor,
        old_logp_N: torch.Tensor,
        advantage_N: torch.Tensor,
        *,
        sequence_N: torch.Tensor,
        clip_low: float,
        clip_high: float,
        importance_weight_N: torch.Tensor | None,
        ref_logp_N: torch.Tensor | None,
        beta: float,
    ) -> TokenTerms: ...


class Loss(NamedTuple):
    """A policy loss: Σ weight · loss over the tokens of a step."""

    token_weights: TokenWeights
    token_losses: TokenLosses = clipped_token_losses


LOSSES: dict[str, Loss] = {
    "grpo": Loss(mean_over_rollouts),
    "dr_grpo": Loss(mean_over_max_length),
    "dapo": Loss(mean_over_tokens),
    "bnpo": Loss(mean_over_tokens),
}
"""Every loss that `train.loss` may name. A test compares the names with `permix.config.LossName`."""
