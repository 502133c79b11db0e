"""A training plan as a taskset of verifiers, for its evaluation and for training with prime-rl.

    class Plan(PlanTaskset):
        plan_file = Path(__file__).with_name("plan.parquet")

    __all__ = ["InProcessHarness", "Plan"]

`permix export --format verifiers` writes a package of these lines: an id of verifiers is the name of an installed package.

A task of verifiers is a row of the plan, in the plan's order; its key is `STEP/GROUP`. The persona is the system message. If the
template puts it into the question, it is in the user message and no system message is sent. The reward is the evaluation's score,
1 or 0. An answer that could not be verified is an error without a reward: it never counts as wrong.

verifiers asks each task as often, and with the sampling, as its own configuration says. The plan's seeds are in the tasks' data
and are not sent. Needs the extra `verifiers`, and uses its interface `verifiers.v1`.
"""

import asyncio
import ssl
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import openai
import verifiers.v1 as vf
from verifiers.v1.dialects.chat import message_to_wire
from verifiers.v1.errors import MODEL_TRANSPORT_ERROR_EXIT_CODE

from permix.errors import ConfigError, DataError
from permix.plan import load_training_plan
from permix.storage.rows import quote_value
from permix.tasks import find_task
from permix.tasks.base import verify_completion
from permix.thinking import answer_of
from permix.types import Message, PlanRow, last_user_text, reward_tags


class PlanData(vf.TaskData):  # type: ignore[misc]
    """What a trace keeps of a row: the messages (in verifiers' own fields) and where the row comes from."""

    gold: str
    task: str
    step: int
    group: int
    question_id: str
    question_hash: str
    persona_id: str | None = None
    persona_tags: tuple[str, ...] = ()
    seed: int = 0
    opens_thinking: bool = False


class PlanTask(vf.Task[PlanData]):  # type: ignore[misc]
    """One row of a plan."""

    @property
    def key(self) -> str:
        """`STEP/GROUP`, unique in a plan and the same in every process."""
        return f"{self.data.step}/{self.data.group}"

    @vf.reward(weight=1.0)  # type: ignore[untyped-decorator]
    async def right(self, trace: Any) -> float:
        """1 for a right answer, 0 for a wrong or missing one; also recorded as the metric `right/TAG` of each tag of the persona,
        `right/untagged` if that has none, `right/none` without a persona.

        Raises vf.TaskError if the verifier failed: verifiers records an error, and prime-rl leaves the rollout out of its group.
        """
        data = self.data
        question = data.prompt if isinstance(data.prompt, str) else last_user_text([message_to_wire(one) for one in data.prompt])
        text = "" if data.opens_thinking and _is_cut_off_thinking(trace) else trace.last_reply
        verdict = await asyncio.to_thread(verify_completion, find_task(data.task), text, data.gold, question)
        if verdict.reward is None:
            raise vf.TaskError(f"the answer could not be verified: {verdict.error or 'the verifier gave no reason'}")
        # Recorded here and not by a metric of its own: an unscored metric would count as 0 in prime-rl's means.
        for tag in reward_tags(data.persona_id, data.persona_tags):
            trace.record_metric(f"right/{tag}", verdict.reward)
        return verdict.reward


def _is_cut_off_thinking(trace: Any) -> bool:
    """Whether the reply to a prompt that opens the thinking reached the token limit within it: then it has no tag at all."""
    reply = trace.last_reply
    has_tags = answer_of(reply) != reply
    return trace.is_truncated and not has_tags and not any(one.reasoning_content for one in trace.assistant_messages)


class PlanTasksetConfig(vf.TasksetConfig):  # type: ignore[misc]
    """Options `--env.taskset.*`."""

    plan: Path | None = None
    """A plan file of `permix plan`; the plan of the package when not given."""
    dev: bool = False
    """The package's dev evaluation in place of its plan."""
    own_task: str = ""
    """The task of your own that the plan's questions are of, such as "package.module:TASK": its module is then imported. A plan
    alone imports nothing."""
    opens_thinking: bool = False
    """The model's chat template opens the thinking in the prompt. A reply that the token limit cuts off within it then has no
    answer, although it has no tag."""


