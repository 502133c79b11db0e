"""Say why cells lack a completion or a score, and what helps: the reasons of failures, counted, with their causes and cures."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import Enum
from typing import NamedTuple

from permix.sanitize import escape_control, redact_secrets, truncate
from permix.storage.cells import CellIndex, cell_summaries
from permix.types import Cell, CellKey, Failure

MAX_LISTED_REASONS, MAX_REASON_CHARS = 3, 200


def find_failures(cells: Mapping[CellKey, Cell], *, scored: bool) -> Iterator[Failure]:
    """Why cells have no completion or, of a run whose cells are scored, no score."""
    for key, summary in cell_summaries(cells).items():
        if summary.has_completion and (not scored or summary.reward is not None):
            continue
        cell = cells.parse_uncached(key) if isinstance(cells, CellIndex) else cells[key]
        if cell.completion is None and cell.failure is not None:
            yield cell.failure
        elif cell.verdict is not None and cell.verdict.error:
            yield Failure(type="scorer", message=cell.verdict.error)


class FailureReason(NamedTuple):
    """Failures of one kind: how many, the words of one of them, safe to print, and what helps ("" if that is unknown)."""

    n: int
    text: str
    cure: str

    def __str__(self) -> str:
        return f"{self.n} × {self.text}"


class OptionNames(NamedTuple):
    """What a cure names, for the model that failed: its section, the limit of its completions, and what helps if it takes no
    system message."""

    section: str = "model"
    max_new_tokens: str = "sampling.max_new_tokens"
    without_system: str = "--personas.template in_question, which puts the persona into the user's message"


MODEL_OPTIONS = OptionNames()

JUDGE_OPTIONS = OptionNames("judge", "judge.max_new_tokens", "another judge.name, a model that takes a system message")


def count_failures(failures: Iterable[Failure], options: OptionNames = MODEL_OPTIONS) -> list[FailureReason]:
    """The reasons of failures, the most frequent first. Reasons that differ only in their numbers are counted together."""
    examples: dict[str, Failure] = {}
    counts = Counter[str]()
    for failure in failures:
        kind = _without_numbers(_failure_text(failure))
        examples.setdefault(kind, failure)
        counts[kind] += 1
    return [
        FailureReason(count, _shorten(_failure_text(examples[kind])), find_cure(examples[kind], options))
        for kind, count in counts.most_common()
    ]


class NextStart(NamedTuple):
    """What a further start does about missing results: the advice where it can help, what does not help with requests that were
    refused for good, and the words of refusals whose cause the next requests do without."""

    advice: str
    repetition: str = "running the same command again"
    cured: tuple[str, ...] = ()

    def helps(self, failure: Failure) -> bool:
        """Whether the request may be answered next time. Words count without their numbers."""
        words = _without_numbers(failure.message)
        return not is_permanent(failure) or any(_without_numbers(one) in words for one in self.cured)


def _without_numbers(text: str) -> str:
    return re.sub(r"\d+", "0", text)


def explain_missing(
    failures: Iterable[Failure],
    again: str | NextStart = "run the same command again to fill them",
    *,
    stop_reason: str = "",
    options: OptionNames = MODEL_OPTIONS,
) -> str:
    """The end of an error about missing results: whether to run again, the most frequent reasons with counts, and what helps.

    `again`: what a further start can do, or its advice alone. `stop_reason`: why this start asked for no more.
    """
    found, start = list(failures), NextStart(again) if isinstance(again, str) else again
    stopped = f"; {stop_reason}" if stop_reason else ""
    if not found:
        return f"{stopped}; {start.advice}"
    counted = count_failures(found, options)
    reasons = describe_reasons(counted)
    refused = "the endpoint refuses these requests, or a content filter stops the replies"
    permanent = sum(not start.helps(failure) for failure in found)
    if permanent == len(found) and not stop_reason:
        return f"; {start.repetition} does not help, since {refused}: {reasons}{describe_cures(counted)}"
    useless = f"; it does not help with {permanent} of them, since {refused}" if permanent else ""
    return f"{stopped}; {start.advice} ({reasons}{useless}){describe_cures(counted)}"


def describe_reasons(reasons: Sequence[FailureReason]) -> str:
    """The most frequent reasons with their counts, and how many failures had others."""
    rest = sum(reason.n for reason in reasons[MAX_LISTED_REASONS:])
    return "; ".join([*map(str, reasons[:MAX_LISTED_REASONS]), *([f"{rest} × other reasons"] if rest else [])])


def describe_cures(reasons: Sequence[FailureReason]) -> str:
    """ "; what helps: ..." for the most frequent reasons; "" if nothing is known to help."""
    cures = dict.fromkeys(reason.cure for reason in reasons[:MAX_LISTED_REASONS] if reason.cure)
    return f"; what helps: {'; '.join(cures)}" if cures else ""


def _failure_text(failure: Failure) -> str:
    return failure.message if failure.message.startswith("HTTP ") else f"{failure.type}: {failure.message}"


def is_permanent(failure: Failure) -> bool:
    """Whether the same request would most likely fail again: the endpoint refused it, or its reply was filtered or too long."""
    return (
        failure.type in ("FilteredReplyError", "ReplyTooLargeError", "UnicodeEncodeError")
        or _REFUSED_FOR_GOOD.search(failure.message) is not None
        or find_cause(failure) is FailureCause.SYSTEM_ROLE
    )


_REFUSED_FOR_GOOD = re.compile(
    r"^HTTP (?:413|414|415|422|431):|content.?(?:filter|policy|management)|prohibited|flagged|not supported|unsupported"
    r"|too long|context.?(?:length|window)|maximum.{1,40}tokens",
    re.IGNORECASE,
)


_REFUSED = r"(?:not (?:supported|allowed|enabled|permitted|available|accepted)|unsupported|disallowed)"

_SYSTEM_ROLE = (
    rf"\b(?:system|developer)\W{{0,3}}(?:role|message|prompt|instruction)s?\W{{0,3}}(?:(?:is|are)\s+)?{_REFUSED}"
    rf"|\brole\W{{1,4}}(?:system|developer)\W{{1,3}}(?:is\s+)?{_REFUSED}"
    r"|system[' ]*role[^.]{0,40}(?:unsupported|not supported)"
    r"|(?:(?:does|do) not|doesn't|don't|cannot|can't) (?:support|allow|accept|take|handle)\b[^.\n]{0,30}"
    r"(?:['\"`](?:system|developer)['\"`]|\b(?:system|developer) (?:role|message|prompt|instruction))"
    r"|(?:unknown|unexpected|invalid|unsupported|unrecogni[sz]ed|disallowed) (?:message )?role\W{1,4}(?:system|developer)\b"
    r"|roles must alternate|only ['\"`]?user['\"`]? and ['\"`]?(?:assistant|model)['\"`]? roles"
    r"|role\b[^.\n]{0,20}(?:(?:must|should|can only) be|valid role:)(?: one of| either)?\W{1,4}(?:user|assistant|model)\b"
    r"(?![^.\n]{0,60}system)|valid role: user, model"
)


class FailureCause(Enum):
    """A cause of failures that is known by its words, in the order of looking: pattern and cure.

    The pattern is searched in the message of an HTTP error, or in "TYPE: MESSAGE" of another one. A cure names options.
    """

    SYSTEM_ROLE = (_SYSTEM_ROLE, "{without_system}")
    QUOTA = (
        r"^HTTP 402:|insufficient.?(?:quota|credit|balance|funds)|current quota|billing|credit balance|out of credits",
        "new credit at the provider, since the quota is spent",
    )
    RATE_LIMIT = (r"^HTTP 429:", "a smaller {section}.concurrency")
    CONTENT_FILTER = (
        r"^FilteredReplyError|content.?(?:filter|policy|management)|prohibited.?content|moderation|flagged|^HTTP 451:",
        "a content filter that is switched off at the endpoint, or other personas and questions",
    )
    CONTEXT_LENGTH = (
        r"^HTTP 413:|context.?(?:length|window|size)|maximum.{1,40}tokens|(?:prompt|input|request).{0,40}too (?:long|large)",
        "shorter prompts, or a smaller {max_new_tokens}",
    )
    KEY = (r"^HTTP (?:401|403):", "a valid key in the environment variable that {section}.api_key_env names")
    NOT_FOUND = (r"^HTTP (?:404|405):", "another {section}.name, or a {section}.base_url that ends in /v1")
    WEB_PAGE = (r"^MalformedReplyError: .*reply was \s*<(?:!doctype|html)", "a {section}.base_url that ends in /v1")
    EMPTY_REPLY = (r"^MalformedReplyError: empty completion", "")
    TIMEOUT = (r"^TimeoutError:|no complete reply within", "a larger {section}.timeout_s")
    NO_CONNECTION = (r"^API(?:Connection|Timeout)Error:", "an endpoint that runs at {section}.base_url")
    SERVER_ERROR = (r"^HTTP 5\d\d:", "the endpoint's own log, which says what fails there")

    def matches(self, failure: Failure) -> bool:
        return self.is_named_in(_failure_text(failure))

    def is_named_in(self, text: str) -> bool:
        """Whether a text, such as the message of an endpoint, has the words of this cause."""
        return re.search(self.value[0], text, re.IGNORECASE | re.DOTALL) is not None

    def cure(self, options: OptionNames = MODEL_OPTIONS) -> str:
        """What helps, in the words of the options; "" if that is unknown."""
        return str(self.value[1]).format(**options._asdict())

    @property
    def concerns_one_request(self) -> bool:
        """Whether other requests may well be answered."""
        return self in (FailureCause.CONTENT_FILTER, FailureCause.CONTEXT_LENGTH, FailureCause.EMPTY_REPLY)


def find_cause(failure: Failure) -> FailureCause | None:
    """The first cause whose words the failure has; None for a failure of the scorer, or of an unknown cause."""
    return None if failure.type == "scorer" else next((cause for cause in FailureCause if cause.matches(failure)), None)


def find_cure(failure: Failure, options: OptionNames = MODEL_OPTIONS) -> str:
    """What helps against a failure; "" if that is unknown."""
    cause = find_cause(failure)
    return "" if cause is None else cause.cure(options)


def _shorten(text: str) -> str:
    return truncate(" ".join(escape_control(redact_secrets(text)).split()), MAX_REASON_CHARS)
