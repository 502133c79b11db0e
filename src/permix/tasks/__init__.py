"""Tasks: questions whose answers can be checked. One file a task, one line here."""

from dataclasses import replace

from pydantic import BaseModel

from permix.config import TaskConfig
from permix.errors import ConfigError, closest_match, error_context
from permix.tasks.arithmetic import ARITHMETIC
from permix.tasks.base import Task, verify_completion
from permix.tasks.code import CODE
from permix.tasks.contamination import check_contamination
from permix.tasks.custom import CUSTOM_TASKS
from permix.tasks.gsm8k import GSM8K
from permix.tasks.math import AIME_TASKS, MATH, MATH500
from permix.tasks.multiple_choice import MMLU
from permix.types import Question

__all__ = ["TASKS", "Task", "check_contamination", "check_task_name", "find_task", "load_questions", "verify_completion"]

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


def find_task(name: str) -> Task:
    """The task of this name. Raises ConfigError, naming the nearest one that there is."""
    if name not in TASKS:
        near = closest_match(name, TASKS)
        hint = f"; did you mean {near}?" if near else ""
        raise ConfigError(f"task.name = {name!r}: must be one of {', '.join(TASKS)}{hint}")
    return TASKS[name]


def check_task_name(stage: BaseModel, source: str) -> None:
    """Raise ConfigError when the section [task] of a configuration, if it has one, names no task. `source`: its file."""
    if isinstance(section := getattr(stage, "task", None), TaskConfig):
        with error_context(source):
            find_task(section.name)


def load_questions(config: TaskConfig) -> tuple[Task, tuple[Question, ...]]:
    """The task that `config` names, worded as it says, and its questions. Raises ConfigError or DataError."""
    task = find_task(config.name)
    if task.check_environment is not None:
        task.check_environment()
    return replace(task, prompt_template=config.prompt_template or task.prompt_template), task.questions(config)
