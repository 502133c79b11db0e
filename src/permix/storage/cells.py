"""Read the cells of a run: `read_cells` keeps a summary of each cell in memory and parses the whole cell on first access.

A run may have a million cells, which would take many gigabytes of memory. Contract: `read_cells` reads the file once, and the
file only grows. The last record of a cell counts. Cells are in the order of their first records.
"""

import os
import re
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import Enum
from functools import cached_property
from pathlib import Path
from sys import intern
from typing import NamedTuple, NotRequired

from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict

from permix.sanitize import escape_control, redact_secrets, truncate
from permix.storage.files import bad_line_error, jsonl_lines, open_regular
from permix.types import Cell, CellKey, Completion, Failure, Message


class CellSummary(NamedTuple):
    """The part of a cell that is kept in memory. `reward` is None without a score, `completion_tokens` None if it is unknown.

    `cut_off` as `Completion.is_cut_off`, `thinking_unclosed` as `Completion.is_thinking_unclosed`.

    Two cells with the same messages have the same `messages_hash`, within this process only. `offset` and `length` give the
    cell's place in the file, in bytes.
    """

    reward: float | None
    has_completion: bool
    completion_tokens: int | None
    messages_hash: int
    offset: int = 0
    length: int = 0
    cut_off: bool | None = None
    thinking_unclosed: bool = False


class _VerdictLine(TypedDict):
    correct: bool | None
    error: NotRequired[str | None]


class _CompletionLine(TypedDict):
    text: str
    completion_tokens: int | None
    finish: NotRequired[str | None]
    reasoning: NotRequired[str | None]


class _FailureLine(TypedDict):
    type: str
    message: str


class CellLine(TypedDict):
    """The fields of a `types.Cell` that are read from every line. A field that may be missing has its default in `types.Cell`."""

    persona_id: str | None
    question_id: str
    sample: NotRequired[int]
    template: NotRequired[str]
    seed: int
    messages: tuple[Message, ...]
    gold: NotRequired[str | None]
    completion: NotRequired[_CompletionLine | None]
    verdict: NotRequired[_VerdictLine | None]
    failure: NotRequired[_FailureLine | None]


_CELL_RECORD = "a cell record"

_CELL_LINE_ADAPTER = TypeAdapter(CellLine)

parse_cell_line = _CELL_LINE_ADAPTER.validate_json
"""(line) -> `CellLine`. Raises ValidationError. Several times faster than making a `Cell`."""


def cell_line_key(cell: CellLine) -> CellKey:
    """The key of the cell that a line records."""
    persona = cell["persona_id"]
    # Interning keeps one copy of an id in memory instead of one for each of a million cells.
    return CellKey(
        None if persona is None else intern(persona),
        intern(cell["question_id"]),
        cell.get("sample", 0),
        intern(cell.get("template", "")),
    )


class CellIndex(Mapping[CellKey, Cell]):
    """The cells of a file, by key. Accessing a cell parses it and keeps it; raises DataError if its line is not a valid cell."""

    def __init__(self, path: Path, summaries: dict[CellKey, CellSummary]) -> None:
        self.path, self.summaries = path, summaries
        self._parsed: dict[CellKey, Cell] = {}

    def __getitem__(self, key: CellKey) -> Cell:
        if key not in self._parsed:
            self._parsed[key] = self.parse_uncached(key)
        return self._parsed[key]

    def parse_uncached(self, key: CellKey) -> Cell:
        """The cell, without keeping it in memory: for callers that read every cell once."""
        summary = self.summaries[key]
        return self._parse(os.pread(self._descriptor, summary.length, summary.offset), summary)

    @cached_property
    def _descriptor(self) -> int:
        file = open_regular(self.path)
        weakref.finalize(self, file.close)
        return file.fileno()

    def __contains__(self, key: object) -> bool:
        return key in self.summaries  # Mapping.__contains__ would parse the cell

    def __iter__(self) -> Iterator[CellKey]:
        return iter(self.summaries)

    def __len__(self) -> int:
        return len(self.summaries)

    def _parse(self, line: bytes, summary: CellSummary) -> Cell:
        try:
            return Cell.model_validate_json(line)
        except ValidationError as error:
            with open_regular(self.path) as lines:
                number = lines.read(summary.offset).count(b"\n") + 1
            raise bad_line_error(self.path, number, _CELL_RECORD, error) from error


