"""Spread the requests of one call over the addresses of a model.

1. Every request has a home, so that the requests of a persona meet its prefix in one server's cache: of the live addresses the
   one with the highest hash of address and `prompt_key` (rendezvous hashing: when an address goes, only its own requests move).
2. An address that has room and no request left takes the last request of the longest queue.
3. A request that fails at an address for a reason of that address goes to another live one, at most once to each. Its failure
   counts only if no other is left. A lost connection is retried once at an address, not as often as `retries` says, while there
   are others.
4. An address that has stopped answering (`CircuitBreaker`), or refuses everything, is left out, which is printed once, and its
   requests go to the others. Every `PROBE_PAUSE_S` seconds it gets one request; once it answers one, it is used like the others
   again. The call ends with an error only when no address is left.

If there is only one address, it gets every request.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Sequence

from permix.errors import ConfigError, EndpointStoppedError
from permix.inference.base import CompletionResult
from permix.inference.http_client import HttpClient
from permix.inference.openai_endpoint import Endpoint, Outcome, WastedTokens, count_kinds, has_system
from permix.progress import print_status
from permix.types import Failure, Request, Sampling, digest

PROBE_PAUSE_S = 60.0
"""How long an address that was left out is not asked."""

_ENDS = (ConfigError, EndpointStoppedError)


def prompt_key(request: Request) -> str:
    """What the requests of one persona share: the system message, or else the first message up to its first blank line."""
    first = request.messages[0]
    return first["content"] if first["role"] == "system" else first["content"].partition("\n\n")[0]


def home_order(key: str, addresses: Sequence[str]) -> list[int]:
    """The places of the addresses, the home of the requests with this key first. The order depends on no other address."""
    return sorted(range(len(addresses)), key=lambda place: digest(key, addresses[place]), reverse=True)


class _Lane:
    """One address during one call."""

    def __init__(self, endpoint: Endpoint, client: HttpClient, indices: list[int]) -> None:
        self.endpoint, self.client = endpoint, client
        self.breaker = endpoint.make_breaker(indices)
        self.wake = asyncio.Event()
        self.breaker.on_change = self.wake.set
        self.asking: dict[int, asyncio.Task[None]] = {}  # without those whose result is being emitted
        self.moving: set[int] = set()  # cancelled because they go to another address

    @property
    def is_live(self) -> bool:
        return self.endpoint.left_out_until is None


class Spreader:
    """Asks for the requests of one call, and emits each result once.

    endpoints: the addresses; those that are left out are asked now and then. Raises ConfigError and EndpointStoppedError when no
    address is left, after the results of the requests that failed.
    """

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        requests: Sequence[Request],
        sampling: Sampling,
        emit: Callable[[CompletionResult], Awaitable[None]],
    ) -> None:
        self._endpoints, self._requests, self._sampling, self._emit = endpoints, requests, sampling, emit
        self._n_by_kind = count_kinds(requests)
        self._n_unfinished = len(requests)
        self._orders: dict[str, list[int]] = {}
        self._visited: dict[int, set[_Lane]] = {}  # of requests that failed at an address
        self._wasted: dict[int, WastedTokens] = {}
        self._lanes: list[_Lane] = []

    async def run(self, clients: Sequence[HttpClient]) -> None:
        """Ask for everything. `clients`: one for each address, open."""
        live = [place for place, one in enumerate(self._endpoints) if one.left_out_until is None]
        if not live:  # all were left out in an earlier call
            live = list(range(len(self._endpoints)))
            for endpoint in self._endpoints:
                endpoint.left_out_until = None
        indices: list[list[int]] = [[] for _ in self._endpoints]
        for index in range(len(self._requests)):
            indices[next(place for place in self._order(index) if place in live)].append(index)
        self._lanes = [_Lane(*one) for one in zip(self._endpoints, clients, indices, strict=True)]
        try:
            async with asyncio.TaskGroup() as group:
                for lane in self._lanes:
                    group.create_task(self._serve(lane, group))
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None

    def _order(self, index: int) -> list[int]:
        if len(self._endpoints) == 1:
            return [0]
        key = prompt_key(self._requests[index])
        if key not in self._orders:
            self._orders[key] = home_order(key, [endpoint.base_url for endpoint in self._endpoints])
        return self._orders[key]

    async def _serve(self, lane: _Lane, group: asyncio.TaskGroup) -> None:
        """Open requests at an address while it has room, until all requests are done."""
        while self._n_unfinished:
            lane.wake.clear()
            if (index := self._next_index(lane)) is not None:
                lane.breaker.open_request()
                group.create_task(self._ask(lane, index, is_probe=not lane.is_live))
                continue
            until = lane.endpoint.left_out_until
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(None if until is None or lane.breaker.n_open else max(0.0, until - time.monotonic())):
                    await lane.wake.wait()

    def _next_index(self, lane: _Lane) -> int | None:
        """The next request for an address: of its own queue, or of another's; None if it gets none now."""
        if lane.endpoint.left_out_until is not None:
            is_due = not lane.breaker.n_open and time.monotonic() >= lane.endpoint.left_out_until
            return self._take_from_others(lane) if is_due else None
        if not lane.breaker.has_room:
            return None
        if (index := lane.breaker.next_request()) is not None:
            return index
        return None if lane.breaker.streak.n_failures else self._take_from_others(lane)

    def _take_from_others(self, lane: _Lane) -> int | None:
        for other in sorted(self._lanes, key=lambda one: len(one.breaker.unstarted), reverse=True):
            queue = other.breaker.unstarted
            for place in range(len(queue) - 1, -1, -1) if other is not lane else ():
                if lane not in self._visited.get(queue[place], ()):
                    index = queue[place]
                    del queue[place]
                    return index
        return None

    async def _ask(self, lane: _Lane, index: int, *, is_probe: bool) -> None:
        """Ask for one request at one address, and emit its result or move it to another address.

        `is_probe`: the address is asked although it is left out.
        """
        wasted = self._wasted.pop(index, None) or WastedTokens()
        try:
            outcome = None
            if lane.is_live or is_probe:
                task = asyncio.current_task()
                assert task is not None
                # Only now: a task that is cancelled before its first step never runs, and its request would be lost.
                lane.asking[index] = task
                try:
                    outcome = await self._complete(lane, index, wasted)
                finally:
                    lane.asking.pop(index, None)
            else:  # the address was left out between the making of this task and its first step
                lane.breaker.drop_first_attempt()
            if outcome is None or (outcome.is_of_address and self._has_others(lane, index)):
                self._wasted[index] = wasted
                self._move(index, lane)
            else:
                await self._emit(CompletionResult(index, outcome.result))
                self._visited.pop(index, None)
                self._n_unfinished -= 1
            self._note_state(lane, answered=outcome is not None and not isinstance(outcome.result, Failure))
        finally:
            lane.breaker.close_request()
            if not self._n_unfinished:
                self._wake_all()

    async def _complete(self, lane: _Lane, index: int, wasted: WastedTokens) -> Outcome | None:
        """The outcome at one address; None if the request goes to another because this one is left out."""
        request = self._requests[index]
        try:
            return await lane.endpoint.complete(
                lane.client,
                request,
                self._sampling,
                self._n_by_kind[has_system(request)],
                lane.breaker,
                wasted,
                has_others=lambda: self._has_others(lane, index),
            )
        except _ENDS as error:
            lane.asking.pop(index, None)  # or leaving the address out would cancel this very task
            self._leave_out(lane, error)
            return None
        except asyncio.CancelledError:
            if index not in lane.moving:
                raise
            lane.moving.discard(index)
            return None

    def _has_others(self, lane: _Lane, index: int) -> bool:
        visited = self._visited.get(index, ())
        return any(other.is_live and other is not lane and other not in visited for other in self._lanes)

    def _move(self, index: int, lane: _Lane) -> None:
        """Put a request that failed at `lane` at the front of the queue of another live address."""
        visited = self._visited.setdefault(index, set())
        visited.add(lane)
        live = [one for place in self._order(index) if (one := self._lanes[place]).is_live and one is not lane]
        if not live:  # the last one goes on alone
            live = [one for one in self._lanes if one.is_live]
        target = next((one for one in live if one not in visited), live[0])
        visited.discard(target)
        target.breaker.unstarted.appendleft(index)
        self._wake_all()

    def _note_state(self, lane: _Lane, *, answered: bool) -> None:
        """Leave an address out, or take it back, after the outcome of a request there."""
        endpoint = lane.endpoint
        if answered and len(self._lanes) > 1:
            for other in self._endpoints:
                other.has_answered_before = True  # a refusal at one address now means something else than a wrong setting
            if endpoint.left_out_until is not None:
                endpoint.left_out_until = None
                print_status(f"note: {endpoint.base_url}: answers again")
                self._wake_all()
        elif endpoint.left_out_until is not None:
            endpoint.left_out_until = time.monotonic() + PROBE_PAUSE_S
        elif (error := endpoint.stop_error()) is not None:
            self._leave_out(lane, error)

    def _leave_out(self, lane: _Lane, error: Exception) -> None:
        """Ask an address no more, and move its requests; raises the error if it was the last."""
        others = [one for one in self._lanes if one.is_live and one is not lane]
        if not others:
            raise _with_number_of_addresses(error, len(self._lanes))
        is_news = lane.is_live
        lane.endpoint.left_out_until = time.monotonic() + PROBE_PAUSE_S
        if not is_news:
            return
        print_status(f"note: {error}; the run goes on at {', '.join(one.endpoint.base_url for one in others)}")
        while lane.breaker.unstarted:
            self._move(lane.breaker.unstarted.pop(), lane)
        for index, task in lane.asking.items():  # they wait for a retry or a probe
            lane.moving.add(index)
            task.cancel()
        self._wake_all()

    def _wake_all(self) -> None:
        for lane in self._lanes:
            lane.wake.set()


def _with_number_of_addresses(error: Exception, n_addresses: int) -> Exception:
    if n_addresses == 1 or not isinstance(error, EndpointStoppedError):
        return error
    last_failure = str(error).removeprefix(f"{error.stop_reason}: ")
    return EndpointStoppedError(f"{error.stop_reason}, the last of {n_addresses} addresses", last_failure)
