"""PersonaGym's data, or questions of our own format, read and checked.

A folder holds `questions/{persona}.json` (task → questions; also one folder deeper, as in PersonaGym's repository) and
`personas.json`, a list of the personas' texts; without that list the names of the files are the personas. Without a folder
questions, the files lie in the folder itself. A file of ours, `questions.jsonl`, has one `GymQuestion` a line.

Whatever is wrong first raises DataError, naming file, persona and task.

The nouns of PersonaGym's kind of question.

A folder of PersonaGym has `personas.json`, `questions/{persona}.json` (task → questions) and `rubrics/{task}.txt`. A file of
ours, `questions.jsonl`, has one `GymQuestion` a line; the persona's text stands in every line, so it needs no other file.

What PersonaGym and we call the same thing: tasks, personas, questions, and the files of a persona.

A persona's id is made of its text, a question's id of its persona's text, its task and its own: both stay the same wherever the
data lie and whatever else is asked.

Files of scores that PersonaGym's code and its forks have published, to stand beside ours.

They hold a mean by task, maybe of one persona, and mostly the mean of those; no intervals and no counts. What arithmetic is
behind them is told in `permix.metrics.judge_scores`.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

from pydantic import Field, ValidationError

from permix.config import GymConfig, GymTask
from permix.errors import ConfigError, DataError
from permix.personas.loading import derived_id, persona_text, plain_text
from permix.storage.rows import Row, nearest, read_rows, show
from permix.types import Persona, Record, digest, normalise


class GymQuestion(Record):
    """One question to one persona, to see one of the five tasks. `setting`: the situation it was written for, where known."""

    id: str = Field(min_length=1)
    persona_id: str = Field(min_length=1)
    persona: str = Field(min_length=1)
    task: GymTask
    text: str = Field(min_length=1)
    setting: str | None = None


class ScoreExample(Record):
    """One line of `examples.jsonl`: an answer to a question that would earn this score under its task's rubric."""

    question_id: str
    score: int = Field(ge=1, le=5)
    text: str = Field(min_length=1)


TASKS: tuple[GymTask, ...] = get_args(GymTask)

PUBLISHED_NAMES: Mapping[str, GymTask] = {"Toxicity": "Toxicity Control"}
"""Names of tasks in PersonaGym's files that are not those of its paper."""


class PersonaFiles(NamedTuple):
    """The files of a folder, each named for a persona. `plain`: by what is left of a name where only letters and digits count."""

    exact: Mapping[str, Path]
    plain: Mapping[str, Path]

    def get(self, text: str) -> Path | None:
        """A persona's file. Its name may lack, or hold others for, characters that a file system cannot hold."""
        return self.exact.get(text) or self.plain.get(_plain(text))


def persona_files(folder: Path, ending: str) -> PersonaFiles:
    """The files of a folder whose names are a persona's text and this ending."""
    exact = {file.name.removesuffix(ending): file for file in sorted(folder.glob(f"*{ending}"))}
    return PersonaFiles(exact, {_plain(name): file for name, file in exact.items()})


def _plain(text: str) -> str:
    return "".join(char for char in normalise(text) if char.isalnum())


def task_named(name: object, where: str) -> GymTask:
    """The task of a name in PersonaGym's files. DataError when there is none."""
    found = PUBLISHED_NAMES.get(str(name), name)
    for task in TASKS:
        if task == found:
            return task
    raise DataError(f"{where}: unknown task {show(name)}; {nearest(str(name), TASKS)}")


def as_persona(text: object) -> Persona:
    """A persona of PersonaGym as one that completes "You are ...": "A 71-year-old nurse" gets a small first letter.

    Raises ValueError for what is no such text.
    """
    plain = persona_text(text)
    completed = re.sub(r"^(An?|The)\b", lambda article: article[0].lower(), plain)
    return Persona(id=derived_id(completed), text=completed)


def as_question(persona: Persona, task: GymTask, text: object) -> GymQuestion:
    """One question of PersonaGym's to one persona. Raises ValueError for what is no text."""
    plain = plain_text(text)
    name = f"{task.lower().replace(' ', '-')}-{digest(normalise(persona.text), task, normalise(plain), length=12)}"
    return GymQuestion(id=name, persona_id=persona.id, persona=persona.text, task=task, text=plain)


