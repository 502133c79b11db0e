"""Run an untrusted program on one test after another. This process can be trusted only until the program's first line runs.

The JOB frame has JSON of `prelude` (run before the program, in its namespace), `program` and `function`. The reply is RESULT if
the program can be tested, else PROGRAM_FAILED. Each CALL frame after it is one test, with the same two kinds of reply:

    without a function    The payload is standard input, and the result is the program's output. Each test runs in a process of
                          its own, forked before the program's first line; processes that it leaves behind are killed.
    with a function       The payload is [arguments, keyword arguments], and the result is the value of the function, or of the
                          method of that name of a class Solution. The program's body is run once, and not as `__main__`.

The program can do anything here, also to this process and its channel. So a result is only the program's claim, and it is
compared outside, where the program has no access.
"""

import builtins
import contextlib
import gc
import json
import os
import signal
import sys
from collections.abc import Callable, Mapping
from types import CodeType, ModuleType
from typing import Any

from permix.verification.guest.limits import confine_process, limit_cpu_time, limit_file_size, unlimited_integer_digits
from permix.verification.guest.protocol import FRAME_CALL, FRAME_PROGRAM_FAILED, FRAME_RESULT, Channel, decode_value, encode_value


def serve_program() -> None:
    """Receive one job, load the program and serve its tests until the channel closes."""
    channel, bounds = confine_process()
    limit_cpu_time(bounds["cpu_seconds"])
    job = json.loads(channel.receive().payload)
    try:
        module = make_program_module("__main__" if job["function"] is None else "program", job["prelude"])
        code = compile(job["program"], "program.py", "exec")
        call = None if job["function"] is None else load_function(code, vars(module), job["function"], bounds)
    except BaseException as error:  # the program's boundary: it may raise any exception
        channel.send(FRAME_PROGRAM_FAILED, exception_message(error))
        return
    channel.send(FRAME_RESULT)
    if call is None:
        serve_stdin_runs(channel, code, vars(module), bounds)
    else:
        serve_calls(channel, call, bounds)


def make_program_module(name: str, prelude: str) -> ModuleType:
    """The module that the program runs as. It adds `exit` and `quit`, since Python's `site`, which adds them, is missing here."""
    vars(builtins).update(exit=sys.exit, quit=sys.exit)
    sys.argv = ["program.py"]
    module = sys.modules[name] = ModuleType(name)
    exec(compile(prelude, "prelude.py", "exec"), vars(module))
    return module


def load_function(code: CodeType, namespace: dict[str, Any], function: str, limits: Mapping[str, int]) -> Callable[..., Any]:
    limit_file_size(limits["output_bytes"])
    exec(code, namespace)
    call: Callable[..., Any] = namespace[function] if function in namespace else getattr(namespace["Solution"](), function)
    return call


def exception_message(error: BaseException) -> bytes:
    return f"raised {type(error).__name__}".encode()


def serve_calls(channel: Channel, call: Callable[..., Any], limits: Mapping[str, int]) -> None:
    """Answer each CALL frame with the function's value."""
    while (request := channel.receive()).kind == FRAME_CALL:
        limit_cpu_time(limits["cpu_seconds"])
        channel.send(*call_result(call, request.payload))


def call_result(call: Callable[..., Any], payload: bytes) -> tuple[bytes, bytes]:
    """Call the function and return the reply: (kind of frame, payload)."""
    try:
        with unlimited_integer_digits():
            arguments, named = decode_value(payload)
        value = call(*arguments, **named)
        with unlimited_integer_digits():
            return FRAME_RESULT, encode_value(value)
    except BaseException as error:  # the program's boundary
        return FRAME_PROGRAM_FAILED, exception_message(error)


def serve_stdin_runs(channel: Channel, code: CodeType, namespace: dict[str, Any], limits: Mapping[str, int]) -> None:
    """Answer each CALL frame with the program's output; each runs in a forked child."""
    gc.freeze()  # children skip the existing objects in their garbage collection, which halves the time of a test
    while (request := channel.receive()).kind == FRAME_CALL:
        stdin_fd, stdout_fd = (os.open("/tmp", os.O_TMPFILE | os.O_RDWR) for _ in range(2))
        with open(stdin_fd, "wb", closefd=False) as file:
            file.write(request.payload)
        os.lseek(stdin_fd, 0, os.SEEK_SET)
        if not (child := os.fork()):
            channel.close()
            run_program_in_child(code, namespace, stdin_fd, stdout_fd, limits)
            return  # the child leaves `serve_program` too, so Python waits for threads and flushes streams as for any program
        _, status = os.waitpid(child, 0)
        kill_other_processes()
        channel.send(*child_result(os.waitstatus_to_exitcode(status), stdout_fd, limits["output_bytes"]))
        os.close(stdin_fd)
        os.close(stdout_fd)


def run_program_in_child(
    code: CodeType, namespace: dict[str, Any], stdin_fd: int, stdout_fd: int, limits: Mapping[str, int]
) -> None:
    limit_file_size(limits["output_bytes"])
    limit_cpu_time(limits["cpu_seconds"], is_permanent=True)
    for descriptor, stream in ((stdin_fd, 0), (stdout_fd, 1)):
        os.dup2(descriptor, stream)
        os.close(descriptor)
    sys.stdin = open(0, encoding="utf-8", errors="surrogateescape")  # noqa: SIM115 - open until the program ends
    sys.stdout = open(1, "w", encoding="utf-8", errors="surrogateescape")  # noqa: SIM115
    with contextlib.suppress(SystemExit):  # with any status: only the output counts
        exec(code, namespace)


def kill_other_processes() -> None:
    """Kill every process that the program left behind. Those that are not our children are reaped by the sandbox's init."""
    try:
        os.kill(-1, signal.SIGKILL)
    except ProcessLookupError:
        return
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def child_result(status: int, stdout_fd: int, max_bytes: int) -> tuple[bytes, bytes]:
    """The reply for a child that ended with `status`: (kind of frame, payload)."""
    if status == -signal.SIGXCPU:
        return FRAME_PROGRAM_FAILED, b"ran out of CPU time"
    if status:
        return FRAME_PROGRAM_FAILED, f"ended with status {status}".encode()
    if os.fstat(stdout_fd).st_size >= max_bytes:
        return FRAME_PROGRAM_FAILED, b"printed too much"
    return FRAME_RESULT, os.pread(stdout_fd, max_bytes, 0)


if __name__ == "__main__":
    serve_program()
