"""The card of a trained model: method, plan, settings, figures of the run."""

from collections.abc import Sequence
from pathlib import Path

from permix.config import TrainStage
from permix.records import write_text
from permix.train.log import read_log
from permix.train.plan import Plan, describe


def write_card(folder: Path, config: TrainStage, plan: Plan, log: Path) -> None:
    """README.md of the model: method, plan, figures of the training run."""
    method = "RLVR (no personas)" if all(row.persona_id is None for row in plan.rows) else "PerMix-RLVR (persona-mixed RLVR)"
    lines = read_log(log)
    facts = "\n".join(f"| {name} | {value} |" for name, value in describe(plan).items())
    settings = "\n".join(f"| {name} | {value} |" for name, value in config.train.model_dump(mode="json").items())
    write_text(
        folder / "README.md",
        f"""---
library_name: transformers
tags: [permix, reinforcement-learning, grpo]
---
# {config.label or config.out.name}

{method}, trained by permix from `{config.model.name}`.

Mean reward of the rollouts: {_reward([line["reward"] for line in lines if line.get("reward") is not None])}
(sampled at temperature {config.train.temperature}; {lines[-1]["tokens"] if lines else 0} tokens generated).
Rewards on training questions are no evaluation: run `permix stability` on held-out personas and questions.

## Plan

| | |
|---|---|
{facts}

## Training

| | |
|---|---|
{settings}
""",
    )


def _reward(rewards: Sequence[float]) -> str:
    """How it began and how it ended, over a fifth of the steps each."""
    if not rewards:
        return "no rollout was scored"
    edge = max(1, len(rewards) // 5)
    first, last = (sum(part) / edge for part in (rewards[:edge], rewards[-edge:]))
    return f"{first:.3f} over the first {edge} steps, {last:.3f} over the last {edge}"
