"""The data of the charts on fidelity: what judges scored, judges on trial, who is taken for whom, drift over an interview.

    judged     a list, one for each kind of run: {title, score, note, judges [{judge, tasks, models {trusted, scores [estimate of
               each task]}}]}
    trial      {note, kinds [{title, panels [{label, judge, trusted, auc, bars [{name, counts [5]}]}]}]}
    confusion  models {ids, note, cells [[row, column, count]] that are not 0: rows whose answer it was}
    drift      panels [{key, name, low, high}], models {chance, courses {key: {trusted, by_turn [estimate]}}}

Contract as in `payload`. A confusion's cells are at most as many as the answers, however many personas there are.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from permix.report import canvas
from permix.report.canvas import HOLLOW, INTERVAL
from permix.report.drift_figure import HEADINGS
from permix.report.judged import FILES, SCORE_OF, TITLES, JudgedRun, mark
from permix.report.judged_plots import BARS
from permix.report.judged_plots import INTERVAL as OVER_PERSONAS
from permix.report.judged_words import MEANING
from permix.report.page.plain import estimate, names, number, text
from permix.report.runs import ModelRuns
from permix.report.voices import ranked

Names = Mapping[str, str]
Chart = dict[str, Any]


def learnt(models: Sequence[ModelRuns], shown: Names) -> Chart:
    """Identifiability by the number of questions that the classifier learnt from; empty where there is but one number."""
    told = {shown[model.label]: model.fidelity for model in models if model.fidelity is not None}
    if not any(len(one.learning_curve) > 1 for one in told.values()):
        return {}
    answers = canvas.counts(one.n_answered for one in told.values())
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
    n = canvas.counts(one.persona_score.n for one in every)
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
    asked = canvas.counts(len(one.persona_ids) for one in found.values())
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
