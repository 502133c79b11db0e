"""Run a program's tests in a sandbox and decide whether the program is correct.

The expected results never enter the program's sandbox: outputs and values are compared in this process, and published checks
(assertions) run in a second sandbox, which calls the program's function in the first one. So a program cannot forge its verdict.

`correct` is False for everything that the program does wrong, also to its own sandbox, and None if the sandbox or the tests
failed. No score is not zero. One sandbox serves all tests of a program.

`Sandbox` is one process in a sandbox, which replies to requests. SandboxError is a failure of the sandbox. NoReplyError means
that the process did not reply; the caller decides whose failure that is. A closed sandbox leaves no process running.

`same_output` and `same_value` are as lenient as LiveCodeBench. On any output of a hostile program they take time and memory in
proportion to its size, and a value that cannot be parsed equals nothing.
"""

import functools
import json
import os
import secrets
import signal
import socket
import subprocess
import time
from decimal import Decimal, InvalidOperation
from types import TracebackType
from typing import Any, NamedTuple

from permix.errors import ConfigError
from permix.verification import bubblewrap
from permix.verification.bubblewrap import BUBBLEWRAP_INSTALL_HINT, SandboxLimits
from permix.verification.guest.protocol import (
    FRAME_CALL,
    FRAME_JOB,
    FRAME_PROGRAM_FAILED,
    FRAME_RESULT,
    TOKEN_BYTES,
    Channel,
    Frame,
    FrameTooLongError,
)

SANDBOX_START_SECONDS = 60.0  # time to start on a busy machine; not part of the program's time

EXIT_GRACE_SECONDS = 1.0


class SandboxError(Exception):
    """The sandbox failed, so the program cannot be scored."""


class NoReplyError(Exception):
    """The process did not reply; the message says why, as far as this is visible from outside."""


