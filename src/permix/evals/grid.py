"""The grid: every persona and no persona × every question × every sample, asked once, kept for ever.

Where personas are brought in by several templates, these are one factor more; no persona has no wording and is asked once.

A cell on disk is used again when it was asked in the same words with the same seed. A cell whose completion is there but whose
verdict is missing is judged again, not generated again. What could not be answered or judged stays owed.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from permix.config import ModelConfig
from permix.inference.base import Model
from permix.metrics.statistics import Array
from permix.personas.pool import PersonaPool
from permix.progress import meter, say
from permix.prompts import build_messages, template_id, template_text
from permix.storage.cells import Brief, Records, briefs_of, read_cells
from permix.storage.files import read_json
from permix.storage.run_dir import RunDir, refuse_other_words
from permix.tasks.contamination import read_seen
from permix.types import Cell, CellKey, Failure, Persona, Question, Request, Sampling, Verdict, digest, seed_from

Judge = Callable[[str, str], Verdict]
"""(completion, gold) -> verdict."""


class Wording(NamedTuple):
    """How questions are put. `crossed`: templates that every persona is brought in by in turn, in place of `template`."""

    prompt: Callable[[Question], str]
    template: str
    bare: bool
    crossed: tuple[str, ...] = ()

    def templates(self, persona: Persona | None) -> dict[str, str]:
        """What a persona is brought in by, under what stands for it in the records."""
        if persona is None or not self.crossed:
            return {"": self.template}
        return {template_id(template): template for template in self.crossed}


def lay_out(
    personas: Sequence[Persona | None], questions: Sequence[Question], wording: Wording, *, samples: int, seed: int
) -> list[Cell]:
    """Every cell of the grid, unanswered, personas outermost, each with a seed of its own."""
    return [
        Cell(
            persona_id=persona.id if persona else None, question_id=question.id, sample=sample, template=name,
            seed=seed_from("cell", seed, persona.id if persona else "", question.id, sample, *([name] if name else [])),
            messages=build_messages(persona, wording.prompt(question), template=template, bare=wording.bare),
            gold=question.gold or None,
        )
        for persona in personas
        for name, template in wording.templates(persona).items()
        for question in questions
        for sample in range(samples)
    ]  # fmt: skip


def note_seen_personas(model: ModelConfig, pool: PersonaPool) -> None:
    """Say when some of the personas are not held out: allowed, but another measurement."""
    known = read_seen(Path(model.name)).personas & {persona.id for persona in pool.personas}
    if known:
        say(f"note: the model was trained under {len(known)} of these {len(pool)} personas, such as {min(known)}")


def describe_asked(
    personas: Sequence[Persona], questions: Sequence[Question], samples: int, templates: Sequence[str] = ()
) -> dict[str, object]:
    """What was asked, by id and by content: cells without a record are known to be missing, and data can be told apart."""
    crossed = {"templates": {template_id(one): template_text(one) for one in templates}} if templates else {}
    return crossed | {
        "persona_ids": [persona.id for persona in personas],
        "question_ids": [question.id for question in questions],
        "samples": samples,
        "personas": digest(*(persona.model_dump_json() for persona in personas)),
        "questions": digest(*(question.content_hash for question in questions)),
    }


class Answers(NamedTuple):
    """The records of a run, and which of them are its grid. `choosing_...`: whom and by what a persona was searched for.

    `templates`: what personas were brought in by, as their cells name it.
    """

    cells: Mapping[CellKey, Cell]
    persona_ids: tuple[str, ...]
    question_ids: tuple[str, ...]
    samples: int
    choosing_persona_ids: tuple[str, ...] = ()
    choosing_question_ids: tuple[str, ...] = ()
    templates: tuple[str, ...] = ("",)

    @property
    def grid(self) -> dict[CellKey, Brief]:
        """The recorded cells of the grid alone, in brief."""
        personas, questions = {None, *self.persona_ids}, set(self.question_ids)
        return {
            key: brief
            for key, brief in briefs_of(self.cells).items()
            if key.persona_id in personas and key.question_id in questions and key.sample < self.samples
            if key.template in (("",) if key.persona_id is None else self.templates)
        }

    def get(self, persona_id: str | None, question_id: str, sample: int) -> Cell | None:
        return self.cells.get(CellKey(persona_id, question_id, sample))

    def read(self, key: CellKey) -> Cell:
        """A cell that is not kept in memory."""
        return self.cells.read(key) if isinstance(self.cells, Records) else self.cells[key]

    def scores(self, persona_ids: Sequence[str | None], question_ids: Sequence[str]) -> Array:
        """correct_P_Q_S: 1 right, 0 wrong, NaN without a score.

        Several templates make as many times the samples, template by template; no persona has none of them.
        """
        briefs, unknown = briefs_of(self.cells), Brief(None, False, None, 0)
        templates = ("",) if None in persona_ids else self.templates
        table = [
            briefs.get(CellKey(persona, question, sample, template), unknown).reward
            for persona in persona_ids
            for question in question_ids
            for template in templates
            for sample in range(self.samples)
        ]
        shape = len(persona_ids), len(question_ids), len(templates) * self.samples
        return np.array(table, dtype=np.float64).reshape(shape)  # None becomes NaN


def scores_of(answers: Answers) -> tuple[Array, Array]:
    """The grid's scores, with personas [P, Q, S] and without [Q, S]."""
    return answers.scores(answers.persona_ids, answers.question_ids), answers.scores([None], answers.question_ids)[0]


