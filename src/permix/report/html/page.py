"""Writes the HTML page: one file that opens from disk and contains its styles, scripts and data.

Contract: the page renders a `Document` and the charts' data; nothing is measured here. Text from outside is escaped by the
template, or displayed by scripts as text. The content security policy forbids inline handlers, foreign scripts and any
connection. The page needs no other files but the transcripts (`cells/*.js`); it links to the report's other files. The same input
gives the same bytes.

`RunIndex` describes the run behind each number. Each run is described once, and numbers refer to it by its index. Commands and
paths may be hostile text, so control characters in them are made visible.
"""

import base64
import hashlib
import json
import re
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
from permix.report.claim import ResultCard
from permix.report.document import SEEDS_TITLE, Document, DocumentPart, DocumentSection, Folded
from permix.report.excerpts import command_text, seed_text, settings_hash
from permix.report.runs import ModelRuns, Run
from permix.sanitize import escape_control, truncate
from permix.storage.files import write_text
from permix.storage.run_dir import revisions_text
from permix.types import Estimate

_MAX_FACT_CHARS = 2000


class RunIndex:
    """Every run of a report, by the source that numbers name."""

    def __init__(self, models: Sequence[ModelRuns]) -> None:
        runs = [(model.label, kind, run) for model in models for kind, run in model.runs_with_judges.items()]
        self.facts = [_run_facts(label, kind, run) for label, kind, run in runs]
        self._index_of = {SourceRun(label, kind): index for index, (label, kind, _) in enumerate(runs)}

    def indices(self, sources: Sequence[SourceRun]) -> list[int]:
        """The indices of those sources that are runs of this report."""
        # A number of one run names "KIND, STRATEGY", and the run may be listed under KIND alone.
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
        "revision": revisions_text(run.provenance),
        "created": str(run.provenance.get("created") or ""),
    }
    return {name: truncate(escape_control(text).replace("\n", " "), _MAX_FACT_CHARS) for name, text in facts.items()}


FIRST_SCRIPTS = ("vendor/d3.min.js", "vendor/plot.umd.min.js", "base.js", "tables.js")
"""Scripts at the beginning of every page. The scripts of the charts follow, then main.js."""

LAST_SCRIPT, FIRST_STYLESHEET = "main.js", "page.css"

TRANSCRIPT_CHARTS = {"grid": "grids", "completions": "sheets"}
"""Charts that are drawn from the transcripts, and the part of the transcripts that each one needs."""

_MIN_FILTERABLE_ROWS = 8
"""Number of rows from which a table gets a filter."""

_MAX_UNBROKEN_CHARS = 22
"""Number of characters up to which a heading is kept on one line."""

_MIN_BAR_REACH = 0.1
"""Smallest difference at the ends of a card's bar, as a share of the possible range, so that small differences look small."""


def write_page(
    path: Path,
    document: Document,
    charts: Mapping[str, Any],
    looks_of_models: Sequence[Mapping[str, Any]],
    runs: RunIndex,
    tags: Mapping[str, Sequence[str]],
    transcripts: Mapping[str, Any],
) -> None:
    """Write the page.

    `charts`: the data of each chart, by its name. `looks_of_models`: colour, mark and line of each model. `tags`: the tags of
    each persona, by the persona's id in tables. `transcripts`: what `write_transcripts` returned.
    """
    script = page_scripts()
    data = {"models": list(looks_of_models), "charts": dict(charts), "runs": runs.facts} | dict(transcripts)
    available_charts = {*charts, *(name for name, part in TRANSCRIPT_CHARTS.items() if transcripts[part])}
    view = _PageView(runs, tags, available_charts, path.parent)
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
            subject=render_inline(document.subject),
            support=render_inline(document.claim.support),
            caption=render_prose(document.caption),
            warnings=render_prose(document.warnings),
            details=render_prose(document.details),
            footnotes=render_prose(document.footnotes),
            short_warnings=[render_inline(one) for one in document.short_warnings],
            cards=card_views(document.claim.cards),
            front=list(view.parts(document.front_figures)),
            main=view.split_table(document.main_table),
            seeds=None if document.seed_table is None else view.table(document.seed_table),
            seeds_title=SEEDS_TITLE,
            methods=_method_choices(looks_of_models),
            sections=[view.section(one) for one in document.sections],
        )
    )
    write_text(path, page)


