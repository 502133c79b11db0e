"""Whether a network can read a prompt once for many completions, and the passes that do.

`supports_shared_prefix` teaches a network's attention the layouts of `permix.inference.prefix_attention` and believes it
only after a trial: the
log-probabilities of a few made-up completions must be those of the network as it was, in one pass and token by token. What cannot
do it (recurrent layers, soft-capped scores, attention sinks, attention of its own) goes the plain way.
"""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, pairwise, takewhile
from operator import eq
from typing import Any, NamedTuple, Protocol

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from permix.inference.prefix_attention import DecodeStep, PrefillPass, PrefixKVCache, PrefixTree, TrainingPass

SHARED_PREFIX_ATTENTION = "permix_shared_prompts"

DEFAULT_ATTENTION = "sdpa"

IGNORED_ATTENTION_KWARGS = {
    "is_causal",
    "position_ids",
    "cache_position",
    "use_cache",
    "output_attentions",
    "output_hidden_states",
    "return_dict",
}
"""What models pass to attention that changes nothing here. Anything else that is set is refused."""


MAX_PREFILL_TOKENS = 8192
"""Tokens of prompts in one forward pass that only reads."""

MAX_PROMPTS_PER_PREFIX = 128
"""Prompts at most whose common beginning is read once."""


class UnsupportedAttentionError(Exception):
    """The network's attention is given something that shared prompts do not know."""


class PromptGroup(NamedTuple):
    """A prompt and completions of it, as token ids."""

    prompt: Sequence[int]
    completions: Sequence[Sequence[int]]

    @property
    def forward_tokens(self) -> int:
        """Tokens that a forward pass reads."""
        return len(self.prompt) + sum(len(one) - 1 for one in self.completions)


class AttentionLayout(Protocol):
    """Who sees whom in one pass."""

    def attend(
        self, layer: int, query_N_H_D: torch.Tensor, key_N_K_D: torch.Tensor, value_N_K_D: torch.Tensor, *,
        scale: float | None, window: int | None, dropout: float,
    ) -> torch.Tensor: ...  # fmt: skip


def shared_prefix_attention(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: Any, *,
    scaling: float | None = None, sliding_window: int | None = None, dropout: float = 0.0, layout: AttentionLayout | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:  # fmt: skip
    """transformers' attention interface: [1, heads, N, size] in, [1, N, heads, size] out; without seats, the ordinary one."""
    if layout is None:
        if sliding_window is not None:
            kwargs["sliding_window"] = sliding_window
        mixed, _ = sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs)
        return mixed, None
    unknown = [name for name, value in kwargs.items() if value is not None and name not in IGNORED_ATTENTION_KWARGS]
    if unknown:
        raise UnsupportedAttentionError(f"attention is given {', '.join(unknown)}")
    by_token = [each[0].transpose(0, 1) for each in (query, key, value)]
    return layout.attend(module.layer_idx, *by_token, scale=scaling, window=sliding_window, dropout=dropout)[None], None


AttentionInterface.register(SHARED_PREFIX_ATTENTION, shared_prefix_attention)

AttentionMaskInterface.register(SHARED_PREFIX_ATTENTION, sdpa_mask)


def forward_packed(
    network: Any, token_N: torch.Tensor, position_N: torch.Tensor, logit_position_M: torch.Tensor, layout: AttentionLayout
) -> torch.Tensor:
    """Logits [M, V] at the scored places of one flat row of tokens."""
    # A mask of four dimensions is taken as it is, so none is built; the seats decide instead.
    mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=token_N.device)
    out = network(
        input_ids=token_N[None],
        position_ids=position_N[None],
        attention_mask=mask,
        use_cache=False,
        logits_to_keep=logit_position_M,
        layout=layout,
    )
    # Not [0]: its backward pass would fill a tensor of that size with zeros first.
    logits: torch.Tensor = out.logits.squeeze(0)
    return logits


def prefill(network: Any, prompts: Sequence[Sequence[int]], prompt_indices: Sequence[int]) -> tuple[PrefixKVCache, torch.Tensor]:
    """Read each prompt once, and what neighbours begin with alike once for all of them.

    Returns what was kept of them, and the logits [P, V] of what follows each. Sorted prompts are the cheapest to read.
    """
    device = network.device
    store = PrefixKVCache([len(prompt) for prompt in prompts], prompt_indices, device)
    logits = []
    for part in _split_by_budget([len(prompt) for prompt in prompts], MAX_PREFILL_TOKENS):
        tokens, stems, rests, at = list[int](), list[int](), list[list[int]](), part.start
        for count, stem in split_by_common_prefix(prompts[part]):
            own = prompts[at : at + count]
            tokens += own[0][:stem]
            tokens += chain.from_iterable(prompt[stem:] for prompt in own)
            stems.append(stem)
            rests.append([len(prompt) - stem for prompt in own] if count > 1 else [])
            at += count
        tree = PrefixTree(stems, rests, device)
        last_P = tree.root_to_leaf.index_R_T.gather(1, tree.root_to_leaf.valid_R_T.sum(1, keepdim=True) - 1)[:, 0]
        token_N = torch.tensor(tokens, device=device)
        logits.append(forward_packed(network, token_N, tree.position_N, last_P, PrefillPass(tree, store, part)))
    return store, torch.cat(logits)


