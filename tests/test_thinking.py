"""Thinking is separated from the answer, in every form that public models write."""

import json
import time
from pathlib import Path

import pytest
from pydantic import ValidationError

from permix.config import ModelConfig, StabilityConfig, TrainConfig
from permix.thinking import SplitCompletion, answer_of, split_thinking
from permix.types import Completion


@pytest.mark.parametrize(
    ("completion", "answer", "thinking"),
    [
        ("The answer is 7.", "The answer is 7.", ""),
        ("", "", ""),
        ("<think>\nhm \\boxed{3}\n</think>\n\nIt is 7.", "It is 7.", "hm \\boxed{3}"),
        ("hm, 3?\n</think>\n\nIt is 7.", "It is 7.", "hm, 3?"),  # the template opened the block
        ("<think></think>\n\n7", "7", ""),
        ("<think>\n\n</think>\n7", "7", ""),
        ("<think>a</think>b<think>c</think>7", "b\n7", "ac"),
        ("<THINK>a</THINK>7", "7", "a"),
        ("<thinking>a</thinking>7", "7", "a"),
        ("<thought>a</thought>7", "7", "a"),
        ("<seed:think>a</seed:think>7", "7", "a"),
        ("[THINK]a[/THINK]7", "7", "a"),
        ("◁think▷a◁/think▷7", "7", "a"),
        ("<|START_THINKING|>a<|END_THINKING|>7", "7", "a"),
        ("<|channel>thought\n\\boxed{7}.<channel|>The answer is 18.", "The answer is 18.", "\\boxed{7}."),  # Gemma 4
        ("<|channel>thought\n<channel|>18", "18", ""),
        ("hm\n<channel|>18", "18", "hm"),
        ("<|inner_prefix|>a<|inner_suffix|>7", "7", "a"),
        ("<longcat_think>a</longcat_think>7", "7", "a"),
        ("<think >a</think >7", "7", "a"),
        ("<scratchpad>a</scratchpad>\n7", "7", "a"),
        ("\n<Analysis>a</Analysis>7", "7", "a"),
        ("<reason>a</reason><answer>7</answer>", "<answer>7</answer>", "a"),
        ("<analysis>a<think>b</think>c</analysis>7", "7", "abc"),
        ("<analysis>a</analysis>7 <reason>b</reason>", "7 <reason>b</reason>", "a"),
        ("It is 7. <reason>a</reason>", "It is 7. <reason>a</reason>", ""),  # a remark after the answer
        ("7\n</analysis>", "7\n</analysis>", ""),
        ("<think>a</think>", "", "a"),
        ("<think>a</think>\n", "", "a"),
        ("<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>final<|message|>7<|return|>", "7", "a"),
        ("<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>commentary<|message|>b<|end|>"
         "<|start|>assistant<|channel|>final<|message|>7", "7", "a\nb"),
        ("analysisWe need 7.assistantfinalIt is 7.", "It is 7.", "We need 7."),
        ("analysiswe need 7.assistantfinalIt is 7.", "It is 7.", "we need 7."),
        ("analysis of the problem: 7", "analysis of the problem: 7", ""),  # prose
        ("analysis maybe 7", "analysis maybe 7", ""),  # prose or thinking: nobody could say
        ("analysis: 7", "analysis: 7", ""),
        ("analysis\n7", "analysis\n7", ""),
        ("Analysis7", "Analysis7", ""),
        ("I think 7. <b>bold</b>", "I think 7. <b>bold</b>", ""),
    ],
)  # fmt: skip
def test_closed_thinking(completion: str, answer: str, thinking: str) -> None:
    found = split_thinking(completion)
    assert found.answer == answer
    assert found.thinking.split() == thinking.split()
    assert not found.unclosed


