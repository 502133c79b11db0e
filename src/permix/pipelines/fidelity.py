"""`permix fidelity`, with the judge that may score the answers at its end.

It has a model answer in character and computes the measures that need no judge. A run has one of three kinds:

open         questions that all personas share             `open_ended.py`
personagym   PersonaGym's questions, each persona its own  `personagym.py`
interview    a conversation with each persona              `interview.py`

If the configuration names a judge, `permix judge` (`judges/judging.py`) scores the answers at the end.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple, get_args

from permix.config import FidelityConfig, JudgeConfig, PersonaGymTask
from permix.errors import ConfigError, error_context
from permix.evals.fidelity_records import select_fidelity_personas
from permix.evals.interview import preflight_interview, run_interview
from permix.evals.open_ended import preflight_open_ended, run_open_ended
from permix.evals.personagym import preflight_personagym, run_personagym
from permix.inference import check_model, load_model
from permix.inference.addresses import check_addresses
from permix.inference.base import Model
from permix.judges.judging import JudgeSetup, judge_fidelity_run, judge_label, load_judge_setup
from permix.judges.runner import judge_folder
from permix.judges.types import IN_CHARACTER
from permix.judges.validation import N_ADDED_CONTROLS
from permix.personas.pool import PersonaPool
from permix.prompts import template_text
from permix.trackers import check_trackers
from permix.types import Question, Record


def run_fidelity(
    config: FidelityConfig,
    model: Model | None = None,
    pool: PersonaPool | None = None,
    questions: Sequence[Question] | None = None,
) -> Record:
    """Run or resume a fidelity evaluation, write metrics.json and return its content.

    With `config.shard` only that part is asked; OtherShardsPendingError is raised if it is finished and others are not.

    `model`, `pool`, `questions`: objects made in Python, used instead of those that the configuration names. A judge, if the
    configuration names one, scores the answers when all of them are there.

    Raises IncompleteRunError if answers are missing, MissingScoresError if only scores are missing, and DataError if there are
    too few answers to measure. Raises ConfigError, before the model is asked, for a judge that cannot be used, and for personas
    or questions that a kind of run with its own personas or questions cannot use.
    """
    check_trackers(config.report_to, "report_to")
    has_judge = config.judge.name != "none"
    if has_judge:
        _check_judge_usable(config)
    result = _run_kind(config, model, pool, questions)
    if has_judge:
        judge_fidelity_run(_judge_config_for(config))
    return result


def _check_judge_usable(config: FidelityConfig) -> None:
    """Raise ConfigError or DataError, before any answer is generated, if the judge cannot judge the answers of the run.

    This contacts an endpoint. Missing examples are found later (in `permix.judges.judging`), when the questions are chosen.
    """
    load_judge_setup(config.judge, required_rubrics(config))
    with error_context("judge"):
        check_model(config.judge, contact=True)
        if not config.judge.capabilities.is_local:
            folder = judge_folder(config.out, judge_label(config.judge))
            check_addresses(load_model(config.judge), folder, "judge", "judge")


def _judge_config_for(config: FidelityConfig) -> JudgeConfig:
    """The configuration of the judging at the end of a fidelity run."""
    return JudgeConfig(
        run=config.out, judge=config.judge, threads=config.threads, seed=config.seed, resamples=config.resamples,
        report_to=config.report_to,
    )  # fmt: skip


def _run_kind(
    config: FidelityConfig, model: Model | None, pool: PersonaPool | None, questions: Sequence[Question] | None
) -> Record:
    """Run the evaluation of the configuration's kind and return the content of its metrics.json."""
    if questions is not None and config.kind != "open":
        raise ConfigError(f"questions: {config.kind} has its own questions; leave questions out")
    if pool is None and config.kind != "personagym":
        personas, pool = select_fidelity_personas(config)
        config = config.model_copy(update={"personas": personas})
    if config.kind == "interview":
        return run_interview(config, model, pool)
    if config.kind == "open":
        return run_open_ended(config, model, pool, questions)
    if pool is not None:
        raise ConfigError("personas: personagym has its own personas; leave personas out")
    return run_personagym(config, model)


FIDELITY_PREFLIGHTS: Mapping[str, Callable[[FidelityConfig], dict[str, str]]] = {
    "open": preflight_open_ended,
    "personagym": preflight_personagym,
    "interview": preflight_interview,
}
"""For each kind of run: a function that describes its questions without a model."""


def preflight_fidelity(config: FidelityConfig) -> dict[str, str]:
    """Describe the run without loading a model. Raises ConfigError or DataError if the configuration cannot be used."""
    check_trackers(config.report_to, "report_to")
    template_text(config.personas.template)
    check_model(config.model, contact=False)
    if config.judge.name == "none":
        return FIDELITY_PREFLIGHTS[config.kind](config)
    setup = load_judge_setup(config.judge, required_rubrics(config))
    with error_context("judge"):
        check_model(config.judge, contact=False)
    facts = FIDELITY_PREFLIGHTS[config.kind](config)
    return facts | {"judge": _describe_later_judging(config, setup, int(facts["answers"]))}


def required_rubrics(config: FidelityConfig) -> Collection[str]:
    """The rubrics of the questions that a fidelity run asks."""
    return config.personagym.tasks or get_args(PersonaGymTask) if config.kind == "personagym" else (IN_CHARACTER,)


class LaterCalls(NamedTuple):
    """The most calls of the judge at the end of a fidelity run; `n_trials` of them test the judge."""

    n_calls: int
    n_trials: int


def count_later_calls(config: FidelityConfig, setup: JudgeSetup, n_answers: int) -> LaterCalls:
    """Count the calls for this number of answers. A score takes several calls where a reply has none."""
    scores = n_answers * (1 if config.kind == "personagym" else len(setup.rubrics))
    trials = N_ADDED_CONTROLS * min(config.judge.answers_per_control, scores)
    return LaterCalls((scores + trials) * config.judge.attempts, trials * config.judge.attempts)


def _describe_later_judging(config: FidelityConfig, setup: JudgeSetup, n_answers: int) -> str:
    """How many calls the judge at the end of a fidelity run takes. Its prompts contain the answers, so they are not known yet."""
    calls, trials = count_later_calls(config, setup, n_answers)
    tokens = calls * config.judge.max_new_tokens
    return f"at most {calls} calls afterwards, {trials} of them to test the judge; at most {tokens} new tokens"
