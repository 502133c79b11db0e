"""Builds the tables of a report from its results, for files and for a terminal.

Contract: a number is shown as measured, with its interval and its n; a missing number is "–" and never 0. Labels and persona ids
may be hostile text.

`front_table` is the first table of a report: `models_table`, a row for each model, or, with several training seeds,
`method_table`, a row for each method with means over its seeds (`permix.report.pooled`).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from rich.table import Table as TerminalTable
from rich.text import Text

from permix.evals.grid import CutOffCounts, cell_row, persona_rows
from permix.evals.strategies.base import StrategySummary, StrategyTokens
from permix.metrics.identifiability import Identifiability
from permix.metrics.linear_models import ContextSummary, TemplateEffects
from permix.metrics.measures import CHARACTER_MEASURES, CharacterMeasure, StabilityMeasure, measures_in
from permix.metrics.recognisability import Recognisability
from permix.metrics.right_in_character import RightInCharacter
from permix.metrics.stability import PersonaSummary, StabilitySummary
from permix.metrics.training_seeds import SeedDifference
from permix.rendering.table import (
    LABEL_WIDTH,
    MISSING_CELL,
    MISSING_TEXT,
    TOO_FEW_TEXT,
    SourceRun,
    Table,
    TableCell,
    count_cell,
    difference_cell,
    difference_direction,
    estimate_cell,
    format_count,
    format_decimal,
    format_p_value,
    format_ratio,
    label_cell,
    one_line,
    p_text,
    tabulate,
    terminal_table,
    terminal_text,
    trusted_cell,
)
from permix.report.comparisons import Comparison
from permix.report.judges import OPEN_ENDED_KIND, UNTESTED_MARK, UNTRUSTED_MARK, trust_mark
from permix.report.methods import ReportMethod
from permix.report.pooled import ComparedSeeds, MethodDifference, PooledMethod
from permix.report.runs import ModelRow, ModelRuns
from permix.report.summary_text import TRUST_MARK_MEANINGS
from permix.sanitize import escape_control, truncate
from permix.types import Estimate, true_minus

DETAILS_WIDTH = 400

HEADING_WIDTH = 80


class ModelColumn(NamedTuple):
    """A column of the table of models. `kind` is the kind of run from which the number comes. `is_folded`: see `Table.folded`."""

    heading: str
    cell: Callable[[ModelRow], TableCell]
    kind: str = "stability"
    is_folded: bool = False


def character_cell(record: ModelRow | PooledMethod, name: str) -> TableCell:
    """A measure of character with chance next to n, because it cannot be read without chance."""
    cell, chance = estimate_cell(record.estimate(name)), format_decimal(record.chance_of(name))
    return cell._replace(note=cell.note and f"{cell.note}, {CHARACTER_MEASURES[name].chance_label} {chance}")


def _measure_cell(row: ModelRow, name: str) -> TableCell:
    return _with_pss_reason(estimate_cell(row.measures.get(name)), name, row.pss_reason)


_FRONT_MEASURES = frozenset(("pss", "worst", "mean", "baseline"))
"""The measures of the table of models and methods that are never folded."""


def _with_pss_reason(cell: TableCell, measure: str, pss_reason: str | None) -> TableCell:
    """The cell of PSS with the reason why it has no value; any other cell as it is."""
    without_value = measure == "pss" and pss_reason is not None and cell.text == MISSING_TEXT
    return cell._replace(note=pss_reason or "") if without_value else cell


def cut_off_cell(row: ModelRow) -> TableCell:
    """How many answers were cut off at the token limit and, if any were, the accuracy of those that were not."""
    if not row.n_known_ends:
        return MISSING_CELL
    accuracy = "" if not row.n_cut_off or row.accuracy_of_others is None else format_decimal(row.accuracy_of_others)
    ratio = format_ratio(row.n_cut_off, row.n_known_ends)
    return trusted_cell(ratio, accuracy and f"accuracy of the others {accuracy}", row.n_cut_off)


def _requests_per_second_cell(row: ModelRow) -> TableCell:
    if row.eval_requests is None or not row.eval_wall_s:
        return MISSING_CELL
    rate = row.eval_requests / row.eval_wall_s
    return trusted_cell(f"{rate:.2f}" if rate < 10 else format_count(rate), number=rate)


_COUNT_AND_COST_COLUMNS = (
    ModelColumn("scored of asked", lambda row: trusted_cell(format_ratio(row.n_scored, row.n_asked))),
    ModelColumn("cut off, of answered", cut_off_cell),
    ModelColumn(
        "answers of asked",
        lambda row: trusted_cell(format_ratio(row.n_answers, row.n_answers_asked)),
        OPEN_ENDED_KIND,
        is_folded=True,
    ),
    ModelColumn("training tokens", lambda row: count_cell(row.train_tokens), "train", is_folded=True),
    ModelColumn("training CPU s", lambda row: count_cell(row.train_cpu_s), "train", is_folded=True),
    ModelColumn("evaluation tokens", lambda row: count_cell(row.eval_tokens), is_folded=True),
)

_LOCAL_COST_COLUMNS = (
    ModelColumn("evaluation CPU s", lambda row: count_cell(None if _has_wall_seconds(row) else row.eval_cpu_s), is_folded=True),
)

_ENDPOINT_COST_COLUMNS = (
    ModelColumn("evaluation wall s", lambda row: count_cell(row.eval_wall_s), is_folded=True),
    ModelColumn("requests per second", _requests_per_second_cell, is_folded=True),
)
"""What an evaluation of a model behind an address costs: the CPU seconds of this machine are not those of its answers."""


def _has_wall_seconds(row: ModelRow) -> bool:
    return row.eval_wall_s is not None


def columns_with_judges(rows: Sequence[ModelRow]) -> list[ModelColumn]:
    """The columns: measures of stability, identifiability, recognisability where it was measured, one column for each
    judge of these rows, counts and costs.

    Right and in character and the costs of an endpoint's model have columns only if some of these rows needs them.
    """
    measures = [
        ModelColumn(one.label, partial(_measure_cell, name=one.name), is_folded=one.name not in _FRONT_MEASURES)
        for one in measures_in("main_table")
    ]
    kinds = {one.name: f"{one.kind}, judge {one.judge}" for row in rows for one in row.judged}
    trusted = _trusted_judge_names(rows)
    by_judge = [
        ModelColumn(name, partial(judge_score_cell, name=name), kind, is_folded=name not in trusted)
        for name, kind in kinds.items()
    ]
    at_endpoint = [_has_wall_seconds(row) for row in rows]
    evaluation_costs = [
        *(_LOCAL_COST_COLUMNS if not all(at_endpoint) else ()),
        *(_ENDPOINT_COST_COLUMNS if any(at_endpoint) else ()),
    ]
    characters = [
        ModelColumn(one.label, partial(character_cell, name=one.name), one.kind)
        for one in CHARACTER_MEASURES.values()
        if one.name == "identifiability" or any(row.estimate(one.name) is not None for row in rows)
    ]
    return [*measures, *characters, *by_judge, *_COUNT_AND_COST_COLUMNS, *evaluation_costs]


def _trusted_judge_names(rows: Iterable[ModelRow]) -> set[str]:
    """The names of the scores that mean something for at least one model."""
    return {one.name for row in rows for one in row.judged if one.discriminates_persona}


def judge_score_cell(row: ModelRow, name: str) -> TableCell:
    """A judge's mean score, with a mark when the judge is not trusted."""
    one = next((one for one in row.judged if one.name == name), None)
    if one is None or one.persona_score.value is None:
        return MISSING_CELL
    note = f"n = {one.persona_score.n} personas, {format_ratio(one.n_scored, one.n_asked)} scored"
    caveat = {True: "", False: ", means nothing: judge not trusted", None: ", judge not validated"}[one.discriminates_persona]
    return trusted_cell(f"{one.persona_score}{trust_mark(one.discriminates_persona)}", note + caveat, one.persona_score)


