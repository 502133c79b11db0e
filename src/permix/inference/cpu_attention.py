"""Attention on a CPU over prompts that are read once: in pieces that fit its cache, keeping nothing for the backward pass.

torch's own attention is slow in its backward pass on CPUs, and would want every prompt's keys copied to each of its completions.
Here a piece's scores are plain matrix products, and are made anew when the gradient is asked for, so that memory holds a layer's
queries, keys and values and no more. Scores and weights are float32, whatever comes in and whatever is autocast.

A piece is `C` runs of `S` tokens, padded; each token sees `T` tokens before it that all of the piece's runs share, and its own
run up to itself. The completions of a prompt are a piece, or several where they are many or of unlike length; a long one is cut
into stretches, each a single run that sees the prompt and what came before; and so is the prompt.

`K` heads of keys serve `H` heads of queries. `M` is runs × tokens × queries' heads of one key's, `X` is heads of keys × runs, and
`W` is T + S: all that a token of the piece may see.
"""

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any, NamedTuple

import torch

MAX_SEGMENT_TOKENS = 128
"""Longest run of a piece; a longer one is cut."""

MAX_TILE_SCORES = 2**19
"""Scores of a piece at most, for one head: 2 MB."""


class AttentionTile(NamedTuple):
    """`index_CS` are flat places run by run; padding stands at some place of the piece, and counts nothing."""

    prefix_index_T: torch.Tensor
    """Flat places that every run sees, in their order."""
    n_segments: int
    index_CS: torch.Tensor
    valid_CS: torch.Tensor | None
    """What is no padding; None where all is."""

    @property
    def segment_length(self) -> int:
        return len(self.index_CS) // self.n_segments

    @property
    def prefix_length(self) -> int:
        return len(self.prefix_index_T)


def build_tiles(prefix_lengths: Sequence[int], suffix_lengths: Sequence[Sequence[int]], device: Any) -> list[AttentionTile]:
    """Of a flat row of prompts, each followed by its branches; the numbers are of tokens."""
    found, at = list[AttentionTile](), 0
    for prompt, lengths in zip(prefix_lengths, suffix_lengths, strict=True):
        place_T = torch.arange(at, at + prompt, device=device)
        found += _split_segment(place_T[:0], place_T)
        at += prompt
        runs = []
        for length in lengths:
            runs.append(torch.arange(at, at + length, device=device))
            at += length
        found += chain.from_iterable(_split_segment(place_T, run) for run in runs if len(run) > MAX_SEGMENT_TOKENS)
        short = sorted((run for run in runs if 0 < len(run) <= MAX_SEGMENT_TOKENS), key=len, reverse=True)
        found += [_make_tile(place_T, some) for some in _batch_segments(short, prompt)]
    return found


def _split_segment(prefix_index_T: torch.Tensor, segment_N: torch.Tensor) -> list[AttentionTile]:
    """One run cut into pieces that see what comes before it and what came before in itself."""
    return [
        _make_tile(torch.cat([prefix_index_T, segment_N[:start]]), [segment_N[start : start + MAX_SEGMENT_TOKENS]])
        for start in range(0, len(segment_N), MAX_SEGMENT_TOKENS)
    ]


def _batch_segments(segments: Sequence[torch.Tensor], prefix_length: int) -> Iterator[Sequence[torch.Tensor]]:
    """Runs, the longest first, as many to a piece as it may have scores, and none half as long as its first."""
    start = 0
    for place, run in enumerate(segments):
        longest = len(segments[start])
        if place > start and (
            (place - start + 1) * longest * (prefix_length + longest) > MAX_TILE_SCORES or 2 * len(run) < longest
        ):
            yield segments[start:place]
            start = place
    if segments:
        yield segments[start:]


def _make_tile(prefix_index_T: torch.Tensor, segments: Sequence[torch.Tensor]) -> AttentionTile:
    width = max(map(len, segments))
    place_C_S = torch.stack([torch.cat([run, run[:1].expand(width - len(run))]) for run in segments])
    length_C = torch.tensor([len(run) for run in segments], device=prefix_index_T.device)
    real_C_S = torch.arange(width, device=prefix_index_T.device) < length_C[:, None]
    return AttentionTile(prefix_index_T, len(segments), place_C_S.flatten(), None if bool(real_C_S.all()) else real_C_S.flatten())


