"""What permix's HTTP client adds to an endpoint's own time, with many requests in flight. One JSON line a figure.

    python -m bench.endpoint [--requests 5000] [--in-flight 256] [--latency-s 4 2 1] [--rounds 3] [--arms bare client sdk grid]

A server on 127.0.0.1 (`bench.server`), in a process of its own, answers every request after a latency of its own. By these alone,
with so many in flight, all are done after the *ideal* wall time; *overhead* is what the wall time has above that, as a share of
it. The same requests are asked in turn by

- `bare`: asyncio's sockets and nothing else, no reply is parsed: what the server and the machine allow;
- `client`: `permix.inference.openai`;
- `sdk`: the same with the transport of the openai package (extra `bench`) in place of `permix.inference.http_client`;
- `grid`: `permix stability` up to its measures, each answer verified and recorded.

CPU seconds are the asking process's, user and system, with its children; the server's are not in them.
"""

import argparse
import asyncio
import contextlib
import heapq
import json
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import openai

from bench.figures import show, show_spread
from bench.process import Arm
from bench.server import NAME, Setup, latency_of, serve
from permix.config import ModelConfig, PersonasConfig, StabilityConfig, TaskConfig
from permix.evals.grid import PromptFormat, build_grid, run_cells
from permix.inference.http_client import HttpClient
from permix.inference.openai import OpenAIModel
from permix.inference.openai_endpoint import Endpoint
from permix.personas.pool import select_personas
from permix.storage.run_dir import RunDir, cpu_seconds
from permix.tasks import TASKS, load_questions
from permix.tasks.base import verify_completion
from permix.types import Cell, Completion, Request, Sampling

SAMPLING = Sampling()


def main() -> None:
    options = parser().parse_args()
    asked = cells(options.requests)
    for latency_s in options.latency_s:
        with serving(latency_s) as port:
            measure(options, asked, latency_s, port)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="What the HTTP client adds to an endpoint's own time.")
    parser.add_argument("--requests", type=int, default=5000)
    parser.add_argument("--in-flight", type=int, default=256)
    parser.add_argument(
        "--latency-s", type=float, nargs="+", default=[4.0, 2.0, 1.0], help="the server's on average; a run for each"
    )
    parser.add_argument("--rounds", type=int, default=3, help="how often each client asks them all")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS), help="who asks, in this order in each round")
    return parser


@contextlib.contextmanager
def serving(latency_s: float) -> Iterator[int]:
    """A server while the block runs; its port."""
    server = Arm(serve, Setup(latency_s), device="cpu")
    try:
        yield server.ready
    finally:
        server.close()


def cells(count: int) -> list[Cell]:
    """So many small sums, asked as held-out personas."""
    personas = select_personas(PersonasConfig()).personas
    task, questions = load_questions(TaskConfig(n=math.ceil(count / len(personas))))
    return build_grid(personas, questions, PromptFormat(task.prompt, "you_are", empty_system_prompt=False), samples=1, seed=0)[
        :count
    ]


class Spent(NamedTuple):
    wall_s: float
    cpu_s: float


def measure(options: argparse.Namespace, asked: Sequence[Cell], latency_s: float, port: int) -> None:
    """Figures of all arms, asking in turn."""
    config = ModelConfig(
        name=NAME, backend="openai", base_url=f"http://127.0.0.1:{port}/v1", concurrency=options.in_flight, retries=0
    )
    ideal_s = ideal_wall([latency_of(cell.seed, latency_s) for cell in asked], options.in_flight)
    found: dict[str, list[Spent]] = {name: [] for name in options.arms}
    for _ in range(options.rounds):
        for name in options.arms:
            found[name].append(timed(ARMS[name], config, port, asked))
    about = {"requests": len(asked), "in_flight": options.in_flight, "latency_s": latency_s}
    show("ideal_wall_seconds", ideal_s, **about)
    for name, rounds in found.items():
        show_spread(f"overhead_{name}", [overhead(one.wall_s, ideal_s) for one in rounds], **about)
        show_spread(f"cpu_seconds_per_1000_requests_{name}", [1000 * one.cpu_s / len(asked) for one in rounds], **about)
        show_spread(f"requests_per_second_{name}", [len(asked) / one.wall_s for one in rounds], **about)


def timed(
    ask: Callable[[ModelConfig, int, Sequence[Cell]], None], config: ModelConfig, port: int, asked: Sequence[Cell]
) -> Spent:
    wall, cpu = time.perf_counter(), cpu_seconds()
    ask(config, port, asked)
    return Spent(time.perf_counter() - wall, cpu_seconds() - cpu)


