"""The report's section "Without a judge": measures of the answers themselves, and the breaks of character, quoted.

Contract: answers, persona ids and labels are cut, and in Markdown escaped.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from permix.escape import clip, markdown, visible
from permix.evals.unjudged import DRAWN, DRAWN_OF_EACH, Hit, Unjudged
from permix.report.document import Part
from permix.report.judged import OPEN
from permix.report.table import Cell, Source, named, stated, tabulate
from permix.report.tables import estimate, label, of
from permix.types import Estimate

QUOTE = 160

NOTE = (
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
    rules = ", ".join(f"{label(rule)} {count}" for rule, count in one.broke_by_rule.items())
    return "\n".join([f"**{label(name)}**, answers by rule: {rules}. Some of them:", "", *(f"- {_hit(hit)}" for hit in one.hits)])


def _hit(hit: Hit) -> str:
    before, quote, after = (
        markdown(clip(visible(text).replace("\n", " "), QUOTE)) for text in (hit.before, hit.quote, hit.after)
    )
    return f"{label(hit.persona_id)}, {label(hit.question_id)} ({label(hit.rule)}): … {before}**{quote.strip()}**{after} …"
