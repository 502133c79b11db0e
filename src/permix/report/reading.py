"""What the numbers say, in words: models compared where they may be, and plainly not where they may not.

Contract: a difference is called higher or lower only when its 95 % interval leaves out 0 (stability: paired by persona and
question; identifiability: paired by question); everything else is "no difference shown". Models
that were not asked the same are not compared, and the reason is said. Markdown out, labels escaped.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from permix.baselines.base import StrategySummary
from permix.evals import stats
from permix.evals.identify import Identifiability
from permix.evals.stability import StabilityGrid
from permix.evals.stability_summary import StabilitySummary, differences
from permix.evals.stats import Array
from permix.report import judged_words
from permix.report.judged import INTERVIEW, JudgedDifference, unlike_judges
from permix.report.judged import differences_of as judged_differences
from permix.report.runs import FIDELITY, ModelRuns, Run, reference_of
from permix.report.tables import count, estimate, label, number, of, probability, word
from permix.types import Estimate, Record

NAMES = {
    "pss": "PSS",
    "worst": "worst persona's accuracy",
    "mean": "mean accuracy over personas",
    "identifiability": "identifiability",
}
ALPHA = 0.05


class Comparison(Record):
    """One model against another. The differences are None, and `reasons` say why, where the two may not be compared."""

    label: str
    against: str
    pss: Estimate | None = None
    worst: Estimate | None = None
    mean: Estimate | None = None
    identifiability: Estimate | None = None
    judged: tuple[JudgedDifference, ...] = ()
    reasons: tuple[str, ...] = ()
    fidelity_reasons: tuple[str, ...] = ()
    judged_reasons: tuple[str, ...] = ()


def compare(first: ModelRuns, other: ModelRuns) -> Comparison:
    reasons, apart = stability_reasons(first, other), fidelity_reasons(first, other)
    differences: dict[str, Estimate] = {}
    if first.grid is not None and other.grid is not None and not reasons:
        config = first.runs["stability"].config
        differences = differences_of(first.grid, other.grid, int(config.get("seed", 0)), int(config.get("resamples", 2000)))
    if first.fidelity is not None and other.fidelity is not None and not apart:
        config = first.runs["fidelity"].config
        seed, resamples = int(config.get("seed", 0)), int(config.get("resamples", 2000))
        differences["identifiability"] = distinctness([first.fidelity], [other.fidelity], seed, resamples)
    judged, judged_reasons = judged_between(first, other)
    return Comparison(
        label=other.label, against=first.label, reasons=reasons, fidelity_reasons=apart,
        judged=judged, judged_reasons=judged_reasons,
        pss=differences.get("pss"), worst=differences.get("worst"), mean=differences.get("mean"),
        identifiability=differences.get("identifiability"),
    )  # fmt: skip


def differences_of(first: StabilityGrid, other: StabilityGrid, seed: int, resamples: int) -> dict[str, Estimate]:
    """Other − first in PSS, worst and mean accuracy, over the personas that both have a score for; same draws of questions."""
    mean_P_Q = stats.sample_mean(np.asarray(first.correct_P_Q_S, dtype=float))
    return differences([mean_P_Q], [in_order_of(first, other)[0]], seed, resamples)


def distinctness(first: Sequence[Identifiability], other: Sequence[Identifiability], seed: int, resamples: int) -> Estimate:
    """Other − first in identifiability, each the mean over its models; n is the questions, which are drawn alike for all."""
    questions = sorted(set.intersection(*(set(one.right_by_question) for one in (*first, *other))))

    def measures(counts_R_Q: Array) -> dict[str, Array]:
        one, two = (told_apart(models, questions, counts_R_Q) for models in (first, other))
        return {"identifiability": two - one}

    drawn = stats.bootstrap(measures, len(questions), np.random.default_rng(seed), resamples, block=resamples)
    value, replicate_R = drawn["identifiability"]
    return stats.estimate(float(value), replicate_R, len(questions))


def told_apart(models: Sequence[Identifiability], questions: Sequence[str], counts_R_Q: Array) -> Array:
    """Share of the answers to these questions that were told right, the mean over the models [R]."""
    tables = [np.array([one.right_by_question[question] for question in questions], dtype=float) for one in models]
    shares = [counts_R_Q @ right_Q / (counts_R_Q @ answered_Q) for right_Q, answered_Q in (table.T for table in tables)]
    return np.asarray(np.mean(shares, axis=0))


def readings(models: Sequence[ModelRuns], comparisons: Sequence[Comparison]) -> list[str]:
    """The headline, one sentence; then a sentence with numbers for each model and each comparison."""
    effects = [_effect(model) for model in models if model.stability is not None]
    judged = [line for model in models for run in model.judged for line in judged_words.details(model.label, run)]
    strategies = [_strategy(model.label, found) for model in models for found in model.strategies]
    against = [_against(one) for one in comparisons]
    return [_headline(models, comparisons), *(f"- {line}" for line in [*effects, *judged, *strategies, *against] if line)]


def warnings(comparisons: Sequence[Comparison]) -> list[str]:
    """Why some models must not be held against the first."""
    return [
        f"> **{reason}: do not compare** {label(one.label)} with {label(one.against)} in {what}."
        for one in comparisons
        for what, reasons in (
            ("accuracy or PSS", one.reasons),
            ("identifiability", one.fidelity_reasons),
            ("judges' scores", one.judged_reasons),
        )
        for reason in reasons
    ]


def unfinished(models: Sequence[ModelRuns]) -> list[str]:
    """What is missing of these runs: cells without a score, and what could not be measured."""
    owed = [
        f"> **Not whole**: {label(model.label)} has {of(model.stability.n_scored, model.stability.n_asked)} cells scored."
        for model in models
        if model.stability is not None and model.stability.n_scored < model.stability.n_asked
    ]
    return owed + [f"> **Left out**: {label(reason, 400)}." for model in models for reason in model.unmeasured]


def _headline(models: Sequence[ModelRuns], comparisons: Sequence[Comparison]) -> str:
    """What is shown; and of every judge that cannot tell right from wrong, that its number means nothing."""
    worthless = [line for model in models for run in model.judged for line in judged_words.verdict_on(model.label, run)]
    return "**" + " ".join([_shown(models, comparisons), *(f"{line}." for line in worthless)]) + "**"


def _shown(models: Sequence[ModelRuns], comparisons: Sequence[Comparison]) -> str:
    """One sentence a model that others are held against, words only."""
    said: dict[str, list[str]] = {}
    for one in comparisons:
        if words := _words(one):
            said.setdefault(one.against, []).append(f"{label(one.label)}: {', '.join(words)}")
    if said:
        return " ".join(f"Against {label(against)}, {'; '.join(parts)}." for against, parts in said.items())
    effects = [f"{label(model.label)}: {_effect_word(model)}" for model in models if model.stability is not None]
    strategies = [
        f"{label(model.label)} with {found.strategy}: accuracy {word(found.gain)} against no persona"
        for model in models
        for found in model.strategies
    ]
    judged = [line for model in models for run in model.judged for line in judged_words.standing(model.label, run)]
    if not effects and not strategies and not judged:
        return "Nothing here measures accuracy under personas."
    return "; ".join([*effects, *strategies, *judged]) + "."


def _words(one: Comparison) -> list[str]:
    measured = [f"{NAMES[name]} {word(getattr(one, name))}" for name in NAMES if getattr(one, name) is not None]
    return measured + judged_words.changes(one.judged)


def _effect(model: ModelRuns) -> str:
    """A model by itself."""
    one = model.stability
    assert one is not None
    return (
        f"**{label(model.label)}**: accuracy {estimate(one.baseline).text} without persona, {estimate(one.mean).text} on average "
        f"over {one.n_personas} personas, {estimate(one.worst).text} under the worst; PSS {estimate(one.pss).text} "
        f"(observed {number(one.pss_observed.value)}, where {number(one.pss_null.value)} would be seen if personas did nothing); "
        f"{_effect_word(model)} "
        f"(permutation test, p {_p(one.permutation_p.value)}); n = {one.n_questions} questions"
        f"{_would_show(one)}."
    )


def _would_show(one: StabilitySummary) -> str:
    """What the grid was able to see, beside what it saw."""
    if one.detectable.value is None:
        return ""
    some = "which" if one.detectable.n == one.n_questions else f"of which {one.detectable.n}, asked of every persona,"
    return f", {some} show a persona's difference to none from {number(one.detectable.value)} on (power .8)"


def _strategy(name: str, found: StrategySummary) -> str:
    """A strategy by itself: what it gained, and what it cost."""
    price = "its cost is not known"
    if found.spent is not None and found.times is not None:
        price = f"{count(found.spent.total)} tokens an answer, {found.times:.2f} times the cost of asking once"
    before = "" if found.choosing is None else f", and {count(found.choosing.total)} tokens before the first"
    return (
        f"**{label(name)} with {found.strategy}**: accuracy {estimate(found.accuracy).text}, {word(found.gain)} against no "
        f"persona ({found.gain.signed()}); {price}{before}; n = {found.gain.n} questions."
    )


def _effect_word(model: ModelRuns) -> str:
    p = None if model.stability is None else model.stability.permutation_p.value
    return "no test of a persona effect" if p is None else f"{'a' if p < ALPHA else 'no'} persona effect shown"


def _against(one: Comparison) -> str:
    parts = [f"{NAMES[name]} {word(got)} ({got.signed()})" for name in NAMES if (got := getattr(one, name)) is not None]
    parts += judged_words.against(one.judged)
    return f"**{label(one.label)}** against {label(one.against)}: {'; '.join(parts)}." if parts else ""


def stability_reasons(first: ModelRuns, other: ModelRuns) -> tuple[str, ...]:
    """Why the two must not be compared in accuracy or PSS; empty when they may be, or one was not measured."""
    if first.grid is None or other.grid is None:
        return ()
    return unlike(first.runs["stability"], other.runs["stability"], first.grid, other.grid)


def unlike(one: Run, two: Run, first: StabilityGrid, other: StabilityGrid) -> tuple[str, ...]:
    """Why the scores of two stability runs must not be held against each other; empty when they may be."""
    here, there = ((set(grid.persona_ids), set(grid.question_ids)) for grid in (first, other))
    return _asked_differently(one, two) or (() if here == there else ("Not the same personas and questions",))


def fidelity_reasons(first: ModelRuns, other: ModelRuns) -> tuple[str, ...]:
    """The same of identifiability."""
    if first.fidelity is None or other.fidelity is None:
        return ()
    one, two = first.runs["fidelity"], other.runs["fidelity"]
    taught = [(reference_of(run) or run.path).resolve() for run in (one, two)]
    return _asked_differently(one, two) + (
        () if taught[0] == taught[1] else ("Not the same classifier (trained on other answers)",)
    )


def judged_between(first: ModelRuns, other: ModelRuns) -> tuple[tuple[JudgedDifference, ...], tuple[str, ...]]:
    """The differences on judges' scores, of each kind that both were asked alike; and why there are none of the others."""
    found: list[JudgedDifference] = []
    reasons: list[str] = []
    for kind in FIDELITY:
        one, two = first.runs.get(kind), other.runs.get(kind)
        if one is None or two is None or one.judged is None or two.judged is None:
            continue
        here, there = one.judged.verdicts, two.judged.verdicts
        reasons += [reason for name in here if name in there for reason in unlike_judges(here[name], there[name])]
        if differs := _asked_differently(one, two, words=kind != INTERVIEW):
            reasons += differs
        else:
            found += judged_differences(one.judged, two.judged)
    return tuple(found), tuple(dict.fromkeys(reasons))