def read_answers(run: Path) -> Answers:
    """The records of a run directory; cells that were asked but have no record lie in its grid all the same."""
    cells = read_cells(run / "records.jsonl")
    if not (run / "asked.json").exists():
        return Answers(
            cells,
            tuple(dict.fromkeys(key.persona_id for key in cells if key.persona_id is not None)),
            tuple(dict.fromkeys(key.question_id for key in cells)),
            1 + max((key.sample for key in cells), default=0),
            templates=tuple(dict.fromkeys(key.template for key in cells if key.persona_id is not None)) or ("",),
        )
    asked = read_json(run / "asked.json")
    lists = [
        tuple(asked.get(name, ())) for name in ("persona_ids", "question_ids", "choosing_persona_ids", "choosing_question_ids")
    ]
    templates = tuple(asked.get("templates", ("",)))
    return Answers(cells, lists[0], lists[1], asked["samples"], lists[2], lists[3], templates)


def fill(model: Model, asked: Sequence[Cell], sampling: Sampling, run: RunDir, judge: Judge | None, what: str) -> int:
    """Answer and judge what is owed of `asked`; returns how many cells are still owed at the end.

    A cell without gold, or any with `judge=None`, is open-ended: its answer is its result, without a verdict. Raises ConfigError
    when the run on disk asked a cell in other words.
    """
    known = run.cells()
    refuse_other_words(known, asked)
    owed = [cell for cell in asked if not _is_done(known.get(cell.key), judge)]
    unjudged = [known[cell.key] for cell in owed if _has_completion(known.get(cell.key))]
    unanswered = [cell for cell in owed if not _has_completion(known.get(cell.key))]
    finished = failed = 0
    with meter(what, len(asked), "cells") as shown:
        shown.start_at(len(asked) - len(owed))
        for cell in _answered(model, unanswered, unjudged, sampling):
            tried = _judged(cell, judge)
            run.append([tried])
            finished += _is_done(tried, judge)
            failed += not _is_done(tried, judge)
            shown.advance(note=f"{failed} without a result" if failed else "")
    return len(owed) - finished


def _has_completion(cell: Cell | None) -> bool:
    return cell is not None and cell.completion is not None


def _is_done(cell: Cell | None, judge: Judge | None) -> bool:
    if cell is None or cell.completion is None:
        return False
    return judge is None or cell.gold is None or (cell.verdict is not None and cell.verdict.correct is not None)


def _answered(model: Model, unanswered: Sequence[Cell], unjudged: Sequence[Cell], sampling: Sampling) -> Iterator[Cell]:
    yield from unjudged
    if not unanswered:
        return
    for index, result in model.complete([Request(cell.messages, cell.seed) for cell in unanswered], sampling):
        part = "failure" if isinstance(result, Failure) else "completion"
        yield unanswered[index].model_copy(update={part: result})


def _judged(cell: Cell, judge: Judge | None) -> Cell:
    if judge is None or cell.gold is None or cell.completion is None:
        return cell
    return cell.model_copy(update={"verdict": judge(cell.completion.text, cell.gold)})
