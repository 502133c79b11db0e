"""Builds the data of the charts on fidelity: judges' scores and validation, confusion of personas, drift, and the trade-off.

    judged     a list, one for each kind of run: {title, score, note, judges [{judge, tasks, models {valid, scores [estimate of
               each task]}}]}
    trial      {note, kinds [{title, panels [{label, judge, valid, auc, bars [{name, counts [5]}]}]}]}
    confusion  models {ids, note, cells [[row, column, count]] that are not 0; the row is the persona that gave the answer}
    drift      panels [{key, name, low, high}], models {chance, courses {key: {valid, by_turn [estimate]}}}

`valid`: whether the judge tells an answer's own persona from a wrong one; None when it was not validated; True without a judge.

Contract: as in `charts`. A confusion matrix has at most as many entries as there are answers, for any number of personas.

The trade-off plots PSS against each measure of fidelity, one point for each method at the mean of its training seeds. A method is
left out when one of its models cannot be compared with the first model in accuracy, and it has no value in a measure of fidelity
in which its models cannot be compared, because an arrow to its point would be such a comparison. A judge's score has an interval
only for a method with one model: judges' scores are not pooled over seeds, so the mean of several seeds has no interval.
"""

from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

from permix.rendering import theme
from permix.rendering.plots import DRIFT_AXIS_LABELS, personas_by_recall
from permix.rendering.theme import HOLLOW_MARKER_NOTE, QUESTION_INTERVAL_NOTE
from permix.report.comparisons import Comparison
from permix.report.html.values import json_estimate, json_number, printable_text, unique_display_names
from permix.report.judges import (
    KIND_FILE_STEMS,
    KIND_TITLES,
    JudgedRun,
    JudgeScoreEntry,
    listed_rubrics,
    score_name,
    trust_mark,
)
from permix.report.methods import ReportMethod, training_arrows
from permix.report.pooled import PooledMethod
from permix.report.runs import ModelRuns
from permix.report.score_plots import CONTROL_NAMES
from permix.report.score_plots import PERSONA_INTERVAL_NOTE as OVER_PERSONAS
from permix.report.summary_text import TRUST_MARKS_LEGEND
from permix.types import Estimate

DisplayNames = Mapping[str, str]

_ChartData = dict[str, Any]


def learning_curve_chart(models: Sequence[ModelRuns], display_names: DisplayNames) -> _ChartData:
    """Return identifiability by the number of questions that the classifier was trained on; empty when there is only one
    such number.
    """
    results = {display_names[model.label]: model.identifiability for model in models if model.identifiability is not None}
    if not any(len(one.learning_curve) > 1 for one in results.values()):
        return {}
    answers = theme.join_distinct_counts(one.n_answered for one in results.values())
    return {
        "note": f"n = {answers} answers, the same at every point; bands: {QUESTION_INTERVAL_NOTE}; dotted: chance. "
        "A curve that still rises at its right end would rise further with more questions",
        "models": {
            label: {
                "chance": json_number(one.chance),
                "points": [
                    {"questions": point.questions, "accuracy": json_estimate(point.accuracy)} for point in one.learning_curve
                ],
            }
            for label, one in results.items()
        },
    }


def _runs_of_kind(models: Sequence[ModelRuns], kind: str, display_names: DisplayNames) -> dict[str, JudgedRun]:
    return {display_names[model.label]: run for model in models for run in model.judged_runs if run.kind == kind}


def judge_score_charts(models: Sequence[ModelRuns], display_names: DisplayNames) -> list[_ChartData]:
    """Return the scores by task, with a panel for each judge; the list has an entry for each kind of run that was judged."""
    return [_judge_score_chart(runs, kind) for kind in KIND_FILE_STEMS if (runs := _runs_of_kind(models, kind, display_names))]


def _judge_score_chart(runs: Mapping[str, JudgedRun], kind: str) -> _ChartData:
    summaries = [one for run in runs.values() for one in run.judges.values()]
    hollow = HOLLOW_MARKER_NOTE if any(not one.discriminates_persona for one in summaries) else ""
    n = theme.join_distinct_counts(one.persona_score.n for one in summaries)
    judges = dict.fromkeys(judge for run in runs.values() for judge in run.judges)
    return {
        "title": KIND_TITLES[kind],
        "score": score_name(kind, (task for one in summaries for task in one.tasks)),
        "note": f"n = {n} personas; bars: {OVER_PERSONAS}{hollow}",
        "judges": [_judge_panel(judge, runs, kind) for judge in judges],
    }


