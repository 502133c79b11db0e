"""Writes the sentences of a report on each model, judge and strategy, and its warnings. `permix.report.claim` has the claim.

Contract: sentences are made only from numbers and intervals. A gain is called higher or lower only when its 95 % interval
excludes 0; any other is "no difference shown". Models that were not asked the same are not compared, and the reason is given.
The numbers of a judge that is not trusted are shown and marked.

The output is Markdown with escaped names and labels.
"""

from collections import Counter
from collections.abc import Sequence

from permix.evals.strategies.base import StrategySummary
from permix.judges.summary import JudgeSummary
from permix.metrics.stability import StabilitySummary
from permix.metrics.statistics import SIGNIFICANCE_LEVEL
from permix.rendering.table import difference_direction, format_count, format_dollars, format_p_value, format_ratio, md_label
from permix.report.comparisons import Comparison
from permix.report.judges import (
    KIND_TITLES,
    UNTESTED_MARK,
    UNTRUSTED_MARK,
    JudgedRun,
    score_name,
    trust_mark,
)
from permix.report.runs import ModelRuns
from permix.storage.cells import conflicting_answers_note
from permix.storage.failures import describe_cures, describe_reasons
from permix.types import count_text

MAX_FAILURE_CHARS = 1200
"""Longest text of the failures of one run: the words of three reasons, and what helps."""

TRUST_MARK_MEANINGS = {
    UNTRUSTED_MARK: (
        f"{UNTRUSTED_MARK} The judge scores an answer under a wrong persona no lower than under its own (the interval of "
        "the AUC includes 0.5, or is below it). Either the judge cannot tell, or these answers show no persona; the number means "
        "nothing."
    ),
    UNTESTED_MARK: f"{UNTESTED_MARK} The judge was not validated, so the meaning of the number is unknown.",
}

TRUST_MARKS_LEGEND = " ".join(TRUST_MARK_MEANINGS.values())


def judge_sentences(name: str, run: JudgedRun) -> list[str]:
    """A sentence with numbers for each judge of a model."""
    return [_judge_sentence(name, run.kind, one) for one in run.judges.values()]


def _judge_sentence(name: str, kind: str, judge: JudgeSummary) -> str:
    validation = {True: "distinguishes personas", False: "does not distinguish personas", None: "was not validated"}[
        judge.discriminates_persona
    ]
    return (
        f"**{md_label(name)}**, judge {md_label(judge.label)}: {score_name(kind, judge.tasks)} "
        f"{judge.persona_score}{trust_mark(judge.discriminates_persona)}, "
        f"{format_ratio(judge.n_scored, judge.n_asked)} answers of "
        f"{judge.persona_score.n} personas scored, share of fives {judge.share_top_score}; it {validation} "
        f"(AUC {judge.reliability.auc}); cost {format_dollars(judge.usage.cost)}."
    )


def result_sentences(models: Sequence[ModelRuns]) -> list[str]:
    """A sentence with numbers for each model, and for each judge and each strategy of a model."""
    stability = [_stability_sentence(model) for model in models if model.stability is not None]
    judged = [line for model in models for run in model.judged_runs for line in judge_sentences(model.label, run)]
    strategies = [_strategy_sentence(model.label, summary) for model in models for summary in model.strategies]
    return [*stability, *judged, *strategies]


def comparison_warnings(comparisons: Sequence[Comparison]) -> list[str]:
    """Why some models cannot be compared with the first one."""
    return [
        f"> **{md_label(reason, 200)}: do not compare** {md_label(one.label)} with {md_label(one.against)} in {what}."
        for one in comparisons
        for what, reasons in (
            ("accuracy or PSS", one.reasons),
            ("identifiability", one.fidelity_reasons),
            ("right and in character", one.right_in_character_reasons),
            ("recognisability", tuple(reason for reason in one.recognisability_reasons if reason not in one.fidelity_reasons)),
            ("judges' scores", one.judged_reasons),
        )
        for reason in reasons
    ]


def short_warnings(models: Sequence[ModelRuns], comparisons: Sequence[Comparison]) -> list[str]:
    """All warnings in a few words: each kind once, with the models that it is about."""
    cut_off = [
        f"{md_label(model.label)} {format_ratio(model.cut_off.n_cut_off, model.cut_off.n_known)}"
        for model in models
        if model.cut_off is not None and model.cut_off.is_notable
    ]
    incomplete = [
        f"{md_label(model.label)} {format_ratio(model.stability.n_scored, model.stability.n_asked)}"
        for model in models
        if model.stability is not None and model.stability.n_scored < model.stability.n_asked
    ]
    kinds = Counter(_warning_kind(one) for one in (*incomplete_run_warnings(models), *comparison_warnings(comparisons)))
    short = {kind: f" ({format_count(count)} times)" if count > 1 else "" for kind, count in kinds.items()}
    short["Incomplete"] = f": {', '.join(incomplete)} persona cells scored"
    short["Failed"] = (
        f" requests in {format_count(kinds['Failed'])} {'run' if kinds['Failed'] == 1 else 'runs'}, with the reasons"
    )
    if cut_off:  # else only answers in character were cut off
        short["Cut off"] = f" at the token limit: {', '.join(cut_off)} answers; a longer limit may change the results"
    return [f"**{kind}**{short[kind]}" for kind in kinds]