class _PageView:
    """A document as plain dicts for the template. A chart that replaces several figures is shown once."""

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
            elif isinstance(part, Folded):
                yield {"kind": "folded", "title": part.title, "html": render_prose(part.text)}
            elif isinstance(part, Table):
                yield {"kind": "table"} | self.table(part)
            elif part.chart not in self.available_charts and not part.is_missing:
                yield {"kind": "picture", "source": _image_data_uri(self.folder / part.file), "what": part.description}
            elif part.chart in self.available_charts and part.chart not in self.used_charts:
                self.used_charts.add(part.chart)
                yield {"kind": "chart", "name": part.chart, "file": "report.md" if part.is_missing else part.file}

    def split_table(self, table: Table) -> list[dict[str, Any]]:
        """The table without its folded columns, then, if it has any, the table of these; both name the rows."""
        folded = [heading in table.folded for heading in table.headings]
        parts = []
        for hidden in (False, True):
            columns = [at for at, one in enumerate(folded) if at < table.n_label_columns or one == hidden]
            part = table._replace(
                headings=tuple(table.headings[at] for at in columns),
                rows=tuple(tuple(row[at] for at in columns) for row in table.rows),
            )
            parts.append(self.table(part) | {"id": f"{table.name}-rest" if hidden else table.name})
        return parts if any(folded) else parts[:1]

    def table(self, table: Table) -> dict[str, Any]:
        notes, table = table.heading_notes, table.without_shared_notes()
        lines = [self._row(table, line, notes) for line in table.rows]
        numeric = [any(row[column].value is not None for row in table.rows) for column in range(len(table.headings))]
        tags = sorted({tag for line in lines for tag in json.loads(line["tags"] or "[]")})
        return {
            "name": table.name,
            "id": table.name,
            "what": f"table {table.name}",
            "headings": [
                {"text": text, "number": number, "note": note, "long": len(text) > _MAX_UNBROKEN_CHARS}
                for text, number, note in zip(table.headings, numeric, notes, strict=True)
            ],
            "lines": lines,
            "names": table.n_label_columns,
            "tags": tags,
            "filter": len(lines) >= _MIN_FILTERABLE_ROWS or bool(tags),
        }

    def _row(self, table: Table, row: Sequence[TableCell], notes: Sequence[str]) -> dict[str, Any]:
        tags = self.tags.get(row[0].text, ()) if table.headings[0] == "persona" else ()
        cells = [self._cell(cell, f"{table.headings[at]}, {row[0].text}", notes[at]) for at, cell in enumerate(row)]
        return {
            "cells": cells,
            "tags": json.dumps(list(tags), ensure_ascii=False) if tags else "",
            "fixed": bool(row[0].emphasis),
        }

    def _cell(self, cell: TableCell, description: str, heading_note: str) -> dict[str, Any]:
        note = cell.note or heading_note
        run_indices = " ".join(map(str, self.runs.indices(cell.sources)))
        return {
            "text": unbroken_text(cell), "note": cell.note, "mark": cell.emphasis, "value": cell.value, "runs": run_indices,
            "what": f"{description}: {cell.text}" + (f" ({note})" if note else ""),
        }  # fmt: skip


def card_views(cards: Sequence[ResultCard]) -> list[dict[str, Any]]:
    """The cards for the template: their numbers as text, and their bars as positions in percent.

    All bars of differences have one scale, as shares of the possible range, so that their lengths can be compared.
    """
    differences = [(one.difference, one.limits[1] - one.limits[0]) for one in cards if one.difference is not None]
    reaches = [abs(end) / span for one, span in differences for end in (one.low, one.high) if end is not None]
    return [_card_view(card, max([_MIN_BAR_REACH, *reaches])) for card in cards]


def _card_view(card: ResultCard, reach: float) -> dict[str, Any]:
    tone = next((one for one in ("better", "worse") if card.outcome.startswith(one)), "plain")
    decimals = min((one.estimate.decimals for one in card.values), default=None)
    numbers = [
        {
            "name": one.name,
            "text": one.estimate.format_value(decimals) if card.difference else str(one.estimate).replace(", ", ",\u00a0"),
        }
        for one in card.values
    ]
    shown = card.difference if card.difference is not None else card.values[0].estimate if len(card.values) == 1 else None
    view: dict[str, Any] = {
        "title": card.title, "meaning": card.meaning,
        "outcome": card.outcome, "tone": tone, "numbers": numbers, "reason": render_inline(card.reason),
        "difference": "" if card.difference is None else card.difference.format_difference(3).replace(", ", ",\u00a0"),
        "mark": "" if card.mark is None else f"{card.mark.name} {card.mark.estimate.format_value()}", "bar": None,
    }  # fmt: skip
    if shown is not None and shown.value is not None and shown.low is not None and shown.high is not None:
        view["bar"] = _bar(card, shown.value, shown.low, shown.high, reach * (card.limits[1] - card.limits[0]))
    return view


