"""The reward of the taskset for verifiers, with stand-ins for its interface: thinking that the prompt opened is no answer."""

import asyncio
import importlib
import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

import permix.interop


class Part:
    """Any class of verifiers, generic or not, that keeps the fields it is made with."""

    def __init__(self, **fields: Any) -> None:
        vars(self).update(fields)

    def __class_getitem__(cls, _: Any) -> Any:
        return cls


@pytest.fixture
def taskset(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    pytest.importorskip("openai", reason="openai is not installed")
    names: tuple[str, ...] = ("TaskData", "Task", "TasksetConfig", "Taskset", "HarnessConfig", "Harness", "ProgramResult")
    names += ("SystemMessage", "UserMessage", "AssistantMessage")
    modules: dict[str, dict[str, Any]] = {
        "verifiers": {},
        "verifiers.v1": {
            **{name: type(name, (Part,), {}) for name in names},
            "reward": lambda weight: lambda function: function,
            "TaskError": type("TaskError", (Exception,), {}),
        },
        "verifiers.v1.dialects": {},
        "verifiers.v1.dialects.chat": {"message_to_wire": vars},
        "verifiers.v1.errors": {"MODEL_TRANSPORT_ERROR_EXIT_CODE": 3},
    }
    for name, contents in modules.items():
        module = ModuleType(name)
        vars(module).update(contents)
        monkeypatch.setitem(sys.modules, name, module)
    vars(sys.modules["verifiers"])["v1"] = sys.modules["verifiers.v1"]
    monkeypatch.delitem(sys.modules, "permix.interop.verifiers_taskset", raising=False)
    monkeypatch.delattr(permix.interop, "verifiers_taskset", raising=False)
    yield importlib.import_module("permix.interop.verifiers_taskset")
    sys.modules.pop("permix.interop.verifiers_taskset", None)
    vars(permix.interop).pop("verifiers_taskset", None)


CUT_OFF = "2 + 3 is 5, but"


@pytest.mark.parametrize(
    ("opens", "reply", "is_truncated", "reasoning", "reward"),
    [
        (True, CUT_OFF, True, None, 0.0),
        (False, CUT_OFF, True, None, 1.0),
        (True, CUT_OFF, False, None, 1.0),  # the server took an empty thinking apart
        (True, "It is 5.", True, "Hm.", 1.0),
        (True, "Hm.</think>It is 5.", True, None, 1.0),
        (True, f"Hm.</think><think>{CUT_OFF}", True, None, 0.0),
    ],
)
def test_thinking_that_the_prompt_opened_and_the_limit_cut_off_earns_nothing(
    taskset: Any, opens: bool, reply: str, is_truncated: bool, reasoning: str | None, reward: float
) -> None:
    data = taskset.PlanData(
        prompt="What is 2 + 3?", task="arithmetic", gold="5", persona_id=None, persona_tags=(), opens_thinking=opens
    )
    metrics: dict[str, float] = {}
    trace = SimpleNamespace(
        last_reply=reply, is_truncated=is_truncated, record_metric=metrics.__setitem__,
        assistant_messages=[SimpleNamespace(content=reply, reasoning_content=reasoning)],
    )  # fmt: skip
    assert asyncio.run(taskset.PlanTask(data=data).right(trace)) == reward
    assert metrics == {"right/none": reward}
