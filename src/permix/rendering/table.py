"""A table as data: what stands in it, what each number rests on, and how it is written as Markdown and as CSV.

Contract: a cell holds text that is readable as it is (control and bidi marks are visible codes already) but not escaped; whoever
renders a table escapes for its medium. What is missing is "–" in a document and empty in CSV, never 0.
"""

import csv
import io
from collections.abc import Callable, Sequence
from typing import NamedTuple

from permix.sanitize import clip, markdown, visible
from permix.types import Estimate

LABEL_WIDTH = 48


def md_label(text: str, width: int = LABEL_WIDTH) -> str:
    """A name for a Markdown cell: one line, cut, escaped."""
    return markdown(one_line(text, width))


MISSING = "–"

FORMULA = tuple("=+-@＝＋－＠")
"""What makes a spreadsheet read a text cell as a formula."""


class Source(NamedTuple):
    """The run behind a number: the model's label and the kind of run ("stability", "fidelity", "train", ...)."""

    label: str
    kind: str


class Cell(NamedTuple):
    """`text`, and in small letters below it `note`. `number` is what the text says, for sorting and for CSV.

    `ours`: nobody else wrote any of it, so Markdown needs no escaping. `mark`: "**" or "*" around the text.
    """

    text: str
    note: str = ""
    number: Estimate | float | None = None
    ours: bool = False
    mark: str = ""
    sources: tuple[Source, ...] = ()

    def of(self, *sources: Source) -> "Cell":
        """The same, resting on these runs; nothing rests on a cell that is missing."""
        return self if self.text == MISSING else self._replace(sources=sources)

    @property
    def value(self) -> float | None:
        return self.number.value if isinstance(self.number, Estimate) else self.number

    @property
    def markdown(self) -> str:
        text, note = (self.text, self.note) if self.ours else (markdown(self.text), markdown(self.note))
        return f"{self.mark}{text}{self.mark}" + (f"<br><sub>{note}</sub>" if note else "")


NOTHING = Cell(MISSING, ours=True)

EMPTY = Cell("(empty)", ours=True, mark="*")
"""Where somebody said nothing at all, which is not nothing recorded."""


class Table(NamedTuple):
    """`name` is that of its CSV file and unique in a report. The first `names` columns say what a line is about."""

    name: str
    headings: tuple[str, ...]
    lines: tuple[tuple[Cell, ...], ...]
    names: int = 1

    @property
    def markdown(self) -> str:
        headings = [markdown(heading) for heading in self.headings]
        return grid(headings, [[cell.markdown for cell in line] for line in self.lines])

    @property
    def csv(self) -> str:
        """Numbers in full: a column of estimates becomes value, low, high and n; a note that says more has a column too."""
        columns = [_spread(heading, [line[place] for line in self.lines]) for place, heading in enumerate(self.headings)]
        flat = [part for column in columns for part in column]
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n", quoting=csv.QUOTE_ALL)  # also where ";" separates
        writer.writerow([_inert(heading) for heading, _ in flat])
        writer.writerows(zip(*(values for _, values in flat), strict=True))
        return out.getvalue()


def tabulate(name: str, headings: Sequence[str], lines: Sequence[Sequence[Cell]], names: int = 1) -> Table:
    return Table(name, tuple(headings), tuple(map(tuple, lines)), names)


def grid(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table of cells that are Markdown already."""
    ruled = [headings, ["---"] * len(headings), *lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in ruled)


def named(text: str, width: int = LABEL_WIDTH) -> Cell:
    """Somebody's name for something: one line, cut."""
    return Cell(one_line(text, width))


def quoted(text: str, width: int, lines: int) -> Cell:
    """Somebody's words, over several lines, cut."""
    said = clip(visible(text).strip(), width, lines)
    return Cell(said) if said else EMPTY


def stated(text: str, note: str = "", number: Estimate | float | None = None) -> Cell:
    """Our own words or numbers."""
    return NOTHING if text == MISSING else Cell(text, note, number, ours=True)


def one_line(text: str, width: int = LABEL_WIDTH) -> str:
    return clip(visible(text).replace("\n", " "), width)


Column = tuple[str, list[str]]


def _spread(heading: str, cells: Sequence[Cell]) -> list[Column]:
    estimates = [cell.number if isinstance(cell.number, Estimate) else None for cell in cells]
    if not any(estimates):
        values = [_plain(cell) for cell in cells]
        return [(heading, values), *_notes(heading, cells, [""] * len(cells))]
    parts: dict[str, Callable[[Estimate], float | None]] = {
        "": lambda one: one.value, ", low": lambda one: one.low, ", high": lambda one: one.high, ", n": lambda one: one.n
    }  # fmt: skip
    columns = [(heading + end, [_figure(part(one)) if one else "" for one in estimates]) for end, part in parts.items()]
    return [*columns, *_notes(heading, cells, [f"n = {one.n}" if one else "" for one in estimates])]


def _notes(heading: str, cells: Sequence[Cell], known: Sequence[str]) -> list[Column]:
    """The notes, unless they say no more than is known."""
    notes = [cell.note for cell in cells]
    return [] if all(note in ("", said) for note, said in zip(notes, known, strict=True)) else [
        (f"{heading}, note", [_inert(note) for note in notes])
    ]  # fmt: skip


def _plain(cell: Cell) -> str:
    if cell.number is not None:
        return _figure(cell.value)
    return "" if cell.text == MISSING else _inert(cell.text)


def _figure(value: float | None) -> str:
    return "" if value is None else repr(value)


def _inert(text: str) -> str:
    """As a spreadsheet shows it: a leading apostrophe keeps text from being a formula."""
    return f"'{text}" if text.lstrip().startswith(FORMULA) else text


UNSHOWN = "no difference shown"


def estimate(one: Estimate | None) -> Cell:
    """ "0.812 [0.75, 0.87]" over "n = 200"."""
    return NOTHING if one is None or one.value is None else stated(str(one), f"n = {one.n}", one)


def signed(one: Estimate | None) -> Cell:
    """As a difference: "+0.120 [+0.05, +0.19]" over its n."""
    return NOTHING if one is None or one.value is None else stated(one.signed(), f"n = {one.n}", one)


def word(difference: Estimate | None) -> str:
    """ "higher", "lower" or "no difference shown"; "not measured" without an interval."""
    if difference is None or difference.low is None or difference.high is None:
        return "not measured"
    return "higher" if difference.low > 0 else "lower" if difference.high < 0 else UNSHOWN


def number(value: float | None) -> str:
    return MISSING if value is None else f"{value:.3f}"


def count(value: float | None) -> str:
    """1234567 -> "1 234 567"."""
    return MISSING if value is None else f"{value:,.0f}".replace(",", " ")


def counted(value: float | None) -> Cell:
    return stated(count(value), number=value)


def dollars(value: float | None) -> str:
    """ "$ 0.0123"; a price that nobody gave is not 0."""
    return MISSING if value is None else f"$ {value:,.4f}"


def of(done: int | None, asked: int | None) -> str:
    return MISSING if done is None or asked is None else f"{count(done)} of {count(asked)}"


def probability(p: float | None) -> str:
    return MISSING if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"
