"""A model whose answers come later: its requests are written to batch files, and its results are read from batch files.

`open_batch_model` is one start with --batch-in, --batch-out or both. `BatchModel` then takes the place of the model that the
configuration names, and the run works as with any other model: it asks for every pending request, records the answers that it
gets, and leaves the others pending. So a request whose answer is recorded is not written again, a start that was killed can be
repeated, and a run may use files at one start and an endpoint at the next. Some requests depend on earlier answers: the next
turn of an interview, the further cells of a persona search, a judge's second attempt. They become pending once those answers
have been read, so each round is one batch.

The id of a line tells what the configuration asks for, not what is sent, so it stays the same when a field is left out that the
host refuses, and samples that differ in their seed alone have lines of their own also where no seed is sent. Earlier versions
took the body as it was sent: their results are found by the ids that it had (`_FormerIds`).
"""

import contextlib
import json
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel

from permix.config import BATCH_BACKEND, ModelConfig
from permix.errors import ConfigError, IncompleteRunError
from permix.inference.addresses import RecordedForm, ServerStatement
from permix.inference.base import CompletionResult, with_cut_off_thinking
from permix.inference.batch_files import (
    MANIFEST_FILE,
    MAX_FILE_BYTES,
    MAX_FILE_REQUESTS,
    MAX_REQUEST_FILES,
    BatchManifest,
    RequestFiles,
    ResultIndex,
    batch_request_id,
    build_batch_request,
    file_names_text,
    packed_id,
    read_batch_result,
    size_text,
)
from permix.inference.cost import CHARACTERS_PER_TOKEN, find_price
from permix.inference.openai_endpoint import endpoint_address, parse_url
from permix.inference.request_body import ChangeableField, RequestBody, sent_seed
from permix.progress import add_result, print_status
from permix.storage.failures import NextStart
from permix.types import Completion, Failure, Request, Sampling, digest

BATCH_ADDRESS = "batch files"
"""Recorded in place of an address for a model that is asked through batch files."""

BATCH_FIELDS: frozenset[ChangeableField] = frozenset({"max_tokens", "temperature", "top_p", "seed", "response_format"})
"""The fields of a line that are left out or renamed when a host refuses them."""

_FORMER_FIELDS: tuple[ChangeableField, ...] = ("max_tokens", "temperature", "top_p", "seed")
"""Those whose change gave a request another id in earlier versions."""


class BatchFlags(NamedTuple):
    """The flags of one start: the folder or file of results to read, the folder to write requests to, the number of its files.

    They are no settings of the run: neither config.json nor its identity contains them.
    """

    batch_in: Path | None = None
    batch_out: Path | None = None
    batch_files: int | None = None

    @classmethod
    def of(cls, batch_in: str | Path | None, batch_out: str | Path | None, batch_files: int | None) -> "BatchFlags":
        return cls(None if batch_in is None else Path(batch_in), None if batch_out is None else Path(batch_out), batch_files)

    @property
    def is_used(self) -> bool:
        return self.batch_in is not None or self.batch_out is not None

    def check(self) -> None:
        """Raise ConfigError for a number of files that is out of range, or for the same folder twice."""
        if self.batch_files is not None and self.batch_out is None:
            raise ConfigError(f"--batch-files {self.batch_files}: is the number of files of --batch-out, which is missing")
        if self.batch_files is not None and not 1 <= self.batch_files <= MAX_REQUEST_FILES:
            raise ConfigError(f"--batch-files {self.batch_files}: must be 1 to {MAX_REQUEST_FILES}")
        if self.is_used and self.batch_in == self.batch_out:
            raise ConfigError(f"--batch-out {self.batch_out}: is the folder of --batch-in too; give a new folder")


def use_batch_backend(section: Mapping[str, Any], flags: BatchFlags) -> dict[str, Any]:
    """The fields of a model's section in a start with these flags: without an address the backend is that of batch files."""
    if not flags.is_used or section.get("backend") or section.get("base_url"):
        return dict(section)
    return {**section, "backend": BATCH_BACKEND}


