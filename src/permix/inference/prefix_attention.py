"""Attention for many completions of one prompt that reads the prompt once, in training and in decoding.

The tokens of all prompts and completions lie in one flat row without padding; `PrefixTree` holds which token sees which. Layers
other than attention work token by token and need no change. Attention goes through the function that
`permix.inference.shared_prefix` registers with transformers, which calls `attend` of one of three passes: `PrefillPass` (prompts
into a `PrefixKVCache`), `DecodeStep` (one new token per completion) and `TrainingPass` (prompts and completions, with gradient).

A prompt's token sees the prompt up to itself; a completion's token sees its whole prompt and its own completion up to itself.
Logits and gradients therefore equal those of one padded row per completion, at the cost of one prompt instead of G.

Axes: N tokens of the flat row, R padded rows, P prefixes (prompts), B suffixes (completions), H query heads, K key/value heads
(H is a multiple of K), D size of a head; in padded rows T is the position.

Source of the idea: tree attention over a shared prefix, as inference engines use it for decoding; here it also has a gradient.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch.nn.functional import scaled_dot_product_attention

from permix.inference.cpu_attention import build_tiles, tiled_attention


class PaddedRows(NamedTuple):
    """Indices into the flat row, arranged in padded rows. Padding has index 0, and no real token attends to it."""

    index_R_T: torch.Tensor
    valid_R_T: torch.Tensor

    def gather(self, flat_N_H_D: torch.Tensor) -> torch.Tensor:
        """[N, H, D] to [R, T, H, D]."""
        taken = flat_N_H_D.index_select(0, self.index_R_T.flatten())
        return taken.reshape(*self.index_R_T.shape, *flat_N_H_D.shape[1:])


class PrefixTree:
    """Layout of one flat row: each prefix, then its suffixes, then the next prefix.

    In training a suffix is a completion without its last token, from which nothing is predicted; in prefill it is the rest of a
    prompt behind the prefix that it shares with others.
    """

    def __init__(self, prefix_lengths: Sequence[int], suffix_lengths: Sequence[Sequence[int]], device: Any) -> None:
        """Token counts: of each prefix, and of each prefix's suffixes (none, or a length of 0, is allowed)."""
        self.device = device
        prefix_starts, suffix_starts, start = [], [], 0
        for prefix_length, lengths in zip(prefix_lengths, suffix_lengths, strict=True):
            prefix_starts.append(start)
            start += prefix_length
            for length in lengths:
                suffix_starts.append(start)
                start += length
        self.n_tokens = start
        all_suffix_lengths = [length for lengths in suffix_lengths for length in lengths]
        prefix_indices = [index for index, lengths in enumerate(suffix_lengths) for _ in lengths]
        self.prefix = _make_padded_rows(prefix_starts, prefix_lengths, device)
        self.suffix = _make_padded_rows(suffix_starts, all_suffix_lengths, device)
        self.prefix_length_P = torch.tensor(list(prefix_lengths), device=device)
        self.prefix_index_B = torch.tensor(prefix_indices, device=device, dtype=torch.long)
        self._lengths = (prefix_lengths, suffix_lengths)
        self.tiles = build_tiles(prefix_lengths, suffix_lengths, device) if self.prefix.index_R_T.device.type == "cpu" else []
        self.position_N = self._positions()
        self._masks: dict[int | None, tuple[torch.Tensor | None, torch.Tensor]] = {}

    @cached_property
    def root_to_leaf(self) -> PaddedRows:
        """One row per leaf: each suffix with its prefix in front, and a prefix without suffixes alone."""
        rows: list[list[int]] = []
        start = 0
        for prefix_length, lengths in zip(*self._lengths, strict=True):
            prefix = list(range(start, start + prefix_length))
            start += prefix_length
            rows += [] if lengths else [prefix]
            for length in lengths:
                rows.append([*prefix, *range(start, start + length)])
                start += length
        width = max(map(len, rows))
        index_R_T = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], device=self.device)
        length_R = torch.tensor([len(row) for row in rows], device=self.device)
        return PaddedRows(index_R_T, torch.arange(width, device=self.device) < length_R[:, None])

    def _positions(self) -> torch.Tensor:
        """Position [N] of each token in its own sequence: a suffix continues its prefix, as if it stood right behind it."""
        position_N = torch.zeros(self.n_tokens, dtype=torch.long, device=self.device)
        for padded, offset in ((self.prefix, 0), (self.suffix, self.prefix_length_P[self.prefix_index_B][:, None])):
            column_R_T = torch.arange(padded.index_R_T.shape[1], device=self.device).expand_as(padded.index_R_T) + offset
            position_N[padded.index_R_T[padded.valid_R_T]] = column_R_T[padded.valid_R_T]
        return position_N

    @cached_property
    def _inverse_index_N(self) -> torch.Tensor:
        """Where each flat token's output is among all cells of the padded prefixes, then all cells of the padded suffixes."""
        inverse_N = torch.zeros(self.n_tokens, dtype=torch.long, device=self.device)
        offset = 0
        for padded in (self.prefix, self.suffix):
            cell_R_T = torch.arange(padded.index_R_T.numel(), device=self.device).view_as(padded.index_R_T) + offset
            inverse_N[padded.index_R_T[padded.valid_R_T]] = cell_R_T[padded.valid_R_T]
            offset += padded.index_R_T.numel()
        return inverse_N

    def attend(
        self, query_N_H_D: torch.Tensor, key_N_K_D: torch.Tensor, value_N_K_D: torch.Tensor, *,
        scale: float | None, window: int | None, dropout: float,
    ) -> torch.Tensor:  # fmt: skip
        """Attention output [N, H, D] of every token over the tokens it sees; `scale` None means 1 / √D.

        `window`: how many tokens, itself included, a token of this layer sees at most; None means all.
        """
        if self.tiles and not dropout:
            scale = scale or query_N_H_D.shape[2] ** -0.5
            return tiled_attention(query_N_H_D, key_N_K_D, value_N_K_D, self.tiles, scale=scale, window=window)
        prefix_mask, suffix_mask = self._build_masks(window)
        prefix_keys, prefix_values = self.prefix.gather(key_N_K_D), self.prefix.gather(value_N_K_D)
        options = {"scale": scale, "dropout_p": dropout}
        # Padded keys need no mask here: padding is at the end of a row, where causality hides it from every real query.
        prefix_out = _attention(
            self.prefix.gather(query_N_H_D), prefix_keys, prefix_values, prefix_mask, is_causal=prefix_mask is None, **options
        )
        outputs = [prefix_out.flatten(0, 1)]
        if self.suffix.index_R_T.numel():
            suffix_out = _attention(
                self.suffix.gather(query_N_H_D),
                torch.cat([prefix_keys.index_select(0, self.prefix_index_B), self.suffix.gather(key_N_K_D)], dim=1),
                torch.cat([prefix_values.index_select(0, self.prefix_index_B), self.suffix.gather(value_N_K_D)], dim=1),
                suffix_mask, is_causal=False, **options,
            )  # fmt: skip
            outputs.append(suffix_out.flatten(0, 1))
        return torch.cat(outputs).index_select(0, self._inverse_index_N)

    def _build_masks(self, window: int | None) -> tuple[torch.Tensor | None, torch.Tensor]:
        """Masks, True where a query sees a key: of prefixes [1, 1, T, T] (None: causal), and of suffixes over (prefix, suffix).

        They are kept per window, since the layers of one network may have different windows.
        """
        if window not in self._masks:
            prefix_width, suffix_width = self.prefix.index_R_T.shape[1], self.suffix.index_R_T.shape[1]
            prefix_T = torch.arange(prefix_width, device=self.device)
            suffix_T = torch.arange(suffix_width, device=self.device)
            prefix_mask = None
            if window is not None and window < prefix_width:
                distance_T_T = prefix_T[:, None] - prefix_T
                prefix_mask = ((distance_T_T >= 0) & (distance_T_T < window))[None, None]
            prefix_length_B = self.prefix_length_P[self.prefix_index_B][:, None]
            position_B_T = prefix_length_B + suffix_T
            # Padded queries see the prefix too: a mask row without any key would give NaN, also in the gradient. Nothing reads
            # their output.
            sees_prefix = (prefix_T < prefix_length_B)[:, None, :].expand(-1, suffix_width, -1)
            sees_suffix = (suffix_T[:, None] >= suffix_T).expand(len(prefix_length_B), -1, -1)
            if window is not None:
                # Prefixes are padded to the widest one, so the distance to them is one of positions, not of columns.
                sees_prefix = sees_prefix & (position_B_T[:, :, None] - prefix_T < window)
                sees_suffix = sees_suffix & (suffix_T[:, None] - suffix_T < window)
            self._masks[window] = (prefix_mask, torch.cat([sees_prefix, sees_suffix], dim=-1)[:, None])
        return self._masks[window]


