"""The bounds that a process inside the sandbox puts on itself, and on all that it starts, before it reads what to run."""

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
    """The channel to the outside, and the bounds that hold from now on. The standard streams lead nowhere afterwards."""
    if __file__ != SANDBOXED_LIMITS_PATH:  # outside, ending all that a program left behind would end all that its user runs
        raise SystemExit("this runs in the sandbox alone")
    bounds: dict[str, int] = json.loads(sys.argv[1])
    os.closerange(3, MAX_OPEN_FILES)  # the filter of system calls was read from one of them
    channel = Channel(socket.socket(fileno=os.dup(0)))
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)
    os.close(nowhere)
    _set_limit(resource.RLIMIT_CORE, 0)
    _set_limit(resource.RLIMIT_NPROC, bounds["processes"] + N_SANDBOX_PROCESSES)
    _set_limit(resource.RLIMIT_AS, bounds["memory_bytes"])
    _set_limit(resource.RLIMIT_NOFILE, MAX_OPEN_FILES)
    _set_limit(resource.RLIMIT_STACK, MAX_STACK_BYTES)
    channel.send(FRAME_READY)
    return channel, bounds


def limit_file_size(max_bytes: int) -> None:
    """From now on no file of this process may be longer. Not among the other bounds: a test's input may be."""
    _set_limit(resource.RLIMIT_FSIZE, max_bytes)


def limit_cpu_time(seconds: int, is_permanent: bool = False) -> None:
    """So much CPU time from now on, for this process; then the kernel ends it. `is_permanent`: this can never be raised."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    soft = int(used.ru_utime + used.ru_stime) + seconds
    hard = soft + 1 if is_permanent else resource.getrlimit(resource.RLIMIT_CPU)[1]
    resource.setrlimit(resource.RLIMIT_CPU, (soft, hard))


@contextlib.contextmanager
def unlimited_integer_digits() -> Iterator[None]:
    """Numbers of any length are written and read inside; for the program Python's own limit stays what it is."""
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
