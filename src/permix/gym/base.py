"""The nouns of PersonaGym's kind of question.

A folder of PersonaGym has `personas.json`, `questions/{persona}.json` (task → questions) and `rubrics/{task}.txt`. A file of
ours, `questions.jsonl`, has one `GymQuestion` a line; the persona's text stands in every line, so it needs no other file.
"""

from pydantic import Field

from permix.config import GymTask
from permix.types import Record


class GymQuestion(Record):
    """One question to one persona, to see one of the five tasks. `setting`: the situation it was written for, where known."""

    id: str = Field(min_length=1)
    persona_id: str = Field(min_length=1)
    persona: str = Field(min_length=1)
    task: GymTask
    text: str = Field(min_length=1)
    setting: str | None = None


class ScoreExample(Record):
    """One line of `examples.jsonl`: an answer to a question that would earn this score under its task's rubric."""

    question_id: str
    score: int = Field(ge=1, le=5)
    text: str = Field(min_length=1)