def _make_padded_rows(starts: Sequence[int], lengths: Sequence[int], device: Any) -> PaddedRows:
    start_R = torch.tensor(list(starts), device=device, dtype=torch.long)
    length_R = torch.tensor(list(lengths), device=device, dtype=torch.long)
    column_T = torch.arange(max(lengths, default=0), device=device)
    valid_R_T = column_T < length_R[:, None]
    return PaddedRows(torch.where(valid_R_T, start_R[:, None] + column_T, 0), valid_R_T)


def _attention(
    query_R_T_H_D: torch.Tensor, key_R_T_K_D: torch.Tensor, value_R_T_K_D: torch.Tensor, mask: torch.Tensor | None, **options: Any
) -> torch.Tensor:
    """[R, T, H, D] in and out. Each key/value head is repeated for the query heads that share it."""
    repeats = query_R_T_H_D.shape[2] // key_R_T_K_D.shape[2]
    keys, values = (each.repeat_interleave(repeats, dim=2).transpose(1, 2) for each in (key_R_T_K_D, value_R_T_K_D))
    output: torch.Tensor = scaled_dot_product_attention(query_R_T_H_D.transpose(1, 2), keys, values, attn_mask=mask, **options)
    return output.transpose(1, 2)


class PrefixKVCache:
    """Keys and values of every layer while a batch is decoded: each prompt's once, and each completion's own.

    B counts completions ("rows"), sorted by prompt: `prompt_indices` never falls. `suffix_length_B` is the number of a row's own
    tokens. The room for them, S, grows by blocks.
    """

    def __init__(self, prompt_lengths: Sequence[int], prompt_indices: Sequence[int], device: Any) -> None:
        self.prompt_length_P = torch.tensor(list(prompt_lengths), device=device)
        self.prompt_index_B = torch.tensor(list(prompt_indices), device=device, dtype=torch.long)
        self.suffix_length_B = torch.zeros_like(self.prompt_index_B)
        self._prefix_kv: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._suffix_kv: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    @property
    def grid_slot_B(self) -> torch.Tensor:
        """Each row's cell in a grid of prompts × `max_rows_per_prompt`."""
        first_P = torch.searchsorted(
            self.prompt_index_B, torch.arange(len(self.prompt_length_P), device=self.prompt_index_B.device)
        )
        return (
            self.prompt_index_B * self.max_rows_per_prompt
            + torch.arange(len(self.prompt_index_B), device=self.prompt_index_B.device)
            - first_P[self.prompt_index_B]
        )

    @property
    def max_rows_per_prompt(self) -> int:
        return int(torch.bincount(self.prompt_index_B, minlength=1).max())

    @property
    def n_suffix_blocks(self) -> int:
        """Blocks that hold the own tokens of every row and one more."""
        return int(self.suffix_length_B.max()) // KV_BLOCK_TOKENS + 1

    def write_prefix(self, layer: int, prompt_slice: slice, keys_P_T_K_D: torch.Tensor, values_P_T_K_D: torch.Tensor) -> None:
        """Store a layer's keys and values of the prompts in `prompt_slice`."""
        if layer not in self._prefix_kv:
            _, _, heads, size = keys_P_T_K_D.shape
            shape = (len(self.prompt_length_P), heads, int(self.prompt_length_P.max()), size)
            # Zeros: padding gets weight 0, but 0 times a NaN of uninitialised memory would be NaN.
            self._prefix_kv[layer] = (keys_P_T_K_D.new_zeros(shape), values_P_T_K_D.new_zeros(shape))
        for stored, new in zip(self._prefix_kv[layer], (keys_P_T_K_D, values_P_T_K_D), strict=True):
            stored[prompt_slice, :, : new.shape[1]] = new.transpose(1, 2)

    def write_suffix_token(
        self, layer: int, n_blocks: int, key_B_K_D: torch.Tensor, value_B_K_D: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store a token of every row behind its own ones; returns the rows' own keys and values [B, K, S, D].

        S is the whole room (`n_blocks` blocks), and what is behind a row's last token has no meaning: a slice would not be
        contiguous, and every product would copy it. `extend_suffixes` counts the token, once all layers have stored it.
        """
        # Under autocast keys and values may have two types.
        no_token = (each_B_K_D[:, :, None][:, :, :0] for each_B_K_D in (key_B_K_D, value_B_K_D))
        keys_B_K_S_D, values_B_K_S_D = (
            _resize(each, n_blocks * KV_BLOCK_TOKENS) for each in self._suffix_kv.get(layer, no_token)
        )
        self._suffix_kv[layer] = (keys_B_K_S_D, values_B_K_S_D)
        row_B = torch.arange(len(key_B_K_D), device=key_B_K_D.device)
        keys_B_K_S_D[row_B, :, self.suffix_length_B] = key_B_K_D.to(keys_B_K_S_D.dtype)
        values_B_K_S_D[row_B, :, self.suffix_length_B] = value_B_K_D.to(values_B_K_S_D.dtype)
        return keys_B_K_S_D, values_B_K_S_D

    def extend_suffixes(self, rows_N: torch.Tensor) -> None:
        """Count one more token of each of these rows."""
        self.suffix_length_B[rows_N] += 1

    def prefix_kv(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of the prompts [P, K, T, D]."""
        return self._prefix_kv[layer]

    def select_rows(self, rows_N: torch.Tensor) -> None:
        """Keep only these rows (ascending, renumbered from 0) and the prompts that still have one."""
        # Rows are sorted by prompt, so rows of one prompt are neighbours.
        kept_P, prompt_index_N = torch.unique_consecutive(self.prompt_index_B[rows_N], return_inverse=True)
        width = int(self.prompt_length_P[kept_P].max())
        self.prompt_length_P, self.prompt_index_B = self.prompt_length_P[kept_P], prompt_index_N
        self._prefix_kv = {layer: (k[kept_P, :, :width], v[kept_P, :, :width]) for layer, (k, v) in self._prefix_kv.items()}
        self.suffix_length_B = self.suffix_length_B[rows_N]
        room = self.n_suffix_blocks * KV_BLOCK_TOKENS
        self._suffix_kv = {layer: (k[rows_N, :, :room], v[rows_N, :, :room]) for layer, (k, v) in self._suffix_kv.items()}

    def append(self, other: "PrefixKVCache") -> None:
        """Add the prompts and rows of a cache that has been prefilled and not decoded with, behind the own ones.

        This empties the other cache.
        """
        n_prompts, n_rows = len(self.prompt_length_P), len(other.prompt_index_B)
        self.prompt_length_P = torch.cat([self.prompt_length_P, other.prompt_length_P])
        self.prompt_index_B = torch.cat([self.prompt_index_B, other.prompt_index_B + n_prompts])
        self.suffix_length_B = torch.cat([self.suffix_length_B, other.suffix_length_B])
        width = int(self.prompt_length_P.max())
        for layer in list(other._prefix_kv):
            theirs = other._prefix_kv.pop(layer)  # else both caches and the joined one would be in memory together
            keys, values = (
                torch.cat([_resize(own, width), _resize(new, width)])
                for own, new in zip(self._prefix_kv[layer], theirs, strict=True)
            )
            self._prefix_kv[layer] = (keys, values)
        for layer, own in self._suffix_kv.items():
            keys, values = (torch.cat([each, each.new_zeros(n_rows, *each.shape[1:])]) for each in own)
            self._suffix_kv[layer] = (keys, values)


def _resize(rows_R_K_T_D: torch.Tensor, width: int) -> torch.Tensor:
    """The same rows with `width` columns, the new ones zero; as they are where they have as many."""
    missing = width - rows_R_K_T_D.shape[2]
    return rows_R_K_T_D if missing <= 0 else torch.nn.functional.pad(rows_R_K_T_D, (0, 0, 0, missing))


class PrefillPass(NamedTuple):
    """A pass over whole prompts, the leaves of a tree, that also writes their keys and values into the cache."""

    tree: PrefixTree
    kv_cache: PrefixKVCache
    prompt_slice: slice

    def attend(
        self, layer: int, query_N_H_D: torch.Tensor, key_N_K_D: torch.Tensor, value_N_K_D: torch.Tensor, **options: Any
    ) -> torch.Tensor:
        prompts = self.tree.root_to_leaf
        self.kv_cache.write_prefix(layer, self.prompt_slice, prompts.gather(key_N_K_D), prompts.gather(value_N_K_D))
        return self.tree.attend(query_N_H_D, key_N_K_D, value_N_K_D, **options)


class TrainingPass(NamedTuple):
    """A pass over prompts and their completions, with gradient."""

    tree: PrefixTree

    def attend(
        self, layer: int, query_N_H_D: torch.Tensor, key_N_K_D: torch.Tensor, value_N_K_D: torch.Tensor, **options: Any
    ) -> torch.Tensor:
        return self.tree.attend(query_N_H_D, key_N_K_D, value_N_K_D, **options)


class DecodeStep:
    """A pass over the next token of each row in `rows_N` (ascending), the rows that have not ended.

    Attention runs over all B rows of the cache, with zeros for ended ones: they are few, because `select_rows` drops them in
    time, and leaving them out would copy the keys of all others.

    Axes besides the module's: here R is the query heads of one key/value head, T the prompts' columns, S the completions' own
    columns, and W = T + S.
    """

    def __init__(self, kv_cache: PrefixKVCache, rows_N: torch.Tensor) -> None:
        self.kv_cache, self.rows_N = kv_cache, rows_N
        self.n_suffix_blocks = kv_cache.n_suffix_blocks
        self.grid_slot_B, self.max_rows_per_prompt = kv_cache.grid_slot_B, kv_cache.max_rows_per_prompt
        self.prompt_length_B = kv_cache.prompt_length_P[kv_cache.prompt_index_B]
        self.position_B = self.prompt_length_B + kv_cache.suffix_length_B
        self.position_N = self.position_B[rows_N]
        # Where every prompt has the same number of rows, rows and grid are the same tensor: then a view replaces two copies.
        self._is_grid_full = len(kv_cache.prompt_index_B) == self.max_rows_per_prompt * len(kv_cache.prompt_length_P)
        self._masked_by_window: dict[int | None, torch.Tensor] = {}

    def attend(
        self, layer: int, query_N_H_D: torch.Tensor, key_N_K_D: torch.Tensor, value_N_K_D: torch.Tensor, *,
        scale: float | None, window: int | None, dropout: float,
    ) -> torch.Tensor:  # fmt: skip
        """Attention output [N, H, D]. The rows of a prompt share one product with its keys, which are never copied per row."""
        query_B_H_D, key_B_K_D, value_B_K_D = map(self._scatter_to_all_rows, (query_N_H_D, key_N_K_D, value_N_K_D))
        suffix_keys_B_K_S_D, suffix_values_B_K_S_D = self.kv_cache.write_suffix_token(
            layer, self.n_suffix_blocks, key_B_K_D, value_B_K_D
        )
        prefix_keys_P_K_T_D, prefix_values_P_K_T_D = self.kv_cache.prefix_kv(layer)
        prefix_width, suffix_width, size = prefix_keys_P_K_T_D.shape[2], suffix_keys_B_K_S_D.shape[2], query_N_H_D.shape[2]
        query_B_K_R_D = query_B_H_D.reshape(len(query_B_H_D), key_B_K_D.shape[1], -1, size)
        prefix_scores_B_K_R_T = self._ungroup(
            self._group_by_prompt(query_B_K_R_D) @ prefix_keys_P_K_T_D.transpose(2, 3), query_B_K_R_D
        )
        suffix_scores_B_K_R_S = query_B_K_R_D @ suffix_keys_B_K_S_D.transpose(2, 3)
        # One softmax over prefix and suffix together, in float32: the two parts are joined before, not after.
        scores_B_K_R_W = torch.cat([prefix_scores_B_K_R_T, suffix_scores_B_K_R_S], dim=-1).float() * (scale or size**-0.5)
        scores_B_K_R_W.masked_fill_(self._masked_positions(window, prefix_width, suffix_width)[:, None, None], -torch.inf)
        weights_B_K_R_W = torch.softmax(scores_B_K_R_W, dim=-1).to(value_N_K_D.dtype)
        prefix_weights, suffix_weights = torch.split(weights_B_K_R_W, [prefix_width, suffix_width], dim=-1)
        prefix_out = self._ungroup(self._group_by_prompt(prefix_weights) @ prefix_values_P_K_T_D, prefix_weights)
        output = prefix_out + suffix_weights @ suffix_values_B_K_S_D
        return output.flatten(1, 2)[self.rows_N]

    def _scatter_to_all_rows(self, new_N_X_D: torch.Tensor) -> torch.Tensor:
        """[N, X, D] to [B, X, D], zero for the rows that have ended."""
        if len(self.rows_N) == len(self.kv_cache.prompt_index_B):
            return new_N_X_D
        return new_N_X_D.new_zeros(len(self.kv_cache.prompt_index_B), *new_N_X_D.shape[1:]).index_copy_(0, self.rows_N, new_N_X_D)

    def _group_by_prompt(self, rows_B_K_R_X: torch.Tensor) -> torch.Tensor:
        """[B, K, R, X] to [P, K, rows of a prompt × R, X], zero where a prompt has fewer rows than `max_rows_per_prompt`."""
        _, heads, repeats, size = rows_B_K_R_X.shape
        prompts = len(self.kv_cache.prompt_length_P)
        grid = rows_B_K_R_X
        if not self._is_grid_full:
            grid = rows_B_K_R_X.new_zeros(prompts * self.max_rows_per_prompt, heads, repeats, size).index_copy_(
                0, self.grid_slot_B, rows_B_K_R_X
            )
        return grid.reshape(prompts, self.max_rows_per_prompt, heads, repeats, size).transpose(1, 2).flatten(2, 3)

    def _ungroup(self, grid_P_K_X_Y: torch.Tensor, like_B_K_R_X: torch.Tensor) -> torch.Tensor:
        """Inverse of `_group_by_prompt`: [P, K, rows of a prompt × R, Y] to [B, K, R, Y]; R is that of `like_B_K_R_X`."""
        repeats = like_B_K_R_X.shape[2]
        prompts, heads, _, size = grid_P_K_X_Y.shape
        rows = grid_P_K_X_Y.reshape(prompts, heads, self.max_rows_per_prompt, repeats, size).transpose(1, 2).flatten(0, 1)
        return rows if self._is_grid_full else rows.index_select(0, self.grid_slot_B)

    def _masked_positions(self, window: int | None, prefix_width: int, suffix_width: int) -> torch.Tensor:
        """Mask [B, W], True where a row must not look: padding of the prompt, free room, and what lies beyond the window."""
        if window not in self._masked_by_window:
            prefix_T = torch.arange(prefix_width, device=self.prompt_length_B.device)
            suffix_S = torch.arange(suffix_width, device=self.prompt_length_B.device)
            prefix_B_T = prefix_T >= self.prompt_length_B[:, None]
            suffix_B_S = suffix_S > self.kv_cache.suffix_length_B[:, None]
            if window is not None:
                prefix_B_T = prefix_B_T | (self.position_B[:, None] - prefix_T >= window)
                suffix_B_S = suffix_B_S | (self.kv_cache.suffix_length_B[:, None] - suffix_S >= window)
            self._masked_by_window[window] = torch.cat([prefix_B_T, suffix_B_S], dim=1)
        return self._masked_by_window[window]


KV_BLOCK_TOKENS = 64
"""Tokens by which the room for completions grows: joining tensors at every step would copy the whole cache each time."""
