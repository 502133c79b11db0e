"""Multiple-choice questions: choices under letters, extraction of the answered letter, and the task MMLU.

The answer of a completion is the letter in its last box, else in its `<answer>` tags, else the letter named by its last "answer
is", else its last letter that is a word of its own. The gold is a capital letter.

MMLU (cais/mmlu, MIT) has four choices for each question, in 57 subjects. A row, as published:

    {"question": "Which gas is most of the air?", "subject": "high_school_chemistry", "answer": 1,
     "choices": ["Oxygen", "Nitrogen", "Argon", "Helium"]}

`answer` counts from 0. The published split test (14,042 questions) is heldout, validation (1,531) is dev, and dev (285, five for
each subject) is train. The published auxiliary_train comes from other data sets and is not read. Levels are subjects.
"""

from collections.abc import Sequence

from permix.config import TaskConfig
from permix.tasks.answers import extract_choice
from permix.tasks.base import Task, check_known_levels, select_questions
from permix.tasks.datasets import DatasetRow, HubDataset, PublishedSplit, read_published_rows
from permix.types import Question, Split, canonical_text, digest

CHOICE_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

CHOICE_PROMPT_TEMPLATE = "{question}\n\nEnd with the letter of your choice inside \\boxed{}."


def format_choices(question_text: str, choices: Sequence[str]) -> str:
    """The question, followed by one line for each choice: "B) a whale"."""
    return "\n".join([question_text, *(f"{letter}) {choice}" for letter, choice in zip(CHOICE_LETTERS, choices, strict=False))])


def same_letter(answer: str, gold: str) -> bool:
    """Whether an answer such as "(b)" or "B." is the gold letter."""
    return answer.strip(" ().:").upper() == gold


MMLU_HUB = HubDataset("cais/mmlu", "all", splits=("dev", "validation", "test"))

MMLU_PUBLISHED_SPLITS: dict[Split, PublishedSplit] = {"train": "dev", "dev": "validation", "heldout": "test"}

N_MMLU_CHOICES = 4


def mmlu_questions(config: TaskConfig) -> tuple[Question, ...]:
    """The `config.n` questions of a configuration. Raises ConfigError or DataError."""
    known = [mmlu_question(row) for row in read_published_rows(MMLU_HUB, MMLU_PUBLISHED_SPLITS[config.single_split], config.path)]
    subjects = sorted({subject for one in known for subject in one.tags})
    check_known_levels(config.levels, subjects, "mmlu")
    return select_questions((one for one in known if not config.levels or set(config.levels) & set(one.tags)), config)


def mmlu_question(row: DatasetRow) -> Question:
    """The question of a row. Raises DataError naming its file and line. Published rows with two equal choices are kept."""
    offered, answer = row.value("choices"), row.value("answer")
    if not isinstance(offered, list) or len(offered) != N_MMLU_CHOICES or not all(isinstance(one, str) for one in offered):
        raise row.error("choices", f"must be a list of {N_MMLU_CHOICES} texts")
    if type(answer) is not int or answer not in range(N_MMLU_CHOICES):
        raise row.error("answer", f"must be the index of the right choice, 0 to {N_MMLU_CHOICES - 1}")
    text, gold = format_choices(row.text("question"), [one.strip() for one in offered]), CHOICE_LETTERS[answer]
    return Question(
        id=f"mmlu:{digest(canonical_text(text))}", task="mmlu", text=text, gold=gold, tags=(row.text("subject"),),
        solution=f"\\boxed{{{gold}}}",
    )  # fmt: skip


MMLU = Task(
    name="mmlu",
    prompt_template=CHOICE_PROMPT_TEMPLATE,
    questions=mmlu_questions,
    extract=extract_choice,
    answers_match=same_letter,
    max_new_tokens=512,
)
