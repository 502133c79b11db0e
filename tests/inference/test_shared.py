"""Reading a prompt once for many completions: the same log-probabilities and the same gradients as one padded row each."""

import random
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model

from permix.inference.cpu_attention import MAX_SEGMENT_TOKENS, MAX_TILE_SCORES, build_tiles
from permix.inference.generation import token_logprobs
from permix.inference.prefix_attention import PrefixTree, TrainingPass
from permix.inference.shared_prefix import (
    SHARED_PREFIX_ATTENTION,
    PackedGroups,
    PromptGroup,
    UnsupportedAttentionError,
    completion_logits,
    padded_logits,
    shared_prefix_attention,
    split_by_common_prefix,
    supports_shared_prefix,
)
from tests.networks import NETWORKS, SHAPE


def families(seed: int = 0) -> list[PromptGroup]:
    """Prompts longer and shorter than a sliding window, completions of unlike lengths, one of a single token."""
    rng = random.Random(seed)

    def text(length: int) -> list[int]:
        return [rng.randrange(2, 322) for _ in range(length)]

    return [
        PromptGroup(text(17), [text(9), text(1), text(4)]),
        PromptGroup(text(3), [text(2), text(12)]),
        PromptGroup(text(8), [text(1)]),
    ]


def both(network: Any, plain_network: Any, temperature: float = 0.7) -> tuple[torch.Tensor, torch.Tensor, PackedGroups]:
    """Log-probabilities of the completions' tokens, prompts read once and plainly."""
    branches = PackedGroups.pack(families(), "cpu")
    ours = token_logprobs(completion_logits(network, branches), branches.logit_row_N, branches.target_N, temperature).logprob_N
    logits_N_V = padded_logits(plain_network, families(), pad=0, device="cpu")
    theirs = torch.log_softmax(logits_N_V / temperature, -1).gather(1, branches.target_N[:, None])[:, 0]
    return ours, theirs, branches


def gradient(network: Any, loss: torch.Tensor) -> torch.Tensor:
    network.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    return torch.cat([one.grad.flatten() for one in network.parameters() if one.grad is not None])


def compare(network: Any) -> None:
    ours, theirs, _ = both(network, network)
    assert float((ours - theirs).abs().max()) <= 1e-4
    weight_N = torch.linspace(-1, 1, len(ours))
    of_ours, of_theirs = gradient(network, (ours * weight_N).sum()), gradient(network, (theirs * weight_N).sum())
    assert len(of_ours) == len(of_theirs)
    assert float(of_theirs.norm()) > 0.1
    assert float((of_ours - of_theirs).norm() / of_theirs.norm()) <= 1e-4


@pytest.mark.parametrize("name", NETWORKS)
def test_log_probabilities_and_gradients_are_the_plain_ones(name: str) -> None:
    network = NETWORKS[name]().train()
    assert supports_shared_prefix(network)
    compare(network)


@pytest.mark.parametrize("name", NETWORKS)
def test_with_gradient_checkpointing_too(name: str) -> None:
    network = NETWORKS[name]().train()
    assert supports_shared_prefix(network)
    network.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    compare(network)


@pytest.mark.parametrize("name", NETWORKS)
def test_with_lora_too(name: str) -> None:
    network = NETWORKS[name]()
    assert supports_shared_prefix(network)
    torch.manual_seed(1)
    adapted = get_peft_model(network, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)).train()
    compare(adapted)


