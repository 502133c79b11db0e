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
from permix.inference.shared_prefix import grow, read_prompts, shares_prompts
from permix.types import Sampling


class Drawer:
    """Picks the next token of each row: the likeliest at temperature 0, else by the row's own uniform numbers."""

    def __init__(self, seeds: Sequence[int], sampling: Sampling) -> None:
        self.sampling = sampling
        if sampling.temperature > 0:
            # NumPy's generators take all 63 bits of a seed; torch's on the CPU would keep 32.
            draws_B_T = np.stack([np.random.default_rng(seed).random(sampling.max_new_tokens) for seed in seeds])
            self.uniform_B_T = torch.from_numpy(draws_B_T)

    def pick(self, rows_N: torch.Tensor, step: int, logits_N_V: torch.Tensor) -> "Picked":
        """The `step`-th token of these rows, and its log-probability before the nucleus is cut."""
        if self.sampling.temperature == 0:
            return Picked(logits_N_V.argmax(-1), None)
        probs_N_V = torch.softmax(logits_N_V.float() / self.sampling.temperature, dim=-1)
        uniform_N = self.uniform_B_T[rows_N.cpu(), step].to(logits_N_V.device)
        token_N = draw(probs_N_V, uniform_N, self.sampling.top_p)
        return Picked(token_N, probs_N_V.gather(1, token_N[:, None])[:, 0].log())


class Picked(NamedTuple):
    """Tokens, and the log-probability of each at the sampling temperature (None where nothing was drawn)."""

    token_N: torch.Tensor
    logp_N: torch.Tensor | None


def draw(probs_B_V: torch.Tensor, uniform_B: torch.Tensor, top_p: float) -> torch.Tensor:
    """The token whose share of the (nucleus-cut) cumulative distribution each uniform number falls into; shape [B]."""
    if top_p >= 1:
        return _invert(probs_B_V, uniform_B)
    ordered_B_V, order_B_V = probs_B_V.sort(dim=-1, descending=True, stable=True)
    # A token stays when the mass before it is still short of top_p: the first one always does.
    before_B_V = ordered_B_V.cumsum(-1) - ordered_B_V
    rank_B = _invert(torch.where(before_B_V < top_p, ordered_B_V, 0.0), uniform_B)
    return order_B_V.gather(1, rank_B[:, None])[:, 0]


def _invert(mass_B_V: torch.Tensor, uniform_B: torch.Tensor) -> torch.Tensor:
    """Find each target first among blocks of the vocabulary, then inside its block: a running sum over all of it is slow."""
    short = -mass_B_V.shape[1] % BLOCK
    padded_B_V = torch.nn.functional.pad(mass_B_V, (0, short)) if short else mass_B_V
    blocks_B_N_K = padded_B_V.view(len(mass_B_V), -1, BLOCK)
    cumulative_B_N = blocks_B_N_K.sum(-1, dtype=torch.float64).cumsum(-1)
    if not bool((cumulative_B_N[:, -1] > 0).all()):
        raise PermixError("the model's probabilities are not numbers: its weights have diverged, or its precision is too low")
    target_B = uniform_B * cumulative_B_N[:, -1]
    block_B = _first_above(cumulative_B_N, target_B)
    row_B = torch.arange(len(block_B), device=block_B.device)
    before_B = torch.where(block_B > 0, cumulative_B_N[row_B, (block_B - 1).clamp(min=0)], 0.0)
    inside_B = _first_above(blocks_B_N_K[row_B, block_B].cumsum(-1, dtype=torch.float64), target_B - before_B)
    return block_B * BLOCK + inside_B


def _first_above(cumulative_B_N: torch.Tensor, target_B: torch.Tensor) -> torch.Tensor:
    """Index of the first running sum above the target; by rounding a target may reach the last one, which then it is.

    The last one that grew, that is: an entry of no mass, such as padding or a token cut from the nucleus, is never drawn.
    """
    place_B = torch.searchsorted(cumulative_B_N, target_B[:, None], right=True)[:, 0]
    last_B = torch.searchsorted(cumulative_B_N, cumulative_B_N[:, -1:].contiguous(), right=False)[:, 0]
    return torch.minimum(place_B, last_B)


BLOCK = 256


