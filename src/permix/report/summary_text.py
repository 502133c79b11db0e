"""What a set of runs supports, in one breath: the most telling comparison, how stable and how distinct, and what it rests on.

Contract: made from numbers and intervals alone; higher and lower are said only when the 95 % interval of the paired difference
leaves out 0, everything else is "no difference shown". What may not be compared is refused, with the reason. A judge that is not
trusted is named and its scores are not. Plain Markdown without emphasis, names escaped.

What judges' scores say, in words, and first of all whether they say anything.

Contract: a number of a judge that is not trusted is shown, marked, and called meaningless; a difference is called higher or lower
only when its interval leaves out 0 and the judge told personas apart on both models. Markdown out, labels escaped.

What the numbers say, in words: models compared where they may be, and plainly not where they may not.

Contract: a difference is called higher or lower only when its 95 % interval leaves out 0 (stability: paired by persona and
question; identifiability: paired by question); everything else is "no difference shown". Models
that were not asked the same are not compared, and the reason is said. Markdown out, labels escaped.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from permix.evals.strategies.base import StrategySummary
from permix.judges.summary import Judged
from permix.metrics.stability import StabilitySummary
from permix.rendering.table import UNSHOWN, count, dollars, estimate, md_label, number, of, probability, word
from permix.report.comparisons import Comparison, judged_between
from permix.report.judges import SCORE_OF, UNTRIED, UNTRUSTED, JudgedDifference, JudgedRun, mark
from permix.report.methods import Method, MethodDifference, Pooled, Role, difference, measured, pool
from permix.report.runs import ModelRuns
from permix.types import Estimate

MEANING = (
    f"{UNTRUSTED} The judge scores an answer under a wrong persona no lower than under its own (the interval of the AUC includes "
    f"0.5, or lies below): either it cannot tell, or these answers show no persona, and the number means nothing. {UNTRIED} The "
    "judge was not tried, so it is not known what the number means."
)


def verdict_on(name: str, run: JudgedRun) -> list[str]:
    """For the headline: of each judge that is not trusted, that its number means nothing for this model."""
    return [_worthless(name, run.kind, one) for one in run.judges.values() if not one.trusted]


def standing(name: str, run: JudgedRun) -> list[str]:
    """For the headline of a model by itself: the judges that are trusted."""
    return [
        f"{md_label(name)}: judge {md_label(one.label)} tells personas apart ({SCORE_OF[run.kind]} {one.persona_score})"
        for one in run.judges.values()
        if one.trusted
    ]


def changes(found: Iterable[JudgedDifference]) -> list[str]:
    """For the headline of a comparison: a few words for each judge that is trusted on both models."""
    return [
        f"{SCORE_OF[one.kind]} by judge {md_label(one.scores.judge)} {word(one.scores.persona_score)}"
        for one in found
        if one.trusted
    ]


def details(name: str, run: JudgedRun) -> list[str]:
    """A sentence with numbers for each judge of a model."""
    return [_judge_sentence(name, run.kind, one) for one in run.judges.values()]


def against(found: Sequence[JudgedDifference]) -> list[str]:
    """A phrase with numbers for each judge of a comparison."""
    return [
        f"{SCORE_OF[one.kind]} by judge {md_label(one.scores.judge)} {word(one.scores.persona_score)} "
        f"({one.scores.persona_score.signed()}, p {_p(one.scores.p)}, {one.scores.n_answers} answers)"
        + ("" if one.trusted else ", which means nothing: that judge is not trusted on both")
        for one in found
    ]


def _worthless(name: str, kind: str, one: Judged) -> str:
    what = f"{SCORE_OF[kind]} by judge {md_label(one.label)}"
    if one.trusted is None:
        return f"{md_label(name)}: nobody knows what {what} means, the judge was not tried"
    return f"{md_label(name)}: {what} means nothing, the judge does not tell right from wrong persona (AUC {one.trial.auc})"


def _judge_sentence(name: str, kind: str, one: Judged) -> str:
    worth = {True: "it tells personas apart", False: "it does not tell personas apart", None: "it was not tried"}[one.trusted]
    return (
        f"**{md_label(name)}**, judge {md_label(one.label)}: {SCORE_OF[kind]} "
        f"{estimate(one.persona_score).text}{mark(one.trusted)}, {of(one.n_scored, one.n_asked)} answers of "
        f"{one.persona_score.n} personas scored, share of fives {one.fives}; {worth} "
        f"(AUC {one.trial.auc}); cost {dollars(one.bill.cost)}."
    )


NAMES = {
    "pss": "PSS",
    "worst": "worst persona's accuracy",
    "mean": "mean accuracy over personas",
    "identifiability": "identifiability",
}

ALPHA = 0.05


def readings(models: Sequence[ModelRuns], comparisons: Sequence[Comparison]) -> list[str]:
    """The headline, one sentence; then a sentence with numbers for each model and each comparison."""
    effects = [_effect_sentence(model) for model in models if model.stability is not None]
    judged = [line for model in models for run in model.judged for line in details(model.label, run)]
    strategies = [_strategy(model.label, found) for model in models for found in model.strategies]
    against = [_against(one) for one in comparisons]
    return [_headline(models, comparisons), *(f"- {line}" for line in [*effects, *judged, *strategies, *against] if line)]


def warnings(comparisons: Sequence[Comparison]) -> list[str]:
    """Why some models must not be held against the first."""
    return [
        f"> **{reason}: do not compare** {md_label(one.label)} with {md_label(one.against)} in {what}."
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
        f"> **Not whole**: {md_label(model.label)} has {of(model.stability.n_scored, model.stability.n_asked)} cells scored."
        for model in models
        if model.stability is not None and model.stability.n_scored < model.stability.n_asked
    ]
    return owed + [f"> **Left out**: {md_label(reason, 400)}." for model in models for reason in model.unmeasured]


def _headline(models: Sequence[ModelRuns], comparisons: Sequence[Comparison]) -> str:
    """What is shown; and of every judge that cannot tell right from wrong, that its number means nothing."""
    worthless = [line for model in models for run in model.judged for line in verdict_on(model.label, run)]
    return "**" + " ".join([_shown(models, comparisons), *(f"{line}." for line in worthless)]) + "**"


def _shown(models: Sequence[ModelRuns], comparisons: Sequence[Comparison]) -> str:
    """One sentence a model that others are held against, words only."""
    said: dict[str, list[str]] = {}
    for one in comparisons:
        if words := _words(one):
            said.setdefault(one.against, []).append(f"{md_label(one.label)}: {', '.join(words)}")
    if said:
        return " ".join(f"Against {md_label(against)}, {'; '.join(parts)}." for against, parts in said.items())
    effects = [f"{md_label(model.label)}: {_effect_word(model)}" for model in models if model.stability is not None]
    strategies = [
        f"{md_label(model.label)} with {found.strategy}: accuracy {word(found.gain)} against no persona"
        for model in models
        for found in model.strategies
    ]
    judged = [line for model in models for run in model.judged for line in standing(model.label, run)]
    if not effects and not strategies and not judged:
        return "Nothing here measures accuracy under personas."
    return "; ".join([*effects, *strategies, *judged]) + "."


def _words(one: Comparison) -> list[str]:
    measured = [f"{NAMES[name]} {word(getattr(one, name))}" for name in NAMES if getattr(one, name) is not None]
    return measured + changes(one.judged)


def _effect_sentence(model: ModelRuns) -> str:
    """A model by itself."""
    one = model.stability
    assert one is not None
    return (
        f"**{md_label(model.label)}**: accuracy {estimate(one.baseline).text} without persona, {estimate(one.mean).text} "
        f"on average over {one.n_personas} personas, {estimate(one.worst).text} under the worst; PSS {estimate(one.pss).text} "
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
        f"**{md_label(name)} with {found.strategy}**: accuracy {estimate(found.accuracy).text}, {word(found.gain)} against no "
        f"persona ({found.gain.signed()}); {price}{before}; n = {found.gain.n} questions."
    )


def _effect_word(model: ModelRuns) -> str:
    p = None if model.stability is None else model.stability.permutation_p.value
    return "no test of a persona effect" if p is None else f"{'a' if p < ALPHA else 'no'} persona effect shown"


def _against(one: Comparison) -> str:
    parts = [f"{NAMES[name]} {word(got)} ({got.signed()})" for name in NAMES if (got := getattr(one, name)) is not None]
    parts += against(one.judged)
    return f"**{md_label(one.label)}** against {md_label(one.against)}: {'; '.join(parts)}." if parts else ""


def _p(p: float | None) -> str:
    shown = probability(p)
    return shown if shown.startswith("<") else f"= {shown}"


HOW: dict[Role, str] = {
    "base": " (before training)",
    "rlvr": " (trained by reward, without personas)",
    "permix": " (trained by reward, with personas mixed in)",
    "other": "",
}

KEPT = "{} stable: under its worst persona it keeps a {} share of its best persona's accuracy"

STABLE = {"higher": KEPT.format("more", "larger"), "lower": KEPT.format("less", "smaller")}

STABLE[UNSHOWN] = f"{UNSHOWN} in stability, the share of its best persona's accuracy that a model keeps under its worst"

TOLD = "its personas are {} to tell apart by what they answer"

DISTINCT = {"higher": TOLD.format("easier"), "lower": TOLD.format("harder")}

DISTINCT[UNSHOWN] = f"{UNSHOWN} in how well personas are told apart by what they answer"

BRACKETS = "Brackets are 95 % intervals over the questions"

UNSAID = "nothing that can be claimed"

NOTHING = "Nothing here measures accuracy under personas, or how well personas are told apart."

ELSEWHERE = (
    "No claim is made: no accuracy under personas to compare, and no answers to shared questions; what there is stands below."
)

WHOLE = 0.9
"""Share of the cells asked that must have a score before anything is claimed of accuracy."""


class Claim(NamedTuple):
    """One sentence, and in the small print what it rests on: values, n, intervals, seeds, what was passed over."""

    sentence: str
    basis: str = ""


class Half(NamedTuple):
    """What is claimed of one side, stability or fidelity, and what that rests on."""

    said: str = ""
    basis: str = ""


class Chosen(NamedTuple):
    """The comparison to speak of; `others` are the variants of `one` that were passed over."""

    one: Method
    other: Method
    others: tuple[Method, ...] = ()


def claim(methods: Sequence[Method]) -> Claim:
    """What stands above the report."""
    able = [method for method in methods if any(measured(method)) or any(model.judged for model in method.models)]
    chosen = choose(able)
    if chosen is not None:
        return _compared(chosen, next((method for method in able if method.role == "base"), None))
    if able:
        return _alone(able[0])
    other = any(model.drift is not None or model.strategies for method in methods for model in method.models)
    return Claim(ELSEWHERE if other else NOTHING)


def choose(methods: Sequence[Method]) -> Chosen | None:
    """Personas mixed in against RLVR, of each the method of most training seeds, and among those the first; else the last method
    against base, or the first. None for one."""
    mixed, plain, start = (_most_seeds([one for one in methods if one.role == role]) for role in ("permix", "rlvr", "base"))
    if mixed and plain:
        return Chosen(mixed[0], plain[0], tuple(mixed[1:]))
    against = (start or list(methods))[:1]
    rest = [one for one in methods if one not in against]
    return Chosen(rest[-1], against[0]) if rest else None


def _most_seeds(methods: Sequence[Method]) -> list[Method]:
    """Those of most seeds first, otherwise as they stand."""
    return sorted(methods, key=lambda one: -len(one.models))


def _compared(chosen: Chosen, start: Method | None) -> Claim:
    one, other, others = chosen
    found, mine, theirs = difference(one, other), pool(one), pool(other)
    halves = [
        *_stability(found, mine, theirs, [*one.models, *other.models]),
        *_distinctness(found, mine, theirs),
        *_judged(one, other),
    ]
    names = f"{md_label(one.name)}{HOW[one.role]} against {md_label(other.name)}{HOW[other.role]}"
    return _claimed(
        names,
        halves or [Half("nothing was measured of both")],
        [*_since(start, one, other), *_seeds(found, one, other), *_passed_over(others)],
    )


def _claimed(names: str, halves: Sequence[Half], more: Sequence[str] = ()) -> Claim:
    basis = "; ".join(half.basis for half in halves if half.basis)
    sentence = f"{names}: {'; '.join(half.said for half in halves if half.said)}."
    return Claim(sentence, " ".join([*([f"{basis[0].upper()}{basis[1:]}."] if basis else []), *more]))


def _stability(found: MethodDifference, mine: Pooled, theirs: Pooled, models: Sequence[ModelRuns]) -> list[Half]:
    if found.reasons:
        return [Half(f"not to be compared in accuracy ({_because(found.reasons)})")]
    if found.pss is None or found.pss.low is None:
        return []
    scored = _scored(models)
    if not scored.whole:
        return [Half(f"not compared in accuracy before the runs are whole ({scored.words})")]
    basis = f"persona stability score (PSS) {_both(mine.pss, theirs.pss)}, {count(found.pss.n)} questions, {scored.words}"
    return [Half(f"{STABLE[word(found.pss)]} (PSS {found.pss.signed()})", basis)]


class Scored(NamedTuple):
    """How much of what was asked has a score; `whole`: enough to claim anything."""

    words: str
    whole: bool


def _scored(models: Sequence[ModelRuns]) -> Scored:
    summaries = [model.stability for model in models if model.stability is not None]
    personas = max((one.n_personas for one in summaries), default=0)
    scored, asked = (sum(getattr(one, name) for one in summaries) for name in ("n_scored", "n_asked"))
    whole = all(one.n_scored >= WHOLE * one.n_asked for one in summaries)
    return Scored(f"{personas} personas, {of(scored, asked)} cells scored", whole)


def _distinctness(found: MethodDifference, mine: Pooled, theirs: Pooled) -> list[Half]:
    if found.fidelity_reasons:
        return [Half(f"not to be compared in how well personas are told apart ({_because(found.fidelity_reasons)})")]
    between = found.identifiability
    if between is None or between.low is None:
        return []
    chance = f" where {_guess(mine.chance)}" if mine.chance is not None else ""
    numbers = f"{_both(mine.identifiability, theirs.identifiability)}{chance}, {count(between.n)} open-ended questions"
    return [Half(f"{DISTINCT[word(between)]} (identifiability {between.signed()})", f"identifiability {numbers}")]


def _guess(chance: float) -> str:
    return f"a guess among {round(1 / chance)} personas is right {number(chance)} of the time"


def _both(mine: Estimate | None, theirs: Estimate | None) -> str:
    return " against ".join(number(None if one is None else one.value) for one in (mine, theirs))


def _judged(one: Method, other: Method) -> list[Half]:
    """Where one model of each was judged: what judges who are trusted on both say, and who is not."""
    mine, theirs = ([model for model in method.models if model.judged] for method in (one, other))
    if len(mine) != 1 or len(theirs) != 1:
        return []
    found, reasons = judged_between(theirs[0], mine[0])
    refused = [Half(f"judges' scores are not to be compared ({_because(reasons)})")] if reasons else []
    return [_by_judge(each) for each in found if each.trusted] + refused + _unfit([*theirs, *mine])


def _by_judge(found: JudgedDifference) -> Half:
    scores = found.scores.persona_score
    how = word(scores) if word(scores) != UNSHOWN else f"{UNSHOWN} in the"
    what = f"{SCORE_OF[found.kind]} by judge {md_label(found.scores.judge)}"
    return Half(
        f"{how} {what} (1 to 5, {scores.signed()})", f"{what}: {count(scores.n)} personas, over which its brackets are intervals"
    )


def _unfit(models: Iterable[ModelRuns]) -> list[Half]:
    """Each judge whose scores mean nothing for one of these models, once."""
    judges = [one for model in models for run in model.judged for one in run.judges.values() if not one.trusted]
    why = {False: "does not tell right from wrong persona", None: "was never tried"}
    said = {one.label: f"scores of judge {md_label(one.label)} are left out, since it {why[one.trusted]}" for one in judges}
    return [Half(basis=text) for text in said.values()]


def _since(start: Method | None, one: Method, other: Method) -> list[str]:
    """What training did to the model spoken of, where the claim itself is about two trainings."""
    if start is None or other.role == "base":
        return []
    found = difference(one, start)
    pairs = (("PSS", found.pss), ("identifiability", found.identifiability))
    said = [f"{name} {got.signed()}" for name, got in pairs if got is not None and got.value is not None]
    return [f"{md_label(one.name)} against {md_label(start.name)}, before training: {', '.join(said)}."] if said else []


def _seeds(found: MethodDifference, one: Method, other: Method) -> list[str]:
    """How many trainings stand behind it, and that intervals are not about those."""
    if found.pss is None and found.identifiability is None:
        return []
    pairs = zip((one, other), _most(found), strict=True)
    counts = [(method, n) for method, n in pairs if method.role != "base" and n]
    each = {n for _, n in counts}
    if not counts:
        return [f"{BRACKETS}."]
    if each == {1}:
        trained = "One training seed each" if len(counts) > 1 else "One training seed"
        return [f"{BRACKETS}. {trained}, so what another would give is not covered."]
    trained = _trainings(counts, shared=len(each) == 1)
    return [f"{BRACKETS}, of means over {trained}; what other seeds would give is not covered, every seed stands below."]


def _trainings(counts: Sequence[tuple[Method, int]], *, shared: bool) -> str:
    if shared:
        return f"{counts[0][1]} training seeds{' each' if len(counts) > 1 else ''}"
    return " and ".join(f"{n} training seed{'s' if n > 1 else ''} of {md_label(method.name)}" for method, n in counts)


def _most(found: MethodDifference) -> tuple[int, int]:
    """Models behind the comparison; accuracy's where both were made."""
    return found.seeds if found.pss is not None else found.fidelity_seeds


