"""The routes of "Try it": only the page that was opened with the printed address may ask, and only what is listed is asked."""

import contextlib
import json
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from permix.dashboard import server as servers
from permix.dashboard.server import IDLE_S, MAX_BODY_BYTES, TOKEN_HEADER, ViewerServer
from permix.dashboard.try_it import ASK_S
from tests.dashboard.fake_runs import serving, stability_run, whole
from tests.dashboard.test_view_server import ask
from tests.dashboard.try_folder import encode, endpoint_run, post, question
from tests.servers import Hang, OpenAIServer, openai_server

ROUTES = ("/try/choices.json", "/try/prompts.json", "/try/answers.json", "/try/ask", "/try/stop", "/try/save")


@pytest.fixture
def remote() -> Iterator[OpenAIServer]:
    with openai_server(lambda body, nth, headers: "12") as server:
        yield server


@pytest.fixture
def server(tmp_path: Path, remote: OpenAIServer) -> Iterator[ViewerServer]:
    """A server with "Try it" on, over one run at an endpoint."""
    endpoint_run(tmp_path / "run", remote.base_url)
    with serving(tmp_path, with_try_it=True) as found:
        yield found


def token(server: ViewerServer) -> str:
    assert server.try_it is not None
    return server.try_it.token


def get(server: ViewerServer, target: str) -> Any:
    reply = ask(server, target, **{TOKEN_HEADER: token(server)})
    assert reply.status == 200
    return json.loads(reply.body)


def model_id(server: ViewerServer) -> str:
    (model,) = get(server, "/try/choices.json")["models"]
    return str(model["id"])


def test_a_plain_viewer_has_none_of_it(tmp_path: Path) -> None:
    stability_run(tmp_path / "run", whole())
    with serving(tmp_path) as plain:
        assert json.loads(ask(plain, "/state.json").body)["try_it"] is False
        assert plain.start_url == plain.url
        for route in ROUTES:
            assert ask(plain, route).status == 404
            assert post(plain, route, b"{}").status == 405


def test_the_token_is_in_the_printed_address_and_in_no_answer_to_anybody(server: ViewerServer) -> None:
    assert server.start_url == f"{server.url}#token={token(server)}"
    assert len(token(server)) >= 40
    for target in ("/", "/try.js", "/view.js", "/state.json", "/try/choices.json"):
        assert token(server).encode() not in ask(server, target).body


@pytest.mark.parametrize("given", ["", "x" * 43, "é"])
def test_without_the_token_nothing_is_said_and_nothing_is_asked(server: ViewerServer, remote: OpenAIServer, given: str) -> None:
    body = encode(question(model_id(server)))
    for route in ROUTES:
        for reply in (post(server, route, body, {TOKEN_HEADER: given}), ask(server, route, **{TOKEN_HEADER: given})):
            assert (reply.status, reply.body) == (403, b"open the address that permix view printed when it started\n")
    assert get(server, "/try/answers.json")["number"] == 0
    assert (remote.asked, remote.listed) == ([], 0)


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": ""},
        {"Origin": "http://127.0.0.1:1"},
        {"Origin": "https://127.0.0.1:{port}"},
        {"Origin": "http://127.0.0.1:{port}.evil.example"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Host": "evil.example:{port}"},
    ],
    ids=str,
)
def test_a_foreign_page_cannot_ask_even_with_the_token(
    server: ViewerServer, remote: OpenAIServer, headers: dict[str, str]
) -> None:
    given = {name: value.format(port=server.server_port) for name, value in headers.items()}
    for route in ("/try/ask", "/try/save", "/try/stop"):
        assert post(server, route, encode(question(model_id(server))), given).status == 403
    assert remote.asked == []


def test_a_page_of_another_origin_is_not_allowed_to_send_the_header(server: ViewerServer) -> None:
    reply = ask(server, "/try/ask", "OPTIONS", Origin="http://evil.example", Access_Control_Request_Headers=TOKEN_HEADER)
    assert reply.status == 405
    assert not any(name.lower().startswith("access-control") for name in reply.headers)


def test_each_route_has_one_method(server: ViewerServer) -> None:
    for route in ("/try/ask", "/try/save", "/try/stop"):
        reply = ask(server, route, **{TOKEN_HEADER: token(server)})
        assert (reply.status, reply.headers["Allow"]) == (405, "POST")
    for route in ("/try/choices.json", "/try/prompts.json", "/try/answers.json"):
        reply = post(server, route, b"{}")
        assert (reply.status, reply.headers["Allow"]) == (405, "GET")
    assert post(server, "/try/other", b"{}").status == 404
    assert post(server, "/state.json", b"{}").status == 405
    for method in ("PUT", "DELETE", "PATCH"):
        assert ask(server, "/try/ask", method, **{TOKEN_HEADER: token(server)}).status == 405


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Content-Type": "text/plain"}, 415),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415),
        ({"Content-Type": ""}, 415),
        ({"Content-Length": str(MAX_BODY_BYTES + 1)}, 413),
        ({"Content-Length": "-1"}, 411),
        ({"Content-Length": "1e3"}, 411),
        ({"Content-Length": "9" * 40}, 411),
        ({"Transfer-Encoding": "chunked"}, 411),
    ],
    ids=str,
)
def test_a_body_that_is_too_large_or_of_no_length_is_not_read(server: ViewerServer, headers: dict[str, str], status: int) -> None:
    reply = post(server, "/try/ask", b"{}", headers)
    assert reply.status == status
    assert reply.headers["Connection"] == "close"


