"""The interface of strategies: the cells that a strategy asks, and the measures of its gain and cost.

A strategy is one file that defines one `Strategy(...)`, and one entry of the registry in `permix.evals.strategies`. It asks
initial cells, and then follow-up cells.

Contract: the cells depend only on content, seed and earlier answers, so an interrupted run asks the remaining cells and no cell
twice. Measures are computed from the records alone. A missing score or token count stays missing: a value that needs it is None
or leaves the answer out, and the counts show it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from permix.evals.grid import GridResults, PromptFormat, build_grid, describe_grid
from permix.metrics.stability import summarize_stability
from permix.metrics.statistics import Array
from permix.personas.pool import PersonaPool
from permix.tasks import TASKS
from permix.types import Cell, CellKey, Estimate, Persona, Question, Record
from permix.verification.math_verifier import same_answer

CellsByKey = Mapping[CellKey, Cell]

AnswerComparison = Callable[[str, str], bool]
"""(extracted answer, another one) -> whether they are equal."""


def answer_comparison(task: str) -> AnswerComparison:
    """How two answers to a question of this task are compared: as the task compares an answer with the gold, if it says how.

    Answers of equal text are equal too, also those that the task never takes for right. `same_answer` compares the answers of all
    other tasks: mathematics, programs, and tasks of the user's own modules. These are not looked up, since a run is measured from
    its records, and a name in them must not import a module.
    """
    answers_match = TASKS[task].answers_match if task in TASKS else None
    if answers_match is None:
        return same_answer
    return partial(_same_by_task, answers_match)


def _same_by_task(answers_match: AnswerComparison, one: str, other: str) -> bool:
    if not one.strip() or not other.strip():
        return False
    return one == other or answers_match(one, other) or answers_match(other, one)


class EvalSetup(NamedTuple):
    """The input of an evaluation. `selection_questions` serve to choose a persona; they are disjoint from `questions`.
    `compare_answers` is the task's `answer_comparison`.
    """

    questions: tuple[Question, ...]
    pool: PersonaPool
    prompt_format: PromptFormat
    samples: int
    seed: int
    selection_questions: tuple[Question, ...] = ()
    compare_answers: AnswerComparison = same_answer

    def build_grid(self, personas: Sequence[Persona | None], questions: Sequence[Question]) -> list[Cell]:
        """Build the cells of these personas and questions with the settings of this evaluation."""
        return build_grid(personas, questions, self.prompt_format, samples=self.samples, seed=self.seed)


class StrategyTokens(Record):
    """Numbers of tokens read and written; means of them can be fractions."""

    prompt_tokens: float
    completion_tokens: float

    @property
    def total(self) -> float:
        return self.prompt_tokens + self.completion_tokens


class StrategySummary(Record):
    """Gain of a strategy over a single call without a persona (the baseline), and its cost in tokens.

    `gain` is paired by question. `tokens_per_answer` is the mean over answers of the tokens of all calls for that answer,
    `baseline_tokens` the mean for the baseline on the same questions, and `token_ratio` the first divided by the second; answers
    with an unknown token count are left out. `selection_tokens` are spent once, before the first answer. `n_scored` and `n_asked`
    count answers.
    """

    strategy: str
    accuracy: Estimate
    baseline: Estimate
    gain: Estimate
    tokens_per_answer: StrategyTokens | None
    baseline_tokens: StrategyTokens | None
    token_ratio: float | None
    selection_tokens: StrategyTokens | None = None
    n_scored: int
    n_asked: int

    @property
    def details_text(self) -> str:
        """Further results as a text for reports; it can contain ids."""
        return ""


StrategyMeasure = Callable[[GridResults, int, int, AnswerComparison], StrategySummary]
"""(answers, seed, resamples, comparison of two answers) -> summary."""


def full_grid_cells(setup: EvalSetup) -> list[Cell]:
    """Every question with every persona and without one: the cells of a stability run without a strategy."""
    return setup.build_grid([None, *setup.pool.personas], setup.questions)


def _no_followups(setup: EvalSetup, cells: CellsByKey) -> list[Cell]:
    return []


def _zero_followups(setup: EvalSetup) -> int:
    return 0


def _describe_full_grid(setup: EvalSetup, followup_cells: Sequence[Cell]) -> dict[str, object]:
    crossed = setup.prompt_format.crossed_templates, setup.prompt_format.contexts
    return describe_grid(setup.pool.personas, setup.questions, setup.samples, *crossed)


@dataclass(frozen=True)
class Strategy:
    """The cells that a strategy asks, and its measure (None for no strategy).

    `initial_cells` builds the cells that are asked first. `followup_cells` builds further cells from the setup and all answered
    cells, at most `max_followups`. Cells without gold get no verdict. `describe_grid` returns the
    content of grid.json from the setup and the follow-up cells; stability is measured on this grid. `selects_persona`: whether
    the setup needs `selection_questions`.
    """

    measure: StrategyMeasure | None
    initial_cells: Callable[[EvalSetup], list[Cell]] = full_grid_cells
    followup_cells: Callable[[EvalSetup, CellsByKey], list[Cell]] = _no_followups
    max_followups: Callable[[EvalSetup], int] = _zero_followups
    describe_grid: Callable[[EvalSetup, Sequence[Cell]], dict[str, object]] = _describe_full_grid
    selects_persona: bool = False

    @property
    def is_full_grid(self) -> bool:
        """Whether a run with this strategy contains all cells of a stability run without a strategy."""
        return self.initial_cells is full_grid_cells


NO_STRATEGY = Strategy(measure=None)


class AccuracyGain(NamedTuple):
    """Accuracy of a strategy and of the baseline, and their difference."""

    accuracy: Estimate
    baseline: Estimate
    gain: Estimate


def accuracy_gain(correct_Q_S: Array, baseline_Q_S: Array, seed: int, resamples: int) -> AccuracyGain:
    """Measure accuracy of a strategy and of the baseline, and their difference on questions that both have scores for.

    `correct_Q_S` and `baseline_Q_S` are 1, 0 or NaN by question and sample. The strategy is measured as the stability of a single
    persona, so it uses the same resamples of questions as every other table with this seed.
    """
    summary = summarize_stability(correct_Q_S[None], baseline_Q_S, seed=seed, resamples=resamples)
    (persona,) = summary.personas
    return AccuracyGain(persona.accuracy, summary.baseline, persona.difference)


class AnswerCalls(NamedTuple):
    """The cells of all calls for one answer, and the baseline cell of its question; None if a cell does not exist yet."""

    calls: Sequence[Cell | None]
    baseline_call: Cell | None


class TokenCost(NamedTuple):
    """Mean tokens as in `StrategySummary`; all None if no answer has all its token counts."""

    tokens_per_answer: StrategyTokens | None
    baseline_tokens: StrategyTokens | None
    token_ratio: float | None


def mean_token_cost(answer_calls: Iterable[AnswerCalls]) -> TokenCost:
    """Mean tokens of an answer and of the baseline, over the answers whose calls all have token counts."""
    pairs = [(sum_tokens(calls.calls), sum_tokens([calls.baseline_call])) for calls in answer_calls]
    counted = [(answer, baseline) for answer, baseline in pairs if answer is not None and baseline is not None]
    if not counted:
        return TokenCost(None, None, None)
    answer, baseline = (_mean_tokens(some) for some in zip(*counted, strict=True))
    return TokenCost(answer, baseline, answer.total / baseline.total if baseline.total else None)


def sum_tokens(cells: Iterable[Cell | None]) -> StrategyTokens | None:
    """Sum the tokens of calls; None if a call is missing or has no token count, since a partial sum would mislead."""
    prompt = completion = 0
    for cell in cells:
        one = None if cell is None else cell.completion
        if one is None or one.prompt_tokens is None or one.completion_tokens is None:
            return None
        prompt, completion = prompt + one.prompt_tokens, completion + one.completion_tokens
    return StrategyTokens(prompt_tokens=prompt, completion_tokens=completion)


def _mean_tokens(tokens: Sequence[StrategyTokens]) -> StrategyTokens:
    return StrategyTokens(
        prompt_tokens=sum(one.prompt_tokens for one in tokens) / len(tokens),
        completion_tokens=sum(one.completion_tokens for one in tokens) / len(tokens),
    )


def recorded_answer(cell: Cell | None) -> tuple[bool, str | None]:
    """(whether the verifier read the cell, the extracted answer or None).

    If the verifier failed after it had extracted an answer, the cell counts as read.
    """
    if cell is None or cell.verdict is None or (cell.verdict.correct is None and cell.verdict.extracted is None):
        return False, None
    return True, cell.verdict.extracted


def recorded_score(cell: Cell | None) -> float:
    """Score of a cell: 1 right, 0 wrong, NaN without a score."""
    reward = None if cell is None or cell.verdict is None else cell.verdict.reward
    return float("nan") if reward is None else reward
