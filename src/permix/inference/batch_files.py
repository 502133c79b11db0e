"""Batch files in OpenAI's form: requests as lines of JSON Lines files, and the results that an engine or a provider wrote.

    {"custom_id": ID, "method": "POST", "url": "/v1/chat/completions", "body": {...}}            a request
    {"custom_id": ID, "response": {"status_code": 200, "body": {...}}, "error": null, ...}       its result

`vllm run-batch`, hosted batch APIs and Ray Data read and write such lines. The id is a digest of the request as the configuration
asks for it: of the body before anything that a host refuses is left out of it. So a result belongs to its request whatever the
order, the file or the start that wrote it, and whatever was left out; a result of other messages, another seed or another
sampling has another id and is not taken.

Contract: `RequestFiles` writes a folder of request files and the manifest `batch.json`, which comes last. It replaces request
files that it wrote for the same run, and refuses a folder with anything else in it. `ResultIndex` reads files of results: it
keeps the place of each line, not its content. A damaged line is named and passed over. The files of results are not trusted.
"""

import contextlib
import hashlib
import json
import os
import re
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from pydantic import ValidationError

from permix.errors import ConfigError, DataError
from permix.inference.http_client import status_failure_type
from permix.inference.request_body import (
    SCHEMA_REFUSAL_STATUSES,
    FilteredReplyError,
    MalformedReplyError,
    parse_chat_completion,
    refusal_text,
    refused_field,
    usage_count,
)
from permix.sanitize import escape_control, redact_secrets, truncate
from permix.storage.files import MAX_LINE_BYTES, PARSE_ERRORS, guard_writes, open_regular, read_json, write_json
from permix.types import Completion, Failure, Record, digest

BATCH_URL = "/v1/chat/completions"

MANIFEST_FILE = "batch.json"

MAX_FILE_REQUESTS, MAX_FILE_BYTES = 50_000, 100_000_000
"""Limits of one file of requests that hosted batch APIs have in common (OpenAI takes 200 MB, Together 100 MB)."""

MAX_REQUEST_FILES = 9999

MAX_ERROR_WORDS = 500

_ID = re.compile(r"permix-[0-9a-f]{32}")

_REQUEST_FILE = re.compile(r"requests-\d{4,}\.jsonl")

_SCRATCH_FILE = re.compile(r"\.(requests(-\d{4,}\.jsonl)?|batch\.json)\.part")

_SPOOL = ".requests.part"


class BatchRequest(NamedTuple):
    """A request as a line with its newline, and its id. Field names: `BatchRequestInput` of vLLM, `custom_id` of OpenAI."""

    custom_id: str
    line: bytes


def build_batch_request(body: Mapping[str, Any]) -> BatchRequest:
    """The line of one request. Raises UnicodeEncodeError for a lone surrogate in the body, which no engine takes."""
    text = json.dumps(body, sort_keys=True)
    if "\\ud" in text:  # perhaps half of a pair
        json.dumps(body, ensure_ascii=False).encode()
    custom_id = batch_request_id(text)
    return BatchRequest(custom_id, _request_line(custom_id, text))


def batch_request_id(body_text: str) -> str:
    """The id of the request whose body is this text: JSON with sorted keys, in ASCII."""
    return f"permix-{digest(body_text, length=32)}"


def _request_line(custom_id: str, body_text: str) -> bytes:
    return f'{{"custom_id": "{custom_id}", "method": "POST", "url": "{BATCH_URL}", "body": {body_text}}}\n'.encode()


BodyChange = Callable[[dict[str, Any]], dict[str, Any]]
"""(the body of a request as the configuration asks for it) -> the body that is sent."""


def _changed_lines(spool: IO[bytes], change: BodyChange | None) -> Iterator[bytes]:
    for line in iter(spool.readline, b""):
        if change is None:
            yield line
        else:
            request = json.loads(line)
            yield _request_line(request["custom_id"], json.dumps(change(request["body"]), sort_keys=True))


class RequestFile(Record):
    """One file of requests: its name in the folder, counts, and the SHA-256 of its content."""

    name: str
    requests: int
    bytes: int
    sha256: str


