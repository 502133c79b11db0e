"""`permix judge`: the answers of a fidelity run, judged.

Writes RUN/judges/NAME/ and nothing else in the run: config.json, provenance.json, inputs.json (its rubrics, and how many answers
each control has), usage.json, judgements.jsonl (one call a line) and metrics.json. Answers are read, never generated, so judging
can be done on another day, by any number of judges, and again.

`permix fidelity`: answers of a model in character, of one of three kinds, and what is measured of them without a judge.

open         questions that all personas share            `open_ended.py`
personagym   PersonaGym's questions, each persona its own  `personagym.py`
interview    a conversation with each persona              `interview.py`
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

from permix.config import FidelityConfig, JudgeConfig, JudgeModelConfig, PersonaGymTask
from permix.errors import ConfigError, DataError, MissingScoresError, error_context
from permix.evals.fidelity_records import read_expected_cells
from permix.evals.interview import preflight_interview, run_interview
from permix.evals.open_ended import preflight_open_ended, run_open_ended
from permix.evals.personagym import preflight_personagym, run_personagym
from permix.inference import check_model, load_model
from permix.inference.base import Model
from permix.judges.pricing import Price, load_judge_price
from permix.judges.prompts import (
    ExamplesByQuestion,
    JudgePrompt,
    Rubric,
    build_judge_prompt,
    judge_reply_schema,
    judge_template_hash,
    load_rubrics,
    read_score_examples,
    score_examples_hash,
)
from permix.judges.results import JUDGE_INPUTS_FILE, count_answers, describe_judge_inputs, judge_by_rubrics, read_judge_inputs
from permix.judges.runner import CallSettings, CallTotals, judge_folder, max_total_cost, request_pending_scores
from permix.judges.summary import measure_judge
from permix.judges.types import IN_CHARACTER, JudgeInput
from permix.judges.validation import build_control_inputs
from permix.personas.pool import PersonaPool
from permix.progress import print_status
from permix.prompts import template_text
from permix.storage.files import write_json
from permix.storage.run_dir import RunDir, RunReader
from permix.types import Question, Record, Sampling


class JudgeSetup(NamedTuple):
    """What a judge judges by, and at what price."""

    rubrics: dict[str, Rubric]
    examples: ExamplesByQuestion
    price: Price | None

    @property
    def discriminates_personas(self) -> dict[str, bool]:
        return {name: rubric.discriminates_personas for name, rubric in self.rubrics.items()}


def judge_fidelity_run(config: JudgeConfig, given_model: Model | None = None) -> None:
    """Judge, or go on judging, every answer of the run and the controls; nothing is generated anew.

    `given_model`: a judge made in Python, in place of the one that the configuration names.
    Raises ConfigError or DataError before anything is asked; OwedScoresError, with metrics.json written, when scores are missing.
    """
    named = _with_label(config)
    means, prompts = prepare_judging(named)
    folder = judge_folder(named.run, _judge_label(named.judge))
    with error_context("judge"):
        model = load_model(named.judge, named.threads) if given_model is None else given_model
        identity = _judge_identity(named, means, model)
    with RunDir.open(folder, named, identity) as run:
        inputs = [prompt.judge_input for prompt in prompts]
        write_json(folder / JUDGE_INPUTS_FILE, describe_judge_inputs(means.discriminates_personas, inputs))
        with run.track_usage(), error_context("judge"):
            outcome = request_pending_scores(
                model, prompts, folder, build_call_settings(named, means.price), f"judge {_judge_label(named.judge)}"
            )
        print_status(f"judge {_judge_label(named.judge)}: {_totals_text(outcome)}")
        _print_missing(named.run, count_answers(inputs))
        _write_metrics(named, folder, pending=outcome.n_pending)
    _require_all_scored(outcome, named, folder)


def preflight_judging(config: JudgeConfig) -> dict[str, str]:
    """Facts about what a judge is going to be asked, and its cost. Raises ConfigError or DataError for what is wrong with it."""
    setup, prompts = prepare_judging(config)
    with error_context("judge"):
        check_model(config.judge, contact=False)
    inputs = [prompt.judge_input for prompt in prompts]
    controls, answers = sum(one.control != "none" for one in inputs), count_answers(inputs)
    most = max_total_cost(prompts, build_call_settings(config, setup.price))
    return {
        "answers": str(answers) if answers == len(prompts) - controls else f"{answers}, by {len(setup.rubrics)} rubrics",
        "answers to try the judge": str(controls),
        "calls": f"{len(prompts)}, at most {len(prompts) * config.judge.max_new_tokens} new tokens",
        "cost": "unknown: no price" if most is None else f"at most {most:.4f} US dollars where each is answered at once",
    }  # fmt: skip


def _judge_config_for(config: FidelityConfig) -> JudgeConfig:
    """The judging that a fidelity run ends with."""
    return JudgeConfig(run=config.out, judge=config.judge, threads=config.threads, seed=config.seed, resamples=config.resamples)


def required_rubrics(config: FidelityConfig) -> Collection[str]:
    """The rubrics of the questions that a fidelity run asks."""
    return config.personagym.tasks or get_args(PersonaGymTask) if config.kind == "personagym" else (IN_CHARACTER,)


def prepare_judging(config: JudgeConfig) -> tuple[JudgeSetup, list[JudgePrompt]]:
    """All that a judge is going to be asked, in order: what calls share stands together, for endpoints that read it once.

    Raises ConfigError or DataError for whatever can be found wrong without asking.
    """
    if config.judge.name == "none":
        raise ConfigError('judge.name = "none": say who judges: a model folder, a hub id, or the name that an endpoint serves')
    stage = RunReader(config.run).config.get("stage")
    if stage != "fidelity":
        raise DataError(f"run = {config.run}: is a run of permix {stage}; only answers of permix fidelity can be judged")
    answers = read_judge_inputs(config.run)
    if not answers:
        raise DataError(f"run = {config.run}: holds no answer that could be judged")
    means = load_judge_setup(config.judge, {item.rubric for item in answers})
    items = judge_by_rubrics(answers, means.rubrics)
    items += build_control_inputs(items, config.judge.answers_per_control, config.seed, means.discriminates_personas)
    _check_examples_complete(items, means.examples, config.judge)
    prompts = [
        build_judge_prompt(item, means.rubrics[item.rubric], means.examples, reasons=config.judge.reasons, seed=config.seed)
        for item in sorted(items, key=_sort_key)
    ]
    return means, prompts


def load_judge_setup(judge: JudgeModelConfig, own_rubrics: Collection[str]) -> JudgeSetup:
    """`own_rubrics`: of the questions that were asked, see `load_rubrics`.

    Raises ConfigError or DataError for rubrics, examples or prices that cannot be used.
    """
    examples = {} if judge.examples is None else read_score_examples(judge.examples)
    return JudgeSetup(load_rubrics(judge.rubrics, own_rubrics), examples, load_judge_price(judge))


def _check_judge_usable(config: FidelityConfig) -> None:
    """Raises ConfigError or DataError for a judge that could not judge the answers of a run, before there are any.

    An endpoint is asked what it serves. Which questions examples are needed for is known once these are chosen.
    """
    load_judge_setup(config.judge, required_rubrics(config))
    with error_context("judge"):
        check_model(config.judge, contact=True)


def build_call_settings(config: JudgeConfig, price: Price | None) -> CallSettings:
    judge = config.judge
    return CallSettings(
        Sampling(temperature=judge.temperature, max_new_tokens=judge.max_new_tokens),
        judge_reply_schema(judge.reasons), config.seed, judge.attempts, price, judge.max_cost, judge.retries + 1,
    )  # fmt: skip


def _judge_label(judge: JudgeModelConfig) -> str:
    return judge.label or judge.name


def _with_label(config: JudgeConfig) -> JudgeConfig:
    """With the label that the judge goes by, for whoever reads config.json."""
    return config.model_copy(update={"judge": config.judge.model_copy(update={"label": _judge_label(config.judge)})})


def _judge_identity(config: JudgeConfig, judge_setup: JudgeSetup, model: Model) -> dict[str, Any]:
    return {
        "judge": model.fingerprint,
        "rubrics": judge_template_hash(judge_setup.rubrics, config.judge.reasons),
        "reasons": config.judge.reasons,
        "examples": score_examples_hash(judge_setup.examples),
        "sampling": build_call_settings(config, judge_setup.price).sampling.model_dump(),
        "seed": config.seed,
    }


def _sort_key(item: JudgeInput) -> tuple[str, ...]:
    return (item.rubric, item.persona_id, item.question_id, str(item.sample), item.control, item.answered_by or "")


def _check_examples_complete(items: Collection[JudgeInput], examples: ExamplesByQuestion, judge: JudgeModelConfig) -> None:
    missing = {item.question_id for item in items} - set(examples) if examples else set()
    if missing:
        raise DataError(
            f"judge.examples = {judge.examples}: has none for {len(missing)} of the questions whose answers are judged, such as "
            f"{min(missing)!r}; give a file with all of them, or none"
        )


def _write_metrics(config: JudgeConfig, folder: Path, *, pending: int) -> None:
    try:
        write_json(folder / "metrics.json", measure_judge(config.run, folder, seed=config.seed, resamples=config.resamples))
    except DataError:
        if not pending:  # else it is the missing scores that are to be told of
            raise


def _print_missing(run: Path, n_present: int) -> None:
    asked = read_expected_cells(RunReader(run)).n_with_persona or 0
    if (missing := asked - n_present) > 0:
        print_status(f"note: {missing} of {asked} answers of {run} are missing and were not judged; permix fidelity fills them")


def _totals_text(totals: CallTotals) -> str:
    paid = "cost unknown" if totals.cost is None else f"{totals.cost:.4f} US dollars"
    tokens = f"{totals.prompt_tokens} tokens read and {totals.completion_tokens} written"
    return f"{totals.n_inputs - totals.n_pending} of {totals.n_inputs} scored; {totals.n_calls} calls so far, {tokens}, {paid}"


def _require_all_scored(totals: CallTotals, config: JudgeConfig, folder: Path) -> None:
    if not totals.n_pending:
        return
    missing = f"{totals.n_pending} of {totals.n_inputs} have no score"
    if totals.next_cost is not None:
        raise MissingScoresError(
            f"{folder}: stopped before judge.max_cost = {config.judge.max_cost:g} US dollars: {totals.spent:.6f} are spent "
            f"or may have been, and "
            f"the next call may cost {totals.next_cost:.6f}; {missing}; run the same command with a higher limit to go on"
        )
    raise MissingScoresError(f"{folder}: {missing}; run the same command again to ask for them")


FIDELITY_PREFLIGHTS: Mapping[str, Callable[[FidelityConfig], dict[str, str]]] = {
    "open": preflight_open_ended,
    "personagym": preflight_personagym,
    "interview": preflight_interview,
}
"""Each gives the facts about what an evaluation of one kind is going to ask, without a model."""


def preflight_fidelity(config: FidelityConfig) -> dict[str, str]:
    """Facts about what is going to be asked, without a model. Raises ConfigError or DataError for what is wrong with it."""
    template_text(config.personas.template)
    check_model(config.model, contact=False)
    if config.judge.name != "none":
        load_judge_setup(config.judge, required_rubrics(config))
        with error_context("judge"):
            check_model(config.judge, contact=False)
    return FIDELITY_PREFLIGHTS[config.kind](config)


def run_fidelity(
    config: FidelityConfig,
    model: Model | None = None,
    pool: PersonaPool | None = None,
    questions: Sequence[Question] | None = None,
) -> Record:
    """Run, or go on with, an evaluation; writes metrics.json and returns it.

    `model`, `pool`, `questions`: what was made in Python, in place of what the configuration names. With a judge, the answers are
    judged once all are there. Raises IncompleteRunError when answers are missing, MissingScoresError when only scores are,
    DataError when there are too few answers to measure, and ConfigError, before anything is asked, for a judge that could not
    judge, or for personas or questions beside a kind that brings its own.
    """
    judged = config.judge.name != "none"
    if judged:
        _check_judge_usable(config)
    result = _run_kind(config, model, pool, questions)
    if judged:
        judge_fidelity_run(_judge_config_for(config))
    return result


def _run_kind(
    config: FidelityConfig, model: Model | None, pool: PersonaPool | None, questions: Sequence[Question] | None
) -> Record:
    """The result of an evaluation of one kind, which is also what its metrics.json holds."""
    if questions is not None and config.kind != "open":
        raise ConfigError(f"questions: {config.kind} asks questions of its own; leave them out")
    if config.kind == "interview":
        return run_interview(config, model, pool)
    if config.kind == "open":
        return run_open_ended(config, model, pool, questions)
    if pool is not None:
        raise ConfigError("personas: personagym brings its own; leave them out")
    return run_personagym(config, model)
