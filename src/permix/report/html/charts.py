"""Builds the data of the page's charts, ready for JSON: one key per chart. A chart with nothing to draw has no key.

Contract: numbers come only from the models' summaries and are None where they are missing; texts pass `printable_text`. Each
chart carries a `note`, its caption, which explains n and the intervals. `models` of a chart are by label, in the order of the
report.

    tradeoff   measures [{key, name, chance, low, high, note}], points [{name, labels, y, x {key: estimate}, valid {key},
               seeds [{label, y, x {key: number}}]}], arrows [[name, name]], y_name
    personas   ids [{id, text, tags}], models {no_persona, of {id: estimate}, difference {id: estimate}}
    lottery    models {no_persona, best [estimate of k = 1, 2, ...]}
    training   panels [{key, name}], models [{step, KEY...}]
    dev_evals  panels [{key, name}], models {selected_step, points [{step, chance, no_persona, KEY: estimate...}]}
    learnt     models {chance, points [{questions, accuracy}]}
    judged     a list, one for each kind of run: {title, score, note, judges [{judge, tasks, models {valid, scores [estimate of
               each task]}}]}
    trial      {note, kinds [{title, panels [{label, judge, valid, auc, bars [{name, counts [5]}]}]}]}
    confusion  models {ids, note, cells [[row, column, count]] that are not 0; the row is the persona that gave the answer}
    drift      panels [{key, name, low, high}], models {chance, courses {key: {valid, by_turn [estimate]}}}

`valid`: whether the judge tells an answer's own persona from a wrong one; None when it was not validated; True without a judge.
A confusion matrix has at most as many entries as there are answers, for any number of personas.

`persona_infos` gives the texts of a report's personas, from the records, and their tags. A run does not keep tags, so they are
read from its pool, and only for a persona whose text in the pool is the text in the prompt. A pool that is missing or unreadable
gives no tags. Personas are in the order of the runs that asked them.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from permix.errors import DataError
from permix.metrics.dev_curve import DevCurve, marked_step
from permix.personas.loading import read_personas
from permix.prompts import persona_prompt
from permix.rendering import plots, theme
from permix.rendering.plots import DRIFT_AXIS_LABELS, TRAINING_PANELS, dev_curve_marks, dev_curve_panels, personas_by_recall
from permix.rendering.theme import HOLLOW_MARKER_NOTE, QUESTION_INTERVAL_NOTE
from permix.report.comparisons import Comparison
from permix.report.html.values import MAX_PERSONA_TEXT_CHARS, json_estimate, json_number, printable_text, unique_display_names
from permix.report.judges import KIND_FILE_STEMS, KIND_TITLES, JudgedRun, listed_rubrics, score_name, trust_mark
from permix.report.methods import ReportMethod
from permix.report.pooled import PooledMethod
from permix.report.runs import ModelRuns, Run
from permix.report.score_plots import CONTROL_NAMES, PERSONA_INTERVAL_NOTE
from permix.report.summary_text import TRUST_MARKS_LEGEND
from permix.report.tradeoff import PSS_AXIS_LABEL, ReportTradeoffs, Tradeoff, build_tradeoffs
from permix.types import CellKey, Persona, canonical_text


class PersonaInfo(NamedTuple):
    id: str
    text: str
    """The message that contained the persona, as it was sent."""
    tags: tuple[str, ...]


def persona_infos(models: Sequence[ModelRuns]) -> dict[str, PersonaInfo]:
    """Every persona of the stability runs, by id. When several runs asked a persona, the first run counts."""
    infos: dict[str, PersonaInfo] = {}
    for model in models:
        if "stability" in model.runs:
            infos = _persona_infos_of_run(model.runs["stability"]) | infos
    return infos


def _persona_infos_of_run(run: Run) -> dict[str, PersonaInfo]:
    first_cell: dict[str, CellKey] = {}
    for key in sorted(run.cells, key=lambda key: key.context == "user"):  # there the persona's message holds a question too
        if key.persona_id is not None:
            first_cell.setdefault(key.persona_id, key)
    section = run.config.get("personas", {})
    pool = _read_pool(str(section.get("pool", "")), section.get("column"))
    texts = {id: persona_prompt(run.cells[key].messages) for id, key in first_cell.items()}
    return {id: PersonaInfo(id, text, _tags_if_same_text(pool.get(id), text)) for id, text in texts.items()}


def _tags_if_same_text(persona: Persona | None, message: str) -> tuple[str, ...]:
    same = persona is not None and canonical_text(persona.text.rstrip(".")) in canonical_text(message)
    return persona.tags if persona is not None and same else ()


@cache
def _read_pool(pool: str, column: str | None) -> Mapping[str, Persona]:
    if not pool or (pool != "builtin" and not Path(pool).exists()):
        return {}
    try:
        return {persona.id: persona for persona in read_personas(pool, column)}
    except DataError:
        return {}


_MAX_CURVE_POINTS = 400
"""Largest number of points of a training curve; a longer log is reduced to means of neighbouring steps."""

_TAG_PREFIX, _MAX_TAG_CHARS = "reward_by_tag/", 60

LOSS_PANEL = ("loss", "loss")
"""The panel of a training without rewards."""


_ChartData = dict[str, Any]


def build_charts(
    models: Sequence[ModelRuns],
    methods: Sequence[ReportMethod],
    pooled: Sequence[PooledMethod],
    comparisons: Sequence[Comparison],
) -> dict[str, Any]:
    """The data of every chart that the runs allow. `pooled` holds the mean over the seeds of each of `methods`."""
    names = unique_display_names(model.label for model in models)
    charts: dict[str, Any] = {
        "tradeoff": _tradeoff_chart(models, methods, build_tradeoffs(models, methods, pooled, comparisons)),
        "personas": _persona_chart(models, names),
        "lottery": _best_of_k_chart(models, names),
        "training": _training_chart(models, names),
        "dev_evals": _dev_curve_chart({names[model.label]: model.dev_curve for model in models if model.dev_curve is not None}),
        "learnt": _learning_curve_chart(models, names),
        "judged": judge_score_charts(models, names),
        "trial": _judge_reliability_chart(models, names),
        "confusion": _confusion_chart(models, names),
        "drift": _drift_chart(models, names),
    }
    return {name: chart for name, chart in charts.items() if chart}


_HOLLOW_POINT_NOTE = "hollow: the judge does not tell right from wrong persona, or was not validated"


def _tradeoff_chart(models: Sequence[ModelRuns], methods: Sequence[ReportMethod], found: ReportTradeoffs) -> _ChartData:
    """Every trade-off; empty when no method has both PSS and a measure of fidelity."""
    if not found.tradeoffs:
        return {}
    labels, names = unique_display_names(model.label for model in models), unique_display_names(method.name for method in methods)
    points = (_tradeoff_point(method, found.tradeoffs, labels, names[method.name]) for method in found.methods)
    return {
        "y_name": PSS_AXIS_LABEL,
        "measures": [_tradeoff_axis(one) for one in found.tradeoffs],
        "points": [point for point in points if point is not None],
        "arrows": [[names[start], names[end]] for start, end in found.arrows],
    }


def _tradeoff_axis(tradeoff: Tradeoff) -> _ChartData:
    """A measure for the x axis; `low` and `high` are the ends of its range."""
    view, points, name = tradeoff.view, tradeoff.points.values(), tradeoff.view.axis_label
    seeds = "; small points: training seeds" if any(point.seeds for point in points) else ""
    dotted = "; dotted: chance" if tradeoff.chance is not None else ""
    marks = f"{dotted}{'; arrows: steps of training' if tradeoff.arrows else ''}"
    if view.file is None:
        bars = f"vertical bars: {QUESTION_INTERVAL_NOTE}; horizontal bars: {PERSONA_INTERVAL_NOTE}, one model"
        name, note = f"{printable_text(view.measure)}: {name}", f"{bars}{seeds}{marks}; {_HOLLOW_POINT_NOTE}"
    else:
        ends = sorted({f"{point.chance:.2f}" for point in points if point.chance is not None})
        chance = f"; by chance: {' to '.join(dict.fromkeys((ends[0], ends[-1])))}" if ends else ""
        note = f"bars: {QUESTION_INTERVAL_NOTE}{seeds}{chance}{marks}"
    return {
        "key": printable_text(view.measure), "name": name, "chance": json_number(tradeoff.chance),
        "low": view.limits[0], "high": view.limits[1], "note": f"n = {tradeoff.counts_text}; {note}",
    }  # fmt: skip


def _tradeoff_point(
    method: ReportMethod, tradeoffs: Sequence[Tradeoff], labels: Mapping[str, str], name: str
) -> _ChartData | None:
    """The points of a method by measure; None where it has none."""
    point_of = {printable_text(one.view.measure): one.points.get(method.name) for one in tradeoffs}
    known = {key: point for key, point in point_of.items() if point is not None}
    if not known:
        return None
    seeds = [
        {
            "label": labels[model.label],
            "y": None if model.stability is None else json_number(model.stability.pss.value),
            "x": {key: json_number(point.seeds[model.label][0]) for key, point in known.items() if model.label in point.seeds},
        }
        for model in method.models
        if len(method.models) > 1
    ]
    return {
        "name": name,
        "labels": [labels[label] for label in method.labels],
        "y": json_estimate(next(iter(known.values())).pss),
        "x": {key: None if point is None else json_estimate(point.x) for key, point in point_of.items()},
        "valid": {key: point is None or point.is_trusted for key, point in point_of.items()},
        "seeds": seeds,
    }


def _persona_chart(models: Sequence[ModelRuns], display_names: Mapping[str, str]) -> _ChartData:
    summaries = {display_names[model.label]: model.stability for model in models if model.stability is not None}
    infos = persona_infos(models)
    ids = unique_display_names(persona.id for summary in summaries.values() for persona in summary.personas)
    return (
        {}
        if not summaries
        else {
            "note": (
                f"n = {_question_count_text(models)}; bars: {QUESTION_INTERVAL_NOTE}; dashed lines: no persona"
                " (its interval is in the first row)"
            ),
            "ids": [
                {
                    "id": name,
                    "text": printable_text(infos[id].text if id in infos else "", MAX_PERSONA_TEXT_CHARS),
                    "tags": [printable_text(tag) for tag in (infos[id].tags if id in infos else ())],
                }
                for id, name in ids.items()
            ],
            "models": {
                label: {
                    "no_persona": json_estimate(summary.baseline),
                    "of": {ids[persona.id]: json_estimate(persona.accuracy) for persona in summary.personas},
                    "difference": {ids[persona.id]: json_estimate(persona.difference) for persona in summary.personas},
                }
                for label, summary in summaries.items()
            },
        }
    )


def _best_of_k_chart(models: Sequence[ModelRuns], display_names: Mapping[str, str]) -> _ChartData:
    summaries = {display_names[model.label]: model.stability for model in models if model.stability is not None}
    return (
        {}
        if not summaries
        else {
            "note": (
                f"n = {_question_count_text(models)}; bands: {QUESTION_INTERVAL_NOTE}; thin dashed lines without "
                "markers: no persona"
            ),
            "models": {
                label: {
                    "no_persona": json_estimate(summary.baseline),
                    "best": [json_estimate(one) for one in summary.expected_best_of_k],
                }
                for label, summary in summaries.items()
            },
        }
    )


def _question_count_text(models: Iterable[ModelRuns]) -> str:
    return (
        f"{theme.join_distinct_counts(model.stability.n_questions for model in models if model.stability is not None)} questions"
    )


def _training_chart(models: Sequence[ModelRuns], display_names: Mapping[str, str]) -> _ChartData:
    logs = {display_names[model.label]: model.runs["train"].log for model in models if "train" in model.runs}
    logs = {label: log for label, log in logs.items() if log}
    if not logs:
        return {}
    longest = max(map(len, logs.values()))
    tags, n_tags = plots.frequent_tags(logs.values())
    tag_panels = [(f"{_TAG_PREFIX}{tag}", printable_text(f"mean reward, {plots.tag_name(tag)}", _MAX_TAG_CHARS)) for tag in tags]
    rows = {
        label: thin_log(
            [line | {f"{_TAG_PREFIX}{tag}": plots.reward_of_tag(line, tag) for tag in tags} for line in log],
            [*training_panel_keys(log), *(key for key, _ in tag_panels)],
            -(-longest // _MAX_CURVE_POINTS),
        )
        for label, log in logs.items()
    }
    known_panels = (*TRAINING_PANELS, LOSS_PANEL, *tag_panels)
    panels = [(key, name) for key, name in known_panels if any(_has_values(one, key) for one in rows.values())]
    thin = "each step" if longest <= _MAX_CURVE_POINTS else f"means of {-(-longest // _MAX_CURVE_POINTS)} steps"
    steps = f"n = {theme.join_distinct_counts(map(len, logs.values()))} steps, one run each, so no interval; thin: {thin}"
    return {
        "note": f"{steps}{plots.tag_count_note(len(tags), n_tags)}",
        "panels": [{"key": key, "name": name.replace("\n", " ")} for key, name in panels],
        "models": rows,
    }


def training_panel_keys(log: Sequence[Mapping[str, Any]]) -> list[str]:
    """The keys of a training's panels: rewards and related values, or the loss of a training without rewards."""
    rewarded = any("reward" in step for step in log)
    return [key for key, _ in TRAINING_PANELS] if rewarded else [LOSS_PANEL[0], "completion_tokens"]


