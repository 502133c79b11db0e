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

STRETCH = 128
"""Longest run of a piece; a longer one is cut."""

LARGEST = 2**19
"""Scores of a piece at most, for one head: 2 MB."""


class Piece(NamedTuple):
    """`place_CS` are flat places run by run; padding stands at some place of the piece, and counts nothing."""

    seen_T: torch.Tensor
    """Flat places that every run sees, in their order."""
    runs: int
    place_CS: torch.Tensor
    real_CS: torch.Tensor | None
    """What is no padding; None where all is."""

    @property
    def length(self) -> int:
        return len(self.place_CS) // self.runs

    @property
    def seen(self) -> int:
        return len(self.seen_T)


def pieces_of(prompts: Sequence[int], branches: Sequence[Sequence[int]], device: Any) -> list[Piece]:
    """Of a flat row of prompts, each followed by its branches; the numbers are of tokens."""
    found, at = list[Piece](), 0
    for prompt, lengths in zip(prompts, branches, strict=True):
        place_T = torch.arange(at, at + prompt, device=device)
        found += _stretches(place_T[:0], place_T)
        at += prompt
        runs = []
        for length in lengths:
            runs.append(torch.arange(at, at + length, device=device))
            at += length
        found += chain.from_iterable(_stretches(place_T, run) for run in runs if len(run) > STRETCH)
        short = sorted((run for run in runs if 0 < len(run) <= STRETCH), key=len, reverse=True)
        found += [_piece(place_T, some) for some in _alike(short, prompt)]
    return found


def _stretches(before_T: torch.Tensor, run_N: torch.Tensor) -> list[Piece]:
    """One run cut into pieces that see what comes before it and what came before in itself."""
    return [
        _piece(torch.cat([before_T, run_N[:start]]), [run_N[start : start + STRETCH]]) for start in range(0, len(run_N), STRETCH)
    ]


def _alike(runs: Sequence[torch.Tensor], seen: int) -> Iterator[Sequence[torch.Tensor]]:
    """Runs, the longest first, as many to a piece as it may have scores, and none half as long as its first."""
    start = 0
    for place, run in enumerate(runs):
        longest = len(runs[start])
        if place > start and ((place - start + 1) * longest * (seen + longest) > LARGEST or 2 * len(run) < longest):
            yield runs[start:place]
            start = place
    if runs:
        yield runs[start:]


def _piece(seen_T: torch.Tensor, runs: Sequence[torch.Tensor]) -> Piece:
    width = max(map(len, runs))
    place_C_S = torch.stack([torch.cat([run, run[:1].expand(width - len(run))]) for run in runs])
    length_C = torch.tensor([len(run) for run in runs], device=seen_T.device)
    real_C_S = torch.arange(width, device=seen_T.device) < length_C[:, None]
    return Piece(seen_T, len(runs), place_C_S.flatten(), None if bool(real_C_S.all()) else real_C_S.flatten())


def attend(
    query_N_H_D: torch.Tensor, key_N_K_D: torch.Tensor, value_N_K_D: torch.Tensor, pieces: Sequence[Piece], *,
    scale: float, window: int | None,
) -> torch.Tensor:  # fmt: skip
    """What every token takes from those it sees, no more than `window` back; [N, H, D]."""
    # Autocast leaves queries and keys in float32 where their rotation is, and values not.
    query_N_H_D, key_N_K_D = query_N_H_D.to(value_N_K_D.dtype), key_N_K_D.to(value_N_K_D.dtype)
    mixed: torch.Tensor = _Attend.apply(query_N_H_D, key_N_K_D, value_N_K_D, pieces, scale, window)  # type: ignore[no-untyped-call]
    return mixed


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query_N_H_D: torch.Tensor, key_N_K_D: torch.Tensor, value_N_K_D: torch.Tensor, pieces: Sequence[Piece],
        scale: float, window: int | None,
    ) -> torch.Tensor:  # fmt: skip
        ctx.save_for_backward(query_N_H_D, key_N_K_D, value_N_K_D)
        ctx.given = (pieces, scale, window)
        mixed_N_H_D = torch.empty_like(query_N_H_D)
        with torch.autocast(query_N_H_D.device.type, enabled=False):
            for piece in pieces:
                query_K_M_D = _rows(query_N_H_D, piece, key_N_K_D.shape[1])
                weight_K_M_W = _weights(query_K_M_D, _Seen.of(key_N_K_D, piece), scale, window)
                _put(mixed_N_H_D, piece, _Seen.of(value_N_K_D, piece).mix(weight_K_M_W.to(query_N_H_D.dtype)))
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
                query_K_M_D, grad_K_M_D = _rows(query_N_H_D, piece, heads), _rows(grad_N_H_D, piece, heads, zero_padding=True)
                keys, values = _Seen.of(key_N_K_D, piece), _Seen.of(value_N_K_D, piece)
                weight_K_M_W = _weights(query_K_M_D, keys, scale, window)
                pull_K_M_W = values.glances(grad_K_M_D).float()
                slope_K_M_W = torch.ops.aten._softmax_backward_data(pull_K_M_W, weight_K_M_W, -1, torch.float32).to(dtype)
                _Seen.give(of_value, piece, weight_K_M_W.to(dtype), grad_K_M_D)
                _Seen.give(of_key, piece, slope_K_M_W, query_K_M_D)
                _put(of_query, piece, keys.mix(slope_K_M_W))
        return of_query.mul_(scale), of_key.mul_(scale).to(dtype), of_value.to(dtype), None, None, None