class Sandbox:
    """A context manager that runs `script` of `permix.verification.guest` in a sandbox.

    Entering it raises SandboxError if the sandbox does not start, and ConfigError if bubblewrap is missing.
    """

    def __init__(self, script: str, limits: SandboxLimits) -> None:
        self._script, self._limits = script, limits

    def __enter__(self) -> "Sandbox":
        ours, theirs = socket.socketpair()
        self._channel = Channel(ours, self._limits.output_bytes)
        with theirs:
            try:
                self._process = bubblewrap.start_sandbox(self._script, self._limits, theirs.fileno())
            except OSError as error:
                self._channel.close()
                raise SandboxError(f"the sandbox cannot be started: {error}") from error
        try:
            self._channel.receive(time.monotonic() + SANDBOX_START_SECONDS)
        except (EOFError, TimeoutError, FrameTooLongError) as error:
            raise SandboxError(f"the sandbox did not start: {self._stop() or type(error).__name__}") from error
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop()

    def request(self, kind: bytes, payload: bytes, deadline: float) -> Frame:
        """Send a frame and return the reply. Raises NoReplyError if none came by `deadline`, a time of `time.monotonic`.

        A frame that was written before this request, or again after an earlier one, lacks the token of this one: it is no reply.
        """
        token = secrets.token_bytes(TOKEN_BYTES)
        try:
            self._channel.send(kind, payload, deadline, token)
            reply = self._channel.receive(deadline)
        except TimeoutError:
            raise NoReplyError("did not reply in time") from None
        except FrameTooLongError:
            raise NoReplyError("sent too long a reply") from None
        except EOFError:
            raise NoReplyError(self._exit_cause()) from None
        if reply.token != token:
            raise NoReplyError("sent a reply before it was asked")
        return reply

    def _exit_cause(self) -> str:
        try:
            status = self._process.wait(EXIT_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            return "closed its channel"
        return "ran out of CPU time" if status == 128 + signal.SIGXCPU else f"ended with status {status}"

    def _stop(self) -> str:
        """End all processes of the sandbox, and return the last error message of bubblewrap or of Python in it."""
        self._channel.close()
        self._process.kill()
        self._process.wait()
        assert self._process.stderr is not None
        with self._process.stderr as messages:
            os.set_blocking(messages.fileno(), False)
            return (messages.read() or b"").decode("utf-8", "replace").strip()[-300:]


MAX_INTEGER_DIGITS = 4_000  # int(str) refuses more than 4300 digits


def same_output(printed: str, expected: str) -> bool:
    """Whether two outputs have equal lines, ignoring white space around lines and around the output.

    Lines of numbers are equal if their numbers are.
    """
    mine, theirs = (text.strip().split("\n") for text in (printed, expected))
    return len(mine) == len(theirs) and all(map(_same_line, mine, theirs))


def _same_line(printed: str, expected: str) -> bool:
    if printed.strip() == expected.strip():
        return True
    first, second = printed.split(), expected.split()
    return len(first) == len(second) and all(map(_same_number, first, second))


def _same_number(printed: str, expected: str) -> bool:
    """Exactly, as decimals: as floats two different numbers of twenty digits may be equal."""
    try:
        first, second = Decimal(printed), Decimal(expected)
    except InvalidOperation:
        return False
    return first.is_finite() and second.is_finite() and first == second


def same_value(payload: bytes, expected: str) -> bool:
    """Whether `payload`, an encoded value (`guest/protocol.py`), equals `expected`, JSON text. Tuples count as lists."""
    try:
        return _equals_json(*(json.loads(text, parse_int=_parse_integer) for text in (payload, expected)))
    except (ValueError, TypeError, RecursionError):
        return False


def _equals_json(value: Any, expected: Any) -> bool:
    """Whether an encoded value equals a JSON value. Nothing of the program's is hashed but text: the rest may collide."""
    kind, content = _untagged(value)
    if kind == "list":
        return isinstance(expected, list) and len(content) == len(expected) and all(map(_equals_json, content, expected))
    if kind == "dict":
        if not isinstance(expected, dict) or len(content) != len(expected):
            return False
        equal = {key for key, one in content if isinstance(key, str) and key in expected and _equals_json(one, expected[key])}
        return len(equal) == len(expected)
    return kind == "scalar" and not isinstance(expected, list | dict) and bool(content == expected)


def _untagged(value: Any) -> tuple[str, Any]:
    """("list", "dict" or "scalar", content) of an encoded value; another kind for a set, which no JSON equals.

    The content of a dict is a list of pairs. Raises ValueError or TypeError for what is no encoded value.
    """
    if isinstance(value, list):
        return "list", value
    if not isinstance(value, dict):
        return "scalar", value
    ((kind, content),) = value.items()
    if kind == "complex":
        real, imaginary = content
        return ("scalar", real) if isinstance(real, float) and imaginary == 0 else (kind, content)
    if not isinstance(content, list):
        raise TypeError(f"a {kind} of {type(content).__name__}")
    return "list" if kind == "tuple" else kind, content


class _LongInteger(str):
    """The digits of an integer that is too long to parse. It equals the same digits, but no ordinary text."""

    __slots__ = ()
    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _LongInteger) and str.__eq__(self, other)


def _parse_integer(digits: str) -> Any:
    return int(digits) if len(digits) <= MAX_INTEGER_DIGITS else _LongInteger(digits)


class Case(NamedTuple):
    """One test: standard input and expected output; or, for a function, its arguments (encoded) and expected value, as JSON."""

    input: str
    expected: str


class Suite(NamedTuple):
    """The tests of a program.

    prelude: Python code that is run before the program and before the check, such as definitions that the question gives.
    function: the name of the function under test; None for a program that reads standard input and prints.
    cases: the tests, unless there is a check.
    check_code: Python code that calls `function` and asserts.
    """

    prelude: str = ""
    function: str | None = None
    cases: tuple[Case, ...] = ()
    check_code: str | None = None


class ProgramOutcome(NamedTuple):
    """`correct` as in `Verdict`; `reason` says why it is not True."""

    correct: bool | None
    reason: str = ""


class _WrongProgramError(Exception):
    """The program is wrong; the message says why."""


