"""Runs published checks (assertions in Python) on a program that is in another sandbox, so that it sees nothing of them.

Job: JSON of `prelude`, `check` and `function`. Answered by RESULT when every assertion holds, FAILED when one does not, BROKEN
when the check cannot be run. On the way each call of the function is an ASK: its payload is [arguments, keyword arguments], the
answer, a RESULT, what was returned. That is plain data (`guest/protocol.py`), so an assertion compares what it says.
"""

import json
from typing import Any

from permix.verification.guest.limits import confine_process, limit_cpu_time, unlimited_integer_digits
from permix.verification.guest.protocol import (
    FRAME_CALL,
    FRAME_PROGRAM_FAILED,
    FRAME_RESULT,
    FRAME_TESTS_BROKEN,
    Channel,
    decode_value,
    encode_value,
)


def serve_check() -> None:
    channel, bounds = confine_process()
    limit_cpu_time(bounds["cpu_seconds"])
    job = json.loads(channel.receive().payload)
    program = RemoteFunction(channel)
    try:
        namespace: dict[str, Any] = {"__name__": "check"}
        exec(compile(job["prelude"], "prelude.py", "exec"), namespace)
        namespace[job["function"]] = program
        exec(compile(job["check"], "check.py", "exec"), namespace)
    except Exception as error:  # the boundary of a check: a value that it cannot work with fails it like a false assertion
        channel.send(
            FRAME_PROGRAM_FAILED if program.has_returned else FRAME_TESTS_BROKEN,
            f"{type(error).__name__}: {error}".encode("utf-8", "replace")[:300],
        )
        return
    channel.send(
        FRAME_RESULT if program.has_returned else FRAME_TESTS_BROKEN, b"" if program.has_returned else b"it calls nothing"
    )


class RemoteFunction:
    """The function under test, called over there. `has_returned`: a value of the program's has come back."""

    def __init__(self, channel: Channel) -> None:
        self._channel, self.has_returned = channel, False

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        with unlimited_integer_digits():
            self._channel.send(FRAME_CALL, encode_value([arguments, keywords]))
        payload = self._channel.receive().payload
        self.has_returned = True
        with unlimited_integer_digits():
            return decode_value(payload)


if __name__ == "__main__":
    serve_check()
