"""The grid: every persona and no persona × every question × every sample, asked once, kept for ever.

A cell on disk is used again when it was asked in the same words with the same seed. A cell whose completion is there but whose
verdict is missing is judged again, not generated again. What could not be answered or judged stays owed.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from permix.config import ModelConfig
from permix.models.base import Model
from permix.personas.pool import PersonaPool
from permix.progress import meter, say
from permix.prompting import build_messages
from permix.records import RunDir, refuse_other_words
from permix.tasks.overlap import read_seen
from permix.types import Cell, Failure, Persona, Question, Request, Sampling, Verdict, digest, seed_from

Judge = Callable[[str, str], Verdict]
"""(completion, gold) -> verdict."""


class Wording(NamedTuple):
    """How questions are put."""

    prompt: Callable[[Question], str]
    template: str
    bare: bool


def lay_out(
    personas: Sequence[Persona | None], questions: Sequence[Question], wording: Wording, *, samples: int, seed: int
) -> list[Cell]:
    """Every cell of the grid, unanswered, personas outermost, each with a seed of its own."""
    return [
        Cell(
            persona_id=persona.id if persona else None, question_id=question.id, sample=sample,
            seed=seed_from("cell", seed, persona.id if persona else "", question.id, sample),
            messages=build_messages(persona, wording.prompt(question), template=wording.template, bare=wording.bare),
            gold=question.gold or None,
        )
        for persona in personas
        for question in questions
        for sample in range(samples)
    ]  # fmt: skip


def note_seen_personas(model: ModelConfig, pool: PersonaPool) -> None:
    """Say when some of the personas are not held out: allowed, but another measurement."""
    known = read_seen(Path(model.name)).personas & {persona.id for persona in pool.personas}
    if known:
        say(f"note: the model was trained under {len(known)} of these {len(pool)} personas, such as {min(known)}")


def describe_asked(pool: PersonaPool, questions: Sequence[Question], samples: int) -> dict[str, object]:
    """What was asked, by id and by content: cells without a record are known to be missing, and data can be told apart."""
    return {
        "persona_ids": [persona.id for persona in pool.personas],
        "question_ids": [question.id for question in questions],
        "samples": samples,
        "personas": pool.fingerprint,
        "questions": digest(*(question.content_hash for question in questions)),
    }


def fill(model: Model, asked: Sequence[Cell], sampling: Sampling, run: RunDir, judge: Judge | None, what: str) -> int:
    """Answer and judge what is owed of `asked`; returns how many cells are still owed at the end.

    `judge=None` for open-ended questions, which have no verdict. Raises ConfigError when the run on disk asked a cell in other
    words.
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
    return judge is None or (cell.verdict is not None and cell.verdict.correct is not None)


def _answered(model: Model, unanswered: Sequence[Cell], unjudged: Sequence[Cell], sampling: Sampling) -> Iterator[Cell]:
    yield from unjudged
    if not unanswered:
        return
    for index, result in model.complete([Request(cell.messages, cell.seed) for cell in unanswered], sampling):
        part = "failure" if isinstance(result, Failure) else "completion"
        yield unanswered[index].model_copy(update={part: result})


def _judged(cell: Cell, judge: Judge | None) -> Cell:
    if judge is None or cell.completion is None:
        return cell
    return cell.model_copy(update={"verdict": judge(cell.completion.text, cell.gold or "")})
