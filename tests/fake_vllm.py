"""A module `vllm` whose engine answers with the tiny model. Its names and parameters are those recorded from released packages.

A name or parameter that one of the recorded versions lacks raises TypeError or AttributeError here, as it would there.
"""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

INTERFACE: dict[str, dict[str, str]] = json.loads((Path(__file__).parent / "inference" / "vllm_interface.json").read_text())


def recorded(owner: str) -> set[str]:
    """The names of `owner` that every recorded version has."""
    return set.intersection(*(set(version[owner].split()) for version in INTERFACE.values()))


class Arguments:
    """Keeps the keyword arguments of a class of vLLM's; the class's name says which are valid."""

    def __init__(self, **given: Any) -> None:
        if unknown := sorted(set(given) - recorded(type(self).__name__)):
            raise TypeError(f"{type(self).__name__} has no {', '.join(unknown)} in every recorded version of vLLM")
        self.given = given
        vars(self).update(given)


class AsyncEngineArgs(Arguments): ...


class SamplingParams(Arguments): ...


class StructuredOutputsParams(Arguments): ...


class CompletionOutput(Arguments): ...


class RequestOutput(Arguments): ...


class RequestOutputKind(Enum):
    CUMULATIVE = 0
    FINAL_ONLY = 2


class EngineDeadError(Exception):
    def __init__(self) -> None:
        super().__init__("EngineCore encountered an issue.")


@dataclass
class Recorder:
    """What the engine was asked, and what it is to do."""

    network: Any
    tokenizer: Any
    max_num_seqs: int = 256
    max_model_len: int = 512
    start_error: Exception | None = None
    before: Callable[[str], None] = lambda _: None
    """Called with the text of each prompt before it is answered; what it raises is raised there."""
    held: Callable[[str], bool] = lambda _: False
    """Whether a prompt's answer waits for `release`."""
    arguments: dict[str, Any] = field(default_factory=dict)
    prompts: list[list[int]] = field(default_factory=list)
    """In the order in which they were handed over."""
    parameters: list[SamplingParams] = field(default_factory=list)
    n_in_flight: int = 0
    most_in_flight: int = 0
    aborted: list[str] = field(default_factory=list)
    shut_down: int = 0
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    loop: Any = None

    def release(self) -> None:
        self.loop.call_soon_threadsafe(self.gate.set)


class AsyncLLMEngine:
    """Each request takes as many turns of the event loop as its completion has tokens."""

    recorder: Recorder

    def __init__(self, arguments: dict[str, Any]) -> None:
        self.loop = self.recorder.loop = asyncio.get_running_loop()
        self.recorder.arguments = arguments
        self.ids: set[str] = set()
        limit = arguments.get("max_model_len", self.recorder.max_model_len)
        dtype = {"auto": "torch.bfloat16"}.get(arguments["dtype"], f"torch.{arguments['dtype']}")
        self.model_config = SimpleNamespace(max_model_len=limit, dtype=dtype)
        self.vllm_config = SimpleNamespace(scheduler_config=SimpleNamespace(max_num_seqs=self.recorder.max_num_seqs))
        assert {"model_config", "vllm_config"} <= recorded("AsyncLLMEngine")

    @classmethod
    def from_engine_args(cls, engine_args: AsyncEngineArgs) -> "AsyncLLMEngine":
        assert "engine_args" in recorded("AsyncLLMEngine.from_engine_args")
        if cls.recorder.start_error is not None:
            raise cls.recorder.start_error
        return cls(engine_args.given)

    async def generate(
        self, prompt: dict[str, Any], sampling_params: SamplingParams, request_id: str
    ) -> AsyncIterator[RequestOutput]:
        from permix.inference.generation import generate_tokens
        from permix.types import Sampling

        assert {"prompt", "sampling_params", "request_id"} <= recorded("AsyncLLMEngine.generate")
        assert asyncio.get_running_loop() is self.loop, "vLLM's sockets belong to one loop"
        seen, (token_ids, asked) = self.recorder, (prompt["prompt_token_ids"], sampling_params.given)
        assert request_id not in self.ids
        seen.prompts.append(token_ids)
        seen.parameters.append(sampling_params)
        self.ids.add(request_id)
        seen.n_in_flight += 1
        seen.most_in_flight = max(seen.most_in_flight, seen.n_in_flight)
        try:
            text = seen.tokenizer.decode(token_ids)
            seen.before(text)
            if seen.held(text):
                await seen.gate.wait()
            sampling = Sampling(temperature=asked["temperature"], top_p=asked["top_p"], max_new_tokens=asked["max_tokens"])
            drawn = generate_tokens(seen.network, seen.tokenizer, [token_ids], [asked["seed"] or 0], sampling)[0].token_ids
            for _ in drawn:
                await asyncio.sleep(0)
            reason = "stop" if drawn[-1] in asked["stop_token_ids"] else "length"
            output = CompletionOutput(index=0, text="", token_ids=tuple(drawn), finish_reason=reason)
            yield RequestOutput(request_id=request_id, prompt_token_ids=token_ids, outputs=[output], finished=True)
        except asyncio.CancelledError:
            seen.aborted.append(request_id)
            raise
        finally:
            seen.n_in_flight -= 1

    def shutdown(self, timeout: float | None = None) -> None:
        assert timeout
        assert "timeout" in recorded("AsyncLLMEngine.shutdown")
        self.recorder.shut_down += 1


def tokens_input(prompt_token_ids: list[int]) -> dict[str, Any]:
    assert "prompt_token_ids" in recorded("tokens_input")
    return {"type": "token", "prompt_token_ids": prompt_token_ids}


def install(patch: pytest.MonkeyPatch, recorder: Recorder) -> None:
    """Put the module in the place of `vllm`."""
    engine = type("AsyncLLMEngine", (AsyncLLMEngine,), {"recorder": recorder})
    names: dict[str, dict[str, Any]] = {
        "vllm": {
            "AsyncEngineArgs": AsyncEngineArgs, "AsyncLLMEngine": engine, "SamplingParams": SamplingParams,
        },
        "vllm.sampling_params": {
            "RequestOutputKind": RequestOutputKind, "StructuredOutputsParams": StructuredOutputsParams,
        },
        "vllm.inputs": {"tokens_input": tokens_input},
        "vllm.v1": {},
        "vllm.v1.engine": {},
        "vllm.v1.engine.exceptions": {"EngineDeadError": EngineDeadError},
    }  # fmt: skip
    assert set(names["vllm"]) <= recorded("vllm")
    assert set(names["vllm.inputs"]) <= recorded("vllm.inputs")
    assert "EngineDeadError" in recorded("vllm/v1/engine/exceptions.py")
    assert {one.name for one in RequestOutputKind} <= recorded("RequestOutputKind")
    for name, members in names.items():
        module = ModuleType(name)
        vars(module).update(members)
        patch.setitem(sys.modules, name, module)