def tiled_attention(
    query_N_H_D: torch.Tensor, key_N_K_D: torch.Tensor, value_N_K_D: torch.Tensor, tiles: Sequence[AttentionTile], *,
    scale: float, window: int | None,
) -> torch.Tensor:  # fmt: skip
    """What every token takes from those it sees, no more than `window` back; [N, H, D]."""
    # Autocast leaves queries and keys in float32 where their rotation is, and values not.
    query_N_H_D, key_N_K_D = query_N_H_D.to(value_N_K_D.dtype), key_N_K_D.to(value_N_K_D.dtype)
    mixed: torch.Tensor = _TiledAttention.apply(query_N_H_D, key_N_K_D, value_N_K_D, tiles, scale, window)  # type: ignore[no-untyped-call]
    return mixed


class _TiledAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query_N_H_D: torch.Tensor, key_N_K_D: torch.Tensor, value_N_K_D: torch.Tensor, tiles: Sequence[AttentionTile],
        scale: float, window: int | None,
    ) -> torch.Tensor:  # fmt: skip
        ctx.save_for_backward(query_N_H_D, key_N_K_D, value_N_K_D)
        ctx.given = (tiles, scale, window)
        mixed_N_H_D = torch.empty_like(query_N_H_D)
        with torch.autocast(query_N_H_D.device.type, enabled=False):
            for piece in tiles:
                query_K_M_D = _gather_heads(query_N_H_D, piece, key_N_K_D.shape[1])
                weight_K_M_W = _attention_weights(query_K_M_D, _KeysOrValues.gather(key_N_K_D, piece), scale, window)
                _scatter_heads(
                    mixed_N_H_D, piece, _KeysOrValues.gather(value_N_K_D, piece).weighted_sum(weight_K_M_W.to(query_N_H_D.dtype))
                )
        return mixed_N_H_D

    @staticmethod
    def backward(ctx: Any, grad_N_H_D: torch.Tensor) -> tuple[Any, ...]:
        query_N_H_D, key_N_K_D, value_N_K_D = ctx.saved_tensors
        pieces, scale, window = ctx.given
        dtype, heads = query_N_H_D.dtype, key_N_K_D.shape[1]
        of_query = torch.empty_like(query_N_H_D)
        of_key, of_value = (torch.zeros(key_N_K_D.shape, device=key_N_K_D.device) for _ in range(2))
        with torch.autocast(query_N_H_D.device.type, enabled=False):
            for piece in pieces:
                query_K_M_D, grad_K_M_D = (
                    _gather_heads(query_N_H_D, piece, heads),
                    _gather_heads(grad_N_H_D, piece, heads, zero_padding=True),
                )
                keys, values = _KeysOrValues.gather(key_N_K_D, piece), _KeysOrValues.gather(value_N_K_D, piece)
                weight_K_M_W = _attention_weights(query_K_M_D, keys, scale, window)
                pull_K_M_W = values.dot_products(grad_K_M_D).float()
                slope_K_M_W = torch.ops.aten._softmax_backward_data(pull_K_M_W, weight_K_M_W, -1, torch.float32).to(dtype)
                _KeysOrValues.accumulate_grad(of_value, piece, weight_K_M_W.to(dtype), grad_K_M_D)
                _KeysOrValues.accumulate_grad(of_key, piece, slope_K_M_W, query_K_M_D)
                _scatter_heads(of_query, piece, keys.weighted_sum(slope_K_M_W))
        return of_query.mul_(scale), of_key.mul_(scale).to(dtype), of_value.to(dtype), None, None, None


def _attention_weights(query_K_M_D: torch.Tensor, keys: "_KeysOrValues", scale: float, window: int | None) -> torch.Tensor:
    """How much each query takes of what it sees, in float32; [K, M, W]."""
    piece = keys.tile
    score_K_M_W = keys.float().dot_products(query_K_M_D.float() * scale)
    by_place = score_K_M_W.view(len(score_K_M_W), piece.n_segments, piece.segment_length, -1, score_K_M_W.shape[2])
    at_W = torch.arange(score_K_M_W.shape[2], device=score_K_M_W.device)
    back_S_W = at_W[piece.prefix_length :, None] - at_W
    by_place[..., piece.prefix_length :].masked_fill_((back_S_W < 0)[:, None, piece.prefix_length :], -torch.inf)
    if window is not None and window < len(at_W):
        by_place.masked_fill_((back_S_W >= window)[:, None], -torch.inf)
    return torch.softmax(score_K_M_W, dim=-1)


