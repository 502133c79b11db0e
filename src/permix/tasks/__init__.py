"""Tasks: questions whose answers can be checked. Each task has its own module and one entry in `TASKS`."""

from dataclasses import replace

from permix.config import TaskConfig
from permix.tasks.arithmetic import ARITHMETIC
from permix.tasks.base import Task, verify_completion
from permix.tasks.code import CODE
from permix.tasks.contamination import check_contamination
from permix.tasks.custom import CUSTOM_TASKS
from permix.tasks.gsm8k import GSM8K
from permix.tasks.math import AIME_TASKS, MATH, MATH500
from permix.tasks.multiple_choice import MMLU
from permix.types import Question

__all__ = ["TASKS", "Task", "check_contamination", "load_questions", "verify_completion"]

TASKS: dict[str, Task] = {
    "arithmetic": ARITHMETIC,
    "gsm8k": GSM8K,
    "math500": MATH500,
    "math": MATH,
    **{task.name: task for task in AIME_TASKS},
    "mmlu": MMLU,
    "code": CODE,
    **{task.name: task for task in CUSTOM_TASKS},
}


def load_questions(config: TaskConfig) -> tuple[Task, tuple[Question, ...]]:
    """The task that `config` names, with `config.prompt_template` if given, and its `config.n` questions.

    Raises ConfigError if the questions cannot be had or scored, and DataError for a bad file.
    """
    task = TASKS[config.name]
    if task.check_environment is not None:
        task.check_environment()
    return replace(task, prompt_template=config.prompt_template or task.prompt_template), task.questions(config)
