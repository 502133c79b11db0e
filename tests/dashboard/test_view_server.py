import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

from permix import cli
from permix.dashboard.folder import REPORT_PAGE_POLICY
from permix.dashboard.server import ASSETS, IDLE_S, ViewerServer
from tests.dashboard.fake_runs import append, put, serving, stability_run, whole
from tests.storage.test_odd_files import ODD, put_odd

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
FILE_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class Reply(NamedTuple):
    status: int
    headers: Mapping[str, str]
    body: bytes


def ask(server: ViewerServer, target: str, method: str = "GET", **headers: str) -> Reply:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        connection.request(method, target, headers=named)
        answer = connection.getresponse()
        return Reply(answer.status, dict(answer.getheaders()), answer.read())
    finally:
        connection.close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ViewerServer]:
    stability_run(tmp_path / "run", whole()[:4])
    with serving(tmp_path) as server:
        yield server


def test_it_listens_on_this_machine_alone(server: ViewerServer) -> None:
    assert server.server_address[0] == "127.0.0.1"
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/", server.url)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "LOCALHOST", "[::1]"])
def test_the_names_of_this_machine_are_answered(server: ViewerServer, host: str) -> None:
    assert ask(server, "/state.json", Host=f"{host}:{server.server_port}").status == 200


@pytest.mark.parametrize(
    "host", ["evil.example:{}", "127.0.0.1.evil.example:{}", "127.0.0.1", "localhost:1", "127.0.0.1:{}@evil", ""]
)
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
def test_another_name_is_refused_and_learns_nothing(server: ViewerServer, host: str, method: str) -> None:
    reply = ask(server, "/state.json", method, Host=host.format(server.server_port))
    assert reply.status == 403
    assert b"run" not in reply.body


def raw(server: ViewerServer, text: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=60) as connection:
        connection.sendall(text)
        connection.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: connection.recv(65536), b""))


def test_no_name_two_names_or_a_whole_address_are_refused(server: ViewerServer) -> None:
    host = b"Host: 127.0.0.1:%d\r\n" % server.server_port
    assert b" 403 " in raw(server, b"GET /state.json HTTP/1.1\r\n\r\n")
    assert b" 403 " in raw(server, b"GET /state.json HTTP/1.1\r\n" + host + b"Host: evil\r\n\r\n")
    assert b" 400 " in raw(server, b"GET http://evil/state.json HTTP/1.1\r\n" + host + b"\r\n")
    assert b" 200 " in raw(server, b"GET /state.json HTTP/1.1\r\n" + host + b"Connection: close\r\n\r\n")
    assert b"<script>" not in raw(server, b"<script>alert(1)</script>\r\n\r\n")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
def test_nothing_but_reading_is_allowed(server: ViewerServer, method: str) -> None:
    reply = ask(server, "/state.json", method)
    assert (reply.status, reply.headers["Allow"]) == (405, "GET, HEAD")
    assert ask(server, "/state.json", "BREW").status == 501


@pytest.mark.parametrize("target", [*ASSETS, "/state.json", "/nothing", "/run.json?run=none"])
def test_every_answer_carries_the_policy(server: ViewerServer, target: str) -> None:
    headers = ask(server, target).headers
    assert headers["Content-Security-Policy"] == (POLICY if target == "/" else FILE_POLICY)
    assert headers["Cross-Origin-Opener-Policy"] == "same-origin"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert headers["Cache-Control"] == "no-store"
    assert "Python" not in headers["Server"]


def test_head_is_get_without_a_body(server: ViewerServer) -> None:
    one, other = ask(server, "/view.js"), ask(server, "/view.js", "HEAD")
    assert other.body == b""
    assert other.headers["Content-Length"] == str(len(one.body))


def test_what_has_not_changed_is_not_sent_again(server: ViewerServer, tmp_path: Path) -> None:
    first = ask(server, "/state.json")
    tag = first.headers["ETag"]
    again = ask(server, "/state.json", If_None_Match=tag)
    assert (again.status, again.body) == (304, b"")
    append(tmp_path / "run", whole()[4])
    server.folder.poll()
    news = ask(server, "/state.json", If_None_Match=tag)
    assert news.status == 200
    assert [json.loads(reply.body)["runs"][0]["done"] for reply in (first, news)] == [4, 5]


