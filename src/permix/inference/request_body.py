"""The body of a chat request in the form that an endpoint accepts, and what an endpoint's replies hold.

Endpoints differ: some want `max_completion_tokens`, some refuse a temperature, a seed, a top_p of 1 or a JSON schema, some only
stream. `RequestBody` starts with the standard fields. When an endpoint refuses a request, `find_change` reads from the refusal
which field it is about, and `keep_change` changes the body of all later requests and keeps the endpoint's words, so that a run
can record what was not sent. The caller decides whether the refusal is enough: over HTTP a change is kept once the changed
request gets further, and in batch files if no request with the field was answered.

A field is left out only if the answers then still mean what the configuration says, or if the record says that they do not: a
top_p below 1 and a number of tokens are never left out. A refusal of one prompt (too long, filtered) changes nothing, whatever
names of fields its words contain.
"""

import contextlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, get_args

from pydantic import BaseModel, Field, ValidationError, field_validator

from permix.storage.failures import FailureCause
from permix.types import Completion, Message, Sampling

MAX_WORDS_CHARS = 300

MAX_REFUSAL_CHARS = 100_000
"""Characters of an endpoint's error that are searched for what it refuses, and for the API key, of which few are kept."""

MAX_USAGE_TOKENS = 10**9
"""A count of tokens above this is no count: no model reads or writes as many for one request."""

SCHEMA_REFUSAL_STATUSES = (400, 404, 415, 422, 501)
"""HTTP statuses with which hosts refuse a JSON schema; other fields are refused with 400 and 422."""

ChangeableField = Literal["max_tokens", "temperature", "top_p", "seed", "stream", "stream_options", "response_format"]
"""A field of a request that is left out, renamed or added (`stream`) when an endpoint refuses a request."""

_FIELDS = ("max_completion_tokens", "max_tokens", "temperature", "top_p", "seed", "stream_options", "response_format")

_OTHER_NAMES = {"response_format": r"response[_ ]formats?|json[_ ]schemas?|json mode|structured[_ ]outputs?|guided_json"}
"""Patterns of the names by which a refusal may call a field, where they are not its own name alone."""

_WORDS = frozenset({"temperature", "seed"})
"""Names that are also words of prompts: they count only where they stand as the name of a field."""

_BEFORE_A_FIELD = re.compile(
    r"(?:parameters?|fields?|arguments?|options?|propert(?:y|ies)|keys?|inputs?|supplied|supports?|support for|supported"
    r"|unsupported|unknown|unexpected|unrecogni[sz]ed|invalid|allows?|allowed|accepts?|permits?|permitted|specify|sets?|setting"
    r"|without|remove|omit)(?:\(s\))?\W{1,4}(?:(?:a|the|any|custom)\s+)?(?:\w+,\s+){0,5}(?:and\s+)?$",
    re.IGNORECASE,
)

_AFTER_A_FIELD = re.compile(
    r"\s*[=:<>]|\W{1,3}(?:parameters?|fields?|arguments?|options?|values?|is|are|was|must|should|may|can|cannot|can't|does|do"
    r"|doesn't|has|have|to be|not|only|unsupported)\b",
    re.IGNORECASE,
)

_QUOTES = "'\"`"

_QUOTED_CHARS = 8
"""A name that stands in the prompt with the same characters before or after it, as many as this, is quoted from there."""

_STREAM_REFUSAL = re.compile(
    r"non-?stream|only supports? stream|stream(?:ing)? (?:mode|must|is required|only)|requires? stream|(?:enable|without) stream"
    r"|\bstream\W{1,3}(?:=|:|to|must be|should be)?\W{0,3}true\b|\bstream\W{1,4}false\b",
    re.IGNORECASE,
)

_UNKNOWN = r"unsupported|not supported|unknown|unrecognized|unexpected|not permitted|extra"

_OTHER_VALUE = (
    r"too (?:large|small|big|high|low|long)|exceed|at (?:least|most)|greater|less than|larger|between|positive|\d\s*[<>]"
)

_CAUSES_IN_MESSAGES = tuple(cause for cause in FailureCause if cause.concerns_one_request or cause is FailureCause.SYSTEM_ROLE)


def is_system_refusal(message: str) -> bool:
    """Whether an endpoint's message says that its chat template takes no system message."""
    return FailureCause.SYSTEM_ROLE.is_named_in(message)


