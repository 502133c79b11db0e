"""Adaptive personas: draw more often those under whom accuracy is lost, a block of steps at a time.

The chance of persona p in a block is floor · plain_p + (1 − floor) · w_p, where w_p ∝ plain_p · exp(strength · (ā − a_p)): the
exponentiated weights of group DRO (Sagawa et al. 2020), with a floor so that none vanishes. a_p is the share of right answers
under p in the blocks before, each counting half as much as the next, drawn towards the mean ā by as many rollouts as a group has.

A block's weights follow from the recorded rollouts of earlier blocks and from nothing else. So a resumed run has the same ones,
and `plan_blocks.jsonl` (weights, accuracies, counts, hash of the rows) can be checked against `rollouts.jsonl` line by line.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from permix.plan import Mixture, Plan, Recipe
from permix.training.rewards import Rollout
from permix.types import PlanRow, digest

FADE = 0.5
"""What a block counts for, beside the one after it."""


class Outcome(NamedTuple):
    """One scored rollout: its step of the plan, from 0; its persona; its reward by the verifier alone."""

    step: int
    persona_id: str
    reward: float


def outcomes(rollouts: Iterable[Rollout], iterations: int) -> list[Outcome]:
    """Of the rollouts under a persona that have a verdict. They count optimizer steps, `iterations` to a step of the plan."""
    return [
        Outcome((rollout.step - 1) // iterations, rollout.persona_id, rollout.verdict.reward)
        for rollout in rollouts
        if rollout.persona_id is not None and rollout.verdict.reward is not None
    ]


def recorded(lines: Iterable[Mapping[str, Any]], iterations: int) -> list[Outcome]:
    """The same, from the lines of rollouts.jsonl."""
    return [
        Outcome((line["step"] - 1) // iterations, line["persona_id"], float(line["verdict"]["correct"]))
        for line in lines
        if line["persona_id"] is not None and line["verdict"]["correct"] is not None
    ]


class Block(NamedTuple):
    """The rows of some steps, and how their personas were weighted."""

    number: int
    rows: tuple[PlanRow, ...]
    chance: Mapping[str, float]
    accuracy: Mapping[str, float]
    rollouts: Mapping[str, int]

    @property
    def record(self) -> dict[str, Any]:
        return {
            "block": self.number,
            "first_step": self.rows[0].step + 1,
            "rows": digest(*(row.model_dump_json() for row in self.rows)),
            "chance": {name: round(value, 6) for name, value in self.chance.items()},
            "accuracy": {name: round(value, 6) for name, value in self.accuracy.items()},
            "rollouts": dict(self.rollouts),
        }


class Curriculum:
    """Lays out one block after another. `note` what happened in all earlier steps before asking for a block."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.blocks: list[Block] = []
        self._outcomes: list[Outcome] = []

    def note(self, outcomes: Iterable[Outcome]) -> None:
        self._outcomes.extend(outcomes)

    def lay(self, plan: Plan, step: int) -> Plan | None:
        """The plan with every block drawn up to that of `step` (from 0), or None when there is none to draw.

        The first block is the plan's own.
        """
        begun = range(len(self.blocks) + 1, step // self.recipe.config.adaptive_every + 1)
        if not begun:
            return None
        self.blocks += [self.block(number) for number in begun]
        drawn = [row for block in self.blocks for row in block.rows]
        steps = {row.step for row in drawn}
        kept = [row for row in plan.rows if row.step not in steps]
        return Plan(tuple(sorted([*kept, *drawn], key=lambda row: (row.step, row.group))), plan.about)

    def block(self, number: int) -> Block:
        """The block that begins at step `number × adaptive_every`."""
        config, mixture = self.recipe.config, self.recipe.mixture
        names = [persona.id for persona in mixture.personas]
        accuracy = accuracies(self._outcomes, names, number, config.adaptive_every, config.group_size)
        chance = adapted(mixture.weights, accuracy, config.adaptive, config.adaptive_floor)
        first = number * config.adaptive_every
        steps = range(first, min(first + config.adaptive_every, config.steps))
        rows = tuple(self.recipe.rows(steps, Mixture(mixture.personas, tuple(chance))))
        seen = [outcome.persona_id for outcome in self._outcomes if outcome.step < first]
        return Block(
            number, rows, dict(zip(names, chance, strict=True)), dict(zip(names, accuracy, strict=True)),
            {name: seen.count(name) for name in names},
        )  # fmt: skip


def accuracies(outcomes: Iterable[Outcome], names: Sequence[str], block: int, every: int, prior: int) -> list[float]:
    """Faded accuracy under each persona over the blocks before this one; the mean of all where nothing is known."""
    right: defaultdict[str, float] = defaultdict(float)
    asked: defaultdict[str, float] = defaultdict(float)
    for outcome in outcomes:
        age = block - 1 - outcome.step // every
        if age >= 0 and outcome.persona_id in names:
            weight = FADE**age
            right[outcome.persona_id] += weight * outcome.reward
            asked[outcome.persona_id] += weight
    everyone = sum(asked.values())
    mean = sum(right.values()) / everyone if everyone else 0.0
    return [(right[name] + prior * mean) / (asked[name] + prior) for name in names]


def adapted(plain: Sequence[float], accuracy: Sequence[float], strength: float, floor: float) -> list[float]:
    """The chance of each persona; sums to 1."""
    total = sum(plain)
    base = [weight / total for weight in plain]
    mean = sum(share * found for share, found in zip(base, accuracy, strict=True))
    raised = [share * math.exp(strength * (mean - found)) for share, found in zip(base, accuracy, strict=True)]
    return [floor * share + (1 - floor) * weight / sum(raised) for share, weight in zip(base, raised, strict=True)]
