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
from pathlib import Path
from typing import Any, NamedTuple

from permix.plan import PersonaSampler, Plan, PlanBuilder
from permix.training import distributed
from permix.training.rewards import Rollout
from permix.training.run_log import read_training_log
from permix.types import PlanRow, digest

ACCURACY_DECAY = 0.5
"""What a block counts for, beside the one after it."""


class RolloutOutcome(NamedTuple):
    """One scored rollout: its step of the plan, from 0; its persona; its reward by the verifier alone."""

    step: int
    persona_id: str
    reward: float


def rollout_outcomes(rollouts: Iterable[Rollout], updates_per_rollout: int) -> list[RolloutOutcome]:
    """Of the rollouts under a persona that have a verdict. They count optimizer steps, `updates_per_rollout` to a step of
    the plan."""
    return [
        RolloutOutcome((rollout.step - 1) // updates_per_rollout, rollout.persona_id, rollout.verdict.reward)
        for rollout in rollouts
        if rollout.persona_id is not None and rollout.verdict.reward is not None
    ]


def logged_outcomes(lines: Iterable[Mapping[str, Any]], updates_per_rollout: int) -> list[RolloutOutcome]:
    """The same, from the lines of rollouts.jsonl."""
    return [
        RolloutOutcome((line["step"] - 1) // updates_per_rollout, line["persona_id"], float(line["verdict"]["correct"]))
        for line in lines
        if line["persona_id"] is not None and line["verdict"]["correct"] is not None
    ]


class PlanBlock(NamedTuple):
    """The rows of some steps, and how their personas were weighted."""

    number: int
    rows: tuple[PlanRow, ...]
    probabilities: Mapping[str, float]
    accuracy: Mapping[str, float]
    rollout_counts: Mapping[str, int]

    @property
    def record(self) -> dict[str, Any]:
        return {
            "block": self.number,
            "first_step": self.rows[0].step + 1,
            "rows": digest(*(row.model_dump_json() for row in self.rows)),
            "chance": {name: round(value, 6) for name, value in self.probabilities.items()},
            "accuracy": {name: round(value, 6) for name, value in self.accuracy.items()},
            "rollouts": dict(self.rollout_counts),
        }


class Curriculum:
    """Lays out one block after another. `update` what happened in all earlier steps before asking for a block."""

    def __init__(self, plan_builder: PlanBuilder) -> None:
        self.plan_builder = plan_builder
        self.blocks: list[PlanBlock] = []
        self._outcomes: list[RolloutOutcome] = []

    def update(self, outcomes: Iterable[RolloutOutcome]) -> None:
        self._outcomes.extend(outcomes)

    def extend_plan(self, plan: Plan, step: int) -> Plan | None:
        """The plan with every block drawn up to that of `step` (from 0), or None when there is none to draw.

        The first block is the plan's own.
        """
        begun = range(len(self.blocks) + 1, step // self.plan_builder.config.curriculum_update_every + 1)
        if not begun:
            return None
        self.blocks += [self.build_block(number) for number in begun]
        drawn = [row for block in self.blocks for row in block.rows]
        steps = {row.step for row in drawn}
        kept = [row for row in plan.rows if row.step not in steps]
        return Plan(tuple(sorted([*kept, *drawn], key=lambda row: (row.step, row.group))), plan.metadata)

    def build_block(self, number: int) -> PlanBlock:
        """The block that begins at step `number × adaptive_every`."""
        config, mixture = self.plan_builder.config, self.plan_builder.persona_sampler
        names = [persona.id for persona in mixture.personas]
        accuracy = decayed_accuracies(self._outcomes, names, number, config.curriculum_update_every, config.group_size)
        chance = reweighted_probabilities(mixture.weights, accuracy, config.curriculum_strength, config.curriculum_floor)
        first = number * config.curriculum_update_every
        steps = range(first, min(first + config.curriculum_update_every, config.steps))
        rows = tuple(self.plan_builder.build_rows(steps, PersonaSampler(mixture.personas, tuple(chance))))
        seen = [outcome.persona_id for outcome in self._outcomes if outcome.step < first]
        return PlanBlock(
            number, rows, dict(zip(names, chance, strict=True)), dict(zip(names, accuracy, strict=True)),
            {name: seen.count(name) for name in names},
        )  # fmt: skip


def resume_curriculum(plan_builder: PlanBuilder, out: Path, updates_per_rollout: int) -> Curriculum:
    """A curriculum that knows the rollouts which the run directory `out` records, in every process those of the main one."""
    curriculum = Curriculum(plan_builder)
    lines = distributed.broadcast(read_training_log(out / "rollouts.jsonl"))
    curriculum.update(logged_outcomes(lines, updates_per_rollout))
    return curriculum


def decayed_accuracies(
    outcomes: Iterable[RolloutOutcome], persona_ids: Sequence[str], block: int, block_steps: int, prior_rollouts: int
) -> list[float]:
    """Faded accuracy under each persona over the blocks before this one; the mean of all where nothing is known."""
    right: defaultdict[str, float] = defaultdict(float)
    asked: defaultdict[str, float] = defaultdict(float)
    for outcome in outcomes:
        age = block - 1 - outcome.step // block_steps
        if age >= 0 and outcome.persona_id in persona_ids:
            weight = ACCURACY_DECAY**age
            right[outcome.persona_id] += weight * outcome.reward
            asked[outcome.persona_id] += weight
    everyone = sum(asked.values())
    mean = sum(right.values()) / everyone if everyone else 0.0
    return [(right[name] + prior_rollouts * mean) / (asked[name] + prior_rollouts) for name in persona_ids]


def reweighted_probabilities(
    base_weights: Sequence[float], accuracy: Sequence[float], strength: float, floor: float
) -> list[float]:
    """The chance of each persona; sums to 1."""
    total = sum(base_weights)
    base = [weight / total for weight in base_weights]
    mean = sum(share * found for share, found in zip(base, accuracy, strict=True))
    raised = [share * math.exp(strength * (mean - found)) for share, found in zip(base, accuracy, strict=True)]
    return [floor * share + (1 - floor) * weight / sum(raised) for share, weight in zip(base, raised, strict=True)]