class Decoded(NamedTuple):
    """A completion that ends with its stop token, or has `max_new_tokens` tokens.

    `logps` are the tokens' log-probabilities at the sampling temperature; empty for greedy decoding.
    """

    ids: list[int]
    logps: list[float]


def decode(network: Any, tokenizer: Any, prompts: Sequence[list[int]], seeds: Sequence[int], sampling: Sampling) -> list[Decoded]:
    """Complete token-id prompts in one batch, in the order they are given."""
    stops = frozenset(stop_ids(network, tokenizer))
    drawer = Drawer(seeds, sampling)
    way = _shared if shares_prompts(network) else _plain
    with torch.inference_mode():
        return way(network, tokenizer, prompts, drawer, stops)


def stop_ids(network: Any, tokenizer: Any) -> list[int]:
    """Token ids that end a completion: the generation config's, and the tokenizer's own."""
    configured = network.generation_config.eos_token_id
    ids = configured if isinstance(configured, list) else [configured]
    return sorted({one for one in (*ids, tokenizer.eos_token_id) if one is not None})


def _shared(network: Any, _: Any, prompts: Sequence[list[int]], drawer: Drawer, stops: frozenset[int]) -> list[Decoded]:
    distinct = sorted(set(map(tuple, prompts)))  # neighbours begin alike
    number = {prompt: place for place, prompt in enumerate(distinct)}
    order = sorted(range(len(prompts)), key=lambda row: number[tuple(prompts[row])])
    owners = [number[tuple(prompts[row])] for row in order]
    store, logits_P_V = read_prompts(network, distinct, owners)
    device = logits_P_V.device
    row_N = torch.tensor(order, device=device)  # whose tokens these are
    place_N = torch.arange(len(order), device=device)  # where the store keeps them
    logits_N_V = logits_P_V[torch.tensor(owners, device=device)]
    grown = [Decoded([], []) for _ in prompts]
    for step in range(drawer.sampling.max_new_tokens):
        token_N, logp_N = drawer.pick(row_N, step, logits_N_V)
        goes_on = _note(grown, row_N, token_N, logp_N, stops)
        if step + 1 == drawer.sampling.max_new_tokens or not any(goes_on):
            break
        goes_on_N = torch.tensor(goes_on, device=device)
        row_N, place_N, token_N = row_N[goes_on_N], place_N[goes_on_N], token_N[goes_on_N]
        if 4 * len(place_N) <= 3 * len(store.owner_B):
            store.keep_only(place_N)
            place_N = torch.arange(len(place_N), device=device)
        logits_N_V = grow(network, store, place_N, token_N, step)
    return grown


def _note(
    grown: list[Decoded], row_N: torch.Tensor, token_N: torch.Tensor, logp_N: torch.Tensor | None, stops: frozenset[int]
) -> list[bool]:
    """Write the new tokens down; returns which rows go on."""
    tokens = token_N.tolist()
    for row, token in zip(row_N.tolist(), tokens, strict=True):
        grown[row].ids.append(token)
    if logp_N is not None:
        for row, logp in zip(row_N.tolist(), logp_N.tolist(), strict=True):
            grown[row].logps.append(logp)
    return [token not in stops for token in tokens]


def _plain(network: Any, tokenizer: Any, prompts: Sequence[list[int]], drawer: Drawer, stops: frozenset[int]) -> list[Decoded]:
    batch = tokenizer.pad({"input_ids": list(prompts)}, padding=True, return_tensors="pt").to(network.device)
    width = batch["input_ids"].shape[1]
    chooser = _Chooser(drawer, width, len(prompts))
    settings = GenerationConfig(
        do_sample=False,
        max_new_tokens=drawer.sampling.max_new_tokens,
        eos_token_id=sorted(stops),
        pad_token_id=tokenizer.pad_token_id,
    )
    with _without_defaults(network):
        output_B_T = network.generate(**batch, generation_config=settings, logits_processor=LogitsProcessorList([chooser]))
    whole = [_until_stop(ids, stops) for ids in output_B_T[:, width:].tolist()]
    return [Decoded(ids, logps[: len(ids)]) for ids, logps in zip(whole, chooser.logps(), strict=True)]


