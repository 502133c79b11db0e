"""What the report says of interviews: a table of drift, and one conversation to read, models side by side.

Contract: that of `tables` and `sections`: what is missing is "–" and never 0, and whatever a model, a script or a pool wrote is
cut, and escaped where it is rendered, so it is shown and never acts.

The report's section "Without a judge": measures of the answers themselves, and the breaks of character, quoted.

Contract: answers, persona ids and labels are cut, and in Markdown escaped.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from rich.box import SIMPLE_HEAD
from rich.table import Table as TerminalTable
from rich.text import Text

from permix.evals.drift_report import TELLS, Course, Drift, Order, Talks, read_talks
from permix.evals.text_metrics import DRAWN, DRAWN_OF_EACH, Hit, Unjudged
from permix.rendering.table import (
    LABEL_WIDTH,
    MISSING,
    NOTHING,
    Cell,
    Source,
    Table,
    count,
    estimate,
    md_label,
    named,
    number,
    of,
    one_line,
    quoted,
    stated,
    tabulate,
)
from permix.report.document import Part, Picture
from permix.report.judges import INTERVIEW, OPEN, mark
from permix.report.runs import ModelRuns
from permix.report.summary_text import MEANING
from permix.sanitize import clip, markdown, visible
from permix.types import Estimate

HEADINGS = ["model", "measure", "mean", "change a turn", "late − early", "scored of asked"]

COLUMN = 600  # characters of a line of a message

LINES = 8


DRIFT_NOTE = (
    "Every persona in one conversation. A slope is a measure's change from one turn to the next within it, late − early "
    "its change from the first half of the turns to the second; intervals are over personas, so one that holds 0 shows none. "
    "They say how answers change, not why: a longer prompt, the model's own earlier words and what was asked before are all part "
    "of it. What rises or falls by itself: repetition, since there is ever more to repeat, and words, where answers are cut off."
)

SAID_OF: Mapping[Order, str] = {
    "balanced": "each persona was asked in an order of its own, and questions' own effects are taken off; slopes leave out turn "
    "1, which opens every interview",
    "written": "all were asked in one order, so slopes are those of the questions as much as of the turns: to be compared "
    "between models, not read by themselves",
    "model": "a model asked, so slopes are also those of what it came to ask late",
}


def drift_parts(models: Sequence[ModelRuns], picture: Picture | None) -> list[Part]:
    """The section's parts; empty when no model was interviewed."""
    found = {model.label: model.drift for model in models if model.drift is not None}
    if not found:
        return []
    designs = "\n".join(f"- **{md_label(name)}**: {described(drift)}." for name, drift in found.items())
    body = (picture, drift_table(found), _legend(found), designs, "### One interview", *one_interview(models))
    return [part for part in body if part]


def drift_table(found: Mapping[str, Drift]) -> Table:
    """One line a model and measure."""
    lines = []
    for model, drift in found.items():
        for one in drift.courses:
            cells = [*map(stated, _shown(one), ("",) * 3, (one.overall, one.slope, one.late_minus_early)), stated(_scored(one))]
            measure = Cell(one_line(one.name), _tells(one.name))
            lines.append([named(model), measure, *(cell.of(Source(model, INTERVIEW)) for cell in cells)])
    return tabulate("drift", HEADINGS, lines, names=2)


