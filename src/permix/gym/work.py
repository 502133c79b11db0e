"""What `permix questions` is to have written, what of it is there, and which calls are wanted for the rest.

All of it follows from the configuration and the replies so far. First each persona's situations are chosen, then questions are
written in them, task by task, then examples of answers to the questions of the tasks that have theirs.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from permix.config import GymTask
from permix.gym.asking import Book, Slot, Wanted
from permix.gym.base import GymQuestion, ScoreExample
from permix.gym.names import as_question
from permix.gym.prompts import SCORES, ask_examples, ask_questions, ask_situations
from permix.gym.sift import LEAST_SITUATIONS, Sifted, examples_of, questions_of, setting_of, situations_of
from permix.types import Persona, seed_from


class Work(NamedTuple):
    """`listed`: situations to choose from. `given`: questions that are there already, so that none are written. `examples`:
    whether example answers are wanted. `criteria`: of each task, what earns which score.
    """

    personas: tuple[Persona, ...]
    tasks: tuple[GymTask, ...]
    n: int
    listed: tuple[str, ...]
    given: tuple[GymQuestion, ...]
    examples: bool
    criteria: Mapping[GymTask, str]

    @property
    def least(self) -> int:
        """Situations that a persona needs."""
        return min(LEAST_SITUATIONS, len(self.listed))


SETTINGS, EXAMPLES_OF = "settings", "examples of "
"""What cells of situations and of examples are named by; those of questions are named by their task."""


def situations_slot(persona: Persona) -> Slot:
    return Slot(persona.id, SETTINGS)


def examples_slot(question: GymQuestion) -> Slot:
    return Slot(question.persona_id, f"{EXAMPLES_OF}{question.id}")


# Of one persona, one question


def situations(work: Work, book: Book, persona: Persona) -> Sifted:
    return situations_of(book.get(situations_slot(persona), ()), work.listed)


def questions(work: Work, book: Book, persona: Persona) -> dict[GymTask, Sifted]:
    return questions_of({task: book.get(Slot(persona.id, task), ()) for task in work.tasks}, work.n)


def examples(book: Book, question: GymQuestion) -> Sifted:
    return examples_of(book.get(examples_slot(question), ()))


# Which calls are wanted


def wanted_situations(work: Work, book: Book) -> list[Wanted]:
    found = []
    for persona in () if work.given else work.personas:
        slot, chosen = situations_slot(persona), situations(work, book, persona).kept
        if len(chosen) < work.least:
            prompt = ask_situations(persona.text, _dealt(work.listed, persona), chosen)
            found.append(Wanted(slot, persona.id, len(book.get(slot, ())), work.least - len(chosen), prompt))
    return found


def wanted_questions(work: Work, book: Book) -> list[Wanted]:
    """Of the personas that have their situations."""
    found = []
    for persona in () if work.given else work.personas:
        chosen = situations(work, book, persona).kept
        if len(chosen) < work.least:
            continue
        for task, there in questions(work, book, persona).items():
            slot, missing = Slot(persona.id, task), work.n - len(there.kept)
            if missing:
                prompt = ask_questions(persona.text, task, chosen, missing, there.kept)
                found.append(Wanted(slot, persona.id, len(book.get(slot, ())), missing, prompt))
    return found


def wanted_examples(work: Work, book: Book) -> list[Wanted]:
    found = []
    for question in whole_questions(work, book) if work.examples else ():
        slot = examples_slot(question)
        if not examples(book, question).kept:
            prompt = ask_examples(question.persona, question.text, work.criteria[question.task])
            found.append(Wanted(slot, question.id, len(book.get(slot, ())), len(SCORES), prompt))
    return found


# What is there


def whole_questions(work: Work, book: Book) -> tuple[GymQuestion, ...]:
    """The given ones; else those of the tasks that have all of theirs, persona by persona."""
    return work.given or tuple(
        _question(persona, task, text, situations(work, book, persona).kept)
        for persona in work.personas
        for task, there in questions(work, book, persona).items()
        if len(there.kept) == work.n
        for text in there.kept
    )


def whole_examples(work: Work, book: Book) -> tuple[ScoreExample, ...]:
    return tuple(
        ScoreExample(question_id=question.id, score=score, text=text)
        for question in (whole_questions(work, book) if work.examples else ())
        for score, text in enumerate(examples(book, question).kept, start=1)
    )


def owed(work: Work, book: Book) -> list[str]:
    """What is not there, in words."""
    found = [f"situations of {one.slot.persona_id!r}" for one in wanted_situations(work, book)]
    found += [
        f"{one.slot.persona_id!r} × {one.slot.name} ({work.n - one.missing} of {work.n} questions)"
        for one in wanted_questions(work, book)
    ]
    return found + [one.slot.name for one in wanted_examples(work, book)]


def _dealt(listed: Sequence[str], persona: Persona) -> list[str]:
    """The list in an order of this persona's own: a model that hardly chooses takes what stands first."""
    return sorted(listed, key=lambda one: seed_from("situation", persona.text, one))


def _question(persona: Persona, task: GymTask, text: str, chosen: Sequence[str]) -> GymQuestion:
    return as_question(persona, task, text).model_copy(update={"setting": setting_of(text, chosen)})
