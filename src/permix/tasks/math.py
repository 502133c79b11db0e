r"""Competition mathematics: the tasks math (MATH), math500 (MATH-500), aime24 and aime25.

The answer of a completion is its last box, else what `<answer>` tags hold, else what the last "answer is" names. Without any of
these, MATH and MATH-500 take the last formula; they do not fall back to the last number, since many golds are expressions. AIME
takes the last number.

MATH (rasbt/math_full_minus_math500 on the hub, Apache-2.0) is for training. A row of a local file:

    {"problem": "Evaluate $\\log_432$.", "answer": "\\frac{5}{2}", "difficulty": 3.0, "type": "Algebra"}

The hub's rows (12,000: all of MATH without MATH-500) have "level": "Level 3" instead of a difficulty; copies with "level": 3 and
"subject" are read too. One in four problems, by content, is held out; one in eight of the others is dev. The solution is the
row's "solution" or, if it has none, the boxed answer. A problem without an answer cannot be checked and is left out. A problem of
unknown level ("Level ?", 0.0) is used unless `task.levels` is given.

MATH-500 (HuggingFaceH4/MATH-500) is for evaluation only: 500 problems that reasoning models are compared on. It has the same
prompt template as MATH, so that a model trained on MATH is evaluated with the prompt of its training. A row, as published:

    {"problem": "What power of 4 is equal to 8? Express your answer as a common fraction.", "solution": "Since $\\sqrt{4}=2$ ...",
     "answer": "\\frac{3}{2}", "subject": "Algebra", "level": 2, "unique_id": "test/algebra/1265.json"}

AIME 2024 and 2025 are for evaluation only: 30 problems each, whose answers are whole numbers from 0 to 999. A row of aime24
(HuggingFaceH4/aime_2024, whose only split is named train):

    {"id": 60, "problem": "Every morning Aya goes for a $9$-kilometer-long walk ...", "solution": "...", "answer": "204",
     "url": "https://artofproblemsolving.com/wiki/...", "year": "2024"}

and of aime25 (math-ai/aime25, split test, Apache-2.0):

    {"problem": "Find the sum of all integer bases $b>9$ for which ...", "answer": "70", "id": "0"}

In both, answers have leading zeros (033) or not.
"""

import re
from collections.abc import Iterable, Iterator
from functools import partial

from permix.config import TaskConfig
from permix.errors import ConfigError
from permix.tasks.answers import extract_expression, extract_number
from permix.tasks.base import Task, check_known_levels, select_questions, split_of_content
from permix.tasks.datasets import DatasetRow, HubDataset, read_published_rows
from permix.types import Question, canonical_text, digest

AIME_HUBS = {
    "aime24": HubDataset("HuggingFaceH4/aime_2024", splits=("train",)),
    "aime25": HubDataset("math-ai/aime25", splits=("test",)),
}

AIME_PROMPT_TEMPLATE = (
    "{question}\n\nReason step by step. End with the final answer, a whole number from 0 to 999, inside \\boxed{}."
)


def aime_questions(name: str, config: TaskConfig) -> tuple[Question, ...]:
    """The `config.n` questions of "aime24" or "aime25". Raises ConfigError or DataError."""
    if config.split != "heldout":
        raise ConfigError(
            f'task.split = "{config.split}": {name} is for evaluation only; give split "heldout", or train on task.name = "math"'
        )
    check_known_levels(config.levels, (), name)
    hub = AIME_HUBS[name]
    return select_questions(map(partial(aime_question, name), read_published_rows(hub, hub.splits[0], config.path)), config)


def aime_question(name: str, row: DatasetRow) -> Question:
    """The question of a row. Raises DataError naming the row's file and line."""
    text, answer = row.text("problem"), str(row.value("answer")).strip()
    if not re.fullmatch("[0-9]{1,3}", answer):
        raise row.error("answer", "must be a whole number from 0 to 999")
    return Question(id=f"{name}:{digest(canonical_text(text))}", task=name, text=text, gold=str(int(answer)))


def _aime_task(name: str) -> Task:
    return Task(
        name=name,
        prompt_template=AIME_PROMPT_TEMPLATE,
        questions=partial(aime_questions, name),
        extract=extract_number,
        max_new_tokens=8192,
    )


