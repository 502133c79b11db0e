"""The protocol every backend implements: requests in, completions out as they finish.

A backend never raises for one bad request: it yields a `Failure` for it and goes on. It raises only when nothing can be
answered at all (no such model, no such endpoint).
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

from permix.types import Completion, Failure, Request, Sampling


class CompletionResult(NamedTuple):
    """What came back for the request at `request_index` of the sequence that was asked."""

    request_index: int
    result: Completion | Failure


class Model(Protocol):
    """A language model behind any engine."""

    @property
    def name(self) -> str:
        """What a person calls it: a folder, a hub id, a served model's name."""

    @property
    def fingerprint(self) -> str:
        """Changes whenever the weights may have changed, so that records of two models are never mixed."""

    @property
    def content_addressed(self) -> bool:
        """Whether equal fingerprints mean equal weights, so that an answer may serve another run."""

    @property
    def default_system(self) -> str | None:
        """The system text its chat template inserts when none is sent; None when it inserts none or cannot be known."""

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[CompletionResult]:
        """Yield one `CompletionResult` for every request, in any order, each as soon as it is there."""
