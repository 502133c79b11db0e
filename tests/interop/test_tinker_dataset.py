"""The groups of a plan for tinker-cookbook, with stand-ins for its modules: which rollout is sampled again after an error."""

import asyncio
import importlib
import pickle
import sys
from collections.abc import Callable, Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

import permix.interop
from permix.types import Message, PlanRow

QUESTION = Message(role="user", content="What is 2 + 3?")


class StandInTokenizer:
    def decode(self, tokens: list[int]) -> str:
        return "".join(map(chr, tokens))


class StandInRenderer:
    """Tokens are the characters of the messages' texts, and of `opening`, with which an answer begins in the prompt."""

    def __init__(self, opening: str = "") -> None:
        self.opening = opening
        self.tokenizer = StandInTokenizer()

    def build_generation_prompt(self, messages: list[dict[str, Any]]) -> Any:
        tokens = [ord(one) for text in (*(message["content"] for message in messages), self.opening) for one in text]
        return SimpleNamespace(to_ints=lambda: tokens)

    def get_stop_sequences(self) -> list[str]:
        return []

    def parse_response(self, action: list[int]) -> tuple[dict[str, Any], bool]:
        _, _, answer = "".join(map(chr, action)).rpartition("</think>")
        return {"role": "assistant", "content": answer}, True


