"""The section "As published": PersonaScore by the arithmetic of PersonaGym's released code, and scores that others published.

Contract: from ledgers and records, like all of the report. All judges of a run count together, as they do in the released code;
what that makes of scores is told in `permix.metrics.judge_scores`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from permix.config import ReportStage
from permix.errors import ConfigError
from permix.evals.drift_report import ByJudge
from permix.evals.fidelity_records import AskedQuestion, questions_asked
from permix.metrics.judge_scores import AsPublished, as_published
from permix.metrics.statistics import Array
from permix.personas.personagym import TASKS, PublishedScores, read_published
from permix.progress import say
from permix.rendering.table import MISSING, Cell, Source, named, number, of, one_line, stated, tabulate
from permix.report.document import Part
from permix.report.judges import GYM, mark
from permix.report.runs import ModelRuns
from permix.report.summary_text import MEANING
from permix.types import ItemKey, Record

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
    judges: dict[str, dict[str, bool | None]]
    """Of each run its judges by label, and whether each is trusted."""
    files: dict[str, PublishedScores]


class Laid(NamedTuple):
    """Scores as the arithmetic takes them, NaN without one, and which questions there are."""

    score_J_P_T_Q: Array
    asked_P_T_Q: NDArray[np.bool_]


def published(models: Sequence[ModelRuns], config: ReportStage) -> Published:
    """What `as_published` and `published` ask for; empty where neither does. ConfigError or DataError for a bad file."""
    runs, judges = dict[str, AsPublished](), dict[str, dict[str, bool | None]]()
    for model in models:
        judged = model.runs[GYM].judged if config.as_published and GYM in model.runs else None
        if judged is not None:
            by_judge = judged.by_judge
            laid = lay(questions_asked(model.runs[GYM].path), [_scores(one) for one in by_judge.values()])
            runs[model.label] = as_published(laid.score_J_P_T_Q, laid.asked_P_T_Q)
            judges[model.label] = {label: one.trusted for label, one in by_judge.items()}
    if config.as_published and not runs:
        say("note: as_published: no run here has answers to PersonaGym that a judge has scored")
    return Published(runs=runs, judges=judges, files=_files(config.published))


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


def published_parts(found: Published | None) -> list[Part]:
    """The table, a line a model of ours, then a line a file, and what its marks mean; empty where there is neither."""
    if not found or not (found.runs or found.files):
        return []
    ours = [_line_of_run(name, one, found.judges[name]) for name, one in found.runs.items()]
    table = tabulate("as-published", HEADINGS, [*ours, *(_line_of_file(name, one) for name, one in found.files.items())])
    return [table, MEANING] if any(not _all_trusted(one) for one in found.judges.values()) else [table]


def _key(question: AskedQuestion) -> ItemKey:
    return ItemKey("none", str(question.persona_id), question.persona_id, question.id, 0, str(question.task))


def _scores(judge: ByJudge) -> dict[ItemKey, int]:
    return {key: score for key, score in judge.scores.items() if score is not None}


def _files(entries: Sequence[str]) -> dict[str, PublishedScores]:
    """Names are checked before anything is read."""
    paths: dict[str, Path] = {}
    for entry in entries:
        name, path = _named(entry)
        if name in paths:
            raise ConfigError(f"published = {entry!r}: the name {name!r} is given already; give each file a name of its own")
        paths[name] = path
    return {name: read_published(path) for name, path in paths.items()}


def _named(entry: str) -> tuple[str, Path]:
    name, equals, path = entry.partition("=")
    if not equals or not name.strip() or not path.strip():
        raise ConfigError(f"published = {entry!r}: give NAME=PATH, a scores.json or a folder of *_score.json")
    return name.strip(), Path(path.strip()).expanduser()


def _all_trusted(judges: Mapping[str, bool | None]) -> bool | None:
    """Of numbers that rest on several judges: False where one of them is not trusted, None where one was not tried."""
    return False if False in judges.values() else None if None in judges.values() else True


def _line_of_run(name: str, one: AsPublished, judges: Mapping[str, bool | None]) -> list[Cell]:
    beside = mark(_all_trusted(judges))
    marked = ", ".join(f"{one_line(judge)}{mark(trusted)}" for judge, trusted in judges.items())
    difference = number(one.difference) if one.difference is None else f"{one.difference:+.3f}".replace("-", "−")
    values = [one.persona_score, *one.tasks, one.ours_persona_score, one.difference, one.last_persona_score]
    texts = [*map(number, values[:-2]), difference, number(one.last_persona_score)]
    source = Source(name, GYM)
    *shown, last = (
        stated(text if text == MISSING else text + beside, number=value).of(source)
        for text, value in zip(texts, values, strict=True)
    )
    return [named(name), Cell(marked), *shown, stated(of(one.empty_blocks, one.blocks)), last]


def _line_of_file(name: str, one: PublishedScores) -> list[Cell]:
    values = [one.persona_score, *(one.tasks.get(task) for task in TASKS), *[None] * 4]
    return [named(name), stated(""), *(stated(number(value), number=value) for value in values)]
