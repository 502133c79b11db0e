"""Training seeds: models whose trainings differ by chance alone are one method, and a method's numbers are means over its seeds.

Contract: a pooled number is the mean over the seeds, and its interval draws the questions once for all of them: it says what
other questions might have given. What other training seeds might have given it does not say, and two or three of them could not;
so wherever a pooled number stands, every seed is shown too. Seeds that were not asked the same are not pooled, and why is said.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from permix.evals import stats, together
from permix.evals.extremes import EXTREMES
from permix.evals.identify import Identifiability
from permix.evals.stability_summary import BLOCK_FLOATS, differences
from permix.evals.stats import Array
from permix.report.methods import Method, methods
from permix.report.reading import distinctness, fidelity_reasons, in_order_of, stability_reasons, told_apart
from permix.report.runs import ModelRuns, Run
from permix.types import Estimate, Record

__all__ = ["Method", "MethodDifference", "Pooled", "difference", "measured", "methods", "pool"]


class Pooled(Record):
    """A method's numbers: of one model its own, of several the mean of those that were measured (`n_stability`, `n_fidelity`).

    An estimate's n is what it is for a model: questions; of identifiability answers, all seeds' together. Where seeds may not be
    pooled, their numbers are None and `reasons` (accuracy and PSS) or `fidelity_reasons` say why.
    """

    name: str
    labels: tuple[str, ...]
    baseline: Estimate | None = None
    mean: Estimate | None = None
    worst: Estimate | None = None
    pss: Estimate | None = None
    identifiability: Estimate | None = None
    chance: float | None = None
    n_stability: int = 0
    n_fidelity: int = 0
    reasons: tuple[str, ...] = ()
    fidelity_reasons: tuple[str, ...] = ()


class MethodDifference(Record):
    """One method less another, means over their seeds; None, and `reasons` say why, where they may not be compared.

    `n_personas` were asked in accuracy and PSS; `seeds` and `fidelity_seeds` count the models behind (one, the other).
    """

    name: str
    against: str
    pss: Estimate | None = None
    worst: Estimate | None = None
    mean: Estimate | None = None
    identifiability: Estimate | None = None
    n_personas: int = 0
    seeds: tuple[int, int] = (0, 0)
    fidelity_seeds: tuple[int, int] = (0, 0)
    reasons: tuple[str, ...] = ()
    fidelity_reasons: tuple[str, ...] = ()


class Settings(NamedTuple):
    seed: int
    resamples: int


def pool(method: Method) -> Pooled:
    """The method's numbers."""
    stable, distinct = measured(method)
    reasons, apart = _unlike_each(stable, fidelity=False), _unlike_each(distinct, fidelity=True)
    found = _stability(stable) if stable and not reasons else {}
    if distinct and not apart:
        found["identifiability"] = _identifiability(distinct)
    chances = {model.fidelity.chance for model in distinct if model.fidelity is not None}
    return Pooled(
        name=method.name, labels=tuple(model.label for model in method.models),
        n_stability=len(stable), n_fidelity=len(distinct), reasons=reasons, fidelity_reasons=apart,
        chance=chances.pop() if len(chances) == 1 else None,
        **found,
    )  # fmt: skip


def difference(one: Method, other: Method) -> MethodDifference:
    """One − other, paired by persona and question."""
    (stable, distinct), (less_stable, less_distinct) = measured(one), measured(other)
    reasons = _unlike_each([*less_stable, *stable], fidelity=False)
    apart = _unlike_each([*less_distinct, *distinct], fidelity=True)
    found: dict[str, Estimate] = {}
    if stable and less_stable and not reasons:
        grids = _grids([*less_stable, *stable])
        under = [mean_P_Q for mean_P_Q, _ in grids]
        found |= differences(under[: len(less_stable)], under[len(less_stable) :], *_settings(less_stable[0].runs["stability"]))
    if distinct and less_distinct and not apart:
        told = _told(less_distinct), _told(distinct)
        found["identifiability"] = distinctness(*told, *_settings(less_distinct[0].runs["fidelity"]))
    personas = {len(model.grid.persona_ids) for model in (*stable, *less_stable) if model.grid is not None}
    return MethodDifference(
        name=one.name, against=other.name, reasons=reasons, fidelity_reasons=apart,
        n_personas=max(personas, default=0), seeds=(len(stable), len(less_stable)),
        fidelity_seeds=(len(distinct), len(less_distinct)),
        pss=found.get("pss"), worst=found.get("worst"), mean=found.get("mean"), identifiability=found.get("identifiability"),
    )  # fmt: skip


