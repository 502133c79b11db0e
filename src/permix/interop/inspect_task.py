"""An inspect_ai task for the stability grid (personas × questions × samples), to use inspect_ai's providers and viewer.

    inspect eval permix/stability --model openai/NAME -T task=gsm8k -T path=test.jsonl -T personas=my.csv -T samples=3
    inspect eval permix/stability --model openai/NAME -T config=configs/stability-gsm8k-endpoint.toml
    permix import --inspect logs

A sample of inspect_ai is a persona × question: its messages, its target, and in its metadata the persona and the question id. Its
epochs are the samples of the grid, each with the seed that `permix stability` would send. Of [model], `thinking` and `extra_body`
are sent, as fields of the body; inspect_ai itself names the model and its address. The scorer checks answers as
`permix stability` does; an answer that it cannot check, or that a content filter stopped, is unscored, not wrong. Needs the extra
`inspect`.
"""

import asyncio
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from inspect_ai import Epochs, Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import GenerateConfig
from inspect_ai.scorer import Score, Scorer, Target, accuracy, grouped, scorer, stderr
from inspect_ai.solver import Generate, Solver, TaskState, solver

from permix.config import StabilityConfig, ThinkingSwitch, build_config, read_config_values
from permix.errors import ConfigError
from permix.evals.grid import build_grid
from permix.evals.stability import grid_identity, prepare_stability
from permix.inference.base import with_cut_off_thinking
from permix.interop.inspect_logs import PERMIX_METADATA_KEY, output_problem, sample_id, to_chat_message, to_completion
from permix.tasks import find_task
from permix.tasks.base import verify_completion
from permix.types import Cell


@task  # type: ignore[untyped-decorator]
def stability_task(
    config: str | None = None,
    task: str | None = None,
    path: str | None = None,
    n: int | None = None,
    personas: str | None = None,
    samples: int | None = None,
) -> Task:
    """The grid of a stability configuration file, or of the defaults.

    Other arguments override the file: `task`, `path` and `n` are fields of its [task], `samples` its samples, `personas` its pool
    (all of a pool file, the configured split of "builtin"). Raises ConfigError for a file that asks for more than a plain grid.
    """
    stability_config = _build_config(config, {"name": task, "path": path, "n": n}, personas, samples)
    stability_config, permix_task, setup = prepare_stability(stability_config)
    cells = build_grid(
        [None, *setup.pool.personas],
        setup.questions,
        setup.prompt_format,
        samples=stability_config.samples,
        seed=stability_config.seed,
    )
    sampling, model = stability_config.sampling, stability_config.model
    return Task(
        dataset=MemoryDataset(_build_samples(cells), name=permix_task.name),
        solver=generate_with_seed(),
        scorer=permix_scorer(permix_task.name, model.thinking),
        epochs=Epochs(stability_config.samples, "mean"),
        config=GenerateConfig(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_tokens=sampling.max_new_tokens,
            extra_body=model.extra_fields or None,
        ),
        metadata={PERMIX_METADATA_KEY: grid_identity(stability_config, permix_task)},
    )


def _build_config(config: str | None, task_fields: dict[str, Any], pool: str | None, samples: int | None) -> StabilityConfig:
    values = {} if config is None else read_config_values(Path(config))
    values["task"] = values.get("task", {}) | {name: value for name, value in task_fields.items() if value is not None}
    if pool is not None:
        values["personas"] = values.get("personas", {}) | {"pool": pool} | ({} if pool == "builtin" else {"split": "all"})
    if samples is not None:
        values["samples"] = samples
    stability_config = build_config(StabilityConfig, values, source=config or "-T")
    for field in ("strategy", "templates", "contexts", "budget", "precision"):
        if (value := getattr(stability_config, field)) != StabilityConfig.model_fields[field].default:
            raise ConfigError(f"{config}: {field} = {value!r}: a task of inspect_ai asks only the full grid; leave it out")
    if (budget := stability_config.model.thinking_budget) is not None:
        raise ConfigError(
            f"{config}: model.thinking_budget = {budget}: inspect_ai's providers cannot close the thinking; leave it out, or "
            "give the provider's own field for it in model.extra_body"
        )
    return stability_config


def _build_samples(cells: Sequence[Cell]) -> list[Sample]:
    """One sample per persona × question. The cells of a persona × question must be next to each other in `cells`."""
    samples = []
    for (persona, question), group in groupby(cells, key=lambda cell: (cell.persona_id, cell.question_id)):
        cells_S = list(group)
        info = {"question_id": question, "seeds": [cell.seed for cell in cells_S]}
        samples.append(
            Sample(
                id=sample_id(persona, question),
                input=[to_chat_message(message) for message in cells_S[0].messages],
                target=cells_S[0].gold or "",
                metadata={"persona": persona, PERMIX_METADATA_KEY: info},
            )
        )
    return samples


@solver  # type: ignore[untyped-decorator]
def generate_with_seed() -> Solver:
    """Generate once, with the seed of this epoch (31 bits); a provider without seeds ignores it."""

    async def solve(state: TaskState, generate: Generate) -> TaskState:
        return await generate(state, seed=state.metadata[PERMIX_METADATA_KEY]["seeds"][state.epoch - 1] & 0x7FFFFFFF)

    return solve


@scorer(metrics=[accuracy(), stderr(), grouped(accuracy(), "persona")], name="verify")  # type: ignore[untyped-decorator]
def permix_scorer(task: str, thinking: ThinkingSwitch = "default") -> Scorer:
    """The verdict that `permix stability` gives the same answer: C, I, or unscored when the verifier failed or there is no answer
    of the model. thinking: whether the model was asked with its thinking switched on or off."""
    permix_task = find_task(task)

    async def score(state: TaskState, target: Target) -> Score:
        if (why := output_problem(state.output)) is not None:
            return Score.unscored(reason=why)
        text = with_cut_off_thinking(to_completion(state.output), thinking).text
        verdict = await asyncio.to_thread(verify_completion, permix_task, text, target.text, state.input_text)
        if verdict.correct is None:
            return Score.unscored(answer=verdict.extracted, reason=verdict.error)
        return Score(value="C" if verdict.correct else "I", answer=verdict.extracted)

    return score
