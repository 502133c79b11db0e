"""The policy loss of permix for prime-rl's trainer: `[trainer.loss] type = "custom"` in an exported rl.toml.

Per token: −r A w, where r = π / π.detach() has the value 1 and the gradient of log π, A is the rollout's advantage, and
w = min(π.detach() / π_sampler, cap). It is the loss of `permix.training.loss` with one optimizer step on each batch: the ratio is
then 1 and the clip never acts. prime-rl divides the sum over all packs by the number of tokens of the batch, as the losses dapo
and bnpo do. Its own default loss masks tokens and adds a penalty, which permix does not.

Axis: N tokens of one sequence, prompt included; the loss mask picks those of the completion. Needs torch.
"""

from typing import Any, NamedTuple

import torch


class SequenceLoss(NamedTuple):
    """What prime-rl reads of a loss: the sum over the sequence's tokens, and metrics as tensors of no axis."""

    loss: torch.Tensor
    metrics: dict[str, torch.Tensor]


def importance_weighted_loss(inputs: Any, importance_ratio_cap: float | None = None) -> SequenceLoss:
    """The loss of the module docstring. `inputs` are prime-rl's `LossInputs`; without a cap, w is 1.

    Metrics: the mean importance weight, and the share of tokens whose weight the cap bounds.
    """
    mask_N = inputs.loss_mask
    logp_N = inputs.trainer_logprobs
    # Outside the mask the sampler's log-probabilities are padding, whose ratio may be infinite: 0 · inf would be NaN.
    log_ratio_N = torch.where(mask_N, logp_N.detach() - inputs.inference_logprobs, 0.0)
    importance_N = torch.exp(log_ratio_N)
    weight_N = torch.ones_like(importance_N) if importance_ratio_cap is None else importance_N.clamp(max=importance_ratio_cap)
    loss_N = -torch.exp(logp_N - logp_N.detach()) * inputs.advantages * weight_N
    if inputs.loss_weights is not None:
        loss_N = loss_N * inputs.loss_weights
    n_tokens = mask_N.sum().clamp(min=1)
    return SequenceLoss(
        torch.where(mask_N, loss_N, 0.0).sum(),
        {
            "importance_weight": (weight_N * mask_N).sum() / n_tokens,
            "importance_capped": ((importance_N > weight_N) & mask_N).sum() / n_tokens,
        },
    )
