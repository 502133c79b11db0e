"""The kind "open" of `permix fidelity`: asks every persona the same open-ended questions.

Identifiability measures how distinct the personas' answers are. It does not measure whether an answer fits its persona.
Recognisability (`answer_vectors.py`) compares each answer with the persona texts, if a sentence embedder is installed.
"""

from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path

from permix.config import FidelityConfig
from permix.errors import ConfigError, DataError, option_context
from permix.evals.answer_vectors import check_embedder, describe_recognisability
from permix.evals.fidelity_records import (
    AskedQuestion,
    describe_ids,
    read_answer_grid,
    run_fidelity_cells,
    select_fidelity_personas,
)
from permix.evals.grid import PromptFormat, build_grid, describe_grid, open_evaluated_model
from permix.evals.shards import estimate_shard
from permix.evals.text_metrics import measure_text_metrics
from permix.inference.base import Model
from permix.metrics.identifiability import MIN_ANSWERS, Identifiability, summarize_identifiability
from permix.personas.loading import load_roleplay
from permix.personas.pool import PersonaPool, warn_of_misfits
from permix.prompts import persona_prompt
from permix.storage.run_dir import RunReader, require_run
from permix.types import Cell, Question


def run_open_ended(
    config: FidelityConfig,
    model: Model | None = None,
    given_pool: PersonaPool | None = None,
    given_questions: Sequence[Question] | None = None,
) -> Identifiability:
    """Start or resume an open-ended run; writes metrics.json and returns identifiability. `config.shard` as in
    `run_fidelity_cells`.

    `model`, `given_pool` and `given_questions` are Python objects that replace what the configuration names. Raises ConfigError
    if the configuration is invalid, IncompleteRunError if answers are missing, and DataError if there are too few to measure.
    """
    pool, questions = prepare_open_ended(config, given_pool, given_questions)
    with open_evaluated_model(config, pool, model) as asked:
        return evaluate_open_ended(asked, config, pool, questions)


def preflight_open_ended(config: FidelityConfig) -> dict[str, str]:
    """Facts about the run without calling a model. Raises ConfigError or DataError if the configuration is invalid."""
    pool, questions = prepare_open_ended(config)
    facts = {"personas": str(len(pool)), "questions": str(len(questions)), "answers": str(len(pool) * len(questions))}
    return facts | estimate_shard("fidelity", config, build_open_ended_cells(config, pool, questions))


def prepare_open_ended(
    config: FidelityConfig, given_pool: PersonaPool | None = None, given_questions: Sequence[Question] | None = None
) -> tuple[PersonaPool, tuple[Question, ...]]:
    """Choose personas and questions, and check embedder and reference; calls no model.

    Raises ConfigError if the configuration is invalid, DataError for a reference that lacks answers.
    """
    check_embedder(config.embedder)
    pool, questions = select_open_ended_personas(config, given_pool), load_open_questions(config, given_questions)
    if config.reference is not None:
        check_reference_answers(
            config.reference, {(persona.id, question.id) for persona in pool.personas for question in questions}
        )
    return pool, questions


def build_open_ended_cells(config: FidelityConfig, pool: PersonaPool, questions: Sequence[Question]) -> list[Cell]:
    """Build the cells: every persona × every open-ended question, one sample."""
    prompt_format = PromptFormat(lambda question: question.text, config.personas.template, config.personas.empty_system_prompt)
    return build_grid(pool.personas, questions, prompt_format, samples=1, seed=config.seed)


def evaluate_open_ended(
    model: Model, config: FidelityConfig, pool: PersonaPool, questions: Sequence[Question]
) -> Identifiability:
    """Like `run_open_ended`, for a loaded model and chosen personas and questions."""
    cells = build_open_ended_cells(config, pool, questions)
    asked_questions = [AskedQuestion(id=question.id, text=question.text) for question in questions]
    grid_json = describe_grid(pool.personas, questions, samples=1) | describe_ids(pool.personas, asked_questions)
    measure = partial(measure_identifiability, reference=config.reference)
    return run_fidelity_cells(model, config, cells, grid_json, measure, measure_text_metrics, describe_recognisability)


def select_open_ended_personas(config: FidelityConfig, given_pool: PersonaPool | None = None) -> PersonaPool:
    """Select the personas. Raises ConfigError if there is only one, since identifiability needs two."""
    pool = select_fidelity_personas(config)[1] if given_pool is None else given_pool
    warn_of_misfits(pool, [config.personas.template])
    if len(pool) < 2:
        raise ConfigError(f"personas: only {pool.personas[0].id!r} is selected; identifiability needs at least two personas")
    return pool


def load_open_questions(config: FidelityConfig, given: Sequence[Question] | None = None) -> tuple[Question, ...]:
    """The first `n_questions` of `given`, or of the configured file and split.

    Raises ConfigError if there are fewer, or too few to measure identifiability.
    """
    if given is None:
        with option_context("questions", config.questions):
            questions = load_roleplay(config.questions, config.questions_split)
    else:
        questions = tuple(given)
    count, minimum = config.n_questions or len(questions), max(config.folds, MIN_ANSWERS)
    if not minimum <= count <= len(questions):
        raise ConfigError(
            f"n_questions = {count}: give {minimum} (one per fold, and {MIN_ANSWERS} answers per persona) to {len(questions)}, "
            f"the number in {config.questions!r} for questions_split = {config.questions_split!r}"
        )
    return questions[:count]


def check_reference_answers(reference: Path, persona_question_pairs: Collection[tuple[str | None, str]]) -> None:
    """Raise DataError if the reference is not a run, or lacks a record for one of the (persona, question) pairs."""
    with option_context("reference", reference):
        require_run(reference)
    missing = set(persona_question_pairs) - set(read_answer_grid(reference).cells)
    if missing:
        raise DataError(
            f"reference = {reference}: must have answers to the same questions by the same personas; "
            f"{len(missing)} of {len(persona_question_pairs)} are missing, such as {min(missing, key=str)}"
        )


def measure_identifiability(run: Path, reference: Path | None, resamples: int | None = None) -> Identifiability:
    """Measure identifiability from a run's records.

    The classifier is trained on the answers of `reference`, or on the run's own answers without a reference. `resamples` replaces
    the number in the run's configuration.
    """
    config, grid = RunReader(run).config, read_answer_grid(run)
    if reference is not None:
        check_reference_answers(reference, grid.cells)
    return summarize_identifiability(
        grid.answers_P_Q,
        [persona_prompt(grid.first_messages(persona=persona)) for persona in grid.persona_ids],
        persona_ids=grid.persona_ids,
        question_texts=grid.question_texts,
        reference_P_Q=None if reference is None else read_answer_grid(reference).select(grid.persona_ids, grid.question_ids),
        reference_name=_reference_name(reference) if reference else "own answers",
        folds=config["folds"],
        seed=config["seed"],
        resamples=resamples or config["resamples"],
    )


def _reference_name(reference: Path) -> str:
    return f"answers of {RunReader(reference).label or reference}"
