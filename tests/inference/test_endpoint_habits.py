"""Endpoints that differ: refused fields are found out once, all shapes of replies are read, refusals for good stop a run."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from permix import cli
from permix.config import FidelityConfig, ModelConfig, build_config
from permix.errors import ConfigError
from permix.inference.base import remember_request_changes
from permix.inference.openai_endpoint import MAX_REFUSALS
from permix.inference.request_body import (
    FilteredReplyError,
    MalformedReplyError,
    RequestBody,
    is_system_refusal,
    parse_chat_completion,
    refusal_text,
    refused_field,
)
from permix.storage.failures import FailureCause
from permix.types import Completion, Failure, Message, Request, Sampling
from tests.inference.test_openai import model_at, questions
from tests.sample_runs import endpoint, stability_values, toml
from tests.servers import Action, Raw, Reply, error, openai_server

USAGE = {"prompt_tokens": 20, "completion_tokens": 5}


def refusal(message: str, status: int = 400, **more: Any) -> Raw:
    return Raw(json.dumps({"error": {"message": message, "type": "invalid_request_error", **more}}).encode(), status)


def reasoning_model(body: Mapping[str, Any], nth: int, headers: Mapping[str, str]) -> Action:
    """Like o1: another name for max_tokens, and no temperature but 1."""
    if "max_tokens" in body:
        return refusal(
            "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
        )
    if body.get("temperature", 1) != 1:
        return refusal("Unsupported value: 'temperature' does not support 0 with this model.", param="temperature")
    return Reply("18")


def through_a_router(body: Mapping[str, Any], nth: int, headers: Mapping[str, str]) -> Action:
    """Like OpenRouter: its own message says nothing, and the provider's words are in the metadata."""
    if "max_tokens" in body:
        raw = json.dumps({"error": {"message": "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."}})
        return refusal("Provider returned error", code=400, metadata={"raw": raw, "provider_name": "P"})
    if "seed" in body:
        raw = json.dumps({"error": {"message": "Unsupported parameter", "param": "seed"}})
        return refusal("Provider returned error", code=400, metadata={"raw": raw})
    return Reply("18")


def without_temperature(body: Mapping[str, Any], nth: int, headers: Mapping[str, str]) -> Action:
    return refusal("Unsupported parameter: 'temperature' is not supported.") if "temperature" in body else Reply("18")


def without_seed(body: Mapping[str, Any], nth: int, headers: Mapping[str, str]) -> Action:
    detail = {"detail": [{"type": "extra_forbidden", "loc": ["body", "seed"], "msg": "Extra inputs are not permitted"}]}
    return Raw(json.dumps(detail).encode(), 422) if "seed" in body else Reply("18")


def one_of_two(body: Mapping[str, Any], nth: int, headers: Mapping[str, str]) -> Action:
    both = "temperature" in body and "top_p" in body
    return refusal("`temperature` and `top_p` cannot both be specified for this model.") if both else Reply("18")


def top_p_below_one(body: Mapping[str, Any], nth: int, headers: Mapping[str, str]) -> Action:
    wrong = {"error": "Input validation error: `top_p` must be > 0.0 and < 1.0", "error_type": "validation"}
    return Raw(json.dumps(wrong).encode(), 422) if body.get("top_p", 0.5) >= 1 else Reply("18")


def streams_only(body: Mapping[str, Any], nth: int, headers: Mapping[str, str]) -> Action:
    if not body.get("stream"):
        return refusal("parameter.enable_thinking must be set to false for non-streaming calls")
    return events([{"delta": {"content": "1"}}, {"delta": {"content": "8"}, "finish_reason": "stop"}], usage=USAGE)


def streams_if_set(body: Mapping[str, Any], nth: int, headers: Mapping[str, str]) -> Action:
    if not body.get("stream"):
        return refusal("This model streams: set `stream` to true")
    return events([{"delta": {"content": "18"}, "finish_reason": "stop"}], usage=USAGE)


def events(choices: list[dict[str, Any]], usage: Any = None) -> Raw:
    lines = [json.dumps({"choices": [{"index": 0, **choice}]}) for choice in choices]
    last = [json.dumps({"choices": [], "usage": usage})] if usage else []
    return Raw(
        "".join(f"data: {line}\n\n" for line in [*lines, *last, "[DONE]"]).encode(), headers={"Content-Type": "text/event-stream"}
    )


