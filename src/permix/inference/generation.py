"""Sampling completions of token-id prompts, and log-probabilities of given completions.

A network that supports shared prefixes reads each prompt once, and completions leave the batch when they end. Any other network
goes through transformers' `generate`, one padded row per prompt, with the same random draws.

Each row has its own stream of uniform numbers and inverts its cumulative distribution, so its draws do not depend on the batch
that it is in. `token_logprobs` works in blocks of rows and never holds the float32 distributions of a whole batch.

Axes: B all rows of a batch, N the rows still growing (or, in `token_logprobs`, completion tokens), M rows of logits,
T tokens, V vocabulary; K entries of each of the vocabulary's N blocks in `_inverse_cdf_sample`.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import GenerationConfig, LogitsProcessorList

from permix.errors import PermixError
from permix.inference.chat_template import end_of_turn_ids, opened_thinking
from permix.inference.shared_prefix import decode_step, prefill, supports_shared_prefix
from permix.progress import print_status_once
from permix.thinking import closing_text, open_tag
from permix.types import Sampling


class SeededSampler:
    """Chooses the next token of each row: the likeliest at temperature 0, else by the row's own uniform numbers.

    A `budget` may put a token that closes the thinking in its place.
    """

    def __init__(self, seeds: Sequence[int], sampling: Sampling, budget: "ThinkingBudget | None" = None) -> None:
        self.sampling, self.budget = sampling, budget
        if sampling.temperature > 0:
            # NumPy's generators take all 63 bits of a seed; torch's on the CPU would keep 32.
            draws_B_T = np.stack([np.random.default_rng(seed).random(sampling.max_new_tokens) for seed in seeds])
            self.uniform_B_T = torch.from_numpy(draws_B_T)

    def sample(self, rows_N: torch.Tensor, step: int, logits_N_V: torch.Tensor) -> "SampledTokens":
        """The `step`-th token (from 0) of rows `rows_N`. Its log-probability is that of the whole distribution, before top-p."""
        if self.sampling.temperature == 0:
            return SampledTokens(self._within_budget(rows_N, logits_N_V.argmax(-1)), None)
        probs_N_V = torch.softmax(logits_N_V.float() / self.sampling.temperature, dim=-1)
        uniform_N = self.uniform_B_T[rows_N.cpu(), step].to(logits_N_V.device)
        token_N = self._within_budget(rows_N, sample_top_p(probs_N_V, uniform_N, self.sampling.top_p))
        return SampledTokens(token_N, probs_N_V.gather(1, token_N[:, None])[:, 0].log())

    def _within_budget(self, rows_N: torch.Tensor, token_N: torch.Tensor) -> torch.Tensor:
        if self.budget is None:
            return token_N
        tokens = [self.budget.next_token(*pair) for pair in zip(rows_N.tolist(), token_N.tolist(), strict=True)]
        return torch.tensor(tokens, device=token_N.device)


class ThinkingBudget:
    """Bounds the tokens of each row's thinking: the token after the last one allowed, and those after it, close the thinking.

    Tokens count from the tag that opens the thinking, or from the row's first one where the prompt holds the tag. A row whose
    thinking is closed by then is left alone; one that opens it again has it closed at once. `cut_rows` are the rows in which
    tokens were forced.
    """

    def __init__(self, limit: int, tokenizer: Any, rows: int, stops: frozenset[int]) -> None:
        self.cut_rows: set[int] = set()
        self._limit, self._tokenizer, self._stops = limit, tokenizer, stops
        self._decode_token = cache(lambda token: str(tokenizer.decode([token])))
        self._rows = [_BudgetedRow(opened_thinking(tokenizer).strip(), [], []) for _ in range(rows)]

    def next_token(self, row_index: int, sampled: int) -> int:
        """The token to append to a row: the sampled one, or a forced one."""
        row = self._rows[row_index]
        if row.token_ids and row.token_ids[-1] in self._stops:  # in a padded batch an ended row still draws
            return sampled
        if not row.forced and row.n_thinking >= self._limit and row.open_tag and self._open_tag_after(row, sampled):
            closing = closing_text(row.open_tag)
            row.forced = list(self._tokenizer(closing, add_special_tokens=False)["input_ids"])
            self.cut_rows.add(row_index)
        token = row.forced.pop(0) if row.forced else sampled
        row.n_thinking += bool(row.open_tag)
        row.open_tag = self._open_tag_after(row, token)
        row.token_ids.append(token)
        return token

    def _open_tag_after(self, row: "_BudgetedRow", token: int) -> str:
        if TAG_ENDS.isdisjoint(self._decode_token(token)):
            return row.open_tag
        return open_tag(self._tokenizer.decode([*row.token_ids[-LONGEST_TAG:], token]), row.open_tag)


@dataclass
class _BudgetedRow:
    """The tag of the thinking that is open, the tokens so far, the tokens to force next, and the number of thinking tokens."""

    open_tag: str
    token_ids: list[int]
    forced: list[int]
    n_thinking: int = 0


TAG_ENDS = frozenset(">]▷\ufffd")
"""The last characters of tags of thinking, and what a part of a character decodes to."""

LONGEST_TAG = 32
"""Most tokens before the last one in which a tag of thinking may begin."""


class SampledTokens(NamedTuple):
    """Tokens and the log-probability (nats) of each at the sampling temperature; None for greedy decoding."""

    token_N: torch.Tensor
    logprob_N: torch.Tensor | None


def sample_top_p(probs_B_V: torch.Tensor, uniform_B: torch.Tensor, top_p: float) -> torch.Tensor:
    """Token ids [B]: each uniform number in [0, 1) picks the token whose interval of the cumulative distribution it falls into.

    With `top_p` < 1 only the likeliest tokens that together reach `top_p` count (nucleus sampling). Raises PermixError where a
    row's probabilities are NaN or all 0.
    """
    if top_p >= 1:
        return _inverse_cdf_sample(probs_B_V, uniform_B)
    ordered_B_V, order_B_V = probs_B_V.sort(dim=-1, descending=True, stable=True)
    # A token stays where the mass before it is below top_p, so the likeliest token always stays.
    before_B_V = ordered_B_V.cumsum(-1) - ordered_B_V
    rank_B = _inverse_cdf_sample(torch.where(before_B_V < top_p, ordered_B_V, 0.0), uniform_B)
    return order_B_V.gather(1, rank_B[:, None])[:, 0]


def _inverse_cdf_sample(mass_B_V: torch.Tensor, uniform_B: torch.Tensor) -> torch.Tensor:
    """Two searches, over sums of blocks and then inside one block: a cumulative sum over the whole vocabulary is slow."""
    short = -mass_B_V.shape[1] % VOCAB_BLOCK_SIZE
    padded_B_V = torch.nn.functional.pad(mass_B_V, (0, short)) if short else mass_B_V
    blocks_B_N_K = padded_B_V.view(len(mass_B_V), -1, VOCAB_BLOCK_SIZE)
    cumulative_B_N = blocks_B_N_K.sum(-1, dtype=torch.float64).cumsum(-1)
    if not bool((cumulative_B_N[:, -1] > 0).all()):
        raise PermixError("the model's probabilities are not numbers: its weights have diverged, or its precision is too low")
    target_B = uniform_B * cumulative_B_N[:, -1]
    block_B = _first_above(cumulative_B_N, target_B)
    row_B = torch.arange(len(block_B), device=block_B.device)
    before_B = torch.where(block_B > 0, cumulative_B_N[row_B, (block_B - 1).clamp(min=0)], 0.0)
    inside_B = _first_above(blocks_B_N_K[row_B, block_B].cumsum(-1, dtype=torch.float64), target_B - before_B)
    return block_B * VOCAB_BLOCK_SIZE + inside_B


def _first_above(cumulative_B_N: torch.Tensor, target_B: torch.Tensor) -> torch.Tensor:
    """Index [B] of the first cumulative sum above the target, and at most the last entry that has mass.

    Rounding can lift a target to the last sum, and the entries behind it (padding, tokens cut by top-p) must never be drawn.
    """
    index_B = torch.searchsorted(cumulative_B_N, target_B[:, None], right=True)[:, 0]
    last_B = torch.searchsorted(cumulative_B_N, cumulative_B_N[:, -1:].contiguous(), right=False)[:, 0]
    return torch.minimum(index_B, last_B)


VOCAB_BLOCK_SIZE = 256
"""Tokens of a block in `_inverse_cdf_sample`."""


class CompletionTokens(NamedTuple):
    """A completion that ends with its stop token or has `max_new_tokens` tokens.

    `logprobs` are the tokens' log-probabilities (nats) at the sampling temperature; empty for greedy decoding. `thinking_cut`:
    some tokens were not sampled but forced, to close the thinking.
    """

    token_ids: list[int]
    logprobs: list[float]
    thinking_cut: bool = False


def generate_tokens(
    network: Any,
    tokenizer: Any,
    prompts: Sequence[list[int]],
    seeds: Sequence[int],
    sampling: Sampling,
    thinking_budget: int | None = None,
) -> list[CompletionTokens]:
    """Complete the prompts in one batch; results are in their order. `seeds` has one seed per prompt."""
    stops = frozenset(stop_token_ids(network, tokenizer))
    budget = None if thinking_budget is None else ThinkingBudget(thinking_budget, tokenizer, len(prompts), stops)
    sampler = SeededSampler(seeds, sampling, budget)
    generate = _generate_shared_prefix if supports_shared_prefix(network) else _generate_padded
    with torch.inference_mode():
        completions = generate(network, tokenizer, prompts, sampler, stops)
    cut_rows = set() if budget is None else budget.cut_rows
    return [one._replace(thinking_cut=row in cut_rows) for row, one in enumerate(completions)]


def stop_token_ids(network: Any, tokenizer: Any) -> list[int]:
    """Token ids that end a completion, ascending: those of the generation config, the tokenizer's own, and the end of a turn."""
    missing = _missing_stop_id(network, tokenizer)
    return sorted(_configured_stop_ids(network, tokenizer) | ({missing} if missing is not None else set()))


