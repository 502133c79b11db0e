"""Rollouts of a step: from the plan's rows, from TRL's padded batch to samples without padding, and into packs.

A pack holds the rollouts of one forward pass, which reads each prompt once.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from statistics import fmean, stdev
from typing import Any, NamedTuple, TypeVar

from permix.inference.shared_prefix import PromptGroup
from permix.training.rewards import Rollout
from permix.types import PlanRow, seed_from


@dataclass
class Sample:
    """One rollout for the loss. Log-probabilities: nats, one for each completion token, at the sampling temperature."""

    prompt: tuple[int, ...]
    completion: list[int]
    advantage: float
    rollout_logprobs: list[float] | None = None
    """Under the network that sampled it, in that network's precision."""
    ref_logprobs: list[float] | None = None
    """Under the frozen base model."""
    old_logprobs: list[float] | None = None
    """Under the weights that sampled it, in the trainer's precision. Set by the first pass over the rollout."""


class Pack(NamedTuple):
    """The rollouts of one forward pass, one list for each prompt."""

    by_prompt: list[list[Sample]]

    @property
    def samples(self) -> list[Sample]:
        """The rollouts in the order of the pass, which is that of the completion tokens `N`."""
        return list(chain.from_iterable(self.by_prompt))

    @property
    def prompt_groups(self) -> list[PromptGroup]:
        return list(map(build_prompt_group, self.by_prompt))

    @property
    def forward_tokens(self) -> int:
        """Tokens that the pass reads."""
        return sum(group.forward_tokens for group in self.prompt_groups)


def build_prompt_group(samples: Sequence[Sample]) -> PromptGroup:
    """The prompt and completions of samples that share their prompt."""
    return PromptGroup(samples[0].prompt, [sample.completion for sample in samples])


def pack_samples(samples: Iterable[Sample], token_budget: int) -> list[Pack]:
    """Group rollouts by prompt, in order of first appearance, into packs that read at most `token_budget` tokens.

    Rollouts of a prompt that do not fit into one pack are spread over several, each of which reads the prompt. A rollout over the
    budget has a pack of its own.
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
                packs.append(Pack([]))
                room = token_budget
            packs[-1].by_prompt.append(part)
            room -= cost
    return packs


def _split_to_budget(samples: Sequence[Sample], token_budget: int) -> list[list[Sample]]:
    """The rollouts of one prompt, cut into consecutive parts that fit the budget."""
    parts: list[list[Sample]] = []
    room = 0
    for sample in samples:
        if not parts or len(sample.completion) - 1 > room:  # nothing is predicted from a completion's last token
            parts.append([])
            room = token_budget - len(sample.prompt)
        parts[-1].append(sample)
        room -= len(sample.completion) - 1
    return parts


_T = TypeVar("_T")


class ScoredRollout(NamedTuple):
    """A rollout with what its line of rollouts.jsonl does not hold. `reward`: with the expressivity bonus; None if not scored."""

    rollout: Rollout
    persona_tags: Sequence[str]
    expressivity: float | None
    reward: float | None
    is_truncated: bool


def rollout_rows(rows: Iterable[PlanRow]) -> list[dict[str, Any]]:
    """One row for each rollout, in plan order: row `i` of a step belongs to group `i // G`.

    The seed depends on the row and the rollout's number in it, so it is the same in any process and after a restart.
    """
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
    """Consecutive slices of `size` items."""
    return [items[start : start + size] for start in range(0, len(items), size)]


def merge_in_plan_order(scored_by_rank: Iterable[Iterable[ScoredRollout]]) -> list[ScoredRollout]:
    """The rollouts of all processes, by group. Each process has whole groups, so a stable sort gives the plan's order."""
    return sorted(chain.from_iterable(scored_by_rank), key=lambda one: one.rollout.group)


def has_nonzero_advantage(group: Sequence[Sample]) -> bool:
    """Whether any rollout of the group has an advantage."""
    return any(sample.advantage != 0 for sample in group)


def trl_metrics(scored: Sequence[ScoredRollout]) -> dict[str, float]:
    """Metrics of a step's rollouts, which are not empty, under TRL's names and by its definitions; NaN for one without a value.

    A group whose scored rollouts all have one reward has no advantage, and so has a group with less than two of them.
    """
    rewards = [one.reward for one in scored if one.reward is not None]
    by_group: dict[int, set[float]] = {}
    for one in scored:
        by_group.setdefault(one.rollout.group, set()).update(() if one.reward is None else (one.reward,))
    return {
        "completions/mean_length": fmean(one.rollout.tokens for one in scored),
        "completions/clipped_ratio": fmean(one.is_truncated for one in scored),
        "reward": fmean(rewards) if rewards else math.nan,
        "reward_std": stdev(rewards) if len(rewards) > 1 else math.nan,
        "frac_reward_zero_std": fmean(len(distinct) < 2 for distinct in by_group.values()),
    }


def samples_from_trl_batch(batch: dict[str, Any]) -> list[Sample]:
    """TRL's padded batch as samples without padding."""
    prompt_B_T, completion_B_T = batch["prompt_mask"].bool(), batch["completion_mask"].bool()
    columns = {
        name: batch.get(f"{theirs}_per_token_logps")
        for name, theirs in (("rollout_logprobs", "sampling"), ("ref_logprobs", "ref"))
    }
    samples = []
    for row, advantage in enumerate(batch["advantages"].tolist()):
        # By the mask, not by the token id: the pad token is often the stop token, which belongs to the completion.
        is_token_T = completion_B_T[row]
        logps = {name: None if values is None else values[row][is_token_T].tolist() for name, values in columns.items()}
        prompt = tuple(batch["prompt_ids"][row][prompt_B_T[row]].tolist())
        samples.append(Sample(prompt, batch["completion_ids"][row][is_token_T].tolist(), advantage, **logps))
    return samples
