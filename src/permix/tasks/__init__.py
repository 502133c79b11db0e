"""Tasks: questions whose answers can be checked. Each task has its own module and one entry in `TASKS`.

A task or a scorer of the user's own is named "package.module:NAME". `find_task` imports the module, from Python's path or the
current folder. An import runs the module's code, so only a task that the user named is looked up, never one that only a run
directory or a plan file names.
"""

import functools
import importlib
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from pydantic import BaseModel

from permix.config import OWN_OBJECT_NAME, TaskConfig, build_config, require_answer_kind
from permix.errors import ConfigError, DataError, PermixError, closest_match, error_context, option_context
from permix.sanitize import escape_control, truncate
from permix.storage.rows import given_fields, given_items, is_whole_number, quote_value
from permix.tasks.arithmetic import ARITHMETIC
from permix.tasks.base import Task, check_contamination, verify_completion
from permix.tasks.code import CODE
from permix.tasks.custom import CUSTOM_TASKS, function_task, questions_of_rows, select_custom_questions
from permix.tasks.datasets import DatasetRow
from permix.tasks.gsm8k import GSM8K
from permix.tasks.math import AIME_TASKS, MATH, MATH500
from permix.tasks.multiple_choice import MMLU
from permix.types import Message, Question, Split, digest, require_unique

