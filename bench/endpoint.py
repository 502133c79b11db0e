"""Wall time and CPU seconds that permix's HTTP client adds to an endpoint's latency, with many requests in flight.

    python -m bench.endpoint [--requests 5000] [--in-flight 256] [--latency-s 4 2 1] [--rounds 3] [--arms bare client sdk grid]

A server on 127.0.0.1 (`bench.server`), in a process of its own, answers each request after a known latency. The *ideal* wall time
is when all requests would be answered if nothing but these latencies took time; the *overhead* is the measured wall time less the
ideal, as a share of the ideal. Each arm sends the same requests, one arm after the other in each round:

- `bare`: plain asyncio sockets, no response is parsed; this is the limit that the server and the machine set;
- `client`: `permix.inference.openai`;
- `sdk`: the same with the transport of the openai package (extra `bench`) in place of `permix.inference.http_client`;
- `grid`: `permix stability` up to its measures, each answer verified and recorded.

CPU seconds are those of the arms' process and its children, user and system; those of the server are not counted. One JSON line a
figure.
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
from bench.process import Worker
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
    requested_cells = cells(options.requests)
    for latency_s in options.latency_s:
        with serving(latency_s) as port:
            measure(options, requested_cells, latency_s, port)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--requests", type=int, default=5000, help="requests that each arm sends in a round")
    parser.add_argument("--in-flight", type=int, default=256, help="requests that may be in flight at the same time")
    parser.add_argument(
        "--latency-s",
        type=float,
        nargs="+",
        default=[4.0, 2.0, 1.0],
        help="mean latencies of the server, in seconds; each is measured",
    )
    parser.add_argument("--rounds", type=int, default=3, help="how often each arm sends all requests")
    parser.add_argument(
        "--arms", nargs="+", choices=list(ARMS), default=list(ARMS), help="the arms to measure, in their order within a round"
    )
    return parser


@contextlib.contextmanager
def serving(latency_s: float) -> Iterator[int]:
    """Run a server while the block runs, and yield its port."""
    server = Worker(serve, Setup(latency_s), device="cpu")
    try:
        yield server.ready
    finally:
        server.close()


def cells(count: int) -> list[Cell]:
    """Return `count` cells: questions of the arithmetic task under held-out personas."""
    personas = select_personas(PersonasConfig()).personas
    task, questions = load_questions(TaskConfig(n=math.ceil(count / len(personas))))
    return build_grid(personas, questions, PromptFormat(task.prompt, "you_are", empty_system_prompt=False), samples=1, seed=0)[
        :count
    ]


class RoundTime(NamedTuple):
    """Wall and CPU seconds of one arm in one round."""

    wall_s: float
    cpu_s: float


def measure(options: argparse.Namespace, cells: Sequence[Cell], latency_s: float, port: int) -> None:
    """Let the arms send the requests of these cells in turn, and print the figures."""
    config = ModelConfig(
        name=NAME, backend="openai", base_url=f"http://127.0.0.1:{port}/v1", concurrency=options.in_flight, retries=0
    )
    ideal_s = ideal_wall([latency_of(cell.seed, latency_s) for cell in cells], options.in_flight)
    rounds_by_arm: dict[str, list[RoundTime]] = {name: [] for name in options.arms}
    for _ in range(options.rounds):
        for name in options.arms:
            rounds_by_arm[name].append(run_timed(ARMS[name], config, port, cells))
    settings = {"requests": len(cells), "in_flight": options.in_flight, "latency_s": latency_s}
    show("ideal_wall_seconds", ideal_s, **settings)
    for name, rounds in rounds_by_arm.items():
        show_spread(f"overhead_{name}", [overhead(spent.wall_s, ideal_s) for spent in rounds], **settings)
        show_spread(
            f"cpu_seconds_per_1000_requests_{name}",
            [1000 * spent.cpu_s / len(cells) for spent in rounds],
            **settings,
        )
        show_spread(f"requests_per_second_{name}", [len(cells) / spent.wall_s for spent in rounds], **settings)


def run_timed(
    arm: Callable[[ModelConfig, int, Sequence[Cell]], None], config: ModelConfig, port: int, cells: Sequence[Cell]
) -> RoundTime:
    """Return the wall and CPU seconds that an arm needs for the requests of these cells."""
    wall_start, cpu_start = time.perf_counter(), cpu_seconds()
    arm(config, port, cells)
    return RoundTime(time.perf_counter() - wall_start, cpu_seconds() - cpu_start)


def ideal_wall(latencies_s: Sequence[float], in_flight: int) -> float:
    """Return the wall seconds until all requests are answered if each starts, in order, as soon as fewer than `in_flight` run."""
    free_at = [0.0] * in_flight
    for latency_s in latencies_s:
        heapq.heapreplace(free_at, free_at[0] + latency_s)
    return max(free_at)


def overhead(wall_s: float, ideal_s: float) -> float:
    """Return the wall time above the ideal, as a share of the ideal."""
    return (wall_s - ideal_s) / ideal_s


def run_client(config: ModelConfig, _: int, cells: Sequence[Cell]) -> None:
    """Send the requests with permix's own transport."""
    run_model(OpenAIModel(config), cells)


