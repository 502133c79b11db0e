"""The report as data: what is said, in which order. `report.md` and the page are two renderings of one document.

Contract: prose is Markdown in which everything foreign is escaped; tables and pictures stand for themselves. A section without
content is not there.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from permix.rendering.table import Table
from permix.report.summary_text import Claim


class Picture(NamedTuple):
    """A figure by its file name, and `what` it shows (Markdown). `chart`: what draws it on the page; several may share one."""

    file: str
    what: str
    chart: str = ""

    @property
    def markdown(self) -> str:
        return f"![{self.what}]({self.file})"


Part = str | Table | Picture


class Section(NamedTuple):
    """`note` says how to read it. `chart`: what the page shows in place of these parts, where it can be drawn."""

    id: str
    title: str
    note: str
    parts: tuple[Part, ...]
    chart: str = ""


class Document(NamedTuple):
    """`details` are sentences with numbers; `rests_on` says n, seeds, intervals; `front` stands with the first table."""

    title: str
    caption: str
    claim: Claim
    warnings: str
    details: str
    main: Table
    rests_on: str
    front: tuple[Picture, ...]
    sections: tuple[Section, ...]

    @property
    def tables(self) -> Iterator[Table]:
        yield self.main
        yield from (part for section in self.sections for part in section.parts if isinstance(part, Table))


def markdown(document: Document) -> str:
    """report.md."""
    claimed = [document.caption, *_claimed(document), document.warnings, *_markdown(document.front), document.main.markdown]
    parts = [f"# {document.title}", *claimed, document.details, document.rests_on]
    for section in document.sections:
        parts += [f"## {section.title}", section.note, *_markdown(section.parts)]
    return "\n\n".join(part for part in parts if part) + "\n"


def front(document: Document) -> str:
    """Claim and first table, for a model's card."""
    parts = ["## Results", *_claimed(document), document.warnings, document.main.markdown]
    return "\n\n".join(part for part in parts if part)


def _claimed(document: Document) -> tuple[str, str]:
    return f"**{document.claim.sentence}**", document.claim.basis


def section(id: str, title: str, parts: Sequence[Part], note: str = "", chart: str = "") -> list[Section]:
    """No section without parts."""
    return [Section(id, title, note, tuple(parts), chart)] if parts else []


def _markdown(parts: Sequence[Part]) -> Iterator[str]:
    for part in parts:
        yield part if isinstance(part, str) else part.markdown