def concerns_messages(refusal: str, param: str | None = None) -> bool:
    """Whether a refusal is about the messages of its request: too long, filtered, of a role that is not taken."""
    is_named = param is not None and re.match(r"messages|prompt|input", param) is not None
    return is_named or any(cause.is_named_in(refusal) for cause in _CAUSES_IN_MESSAGES)


class RequestBody:
    """Builds request bodies for one endpoint, and learns from its refusals.

    extra: fields that the user adds; they replace the standard ones, and no refusal changes them.
    changes: the fields that are left out or renamed, each with the endpoint's words.
    changeable: the fields that a refusal may change.
    """

    def __init__(
        self,
        model: str,
        extra: Mapping[str, Any] | None = None,
        changeable: frozenset[ChangeableField] = frozenset(get_args(ChangeableField)),
    ) -> None:
        self._model, self._extra, self._changeable = model, dict(extra or {}), changeable
        self.changes: dict[ChangeableField, str] = {}

    def build_standard(
        self, messages: Sequence[Message], seed: int, sampling: Sampling, schema: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """The body of one request without any change. Only the low 31 bits of the seed are sent. schema: of the reply."""
        body: dict[str, Any] = {
            "model": self._model, "messages": messages, "temperature": sampling.temperature, "top_p": sampling.top_p,
            "max_tokens": sampling.max_new_tokens, "seed": sent_seed(seed),
        }  # fmt: skip
        return body | self._extra | ({} if schema is None else {"response_format": response_format(schema)})

    def build(
        self, messages: Sequence[Message], seed: int, sampling: Sampling, schema: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """The body of one request with all changes up to now."""
        return self.rebuild(self.build_standard(messages, seed, sampling, schema))

    def rebuild(self, body: Mapping[str, Any], *further: ChangeableField) -> dict[str, Any]:
        """A body that was built earlier, with all changes up to now and `further` ones."""
        changes = (self.changes.keys() | set(further)) & self._changeable
        kept = {
            name: value
            for name, value in body.items()
            if name not in changes or not self._is_standard(name, body) or (name == "top_p" and value != 1)
        }
        changed = self._extra | kept
        if "max_tokens" in body and "max_tokens" not in kept:
            changed.setdefault("max_completion_tokens", body["max_tokens"])
        if "stream" in changes:
            changed["stream"] = True
            if "stream_options" not in changes:
                changed.setdefault("stream_options", {"include_usage": True})
        return changed

    def find_change(self, refusal: str, param: str | None, body: Mapping[str, Any]) -> ChangeableField | None:
        """The field of `body` whose change may help against a refusal of it; None if nothing can be changed. Keeps nothing.

        refusal: the endpoint's message. param: the field that it names apart from the message, if it does.
        """
        if concerns_messages(refusal, param):
            return None
        if "stream" in self._changeable and "stream" not in body and self.names("stream", refusal, param, body):
            return "stream"
        named = [name for name in _FIELDS if _names(name, refusal, param, body)]
        if "max_tokens" in named or "max_completion_tokens" in named:
            wanted = _UNKNOWN if "max_completion_tokens" not in refusal else rf"{_UNKNOWN}|\buse\b|instead|deprecated|replaced?"
            is_name = re.search(wanted, refusal, re.I) is not None and re.search(_OTHER_VALUE, refusal, re.I) is None
            is_alone = not set(named) - {"max_tokens", "max_completion_tokens"}
            if is_name and (is_alone or "max_completion_tokens" in named) and self._is_standard("max_tokens", body):
                return "max_tokens"
        if "top_p" in named and self._is_standard("top_p", body) and body["top_p"] == 1:
            return "top_p"
        removable: tuple[ChangeableField, ...] = ("temperature", "seed", "stream_options", "response_format")
        return next((name for name in removable if name in named and self._is_standard(name, body)), None)

    def names(self, field: ChangeableField, refusal: str, param: str | None, body: Mapping[str, Any]) -> bool:
        """Whether a refusal of `body` names the field, other than in words quoted from its messages."""
        if field == "stream":
            text = _prompt_text(body)
            return any(not _is_quoted(refusal, *match.span(), text) for match in _STREAM_REFUSAL.finditer(refusal))
        names = ("max_tokens", "max_completion_tokens") if field == "max_tokens" else (field,)
        return any(_names(name, refusal, param, body) for name in names)

    def has_schema(self, body: Mapping[str, Any]) -> bool:
        """Whether `body` has a JSON schema that can be left out."""
        return self._is_standard("response_format", body)

    def keep_change(self, name: ChangeableField, refusal: str) -> None:
        """Change this field in all later requests. refusal: the endpoint's words."""
        self.changes.setdefault(name, refusal[:MAX_WORDS_CHARS])

    def _is_standard(self, name: str, body: Mapping[str, Any]) -> bool:
        """Whether `body` has this field, and it is not one of the user's own."""
        return name in body and (name not in self._extra or body[name] != self._extra[name])


def sent_seed(seed: int) -> int:
    """The seed of a request as it is sent."""
    return seed & 0x7FFFFFFF


def _names(name: str, refusal: str, param: str | None, body: Mapping[str, Any]) -> bool:
    """Whether a refusal names a field as a field, by `param` or in words that are not quoted from the messages of `body`."""
    root = (param or "").partition(".")[0]
    if root in _FIELDS:
        return root == name
    prompt = _prompt_text(body)
    for match in re.finditer(rf"(?<!\w)(?:{_OTHER_NAMES.get(name, name)})(?!\w)", refusal, re.IGNORECASE):
        start, end = match.span()
        before, after = refusal[max(0, start - 100) : start], refusal[end : end + 40]
        is_marked = before[-1:] in tuple(_QUOTES) and after[:1] in tuple(_QUOTES)
        stands_as_field = is_marked or before.endswith(".") or _BEFORE_A_FIELD.search(before) or _AFTER_A_FIELD.match(after)
        if (name not in _WORDS or stands_as_field) and not _is_quoted(refusal, start, end, prompt):
            return True
    return False


def _prompt_text(body: Mapping[str, Any]) -> str:
    return _plain("\n".join(str(message.get("content")) for message in body.get("messages", ())))


def _plain(text: str) -> str:
    return re.sub(r"\s", " ", text).lower()


def _is_quoted(refusal: str, start: int, end: int, prompt: str) -> bool:
    """Whether the words at this place of a refusal stand in the prompt too, with what is before them or after them."""
    words, n = _plain(refusal[start:end]), _QUOTED_CHARS
    before, after = _plain(refusal[max(0, start - n) : start]), _plain(refusal[end : end + n])
    return (len(before) == n and before + words in prompt) or (len(after) == n and words + after in prompt)


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

    Token counts that the reply does not state are None, and so is `finish` without a finish reason. Raises MalformedReplyError,
    also for a reply of nothing and for one that broke off, and FilteredReplyError.
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
        finish="length" if reason in _LENGTH_REASONS else None if choice.finish_reason is None else "stop",
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


_END_OF_STREAM = "[DONE]"


def _stream_events(body: bytes) -> Iterator[tuple[dict[str, Any], str]]:
    """The events of a stream, each with its text; the sign of the end is an empty one. Raises MalformedReplyError for an event
    that is no JSON object, or an error."""
    name = ""
    # Not `splitlines`, which also splits at U+2028, U+0085 and others that JSON may contain as they are.
    for line in re.split(r"\r\n|\n|\r", body.decode(errors="replace")):
        field, _, value = line.partition(":")
        data = value.strip()
        if field == "event" or not line:
            name = data
        if field != "data":
            continue
        if data == _END_OF_STREAM:
            yield {}, data
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
    """The events of a streamed completion as one completion. Raises MalformedReplyError, also for a stream that ends without a
    finish reason and without the sign of the end: what is there of it is not the whole answer."""
    content: list[str] = []
    reasoning: list[str] = []
    finish, usage, seen, ended = None, None, False, False
    others: dict[str, Any] = {}
    for event, data in _stream_events(body):
        usage = event.get("usage") or usage
        ended = ended or data == _END_OF_STREAM
        try:
            for choice in event.get("choices") or []:
                if choice.get("index"):
                    continue  # another answer to the same request
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
    if finish is None and not ended:
        raise MalformedReplyError(f"a stream that broke off, without a finish_reason: {body.decode(errors='replace')}")
    message = {"content": "".join(content), "reasoning_content": "".join(reasoning), **others}
    return json.dumps({"choices": [{"message": message, "finish_reason": finish}], "usage": usage}).encode()
