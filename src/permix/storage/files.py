"""Files that are whole or not there: each is written beside its place, then moved there in one step."""

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
    """Give a path beside `path` to write to; when the block ends, what was written there takes the place of `path`.

    A reader sees the old file or the new one, never half of either. A block that raises leaves the old file and no other. The
    scratch file of a killed process is overwritten by the next one, so one process at a time may write a path.
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
    """Write a whole text file in one step. Lone surrogates, which a model's output may hold, are written as "?"."""
    with replace_when_done(path) as scratch:
        scratch.write_text(text, encoding="utf-8", errors="replace")


def write_json(path: Path, value: BaseModel | Mapping[str, Any]) -> None:
    """Write a whole JSON file in one step."""
    plain = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    write_text(path, json.dumps(plain, indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises DataError naming the file when it is missing or broken."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; is this a run directory?") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not JSON: {error}") from error
    if not isinstance(value, dict):
        raise DataError(f"{path}: holds {type(value).__name__}, not an object")
    return value


@contextlib.contextmanager
def guard_writes(path: Path, *error_types: type[BaseException]) -> Iterator[None]:
    """Where the system refuses to write (a full disk, a quota), say so, and that the run can go on.

    `error_types` are the errors by which libraries that write files of their own report that.
    """
    try:
        yield
    except (OSError, *error_types) as error:  # type: ignore[misc]
        raise write_error(path, error) from error


def write_error(path: Path, error: BaseException) -> PermixError:
    """The PermixError that says that `path` could not be written, why, and what to do."""
    reason = (isinstance(error, OSError) and error.strerror) or str(error).strip().partition("\n")[0]
    return PermixError(
        f"{path}: cannot be written: {reason}; make room, then run the same command: it goes on from what is whole"
    )
