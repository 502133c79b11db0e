"""Holds tables as data (cells with text, number and source runs), writes them as Markdown and CSV and for a terminal, and formats
numbers.

Contract: control and bidi characters in a cell's text are already visible codes, but the text is not escaped; the renderer
escapes for its medium. A missing value is "–" in a document and empty in CSV, never 0.
"""

import csv
import io
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from rich.box import SIMPLE_HEAD
from rich.table import Table as TerminalTable
from rich.text import Text

from permix.sanitize import escape_control, escape_markdown, truncate
from permix.storage.files import replace_when_done
from permix.types import Estimate

LABEL_WIDTH = 48


def md_label(text: str, width: int = LABEL_WIDTH) -> str:
    """A name for a Markdown cell: one line, at most `width` characters, escaped."""
    return escape_markdown(one_line(text, width))


def plain_text(markdown: str) -> str:
    """Markdown that permix wrote, as text for a terminal: without emphasis and quote marks, and with names unescaped.

    Names in it were escaped by `escape_markdown`, so every mark that is removed is permix's own.
    """
    unmarked = re.sub(r"(?m)^> ?|[*`]", "", markdown).replace("<br>", " ")
    return re.sub(r"&#(\d+);", lambda match: chr(int(match[1])), unmarked)


MISSING_TEXT = "–"

FORMULA_PREFIXES = tuple("=+-@＝＋－＠")
"""Characters at the beginning of a text that make a spreadsheet read it as a formula."""


class SourceRun(NamedTuple):
    """The run behind a number: the model's label and the kind of run ("stability", "fidelity", "train", ...)."""

    label: str
    kind: str


class TableCell(NamedTuple):
    """`text`, and `note` in small type below it. `number` is the value of the text, for sorting and for CSV.

    `trusted_markup`: permix wrote text and note, so Markdown does not escape them. `emphasis`: "**" or "*" around the text.
    `sources`: the runs that the number comes from.
    """

    text: str
    note: str = ""
    number: Estimate | float | None = None
    trusted_markup: bool = False
    emphasis: str = ""
    sources: tuple[SourceRun, ...] = ()

    def with_sources(self, *sources: SourceRun) -> "TableCell":
        """The cell with these source runs; a missing cell gets none."""
        return self if self.text == MISSING_TEXT else self._replace(sources=sources)

    @property
    def value(self) -> float | None:
        return self.number.value if isinstance(self.number, Estimate) else self.number

    @property
    def markdown(self) -> str:
        text, note = (self.text, self.note) if self.trusted_markup else (escape_markdown(self.text), escape_markdown(self.note))
        return f"{self.emphasis}{text}{self.emphasis}" + (f"<br><sub>{note}</sub>" if note else "")


MISSING_CELL = TableCell(MISSING_TEXT, trusted_markup=True)

EMPTY_ANSWER_CELL = TableCell("(empty)", trusted_markup=True, emphasis="*")
"""An answer that is recorded and empty, unlike a missing one."""


class Table(NamedTuple):
    """`name` is the name of its CSV file, unique in a report. The first `n_label_columns` columns identify a row.

    `folded`: headings of columns that a reader sees only on request, where the medium can hide them.
    """

    name: str
    headings: tuple[str, ...]
    rows: tuple[tuple[TableCell, ...], ...]
    n_label_columns: int = 1
    folded: frozenset[str] = frozenset()

    @property
    def heading_notes(self) -> tuple[str, ...]:
        """For each column the note that all its numbers share ("n = 200"), else "". It is shown once, below the heading."""
        columns = ([row[index] for row in self.rows] for index in range(len(self.headings)))
        return tuple(map(_shared_note, columns))

    def without_shared_notes(self) -> "Table":
        """The table for reading: a note that all numbers of a column share is left out of its cells."""
        notes = self.heading_notes
        rows = (
            tuple(cell._replace(note="") if note else cell for cell, note in zip(row, notes, strict=True)) for row in self.rows
        )
        return self._replace(rows=tuple(rows))

    @property
    def markdown(self) -> str:
        notes = (f"<br><sub>{escape_markdown(note)}</sub>" if note else "" for note in self.heading_notes)
        headings = [escape_markdown(heading) + note for heading, note in zip(self.headings, notes, strict=True)]
        return markdown_table(headings, [[cell.markdown for cell in row] for row in self.without_shared_notes().rows])

    @property
    def csv(self) -> str:
        """Numbers in full precision. A column of estimates becomes value, low, high and n; any other note gets its own column."""
        columns = [_csv_columns(heading, [row[index] for row in self.rows]) for index, heading in enumerate(self.headings)]
        flat = [part for column in columns for part in column]
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n", quoting=csv.QUOTE_ALL)  # quoted text survives programs that split at ";"
        writer.writerow([_escape_formula(heading) for heading, _ in flat])
        writer.writerows(zip(*(values for _, values in flat), strict=True))
        return out.getvalue()


