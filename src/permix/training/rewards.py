"""Rewards of rollouts: the verifier's verdict, and the expressivity bonus.

The verdict gives 1 for a right answer, 0 for a wrong or missing one, and None if the verifier itself failed. A rollout with None
is left out of its group's baseline and has no advantage; it is counted, and never turned into 0.

The expressivity bonus rewards right answers that still sound like their persona. A classifier
(`permix.metrics.persona_classifier`) is fitted once, on the reference answers with the persona's words masked. The expressivity
of a completion is the share of the other personas that it sounds less like than its own: 1 if its own is the likeliest, 0.5 on
average if the answer says nothing about it. A right answer earns `weight × expressivity` on top of its 1, a wrong one nothing:
being in character never makes up for being wrong.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from permix.metrics.persona_classifier import fit_persona_classifier
from permix.prompts import persona_prompt
from permix.tasks import find_task
from permix.tasks.base import verify_completion
from permix.types import NO_PERSONA_TAG, Cell, Verdict

NEUTRAL_EXPRESSIVITY = 0.5
"""Expressivity of a completion without a persona, or under a persona that the classifier does not know."""


class ExpressivityReward:
    """Scores completions with a classifier that is fitted when the object is made."""

    def __init__(self, cells: Sequence[Cell], weight: float) -> None:
        """`cells` are the answered reference answers, of two personas or more; the words of their persona prompts are masked."""
        self.weight = weight
        texts = {cell.persona_id: persona_prompt(cell.messages) for cell in cells}
        answers = [cell.completion.answer for cell in cells if cell.completion is not None]
        self._classifier: Any = fit_persona_classifier(answers, [str(cell.persona_id) for cell in cells], tuple(texts.values()))
        self._column_by_persona = {str(label): place for place, label in enumerate(self._classifier.classes_)}

    def score_completions(self, completions: Sequence[str], persona_ids: Sequence[str | None]) -> list[float]:
        """Expressivity of each completion, 0 to 1."""
        margins_N_P = np.asarray(self._classifier.decision_function(list(completions)))
        if margins_N_P.ndim == 1:  # with two labels scikit-learn gives one margin, that of the second
            margins_N_P = np.stack([-margins_N_P, margins_N_P], axis=1)
        return [
            NEUTRAL_EXPRESSIVITY
            if persona not in self._column_by_persona
            else rank_percentile(row, self._column_by_persona[persona])
            for row, persona in zip(margins_N_P, persona_ids, strict=True)
        ]

    def shaped_rewards(self, rewards: Sequence[float | None], expressivities: Sequence[float]) -> list[float | None]:
        """Rewards with the bonus added to right answers; None stays None."""
        return [
            None if reward is None else reward * (1 + self.weight * share)
            for reward, share in zip(rewards, expressivities, strict=True)
        ]


def rank_percentile(margin_P: Any, own_index: int) -> float:
    """Share of the other personas with a lower margin [P] than the one at `own_index`; a tie counts half."""
    others = np.delete(margin_P, own_index)
    return float(((others < margin_P[own_index]) + 0.5 * (others == margin_P[own_index])).mean())


class Rollout(NamedTuple):
    """One completion of a training step, as a line of rollouts.jsonl holds it."""

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
    completions: Sequence[str], tasks: Sequence[str], golds: Sequence[str], prompts: Sequence[str] | None = None
) -> list[Verdict]:
    """One verdict for each rollout, in order. `prompts` hold the questions, whose formulas, repeated, are no answers."""
    return [
        verify_completion(find_task(task), completion, gold, prompt)
        for completion, task, gold, prompt in zip(completions, tasks, golds, prompts or [""] * len(golds), strict=True)
    ]


def mean_reward_by_tag(rewards: Sequence[float | None], tags: Sequence[Sequence[str]]) -> Mapping[str, float]:
    """Mean reward of the scored rollouts by tag of their persona; "none" is the tag of rollouts without a persona."""
    scored: dict[str, list[float]] = {}
    for reward, own in zip(rewards, tags, strict=True):
        if reward is not None:
            for tag in own or (NO_PERSONA_TAG,):
                scored.setdefault(tag, []).append(reward)
    return {tag: sum(values) / len(values) for tag, values in sorted(scored.items())}


def mean_or_none(values: Sequence[float]) -> float | None:
    """The mean, or None if there are no values."""
    return sum(values) / len(values) if values else None
