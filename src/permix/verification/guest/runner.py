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

from permix.verification.guest.limits import allow_cpu, allow_files, confined, long_integers
from permix.verification.guest.protocol import ASK, FAILED, RESULT, Channel, dumps, loads


def main() -> None:
    channel, bounds = confined()
    allow_cpu(bounds["cpu_seconds"])
    job = json.loads(channel.receive().payload)
    try:
        module = prepared("__main__" if job["function"] is None else "program", job["prelude"])
        code = compile(job["program"], "program.py", "exec")
        call = None if job["function"] is None else defined(code, vars(module), job["function"], bounds)
    except BaseException as error:  # the program's boundary: it may raise anything at all
        channel.send(FAILED, said(error))
        return
    channel.send(RESULT)
    if call is None:
        answer_as_main(channel, code, vars(module), bounds)
    else:
        answer_calls(channel, call, bounds)


def prepared(name: str, prelude: str) -> ModuleType:
    """The module that the program is run as. `exit` and `quit` are what Python's `site`, which is not here, would add."""
    vars(builtins).update(exit=sys.exit, quit=sys.exit)
    sys.argv = ["program.py"]
    module = sys.modules[name] = ModuleType(name)
    exec(compile(prelude, "prelude.py", "exec"), vars(module))
    return module


def defined(code: CodeType, namespace: dict[str, Any], function: str, bounds: Mapping[str, int]) -> Callable[..., Any]:
    allow_files(bounds["output_bytes"])
    exec(code, namespace)
    found: Callable[..., Any] = namespace[function] if function in namespace else getattr(namespace["Solution"](), function)
    return found


def said(error: BaseException) -> bytes:
    return f"raised {type(error).__name__}".encode()


def answer_calls(channel: Channel, call: Callable[..., Any], bounds: Mapping[str, int]) -> None:
    while (asked := channel.receive()).mark == ASK:
        allow_cpu(bounds["cpu_seconds"])
        channel.send(*returned(call, asked.payload))


def returned(call: Callable[..., Any], payload: bytes) -> tuple[bytes, bytes]:
    try:
        with long_integers():
            arguments, named = loads(payload)
        value = call(*arguments, **named)
        with long_integers():
            return RESULT, dumps(value)
    except BaseException as error:  # the program's boundary
        return FAILED, said(error)


def answer_as_main(channel: Channel, code: CodeType, namespace: dict[str, Any], bounds: Mapping[str, int]) -> None:
    gc.freeze()  # what is here already need not be gone through at the end of every child: that halves what a test costs
    while (asked := channel.receive()).mark == ASK:
        given, printed = (os.open("/tmp", os.O_TMPFILE | os.O_RDWR) for _ in range(2))
        with open(given, "wb", closefd=False) as file:
            file.write(asked.payload)
        os.lseek(given, 0, os.SEEK_SET)
        if not (child := os.fork()):
            channel.close()
            run(code, namespace, given, printed, bounds)
            return  # and so out of `main`: threads are waited for and streams flushed as at the end of any program
        _, status = os.waitpid(child, 0)
        end_others()
        channel.send(*outcome(os.waitstatus_to_exitcode(status), printed, bounds["output_bytes"]))
        os.close(given)
        os.close(printed)


def run(code: CodeType, namespace: dict[str, Any], given: int, printed: int, bounds: Mapping[str, int]) -> None:
    allow_files(bounds["output_bytes"])
    allow_cpu(bounds["cpu_seconds"], for_ever=True)
    for descriptor, stream in ((given, 0), (printed, 1)):
        os.dup2(descriptor, stream)
        os.close(descriptor)
    sys.stdin = open(0, encoding="utf-8", errors="surrogateescape")  # noqa: SIM115 - the program's, to its end
    sys.stdout = open(1, "w", encoding="utf-8", errors="surrogateescape")  # noqa: SIM115
    with contextlib.suppress(SystemExit):  # whatever its status: what counts is what was printed
        exec(code, namespace)


def end_others() -> None:
    """End every process that the program has left behind; the sandbox's init buries those that are not our own children."""
    try:
        os.kill(-1, signal.SIGKILL)
    except ProcessLookupError:
        return
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def outcome(status: int, printed: int, most: int) -> tuple[bytes, bytes]:
    if status == -signal.SIGXCPU:
        return FAILED, b"ran out of CPU time"
    if status:
        return FAILED, f"ended with status {status}".encode()
    if os.fstat(printed).st_size >= most:
        return FAILED, b"printed too much"
    return RESULT, os.pread(printed, most, 0)


if __name__ == "__main__":
    main()
