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
from permix.verification.bubblewrap import INSTALL, Bounds
from permix.verification.guest.protocol import ASK, FAILED, JOB, RESULT, Channel, Frame, FrameTooLongError, loads

START_SECONDS = 60.0  # on a busy machine; no part of any bound of the program's

GRACE_SECONDS = 1.0


class SandboxError(Exception):
    """The sandbox failed, so nothing can be said of the program."""


class LostError(Exception):
    """The process gave no answer; the message says why, as far as can be seen from outside."""


class Box:
    """A context manager: started on entering. Raises SandboxError when it cannot be."""

    def __init__(self, script: str, bounds: Bounds) -> None:
        self._script, self._bounds = script, bounds

    def __enter__(self) -> "Box":
        ours, theirs = socket.socketpair()
        self._channel = Channel(ours, self._bounds.output_bytes)
        with theirs:
            try:
                self._process = bubblewrap.start(self._script, self._bounds, theirs.fileno())
            except OSError as error:
                self._channel.close()
                raise SandboxError(f"the sandbox cannot be started: {error}") from error
        try:
            self._channel.receive(time.monotonic() + START_SECONDS)
        except (EOFError, TimeoutError, FrameTooLongError) as error:
            raise SandboxError(f"the sandbox did not start: {self._ended() or type(error).__name__}") from error
        except BaseException:
            self._ended()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._ended()

    def ask(self, mark: bytes, payload: bytes, deadline: float) -> Frame:
        """What the process answers until `deadline`, on `time.monotonic`. Raises LostError."""
        try:
            self._channel.send(mark, payload, deadline)
            return self._channel.receive(deadline)
        except TimeoutError:
            raise LostError("gave no answer in time") from None
        except FrameTooLongError:
            raise LostError("gave too long an answer") from None
        except EOFError:
            raise LostError(self._why_ended()) from None

    def _why_ended(self) -> str:
        try:
            status = self._process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            return "closed its channel"
        return "ran out of CPU time" if status == 128 + signal.SIGXCPU else f"ended with status {status}"

    def _ended(self) -> str:
        """End all of it; returns what bubblewrap, or Python in there, complained of last."""
        self._channel.close()
        self._process.kill()
        self._process.wait()
        assert self._process.stderr is not None
        with self._process.stderr as complaints:
            os.set_blocking(complaints.fileno(), False)
            return (complaints.read() or b"").decode("utf-8", "replace").strip()[-300:]


MAX_DIGITS = 4_000  # int(str) refuses more than 4300


def same_output(printed: str, expected: str) -> bool:
    """The same lines, but for white space around each and around all; a line of numbers is the same as one of equal numbers."""
    mine, theirs = (text.strip().split("\n") for text in (printed, expected))
    return len(mine) == len(theirs) and all(map(_same_line, mine, theirs))


def _same_line(mine: str, theirs: str) -> bool:
    if mine.strip() == theirs.strip():
        return True
    first, second = mine.split(), theirs.split()
    return len(first) == len(second) and all(map(_same_number, first, second))


def _same_number(mine: str, theirs: str) -> bool:
    """As decimals, exactly: a float has no room for the difference between two numbers of twenty digits."""
    try:
        first, second = Decimal(mine), Decimal(theirs)
    except InvalidOperation:
        return False
    return first.is_finite() and second.is_finite() and first == second


def same_value(payload: bytes, expected: str) -> bool:
    """Whether a value of `permix.verification.guest.protocol` is the one that `expected` writes as JSON; a tuple is as good
    as a list."""
    try:
        return bool(_lists(loads(payload, parse_int=_integer)) == json.loads(expected, parse_int=_integer))
    except (ValueError, TypeError, RecursionError):
        return False


class _Long(str):
    """An integer too long to be read: it equals the same digits, and no text."""

    __slots__ = ()
    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Long) and str.__eq__(self, other)


def _integer(digits: str) -> Any:
    return int(digits) if len(digits) <= MAX_DIGITS else _Long(digits)


def _lists(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_lists(one) for one in value]
    return {key: _lists(one) for key, one in value.items()} if isinstance(value, dict) else value