def _shared_note(cells: Sequence[TableCell]) -> str:
    """The note of all numbers in a column; "" if they differ, if there are fewer than two, or if a cell holds text."""
    measured = [cell for cell in cells if cell != MISSING_CELL]
    notes = {cell.note for cell in measured}
    is_numeric = all(cell.trusted_markup and cell.number is not None for cell in measured)
    return notes.pop() if len(measured) > 1 and len(notes) == 1 and is_numeric else ""


def tabulate(
    name: str,
    headings: Sequence[str],
    rows: Sequence[Sequence[TableCell]],
    n_label_columns: int = 1,
    folded: Iterable[str] = (),
) -> Table:
    return Table(name, tuple(headings), tuple(map(tuple, rows)), n_label_columns, frozenset(folded))


def markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; headings and cells must be Markdown already."""
    ruled = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in ruled)


def terminal_table() -> TerminalTable:
    """A table for a terminal without columns and rows, in the style of all such tables."""
    return TerminalTable(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)


def terminal_text(cell: TableCell) -> Text:
    """The cell in a table for a terminal, its note dim on a line of its own."""
    return Text.assemble(cell.text, (f"\n{cell.note}" if cell.note else "", "dim"))


def label_cell(text: str, width: int = LABEL_WIDTH) -> TableCell:
    """A name given by a user (untrusted): one line, cut to `width` characters."""
    return TableCell(one_line(text, width))


def text_cell(text: str, width: int, max_lines: int) -> TableCell:
    """Text of a model or user (untrusted): at most `max_lines` lines of `width` characters."""
    shown = truncate(escape_control(text).strip(), width, max_lines)
    return TableCell(shown) if shown else EMPTY_ANSWER_CELL


def quote_markdown(text: str, width: int, max_lines: int) -> str:
    """Text of a model or user (untrusted) as Markdown: at most `max_lines` lines of `width` characters, escaped."""
    return escape_markdown(truncate(escape_control(text).strip(), width, max_lines))


def trusted_cell(text: str, note: str = "", number: Estimate | float | None = None) -> TableCell:
    """Text or a number that permix itself wrote; the missing cell for "–"."""
    return MISSING_CELL if text == MISSING_TEXT else TableCell(text, note, number, trusted_markup=True)


def one_line(text: str, width: int = LABEL_WIDTH) -> str:
    return truncate(escape_control(text).replace("\n", " "), width)


_CsvColumn = tuple[str, list[str]]


def _csv_columns(heading: str, cells: Sequence[TableCell]) -> list[_CsvColumn]:
    estimates = [cell.number if isinstance(cell.number, Estimate) else None for cell in cells]
    if not any(estimates):
        values = [_csv_text(cell) for cell in cells]
        return [(heading, values), *_note_column(heading, cells, [""] * len(cells))]
    parts: dict[str, Callable[[Estimate], float | None]] = {
        "": lambda one: one.value, ", low": lambda one: one.low, ", high": lambda one: one.high, ", n": lambda one: one.n
    }  # fmt: skip
    columns = [(heading + end, [_csv_number(part(one)) if one else "" for one in estimates]) for end, part in parts.items()]
    return [*columns, *_note_column(heading, cells, [f"n = {one.n}" if one else "" for one in estimates])]


BATCH_ROWS = 10_000


def write_rows(path: Path, columns: Mapping[str, type], rows: Iterable[Mapping[str, Any]]) -> list[Path]:
    """Write a table as CSV to `path` and, if pyarrow is installed, as Parquet next to it; returns the paths.

    `columns`: name to str, int or float; a value is of that type or None. The rows are read once and not kept. In CSV, None is
    empty and a text that a spreadsheet would run as a formula begins with an apostrophe; control characters are visible codes.
    """
    try:
        import pyarrow  # noqa: F401

        has_parquet = True
    except ModuleNotFoundError:
        has_parquet = False
    parquet = path.with_suffix(".parquet")
    values = ([row[name] for name in columns] for row in rows)  # only these few values of a row are kept
    with ExitStack() as stack:
        scratch = stack.enter_context(replace_when_done(path))
        file = stack.enter_context(scratch.open("w", encoding="utf-8", newline=""))
        add_batch = stack.enter_context(_parquet_writer(parquet, columns)) if has_parquet else None
        writer = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_ALL)
        writer.writerow(columns)
        while batch := list(itertools.islice(values, BATCH_ROWS)):
            plain = [_map_distinct(_plain_value, column) for column in zip(*batch, strict=True)]
            writer.writerows(zip(*(_map_distinct(_csv_value, column) for column in plain), strict=True))
            if add_batch is not None:
                add_batch(plain)
    return [path, parquet] if has_parquet else [path]


@contextmanager
def _parquet_writer(path: Path, columns: Mapping[str, type]) -> Iterator[Callable[[Sequence[Sequence[Any]]], None]]:
    """Yield a function that appends rows, given as columns, to the file, which exists when the block has ended."""
    import pyarrow
    import pyarrow.parquet

    types = {str: pyarrow.string(), int: pyarrow.int64(), float: pyarrow.float64()}
    schema = pyarrow.schema([(name, types[kind]) for name, kind in columns.items()])
    with replace_when_done(path) as scratch, pyarrow.parquet.ParquetWriter(scratch, schema) as writer:

        def add(batch: Sequence[Sequence[Any]]) -> None:
            arrays = [pyarrow.array(values, type=field.type) for values, field in zip(batch, schema, strict=True)]
            writer.write_table(pyarrow.Table.from_arrays(arrays, schema=schema))

        yield add


def _map_distinct(change: Callable[[Any], Any], column: Sequence[Any]) -> list[Any]:
    """The changed values of a column; `change` is called once for each distinct value, since most columns have few of them."""
    changed = {value: change(value) for value in set(column)}
    return [changed[value] for value in column]


def _plain_value(value: Any) -> Any:
    """A text that any program can show; True and False are 1 and 0. A damaged count, too large for a column, is None."""
    if isinstance(value, str):
        return escape_control(value)
    if isinstance(value, bool):
        return int(value)
    return None if isinstance(value, int) and abs(value) >= 2**63 else value


def _csv_value(value: Any) -> str:
    return "" if value is None else _escape_formula(value) if isinstance(value, str) else repr(value)


def _note_column(heading: str, cells: Sequence[TableCell], implied: Sequence[str]) -> list[_CsvColumn]:
    """A column of the notes; none if each note is empty or equals the note that the CSV's other columns imply ("n = 8")."""
    notes = [cell.note for cell in cells]
    return [] if all(note in ("", known) for note, known in zip(notes, implied, strict=True)) else [
        (f"{heading}, note", [_escape_formula(note) for note in notes])
    ]  # fmt: skip