def _passed_over(others: Sequence[Method]) -> list[str]:
    if not others:
        return []
    names = ", ".join(md_label(method.name) for method in others)
    return [f"Other variants with personas mixed in, of fewer seeds or named later, are in the table: {names}."]


def _alone(method: Method) -> Claim:
    """A method by itself: does a persona effect show, what is kept under the worst, are personas told apart."""
    found, (stable, _) = pool(method), measured(method)
    halves = [*_effect_halves(found, stable), *_identifiability_halves(found), *_unfit(method.models), *_standing(method.models)]
    said = any(half.said for half in halves)
    measured_here = found.pss is not None or found.identifiability is not None
    more = [f"{BRACKETS}."] if said and measured_here else []
    return _claimed(f"{md_label(method.name)}{HOW[method.role]}", halves if said else [*halves, Half(UNSAID)], more)


def _effect_halves(found: Pooled, models: Sequence[ModelRuns]) -> list[Half]:
    if found.reasons:
        return [Half(f"its seeds are not to be pooled in accuracy ({_because(found.reasons)})")]
    if found.pss is None or found.pss.low is None or found.mean is None or found.worst is None:
        return []
    scored = _scored(models)
    if not scored.whole:
        return [Half(f"nothing is claimed of accuracy before the run is whole ({scored.words})")]
    tested = [p for model in models if model.stability is not None and (p := model.stability.permutation_p.value) is not None]
    shows = sum(p < ALPHA for p in tested)
    effect = f"a persona effect is shown in {shows} of {len(tested)} training seeds"
    if len(tested) < 2:
        effect = "no test of a persona effect" if not tested else f"{'a' if shows else 'no'} persona effect is shown"
    kept = f"of the accuracy under its best persona it keeps {found.pss} under its worst (PSS)"
    asked = f"{count(found.pss.n)} questions, {scored.words}"
    return [Half(f"{effect}; {kept}", f"accuracy {found.worst} under the worst and {found.mean} on average, {asked}")]


def _identifiability_halves(found: Pooled) -> list[Half]:
    if found.fidelity_reasons:
        return [Half(f"its seeds are not to be pooled in how well personas are told apart ({_because(found.fidelity_reasons)})")]
    one = found.identifiability
    if one is None or one.low is None or found.chance is None:
        return []
    how = "told apart" if one.low > found.chance else "not shown to be told apart"
    basis = f"identifiability: {_guess(found.chance)}, {count(one.n)} answers"
    return [Half(f"personas are {how} by what they answer (identifiability {one})", basis)]


def _standing(models: Sequence[ModelRuns]) -> list[Half]:
    """What judges who are trusted gave."""
    return [
        Half(
            f"{SCORE_OF[run.kind]} by judge {md_label(one.label)} {one.persona_score} of 5",
            f"judge {md_label(one.label)}: {count(one.persona_score.n)} personas, over which its brackets are intervals",
        )
        for model in models
        for run in model.judged
        for one in run.judges.values()
        if one.trusted
    ]


def _because(reasons: Sequence[str]) -> str:
    return "; ".join(md_label(reason[:1].lower() + reason[1:], 200) for reason in reasons)