def models_table(rows: Sequence[ModelRow]) -> Table:
    """A table with a row for each model."""
    columns = columns_with_judges(rows)
    lines = [
        [label_cell(row.label), *(column.cell(row).with_sources(SourceRun(row.label, column.kind)) for column in columns)]
        for row in rows
    ]
    headings = [one_line(column.heading, HEADING_WIDTH) for column in columns]
    folded = [heading for heading, column in zip(headings, columns, strict=True) if column.is_folded]
    return tabulate("models", ["model", *headings], lines, folded=folded)


# So three models fit into 80 columns without a line break in an interval.
TERMINAL_NAME_WIDTH, TERMINAL_VALUE_WIDTH = 19, len("0.123 [0.12, 0.12]")


def _terminal_measures_table(headings: Iterable[str]) -> TerminalTable:
    """A table for a terminal without rows: a column for the names of measures, and one with each of these headings."""
    table = terminal_table()
    table.add_column("", width=TERMINAL_NAME_WIDTH)
    for heading in headings:
        shown = Text(truncate(escape_control(heading), LABEL_WIDTH))
        table.add_column(shown, justify="left", overflow="fold", min_width=TERMINAL_VALUE_WIDTH)
    return table


def terminal_models_table(rows: Sequence[ModelRow]) -> TerminalTable:
    """A table for a terminal: a row for each measure and a column for each model. Measures that no model has
    are left out; PSS stays where a note says why it has no value. Below it is the meaning of the judges' marks that appear.
    """
    table = _terminal_measures_table(row.label for row in rows)
    for column in columns_with_judges(rows):
        cells = [column.cell(row) for row in rows]
        if any(cell.text != MISSING_TEXT or cell.note for cell in cells):
            table.add_row(Text(truncate(escape_control(column.heading), HEADING_WIDTH)), *map(terminal_text, cells))
    judged = [one for row in rows for one in row.judged if one.persona_score.value is not None]
    shown_marks = {trust_mark(one.discriminates_persona).strip() for one in judged}
    if meanings := [TRUST_MARK_MEANINGS[mark] for mark in (UNTRUSTED_MARK, UNTESTED_MARK) if mark in shown_marks]:
        table.caption = Text(" ".join(meanings), justify="left")
    return table


