"""Builds the section "PersonaScore as published": scores by the method of PersonaGym's released code, and scores of others.

Contract: everything is computed from the judges' judgements.jsonl and the runs' records. All judges of a run count together, as
in the released code. `permix.metrics.judge_scores` explains how that changes the scores.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from permix.config import ReportConfig
from permix.errors import ConfigError
from permix.evals.fidelity_records import AskedQuestion, read_asked_questions
from permix.metrics.judge_scores import PublishedAggregation, aggregate_as_published
from permix.metrics.statistics import Array
from permix.personas.personagym import PERSONAGYM_TASKS, PublishedScores, read_published_scores
from permix.progress import print_status
from permix.rendering.table import (
    MISSING_TEXT,
    SourceRun,
    TableCell,
    format_decimal,
    format_ratio,
    label_cell,
    one_line,
    tabulate,
    trusted_cell,
)
from permix.report.document import DocumentPart
from permix.report.judges import PERSONAGYM_KIND, trust_mark
from permix.report.runs import ModelRuns
from permix.report.summary_text import TRUST_MARKS_LEGEND
from permix.types import AnswerKey, Record

_PUBLISHED_HEADINGS = (
    "scores of",
    "judges",
    "PersonaScore as published",
    *PERSONAGYM_TASKS,
    "ours",
    "as published − ours",
    "blocks without a score",
    "last persona alone",
)

AS_PUBLISHED_NOTE = (
    "The same scores, computed as in PersonaGym's released code: answers in blocks of five, judges averaged block by block, and "
    "an unreadable block counted as 0. Ours gives every score the same weight and leaves out answers without a score. All judges "
    "count together in this table only. The released code saves only the last persona's scores. Rows without judges are of files."
)


class PublishedComparison(Record):
    """The content of the section: our runs and their judges, by the model's label, and published files, by name."""

    runs: dict[str, PublishedAggregation]
    judges: dict[str, dict[str, bool | None]]
    """For each run, its judges by label, and whether each judge is trusted."""
    files: dict[str, PublishedScores]


class PersonaGymScoreArrays(NamedTuple):
    """Scores by judge, persona, task and question (NaN without a score), and which of the questions exist."""

    score_J_P_U_Q: Array
    asked_P_U_Q: NDArray[np.bool_]


def collect_published(models: Sequence[ModelRuns], config: ReportConfig) -> PublishedComparison:
    """Collect what the settings `as_published` and `published` ask for; empty when neither is set.

    Raises ConfigError or DataError for a bad entry or file.
    """
    runs, judges = dict[str, PublishedAggregation](), dict[str, dict[str, bool | None]]()
    for model in models:
        judged = model.runs[PERSONAGYM_KIND].judged_run if config.as_published and PERSONAGYM_KIND in model.runs else None
        if judged is not None:
            by_judge = judged.scores_by_judge
            arrays = personagym_score_arrays(
                read_asked_questions(model.runs[PERSONAGYM_KIND].path), [one.scores for one in by_judge.values()]
            )
            runs[model.label] = aggregate_as_published(arrays.score_J_P_U_Q, arrays.asked_P_U_Q)
            judges[model.label] = {label: one.discriminates_persona for label, one in by_judge.items()}
    if config.as_published and not runs:
        print_status("note: as_published: no run here has PersonaGym answers with a judge's scores")
    return PublishedComparison(runs=runs, judges=judges, files=_read_score_files(config.published))


