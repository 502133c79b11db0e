"""The tables: one row a model, one row a persona, the controls of identifiability; and the first of them for a terminal.

Contract: a number is shown as measured, with its interval and its n; what is missing is "–" and never 0. Pure functions of
records. Labels and persona ids may be hostile text.

The first table: a line a method, the measures that decide between them and nothing else.

Contract as in `permix.report.tables`; numbers of several training seeds are means over them (`permix.report.methods`), and every
seed has its own line in the table of all models.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

from rich.box import SIMPLE_HEAD
from rich.table import Table as TerminalTable
from rich.text import Text

from permix.evals.strategies.base import Spent, StrategySummary
from permix.metrics.identifiability import Identifiability
from permix.metrics.linear_models import CrossedSummary
from permix.metrics.stability import PersonaSummary, StabilitySummary
from permix.rendering.table import (
    LABEL_WIDTH,
    MISSING,
    NOTHING,
    Cell,
    Source,
    Table,
    count,
    counted,
    estimate,
    named,
    number,
    of,
    one_line,
    probability,
    signed,
    stated,
    tabulate,
)
from permix.report.judges import OPEN, mark
from permix.report.methods import Method, Pooled
from permix.report.runs import Row
from permix.sanitize import clip, visible
from permix.types import Estimate

DETAILS_WIDTH = 400

HEADING_WIDTH = 80


class Column(NamedTuple):
    """`kind`: of which run of the model the number is."""

    heading: str
    cell: Callable[[Row], Cell]
    kind: str = "stability"


def distinct(row: Row) -> Cell:
    """Identifiability, with chance beside n: without it the number says nothing."""
    cell = estimate(row.identifiability)
    return cell._replace(note=cell.note and f"{cell.note}, chance {number(row.chance)}")


COLUMNS = (
    Column("no persona", lambda row: estimate(row.baseline)),
    Column("mean over personas", lambda row: estimate(row.mean)),
    Column("worst persona", lambda row: estimate(row.worst)),
    Column("PSS", lambda row: estimate(row.pss)),
    Column("PSS as observed (worst / best)", lambda row: estimate(row.pss_observed)),
    Column("PSS if personas did nothing", lambda row: estimate(row.pss_null)),
    Column("identifiability", distinct, OPEN),
    Column("scored of asked", lambda row: stated(of(row.n_scored, row.n_asked))),
    Column("answers of asked", lambda row: stated(of(row.n_answers, row.n_answers_asked)), OPEN),
    Column("training tokens", lambda row: counted(row.train_tokens), "train"),
    Column("training CPU s", lambda row: counted(row.train_cpu_s), "train"),
    Column("evaluation tokens", lambda row: counted(row.eval_tokens)),
    Column("evaluation CPU s", lambda row: counted(row.eval_cpu_s)),
)


JUDGED_AFTER = 1 + [column.heading for column in COLUMNS].index("identifiability")


def columns_of(rows: Sequence[Row]) -> list[Column]:
    """The columns, and one for each judge of these rows."""
    kinds = {one.name: f"{one.kind}, judge {one.judge}" for row in rows for one in row.judged}
    by_judge = [Column(name, partial(judged, name=name), kind) for name, kind in kinds.items()]
    return [*COLUMNS[:JUDGED_AFTER], *by_judge, *COLUMNS[JUDGED_AFTER:]]


def judged(row: Row, name: str) -> Cell:
    """A judge's number, marked where it means nothing."""
    one = next((one for one in row.judged if one.name == name), None)
    if one is None or one.persona_score.value is None:
        return NOTHING
    about = f"n = {one.persona_score.n} personas, {of(one.n_scored, one.n_asked)} scored"
    worth = {True: "", False: ", means nothing: judge not trusted", None: ", judge not tried"}[one.trusted]
    return stated(f"{one.persona_score}{mark(one.trusted)}", about + worth, one.persona_score)


def main_table(rows: Sequence[Row]) -> Table:
    """One line a model."""
    columns = columns_of(rows)
    lines = [[named(row.label), *(column.cell(row).of(Source(row.label, column.kind)) for column in columns)] for row in rows]
    return tabulate("models", ["model", *(one_line(column.heading, HEADING_WIDTH) for column in columns)], lines)


NAME_WIDTH, VALUE_WIDTH = 19, len("0.123 [0.12, 0.12]")  # three models fit into 80 columns, their intervals unbroken