def _asked_differently(one: Run, two: Run, *, words: bool = True) -> tuple[str, ...]:
    """What differs between two runs that should have been asked the same; read from the records and the sampling.

    `words`: whether the messages should be the same too; those of a conversation hold what the model has said itself.
    """
    keys = [list(run.grid) for run in (one, two)]
    shared = one.grid.keys() & two.grid.keys()
    checks = (
        ("Cells were spent where they decided for one model (budget, precision)", bool(one.rounds or two.rounds)),
        ("Not the same task", _identity(one, "task") != _identity(two, "task")),
        ("Not judged by the same verifier", _judge(one) != _judge(two)),
        ("Not the same questions", len({frozenset(key.question_id for key in some) for some in keys}) > 1),
        ("Not the same personas", len({frozenset(key.persona_id for key in some) for some in keys}) > 1),
        (
            "Not asked in the same words",
            set(one.answers.templates) != set(two.answers.templates)
            or (not words and _talk(one) != _talk(two))
            or (words and any(one.grid[key].words != two.grid[key].words for key in shared)),
        ),
        ("Not the same sampling", _setting(one) != _setting(two)),
    )
    return tuple(reason for reason, differs in checks if differs)


def _talk(run: Run) -> tuple[Any, Any]:
    """What an interview was held by: the persona's wording, and the questions. A model's own questions are never another's."""
    asked = run.answers.question_ids if run.config.get("interviewer", {}).get("name", "script") == "script" else run.path
    return _identity(run, "template"), (_identity(run, "interview"), asked)


