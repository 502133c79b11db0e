"""Answers of servers that do not take the thinking apart, where the chat template opens it in the prompt."""

from pathlib import Path
from typing import Any

import pytest

from permix.config import ModelConfig, build_config
from permix.inference.base import with_cut_off_thinking
from permix.types import Completion, Sampling
from tests.batch_runner import completed, run_batch
from tests.inference.test_batch_files import read, request, write
from tests.inference.test_openai import model_at, questions
from tests.servers import Reply, openai_server

THOUGHT = "Okay, 48 / 2 = 24 clips. So altogether that is 48 + 24 = 72. Wait,"


def completion(text: str, **fields: Any) -> Completion:
    values: dict[str, Any] = {"prompt_tokens": 9, "completion_tokens": 64, "finish": "length"}
    return Completion(text=text, **values | fields)


def test_a_text_without_a_tag_that_the_limit_cut_off_is_thinking_where_thinking_is_on() -> None:
    found = with_cut_off_thinking(completion(THOUGHT), "on")
    assert found == completion("", reasoning=THOUGHT)
    assert (found.answer, found.thinking, found.is_thinking_unclosed, found.is_cut_off) == ("", THOUGHT, True, True)


@pytest.mark.parametrize(
    "whole",
    [
        completion("So it is 72.", finish="stop"),
        completion("So it is 72.", finish=None),
        completion(f"{THOUGHT}</think>It is 7"),
        completion(f"<think>{THOUGHT}</think>It is 7"),
        completion("<think></think>It is 7"),
        completion(f"<think>{THOUGHT}"),
        completion("It is 7", reasoning=THOUGHT),
        completion("", reasoning=THOUGHT),
        completion(""),
    ],
)
def test_all_other_texts_stay(whole: Completion) -> None:
    assert with_cut_off_thinking(whole, "on") == whole


@pytest.mark.parametrize("thinking", ["default", "off"])
def test_without_the_switch_nothing_is_known_of_the_template(thinking: Any) -> None:
    assert with_cut_off_thinking(completion(THOUGHT), thinking) == completion(THOUGHT)


@pytest.mark.parametrize(("thinking", "answer"), [("on", ""), ("default", THOUGHT)])
def test_over_http(thinking: Any, answer: str) -> None:
    with openai_server(lambda *_: Reply(THOUGHT, finish="length")) as server:
        (found,) = [one.result for one in model_at(server.base_url, thinking=thinking).generate(questions(1), Sampling())]
    assert isinstance(found, Completion)
    assert (found.answer, found.is_cut_off) == (answer, True)


@pytest.mark.parametrize(("thinking", "answer"), [("on", ""), ("default", THOUGHT)])
def test_in_batch_files(tmp_path: Path, thinking: Any, answer: str) -> None:
    config = build_config(ModelConfig, {"name": "m", "backend": "batch", "thinking": thinking}, source="test")
    write(tmp_path / "b", [request()], config)
    run_batch(tmp_path / "b", lambda body: completed(Reply(THOUGHT, finish="length")))
    ((_, found),) = read(tmp_path / "b", [request()], config)[1]
    assert isinstance(found, Completion)
    assert (found.answer, found.is_cut_off) == (answer, True)