def read_cells(path: Path) -> CellIndex:
    """The cells of a records.jsonl; a missing file has no cells. Raises DataError naming the first line that is not a cell."""
    summaries: dict[CellKey, CellSummary] = {}
    offset = 0
    for number, line in jsonl_lines(path):
        try:
            cell = parse_cell_line(line)
        except ValidationError as error:
            raise bad_line_error(path, number, _CELL_RECORD, error) from error
        summaries[cell_line_key(cell)] = _summarize(cell, offset, len(line))
        offset += len(line)
    return CellIndex(path, summaries)


def cell_summaries(cells: Mapping[CellKey, Cell]) -> Mapping[CellKey, CellSummary]:
    """The summary of every cell, for a `CellIndex` or for cells that are whole in memory."""
    if isinstance(cells, CellIndex):
        return cells.summaries
    return {
        key: CellSummary(
            None if cell.verdict is None else cell.verdict.reward,
            cell.completion is not None,
            None if cell.completion is None else cell.completion.completion_tokens,
            _hash_messages(cell.messages),
            cut_off=None if cell.completion is None else cell.completion.is_cut_off,
            thinking_unclosed=cell.completion is not None and cell.completion.is_thinking_unclosed,
        )
        for key, cell in cells.items()
    }


def _summarize(cell: CellLine, offset: int, length: int) -> CellSummary:
    verdict, completion = cell.get("verdict"), cell.get("completion")
    correct = None if verdict is None else verdict["correct"]
    reply = None if completion is None else Completion.model_construct(**({"finish": None, "reasoning": None} | completion))
    return CellSummary(
        None if correct is None else float(correct),
        completion is not None,
        None if completion is None else completion["completion_tokens"],
        _hash_messages(cell["messages"]), offset, length,
        None if reply is None else reply.is_cut_off, reply is not None and reply.is_thinking_unclosed,
    )  # fmt: skip


def _hash_messages(messages: tuple[Message, ...]) -> int:
    return hash(tuple((message["role"], message["content"]) for message in messages))


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
    """The options that a cure names, for the model that failed: its section, and the limit of its completions."""

    section: str = "model"
    max_new_tokens: str = "sampling.max_new_tokens"


MODEL_OPTIONS = OptionNames()

JUDGE_OPTIONS = OptionNames("judge", "judge.max_new_tokens")


def count_failures(failures: Iterable[Failure], options: OptionNames = MODEL_OPTIONS) -> list[FailureReason]:
    """The reasons of failures, the most frequent first. Reasons that differ only in their numbers are counted together."""
    examples: dict[str, Failure] = {}
    counts = Counter[str]()
    for failure in failures:
        kind = re.sub(r"\d+", "0", _failure_text(failure))
        examples.setdefault(kind, failure)
        counts[kind] += 1
    return [
        FailureReason(count, _shorten(_failure_text(examples[kind])), find_cure(examples[kind], options))
        for kind, count in counts.most_common()
    ]


def explain_missing(
    failures: Iterable[Failure],
    again: str = "run the same command again to fill them",
    *,
    stop_reason: str = "",
    options: OptionNames = MODEL_OPTIONS,
) -> str:
    """The end of an error about missing results: whether to run again, the most frequent reasons with counts, and what helps.

    `again`: what to do where a further start can help. `stop_reason`: why this start asked for no more.
    """
    found = list(failures)
    stopped = f"; {stop_reason}" if stop_reason else ""
    if not found:
        return f"{stopped}; {again}"
    counted = count_failures(found, options)
    reasons = describe_reasons(counted)
    refused = "the endpoint refuses these requests, or a content filter stops the replies"
    permanent = sum(map(is_permanent, found))
    if permanent == len(found) and not stop_reason:
        return f"; running the same command again does not help, since {refused}: {reasons}{describe_cures(counted)}"
    useless = f"; it does not help with {permanent} of them, since {refused}" if permanent else ""
    return f"{stopped}; {again} ({reasons}{useless}){describe_cures(counted)}"


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
    return failure.type in ("FilteredReplyError", "ReplyTooLargeError", "UnicodeEncodeError") or (
        _REFUSED_FOR_GOOD.search(failure.message) is not None
    )


_REFUSED_FOR_GOOD = re.compile(
    r"^HTTP (?:413|414|415|422|431):|content.?(?:filter|policy|management)|prohibited|flagged|not supported|unsupported"
    r"|too long|context.?(?:length|window)|maximum.{1,40}tokens",
    re.IGNORECASE,
)


class FailureCause(Enum):
    """A cause of failures that is known by its words, in the order of looking: pattern and cure.

    The pattern is searched in the message of an HTTP error, or in "TYPE: MESSAGE" of another one. A cure names options.
    """

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
        return re.search(self.value[0], _failure_text(failure), re.IGNORECASE | re.DOTALL) is not None

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