def personagym_score_arrays(
    asked_questions: Sequence[AskedQuestion], scores: Sequence[Mapping[AnswerKey, int]]
) -> PersonaGymScoreArrays:
    """Return the scores of one run as arrays, with one mapping of `scores` for each judge.

    Personas, and the questions of each persona, are in the order in which they were asked; tasks are in the order of
    `PERSONAGYM_TASKS`.
    """
    persona_index = {name: p for p, name in enumerate(dict.fromkeys(question.persona_id for question in asked_questions))}
    cells: dict[tuple[int, int], list[AskedQuestion]] = {}
    for question in asked_questions:
        cells.setdefault((persona_index[question.persona_id], PERSONAGYM_TASKS.index(question.task)), []).append(question)
    shape = len(persona_index), len(PERSONAGYM_TASKS), max(map(len, cells.values()))
    score_J_P_U_Q, asked_P_U_Q = np.full((len(scores), *shape), np.nan), np.zeros(shape, dtype=bool)
    for (p, u), questions in cells.items():
        for q, question in enumerate(questions):
            asked_P_U_Q[p, u, q] = True
            score_J_P_U_Q[:, p, u, q] = [judge.get(_answer_key(question), np.nan) for judge in scores]
    return PersonaGymScoreArrays(score_J_P_U_Q, asked_P_U_Q)


def published_json(published: PublishedComparison | None) -> dict[str, object]:
    """Return the entry for table.json; empty when there is nothing to show."""
    return {"published": published.model_dump(mode="json")} if published and (published.runs or published.files) else {}


def published_parts(published: PublishedComparison | None) -> list[DocumentPart]:
    """Return a table with a row for each of our models and then for each file, and the legend of its marks. Empty when there is
    neither.
    """
    if not published or not (published.runs or published.files):
        return []
    ours = [_run_row(name, one, published.judges[name]) for name, one in published.runs.items()]
    table = tabulate(
        "as-published", _PUBLISHED_HEADINGS, [*ours, *(_file_row(name, one) for name, one in published.files.items())]
    )
    return [table, TRUST_MARKS_LEGEND] if any(not _combined_trust(one) for one in published.judges.values()) else [table]


def _answer_key(question: AskedQuestion) -> AnswerKey:
    return AnswerKey(str(question.persona_id), str(question.task), question.id, 0)


def _read_score_files(entries: Sequence[str]) -> dict[str, PublishedScores]:
    """Read the files. All names are checked before the first file is read."""
    paths: dict[str, Path] = {}
    for entry in entries:
        name, path = _parse_entry(entry)
        if name in paths:
            raise ConfigError(f"published = {entry!r}: the name {name!r} is given already; give each file its own name")
        paths[name] = path
    return {name: read_published_scores(path) for name, path in paths.items()}


def _parse_entry(entry: str) -> tuple[str, Path]:
    name, equals, path = entry.partition("=")
    if not equals or not name.strip() or not path.strip():
        raise ConfigError(f"published = {entry!r}: give NAME=PATH, a scores.json or a folder of *_score.json")
    return name.strip(), Path(path.strip()).expanduser()


def _combined_trust(judges: Mapping[str, bool | None]) -> bool | None:
    """Return the trust in a number of several judges: False when one is not trusted, None when one was not validated,
    else True.
    """
    return False if False in judges.values() else None if None in judges.values() else True


def _run_row(name: str, result: PublishedAggregation, judges: Mapping[str, bool | None]) -> list[TableCell]:
    mark = trust_mark(_combined_trust(judges))
    judged_by = ", ".join(f"{one_line(judge)}{trust_mark(trusted)}" for judge, trusted in judges.items())
    difference = format_decimal(result.difference) if result.difference is None else f"{result.difference:+.3f}".replace("-", "−")
    values = [result.persona_score, *result.tasks, result.permix_persona_score, result.difference, result.last_persona_score]
    texts = [*map(format_decimal, values[:-2]), difference, format_decimal(result.last_persona_score)]
    source = SourceRun(name, PERSONAGYM_KIND)
    *cells, last = (
        trusted_cell(text if text == MISSING_TEXT else text + mark, number=value).with_sources(source)
        for text, value in zip(texts, values, strict=True)
    )
    return [label_cell(name), TableCell(judged_by), *cells, trusted_cell(format_ratio(result.empty_blocks, result.blocks)), last]


def _file_row(name: str, published_scores: PublishedScores) -> list[TableCell]:
    values = [published_scores.persona_score, *(published_scores.tasks.get(task) for task in PERSONAGYM_TASKS), *[None] * 4]
    return [label_cell(name), trusted_cell(""), *(trusted_cell(format_decimal(value), number=value) for value in values)]
