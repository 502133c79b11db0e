"""A program and its tests in, right or wrong out.

What a test expects never enters the sandbox that the program runs in: outputs and values are compared here, and published checks
run in another sandbox, which calls the program's function from there. So a program can say anything, but not that it is right.

Contract: `correct` is False for whatever the program does, also to its sandbox, and None where the sandbox or the tests
themselves failed: no score is not zero. One program takes one sandbox for all of its tests, a second one for published checks.

One process in a sandbox of its own, and the talk with it, question by question.

Contract: SandboxError is the sandbox's own failure; LostError is the process's silence once it was there, for its user to judge.
Nothing is left running once the box is closed.

What counts as the same output, and as the same value: as lenient as LiveCodeBench, and no more.

Both take what a hostile program said: they end, and a thing that cannot be read is not the same as anything.
"""

import functools
import json
import os
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
    Channel,
    Frame,
    FrameTooLongError,
    decode_value,
)

SANDBOX_START_SECONDS = 60.0  # on a busy machine; no part of any bound of the program's

EXIT_GRACE_SECONDS = 1.0


class SandboxError(Exception):
    """The sandbox failed, so nothing can be said of the program."""


class NoReplyError(Exception):
    """The process gave no answer; the message says why, as far as can be seen from outside."""


class Sandbox:
    """A context manager: started on entering. Raises SandboxError when it cannot be."""

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
        """What the process answers until `deadline`, on `time.monotonic`. Raises LostError."""
        try:
            self._channel.send(kind, payload, deadline)
            return self._channel.receive(deadline)
        except TimeoutError:
            raise NoReplyError("gave no answer in time") from None
        except FrameTooLongError:
            raise NoReplyError("gave too long an answer") from None
        except EOFError:
            raise NoReplyError(self._exit_cause()) from None

    def _exit_cause(self) -> str:
        try:
            status = self._process.wait(EXIT_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            return "closed its channel"
        return "ran out of CPU time" if status == 128 + signal.SIGXCPU else f"ended with status {status}"

    def _stop(self) -> str:
        """End all of it; returns what bubblewrap, or Python in there, complained of last."""
        self._channel.close()
        self._process.kill()
        self._process.wait()
        assert self._process.stderr is not None
        with self._process.stderr as complaints:
            os.set_blocking(complaints.fileno(), False)
            return (complaints.read() or b"").decode("utf-8", "replace").strip()[-300:]


MAX_INTEGER_DIGITS = 4_000  # int(str) refuses more than 4300


def same_output(printed: str, expected: str) -> bool:
    """The same lines, but for white space around each and around all; a line of numbers is the same as one of equal numbers."""
    mine, theirs = (text.strip().split("\n") for text in (printed, expected))
    return len(mine) == len(theirs) and all(map(_same_line, mine, theirs))


def _same_line(printed: str, expected: str) -> bool:
    if printed.strip() == expected.strip():
        return True
    first, second = printed.split(), expected.split()
    return len(first) == len(second) and all(map(_same_number, first, second))


def _same_number(printed: str, expected: str) -> bool:
    """As decimals, exactly: a float has no room for the difference between two numbers of twenty digits."""
    try:
        first, second = Decimal(printed), Decimal(expected)
    except InvalidOperation:
        return False
    return first.is_finite() and second.is_finite() and first == second


def same_value(payload: bytes, expected: str) -> bool:
    """Whether a value of `permix.verification.guest.protocol` is the one that `expected` writes as JSON; a tuple is as good
    as a list."""
    try:
        return bool(
            _tuples_to_lists(decode_value(payload, parse_int=_parse_integer)) == json.loads(expected, parse_int=_parse_integer)
        )
    except (ValueError, TypeError, RecursionError):
        return False


class _LongInteger(str):
    """An integer too long to be read: it equals the same digits, and no text."""

    __slots__ = ()
    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _LongInteger) and str.__eq__(self, other)


def _parse_integer(digits: str) -> Any:
    return int(digits) if len(digits) <= MAX_INTEGER_DIGITS else _LongInteger(digits)


def _tuples_to_lists(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_tuples_to_lists(one) for one in value]
    return {key: _tuples_to_lists(one) for key, one in value.items()} if isinstance(value, dict) else value


