"""Writes the claim at the top of a report: one sentence, the cards below it, and the sentences that support it.

Contract: sentences are made only from numbers and intervals. A difference is called higher or lower only when its 95 % interval
excludes 0 (stability: paired by persona and question; identifiability: paired by question); any other difference is "no
difference shown". Of methods with several training seeds it is the interval over questions and training seeds. Models that were
not asked the same are not compared, and the reason is given. A judge that is not trusted is named without its scores.

The output is Markdown with escaped names and labels.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from permix.evals.text_metrics import TextMetrics
from permix.metrics.measures import STABILITY_MEASURES
from permix.metrics.statistics import SIGNIFICANCE_LEVEL
from permix.rendering.table import (
    MISSING_TEXT,
    NOT_SIGNIFICANT,
    difference_direction,
    format_count,
    format_decimal,
    format_ratio,
    md_label,
    one_line,
)
from permix.report.comparisons import MIN_SCORED_SHARE, compare_judge_scores, stability_claim
from permix.report.judges import (
    JudgeScoreDifference,
    score_name,
)
from permix.report.methods import ReportMethod, Role
from permix.report.pooled import MethodDifference, MethodNumbers, PooledMethod, measured_models
from permix.report.runs import ModelRuns
from permix.types import Estimate, count_text

_ROLE_DESCRIPTIONS: dict[Role, str] = {
    "base": " (before training)",
    "rlvr": " (trained by reward, without personas)",
    "permix": " (trained by reward, with personas mixed in)",
    "other": "",
}

_DISTINCTNESS_TEMPLATE = "its personas are {} to distinguish by their answers"

_DISTINCTNESS_CLAIMS = {"higher": _DISTINCTNESS_TEMPLATE.format("easier"), "lower": _DISTINCTNESS_TEMPLATE.format("harder")}

_DISTINCTNESS_CLAIMS[NOT_SIGNIFICANT] = f"{NOT_SIGNIFICANT} in how well personas are distinguished by their answers"

_TITLES = {
    "stability": ("Stability (PSS)", "accuracy under the worst persona / under the best"),
    "character": ("Character (identifiability)", "how often a classifier names the persona"),
    "accuracy": ("Accuracy (mean over personas)", "share of right answers"),
}
"""By topic: the title of its card, and what it measures."""

_INTERVAL_NOTE = "Brackets are 95 % intervals over the questions"

_NO_FINDING = "no claim can be made"

_NOTHING_MEASURED = "Nothing here measures accuracy under personas, or how well personas are distinguished."

_NO_CLAIM_POSSIBLE = (
    "No claim is made: there is no accuracy under personas to compare, and there are no answers to shared questions."
)


_BETTER, _WORSE, _NOT_COMPARED, _NOT_MEASURED = "better", "worse", "not compared", "not measured"

_OUTCOMES = {"higher": _BETTER, "lower": _WORSE}

_UNIT_RANGE, _JUDGE_RANGE = (0.0, 1.0), (1.0, 5.0)


class NamedEstimate(NamedTuple):
    """A number and what it is the number of; `name` is plain text on one line, not escaped."""

    name: str
    estimate: Estimate


class ResultCard(NamedTuple):
    """One result of the first screen.

    `topic` is its name in a sentence, `title` its name on the card, `meaning` what it measures, `outcome` the result in words.
    `values`: the number of the method that the claim is about, then that of the reference, if there is one. `difference` is the
    first minus the second; for a single method it is None, and `mark` is a number to compare the value with (chance). `limits`:
    the smallest and the largest possible value. `reason` (Markdown) says why nothing was compared or measured.
    """

    topic: str
    title: str
    meaning: str = ""
    outcome: str = _NOT_MEASURED
    values: tuple[NamedEstimate, ...] = ()
    difference: Estimate | None = None
    mark: NamedEstimate | None = None
    limits: tuple[float, float] = _UNIT_RANGE
    reason: str = ""

    @property
    def markdown(self) -> str:
        """One line: the title, the outcome and the numbers."""
        numbers = [f"{md_label(one.name)} {one.estimate}" for one in self.values]
        numbers += [f"{md_label(self.mark.name)} {self.mark.estimate}"] if self.mark is not None else []
        numbers += [f"difference {self.difference.format_difference()}"] if self.difference is not None else []
        reason = f" ({self.reason})" if self.reason else ""
        return f"- **{md_label(self.title, 200)}**: {'; '.join([md_label(self.outcome, 200) + reason, *numbers])}"


class ReportClaim(NamedTuple):
    """One short sentence, and its support: values, n, intervals, seeds, and the variants that were not chosen. `cards` holds
    stability, character and accuracy; it is empty where no claim can be made.
    """

    sentence: str
    support: str = ""
    cards: tuple[ResultCard, ...] = ()


class Finding(NamedTuple):
    """A claim about stability, about distinctness or by a judge, and its support."""

    text: str = ""
    support: str = ""


class ComparisonPair(NamedTuple):
    """The comparison that the claim is about. `other_variants` are further methods with the role of `method` that were not
    chosen.
    """

    method: ReportMethod
    against: ReportMethod
    other_variants: tuple[ReportMethod, ...] = ()


def build_claim(
    methods: Sequence[ReportMethod], differences: Sequence[MethodDifference] = (), pooled: Sequence[PooledMethod] = ()
) -> ReportClaim:
    """The claim above the report. Differences in `differences` and numbers in `pooled` are not computed again."""
    numbers = MethodNumbers(pooled, differences)
    measured = [method for method in methods if any(measured_models(method)) or any(model.judged_runs for model in method.models)]
    chosen = choose_comparison(measured)
    if chosen is not None:
        base = next((method for method in measured if method.role == "base"), None)
        return _comparison_claim(chosen, base, numbers)
    if measured:
        return _single_method_claim(measured[0], numbers)
    models = [model for method in methods for model in method.models]
    if any(model.drift is not None or model.strategies for model in models):
        return ReportClaim(_NO_CLAIM_POSSIBLE)
    answered = [_answers_text(model.label, one) for model in models for one in model.text_metrics.values() if one.n_answers]
    return ReportClaim(f"{'; '.join(answered)}; no judge has scored the answers." if answered else _NOTHING_MEASURED)


def _answers_text(label: str, metrics: TextMetrics) -> str:
    """How many questions a model answered in character, and what is measured of the answers without a judge."""
    shares = {"out of character": metrics.break_rate.value, "cut off": metrics.truncated_share.value}
    measured = ", ".join(f"{share:.0%} {name}" for name, share in shares.items() if share is not None)
    return (
        f"{md_label(label)} answered {format_ratio(metrics.n_answers, metrics.n_asked)} questions of "
        f"{format_count(metrics.n_personas)} personas" + (f" ({measured})" if measured else "")
    )


def choose_comparison(methods: Sequence[ReportMethod]) -> ComparisonPair | None:
    """Choose the methods to compare: PerMix-RLVR against RLVR, each with the most training seeds; the first when several have
    equally many.

    Without PerMix-RLVR, the last method that is neither base nor RLVR (SFT, for instance) is compared with RLVR. If one of these
    is missing, the last method is compared with base, or with the first method. None when there is a single method.
    """
    mixed, plain, start = (_by_seed_count([one for one in methods if one.role == role]) for role in ("permix", "rlvr", "base"))
    if mixed and plain:
        return ComparisonPair(mixed[0], plain[0], tuple(mixed[1:]))
    others = [one for one in methods if one not in (*plain, *start)]
    if plain and start and others:
        return ComparisonPair(others[-1], plain[0])
    against = (start or list(methods))[:1]
    rest = [one for one in methods if one not in against]
    return ComparisonPair(rest[-1], against[0]) if rest else None


def _by_seed_count(methods: Sequence[ReportMethod]) -> list[ReportMethod]:
    """The methods with most seeds first; methods with equally many seeds keep their order."""
    return sorted(methods, key=lambda one: -len(one.models))


def _comparison_claim(pair: ComparisonPair, base: ReportMethod | None, numbers: MethodNumbers) -> ReportClaim:
    method, against, other_variants = pair
    difference = numbers.difference(method, against)
    pooled, pooled_against = numbers.pooled(method), numbers.pooled(against)
    findings = [
        *_stability_findings(difference, pooled, pooled_against, [*method.models, *against.models]),
        *_no_pss_findings(difference, [method, against]),
        *_distinctness_findings(difference, pooled, pooled_against),
        *_judge_findings(method, against),
    ]
    names = " against ".join(f"{md_label(one.name)}{_ROLE_DESCRIPTIONS[one.role]}" for one in (method, against))
    cards = _comparison_cards(pair, difference, pooled, pooled_against)
    one_seed = _one_seed_text(difference, method, against)
    return ReportClaim(
        _comparison_claim_sentence(md_label(method.name), md_label(against.name), cards, one_seed),
        _join_support(
            names,
            findings or [Finding("they have no measure in common")],
            [
                *_training_effect_sentences(base, method, against, numbers),
                *_seed_sentences(difference, method, against),
                *_other_variants_sentences(other_variants),
            ],
        ),
        cards,
    )


def _join_support(names: str, findings: Sequence[Finding], remarks: Sequence[str] = ()) -> str:
    support = "; ".join(one.support for one in findings if one.support)
    sentence = f"{names}: {'; '.join(one.text for one in findings if one.text)}."
    return " ".join([sentence, *([f"{support[0].upper()}{support[1:]}."] if support else []), *remarks])


def _one_seed_text(difference: MethodDifference, method: ReportMethod, against: ReportMethod) -> str:
    """What goes before a difference between trainings of one seed each: another seed may give another result."""
    seeds = [n for one, n in zip((method, against), _seed_counts(difference), strict=True) if one.role in ("rlvr", "permix")]
    return f"With one training seed{' each' if len(seeds) > 1 else ''}, " if set(seeds) == {1} else ""


def _comparison_claim_sentence(name: str, against: str, cards: Sequence[ResultCard], one_seed: str) -> str:
    """The sentence: in what the first method is better, in what it is worse, and where no difference is shown."""
    better, worse, equal = (
        [card.topic for card in cards if card.outcome == outcome] for outcome in (_BETTER, _WORSE, NOT_SIGNIFICANT)
    )
    if better or worse:
        parts = [f"better than {against} in {_join_words(better)}"] if better else []
        parts += [f"worse {'' if better else f'than {against} '}in {_join_words(worse)}"] if worse else []
        rest = f"; no difference is shown in {_join_words(equal, 'or')}" if equal else ""
        return f"{one_seed}{name} is {' and '.join(parts)}{rest}."
    if equal:
        return f"No difference between {name} and {against} is shown in {_join_words(equal, 'or')}."
    reasons = list(dict.fromkeys(card.reason for card in cards if card.reason))
    return f"{name} and {against} are not compared: {'; '.join(reasons) or 'they have no measure in common'}."


def _join_words(words: Sequence[str], last: str = "and") -> str:
    return f" {last} ".join(part for part in (", ".join(words[:-1]), words[-1]) if part)


def _comparison_cards(
    pair: ComparisonPair, difference: MethodDifference, pooled: PooledMethod, pooled_against: PooledMethod
) -> tuple[ResultCard, ...]:
    methods = (pair.method, pair.against)
    names = [one_line(method.name) for method in methods]
    scored = _scored_coverage([model for method in methods for model in method.models])
    reason = _reasons_text(difference.reasons) or ("" if scored.is_complete else f"incomplete, {scored.text}")

    def card(topic: str, ours: Estimate | None, theirs: Estimate | None, by: Estimate | None, why: str) -> ResultCard:
        return _compared_card(ResultCard(topic, *_TITLES[topic], reason=why), names, (ours, theirs), by)

    no_pss = "; ".join(f"of {one_line(one.name)} {one.pss_reason}" for one in methods if one.pss_reason)
    return (
        card("stability", pooled.pss, pooled_against.pss, difference.claimed_difference("pss"), reason or no_pss),
        _character_card(pair, difference, card("character", pooled.identifiability, pooled_against.identifiability,
                        difference.claimed_difference("identifiability"), _reasons_text(difference.fidelity_reasons))),
        card("accuracy", pooled.mean, pooled_against.mean, difference.claimed_difference("mean"), reason),
    )  # fmt: skip


def _compared_card(
    empty: ResultCard, names: Sequence[str], values: Sequence[Estimate | None], difference: Estimate | None
) -> ResultCard:
    """The card with these numbers. A difference with a reason against it is neither judged nor shown."""
    known = tuple(
        NamedEstimate(name, one) for name, one in zip(names, values, strict=True) if one is not None and one.value is not None
    )
    if empty.reason:
        return empty._replace(outcome=_NOT_COMPARED, values=known)
    direction = difference_direction(difference)
    shown = difference if difference is not None and difference.value is not None else None
    return empty._replace(outcome=_OUTCOMES.get(direction, direction), values=known, difference=shown)


def _character_card(pair: ComparisonPair, difference: MethodDifference, by_classifier: ResultCard) -> ResultCard:
    """The card of identifiability; where it is not compared, that of a judge trusted on both models, if there is one."""
    if difference.identifiability is not None and difference.identifiability.low is not None:
        return by_classifier
    methods = (pair.method, pair.against)
    judged, judged_against = ([model for model in method.models if model.judged_runs] for method in methods)
    if len(judged) != 1 or len(judged_against) != 1:
        return by_classifier
    trusted = [one for one in compare_judge_scores(judged[0], judged_against[0])[0] if one.discriminates_persona]
    if not trusted:
        return by_classifier
    first = trusted[0]
    scores = [_score_by_judge(models[0], first.kind, first.scores.judge) for models in (judged, judged_against)]
    empty = ResultCard("character", *_judge_title(first.score_name, first.scores.judge), limits=_JUDGE_RANGE)
    names = [one_line(method.name) for method in methods]
    return _compared_card(empty, names, scores, first.scores.persona_score)


def _score_by_judge(model: ModelRuns, kind: str, judge: str) -> Estimate | None:
    return next((run.judges[judge].persona_score for run in model.judged_runs if run.kind == kind and judge in run.judges), None)


def _judge_title(score: str, judge: str) -> tuple[str, str]:
    return f"Character ({score})", f"1 to 5, by judge {one_line(judge)}"


def _single_method_cards(method: ReportMethod, pooled: PooledMethod) -> tuple[ResultCard, ...]:
    """The cards of a method that is compared with nothing: PSS, character against chance, accuracy against no persona."""
    name, (stable, _) = one_line(method.name), measured_models(method)
    scored = _scored_coverage(stable)
    reason = _reasons_text(pooled.reasons) if pooled.reasons else "" if scored.is_complete else f"incomplete, {scored.text}"
    stability = ResultCard("stability", *_TITLES["stability"], reason=reason or method.pss_reason or "")
    return (
        _single_card(stability, name, pooled.pss, _persona_effect_outcome(stable)),
        _single_character_card(method, pooled),
        _single_card(
            ResultCard("accuracy", *_TITLES["accuracy"], reason=reason), name, pooled.mean, _no_persona_outcome(stable),
            pooled.measures.get("baseline"), "no persona",
        ),
    )  # fmt: skip


def _single_card(
    empty: ResultCard, name: str, value: Estimate | None, outcome: str, mark: Estimate | None = None, mark_name: str = ""
) -> ResultCard:
    if empty.reason:
        return empty._replace(outcome=_NOT_COMPARED)
    if value is None or value.value is None:
        return empty
    marked = NamedEstimate(mark_name, mark) if mark is not None and mark.value is not None else None
    return empty._replace(outcome=outcome, values=(NamedEstimate(name, value),), mark=marked)


def _single_character_card(method: ReportMethod, pooled: PooledMethod) -> ResultCard:
    one, chance = pooled.identifiability, pooled.chance
    trusted = [(run.kind, one) for model in method.models for run in model.judged_runs for one in run.judges.values()
               if one.discriminates_persona]  # fmt: skip
    empty = ResultCard("character", *_TITLES["character"], reason=_reasons_text(pooled.fidelity_reasons))
    if one is not None and one.low is not None and chance is not None:
        outcome = "personas are distinguished" if _is_above(one, chance) else "personas are not shown to be distinguished"
        return _single_card(empty, one_line(method.name), one, outcome, Estimate(value=chance, n=one.n), "chance")
    if trusted:
        kind, judge = trusted[0]
        title = _judge_title(score_name(kind, judge.tasks), judge.label)
        scored = ResultCard("character", *title, limits=_JUDGE_RANGE)
        return _single_card(scored, one_line(method.name), judge.persona_score, "scored by a trusted judge")
    return _single_card(empty, one_line(method.name), one, "not compared with chance")


def _is_above(one: Estimate, limit: float | None) -> bool:
    """Whether the interval lies above the limit."""
    return one.low is not None and limit is not None and one.low > limit


def _persona_effect_outcome(models: Sequence[ModelRuns]) -> str:
    n_shown, n_tested = _persona_effect_counts(models)
    if n_tested == 0:
        return "no test of a persona effect"
    if n_tested == 1:
        return "personas change the accuracy" if n_shown else "no persona effect shown"
    return f"persona effect shown in {n_shown} of {n_tested} training seeds"


def _persona_effect_counts(models: Sequence[ModelRuns]) -> tuple[int, int]:
    """The number of models with a significant persona effect, and the number of models that were tested."""
    p_values = [p for model in models if model.stability is not None and (p := model.stability.permutation_p.value) is not None]
    return sum(p < SIGNIFICANCE_LEVEL for p in p_values), len(p_values)


def _no_persona_outcome(models: Sequence[ModelRuns]) -> str:
    """How the mean over personas differs from no persona; of a single model, because this difference is not pooled."""
    differences = [model.stability.measures["mean_minus_baseline"] for model in models if model.stability is not None]
    direction = difference_direction(differences[0]) if len(differences) == 1 else _NOT_MEASURED
    return {
        "higher": "better than without a persona", "lower": "worse than without a persona",
        NOT_SIGNIFICANT: "no difference to no persona shown",
    }.get(direction, "not compared with no persona")  # fmt: skip


def _single_claim_sentence(
    name: str, pooled: PooledMethod, cards: Sequence[ResultCard], stable: Sequence[ModelRuns], pss_reason: str | None
) -> str:
    """The sentence on one method: whether personas change its accuracy, and whether they are distinguished."""
    stability, character, _ = cards
    parts = [f"{name}: {pss_reason}"] if pss_reason is not None else []
    if stability.values and pooled.pss is not None:
        n_shown, n_tested = _persona_effect_counts(stable)
        seeds = f" in {n_shown} of {n_tested} training seeds" if n_tested > 1 else ""
        parts.append(
            f"Under its worst persona, {name} has {pooled.pss.format_value()} of its accuracy under its best"
            if not n_tested
            else f"Personas change the accuracy of {name}{seeds}"
            if n_shown
            else f"No effect of personas on the accuracy of {name} is shown"
        )
    whose = "its personas" if parts else f"The personas of {name}"
    if character.values and character.limits == _JUDGE_RANGE:
        score = character.values[0].estimate.format_value()
        parts.append(f"{'a' if parts else 'A'} trusted judge gives {whose[0].lower()}{whose[1:]} {score} of 5")
    elif character.values and character.mark is not None:
        is_shown = _is_above(character.values[0].estimate, character.mark.estimate.value)
        parts.append(f"{whose} are {'' if is_shown else 'not shown to be '}distinguished by their answers")
    return f"{', and '.join(parts) or f'{name}: {_NO_FINDING}'}."


def _stability_findings(
    difference: MethodDifference, pooled: PooledMethod, pooled_against: PooledMethod, models: Sequence[ModelRuns]
) -> list[Finding]:
    if difference.reasons:
        return [Finding(f"not comparable in accuracy ({_reasons_text(difference.reasons)})")]
    pss = difference.claimed_difference("pss")
    if pss is None or pss.low is None:
        return []
    scored = _scored_coverage(models)
    if not scored.is_complete:
        return [Finding(f"not compared in accuracy, because the runs are incomplete ({scored.text})")]
    support = (
        f"persona stability score (PSS) {_values_text(pooled.pss, pooled_against.pss)}, "
        f"{format_count(pss.n)} questions, {scored.text}"
    )
    return [Finding(stability_claim(pss), support)]


def _no_pss_findings(difference: MethodDifference, methods: Sequence[ReportMethod]) -> list[Finding]:
    """Why PSS is not compared: the methods of which it has no value, and the reason."""
    if difference.reasons or difference.pss is None or difference.pss.low is not None:
        return []
    return [Finding(f"of {md_label(one.name)} {one.pss_reason}") for one in methods if one.pss_reason is not None]


class _ScoredCoverage(NamedTuple):
    """How many of the asked cells have a score. `is_complete`: there are enough to claim something."""

    text: str
    is_complete: bool


def _scored_coverage(models: Sequence[ModelRuns]) -> _ScoredCoverage:
    summaries = [model.stability for model in models if model.stability is not None]
    personas = max((one.n_personas for one in summaries), default=0)
    scored, asked = (sum(getattr(one, name) for one in summaries) for name in ("n_scored", "n_asked"))
    is_complete = all(one.n_scored >= MIN_SCORED_SHARE * one.n_asked for one in summaries)
    return _ScoredCoverage(f"{count_text(personas, 'persona')}, {format_ratio(scored, asked)} persona cells scored", is_complete)


def _distinctness_findings(difference: MethodDifference, pooled: PooledMethod, pooled_against: PooledMethod) -> list[Finding]:
    if difference.fidelity_reasons:
        return [Finding(f"not comparable in how well personas are distinguished ({_reasons_text(difference.fidelity_reasons)})")]
    identifiability = difference.claimed_difference("identifiability")
    if identifiability is None or identifiability.low is None:
        return []
    chance = f" ({_chance_text(pooled.chance)})" if pooled.chance is not None else ""
    numbers = (
        f"{_values_text(pooled.identifiability, pooled_against.identifiability)}{chance}, "
        f"{format_count(identifiability.n)} open-ended questions"
    )
    text = _DISTINCTNESS_CLAIMS[difference_direction(identifiability)]
    return [Finding(f"{text} (identifiability {identifiability.format_difference()})", f"identifiability {numbers}")]


def _chance_text(chance: float) -> str:
    return f"chance {format_decimal(chance)} among {round(1 / chance)} personas"


def _values_text(value: Estimate | None, against: Estimate | None) -> str:
    decimals = min((one.decimals for one in (value, against) if one is not None), default=None)
    return " against ".join(MISSING_TEXT if one is None else one.format_value(decimals) for one in (value, against))


def _judge_findings(method: ReportMethod, against: ReportMethod) -> list[Finding]:
    """Findings by judges when each method has one judged model: what judges trusted on both say, and which are not
    trusted.
    """
    judged, judged_against = ([model for model in each.models if model.judged_runs] for each in (method, against))
    if len(judged) != 1 or len(judged_against) != 1:
        return []
    differences, reasons = compare_judge_scores(judged[0], judged_against[0])
    refused = [Finding(f"judges' scores are not comparable ({_reasons_text(reasons)})")] if reasons else []
    return (
        [_judge_finding(each) for each in differences if each.discriminates_persona]
        + refused
        + _untrusted_judge_findings([*judged_against, *judged])
    )


def _judge_finding(difference: JudgeScoreDifference) -> Finding:
    scores = difference.scores.persona_score
    direction = difference_direction(scores) if difference_direction(scores) != NOT_SIGNIFICANT else f"{NOT_SIGNIFICANT} in the"
    name = f"{difference.score_name} by judge {md_label(difference.scores.judge)}"
    return Finding(
        f"{direction} {name} (1 to 5, {scores.format_difference()})",
        f"{name}: {format_count(scores.n)} personas, intervals over personas",
    )


def _untrusted_judge_findings(models: Iterable[ModelRuns]) -> list[Finding]:
    """A finding for each judge whose scores mean nothing for one of these models, without repetition."""
    judges = [
        one for model in models for run in model.judged_runs for one in run.judges.values() if not one.discriminates_persona
    ]
    why = {False: "does not tell right from wrong persona", None: "was not validated"}
    texts = {
        one.label: f"scores of judge {md_label(one.label)} are left out, since it {why[one.discriminates_persona]}"
        for one in judges
    }
    return [Finding(support=text) for text in texts.values()]


def _training_effect_sentences(
    base: ReportMethod | None, method: ReportMethod, against: ReportMethod, numbers: MethodNumbers
) -> list[str]:
    """What training changed against base, when the claim itself compares two trainings."""
    if base is None or against.role == "base":
        return []
    difference = numbers.difference(method, base)
    pairs = (
        ("PSS", difference.claimed_difference("pss")),
        ("identifiability", difference.claimed_difference("identifiability")),
        ("recognisability", difference.claimed_difference("recognisability")),
    )
    texts = [f"{name} {value.format_difference()}" for name, value in pairs if value is not None and value.value is not None]
    return [f"{md_label(method.name)} against {md_label(base.name)}, before training: {', '.join(texts)}."] if texts else []


def _seed_sentences(difference: MethodDifference, method: ReportMethod, against: ReportMethod) -> list[str]:
    """What the intervals of a comparison cover: the questions, or the questions and how many training seeds."""
    if difference.pss is None and difference.identifiability is None:
        return []
    pairs = zip((method, against), _seed_counts(difference), strict=True)
    counts = [(one, n) for one, n in pairs if one.role != "base" and n]
    distinct_counts = {n for _, n in counts}
    if not counts:
        return [f"{_INTERVAL_NOTE}."]
    if distinct_counts == {1}:
        trained = "One training seed each" if len(counts) > 1 else "One training seed"
        return [f"{_INTERVAL_NOTE}. {trained}; other seeds are not covered."]
    trained = _seed_counts_text(counts, shared=len(distinct_counts) == 1)
    covered = [name for name in _CLAIM_LABELS if difference.covers_seeds(name)]
    if not covered:
        return [f"{_INTERVAL_NOTE}, of means over {trained}; other seeds are not covered; each seed is shown below."]
    shown = {name: difference.claimed_difference(name) for name in _CLAIM_LABELS if name not in covered}
    alone = [_CLAIM_LABELS[name] for name, one in shown.items() if one is not None and one.low is not None]
    exception = f", of {_join_words(alone)} over the questions alone" if alone else ""
    note = f"Brackets are 95 % intervals over questions and training seeds, of means over {trained}{exception}"
    return [
        f"{note}; each seed is shown below.",
        *_left_out_sentences(difference),
        _differences_over_questions(difference, covered),
    ]


_CLAIM_LABELS = {"pss": "PSS", "identifiability": "identifiability", "mean": STABILITY_MEASURES["mean"].sentence_label}
"""The measures of the cards, and their names in a sentence."""


def _left_out_sentences(difference: MethodDifference) -> list[str]:
    """Which seeds are in a method's own mean and not in the difference."""
    seeds = difference.seeds_of("pss" if difference.pss is not None else "identifiability")
    counts = zip(seeds.n_left_out, (difference.name, difference.against), strict=True)
    parts = [f"{n} further seed{'s' if n > 1 else ''} of {md_label(name)}" for n, name in counts if n]
    if not parts:
        return []
    return [f"The difference is that of the seeds that both have; {' and '.join(parts)} count in the method's own mean alone."]