def persona_table(summaries: Mapping[str, StabilitySummary], cut_off: Mapping[str, CutOffCounts] | None = None) -> Table:
    """A table with a row for each persona and a column for each model: accuracy, the difference to the baseline, and
    Holm's p. A model of which an answer was cut off (`cut_off`, by model) has one more column: the share that was, by persona.
    """
    counts = {model: one for model, one in (cut_off or {}).items() if model in summaries and one.n_cut_off}
    of_model = {model: {one.id: one for one in summary.personas} for model, summary in summaries.items()}
    ids = dict.fromkeys(id for personas in of_model.values() for id in personas)
    accuracies: dict[str, dict[str, TableCell]] = {
        model: {"": estimate_cell(summaries[model].baseline)} | {id: _persona_cell(one) for id, one in personas.items()}
        for model, personas in of_model.items()
    }

    def cells(id: str) -> Iterator[TableCell]:
        for model in summaries:
            source = _stability_source(model)
            yield accuracies[model].get(id, MISSING_CELL).with_sources(source)
            if model in counts:
                yield _cut_off_share_cell(counts[model].by_persona.get(id)).with_sources(source)

    headings = [
        heading
        for model in summaries
        for heading in (one_line(model), *((one_line(f"{model}, cut off", HEADING_WIDTH),) if model in counts else ()))
    ]
    no_persona = TableCell("no persona", trusted_markup=True, emphasis="*")
    return tabulate("personas", ["persona", *headings], [[no_persona, *cells("")], *([label_cell(id), *cells(id)] for id in ids)])


def _cut_off_share_cell(share: float | None) -> TableCell:
    return MISSING_CELL if share is None else trusted_cell(f"{share:.0%}", number=share)


TIDY_CELL_COLUMNS: Mapping[str, type] = {
    "model": str, "kind": str, "persona_id": str, "question_id": str, "sample": int, "template": str, "context": str,
    "correct": int, "extracted": str, "gold": str, "error": str, "prompt_tokens": int, "completion_tokens": int, "finish": str,
}  # fmt: skip
"""The columns of tables/cells.csv; texts of the answers are in records.jsonl."""

