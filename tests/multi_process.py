"""Several processes that work as one, started as torchrun starts them: named in their environment, meeting at a port."""

import contextlib
import multiprocessing
import os
import random
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from permix import cli
from tests.killable import PRELOAD, Moment, arm, float32_everywhere

PATIENCE_S = 90


class Ended(NamedTuple):
    """How one process ended: its exit code (negative: the signal), and what it printed."""

    code: int | None
    said: str


def team(folder: Path, *argv: str, size: int = 2, dies: Mapping[int, Moment] | None = None) -> list[Ended]:
    """Run `permix ARGV` in `size` processes, of which `dies` kills some; in one it is as without a launcher."""
    return each(folder, command, argv, dict(dies or {}), size=size)


def each(
    folder: Path, act: Callable[..., None], *arguments: Any, size: int = 2, settings: Mapping[str, str] | None = None
) -> list[Ended]:
    """Call `act(*arguments)`, a module's function, in `size` processes; `settings` are more of their environment."""
    with started(folder, act, arguments, size, settings or {}) as processes:
        return ended(folder, processes)


@contextmanager
def started(
    folder: Path, act: Callable[..., None], arguments: tuple[Any, ...], size: int, settings: Mapping[str, str]
) -> Iterator[list[Any]]:
    """The processes, running. None of them outlives the block."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    folder.mkdir(parents=True, exist_ok=True)
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    processes = [
        context.Process(target=_one, args=(folder / f"said-{rank}", _named(rank, size, place) | dict(settings), act, arguments))
        for rank in range(size)
    ]
    for process in processes:
        process.start()
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.join()


def ended(folder: Path, processes: list[Any]) -> list[Ended]:
    """Wait for all of them, but not for ever."""
    until = time.monotonic() + PATIENCE_S
    for process in processes:
        process.join(timeout=max(until - time.monotonic(), 0))
    return [Ended(process.exitcode, (folder / f"said-{rank}").read_text()) for rank, process in enumerate(processes)]


def _named(rank: int, size: int, place: Mapping[str, str]) -> dict[str, str]:
    """What torchrun says to one of several processes; a process alone is told nothing. All of them work on the CPU."""
    if size == 1:
        return {"CUDA_VISIBLE_DEVICES": ""}
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
    return {name: str(value) for name, value in names.items()} | {"CUDA_VISIBLE_DEVICES": "", **place}


def free_port() -> str:
    """A port that no server of another test gets before it is used: below those that the system gives to port 0."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    for port in random.sample(range(20_000 + 100 * worker, 20_100 + 100 * worker), 100):
        with socket.socket() as one, contextlib.suppress(OSError):
            one.bind(("127.0.0.1", port))
            return str(port)
    raise AssertionError("100 ports are taken")


def _one(said: Path, environment: Mapping[str, str], act: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    os.environ.update(environment)
    with said.open("w") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115 - for the process's life
    code = 1
    try:
        act(*arguments)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def command(argv: tuple[str, ...], dies: Mapping[int, Moment]) -> None:
    float32_everywhere()
    moment = dies.get(int(os.environ.get("RANK", "0")))
    if moment is not None:
        arm(moment)
    cli.main(argv)
