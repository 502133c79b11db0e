"""Forward passes that read a prompt once for many completions, for the networks that can do so.

`supports_shared_prefix` gives a network an attention function that knows the layouts of `permix.inference.prefix_attention`, and
keeps it only if a trial succeeds: on made-up prompts, the logits of the completions must equal those of the network's own
attention, in one packed pass and decoded token by token. Networks that fail (recurrent layers, soft-capped scores, attention
sinks, attention code of their own) are left as they were, and callers pad one row per completion instead.

Axes: N tokens whose attention or logits are computed, L tokens of a packed row, M positions that need logits, P prompts,
V vocabulary, H and K query and key/value heads, D size of a head; B rows and T tokens of a padded batch.
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
"""Keyword arguments of models to attention that change nothing here. Any other that is not None is refused."""


MAX_PREFILL_TOKENS = 8192
"""Most prompt tokens of one prefill pass, counted before sharing; a longer prompt has a pass of its own."""

MAX_PROMPTS_PER_PREFIX = 128
"""Most prompts that share one reading of their common prefix."""


class UnsupportedAttentionError(Exception):
    """The network passes its attention an argument that shared prefixes do not support."""


class PromptGroup(NamedTuple):
    """A prompt and its completions, as token ids. A completion has at least one token."""

    prompt: Sequence[int]
    completions: Sequence[Sequence[int]]

    @property
    def forward_tokens(self) -> int:
        """Tokens that a packed pass reads: of a completion all but the last."""
        return len(self.prompt) + sum(len(one) - 1 for one in self.completions)


class AttentionLayout(Protocol):
    """Which token sees which in one pass; implemented by the three passes of `prefix_attention`."""

    def attend(
        self, layer: int, query_N_H_D: torch.Tensor, key_N_K_D: torch.Tensor, value_N_K_D: torch.Tensor, *,
        scale: float | None, window: int | None, dropout: float,
    ) -> torch.Tensor: ...  # fmt: skip


def shared_prefix_attention(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: Any, *,
    scaling: float | None = None, sliding_window: int | None = None, dropout: float = 0.0, layout: AttentionLayout | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:  # fmt: skip
    """transformers' attention interface: query [1, H, N, D], key and value [1, K, N, D] in, [1, N, H, D] out.

    Without a layout this is transformers' own SDPA attention, so the network still works in padded batches. Raises
    UnsupportedAttentionError when the model passes an argument that the layouts would ignore.
    """
    if layout is None:
        if sliding_window is not None:
            kwargs["sliding_window"] = sliding_window
        output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs)
        return output, None
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
    """Logits [M, V] at positions `logit_position_M` of one flat row of tokens."""
    # transformers takes a mask of four dimensions as it is and builds no N × N one. The layout decides; the mask is never read.
    mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=token_N.device)
    out = network(
        input_ids=token_N[None],
        position_ids=position_N[None],
        attention_mask=mask,
        use_cache=False,
        logits_to_keep=logit_position_M,
        layout=layout,
    )
    # Not logits[0]: the backward pass of indexing fills a tensor of the logits' size with zeros, that of squeeze does not.
    logits: torch.Tensor = out.logits.squeeze(0)
    return logits


def prefill(network: Any, prompts: Sequence[Sequence[int]], prompt_indices: Sequence[int]) -> tuple[PrefixKVCache, torch.Tensor]:
    """Read each prompt once, and a prefix that neighbouring prompts share once for all of them.

    `prompts` are distinct token ids; sorted ones share the most. `prompt_indices` gives the prompt of each completion to come,
    ascending. Returns the filled cache, and the logits [P, V] of each prompt's next token.
    """
    device = network.device
    kv_cache = PrefixKVCache([len(prompt) for prompt in prompts], prompt_indices, device)
    logits = []
    for part in _split_by_budget([len(prompt) for prompt in prompts], MAX_PREFILL_TOKENS):
        tokens, prefix_lengths, suffix_lengths, start = list[int](), list[int](), list[list[int]](), part.start
        for n_prompts, prefix_length in split_by_common_prefix(prompts[part]):
            group = prompts[start : start + n_prompts]
            tokens += group[0][:prefix_length]
            tokens += chain.from_iterable(prompt[prefix_length:] for prompt in group)
            prefix_lengths.append(prefix_length)
            suffix_lengths.append([len(prompt) - prefix_length for prompt in group] if n_prompts > 1 else [])
            start += n_prompts
        tree = PrefixTree(prefix_lengths, suffix_lengths, device)
        last_P = tree.root_to_leaf.index_R_T.gather(1, tree.root_to_leaf.valid_R_T.sum(1, keepdim=True) - 1)[:, 0]
        token_N = torch.tensor(tokens, device=device)
        logits.append(forward_packed(network, token_N, tree.position_N, last_P, PrefillPass(tree, kv_cache, part)))
    return kv_cache, torch.cat(logits)


def split_by_common_prefix(prompts: Sequence[Sequence[int]]) -> list[tuple[int, int]]:
    """Cut distinct prompts, in the order given, into runs of neighbours so that the fewest tokens are read.

    Returns (number of prompts, tokens of their common prefix) for each run, at most `MAX_PROMPTS_PER_PREFIX` prompts each; a
    prompt alone gives (1, its length). Exact, by dynamic programming over where the last run begins.
    """
    lengths = [len(prompt) for prompt in prompts]
    # A prompt that is a prefix of its neighbour still keeps its last token to itself: its next token is predicted there.
    common = [min(_common_prefix_length(one, two), len(one) - 1, len(two) - 1) for one, two in pairwise(prompts)]
    saved, last_start = [0], [0]  # for the first `end` prompts: the most tokens saved, and where the last run then begins
    for end in range(1, len(prompts) + 1):
        best, best_start, prefix_length = saved[end - 1], end - 1, lengths[end - 1]
        for start in range(end - 2, max(end - 1 - MAX_PROMPTS_PER_PREFIX, -1), -1):
            prefix_length = min(prefix_length, common[start])
            total = saved[start] + (end - start - 1) * prefix_length
            if total > best:
                best, best_start = total, start
        saved.append(best)
        last_start.append(best_start)
    runs, end = list[tuple[int, int]](), len(prompts)
    while end:
        start = last_start[end]
        runs.append((end - start, min(common[start : end - 1], default=lengths[start])))
        end = start
    return runs[::-1]


def _common_prefix_length(one: Sequence[int], two: Sequence[int]) -> int:
    return sum(1 for _ in takewhile(bool, map(eq, one, two)))


def _split_by_budget(costs: Sequence[int], budget: int) -> Iterator[slice]:
    """Consecutive slices whose costs add up to at most `budget`; an item that costs more has a slice of its own."""
    start = spent = 0
    for index, cost in enumerate(costs):
        if index > start and spent + cost > budget:
            yield slice(start, index)
            start, spent = index, 0
        spent += cost
    yield slice(start, len(costs))


def decode_step(network: Any, kv_cache: PrefixKVCache, rows_N: torch.Tensor, token_N: torch.Tensor) -> torch.Tensor:
    """Append a token to each of these completions; returns the logits [N, V] of the token after it.

    `rows_N` are row numbers of the cache, ascending.
    """
    layout = DecodeStep(kv_cache, rows_N)
    logits_N_V = forward_packed(network, token_N, layout.position_N, torch.arange(len(rows_N), device=rows_N.device), layout)
    kv_cache.extend_suffixes(rows_N)
    return logits_N_V


class PackedGroups(NamedTuple):
    """Prompt groups packed into one row of L tokens. N counts the tokens of all completions, in order.

    The logits of a completion's token are at the token before it: of the first one, at the prompt's last token, so all
    completions of a prompt share that row of logits.
    """

    tree: PrefixTree
    token_L: torch.Tensor
    logit_position_M: torch.Tensor
    """Positions in the packed row whose logits are needed."""
    logit_row_N: torch.Tensor
    """For each completion token, the row of the logits [M, V] that predicts it."""
    target_N: torch.Tensor
    """The completion tokens themselves."""

    @classmethod
    def pack(cls, groups: Sequence[PromptGroup], device: Any) -> "PackedGroups":
        tokens, logit_positions, logit_rows, targets = list[int](), list[int](), list[int](), list[int]()
        for group in groups:
            tokens += group.prompt
            prompt_row = len(logit_positions)
            logit_positions.append(len(tokens) - 1)
            for completion in group.completions:
                read = completion[:-1]
                logit_rows += [prompt_row, *range(len(logit_positions), len(logit_positions) + len(read))]
                logit_positions += range(len(tokens), len(tokens) + len(read))
                tokens += read
                targets += completion
        read_lengths = [[len(completion) - 1 for completion in group.completions] for group in groups]
        tree = PrefixTree([len(group.prompt) for group in groups], read_lengths, device)
        return cls(tree, *(torch.tensor(each, device=device) for each in (tokens, logit_positions, logit_rows, targets)))


def completion_logits(network: Any, packed: PackedGroups) -> torch.Tensor:
    """Logits [M, V] at `packed.logit_position_M`, with gradient where it is enabled."""
    return forward_packed(network, packed.token_L, packed.tree.position_N, packed.logit_position_M, TrainingPass(packed.tree))


def padded_logits(network: Any, groups: Sequence[PromptGroup], *, pad: int, device: Any) -> torch.Tensor:
    """Logits [N, V] of every completion token without sharing: one left-padded row per completion."""
    # Padded on the left, so that all completions end in the last column and `logits_to_keep` covers each of them.
    rows = [[*group.prompt, *completion] for group in groups for completion in group.completions]
    lengths = [len(completion) for group in groups for completion in group.completions]
    width, keep = max(map(len, rows)), max(lengths)
    ids_B_T = torch.tensor([[pad] * (width - len(row)) + row for row in rows], device=device)
    mask_B_T = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
    out = network(input_ids=ids_B_T, attention_mask=mask_B_T, use_cache=False, logits_to_keep=keep + 1)
    is_completion_B_T = torch.arange(keep, device=device) >= keep - torch.tensor(lengths, device=device)[:, None]
    logits: torch.Tensor = out.logits[:, -keep - 1 : -1][is_completion_B_T]  # a token is predicted one position before it
    return logits


def supports_shared_prefix(network: Any) -> bool:
    """Whether the network can share prefixes; the first call makes the trial and, if it succeeds, switches the attention over."""
    if not hasattr(network, "shared_prefix_enabled"):
        network.shared_prefix_enabled = _enable_if_equivalent(network)
    return bool(network.shared_prefix_enabled)


def _enable_if_equivalent(network: Any) -> bool:
    if network.config._attn_implementation not in (DEFAULT_ATTENTION, SHARED_PREFIX_ATTENTION):
        return False
    network.set_attn_implementation(DEFAULT_ATTENTION)
    with torch.no_grad(), eval_mode(network):
        groups = _trial_groups(network.config.get_text_config().vocab_size)
        reference_N_V = padded_logits(network, groups, pad=0, device=network.device)
        network.set_attn_implementation(SHARED_PREFIX_ATTENTION)
        try:
            if _logits_match(reference_N_V, _packed_logits(network, groups)) and _logits_match(
                reference_N_V, _decoded_logits(network, groups)
            ):
                return True
        except (UnsupportedAttentionError, ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError):
            pass  # a network's own code may need what a packed row lacks, such as a mask per sequence: then it is not supported
        network.set_attn_implementation(DEFAULT_ATTENTION)
        return False


def _trial_groups(vocabulary: int) -> list[PromptGroup]:
    """Made-up prompts and completions of different lengths; two of the prompts share a prefix.

    Token ids come from the whole vocabulary, since the lowest ids may all be control tokens.
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
    """Logits [N, V] of every completion token by one packed pass."""
    packed = PackedGroups.pack(groups, network.device)
    return completion_logits(network, packed)[packed.logit_row_N]