def _judge_panel(judge: str, runs: Mapping[str, JudgedRun], kind: str) -> _ChartData:
    """Return the mean over the tasks, then each task. With a single task only the mean is returned, since both are equal."""
    summaries = {label: run.judges[judge] for label, run in runs.items() if judge in run.judges}
    judged_tasks = [task for one in summaries.values() for task in one.tasks]
    tasks = listed_rubrics(kind, judged_tasks)
    return {
        "judge": printable_text(judge),
        "tasks": list(unique_display_names([score_name(kind, judged_tasks), *tasks]).values()),
        "models": {
            label: {
                "valid": one.discriminates_persona,
                "scores": [json_estimate(one.persona_score), *(json_estimate(one.tasks.get(task)) for task in tasks)],
            }
            for label, one in summaries.items()
        },
    }


def judge_reliability_chart(models: Sequence[ModelRuns], display_names: DisplayNames) -> _ChartData:
    """Return how many answers got each score, in the measurement itself and under each control."""
    kinds = [
        {
            "title": KIND_TITLES[kind],
            "panels": [_judge_reliability_panel(label, run, judge) for label, run in runs.items() for judge in run.judges],
        }
        for kind in KIND_FILE_STEMS
        if (runs := _runs_of_kind(models, kind, display_names))
    ]
    note = (
        "share of answers that got each score, n on the right, without rubrics that ask the same of every persona; a good judge "
        f"scores wrong and no persona lower than the own one, and the last three alike. {TRUST_MARKS_LEGEND}"
    )
    return {"note": note, "kinds": kinds} if kinds else {}


def _judge_reliability_panel(label: str, run: JudgedRun, judge: str) -> _ChartData:
    one = run.judges[judge]
    return {
        "label": label,
        "judge": printable_text(judge) + trust_mark(one.discriminates_persona),
        "valid": one.discriminates_persona,
        "auc": str(one.reliability.auc),
        "bars": [
            {"name": name, "counts": list(one.histogram[control])}
            for control, name in CONTROL_NAMES.items()
            if any(one.histogram[control])
        ],
    }


def confusion_chart(models: Sequence[ModelRuns], display_names: DisplayNames) -> _ChartData:
    """Return the confusion of personas for each model.

    All models have the order of the first one, with the most identifiable persona first, so that two charts can be compared.
    """
    results = {display_names[model.label]: model.identifiability for model in models if model.identifiability is not None}
    first = personas_by_recall(next(iter(results.values()))) if results else ()
    matrices = {}
    for label, one in results.items():
        order = [id for id in dict.fromkeys((*first, *personas_by_recall(one))) if id in one.persona_ids]
        index_of = {id: p for p, id in enumerate(order)}
        at = [index_of[id] for id in one.persona_ids]
        matrices[label] = {
            "ids": list(unique_display_names(order).values()),
            "note": f"n = {one.n_answered} answers of {len(order)} personas to {one.n_questions} questions; counts of answers; "
            "shade: share of the row",
            "cells": sorted(
                [at[row], at[column], count]
                for row, counts in enumerate(one.confusion)
                for column, count in enumerate(counts)
                if count
            ),
        }
    return {"models": matrices} if matrices else {}


def drift_chart(models: Sequence[ModelRuns], display_names: DisplayNames) -> _ChartData:
    """Return every measure by turn, in the order of the table."""
    drifts = {display_names[model.label]: model.drift for model in models if model.drift is not None}
    courses = {one.name: one for drift in drifts.values() for one in drift.series}
    hollow = (
        HOLLOW_MARKER_NOTE
        if any(one.judge is not None and not one.discriminates_persona for drift in drifts.values() for one in drift.series)
        else ""
    )
    dotted = "; dotted: chance" if "identifiability" in courses else ""
    n_personas = theme.join_distinct_counts(len(one.persona_ids) for one in drifts.values())
    keys = unique_display_names(courses)
    return (
        {}
        if not drifts
        else {
            "note": f"n = {n_personas} personas, means over them; bands: {OVER_PERSONAS}, for each turn alone{dotted}{hollow}",
            "panels": [_drift_panel(keys[name], name, one.judge) for name, one in courses.items()],
            "models": {
                label: {
                    "chance": json_number(one.chance),
                    "courses": {
                        keys[course.name]: {
                            "valid": course.judge is None or course.discriminates_persona,
                            "by_turn": [json_estimate(turn) for turn in course.by_turn],
                        }
                        for course in one.series
                    },
                }
                for label, one in drifts.items()
            },
        }
    )


