"""The resource limits that a process in the sandbox sets on itself and its children before it receives a program."""

import contextlib
import json
import os
import resource
import socket
import sys
from collections.abc import Iterator

from permix.verification.guest.protocol import FRAME_READY, Channel

SANDBOXED_LIMITS_PATH = "/box/permix/verification/guest/limits.py"

MAX_STACK_BYTES = 64 << 20

MAX_OPEN_FILES = 64

N_SANDBOX_PROCESSES = 2  # the sandbox's own processes: its init and this one


def confine_process() -> tuple[Channel, dict[str, int]]:
    """Set the limits, and return the channel to the outside and the limits. The standard streams become /dev/null.

    Raises SystemExit outside the sandbox.
    """
    if __file__ != SANDBOXED_LIMITS_PATH:  # outside, `kill_other_processes` would end every process of the user
        raise SystemExit("this script runs only in the sandbox")
    bounds: dict[str, int] = json.loads(sys.argv[1])
    os.closerange(3, MAX_OPEN_FILES)  # one of them is the pipe with the filter of system calls
    channel = Channel(socket.socket(fileno=os.dup(0)))
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    os.close(null)
    _set_limit(resource.RLIMIT_CORE, 0)
    _set_limit(resource.RLIMIT_NPROC, bounds["processes"] + N_SANDBOX_PROCESSES)
    _set_limit(resource.RLIMIT_AS, bounds["memory_bytes"])
    _set_limit(resource.RLIMIT_NOFILE, MAX_OPEN_FILES)
    _set_limit(resource.RLIMIT_STACK, MAX_STACK_BYTES)
    channel.send(FRAME_READY)
    return channel, bounds


def limit_file_size(max_bytes: int) -> None:
    """Limit the size of files that this process writes. Set after the other limits, since a test's input may be longer."""
    _set_limit(resource.RLIMIT_FSIZE, max_bytes)


def limit_cpu_time(seconds: int, is_permanent: bool = False) -> None:
    """Let the kernel end this process after `seconds` of CPU time from now. A permanent limit can never be raised again."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    soft = int(used.ru_utime + used.ru_stime) + seconds
    hard = soft + 1 if is_permanent else resource.getrlimit(resource.RLIMIT_CPU)[1]
    resource.setrlimit(resource.RLIMIT_CPU, (soft, hard))


@contextlib.contextmanager
def unlimited_integer_digits() -> Iterator[None]:
    """Convert integers of any length to and from text in the block. The program itself keeps Python's usual limit."""
    usual = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        yield
    finally:
        sys.set_int_max_str_digits(usual)


def _set_limit(resource_id: int, limit: int) -> None:
    hard = resource.getrlimit(resource_id)[1]
    limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
    resource.setrlimit(resource_id, (limit, limit))
