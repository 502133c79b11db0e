"""Builds tables on fidelity runs: measures by interview turn with an example interview, and text metrics of answers.

Contract: as in `tables` and `excerpts`. A missing number is "–" and never 0. All text from a model, a script or a pool is cut,
and escaped when it is rendered, so it is displayed and never interpreted.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from rich.table import Table as TerminalTable
from rich.text import Text

from permix.evals.drift_report import SERIES_DESCRIPTIONS, Drift, InterviewRecords, QuestionOrder, TurnSeries, read_interviews
from permix.evals.text_metrics import DISTINCT_NGRAMS, DISTINCT_NGRAMS_PER_PERSONA, BreakExample, TextMetrics
from permix.rendering.table import (
    LABEL_WIDTH,
    MISSING_CELL,
    MISSING_TEXT,
    SourceRun,
    Table,
    TableCell,
    estimate_cell,
    format_count,
    format_decimal,
    format_ratio,
    label_cell,
    md_label,
    one_line,
    quote_markdown,
    tabulate,
    terminal_table,
    terminal_text,
    text_cell,
    trusted_cell,
)
from permix.report.document import DocumentPart, Figure
from permix.report.judges import INTERVIEW_KIND, OPEN_ENDED_KIND, trust_mark
from permix.report.runs import ModelRuns
from permix.report.summary_text import TRUST_MARKS_LEGEND
from permix.sanitize import escape_control, escape_markdown, truncate
from permix.types import Estimate, true_minus

_DRIFT_HEADINGS = ["model", "measure", "mean", "change per turn", "late − early", "scored of asked"]

_MAX_LINE_CHARS = 600  # maximal characters of one line of a message

_MAX_LINES = 8


DRIFT_NOTE = (
    'Each persona is interviewed once. "Change per turn" is the slope of a measure over the turns, "late − '
    'early" the difference between the second and the first half of the turns. Intervals are over personas; an interval that '
    "includes 0 shows no change. The numbers say how answers change, not why: the longer prompt, the model's earlier words and "
    "the earlier questions all contribute. Repetition rises by itself, since there is more text to repeat, and the number of "
    "words falls where answers are cut off."
)

_ORDER_DESCRIPTIONS: Mapping[QuestionOrder, str] = {
    "balanced": "each persona was asked in its own order, and the effects of the questions are subtracted; slopes leave out turn "
    "1, which is the same in every interview",
    "written": "all personas were asked in one order, so slopes contain the effects of the questions: compare them between "
    "models, and do not interpret them alone",
    "model": "a model asked the questions, so slopes contain the effects of its later questions",
}


def drift_parts(models: Sequence[ModelRuns], figure: Figure | None) -> list[DocumentPart]:
    """The parts of the section on drift; empty when no model was interviewed."""
    drifts = {model.label: model.drift for model in models if model.drift is not None}
    if not drifts:
        return []
    designs = "\n".join(f"- **{md_label(name)}**: {_describe_drift(drift)}." for name, drift in drifts.items())
    body = (
        figure,
        drift_table(drifts),
        _trust_marks_legend(drifts),
        designs,
        "### Example interview",
        *interview_excerpt(models),
    )
    return [part for part in body if part]


def drift_table(drift_by_model: Mapping[str, Drift]) -> Table:
    """A table with a row for each model and measure."""
    lines = []
    for model, drift in drift_by_model.items():
        for one in drift.series:
            cells = [
                *map(trusted_cell, _series_texts(one), ("",) * 3, (one.overall, one.slope, one.late_minus_early)),
                trusted_cell(_scored_of_asked(one)),
            ]
            measure = TableCell(one_line(one.name), _measure_description(one.name))
            lines.append([label_cell(model), measure, *(cell.with_sources(SourceRun(model, INTERVIEW_KIND)) for cell in cells)])
    return tabulate("drift", _DRIFT_HEADINGS, lines, n_label_columns=2)


def terminal_drift_table(drift_by_model: Mapping[str, Drift]) -> TerminalTable:
    """A table for a terminal: a row for each measure and a column for each model, with the slope per turn above late −
    early.
    """
    table = terminal_table()
    table.add_column("change per turn")
    for model in drift_by_model:
        table.add_column(Text(truncate(escape_control(model), LABEL_WIDTH)), overflow="fold")
    table.caption = Text(_trust_marks_legend(drift_by_model), justify="left") if _trust_marks_legend(drift_by_model) else None
    for name in dict.fromkeys(one.name for drift in drift_by_model.values() for one in drift.series):
        table.add_row(
            Text(truncate(escape_control(name), LABEL_WIDTH)),
            *(_slope_text(drift.find_series(name)) for drift in drift_by_model.values()),
        )
    return table


def _slope_text(series: TurnSeries | None) -> Text:
    if series is None:
        return Text(MISSING_TEXT)
    _, slope, late = _series_texts(series)
    return Text.assemble(slope, (f"\nlate − early {late}", "dim"))


def _trust_marks_legend(drift_by_model: Mapping[str, Drift]) -> str:
    """The legend of the marks, if any mark is shown."""
    return (
        TRUST_MARKS_LEGEND
        if any(
            one.judge is not None and not one.discriminates_persona for drift in drift_by_model.values() for one in drift.series
        )
        else ""
    )


def _describe_drift(drift: Drift) -> str:
    """One line on the data behind the measures of drift: personas, turns, answers, order of questions, controls."""
    parts = [
        f"{len(drift.persona_ids)} personas × {drift.turns} turns, {format_ratio(drift.n_answered, drift.n_asked)} answered, "
        f"{format_count(drift.n_truncated)} cut off at the token limit",
        _ORDER_DESCRIPTIONS[drift.question_order],
    ]
    if drift.length_only is not None:
        permuted = drift.permuted or "not measured, since no two personas answered the same question of it"
        parts.append(
            f"classifier trained on {md_label(drift.reference or '')}: chance {format_decimal(drift.chance)}, length only "
            f"{drift.length_only}, labels permuted {permuted}"
        )
    else:
        parts.append("identifiability not measured: it needs `reference`, a run of single questions under the same personas")
    return "; ".join(parts)


def interview_excerpt(models: Sequence[ModelRuns]) -> list[DocumentPart]:
    """The whole conversation of the first persona that all models have."""
    interviews = {model.label: read_interviews(model.runs[INTERVIEW_KIND].path) for model in models if model.drift is not None}
    first = next(iter(interviews.values()))
    common = [id for id in first.persona_ids if all(id in one.persona_ids for one in interviews.values())]
    persona = (common or first.persona_ids)[0]
    shown = {name: one for name, one in interviews.items() if persona in one.persona_ids}
    persona_text = first.persona_texts[first.persona_ids.index(persona)]
    heading = f"**{md_label(persona)}** – {quote_markdown(persona_text, _MAX_LINE_CHARS, _MAX_LINES)}"
    if len({_turns_of(one, persona)[0] for one in shown.values()}) == 1:
        return [heading, _conversation_table("interview", shown, persona)]
    several = [
        _conversation_table(f"interview-{n}", {name: one}, persona) for n, (name, one) in enumerate(shown.items(), start=1)
    ]
    return [heading, *several]


def _conversation_table(name: str, conversations: Mapping[str, InterviewRecords], persona: str) -> Table:
    """A table with a row for each turn: the question, and the answer of each model."""
    questions, _ = _turns_of(next(iter(conversations.values())), persona)
    answers = [_turns_of(one, persona)[1] for one in conversations.values()]
    lines = [
        [
            trusted_cell(str(turn)),
            text_cell(question, _MAX_LINE_CHARS, _MAX_LINES),
            *(_answer_cell(texts[turn - 1] if turn <= len(texts) else None) for texts in answers),
        ]
        for turn, question in enumerate(questions, start=1)
    ]
    return tabulate(name, ["turn", "asked", *map(one_line, conversations)], lines, n_label_columns=2)


def _turns_of(conversations: InterviewRecords, persona: str) -> tuple[tuple[str, ...], Sequence[str | None]]:
    p = conversations.persona_ids.index(persona)
    return conversations.questions_P_I[p], conversations.answers_P_I[p]


def _answer_cell(answer: str | None) -> TableCell:
    return MISSING_CELL if answer is None else text_cell(answer, _MAX_LINE_CHARS, _MAX_LINES)


def _measure_description(name: str) -> str:
    return SERIES_DESCRIPTIONS.get(name, "score of an answer, 1 to 5")


def _series_texts(series: TurnSeries) -> tuple[str, str, str]:
    """The mean, the slope, and late − early; the numbers of a judge carry its mark."""
    mark = "" if series.judge is None else trust_mark(series.discriminates_persona)
    texts = estimate_cell(series.overall).text, _format_slope(series.slope), _format_slope(series.late_minus_early)
    mean, slope, late = (text if text == MISSING_TEXT else text + mark for text in texts)
    return mean, slope, late


def _format_slope(slope: Estimate) -> str:
    """The slope as text, with three digits in the interval too because slopes are small."""
    if slope.value is None:
        return MISSING_TEXT
    interval = "" if slope.low is None or slope.high is None else f" [{slope.low:+.3f}, {slope.high:+.3f}]"
    return true_minus(f"{slope.value:+.3f}{interval}")


def _scored_of_asked(series: TurnSeries) -> str:
    return format_ratio(series.n_scored, series.n_asked)


_MAX_QUOTE_CHARS = 160


TEXT_METRICS_NOTE = (
    "Counted in the answers, without a judge; no metric says that an answer fits its persona. *Out of character*: the answer "
    "says that it is a model, refuses the role or talks about it. The rules read English and miss unusual words, blandness and "
    "a wrong voice, so the share is a rough lower bound. *Distinct words, pairs*: the share of different ones among "
    f"{DISTINCT_NGRAMS} from all answers, or {DISTINCT_NGRAMS_PER_PERSONA} from one persona; the number is fixed, so length has "
    "no influence. Nonsense is varied too. *Echo*: the answer contains a content word of its persona's text; the control counts "
    "other personas' words in the same answers. A persona that is played well without naming itself does not echo. *Repeats*: "
    "four successive words occur twice; in longer answers this is more likely. Length is neither good nor bad."
)


class TextMetricColumn(NamedTuple):
    heading: str
    cell: Callable[[TextMetrics], Estimate]


TEXT_METRIC_COLUMNS = (
    TextMetricColumn("out of character", lambda one: one.break_rate),
    TextMetricColumn("distinct words", lambda one: one.distinct_1),
    TextMetricColumn("distinct pairs", lambda one: one.distinct_2),
    TextMetricColumn("distinct words, each persona", lambda one: one.distinct_1_per_persona),
    TextMetricColumn("distinct pairs, each persona", lambda one: one.distinct_2_per_persona),
    TextMetricColumn("words", lambda one: one.words),
    TextMetricColumn("cut off", lambda one: one.truncated_share),
    TextMetricColumn("repeats", lambda one: one.repetition_rate),
    TextMetricColumn("echo of own persona", lambda one: one.echo_own),
    TextMetricColumn("echo of others", lambda one: one.echo_others),
    TextMetricColumn("echo, own − others", lambda one: one.echo),
)


def label_with_kind(label: str, kind: str) -> str:
    """The label of a model's fidelity run in tables with several kinds: "base", "base, interview"."""
    return label + kind.removeprefix(OPEN_ENDED_KIND)


