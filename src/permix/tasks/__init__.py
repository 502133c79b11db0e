"""Tasks: questions whose answers can be checked. Each task has its own module and one entry in `TASKS`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel

from permix.config import TaskConfig, build_config
from permix.errors import ConfigError, DataError, closest_match, error_context, option_context
from permix.tasks.arithmetic import ARITHMETIC
from permix.tasks.base import Task, check_contamination, verify_completion
from permix.tasks.code import CODE
from permix.tasks.custom import CUSTOM_TASKS, questions_of_rows
from permix.tasks.datasets import DatasetRow
from permix.tasks.gsm8k import GSM8K
from permix.tasks.math import AIME_TASKS, MATH, MATH500
from permix.tasks.multiple_choice import MMLU
from permix.types import Message, Question, Split, require_unique

__all__ = [
    "TASKS",
    "AnswerKind",
    "LoadedTask",
    "Task",
    "check_contamination",
    "check_task_name",
    "find_task",
    "load_questions",
    "load_task",
    "task_from_questions",
    "verify_completion",
]

AnswerKind = Literal["number", "math", "exact", "choice"]
"""How answers to your own questions are compared: see `permix.tasks.custom`."""

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
    """The task of this name. Raises ConfigError naming the nearest known task."""
    if name not in TASKS:
        near = closest_match(name, TASKS)
        hint = f"; did you mean {near}?" if near else ""
        raise ConfigError(f"task.name = {name!r}: must be one of {', '.join(TASKS)}{hint}")
    return TASKS[name]


def check_task_name(stage: BaseModel, source: str) -> None:
    """Raise ConfigError if the section [task] of a configuration names an unknown task. `source`: the configuration's file."""
    if isinstance(section := getattr(stage, "task", None), TaskConfig):
        with error_context(source):
            find_task(section.name)


def load_questions(config: TaskConfig) -> tuple[Task, tuple[Question, ...]]:
    """The task that `config` names, with `config.prompt_template` if given, and its `config.n` questions.

    Raises ConfigError if the questions cannot be loaded or scored, and DataError for a bad file.
    """
    task = find_task(config.name)
    if task.check_environment is not None:
        task.check_environment()
    with option_context("task.path", config.path):
        questions = task.questions(config)
    return replace(task, prompt_template=config.prompt_template or task.prompt_template), questions


@dataclass(frozen=True)
class LoadedTask:
    """A task, and the questions that `config` selects from it."""

    config: TaskConfig
    task: Task
    questions: tuple[Question, ...]

    def prompt_rows(self) -> list[dict[str, Any]]:
        """One row a question, in TRL's conversational prompt format: `prompt` (a user message), `answer`, `question_id`."""
        return [
            {
                "prompt": [Message(role="user", content=self.task.prompt(question))],
                "answer": question.gold,
                "question_id": question.id,
            }
            for question in self.questions
        ]


def load_task(
    name: str,
    *,
    split: Split | Literal["all"] = "heldout",
    n: int = 100,
    path: str | Path | None = None,
    levels: Sequence[str] = (),
    seed: int = 0,
    prompt_template: str | None = None,
) -> LoadedTask:
    """Load `n` questions from one split of a task, or from all splits of your own file. `path` is a local file or folder in the
    published format.

    Raises ConfigError for an unknown task or level or if there are fewer than n questions, and DataError for a bad file.
    """
    values = {"split": split, "n": n, "path": path, "levels": tuple(levels), "seed": seed, "prompt_template": prompt_template}
    config = build_config(TaskConfig, {"name": find_task(name).name, **values}, source=f"load_task({name!r})")
    return LoadedTask(config, *load_questions(config))


def task_from_questions(questions: Sequence[Question | Mapping[str, Any]], answer: AnswerKind | None) -> LoadedTask:
    """Load questions made in Python.

    They are `Question` records, or mappings with the fields of a file's row (`permix.tasks.custom`) and optionally an `id`.
    `answer` says how answers are compared; it may be None if all are records of one known task.

    Raises ConfigError if it is unknown how to compare answers, and DataError for a bad question or a repeated id.
    """
    task = _task_of_questions(questions, answer)
    rows = [DatasetRow(f"task[{index}]", dict(one)) for index, one in enumerate(questions) if not isinstance(one, Question)]
    read = iter(_questions_from_fields(task.name, rows))
    records = [one if isinstance(one, Question) else next(read) for one in questions]
    try:
        require_unique([one.id for one in records], "question")
    except ValueError as error:
        raise DataError(f"task: {error}") from error
    values = {"name": task.name, "answer": answer, "n": len(records)}
    return LoadedTask(TaskConfig().model_copy(update=values), task, tuple(records))


def _task_of_questions(questions: Sequence[Question | Mapping[str, Any]], answer: AnswerKind | None) -> Task:
    if not questions:
        raise ConfigError("task: there are no questions; give one at least")
    if answer is not None:
        return find_task(f"own-{answer}")
    names = {one.task if isinstance(one, Question) else None for one in questions}
    name = names.pop()
    if names or name not in TASKS:
        raise ConfigError('task: say how answers are compared: answer="number", "math", "exact" or "choice"')
    return TASKS[name]


def _questions_from_fields(task: str, rows: Sequence[DatasetRow]) -> list[Question]:
    return [
        question.model_copy(update={"id": row.text("id")}) if "id" in row.fields else question
        for row, question in zip(rows, questions_of_rows(task, rows), strict=True)
    ]
