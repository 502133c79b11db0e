"""The report as data: what is said, in which order. `report.md` and the page are two renderings of one document.

Contract: prose is Markdown in which everything foreign is escaped; tables and pictures stand for themselves. A section without
content is not there.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from permix.rendering.table import Table
from permix.report.summary_text import ReportClaim


class Figure(NamedTuple):
    """A figure by its file name, and `description` it shows (Markdown). `chart`: what draws it on the page; several may
    share one."""

    file: str
    description: str
    chart: str = ""

    @property
    def markdown(self) -> str:
        return f"![{self.description}]({self.file})"


DocumentPart = str | Table | Figure


class DocumentSection(NamedTuple):
    """`note` says how to read it. `chart`: what the page shows in place of these parts, where it can be drawn."""

    id: str
    title: str
    note: str
    parts: tuple[DocumentPart, ...]
    chart: str = ""


class Document(NamedTuple):
    """`details` are sentences with numbers; `footnotes` says n, seeds, intervals; `render_card_results` stands with the
    first table."""

    title: str
    caption: str
    claim: ReportClaim
    warnings: str
    details: str
    main_table: Table
    footnotes: str
    front_figures: tuple[Figure, ...]
    sections: tuple[DocumentSection, ...]

    @property
    def tables(self) -> Iterator[Table]:
        yield self.main_table
        yield from (part for section in self.sections for part in section.parts if isinstance(part, Table))


def render_report_markdown(document: Document) -> str:
    """report.md."""
    claimed = [
        document.caption,
        *_claim_paragraphs(document),
        document.warnings,
        *_parts_markdown(document.front_figures),
        document.main_table.markdown,
    ]
    parts = [f"# {document.title}", *claimed, document.details, document.footnotes]
    for section in document.sections:
        parts += [f"## {section.title}", section.note, *_parts_markdown(section.parts)]
    return "\n\n".join(part for part in parts if part) + "\n"


def render_card_results(document: Document) -> str:
    """Claim and first table, for a model's card."""
    parts = ["## Results", *_claim_paragraphs(document), document.warnings, document.main_table.markdown]
    return "\n\n".join(part for part in parts if part)


def _claim_paragraphs(document: Document) -> tuple[str, str]:
    return f"**{document.claim.sentence}**", document.claim.support


def optional_section(
    id: str, title: str, parts: Sequence[DocumentPart], note: str = "", chart: str = ""
) -> list[DocumentSection]:
    """No section without parts."""
    return [DocumentSection(id, title, note, tuple(parts), chart)] if parts else []


def _parts_markdown(parts: Sequence[DocumentPart]) -> Iterator[str]:
    for part in parts:
        yield part if isinstance(part, str) else part.markdown