def check_answered_elsewhere(model: ModelConfig, section: str = "model") -> None:
    """Raise ConfigError for a model that only a process of this machine can answer for."""
    if model.capabilities.is_local:
        raise ConfigError(
            f'{section}.backend = "{model.backend}": batch files are answered elsewhere; leave {section}.backend out'
        )
    if model.name == "bundled":
        raise ConfigError(
            f'{section}.name = "bundled": batch files are answered elsewhere; give the name under which the engine or the '
            "provider serves the model, or a hub id"
        )


def check_no_shard(stage: BaseModel) -> None:
    """Raise ConfigError if a start with batch files is one of several workers: files are divided by --batch-files instead."""
    shard = getattr(stage, "shard", None)
    if shard is not None:
        raise ConfigError(
            f"shard = {shard}: batch files hold all pending requests; give --batch-files to divide them among files"
        )


class BatchCounts:
    """What one start did with batch files. `answered`: completions that were found for pending requests; `failed`: failures.

    `differing`: ids with two completions of different text, of which the first counts.
    """

    def __init__(self) -> None:
        self.answered = self.failed = self.recorded_before = self.differing = self.written = 0


class _FormerIds:
    """The ids that earlier versions gave a request after a host had refused one of these fields.

    Requests that differ in their seed alone had one line once no seed was sent. Its one answer counts for one request.
    """

    def __init__(self, config: ModelConfig, refused: Iterable[ChangeableField]) -> None:
        fields = [name for name in _FORMER_FIELDS if name in refused]
        self._bodies = []
        for n in range(1, len(fields) + 1):
            for some in combinations(fields, n):
                body = RequestBody(config.name, config.extra_fields)
                body.changes.update(dict.fromkeys(some, ""))
                self._bodies.append(body)
        self._owners: dict[bytes, bytes] = {}

    def own(self, standard: Mapping[str, Any], seed: int) -> Iterator[str]:
        """Ids of this request alone."""
        return (one for one, is_shared in self._find(standard, seed).items() if not is_shared)

    def shared(self, standard: Mapping[str, Any], seed: int, results: ResultIndex, owner: str) -> Iterator[str]:
        """Ids of requests that differ in their seed alone, whose results nobody but the request `owner` has taken."""
        for one, is_shared in self._find(standard, seed).items():
            key = packed_id(owner)
            if is_shared and results.has(one) and self._owners.setdefault(packed_id(one), key) == key:
                yield one

    def _find(self, standard: Mapping[str, Any], seed: int) -> dict[str, bool]:
        """All ids of the request, each with whether other requests have it."""
        sent = sent_seed(seed)
        bodies = [body for one in self._bodies if (body := one.rebuild(standard)) != standard]
        return {_request_id(body): body.get("seed") != sent for body in bodies}


def _request_id(body: Mapping[str, Any]) -> str:
    return batch_request_id(json.dumps(body, sort_keys=True))


