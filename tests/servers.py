"""A scripted OpenAI-compatible server on 127.0.0.1, to see how a client behaves when everything that can go wrong does.

A script is a function (request body, number of the call from 0, headers in Title-Case) -> what to do: a text, or an action.
Calls are numbered and scripted one at a time, so a script may keep state without a lock; the actions then run in parallel.
"""

import contextlib
import itertools
import json
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

USAGE = {"prompt_tokens": 7, "completion_tokens": 3}


@dataclass(frozen=True)
class Reply:
    """A well-formed completion, `after_s` seconds from now."""

    text: str | None
    finish: str = "stop"
    usage: Mapping[str, Any] | None = field(default_factory=lambda: USAGE)
    after_s: float = 0.0

    @property
    def body(self) -> bytes:
        message = {"role": "assistant", "content": self.text}
        choice = {"index": 0, "message": message, "finish_reason": self.finish}
        return json.dumps({"id": "x", "object": "chat.completion", "choices": [choice], "usage": self.usage}).encode()


@dataclass(frozen=True)
class Raw:
    """Any bytes under any status. `{authorization}` in the body is replaced by what the client sent."""

    body: bytes
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Hang:
    """Say nothing for so long (or until the server closes), then hang up."""

    seconds: float


@dataclass(frozen=True)
class Drip:
    """A well-formed completion, one byte every `every_s` seconds."""

    text: str
    every_s: float


@dataclass(frozen=True)
class Drop:
    """Close the connection without a word."""


@dataclass(frozen=True)
class Wire:
    """Bytes as they are, status line and all: `head`, then `repeat` `times` times (None: until the client leaves), then `tail`.

    `reset`: end with a reset of the connection instead of an orderly close.
    """

    head: bytes
    repeat: bytes = b""
    times: int | None = 0
    tail: bytes = b""
    reset: bool = False

    def parts(self) -> Iterator[bytes]:
        yield self.head
        yield from itertools.repeat(self.repeat) if self.times is None else itertools.repeat(self.repeat, self.times)
        yield self.tail


Action = Reply | Raw | Hang | Drip | Drop | Wire
Script = Callable[[dict[str, Any], int, Mapping[str, str]], str | Action]

HALF_JSON = Raw(Reply("never to be seen").body[:40])
EMPTY_CHOICES = Raw(b'{"choices": []}')
CUT_OFF = Raw(Reply("never to be seen").body[:40], headers={"Content-Length": "500", "Connection": "close"})
WRONG_TYPES = Raw(b'{"choices": "none", "usage": [1]}')


def error(status: int, message: str = "scripted", **headers: str) -> Raw:
    """An error in OpenAI's form; `retry_after="1"` becomes the header Retry-After."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Raw(json.dumps({"error": {"message": message, "type": "scripted"}}).encode(), status, named)


def listing(*ids: str, **more: Any) -> Raw:
    """What GET /models says, every entry with the fields of `more`."""
    return Raw(json.dumps({"object": "list", "data": [{"id": one, "object": "model", **more} for one in ids]}).encode())


@dataclass(frozen=True)
class Asked:
    """One chat request as it came."""

    body: dict[str, Any]
    headers: Mapping[str, str]
    at_s: float

    @property
    def user(self) -> str:
        """The last message's text."""
        return str(self.body["messages"][-1]["content"])


class OpenAIServer:
    """What the test sees: the address, everything asked, how often /models was asked, and the most requests at once."""

    def __init__(self, script: Script, models: Action) -> None:
        self.script, self.models = script, models
        self.asked: list[Asked] = []
        self.listed = 0
        self.max_in_flight = 0
        self.closing = threading.Event()
        self._in_flight = 0
        self._lock = threading.Lock()
        self._http = _Http(("127.0.0.1", 0), type("Handler", (_Handler,), {"owner": self}))

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_port}/v1"

    def begin(self, body: dict[str, Any], headers: Mapping[str, str]) -> Action:
        with self._lock:
            nth = len(self.asked)
            self.asked.append(Asked(body, headers, time.monotonic()))
            self._in_flight += 1
            self.max_in_flight = max(self.max_in_flight, self._in_flight)
            action = self.script(body, nth, headers)
            return Reply(action) if isinstance(action, str) else action

    def end(self) -> None:
        with self._lock:
            self._in_flight -= 1

    def serve(self) -> None:
        self._http.serve_forever(poll_interval=0.01)

    def close(self) -> None:
        self.closing.set()
        self._http.shutdown()
        self._http.server_close()


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # else the kernel drops some of many connections opened at once, and they come a second late

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # a client that left is no news
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # else every header is a packet, and each reply waits for a delayed acknowledgement
    owner: OpenAIServer

    def do_GET(self) -> None:
        self.owner.listed += 1
        self._do(self.owner.models if self.path == "/v1/models" else error(404), lambda: None)

    def do_POST(self) -> None:
        raw = self.rfile.read(length := int(self.headers["Content-Length"]))
        if len(raw) < length:  # a client that was killed while it asked
            self.close_connection = True
            return None
        body = json.loads(raw)
        if self.path != "/v1/chat/completions":
            return self._do(error(404), lambda: None)
        self._do(self.owner.begin(body, {name.title(): value for name, value in self.headers.items()}), self.owner.end)

    def _do(self, action: Action, end: Callable[[], None]) -> None:
        """Act. `end` is called before the last byte leaves: a client may answer it with the next request at once."""
        if isinstance(action, (Hang, Reply)):
            self.owner.closing.wait(action.seconds if isinstance(action, Hang) else action.after_s)
        if isinstance(action, Wire):
            end()
            return self._send_wire(action)
        body = Reply(action.text).body if isinstance(action, Drip) else getattr(action, "body", b"")
        every_s = action.every_s if isinstance(action, Drip) else 0.0
        if isinstance(action, (Hang, Drop)):
            self.close_connection = True
            return end()
        status, headers = (action.status, action.headers) if isinstance(action, Raw) else (200, {})
        if not every_s:
            end()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._send(status, headers, body.replace(b"{authorization}", self.headers["Authorization"].encode()), every_s)
        if every_s:
            end()

    def _send(self, status: int, headers: Mapping[str, str], body: bytes, every_s: float) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        for start in range(0, len(body), 1 if every_s else max(1, len(body))):
            self.wfile.write(body[start : start + (1 if every_s else len(body))])
            self.wfile.flush()
            if every_s and self.owner.closing.wait(every_s):
                return

    def _send_wire(self, action: Wire) -> None:
        self.close_connection = True
        with contextlib.suppress(ConnectionError):
            for part in action.parts():
                if self.owner.closing.is_set():
                    return
                self.wfile.write(part)
            self.wfile.flush()
            if action.reset:
                self.request.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.request.close()

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextlib.contextmanager
def openai_server(script: Script, models: Action | None = None) -> Iterator[OpenAIServer]:
    """Serve `script` while the block runs; /models lists "test" unless told otherwise."""
    server = OpenAIServer(script, models or listing("test"))
    thread = threading.Thread(target=server.serve, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.close()
        thread.join()
