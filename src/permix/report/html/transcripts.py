"""Writes every cell of a report for readers to look up: grids of scores in the page, and transcripts in separate files.

Contract: text from a model, a pool or a task is made printable (`permix.sanitize`). A very long text is cut, with the number of
cut characters, and the page names the records that contain all of it. Records are read once, a tile at a time, and are not kept
in memory. A cell without a record is absent, which distinguishes it from a cell without a score.

A sheet has a row for each persona (the baseline first) and a column for each question, from `grid.json` and the records. In a
grid all rows have the same columns; PersonaGym asks each persona its own questions, and an interview has an order of its own. A
question that was asked has a column even when no answer came.

Each sheet is cut into tiles. The tile of (row, column) is `KEY-I-J` with I = row // rows and J = column // columns, so the page
finds it without an index. A file is one call, `permix.cells("KEY-I-J", "base64 of gzip of JSON")`, because a page opened from
disk can load data only through <script src>; foreign text is in it only as base64. The same records give the same bytes.
"""

import base64
import gzip
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic_core import to_json

from permix.evals.fidelity_records import read_asked_questions
from permix.evals.stability import StabilityGrid
from permix.metrics.statistics import mean_over_samples
from permix.progress import ProgressBar, progress_bar
from permix.report.html.values import unique_display_names
from permix.report.judges import INTERVIEW_KIND, KIND_TITLES, OPEN_ENDED_KIND, PERSONAGYM_KIND
from permix.report.runs import ModelRuns, Run
from permix.sanitize import escape_control
from permix.storage.cells import CellSummary
from permix.storage.files import guard_writes
from permix.types import Cell, CellKey, digest

_CELLS_FOLDER = "cells"

_MAX_TILE_BYTES = 600_000
"""Largest size of a tile's records in bytes, about 200 KB as a file. A single cell of the sheet may be larger."""

_TILE_FILES = re.compile(r"(stability|open|gym|interview)-\d+-\d+-\d+\.js")


class Tiling(NamedTuple):
    """Numbers of rows and columns of a tile."""

    rows: int
    columns: int