class _Chooser:
    """A logits processor that leaves only the drawn token possible, so that greedy decoding after it picks exactly that one."""

    def __init__(self, drawer: Drawer, prompt_width: int, rows: int) -> None:
        self._drawer, self._prompt_width, self._row_B = drawer, prompt_width, torch.arange(rows)
        self._logps: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        token_B, logp_B = self._drawer.pick(self._row_B, input_ids.shape[1] - self._prompt_width, scores)
        if logp_B is not None:
            self._logps.append(logp_B)
        return torch.full_like(scores, -torch.inf).scatter_(1, token_B[:, None], 0.0)

    def logps(self) -> list[list[float]]:
        """One list a row, as long as the longest completion; empty ones for greedy decoding."""
        return torch.stack(self._logps, dim=1).tolist() if self._logps else [[] for _ in self._row_B]


@contextmanager
def _without_defaults(network: Any) -> Iterator[None]:
    """Only what is asked for counts: a model's own generation defaults (a repetition penalty, say) would change what is drawn."""
    own, network.generation_config = network.generation_config, GenerationConfig()
    try:
        yield
    finally:
        network.generation_config = own


def _until_stop(ids: list[int], stops: frozenset[int]) -> list[int]:
    """Cut after the first stop token: padding is often that same token, so counting pads would miscount."""
    end = next((place for place, one in enumerate(ids) if one in stops), None)
    return ids if end is None else ids[: end + 1]


ROWS_AT_ONCE = 16
"""Few enough that a block of a large vocabulary stays in a CPU's cache."""


class Scores(NamedTuple):
    """Of each completion token: its log-probability, and the entropy (nats, no gradient) of what it was drawn from."""

    logp_N: torch.Tensor
    entropy_N: torch.Tensor


def score(logits_M_V: torch.Tensor, source_N: torch.Tensor, target_N: torch.Tensor, temperature: float) -> Scores:
    """Scores of the targets under softmax(logits[source] / temperature), in float32; several may share a source."""
    logp_N, entropy_M = _Score.apply(logits_M_V, source_N, target_N, temperature)  # type: ignore[no-untyped-call]
    return Scores(logp_N, entropy_M[source_N])


class _Score(torch.autograd.Function):
    """Works through the rows in blocks, and again in the backward pass: softmax is cheaper made twice than kept.

    d logp_n / d logits[m] = (one-hot of the target - softmax) / temperature where m is n's source, else 0.
    """

    @staticmethod
    def forward(
        ctx: Any, logits_M_V: torch.Tensor, source_N: torch.Tensor, target_N: torch.Tensor, temperature: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        norm_M = logits_M_V.new_empty(len(logits_M_V), dtype=torch.float32)
        entropy_M = torch.empty_like(norm_M)
        for rows in _blocks(logits_M_V):
            scaled = _scaled(logits_M_V[rows], temperature)
            highest = scaled.amax(-1, keepdim=True)
            below = scaled.sub_(highest)
            weight = below.exp()
            total = weight.sum(-1)
            norm_M[rows] = highest[:, 0] + total.log()
            # What is minus infinity has no weight and adds nothing.
            entropy_M[rows] = total.log() - weight.mul_(below).nan_to_num_(nan=0.0).sum(-1) / total
        chosen_N = logits_M_V[source_N, target_N].float() / temperature
        ctx.save_for_backward(logits_M_V, source_N, target_N, norm_M)
        ctx.temperature = temperature
        ctx.mark_non_differentiable(entropy_M)
        return chosen_N - norm_M[source_N], entropy_M

    @staticmethod
    def backward(ctx: Any, grad_N: torch.Tensor, _: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        logits_M_V, source_N, target_N, norm_M = ctx.saved_tensors
        grad_N = grad_N / ctx.temperature
        grad_M = torch.zeros_like(norm_M).index_add_(0, source_N, grad_N)
        out_M_V = torch.empty_like(logits_M_V)
        order_N = source_N.argsort()
        source_N, target_N, grad_N = source_N[order_N], target_N[order_N], grad_N[order_N]
        blocks = _blocks(logits_M_V)
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


def _blocks(logits_M_V: torch.Tensor) -> list[slice]:
    size = ROWS_AT_ONCE if logits_M_V.device.type == "cpu" else 8 * ROWS_AT_ONCE
    return [slice(start, start + size) for start in range(0, len(logits_M_V), size)]
