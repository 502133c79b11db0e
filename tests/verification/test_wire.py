"""Frames with deadlines and bounds, values that come back as they went, and the drivers' ends of the talk, without a sandbox."""

import enum
import json
import socket
import subprocess
import sys
import threading
import time
from collections import Counter, OrderedDict, namedtuple
from collections.abc import Iterator
from typing import Any

import pytest

from permix.verification.guest import runner
from permix.verification.guest.checker import RemoteFunction
from permix.verification.guest.protocol import (
    FRAME_CALL,
    FRAME_PROGRAM_FAILED,
    FRAME_RESULT,
    NO_TOKEN,
    Channel,
    Frame,
    FrameTooLongError,
    decode_value,
    encode_value,
)

Point = namedtuple("Point", "x y")


class Colour(enum.IntEnum):
    RED = 1


class Sly(list[int]):
    """Says that it is equal to everything, and holds what it does not hold."""

    def __eq__(self, other: object) -> bool:
        return True

    def __iter__(self) -> Iterator[int]:
        return iter([1, 2, 3])


@pytest.fixture
def ends() -> Iterator[tuple[Channel, Channel]]:
    ours, theirs = (Channel(one, max_frame_bytes=1000) for one in socket.socketpair())
    yield ours, theirs
    ours.close()
    theirs.close()


def test_frames_arrive_whole_and_in_order(ends: tuple[Channel, Channel]) -> None:
    ours, theirs = ends
    ours.send(FRAME_CALL, b"x" * 1000)
    ours.send(FRAME_RESULT)
    assert theirs.receive() == Frame(FRAME_CALL, b"x" * 1000)
    assert theirs.receive() == Frame(FRAME_RESULT, b"")


def test_a_reply_carries_the_token_of_its_request(ends: tuple[Channel, Channel]) -> None:
    ours, theirs = ends
    theirs.send(FRAME_RESULT, b"too early")
    assert ours.receive() == Frame(FRAME_RESULT, b"too early", NO_TOKEN)
    for token in (b"a" * 16, b"b" * 16):
        ours.send(FRAME_CALL, b"x", token=token)
        theirs.receive()
        for _ in range(2):
            theirs.send(FRAME_RESULT, b"y")
            assert ours.receive() == Frame(FRAME_RESULT, b"y", token)


def test_more_than_was_allowed_is_not_read(ends: tuple[Channel, Channel]) -> None:
    ours, theirs = ends
    ours.send(FRAME_CALL, b"x" * 1001)
    with pytest.raises(FrameTooLongError):
        theirs.receive()


def test_silence_ends_at_the_deadline_and_half_a_frame_too(ends: tuple[Channel, Channel]) -> None:
    ours, theirs = ends
    began = time.monotonic()
    for part in (b"", b"=\0\0"):
        theirs._connection.sendall(part)
        with pytest.raises(TimeoutError):
            ours.receive(time.monotonic() + 0.05)
    assert time.monotonic() - began < 10


def test_who_does_not_listen_ends_at_the_deadline(ends: tuple[Channel, Channel]) -> None:
    with pytest.raises(TimeoutError):
        ends[0].send(FRAME_CALL, b"x" * (64 << 20), time.monotonic() + 0.05)


def test_the_other_end_gone_is_the_end_of_the_talk(ends: tuple[Channel, Channel]) -> None:
    ends[1].close()
    with pytest.raises(EOFError):
        ends[0].receive()
    with pytest.raises(EOFError):
        ends[0].send(FRAME_CALL, b"x")


@pytest.mark.parametrize(
    "value",
    [
        None, True, 0, -(10**50), 1.5, 2j, "gr\u00fcn\n\0\U0001f40d", b"\0\xff", [], [1, [2]], (1, (2,)), {1: "a", (2, 3): [4]},
        {1, 2}, frozenset({"a"}), {"tuple": [1]}, {"a": {"dict": []}}, [(), set(), {}],
    ],
)  # fmt: skip
def test_plain_values_come_back_as_they_went(value: Any) -> None:
    again = decode_value(encode_value(value))
    assert again == value
    assert type(again) is type(value)


@pytest.mark.parametrize(
    ("value", "plain"),
    [(Point(1, 2), (1, 2)), (Colour.RED, 1), (Counter("aab"), {"a": 2, "b": 1}), (OrderedDict(a=1), {"a": 1}), (Sly([7]), [7])],
)
def test_subclasses_are_dropped_with_their_methods(value: Any, plain: Any) -> None:
    again = decode_value(encode_value(value))
    assert type(again) is type(plain)
    assert json.dumps(again) == json.dumps(plain)


@pytest.mark.parametrize("value", [object(), len, iter([1]), range(3), [{"a": object()}]])
def test_anything_else_is_no_value(value: Any) -> None:
    with pytest.raises(TypeError, match="is not plain data"):
        encode_value(value)


def test_a_call_gives_what_was_returned_or_what_was_raised() -> None:
    payload = encode_value([[7, 2], {"base": 10}])
    assert runner.call_result(lambda a, b, base: divmod(a * base, b), payload) == (FRAME_RESULT, encode_value((35, 0)))
    assert runner.call_result(lambda a, b, base: a / 0, payload) == (FRAME_PROGRAM_FAILED, b"raised ZeroDivisionError")
    assert runner.call_result(lambda a, b, base: sys.exit(0), payload) == (FRAME_PROGRAM_FAILED, b"raised SystemExit")
    assert runner.call_result(lambda a, b: a, payload) == (FRAME_PROGRAM_FAILED, b"raised TypeError")
    assert runner.call_result(lambda a, b, base: object(), payload) == (FRAME_PROGRAM_FAILED, b"raised TypeError")


def test_numbers_of_any_length_pass_and_pythons_limit_stays() -> None:
    usual = sys.get_int_max_str_digits()
    mark, payload = runner.call_result(lambda n: n * 10**6000, encode_value([[3], {}]))
    assert (mark, payload) == (FRAME_RESULT, b"3" + b"0" * 6000)
    assert sys.get_int_max_str_digits() == usual


def test_a_check_calls_over_the_channel_and_sees_plain_data(ends: tuple[Channel, Channel]) -> None:
    ours, theirs = ends
    elsewhere = RemoteFunction(theirs)
    asked: list[Any] = []

    def answer() -> None:
        asked.append(decode_value(ours.receive().payload))
        ours.send(FRAME_RESULT, encode_value((3, 4)))

    thread = threading.Thread(target=answer)
    thread.start()
    before = elsewhere.has_returned
    assert elsewhere([1], base=2) == (3, 4)
    thread.join()
    assert (before, elsewhere.has_returned) == (False, True)
    assert asked == [[([1],), {"base": 2}]]


@pytest.mark.parametrize("script", ["runner", "checker"])
def test_outside_the_sandbox_the_drivers_do_nothing(script: str) -> None:
    command = [sys.executable, "-m", f"permix.verification.guest.{script}", "{}"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr.strip()) == (1, "this script runs only in the sandbox")