__all__ = [
    "TASKS",
    "AnswerKind",
    "LoadedTask",
    "Task",
    "check_contamination",
    "check_task_name",
    "find_task",
    "is_own_task",
    "load_questions",
    "load_selection",
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
    """The task of this name; a module that it names is imported.

    Raises ConfigError naming the nearest known task, or what is wrong with the user's own.
    """
    check_known_task(name)
    return TASKS[name] if name in TASKS else _find_own_task(name)


def check_known_task(name: str) -> None:
    """Raise ConfigError unless the name is of a known task, or has the form of one of the user's own. Imports nothing."""
    if not isinstance(name, str):
        raise ConfigError(f"task = {truncate(repr(name), 80)}: must be the name of a task, such as gsm8k")
    if name not in TASKS and not is_own_task(name):
        near = closest_match(name, TASKS)
        hint = f"; did you mean {near}?" if near else ""
        own = "" if name.isidentifier() else "; a task of your own is named package.module:NAME"
        raise ConfigError(f"task.name = {name!r}: must be one of {', '.join(TASKS)}{hint}{own}")


def is_own_task(name: str) -> bool:
    """Whether the name is of a task of the user's own: package.module:NAME, or own-package.module:function."""
    return OWN_OBJECT_NAME.fullmatch(name.removeprefix("own-")) is not None


@functools.cache
def _find_own_task(name: str) -> Task:
    if name.startswith("own-"):
        answer = name.removeprefix("own-")
        module, function = _import_object("task.answer", answer)
        if not callable(function):
            raise ConfigError(f"task.answer = {answer!r}: must be a function, but is of the type {type(function).__name__}")
        return function_task(answer, function, _source_digest(module))
    module, task = _import_object("task.name", name)
    if not isinstance(task, Task):
        hint = f'; give a function as task.answer = "{name}"' if callable(task) else ""
        raise ConfigError(f"task.name = {name!r}: must be a permix.Task, but is of the type {type(task).__name__}{hint}")
    return own_task(replace(task, name=name), _source_digest(module))


_TASK_FUNCTIONS = ("questions", "extract", "answers_match", "scorer")


def is_permix_task(task: Task) -> bool:
    """Whether a task is one of `TASKS`, perhaps with another prompt: its functions are the same."""
    known = TASKS.get(task.name)
    return known is not None and all(getattr(task, name) is getattr(known, name) for name in _TASK_FUNCTIONS)


def own_task(task: Task, source: str) -> Task:
    """A task of the user's own, whose scoring may raise; `source` identifies the scoring.

    Raises ConfigError for a prompt template that would drop the question.
    """
    if "{question}" not in task.prompt_template:
        shown = truncate(repr(task.prompt_template), 80)
        raise ConfigError(f"task.name = {task.name!r}: its prompt_template = {shown}: must contain {{question}}")
    return replace(task, source=source)


def _import_object(option: str, name: str) -> tuple[ModuleType, Any]:
    """The module of "package.module:NAME", and the object. Raises ConfigError, naming `option`, if one of them is missing."""
    module_name, _, attribute = name.partition(":")
    # The script `permix` does not look into the current folder, unlike `python -m permix`. At the end of the path a file there
    # cannot take the place of an installed module.
    if str(Path.cwd()) not in sys.path and "" not in sys.path:
        sys.path.append(str(Path.cwd()))
    importlib.invalidate_caches()
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # the user's own module may raise anything
        if isinstance(error, ModuleNotFoundError) and error.name and f"{module_name}.".startswith(f"{error.name}."):
            raise ConfigError(
                f"{option} = {name!r}: there is no module {error.name}, neither installed nor in the current folder, {Path.cwd()}"
            ) from error
        raise ConfigError(f"{option} = {name!r}: the module cannot be imported: {_error_text(error)}") from error
    if not hasattr(module, attribute):
        near = closest_match(attribute, [one for one in vars(module) if not one.startswith("__")])
        hint = f"; did you mean {near}?" if near else ""
        raise ConfigError(f"{option} = {name!r}: the module {module_name} has no {attribute}{hint}")
    return module, getattr(module, attribute)


def _source_digest(module: ModuleType) -> str:
    """The digest of the module's file: a run made with another version of it is another run. It does not cover its imports."""
    path = getattr(module, "__file__", None)
    return digest(Path(path).read_bytes().decode("utf-8", "replace") if path else module.__name__)


def _error_text(error: BaseException) -> str:
    return truncate(escape_control(f"{type(error).__name__}: {error}"), 300)


def check_task_name(stage: BaseModel, source: str | None = None) -> None:
    """Raise ConfigError if the section [task] of a configuration names an unknown task. `source`: the configuration's file.

    Imports no module of the user's.
    """
    if isinstance(section := getattr(stage, "task", None), TaskConfig):
        with nullcontext() if source is None else error_context(source):
            check_known_task(section.name)


def load_questions(config: TaskConfig) -> tuple[Task, tuple[Question, ...]]:
    """The task and the questions of `load_selection`."""
    loaded = load_selection(config)
    return loaded.task, loaded.questions


def load_selection(config: TaskConfig) -> "LoadedTask":
    """The task that `config` names, with `config.prompt_template` if given, and its questions.

    The configuration of the result has the split and the number of the questions, also where `config` does not give them: of
    your own file then all questions (the heldout ones, if its rows name their splits), of other tasks 100 heldout ones.

    Raises ConfigError if the questions cannot be loaded or scored, and DataError for a bad file.
    """
    task = find_task(config.name)
    task.require_environment()
    if config.reads_own_file:
        with option_context("task.path", config.path):
            config, questions = select_custom_questions(task.name, config)
    elif task.source is None:
        with option_context("task.path", config.path):
            questions = task.questions(config)
    else:
        questions = _questions_of_own_task(task, config)
    if task.source is not None:
        _check_own_scorer(task, questions[0])
    asked = config.model_copy(update={"split": config.split, "n": len(questions)})
    return LoadedTask(asked, replace(task, prompt_template=config.prompt_template or task.prompt_template), questions)


def _questions_of_own_task(task: Task, config: TaskConfig) -> tuple[Question, ...]:
    """The questions of a `Task` in the user's module, under its name. Raises ConfigError if they are not what a task promises."""
    given = _given_questions(task, config)
    if "n" in config.model_fields_set and len(given) != config.n:
        raise ConfigError(f"task.n = {config.n}: {task.name} returned {len(given)} questions; it must return task.n of them")
    return given


def _given_questions(task: Task, config: TaskConfig) -> tuple[Question, ...]:
    try:
        given = tuple(task.questions(config))
    except PermixError:
        raise
    except Exception as error:  # the user's function may raise anything
        raise ConfigError(f"task.name = {task.name!r}: its questions cannot be loaded: {_error_text(error)}") from error
    _check_own_questions(task, given)
    # A plan's row names its task by that of the question, and the reward looks it up by this name.
    return tuple(one.model_copy(update={"task": task.name}) for one in given)


def _check_own_questions(task: Task, given: Sequence[Question]) -> None:
    """Raise ConfigError unless these are one or more questions with different ids."""
    if not given or not all(isinstance(one, Question) for one in given):
        shown = truncate(repr(given[:1]), 80)
        raise ConfigError(f"task.name = {task.name!r}: questions(config) must return permix.Question records, not {shown}")
    try:
        require_unique([one.id for one in given], "question")
    except ValueError as error:
        raise ConfigError(f"task.name = {task.name!r}: {error}") from error


def load_task_object(task: Task, n: int | None) -> "LoadedTask":
    """The questions of a `Task` that is an object: at most `n` of them are asked for, or 100.

    Raises ConfigError for questions or a scorer that cannot be used.
    """
    task.require_environment()
    if is_permix_task(task) and task.name.startswith("own-"):
        kind = task.name.removeprefix("own-")
        raise ConfigError(
            f'task: {task.name} has no questions of its own; give a list of questions, or a file, and answer="{kind}"'
        )
    config = TaskConfig().model_copy(update={"name": task.name, **({} if n is None else {"n": n})})
    if task.source is None:
        return LoadedTask(config, task, task.questions(config))
    return check_loaded_task(LoadedTask(config, task, _given_questions(task, config)))


def check_loaded_task(loaded: "LoadedTask") -> "LoadedTask":
    """The same, if it can be asked. Raises ConfigError without questions, and for a scorer of the user's that cannot score."""
    if not loaded.questions:
        raise ConfigError("task: there are no questions; give one at least")
    if loaded.task.source is not None:
        _check_own_questions(loaded.task, loaded.questions)
        _check_own_scorer(loaded.task, loaded.questions[0])
    return loaded


def _check_own_scorer(task: Task, question: Question) -> None:
    """Score the right answer of a question, so that a scorer which raises is found before a model is asked."""
    verdict = verify_completion(task, question.solution or question.gold, question.gold, question.text)
    if verdict.correct is None:
        is_function = task.name.startswith("own-")
        option = f"task.answer = {task.name.removeprefix('own-')!r}" if is_function else f"task.name = {task.name!r}"
        why = (verdict.error or "").removeprefix(f"{task.name}: ")
        raise ConfigError(f"{option}: cannot score the right answer of the question {question.id}: {why}")


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
    split: Split | Literal["all"] | None = None,
    n: int | None = None,
    path: str | Path | None = None,
    levels: Sequence[str] = (),
    seed: int = 0,
    prompt_template: str | None = None,
) -> LoadedTask:
    """Load `n` questions from one split of a task, or from all splits of your own file. `path` is a local file or folder in the
    published format. Defaults as in `load_selection`.

    Raises ConfigError for an unknown task or level or if there are fewer than n questions, and DataError for a bad file.
    """
    check_known_task(name)
    selection = {key: value for key, value in {"split": split, "n": n}.items() if value is not None}
    values = {
        "path": path,
        "levels": (levels,) if isinstance(levels, str) else levels,
        "seed": seed,
        "prompt_template": prompt_template,
        **selection,
    }
    return load_selection(build_config(TaskConfig, {"name": find_task(name).name, **values}, source=f"load_task({name!r})"))


