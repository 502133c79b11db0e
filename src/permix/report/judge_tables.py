"""Builds the tables of the section "Fidelity by judges": scores by task, differences, validation of the judges, their agreement,
and PersonaScore as published: scores by the method of PersonaGym's released code, and scores of others.

Contract: as in `tables`: every number has its interval and its n, and a missing number is "–". Every mean score of a judge that
is not trusted has a mark, and so has every difference of such scores.

PersonaScore is computed from the judges' judgements.jsonl and the runs' records. All judges of a run count together, as in the
released code. `permix.metrics.judge_scores` explains how that changes the scores.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from permix.config import ReportConfig
from permix.errors import ConfigError
from permix.evals.fidelity_records import AskedQuestion, read_asked_questions
from permix.judges.summary import JudgeSummary
from permix.metrics.judge_scores import PublishedAggregation, aggregate_as_published
from permix.metrics.statistics import Array
from permix.personas.personagym import PERSONAGYM_TASKS, PublishedScores, read_published_scores
from permix.progress import print_status
from permix.rendering.table import (
    LABEL_WIDTH,
    MISSING_CELL,
    MISSING_TEXT,
    SourceRun,
    Table,
    TableCell,
    count_cell,
    difference_cell,
    estimate_cell,
    format_count,
    format_decimal,
    format_dollars,
    format_p_value,
    format_ratio,
    label_cell,
    one_line,
    tabulate,
    trusted_cell,
)
from permix.report.document import DocumentPart
from permix.report.judges import (
    KIND_FILE_STEMS,
    PERSONAGYM_KIND,
    JudgedRun,
    JudgeScoreDifference,
    judge_sources,
    listed_rubrics,
    score_name,
    trust_mark,
)
from permix.report.runs import ModelRuns
from permix.report.summary_text import TRUST_MARKS_LEGEND
from permix.types import AnswerKey, Estimate, Record, true_minus


class JudgeReliabilityRow(NamedTuple):
    """One measure of the validation. `expected` is the value that a good judge would have."""

    heading: str
    expected: str
    cell: Callable[[JudgeSummary], TableCell]


JUDGE_RELIABILITY_ROWS = (
    JudgeReliabilityRow(
        "AUC, right against wrong persona", "near 1; 0.5 is chance", lambda one: estimate_cell(one.reliability.auc)
    ),
    JudgeReliabilityRow(
        "right − wrong persona, same answer", "above 0", lambda one: difference_cell(one.reliability.wrong_persona)
    ),
    JudgeReliabilityRow("AUC, right against no persona", "above 0.5", lambda one: estimate_cell(one.reliability.no_persona_auc)),
    JudgeReliabilityRow(
        "with − without persona, same question", "above 0", lambda one: difference_cell(one.reliability.no_persona)
    ),
    JudgeReliabilityRow("retest: same score", "near 1", lambda one: estimate_cell(one.reliability.retest_exact)),
    JudgeReliabilityRow(
        "retest: mean absolute difference", "near 0", lambda one: estimate_cell(one.reliability.retest_mean_abs_diff)
    ),
    JudgeReliabilityRow("retest: alpha", "near 1", lambda one: estimate_cell(one.reliability.retest_alpha)),
    JudgeReliabilityRow("padded − plain", "0", lambda one: difference_cell(one.reliability.padded)),
    JudgeReliabilityRow(
        "correlation with length, within a task", "near 0", lambda one: difference_cell(one.reliability.length_correlation)
    ),
    JudgeReliabilityRow("injected − plain", "0", lambda one: difference_cell(one.reliability.injected)),
    JudgeReliabilityRow("attacks that got a 5", "0", lambda one: estimate_cell(one.reliability.attack_success)),
    JudgeReliabilityRow(
        "attacks that raised the score",
        "as low as for a retest",
        lambda one: estimate_cell(one.reliability.attack_score_raised),
    ),
    JudgeReliabilityRow(
        "attacks repeated without a score", "0", lambda one: estimate_cell(one.reliability.attack_score_repeated)
    ),
    JudgeReliabilityRow("attacks that got a 5, by form", "0", lambda one: _attacks_by_form_cell(one)),
    JudgeReliabilityRow("share of fives", "not near 1", lambda one: estimate_cell(one.share_top_score)),
    JudgeReliabilityRow("answers scored of asked", "all", lambda one: trusted_cell(format_ratio(one.n_scored, one.n_asked))),
    JudgeReliabilityRow("control answers scored of asked", "all", lambda one: _controls_cell(one)),
    JudgeReliabilityRow("calls, of these without a score", "", lambda one: _calls_cell(one)),
    JudgeReliabilityRow(
        "tokens read, written",
        "",
        lambda one: trusted_cell(f"{format_count(one.usage.prompt_tokens)}, {format_count(one.usage.completion_tokens)}"),
    ),
    JudgeReliabilityRow(
        "cost, all attempts", "", lambda one: trusted_cell(format_dollars(one.usage.cost), number=one.usage.cost)
    ),
)

JUDGE_RELIABILITY_NOTE = (
    "The same answers, judged once more in another way. Rubrics that ask the same of every persona, such as Toxicity Control, "
    "are left out of measures that compare personas. Intervals resample personas. An AUC of 0.5 may be due to the judge, or to "
    "answers that show no persona."
)


def judge_section_parts(
    kind: str, runs_by_model: Mapping[str, Sequence[JudgedRun]], differences_by_pair: Mapping[str, Sequence[JudgeScoreDifference]]
) -> list[DocumentPart]:
    """The parts for one kind of run; empty without judges.

    `runs_by_model` are the judged runs of each model. `differences_by_pair` are the differences, by a phrase that names the two
    models.
    """
    runs = {name: run for name, judged in runs_by_model.items() for run in judged if run.kind == kind}
    differences = {names: [one for one in every if one.kind == kind] for names, every in differences_by_pair.items()}
    if not runs:
        return []
    parts: list[DocumentPart | None] = [
        score_table(kind, runs),
        TRUST_MARKS_LEGEND if _has_untrusted_judge(runs) else None,
        difference_table(kind, differences),
        f"#### Validation of the judges\n\n{JUDGE_RELIABILITY_NOTE}",
        judge_reliability_table(kind, runs),
    ]
    if agreement := agreement_table(kind, runs):
        parts += ["#### Agreement between judges", agreement]
    return [part for part in parts if part]


def score_table(kind: str, runs: Mapping[str, JudgedRun]) -> Table:
    """A table with a row for each judge and task and a column for each model. The mean over the tasks comes first."""
    lines = []
    for judge in _judge_labels(runs):
        by_model = {name: run.judges.get(judge) for name, run in runs.items()}
        tasks = list(dict.fromkeys(task for one in by_model.values() if one for task in one.tasks))
        mean = TableCell(score_name(kind, tasks), trusted_markup=True, emphasis="**")
        lines.append(
            [
                label_cell(judge),
                mean,
                *(_mean_score_cell(one).with_sources(*judge_sources(name, kind, judge)) for name, one in by_model.items()),
            ]
        )
        lines += [
            [
                label_cell(judge),
                label_cell(task),
                *(_task_score_cell(one, task).with_sources(*judge_sources(name, kind, judge)) for name, one in by_model.items()),
            ]
            for task in listed_rubrics(kind, tasks)
        ]
    return tabulate(f"scores-{KIND_FILE_STEMS[kind]}", ["judge", "task", *map(one_line, runs)], lines, n_label_columns=2)


def difference_table(kind: str, differences_by_pair: Mapping[str, Sequence[JudgeScoreDifference]]) -> Table | None:
    """A table with a row for each pair of models and each judge: `label` − `against`, paired by persona and question.

    None when no two models are compared.
    """
    rows = [(names, one) for names, differences in differences_by_pair.items() for one in differences]
    if not rows:
        return None
    shown = listed_rubrics(kind, (task for _, one in rows for task in one.scores.tasks))
    means = " / ".join(dict.fromkeys(one.score_name for _, one in rows))
    lines = [
        [
            label_cell(names, 2 * LABEL_WIDTH + 16),
            label_cell(one.scores.judge),
            _score_difference_cell(one.scores.persona_score, one),
            trusted_cell(format_p_value(one.scores.p), number=one.scores.p),
            *(_score_difference_cell(one.scores.tasks.get(task), one) for task in shown),
            count_cell(one.scores.n_answers),
        ]
        for names, one in rows
    ]
    headings = ["models", "judge", f"difference in {means}", "p", *map(one_line, shown), "answers of both"]
    return tabulate(f"differences-{KIND_FILE_STEMS[kind]}", headings, lines, n_label_columns=2)


def judge_reliability_table(kind: str, runs: Mapping[str, JudgedRun]) -> Table:
    """A table with a row for each measure of the validation and a column for each model and judge."""
    judged = [(name, one) for name, run in runs.items() for one in run.judges.values()]
    lines = [
        [
            trusted_cell(line.heading),
            trusted_cell(line.expected),
            *(line.cell(one).with_sources(*judge_sources(name, kind, one.label)) for name, one in judged),
        ]
        for line in JUDGE_RELIABILITY_ROWS
    ]
    columns = [f"{one_line(name)}, judge {one_line(one.label)}" for name, one in judged]
    return tabulate(f"trial-{KIND_FILE_STEMS[kind]}", ["", "a good judge", *columns], lines, n_label_columns=2)


def agreement_table(kind: str, runs: Mapping[str, JudgedRun]) -> Table | None:
    """A table with a row for each model and pair of judges, and a row for all judges. None when no model has
    two judges.
    """
    lines = []
    for name, run in runs.items():
        if run.agreement is None:
            continue
        for pair in run.agreement.pairs:
            cells = [*map(estimate_cell, (pair.alpha, pair.exact, pair.within_one)), count_cell(pair.n_answers)]
            names = TableCell(f"{one_line(pair.first)}, {one_line(pair.second)}")
            lines.append([label_cell(name), names, *(cell.with_sources(SourceRun(name, kind)) for cell in cells)])
        if len(run.agreement.judges) > 2:
            cells = [estimate_cell(run.agreement.alpha), MISSING_CELL, MISSING_CELL, count_cell(run.agreement.n_answers)]
            lines.append([label_cell(name), trusted_cell("all"), *(cell.with_sources(SourceRun(name, kind)) for cell in cells)])
    headings = ["model", "judges", "Krippendorff's alpha (ordinal)", "same score", "within one", "answers of both"]
    return tabulate(f"agreement-{KIND_FILE_STEMS[kind]}", headings, lines, n_label_columns=2) if lines else None


def _judge_labels(runs: Mapping[str, JudgedRun]) -> list[str]:
    return list(dict.fromkeys(judge for run in runs.values() for judge in run.judges))


def _has_untrusted_judge(runs: Mapping[str, JudgedRun]) -> bool:
    return any(not one.discriminates_persona for run in runs.values() for one in run.judges.values())


def _mean_score_cell(judge: JudgeSummary | None) -> TableCell:
    if judge is None:
        return MISSING_CELL
    note = f"{_persona_count_text(judge.persona_score)}, {format_ratio(judge.n_scored, judge.n_asked)} scored"
    return trusted_cell(f"{judge.persona_score}{trust_mark(judge.discriminates_persona)}", note, judge.persona_score)


def _task_score_cell(judge: JudgeSummary | None, task: str) -> TableCell:
    score = judge.tasks.get(task) if judge else None
    return (
        MISSING_CELL
        if judge is None or score is None
        else trusted_cell(f"{score}{trust_mark(judge.discriminates_persona)}", _persona_count_text(score), score)
    )


def _score_difference_cell(difference: Estimate | None, judge_difference: JudgeScoreDifference) -> TableCell:
    if difference is None or difference.value is None:
        return MISSING_CELL
    return trusted_cell(
        difference.format_difference() + trust_mark(judge_difference.discriminates_persona),
        _persona_count_text(difference),
        difference,
    )


def _persona_count_text(estimate: Estimate) -> str:
    return f"n = {estimate.n} personas"


def _attacks_by_form_cell(judge: JudgeSummary) -> TableCell:
    return trusted_cell("; ".join(f"{form} {share}" for form, share in judge.reliability.attack_by_form.items()))


def _calls_cell(judge: JudgeSummary) -> TableCell:
    return trusted_cell(
        format_count(judge.usage.calls), f"{format_count(judge.usage.calls_without_score)} without a score", judge.usage.calls
    )


def _controls_cell(judge: JudgeSummary) -> TableCell:
    return trusted_cell("; ".join(f"{control} {format_ratio(*n)}" for control, n in judge.counts.items() if control != "none"))


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
    """The scores of one run as arrays, with one mapping of `scores` for each judge.

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
    """The entry for table.json; empty when there is nothing to show."""
    return {"published": published.model_dump(mode="json")} if published and (published.runs or published.files) else {}


def published_parts(published: PublishedComparison | None) -> list[DocumentPart]:
    """A table with a row for each of our models and then for each file, and the legend of its marks. Empty when there is
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
    """The trust in a number of several judges: False when one is not trusted, None when one was not validated,
    else True.
    """
    return False if False in judges.values() else None if None in judges.values() else True


def _run_row(name: str, result: PublishedAggregation, judges: Mapping[str, bool | None]) -> list[TableCell]:
    mark = trust_mark(_combined_trust(judges))
    judged_by = ", ".join(f"{one_line(judge)}{trust_mark(trusted)}" for judge, trusted in judges.items())
    difference = format_decimal(result.difference) if result.difference is None else true_minus(f"{result.difference:+.3f}")
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