def run_tests(program: str, suite: Suite, limits: SandboxLimits = SandboxLimits()) -> ProgramOutcome:  # noqa: B008 - a frozen value
    """Run a program on its tests. Raises ConfigError if bubblewrap is missing."""
    try:
        with Sandbox("runner.py", limits) as box:
            _load_program(box, program, suite, limits)
            if suite.check_code is not None:
                _run_check(box, suite, limits)
            for number, case in enumerate(suite.cases, 1):
                _run_case(box, suite, case, limits, number)
    except _WrongProgramError as wrong:
        return ProgramOutcome(False, str(wrong))
    except SandboxError as error:
        return ProgramOutcome(None, str(error))
    return ProgramOutcome(True)


@functools.cache
def require_sandbox() -> None:
    """Raise ConfigError, saying what to install and to set, if programs cannot be run in a sandbox on this machine."""
    outcome = run_tests("print(input())", Suite(cases=(Case("yes", "yes"),)))
    if not outcome.correct:
        raise ConfigError(f"{outcome.reason}; {BUBBLEWRAP_INSTALL_HINT}")


def _load_program(sandbox: Sandbox, program: str, suite: Suite, limits: SandboxLimits) -> None:
    job = {"prelude": suite.prelude, "program": program, "function": suite.function}
    _request_result(sandbox, FRAME_JOB, json.dumps(job).encode(), limits.wall_seconds, "the program")


def _run_case(sandbox: Sandbox, suite: Suite, case: Case, limits: SandboxLimits, number: int) -> None:
    test = f"test {number} of {len(suite.cases)}"
    if suite.function is None:
        printed = _request_result(sandbox, FRAME_CALL, case.input.encode("utf-8", "surrogatepass"), limits.wall_seconds, test)
        right = same_output(printed.decode("utf-8", "surrogateescape"), case.expected)
    else:
        value = _request_result(sandbox, FRAME_CALL, case.input.encode(), limits.wall_seconds, test)
        right = same_value(value, case.expected)
    if not right:
        raise _WrongProgramError(f"{test}: wrong result")


def _request_result(sandbox: Sandbox, kind: bytes, payload: bytes, seconds: float, operation: str) -> bytes:
    """The result that the program's sandbox sends. Raises _WrongProgramError if it sends anything else."""
    try:
        reply = sandbox.request(kind, payload, time.monotonic() + seconds)
    except NoReplyError as lost:
        raise _WrongProgramError(f"{operation}: {lost}") from None
    if reply.kind != FRAME_RESULT:
        raise _WrongProgramError(f"{operation}: {reply.payload[:100].decode('utf-8', 'replace')}")
    return reply.payload


def _run_check(program_sandbox: Sandbox, suite: Suite, limits: SandboxLimits) -> None:
    """Run the check in a second sandbox and pass its calls to the program. The whole check has the time of one test.

    If the check fails after it has received a value from the program, the program is wrong, since the value may be anything. If
    it fails earlier, the check itself is broken.
    """
    deadline, has_called = time.monotonic() + limits.wall_seconds, False
    with Sandbox("checker.py", limits) as checker:
        kind, payload = (
            FRAME_JOB,
            json.dumps({"prelude": suite.prelude, "check": suite.check_code, "function": suite.function}).encode(),
        )
        while True:
            try:
                reply = checker.request(kind, payload, deadline)
            except NoReplyError as lost:
                raise (_WrongProgramError if has_called else SandboxError)(f"the check {lost}") from None
            if reply.kind == FRAME_CALL:
                kind, payload = (
                    FRAME_RESULT,
                    _request_result(program_sandbox, FRAME_CALL, reply.payload, deadline - time.monotonic(), "a call"),
                )
                has_called = True
            elif reply.kind in (FRAME_RESULT, FRAME_PROGRAM_FAILED):
                if reply.kind == FRAME_PROGRAM_FAILED:
                    raise _WrongProgramError(f"the check: {reply.payload.decode('utf-8', 'replace')}")
                return
            else:
                raise SandboxError(f"the check cannot be run: {reply.payload.decode('utf-8', 'replace')}")
