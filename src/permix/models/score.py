"""Log-probabilities of chosen tokens, without ever holding a whole batch's distributions in float32."""

from typing import Any, NamedTuple

import torch

ROWS_AT_ONCE = 16
"""Few enough that a block of a large vocabulary stays in a CPU's cache."""


class Scores(NamedTuple):
    """Of each completion token: its log-probability, and the entropy (nats, no gradient) of what it was drawn from."""

    logp_N: torch.Tensor
    entropy_N: torch.Tensor


def score(logits_M_V: torch.Tensor, source_N: torch.Tensor, target_N: torch.Tensor, temperature: float) -> Scores:
    """Scores of the targets under softmax(logits[source] / temperature), in float32; several may share a source."""
    logp_N, entropy_M = _Score.apply(logits_M_V, source_N, target_N, temperature)  # type: ignore[no-untyped-call]
    return Scores(logp_N, entropy_M[source_N])


class _Score(torch.autograd.Function):
    """Works through the rows in blocks, and again in the backward pass: softmax is cheaper made twice than kept.

    d logp_n / d logits[m] = (one-hot of the target - softmax) / temperature where m is n's source, else 0.
    """

    @staticmethod
    def forward(
        ctx: Any, logits_M_V: torch.Tensor, source_N: torch.Tensor, target_N: torch.Tensor, temperature: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        norm_M = logits_M_V.new_empty(len(logits_M_V), dtype=torch.float32)
        entropy_M = torch.empty_like(norm_M)
        for rows in _blocks(logits_M_V):
            scaled = _scaled(logits_M_V[rows], temperature)
            highest = scaled.amax(-1, keepdim=True)
            below = scaled.sub_(highest)
            weight = below.exp()
            total = weight.sum(-1)
            norm_M[rows] = highest[:, 0] + total.log()
            # What is minus infinity has no weight and adds nothing.
            entropy_M[rows] = total.log() - weight.mul_(below).nan_to_num_(nan=0.0).sum(-1) / total
        chosen_N = logits_M_V[source_N, target_N].float() / temperature
        ctx.save_for_backward(logits_M_V, source_N, target_N, norm_M)
        ctx.temperature = temperature
        ctx.mark_non_differentiable(entropy_M)
        return chosen_N - norm_M[source_N], entropy_M

    @staticmethod
    def backward(ctx: Any, grad_N: torch.Tensor, _: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        logits_M_V, source_N, target_N, norm_M = ctx.saved_tensors
        grad_N = grad_N / ctx.temperature
        grad_M = torch.zeros_like(norm_M).index_add_(0, source_N, grad_N)
        out_M_V = torch.empty_like(logits_M_V)
        order_N = source_N.argsort()
        source_N, target_N, grad_N = source_N[order_N], target_N[order_N], grad_N[order_N]
        blocks = _blocks(logits_M_V)
        ends = torch.tensor([rows.stop for rows in blocks], device=source_N.device)
        start = 0
        for rows, end in zip(blocks, torch.searchsorted(source_N, ends).tolist(), strict=True):
            slope = _scaled(logits_M_V[rows], ctx.temperature).sub_(norm_M[rows, None]).exp_().mul_(-grad_M[rows, None])
            # Still in float32: at a likely token two nearly equal numbers cancel.
            slope.index_put_((source_N[start:end] - rows.start, target_N[start:end]), grad_N[start:end], accumulate=True)
            out_M_V[rows] = slope
            start = end
        return out_M_V, None, None, None


def _scaled(logits_M_V: torch.Tensor, temperature: float) -> torch.Tensor:
    """A copy in float32."""
    return logits_M_V.to(torch.float32, copy=True).div_(temperature)


def _blocks(logits_M_V: torch.Tensor) -> list[slice]:
    size = ROWS_AT_ONCE if logits_M_V.device.type == "cpu" else 8 * ROWS_AT_ONCE
    return [slice(start, start + size) for start in range(0, len(logits_M_V), size)]
