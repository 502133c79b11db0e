"""Divide the cells of a run between several workers, and say which parts are pending.

The rule: the cells are put into the order of (persona with template and context, question, sample), where personas with theirs,
and questions, are each in the order of a hash of their ids; the sequence is cut into n parts whose sizes differ by at most one
cell. So every cell belongs to exactly one part; the parts depend on the ids of the grid and on n alone, not on the order of the
cells, on the data's order or on what is pending; and a persona's prompts, which share their beginning, are in as few parts as
equal sizes allow: P personas (no persona counts as one) are in at most P + n - 1 (persona, part) pairs.

Interviews are divided by persona, since each turn needs the answers before it: the personas, in the order of the hash, are cut
into n parts whose sizes differ by at most one.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from permix.config import FidelityConfig
from permix.errors import OtherShardsPendingError
from permix.evals.grid import estimate_cells
from permix.progress import add_result, print_status
from permix.types import Cell, CellKey, Shard, digest


def assign_shards(keys: Collection[CellKey], count: int) -> dict[CellKey, int]:
    """For each cell of a grid the number of its part, from 1 to `count`."""
    prefix_ranks = _rank(map(_prefix_of, keys))
    question_ranks = _rank((key.question_id,) for key in keys)
    ordered = sorted(
        keys,
        key=lambda key: (prefix_ranks[_prefix_of(key)], question_ranks[key.question_id,], key.sample),
    )
    return {key: 1 + place * count // len(ordered) for place, key in enumerate(ordered)}


def _prefix_of(key: CellKey) -> tuple[str, ...]:
    """What cells have in common whose prompts begin alike; without a context as in runs of earlier versions."""
    return (key.persona_id or "", key.template, *([key.context] if key.context else []))


def assign_personas(persona_ids: Collection[str], count: int) -> dict[str, int]:
    """For each persona the number of the part that its interview belongs to, from 1 to `count`."""
    ranks = _rank((persona,) for persona in persona_ids)
    return {persona: 1 + ranks[persona,] * count // len(ranks) for persona in persona_ids}


def _rank(parts: Iterable[tuple[str, ...]]) -> dict[tuple[str, ...], int]:
    """The place of each of the distinct tuples in the order of their hashes."""
    return {one: place for place, one in enumerate(sorted(set(parts), key=lambda one: (digest("shard", *one), one)))}


class ShardCells(NamedTuple):
    """The cells of a run, of which this worker asks `own`. `number_of` has the part of each cell."""

    shard: Shard
    own: list[Cell]
    number_of: dict[CellKey, int]


def divide_cells(cells: Sequence[Cell], shard: Shard) -> ShardCells:
    """Divide the cells of a grid; `own` keeps their order."""
    number_of = assign_shards([cell.key for cell in cells], shard.total)
    return ShardCells(shard, [cell for cell in cells if number_of[cell.key] == shard.number], number_of)


def estimate_shard(stage: str, config: FidelityConfig, cells: Sequence[Cell]) -> dict[str, str]:
    """`estimate_cells` of the whole grid or, with `config.shard`, of that part, whose size is the first fact then."""
    if (shard := config.worker_shard) is None:
        return estimate_cells(stage, config, cells)
    own = divide_cells(cells, shard).own
    return {"shard": f"{shard}, {len(own)} of {len(cells)} cells"} | estimate_cells(stage, config, own)


def report_finished_shard(run: Path, shard: Shard, n_own: int, pending: Counter[int], unit: str) -> None:
    """Say that this worker's part has no pending `unit` ("cells"), and which parts have some. `pending`: their number by part.

    Raises OtherShardsPendingError if any is pending.
    """
    add_result(shard=str(shard), pending=pending.total(), pending_by_shard={str(one): n for one, n in sorted(pending.items())})
    line = f"{run}: shard {shard} is finished ({n_own} {unit})"
    if not pending:
        return print_status(f"{line}, and so are all others")
    parts = ", ".join(f"{number}/{shard.total} ({n})" for number, n in sorted(pending.items())[:MAX_LISTED_SHARDS])
    rest = len(pending) - MAX_LISTED_SHARDS
    more = f" and {rest} more" if rest > 0 else ""
    print_status(
        f"{line}; {pending.total()} {unit} of others are pending: {parts}{more}. The last worker computes the measures; without "
        "--shard the same command asks the rest"
    )
    raise OtherShardsPendingError(f"{run}: {pending.total()} {unit} of other shards are pending")


MAX_LISTED_SHARDS = 16
