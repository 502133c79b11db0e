"""Runs an untrusted program on one test after the other. To be trusted itself only until the program's first line runs.

Job: JSON of `prelude` (run before the program, in its namespace), `program` and `function`. It is answered by RESULT once the
program can be tested, else by FAILED; so is every ASK after it:

    without a function    its payload is standard input, and the result what the program printed. Each is a process of its own,
                          forked before the program's first line; what it left running is ended with it.
    with one              its payload is [arguments, keyword arguments], and the result what the function returned, or the method
                          of that name of a class Solution. The program's body is run once, and not as `__main__`.

The program can do here whatever it likes, to this process and its channel too. So a result says what the program would have it
say, no more, and is judged where the program cannot reach.
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
    channel, bounds = confine_process()
    limit_cpu_time(bounds["cpu_seconds"])
    job = json.loads(channel.receive().payload)
    try:
        module = make_program_module("__main__" if job["function"] is None else "program", job["prelude"])
        code = compile(job["program"], "program.py", "exec")
        call = None if job["function"] is None else load_function(code, vars(module), job["function"], bounds)
    except BaseException as error:  # the program's boundary: it may raise anything at all
        channel.send(FRAME_PROGRAM_FAILED, exception_message(error))
        return
    channel.send(FRAME_RESULT)
    if call is None:
        serve_stdin_runs(channel, code, vars(module), bounds)
    else:
        serve_calls(channel, call, bounds)


def make_program_module(name: str, prelude: str) -> ModuleType:
    """The module that the program is run as. `exit` and `quit` are what Python's `site`, which is not here, would add."""
    vars(builtins).update(exit=sys.exit, quit=sys.exit)
    sys.argv = ["program.py"]
    module = sys.modules[name] = ModuleType(name)
    exec(compile(prelude, "prelude.py", "exec"), vars(module))
    return module


def load_function(code: CodeType, namespace: dict[str, Any], function: str, limits: Mapping[str, int]) -> Callable[..., Any]:
    limit_file_size(limits["output_bytes"])
    exec(code, namespace)
    found: Callable[..., Any] = namespace[function] if function in namespace else getattr(namespace["Solution"](), function)
    return found


def exception_message(error: BaseException) -> bytes:
    return f"raised {type(error).__name__}".encode()


def serve_calls(channel: Channel, call: Callable[..., Any], limits: Mapping[str, int]) -> None:
    while (asked := channel.receive()).kind == FRAME_CALL:
        limit_cpu_time(limits["cpu_seconds"])
        channel.send(*call_result(call, asked.payload))


def call_result(call: Callable[..., Any], payload: bytes) -> tuple[bytes, bytes]:
    try:
        with unlimited_integer_digits():
            arguments, named = decode_value(payload)
        value = call(*arguments, **named)
        with unlimited_integer_digits():
            return FRAME_RESULT, encode_value(value)
    except BaseException as error:  # the program's boundary
        return FRAME_PROGRAM_FAILED, exception_message(error)


def serve_stdin_runs(channel: Channel, code: CodeType, namespace: dict[str, Any], limits: Mapping[str, int]) -> None:
    gc.freeze()  # what is here already need not be gone through at the end of every child: that halves what a test costs
    while (asked := channel.receive()).kind == FRAME_CALL:
        given, printed = (os.open("/tmp", os.O_TMPFILE | os.O_RDWR) for _ in range(2))
        with open(given, "wb", closefd=False) as file:
            file.write(asked.payload)
        os.lseek(given, 0, os.SEEK_SET)
        if not (child := os.fork()):
            channel.close()
            run_program_in_child(code, namespace, given, printed, limits)
            return  # and so out of `serve_program`: threads are waited for and streams flushed as at the end of any program
        _, status = os.waitpid(child, 0)
        kill_other_processes()
        channel.send(*child_result(os.waitstatus_to_exitcode(status), printed, limits["output_bytes"]))
        os.close(given)
        os.close(printed)


def run_program_in_child(
    code: CodeType, namespace: dict[str, Any], stdin_fd: int, stdout_fd: int, limits: Mapping[str, int]
) -> None:
    limit_file_size(limits["output_bytes"])
    limit_cpu_time(limits["cpu_seconds"], is_permanent=True)
    for descriptor, stream in ((stdin_fd, 0), (stdout_fd, 1)):
        os.dup2(descriptor, stream)
        os.close(descriptor)
    sys.stdin = open(0, encoding="utf-8", errors="surrogateescape")  # noqa: SIM115 - the program's, to its end
    sys.stdout = open(1, "w", encoding="utf-8", errors="surrogateescape")  # noqa: SIM115
    with contextlib.suppress(SystemExit):  # whatever its status: what counts is what was printed
        exec(code, namespace)


def kill_other_processes() -> None:
    """End every process that the program has left behind; the sandbox's init buries those that are not our own children."""
    try:
        os.kill(-1, signal.SIGKILL)
    except ProcessLookupError:
        return
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def child_result(status: int, stdout_fd: int, max_bytes: int) -> tuple[bytes, bytes]:
    if status == -signal.SIGXCPU:
        return FRAME_PROGRAM_FAILED, b"ran out of CPU time"
    if status:
        return FRAME_PROGRAM_FAILED, f"ended with status {status}".encode()
    if os.fstat(stdout_fd).st_size >= max_bytes:
        return FRAME_PROGRAM_FAILED, b"printed too much"
    return FRAME_RESULT, os.pread(stdout_fd, max_bytes, 0)


if __name__ == "__main__":
    serve_program()
