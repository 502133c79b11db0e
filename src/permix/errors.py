"""Errors that a user can act on. The command line prints the message without a traceback and exits with `exit_code`."""

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any


class PermixError(Exception):
    """Base class. The message names the problem, the value found and the valid values."""

    exit_code = 1


class ConfigError(PermixError):
    """Bad input, found before expensive work starts."""

    exit_code = 2


class DataError(PermixError):
    """A file that cannot be used; the message names the file and the line."""

    exit_code = 2


class IncompleteRunError(PermixError):
    """The run ended with cells that have no score; run the same command again to fill them.

    `run`: the incomplete run, a `permix.StabilityRun` or `permix.FidelityRun`, if the Python API raised this; else None.
    `pending`: the number of cells, answers or scores that are missing; None if it is not known.
    """

    exit_code = 3
    run: Any = None

    def __init__(self, message: str, pending: int | None = None) -> None:
        super().__init__(message)
        self.pending = pending


class EndpointStoppedError(IncompleteRunError):
    """An endpoint that had given answers of this run gives none any more, so it was asked no further.

    `stop_reason`: that, without the words of the last failure.
    """

    def __init__(self, stop_reason: str, last_failure: str) -> None:
        super().__init__(f"{stop_reason}: {last_failure}")
        self.stop_reason = stop_reason


class MissingScoresError(IncompleteRunError):
    """The run has all answers, but some have no score from the judge; run the same command again to ask for these scores."""


def closest_match(name: str, valid_names: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The valid name most similar to `name`, for a "did you mean" hint; None if no similarity reaches `cutoff` (0 to 1)."""
    near = difflib.get_close_matches(name, list(valid_names), n=1, cutoff=cutoff)
    return near[0] if near else None


@contextmanager
def error_context(prefix: str) -> Iterator[None]:
    """Prefix the message of a ConfigError raised in the block, to say which model it concerns ("teacher", "judge")."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{prefix}: {error}") from error
