"""Every cell of a report as a reader can look it up: grids of scores for the page, transcripts in files beside it.

Contract: whatever a model, a pool or a task wrote is visible text (`permix.escape`); a text that is very long is cut, says by how
much, and the page names the records that have all of it. Records are read once, a tile at a time, and none is kept. Cells without
a record are told from those without a score by not being there.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from permix.escape import visible
from permix.progress import Meter, meter
from permix.records import read_json
from permix.report.page.chunks import FOLDER, Tiling, pack, pack_json, remove_stale, tiling, write_chunk
from permix.report.page.plain import names
from permix.report.page.sheets import NAMES, STABILITY, WORDS, Sheet, shade, sheet_of, weights
from permix.report.runs import ModelRuns, Run
from permix.types import Cell

MOST_CHARACTERS = 20_000
"""Of one text of a transcript."""
LONG = 50_000
"""Cells from which on progress is shown."""


def write_transcripts(models: Sequence[ModelRuns], out: Path) -> dict[str, Any]:
    """Write `out`/cells; what the page carries of them: "grids" by model's name on the page, "sheets" to find transcripts by.

    A sheet names its tiles' files (`key`), its rows (null: no persona) and, packed, its rows' columns: one list that all rows
    share, or a list of lists. A grid has the number of its sheet.
    """
    folder = out / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    remove_stale(folder)
    shown = names(model.label for model in models)
    sheets = [
        sheet_of(shown[model.label], kind, model.runs[kind], place)
        for place, model in enumerate(models)
        for kind in NAMES
        if kind in model.runs
    ]
    cells = sum(len(sheet.run.grid) for sheet in sheets)
    with _shown(cells) as progress:
        told = [_sheet(sheet, _write(sheet, folder, progress)) for sheet in sheets]
    return {"sheets": told, "grids": _grids({shown[model.label]: model for model in models}, sheets)}


def _shown(cells: int) -> AbstractContextManager[Meter | None]:
    return meter("transcripts", cells, "cells") if cells >= LONG else contextlib.nullcontext()


def _grids(models: Mapping[str, ModelRuns], sheets: Sequence[Sheet]) -> dict[str, Any]:
    number = {sheet.label: place for place, sheet in enumerate(sheets) if sheet.kind == STABILITY}
    grids = {}
    for label, model in models.items():
        if model.grid is not None:
            run = model.runs[STABILITY]
            bytes_P_Q, bytes_Q = shade(run, model.grid)
            grids[label] = {
                "sheet": number[label],
                "mean": pack(bytes_P_Q.tobytes()),
                "baseline": pack(bytes_Q.tobytes()),
                "opening": run.rounds[0].until if run.rounds else len(model.grid.question_ids),
            }
    return grids


def _sheet(sheet: Sheet, tile: Tiling) -> dict[str, Any]:
    rows = [list(map(visible, row)) for row in (sheet.questions[:1] if sheet.alike else sheet.questions)]
    return {
        "label": sheet.label,
        "kind": NAMES[sheet.kind],
        "title": WORDS[sheet.kind],
        "key": sheet.key,
        "stamp": sheet.stamp,
        "tile": list(tile),
        "personas": [None if one is None else visible(one) for one in sheet.personas],
        "questions": pack_json(rows[0] if sheet.alike and rows else rows),
        "templates": _templates(sheet.run),
        "samples": sheet.run.answers.samples,
        "without_system": _without_system(sheet.run),
        "records": visible(str(sheet.run.path / "records.jsonl")),
    }


def _write(sheet: Sheet, folder: Path, progress: Meter | None) -> Tiling:
    tile = tiling(weights(sheet, 3 * MOST_CHARACTERS))
    width = max(map(len, sheet.questions), default=0)
    for top in range(0, len(sheet.personas), tile.rows):
        for left in range(0, width, tile.columns):
            told = _tile(sheet, range(top, top + tile.rows), range(left, left + tile.columns))
            write_chunk(folder, f"{sheet.key}-{top // tile.rows}-{left // tile.columns}", told)
            if progress is not None:
                progress.advance(len(told["cells"]))
    return tile


def _tile(sheet: Sheet, rows: range, columns: range) -> dict[str, Any]:
    """Its cells, persona by persona. A prompt stands in `texts` once, and messages name it by its place there."""
    places: dict[str, int] = {}
    cells = [_told(cell, places) for cell in _cells(sheet, rows, columns)]
    return {"stamp": sheet.stamp, "texts": [_text(one) for one in places], "cells": cells}


def _cells(sheet: Sheet, rows: range, columns: range) -> Iterator[Cell]:
    for row in range(rows.start, min(rows.stop, len(sheet.personas))):
        for column in range(columns.start, min(columns.stop, len(sheet.questions[row]))):
            for key in sheet.keys(row, column):
                yield sheet.run.answers.read(key)


def _told(cell: Cell, places: dict[str, int]) -> dict[str, Any]:
    """A cell for the page; what is None is left out. `places`: of the texts so far, gains this cell's."""
    verdict, completion, failure = cell.verdict, cell.completion, cell.failure
    messages = [[visible(message["role"]), places.setdefault(message["content"], len(places))] for message in cell.messages]
    told: dict[str, Any] = {
        "persona": None if cell.persona_id is None else visible(cell.persona_id),
        "question": visible(cell.question_id),
        "sample": cell.sample,
        "messages": messages,
    }
    more: dict[str, Any] = {"template": visible(cell.template) or None, "gold": _maybe(cell.gold)}
    if completion is not None:
        more |= {
            "text": _text(completion.text),
            "finish": completion.finish,
            "read": completion.prompt_tokens,
            "written": completion.completion_tokens,
        }
    if verdict is not None:
        more |= {"correct": verdict.correct, "extracted": _maybe(verdict.extracted), "error": _maybe(verdict.error)}
        told["judged"] = True
    if failure is not None:
        more["failure"] = [visible(failure.type), _text(failure.message)]
    return told | {name: value for name, value in more.items() if value is not None}


def _maybe(text: str | None) -> Any:
    return None if text is None else _text(text)


def _text(text: str) -> Any:
    """Visible text; of a very long one [its beginning, how many characters follow]."""
    if len(text) <= MOST_CHARACTERS:
        return visible(text)
    return [visible(text[:MOST_CHARACTERS]), len(text) - MOST_CHARACTERS]


def _templates(run: Run) -> dict[str, str]:
    path = run.path / "asked.json"
    crossed = read_json(path).get("templates", {}) if path.exists() else {}
    return {visible(name): visible(text) for name, text in crossed.items()}


def _without_system(run: Run) -> str:
    """What a prompt without a system message carried."""
    identity = run.provenance.get("identity", {})
    if "default_system" not in identity:
        return "No system message was sent; whether the chat template adds one was not recorded."
    text = identity["default_system"]
    if not text:
        return "No system message was sent, and the chat template is not known to add one."
    return f"No system message was sent; the chat template then adds its own: “{visible(text)}”"
