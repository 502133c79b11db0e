"""`permix stability`: measure how much accuracy personas cost a model, and whether the difference is more than noise.

Asks every question with every persona and without one. With a strategy it also asks the cells of that strategy. A sequential run
(`budget` or `precision` is set) asks in rounds that a stopping rule ends.

Contract: measures are computed from the records alone, so `measure_stability(run)` gives the same numbers wherever the run
directory is. A round is written to grid.json before it is asked, so an interrupted run finishes its round and then decides on the
next round as it would have done without the interruption. A round is finished once all its completions exist; a completion that
could not be scored is left out of the measures.
"""

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from permix.config import ModelConfig, StabilityConfig
from permix.errors import ConfigError, DataError, IncompleteRunError, option_context
from permix.evals.grid import (
    GridResults,
    PromptFormat,
    count_cut_off,
    describe_grid,
    estimate_cells,
    open_evaluated_model,
    persona_and_baseline_scores,
    read_grid_results,
    run_cells,
)
from permix.evals.in_character import check_right_in_character, measure_right_in_character
from permix.evals.reference_runs import describe_reference
from permix.evals.shards import OwnPart, ShardCells, divide_cells, end_run, missing_text
from permix.evals.strategies import STRATEGIES, measure_strategy
from permix.evals.strategies.base import EvalSetup, Strategy, answer_comparison
from permix.evals.strategies.persona_search import load_selection_questions
from permix.inference import check_model
from permix.inference.addresses import check_addresses
from permix.inference.base import Model
from permix.metrics import sequential, statistics
from permix.metrics.linear_models import (
    ContextSummary,
    TemplateEffects,
    split_by_context,
    split_by_template,
    summarize_contexts,
    summarize_template_effects,
)
from permix.metrics.sequential import Round, SequentialProgress, StoppingRule, summarize_rounds
from permix.metrics.stability import StabilitySummary, summarize_stability
from permix.metrics.statistics import mean_over_samples
from permix.personas.pool import PersonaPool, select_personas, select_recorded_personas, warn_of_misfits
from permix.personas.recorded_turns import RecordedTurns, load_context_turns
from permix.plan import read_plan
from permix.progress import print_status
from permix.prompts import require_system_template, template_hash, template_text
from permix.storage.cells import CellIndex, cell_summaries, has_records, read_run_cells
from permix.storage.files import write_json
from permix.storage.run_dir import RunDir, RunReader, check_resumable
from permix.tasks import LoadedTask, load_selection
from permix.tasks.base import Task, answer_token_limit, check_contamination, read_trained_on, verify_completion
from permix.trackers import check_trackers, log_measures
from permix.types import Cell, count_text, digest
from permix.verification.math_verifier import VERIFIER_VERSION

CellRunner = Callable[[Sequence[Cell], str], int]
"""(cells, description) -> number of these cells that are pending afterwards."""


class GridProgress(NamedTuple):
    """Counts of cells. `pending` have no score; `selection_pending`: a strategy cannot choose its further cells without them."""

    pending: int
    n_cells: int
    selection_pending: bool = False


def run_stability(
    config: StabilityConfig, model: Model | None = None, task: LoadedTask | None = None, pool: PersonaPool | None = None
) -> StabilitySummary:
    """Start or resume a stability run; writes metrics.json and returns the stability measures.

    With `config.shard` only the cells of that part are asked; OtherShardsPendingError is raised, and no metrics.json written, if
    that part is finished and others are not.

    `model`, `task` and `pool` are Python objects that replace what the configuration names. Raises ConfigError or DataError if
    the configuration is invalid, and IncompleteRunError at the end if cells have no score; the same call tries them again.
    """
    prepared = prepare_stability(config, task, pool)
    with open_evaluated_model(config, prepared.setup.pool, model) as asked:
        limited = prepared.config if _gives_limit(config) else _limit_to_window(prepared.config, asked)
        return evaluate_setup(asked, limited, prepared.task, prepared.setup)


def _gives_limit(config: StabilityConfig) -> bool:
    return "max_new_tokens" in config.sampling.model_fields_set


