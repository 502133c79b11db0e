"""The numbers of methods, pooled over their training seeds, and the differences of two methods.

A pooled number is the mean over the seeds. Its interval over questions resamples the questions, with the same draws for all
seeds, so it covers other questions but not other training seeds. From two seeds on there is also an interval over questions and
training seeds (`permix.metrics.training_seeds`); it is wide with two or three seeds. A difference of two methods whose seeds
differ is that of the seeds they have in common, if there are two or more. Every seed is shown wherever a pooled number is shown.
Seeds with different setups (questions, personas, sampling ...) are not pooled, and the reason is given.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Literal, NamedTuple

import numpy as np
from pydantic import Field

from permix.evals.stability import read_context_grids
from permix.metrics import statistics
from permix.metrics.identifiability import Identifiability
from permix.metrics.measures import CharacterRecord, MeasureRecord, select_measures
from permix.metrics.posterior import AccuracyGrid
from permix.metrics.recognisability import Recognisability
from permix.metrics.right_in_character import (
    RightInCharacter,
    pool_right_in_character,
    right_in_character_difference,
    right_in_character_over_seeds,
    right_in_character_seed_difference,
)
from permix.metrics.stability import (
    pool_over_seeds,
    pool_stability,
    seed_differences,
    stability_differences,
)
from permix.metrics.statistics import Array
from permix.metrics.training_seeds import (
    SeedDifference,
    SeedPairing,
    SeedValues,
    cover_seed_differences,
    cover_training_seeds,
    limit_ends,
)
from permix.report.comparisons import (
    aligned_sample_means,
    identifiability_incompatibilities,
    mean_question_share,
    question_share_difference,
    recognisability_incompatibilities,
    right_in_character_incompatibilities,
    stability_incompatibilities,
)
from permix.report.judges import BootstrapSettings, bootstrap_settings
from permix.report.methods import ReportMethod, find_training_run
from permix.report.runs import ModelRuns
from permix.types import Estimate, Record


class PooledMethod(CharacterRecord):
    """The numbers of a method: those of its model, or the means over its measured models (`n_stability`, `n_fidelity`).

    The n of an estimate counts what it counts for one model: questions for accuracy and PSS; for identifiability and
    recognisability, the answers of all seeds together. Where seeds cannot be pooled, the numbers are missing and `reasons`
    (accuracy and PSS), `fidelity_reasons` or `right_in_character_reasons` say why. `over_seeds` has the same numbers by name,
    also "identifiability", "recognisability" and "right_in_character", with intervals over questions and training seeds; it is
    empty with one model.
    """

    VIEW = "methods"

    name: str
    labels: tuple[str, ...]
    measures: dict[str, Estimate] = Field(default_factory=dict)
    identifiability: Estimate | None = None
    chance: float | None = None
    recognisability: Estimate | None = None
    n_stability: int = 0
    n_fidelity: int = 0
    reasons: tuple[str, ...] = ()
    fidelity_reasons: tuple[str, ...] = ()
    over_seeds: dict[str, Estimate] = Field(default_factory=dict)
    right_in_character: Estimate | None = None
    right_in_character_by_chance: float | None = None
    right_in_character_reasons: tuple[str, ...] = ()

    @property
    def pss(self) -> Estimate | None:
        return self.measures.get("pss")

    @property
    def worst(self) -> Estimate | None:
        return self.measures.get("worst")

    @property
    def mean(self) -> Estimate | None:
        return self.measures.get("mean")


class ComparedSeeds(Record):
    """The training seeds behind a difference of two methods; numbers are those of (method, against).

    `n` counts the models that are compared, and `n_left_out` those whose seed the other method does not have.
    """

    pairing: SeedPairing = "unpaired"
    n: tuple[int, int] = (0, 0)
    n_left_out: tuple[int, int] = (0, 0)


class MethodDifference(CharacterRecord):
    """One method minus another, as means over their seeds. Where they cannot be compared, numbers are missing and `reasons` say
    why.

    `n_personas` counts the personas behind accuracy and PSS. `n_seeds` and `n_fidelity_seeds` count the models of (method,
    against) that are compared. `over_seeds` has the measures of the view "seed_differences", "identifiability", "recognisability"
    and "right_in_character" over questions, and over questions and training seeds. `compared_seeds` has the seeds of each
    measure; `seed_pairing` and `fidelity_seed_pairing` are the pairings of stability and identifiability.
    """

    VIEW = "differences"

    name: str
    against: str
    measures: dict[str, Estimate] = Field(default_factory=dict)
    identifiability: Estimate | None = None
    recognisability: Estimate | None = None
    n_personas: int = 0
    n_seeds: tuple[int, int] = (0, 0)
    n_fidelity_seeds: tuple[int, int] = (0, 0)
    reasons: tuple[str, ...] = ()
    fidelity_reasons: tuple[str, ...] = ()
    over_seeds: dict[str, SeedDifference] = Field(default_factory=dict)
    compared_seeds: dict[str, ComparedSeeds] = Field(default_factory=dict)
    seed_pairing: SeedPairing | None = None
    fidelity_seed_pairing: SeedPairing | None = None
    right_in_character: Estimate | None = None
    right_in_character_reasons: tuple[str, ...] = ()

    @property
    def pss(self) -> Estimate | None:
        return self.measures.get("pss")

    def covers_seeds(self, name: str) -> bool:
        """Whether this measure has an interval over questions and training seeds."""
        return name in self.over_seeds and self.over_seeds[name].over_seeds.low is not None

    def claimed_difference(self, name: str) -> Estimate | None:
        """The difference that claims judge by: its interval is over questions and training seeds, or over questions alone where
        seeds are not covered.
        """
        if self.covers_seeds(name):
            return self.over_seeds[name].over_seeds
        return self.estimate(name)

    def seeds_of(self, name: str) -> ComparedSeeds:
        """The seeds behind this measure."""
        return self.compared_seeds.get(name, ComparedSeeds(n=self.n_seeds))


def pool_seeds(method: ReportMethod) -> PooledMethod:
    """The pooled numbers of a method."""
    stable, fidelity = measured_models(method)
    reasons = _seed_incompatibilities(stable, stability_incompatibilities)
    fidelity_reasons = _seed_incompatibilities(fidelity, identifiability_incompatibilities)
    in_character, in_character_reasons = _right_in_character_models(stable)
    chances = {model.identifiability.chance for model in fidelity if model.identifiability is not None}
    measures = _pooled_stability(stable) if stable and not reasons else {}
    identifiability = _pooled_share(fidelity, "identifiability") if fidelity and not fidelity_reasons else None
    recognisability = _pooled_recognisability(method.models)
    right_in_character = _pooled_right_in_character(in_character) if in_character and not in_character_reasons else None
    over_seeds: dict[str, Estimate] = {}
    if measures and len(stable) > 1:
        over_seeds |= pool_over_seeds(_aligned_grids(stable), measures, *bootstrap_settings(stable[0].runs["stability"].config))
    shares: dict[ShareName, Estimate | None] = {"identifiability": identifiability, "recognisability": recognisability}
    for name, pooled in shares.items():
        if pooled is not None and len(_share_results(method.models, name)) > 1:
            over_seeds[name] = _pooled_share_over_seeds(pooled, method.models, name)
    if right_in_character is not None and len(in_character) > 1:
        settings = bootstrap_settings(in_character[0].runs["stability"].config)
        over_seeds["right_in_character"] = right_in_character_over_seeds(
            _in_character_results(in_character), right_in_character, *settings
        )
    return PooledMethod(
        name=method.name, labels=tuple(model.label for model in method.models), measures=measures,
        identifiability=identifiability, chance=chances.pop() if len(chances) == 1 else None, recognisability=recognisability,
        n_stability=len(stable), n_fidelity=len(fidelity), reasons=reasons, fidelity_reasons=fidelity_reasons,
        over_seeds=over_seeds, right_in_character=right_in_character,
        right_in_character_by_chance=None if right_in_character is None else _mean_by_chance(in_character),
        right_in_character_reasons=in_character_reasons,
    )  # fmt: skip


class PooledContext(MeasureRecord):
    """The numbers of a method in one context of its stability runs: those of its model, or the means over its `n_seeds` models.

    `over_seeds` has the same numbers with intervals over questions and training seeds; it is empty with one model. Where models
    cannot be pooled, the numbers are missing and `reasons` say why.
    """

    VIEW = "contexts"

    measures: dict[str, Estimate] = Field(default_factory=dict)
    over_seeds: dict[str, Estimate] = Field(default_factory=dict)
    n_seeds: int = 0
    reasons: tuple[str, ...] = ()


def divide_by_context(method: ReportMethod) -> dict[str, ReportMethod]:
    """The method by context: its models with a stability run, whose grids are those of that context alone.

    Only contexts that all of these models have; empty without contexts.
    """
    stable, _ = measured_models(method)
    found = [read_context_grids(model.runs["stability"].path, model.runs["stability"].grid_results) for model in stable]
    contexts = [id for id in found[0] if all(id in grids for grids in found)] if found else []
    return {
        id: method._replace(models=tuple(model._replace(grid=grids[id]) for model, grids in zip(stable, found, strict=True)))
        for id in contexts
    }


def pool_context(method: ReportMethod, context: str) -> PooledContext:
    """The pooled numbers of one part of `divide_by_context`."""
    models = method.models
    reasons = _seed_incompatibilities(models, stability_incompatibilities)
    if reasons:
        return PooledContext(n_seeds=len(models), reasons=reasons)
    if len(models) == 1 and (known := {one.id: one.measures for one in models[0].contexts}.get(context)) is not None:
        return PooledContext(measures=known, n_seeds=1)
    grids, settings = _aligned_grids(models), bootstrap_settings(models[0].runs["stability"].config)
    measures = pool_stability(grids, *settings, "contexts")
    over_seeds = pool_over_seeds(grids, measures, *settings, "contexts") if len(models) > 1 else {}
    return PooledContext(measures=measures, over_seeds=over_seeds, n_seeds=len(models))


ShareName = Literal["identifiability", "recognisability"]
"""A measure of `ModelRuns` that is a share of answers, attributed by question."""

_SHARE_INCOMPATIBILITIES: Mapping[ShareName, Callable[[ModelRuns, ModelRuns], tuple[str, ...]]] = {
    "identifiability": identifiability_incompatibilities, "recognisability": recognisability_incompatibilities,
}  # fmt: skip


def method_difference(method: ReportMethod, against: ReportMethod, change: statistics.Change = np.subtract) -> MethodDifference:
    """`method` − `against`, or another change from `against` to `method`, paired by persona and question.

    If the training seeds of the two differ and at least two are common, the models of these seeds alone are compared.
    """
    (stable, fidelity), (stable_against, fidelity_against) = measured_models(method), measured_models(against)
    stability = compare_stability(stable, stable_against, change)
    identifiability = _compare_shares(fidelity, fidelity_against, "identifiability", change)
    recognisability = _compare_recognisability(method, against, change)
    in_character = _compare_right_in_character(stable, stable_against, change)
    personas = {len(model.grid.persona_ids) for model in (*stable, *stable_against) if model.grid is not None}
    compared = [stability, identifiability, recognisability, in_character]
    return MethodDifference(
        name=method.name, against=against.name, measures=dict(stability.measures),
        identifiability=identifiability.measures.get("identifiability"),
        recognisability=recognisability.measures.get("recognisability"),
        n_personas=max(personas, default=0), n_seeds=stability.seeds.n, n_fidelity_seeds=identifiability.seeds.n,
        reasons=stability.reasons, fidelity_reasons=identifiability.reasons,
        over_seeds={name: each for part in compared for name, each in part.over_seeds.items()},
        compared_seeds={name: part.seeds for part in compared for name in (*part.measures, *part.over_seeds)},
        seed_pairing=stability.pairing, fidelity_seed_pairing=identifiability.pairing,
        right_in_character=in_character.measures.get("right_in_character"), right_in_character_reasons=in_character.reasons,
    )  # fmt: skip


class PairedModels(NamedTuple):
    """The models of two methods that are compared; in the same order of seeds if they are paired."""

    models: Sequence[ModelRuns]
    against: Sequence[ModelRuns]
    seeds: ComparedSeeds

    @property
    def all_models(self) -> list[ModelRuns]:
        """Those of `against` first: the first of all has the bootstrap's settings."""
        return [*self.against, *self.models]