def thin_log(log: Sequence[Mapping[str, Any]], keys: Sequence[str], stride: int) -> list[dict[str, Any]]:
    """Means over groups of `stride` successive steps, each at the last step of its group. Missing values do not enter a
    mean.
    """
    groups = [log[start : start + stride] for start in range(0, len(log), stride)]
    return [
        {"step": group[-1]["step"], **{key: _mean_of_known(step.get(key) for step in group) for key in keys}} for group in groups
    ]


def _mean_of_known(values: Iterable[Any]) -> float | None:
    known = [value for one in values if one is not None and (value := json_number(float(one))) is not None]
    return json_number(sum(known) / len(known)) if known else None


def _has_values(rows: Sequence[Mapping[str, Any]], key: str) -> bool:
    return any(row.get(key) is not None for row in rows)


def _dev_curve_chart(curves: Mapping[str, DevCurve]) -> _ChartData:
    all_points = [point for curve in curves.values() for point in curve.points]
    answers = [point.identifiability.n for point in all_points if point.identifiability is not None]
    counts = f"{theme.join_distinct_counts(point.n_questions for point in all_points)} questions"
    counts += f", {theme.join_distinct_counts(answers)} answers (identifiability)" if answers else ""
    marks = dev_curve_marks(curves.values(), has_chance=bool(answers))
    panels = dev_curve_panels(with_identifiability=bool(answers))
    return (
        {}
        if not all_points
        else {
            "note": f"n = {counts}; bands: {QUESTION_INTERVAL_NOTE}; {marks}",
            "panels": [{"key": key, "name": name} for key, name in panels],
            "models": {
                label: {
                    "selected_step": marked_step(curve),
                    "points": [
                        {
                            "step": point.step,
                            "no_persona": json_estimate(point.measures["baseline"]),
                            "chance": json_number(point.chance),
                        }
                        | {key: json_estimate(point.estimate(key)) for key, _ in panels}
                        for point in curve.points
                    ],
                }
                for label, curve in curves.items()
            },
        }
    )


