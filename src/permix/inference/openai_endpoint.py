"""One address of an OpenAI-compatible endpoint: how a request is asked there, and what its failures mean.

Transient errors (408, 429, 5xx, a lost connection, a timeout, a malformed reply) are retried. A permanent error is a `Failure`
of that request alone. ConfigError means that the endpoint cannot answer any request: no such host, a refused key, an unknown
model, a redirect, or nothing but failures. Failures that concern one request (a prompt that is too long, a content filter) count
neither for that nor for the circuit breaker.
"""

import asyncio
import contextlib
import itertools
import json
import random
import re
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, NamedTuple, TypeVar
from urllib.parse import SplitResult, urlsplit

from pydantic import BaseModel, ValidationError

from permix import __version__
from permix.config import ModelConfig
from permix.errors import ConfigError, EndpointStoppedError
from permix.inference.base import with_cut_off_thinking
from permix.inference.endpoint_secrets import EndpointSecrets
from permix.inference.http_client import (
    ConnectionFailedError,
    HttpClient,
    HttpStatusError,
    error_message,
    failure_type,
    http_status,
    is_transient_status,
    leads_elsewhere,
    redirect_target,
    retry_after_s,
)
from permix.inference.pacing import CircuitBreaker, ConcurrencyLimit, FailureStreak
from permix.inference.request_body import (
    SCHEMA_REFUSAL_STATUSES,
    ChangeableField,
    FilteredReplyError,
    MalformedReplyError,
    RequestBody,
    concerns_messages,
    is_system_refusal,
    parse_chat_completion,
    refusal_text,
    refused_field,
    usage_count,
)
from permix.progress import print_status
from permix.storage.failures import FailureCause, find_cause, find_cure
from permix.types import Completion, Failure, Request, Sampling

MAX_RETRY_WAIT_S = 60.0
"""Longest wait before a retry, whatever the server asks for."""

NOTED_RETRY_WAIT_S = 5.0
"""A wait before a retry that is as long as this is printed with its reason, at most one in this many seconds. Reductions of the
number of requests at the same time are printed as rarely."""

MAX_MODEL_LIST_BYTES = 8_000_000
"""Longest list of models that is read: it is read before each run, and large providers list thousands of models in 1 MB."""

MAX_REFUSALS = 8
"""Refusals that a retry cannot cure, before any completion of the same kind of request, after which a run stops."""

MAX_REFUSED_PROMPTS = 100
"""The same for refusals of the prompt itself (too long, filtered) before any completion at all: one persona may explain fewer."""

_T = TypeVar("_T")


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
        if not any(self.counts.values()) or None in counts.values():
            return completion
        return completion.model_copy(update={name: counts[name] + wasted for name, wasted in self.counts.items()})


def is_schema_refusal(error: BaseException) -> bool:
    """Whether the status may mean "no support for JSON schemas". It can have other causes, so retry without the schema."""
    return http_status(error) in SCHEMA_REFUSAL_STATUSES


def is_retryable(error: BaseException) -> bool:
    return is_transient_status(error) or isinstance(error, (ConnectionFailedError, TimeoutError, MalformedReplyError))


class ServedModel(BaseModel):
    """One entry of `GET /models`, without the fields that change between calls or server starts (`created`, permission ids)."""

    id: str
    root: Any = None
    parent: Any = None
    meta: Any = None


class _ModelList(BaseModel):
    data: list[ServedModel]


class Outcome(NamedTuple):
    """What became of a request at one address. `is_of_address`: the failure may be the address's, so another one may answer."""

    result: Completion | Failure
    is_of_address: bool = False


class _Trial(NamedTuple):
    """A field that a request does without, after the refusal with these words; `said` is for messages.

    `is_named`: the refusal names the field. `is_enough`: once the request is answered, the endpoint is known to refuse the field.
    """

    field: ChangeableField
    refusal: str
    said: str
    is_named: bool
    is_enough: bool