class Case(NamedTuple):
    """One test: standard input and what is to be printed; or, of a function, its arguments and its value, each as JSON."""

    input: str
    expected: str


class Suite(NamedTuple):
    """What a program must do. `function`: None for a program that reads standard input and prints.

    `check_code`: Python that calls `function` and asserts, in place of cases. `prelude`: Python that is run before the
    program, and before the check: what the question gives.
    """

    prelude: str = ""
    function: str | None = None
    cases: tuple[Case, ...] = ()
    check_code: str | None = None


class ProgramOutcome(NamedTuple):
    """`correct` as in a verdict; `reason` says why it is not True."""

    correct: bool | None
    reason: str = ""


class _WrongProgramError(Exception):
    """The program is wrong, and why."""


def run_tests(program: str, suite: Suite, limits: SandboxLimits = SandboxLimits()) -> ProgramOutcome:  # noqa: B008 - a frozen value
    """Whether the program does what the tests ask. Raises ConfigError where no sandbox is to be had."""
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
    """Raise ConfigError, with what to install and to set, where no program can be run in a sandbox."""
    tried = run_tests("print(input())", Suite(cases=(Case("yes", "yes"),)))
    if not tried.correct:
        raise ConfigError(f"{tried.reason}; {BUBBLEWRAP_INSTALL_HINT}")


def _load_program(sandbox: Sandbox, program: str, suite: Suite, limits: SandboxLimits) -> None:
    job = {"prelude": suite.prelude, "program": program, "function": suite.function}
    _request_result(sandbox, FRAME_JOB, json.dumps(job).encode(), limits.wall_seconds, "the program")


def _run_case(sandbox: Sandbox, suite: Suite, case: Case, limits: SandboxLimits, number: int) -> None:
    what = f"test {number} of {len(suite.cases)}"
    if suite.function is None:
        printed = _request_result(sandbox, FRAME_CALL, case.input.encode("utf-8", "surrogatepass"), limits.wall_seconds, what)
        right = same_output(printed.decode("utf-8", "surrogateescape"), case.expected)
    else:
        value = _request_result(sandbox, FRAME_CALL, case.input.encode(), limits.wall_seconds, what)
        right = same_value(value, case.expected)
    if not right:
        raise _WrongProgramError(f"{what}: not what was expected")


def _request_result(sandbox: Sandbox, kind: bytes, payload: bytes, seconds: float, operation: str) -> bytes:
    """The result that the program's box gives. Raises _WrongError for anything else."""
    try:
        answer = sandbox.request(kind, payload, time.monotonic() + seconds)
    except NoReplyError as lost:
        raise _WrongProgramError(f"{operation}: {lost}") from None
    if answer.kind != FRAME_RESULT:
        raise _WrongProgramError(f"{operation}: {answer.payload[:100].decode('utf-8', 'replace')}")
    return answer.payload


def _run_check(program_sandbox: Sandbox, suite: Suite, limits: SandboxLimits) -> None:
    """Run the check in a box of its own, and hand its calls to the program. All of it has the time of one test.

    A check that comes to grief fails the program once it has seen a value of the program's, which may be anything; before that it
    is the check that is not fit to be run.
    """
    deadline, asked = time.monotonic() + limits.wall_seconds, False
    with Sandbox("checker.py", limits) as checker:
        mark, payload = (
            FRAME_JOB,
            json.dumps({"prelude": suite.prelude, "check": suite.check_code, "function": suite.function}).encode(),
        )
        while True:
            try:
                said = checker.request(mark, payload, deadline)
            except NoReplyError as lost:
                raise (_WrongProgramError if asked else SandboxError)(f"the check {lost}") from None
            if said.kind == FRAME_CALL:
                mark, payload = (
                    FRAME_RESULT,
                    _request_result(program_sandbox, FRAME_CALL, said.payload, deadline - time.monotonic(), "a call"),
                )
                asked = True
            elif said.kind in (FRAME_RESULT, FRAME_PROGRAM_FAILED):
                if said.kind == FRAME_PROGRAM_FAILED:
                    raise _WrongProgramError(f"the check: {said.payload.decode('utf-8', 'replace')}")
                return
            else:
                raise SandboxError(f"the check cannot be run: {said.payload.decode('utf-8', 'replace')}")