def _decoded_logits(network: Any, groups: Sequence[PromptGroup]) -> torch.Tensor:
    """Logits [N, V] of every completion token by decoding: prefill, then one token at a time; rows leave when they end."""
    completions = [completion for group in groups for completion in group.completions]
    prompt_indices = [index for index, group in enumerate(groups) for _ in group.completions]
    kv_cache, logits_P_V = prefill(network, [group.prompt for group in groups], prompt_indices)
    logits_by_row = {row: [logits_P_V[index]] for row, index in enumerate(prompt_indices)}
    for step in range(max(map(len, completions)) - 1):
        live = [row for row, completion in enumerate(completions) if len(completion) > step + 1]
        tokens = torch.tensor([completions[row][step] for row in live], device=network.device)
        logits_N_V = decode_step(network, kv_cache, torch.tensor(live, device=network.device), tokens)
        for row, logits_V in zip(live, logits_N_V, strict=True):
            logits_by_row[row].append(logits_V)
    return torch.stack(list(chain.from_iterable(logits_by_row.values())))


def _logits_match(padded_N_V: torch.Tensor, other_N_V: torch.Tensor) -> bool:
    """Whether most tokens' logits differ by no more than rounding explains; a wrong layout moves them by their own spread.

    For scale: two paddings of the same row differ by about 1e-5 of the logits' standard deviation in float32, and by up to 0.15
    of it in bfloat16.
    """
    allowed = 1e-3 if padded_N_V.dtype == torch.float32 else 0.2
    difference_N = (padded_N_V - other_N_V).float().square().mean(-1).sqrt()
    spread_N = (padded_N_V - padded_N_V.mean(-1, keepdim=True)).float().square().mean(-1).sqrt()
    return bool((difference_N <= allowed * spread_N).float().mean() > 0.5)


@contextmanager
def eval_mode(network: Any) -> Iterator[None]:
    """Evaluation mode inside the block; afterwards the mode that the network had."""
    was_training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(was_training)
