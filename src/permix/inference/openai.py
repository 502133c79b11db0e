"""Get completions from any OpenAI-compatible chat endpoint: vLLM, SGLang, llama.cpp, Ollama, a hosted API.

Callers see an ordinary generator. Requests run on an event loop in a thread of its own, so this also works in a notebook. At most
`concurrency` requests are in flight, and at most about `BUFFERED_PER_REQUEST` times as many completions wait for the caller.
Closing the generator cancels the requests in flight.

Transient errors (408, 429, 5xx, a lost connection, a timeout, a malformed reply) are retried. A permanent error is a `Failure`
of that request alone. ConfigError means that the endpoint cannot answer any request: no such host, a refused key, an unknown
model, a redirect, or nothing but failures. An endpoint that answered and then fails `MAX_FAILURES_IN_A_ROW` times without an
answer is asked no more: EndpointStoppedError. Failures that concern one request (a prompt that is too long, a content filter)
do not count.

The endpoint is not trusted. A reply is read up to `MAX_REPLY_BYTES` after decompression and for at most `timeout_s` seconds.
Redirects are not followed. The key and the values of `model.headers` are read from the environment when they are needed; no file,
message, log or repr contains them, also if the endpoint repeats them.
"""

import asyncio
import contextlib
import email.utils
import json
import os
import queue
import re
import sys
import threading
import time
import zlib
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from functools import cache, partial
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import SplitResult, urljoin, urlsplit

from pydantic import BaseModel, ValidationError

from permix.config import ModelConfig
from permix.errors import ConfigError, EndpointStoppedError
from permix.inference.addresses import RecordedForm, ServerStatement, normalize_address, parse_statement
from permix.inference.base import CompletionResult
from permix.inference.request_body import (
    MAX_REFUSAL_CHARS,
    ChangeableField,
    FilteredReplyError,
    MalformedReplyError,
    RequestBody,
    is_system_refusal,
    parse_chat_completion,
    refusal_text,
    refused_field,
    usage_count,
)
from permix.progress import print_status
from permix.sanitize import redact_secrets
from permix.storage.cells import FailureCause, find_cause, find_cure
from permix.types import Completion, Failure, Request, Sampling, digest

if TYPE_CHECKING:
    import openai
    import tenacity


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


_HTTP_PREFIX = "HTTP "


class WastedTokens:
    """Tokens that an endpoint charged for malformed replies to one request."""

    def __init__(self) -> None:
        self.counts = {"prompt_tokens": 0, "completion_tokens": 0}

    def add_reply(self, body: bytes) -> None:
        """Add the token counts of a malformed reply; a body that is not JSON adds nothing."""
        with contextlib.suppress(ValueError, RecursionError):
            reply = json.loads(body)
            usage = reply.get("usage") if isinstance(reply, dict) else None
            self.counts = {name: count + (usage_count(usage, name) or 0) for name, count in self.counts.items()}

    def add_to_completion(self, completion: Completion) -> Completion:
        """The completion with the wasted tokens added to its counts.

        A completion without both counts stays as it is: a sum with an unknown part would look like a full count.
        """
        counts = {name: getattr(completion, name) for name in self.counts}
        if not any(self.counts.values()) or not all(counts.values()):
            return completion
        return completion.model_copy(update={name: counts[name] + wasted for name, wasted in self.counts.items()})


def http_status(error: BaseException | None) -> int | None:
    return getattr(error, "status_code", None)


def error_message(error: BaseException) -> str:
    """The text of an error; for an HTTP status, "HTTP STATUS: " and the message in the body."""
    status, body, cause = http_status(error), getattr(error, "body", None), error.__cause__
    if (target := redirect_target(error)) is not None:
        return f"{_HTTP_PREFIX}{status}: redirects to {target}, and permix follows no redirect"
    if status is not None:
        return f"{_HTTP_PREFIX}{status}: {refusal_text(body)}"
    return f"{error} ({type(cause).__name__}: {cause})" if cause else str(error)


def redirect_target(error: BaseException | None) -> str | None:
    """The whole address that an HTTP status 3xx points to; None for other errors."""
    response = getattr(error, "response", None)
    if response is None or not 300 <= response.status_code < 400 or "location" not in response.headers:
        return None
    location: str = response.headers["location"]
    with contextlib.suppress(ValueError):
        return urljoin(str(response.request.url), location)
    return location


def is_http_failure(failure: Failure) -> bool:
    """Whether the endpoint answered with an HTTP error (by the text of `error_message`); otherwise its state is unknown."""
    return failure.message.startswith(_HTTP_PREFIX)


