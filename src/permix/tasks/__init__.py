"""Tasks: questions whose answers can be checked. One file a task, one line here."""

from dataclasses import replace

from permix.config import TaskConfig
from permix.tasks.arithmetic import ARITHMETIC
from permix.tasks.base import Task, verify
from permix.tasks.code import CODE
from permix.tasks.contamination import refuse_overlap
from permix.tasks.custom import OWN
from permix.tasks.gsm8k import GSM8K
from permix.tasks.math import AIME, MATH, MATH500
from permix.tasks.multiple_choice import MMLU
from permix.types import Question

__all__ = ["TASKS", "Task", "load_questions", "refuse_overlap", "verify"]

TASKS: dict[str, Task] = {
    "arithmetic": ARITHMETIC,
    "gsm8k": GSM8K,
    "math500": MATH500,
    "math": MATH,
    **{task.name: task for task in AIME},
    "mmlu": MMLU,
    "code": CODE,
    **{task.name: task for task in OWN},
}


def load_questions(config: TaskConfig) -> tuple[Task, tuple[Question, ...]]:
    """The task that `config` names, worded as it says, and its questions. Raises ConfigError or DataError."""
    task = TASKS[config.name]
    if task.ready is not None:
        task.ready()
    return replace(task, wording=config.wording or task.wording), task.questions(config)
