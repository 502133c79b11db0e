"""What the report says of interviews: a table of drift, and one conversation to read, models side by side.

Contract: that of `tables` and `sections`: what is missing is "–" and never 0, and whatever a model, a script or a pool wrote is
escaped and cut, so it is shown and never acts.
"""

from collections.abc import Mapping, Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from permix.escape import clip, markdown, visible
from permix.evals.drift_summary import TELLS, Course, Drift, Order, Talks, read_talks
from permix.report.judged import INTERVIEW, mark
from permix.report.judged_words import MEANING
from permix.report.runs import ModelRuns
from permix.report.tables import LABEL_WIDTH, MISSING, count, estimate, grid, label, number, of
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


def drift_section(models: Sequence[ModelRuns], image: str) -> str:
    """The section's body; empty when no model was interviewed."""
    found = {model.label: model.drift for model in models if model.drift is not None}
    if not found:
        return ""
    designs = "\n".join(f"- **{label(name)}**: {described(drift)}." for name, drift in found.items())
    talk = f"### One interview\n\n{one_interview(models)}"
    return "\n\n".join(part for part in (image, drift_table(found), _legend(found), designs, talk) if part)


def drift_table(found: Mapping[str, Drift]) -> str:
    """GitHub Markdown, one line a model and measure."""
    lines = [
        [label(model), f"{label(one.name)}<br><sub>{_tells(one.name)}</sub>", *_shown(one), _scored(one)]
        for model, drift in found.items()
        for one in drift.courses
    ]
    return grid(HEADINGS, lines)


def terminal_drift_table(found: Mapping[str, Drift]) -> Table:
    """For a terminal: measures as lines, models as columns; the change a turn, and below it late − early."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
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


def one_interview(models: Sequence[ModelRuns]) -> str:
    """The first persona that all have, whole."""
    talks = {model.label: read_talks(model.runs[INTERVIEW].path) for model in models if model.drift is not None}
    first = next(iter(talks.values()))
    common = [who for who in first.persona_ids if all(who in talk.persona_ids for talk in talks.values())]
    persona = (common or first.persona_ids)[0]
    shown = {name: talk for name, talk in talks.items() if persona in talk.persona_ids}
    heading = f"**{label(persona)}** – {_quote(first.persona_texts[first.persona_ids.index(persona)])}"
    if len({_of(talk, persona)[0] for talk in shown.values()}) == 1:
        return f"{heading}\n\n{_conversation(shown, persona)}"
    return "\n\n".join([heading, *(_conversation({name: talk}, persona) for name, talk in shown.items())])


def _conversation(talks: Mapping[str, Talks], persona: str) -> str:
    """One line a turn: what was asked, and what each model answered."""
    questions, _ = _of(next(iter(talks.values())), persona)
    answers = [_of(talk, persona)[1] for talk in talks.values()]
    lines = [
        [str(turn), _quote(question), *(_said(said[turn - 1]) if turn <= len(said) else MISSING for said in answers)]
        for turn, question in enumerate(questions, start=1)
    ]
    return grid(["turn", "asked", *map(label, talks)], lines)


def _of(talks: Talks, persona: str) -> tuple[tuple[str, ...], Sequence[str | None]]:
    place = talks.persona_ids.index(persona)
    return talks.questions[place], talks.answers[place]


def _said(answer: str | None) -> str:
    return MISSING if answer is None else _quote(answer) or "*(empty)*"


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
