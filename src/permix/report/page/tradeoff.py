"""The trade-off's data: PSS against every measure of fidelity that there is, one point a method.

Contract: a method stands at the mean of its training seeds. It is left out where one of its models may not be held against the
first in accuracy, and has no value of a measure of fidelity in which that may not be done: an arrow to it would do just that. A
judge's score has an interval where one model stands alone; the mean of several seeds has none, since nothing pools judges'
scores over seeds.
"""

from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

from permix.report import canvas
from permix.report.canvas import INTERVAL
from permix.report.judged import Scored
from permix.report.judged_plots import INTERVAL as OVER_PERSONAS
from permix.report.methods import arrows
from permix.report.page.plain import estimate, names, number, text
from permix.report.reading import Comparison
from permix.report.runs import ModelRuns
from permix.report.seeds import Method, Pooled
from permix.types import Estimate

PSS, DISTINCT, JUDGED = "pss", "identifiability", "judged"
Y_NAME = "PSS: worst / best persona's accuracy"
X_NAME = "identifiability: how often a classifier tells which persona wrote an answer"
HOLLOW = "hollow: the judge does not tell right from wrong persona, or was not tried"

Scores = Mapping[str, Mapping[str, Scored]]
"""By judge's measure, then by label of the model."""
Names = Mapping[str, str]


def tradeoff(
    models: Sequence[ModelRuns], methods: Sequence[Method], pooled: Sequence[Pooled], comparisons: Sequence[Comparison]
) -> dict[str, Any]:
    """Empty where no method has both PSS and a measure of fidelity."""
    apart = _apart(models[0], comparisons)
    pairs = [
        (method, mean)
        for method, mean in zip(methods, pooled, strict=True)
        if mean.pss is not None and mean.pss.value is not None and not apart[PSS] & set(mean.labels)
    ]
    scores = _scores(model for method, _ in pairs for model in method.models if model.label not in apart[JUDGED])
    shown, called = names(model.label for model in models), names(method.name for method in methods)
    points = [_point(method, mean, scores, apart[DISTINCT], shown, called) for method, mean in pairs]
    measures = [one for one in _measures([mean for _, mean in pairs], scores) if any(_known(point, one) for point in points)]
    return (
        {}
        if not measures
        else {
            "y_name": Y_NAME,
            "measures": measures,
            "points": [point for point in points if any(_known(point, one) for one in measures)],
            "arrows": [[called[start], called[end]] for start, end in arrows([method for method, _ in pairs])],
        }
    )


def _apart(first: ModelRuns, comparisons: Sequence[Comparison]) -> dict[str, set[str]]:
    """Labels of models that must not be held against the first, by what is measured."""
    against = [one for one in comparisons if one.against == first.label]
    return {
        PSS: {one.label for one in against if one.reasons},
        DISTINCT: {one.label for one in against if one.fidelity_reasons},
        JUDGED: {one.label for one in against if one.judged_reasons},
    }


def _scores(models: Iterable[ModelRuns]) -> Scores:
    found: dict[str, dict[str, Scored]] = {}
    for model in models:
        for judged in model.judged:
            for one in judged.scored:
                found.setdefault(one.name, {})[model.label] = one
    return found


MARKS = "dotted: chance; arrows: from base to RLVR to personas mixed in"


def _measures(means: Sequence[Pooled], scores: Scores) -> list[dict[str, Any]]:
    """The axes that can be chosen; `low` and `high` are the ends of what the measure can be."""
    questions = f"{canvas.counts(mean.pss.n for mean in means if mean.pss is not None)} questions (PSS)"
    answers = canvas.counts(mean.identifiability.n for mean in means if mean.identifiability is not None)
    bars = f"bars: {INTERVAL}"
    small = "; small points: training seeds" if any(len(mean.labels) > 1 for mean in means) else ""
    distinct = {
        "key": DISTINCT, "name": X_NAME, "chance": _chance(means), "low": 0, "high": 1,
        "note": f"n = {questions}, {answers} answers (identifiability); {bars}{small}; {MARKS}",
    }  # fmt: skip
    return [distinct] + [
        {
            "key": text(name), "name": f"{text(name)}: mean score, 1 to 5", "chance": None, "low": 1, "high": 5,
            "note": f"n = {questions}, {canvas.counts(one.persona_score.n for one in of.values())} personas (judge); upright "
            f"{bars}; level bars: {OVER_PERSONAS}, of a single model{small}; {HOLLOW}",
        }
        for name, of in scores.items()
    ]  # fmt: skip


def _chance(means: Sequence[Pooled]) -> float | None:
    """One line needs one chance: none where methods were told from different numbers of personas."""
    found = {number(mean.chance) for mean in means if mean.chance is not None}
    return found.pop() if len(found) == 1 else None


def _point(method: Method, mean: Pooled, scores: Scores, apart: Set[str], shown: Names, called: Names) -> dict[str, Any]:
    x = {DISTINCT: None if apart & set(mean.labels) else estimate(mean.identifiability)}
    x |= {text(name): estimate(_pooled([of.get(label) for label in mean.labels])) for name, of in scores.items()}
    trusted = {text(name): all(of[label].trusted for label in mean.labels if label in of) for name, of in scores.items()}
    return {
        "name": called[method.name],
        "labels": [shown[label] for label in mean.labels],
        "y": estimate(mean.pss),
        "x": x,
        "trusted": {DISTINCT: True} | trusted,
        "seeds": [_seed(model, scores, shown) for model in method.models] if len(method.models) > 1 else [],
    }


def _pooled(found: Sequence[Scored | None]) -> Estimate | None:
    """One model's own estimate; of several the mean, where all have one."""
    known = [one.persona_score for one in found if one is not None and one.persona_score.value is not None]
    if len(known) < len(found):
        return None
    if len(known) == 1:
        return known[0]
    return Estimate(value=sum(one.value or 0.0 for one in known) / len(known), n=min(one.n for one in known))


def _seed(model: ModelRuns, scores: Scores, shown: Names) -> dict[str, Any]:
    x = {DISTINCT: None if model.fidelity is None else number(model.fidelity.accuracy.value)}
    x |= {text(name): number(of[model.label].persona_score.value) for name, of in scores.items() if model.label in of}
    return {"label": shown[model.label], "y": None if model.stability is None else number(model.stability.pss.value), "x": x}


def _known(point: Mapping[str, Any], measure: Mapping[str, Any]) -> bool:
    at = point["x"][measure["key"]]
    return at is not None and at["value"] is not None