def read_value(path: Path) -> Any:
    """What a JSON file holds. DataError when it is missing, no text or no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except (ValueError, RecursionError, OSError) as error:
        raise DataError(f"{path}: not JSON: {error}") from error


Gym = tuple[tuple[Persona, ...], tuple[GymQuestion, ...]]


def read_gym(config: GymConfig) -> Gym:
    """The personas, and the questions of each, in the order of the file. DataError names file, persona and task."""
    place = Path(_downloaded(config.hub)) if config.hub else config.path
    if place is None:
        raise ConfigError("personagym: give path, a folder of PersonaGym or a questions.jsonl, or hub")
    everything = _from_folder(place, config.tasks or TASKS) if place.is_dir() else _from_file(place)
    questions = tuple(_chosen(everything, config))
    if not questions:
        raise DataError(f"{place}: holds no question of personagym.tasks = {list(config.tasks or TASKS)}")
    personas = {one.persona_id: Persona(id=one.persona_id, text=one.persona) for one in questions}
    return tuple(personas.values()), questions


def _chosen(questions: Sequence[GymQuestion], config: GymConfig) -> Iterator[GymQuestion]:
    seen: Counter[tuple[str, GymTask]] = Counter()
    for one in questions:
        seen[one.persona_id, one.task] += 1
        if (not config.tasks or one.task in config.tasks) and (not config.light or seen[one.persona_id, one.task] == 1):
            yield one


def _downloaded(repo: str) -> str:
    """The folder of a data set of the hub."""
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HFValidationError
    except ImportError as error:
        raise ConfigError(f"personagym.hub = {repo!r}: needs the extra local: pip install 'permix[local]'") from error
    try:
        return str(snapshot_download(repo, repo_type="dataset"))
    except (OSError, HFValidationError) as error:  # every failure of the hub and of the network is an OSError
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"personagym.hub = {repo!r}: cannot be read: {reason}; personagym.path takes a local folder") from error


# A folder of PersonaGym


def _from_folder(folder: Path, tasks: Sequence[GymTask]) -> list[GymQuestion]:
    files = persona_files(_questions_folder(folder), ".json")
    found: list[GymQuestion] = []
    for text, persona in _listed(folder, files).items():
        file = files.get(text)
        if file is None:
            raise DataError(f"{folder}: no file of questions for persona {show(text)}")
        found += _of_persona(file, persona, tasks)
    return found


def _questions_folder(folder: Path) -> Path:
    """questions/, or the one folder in it that holds the files; without a folder questions, the folder itself."""
    top = folder / "questions"
    if not top.is_dir():
        if any(folder.glob("*.json")):
            return folder
        raise DataError(f"{folder}: holds no folder questions; give a folder of PersonaGym, or a questions.jsonl")
    inside = [one for one in (top, *sorted(top.iterdir())) if one.is_dir() and any(one.glob("*.json"))]
    if len(inside) != 1:
        said = ", ".join(str(one) for one in inside) or "none of its folders"
        raise DataError(f"{top}: {said} hold files of questions; give the one folder that is to be asked")
    return inside[0]


def _listed(folder: Path, files: PersonaFiles) -> dict[str, Persona]:
    """Every persona by its text as published."""
    path, found = folder / "personas.json", dict[str, Persona]()
    texts = read_value(path) if path.exists() else list(files.exact)
    if not isinstance(texts, list) or not texts:
        raise DataError(f"{path}: must hold a list of personas' texts")
    ids = set[str]()
    for place, text in enumerate(texts, 1):
        try:
            persona = as_persona(text)
        except ValueError as error:
            raise DataError(f"{path}: persona {place} = {show(text)}: {error}") from error
        if persona.id in ids:
            raise DataError(f"{path}: persona {place} = {show(text)}: stands there twice")
        ids.add(persona.id)
        found[text] = persona
    return found


def _of_persona(file: Path, persona: Persona, tasks: Sequence[GymTask]) -> list[GymQuestion]:
    by_task: dict[GymTask, list[GymQuestion]] = {}
    fields = read_value(file)
    if not isinstance(fields, dict):
        raise DataError(f"{file}: must hold an object, task → questions; persona {show(persona.text)}")
    for name, texts in fields.items():
        task = task_named(name, str(file))
        if task in by_task:
            raise DataError(f"{file}: task {task!r} stands there under two names")
        by_task[task] = _of_task(f"{file}: task {task!r}", persona, task, texts)
    for task in tasks:
        if task not in by_task:
            raise DataError(f"{file}: no questions of task {task!r}; persona {show(persona.text)}")
    return [question for task in by_task for question in by_task[task]]


def _of_task(where: str, persona: Persona, task: GymTask, texts: object) -> list[GymQuestion]:
    if not isinstance(texts, list) or not texts:
        raise DataError(f"{where}: must be a list of questions, at least one; persona {show(persona.text)}")
    found: dict[str, GymQuestion] = {}
    for place, text in enumerate(texts, 1):
        try:
            question = as_question(persona, task, text)
        except ValueError as error:
            raise DataError(f"{where}, question {place} = {show(text)}: {error}") from error
        if question.id in found:
            raise DataError(f"{where}, question {place} = {show(text)}: asked before; questions must be distinct")
        found[question.id] = question
    return list(found.values())


# A file of ours


def _from_file(path: Path) -> list[GymQuestion]:
    found, texts = dict[str, GymQuestion](), dict[str, str]()
    asked = set[tuple[str, GymTask, str]]()
    for row in read_rows(path, "question", (".jsonl",)):
        one = _validated(row)
        who = f"{row.where}: persona_id = {one.persona_id!r}, task {one.task!r}"
        if texts.setdefault(one.persona_id, one.persona) != one.persona:
            raise DataError(f"{who}: persona = {show(one.persona)}, and earlier {show(texts[one.persona_id])}")
        if one.id in found:
            raise DataError(f"{who}: id = {one.id!r}: used before; ids must be unique")
        if (content := (one.persona_id, one.task, normalise(one.text))) in asked:
            raise DataError(f"{who}: text = {show(one.text)}: asked before; questions must be distinct")
        asked.add(content)
        found[one.id] = one
    return list(found.values())


def _validated(row: Row) -> GymQuestion:
    for name, check in (("text", plain_text), ("persona", persona_text)):
        try:
            check(row.fields.get(name))
        except ValueError as error:
            raise DataError(f"{row.where}: {name} = {show(row.fields.get(name))}: {error}") from error
    try:
        return GymQuestion.model_validate(row.fields)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise DataError(f"{row.where}: {field} = {show(row.fields.get(field))}: {first['msg']}") from error


OVERALL = ("PersonaScore", "overall_score")
"""What the mean over tasks is called."""


class PublishedScores(Record):
    """A model's scores as a file has them, by task, rounded as it rounds them. `n_personas`: of how many files they are the mean.

    `persona_score` is the file's own: of PersonaGym's published files, one differs from the mean of its tasks by 0.2.
    """

    tasks: dict[GymTask, float]
    persona_score: float | None
    n_personas: int | None = None


def read_published(path: Path) -> PublishedScores:
    """A scores.json, or a folder of {persona}_score.json as OpenCharacter's fork writes, of which it is the mean over personas.

    Read are task → mean with "PersonaScore" (PersonaGym, OpenCharacter); task → {"scores": [a block's, ...]}; and
    {"task_scores": task → mean, "overall_score": ...}. DataError names file and task.
    """
    if not path.is_dir():
        return _scores(path)
    files = sorted(path.glob("*_score.json"))
    if not files:
        raise DataError(f"{path}: holds no file *_score.json; give a scores.json, or a folder of such files")
    found = [_scores(file) for file in files]
    tasks = {task: [one.tasks[task] for one in found if task in one.tasks] for one in found for task in one.tasks}
    overall = [one.persona_score for one in found if one.persona_score is not None]
    return PublishedScores(
        tasks={task: sum(values) / len(values) for task, values in tasks.items()},
        persona_score=sum(overall) / len(overall) if overall else None,
        n_personas=len(files),
    )


def _scores(path: Path) -> PublishedScores:
    fields = read_value(path)
    if not isinstance(fields, dict):
        raise DataError(f"{path}: must hold an object, task → score")
    by_name: Mapping[str, Any] = fields["task_scores"] if isinstance(fields.get("task_scores"), dict) else fields
    tasks = {
        task_named(name, str(path)): _score(value, f"{path}: {name}") for name, value in by_name.items() if name not in OVERALL
    }
    if not tasks:
        raise DataError(f"{path}: holds the score of no task")
    overall = next((_score(fields[name], f"{path}: {name}") for name in OVERALL if name in fields), None)
    return PublishedScores(tasks=tasks, persona_score=overall)


def _score(value: Any, where: str) -> float:
    """A number of 0 to 5; or the mean of a list of such under "scores"."""
    if isinstance(value, dict) and isinstance(value.get("scores"), list) and value["scores"]:
        numbers = [_score(one, where) for one in value["scores"]]
        return sum(numbers) / len(numbers)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 5:
        raise DataError(f"{where} = {show(value)}: must be a score of 0 to 5")
    return float(value)
