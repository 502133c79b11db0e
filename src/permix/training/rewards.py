"""The reward is the verifier: 1 for a right answer, 0 for a wrong or missing one, None where the verifier itself failed.

A None leaves its rollout out of the group's baseline and gives it no advantage; it is counted, never turned into 0.

The expressivity reward: does a right answer still sound like its persona?

A classifier (`permix.metrics.persona_classifier`) is fitted once on what the base model says in character, persona words
masked, and never
again. A completion's expressivity is the share of the other personas that it sounds less like than its own: 1 when it is the
likeliest voice, about 0.5 when nothing can be told. A right answer earns `weight × expressivity` on top of its 1, a wrong one
nothing: being in character never makes up for being wrong.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from permix.metrics.persona_classifier import fit_persona_classifier
from permix.prompts import persona_prompt
from permix.tasks import TASKS
from permix.tasks.base import verify_completion
from permix.types import Cell, Verdict
from permix.verification.math_verifier import Verifier

NEUTRAL_EXPRESSIVITY = 0.5
"""Of a completion without persona, or under one that the classifier has not heard."""


class ExpressivityReward:
    def __init__(self, cells: Sequence[Cell], weight: float) -> None:
        """`cells` are answered and have a persona; the words that bring it in are masked. At least two personas."""
        self.weight = weight
        texts = {cell.persona_id: persona_prompt(cell.messages) for cell in cells}
        answers = [cell.completion.text for cell in cells if cell.completion is not None]
        self._classifier: Any = fit_persona_classifier(answers, [str(cell.persona_id) for cell in cells], tuple(texts.values()))
        self._column_by_persona = {str(label): place for place, label in enumerate(self._classifier.classes_)}

    def score_completions(self, completions: Sequence[str], persona_ids: Sequence[str | None]) -> list[float]:
        """Expressivity of each completion, 0 to 1."""
        margins_N_P = np.asarray(self._classifier.decision_function(list(completions)))
        if margins_N_P.ndim == 1:  # two labels: one margin, of the second
            margins_N_P = np.stack([-margins_N_P, margins_N_P], axis=1)
        return [
            NEUTRAL_EXPRESSIVITY
            if persona not in self._column_by_persona
            else rank_percentile(row, self._column_by_persona[persona])
            for row, persona in zip(margins_N_P, persona_ids, strict=True)
        ]

    def shaped_rewards(self, rewards: Sequence[float | None], expressivities: Sequence[float]) -> list[float | None]:
        """Rewards with what expressivity adds to the right ones; a missing reward stays missing."""
        return [
            None if reward is None else reward * (1 + self.weight * share)
            for reward, share in zip(rewards, expressivities, strict=True)
        ]


def rank_percentile(margin_P: Any, own_index: int) -> float:
    """Share of the others whose margin is lower, a tie counting half."""
    others = np.delete(margin_P, own_index)
    return float(((others < margin_P[own_index]) + 0.5 * (others == margin_P[own_index])).mean())


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


def verify_completions(
    completions: Sequence[str], tasks: Sequence[str], golds: Sequence[str], verifier: Verifier
) -> list[Verdict]:
    """One verdict a rollout, in order."""
    return [
        verify_completion(TASKS[task], completion, gold, verifier)
        for completion, task, gold in zip(completions, tasks, golds, strict=True)
    ]


def mean_reward_by_tag(rewards: Sequence[float | None], tags: Sequence[Sequence[str]]) -> Mapping[str, float]:
    """Mean reward of the scored rollouts whose persona carries each tag; "none" is the rollouts without persona."""
    scored: dict[str, list[float]] = {}
    for reward, own in zip(rewards, tags, strict=True):
        if reward is not None:
            for tag in own or ("none",):
                scored.setdefault(tag, []).append(reward)
    return {tag: sum(values) / len(values) for tag, values in sorted(scored.items())}


def mean_or_none(values: Sequence[float]) -> float | None:
    """None of nothing."""
    return sum(values) / len(values) if values else None
