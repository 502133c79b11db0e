"""The report as data: its parts in order. report.md and the HTML page are two renderings of one `Document`.

Contract: prose is Markdown in which all text from outside is escaped. Tables and figures are parts of their own, not prose. A
section without content is left out.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from permix.rendering.table import Table
from permix.report.claim import ReportClaim


class Figure(NamedTuple):
    """A figure, by its file name. `description` (Markdown) says what it shows. `chart` names the chart that the page draws
    instead; several figures may share one chart. Without matplotlib the file `is_missing`, and the page has the chart alone.
    """

    file: str
    description: str
    chart: str = ""
    is_missing: bool = False

    @property
    def markdown(self) -> str:
        return "" if self.is_missing else f"![{self.description}]({self.file})"


class Folded(NamedTuple):
    """Text (Markdown) that a reader sees only on request, where the medium can hide it."""

    title: str
    text: str

    @property
    def markdown(self) -> str:
        return f"**{self.title}**\n\n{self.text}"


DocumentPart = str | Table | Figure | Folded


class DocumentSection(NamedTuple):
    """A section. `note` says how to read it. `chart` names the chart that the page draws instead of these parts, if it can."""

    id: str
    title: str
    note: str
    parts: tuple[DocumentPart, ...]
    chart: str = ""


SEEDS_TITLE = "Each training seed"


class Document(NamedTuple):
    """A whole report. `details` are sentences with numbers; `footnotes` give n, seeds and what the intervals cover.

    `subject` is one line in Markdown on what was measured. `short_warnings` holds each kind of warning in a few words.
    `seed_table` has a row for every training seed, if `main_table` has a row for each method; else it is None.
    """

    title: str
    caption: str
    claim: ReportClaim
    warnings: str
    details: str
    main_table: Table
    footnotes: str
    front_figures: tuple[Figure, ...]
    sections: tuple[DocumentSection, ...]
    subject: str = ""
    short_warnings: tuple[str, ...] = ()
    seed_table: Table | None = None

    @property
    def tables(self) -> Iterator[Table]:
        yield self.main_table
        if self.seed_table is not None:
            yield self.seed_table
        yield from (part for section in self.sections for part in section.parts if isinstance(part, Table))


def render_report_markdown(document: Document) -> str:
    """The text of report.md."""
    front = [
        document.caption,
        *_front_paragraphs(document),
        *_parts_markdown(document.front_figures),
        document.main_table.markdown,
        document.claim.support,
    ]
    seeds = [] if document.seed_table is None else [f"## {SEEDS_TITLE}", document.seed_table.markdown]
    parts = [f"# {document.title}", *front, document.details, document.footnotes, *seeds]
    for section in document.sections:
        if any(content := list(_parts_markdown(section.parts))):
            parts += [f"## {section.title}", section.note, *content]
    return "\n\n".join(part for part in parts if part) + "\n"


def render_card_results(document: Document) -> str:
    """The claim, the warnings and the main table in Markdown, for a model card."""
    parts = ["## Results", *_front_paragraphs(document), document.main_table.markdown, document.claim.support]
    return "\n\n".join(part for part in parts if part)


def _front_paragraphs(document: Document) -> tuple[str, str, str]:
    cards = "\n".join(card.markdown for card in document.claim.cards)
    return f"**{document.claim.sentence}**", document.warnings, cards


def optional_section(
    id: str, title: str, parts: Sequence[DocumentPart], note: str = "", chart: str = ""
) -> list[DocumentSection]:
    """A list with the section, or an empty list when there are no parts."""
    return [DocumentSection(id, title, note, tuple(parts), chart)] if parts else []


def _parts_markdown(parts: Sequence[DocumentPart]) -> Iterator[str]:
    for part in parts:
        yield part if isinstance(part, str) else part.markdown
