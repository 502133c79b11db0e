"""The HTTP backend against a scripted server: every request answered once whatever happens, no secret in any message."""

import asyncio
import email.utils
import logging
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import pytest

from permix.config import ModelConfig
from permix.errors import ConfigError
from permix.inference.base import CompletionResult, Model
from permix.inference.endpoint_secrets import MAX_ERROR_CHARS
from permix.inference.openai import OpenAIModel
from permix.inference.openai_endpoint import MAX_REFUSALS
from permix.types import Completion, Failure, Message, Request, Sampling, digest
from tests.sample_runs import former_fingerprint
from tests.servers import (
    CUT_OFF,
    EMPTY_CHOICES,
    HALF_JSON,
    USAGE,
    WRONG_TYPES,
    Action,
    Drip,
    Drop,
    Hang,
    OpenAIServer,
    Raw,
    Reply,
    Script,
    error,
    listing,
    openai_server,
)

KEY = "sk-secret/0123456789"
KEY_ENV = "PERMIX_TEST_KEY"


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_ENV, KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def model_at(base_url: str | tuple[str, ...], **fields: Any) -> OpenAIModel:
    settings = {"name": "test", "api_key_env": KEY_ENV, "concurrency": 4, "retries": 2, "timeout_s": 30, **fields}
    return OpenAIModel(ModelConfig(backend="openai", base_url=base_url, **settings), backoff_s=0.01)


def questions(n: int) -> list[Request]:
    return [Request((Message(role="user", content=f"q{i}"),), seed=i) for i in range(n)]


def echo(body: Mapping[str, Any], nth: int, headers: Mapping[str, str]) -> str:
    return f"to {body['messages'][-1]['content']}"


def first(action: Action, times: int = 1) -> Script:
    """A server that does `action` so many times and is well afterwards."""
    return lambda body, nth, headers: action if nth < times else "fine"


def only(model: Model, n: int = 1) -> Completion | Failure:
    """The answer to the first of n questions."""
    answers = sorted(model.generate(questions(n), Sampling()), key=lambda answer: answer.request_index)
    assert [answer.request_index for answer in answers] == list(range(n))
    return answers[0].result


def failure(model: Model) -> Failure:
    result = only(model)
    assert isinstance(result, Failure), result
    return result


def waits_s(server: OpenAIServer) -> list[float]:
    return [late.at_s - early.at_s for early, late in pairwise(server.asked)]


# What is sent, and what becomes of a good reply


def test_every_request_is_answered_once_with_its_own_answer_in_any_order() -> None:
    def slow_first(body: dict[str, Any], nth: int, headers: Mapping[str, str]) -> Action:
        return Reply(echo(body, nth, headers), after_s=0.3 if body["seed"] == 0 else 0.0)

    with openai_server(slow_first) as server:
        answers = list(model_at(server.base_url).generate(questions(40), Sampling()))
    assert answers[0].request_index != 0, "answers come as they finish"
    assert sorted(answer.request_index for answer in answers) == list(range(40))
    for index, result in answers:
        assert isinstance(result, Completion)
        assert result.text == f"to q{index}"


def test_request_carries_sampling_and_its_own_seed_cut_to_31_bits() -> None:
    messages = (Message(role="system", content="You are a cook."), Message(role="user", content="1+1"))
    requests = [Request(messages, seed) for seed in (5, 2**62 + 5, 2**31 - 1)]
    with openai_server(echo) as server:
        list(model_at(server.base_url, concurrency=1).generate(requests, Sampling(temperature=0.7, top_p=0.9, max_new_tokens=11)))
    assert server.asked[0].body == {
        "model": "test", "messages": list(messages), "temperature": 0.7, "top_p": 0.9, "max_tokens": 11, "seed": 5,
    }  # fmt: skip
    assert [asked.body["seed"] for asked in server.asked] == [5, 5, 2147483647]
    assert server.asked[0].headers["Authorization"] == f"Bearer {KEY}"


