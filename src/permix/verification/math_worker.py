"""The symbolic worker, both ends of it: `SymbolicWorker` in the parent, and the script that it runs.

One comparison at a time, inside hard bounds, over a socket that is the script's file descriptor 0. The script is started by
path, so it must import nothing from permix and needs no `__main__` guard in the user's code.
Contract: it writes one line `{"ready": true}`, then for each request line `{"answer": str, "gold": str}` one reply line:
`{"correct": bool, "retire": bool}` (`retire`: replace me, I have grown), or `{"error": str}` when the engine itself failed.
It ends by exit status EXIT_MEMORY when the memory bound was met, by SIGALRM when the kernel's timer ran out, and by itself when
its parent is gone. Linux and macOS; on macOS the kernel does not enforce the memory bound.

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

TIMER_GRACE_SECONDS = 1.0  # the parent kills at the bound itself; this timer is for a worker whose parent died meanwhile

PARENT_POLL_SECONDS = 5.0

WORKER_START_SECONDS = 120.0  # for importing sympy on a busy machine; not part of a check's bound


class WorkerLostError(RuntimeError):
    """The worker is gone or silent; the message says which bound it met."""


def _stop_worker(process: "subprocess.Popen[bytes]", channel: socket.socket, owner_pid: int) -> None:
    """Stop a worker. In a fork of its owner only the inherited end of the socket is closed: the worker is not ours."""
    channel.close()
    if os.getpid() == owner_pid:
        process.kill()
        process.wait()


class SymbolicWorker:
    """The parent's end of one worker process, for one thread at a time. `close()` ends it; so do garbage collection and exit.

    seconds: wall time for one `check`. memory_bytes: the process's address space. Raises WorkerLostError if it cannot start.
    """

    def __init__(self, seconds: float, memory_bytes: int) -> None:
        self._timeout_seconds, self._memory_bytes = seconds, memory_bytes
        self._channel, theirs = socket.socketpair()
        # -P: the script's folder holds a types.py that must not shadow the standard library's.
        command = [sys.executable, "-P", os.path.abspath(__file__), str(memory_bytes), str(seconds), str(os.getpid())]
        with theirs:
            self._process = subprocess.Popen(
                command,
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for the parent
            )
        self.close = weakref.finalize(self, _stop_worker, self._process, self._channel, os.getpid())
        ready = self._request(b"", WORKER_START_SECONDS, "start of the symbolic worker")
        if "error" in ready:
            raise WorkerLostError(str(ready["error"]))

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def check(self, answer: str, gold: str) -> dict[str, Any]:
        """The worker's reply. Raises WorkerLostError; the worker is then of no more use."""
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
            return f"met the memory bound of {self._memory_bytes >> 20} MiB"
        if status == -signal.SIGALRM:
            return f"exceeded the time bound of {self._timeout_seconds:g} s"
        return f"died with status {status} (memory bound {self._memory_bytes >> 20} MiB)"


def peak_memory_bytes() -> int:
    """Peak resident memory of this process; 0 where /proc is missing. (ru_maxrss will not do: it survives exec.)"""
    try:
        with open("/proc/self/status") as status:
            lines = [line for line in status if line.startswith("VmHWM:")]
    except OSError:
        return 0
    return int(lines[0].split()[1]) * 1024 if lines else 0


def parse_math_answer(text: str) -> list[Any]:
    """math-verify's reading of one answer; empty where it cannot be read as mathematics."""
    from math_verify import parse

    found: list[Any] = parse(f"${text}$", parsing_timeout=None)
    return found


def compare_symbolically(answer: str, gold: str) -> dict[str, object]:
    """Whether `answer` equals `gold`. An unreadable answer is wrong; a comparison that raises is the engine's own failure."""
    from math_verify import verify

    target, reference = parse_math_answer(answer), parse_math_answer(gold)
    try:
        # The order matters to math-verify: gold first.
        return {"correct": bool(verify(reference, target, timeout_seconds=None, raise_on_error=True))}
    except MemoryError:
        os._exit(EXIT_MEMORY)
    except Exception as error:  # the worker's boundary: sympy may raise anything at all
        return {"error": f"symbolic engine: {type(error).__name__}: {error}"[:300]}


def compare_within_limits(answer: str, gold: str, memory_bytes: int, seconds: float) -> dict[str, object]:
    """`compare_symbolically` under the kernel's timer, and under a memory bound that math-verify cannot swallow."""
    signal.setitimer(signal.ITIMER_REAL, seconds + TIMER_GRACE_SECONDS)
    reply = compare_symbolically(answer, gold)
    signal.setitimer(signal.ITIMER_REAL, 0)
    peak = peak_memory_bytes()
    # math-verify turns a MemoryError within into "not equal". Containers double as they grow, so whoever met the bound used half
    # of it; and a worker that has slowly grown to a quarter is replaced, so only a single check can go from there to half.
    if reply.get("correct") is not True and peak > memory_bytes // 2:
        os._exit(EXIT_MEMORY)
    return {**reply, "retire": peak > memory_bytes // 4}


def read_requests(channel: socket.socket, parent_pid: int) -> Iterator[dict[str, str]]:
    """Request lines until the parent closes its end, or is gone while a fork of it still holds that end open."""
    reader = channel.makefile("rb")
    while os.getppid() == parent_pid:
        if select.select([channel], [], [], PARENT_POLL_SECONDS)[0]:
            line = reader.readline()
            if not line:
                return
            yield json.loads(line)


def send_reply(channel: socket.socket, reply: dict[str, object]) -> None:
    channel.sendall(json.dumps(reply).encode() + b"\n")


def serve_comparisons(memory_bytes: int, seconds: float, parent_pid: int) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
    logging.disable(logging.CRITICAL)
    channel = socket.socket(fileno=0)
    try:
        compare_symbolically("1+x", "x+1")  # imports and warms the engine before any clock runs
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
        sys.exit(1)  # the parent closed the socket while a reply was on its way
