"""The viewer's server: this machine only, reading only.

Contract: it listens on 127.0.0.1, answers GET and HEAD whose Host names this machine and port (a page elsewhere, whose name was
made to point here, gets 403), and serves a fixed set of files, two JSON views and the files of a built report. Every answer
carries a policy that lets the browser load nothing from anywhere else. A request that fails takes nothing down.

`permix view DIR`: the page of a folder of runs, on this machine, until Ctrl-C.
"""

import errno
import hashlib
import json
import os
import sys
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

from permix.config import ViewStage
from permix.dashboard import folder
from permix.dashboard.folder import Folder
from permix.errors import ConfigError
from permix.sanitize import visible

HOST = "127.0.0.1"

NAMES = ("127.0.0.1", "localhost", "[::1]")

IDLE_S = 60

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}

OWN, SHARED = "permix.dashboard", "permix.report.html"

ASSETS = {
    "/": (OWN, "view.html", "text/html; charset=utf-8"),
    "/view.css": (OWN, "view.css", "text/css; charset=utf-8"),
    "/base.js": (SHARED, "base.js", "text/javascript; charset=utf-8"),
    "/curves.js": (OWN, "curves.js", "text/javascript; charset=utf-8"),
    "/view.js": (OWN, "view.js", "text/javascript; charset=utf-8"),
}
"""Where the page's files lie: its own, and what it shares with the report."""


class Answer(NamedTuple):
    """What goes back. `location`: where to look instead. `tagged`: it has an ETag, and is not sent again to who has it."""

    body: bytes
    type: str = "text/plain; charset=utf-8"
    status: int = HTTPStatus.OK
    policy: str = POLICY
    location: str = ""
    tagged: bool = False


TO_REPORT = Answer(b"", status=HTTPStatus.MOVED_PERMANENTLY, location="/report/")
"""Links in the report are relative to its folder."""

MISSING = Answer(b"nothing here\n", status=HTTPStatus.NOT_FOUND)


class Server(ThreadingHTTPServer):
    """Serves one folder. Port 0 is a free one; `url` says which. Raises OSError where the port cannot be had."""

    daemon_threads = True

    def __init__(self, folder: Folder, port: int) -> None:
        self.folder = folder
        self.assets = {path: Answer(_asset(*place), type) for path, (*place, type) in ASSETS.items()}
        super().__init__((HOST, port), Handler)

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.server_port}/"

    @property
    def hosts(self) -> frozenset[str]:
        """What a request may call this server."""
        bare = NAMES if self.server_port == 80 else ()
        return frozenset([*(f"{name}:{self.server_port}" for name in NAMES), *bare])

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):  # a browser that went away is no news
            super().handle_error(request, client_address)

    def answer(self, target: str) -> Answer:
        """What is at a request's target."""
        parts = urlsplit(target)
        path = unquote(parts.path)
        if path in self.assets:
            return self.assets[path]
        if path == "/state.json":
            return _json(self.folder.state())
        if path == "/run.json":
            found = self.folder.detail(parse_qs(parts.query).get("run", [""])[0])
            return MISSING if found is None else _json(found)
        if path == "/report":
            return TO_REPORT
        if path.startswith("/report/"):
            return self._of_report(path.removeprefix("/report/") or "index.html")
        return MISSING

    def _of_report(self, name: str) -> Answer:
        home = folder.report_of(self.folder.root)
        found = None if home is None else folder.file_of(home, name)
        if found is None:
            return MISSING
        policy = folder.POLICY if found.suffix == ".html" else POLICY
        return Answer(found.read_bytes(), folder.TYPES[found.suffix], policy=policy)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "permix", ""
    timeout = IDLE_S
    wbufsize = -1
    server: Server

    def do_GET(self) -> None:
        if refusal := self._refusal():
            return self._send(refusal)
        self._send(self.server.answer(self.path))

    do_HEAD = do_GET

    def _refuse_method(self) -> None:
        self.close_connection = True  # what it carries is not read
        self._send(self._refusal() or Answer(b"only GET and HEAD\n", status=HTTPStatus.METHOD_NOT_ALLOWED))

    do_POST = do_PUT = do_DELETE = do_PATCH = do_OPTIONS = do_TRACE = do_CONNECT = _refuse_method

    def _refusal(self) -> Answer | None:
        hosts = self.headers.get_all("Host", [])
        if len(hosts) != 1 or hosts[0].strip().lower() not in self.server.hosts:
            return Answer(b"this server answers only to localhost\n", status=HTTPStatus.FORBIDDEN)
        if not self.path.startswith("/"):
            return Answer(b"not a path\n", status=HTTPStatus.BAD_REQUEST)
        if self.headers.get("Content-Length", "0") != "0" or self.headers.get("Transfer-Encoding"):
            self.close_connection = True
        return None

    def _send(self, answer: Answer) -> None:
        tag = f'"{hashlib.sha256(answer.body).hexdigest()[:32]}"' if answer.tagged else ""
        if tag and self.headers.get("If-None-Match") == tag:
            answer = Answer(b"", answer.type, HTTPStatus.NOT_MODIFIED)
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.type)
        self.send_header("Content-Length", str(len(answer.body)))
        for name, value in (HEADERS | {"Content-Security-Policy": answer.policy}).items():
            self.send_header(name, value)
        if answer.location:
            self.send_header("Location", answer.location)
        if tag:
            self.send_header("ETag", tag)
        if answer.status == HTTPStatus.METHOD_NOT_ALLOWED:
            self.send_header("Allow", "GET, HEAD")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What http.server refuses by itself (a request that is none, a method that nobody knows), without repeating it."""
        self.close_connection = True
        self.command = self.command or ""
        self._send(Answer(b"not a request that is answered here\n", status=code))

    def log_message(self, format: str, *args: Any) -> None:
        """A poll every second is no news."""


def _json(value: dict[str, Any]) -> Answer:
    body = json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace")
    return Answer(body, "application/json; charset=utf-8", tagged=True)


def _asset(package: str, name: str) -> bytes:
    return (files(package) / "assets" / name).read_bytes()


WAKES_S = 0.25
"""The system may hand Ctrl-C to any thread, and this one hears of it only when it wakes."""


def view(config: ViewStage) -> None:
    """Serve until Ctrl-C, which ends it as it should. Raises ConfigError for a folder or a port that cannot be had."""
    refuse_no_folder(config)
    folder = Folder(config.runs)
    server = open_server(folder, config.port)
    serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.2}, daemon=True)
    try:  # Ctrl-C comes to this thread, which does nothing but wait: it never breaks into a request
        folder.start()
        serving.start()
        print(f"{server.url}  shows the runs below {visible(str(config.runs))}; Ctrl-C ends it", flush=True)
        while serving.is_alive():
            serving.join(WAKES_S)
    except KeyboardInterrupt:
        print("\npermix view: ended; the runs go on")
    finally:
        server.shutdown()
        server.server_close()
        folder.stop()


def refuse_no_folder(config: ViewStage) -> None:
    """Raises ConfigError where there is nothing to look at."""
    if not config.runs.is_dir():
        raise ConfigError(f"runs = {config.runs}: no such folder; give the folder that holds your run directories")


def open_server(folder: Folder, port: int) -> Server:
    """Raises ConfigError naming the port where the system does not give it."""
    try:
        return Server(folder, port)
    except OSError as error:
        reason = "is in use" if error.errno == errno.EADDRINUSE else os.strerror(error.errno or 0)
        raise ConfigError(
            f"port = {port}: cannot be opened on {HOST}: {reason}; give another, or --port 0 for a free one"
        ) from error
