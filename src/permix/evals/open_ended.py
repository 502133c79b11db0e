"""The kind "open" of `permix fidelity`: how recognisable a model's characters are.

Asks every persona the same open-ended questions and measures identifiability from the answers. That is distinctness, not
correctness: it does not say that an answer is what the persona would have said.
"""

from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path

from permix.config import FidelityStage
from permix.errors import ConfigError, DataError
from permix.evals.fidelity_records import AskedQuestion, asked_cells, in_words
from permix.evals.fidelity_runner import answer
from permix.evals.grid import Wording, describe_asked, lay_out, note_seen_personas
from permix.inference import open_model
from permix.inference.base import Model
from permix.inference.cache import cached
from permix.metrics.identifiability import MIN_ANSWERS, Identifiability, identifiability
from permix.personas.loading import load_roleplay
from permix.personas.pool import PersonaPool, choose_personas
from permix.prompts import brought_in_by
from permix.storage.files import read_json
from permix.types import Cell, Message, Question


def open_ended(config: FidelityStage) -> Identifiability:
    """Run, or go on with, an evaluation; writes metrics.json and returns it.

    Raises OwedCellsError when answers are missing, DataError when there are too few to measure.
    """
    pool, questions = choose_voices(config), open_questions(config)
    if config.reference is not None:
        refuse_unanswered(config.reference, {(persona.id, question.id) for persona in pool.personas for question in questions})
    note_seen_personas(config.model, pool)
    with cached(open_model(config.model, config.threads), config.cache, config.out) as model:
        return evaluate(model, config, pool, questions)


def cells_of(config: FidelityStage, pool: PersonaPool, questions: Sequence[Question]) -> list[Cell]:
    """Every persona asked every open-ended question once."""
    wording = Wording(lambda question: question.text, config.personas.template, config.personas.bare)
    return lay_out(pool.personas, questions, wording, samples=1, seed=config.seed)


def evaluate(model: Model, config: FidelityStage, pool: PersonaPool, questions: Sequence[Question]) -> Identifiability:
    """`open_ended` of a model that is there already, asked what was chosen before."""
    asked = cells_of(config, pool, questions)
    in_full = [AskedQuestion(id=question.id, text=question.text) for question in questions]
    about = describe_asked(pool.personas, questions, samples=1) | in_words(pool.personas, in_full)
    return answer(model, config, asked, about, partial(measure, reference=config.reference))


def choose_voices(config: FidelityStage) -> PersonaPool:
    """The personas to tell apart. ConfigError when there is only one."""
    pool = choose_personas(config.personas)
    if len(pool) < 2:
        raise ConfigError(f"personas: only {pool.personas[0].id!r} is left to choose, and one voice cannot be told from another")
    return pool


def open_questions(config: FidelityStage) -> tuple[Question, ...]:
    """The first `n_questions` of the configured file and side. ConfigError when there are fewer, or too few to measure."""
    questions = load_roleplay(config.questions, config.questions_split)
    count, least = config.n_questions or len(questions), max(config.folds, MIN_ANSWERS)
    if not least <= count <= len(questions):
        raise ConfigError(
            f"n_questions = {count}: give {least} (one a fold, and {MIN_ANSWERS} answers of a persona) to {len(questions)}, "
            f"the number in {config.questions!r} for questions_split = {config.questions_split!r}"
        )
    return questions[:count]


def refuse_unanswered(reference: Path, asked: Collection[tuple[str | None, str]]) -> None:
    """Raise DataError when the reference is no run, or has no record of a (persona, question) that is asked."""
    read_json(reference / "config.json")
    missing = set(asked) - set(_answers(reference))
    if missing:
        raise DataError(
            f"reference = {reference}: did not answer the same questions as the same personas: "
            f"{len(missing)} of {len(asked)} are missing, such as {min(missing, key=str)}"
        )


def measure(run: Path, reference: Path | None, resamples: int | None = None) -> Identifiability:
    """Identifiability of a run's answers, from its records; the classifier learns from `reference`'s, or from the run's own.

    `resamples`: not the run's own number of them.
    """
    config = read_json(run / "config.json")
    answers, known = _answers(run), _answers(reference) if reference else None
    personas = list(dict.fromkeys(persona for persona, _ in answers))
    questions = list(dict.fromkeys(question for _, question in answers))
    if reference is not None:
        refuse_unanswered(reference, answers)
    return identifiability(
        [[_text(answers.get((persona, question))) for question in questions] for persona in personas],
        [brought_in_by(_asked(answers, persona=persona)) for persona in personas],
        persona_ids=personas,
        question_texts=[_text_of(question, _asked(answers, question=question)) for question in questions],
        reference_P_Q=None if known is None else [[_text(known.get((one, asked))) for asked in questions] for one in personas],
        reference_name=_name(reference) if reference else "own answers",
        folds=config["folds"],
        seed=config["seed"],
        resamples=resamples or config["resamples"],
    )


def _answers(run: Path) -> dict[tuple[str, str], Cell]:
    """The run's cells by persona and question."""
    return {(cell.persona_id, cell.question_id): cell for cell in asked_cells(run) if cell.persona_id is not None}


def _text(cell: Cell | None) -> str | None:
    return cell.completion.text if cell is not None and cell.completion is not None else None


def _asked(
    answers: dict[tuple[str, str], Cell], *, persona: str | None = None, question: str | None = None
) -> tuple[Message, ...]:
    """The messages of the first of a persona's, or a question's, cells."""
    return next(cell.messages for (own, asked), cell in answers.items() if own == persona or asked == question)


def _text_of(question_id: str, messages: tuple[Message, ...]) -> str:
    """The question; its id where a persona stands beside it in the user's message, so that nothing hangs on which one that is."""
    alone = any(message["role"] == "system" and message["content"] for message in messages)
    return messages[-1]["content"] if alone else question_id


def _name(reference: Path) -> str:
    return f"answers of {read_json(reference / 'config.json').get('label') or reference}"
