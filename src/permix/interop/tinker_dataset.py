"""A training plan as an `RLDataset` of tinker-cookbook: a step of the plan is a batch, and a group is its environments.

    builder = PlanDatasetBuilder(plan_file="plan.parquet", model_name="Qwen/Qwen3-8B", renderer_name="qwen3_disable_thinking")
    config = tinker_cookbook.rl.train.Config(dataset_builder=builder, rollout_error_tolerance=True, ...)

Batch k holds the groups of step k in their order, spare groups left out. Each rollout is asked with the messages of its own row,
so personas may differ within a group (scope "rollout"). The reward is the evaluation's score, 1 or 0. An answer that could not be
verified raises `UnverifiedAnswerError` and never counts as wrong: with `rollout_error_tolerance=True` tinker-cookbook samples
that rollout again, with the messages of the same row, and leaves the group out if that fails too often; without it the training
ends.

tinker-cookbook subtracts a group's mean reward and divides by nothing, like `train.scale_rewards = "none"`. The plan's seeds are
not sent. Needs tinker-cookbook, which is in no extra of permix.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import chz
import tinker
from tinker_cookbook import renderers
from tinker_cookbook.rl.types import Env, EnvGroupBuilder, RLDataset, RLDatasetBuilder, StepResult
from tinker_cookbook.tokenizer_utils import get_tokenizer

from permix.errors import PermixError
from permix.plan import Plan, load_training_plan
from permix.tasks import find_task
from permix.tasks.base import verify_completion
from permix.thinking import opening_tag_at_end, split_thinking
from permix.types import PlanRow, last_user_text, reward_tags


class UnverifiedAnswerError(PermixError):
    """The verifier failed, so that the rollout has no reward."""


class PlanEnv(Env):  # type: ignore[misc]
    """One rollout of a row: its messages are the prompt, the first completion ends it."""

    def __init__(self, row: PlanRow, renderer: Any, started: "list[PlanEnv] | None" = None) -> None:
        """`renderer`: of tinker-cookbook; it makes tokens of messages and reads a completion's tokens. `started`: where the
        environment adds itself when its rollout starts."""
        self.row, self.renderer = row, renderer
        self._started = [] if started is None else started
        self._task: asyncio.Task[Any] | None = None
        self._opened = ""

    @property
    def has_failed(self) -> bool:
        """Whether the rollout ended with an error: here, in the sampling, or by a limit of time."""
        task = self._task
        return task is not None and task.done() and (task.cancelled() or task.exception() is not None)

    async def initial_observation(self) -> tuple[Any, Any]:
        """The prompt's tokens, and where a completion stops."""
        self._task = asyncio.current_task()  # each rollout is a task of its own
        self._started.append(self)
        prompt = self.renderer.build_generation_prompt([dict(message) for message in self.row.messages])
        self._opened = opening_tag_at_end(self.renderer.tokenizer.decode(prompt.to_ints()))
        return prompt, self.renderer.get_stop_sequences()

    async def step(self, action: list[int], *, extra: Any = None) -> Any:
        """The reward of a completion `action` (its tokens), also as the metric `right/TAG` of each tag of the persona,
        `right/untagged` if that has none, `right/none` without a persona. Raises UnverifiedAnswerError if the verifier failed."""
        row = self.row
        message, _ = self.renderer.parse_response(action)
        text, question = renderers.get_text_content(message), last_user_text(row.messages)
        # Where the prompt opens the thinking, renderers take thinking that never ends for the answer.
        if self._opened and split_thinking(self._opened + self.renderer.tokenizer.decode(action)).unclosed:
            text = ""
        verdict = await asyncio.to_thread(verify_completion, find_task(row.task), text, row.gold, question)
        if verdict.reward is None:
            raise UnverifiedAnswerError(
                f"step {row.step}, group {row.group}: the answer could not be verified: "
                f"{verdict.error or 'the verifier gave no reason'}"
            )
        return StepResult(
            reward=verdict.reward,
            episode_done=True,
            next_observation=tinker.ModelInput.empty(),
            next_stop_condition=self.renderer.get_stop_sequences(),
            metrics={f"right/{tag}": verdict.reward for tag in reward_tags(row.persona_id, row.persona_tags)},
        )