def _limit_to_window(config: StabilityConfig, model: Model) -> StabilityConfig:
    """Lower the limit that the task gives to half of the model's context window, where it is known: the prompt needs room too."""
    window = getattr(model, "context_window", None)
    if window is None or config.sampling.max_new_tokens <= window // 2:
        return config
    print_status(
        f"note: sampling.max_new_tokens = {window // 2}, half of the model's context window, and not the task's own "
        f"{config.sampling.max_new_tokens}"
    )
    return config.model_copy(update={"sampling": config.sampling.model_copy(update={"max_new_tokens": window // 2})})


def evaluate_setup(model: Model, config: StabilityConfig, task: Task, setup: EvalSetup) -> StabilitySummary:
    """Like `run_stability`, for a model that is already loaded and a prepared setup."""
    strategy, stopping_rule = STRATEGIES[config.strategy], build_stopping_rule(config)
    if stopping_rule:
        setup = shuffle_questions(setup)
        check_same_rounds(config.out, setup)
    first = first_round_cells(setup, stopping_rule) if stopping_rule else strategy.initial_cells(setup)
    shard = config.worker_shard
    divided = None if shard is None else divide_cells(first, shard)
    gains = ("strategy",) if strategy.is_full_grid else ()
    identity, endpoint = stability_identity(config, task, model, setup.prompt_format.turns), check_addresses(model, config.out)
    own, grid_json = first if divided is None else divided.own, None if divided is None else strategy.describe_grid(setup, ())
    with RunDir.open(config.out, config, identity, own, gains, endpoints=[endpoint], shard=shard, grid=grid_json) as run:
        description = f"stability {config.label or model.name}"
        with run.track_usage():

            def answer(cells: Sequence[Cell], description: str) -> int:
                return run_cells(model, cells, config.sampling, run, partial(verify_completion, task), description)

            if divided is not None:
                progress = GridProgress(answer(own, f"{description}, shard {shard}"), len(own))
            elif stopping_rule:
                progress = run_rounds(run, setup, config, stopping_rule, answer, description)
            else:
                progress = _run_strategy(run, setup, first, strategy, answer, (description, f"{description}, {config.strategy}"))
        lacking = ", with or without a persona, have no score"
        missing = missing_text(run, model, progress.pending, progress.n_cells, "cells", lacking, scored=True)
        if progress.selection_pending:
            raise IncompleteRunError(f"{missing}; until then no persona can be chosen", progress.pending)
        part = None if divided is None else OwnPart(divided.shard, len(own), "cells", partial(_count_pending, divided, first))
        return end_run(run, model, progress.pending, missing, part, partial(_write_metrics, run.path, config, model))


def _write_metrics(run: Path, config: StabilityConfig, model: Model) -> StabilitySummary:
    results = read_grid_results(run)
    summary = measure_stability(run, results)
    metrics = dict(_metrics_json(summary, run, results)) | _in_character_json(config, run, results)
    write_json(run / "metrics.json", metrics)
    log_measures(config.report_to, run, config.label or model.name, metrics)
    return summary


def _count_pending(divided: ShardCells, grid: Sequence[Cell], recorded: CellIndex) -> Counter[int]:
    """The number of cells that have no completion, or no score, by part."""
    summaries = recorded.summaries
    return Counter(
        divided.number_of[cell.key]
        for cell in grid
        if not recorded.has_completion(cell.key) or (cell.gold is not None and summaries[cell.key].reward is None)
    )


def _run_strategy(
    run: RunDir,
    setup: EvalSetup,
    initial_cells: Sequence[Cell],
    strategy: Strategy,
    answer_cells: CellRunner,
    descriptions: tuple[str, str],
) -> GridProgress:
    """Ask the initial cells of a strategy, then the follow-up cells that depend on them; `descriptions` has one text for each."""
    # With the follow-up cells that are decided by the records: a finished run that is started again keeps its result.
    write_json(run.path / "grid.json", strategy.describe_grid(setup, strategy.followup_cells(setup, run.cells())))
    n_pending = answer_cells(initial_cells, descriptions[0])
    followups = strategy.followup_cells(setup, run.cells())
    if followups:
        write_json(run.path / "grid.json", strategy.describe_grid(setup, followups))
        n_pending += answer_cells(followups, descriptions[1])
    return GridProgress(
        n_pending, len(initial_cells) + len(followups), selection_pending=strategy.selects_persona and not followups
    )


def build_stopping_rule(config: StabilityConfig) -> StoppingRule | None:
    """The stopping rule of a sequential run; None if neither `budget` nor `precision` is set."""
    rule = StoppingRule(config.budget, config.precision)
    return None if rule == StoppingRule(None, None) else rule


def shuffle_questions(setup: EvalSetup) -> EvalSetup:
    """Shuffle the questions by seed: a task can list them by difficulty, and then later rounds would be harder."""
    order = sorted(setup.questions, key=lambda question: digest("round", str(setup.seed), question.content_hash))
    return setup._replace(questions=tuple(order))


def check_same_rounds(run: Path, setup: EvalSetup) -> None:
    """Raise ConfigError if the run asks its whole grid, or if its rounds have other personas, questions or samples."""
    grid, rounds = RunReader(run).grid, read_rounds(run)
    if not grid:
        return
    if not rounds:
        raise ConfigError(
            f"out = {run}: this run asks its whole grid; leave budget and precision out to resume it, or give another folder"
        )
    personas, questions = ([one.id for one in some] for some in (setup.pool.personas, setup.questions))
    checks = {
        "personas": list(rounds[0].personas) != personas,
        "task": grid["question_ids"] != questions[: rounds[-1].until],
        "samples": grid["samples"] != setup.samples,
    }
    if changed := [name for name, differs in checks.items() if differs]:
        raise ConfigError(
            f"{changed[0]}: differs from the earlier rounds of {run}; give the same {' and '.join(changed)} to resume it, "
            "leave budget and precision out to ask the whole grid, or give another folder"
        )


def first_round_cells(setup: EvalSetup, stopping_rule: StoppingRule) -> list[Cell]:
    """Cells of the first round. Raises ConfigError if the budget is smaller than the first round."""
    first = _first_round(setup)
    needed = sequential.count_cells([first], setup.samples)
    if stopping_rule.budget is not None and stopping_rule.budget < needed:
        raise ConfigError(
            f"budget = {stopping_rule.budget}: the first round has {needed} cells ({first.until} questions with each of "
            f"{len(first.personas)} personas and without a persona); give {needed} or more, or fewer personas (personas.n)"
        )
    return _cells_of_rounds(setup, [first])


def max_cells(setup: EvalSetup, stopping_rule: StoppingRule) -> int:
    """The maximum number of cells of a sequential run."""
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
    """Ask round by round until the stopping rule ends the run, or until a completion is missing.

    `setup` must come from `shuffle_questions`. grid.json is written before each round is asked.
    """
    rounds = read_rounds(run.path) or (_first_round(setup),)
    while True:
        write_json(run.path / "grid.json", _describe_rounds(setup, rounds))
        cells = _cells_of_rounds(setup, rounds)
        n_pending = answer_cells(cells, f"{description}, round {len(rounds)}")
        results = read_grid_results(run.path)
        summaries = cell_summaries(results.cells)
        if not all(cell.key in summaries and summaries[cell.key].has_completion for cell in cells):
            return GridProgress(n_pending, len(cells))
        progress = _measure_progress(results, rounds, config)
        print_status(f"round {len(rounds)}: {rounds[-1].until} questions, {len(cells)} cells; PSS {progress.pss}")
        following = sequential.next_round(
            rounds, progress, stopping_rule, n_questions=len(setup.questions), n_samples=setup.samples
        )
        if following is None:
            return GridProgress(n_pending, len(cells))
        rounds += (following,)


def read_rounds(run: Path) -> tuple[Round, ...]:
    """Read the rounds of a run from grid.json; empty if the run asks its whole grid."""
    return tuple(Round.model_validate(one) for one in RunReader(run).grid.get("rounds", ()))


def _first_round(setup: EvalSetup) -> Round:
    return sequential.first_round([persona.id for persona in setup.pool.personas], len(setup.questions))


def _cells_of_rounds(setup: EvalSetup, rounds: Sequence[Round]) -> list[Cell]:
    cells, start = [], 0
    for one in rounds:
        asked = [persona for persona in setup.pool.personas if persona.id in one.personas]
        cells += setup.build_grid([None, *asked], setup.questions[start : one.until])
        start = one.until
    return cells


def _describe_rounds(setup: EvalSetup, rounds: Sequence[Round]) -> dict[str, object]:
    grid_json = describe_grid(setup.pool.personas, setup.questions[: rounds[-1].until], setup.samples)
    return grid_json | {"rounds": [one.model_dump() for one in rounds]}


def _measure_progress(results: GridResults, rounds: Sequence[Round], config: StabilityConfig) -> SequentialProgress:
    mean_P_Q, baseline_Q = map(statistics.mean_over_samples, persona_and_baseline_scores(results))
    ids = results.persona_ids
    by_persona = sequential.measure_rounds(mean_P_Q, baseline_Q, rounds, ids, seed=config.seed, resamples=config.resamples)
    return sequential.sequential_progress(by_persona, ids)


ASSUMED_DISCORDANCES = (0.1, 0.2, 0.3, 0.5)
"""Discordances that `power_analysis` assumes if there is no run to measure it from."""

QUESTIONS_TO_COMPARE_MODELS = {
    "PSS": "340 to 430 questions",
    "sd of personas / mean": "190 to 360 questions, about 500 if one persona alone differs",
}
"""Questions at which the test of a difference of 20 % in PSS between two models has a power of .8, by the measure tested.

Source: simulation with 8 and 16 personas by bench/power.py; its table is in docs/measures.md.
"""


def power_analysis(config: StabilityConfig) -> dict[str, str]:
    """Number of questions that detect an effect of `config.plan_power`, and the effect that the configuration's questions detect.

    Also the number of questions that a comparison of two models needs, by measure. Uses the discordance measured in the run
    directory, or `ASSUMED_DISCORDANCES` if there is no run. Calls no model.
    """
    assert config.plan_power is not None
    effect, personas = config.plan_power, len(select_personas(config.personas))
    n = len(load_selection(config.task).questions) if config.task.reads_own_file else config.task.n
    level = f"level {statistics.SIGNIFICANCE_LEVEL:g} (Holm), power {statistics.TARGET_POWER:g}"
    effect_text = f"{effect:g} against no persona, each of {count_text(personas, 'persona')}, {level}"
    grid = first_round_grid(config.out, read_stability_grid(config.out)) if has_records(config.out) else None
    measured = (
        None
        if grid is None
        else statistics.discordance(mean_over_samples(grid.correct_P_Q_S), mean_over_samples(grid.baseline_Q_S))
    )
    facts = {"effect": effect_text}
    for discordance, source in (
        [(one, "assumed") for one in ASSUMED_DISCORDANCES] if measured is None else [(measured, f"as in {config.out}")]
    ):
        needed = statistics.required_questions(effect, discordance, personas)
        smallest = statistics.minimum_detectable_effect(n, discordance, personas)
        shows = "no effect" if smallest is None else f"{smallest:.3f} or more"
        facts[f"discordance {discordance:.2f}, {source}"] = f"{needed} questions needed; {n} show {shows}"
    facts |= {
        f"two models, PSS 20 % apart, test of {measure}": f"{needed_text} (simulated)"
        for measure, needed_text in QUESTIONS_TO_COMPARE_MODELS.items()
    }
    facts["two methods of several training seeds"] = "permix power RUN ... plans questions and seeds, from pilot runs of both"
    return facts


def preflight_stability(config: StabilityConfig) -> dict[str, str]:
    """Facts about the run without calling a model. Raises ConfigError or DataError if the configuration is invalid."""
    template_text(config.personas.template)
    strategy, gives_limit = STRATEGIES[config.strategy], _gives_limit(config)
    config, task, setup = prepare_stability(config)
    gains = ("strategy",) if strategy.is_full_grid else ()
    check_model(config.model, contact=False)
    check_resumable(config.out, config, _known_identity(config, task, setup, gives_limit=gives_limit), gains)
    facts = {"questions": str(len(setup.questions)), "personas": f"{len(setup.pool)}, and no persona"}
    if (shard := config.worker_shard) is not None:
        grid = strategy.initial_cells(setup)
        cells, n_later = divide_cells(grid, shard).own, 0
        facts |= {"cells": str(len(grid)), "shard": f"{shard}, {len(cells)} of {len(grid)} cells"}
    elif stopping_rule := build_stopping_rule(config):
        setup = shuffle_questions(setup)
        check_same_rounds(config.out, setup)
        cells, maximum = first_round_cells(setup, stopping_rule), max_cells(setup, stopping_rule)
        facts |= {"questions": f"{facts['questions']} at most", "cells": f"{len(cells)} first, at most {maximum}"}
        if rounds := read_rounds(config.out):  # the cells of all rounds that are decided
            cells = _cells_of_rounds(setup, rounds)
        n_later = max(0, maximum - len(cells))
    else:
        cells, n_later = strategy.initial_cells(setup), strategy.max_followups(setup)
        facts |= {"cells": f"{len(cells)}" + (f", then at most {n_later}" if n_later else "")}
        if n_later:  # those that the recorded answers decide
            decided = strategy.followup_cells(setup, read_run_cells(config.out))
            cells, n_later = [*cells, *decided], max(0, n_later - len(decided))
    strategy_fact = {} if config.strategy == "none" else {"strategy": config.strategy}
    return strategy_fact | facts | estimate_cells("stability", config, cells, n_later)


class MostCells(NamedTuple):
    """The most cells that a run without a shard asks, and the most new tokens of a completion."""

    n_cells: int
    max_new_tokens: int


def count_most_cells(config: StabilityConfig) -> MostCells:
    """Count without calling a model. Raises as `prepare_stability` does."""
    strategy, (config, _, setup) = STRATEGIES[config.strategy], prepare_stability(config)
    rule = build_stopping_rule(config)
    most = max_cells(setup, rule) if rule else len(strategy.initial_cells(setup)) + strategy.max_followups(setup)
    return MostCells(most, config.sampling.max_new_tokens)


class PreparedStability(NamedTuple):
    """What a run asks. `config` states what depends on the data (`permix.config.DEFAULTS_FROM_DATA`), also what was not given."""

    config: StabilityConfig
    task: Task
    setup: EvalSetup


def prepare_stability(
    config: StabilityConfig, given_task: LoadedTask | None = None, given_pool: PersonaPool | None = None
) -> PreparedStability:
    """Load task, questions and personas. Raises ConfigError or DataError if the configuration or the data are invalid."""
    check_trackers(config.report_to, "report_to")
    trained_hashes = trained_question_hashes(config.model, config.exclude_plans)
    loaded = _load_asked_questions(config, trained_hashes) if given_task is None else given_task
    personas, pool = (
        select_recorded_personas(config.personas, read_trained_on(Path(config.model.name)).persona_ids)
        if given_pool is None
        else (config.personas, given_pool)
    )
    config = config.model_copy(update={"task": loaded.config, "personas": personas})
    if not _gives_limit(config):
        limit = answer_token_limit(loaded.task, config.model.thinking, config.model.thinking_budget)
        config = config.model_copy(update={"sampling": config.sampling.model_copy(update={"max_new_tokens": limit})})
    task, questions = loaded.task, loaded.questions
    check_contamination(questions, trained_hashes)
    selection_questions = (
        load_selection_questions(config, questions, trained_hashes) if STRATEGIES[config.strategy].selects_persona else ()
    )
    prompt_format = PromptFormat(
        task.prompt,
        config.personas.template,
        config.personas.empty_system_prompt,
        require_distinct_templates(config.templates),
        config.contexts,
        _load_turns(config, pool),
    )
    warn_of_misfits(pool, config.templates or [config.personas.template])
    compare_answers = answer_comparison(config.task.name)
    setup = EvalSetup(questions, pool, prompt_format, config.samples, config.seed, selection_questions, compare_answers)
    if config.right_in_character:
        check_right_in_character(config, setup)
    return PreparedStability(config, task, setup)


def _load_turns(config: StabilityConfig, pool: PersonaPool) -> RecordedTurns | None:
    """The recorded turns of the contexts. Raises ConfigError for a template that does not go with contexts."""
    if config.contexts:
        for template in config.templates or [config.personas.template]:
            require_system_template(template, "contexts")
    return load_context_turns(config.contexts, config.context_turns, pool.personas, config.personas)


def _load_asked_questions(config: StabilityConfig, trained_hashes: Collection[str]) -> LoadedTask:
    """The task and its questions. Of your own file without splits all are asked by default, or the heldout ones if a strategy
    chooses a persona by the dev questions, or if the model was trained on some of the questions.
    """
    asked = config.task
    if "split" in asked.model_fields_set:
        return load_selection(asked)
    heldout = asked.model_copy(update={"split": "heldout"})
    if STRATEGIES[config.strategy].selects_persona:
        return load_selection(heldout)
    loaded = load_selection(asked)
    if loaded.config.split != "all":
        return loaded
    trained = sum(question.content_hash in trained_hashes for question in loaded.questions)
    if not trained:
        return loaded
    print_status(
        f"note: {trained} of the {len(loaded.questions)} questions of {asked.path} were seen in training, so those of the split "
        'heldout are asked; task.split = "all" asks all'
    )
    return load_selection(heldout)


def require_distinct_templates(templates: Sequence[str]) -> tuple[str, ...]:
    """The templates. Raises ConfigError if one is invalid or two have the same text."""
    texts = [template_text(one, "templates") for one in templates]
    for place, text in enumerate(texts):
        if text in texts[:place]:
            raise ConfigError(
                f"templates: {templates[place]!r} has the same text as {templates[texts.index(text)]!r}; give each text once"
            )
    return tuple(templates)


def stability_identity(config: StabilityConfig, task: Task, model: Model, turns: RecordedTurns | None = None) -> dict[str, Any]:
    """The identity of a run: the settings that all its cells share, and the hash of the recorded turns of its contexts."""
    contexts = {"contexts": list(config.contexts)} if config.contexts else {}
    plain = (
        grid_identity(config, task)
        | contexts
        | ({} if turns is None else {"context_turns": turns.content_hash})
        | {
            "model": model.fingerprint,
            "default_system": None if config.personas.empty_system_prompt else model.default_system,
            "sampling": config.sampling.model_dump(),
        }
    )
    return plain if config.strategy == "none" else plain | {"strategy": config.strategy}


def _known_identity(config: StabilityConfig, task: Task, setup: EvalSetup, *, gives_limit: bool) -> dict[str, Any]:
    """The part of the identity that needs no model. A limit that is not given may be lowered to the model's window."""
    turns = setup.prompt_format.turns
    known = grid_identity(config, task) | ({} if turns is None else {"context_turns": turns.content_hash})
    known["sampling"] = config.sampling.model_dump(exclude=set() if gives_limit else {"max_new_tokens"})
    if config.contexts:
        known["contexts"] = list(config.contexts)
    return known if config.strategy == "none" else known | {"strategy": config.strategy}


def grid_identity(config: StabilityConfig, task: Task) -> dict[str, Any]:
    """The part of the identity that does not depend on model and sampling."""
    return {
        "task": task.name,
        **({} if task.source is None else {"task_source": task.source}),
        "prompt": task.prompt_hash,
        "verifier": VERIFIER_VERSION,
        "template": [template_hash(one) for one in config.templates] or template_hash(config.personas.template),
        "empty_system_prompt": config.personas.empty_system_prompt,
        "seed": config.seed,
    }


def _metrics_json(summary: StabilitySummary, run: Path, results: GridResults) -> Mapping[str, Any]:
    """Content of metrics.json: stability measures; "pss_reason", why PSS has no value, only then; counts of answers that were cut
    off ("cut_off"); measures of a strategy ("strategy"), of several templates ("crossed") and of each context ("contexts").
    """
    additional = {"strategy": measure_strategy(run, results), "crossed": measure_template_effects(run, results)}
    contexts = measure_contexts(run, results)
    cut_off = {"cut_off": count_cut_off(results).model_dump(mode="json")}
    reason = {} if summary.pss_reason is None else {"pss_reason": summary.pss_reason}
    return (
        summary.model_dump(mode="json")
        | reason
        | cut_off
        | {name: one.model_dump(mode="json") for name, one in additional.items() if one is not None}
        | ({"contexts": {one.id: one.model_dump(mode="json") for one in contexts}} if contexts else {})
    )


def _in_character_json(config: StabilityConfig, run: Path, results: GridResults) -> dict[str, Any]:
    """Part of metrics.json: "right_in_character", or why it could not be measured ("right_in_character_reason")."""
    if not config.right_in_character:
        return {}
    try:
        found = measure_right_in_character(run, config.character_reference, results)
    except DataError as error:
        return {"right_in_character_reason": str(error)}
    return {"right_in_character": found.model_dump(mode="json")} | describe_reference(run, "character_reference")


def measure_template_effects(run: Path, results: GridResults | None = None) -> TemplateEffects | None:
    """Measure the effects of several templates from a run's records; None for a run with a single template.

    `results`: those of `read_grid_results(run)`, if the caller has them already.
    """
    reader = RunReader(run)
    config = reader.config
    if not config.get("templates"):
        return None
    results = results or read_grid_results(run)
    correct_P_Q_S, baseline_Q_S = persona_and_baseline_scores(results)
    return summarize_template_effects(
        split_by_template(correct_P_Q_S, results.templates), baseline_Q_S, reader.grid["templates"],
        seed=config["seed"], resamples=config["resamples"],
    )  # fmt: skip


def measure_contexts(run: Path, results: GridResults | None = None) -> tuple[ContextSummary, ...]:
    """Measure the stability in each context from a run's records; empty for a run without contexts. `results` as in
    `measure_template_effects`."""
    config, grids = RunReader(run).config, read_context_grids(run, results)
    if not grids:
        return ()
    correct_X_P_Q_S, baselines_X_Q_S = zip(*((one.correct_P_Q_S, one.baseline_Q_S) for one in grids.values()), strict=True)
    return summarize_contexts(
        correct_X_P_Q_S, baselines_X_Q_S[0], tuple(grids), seed=config["seed"], resamples=config["resamples"]
    )


def read_context_grids(run: Path, results: GridResults | None = None) -> dict[str, "StabilityGrid"]:
    """Read the scores of a run by context; empty for a run without contexts. `results` as in `measure_template_effects`.

    All contexts have the same baseline. With several templates axis S holds the samples of each template in turn.
    """
    results = results or read_grid_results(run)
    if results.contexts == ("",):
        return {}
    grid = read_stability_grid(run, results)
    correct_X_P_Q_S = split_by_context(grid.correct_P_Q_S, len(results.templates), results.contexts)
    return {
        context: grid._replace(correct_P_Q_S=correct_P_Q_S)
        for context, correct_P_Q_S in zip(results.contexts, correct_X_P_Q_S, strict=True)
    }


def trained_question_hashes(model: ModelConfig, plans: Sequence[Path]) -> frozenset[str]:
    """Content hashes of the questions in the model's training data and in the plans."""
    seen = read_trained_on(Path(model.name)).question_hashes
    for path in plans:
        with option_context("exclude_plans", path):
            seen |= {row.question_hash for row in read_plan(path).rows}
    return seen


class StabilityGrid(NamedTuple):
    """Scores with personas (P, Q, S) and without (Q, S): 1 right, 0 wrong, NaN without a score."""

    correct_P_Q_S: npt.NDArray[np.float64]
    baseline_Q_S: npt.NDArray[np.float64]
    persona_ids: tuple[str, ...]
    question_ids: tuple[str, ...]


def read_stability_grid(run: Path, results: GridResults | None = None) -> StabilityGrid:
    """Read the scores of a run; NaN if a cell has no record. `results` as in `measure_template_effects`."""
    results = results or read_grid_results(run)
    return StabilityGrid(*persona_and_baseline_scores(results), results.persona_ids, results.question_ids)


def first_round_grid(run: Path, grid: StabilityGrid) -> StabilityGrid:
    """Restrict the grid to questions that every persona was asked: in a sequential run, the questions of the first round."""
    rounds = read_rounds(run)
    if not rounds:
        return grid
    correct, baseline, personas, questions = grid
    until = rounds[0].until
    return StabilityGrid(correct[:, :until], baseline[:until], personas, questions[:until])


def measure_stability(run: Path, results: GridResults | None = None, resamples: int | None = None) -> StabilitySummary:
    """Compute every measure of a stability run from its records.

    `results` as in `measure_template_effects`; `resamples` replaces the number in the run's configuration.
    """
    config = RunReader(run).config
    correct, baseline, personas, _ = read_stability_grid(run, results)
    if not correct.size:
        raise DataError(f"{run}: has no cell of a persona, neither in grid.json nor in records.jsonl, so nothing can be measured")
    seed, resamples = config["seed"], resamples or config["resamples"]
    if rounds := read_rounds(run):
        return summarize_rounds(correct, baseline, rounds, personas, seed=seed, resamples=resamples)
    return summarize_stability(correct, baseline, persona_ids=personas, seed=seed, resamples=resamples)
