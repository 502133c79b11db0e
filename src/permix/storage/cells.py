"""Read the cells of a run: a summary of each cell is kept in memory, and the whole cell is parsed on first access.

A run may have a million cells, which would take many gigabytes of memory. Contract: each file is read once, and it only grows.
The last record of a cell in a file counts. Cells are in the order of their first records.

A run that several workers wrote has several files of records, which `read_run_cells` merges by cell. If two files have the same
cell, a record with a score counts before one with a completion alone, and that before a failure; of two equal ones the one whose
line has the smaller SHA-256, whatever the names and the order of the files.
"""

import hashlib
import os
import re
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import Enum
from pathlib import Path
from sys import intern
from typing import IO, NamedTuple, NotRequired

from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict

from permix.errors import DataError
from permix.sanitize import escape_control, redact_secrets, truncate
from permix.storage.files import bad_line_error, jsonl_lines, open_regular
from permix.storage.workers import worker_files
from permix.types import Cell, CellKey, Failure, Message, is_cut_off, is_thinking_unclosed


class CellSummary(NamedTuple):
    """The part of a cell that is kept in memory. `reward` is None without a score, `completion_tokens` None if it is unknown.

    `cut_off` as `Completion.is_cut_off`, `thinking_unclosed` as `Completion.is_thinking_unclosed`.

    Two cells with the same messages have the same `messages_hash`, within this process only. `offset` and `length` give the
    cell's place in its file, in bytes; `file` is the file's place in `CellIndex.paths`.
    """

    reward: float | None
    has_completion: bool
    completion_tokens: int | None
    messages_hash: int
    offset: int = 0
    length: int = 0
    cut_off: bool | None = None
    thinking_unclosed: bool = False
    file: int = 0


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
    context: NotRequired[str]
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
        intern(cell.get("context", "")),
    )


class CellIndex(Mapping[CellKey, Cell]):
    """The cells of files, by key. Accessing a cell parses it and keeps it; raises DataError if its line is not a valid cell.

    `n_chosen`: the number of cells that several files answer differently, so that one answer of each was chosen.
    """

    def __init__(self, paths: Sequence[Path], summaries: dict[CellKey, CellSummary]) -> None:
        self.paths, self.summaries, self.n_chosen = tuple(paths), summaries, 0
        self._parsed: dict[CellKey, Cell] = {}
        self._open_files: dict[int, IO[bytes]] = {}

    def __getitem__(self, key: CellKey) -> Cell:
        if key not in self._parsed:
            self._parsed[key] = self.parse_uncached(key)
        return self._parsed[key]

    def parse_uncached(self, key: CellKey) -> Cell:
        """The cell, without keeping it in memory: for callers that read every cell once."""
        summary = self.summaries[key]
        return self._parse(self.read_line(summary), summary)

    def read_line(self, summary: CellSummary) -> bytes:
        """The line of a cell, as it is in its file."""
        if summary.file not in self._open_files:
            file = self._open_files[summary.file] = open_regular(self.paths[summary.file])
            weakref.finalize(self, file.close)
        return os.pread(self._open_files[summary.file].fileno(), summary.length, summary.offset)

    def has_completion(self, key: CellKey) -> bool:
        """Whether the cell is recorded with a completion; reads nothing."""
        summary = self.summaries.get(key)
        return summary is not None and summary.has_completion

    @property
    def n_completions(self) -> int:
        """Number of recorded cells with a completion."""
        return sum(one.has_completion for one in self.summaries.values())

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
            path = self.paths[summary.file]
            with open_regular(path) as lines:
                number = lines.read(summary.offset).count(b"\n") + 1
            raise bad_line_error(path, number, _CELL_RECORD, error) from error


RECORDS_FILE = "records.jsonl"


def record_files(run: Path) -> list[Path]:
    """The files of records of a run: records.jsonl, whether it is there or not, and one of each worker that had a shard."""
    return worker_files(run / RECORDS_FILE)


def has_records(run: Path) -> bool:
    """Whether the run has a file of records."""
    return any(path.exists() for path in record_files(run))


def read_cells(path: Path) -> CellIndex:
    """The cells of one file of records, none if it is missing. Raises DataError naming the first line that is not a cell."""
    return CellIndex([path], _read_summaries(path, 0))


def read_run_cells(run: Path) -> CellIndex:
    """The cells of a run, merged from its files of records by the rule of this module; no cells without a file.

    Raises DataError naming the first line that is not a cell, or two files that asked a cell with different messages.
    """
    paths = record_files(run)
    index = CellIndex(paths, _read_summaries(paths[0], 0))
    chosen: set[CellKey] = set()
    for number, path in enumerate(paths[1:], start=1):
        found = _read_summaries(path, number)
        if not index.summaries:
            index.summaries = found
            continue
        for key, summary in found.items():
            known = index.summaries.setdefault(key, summary)
            if known is not summary:
                index.summaries[key] = _better(index, key, known, summary, chosen)
    index.n_chosen = len(chosen)
    return index


def _better(index: CellIndex, key: CellKey, one: CellSummary, other: CellSummary, chosen: set[CellKey]) -> CellSummary:
    """The record that counts of two files' records of a cell; adds the cell to `chosen` if their completions differ."""
    if one.messages_hash != other.messages_hash:
        raise DataError(
            f"{index.paths[other.file]}: asked cell {key} with other messages than {index.paths[one.file].name}; "
            "these are files of two runs, or of two conversations: keep one of them in the folder"
        )
    lines = {summary: index.read_line(summary) for summary in (one, other)}
    if one.has_completion and other.has_completion:
        first, second = (parse_cell_line(line).get("completion") for line in lines.values())
        if first != second:
            chosen.add(key)
    return min(lines, key=lambda summary: (*_rank(summary), hashlib.sha256(lines[summary]).digest()))


def _rank(summary: CellSummary) -> tuple[bool, bool]:
    return summary.reward is None, not summary.has_completion


def chosen_answers_note(cells: CellIndex) -> str | None:
    """One sentence on the cells that several workers answered differently; None without any."""
    if not cells.n_chosen:
        return None
    return (
        f"{cells.n_chosen} of {len(cells)} cells were answered by several workers, differently: one answer of each counts, "
        "a scored one before others and then by a hash of the record"
    )


def _read_summaries(path: Path, file: int) -> dict[CellKey, CellSummary]:
    summaries: dict[CellKey, CellSummary] = {}
    offset = 0
    for number, line in jsonl_lines(path):
        try:
            cell = parse_cell_line(line)
        except ValidationError as error:
            raise bad_line_error(path, number, _CELL_RECORD, error) from error
        summaries[cell_line_key(cell)] = _summarize(cell, offset, len(line), file)
        offset += len(line)
    return summaries


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


def _summarize(cell: CellLine, offset: int, length: int, file: int) -> CellSummary:
    verdict, completion = cell.get("verdict"), cell.get("completion")
    correct = None if verdict is None else verdict["correct"]
    is_unclosed, cut_off = False, None
    if completion is not None:  # a `Completion` for each of a million cells would take several times as long
        finish = completion.get("finish")
        is_unclosed = is_thinking_unclosed(completion["text"], finish, completion.get("reasoning"))
        cut_off = is_cut_off(finish, is_unclosed=is_unclosed)
    return CellSummary(
        None if correct is None else float(correct),
        completion is not None,
        None if completion is None else completion["completion_tokens"],
        _hash_messages(cell["messages"]), offset, length, cut_off, is_unclosed, file,
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
