"""Ask a model for everything that is pending and record each result when it arrives. All stages use this one loop.

Contract: the records alone determine what is pending, so a killed collection resumes where it stopped and asks nothing twice. A
`Failure` is the result of one item and is recorded like a completion; `find_pending` decides whether the item is pending again in
the next round. An item for which the model yields nothing stays pending. No exception is caught.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol, TypeVar

from permix.inference.base import Model
from permix.progress import ProgressBar
from permix.types import Cell, Completion, Failure, Request, Sampling


class HasRequest(Protocol):
    """A pending item, with the request to send."""

    @property
    def request(self) -> Request: ...


_Item = TypeVar("_Item", bound=HasRequest)


class CellRequest(NamedTuple):
    """A cell without a completion, and the request for one."""

    cell: Cell
    request: Request

    @classmethod
    def for_cell(cls, cell: Cell, schema: Mapping[str, Any] | None = None) -> "CellRequest":
        return cls(cell, Request(cell.messages, cell.seed, schema))

    def cell_with(self, result: Completion | Failure) -> Cell:
        """The cell with the result of its request."""
        return self.cell.model_copy(update={"failure" if isinstance(result, Failure) else "completion": result})


def collect(
    model: Model,
    sampling: Sampling,
    find_pending: Callable[[], Sequence[_Item]],
    record: Callable[[_Item, Completion | Failure, ProgressBar], None],
    open_progress: Callable[[int], AbstractContextManager[ProgressBar]],
    *,
    max_rounds: int | None = None,
    count_affordable_items: Callable[[Sequence[_Item]], int] = len,
) -> None:
    """Ask for all pending items, round by round, until no item is pending.

    `find_pending` returns the items of the next round in the order of asking; `record` writes one result and advances the
    round's progress bar. `open_progress` makes that bar for a number of items. `max_rounds`: how often one start asks for an
    item. `count_affordable_items` says how many of the next items the budget allows to be in flight together. It is called again
    for the remaining items when these results have arrived, since they may cost less than their maximum; 0 ends the collection.

    The collection also ends after a round without any result, since the next round would send the same requests. Raises whatever
    `model.generate` and `record` raise.
    """
    for _ in itertools.count() if max_rounds is None else range(max_rounds):
        pending, n_results = find_pending(), 0
        if not pending:
            return
        with open_progress(len(pending)) as progress:
            while pending:
                batch = pending[: count_affordable_items(pending)]
                if not batch:
                    return
                for index, result in model.generate([item.request for item in batch], sampling):
                    record(batch[index], result, progress)
                    n_results += 1
                pending = pending[len(batch) :]
        if not n_results:
            return
