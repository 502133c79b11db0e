"""The first table: a line a method, the measures that decide between them and nothing else.

Contract as in `permix.report.tables`; numbers of several training seeds are means over them (`permix.report.seeds`), and every
seed has its own line in the table of all models.
"""

from collections.abc import Mapping, Sequence
from functools import partial

from permix.report.judged import OPEN
from permix.report.seeds import Method, Pooled
from permix.report.table import MISSING, NOTHING, Cell, Source, Table, named, one_line, stated, tabulate
from permix.report.tables import HEADING_WIDTH, Row, estimate, judged, number
from permix.types import Estimate


def method_table(methods: Sequence[Method], pooled: Sequence[Pooled]) -> Table:
    """`pooled`: each method's numbers. A measure that no method has is left out. Judges' columns hold those of methods
    with one model: scores are not pooled."""
    rows = [_lone(method) for method in methods]
    judges = {one.name: f"{one.kind}, judge {one.judge}" for row in rows if row for one in row.judged}
    headings = ["model", "PSS", "identifiability", *judges, "worst persona", "mean over personas", "no persona"]
    lines = [_line(method, one, row, judges) for method, one, row in zip(methods, pooled, rows, strict=True)]
    held = [place for place in range(len(headings)) if place == 0 or any(line[place].text != MISSING for line in lines)]
    named_by = [one_line(headings[place], HEADING_WIDTH) for place in held]
    return tabulate("methods", named_by, [[line[place] for place in held] for line in lines])


def _line(method: Method, one: Pooled, row: Row | None, judges: Mapping[str, str]) -> list[Cell]:
    of = partial(_of, method)
    scores = [NOTHING if row is None else of(judged(row, name), kind) for name, kind in judges.items()]
    accuracy = [of(_cell(found, one.reasons), "stability") for found in (one.worst, one.mean, one.baseline)]
    return [_name(method), of(_cell(one.pss, one.reasons), "stability"), of(_told(one), OPEN), *scores, *accuracy]


def _of(method: Method, cell: Cell, kind: str) -> Cell:
    return cell.of(*(Source(label, kind) for label in method.labels))


def _name(method: Method) -> Cell:
    seeds = len(method.models)
    return named(method.name)._replace(note=f"mean of {seeds} training seeds" if seeds > 1 else "")


def _cell(found: Estimate | None, reasons: Sequence[str]) -> Cell:
    """Numbers of seeds that may not be pooled are missing, and why stands in their place."""
    return stated("not pooled", "; ".join(reasons)) if reasons else estimate(found)


def _told(one: Pooled) -> Cell:
    cell = _cell(one.identifiability, one.fidelity_reasons)
    return cell._replace(note=f"{cell.note}, chance {number(one.chance)}") if cell.number is not None else cell


def _lone(method: Method) -> Row | None:
    return method.models[0].row if len(method.models) == 1 else None
