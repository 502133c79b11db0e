"""Attention on a CPU over shared prefixes: in tiles that fit its cache, with a backward pass that recomputes the scores.

torch's own attention has a slow backward pass on CPUs and would need each prompt's keys copied to every completion. Here the
scores of a tile are plain matrix products, computed again in the backward pass, so memory holds a layer's queries, keys and
values and no scores. Scores and weights are float32, whatever the inputs and autocast are.

A tile is C segments of S tokens, padded. Each token sees the T tokens of a prefix, which all segments of the tile share, and its
own segment up to itself. The completions of one prompt form a tile, or several where there are many or their lengths differ. A
completion longer than `MAX_SEGMENT_TOKENS` is cut into tiles of one segment each, whose prefix is the prompt and the completion
so far; a prompt is cut in the same way.

Axes: N tokens of the flat row, H query heads, K key/value heads, D size of a head, M = C × S × (H / K) query rows of one
key/value head, X = K × C, W = T + S keys that a tile's token may see (prefix first). CS is C × S flattened.

With scores Z = scale · Q Kᵀ, weights P = softmax(Z), output O = P V and its gradient dO:
dV = Pᵀ dO, dP = dO Vᵀ, dZ = P ∘ (dP − rowsum(P ∘ dP)), dQ = scale · dZ K, dK = scale · dZᵀ Q.

Source: Dao et al. (2022), FlashAttention (arXiv 2205.14135): tiling, and the backward pass by recomputation.
"""

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any, NamedTuple

import torch

MAX_SEGMENT_TOKENS = 128
"""Longest segment of a tile; a longer completion or prompt is cut."""

MAX_TILE_SCORES = 2**19
"""Most scores C × S × W of a tile, for one head: 2 MB in float32. A single segment may exceed it."""


class AttentionTile(NamedTuple):
    """The tokens of the flat row that form a tile. `index_CS` goes segment by segment; padding repeats a token of its segment."""

    prefix_index_T: torch.Tensor
    """Flat indices of the tokens that every segment sees, in the order of their positions."""
    n_segments: int
    index_CS: torch.Tensor
    valid_CS: torch.Tensor | None
    """False where a slot is padding; None where no slot is."""

    @property
    def segment_length(self) -> int:
        return len(self.index_CS) // self.n_segments

    @property
    def prefix_length(self) -> int:
        return len(self.prefix_index_T)


def build_tiles(prefix_lengths: Sequence[int], suffix_lengths: Sequence[Sequence[int]], device: Any) -> list[AttentionTile]:
    """The tiles of a flat row of prefixes, each followed by its suffixes. Lengths are in tokens; suffixes of 0 get no tile."""
    tiles, start = list[AttentionTile](), 0
    for prefix_length, lengths in zip(prefix_lengths, suffix_lengths, strict=True):
        prefix_T = torch.arange(start, start + prefix_length, device=device)
        tiles += _split_segment(prefix_T[:0], prefix_T)
        start += prefix_length
        suffixes = []
        for length in lengths:
            suffixes.append(torch.arange(start, start + length, device=device))
            start += length
        tiles += chain.from_iterable(_split_segment(prefix_T, suffix) for suffix in suffixes if len(suffix) > MAX_SEGMENT_TOKENS)
        short = sorted((suffix for suffix in suffixes if 0 < len(suffix) <= MAX_SEGMENT_TOKENS), key=len, reverse=True)
        tiles += [_make_tile(prefix_T, batch) for batch in _batch_segments(short, prefix_length)]
    return tiles


def _split_segment(prefix_index_T: torch.Tensor, segment_N: torch.Tensor) -> list[AttentionTile]:
    """One long segment as tiles of a single segment; the prefix of each is `prefix_index_T` and the segment so far."""
    return [
        _make_tile(torch.cat([prefix_index_T, segment_N[:start]]), [segment_N[start : start + MAX_SEGMENT_TOKENS]])
        for start in range(0, len(segment_N), MAX_SEGMENT_TOKENS)
    ]