def test_one_run_is_told_in_full(server: ViewerServer) -> None:
    (run,) = json.loads(ask(server, "/state.json").body)["runs"]
    found = json.loads(ask(server, f"/run.json?run={run['id']}").body)
    assert found["command"] == "permix stability mine.toml"
    assert [one["persona"] for one in found["newest"]] == ["clerk", "no persona", "no persona", "no persona"]
    assert ask(server, "/run.json?run=none").status == 404
    assert ask(server, "/run.json").status == 404


def test_a_figure_that_is_not_finite_is_answered(server: ViewerServer, tmp_path: Path) -> None:
    put(
        tmp_path / "run",
        "config.json",
        {"stage": "train", "method": "rlvr", "plan": {"steps": 1}, "train": {"updates_per_rollout": 1}},
    )
    (tmp_path / "run" / "log.jsonl").write_text('{"step": 1, "reward": NaN}\n')
    server.folder.poll()
    (run,) = json.loads(ask(server, "/state.json").body)["runs"]
    assert json.loads(ask(server, f"/run.json?run={run['id']}").body)["curve"][0]["reward"] is None


def test_a_file_that_cannot_be_read_is_answered(server: ViewerServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: Path, count: int) -> list[bytes]:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("permix.dashboard.live_metrics.last_lines", refused)
    (run,) = json.loads(ask(server, "/state.json").body)["runs"]
    assert json.loads(ask(server, f"/run.json?run={run['id']}").body)["newest"] == []


# The report

REPORT = {
    "index.html": b"<p>report", "report.md": b"# Report", "table.json": b"{}", "cells/a-1.js": b"1", "tables/main.csv": b"a",
    "one.png": b"P", "two.svg": b"<svg/>",
}  # fmt: skip


def write_report(folder: Path) -> None:
    for name, content in REPORT.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


@pytest.mark.parametrize("place", ["report", "."])
def test_a_built_report_is_served_by_its_files(server: ViewerServer, tmp_path: Path, place: str) -> None:
    assert json.loads(ask(server, "/state.json").body)["report"] is False
    assert ask(server, "/report/").status == 404
    write_report(tmp_path / place)
    assert json.loads(ask(server, "/state.json").body)["report"] is True
    assert ask(server, "/report/").body == b"<p>report"
    for name, content in REPORT.items():
        assert ask(server, f"/report/{name}").body == content
    types = [ask(server, f"/report/{name}").headers["Content-Type"] for name in ("report.md", "table.json")]
    assert types == ["text/markdown; charset=utf-8", "application/json; charset=utf-8"]


@pytest.mark.parametrize("name", ["", *REPORT])
def test_no_file_of_a_report_has_the_rights_of_the_viewer(server: ViewerServer, tmp_path: Path, name: str) -> None:
    write_report(tmp_path / "report")
    headers = ask(server, f"/report/{name}").headers
    assert headers["X-Content-Type-Options"] == "nosniff"
    policies = headers["Content-Security-Policy"], headers["Cross-Origin-Opener-Policy"]
    if name in ("", "index.html"):
        assert policies == (REPORT_PAGE_POLICY, "unsafe-none")  # another one than the viewer's page has
        assert "connect-src 'none'; worker-src 'none'" in REPORT_PAGE_POLICY
    else:
        assert policies == (FILE_POLICY, "same-origin")


def test_the_report_without_its_slash_leads_to_it(server: ViewerServer) -> None:
    reply = ask(server, "/report")
    assert (reply.status, reply.headers["Location"]) == (301, "/report/")


