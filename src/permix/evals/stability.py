"""`permix stability`: how much accuracy personas cost a model, and whether the difference is noise.

Asks every question under every persona and without one, keeps each cell, and measures from the records alone: `measure(run)`
gives the same numbers wherever the run directory is. With a strategy it asks what that strategy asks, and measures that too.

A sequential run on disk: its rounds stand in grid.json, and each is settled before it is asked.

So a run that was killed asks the rest of the round that it was in, then settles the next one as it would have done. A round goes
on while a completion is owed; one that came and could not be judged is left out, as everywhere.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from permix.config import ModelConfig, StabilityConfig
from permix.errors import ConfigError, IncompleteRunError
from permix.evals.grid import (
    GridResults,
    PromptFormat,
    describe_grid,
    persona_and_baseline_scores,
    read_grid_results,
    run_cells,
    warn_trained_personas,
)
from permix.evals.strategies import STRATEGIES, measure_strategy
from permix.evals.strategies.base import EvalSetup, Strategy
from permix.evals.strategies.persona_search import load_selection_questions
from permix.inference import check_model, load_model
from permix.inference.base import Model
from permix.inference.cache import cached_model
from permix.metrics import sequential, statistics
from permix.metrics.linear_models import TemplateEffects, split_by_template, summarize_template_effects
from permix.metrics.sequential import Round, SequentialProgress, StoppingRule, summarize_rounds
from permix.metrics.stability import StabilitySummary, summarize_stability
from permix.metrics.statistics import mean_over_samples
from permix.personas.pool import PersonaPool, select_personas
from permix.plan import read_plan
from permix.progress import print_status
from permix.prompts import template_hash, template_text
from permix.storage.cells import cell_summaries
from permix.storage.files import write_json
from permix.storage.run_dir import RunDir, RunReader
from permix.tasks import LoadedTask, load_questions
from permix.tasks.base import Task, check_contamination, read_trained_on, verify_completion
from permix.types import Cell, digest
from permix.verification.math_verifier import Verifier

CellRunner = Callable[[Sequence[Cell], str], int]
"""(cells, what they are) -> how many of them are owed afterwards."""


class GridProgress(NamedTuple):
    """How many cells were asked, how many of them have no score; `selection_pending`: more would be asked, had these come."""

    pending: int
    n_cells: int
    selection_pending: bool = False


def build_stopping_rule(config: StabilityConfig) -> StoppingRule | None:
    """None for a run that asks its whole grid."""
    both = StoppingRule(config.budget, config.precision)
    return None if both == StoppingRule(None, None) else both


def shuffle_questions(setup: EvalSetup) -> EvalSetup:
    """The questions in an order that is drawn: a task may give them level by level, and then later rounds would be harder."""
    order = sorted(setup.questions, key=lambda question: digest("round", str(setup.seed), question.content_hash))
    return setup._replace(questions=tuple(order))


def check_same_rounds(run: Path, setup: EvalSetup) -> None:
    """Raise ConfigError for a run that asked its whole grid, or whose rounds were of other personas, questions or samples."""
    asked, rounds = RunReader(run).grid, read_rounds(run)
    if not asked:
        return
    if not rounds:
        raise ConfigError(
            f"out = {run}: this run asks its whole grid; leave budget and precision out to go on with it, or give another folder"
        )
    personas, questions = ([one.id for one in some] for some in (setup.pool.personas, setup.questions))
    checks = {
        "personas": list(rounds[0].personas) != personas,
        "task": asked["question_ids"] != questions[: rounds[-1].until],
        "samples": asked["samples"] != setup.samples,
    }
    if other := [name for name, differs in checks.items() if differs]:
        raise ConfigError(
            f"{other[0]}: the rounds of {run} were asked with others; give the same {' and '.join(other)} to go on, leave budget "
            "and precision out to ask the whole grid, or give another folder"
        )


def first_round_cells(setup: EvalSetup, stopping_rule: StoppingRule) -> list[Cell]:
    """The opening. Raises ConfigError when the budget does not reach for it."""
    one = _first_round(setup)
    needed = sequential.count_cells([one], setup.samples)
    if stopping_rule.budget is not None and stopping_rule.budget < needed:
        raise ConfigError(
            f"budget = {stopping_rule.budget}: the first round asks {len(one.personas)} personas and none {one.until} "
            "questions each, "
            f"{needed} cells; give that or more, or fewer personas (personas.n)"
        )
    return _cells_of_rounds(setup, [one])


def max_cells(setup: EvalSetup, stopping_rule: StoppingRule) -> int:
    """What a run may come to."""
    whole = len(setup.questions) * (len(setup.pool) + 1) * setup.samples
    return whole if stopping_rule.budget is None else min(whole, stopping_rule.budget)


def run_rounds(
    run: RunDir,
    setup: EvalSetup,
    config: StabilityConfig,
    stopping_rule: StoppingRule,
    answer_cells: CellRunner,
    description: str,
) -> GridProgress:
    """Round by round, to the end, or until a completion does not come. Questions are `shuffle_questions`."""
    rounds = read_rounds(run.path) or (_first_round(setup),)
    while True:
        write_json(run.path / "grid.json", _describe_rounds(setup, rounds))
        cells = _cells_of_rounds(setup, rounds)
        owed = answer_cells(cells, f"{description}, round {len(rounds)}")
        answers = read_grid_results(run.path)
        briefs = cell_summaries(answers.cells)
        if not all(cell.key in briefs and briefs[cell.key].has_completion for cell in cells):
            return GridProgress(owed, len(cells))
        found = _measure_progress(answers, rounds, config)
        print_status(f"round {len(rounds)}: {rounds[-1].until} questions, {len(cells)} cells; PSS {found.pss}")
        one = sequential.next_round(rounds, found, stopping_rule, n_questions=len(setup.questions), n_samples=setup.samples)
        if one is None:
            return GridProgress(owed, len(cells))
        rounds += (one,)


def read_rounds(run: Path) -> tuple[Round, ...]:
    """Empty for a run that asks its whole grid."""
    return tuple(Round.model_validate(one) for one in RunReader(run).grid.get("rounds", ()))


def _first_round(setup: EvalSetup) -> Round:
    return sequential.first_round([persona.id for persona in setup.pool.personas], len(setup.questions))


def _cells_of_rounds(setup: EvalSetup, rounds: Sequence[Round]) -> list[Cell]:
    cells, before = [], 0
    for one in rounds:
        asked = [persona for persona in setup.pool.personas if persona.id in one.personas]
        cells += setup.build_grid([None, *asked], setup.questions[before : one.until])
        before = one.until
    return cells


def _describe_rounds(setup: EvalSetup, rounds: Sequence[Round]) -> dict[str, object]:
    asked = describe_grid(setup.pool.personas, setup.questions[: rounds[-1].until], setup.samples)
    return asked | {"rounds": [one.model_dump() for one in rounds]}


def _measure_progress(answers: GridResults, rounds: Sequence[Round], config: StabilityConfig) -> SequentialProgress:
    mean_P_Q, baseline_Q = map(statistics.mean_over_samples, persona_and_baseline_scores(answers))
    ids = answers.persona_ids
    found = sequential.measure_rounds(mean_P_Q, baseline_Q, rounds, ids, seed=config.seed, resamples=config.resamples)
    return sequential.sequential_progress(found, ids)


__all__ = [
    "StabilityGrid",
    "StabilitySummary",
    "measure_stability",
    "prepare_stability",
    "read_stability_grid",
    "run_stability",
    "summarize_stability",
]


def run_stability(
    config: StabilityConfig, model: Model | None = None, task: LoadedTask | None = None, pool: PersonaPool | None = None
) -> StabilitySummary:
    """Run, or go on with, an evaluation; writes metrics.json and returns what it says of the grid.

    `model`, `task`, `pool`: what was made in Python, in place of what the configuration names. Raises IncompleteRunError at the
    end when cells have no score: run the same again to fill them.
    """
    prepared, setup = prepare_stability(config, task, pool)
    warn_trained_personas(config.model, setup.pool)
    asked = load_model(config.model, config.threads) if model is None else model
    with cached_model(asked, config.cache, config.out) as cached:
        return evaluate_setup(cached, config, prepared, setup)


def evaluate_setup(model: Model, config: StabilityConfig, task: Task, setup: EvalSetup) -> StabilitySummary:
    """`run_stability` of a model that is there already, asked what was set up before."""
    strategy, limits = STRATEGIES[config.strategy], build_stopping_rule(config)
    if limits:
        setup = shuffle_questions(setup)
        check_same_rounds(config.out, setup)
    first = first_round_cells(setup, limits) if limits else strategy.initial_cells(setup)
    gains = ("strategy",) if strategy.is_full_grid else ()
    with RunDir.open(config.out, config, stability_identity(config, task, model), first, gains) as run:
        what = f"stability {config.label or model.name}"
        with run.track_usage(), Verifier() as verifier:

            def answer(cells: Sequence[Cell], what: str) -> int:
                return run_cells(
                    model, cells, config.sampling, run, lambda text, gold: verify_completion(task, text, gold, verifier), what
                )

            if limits:
                asked = run_rounds(run, setup, config, limits, answer, what)
            else:
                asked = _run_strategy(run, setup, first, strategy, answer, (what, f"{what}, {config.strategy}"))
        missing = f"{config.out}: {asked.pending} of {asked.n_cells} cells have no score; run the same command again to fill them"
        if asked.selection_pending:
            raise IncompleteRunError(f"{missing}; no persona can be chosen before")
        answers = read_grid_results(run.path)
        summary = measure_stability(run.path, answers)
        write_json(run.path / "metrics.json", _metrics_json(summary, run.path, answers))
    if asked.pending:
        raise IncompleteRunError(missing)
    return summary


def _run_strategy(
    run: RunDir,
    setup: EvalSetup,
    initial_cells: Sequence[Cell],
    strategy: Strategy,
    answer_cells: CellRunner,
    descriptions: tuple[str, str],
) -> GridProgress:
    """What the strategy asks at once, and then in the light of it; `descriptions` of both."""
    write_json(run.path / "grid.json", strategy.describe_grid(setup, ()))
    owed = answer_cells(initial_cells, descriptions[0])
    then = strategy.followup_cells(setup, run.cells())
    if then:
        write_json(run.path / "grid.json", strategy.describe_grid(setup, then))
        owed += answer_cells(then, descriptions[1])
    return GridProgress(owed, len(initial_cells) + len(then), selection_pending=strategy.selects_persona and not then)


ASSUMED_DISCORDANCES = (0.1, 0.2, 0.3, 0.5)
"""Discordances for which a grid is planned that has not been asked yet."""


def power_analysis(config: StabilityConfig) -> dict[str, str]:
    """How many questions show an effect of `config.plan_power`, and what `config.task.n` questions show; asks no model.

    By the discordance that the run directory has seen; for several assumed ones where there is no run yet.
    """
    assert config.plan_power is not None
    effect, personas = config.plan_power, len(select_personas(config.personas))
    level = f"level {statistics.SIGNIFICANCE_LEVEL:g} (Holm), power {statistics.TARGET_POWER:g}"
    about = f"{effect:g} against no persona, each of {personas} personas, {level}"
    grid = first_round_grid(config.out, read_stability_grid(config.out)) if (config.out / "records.jsonl").exists() else None
    seen = (
        None
        if grid is None
        else statistics.discordance(mean_over_samples(grid.correct_P_Q_S), mean_over_samples(grid.baseline_Q_S))
    )
    facts = {"effect": about}
    for discordance, source in (
        [(one, "assumed") for one in ASSUMED_DISCORDANCES] if seen is None else [(seen, f"as in {config.out}")]
    ):
        needed = statistics.required_questions(effect, discordance, personas)
        smallest = statistics.minimum_detectable_effect(config.task.n, discordance, personas)
        shows = "no effect" if smallest is None else f"{smallest:.3f} or more"
        facts[f"discordance {discordance:.2f}, {source}"] = f"{needed} questions needed; {config.task.n} show {shows}"
    return facts


def preflight_stability(config: StabilityConfig) -> dict[str, str]:
    """Facts about what is going to be asked, without a model. Raises ConfigError or DataError for what is wrong with it."""
    template_text(config.personas.template)
    strategy, (_, setup) = STRATEGIES[config.strategy], prepare_stability(config)
    check_model(config.model, contact=False)
    personas = f"{len(setup.pool)}, and none"
    if limits := build_stopping_rule(config):
        cells, most = len(first_round_cells(setup, limits)), max_cells(setup, limits)
        return {
            "questions": f"{len(setup.questions)} at most", "personas": personas,
            "cells": f"{cells} first, at most {most}, at most {most * config.sampling.max_new_tokens} new tokens",
        }  # fmt: skip
    cells, then = len(strategy.initial_cells(setup)), strategy.max_followups(setup)
    more = f", then at most {then}" if then else ""
    facts = {
        "questions": str(len(setup.questions)),
        "personas": personas,
        "cells": f"{cells}{more}, at most {(cells + then) * config.sampling.max_new_tokens} new tokens",
    }
    return facts if config.strategy == "none" else {"strategy": config.strategy} | facts


def prepare_stability(
    config: StabilityConfig, given_task: LoadedTask | None = None, given_pool: PersonaPool | None = None
) -> tuple[Task, EvalSetup]:
    """What is going to be asked. Raises ConfigError or DataError for everything that is wrong with it."""
    task, questions = load_questions(config.task) if given_task is None else (given_task.task, given_task.questions)
    pool = select_personas(config.personas) if given_pool is None else given_pool
    seen = trained_question_hashes(config.model, config.exclude_plans)
    check_contamination(questions, seen)
    choosing = load_selection_questions(config, questions, seen) if STRATEGIES[config.strategy].selects_persona else ()
    wording = PromptFormat(
        task.prompt, config.personas.template, config.personas.empty_system_prompt, require_distinct_templates(config.templates)
    )
    return task, EvalSetup(questions, pool, wording, config.samples, config.seed, choosing)


def require_distinct_templates(templates: Sequence[str]) -> tuple[str, ...]:
    """Raises ConfigError when one is no template, or two are the same in words."""
    texts = [template_text(one, "templates") for one in templates]
    for place, text in enumerate(texts):
        if text in texts[:place]:
            raise ConfigError(
                f"templates: {templates[place]!r} says the same as {templates[texts.index(text)]!r}; give each once"
            )
    return tuple(templates)


def stability_identity(config: StabilityConfig, task: Task, model: Model) -> dict[str, Any]:
    """What all records of a run have in common."""
    plain = grid_identity(config, task) | {
        "model": model.fingerprint,
        "default_system": None if config.personas.empty_system_prompt else model.default_system,
        "sampling": config.sampling.model_dump(),
    }
    return plain if config.strategy == "none" else plain | {"strategy": config.strategy}


def grid_identity(config: StabilityConfig, task: Task) -> dict[str, Any]:
    """What a grid asks, whichever model it asks and however that draws."""
    return {
        "task": task.name,
        "prompt": task.prompt_hash,
        "template": [template_hash(one) for one in config.templates] or template_hash(config.personas.template),
        "empty_system_prompt": config.personas.empty_system_prompt,
        "seed": config.seed,
    }


def _metrics_json(summary: StabilitySummary, run: Path, answers: GridResults) -> Mapping[str, Any]:
    """The summary's fields and, of a run with one, its strategy's under "strategy" and its templates' under "crossed"."""
    more = {"strategy": measure_strategy(run, answers), "crossed": measure_template_effects(run, answers)}
    return summary.model_dump(mode="json") | {name: one.model_dump(mode="json") for name, one in more.items() if one is not None}


