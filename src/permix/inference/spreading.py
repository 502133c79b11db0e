"""Spread the requests of one call over the addresses of a model.

1. Every request has a home address, so that the requests of a persona go to one server, which has its prefix cached. The home is
   the live address with the highest hash of address and `prompt_key` (rendezvous hashing: if an address is left out, only its own
   requests get another home).
2. An address that has room and no request left takes the last request of the longest queue.
3. If a request fails because of its address, it is sent to another live address, at most once to each. The failure counts only if
   no other address is left. A lost connection is retried once at an address, not as often as `retries` says, while there
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

_FATAL_ERRORS = (ConfigError, EndpointStoppedError)
"""Errors of an address that end all of its requests."""


def prompt_key(request: Request) -> str:
    """What the requests of one persona share: the system message, or else the first message up to its first blank line."""
    first = request.messages[0]
    return first["content"] if first["role"] == "system" else first["content"].partition("\n\n")[0]


def home_order(key: str, addresses: Sequence[str]) -> list[int]:
    """The places of the addresses, the home of the requests with this key first. The order depends on no other address."""
    return sorted(range(len(addresses)), key=lambda place: digest(key, addresses[place]), reverse=True)


class _AddressQueue:
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
        self._visited: dict[int, set[_AddressQueue]] = {}  # of requests that failed at an address
        self._wasted: dict[int, WastedTokens] = {}
        self._addresses: list[_AddressQueue] = []

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
        self._addresses = [_AddressQueue(*one) for one in zip(self._endpoints, clients, indices, strict=True)]
        try:
            async with asyncio.TaskGroup() as group:
                for address in self._addresses:
                    group.create_task(self._serve(address, group))
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None

    def _order(self, index: int) -> list[int]:
        if len(self._endpoints) == 1:
            return [0]
        key = prompt_key(self._requests[index])
        if key not in self._orders:
            self._orders[key] = home_order(key, [endpoint.base_url for endpoint in self._endpoints])
        return self._orders[key]

    async def _serve(self, address: _AddressQueue, group: asyncio.TaskGroup) -> None:
        """Open requests at an address while it has room, until all requests are done."""
        while self._n_unfinished:
            address.wake.clear()
            if (index := self._next_index(address)) is not None:
                address.breaker.open_request()
                group.create_task(self._ask(address, index, is_probe=not address.is_live))
                continue
            until = address.endpoint.left_out_until
            pause_s = None if until is None or address.breaker.n_open else max(0.0, until - time.monotonic())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await address.wake.wait()

    def _next_index(self, address: _AddressQueue) -> int | None:
        """The next request for an address: of its own queue, or of another's; None if it gets none now."""
        if address.endpoint.left_out_until is not None:
            is_due = not address.breaker.n_open and time.monotonic() >= address.endpoint.left_out_until
            return self._take_from_others(address) if is_due else None
        if not address.breaker.has_room:
            return None
        if (index := address.breaker.next_request()) is not None:
            return index
        return None if address.breaker.streak.n_failures else self._take_from_others(address)

    def _take_from_others(self, address: _AddressQueue) -> int | None:
        for other in sorted(self._addresses, key=lambda one: len(one.breaker.unstarted), reverse=True):
            queue = other.breaker.unstarted
            for place in range(len(queue) - 1, -1, -1) if other is not address else ():
                if address not in self._visited.get(queue[place], ()):
                    index = queue[place]
                    del queue[place]
                    return index
        return None

    async def _ask(self, address: _AddressQueue, index: int, *, is_probe: bool) -> None:
        """Ask for one request at one address, and emit its result or move it to another address.

        `is_probe`: the address is asked although it is left out.
        """
        wasted = self._wasted.pop(index, None) or WastedTokens()
        try:
            outcome = None
            if address.is_live or is_probe:
                task = asyncio.current_task()
                assert task is not None
                # Only now: a task that is cancelled before its first step never runs, and its request would be lost.
                address.asking[index] = task
                try:
                    outcome = await self._complete(address, index, wasted)
                finally:
                    address.asking.pop(index, None)
            else:  # the address was left out between the making of this task and its first step
                address.breaker.drop_first_attempt()
            if outcome is None or (outcome.is_of_address and self._has_others(address, index)):
                self._wasted[index] = wasted
                self._move(index, address)
            else:
                await self._emit(CompletionResult(index, outcome.result))
                self._visited.pop(index, None)
                self._n_unfinished -= 1
            self._note_state(address, answered=outcome is not None and not isinstance(outcome.result, Failure))
        finally:
            address.breaker.close_request()
            if not self._n_unfinished:
                self._wake_all()

    async def _complete(self, address: _AddressQueue, index: int, wasted: WastedTokens) -> Outcome | None:
        """The outcome at one address; None if the request goes to another because this one is left out."""
        request = self._requests[index]
        try:
            return await address.endpoint.complete(
                address.client,
                request,
                self._sampling,
                self._n_by_kind[has_system(request)],
                address.breaker,
                wasted,
                has_others=lambda: self._has_others(address, index),
            )
        except _FATAL_ERRORS as error:
            address.asking.pop(index, None)  # or leaving the address out would cancel this very task
            self._leave_out(address, error)
            return None
        except asyncio.CancelledError:
            if index not in address.moving:
                raise
            address.moving.discard(index)
            return None

    def _has_others(self, address: _AddressQueue, index: int) -> bool:
        visited = self._visited.get(index, ())
        return any(other.is_live and other is not address and other not in visited for other in self._addresses)

    def _move(self, index: int, address: _AddressQueue) -> None:
        """Put a request that failed at `address` at the front of the queue of another live address."""
        visited = self._visited.setdefault(index, set())
        visited.add(address)
        live = [one for place in self._order(index) if (one := self._addresses[place]).is_live and one is not address]
        if not live:  # the last one goes on alone
            live = [one for one in self._addresses if one.is_live]
        target = next((one for one in live if one not in visited), live[0])
        visited.discard(target)
        target.breaker.unstarted.appendleft(index)
        self._wake_all()

    def _note_state(self, address: _AddressQueue, *, answered: bool) -> None:
        """Leave an address out, or take it back, after the outcome of a request there."""
        endpoint = address.endpoint
        if answered and len(self._addresses) > 1:
            for other in self._endpoints:
                other.has_answered_before = True  # a refusal at one address now means something else than a wrong setting
            if endpoint.left_out_until is not None:
                endpoint.left_out_until = None
                print_status(f"note: {endpoint.base_url}: answers again")
                self._wake_all()
        elif endpoint.left_out_until is not None:
            endpoint.left_out_until = time.monotonic() + PROBE_PAUSE_S
        elif (error := endpoint.stop_error()) is not None:
            self._leave_out(address, error)

    def _leave_out(self, address: _AddressQueue, error: Exception) -> None:
        """Ask an address no more, and move its requests; raises the error if it was the last."""
        others = [one for one in self._addresses if one.is_live and one is not address]
        if not others:
            raise _with_number_of_addresses(error, len(self._addresses))
        is_news = address.is_live
        address.endpoint.left_out_until = time.monotonic() + PROBE_PAUSE_S
        if not is_news:
            return
        print_status(f"note: {error}; the run goes on at {', '.join(one.endpoint.base_url for one in others)}")
        while address.breaker.unstarted:
            self._move(address.breaker.unstarted.pop(), address)
        for index, task in address.asking.items():  # they wait for a retry or a probe
            address.moving.add(index)
            task.cancel()
        self._wake_all()

    def _wake_all(self) -> None:
        for address in self._addresses:
            address.wake.set()


def _with_number_of_addresses(error: Exception, n_addresses: int) -> Exception:
    if n_addresses == 1 or not isinstance(error, EndpointStoppedError):
        return error
    last_failure = str(error).removeprefix(f"{error.stop_reason}: ")
    return EndpointStoppedError(f"{error.stop_reason}, the last of {n_addresses} addresses", last_failure)