def test_finish_and_token_counts_are_the_servers_own() -> None:
    replies = [
        Reply("a", finish="length"),
        Reply("b", finish="eos"),
        Reply("c d", usage=None),
        Reply("e", usage={"prompt_tokens": "x"}),
    ]
    with openai_server(lambda body, nth, headers: replies[nth]) as server:
        got = [answer.result for answer in model_at(server.base_url, concurrency=1).generate(questions(4), Sampling())]
    assert got == [
        Completion(text="a", prompt_tokens=7, completion_tokens=3, finish="length"),
        Completion(text="b", prompt_tokens=7, completion_tokens=3, finish="stop"),
        Completion(text="c d", prompt_tokens=None, completion_tokens=None, finish="stop"),
        Completion(text="e", prompt_tokens=None, completion_tokens=None, finish="stop"),
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("concurrency", "after_s"), [(6, 0.5), (40, 1.0)])
def test_concurrency_is_reached_and_never_exceeded(concurrency: int, after_s: float) -> None:
    with openai_server(lambda body, nth, headers: Reply("x", after_s=after_s)) as server:
        list(model_at(server.base_url, concurrency=concurrency).generate(questions(2 * concurrency), Sampling()))
    assert server.max_in_flight == concurrency
    assert server.listed == 1


def test_a_caller_that_stops_taking_stops_the_asking() -> None:
    with openai_server(echo) as server:
        answers = model_at(server.base_url, concurrency=2).generate(questions(1000), Sampling())
        next(answers)
        time.sleep(0.3)
        asked = len(server.asked)
        # One was taken; 4 × 2 may wait for the caller, and each of 2 workers holds one more.
        assert 2 <= asked <= 1 + 8 + 2
        answers.close()  # type: ignore[attr-defined]


def test_nothing_asked_needs_no_endpoint() -> None:
    assert list(model_at("http://127.0.0.1:1/v1").generate([], Sampling())) == []


def test_import_is_light() -> None:
    code = "import sys, permix.inference.openai; sys.exit('aiohttp' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0


# What heals


@pytest.mark.parametrize(
    "trouble",
    [
        *(error(status) for status in (408, 429, 500, 502, 503, 504)),
        HALF_JSON, EMPTY_CHOICES, WRONG_TYPES, Raw(b""), Raw(b"[]"), Raw(b"\xff\xfe"), Raw(b'{"error": {"message": "busy"}}'),
        Reply(None, usage=None), Reply("", usage=None), Reply(" \n", usage={"completion_tokens": 0}),
        Drop(), CUT_OFF,
    ],
    ids=lambda action: str(action)[:60],
)  # fmt: skip
def test_tried_again_until_it_heals_and_then_given_up(trouble: Action) -> None:
    with openai_server(lambda body, nth, headers: "fine" if nth == 2 else trouble) as server:
        model = model_at(server.base_url, concurrency=1, retries=2)
        assert only(model) == Completion(text="fine", prompt_tokens=7, completion_tokens=3, finish="stop")
        assert len(server.asked) == 3
        assert failure(model).message
        assert len(server.asked) == 3 + 3


@pytest.mark.parametrize("trouble", [Hang(5), Drip("slow", every_s=0.02)], ids=["hang", "drip"])
def test_a_reply_that_takes_too_long_is_tried_again(trouble: Action) -> None:
    with openai_server(lambda body, nth, headers: "fine" if nth == 1 else trouble) as server:
        model = model_at(server.base_url, timeout_s=1, retries=1)
        assert isinstance(only(model), Completion)
        assert failure(model) == Failure(type="TimeoutError", message="no complete reply within model.timeout_s = 1")
        assert len(server.asked) == 2 + 2


def test_a_blank_text_that_the_model_generated_is_its_answer() -> None:
    with openai_server(lambda body, nth, headers: Reply("", finish="length", usage=USAGE)) as server:
        assert only(model_at(server.base_url)) == Completion(text="", prompt_tokens=7, completion_tokens=3, finish="length")


def test_retry_after_is_waited_for() -> None:
    with openai_server(first(error(429, retry_after="0.4"))) as server:
        only(model_at(server.base_url))
        assert 0.4 <= waits_s(server)[0] < 2.0


