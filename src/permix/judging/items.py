"""From a run of `permix fidelity` to the answers a judge is shown.

Contract: only what asked.json still asks, and only what was answered; a failed cell is no answer. Everything stands in the run
itself, so the files that personas and questions came from need not be there any more. Order: as asked, without persona last.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from permix.evals.answers import AskedQuestion, Kind, kind_of, questions_asked, wording
from permix.evals.grid import Answers, read_answers
from permix.judging.base import IN_CHARACTER, Item
from permix.prompting import brought_in_by
from permix.records import read_json
from permix.types import Cell, CellKey, Completion

INTERVIEWER = "Interviewer"


def read_items(run: Path) -> list[Item]:
    """Every answer of the run as it is to be judged (control "none"), and those given without persona ("no-persona").

    An answer without persona is judged as the persona whose question it was. DataError when the run cannot be read.
    """
    kind, path = kind_of(read_json(run / "config.json")), run / "asked.json"
    about = read_json(path) if path.exists() else {}
    answers, asked = read_answers(run), questions_asked(run)
    questions, texts = {one.id: one for one in asked}, about.get("persona_texts", {})
    told = asked_until(about["turns_asked"], wording(asked)) if kind == "interview" else None
    cells = (answers.cells.get(key) for key in _keys(kind, answers, asked, about))
    return [
        _item(cell, cell.completion, questions.get(cell.question_id), texts, told and told(cell))
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


def _item(cell: Cell, completion: Completion, question: AskedQuestion | None, texts: Mapping[str, str], talk: str | None) -> Item:
    """`question`, `texts`: as asked.json has them; where it does not, in the words that were sent. `talk`: of an interview."""
    persona_id = cell.persona_id or (question and question.persona_id) or ""
    said = question.text if question is not None else cell.messages[-1]["content"]
    return Item(
        persona_id=persona_id,
        persona=texts.get(persona_id) or brought_in_by(cell.messages),
        question_id=cell.question_id,
        question=said if talk is None else talk,
        sample=cell.sample,
        rubric=(question and question.task) or IN_CHARACTER,
        answer=completion.text,
        answered_by=cell.persona_id,
        control="none" if cell.persona_id is not None else "no-persona",
    )


def asked_until(turns: Mapping[str, Sequence[str]], said: Callable[[str, str], str]) -> Callable[[Cell], str]:
    """Of a turn: what the interviewer has said up to it, a line a turn.

    What the model answered before is left out: it tells who speaks, whatever the answer that is judged is worth, so a judge would
    tell any two personas apart. The words are the questions' own, without a persona that stood beside the first.
    """

    def told(cell: Cell) -> str:
        who = cell.persona_id or ""
        until = turns[who][: turns[who].index(cell.question_id) + 1]
        return "\n".join(f"{INTERVIEWER}: {said(one, who)}" for one in until)

    return told
