"""What a fidelity run asked, in words, and of which kind it is.

`grid.json` names the personas and questions in full, so that answers can be judged later without the files they came from.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from permix.evals.grid import read_grid_results
from permix.storage.files import read_json
from permix.types import Cell, Persona, Question, Record

FidelityKind = Literal["open", "personagym", "interview"]


class AskedQuestion(Record):
    """A question as grid.json tells it. `task`: which of PersonaGym's, if any; `persona_id`: who is asked it, None for all."""

    id: str
    text: str
    task: str | None = None
    persona_id: str | None = None


def describe_ids(personas: Sequence[Persona], questions: Sequence[AskedQuestion]) -> dict[str, object]:
    """For grid.json: what the ids there stand for."""
    return {
        "persona_texts": {persona.id: persona.text for persona in personas},
        "questions_asked": [question.model_dump() for question in questions],
    }


def fidelity_kind(config: Mapping[str, Any]) -> FidelityKind:
    """The kind of a fidelity run, from its config.json; runs older than the other kinds are open."""
    if (config.get("interview") or {}).get("turns"):
        return "interview"
    gym = config.get("personagym") or {}
    return "personagym" if gym.get("path") or gym.get("hub") else "open"


def read_persona_cells(run: Path) -> list[Cell]:
    """The recorded cells of personas; of a run that was made smaller, those that it still asks."""
    answers = read_grid_results(run)
    return [answers.cells[key] for key in answers.grid_summaries if key.persona_id is not None]


def question_text_lookup(questions: Sequence[AskedQuestion]) -> Callable[[str, str], str]:
    """(question's id, persona's id) -> the question as that persona was asked it; "" for one that is not there."""
    said = {(one.id, one.persona_id): one.text for one in questions}
    return lambda question, persona: said.get((question, persona)) or said.get((question, None), "")


def read_asked_questions(run: Path) -> tuple[AskedQuestion, ...]:
    """What a run asked, in words; empty for a run that is older than that."""
    path = run / "grid.json"
    found = read_json(path).get("questions_asked", ()) if path.exists() else ()
    return tuple(AskedQuestion.model_validate(one) for one in found)


def question_at_turn(turn: int, question: Question) -> Question:
    """The question as it is asked at this turn: its id says both ("turn-03-evening")."""
    return question.model_copy(update={"id": f"turn-{turn:02}-{question.id}"})


def turn_number(question_id: str) -> int | None:
    """3 for "turn-03-evening" and "turn-03"; None for what is no turn of an interview."""
    name, _, rest = question_id.partition("-")
    number = rest.partition("-")[0]
    return int(number) if name == "turn" and number.isdecimal() else None