def measure_template_effects(run: Path, answers: GridResults | None = None) -> TemplateEffects | None:
    """What several templates did, from a run's records; None for a run with one. `answers`: where they are read already."""
    reader = RunReader(run)
    config = reader.config
    if not config.get("templates"):
        return None
    answers = answers or read_grid_results(run)
    correct_P_Q_S, baseline_Q_S = persona_and_baseline_scores(answers)
    return summarize_template_effects(
        split_by_template(correct_P_Q_S, answers.templates), baseline_Q_S, reader.grid["templates"],
        seed=config["seed"], resamples=config["resamples"],
    )  # fmt: skip


def trained_question_hashes(model: ModelConfig, plans: Sequence[Path]) -> frozenset[str]:
    """Content hashes of the questions that the model, or any of the plans, was trained on."""
    seen = read_trained_on(Path(model.name)).question_hashes
    return seen.union(*({row.question_hash for row in read_plan(plan).rows} for plan in plans))


class StabilityGrid(NamedTuple):
    """Scores by cell: 1 right, 0 wrong, NaN not scored."""

    correct_P_Q_S: npt.NDArray[np.float64]
    baseline_Q_S: npt.NDArray[np.float64]
    persona_ids: tuple[str, ...]
    question_ids: tuple[str, ...]