def split_by_common_prefix(prompts: Sequence[Sequence[int]]) -> list[tuple[int, int]]:
    """Cut prompts (distinct, in this order) into runs of neighbours so that the fewest tokens are read.

    A run is told by (how many prompts, how many tokens they begin with alike), one by itself by (1, its length). It has at most
    `MAX_PROMPTS_PER_PREFIX` prompts.
    """
    lengths = [len(prompt) for prompt in prompts]
    # Each keeps a token of its own: there the next one is predicted.
    alike = [min(_common_prefix_length(one, two), len(one) - 1, len(two) - 1) for one, two in pairwise(prompts)]
    spared, start = [0], [0]  # of the first so many prompts: the most tokens spared, and where their last run begins
    for end in range(1, len(prompts) + 1):
        best, first, stem = spared[end - 1], end - 1, lengths[end - 1]
        for begin in range(end - 2, max(end - 1 - MAX_PROMPTS_PER_PREFIX, -1), -1):
            stem = min(stem, alike[begin])
            found = spared[begin] + (end - begin - 1) * stem
            if found > best:
                best, first = found, begin
        spared.append(best)
        start.append(first)
    runs, end = list[tuple[int, int]](), len(prompts)
    while end:
        begin = start[end]
        runs.append((end - begin, min(alike[begin : end - 1], default=lengths[begin])))
        end = begin
    return runs[::-1]


def _common_prefix_length(one: Sequence[int], two: Sequence[int]) -> int:
    return sum(1 for _ in takewhile(bool, map(eq, one, two)))


def _split_by_budget(costs: Sequence[int], budget: int) -> Iterator[slice]:
    """Consecutive runs whose costs add up to the budget or less; one that is over it stands alone."""
    start = spent = 0
    for place, cost in enumerate(costs):
        if place > start and spent + cost > budget:
            yield slice(start, place)
            start, spent = place, 0
        spent += cost
    yield slice(start, len(costs))


def decode_step(network: Any, kv_cache: PrefixKVCache, rows_N: torch.Tensor, token_N: torch.Tensor, step: int) -> torch.Tensor:
    """Give each of these rows one more token, the `step`-th of its completion; returns the logits [N, V] of what follows."""
    seats = DecodeStep(kv_cache, rows_N, step)
    return forward_packed(network, token_N, seats.position_N, torch.arange(len(rows_N), device=rows_N.device), seats)


class PackedGroups(NamedTuple):
    """Families laid out for one pass. `N` runs over the tokens of all completions, in order."""

    tree: PrefixTree
    token_L: torch.Tensor
    logit_position_M: torch.Tensor
    logit_row_N: torch.Tensor
    """Which of the scored places each completion token is predicted at."""
    target_N: torch.Tensor

    @classmethod
    def pack(cls, groups: Sequence[PromptGroup], device: Any) -> "PackedGroups":
        tokens, scored, source, target = list[int](), list[int](), list[int](), list[int]()
        for family in groups:
            tokens += family.prompt
            root = len(scored)
            scored.append(len(tokens) - 1)
            for completion in family.completions:
                read = completion[:-1]
                source += [root, *range(len(scored), len(scored) + len(read))]
                scored += range(len(tokens), len(tokens) + len(read))
                tokens += read
                target += completion
        read_lengths = [[len(completion) - 1 for completion in family.completions] for family in groups]
        tree = PrefixTree([len(family.prompt) for family in groups], read_lengths, device)
        return cls(tree, *(torch.tensor(each, device=device) for each in (tokens, scored, source, target)))


def completion_logits(network: Any, packed: PackedGroups) -> torch.Tensor:
    """Logits [M, V] at the places where the families' completions are predicted, with gradient where it is enabled."""
    return forward_packed(network, packed.token_L, packed.tree.position_N, packed.logit_position_M, TrainingPass(packed.tree))