@dataclass(frozen=True)
class PlanGroupBuilder(EnvGroupBuilder):  # type: ignore[misc]
    """The rollouts of one group: one row for all of them or, with scope "rollout", one row each. It can be pickled."""

    rows: tuple[PlanRow, ...]
    renderer: Any
    started: list[PlanEnv] = field(default_factory=list, init=False, repr=False, compare=False)

    async def make_envs(self) -> Sequence[PlanEnv]:
        """As many environments as the group has rollouts.

        To sample a rollout again, tinker-cookbook makes the whole group again and takes the first environment of it. So the row
        of a rollout that failed, and that was not sampled again yet, comes first.
        """
        rows = [row for row in self.rows for _ in range(row.rollouts)]
        failed = next((env for env in self.started if env.has_failed), None)
        if failed is not None:
            self.started.remove(failed)
            rows.remove(failed.row)
            rows.insert(0, failed.row)
        return [PlanEnv(row, self.renderer, self.started) for row in rows]

    async def cleanup(self) -> None:
        """Forget the rollouts: a data set that is evaluated several times makes the group again each time."""
        self.started.clear()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.rows, self.renderer)

    def logging_tags(self) -> list[str]:
        """The task, and the tags of the persona; those that all rows share if their personas differ."""
        shared = set.intersection(*(set(reward_tags(row.persona_id, row.persona_tags)) for row in self.rows))
        return [self.rows[0].task, *sorted(shared)]


class PlanDataset(RLDataset):  # type: ignore[misc]
    """The steps of a plan as batches."""

    def __init__(self, plan: Plan, renderer: Any) -> None:
        """Raises ConfigError if the answers of a task cannot be verified on this machine."""
        for name in dict.fromkeys(row.task for row in plan.rows):
            find_task(name).require_environment()
        self.plan, self.renderer = plan, renderer

    def get_batch(self, index: int) -> Sequence[PlanGroupBuilder]:
        """The groups of step `index`, from 0, in the plan's order. Raises IndexError for a step that the plan does not have."""
        if not 0 <= index < len(self):
            raise IndexError(f"step {index}: the plan has the steps 0 to {len(self) - 1}")
        rows = (row for row in self.plan.rows_at(index) if not row.spare)
        return [PlanGroupBuilder(tuple(own), self.renderer) for _, own in groupby(rows, key=lambda row: row.group)]

    def __len__(self) -> int:
        return self.plan.steps


@chz.chz
class PlanDatasetBuilder(RLDatasetBuilder):  # type: ignore[misc]
    """Reads the plan when a training starts.

    plan_file: a file of `permix plan`. dev_plan_file: another one, whose questions the training is evaluated on; dev.parquet of
    an export for verifiers is one. model_name: the model whose tokenizer is used. renderer_name: tinker-cookbook's name for the
    model's chat format. own_task: the task of your own that the questions are of, such as "package.module:TASK"; its module is
    then imported.
    """

    plan_file: str
    model_name: str
    renderer_name: str
    dev_plan_file: str | None = None
    own_task: str = ""

    async def __call__(self) -> tuple[PlanDataset, PlanDataset | None]:
        """Raises ConfigError or DataError for a file that is no plan to train on."""
        renderer = renderers.get_renderer(self.renderer_name, get_tokenizer(self.model_name), model_name=self.model_name)
        dev = None if self.dev_plan_file is None else self._read(self.dev_plan_file, renderer)
        return self._read(self.plan_file, renderer), dev

    def _read(self, path: str, renderer: Any) -> PlanDataset:
        return PlanDataset(load_training_plan(Path(path), "permix", self.own_task, "own_task"), renderer)
