"""Builds the section "Fidelity by judges": scores by task, differences, validation of the judges, and their agreement.

Contract: as in `tables`: every number has its interval and its n, and a missing number is "–". Every mean score of a judge that
is not trusted has a mark, and so has every difference of such scores.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from permix.judges.summary import JudgeSummary
from permix.rendering.table import (
    LABEL_WIDTH,
    MISSING_CELL,
    SourceRun,
    Table,
    TableCell,
    count_cell,
    difference_cell,
    estimate_cell,
    format_count,
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
    JudgedRun,
    JudgeScoreDifference,
    judge_sources,
    listed_rubrics,
    score_name,
    trust_mark,
)
from permix.report.summary_text import TRUST_MARKS_LEGEND
from permix.types import Estimate


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
    """Return the parts for one kind of run; empty without judges.

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
    """Return a table with a row for each judge and task and a column for each model. The mean over the tasks comes first."""
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
    """Return a table with a row for each pair of models and each judge: other − first, paired by persona and question.

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
    """Return a table with a row for each measure of the validation and a column for each model and judge."""
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
    """Return a table with a row for each model and pair of judges, and a row for all judges. None when no model has
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
