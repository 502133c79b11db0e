"""Best of k personas: choose the persona with the highest accuracy on selection questions, and evaluate with this persona.

The selection questions are of the same task, from the split `SELECTION_SPLIT`. They are disjoint from the evaluated questions,
and no evaluated question influences the choice. A persona is chosen only after every persona has answered every selection
question. A selection question that the verifier failed on for one persona is left out for all personas. The first persona by id
wins a tie. The search always chooses a persona, even if no persona is better than the baseline.
"""

from collections.abc import Collection, Sequence
from typing import Literal

import numpy as np

from permix.config import StabilityConfig
from permix.errors import ConfigError, DataError
from permix.evals.grid import GridResults, describe_grid
from permix.evals.strategies.base import (
    AnswerCalls,
    AnswerComparison,
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
from permix.verification.math_verifier import same_answer

SELECTION_SPLIT: Split = "dev"
"""The split of the task that the selection questions come from."""


class CandidatePersona(Record):
    """A candidate and its accuracy on the selection questions."""

    id: str
    accuracy: Estimate


class SearchSummary(StrategySummary):
    """Measures of the persona search.

    `selected_persona_id` is None until every candidate has answered. The selected persona's accuracy in `candidates` is the
    maximum of many noisy values and therefore biased upwards; `accuracy` is on other questions and is not.
    """

    strategy: Literal["persona-search"] = "persona-search"
    selected_persona_id: str | None
    candidates: tuple[CandidatePersona, ...]
    n_selection_questions: int

    @property
    def details_text(self) -> str:
        if self.selected_persona_id is None:
            return f"no persona chosen yet, of {len(self.candidates)}"
        dev = next(one.accuracy for one in self.candidates if one.id == self.selected_persona_id)
        return (
            f"persona {self.selected_persona_id}, the best of {len(self.candidates)} on {self.n_selection_questions} "
            f"{SELECTION_SPLIT} questions ({dev})"
        )


def load_selection_questions(
    config: StabilityConfig, evaluated: Sequence[Question], trained_hashes: Collection[str]
) -> tuple[Question, ...]:
    """Load the selection questions. Raises ConfigError if there are too few, or if one is evaluated or in training data."""
    setting = f'strategy = "persona-search", strategy_questions = {config.strategy_questions}'
    try:
        task = config.task.model_copy(update={"split": SELECTION_SPLIT, "n": config.strategy_questions})
        _, questions = load_questions(task)
        check_contamination(questions, trained_hashes)
    except (ConfigError, DataError) as error:
        raise ConfigError(f"{setting}: needs questions of the {SELECTION_SPLIT} split to choose a persona: {error}") from error
    evaluated_keys = {one.content_hash for one in evaluated} | {one.id for one in evaluated}
    shared = [one for one in questions if {one.content_hash, one.id} & evaluated_keys]
    if shared:
        raise ConfigError(
            f"{setting}: {len(shared)} selection questions are evaluated too, the first {shared[0].id}; selection questions "
            f'are of the {SELECTION_SPLIT} split, so evaluate with another task.split than "{config.task.split}"'
        )
    return questions


def best_persona_index(correct_P_Q_S: Array) -> int | None:
    """Index of the persona with the highest accuracy on questions that all personas have scores for.

    The first persona wins a tie. None if there is no such question.
    """
    whole_Q = ~np.isnan(correct_P_Q_S).any(axis=(0, 2))
    if not whole_Q.any():
        return None
    accuracy_P = correct_P_Q_S[:, whole_Q].mean(axis=(1, 2))
    return int(np.flatnonzero(accuracy_P >= accuracy_P.max() - TIE_TOLERANCE)[0])


def selected_persona_id(results: GridResults) -> str | None:
    """Id of the best persona; None while a candidate has an unanswered selection question, or if none can be compared."""
    keys = (
        CellKey(persona, question, sample)
        for persona in results.selection_persona_ids
        for question in results.selection_question_ids
        for sample in range(results.samples)
    )
    if any(key not in results.cells or results.cells[key].completion is None for key in keys):
        return None
    best = best_persona_index(results.scores(results.selection_persona_ids, results.selection_question_ids))
    return None if best is None else results.selection_persona_ids[best]


def _selection_and_baseline_cells(setup: EvalSetup) -> list[Cell]:
    """Selection questions with every candidate, and the evaluated questions without a persona."""
    return setup.build_grid(setup.pool.personas, setup.selection_questions) + setup.build_grid([None], setup.questions)


def _selected_persona_cells(setup: EvalSetup, cells: CellsByKey) -> list[Cell]:
    """The evaluated questions with the selected persona; empty while no persona can be selected."""
    personas, questions = ([one.id for one in some] for some in (setup.pool.personas, setup.selection_questions))
    best = selected_persona_id(GridResults(cells, (), (), setup.samples, tuple(personas), tuple(questions)))
    return setup.build_grid([one for one in setup.pool.personas if one.id == best], setup.questions)


def _max_selected_persona_cells(setup: EvalSetup) -> int:
    return len(setup.questions) * setup.samples


def _describe_search(setup: EvalSetup, followup_cells: Sequence[Cell]) -> dict[str, object]:
    """Content of grid.json: the grid of the selected persona, if any; candidates and selection questions as "choosing_..."."""
    selected_ids = {cell.persona_id for cell in followup_cells}
    grid = describe_grid([one for one in setup.pool.personas if one.id in selected_ids], setup.questions, setup.samples)
    selection_grid = describe_grid(setup.pool.personas, setup.selection_questions, setup.samples)
    return grid | {f"choosing_{name}": value for name, value in selection_grid.items()}


def measure_persona_search(
    results: GridResults, seed: int, resamples: int, compare_answers: AnswerComparison = same_answer
) -> SearchSummary:
    """Measure gain and cost of the search from the cells of a run. It compares no answers with one another."""
    best = selected_persona_id(results)
    questions, samples = results.question_ids, range(results.samples)
    selection_P_Q_S = results.scores(results.selection_persona_ids, results.selection_question_ids)
    baseline_Q_S = results.scores([None], questions)[0]
    correct_Q_S = np.full_like(baseline_Q_S, np.nan) if best is None else results.scores([best], questions)[0]
    gain = accuracy_gain(correct_Q_S, baseline_Q_S, seed, resamples)
    cost = mean_token_cost(
        AnswerCalls(
            [None if best is None else results.get_cell(best, question, sample)], results.get_cell(None, question, sample)
        )
        for question in questions
        for sample in samples
    )
    return SearchSummary(
        **gain._asdict(), **cost._asdict(), selected_persona_id=best,
        selection_tokens=sum_tokens(
            results.get_cell(persona, question, sample)
            for persona in results.selection_persona_ids
            for question in results.selection_question_ids
            for sample in samples
        ),
        candidates=_summarize_candidates(results.selection_persona_ids, selection_P_Q_S, seed, resamples),
        n_selection_questions=int((~np.isnan(selection_P_Q_S).any(axis=(0, 2))).sum()),
        n_scored=int((~np.isnan(correct_Q_S)).sum()), n_asked=correct_Q_S.size,
    )  # fmt: skip


def _summarize_candidates(ids: Sequence[str], correct_P_Q_S: Array, seed: int, resamples: int) -> tuple[CandidatePersona, ...]:
    whole_Q = ~np.isnan(correct_P_Q_S).any(axis=(0, 2))
    mean_P_Q = statistics.mean_over_samples(correct_P_Q_S[:, whole_Q])
    return tuple(
        CandidatePersona(id=id, accuracy=statistics.bootstrap_mean(mean_Q, seed, resamples, statistics.bootstrap_share))
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
