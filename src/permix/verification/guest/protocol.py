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

FRAME_READY, FRAME_JOB, FRAME_CALL, FRAME_RESULT, FRAME_PROGRAM_FAILED, FRAME_TESTS_BROKEN = b"R", b"J", b"?", b"=", b"!", b"X"
"""Set up; what to do; do it; what came of it; it failed, and whose fault it is: the program's, or the tests' own."""


_FRAME_HEADER = struct.Struct("!cQ")


class Frame(NamedTuple):
    kind: bytes
    payload: bytes


class FrameTooLongError(Exception):
    """The other side announced more than may be read."""


class Channel:
    """One end of the socket; of what comes in, a frame may have `max_frame_bytes` bytes.

    Deadlines are on `time.monotonic`; without one, a call may take for ever.

    Raises EOFError when the other end is gone, TimeoutError, and FrameTooLongError.
    """

    def __init__(self, connection: socket.socket, max_frame_bytes: int | None = None) -> None:
        self._connection, self._max_frame_bytes = connection, max_frame_bytes

    def send(self, kind: bytes, payload: bytes = b"", deadline: float | None = None) -> None:
        self._set_timeout(deadline)
        try:
            self._connection.sendall(_FRAME_HEADER.pack(kind, len(payload)) + payload)
        except (BrokenPipeError, ConnectionResetError):
            raise EOFError from None

    def receive(self, deadline: float | None = None) -> Frame:
        mark, length = _FRAME_HEADER.unpack(self._receive_exactly(_FRAME_HEADER.size, deadline))
        if self._max_frame_bytes is not None and length > self._max_frame_bytes:
            raise FrameTooLongError
        return Frame(mark, self._receive_exactly(length, deadline))

    def close(self) -> None:
        self._connection.close()

    def _receive_exactly(self, length: int, deadline: float | None) -> bytes:
        got = bytearray()
        while len(got) < length:
            self._set_timeout(deadline)
            try:
                chunk = self._connection.recv(min(length - len(got), 1 << 20))
            except ConnectionResetError:
                raise EOFError from None
            if not chunk:
                raise EOFError
            got += chunk
        return bytes(got)

    def _set_timeout(self, deadline: float | None) -> None:
        left = None if deadline is None else deadline - time.monotonic()
        if left is not None and left <= 0:
            raise TimeoutError
        self._connection.settimeout(left)


def encode_value(value: Any) -> bytes:
    """Raises TypeError for what is no plain value."""
    return json.dumps(_to_json(value)).encode()


def decode_value(payload: bytes, parse_int: Callable[[str], Any] = int) -> Any:
    """The value again; a ValueError, TypeError or RecursionError where the bytes hold none."""
    return _from_json(json.loads(payload, parse_int=parse_int))


def _to_json(value: Any) -> Any:
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
        return [_to_json(one) for one in list.__iter__(value)]
    if isinstance(value, dict):
        return {"dict": [[_to_json(key), _to_json(one)] for key, one in dict.items(value)]}
    return _to_tagged_json(value)


def _to_tagged_json(value: Any) -> dict[str, Any]:
    kinds: tuple[Any, ...] = (tuple, set, frozenset)
    for kind in kinds:
        if isinstance(value, kind):
            return {kind.__name__: [_to_json(one) for one in kind.__iter__(value)]}
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    if isinstance(value, bytes | bytearray):
        return {"bytes": value.hex()}
    raise TypeError(f"a {type(value).__name__} is no plain value")


_DECODERS: dict[str, Callable[[Any], Any]] = {
    "dict": lambda pairs: {_from_json(key): _from_json(one) for key, one in pairs},
    "tuple": lambda items: tuple(map(_from_json, items)),
    "set": lambda items: set(map(_from_json, items)),
    "frozenset": lambda items: frozenset(map(_from_json, items)),
    "complex": lambda parts: complex(*parts),
    "bytes": bytes.fromhex,
}


def _from_json(value: Any) -> Any:
    if isinstance(value, list):
        return [_from_json(one) for one in value]
    if isinstance(value, dict):
        ((kind, content),) = value.items()
        if kind not in _DECODERS:
            raise ValueError(f"no kind of value is called {kind[:20]!r}")
        return _DECODERS[kind](content)
    return value
