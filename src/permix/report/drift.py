"""What the report says of interviews: a table of drift, and one conversation to read, models side by side.

Contract: that of `tables` and `sections`: what is missing is "–" and never 0, and whatever a model, a script or a pool wrote is
cut, and escaped where it is rendered, so it is shown and never acts.
"""

from collections.abc import Mapping, Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table as TerminalTable
from rich.text import Text

from permix.escape import clip, markdown, visible
from permix.evals.drift_summary import TELLS, Course, Drift, Order, Talks, read_talks
from permix.report.document import Part, Picture
from permix.report.judged import INTERVIEW, mark
from permix.report.judged_words import MEANING
from permix.report.runs import ModelRuns
from permix.report.table import LABEL_WIDTH, MISSING, NOTHING, Cell, Source, Table, named, one_line, quoted, stated, tabulate
from permix.report.tables import count, estimate, label, number, of
from permix.types import Estimate

HEADINGS = ["model", "measure", "mean", "change a turn", "late − early", "scored of asked"]
COLUMN = 600  # characters of a line of a message
LINES = 8

NOTE = (
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
    designs = "\n".join(f"- **{label(name)}**: {described(drift)}." for name, drift in found.items())
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
            f"identifiability taught by {label(drift.reference or '')}: chance {number(drift.chance)}, by length only "
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
    heading = f"**{label(persona)}** – {_quote(first.persona_texts[first.persona_ids.index(persona)])}"
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