@pytest.mark.parametrize(
    "target",
    [
        "/report/../run/config.json", "/report/%2e%2e/run/config.json", "/report/..%2frun%2fconfig.json", "/report//etc/passwd",
        "/report/cells/../../run/config.json", "/report/tables/table.json", "/report/other.md", "/report/cells/link.js",
        "/report/out/secret.js", "/report/link.png", "/report/cells/", "/report/index.html%00.png", "/report/cells/a.js%0a",
        "/../view.js", "/view/../../server.py", "/run/config.json", "/%2e%2e/etc/passwd",
    ],
)  # fmt: skip
def test_nothing_else_can_be_had(server: ViewerServer, tmp_path: Path, target: str) -> None:
    write_report(tmp_path / "report")
    (tmp_path / "secret.js").write_text("SECRET")
    (tmp_path / "report" / "tables" / "table.json").write_text("SECRET")
    (tmp_path / "report" / "other.md").write_text("SECRET")
    (tmp_path / "report" / "cells" / "link.js").symlink_to(tmp_path / "secret.js")
    (tmp_path / "report" / "link.png").symlink_to(tmp_path / "secret.js")
    (tmp_path / "report" / "out").symlink_to(tmp_path)
    reply = ask(server, target)
    assert reply.status == 404
    assert b"SECRET" not in reply.body
    assert b"stage" not in reply.body


def test_folders_of_a_report_that_lead_elsewhere_are_no_part_of_it(server: ViewerServer, tmp_path: Path) -> None:
    write_report(tmp_path / "elsewhere")
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "index.html").write_text("x")
    (tmp_path / "report" / "cells").symlink_to(tmp_path / "elsewhere" / "cells")
    assert ask(server, "/report/cells/a-1.js").status == 404


def test_a_report_that_is_a_link_is_not_served(
    server: ViewerServer, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    write_report(elsewhere)
    (tmp_path / "report").symlink_to(elsewhere)
    assert json.loads(ask(server, "/state.json").body)["report"] is False
    for name in ("", *REPORT):
        assert ask(server, f"/report/{name}").status == 404


@pytest.mark.parametrize("name", ["index.html", "table.json", "cells/a-1.js"])
def test_a_file_of_a_report_that_is_none_is_not_served(server: ViewerServer, tmp_path: Path, name: str) -> None:
    write_report(tmp_path / "report")
    for kind in ODD:
        put_odd(tmp_path / "report" / name, kind)
        assert ask(server, f"/report/{name}").status == 404
        path = tmp_path / "report" / name
        path.rmdir() if kind == "folder" else path.unlink()


def test_a_large_file_of_a_report_is_sent_in_pieces(
    server: ViewerServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_report(tmp_path / "report")
    with (tmp_path / "report" / "one.png").open("wb") as file:
        file.truncate(100_000_000)
    tracemalloc.start()
    try:
        assert ask(server, "/report/one.png", "HEAD").headers["Content-Length"] == "100000000"
        with socket.create_connection(("127.0.0.1", server.server_port), timeout=60) as connection:
            host = b"Host: 127.0.0.1:%d\r\n" % server.server_port
            connection.sendall(b"GET /report/one.png HTTP/1.1\r\n" + host + b"Connection: close\r\n\r\n")
            received = sum(len(part) for part in iter(lambda: connection.recv(1_000_000), b""))
        assert received > 100_000_000
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()


# Malformed requests

HOST = "Host: 127.0.0.1:{port}\r\n"


@pytest.mark.parametrize(
    ("request_text", "status"),
    [
        ("GET /state.json\r\n", 400),  # HTTP/0.9
        ("GET /state.json\r\n\r\n", 400),
        ("POST /state.json\r\n", 400),
        ("GET /state.json HTTP/1.0\r\n", 408),
        ("GET /state.json HTTP/1.0\r\n\r\n", 403),
        ("GET /state.json HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", 403),
        ("GET /state.json HTTP/1.1\r\n\r\n", 403),
        ("GET / HTTP/2.0\r\n" + HOST + "\r\n", 400),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
        ("GET / HTTP/1.99999999999\r\n", 400),
        ("GET\r\n", 400),
        ("\r\n", 400),
        ("get / HTTP/1.1\r\n", 400),
        ("GET  /  HTTP/1.1\r\n", 400),
        ("GET /\0 HTTP/1.1\r\n", 400),
        ("GET /" + "a" * 70_000 + " HTTP/1.1\r\n" + HOST + "\r\n", 414),
        ("GET /" + "a" * 1_000_000, 414),
        ("GET / HTTP/1.1\r\n" + HOST + "X: " + "a" * 70_000 + "\r\n\r\n", 431),
        ("GET / HTTP/1.1\r\n" + HOST + "X: 1\r\n" * 200 + "\r\n", 431),
        ("GET / HTTP/1.1\r\n" + HOST + "X: slow", 408),
        ("POST / HTTP/1.1\r\n" + HOST + "Content-Length: 1000000\r\n\r\nslow", 405),
        ("GET / HTTP/1.1\r\n" + HOST + "Content-Length: 1000000\r\n\r\nslow", 200),
        ("GET / HTTP/1.1\r\n" + HOST + "Content-Length: -1\r\n\r\n", 200),
        ("GET / HTTP/1.1\r\n" + HOST + "Transfer-Encoding: chunked\r\n\r\nslow", 200),
        ("GET /report/..%2f..%2fetc%2fpasswd HTTP/1.1\r\n" + HOST + "Connection: close\r\n\r\n", 404),
        ("GET /report/%00 HTTP/1.1\r\n" + HOST + "Connection: close\r\n\r\n", 404),
        ("GET //[::1/x HTTP/1.1\r\n" + HOST + "Connection: close\r\n\r\n", 404),
        ("GET /run.json?run=" + "a&" * 30_000 + " HTTP/1.1\r\n" + HOST + "Connection: close\r\n\r\n", 404),
        ("GET /view.js HTTP/1.1\r\n" + HOST + "Range: bytes=0-,0-,0-\r\nConnection: close\r\n\r\n", 200),
    ],
    ids=lambda value: ascii(value)[:40],
)
def test_a_malformed_request_has_its_answer_at_once_and_no_more(server: ViewerServer, request_text: str, status: int) -> None:
    began = time.monotonic()
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=60) as connection:
        with contextlib.suppress(ConnectionError):  # it may be refused before all of it is sent
            connection.sendall(request_text.replace("{port}", str(server.server_port)).encode())
        answer = b""
        with contextlib.suppress(ConnectionError):
            while part := connection.recv(65536):
                answer += part
    assert time.monotonic() - began < IDLE_S / 2  # it does not wait for more
    assert f" {status} ".encode() in answer.partition(b"\r\n")[0] or (status == 414 and not answer)


def test_a_greeting_of_another_protocol_is_ended_soon(server: ViewerServer) -> None:
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=IDLE_S / 2) as connection:
        connection.sendall(bytes.fromhex("16030100c8010000c40303") + b"\0" * 200)  # TLS
        assert connection.recv(100) == b""


