r"""MATH-500 (HuggingFaceH4/MATH-500): the 500 competition problems that reasoning models are compared on. Evaluation only.

A row, as published:

    {"problem": "What power of 4 is equal to 8? Express your answer as a common fraction.", "solution": "Since $\\sqrt{4}=2$ ...",
     "answer": "\\frac{3}{2}", "subject": "Algebra", "level": 2, "unique_id": "test/algebra/1265.json"}

Wording and extraction are those of `math`, so a model trained there is asked in the words it was trained on.
"""

from permix.config import TaskConfig
from permix.errors import ConfigError
from permix.tasks.base import Task, choose, refuse_unknown_levels
from permix.tasks.math import LEVELS, WORDING, gold_of, level_of, of_levels, unboxed
from permix.tasks.rows import Hub, Row, published_rows
from permix.types import Question

HUB = Hub("HuggingFaceH4/MATH-500")


def questions(config: TaskConfig) -> tuple[Question, ...]:
    if config.split != "heldout":
        raise ConfigError(
            f'task.split = "{config.split}": math500 is for evaluation only, all of it held out; '
            f'take the {config.split} side of task.name = "math", or ask for "heldout"'
        )
    refuse_unknown_levels(config.levels, LEVELS, "math500")
    rows = published_rows(HUB, "test", config.path)
    return choose(of_levels(map(question, rows), config.levels), config)


def question(row: Row) -> Question:
    """Raises DataError naming the row's file and line."""
    tags = (f"level-{level_of(row, 'level')}", row.text("subject"))
    name = f"math500:{row.text('unique_id')}"
    return Question(id=name, task="math500", text=row.text("problem"), gold=gold_of(row), tags=tags)


MATH500 = Task(name="math500", wording=WORDING, questions=questions, unboxed=unboxed)
