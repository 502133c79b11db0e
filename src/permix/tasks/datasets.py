"""Read the rows of a published data set, from the hub or from a local file or folder. Each row has its file and line.

The hub is read with `datasets`, which is imported only when needed. Local files are read with json and pyarrow, so that errors
name the line, nothing is copied to a cache, and evaluating on a local file needs no extra package.

A path is a .jsonl, .json (an array, an object that contains one, or one object per line) or .parquet file, or a folder that
contains `train.*`, `test.*` and so on, or the hub's own shards (`test-00000-of-00001.parquet`). A file with your own questions
may also be .csv or .tsv.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from permix.errors import ConfigError, DataError, missing_package_error
from permix.storage.rows import CSV_SUFFIXES, csv_rows, decode_text, field_value, parquet_rows, parse_json, quote_value

PublishedSplit = Literal["train", "dev", "validation", "test"]

DATASET_SUFFIXES = (".jsonl", ".json", ".parquet")


class HubDataset(NamedTuple):
    """A data set on the hub: its id, the name of its subset (`config`), and its published splits."""

    id: str
    config: str | None = None
    splits: tuple[PublishedSplit, ...] = ("train", "test")


class DatasetRow(NamedTuple):
    """One row as published. `where` is its file and line, for error messages."""

    where: str
    fields: dict[str, Any]

    def value(self, field: str) -> Any:
        """A field's value; a dot leads into an object. Raises DataError if the row has no such field."""
        if field not in self.fields and (inner := field_value(self.fields, field)) is not None:
            return inner
        if field not in self.fields:
            raise DataError(f"{self.where}: field {field!r} is missing; this row has {', '.join(self.fields) or 'no fields'}")
        return self.fields[field]

    def text(self, field: str) -> str:
        """A field's text, without white space at its ends. Raises DataError unless it is a text that is not blank."""
        value = self.value(field)
        if not isinstance(value, str) or not value.strip():
            raise self.error(field, "must be a text that is not blank")
        if has_lone_surrogate(value):
            raise self.error(field, "contains half a surrogate pair, which UTF-8 cannot encode")
        return value.strip()

    def error(self, field: str, requirement: str) -> DataError:
        """An error for the caller to raise: the row's place, the field, its value and the requirement."""
        return DataError(f"{self.where}: {field} = {quote_value(field_value(self.fields, field))}: {requirement}")


def has_lone_surrogate(text: str) -> bool:
    """Whether a text has half a surrogate pair, which UTF-8 cannot encode."""
    return not text.isprintable() and any("\ud800" <= char <= "\udfff" for char in text)


def read_published_rows(hub: HubDataset, split: PublishedSplit, path: Path | None) -> Iterator[DatasetRow]:
    """Yield every row of one published split, from `path` or, if it is None, from the hub.

    Raises ConfigError if the hub cannot be read, and DataError for a bad local file.
    """
    if path is None:
        yield from _read_hub_rows(hub, split)
        return
    yield from _read_all_rows(path, _files_of_split(path, split, hub.splits))


def read_file_rows(path: Path) -> list[DatasetRow]:
    """All rows of one local file. Raises DataError if the file is missing, empty or malformed."""
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    _check_suffix(path, (*DATASET_SUFFIXES, *CSV_SUFFIXES))
    return _read_all_rows(path, [path])


def _read_all_rows(path: Path, files: Sequence[Path]) -> list[DatasetRow]:
    if rows := [row for file in files for row in _iter_file_rows(file)]:
        return rows
    raise DataError(f"{path}: contains no rows")


def _check_suffix(path: Path, suffixes: Sequence[str] = DATASET_SUFFIXES) -> None:
    if path.suffix not in suffixes:
        raise DataError(f"{path}: a file must end in {', '.join(suffixes)}")


def _read_hub_rows(hub: HubDataset, split: PublishedSplit) -> Iterator[DatasetRow]:
    name = hub.id if hub.config is None else f"{hub.id} ({hub.config})"
    try:
        import datasets
    except ImportError as error:
        raise missing_package_error(["datasets"], f"reading {name} from the hub", "give task.path, a local copy") from error
    bars_disabled = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        data = datasets.load_dataset(hub.id, hub.config, split=split)
    except (OSError, ValueError) as error:  # no network, no such data set, no such split
        raise ConfigError(f"{name}: cannot be read from the hub: {error}; give task.path, a local file or folder") from error
    finally:
        if not bars_disabled:
            datasets.enable_progress_bars()
    for number, fields in enumerate(data, 1):
        yield DatasetRow(f"{hub.id}/{split}:{number}", dict(fields))


def _files_of_split(path: Path, split: PublishedSplit, published_splits: Sequence[PublishedSplit]) -> list[Path]:
    """The files of the split: `path` itself, or the files of that name in a folder."""
    if path.is_dir():
        whole = [file for suffix in DATASET_SUFFIXES if (file := path / f"{split}{suffix}").is_file()]
        if found := whole[:1] or sorted(path.glob(f"{split}-*.parquet")):
            return found
        names = ", ".join(sorted(one.name for one in path.iterdir())[:10])
        raise DataError(f"{path}: no {split}.jsonl, .json or .parquet in this folder; it contains {names or 'nothing'}")
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    _check_suffix(path)
    named = path.stem.split("-")[0]
    if named in published_splits and named != split:
        raise DataError(f"{path}: has the name of the published split {named}, but task.split needs the published split {split}")
    return [path]


def _iter_file_rows(file: Path) -> Iterator[DatasetRow]:
    if file.suffix == ".parquet":
        yield from (DatasetRow(*row) for row in parquet_rows(file))
        return
    try:
        text = decode_text(str(file), file.read_bytes())
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror}") from error
    if file.suffix in CSV_SUFFIXES:
        for where, cells in csv_rows(str(file), text):
            yield DatasetRow(where, {name: cell for name, cell in cells.items() if cell is not None})
    elif (records := _json_records(text, file)) is not None:
        for number, fields in enumerate(records, 1):
            yield _dataset_row(fields, f"{file}: row {number}")
    else:
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                yield _dataset_row(parse_json(line, str(file), number), f"{file}:{number}")


def _json_records(text: str, file: Path) -> list[Any] | None:
    """The items of a .json file that is an array, or an object with one array of objects; None if it has an object per line."""
    if file.suffix != ".json":
        return None
    if text.lstrip().startswith("["):
        records: list[Any] = parse_json(text, str(file))
        return records
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError):
        return None
    lists = [value for value in whole.values() if isinstance(value, list)] if isinstance(whole, dict) else []
    return lists[0] if len(lists) == 1 and lists[0] and all(isinstance(one, dict) for one in lists[0]) else None


def _dataset_row(fields: Any, where: str) -> DatasetRow:
    if not isinstance(fields, dict):
        raise DataError(f"{where}: must be a JSON object with named fields, not {type(fields).__name__}")
    return DatasetRow(where, fields)
