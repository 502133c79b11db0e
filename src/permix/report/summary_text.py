"""Writes the sentences of a report on each model, comparison and judge, and its warnings. `permix.report.claim` has the claim.

Contract: sentences are made only from numbers and intervals. A difference is called higher or lower only when its 95 % interval
excludes 0 (stability: paired by persona and question; identifiability: paired by question); any other difference is "no
difference shown". Of methods with several training seeds it is the interval over questions and training seeds. Models that were
not asked the same are not compared, and the reason is given.

The numbers of a judge that is not trusted are shown, marked, and called meaningless. A difference in a judge's scores is called
higher or lower only when the judge is trusted on both models.

The output is Markdown with escaped names and labels.
"""

from collections import Counter
from collections.abc import Iterable, Sequence

from permix.evals.strategies.base import StrategySummary
from permix.judges.summary import JudgeSummary
from permix.metrics.measures import measures_in
from permix.metrics.stability import StabilitySummary
from permix.metrics.statistics import SIGNIFICANCE_LEVEL
from permix.rendering.table import difference_direction, format_count, format_dollars, format_p_value, format_ratio, md_label
from permix.report.comparisons import Comparison
from permix.report.judges import (
    KIND_TITLES,
    UNTESTED_MARK,
    UNTRUSTED_MARK,
    JudgedRun,
    JudgeScoreDifference,
    score_name,
    trust_mark,
)
from permix.report.runs import ModelRuns
from permix.storage.cells import conflicting_answers_note
from permix.storage.failures import describe_cures, describe_reasons
from permix.types import Estimate, count_text

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


def untrusted_judge_sentences(name: str, run: JudgedRun) -> list[str]:
    """Sentences: for each judge that is not trusted, that its number means nothing for this model."""
    return [_untrusted_judge_sentence(name, run.kind, one) for one in run.judges.values() if not one.discriminates_persona]


def trusted_judge_phrases(name: str, run: JudgedRun) -> list[str]:
    """Phrases for the main sentence about a single model, one for each trusted judge."""
    return [
        f"{md_label(name)}: judge {md_label(one.label)} distinguishes personas "
        f"({score_name(run.kind, one.tasks)} {one.persona_score})"
        for one in run.judges.values()
        if one.discriminates_persona
    ]


def score_change_phrases(differences: Iterable[JudgeScoreDifference]) -> list[str]:
    """Phrases for the main sentence about a comparison, one for each judge that is trusted on both models."""
    return [
        f"{one.score_name} by judge {md_label(one.scores.judge)} {difference_direction(one.scores.persona_score)}"
        for one in differences
        if one.discriminates_persona
    ]


def judge_sentences(name: str, run: JudgedRun) -> list[str]:
    """A sentence with numbers for each judge of a model."""
    return [_judge_sentence(name, run.kind, one) for one in run.judges.values()]


def score_difference_phrases(differences: Sequence[JudgeScoreDifference]) -> list[str]:
    """A phrase with numbers for each judge of a comparison."""
    return [
        f"{one.score_name} by judge {md_label(one.scores.judge)} {difference_direction(one.scores.persona_score)} "
        f"({one.scores.persona_score.format_difference()}, p {_p_value_text(one.scores.p)}, {one.scores.n_answers} answers)"
        + ("" if one.discriminates_persona else ", which means nothing: the judge is not trusted on both models")
        for one in differences
    ]


def _untrusted_judge_sentence(name: str, kind: str, judge: JudgeSummary) -> str:
    score = f"{score_name(kind, judge.tasks)} by judge {md_label(judge.label)}"
    if judge.discriminates_persona is None:
        return f"{md_label(name)}: the meaning of {score} is unknown, the judge was not validated"
    return (
        f"{md_label(name)}: {score} means nothing, the judge does not tell right from wrong persona (AUC {judge.reliability.auc})"
    )


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


def result_sentences(models: Sequence[ModelRuns], comparisons: Sequence[Comparison]) -> list[str]:
    """The main sentence, then a sentence with numbers for each model and each comparison."""
    stability = [_stability_sentence(model) for model in models if model.stability is not None]
    judged = [line for model in models for run in model.judged_runs for line in judge_sentences(model.label, run)]
    strategies = [_strategy_sentence(model.label, summary) for model in models for summary in model.strategies]
    compared = [_comparison_sentence(one) for one in comparisons]
    lines = [*stability, *judged, *strategies, *compared]
    return [_main_sentences(models, comparisons), *(f"- {line}" for line in lines if line)]


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


def _main_sentences(models: Sequence[ModelRuns], comparisons: Sequence[Comparison]) -> str:
    """The main sentence, with a sentence for each judge that is not trusted."""
    untrusted = [line for model in models for run in model.judged_runs for line in untrusted_judge_sentences(model.label, run)]
    return "**" + " ".join([_main_text(models, comparisons), *(f"{line}." for line in untrusted)]) + "**"


def _main_text(models: Sequence[ModelRuns], comparisons: Sequence[Comparison]) -> str:
    """One sentence in words for each model that is the first of a comparison."""
    phrases: dict[str, list[str]] = {}
    for one in comparisons:
        if words := _comparison_words(one):
            phrases.setdefault(one.against, []).append(f"{md_label(one.label)}: {', '.join(words)}")
    if phrases:
        return " ".join(f"Against {md_label(against)}, {'; '.join(parts)}." for against, parts in phrases.items())
    effects = [f"{md_label(model.label)}: {_persona_effect_text(model)}" for model in models if model.stability is not None]
    strategies = [
        f"{md_label(model.label)} with {one.strategy}: accuracy {difference_direction(one.gain)} against no persona"
        for model in models
        for one in model.strategies
    ]
    judged = [line for model in models for run in model.judged_runs for line in trusted_judge_phrases(model.label, run)]
    if not effects and not strategies and not judged:
        return "Nothing here measures accuracy under personas."
    return "; ".join([*effects, *strategies, *judged]) + "."


def _comparison_words(comparison: Comparison) -> list[str]:
    measured = [f"{name} {difference_direction(difference)}" for name, difference in _named_differences(comparison)]
    return measured + score_change_phrases(comparison.judged)


def _named_differences(comparison: Comparison) -> list[tuple[str, Estimate]]:
    """Every measure that was compared, by its name in a sentence, with its difference."""
    measures = [one for one in measures_in("differences") if one.name in comparison.measures]
    named = [(one.sentence_label, comparison.measures[one.name]) for one in measures]
    characters = {
        "identifiability": comparison.identifiability,
        "recognisability": comparison.recognisability,
        "right and in character": comparison.right_in_character,
    }
    return [*named, *((name, difference) for name, difference in characters.items() if difference is not None)]


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


def _comparison_sentence(comparison: Comparison) -> str:
    parts = [
        f"{name} {difference_direction(difference)} ({difference.format_difference()})"
        for name, difference in _named_differences(comparison)
    ]
    parts += score_difference_phrases(comparison.judged)
    return f"**{md_label(comparison.label)}** against {md_label(comparison.against)}: {'; '.join(parts)}." if parts else ""


def _p_value_text(p: float | None) -> str:
    shown = format_p_value(p)
    return shown if shown.startswith("<") else f"= {shown}"
