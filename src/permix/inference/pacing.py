"""How many requests an endpoint gets at the same time, and when it gets none.

`ConcurrencyLimit` adapts the number to the server:

1. With a number in the configuration, the limit begins there, and never exceeds it. Without one it begins at `FIRST_LIMIT`
   and is doubled, up to `MAX_LIMIT`, while that raises the throughput by a quarter of what it would raise it at best. When it
   does not, the limit goes back, and the next attempt is made after `ROUNDS_TO_NEXT_TRIAL` rounds. So a server that answers one
   request at a time is not flooded, although it refuses nothing.
2. A sign of overload (status 408, 429, 503, 504 or 529, or a timeout) halves the limit, to 1 at least. All requests that were in
   flight then belong to the same event: a burst of refusals halves it once.
3. After the first sign of overload the limit grows by a fixed step, 1/32 of its bound but at least 1, for as many answers as the
   limit, and is doubled no more.

2 and 3 are TCP's additive increase and multiplicative decrease (Chiu and Jain 1989; RFC 5681: one reduction for a window of
data), which libraries for clients of web services use too. TCP's step of 1 would need hundreds of rounds of several seconds each.
Throughput is the limit divided by the mean duration of a request (Little's law), also where answers come in bursts.
A limit that the pending requests do not use up does not grow.

`CircuitBreaker` stops asking an endpoint that has stopped answering.
"""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass

from permix.inference.http_client import http_status
from permix.types import Failure

FIRST_LIMIT = 16
"""Requests in flight with which a run begins whose configuration gives no number."""

MAX_LIMIT = 512
"""Most requests in flight if the configuration gives no number."""

SHARE_OF_BEST_GAIN = 0.25
"""A larger limit is kept if the throughput rises by this share of its rise if requests took no longer than before."""

ROUNDS_TO_NEXT_TRIAL = 8
"""Rounds, each of as many answers as the limit, after which a larger limit that did not raise the throughput is tried again."""

MAX_FAILURES_IN_A_ROW = 8
"""Failures of the endpoint that retrying did not cure, without an answer in between, after which it is asked no more."""


def is_overload(error: BaseException) -> bool:
    """Whether an error says that the endpoint has more requests than it can answer. A spent quota does not."""
    if isinstance(error, TimeoutError):
        return True
    return http_status(error) in (408, 429, 503, 504, 529) and getattr(error, "code", None) != "insufficient_quota"


@dataclass(frozen=True)
class SentRequest:
    """A request in flight: its number in the order of sending, when it was sent, and what it counts for.

    uses_limit: whether the limit was reached with it. trial: the number of the throughput measurement that it belongs to, if any.
    """

    number: int
    sent_s: float
    uses_limit: bool
    trial: int | None


