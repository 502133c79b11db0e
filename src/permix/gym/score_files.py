"""Files of scores that PersonaGym's code and its forks have published, to stand beside ours.

They hold a mean by task, maybe of one persona, and mostly the mean of those; no intervals and no counts. What arithmetic is
behind them is told in `permix.gym.published`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from permix.config import GymTask
from permix.errors import DataError
from permix.gym.names import read_value, task_named
from permix.personas.rows import show
from permix.types import Record

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
