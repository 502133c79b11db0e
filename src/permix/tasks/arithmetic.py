"""Arithmetic: generated sums, differences and products, in levels of difficulty. It needs no data and no network.

A question:

    Question(id="arithmetic:7+5", task="arithmetic", text="What is 7 + 5?", gold="12", tags=("add-1",), solution="7 + 5 = 12.")

The levels take turns, and each yields its questions in an order shuffled by the seed: question i depends only on seed, split,
levels and i. The split of a question depends only on its content, with the operands of sums and products sorted: 7 + 5 and 5 + 7
are in the same split under every seed. A level without further questions is skipped, so with a large n easy levels contribute
less than their share.

The prompt is the bare question, since small models do not follow a request for a box. The answer of a completion is its last
box, else what `<answer>` tags hold or the last "answer is" names, else its last number that is not a part of an expression.
"""

import functools
import math
import operator
import random
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import cycle, islice
from typing import Literal, NamedTuple

from permix.config import TaskConfig
from permix.errors import ConfigError
from permix.tasks.answers import extract_number
from permix.tasks.base import Task, check_known_levels, split_of_content
from permix.types import Question, Split, seed_from

OPERATIONS: dict[str, Callable[[int, int], int]] = {"+": operator.add, "-": operator.sub, "*": operator.mul}

ONE_DIGIT, TWO_DIGITS, THREE_DIGITS = range(10), range(10, 100), range(100, 1000)


class ArithmeticLevel(NamedTuple):
    """One operation on operands from these ranges. In differences the first operand is never the smaller one."""

    operation: Literal["+", "-", "*"]
    operand_ranges: tuple[range, ...]

    @property
    def n_combinations(self) -> int:
        """Number of combinations of operands."""
        return math.prod(map(len, self.operand_ranges))

    def operands(self, index: int) -> tuple[int, ...]:
        """The index-th combination of operands, 0 <= index < n_combinations."""
        chosen = []
        for values in self.operand_ranges:
            index, at = divmod(index, len(values))
            chosen.append(values[at])
        return tuple(chosen)


ARITHMETIC_LEVELS: dict[str, ArithmeticLevel] = {
    "add-1": ArithmeticLevel("+", (ONE_DIGIT, ONE_DIGIT)),
    "sub-1": ArithmeticLevel("-", (ONE_DIGIT, ONE_DIGIT)),
    "mul-1": ArithmeticLevel("*", (ONE_DIGIT, ONE_DIGIT)),
    "add-1x3": ArithmeticLevel("+", (ONE_DIGIT, ONE_DIGIT, ONE_DIGIT)),
    "add-1x4": ArithmeticLevel("+", (ONE_DIGIT, ONE_DIGIT, ONE_DIGIT, ONE_DIGIT)),
    "add-2": ArithmeticLevel("+", (TWO_DIGITS, TWO_DIGITS)),
    "sub-2": ArithmeticLevel("-", (TWO_DIGITS, TWO_DIGITS)),
    "mul-2x1": ArithmeticLevel("*", (TWO_DIGITS, ONE_DIGIT)),
    "add-2x3": ArithmeticLevel("+", (TWO_DIGITS, TWO_DIGITS, TWO_DIGITS)),
    "mul-2": ArithmeticLevel("*", (TWO_DIGITS, TWO_DIGITS)),
    "add-3": ArithmeticLevel("+", (THREE_DIGITS, THREE_DIGITS)),
    "sub-3": ArithmeticLevel("-", (THREE_DIGITS, THREE_DIGITS)),
}

DEFAULT_ARITHMETIC_LEVELS = ("add-1", "sub-1", "mul-1", "add-1x3", "add-2")


def arithmetic_questions(config: TaskConfig) -> tuple[Question, ...]:
    """The `config.n` questions of a configuration. Raises ConfigError for an unknown level, a path, or too large an n."""
    levels = config.levels or DEFAULT_ARITHMETIC_LEVELS
    check_known_levels(levels, ARITHMETIC_LEVELS, "arithmetic")
    if config.path is not None:
        raise ConfigError(
            f"task.path = {config.path}: arithmetic is generated and reads no file; to ask your own questions give task.answer "
            "(number, math, exact or choice), for a copy of a data set give task.name, else leave path out"
        )
    items = tuple(islice(interleave_levels(levels, config.seed, config.single_split), config.n))
    if len(items) < config.n:
        each = ", ".join(f"{level} {n}" for level, n in Counter(item.tags[0] for item in items).items())
        raise ConfigError(
            f"task.n = {config.n}: arithmetic has {len(items)} distinct questions of these levels in the {config.split} split "
            f"({each}); give task.n = {len(items)} or less, or more task.levels"
        )
    return items


def interleave_levels(levels: tuple[str, ...], seed: int, split: Split) -> Iterator[Question]:
    """Yield one question of each level in turn until no level has any left."""
    left = {level: level_questions(level, seed, split) for level in levels}
    for level in cycle(levels):
        if not left:
            return
        if level in left:
            try:
                yield next(left[level])
            except StopIteration:
                del left[level]


def level_questions(level: str, seed: int, split: Split) -> Iterator[Question]:
    """Yield every question of a level in a split once, in an order shuffled by the seed."""
    operation = ARITHMETIC_LEVELS[level].operation
    for index in iterate_shuffled(ARITHMETIC_LEVELS[level].n_combinations, seed_from("arithmetic", level, seed)):
        operands = ARITHMETIC_LEVELS[level].operands(index)
        if operation == "-" and operands[0] < operands[1]:
            continue
        canonical = operands if operation == "-" else tuple(sorted(operands))
        if split_of_content(f"{operation}{canonical}") == split:
            yield make_arithmetic_question(level, operands)


def iterate_shuffled(size: int, seed: int) -> Iterator[int]:
    """Yield 0 ... size - 1 in random order, drawn lazily: the first k of a million numbers cost O(k) time and memory."""
    rng = random.Random(seed)
    moved: dict[int, int] = {}
    for last in range(size - 1, -1, -1):
        at = rng.randrange(last + 1)
        yield moved.get(at, at)
        moved[at] = moved.pop(last, last)


def make_arithmetic_question(level: str, operands: tuple[int, ...]) -> Question:
    operation = ARITHMETIC_LEVELS[level].operation
    text = f" {operation} ".join(map(str, operands))
    gold = functools.reduce(OPERATIONS[operation], operands)
    name = f"arithmetic:{text.replace(' ', '')}"
    return Question(
        id=name, task="arithmetic", text=f"What is {text}?", gold=str(gold), tags=(level,), solution=f"{text} = {gold}."
    )


ARITHMETIC = Task(
    name="arithmetic",
    prompt_template="{question}",
    questions=arithmetic_questions,
    extract=extract_number,
    max_new_tokens=128,
)