class BatchModel:
    """Implements `Model`: yields the results that it finds in `results`, and writes the other requests to `requests`.

    `repeats_failed`: whether a failed item is asked again by the same request, so that it is written again as well.
    """

    default_system: str | None = None
    content_addressed = False
    changeable_fields = BATCH_FIELDS

    def __init__(
        self, config: ModelConfig, results: ResultIndex | None, requests: RequestFiles | None, *, repeats_failed: bool = True
    ) -> None:
        self.config, self.name = config, config.name
        self.results, self.requests = results, requests
        self.counts = BatchCounts()
        self.manifest: BatchManifest | None = None
        self._repeats_failed = repeats_failed
        self._body = RequestBody(config.name, config.extra_fields, BATCH_FIELDS)
        self._former = _FormerIds(config, ())
        self._refused: dict[ChangeableField, str] = {}  # in this start, with the words
        self._answered_fields: set[str] = set()  # of the requests that were answered in this start, and never refused
        self._left_out: set[ChangeableField] = set()  # of requests that were refused for the field and then answered
        self._passed_over: list[tuple[Callable[[], Iterable[Request]], Sampling]] = []
        self._written: set[bytes] = set()
        self._sampling = Sampling()
        self._n_characters = self._max_new_tokens = 0

    @property
    def fingerprint(self) -> str:
        """A digest of the model's name and the added fields of requests, as of an endpoint that says nothing of its weights."""
        return self.request_digest

    @property
    def request_digest(self) -> str:
        extra = self.config.extra_fields
        return digest("openai", self.name, *([json.dumps(extra, sort_keys=True)] if extra else []))

    def server_statements(self) -> dict[str, ServerStatement]:
        """Batch files are an address that says nothing of the weights: a run that goes on there or comes from there asks the user
        once whether they are the same (`permix.inference.addresses`)."""
        return {BATCH_ADDRESS: {}}

    def recorded_forms(self, base_url: str | None) -> Iterator[RecordedForm]:
        yield RecordedForm(self.fingerprint, self.fingerprint, {})

    @property
    def address(self) -> str:
        return f"{self.name} in {BATCH_ADDRESS}"

    @property
    def request_changes(self) -> dict[ChangeableField, str]:
        """The fields that a provider refused and that are left out or renamed, with its words (see `OpenAIModel`)."""
        return self._body.changes

    @property
    def other_addresses(self) -> tuple[str, ...]:
        """The endpoints that the configuration names: the files are for the same host, so what was refused there is refused
        in files too (`permix.inference.base.remember_request_changes`)."""
        addresses = []
        for url in self.config.base_urls:
            with contextlib.suppress(ConfigError):  # nothing is asked there
                addresses.append(endpoint_address(self.name, parse_url(url).geturl()))
        return tuple(addresses)

    @property
    def only_writes(self) -> bool:
        """Whether this start brings no result, so that there is nothing new to measure."""
        return self.results is None

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[CompletionResult]:
        """Yield a result for every request that has one in the files. Equal requests share one line and its result."""
        self._drop_passed_over()
        self._sampling = sampling
        for index, request in enumerate(requests):
            standard = self._standard_body(request, sampling)
            result = None if self.results is None else self._take(self.results, request, standard)
            if result is not None:
                yield CompletionResult(index, result)
            if self.requests is not None and (result is None or (isinstance(result, Failure) and self._repeats_failed)):
                yield from self._write(index, standard, request, sampling)
        if self.results is not None:
            self.results.forget_given()
        self._learn()

    def pass_over(self, requests: Callable[[], Iterable[Request]], sampling: Sampling) -> None:
        """Requests whose results are recorded already, so that their lines do not count as unknown."""
        if self.results is not None:
            self._passed_over.append((requests, sampling))

    def _drop_passed_over(self) -> None:
        """Drop the results of requests that were passed over. Not earlier: their former ids depend on what is known to be
        refused, which is read from the run's folder when the model is first asked."""
        if self._body.changes:
            self._former = _FormerIds(self.config, self._body.changes)
        passed_over, self._passed_over = self._passed_over, []
        for requests, sampling in passed_over:
            if self.results is None or not self.results.n_left:
                return
            for request in requests():
                standard = self._standard_body(request, sampling)
                custom_id = _request_id(standard)
                own = [custom_id, *self._former.own(standard, request.seed)]
                shared = self._former.shared(standard, request.seed, self.results, custom_id)
                self.counts.recorded_before += sum(self.results.drop(one) for one in (*own, *shared))

    def finish(self, read_back: str) -> None:
        """Print the counts of what was read, and write the request files. `read_back`: the command that reads their results."""
        if self.results is not None:
            self._drop_passed_over()
            self._show_counts(self.results)
            self.results.close()
        if self.requests is not None and self.requests.n_requests:
            change = self._body.rebuild if self._body.changes else None
            self.manifest, unchanged = self.requests.commit(
                change, model=self.name, sampling=self._sampling.model_dump(), prompt_characters=self._n_characters,
                max_new_tokens=self._max_new_tokens, read_back=read_back,
            )  # fmt: skip
            self.counts.written = self.manifest.requests
            same = ", as before" if unchanged else ""
            print_status(f"{self.requests.folder}: {self.manifest.requests} requests written{same}")
            self._warn_of_limits(self.manifest)

    def discard(self) -> None:
        if self.results is not None:
            self.results.close()
        if self.requests is not None:
            self.requests.discard()

    def _standard_body(self, request: Request, sampling: Sampling) -> dict[str, Any]:
        return self._body.build_standard(request.messages, request.seed, sampling, request.schema)

    def _take(self, results: ResultIndex, request: Request, standard: Mapping[str, Any]) -> Completion | Failure | None:
        """The first completion of the request; without one the last failure; None without a result."""
        custom_id = _request_id(standard)
        found = [
            read_batch_result(line)
            for one in (custom_id, *self._former.own(standard, request.seed))
            for line in results.take(one)
        ]
        if not any(isinstance(one.result, Completion) for one in found):
            shared = self._former.shared(standard, request.seed, results, custom_id)
            found += [read_batch_result(line) for one in shared for line in results.take(one)]
        sent = self._body.rebuild(standard)
        refusals = [one for one in found if one.refusal]
        for one in refusals:
            if (field := self._body.find_change(one.refusal, one.refused_field, sent)) is not None:
                self._refused.setdefault(field, one.refusal)
                if any(isinstance(other.result, Completion) for other in found):
                    self._left_out.add(field)
        completions = [one.result for one in found if isinstance(one.result, Completion)]
        if completions:
            self.counts.answered += 1
            self.counts.differing += any(one.text != completions[0].text for one in completions[1:])
            if not refusals:
                self._answered_fields.update(sent)
            return with_cut_off_thinking(completions[0], self.config.thinking)
        if not found:
            return None
        self.counts.failed += 1
        return found[-1].result

    def _write(self, index: int, standard: Mapping[str, Any], request: Request, sampling: Sampling) -> Iterator[CompletionResult]:
        """Write the line of a request, unless it is there already; yields a failure for a text that no engine takes."""
        assert self.requests is not None
        try:
            custom_id, line = build_batch_request(standard)
        except UnicodeEncodeError as error:
            yield CompletionResult(index, Failure(type="UnicodeEncodeError", message=str(error)))
            return
        if (key := packed_id(custom_id)) not in self._written:
            self._written.add(key)
            self.requests.add(line)
            self._n_characters += sum(len(message["content"]) for message in request.messages)
            self._max_new_tokens += sampling.max_new_tokens

    def _learn(self) -> None:
        """Take over which fields of the requests were refused, so that the next batch does without them: also the one that this
        start writes.

        A field that was sent with an answered request is not what the host refuses. The results do not say what was sent: a
        request that was refused for a field and then answered was answered without it, and others may have been so too.
        """
        for name, words in self._refused.items():
            is_accepted = name in self._answered_fields and name not in self._left_out
            if not is_accepted and name not in self._body.changes:
                self._body.keep_change(name, words)
                instead = "is sent as max_completion_tokens" if name == "max_tokens" else "is left out"
                print_status(f"note: {name} {instead} in the next batch, since it was refused: {self._body.changes[name]}")

    def _show_counts(self, results: ResultIndex) -> None:
        counts, unknown = self.counts, results.n_left + results.n_foreign
        files = "1 file" if len(results.paths) == 1 else f"{len(results.paths)} files"
        print_status(
            f"read {results.n_results} results in {files}: {counts.answered} recorded, "
            f"{counts.failed} failed, {counts.recorded_before} recorded before, {unknown} unknown"
        )
        if unknown:
            print_status(
                f"note: {unknown} results answer no request of this run as it is now (another run, other messages, sampling or "
                "seed); they were not taken"
            )
        if counts.differing:
            print_status(f"note: {counts.differing} requests have several answers that differ; the first of each counts")
        if results.n_damaged:
            more = f"; and {results.n_damaged - len(results.damaged)} more" if results.n_damaged > len(results.damaged) else ""
            named = "; ".join(map(str, results.damaged))
            print_status(f"warning: {results.n_damaged} damaged lines were passed over: {named}{more}")
        add_result(
            batch_in={
                "read": results.n_results, "recorded": counts.answered, "failed": counts.failed, "unknown": unknown,
                "recorded_before": counts.recorded_before, "differing": counts.differing, "damaged": results.n_damaged,
            }
        )  # fmt: skip

    def _warn_of_limits(self, manifest: BatchManifest) -> None:
        large = [file for file in manifest.files if file.requests > MAX_FILE_REQUESTS or file.bytes > MAX_FILE_BYTES]
        if large:
            print_status(
                f"note: {len(large)} files are above {MAX_FILE_REQUESTS} requests or {size_text(MAX_FILE_BYTES)}, which hosted "
                "batch APIs may refuse; without --batch-files the files keep to that"
            )