class ComparedMeasures(NamedTuple):
    """Models − against in some measures, by name, and why there are none."""

    seeds: ComparedSeeds
    reasons: tuple[str, ...] = ()
    measures: Mapping[str, Estimate] = MappingProxyType({})
    over_seeds: Mapping[str, SeedDifference] = MappingProxyType({})

    @property
    def pairing(self) -> SeedPairing | None:
        return self.seeds.pairing if self.measures or self.over_seeds else None


def compare_stability(
    models: Sequence[ModelRuns], against: Sequence[ModelRuns], change: statistics.Change = np.subtract
) -> ComparedMeasures:
    """`models` − `against`, or another change, in the measures of stability: of the view "differences", over questions, and of
    the view "seed_differences", over questions and seeds.
    """
    pairs = pair_models(models, against)
    reasons = _seed_incompatibilities(pairs.all_models, stability_incompatibilities)
    if not models or not against or reasons:
        return ComparedMeasures(pairs.seeds, reasons)
    in_order = _in_order_of(models, pairs.models)
    aligned = _aligned_grids([*pairs.against, *in_order])
    grids, grids_against = aligned[len(pairs.against) :], aligned[: len(pairs.against)]
    settings = bootstrap_settings(pairs.against[0].runs["stability"].config)
    differences = stability_differences(grids, grids_against, *settings, change)
    grid_of = dict(zip(map(id, in_order), grids, strict=True))
    by_seed = [grid_of[id(model)] for model in pairs.models]
    over_seeds = seed_differences(by_seed, grids_against, pairs.seeds.pairing, differences, *settings, change)
    return ComparedMeasures(pairs.seeds, (), differences, over_seeds)


