"""Draws follow the distribution, row by row, to its very ends."""

import pytest
import torch

from permix.errors import PermixError
from permix.inference.sampler import SeededSampler, _inverse_cdf_sample, sample_top_p
from permix.types import Sampling


@pytest.mark.slow
def test_draws_follow_the_distribution() -> None:
    probs_V = torch.softmax(torch.linspace(-2, 2, 600), dim=0)
    count = 100_000
    uniform_B = torch.rand(count, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    drawn_B = torch.cat([sample_top_p(probs_V.expand(len(part), -1), part, 1.0) for part in torch.chunk(uniform_B, 5)])
    expected_V = count * probs_V.double()
    chi_square = float(((torch.bincount(drawn_B, minlength=600) - expected_V) ** 2 / expected_V).sum())
    assert chi_square == pytest.approx(599, abs=5 * (2 * 599) ** 0.5), "mean and standard deviation of chi-square: 599, 34.6"


def test_draw_keeps_the_nucleus_worked_by_hand() -> None:
    # Sorted .5 .3 .15 .05: up to .79 only .5 falls short of the rest, so tokens 2 and 0 stay, as 5/8 and 3/8.
    probs_B_V = torch.tensor([[0.3, 0.05, 0.5, 0.15]]).expand(4, -1)
    uniform_B = torch.tensor([0.0, 0.624, 0.626, 0.999], dtype=torch.float64)
    assert sample_top_p(probs_B_V, uniform_B, 0.79).tolist() == [2, 2, 0, 0]
    assert sample_top_p(probs_B_V, uniform_B, 0.51).tolist() == [2, 2, 0, 0]
    assert sample_top_p(probs_B_V, uniform_B, 0.49).tolist() == [2, 2, 2, 2]
    assert sample_top_p(probs_B_V, uniform_B, 0.01).tolist() == [2, 2, 2, 2], "the likeliest token always stays"
    assert sample_top_p(probs_B_V, torch.tensor([0.0, 0.299, 0.301, 0.999], dtype=torch.float64), 1.0).tolist() == [0, 0, 1, 3]


ALMOST_ONE = 1 - 2.0**-53


@pytest.mark.parametrize("size", [1, 3, 255, 256, 257, 700])
def test_the_ends_of_the_distribution_are_its_first_and_last_token_of_any_mass(size: int) -> None:
    mass_B_V = torch.full((2, size), 0.1)
    ends_B = torch.tensor([0.0, ALMOST_ONE], dtype=torch.float64)
    assert _inverse_cdf_sample(mass_B_V, ends_B).tolist() == [0, size - 1]


def test_a_token_without_mass_is_never_drawn() -> None:
    mass_V = torch.zeros(1000)
    mass_V[[3, 255, 256, 700, 701]] = 0.2
    uniform_B = torch.tensor([0.0, 0.19, 0.2, 0.4, 0.6, 0.8, 0.81, ALMOST_ONE], dtype=torch.float64)
    assert set(_inverse_cdf_sample(mass_V.expand(8, -1), uniform_B).tolist()) == {3, 255, 256, 700, 701}
    many_B = torch.rand(5000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert set(_inverse_cdf_sample(mass_V.expand(5000, -1), many_B).tolist()) == {3, 255, 256, 700, 701}


def test_rounding_never_draws_past_the_last_token_of_any_mass() -> None:
    # Masses so unequal that a block's sum and its running sum differ in their last bits.
    mass_B_V = torch.softmax(10 * torch.randn(3000, 300, generator=torch.Generator().manual_seed(0)), dim=-1)
    mass_B_V[:, 290:] = 0
    drawn_B = _inverse_cdf_sample(mass_B_V, torch.full((3000,), ALMOST_ONE, dtype=torch.float64))
    assert int(drawn_B.max()) <= 289
    assert bool((mass_B_V.gather(1, drawn_B[:, None]) > 0).all())


def test_temperature_divides_the_logits() -> None:
    logits_N_V = torch.tensor([[2.0, 0.0]]).expand(4000, -1)
    for temperature, expected in ((1.0, 0.8808), (2.0, 0.7311), (0.5, 0.9820)):  # sigmoid(2 / temperature)
        drawer = SeededSampler(range(4000), Sampling(temperature=temperature, max_new_tokens=1))
        token_N, logp_N = drawer.sample(torch.arange(4000), torch.zeros(4000, dtype=torch.long), logits_N_V)
        assert float((token_N == 0).double().mean()) == pytest.approx(expected, abs=0.03)
        assert logp_N is not None
        assert float(logp_N[token_N == 0][0].exp()) == pytest.approx(expected, abs=1e-4)


def test_each_row_draws_from_its_own_stream_whoever_is_beside_it() -> None:
    drawer = SeededSampler([7, 8, 9], Sampling(temperature=1, max_new_tokens=5))
    logits_N_V = torch.zeros(3, 50)
    steps = [torch.full((3,), step) for step in range(5)]
    together = torch.stack([drawer.sample(torch.arange(3), step_N, logits_N_V).token_N for step_N in steps])
    alone = torch.stack([drawer.sample(torch.tensor([1]), step_N[:1], logits_N_V[:1]).token_N for step_N in steps])
    assert torch.equal(together[:, 1:2], alone)
    apart_N = drawer.sample(torch.tensor([2, 0]), torch.tensor([4, 1]), logits_N_V[:2]).token_N
    assert apart_N.tolist() == [together[4, 2], together[1, 0]], "rows need not be at the same step"
    assert len(set(together.flatten().tolist())) > 5


def test_greedy_takes_the_likeliest_and_has_no_log_probability() -> None:
    picked = SeededSampler([0], Sampling()).sample(torch.tensor([0]), torch.tensor([0]), torch.tensor([[0.0, 3.0, 1.0]]))
    assert picked.token_N.tolist() == [1]
    assert picked.logprob_N is None


def test_the_log_probability_is_that_before_the_nucleus_is_cut() -> None:
    probs_N_V = torch.tensor([[0.3, 0.05, 0.5, 0.15]])
    drawer = SeededSampler([0], Sampling(temperature=1, top_p=0.01))
    picked = drawer.sample(torch.tensor([0]), torch.tensor([0]), probs_N_V.log())
    assert picked.token_N.tolist() == [2]
    assert picked.logprob_N is not None
    assert float(picked.logprob_N.exp()) == pytest.approx(0.5)


@pytest.mark.parametrize("top_p", [1.0, 0.9])
def test_a_diverged_model_is_named_as_one(top_p: float) -> None:
    with pytest.raises(PermixError, match="diverged"):
        sample_top_p(torch.full((1, 300), torch.nan), torch.tensor([0.5], dtype=torch.float64), top_p)
