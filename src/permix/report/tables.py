"""The tables: one row a model, one row a persona, the controls of identifiability; as GitHub Markdown, and for a terminal.

Contract: a number is shown as measured, with its interval and its n; what is missing is "–" and never 0. Pure functions of
records. Labels and persona ids may be hostile text and are escaped for the medium.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from permix.baselines.base import Spent, StrategySummary
from permix.escape import clip, markdown, visible
from permix.evals.crossed import CrossedSummary
from permix.evals.identify import Identifiability
from permix.evals.stability_summary import PersonaSummary, StabilitySummary
from permix.types import Estimate, Record

MISSING = "–"
LABEL_WIDTH = 48
DETAILS_WIDTH = 400


class Row(Record):
    """One model of the main table. `n_scored` of `n_asked` counts persona cells. Tokens and CPU seconds: None unless recorded."""

    label: str
    baseline: Estimate | None = None
    mean: Estimate | None = None
    worst: Estimate | None = None
    pss: Estimate | None = None
    pss_observed: Estimate | None = None
    pss_null: Estimate | None = None
    pss_crossfit: Estimate | None = None
    identifiability: Estimate | None = None
    chance: float | None = None
    train_tokens: int | None = None
    train_cpu_s: float | None = None
    eval_tokens: int | None = None
    eval_cpu_s: float | None = None
    n_questions: int | None = None
    n_personas: int | None = None
    n_scored: int | None = None
    n_asked: int | None = None
    n_answers: int | None = None
    n_answers_asked: int | None = None


class Cell(NamedTuple):
    """What stands in one cell: the number, and in small letters below it what it rests on."""

    text: str
    note: str = ""


class Column(NamedTuple):
    heading: str
    cell: Callable[[Row], Cell]


def estimate(one: Estimate | None) -> Cell:
    """ "0.812 [0.75, 0.87]" over "n = 200"."""
    return Cell(MISSING) if one is None or one.value is None else Cell(str(one), f"n = {one.n}")


def distinct(row: Row) -> Cell:
    """Identifiability, with chance beside n: without it the number says nothing."""
    text, note = estimate(row.identifiability)
    return Cell(text, note and f"{note}, chance {number(row.chance)}")


def number(value: float | None) -> str:
    return MISSING if value is None else f"{value:.3f}"


def count(value: float | None) -> str:
    """1234567 -> "1 234 567"."""
    return MISSING if value is None else f"{value:,.0f}".replace(",", " ")


def of(done: int | None, asked: int | None) -> str:
    return MISSING if done is None or asked is None else f"{count(done)} of {count(asked)}"


def probability(p: float | None) -> str:
    return MISSING if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


COLUMNS = (
    Column("no persona", lambda row: estimate(row.baseline)),
    Column("mean over personas", lambda row: estimate(row.mean)),
    Column("worst persona", lambda row: estimate(row.worst)),
    Column("PSS", lambda row: estimate(row.pss)),
    Column("PSS as observed (worst / best)", lambda row: estimate(row.pss_observed)),
    Column("PSS if personas did nothing", lambda row: estimate(row.pss_null)),
    Column("identifiability", distinct),
    Column("scored of asked", lambda row: Cell(of(row.n_scored, row.n_asked))),
    Column("answers of asked", lambda row: Cell(of(row.n_answers, row.n_answers_asked))),
    Column("training tokens", lambda row: Cell(count(row.train_tokens))),
    Column("training CPU s", lambda row: Cell(count(row.train_cpu_s))),
    Column("evaluation tokens", lambda row: Cell(count(row.eval_tokens))),
    Column("evaluation CPU s", lambda row: Cell(count(row.eval_cpu_s))),
)


def main_table(rows: Sequence[Row]) -> str:
    """GitHub Markdown, one line a model."""
    lines = [[label(row.label), *(small(column.cell(row)) for column in COLUMNS)] for row in rows]
    return grid(["model", *(column.heading for column in COLUMNS)], lines)


NAME_WIDTH, VALUE_WIDTH = 19, len("0.123 [0.12, 0.12]")  # three models fit into 80 columns, their intervals unbroken


def terminal_table(rows: Sequence[Row]) -> Table:
    """For a terminal: measures as lines, models as columns; measures that no model has are left out."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("", width=NAME_WIDTH)
    for row in rows:
        table.add_column(Text(clip(visible(row.label), LABEL_WIDTH)), justify="left", overflow="fold", min_width=VALUE_WIDTH)
    for column in COLUMNS:
        cells = [column.cell(row) for row in rows]
        if any(cell.text != MISSING for cell in cells):
            table.add_row(Text(column.heading), *(_two_tone(cell) for cell in cells))
    return table