def _compare_shares(
    models: Sequence[ModelRuns], against: Sequence[ModelRuns], measure: ShareName, change: statistics.Change
) -> ComparedMeasures:
    pairs = pair_models(models, against)
    reasons = _seed_incompatibilities(pairs.all_models, _SHARE_INCOMPATIBILITIES[measure])
    if not models or not against or reasons:
        return ComparedMeasures(pairs.seeds, reasons)
    difference = _pooled_share_difference(_in_order_of(models, pairs.models), pairs.against, measure, change)
    over_seeds = _share_over_seeds(difference, pairs, measure, change)
    return ComparedMeasures(pairs.seeds, (), {measure: difference}, {measure: over_seeds})


def _compare_recognisability(method: ReportMethod, against: ReportMethod, change: statistics.Change) -> ComparedMeasures:
    """Nothing where a method was not measured or the models were not measured alike."""
    models, models_against = ([model for model in each.models if model.recognisability is not None] for each in (method, against))
    if _pooled_recognisability(method.models) is None or _pooled_recognisability(against.models) is None:
        return ComparedMeasures(ComparedSeeds(n=(len(models), len(models_against))))
    return _compare_shares(models, models_against, "recognisability", change)


def _compare_right_in_character(
    stable: Sequence[ModelRuns], stable_against: Sequence[ModelRuns], change: statistics.Change
) -> ComparedMeasures:
    models, reasons = _right_in_character_models(stable)
    against, reasons_against = _right_in_character_models(stable_against)
    pairs = pair_models(models, against)
    between = _seed_incompatibilities(pairs.all_models, right_in_character_incompatibilities)
    reasons = tuple(dict.fromkeys([*reasons, *reasons_against, *between]))
    if not models or not against or reasons:
        return ComparedMeasures(pairs.seeds, reasons)
    settings = bootstrap_settings(pairs.against[0].runs["stability"].config)
    results, results_against = _in_character_results(pairs.models), _in_character_results(pairs.against)
    in_order = _in_character_results(_in_order_of(models, pairs.models))
    difference = right_in_character_difference(in_order, results_against, *settings, change)
    if change is not np.subtract:  # no headline has it
        return ComparedMeasures(pairs.seeds, (), {"right_in_character": difference})
    over_seeds = right_in_character_seed_difference(results, results_against, pairs.seeds.pairing, difference, *settings)
    return ComparedMeasures(pairs.seeds, (), {"right_in_character": difference}, {"right_in_character": over_seeds})


