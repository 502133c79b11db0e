"""`permix view DIR`: serve a folder of runs as a local web page until Ctrl-C.

Contract: without `--try-it` the server only reads. It listens on 127.0.0.1 and answers GET and HEAD requests whose Host header
names this machine and port; any other Host gets 403, so a foreign page whose name resolves to this machine cannot read
anything. It serves a fixed set of files, two JSON views and the files of a built report. Every answer carries a content
security policy that lets the browser load nothing from other hosts; only the viewer's own page may ask this server. A failed
request does not stop the server. A request that is not HTTP/1.0 or 1.1, or that is not whole `REQUEST_S` after its first byte, is
refused; no request body is read. A refused request ends its connection.

With `--try-it` it also answers the routes below `/try/` (`permix.dashboard.try_it`), to requests that carry the token in the
address that `permix view` printed. A POST there must come from this server's own page, by its Origin, and bring JSON of at most
`MAX_BODY_BYTES`. The page itself does not hold the token, so that other users of this machine, who can open the page, cannot ask.
"""

import errno
import hashlib
import io
import json
import os
import re
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from typing import IO, Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

from permix.config import ViewConfig
from permix.dashboard import folder
from permix.dashboard.folder import MeasureProcess, RunFolder
from permix.dashboard.try_it import BusyError, TryIt
from permix.errors import ConfigError, DataError, PermixError
from permix.progress import add_result, print_result_now
from permix.sanitize import escape_control
from permix.storage.files import open_regular

HOST = "127.0.0.1"

HOST_NAMES = ("127.0.0.1", "localhost", "[::1]")

TRY_PREFIX = "/try/"

TOKEN_HEADER = "X-Permix-Token"
"""A header that no form and no other origin can send without asking first (CORS), which this server never allows."""

MAX_BODY_BYTES = 100_000

IDLE_S, REQUEST_S = 60.0, 1.0
"""Longest wait for the first byte of a request, and from there for its last one."""

_REQUEST_LINE = re.compile(rb"[A-Z]+ [!-~\x80-\xff]+ HTTP/1\.[01]\r?\n")

VIEWER_PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

FILE_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Content security policy of all that is not a page, such as an SVG of a report that somebody else made.

It holds for a file that is opened alone or runs as a worker. A file that a page loads is under the policy of the page.
"""

SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}

VIEWER_ASSETS_PACKAGE, REPORT_ASSETS_PACKAGE = "permix.dashboard", "permix.report.html"

ASSETS = {
    "/": (VIEWER_ASSETS_PACKAGE, "view.html", "text/html; charset=utf-8"),
    "/view.css": (VIEWER_ASSETS_PACKAGE, "view.css", "text/css; charset=utf-8"),
    "/base.js": (REPORT_ASSETS_PACKAGE, "base.js", "text/javascript; charset=utf-8"),
    "/curves.js": (VIEWER_ASSETS_PACKAGE, "curves.js", "text/javascript; charset=utf-8"),
    "/view.js": (VIEWER_ASSETS_PACKAGE, "view.js", "text/javascript; charset=utf-8"),
    "/try.js": (VIEWER_ASSETS_PACKAGE, "try.js", "text/javascript; charset=utf-8"),
}
"""Where the page's files are: its own, and the files that it shares with the report."""


class HttpResponse(NamedTuple):
    """One response. `location` is the target of a redirect. `has_etag`: send an ETag, and answer 304 to a browser that has it.

    `opener_policy`: pages with another one get no hold of the window in which this response is opened.
    `allow`: the methods that a response 405 names. `file`: an open file that is sent instead of the body, and then closed.
    """

    body: bytes
    content_type: str = "text/plain; charset=utf-8"
    status: int = HTTPStatus.OK
    policy: str = FILE_POLICY
    opener_policy: str = "same-origin"
    location: str = ""
    has_etag: bool = False
    allow: str = "GET, HEAD"
    file: IO[bytes] | None = None


REPORT_REDIRECT = HttpResponse(b"", status=HTTPStatus.MOVED_PERMANENTLY, location="/report/")
"""A redirect, since links in the report are relative to its folder."""

NOT_FOUND_RESPONSE = HttpResponse(b"not found\n", status=HTTPStatus.NOT_FOUND)

NO_TOKEN_RESPONSE = HttpResponse(b"open the address that permix view printed when it started\n", status=HTTPStatus.FORBIDDEN)


