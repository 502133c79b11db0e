"""An endpoint that means harm: every reply ends in an answer or in a failure with words, in bounded time and memory."""

import email.utils
import gzip
import json
import re
import time
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from permix import cli
from permix.errors import ConfigError
from permix.inference import openai_endpoint
from permix.inference.endpoint_secrets import MAX_ERROR_CHARS
from permix.inference.http_client import MAX_REPLY_BYTES, HttpStatusError, retry_after_s
from permix.inference.request_body import MAX_USAGE_TOKENS, refusal_text, usage_count
from permix.types import Completion, Failure, Sampling
from tests.cell_files import read_cells
from tests.inference.test_openai import KEY, KEY_ENV, failure, model_at, only, questions
from tests.sample_runs import stability_values, toml
from tests.servers import USAGE, Action, Raw, Reply, Wire, error, openai_server

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
BLOCK = b"x" * 65536
SSE = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
EVENT = b'data: {"choices": [{"delta": {"content": "1"}}]}\n\n'


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_ENV, KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def bomb(wbits: int) -> tuple[bytes, bytes]:
    """The first 16 MB of zeros, compressed, and a block that adds as many each time it follows."""
    packer = zlib.compressobj(9, zlib.DEFLATED, wbits)
    zeros = bytes(16_000_000)
    return tuple(packer.compress(zeros) + packer.flush(zlib.Z_FULL_FLUSH) for _ in range(2))  # type: ignore[return-value]


def packed(encoding: bytes, wbits: int) -> Wire:
    """10 GB of zeros, which take 10 MB on the wire."""
    first, more = bomb(wbits)
    return Wire(HEAD + b"Content-Encoding: " + encoding + b"\r\n\r\n" + first, more, times=625)


def whole(body: bytes, **headers: str) -> Raw:
    return Raw(body, headers={name.replace("_", "-"): value for name, value in headers.items()})


def message(content: Any, **more: Any) -> bytes:
    return json.dumps({"choices": [{"message": {"content": content}, "finish_reason": "stop"}], "usage": USAGE, **more}).encode()


# Replies without an end, and those that lie about themselves


def resident_bytes(field: str) -> int:
    """The memory of this process: VmRSS now, or VmHWM at its peak."""
    return 1024 * int(re.findall(rf"{field}:\s+(\d+)", Path("/proc/self/status").read_text())[0])


TOO_LONG = f"ReplyTooLargeError: the reply is longer than {MAX_REPLY_BYTES / 1e6:g} MB"


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        pytest.param(packed(b"gzip", zlib.MAX_WBITS | 16), TOO_LONG, id="gzip bomb of 10 GB"),
        pytest.param(packed(b"deflate", zlib.MAX_WBITS), TOO_LONG, id="deflate bomb of 10 GB"),
        pytest.param(Wire(HEAD + b"\r\n", BLOCK, times=None), TOO_LONG, id="a body that never ends"),
        pytest.param(
            Wire(HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"10000\r\n" + BLOCK + b"\r\n", times=None),
            TOO_LONG,
            id="chunks that never end",
        ),
        pytest.param(Wire(HEAD + b"Content-Length: 1000000000\r\n\r\n", BLOCK, times=16000), TOO_LONG, id="1 GB"),
        pytest.param(Wire(SSE, EVENT * 1000, times=None), TOO_LONG, id="events that never end"),
        pytest.param(Wire(SSE + b"data: ", BLOCK, times=None), TOO_LONG, id="an event without a newline"),
    ],
)
def test_a_reply_without_an_end_is_a_failure_in_bounded_memory(reply: Wire, words: str) -> None:
    with openai_server(lambda *_: reply) as server:
        model = model_at(server.base_url, retries=3, timeout_s=60, concurrency=1)
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
        before = resident_bytes("VmRSS")
        result = failure(model)
        assert f"{result.type}: {result.message}" == words
        assert len(server.asked) == 1, "the same again would be as long"
    assert resident_bytes("VmHWM") - before < 6 * MAX_REPLY_BYTES