TIDY_PERSONA_COLUMNS: Mapping[str, type] = {
    "model": str, "persona_id": str, "n": int, "accuracy": float, "low": float, "high": float, "difference": float,
    "difference_low": float, "difference_high": float, "p": float, "holm_p": float, "cut_off": float,
}  # fmt: skip
"""The columns of tables/personas_tidy.csv."""


def tidy_cell_rows(models: Sequence[ModelRuns]) -> Iterator[dict[str, Any]]:
    """One row for each recorded cell of the models' evaluations, read from disk one by one."""
    for model in models:
        for kind, run in model.runs.items():
            if run.stage != "train":
                for key in run.cell_summaries:
                    yield {"model": model.label, "kind": kind} | cell_row(run.grid_results.read_cell(key), with_texts=False)


def tidy_persona_rows(models: Sequence[ModelRuns]) -> Iterator[dict[str, Any]]:
    """One row for each model and persona of the stability runs, and one for each model's baseline."""
    for model in models:
        if model.stability is not None:
            yield from ({"model": model.label} | row for row in persona_rows(model.stability, model.cut_off))


_CONTROL_HEADINGS = (
    "model", "identifiability", "chance", "question only", "length only", "labels permuted", "answers of asked", "trained on",
)  # fmt: skip


def controls_table(results: Mapping[str, Identifiability]) -> Table:
    """A table of identifiability next to its controls, which are at chance when the test is sound."""
    lines = []
    for model, result in results.items():
        control_accuracies = (result.question_only, result.length_only, result.permuted)
        cells = [
            estimate_cell(result.accuracy),
            trusted_cell(format_decimal(result.chance), number=result.chance),
            *map(estimate_cell, control_accuracies),
            trusted_cell(format_ratio(result.n_answered, result.n_asked)),
        ]
        lines.append(
            [
                label_cell(model),
                *(cell.with_sources(SourceRun(model, OPEN_ENDED_KIND)) for cell in cells),
                label_cell(result.reference),
            ]
        )
    return tabulate("identifiability", _CONTROL_HEADINGS, lines)


_IN_CHARACTER_HEADINGS = (
    "model", "right and in character", "by chance", "right", "recognised", "recognised if right", "recognised if wrong", "chance",
    "length only", "score only", "labels permuted", "answers of asked", "trained on",
)  # fmt: skip


def right_in_character_table(results: Mapping[str, RightInCharacter]) -> Table:
    """A table of right and in character with its parts, and of the controls of `recognised`."""
    lines = []
    for model, one in results.items():
        parts = (one.share, one.share_by_chance, one.right, one.recognised, one.recognised_if_right, one.recognised_if_wrong)
        cells = [
            *map(estimate_cell, parts),
            trusted_cell(format_decimal(one.chance), number=one.chance),
            *map(estimate_cell, (one.length_only, one.score_only, one.permuted)),
            trusted_cell(
                format_ratio(one.n_answers, one.n_asked),
                ", ".join(map(one_line, one.left_out)) and "left out: " + ", ".join(map(one_line, one.left_out)),
            ),
        ]
        lines.append(
            [label_cell(model), *(cell.with_sources(_stability_source(model)) for cell in cells), label_cell(one.reference)]
        )
    return tabulate("right-in-character", _IN_CHARACTER_HEADINGS, lines)


_RECOGNISABILITY_HEADINGS = (
    "model", "recognisability", "chance", "margin", "question only", "length only", "texts shuffled", "p", "words removed",
    "answers scored of asked",
)  # fmt: skip


def recognisability_table(results: Mapping[str, Recognisability]) -> Table:
    """A table of recognisability next to its controls."""
    lines = []
    for model, result in results.items():
        cells = [
            estimate_cell(result.accuracy),
            trusted_cell(format_decimal(result.chance), number=result.chance),
            difference_cell(result.margin),
            *map(estimate_cell, (result.question_only, result.length_only, result.shuffled)),
            trusted_cell(format_p_value(result.shuffled_p), number=result.shuffled_p),
            trusted_cell(f"{result.removed_words:.0%}", number=result.removed_words),
            trusted_cell(format_ratio(result.n_scored, result.n_asked)),
        ]
        lines.append([label_cell(model), *(cell.with_sources(SourceRun(model, OPEN_ENDED_KIND)) for cell in cells)])
    return tabulate("recognisability", _RECOGNISABILITY_HEADINGS, lines)