@pytest.mark.parametrize(
    "completion",
    [
        "<think>\nSo \\boxed{18}. But wait, let me re-read",
        "<think>a</think>b<think>again \\boxed{18}",
        "[THINK]a \\boxed{18}",
        "Sure. <think>a \\boxed{18}",
        "<|channel|>analysis<|message|>We need \\boxed{18}",
        "analysisWe need \\boxed{18}",
        "analysiswe need \\boxed{18}. But",
        "analysis9*2 = \\boxed{18}",
        "analysis“Each” means 18",
        "analysis我们 18",
        "<|channel>thought\nSo \\boxed{18}. But wait",
        "<|channel>So \\boxed{18}",
        "<scratchpad>\n18, but",
        "<reason>18",
        " <analysis >18",
        "<longcat_think>18",
        "<think >18",
    ],
)
def test_thinking_that_never_ends_leaves_no_answer(completion: str) -> None:
    found = split_thinking(completion)
    assert (found.answer, found.unclosed) == ("", True)
    assert "18" in found.thinking


def test_a_megabyte_takes_linear_time() -> None:
    start = time.process_time()
    for text in (
        "<think>" * 150_000,
        "</think>" * 120_000,
        "<think>a</think>" * 60_000,
        "[THINK" * 150_000,
        "<|channel|>" * 90_000,
        "<|channel>thought" * 60_000,
        "<analysis>" * 100_000,
        "<think" + " " * 900_000,
        "<think " * 150_000,
        " " * 900_000 + "<",
    ):
        answer_of(text)
    assert time.process_time() - start < 10  # well under a second; quadratic would be hours


def test_a_completion_keeps_its_thinking_beside_the_answer() -> None:
    completion = Completion(text="<think>hm</think>7", prompt_tokens=1, completion_tokens=2, finish="stop")
    assert (completion.answer, completion.thinking, completion.is_thinking_unclosed, completion.is_cut_off) == (
        "7",
        "hm",
        False,
        False,
    )
    assert "reasoning" not in json.loads(completion.model_dump_json())
    apart = Completion(text="7", prompt_tokens=1, completion_tokens=2, finish="stop", reasoning="hm")
    assert (apart.answer, apart.thinking) == ("7", "hm")
    assert Completion.model_validate_json(apart.model_dump_json()) == apart


@pytest.mark.parametrize(
    ("completion", "cut_off"),
    [
        (Completion(text="<think>hm", prompt_tokens=1, completion_tokens=2, finish="stop"), True),
        (Completion(text="<think>hm", prompt_tokens=1, completion_tokens=2, finish=None), True),
        (Completion(text="", prompt_tokens=1, completion_tokens=2, finish="length", reasoning="hm"), True),
        (Completion(text="7", prompt_tokens=1, completion_tokens=2, finish="length"), True),
        (Completion(text="7", prompt_tokens=1, completion_tokens=2, finish=None), None),
    ],
)
def test_what_counts_as_cut_off(completion: Completion, cut_off: bool | None) -> None:
    assert completion.is_cut_off is cut_off


def test_the_record_of_a_split() -> None:
    assert split_thinking("7") == SplitCompletion("7", "", False)


def test_a_bound_that_cannot_hold_is_refused_and_says_what_can(tmp_path: Path) -> None:
    endpoint = {"backend": "openai", "base_url": "http://127.0.0.1:1/v1", "name": "m"}
    with pytest.raises(ValidationError, match=r'thinking_budget = 9: backend "openai" cannot .*model.extra_body'):
        ModelConfig.model_validate(endpoint | {"thinking_budget": 9})
    with pytest.raises(ValidationError, match=r"thinking_budget = 256: leaves no token .*sampling.max_new_tokens \(now 256\)"):
        StabilityConfig.model_validate({"out": tmp_path, "model": {"thinking_budget": 256}, "sampling": {"max_new_tokens": 256}})
    with pytest.raises(ValidationError, match="thinking_budget = 9: a token that is forced is not the model's own"):
        TrainConfig.model_validate({"out": tmp_path, "model": {"thinking_budget": 9}})
    bounded = StabilityConfig.model_validate({"out": tmp_path, "model": {"thinking_budget": 255}})
    assert bounded.model.thinking_budget == 255