class Endpoint:
    """One address of a model. `backoff_s` is the wait before the first retry; it doubles with each further one.

    Its state outlives a call of `generate`: `limit`, how many requests it gets at the same time; `streak`, its failures in a row;
    `served_models`, what it lists, None while it was not asked and empty if it lists none.
    """

    def __init__(self, config: ModelConfig, base_url: str, backoff_s: float) -> None:
        self.config = config
        self.name = config.name
        self.url = parse_url(base_url)
        self.base_url = self.url.geturl()
        self.backoff_s = backoff_s
        self.secrets = EndpointSecrets(config)
        self.limit = ConcurrencyLimit(config.concurrency)
        self.streak = FailureStreak()
        self._body = RequestBody(config.name, config.extra_fields)
        self._is_schema_doubted = False
        """Whether a request was refused in words without a field, and then answered without its schema: the refusal may have been
        one that passes."""
        self.served_models: tuple[ServedModel, ...] | None = None
        self.has_answered_before = False
        """Whether the run has answers of an earlier start: then no refusal of a prompt ends it."""
        self.is_absent = False
        """Whether it could not be reached when the model was first used. It is never asked: nobody compared what it serves."""
        self.left_out_until: float | None = None
        """When an address that was left out may be asked again, by `time.monotonic`; None while it is asked."""
        self._answered_kinds: set[bool] = set()  # of requests: with a system message (True) and without
        self._refusals_by_kind: Counter[tuple[bool, bool]] = Counter()  # (with a system message, of the prompt itself)
        self._next_wait_note_s = self._next_limit_note_s = 0.0

    @property
    def address(self) -> str:
        """The model's name and the endpoint's URL: what is found out about an endpoint holds for this model there."""
        return endpoint_address(self.name, self.base_url)

    @property
    def request_changes(self) -> dict[ChangeableField, str]:
        """The fields that the endpoint refused and that are left out or renamed, with its words.

        What an earlier start found out may be added, so that it is not found out again.
        """
        return self._body.changes

    def make_client(self) -> HttpClient:
        """A client with the key and the headers. Raises ConfigError if they, or the proxy, cannot be used."""
        key = self.secrets.api_key() or "none"
        return HttpClient(
            self.base_url,
            {"Accept": "application/json", "User-Agent": f"permix/{__version__}", "Authorization": f"Bearer {key}"}
            | self.secrets.headers(),
        )

    # What the endpoint says of itself

    async def ensure_model_list(self, client: HttpClient) -> None:
        """Ask which models are served, unless that is known.

        Raises ConfigError if no endpoint is there, or if it is not ready or refuses the key.
        """
        if self.served_models is None:
            self.served_models = await self._list_models(client)

    async def _list_models(self, client: HttpClient) -> tuple[ServedModel, ...]:
        async def fetch() -> bytes:
            return await self._with_timeout(client.get("/models"))

        try:
            body = await self._with_retries(fetch, is_transient_status)
            return tuple(_ModelList.model_validate_json(body).data) if len(body) <= MAX_MODEL_LIST_BYTES else ()
        except (ConnectionFailedError, TimeoutError) as error:
            words = self.secrets.sanitize_message(error_message(error))
            raise ConfigError(f"model.base_url = {self.base_url}: no endpoint there: {words}") from None
        except HttpStatusError as error:
            if error.status_code == 401 or leads_elsewhere(error):
                raise self._refusal_error(error) from None
            if is_transient_status(error):
                words = self.secrets.sanitize_message(error_message(error))
                raise ConfigError(f"model.base_url = {self.base_url}: not ready to serve: {words}") from None
            return ()
        except ValidationError:
            return ()

    # One request

    def make_breaker(self, indices: list[int]) -> CircuitBreaker:
        """The circuit breaker of one call, for the requests with these indices."""
        self.limit.restart_round()
        return CircuitBreaker(self.streak, self.limit, indices, pause_s=2 * self.backoff_s, on_reduction=self._note_reduction)

    async def complete(
        self,
        client: HttpClient,
        request: Request,
        sampling: Sampling,
        n_of_kind: int,
        breaker: CircuitBreaker,
        wasted: WastedTokens,
        has_others: Callable[[], bool],
    ) -> Outcome:
        """The boundary for errors: any exception of one request becomes a `Failure` of that request.

        has_others: whether another address could answer. Then a lost connection is retried once and not more.
        """
        is_probe, n_attempts, n_answers = False, 0, 0

        async def attempt() -> Completion:
            nonlocal is_probe, n_attempts, n_answers
            n_attempts += 1
            async with breaker.attempt(is_first=n_attempts == 1) as is_probe:
                try:
                    return await self._post(client, request, sampling, wasted)
                except Exception:
                    n_answers = breaker.streak.n_answers if n_attempts == 1 else n_answers
                    raise

        def should_retry(error: BaseException) -> bool:
            is_left = isinstance(error, ConnectionFailedError) and n_attempts > 1 and has_others()
            return not is_probe and not is_left and is_retryable(error)

        try:
            completion = await self._with_retries(attempt, should_retry)
        except Exception as error:
            message = self.secrets.sanitize_message(error_message(error))
            failure = Failure(type=failure_type(error), message=message, **wasted.counts)
            self._raise_if_all_refused(error, failure, has_system(request), n_of_kind)
            is_outage = self._is_outage(error, failure)
            # Failures of requests that were in flight when the streak began are the same event; and where others were answered
            # since the first attempt, the endpoint works.
            begins_streak = not breaker.streak.n_failures and n_answers == breaker.streak.n_answers
            if (is_probe or begins_streak) and is_outage:
                breaker.add_failure(failure, min(retry_after_s(error), MAX_RETRY_WAIT_S))
            return Outcome(failure, is_of_address=is_outage or _refuses_everything(error, failure))
        breaker.add_answer()
        self._answered_kinds.add(has_system(request))
        return Outcome(self.secrets.redact_completion(wasted.add_to_completion(completion)))

    async def _post(self, client: HttpClient, request: Request, sampling: Sampling, wasted: WastedTokens) -> Completion:
        """One request, asked again without what the endpoint refuses. The tokens of a malformed reply are added to `wasted`.

        A change is kept for all later requests once the changed request is answered, or is refused for another field alone.
        Requests in flight at the same time are refused for the same field: each tries without it, and it is noted once.
        A schema is also tried without after a refusal that names no field, which may pass: it is given up if that happens again
        to a request that is sent after the first one was answered, and no request with a schema was answered in between.
        """
        body = self._body.build(request.messages, request.seed, sampling, request.schema)
        tried: list[_Trial] = []
        while True:
            was_doubted = self._is_schema_doubted
            try:
                raw = await self._with_timeout(client.post("/chat/completions", body))
            except HttpStatusError as error:
                refusal, param = self.secrets.redact(refusal_text(error.body)), refused_field(error.body)
                field = self._body.find_change(refusal, param, body) if error.status_code in (400, 422) else None
                if field is not None:
                    past = [one for one in tried if one.is_named and not self._body.names(one.field, refusal, param, body)]
                    self._keep(past)
                    tried = [one for one in tried if one not in past]
                elif not self._body.has_schema(body) or not is_schema_refusal(error) or concerns_messages(refusal, param):
                    raise
                said = self.secrets.sanitize_message(error_message(error))
                is_named = field is not None or self._body.names("response_format", refusal, param, body)
                tried.append(_Trial(field or "response_format", refusal, said, is_named, is_enough=is_named or was_doubted))
                body = self._body.rebuild(body, tried[-1].field)
                continue
            self._keep(one for one in tried if one.is_enough)
            if self._body.has_schema(body):
                self._is_schema_doubted = False
            elif any(not one.is_named for one in tried):
                self._is_schema_doubted = True
            try:
                return with_cut_off_thinking(parse_chat_completion(raw), self.config.thinking)
            except (MalformedReplyError, FilteredReplyError):
                wasted.add_reply(raw)
                raise

    def _keep(self, tried: Iterable["_Trial"]) -> None:
        """Change these fields in all later requests, and note each change once."""
        for trial in tried:
            if trial.field not in self._body.changes:
                self._body.keep_change(trial.field, trial.refusal)
                print_status(f"note: {self.base_url}: {_CHANGES[trial.field]}, since it answered: {trial.said}")

    async def _with_timeout(self, reply: Awaitable[_T]) -> _T:
        """Limit the time of the whole reply, however slowly its bytes come. Raises TimeoutError."""
        try:
            async with asyncio.timeout(self.config.timeout_s):
                return await reply
        except TimeoutError:
            raise TimeoutError(f"no complete reply within model.timeout_s = {self.config.timeout_s:g}") from None

    async def _with_retries(self, attempt: Callable[[], Awaitable[_T]], should_retry: Callable[[BaseException], bool]) -> _T:
        """The result of an attempt, made up to 1 + `retries` times; raises the last error."""
        for n_failed in itertools.count(1):
            try:
                return await attempt()
            except Exception as error:
                if n_failed > self.config.retries or not should_retry(error):
                    raise
                # The wait doubles; a random part keeps requests that failed together from coming back together.
                backoff_s = min(self.backoff_s * 2 ** min(n_failed - 1, 32), MAX_RETRY_WAIT_S)
                wait_s = max(backoff_s, retry_after_s(error)) + random.uniform(0, self.backoff_s)
                wait_s = min(wait_s, MAX_RETRY_WAIT_S)
                self._note_wait(error, wait_s)
            await asyncio.sleep(wait_s)
        raise AssertionError("unreachable")

    def _note_wait(self, error: Exception, wait_s: float) -> None:
        if wait_s >= NOTED_RETRY_WAIT_S and time.monotonic() >= self._next_wait_note_s:
            self._next_wait_note_s = time.monotonic() + NOTED_RETRY_WAIT_S
            why = self.secrets.sanitize_message(error_message(error))
            print_status(f"note: {self.base_url}: tries again after {wait_s:.0f} s, since it answered: {why}")

    def _note_reduction(self, error: BaseException) -> None:
        if time.monotonic() >= self._next_limit_note_s:
            self._next_limit_note_s = time.monotonic() + NOTED_RETRY_WAIT_S
            why = self.secrets.sanitize_message(error_message(error))
            n_now = f"at most {self.limit.current} at a time"
            print_status(f"note: {self.base_url}: overloaded, so it gets {n_now} from now on: {why}")

    # What failures mean

    @property
    def _has_answered(self) -> bool:
        return self.has_answered_before or bool(self._answered_kinds)

    def _is_outage(self, error: Exception, failure: Failure) -> bool:
        """Whether a failure may concern all requests. Refusals for good count once the endpoint has answered in this start;
        before, `_raise_if_all_refused` counts them."""
        if _refuses_this_prompt(failure) or is_system_refusal(failure.message):
            return False
        return is_retryable(error) or (bool(self._answered_kinds) and _refuses_everything(error, failure))

    def stop_error(self) -> ConfigError | EndpointStoppedError | None:
        """The error that ends a run with this address alone, if it has stopped answering."""
        last = self.streak.last
        if not self.streak.is_stop or last is None:
            return None
        if self._has_answered:
            return self._stopped_error(self.streak.n_failures, last)
        return ConfigError(
            f"model.base_url = {self.base_url}: answers no request; {self.streak.n_failures} failures in a row, and retrying did "
            f"not help: {last.message or last.type}{_cure_text(last)}"
        )

    def _stopped_error(self, n_failures: int, last: Failure) -> EndpointStoppedError:
        return EndpointStoppedError(
            f"{self.base_url}: asked no more after {n_failures} failures in a row", last.message or last.type
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
        details = self.secrets.sanitize_message(error_message(error))
        if (target := redirect_target(error)) is not None:
            base = self.secrets.sanitize_message(re.sub(r"/(models|chat/completions)/?$", "", target.partition("?")[0]))
            return ConfigError(
                f"model.base_url = {self.base_url}: {details}, since the key would go there too; "
                f"if you trust it, set model.base_url to {base}"
            )
        if system_refusal:
            return ConfigError(
                f"model.name = {self.name!r} at {self.base_url}: takes no system message; give --personas.template "
                f"in_question, which puts the persona into the user's message: {details}"
            )
        known = self.secrets.sanitize_message(", ".join(served.id for served in self.served_models or ()))
        if self.name == "bundled" and (http_status(error) == 404 or self.name in details):
            return ConfigError(
                f"model.base_url = {self.base_url}: give --model.name, the name of a model there; served: {known or 'unknown'}: "
                f"{details}"
            )
        if http_status(error) not in (401, 403, 404):
            cure = _cure_text(Failure(type=failure_type(error), message=details))
            return ConfigError(f"model.name = {self.name!r} at {self.base_url}: refuses every request: {details}{cure}")
        if http_status(error) == 404:
            listed = known or "unknown; base_url usually ends in /v1"
            return ConfigError(f"model.name = {self.name!r}: not served at {self.base_url} (served: {listed}): {details}")
        key = f"the key in the environment variable {self.config.api_key_env}"
        state = "was not accepted" if self.secrets.api_key() else "is missing: the variable is not set"
        return ConfigError(f"model.base_url = {self.base_url}: {key} {state} (model.api_key_env names the variable): {details}")


_CHANGES: dict[ChangeableField, str] = {
    "max_tokens": "max_tokens is sent as max_completion_tokens",
    "temperature": "no temperature is sent, so answers are sampled at the endpoint's own",
    "top_p": "no top_p is sent",
    "seed": "no seed is sent, so sampled answers cannot be reproduced",
    "stream": "replies are streamed",
    "stream_options": "no stream_options are sent, so tokens are not counted",
    "response_format": "no JSON schema is sent",
}


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


def has_system(request: Request) -> bool:
    """Whether a request has a system message."""
    return any(message["role"] == "system" for message in request.messages)


def count_kinds(requests: Iterable[Request]) -> Counter[bool]:
    """How many requests have a system message (True), and how many have none."""
    return Counter(map(has_system, requests))


def endpoint_address(name: str, base_url: str) -> str:
    """The address of a model behind an endpoint, by which endpoint.json keeps what was found out there."""
    return f"{name} at {base_url}"


def parse_url(url: str) -> SplitResult:
    """The parts of an endpoint's address. Raises ConfigError for a text that is not an http(s) address."""
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and not (parts.query or parts.fragment)
    except ValueError:
        valid = False
    if not valid:
        shown = url.partition("?")[0]
        raise ConfigError(f"model.base_url = {shown!r}: must be an http or https address such as http://127.0.0.1:8000/v1")
    return parts