def is_only_writing(model: object) -> bool:
    """Whether a start with this model writes requests and brings no result, so that nothing is to be measured at its end."""
    return isinstance(model, BatchModel) and model.only_writes


def next_start(model: object, what: str = "fill them") -> NextStart:
    """What to do about what is pending, for the end of an error: `what` completes "run the same command again to ..."."""
    if isinstance(model, BatchModel):
        return NextStart(
            "give --batch-out with a new folder to write the next batch, or --batch-in with further results",
            "writing the same requests again with --batch-out",
            tuple(model.request_changes.values()),
        )
    return NextStart(f"run the same command again to {what}")


@contextlib.contextmanager
def open_batch_model(
    flags: BatchFlags, config: ModelConfig, *, stage: str, run: Path, read_back: str, repeats_failed: bool = True
) -> Iterator[BatchModel | None]:
    """One start with batch files; yields the model to ask, or None without any of the flags.

    Files are written when the block ends, also with IncompleteRunError, which the block's caller does not see if there were
    requests to write: then the start did what it was asked to do. Any other error leaves the folder as it was.
    Raises ConfigError or DataError for folders that cannot be used, before anything is asked.
    """
    flags.check()
    if not flags.is_used:
        yield None
        return
    check_answered_elsewhere(config, "judge" if stage == "judge" else "model")
    requests = None if flags.batch_out is None else RequestFiles(flags.batch_out, stage=stage, run=run, shards=flags.batch_files)
    results = None if flags.batch_in is None else ResultIndex(flags.batch_in)
    model = BatchModel(config, results, requests, repeats_failed=repeats_failed)
    try:
        yield model
    except IncompleteRunError as error:
        model.finish(read_back)
        if model.manifest is None:
            raise
        add_result(pending=error.pending)
    except BaseException:
        model.discard()
        raise
    else:
        model.finish(read_back)
        if requests is not None:
            print_status(f"{requests.folder}: nothing was written, since nothing is pending")