def _learning_curve_chart(models: Sequence[ModelRuns], display_names: Mapping[str, str]) -> _ChartData:
    """Identifiability by the number of questions that the classifier was trained on; empty when there is only one
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


def _runs_of_kind(models: Sequence[ModelRuns], kind: str, display_names: Mapping[str, str]) -> dict[str, JudgedRun]:
    return {display_names[model.label]: run for model in models for run in model.judged_runs if run.kind == kind}


def judge_score_charts(models: Sequence[ModelRuns], display_names: Mapping[str, str]) -> list[_ChartData]:
    """The scores by task, with a panel for each judge; the list has an entry for each kind of run that was judged."""
    return [_judge_score_chart(runs, kind) for kind in KIND_FILE_STEMS if (runs := _runs_of_kind(models, kind, display_names))]


def _judge_score_chart(runs: Mapping[str, JudgedRun], kind: str) -> _ChartData:
    summaries = [one for run in runs.values() for one in run.judges.values()]
    hollow = HOLLOW_MARKER_NOTE if any(not one.discriminates_persona for one in summaries) else ""
    n = theme.join_distinct_counts(one.persona_score.n for one in summaries)
    judges = dict.fromkeys(judge for run in runs.values() for judge in run.judges)
    return {
        "title": KIND_TITLES[kind],
        "score": score_name(kind, (task for one in summaries for task in one.tasks)),
        "note": f"n = {n} personas; bars: {PERSONA_INTERVAL_NOTE}{hollow}",
        "judges": [_judge_panel(judge, runs, kind) for judge in judges],
    }


def _judge_panel(judge: str, runs: Mapping[str, JudgedRun], kind: str) -> _ChartData:
    """The mean over the tasks, then each task. With a single task only the mean is returned, since both are equal."""
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


def _judge_reliability_chart(models: Sequence[ModelRuns], display_names: Mapping[str, str]) -> _ChartData:
    """How many answers got each score, in the measurement itself and under each control."""
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
        "gives lower scores under a wrong persona and without a persona, and the same scores for padded, retest and "
        f"injected answers. {TRUST_MARKS_LEGEND}"
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


def _confusion_chart(models: Sequence[ModelRuns], display_names: Mapping[str, str]) -> _ChartData:
    """The confusion of personas for each model.

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