def test_retry_after_may_be_a_date_is_bounded_and_nonsense_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("permix.inference.openai_endpoint.MAX_RETRY_WAIT_S", 0.5)
    in_an_hour = email.utils.formatdate(time.time() + 3600, usegmt=True)
    an_hour_ago = email.utils.formatdate(time.time() - 3600, usegmt=True)
    asked = ["86400", in_an_hour, an_hour_ago, "soon", "-5", "nan", ""]
    script: Script = lambda body, nth, headers: "fine" if nth % 2 else error(429, retry_after=asked[nth // 2])  # noqa: E731
    with openai_server(script) as server:
        only(model_at(server.base_url, concurrency=1), n=len(asked))
        assert [0.5 <= wait < 2.5 for wait in waits_s(server)[::2]] == [True, True, False, False, False, False, False]


def test_waits_double() -> None:
    with openai_server(first(error(500), times=4)) as server:
        model = OpenAIModel(ModelConfig(backend="openai", base_url=server.base_url, retries=4), backoff_s=0.04)
        only(model)
        # 0.04, 0.08, 0.16 and 0.32 s, each with up to 0.04 s on top; the machine may be slow, so no upper bound on each
        assert [wait >= 0.04 * 2**nth for nth, wait in enumerate(waits_s(server))] == [True] * 4
        assert sum(waits_s(server)) < 0.6 + 4 * 0.04 + 2


# What does not heal


@pytest.mark.parametrize(
    "trouble", [error(400), error(422), error(404), Raw(b"<html>", 413)], ids=lambda action: str(action.status)
)
def test_bad_request_fails_at_once_and_alone(trouble: Raw) -> None:
    def reply(body: Mapping[str, Any], nth: int, headers: Mapping[str, str]) -> str | Action:
        return trouble if body["messages"][-1]["content"] == "q0" else "fine"

    with openai_server(reply) as server:
        result = only(model_at(server.base_url), n=10)
        assert isinstance(result, Failure)
        assert str(trouble.status) in result.message
        assert Counter(asked.user for asked in server.asked).most_common(1)[0][1] == 1


def test_a_spent_quota_is_not_waited_for() -> None:
    spent = Raw(b'{"error": {"message": "no money", "code": "insufficient_quota"}}', 429)
    with openai_server(lambda body, nth, headers: spent) as server:
        assert failure(model_at(server.base_url)).message == "HTTP 429: no money"
        assert len(server.asked) == 1


def test_a_request_that_cannot_be_sent_is_a_failure() -> None:
    requests = [Request((Message(role="user", content="\ud800"),), 0), *questions(1)]
    with openai_server(echo) as server:
        results = dict(model_at(server.base_url).generate(requests, Sampling()))
    assert isinstance(results[0], Failure)
    assert results[0].type == "UnicodeEncodeError"
    assert isinstance(results[1], Completion)


def test_failure_messages_are_short_and_printable() -> None:
    with openai_server(lambda body, nth, headers: Raw(b"\x1b[2J\x00\n" + b"x" * 10**6, 400)) as server:
        message = failure(model_at(server.base_url)).message
    assert message.startswith("HTTP 400: \\x1b[2J\\x00\\nxxx")
    assert len(message) == MAX_ERROR_CHARS
    assert message.isprintable()


# An endpoint that can answer nothing


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("where", ["models", "chat"])
def test_refused_key_is_a_config_error_that_names_the_variable(status: int, where: str) -> None:
    refuse = Raw(b'{"error": {"message": "bad key: {authorization}"}}', status)
    with openai_server(lambda body, nth, headers: refuse, models=refuse if where == "models" else None) as server:
        with pytest.raises(ConfigError, match=KEY_ENV) as caught:
            list(model_at(server.base_url, concurrency=1).generate(questions(100), Sampling()))
        assert len(server.asked) <= MAX_REFUSALS
    assert KEY not in str(caught.value)
    assert "bad key: Bearer [redacted]" in str(caught.value)


def test_missing_key_is_said_to_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY_ENV)
    with (
        openai_server(echo, models=error(401)) as server,
        pytest.raises(ConfigError, match="is missing: the variable is not set"),
    ):
        model_at(server.base_url).check_endpoint()
    with openai_server(echo) as server:
        only(model_at(server.base_url))
        assert server.asked[0].headers["Authorization"] == "Bearer none"


def test_a_key_that_may_not_list_models_may_still_ask() -> None:
    with openai_server(echo, models=error(403)) as server:
        assert isinstance(only(model_at(server.base_url)), Completion)


def test_a_key_revoked_on_the_way_for_a_moment_fails_cells_and_not_the_run() -> None:
    with openai_server(lambda body, nth, headers: error(401) if 1 <= nth < 6 else "fine") as server:
        answers = list(model_at(server.base_url, concurrency=1).generate(questions(20), Sampling()))
    assert [isinstance(answer.result, Failure) for answer in answers] == [False] + [True] * 5 + [False] * 14


@pytest.mark.parametrize("key", ["two words", "quo'te", "back\\slash", "ключ", "a\nb"])
def test_a_key_no_header_can_carry_is_refused_unseen(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_ENV, key)
    with pytest.raises(ConfigError, match=KEY_ENV) as caught:
        model_at("http://127.0.0.1:1/v1").check_endpoint()
    assert key not in str(caught.value)


def test_unknown_model_is_a_config_error_that_lists_the_known_ones() -> None:
    script: Script = lambda body, nth, headers: error(404, "model does not exist")  # noqa: E731
    with openai_server(script, models=listing("llama", "qwen")) as server:
        with pytest.raises(ConfigError, match=r"model.name = 'test'.*served: llama, qwen.*model does not exist"):
            list(model_at(server.base_url).generate(questions(100), Sampling()))
        assert len(server.asked) <= MAX_REFUSALS + 4


@pytest.mark.parametrize(
    ("refused", "served"),
    [
        (error(404, "The model `bundled` does not exist."), "llama, qwen"),
        (error(400, "bundled is not a valid model ID"), "unknown"),
    ],
)
def test_an_address_without_a_name_asks_for_the_name(refused: Action, served: str) -> None:
    """The configuration's own default is no word of the user's."""
    models = listing("llama", "qwen") if served != "unknown" else error(404)
    with (
        openai_server(lambda *_: refused, models=models) as server,
        pytest.raises(ConfigError, match=rf": give --model\.name, the name of a model there; served: {served}: HTTP 4"),
    ):
        list(model_at(server.base_url, name="bundled").generate(questions(100), Sampling()))


def test_nothing_listens_there() -> None:
    with openai_server(echo) as server:
        address = server.base_url
    with pytest.raises(ConfigError, match=f"model.base_url = {address}: no endpoint there") as caught:
        list(model_at(address).generate(questions(10_000), Sampling()))
    assert "ClientConnectorError" in str(caught.value)


def test_unknown_host_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match=r"no-such-host.invalid/v1: no endpoint there"):
        model_at("http://no-such-host.invalid/v1").check_endpoint()