def is_transient_status(error: BaseException) -> bool:
    """Whether a retry may succeed: status 408, 429 or 5xx. A 429 for a spent quota is permanent."""
    status = http_status(error)
    if status is None or getattr(error, "code", None) == "insufficient_quota" or is_system_refusal(error_message(error)):
        return False
    return status in (408, 429) or status >= 500


def is_schema_refusal(error: BaseException) -> bool:
    """Whether the status may mean "no support for JSON schemas". It can have other causes, so retry without the schema."""
    return http_status(error) in (400, 404, 415, 422, 501)


def is_retryable(error: BaseException) -> bool:
    import openai

    return is_transient_status(error) or isinstance(error, (openai.APIConnectionError, TimeoutError, MalformedReplyError))


def retry_after_s(error: BaseException | None) -> float:
    """Seconds to wait by the Retry-After header, which is a number or a date; 0 without one, and for one that cannot be read."""
    response = getattr(error, "response", None)
    header = response.headers.get("retry-after", "").strip() if response is not None else ""
    if re.fullmatch(r"[0-9]+(\.[0-9]*)?", header):
        return float(header)  # inf for a number that is too large
    try:
        return max(0.0, email.utils.parsedate_to_datetime(header).timestamp() - time.time())
    except (ValueError, TypeError, IndexError, OverflowError):
        return 0.0


BUFFERED_PER_REQUEST = 4
"""Completions per request in flight that may wait for the caller before the next request is sent."""

REQUESTS_PER_CLIENT = 32
"""Most requests in flight per client: a client looks through all of its connections several times for each request."""

MAX_RETRY_WAIT_S = 60.0
"""Longest wait before a retry, whatever the server asks for."""

NOTED_RETRY_WAIT_S = 5.0
"""A wait before a retry that is as long as this is printed with its reason, at most one in this many seconds."""

MAX_REPLY_BYTES = 64_000_000
"""Longest reply that is read, after decompression. A streamed reply of 128,000 tokens, an event of 300 bytes for each, has 40 MB;
a longer one comes from a server that is broken or hostile, and would fill the memory."""

MAX_MODEL_LIST_BYTES = 8_000_000
"""Longest list of models that is read: it is read before each run, and large providers list thousands of models in 1 MB."""

MIN_HIDDEN_KEY_CHARS = 12
"""A shorter key is a placeholder, such as "EMPTY" for a local server: it is not hidden in answers, where it may be a word."""

MIN_HIDDEN_HEADER_CHARS = 4
"""A shorter value of a header is no secret: hiding "1" or "no" would make messages unreadable."""

MAX_REFUSALS = 8
"""Refusals that a retry cannot cure, before any completion of the same kind of request, after which a run stops."""

MAX_REFUSED_PROMPTS = 100
"""The same for refusals of the prompt itself (too long, filtered) before any completion at all: one persona may explain fewer."""

MAX_FAILURES_IN_A_ROW = 8
"""Failures of the endpoint that retrying did not cure, without an answer in between, after which it is asked no more."""

MAX_ERROR_CHARS = 500


_T = TypeVar("_T")


class ReplyTooLargeError(Exception):
    """A reply of more than `MAX_REPLY_BYTES`."""


class FailureStreak:
    """The failures of an endpoint since its last answer: how many count, and the last of them. 0 failures: it works."""

    def __init__(self) -> None:
        self.n_answers = self.n_failures = 0
        self.last: Failure | None = None

    def add_answer(self) -> None:
        self.n_answers += 1
        self.n_failures = 0


