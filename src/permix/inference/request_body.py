"""The body of a chat request in the form that an endpoint accepts, and what an endpoint's replies hold.

Endpoints differ: some want `max_completion_tokens`, some refuse a temperature, a seed or a top_p of 1, some only stream.
`RequestBody` starts with the standard fields. When an endpoint refuses one of them, `adapt` reads which one from the refusal,
changes the body of all later requests, and keeps the endpoint's words, so that a run can record what was not sent.

A field is left out only if the answers then still mean what the configuration says, or if the record says that they do not: a
top_p below 1 and a number of tokens are never left out.
"""

import contextlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError, field_validator

from permix.storage.failures import FailureCause
from permix.types import Completion, Message, Sampling

MAX_WORDS_CHARS = 300

MAX_REFUSAL_CHARS = 100_000
"""Characters of an endpoint's error that are searched for what it refuses, and for the API key, of which few are kept."""

MAX_USAGE_TOKENS = 10**9
"""A count of tokens above this is no count: no model reads or writes as many for one request."""

ChangeableField = Literal["max_tokens", "temperature", "top_p", "seed", "stream", "stream_options"]
"""A field of a request that is left out, renamed or added (`stream`) when an endpoint refuses a request."""

_FIELDS = ("max_completion_tokens", "max_tokens", "temperature", "top_p", "seed", "stream_options")

_STREAM_REFUSAL = re.compile(
    r"non-?stream|only supports? stream|stream(?:ing)? (?:mode|must|is required|only)|requires? stream|(?:enable|without) stream"
    r"|\bstream\W{1,3}(?:=|:|to|must be|should be)?\W{0,3}true\b|\bstream\W{1,4}false\b",
    re.IGNORECASE,
)


def is_system_refusal(message: str) -> bool:
    """Whether an endpoint's message says that its chat template takes no system message."""
    return FailureCause.SYSTEM_ROLE.is_named_in(message)


