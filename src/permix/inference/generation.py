"""Sampling completions of token-id prompts, and log-probabilities of given completions.

A network that supports shared prefixes reads the common beginning of the prompts that join a batch together once; completions
leave the batch when they end, and waiting prompts take their place (continuous batching). Any other network goes through
transformers' `generate`, one padded row per prompt, with the same random draws. `token_logprobs` works in blocks of rows and
never holds the float32 distributions of a whole batch.

Axes: B all rows of a batch, N the rows still growing (or, in `token_logprobs`, completion tokens), M rows of logits,
T tokens, V vocabulary.

Source of continuous batching: Yu et al. (2022), Orca, OSDI: scheduling of single steps, not of whole requests.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from transformers import GenerationConfig, LogitsProcessorList

from permix.inference.base import balanced_batches
from permix.inference.chat_template import end_of_turn_ids
from permix.inference.hardware import DEFAULT_BATCH_SIZE, pick_batch_size
from permix.inference.prefix_attention import PrefixKVCache
from permix.inference.sampler import SeededSampler, ThinkingBudget
from permix.inference.shared_prefix import decode_step, prefill, supports_shared_prefix
from permix.progress import print_status_once
from permix.types import Sampling


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
    """Complete the prompts, as many at a time as memory allows; results are in their order. `seeds` has one seed per prompt."""
    found = dict(stream_tokens(network, tokenizer, prompts, seeds, sampling, thinking_budget=thinking_budget))
    return [found[index] for index in range(len(prompts))]


def stream_tokens(
    network: Any,
    tokenizer: Any,
    prompts: Sequence[list[int]],
    seeds: Sequence[int],
    sampling: Sampling,
    batch_size: int | None = None,
    thinking_budget: int | None = None,
) -> Iterator[tuple[int, CompletionTokens]]:
    """Complete the prompts, at most `batch_size` at a time; yields (index of a prompt, its completion) as completions end.

    A network that supports shared prefixes decodes one batch, in which prompts that wait take the place of completions that have
    ended. They are read in the order given, so neighbours should have long common prefixes. Any other network decodes a batch to
    its end before the next one. `seeds` has one seed per prompt. Without `batch_size`, the first kind
    of network gets what `pick_batch_size` chooses, the second `DEFAULT_BATCH_SIZE`.
    """
    stops = frozenset(stop_token_ids(network, tokenizer))
    if supports_shared_prefix(network):
        batch_size = batch_size or pick_batch_size(network, prompts, sampling.max_new_tokens)
        budget = None if thinking_budget is None else ThinkingBudget(thinking_budget, tokenizer, stops)
        decoding = _ContinuousBatch(network, prompts, SeededSampler(seeds, sampling, budget), stops, batch_size)
        while not decoding.has_ended:
            yield from decoding.step()  # a generator that holds inference mode open would put its caller into it
        return
    for batch in balanced_batches(range(len(prompts)), batch_size or DEFAULT_BATCH_SIZE):
        budget = None if thinking_budget is None else ThinkingBudget(thinking_budget, tokenizer, stops)
        sampler = SeededSampler([seeds[index] for index in batch], sampling, budget)
        with torch.inference_mode():
            completions = _generate_padded(network, tokenizer, [prompts[index] for index in batch], sampler, stops)
        for row, (index, completion) in enumerate(zip(batch, completions, strict=True)):
            yield index, completion._replace(thinking_cut=sampler.is_cut(row))


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


class _ContinuousBatch:
    """Decodes prompts with shared prefixes. Rows leave when they end, and waiting prompts take their place.

    The cache wants rows sorted by prompt, and a row's draws belong to the index of its prompt. So two numbers follow each of the
    N growing rows: `index_N` is the index of its prompt, `cache_row_N` its row of the cache.
    """

    def __init__(
        self, network: Any, prompts: Sequence[list[int]], sampler: SeededSampler, stops: frozenset[int], batch_size: int
    ) -> None:
        self._network, self._prompts, self._sampler, self._stops = network, prompts, sampler, stops
        self._batch_size = batch_size
        self._waiting = deque(range(len(prompts)))
        self._growing = dict[int, CompletionTokens]()
        self._index_N = self._cache_row_N = self._token_N = torch.empty(0, dtype=torch.long, device=network.device)
        self._kv_cache: PrefixKVCache | None = None
        self._logits_N_V: torch.Tensor | None = None

    @property
    def has_ended(self) -> bool:
        return not self._waiting and not self._growing

    @torch.inference_mode()
    def step(self) -> list[tuple[int, CompletionTokens]]:
        """Read waiting prompts where there is room, and sample a token of every row; returns the completions that end with it."""
        if self._growing:
            self._decode()
        # A few prompts at a time would be read slowly, and every filling copies the cache.
        if self._waiting and 4 * len(self._growing) <= 3 * self._batch_size:
            self._fill()
        kv_cache, logits_N_V = self._kv_cache, self._logits_N_V
        assert kv_cache is not None
        assert logits_N_V is not None
        token_N, logprob_N = self._sampler.sample(self._index_N, kv_cache.suffix_length_B[self._cache_row_N], logits_N_V)
        ended, continues = self._append_tokens(token_N, logprob_N)
        if ended:
            continues_N = torch.tensor(continues, device=token_N.device)
            self._index_N, self._cache_row_N, token_N = (
                each[continues_N] for each in (self._index_N, self._cache_row_N, token_N)
            )
        self._token_N = token_N
        if not self._growing:
            self._kv_cache = self._logits_N_V = None
        return ended

    def _decode(self) -> None:
        """Compute the logits of the token after the last one of each row. Ended rows have been returned by then: if this fails,
        for want of memory, they are not lost."""
        assert self._kv_cache is not None
        # Dropping ended rows copies the cache, keeping them wastes attention: copy once a quarter of them has ended.
        if 4 * len(self._growing) <= 3 * len(self._kv_cache.prompt_index_B):
            self._drop_ended_rows(self._kv_cache)
        self._logits_N_V = decode_step(self._network, self._kv_cache, self._cache_row_N, self._token_N)

    def _fill(self) -> None:
        count = min(self._batch_size - len(self._growing), len(self._waiting))
        indices = [self._waiting.popleft() for _ in range(count)]
        distinct = sorted({tuple(self._prompts[index]) for index in indices})  # sorted: neighbours share the longest prefixes
        place_of = {prompt: place for place, prompt in enumerate(distinct)}
        indices.sort(key=lambda index: place_of[tuple(self._prompts[index])])
        places = [place_of[tuple(self._prompts[index])] for index in indices]
        new_cache, logits_P_V = prefill(self._network, distinct, places)
        logits_N_V = logits_P_V[torch.tensor(places, device=logits_P_V.device)]
        if self._growing and self._kv_cache is not None and self._logits_N_V is not None:
            self._drop_ended_rows(self._kv_cache)
            self._kv_cache.append(new_cache)
            self._logits_N_V = torch.cat([self._logits_N_V, logits_N_V])
        else:
            self._kv_cache, self._logits_N_V = new_cache, logits_N_V
            self._index_N = self._index_N[:0]
        self._index_N = torch.cat([self._index_N, torch.tensor(indices, device=self._index_N.device)])
        self._cache_row_N = torch.arange(len(self._index_N), device=self._index_N.device)
        self._growing |= {index: CompletionTokens([], []) for index in indices}

    def _drop_ended_rows(self, kv_cache: PrefixKVCache) -> None:
        if len(self._cache_row_N) < len(kv_cache.prompt_index_B):
            kv_cache.select_rows(self._cache_row_N)
            self._cache_row_N = torch.arange(len(self._cache_row_N), device=self._cache_row_N.device)

    def _append_tokens(
        self, token_N: torch.Tensor, logprob_N: torch.Tensor | None
    ) -> tuple[list[tuple[int, CompletionTokens]], list[bool]]:
        """Append one token to each row; returns the completions that have ended, and for each row whether it continues."""
        indices, tokens = self._index_N.tolist(), token_N.tolist()
        if logprob_N is not None:
            for index, logprob in zip(indices, logprob_N.tolist(), strict=True):
                self._growing[index].logprobs.append(logprob)
        ended, continues = list[tuple[int, CompletionTokens]](), list[bool]()
        for index, token in zip(indices, tokens, strict=True):
            completion = self._growing[index]
            completion.token_ids.append(token)
            continues.append(token not in self._stops and len(completion.token_ids) < self._sampler.sampling.max_new_tokens)
            if not continues[-1]:
                del self._growing[index]
                self._sampler.forget(index)
                ended.append((index, completion._replace(thinking_cut=self._sampler.is_cut(index))))
        return ended, continues


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
        step_B = torch.full_like(self._row_B, input_ids.shape[1] - self._prompt_width)
        token_B, logprob_B = self._sampler.sample(self._row_B, step_B, scores)
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