def recognisability_persona_table(results: Mapping[str, Recognisability]) -> Table:
    """A table with a row for each persona and two columns for each model: the share of its answers that are recognised,
    and the persona whose text most of the others are nearest to.
    """
    ids = dict.fromkeys(id for result in results.values() for id in result.persona_ids)
    headings = [one_line(heading, HEADING_WIDTH) for model in results for heading in (model, f"{model}, else nearest to")]
    lines = [
        [label_cell(id), *(cell for model in results for cell in _recognised_cells(model, results[model], id))] for id in ids
    ]
    return tabulate("recognised", ["persona", *headings], lines)


def _recognised_cells(model: str, result: Recognisability, persona_id: str) -> list[TableCell]:
    if persona_id not in result.persona_ids:
        return [MISSING_CELL, MISSING_CELL]
    place = result.persona_ids.index(persona_id)
    others = {id: count for id, count in zip(result.persona_ids, result.confusion[place], strict=True) if id != persona_id}
    most = max(others, key=lambda id: others[id])
    cells = [estimate_cell(result.per_persona[place]), label_cell(most) if others[most] else MISSING_CELL]
    return [cell.with_sources(SourceRun(model, OPEN_ENDED_KIND)) for cell in cells]


def template_table(effects_by_model: Mapping[str, TemplateEffects]) -> Table:
    """A table with a row for each model and template."""
    measures, lines = measures_in("templates"), []
    for model, effects in effects_by_model.items():
        for one in effects.templates:
            cells = [
                (difference_cell if measure.is_difference else estimate_cell)(one.measures[measure.name]) for measure in measures
            ]
            template = TableCell(one_line(one.id), one_line(one.text, DETAILS_WIDTH))
            lines.append([label_cell(model), template, *(cell.with_sources(_stability_source(model)) for cell in cells)])
    return tabulate("wordings", ["model", "template", *(measure.label for measure in measures)], lines, n_label_columns=2)


MEAN_MINUS_FIRST_LABEL = "mean − first context"


def context_table(contexts_by_model: Mapping[str, Sequence[ContextSummary]]) -> Table:
    """A table with a row for each model and context."""
    measures, lines = measures_in("contexts"), []
    for model, contexts in contexts_by_model.items():
        for one in contexts:
            cells = [*_context_cells(one), trusted_cell(format_ratio(one.n_scored, one.n_asked))]
            source = _stability_source(model)
            lines.append([label_cell(model), TableCell(one_line(one.id)), *(cell.with_sources(source) for cell in cells)])
    headings = ["model", "context", *(measure.label for measure in measures), MEAN_MINUS_FIRST_LABEL, "scored"]
    return tabulate("contexts", headings, lines, n_label_columns=2)


def _context_cells(one: ContextSummary) -> list[TableCell]:
    measured = [
        (difference_cell if measure.is_difference else estimate_cell)(one.measures[measure.name])
        for measure in measures_in("contexts")
    ]
    return [*measured, MISSING_CELL if one.mean_minus_first.value is None else difference_cell(one.mean_minus_first)]


def terminal_context_tables(contexts_by_model: Mapping[str, Sequence[ContextSummary]]) -> Iterator[TerminalTable]:
    """Yield tables for a terminal: a row for each measure and a column for each model and context, at most three in a table."""
    columns = [
        (one.id if len(contexts_by_model) == 1 else f"{model}, {one.id}", one)
        for model, contexts in contexts_by_model.items()
        for one in contexts
    ]
    for start in range(0, len(columns), TERMINAL_COLUMNS):  # a terminal leaves columns out that do not fit
        yield _terminal_context_table(columns[start : start + TERMINAL_COLUMNS])


TERMINAL_COLUMNS = 3


def _terminal_context_table(columns: Sequence[tuple[str, ContextSummary]]) -> TerminalTable:
    table = _terminal_measures_table(heading for heading, _ in columns)
    labels = [*(measure.label for measure in measures_in("contexts")), MEAN_MINUS_FIRST_LABEL]
    for place, label in enumerate(labels):
        table.add_row(Text(label), *(terminal_text(_context_cells(one)[place]) for _, one in columns))
    return table


