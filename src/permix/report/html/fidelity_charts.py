"""The data of the charts on fidelity: what judges scored, judges on trial, who is taken for whom, drift over an interview.

    judged     a list, one for each kind of run: {title, score, note, judges [{judge, tasks, models {trusted, scores [estimate of
               each task]}}]}
    trial      {note, kinds [{title, panels [{label, judge, trusted, auc, bars [{name, counts [5]}]}]}]}
    confusion  models {ids, note, cells [[row, column, count]] that are not 0: rows whose answer it was}
    drift      panels [{key, name, low, high}], models {chance, courses {key: {trusted, by_turn [estimate]}}}

Contract as in `payload`. A confusion's cells are at most as many as the answers, however many personas there are.

The trade-off's data: PSS against every measure of fidelity that there is, one point a method.

Contract: a method stands at the mean of its training seeds. It is left out where one of its models may not be held against the
first in accuracy, and has no value of a measure of fidelity in which that may not be done: an arrow to it would do just that. A
judge's score has an interval where one model stands alone; the mean of several seeds has none, since nothing pools judges'
scores over seeds.
"""

from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

from permix.rendering import theme
from permix.rendering.plots import HEADINGS, ranked
from permix.rendering.theme import HOLLOW, INTERVAL
from permix.report.comparisons import Comparison
from permix.report.html.values import estimate, names, number, text
from permix.report.judges import FILES, SCORE_OF, TITLES, JudgedRun, Scored, mark
from permix.report.methods import Method, Pooled, arrows
from permix.report.runs import ModelRuns
from permix.report.score_plots import BARS
from permix.report.score_plots import PERSONA_INTERVAL as OVER_PERSONAS
from permix.report.summary_text import MEANING
from permix.types import Estimate

Names = Mapping[str, str]

Chart = dict[str, Any]


def learnt(models: Sequence[ModelRuns], shown: Names) -> Chart:
    """Identifiability by the number of questions that the classifier learnt from; empty where there is but one number."""
    told = {shown[model.label]: model.fidelity for model in models if model.fidelity is not None}
    if not any(len(one.learning_curve) > 1 for one in told.values()):
        return {}
    answers = theme.counts(one.n_answered for one in told.values())
    return {
        "note": f"n = {answers} answers, the same at every point; bands: {INTERVAL}; dotted: chance. Still climbing at its right "
        "end: more questions would tell more",
        "models": {
            label: {
                "chance": number(one.chance),
                "points": [{"questions": at.questions, "accuracy": estimate(at.accuracy)} for at in one.learning_curve],
            }
            for label, one in told.items()
        },
    }


def _of_kind(models: Sequence[ModelRuns], kind: str, shown: Names) -> dict[str, JudgedRun]:
    return {shown[model.label]: run for model in models for run in model.judged if run.kind == kind}


def judged(models: Sequence[ModelRuns], shown: Names) -> list[Chart]:
    """Scores by task, one panel a judge; a list with an entry for each kind of run that was judged."""
    return [_scores(runs, kind) for kind in FILES if (runs := _of_kind(models, kind, shown))]


def _scores(runs: Mapping[str, JudgedRun], kind: str) -> Chart:
    every = [one for run in runs.values() for one in run.judges.values()]
    hollow = HOLLOW if any(not one.trusted for one in every) else ""
    n = theme.counts(one.persona_score.n for one in every)
    judges = dict.fromkeys(judge for run in runs.values() for judge in run.judges)
    return {
        "title": TITLES[kind],
        "score": SCORE_OF[kind],
        "note": f"n = {n} personas; bars: {OVER_PERSONAS}{hollow}",
        "judges": [_panel(judge, runs, SCORE_OF[kind]) for judge in judges],
    }


def _panel(judge: str, runs: Mapping[str, JudgedRun], score: str) -> Chart:
    """The mean over the tasks, then each task; no tasks where there is but one, which is the mean itself."""
    found = {label: run.judges[judge] for label, run in runs.items() if judge in run.judges}
    tasks = list(dict.fromkeys(task for one in found.values() for task in one.tasks))
    tasks = tasks if len(tasks) > 1 else []
    return {
        "judge": text(judge),
        "tasks": list(names([score, *tasks]).values()),
        "models": {
            label: {
                "trusted": one.trusted,
                "scores": [estimate(one.persona_score), *(estimate(one.tasks.get(task)) for task in tasks)],
            }
            for label, one in found.items()
        },
    }


def trial(models: Sequence[ModelRuns], shown: Names) -> Chart:
    """How many answers got each score, plainly and under each control."""
    kinds = [
        {"title": TITLES[kind], "panels": [_trial(label, run, judge) for label, run in runs.items() for judge in run.judges]}
        for kind in FILES
        if (runs := _of_kind(models, kind, shown))
    ]
    note = (
        "share of answers that got each score, n at the right, without Toxicity Control; a good judge scores wrong and no "
        f"persona lower than the own one, the last three alike. {MEANING}"
    )
    return {"note": note, "kinds": kinds} if kinds else {}