class CircuitBreaker:
    """Decides which request may be sent next, and which failures show that an endpoint has stopped answering.

    While the endpoint works, requests are independent of each other. The first request that fails after all of its retries,
    while no other was answered, begins a streak. From then on one request at a time is sent, a probe, without retries, until one
    is answered or `MAX_FAILURES_IN_A_ROW` have failed. The others wait, so that an outage costs the retries of the requests in
    flight and a few probes. Probes are taken from all over the pending requests: those of one persona or one question may fail
    for a reason of their own. One object serves one call of `generate`; the streak outlives it.
    """

    def __init__(self, streak: FailureStreak, n_requests: int, pause_s: float) -> None:
        self.streak = streak
        self._pause_s, self._wait_s = pause_s, 0.0
        self._unstarted = deque(range(n_requests))
        self._n_first_attempts_waiting = self._n_in_flight = 0
        self._changed = asyncio.Event()

    def next_request(self) -> int | None:
        """The index of the next request to start; None when all are started."""
        if not self._unstarted:
            return None
        place = min(self.streak.n_failures * len(self._unstarted) // MAX_FAILURES_IN_A_ROW, len(self._unstarted) - 1)
        index = self._unstarted[place]
        del self._unstarted[place]
        self._n_first_attempts_waiting += 1
        return index

    @contextlib.asynccontextmanager
    async def attempt(self, *, is_first: bool) -> AsyncIterator[bool]:
        """Wait until the attempt may be sent; yields whether it is a probe. `is_first`: of a request of `next_request`."""
        # During a streak, requests between two retries go last: their neighbours have failed already.
        while self.streak.n_failures and (
            self._n_in_flight or (not is_first and (self._unstarted or self._n_first_attempts_waiting))
        ):
            await self._changed.wait()
        self._n_in_flight += 1
        self._n_first_attempts_waiting -= is_first
        is_probe = self.streak.n_failures > 0
        try:
            if is_probe:
                await asyncio.sleep(self._wait_s)
            yield is_probe
        finally:
            self._n_in_flight -= 1
            self._notify()

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


@cache
def _http_client_class() -> type[Any]:
    """An HTTP client that follows no redirect and keeps at most `MAX_REPLY_BYTES` + 1 bytes of a reply's body, decompressed.

    The client of openai follows redirects, also with the body of a POST, and reads a body of any length into memory.
    """
    import openai

    class BoundedClient(openai.DefaultAsyncHttpxClient):  # httpx's or httpx2's AsyncClient, depending on openai's version
        async def send(self, request: Any, **options: Any) -> Any:
            response = await super().send(request, **options | {"stream": True, "follow_redirects": False})
            try:
                body = await _read_bounded(response)
            finally:
                await response.aclose()
            headers = [(name, value) for name, value in response.headers.multi_items() if name not in _BODY_HEADERS]
            return type(response)(response.status_code, headers=headers, content=body, request=request)

    return BoundedClient


_BODY_HEADERS = ("content-encoding", "content-length", "transfer-encoding")


async def _read_bounded(response: Any) -> bytes:
    """The decompressed body of an HTTP response, cut after `MAX_REPLY_BYTES` + 1 bytes."""
    encoding = response.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("identity", "gzip", "x-gzip", "deflate", ""):
        return f"the reply has Content-Encoding {encoding[:40]!r}; permix asks for gzip or none".encode()
    unpacker = None if encoding in ("identity", "") else zlib.decompressobj(zlib.MAX_WBITS | 32)
    body = bytearray()
    async for chunk in response.aiter_raw():
        room = MAX_REPLY_BYTES + 1 - len(body)
        try:
            body += chunk[:room] if unpacker is None else unpacker.decompress(chunk, room)
        except zlib.error as error:
            return f"the reply is not {encoding}, as its Content-Encoding says: {error}".encode()
        if len(body) > MAX_REPLY_BYTES:
            break
    return bytes(body)


class _ServedModel(BaseModel):
    """One entry of `GET /models`, without the fields that change between calls or server starts (`created`, permission ids)."""

    id: str
    root: Any = None
    parent: Any = None
    meta: Any = None


class _ModelList(BaseModel):
    data: list[_ServedModel]


class OpenAIModel:
    """Implements `Model` over HTTP. `backoff_s` is the wait before the first retry; it doubles with each further one."""

    default_system: str | None = None
    """Unknown: the endpoint applies its own chat template."""
    content_addressed = False

    def __init__(self, config: ModelConfig, *, backoff_s: float = 0.5) -> None:
        self.config = config
        self.name = config.name
        self._url = _parse_url(config.base_url or "")
        self._base_url = self._url.geturl()
        self._backoff_s = backoff_s
        self._served_models: tuple[_ServedModel, ...] | None = None
        self.has_answered_before = False
        """Whether the run has answers of an earlier start: then no refusal of a prompt ends it."""
        self._answered_kinds: set[bool] = set()  # of requests: with a system message (True) and without
        self._refusals_by_kind: Counter[tuple[bool, bool]] = Counter()  # (with a system message, of the prompt itself)
        self._streak = FailureStreak()
        self._supports_schemas = True
        self._body = RequestBody(config.name, config.extra_fields)
        self._next_wait_note_s = 0.0

    @property
    def fingerprint(self) -> str:
        """A digest of the model's name, the metadata of its weights in `GET /models`, and the added fields of requests.

        The address is no part of it: a server may be started again on another machine or port. Most servers give no metadata;
        `permix.inference.addresses` decides whether a run goes on there. The first use asks the endpoint and raises ConfigError
        as `check_endpoint` does.
        """
        return digest("openai", *self._fingerprint_parts())

    @property
    def request_digest(self) -> str:
        """A digest of the model's name and the added fields of requests: the fingerprint without what the server says."""
        return digest("openai", self.name, *self._added_fields())

    def server_statements(self) -> dict[str, ServerStatement]:
        """The address at which the model answers, with what the server there says of its weights (`parse_statement`).

        The first use asks the endpoint and raises ConfigError as `check_endpoint` does.
        """
        return {normalize_address(self._base_url): self._server_statement()}

    def _server_statement(self) -> ServerStatement:
        self.check_endpoint()
        entry = next((served for served in self._served_models or () if served.id == self.name), None)
        if entry is None:
            return {}
        # A server may repeat the key; a placeholder such as "EMPTY" may be a part of a path.
        redact = partial(self._redact, min_chars=MIN_HIDDEN_KEY_CHARS)
        return parse_statement(self.name, entry.root, entry.parent, entry.meta, redact)

    def recorded_forms(self, base_url: str | None) -> Iterator[RecordedForm]:
        """The fingerprints by which earlier versions of permix may have recorded this model, answered at `base_url` (None: not
        known): with what its server says now, or of a server that says nothing; with or without the address."""
        added, said = self._added_fields(), self._server_statement()
        unlisted: list[str] = []
        silent = [_weights_metadata(_ServedModel(id=self.name))]
        for metadata, statement in ((self._metadata(), said), (silent, {}), (unlisted, {})):
            fingerprint = digest("openai", self.name, *metadata, *added)
            yield RecordedForm(fingerprint, fingerprint, statement)
            for url in dict.fromkeys((base_url, self._base_url)):
                with contextlib.suppress(ConfigError):  # a recorded address that is none
                    address = _former_address(url or "")
                    yield RecordedForm(digest("openai", address, self.name, *metadata, *added), fingerprint, statement)

    def former_fingerprint(self, base_url: str) -> str:
        """The fingerprint that earlier versions of permix gave this model at `base_url`: they counted the address.

        Raises ConfigError for an address that is none.
        """
        return digest("openai", _former_address(base_url), *self._fingerprint_parts())

    def _fingerprint_parts(self) -> list[str]:
        return [self.name, *self._metadata(), *self._added_fields()]

    def _metadata(self) -> list[str]:
        self.check_endpoint()
        return [_weights_metadata(served) for served in self._served_models or () if served.id == self.name]

    def _added_fields(self) -> list[str]:
        extra = self.config.extra_fields
        return [json.dumps(extra, sort_keys=True)] if extra else []

    def check_endpoint(self) -> None:
        """Raise ConfigError unless the endpoint can be reached and accepts the key. Only the first call asks it.

        An endpoint without `GET /models`, or a key that may not list models, passes: then the first requests decide.
        """

        async def work(_: Emit[None]) -> None:
            async with self._make_client() as client:
                await self._ensure_model_list(client)

        if self._served_models is None:
            list(iterate_async(work, max_buffered=1))

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[CompletionResult]:
        """Yield one `CompletionResult` per request as it arrives.

        Raises ConfigError when the endpoint refuses everything or answers nothing, and EndpointStoppedError when it answers no
        more; both after the results of the requests that failed.

        Token counts are the endpoint's, or None if it reports none; they include malformed replies to the same request. JSON
        schemas are sent until the endpoint refuses one and accepts the same request without it. A field that the endpoint
        refuses is left out or renamed from then on (`request_changes`).
        """
        if not requests:
            return

        async def work(emit: Emit[CompletionResult]) -> None:
            await self._run_requests(requests, sampling, emit)

        yield from iterate_async(work, max_buffered=BUFFERED_PER_REQUEST * self.config.concurrency)

    async def _run_requests(self, requests: Sequence[Request], sampling: Sampling, emit: Emit[CompletionResult]) -> None:
        breaker = CircuitBreaker(self._streak, len(requests), pause_s=2 * self._backoff_s)
        n_by_kind = Counter(map(_has_system, requests))

        async def worker(client: "openai.AsyncOpenAI") -> None:
            while (index := breaker.next_request()) is not None:
                n_of_kind = n_by_kind[_has_system(requests[index])]
                result = await self._complete_request(client, requests[index], sampling, n_of_kind, breaker)
                await emit(CompletionResult(index, result))
                self._raise_if_stopped()

        n_workers = min(self.config.concurrency, len(requests))
        try:
            async with contextlib.AsyncExitStack() as stack, asyncio.TaskGroup() as group:
                for number in range(n_workers):
                    if number % REQUESTS_PER_CLIENT == 0:
                        client = await stack.enter_async_context(self._make_client())
                        await self._ensure_model_list(client)
                    group.create_task(worker(client))
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None

    async def _complete_request(
        self, client: "openai.AsyncOpenAI", request: Request, sampling: Sampling, n_of_kind: int, breaker: CircuitBreaker
    ) -> Completion | Failure:
        """The boundary for errors: any exception of one request becomes a `Failure` of that request."""
        wasted = WastedTokens()
        is_probe, n_attempts, n_answers = False, 0, 0

        async def attempt() -> Completion:
            nonlocal is_probe, n_attempts, n_answers
            n_attempts += 1
            async with breaker.attempt(is_first=n_attempts == 1) as is_probe:
                try:
                    return await self._post_with_schema_fallback(client, request, sampling, wasted)
                except Exception:
                    n_answers = breaker.streak.n_answers if n_attempts == 1 else n_answers
                    raise

        try:
            completion: Completion = await self._make_retrying(lambda error: not is_probe and is_retryable(error))(attempt)
        except Exception as error:
            failure = _to_failure(error, self._sanitize_message(error_message(error)), **wasted.counts)
            self._raise_if_all_refused(error, failure, _has_system(request), n_of_kind)
            # Failures of requests that were in flight when the streak began are the same event; and where others were answered
            # since the first attempt, the endpoint works.
            begins_streak = not breaker.streak.n_failures and n_answers == breaker.streak.n_answers
            if (is_probe or begins_streak) and self._is_outage(error, failure):
                breaker.add_failure(failure, min(retry_after_s(error), MAX_RETRY_WAIT_S))
            return failure
        breaker.add_answer()
        self._answered_kinds.add(_has_system(request))
        return self._redact_completion(wasted.add_to_completion(completion))

    async def _post_with_schema_fallback(
        self, client: "openai.AsyncOpenAI", request: Request, sampling: Sampling, wasted: WastedTokens
    ) -> Completion:
        import openai

        body = self._body.build(request.messages, request.seed, sampling)
        if request.schema is None or not self._supports_schemas:
            return await self._post(client, body, wasted)
        try:
            return await self._post(client, body | {"response_format": _response_format(request.schema)}, wasted)
        except openai.APIStatusError as error:
            if not is_schema_refusal(error):
                raise
        completion = await self._post(client, body, wasted)
        self._supports_schemas = False
        return completion

    @property
    def address(self) -> str:
        """The model's name and the endpoint's URL: what is found out about an endpoint holds for this model there."""
        return f"{self.name} at {self._base_url}"

    @property
    def request_changes(self) -> dict[ChangeableField, str]:
        """The fields that the endpoint refused and that are left out or renamed, with its words.

        What an earlier start found out may be added, so that it is not found out again.
        """
        return self._body.changes

    async def _post(self, client: "openai.AsyncOpenAI", body: dict[str, Any], wasted: WastedTokens) -> Completion:
        """One HTTP request. The tokens of a malformed reply are added to `wasted`."""
        import openai

        while True:
            try:
                # Not chat.completions.create: it walks through the whole body for parts to rewrite, which costs CPU time per
                # request.
                raw = await self._with_timeout(
                    client.post("/chat/completions", cast_to=openai.HttpxBinaryResponseContent, body=body)
                )
                if len(raw.content) > MAX_REPLY_BYTES:
                    raise ReplyTooLargeError(f"the reply is longer than {MAX_REPLY_BYTES / 1e6:g} MB")
                return parse_chat_completion(raw.content)
            except (MalformedReplyError, FilteredReplyError):
                wasted.add_reply(raw.content)
                raise
            except openai.APIStatusError as error:
                if error.status_code not in (400, 422) or (changed := self._adapted(error, body)) is None:
                    raise
                body = changed

    def _adapted(self, error: "openai.APIStatusError", body: dict[str, Any]) -> dict[str, Any] | None:
        """The body without the field that the endpoint refused, or None if the refusal is about something else.

        Requests in flight at the same time are refused for the same field: they too get their bodies changed, and it is noted
        once.
        """
        known = dict(self._body.changes)
        field = self._body.adapt(self._redact(refusal_text(error.body)), refused_field(error.body), body)
        if field is None:
            return None
        if field not in known:
            print_status(
                f"note: {self._base_url}: {_CHANGES[field]}, since it answered: {self._sanitize_message(error_message(error))}"
            )
        return self._body.rebuild(body)

    async def _with_timeout(self, reply: Awaitable[_T]) -> _T:
        """Limit the time of the whole reply; the HTTP client's own timeouts restart with every byte. Raises TimeoutError."""
        try:
            async with asyncio.timeout(self.config.timeout_s):
                return await reply
        except TimeoutError:
            raise TimeoutError(f"no complete reply within model.timeout_s = {self.config.timeout_s:g}") from None

    def _make_retrying(self, should_retry: Callable[[BaseException], bool]) -> "tenacity.AsyncRetrying":
        """A new object per request: tenacity keeps the state of an attempt on it, and concurrent tasks would share that state."""
        import tenacity

        jitter = tenacity.wait_random(0, self._backoff_s)
        backoff = tenacity.wait_exponential(multiplier=self._backoff_s, max=MAX_RETRY_WAIT_S)

        def wait(state: "tenacity.RetryCallState") -> float:
            error = state.outcome.exception() if state.outcome else None
            return min(max(backoff(state), retry_after_s(error)) + jitter(state), MAX_RETRY_WAIT_S)

        def note_wait(state: "tenacity.RetryCallState") -> None:
            error = state.outcome.exception() if state.outcome else None
            wait_s = state.next_action.sleep if state.next_action else 0.0
            if error is not None and wait_s >= NOTED_RETRY_WAIT_S and time.monotonic() >= self._next_wait_note_s:
                self._next_wait_note_s = time.monotonic() + NOTED_RETRY_WAIT_S
                why = self._sanitize_message(error_message(error))
                print_status(f"note: {self._base_url}: tries again after {wait_s:.0f} s, since it answered: {why}")

        return tenacity.AsyncRetrying(
            stop=tenacity.stop_after_attempt(self.config.retries + 1),
            wait=wait,
            retry=tenacity.retry_if_exception(should_retry),
            before_sleep=note_wait,
            reraise=True,
        )

    async def _ensure_model_list(self, client: "openai.AsyncOpenAI") -> None:
        if self._served_models is None:
            self._served_models = await self._list_models(client)

    async def _list_models(self, client: "openai.AsyncOpenAI") -> tuple[_ServedModel, ...]:
        """The models that the endpoint lists; empty if it lists none. Raises ConfigError as `check_endpoint` does."""
        import openai

        try:
            body: bytes = await self._make_retrying(is_transient_status)(self._fetch_model_list, client)
            return tuple(_ModelList.model_validate_json(body).data) if len(body) <= MAX_MODEL_LIST_BYTES else ()
        except (openai.APIConnectionError, TimeoutError) as error:
            raise ConfigError(
                f"model.base_url = {self._base_url}: no endpoint there: {self._sanitize_message(error_message(error))}"
            ) from None
        except openai.APIStatusError as error:
            if error.status_code == 401 or _leads_elsewhere(error):
                raise self._refusal_error(error) from None
            if is_transient_status(error):
                raise ConfigError(
                    f"model.base_url = {self._base_url}: not ready to serve: {self._sanitize_message(error_message(error))}"
                ) from None
            return ()
        except ValidationError:
            return ()

    async def _fetch_model_list(self, client: "openai.AsyncOpenAI") -> bytes:
        return (await self._with_timeout(client.models.with_raw_response.list())).content

    @property
    def _has_answered(self) -> bool:
        return self.has_answered_before or bool(self._answered_kinds)

    def _is_outage(self, error: Exception, failure: Failure) -> bool:
        """Whether a failure may concern all requests. Refusals for good count once the endpoint has answered in this start;
        before, `_raise_if_all_refused` counts them."""
        if _refuses_this_prompt(failure) or is_system_refusal(failure.message):
            return False
        return is_retryable(error) or (bool(self._answered_kinds) and _refuses_everything(error, failure))

    def _raise_if_stopped(self) -> None:
        n_failures, last = self._streak.n_failures, self._streak.last
        if n_failures < MAX_FAILURES_IN_A_ROW or last is None:
            return
        if self._has_answered:
            raise self._stopped_error(n_failures, last)
        raise ConfigError(
            f"model.base_url = {self._base_url}: answers no request; {n_failures} failures in a row, and retrying did not help: "
            f"{last.message or last.type}{_cure_text(last)}"
        )

    def _stopped_error(self, n_failures: int, last: Failure) -> EndpointStoppedError:
        return EndpointStoppedError(
            f"{self._base_url}: asked no more after {n_failures} failures in a row", last.message or last.type
        )

    def _raise_if_all_refused(self, error: Exception, failure: Failure, has_system: bool, n_of_kind: int) -> None:
        """Raise ConfigError if no request of this kind was answered yet and `MAX_REFUSALS` of them, or all, were refused for
        good; EndpointStoppedError if requests of the other kind were answered.

        Requests with and without a system message are counted apart: a model whose template takes no system message answers the
        others. Refusals of the prompt itself end a run only if nothing was ever answered, and after `MAX_REFUSED_PROMPTS`.
        """
        status = http_status(error)
        system_refusal = has_system and is_system_refusal(error_message(error))
        is_permanent = system_refusal or (status is not None and 300 <= status < 500 and not is_transient_status(error))
        if has_system in self._answered_kinds or not is_permanent:
            return
        of_prompt, of_everything = _refuses_this_prompt(failure), _refuses_everything(error, failure)
        if not system_refusal:
            if of_everything and self._answered_kinds:
                return  # the circuit breaker counts it
            if not of_everything and (self.has_answered_before or (of_prompt and self._answered_kinds)):
                return  # the pending requests may be those alone that were refused in an earlier start
        of_prompt = of_prompt and not system_refusal
        self._refusals_by_kind[has_system, of_prompt] += 1
        # A few requests may each be refused for their own reason; a missing key or model concerns all of them.
        concerns_all = system_refusal or (of_everything and (status in (401, 403, 404) or redirect_target(error) is not None))
        limit = MAX_REFUSED_PROMPTS if of_prompt else min(MAX_REFUSALS, n_of_kind) if concerns_all else MAX_REFUSALS
        if self._refusals_by_kind[has_system, of_prompt] < limit:
            return
        if self._has_answered and not concerns_all:
            raise self._stopped_error(limit, failure) from None
        raise self._refusal_error(error, system_refusal) from None

    def _refusal_error(self, error: Exception, system_refusal: bool = False) -> ConfigError:
        details = self._sanitize_message(error_message(error))
        if (target := redirect_target(error)) is not None:
            base = self._sanitize_message(re.sub(r"/(models|chat/completions)/?$", "", target.partition("?")[0]))
            return ConfigError(
                f"model.base_url = {self._base_url}: {details}, since the key would go there too; "
                f"if you trust it, set model.base_url to {base}"
            )
        if system_refusal:
            return ConfigError(
                f"model.name = {self.name!r} at {self._base_url}: takes no system message; give --personas.template "
                f"in_question, which puts the persona into the user's message: {details}"
            )
        if http_status(error) not in (401, 403, 404):
            cure = _cure_text(_to_failure(error, details))
            return ConfigError(f"model.name = {self.name!r} at {self._base_url}: refuses every request: {details}{cure}")
        if http_status(error) == 404:
            known = ", ".join(served.id for served in self._served_models or ()) or "unknown; base_url usually ends in /v1"
            return ConfigError(
                f"model.name = {self.name!r}: not served at {self._base_url} (served: {self._sanitize_message(known)}): {details}"
            )
        key = f"the key in the environment variable {self.config.api_key_env}"
        state = "was not accepted" if self._api_key() else "is missing: the variable is not set"
        return ConfigError(f"model.base_url = {self._base_url}: {key} {state} (model.api_key_env names the variable): {details}")

    def _make_client(self) -> "openai.AsyncOpenAI":
        import openai

        return openai.AsyncOpenAI(
            base_url=self._base_url,
            api_key=self._api_key() or "none",
            default_headers=self._headers(),
            max_retries=0,
            timeout=None,
            http_client=_http_client_class()(timeout=None, headers={"Accept-Encoding": "gzip"}),
        )

    def _api_key(self) -> str:
        key = os.environ.get(self.config.api_key_env, "").strip()
        if not re.fullmatch(r"[!-~]*", key) or set(key) & set("\"'\\"):
            raise ConfigError(
                f"environment variable {self.config.api_key_env}: not a key: it contains spaces, quotes, backslashes or "
                "non-ASCII characters, which an HTTP header cannot carry; set it to the key alone"
            )
        return key

    def _headers(self) -> dict[str, str]:
        """The further headers of each request. Raises ConfigError if a variable is not set, or if its value cannot be sent."""
        headers = {name: os.environ.get(variable, "").strip() for name, variable in self.config.header_variables.items()}
        for name, value in headers.items():
            variable = self.config.header_variables[name]
            if not value:
                raise ConfigError(
                    f"model.headers: the environment variable {variable}, which holds the value of {name}, is not set; "
                    f"set it, or leave {name} out"
                )
            if not re.fullmatch(r"[ -~]*", value):
                raise ConfigError(
                    f"environment variable {variable}: is no value for the header {name}: it contains a line break or another "
                    "character that an HTTP header cannot carry"
                )
        return headers

    def _secrets(self, min_chars: int) -> list[str]:
        """The key, and the values of headers, that have `min_chars` characters or more; longest first.

        A shorter value than `MIN_HIDDEN_HEADER_CHARS` is never one.
        """
        values = [value for value in self._headers().values() if len(value) >= MIN_HIDDEN_HEADER_CHARS]
        # Of two secrets of which one contains the other, the longer must be replaced first.
        return sorted((one for one in (self._api_key(), *values) if one and len(one) >= min_chars), key=len, reverse=True)

    def _sanitize_message(self, text: str) -> str:
        """Text safe for a record or a terminal: no secrets, no control characters, at most `MAX_ERROR_CHARS` characters."""
        # Secrets are replaced before the text is cut: half a key would not be recognised.
        text = redact_secrets(self._redact(text[:MAX_REFUSAL_CHARS]))
        shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[: MAX_ERROR_CHARS + 1])
        return shown if len(shown) <= MAX_ERROR_CHARS else f"{shown[: MAX_ERROR_CHARS - 1]}…"

    def _redact(self, text: str, min_chars: int = 1) -> str:
        """The text without the secrets of `min_chars` characters or more, however a URL, JSON or HTML writes them."""
        for secret in self._secrets(min_chars):
            text = _secret_pattern(secret).sub("[redacted]", text)
        return text

    def _redact_completion(self, completion: Completion) -> Completion:
        """The completion without secrets, which an endpoint may repeat in its answer."""
        found = {"text": completion.text, "reasoning": completion.reasoning}
        hidden = {name: self._redact(text, MIN_HIDDEN_KEY_CHARS) for name, text in found.items() if text}
        return completion if hidden.items() <= found.items() else completion.model_copy(update=hidden)


