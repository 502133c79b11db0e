"""Write files atomically: each is written to a scratch file in the same folder and then renamed, so it is whole or missing."""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from permix.errors import DataError, PermixError


@contextlib.contextmanager
def replace_when_done(path: Path) -> Iterator[Path]:
    """Yield a scratch path in the same folder to write to; when the block ends, the scratch file replaces `path`.

    A reader sees the old file or the new one, never a part. If the block raises, the old file stays and the scratch file is
    deleted. All writers of a path use the same scratch file, so only one process at a time may write a path.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.part")
    scratch.unlink(missing_ok=True)
    try:
        yield scratch
        os.replace(scratch, path)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write a whole text file atomically. Lone surrogates, which a model may generate, are written as "?"."""
    with replace_when_done(path) as scratch:
        scratch.write_text(text, encoding="utf-8", errors="replace")


def write_json(path: Path, value: BaseModel | Mapping[str, Any]) -> None:
    """Write a whole JSON file atomically."""
    plain = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    write_text(path, json.dumps(plain, indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object. Raises DataError naming the file if it is missing or not a JSON object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; is this a run directory?") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not JSON: {error}") from error
    if not isinstance(value, dict):
        raise DataError(f"{path}: contains {type(value).__name__}, not an object")
    return value


@contextlib.contextmanager
def guard_writes(path: Path, *error_types: type[BaseException]) -> Iterator[None]:
    """Turn an OSError of the block (a full disk, a quota) into a PermixError that says that the run can be resumed.

    `error_types`: errors that are turned too, by which libraries report that they could not write a file.
    """
    try:
        yield
    except (OSError, *error_types) as error:  # type: ignore[misc]
        raise write_error(path, error) from error


def write_error(path: Path, error: BaseException) -> PermixError:
    """The PermixError for a `path` that could not be written; it names the reason and the remedy."""
    reason = (isinstance(error, OSError) and error.strerror) or str(error).strip().partition("\n")[0]
    return PermixError(f"{path}: cannot be written: {reason}; make room, then run the same command again: finished work is saved")