def _in_order_of(models: Sequence[ModelRuns], kept: Sequence[ModelRuns]) -> list[ModelRuns]:
    """The kept models in the order of all."""
    ids = set(map(id, kept))
    return [model for model in models if id(model) in ids]


class MethodNumbers:
    """The pooled numbers of methods, and their differences, each computed once. Methods are known by their names."""

    def __init__(self, pooled: Sequence[PooledMethod] = (), differences: Sequence[MethodDifference] = ()) -> None:
        self._pooled = {one.name: one for one in pooled}
        self._differences = {(one.name, one.against): one for one in differences}

    def pooled(self, method: ReportMethod) -> PooledMethod:
        """As `pool_seeds`."""
        if method.name not in self._pooled:
            self._pooled[method.name] = pool_seeds(method)
        return self._pooled[method.name]

    def difference(self, method: ReportMethod, against: ReportMethod) -> MethodDifference:
        """As `method_difference`."""
        names = method.name, against.name
        if names not in self._differences:
            self._differences[names] = method_difference(method, against)
        return self._differences[names]


def reference_differences(methods: Sequence[ReportMethod], numbers: MethodNumbers | None = None) -> list[MethodDifference]:
    """Every method minus the reference: the RLVR method with most training seeds, or else the first method.

    Empty where no method has several seeds. `numbers` of these methods, where some may be known.
    """
    numbers = numbers or MethodNumbers()
    if len(methods) < 2 or all(len(method.models) == 1 for method in methods):
        return []
    plain = (method for method in methods if method.role == "rlvr")
    reference = max(plain, key=lambda method: len(method.models), default=methods[0])
    return [numbers.difference(method, reference) for method in methods if method is not reference]


