"""Every cell of a report as a reader can look it up: grids of scores for the page, transcripts in files beside it.

Contract: whatever a model, a pool or a task wrote is visible text (`permix.sanitize`); a text that is very long is cut,
says by how
much, and the page names the records that have all of it. Records are read once, a tile at a time, and none is kept. Cells without
a record are told from those without a score by not being there.

Files of transcripts beside the page: how a sheet is cut into tiles, what a file holds, which files are ours.

Contract: the tile of (row, column) is `KEY-I-J` with I = row // rows and J = column // columns, so the page finds it without an
index. A file is one call, `permix.cells("KEY-I-J", "base64 of gzip of JSON")`: a page from disk may load that by <script src>
and nothing else, and what others wrote is in it only as base64. The same records give the same bytes.

What a run asked, laid out: a row for each persona (the first for none), a column for each question that it was asked.

Contract: from `asked.json` and the records alone. In a grid all rows have the same columns; PersonaGym asks every persona its own
questions, and an interview in an order of its own. A question that was asked has a column, whether or not an answer came.
"""

import base64
import contextlib
import gzip
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from permix.evals.fidelity_records import questions_asked
from permix.evals.stability import StabilityGrid
from permix.metrics.statistics import sample_mean
from permix.progress import Meter, meter
from permix.report.html.values import names
from permix.report.judges import GYM, INTERVIEW, OPEN, TITLES
from permix.report.runs import ModelRuns, Run
from permix.sanitize import visible
from permix.storage.cells import Brief
from permix.storage.files import read_json
from permix.types import Cell, CellKey, digest

FOLDER = "cells"

MOST_BYTES = 600_000
"""Of the records of one tile: some 200 KB as a file. A single place may hold more."""

_OURS = re.compile(r"(stability|open|gym|interview)-\d+-\d+-\d+\.js")


class Tiling(NamedTuple):
    """Rows and columns of a tile."""

    rows: int
    columns: int


def tiling(bytes_R_C: NDArray[np.int64], most: int = MOST_BYTES) -> Tiling:
    """The largest tile, halved from the whole, none of which holds more than `most` bytes."""
    rows, columns = (max(1, one) for one in bytes_R_C.shape)
    while (rows, columns) != (1, 1) and _fullest(bytes_R_C, rows, columns) > most:
        if rows >= columns:
            rows = -(-rows // 2)
        else:
            columns = -(-columns // 2)
    return Tiling(rows, columns)


def _fullest(bytes_R_C: NDArray[np.int64], rows: int, columns: int) -> int:
    if bytes_R_C.size == 0:
        return 0
    by_row = np.add.reduceat(bytes_R_C, np.arange(0, bytes_R_C.shape[0], rows), axis=0)
    return int(np.add.reduceat(by_row, np.arange(0, bytes_R_C.shape[1], columns), axis=1).max())


def pack(raw: bytes) -> str:
    """base64 of gzip; `unpack` in cells.js is its other half."""
    return base64.b64encode(gzip.compress(raw, compresslevel=6, mtime=0)).decode("ascii")


def pack_json(value: Any) -> str:
    return pack(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode())


def write_chunk(folder: Path, name: str, value: Any) -> int:
    """Write a tile; returns its bytes."""
    text = f'permix.cells("{name}","{pack_json(value)}");\n'
    return (folder / f"{name}.js").write_bytes(text.encode("ascii"))


def remove_stale(folder: Path) -> None:
    """Take away the tiles of an earlier report; files that are not ours by name stay."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if _OURS.fullmatch(path.name):
            path.unlink()


STABILITY = "stability"

NAMES = {STABILITY: "stability", OPEN: "open", GYM: "gym", INTERVIEW: "interview"}
"""By kind of run, what its sheet is called in the page and in the names of its files."""

WORDS = {STABILITY: "questions with checkable answers", **TITLES}


NOT_ASKED, NO_SCORE, RIGHT = 254, 255, 240
"""Bytes of a grid: a mean score is 0 to RIGHT, a multiple of 2, 3, 4, 5, 6, 8, 10, 12 and 15: means of so many are exact."""


class Sheet(NamedTuple):
    """`label`: the model's name on the page; `questions`: of each row, in the order of its columns; `stamp`: tells
    the transcripts of these records from those of others."""

    label: str
    kind: str
    key: str
    run: Run
    personas: tuple[str | None, ...]
    questions: tuple[tuple[str, ...], ...]
    stamp: str

    @property
    def alike(self) -> bool:
        """Whether all rows have the same columns."""
        return all(row == self.questions[0] for row in self.questions)

    def keys(self, row: int, column: int) -> Iterator[CellKey]:
        """The recorded cells of a place: its templates and samples, in order."""
        persona, question, answers = self.personas[row], self.questions[row][column], self.run.answers
        for template in ("",) if persona is None else answers.templates:
            for sample in range(answers.samples):
                key = CellKey(persona, question, sample, template)
                if key in self.run.grid:
                    yield key


def sheet_of(label: str, kind: str, run: Run, place: int) -> Sheet:
    """The cells of a run of this kind; `label` is the model's name on the page, `place` its own, from 0."""
    answers = run.answers
    asked = read_json(run.path / "asked.json") if (run.path / "asked.json").exists() else {}
    own: dict[str | None, tuple[str, ...]] = {one: tuple(turns) for one, turns in asked.get("turns_asked", {}).items()}
    for question in questions_asked(run.path):
        if question.persona_id is not None and kind == GYM:
            own[question.persona_id] = (*own.get(question.persona_id, ()), question.id)
    without = tuple(asked.get("asked_without_persona", ()) if kind != STABILITY else answers.question_ids)
    rows: dict[str | None, tuple[str, ...]] = {None: without} if without else {}
    rows |= {persona: own.get(persona, answers.question_ids) for persona in answers.persona_ids}
    questions = tuple(rows.values())
    stamp = digest(label, kind, json.dumps(questions), str(_size(run.path / "records.jsonl")))
    return Sheet(label, kind, f"{NAMES[kind]}-{place}", run, tuple(rows), questions, stamp)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def weights(sheet: Sheet, most: int) -> NDArray[np.int64]:
    """Bytes of the records at each place [rows, columns], none of them counted for more than `most`."""
    found = np.zeros((len(sheet.personas), max(map(len, sheet.questions), default=0)), dtype=np.int64)
    grid: dict[CellKey, Brief] = sheet.run.grid
    for row, questions in enumerate(sheet.questions):
        for column in range(len(questions)):
            found[row, column] = sum(min(grid[key].length, most) for key in sheet.keys(row, column))
    return found


def shade(run: Run, grid: StabilityGrid) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Mean scores as bytes, with personas [P, Q] and without [Q]: 0 to RIGHT, NO_SCORE, or NOT_ASKED of a run in rounds."""
    mean_P_Q, baseline_Q = sample_mean(grid.correct_P_Q_S), sample_mean(grid.baseline_Q_S)
    bytes_P_Q, begun = _bytes(mean_P_Q), 0
    for one in run.rounds:
        asked_P = np.isin(np.array(grid.persona_ids, dtype=object), np.array(one.personas, dtype=object))
        bytes_P_Q[~asked_P, begun : one.until] = NOT_ASKED
        begun = one.until
    return bytes_P_Q, _bytes(baseline_Q)


def _bytes(mean: NDArray[np.float64]) -> NDArray[np.uint8]:
    return np.where(np.isnan(mean), NO_SCORE, np.round(np.nan_to_num(mean) * RIGHT)).astype(np.uint8)


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