def test_an_endpoint_that_is_still_loading_is_waited_for() -> None:
    with openai_server(echo, models=error(503, "loading")) as server:
        with pytest.raises(ConfigError, match="not ready to serve: HTTP 503: loading"):
            model_at(server.base_url, retries=3).check_endpoint()
        assert server.listed == 4


@pytest.mark.parametrize("models", [error(404), error(405), Raw(b"<html>"), Raw(b'{"data": [{"name": "x"}]}')], ids=str)
def test_a_server_without_a_list_of_models_is_fine(models: Raw) -> None:
    with openai_server(echo, models=models) as server:
        model = model_at(server.base_url)
        assert isinstance(only(model), Completion)
        assert model.fingerprint
        assert server.listed == 1


@pytest.mark.parametrize("base_url", ["127.0.0.1:8000/v1", "ftp://h/v1", "http://", "http://h:99999/v1", "a b"])
def test_an_address_that_is_none_is_refused(base_url: str) -> None:
    with pytest.raises(ConfigError, match=r"model\.base_url = .*http://127.0.0.1:8000/v1"):
        model_at(base_url)


# Secrets


def test_no_secret_in_any_message_log_or_repr(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    echoing = [
        Raw(b'{"error": {"message": "{authorization}"}}', 400),
        Raw(b"x" * (MAX_ERROR_CHARS - 25) + b"{authorization}", 400),  # the message is cut in the middle of the key
        Raw(b'{"choices": "{authorization}"}'),
        Raw(b'{"choices": [{"message": {"content": null}}], "you": "{authorization}"'),
    ]
    with openai_server(lambda body, nth, headers: echoing[nth]) as server:
        model = model_at(server.base_url, retries=0)
        for _ in echoing:
            assert "sk-s" not in f"{failure(model)} {model!r}"
    assert "sk-s" not in caplog.text


# Fingerprint


def fingerprint(models: Action, name: str = "test") -> str:
    with openai_server(echo, models=models) as server:
        return model_at(server.base_url, name=name).fingerprint


def test_fingerprint_ignores_what_changes_at_every_start_and_follows_the_weights() -> None:
    base = fingerprint(listing("test", created=1, root="/w/a", permission=[{"id": "p-1"}]))
    assert fingerprint(listing("test", created=2, root="/w/a", permission=[{"id": "p-2"}])) == base
    assert fingerprint(listing("other", "test", root="/w/a")) == base
    assert fingerprint(listing("test", root="/w/b")) != base
    assert fingerprint(listing("test", root="/w/a", meta={"size": 10})) != base
    assert fingerprint(listing("test", "b", root="/w/a"), name="b") != base


def test_an_address_is_no_part_of_the_fingerprint_and_was_one() -> None:
    """The fingerprint that permix recorded before: SHA-256 of "openai", HOST:PORT/PATH, the name and the metadata."""
    meta = '{"n_embd": null, "n_params": null, "n_vocab": null, "parent": null, "root": "/w", "size": null}'
    found = []
    for _ in range(2):
        with openai_server(echo, models=listing("test", root="/w")) as server:
            model = model_at(server.base_url)
            found.append(model.fingerprint)
            assert former_fingerprint(model, "http://HOST:80/v1/") == digest("openai", "host:80/v1", "test", meta)
            assert former_fingerprint(model, server.base_url) not in found
            # A text that is not an http(s) address is left out.
            assert list(model.recorded_forms("file:///v1")) == list(model.recorded_forms(server.base_url))
    assert found == [digest("openai", "test", meta)] * 2


def test_recorded_forms_are_those_of_this_statement_and_of_none_with_and_without_the_address() -> None:
    def metadata(root: str) -> str:
        return f'{{"n_embd": null, "n_params": null, "n_vocab": null, "parent": null, "root": {root}, "size": null}}'

    with openai_server(echo, models=listing("test", root="/w")) as server:
        own = server.base_url.removeprefix("http://")
        forms = list(model_at(server.base_url).recorded_forms("http://OLD:1/v1/"))
    said, silent = [metadata('"/w"')], [metadata("null")]
    unlisted: list[str] = []
    expected = []
    for parts, statement in ((said, {"root": "/w"}), (silent, {}), (unlisted, {})):
        now = digest("openai", "test", *parts)
        expected += [(digest("openai", *address, "test", *parts), now, statement) for address in ([], ["old:1/v1"], [own])]
    assert forms == expected
    with openai_server(echo) as server:
        assert {form.server_says == {} for form in model_at(server.base_url).recorded_forms("no address")} == {True}


# The thread and the caller


def live_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "permix-background"]