AIME_TASKS = tuple(map(_aime_task, AIME_HUBS))


MATH_HUB = HubDataset("rasbt/math_full_minus_math500")

MATH_LEVELS = ("1", "2", "3", "4", "5")

MATH_PROMPT_TEMPLATE = "{question}\n\nReason step by step. End with the final answer inside \\boxed{}."


def math_questions(config: TaskConfig) -> tuple[Question, ...]:
    """The `config.n` questions of MATH. Raises ConfigError or DataError."""
    check_known_levels(config.levels, MATH_LEVELS, "math")
    rows = (row for row in read_published_rows(MATH_HUB, "train", config.path) if row.value("answer") not in (None, ""))
    ours = (one for one in map(math_question, rows) if split_of_content(one.content_hash) == config.split)
    return select_questions(filter_by_levels(ours, config.levels), config)


def math_question(row: DatasetRow) -> Question:
    """The question of a row. Raises DataError naming the row's file and line."""
    text = row.text("problem")
    subject = row.text("type" if "type" in row.fields else "subject")
    level = parse_math_level(row, "difficulty" if "difficulty" in row.fields else "level")
    tags = (f"level-{level}", subject)
    gold = gold_without_dollars(row)
    name = f"math:{digest(canonical_text(text))}"
    return Question(id=name, task="math", text=text, gold=gold, tags=tags, solution=worked_solution(row, gold))


def worked_solution(row: DatasetRow, gold: str) -> str:
    """The row's solution, or the boxed gold if it has none."""
    worked = row.fields.get("solution")
    return row.text("solution") if isinstance(worked, str) and worked.strip() else f"\\boxed{{{gold}}}"


def gold_without_dollars(row: DatasetRow) -> str:
    """The row's answer, without dollar signs of inline LaTeX around it."""
    return re.sub(r"^\$(.*[^\\])\$$", r"\1", row.text("answer")).strip()


def parse_math_level(row: DatasetRow, field: str) -> str:
    """One of MATH_LEVELS, or "?" for an unknown level. Raises DataError for anything else.

    Data sets write a level as 4, 4.0, "4" or "Level 4", and an unknown one as 0.0 or "Level ?".
    """
    match = re.fullmatch(r"(?:Level )?([0-5?])(?:\.0)?", str(row.value(field)))
    if not match:
        raise row.error(field, "must be a level, 1 to 5")
    return match[1].replace("0", "?")


def filter_by_levels(questions: Iterable[Question], levels: tuple[str, ...]) -> Iterator[Question]:
    """The questions of these levels; all questions if `levels` is empty."""
    wanted = {f"level-{level}" for level in levels}
    return (one for one in questions if not wanted or wanted.intersection(one.tags))


MATH = Task(
    name="math",
    prompt_template=MATH_PROMPT_TEMPLATE,
    questions=math_questions,
    extract=extract_expression,
    max_new_tokens=2048,
)


MATH500_HUB = HubDataset("HuggingFaceH4/MATH-500")


def math500_questions(config: TaskConfig) -> tuple[Question, ...]:
    """The `config.n` questions of MATH-500. Raises ConfigError or DataError."""
    if config.split != "heldout":
        raise ConfigError(
            f'task.split = "{config.split}": math500 is for evaluation only; give split "heldout", or '
            f'take the {config.split} split of task.name = "math"'
        )
    check_known_levels(config.levels, MATH_LEVELS, "math500")
    rows = read_published_rows(MATH500_HUB, "test", config.path)
    return select_questions(filter_by_levels(map(math500_question, rows), config.levels), config)


def math500_question(row: DatasetRow) -> Question:
    """The question of a row. Raises DataError naming the row's file and line."""
    tags = (f"level-{parse_math_level(row, 'level')}", row.text("subject"))
    name = f"math500:{row.text('unique_id')}"
    return Question(id=name, task="math500", text=row.text("problem"), gold=gold_without_dollars(row), tags=tags)


MATH500 = Task(
    name="math500",
    prompt_template=MATH_PROMPT_TEMPLATE,
    questions=math500_questions,
    extract=extract_expression,
    max_new_tokens=2048,
)
