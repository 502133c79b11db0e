"""Get completions from any OpenAI-compatible chat endpoint: vLLM, SGLang, llama.cpp, Ollama, a hosted API.

Callers see an ordinary generator. Requests run on an event loop in a thread of its own, so this also works in a notebook.
`permix.inference.pacing` decides how many are in flight; at most about `BUFFERED_PER_REQUEST` times as many completions wait for
the caller. Closing the generator cancels the requests in flight.

A model may have several addresses (`permix.inference.spreading`), each with its own limit and its own circuit breaker. What is
retried, and what failures mean, is in `permix.inference.openai_endpoint`. An endpoint that answered and then fails
`MAX_FAILURES_IN_A_ROW` times without an answer is asked no more: EndpointStoppedError.

The endpoint is not trusted. A reply is read up to `MAX_REPLY_BYTES` after decompression and for at most `timeout_s` seconds.
Redirects are not followed (`permix.inference.http_client`). The key and the values of `model.headers` are in no file, message,
log or repr (`permix.inference.endpoint_secrets`).
"""

import asyncio
import contextlib
import json
import queue
import sys
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

from permix.config import ModelConfig, normalize_address
from permix.errors import ConfigError
from permix.inference.addresses import SIZES_OF_WEIGHTS, RecordedForm, ServerStatement, parse_statement
from permix.inference.base import CompletionResult
from permix.inference.endpoint_secrets import MIN_HIDDEN_KEY_CHARS
from permix.inference.http_client import HttpClient, has_http_status
from permix.inference.openai_endpoint import Endpoint, ServedModel, parse_url
from permix.inference.spreading import Spreader
from permix.progress import print_status
from permix.types import Failure, Request, Sampling, digest

_Item = TypeVar("_Item")

Emit = Callable[[_Item], Awaitable[None]]


def iterate_async(work: Callable[[Emit[_Item]], Coroutine[Any, Any, None]], max_buffered: int) -> Iterator[_Item]:
    """Run `work` on an event loop in a thread of its own, yield the items that it emits, then raise the exception that it raised.

    `emit` waits while the caller has not taken `max_buffered` items. Closing the iterator cancels `work` and ends the thread.
    """
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="permix-background", daemon=True)
    slots = asyncio.Semaphore(max_buffered)
    arrived: queue.SimpleQueue[tuple[_Item] | None] = queue.SimpleQueue()

    async def emit(item: _Item) -> None:
        arrived.put((item,))
        await slots.acquire()

    thread.start()
    try:
        done = asyncio.run_coroutine_threadsafe(work(emit), loop)
        done.add_done_callback(lambda _: arrived.put(None))
        while (item := arrived.get()) is not None:
            loop.call_soon_threadsafe(slots.release)
            yield item[0]
        done.result()
    finally:
        # If the interpreter exits while the generator is open, the thread is frozen and waiting for it would never end.
        if not sys.is_finalizing():
            asyncio.run_coroutine_threadsafe(_cancel_others(), loop).result()
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()


async def _cancel_others() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


BUFFERED_PER_REQUEST = 4
"""Completions per request in flight that may wait for the caller before the next request is sent."""


def is_http_failure(failure: Failure) -> bool:
    """Whether the endpoint answered with an HTTP error; otherwise its state is unknown."""
    return has_http_status(failure.message)