def terminal_table(rows: Sequence[Row]) -> TerminalTable:
    """For a terminal: measures as lines, models as columns; measures that no model has are left out."""
    table = TerminalTable(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("", width=NAME_WIDTH)
    for row in rows:
        table.add_column(Text(clip(visible(row.label), LABEL_WIDTH)), justify="left", overflow="fold", min_width=VALUE_WIDTH)
    for column in columns_of(rows):
        cells = [column.cell(row) for row in rows]
        if any(cell.text != MISSING for cell in cells):
            table.add_row(Text(clip(visible(column.heading), HEADING_WIDTH)), *(_two_tone(cell) for cell in cells))
    return table


def persona_table(summaries: Mapping[str, StabilitySummary]) -> Table:
    """One line a persona, one column a model: accuracy, below it the difference to no persona and Holm's p."""
    of_model = {model: {one.id: one for one in summary.personas} for model, summary in summaries.items()}
    ids = dict.fromkeys(id for personas in of_model.values() for id in personas)
    none = [
        Cell("no persona", ours=True, mark="*"), *(estimate(one.baseline).of(_stable(model)) for model, one in summaries.items())
    ]  # fmt: skip
    lines = [[named(id), *(_persona(personas.get(id)).of(_stable(model)) for model, personas in of_model.items())] for id in ids]
    return tabulate("personas", ["persona", *map(one_line, summaries)], [none, *lines])


CONTROLS = (
    "model", "identifiability", "chance", "question only", "length only", "labels permuted", "answers of asked", "trained on",
)  # fmt: skip


def controls_table(results: Mapping[str, Identifiability]) -> Table:
    """Identifiability beside what must be at chance if the test is sound."""
    lines = []
    for model, result in results.items():
        tested = (result.question_only, result.length_only, result.permuted)
        cells = [
            estimate(result.accuracy),
            stated(number(result.chance), number=result.chance),
            *map(estimate, tested),
            stated(of(result.n_answered, result.n_asked)),
        ]
        lines.append([named(model), *(cell.of(Source(model, OPEN)) for cell in cells), named(result.reference)])
    return tabulate("identifiability", CONTROLS, lines)


TEMPLATE_COLUMNS = (("mean over personas", "mean"), ("worst persona", "worst"), ("PSS", "pss"), ("mean − no persona", "shift"))


def crossed_table(found: Mapping[str, CrossedSummary]) -> Table:
    """One line a model and template, one more for what templates do in all."""
    lines = []
    for model, crossed in found.items():
        for one in crossed.templates:
            cells = [signed(one.shift) if name == "shift" else estimate(getattr(one, name)) for _, name in TEMPLATE_COLUMNS]
            wording = Cell(one_line(one.id), one_line(one.text, DETAILS_WIDTH))
            lines.append([named(model), wording, *(cell.of(_stable(model)) for cell in cells)])
    return tabulate("wordings", ["model", "wording", *(heading for heading, _ in TEMPLATE_COLUMNS)], lines, names=2)


def _stable(model: str) -> Source:
    return Source(model, "stability")


def components_of(crossed: CrossedSummary) -> str:
    """In words: how much personas, wordings and both together move the accuracy."""
    parts = {
        "between personas": crossed.persona_sd,
        "between wordings": crossed.template_sd,
        "of a persona from wording to wording, besides": crossed.persona_template_sd,
    }
    said = ", ".join(f"{one} {what}" for what, one in parts.items())
    return f"standard deviation of accuracy {said}; n = {crossed.persona_sd.n} questions"


class Strategic(NamedTuple):
    """A model under a strategy."""

    label: str
    found: StrategySummary


class StrategyColumn(NamedTuple):
    heading: str
    cell: Callable[[StrategySummary], Cell]


STRATEGY_COLUMNS = (
    StrategyColumn("accuracy", lambda one: estimate(one.accuracy)),
    StrategyColumn("no persona", lambda one: estimate(one.baseline)),
    StrategyColumn("gain over no persona", lambda one: signed(one.gain)),
    StrategyColumn("tokens an answer", lambda one: tokens(one.spent)),
    StrategyColumn("tokens of asking once", lambda one: tokens(one.once)),
    StrategyColumn("times the cost of asking once", lambda one: _times(one.times)),
    StrategyColumn("tokens spent before the first answer", lambda one: tokens(one.choosing)),
    StrategyColumn("scored of asked", lambda one: stated(of(one.n_scored, one.n_asked))),
)


def tokens(spent: Spent | None) -> Cell:
    """ "812" over "700 read, 112 written"."""
    if spent is None:
        return NOTHING
    return stated(count(spent.total), f"{count(spent.prompt)} read, {count(spent.completion)} written", spent.total)


def _times(times: float | None) -> Cell:
    return NOTHING if times is None else stated(f"{times:.2f} ×", number=times)


def strategy_table(found: Sequence[Strategic]) -> Table:
    """One line a model and strategy."""
    lines = []
    for model, one in found:
        source = Source(model, f"stability, {one.strategy}")
        cells = [column.cell(one).of(source) for column in STRATEGY_COLUMNS]
        lines.append([named(model), named(one.strategy), *cells, Cell(_details(one))])
    headings = ["model", "strategy", *(column.heading for column in STRATEGY_COLUMNS), "in detail"]
    return tabulate("strategies", headings, lines, names=2)


def terminal_strategy_table(found: Sequence[Strategic]) -> TerminalTable:
    """For a terminal: measures as lines, strategies as columns; measures that no strategy has are left out."""
    table = TerminalTable(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("", width=NAME_WIDTH)
    for one in found:
        heading = clip(visible(f"{one.label}, {one.found.strategy}"), LABEL_WIDTH)
        table.add_column(Text(heading), justify="left", overflow="fold", min_width=VALUE_WIDTH)
    for column in STRATEGY_COLUMNS:
        cells = [column.cell(one.found) for one in found]
        if any(cell.text != MISSING for cell in cells):
            table.add_row(Text(column.heading), *(_two_tone(cell) for cell in cells))
    table.add_row(Text("in detail"), *(Text(_details(one.found)) for one in found))
    return table


def _details(found: StrategySummary) -> str:
    return clip(visible(found.details).replace("\n", " "), DETAILS_WIDTH)


def _persona(one: PersonaSummary | None) -> Cell:
    if one is None or one.accuracy.value is None:
        return NOTHING
    accuracy = estimate(one.accuracy)
    said = f"{one.difference.signed()}, p = {probability(one.holm_p)}, {accuracy.note}".replace("= <", "<")
    return accuracy._replace(note=said)


def _two_tone(cell: Cell) -> Text:
    return Text.assemble(cell.text, (f"\n{cell.note}" if cell.note else "", "dim"))


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