class ViewerServer(ThreadingHTTPServer):
    """Serves one folder, and `try_it` if given. Port 0 picks a free port; `url` names it.

    Raises OSError if the port cannot be opened.
    """

    daemon_threads = True

    def __init__(self, folder: RunFolder, port: int, try_it: TryIt | None = None) -> None:
        self.folder, self.try_it = folder, try_it
        self.assets = {path: HttpResponse(_read_asset(*place), type) for path, (*place, type) in ASSETS.items()}
        self.assets["/"] = self.assets["/"]._replace(policy=VIEWER_PAGE_POLICY)
        super().__init__((HOST, port), ViewerHandler)

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.server_port}/"

    @property
    def start_url(self) -> str:
        """The address to open. With `try_it` it ends in the token, in the part of an address that browsers do not send."""
        return self.url if self.try_it is None else f"{self.url}#token={self.try_it.token}"

    @property
    def hosts(self) -> frozenset[str]:
        """Values of the Host header that the server accepts."""
        bare = HOST_NAMES if self.server_port == 80 else ()
        return frozenset([*(f"{name}:{self.server_port}" for name in HOST_NAMES), *bare])

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):  # the browser closed the connection, which is normal
            super().handle_error(request, client_address)

    def respond(self, target: str) -> HttpResponse:
        """The response to the target of a request."""
        parts = urlsplit(target)
        path = unquote(parts.path)
        if path in self.assets:
            return self.assets[path]
        if path == "/state.json":
            return _json_response(self.folder.state() | {"try_it": self.try_it is not None})
        if path == "/run.json":
            found = self.folder.detail(parse_qs(parts.query).get("run", [""])[0])
            return NOT_FOUND_RESPONSE if found is None else _json_response(found)
        if path == "/report":
            return REPORT_REDIRECT
        if path.startswith("/report/"):
            return self._report_response(path.removeprefix("/report/") or "index.html")
        return NOT_FOUND_RESPONSE

    def admits(self, token: str) -> bool:
        """Whether a request with this token may ask models."""
        return self.try_it is not None and secrets.compare_digest(token.encode("utf-8", "replace"), self.try_it.token.encode())

    def respond_to_try(self, method: str, target: str, token: str, body: bytes) -> HttpResponse:
        """The response to a request below `TRY_PREFIX`. What is wrong with it is one line of text."""
        parts, try_it = urlsplit(target), self.try_it
        if try_it is None or parts.path not in _TRY_ROUTES:
            return NOT_FOUND_RESPONSE
        if not self.admits(token):
            return NO_TOKEN_RESPONSE
        allowed, work = _TRY_ROUTES[parts.path]
        if method != allowed:
            return HttpResponse(f"only {allowed}\n".encode(), status=HTTPStatus.METHOD_NOT_ALLOWED, allow=allowed)
        try:
            return _json_response(work(try_it, parse_qs(parts.query), body))
        except PermixError as error:
            status = HTTPStatus.CONFLICT if isinstance(error, BusyError) else HTTPStatus.BAD_REQUEST
            return HttpResponse(escape_control(str(error)).replace("\n", " ").encode("utf-8", "replace"), status=status)

    def _report_response(self, name: str) -> HttpResponse:
        report = folder.find_report(self.folder.root)
        path = None if report is None else folder.find_report_file(report, name)
        if path is None:
            return NOT_FOUND_RESPONSE
        try:
            found = HttpResponse(b"", folder.REPORT_CONTENT_TYPES[path.suffix], file=open_regular(path))
        except (OSError, DataError):  # it was replaced just now
            return NOT_FOUND_RESPONSE
        is_page = path.suffix == ".html"
        return found._replace(policy=folder.REPORT_PAGE_POLICY, opener_policy="unsafe-none") if is_page else found


def _save_number(body: bytes) -> int:
    try:
        return int(json.loads(body)["number"])
    except (ValueError, TypeError, KeyError, RecursionError):
        raise ConfigError("number: is missing") from None


def _stop(try_it: TryIt) -> dict[str, Any]:
    try_it.stop()
    return {}


_TRY_ROUTES: dict[str, tuple[str, Callable[[TryIt, dict[str, list[str]], bytes], dict[str, Any]]]] = {
    "/try/choices.json": ("GET", lambda try_it, query, body: try_it.choices()),
    "/try/prompts.json": ("GET", lambda try_it, query, body: try_it.prompts(query.get("run", [""])[0])),
    "/try/answers.json": ("GET", lambda try_it, query, body: try_it.answers()),
    "/try/ask": ("POST", lambda try_it, query, body: try_it.ask(body)),
    "/try/stop": ("POST", lambda try_it, query, body: _stop(try_it)),
    "/try/save": ("POST", lambda try_it, query, body: try_it.save(_save_number(body))),
}

