"""The errors a person can act on. The command line prints their message alone and exits with their code."""

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any


class PermixError(Exception):
    """Base: a failure with a message that names what was wrong, the value seen, and what would be valid."""

    exit_code = 1


class ConfigError(PermixError):
    """Bad input, found before anything expensive started."""

    exit_code = 2


class DataError(PermixError):
    """A file that cannot be used; the message names file and line."""

    exit_code = 2


class IncompleteRunError(PermixError):
    """The run ended with cells that have no score; run the same command again to fill them.

    `run`: what there is of it, a `permix.StabilityRun` or `permix.FidelityRun`, where the Python API raised this; else None.
    """

    exit_code = 3
    run: Any = None


class MissingScoresError(IncompleteRunError):
    """All answers are there, and a judge gave some of them no score; run the same command again to ask for them."""


def closest_match(name: str, valid_names: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The known word that was probably meant, for a message; None when none is near."""
    near = difflib.get_close_matches(name, list(valid_names), n=1, cutoff=cutoff)
    return near[0] if near else None


@contextmanager
def error_context(prefix: str) -> Iterator[None]:
    """Bad input inside is told of a model; here that model is the teacher, or the judge."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{prefix}: {error}") from error