def _configured_stop_ids(network: Any, tokenizer: Any) -> set[int]:
    configured = network.generation_config.eos_token_id
    ids = configured if isinstance(configured, list) else [configured]
    return {one for one in (*ids, tokenizer.eos_token_id) if one is not None}


def _missing_stop_id(network: Any, tokenizer: Any) -> int | None:
    """The token by which the chat template ends a turn; None if the model is configured to stop there.

    A base model's tokenizer and generation config often name only the end of a text.
    """
    ids = end_of_turn_ids(tokenizer)
    return ids[0] if ids and _configured_stop_ids(network, tokenizer).isdisjoint(ids) else None


def end_of_turn_id(network: Any, tokenizer: Any) -> int:
    """The token that ends an answer: the first stop token that the chat template writes after one, else the tokenizer's own."""
    stops = stop_token_ids(network, tokenizer)
    in_order = (*end_of_turn_ids(tokenizer), tokenizer.eos_token_id, *stops)
    return next(int(one) for one in in_order if one in stops)


def stop_at_end_of_turn(network: Any, tokenizer: Any) -> int | None:
    """Add the end of a turn to the stop tokens of the network's generation config, where it is missing, so that every engine
    stops there; returns its id, or None if it was not missing. Prints what it does."""
    missing = _missing_stop_id(network, tokenizer)
    if missing is not None:
        network.generation_config.eos_token_id = [*sorted(_configured_stop_ids(network, tokenizer)), missing]
        token = tokenizer.convert_ids_to_tokens(missing)
        print_status_once(
            f"note: the chat template ends a turn with {token}, which is no stop token of the model; answers end there"
        )
    return missing