@pytest.mark.parametrize(
    ("habit", "changed"),
    [
        (reasoning_model, {"max_tokens", "temperature"}),
        (without_temperature, {"temperature"}),
        (without_seed, {"seed"}),
        (one_of_two, {"top_p"}),
        (top_p_below_one, {"top_p"}),
        (streams_only, {"stream"}),
        (streams_if_set, {"stream"}),
        (through_a_router, {"max_tokens", "seed"}),
    ],
)
def test_a_refused_field_is_found_out_once(habit: Any, changed: set[str], capsys: pytest.CaptureFixture[str]) -> None:
    with openai_server(habit) as server:
        model = model_at(server.base_url, concurrency=1)
        for _ in range(2):
            found = [one.result for one in model.generate(questions(3), Sampling(max_new_tokens=40))]
            assert [one.text for one in found if isinstance(one, Completion)] == ["18"] * 3
        assert set(model.endpoints[0].request_changes) == changed
        assert len(server.asked) == 6 + len(changed)
        said = capsys.readouterr().err
        assert said.count("note: ") == len(changed)
        assert "since it answered: HTTP 4" in said


@pytest.mark.slow
def test_what_was_found_out_is_remembered_in_the_run(tmp_path: Path) -> None:
    with openai_server(reasoning_model) as server:
        values = stability_values(tmp_path, server.base_url, model=endpoint(server.base_url))
        (tmp_path / "run.toml").write_text(toml(values))
        cli.run_cli(["stability", str(tmp_path / "run.toml")])
        ((address, found),) = json.loads((tmp_path / "run" / "endpoint.json").read_text()).items()
        assert address == f"test at {server.base_url}"
        assert set(found) == {"max_tokens", "temperature"}
        assert "max_completion_tokens" in found["max_tokens"]
        n = len(server.asked)
        records = tmp_path / "run" / "records.jsonl"
        records.write_text("\n".join(records.read_text().splitlines()[:-2]) + "\n")
        cli.run_cli(["stability", str(tmp_path / "run.toml")])
        assert len(server.asked) == n + 2, "no field was tried again"


def sent_fields(asked: list[Any]) -> list[set[str]]:
    """The fields of each request, without those that all have."""
    return [set(one.body) - {"model", "messages", "top_p"} for one in asked]


ALL_FIELDS = {"max_tokens", "seed", "temperature"}

CONTEXT_LENGTH = (
    "'max_tokens' or 'max_completion_tokens' is too large: 64. This model's maximum context length is 2048 tokens and your "
    "request has 2000 input tokens (64 > 2048 - 2000)."
)


def asking(*texts: str) -> list[Request]:
    return [Request((Message(role="user", content=text),), number) for number, text in enumerate(texts)]