@pytest.mark.slow
@pytest.mark.parametrize(
    ("reply", "words"),
    [
        pytest.param(Wire(b"HTTP/1.1 200 OK\r\n", b"X: " + b"x" * 1000 + b"\r\n", None), "Too many headers", id="headers"),
        pytest.param(Wire(b"HTTP/1.1 200 OK\r\nX: ", BLOCK, None), "Got more than 65536 bytes when reading", id="one header"),
        pytest.param(Wire(b"", BLOCK, None), "Bad status line", id="a status line"),
        pytest.param(Wire(b"", b"HTTP/1.1 100 Continue\r\n\r\n", None), "no complete reply within", id="100s"),
        pytest.param(Wire(HEAD + b"Content-Length: -5\r\n\r\n{}"), "Invalid character in Content-Length", id="negative length"),
        pytest.param(
            Wire(HEAD + b"Content-Length: 5\r\nContent-Length: 7\r\n\r\n{}"), "Duplicate Content-Length", id="two lengths"
        ),
        pytest.param(Wire(HEAD + b"Content-Length: 5000\r\n\r\n{}"), "received 2 of 5000 bytes", id="length too large"),
        pytest.param(Wire(HEAD + b"Content-Length: 20\r\n\r\n" + message("18")), "Bad status line", id="length too small"),
        pytest.param(
            Wire(HEAD + b"Content-Length: 500\r\n\r\n{", reset=True), "Connection reset by peer", id="reset in the body"
        ),
        pytest.param(Wire(b"HTTP/1.1 200", reset=True), "Connection reset by peer", id="reset in the head"),
        pytest.param(Wire(b"SSH-2.0-OpenSSH_9.6\r\n"), "Bad status line", id="not HTTP"),
        pytest.param(Wire(b"HTTP/1.1 999 \r\nContent-Length: 2\r\n\r\n{}"), "HTTP 999: {}", id="status 999"),
        pytest.param(Wire(b"HTTP/1.1 304 \r\n\r\n"), "HTTP 304", id="status 304"),
        pytest.param(whole(b"\x8b\x00", Content_Encoding="br"), "Content-Encoding 'br'; permix asks for gzip", id="br"),
        pytest.param(whole(b"x", Content_Encoding="gzip, gzip"), "Content-Encoding 'gzip, gzip'", id="gzip twice"),
        pytest.param(whole(b"plain", Content_Encoding="gzip"), "is not gzip, as its Content-Encoding says", id="no gzip"),
        pytest.param(whole(gzip.compress(message("18"))[:60], Content_Encoding="gzip"), "Invalid JSON", id="half a gzip"),
    ],
)
def test_a_reply_that_is_no_reply_is_a_failure_with_words(reply: Action, words: str) -> None:
    with openai_server(lambda *_: reply) as server:
        result = failure(model_at(server.base_url, retries=1, timeout_s=1))
        assert words in result.message
        assert result.message.isprintable()
        assert len(result.message) <= MAX_ERROR_CHARS


def test_a_body_that_drips_for_ever_meets_the_time_bound() -> None:
    """Each byte restarts the timeouts of HTTP libraries; the bound is on the whole reply."""

    def drip() -> Iterator[bytes]:
        while True:
            time.sleep(0.05)
            yield b" "

    class Dripping(Wire):
        def parts(self) -> Iterator[bytes]:
            yield HEAD + b"\r\n"
            yield from drip()

    with openai_server(lambda *_: Dripping(b"")) as server:
        result = failure(model_at(server.base_url, retries=1, timeout_s=0.5))
    assert result.message == "no complete reply within model.timeout_s = 0.5"


@pytest.mark.parametrize("encoding", ["gzip", "x-gzip", "GZIP", "identity", ""])
def test_a_compressed_reply_is_read(encoding: str) -> None:
    body = gzip.compress(message("18")) if "gzip" in encoding.lower() else message("18")
    with openai_server(lambda *_: whole(body, Content_Encoding=encoding)) as server:
        assert only(model_at(server.base_url)) == Completion(text="18", prompt_tokens=7, completion_tokens=3, finish="stop")
        assert server.asked[0].headers["Accept-Encoding"] == "gzip"


def test_an_answer_of_10_mb_is_an_answer() -> None:
    with openai_server(lambda *_: Reply("é" * 5_000_000)) as server:
        result = only(model_at(server.base_url))
    assert isinstance(result, Completion)
    assert len(result.text) == 5_000_000


def test_an_endless_list_of_models_is_none() -> None:
    endless = Wire(HEAD + b"\r\n" + b'{"data": [', b'{"id": "x"},' * 1000, times=None)
    with openai_server(lambda *_: "18", models=endless) as server:
        assert isinstance(only(model_at(server.base_url)), Completion)


@pytest.mark.parametrize("root", [10**6 * "9", "NaN", "[" * 50 + "]" * 50, '"\\ud800"', "1e400"])
def test_a_list_of_models_with_odd_values_has_a_fingerprint(root: str) -> None:
    models = Raw(b'{"data": [{"id": "test", "root": ' + root.encode() + b', "meta": {"size": ' + root.encode() + b"}}]}")
    with openai_server(lambda *_: "18", models=models) as server:
        assert model_at(server.base_url).fingerprint


# JSON that is none, or too much

DEEP = 100_000


