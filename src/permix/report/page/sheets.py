"""What a run asked, laid out: a row for each persona (the first for none), a column for each question that it was asked.

Contract: from `asked.json` and the records alone. In a grid all rows have the same columns; PersonaGym asks every persona its own
questions, and an interview in an order of its own. A question that was asked has a column, whether or not an answer came.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from permix.evals.answers import questions_asked
from permix.evals.stability import StabilityGrid
from permix.evals.stats import sample_mean
from permix.recorded import Brief
from permix.records import read_json
from permix.report.judged import GYM, INTERVIEW, OPEN, TITLES
from permix.report.runs import Run
from permix.types import CellKey, digest

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
