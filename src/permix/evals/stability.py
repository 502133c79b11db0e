"""`permix stability`: how much accuracy personas cost a model, and whether the difference is noise.

Asks every question under every persona and without one, keeps each cell, and measures from the records alone: `measure(run)`
gives the same numbers wherever the run directory is. With a strategy it asks what that strategy asks, and measures that too.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from permix.baselines import STRATEGIES, Setup, Strategy, measure_strategy
from permix.baselines.persona_search import choosing_questions
from permix.config import ModelConfig, StabilityStage
from permix.errors import ConfigError, OwedCellsError
from permix.evals import power
from permix.evals.crossed import CrossedSummary, by_template, summarize_crossed
from permix.evals.grid import Answers, Wording, fill, note_seen_personas, read_answers, scores_of
from permix.evals.rounds import (
    Answer,
    Asked,
    ask_rounds,
    first_cells,
    in_drawn_order,
    limits_of,
    read_rounds,
    refuse_other_rounds,
)
from permix.evals.sequential import summarize_rounds
from permix.evals.stability_summary import StabilitySummary, summarize
from permix.evals.stats import sample_mean
from permix.models import Model, cached, open_model
from permix.personas.choose import choose_personas
from permix.prompting import template_hash, template_text
from permix.records import RunDir, read_json, write_json
from permix.tasks import Task, load_questions, refuse_overlap, verify
from permix.tasks.overlap import read_seen
from permix.train.plan import read_plan
from permix.types import Cell
from permix.verify import Verifier

__all__ = ["StabilityGrid", "StabilitySummary", "grids", "measure", "set_up", "stability", "summarize"]


def stability(config: StabilityStage) -> StabilitySummary:
    """Run, or go on with, an evaluation; writes metrics.json and returns what it says of the grid.

    Raises OwedCellsError at the end when cells have no score: run the same again to fill them.
    """
    task, setup = set_up(config)
    note_seen_personas(config.model, setup.pool)
    with cached(open_model(config.model, config.threads), config.cache, config.out) as model:
        return evaluate(model, config, task, setup)


def evaluate(model: Model, config: StabilityStage, task: Task, setup: Setup) -> StabilitySummary:
    """`stability` of a model that is there already, asked what was set up before."""
    strategy, limits = STRATEGIES[config.strategy], limits_of(config)
    if limits:
        setup = in_drawn_order(setup)
        refuse_other_rounds(config.out, setup)
    first = first_cells(setup, limits) if limits else strategy.first(setup)
    gains = ("strategy",) if strategy.asks_whole_grid else ()
    with RunDir.open(config.out, config, identity(config, task, model), first, gains) as run:
        what = f"stability {config.label or model.name}"
        with run.accounted(), Verifier() as verifier:

            def answer(cells: Sequence[Cell], what: str) -> int:
                return fill(model, cells, config.sampling, run, lambda text, gold: verify(task, text, gold, verifier), what)

            if limits:
                asked = ask_rounds(run, setup, config, limits, answer, what)
            else:
                asked = _ask(run, setup, first, strategy, answer, (what, f"{what}, {config.strategy}"))
        missing = f"{config.out}: {asked.owed} of {asked.cells} cells have no score; run the same command again to fill them"
        if asked.undecided:
            raise OwedCellsError(f"{missing}; no persona can be chosen before")
        answers = read_answers(run.path)
        summary = measure(run.path, answers)
        write_json(run.path / "metrics.json", _metrics(summary, run.path, answers))
    if asked.owed:
        raise OwedCellsError(missing)
    return summary


def _ask(run: RunDir, setup: Setup, first: Sequence[Cell], strategy: Strategy, answer: Answer, names: tuple[str, str]) -> Asked:
    """What the strategy asks at once, and then in the light of it; `names` of both."""
    write_json(run.path / "asked.json", strategy.describe(setup, ()))
    owed = answer(first, names[0])
    then = strategy.then(setup, run.cells())
    if then:
        write_json(run.path / "asked.json", strategy.describe(setup, then))
        owed += answer(then, names[1])
    return Asked(owed, len(first) + len(then), undecided=strategy.chooses and not then)


ASSUMED = (0.1, 0.2, 0.3, 0.5)
"""Discordances for which a grid is planned that has not been asked yet."""


def plan_power(config: StabilityStage) -> dict[str, str]:
    """How many questions show an effect of `config.plan_power`, and what `config.task.n` questions show; asks no model.

    By the discordance that the run directory has seen; for several assumed ones where there is no run yet.
    """
    assert config.plan_power is not None
    effect, personas = config.plan_power, len(choose_personas(config.personas))
    about = f"{effect:g} against no persona, each of {personas} personas, level {power.LEVEL:g} (Holm), power {power.POWER:g}"
    grid = opening(config.out, grids(config.out)) if (config.out / "records.jsonl").exists() else None
    seen = None if grid is None else power.discordance(sample_mean(grid.correct_P_Q_S), sample_mean(grid.baseline_Q_S))
    facts = {"effect": about}
    for discordance, source in [(one, "assumed") for one in ASSUMED] if seen is None else [(seen, f"as in {config.out}")]:
        needed = power.questions_needed(effect, discordance, personas)
        smallest = power.smallest_effect(config.task.n, discordance, personas)
        shows = "no effect" if smallest is None else f"{smallest:.3f} or more"
        facts[f"discordance {discordance:.2f}, {source}"] = f"{needed} questions needed; {config.task.n} show {shows}"
    return facts


def set_up(config: StabilityStage) -> tuple[Task, Setup]:
    """What is going to be asked. Raises ConfigError or DataError for everything that is wrong with it."""
    task, questions = load_questions(config.task)
    pool = choose_personas(config.personas)
    seen = seen_hashes(config.model, config.exclude_plans)
    refuse_overlap(questions, seen)
    choosing = choosing_questions(config, questions, seen) if STRATEGIES[config.strategy].chooses else ()
    wording = Wording(task.prompt, config.personas.template, config.personas.bare, crossed_templates(config.templates))
    return task, Setup(questions, pool, wording, config.samples, config.seed, choosing)


def crossed_templates(templates: Sequence[str]) -> tuple[str, ...]:
    """Raises ConfigError when one is no template, or two are the same in words."""
    texts = [template_text(one, "templates") for one in templates]
    for place, text in enumerate(texts):
        if text in texts[:place]:
            raise ConfigError(
                f"templates: {templates[place]!r} says the same as {templates[texts.index(text)]!r}; give each once"
            )
    return tuple(templates)


def identity(config: StabilityStage, task: Task, model: Model) -> dict[str, Any]:
    """What all records of a run have in common."""
    plain = asked_as(config, task) | {
        "model": model.fingerprint,
        "default_system": None if config.personas.bare else model.default_system,
        "sampling": config.sampling.model_dump(),
    }
    return plain if config.strategy == "none" else plain | {"strategy": config.strategy}


def asked_as(config: StabilityStage, task: Task) -> dict[str, Any]:
    """What a grid asks, whichever model it asks and however that draws."""
    return {
        "task": task.name,
        "prompt": task.prompt_hash,
        "template": [template_hash(one) for one in config.templates] or template_hash(config.personas.template),
        "bare": config.personas.bare,
        "seed": config.seed,
    }


def _metrics(summary: StabilitySummary, run: Path, answers: Answers) -> Mapping[str, Any]:
    """The summary's fields and, of a run with one, its strategy's under "strategy" and its templates' under "crossed"."""
    more = {"strategy": measure_strategy(run, answers), "crossed": measure_crossed(run, answers)}
    return summary.model_dump(mode="json") | {name: one.model_dump(mode="json") for name, one in more.items() if one is not None}


