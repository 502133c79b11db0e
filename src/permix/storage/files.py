import contextlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from permix.errors import DataError, PermixError


def write_json(path: Path, value: BaseModel | Mapping[str, Any]) -> None:
    """Write JSON so that a reader sees the old file or the new one, never half of either."""
    plain = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    write_text(path, json.dumps(plain, indent=1, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """`write_json` for text. Lone surrogates, which a model's output may hold, are written as "?"."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, scratch = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8", errors="replace") as file:
            file.write(text)
        os.chmod(scratch, 0o644)
        os.replace(scratch, path)
    except BaseException:
        Path(scratch).unlink(missing_ok=True)
        raise


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
    reason = (isinstance(error, OSError) and error.strerror) or str(error).strip().partition("\n")[0]
    return PermixError(
        f"{path}: cannot be written: {reason}; make room, then run the same command: it goes on from what is whole"
    )
