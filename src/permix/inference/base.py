"""The protocol that every backend implements, and the one loop that asks a model for everything pending.

A backend takes requests and yields completions as they finish. It never raises for one bad request: it yields a `Failure` for it
and continues. It raises only if it cannot answer any request (no such model, no such endpoint).

`collect` records each result when it arrives; all stages use it. The records alone determine what is pending, so a killed
collection resumes where it stopped and asks nothing twice. A `Failure` is the result of one item and is recorded like a
completion; `find_pending` decides whether the item is pending again in the next round. An item for which the model yields
nothing stays pending. No exception is caught.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

from pydantic import TypeAdapter, ValidationError

from permix.config import ThinkingSwitch
from permix.errors import DataError
from permix.inference.request_body import ChangeableField
from permix.progress import ProgressBar
from permix.storage.files import parse_error_text, read_json, write_json
from permix.storage.workers import hold_shared_files
from permix.types import Cell, Completion, Failure, Request, Sampling


class CompletionResult(NamedTuple):
    """The result of the request at `request_index` in the sequence of requests."""

    request_index: int
    result: Completion | Failure


def with_cut_off_thinking(completion: Completion, thinking: ThinkingSwitch) -> Completion:
    """A server's completion; where its text is thinking that the token limit cut off, that is `reasoning`, and the text is empty.

    thinking: the setting of the model that was asked. With "on" the chat template may open the thinking in the prompt, so that
    the text of a server that does not take thinking apart has the closing tag alone, and no tag if the limit comes before it.
    """
    if thinking != "on" or completion.finish != "length" or completion.reasoning:
        return completion
    if completion.answer != completion.text:  # it has a tag
        return completion
    return completion.model_copy(update={"text": "", "reasoning": completion.text or None})


class Model(Protocol):
    """A language model behind any engine."""

    @property
    def name(self) -> str:
        """The name that people use: a folder, a hub id, the name that an endpoint serves."""

    @property
    def fingerprint(self) -> str:
        """A hash that changes whenever the weights may have changed, so that records of two models are never mixed."""

    @property
    def content_addressed(self) -> bool:
        """Whether equal fingerprints mean equal weights, so that completions may be cached for other runs."""

    @property
    def default_system(self) -> str | None:
        """The system message that the chat template inserts if a request has none; None if it inserts none or is unknown."""

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[CompletionResult]:
        """Yield one `CompletionResult` for every request, in any order, each as soon as it is finished."""


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
    folder: Path,
    *,
    max_rounds: int | None = None,
    has_answers: bool = False,
    count_affordable_items: Callable[[Sequence[_Item]], int] = len,
) -> None:
    """Ask for all pending items, round by round, until no item is pending.

    `find_pending` returns the items of the next round in the order of asking; `record` writes one result and advances the
    round's progress bar. `open_progress` makes that bar for a number of items. `folder` holds the records, and what was found out
    about the endpoint. `max_rounds`: how often one start asks for an item. `has_answers`: whether the model has answered in an
    earlier start, so that refusals of the pending items do not mean that it refuses everything. `count_affordable_items` says how
    many of the next items the budget allows to be in flight together. It is called again for the remaining items when these
    results have arrived, since they may cost less than their maximum; 0 ends the collection.

    The collection also ends after a round without any result, since the next round would send the same requests. Raises whatever
    `model.generate` and `record` raise.
    """
    endpoint: Any = getattr(model, "model", model)  # a cached model holds the endpoint's
    if has_answers and hasattr(endpoint, "has_answered_before"):
        endpoint.has_answered_before = True
    with remember_request_changes(model, folder):
        for _ in itertools.count() if max_rounds is None else range(max_rounds):
            pending, n_results = find_pending(), 0
            if not pending:
                return
            with open_progress(len(pending)) as progress:
                while pending:
                    batch, n_before = pending[: count_affordable_items(pending)], n_results
                    if not batch:
                        return
                    for index, result in model.generate([item.request for item in batch], sampling):
                        record(batch[index], result, progress)
                        n_results += 1
                    pending = pending[len(batch) :]
                    if n_results == n_before:
                        return  # they are answered later: what they may cost is not known to be left
            if not n_results:
                return


REQUEST_CHANGES_FILE = "endpoint.json"
"""For each model at an endpoint: the fields of a request that were left out or renamed, with the words of the refusal."""

_REQUEST_CHANGES = TypeAdapter(dict[str, dict[ChangeableField, str]])


@contextmanager
def remember_request_changes(model: Model, folder: Path) -> Iterator[None]:
    """Take over what an earlier start found out about the model's endpoint, and write down what this one finds out.

    The file is part of the record: without a temperature or a seed the answers are not those that the configuration asks for.
    Raises DataError if it is damaged.
    """
    served: Any = getattr(model, "model", model)  # a cached model holds the endpoint's
    endpoints = getattr(served, "endpoints", (served,) if hasattr(served, "request_changes") else ())
    if not endpoints:
        yield
        return
    path = folder / REQUEST_CHANGES_FILE
    known = _read_request_changes(path)
    for endpoint in endpoints:
        endpoint.request_changes.update(_known_changes(endpoint, known))
    try:
        yield
    finally:
        found = {one.address: one.request_changes for one in endpoints if one.request_changes != known.get(one.address, {})}
        if found:
            with hold_shared_files(folder):  # several workers may find out something, each about its own endpoint or the same one
                changes = _read_request_changes(path)
                merged = {address: changes.get(address, {}) | fields for address, fields in found.items()}
                write_json(path, changes | merged)


def _known_changes(endpoint: Any, known: Mapping[str, dict[ChangeableField, str]]) -> dict[ChangeableField, str]:
    """What is known of an endpoint: also, of batch files, what the same host refused over HTTP."""
    found: dict[ChangeableField, str] = {}
    for address in getattr(endpoint, "other_addresses", ()):
        found |= {name: words for name, words in known.get(address, {}).items() if name in endpoint.changeable_fields}
    return found | known.get(endpoint.address, {})


def _read_request_changes(path: Path) -> dict[str, dict[ChangeableField, str]]:
    if not path.exists():
        return {}
    try:
        return _REQUEST_CHANGES.validate_python(read_json(path))
    except ValidationError as error:
        raise DataError(
            f"{path}: not the fields that an endpoint refused: {parse_error_text(error)}; delete it, and they are found out again"
        ) from error


def balanced_batches(indices: Sequence[int], max_size: int) -> list[Sequence[int]]:
    """The fewest batches of at most `max_size`, of nearly equal size: a small last batch costs nearly as much as a full one."""
    count = math.ceil(len(indices) / max_size)
    edges = [len(indices) * number // count for number in range(count + 1)] if count else [0]
    return [indices[start:end] for start, end in pairwise(edges)]
