"""Prompts once: many completions of one prompt, in one forward pass that reads the prompt a single time.

Tokens of all prompts and completions lie in one flat row, without padding: `PrefixTree` says who sees whom. Every layer but
attention
works on tokens one by one and does not notice; attention goes through the function that `share_prompts` installs. A prompt's
tokens see those before them; a completion's tokens see their prompt and what came before in their own completion. So the numbers,
and in training the gradients, are those of one padded row a completion, at the price of G completions and one prompt.

Source of the idea: tree attention over a shared prefix, as engines do it for decoding; here it is also differentiated.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch.nn.functional import scaled_dot_product_attention

from permix.inference.cpu_attention import build_tiles, tiled_attention


class PaddedRows(NamedTuple):
    """Flat places arranged in padded rows. Padding points at place 0 and is never seen by a token that counts."""

    index_R_T: torch.Tensor
    valid_R_T: torch.Tensor

    def gather(self, flat_N_H_D: torch.Tensor) -> torch.Tensor:
        """[N, ...] to [R, T, ...]."""
        taken = flat_N_H_D.index_select(0, self.index_R_T.flatten())
        return taken.reshape(*self.index_R_T.shape, *flat_N_H_D.shape[1:])


class PrefixTree:
    """Layout of one flat row: each prompt, then its branches, then the next prompt.

    A branch holds the tokens of a completion that are read, which is all but the last: nothing is predicted from that one.
    """

    def __init__(self, prefix_lengths: Sequence[int], suffix_lengths: Sequence[Sequence[int]], device: Any) -> None:
        """`prompts` are token counts, `suffix_lengths` the token counts that are read of each prompt's completions (0 is
        allowed)."""
        self.device = device
        starts, branch_starts, at = [], [], 0
        for prompt, own in zip(prefix_lengths, suffix_lengths, strict=True):
            starts.append(at)
            at += prompt
            for length in own:
                branch_starts.append(at)
                at += length
        self.n_tokens = at
        lengths = [length for own in suffix_lengths for length in own]
        owners = [number for number, own in enumerate(suffix_lengths) for _ in own]
        self.prefix = _make_padded_rows(starts, prefix_lengths, device)
        self.suffix = _make_padded_rows(branch_starts, lengths, device)
        self.prefix_length_P = torch.tensor(list(prefix_lengths), device=device)
        self.prefix_index_B = torch.tensor(owners, device=device, dtype=torch.long)
        self._lengths = (prefix_lengths, suffix_lengths)
        self.tiles = build_tiles(prefix_lengths, suffix_lengths, device) if self.prefix.index_R_T.device.type == "cpu" else []
        self.position_N = self._positions()
        self._masks: dict[int | None, tuple[torch.Tensor | None, torch.Tensor]] = {}

    @cached_property
    def root_to_leaf(self) -> PaddedRows:
        """From the root to each tip: every branch with its prompt before it, and a prompt without branches by itself."""
        rows: list[list[int]] = []
        at = 0
        for prompt, own in zip(*self._lengths, strict=True):
            trunk = list(range(at, at + prompt))
            at += prompt
            rows += [] if own else [trunk]
            for length in own:
                rows.append([*trunk, *range(at, at + length)])
                at += length
        width = max(map(len, rows))
        place_R_T = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], device=self.device)
        length_R = torch.tensor([len(row) for row in rows], device=self.device)
        return PaddedRows(place_R_T, torch.arange(width, device=self.device) < length_R[:, None])

    def _positions(self) -> torch.Tensor:
        position_N = torch.zeros(self.n_tokens, dtype=torch.long, device=self.device)
        for grid, offset in ((self.prefix, 0), (self.suffix, self.prefix_length_P[self.prefix_index_B][:, None])):
            column_R_T = torch.arange(grid.index_R_T.shape[1], device=self.device).expand_as(grid.index_R_T) + offset
            position_N[grid.index_R_T[grid.valid_R_T]] = column_R_T[grid.valid_R_T]
        return position_N

    @cached_property
    def _inverse_index_N(self) -> torch.Tensor:
        """Where each flat place is found in (all trunk cells, then all branch cells)."""
        back_N = torch.zeros(self.n_tokens, dtype=torch.long, device=self.device)
        offset = 0
        for grid in (self.prefix, self.suffix):
            cell_R_T = torch.arange(grid.index_R_T.numel(), device=self.device).view_as(grid.index_R_T) + offset
            back_N[grid.index_R_T[grid.valid_R_T]] = cell_R_T[grid.valid_R_T]
            offset += grid.index_R_T.numel()
        return back_N

    def attend(
        self, query_N_H_D: torch.Tensor, key_N_K_D: torch.Tensor, value_N_K_D: torch.Tensor, *,
        scale: float | None, window: int | None, dropout: float,
    ) -> torch.Tensor:  # fmt: skip
        """Attention of every token over what it may see; `K` heads of keys serve `H` of queries; returns [N, H, D]."""
        if self.tiles and not dropout:
            scale = scale or query_N_H_D.shape[2] ** -0.5
            return tiled_attention(query_N_H_D, key_N_K_D, value_N_K_D, self.tiles, scale=scale, window=window)
        trunk_mask, branch_mask = self._build_masks(window)
        keys, values = self.prefix.gather(key_N_K_D), self.prefix.gather(value_N_K_D)
        options = {"scale": scale, "dropout_p": dropout}
        trunk = _attention(self.prefix.gather(query_N_H_D), keys, values, trunk_mask, is_causal=trunk_mask is None, **options)
        parts = [trunk.flatten(0, 1)]
        if self.suffix.index_R_T.numel():
            branch = _attention(
                self.suffix.gather(query_N_H_D),
                torch.cat([keys.index_select(0, self.prefix_index_B), self.suffix.gather(key_N_K_D)], dim=1),
                torch.cat([values.index_select(0, self.prefix_index_B), self.suffix.gather(value_N_K_D)], dim=1),
                branch_mask, is_causal=False, **options,
            )  # fmt: skip
            parts.append(branch.flatten(0, 1))
        return torch.cat(parts).index_select(0, self._inverse_index_N)

    def _build_masks(self, window: int | None) -> tuple[torch.Tensor | None, torch.Tensor]:
        """Masks for the trunks (None: plainly causal) and for the branches; `window` is how many tokens back a layer sees."""
        if window not in self._masks:
            width, own = self.prefix.index_R_T.shape[1], self.suffix.index_R_T.shape[1]
            trunk_T, own_T = torch.arange(width, device=self.device), torch.arange(own, device=self.device)
            trunk_mask = None
            if window is not None and window < width:
                back_T_T = trunk_T[:, None] - trunk_T
                trunk_mask = ((back_T_T >= 0) & (back_T_T < window))[None, None]
            prompt_B = self.prefix_length_P[self.prefix_index_B][:, None]
            position_B_T = prompt_B + own_T
            # A padded query sees its prompt, so that no row is empty; nothing reads what it gets.
            sees_trunk = (trunk_T < prompt_B)[:, None, :].expand(-1, own, -1)
            sees_own = (own_T[:, None] >= own_T).expand(len(prompt_B), -1, -1)
            if window is not None:
                sees_trunk = sees_trunk & (position_B_T[:, :, None] - trunk_T < window)
                sees_own = sees_own & (own_T[:, None] - own_T < window)
            self._masks[window] = (trunk_mask, torch.cat([sees_trunk, sees_own], dim=-1)[:, None])
        return self._masks[window]


def _make_padded_rows(starts: Sequence[int], lengths: Sequence[int], device: Any) -> PaddedRows:
    start_R = torch.tensor(list(starts), device=device, dtype=torch.long)
    length_R = torch.tensor(list(lengths), device=device, dtype=torch.long)
    column_T = torch.arange(max(lengths, default=0), device=device)
    real_R_T = column_T < length_R[:, None]
    return PaddedRows(torch.where(real_R_T, start_R[:, None] + column_T, 0), real_R_T)


def _attention(
    query_R_T_H_D: torch.Tensor, key_R_T_K_D: torch.Tensor, value_R_T_K_D: torch.Tensor, mask: torch.Tensor | None, **options: Any
) -> torch.Tensor:
    """[R, T, H, D] in and out; each head of keys is repeated for the queries' heads that share it."""
    repeats = query_R_T_H_D.shape[2] // key_R_T_K_D.shape[2]
    keys, values = (each.repeat_interleave(repeats, dim=2).transpose(1, 2) for each in (key_R_T_K_D, value_R_T_K_D))
    mixed: torch.Tensor = scaled_dot_product_attention(query_R_T_H_D.transpose(1, 2), keys, values, attn_mask=mask, **options)
    return mixed.transpose(1, 2)


