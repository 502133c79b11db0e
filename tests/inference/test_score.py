"""Log-probabilities in blocks: the numbers and gradients of a plain log-softmax."""

import pytest
import torch

from permix.inference.generation import LOGIT_ROWS_PER_BLOCK, token_logprobs


def test_entropy_and_log_probability_by_hand() -> None:
    # softmax of log(1, 1, 2) / 1 is (1/4, 1/4, 1/2): entropy 1.5 ln 2, log-probabilities -ln 4 and -ln 2.
    logits_M_V = torch.log(torch.tensor([[1.0, 1.0, 2.0]]))
    scores = token_logprobs(logits_M_V, torch.tensor([0, 0]), torch.tensor([0, 2]), 1.0)
    assert scores.logprob_N.tolist() == pytest.approx([-1.386294, -0.693147], abs=1e-5)
    assert scores.entropy_N.tolist() == pytest.approx([1.039721] * 2, abs=1e-5)
    # At temperature 1/2 the weights are squared: (1, 1, 4) / 6.
    assert token_logprobs(logits_M_V, torch.tensor([0]), torch.tensor([2]), 0.5).logprob_N.item() == pytest.approx(
        -0.405465, abs=1e-5
    )


@pytest.mark.parametrize("rows", [1, LOGIT_ROWS_PER_BLOCK, 2 * LOGIT_ROWS_PER_BLOCK + 3])
def test_numbers_and_gradients_are_those_of_log_softmax(rows: int) -> None:
    random = torch.Generator().manual_seed(0)
    logits_M_V = (5 * torch.randn(rows, 30, generator=random, dtype=torch.float64)).requires_grad_()
    source_N = torch.randint(0, rows, (2 * rows,), generator=random)
    target_N = torch.randint(0, 30, (2 * rows,), generator=random)
    source_N[:2], target_N[:2] = 0, 7  # the same token twice at one place adds up
    weight_N = torch.randn(2 * rows, generator=random)
    scores = token_logprobs(logits_M_V, source_N, target_N, 0.7)
    (found,) = torch.autograd.grad((scores.logprob_N * weight_N).sum(), logits_M_V)
    plain_M_V = torch.log_softmax(logits_M_V / 0.7, -1)
    logp_N = plain_M_V[source_N, target_N]
    (expected,) = torch.autograd.grad((logp_N * weight_N).sum(), logits_M_V)
    assert float((scores.logprob_N - logp_N).abs().max()) <= 1e-5
    assert float((found - expected).abs().max()) <= 5e-5
    entropy_M = -(plain_M_V.exp() * plain_M_V).sum(-1)
    assert float((scores.entropy_N - entropy_M[source_N]).abs().max()) <= 1e-5
    assert not scores.entropy_N.requires_grad


def test_a_token_that_cannot_be_has_no_part_in_the_entropy() -> None:
    scores = token_logprobs(torch.tensor([[0.0, 0.0, -torch.inf]]), torch.tensor([0]), torch.tensor([1]), 1.0)
    assert scores.entropy_N.item() == pytest.approx(0.693147, abs=1e-5)


@pytest.mark.parametrize("logit", [2.0, 5.0, 7.0, 12.0])
def test_in_bfloat16_only_the_result_is_rounded(logit: float) -> None:
    """A likely token's gradient is a small difference of two numbers near 1; rounded before, it would be 0 or twice itself."""
    rough_M_V = torch.zeros(40, 50)
    rough_M_V[:, 3] = logit
    rough_M_V = rough_M_V.bfloat16().requires_grad_()
    fine_M_V = rough_M_V.detach().float().requires_grad_()
    source_N, target_N = torch.arange(40).flip(0), torch.full((40,), 3)
    for logits_M_V in (rough_M_V, fine_M_V):
        token_logprobs(logits_M_V, source_N, target_N, 1.0).logprob_N.sum().backward()  # type: ignore[no-untyped-call]
    assert rough_M_V.grad is not None
    assert fine_M_V.grad is not None
    assert float(fine_M_V.grad[0, 3]) > 0
    assert torch.equal(rough_M_V.grad, fine_M_V.grad.bfloat16())
