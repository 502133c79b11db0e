"""The agent loop of an exported training and the text that its reward scores, with stand-ins for the two modules of verl."""

import asyncio
import importlib
import json
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

import permix.interop
from permix.inference.chat_template import encode_chat, opened_thinking
from permix.inference.generation import stop_token_ids
from permix.inference.hf import load_tokenizer
from permix.interop.verl_reward import compute_score
from permix.prompts import build_messages
from permix.thinking import closing_text
from tests.inference.test_template_matrix import CASES, QUESTION, StandIn, save_case

THOUGHT = "Let me see. 7 + 5 = 12."
UNSURE = "I would rather not say."


class StandInLoop:
    """What `SingleTurnAgentLoop` gives to a subclass: the tokenizer, and an output with the ids of `answer`."""

    answer: tuple[int, ...] = ()

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    async def run(self, sampling_params: dict[str, Any], priority: int = 0, **kwargs: Any) -> Any:
        prompt_ids = encode_chat(self.tokenizer, kwargs["raw_prompt"])
        return SimpleNamespace(prompt_ids=prompt_ids, response_ids=list(self.answer), extra_fields={})


@pytest.fixture
def agent(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The module with the agent loop, on top of the stand-ins; another test may import it on top of verl."""
    contents: dict[str, dict[str, Any]] = {
        "agent_loop": {"AgentLoopOutput": object},
        "single_turn_agent_loop": {"SingleTurnAgentLoop": StandInLoop},
    }
    package = "verl.experimental.agent_loop"
    for name in ("verl", "verl.experimental", package, *(f"{package}.{one}" for one in contents)):
        module = ModuleType(name)
        vars(module).update(contents.get(name.removeprefix(f"{package}."), {}))
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, "permix.interop.verl_agent", raising=False)
    monkeypatch.delattr(permix.interop, "verl_agent", raising=False)
    yield importlib.import_module("permix.interop.verl_agent")
    sys.modules.pop("permix.interop.verl_agent", None)
    vars(permix.interop).pop("verl_agent", None)


def verl_score(agent: Any, tokenizer: Any, ids: list[int]) -> float:
    """The score by verl's way: what the agent loop adds goes to `extra_info`, and the text is decoded without special tokens."""
    messages = [dict(one) for one in build_messages(None, QUESTION)]
    about = {"task": "arithmetic", "rollouts": json.dumps([{"persona_id": None, "seed": 1, "messages": messages}])}
    loop = agent.PermixAgentLoop(tokenizer)
    loop.answer = tuple(ids)
    output = asyncio.run(loop.run({}, session_id="0", extra_info=about))
    text = tokenizer.decode(ids, skip_special_tokens=True)
    return compute_score("permix/arithmetic/none", text, "12", about | output.extra_fields)["score"]


def trainer_score(tokenizer: Any, ids: list[int]) -> float:
    """The reward that `permix train` gives to the same tokens."""
    from permix.training.grpo_trainer import PlanGRPOTrainer

    trainer = SimpleNamespace(
        processing_class=tokenizer, _stop_ids=stop_token_ids(StandIn(tokenizer.eos_token_id), tokenizer),
        _clock=SimpleNamespace(part=lambda _: nullcontext()), _expressivity=None,
        state=SimpleNamespace(global_step=0), eos_token_ids=[tokenizer.eos_token_id], _scored_rollouts=[],
    )  # fmt: skip
    columns = {"task": ["arithmetic"], "gold": ["12"], "group": [0], "persona_id": [None], "question_id": ["q"]}
    prompt = [dict(one) for one in build_messages(None, QUESTION)]
    (reward,) = PlanGRPOTrainer._reward(trainer, [prompt], [None], [ids], **columns, persona_tags=[()])  # type: ignore[arg-type]
    assert reward is not None
    return float(reward)


@pytest.mark.parametrize("name", CASES)
def test_verl_rewards_the_same_tokens_as_permix_train(agent: Any, name: str, tmp_path: Path) -> None:
    case = CASES[name]
    tokenizer = load_tokenizer(save_case(case, tmp_path))
    opened = opened_thinking(tokenizer).strip()
    tag = opened or next((one for one in ("[THINK]", "<|START_THINKING|>") if one in case.tokens), "<think>")
    start, close, end = "" if opened else tag, closing_text(tag), case.end or case.eos
    texts = {
        start + THOUGHT: 0.0,  # its thinking never ends
        start + THOUGHT + close + UNSURE + end: 0.0,
        start + "Hm." + close + "It is 12." + end: 1.0,
    }
    if not opened:
        texts["It is 12." + end] = 1.0
    for text, reward in texts.items():
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert (verl_score(agent, tokenizer, ids), trainer_score(tokenizer, ids)) == (reward, reward), text


def test_a_switch_that_verl_passes_to_the_template_counts(agent: Any, tmp_path: Path) -> None:
    """Where the tokenizer could not be loaded at the export, the template has no switch in it: the prompt shows what was done."""
    tokenizer = load_tokenizer(save_case(CASES["deepseek-v3.1"], tmp_path))
    assert opened_thinking(tokenizer) == ""

    class Switched(StandInLoop):
        async def run(self, sampling_params: dict[str, Any], priority: int = 0, **kwargs: Any) -> Any:
            output = await super().run(sampling_params, priority, **kwargs)
            chat = {"add_generation_prompt": True, "return_dict": False, "thinking": True}
            output.prompt_ids = self.tokenizer.apply_chat_template(kwargs["raw_prompt"], **chat)
            return output

    agent.PermixAgentLoop.__bases__ = (Switched,)
    ids = tokenizer(THOUGHT, add_special_tokens=False)["input_ids"]
    assert verl_score(agent, tokenizer, ids) == 0.0


def test_the_text_of_another_agent_loop_is_scored_as_it_is() -> None:
    messages = [dict(one) for one in build_messages(None, QUESTION)]
    about = {"task": "arithmetic", "rollouts": json.dumps([{"persona_id": None, "seed": 1, "messages": messages}])}
    assert compute_score("d", "It is 12.", "12", about) == {"score": 1.0}
    assert compute_score("d", "It is 12.", "12", about | {"permix_completion": "<think>\nIt is 12."}) == {"score": 0.0}
