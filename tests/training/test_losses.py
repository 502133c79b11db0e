"""The loss token by token, worked by hand."""

import math
from functools import partial

import pytest
import torch

from permix.training.loss import importance_weights, token_losses, token_weights

losses = partial(token_losses, clip_low=0.2, clip_high=0.3)


def test_weights_of_the_four_averages_by_hand() -> None:
    # Two live rollouts of 2 and 4 tokens, in a step of 4 rollouts and 10 tokens, at most 5 tokens long.
    sizes = {"n_rollouts": 4, "n_tokens": 10, "max_tokens": 5}
    assert token_weights("grpo", [2, 4], **sizes) == [1 / 8, 1 / 16]
    assert token_weights("dapo", [2, 4], **sizes) == [1 / 10] * 2
    assert token_weights("bnpo", [2, 4], **sizes) == [1 / 10] * 2
    assert token_weights("dr_grpo", [2, 4], **sizes) == [1 / 20] * 2


def test_clipping_holds_back_what_has_gone_far_enough_and_nothing_else() -> None:
    # ratio, advantage -> loss = -min(r A, clip(r, .8, 1.3) A)
    cases = [(1.0, 2.0, -2.0), (1.5, 2.0, -2.6), (1.5, -2.0, 3.0), (0.5, 2.0, -1.0), (0.5, -2.0, 1.6), (1.25, 1.0, -1.25)]
    ratio, advantage, expected = (torch.tensor(column) for column in zip(*cases, strict=True))
    terms = losses(ratio.log(), torch.zeros(len(cases)), advantage)
    assert terms.loss_N.tolist() == pytest.approx(expected.tolist(), abs=1e-6)
    assert terms.clipped_N.tolist() == [False, True, False, False, True, False]
    assert terms.kl_N is None


def test_the_gradient_at_the_first_pass_is_minus_the_advantage() -> None:
    logp_N = torch.tensor([-1.0, -2.0], requires_grad=True)
    losses(logp_N, logp_N.detach(), torch.tensor([1.5, -0.5])).loss_N.sum().backward()  # type: ignore[no-untyped-call]
    assert logp_N.grad is not None
    assert logp_N.grad.tolist() == [-1.5, 0.5]


def test_the_correction_weighs_the_policy_term_and_leaves_the_kl() -> None:
    logp_N = torch.tensor([-1.0, -1.0])
    reference_N = torch.tensor([-1.0, -1.0 - math.log(2)])
    terms = losses(
        logp_N, logp_N, torch.tensor([1.0, 1.0]), importance_weight_N=torch.tensor([0.5, 2.0]), ref_logp_N=reference_N, beta=0.1
    )
    # k3 at d = -ln 2: 1/2 + ln 2 - 1.
    assert terms.kl_N is not None
    assert terms.kl_N.tolist() == pytest.approx([0.0, 0.193147], abs=1e-6)
    assert terms.loss_N.tolist() == pytest.approx([-0.5, -2.0 + 0.0193147], abs=1e-6)


def test_the_gradient_of_the_kl_term_is_that_of_the_reverse_kl() -> None:
    """Over all tokens, weighted by the policy: sum of p (d/dz) must be the exact gradient of KL(policy || reference)."""
    logits_V = torch.tensor([0.3, -0.5, 0.9], requires_grad=True)
    reference_V = torch.log_softmax(torch.tensor([0.0, 0.7, 0.2]), -1)
    logp_V = torch.log_softmax(logits_V, -1)
    terms = losses(logp_V, logp_V.detach(), torch.zeros(3), ref_logp_N=reference_V, beta=1.0)
    (estimated,) = torch.autograd.grad((logp_V.exp().detach() * terms.loss_N).sum(), logits_V, retain_graph=True)
    (exact,) = torch.autograd.grad((logp_V.exp() * (logp_V - reference_V)).sum(), logits_V)
    assert estimated.tolist() == pytest.approx(exact.tolist(), abs=1e-6)
    assert float(exact.norm()) > 0.1


def test_importance_is_the_ratio_up_to_the_cap_and_one_where_it_is_unknown() -> None:
    old_N = torch.log(torch.tensor([0.2, 0.2, 0.5, 0.3]))
    sampler_N = torch.log(torch.tensor([0.4, 0.05, 0.5, math.nan]))
    assert importance_weights(old_N, sampler_N, 2.0).tolist() == pytest.approx([0.5, 2.0, 1.0, 1.0], abs=1e-6)