def measure_crossed(run: Path, answers: Answers | None = None) -> CrossedSummary | None:
    """What several templates did, from a run's records; None for a run with one. `answers`: where they are read already."""
    config = read_json(run / "config.json")
    if not config.get("templates"):
        return None
    answers = answers or read_answers(run)
    correct_P_Q_S, baseline_Q_S = scores_of(answers)
    return summarize_crossed(
        by_template(correct_P_Q_S, answers.templates), baseline_Q_S, read_json(run / "asked.json")["templates"],
        seed=config["seed"], resamples=config["resamples"],
    )  # fmt: skip


def seen_hashes(model: ModelConfig, plans: Sequence[Path]) -> frozenset[str]:
    """Content hashes of the questions that the model, or any of the plans, was trained on."""
    seen = read_seen(Path(model.name)).questions
    return seen.union(*({row.question_hash for row in read_plan(plan).rows} for plan in plans))


class StabilityGrid(NamedTuple):
    """Scores by cell: 1 right, 0 wrong, NaN not scored."""

    correct_P_Q_S: npt.NDArray[np.float64]
    baseline_Q_S: npt.NDArray[np.float64]
    persona_ids: tuple[str, ...]
    question_ids: tuple[str, ...]


def grids(run: Path, answers: Answers | None = None) -> StabilityGrid:
    """The scores of a run directory. Cells that were asked but have no record are there, unscored. `answers` as above."""
    answers = answers or read_answers(run)
    return StabilityGrid(*scores_of(answers), answers.persona_ids, answers.question_ids)


def opening(run: Path, grid: StabilityGrid) -> StabilityGrid:
    """The questions that every persona was asked: of a run in rounds those of the first, of another all."""
    rounds = read_rounds(run)
    if not rounds:
        return grid
    correct, baseline, personas, questions = grid
    until = rounds[0].until
    return StabilityGrid(correct[:, :until], baseline[:until], personas, questions[:until])


def measure(run: Path, answers: Answers | None = None, resamples: int | None = None) -> StabilitySummary:
    """Every measure of a run, from its records. `answers` as above; `resamples`: not the run's own number of them."""
    config = read_json(run / "config.json")
    correct, baseline, personas, _ = grids(run, answers)
    seed, resamples = config["seed"], resamples or config["resamples"]
    if rounds := read_rounds(run):
        return summarize_rounds(correct, baseline, rounds, personas, seed=seed, resamples=resamples)
    return summarize(correct, baseline, persona_ids=personas, seed=seed, resamples=resamples)