def _differences_over_questions(difference: MethodDifference, names: Sequence[str]) -> str:
    """The differences in these measures with their intervals over the questions alone."""
    found = {name: difference.over_seeds[name].over_questions for name in names}
    parts = [f"{_CLAIM_LABELS[name]} {one.format_difference()}, {difference_direction(one)}" for name, one in found.items()]
    return f"Over the questions alone, which says nothing of other seeds: {'; '.join(parts)}."


def _seed_counts_text(counts: Sequence[tuple[ReportMethod, int]], *, shared: bool) -> str:
    if shared:
        return f"{counts[0][1]} training seeds{' each' if len(counts) > 1 else ''}"
    return " and ".join(f"{n} training seed{'s' if n > 1 else ''} of {md_label(method.name)}" for method, n in counts)


def _seed_counts(difference: MethodDifference) -> tuple[int, int]:
    """The numbers of models behind a comparison: those of stability when it was compared, else those of fidelity."""
    return difference.n_seeds if difference.pss is not None else difference.n_fidelity_seeds


def _other_variants_sentences(others: Sequence[ReportMethod]) -> list[str]:
    if not others:
        return []
    names = ", ".join(md_label(method.name) for method in others)
    return [f"Other variants with personas mixed in, with fewer seeds or listed later, are in the table: {names}."]


