"""Arithmetic: sums, differences and products made on the spot, in levels of difficulty. Needs no data and no network.

A question:

    Question(id="arithmetic:7+5", task="arithmetic", text="What is 7 + 5?", gold="12", tags=("add-1",), solution="7 + 5 = 12.")

Levels take turns, each giving its questions in the order that the seed shuffles: item i depends on seed, split, levels and i.
A question's side depends on its content alone, with the operands of sums and products put in order: 7 + 5 and 5 + 7 stand on the
same side under every seed. A level that is used up is passed over, so of a large n the easy levels give less than their share.

The prompt is the bare question: a small model does not box unasked. The answer is the last box, else the last number.
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
from permix.tasks.base import Task, refuse_unknown_levels, side
from permix.types import Question, Split, seed_from
from permix.verification.math_verifier import last_number

OPERATIONS: dict[str, Callable[[int, int], int]] = {"+": operator.add, "-": operator.sub, "*": operator.mul}

ONE, TWO, THREE = range(10), range(10, 100), range(100, 1000)


class Level(NamedTuple):
    """One operation over operands from these ranges. Differences are never negative: the first operand is not the smaller."""

    operation: Literal["+", "-", "*"]
    ranges: tuple[range, ...]

    @property
    def size(self) -> int:
        return math.prod(map(len, self.ranges))

    def operands(self, index: int) -> tuple[int, ...]:
        """The index-th combination of operands, 0 <= index < size."""
        chosen = []
        for values in self.ranges:
            index, at = divmod(index, len(values))
            chosen.append(values[at])
        return tuple(chosen)


LEVELS: dict[str, Level] = {
    "add-1": Level("+", (ONE, ONE)),
    "sub-1": Level("-", (ONE, ONE)),
    "mul-1": Level("*", (ONE, ONE)),
    "add-1x3": Level("+", (ONE, ONE, ONE)),
    "add-1x4": Level("+", (ONE, ONE, ONE, ONE)),
    "add-2": Level("+", (TWO, TWO)),
    "sub-2": Level("-", (TWO, TWO)),
    "mul-2x1": Level("*", (TWO, ONE)),
    "add-2x3": Level("+", (TWO, TWO, TWO)),
    "mul-2": Level("*", (TWO, TWO)),
    "add-3": Level("+", (THREE, THREE)),
    "sub-3": Level("-", (THREE, THREE)),
}

DEFAULT_LEVELS = ("add-1", "sub-1", "mul-1", "add-1x3", "add-2")


def questions(config: TaskConfig) -> tuple[Question, ...]:
    levels = config.levels or DEFAULT_LEVELS
    refuse_unknown_levels(levels, LEVELS, "arithmetic")
    if config.path is not None:
        raise ConfigError(f"task.path = {config.path}: arithmetic is made on the spot and reads no file")
    items = tuple(islice(walk(levels, config.seed, config.split), config.n))
    if len(items) < config.n:
        each = ", ".join(f"{level} {n}" for level, n in Counter(item.tags[0] for item in items).items())
        raise ConfigError(
            f"task.n = {config.n}: arithmetic has {len(items)} distinct questions on the {config.split} side of these levels "
            f"({each}); give task.n = {len(items)} or less, or more task.levels"
        )
    return items


def walk(levels: tuple[str, ...], seed: int, split: Split) -> Iterator[Question]:
    """Items 0, 1, 2 ... until every level is used up."""
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
    """Every question that a level has on a side, once each, in the seed's order."""
    operation = LEVELS[level].operation
    for index in shuffled(LEVELS[level].size, seed_from("arithmetic", level, seed)):
        operands = LEVELS[level].operands(index)
        if operation == "-" and operands[0] < operands[1]:
            continue
        canonical = operands if operation == "-" else tuple(sorted(operands))
        if side(f"{operation}{canonical}") == split:
            yield make(level, operands)


def shuffled(size: int, seed: int) -> Iterator[int]:
    """0 ... size - 1 in random order, each drawn when it is asked for: a few of a million cost no more than a few."""
    rng = random.Random(seed)
    moved: dict[int, int] = {}
    for last in range(size - 1, -1, -1):
        at = rng.randrange(last + 1)
        yield moved.get(at, at)
        moved[at] = moved.pop(last, last)


def make(level: str, operands: tuple[int, ...]) -> Question:
    operation = LEVELS[level].operation
    text = f" {operation} ".join(map(str, operands))
    gold = functools.reduce(OPERATIONS[operation], operands)
    name = f"arithmetic:{text.replace(' ', '')}"
    return Question(
        id=name, task="arithmetic", text=f"What is {text}?", gold=str(gold), tags=(level,), solution=f"{text} = {gold}."
    )


ARITHMETIC = Task(name="arithmetic", wording="{question}", questions=questions, unboxed=last_number, numbers=True)