def ideal_wall(latencies_s: Sequence[float], in_flight: int) -> float:
    """Seconds until all are answered when each is asked, in order, as soon as one of so many places is free."""
    free_at = [0.0] * in_flight
    for latency_s in latencies_s:
        heapq.heapreplace(free_at, free_at[0] + latency_s)
    return max(free_at)


def overhead(wall_s: float, ideal_s: float) -> float:
    return (wall_s - ideal_s) / ideal_s


def ask_client(config: ModelConfig, _: int, asked: Sequence[Cell]) -> None:
    ask_model(OpenAIModel(config), asked)


def ask_sdk(config: ModelConfig, _: int, asked: Sequence[Cell]) -> None:
    model = OpenAIModel(config)
    model.endpoints = tuple(SdkEndpoint(config, url, backoff_s=0.5) for url in config.base_urls)
    ask_model(model, asked)


class SdkEndpoint(Endpoint):
    def make_client(self) -> HttpClient:
        return SdkClient(self.base_url)


class SdkClient(HttpClient):
    """Clients of the openai package, each with at most so many requests in flight: one looks through all of its connections
    several times for each request."""

    REQUESTS_PER_CLIENT = 32

    def __init__(self, base_url: str) -> None:
        self._base_url = base_url
        self._clients: dict[Any, int] = {}  # requests in flight

    async def __aenter__(self) -> "SdkClient":
        return self

    async def __aexit__(self, *_: object) -> None:
        for client in self._clients:
            await client.close()

    async def get(self, path: str) -> bytes:
        return (await self._client().models.with_raw_response.list()).content  # type: ignore[no-any-return]

    async def post(self, path: str, body: Mapping[str, Any]) -> bytes:
        client = self._client()
        self._clients[client] += 1
        try:
            reply = await client.post(path, cast_to=openai.HttpxBinaryResponseContent, body=body)
            return reply.content  # type: ignore[no-any-return]
        finally:
            self._clients[client] -= 1

    def _client(self) -> Any:
        client = next((one for one, n in self._clients.items() if n < self.REQUESTS_PER_CLIENT), None)
        if client is None:
            client = openai.AsyncOpenAI(base_url=self._base_url, api_key="none", max_retries=0, timeout=None)
            self._clients[client] = 0
        return client


def ask_model(model: OpenAIModel, asked: Sequence[Cell]) -> None:
    requests = [Request(cell.messages, cell.seed) for cell in asked]
    for answer in model.generate(requests, SAMPLING):
        if not isinstance(answer.result, Completion):
            raise SystemExit(f"a request failed: {answer.result}")


def ask_grid(config: ModelConfig, _: int, asked: Sequence[Cell]) -> None:
    task = TASKS["arithmetic"]
    with tempfile.TemporaryDirectory() as scratch:
        stage = StabilityConfig(out=Path(scratch) / "run", model=config)
        with RunDir.open(stage.out, stage, {"model": config.name}, asked) as run:
            owed = run_cells(
                OpenAIModel(config),
                asked,
                SAMPLING,
                run,
                partial(verify_completion, task),
                "grid",
            )
    if owed:
        raise SystemExit(f"{owed} cells have no score")


def ask_bare(config: ModelConfig, port: int, asked: Sequence[Cell]) -> None:
    """As many connections as may be in flight, each with one request at a time."""
    pending = iter(asked)

    async def connection() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for cell in pending:
            writer.write(written(cell))
            head = await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(length_in(head))
        writer.close()

    async def all_at_once() -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(config.concurrency or 1):
                group.create_task(connection())

    asyncio.run(all_at_once())


def written(cell: Cell) -> bytes:
    """The request as it goes over the wire."""
    body = json.dumps({
        "model": NAME, "messages": cell.messages, "temperature": SAMPLING.temperature, "top_p": SAMPLING.top_p,
        "max_tokens": SAMPLING.max_new_tokens, "seed": cell.seed & 0x7FFFFFFF,
    }).encode()  # fmt: skip
    head = ("POST /v1/chat/completions HTTP/1.1", "Host: 127.0.0.1", f"Content-Length: {len(body)}", "", "")
    return "\r\n".join(head).encode() + body


def length_in(head: bytes) -> int:
    """The Content-Length of a reply's head, in bytes."""
    return int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])


ARMS = {"bare": ask_bare, "client": ask_client, "sdk": ask_sdk, "grid": ask_grid}

if __name__ == "__main__":
    main()