def test_a_body_that_does_not_come_ends_the_request_after_a_second(server: ViewerServer, monkeypatch: pytest.MonkeyPatch) -> None:
    head = (
        f"POST /try/ask HTTP/1.1\r\nHost: 127.0.0.1:{server.server_port}\r\nOrigin: {server.url[:-1]}\r\n"
        f"{TOKEN_HEADER}: {token(server)}\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n"
    )
    for rest, closes, status in (("{", False, b" 408 "), ("{", True, b" 400 ")):
        with socket.create_connection(("127.0.0.1", server.server_port), timeout=IDLE_S / 2) as connection:
            connection.sendall((head + rest).encode())
            if closes:
                connection.shutdown(socket.SHUT_WR)
            answer = b""
            with contextlib.suppress(ConnectionError):
                answer = b"".join(iter(lambda: connection.recv(65536), b""))
        assert status in answer.partition(b"\r\n")[0]


BAD_REQUESTS: dict[str, tuple[Callable[[str], Any], str]] = {
    "no model": (lambda id: question(), "models: List should have at least 1 item"),
    "many models": (lambda id: question(*[id] * 7), "models: List should have at most 6 items"),
    "unknown model": (lambda id: question("0123456789abcdef"), "models: '0123456789abcdef' is none of the models"),
    "a path": (lambda id: question(id, "/etc/passwd"), "models: '/etc/passwd' is none of the models that are listed"),
    "an address": (lambda id: question("http://evil/v1"), "models: 'http://evil/v1' is none of the models"),
    "an object": (lambda id: question(id) | {"models": [{"name": "bundled"}]}, "models.0: Input should be a valid string"),
    "another field": (lambda id: question(id, base_url="http://evil/v1"), "base_url: Extra inputs are not permitted"),
    "no question": (lambda id: question(id, question="  "), "question: is empty"),
    "unknown run": (lambda id: question(id, question_kind="run", run="../x"), "run: is none of the runs"),
    "no persona": (lambda id: question(id, persona_kind="text", persona=" "), "persona: is empty"),
    "long": (lambda id: question(id, question="x" * 20_001), "question: String should have at most 20000 characters"),
    "tokens": (lambda id: question(id, max_new_tokens=10**9), "max_new_tokens: Input should be less than or equal to 4096"),
    "temperature": (lambda id: question(id, temperature=-1), "temperature: Input should be greater than or equal to 0"),
    "no JSON": (lambda id: "[", "the request: "),
    "deep": (lambda id: "[" * 50_000, "the request: "),
}


@pytest.mark.parametrize("kind", BAD_REQUESTS)
def test_a_bad_request_is_one_line_and_asks_nothing(server: ViewerServer, remote: OpenAIServer, kind: str) -> None:
    make, said = BAD_REQUESTS[kind]
    value = make(model_id(server))
    reply = post(server, "/try/ask", value.encode() if isinstance(value, str) else encode(value))
    assert reply.status == 400
    assert said in reply.body.decode()
    assert b"\n" not in reply.body
    assert get(server, "/try/answers.json")["number"] == 0
    assert remote.asked == []


@pytest.mark.slow
def test_one_question_is_answered_at_a_time_and_can_be_stopped(server: ViewerServer, remote: OpenAIServer) -> None:
    remote.script = lambda body, nth, headers: Hang(60)
    body = encode(question(model_id(server)))
    assert json.loads(post(server, "/try/ask", body).body) == {"number": 1}
    deadline = time.monotonic() + ASK_S
    while not remote.asked:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    reply = post(server, "/try/ask", body)
    assert (reply.status, reply.body) == (409, b"a question is being answered; wait for it, or stop it")
    assert json.loads(ask(server, "/state.json").body)["runs"][0]["label"] == "served"  # the viewer answers meanwhile
    assert get(server, "/try/answers.json")["busy"]
    assert post(server, "/try/stop", b"{}").status == 200
    while (found := get(server, "/try/answers.json"))["busy"]:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert (found["error"], found["answers"]) == ("stopped", [])


def test_a_connection_is_used_again_after_a_question(server: ViewerServer) -> None:
    reply = post(server, "/try/save", encode({"number": 1}))
    assert (reply.status, reply.body) == (400, b"number: is not that of the last question with its answers")
    assert "Connection" not in reply.headers
    assert post(server, "/try/save", b"{}").body == b"number: is missing"


def test_the_routes_are_those_that_are_tested() -> None:
    assert set(servers._TRY_ROUTES) == set(ROUTES)
