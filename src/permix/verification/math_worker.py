"""The symbolic worker: `SymbolicWorker` for the parent process, and the script that the worker process runs.

The worker compares one pair of answers at a time, within bounds of time and memory. It talks over a socket, its file descriptor
0. It is started by path, so it must import nothing from permix, and the user's code needs no `__main__` guard.

Protocol: the worker writes a line `{"ready": true}`, then for each request line `{"answer": str, "gold": str}` one reply line:
`{"correct": bool, "retire": bool}` (`retire`: its memory has grown, replace it), or `{"error": str}` if the engine failed. It
ends with status EXIT_MEMORY at the memory bound, by SIGALRM when the kernel's timer runs out, and when its parent is gone. It
runs on Linux and macOS; on macOS the kernel does not enforce the memory bound.

Usage: math_worker.py MEMORY_BYTES SECONDS PARENT_PID
"""

import json
import logging
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import time
import weakref
from collections.abc import Iterator
from typing import Any

EXIT_MEMORY = 77

TIMER_GRACE_SECONDS = 1.0  # the parent kills the worker at the bound; the later timer is for a worker whose parent has died

PARENT_POLL_SECONDS = 5.0

WORKER_START_SECONDS = 120.0  # time to import sympy on a busy machine; not part of the time of a check


class WorkerLostError(RuntimeError):
    """The worker has ended or does not reply; the message names the bound that it reached."""


def _stop_worker(process: "subprocess.Popen[bytes]", channel: socket.socket, owner_pid: int) -> None:
    """Stop a worker. A fork of its owner only closes its copy of the socket, since the worker is not its own."""
    channel.close()
    if os.getpid() == owner_pid:
        process.kill()
        process.wait()


