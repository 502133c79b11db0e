"""The HTTP client: which proxy it takes, what it sends, and how its errors are recorded."""

import logging
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from permix.errors import ConfigError
from permix.inference.http_client import proxy_for
from permix.storage.failures import FailureCause, find_cause
from permix.types import Completion
from tests.inference.test_early_stop import ask, count
from tests.inference.test_openai import KEY, KEY_ENV, failure, model_at, only, questions
from tests.servers import Action, Drop, Raw, Reply, Wire, error, openai_server

PROXY_VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_ENV, KEY)
    for name in PROXY_VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


# Proxies


@pytest.mark.parametrize(
    ("url", "variables", "expected"),
    [
        ("http://h/v1", {}, None),
        ("http://h/v1", {"HTTP_PROXY": "http://p:3128"}, "http://p:3128"),
        ("http://h/v1", {"http_proxy": "p:3128"}, "http://p:3128"),
        ("https://h/v1", {"HTTP_PROXY": "http://p:3128"}, None),
        ("https://h/v1", {"HTTPS_PROXY": "http://p:3128"}, "http://p:3128"),
        ("https://h/v1", {"ALL_PROXY": "http://p:3128"}, "http://p:3128"),
        ("https://h/v1", {"ALL_PROXY": "http://p:1", "HTTPS_PROXY": "http://p:2"}, "http://p:2"),
        ("http://h/v1", {"HTTP_PROXY": "http://u:secret@p:3128"}, "http://u:secret@p:3128"),
    ],
)
def test_the_proxy_is_the_environments(
    url: str, variables: Mapping[str, str], expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert proxy_for(urlsplit(url)) == expected


@pytest.mark.parametrize(
    ("url", "no_proxy", "is_excepted"),
    [
        ("http://gpu.lab.org/v1", "gpu.lab.org", True),
        ("http://gpu.lab.org/v1", "LAB.org", True),
        ("http://gpu.lab.org/v1", ".lab.org", True),
        ("http://gpu.lab.org/v1", "*.lab.org", True),
        ("http://gpulab.org/v1", "lab.org", False),
        ("http://gpu.lab.org/v1", "a, b ,*", True),
        ("http://gpu.lab.org/v1", "", False),
        ("http://gpu.lab.org/v1", " , ", False),
        ("http://gpu.lab.org:8000/v1", "gpu.lab.org:8000", True),
        ("http://gpu.lab.org:8001/v1", "gpu.lab.org:8000", False),
        ("http://gpu.lab.org/v1", "gpu.lab.org:80", True),
        ("http://gpu.lab.org/v1", "http://gpu.lab.org", True),
        ("http://10.1.2.3:8000/v1", "10.1.2.3", True),
        ("http://10.1.2.3:8000/v1", "10.0.0.0/8", True),
        ("http://10.1.2.3:8000/v1", "192.168.0.0/16,10.1.2.4", False),
        ("http://[::1]:8000/v1", "::1", True),
        ("http://[::1]:8000/v1", "[::1]", True),
        ("http://[fd00::7]:8000/v1", "fd00::/8", True),
        ("http://[::1]:8000/v1", "127.0.0.1", False),
        ("http://localhost:8000/v1", "localhost", True),
    ],
)
def test_no_proxy(url: str, no_proxy: str, is_excepted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://p:3128")
    monkeypatch.setenv("NO_PROXY", no_proxy)
    assert (proxy_for(urlsplit(url)) is None) == is_excepted


def test_a_socks_proxy_is_refused_before_anything_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5://u:hunter2@p:1080")
    with pytest.raises(ConfigError) as caught:
        model_at("http://gpu.lab.org/v1").check_endpoint()
    assert str(caught.value) == (
        "environment variable ALL_PROXY: a proxy of the kind socks5:// is not supported; give one that begins with http:// or "
        "https://, or add gpu.lab.org to NO_PROXY"
    )


@contextmanager
def http_proxy() -> Iterator[tuple[str, list[tuple[str, str, str | None]]]]:
    """A proxy that answers everything itself: its address, and (method, what was asked for, Proxy-Authorization)."""
    asked: list[tuple[str, str, str | None]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append((self.command, self.path, self.headers["Proxy-Authorization"]))
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            body = Reply("by proxy").body if self.command == "POST" else b""
            self.send_response(403 if self.command == "CONNECT" else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_CONNECT = do_POST

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_requests_go_through_the_proxy_with_its_login(monkeypatch: pytest.MonkeyPatch) -> None:
    with http_proxy() as (address, asked):
        monkeypatch.setenv("HTTP_PROXY", f"http://user:word@{address}")
        result = only(model_at("http://gpu.invalid/v1", concurrency=1))
        assert isinstance(result, Completion)
        assert result.text == "by proxy"
    login = "Basic dXNlcjp3b3Jk"  # base64 of user:word
    assert asked == [
        ("GET", "http://gpu.invalid/v1/models", login),
        ("POST", "http://gpu.invalid/v1/chat/completions", login),
    ]


def test_a_proxy_that_refuses_a_tunnel_is_said_without_its_login(monkeypatch: pytest.MonkeyPatch) -> None:
    with http_proxy() as (address, asked):
        monkeypatch.setenv("HTTPS_PROXY", f"http://user:hunter2@{address}")
        with pytest.raises(ConfigError, match=r"no endpoint there: .*\(ClientHttpProxyError: Forbidden\)") as caught:
            model_at("https://gpu.invalid/v1", retries=0).check_endpoint()
    assert [one[:2] for one in asked] == [("CONNECT", "gpu.invalid:443")]
    assert "hunter2" not in str(caught.value)


def test_a_certificate_file_that_is_none_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none.pem"))
    with pytest.raises(ConfigError, match=r"environment variable SSL_CERT_FILE: .*none\.pem: no certificates there"):
        model_at("https://gpu.invalid/v1").check_endpoint()


# What is sent


@pytest.mark.parametrize("cookie", ["session=1", f"{KEY}(=1", f"a={KEY}; expires={KEY}"])
def test_no_login_of_netrc_and_no_cookie_is_sent_or_logged(
    cookie: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login user password hunter2\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    reply = Raw(Reply("fine").body, headers={"Set-Cookie": cookie})
    with openai_server(lambda *_: reply) as server:
        assert count(ask(model_at(server.base_url, concurrency=1), questions(3))[0]) == (3, 0)
        assert {one.headers["Authorization"] for one in server.asked} == {f"Bearer {KEY}"}
        assert not any("Cookie" in one.headers for one in server.asked)
        assert {one.headers["User-Agent"].partition("/")[0] for one in server.asked} == {"permix"}
        assert {one.headers["Content-Type"] for one in server.asked} == {"application/json"}
    assert KEY not in f"{capfd.readouterr()} {caplog.text}"


def test_a_server_that_closes_each_connection_without_saying_so() -> None:
    body = Reply("fine").body
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    with openai_server(lambda *_: Wire(head + body)) as server:
        assert count(ask(model_at(server.base_url, concurrency=3), questions(30))[0]) == (30, 0)


def test_connections_are_used_again() -> None:
    ports = set()
    with openai_server(lambda *_: "fine") as server:
        handler: Any = server._http.RequestHandlerClass
        setup = handler.setup

        def counted(self: Any) -> None:
            ports.add(self.client_address)
            setup(self)

        handler.setup = counted
        assert count(ask(model_at(server.base_url, concurrency=4), questions(60))[0]) == (60, 0)
    assert 1 <= len(ports) <= 4


# How errors are recorded


@pytest.mark.parametrize(
    ("trouble", "kind", "cause"),
    [
        (error(400), "BadRequestError", None),
        (error(422), "UnprocessableEntityError", None),
        (error(429), "RateLimitError", FailureCause.RATE_LIMIT),
        (error(500), "InternalServerError", FailureCause.SERVER_ERROR),
        (error(599), "InternalServerError", FailureCause.SERVER_ERROR),
        (error(418), "APIStatusError", None),
        (Drop(), "APIConnectionError", FailureCause.NO_CONNECTION),
    ],
    ids=lambda value: str(value)[:20],
)
def test_the_types_of_failures_are_those_of_earlier_versions(trouble: Action, kind: str, cause: FailureCause | None) -> None:
    """What records hold is read again by reports and by `find_cause`."""
    with openai_server(lambda *_: trouble) as server:
        found = failure(model_at(server.base_url, retries=0))
    assert (found.type, find_cause(found)) == (kind, cause)