def run_sdk(config: ModelConfig, _: int, cells: Sequence[Cell]) -> None:
    """Send the requests with the transport of the openai package."""
    model = OpenAIModel(config)
    model.endpoints = tuple(SdkEndpoint(config, url, backoff_s=0.5) for url in config.base_urls)
    run_model(model, cells)


class SdkEndpoint(Endpoint):
    """An endpoint whose client is the openai package's."""

    def make_client(self) -> HttpClient:
        return SdkClient(self.base_url)


class SdkClient(HttpClient):
    """Sends requests through several clients of the openai package, each with at most `REQUESTS_PER_CLIENT` in flight.

    One client for all would be slow: for each request it searches all of its connections several times.
    """

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
            response = await client.post(path, cast_to=openai.HttpxBinaryResponseContent, body=body)
            return response.content  # type: ignore[no-any-return]
        finally:
            self._clients[client] -= 1

    def _client(self) -> Any:
        client = next((each for each, n in self._clients.items() if n < self.REQUESTS_PER_CLIENT), None)
        if client is None:
            client = openai.AsyncOpenAI(base_url=self._base_url, api_key="none", max_retries=0, timeout=None)
            self._clients[client] = 0
        return client


def run_model(model: OpenAIModel, cells: Sequence[Cell]) -> None:
    """Let a model answer the cells. Raises SystemExit if a request fails."""
    requests = [Request(cell.messages, cell.seed) for cell in cells]
    for answer in model.generate(requests, SAMPLING):
        if not isinstance(answer.result, Completion):
            raise SystemExit(f"a request failed: {answer.result}")


def run_grid(config: ModelConfig, _: int, cells: Sequence[Cell]) -> None:
    """Answer, verify and record the cells in a run. Raises SystemExit if a cell has no score."""
    task = TASKS["arithmetic"]
    with tempfile.TemporaryDirectory() as scratch:
        stage = StabilityConfig(out=Path(scratch) / "run", model=config)
        with RunDir.open(stage.out, stage, {"model": config.name}, cells) as run:
            pending = run_cells(
                OpenAIModel(config),
                cells,
                SAMPLING,
                run,
                partial(verify_completion, task),
                "grid",
            )
    if pending:
        raise SystemExit(f"{pending} cells have no score")


def run_bare(config: ModelConfig, port: int, cells: Sequence[Cell]) -> None:
    """Send the requests over as many connections as may be in flight, one request at a time on each."""
    remaining = iter(cells)

    async def run_connection() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for cell in remaining:
            writer.write(encode_request(cell))
            head = await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(length_in(head))
        writer.close()

    async def run_all() -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(config.concurrency or 1):
                group.create_task(run_connection())

    asyncio.run(run_all())


def encode_request(cell: Cell) -> bytes:
    """Return the HTTP request of a cell, head and body."""
    body = json.dumps({
        "model": NAME, "messages": cell.messages, "temperature": SAMPLING.temperature, "top_p": SAMPLING.top_p,
        "max_tokens": SAMPLING.max_new_tokens, "seed": cell.seed & 0x7FFFFFFF,
    }).encode()  # fmt: skip
    head = ("POST /v1/chat/completions HTTP/1.1", "Host: 127.0.0.1", f"Content-Length: {len(body)}", "", "")
    return "\r\n".join(head).encode() + body


def length_in(head: bytes) -> int:
    """Return the Content-Length of a response's head, in bytes."""
    return int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])


ARMS = {"bare": run_bare, "client": run_client, "sdk": run_sdk, "grid": run_grid}

if __name__ == "__main__":
    main()