class BatchManifest(Record):
    """The content of batch.json: the run and the model that the requests are of, the files, and the command that reads back.

    `max_new_tokens`: the most new tokens of all requests together. `prompt_characters`: of all their messages.
    """

    format: int = 1
    stage: str
    run: str
    model: str
    sampling: dict[str, float | int]
    requests: int
    prompt_characters: int
    max_new_tokens: int
    files: tuple[RequestFile, ...]
    read_back: str

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files)


class RequestFiles:
    """Writes the requests of one start into a folder. Lines are kept in a scratch file until `commit` splits them.

    `shards`: the number of files; None for as few as the limits of hosted APIs allow. Consecutive requests stay together, so that
    those of one persona, which share a prefix, are in one file but for the persona at a border.
    """

    def __init__(self, folder: Path, *, stage: str, run: Path, shards: int | None = None) -> None:
        """Raises ConfigError if the folder holds other files than request files of this run, or is no folder."""
        self.folder, self.stage, self.run, self.shards = folder, stage, str(run), shards
        self.n_requests = 0
        self._spool: IO[bytes] | None = None
        self._check_folder()

    def add(self, line: bytes) -> None:
        with guard_writes(self.folder):
            if self._spool is None:
                self.folder.mkdir(parents=True, exist_ok=True)
                self._spool = _create(self.folder / _SPOOL)
            self._spool.write(line)
        self.n_requests += 1

    def commit(self, change: BodyChange | None = None, **about: Any) -> tuple[BatchManifest, bool]:
        """Split the lines into files and write the manifest. `about`: its fields but for those that this object knows.

        change: what is left out of the bodies or renamed. It comes last, since what the host refuses may be learnt after a line
        was added. Returns the manifest, and whether the folder held the same requests before. There must be a line.
        """
        assert self._spool is not None, "no request was added"
        before = _read_manifest(self.folder / MANIFEST_FILE)
        with guard_writes(self.folder):
            self._spool.flush()
            self._spool.seek(0)
            files = tuple(self._split(_changed_lines(self._spool, change)))
            # From here on, until the manifest is there, the folder holds request files alone: the next start replaces them.
            (self.folder / MANIFEST_FILE).unlink(missing_ok=True)
            names = {file.name for file in files}
            for old in self.folder.iterdir():
                if _REQUEST_FILE.fullmatch(old.name) and old.name not in names:
                    old.unlink()
            for file in files:
                os.replace(self.folder / f".{file.name}.part", self.folder / file.name)
        self.discard()
        manifest = BatchManifest(stage=self.stage, run=self.run, requests=self.n_requests, files=files, **about)
        write_json(self.folder / MANIFEST_FILE, manifest)
        return manifest, before is not None and before.files == files

    def discard(self) -> None:
        """Delete the scratch files. What an earlier start wrote stays."""
        if self._spool is None:
            return
        self._spool.close()
        self._spool = None
        with contextlib.suppress(OSError):
            for path in self.folder.iterdir():
                if _SCRATCH_FILE.fullmatch(path.name):
                    path.unlink()

    def _split(self, lines: Iterator[bytes]) -> Iterator[RequestFile]:
        n_files = None if self.shards is None else min(self.shards, self.n_requests)
        line, done, number = next(lines, b""), 0, 0
        while line:
            name = f"requests-{number:04}.jsonl"
            last = done + MAX_FILE_REQUESTS if n_files is None else self.n_requests * (number + 1) // n_files
            n, size, sha = 0, 0, hashlib.sha256()
            with _create(self.folder / f".{name}.part") as file:
                while line and done < last and (n_files is not None or not n or size + len(line) <= MAX_FILE_BYTES):
                    file.write(line)
                    sha.update(line)
                    n, size, done, line = n + 1, size + len(line), done + 1, next(lines, b"")
            yield RequestFile(name=name, requests=n, bytes=size, sha256=sha.hexdigest())
            number += 1

    def _check_folder(self) -> None:
        folder = self.folder
        if not folder.exists() and not folder.is_symlink():
            return
        if not folder.is_dir():
            raise ConfigError(f"--batch-out {folder}: is not a folder; give a new folder")
        names = sorted(path.name for path in folder.iterdir())
        ours = (_REQUEST_FILE, _SCRATCH_FILE, re.compile(re.escape(MANIFEST_FILE)))
        foreign = [name for name in names if not any(pattern.fullmatch(name) for pattern in ours)]
        if foreign:
            read_first = "; if they are results, read them with --batch-in" if MANIFEST_FILE in names else ""
            raise ConfigError(
                f"--batch-out {folder}: holds other files, such as {truncate(escape_control(foreign[0]), 80)}{read_first}; "
                "give a new folder"
            )
        manifest = _read_manifest(folder / MANIFEST_FILE)
        if manifest is not None and (manifest.stage, os.path.abspath(manifest.run)) != (self.stage, os.path.abspath(self.run)):
            raise ConfigError(
                f"--batch-out {folder}: holds the requests of permix {escape_control(manifest.stage)} for "
                f"{escape_control(manifest.run)}, not for {self.run}; give another folder"
            )
        if manifest is None and (odd := next((name for name in names if not _holds_our_requests(folder / name)), None)):
            raise ConfigError(f"--batch-out {folder}: {odd} was not written by permix; give a new folder")