class OpenAIModel:
    """Implements `Model` over HTTP. `backoff_s` is the wait before the first retry; it doubles with each further one."""

    default_system: str | None = None
    """Unknown: the endpoint applies its own chat template."""
    content_addressed = False

    def __init__(self, config: ModelConfig, *, backoff_s: float = 0.5) -> None:
        self.config = config
        self.name = config.name
        self.endpoints = tuple(Endpoint(config, url, backoff_s) for url in config.base_urls or ("",))

    @property
    def has_answered_before(self) -> bool:
        """Whether the run has answers of an earlier start: then no refusal of a prompt ends it."""
        return any(endpoint.has_answered_before for endpoint in self.endpoints)

    @has_answered_before.setter
    def has_answered_before(self, value: bool) -> None:
        for endpoint in self.endpoints:
            endpoint.has_answered_before = value

    @property
    def fingerprint(self) -> str:
        """A digest of the model's name, the metadata of its weights in `GET /models`, and the added fields of requests.

        The address is no part of it: a server may be started again on another machine or port. Most servers give no metadata;
        `permix.inference.addresses` decides whether a run goes on there. The first use asks the endpoint and raises ConfigError
        as `check_endpoint` does.
        """
        return digest("openai", self.name, *self._metadata(), *self._added_fields())

    @property
    def request_digest(self) -> str:
        """A digest of the model's name and the added fields of requests: the fingerprint without what the server says."""
        return digest("openai", self.name, *self._added_fields())

    def server_statements(self) -> dict[str, ServerStatement]:
        """The addresses at which the model answers, each with what the server there says of its weights (`parse_statement`).

        The first use asks the endpoint and raises ConfigError as `check_endpoint` does.
        """
        self.check_endpoint()
        return {normalize_address(endpoint.base_url): _server_statement(endpoint) for endpoint in self._present}

    def recorded_forms(self, base_url: str | None) -> Iterator[RecordedForm]:
        """The fingerprints by which earlier versions of permix may have recorded this model, answered at `base_url` (None: not
        known): with what its server says now, or of a server that says nothing; with or without the address."""
        added, said = self._added_fields(), _server_statement(self._describing_endpoint())
        unlisted: list[str] = []
        silent = [_weights_metadata(ServedModel(id=self.name))]
        addresses = dict.fromkeys((base_url, *(endpoint.base_url for endpoint in self.endpoints)))
        for metadata, statement in ((self._metadata(), said), (silent, {}), (unlisted, {})):
            fingerprint = digest("openai", self.name, *metadata, *added)
            yield RecordedForm(fingerprint, fingerprint, statement)
            for url in addresses:
                with contextlib.suppress(ConfigError):  # for a recorded text that is not an http(s) address
                    address = _former_address(url or "")
                    yield RecordedForm(digest("openai", address, self.name, *metadata, *added), fingerprint, statement)

    def _metadata(self) -> list[str]:
        return [_weights_metadata(served) for served in _entries(self._describing_endpoint())]

    def _describing_endpoint(self) -> Endpoint:
        """The first address whose server lists the model; the first one if none does."""
        self.check_endpoint()
        return next((endpoint for endpoint in self._present if _entries(endpoint)), self.endpoints[0])

    def _added_fields(self) -> list[str]:
        extra = self.config.extra_fields
        return [json.dumps(extra, sort_keys=True)] if extra else []

    def check_endpoint(self) -> None:
        """Raise ConfigError unless an endpoint can be reached and accepts the key, and all serve the same model.

        An endpoint without `GET /models`, or a key that may not list models, passes: then the first requests decide. Only the
        first call asks. Of several addresses those that cannot be reached are left out of this start, which is printed.
        """

        async def work(_: Emit[None]) -> None:
            async with contextlib.AsyncExitStack() as stack:
                await self._ensure_model_lists(await self._open_clients(stack))

        if any(endpoint.served_models is None for endpoint in self._present):
            list(iterate_async(work, max_buffered=1))

    @property
    def _present(self) -> tuple[Endpoint, ...]:
        return tuple(endpoint for endpoint in self.endpoints if not endpoint.is_absent)

    async def _open_clients(self, stack: contextlib.AsyncExitStack) -> list[HttpClient]:
        return [await stack.enter_async_context(endpoint.make_client()) for endpoint in self._present]

    async def _ensure_model_lists(self, clients: Sequence[HttpClient]) -> None:
        present = self._present
        listings = [one.ensure_model_list(client) for one, client in zip(present, clients, strict=True)]
        outcomes = await asyncio.gather(*listings, return_exceptions=True)
        errors = {one: error for one, error in zip(present, outcomes, strict=True) if error is not None}
        for error in errors.values():
            if not isinstance(error, ConfigError) or len(errors) == len(present):
                raise error
        for endpoint, error in errors.items():
            endpoint.is_absent = True
            print_status(f"note: {error}; the run does without this address until it is started again")
        _check_same_model(self.config, self._present)

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[CompletionResult]:
        """Yield one `CompletionResult` per request as it arrives.

        Raises ConfigError when the endpoint refuses everything or answers nothing, and EndpointStoppedError when it answers no
        more; both after the results of the requests that failed.

        Token counts are the endpoint's, or None if it reports none; they include malformed replies to the same request. JSON
        schemas are sent until the endpoint refuses one and accepts the same request without it. A field that the endpoint
        refuses is left out or renamed from then on (`Endpoint.request_changes`).
        """
        if not requests:
            return

        async def work(emit: Emit[CompletionResult]) -> None:
            async with contextlib.AsyncExitStack() as stack:
                clients = dict(zip(self._present, await self._open_clients(stack), strict=True))
                await self._ensure_model_lists(list(clients.values()))
                present = self._present
                await Spreader(present, requests, sampling, emit).run([clients[endpoint] for endpoint in present])

        n_in_flight = sum(endpoint.limit.bound for endpoint in self.endpoints)
        yield from iterate_async(work, max_buffered=BUFFERED_PER_REQUEST * min(n_in_flight, len(requests)))


