"""How many requests an endpoint gets at the same time: the rule on its own, and against servers that a few lines describe."""

import asyncio
import heapq

import pytest

from permix.inference.http_client import ConnectionFailedError, HttpStatusError
from permix.inference.pacing import (
    ROUNDS_TO_NEXT_TRIAL,
    CircuitBreaker,
    ConcurrencyLimit,
    FailureStreak,
    SentRequest,
    is_overload,
)
from permix.types import Failure


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class Server:
    """Answers `slots` requests at the same time, each within a second. The others wait, or are refused at once if `refuses`."""

    def __init__(self, slots: int, *, refuses: bool = False) -> None:
        self.refuses = refuses
        self._free_at_s = [0.0] * slots

    def ask(self, now_s: float) -> tuple[float, bool]:
        """When the reply comes, and whether it is an answer."""
        if self.refuses and self._free_at_s[0] > now_s:
            return now_s + 0.25, False
        done_s = max(self._free_at_s[0], now_s) + 1.0
        heapq.heapreplace(self._free_at_s, done_s)
        return done_s, True


class Simulation:
    """Keeps as many requests in flight as the limit allows, and at most `demand`."""

    def __init__(self, server: Server, fixed: int | None = None, demand: int = 10**9) -> None:
        self.clock = Clock()
        self.server, self.demand = server, demand
        self.limit = ConcurrencyLimit(fixed, self.clock)
        self.changes: list[tuple[float, int]] = []  # (when, the new limit)
        self._in_flight: list[tuple[float, int, bool, SentRequest]] = []

    def run(self, seconds: float) -> list[int]:
        """Go on for a time; the limits that were in force, each once for every reply."""
        until_s, limits = self.clock.now_s + seconds, list[int]()
        while self.clock.now_s < until_s:
            while len(self._in_flight) < min(self.limit.current, self.demand):
                sent = self.limit.start(len(self._in_flight) + 1)
                at_s, is_answer = self.server.ask(self.clock.now_s)
                heapq.heappush(self._in_flight, (at_s, sent.number, is_answer, sent))
            self.clock.now_s, _, is_answer, sent = heapq.heappop(self._in_flight)
            if is_answer:
                self.limit.add_answer(sent)
            else:
                self.limit.add_overload(sent)
            if self.limit.current != (limits or [self.limit.current])[-1]:
                self.changes.append((self.clock.now_s, self.limit.current))
            limits.append(self.limit.current)
        return limits


def test_a_server_that_answers_everything_gets_the_most() -> None:
    simulation = Simulation(Server(10_000))
    limits = simulation.run(60)
    assert list(dict.fromkeys(limits)) == [16, 32, 64, 128, 256, 512]
    assert simulation.limit.current == 512


def test_each_doubling_takes_three_durations_of_a_request() -> None:
    """In the first second of a limit its requests settle, in the second and third as many are sent and measured."""
    simulation = Simulation(Server(10_000))
    simulation.run(15)
    assert simulation.changes == [(2.0, 32), (5.0, 64), (8.0, 128), (11.0, 256), (14.0, 512)]