def describe_batch(manifest: BatchManifest, folder: Path, config: ModelConfig, price_option: str) -> dict[str, str]:
    """Facts about written requests: numbers, sizes, tokens, cost, and how they are answered and read back."""
    files, first = manifest.files, manifest.files[0].name
    results = first.replace("requests", "results")
    engine = shlex.join(["vllm", "run-batch", "-i", str(folder / first), "-o", str(folder / results), "--model", config.name])
    tokens = manifest.prompt_characters / CHARACTERS_PER_TOKEN
    price = find_price(config, price_option)
    facts = {
        "requests": f"{manifest.requests} in {len(files)} files, {size_text(manifest.bytes)}: {file_names_text(files)}",
        "prompt tokens": f"about {tokens:.0f} (estimate: {CHARACTERS_PER_TOKEN} characters a token)",
        "new tokens": f"at most {manifest.max_new_tokens}",
        "answer": f"{engine}{', and so for each file' if len(files) > 1 else ''}; or upload to a hosted batch API",
        "read back": manifest.read_back,
    }
    if price is not None:
        dollars = price.cost(tokens, manifest.max_new_tokens)
        facts["cost"] = f"about {dollars:.4f} US dollars at most, by {price_option}"
    add_result(
        batch_out={
            "folder": str(folder), "manifest": str(folder / MANIFEST_FILE), "requests": manifest.requests,
            "bytes": manifest.bytes, "files": [str(folder / file.name) for file in files],
        }
    )  # fmt: skip
    return facts


def pass_over_answered(model: object, requests: Callable[[], Iterable[Request]], sampling: Sampling) -> None:
    """Tell a model that reads batch files which requests are answered already; other models need not know."""
    if isinstance(model, BatchModel):
        model.pass_over(requests, sampling)