def _batch_segments(segments: Sequence[torch.Tensor], prefix_length: int) -> Iterator[Sequence[torch.Tensor]]:
    """Batches of segments, which come longest first: as many as `MAX_TILE_SCORES` allows, none under half its batch's longest."""
    start = 0
    for end, segment in enumerate(segments):
        longest = len(segments[start])
        if end > start and (
            (end - start + 1) * longest * (prefix_length + longest) > MAX_TILE_SCORES or 2 * len(segment) < longest
        ):
            yield segments[start:end]
            start = end
    if segments:
        yield segments[start:]


def _make_tile(prefix_index_T: torch.Tensor, segments: Sequence[torch.Tensor]) -> AttentionTile:
    width = max(map(len, segments))
    index_C_S = torch.stack([torch.cat([segment, segment[:1].expand(width - len(segment))]) for segment in segments])
    length_C = torch.tensor([len(segment) for segment in segments], device=prefix_index_T.device)
    valid_C_S = torch.arange(width, device=prefix_index_T.device) < length_C[:, None]
    return AttentionTile(
        prefix_index_T, len(segments), index_C_S.flatten(), None if bool(valid_C_S.all()) else valid_C_S.flatten()
    )


def tiled_attention(
    query_N_H_D: torch.Tensor, key_N_K_D: torch.Tensor, value_N_K_D: torch.Tensor, tiles: Sequence[AttentionTile], *,
    scale: float, window: int | None,
) -> torch.Tensor:  # fmt: skip
    """Attention output [N, H, D], differentiable. A token sees at most `window` tokens, itself included; None means no limit.

    Every token of the flat row must be a valid slot of exactly one tile: outputs are not initialised otherwise.
    """
    # Under autocast, rotary embeddings leave queries and keys in float32, but values are in the lower precision.
    query_N_H_D, key_N_K_D = query_N_H_D.to(value_N_K_D.dtype), key_N_K_D.to(value_N_K_D.dtype)
    output: torch.Tensor = _TiledAttention.apply(query_N_H_D, key_N_K_D, value_N_K_D, tiles, scale, window)  # type: ignore[no-untyped-call]
    return output


class _TiledAttention(torch.autograd.Function):
    """Names of gradients follow the formulas of the module: weights P, scores Z."""

    @staticmethod
    def forward(
        ctx: Any, query_N_H_D: torch.Tensor, key_N_K_D: torch.Tensor, value_N_K_D: torch.Tensor, tiles: Sequence[AttentionTile],
        scale: float, window: int | None,
    ) -> torch.Tensor:  # fmt: skip
        ctx.save_for_backward(query_N_H_D, key_N_K_D, value_N_K_D)  # no scores: they would need the memory of all tiles at once
        ctx.given = (tiles, scale, window)
        output_N_H_D = torch.empty_like(query_N_H_D)
        with torch.autocast(query_N_H_D.device.type, enabled=False):
            for tile in tiles:
                query_K_M_D = _gather_heads(query_N_H_D, tile, key_N_K_D.shape[1])
                weights_K_M_W = _attention_weights(query_K_M_D, _KeysOrValues.gather(key_N_K_D, tile), scale, window)
                values = _KeysOrValues.gather(value_N_K_D, tile)
                _scatter_heads(output_N_H_D, tile, values.weighted_sum(weights_K_M_W.to(query_N_H_D.dtype)))
        return output_N_H_D

    @staticmethod
    def backward(ctx: Any, grad_N_H_D: torch.Tensor) -> tuple[Any, ...]:
        query_N_H_D, key_N_K_D, value_N_K_D = ctx.saved_tensors
        tiles, scale, window = ctx.given
        dtype, heads = query_N_H_D.dtype, key_N_K_D.shape[1]
        grad_query = torch.empty_like(query_N_H_D)
        # A prompt's keys and values get a share from every tile that sees them: added up in float32, or small shares would be
        # rounded away. A query is in one tile only, so its gradient is written once.
        grad_key, grad_value = (torch.zeros(key_N_K_D.shape, device=key_N_K_D.device) for _ in range(2))
        with torch.autocast(query_N_H_D.device.type, enabled=False):
            for tile in tiles:
                # Padded slots repeat a real token. Its output gradient must not count again: 0 makes dP, dZ and dV of them 0.
                query_K_M_D, grad_K_M_D = (
                    _gather_heads(query_N_H_D, tile, heads),
                    _gather_heads(grad_N_H_D, tile, heads, zero_padding=True),
                )
                keys, values = _KeysOrValues.gather(key_N_K_D, tile), _KeysOrValues.gather(value_N_K_D, tile)
                weights_K_M_W = _attention_weights(query_K_M_D, keys, scale, window)
                grad_weights_K_M_W = values.dot_products(grad_K_M_D).float()
                grad_scores_K_M_W = torch.ops.aten._softmax_backward_data(
                    grad_weights_K_M_W, weights_K_M_W, -1, torch.float32
                ).to(dtype)
                _KeysOrValues.accumulate_grad(grad_value, tile, weights_K_M_W.to(dtype), grad_K_M_D)
                _KeysOrValues.accumulate_grad(grad_key, tile, grad_scores_K_M_W, query_K_M_D)
                _scatter_heads(grad_query, tile, keys.weighted_sum(grad_scores_K_M_W))
        return grad_query.mul_(scale), grad_key.mul_(scale).to(dtype), grad_value.to(dtype), None, None, None


