"""Runs published checks (assertions in Python) on a program that is in another sandbox, so that it sees nothing of them.

Job: JSON of `prelude`, `check` and `function`. Answered by RESULT when every assertion holds, FAILED when one does not, BROKEN
when the check cannot be run. On the way each call of the function is an ASK: its payload is [arguments, keyword arguments], the
answer, a RESULT, what was returned. That is plain data (`guest/protocol.py`), so an assertion compares what it says.
"""

import json
from typing import Any

from permix.verification.guest.limits import allow_cpu, confined, long_integers
from permix.verification.guest.protocol import ASK, BROKEN, FAILED, RESULT, Channel, dumps, loads


def main() -> None:
    channel, bounds = confined()
    allow_cpu(bounds["cpu_seconds"])
    job = json.loads(channel.receive().payload)
    program = Elsewhere(channel)
    try:
        namespace: dict[str, Any] = {"__name__": "check"}
        exec(compile(job["prelude"], "prelude.py", "exec"), namespace)
        namespace[job["function"]] = program
        exec(compile(job["check"], "check.py", "exec"), namespace)
    except Exception as error:  # the boundary of a check: a value that it cannot work with fails it like a false assertion
        channel.send(FAILED if program.answered else BROKEN, f"{type(error).__name__}: {error}".encode("utf-8", "replace")[:300])
        return
    channel.send(RESULT if program.answered else BROKEN, b"" if program.answered else b"it calls nothing")


class Elsewhere:
    """The function under test, called over there. `answered`: a value of the program's has come back."""

    def __init__(self, channel: Channel) -> None:
        self._channel, self.answered = channel, False

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        with long_integers():
            self._channel.send(ASK, dumps([arguments, named]))
        payload = self._channel.receive().payload
        self.answered = True
        with long_integers():
            return loads(payload)


if __name__ == "__main__":
    main()
