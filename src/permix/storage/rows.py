"""Read a TOML, JSONL, CSV, TSV, Parquet or plain-text file into rows, each with its line number.

A row is a mapping of fields, which callers validate. A file that cannot be read raises DataError, which names file and line: a
missing path, a directory, an unknown suffix, bytes that are not text, bad syntax. UTF-8 and UTF-16 are read, with or without a
byte-order mark and with Windows line ends. The cells of a CSV file may be separated by commas, semicolons, tabs or |.

Rows that are given in Python are read by `given_items` and `given_fields`: lists, and data frames of pandas, polars and pyarrow.
"""

import csv
import io
import json
import numbers
import re
import tomllib
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from permix.errors import DataError, closest_match
from permix.sanitize import detect_encoding

CSV_SUFFIXES = (".csv", ".tsv")


class SourceRow(NamedTuple):
    """One record of a file; `where` is "file:line", for error messages."""

    where: str
    fields: dict[str, object]


def quote_value(value: object) -> str:
    """The value for an error message: its repr, at most 80 characters long."""
    shown = repr(value)
    return shown if len(shown) <= 80 else f"{shown[:77]}..."


def valid_names_hint(name: str, valid: Collection[str]) -> str:
    """The hint that ends an "unknown name" error: the closest valid name if there is one, and the valid names."""
    near = closest_match(name, valid)
    hint = f"did you mean {near!r}? " if near else ""
    listed = sorted(valid)
    more = f" and {len(listed) - 20} more" if len(listed) > 20 else ""
    return f"{hint}valid: {', '.join(listed[:20]) or 'none'}{more}"


def read_rows(path: Path, table: str, suffixes: Collection[str], *, has_builtin: bool = False) -> list[SourceRow]:
    """The rows of a file. `table`: the name of its TOML tables. `suffixes`: the accepted formats. Raises DataError.

    `has_builtin`: "builtin" may be given in place of the path.
    """
    name, suffix = _printable_name(str(path)), path.suffix.lower()
    if not path.exists():
        builtin = '"builtin" or ' if has_builtin else ""
        raise DataError(f"{name}: no such file; give {builtin}a path to a {' / '.join(suffixes)} file")
    if not path.is_file():
        raise DataError(f"{name}: not a file{' but a directory' if path.is_dir() else ''}; give a {' / '.join(suffixes)} file")
    if suffix not in suffixes:
        raise DataError(f"{name}: unknown suffix {suffix!r}; valid: {', '.join(suffixes)}")
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(f"{name}: cannot be read: {error.strerror}") from error
    return parse_rows(name, suffix, raw, table)


def parse_rows(name: str, suffix: str, raw: bytes, table: str) -> list[SourceRow]:
    """The rows of a file, from its bytes. `name` names the file in errors. Raises DataError, also for a file without rows."""
    text = decode_text(name, raw)
    match suffix:
        case ".toml":
            rows = _toml_rows(name, text, table)
        case ".jsonl":
            rows = _jsonl_rows(name, text)
        case suffix if suffix in CSV_SUFFIXES:
            rows = csv_rows(name, text)
        case _:
            rows = [SourceRow(f"{name}:{n}", {"text": line}) for n, line in _numbered_lines(text)]
    if not rows:
        raise DataError(f"{name}:1: the file contains no {table}; it needs at least one")
    return rows


def _printable_name(name: str) -> str:
    return name if name.isprintable() else ascii(name)


def _numbered_lines(text: str) -> Iterable[tuple[int, str]]:
    """Numbered lines that are not blank. Only newlines separate them: a JSON string may contain other separators."""
    return ((n, line) for n, line in enumerate(text.split("\n"), 1) if line.strip())


def decode_text(name: str, raw: bytes) -> str:
    """The text of a file in UTF-8 or UTF-16. Raises DataError, naming the line, for bytes that are neither."""
    encoding = detect_encoding(raw)
    try:
        return raw.decode(encoding)
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        name_of_encoding = encoding.removesuffix("-sig").upper()
        raise DataError(
            f"{name}:{line}: not {name_of_encoding} text: byte 0x{raw[error.start]:02x} is not {name_of_encoding}; save the file "
            "with the encoding UTF-8"
        ) from error


