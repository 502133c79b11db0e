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
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from permix.report import canvas
from permix.report.canvas import INTERVAL
from permix.report.page import payload_fidelity as fidelity
from permix.report.page.people import people
from permix.report.page.plain import TEXT, estimate, names, number, text
from permix.report.page.tradeoff import tradeoff
from permix.report.plots import PANELS, PROBE_PANELS
from permix.report.reading import Comparison
from permix.report.runs import ModelRuns
from permix.report.seeds import Method, Pooled
from permix.train.probe import Curve, taken

STEPS = 400
"""Points of a training curve; a longer log is drawn by means of neighbouring steps."""
LOSS = ("loss", "loss")
"""What a run without rewards is followed by."""

Chart = dict[str, Any]


def charts(
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
    return f"{canvas.counts(model.stability.n_questions for model in models if model.stability is not None)} questions"


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
        "note": f"n = {canvas.counts(map(len, logs.values()))} steps, one run each, so no interval; thin: {each}",
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
    asked = f"{canvas.counts(point.n_questions for point in every)} questions"
    asked += f", {canvas.counts(answers)} answers (identifiability)" if answers else ""
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