def _create(path: Path) -> IO[bytes]:
    """A new file in place of a scratch file that a killed start left; never written through a link."""
    path.unlink(missing_ok=True)
    return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666), "w+b")


def _read_manifest(path: Path) -> BatchManifest | None:
    """The manifest; None without one. Raises ConfigError for a file that is not a manifest."""
    if not path.exists():
        return None
    try:
        return BatchManifest.model_validate(read_json(path))
    except (DataError, ValidationError):
        raise ConfigError(f"--batch-out {path.parent}: {MANIFEST_FILE} was not written by permix; give a new folder") from None


def _holds_our_requests(path: Path) -> bool:
    """Whether a file of a folder without a manifest is what an interrupted start left."""
    if _SCRATCH_FILE.fullmatch(path.name):
        return True
    try:
        with open_regular(path) as file:
            return _ID.match(file.read(100).partition(b'"custom_id": "')[2].decode("ascii", "replace")) is not None
    except DataError:
        return False


class DamagedLine(NamedTuple):
    """A line that is no result: where it is, and why."""

    path: Path
    number: int
    reason: str

    def __str__(self) -> str:
        return f"{self.path}:{self.number}: {self.reason}"


MAX_NAMED_LINES = 3

_BEGINS_ARRAY = re.compile(rb"(?:\xef\xbb\xbf)?\s*\[\s*(?:\{|$)")

_ARRAY_REASON = "the file is one JSON array; results are one object a line, which jq -c '.[]' FILE > FILE.jsonl makes of it"

MAX_OPEN_RESULT_FILES = 64

_LENGTH_BITS, _OFFSET_BITS = 24, 48
assert MAX_LINE_BYTES < 1 << _LENGTH_BITS