@pytest.mark.parametrize(
    "words",
    [
        "Invalid prompt: 'bad: at what temperature does it melt' was flagged as violating our usage policy.",
        "We do not answer this: 'bad: at what temperature does it melt'.",
        "Unsupported parameter: 'temperature'",  # it is refused without it too
        CONTEXT_LENGTH,
    ],
)
def test_the_refusal_of_one_prompt_changes_no_other_request(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    def habit(body: Mapping[str, Any], nth: int, headers: Mapping[str, str]) -> Action:
        return refusal(words) if "bad" in body["messages"][-1]["content"] else Reply("18")

    with openai_server(habit) as server:
        model = model_at(server.base_url, concurrency=1)
        asked = asking("a", "bad: at what temperature does it melt", "b", "c")
        found = [one.result for one in model.generate(asked, Sampling(temperature=0))]
    assert [isinstance(one, Failure) for one in found] == [False, True, False, False]
    assert [fields for one, fields in zip(server.asked, sent_fields(server.asked), strict=True) if "bad" not in one.user] == [
        ALL_FIELDS
    ] * 3
    assert model.endpoints[0].request_changes == {}
    assert "note: " not in capsys.readouterr().err


@pytest.mark.parametrize("cause", [cause.name for cause in FailureCause if cause.concerns_one_request])
@pytest.mark.parametrize("field", ["temperature", "seed", "top_p", "max_tokens", "max_completion_tokens", "response_format"])
def test_words_on_one_prompt_are_never_about_a_field(cause: str, field: str) -> None:
    body = RequestBody("m")
    sent = body.build((Message(role="user", content="q"),), 7, Sampling(), {"type": "object"})
    for words in {
        "CONTENT_FILTER": ["content_filter", "Your prompt was flagged", "It violates our content policy"],
        "CONTEXT_LENGTH": ["The prompt is too long", "This model's maximum context length is 16 tokens", CONTEXT_LENGTH],
        "EMPTY_REPLY": [],
    }[cause]:
        for text in (f"Unsupported parameter: '{field}'. {words}", f"{words}: '{field}' is not supported"):
            assert body.find_change(text, field, sent) is None
            assert body.find_change(text, None, sent) is None
    assert body.find_change(f"Unsupported parameter: '{field}'", field, sent) is not None
    assert body.find_change("It cannot be answered", "messages.0.content", sent) is None


@pytest.mark.parametrize(
    ("words", "field"),
    [
        ("temperature is not supported by this model", "temperature"),
        ("invalid temperature: only 1 is allowed for this model", "temperature"),
        ("The temperature must be 1", "temperature"),
        ("This model does not support temperature", "temperature"),
        ("Unrecognized request argument supplied: seed", "seed"),
        ("property 'seed' is unsupported", "seed"),
        ("Unsupported parameter(s): logit_bias, seed", "seed"),
        ("Extra inputs are not permitted: body.seed", "seed"),
        ("extra fields: seed=3", "seed"),
        ("top_p: 1 is out of range", "top_p"),
        ("max_tokens is deprecated: use max_completion_tokens", "max_tokens"),
        ("unknown field max_tokens", "max_tokens"),
        ("Invalid parameter: 'response_format' of type 'json_schema' is not supported with this model.", "response_format"),
        ("This response_format type is unavailable now", "response_format"),
        ("structured outputs are not supported", "response_format"),
        ("This model only supports streaming: set stream to true", "stream"),
        # Words of the prompt, or of something else
        ("Refused: 'what is the temperature of a seed'", None),
        ("Refused: 'is the temperature is high'", None),
        ("I cannot say at what degree a seed grows", None),
        ("max_tokens is too large: 200000. This model supports at most 128000 completion tokens", None),
        ("max_tokens: 9000 > 8192, which is the most that is allowed; extra tokens are not supported", None),
        ("'max_tokens' or 'max_completion_tokens' must be at least 1", None),
        ("no such thing", None),
    ],
)
def test_a_field_is_named_as_a_field(words: str, field: str | None) -> None:
    body = RequestBody("m")
    prompt = "Tell me: what is the temperature of a seed? And is the temperature is high a sentence?"
    sent = body.build((Message(role="user", content=prompt),), 7, Sampling(), {"type": "object"})
    assert body.find_change(words, None, sent) == field


def test_a_change_is_kept_once_the_request_is_refused_for_another_field_alone() -> None:
    """Here no request is answered: what comes after both changes is refused for a reason of its own."""

    def habit(body: Mapping[str, Any], nth: int, headers: Mapping[str, str]) -> Action:
        for name in ("max_tokens", "seed"):
            if name in body:
                return refusal(f"Unsupported parameter: '{name}'", param=name)
        return refusal("We do not answer this")

    with openai_server(habit) as server:
        model = model_at(server.base_url, concurrency=1)
        list(model.generate(questions(1), Sampling()))
        assert set(model.endpoints[0].request_changes) == {"max_tokens"}
        assert [fields & {"max_tokens", "seed"} for fields in sent_fields(server.asked)] == [
            {"max_tokens", "seed"},
            {"seed"},
            set(),
        ]


def test_fields_that_are_refused_in_the_same_words_are_kept_when_the_request_is_answered() -> None:
    def habit(body: Mapping[str, Any], nth: int, headers: Mapping[str, str]) -> Action:
        words = "'temperature' and 'seed' are not supported"
        return refusal(words) if {"temperature", "seed"} & set(body) else Reply("18")

    with openai_server(habit) as server:
        model = model_at(server.base_url, concurrency=1)
        list(model.generate(questions(3), Sampling()))
        assert set(model.endpoints[0].request_changes) == {"temperature", "seed"}
        assert len(server.asked) == 3 + 2


def test_a_refused_schema_is_remembered_in_the_run_and_a_prompt_that_is_too_long_does_not_take_it_away(tmp_path: Path) -> None:
    def habit(body: Mapping[str, Any], nth: int, headers: Mapping[str, str]) -> Action:
        if body["messages"][-1]["content"] == "long":
            return refusal("This model's maximum context length is 64 tokens.")
        return refusal("Provider returned error") if "response_format" in body else Reply("18")

    asked = [one._replace(schema={"type": "object"}) for one in asking("long", "a", "b")]
    with openai_server(habit) as server:
        for n_before in (0, 5):
            model = model_at(server.base_url, concurrency=1)
            with remember_request_changes(model, tmp_path):
                found = [one.result for one in model.generate(asked, Sampling())]
            assert [isinstance(one, Failure) for one in found] == [True, False, False]
            schemas = ["response_format" in one.body for one in server.asked[n_before:]]
            assert schemas == ([True, True, False, True, False] if n_before == 0 else [False] * 3)
    assert json.loads((tmp_path / "endpoint.json").read_text()) == {
        model.endpoints[0].address: {"response_format": "Provider returned error"}
    }


@pytest.mark.parametrize("status", [400, 404, 415, 422, 501])
def test_a_passing_error_takes_no_schema_away(status: int, tmp_path: Path) -> None:
    """A worker that is missing for a moment: what was answered without a schema then is no proof that schemas are refused."""

    def habit(body: Mapping[str, Any], nth: int, headers: Mapping[str, str]) -> Action:
        return error(status, "no worker is free for this route") if nth in (0, 4) else Reply("18")

    asked = [one._replace(schema={"type": "object"}) for one in asking("a", "b", "c", "d")]
    with openai_server(habit) as server:
        for expected in ([True, False, True, True, True, False], [True] * 4):
            n_before, model = len(server.asked), model_at(server.base_url, concurrency=1)
            with remember_request_changes(model, tmp_path):
                assert all(isinstance(one.result, Completion) for one in model.generate(asked, Sampling()))
            assert ["response_format" in one.body for one in server.asked[n_before:]] == expected
            assert model.endpoints[0].request_changes == {}
    assert not (tmp_path / "endpoint.json").exists()


def test_requests_in_flight_during_a_passing_error_are_one_event() -> None:
    def habit(body: Mapping[str, Any], nth: int, headers: Mapping[str, str]) -> Action:
        is_refused = "response_format" in body  # all of them before the first one is answered
        return error(404, "no worker is free for this route") if is_refused else Reply("18", after_s=1.0)

    asked = [one._replace(schema={"type": "object"}) for one in asking("a", "b", "c", "d")]
    with openai_server(habit) as server:
        model = model_at(server.base_url, concurrency=4)
        assert all(isinstance(one.result, Completion) for one in model.generate(asked, Sampling()))
        assert sorted("response_format" in one.body for one in server.asked) == [False] * 4 + [True] * 4
        assert model.endpoints[0].request_changes == {}


def test_a_setting_that_matters_is_never_left_out() -> None:
    with openai_server(lambda body, *_: refusal("`top_p` is not supported") if "top_p" in body else Reply("18")) as server:
        found = [one.result for one in model_at(server.base_url).generate(questions(2), Sampling(temperature=1, top_p=0.9))]
    assert all(isinstance(one, Failure) and "`top_p` is not supported" in one.message for one in found)


@pytest.mark.parametrize(
    ("message", "content", "answer", "reasoning"),
    [
        ({"content": [{"type": "text", "text": "18"}]}, None, "18", None),
        (
            {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, {"type": "text", "text": "18"}]},
            None,
            "18",
            "hm",
        ),
        ({"content": "18", "reasoning_content": "hm"}, None, "18", "hm"),
        ({"content": "18", "reasoning": "hm"}, None, "18", "hm"),
        ({"content": "<think>hm</think>18"}, None, "18", None),
    ],
)
def test_content_and_thinking_of_all_shapes(message: dict[str, Any], content: None, answer: str, reasoning: str | None) -> None:
    found = parse_chat_completion(reply(message))
    assert (found.answer, found.reasoning) == (answer, reasoning)
    assert found.thinking == ("hm" if "hm" in json.dumps(message) else "")