_CHANGES: dict[ChangeableField, str] = {
    "max_tokens": "max_tokens is sent as max_completion_tokens",
    "temperature": "no temperature is sent, so answers are sampled at the endpoint's own",
    "top_p": "no top_p is sent",
    "seed": "no seed is sent, so sampled answers cannot be reproduced",
    "stream": "replies are streamed",
    "stream_options": "no stream_options are sent, so tokens are not counted",
}


@cache
def _secret_pattern(secret: str) -> re.Pattern[str]:
    r"""Matches the secret, each character as it is or as a URL (%2F), JSON (\/, \u002f) or HTML (&#47;, &#x2f;) writes it."""
    forms = (rf"(?:\\{{0,4}}{re.escape(c)}|%{ord(c):02x}|\\{{1,4}}u00{ord(c):02x}|&\#(?:{ord(c)}|x{ord(c):x});)" for c in secret)
    return re.compile("".join(forms), re.IGNORECASE)


def _leads_elsewhere(error: "openai.APIStatusError") -> bool:
    """Whether the status is a redirect to another address, not only to the same one with a slash at its end."""
    target = redirect_target(error)
    return target is not None and target.rstrip("/") != str(error.request.url).rstrip("/")


def _to_failure(error: Exception, message: str, **n_tokens: int) -> Failure:
    return Failure(type=type(error).__name__, message=message, **n_tokens)