def persona_table(summaries: Mapping[str, StabilitySummary]) -> str:
    """One line a persona, one column a model: accuracy, below it the difference to no persona and Holm's p."""
    of_model = {model: {one.id: one for one in summary.personas} for model, summary in summaries.items()}
    ids = dict.fromkeys(id for personas in of_model.values() for id in personas)
    none = ["*no persona*", *(small(estimate(summary.baseline)) for summary in summaries.values())]
    lines = [[label(id), *(small(_persona(personas.get(id))) for personas in of_model.values())] for id in ids]
    return grid(["persona", *map(label, summaries)], [none, *lines])


def controls_table(results: Mapping[str, Identifiability]) -> str:
    """Identifiability beside what must be at chance if the test is sound."""
    headings = [
        "model",
        "identifiability",
        "chance",
        "question only",
        "length only",
        "labels permuted",
        "answers of asked",
        "trained on",
    ]
    lines = [
        [
            label(model),
            *(small(estimate(one)) for one in (result.accuracy,)),
            number(result.chance),
            *(small(estimate(one)) for one in (result.question_only, result.length_only, result.permuted)),
            of(result.n_answered, result.n_asked),
            label(result.reference),
        ]
        for model, result in results.items()
    ]
    return grid(headings, lines)


TEMPLATE_COLUMNS = (("mean over personas", "mean"), ("worst persona", "worst"), ("PSS", "pss"), ("mean − no persona", "shift"))


def crossed_table(found: Mapping[str, CrossedSummary]) -> str:
    """One line a model and template, one more for what templates do in all."""
    lines = []
    for model, crossed in found.items():
        for one in crossed.templates:
            cells = [
                small(_signed(one.shift) if name == "shift" else estimate(getattr(one, name))) for _, name in TEMPLATE_COLUMNS
            ]
            lines.append([label(model), small(Cell(label(one.id), label(one.text, DETAILS_WIDTH))), *cells])
    return grid(["model", "wording", *(heading for heading, _ in TEMPLATE_COLUMNS)], lines)


def components_of(crossed: CrossedSummary) -> str:
    """In words: how much personas, wordings and both together move the accuracy."""
    parts = {
        "between personas": crossed.persona_sd,
        "between wordings": crossed.template_sd,
        "of a persona from wording to wording, besides": crossed.persona_template_sd,
    }
    said = ", ".join(f"{one} {what}" for what, one in parts.items())
    return f"standard deviation of accuracy {said}; n = {crossed.persona_sd.n} questions"


def _signed(one: Estimate) -> Cell:
    return Cell(one.signed(), f"n = {one.n}")


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
    StrategyColumn("gain over no persona", lambda one: Cell(one.gain.signed(), f"n = {one.gain.n}")),
    StrategyColumn("tokens an answer", lambda one: tokens(one.spent)),
    StrategyColumn("tokens of asking once", lambda one: tokens(one.once)),
    StrategyColumn("times the cost of asking once", lambda one: Cell(MISSING if one.times is None else f"{one.times:.2f} ×")),
    StrategyColumn("tokens spent before the first answer", lambda one: tokens(one.choosing)),
    StrategyColumn("scored of asked", lambda one: Cell(of(one.n_scored, one.n_asked))),
)


def tokens(spent: Spent | None) -> Cell:
    """ "812" over "700 read, 112 written"."""
    if spent is None:
        return Cell(MISSING)
    return Cell(count(spent.total), f"{count(spent.prompt)} read, {count(spent.completion)} written")


def strategy_table(found: Sequence[Strategic]) -> str:
    """GitHub Markdown, one line a model and strategy."""
    lines = [
        [
            label(one.label),
            label(one.found.strategy),
            *(small(column.cell(one.found)) for column in STRATEGY_COLUMNS),
            markdown(_details(one.found)),
        ]
        for one in found
    ]
    return grid(["model", "strategy", *(column.heading for column in STRATEGY_COLUMNS), "in detail"], lines)


def terminal_strategy_table(found: Sequence[Strategic]) -> Table:
    """For a terminal: measures as lines, strategies as columns; measures that no strategy has are left out."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
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


def grid(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table of cells that are Markdown already."""
    ruled = [headings, ["---"] * len(headings), *lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in ruled)


def label(text: str, width: int = LABEL_WIDTH) -> str:
    """A name for a Markdown cell: one line, cut, escaped."""
    return markdown(clip(visible(text).replace("\n", " "), width))


def _persona(one: PersonaSummary | None) -> Cell:
    if one is None or one.accuracy.value is None:
        return Cell(MISSING)
    accuracy = estimate(one.accuracy)
    return Cell(accuracy.text, f"{one.difference.signed()}, p = {probability(one.holm_p)}, {accuracy.note}".replace("= <", "<"))


def small(cell: Cell) -> str:
    return cell.text + (f"<br><sub>{cell.note}</sub>" if cell.note else "")


def _two_tone(cell: Cell) -> Text:
    return Text.assemble(cell.text, (f"\n{cell.note}" if cell.note else "", "dim"))