class Case(NamedTuple):
    """One test: standard input and what is to be printed; or, of a function, its arguments and its value, each as JSON."""

    given: str
    expected: str


class Suite(NamedTuple):
    """What a program must do. `function`: None for a program that reads standard input and prints.

    `check`: Python that calls `function` and asserts, in place of cases. `prelude`: Python that is run before the program, and
    before the check: what the question gives.
    """

    prelude: str = ""
    function: str | None = None
    cases: tuple[Case, ...] = ()
    check: str | None = None


class Outcome(NamedTuple):
    """`correct` as in a verdict; `reason` says why it is not True."""

    correct: bool | None
    reason: str = ""


class _WrongError(Exception):
    """The program is wrong, and why."""


def judge(program: str, suite: Suite, bounds: Bounds = Bounds()) -> Outcome:  # noqa: B008 - a frozen value
    """Whether the program does what the tests ask. Raises ConfigError where no sandbox is to be had."""
    try:
        with Box("runner.py", bounds) as box:
            _load(box, program, suite, bounds)
            if suite.check is not None:
                _check(box, suite, bounds)
            for number, case in enumerate(suite.cases, 1):
                _test(box, suite, case, bounds, number)
    except _WrongError as wrong:
        return Outcome(False, str(wrong))
    except SandboxError as error:
        return Outcome(None, str(error))
    return Outcome(True)


@functools.cache
def refuse_unable() -> None:
    """Raise ConfigError, with what to install and to set, where no program can be run in a sandbox."""
    tried = judge("print(input())", Suite(cases=(Case("yes", "yes"),)))
    if not tried.correct:
        raise ConfigError(f"{tried.reason}; {INSTALL}")


def _load(box: Box, program: str, suite: Suite, bounds: Bounds) -> None:
    job = {"prelude": suite.prelude, "program": program, "function": suite.function}
    _said(box, JOB, json.dumps(job).encode(), bounds.wall_seconds, "the program")


def _test(box: Box, suite: Suite, case: Case, bounds: Bounds, number: int) -> None:
    what = f"test {number} of {len(suite.cases)}"
    if suite.function is None:
        printed = _said(box, ASK, case.given.encode("utf-8", "surrogatepass"), bounds.wall_seconds, what)
        right = same_output(printed.decode("utf-8", "surrogateescape"), case.expected)
    else:
        value = _said(box, ASK, case.given.encode(), bounds.wall_seconds, what)
        right = same_value(value, case.expected)
    if not right:
        raise _WrongError(f"{what}: not what was expected")


def _said(box: Box, mark: bytes, payload: bytes, seconds: float, what: str) -> bytes:
    """The result that the program's box gives. Raises _WrongError for anything else."""
    try:
        answer = box.ask(mark, payload, time.monotonic() + seconds)
    except LostError as lost:
        raise _WrongError(f"{what}: {lost}") from None
    if answer.mark != RESULT:
        raise _WrongError(f"{what}: {answer.payload[:100].decode('utf-8', 'replace')}")
    return answer.payload


def _check(program: Box, suite: Suite, bounds: Bounds) -> None:
    """Run the check in a box of its own, and hand its calls to the program. All of it has the time of one test.

    A check that comes to grief fails the program once it has seen a value of the program's, which may be anything; before that it
    is the check that is not fit to be run.
    """
    deadline, asked = time.monotonic() + bounds.wall_seconds, False
    with Box("checker.py", bounds) as checker:
        mark, payload = JOB, json.dumps({"prelude": suite.prelude, "check": suite.check, "function": suite.function}).encode()
        while True:
            try:
                said = checker.ask(mark, payload, deadline)
            except LostError as lost:
                raise (_WrongError if asked else SandboxError)(f"the check {lost}") from None
            if said.mark == ASK:
                mark, payload = RESULT, _said(program, ASK, said.payload, deadline - time.monotonic(), "a call")
                asked = True
            elif said.mark in (RESULT, FAILED):
                if said.mark == FAILED:
                    raise _WrongError(f"the check: {said.payload.decode('utf-8', 'replace')}")
                return
            else:
                raise SandboxError(f"the check cannot be run: {said.payload.decode('utf-8', 'replace')}")