def parse_json(text: str, name: str, first_line: int = 1) -> Any:
    """The JSON value of a text that starts at `first_line` of the file. Raises DataError, naming the line."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{name}:{first_line + error.lineno - 1}: not JSON: {error.msg} (column {error.colno})") from error
    except (ValueError, RecursionError) as error:  # a number with thousands of digits; thousands of nested brackets
        raise DataError(f"{name}:{first_line}: cannot be read as JSON: {error}") from error


def parquet_rows(path: Path) -> list[SourceRow]:
    """The rows of a Parquet file. Raises DataError if it is none."""
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"{path}: not a Parquet file: {error}") from error
    return [SourceRow(f"{path}: row {number}", fields) for number, fields in enumerate(table.to_pylist(), 1)]


def field_value(fields: Mapping[str, Any], column: str) -> Any:
    """The value of a column, None if the row has none. A dot leads into an object: `reward_model.ground_truth`."""
    if column in fields or "." not in column:
        return fields.get(column)
    first, _, rest = column.partition(".")
    inner = fields.get(first)
    return field_value(inner, rest) if isinstance(inner, Mapping) else None


def _toml_rows(name: str, text: str, table: str) -> list[SourceRow]:
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        at = re.search(r"at line (\d+)", str(error))
        line = int(at[1]) if at else len(text.rstrip().split("\n"))
        raise DataError(f"{name}:{line}: not valid TOML: {error}") from error
    except (ValueError, RecursionError) as error:  # too long a number or too deep nesting, for which tomllib gives no line
        raise DataError(f"{name}:1: not usable TOML: {error}") from error
    for key in data:
        if key != table:
            raise DataError(
                f"{name}:{_line_of(key, text)}: unknown key {key!r} outside a [[{table}]]; {valid_names_hint(key, [table])}"
            )
    tables, lines = data.get(table, []), _table_lines(text, table)
    if not isinstance(tables, list) or len(tables) != len(lines):
        raise DataError(f"{name}:{_line_of(table, text)}: {table!r} must be given as [[{table}]] tables, one for each {table}")
    return [SourceRow(f"{name}:{line}", fields) for line, fields in zip(lines, tables, strict=True)]


def _line_of(key: str, text: str) -> int:
    match = re.search(rf"^[ \t]*\[*[ \t]*[\"']?{re.escape(key)}", text, re.MULTILINE)
    return text.count("\n", 0, match.start()) + 1 if match else 1


def _table_lines(text: str, table: str) -> list[int]:
    """Line numbers of the [[table]] headers, which `tomllib` does not give.

    A line that looks like a header may be inside a multi-line string: it is a header only if the text since the last header is
    valid TOML.
    """
    header = re.compile(rf"[ \t]*\[\[[ \t]*([\"']?){re.escape(table)}\1[ \t]*\]\]")
    lines, numbers, start = text.split("\n"), [], 0
    for index, line in enumerate(lines):
        if header.match(line) and _is_valid_toml("\n".join(lines[start:index])):
            numbers.append(index + 1)
            start = index
    return numbers


def _is_valid_toml(text: str) -> bool:
    try:
        tomllib.loads(f"{text}\n")
    except tomllib.TOMLDecodeError:
        return False
    return True


def _jsonl_rows(name: str, text: str) -> list[SourceRow]:
    return [SourceRow(f"{name}:{n}", _json_object(f"{name}:{n}", line)) for n, line in _numbered_lines(text)]


def _json_object(where: str, line: str) -> dict[str, object]:
    try:
        value = json.loads(line, object_pairs_hook=_reject_repeated_keys)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not valid JSON: {error}; every line must be one object") from error
    if not isinstance(value, dict):
        raise DataError(f'{where}: {quote_value(value)} is not an object; write {{"text": ...}}')
    return value


def _reject_repeated_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"key {next(key for key in keys if keys.count(key) > 1)!r} occurs twice")
    return fields


def csv_rows(name: str, text: str) -> list[SourceRow]:
    """Rows of a CSV file with a header. An empty cell is None; a cell may contain line breaks."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=_csv_delimiter(text))
    header: list[str] = []
    rows: list[SourceRow] = []
    line = 1
    try:
        for cells in reader:
            where, line = f"{name}:{line}", reader.line_num + 1
            if not any(cell.strip() for cell in cells):
                continue
            if not header:
                header = _csv_header(where, cells)
                continue
            if len(cells) != len(header):
                raise DataError(
                    f"{where}: {len(cells)} cells for {len(header)} columns; quote a cell that contains "
                    f"{reader.dialect.delimiter!r}"
                )
            fields: dict[str, object] = {
                key: cell if cell.strip() else None for key, cell in zip(header, cells, strict=True) if key
            }
            rows.append(SourceRow(where, fields))
    except csv.Error as error:
        raise DataError(f"{name}:{line}: not valid CSV: {error}") from error
    return rows


