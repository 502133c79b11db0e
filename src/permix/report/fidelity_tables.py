"""Tables on fidelity runs: drift over an interview with one conversation to read, and measures of the answers without a judge.

Contract: as in `tables` and `excerpts`: a missing number is "–" and never 0. All text from a model, a script or a pool is cut,
and escaped when it is rendered, so it is displayed and never interpreted.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from rich.box import SIMPLE_HEAD
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
    tabulate,
    text_cell,
    trusted_cell,
)
from permix.report.document import DocumentPart, Figure
from permix.report.judges import INTERVIEW_KIND, OPEN_ENDED_KIND, trust_mark
from permix.report.runs import ModelRuns
from permix.report.summary_text import TRUST_MARKS_LEGEND
from permix.sanitize import escape_control, escape_markdown, truncate
from permix.types import Estimate

_DRIFT_HEADINGS = ["model", "measure", "mean", "change a turn", "late − early", "scored of asked"]

_MAX_LINE_CHARS = 600  # maximal characters of one line of a message

_MAX_LINES = 8


DRIFT_NOTE = (
    "Every persona in one conversation. A slope is a measure's change from one turn to the next within it, late − early "
    "its change from the first half of the turns to the second; intervals are over personas, so one that holds 0 shows none. "
    "They say how answers change, not why: a longer prompt, the model's own earlier words and what was asked before are all part "
    "of it. What rises or falls by itself: repetition, since there is ever more to repeat, and words, where answers are cut off."
)

_ORDER_DESCRIPTIONS: Mapping[QuestionOrder, str] = {
    "balanced": "each persona was asked in an order of its own, and questions' own effects are taken off; slopes leave out turn "
    "1, which opens every interview",
    "written": "all were asked in one order, so slopes are those of the questions as much as of the turns: to be compared "
    "between models, not read by themselves",
    "model": "a model asked, so slopes are also those of what it came to ask late",
}


def drift_parts(models: Sequence[ModelRuns], figure: Figure | None) -> list[DocumentPart]:
    """Return the parts of the section on drift; empty when no model was interviewed."""
    found = {model.label: model.drift for model in models if model.drift is not None}
    if not found:
        return []
    designs = "\n".join(f"- **{md_label(name)}**: {_describe_drift(drift)}." for name, drift in found.items())
    body = (figure, drift_table(found), _trust_marks_legend(found), designs, "### One interview", *interview_excerpt(models))
    return [part for part in body if part]


def drift_table(drift_by_model: Mapping[str, Drift]) -> Table:
    """Return a table with a row for each model and measure."""
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
    """Return a table for a terminal: a row for each measure and a column for each model, with the slope per turn above late −
    early.
    """
    table = TerminalTable(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("change a turn")
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
    """Return the legend of the marks, if any mark is shown."""
    return (
        TRUST_MARKS_LEGEND
        if any(
            one.judge is not None and not one.discriminates_persona for drift in drift_by_model.values() for one in drift.series
        )
        else ""
    )


def _describe_drift(drift: Drift) -> str:
    """Return one line on the data behind the measures of drift: personas, turns, answers, order of questions, controls."""
    parts = [
        f"{len(drift.persona_ids)} personas × {drift.turns} turns, {format_ratio(drift.n_answered, drift.n_asked)} answered, "
        f"{format_count(drift.n_truncated)} cut off at the longest answer allowed",
        _ORDER_DESCRIPTIONS[drift.question_order],
    ]
    if drift.length_only is not None and drift.permuted is not None:
        parts.append(
            f"identifiability taught by {md_label(drift.reference or '')}: chance {format_decimal(drift.chance)}, by length only "
            f"{drift.length_only}, taught shuffled labels {drift.permuted}"
        )
    else:
        parts.append("identifiability not measured: it needs reference, a run of single questions by the same personas")
    return "; ".join(parts)


def interview_excerpt(models: Sequence[ModelRuns]) -> list[DocumentPart]:
    """Return the whole conversation of the first persona that all models have."""
    talks = {model.label: read_interviews(model.runs[INTERVIEW_KIND].path) for model in models if model.drift is not None}
    first = next(iter(talks.values()))
    common = [who for who in first.persona_ids if all(who in talk.persona_ids for talk in talks.values())]
    persona = (common or first.persona_ids)[0]
    shown = {name: talk for name, talk in talks.items() if persona in talk.persona_ids}
    heading = f"**{md_label(persona)}** – {_quote_markdown(first.persona_texts[first.persona_ids.index(persona)])}"
    if len({_turns_of(talk, persona)[0] for talk in shown.values()}) == 1:
        return [heading, _conversation_table("interview", shown, persona)]
    several = [
        _conversation_table(f"interview-{at}", {name: talk}, persona) for at, (name, talk) in enumerate(shown.items(), start=1)
    ]
    return [heading, *several]


def _conversation_table(name: str, conversations: Mapping[str, InterviewRecords], persona: str) -> Table:
    """Return a table with a row for each turn: the question, and the answer of each model."""
    questions, _ = _turns_of(next(iter(conversations.values())), persona)
    answers = [_turns_of(talk, persona)[1] for talk in conversations.values()]
    lines = [
        [
            trusted_cell(str(turn)),
            text_cell(question, _MAX_LINE_CHARS, _MAX_LINES),
            *(_answer_cell(said[turn - 1] if turn <= len(said) else None) for said in answers),
        ]
        for turn, question in enumerate(questions, start=1)
    ]
    return tabulate(name, ["turn", "asked", *map(one_line, conversations)], lines, n_label_columns=2)


def _turns_of(conversations: InterviewRecords, persona: str) -> tuple[tuple[str, ...], Sequence[str | None]]:
    place = conversations.persona_ids.index(persona)
    return conversations.questions_P_I[place], conversations.answers_P_I[place]


def _answer_cell(answer: str | None) -> TableCell:
    return MISSING_CELL if answer is None else text_cell(answer, _MAX_LINE_CHARS, _MAX_LINES)


def _measure_description(name: str) -> str:
    return SERIES_DESCRIPTIONS.get(name, "score of an answer, 1 to 5")


def _series_texts(series: TurnSeries) -> tuple[str, str, str]:
    """Return the mean, the slope, and late − early; the numbers of a judge carry its mark."""
    beside = "" if series.judge is None else trust_mark(series.discriminates_persona)
    texts = estimate_cell(series.overall).text, _format_slope(series.slope), _format_slope(series.late_minus_early)
    mean, slope, late = (text if text == MISSING_TEXT else text + beside for text in texts)
    return mean, slope, late


def _format_slope(slope: Estimate) -> str:
    """Return the slope as text, with three digits in the interval too because slopes are small."""
    if slope.value is None:
        return MISSING_TEXT
    interval = "" if slope.low is None or slope.high is None else f" [{slope.low:+.3f}, {slope.high:+.3f}]"
    return f"{slope.value:+.3f}{interval}".replace("-", "−")


def _scored_of_asked(series: TurnSeries) -> str:
    return format_ratio(series.n_scored, series.n_asked)


def _quote_markdown(text: str) -> str:
    return escape_markdown(truncate(escape_control(text).strip(), _MAX_LINE_CHARS, _MAX_LINES))


_MAX_QUOTE_CHARS = 160


TEXT_METRICS_NOTE = (
    "Counted on the answers, no model asked; none of it says that an answer is right for its persona. *Out of character*: says "
    "outright that it is a model, refuses the part or talks about it. Blandness and a wrong voice are not seen, and the rules, "
    "which read English, miss what is said in odd words: a rough lower bound. *Distinct words, pairs*: the share of different "
    f"ones among {DISTINCT_NGRAMS} of all answers, or {DISTINCT_NGRAMS_PER_PERSONA} of one persona; equal numbers, so "
    "that length does not enter. "
    "Nonsense is varied too. *Echo*: holds a content word of its own persona's text, and how often other personas' words turn up "
    "in the same answers; a persona that is played well without naming itself does not echo. *Repeats*: four words in a row, "
    "twice; longer answers have more chances. Length is neither good nor bad."
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
    """Return the label of a model's fidelity run in tables with several kinds: "base", "base, interview"."""
    return label + kind.removeprefix(OPEN_ENDED_KIND)


def text_metric_parts(metrics_by_run: Mapping[SourceRun, TextMetrics]) -> list[DocumentPart]:
    """Return the table, the meaning of its n, and a few breaks of character of each model; empty without models."""
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


def _text_metric_cell(column: TextMetricColumn, metrics: TextMetrics) -> TableCell:
    """Return the cell of a measure. Its n counts questions or personas, so the cell names what it counts."""
    cell = estimate_cell(column.cell(metrics))
    each = column.heading.endswith("each persona")
    return cell._replace(note=cell.note and f"{cell.note} {'personas' if each else metrics.resampling_unit}")


def _character_breaks_markdown(name: str, metrics: TextMetrics) -> str:
    rules = ", ".join(f"{md_label(rule)} {count}" for rule, count in metrics.breaks_by_rule.items())
    return "\n".join(
        [
            f"**{md_label(name)}**, answers by rule: {rules}. Some of them:",
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
