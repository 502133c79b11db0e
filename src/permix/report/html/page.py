"""The page: one HTML file that opens from disk, with its styles, its scripts and its data in it.

Contract: a rendering of a `Document` and of the charts' data, nothing is measured here. Text that others wrote is escaped by the
template, or shown by scripts as text; the content security policy lets no inline handler, no foreign script and no connection
through. Beside the page lie only the transcripts (`cells/*.js`) and files that it links to. The same input, the same bytes.

Where a number comes from: what the page says of the run behind it.

Contract: a run is told once, and numbers refer to it by its place. Commands and paths may be hostile text and are made visible.
"""

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markdown_it import MarkdownIt
from markupsafe import Markup

from permix import __version__
from permix.rendering.table import Cell, Source, Table
from permix.report.document import Document, Part, Section
from permix.report.excerpts import command_of, seed_of, settings_hash
from permix.report.runs import ModelRuns, Run
from permix.sanitize import clip, visible
from permix.storage.files import write_text
from permix.types import Estimate

WIDTH = 2000


class Runs:
    """Every run of a report, by what numbers name as their source."""

    def __init__(self, models: Sequence[ModelRuns]) -> None:
        every = [(model.label, kind, run) for model in models for kind, run in model.every_run.items()]
        self.told = [_told(label, kind, run) for label, kind, run in every]
        self._place = {Source(label, kind): place for place, (label, kind, _) in enumerate(every)}

    def places(self, sources: Sequence[Source]) -> list[int]:
        """Of the runs that there are."""
        known = (source if source in self._place else source._replace(kind=source.kind.partition(",")[0]) for source in sources)
        return [self._place[source] for source in known if source in self._place]


def _told(label: str, kind: str, run: Run) -> dict[str, str]:
    facts = {
        "label": label,
        "kind": run.described if kind == "train" else kind,
        "path": str(run.path),
        "command": command_of(run),
        "configuration": settings_hash(run),
        "seed": seed_of(run),
        "revision": str(run.provenance.get("revision") or ""),
        "created": str(run.provenance.get("created") or ""),
    }
    return {name: clip(visible(text).replace("\n", " "), WIDTH) for name, text in facts.items()}


SCRIPTS = ("vendor/d3.min.js", "vendor/plot.umd.min.js", "base.js", "tables.js")
"""What every page begins with; then whatever draws, then main.js."""

LAST, FIRST = "main.js", "page.css"

LOOKED_UP = {"grid": "grids", "completions": "sheets"}
"""Charts that draw from the transcripts, and what they need of them."""

FILTERED = 8
"""Lines from which a table can be filtered."""


def write_page(
    path: Path,
    document: Document,
    charts: Mapping[str, Any],
    models: Sequence[Mapping[str, Any]],
    runs: Runs,
    tags: Mapping[str, Sequence[str]],
    cells: Mapping[str, Any],
) -> None:
    """Write the page. `charts`: what each chart draws, by name; `models`: how models look; `tags`: of personas, by what stands in
    tables for them; `cells`: what `write_transcripts` says of the files beside the page."""
    script = scripts()
    data = {"models": list(models), "charts": dict(charts), "runs": runs.told} | dict(cells)
    drawn = {*charts, *(name for name, needs in LOOKED_UP.items() if cells[needs])}
    view = _View(runs, tags, drawn, path.parent)
    page = _environment().get_template("page.html").render(
        version=__version__, title=document.title, policy=policy(script), style=Markup(styles()), script=Markup(script),
        data=Markup(embedded(data)), claim=inline(document.claim.sentence), basis=inline(document.claim.basis),
        caption=prose(document.caption),
        warnings=prose(document.warnings), details=prose(document.details), rests_on=prose(document.rests_on),
        main=view.table(document.main), front=list(view.parts(document.front)), methods=_methods(models),
        sections=[view.section(one) for one in document.sections],
    )  # fmt: skip
    write_text(path, page)