def reply(message: dict[str, Any], finish: str | None = "stop", usage: Any = USAGE) -> bytes:
    return json.dumps({"choices": [{"message": message, "finish_reason": finish}], "usage": usage}).encode()


@pytest.mark.parametrize(
    "message", [{"content": None, "reasoning_content": "hm"}, {"reasoning": "hm"}, {"content": None}, {"content": ""}]
)
@pytest.mark.parametrize("usage", [USAGE, None])
def test_no_text_at_the_token_limit_is_an_empty_answer_that_was_cut_off(message: dict[str, Any], usage: Any) -> None:
    found = parse_chat_completion(reply(message, "length", usage))
    assert (found.text, found.finish, found.is_cut_off) == ("", "length", True)


@pytest.mark.parametrize(
    ("finish", "means"),
    [
        ("max_tokens", "length"),
        ("MAX_TOKENS", "length"),
        ("model_length", "length"),
        ("max_length", "length"),
        ("MaxTokens", "length"),
        ("FinishReason.MAX_TOKENS", "length"),
        ("model_context_window_exceeded", "length"),
        ("FinishReason.STOP", "stop"),
        ("end_turn", "stop"),
        ("", "stop"),
        ("eos", "stop"),
        (None, None),
        ("STOP", "stop"),
    ],
)
def test_finish_reasons_of_other_makers(finish: str | None, means: str | None) -> None:
    assert parse_chat_completion(reply({"content": "half of it is"}, finish)).finish == means