class RequestBody:
    """Builds request bodies for one endpoint, and learns from its refusals.

    extra: fields that the user adds; they replace the standard ones, and no refusal changes them.
    changes: the fields that are left out or renamed, each with the endpoint's words.
    """

    def __init__(self, model: str, extra: Mapping[str, Any] | None = None) -> None:
        self._model, self._extra = model, dict(extra or {})
        self.changes: dict[ChangeableField, str] = {}

    def build(self, messages: Sequence[Message], seed: int, sampling: Sampling) -> dict[str, Any]:
        """The body of one request. Only the low 31 bits of the seed are sent."""
        body: dict[str, Any] = {
            "model": self._model, "messages": messages, "temperature": sampling.temperature, "top_p": sampling.top_p,
            "max_tokens": sampling.max_new_tokens, "seed": seed & 0x7FFFFFFF,
        }  # fmt: skip
        return self.rebuild(body) | self._extra

    def rebuild(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """A body that was built earlier, with all changes up to now."""
        changed = {
            name: value
            for name, value in body.items()
            if name in self._extra or name not in self.changes or (name == "top_p" and value != 1)
        }
        if "max_tokens" in body and "max_tokens" not in changed:
            changed["max_completion_tokens"] = body["max_tokens"]
        if "stream" in self.changes:
            changed["stream"] = True
            if "stream_options" not in self.changes:
                changed["stream_options"] = {"include_usage": True}
        return changed

    def adapt(self, refusal: str, param: str | None, body: Mapping[str, Any]) -> ChangeableField | None:
        """Learn from a refusal of `body`; returns the name of the field that changes, or None if nothing can be changed.

        refusal: the endpoint's message. param: the field that it names apart from the message, if it does.
        """
        if _STREAM_REFUSAL.search(refusal) and "stream" not in body:
            return self._change("stream", refusal)
        ours = body.keys() - self._extra.keys()
        named = [param] if param in _FIELDS else [name for name in _FIELDS if re.search(rf"(?<!\w){name}(?!\w)", refusal)]
        if "max_tokens" in ours and ("max_completion_tokens" in refusal or (named == ["max_tokens"] and _says_unknown(refusal))):
            return self._change("max_tokens", refusal)
        if "top_p" in named and "top_p" in ours and body["top_p"] == 1:
            return self._change("top_p", refusal)
        removable: tuple[ChangeableField, ...] = ("temperature", "seed", "stream_options")
        for name in removable:
            if name in named and name in ours:
                return self._change(name, refusal)
        return None

    def _change(self, name: ChangeableField, refusal: str) -> ChangeableField:
        self.changes.setdefault(name, refusal[:MAX_WORDS_CHARS])
        return name


def _says_unknown(refusal: str) -> bool:
    return re.search(r"unsupported|not supported|unknown|unrecognized|unexpected|not permitted|extra", refusal, re.I) is not None


def _validation_error(body: Any) -> tuple[list[str], str] | None:
    """The place and the message of the first error in FastAPI's form (`detail`: a list); None for a body of another form."""
    details = body.get("detail") if isinstance(body, dict) else None
    if not isinstance(details, list) or not details or not isinstance(details[0], dict):
        return None
    place = details[0].get("loc")
    return [str(part) for part in place if part != "body"] if isinstance(place, list) else [], str(details[0].get("msg"))


def refused_field(body: Any) -> str | None:
    """The field that an error body names apart from its message: OpenAI's `param`, or the last place of FastAPI's `loc`."""
    if isinstance(body, dict) and isinstance(body.get("param"), str):
        return str(body["param"])
    place, _ = _validation_error(body) or ([], "")
    if place:
        return place[-1]
    inner = _inner_error(body)
    return None if inner is None else refused_field(inner)


def refusal_text(body: Any) -> str:
    """The message of an error body, in the forms of OpenAI, FastAPI, TGI and others; the whole body as JSON if there is none.

    At most `MAX_REFUSAL_CHARS` characters of it.
    """
    try:
        text = _find_message(body) or (body if isinstance(body, str) else json.dumps(body, ensure_ascii=False, default=str))
        return text[:MAX_REFUSAL_CHARS]
    except RecursionError:
        return "(an error that is nested too deeply)"


def _inner_error(body: Any) -> dict[str, Any] | str | None:
    """The error that a router such as OpenRouter got from the provider and passes on; None without one."""
    metadata = body.get("metadata") if isinstance(body, dict) else None
    raw = metadata.get("raw") if isinstance(metadata, dict) else None
    if isinstance(raw, str):
        with contextlib.suppress(ValueError, RecursionError):
            raw = json.loads(raw)
    inner = raw.get("error", raw) if isinstance(raw, dict) else raw
    return inner if isinstance(inner, dict | str) and inner else None


def _find_message(body: Any) -> str:
    own, inner = _own_message(body), _inner_error(body)
    if isinstance(inner, dict):
        inner = _find_message(inner) or json.dumps(inner, ensure_ascii=False, default=str)
    return ": ".join(filter(None, (own, inner)))


def _own_message(body: Any) -> str:
    if (invalid := _validation_error(body)) is not None:
        place, message = invalid
        return f"{'.'.join(place)}: {message}" if place else message
    if isinstance(body, dict):
        for field in ("message", "error", "detail"):
            value = body.get(field)
            if isinstance(value, str) and value:
                return value
            if isinstance(value, dict):
                return _find_message(value) or json.dumps(value, ensure_ascii=False, default=str)
    return ""


def response_format(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The field `response_format` of a request whose reply must have this JSON schema."""
    return {"type": "json_schema", "json_schema": {"name": "reply", "strict": True, "schema": schema}}


class MalformedReplyError(Exception):
    """A reply with status 200 that contains no completion."""


class FilteredReplyError(Exception):
    """A reply that a content filter stopped: it is no answer of the model, whatever words are left of it."""


class _ChatMessage(BaseModel):
    content: str | None = None

    @field_validator("content", mode="before")
    @classmethod
    def _join_parts(cls, value: Any) -> Any:
        """Content may be a list of parts: the texts are joined, and parts of other types are dropped."""
        if not isinstance(value, list):
            return value
        return "".join(_part_text(part) for part in value)


def _part_text(part: Any) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, dict) and part.get("type") in ("text", "output_text", None) and isinstance(part.get("text"), str):
        return str(part["text"])
    return ""


def _thinking_text(value: Any) -> str:
    """The text of the thinking parts of a content, or of a field for reasoning, however they are nested."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return "".join(_thinking_text(part) for part in value)
    if isinstance(value, dict):
        return next(
            (_thinking_text(value[field]) for field in ("thinking", "text", "content", "summary") if value.get(field)), ""
        )
    return ""


class _Choice(BaseModel):
    message: dict[str, Any]
    finish_reason: str | None = None
    error: Any = None


class _ChatCompletion(BaseModel):
    """The fields of a chat completion that are read; all others are ignored."""

    choices: list[_Choice] = Field(min_length=1)
    usage: Any = None


_LENGTH_REASONS = frozenset({
    "length", "maxlength", "maxtokens", "maxoutputtokens", "maxnewtokens", "maxcompletiontokens", "modellength", "tokenlimit",
    "errorlimit", "contextlength", "contextwindowexceeded", "modelcontextwindowexceeded", "incomplete",
})  # fmt: skip

_FILTER_REASONS = frozenset({
    "contentfilter", "contentfiltered", "safety", "recitation", "prohibitedcontent", "blocklist", "spii", "modelarmor",
    "sensitive", "guardrailintervened", "refusal", "errortoxic",
})  # fmt: skip
"""A filter of the endpoint, and not the model, ended the reply: also "refusal", which Anthropic's classifiers give."""

_FAILURE_REASONS = frozenset({
    "error", "abort", "aborted", "cancel", "cancelled", "canceled", "usercancel", "timeout", "networkerror",
    "insufficientsystemresource",
})  # fmt: skip


def _plain_reason(reason: str | None) -> str:
    """A finish reason as the sets above write it: "FinishReason.MAX_TOKENS" -> "maxtokens"."""
    return re.sub(r"[\W_]", "", (reason or "").lower().rpartition(".")[2])


def parse_chat_completion(body: bytes) -> Completion:
    """The first choice of a chat completion, streamed or not.

    Token counts that the reply does not state are None. Raises MalformedReplyError, also for a reply of nothing and for one that
    an error of the endpoint broke off, and FilteredReplyError.
    """
    raw = _join_stream(body) if body.lstrip().startswith(_STREAM_STARTS) else body
    try:
        reply = _ChatCompletion.model_validate_json(_replace_surrogates(raw))
        choice = reply.choices[0]
        message = _ChatMessage.model_validate({"content": choice.message.get("content")})
    except (ValidationError, RecursionError) as error:
        why = _first_problem(error) if isinstance(error, ValidationError) else "nested too deeply"
        raise MalformedReplyError(f"{_stated_error(body) or why}; the reply was {body.decode(errors='replace')}") from None
    reason = _plain_reason(choice.finish_reason)
    if reason in _FILTER_REASONS:
        raise FilteredReplyError(f"a content filter stopped the reply; finish_reason = {choice.finish_reason!r}")
    if reason in _FAILURE_REASONS:
        words = f": {refusal_text(choice.error)}" if choice.error else ""
        raise MalformedReplyError(f"the endpoint broke the reply off; finish_reason = {choice.finish_reason!r}{words}")
    generated = usage_count(reply.usage, "completion_tokens")
    text, reasoning = message.content or "", _reasoning_of(choice.message)
    # A reasoning model that reached the token limit while it reasoned gives no text: an empty answer, cut off. One that says
    # nothing after its reasoning, refuses in a field of its own or calls a tool has given an empty answer too.
    has_generated = generated or reasoning or choice.message.get("refusal") or choice.message.get("tool_calls")
    if not text.strip() and not has_generated and reason not in _LENGTH_REASONS:
        raise MalformedReplyError(f"empty completion without a generated token; finish_reason = {choice.finish_reason!r}")
    return Completion(
        text=text,
        prompt_tokens=usage_count(reply.usage, "prompt_tokens"),
        completion_tokens=generated,
        finish="length" if reason in _LENGTH_REASONS else "stop",
        reasoning=reasoning or None,
    )


def _stated_error(body: bytes) -> str:
    """The message of a JSON body that is an error, with status 200; empty for other bodies."""
    with contextlib.suppress(ValueError, RecursionError):
        reply = json.loads(body)
        if isinstance(reply, dict) and not reply.get("choices"):
            return _find_message(reply)[:MAX_REFUSAL_CHARS]
    return ""


def _first_problem(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    return f"{'.'.join(map(str, first['loc'])) or 'reply'}: {first['msg']}"


def _replace_surrogates(body: bytes) -> bytes:
    """The JSON with "?" for each lone surrogate, which a model may generate and pydantic refuses; other bodies as they are."""
    if b"\\ud" not in body.lower():
        return body
    with contextlib.suppress(ValueError, RecursionError):
        return json.dumps(json.loads(body), ensure_ascii=False).encode("utf-8", "replace")
    return body


def _reasoning_of(message: Mapping[str, Any]) -> str:
    """The thinking that a message holds apart from its text."""
    for field in ("reasoning_content", "reasoning", "thinking"):
        if text := _thinking_text(message.get(field)):
            return text
    content = message.get("content")
    parts = content if isinstance(content, list) else []
    return "".join(
        _thinking_text(part) for part in parts if isinstance(part, dict) and part.get("type") in ("thinking", "reasoning")
    )


def usage_count(usage: Any, field: str) -> int | None:
    """A token count of a reply's usage; None if the reply does not state it. Some servers send whole numbers as floats."""
    value = usage.get(field) if isinstance(usage, dict) else None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MAX_USAGE_TOKENS or value != int(value):
        return None
    return int(value)


_STREAM_STARTS = (b"data:", b"event:", b"id:", b"retry:", b":")
"""How a body of server-sent events may begin; ":" begins a comment, which keeps the connection open."""


def _stream_events(body: bytes) -> Iterator[tuple[dict[str, Any], str]]:
    """The events of a stream, each with its text. Raises MalformedReplyError for an event that is no JSON object or an error."""
    name = ""
    # Not `splitlines`, which also splits at U+2028, U+0085 and others that JSON may contain as they are.
    for line in re.split(r"\r\n|\n|\r", body.decode(errors="replace")):
        field, _, value = line.partition(":")
        data = value.strip()
        if field == "event" or not line:
            name = data
        if field != "data" or data == "[DONE]":
            continue
        try:
            event = json.loads(data)
        except (ValueError, RecursionError):
            raise MalformedReplyError(f"an event of the stream is not JSON: {data}") from None
        if not isinstance(event, dict) or event.get("error") or "error" in (name, event.get("object"), event.get("type")):
            words = f"{refusal_text(event)}; the event was " if isinstance(event, dict) else ""
            raise MalformedReplyError(f"an event of the stream is an error: {words}{data}")
        yield event, data


def _join_stream(body: bytes) -> bytes:
    """The events of a streamed completion as one completion. Raises MalformedReplyError."""
    content: list[str] = []
    reasoning: list[str] = []
    finish, usage, seen = None, None, False
    others: dict[str, Any] = {}
    for event, data in _stream_events(body):
        usage = event.get("usage") or usage
        try:
            for choice in event.get("choices") or []:
                seen = True
                delta = choice.get("delta") or choice.get("message") or {}
                parts = delta.get("content")
                content += map(_part_text, parts if isinstance(parts, list) else [parts])
                reasoning.append(_thinking_text(delta.get("reasoning_content") or delta.get("reasoning")))
                others |= {name: delta[name] for name in ("refusal", "tool_calls") if delta.get(name)}
                finish = choice.get("finish_reason") or finish
        except (AttributeError, TypeError, RecursionError):
            raise MalformedReplyError(f"an event of the stream is no part of a completion: {data}") from None
    if not seen:
        raise MalformedReplyError(f"a stream without a choice: {body.decode(errors='replace')}")
    message = {"content": "".join(content), "reasoning_content": "".join(reasoning), **others}
    return json.dumps({"choices": [{"message": message, "finish_reason": finish}], "usage": usage}).encode()
