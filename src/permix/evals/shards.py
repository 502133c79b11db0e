"""Divide the cells of a run between several workers, and end a run: of one worker, or of several.

The rule: the cells are put into the order of (persona with template and context, question, sample), where personas with theirs,
and questions, are each in the order of a hash of their ids; the sequence is cut into n parts whose sizes differ by at most one
cell. So every cell belongs to exactly one part; the parts depend on the ids of the grid and on n alone, not on the order of the
cells, on the data's order or on what is pending; and a persona's prompts, which share their beginning, are in as few parts as
equal sizes allow: P personas (no persona counts as one) are in at most P + n - 1 (persona, part) pairs.

Interviews are divided by persona, since each turn needs the answers before it: the personas, in the order of the hash, are cut
into n parts whose sizes differ by at most one.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple, TypeVar

from permix.config import FidelityConfig
from permix.errors import DataError, IncompleteRunError, OtherShardsPendingError
from permix.evals.grid import estimate_cells
from permix.inference.base import Model
from permix.inference.batch_model import is_only_writing, next_start
from permix.progress import add_result, print_status
from permix.storage.cells import CellIndex
from permix.storage.failures import explain_missing, find_failures
from permix.storage.run_dir import RunDir
from permix.storage.workers import hold_shared_files
from permix.types import Cell, CellKey, Shard, digest

Result = TypeVar("Result")


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

    def count_without_completion(self, recorded: CellIndex) -> Counter[int]:
        """The number of cells that have no completion, by part."""
        return Counter(number for key, number in self.number_of.items() if not recorded.has_completion(key))


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


class OwnPart(NamedTuple):
    """The part of a divided run that this worker asked.

    `n_own`: how many `unit` ("cells", "answers", "turns") it has. `count_pending`: from the cells of all workers, the number of
    pending ones by number of the part, of the whole run.
    """

    shard: Shard
    n_own: int
    unit: str
    count_pending: Callable[[CellIndex], Counter[int]]


def missing_text(
    run: RunDir, model: Model, n_pending: int, n_asked: int, unit: str, lacking: str = " are missing", *, scored: bool = False
) -> str:
    """What this start leaves pending: "RUN: 3 of 40 answers of shard 2/4 are missing; ...", with the reasons and what to do.

    `scored`: a cell without a score is pending too, so its reason counts.
    """
    failures = find_failures(run.cells(), scored=scored) if n_pending else ()
    why = explain_missing(failures, next_start(model), stop_reason=run.stop_reason)
    part = "" if run.shard is None else f" of shard {run.shard}"
    return f"{run.path}: {n_pending} of {n_asked} {unit}{part}{lacking}{why}"


def end_run(
    run: RunDir, model: Model, n_pending: int, missing: str, part: OwnPart | None, measure: Callable[[], Result]
) -> Result:
    """End a run whose cells were asked, and return the result of `measure`, which writes metrics.json.

    `part`: what this worker asked of a run that several workers ask; None for a single worker. `n_pending`: of that part or of
    the run; `missing`: the error about them.

    Raises IncompleteRunError if any is pending: after `measure`, or without it if a part is incomplete, if the model only writes
    requests, or if too little is there to measure. Raises OtherShardsPendingError, without `measure`, if other parts are pending,
    and the DataError of `measure` if nothing is pending.
    """
    if part is not None:
        if n_pending:
            raise IncompleteRunError(missing, n_pending)
        # Closed before the count: of two workers that end at the same time, at least one must see all records of the other.
        run.close_records()
        report_finished_shard(run.path, part.shard, part.n_own, part.count_pending(run.cells()), part.unit)
    elif n_pending and is_only_writing(model):
        raise IncompleteRunError(missing, n_pending)
    # Two workers that end at the same time write the same files, one after the other.
    with nullcontext() if part is None else hold_shared_files(run.path):
        try:
            result = measure()
        except DataError as error:
            if n_pending:
                raise IncompleteRunError(missing, n_pending) from error
            raise
    if n_pending:
        raise IncompleteRunError(missing, n_pending)
    return result