def pair_models(models: Sequence[ModelRuns], against: Sequence[ModelRuns]) -> PairedModels:
    """The models of two methods that are compared, and how their training seeds belong together.

    Methods that were trained with the same seeds are paired. If their seeds differ and at least two are common, the models of
    these are paired, and the others left out. A single model whose training is not known, such as the base model, counts as
    untrained.
    """
    trainings, trainings_against = ([find_training_run(model) for model in each] for each in (models, against))
    counts = len(models), len(against)
    if [None] in (trainings, trainings_against):
        return PairedModels(models, against, ComparedSeeds(pairing="untrained", n=counts))
    seeds, seeds_against = (
        [None if training is None else training.seed for training in each] for each in (trainings, trainings_against)
    )
    common = [seed for seed in seeds_against if seed in seeds]
    is_known = all(None not in each and len(set(each)) == len(each) for each in (seeds, seeds_against))
    if not is_known or not common or (len(common) < 2 and set(seeds) != set(seeds_against)):
        return PairedModels(models, against, ComparedSeeds(pairing="unpaired", n=counts))
    by_seed, by_seed_against = dict(zip(seeds, models, strict=True)), dict(zip(seeds_against, against, strict=True))
    n = len(common)
    paired = ComparedSeeds(pairing="paired", n=(n, n), n_left_out=(counts[0] - n, counts[1] - n))
    return PairedModels([by_seed[seed] for seed in common], [by_seed_against[seed] for seed in common], paired)


def _share_over_seeds(
    over_questions: Estimate, pairs: PairedModels, measure: ShareName, change: statistics.Change
) -> SeedDifference:
    settings = bootstrap_settings(pairs.against[0].runs["fidelity"].config)
    values, n_against = _shares_by_seed(_share_results(pairs.all_models, measure), settings), len(pairs.against)
    of_models, of_against = values.seeds(slice(n_against, None)), values.seeds(slice(None, n_against))
    difference = cover_seed_differences(over_questions, of_models, of_against, pairs.seeds.pairing, change=change)
    return difference.limited(-1.0, np.inf if change is statistics.relative_change else 1.0)


def _shares_by_seed(results: Sequence[Identifiability | Recognisability], settings: BootstrapSettings) -> SeedValues:
    """The share of each model, on the questions that all of them answered, with the draws of questions."""
    questions = sorted(set.intersection(*(set(one.right_by_question) for one in results)))

    def values(counts_R_Q: Array) -> dict[str, Array]:
        return {"each": np.stack([mean_question_share([one], questions, counts_R_Q) for one in results], axis=1)}

    rng = np.random.default_rng(settings.seed)
    drawn = statistics.bootstrap(values, len(questions), rng, settings.resamples, block_size=settings.resamples)["each"]
    return SeedValues(drawn.value, drawn.replicates.T)


def measured_models(method: ReportMethod) -> tuple[list[ModelRuns], list[ModelRuns]]:
    """The models with a stability run, and the models with a fidelity run on shared questions."""
    stable = [model for model in method.models if model.stability is not None and model.grid is not None]
    return stable, [model for model in method.models if model.identifiability is not None]


def _seed_incompatibilities(
    models: Sequence[ModelRuns], incompatibilities: Callable[[ModelRuns, ModelRuns], tuple[str, ...]]
) -> tuple[str, ...]:
    """Why the numbers of these models cannot be pooled or compared: the differences between any of them and the first."""
    return tuple(dict.fromkeys(reason for model in models[1:] for reason in incompatibilities(models[0], model)))


