"""The kind "personagym" of `permix fidelity`: every persona is asked its own questions of PersonaGym's five tasks.

Some of the questions are asked without persona too, which a judge is tried with. Nothing is scored here: answers are there to
be judged, and metrics.json says how many there are and how long.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

from permix.config import FidelityStage
from permix.evals.fidelity_records import AskedQuestion, in_words, questions_asked
from permix.evals.fidelity_runner import answer
from permix.evals.grid import Wording, describe_asked, lay_out, note_seen_personas
from permix.inference import open_model
from permix.inference.base import Model
from permix.inference.cache import cached
from permix.personas.personagym import GymQuestion, read_gym
from permix.personas.pool import PersonaPool
from permix.progress import say
from permix.storage.cells import read_cells
from permix.storage.files import read_json
from permix.types import Cell, CellKey, Persona, Question, Record, seed_from

MANY_CUT_OFF = 0.1


class AnswerCounts(Record):
    """Of some questions: how many were asked and answered, and of the answers the mean length in words and the share cut off.

    `cut_off`: among answers of which it is known why they end. None where there is no such answer.
    """

    n_asked: int
    n_answered: int
    mean_words: float | None
    cut_off: float | None


class GymAnswers(Record):
    """What there is to judge: of all personas together, by task, and without persona."""

    n_personas: int
    answers: AnswerCounts
    tasks: dict[str, AnswerCounts]
    without_persona: AnswerCounts


def personagym(config: FidelityStage) -> GymAnswers:
    """Run, or go on with, an evaluation; writes metrics.json and returns it. Raises OwedCellsError when answers are missing."""
    pool, questions = choose_gym(config)
    note_seen_personas(config.model, pool)
    with cached(open_model(config.model, config.threads), config.cache, config.out) as model:
        return evaluate(model, config, pool, questions)


def evaluate(model: Model, config: FidelityStage, pool: PersonaPool, questions: Sequence[GymQuestion]) -> GymAnswers:
    """`personagym` of a model that is there already, asked what was chosen before."""
    without = spread(questions, config.personagym.without_persona, config.seed)
    about = asked_of(pool.personas, questions, without)
    result = answer(model, config, cells_of(config, pool, questions, without), about, measure, kind="personagym")
    _say_cut_off(result, config.sampling.max_new_tokens)
    return result


def choose_gym(config: FidelityStage) -> tuple[PersonaPool, tuple[GymQuestion, ...]]:
    """The personas, `personas.n` of them by content and seed, and the questions of each."""
    personas, questions = read_gym(config.personagym)
    pool = PersonaPool(personas=personas).select(n=config.personas.n, seed=config.personas.seed)
    chosen = {persona.id for persona in pool.personas}
    return pool, tuple(question for question in questions if question.persona_id in chosen)


def cells_of(
    config: FidelityStage, pool: PersonaPool, questions: Sequence[GymQuestion], without: Sequence[GymQuestion]
) -> list[Cell]:
    """Every question asked once of its persona, and those of `without` once without."""
    wording = Wording(lambda question: question.text, config.personas.template, config.personas.bare)
    lay = partial(lay_out, wording=wording, samples=1, seed=config.seed)
    own: dict[str, list[Question]] = {}
    for question in questions:
        own.setdefault(question.persona_id, []).append(_plain(question))
    cells = [cell for persona in pool.personas for cell in lay([persona], own[persona.id])]
    return cells + lay([None], [_plain(question) for question in without])


def spread(questions: Sequence[GymQuestion], n: int, seed: int) -> tuple[GymQuestion, ...]:
    """`n` of the questions, all if there are fewer: evenly over personas and nearly so over tasks; by content and seed.

    In each round every persona gives one question, and neighbours in a seeded order of personas give other tasks.
    """

    def by_seed(names: Iterable[str]) -> dict[str, int]:
        return {name: at for at, name in enumerate(sorted(set(names), key=lambda one: (seed_from("spread", seed, one), one)))}

    persona_at = by_seed(question.persona_id for question in questions)
    task_at = by_seed(question.task for question in questions)
    question_at = by_seed(question.id for question in questions)
    before: Counter[tuple[str, str]] = Counter()
    placed: list[tuple[int, int, int, GymQuestion]] = []
    for one in sorted(questions, key=lambda question: question_at[question.id]):
        place = persona_at[one.persona_id]
        placed.append((before[one.persona_id, one.task], (task_at[one.task] - place) % len(task_at), place, one))
        before[one.persona_id, one.task] += 1
    return tuple(one for *_, one in sorted(placed, key=lambda found: found[:3])[:n])


def asked_of(
    personas: Sequence[Persona], questions: Sequence[GymQuestion], without: Sequence[GymQuestion]
) -> Mapping[str, object]:
    """asked.json: of whom, what, and which of it also without persona."""
    asked = [
        AskedQuestion(id=question.id, text=question.text, task=question.task, persona_id=question.persona_id)
        for question in questions
    ]
    plain = [_plain(question) for question in questions]
    return (
        describe_asked(personas, plain, samples=1)
        | in_words(personas, asked)
        | {"asked_without_persona": [question.id for question in without]}
    )


def measure(run: Path) -> GymAnswers:
    """Counts of a run's answers, from its records and asked.json."""
    cells, asked = read_cells(run / "records.jsonl"), questions_asked(run)
    found = {one: cells.get(CellKey(one.persona_id, one.id, 0)) for one in asked}
    tasks = sorted({one.task for one in asked if one.task is not None})
    without = read_json(run / "asked.json").get("asked_without_persona", [])
    return GymAnswers(
        n_personas=len({one.persona_id for one in asked}),
        answers=_counts(list(found.values())),
        tasks={task: _counts([cell for one, cell in found.items() if one.task == task]) for task in tasks},
        without_persona=_counts([cells.get(CellKey(None, id, 0)) for id in without]),
    )


def _counts(cells: Sequence[Cell | None]) -> AnswerCounts:
    """Of cells as asked; None is one that has no record."""
    answers = [cell.completion for cell in cells if cell is not None and cell.completion is not None]
    words = [len(one.text.split()) for one in answers]
    ends = [one.finish == "length" for one in answers if one.finish is not None]
    return AnswerCounts(
        n_asked=len(cells),
        n_answered=len(answers),
        mean_words=sum(words) / len(words) if words else None,
        cut_off=sum(ends) / len(ends) if ends else None,
    )


def _say_cut_off(found: GymAnswers, most: int) -> None:
    share = found.answers.cut_off
    if share is not None and share > MANY_CUT_OFF:
        say(f"note: {share:.0%} of the answers were cut off at sampling.max_new_tokens = {most}; a judge sees them so")


def _plain(question: GymQuestion) -> Question:
    """As the grid asks it."""
    return Question(id=question.id, task=question.task, text=question.text, gold="")