@pytest.mark.parametrize("content", [None, "", "I cannot"])
def test_a_filtered_reply_is_no_answer(content: str | None) -> None:
    with pytest.raises(FilteredReplyError, match="content filter"):
        parse_chat_completion(reply({"content": content}, "content_filter"))
    with openai_server(lambda *_: Reply(content, finish="content_filter", usage=USAGE)) as server:
        (found,) = [one.result for one in model_at(server.base_url, retries=0).generate(questions(1), Sampling())]
    assert isinstance(found, Failure)
    assert found.type == "FilteredReplyError"
    assert found.completion_tokens == 5


@pytest.mark.parametrize(
    "finish",
    ["content-filter", "content_filtered", "SAFETY", "FinishReason.SPII", "sensitive", "guardrail_intervened", "refusal"],
)
def test_filters_of_other_makers(finish: str) -> None:
    with pytest.raises(FilteredReplyError, match=f"content filter stopped the reply; finish_reason = '{finish}'"):
        parse_chat_completion(reply({"content": "It is 18."}, finish))


@pytest.mark.parametrize("finish", ["error", "abort", "ERROR", "cancelled", "insufficient_system_resource"])
def test_a_reply_that_the_endpoint_broke_off_is_tried_again(finish: str) -> None:
    """What is there of it may look like an answer."""
    with openai_server(lambda body, nth, headers: Reply("It is 1", finish=finish) if nth == 0 else Reply("18")) as server:
        (found,) = [one.result for one in model_at(server.base_url).generate(questions(1), Sampling())]
    assert isinstance(found, Completion)
    assert (found.text, found.completion_tokens) == ("18", 6)
    with pytest.raises(MalformedReplyError, match=f"broke the reply off; finish_reason = '{finish}'$"):
        parse_chat_completion(reply({"content": "It is 1"}, finish))
    choice = {"message": {"content": "It is 1"}, "finish_reason": finish, "error": {"code": 502, "message": "no GPU"}}
    with pytest.raises(MalformedReplyError, match="no GPU"):
        parse_chat_completion(json.dumps({"choices": [choice]}).encode())


@pytest.mark.parametrize(
    "message",
    [
        {"reasoning": "hm"},
        {"content": None, "reasoning_content": "hm"},
        {"content": "", "refusal": "I cannot"},
        {"content": None, "tool_calls": [{"function": {"name": "add"}}]},
    ],
)
@pytest.mark.parametrize("finish", ["stop", None])
@pytest.mark.parametrize("usage", [USAGE, None])
def test_what_was_generated_beside_the_text_makes_an_empty_answer(
    message: dict[str, Any], finish: str | None, usage: Any
) -> None:
    found = parse_chat_completion(reply(message, finish, usage))
    assert (found.text, found.finish, found.completion_tokens) == ("", finish, 5 if usage else None)
    streamed = json.dumps({"choices": [{"delta": message, "finish_reason": finish}], "usage": usage})
    assert parse_chat_completion(f"data: {streamed}\n\ndata: [DONE]\n\n".encode()) == found