def test_a_connection_is_used_again(server: ViewerServer) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
    for target in ("/state.json", "/nothing", "/view.js"):
        connection.request("GET", target)
        assert connection.getresponse().read()
        assert connection.sock is not None
    connection.close()


# The command


def viewer(root: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "permix", "view", str(root), *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_ctrl_c_ends_it_in_peace(tmp_path: Path) -> None:
    stability_run(tmp_path / "run", whole())
    with viewer(tmp_path, "--port", "0") as process:
        assert process.stdout is not None
        url = re.match(r"http://127\.0\.0\.1:(\d+)/", process.stdout.readline())
        assert url is not None
        with socket.create_connection(("127.0.0.1", int(url[1])), timeout=60):  # a browser that keeps its connection open
            os.kill(process.pid, signal.SIGINT)
            said, trouble = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "stopped" in said
    assert trouble == ""


@pytest.mark.slow
def test_with_json_the_address_is_there_while_it_serves(tmp_path: Path) -> None:
    stability_run(tmp_path / "run", whole())
    with viewer(tmp_path, "--port", "0", "--json") as process:
        assert process.stdout is not None
        lines = [process.stdout.readline()]
        while lines[-1].rstrip() != "}":
            lines.append(process.stdout.readline())
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/", json.loads("".join(lines))["url"])
        os.kill(process.pid, signal.SIGINT)
        said, trouble = process.communicate(timeout=30)
    assert (process.returncode, said, trouble) == (0, "", "")


def test_a_port_in_use_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert cli.run_cli(["view", str(tmp_path), "--port", str(port)]) == 2
    assert f"port = {port}: cannot be opened on 127.0.0.1: is in use; give another" in capsys.readouterr().err


def test_a_folder_that_is_not_there_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run_cli(["view", str(tmp_path / "none")]) == 2
    assert "none: no such folder" in capsys.readouterr().err