def _stability_source(model: str) -> SourceRun:
    return SourceRun(model, "stability")


def variance_components_text(effects: TemplateEffects) -> str:
    """How much personas, templates and their interaction change the accuracy, in words."""
    parts = {
        "between personas": effects.persona_sd,
        "between templates": effects.template_sd,
        "of the interaction of persona and template": effects.persona_template_sd,
    }
    values = ", ".join(f"{estimate} {name}" for name, estimate in parts.items())
    return f"standard deviation of accuracy {values}; n = {effects.persona_sd.n} questions"


class StrategyResult(NamedTuple):
    """The results of one model under one strategy."""

    label: str
    summary: StrategySummary


class StrategyColumn(NamedTuple):
    heading: str
    cell: Callable[[StrategySummary], TableCell]


STRATEGY_COLUMNS = (
    StrategyColumn("accuracy", lambda one: estimate_cell(one.accuracy)),
    StrategyColumn("no persona", lambda one: estimate_cell(one.baseline)),
    StrategyColumn("gain over no persona", lambda one: difference_cell(one.gain)),
    StrategyColumn("tokens per answer", lambda one: tokens_cell(one.tokens_per_answer)),
    StrategyColumn("tokens of asking once", lambda one: tokens_cell(one.baseline_tokens)),
    StrategyColumn("times the cost of asking once", lambda one: _cost_ratio_cell(one.token_ratio)),
    StrategyColumn("tokens spent before the first answer", lambda one: tokens_cell(one.selection_tokens)),
    StrategyColumn("scored of asked", lambda one: trusted_cell(format_ratio(one.n_scored, one.n_asked))),
)


def tokens_cell(spent: StrategyTokens | None) -> TableCell:
    """The total with its parts as a note: "812" above "700 read, 112 written"."""
    if spent is None:
        return MISSING_CELL
    return trusted_cell(
        format_count(spent.total),
        f"{format_count(spent.prompt_tokens)} read, {format_count(spent.completion_tokens)} written",
        spent.total,
    )


def _cost_ratio_cell(ratio: float | None) -> TableCell:
    return MISSING_CELL if ratio is None else trusted_cell(f"{ratio:.2f} ×", number=ratio)


def strategy_table(results: Sequence[StrategyResult]) -> Table:
    """A table with a row for each model and strategy."""
    lines = []
    for model, one in results:
        source = SourceRun(model, f"stability, {one.strategy}")
        cells = [column.cell(one).with_sources(source) for column in STRATEGY_COLUMNS]
        lines.append([label_cell(model), label_cell(one.strategy), *cells, TableCell(_details_text(one))])
    headings = ["model", "strategy", *(column.heading for column in STRATEGY_COLUMNS), "details"]
    return tabulate("strategies", headings, lines, n_label_columns=2)


def terminal_strategy_table(results: Sequence[StrategyResult]) -> TerminalTable:
    """A table for a terminal: a row for each measure and a column for each strategy. Measures that no strategy has are
    left out.
    """
    table = _terminal_measures_table(f"{one.label}, {one.summary.strategy}" for one in results)
    for column in STRATEGY_COLUMNS:
        cells = [column.cell(one.summary) for one in results]
        if any(cell.text != MISSING_TEXT for cell in cells):
            table.add_row(Text(column.heading), *map(terminal_text, cells))
    table.add_row(Text("details"), *(Text(_details_text(one.summary)) for one in results))
    return table


def _details_text(summary: StrategySummary) -> str:
    return truncate(escape_control(summary.details_text).replace("\n", " "), DETAILS_WIDTH)


def _persona_cell(persona: PersonaSummary | None) -> TableCell:
    if persona is None or persona.accuracy.value is None:
        return MISSING_CELL
    accuracy = estimate_cell(persona.accuracy)
    if accuracy.text == TOO_FEW_TEXT:
        return accuracy
    note = f"{persona.difference.format_difference()}, {p_text(persona.holm_p)}, {accuracy.note}"
    return accuracy._replace(note=note)


