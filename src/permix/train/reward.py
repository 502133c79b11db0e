"""The reward is the verifier: 1 for a right answer, 0 for a wrong or missing one, None where the verifier itself failed.

A None leaves its rollout out of the group's baseline and gives it no advantage; it is counted, never turned into 0.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from permix.tasks import TASKS
from permix.tasks.base import verify
from permix.types import Verdict
from permix.verify import Verifier


class Rollout(NamedTuple):
    """One completion of one training step, as it is logged."""

    step: int
    group: int
    persona_id: str | None
    question_id: str
    prompt: str
    completion: str
    tokens: int
    gold: str
    verdict: Verdict


def verdicts(completions: Sequence[str], tasks: Sequence[str], golds: Sequence[str], verifier: Verifier) -> list[Verdict]:
    """One verdict a rollout, in order."""
    return [
        verify(TASKS[task], completion, gold, verifier) for completion, task, gold in zip(completions, tasks, golds, strict=True)
    ]


def mean_by_tag(rewards: Sequence[float | None], tags: Sequence[Sequence[str]]) -> Mapping[str, float]:
    """Mean reward of the scored rollouts whose persona carries each tag; "none" is the rollouts without persona."""
    scored: dict[str, list[float]] = {}
    for reward, own in zip(rewards, tags, strict=True):
        if reward is not None:
            for tag in own or ("none",):
                scored.setdefault(tag, []).append(reward)
    return {tag: sum(values) / len(values) for tag, values in sorted(scored.items())}


def mean_of(values: Sequence[float]) -> float | None:
    """None of nothing."""
    return sum(values) / len(values) if values else None
