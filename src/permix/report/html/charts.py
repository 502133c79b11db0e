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
    judged, trial, confusion, drift: see `fidelity_charts`

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
from permix.rendering.plots import TRAINING_PANELS, dev_curve_marks, dev_curve_panels
from permix.rendering.theme import QUESTION_INTERVAL_NOTE
from permix.report.comparisons import Comparison
from permix.report.html import fidelity_charts as fidelity
from permix.report.html.fidelity_charts import tradeoff_chart
from permix.report.html.values import MAX_PERSONA_TEXT_CHARS, json_estimate, json_number, printable_text, unique_display_names
from permix.report.methods import ReportMethod
from permix.report.pooled import PooledMethod
from permix.report.runs import ModelRuns, Run
from permix.types import CellKey, Persona, canonical_text


class PersonaInfo(NamedTuple):
    id: str
    text: str
    """The message that contained the persona, as it was sent."""
    tags: tuple[str, ...]


def persona_infos(models: Sequence[ModelRuns]) -> dict[str, PersonaInfo]:
    """Return every persona of the stability runs, by id. When several runs asked a persona, the first run counts."""
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
    """Return the data of every chart that the runs allow. `pooled` holds the mean over the seeds of each of `methods`."""
    names = unique_display_names(model.label for model in models)
    charts: dict[str, Any] = {
        "tradeoff": tradeoff_chart(models, methods, pooled, comparisons),
        "personas": _persona_chart(models, names),
        "lottery": _lottery_chart(models, names),
        "training": _training_chart(models, names),
        "dev_evals": _dev_curve_chart({names[model.label]: model.dev_curve for model in models if model.dev_curve is not None}),
        "learnt": fidelity.learning_curve_chart(models, names),
        "judged": fidelity.judge_score_charts(models, names),
        "trial": fidelity.judge_reliability_chart(models, names),
        "confusion": fidelity.confusion_chart(models, names),
        "drift": fidelity.drift_chart(models, names),
    }
    return {name: chart for name, chart in charts.items() if chart}


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


def _lottery_chart(models: Sequence[ModelRuns], display_names: Mapping[str, str]) -> _ChartData:
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
    """Return the keys of a training's panels: rewards and related values, or the loss of a training without rewards."""
    rewarded = any("reward" in step for step in log)
    return [key for key, _ in TRAINING_PANELS] if rewarded else [LOSS_PANEL[0], "completion_tokens"]


def thin_log(log: Sequence[Mapping[str, Any]], keys: Sequence[str], stride: int) -> list[dict[str, Any]]:
    """Return means over groups of `stride` successive steps, each at the last step of its group. Missing values do not enter a
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
