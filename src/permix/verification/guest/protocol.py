"""Frames over a socket, and values as JSON: the protocol between the sandbox and the process outside.

A frame is one byte for its kind, eight for its length, 16 for its token, and its payload. Only bytes leave the sandbox, and
nothing that comes out of it is ever unpickled or run.

Each request of the process outside has a new random token, which the reply must carry. So a frame that was written before the
request, or a second one after it, is no reply to it.

A value is None or a bool, int, float, complex, str, bytes, list, tuple, dict, set or frozenset. A value of a subclass becomes one
of the base class. So the value that a program returns is compared as plain data, and a program's own `__eq__` has no effect.
"""

import json
import socket
import struct
import time
from collections.abc import Callable
from typing import Any, NamedTuple

FRAME_READY, FRAME_JOB, FRAME_CALL, FRAME_RESULT, FRAME_PROGRAM_FAILED, FRAME_TESTS_BROKEN = b"R", b"J", b"?", b"=", b"!", b"X"
"""Kinds of frames: the process is ready; its job; a call; a result; a failure of the program; a failure of the tests."""


TOKEN_BYTES = 16

NO_TOKEN = bytes(TOKEN_BYTES)
"""The token of a frame that replies to no request."""

_FRAME_HEADER = struct.Struct(f"!cQ{TOKEN_BYTES}s")


class Frame(NamedTuple):
    """One message: its kind (one byte), its payload, and the token of the request to which it belongs."""

    kind: bytes
    payload: bytes
    token: bytes = NO_TOKEN


class FrameTooLongError(Exception):
    """The other end announced a frame that is longer than allowed."""


class Channel:
    """One end of the socket. `max_frame_bytes` limits the payload of received frames.

    A frame is sent with the token of the last frame that was received, unless it gets one of its own. A deadline is a time of
    `time.monotonic`; without one a call waits forever. Methods raise EOFError if the other end is closed, TimeoutError at the
    deadline, and FrameTooLongError.
    """

    def __init__(self, connection: socket.socket, max_frame_bytes: int | None = None) -> None:
        self._connection, self._max_frame_bytes = connection, max_frame_bytes
        self._last_token = NO_TOKEN

    def send(self, kind: bytes, payload: bytes = b"", deadline: float | None = None, token: bytes | None = None) -> None:
        header = _FRAME_HEADER.pack(kind, len(payload), self._last_token if token is None else token)
        self._set_timeout(deadline)
        try:
            self._connection.sendall(header + payload)
        except (BrokenPipeError, ConnectionResetError):
            raise EOFError from None

    def receive(self, deadline: float | None = None) -> Frame:
        kind, length, token = _FRAME_HEADER.unpack(self._receive_exactly(_FRAME_HEADER.size, deadline))
        if self._max_frame_bytes is not None and length > self._max_frame_bytes:
            raise FrameTooLongError
        self._last_token = token
        return Frame(kind, self._receive_exactly(length, deadline), token)

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
    """A value as bytes. Raises TypeError for a value of another type than the module names."""
    return json.dumps(_to_json(value)).encode()


def decode_value(payload: bytes) -> Any:
    """The value of `encode_value`'s bytes. Raises ValueError, TypeError, OverflowError or RecursionError if they are no value.

    The process outside never decodes the bytes of a program: elements of a set may collide, which takes quadratic time.
    """
    return _from_json(json.loads(payload))


def _to_json(value: Any) -> Any:
    # isinstance, since a Counter is a dict and an IntEnum an int. The base class's methods, since a subclass may override its own
    # to return something else.
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
    raise TypeError(f"a {type(value).__name__} is not plain data")


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
            raise ValueError(f"there is no kind of value named {kind[:20]!r}")
        return _DECODERS[kind](content)
    return value
