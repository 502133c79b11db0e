"""MMLU (cais/mmlu, MIT): four choices each, in 57 subjects.

A row, as published:

    {"question": "Which gas is most of the air?", "subject": "high_school_chemistry", "answer": 1,
     "choices": ["Oxygen", "Nitrogen", "Argon", "Helium"]}

`answer` counts from 0. The published splits are the sides: test (14,042) is held out, validation (1,531) is dev, and dev (285,
five examples a subject) is what can be trained on. The publisher's auxiliary_train comes from other data sets and is not read.
Levels are subjects. Answers are read as `permix.tasks.multiple_choice` says.

Multiple choice: choices under letters, and the letter of an answer.

The answer of a completion is the letter in its last box; without one, the letter that its last "answer is" names, else its last
letter that stands alone. The gold is a capital letter.
"""

import re
from collections.abc import Sequence

from permix.config import TaskConfig
from permix.tasks import math
from permix.tasks.base import Task, choose, refuse_unknown_levels
from permix.tasks.datasets import Hub, Published, Row, published_rows
from permix.types import Question, Split, digest, normalise

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

WORDING = "{question}\n\nEnd with the letter of your choice inside \\boxed{}."

_LETTER = re.compile(r"(?<![A-Za-z0-9'])\(?([A-Z])\)?(?![A-Za-z0-9'])")


def lettered(text: str, choices: Sequence[str]) -> str:
    """The question, and each choice on a line of its own: "B) a whale"."""
    return "\n".join([text, *(f"{letter}) {choice}" for letter, choice in zip(LETTERS, choices, strict=False))])


def same_letter(answer: str, gold: str) -> bool:
    return answer.strip(" ().:").upper() == gold


def last_letter(completion: str) -> str | None:
    """Of "answer is (B), since A ..." the B; else the last letter by itself. "I" and "A" as words count too: box the answer."""
    named = math.unboxed(completion)
    found = _LETTER.match(named.upper()) if named else None
    letters = _LETTER.findall(completion)
    return found[1] if found else letters[-1] if letters else None


HUB = Hub("cais/mmlu", "all", splits=("dev", "validation", "test"))

SIDES: dict[Split, Published] = {"train": "dev", "dev": "validation", "heldout": "test"}

N_CHOICES = 4


def questions(config: TaskConfig) -> tuple[Question, ...]:
    known = [question(row) for row in published_rows(HUB, SIDES[config.split], config.path)]
    subjects = sorted({subject for one in known for subject in one.tags})
    refuse_unknown_levels(config.levels, subjects, "mmlu")
    return choose((one for one in known if not config.levels or set(config.levels) & set(one.tags)), config)


def question(row: Row) -> Question:
    """Raises DataError naming the row's file and line. Equal choices are published, and stay."""
    offered, answer = row.value("choices"), row.value("answer")
    if not isinstance(offered, list) or len(offered) != N_CHOICES or not all(isinstance(one, str) for one in offered):
        raise row.error("choices", f"must be a list of {N_CHOICES} texts")
    if type(answer) is not int or answer not in range(N_CHOICES):
        raise row.error("answer", f"must be the place of the right choice, 0 to {N_CHOICES - 1}")
    text, gold = lettered(row.text("question"), [one.strip() for one in offered]), LETTERS[answer]
    return Question(
        id=f"mmlu:{digest(normalise(text))}", task="mmlu", text=text, gold=gold, tags=(row.text("subject"),),
        solution=f"\\boxed{{{gold}}}",
    )  # fmt: skip


MMLU = Task(name="mmlu", wording=WORDING, questions=questions, unboxed=last_letter, same=same_letter)
