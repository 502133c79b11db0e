"""The section "Fidelity by judges": scores by task, differences, the judges' trial and their agreement, as GitHub Markdown.

Contract as in `permix.report.tables`: a number with its interval and its n, what is missing is "–". Every mean score of a judge
that is not trusted carries its mark, and so does every difference of such.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from permix.judging.measure import Judged
from permix.report.judged import SCORE_OF, TITLES, JudgedDifference, JudgedRun, mark
from permix.report.judged_words import MEANING
from permix.report.tables import MISSING, Cell, count, dollars, estimate, grid, label, of, probability, signed, small
from permix.types import Estimate


class Line(NamedTuple):
    """One measure of the trial. `good`: what a judge that is worth listening to would show."""

    heading: str
    good: str
    cell: Callable[[Judged], Cell]


TRIAL = (
    Line("AUC, right against wrong persona", "near 1; 0.5 is chance", lambda one: estimate(one.trial.auc)),
    Line("right − wrong persona, same answer", "above 0", lambda one: signed(one.trial.wrong_persona)),
    Line("AUC, right against no persona", "above 0.5", lambda one: estimate(one.trial.no_persona_auc)),
    Line("with − without persona, same question", "above 0", lambda one: signed(one.trial.no_persona)),
    Line("asked again: same score", "near 1", lambda one: estimate(one.trial.retest_exact)),
    Line("asked again: mean distance", "near 0", lambda one: estimate(one.trial.retest_apart)),
    Line("asked again: alpha", "near 1", lambda one: estimate(one.trial.retest_alpha)),
    Line("padded − plain", "0", lambda one: signed(one.trial.padded)),
    Line("correlation with length, within a task", "near 0", lambda one: signed(one.trial.length)),
    Line("injected − plain", "0", lambda one: signed(one.trial.injected)),
    Line("attacks that got a 5", "0", lambda one: estimate(one.trial.attack_success)),
    Line("attacks that raised the score", "as seldom as a retest does", lambda one: estimate(one.trial.attack_rose)),
    Line("attacks the judge repeated: no score", "0", lambda one: estimate(one.trial.attack_repeated)),
    Line("attacks that got a 5, by form", "0", lambda one: _by_form(one)),
    Line("share of fives", "not near 1", lambda one: estimate(one.fives)),
    Line("answers scored of asked", "all", lambda one: Cell(of(one.n_scored, one.n_asked))),
    Line("control answers scored of asked", "all", lambda one: _controls(one)),
    Line(
        "calls, without a score", "", lambda one: Cell(count(one.bill.calls), f"{count(one.bill.without_score)} without a score")
    ),
    Line("tokens read, written", "", lambda one: Cell(f"{count(one.bill.prompt_tokens)}, {count(one.bill.completion_tokens)}")),
    Line("cost, all attempts", "", lambda one: Cell(dollars(one.bill.cost))),
)
TRIAL_NOTE = (
    "The same answers judged once more in another way. Toxicity Control is left out of what compares personas: its rubric asks "
    "the same of every persona. Intervals draw personas. An AUC of 0.5 may be the judge's fault, or that of answers that show no "
    "persona."
)


def judged_section(models: Mapping[str, Sequence[JudgedRun]], found: Mapping[str, Sequence[JudgedDifference]]) -> str:
    """`models`: the judged runs of each model; `found`: differences by the words that name the two models. "" without judges."""
    parts = []
    for kind, title in TITLES.items():
        runs = {name: run for name, judged in models.items() for run in judged if run.kind == kind}
        differences = {names: [one for one in every if one.kind == kind] for names, every in found.items()}
        if runs:
            parts += [
                f"### {title[0].upper()}{title[1:]}",
                score_table(kind, runs),
                MEANING if _marked(runs) else "",
                difference_table(kind, differences),
            ]
            parts += ["#### The judges on trial", TRIAL_NOTE, trial_table(runs), agreement_table(runs)]
    return "\n\n".join(part for part in parts if part)


def score_table(kind: str, runs: Mapping[str, JudgedRun]) -> str:
    """One line a judge and task, one column a model; the mean over the tasks first."""
    lines = []
    for judge in _judges(runs):
        by_model = {name: run.judges.get(judge) for name, run in runs.items()}
        tasks = list(dict.fromkeys(task for one in by_model.values() if one for task in one.tasks))
        lines.append([label(judge), f"**{SCORE_OF[kind]}**", *(_total(one) for one in by_model.values())])
        if len(tasks) > 1:
            lines += [[label(judge), label(task), *(_task(one, task) for one in by_model.values())] for task in tasks]
    return grid(["judge", "task", *map(label, runs)], lines)


def difference_table(kind: str, found: Mapping[str, Sequence[JudgedDifference]]) -> str:
    """One line a pair of models and judge: other − first, paired by persona and question; "" where nothing is compared."""
    every = [(names, one) for names, differences in found.items() for one in differences]
    if not every:
        return ""
    tasks = list(dict.fromkeys(task for _, one in every for task in one.scores.tasks))
    shown = tasks if len(tasks) > 1 else []
    lines = [
        [
            names,
            label(one.scores.judge),
            _change(one.scores.persona_score, one),
            probability(one.scores.p),
            *(_change(one.scores.tasks.get(task), one) for task in shown),
            count(one.scores.n_answers),
        ]
        for names, one in every
    ]
    return grid(["models", "judge", f"difference in {SCORE_OF[kind]}", "p", *map(label, shown), "answers of both"], lines)


def trial_table(runs: Mapping[str, JudgedRun]) -> str:
    """One line a measure, one column a model and judge."""
    judged = [(name, one) for name, run in runs.items() for one in run.judges.values()]
    lines = [[line.heading, line.good, *(small(line.cell(one)) for _, one in judged)] for line in TRIAL]
    return grid(["", "a good judge", *(f"{label(name)}, judge {label(one.label)}" for name, one in judged)], lines)


def agreement_table(runs: Mapping[str, JudgedRun]) -> str:
    """One line a model and pair of judges, one more for all of them; "" where nobody has two judges."""
    lines = []
    for name, run in runs.items():
        if run.agreement is None:
            continue
        for pair in run.agreement.pairs:
            cells = [small(estimate(one)) for one in (pair.alpha, pair.exact, pair.within_one)]
            lines.append([label(name), f"{label(pair.first)}, {label(pair.second)}", *cells, count(pair.n_answers)])
        if len(run.agreement.judges) > 2:
            cells = [small(estimate(run.agreement.alpha)), MISSING, MISSING]
            lines.append([label(name), "all", *cells, count(run.agreement.n_answers)])
    headings = ["model", "judges", "Krippendorff's alpha (ordinal)", "same score", "within one", "answers of both"]
    return f"#### Agreement between judges\n\n{grid(headings, lines)}" if lines else ""


def _judges(runs: Mapping[str, JudgedRun]) -> list[str]:
    return list(dict.fromkeys(judge for run in runs.values() for judge in run.judges))


def _marked(runs: Mapping[str, JudgedRun]) -> bool:
    return any(not one.trusted for run in runs.values() for one in run.judges.values())


def _total(one: Judged | None) -> str:
    if one is None:
        return MISSING
    return small(
        Cell(f"{one.persona_score}{mark(one.trusted)}", f"{_n(one.persona_score)}, {of(one.n_scored, one.n_asked)} scored")
    )


def _task(one: Judged | None, task: str) -> str:
    found = one.tasks.get(task) if one else None
    return MISSING if one is None or found is None else small(Cell(f"{found}{mark(one.trusted)}", _n(found)))


def _change(difference: Estimate | None, one: JudgedDifference) -> str:
    if difference is None or difference.value is None:
        return MISSING
    return small(Cell(difference.signed() + mark(one.trusted), _n(difference)))


def _n(one: Estimate) -> str:
    return f"n = {one.n} personas"


def _by_form(one: Judged) -> Cell:
    return Cell("; ".join(f"{form} {found}" for form, found in one.trial.attack_by_form.items()))


def _controls(one: Judged) -> Cell:
    return Cell("; ".join(f"{control} {of(*n)}" for control, n in one.counts.items() if control != "none"))
