"""A worker process of a benchmark: it answers one request at a time, so that its CPU time can be measured apart from others'."""

import contextlib
import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any


class Worker:
    """Runs `work(setup, connection)` in a process of its own.

    `work` is a function at the top level of a module. It sends one message when it is ready (`ready` holds it), then one reply to
    each request, and returns when it receives None. Raises SystemExit if the process ends before it has replied.
    """

    def __init__(self, work: Callable[[Any, Connection], None], setup: Any, *, device: str) -> None:
        # A forked process starts sooner, but it cannot use a GPU that its parent has initialized.
        context: Any = multiprocessing.get_context("spawn" if device == "cuda" else "forkserver")
        if device != "cuda":
            context.set_forkserver_preload([work.__module__])
        self._connection, far_end = context.Pipe()
        self._process = context.Process(target=work, args=(setup, far_end), daemon=True)
        self._process.start()
        far_end.close()
        self.ready = self._receive()

    def call(self, request: Any) -> Any:
        """Send a request and return the reply."""
        self._connection.send(request)
        return self._receive()

    def close(self) -> None:
        """Send None, which ends the work, and wait for the process."""
        with contextlib.suppress(OSError):
            self._connection.send(None)
        self._process.join()

    def _receive(self) -> Any:
        try:
            return self._connection.recv()
        except EOFError:
            raise SystemExit("a worker process of the benchmark ended before it replied") from None