class PlanTaskset(vf.Taskset[PlanTask, PlanTasksetConfig]):  # type: ignore[misc]
    """The rows of a plan. A package sets `plan_file` and, if it has one, `dev_file`; `--env.taskset.plan` names another file."""

    plan_file: ClassVar[Path | None] = None
    dev_file: ClassVar[Path | None] = None

    def load(self) -> Iterator[PlanTask]:
        """One task for each group of the plan, in order; spare groups are left out.

        Raises ConfigError or DataError if there is no plan, it cannot be used or its answers cannot be verified here, and if the
        rollouts of a group have personas of their own.
        """
        path = self.config.plan or (self.dev_file if self.config.dev else self.plan_file)
        if path is None:
            missing = "dev = true: this package has no dev evaluation" if self.config.dev else "plan: this package has no plan"
            raise ConfigError(f"{missing}; give --env.taskset.plan PLAN.parquet, a file of `permix plan`")
        plan = load_training_plan(path, "permix", self.config.own_task, "own_task")
        for name in dict.fromkeys(row.task for row in plan.rows):
            find_task(name).require_environment()
        if len({(row.step, row.group) for row in plan.rows}) < len(plan.rows):
            raise DataError(
                f"plan {path}: its rollouts have prompts of their own (scope rollout), but a task of verifiers is one prompt for "
                "all rollouts of a group; give a plan made with --plan.scope group"
            )
        for row in plan.rows:
            if not row.spare:
                yield PlanTask(build_data(row, path, self.config.opens_thinking), self.config.task)


def build_data(row: PlanRow, path: Path, opens_thinking: bool = False) -> PlanData:
    """The row as a task's data. A prompt of one user message is a text; of several messages, a list of messages."""
    has_system = row.messages[:1] != () and row.messages[0]["role"] == "system"
    prompt = row.messages[1:] if has_system else row.messages
    if unknown := next((one["role"] for one in prompt if one["role"] not in _MESSAGE_TYPES), None):
        raise DataError(
            f"plan {path}: step {row.step}, group {row.group}: role = {quote_value(unknown)}: "
            f"valid roles: {', '.join(_MESSAGE_TYPES)}"
        )
    if not any(one["role"] == "user" for one in prompt):
        raise DataError(f"plan {path}: step {row.step}, group {row.group}: has no user message")
    return PlanData(
        id=f"{row.step}/{row.group}",
        system_prompt=row.messages[0]["content"] if has_system else None,
        prompt=prompt[0]["content"] if len(prompt) == 1 else [_typed_message(one) for one in prompt],
        opens_thinking=opens_thinking,
        **row.model_dump(include=set(PlanData.__annotations__)),
    )


_MESSAGE_TYPES: dict[str, Any] = {"system": vf.SystemMessage, "user": vf.UserMessage, "assistant": vf.AssistantMessage}


def _typed_message(message: Message) -> Any:
    return _MESSAGE_TYPES[message["role"]](content=message["content"])


class InProcessHarnessConfig(vf.HarnessConfig):  # type: ignore[misc]
    """Options `--env.agent.harness.*`."""

    max_retries: int = 2
    """How often a request is sent again after a connection that broke and after a status 408, 409, 429 or 5xx."""


class InProcessHarness(vf.Harness[InProcessHarnessConfig]):  # type: ignore[misc]
    """Asks the model once, in this process. verifiers' own harness without tools starts a Python of its own for every rollout."""

    APPENDS_SYSTEM_PROMPT = True
    SUPPORTS_RESUME = True
    EXECUTES_CODE = False
    NEEDS_CONTAINER = False

    async def launch(
        self,
        ctx: Any,
        trace: Any,
        runtime: Any,
        endpoint: str,
        secret: str,
        mcp_urls: dict[str, str],
        data: Any,
    ) -> Any:
        """Send the messages to verifiers' own server at `endpoint`, which sets the sampling and records the reply in the trace.

        Returns the result of a program: exit code 0, or another one if the request failed.
        """
        messages: Any = list(self._messages(data))
        # The rollout's time limit is verifiers' own; a limit here would cut long completions off.
        timeout = openai.Timeout(None, connect=5.0)
        async with openai.DefaultAsyncHttpxClient(verify=_tls_context(), timeout=timeout) as http:
            client = openai.AsyncOpenAI(
                base_url=endpoint, api_key=secret, http_client=http, timeout=timeout, max_retries=self.config.max_retries
            )
            try:
                await client.chat.completions.create(model=ctx.model, messages=messages)
            except openai.APIError as error:
                is_transport = isinstance(error, openai.APIConnectionError)
                return vf.ProgramResult(MODEL_TRANSPORT_ERROR_EXIT_CODE if is_transport else 1, "", str(error))
        return vf.ProgramResult(0, "", "")

    def _messages(self, data: Any) -> Iterator[Message]:
        system, prompt = self.resolve_prompt(data)
        if system is not None:  # an empty one too: it keeps the chat template's default system message away
            yield Message(role="system", content=system)
        if isinstance(prompt, str):
            yield Message(role="user", content=prompt)
        else:
            yield from (message_to_wire(message) for message in prompt or ())


@cache
def _tls_context() -> ssl.SSLContext:
    """One for all clients: reading the certificates takes longer than a request."""
    return ssl.create_default_context()
