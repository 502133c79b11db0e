"""Read and check PersonaGym's data: questions, personas and published score files.

A PersonaGym folder has `personas.json`, a list of the personas' texts, `questions/{persona}.json` (task → questions), and
`rubrics/{task}.txt`. The question files may also be one folder deeper, as in PersonaGym's repository, or in the folder itself.
Without `personas.json` the names of the files are the personas. permix's own file, `questions.jsonl`, has one
`PersonaGymQuestion` per line; every line has its persona's text, so no other file is needed.

A persona's id is made from its text, and a question's id from its persona's text, its task and its own text. So ids do not depend
on the data's place or on other questions.

Score files of PersonaGym's code and its forks have the mean of each task and mostly the mean over tasks, sometimes for a single
persona, but no intervals and no counts. `permix.metrics.judge_scores` describes how these are computed.

The first mistake in a file raises DataError, naming file, persona and task.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

from pydantic import Field, ValidationError

from permix.config import PersonaGymConfig, PersonaGymTask
from permix.errors import ConfigError, DataError, missing_package_error
from permix.personas.loading import check_persona_text, check_plain_text, derive_id
from permix.prompts import begins_with_you_are
from permix.storage.rows import SourceRow, quote_value, read_rows, valid_names_hint
from permix.types import Persona, Record, canonical_text, digest


class PersonaGymQuestion(Record):
    """A question for one persona, of one of the five tasks. `setting` is the situation that it is about, if known.
    `whole_prompt`: the persona is a whole system prompt, as in `Persona`."""

    id: str = Field(min_length=1)
    persona_id: str = Field(min_length=1)
    persona: str = Field(min_length=1)
    task: PersonaGymTask
    text: str = Field(min_length=1)
    setting: str | None = None
    whole_prompt: bool = Field(default=False, exclude_if=lambda value: not value)


class ScoreExample(Record):
    """One line of `examples.jsonl`: an example answer that should get this score (1 to 5) by its task's rubric."""

    question_id: str
    score: int = Field(ge=1, le=5)
    text: str = Field(min_length=1)


PERSONAGYM_TASKS: tuple[PersonaGymTask, ...] = get_args(PersonaGymTask)

TASK_ALIASES: Mapping[str, PersonaGymTask] = {"Toxicity": "Toxicity Control"}
"""Task names in PersonaGym's files that differ from its paper's."""


class PersonaFiles(NamedTuple):
    """The files of a folder, each named after a persona: by the whole name, and by its letters and digits only."""

    by_name: Mapping[str, Path]
    by_alphanumeric: Mapping[str, Path]

    def find(self, text: str) -> Path | None:
        """A persona's file, or None. Its name may leave out or replace characters that file systems do not allow."""
        return self.by_name.get(text) or self.by_alphanumeric.get(_alphanumeric(text))


def index_persona_files(folder: Path, suffix: str) -> PersonaFiles:
    """The files of a folder that are named {persona's text}{suffix}."""
    exact = {file.name.removesuffix(suffix): file for file in sorted(folder.glob(f"*{suffix}"))}
    return PersonaFiles(exact, {_alphanumeric(name): file for name, file in exact.items()})


def _alphanumeric(text: str) -> str:
    return "".join(char for char in canonical_text(text) if char.isalnum())


def parse_task_name(name: object, where: str) -> PersonaGymTask:
    """The task with this name in PersonaGym's files. Raises DataError, starting with `where`, if there is no such task."""
    found = TASK_ALIASES.get(str(name), name)
    for task in PERSONAGYM_TASKS:
        if task == found:
            return task
    raise DataError(f"{where}: unknown task {quote_value(name)}; {valid_names_hint(str(name), PERSONAGYM_TASKS)}")


def persona_from_personagym(text: object) -> Persona:
    """A persona from PersonaGym's text. It must complete "You are ...", so "A 71-year-old nurse" gets a lower-case first letter.

    Raises ValueError if it is not a valid text of a persona.
    """
    plain = check_persona_text(text)
    completed = re.sub(r"^(An?|The)\b", lambda article: article[0].lower(), plain)
    return Persona(id=derive_id(completed), text=completed)


def make_personagym_question(persona: Persona, task: PersonaGymTask, text: object) -> PersonaGymQuestion:
    """A question of PersonaGym for one persona. Raises ValueError if `text` is not a valid text."""
    plain = check_plain_text(text)
    name = f"{task.lower().replace(' ', '-')}-{digest(canonical_text(persona.text), task, canonical_text(plain), length=12)}"
    return PersonaGymQuestion(
        id=name, persona_id=persona.id, persona=persona.text, task=task, text=plain, whole_prompt=persona.whole_prompt
    )