def _single_method_claim(method: ReportMethod, numbers: MethodNumbers) -> ReportClaim:
    """The claim about a single method: whether personas have an effect, the accuracy under the worst one, and
    distinctness.
    """
    pooled, (stable, _) = numbers.pooled(method), measured_models(method)
    findings = [
        *_stability_effect_findings(pooled, stable, method.pss_reason),
        *_identifiability_findings(pooled),
        *_untrusted_judge_findings(method.models),
        *_trusted_judge_findings(method.models),
    ]
    has_text = any(one.text for one in findings)
    is_measured = pooled.pss is not None or pooled.identifiability is not None
    remarks = [f"{_INTERVAL_NOTE}."] if has_text and is_measured else []
    if not has_text:
        findings.append(Finding(_NO_FINDING))
    cards = _single_method_cards(method, pooled)
    name = md_label(method.name)
    return ReportClaim(
        _single_claim_sentence(name, pooled, cards, stable, method.pss_reason),
        _join_support(f"{name}{_ROLE_DESCRIPTIONS[method.role]}", findings, remarks),
        cards,
    )


def _stability_effect_findings(pooled: PooledMethod, models: Sequence[ModelRuns], pss_reason: str | None) -> list[Finding]:
    if pooled.reasons:
        return [Finding(f"its seeds cannot be pooled in accuracy ({_reasons_text(pooled.reasons)})")]
    if pss_reason is not None:
        text = pss_reason if len(models) == 1 else f"in some training seed {pss_reason}"
        return [Finding(text, f"{format_count(pooled.pss.n)} questions, {_scored_coverage(models).text}" if pooled.pss else "")]
    if pooled.pss is None or pooled.pss.low is None or pooled.mean is None or pooled.worst is None:
        return []
    scored = _scored_coverage(models)
    if not scored.is_complete:
        return [Finding(f"no claim about accuracy, because the run is incomplete ({scored.text})")]
    n_shown, n_tested = _persona_effect_counts(models)
    effect = f"a persona effect is shown in {n_shown} of {n_tested} training seeds"
    if n_tested < 2:
        effect = "no test of a persona effect" if not n_tested else f"{'a' if n_shown else 'no'} persona effect is shown"
    share = f"accuracy under its worst persona is {pooled.pss} of that under its best (PSS)"
    values = f"accuracy {pooled.worst} under the worst persona and {pooled.mean} on average"
    return [Finding(f"{effect}; {share}", f"{values}, {format_count(pooled.pss.n)} questions, {scored.text}")]


