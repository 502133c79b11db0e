"""Best of k personas: each answers the questions to choose by, and the one that is right most often answers the evaluated ones.

The questions to choose by are of the same task but of the side `SELECTION_SPLIT`; none of them is evaluated, and no evaluated
question has a say in the choice. Every one of them must have been answered by every persona before anyone is chosen; those that
the verifier failed on for some persona then count for none. Of personas equally often right the first in the order of ids is
taken. The search always takes a persona, also where none of them does better than no persona.
"""

from collections.abc import Collection, Sequence
from typing import Literal

import numpy as np

from permix.config import StabilityConfig
from permix.errors import ConfigError, DataError
from permix.evals.grid import GridResults, describe_grid
from permix.evals.strategies.base import (
    AnswerCalls,
    CellsByKey,
    EvalSetup,
    Strategy,
    StrategySummary,
    accuracy_gain,
    mean_token_cost,
    sum_tokens,
)
from permix.metrics import statistics
from permix.metrics.statistics import TIE_TOLERANCE, Array
from permix.tasks import load_questions
from permix.tasks.base import check_contamination
from permix.types import Cell, CellKey, Estimate, Question, Record, Split

SELECTION_SPLIT: Split = "dev"
"""The side of the task whose questions a persona is chosen by."""


class CandidatePersona(Record):
    """A persona and its accuracy on the questions to choose by."""

    id: str
    accuracy: Estimate


class SearchSummary(StrategySummary):
    """`chosen` is None until every candidate has answered. The chosen one's own accuracy among `candidates` is the best of many
    noisy ones and too high; `accuracy` is not."""

    strategy: Literal["persona-search"] = "persona-search"
    selected_persona_id: str | None
    candidates: tuple[CandidatePersona, ...]
    n_selection_questions: int

    @property
    def details_text(self) -> str:
        if self.selected_persona_id is None:
            return f"nobody chosen yet of {len(self.candidates)}"
        dev = next(one.accuracy for one in self.candidates if one.id == self.selected_persona_id)
        return (
            f"as {self.selected_persona_id}, the best of {len(self.candidates)} on {self.n_selection_questions} "
            f"other questions, {dev}"
        )


def load_selection_questions(
    config: StabilityConfig, evaluated: Sequence[Question], trained_hashes: Collection[str]
) -> tuple[Question, ...]:
    """The questions to choose by. ConfigError when there are too few, or when one of them is evaluated or was trained on."""
    wanted = f'strategy = "persona-search", strategy_questions = {config.strategy_questions}'
    try:
        task = config.task.model_copy(update={"split": SELECTION_SPLIT, "n": config.strategy_questions})
        _, questions = load_questions(task)
        check_contamination(questions, trained_hashes)
    except (ConfigError, DataError) as error:
        raise ConfigError(f"{wanted}: questions of the {SELECTION_SPLIT} side are needed to choose by: {error}") from error
    taken = {one.content_hash for one in evaluated} | {one.id for one in evaluated}
    shared = [one for one in questions if {one.content_hash, one.id} & taken]
    if shared:
        raise ConfigError(
            f"{wanted}: {len(shared)} of the questions to choose by are evaluated too, the first {shared[0].id}; personas are "
            f'chosen by questions of the {SELECTION_SPLIT} side, so evaluate with another task.split than "{config.task.split}"'
        )
    return questions


def best_persona_index(correct_P_Q_S: Array) -> int | None:
    """The place of the best persona, by the questions that all have a score for; None without such a question."""
    whole_Q = ~np.isnan(correct_P_Q_S).any(axis=(0, 2))
    if not whole_Q.any():
        return None
    accuracy_P = correct_P_Q_S[:, whole_Q].mean(axis=(1, 2))
    return int(np.flatnonzero(accuracy_P >= accuracy_P.max() - TIE_TOLERANCE)[0])