def method_table(methods: Sequence[ReportMethod], pooled: Sequence[PooledMethod]) -> Table:
    """A table with a row for each method; `pooled` holds the numbers of each method. A measure that no method has is left
    out.

    A judge's column holds only scores of methods with one model, because judges' scores are not pooled over seeds. Below a
    number is its interval over questions and training seeds, where there are several.
    """
    rows = [_single_model_row(method) for method in methods]
    judges = {one.name: f"{one.kind}, judge {one.judge}" for row in rows if row for one in row.judged}
    first, *others = (measure.label for measure in measures_in("method_table"))
    characters = [measure.label for measure in CHARACTER_MEASURES.values()]
    headings = ["model", first, *characters, *judges, *others]
    lines = [_method_row(method, one, row, judges) for method, one, row in zip(methods, pooled, rows, strict=True)]
    kept = [
        column
        for column in range(len(headings))
        if column == 0 or any(line[column].text != MISSING_TEXT or line[column].note for line in lines)
    ]
    kept_headings = [one_line(headings[column], HEADING_WIDTH) for column in kept]
    shown = {measure.label for measure in measures_in("method_table") if measure.name in _FRONT_MEASURES}
    shown |= {"model", *characters}
    shown |= set(_trusted_judge_names(row for row in rows if row is not None))
    folded = [one_line(heading, HEADING_WIDTH) for heading in headings if heading not in shown]
    return tabulate("methods", kept_headings, [[line[column] for column in kept] for line in lines], folded=folded)


def front_table(methods: Sequence[ReportMethod], pooled: Sequence[PooledMethod], rows: Sequence[ModelRow]) -> Table:
    """The report's one table of models: a row for each model, or, where a method has several training seeds, a row for
    each method.
    """
    return method_table(methods, pooled) if any(len(method.models) > 1 for method in methods) else models_table(rows)


def _method_row(method: ReportMethod, pooled: PooledMethod, row: ModelRow | None, judges: Mapping[str, str]) -> list[TableCell]:
    sourced = partial(_with_method_sources, method)
    scores = [MISSING_CELL if row is None else sourced(judge_score_cell(row, name), kind) for name, kind in judges.items()]
    cells = {one.name: pooled_measure_cell(pooled, one.name) for one in measures_in("method_table")}
    first, *others = (sourced(_with_pss_reason(cell, name, method.pss_reason), "stability") for name, cell in cells.items())
    characters = (sourced(pooled_character_cell(pooled, one.name), one.kind) for one in CHARACTER_MEASURES.values())
    return [_method_name_cell(method), first, *characters, *scores, *others]


def _with_method_sources(method: ReportMethod, cell: TableCell, kind: str) -> TableCell:
    """The cell with the runs behind it; its note says so where some training seeds of the method have no such run."""
    sources, n_seeds = [SourceRun(model.label, kind) for model in method.models if kind in model.runs], len(method.models)
    if 0 < len(sources) < n_seeds and cell.note:
        cell = cell._replace(note=f"{cell.note}; {len(sources)} of {n_seeds} training seeds")
    return cell.with_sources(*sources)


def _method_name_cell(method: ReportMethod) -> TableCell:
    seeds = len(method.models)
    alone = "" if method.role == "base" else "one model; other training seeds are not covered"
    return label_cell(method.name)._replace(note=f"mean of {seeds} training seeds" if seeds > 1 else alone)


def _pooled_cell(estimate: Estimate | None, reasons: Sequence[str]) -> TableCell:
    """The pooled number, or "not pooled" with the reasons when the seeds cannot be pooled."""
    return TableCell("not pooled", one_line("; ".join(reasons), DETAILS_WIDTH)) if reasons else estimate_cell(estimate)


def pooled_measure_cell(pooled: PooledMethod, name: str) -> TableCell:
    """A measure of stability of a method, with its interval over training seeds in the note."""
    return _with_seed_interval(_pooled_cell(pooled.measures.get(name), pooled.reasons), pooled, name)


def pooled_character_cell(pooled: PooledMethod, name: str) -> TableCell:
    """A measure of character of a method, with chance and its interval over training seeds in the note."""
    reasons = pooled.reasons_for(name)
    return _pooled_cell(None, reasons) if reasons else _with_seed_interval(character_cell(pooled, name), pooled, name)


