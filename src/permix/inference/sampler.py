"""Chooses the next token of each row: by its own uniform numbers, with a bound on its thinking.

Each row has its own stream of uniform numbers and inverts its cumulative distribution, so its draws do not depend on the batch
that it is in.

Axes: B rows of a batch, N the rows that grow, V vocabulary; K entries of each of the vocabulary's N blocks in
`_inverse_cdf_sample`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from permix.errors import PermixError
from permix.inference.chat_template import opened_thinking
from permix.thinking import closing_text, open_tag
from permix.types import Sampling


class SeededSampler:
    """Chooses the next token of each row: the likeliest at temperature 0, else by the row's own uniform numbers.

    A `budget` may put a token that closes the thinking in its place.
    """

    def __init__(self, seeds: Sequence[int], sampling: Sampling, budget: "ThinkingBudget | None" = None) -> None:
        self.sampling, self.budget = sampling, budget
        self._seeds, self._uniforms = seeds, dict[int, NDArray[np.float64]]()

    def sample(self, rows_N: torch.Tensor, step_N: torch.Tensor, logits_N_V: torch.Tensor) -> "SampledTokens":
        """For each row its `step`-th token (from 0). Its log-probability is that of the whole distribution, before top-p."""
        if self.sampling.temperature == 0:
            return SampledTokens(self._within_budget(rows_N, logits_N_V.argmax(-1)), None)
        probs_N_V = torch.softmax(logits_N_V.float() / self.sampling.temperature, dim=-1)
        draws = [self._uniform(*pair) for pair in zip(rows_N.tolist(), step_N.tolist(), strict=True)]
        uniform_N = torch.tensor(draws, dtype=torch.float64, device=logits_N_V.device)
        token_N = self._within_budget(rows_N, sample_top_p(probs_N_V, uniform_N, self.sampling.top_p))
        return SampledTokens(token_N, probs_N_V.gather(1, token_N[:, None])[:, 0].log())

    def forget(self, row: int) -> None:
        """Free what is kept of a row that has ended."""
        self._uniforms.pop(row, None)
        if self.budget is not None:
            self.budget.forget(row)

    def is_cut(self, row: int) -> bool:
        """Whether tokens were forced to close the row's thinking."""
        return self.budget is not None and row in self.budget.cut_rows

    def _uniform(self, row: int, step: int) -> float:
        if row not in self._uniforms:
            # NumPy's generators take all 63 bits of a seed; torch's on the CPU would keep 32.
            self._uniforms[row] = np.random.default_rng(self._seeds[row]).random(self.sampling.max_new_tokens)
        return float(self._uniforms[row][step])

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

    def __init__(self, limit: int, tokenizer: Any, stops: frozenset[int]) -> None:
        self.cut_rows: set[int] = set()
        self._limit, self._tokenizer, self._stops = limit, tokenizer, stops
        self._decode_token = cache(lambda token: str(tokenizer.decode([token])))
        self._first_tag = opened_thinking(tokenizer).strip()
        self._rows = dict[int, _BudgetedRow]()

    def next_token(self, row_index: int, sampled: int) -> int:
        """The token to append to a row: the sampled one, or a forced one."""
        row = self._rows.setdefault(row_index, _BudgetedRow(self._first_tag, [], []))
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

    def forget(self, row_index: int) -> None:
        """Free what is kept of a row that has ended; whether it was cut is still known."""
        self._rows.pop(row_index, None)

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
