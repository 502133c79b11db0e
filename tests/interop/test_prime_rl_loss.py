"""The loss for prime-rl's trainer: values by hand, and permix's own loss with one optimizer step on each batch."""

import math
from dataclasses import dataclass

import pytest
import torch

from permix.interop.prime_rl_loss import importance_weighted_loss
from permix.training.loss import clipped_token_losses, importance_weights


@dataclass
class LossInputs:
    """The fields of prime-rl's `LossInputs` that a loss of rewards reads."""

    trainer_logprobs: torch.Tensor
    inference_logprobs: torch.Tensor
    advantages: torch.Tensor
    loss_mask: torch.Tensor
    loss_weights: torch.Tensor | None = None
    ref_logprobs: torch.Tensor | None = None


def inputs(trainer: list[float], sampler: list[float], advantages: list[float], mask: list[bool]) -> LossInputs:
    """Probabilities of the tokens in the trainer and in the sampler."""
    return LossInputs(
        torch.tensor(trainer).log().requires_grad_(), torch.tensor(sampler).log(), torch.tensor(advantages), torch.tensor(mask)
    )


def test_the_loss_by_hand() -> None:
    given = inputs([0.5, 0.5, 0.5], [0.1, 0.25, 0.5], [1.0, 1.0, -1.0], [False, True, True])
    result = importance_weighted_loss(given, importance_ratio_cap=1.5)
    assert result.loss.item() == pytest.approx(-1.5 + 1.0)  # weights min(2, 1.5) and 1; the prompt's token is left out
    result.loss.backward()  # type: ignore[no-untyped-call]
    assert given.trainer_logprobs.grad is not None
    assert given.trainer_logprobs.grad.tolist() == pytest.approx([0.0, -1.5, 1.0])
    assert result.metrics["importance_weight"].item() == pytest.approx(1.25)
    assert result.metrics["importance_capped"].item() == pytest.approx(0.5)


def test_without_a_cap_every_weight_is_1() -> None:
    given = inputs([0.5, 0.5], [0.25, 0.5], [1.0, 1.0], [True, True])
    assert importance_weighted_loss(given).loss.item() == pytest.approx(-2.0)


def test_weights_of_tokens_scale_their_loss() -> None:
    given = inputs([0.5, 0.5], [0.5, 0.5], [1.0, 1.0], [True, True])
    given.loss_weights = torch.tensor([0.5, 2.0])
    assert importance_weighted_loss(given).loss.item() == pytest.approx(-2.5)


def test_what_stands_outside_the_mask_never_counts() -> None:
    """The sampler's log-probabilities of a prompt are padding; −∞ there must not become NaN."""
    given = inputs([0.5, 0.5], [0.0, 0.5], [0.0, 1.0], [False, True])
    result = importance_weighted_loss(given, importance_ratio_cap=None)
    result.loss.backward()  # type: ignore[no-untyped-call]
    assert given.trainer_logprobs.grad is not None
    assert (result.loss.item(), given.trainer_logprobs.grad.tolist()) == (-1.0, [0.0, -1.0])
    assert all(math.isfinite(one.item()) for one in result.metrics.values())


def test_a_sequence_without_a_token_to_learn_from_has_loss_0() -> None:
    result = importance_weighted_loss(inputs([0.5], [0.5], [1.0], [False]), importance_ratio_cap=2.0)
    assert (result.loss.item(), result.metrics["importance_weight"].item()) == (0.0, 0.0)


@pytest.mark.parametrize("cap", [None, 1.2, 2.0])
def test_it_is_permix_own_loss_with_one_step_on_each_batch(cap: float | None) -> None:
    random = torch.Generator().manual_seed(0)
    logp_N = torch.randn(50, generator=random).sub(2).requires_grad_()
    sampler_N = (logp_N + 0.5 * torch.randn(50, generator=random)).detach()
    advantage_N = torch.randn(50, generator=random)
    own = clipped_token_losses(
        logp_N, logp_N.detach(), advantage_N, clip_low=0.2, clip_high=0.2,
        importance_weight_N=None if cap is None else importance_weights(logp_N, sampler_N, cap),
    ).loss_N.sum()  # fmt: skip
    theirs = importance_weighted_loss(LossInputs(logp_N, sampler_N, advantage_N, torch.ones(50, dtype=torch.bool)), cap).loss
    assert theirs.item() == pytest.approx(own.item(), rel=1e-6)
    (own_grad,), (their_grad,) = torch.autograd.grad(own, logp_N), torch.autograd.grad(theirs, logp_N)
    torch.testing.assert_close(their_grad, own_grad, rtol=1e-6, atol=0)