def _weights(query_K_M_D: torch.Tensor, keys: "_Seen", scale: float, window: int | None) -> torch.Tensor:
    """How much each query takes of what it sees, in float32; [K, M, W]."""
    piece = keys.piece
    score_K_M_W = keys.float().glances(query_K_M_D.float() * scale)
    by_place = score_K_M_W.view(len(score_K_M_W), piece.runs, piece.length, -1, score_K_M_W.shape[2])
    at_W = torch.arange(score_K_M_W.shape[2], device=score_K_M_W.device)
    back_S_W = at_W[piece.seen :, None] - at_W
    by_place[..., piece.seen :].masked_fill_((back_S_W < 0)[:, None, piece.seen :], -torch.inf)
    if window is not None and window < len(at_W):
        by_place.masked_fill_((back_S_W >= window)[:, None], -torch.inf)
    return torch.softmax(score_K_M_W, dim=-1)


class _Seen(NamedTuple):
    """The keys, or the values, that a piece's tokens see."""

    piece: Piece
    trunk_K_T_D: torch.Tensor
    own_X_S_D: torch.Tensor

    @classmethod
    def of(cls, flat_N_K_D: torch.Tensor, piece: Piece) -> "_Seen":
        own_K_M_D = _rows(flat_N_K_D, piece, flat_N_K_D.shape[1])
        return cls(piece, flat_N_K_D.index_select(0, piece.seen_T).transpose(0, 1).contiguous(), _by_run(own_K_M_D, piece))

    def float(self) -> "_Seen":
        return self._replace(trunk_K_T_D=self.trunk_K_T_D.float(), own_X_S_D=self.own_X_S_D.float())

    def glances(self, rows_K_M_D: torch.Tensor) -> torch.Tensor:
        """Products [K, M, W] of these rows with all that is seen."""
        own_K_M_S = (_by_run(rows_K_M_D, self.piece) @ self.own_X_S_D.transpose(1, 2)).view(*rows_K_M_D.shape[:2], -1)
        return torch.cat([rows_K_M_D @ self.trunk_K_T_D.transpose(1, 2), own_K_M_S], dim=2) if self.piece.seen else own_K_M_S

    def mix(self, weight_K_M_W: torch.Tensor) -> torch.Tensor:
        """Sums of all that is seen, by weight; [K, M, D]."""
        of_own = (_by_run(weight_K_M_W[..., self.piece.seen :], self.piece) @ self.own_X_S_D).view(*weight_K_M_W.shape[:2], -1)
        return torch.baddbmm(of_own, weight_K_M_W[..., : self.piece.seen], self.trunk_K_T_D) if self.piece.seen else of_own

    @staticmethod
    def give(flat_N_K_D: torch.Tensor, piece: Piece, weight_K_M_W: torch.Tensor, rows_K_M_D: torch.Tensor) -> None:
        """Add to all that is seen what `mix` takes of it, the other way round."""
        own_X_S_D = _by_run(weight_K_M_W[..., piece.seen :], piece).transpose(1, 2) @ _by_run(rows_K_M_D, piece)
        own_CS_K_D = own_X_S_D.reshape(len(weight_K_M_W), -1, own_X_S_D.shape[2]).transpose(0, 1)
        flat_N_K_D.index_add_(0, piece.place_CS, own_CS_K_D.to(flat_N_K_D.dtype))
        if piece.seen:
            seen_K_T_D = weight_K_M_W[..., : piece.seen].transpose(1, 2) @ rows_K_M_D
            flat_N_K_D.index_add_(0, piece.seen_T, seen_K_T_D.transpose(0, 1).to(flat_N_K_D.dtype))


def _by_run(rows_K_M_Y: torch.Tensor, piece: Piece) -> torch.Tensor:
    """[X, M of one run, Y]; a view where one can be had."""
    return rows_K_M_Y.reshape(len(rows_K_M_Y) * piece.runs, -1, rows_K_M_Y.shape[2])


def _rows(flat_N_H_D: torch.Tensor, piece: Piece, heads: int, *, zero_padding: bool = False) -> torch.Tensor:
    """A piece's tokens, a head of keys at a time; [K, M, D]."""
    taken_CS_H_D = flat_N_H_D.index_select(0, piece.place_CS)
    if zero_padding and piece.real_CS is not None:
        taken_CS_H_D *= piece.real_CS[:, None, None]
    places, _, size = taken_CS_H_D.shape
    return taken_CS_H_D.view(places, heads, -1, size).transpose(0, 1).reshape(heads, -1, size)


def _put(flat_N_H_D: torch.Tensor, piece: Piece, rows_K_M_D: torch.Tensor) -> None:
    """The way back of `_rows`."""
    heads, _, size = rows_K_M_D.shape
    cells_CS_H_D = rows_K_M_D.view(heads, len(piece.place_CS), -1, size).transpose(0, 1).flatten(1, 2).to(flat_N_H_D.dtype)
    if piece.real_CS is None:
        flat_N_H_D.index_copy_(0, piece.place_CS, cells_CS_H_D)
    else:
        flat_N_H_D.index_copy_(0, piece.place_CS[piece.real_CS], cells_CS_H_D[piece.real_CS])