@pytest.mark.parametrize(
    "begin",
    [
        ": OPENROUTER PROCESSING\n\n: OPENROUTER PROCESSING\n\n",
        ":\n\n",
        "event: message\n",
        "id: 1\n",
        "retry: 9\n\n",
        "\r\n\r\n",
    ],
)
@pytest.mark.parametrize("end_of_line", ["\n", "\r\n", "\r"])
def test_a_stream_however_it_begins(begin: str, end_of_line: str) -> None:
    """The text holds characters at which `str.splitlines` splits."""
    first, last = (
        json.dumps({"choices": [one]}, ensure_ascii=False)
        for one in ({"delta": {"content": "1\u2028\u0085\u2029"}}, {"delta": {"content": "8"}, "finish_reason": "length"})
    )
    stream = f"{begin}data: {first}\n\n: still there\n\ndata:{last}\n\ndata: [DONE]\n\n".replace("\r\n", "\n")
    found = parse_chat_completion(stream.replace("\n", end_of_line).encode())
    assert (found.text, found.finish) == ("1\u2028\u0085\u20298", "length")


def test_a_stream_that_breaks_off_is_no_answer() -> None:
    """Cut after each event, and in the middle of each: a router ends the stream when the server behind it dies."""
    whole = events(
        [{"delta": {"content": "3 + 4 = 7, "}}, {"delta": {"content": "so 7"}}, {"delta": {}, "finish_reason": "stop"}],
        usage=USAGE,
    ).body
    parts = whole.decode().split("\n\n")[:-1]
    assert len(parts) == 5
    for n in range(1, len(parts)):
        for end in ("\n\n", "\n", ""):
            body = ("\n\n".join(parts[:n]) + end).encode()
            if n <= 2:
                with pytest.raises(MalformedReplyError, match="a stream that broke off, without a finish_reason"):
                    parse_chat_completion(body)
            else:
                assert parse_chat_completion(body).text == "3 + 4 = 7, so 7"
        with pytest.raises(MalformedReplyError):
            parse_chat_completion("\n\n".join(parts[:n]).encode()[:-3])
    without = whole.replace(b', "finish_reason": "stop"', b"")
    assert without != whole
    found = parse_chat_completion(without)
    assert (found.text, found.finish, found.is_cut_off) == ("3 + 4 = 7, so 7", None, None)


def test_a_stream_that_breaks_off_is_tried_again() -> None:
    half, whole = Raw(b'data: {"choices": [{"delta": {"content": "3 + 4 = 7, "}}]}\n\n'), Reply("7")
    with openai_server(lambda body, nth, headers: whole if nth else half) as server:
        (found,) = [one.result for one in model_at(server.base_url).generate(questions(1), Sampling())]
    assert isinstance(found, Completion)
    assert found.text == "7"


def test_further_answers_of_a_stream_are_no_part_of_the_first() -> None:
    lines = [
        {"choices": [{"index": 0, "delta": {"content": "A"}}, {"index": 1, "delta": {"content": "B"}}]},
        {"choices": [{"index": 1, "delta": {"content": "b"}, "finish_reason": "length"}]},
        {"choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": "stop"}]},
    ]
    found = parse_chat_completion("".join(f"data: {json.dumps(line)}\n\n" for line in lines).encode())
    assert (found.text, found.finish) == ("Aa", "stop")


@pytest.mark.parametrize(
    ("usage", "tokens"),
    [(None, None), ({"prompt_tokens": 20.0, "completion_tokens": 5.0}, 5), ({"completion_tokens": True}, None)],
)
def test_usage_that_is_missing_is_unknown(usage: Any, tokens: int | None) -> None:
    assert parse_chat_completion(reply({"content": "18"}, usage=usage)).completion_tokens == tokens


@pytest.mark.parametrize(
    "body",
    [
        b"data: [DONE]\n\n",
        b"data: {\n\n",
        b'data: {"error": {"message": "overloaded"}}\n\n',
        b'data: {"choices": [{"delta": {"content": "1"}}]}\n\nevent: error\ndata: {"message": "overloaded"}\n\n',
        b'data: {"choices": [{"delta": {"content": "1"}}]}\n\ndata: {"object": "error", "message": "overloaded"}\n\n',
        b": nothing more\n\n",
        b"<html>Sign in</html>",
        b"[" * 100_000,
    ],
)
def test_replies_without_a_completion(body: bytes) -> None:
    with pytest.raises(MalformedReplyError):
        parse_chat_completion(body)