@pytest.mark.parametrize(
    "body",
    [
        b"[" * DEEP + b"]" * DEEP,
        b'{"choices": ' + b"[" * DEEP + b"]" * DEEP + b"}",
        b'{"choices": [{"message": {"content": ' + b'[{"text": ' * DEEP + b"1" + b"}]" * DEEP + b"}}]}",
        b'{"choices": [{"message": {"content": ' + b"[" * 150 + b"]" * 150 + b"}}]}",
        b'{"choices": [{"message": {"content": NaN}}]}',
        b'{"choices": [{"message": {"content": ' + b"9" * 10**6 + b"}}]}",
        b'{"choices": [{"message": {"content": 1e400}}]}',
        b'data: {"choices": ' + b"[" * DEEP + b"]" * DEEP + b"}\n\n",
        b'data: {"choices": [7]}\n\n',
        b'data: {"choices": {"a": 1}}\n\n',
        b'data: {"choices": [{"delta": "x"}]}\n\n',
        b'data: {"choices": [{"delta": {"content": 7}, "finish_reason": 7}]}\n\n',
        b'{"choices": [{"message": {"content": "18"}}], "usage": ' + b"9" * 10**6 + b"}",
        b"\x00" * 100,
    ],
    ids=range(14),
)
def test_hostile_json_is_a_malformed_reply(body: bytes) -> None:
    with openai_server(lambda *_: Raw(body)) as server:
        result = failure(model_at(server.base_url, retries=1))
        assert result.type == "MalformedReplyError"
        assert result.message
        assert len(server.asked) == 2


@pytest.mark.parametrize("depth", [10, 900, 990, DEEP])
@pytest.mark.parametrize("status", [400, 500])
def test_an_error_of_any_depth_has_words(depth: int, status: int) -> None:
    nests = (b'{"error": ', b'"busy"', b"}"), (b'{"x": ', b"[1]", b"}"), (b'{"detail": [{"msg": ', b"1", b"}]}")
    for left, inner, right in nests:
        with openai_server(lambda *_, body=left * depth + inner + right * depth: Raw(body, status)) as server:
            assert failure(model_at(server.base_url, retries=0)).message.startswith(f"HTTP {status}: ")


def test_an_error_that_is_too_deep_says_so() -> None:
    body: Any = "x"
    for _ in range(100_000):
        body = {"error": body}
    assert refusal_text(body) == "(an error that is nested too deeply)"


@pytest.mark.parametrize("count", ["1e400", "NaN", "-3", "1e300", "null", '"7"', "9" * 4000])
def test_a_count_of_tokens_that_is_none_is_unknown(count: str) -> None:
    body = b'{"choices": [{"message": {"content": "18"}}], "usage": {"completion_tokens": ' + count.encode() + b"}}"
    with openai_server(lambda *_: Raw(body)) as server:
        result = only(model_at(server.base_url, retries=0))
    assert isinstance(result, Completion)
    assert result.completion_tokens is None


def test_counts_have_a_bound() -> None:
    assert usage_count({"a": MAX_USAGE_TOKENS}, "a") == MAX_USAGE_TOKENS
    assert usage_count({"a": MAX_USAGE_TOKENS + 1}, "a") is None
    assert usage_count({"a": int("9" * 4000)}, "a") is None


def test_of_repeated_keys_the_last_counts() -> None:
    body = b'{"choices": [], "choices": [{"message": {"content": "1", "content": "18"}}]}'
    with openai_server(lambda *_: Raw(body)) as server:
        result = only(model_at(server.base_url, retries=0))
    assert isinstance(result, Completion)
    assert result.text == "18"


# Redirects


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("where", ["models", "chat"])
def test_a_redirect_is_not_followed_and_says_what_to_set(status: int, where: str) -> None:
    with openai_server(lambda *_: "stolen") as other:
        names = {"models": "models", "chat": "chat/completions"}
        moved = Raw(b"", status, {"Location": f"{other.base_url}/{names[where]}"})
        with (
            openai_server(lambda *_: moved, models=moved if where == "models" else None) as server,
            pytest.raises(ConfigError) as caught,
        ):
            list(model_at(server.base_url, concurrency=1).generate(questions(3), Sampling()))
        assert (other.asked, other.listed) == ([], 0)
    assert str(caught.value) == (
        f"model.base_url = {server.base_url}: HTTP {status}: redirects to {other.base_url}/{names[where]}, and permix follows no "
        f"redirect, since the key would go there too; if you trust it, set model.base_url to {other.base_url}"
    )


@pytest.mark.parametrize(
    ("location", "shown"),
    [
        ("https://127.0.0.1/v1/chat/completions", "set model.base_url to https://127.0.0.1/v1"),
        ("/api/v1/chat/completions", "/api/v1"),
        ("//evil.invalid/v1/chat/completions", "set model.base_url to http://evil.invalid/v1"),
        ("http://user:secret@evil.invalid/", "redirects to http://(hidden)@evil.invalid/"),
        (f"http://evil.invalid/?k={KEY}", "redirects to http://evil.invalid/?k=[redacted]"),
        ("javascript:alert(1)", "redirects to javascript:alert(1)"),
        ("http://[::1", "redirects to http://[::1"),
    ],
)
def test_where_a_redirect_points(location: str, shown: str) -> None:
    with openai_server(lambda *_: Raw(b"", 307, {"Location": location})) as server, pytest.raises(ConfigError) as caught:
        list(model_at(server.base_url, concurrency=1).generate(questions(3), Sampling()))
    assert shown in str(caught.value)


