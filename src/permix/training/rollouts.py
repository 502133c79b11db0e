"""A step's rollouts without padding, and how they are packed into forward passes that read each prompt once.

A step's rollouts on their way: from the plan's rows to the trainer, group by group, and from TRL's padded batch to samples.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeVar

from permix.inference.shared_prefix import PromptGroup
from permix.training.rewards import Rollout
from permix.types import PlanRow, seed_from


@dataclass
class Sample:
    """One rollout as the loss sees it. Log-probabilities are one number a completion token, at the sampling temperature."""

    prompt: tuple[int, ...]
    completion: list[int]
    advantage: float
    rollout_logprobs: list[float] | None = None
    """From the engine that generated it, in that engine's precision."""
    ref_logprobs: list[float] | None = None
    old_logprobs: list[float] | None = None
    """Of the weights it was sampled from, in the trainer's precision: known after the first pass over the batch."""


Pack = list[list[Sample]]
"""Rollouts of one forward pass, by prompt."""


def build_prompt_group(samples: Sequence[Sample]) -> PromptGroup:
    return PromptGroup(samples[0].prompt, [sample.completion for sample in samples])


def pack_samples(samples: Iterable[Sample], token_budget: int) -> list[Pack]:
    """Rollouts by prompt, in order of first appearance, as many in a pass as read `token_budget` tokens or fewer.

    A prompt's rollouts share a pass where they fit; where not they are spread over several, each reading the prompt again. One
    rollout over the budget stands alone.
    """
    by_prompt: dict[tuple[int, ...], list[Sample]] = {}
    for sample in samples:
        by_prompt.setdefault(sample.prompt, []).append(sample)
    packs: list[Pack] = []
    room = 0
    for own in by_prompt.values():
        for part in _split_to_budget(own, token_budget):
            cost = build_prompt_group(part).forward_tokens
            if cost > room:
                packs.append([])
                room = token_budget
            packs[-1].append(part)
            room -= cost
    return packs


def _split_to_budget(samples: Sequence[Sample], token_budget: int) -> list[list[Sample]]:
    """One prompt's rollouts in runs that fit the budget."""
    parts: list[list[Sample]] = []
    room = 0
    for sample in samples:
        if not parts or len(sample.completion) - 1 > room:
            parts.append([])
            room = token_budget - len(sample.prompt)
        parts[-1].append(sample)
        room -= len(sample.completion) - 1
    return parts


_T = TypeVar("_T")

ScoredRollout = tuple[Rollout, Sequence[str], float | None]
"""A rollout, the tags of its persona, and its expressivity."""


def rollout_rows(rows: Iterable[PlanRow]) -> list[dict[str, Any]]:
    """One row a rollout, in plan order: row `i` of a step belongs to group `i // G`."""
    return [
        {
            "prompt": [dict(message) for message in row.messages],
            "task": row.task,
            "gold": row.gold,
            "group": row.group,
            "question_id": row.question_id,
            "persona_id": row.persona_id,
            "persona_tags": list(row.persona_tags),
            "rollout_seed": seed_from(row.seed, number),
        }
        for row in rows
        for number in range(row.rollouts)
    ]


def split_into_groups(items: Sequence[_T], size: int) -> list[Sequence[_T]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def merge_in_plan_order(scored_by_rank: Iterable[Iterable[ScoredRollout]]) -> list[ScoredRollout]:
    """What all processes tell, group by group: each has told of its own."""
    return sorted(chain.from_iterable(scored_by_rank), key=lambda one: one[0].group)


def has_nonzero_advantage(group: Sequence[Sample]) -> bool:
    """Whether any rollout of the group has an advantage."""
    return any(sample.advantage != 0 for sample in group)


def samples_from_trl_batch(batch: dict[str, Any]) -> list[Sample]:
    """TRL's padded batch as rollouts without padding."""
    prompt_B_T, completion_B_T = batch["prompt_mask"].bool(), batch["completion_mask"].bool()
    columns = {
        name: batch.get(f"{theirs}_per_token_logps")
        for name, theirs in (("rollout_logprobs", "sampling"), ("ref_logprobs", "ref"))
    }
    samples = []
    for row, advantage in enumerate(batch["advantages"].tolist()):
        own = completion_B_T[row]
        logps = {name: None if values is None else values[row][own].tolist() for name, values in columns.items()}
        prompt = tuple(batch["prompt_ids"][row][prompt_B_T[row]].tolist())
        samples.append(Sample(prompt, batch["completion_ids"][row][own].tolist(), advantage, **logps))
    return samples