def _generate_shared_prefix(
    network: Any, _: Any, prompts: Sequence[list[int]], sampler: SeededSampler, stops: frozenset[int]
) -> list[CompletionTokens]:
    distinct = sorted(set(map(tuple, prompts)))  # sorted, so that neighbours share the longest prefixes
    index_of = {prompt: index for index, prompt in enumerate(distinct)}
    # The cache wants rows sorted by prompt, the caller wants results in the order given, and a row's draws belong to its place
    # in that order. So two numbers follow each row: `row_N` is its place in `prompts`, `cache_row_N` its row of the cache.
    order = sorted(range(len(prompts)), key=lambda row: index_of[tuple(prompts[row])])
    prompt_indices = [index_of[tuple(prompts[row])] for row in order]
    kv_cache, logits_P_V = prefill(network, distinct, prompt_indices)
    device = logits_P_V.device
    row_N = torch.tensor(order, device=device)
    cache_row_N = torch.arange(len(order), device=device)
    logits_N_V = logits_P_V[torch.tensor(prompt_indices, device=device)]
    completions = [CompletionTokens([], []) for _ in prompts]
    for step in range(sampler.sampling.max_new_tokens):
        token_N, logprob_N = sampler.sample(row_N, step, logits_N_V)
        continues = _append_tokens(completions, row_N, token_N, logprob_N, stops)
        if step + 1 == sampler.sampling.max_new_tokens or not any(continues):
            break
        continues_N = torch.tensor(continues, device=device)
        row_N, cache_row_N, token_N = row_N[continues_N], cache_row_N[continues_N], token_N[continues_N]
        # Dropping ended rows copies the cache, keeping them wastes attention: copy once a quarter of them has ended.
        if 4 * len(cache_row_N) <= 3 * len(kv_cache.prompt_index_B):
            kv_cache.select_rows(cache_row_N)
            cache_row_N = torch.arange(len(cache_row_N), device=device)
        logits_N_V = decode_step(network, kv_cache, cache_row_N, token_N, step)
    return completions