@pytest.mark.parametrize(
    ("slots", "largest"),
    [
        (1, 32),  # 16 are 1 a second, as many as 32 are: back to 16
        (16, 32),
        (20, 64),  # 32 give 20 a second, 1.25 times the 16 of the first limit; 64 give no more
        (100, 256),  # 64 a second, then 100, 1.56 times as many; then no more
    ],
)
def test_a_server_that_queues_is_not_flooded(slots: int, largest: int) -> None:
    simulation = Simulation(Server(slots))
    limits = simulation.run(4000 / slots)
    assert max(limits) == largest
    assert set(limits) == {size for size in (16, 32, 64, 128, 256) if size <= largest}
    kept = max(16, largest // 2)
    # A larger limit is tried for 2 rounds in ROUNDS_TO_NEXT_TRIAL + 2 of the kept one and 2 of twice the size.
    assert limits[len(limits) // 2 :].count(kept) >= 0.6 * len(limits[len(limits) // 2 :])
    assert limits[len(limits) // 2 :].count(largest) > 0
    assert ROUNDS_TO_NEXT_TRIAL == 8


def test_a_limit_that_is_not_used_does_not_grow() -> None:
    simulation = Simulation(Server(10_000), demand=15)
    assert set(simulation.run(100)) == {16}


@pytest.mark.parametrize("slots", [1, 3, 24, 100, 300])
def test_a_server_that_refuses_gets_about_what_it_can_answer(slots: int) -> None:
    simulation = Simulation(Server(slots, refuses=True))
    simulation.run(60)
    limits = simulation.run(200)
    # Halved as soon as it is above the slots, and then one step (512 / 32 = 16) after another.
    assert max(limits) <= slots + 16
    assert min(limits) >= max(1, (slots + 1) // 2 - 16)
    assert sum(limits) / len(limits) <= slots + 8


def test_a_burst_of_refusals_halves_once_and_never_below_1() -> None:
    limit = ConcurrencyLimit(8, Clock())
    burst = [limit.start(number + 1) for number in range(8)]
    assert [limit.add_overload(sent) for sent in burst] == [True] + [False] * 7
    assert limit.current == 4
    assert [(limit.add_overload(limit.start(1)), limit.current) for _ in range(3)] == [(True, 2), (True, 1), (False, 1)]


def test_answers_to_requests_of_before_a_reduction_do_not_count() -> None:
    limit = ConcurrencyLimit(8, Clock())
    burst = [limit.start(number + 1) for number in range(8)]
    limit.add_overload(burst[0])
    for sent in burst[1:]:
        limit.add_answer(sent)
    assert limit.current == 4


@pytest.mark.parametrize(("fixed", "step"), [(8, 1), (64, 2), (512, 16)])
def test_a_number_in_the_configuration_is_where_it_begins_and_its_bound(fixed: int, step: int) -> None:
    """After a reduction the limit grows by 1/32 of its bound for as many answers as it is."""
    limit = ConcurrencyLimit(fixed, Clock())
    assert limit.current == fixed
    limit.add_overload(limit.start(1))
    expected = fixed // 2
    while expected < fixed:
        assert limit.current == expected
        for _ in range(expected - 1):
            limit.add_answer(limit.start(expected))
        assert limit.current == expected
        limit.add_answer(limit.start(expected))
        expected += step
    for _ in range(10 * fixed):
        limit.add_answer(limit.start(fixed))
    assert limit.current == fixed


def test_failures_of_another_kind_change_nothing_and_end_a_measurement() -> None:
    """Of 16 measured requests 9 fail: the round is measured again. With 8 it counts."""
    clock = Clock()
    limit = ConcurrencyLimit(None, clock)

    def round_of(n_failures: int) -> None:
        for _ in range(16):
            limit.add_answer(limit.start(16))
        measured = [limit.start(16) for _ in range(16)]
        clock.now_s += 1
        for nth, sent in enumerate(measured):
            (limit.add_failure if nth < n_failures else limit.add_answer)(sent)

    round_of(9)
    assert limit.current == 16
    round_of(8)
    assert limit.current == 32


def test_requests_that_were_cancelled_do_not_hold_up_a_round() -> None:
    limit = ConcurrencyLimit(None, clock := Clock())
    cancelled = [limit.start(16) for _ in range(32)]
    limit.restart_round()
    for _ in range(16):
        limit.add_answer(limit.start(16))
    measured = [limit.start(16) for _ in range(16)]
    clock.now_s += 1
    for sent in (*cancelled, *measured):
        limit.add_answer(sent)
    assert limit.current == 32


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        *((HttpStatusError(status, {}, b"", "http://h"), True) for status in (408, 429, 503, 504, 529)),
        *((HttpStatusError(status, {}, b"", "http://h"), False) for status in (400, 401, 500, 502)),
        (HttpStatusError(429, {}, b'{"error": {"code": "insufficient_quota"}}', "http://h"), False),
        (TimeoutError(), True),
        (ConnectionFailedError(), False),
    ],
)
def test_what_is_a_sign_of_overload(error: Exception, expected: bool) -> None:
    assert is_overload(error) is expected


@pytest.mark.parametrize("ends", ["cancelled", "dropped"])
def test_a_first_attempt_that_is_never_made_holds_up_no_later_one(ends: str) -> None:
    """In a streak an attempt after the first waits until no first attempt does; one whose request has gone must not count."""

    async def run() -> str:
        breaker = CircuitBreaker(FailureStreak(), ConcurrencyLimit(None), [], pause_s=0.0)
        breaker.add_failure(Failure(type="E", message="gone"), 0.0)
        async with breaker.attempt(is_first=False):  # a probe: as long as it is in flight, the others wait
            breaker.open_request()
            if ends == "cancelled":
                waiting = asyncio.create_task(make(breaker, is_first=True))
                await asyncio.sleep(0)
                waiting.cancel()
                await asyncio.wait([waiting])
            else:
                breaker.drop_first_attempt()
            breaker.close_request()
        async with asyncio.timeout(30):
            return await make(breaker, is_first=False)

    async def make(breaker: CircuitBreaker, *, is_first: bool) -> str:
        async with breaker.attempt(is_first=is_first):
            return "made"

    assert asyncio.run(run()) == "made"
