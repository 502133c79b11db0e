"""A step's rollouts without padding, and how they are packed into forward passes that read each prompt once."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from permix.models.shared import Family


@dataclass
class Sample:
    """One rollout as the loss sees it. Log-probabilities are one number a completion token, at the sampling temperature."""

    prompt: tuple[int, ...]
    completion: list[int]
    advantage: float
    sampler: list[float] | None = None
    """From the engine that generated it, in that engine's precision."""
    reference: list[float] | None = None
    old: list[float] | None = None
    """Of the weights it was sampled from, in the trainer's precision: known after the first pass over the batch."""


Pack = list[list[Sample]]
"""Rollouts of one forward pass, by prompt."""


def family(samples: Sequence[Sample]) -> Family:
    return Family(samples[0].prompt, [sample.completion for sample in samples])


def pack(samples: Iterable[Sample], budget: int) -> list[Pack]:
    """Rollouts by prompt, in order of first appearance, as many in a pass as read `budget` tokens or fewer.

    A prompt's rollouts share a pass where they fit; where not they are spread over several, each reading the prompt again. One
    rollout over the budget stands alone.
    """
    by_prompt: dict[tuple[int, ...], list[Sample]] = {}
    for sample in samples:
        by_prompt.setdefault(sample.prompt, []).append(sample)
    packs: list[Pack] = []
    room = 0
    for own in by_prompt.values():
        for part in _parts(own, budget):
            cost = family(part).cost
            if cost > room:
                packs.append([])
                room = budget
            packs[-1].append(part)
            room -= cost
    return packs


def _parts(own: Sequence[Sample], budget: int) -> list[list[Sample]]:
    """One prompt's rollouts in runs that fit the budget."""
    parts: list[list[Sample]] = []
    room = 0
    for sample in own:
        if not parts or len(sample.completion) - 1 > room:
            parts.append([])
            room = budget - len(sample.prompt)
        parts[-1].append(sample)
        room -= len(sample.completion) - 1
    return parts