@pytest.mark.parametrize(
    "error",
    [
        {"error": {"message": "overloaded", "code": 502}},
        {"error": "overloaded"},
        {"object": "error", "message": "overloaded"},
        {"error": {"message": "Provider returned error", "metadata": {"raw": "overloaded"}}, "choices": None},
    ],
)
def test_an_error_with_status_200_is_told_in_the_endpoints_words(error: Any) -> None:
    for body in (json.dumps(error), f"data: {json.dumps(error)}\n\n"):
        with pytest.raises(
            MalformedReplyError, match=r"^(an event .*: )?(Provider returned error: )?overloaded; the (reply|event) was "
        ):
            parse_chat_completion(body.encode())


@pytest.mark.parametrize(
    "message",
    [
        "System role not supported",
        "Developer instruction is not enabled for models/gemma-3-27b-it",
        "Unsupported value: 'messages[0].role' does not support 'system' with this model.",
        "role 'system' is not allowed",
        "This model does not support system messages",
        "this model doesn't support a system prompt",
        "Unknown role: system",
        'Unexpected role "system".',
        "System instructions are not supported by this model.",
        "messages.0.role: Input should be 'user' or 'assistant'",
        "Only user and model roles are supported.",
        "Please use a valid role: user, model.",
        "Conversation roles must alternate user/assistant/user/assistant/...",
        "Internal Server Error: jinja2.exceptions.TemplateError: System role not supported",
    ],
)
@pytest.mark.parametrize("status", [400, 500])
def test_a_model_without_a_system_role_stops_the_run_and_names_the_way_out(message: str, status: int) -> None:
    def habit(body: Mapping[str, Any], nth: int, headers: Mapping[str, str]) -> Action:
        return refusal(message, status) if body["messages"][0]["role"] == "system" else Reply("18")

    asked = [Request((Message(role="system", content="You are p."), *one.messages), one.seed) for one in questions(20)]
    assert is_system_refusal(message)
    with openai_server(habit) as server:
        model = model_at(server.base_url, concurrency=1)
        assert len(list(model.generate(questions(3), Sampling()))) == 3
        with pytest.raises(
            ConfigError, match=rf"takes no system message; give --personas\.template in_question.*{re.escape(message)}"
        ):
            list(model.generate(asked, Sampling()))
        assert len(server.asked) == 3 + MAX_REFUSALS


@pytest.mark.parametrize(
    "message",
    [
        "Your operating system is not supported",
        "the file system does not support locks",
        "This model does not support 'temperature' in a system of two",
        "system_fingerprint is not supported",
        "The role of the system is to help. seed is not supported",
        "developer mode is not enabled",
        "messages.0.role: Input should be 'system', 'user' or 'assistant'",
        "role must be user, assistant or system",
        "streaming is not allowed",
    ],
)
def test_other_refusals_say_nothing_of_the_system_role(message: str) -> None:
    assert not is_system_refusal(message)


def test_a_refusal_of_everything_stops_after_a_few_with_the_servers_words() -> None:
    with openai_server(lambda *_: refusal("this model answers no one")) as server:
        with pytest.raises(ConfigError, match="refuses every request: HTTP 400: this model answers no one"):
            list(model_at(server.base_url, concurrency=1).generate(questions(100), Sampling()))
        assert len(server.asked) == MAX_REFUSALS


def test_one_refused_request_among_answered_ones_is_a_failure_of_its_own() -> None:
    def habit(body: Mapping[str, Any], nth: int, headers: Mapping[str, str]) -> Action:
        return Reply("18") if nth == 0 else refusal("This model's maximum context length is 64 tokens.")

    with openai_server(habit) as server:
        found = [one.result for one in model_at(server.base_url, concurrency=1).generate(questions(20), Sampling())]
    assert sum(isinstance(one, Failure) for one in found) == 19


def test_a_field_of_the_users_own_is_never_changed() -> None:
    """A refusal of it ends in a failure, not in the same request again and again."""

    def no_top_k(body: Mapping[str, Any], nth: int, headers: Mapping[str, str]) -> Action:
        return refusal("Unsupported parameter: 'top_k'.", param="top_k") if "top_k" in body else Reply("18")

    with openai_server(no_top_k) as server:
        model = model_at(server.base_url, extra_body='{"top_k": 9}')
        (found,) = [one.result for one in model.generate(questions(1), Sampling())]
        assert isinstance(found, Failure)
        assert "top_k" in found.message
        assert (len(server.asked), model.endpoints[0].request_changes) == (1, {})