class ResultIndex:
    """The places of all results in the files of a folder, by id. Reading keeps about 200 bytes a line.

    `n_results` counts lines with a result, `n_foreign` those whose id permix has not made, `n_damaged` lines that are neither
    results nor requests (`damaged` names the first), `n_requests` lines with a request.
    """

    def __init__(self, source: Path) -> None:
        """Read the files *.jsonl and *.json of a folder, or one file. Raises ConfigError if there is none, and DataError for a
        file that cannot be opened."""
        self.paths = _result_paths(source)
        self.n_results = self.n_foreign = self.n_damaged = self.n_requests = 0
        self.damaged: list[DamagedLine] = []
        self._places: dict[bytes, int] = {}
        self._given: dict[bytes, int] = {}
        self._repeated: dict[bytes, list[int]] = {}
        self._open_files = OrderedDict[int, IO[bytes]]()
        for number, path in enumerate(self.paths):
            self._scan(number, path)

    @property
    def n_left(self) -> int:
        """How many ids nobody has taken yet."""
        return len(self._places)

    def take(self, custom_id: str) -> list[dict[str, Any]]:
        """The results with this id in the order of the files, [] without one. Not given again after `forget_given`."""
        key = packed_id(custom_id)
        if (place := self._places.pop(key, None)) is not None:
            self._given[key] = place
        elif (place := self._given.get(key)) is None:
            return []
        places = [place, *self._repeated.get(key, ())]
        return [result for one in places if (result := self._read(one, custom_id)) is not None]

    def forget_given(self) -> None:
        """Give the results that were taken no more: a failure that was recorded must not come back in the same start."""
        self._given.clear()

    def has(self, custom_id: str) -> bool:
        """Whether `take` would give results with this id."""
        key = packed_id(custom_id)
        return key in self._places or key in self._given

    def drop(self, custom_id: str) -> bool:
        """Take the results with this id without reading them; returns whether there were any."""
        return self._places.pop(packed_id(custom_id), None) is not None

    def close(self) -> None:
        while self._open_files:
            self._open_files.popitem()[1].close()

    def _scan(self, file_number: int, path: Path) -> None:
        with open_regular(path) as file:
            offset = 0
            for number, line, length in _bounded_lines(file):
                if not offset and line is not None and _BEGINS_ARRAY.match(line):
                    return self._note_damage(path, number, _ARRAY_REASON)
                self._add(file_number, path, number, line, offset)
                offset += length
        return None

    def _add(self, file_number: int, path: Path, number: int, line: bytes | None, offset: int) -> None:
        if line is None:
            return self._note_damage(path, number, f"longer than {MAX_LINE_BYTES // 1_000_000} MB")
        if not line.strip():
            return None
        try:
            custom_id, is_result = _parse_line(line)
        except PARSE_ERRORS as error:
            cut = "" if line.endswith(b"\n") else ", and the file ends there: the line was cut off"
            return self._note_damage(path, number, f"{_reason(error)}{cut}")
        if not is_result:
            self.n_requests += 1
            return None
        self.n_results += 1
        if not _ID.fullmatch(custom_id):
            self.n_foreign += 1
            return None
        key, place = packed_id(custom_id), (file_number << _OFFSET_BITS | offset) << _LENGTH_BITS | len(line)
        if self._places.setdefault(key, place) != place:
            self._repeated.setdefault(key, []).append(place)
        return None

    def _note_damage(self, path: Path, number: int, reason: str) -> None:
        self.n_damaged += 1
        if len(self.damaged) < MAX_NAMED_LINES:
            self.damaged.append(DamagedLine(path, number, reason))

    def _read(self, place: int, custom_id: str) -> dict[str, Any] | None:
        length, start = place & ((1 << _LENGTH_BITS) - 1), place >> _LENGTH_BITS
        file_number, offset = start >> _OFFSET_BITS, start & ((1 << _OFFSET_BITS) - 1)
        try:
            line = os.pread(self._descriptor(file_number), length, offset)
            result = json.loads(_without_mark(line))
            if result["custom_id"] == custom_id:
                return dict(result)
        except (DataError, FileNotFoundError, *PARSE_ERRORS):
            pass
        self._note_damage(self.paths[file_number], 0, "was changed while it was read")
        return None

    def _descriptor(self, file_number: int) -> int:
        file = self._open_files.pop(file_number, None)
        if file is None:
            if len(self._open_files) >= MAX_OPEN_RESULT_FILES:
                self._open_files.popitem(last=False)[1].close()
            file = open_regular(self.paths[file_number])
        self._open_files[file_number] = file
        return file.fileno()


_NO_RESULTS_YET = "it holds requests, which an engine has to answer first"


def _result_paths(source: Path) -> list[Path]:
    """The files to read, sorted by name: all but the manifest, request files, and files that begin with a request."""
    if not source.exists():
        raise ConfigError(f"--batch-in {source}: no such folder; give the folder with the files of results")
    if not source.is_dir():
        if source.name == MANIFEST_FILE or _begins_with_request(source):
            raise ConfigError(f"--batch-in {source}: {_NO_RESULTS_YET}; give the file of results, or the folder that holds it")
        return [source]
    paths = sorted(
        path
        for path in source.iterdir()
        if path.suffix in (".jsonl", ".json") and path.name != MANIFEST_FILE and not path.is_dir()
    )
    packed = sorted(path.name for path in source.iterdir() if path.name.endswith((".jsonl.gz", ".json.gz", ".jsonl.zst")))
    if packed:
        raise ConfigError(f"--batch-in {source}: {escape_control(packed[0])} is packed; unpack it first (gunzip, unzstd)")
    found = [path for path in paths if not _begins_with_request(path)]
    if not found:
        hint = f"; {_NO_RESULTS_YET}" if paths else ""
        raise ConfigError(f"--batch-in {source}: holds no file of results (*.jsonl or *.json){hint}")
    return found


def _begins_with_request(path: Path) -> bool:
    with open_regular(path) as file:
        line = file.readline(MAX_LINE_BYTES)
    with contextlib.suppress(*PARSE_ERRORS):
        return not _parse_line(line)[1]
    return False