def measured(method: Method) -> tuple[list[ModelRuns], list[ModelRuns]]:
    """The seeds that have a stability run, and those that have a fidelity run on shared questions."""
    stable = [model for model in method.models if model.stability is not None and model.grid is not None]
    return stable, [model for model in method.models if model.fidelity is not None]


def _unlike_each(models: Sequence[ModelRuns], *, fidelity: bool) -> tuple[str, ...]:
    """Why these models' numbers must not be held against each other: what separates any of them from the first."""
    unlike = fidelity_reasons if fidelity else stability_reasons
    return tuple(dict.fromkeys(reason for model in models[1:] for reason in unlike(models[0], model)))


def _stability(models: Sequence[ModelRuns]) -> dict[str, Estimate]:
    summaries = [model.stability for model in models if model.stability is not None]
    if len(summaries) == 1:
        return {name: getattr(summaries[0], name) for name in ("baseline", "mean", "worst", "pss")}
    grids = _grids(models)
    scored_P = np.all([~np.isnan(mean_P_Q).all(axis=1) for mean_P_Q, _ in grids], axis=0)
    if not scored_P.any():
        return {}
    settings, grids = _settings(models[0].runs["stability"]), [(mean_P_Q[scored_P], none_Q) for mean_P_Q, none_Q in grids]
    alone = [{name: getattr(one, name) for name in EXTREMES} for one in summaries]
    extreme = together.pooled(grids, alone, seed=settings.seed)
    return _levels(grids, settings) | {"worst": extreme["worst"], "pss": extreme["pss"]}


def _levels(grids: Sequence[together.Grid], settings: Settings) -> dict[str, Estimate]:
    """Accuracy without persona, and its mean over personas; the mean over the grids."""

    def measures(counts_R_Q: Array) -> dict[str, Array]:
        under = [stats.question_mean(mean_P_Q, counts_R_Q).mean(axis=1) for mean_P_Q, _ in grids]
        without = [stats.question_mean(baseline_Q[None], counts_R_Q)[:, 0] for _, baseline_Q in grids]
        return {"mean": np.mean(under, axis=0), "baseline": np.mean(without, axis=0)}

    Q, rng = grids[0][0].shape[1], np.random.default_rng(settings.seed)
    drawn = stats.bootstrap(measures, Q, rng, settings.resamples, block=max(1, BLOCK_FLOATS // Q))
    scored = {
        "mean": min(int((~np.isnan(mean_P_Q)).any(axis=0).sum()) for mean_P_Q, _ in grids),
        "baseline": min(int((~np.isnan(baseline_Q)).sum()) for _, baseline_Q in grids),
    }
    return {name: stats.share(float(one.value), one.replicates, scored[name]) for name, one in drawn.items()}


def _identifiability(models: Sequence[ModelRuns]) -> Estimate:
    """Mean over the seeds of the share told right, on the questions that all of them answered."""
    told = _told(models)
    if len(told) == 1:
        return told[0].accuracy
    questions, settings = sorted(told[0].right_by_question), _settings(models[0].runs["fidelity"])
    rng = np.random.default_rng(settings.seed)
    drawn = stats.bootstrap(
        lambda counts_R_Q: {"told": told_apart(told, questions, counts_R_Q)},
        len(questions), rng, settings.resamples, block=settings.resamples,
    )["told"]  # fmt: skip
    found = stats.estimate(float(drawn.value), drawn.replicates, len(questions))
    return found.model_copy(update={"n": sum(one.n_answered for one in told)})


def _told(models: Sequence[ModelRuns]) -> list[Identifiability]:
    return [model.fidelity for model in models if model.fidelity is not None]


def _grids(models: Sequence[ModelRuns]) -> list[together.Grid]:
    """Each model's scores (mean_P_Q, baseline_Q), with personas and questions in the first one's order."""
    grids = [model.grid for model in models if model.grid is not None]
    return [in_order_of(grids[0], one) for one in grids]


def _settings(run: Run) -> Settings:
    return Settings(int(run.config.get("seed", 0)), int(run.config.get("resamples", 2000)))