def test_a_window_hides_what_lies_beyond_it() -> None:
    """Sliding layers alone: the last completion token cannot depend on the prompt's first one."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    sliding = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 0}
    network = Qwen2ForCausalLM(Qwen2Config(**SHAPE, **sliding, num_hidden_layers=1)).eval()
    assert supports_shared_prefix(network)
    scores = []
    for first in (5, 6):
        branches = PackedGroups.pack([PromptGroup([first, 7, 8, 9], [[10, 11, 12]])], "cpu")
        scores.append(
            token_logprobs(completion_logits(network, branches), branches.logit_row_N, branches.target_N, 1.0).logprob_N
        )
    assert float((scores[0] - scores[1])[0].abs()) > 1e-3, "predicted at the prompt's last token, which sees four back"
    assert torch.equal(scores[0][1:], scores[1][1:])


def test_one_completion_cannot_see_another() -> None:
    network = NETWORKS["llama"]().eval()
    assert supports_shared_prefix(network)
    prompt, own = [5, 6, 7], [8, 9, 10]
    alone, beside = (
        token_logprobs(completion_logits(network, branches), branches.logit_row_N, branches.target_N, 1.0).logprob_N
        for branches in (PackedGroups.pack([PromptGroup(prompt, each)], "cpu") for each in ([own], [[11, 12], own]))
    )
    assert float((alone - beside[2:]).abs().max()) <= 1e-5


def _soft_capped() -> Any:
    from transformers import Gemma2Config, Gemma2ForCausalLM

    return Gemma2ForCausalLM(Gemma2Config(**SHAPE, num_hidden_layers=2, head_dim=16))


def _recurrent() -> Any:
    from transformers import MambaConfig, MambaForCausalLM

    return MambaForCausalLM(MambaConfig(vocab_size=322, hidden_size=32, num_hidden_layers=2, state_size=8))


@pytest.mark.parametrize("make", [_soft_capped, _recurrent])
def test_a_network_that_cannot_is_left_as_it_was(make: Any) -> None:
    network = make().eval()
    before = network.config._attn_implementation
    with torch.no_grad():
        said = network(torch.tensor([[5, 6, 7]])).logits
        assert not supports_shared_prefix(network)
        assert network.config._attn_implementation == before
        assert torch.equal(network(torch.tensor([[5, 6, 7]])).logits, said)


def test_attention_that_is_given_more_than_it_knows_refuses() -> None:
    query = torch.zeros(1, 2, 3, 4)
    with pytest.raises(UnsupportedAttentionError, match="softcap"):
        shared_prefix_attention(
            None, query, query, query, None, layout=TrainingPass(PrefixTree([3], [[]], "cpu")), softcap=50.0, position_ids=None
        )


def test_the_trial_sees_a_layout_that_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    right = PrefixTree._positions
    monkeypatch.setattr(PrefixTree, "_positions", lambda tree: right(tree).roll(1))
    assert not supports_shared_prefix(NETWORKS["llama"]().eval())


def test_what_is_installed_is_not_saved(tmp_path: Any) -> None:
    network = NETWORKS["llama"]()
    assert supports_shared_prefix(network)
    network.save_pretrained(tmp_path)
    assert SHARED_PREFIX_ATTENTION not in (tmp_path / "config.json").read_text()


@pytest.mark.parametrize(("lengths", "budget", "spans"), [
    ([3, 4, 5], 100, [(0, 3)]), ([3, 4, 5], 7, [(0, 2), (2, 3)]), ([9, 1, 9], 5, [(0, 1), (1, 2), (2, 3)]),
])  # fmt: skip
def test_prompts_are_read_in_runs_within_a_budget(lengths: list[int], budget: int, spans: list[tuple[int, int]]) -> None:
    from permix.inference.shared_prefix import _split_by_budget

    assert [(one.start, one.stop) for one in _split_by_budget(lengths, budget)] == spans


@pytest.mark.parametrize(("prompts", "runs"), [
    (["abc"], [(1, 3)]),
    (["abcx", "abcy", "abcz"], [(3, 3)]),
    (["abc", "abcd"], [(2, 2)]),  # the shorter one keeps a token of its own
    (["abcdx", "abcdy", "auvwx", "auvwy"], [(2, 4), (2, 4)]),  # 12 tokens; all four by their "a" would be 17
    (["abx", "aby", "acx", "acy", "adx", "ady"], [(2, 2), (2, 2), (2, 2)]),
    (["abx", "acx", "adx"], [(3, 1)]),
    (["abc", "xyz"], [(1, 3), (1, 3)]),
    (["abxxxx", "abyyyy", "abyyzz", "q"], [(1, 6), (2, 4), (1, 1)]),
])  # fmt: skip
def test_neighbours_are_grouped_so_that_the_fewest_tokens_are_read(prompts: list[str], runs: list[tuple[int, int]]) -> None:
    assert split_by_common_prefix([[ord(letter) for letter in prompt] for prompt in prompts]) == runs


@given(st.lists(st.text("ab", min_size=1, max_size=5), min_size=1, max_size=7, unique=True))
def test_no_other_grouping_reads_fewer(texts: list[str]) -> None:
    prompts = [[ord(letter) for letter in text] for text in sorted(texts)]

    def cost(own: list[list[int]]) -> int:
        if len(own) == 1:
            return len(own[0])
        stem = max(length for length in range(min(map(len, own))) if len({tuple(one[:length]) for one in own}) == 1)
        return stem + sum(len(one) - stem for one in own)

    def least(rest: list[list[int]]) -> int:
        return min((cost(rest[:n]) + least(rest[n:]) for n in range(1, len(rest) + 1)), default=0)

    runs, at, found = split_by_common_prefix(prompts), 0, 0
    for count, stem in runs:
        own = prompts[at : at + count]
        assert count == 1 or len({tuple(one[:stem]) for one in own}) == 1
        assert all(len(one) > stem for one in own) or count == 1
        found += cost(own)
        at += count
    assert at == len(prompts)
    assert found == least(prompts)


def test_a_run_has_so_many_neighbours_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("permix.inference.shared_prefix.MAX_PROMPTS_PER_PREFIX", 3)
    assert [count for count, _ in split_by_common_prefix([[7, 8, number] for number in range(7)])] in (
        [3, 3, 1],
        [1, 3, 3],
        [3, 1, 3],
    )


def test_a_long_prompt_or_completion_among_short_ones_costs_no_more_than_itself() -> None:
    """Padded to the longest, 25 rests of one beginning would have 225 million scores in a head."""
    prompts, branches = [40], [[60] * 24 + [3000, 0, 7]]
    found = build_tiles(prompts, branches, "cpu")
    sizes = [piece.n_segments * piece.segment_length * (piece.prefix_length + piece.segment_length) for piece in found]
    assert max(sizes) <= MAX_TILE_SCORES
    real = [piece.index_CS if piece.valid_CS is None else piece.index_CS[piece.valid_CS] for piece in found]
    assert sorted(torch.cat(real).tolist()) == list(range(40 + 24 * 60 + 3000 + 7))  # each token once
    assert sum(sizes) < 1.3 * (40 * 40 + 24 * 60 * 100 + 3000 * (3040 + MAX_SEGMENT_TOKENS) / 2 + 3000 * 40 + 7 * 47)


@pytest.mark.parametrize("window", [None, 5, 50])
def test_pieces_are_ordinary_attention(window: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers and gradients, with runs cut into stretches and prompts spread over pieces."""
    monkeypatch.setattr("permix.inference.cpu_attention.MAX_SEGMENT_TOKENS", 8)
    monkeypatch.setattr("permix.inference.cpu_attention.MAX_TILE_SCORES", 300)
    torch.manual_seed(0)
    tree = PrefixTree([19, 5, 3], [[4, 30, 9, 9, 0], [], [1]], "cpu")
    given = [torch.randn(tree.n_tokens, heads, 16, requires_grad=True) for heads in (6, 3, 3)]
    weight = torch.randn(tree.n_tokens, 6, 16)
    results = []
    for pieces in (tree.tiles, []):
        tree.tiles = pieces
        mixed = tree.attend(*given, scale=None, window=window, dropout=0.0)
        results.append([mixed, *torch.autograd.grad((mixed * weight).sum(), given)])
    assert len(results[0][0]) == tree.n_tokens
    for ours, theirs in zip(*results, strict=True):
        assert float((ours - theirs).abs().max()) <= 1e-5
