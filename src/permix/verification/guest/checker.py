"""Run a published check (assertions in Python) on a program in another sandbox, which does not see the check.

The JOB frame has JSON of `prelude`, `check` and `function`. The reply is RESULT if every assertion holds, PROGRAM_FAILED if one
does not, and TESTS_BROKEN if the check cannot be run. Before that, each call of the function is sent out as a CALL frame with
[arguments, keyword arguments], and a RESULT frame brings the returned value. Values are plain data (`guest/protocol.py`), so no
class of the program takes part in an assertion.
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
    """Receive one job, run the check and send the reply."""
    channel, bounds = confine_process()
    limit_cpu_time(bounds["cpu_seconds"])
    job = json.loads(channel.receive().payload)
    program = RemoteFunction(channel)
    try:
        namespace: dict[str, Any] = {"__name__": "check"}
        exec(compile(job["prelude"], "prelude.py", "exec"), namespace)
        namespace[job["function"]] = program
        exec(compile(job["check"], "check.py", "exec"), namespace)
    except Exception as error:  # any error, such as one caused by a value of an unexpected type, fails the check
        channel.send(
            FRAME_PROGRAM_FAILED if program.has_returned else FRAME_TESTS_BROKEN,
            f"{type(error).__name__}: {error}".encode("utf-8", "replace")[:300],
        )
        return
    channel.send(
        FRAME_RESULT if program.has_returned else FRAME_TESTS_BROKEN, b"" if program.has_returned else b"it calls nothing"
    )


class RemoteFunction:
    """A proxy of the function under test: a call runs it in the program's sandbox. `has_returned`: a value has come back."""

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