def _identity(run: Run, name: str) -> Any:
    return run.provenance.get("identity", {}).get(name)


def _judge(run: Run) -> tuple[Any, ...]:
    """What compares answers: the symbolic engine's version may change a verdict. Open-ended answers are not judged; those of an
    imported run may have been by another program."""
    if run.stage != "stability":
        return ()
    judge = _identity(run, "judge") or "permix"
    return (judge, run.provenance.get("packages", {}).get("math-verify") if judge.startswith("permix") else None)


def _setting(run: Run) -> tuple[Any, ...]:
    return (run.config.get("sampling"), run.config.get("samples"))


def in_order_of(first: StabilityGrid, other: StabilityGrid) -> tuple[Array, Array]:
    """The other grid's sample means with personas and questions in the first one's order; and those without persona."""
    persona_at = {id: place for place, id in enumerate(other.persona_ids)}
    question_at = {id: place for place, id in enumerate(other.question_ids)}
    rows, columns = [persona_at[id] for id in first.persona_ids], [question_at[id] for id in first.question_ids]
    under_P_Q_S, without_Q_S = (np.asarray(scores, dtype=float) for scores in (other.correct_P_Q_S, other.baseline_Q_S))
    return stats.sample_mean(under_P_Q_S[np.ix_(rows, columns)]), stats.sample_mean(without_Q_S[columns])


def _p(p: float | None) -> str:
    shown = probability(p)
    return shown if shown.startswith("<") else f"= {shown}"
