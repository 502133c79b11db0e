"""The section "As published": PersonaScore by the arithmetic of PersonaGym's released code, and scores that others published.

Contract: from ledgers and records, like all of the report. All judges of a run count together, as they do in the released code;
what that makes of scores is told in `permix.gym.published`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from permix.config import ReportStage
from permix.errors import ConfigError
from permix.evals.answers import AskedQuestion, questions_asked
from permix.evals.stats import Array
from permix.gym.names import TASKS
from permix.gym.published import AsPublished, as_published
from permix.gym.score_files import PublishedScores, read_published
from permix.judging.base import ItemKey
from permix.judging.ledger import judges_of, read_judgements
from permix.progress import say
from permix.report.runs import ModelRuns
from permix.report.tables import grid, label, number, of
from permix.types import Record

GYM = "fidelity, personagym"
HEADINGS = (
    "scores of", "judges", "PersonaScore as published", *TASKS, "ours", "as published − ours", "blocks without a score",
    "last persona alone",
)  # fmt: skip
NOTE = (
    "The same scores by the arithmetic of PersonaGym's released code: answers in blocks of five, judges averaged block by block, "
    "a block that could not be read counted as 0. Ours counts every score alike and leaves out what has none; judges count "
    "together here, and apart elsewhere. The code saves only the last persona's scores. Lines without judges are of files."
)


class Published(Record):
    """What the section holds, by label: our runs with their judges, and files of others."""

    runs: dict[str, AsPublished]
    judges: dict[str, tuple[str, ...]]
    files: dict[str, PublishedScores]


class Laid(NamedTuple):
    """Scores as the arithmetic takes them, NaN without one, and which questions there are."""

    score_J_P_T_Q: Array
    asked_P_T_Q: NDArray[np.bool_]


def published(models: Sequence[ModelRuns], config: ReportStage) -> Published:
    """What `as_published` and `published` ask for; empty where neither does. ConfigError or DataError for a bad file."""
    runs, judges = dict[str, AsPublished](), dict[str, tuple[str, ...]]()
    for model in models:
        folders = judges_of(model.runs[GYM].path) if config.as_published and GYM in model.runs else []
        if folders:
            laid = lay(questions_asked(model.runs[GYM].path), [_scores(folder) for folder in folders])
            runs[model.label] = as_published(laid.score_J_P_T_Q, laid.asked_P_T_Q)
            judges[model.label] = tuple(folder.name for folder in folders)
    if config.as_published and not runs:
        say("note: as_published: no run here has answers to PersonaGym that a judge has scored")
    return Published(runs=runs, judges=judges, files=dict(_file(one) for one in config.published))


def lay(asked: Sequence[AskedQuestion], scores: Sequence[Mapping[ItemKey, int]]) -> Laid:
    """The scores of one run, a mapping a judge; personas and the questions of each in the order asked, tasks as `TASKS`."""
    persona_at = {name: at for at, name in enumerate(dict.fromkeys(question.persona_id for question in asked))}
    places: dict[tuple[int, int], list[AskedQuestion]] = {}
    for question in asked:
        places.setdefault((persona_at[question.persona_id], TASKS.index(question.task)), []).append(question)
    shape = len(persona_at), len(TASKS), max(map(len, places.values()))
    score_J_P_T_Q, asked_P_T_Q = np.full((len(scores), *shape), np.nan), np.zeros(shape, dtype=bool)
    for (p, t), questions in places.items():
        for q, question in enumerate(questions):
            asked_P_T_Q[p, t, q] = True
            score_J_P_T_Q[:, p, t, q] = [judge.get(_key(question), np.nan) for judge in scores]
    return Laid(score_J_P_T_Q, asked_P_T_Q)


def published_data(found: Published | None) -> dict[str, object]:
    """For table.json."""
    return {"published": found.model_dump(mode="json")} if found and (found.runs or found.files) else {}


def published_table(found: Published | None) -> str:
    """GitHub Markdown: a line a model of ours, then a line a file; empty where there is neither."""
    if not found or not (found.runs or found.files):
        return ""
    ours = [_line_of_run(name, one, found.judges[name]) for name, one in found.runs.items()]
    return grid(HEADINGS, [*ours, *(_line_of_file(name, one) for name, one in found.files.items())])


def _key(question: AskedQuestion) -> ItemKey:
    return ItemKey("none", str(question.persona_id), question.persona_id, question.id, 0, str(question.task))


def _scores(folder: Path) -> dict[ItemKey, int]:
    return {key: one.score for key, one in read_judgements(folder).items() if one.score is not None}


def _file(entry: str) -> tuple[str, PublishedScores]:
    name, equals, path = entry.partition("=")
    if not equals or not name.strip() or not path.strip():
        raise ConfigError(f"published = {entry!r}: give NAME=PATH, a scores.json or a folder of *_score.json")
    return name.strip(), read_published(Path(path.strip()).expanduser())


def _line_of_run(name: str, one: AsPublished, judges: Sequence[str]) -> list[str]:
    numbers = [one.persona_score, *one.tasks, one.ours_persona_score]
    difference = number(one.difference) if one.difference is None else f"{one.difference:+.3f}".replace("-", "−")
    return [
        label(name), ", ".join(map(label, judges)), *map(number, numbers), difference, of(one.empty_blocks, one.blocks),
        number(one.last_persona_score),
    ]  # fmt: skip


def _line_of_file(name: str, one: PublishedScores) -> list[str]:
    return [label(name), "", *map(number, [one.persona_score, *(one.tasks.get(task) for task in TASKS)]), *[number(None)] * 4]
