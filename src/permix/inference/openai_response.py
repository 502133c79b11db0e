"""Parsing one reply of a chat-completions endpoint: a completion, a transient error, or a permanent one."""

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
    """A reply with status 200 that contains no completion."""


class _ChatMessage(BaseModel):
    content: str | None


class _Choice(BaseModel):
    message: _ChatMessage
    finish_reason: str | None = None


class _ChatCompletion(BaseModel):
    """The fields of a chat completion that are read; all others are ignored."""

    choices: list[_Choice] = Field(min_length=1)
    usage: Any = None


class WastedTokens:
    """Tokens that an endpoint charged for malformed replies to one request."""

    def __init__(self) -> None:
        self.counts = {"prompt_tokens": 0, "completion_tokens": 0}

    def add_reply(self, body: bytes) -> None:
        """Add the token counts of a malformed reply; a body that is not JSON adds nothing."""
        with contextlib.suppress(ValueError, RecursionError):
            reply = json.loads(body)
            usage = reply.get("usage") if isinstance(reply, dict) else None
            self.counts = {name: count + usage_count(usage, name) for name, count in self.counts.items()}

    def add_to_completion(self, completion: Completion) -> Completion:
        """The completion with the wasted tokens added to its counts.

        A completion without both counts stays as it is: a sum with an unknown part would look like a full count.
        """
        counts = {name: getattr(completion, name) for name in self.counts}
        if not any(self.counts.values()) or not all(counts.values()):
            return completion
        return completion.model_copy(update={name: counts[name] + wasted for name, wasted in self.counts.items()})


def parse_chat_completion(body: bytes) -> Completion:
    """The first choice of a chat completion. Raises MalformedReplyError, also for a blank text without a generated token."""
    try:
        reply = _ChatCompletion.model_validate_json(body)
    except ValidationError as error:
        raise MalformedReplyError(f"{format_validation_error(error)}; the reply was {body.decode(errors='replace')}") from None
    choice, generated = reply.choices[0], usage_count(reply.usage, "completion_tokens")
    # A reasoning model that reached the token limit while it reasoned gives no text but has generated tokens: an empty answer.
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
    """The text of an error; for an HTTP status, "HTTP STATUS: " and the message in the body."""
    status, body, cause = http_status(error), getattr(error, "body", None), error.__cause__
    if status is not None:
        message = body.get("message") if isinstance(body, dict) else None
        return f"{_HTTP_PREFIX}{status}: {message or body}"
    return f"{error} ({type(cause).__name__}: {cause})" if cause else str(error)


def is_http_failure(failure: Failure) -> bool:
    """Whether the endpoint answered with an HTTP error (by the text of `error_message`); otherwise its state is unknown."""
    return failure.message.startswith(_HTTP_PREFIX)


def is_transient_status(error: BaseException) -> bool:
    """Whether a retry may succeed: status 408, 429 or 5xx. A 429 for a spent quota is permanent."""
    status = http_status(error)
    if status is None or getattr(error, "code", None) == "insufficient_quota":
        return False
    return status in (408, 429) or status >= 500


def is_schema_refusal(error: BaseException) -> bool:
    """Whether the status may mean "no support for JSON schemas". It can have other causes, so retry without the schema."""
    return http_status(error) in (400, 404, 415, 422, 501)


def is_retryable(error: BaseException) -> bool:
    import openai

    return is_transient_status(error) or isinstance(error, (openai.APIConnectionError, TimeoutError, MalformedReplyError))


def retry_after_s(error: BaseException | None) -> float:
    """Seconds to wait by the Retry-After header, which is a number or a date; 0 without one."""
    response = getattr(error, "response", None)
    header = response.headers.get("retry-after", "") if response is not None else ""
    if re.fullmatch(r"\d{1,9}(\.\d*)?", header):
        return float(header)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(header).timestamp() - time.time())
    except (ValueError, OverflowError):
        return 0.0