class _KeysOrValues(NamedTuple):
    """The keys, or the values, that a piece's tokens see."""

    tile: AttentionTile
    prefix_K_T_D: torch.Tensor
    segment_X_S_D: torch.Tensor

    @classmethod
    def gather(cls, flat_N_K_D: torch.Tensor, tile: AttentionTile) -> "_KeysOrValues":
        own_K_M_D = _gather_heads(flat_N_K_D, tile, flat_N_K_D.shape[1])
        return cls(
            tile, flat_N_K_D.index_select(0, tile.prefix_index_T).transpose(0, 1).contiguous(), _by_segment(own_K_M_D, tile)
        )

    def float(self) -> "_KeysOrValues":
        return self._replace(prefix_K_T_D=self.prefix_K_T_D.float(), segment_X_S_D=self.segment_X_S_D.float())

    def dot_products(self, rows_K_M_D: torch.Tensor) -> torch.Tensor:
        """Products [K, M, W] of these rows with all that is seen."""
        own_K_M_S = (_by_segment(rows_K_M_D, self.tile) @ self.segment_X_S_D.transpose(1, 2)).view(*rows_K_M_D.shape[:2], -1)
        return (
            torch.cat([rows_K_M_D @ self.prefix_K_T_D.transpose(1, 2), own_K_M_S], dim=2)
            if self.tile.prefix_length
            else own_K_M_S
        )

    def weighted_sum(self, weight_K_M_W: torch.Tensor) -> torch.Tensor:
        """Sums of all that is seen, by weight; [K, M, D]."""
        of_own = (_by_segment(weight_K_M_W[..., self.tile.prefix_length :], self.tile) @ self.segment_X_S_D).view(
            *weight_K_M_W.shape[:2], -1
        )
        return (
            torch.baddbmm(of_own, weight_K_M_W[..., : self.tile.prefix_length], self.prefix_K_T_D)
            if self.tile.prefix_length
            else of_own
        )

    @staticmethod
    def accumulate_grad(
        flat_N_K_D: torch.Tensor, tile: AttentionTile, weight_K_M_W: torch.Tensor, rows_K_M_D: torch.Tensor
    ) -> None:
        """Add to all that is seen what `weighted_sum` takes of it, the other way round."""
        own_X_S_D = _by_segment(weight_K_M_W[..., tile.prefix_length :], tile).transpose(1, 2) @ _by_segment(rows_K_M_D, tile)
        own_CS_K_D = own_X_S_D.reshape(len(weight_K_M_W), -1, own_X_S_D.shape[2]).transpose(0, 1)
        flat_N_K_D.index_add_(0, tile.index_CS, own_CS_K_D.to(flat_N_K_D.dtype))
        if tile.prefix_length:
            seen_K_T_D = weight_K_M_W[..., : tile.prefix_length].transpose(1, 2) @ rows_K_M_D
            flat_N_K_D.index_add_(0, tile.prefix_index_T, seen_K_T_D.transpose(0, 1).to(flat_N_K_D.dtype))


def _by_segment(rows_K_M_Y: torch.Tensor, tile: AttentionTile) -> torch.Tensor:
    """[X, M of one run, Y]; a view where one can be had."""
    return rows_K_M_Y.reshape(len(rows_K_M_Y) * tile.n_segments, -1, rows_K_M_Y.shape[2])


def _gather_heads(flat_N_H_D: torch.Tensor, tile: AttentionTile, heads: int, *, zero_padding: bool = False) -> torch.Tensor:
    """A piece's tokens, a head of keys at a time; [K, M, D]."""
    taken_CS_H_D = flat_N_H_D.index_select(0, tile.index_CS)
    if zero_padding and tile.valid_CS is not None:
        taken_CS_H_D *= tile.valid_CS[:, None, None]
    places, _, size = taken_CS_H_D.shape
    return taken_CS_H_D.view(places, heads, -1, size).transpose(0, 1).reshape(heads, -1, size)


def _scatter_heads(flat_N_H_D: torch.Tensor, tile: AttentionTile, rows_K_M_D: torch.Tensor) -> None:
    """The way back of `_gather_heads`."""
    heads, _, size = rows_K_M_D.shape
    cells_CS_H_D = rows_K_M_D.view(heads, len(tile.index_CS), -1, size).transpose(0, 1).flatten(1, 2).to(flat_N_H_D.dtype)
    if tile.valid_CS is None:
        flat_N_H_D.index_copy_(0, tile.index_CS, cells_CS_H_D)
    else:
        flat_N_H_D.index_copy_(0, tile.index_CS[tile.valid_CS], cells_CS_H_D[tile.valid_CS])