def terminal_drift_table(found: Mapping[str, Drift]) -> TerminalTable:
    """For a terminal: measures as lines, models as columns; the change a turn, and below it late − early."""
    table = TerminalTable(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("change a turn")
    for model in found:
        table.add_column(Text(clip(visible(model), LABEL_WIDTH)), overflow="fold")
    table.caption = Text(_legend(found), justify="left") if _legend(found) else None
    for name in dict.fromkeys(one.name for drift in found.values() for one in drift.courses):
        table.add_row(Text(clip(visible(name), LABEL_WIDTH)), *(_two_lines(drift.course(name)) for drift in found.values()))
    return table


def _two_lines(one: Course | None) -> Text:
    if one is None:
        return Text(MISSING)
    _, slope, late = _shown(one)
    return Text.assemble(slope, (f"\nlate − early {late}", "dim"))


def _legend(found: Mapping[str, Drift]) -> str:
    """What the marks mean, where there are any."""
    return MEANING if any(one.judge is not None and not one.trusted for drift in found.values() for one in drift.courses) else ""


def described(drift: Drift) -> str:
    """What the numbers rest on, in one line."""
    parts = [
        f"{len(drift.persona_ids)} personas × {drift.turns} turns, {of(drift.n_answered, drift.n_asked)} answered, "
        f"{count(drift.n_cut_off)} cut off at the longest answer allowed",
        SAID_OF[drift.order],
    ]
    if drift.length_only is not None and drift.permuted is not None:
        parts.append(
            f"identifiability taught by {md_label(drift.reference or '')}: chance {number(drift.chance)}, by length only "
            f"{drift.length_only}, taught shuffled labels {drift.permuted}"
        )
    else:
        parts.append("identifiability not measured: it needs reference, a run of single questions by the same personas")
    return "; ".join(parts)


def one_interview(models: Sequence[ModelRuns]) -> list[Part]:
    """The first persona that all have, whole."""
    talks = {model.label: read_talks(model.runs[INTERVIEW].path) for model in models if model.drift is not None}
    first = next(iter(talks.values()))
    common = [who for who in first.persona_ids if all(who in talk.persona_ids for talk in talks.values())]
    persona = (common or first.persona_ids)[0]
    shown = {name: talk for name, talk in talks.items() if persona in talk.persona_ids}
    heading = f"**{md_label(persona)}** – {_quote(first.persona_texts[first.persona_ids.index(persona)])}"
    if len({_of(talk, persona)[0] for talk in shown.values()}) == 1:
        return [heading, _conversation("interview", shown, persona)]
    several = [_conversation(f"interview-{at}", {name: talk}, persona) for at, (name, talk) in enumerate(shown.items(), start=1)]
    return [heading, *several]


def _conversation(name: str, talks: Mapping[str, Talks], persona: str) -> Table:
    """One line a turn: what was asked, and what each model answered."""
    questions, _ = _of(next(iter(talks.values())), persona)
    answers = [_of(talk, persona)[1] for talk in talks.values()]
    lines = [
        [
            stated(str(turn)),
            quoted(question, COLUMN, LINES),
            *(_said(said[turn - 1] if turn <= len(said) else None) for said in answers),
        ]
        for turn, question in enumerate(questions, start=1)
    ]
    return tabulate(name, ["turn", "asked", *map(one_line, talks)], lines, names=2)


def _of(talks: Talks, persona: str) -> tuple[tuple[str, ...], Sequence[str | None]]:
    place = talks.persona_ids.index(persona)
    return talks.questions[place], talks.answers[place]


def _said(answer: str | None) -> Cell:
    return NOTHING if answer is None else quoted(answer, COLUMN, LINES)


def _tells(name: str) -> str:
    return TELLS.get(name, "score of an answer, 1 to 5")


def _shown(one: Course) -> tuple[str, str, str]:
    """The mean, the slope, late − early; beside each number of a judge, its mark."""
    beside = "" if one.judge is None else mark(one.trusted)
    texts = estimate(one.overall).text, _signed(one.slope), _signed(one.late_minus_early)
    mean, slope, late = (text if text == MISSING else text + beside for text in texts)
    return mean, slope, late


def _signed(one: Estimate) -> str:
    """Slopes are small: three digits in the interval too."""
    if one.value is None:
        return MISSING
    interval = "" if one.low is None or one.high is None else f" [{one.low:+.3f}, {one.high:+.3f}]"
    return f"{one.value:+.3f}{interval}".replace("-", "−")


def _scored(one: Course) -> str:
    return of(one.n_scored, one.n_asked)


def _quote(text: str) -> str:
    return markdown(clip(visible(text).strip(), COLUMN, LINES))


QUOTE = 160


TEXT_NOTE = (
    "Counted on the answers, no model asked; none of it says that an answer is right for its persona. *Out of character*: says "
    "outright that it is a model, refuses the part or talks about it. Blandness and a wrong voice are not seen, and the rules, "
    "which read English, miss what is said in odd words: a rough lower bound. *Distinct words, pairs*: the share of different "
    f"ones among {DRAWN} of all answers, or {DRAWN_OF_EACH} of one persona; equal numbers, so that length does not enter. "
    "Nonsense is varied too. *Echo*: holds a content word of its own persona's text, and how often other personas' words turn up "
    "in the same answers; a persona that is played well without naming itself does not echo. *Repeats*: four words in a row, "
    "twice; longer answers have more chances. Length is neither good nor bad."
)


class Column(NamedTuple):
    heading: str
    cell: Callable[[Unjudged], Estimate]


COLUMNS = (
    Column("out of character", lambda one: one.broke),
    Column("distinct words", lambda one: one.distinct_1),
    Column("distinct pairs", lambda one: one.distinct_2),
    Column("distinct words, each persona", lambda one: one.distinct_1_each),
    Column("distinct pairs, each persona", lambda one: one.distinct_2_each),
    Column("words", lambda one: one.words),
    Column("cut off", lambda one: one.cut_off),
    Column("repeats", lambda one: one.repeats),
    Column("echo of own persona", lambda one: one.echo_own),
    Column("echo of others", lambda one: one.echo_others),
    Column("echo, own − others", lambda one: one.echo),
)


def of_kind(label: str, kind: str) -> str:
    """A model's fidelity run, for tables that hold several of its kinds: "base", "base, interview"."""
    return label + kind.removeprefix(OPEN)


def parts(found: Mapping[Source, Unjudged]) -> list[Part]:
    """The table, what its n are, and a few breaks of each model; empty without models."""
    if not found:
        return []
    lines = []
    for source, one in found.items():
        cells = [*(_cell(column, one) for column in COLUMNS), stated(of(one.n_answers, one.n_asked))]
        lines.append([named(of_kind(*source)), *(cell.of(source) for cell in cells)])
    table = tabulate("unjudged", ["model", *(column.heading for column in COLUMNS), "answers of asked"], lines)
    return [table, *(_quoted(of_kind(*source), one) for source, one in found.items() if one.hits)]


def _cell(column: Column, one: Unjudged) -> Cell:
    """As everywhere; n is of questions or of personas, so it says which."""
    cell = estimate(column.cell(one))
    each = column.heading.endswith("each persona")
    return cell._replace(note=cell.note and f"{cell.note} {'personas' if each else one.resampled}")


def _quoted(name: str, one: Unjudged) -> str:
    rules = ", ".join(f"{md_label(rule)} {count}" for rule, count in one.broke_by_rule.items())
    return "\n".join(
        [f"**{md_label(name)}**, answers by rule: {rules}. Some of them:", "", *(f"- {_hit(hit)}" for hit in one.hits)]
    )


def _hit(hit: Hit) -> str:
    before, quote, after = (
        markdown(clip(visible(text).replace("\n", " "), QUOTE)) for text in (hit.before, hit.quote, hit.after)
    )
    return (
        f"{md_label(hit.persona_id)}, {md_label(hit.question_id)} ({md_label(hit.rule)}): … {before}**{quote.strip()}**{after} …"
    )