def test_a_list_of_models_behind_a_slash_is_no_list() -> None:
    """Some servers redirect /v1/models to /v1/models/; their chat has no such habit."""
    with openai_server(lambda *_: "18", models=Raw(b"", 307, {"Location": "/v1/models/"})) as server:
        assert isinstance(only(model_at(server.base_url)), Completion)


def test_a_redirect_of_one_request_is_a_failure_of_its_own() -> None:
    moved = Raw(b"", 302, {"Location": "http://evil.invalid/"})
    with openai_server(lambda body, nth, headers: "fine" if nth == 0 else moved) as server:
        found = [one.result for one in model_at(server.base_url, concurrency=1).generate(questions(3), Sampling())]
    assert [isinstance(one, Failure) for one in found] == [False, True, True]


# Waiting


@pytest.mark.parametrize(
    ("header", "least", "most"),
    [
        ("3", 3, 3),
        (" 2.5 ", 2.5, 2.5),
        ("-5", 0, 0),
        ("1000000000", 1e9, 1e9),
        ("9" * 400, 1e300, float("inf")),
        ("1e400", 0, 0),
        ("nan", 0, 0),
        ("inf", 0, 0),
        ("", 0, 0),
        ("soon", 0, 0),
        ("٣", 0, 0),
        ("Sun, 06 Nov 1994 08:49:37 GMT", 0, 0),
        ("Sun, 06 Nov 99999 08:49:37 GMT", 0, 0),
        ("Sun, 99 Nov 1994 08:49:37 GMT", 0, 0),
        ("Sun, 06 Nov 1994 08:49:37 +999999", 0, 0),
        ("Sun, 06 Nov 0001 08:49:37", 0, 0),
        (", , ,", 0, 0),
        (": : :", 0, 0),
        ("0 " * 5000, 0, 0),
    ],
)
def test_retry_after_of_every_kind(header: str, least: float, most: float) -> None:
    assert least <= retry_after_s(HttpStatusError(429, {"retry-after": header}, b"", "http://h/v1")) <= most


def test_retry_after_as_a_date_in_an_hour() -> None:
    # The date must not be a parameter: the processes that run the tests in parallel would collect different names.
    header = email.utils.formatdate(time.time() + 3600, usegmt=True)
    assert 3500 <= retry_after_s(HttpStatusError(429, {"retry-after": header}, b"", "http://h/v1")) <= 3600


def test_a_long_wait_is_bounded_and_says_why(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(openai_endpoint, "MAX_RETRY_WAIT_S", 0.4)
    monkeypatch.setattr(openai_endpoint, "NOTED_RETRY_WAIT_S", 0.3)
    busy = error(429, "too many requests\x1b[2J", retry_after="9" * 30)
    with openai_server(lambda body, nth, headers: busy if nth < 6 else "18") as server:
        only(model_at(server.base_url, concurrency=3), n=3)
    notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]
    assert notes[0] == (
        f"note: {server.base_url}: overloaded, so it gets at most 1 at a time from now on: HTTP 429: too many requests\\x1b[2J"
    )
    waits = [note for note in notes if "tries again" in note]
    assert waits[0] == (f"note: {server.base_url}: tries again after 0 s, since it answered: HTTP 429: too many requests\\x1b[2J")
    assert len(waits) <= 3, "one at a time, however many requests wait"


# In a run


TEXTS = ["a\x00b", "\ud800 lone", "\udcff", "\u202e18", "18" * 100_000, "\x1b]0;x\x07", '</script><img src=x onerror="1">', "NaN"]


@pytest.mark.slow
def test_hostile_answers_survive_records_and_report(tmp_path: Path) -> None:
    def habit(body: Mapping[str, Any], nth: int, headers: Mapping[str, str]) -> Action:
        return Raw(message(TEXTS[nth % len(TEXTS)]))

    with openai_server(habit) as server:
        (tmp_path / "run.toml").write_text(toml(stability_values(tmp_path, server.base_url)))
        assert cli.run_cli(["stability", str(tmp_path / "run.toml")]) == 0
    run = tmp_path / "run"
    texts = {cell.completion.text for cell in read_cells(run / "records.jsonl").values() if cell.completion}
    assert {text.encode("utf-8", "replace").decode() for text in TEXTS if text} == texts
    for path in run.rglob("*"):
        if path.suffix in (".json", ".jsonl", ".md", ".html", ".csv"):
            path.read_text(encoding="utf-8")
