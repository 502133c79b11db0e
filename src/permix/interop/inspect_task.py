"""An inspect_ai task that asks our grid, so that its providers and its viewer serve it: personas × questions × samples.

    inspect eval permix/stability --model openai/NAME -T task=gsm8k -T path=test.jsonl -T personas=my.csv -T samples=3
    inspect eval permix/stability --model openai/NAME -T config=configs/stability-gsm8k-endpoint.toml
    permix import --inspect logs

A sample is a persona × question: its system message, its user message, its target, and in its metadata who and which. Epochs are
our samples, each with the seed that `permix stability` would send. The scorer is our `verify`: what it cannot judge
is unscored, not wrong.
Needs `pip install permix[inspect]`.
"""

import asyncio
import atexit
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from inspect_ai import Epochs, Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import ChatMessage, ChatMessageSystem, ChatMessageUser, GenerateConfig
from inspect_ai.scorer import Score, Scorer, Target, accuracy, grouped, scorer, stderr
from inspect_ai.solver import Generate, Solver, TaskState, solver

from permix.config import StabilityConfig, build_config, read_config_values
from permix.errors import ConfigError
from permix.evals.grid import build_grid
from permix.evals.stability import grid_identity, prepare_stability
from permix.interop.inspect_logs import PERMIX_METADATA_KEY, sample_id
from permix.tasks import TASKS
from permix.tasks.base import verify_completion as judge
from permix.types import Cell, Message
from permix.verification.math_verifier import Verifier


@task  # type: ignore[untyped-decorator]
def stability_task(
    config: str | None = None,
    task: str | None = None,
    path: str | None = None,
    n: int | None = None,
    personas: str | None = None,
    samples: int | None = None,
) -> Task:
    """The grid of a stability configuration, or of its defaults. What is given beside it wins: `task`, `path` and `n` are fields
    of its [task]; `personas` is the pool, which is asked whole when it is a file."""
    stage = _build_config(config, {"name": task, "path": path, "n": n}, personas, samples)
    chosen, setup = prepare_stability(stage)
    cells = build_grid([None, *setup.pool.personas], setup.questions, setup.prompt_format, samples=stage.samples, seed=stage.seed)
    sampling = stage.sampling
    return Task(
        dataset=MemoryDataset(_build_samples(cells), name=chosen.name),
        solver=generate_with_seed(),
        scorer=permix_scorer(chosen.name),
        epochs=Epochs(stage.samples, "mean"),
        config=GenerateConfig(temperature=sampling.temperature, top_p=sampling.top_p, max_tokens=sampling.max_new_tokens),
        metadata={PERMIX_METADATA_KEY: grid_identity(stage, chosen)},
    )


def _build_config(config: str | None, task_fields: dict[str, Any], pool: str | None, samples: int | None) -> StabilityConfig:
    values = {} if config is None else read_config_values(Path(config))
    values["task"] = values.get("task", {}) | {name: value for name, value in task_fields.items() if value is not None}
    if pool is not None:
        values["personas"] = values.get("personas", {}) | {"pool": pool} | ({} if pool == "builtin" else {"split": "all"})
    if samples is not None:
        values["samples"] = samples
    stage = build_config(StabilityConfig, values, source=config or "-T")
    for field in ("strategy", "templates", "budget", "precision"):
        if (value := getattr(stage, field)) != StabilityConfig.model_fields[field].default:
            raise ConfigError(f"{config}: {field} = {value!r}: a task of inspect_ai asks the plain grid; leave it out")
    return stage


def _build_samples(cells: Sequence[Cell]) -> list[Sample]:
    """One for every persona × question; `cells` has the samples of one behind one another."""
    found = []
    for (persona, question), same in groupby(cells, key=lambda cell: (cell.persona_id, cell.question_id)):
        cells_S = list(same)
        about = {"question_id": question, "seeds": [cell.seed for cell in cells_S]}
        found.append(
            Sample(
                id=sample_id(persona, question),
                input=[_to_chat_message(message) for message in cells_S[0].messages],
                target=cells_S[0].gold or "",
                metadata={"persona": persona, PERMIX_METADATA_KEY: about},
            )
        )
    return found


def _to_chat_message(message: Message) -> ChatMessage:
    kind = ChatMessageSystem if message["role"] == "system" else ChatMessageUser
    return kind(content=message["content"])


@solver  # type: ignore[untyped-decorator]
def generate_with_seed() -> Solver:
    """Ask once, with the seed of this sample; a provider that knows no seeds leaves it out."""

    async def solve(state: TaskState, generate: Generate) -> TaskState:
        return await generate(state, seed=state.metadata[PERMIX_METADATA_KEY]["seeds"][state.epoch - 1] & 0x7FFFFFFF)

    return solve


@scorer(metrics=[accuracy(), stderr(), grouped(accuracy(), "persona")], name="verify")  # type: ignore[untyped-decorator]
def permix_scorer(task: str) -> Scorer:
    """The judgement that `permix stability` makes of the same answer."""
    verifier, known = Verifier(), TASKS[task]
    atexit.register(verifier.close)

    async def score(state: TaskState, target: Target) -> Score:
        found = await asyncio.to_thread(judge, known, state.output.completion, target.text, verifier)
        if found.correct is None:
            return Score.unscored(answer=found.extracted, reason=found.error)
        return Score(value="C" if found.correct else "I", answer=found.extracted)

    return score
