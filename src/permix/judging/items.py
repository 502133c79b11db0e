"""From a run of `permix fidelity` to the answers a judge is shown.

Contract: only what asked.json still asks, and only what was answered; a failed cell is no answer. Everything stands in the run
itself, so the files that personas and questions came from need not be there any more. Order: as asked, without persona last.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from permix.evals.answers import AskedQuestion, Kind, kind_of, questions_asked
from permix.evals.grid import Answers, read_answers
from permix.judging.base import IN_CHARACTER, Item
from permix.prompting import brought_in_by
from permix.records import read_json
from permix.types import Cell, CellKey, Completion, Message

SPEAKERS = {"user": "Interviewer", "assistant": "Answer"}
"""Who says what, in a conversation shown as text; the system's word is not part of it."""


def read_items(run: Path) -> list[Item]:
    """Every answer of the run as it is to be judged (control "none"), and those given without persona ("no-persona").

    An answer without persona is judged as the persona whose question it was. DataError when the run cannot be read.
    """
    kind, path = kind_of(read_json(run / "config.json")), run / "asked.json"
    about = read_json(path) if path.exists() else {}
    answers, asked = read_answers(run), questions_asked(run)
    questions, texts = {one.id: one for one in asked}, about.get("persona_texts", {})
    cells = (answers.cells.get(key) for key in _keys(kind, answers, asked, about))
    return [
        _item(cell, cell.completion, kind, questions.get(cell.question_id), texts)
        for cell in cells
        if cell is not None and cell.completion is not None
    ]


def _keys(kind: Kind, answers: Answers, asked: Sequence[AskedQuestion], about: Mapping[str, Any]) -> Iterator[CellKey]:
    """Every cell that holds an answer to be judged, if it was answered."""
    if kind == "personagym":
        yield from (CellKey(one.persona_id, one.id, 0) for one in asked)
        yield from (CellKey(None, id, 0) for id in about.get("asked_without_persona", ()))
    else:
        grid = product(answers.persona_ids, answers.question_ids, range(answers.samples))
        yield from (CellKey(persona, question, sample) for persona, question, sample in grid)


def _item(cell: Cell, completion: Completion, kind: Kind, question: AskedQuestion | None, texts: Mapping[str, str]) -> Item:
    """`question`, `texts`: as asked.json has them; where it does not, in the words that were sent."""
    persona_id = cell.persona_id or (question and question.persona_id) or ""
    said = question.text if question is not None else cell.messages[-1]["content"]
    return Item(
        persona_id=persona_id,
        persona=texts.get(persona_id) or brought_in_by(cell.messages),
        question_id=cell.question_id,
        question=conversation(cell.messages) if kind == "interview" else said,
        sample=cell.sample,
        rubric=(question and question.task) or IN_CHARACTER,
        answer=completion.text,
        answered_by=cell.persona_id,
        control="none" if cell.persona_id is not None else "no-persona",
    )


def conversation(messages: Sequence[Message]) -> str:
    """What was said so far, a line a turn: "Interviewer: ...", "Answer: ..."."""
    return "\n".join(f"{SPEAKERS[one['role']]}: {one['content']}" for one in messages if one["role"] in SPEAKERS)