def _bar(card: ResultCard, value: float, low: float, high: float, reach: float) -> dict[str, Any]:
    """The bar of an interval: a difference around 0, up to `reach` on both sides; a value within its limits."""
    mark: float | None = 0.0
    if card.difference is not None:
        start, end, ends = -reach, reach, (f"−{reach:.2f} worse", "0", f"better +{reach:.2f}")
    else:
        (start, end), mark = card.limits, None if card.mark is None else card.mark.estimate.value
        ends = (f"{start:g}", "", f"{end:g}")

    def percent(place: float) -> float:
        return round(100 * (min(max(place, start), end) - start) / (end - start), 2)

    return {
        "low": percent(low), "width": round(percent(high) - percent(low), 2), "value": percent(value),
        "mark": None if mark is None else percent(mark), "ends": ends,
    }  # fmt: skip


_INVISIBLE = re.compile("[\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]")


def page_scripts() -> str:
    """All scripts of the page, in order. Invisible characters are written as escapes, as in all text of the page."""
    drawing = [
        *_assets_with_suffix("charts", ".js"),
        *(name for name in _assets_with_suffix("", ".js") if name not in {*FIRST_SCRIPTS, LAST_SCRIPT}),
    ]
    script = "\n;\n".join(_asset(name).read_text(encoding="utf-8") for name in (*FIRST_SCRIPTS, *drawing, LAST_SCRIPT))
    return _INVISIBLE.sub(lambda match: f"\\u{ord(match[0]):04x}", script)


def page_styles() -> str:
    """All style sheets, the page's own first."""
    sheets = sorted(_assets_with_suffix("", ".css"), key=lambda name: (name != FIRST_STYLESHEET, name))
    return "\n".join(_asset(name).read_text(encoding="utf-8") for name in sheets)


def _assets_with_suffix(folder: str, suffix: str) -> list[str]:
    prefix = f"{folder}/" if folder else ""
    return sorted(prefix + one.name for one in _asset(folder).iterdir() if one.name.endswith(suffix))


def content_security_policy(script: str) -> str:
    """The content security policy: it allows this script and the files of the report, no handlers in markup and no
    connections.
    """
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        f"default-src 'none'; script-src 'sha256-{digest}' 'self'; style-src 'unsafe-inline'; img-src data:; "
        "connect-src 'none'; base-uri 'none'; form-action 'none'"
    )


def embed_json(data: object) -> str:
    """JSON that is safe inside a script element: no "<" can end the element, and no line separator can break a string."""
    plain = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return plain.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


@cache
def _markdown_renderer() -> MarkdownIt:
    """A Markdown renderer without HTML, links and images: a tag in the text stays text, and our own prose has no links or
    images.
    """
    off = ["link", "image", "autolink", "html_inline", "html_block", "reference"]
    return MarkdownIt("commonmark", {"html": False}).disable(off)


def render_prose(text: str) -> Markup:
    """Render our own Markdown, in which foreign text is already escaped, as HTML."""
    return Markup(_markdown_renderer().render(text))


def unbroken_text(cell: TableCell) -> str:
    """The text of a cell, with spaces that keep an interval on one line."""
    return cell.text.replace(", ", ",\u00a0") if isinstance(cell.number, Estimate) else cell.text


def render_inline(text: str) -> Markup:
    """Render one line without a paragraph element."""
    return Markup(_markdown_renderer().renderInline(text))


def _method_choices(looks_of_models: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The methods for the selection above the figures, each with the label whose look it has; none for one method."""
    names = dict.fromkeys(str(model["method"]) for model in looks_of_models)
    if len(names) < 2:
        return []
    labels_of = {name: [model["label"] for model in looks_of_models if model["method"] == name] for name in names}
    return [{"name": name, "label": labels[0], "seeds": len(labels)} for name, labels in labels_of.items()]


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
