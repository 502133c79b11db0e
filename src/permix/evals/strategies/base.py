"""What a strategy is: what it asks, and what its answers gained and cost.

A strategy is one file that ends in one `Strategy(...)`, and one line of the registry in `permix.evals.strategies`. It asks in two
rounds, both lists of cells that depend on content, seed and earlier answers alone, so a run that was killed asks the rest and
nothing twice. It is measured from records alone. A missing score or token count stays missing: what needs it is None or left out,
and counted.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from permix.evals.grid import Answers, Wording, describe_asked, lay_out
from permix.metrics.stability import summarize
from permix.metrics.statistics import Array
from permix.personas.pool import PersonaPool
from permix.types import Cell, CellKey, Estimate, Persona, Question, Record

Cells = Mapping[CellKey, Cell]


class Setup(NamedTuple):
    """What an evaluation asks, whatever the strategy. `choosing`: questions to choose a persona by, none of them evaluated."""

    questions: tuple[Question, ...]
    pool: PersonaPool
    wording: Wording
    samples: int
    seed: int
    choosing: tuple[Question, ...] = ()

    def lay_out(self, personas: Sequence[Persona | None], questions: Sequence[Question]) -> list[Cell]:
        return lay_out(personas, questions, self.wording, samples=self.samples, seed=self.seed)


class Spent(Record):
    """Tokens: what was read, and what was written."""

    prompt: float
    completion: float

    @property
    def total(self) -> float:
        return self.prompt + self.completion


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
    spent: Spent | None
    once: Spent | None
    times: float | None
    choosing: Spent | None = None
    n_scored: int
    n_asked: int

    @property
    def details(self) -> str:
        """What else there is to say, in words; may hold ids."""
        return ""


Measure = Callable[[Answers, int, int], StrategySummary]
"""(answers, seed, resamples) -> summary."""


def whole_grid(setup: Setup) -> list[Cell]:
    """Every question as every persona and as none: what plain stability asks."""
    return setup.lay_out([None, *setup.pool.personas], setup.questions)


def _nothing(setup: Setup, cells: Cells) -> list[Cell]:
    return []


def _none(setup: Setup) -> int:
    return 0


def _whole_pool(setup: Setup, then: Sequence[Cell]) -> dict[str, object]:
    return describe_asked(setup.pool.personas, setup.questions, setup.samples, setup.wording.crossed)


@dataclass(frozen=True)
class Strategy:
    """`first` is asked at once; `then` in the light of all cells so far, at most `most` cells. Cells without gold get no verdict.

    `describe` gives asked.json from what `then` gave; its grid is what stability is measured on. `chooses`: the set-up needs
    questions to choose by.
    """

    measure: Measure | None
    first: Callable[[Setup], list[Cell]] = whole_grid
    then: Callable[[Setup, Cells], list[Cell]] = _nothing
    most: Callable[[Setup], int] = _none
    describe: Callable[[Setup, Sequence[Cell]], dict[str, object]] = _whole_pool
    chooses: bool = False

    @property
    def asks_whole_grid(self) -> bool:
        """Whether a run of it is one of plain stability too."""
        return self.first is whole_grid


PLAIN = Strategy(measure=None)


class Compared(NamedTuple):
    accuracy: Estimate
    baseline: Estimate
    gain: Estimate


def compared(correct_Q_S: Array, baseline_Q_S: Array, seed: int, resamples: int) -> Compared:
    """Accuracy of a strategy, of no persona, and their difference on the questions that both have a score for.

    Measured as the stability of a single persona, so on the draws of questions that every table of a seed rests on.
    """
    summary = summarize(correct_Q_S[None], baseline_Q_S, seed=seed, resamples=resamples)
    (one,) = summary.personas
    return Compared(one.accuracy, summary.baseline, one.difference)


class Calls(NamedTuple):
    """The cells behind one answer, and the cell that asks its question once without a persona; None where there is none yet."""

    behind: Sequence[Cell | None]
    once: Cell | None


class Cost(NamedTuple):
    spent: Spent | None
    once: Spent | None
    times: float | None


def cost(answers: Iterable[Calls]) -> Cost:
    """Mean tokens of an answer, and of asking once, over the answers all of whose calls came back."""
    pairs = [(spent(calls.behind), spent([calls.once])) for calls in answers]
    whole = [(own, once) for own, once in pairs if own is not None and once is not None]
    if not whole:
        return Cost(None, None, None)
    own, once = (_mean(some) for some in zip(*whole, strict=True))
    return Cost(own, once, own.total / once.total if once.total else None)


def spent(cells: Iterable[Cell | None]) -> Spent | None:
    """The tokens of these calls; None when one of them has not come back, or is not counted: half a sum would mislead."""
    prompt = completion = 0
    for cell in cells:
        one = None if cell is None else cell.completion
        if one is None or one.prompt_tokens is None or one.completion_tokens is None:
            return None
        prompt, completion = prompt + one.prompt_tokens, completion + one.completion_tokens
    return Spent(prompt=prompt, completion=completion)


def _mean(some: Sequence[Spent]) -> Spent:
    return Spent(prompt=sum(one.prompt for one in some) / len(some), completion=sum(one.completion for one in some) / len(some))


def said(cell: Cell | None) -> tuple[bool, str | None]:
    """(whether the cell was answered and read, the answer in it or None). A verifier that failed has read it all the same."""
    if cell is None or cell.verdict is None or (cell.verdict.correct is None and cell.verdict.extracted is None):
        return False, None
    return True, cell.verdict.extracted


def score(cell: Cell | None) -> float:
    """1 right, 0 wrong, NaN without a score."""
    reward = None if cell is None or cell.verdict is None else cell.verdict.reward
    return float("nan") if reward is None else reward