_A_QUESTION = "must be a dict with question and answer, or a permix.Question"


def task_from_questions(questions: Iterable[Question | Mapping[str, Any]], answer: str | None) -> LoadedTask:
    """Load questions made in Python.

    They are `Question` records, or mappings with the fields of a file's row (`permix.tasks.custom`) but `split`, and optionally
    an `id`; also the rows of a data frame. `answer` says how answers are compared, an `AnswerKind` or "package.module:function";
    it may be None if all are records of one known task.

    Raises ConfigError if it is unknown how to compare answers, and DataError for a bad question or a repeated id.
    """
    items = given_items(questions, "task", f"must be a task, its name, a file, or a list of which each item {_A_QUESTION}")
    for index, one in enumerate(items):
        if not isinstance(one, Question | Mapping):
            raise DataError(f"task[{index}] = {quote_value(one)}: {_A_QUESTION}")
    task = _task_of_questions(items, answer)
    rows = [DatasetRow(f"task[{index}]", given_fields(one)) for index, one in enumerate(items) if not isinstance(one, Question)]
    read = iter(_questions_from_fields(task.name, rows))
    records = [one if isinstance(one, Question) else next(read) for one in items]
    places: dict[str, int] = {}
    for index, one in enumerate(records):
        if (first := places.setdefault(one.id, index)) != index:
            raise DataError(
                f"task[{index}]: question id {one.id!r} occurs twice, first at task[{first}]; keep one, or give both an id"
            )
    if task.source is not None:
        _check_own_scorer(task, records[0])
    values = {"name": task.name, "answer": answer, "n": len(records)}
    return LoadedTask(TaskConfig().model_copy(update=values), task, tuple(records))


def _task_of_questions(questions: Sequence[Question | Mapping[str, Any]], answer: str | None) -> Task:
    if not questions:
        raise ConfigError("task: there are no questions; give one at least")
    if answer is not None:
        check_answer_kind(answer)
        return find_task(f"own-{answer}")
    names = {one.task if isinstance(one, Question) else None for one in questions}
    name = names.pop()
    if names or name not in TASKS:
        raise ConfigError('task: say how answers are compared: answer="number", "math", "exact" or "choice"')
    return TASKS[name]


def check_answer_kind(answer: object) -> None:
    """Raise ConfigError unless `answer` is an `AnswerKind` or the name of a function, "package.module:function"."""
    if callable(answer):
        raise ConfigError('answer: is a function; put it into a module and give its name, answer="package.module:function"')
    try:
        require_answer_kind(answer)
    except ValueError as error:
        raise ConfigError(f"answer = {truncate(repr(answer), 80)}: {error}") from error


def _questions_from_fields(task: str, rows: Sequence[DatasetRow]) -> list[Question]:
    for row in rows:
        if "split" in row.fields:
            raise row.error(
                "split", "has no effect in a list, which is asked whole; give the rows of one split, without the field"
            )
    return [
        question.model_copy(update={"id": _given_id(row)}) if "id" in row.fields else question
        for row, question in zip(rows, questions_of_rows(task, rows), strict=True)
    ]


def _given_id(row: DatasetRow) -> str:
    """The id of a question: a text, or the integer of a data set as a text."""
    value = row.fields["id"]
    return str(value) if is_whole_number(value) else row.text("id")
