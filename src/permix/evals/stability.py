"""`permix stability`: how much accuracy personas cost a model, and whether the difference is noise.

Asks every question under every persona and without one, keeps each cell, and measures from the records alone: `measure(run)`
gives the same numbers wherever the run directory is. With a strategy it asks what that strategy asks, and measures that too.

A sequential run on disk: its rounds stand in asked.json, and each is settled before it is asked.

So a run that was killed asks the rest of the round that it was in, then settles the next one as it would have done. A round goes
on while a completion is owed; one that came and could not be judged is left out, as everywhere.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from permix.config import ModelConfig, StabilityStage
from permix.errors import ConfigError, OwedCellsError
from permix.evals.grid import Answers, Wording, describe_asked, fill, note_seen_personas, read_answers, scores_of
from permix.evals.strategies import STRATEGIES, measure_strategy
from permix.evals.strategies.base import Setup, Strategy
from permix.evals.strategies.persona_search import choosing_questions
from permix.inference import open_model
from permix.inference.base import Model
from permix.inference.cache import cached
from permix.metrics import sequential, statistics
from permix.metrics.linear_models import CrossedSummary, by_template, summarize_crossed
from permix.metrics.sequential import Limits, Progress, Round, summarize_rounds
from permix.metrics.stability import StabilitySummary, summarize
from permix.metrics.statistics import sample_mean
from permix.personas.pool import choose_personas
from permix.plan import read_plan
from permix.progress import say
from permix.prompts import template_hash, template_text
from permix.storage.cells import briefs_of
from permix.storage.files import read_json, write_json
from permix.storage.run_dir import RunDir
from permix.tasks import load_questions
from permix.tasks.base import Task, verify
from permix.tasks.contamination import read_seen, refuse_overlap
from permix.types import Cell, digest
from permix.verification.math_verifier import Verifier

Answer = Callable[[Sequence[Cell], str], int]
"""(cells, what they are) -> how many of them are owed afterwards."""


class Asked(NamedTuple):
    """How many cells were asked, how many of them have no score; `undecided`: more would be asked, had these come."""

    owed: int
    cells: int
    undecided: bool = False


def limits_of(config: StabilityStage) -> Limits | None:
    """None for a run that asks its whole grid."""
    both = Limits(config.budget, config.precision)
    return None if both == Limits(None, None) else both


def in_drawn_order(setup: Setup) -> Setup:
    """The questions in an order that is drawn: a task may give them level by level, and then later rounds would be harder."""
    order = sorted(setup.questions, key=lambda question: digest("round", str(setup.seed), question.content_hash))
    return setup._replace(questions=tuple(order))


def refuse_other_rounds(run: Path, setup: Setup) -> None:
    """Raise ConfigError for a run that asked its whole grid, or whose rounds were of other personas, questions or samples."""
    if not (run / "asked.json").exists():
        return
    asked, rounds = read_json(run / "asked.json"), read_rounds(run)
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


def first_cells(setup: Setup, limits: Limits) -> list[Cell]:
    """The opening. Raises ConfigError when the budget does not reach for it."""
    one = _opening(setup)
    needed = sequential.spent([one], setup.samples)
    if limits.budget is not None and limits.budget < needed:
        raise ConfigError(
            f"budget = {limits.budget}: the first round asks {len(one.personas)} personas and none {one.until} questions each, "
            f"{needed} cells; give that or more, or fewer personas (personas.n)"
        )
    return _cells(setup, [one])


def most_cells(setup: Setup, limits: Limits) -> int:
    """What a run may come to."""
    whole = len(setup.questions) * (len(setup.pool) + 1) * setup.samples
    return whole if limits.budget is None else min(whole, limits.budget)


def ask_rounds(run: RunDir, setup: Setup, config: StabilityStage, limits: Limits, answer: Answer, what: str) -> Asked:
    """Round by round, to the end, or until a completion does not come. Questions are `in_drawn_order`."""
    rounds = read_rounds(run.path) or (_opening(setup),)
    while True:
        write_json(run.path / "asked.json", _describe(setup, rounds))
        cells = _cells(setup, rounds)
        owed = answer(cells, f"{what}, round {len(rounds)}")
        answers = read_answers(run.path)
        briefs = briefs_of(answers.cells)
        if not all(cell.key in briefs and briefs[cell.key].answered for cell in cells):
            return Asked(owed, len(cells))
        found = _progress(answers, rounds, config)
        say(f"round {len(rounds)}: {rounds[-1].until} questions, {len(cells)} cells; PSS {found.pss}")
        one = sequential.following(rounds, found, limits, questions=len(setup.questions), samples=setup.samples)
        if one is None:
            return Asked(owed, len(cells))
        rounds += (one,)


def read_rounds(run: Path) -> tuple[Round, ...]:
    """Empty for a run that asks its whole grid."""
    asked = run / "asked.json"
    return tuple(Round.model_validate(one) for one in read_json(asked).get("rounds", ())) if asked.exists() else ()


def _opening(setup: Setup) -> Round:
    return sequential.opening([persona.id for persona in setup.pool.personas], len(setup.questions))


def _cells(setup: Setup, rounds: Sequence[Round]) -> list[Cell]:
    cells, before = [], 0
    for one in rounds:
        asked = [persona for persona in setup.pool.personas if persona.id in one.personas]
        cells += setup.lay_out([None, *asked], setup.questions[before : one.until])
        before = one.until
    return cells


def _describe(setup: Setup, rounds: Sequence[Round]) -> dict[str, object]:
    asked = describe_asked(setup.pool.personas, setup.questions[: rounds[-1].until], setup.samples)
    return asked | {"rounds": [one.model_dump() for one in rounds]}


def _progress(answers: Answers, rounds: Sequence[Round], config: StabilityStage) -> Progress:
    mean_P_Q, baseline_Q = map(statistics.sample_mean, scores_of(answers))
    ids = answers.persona_ids
    found = sequential.measured(mean_P_Q, baseline_Q, rounds, ids, seed=config.seed, resamples=config.resamples)
    return sequential.progress(found, ids)


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
    level = f"level {statistics.LEVEL:g} (Holm), power {statistics.POWER:g}"
    about = f"{effect:g} against no persona, each of {personas} personas, {level}"
    grid = opening(config.out, grids(config.out)) if (config.out / "records.jsonl").exists() else None
    seen = None if grid is None else statistics.discordance(sample_mean(grid.correct_P_Q_S), sample_mean(grid.baseline_Q_S))
    facts = {"effect": about}
    for discordance, source in [(one, "assumed") for one in ASSUMED] if seen is None else [(seen, f"as in {config.out}")]:
        needed = statistics.questions_needed(effect, discordance, personas)
        smallest = statistics.smallest_effect(config.task.n, discordance, personas)
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
