"""One reply of a chat-completions endpoint, read: a completion, an error that may heal, or one that will not."""

import contextlib
import email.utils
import json
import re
import time
from typing import Any

from pydantic import BaseModel, Field, ValidationError

from permix.config import format_validation_error
from permix.types import Completion, Failure

_HTTP_PREFIX = "HTTP "


class MalformedReplyError(Exception):
    """A reply with status 200 and no completion in it."""


class _ChatMessage(BaseModel):
    content: str | None


class _Choice(BaseModel):
    message: _ChatMessage
    finish_reason: str | None = None


class _ChatCompletion(BaseModel):
    """The part of a chat completion that is read; everything else is ignored."""

    choices: list[_Choice] = Field(min_length=1)
    usage: Any = None


class WastedTokens:
    """Tokens that an endpoint has counted in replies of which nothing could be used."""

    def __init__(self) -> None:
        self.counts = {"prompt_tokens": 0, "completion_tokens": 0}

    def add_reply(self, body: bytes) -> None:
        """Nothing is added for a body that is not even JSON."""
        with contextlib.suppress(ValueError, RecursionError):
            reply = json.loads(body)
            usage = reply.get("usage") if isinstance(reply, dict) else None
            self.counts = {name: count + usage_count(usage, name) for name, count in self.counts.items()}

    def add_to_completion(self, completion: Completion) -> Completion:
        """The completion, with what was paid on the way to it; as it is where it lacks a count, which must not look counted."""
        counted = {name: getattr(completion, name) for name in self.counts}
        if not any(self.counts.values()) or not all(counted.values()):
            return completion
        return completion.model_copy(update={name: counted[name] + count for name, count in self.counts.items()})


def parse_chat_completion(body: bytes) -> Completion:
    """The first choice of a chat completion. Raises MalformedReplyError, also for a blank text that no token accounts for."""
    try:
        reply = _ChatCompletion.model_validate_json(body)
    except ValidationError as error:
        raise MalformedReplyError(f"{format_validation_error(error)}; the reply was {body.decode(errors='replace')}") from None
    choice, generated = reply.choices[0], usage_count(reply.usage, "completion_tokens")
    # A reasoning model that was cut off while it thought says nothing, and has been paid for it: that is its answer.
    text = choice.message.content or ""
    if not text.strip() and not generated:
        raise MalformedReplyError(f"empty completion without a generated token; finish_reason = {choice.finish_reason!r}")
    return Completion(
        text=text,
        prompt_tokens=usage_count(reply.usage, "prompt_tokens"),
        completion_tokens=generated,
        finish="length" if choice.finish_reason == "length" else "stop",
    )


def usage_count(usage: Any, field: str) -> int:
    value = usage.get(field) if isinstance(usage, dict) else None
    return value if isinstance(value, int) and value >= 0 else 0


def http_status(error: BaseException | None) -> int | None:
    return getattr(error, "status_code", None)


def error_message(error: BaseException) -> str:
    """What an error says; of an HTTP status, the body's own message."""
    status, body, cause = http_status(error), getattr(error, "body", None), error.__cause__
    if status is not None:
        message = body.get("message") if isinstance(body, dict) else None
        return f"{_HTTP_PREFIX}{status}: {message or body}"
    return f"{error} ({type(cause).__name__}: {cause})" if cause else str(error)


def is_http_failure(failure: Failure) -> bool:
    """Whether the endpoint answered with an error, by `error_message`; otherwise nobody here knows what it did."""
    return failure.message.startswith(_HTTP_PREFIX)


def is_transient_status(error: BaseException) -> bool:
    """A status that may be another one soon. A spent quota is a 429 that waiting does not heal."""
    status = http_status(error)
    if status is None or getattr(error, "code", None) == "insufficient_quota":
        return False
    return status in (408, 429) or status >= 500


def is_schema_refusal(error: BaseException) -> bool:
    """A status by which endpoints that know no JSON schemas answer one. It may also mean something else: ask without it."""
    return http_status(error) in (400, 404, 415, 422, 501)


def is_retryable(error: BaseException) -> bool:
    import openai

    return is_transient_status(error) or isinstance(error, (openai.APIConnectionError, TimeoutError, MalformedReplyError))


def retry_after_s(error: BaseException | None) -> float:
    """Seconds the server asks to wait, given as a number or a date; 0 when it does not ask."""
    response = getattr(error, "response", None)
    asked = response.headers.get("retry-after", "") if response is not None else ""
    if re.fullmatch(r"\d{1,9}(\.\d*)?", asked):
        return float(asked)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(asked).timestamp() - time.time())
    except (ValueError, OverflowError):
        return 0.0
