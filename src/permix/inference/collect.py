"""One loop for everything that is asked of a model and kept: find what is pending, request it, record each result as it comes.

Contract: what is pending follows from what is recorded, so a collection that was killed goes on where it was, and asks nothing
twice. A `Failure` is the result of one item and goes to the records like a completion; whether the item is pending again in the
next round is for `find_pending` to say. A request for which the model yields nothing stays pending. Nothing else is caught.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol, TypeVar

from permix.inference.base import Model
from permix.progress import ProgressBar
from permix.types import Cell, Completion, Failure, Request, Sampling


class HasRequest(Protocol):
    """An item that is pending: what to send for it."""

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
        """The cell with what came of its request."""
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
    """Request what is pending, round by round, until nothing is.

    `find_pending` gives the items of the next round in the order of asking, and `record` writes down the result of one item and
    advances the round's progress bar, which `open_progress` makes for a number of items. `max_rounds` bounds how often one start
    asks for an item. `count_affordable_items` says how many of the next items a budget allows to be in flight together: when they
    are back, and cost less than they might have, it is asked about the rest; 0 ends the collection.

    A round without any result is the last one: the next one would send the same requests. Raises what the model raises when it
    can answer nothing, and what `record` raises.
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
