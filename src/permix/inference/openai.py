"""Completions from any OpenAI-compatible chat endpoint: vLLM, SGLang, llama.cpp, Ollama, a hosted API.

Callers see an ordinary generator; requests run on an event loop in a thread of its own, so it works in a notebook too. At most
`concurrency` requests are in flight, and about `AHEAD` times as many answers wait until the caller takes some. Closing the
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
from permix.inference.base import Answer
from permix.inference.openai_response import (
    Charged,
    MalformedReplyError,
    is_busy,
    may_heal,
    read_reply,
    refuses_schema,
    retry_after_s,
    status_of,
    words_of,
)
from permix.types import Completion, Failure, Request, Sampling, digest

if TYPE_CHECKING:
    import openai
    import tenacity


Item = TypeVar("Item")

Emit = Callable[[Item], Awaitable[None]]


def in_background(work: Callable[[Emit[Item]], Coroutine[Any, Any, None]], ahead: int) -> Iterator[Item]:
    """Run `work` on an event loop in a thread of its own and yield what it emits; then raise what it raised.

    Emitting waits while `ahead` items are not yet taken. Closing the iterator cancels `work` and ends the thread.
    """
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="permix-background", daemon=True)
    slots = asyncio.Semaphore(ahead)
    arrived: queue.SimpleQueue[tuple[Item] | None] = queue.SimpleQueue()

    async def emit(item: Item) -> None:
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


AHEAD = 4
"""Answers that wait for the caller, per request in flight, before the next request is sent."""

SHARED = 32
"""Requests in flight that share a client: for each request it goes through all of its connections, several times."""

MAX_WAIT_S = 60.0
"""Longest wait before a retry, whatever the server asks for."""

REFUSALS = 8
"""So many refusals (401, 403, 404) before any answer mean that the endpoint refuses everything."""

MESSAGE_CHARS = 500


T = TypeVar("T")


class _Served(BaseModel):
    """One entry of `GET /models`, without what changes from call to call or from start to start (`created`, permission ids)."""

    id: str
    root: Any = None
    parent: Any = None
    meta: Any = None


class _Listing(BaseModel):
    data: list[_Served]


class OpenAIModel:
    """Implements `Model` over HTTP. `backoff_s` is the first wait before a retry; it doubles with every further one."""

    default_system: str | None = None
    """Not knowable over HTTP: the endpoint applies its own chat template."""
    addressed = False

    def __init__(self, config: ModelConfig, *, backoff_s: float = 0.5) -> None:
        self.config = config
        self.name = config.name
        self._url = _parse_url(config.base_url or "")
        self._shown_url = self._url.geturl()
        self._backoff_s = backoff_s
        self._served: tuple[_Served, ...] | None = None
        self._answered = False
        self._refused = 0
        self._takes_schemas = True

    @property
    def fingerprint(self) -> str:
        """Digest of address, model name and what `GET /models` says of its weights.

        Best effort: most servers say nothing of them, and then a swapped model under an old name goes unseen. Asks the endpoint
        on first use, and raises ConfigError as `check` does.
        """
        self.check()
        where = f"{self._url.netloc.lower()}{self._url.path.rstrip('/')}"
        own = [_weights(served) for served in self._served or () if served.id == self.name]
        return digest("openai", where, self.name, *own)

    def check(self) -> None:
        """Raise ConfigError unless the endpoint can be reached and accepts the key; asks it once, then remembers.

        An endpoint without `GET /models`, or with a key that may not list models, passes: its first requests decide.
        """

        async def work(_: Emit[None]) -> None:
            async with self._client() as client:
                await self._look(client)

        if self._served is None:
            list(in_background(work, ahead=1))

    def complete(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[Answer]:
        """Yield one `Answer` per request as it arrives. Raises ConfigError when the endpoint refuses everything.

        Token counts are the endpoint's own, 0 where it reports none, and those of a request: replies to it that could not be
        read are counted where they were charged. Only the low 31 bits of a seed are sent. A schema is sent too, until an
        endpoint refuses one and takes the same request without it.
        """
        if not requests:
            return

        async def work(emit: Emit[Answer]) -> None:
            await self._ask_all(requests, sampling, emit)

        yield from in_background(work, ahead=AHEAD * self.config.concurrency)

    async def _ask_all(self, requests: Sequence[Request], sampling: Sampling, emit: Emit[Answer]) -> None:
        pending = iter(enumerate(requests))

        async def worker(client: "openai.AsyncOpenAI") -> None:
            for index, request in pending:
                await emit(Answer(index, await self._answer(client, request, sampling, len(requests))))

        places = min(self.config.concurrency, len(requests))
        try:
            async with contextlib.AsyncExitStack() as stack, asyncio.TaskGroup() as group:
                for place in range(places):
                    if place % SHARED == 0:
                        client = await stack.enter_async_context(self._client())
                        await self._look(client)
                    group.create_task(worker(client))
        except ExceptionGroup as many:
            raise many.exceptions[0] from None

    async def _answer(
        self, client: "openai.AsyncOpenAI", request: Request, sampling: Sampling, n_requests: int
    ) -> Completion | Failure:
        """The one boundary: whatever goes wrong with one request is a Failure of that request."""
        lost = Charged()
        try:
            completion: Completion = await self._retrying(may_heal)(self._ask, client, request, sampling, lost)
        except Exception as error:
            self._raise_if_hopeless(error, n_requests)
            return Failure(type=type(error).__name__, message=self._clean(words_of(error)), **lost.counts)
        self._answered = True
        return lost.added_to(completion)

    async def _ask(self, client: "openai.AsyncOpenAI", request: Request, sampling: Sampling, lost: Charged) -> Completion:
        import openai

        body = self._body(request, sampling)
        if request.schema is None or not self._takes_schemas:
            return await self._post(client, body, lost)
        try:
            return await self._post(client, body | {"response_format": _obeying(request.schema)}, lost)
        except openai.APIStatusError as error:
            if not refuses_schema(error):
                raise
        completion = await self._post(client, body, lost)
        self._takes_schemas = False
        return completion

    def _body(self, request: Request, sampling: Sampling) -> dict[str, Any]:
        return {
            "model": self.config.name,
            "messages": request.messages,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_new_tokens,
            "seed": request.seed & 0x7FFFFFFF,
        }

    async def _post(self, client: "openai.AsyncOpenAI", body: dict[str, Any], lost: Charged) -> Completion:
        """One HTTP request. What a reply that cannot be read was charged with is added to `lost`."""
        import openai

        # Not chat.completions.create: it looks at every part of the body for what it may have to rewrite.
        raw = await self._in_time(client.post("/chat/completions", cast_to=openai.HttpxBinaryResponseContent, body=body))
        try:
            return read_reply(raw.content)
        except MalformedReplyError:
            lost.add(raw.content)
            raise

    async def _in_time(self, reply: Awaitable[T]) -> T:
        """The HTTP client's own timeouts start anew with every byte; this one bounds the whole reply."""
        try:
            async with asyncio.timeout(self.config.timeout_s):
                return await reply
        except TimeoutError:
            raise TimeoutError(f"no complete reply within model.timeout_s = {self.config.timeout_s:g}") from None

    def _retrying(self, worth_it: Callable[[BaseException], bool]) -> "tenacity.AsyncRetrying":
        """A fresh one per request: tenacity keeps the state of an attempt on the object, and tasks would share it."""
        import tenacity

        jitter = tenacity.wait_random(0, self._backoff_s)
        backoff = tenacity.wait_exponential(multiplier=self._backoff_s, max=MAX_WAIT_S)

        def wait(state: "tenacity.RetryCallState") -> float:
            error = state.outcome.exception() if state.outcome else None
            return min(max(backoff(state), retry_after_s(error)) + jitter(state), MAX_WAIT_S)

        return tenacity.AsyncRetrying(
            stop=tenacity.stop_after_attempt(self.config.retries + 1),
            wait=wait,
            retry=tenacity.retry_if_exception(worth_it),
            reraise=True,
        )

    async def _look(self, client: "openai.AsyncOpenAI") -> None:
        if self._served is None:
            self._served = await self._list_models(client)

    async def _list_models(self, client: "openai.AsyncOpenAI") -> tuple[_Served, ...]:
        """What the endpoint serves; empty where it does not say."""
        import openai

        try:
            body: bytes = await self._retrying(is_busy)(self._get_models, client)
            return tuple(_Listing.model_validate_json(body).data)
        except (openai.APIConnectionError, TimeoutError) as error:
            raise ConfigError(f"model.base_url = {self._shown_url}: no endpoint there: {self._clean(words_of(error))}") from None
        except openai.APIStatusError as error:
            if error.status_code == 401:
                raise self._refusal(error) from None
            if is_busy(error):
                raise ConfigError(
                    f"model.base_url = {self._shown_url}: not ready to serve: {self._clean(words_of(error))}"
                ) from None
            return ()
        except ValidationError:
            return ()

    async def _get_models(self, client: "openai.AsyncOpenAI") -> bytes:
        return (await self._in_time(client.models.with_raw_response.list())).content

    def _raise_if_hopeless(self, error: Exception, n_requests: int) -> None:
        """Raise ConfigError once nothing was answered yet and `REFUSALS` requests, or all there are, were refused."""
        if self._answered or status_of(error) not in (401, 403, 404):
            return
        self._refused += 1
        if self._refused >= min(REFUSALS, n_requests):
            raise self._refusal(error) from None

    def _refusal(self, error: Exception) -> ConfigError:
        words = self._clean(words_of(error))
        if status_of(error) == 404:
            known = ", ".join(served.id for served in self._served or ()) or "unknown; base_url usually ends in /v1"
            return ConfigError(
                f"model.name = {self.name!r}: not served at {self._shown_url} (served: {self._clean(known)}): {words}"
            )
        key = f"the key in the environment variable {self.config.api_key_env}"
        state = "was not accepted" if self._key() else "is missing: the variable is not set"
        return ConfigError(f"model.base_url = {self._shown_url}: {key} {state} (model.api_key_env names the variable): {words}")

    def _client(self) -> "openai.AsyncOpenAI":
        import openai

        return openai.AsyncOpenAI(
            base_url=self._shown_url,
            api_key=self._key() or "none",
            max_retries=0,
            timeout=None,
        )

    def _key(self) -> str:
        key = os.environ.get(self.config.api_key_env, "").strip()
        if not re.fullmatch(r"[!-~]*", key) or set(key) & set("\"'\\"):
            raise ConfigError(
                f"environment variable {self.config.api_key_env}: not a key: it holds spaces, quotes, backslashes or "
                "characters outside ASCII, none of which an HTTP header can carry"
            )
        return key

    def _clean(self, text: str) -> str:
        """Text fit for a record or a terminal: no key, no control characters, bounded. Cut last, or half a key would pass."""
        if key := self._key():
            text = text.replace(key, "[redacted]")
        shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[: MESSAGE_CHARS + 1])
        return shown if len(shown) <= MESSAGE_CHARS else f"{shown[: MESSAGE_CHARS - 1]}…"


def _obeying(schema: Mapping[str, Any]) -> dict[str, Any]:
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


def _weights(served: _Served) -> str:
    """What an entry of `GET /models` says of the weights: vLLM's root and parent, llama.cpp's size."""
    meta = served.meta if isinstance(served.meta, dict) else {}
    kept = {field: meta.get(field) for field in ("n_params", "size", "n_vocab", "n_embd")}
    return json.dumps({"root": served.root, "parent": served.parent, **kept}, sort_keys=True)
