"""The kind "personagym" of `permix fidelity`: asks every persona its own questions of PersonaGym's five tasks.

Some questions are also asked without a persona, for a control of judges. Nothing is scored here: judges score the answers later,
and metrics.json contains counts and lengths of answers.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from permix.config import FidelityConfig
from permix.errors import option_context
from permix.evals.fidelity_records import AskedQuestion, describe_texts, read_asked_questions, run_fidelity_cells
from permix.evals.grid import PromptFormat, build_grid, describe_grid, open_evaluated_model
from permix.evals.shards import estimate_shard
from permix.evals.text_metrics import measure_text_metrics
from permix.inference.base import Model
from permix.personas.personagym import PersonaGymQuestion, read_personagym
from permix.personas.pool import PersonaPool, selection_context
from permix.storage.run_dir import RunReader
from permix.types import Cell, CellKey, Persona, Question, Record, seed_from


class AnswerCounts(Record):
    """Counts of questions asked and answered, the mean length of the answers in words, and the share that was cut off.

    `truncated_share` is over answers with a known finish reason. A mean or share over no answers is None.
    """

    n_asked: int
    n_answered: int
    mean_words: float | None
    truncated_share: float | None


class PersonaGymCounts(Record):
    """Counts of answers that a judge can score: over all personas, by task, and without a persona."""

    n_personas: int
    answers: AnswerCounts
    tasks: dict[str, AnswerCounts]
    without_persona: AnswerCounts


def run_personagym(config: FidelityConfig, model: Model | None = None) -> PersonaGymCounts:
    """Start or resume a PersonaGym run; writes metrics.json and returns the counts. `config.shard` as in `run_fidelity_cells`.

    `model` replaces the configured model. Raises ConfigError or DataError if the configuration or the files are invalid, and
    IncompleteRunError if answers are missing.
    """
    setup = prepare_personagym(config)
    grid_json = describe_personagym(setup.pool.personas, setup.questions, setup.without_persona)
    with open_evaluated_model(config, setup.pool, model) as asked:
        return run_fidelity_cells(
            asked, config, setup.cells, grid_json, count_personagym_answers, measure_text_metrics, kind="personagym"
        )


def preflight_personagym(config: FidelityConfig) -> dict[str, str]:
    """Facts about the run without calling a model. Raises ConfigError or DataError if the configuration is invalid."""
    pool, questions, without, cells = prepare_personagym(config)
    facts = {
        "personas": str(len(pool)),
        "questions": f"{len(questions)}, each for one persona; {len(without)} also without a persona",
        "answers": str(len(cells)),
    }
    return facts | estimate_shard("fidelity", config, cells)


class PersonaGymSetup(NamedTuple):
    """What a run asks: its personas, their questions, those that are also asked without a persona, and the cells of both."""

    pool: PersonaPool
    questions: tuple[PersonaGymQuestion, ...]
    without_persona: tuple[PersonaGymQuestion, ...]
    cells: list[Cell]


def prepare_personagym(config: FidelityConfig) -> PersonaGymSetup:
    """Choose personas and questions; calls no model. Raises ConfigError or DataError if configuration or files are invalid."""
    pool, questions = select_personagym_questions(config)
    without = sample_balanced_questions(questions, config.personagym.without_persona, config.seed)
    return PersonaGymSetup(pool, questions, without, build_personagym_cells(config, pool, questions, without))


def select_personagym_questions(config: FidelityConfig) -> tuple[PersonaPool, tuple[PersonaGymQuestion, ...]]:
    """Select `personas.n` personas by content and seed, and return them with their questions."""
    with option_context("personagym.path", config.personagym.path):
        personas, questions = read_personagym(config.personagym)
    with selection_context():
        pool = PersonaPool(personas=personas).select(n=config.personas.n, seed=config.personas.seed)
    chosen = {persona.id for persona in pool.personas}
    return pool, tuple(question for question in questions if question.persona_id in chosen)


def build_personagym_cells(
    config: FidelityConfig,
    pool: PersonaPool,
    questions: Sequence[PersonaGymQuestion],
    without_persona: Sequence[PersonaGymQuestion],
) -> list[Cell]:
    """Build the cells: every question with its persona, and the questions in `without_persona` once more without a persona."""
    prompt_format = PromptFormat(lambda question: question.text, config.personas.template, config.personas.empty_system_prompt)
    make_cells = partial(build_grid, prompt_format=prompt_format, samples=1, seed=config.seed)
    questions_of: dict[str, list[Question]] = {}
    for question in questions:
        questions_of.setdefault(question.persona_id, []).append(_to_question(question))
    cells = [cell for persona in pool.personas for cell in make_cells([persona], questions_of[persona.id])]
    return cells + make_cells([None], [_to_question(question) for question in without_persona])


def sample_balanced_questions(questions: Sequence[PersonaGymQuestion], n: int, seed: int) -> tuple[PersonaGymQuestion, ...]:
    """Choose `n` questions, or all if there are fewer, evenly over personas and almost evenly over tasks; ids and seed decide.

    Each round takes one question of every persona; neighbouring personas in a seeded order contribute different tasks.
    """

    def by_seed(names: Iterable[str]) -> dict[str, int]:
        return {name: at for at, name in enumerate(sorted(set(names), key=lambda one: (seed_from("spread", seed, one), one)))}

    persona_at = by_seed(question.persona_id for question in questions)
    task_at = by_seed(question.task for question in questions)
    question_at = by_seed(question.id for question in questions)
    n_earlier: Counter[tuple[str, str]] = Counter()
    ordered: list[tuple[int, int, int, PersonaGymQuestion]] = []
    for one in sorted(questions, key=lambda question: question_at[question.id]):
        place = persona_at[one.persona_id]
        ordered.append((n_earlier[one.persona_id, one.task], (task_at[one.task] - place) % len(task_at), place, one))
        n_earlier[one.persona_id, one.task] += 1
    return tuple(one for *_, one in sorted(ordered, key=lambda found: found[:3])[:n])


def describe_personagym(
    personas: Sequence[Persona], questions: Sequence[PersonaGymQuestion], without_persona: Sequence[PersonaGymQuestion]
) -> Mapping[str, object]:
    """Content of grid.json: personas, questions, and the ids of questions that are also asked without a persona."""
    asked_questions = [
        AskedQuestion(id=question.id, text=question.text, task=question.task, persona_id=question.persona_id)
        for question in questions
    ]
    questions_without_gold = [_to_question(question) for question in questions]
    return (
        describe_grid(personas, questions_without_gold, samples=1)
        | describe_texts(personas, asked_questions)
        | {"asked_without_persona": [question.id for question in without_persona]}
    )


def count_personagym_answers(run: Path) -> PersonaGymCounts:
    """Count the answers of a run from its records and grid.json."""
    reader, asked = RunReader(run), read_asked_questions(run)
    cells, without = reader.cells, reader.grid.get("asked_without_persona", [])
    cell_by_question = {one: cells.get(CellKey(one.persona_id, one.id, 0)) for one in asked}
    tasks = sorted({one.task for one in asked if one.task is not None})
    return PersonaGymCounts(
        n_personas=len({one.persona_id for one in asked}),
        answers=_count_answers(list(cell_by_question.values())),
        tasks={task: _count_answers([cell for one, cell in cell_by_question.items() if one.task == task]) for task in tasks},
        without_persona=_count_answers([cells.get(CellKey(None, id, 0)) for id in without]),
    )


def _count_answers(cells: Sequence[Cell | None]) -> AnswerCounts:
    """Count the answers in cells; None is a cell without a record."""
    answers = [cell.completion for cell in cells if cell is not None and cell.completion is not None]
    words = [len(one.answer.split()) for one in answers]
    ends = [one.is_cut_off for one in answers if one.is_cut_off is not None]
    return AnswerCounts(
        n_asked=len(cells),
        n_answered=len(answers),
        mean_words=sum(words) / len(words) if words else None,
        truncated_share=sum(ends) / len(ends) if ends else None,
    )


def _to_question(question: PersonaGymQuestion) -> Question:
    """Convert to a `Question` without gold."""
    return Question(id=question.id, task=question.task, text=question.text, gold="")
