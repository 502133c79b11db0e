"""Completions from any OpenAI-compatible chat endpoint: vLLM, SGLang, llama.cpp, Ollama, a hosted API.

Callers see an ordinary generator; requests run on an event loop in a thread of its own, so it works in a notebook too. At most
`concurrency` requests are in flight, and about `BUFFERED_PER_REQUEST` times as many answers wait until the caller takes
some. Closing the
generator cancels what is in flight. What may heal (408, 429, 5xx, a lost connection, no reply in time, a reply that cannot be
read) is tried again; what does not heal is a `Failure` of that request alone. ConfigError is for an endpoint that can answer
nothing: no such host, a refused key, a model it does not know.

The key is read from the environment when it is needed and is in no file, message, log or repr.

Asynchronous work behind an ordinary generator: an event loop in a thread of its own, so it works in a notebook too.
"""

import asyncio
import contextlib
import json
import os
import queue
import re
import sys
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import SplitResult, urlsplit

from pydantic import BaseModel, ValidationError

from permix.config import ModelConfig
from permix.errors import ConfigError
from permix.inference.base import CompletionResult
from permix.inference.openai_response import (
    MalformedReplyError,
    WastedTokens,
    error_message,
    http_status,
    is_retryable,
    is_schema_refusal,
    is_transient_status,
    parse_chat_completion,
    retry_after_s,
)
from permix.types import Completion, Failure, Request, Sampling, digest

if TYPE_CHECKING:
    import openai
    import tenacity


_Item = TypeVar("_Item")

Emit = Callable[[_Item], Awaitable[None]]


