"""One reply of a chat-completions endpoint, read: a completion, an error that may heal, or one that will not."""

import email.utils
import re
import time
from typing import Any

from pydantic import BaseModel, Field, ValidationError

from permix.config import explain
from permix.types import Completion


class MalformedReplyError(Exception):
    """A reply with status 200 and no completion in it."""


class _ChatMessage(BaseModel):
    content: str | None


class _Choice(BaseModel):
    message: _ChatMessage
    finish_reason: str | None = None


class _Reply(BaseModel):
    """The part of a chat completion that is read; everything else is ignored."""

    choices: list[_Choice] = Field(min_length=1)
    usage: Any = None


def read_reply(body: bytes) -> Completion:
    """The first choice of a chat completion. Raises MalformedReplyError, also for a blank text that no token accounts for."""
    try:
        reply = _Reply.model_validate_json(body)
    except ValidationError as error:
        raise MalformedReplyError(f"{explain(error)}; the reply was {body.decode(errors='replace')}") from None
    choice, generated = reply.choices[0], count_of(reply.usage, "completion_tokens")
    # A reasoning model that was cut off while it thought says nothing, and has been paid for it: that is its answer.
    text = choice.message.content or ""
    if not text.strip() and not generated:
        raise MalformedReplyError(f"empty completion without a generated token; finish_reason = {choice.finish_reason!r}")
    return Completion(
        text=text,
        prompt_tokens=count_of(reply.usage, "prompt_tokens"),
        completion_tokens=generated,
        finish="length" if choice.finish_reason == "length" else "stop",
    )


def count_of(usage: Any, field: str) -> int:
    value = usage.get(field) if isinstance(usage, dict) else None
    return value if isinstance(value, int) and value >= 0 else 0


def status_of(error: BaseException | None) -> int | None:
    return getattr(error, "status_code", None)


def words_of(error: BaseException) -> str:
    """What an error says; of an HTTP status, the body's own message."""
    status, body, cause = status_of(error), getattr(error, "body", None), error.__cause__
    if status is not None:
        message = body.get("message") if isinstance(body, dict) else None
        return f"HTTP {status}: {message or body}"
    return f"{error} ({type(cause).__name__}: {cause})" if cause else str(error)


def is_busy(error: BaseException) -> bool:
    """A status that may be another one soon. A spent quota is a 429 that waiting does not heal."""
    status = status_of(error)
    if status is None or getattr(error, "code", None) == "insufficient_quota":
        return False
    return status in (408, 429) or status >= 500


def may_heal(error: BaseException) -> bool:
    import openai

    return is_busy(error) or isinstance(error, (openai.APIConnectionError, TimeoutError, MalformedReplyError))


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
