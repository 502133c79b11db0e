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
from permix.rendering.table import SourceRun, Table, TableCell
from permix.report.document import Document, DocumentPart, DocumentSection
from permix.report.excerpts import command_text, seed_text, settings_hash
from permix.report.runs import ModelRuns, Run
from permix.sanitize import escape_control, truncate
from permix.storage.files import write_text
from permix.types import Estimate

_MAX_FACT_CHARS = 2000


class RunIndex:
    """Every run of a report, by what numbers name as their source."""

    def __init__(self, models: Sequence[ModelRuns]) -> None:
        every = [(model.label, kind, run) for model in models for kind, run in model.runs_with_judges.items()]
        self.facts = [_run_facts(label, kind, run) for label, kind, run in every]
        self._index_of = {SourceRun(label, kind): place for place, (label, kind, _) in enumerate(every)}

    def indices(self, sources: Sequence[SourceRun]) -> list[int]:
        """Of the runs that there are."""
        known = (
            source if source in self._index_of else source._replace(kind=source.kind.partition(",")[0]) for source in sources
        )
        return [self._index_of[source] for source in known if source in self._index_of]


def _run_facts(label: str, kind: str, run: Run) -> dict[str, str]:
    facts = {
        "label": label,
        "kind": run.description if kind == "train" else kind,
        "path": str(run.path),
        "command": command_text(run),
        "configuration": settings_hash(run),
        "seed": seed_text(run),
        "revision": str(run.provenance.get("revision") or ""),
        "created": str(run.provenance.get("created") or ""),
    }
    return {name: truncate(escape_control(text).replace("\n", " "), _MAX_FACT_CHARS) for name, text in facts.items()}


FIRST_SCRIPTS = ("vendor/d3.min.js", "vendor/plot.umd.min.js", "base.js", "tables.js")
"""What every page begins with; then whatever draws, then main.js."""

LAST_SCRIPT, FIRST_STYLESHEET = "main.js", "page.css"

TRANSCRIPT_CHARTS = {"grid": "grids", "completions": "sheets"}
"""Charts that draw from the transcripts, and what they need of them."""

_MIN_FILTERABLE_ROWS = 8
"""Lines from which a table can be filtered."""


def write_page(
    path: Path,
    document: Document,
    charts: Mapping[str, Any],
    looks_of_models: Sequence[Mapping[str, Any]],
    runs: RunIndex,
    tags: Mapping[str, Sequence[str]],
    transcripts: Mapping[str, Any],
) -> None:
    """Write the page. `charts`: what each chart draws, by name; `models`: how models look; `tags`: of personas, by what stands in
    tables for them; `cells`: what `write_transcripts` says of the files beside the page."""
    script = page_scripts()
    data = {"models": list(looks_of_models), "charts": dict(charts), "runs": runs.facts} | dict(transcripts)
    drawn = {*charts, *(name for name, needs in TRANSCRIPT_CHARTS.items() if transcripts[needs])}
    view = _PageView(runs, tags, drawn, path.parent)
    page = (
        _environment()
        .get_template("page.html")
        .render(
            version=__version__,
            title=document.title,
            policy=content_security_policy(script),
            style=Markup(page_styles()),
            script=Markup(script),
            data=Markup(embed_json(data)),
            claim=render_inline(document.claim.sentence),
            basis=render_inline(document.claim.support),
            caption=render_prose(document.caption),
            warnings=render_prose(document.warnings),
            details=render_prose(document.details),
            rests_on=render_prose(document.footnotes),
            main=view.table(document.main_table),
            front=list(view.parts(document.front_figures)),
            methods=_method_choices(looks_of_models),
            sections=[view.section(one) for one in document.sections],
        )
    )
    write_text(path, page)