def _csv_delimiter(text: str) -> str:
    """The separator that gives the header the most columns; a comma if none does."""
    return max(",;\t|", key=lambda delimiter: _n_header_columns(text, delimiter))


def _n_header_columns(text: str, delimiter: str) -> int:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    with suppress(csv.Error):
        return len(next((cells for cells in reader if any(cell.strip() for cell in cells)), []))
    return 0


def _csv_header(where: str, cells: list[str]) -> list[str]:
    header = [cell.strip() for cell in cells]
    named = [name for name in header if name]
    if len(set(named)) < len(named):
        raise DataError(f"{where}: a column occurs twice in {quote_value(header)}; give every column once")
    return header


def is_data_frame(value: object) -> bool:
    """Whether a value is a table of pandas, polars or pyarrow, over which a loop would go column by column."""
    return hasattr(value, "column_names" if hasattr(value, "to_pylist") else "columns") and any(
        hasattr(value, method) for method in ("to_dict", "to_dicts", "to_pylist")
    )


def given_items(given: Any, name: str, requirement: str) -> list[Any]:
    """The items of an argument of Python's, also of a generator; of a data frame a dict for each row, without missing values.

    Raises DataError, which names the argument and the requirement, for anything else, such as a text, a dict or a number.
    """
    if is_data_frame(given):
        if hasattr(given, "to_pylist"):
            rows = given.to_pylist()
        else:
            rows = given.to_dicts() if hasattr(given, "to_dicts") else given.to_dict("records")
        return [{key: value for key, value in row.items() if not is_missing_value(value)} for row in rows]
    if isinstance(given, str | bytes | Mapping) or not isinstance(given, Iterable):
        raise DataError(f"{name} = {quote_value(given)}: {requirement}")
    return list(given)


def given_fields(row: Mapping[Any, Any]) -> dict[str, Any]:
    """The fields of a row that is given in Python as a file would have them: arrays and tuples are lists, and integers and truth
    values of numpy are Python's."""
    return {str(key): _plain_value(value) for key, value in row.items()}


def _plain_value(value: Any) -> Any:
    if isinstance(value, tuple):
        return list(value)
    is_fraction = is_real_number(value) and not is_whole_number(value)
    return value.tolist() if type(value).__module__ == "numpy" and not isinstance(value, str) and not is_fraction else value


def is_whole_number(value: object) -> bool:
    """Whether a value is an integer, also one of numpy's, and no truth value."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def is_real_number(value: object) -> bool:
    """Whether a value is a number without an imaginary part, also one of numpy's, and no truth value."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def is_missing_value(value: object) -> bool:
    """Whether a value stands for none, as in a table with gaps: None, a number that is NaN, pandas' NA and NaT."""
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return True
    return isinstance(value, numbers.Number) and bool(value != value)