class ConcurrencyLimit:
    """The number of requests that may be in flight at one address; the rule is in the docstring of the module.

    fixed: the number in the configuration; None for none. clock: seconds. `current` is the number now.
    """

    def __init__(self, fixed: int | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.bound = fixed or MAX_LIMIT
        self.current = fixed or FIRST_LIMIT
        self._clock = clock
        self._is_doubling = fixed is None
        self._step = max(1, self.bound // 32)
        self._n_sent = 0
        self._first_after_reduction = 0
        self._before: tuple[int, float] | None = None  # the last smaller limit and its throughput
        self._n_to_next_trial = 0
        self._trial = 0
        self._start_round()

    def _start_round(self) -> None:
        self._trial += 1
        self._n_settling, self._n_to_measure, self._n_measuring = self.current, self.current, 0
        self._durations_s: list[float] = []
        self._n_answers = 0

    def restart_round(self) -> None:
        """Forget the requests in flight: they were cancelled."""
        self._start_round()

    def start(self, n_in_flight: int) -> SentRequest:
        """Note that a request is sent; `n_in_flight` includes it."""
        uses_limit = n_in_flight >= self.current
        sent = SentRequest(self._n_sent, self._clock(), uses_limit, self._trial if self._takes_measurement(uses_limit) else None)
        self._n_sent += 1
        return sent

    def _takes_measurement(self, uses_limit: bool) -> bool:
        if not self._is_doubling or self._n_to_next_trial or self.current == self.bound:
            return False
        if self._n_settling:  # the first of a new limit do not find the queue that it leads to
            self._n_settling -= 1
            return False
        if not uses_limit or not self._n_to_measure:
            return False
        self._n_to_measure -= 1
        self._n_measuring += 1
        return True

    def add_answer(self, sent: SentRequest) -> None:
        """Note that a request was answered, and grow if that is due."""
        if not sent.uses_limit or sent.number < self._first_after_reduction:
            return self._end_measurement(sent, None)
        if self._is_doubling:
            self._n_to_next_trial = max(0, self._n_to_next_trial - 1)
            return self._end_measurement(sent, self._clock() - sent.sent_s)
        self._n_answers += 1
        if self._n_answers >= self.current and self.current < self.bound:
            self.current = min(self.bound, self.current + self._step)
            self._n_answers = 0

    def add_overload(self, sent: SentRequest) -> bool:
        """Note a sign of overload in the outcome of a request; returns whether that reduced the limit."""
        if sent.number < self._first_after_reduction:
            return False
        former, self.current = self.current, max(1, self.current // 2)
        self._first_after_reduction, self._is_doubling = self._n_sent, False
        self._start_round()
        return self.current < former

    def add_failure(self, sent: SentRequest) -> None:
        """Note another outcome, which says nothing of the load."""
        self._end_measurement(sent, None)

    def _end_measurement(self, sent: SentRequest, duration_s: float | None) -> None:
        if sent.trial != self._trial:
            return
        self._n_measuring -= 1
        if duration_s is not None:
            self._durations_s.append(duration_s)
        if not self._n_to_measure and not self._n_measuring:
            self._decide()

    def _decide(self) -> None:
        """Compare the throughput with that of the last smaller limit, and double the limit or go back."""
        if 2 * len(self._durations_s) < self.current:  # most of the measured requests failed
            return self._start_round()
        mean_s = sum(self._durations_s) / len(self._durations_s)
        throughput = self.current / max(mean_s, 1e-9)
        if self._before is not None:
            smaller, throughput_before = self._before
            best_gain = self.current / smaller - 1
            if throughput < throughput_before * (1 + SHARE_OF_BEST_GAIN * best_gain):
                self.current, self._before = smaller, None
                self._n_to_next_trial = ROUNDS_TO_NEXT_TRIAL * self.current
                return self._start_round()
        self._before = (self.current, throughput)
        self.current = min(self.bound, 2 * self.current)
        self._start_round()


class FailureStreak:
    """The failures of an endpoint since its last answer: how many count, and the last of them. 0 failures: it works."""

    def __init__(self) -> None:
        self.n_answers = self.n_failures = 0
        self.last: Failure | None = None

    @property
    def is_stop(self) -> bool:
        """Whether the endpoint is asked no more."""
        return self.n_failures >= MAX_FAILURES_IN_A_ROW

    def add_answer(self) -> None:
        self.n_answers += 1
        self.n_failures = 0


class CircuitBreaker:
    """Decides which request may be sent next, and which failures show that an endpoint has stopped answering.

    While the endpoint works, requests are independent of each other, and as many are open (sent, or waiting for their next
    attempt) as `limit` allows. The first request that fails after all of its retries, while no other was answered, begins a
    streak. From then on one request at a time is sent, a probe, without retries, until one is answered or
    `MAX_FAILURES_IN_A_ROW` have failed. The others wait, so that an outage costs the retries of the requests in flight and a few
    probes. Probes are taken from all over the pending requests: those of one persona or one question may fail for a reason of
    their own. One object serves one call of `generate`; streak and limit outlive it.

    `unstarted`: the indices of the requests that wait for this endpoint, in the order of asking. `on_reduction` is called with
    the error that reduced the limit.
    """

    def __init__(
        self,
        streak: FailureStreak,
        limit: ConcurrencyLimit,
        indices: Iterable[int],
        pause_s: float,
        on_reduction: Callable[[BaseException], None] = lambda _: None,
    ) -> None:
        self.streak, self.limit = streak, limit
        self.unstarted = deque(indices)
        self.n_open = 0
        self._pause_s, self._wait_s = pause_s, 0.0
        self._on_reduction = on_reduction
        self._n_first_attempts_waiting = self._n_in_flight = 0
        self._changed = asyncio.Event()
        self.on_change: Callable[[], None] = lambda: None
        """Called when there may be room for a request that was not there before."""

    @property
    def has_room(self) -> bool:
        """Whether one more request may be opened. In a streak a new one may be the next probe, however many wait for a retry."""
        is_next_probe = self.streak.n_failures > 0 and not (self._n_first_attempts_waiting or self._n_in_flight)
        return self.n_open < self.limit.current or is_next_probe

    def next_request(self) -> int | None:
        """The index of the next request to open; None when none is waiting. `open_request` opens it."""
        if not self.unstarted:
            return None
        place = min(self.streak.n_failures * len(self.unstarted) // MAX_FAILURES_IN_A_ROW, len(self.unstarted) - 1)
        index = self.unstarted[place]
        del self.unstarted[place]
        return index

    def open_request(self) -> None:
        self.n_open += 1
        self._n_first_attempts_waiting += 1

    def drop_first_attempt(self) -> None:
        """Note that an open request will make no attempt here. `close_request` closes it."""
        self._n_first_attempts_waiting -= 1
        self._notify()

    def close_request(self) -> None:
        self.n_open -= 1
        self.on_change()

    @contextlib.asynccontextmanager
    async def attempt(self, *, is_first: bool) -> AsyncIterator[bool]:
        """Wait until the attempt may be sent; yields whether it is a probe. `is_first`: of a request of `open_request`."""
        # During a streak, requests between two retries go last: their neighbours have failed already.
        try:
            while self._n_in_flight >= self.limit.current or (
                self.streak.n_failures
                and (self._n_in_flight or (not is_first and (self.unstarted or self._n_first_attempts_waiting)))
            ):
                await self._changed.wait()
        except BaseException:  # cancelled: other attempts must not wait for it for ever
            if is_first:
                self.drop_first_attempt()
            raise
        self._n_in_flight += 1
        self._n_first_attempts_waiting -= is_first
        is_probe = self.streak.n_failures > 0
        try:
            if is_probe:
                await asyncio.sleep(self._wait_s)
            sent = self.limit.start(self._n_in_flight)
            try:
                yield is_probe
            except Exception as error:
                self._note_error(sent, error)
                raise
            self.limit.add_answer(sent)
        finally:
            self._n_in_flight -= 1
            self._notify()

    def _note_error(self, sent: SentRequest, error: Exception) -> None:
        if not is_overload(error):
            self.limit.add_failure(sent)
        elif self.limit.add_overload(sent):
            self._on_reduction(error)

    def add_answer(self) -> None:
        self.streak.add_answer()
        self._wait_s = 0.0
        self._notify()

    def add_failure(self, failure: Failure, wait_s: float) -> None:
        """Count a failure of the endpoint; `wait_s`: how long it asks to wait."""
        self.streak.n_failures += 1
        self.streak.last = failure
        self._wait_s = max(wait_s, self._pause_s if self.streak.n_failures > 1 else 0.0)
        self._notify()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
        self.on_change()