def padded_logits(network: Any, groups: Sequence[PromptGroup], *, pad: int, device: Any) -> torch.Tensor:
    """Logits [N, V] of every completion token by the ordinary way: one left-padded row a completion."""
    rows = [[*family.prompt, *completion] for family in groups for completion in family.completions]
    lengths = [len(completion) for family in groups for completion in family.completions]
    width, keep = max(map(len, rows)), max(lengths)
    ids_B_T = torch.tensor([[pad] * (width - len(row)) + row for row in rows], device=device)
    mask_B_T = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
    out = network(input_ids=ids_B_T, attention_mask=mask_B_T, use_cache=False, logits_to_keep=keep + 1)
    real_B_T = torch.arange(keep, device=device) >= keep - torch.tensor(lengths, device=device)[:, None]
    logits: torch.Tensor = out.logits[:, -keep - 1 : -1][real_B_T]
    return logits


def supports_shared_prefix(network: Any) -> bool:
    """Make the network able to read prompts once, if it can be; whether it is."""
    if not hasattr(network, "shared_prefix_enabled"):
        network.shared_prefix_enabled = _enable_if_equivalent(network)
    return bool(network.shared_prefix_enabled)


def _enable_if_equivalent(network: Any) -> bool:
    if network.config._attn_implementation not in (DEFAULT_ATTENTION, SHARED_PREFIX_ATTENTION):
        return False
    network.set_attn_implementation(DEFAULT_ATTENTION)
    with torch.no_grad(), eval_mode(network):
        families = _trial_groups(network.config.get_text_config().vocab_size)
        plain = padded_logits(network, families, pad=0, device=network.device)
        network.set_attn_implementation(SHARED_PREFIX_ATTENTION)
        try:
            if _logits_match(plain, _packed_logits(network, families)) and _logits_match(
                plain, _decoded_logits(network, families)
            ):
                return True
        except (UnsupportedAttentionError, ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError):
            pass  # the network's code asked for something that a flat row does not have
        network.set_attn_implementation(DEFAULT_ATTENTION)
        return False


def _trial_groups(vocabulary: int) -> list[PromptGroup]:
    """Made-up prompts and completions of unlike lengths, over the whole vocabulary: a few ids alone may be control tokens.

    Two of the prompts begin alike.
    """
    rng = random.Random(0)

    def text(length: int) -> list[int]:
        return [rng.randrange(vocabulary) for _ in range(length)]

    first = text(9)
    return [
        PromptGroup(first, [text(4), text(2), text(1)]),
        PromptGroup([*first[:6], *text(2)], [text(3), text(4)]),
        PromptGroup(text(5), [text(2)]),
    ]


def _packed_logits(network: Any, groups: Sequence[PromptGroup]) -> torch.Tensor:
    branches = PackedGroups.pack(groups, network.device)
    return completion_logits(network, branches)[branches.logit_row_N]


def _decoded_logits(network: Any, groups: Sequence[PromptGroup]) -> torch.Tensor:
    """The same logits as decoding makes them: prompts first, then a token at a time, rows leaving as they end."""
    completions = [one for family in groups for one in family.completions]
    owners = [number for number, family in enumerate(groups) for _ in family.completions]
    store, logits_P_V = prefill(network, [family.prompt for family in groups], owners)
    rows = {row: [logits_P_V[owner]] for row, owner in enumerate(owners)}
    for step in range(max(map(len, completions)) - 1):
        live = [row for row, one in enumerate(completions) if len(one) > step + 1]
        tokens = torch.tensor([completions[row][step] for row in live], device=network.device)
        grown = decode_step(network, store, torch.tensor(live, device=network.device), tokens, step)
        for row, logits_V in zip(live, grown, strict=True):
            rows[row].append(logits_V)
    return torch.stack(list(chain.from_iterable(rows.values())))


def _logits_match(padded_N_V: torch.Tensor, other_N_V: torch.Tensor) -> bool:
    """Whether most tokens' logits differ by no more than their precision explains. A wrong layout moves them by their own size.

    Two paddings of the same row stand about 1e-5 of the logits' spread apart in float32, and up to 0.15 in bfloat16.
    """
    allowed = 1e-3 if padded_N_V.dtype == torch.float32 else 0.2
    off_N = (padded_N_V - other_N_V).float().square().mean(-1).sqrt()
    spread_N = (padded_N_V - padded_N_V.mean(-1, keepdim=True)).float().square().mean(-1).sqrt()
    return bool((off_N <= allowed * spread_N).float().mean() > 0.5)


@contextmanager
def eval_mode(network: Any) -> Iterator[None]:
    """In evaluation mode, and then as it was."""
    was = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(was)