class _View:
    """What the template needs of a document: plain dicts. A chart that several pictures stand for is shown once."""

    def __init__(self, runs: Runs, tags: Mapping[str, Sequence[str]], drawn: set[str], folder: Path) -> None:
        self.runs, self.tags, self.drawn, self.folder = runs, tags, drawn, folder
        self.shown: set[str] = set()

    def section(self, section: Section) -> dict[str, Any]:
        if section.chart in self.drawn:
            parts = [{"kind": "chart", "name": section.chart, "file": "report.md"}]
        else:
            parts = list(self.parts(section.parts))
        return {"id": section.id, "title": section.title, "note": prose(section.note), "parts": parts}

    def parts(self, parts: Sequence[Part]) -> Iterator[dict[str, Any]]:
        for part in parts:
            if isinstance(part, str):
                yield {"kind": "prose", "html": prose(part)}
            elif isinstance(part, Table):
                yield {"kind": "table"} | self.table(part)
            elif part.chart not in self.drawn:
                yield {"kind": "picture", "source": _source(self.folder / part.file), "what": part.what}
            elif part.chart not in self.shown:
                self.shown.add(part.chart)
                yield {"kind": "chart", "name": part.chart, "file": part.file}

    def table(self, table: Table) -> dict[str, Any]:
        lines = [self._line(table, line) for line in table.lines]
        numeric = [any(line[place].value is not None for line in table.lines) for place in range(len(table.headings))]
        tags = sorted({tag for line in lines for tag in json.loads(line["tags"] or "[]")})
        return {
            "name": table.name,
            "what": f"table {table.name}",
            "headings": [{"text": text, "number": number} for text, number in zip(table.headings, numeric, strict=True)],
            "lines": lines,
            "names": table.names,
            "tags": tags,
            "filter": len(lines) >= FILTERED or bool(tags),
        }

    def _line(self, table: Table, line: Sequence[Cell]) -> dict[str, Any]:
        tags = self.tags.get(line[0].text, ()) if table.headings[0] == "persona" else ()
        cells = [self._cell(cell, f"{table.headings[at]}, {line[0].text}") for at, cell in enumerate(line)]
        return {"cells": cells, "tags": json.dumps(list(tags), ensure_ascii=False) if tags else "", "fixed": bool(line[0].mark)}

    def _cell(self, cell: Cell, what: str) -> dict[str, Any]:
        places = " ".join(str(place) for place in self.runs.places(cell.sources))
        return {
            "text": unbroken(cell), "note": cell.note, "mark": cell.mark, "value": cell.value, "runs": places,
            "what": f"{what}: {cell.text}" + (f" ({cell.note})" if cell.note else ""),
        }  # fmt: skip


def scripts() -> str:
    """Every script of the page, in order."""
    drawing = [*_named("charts", ".js"), *(name for name in _named("", ".js") if name not in {*SCRIPTS, LAST})]
    return "\n;\n".join(_asset(name).read_text(encoding="utf-8") for name in (*SCRIPTS, *drawing, LAST))


def styles() -> str:
    """Every style sheet, the page's own first."""
    sheets = sorted(_named("", ".css"), key=lambda name: (name != FIRST, name))
    return "\n".join(_asset(name).read_text(encoding="utf-8") for name in sheets)


def _named(folder: str, end: str) -> list[str]:
    prefix = f"{folder}/" if folder else ""
    return sorted(prefix + one.name for one in _asset(folder).iterdir() if one.name.endswith(end))


def policy(script: str) -> str:
    """The content security policy: this script and files beside the page, no handler in markup, no connection at all."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        f"default-src 'none'; script-src 'sha256-{digest}' 'self'; style-src 'unsafe-inline'; img-src data:; "
        "connect-src 'none'; base-uri 'none'; form-action 'none'"
    )


def embedded(data: object) -> str:
    """JSON that can stand inside a script element: no "<" ends it, no line separator breaks it."""
    plain = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return plain.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


@cache
def _markdown() -> MarkdownIt:
    """Without HTML: a tag in the text is text. Links and images are not made either: nothing of ours has any."""
    off = ["link", "image", "autolink", "html_inline", "html_block", "reference"]
    return MarkdownIt("commonmark", {"html": False}).disable(off)


def prose(text: str) -> Markup:
    """Our own Markdown, foreign text in it escaped, as HTML."""
    return Markup(_markdown().render(text))


def unbroken(cell: Cell) -> str:
    """Its text; an interval stays on one line."""
    return cell.text.replace(", ", ",\u00a0") if isinstance(cell.number, Estimate) else cell.text


def inline(text: str) -> Markup:
    """One line without a paragraph around it."""
    return Markup(_markdown().renderInline(text))


def _methods(models: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What can be chosen above the figures: methods, each with the label that shows its look."""
    names = dict.fromkeys(str(model["method"]) for model in models)
    of = {name: [model["label"] for model in models if model["method"] == name] for name in names}
    return [{"name": name, "label": labels[0], "seeds": len(labels)} for name, labels in of.items()]


def _source(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def _asset(name: str) -> Traversable:
    root = files("permix.report.html") / "assets"
    return root / name if name else root


@cache
def _environment() -> Environment:
    def load(name: str) -> str:
        return _asset(name).read_text(encoding="utf-8")

    return Environment(
        loader=FunctionLoader(load), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