def test_the_switch_of_thinking_and_extra_fields_are_sent() -> None:
    with openai_server(lambda *_: Reply("18")) as server:
        plain = model_at(server.base_url)
        switched = model_at(server.base_url, thinking="off", extra_body='{"reasoning_effort": "low", "top_k": 5}')
        list(switched.generate(questions(1), Sampling()))
        body = server.asked[-1].body
        assert body["chat_template_kwargs"] == {"enable_thinking": False, "thinking": False}
        assert (body["reasoning_effort"], body["top_k"]) == ("low", 5)
        assert plain.fingerprint != switched.fingerprint, "what changes the answers is identity"


@pytest.mark.parametrize(
    ("field", "words"),
    [
        ("temperature", "give sampling.temperature, or judge.temperature"),
        ("top_p", "give sampling.top_p"),
        ("max_tokens", "give sampling.max_new_tokens, or judge.max_new_tokens"),
        ("max_completion_tokens", "give sampling.max_new_tokens, or judge.max_new_tokens"),
        ("seed", "each request has a seed of its own"),
    ],
)
@pytest.mark.parametrize("section", ["model", "judge", "interviewer"])
def test_extra_fields_that_would_replace_what_the_run_records_are_refused(field: str, words: str, section: str) -> None:
    served = {
        "backend": "openai",
        "base_url": "http://127.0.0.1:1/v1",
        "name": "m",
        "extra_body": f'{{"top_k": 5, "{field}": 1}}',
    }
    with pytest.raises(
        ConfigError, match=rf"{section}\.extra_body: holds {field}, which would replace what the run records; {words}"
    ):
        build_config(FidelityConfig, {section: served}, source="test")


@pytest.mark.parametrize("text", ["{", "[]", '{"messages": []}', '{"stream": true}', '{"chat_template_kwargs": 1}'])
def test_extra_fields_that_cannot_be_sent_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"must be a JSON object|permix sets itself"):
        ModelConfig(backend="openai", base_url="http://127.0.0.1:1/v1", name="m", extra_body=text)


@pytest.mark.parametrize(
    ("body", "field", "text"),
    [
        ({"message": "no", "param": "seed"}, "seed", "no"),
        ({"detail": [{"loc": ["body", "seed"], "msg": "Extra inputs"}]}, "seed", "seed: Extra inputs"),
        ({"error": "words"}, None, "words"),
        ({"error": {"message": "deep"}}, None, "deep"),
        ({"message": "P", "metadata": {"raw": "no seed"}}, None, "P: no seed"),
        ({"message": "P", "metadata": {"raw": '{"error": {"message": "no", "param": "seed"}}'}}, "seed", "P: no"),
        ({"message": "P", "metadata": {"raw": {"detail": "no"}}}, None, "P: no"),
        ({"message": "P", "metadata": {"raw": '{"x": 1}'}}, None, 'P: {"x": 1}'),
        ({"message": "P", "metadata": {"raw": "[" * 100_000}}, None, "P: " + ("[" * 100_000)[3:]),
        ({"message": "P", "metadata": {"raw": 7, "provider_name": "x"}}, None, "P"),
        ({"message": "P", "metadata": []}, None, "P"),
        ("plain", None, "plain"),
        (None, None, "null"),
    ],
)
def test_error_bodies_of_several_makers(body: Any, field: str | None, text: str) -> None:
    assert refused_field(body) == field
    assert refusal_text(body) == text


def test_a_body_in_flight_gets_the_changes_that_others_found() -> None:
    body = RequestBody("m")
    sent = body.build((Message(role="user", content="q"),), 2**40 + 7, Sampling(max_new_tokens=9))
    assert (sent["seed"], sent["max_tokens"]) == (7, 9)
    words = "use max_completion_tokens"
    assert body.find_change(words, None, sent) == "max_tokens"
    assert body.rebuild(sent) == sent, "a refusal alone changes nothing"
    body.keep_change("max_tokens", words)
    changed = body.rebuild(sent)
    assert (changed["max_completion_tokens"], "max_tokens" in changed) == (9, False)
    assert body.find_change(words, None, changed) is None