def read_stability_grid(run: Path, answers: GridResults | None = None) -> StabilityGrid:
    """The scores of a run directory. Cells that were asked but have no record are there, unscored. `answers` as above."""
    answers = answers or read_grid_results(run)
    return StabilityGrid(*persona_and_baseline_scores(answers), answers.persona_ids, answers.question_ids)


def first_round_grid(run: Path, grid: StabilityGrid) -> StabilityGrid:
    """The questions that every persona was asked: of a run in rounds those of the first, of another all."""
    rounds = read_rounds(run)
    if not rounds:
        return grid
    correct, baseline, personas, questions = grid
    until = rounds[0].until
    return StabilityGrid(correct[:, :until], baseline[:until], personas, questions[:until])


def measure_stability(run: Path, answers: GridResults | None = None, resamples: int | None = None) -> StabilitySummary:
    """Every measure of a run, from its records. `answers` as above; `resamples`: not the run's own number of them."""
    config = RunReader(run).config
    correct, baseline, personas, _ = read_stability_grid(run, answers)
    seed, resamples = config["seed"], resamples or config["resamples"]
    if rounds := read_rounds(run):
        return summarize_rounds(correct, baseline, rounds, personas, seed=seed, resamples=resamples)
    return summarize_stability(correct, baseline, persona_ids=personas, seed=seed, resamples=resamples)