def _attention_weights(query_K_M_D: torch.Tensor, keys: "_KeysOrValues", scale: float, window: int | None) -> torch.Tensor:
    """softmax(scale · q kᵀ) over what each query sees, float32, [K, M, W]."""
    tile = keys.tile
    scores_K_M_W = keys.float().dot_products(query_K_M_D.float() * scale)
    # A view [K, C, S, H / K, W], so that the masks below, which depend on a token's place in its segment, apply in place.
    by_token = scores_K_M_W.view(len(scores_K_M_W), tile.n_segments, tile.segment_length, -1, scores_K_M_W.shape[2])
    column_W = torch.arange(scores_K_M_W.shape[2], device=scores_K_M_W.device)
    distance_S_W = column_W[tile.prefix_length :, None] - column_W
    # Causality hides padding too: it is at the end of a segment, behind every real token.
    by_token[..., tile.prefix_length :].masked_fill_((distance_S_W < 0)[:, None, tile.prefix_length :], -torch.inf)
    if window is not None and window < len(column_W):
        by_token.masked_fill_((distance_S_W >= window)[:, None], -torch.inf)
    return torch.softmax(scores_K_M_W, dim=-1)


class _KeysOrValues(NamedTuple):
    """The keys, or the values, that a tile's tokens see: those of the prefix once, those of each segment apart.

    The products below act on prefix and segments separately, so the prefix is never copied to each segment.
    """

    tile: AttentionTile
    prefix_K_T_D: torch.Tensor
    segment_X_S_D: torch.Tensor

    @classmethod
    def gather(cls, flat_N_K_D: torch.Tensor, tile: AttentionTile) -> "_KeysOrValues":
        segment_K_M_D = _gather_heads(flat_N_K_D, tile, flat_N_K_D.shape[1])
        return cls(
            tile, flat_N_K_D.index_select(0, tile.prefix_index_T).transpose(0, 1).contiguous(), _by_segment(segment_K_M_D, tile)
        )

    def float(self) -> "_KeysOrValues":
        return self._replace(prefix_K_T_D=self.prefix_K_T_D.float(), segment_X_S_D=self.segment_X_S_D.float())

    def dot_products(self, rows_K_M_D: torch.Tensor) -> torch.Tensor:
        """Products [K, M, W] of rows with the keys (or values) of the shared prefix and of the row's own segment: q kᵀ, dO Vᵀ."""
        segment_K_M_S = (_by_segment(rows_K_M_D, self.tile) @ self.segment_X_S_D.transpose(1, 2)).view(*rows_K_M_D.shape[:2], -1)
        return (
            torch.cat([rows_K_M_D @ self.prefix_K_T_D.transpose(1, 2), segment_K_M_S], dim=2)
            if self.tile.prefix_length
            else segment_K_M_S
        )

    def weighted_sum(self, weights_K_M_W: torch.Tensor) -> torch.Tensor:
        """Weighted sums [K, M, D] over prefix and own segment: P V, dZ K."""
        segment_K_M_D = (_by_segment(weights_K_M_W[..., self.tile.prefix_length :], self.tile) @ self.segment_X_S_D).view(
            *weights_K_M_W.shape[:2], -1
        )
        return (
            torch.baddbmm(segment_K_M_D, weights_K_M_W[..., : self.tile.prefix_length], self.prefix_K_T_D)
            if self.tile.prefix_length
            else segment_K_M_D
        )

    @staticmethod
    def accumulate_grad(
        flat_N_K_D: torch.Tensor, tile: AttentionTile, weights_K_M_W: torch.Tensor, rows_K_M_D: torch.Tensor
    ) -> None:
        """Backward of `weighted_sum`: add weightsᵀ · rows into the flat gradient of keys (dZᵀ Q) or values (Pᵀ dO), in place."""
        grad_X_S_D = _by_segment(weights_K_M_W[..., tile.prefix_length :], tile).transpose(1, 2) @ _by_segment(rows_K_M_D, tile)
        grad_CS_K_D = grad_X_S_D.reshape(len(weights_K_M_W), -1, grad_X_S_D.shape[2]).transpose(0, 1)
        flat_N_K_D.index_add_(0, tile.index_CS, grad_CS_K_D.to(flat_N_K_D.dtype))
        if tile.prefix_length:
            grad_K_T_D = weights_K_M_W[..., : tile.prefix_length].transpose(1, 2) @ rows_K_M_D
            flat_N_K_D.index_add_(0, tile.prefix_index_T, grad_K_T_D.transpose(0, 1).to(flat_N_K_D.dtype))