def _parse_line(line: bytes) -> tuple[str, bool]:
    """(id, whether the line is a result and not a request). Raises one of `PARSE_ERRORS` for a line that is neither."""
    values = json.loads(_without_mark(line))
    if not isinstance(values, dict):
        raise ValueError(f"contains {type(values).__name__}, not an object")
    custom_id = values.get("custom_id")
    if not isinstance(custom_id, str):
        raise ValueError("has no custom_id")
    is_result = "response" in values or "error" in values
    if not is_result and "body" not in values:
        raise ValueError("has neither a response nor an error")
    return custom_id, is_result


def _without_mark(line: bytes) -> str:
    return line.decode("utf-8").removeprefix("\ufeff")


def _reason(error: Exception) -> str:
    match error:
        case RecursionError():
            return "nested too deeply"
        case UnicodeDecodeError():
            return "not UTF-8"
        case json.JSONDecodeError():
            return f"not JSON: {error.msg}"
    return truncate(escape_control(str(error)), 100)


def packed_id(custom_id: str) -> bytes:
    """The id in 16 bytes: a million of them are kept in memory."""
    return bytes.fromhex(custom_id.removeprefix("permix-"))


def _bounded_lines(file: IO[bytes]) -> Iterator[tuple[int, bytes | None, int]]:
    """(number from 1, line with its newline, its length); None for a line longer than `MAX_LINE_BYTES`, which is not kept."""
    for number, line in enumerate(iter(lambda: file.readline(MAX_LINE_BYTES), b""), start=1):
        if len(line) < MAX_LINE_BYTES or line.endswith(b"\n"):
            yield number, line, len(line)
            continue
        length = len(line)
        while not line.endswith(b"\n") and (line := file.readline(MAX_LINE_BYTES)):
            length += len(line)
        yield number, None, length


class BatchResult(NamedTuple):
    """What one line says: a completion or a failure; of a refused request also the refusal, and the field that it names."""

    result: Completion | Failure
    refusal: str = ""
    refused_field: str | None = None


def read_batch_result(line: Mapping[str, Any]) -> BatchResult:
    """The completion in a result, read as a reply over HTTP is, or the failure. Accepts lines of OpenAI, vLLM and others.

    OpenAI puts the error of a request into `response.body`, vLLM into `error`, with the status in `response` in both.
    """
    response, error = line.get("response"), line.get("error")
    response = response if isinstance(response, dict) else {}
    body = response if "choices" in response else response.get("body")
    status = response.get("status_code", 200 if response else None)
    status = status if isinstance(status, int) and not isinstance(status, bool) else None
    if error or status is None or not 200 <= status < 300:
        about = error if body is None else body
        refusal = escape_control(redact_secrets(refusal_text(about)))
        if status is not None and not 200 <= status < 300:
            field = refused_field(about.get("error", about) if isinstance(about, dict) else about)
            return BatchResult(
                _failure(status_failure_type(status), f"HTTP {status}: {refusal}"),
                refusal if status in SCHEMA_REFUSAL_STATUSES else "",
                field,
            )
        code = about.get("code") if isinstance(about, dict) else None
        words = f"{code}: {refusal}" if isinstance(code, str) else refusal if about else "neither a response nor an error"
        return BatchResult(_failure("BatchError", words))
    try:
        return BatchResult(parse_chat_completion(json.dumps(body).encode()))
    except (MalformedReplyError, FilteredReplyError, RecursionError) as problem:
        usage = body.get("usage") if isinstance(body, dict) else None
        tokens = {name: usage_count(usage, name) or 0 for name in ("prompt_tokens", "completion_tokens")}
        return BatchResult(_failure(type(problem).__name__, str(problem), **tokens))


def _failure(name: str, words: str, **tokens: int) -> Failure:
    return Failure(type=name, message=truncate(escape_control(redact_secrets(words)), MAX_ERROR_WORDS), **tokens)


def size_text(n_bytes: int) -> str:
    """A number of bytes for people: "812 kB", "1.3 GB"."""
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if n_bytes >= size:
            return f"{n_bytes / size:.1f} {unit}"
    return f"{n_bytes / 1000:.0f} kB"


def file_names_text(files: Sequence[RequestFile]) -> str:
    """The names of request files, the first and the last of several."""
    return files[0].name if len(files) == 1 else f"{files[0].name} to {files[-1].name}"