def _right_in_character_models(stable: Sequence[ModelRuns]) -> tuple[list[ModelRuns], tuple[str, ...]]:
    """The models with right and in character, and why their numbers cannot be pooled.

    A seed without the measure is a reason too: the mean over the other seeds would look like the mean over all.
    """
    measured = [model for model in stable if model.right_in_character is not None]
    missing = [model.label for model in stable if model.right_in_character is None]
    reasons = _seed_incompatibilities(measured, right_in_character_incompatibilities)
    if measured and missing:
        reasons = (*reasons, f"Right and in character is not measured for {', '.join(missing)}")
    return measured, reasons


def _in_character_results(models: Sequence[ModelRuns]) -> list[RightInCharacter]:
    return [model.right_in_character for model in models if model.right_in_character is not None]


def _pooled_right_in_character(models: Sequence[ModelRuns]) -> Estimate:
    return pool_right_in_character(_in_character_results(models), *bootstrap_settings(models[0].runs["stability"].config))


def _mean_by_chance(models: Sequence[ModelRuns]) -> float | None:
    """The mean over the seeds; None where one of them has no value."""
    values = [one.share_by_chance.value for one in _in_character_results(models)]
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None


def _pooled_stability(models: Sequence[ModelRuns]) -> dict[str, Estimate]:
    summaries = [model.stability for model in models if model.stability is not None]
    if len(summaries) == 1:
        return select_measures("methods", summaries[0].measures)
    return pool_stability(_aligned_grids(models), *bootstrap_settings(models[0].runs["stability"].config))


def _pooled_recognisability(models: Sequence[ModelRuns]) -> Estimate | None:
    """The mean over the seeds; None unless every model with a fidelity run was measured alike."""
    measured = [model for model in models if model.recognisability is not None]
    n_runs = sum("fidelity" in model.runs for model in models)
    if not measured or len(measured) < n_runs or _seed_incompatibilities(measured, recognisability_incompatibilities):
        return None
    return _pooled_share(measured, "recognisability")


def _pooled_share(models: Sequence[ModelRuns], measure: ShareName) -> Estimate:
    """The mean over the seeds of the share of answers attributed correctly, on the questions that all seeds answered."""
    results = _share_results(models, measure)
    if len(results) == 1:
        return results[0].accuracy
    questions = sorted(set.intersection(*(set(one.right_by_question) for one in results)))
    settings = bootstrap_settings(models[0].runs["fidelity"].config)
    rng = np.random.default_rng(settings.seed)
    drawn = statistics.bootstrap(
        lambda counts_R_Q: {"accuracy": mean_question_share(results, questions, counts_R_Q)},
        len(questions), rng, settings.resamples, block_size=settings.resamples,
    )["accuracy"]  # fmt: skip
    pooled = statistics.bootstrap_share(float(drawn.value), drawn.replicates, len(questions))
    return pooled.model_copy(update={"n": sum(one.accuracy.n for one in results)})


def _pooled_share_over_seeds(pooled: Estimate, models: Sequence[ModelRuns], measure: ShareName) -> Estimate:
    """The number of `_pooled_share` with an interval over questions and training seeds."""
    run = next(model.runs["fidelity"] for model in models if "fidelity" in model.runs)
    values = _shares_by_seed(_share_results(models, measure), bootstrap_settings(run.config))
    return limit_ends(cover_training_seeds(pooled, [values]).over_seeds, 0.0, 1.0)


def _pooled_share_difference(
    models: Sequence[ModelRuns], against: Sequence[ModelRuns], measure: ShareName, change: statistics.Change
) -> Estimate:
    """`models` − `against`, or another change, paired by question."""
    shares, shares_against = _share_results(models, measure), _share_results(against, measure)
    settings = bootstrap_settings(against[0].runs["fidelity"].config)
    return question_share_difference(shares, shares_against, *settings, change)


def _share_results(models: Sequence[ModelRuns], measure: ShareName) -> list[Identifiability | Recognisability]:
    found = (model.identifiability if measure == "identifiability" else model.recognisability for model in models)
    return [one for one in found if one is not None]


def _aligned_grids(models: Sequence[ModelRuns]) -> list[AccuracyGrid]:
    """Each model's scores (mean_P_Q, baseline_Q), with personas and questions in the order of the first model."""
    grids = [model.grid for model in models if model.grid is not None]
    return [aligned_sample_means(grids[0], one) for one in grids]