def _drift_chart(models: Sequence[ModelRuns], display_names: Mapping[str, str]) -> _ChartData:
    """Every measure by turn, in the order of the table."""
    drifts = {display_names[model.label]: model.drift for model in models if model.drift is not None}
    if not drifts:
        return {}
    every_series = [series for drift in drifts.values() for series in drift.series]
    series_by_name = {series.name: series for series in every_series}
    is_hollow = any(series.judge is not None and not series.discriminates_persona for series in every_series)
    dotted = "; dotted: chance" if "identifiability" in series_by_name else ""
    n_personas = theme.join_distinct_counts(len(drift.persona_ids) for drift in drifts.values())
    bands = f"bands: {PERSONA_INTERVAL_NOTE}, for each turn alone{dotted}{HOLLOW_MARKER_NOTE if is_hollow else ''}"
    keys = unique_display_names(series_by_name)
    return {
        "note": f"n = {n_personas} personas, means over them; {bands}",
        "panels": [_drift_panel(keys[name], name, series.judge) for name, series in series_by_name.items()],
        "models": {
            label: {
                "chance": json_number(drift.chance),
                "courses": {
                    keys[series.name]: {
                        "valid": series.judge is None or series.discriminates_persona,
                        "by_turn": [json_estimate(turn) for turn in series.by_turn],
                    }
                    for series in drift.series
                },
            }
            for label, drift in drifts.items()
        },
    }


def _drift_panel(key: str, name: str, judge: str | None) -> _ChartData:
    """A panel. The axis is 1 to 5 for a judge's scores and begins at 0 for other measures."""
    if judge is not None:
        return {"key": key, "name": f"judge {printable_text(judge)}", "low": 1, "high": 5}
    return {"key": key, "name": DRIFT_AXIS_LABELS[name].replace("\n", " "), "low": 0, "high": None}