def _drift_panel(key: str, name: str, judge: str | None) -> _ChartData:
    """Return a panel. The axis is 1 to 5 for a judge's scores and begins at 0 for other measures."""
    if judge is not None:
        return {"key": key, "name": f"judge {printable_text(judge)}", "low": 1, "high": 5}
    return {"key": key, "name": DRIFT_AXIS_LABELS[name].replace("\n", " "), "low": 0, "high": None}


_PSS_KEY, _IDENTIFIABILITY_KEY, _JUDGE_SCORES_KEY = "pss", "identifiability", "judged"

_RIGHT_IN_CHARACTER_KEY = "right_in_character"

_RIGHT_IN_CHARACTER_AXIS_TITLE = "right and in character: share of the task's answers"

_PSS_AXIS_TITLE = "PSS: worst / best persona's accuracy"

_IDENTIFIABILITY_AXIS_TITLE = "identifiability: how often a classifier names the persona that wrote an answer"

_HOLLOW_POINT_NOTE = "hollow: the judge does not tell right from wrong persona, or was not validated"


_EntriesByMeasure = Mapping[str, Mapping[str, JudgeScoreEntry]]
"""By the judge's measure, then by the model's label."""


def tradeoff_chart(
    models: Sequence[ModelRuns],
    methods: Sequence[ReportMethod],
    pooled: Sequence[PooledMethod],
    comparisons: Sequence[Comparison],
) -> dict[str, Any]:
    """Return the trade-off chart; empty when no method has both PSS and a measure of fidelity."""
    incomparable = _incomparable_labels(models[0], comparisons)
    pairs = [
        (method, mean)
        for method, mean in zip(methods, pooled, strict=True)
        if mean.pss is not None and mean.pss.value is not None and not incomparable[_PSS_KEY] & set(mean.labels)
    ]
    scores = _entries_by_measure(
        model for method, _ in pairs for model in method.models if model.label not in incomparable[_JUDGE_SCORES_KEY]
    )
    labels, names = unique_display_names(model.label for model in models), unique_display_names(method.name for method in methods)
    points = [_tradeoff_point(method, mean, scores, incomparable, labels, names) for method, mean in pairs]
    measures = [
        one for one in _fidelity_axes([mean for _, mean in pairs], scores) if any(_has_value(point, one) for point in points)
    ]
    return (
        {}
        if not measures
        else {
            "y_name": _PSS_AXIS_TITLE,
            "measures": measures,
            "points": [point for point in points if any(_has_value(point, one) for one in measures)],
            "arrows": [[names[start], names[end]] for start, end in training_arrows([method for method, _ in pairs])],
        }
    )


def _incomparable_labels(first: ModelRuns, comparisons: Sequence[Comparison]) -> dict[str, set[str]]:
    """Return the labels of models that cannot be compared with the first model, by measure."""
    against = [one for one in comparisons if one.against == first.label]
    return {
        _PSS_KEY: {one.label for one in against if one.reasons},
        _IDENTIFIABILITY_KEY: {one.label for one in against if one.fidelity_reasons},
        _RIGHT_IN_CHARACTER_KEY: {one.label for one in against if one.right_in_character_reasons},
        _JUDGE_SCORES_KEY: {one.label for one in against if one.judged_reasons},
    }


def _entries_by_measure(models: Iterable[ModelRuns]) -> _EntriesByMeasure:
    entries: dict[str, dict[str, JudgeScoreEntry]] = {}
    for model in models:
        for judged in model.judged_runs:
            for one in judged.score_entries:
                entries.setdefault(one.name, {})[model.label] = one
    return entries


_TRADEOFF_LEGEND = "dotted: chance; arrows: from base to RLVR to personas mixed in"