def _entries(endpoint: Endpoint) -> list[ServedModel]:
    return [served for served in endpoint.served_models or () if served.id == endpoint.name]


def _server_statement(endpoint: Endpoint) -> ServerStatement:
    entry = next(iter(_entries(endpoint)), None)
    if entry is None:
        return {}
    # A server may repeat the key; a placeholder such as "EMPTY" may be a part of a path.
    redact = partial(endpoint.secrets.redact, min_chars=MIN_HIDDEN_KEY_CHARS)
    return parse_statement(endpoint.name, entry.root, entry.parent, entry.meta, redact)


def _check_same_model(config: ModelConfig, endpoints: Sequence[Endpoint]) -> None:
    """Raise ConfigError if two addresses list different models. An address that lists none passes.

    Names of weights may differ if the user has confirmed that the weights are the same; sizes may not.
    """
    listing = [endpoint for endpoint in endpoints if endpoint.served_models]
    if (serving := next((one for one in listing if _entries(one)), None)) is None:
        return
    said = _server_statement(serving)
    for other in listing:
        if not _entries(other):
            ids = other.secrets.sanitize_message(", ".join(served.id for served in other.served_models or ()))
            raise ConfigError(
                f"model.base_url: {serving.base_url} serves {config.name!r}, and {other.base_url} does not (served: {ids}); give "
                "addresses that serve the same model"
            )
        also_said = _server_statement(other)
        differing = [field for field in said if field in also_said and said[field] != also_said[field]]
        sizes_differ = not set(differing).isdisjoint(SIZES_OF_WEIGHTS)
        if differing and (sizes_differ or not config.same_weights):
            ours, theirs = (", ".join(f"{field} = {one[field]!r}" for field in differing) for one in (said, also_said))
            cure = "" if sizes_differ else ", or confirm with --model.same-weights that the weights are the same"
            raise ConfigError(
                f"model.base_url: {serving.base_url} and {other.base_url} serve other weights under the name {config.name!r}: "
                f"{ours}, and {theirs}; give addresses that serve the same model{cure}"
            )


def _former_address(base_url: str) -> str:
    """The address in fingerprints of earlier versions. Raises ConfigError for a text that is not an http(s) address."""
    url = parse_url(base_url)
    return f"{url.netloc.lower()}{url.path.rstrip('/')}"


def _weights_metadata(served: ServedModel) -> str:
    """The metadata of the weights in an entry of `GET /models`, as JSON: vLLM's root and parent, llama.cpp's sizes."""
    meta = served.meta if isinstance(served.meta, dict) else {}
    kept = {field: meta.get(field) for field in SIZES_OF_WEIGHTS}
    return json.dumps({"root": served.root, "parent": served.parent, **kept}, sort_keys=True)