def _append_tokens(
    completions: list[CompletionTokens],
    row_N: torch.Tensor,
    token_N: torch.Tensor,
    logprob_N: torch.Tensor | None,
    stops: frozenset[int],
) -> list[bool]:
    """Append one token to each row's completion; returns for each row whether it continues."""
    tokens = token_N.tolist()
    for row, token in zip(row_N.tolist(), tokens, strict=True):
        completions[row].token_ids.append(token)
    if logprob_N is not None:
        for row, logprob in zip(row_N.tolist(), logprob_N.tolist(), strict=True):
            completions[row].logprobs.append(logprob)
    return [token not in stops for token in tokens]


def _generate_padded(
    network: Any, tokenizer: Any, prompts: Sequence[list[int]], sampler: SeededSampler, stops: frozenset[int]
) -> list[CompletionTokens]:
    batch = tokenizer.pad({"input_ids": list(prompts)}, padding=True, return_tensors="pt").to(network.device)
    width = batch["input_ids"].shape[1]
    processor = _ForcedTokenLogitsProcessor(sampler, width, len(prompts))
    settings = GenerationConfig(
        do_sample=False,
        max_new_tokens=sampler.sampling.max_new_tokens,
        eos_token_id=sorted(stops),
        pad_token_id=tokenizer.pad_token_id,
    )
    with _without_generation_defaults(network):
        output_B_T = network.generate(**batch, generation_config=settings, logits_processor=LogitsProcessorList([processor]))
    completions = [_cut_after_stop(ids, stops) for ids in output_B_T[:, width:].tolist()]
    # A row that has ended still draws at every step until all have ended; those draws are cut off.
    return [CompletionTokens(ids, logprobs[: len(ids)]) for ids, logprobs in zip(completions, processor.logprobs(), strict=True)]


class _ForcedTokenLogitsProcessor:
    """A logits processor that draws a token per row and rules out all others, so that greedy decoding after it takes that one."""

    def __init__(self, sampler: SeededSampler, prompt_width: int, rows: int) -> None:
        self._sampler, self._prompt_width, self._row_B = sampler, prompt_width, torch.arange(rows)
        self._logprobs: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        token_B, logprob_B = self._sampler.sample(self._row_B, input_ids.shape[1] - self._prompt_width, scores)
        if logprob_B is not None:
            self._logprobs.append(logprob_B)
        return torch.full_like(scores, -torch.inf).scatter_(1, token_B[:, None], 0.0)

    def logprobs(self) -> list[list[float]]:
        """One list per row, as long as the longest completion; empty lists for greedy decoding."""
        return torch.stack(self._logprobs, dim=1).tolist() if self._logprobs else [[] for _ in self._row_B]


@contextmanager
def _without_generation_defaults(network: Any) -> Iterator[None]:
    """Take the model's own generation config away inside the block: its repetition penalty, say, would change the draws."""
    defaults, network.generation_config = network.generation_config, GenerationConfig()
    try:
        yield
    finally:
        network.generation_config = defaults


def _cut_after_stop(ids: list[int], stops: frozenset[int]) -> list[int]:
    """Cut behind the first stop token. Stripping padding would not do: the padding token is often the stop token."""
    end = next((index for index, one in enumerate(ids) if one in stops), None)
    return ids if end is None else ids[: end + 1]