def _warning_kind(warning: str) -> str:
    """The bold words at the beginning of a warning."""
    return warning.removeprefix("> **").partition("**")[0]


def incomplete_run_warnings(models: Sequence[ModelRuns]) -> list[str]:
    """What is missing in these runs and why: cells without a score, failures with what helps, ends of answers, and
    measures that could not be computed; and cells that several workers answered differently.
    """
    incomplete = [
        f"> **Incomplete**: {md_label(model.label)} has "
        f"{format_ratio(model.stability.n_scored, model.stability.n_asked)} persona cells scored."
        for model in models
        if model.stability is not None and model.stability.n_scored < model.stability.n_asked
    ]
    cut_off = [
        f"> **Cut off**: {md_label(model.label)}{f', {KIND_TITLES[kind]}' if kind in KIND_TITLES else ''}: {warning}."
        for model in models
        for kind, run in model.runs.items()
        if kind in ("stability", *KIND_TITLES) and (warning := run.cut_off_warning) is not None
    ]
    chosen = [
        f"> **Answered twice**: {md_label(model.label)}, {md_label(kind)}: {note}."
        for model in models
        for kind, run in model.runs.items()
        if kind in ("stability", *KIND_TITLES) and (note := conflicting_answers_note(run.cells)) is not None
    ]
    failed = [
        f"> **Failed**: {md_label(model.label)}, {md_label(kind)}: "
        f"{md_label(describe_reasons(found) + describe_cures(found), MAX_FAILURE_CHARS)}."
        for model in models
        for kind, found in model.failure_reasons.items()
    ]
    reasons = [reason for model in models for reason in model.unmeasured_reasons]
    return incomplete + failed + cut_off + chosen + [f"> **Not measured**: {md_label(reason, 400)}." for reason in reasons]


def _stability_sentence(model: ModelRuns) -> str:
    """A sentence on the stability of a single model."""
    one = model.stability
    assert one is not None
    return (
        f"**{md_label(model.label)}**: accuracy {one.baseline} without persona, "
        f"{one.mean} "
        f"on average over {count_text(one.n_personas, 'persona')}, {one.worst} under the worst; PSS "
        f"{one.pss} "
        f"(observed {one.pss_observed.format_value()}; {one.pss_null.format_value()} would be observed "
        "if personas had no effect); "
        f"{_persona_effect_text(model)} "
        f"(permutation test, p {_p_value_text(one.permutation_p.value)}); n = {one.n_questions} questions"
        f"{_detectable_effect_text(one)}."
    )


def _detectable_effect_text(summary: StabilitySummary) -> str:
    """The smallest effect that the grid could detect, next to the effect that was measured."""
    if summary.minimum_detectable_effect.value is None:
        return ""
    subset = (
        ""
        if summary.minimum_detectable_effect.n == summary.n_questions
        else f" with the {summary.minimum_detectable_effect.n} questions that every persona was asked"
    )
    return (
        f"; smallest detectable difference of a persona to no persona{subset}: "
        f"{summary.minimum_detectable_effect.format_value()} (power .8)"
    )


def _strategy_sentence(name: str, summary: StrategySummary) -> str:
    """A sentence on a strategy: its gain and its cost."""
    cost = "its cost is not known"
    if summary.tokens_per_answer is not None and summary.token_ratio is not None:
        cost = (
            f"{format_count(summary.tokens_per_answer.total)} tokens per answer, {summary.token_ratio:.2f} times "
            "the cost of asking once"
        )
    before = (
        ""
        if summary.selection_tokens is None
        else f", and {format_count(summary.selection_tokens.total)} tokens before the first"
    )
    return (
        f"**{md_label(name)} with {summary.strategy}**: accuracy {summary.accuracy}, "
        f"{difference_direction(summary.gain)} against no "
        f"persona ({summary.gain.format_difference()}); {cost}{before}; n = {summary.gain.n} questions."
    )


def _persona_effect_text(model: ModelRuns) -> str:
    p = None if model.stability is None else model.stability.permutation_p.value
    return "no test of a persona effect" if p is None else f"{'a' if p < SIGNIFICANCE_LEVEL else 'no'} persona effect shown"


def _p_value_text(p: float | None) -> str:
    shown = format_p_value(p)
    return shown if shown.startswith("<") else f"= {shown}"
