"""Rows of a published data set, from the hub or from a local file or folder, each with the place it came from.

The hub is read through `datasets`, which is imported only then. Local files are read with json and pyarrow: an error names the
very line, nothing is copied into a cache, and evaluating on a local file needs no extra installed.

A path is a .jsonl, .json (an array, or one object a line) or .parquet file, or a folder that holds `train.*`, `test.*` and so on,
or the hub's own shards (`test-00000-of-00001.parquet`).
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from permix.errors import ConfigError, DataError

Published = Literal["train", "dev", "validation", "test"]

SUFFIXES = (".jsonl", ".json", ".parquet")


class Hub(NamedTuple):
    """Where a data set is published; `config` is the hub's own subset name, `splits` what it is published in."""

    id: str
    config: str | None = None
    splits: tuple[Published, ...] = ("train", "test")


class Row(NamedTuple):
    """One row as published; `where` is its file and line, for error messages."""

    where: str
    fields: dict[str, Any]

    def value(self, field: str) -> Any:
        """Raises DataError when the row lacks the field."""
        if field not in self.fields:
            raise DataError(f"{self.where}: field {field!r} is missing; this row has {', '.join(self.fields) or 'no fields'}")
        return self.fields[field]

    def text(self, field: str) -> str:
        """Raises DataError unless the field is a text that is not blank."""
        value = self.value(field)
        if not isinstance(value, str) or not value.strip():
            raise self.error(field, "must be a text that is not blank")
        if not value.isprintable() and any("\ud800" <= char <= "\udfff" for char in value):
            raise self.error(field, "holds half a surrogate pair, which UTF-8 has no room for")
        return value.strip()

    def error(self, field: str, valid: str) -> DataError:
        shown = repr(self.fields.get(field))
        return DataError(f"{self.where}: {field} = {shown if len(shown) <= 80 else shown[:77] + '...'}: {valid}")


def published_rows(hub: Hub, published: Published, path: Path | None) -> Iterator[Row]:
    """Every row of one published split. Raises ConfigError when the hub cannot be read, DataError for a bad local file."""
    if path is None:
        yield from _hub_rows(hub, published)
        return
    yield from _rows(path, _files(path, published, hub.splits))


def file_rows(path: Path) -> list[Row]:
    """Every row of one local file. Raises DataError for a file that is not there, holds nothing, or cannot be read."""
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    _refuse_other_suffix(path)
    return _rows(path, [path])


def _rows(path: Path, files: Sequence[Path]) -> list[Row]:
    if rows := [row for file in files for row in _file_rows(file)]:
        return rows
    raise DataError(f"{path}: holds no rows")


def _refuse_other_suffix(path: Path) -> None:
    if path.suffix not in SUFFIXES:
        raise DataError(f"{path}: a file must end in {', '.join(SUFFIXES)}")


def _hub_rows(hub: Hub, published: Published) -> Iterator[Row]:
    name = hub.id if hub.config is None else f"{hub.id} ({hub.config})"
    try:
        import datasets
    except ImportError as error:
        raise ConfigError(f"reading {name} from the hub needs `pip install permix[local]`; or give task.path") from error
    silent = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        data = datasets.load_dataset(hub.id, hub.config, split=published)
    except (OSError, ValueError) as error:  # no network, no such data set, no such split
        raise ConfigError(f"{name}: cannot be read from the hub: {error}; give task.path, a local file or folder") from error
    finally:
        if not silent:
            datasets.enable_progress_bars()
    for number, fields in enumerate(data, 1):
        yield Row(f"{hub.id}/{published}:{number}", dict(fields))


def _files(path: Path, published: Published, splits: Sequence[Published]) -> list[Path]:
    """The files that hold the split: `path` itself, or those of that name in a folder."""
    if path.is_dir():
        whole = [file for suffix in SUFFIXES if (file := path / f"{published}{suffix}").is_file()]
        if found := whole[:1] or sorted(path.glob(f"{published}-*.parquet")):
            return found
        here = ", ".join(sorted(one.name for one in path.iterdir())[:10])
        raise DataError(f"{path}: no {published}.jsonl, .json or .parquet in this folder; it holds {here or 'nothing'}")
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    _refuse_other_suffix(path)
    named = path.stem.split("-")[0]
    if named in splits and named != published:
        raise DataError(
            f"{path}: is named as the published {named} split, but task.split asks for questions of the published {published}"
        )
    return [path]


def _file_rows(file: Path) -> Iterator[Row]:
    try:
        raw = b"" if file.suffix == ".parquet" else file.read_bytes().removeprefix(b"\xef\xbb\xbf")
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror}") from error
    if file.suffix == ".parquet":
        yield from _parquet_rows(file)
    elif file.suffix == ".json" and raw.lstrip().startswith(b"["):
        for number, fields in enumerate(_parse(raw, str(file), first_line=1), 1):
            yield _row(fields, f"{file}: row {number}")
    else:
        for number, line in enumerate(raw.split(b"\n"), 1):
            if line.strip():
                yield _row(_parse(line, str(file), first_line=number), f"{file}:{number}")


def _parse(raw: bytes, file: str, *, first_line: int) -> Any:
    try:
        return json.loads(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        line = first_line + raw[: error.start].count(b"\n")
        raise DataError(f"{file}:{line}: not UTF-8") from error
    except json.JSONDecodeError as error:
        raise DataError(f"{file}:{first_line + error.lineno - 1}: not JSON: {error.msg} (column {error.colno})") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; brackets nested thousands deep
        raise DataError(f"{file}:{first_line}: cannot be read as JSON: {error}") from error


def _row(fields: Any, where: str) -> Row:
    if not isinstance(fields, dict):
        raise DataError(f"{where}: must be a JSON object with named fields, not {type(fields).__name__}")
    return Row(where, fields)


def _parquet_rows(file: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(file)
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"{file}: not a Parquet file: {error}") from error
    for number, fields in enumerate(table.to_pylist(), 1):
        yield Row(f"{file}: row {number}", fields)
