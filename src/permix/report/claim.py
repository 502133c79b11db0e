"""What a set of runs supports, in one breath: the most telling comparison, how stable and how distinct, and what it rests on.

Contract: made from numbers and intervals alone; higher and lower are said only when the 95 % interval of the paired difference
leaves out 0, everything else is "no difference shown". What may not be compared is refused, with the reason. A judge that is not
trusted is named and its scores are not. Plain Markdown without emphasis, names escaped.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from permix.report.judged import SCORE_OF, JudgedDifference
from permix.report.methods import Method
from permix.report.reading import ALPHA, judged_between
from permix.report.runs import ModelRuns
from permix.report.seeds import MethodDifference, Pooled, difference, measured, pool
from permix.report.tables import UNSHOWN, count, label, number, of, word
from permix.report.trained import Role
from permix.types import Estimate

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
    names = f"{label(one.name)}{HOW[one.role]} against {label(other.name)}{HOW[other.role]}"
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
    what = f"{SCORE_OF[found.kind]} by judge {label(found.scores.judge)}"
    return Half(
        f"{how} {what} (1 to 5, {scores.signed()})", f"{what}: {count(scores.n)} personas, over which its brackets are intervals"
    )


def _unfit(models: Iterable[ModelRuns]) -> list[Half]:
    """Each judge whose scores mean nothing for one of these models, once."""
    judges = [one for model in models for run in model.judged for one in run.judges.values() if not one.trusted]
    why = {False: "does not tell right from wrong persona", None: "was never tried"}
    said = {one.label: f"scores of judge {label(one.label)} are left out, since it {why[one.trusted]}" for one in judges}
    return [Half(basis=text) for text in said.values()]


def _since(start: Method | None, one: Method, other: Method) -> list[str]:
    """What training did to the model spoken of, where the claim itself is about two trainings."""
    if start is None or other.role == "base":
        return []
    found = difference(one, start)
    pairs = (("PSS", found.pss), ("identifiability", found.identifiability))
    said = [f"{name} {got.signed()}" for name, got in pairs if got is not None and got.value is not None]
    return [f"{label(one.name)} against {label(start.name)}, before training: {', '.join(said)}."] if said else []


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
    return " and ".join(f"{n} training seed{'s' if n > 1 else ''} of {label(method.name)}" for method, n in counts)


def _most(found: MethodDifference) -> tuple[int, int]:
    """Models behind the comparison; accuracy's where both were made."""
    return found.seeds if found.pss is not None else found.fidelity_seeds


def _passed_over(others: Sequence[Method]) -> list[str]:
    if not others:
        return []
    names = ", ".join(label(method.name) for method in others)
    return [f"Other variants with personas mixed in, of fewer seeds or named later, are in the table: {names}."]


def _alone(method: Method) -> Claim:
    """A method by itself: does a persona effect show, what is kept under the worst, are personas told apart."""
    found, (stable, _) = pool(method), measured(method)
    halves = [*_effect(found, stable), *_told(found), *_unfit(method.models), *_standing(method.models)]
    said = any(half.said for half in halves)
    measured_here = found.pss is not None or found.identifiability is not None
    more = [f"{BRACKETS}."] if said and measured_here else []
    return _claimed(f"{label(method.name)}{HOW[method.role]}", halves if said else [*halves, Half(UNSAID)], more)


def _effect(found: Pooled, models: Sequence[ModelRuns]) -> list[Half]:
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


def _told(found: Pooled) -> list[Half]:
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
            f"{SCORE_OF[run.kind]} by judge {label(one.label)} {one.persona_score} of 5",
            f"judge {label(one.label)}: {count(one.persona_score.n)} personas, over which its brackets are intervals",
        )
        for model in models
        for run in model.judged
        for one in run.judges.values()
        if one.trusted
    ]


def _because(reasons: Sequence[str]) -> str:
    return "; ".join(label(reason[:1].lower() + reason[1:], 200) for reason in reasons)
