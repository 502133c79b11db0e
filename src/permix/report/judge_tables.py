"""The section "Fidelity by judges": scores by task, differences, the judges' trial and their agreement, as tables and words.

Contract as in `permix.report.tables`: a number with its interval and its n, what is missing is "–". Every mean score of a judge
that is not trusted carries its mark, and so does every difference of such.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from permix.judges.summary import Judged
from permix.rendering.table import (
    LABEL_WIDTH,
    NOTHING,
    Cell,
    Source,
    Table,
    count,
    counted,
    dollars,
    estimate,
    named,
    of,
    one_line,
    probability,
    signed,
    stated,
    tabulate,
)
from permix.report.document import Part
from permix.report.judges import FILES, SCORE_OF, JudgedDifference, JudgedRun, mark, sources
from permix.report.summary_text import MEANING
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
    Line("answers scored of asked", "all", lambda one: stated(of(one.n_scored, one.n_asked))),
    Line("control answers scored of asked", "all", lambda one: _controls(one)),
    Line("calls, without a score", "", lambda one: _calls(one)),
    Line("tokens read, written", "", lambda one: stated(f"{count(one.bill.prompt_tokens)}, {count(one.bill.completion_tokens)}")),
    Line("cost, all attempts", "", lambda one: stated(dollars(one.bill.cost), number=one.bill.cost)),
)

TRIAL_NOTE = (
    "The same answers judged once more in another way. Toxicity Control is left out of what compares personas: its rubric asks "
    "the same of every persona. Intervals draw personas. An AUC of 0.5 may be the judge's fault, or that of answers that show no "
    "persona."
)


def judged_parts(
    kind: str, models: Mapping[str, Sequence[JudgedRun]], found: Mapping[str, Sequence[JudgedDifference]]
) -> list[Part]:
    """What judges say of one kind of run. `models`: the judged runs of each model; `found`: differences by the words that name
    the two models. Empty without judges."""
    runs = {name: run for name, judged in models.items() for run in judged if run.kind == kind}
    differences = {names: [one for one in every if one.kind == kind] for names, every in found.items()}
    if not runs:
        return []
    parts: list[Part | None] = [
        score_table(kind, runs),
        MEANING if _marked(runs) else None,
        difference_table(kind, differences),
        f"#### The judges on trial\n\n{TRIAL_NOTE}",
        trial_table(kind, runs),
    ]
    if agreed := agreement_table(kind, runs):
        parts += ["#### Agreement between judges", agreed]
    return [part for part in parts if part]


def score_table(kind: str, runs: Mapping[str, JudgedRun]) -> Table:
    """One line a judge and task, one column a model; the mean over the tasks first."""
    lines = []
    for judge in _judges(runs):
        by_model = {name: run.judges.get(judge) for name, run in runs.items()}
        tasks = list(dict.fromkeys(task for one in by_model.values() if one for task in one.tasks))
        mean = Cell(SCORE_OF[kind], ours=True, mark="**")
        lines.append([named(judge), mean, *(_total(one).of(*sources(name, kind, judge)) for name, one in by_model.items())])
        if len(tasks) > 1:
            lines += [
                [named(judge), named(task), *(_task(one, task).of(*sources(name, kind, judge)) for name, one in by_model.items())]
                for task in tasks
            ]
    return tabulate(f"scores-{FILES[kind]}", ["judge", "task", *map(one_line, runs)], lines, names=2)


def difference_table(kind: str, found: Mapping[str, Sequence[JudgedDifference]]) -> Table | None:
    """One line a pair of models and judge: other − first, paired by persona and question; None where nothing is compared."""
    every = [(names, one) for names, differences in found.items() for one in differences]
    if not every:
        return None
    tasks = list(dict.fromkeys(task for _, one in every for task in one.scores.tasks))
    shown = tasks if len(tasks) > 1 else []
    lines = [
        [
            named(names, 2 * LABEL_WIDTH + 16),
            named(one.scores.judge),
            _change(one.scores.persona_score, one),
            stated(probability(one.scores.p), number=one.scores.p),
            *(_change(one.scores.tasks.get(task), one) for task in shown),
            counted(one.scores.n_answers),
        ]
        for names, one in every
    ]
    headings = ["models", "judge", f"difference in {SCORE_OF[kind]}", "p", *map(one_line, shown), "answers of both"]
    return tabulate(f"differences-{FILES[kind]}", headings, lines, names=2)


def trial_table(kind: str, runs: Mapping[str, JudgedRun]) -> Table:
    """One line a measure, one column a model and judge."""
    judged = [(name, one) for name, run in runs.items() for one in run.judges.values()]
    lines = [
        [stated(line.heading), stated(line.good), *(line.cell(one).of(*sources(name, kind, one.label)) for name, one in judged)]
        for line in TRIAL
    ]
    columns = [f"{one_line(name)}, judge {one_line(one.label)}" for name, one in judged]
    return tabulate(f"trial-{FILES[kind]}", ["", "a good judge", *columns], lines, names=2)


def agreement_table(kind: str, runs: Mapping[str, JudgedRun]) -> Table | None:
    """One line a model and pair of judges, one more for all of them; None where nobody has two judges."""
    lines = []
    for name, run in runs.items():
        if run.agreement is None:
            continue
        for pair in run.agreement.pairs:
            cells = [*map(estimate, (pair.alpha, pair.exact, pair.within_one)), counted(pair.n_answers)]
            both = Cell(f"{one_line(pair.first)}, {one_line(pair.second)}")
            lines.append([named(name), both, *(cell.of(Source(name, kind)) for cell in cells)])
        if len(run.agreement.judges) > 2:
            cells = [estimate(run.agreement.alpha), NOTHING, NOTHING, counted(run.agreement.n_answers)]
            lines.append([named(name), stated("all"), *(cell.of(Source(name, kind)) for cell in cells)])
    headings = ["model", "judges", "Krippendorff's alpha (ordinal)", "same score", "within one", "answers of both"]
    return tabulate(f"agreement-{FILES[kind]}", headings, lines, names=2) if lines else None


def _judges(runs: Mapping[str, JudgedRun]) -> list[str]:
    return list(dict.fromkeys(judge for run in runs.values() for judge in run.judges))


def _marked(runs: Mapping[str, JudgedRun]) -> bool:
    return any(not one.trusted for run in runs.values() for one in run.judges.values())


def _total(one: Judged | None) -> Cell:
    if one is None:
        return NOTHING
    about = f"{_n(one.persona_score)}, {of(one.n_scored, one.n_asked)} scored"
    return stated(f"{one.persona_score}{mark(one.trusted)}", about, one.persona_score)


def _task(one: Judged | None, task: str) -> Cell:
    found = one.tasks.get(task) if one else None
    return NOTHING if one is None or found is None else stated(f"{found}{mark(one.trusted)}", _n(found), found)


def _change(difference: Estimate | None, one: JudgedDifference) -> Cell:
    if difference is None or difference.value is None:
        return NOTHING
    return stated(difference.signed() + mark(one.trusted), _n(difference), difference)


def _n(one: Estimate) -> str:
    return f"n = {one.n} personas"


def _by_form(one: Judged) -> Cell:
    return stated("; ".join(f"{form} {found}" for form, found in one.trial.attack_by_form.items()))


def _calls(one: Judged) -> Cell:
    return stated(count(one.bill.calls), f"{count(one.bill.without_score)} without a score", one.bill.calls)


def _controls(one: Judged) -> Cell:
    return stated("; ".join(f"{control} {of(*n)}" for control, n in one.counts.items() if control != "none"))
