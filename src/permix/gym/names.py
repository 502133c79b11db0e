"""What PersonaGym and we call the same thing: tasks, personas, questions, and the files of a persona.

A persona's id is made of its text, a question's id of its persona's text, its task and its own: both stay the same wherever the
data lie and whatever else is asked.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, get_args

from permix.config import GymTask
from permix.errors import DataError
from permix.gym.base import GymQuestion
from permix.personas.load import derived_id, persona_text, plain_text
from permix.personas.rows import nearest, show
from permix.types import Persona, digest, normalise

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