def _cure_text(failure: Failure) -> str:
    cure = find_cure(failure)
    return f"; what helps: {cure}" if cure else ""


def _refuses_this_prompt(failure: Failure) -> bool:
    cause = find_cause(failure)
    return cause is not None and cause.concerns_one_request


def _refuses_everything(error: Exception, failure: Failure) -> bool:
    """Whether a refusal concerns the account, the key, the model or the address rather than the request."""
    if is_retryable(error) or _refuses_this_prompt(failure):
        return False
    is_spent = getattr(error, "code", None) == "insufficient_quota" or find_cause(failure) is FailureCause.QUOTA
    return is_spent or http_status(error) in (401, 402, 403, 404) or redirect_target(error) is not None


def _has_system(request: Request) -> bool:
    return any(message["role"] == "system" for message in request.messages)


def _response_format(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "reply", "strict": True, "schema": schema}}


def _parse_url(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and not (parts.query or parts.fragment)
    except ValueError:
        valid = False
    if not valid:
        shown = url.partition("?")[0]
        raise ConfigError(f"model.base_url = {shown!r}: must be an http or https address such as http://127.0.0.1:8000/v1")
    return parts


def _former_address(base_url: str) -> str:
    """The address in fingerprints of earlier versions. Raises ConfigError for one that is none."""
    url = _parse_url(base_url)
    return f"{url.netloc.lower()}{url.path.rstrip('/')}"


def _weights_metadata(served: _ServedModel) -> str:
    """The metadata of the weights in an entry of `GET /models`, as JSON: vLLM's root and parent, llama.cpp's sizes."""
    meta = served.meta if isinstance(served.meta, dict) else {}
    kept = {field: meta.get(field) for field in ("n_params", "size", "n_vocab", "n_embd")}
    return json.dumps({"root": served.root, "parent": served.parent, **kept}, sort_keys=True)