def _by_segment(rows_K_M_Y: torch.Tensor, tile: AttentionTile) -> torch.Tensor:
    """[K, M, Y] to [X, M / C, Y], as a view where the strides allow one."""
    return rows_K_M_Y.reshape(len(rows_K_M_Y) * tile.n_segments, -1, rows_K_M_Y.shape[2])


def _gather_heads(flat_N_H_D: torch.Tensor, tile: AttentionTile, heads: int, *, zero_padding: bool = False) -> torch.Tensor:
    """A tile's tokens from the flat row [N, H, D], grouped by key/value head: [K, M, D] with K = `heads`."""
    cells_CS_H_D = flat_N_H_D.index_select(0, tile.index_CS)
    if zero_padding and tile.valid_CS is not None:
        cells_CS_H_D *= tile.valid_CS[:, None, None]
    n_cells, _, size = cells_CS_H_D.shape
    return cells_CS_H_D.view(n_cells, heads, -1, size).transpose(0, 1).reshape(heads, -1, size)


def _scatter_heads(flat_N_H_D: torch.Tensor, tile: AttentionTile, rows_K_M_D: torch.Tensor) -> None:
    """Inverse of `_gather_heads`: write the valid cells into the flat row, in place."""
    heads, _, size = rows_K_M_D.shape
    cells_CS_H_D = rows_K_M_D.view(heads, len(tile.index_CS), -1, size).transpose(0, 1).flatten(1, 2).to(flat_N_H_D.dtype)
    if tile.valid_CS is None:
        flat_N_H_D.index_copy_(0, tile.index_CS, cells_CS_H_D)
    else:
        flat_N_H_D.index_copy_(0, tile.index_CS[tile.valid_CS], cells_CS_H_D[tile.valid_CS])