def selected_persona_id(answers: GridResults) -> str | None:
    """The best persona's id; None as long as one of its rivals, or it, has a question left to answer."""
    keys = (
        CellKey(persona, question, sample)
        for persona in answers.selection_persona_ids
        for question in answers.selection_question_ids
        for sample in range(answers.samples)
    )
    if any(key not in answers.cells or answers.cells[key].completion is None for key in keys):
        return None
    place = best_persona_index(answers.scores(answers.selection_persona_ids, answers.selection_question_ids))
    return None if place is None else answers.selection_persona_ids[place]


def _selection_and_baseline_cells(setup: EvalSetup) -> list[Cell]:
    """The candidates' answers, and the evaluated questions without a persona."""
    return setup.build_grid(setup.pool.personas, setup.selection_questions) + setup.build_grid([None], setup.questions)


def _selected_persona_cells(setup: EvalSetup, cells: CellsByKey) -> list[Cell]:
    """The evaluated questions as the chosen persona; nothing as long as nobody can be chosen."""
    personas, questions = ([one.id for one in some] for some in (setup.pool.personas, setup.selection_questions))
    best = selected_persona_id(GridResults(cells, (), (), setup.samples, tuple(personas), tuple(questions)))
    return setup.build_grid([one for one in setup.pool.personas if one.id == best], setup.questions)


def _max_selected_persona_cells(setup: EvalSetup) -> int:
    return len(setup.questions) * setup.samples


def _describe_search(setup: EvalSetup, followup_cells: Sequence[Cell]) -> dict[str, object]:
    """The grid of the chosen persona, if there is one, and beside it whom and by what it was chosen."""
    best = {cell.persona_id for cell in followup_cells}
    asked = describe_grid([one for one in setup.pool.personas if one.id in best], setup.questions, setup.samples)
    choice = describe_grid(setup.pool.personas, setup.selection_questions, setup.samples)
    return asked | {f"choosing_{name}": value for name, value in choice.items()}


def measure_persona_search(answers: GridResults, seed: int, resamples: int) -> SearchSummary:
    best = selected_persona_id(answers)
    questions, samples = answers.question_ids, range(answers.samples)
    choosing_P_Q_S = answers.scores(answers.selection_persona_ids, answers.selection_question_ids)
    baseline_Q_S = answers.scores([None], questions)[0]
    correct_Q_S = np.full_like(baseline_Q_S, np.nan) if best is None else answers.scores([best], questions)[0]
    found = accuracy_gain(correct_Q_S, baseline_Q_S, seed, resamples)
    price = mean_token_cost(
        AnswerCalls(
            [None if best is None else answers.get_cell(best, question, sample)], answers.get_cell(None, question, sample)
        )
        for question in questions
        for sample in samples
    )
    return SearchSummary(
        **found._asdict(), **price._asdict(), selected_persona_id=best,
        selection_tokens=sum_tokens(
            answers.get_cell(persona, question, sample)
            for persona in answers.selection_persona_ids
            for question in answers.selection_question_ids
            for sample in samples
        ),
        candidates=_summarize_candidates(answers.selection_persona_ids, choosing_P_Q_S, seed, resamples),
        n_selection_questions=int((~np.isnan(choosing_P_Q_S).any(axis=(0, 2))).sum()),
        n_scored=int((~np.isnan(correct_Q_S)).sum()), n_asked=correct_Q_S.size,
    )  # fmt: skip


def _summarize_candidates(ids: Sequence[str], correct_P_Q_S: Array, seed: int, resamples: int) -> tuple[CandidatePersona, ...]:
    whole_Q = ~np.isnan(correct_P_Q_S).any(axis=(0, 2))
    mean_P_Q = statistics.mean_over_samples(correct_P_Q_S[:, whole_Q])
    return tuple(
        CandidatePersona(id=id, accuracy=statistics.bootstrap_mean(mean_Q, seed, resamples))
        for id, mean_Q in zip(ids, mean_P_Q, strict=True)
    )


PERSONA_SEARCH = Strategy(
    measure=measure_persona_search,
    initial_cells=_selection_and_baseline_cells,
    followup_cells=_selected_persona_cells,
    max_followups=_max_selected_persona_cells,
    describe_grid=_describe_search,
    selects_persona=True,
)