def choose_tiling(bytes_R_C: NDArray[np.int64], max_bytes: int = _MAX_TILE_BYTES) -> Tiling:
    """The largest tile for which no tile holds more than `max_bytes` bytes. The whole sheet is halved until
    this is true.
    """
    rows, columns = (max(1, one) for one in bytes_R_C.shape)
    while (rows, columns) != (1, 1) and _largest_tile_bytes(bytes_R_C, rows, columns) > max_bytes:
        if rows >= columns:
            rows = -(-rows // 2)
        else:
            columns = -(-columns // 2)
    return Tiling(rows, columns)


def _largest_tile_bytes(bytes_R_C: NDArray[np.int64], rows: int, columns: int) -> int:
    if bytes_R_C.size == 0:
        return 0
    by_row = np.add.reduceat(bytes_R_C, np.arange(0, bytes_R_C.shape[0], rows), axis=0)
    return int(np.add.reduceat(by_row, np.arange(0, bytes_R_C.shape[1], columns), axis=1).max())


def gzip_base64(raw: bytes, level: int = 6) -> str:
    """Base64 of gzip; `unpack` in cells.js reverses it."""
    return base64.b64encode(gzip.compress(raw, compresslevel=level, mtime=0)).decode("ascii")


def gzip_base64_json(value: Any, level: int = 6) -> str:
    return gzip_base64(to_json(value), level)


_TILE_LEVEL = 1
"""Level of the compression of tiles. On made-up answers, level 6 takes four times as long for an eighth fewer bytes."""


def write_tile(folder: Path, name: str, value: Any) -> int:
    """Write a tile, and return its size in bytes."""
    text, path = f'permix.cells("{name}","{gzip_base64_json(value, _TILE_LEVEL)}");\n', folder / f"{name}.js"
    with guard_writes(path):
        return path.write_bytes(text.encode("ascii"))


def remove_stale_tiles(folder: Path) -> None:
    """Delete the tiles of an earlier report. Files with other names are kept."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if _TILE_FILES.fullmatch(path.name):
            path.unlink()


_STABILITY_KIND = "stability"

_SHEET_NAMES = {_STABILITY_KIND: "stability", OPEN_ENDED_KIND: "open", PERSONAGYM_KIND: "gym", INTERVIEW_KIND: "interview"}
"""Name of the sheet in the page and in its files' names, by kind of run."""

_SHEET_TITLES = {_STABILITY_KIND: "questions with checkable answers", **KIND_TITLES}


NOT_ASKED_BYTE, NO_SCORE_BYTE, FULL_SCORE_BYTE = 254, 255, 240
"""Bytes of a grid: a cell that was not asked, a cell without a score, and a mean score of 1.

A mean score is 0 to FULL_SCORE_BYTE, which is a multiple of 2, 3, 4, 5, 6, 8, 10, 12 and 15, so means of that many samples are
exact.
"""


class TranscriptSheet(NamedTuple):
    """The cells of one run of one model.

    `label` is the model's name on the page. `questions_by_row` holds the questions of each row in the order of its columns.
    `fingerprint` distinguishes the transcripts of these records from those of other records.
    """

    label: str
    kind: str
    tile_prefix: str
    run: Run
    personas: tuple[str | None, ...]
    questions_by_row: tuple[tuple[str, ...], ...]
    fingerprint: str

    @property
    def has_shared_columns(self) -> bool:
        """Whether all rows have the same columns."""
        return all(row == self.questions_by_row[0] for row in self.questions_by_row)

    def cell_keys(self, row: int, column: int) -> Iterator[CellKey]:
        """Yield the keys of the recorded cells at this row and column: all templates, contexts and samples, in order."""
        persona, question, answers = self.personas[row], self.questions_by_row[row][column], self.run.grid_results
        templates, contexts = (("",), ("",)) if persona is None else (answers.templates, answers.contexts)
        for template, context, sample in product(templates, contexts, range(answers.samples)):
            key = CellKey(persona, question, sample, template, context)
            if key in self.run.cell_summaries:
                yield key


def build_sheet(label: str, kind: str, run: Run, model_index: int) -> TranscriptSheet:
    """The sheet of a run of this kind. `label` is the model's name on the page; `model_index` is its index, from 0."""
    answers = run.grid_results
    grid = run.grid
    own: dict[str | None, tuple[str, ...]] = {persona: tuple(turns) for persona, turns in grid.get("turns_asked", {}).items()}
    for question in read_asked_questions(run.path):
        if question.persona_id is not None and kind == PERSONAGYM_KIND:
            own[question.persona_id] = (*own.get(question.persona_id, ()), question.id)
    baseline = tuple(grid.get("asked_without_persona", ()) if kind != _STABILITY_KIND else answers.question_ids)
    rows: dict[str | None, tuple[str, ...]] = {None: baseline} if baseline else {}
    rows |= {persona: own.get(persona, answers.question_ids) for persona in answers.persona_ids}
    questions = tuple(rows.values())
    stamp = digest(label, kind, json.dumps(questions), str(sum(map(_file_size, run.record_paths))))
    return TranscriptSheet(label, kind, f"{_SHEET_NAMES[kind]}-{model_index}", run, tuple(rows), questions, stamp)


def _records_text(run: Run) -> str:
    """The file of records, or a pattern for those of several workers."""
    one, *more = run.record_paths
    return str(run.path / "records*.jsonl") if more else str(one)


def _file_size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def record_bytes(sheet: TranscriptSheet, max_bytes: int) -> NDArray[np.int64]:
    """The bytes of the records at each row and column [rows, columns]; no record counts for more than `max_bytes`."""
    bytes_R_C = np.zeros((len(sheet.personas), max(map(len, sheet.questions_by_row), default=0)), dtype=np.int64)
    grid: dict[CellKey, CellSummary] = sheet.run.cell_summaries
    for row, questions in enumerate(sheet.questions_by_row):
        for column in range(len(questions)):
            bytes_R_C[row, column] = sum(min(grid[key].length, max_bytes) for key in sheet.cell_keys(row, column))
    return bytes_R_C


def grid_bytes(run: Run, grid: StabilityGrid) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Mean scores as bytes, with personas [P, Q] and without [Q].

    A byte is 0 to FULL_SCORE_BYTE, NO_SCORE_BYTE, or NOT_ASKED_BYTE in a run with adaptive allocation.
    """
    mean_P_Q, baseline_Q = mean_over_samples(grid.correct_P_Q_S), mean_over_samples(grid.baseline_Q_S)
    bytes_P_Q, start = _means_to_bytes(mean_P_Q), 0
    for one in run.rounds:
        asked_P = np.isin(np.array(grid.persona_ids, dtype=object), np.array(one.personas, dtype=object))
        bytes_P_Q[~asked_P, start : one.until] = NOT_ASKED_BYTE
        start = one.until
    return bytes_P_Q, _means_to_bytes(baseline_Q)


def _means_to_bytes(mean: NDArray[np.float64]) -> NDArray[np.uint8]:
    return np.where(np.isnan(mean), NO_SCORE_BYTE, np.round(np.nan_to_num(mean) * FULL_SCORE_BYTE)).astype(np.uint8)


_MAX_TEXT_CHARS = 20_000
"""Largest number of characters of one text in a transcript."""

_PROGRESS_MIN_CELLS = 50_000
"""Number of cells from which progress is shown."""


def write_transcripts(models: Sequence[ModelRuns], out: Path) -> dict[str, Any]:
    """Write the tiles into `out`/cells, and return the page's part: "grids" by the model's name on the page, and "sheets".

    A sheet gives the prefix of its tiles' file names (`key`), its rows (null is the baseline) and its questions, compressed: one
    list that all rows share, or a list for each row. A grid gives the index of its sheet.
    """
    folder = out / _CELLS_FOLDER
    with guard_writes(folder):
        folder.mkdir(parents=True, exist_ok=True)
    remove_stale_tiles(folder)
    names = unique_display_names(model.label for model in models)
    sheets = [
        build_sheet(names[model.label], kind, model.runs[kind], index)
        for index, model in enumerate(models)
        for kind in _SHEET_NAMES
        if kind in model.runs
    ]
    cells = sum(len(sheet.run.cell_summaries) for sheet in sheets)
    with progress_bar("transcripts", cells, "cells", min_total=_PROGRESS_MIN_CELLS) as progress:
        sheets_json = [_sheet_json(sheet, _write_tiles(sheet, folder, progress)) for sheet in sheets]
    return {"sheets": sheets_json, "grids": _grids_json({names[model.label]: model for model in models}, sheets)}


def _grids_json(models: Mapping[str, ModelRuns], sheets: Sequence[TranscriptSheet]) -> dict[str, Any]:
    sheet_index = {sheet.label: index for index, sheet in enumerate(sheets) if sheet.kind == _STABILITY_KIND}
    grids = {}
    for label, model in models.items():
        if model.grid is not None:
            run = model.runs[_STABILITY_KIND]
            bytes_P_Q, bytes_Q = grid_bytes(run, model.grid)
            grids[label] = {
                "sheet": sheet_index[label],
                "mean": gzip_base64(bytes_P_Q.tobytes()),
                "baseline": gzip_base64(bytes_Q.tobytes()),
                "opening": run.rounds[0].until if run.rounds else len(model.grid.question_ids),
            }
    return grids


def _sheet_json(sheet: TranscriptSheet, tile: Tiling) -> dict[str, Any]:
    rows = [
        list(map(escape_control, row))
        for row in (sheet.questions_by_row[:1] if sheet.has_shared_columns else sheet.questions_by_row)
    ]
    return {
        "label": sheet.label,
        "kind": _SHEET_NAMES[sheet.kind],
        "title": _SHEET_TITLES[sheet.kind],
        "key": sheet.tile_prefix,
        "stamp": sheet.fingerprint,
        "tile": list(tile),
        "personas": [None if one is None else escape_control(one) for one in sheet.personas],
        "questions": gzip_base64_json(rows[0] if sheet.has_shared_columns and rows else rows),
        "templates": _template_texts(sheet.run),
        "contexts": [escape_control(one) for one in sheet.run.grid_results.contexts if one],
        "samples": sheet.run.grid_results.samples,
        "without_system": _no_system_message_text(sheet.run),
        "records": escape_control(_records_text(sheet.run)),
    }


def _write_tiles(sheet: TranscriptSheet, folder: Path, progress: ProgressBar) -> Tiling:
    tile = choose_tiling(record_bytes(sheet, 3 * _MAX_TEXT_CHARS))
    width = max(map(len, sheet.questions_by_row), default=0)
    for top in range(0, len(sheet.personas), tile.rows):
        for left in range(0, width, tile.columns):
            content = _tile_json(sheet, range(top, top + tile.rows), range(left, left + tile.columns))
            write_tile(folder, f"{sheet.tile_prefix}-{top // tile.rows}-{left // tile.columns}", content)
            progress.advance(len(content["cells"]))
    return tile


def _tile_json(sheet: TranscriptSheet, rows: range, columns: range) -> dict[str, Any]:
    """The cells of a tile, persona by persona. Each prompt is in `texts` once, and messages refer to it by its index."""
    text_index: dict[str, int] = {}
    cells = [_cell_json(cell, text_index) for cell in _read_cells(sheet, rows, columns)]
    return {"stamp": sheet.fingerprint, "texts": [_cut_text(text) for text in text_index], "cells": cells}


def _read_cells(sheet: TranscriptSheet, rows: range, columns: range) -> Iterator[Cell]:
    for row in range(rows.start, min(rows.stop, len(sheet.personas))):
        for column in range(columns.start, min(columns.stop, len(sheet.questions_by_row[row]))):
            for key in sheet.cell_keys(row, column):
                yield sheet.run.grid_results.read_cell(key)


def _cell_json(cell: Cell, text_index: dict[str, int]) -> dict[str, Any]:
    """A cell for the page; values that are None are left out. The texts of its messages are added to `text_index`."""
    verdict, completion, failure = cell.verdict, cell.completion, cell.failure
    shown: dict[str, Any] = {
        "persona": None if cell.persona_id is None else escape_control(cell.persona_id),
        "question": escape_control(cell.question_id),
        "sample": cell.sample,
        "messages": [
            [escape_control(message["role"]), text_index.setdefault(message["content"], len(text_index))]
            for message in cell.messages
        ],
    }
    if verdict is not None:
        shown["judged"] = True
    if cell.template:
        shown["template"] = escape_control(cell.template)
    if cell.context:
        shown["context"] = escape_control(cell.context)
    _add_text(shown, "gold", cell.gold)
    if completion is not None:
        answer, thinking, is_unclosed = completion.parts
        shown["text"] = _cut_text(answer)
        _add_text(shown, "thinking", thinking or None)
        if is_unclosed:
            shown["unclosed"] = True
        numbers = {"finish": completion.finish, "read": completion.prompt_tokens, "written": completion.completion_tokens}
        shown |= {name: value for name, value in numbers.items() if value is not None}
    if verdict is not None:
        if verdict.correct is not None:
            shown["correct"] = verdict.correct
        _add_text(shown, "extracted", verdict.extracted)
        _add_text(shown, "error", verdict.error)
    if failure is not None:
        shown["failure"] = [escape_control(failure.type), _cut_text(failure.message)]
    return shown


def _add_text(shown: dict[str, Any], name: str, text: str | None) -> None:
    if text is not None:
        shown[name] = _cut_text(text)


def _cut_text(text: str) -> Any:
    """Printable text; for a very long text, [its beginning, the number of characters that follow]."""
    if len(text) <= _MAX_TEXT_CHARS:
        return escape_control(text)
    return [escape_control(text[:_MAX_TEXT_CHARS]), len(text) - _MAX_TEXT_CHARS]


def _template_texts(run: Run) -> dict[str, str]:
    return {escape_control(name): escape_control(text) for name, text in run.grid.get("templates", {}).items()}


def _no_system_message_text(run: Run) -> str:
    """What a prompt without a system message contained, in words."""
    identity = run.provenance.get("identity", {})
    if "default_system" not in identity:
        return "No system message was sent; whether the chat template adds one was not recorded."
    text = identity["default_system"]
    if not text:
        return "No system message was sent, and the chat template is not known to add one."
    return f"No system message was sent; the chat template then adds its own: “{escape_control(text)}”"
