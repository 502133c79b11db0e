"""What a strategy is: what it asks, and what its answers gained and cost.

A strategy is one file that ends in one `Strategy(...)`, and one line of the registry in `permix.evals.strategies`. It asks in two
rounds, both lists of cells that depend on content, seed and earlier answers alone, so a run that was killed asks the rest and
nothing twice. It is measured from records alone. A missing score or token count stays missing: what needs it is None or left out,
and counted.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from permix.evals.grid import GridResults, PromptFormat, build_grid, describe_grid
from permix.metrics.stability import summarize_stability
from permix.metrics.statistics import Array
from permix.personas.pool import PersonaPool
from permix.types import Cell, CellKey, Estimate, Persona, Question, Record

CellsByKey = Mapping[CellKey, Cell]


class EvalSetup(NamedTuple):
    """What an evaluation asks, whatever the strategy. `choosing`: questions to choose a persona by, none of them evaluated."""

    questions: tuple[Question, ...]
    pool: PersonaPool
    prompt_format: PromptFormat
    samples: int
    seed: int
    selection_questions: tuple[Question, ...] = ()

    def build_grid(self, personas: Sequence[Persona | None], questions: Sequence[Question]) -> list[Cell]:
        return build_grid(personas, questions, self.prompt_format, samples=self.samples, seed=self.seed)


class StrategyTokens(Record):
    """Tokens: what was read, and what was written."""

    prompt_tokens: float
    completion_tokens: float

    @property
    def total(self) -> float:
        return self.prompt_tokens + self.completion_tokens


class StrategySummary(Record):
    """What a strategy gained over asking once without a persona, and what one answer of it cost.

    `gain` is paired by question. `spent` is the mean over answers of the tokens of all calls behind one, `once` that of asking
    the same questions once without a persona, `times` the one divided by the other; answers with a call whose tokens are not
    known are left out. `choosing` is spent once, before the first answer. `n_scored` of `n_asked` counts answers.
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
        """What else there is to say, in words; may hold ids."""
        return ""


StrategyMeasure = Callable[[GridResults, int, int], StrategySummary]
"""(answers, seed, resamples) -> summary."""


def full_grid_cells(setup: EvalSetup) -> list[Cell]:
    """Every question as every persona and as none: what plain stability asks."""
    return setup.build_grid([None, *setup.pool.personas], setup.questions)


def _no_followups(setup: EvalSetup, cells: CellsByKey) -> list[Cell]:
    return []


def _zero_followups(setup: EvalSetup) -> int:
    return 0


def _describe_full_grid(setup: EvalSetup, followup_cells: Sequence[Cell]) -> dict[str, object]:
    return describe_grid(setup.pool.personas, setup.questions, setup.samples, setup.prompt_format.crossed_templates)


@dataclass(frozen=True)
class Strategy:
    """`initial_cells` is asked at once; `followup_cells` in the light of all cells so far, at most `max_followups` cells.
    Cells without gold get no verdict.

    `describe_grid` gives grid.json from what `followup_cells` gave; its grid is what stability is measured on.
    `selects_persona`: the set-up needs questions to choose by.
    """

    measure: StrategyMeasure | None
    initial_cells: Callable[[EvalSetup], list[Cell]] = full_grid_cells
    followup_cells: Callable[[EvalSetup, CellsByKey], list[Cell]] = _no_followups
    max_followups: Callable[[EvalSetup], int] = _zero_followups
    describe_grid: Callable[[EvalSetup, Sequence[Cell]], dict[str, object]] = _describe_full_grid
    selects_persona: bool = False

    @property
    def is_full_grid(self) -> bool:
        """Whether a run of it is one of plain stability too."""
        return self.initial_cells is full_grid_cells


NO_STRATEGY = Strategy(measure=None)


class AccuracyGain(NamedTuple):
    accuracy: Estimate
    baseline: Estimate
    gain: Estimate


def accuracy_gain(correct_Q_S: Array, baseline_Q_S: Array, seed: int, resamples: int) -> AccuracyGain:
    """Accuracy of a strategy, of no persona, and their difference on the questions that both have a score for.

    Measured as the stability of a single persona, so on the draws of questions that every table of a seed rests on.
    """
    summary = summarize_stability(correct_Q_S[None], baseline_Q_S, seed=seed, resamples=resamples)
    (one,) = summary.personas
    return AccuracyGain(one.accuracy, summary.baseline, one.difference)


class AnswerCalls(NamedTuple):
    """The cells behind one answer, and the cell that asks its question once without a persona; None where there is none yet."""

    calls: Sequence[Cell | None]
    baseline_call: Cell | None


class TokenCost(NamedTuple):
    tokens_per_answer: StrategyTokens | None
    baseline_tokens: StrategyTokens | None
    token_ratio: float | None


def mean_token_cost(answer_calls: Iterable[AnswerCalls]) -> TokenCost:
    """Mean tokens of an answer, and of asking once, over the answers all of whose calls came back."""
    pairs = [(sum_tokens(calls.calls), sum_tokens([calls.baseline_call])) for calls in answer_calls]
    whole = [(own, once) for own, once in pairs if own is not None and once is not None]
    if not whole:
        return TokenCost(None, None, None)
    own, once = (_mean_tokens(some) for some in zip(*whole, strict=True))
    return TokenCost(own, once, own.total / once.total if once.total else None)


def sum_tokens(cells: Iterable[Cell | None]) -> StrategyTokens | None:
    """The tokens of these calls; None when one of them has not come back, or is not counted: half a sum would mislead."""
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
    """(whether the cell was answered and read, the answer in it or None). A verifier that failed has read it all the same."""
    if cell is None or cell.verdict is None or (cell.verdict.correct is None and cell.verdict.extracted is None):
        return False, None
    return True, cell.verdict.extracted


def recorded_score(cell: Cell | None) -> float:
    """1 right, 0 wrong, NaN without a score."""
    reward = None if cell is None or cell.verdict is None else cell.verdict.reward
    return float("nan") if reward is None else reward