def _fidelity_axes(pooled: Sequence[PooledMethod], scores: _EntriesByMeasure) -> list[dict[str, Any]]:
    """Return the measures for the x axis; `low` and `high` are the ends of the range of a measure."""
    questions = f"{theme.join_distinct_counts(mean.pss.n for mean in pooled if mean.pss is not None)} questions (PSS)"
    answers = theme.join_distinct_counts(mean.identifiability.n for mean in pooled if mean.identifiability is not None)
    bars = f"bars: {QUESTION_INTERVAL_NOTE}"
    small = "; small points: training seeds" if any(len(mean.labels) > 1 for mean in pooled) else ""
    identifiability: dict[str, Any] = {
        "key": _IDENTIFIABILITY_KEY, "name": _IDENTIFIABILITY_AXIS_TITLE, "chance": _common_chance(pooled), "low": 0, "high": 1,
        "note": f"n = {questions}, {answers} answers (identifiability); {bars}{small}; {_TRADEOFF_LEGEND}",
    }  # fmt: skip
    both = [mean.right_in_character for mean in pooled if mean.right_in_character is not None]
    in_character: dict[str, Any] = {
        "key": _RIGHT_IN_CHARACTER_KEY, "name": _RIGHT_IN_CHARACTER_AXIS_TITLE, "chance": None, "low": 0, "high": 1,
        "note": f"n = {questions}, {theme.join_distinct_counts(one.n for one in both)} questions (right and in character); "
        f"{bars}{small}; by chance: {_by_chance_text(pooled)}; {_TRADEOFF_LEGEND}",
    }  # fmt: skip
    return [identifiability, *([in_character] if both else [])] + [
        {
            "key": printable_text(name),
            "name": f"{printable_text(name)}: mean score, 1 to 5",
            "chance": None,
            "low": 1,
            "high": 5,
            "note": f"n = {questions}, {theme.join_distinct_counts(one.persona_score.n for one in of.values())} "
            f"personas (judge); vertical {bars}; horizontal bars: {OVER_PERSONAS}, one model{small}; {_HOLLOW_POINT_NOTE}",
        }
        for name, of in scores.items()
    ]


def _by_chance_text(pooled: Sequence[PooledMethod]) -> str:
    values = [mean.right_in_character_by_chance for mean in pooled if mean.right_in_character_by_chance is not None]
    ends = sorted({f"{value:.2f}" for value in (min(values), max(values))}) if values else []
    return " to ".join(ends)


def _common_chance(pooled: Sequence[PooledMethod]) -> float | None:
    """Return the chance level that all methods share. None when they have different numbers of personas, as one line cannot show
    them.
    """
    chances = {json_number(mean.chance) for mean in pooled if mean.chance is not None}
    return chances.pop() if len(chances) == 1 else None


def _tradeoff_point(
    method: ReportMethod,
    pooled: PooledMethod,
    scores: _EntriesByMeasure,
    excluded: Mapping[str, Set[str]],
    display_names: DisplayNames,
    method_names: DisplayNames,
) -> dict[str, Any]:
    values = {_IDENTIFIABILITY_KEY: pooled.identifiability, _RIGHT_IN_CHARACTER_KEY: pooled.right_in_character}
    x = {key: None if excluded[key] & set(pooled.labels) else json_estimate(one) for key, one in values.items()}
    x |= {
        printable_text(name): json_estimate(_pooled_judge_score([of.get(label) for label in pooled.labels]))
        for name, of in scores.items()
    }
    valid = {
        printable_text(name): all(of[label].discriminates_persona for label in pooled.labels if label in of)
        for name, of in scores.items()
    }
    return {
        "name": method_names[method.name],
        "labels": [display_names[label] for label in pooled.labels],
        "y": json_estimate(pooled.pss),
        "x": x,
        "valid": {_IDENTIFIABILITY_KEY: True, _RIGHT_IN_CHARACTER_KEY: True} | valid,
        "seeds": [_seed_point(model, scores, display_names) for model in method.models] if len(method.models) > 1 else [],
    }


def _pooled_judge_score(entries: Sequence[JudgeScoreEntry | None]) -> Estimate | None:
    """Return the estimate of a single model, or the mean of several models when all of them have one."""
    known = [one.persona_score for one in entries if one is not None and one.persona_score.value is not None]
    if len(known) < len(entries):
        return None
    if len(known) == 1:
        return known[0]
    return Estimate(value=sum(one.value or 0.0 for one in known) / len(known), n=min(one.n for one in known))


def _seed_point(model: ModelRuns, scores: _EntriesByMeasure, display_names: DisplayNames) -> dict[str, Any]:
    x = {_IDENTIFIABILITY_KEY: None if model.identifiability is None else json_number(model.identifiability.accuracy.value)}
    x[_RIGHT_IN_CHARACTER_KEY] = None if model.right_in_character is None else json_number(model.right_in_character.share.value)
    x |= {
        printable_text(name): json_number(of[model.label].persona_score.value) for name, of in scores.items() if model.label in of
    }
    return {
        "label": display_names[model.label],
        "y": None if model.stability is None else json_number(model.stability.pss.value),
        "x": x,
    }


def _has_value(point: Mapping[str, Any], measure: Mapping[str, Any]) -> bool:
    estimate = point["x"][measure["key"]]
    return estimate is not None and estimate["value"] is not None