class _PageView:
    """What the template needs of a document: plain dicts. A chart that several pictures stand for is shown once."""

    def __init__(self, runs: RunIndex, tags: Mapping[str, Sequence[str]], available_charts: set[str], folder: Path) -> None:
        self.runs, self.tags, self.available_charts, self.folder = runs, tags, available_charts, folder
        self.used_charts: set[str] = set()

    def section(self, section: DocumentSection) -> dict[str, Any]:
        if section.chart in self.available_charts:
            parts = [{"kind": "chart", "name": section.chart, "file": "report.md"}]
        else:
            parts = list(self.parts(section.parts))
        return {"id": section.id, "title": section.title, "note": render_prose(section.note), "parts": parts}

    def parts(self, parts: Sequence[DocumentPart]) -> Iterator[dict[str, Any]]:
        for part in parts:
            if isinstance(part, str):
                yield {"kind": "prose", "html": render_prose(part)}
            elif isinstance(part, Table):
                yield {"kind": "table"} | self.table(part)
            elif part.chart not in self.available_charts:
                yield {"kind": "picture", "source": _image_data_uri(self.folder / part.file), "what": part.description}
            elif part.chart not in self.used_charts:
                self.used_charts.add(part.chart)
                yield {"kind": "chart", "name": part.chart, "file": part.file}

    def table(self, table: Table) -> dict[str, Any]:
        lines = [self._row(table, line) for line in table.rows]
        numeric = [any(line[place].value is not None for line in table.rows) for place in range(len(table.headings))]
        tags = sorted({tag for line in lines for tag in json.loads(line["tags"] or "[]")})
        return {
            "name": table.name,
            "what": f"table {table.name}",
            "headings": [{"text": text, "number": number} for text, number in zip(table.headings, numeric, strict=True)],
            "lines": lines,
            "names": table.n_label_columns,
            "tags": tags,
            "filter": len(lines) >= _MIN_FILTERABLE_ROWS or bool(tags),
        }

    def _row(self, table: Table, row: Sequence[TableCell]) -> dict[str, Any]:
        tags = self.tags.get(row[0].text, ()) if table.headings[0] == "persona" else ()
        cells = [self._cell(cell, f"{table.headings[at]}, {row[0].text}") for at, cell in enumerate(row)]
        return {
            "cells": cells,
            "tags": json.dumps(list(tags), ensure_ascii=False) if tags else "",
            "fixed": bool(row[0].emphasis),
        }

    def _cell(self, cell: TableCell, description: str) -> dict[str, Any]:
        places = " ".join(str(place) for place in self.runs.indices(cell.sources))
        return {
            "text": unbroken_text(cell), "note": cell.note, "mark": cell.emphasis, "value": cell.value, "runs": places,
            "what": f"{description}: {cell.text}" + (f" ({cell.note})" if cell.note else ""),
        }  # fmt: skip


def page_scripts() -> str:
    """Every script of the page, in order."""
    drawing = [
        *_assets_with_suffix("charts", ".js"),
        *(name for name in _assets_with_suffix("", ".js") if name not in {*FIRST_SCRIPTS, LAST_SCRIPT}),
    ]
    return "\n;\n".join(_asset(name).read_text(encoding="utf-8") for name in (*FIRST_SCRIPTS, *drawing, LAST_SCRIPT))


def page_styles() -> str:
    """Every style sheet, the page's own first."""
    sheets = sorted(_assets_with_suffix("", ".css"), key=lambda name: (name != FIRST_STYLESHEET, name))
    return "\n".join(_asset(name).read_text(encoding="utf-8") for name in sheets)


def _assets_with_suffix(folder: str, suffix: str) -> list[str]:
    prefix = f"{folder}/" if folder else ""
    return sorted(prefix + one.name for one in _asset(folder).iterdir() if one.name.endswith(suffix))


def content_security_policy(script: str) -> str:
    """The content security policy: this script and files beside the page, no handler in markup, no connection at all."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        f"default-src 'none'; script-src 'sha256-{digest}' 'self'; style-src 'unsafe-inline'; img-src data:; "
        "connect-src 'none'; base-uri 'none'; form-action 'none'"
    )


def embed_json(data: object) -> str:
    """JSON that can stand inside a script element: no "<" ends it, no line separator breaks it."""
    plain = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return plain.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


@cache
def _markdown_renderer() -> MarkdownIt:
    """Without HTML: a tag in the text is text. Links and images are not made either: nothing of ours has any."""
    off = ["link", "image", "autolink", "html_inline", "html_block", "reference"]
    return MarkdownIt("commonmark", {"html": False}).disable(off)


def render_prose(text: str) -> Markup:
    """Our own Markdown, foreign text in it escaped, as HTML."""
    return Markup(_markdown_renderer().render(text))


def unbroken_text(cell: TableCell) -> str:
    """Its text; an interval stays on one line."""
    return cell.text.replace(", ", ",\u00a0") if isinstance(cell.number, Estimate) else cell.text


def render_inline(text: str) -> Markup:
    """One line without a paragraph around it."""
    return Markup(_markdown_renderer().renderInline(text))


def _method_choices(looks_of_models: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What can be chosen above the figures: methods, each with the label that shows its look."""
    names = dict.fromkeys(str(model["method"]) for model in looks_of_models)
    of = {name: [model["label"] for model in looks_of_models if model["method"] == name] for name in names}
    return [{"name": name, "label": labels[0], "seeds": len(labels)} for name, labels in of.items()]


def _image_data_uri(path: Path) -> str:
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
