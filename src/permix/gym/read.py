"""PersonaGym's data, or questions of our own format, read and checked.

A folder holds `questions/{persona}.json` (task → questions; also one folder deeper, as in PersonaGym's repository) and
`personas.json`, a list of the personas' texts; without that list the names of the files are the personas. Without a folder
questions, the files lie in the folder itself. A file of ours, `questions.jsonl`, has one `GymQuestion` a line.

Whatever is wrong first raises DataError, naming file, persona and task.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from pydantic import ValidationError

from permix.config import GymConfig, GymTask
from permix.errors import ConfigError, DataError
from permix.gym.base import GymQuestion
from permix.gym.names import TASKS, PersonaFiles, as_persona, as_question, persona_files, read_value, task_named
from permix.personas.load import persona_text, plain_text
from permix.personas.rows import Row, read_rows, show
from permix.types import Persona, normalise

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