def _identifiability_findings(pooled: PooledMethod) -> list[Finding]:
    if pooled.fidelity_reasons:
        return [
            Finding(
                f"its seeds cannot be pooled in how well personas are distinguished ({_reasons_text(pooled.fidelity_reasons)})"
            )
        ]
    one = pooled.identifiability
    if one is None or one.low is None or pooled.chance is None:
        return []
    effect = "distinguished" if _is_above(one, pooled.chance) else "not shown to be distinguished"
    support = f"identifiability: {_chance_text(pooled.chance)}, {format_count(one.n)} answers"
    return [Finding(f"personas are {effect} by their answers (identifiability {one})", support)]


def _trusted_judge_findings(models: Sequence[ModelRuns]) -> list[Finding]:
    """The scores of trusted judges."""
    return [
        Finding(
            f"{score_name(run.kind, one.tasks)} by judge {md_label(one.label)} {one.persona_score} of 5",
            f"judge {md_label(one.label)}: {format_count(one.persona_score.n)} personas, intervals over personas",
        )
        for model in models
        for run in model.judged_runs
        for one in run.judges.values()
        if one.discriminates_persona
    ]


def _reasons_text(reasons: Sequence[str]) -> str:
    return "; ".join(md_label(reason[:1].lower() + reason[1:], 200) for reason in reasons)