def text_metric_parts(metrics_by_run: Mapping[SourceRun, TextMetrics]) -> list[DocumentPart]:
    """The table, the meaning of its n, and a few breaks of character of each model; empty without models."""
    if not metrics_by_run:
        return []
    lines = []
    for source, one in metrics_by_run.items():
        cells = [
            *(_text_metric_cell(column, one) for column in TEXT_METRIC_COLUMNS),
            trusted_cell(format_ratio(one.n_answers, one.n_asked)),
        ]
        lines.append([label_cell(label_with_kind(*source)), *(cell.with_sources(source) for cell in cells)])
    table = tabulate("unjudged", ["model", *(column.heading for column in TEXT_METRIC_COLUMNS), "answers of asked"], lines)
    return [
        table,
        *(
            _character_breaks_markdown(label_with_kind(*source), one)
            for source, one in metrics_by_run.items()
            if one.break_examples
        ),
    ]


TERMINAL_TEXT_METRICS = ("out of character", "words", "cut off")


def terminal_text_metrics_table(metrics_by_run: Mapping[SourceRun, TextMetrics]) -> TerminalTable:
    """A table for a terminal of what is measured without a judge: a row for each metric of `TERMINAL_TEXT_METRICS`, and a
    column for each model and kind of run.
    """
    table = terminal_table()
    table.add_column("without a judge")
    for source in metrics_by_run:
        name = truncate(escape_control(label_with_kind(*source)), LABEL_WIDTH)
        table.add_column(Text(name), overflow="fold")
    table.add_row("answers of asked", *(format_ratio(one.n_answers, one.n_asked) for one in metrics_by_run.values()))
    for column in TEXT_METRIC_COLUMNS:
        if column.heading in TERMINAL_TEXT_METRICS:
            cells = (_text_metric_cell(column, one) for one in metrics_by_run.values())
            table.add_row(Text(column.heading), *map(terminal_text, cells))
    return table


def _text_metric_cell(column: TextMetricColumn, metrics: TextMetrics) -> TableCell:
    """The cell of a measure. Its n counts questions or personas, so the cell names what it counts."""
    cell = estimate_cell(column.cell(metrics))
    per_persona = column.heading.endswith("each persona")
    return cell._replace(note=cell.note and f"{cell.note} {'personas' if per_persona else metrics.resampling_unit}")


def _character_breaks_markdown(name: str, metrics: TextMetrics) -> str:
    rules = ", ".join(f"{md_label(rule)} {count}" for rule, count in metrics.breaks_by_rule.items())
    return "\n".join(
        [
            f"**{md_label(name)}**, answers by rule: {rules}. Examples:",
            "",
            *(f"- {_hit_markdown(hit)}" for hit in metrics.break_examples),
        ]
    )


def _hit_markdown(hit: BreakExample) -> str:
    before, quote, after = (
        escape_markdown(truncate(escape_control(text).replace("\n", " "), _MAX_QUOTE_CHARS))
        for text in (hit.before, hit.quote, hit.after)
    )
    return (
        f"{md_label(hit.persona_id)}, {md_label(hit.question_id)} ({md_label(hit.rule)}): … {before}**{quote.strip()}**{after} …"
    )