class PrefixKVCache:
    """Keys and values by layer: of each prompt once, and of every completion that grows from one.

    Rows are in the order of their prompts (`owners` never falls). A row's completion has room for what it has grown so far.
    """

    def __init__(self, prompt_lengths: Sequence[int], prompt_indices: Sequence[int], device: Any) -> None:
        self.prompt_length_P = torch.tensor(list(prompt_lengths), device=device)
        self.prompt_index_B = torch.tensor(list(prompt_indices), device=device, dtype=torch.long)
        self._prefix_kv: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._suffix_kv: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    @property
    def grid_slot_B(self) -> torch.Tensor:
        """Each row's cell in a grid of prompts × the largest number of rows of one prompt."""
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

    def write_prefix(self, layer: int, prompt_slice: slice, keys_P_T_K_D: torch.Tensor, values_P_T_K_D: torch.Tensor) -> None:
        """Lay down what a layer made of these prompts."""
        if layer not in self._prefix_kv:
            _, _, heads, size = keys_P_T_K_D.shape
            shape = (len(self.prompt_length_P), heads, int(self.prompt_length_P.max()), size)
            self._prefix_kv[layer] = (keys_P_T_K_D.new_zeros(shape), values_P_T_K_D.new_zeros(shape))
        for kept, new in zip(self._prefix_kv[layer], (keys_P_T_K_D, values_P_T_K_D), strict=True):
            kept[prompt_slice, :, : new.shape[1]] = new.transpose(1, 2)

    def append_suffix_token(
        self, layer: int, step: int, key_B_K_D: torch.Tensor, value_B_K_D: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Add the `step`-th token to every row; returns the rows' own keys and values [B, K, S, D].

        `S` is all the room there is, nothing behind `step`: a view of step + 1 of it would be copied by every product with it.
        """
        if step % KV_BLOCK_TOKENS == 0:
            more = (new.new_zeros(len(new), new.shape[1], KV_BLOCK_TOKENS, new.shape[2]) for new in (key_B_K_D, value_B_K_D))
            old = self._suffix_kv.get(layer)
            keys, values = more if old is None else (torch.cat(both, dim=2) for both in zip(old, more, strict=True))
            self._suffix_kv[layer] = (keys, values)
        keys_B_K_S_D, values_B_K_S_D = self._suffix_kv[layer]
        keys_B_K_S_D[:, :, step], values_B_K_S_D[:, :, step] = key_B_K_D, value_B_K_D
        return keys_B_K_S_D, values_B_K_S_D

    def prefix_kv(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of the prompts [P, K, T, D]."""
        return self._prefix_kv[layer]

    def select_rows(self, rows_N: torch.Tensor) -> None:
        """Forget every other row, and the prompts that are left without one. Rows are renumbered in their order."""
        kept_P, owner_N = torch.unique_consecutive(self.prompt_index_B[rows_N], return_inverse=True)
        width = int(self.prompt_length_P[kept_P].max())
        self.prompt_length_P, self.prompt_index_B = self.prompt_length_P[kept_P], owner_N
        self._prefix_kv = {layer: (k[kept_P, :, :width], v[kept_P, :, :width]) for layer, (k, v) in self._prefix_kv.items()}
        self._suffix_kv = {layer: (k[rows_N], v[rows_N]) for layer, (k, v) in self._suffix_kv.items()}


class PrefillPass(NamedTuple):
    """A pass over whole prompts, the paths of a tree, that puts their keys and values by."""

    tree: PrefixTree
    kv_cache: PrefixKVCache
    prompt_slice: slice

    def attend(
        self, layer: int, query_N_H_D: torch.Tensor, key_N_K_D: torch.Tensor, value_N_K_D: torch.Tensor, **options: Any
    ) -> torch.Tensor:
        paths = self.tree.root_to_leaf
        self.kv_cache.write_prefix(layer, self.prompt_slice, paths.gather(key_N_K_D), paths.gather(value_N_K_D))
        return self.tree.attend(query_N_H_D, key_N_K_D, value_N_K_D, **options)


class TrainingPass(NamedTuple):
    """A pass, with gradient, over prompts and their completions."""

    tree: PrefixTree

    def attend(
        self, layer: int, query_N_H_D: torch.Tensor, key_N_K_D: torch.Tensor, value_N_K_D: torch.Tensor, **options: Any
    ) -> torch.Tensor:
        return self.tree.attend(query_N_H_D, key_N_K_D, value_N_K_D, **options)


class DecodeStep:
    """A pass over one new token, the `step`-th, of each of the rows that are still growing.

    Attention is that of all rows of the store, ended ones with zeros: they are few, and leaving them out would copy the others.
    """

    def __init__(self, kv_cache: PrefixKVCache, rows_N: torch.Tensor, step: int) -> None:
        self.kv_cache, self.rows_N, self.step = kv_cache, rows_N, step
        self.grid_slot_B, self.max_rows_per_prompt = kv_cache.grid_slot_B, kv_cache.max_rows_per_prompt
        self.prompt_length_B = kv_cache.prompt_length_P[kv_cache.prompt_index_B]
        self.position_N = self.prompt_length_B[rows_N] + step
        # With every cell of the grid taken, rows and grid are the same thing.
        self._is_grid_full = len(kv_cache.prompt_index_B) == self.max_rows_per_prompt * len(kv_cache.prompt_length_P)
        self._masked_by_window: dict[int | None, torch.Tensor] = {}

    def attend(
        self, layer: int, query_N_H_D: torch.Tensor, key_N_K_D: torch.Tensor, value_N_K_D: torch.Tensor, *,
        scale: float | None, window: int | None, dropout: float,
    ) -> torch.Tensor:  # fmt: skip
        """The prompt's keys are read once for all of its rows, never copied to each."""
        query_B_H_D, key_B_K_D, value_B_K_D = map(self._scatter_to_all_rows, (query_N_H_D, key_N_K_D, value_N_K_D))
        own_keys_B_K_S_D, own_values_B_K_S_D = self.kv_cache.append_suffix_token(layer, self.step, key_B_K_D, value_B_K_D)
        trunk_keys_P_K_T_D, trunk_values_P_K_T_D = self.kv_cache.prefix_kv(layer)
        width, own_width, size = trunk_keys_P_K_T_D.shape[2], own_keys_B_K_S_D.shape[2], query_N_H_D.shape[2]
        query_B_K_R_D = query_B_H_D.reshape(len(query_B_H_D), key_B_K_D.shape[1], -1, size)
        over_trunk_B_K_R_T = self._ungroup(
            self._group_by_prompt(query_B_K_R_D) @ trunk_keys_P_K_T_D.transpose(2, 3), query_B_K_R_D
        )
        over_own_B_K_R_S = query_B_K_R_D @ own_keys_B_K_S_D.transpose(2, 3)
        scores_B_K_R_W = torch.cat([over_trunk_B_K_R_T, over_own_B_K_R_S], dim=-1).float() * (scale or size**-0.5)
        scores_B_K_R_W.masked_fill_(self._masked_positions(window, width, own_width)[:, None, None], -torch.inf)
        weight_B_K_R_W = torch.softmax(scores_B_K_R_W, dim=-1).to(value_N_K_D.dtype)
        of_trunk, of_own = torch.split(weight_B_K_R_W, [width, own_width], dim=-1)
        mixed = self._ungroup(self._group_by_prompt(of_trunk) @ trunk_values_P_K_T_D, of_trunk) + of_own @ own_values_B_K_S_D
        return mixed.flatten(1, 2)[self.rows_N]

    def _scatter_to_all_rows(self, new_N_X_D: torch.Tensor) -> torch.Tensor:
        """[N, X, D] to [B, X, D], the rows that have ended zero."""
        if len(self.rows_N) == len(self.kv_cache.prompt_index_B):
            return new_N_X_D
        return new_N_X_D.new_zeros(len(self.kv_cache.prompt_index_B), *new_N_X_D.shape[1:]).index_copy_(0, self.rows_N, new_N_X_D)

    def _group_by_prompt(self, rows_B_K_R_X: torch.Tensor) -> torch.Tensor:
        """Rows [B, K, R, X] side by side under their prompts [P, K, rows of a prompt × R, X], absent ones zero."""
        _, heads, repeats, size = rows_B_K_R_X.shape
        prompts = len(self.kv_cache.prompt_length_P)
        grid = rows_B_K_R_X
        if not self._is_grid_full:
            grid = rows_B_K_R_X.new_zeros(prompts * self.max_rows_per_prompt, heads, repeats, size).index_copy_(
                0, self.grid_slot_B, rows_B_K_R_X
            )
        return grid.reshape(prompts, self.max_rows_per_prompt, heads, repeats, size).transpose(1, 2).flatten(2, 3)

    def _ungroup(self, grid_P_K_X_Y: torch.Tensor, like_B_K_R_X: torch.Tensor) -> torch.Tensor:
        """The way back of `_group_by_prompt`."""
        repeats = like_B_K_R_X.shape[2]
        prompts, heads, _, size = grid_P_K_X_Y.shape
        rows = grid_P_K_X_Y.reshape(prompts, heads, self.max_rows_per_prompt, repeats, size).transpose(1, 2).flatten(0, 1)
        return rows if self._is_grid_full else rows.index_select(0, self.grid_slot_B)

    def _masked_positions(self, window: int | None, width: int, own_width: int) -> torch.Tensor:
        """What each row does not see of (the prompts' columns, its own): padding, room, and what lies beyond the window."""
        if window not in self._masked_by_window:
            trunk_T = torch.arange(width, device=self.prompt_length_B.device)
            own_S = torch.arange(own_width, device=self.prompt_length_B.device)
            trunk_B_T = trunk_T >= self.prompt_length_B[:, None]
            own_B_S = (own_S > self.step).expand(len(self.prompt_length_B), -1)
            if window is not None:
                trunk_B_T = trunk_B_T | ((self.prompt_length_B + self.step)[:, None] - trunk_T >= window)
                own_B_S = own_B_S | (self.step - own_S >= window)
            self._masked_by_window[window] = torch.cat([trunk_B_T, own_B_S], dim=1)
        return self._masked_by_window[window]


KV_BLOCK_TOKENS = 64