class SymbolicWorker:
    """A worker process, for one thread at a time. `close()` ends it; so do garbage collection and the end of this process.

    seconds: wall time for one `check`. memory_bytes: address space of the process. Raises WorkerLostError if it cannot start.
    """

    def __init__(self, seconds: float, memory_bytes: int) -> None:
        self._timeout_seconds, self._memory_bytes = seconds, memory_bytes
        self._channel, theirs = socket.socketpair()
        # -P keeps the script's folder off sys.path: no file in it may shadow a module of the standard library.
        command = [sys.executable, "-P", os.path.abspath(__file__), str(memory_bytes), str(seconds), str(os.getpid())]
        with theirs:
            self._process = subprocess.Popen(
                command,
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # so that Ctrl-C reaches only the parent
            )
        self.close = weakref.finalize(self, _stop_worker, self._process, self._channel, os.getpid())
        ready = self._request(b"", WORKER_START_SECONDS, "start of the symbolic worker")
        if "error" in ready:
            raise WorkerLostError(str(ready["error"]))

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def check(self, answer: str, gold: str) -> dict[str, Any]:
        """The worker's reply. Raises WorkerLostError; the worker must then be closed."""
        line = json.dumps({"answer": answer, "gold": gold}).encode() + b"\n"
        return self._request(line, self._timeout_seconds, "symbolic check")

    def _request(self, line: bytes, seconds: float, operation: str) -> dict[str, Any]:
        deadline, got = time.monotonic() + seconds, b""
        try:
            self._channel.settimeout(seconds)
            self._channel.sendall(line)
            while not got.endswith(b"\n"):
                self._channel.settimeout(max(deadline - time.monotonic(), 1e-3))
                chunk = self._channel.recv(65536)
                if not chunk:
                    raise ConnectionError
                got += chunk
        except TimeoutError:
            raise WorkerLostError(f"{operation} exceeded the time bound of {seconds:g} s") from None
        except OSError:
            raise WorkerLostError(f"{operation} {self._exit_cause()}") from None
        reply: dict[str, Any] = json.loads(got)
        return reply

    def _exit_cause(self) -> str:
        try:
            status = self._process.wait(TIMER_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            return "lost its connection"
        if status == EXIT_MEMORY:
            return f"reached the memory bound of {self._memory_bytes >> 20} MiB"
        if status == -signal.SIGALRM:
            return f"exceeded the time bound of {self._timeout_seconds:g} s"
        return f"died with status {status} (memory bound {self._memory_bytes >> 20} MiB)"


def peak_memory_bytes() -> int:
    """Peak resident memory of this process in bytes; 0 without /proc. (ru_maxrss is wrong here: exec does not reset it.)"""
    try:
        with open("/proc/self/status") as status:
            lines = [line for line in status if line.startswith("VmHWM:")]
    except OSError:
        return 0
    return int(lines[0].split()[1]) * 1024 if lines else 0


def parse_math_answer(text: str) -> list[Any]:
    """Parse one answer with math-verify; empty if it is not mathematics."""
    from math_verify import parse

    found: list[Any] = parse(f"${text}$", parsing_timeout=None)
    return found


def compare_symbolically(answer: str, gold: str) -> dict[str, object]:
    """Whether `answer` equals `gold`. An answer that cannot be parsed is wrong; an exception is a failure of the engine."""
    from math_verify import verify

    target, reference = parse_math_answer(answer), parse_math_answer(gold)
    try:
        # math-verify's comparison is not symmetric: the gold comes first.
        return {"correct": bool(verify(reference, target, timeout_seconds=None, raise_on_error=True))}
    except MemoryError:
        os._exit(EXIT_MEMORY)
    except Exception as error:  # the worker's boundary: sympy may raise any exception
        return {"error": f"symbolic engine: {type(error).__name__}: {error}"[:300]}


def compare_within_limits(answer: str, gold: str, memory_bytes: int, seconds: float) -> dict[str, object]:
    """`compare_symbolically` with a timer of the kernel, and with a memory bound that math-verify cannot hide."""
    signal.setitimer(signal.ITIMER_REAL, seconds + TIMER_GRACE_SECONDS)
    reply = compare_symbolically(answer, gold)
    signal.setitimer(signal.ITIMER_REAL, 0)
    peak = peak_memory_bytes()
    # math-verify turns a MemoryError inside it into "not equal". Containers double as they grow, so a check that reached the
    # bound used at least half of it. A worker that has slowly grown to a quarter is replaced, so that only a single check can
    # reach half.
    if reply.get("correct") is not True and peak > memory_bytes // 2:
        os._exit(EXIT_MEMORY)
    return {**reply, "retire": peak > memory_bytes // 4}


def read_requests(channel: socket.socket, parent_pid: int) -> Iterator[dict[str, str]]:
    """Yield requests until the parent closes its end or dies; a fork of the parent may keep the end open after its death."""
    reader = channel.makefile("rb")
    while os.getppid() == parent_pid:
        if select.select([channel], [], [], PARENT_POLL_SECONDS)[0]:
            line = reader.readline()
            if not line:
                return
            yield json.loads(line)


def send_reply(channel: socket.socket, reply: dict[str, object]) -> None:
    """Send one reply line."""
    channel.sendall(json.dumps(reply).encode() + b"\n")


def serve_comparisons(memory_bytes: int, seconds: float, parent_pid: int) -> None:
    """Set the limits, load the engine and answer requests until the parent is gone."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
    logging.disable(logging.CRITICAL)
    channel = socket.socket(fileno=0)
    try:
        compare_symbolically("1+x", "x+1")  # imports the engine before a check's time starts
    except ImportError as error:
        send_reply(channel, {"error": f"symbolic engine does not import: {error}"})
        return
    send_reply(channel, {"ready": True})
    for request in read_requests(channel, parent_pid):
        send_reply(channel, compare_within_limits(request["answer"], request["gold"], memory_bytes, seconds))


if __name__ == "__main__":
    try:
        serve_comparisons(int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]))
    except MemoryError:
        os._exit(EXIT_MEMORY)
    except OSError:
        sys.exit(1)  # the parent closed the socket before the reply was sent