def read_json_value(path: Path) -> Any:
    """The content of a JSON file. Raises DataError if it is missing or not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except (ValueError, RecursionError, OSError) as error:
        raise DataError(f"{path}: not JSON: {error}") from error


PersonaGymData = tuple[tuple[Persona, ...], tuple[PersonaGymQuestion, ...]]


def read_personagym(config: PersonaGymConfig) -> PersonaGymData:
    """Read the personas and their questions, in the order of the file.

    Raises DataError, naming file, persona and task, for bad data. Raises ConfigError without a source, or if the hub fails.
    """
    source = Path(_download_dataset(config.hub)) if config.hub else config.path
    if source is None:
        raise ConfigError("personagym: give path, a folder of PersonaGym or a questions.jsonl, or hub")
    if not source.exists():
        raise DataError(
            f"{source}: no such folder or file; give a clone of PersonaGym (https://github.com/vsamuel2003/PersonaGym) or the "
            "questions.jsonl that `permix questions` writes"
        )
    everything = _read_folder(source, config.tasks or PERSONAGYM_TASKS) if source.is_dir() else _read_questions_jsonl(source)
    questions = tuple(_select_questions(everything, config))
    if not questions:
        raise DataError(f"{source}: has no question of personagym.tasks = {list(config.tasks or PERSONAGYM_TASKS)}")
    personas = {one.persona_id: Persona(id=one.persona_id, text=one.persona, whole_prompt=one.whole_prompt) for one in questions}
    return tuple(personas.values()), questions


def _select_questions(questions: Sequence[PersonaGymQuestion], config: PersonaGymConfig) -> Iterator[PersonaGymQuestion]:
    seen: Counter[tuple[str, PersonaGymTask]] = Counter()
    for one in questions:
        seen[one.persona_id, one.task] += 1
        if (not config.tasks or one.task in config.tasks) and (not config.light or seen[one.persona_id, one.task] == 1):
            yield one


def _download_dataset(repo: str) -> str:
    """Download a data set of the hub, and return its folder."""
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HFValidationError
    except ImportError as error:
        where = f"personagym.hub = {repo!r}: reading the hub"
        raise missing_package_error(["huggingface_hub"], where, "give personagym.path, a local copy") from error
    try:
        return str(snapshot_download(repo, repo_type="dataset"))
    except (OSError, HFValidationError) as error:  # all failures of the hub and of the network are OSErrors
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"personagym.hub = {repo!r}: cannot be read: {reason}; or give a local personagym.path") from error


# A folder of PersonaGym


def _read_folder(folder: Path, tasks: Sequence[PersonaGymTask]) -> list[PersonaGymQuestion]:
    files = index_persona_files(_questions_folder(folder), ".json")
    questions: list[PersonaGymQuestion] = []
    for text, persona in _read_personas(folder, files).items():
        file = files.find(text)
        if file is None:
            raise DataError(f"{folder}: has no question file for persona {quote_value(text)}")
        questions += _read_persona_questions(file, persona, tasks)
    return questions


def _questions_folder(folder: Path) -> Path:
    """The folder with the question files: questions/, or the only subfolder with such files, or else the folder itself."""
    top = folder / "questions"
    if not top.is_dir():
        if any(folder.glob("*.json")):
            return folder
        raise DataError(f"{folder}: has no folder questions/; give a PersonaGym folder or a questions.jsonl")
    inside = [one for one in (top, *sorted(top.iterdir())) if one.is_dir() and any(one.glob("*.json"))]
    if len(inside) != 1:
        folders = ", ".join(str(one) for one in inside) or "none"
        raise DataError(f"{top}: must have exactly one folder with question files, has: {folders}; give the path of one")
    return inside[0]


def _read_personas(folder: Path, files: PersonaFiles) -> dict[str, Persona]:
    """Every persona by its published text."""
    path, personas = folder / "personas.json", dict[str, Persona]()
    texts = read_json_value(path) if path.exists() else list(files.by_name)
    if not isinstance(texts, list) or not texts:
        raise DataError(f"{path}: must be a list of personas' texts")
    ids = set[str]()
    for place, text in enumerate(texts, 1):
        try:
            persona = persona_from_personagym(text)
        except ValueError as error:
            raise DataError(f"{path}: persona {place} = {quote_value(text)}: {error}") from error
        if persona.id in ids:
            raise DataError(f"{path}: persona {place} = {quote_value(text)}: occurs twice")
        ids.add(persona.id)
        personas[text] = persona
    return personas


def _read_persona_questions(file: Path, persona: Persona, tasks: Sequence[PersonaGymTask]) -> list[PersonaGymQuestion]:
    by_task: dict[PersonaGymTask, list[PersonaGymQuestion]] = {}
    fields = read_json_value(file)
    if not isinstance(fields, dict):
        raise DataError(f"{file}: must be an object, task → questions; persona {quote_value(persona.text)}")
    for name, texts in fields.items():
        task = parse_task_name(name, str(file))
        if task in by_task:
            raise DataError(f"{file}: task {task!r} occurs under two names")
        by_task[task] = _parse_task_questions(f"{file}: task {task!r}", persona, task, texts)
    for task in tasks:
        if task not in by_task:
            raise DataError(f"{file}: no questions of task {task!r}; persona {quote_value(persona.text)}")
    return [question for task in by_task for question in by_task[task]]


def _parse_task_questions(where: str, persona: Persona, task: PersonaGymTask, texts: object) -> list[PersonaGymQuestion]:
    if not isinstance(texts, list) or not texts:
        raise DataError(f"{where}: must be a list of questions, at least one; persona {quote_value(persona.text)}")
    questions: dict[str, PersonaGymQuestion] = {}
    for place, text in enumerate(texts, 1):
        try:
            question = make_personagym_question(persona, task, text)
        except ValueError as error:
            raise DataError(f"{where}, question {place} = {quote_value(text)}: {error}") from error
        if question.id in questions:
            raise DataError(f"{where}, question {place} = {quote_value(text)}: occurs twice; questions must be distinct")
        questions[question.id] = question
    return list(questions.values())


# permix's own file


def _read_questions_jsonl(path: Path) -> list[PersonaGymQuestion]:
    questions, texts = dict[str, PersonaGymQuestion](), dict[str, str]()
    seen = set[tuple[str, PersonaGymTask, str]]()
    for row in read_rows(path, "question", (".jsonl",)):
        one = _parse_question(row)
        context = f"{row.where}: persona_id = {one.persona_id!r}, task {one.task!r}"
        if texts.setdefault(one.persona_id, one.persona) != one.persona:
            raise DataError(f"{context}: persona = {quote_value(one.persona)}, but earlier {quote_value(texts[one.persona_id])}")
        if one.id in questions:
            raise DataError(f"{context}: id = {one.id!r}: used before; ids must be unique")
        if (content := (one.persona_id, one.task, canonical_text(one.text))) in seen:
            raise DataError(f"{context}: text = {quote_value(one.text)}: occurs twice; questions must be distinct")
        seen.add(content)
        questions[one.id] = one
    return list(questions.values())


def _parse_question(row: SourceRow) -> PersonaGymQuestion:
    for name in ("text", "persona"):
        try:
            check_plain_text(row.fields.get(name))
        except ValueError as error:
            raise DataError(f"{row.where}: {name} = {quote_value(row.fields.get(name))}: {error}") from error
    try:
        question = PersonaGymQuestion.model_validate(row.fields)
        return question.model_copy(update={"whole_prompt": question.whole_prompt or begins_with_you_are(question.persona)})
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise DataError(f"{row.where}: {field} = {quote_value(row.fields.get(field))}: {first['msg']}") from error


OVERALL_SCORE_KEYS = ("PersonaScore", "overall_score")
"""Names of the mean over tasks in score files."""


class PublishedScores(Record):
    """A model's published scores by task, with the file's rounding. `n_personas` is the number of averaged files, if several.

    `persona_score` is the file's own overall score. It is not recomputed: in one of PersonaGym's published files it differs from
    the mean of the tasks by 0.2.
    """

    tasks: dict[PersonaGymTask, float]
    persona_score: float | None
    n_personas: int | None = None


def read_published_scores(path: Path) -> PublishedScores:
    """Read a scores.json, or the mean over personas of a folder of {persona}_score.json, as OpenCharacter's fork writes them.

    Valid contents are task → mean with "PersonaScore" (PersonaGym, OpenCharacter); task → {"scores": [one for each block, ...]};
    and {"task_scores": task → mean, "overall_score": ...}. Raises DataError naming file and task.
    """
    if not path.is_dir():
        return _read_score_file(path)
    files = sorted(path.glob("*_score.json"))
    if not files:
        raise DataError(f"{path}: has no file *_score.json; give a scores.json, or a folder of such files")
    found = [_read_score_file(file) for file in files]
    tasks = {task: [one.tasks[task] for one in found if task in one.tasks] for one in found for task in one.tasks}
    overall = [one.persona_score for one in found if one.persona_score is not None]
    return PublishedScores(
        tasks={task: sum(values) / len(values) for task, values in tasks.items()},
        persona_score=sum(overall) / len(overall) if overall else None,
        n_personas=len(files),
    )


def _read_score_file(path: Path) -> PublishedScores:
    fields = read_json_value(path)
    if not isinstance(fields, dict):
        raise DataError(f"{path}: must be an object, task → score")
    by_name: Mapping[str, Any] = fields["task_scores"] if isinstance(fields.get("task_scores"), dict) else fields
    tasks = {
        parse_task_name(name, str(path)): _parse_score_value(value, f"{path}: {name}")
        for name, value in by_name.items()
        if name not in OVERALL_SCORE_KEYS
    }
    if not tasks:
        raise DataError(f"{path}: has no score of any task")
    overall = next((_parse_score_value(fields[name], f"{path}: {name}") for name in OVERALL_SCORE_KEYS if name in fields), None)
    return PublishedScores(tasks=tasks, persona_score=overall)


def _parse_score_value(value: Any, where: str) -> float:
    """A number from 0 to 5, or the mean of the list of such numbers under "scores"."""
    if isinstance(value, dict) and isinstance(value.get("scores"), list) and value["scores"]:
        numbers = [_parse_score_value(one, where) for one in value["scores"]]
        return sum(numbers) / len(numbers)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 5:
        raise DataError(f"{where} = {quote_value(value)}: must be a score from 0 to 5")
    return float(value)
