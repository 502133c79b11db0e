"""An OpenAI-compatible endpoint on 127.0.0.1 that needs almost no CPU time: it sends the same completion after a known latency.

`bench.process.Worker` runs it in a process of its own, which ends with the process that started it.
"""

import asyncio
import json
import random
import re
from multiprocessing.connection import Connection
from typing import NamedTuple

NAME = "bench"
SPREAD = 0.5
"""Latencies are uniform between (1 - SPREAD) and (1 + SPREAD) times their mean."""
TEXT = "First we add what the two of them have, then we take away what was given to the third. " * 6 + "So it is \\boxed{42}."


class Setup(NamedTuple):
    """The setting of a server: the mean latency in seconds."""

    latency_s: float


def latency_of(seed: int, mean_s: float) -> float:
    """Return the seconds that the server waits before it answers a request with this seed. Only the low 31 bits are sent."""
    return mean_s * (1 + SPREAD * (2 * random.Random(seed & 0x7FFFFFFF).random() - 1))


def serve(setup: Setup, connection: Connection) -> None:
    """Send the port through the connection, and serve until something arrives there."""
    asyncio.run(_serve(setup.latency_s, connection))


async def _serve(latency_s: float, connection: Connection) -> None:
    loop, stopped = asyncio.get_running_loop(), asyncio.Event()
    server = await loop.create_server(lambda: _ClientConnection(latency_s), "127.0.0.1", 0, backlog=1024)
    loop.add_reader(connection.fileno(), stopped.set)
    connection.send(server.sockets[0].getsockname()[1])
    await stopped.wait()
    server.close()


def _http_response(body: object) -> bytes:
    raw = json.dumps(body).encode()
    return f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(raw)}\r\n\r\n".encode() + raw


MODELS = _http_response({"object": "list", "data": [{"id": NAME, "object": "model", "created": 0, "owned_by": NAME}]})
COMPLETION = _http_response({
    "id": "chatcmpl-0", "object": "chat.completion", "created": 0, "model": NAME,
    "choices": [{"index": 0, "message": {"role": "assistant", "content": TEXT}, "logprobs": None, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 80, "completion_tokens": 130, "total_tokens": 210},
})  # fmt: skip


class _ClientConnection(asyncio.Protocol):
    """One HTTP connection, whose client waits for each response before it sends the next request."""

    def __init__(self, latency_s: float) -> None:
        self._latency_s, self._received = latency_s, b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, has_head, body = self._received.partition(b"\r\n\r\n")
        length = re.search(rb"(?i)\r\ncontent-length: *([0-9]+)", head)
        if not has_head or len(body) < (int(length[1]) if length else 0):
            return
        self._received = b""
        if head.startswith(b"GET"):
            return self._transport.write(MODELS)
        seed = re.search(rb'"seed": ?([0-9]+)', body)
        assert seed
        latency_s = latency_of(int(seed[1]), self._latency_s)
        asyncio.get_running_loop().call_later(latency_s, self._transport.write, COMPLETION)
