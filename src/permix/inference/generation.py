"""Decoding a batch of prompts: what they begin with alike is read once, and rows that have ended leave the batch.

A network that cannot share prompts is decoded by transformers' `generate`, row for row; the draws are the same.

Drawing tokens: each row from its own stream of uniform numbers, by inverting its distribution.

Log-probabilities of chosen tokens, without ever holding a whole batch's distributions in float32.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import GenerationConfig, LogitsProcessorList

from permix.errors import PermixError
from permix.inference.shared_prefix import decode_step, prefill, supports_shared_prefix
from permix.types import Sampling


class SeededSampler:
    """Picks the next token of each row: the likeliest at temperature 0, else by the row's own uniform numbers."""

    def __init__(self, seeds: Sequence[int], sampling: Sampling) -> None:
        self.sampling = sampling
        if sampling.temperature > 0:
            # NumPy's generators take all 63 bits of a seed; torch's on the CPU would keep 32.
            draws_B_T = np.stack([np.random.default_rng(seed).random(sampling.max_new_tokens) for seed in seeds])
            self.uniform_B_T = torch.from_numpy(draws_B_T)

    def sample(self, rows_N: torch.Tensor, step: int, logits_N_V: torch.Tensor) -> "SampledTokens":
        """The `step`-th token of these rows, and its log-probability before the nucleus is cut."""
        if self.sampling.temperature == 0:
            return SampledTokens(logits_N_V.argmax(-1), None)
        probs_N_V = torch.softmax(logits_N_V.float() / self.sampling.temperature, dim=-1)
        uniform_N = self.uniform_B_T[rows_N.cpu(), step].to(logits_N_V.device)
        token_N = sample_top_p(probs_N_V, uniform_N, self.sampling.top_p)
        return SampledTokens(token_N, probs_N_V.gather(1, token_N[:, None])[:, 0].log())


class SampledTokens(NamedTuple):
    """Tokens, and the log-probability of each at the sampling temperature (None where nothing was drawn)."""

    token_N: torch.Tensor
    logprob_N: torch.Tensor | None


def sample_top_p(probs_B_V: torch.Tensor, uniform_B: torch.Tensor, top_p: float) -> torch.Tensor:
    """The token whose share of the (nucleus-cut) cumulative distribution each uniform number falls into; shape [B]."""
    if top_p >= 1:
        return _inverse_cdf_sample(probs_B_V, uniform_B)
    ordered_B_V, order_B_V = probs_B_V.sort(dim=-1, descending=True, stable=True)
    # A token stays when the mass before it is still short of top_p: the first one always does.
    before_B_V = ordered_B_V.cumsum(-1) - ordered_B_V
    rank_B = _inverse_cdf_sample(torch.where(before_B_V < top_p, ordered_B_V, 0.0), uniform_B)
    return order_B_V.gather(1, rank_B[:, None])[:, 0]


def _inverse_cdf_sample(mass_B_V: torch.Tensor, uniform_B: torch.Tensor) -> torch.Tensor:
    """Find each target first among blocks of the vocabulary, then inside its block: a running sum over all of it is slow."""
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
    """Index of the first running sum above the target; by rounding a target may reach the last one, which then it is.

    The last one that grew, that is: an entry of no mass, such as padding or a token cut from the nucleus, is never drawn.
    """
    place_B = torch.searchsorted(cumulative_B_N, target_B[:, None], right=True)[:, 0]
    last_B = torch.searchsorted(cumulative_B_N, cumulative_B_N[:, -1:].contiguous(), right=False)[:, 0]
    return torch.minimum(place_B, last_B)


VOCAB_BLOCK_SIZE = 256


class CompletionTokens(NamedTuple):
    """A completion that ends with its stop token, or has `max_new_tokens` tokens.

    `logps` are the tokens' log-probabilities at the sampling temperature; empty for greedy decoding.
    """

    token_ids: list[int]
    logprobs: list[float]