LOGIT_ROWS_PER_BLOCK = 16
"""Rows of logits that a CPU works on at a time: a block of a large vocabulary fits its cache. A GPU takes 8 times as many."""


class TokenLogprobs(NamedTuple):
    """For each completion token its log-probability, and the entropy of its distribution (no gradient); both in nats, float32."""

    logprob_N: torch.Tensor
    entropy_N: torch.Tensor


def token_logprobs(
    logits_M_V: torch.Tensor, logit_row_N: torch.Tensor, target_N: torch.Tensor, temperature: float
) -> TokenLogprobs:
    """Log-probabilities of `target_N` under softmax(logits_M_V[logit_row_N] / temperature), differentiable in the logits.

    Several targets may share a row of logits.
    """
    logprob_N, entropy_M = _TokenLogprobs.apply(logits_M_V, logit_row_N, target_N, temperature)  # type: ignore[no-untyped-call]
    return TokenLogprobs(logprob_N, entropy_M[logit_row_N])


class _TokenLogprobs(torch.autograd.Function):
    """Goes through the logits in blocks of rows, and again in the backward pass: softmax [M, V] is cheaper to redo than to keep.

    d logprob_n / d logits_m = (onehot(target_n) - softmax(logits_m / temperature)) / temperature where m is n's row, else 0.
    """

    @staticmethod
    def forward(
        ctx: Any, logits_M_V: torch.Tensor, logit_row_N: torch.Tensor, target_N: torch.Tensor, temperature: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        norm_M = logits_M_V.new_empty(len(logits_M_V), dtype=torch.float32)
        entropy_M = torch.empty_like(norm_M)
        for rows in _row_blocks(logits_M_V):
            scaled = _scaled(logits_M_V[rows], temperature)
            highest = scaled.amax(-1, keepdim=True)
            below = scaled.sub_(highest)
            weight = below.exp()
            total = weight.sum(-1)
            norm_M[rows] = highest[:, 0] + total.log()
            # H = log Z - Σ w_v x_v / Z with x = logits less their maximum. A logit of -inf gives 0 × -inf = NaN, which counts 0.
            entropy_M[rows] = total.log() - weight.mul_(below).nan_to_num_(nan=0.0).sum(-1) / total
        chosen_N = logits_M_V[logit_row_N, target_N].float() / temperature
        ctx.save_for_backward(logits_M_V, logit_row_N, target_N, norm_M)
        ctx.temperature = temperature
        ctx.mark_non_differentiable(entropy_M)
        return chosen_N - norm_M[logit_row_N], entropy_M

    @staticmethod
    def backward(ctx: Any, grad_N: torch.Tensor, _: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        logits_M_V, row_N, target_N, norm_M = ctx.saved_tensors
        grad_N = grad_N / ctx.temperature
        grad_M = torch.zeros_like(norm_M).index_add_(0, row_N, grad_N)
        grad_M_V = torch.empty_like(logits_M_V)
        order_N = row_N.argsort()
        row_N, target_N, grad_N = row_N[order_N], target_N[order_N], grad_N[order_N]
        blocks = _row_blocks(logits_M_V)
        ends = torch.tensor([rows.stop for rows in blocks], device=row_N.device)
        start = 0
        for rows, end in zip(blocks, torch.searchsorted(row_N, ends).tolist(), strict=True):
            grad_block = _scaled(logits_M_V[rows], ctx.temperature).sub_(norm_M[rows, None]).exp_().mul_(-grad_M[rows, None])
            # Add the one-hot part before rounding to the logits' dtype: at a likely target two nearly equal numbers cancel.
            grad_block.index_put_((row_N[start:end] - rows.start, target_N[start:end]), grad_N[start:end], accumulate=True)
            grad_M_V[rows] = grad_block
            start = end
        return grad_M_V, None, None, None


def _scaled(logits_M_V: torch.Tensor, temperature: float) -> torch.Tensor:
    """logits / temperature, as a float32 copy that may be overwritten."""
    return logits_M_V.to(torch.float32, copy=True).div_(temperature)


def _row_blocks(logits_M_V: torch.Tensor) -> list[slice]:
    size = LOGIT_ROWS_PER_BLOCK if logits_M_V.device.type == "cpu" else 8 * LOGIT_ROWS_PER_BLOCK
    return [slice(start, start + size) for start in range(0, len(logits_M_V), size)]
