"""What the page's charts draw: JSON-ready data, a key a chart; a chart that has nothing to draw has no key.

Contract: numbers come from the models' summaries alone, and None where there is none; texts are `plain`. Each chart carries a
`note`, its caption: what n is and what the intervals are. `models` of a chart are by label, in the order of the report.

    tradeoff   measures [{key, name, chance, low, high, note}], points [{name, labels, y, x {key: estimate}, trusted {key},
               seeds [{label, y, x {key: number}}]}], arrows [[name, name]], y_name
    personas   ids [{id, text, tags}], models {none, of {id: estimate}, difference {id: estimate}}
    lottery    models {none, best [estimate of k = 1, 2, ...]}
    training   panels [{key, name}], models [{step, KEY...}]
    probes     panels [{key, name}], models {taken, points [{step, chance, none, KEY: estimate...}]}
    learnt     models {chance, points [{questions, accuracy}]}
    judged, trial, confusion, drift: see `payload_fidelity`

Who the personas of a report are: their texts, from the records, and their tags, from the pool they were drawn from.

Contract: personas stand in the order of the runs that asked them. A run keeps no tags, so they are looked up in its pool, and
only those of a persona whose text is still the one that was asked are believed; a pool that is gone or cannot be read gives none.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from permix.errors import DataError
from permix.metrics.dev_curve import Curve, taken
from permix.personas.loading import read_personas
from permix.prompts import brought_in_by
from permix.rendering import theme
from permix.rendering.plots import PANELS, PROBE_PANELS
from permix.rendering.theme import INTERVAL
from permix.report.comparisons import Comparison
from permix.report.html import fidelity_charts as fidelity
from permix.report.html.fidelity_charts import tradeoff
from permix.report.html.values import TEXT, estimate, names, number, text
from permix.report.methods import Method, Pooled
from permix.report.runs import ModelRuns, Run
from permix.types import CellKey, Persona, normalise


class Person(NamedTuple):
    id: str
    text: str
    """The message that brought the persona in, as it was sent."""
    tags: tuple[str, ...]


def people(models: Sequence[ModelRuns]) -> dict[str, Person]:
    """Every persona of the runs of stability, by id; one that several runs asked as the first of them did."""
    found: dict[str, Person] = {}
    for model in models:
        if "stability" in model.runs:
            found = _people(model.runs["stability"]) | found
    return found


def _people(run: Run) -> dict[str, Person]:
    first: dict[str, CellKey] = {}
    for key in run.cells:
        if key.persona_id is not None:
            first.setdefault(key.persona_id, key)
    pool = _pool(str(run.config.get("personas", {}).get("pool", "")))
    said = {who: brought_in_by(run.cells[key].messages) for who, key in first.items()}
    return {who: Person(who, text, _tags(pool.get(who), text)) for who, text in said.items()}


def _tags(known: Persona | None, said: str) -> tuple[str, ...]:
    same = known is not None and normalise(known.text.rstrip(".")) in normalise(said)
    return known.tags if known is not None and same else ()


@cache
def _pool(named: str) -> Mapping[str, Persona]:
    if named != "builtin" and not Path(named).is_file():
        return {}
    try:
        return {persona.id: persona for persona in read_personas(named)}
    except DataError:
        return {}


STEPS = 400
"""Points of a training curve; a longer log is drawn by means of neighbouring steps."""

LOSS = ("loss", "loss")
"""What a run without rewards is followed by."""


Chart = dict[str, Any]


def build_charts(
    models: Sequence[ModelRuns], methods: Sequence[Method], pooled: Sequence[Pooled], comparisons: Sequence[Comparison]
) -> dict[str, Any]:
    """Every chart that the runs allow. `pooled`: of each of `methods`, its mean over the seeds."""
    shown = names(model.label for model in models)
    drawn: dict[str, Any] = {
        "tradeoff": tradeoff(models, methods, pooled, comparisons),
        "personas": _personas(models, shown),
        "lottery": _lottery(models, shown),
        "training": _training(models, shown),
        "probes": _probes({shown[model.label]: model.curve for model in models if model.curve is not None}),
        "learnt": fidelity.learnt(models, shown),
        "judged": fidelity.judged(models, shown),
        "trial": fidelity.trial(models, shown),
        "confusion": fidelity.confusion(models, shown),
        "drift": fidelity.drift(models, shown),
    }
    return {name: chart for name, chart in drawn.items() if chart}


def _personas(models: Sequence[ModelRuns], shown: Mapping[str, str]) -> Chart:
    summaries = {shown[model.label]: model.stability for model in models if model.stability is not None}
    known = people(models)
    ids = names(persona.id for summary in summaries.values() for persona in summary.personas)
    return (
        {}
        if not summaries
        else {
            "note": f"n = {_questions(models)}; bars: {INTERVAL}; dashed line and band: no persona, with its interval",
            "ids": [
                {
                    "id": name,
                    "text": text(known[id].text if id in known else "", TEXT),
                    "tags": [text(tag) for tag in (known[id].tags if id in known else ())],
                }
                for id, name in ids.items()
            ],
            "models": {
                label: {
                    "none": estimate(summary.baseline),
                    "of": {ids[persona.id]: estimate(persona.accuracy) for persona in summary.personas},
                    "difference": {ids[persona.id]: estimate(persona.difference) for persona in summary.personas},
                }
                for label, summary in summaries.items()
            },
        }
    )


def _lottery(models: Sequence[ModelRuns], shown: Mapping[str, str]) -> Chart:
    summaries = {shown[model.label]: model.stability for model in models if model.stability is not None}
    return (
        {}
        if not summaries
        else {
            "note": f"n = {_questions(models)}; bands: {INTERVAL}; thin dashed lines without markers: no persona",
            "models": {
                label: {"none": estimate(summary.baseline), "best": [estimate(one) for one in summary.lottery]}
                for label, summary in summaries.items()
            },
        }
    )


def _questions(models: Iterable[ModelRuns]) -> str:
    return f"{theme.counts(model.stability.n_questions for model in models if model.stability is not None)} questions"


def _training(models: Sequence[ModelRuns], shown: Mapping[str, str]) -> Chart:
    logs = {shown[model.label]: model.runs["train"].log for model in models if "train" in model.runs}
    logs = {label: log for label, log in logs.items() if log}
    if not logs:
        return {}
    longest = max(map(len, logs.values()))
    rows = {label: thinned(log, panels_of(log), -(-longest // STEPS)) for label, log in logs.items()}
    panels = [(key, name) for key, name in (*PANELS, LOSS) if any(_has(one, key) for one in rows.values())]
    each = "each step" if longest <= STEPS else f"means of {-(-longest // STEPS)} steps"
    return {
        "note": f"n = {theme.counts(map(len, logs.values()))} steps, one run each, so no interval; thin: {each}",
        "panels": [{"key": key, "name": name.replace("\n", " ")} for key, name in panels],
        "models": rows,
    }


def panels_of(log: Sequence[Mapping[str, Any]]) -> list[str]:
    """What a training is followed by: rewards and what goes with them, or the loss of one that has no rewards."""
    rewarded = any("reward" in step for step in log)
    return [key for key, _ in PANELS] if rewarded else [LOSS[0], "completion_tokens"]


def thinned(log: Sequence[Mapping[str, Any]], keys: Sequence[str], every: int) -> list[dict[str, Any]]:
    """Means over each `every` steps that follow one another, under the last of them; a missing value is left out of its mean."""
    groups = [log[start : start + every] for start in range(0, len(log), every)]
    return [{"step": group[-1]["step"], **{key: _mean(step.get(key) for step in group) for key in keys}} for group in groups]


def _mean(values: Iterable[Any]) -> float | None:
    known = [value for one in values if one is not None and (value := number(float(one))) is not None]
    return number(sum(known) / len(known)) if known else None


def _has(rows: Sequence[Mapping[str, Any]], key: str) -> bool:
    return any(row.get(key) is not None for row in rows)


def _probes(curves: Mapping[str, Curve]) -> Chart:
    every = [point for curve in curves.values() for point in curve.points]
    answers = [point.identifiability.n for point in every if point.identifiability is not None]
    asked = f"{theme.counts(point.n_questions for point in every)} questions"
    asked += f", {theme.counts(answers)} answers (identifiability)" if answers else ""
    marks = "ring: the weights taken; thin dashed lines without markers: no persona" + ("; dotted: chance" if answers else "")
    panels = PROBE_PANELS if answers else PROBE_PANELS[:2]
    return (
        {}
        if not every
        else {
            "note": f"n = {asked}; bands: {INTERVAL}; {marks}",
            "panels": [{"key": key, "name": name.replace("\n", " ")} for key, name in panels],
            "models": {
                label: {
                    "taken": taken(curve),
                    "points": [
                        {"step": point.step, "none": estimate(point.baseline), "chance": number(point.chance)}
                        | {key: estimate(getattr(point, key)) for key, _ in panels}
                        for point in curve.points
                    ],
                }
                for label, curve in curves.items()
            },
        }
    )