def generate_tokens(
    network: Any, tokenizer: Any, prompts: Sequence[list[int]], seeds: Sequence[int], sampling: Sampling
) -> list[CompletionTokens]:
    """Complete token-id prompts in one batch, in the order they are given."""
    stops = frozenset(stop_token_ids(network, tokenizer))
    drawer = SeededSampler(seeds, sampling)
    way = _generate_shared_prefix if supports_shared_prefix(network) else _generate_padded
    with torch.inference_mode():
        return way(network, tokenizer, prompts, drawer, stops)


def stop_token_ids(network: Any, tokenizer: Any) -> list[int]:
    """Token ids that end a completion: the generation config's, and the tokenizer's own."""
    configured = network.generation_config.eos_token_id
    ids = configured if isinstance(configured, list) else [configured]
    return sorted({one for one in (*ids, tokenizer.eos_token_id) if one is not None})


def _generate_shared_prefix(
    network: Any, _: Any, prompts: Sequence[list[int]], sampler: SeededSampler, stops: frozenset[int]
) -> list[CompletionTokens]:
    distinct = sorted(set(map(tuple, prompts)))  # neighbours begin alike
    number = {prompt: place for place, prompt in enumerate(distinct)}
    order = sorted(range(len(prompts)), key=lambda row: number[tuple(prompts[row])])
    owners = [number[tuple(prompts[row])] for row in order]
    store, logits_P_V = prefill(network, distinct, owners)
    device = logits_P_V.device
    row_N = torch.tensor(order, device=device)  # whose tokens these are
    place_N = torch.arange(len(order), device=device)  # where the store keeps them
    logits_N_V = logits_P_V[torch.tensor(owners, device=device)]
    grown = [CompletionTokens([], []) for _ in prompts]
    for step in range(sampler.sampling.max_new_tokens):
        token_N, logp_N = sampler.sample(row_N, step, logits_N_V)
        goes_on = _append_tokens(grown, row_N, token_N, logp_N, stops)
        if step + 1 == sampler.sampling.max_new_tokens or not any(goes_on):
            break
        goes_on_N = torch.tensor(goes_on, device=device)
        row_N, place_N, token_N = row_N[goes_on_N], place_N[goes_on_N], token_N[goes_on_N]
        if 4 * len(place_N) <= 3 * len(store.prompt_index_B):
            store.select_rows(place_N)
            place_N = torch.arange(len(place_N), device=device)
        logits_N_V = decode_step(network, store, place_N, token_N, step)
    return grown


def _append_tokens(
    completions: list[CompletionTokens],
    row_N: torch.Tensor,
    token_N: torch.Tensor,
    logprob_N: torch.Tensor | None,
    stops: frozenset[int],
) -> list[bool]:
    """Write the new tokens down; returns which rows go on."""
    tokens = token_N.tolist()
    for row, token in zip(row_N.tolist(), tokens, strict=True):
        completions[row].token_ids.append(token)
    if logprob_N is not None:
        for row, logp in zip(row_N.tolist(), logprob_N.tolist(), strict=True):
            completions[row].logprobs.append(logp)
    return [token not in stops for token in tokens]


def _generate_padded(
    network: Any, tokenizer: Any, prompts: Sequence[list[int]], sampler: SeededSampler, stops: frozenset[int]
) -> list[CompletionTokens]:
    batch = tokenizer.pad({"input_ids": list(prompts)}, padding=True, return_tensors="pt").to(network.device)
    width = batch["input_ids"].shape[1]
    chooser = _ForcedTokenLogitsProcessor(sampler, width, len(prompts))
    settings = GenerationConfig(
        do_sample=False,
        max_new_tokens=sampler.sampling.max_new_tokens,
        eos_token_id=sorted(stops),
        pad_token_id=tokenizer.pad_token_id,
    )
    with _without_generation_defaults(network):
        output_B_T = network.generate(**batch, generation_config=settings, logits_processor=LogitsProcessorList([chooser]))
    whole = [_cut_after_stop(ids, stops) for ids in output_B_T[:, width:].tolist()]
    return [CompletionTokens(ids, logps[: len(ids)]) for ids, logps in zip(whole, chooser.logprobs(), strict=True)]