def test_closing_early_cancels_what_is_in_flight_and_ends_the_thread() -> None:
    with openai_server(lambda body, nth, headers: "fine" if nth == 0 else Hang(30)) as server:
        answers = model_at(server.base_url, timeout_s=30).generate(questions(100), Sampling())
        next(answers)
        started = time.monotonic()
        answers.close()  # type: ignore[attr-defined]
        assert time.monotonic() - started < 25  # less than the requests in flight would take
        assert len(server.asked) <= 1 + 4
    assert live_threads() == []


@pytest.mark.slow
def test_an_interrupt_while_waiting_passes_and_ends_the_thread() -> None:
    """Ctrl-C lands in the caller, in the middle of waiting for an answer."""
    code = """
import os, signal, sys, threading
from permix.config import ModelConfig
from permix.inference.openai import OpenAIModel
from permix.types import Request, Sampling
model = OpenAIModel(ModelConfig(name="test", backend="openai", base_url=sys.argv[1], timeout_s=60))
model.check_endpoint()
threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
try:
    list(model.generate([Request(({"role": "user", "content": "q"},), 0)] * 50, Sampling()))
except KeyboardInterrupt:
    sys.exit(8 if "permix-background" in [thread.name for thread in threading.enumerate()] else 7)
"""
    with openai_server(lambda body, nth, headers: Hang(60)) as server:
        assert subprocess.run([sys.executable, "-c", code, server.base_url], timeout=120).returncode == 7


def test_a_generator_left_open_does_not_hang_the_exit() -> None:
    code = """
import sys
from permix.config import ModelConfig
from permix.inference.openai import OpenAIModel
from permix.types import Request, Sampling
model = OpenAIModel(ModelConfig(name="test", backend="openai", base_url=sys.argv[1]))
answers = model.generate([Request(({"role": "user", "content": "q"},), 0)] * 50, Sampling())
next(answers)
sys.modules["kept"] = answers
"""
    with openai_server(lambda body, nth, headers: "fine" if nth == 0 else Hang(60)) as server:
        done = subprocess.run([sys.executable, "-c", code, server.base_url], timeout=120, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_works_inside_a_running_event_loop() -> None:
    async def notebook(address: str) -> list[CompletionResult]:
        return list(model_at(address).generate(questions(5), Sampling()))

    with openai_server(echo) as server:
        assert len(asyncio.run(notebook(server.base_url))) == 5
    assert live_threads() == []
