"""Curriculum: draws personas more often where accuracy is lower, for one block of steps at a time.

The chance of persona p in a block is floor · plain_p + (1 − floor) · w_p, where w_p ∝ plain_p · exp(strength · (ā − a_p)): the
exponentiated weights of group DRO (Sagawa et al. 2020), with a floor so that every persona keeps a chance. a_p is the share of
right answers under p in earlier blocks, and ā = Σ plain_p a_p. In a_p a block counts half as much as the next one, and G rollouts
are added whose share of right answers is that of all personas' rollouts, weighted in the same way. This share is not ā. It keeps
a persona with few rollouts near the others.

A block's weights depend on the recorded rollouts of earlier blocks and on nothing else. A resumed run therefore gets the same
weights, and `plan_blocks.jsonl` (weights, accuracies, counts, hash of the rows) can be checked against `rollouts.jsonl`.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from permix.plan import PersonaSampler, Plan, PlanBuilder
from permix.training import distributed
from permix.training.rewards import Rollout
from permix.training.run_log import read_training_log
from permix.types import PlanRow, digest

ACCURACY_DECAY = 0.5
"""Weight of a block's rollouts relative to the next block's."""


class RolloutOutcome(NamedTuple):
    """One scored rollout: its step of the plan, from 0; its persona; its reward by the verifier alone."""

    step: int
    persona_id: str
    reward: float


def rollout_outcomes(rollouts: Iterable[Rollout], updates_per_rollout: int) -> list[RolloutOutcome]:
    """Outcomes of the rollouts that have a persona and a verdict. Rollouts count optimizer steps; a plan step has
    `updates_per_rollout` of them."""
    return [
        RolloutOutcome((rollout.step - 1) // updates_per_rollout, rollout.persona_id, rollout.verdict.reward)
        for rollout in rollouts
        if rollout.persona_id is not None and rollout.verdict.reward is not None
    ]


def logged_outcomes(lines: Iterable[Mapping[str, Any]], updates_per_rollout: int) -> list[RolloutOutcome]:
    """`rollout_outcomes` of the lines of rollouts.jsonl."""
    return [
        RolloutOutcome((line["step"] - 1) // updates_per_rollout, line["persona_id"], float(line["verdict"]["correct"]))
        for line in lines
        if line["persona_id"] is not None and line["verdict"]["correct"] is not None
    ]


class PlanBlock(NamedTuple):
    """The rows of one block of steps; for each persona its chance to be drawn, its accuracy and its number of rollouts so far."""

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
    """Draws the rows of one block after another. Give `update` the outcomes of all earlier steps before a block is drawn."""

    def __init__(self, plan_builder: PlanBuilder) -> None:
        self.plan_builder = plan_builder
        self.blocks: list[PlanBlock] = []
        self._outcomes: list[RolloutOutcome] = []

    @property
    def block_records(self) -> list[dict[str, Any]]:
        """The lines of plan_blocks.jsonl."""
        return [block.record for block in self.blocks]

    def update(self, outcomes: Iterable[RolloutOutcome]) -> None:
        self._outcomes.extend(outcomes)

    def extend_plan(self, plan: Plan, step: int) -> Plan | None:
        """The plan with all blocks up to the one of `step` (from 0); None if they are already drawn.

        The first block is never drawn here: it is the plan's own.
        """
        new_blocks = range(len(self.blocks) + 1, step // self.plan_builder.config.curriculum_update_every + 1)
        if not new_blocks:
            return None
        self.blocks += [self.build_block(number) for number in new_blocks]
        drawn = [row for block in self.blocks for row in block.rows]
        steps = {row.step for row in drawn}
        kept = [row for row in plan.rows if row.step not in steps]
        return Plan(tuple(sorted([*kept, *drawn], key=lambda row: (row.step, row.group))), plan.metadata)

    def build_block(self, number: int) -> PlanBlock:
        """The block that begins at step `number × curriculum_update_every`."""
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


def longest_drawable_rows(plan_builder: PlanBuilder, plan: Plan, count_tokens: Callable[[PlanRow], int]) -> tuple[PlanRow, ...]:
    """Rows that later blocks of the plan may hold, the longest among them.

    These are the longest row that has a persona, under every persona, and all rows under the persona that is the longest there.
    All rows under every persona would be too many to tokenize.
    """
    config = plan_builder.config
    later = [row for row in plan.rows if row.persona_id is not None and row.step >= config.curriculum_update_every]
    if not later:
        return ()
    longest = max(later, key=count_tokens)
    samplers = [PersonaSampler((persona,), (1.0,)) for persona in plan_builder.persona_sampler.personas]
    under_each = [
        next(row for row in plan_builder.build_rows(range(longest.step, longest.step + 1), sampler) if row.seed == longest.seed)
        for sampler in samplers
    ]
    widest = max(range(len(samplers)), key=lambda place: count_tokens(under_each[place]))
    steps = range(config.curriculum_update_every, config.steps)
    return (*under_each, *plan_builder.build_rows(steps, samplers[widest]))


def resume_curriculum(
    plan_builder: PlanBuilder, plan: Plan, out: Path, updates_per_rollout: int, done_steps: int
) -> tuple[Curriculum, Plan]:
    """A curriculum with the outcomes that the run directory `out` records, and `plan` with the blocks that were drawn up to
    optimizer step `done_steps`, drawn again. Every process gets the outcomes that the main one reads."""
    curriculum = Curriculum(plan_builder)
    lines = distributed.broadcast(read_training_log(out / "rollouts.jsonl"))
    curriculum.update(logged_outcomes(lines, updates_per_rollout))
    last_step = (done_steps - 1) // updates_per_rollout  # of the plan
    return curriculum, curriculum.extend_plan(plan, last_step) or plan


def decayed_accuracies(
    outcomes: Iterable[RolloutOutcome], persona_ids: Sequence[str], block: int, block_steps: int, prior_rollouts: int
) -> list[float]:
    """Accuracy [P] of each persona over the blocks before this one, as in the module docstring; the overall mean without any."""
    right: defaultdict[str, float] = defaultdict(float)
    total: defaultdict[str, float] = defaultdict(float)
    for outcome in outcomes:
        age = block - 1 - outcome.step // block_steps
        if age >= 0 and outcome.persona_id in persona_ids:
            weight = ACCURACY_DECAY**age
            right[outcome.persona_id] += weight * outcome.reward
            total[outcome.persona_id] += weight
    everyone = sum(total.values())
    mean = sum(right.values()) / everyone if everyone else 0.0
    return [(right[name] + prior_rollouts * mean) / (total[name] + prior_rollouts) for name in persona_ids]


def reweighted_probabilities(
    base_weights: Sequence[float], accuracy: Sequence[float], strength: float, floor: float
) -> list[float]:
    """The chance [P] of each persona, by the formula of the module docstring; sums to 1."""
    total = sum(base_weights)
    base = [weight / total for weight in base_weights]
    mean = sum(share * value for share, value in zip(base, accuracy, strict=True))
    raised = [share * math.exp(strength * (mean - value)) for share, value in zip(base, accuracy, strict=True)]
    return [floor * share + (1 - floor) * weight / sum(raised) for share, weight in zip(base, raised, strict=True)]