@pytest.fixture
def dataset(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    base = {name: type(name, (), {}) for name in ("Env", "EnvGroupBuilder", "RLDataset", "RLDatasetBuilder")}
    modules: dict[str, dict[str, Any]] = {
        "chz": {"chz": lambda one: one},
        "tinker": {"ModelInput": SimpleNamespace(empty=list)},
        "tinker_cookbook": {},
        "tinker_cookbook.renderers": {"get_text_content": lambda message: message["content"]},
        "tinker_cookbook.rl": {},
        "tinker_cookbook.rl.types": {**base, "StepResult": SimpleNamespace},
        "tinker_cookbook.tokenizer_utils": {"get_tokenizer": None},
    }
    for name, contents in modules.items():
        module = ModuleType(name)
        vars(module).update(contents)
        monkeypatch.setitem(sys.modules, name, module)
    vars(sys.modules["tinker_cookbook"])["renderers"] = sys.modules["tinker_cookbook.renderers"]
    monkeypatch.delitem(sys.modules, "permix.interop.tinker_dataset", raising=False)
    monkeypatch.delattr(permix.interop, "tinker_dataset", raising=False)
    yield importlib.import_module("permix.interop.tinker_dataset")
    sys.modules.pop("permix.interop.tinker_dataset", None)
    vars(permix.interop).pop("tinker_dataset", None)


def row(persona: str | None, rollouts: int = 1) -> PlanRow:
    system = () if persona is None else (Message(role="system", content=f"You are a {persona}. "),)
    return PlanRow(
        step=0, group=0, rollouts=rollouts, task="arithmetic", question_id="q", question_hash="q", persona_id=persona, seed=0,
        persona_tags=() if persona is None else (persona,), messages=(*system, QUESTION), gold="5",
    )  # fmt: skip


async def sample_group(builder: Any, policy: Callable[[str], Any], timeout_s: float | None = None) -> list[str]:
    """The tags of the finished rollouts, by the way of tinker-cookbook's RetryOnFailure: a rollout that failed is replaced by the
    first environment of a group that is made anew."""

    async def roll_out(env: Any) -> Any:
        prompt, _ = await env.initial_observation()
        answer = await policy("".join(map(chr, prompt.to_ints())))
        return await env.step([ord(one) for one in answer])

    def launch(env: Any) -> Any:
        rollout = roll_out(env)
        return asyncio.create_task(rollout if timeout_s is None else asyncio.wait_for(rollout, timeout_s))

    finished: list[str] = []
    pending = {launch(env) for env in await builder.make_envs()}
    while pending:
        done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            try:
                finished += [name.removeprefix("right/") for name in task.result().metrics]
            except Exception:
                pending.add(launch((await builder.make_envs())[0]))
    await builder.cleanup()
    return sorted(finished)


class Failing:
    """A policy that fails on the first prompts of some personas."""

    def __init__(self, failure: Callable[[], Any], *personas: str) -> None:
        self.failure, self.left = failure, list(personas)

    async def __call__(self, prompt: str) -> str:
        failing = next((persona for persona in self.left if persona in prompt), None)
        if failing is not None:
            self.left.remove(failing)
            await self.failure()
        return "5"


async def broken() -> None:
    raise OSError("the service is gone")


async def broken_later() -> None:
    await asyncio.sleep(0.02)
    raise OSError("the service is gone")


async def silent() -> None:
    await asyncio.sleep(60)


ROWS = (row("troll"), row("nurse"), row("poet"), row(None))


@pytest.mark.parametrize("personas", [["nurse"], ["poet", "nurse"], ["nurse", "nurse", "poet"], ["What is"]])
@pytest.mark.parametrize("failure", [broken, broken_later])
def test_a_rollout_that_is_sampled_again_keeps_its_persona(dataset: Any, personas: list[str], failure: Any) -> None:
    builder = dataset.PlanGroupBuilder(ROWS, StandInRenderer())
    policy = Failing(failure, *personas)
    assert asyncio.run(sample_group(builder, policy)) == ["none", "nurse", "poet", "troll"]
    assert policy.left == []


def test_also_after_a_limit_of_time(dataset: Any) -> None:
    builder = dataset.PlanGroupBuilder(ROWS, StandInRenderer())
    found = asyncio.run(sample_group(builder, Failing(silent, "poet", "nurse"), timeout_s=0.2))
    assert found == ["none", "nurse", "poet", "troll"]


def test_also_when_the_answer_could_not_be_verified(dataset: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    verify = dataset.verify_completion
    failed: list[str] = []

    def fail_once(task: Any, text: str, gold: str, question: str) -> Any:
        verdict = verify(task, text, gold, question)
        if not failed:
            failed.append(text)
            return verdict.model_copy(update={"correct": None, "error": "out of memory"})
        return verdict

    monkeypatch.setattr(dataset, "verify_completion", fail_once)
    assert asyncio.run(sample_group(dataset.PlanGroupBuilder(ROWS, StandInRenderer()), Failing(broken))) == [
        "none", "nurse", "poet", "troll",
    ]  # fmt: skip
    assert failed


@pytest.mark.parametrize(
    ("opening", "answer", "reward"),
    [
        ("<think>\n", "2 + 3 is 5, but", 0.0),  # its thinking never ends
        ("<think>\n", "2 + 3 is 5, but</think>", 0.0),
        ("<think>\n", "Hm.</think>It is 5.", 1.0),
        ("<think>\n", "</think>It is 5.", 1.0),
        ("<think>\n\n</think>\n\n", "It is 5.", 1.0),
        ("", "It is 5.", 1.0),
        ("", "<think>It is 5, but", 0.0),
    ],
)
def test_thinking_that_the_prompt_opens_and_that_never_ends_is_no_answer(
    dataset: Any, opening: str, answer: str, reward: float
) -> None:
    async def roll_out() -> float:
        (env,) = await dataset.PlanGroupBuilder((ROWS[0],), StandInRenderer(opening)).make_envs()
        await env.initial_observation()
        return float((await env.step([ord(one) for one in answer])).reward)

    assert asyncio.run(roll_out()) == reward


def test_a_group_that_is_made_again_without_a_failure_is_the_same(dataset: Any) -> None:
    builder = dataset.PlanGroupBuilder((row("nurse", 2), row("troll", 1)), StandInRenderer())

    def personas() -> list[str | None]:
        return [env.row.persona_id for env in asyncio.run(builder.make_envs())]

    assert personas() == personas() == ["nurse", "nurse", "troll"]
    for _ in range(2):
        assert asyncio.run(sample_group(builder, Failing(broken, "troll"))) == ["nurse", "nurse", "troll"]
        assert personas() == ["nurse", "nurse", "troll"]


def test_a_group_travels_to_another_process_also_after_it_was_asked(dataset: Any) -> None:
    builder = dataset.PlanGroupBuilder((ROWS[0],), StandInRenderer())

    async def start() -> None:
        (env,) = await builder.make_envs()
        await env.initial_observation()

    asyncio.run(start())
    again = pickle.loads(pickle.dumps(builder))
    assert (again.rows, again.started, len(builder.started)) == (builder.rows, [], 1)