class _ForcedTokenLogitsProcessor:
    """A logits processor that leaves only the drawn token possible, so that greedy decoding after it picks exactly that one."""

    def __init__(self, sampler: SeededSampler, prompt_width: int, rows: int) -> None:
        self._sampler, self._prompt_width, self._row_B = sampler, prompt_width, torch.arange(rows)
        self._logprobs: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        token_B, logp_B = self._sampler.sample(self._row_B, input_ids.shape[1] - self._prompt_width, scores)
        if logp_B is not None:
            self._logprobs.append(logp_B)
        return torch.full_like(scores, -torch.inf).scatter_(1, token_B[:, None], 0.0)

    def logprobs(self) -> list[list[float]]:
        """One list a row, as long as the longest completion; empty ones for greedy decoding."""
        return torch.stack(self._logprobs, dim=1).tolist() if self._logprobs else [[] for _ in self._row_B]


@contextmanager
def _without_generation_defaults(network: Any) -> Iterator[None]:
    """Only what is asked for counts: a model's own generation defaults (a repetition penalty, say) would change what is drawn."""
    own, network.generation_config = network.generation_config, GenerationConfig()
    try:
        yield
    finally:
        network.generation_config = own


def _cut_after_stop(ids: list[int], stops: frozenset[int]) -> list[int]:
    """Cut after the first stop token: padding is often that same token, so counting pads would miscount."""
    end = next((place for place, one in enumerate(ids) if one in stops), None)
    return ids if end is None else ids[: end + 1]


LOGIT_ROWS_PER_BLOCK = 16
"""Few enough that a block of a large vocabulary stays in a CPU's cache."""


class TokenLogprobs(NamedTuple):
    """Of each completion token: its log-probability, and the entropy (nats, no gradient) of what it was drawn from."""

    logprob_N: torch.Tensor
    entropy_N: torch.Tensor


def token_logprobs(
    logits_M_V: torch.Tensor, logit_row_N: torch.Tensor, target_N: torch.Tensor, temperature: float
) -> TokenLogprobs:
    """Scores of the targets under softmax(logits[source] / temperature), in float32; several may share a source."""
    logp_N, entropy_M = _TokenLogprobs.apply(logits_M_V, logit_row_N, target_N, temperature)  # type: ignore[no-untyped-call]
    return TokenLogprobs(logp_N, entropy_M[logit_row_N])


class _TokenLogprobs(torch.autograd.Function):
    """Works through the rows in blocks, and again in the backward pass: softmax is cheaper made twice than kept.

    d logp_n / d logits[m] = (one-hot of the target - softmax) / temperature where m is n's source, else 0.
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
            # What is minus infinity has no weight and adds nothing.
            entropy_M[rows] = total.log() - weight.mul_(below).nan_to_num_(nan=0.0).sum(-1) / total
        chosen_N = logits_M_V[logit_row_N, target_N].float() / temperature
        ctx.save_for_backward(logits_M_V, logit_row_N, target_N, norm_M)
        ctx.temperature = temperature
        ctx.mark_non_differentiable(entropy_M)
        return chosen_N - norm_M[logit_row_N], entropy_M

    @staticmethod
    def backward(ctx: Any, grad_N: torch.Tensor, _: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        logits_M_V, source_N, target_N, norm_M = ctx.saved_tensors
        grad_N = grad_N / ctx.temperature
        grad_M = torch.zeros_like(norm_M).index_add_(0, source_N, grad_N)
        out_M_V = torch.empty_like(logits_M_V)
        order_N = source_N.argsort()
        source_N, target_N, grad_N = source_N[order_N], target_N[order_N], grad_N[order_N]
        blocks = _row_blocks(logits_M_V)
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


def _row_blocks(logits_M_V: torch.Tensor) -> list[slice]:
    size = LOGIT_ROWS_PER_BLOCK if logits_M_V.device.type == "cpu" else 8 * LOGIT_ROWS_PER_BLOCK
    return [slice(start, start + size) for start in range(0, len(logits_M_V), size)]
