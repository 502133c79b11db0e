"""Run directories written by hand, and a process that holds one of them."""

import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from permix.dashboard.folder import RunFolder
from permix.dashboard.run_monitor import RunMonitor, read_locks
from permix.dashboard.server import ViewerServer
from permix.dashboard.try_it import TryIt
from permix.storage.run_dir import RUN_FORMAT
from permix.types import Cell
from tests.sample_runs import answered

PERSONAS, QUESTIONS = ("clerk", "troll"), ("q1", "q2", "q3")
COMMAND = ["permix", "stability", "mine.toml"]


def whole() -> list[Cell]:
    """Two personas and none × three questions: nine cells, of which the troll's are wrong."""
    return [
        answered(question, persona_id=persona, correct=persona != "troll", text="5" if persona == "troll" else "12")
        for persona in (None, *PERSONAS)
        for question in QUESTIONS
    ]


def line(cell: Cell) -> bytes:
    return (cell.model_dump_json() + "\n").encode()


def put(run: Path, name: str, value: Any) -> None:
    run.mkdir(parents=True, exist_ok=True)
    (run / name).write_text(json.dumps(value))


def stability_run(run: Path, cells: Sequence[Cell] = (), *, label: str = "base", ended: bool = False, **config: Any) -> Path:
    """A run of `whole()` that has come as far as `cells`."""
    put(run, "config.json", {"stage": "stability", "label": label, "model": {"name": "m"}, "seed": 0, "resamples": 100} | config)
    put(run, "provenance.json", {"format": RUN_FORMAT, "command": COMMAND})
    put(run, "grid.json", {"persona_ids": PERSONAS, "question_ids": QUESTIONS, "samples": 1})
    (run / "records.jsonl").write_bytes(b"".join(map(line, cells)))
    (run / ".lock").write_text("0")
    if ended:
        put(run, "metrics.json", {})
    return run


def append(run: Path, *cells: Cell) -> None:
    with (run / "records.jsonl").open("ab") as file:
        file.write(b"".join(map(line, cells)))


def looked(watched: RunMonitor, now: float = 0.0) -> dict[str, Any]:
    """What the next look, at second `now`, shows."""
    watched.poll(read_locks(), now, wall_time=now)
    return watched.summary()


@contextlib.contextmanager
def held(run: Path) -> Iterator[int]:
    """Another process holds the run as a stage does, and lets go, as a kill would, when the block ends; its number."""
    script = (
        "import sys, os, pathlib; from permix.storage.workers import lock_run\n"
        "with lock_run(pathlib.Path(sys.argv[1]), None, lambda alone: None): print(os.getpid(), flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(run)], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline())
        finally:
            process.kill()


@contextlib.contextmanager
def serving(root: Path, *, with_try_it: bool = False) -> Iterator[ViewerServer]:
    """A server whose folder has been looked at once; the threads that watch are not started."""
    folder = RunFolder(root)
    folder.rescan()
    folder.poll()
    server = ViewerServer(folder, 0, TryIt(folder) if with_try_it else None)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
        if server.try_it is not None:
            server.try_it.stop()