def iterate_async(work: Callable[[Emit[_Item]], Coroutine[Any, Any, None]], max_buffered: int) -> Iterator[_Item]:
    """Run `work` on an event loop in a thread of its own and yield what it emits; then raise what it raised.

    Emitting waits while `max_buffered` items are not yet taken. Closing the iterator cancels `work` and ends the thread.
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
        # A generator still open when the interpreter exits: its thread is frozen and must not be waited for.
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
"""Answers that wait for the caller, per request in flight, before the next request is sent."""

REQUESTS_PER_CLIENT = 32
"""Requests in flight that share a client: for each request it goes through all of its connections, several times."""

MAX_RETRY_WAIT_S = 60.0
"""Longest wait before a retry, whatever the server asks for."""

MAX_REFUSALS = 8
"""So many refusals (401, 403, 404) before any answer mean that the endpoint refuses everything."""

MAX_ERROR_CHARS = 500


_T = TypeVar("_T")


class _ServedModel(BaseModel):
    """One entry of `GET /models`, without what changes from call to call or from start to start (`created`, permission ids)."""

    id: str
    root: Any = None
    parent: Any = None
    meta: Any = None


class _ModelList(BaseModel):
    data: list[_ServedModel]


class OpenAIModel:
    """Implements `Model` over HTTP. `backoff_s` is the first wait before a retry; it doubles with every further one."""

    default_system: str | None = None
    """Not knowable over HTTP: the endpoint applies its own chat template."""
    content_addressed = False

    def __init__(self, config: ModelConfig, *, backoff_s: float = 0.5) -> None:
        self.config = config
        self.name = config.name
        self._url = _parse_url(config.base_url or "")
        self._base_url = self._url.geturl()
        self._backoff_s = backoff_s
        self._served_models: tuple[_ServedModel, ...] | None = None
        self._has_answered = False
        self._refusal_count = 0
        self._supports_schemas = True

    @property
    def fingerprint(self) -> str:
        """Digest of address, model name and what `GET /models` says of its weights.

        Best effort: most servers say nothing of them, and then a swapped model under an old name goes unseen. Asks the endpoint
        on first use, and raises ConfigError as `check_endpoint` does.
        """
        self.check_endpoint()
        where = f"{self._url.netloc.lower()}{self._url.path.rstrip('/')}"
        own = [_weights_metadata(served) for served in self._served_models or () if served.id == self.name]
        return digest("openai", where, self.name, *own)

    def check_endpoint(self) -> None:
        """Raise ConfigError unless the endpoint can be reached and accepts the key; asks it once, then remembers.

        An endpoint without `GET /models`, or with a key that may not list models, passes: its first requests decide.
        """

        async def work(_: Emit[None]) -> None:
            async with self._make_client() as client:
                await self._ensure_model_list(client)

        if self._served_models is None:
            list(iterate_async(work, max_buffered=1))

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[CompletionResult]:
        """Yield one `Answer` per request as it arrives. Raises ConfigError when the endpoint refuses everything.

        Token counts are the endpoint's own, 0 where it reports none, and those of a request: replies to it that could not be
        read are counted where they were charged. Only the low 31 bits of a seed are sent. A schema is sent too, until an
        endpoint refuses one and takes the same request without it.
        """
        if not requests:
            return

        async def work(emit: Emit[CompletionResult]) -> None:
            await self._run_requests(requests, sampling, emit)

        yield from iterate_async(work, max_buffered=BUFFERED_PER_REQUEST * self.config.concurrency)

    async def _run_requests(self, requests: Sequence[Request], sampling: Sampling, emit: Emit[CompletionResult]) -> None:
        pending = iter(enumerate(requests))

        async def worker(client: "openai.AsyncOpenAI") -> None:
            for index, request in pending:
                await emit(CompletionResult(index, await self._complete_request(client, request, sampling, len(requests))))

        places = min(self.config.concurrency, len(requests))
        try:
            async with contextlib.AsyncExitStack() as stack, asyncio.TaskGroup() as group:
                for place in range(places):
                    if place % REQUESTS_PER_CLIENT == 0:
                        client = await stack.enter_async_context(self._make_client())
                        await self._ensure_model_list(client)
                    group.create_task(worker(client))
        except ExceptionGroup as many:
            raise many.exceptions[0] from None

    async def _complete_request(
        self, client: "openai.AsyncOpenAI", request: Request, sampling: Sampling, n_requests: int
    ) -> Completion | Failure:
        """The one boundary: whatever goes wrong with one request is a Failure of that request."""
        lost = WastedTokens()
        try:
            completion: Completion = await self._make_retrying(is_retryable)(
                self._post_with_schema_fallback, client, request, sampling, lost
            )
        except Exception as error:
            self._raise_if_all_refused(error, n_requests)
            return Failure(type=type(error).__name__, message=self._sanitize_message(error_message(error)), **lost.counts)
        self._has_answered = True
        return lost.add_to_completion(completion)

    async def _post_with_schema_fallback(
        self, client: "openai.AsyncOpenAI", request: Request, sampling: Sampling, wasted: WastedTokens
    ) -> Completion:
        import openai

        body = self._request_body(request, sampling)
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

    def _request_body(self, request: Request, sampling: Sampling) -> dict[str, Any]:
        return {
            "model": self.config.name,
            "messages": request.messages,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_new_tokens,
            "seed": request.seed & 0x7FFFFFFF,
        }

    async def _post(self, client: "openai.AsyncOpenAI", body: dict[str, Any], wasted: WastedTokens) -> Completion:
        """One HTTP request. What a reply that cannot be read was charged with is added to `lost`."""
        import openai

        # Not chat.completions.create: it looks at every part of the body for what it may have to rewrite.
        raw = await self._with_timeout(client.post("/chat/completions", cast_to=openai.HttpxBinaryResponseContent, body=body))
        try:
            return parse_chat_completion(raw.content)
        except MalformedReplyError:
            wasted.add_reply(raw.content)
            raise

    async def _with_timeout(self, reply: Awaitable[_T]) -> _T:
        """The HTTP client's own timeouts start anew with every byte; this one bounds the whole reply."""
        try:
            async with asyncio.timeout(self.config.timeout_s):
                return await reply
        except TimeoutError:
            raise TimeoutError(f"no complete reply within model.timeout_s = {self.config.timeout_s:g}") from None

    def _make_retrying(self, should_retry: Callable[[BaseException], bool]) -> "tenacity.AsyncRetrying":
        """A fresh one per request: tenacity keeps the state of an attempt on the object, and tasks would share it."""
        import tenacity

        jitter = tenacity.wait_random(0, self._backoff_s)
        backoff = tenacity.wait_exponential(multiplier=self._backoff_s, max=MAX_RETRY_WAIT_S)

        def wait(state: "tenacity.RetryCallState") -> float:
            error = state.outcome.exception() if state.outcome else None
            return min(max(backoff(state), retry_after_s(error)) + jitter(state), MAX_RETRY_WAIT_S)

        return tenacity.AsyncRetrying(
            stop=tenacity.stop_after_attempt(self.config.retries + 1),
            wait=wait,
            retry=tenacity.retry_if_exception(should_retry),
            reraise=True,
        )

    async def _ensure_model_list(self, client: "openai.AsyncOpenAI") -> None:
        if self._served_models is None:
            self._served_models = await self._list_models(client)

    async def _list_models(self, client: "openai.AsyncOpenAI") -> tuple[_ServedModel, ...]:
        """What the endpoint serves; empty where it does not say."""
        import openai

        try:
            body: bytes = await self._make_retrying(is_transient_status)(self._fetch_model_list, client)
            return tuple(_ModelList.model_validate_json(body).data)
        except (openai.APIConnectionError, TimeoutError) as error:
            raise ConfigError(
                f"model.base_url = {self._base_url}: no endpoint there: {self._sanitize_message(error_message(error))}"
            ) from None
        except openai.APIStatusError as error:
            if error.status_code == 401:
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

    def _raise_if_all_refused(self, error: Exception, n_requests: int) -> None:
        """Raise ConfigError once nothing was answered yet and `MAX_REFUSALS` requests, or all there are, were refused."""
        if self._has_answered or http_status(error) not in (401, 403, 404):
            return
        self._refusal_count += 1
        if self._refusal_count >= min(MAX_REFUSALS, n_requests):
            raise self._refusal_error(error) from None

    def _refusal_error(self, error: Exception) -> ConfigError:
        words = self._sanitize_message(error_message(error))
        if http_status(error) == 404:
            known = ", ".join(served.id for served in self._served_models or ()) or "unknown; base_url usually ends in /v1"
            return ConfigError(
                f"model.name = {self.name!r}: not served at {self._base_url} (served: {self._sanitize_message(known)}): {words}"
            )
        key = f"the key in the environment variable {self.config.api_key_env}"
        state = "was not accepted" if self._api_key() else "is missing: the variable is not set"
        return ConfigError(f"model.base_url = {self._base_url}: {key} {state} (model.api_key_env names the variable): {words}")

    def _make_client(self) -> "openai.AsyncOpenAI":
        import openai

        return openai.AsyncOpenAI(
            base_url=self._base_url,
            api_key=self._api_key() or "none",
            max_retries=0,
            timeout=None,
        )

    def _api_key(self) -> str:
        key = os.environ.get(self.config.api_key_env, "").strip()
        if not re.fullmatch(r"[!-~]*", key) or set(key) & set("\"'\\"):
            raise ConfigError(
                f"environment variable {self.config.api_key_env}: not a key: it holds spaces, quotes, backslashes or "
                "characters outside ASCII, none of which an HTTP header can carry"
            )
        return key

    def _sanitize_message(self, text: str) -> str:
        """Text fit for a record or a terminal: no key, no control characters, bounded. Cut last, or half a key would pass."""
        if key := self._api_key():
            text = text.replace(key, "[redacted]")
        shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[: MAX_ERROR_CHARS + 1])
        return shown if len(shown) <= MAX_ERROR_CHARS else f"{shown[: MAX_ERROR_CHARS - 1]}…"


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


def _weights_metadata(served: _ServedModel) -> str:
    """What an entry of `GET /models` says of the weights: vLLM's root and parent, llama.cpp's size."""
    meta = served.meta if isinstance(served.meta, dict) else {}
    kept = {field: meta.get(field) for field in ("n_params", "size", "n_vocab", "n_embd")}
    return json.dumps({"root": served.root, "parent": served.parent, **kept}, sort_keys=True)