def _csv_text(cell: TableCell) -> str:
    if cell.number is not None:
        return _csv_number(cell.value)
    return "" if cell.text == MISSING_TEXT else _escape_formula(cell.text)


def _csv_number(value: float | None) -> str:
    return "" if value is None else repr(value)


def _escape_formula(text: str) -> str:
    """The text with an apostrophe in front if a spreadsheet would run it as a formula."""
    return f"'{text}" if text.lstrip().startswith(FORMULA_PREFIXES) else text


NOT_SIGNIFICANT = "no difference shown"

MIN_SHOWN_N = 3
"""Smallest n for which a table shows a number: an interval over one or two units means nothing. CSV and JSON always hold it."""

TOO_FEW_TEXT = "too few"


def estimate_cell(estimate: Estimate | None) -> TableCell:
    """ "0.812 [0.75, 0.87]" with the note "n = 200"; "too few" if n is below `MIN_SHOWN_N`; the missing cell without a value."""
    return _number_cell(estimate, str)


def difference_cell(difference: Estimate | None) -> TableCell:
    """ "+0.120 [+0.05, +0.19]" with the note "n = 200"; else as `estimate_cell`."""
    return _number_cell(difference, Estimate.format_difference)


def _number_cell(estimate: Estimate | None, text: Callable[[Estimate], str]) -> TableCell:
    if estimate is None or estimate.value is None:
        return MISSING_CELL
    return trusted_cell(text(estimate) if estimate.n >= MIN_SHOWN_N else TOO_FEW_TEXT, f"n = {estimate.n}", estimate)


def difference_direction(difference: Estimate | None) -> str:
    """ "higher" or "lower" if the interval excludes 0, else "no difference shown"; "not measured" without an interval."""
    if difference is None or difference.low is None or difference.high is None:
        return "not measured"
    return "higher" if difference.low > 0 else "lower" if difference.high < 0 else NOT_SIGNIFICANT


def format_decimal(value: float | None) -> str:
    return MISSING_TEXT if value is None else f"{value:.3f}"


def format_count(value: float | None) -> str:
    """1234567 -> "1 234 567"."""
    return MISSING_TEXT if value is None else f"{value:,.0f}".replace(",", " ")


def count_cell(value: float | None) -> TableCell:
    return trusted_cell(format_count(value), number=value)


def format_dollars(value: float | None) -> str:
    """ "$ 0.0123"; "–" for an unknown price, which is not 0."""
    return MISSING_TEXT if value is None else f"$ {value:,.4f}"


def format_ratio(done: int | None, total: int | None) -> str:
    return MISSING_TEXT if done is None or total is None else f"{format_count(done)} of {format_count(total)}"


def format_p_value(p: float | None) -> str:
    return MISSING_TEXT if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def p_text(p: float | None) -> str:
    """ "p = 0.012" or "p < 0.001"."""
    shown = format_p_value(p)
    return f"p {shown}" if shown.startswith("<") else f"p = {shown}"
