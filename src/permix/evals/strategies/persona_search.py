"""Best of k personas: each answers the questions to choose by, and the one that is right most often answers the evaluated ones.

The questions to choose by are of the same task but of the side `CHOOSING_SPLIT`; none of them is evaluated, and no evaluated
question has a say in the choice. Every one of them must have been answered by every persona before anyone is chosen; those that
the verifier failed on for some persona then count for none. Of personas equally often right the first in the order of ids is
taken. The search always takes a persona, also where none of them does better than no persona.
"""

from collections.abc import Collection, Sequence
from typing import Literal

import numpy as np

from permix.config import StabilityStage
from permix.errors import ConfigError, DataError
from permix.evals.grid import Answers, describe_asked
from permix.evals.strategies.base import Calls, Cells, Setup, Strategy, StrategySummary, compared, cost, spent
from permix.metrics import statistics
from permix.metrics.statistics import TIE, Array
from permix.tasks import load_questions
from permix.tasks.contamination import refuse_overlap
from permix.types import Cell, CellKey, Estimate, Question, Record, Split

CHOOSING_SPLIT: Split = "dev"
"""The side of the task whose questions a persona is chosen by."""


class Candidate(Record):
    """A persona and its accuracy on the questions to choose by."""

    id: str
    accuracy: Estimate


class SearchSummary(StrategySummary):
    """`chosen` is None until every candidate has answered. The chosen one's own accuracy among `candidates` is the best of many
    noisy ones and too high; `accuracy` is not."""

    strategy: Literal["persona-search"] = "persona-search"
    chosen: str | None
    candidates: tuple[Candidate, ...]
    n_choosing: int

    @property
    def details(self) -> str:
        if self.chosen is None:
            return f"nobody chosen yet of {len(self.candidates)}"
        dev = next(one.accuracy for one in self.candidates if one.id == self.chosen)
        return f"as {self.chosen}, the best of {len(self.candidates)} on {self.n_choosing} other questions, {dev}"


def choosing_questions(config: StabilityStage, evaluated: Sequence[Question], seen: Collection[str]) -> tuple[Question, ...]:
    """The questions to choose by. ConfigError when there are too few, or when one of them is evaluated or was trained on."""
    wanted = f'strategy = "persona-search", strategy_questions = {config.strategy_questions}'
    try:
        task = config.task.model_copy(update={"split": CHOOSING_SPLIT, "n": config.strategy_questions})
        _, questions = load_questions(task)
        refuse_overlap(questions, seen)
    except (ConfigError, DataError) as error:
        raise ConfigError(f"{wanted}: questions of the {CHOOSING_SPLIT} side are needed to choose by: {error}") from error
    taken = {one.content_hash for one in evaluated} | {one.id for one in evaluated}
    shared = [one for one in questions if {one.content_hash, one.id} & taken]
    if shared:
        raise ConfigError(
            f"{wanted}: {len(shared)} of the questions to choose by are evaluated too, the first {shared[0].id}; personas are "
            f'chosen by questions of the {CHOOSING_SPLIT} side, so evaluate with another task.split than "{config.task.split}"'
        )
    return questions


def choose(correct_P_Q_S: Array) -> int | None:
    """The place of the best persona, by the questions that all have a score for; None without such a question."""
    whole_Q = ~np.isnan(correct_P_Q_S).any(axis=(0, 2))
    if not whole_Q.any():
        return None
    accuracy_P = correct_P_Q_S[:, whole_Q].mean(axis=(1, 2))
    return int(np.flatnonzero(accuracy_P >= accuracy_P.max() - TIE)[0])


def chosen(answers: Answers) -> str | None:
    """The best persona's id; None as long as one of its rivals, or it, has a question left to answer."""
    keys = (
        CellKey(persona, question, sample)
        for persona in answers.choosing_persona_ids
        for question in answers.choosing_question_ids
        for sample in range(answers.samples)
    )
    if any(key not in answers.cells or answers.cells[key].completion is None for key in keys):
        return None
    place = choose(answers.scores(answers.choosing_persona_ids, answers.choosing_question_ids))
    return None if place is None else answers.choosing_persona_ids[place]


def first(setup: Setup) -> list[Cell]:
    """The candidates' answers, and the evaluated questions without a persona."""
    return setup.lay_out(setup.pool.personas, setup.choosing) + setup.lay_out([None], setup.questions)


def then(setup: Setup, cells: Cells) -> list[Cell]:
    """The evaluated questions as the chosen persona; nothing as long as nobody can be chosen."""
    personas, questions = ([one.id for one in some] for some in (setup.pool.personas, setup.choosing))
    best = chosen(Answers(cells, (), (), setup.samples, tuple(personas), tuple(questions)))
    return setup.lay_out([one for one in setup.pool.personas if one.id == best], setup.questions)


def most(setup: Setup) -> int:
    return len(setup.questions) * setup.samples


def describe(setup: Setup, then: Sequence[Cell]) -> dict[str, object]:
    """The grid of the chosen persona, if there is one, and beside it whom and by what it was chosen."""
    best = {cell.persona_id for cell in then}
    asked = describe_asked([one for one in setup.pool.personas if one.id in best], setup.questions, setup.samples)
    choice = describe_asked(setup.pool.personas, setup.choosing, setup.samples)
    return asked | {f"choosing_{name}": value for name, value in choice.items()}


def measure(answers: Answers, seed: int, resamples: int) -> SearchSummary:
    best = chosen(answers)
    questions, samples = answers.question_ids, range(answers.samples)
    choosing_P_Q_S = answers.scores(answers.choosing_persona_ids, answers.choosing_question_ids)
    baseline_Q_S = answers.scores([None], questions)[0]
    correct_Q_S = np.full_like(baseline_Q_S, np.nan) if best is None else answers.scores([best], questions)[0]
    found = compared(correct_Q_S, baseline_Q_S, seed, resamples)
    price = cost(
        Calls([None if best is None else answers.get(best, question, sample)], answers.get(None, question, sample))
        for question in questions
        for sample in samples
    )
    return SearchSummary(
        **found._asdict(), **price._asdict(), chosen=best,
        choosing=spent(
            answers.get(persona, question, sample)
            for persona in answers.choosing_persona_ids
            for question in answers.choosing_question_ids
            for sample in samples
        ),
        candidates=_candidates(answers.choosing_persona_ids, choosing_P_Q_S, seed, resamples),
        n_choosing=int((~np.isnan(choosing_P_Q_S).any(axis=(0, 2))).sum()),
        n_scored=int((~np.isnan(correct_Q_S)).sum()), n_asked=correct_Q_S.size,
    )  # fmt: skip


def _candidates(ids: Sequence[str], correct_P_Q_S: Array, seed: int, resamples: int) -> tuple[Candidate, ...]:
    whole_Q = ~np.isnan(correct_P_Q_S).any(axis=(0, 2))
    mean_P_Q = statistics.sample_mean(correct_P_Q_S[:, whole_Q])
    return tuple(
        Candidate(id=id, accuracy=statistics.bootstrap_mean(mean_Q, seed, resamples))
        for id, mean_Q in zip(ids, mean_P_Q, strict=True)
    )


PERSONA_SEARCH = Strategy(measure=measure, first=first, then=then, most=most, describe=describe, chooses=True)
