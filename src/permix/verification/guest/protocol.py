"""Frames over a socket, and values as JSON: how the two sides of the sandbox's wall speak.

A frame is a byte that says what it is, eight that say how long, and so many bytes. Nothing but bytes crosses the wall, and
nothing that comes out of the sandbox is ever unpickled or run.

A value is what Python's literals can say: None, bool, int, float, complex, str, bytes, list, tuple, dict, set, frozenset, of any
subclass, which is dropped. So what a program returns is compared as plain data, and cannot say itself what it is equal to.
"""

import json
import socket
import struct
import time
from collections.abc import Callable
from typing import Any, NamedTuple

READY, JOB, ASK, RESULT, FAILED, BROKEN = b"R", b"J", b"?", b"=", b"!", b"X"
"""Set up; what to do; do it; what came of it; it failed, and whose fault it is: the program's, or the tests' own."""


_HEAD = struct.Struct("!cQ")


class Frame(NamedTuple):
    mark: bytes
    payload: bytes


class FrameTooLongError(Exception):
    """The other side announced more than may be read."""


class Channel:
    """One end of the socket; of what comes in, a frame may have `longest` bytes.

    Deadlines are on `time.monotonic`; without one, a call may take for ever.

    Raises EOFError when the other end is gone, TimeoutError, and FrameTooLongError.
    """

    def __init__(self, channel: socket.socket, longest: int | None = None) -> None:
        self._channel, self._longest = channel, longest

    def send(self, mark: bytes, payload: bytes = b"", deadline: float | None = None) -> None:
        self._until(deadline)
        try:
            self._channel.sendall(_HEAD.pack(mark, len(payload)) + payload)
        except (BrokenPipeError, ConnectionResetError):
            raise EOFError from None

    def receive(self, deadline: float | None = None) -> Frame:
        mark, length = _HEAD.unpack(self._exactly(_HEAD.size, deadline))
        if self._longest is not None and length > self._longest:
            raise FrameTooLongError
        return Frame(mark, self._exactly(length, deadline))

    def close(self) -> None:
        self._channel.close()

    def _exactly(self, length: int, deadline: float | None) -> bytes:
        got = bytearray()
        while len(got) < length:
            self._until(deadline)
            try:
                chunk = self._channel.recv(min(length - len(got), 1 << 20))
            except ConnectionResetError:
                raise EOFError from None
            if not chunk:
                raise EOFError
            got += chunk
        return bytes(got)

    def _until(self, deadline: float | None) -> None:
        left = None if deadline is None else deadline - time.monotonic()
        if left is not None and left <= 0:
            raise TimeoutError
        self._channel.settimeout(left)


def dumps(value: Any) -> bytes:
    """Raises TypeError for what is no plain value."""
    return json.dumps(_encoded(value)).encode()


def loads(payload: bytes, parse_int: Callable[[str], Any] = int) -> Any:
    """The value again; a ValueError, TypeError or RecursionError where the bytes hold none."""
    return _decoded(json.loads(payload, parse_int=parse_int))


def _encoded(value: Any) -> Any:
    # By isinstance: a Counter is a dict, an IntEnum an int. The types' own methods, for a subclass may lie in its.
    if value is None or value is True or value is False:
        return value
    if isinstance(value, int):
        return int.__add__(value, 0)
    if isinstance(value, float):
        return float.__add__(value, 0.0)
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, list):
        return [_encoded(one) for one in list.__iter__(value)]
    if isinstance(value, dict):
        return {"dict": [[_encoded(key), _encoded(one)] for key, one in dict.items(value)]}
    return _tagged(value)


def _tagged(value: Any) -> dict[str, Any]:
    kinds: tuple[Any, ...] = (tuple, set, frozenset)
    for kind in kinds:
        if isinstance(value, kind):
            return {kind.__name__: [_encoded(one) for one in kind.__iter__(value)]}
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    if isinstance(value, bytes | bytearray):
        return {"bytes": value.hex()}
    raise TypeError(f"a {type(value).__name__} is no plain value")


_KINDS: dict[str, Callable[[Any], Any]] = {
    "dict": lambda pairs: {_decoded(key): _decoded(one) for key, one in pairs},
    "tuple": lambda items: tuple(map(_decoded, items)),
    "set": lambda items: set(map(_decoded, items)),
    "frozenset": lambda items: frozenset(map(_decoded, items)),
    "complex": lambda parts: complex(*parts),
    "bytes": bytes.fromhex,
}


def _decoded(value: Any) -> Any:
    if isinstance(value, list):
        return [_decoded(one) for one in value]
    if isinstance(value, dict):
        ((kind, content),) = value.items()
        if kind not in _KINDS:
            raise ValueError(f"no kind of value is called {kind[:20]!r}")
        return _KINDS[kind](content)
    return value