def _trial(label: str, run: JudgedRun, judge: str) -> Chart:
    one = run.judges[judge]
    return {
        "label": label,
        "judge": text(judge) + mark(one.trusted),
        "trusted": one.trusted,
        "auc": str(one.trial.auc),
        "bars": [
            {"name": name, "counts": list(one.histogram[control])}
            for control, name in BARS.items()
            if any(one.histogram[control])
        ],
    }


def confusion(models: Sequence[ModelRuns], shown: Names) -> Chart:
    """Personas of every model in the order of the first, best told there first, so that two can be laid side by side."""
    told = {shown[model.label]: model.fidelity for model in models if model.fidelity is not None}
    first = ranked(next(iter(told.values()))) if told else ()
    found = {}
    for label, one in told.items():
        order = [id for id in dict.fromkeys((*first, *ranked(one))) if id in one.persona_ids]
        place = {id: p for p, id in enumerate(order)}
        at = [place[id] for id in one.persona_ids]
        found[label] = {
            "ids": list(names(order).values()),
            "note": f"n = {one.n_answered} answers of {len(order)} personas to {one.n_questions} questions; counts of answers; "
            "shade: share of the row",
            "cells": sorted(
                [at[row], at[column], count]
                for row, counts in enumerate(one.confusion)
                for column, count in enumerate(counts)
                if count
            ),
        }
    return {"models": found} if found else {}


def drift(models: Sequence[ModelRuns], shown: Names) -> Chart:
    """Every measure by turn, in the order of the table."""
    found = {shown[model.label]: model.drift for model in models if model.drift is not None}
    courses = {one.name: one for drift in found.values() for one in drift.courses}
    hollow = HOLLOW if any(one.judge is not None and not one.trusted for d in found.values() for one in d.courses) else ""
    dotted = "; dotted: chance" if "identifiability" in courses else ""
    asked = theme.counts(len(one.persona_ids) for one in found.values())
    keys = names(courses)
    return (
        {}
        if not found
        else {
            "note": f"n = {asked} personas, means over them; bands: {OVER_PERSONAS}, of each turn by itself{dotted}{hollow}",
            "panels": [_drift_panel(keys[name], name, one.judge) for name, one in courses.items()],
            "models": {
                label: {
                    "chance": number(one.chance),
                    "courses": {
                        keys[course.name]: {
                            "trusted": course.judge is None or course.trusted,
                            "by_turn": [estimate(turn) for turn in course.by_turn],
                        }
                        for course in one.courses
                    },
                }
                for label, one in found.items()
            },
        }
    )


def _drift_panel(key: str, name: str, judge: str | None) -> Chart:
    """A judge's scores run from 1 to 5; all else begins at 0."""
    if judge is not None:
        return {"key": key, "name": f"judge {text(judge)}", "low": 1, "high": 5}
    return {"key": key, "name": HEADINGS[name].replace("\n", " "), "low": 0, "high": None}


PSS, DISTINCT, JUDGED = "pss", "identifiability", "judged"

Y_NAME = "PSS: worst / best persona's accuracy"

X_NAME = "identifiability: how often a classifier tells which persona wrote an answer"

HOLLOW_NOTE = "hollow: the judge does not tell right from wrong persona, or was not tried"


Scores = Mapping[str, Mapping[str, Scored]]
"""By judge's measure, then by label of the model."""


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
    scores = _judge_scores(model for method, _ in pairs for model in method.models if model.label not in apart[JUDGED])
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


def _judge_scores(models: Iterable[ModelRuns]) -> Scores:
    found: dict[str, dict[str, Scored]] = {}
    for model in models:
        for judged in model.judged:
            for one in judged.scored:
                found.setdefault(one.name, {})[model.label] = one
    return found


MARKS = "dotted: chance; arrows: from base to RLVR to personas mixed in"


def _measures(means: Sequence[Pooled], scores: Scores) -> list[dict[str, Any]]:
    """The axes that can be chosen; `low` and `high` are the ends of what the measure can be."""
    questions = f"{theme.counts(mean.pss.n for mean in means if mean.pss is not None)} questions (PSS)"
    answers = theme.counts(mean.identifiability.n for mean in means if mean.identifiability is not None)
    bars = f"bars: {INTERVAL}"
    small = "; small points: training seeds" if any(len(mean.labels) > 1 for mean in means) else ""
    distinct = {
        "key": DISTINCT, "name": X_NAME, "chance": _chance(means), "low": 0, "high": 1,
        "note": f"n = {questions}, {answers} answers (identifiability); {bars}{small}; {MARKS}",
    }  # fmt: skip
    return [distinct] + [
        {
            "key": text(name), "name": f"{text(name)}: mean score, 1 to 5", "chance": None, "low": 1, "high": 5,
            "note": f"n = {questions}, {theme.counts(one.persona_score.n for one in of.values())} personas (judge); upright "
            f"{bars}; level bars: {OVER_PERSONAS}, of a single model{small}; {HOLLOW_NOTE}",
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