def _with_seed_interval(cell: TableCell, pooled: PooledMethod, name: str) -> TableCell:
    """Add the interval over questions and training seeds to the note, where there is one."""
    interval = pooled.over_seeds.get(name)
    if cell.number is None or cell.text == TOO_FEW_TEXT or interval is None or interval.low is None or interval.high is None:
        return cell
    ends = true_minus(f"[{interval.low:.2f}, {interval.high:.2f}]")
    return cell._replace(note=f"{cell.note}; over questions and seeds {ends}")


SEED_DIFFERENCE_HEADINGS = (
    "method", "against", "measure", "difference, over questions", "difference, over questions and seeds", "p", "result", "seeds",
)  # fmt: skip

_PAIRING_TEXTS = {
    "paired": "{0} of each, paired",
    "unpaired": "{0} and {1}, not paired",
    "untrained": "{0} and {1}, one of them not trained",
}


def model_difference_table(comparisons: Sequence[Comparison]) -> Table | None:
    """A table with a line for each two models that were compared and a column for each measure; None without a difference."""
    measures: list[StabilityMeasure | CharacterMeasure] = [*measures_in(Comparison.VIEW), *CHARACTER_MEASURES.values()]
    columns = [measure for measure in measures if any(one.estimate(measure.name) for one in comparisons)]
    lines = [
        [
            label_cell(one.label),
            label_cell(one.against),
            *(_emphasised_difference_cell(one.estimate(column.name)) for column in columns),
        ]
        for one in comparisons
        if any(one.estimate(column.name) for column in columns)
    ]
    headings = ["model", "against", *(column.label for column in columns)]
    return tabulate("model-differences", headings, lines, n_label_columns=2) if lines else None


def _emphasised_difference_cell(difference: Estimate | None) -> TableCell:
    """A difference, in bold if its interval excludes 0."""
    cell = difference_cell(difference)
    return cell._replace(emphasis="**") if difference_direction(difference) in ("higher", "lower") else cell


def seed_difference_table(differences: Sequence[MethodDifference]) -> Table | None:
    """A table with a line for each difference of two methods and each measure; None without a difference."""
    lines = [
        [
            label_cell(one.name),
            label_cell(one.against),
            trusted_cell(difference_label(name)),
            *_seed_difference_cells(one, name, found),
        ]
        for one in differences
        for name, found in one.over_seeds.items()
        if found.over_questions.value is not None
    ]
    return tabulate("method-differences", SEED_DIFFERENCE_HEADINGS, lines, n_label_columns=3) if lines else None


def difference_label(name: str) -> str:
    """The label of a measure of a difference of methods; any other name as it is."""
    labels = {one.name: one.label for one in measures_in("seed_differences")}
    return (labels | {one.name: one.label for one in CHARACTER_MEASURES.values()}).get(name, name)


def compared_seeds_text(seeds: ComparedSeeds, name: str, against: str) -> str:
    """ "3 of each, paired; 5 further seeds of rlvr left out"; `name` and `against` are those of the two methods."""
    left_out = [
        f"{n} further seed{'s' if n > 1 else ''} of {one_line(method)} left out"
        for n, method in zip(seeds.n_left_out, (name, against), strict=True)
        if n
    ]
    return "; ".join([_PAIRING_TEXTS[seeds.pairing].format(*seeds.n), *left_out])


def _seed_difference_cells(difference: MethodDifference, name: str, found: SeedDifference) -> list[TableCell]:
    seeds = TableCell(compared_seeds_text(difference.seeds_of(name), difference.name, difference.against))
    over_questions = difference_cell(found.over_questions)
    if not difference.covers_seeds(name):
        not_covered = trusted_cell("seeds not covered: one seed of a trained method")
        return [over_questions, MISSING_CELL, MISSING_CELL, not_covered, seeds]
    over_seeds = difference_cell(found.over_seeds)
    result = trusted_cell(difference_direction(found.over_seeds))
    return [over_questions, over_seeds, trusted_cell(format_p_value(found.p), number=found.p), result, seeds]


def _single_model_row(method: ReportMethod) -> ModelRow | None:
    return method.models[0].row if len(method.models) == 1 else None
