"""Define the protocol that every backend implements: it takes requests and yields completions as they finish.

A backend never raises for one bad request: it yields a `Failure` for it and continues. It raises only if it cannot answer any
request (no such model, no such endpoint).
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

from permix.types import Completion, Failure, Request, Sampling


class CompletionResult(NamedTuple):
    """The result of the request at `request_index` in the sequence of requests."""

    request_index: int
    result: Completion | Failure


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
