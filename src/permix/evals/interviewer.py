"""Who asks in an interview: a script, or a model that plays the interviewer.

Contract: an interviewer is given what was said so far and names the next question of each persona it has one for; one it has none
for is owed. A model's questions are cells of the run like any other ("ask-03", a sample an attempt), so what it asked
is never asked anew; it is told to get to know somebody, and neither who that is nor that anything is tested.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from permix.evals.grid import fill
from permix.evals.interview_script import Orders
from permix.models import Model
from permix.recorded import Records
from permix.records import RunDir
from permix.types import Cell, CellKey, Completion, Message, Question, Sampling, seed_from

ATTEMPTS = 3
MOST_CHARACTERS = 600
SAMPLING = Sampling(temperature=0.7, top_p=0.95, max_new_tokens=120)

PROMPT = (
    "You write portraits of people for a magazine. Somebody whom you know nothing about has sat down in front of you. Get to "
    "know this person: their days, what they think, what they know, what moves them. Listen, and go back to what they said "
    "before. What you write is what you say aloud: one question at a time, in at most three sentences, and nothing else. Never "
    "answer in their place."
)
GREETING = "Hello."
SILENCE = "(no answer)"


class Spoken(NamedTuple):
    """One turn: what was asked, and what the persona answered."""

    question: Question
    answer: str


Talks = Mapping[str, Sequence[Spoken]]
"""What each persona and its interviewer have said so far, by the persona's id."""


class Interviewer(Protocol):
    def ask(self, turn: int, talks: Talks) -> dict[str, Question]:
        """The question of this turn (from 1) for every persona of `talks` that there is one for."""


class Script:
    """Asks what is written, in each persona's own order."""

    def __init__(self, orders: Orders) -> None:
        self._orders = orders

    def ask(self, turn: int, talks: Talks) -> dict[str, Question]:
        return {persona: turn_question(turn, self._orders[persona][turn - 1]) for persona in talks}


class ModelInterviewer:
    """A model asks, from its side of the conversation; a question that is none is asked for again, `ATTEMPTS` times a start."""

    def __init__(self, model: Model, run: RunDir, seed: int) -> None:
        self._model, self._run, self._seed = model, run, seed

    def ask(self, turn: int, talks: Talks) -> dict[str, Question]:
        for _ in range(ATTEMPTS):
            known = self._run.cells()
            owed = [persona for persona in talks if asked_by_model(known, persona, turn) is None]
            if not owed:
                break
            cells = [self._cell(persona, turn, talks[persona], known) for persona in owed]
            fill(self._model, cells, SAMPLING, self._run, None, f"turn {turn}: the interviewer")
        known = self._run.cells()
        found = {persona: asked_by_model(known, persona, turn) for persona in talks}
        return {persona: question for persona, question in found.items() if question is not None}

    def _cell(self, persona: str, turn: int, talk: Sequence[Spoken], known: Records) -> Cell:
        attempt = len(_replies(known, persona, turn))
        return Cell(
            persona_id=persona, question_id=f"ask-{turn:02}", sample=attempt,
            seed=seed_from("ask", self._seed, persona, turn, attempt), messages=interviewers_side(talk),
        )  # fmt: skip


def turn_question(turn: int, question: Question) -> Question:
    """The question as it is asked at this turn: its id says both ("turn-03-evening")."""
    return question.model_copy(update={"id": f"turn-{turn:02}-{question.id}"})


def turn_of(question_id: str) -> int | None:
    """3 for "turn-03-evening" and "turn-03"; None for what is no turn of an interview."""
    name, _, rest = question_id.partition("-")
    number = rest.partition("-")[0]
    return int(number) if name == "turn" and number.isdecimal() else None


def interviewers_side(talk: Sequence[Spoken]) -> tuple[Message, ...]:
    """The conversation as the interviewer has it: its own questions are the assistant's, the persona's answers the user's."""
    said = [Message(role="system", content=PROMPT), Message(role="user", content=GREETING)]
    for one in talk:
        said.append(Message(role="assistant", content=one.question.text))
        said.append(Message(role="user", content=one.answer.strip() or SILENCE))
    return tuple(said)


def asked_by_model(known: Records, persona: str, turn: int) -> Question | None:
    """The first of the model's replies that can be put to somebody; None when there is none yet."""
    usable = (reply.text.strip() for reply in _replies(known, persona, turn) if usable_question(reply))
    return next((Question(id=f"turn-{turn:02}", task="interview", text=text, gold="") for text in usable), None)


def usable_question(reply: Completion) -> bool:
    """Something was said, to its end, and briefly."""
    return 0 < len(reply.text.strip()) <= MOST_CHARACTERS and reply.finish != "length"


def _replies(known: Records, persona: str, turn: int) -> list[Completion]:
    """What the model said for this turn, attempt by attempt."""
    found: list[Completion] = []
    while (cell := known.get(CellKey(persona, f"ask-{turn:02}", len(found)))) is not None and cell.completion is not None:
        found.append(cell.completion)
    return found
