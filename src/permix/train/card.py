"""What travels with a trained model: its card, and the questions it has seen, so that no evaluation asks them again."""

from pathlib import Path
from typing import Any

from permix.config import TrainStage
from permix.errors import DataError
from permix.records import read_json, write_text
from permix.train.plan import Plan, describe

SEEN = "permix_seen_questions.json"


def seen_questions(plan: Plan) -> dict[str, Any]:
    return {"plan": plan.hash, "content_hashes": sorted({row.question_hash for row in plan.rows})}


def read_seen(folder: Path) -> frozenset[str]:
    """Content hashes of the questions a model folder was trained on; empty for a model that permix did not train."""
    if not (folder / SEEN).exists():
        return frozenset()
    hashes = read_json(folder / SEEN).get("content_hashes")
    if not isinstance(hashes, list):
        raise DataError(f"{folder / SEEN}: content_hashes is not a list; train the model again or remove the file")
    return frozenset(hashes)


def write_card(folder: Path, config: TrainStage, plan: Plan, log: Path) -> None:
    """README.md of the model: method, plan, figures of the training run."""
    from permix.train.log import read_log

    method = "RLVR (no personas)" if all(row.persona_id is None for row in plan.rows) else "PerMix-RLVR (persona-mixed RLVR)"
    lines = read_log(log)
    facts = "\n".join(f"| {name} | {value} |" for name, value in describe(plan).items())
    rewards = [line["reward"] for line in lines if line.get("reward") is not None]
    edge = max(1, len(rewards) // 5)
    first, last = (sum(part) / len(part) for part in (rewards[:edge], rewards[-edge:])) if rewards else (0.0, 0.0)
    settings = "\n".join(f"| {name} | {value} |" for name, value in config.train.model_dump(mode="json").items())
    write_text(
        folder / "README.md",
        f"""---
library_name: transformers
tags: [permix, reinforcement-learning, grpo]
---
# {config.label or config.out.name}

{method}, trained by permix from `{config.model.name}`.

Mean reward of the rollouts: {first:.3f} over the first {edge} steps, {last:.3f} over the last {edge}
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