_PIECE_BYTES = 65_536


class _RequestReader(io.RawIOBase):
    """Reads a socket. Raises TimeoutError if no request begins within `IDLE_S`, or if it is not whole after `REQUEST_S`."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self.deadline: float | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._connection.settimeout(IDLE_S if self.deadline is None else max(self.deadline - time.monotonic(), 0.001))
        count = self._connection.recv_into(buffer)
        self.deadline = self.deadline or time.monotonic() + REQUEST_S
        return count


class ViewerHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "permix", ""
    wbufsize = -1
    server: ViewerServer
    raw_requestline: bytes

    def setup(self) -> None:
        super().setup()
        self._reader = _RequestReader(self.connection)
        self.rfile = io.BufferedReader(self._reader)

    def handle_one_request(self) -> None:
        self._reader.deadline = None
        super().handle_one_request()

    def parse_request(self) -> bool:
        """Whether the request is well-formed. Any other is answered here, if possible before its headers are read."""
        self.command, self.requestline, self.request_version = "", "", self.protocol_version
        if not _REQUEST_LINE.fullmatch(self.raw_requestline):
            self.send_error(HTTPStatus.BAD_REQUEST)
            return False
        try:
            return super().parse_request()
        except TimeoutError:
            self.send_error(HTTPStatus.REQUEST_TIMEOUT)
            return False

    def do_GET(self) -> None:
        if refusal := self._rejection():
            self.close_connection = True
            return self._send(refusal)
        if self._is_try:
            return self._send(self.server.respond_to_try(self.command, self.path, self._token, b""))
        self._send(self.server.respond(self.path))

    do_HEAD = do_GET

    def do_POST(self) -> None:
        if self.server.try_it is None or not self._is_try:
            return self._reject_method()
        closes = self.close_connection
        if refusal := self._rejection() or self._post_rejection():
            self.close_connection = True
            return self._send(refusal)
        length = int(self.headers["Content-Length"])
        try:
            body = self.rfile.read(length)
        except TimeoutError:
            return self.send_error(HTTPStatus.REQUEST_TIMEOUT)
        if len(body) < length:
            return self.send_error(HTTPStatus.BAD_REQUEST)
        self.close_connection = closes  # the body was read, so the connection can be used again
        self._send(self.server.respond_to_try(self.command, self.path, self._token, body))

    @property
    def _is_try(self) -> bool:
        return self.path.startswith(TRY_PREFIX)

    @property
    def _token(self) -> str:
        return str(self.headers.get(TOKEN_HEADER, ""))

    def _post_rejection(self) -> HttpResponse | None:
        """Why the body of a POST is not read; None if it is: it comes from this server's own page, and its length is allowed."""
        origins, lengths = self.headers.get_all("Origin", []), self.headers.get_all("Content-Length", [])
        if len(origins) != 1 or origins[0].lower() not in {f"http://{host}" for host in self.server.hosts}:
            return HttpResponse(b"only the page of this server may ask\n", status=HTTPStatus.FORBIDDEN)
        if self.headers.get("Sec-Fetch-Site", "same-origin") != "same-origin":
            return HttpResponse(b"only the page of this server may ask\n", status=HTTPStatus.FORBIDDEN)
        if not self.server.admits(self._token):
            return NO_TOKEN_RESPONSE
        if self.headers.get_content_type() != "application/json":
            return HttpResponse(b"only application/json\n", status=HTTPStatus.UNSUPPORTED_MEDIA_TYPE)
        if len(lengths) != 1 or not re.fullmatch("[0-9]{1,9}", lengths[0]) or self.headers.get("Transfer-Encoding"):
            return HttpResponse(b"give the length of the body\n", status=HTTPStatus.LENGTH_REQUIRED)
        if int(lengths[0]) > MAX_BODY_BYTES:
            message = f"a request has at most {MAX_BODY_BYTES} bytes\n"
            return HttpResponse(message.encode(), status=HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        return None

    def _reject_method(self) -> None:
        self.close_connection = True  # the request body is not read, so the connection cannot be used again
        self._send(self._rejection() or HttpResponse(b"only GET and HEAD\n", status=HTTPStatus.METHOD_NOT_ALLOWED))

    do_PUT = do_DELETE = do_PATCH = do_OPTIONS = do_TRACE = do_CONNECT = _reject_method

    def _rejection(self) -> HttpResponse | None:
        hosts = self.headers.get_all("Host", [])
        if len(hosts) != 1 or hosts[0].strip().lower() not in self.server.hosts:
            return HttpResponse(b"this server answers only to localhost\n", status=HTTPStatus.FORBIDDEN)
        if not self.path.startswith("/"):
            return HttpResponse(b"not a path\n", status=HTTPStatus.BAD_REQUEST)
        if self.headers.get("Content-Length", "0") != "0" or self.headers.get("Transfer-Encoding"):
            self.close_connection = True
        return None

    def _send(self, response: HttpResponse) -> None:
        tag = f'"{hashlib.sha256(response.body).hexdigest()[:32]}"' if response.has_etag else ""
        if tag and self.headers.get("If-None-Match") == tag:
            response = HttpResponse(b"", response.content_type, HTTPStatus.NOT_MODIFIED)
        length = len(response.body) if response.file is None else os.fstat(response.file.fileno()).st_size
        self.connection.settimeout(IDLE_S)
        self.send_response(response.status)
        self.send_header("Content-Type", response.content_type)
        self.send_header("Content-Length", str(length))
        policies = {"Content-Security-Policy": response.policy, "Cross-Origin-Opener-Policy": response.opener_policy}
        for name, value in (SECURITY_HEADERS | policies).items():
            self.send_header(name, value)
        if response.location:
            self.send_header("Location", response.location)
        if tag:
            self.send_header("ETag", tag)
        if response.status == HTTPStatus.METHOD_NOT_ALLOWED:
            self.send_header("Allow", response.allow)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        with response.file or io.BytesIO(response.body) as content:
            if self.command != "HEAD":
                self._write(content, length)

    def _write(self, content: IO[bytes], length: int) -> None:
        """Send `length` bytes piece by piece, so that a large file is never in memory; end the connection if there are fewer."""
        while length and (piece := content.read(min(length, _PIECE_BYTES))):
            self.wfile.write(piece)
            length -= len(piece)
        self.close_connection = self.close_connection or length > 0

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer requests that http.server refuses itself (malformed ones, unknown methods) without repeating their text."""
        self.close_connection = True
        self.command = self.command or ""
        self._send(HttpResponse(b"invalid request\n", status=code))

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: the page polls every second."""


def _json_response(value: dict[str, Any]) -> HttpResponse:
    body = json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace")
    return HttpResponse(body, "application/json; charset=utf-8", has_etag=True)


def _read_asset(package: str, name: str) -> bytes:
    return (files(package) / "assets" / name).read_bytes()


WAKE_EVERY_S = 0.25
"""Longest wait of the main thread. The system may deliver Ctrl-C to another thread; the main one handles it when it wakes."""


def serve_viewer(config: ViewConfig) -> None:
    """Serve until Ctrl-C, which is the normal end. Raises ConfigError if the folder is missing or the port cannot be opened."""
    require_runs_folder(config)
    folder = RunFolder(config.runs, MeasureProcess())
    try_it = TryIt(folder) if config.try_it else None
    server = open_server(folder, config.port, try_it)
    serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.2}, daemon=True)
    try:  # only this waiting thread gets KeyboardInterrupt, so it never interrupts a request
        folder.start()
        serving.start()
        add_result(url=server.start_url)
        print_result_now()
        print(f"{server.start_url}  shows the runs below {escape_control(str(config.runs))}; Ctrl-C stops it", flush=True)
        while serving.is_alive():
            serving.join(WAKE_EVERY_S)
    except KeyboardInterrupt:
        print("\npermix view: stopped; the runs go on")
    finally:
        server.shutdown()
        server.server_close()
        folder.stop()
        if try_it is not None:
            try_it.stop()


def require_runs_folder(config: ViewConfig) -> None:
    """Raise ConfigError if `config.runs` is not a folder."""
    if not config.runs.is_dir():
        raise ConfigError(f"runs = {config.runs}: no such folder; give the folder with your run directories")


def open_server(folder: RunFolder, port: int, try_it: TryIt | None = None) -> ViewerServer:
    """Open the server. Raises ConfigError, naming the port, if the system refuses it."""
    try:
        return ViewerServer(folder, port, try_it)
    except OSError as error:
        reason = "is in use" if error.errno == errno.EADDRINUSE else os.strerror(error.errno or 0)
        raise ConfigError(
            f"port = {port}: cannot be opened on {HOST}: {reason}; give another port, or --port 0 for a free one"
        ) from error
