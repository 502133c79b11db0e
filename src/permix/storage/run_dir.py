"""Write a run directory (`RunDir`) and read it (`RunReader`). Its main files:

    config.json        the resolved configuration
    provenance.json    format, versions, revision, command, and the identity: what all records of the run have in common
    grid.json          the personas and questions of the run, if its stage asks questions
    records.jsonl      one `Cell` a line, appended when the cell is finished
    log.jsonl          one line a training step
    usage.json         CPU and wall seconds, how many answers they took, and peak memory
    metrics.json       the stage's result

Several workers may write one run, each with a shard (`types.Shard`) and with its own records-2of4.jsonl, usage-2of4.json and
provenance-2of4.json; `permix.storage.workers` has the files and locks. Readers merge them.

Contract: `records.jsonl` survives a kill at any moment. An incomplete last line is deleted when the run is opened again. One
process at a time may write a run, or a shard of it.

A run directory may come from elsewhere. `RunReader` checks each JSON file: a damaged one raises a DataError that names the
file and the field.
"""

import contextlib
import importlib.metadata
import json
import os
import platform
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Protocol, Required, cast

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from permix import __version__
from permix.errors import ConfigError, DataError, PermixError
from permix.progress import print_status
from permix.sanitize import escape_control, redact_arguments, redact_secrets, truncate
from permix.storage.cells import RECORDS_FILE, CellIndex, conflicting_answers_note, read_run_cells, record_files
from permix.storage.files import JsonlWriter, LongRecordError, drop_torn_line, guard_writes, read_json, read_jsonl, write_json
from permix.storage.workers import lock_run, worker_file, worker_files
from permix.types import Cell, CellKey, Failure, Shard

PROVENANCE_PACKAGES = (
    "permix",
    "torch",
    "transformers",
    "trl",
    "accelerate",
    "peft",
    "datasets",
    "vllm",
    "numpy",
    "scipy",
    "scikit-learn",
    "mpmath",
)


APPENDED_FILES = (RECORDS_FILE, "judgements.jsonl", "log.jsonl", "rollouts.jsonl")
"""Files that grow line by line. Opening the run drops an incomplete last line, so that other programs can read them."""


RUN_FORMAT = 2
"""Version of the run directory's format: its file names and their field names. Runs of format 1 do not state it."""


class RunFile(dict[str, Any]):
    """A JSON file of a run directory, or an object in it. A missing key raises DataError, naming file and key."""

    def __init__(self, path: Path, values: Mapping[str, Any]) -> None:
        super().__init__({name: RunFile(path, value) if isinstance(value, dict) else value for name, value in values.items()})
        self.path = path

    def __missing__(self, key: str) -> Any:
        raise DataError(f"{self.path}: has no {key}; is this a run directory? If so, the file was edited or cut short")


UNTIMED = -1
"""The number of answers in usage.json where another program gave some of them (batch files), whose seconds nobody knows."""


class _OpenDict(TypedDict, total=False):
    """Base of the fields that readers use, each of which may be missing; other fields are allowed."""

    __pydantic_config__ = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)  # type: ignore[misc]


_Count = Annotated[int, Field(ge=0)]


class _JudgeSection(_OpenDict, total=False):
    name: Required[str]
    label: str | None


class _ConfigFields(_OpenDict, total=False):
    stage: str
    label: str | None
    method: str
    strategy: str
    seed: _Count
    samples: _Count
    resamples: Annotated[int, Field(ge=1, le=1_000_000)]
    folds: Annotated[int, Field(ge=2)]
    embedder: str
    reference: str | None
    model: dict[str, Any]
    judge: _JudgeSection
    personas: dict[str, Any]
    task: dict[str, Any]
    sampling: dict[str, Any]
    plan: dict[str, Any]
    train: dict[str, Any]
    dev_eval: dict[str, Any]
    interview: dict[str, Any] | None
    interviewer: dict[str, Any]
    personagym: dict[str, Any] | None


class _StartFields(_OpenDict, total=False):
    command: list[str]
    packages: dict[str, str]
    revision: str | None


class _ProvenanceFields(_OpenDict, total=False):
    last_start: _StartFields
    revisions: list[str | None]
    identity: dict[str, Any]
    packages: dict[str, str]
    command: list[str]


class _UsageFields(_OpenDict, total=False):
    answers: Annotated[int, Field(ge=UNTIMED)]
    cpu_seconds: float
    wall_seconds: float
    starts: int
    peak_mb: int


class _GridFields(_OpenDict, total=False):
    samples: Annotated[int, Field(ge=1)]
    persona_ids: list[str]
    question_ids: list[str]
    choosing_persona_ids: list[str]
    choosing_question_ids: list[str]
    asked_without_persona: list[str]
    templates: dict[str, str]
    contexts: list[str]
    persona_texts: dict[str, str]
    turns_asked: dict[str, list[str]]
    questions_asked: list[dict[str, Any]]
    rounds: list[dict[str, Any]]


class _JudgeInputFields(_OpenDict, total=False):
    discriminates_personas: dict[str, bool]
    n_controls: dict[str, _Count]


_FIELDS = {
    name: TypeAdapter[Any](fields)
    for name, fields in {
        "config.json": _ConfigFields,
        "provenance.json": _ProvenanceFields,
        "usage.json": _UsageFields,
        "grid.json": _GridFields,
        "inputs.json": _JudgeInputFields,
    }.items()
}


def read_run_file(path: Path) -> RunFile:
    """Read a JSON file of a run directory. Raises DataError if it is missing, or naming the first field of a wrong type."""
    values = read_json(path)
    try:
        _FIELDS[_SHARD_IN_NAME.sub("", path.name)].validate_python(values)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        field = ".".join(map(str, first["loc"]))
        raise DataError(f"{path}: {field}: {first['msg']}; the file was edited or is damaged") from error
    return RunFile(path, values)


def read_usage(run: Path) -> RunFile:
    """usage.json of a run, of all workers together; {} without one. Raises DataError for a damaged file.

    "cpu_seconds", "wall_seconds" and "starts" are sums, "peak_mb" is the largest peak memory in MB. "answers" is how many answers
    the seconds took: `UNTIMED` if another program gave some, and missing where a worker has not recorded it (a training, a run of
    an earlier version).
    """
    path = run / "usage.json"
    found = [read_run_file(file) for file in worker_files(path) if file.exists()]
    total = RunFile(path, found[0] if found else {})
    for one in found[1:]:
        sums = {name: round(total.get(name, 0) + one[name], 2) for name in one if name not in ("answers", "peak_mb")}
        total |= sums | {"peak_mb": max(total.get("peak_mb", 0), one.get("peak_mb", 0))}
    answers = [one.get("answers") for one in found]
    if None in answers:
        total.pop("answers", None)
    elif found:
        total["answers"] = UNTIMED if UNTIMED in answers else sum(answers)
    return total


_SHARD_IN_NAME = re.compile(r"-\d+of\d+(?=\.json$)")


def read_provenance(run: Path) -> RunFile:
    """Read provenance.json of a run. Raises DataError if it is missing, broken, or not of format `RUN_FORMAT`."""
    return _read_provenance_file(run / "provenance.json")


def _read_provenance_file(path: Path) -> RunFile:
    provenance = read_run_file(path)
    if not provenance:
        raise DataError(f"{path}: holds no field, so the run's format is not known; run its command again into a new folder")
    if provenance.get("format", 1) != RUN_FORMAT:
        raise DataError(
            f"{path}: the run has format {provenance.get('format', 1)}, and this version of permix reads format {RUN_FORMAT}; "
            "run its command again into a new folder, or read it with the version that wrote it "
            f"(permix {provenance.get('permix', '0.1.0')}, revision {provenance.get('revision') or 'unknown'})"
        )
    return provenance


class RunReader:
    """Reads a run directory; each property reads its file on first access, once.

    Creating it raises DataError for a run of another format, and for one into whose folder the files of another run's workers
    were copied. A run made by hand may lack any file; a property that needs a missing file raises DataError or returns an empty
    value, as its docstring says. `provenance` is that of the run's first start, with the newest start and the revisions of all
    workers.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        file, *others = worker_files(path / "provenance.json")
        born = read_provenance(path) if file.exists() else RunFile(file, {})
        workers = [_read_provenance_file(one) for one in others] if born else []
        for worker in workers:
            if worker["identity"] != born["identity"]:
                raise DataError(
                    f"{worker.path}: the worker asked with other settings than {file} states (its identity "
                    "differs); these are files of two runs: keep each run in a folder of its own"
                )
        self.provenance: dict[str, Any] = RunFile(file, _with_starts_of(born, workers)) if workers else born

    @property
    def identity(self) -> dict[str, Any]:
        """The settings that all records of the run have in common. Raises DataError without provenance.json."""
        return cast(dict[str, Any], (self.provenance or read_provenance(self.path))["identity"])

    @cached_property
    def config(self) -> dict[str, Any]:
        """The resolved configuration. Raises DataError without config.json."""
        return read_run_file(self.path / "config.json")

    @property
    def stage(self) -> str:
        """The command that made the run; "" if the configuration does not name it."""
        return str(self.config.get("stage") or "")

    @property
    def label(self) -> str | None:
        """The name that the user gave the run; None without one."""
        label = self.config.get("label")
        return str(label) if label else None

    @cached_property
    def usage(self) -> dict[str, Any]:
        """What `read_usage` returns for the run."""
        return read_usage(self.path)

    @cached_property
    def grid(self) -> dict[str, Any]:
        """The personas and questions of the run; {} without grid.json."""
        return self._read_if_there("grid.json")

    @property
    def record_paths(self) -> list[Path]:
        """The files of records that are there, or records.jsonl alone."""
        return [path for path in record_files(self.path) if path.exists()] or [self.path / RECORDS_FILE]

    @cached_property
    def cells(self) -> CellIndex:
        """The recorded cells of all workers; `cells.summaries` has the summaries that are kept in memory."""
        return read_run_cells(self.path)

    @cached_property
    def log(self) -> list[dict[str, Any]]:
        """The steps of a training, in order. Of a step that was repeated after a resume, the last record counts."""
        steps = dict(read_jsonl(self.path / "log.jsonl", parse_log_step, "a training step"))
        return [steps[number] for number in sorted(steps)]

    def _read_if_there(self, name: str) -> dict[str, Any]:
        return read_run_file(self.path / name) if (self.path / name).exists() else RunFile(self.path / name, {})


UNIT_FILE = "unit.json"
"""The file that marks the folder of a unit of a study."""

SET_ASIDE_PREFIX = "other-weights-"
"""How the names of folders in a unit begin to which a study has moved evaluations of other weights than the unit's model has."""


def is_set_aside(folder: Path) -> bool:
    """Whether a study has moved evaluations to this folder, since the unit was trained again and has other weights now.

    They keep their labels, so what looks for runs below a folder passes over this one. Its runs are read if it is named itself.
    """
    return folder.name.startswith(SET_ASIDE_PREFIX) and (folder.parent / UNIT_FILE).is_file()


def require_run(path: Path) -> RunReader:
    """The run at `path`. Raises DataError if there is no run, or a run of another format."""
    run = RunReader(path)
    _ = run.config
    return run


def parse_log_step(line: bytes) -> tuple[int, dict[str, Any]]:
    """(number of the step, all of its fields), from a line of log.jsonl."""
    step = json.loads(line)
    return int(step["step"]), step


class CheckedEndpoint(Protocol):
    """A model behind an endpoint, found to be the one that a run knows.

    `fingerprint`: the run's fingerprint of the model, which counts as the model's in the identity at `identity_key`, a dotted
    key; None if the identity decides.
    """

    @property
    def identity_key(self) -> str: ...

    @property
    def fingerprint(self) -> str | None: ...

    def record(self, folder: Path) -> None:
        """Write the addresses of the model to the run directory."""


class RunDir:
    """A run directory that this process has locked for writing, or a shard of it. Open it with `RunDir.open`, as a context
    manager."""

    def __init__(self, path: Path, shard: Shard | None = None) -> None:
        self.path, self.shard = path, shard
        self.stop_reason = ""
        """Why this start asks for no more: its endpoint answers no more; "" if it does."""
        self._n_answers: int | None = 0
        self._writer = JsonlWriter(self._own_file(RECORDS_FILE))

    @classmethod
    @contextlib.contextmanager
    def open(
        cls,
        path: Path,
        config: BaseModel,
        identity: Mapping[str, Any],
        expected_cells: Iterable[Cell] = (),
        new_identity_keys: Collection[str] = (),
        former_identity_keys: Collection[str] = (),
        endpoints: Sequence["CheckedEndpoint"] = (),
        shard: Shard | None = None,
        grid: Mapping[str, object] | None = None,
    ) -> Iterator["RunDir"]:
        """Create the run, or resume it.

        `identity`: the settings that all records of a run have in common (model fingerprint, sampling, template ...).
        `expected_cells`: the cells that the run, or this shard of it, will contain. `new_identity_keys`: keys that are added to
        the identity of a run on disk that lacks them. `former_identity_keys`: dotted keys ("train.report_to") that a run on disk
        may have in its identity and that are not compared. `endpoints`: the models behind endpoints, checked before; their
        addresses are recorded when the run is open.

        `shard`: this process is one of several workers. The worker that finds no other one at work writes config.json and
        grid.json, whose content is `grid`; later ones compare theirs.

        Raises ConfigError, and changes nothing on disk, if another process is writing the run or the shard, if the run on disk
        has another identity, if it asked one of these cells with another prompt, seed or gold, or if the other workers at work
        have other settings or another grid.
        """
        with guard_writes(path):
            path.mkdir(parents=True, exist_ok=True)
        run, cells = cls(path, shard), tuple(expected_cells)

        others = False

        def prepare(is_alone: bool) -> None:
            nonlocal others
            others, keys = not is_alone, (new_identity_keys, former_identity_keys)
            run._open_or_resume(config, identity, cells, *keys, endpoints, grid, is_alone=is_alone)
            for endpoint in endpoints:
                endpoint.record(path)

        with lock_run(path, shard, prepare):
            try:
                if others:  # only now, since workers that start at the same time wait for `prepare`
                    run._check_cells(cells)
                yield run
            finally:
                run._writer.close()

    def _open_or_resume(
        self,
        config: BaseModel,
        identity: Mapping[str, Any],
        expected_cells: Iterable[Cell],
        new_identity_keys: Collection[str],
        former_identity_keys: Collection[str],
        endpoints: Sequence["CheckedEndpoint"],
        grid: Mapping[str, object] | None,
        *,
        is_alone: bool,
    ) -> None:
        # As JSON has it: a tuple and a list must compare equal.
        requested = _with_fingerprints(json.loads(json.dumps(identity)), endpoints)
        settings_now = _recorded_settings(config)
        for file in worker_files(self.path / "usage.json"):
            _ = file.exists() and read_run_file(file)  # a damaged file is refused now, and not after the work
        known_files = [file for file in worker_files(self.path / "provenance.json") if file.exists()]
        if known_files:
            former = _read_former_config(self.path)
            settings = (former, _with_keys_of(former, settings_now, free_key_fields(config)))
            changed: dict[Path, dict[str, Any]] = {}
            for file in known_files:
                provenance = _read_provenance_file(file)
                recorded = _with_fingerprints(provenance["identity"], endpoints)
                added = {key: requested[key] for key in new_identity_keys if key in requested and recorded.get(key) is None}
                _check_same_identity(self.path, _without_keys(recorded, former_identity_keys) | added, requested, settings)
                if (identity_now := recorded | added) != provenance["identity"]:
                    changed[file] = provenance | {"identity": identity_now}
            if is_alone:
                self._check_cells(expected_cells)
            else:
                _check_same_work(self.path, settings_now, grid)
            for file, values in changed.items():  # only now: a refused start changes nothing on disk
                write_json(file, values)
        self._prepare_files(requested)
        if is_alone:
            write_json(self.path / "config.json", settings_now)
            if grid is not None:
                write_json(self.path / "grid.json", grid)

    def _prepare_files(self, identity: Mapping[str, Any]) -> None:
        """Write the provenance of the run and of this worker where there is none, and drop the lines that a killed start tore."""
        path, start = self.path / "provenance.json", collect_provenance()
        own = self._own_file(path.name)
        for one in dict.fromkeys((path, own)):
            if not one.exists():
                write_json(one, {"format": RUN_FORMAT} | start | {"identity": identity})
            elif one == own:
                born = read_run_file(one)
                if (with_start := add_start(born, start)) != born:
                    write_json(one, with_start)
        for name in APPENDED_FILES:
            for file in worker_files(self.path / name) if self.shard is None else [self._own_file(name)]:
                with guard_writes(file):
                    drop_torn_line(file)

    def _check_cells(self, expected_cells: Iterable[Cell]) -> None:
        cells = self.cells()
        check_cells_unchanged(cells, expected_cells)
        if note := conflicting_answers_note(cells):
            print_status(f"note: {self.path}: {note}")

    def _own_file(self, name: str) -> Path:
        return worker_file(self.path / name, self.shard)

    def cells(self) -> CellIndex:
        """The recorded cells of all workers."""
        return read_run_cells(self.path)

    @contextlib.contextmanager
    def track_usage(self, sum_over_processes: Callable[[float], float] = float, *, counts_answers: bool = True) -> Iterator[None]:
        """Add the CPU and wall seconds of the block to usage.json, also when the block ends with an error or Ctrl-C.

        `sum_over_processes` maps this process's CPU seconds to the sum over all processes of the run. It is not called after an
        error, when other processes may no longer answer. `counts_answers`: whether the seconds are those of the answers that
        `count_answers` counts; the seconds of a training are not, so its file says nothing of answers.
        """
        cpu, wall = cpu_seconds(), time.monotonic()
        try:
            yield
        except BaseException:
            with contextlib.suppress(OSError, PermixError):  # the error itself may be a full disk
                self._add_usage(cpu_seconds() - cpu, time.monotonic() - wall, counts_answers)
            raise
        self._add_usage(sum_over_processes(cpu_seconds() - cpu), time.monotonic() - wall, counts_answers)

    def count_answers(self, n: int | None) -> None:
        """Count answers that the seconds of `track_usage` have taken; None for answers that another program gave, so that the
        seconds tell nothing of them."""
        self._n_answers = None if n is None or self._n_answers is None else self._n_answers + n

    def _add_usage(self, cpu: float, wall: float, counts_answers: bool) -> None:
        path = self._own_file("usage.json")
        before = read_run_file(path) if path.exists() else RunFile(path, {})
        used = {"cpu_seconds": cpu, "wall_seconds": wall, "starts": 1}
        totals = {key: round(before.get(key, 0) + value, 2) for key, value in used.items()}
        if counts_answers:
            if self._n_answers is None or before.get("answers", 0) == UNTIMED:
                totals["answers"] = UNTIMED
            elif not before or "answers" in before:  # else the seconds of an earlier version are of other answers, too
                totals["answers"] = before.get("answers", 0) + self._n_answers
                self._n_answers = 0
        write_json(path, totals | {"peak_mb": max(before.get("peak_mb", 0), _peak_mb())})

    def append(self, cells: Iterable[Cell]) -> None:
        """Append cells. When this returns the operating system has them, so a killed process loses none of them."""
        self._writer.append(cells)

    def append_result(self, cell: Cell) -> Cell:
        """Append a cell; returns it as it is recorded. A completion that no line can hold is recorded as a failure."""
        try:
            self.append([cell])
        except LongRecordError as error:
            cell = cell.model_copy(update={"completion": None, "verdict": None, "failure": long_reply_failure(error)})
            self.append([cell])
        return cell

    def close_records(self) -> None:
        """Close the file of records until the next cell: on a file system that machines share, others then see all of it."""
        self._writer.close()


def long_reply_failure(error: LongRecordError) -> Failure:
    """The failure that is recorded in place of a reply that no line can hold."""
    return Failure(type="LongReplyError", message=f"the reply is longer than a record may be: {error.sizes}")


def _recorded_settings(config: BaseModel) -> dict[str, Any]:
    """The content of config.json. All workers of a run have the same one, so it does not name the shard."""
    values = config.model_dump(mode="json")
    return values | {"shard": None} if "shard" in values else values


MACHINE_SETTINGS = (
    *("out", "threads", "cache", "context_turns"),
    *("base_url", "same_weights", "api_key_env", "batch_size", "concurrency", "timeout_s", "retries"),
)  # fmt: skip
"""Last parts of the keys of config.json in which the workers of a run may differ, each on a machine of its own."""


def _check_same_work(path: Path, settings: Mapping[str, Any], grid: Mapping[str, object] | None) -> None:
    """Raise ConfigError if the other workers of the run have other settings or another grid.

    A damaged file is refused too, since nobody may write it anew while others work.
    """
    found = [
        _show_difference(*leaf)
        for leaf in _differing_leaves(read_run_file(path / "config.json"), settings)
        if leaf[0].rpartition(".")[2] not in MACHINE_SETTINGS
    ]
    known = json.loads(json.dumps(grid))
    if not found and known is not None:
        found = [f"{name} of grid.json differs" for name, *_ in _differing_leaves(read_run_file(path / "grid.json"), known)]
    if found:
        raise ConfigError(
            f"out = {path}: the workers that are writing this run have {'; '.join(found[:MAX_SHOWN_DIFFERENCES])}; all shards "
            "need the same configuration and the same data"
        )


def _read_former_config(path: Path) -> Mapping[str, Any]:
    """The run's configuration before this start; {} if the file is missing or damaged, since it is written anew."""
    try:
        return read_run_file(path / "config.json")
    except DataError:
        return {}


MAX_SHOWN_DIFFERENCES = 6
"""Most settings that the refusal of another identity names."""

MAX_SHOWN_VALUE_CHARS = 80
"""Longest key or value there."""

_Settings = tuple[Mapping[str, Any], Mapping[str, Any]]
"""The configuration of a run on disk, and the requested one without settings that the other one lacks."""


def _check_same_identity(path: Path, recorded: Mapping[str, Any], requested: Mapping[str, Any], settings: _Settings) -> None:
    """Raise ConfigError that names what differs, with both values."""
    leaves = _differing_leaves(recorded, requested)
    # Two hashes may follow from one setting, which is named once.
    found = list(dict.fromkeys(text for leaf in leaves for text in _describe_difference(*leaf, settings)))
    if found:
        further = f"; and {len(found) - MAX_SHOWN_DIFFERENCES} more" if len(found) > MAX_SHOWN_DIFFERENCES else ""
        raise ConfigError(
            f"out = {path}: this run was made with {'; '.join(found[:MAX_SHOWN_DIFFERENCES])}{further}; "
            "give another folder, or the same settings to go on with it"
        )


NEEDS_MODEL = ("model", "judge", "default_system", "kind")
"""Keys of identities that `check_resumable` does not compare: they need the model, or are in no other run of the stage."""


def check_resumable(path: Path, config: BaseModel, known: Mapping[str, Any], new_identity_keys: Collection[str] = ()) -> None:
    """Raise ConfigError, in the words of `RunDir.open`, if the run on disk was made with another value of `known`, the part of
    the identity that needs no model, or with a model of another name or backend. Does nothing if there is no run.
    """
    if not (path / "provenance.json").exists():
        return
    former, now = _read_former_config(path), _recorded_settings(config)
    requested, recorded = json.loads(json.dumps(known)), read_provenance(path)["identity"]
    requested = {key: one for key, one in requested.items() if key in recorded or key not in new_identity_keys}
    before = {key: part_with_keys_of(requested.get(key), one) for key, one in recorded.items() if key not in NEEDS_MODEL}
    for section in ("model", "judge"):
        was, asked = former.get(section), now.get(section)
        if not isinstance(was, Mapping) or not isinstance(asked, Mapping) or asked.get("same_weights"):
            continue
        served = [one.get("base_url") is not None for one in (was, asked)]
        # What tells a model in this process apart is its files and not its name, and batch files are answered by an endpoint.
        for field in ("name", "extra_body") if all(served) else () if any(served) else ("backend",):
            if field in was:
                before[f"{section}.{field}"], requested[f"{section}.{field}"] = was[field], asked[field]
    settings = (former, _with_keys_of(former, now, free_key_fields(config)))
    _check_same_identity(path, before, requested, settings)


def part_with_keys_of(asked: Any, recorded: Any) -> Any:
    """The recorded value, without keys that the asked one lacks, at any depth."""
    if not isinstance(asked, Mapping) or not isinstance(recorded, Mapping):
        return recorded
    return {key: part_with_keys_of(value, recorded.get(key)) for key, value in asked.items()}


def describe_setting_differences(
    recorded: Mapping[str, Any], requested: Mapping[str, Any], ignored: Collection[str] = (), whole: Collection[str] = ()
) -> list[str]:
    """A text for each setting that differs, such as "train.lr = 1e-05, not 3e-05".

    Those whose last part is among `ignored` do not count. `whole`: dotted keys of the settings that are compared as one value
    (`free_key_fields`). At most `MAX_SHOWN_DIFFERENCES` texts.
    """
    leaves = _differing_leaves(recorded, requested, whole=whole)
    found = [_show_difference(*leaf) for leaf in leaves if leaf[0] in whole or leaf[0].rpartition(".")[2] not in ignored]
    return found[:MAX_SHOWN_DIFFERENCES]


def free_key_fields(section: BaseModel, prefix: str = "") -> frozenset[str]:
    """The dotted keys of the settings that are mappings of the user's own keys, such as "plan.tag_weights".

    A key that such a mapping lacks was not given; a section that lacks a key was recorded by a version without that setting.
    """
    found = set[str]()
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            found |= free_key_fields(value, f"{prefix}{name}.")
        elif isinstance(value, Mapping):
            found.add(f"{prefix}{name}")
    return frozenset(found)


def _differing_leaves(
    recorded: Mapping[str, Any], requested: Mapping[str, Any], prefix: str = "", whole: Collection[str] = ()
) -> Iterator[tuple[str, Any, Any]]:
    """(dotted key, recorded value, requested value) of each value that differs, in the order of the keys; None where absent.

    A section that one side lacks is one value, and so is a mapping at a key of `whole`.
    """
    for key in sorted(recorded.keys() | requested.keys()):
        known, asked, name = recorded.get(key), requested.get(key), f"{prefix}{key}"
        if isinstance(known, Mapping) and isinstance(asked, Mapping) and name not in whole:
            yield from _differing_leaves(known, asked, f"{name}.", whole)
        elif known != asked:
            yield name, known, asked


class _HashedSettings(NamedTuple):
    """The settings behind a hash in an identity: fields of the configuration, and words for content that they name."""

    fields: tuple[str, ...]
    words: str


_MODEL_WORDS = "other weights, another tokenizer, chat template or precision, under the same {section}.name"

_FUNCTION_WORDS = (
    "another function or object of the same name: its source, or a value that it carries, was another one, or another version of "
    "permix identified it in another way"
)

_HASHED_SETTINGS: Mapping[str, _HashedSettings] = {
    "model": _HashedSettings(("model",), _MODEL_WORDS.format(section="model")),
    "judge": _HashedSettings(("judge",), _MODEL_WORDS.format(section="judge")),
    "interview.asked by": _HashedSettings(("interviewer", "interview"), "another interviewer, or other questions of its script"),
    "interview.personas": _HashedSettings(("personas",), "other personas"),
    "template": _HashedSettings(("personas.template", "templates"), "another text of personas.template"),
    "context_turns": _HashedSettings(("context_turns",), "other recorded turns behind context_turns"),
    "task_source": _HashedSettings(
        (), "another source of the task or its scorer (task_source), or another version of permix, which identifies it otherwise"
    ),
    "prompt": _HashedSettings(("task.prompt_template",), "another prompt of the task"),
    "plan": _HashedSettings(("plan", "plan_file", "task", "personas"), "a plan of other rows (questions, personas or prompts)"),
    "rubrics": _HashedSettings(("judge.rubrics",), "other texts of the rubrics or of the judge's prompt"),
    "examples": _HashedSettings(("judge.examples",), "other examples for the judge"),
    "questions.situations": _HashedSettings(("settings",), "other situations"),
    "criteria": _HashedSettings((), "other criteria of the tasks"),
    "wording": _HashedSettings((), "other prompts of the question writer"),
}

_FIELDS_OUTSIDE_FINGERPRINT = {
    *("api_key_env", "batch_size", "concurrency", "timeout_s", "retries", "label"),
    *("prices", "max_cost", "attempts", "answers_per_control", "same_weights"),
}  # fmt: skip
"""Fields of a model's section that are in no fingerprint."""

_HASH = re.compile(r"[0-9a-f]{16}|[0-9a-f]{64}")


def _describe_difference(key: str, known: Any, asked: Any, settings: _Settings) -> Iterator[str]:
    """One text for a readable value; else one for each setting behind it that differs.

    Of a hash whose settings are equal, the content that they name differs: words say so.
    """
    if isinstance(known, Mapping) or isinstance(asked, Mapping):
        found = [one for one in _differing_leaves(*settings) if one[0].startswith(f"{key}.")]
        yield from (_show_difference(*one) for one in found or [(key, known, asked)])
        return
    if not (_is_hash(known) or _is_hash(asked)):
        yield _show_difference(key, known, asked)
        return
    hashed = _HASHED_SETTINGS.get(key, _HashedSettings((), f"another value behind {_show_key(key)}"))
    differing = [
        (name, one, other)
        for name, one, other in _differing_leaves(*settings)
        if any(name == field or name.startswith(f"{field}.") for field in hashed.fields)
        and name.rpartition(".")[2] not in _FIELDS_OUTSIDE_FINGERPRINT
    ]
    moved = [name for name, *_ in differing if name.endswith(".base_url")]
    if len(moved) == len(differing):  # an address alone is no other identity
        is_function = (settings[1].get(key) or {}).get("backend") == "python" if key in ("model", "judge") else False
        yield _FUNCTION_WORDS if is_function else hashed.words
    yield from (_show_difference(*one) for one in differing)


def _is_hash(value: Any) -> bool:
    values = value if isinstance(value, list) else [value]
    return bool(values) and all(isinstance(one, str) and _HASH.fullmatch(one) for one in values)


def _show_difference(key: str, known: Any, asked: Any) -> str:
    return f"{_show_key(key)} = {_show_value(known)}, not {_show_value(asked)}"


def _show_key(key: str) -> str:
    return truncate(escape_control(key).replace("\n", " "), MAX_SHOWN_VALUE_CHARS)


def _show_value(value: Any) -> str:
    """A value of a configuration without secrets, cut, a text in quotes; "none" where there is no value."""
    if value is None:
        return "none"
    shown = truncate(escape_control(redact_secrets(value if isinstance(value, str) else repr(value))), MAX_SHOWN_VALUE_CHARS)
    return f"'{shown}'" if isinstance(value, str) else shown


def _with_keys_of(
    known: Mapping[str, Any], values: Mapping[str, Any], whole: Collection[str] = (), prefix: str = ""
) -> dict[str, Any]:
    """The values whose keys `known` has too, at any depth: an earlier version of permix had fewer settings.

    A mapping at a dotted key of `whole` keeps all of its keys.
    """
    return {
        name: _with_keys_of(known[name], value, whole, f"{prefix}{name}.")
        if isinstance(value, Mapping) and isinstance(known[name], Mapping) and f"{prefix}{name}" not in whole
        else value
        for name, value in values.items()
        if name in known
    }


def _with_fingerprints(identity: Mapping[str, Any], endpoints: Sequence[CheckedEndpoint]) -> dict[str, Any]:
    """The identity with each checked endpoint's fingerprint in the place of the one that its model has, or had."""
    for endpoint in endpoints:
        identity = _replace_value(identity, endpoint.identity_key, endpoint.fingerprint)
    return dict(identity)


def _replace_value(values: Mapping[str, Any], key: str, value: str | None) -> dict[str, Any]:
    """The values with `value` at a dotted key that they have; as they are if `value` is None."""
    name, _, inner = key.partition(".")
    if value is None or name not in values:
        return dict(values)
    if not inner:
        return {**values, name: value}
    section = values[name]
    return {**values, name: _replace_value(section, inner, value)} if isinstance(section, Mapping) else dict(values)


def _without_keys(values: Mapping[str, Any], keys: Collection[str]) -> dict[str, Any]:
    """The values without these dotted keys."""
    sections = {key.partition(".")[0] for key in keys}
    return {
        name: _without_keys(value, [key.partition(".")[2] for key in keys if key.startswith(f"{name}.")])
        if name in sections and isinstance(value, Mapping)
        else value
        for name, value in values.items()
        if name not in keys
    }


def check_cells_unchanged(recorded: Mapping[CellKey, Cell], expected_cells: Iterable[Cell]) -> None:
    """Raise ConfigError for the first cell that the run recorded with other messages, another seed or another gold."""
    for cell in expected_cells:
        on_disk = recorded.get(cell.key, cell)
        if (on_disk.messages, on_disk.seed, on_disk.gold) != (cell.messages, cell.seed, cell.gold):
            raise ConfigError(
                f"cell {cell.key}: this run asked it with another prompt, another seed or another right answer; "
                "give another folder, or the settings that the run was made with"
            )


def _peak_mb() -> int:
    """This process's peak resident memory, in MB (Linux counts it in KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def cpu_seconds() -> float:
    """CPU seconds of this process and of its child processes that have ended."""
    now = os.times()
    return now.user + now.system + now.children_user + now.children_system


def collect_provenance() -> dict[str, Any]:
    """Versions, source revision, command, machine and time of this process."""
    return {
        "permix": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
        "packages": dict(_package_versions()),
        "revision": source_revision(),
        "command": [Path(sys.argv[0]).name, *redact_arguments(sys.argv[1:])],
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


_START_FIELDS = ("command", "revision", "permix", "packages")


def add_start(provenance: Mapping[str, Any], start: Mapping[str, Any]) -> dict[str, Any]:
    """The provenance of a run with its newest start, if that was by another command or code than the one before.

    "last_start" is the newest start, and "revisions" are those of the code of all starts, in order.
    """
    before = last_start(provenance)
    if all(before.get(name) == start[name] for name in _START_FIELDS):
        return dict(provenance)
    revisions = [*provenance.get("revisions", [provenance.get("revision")]), start["revision"]]
    newest = {name: start[name] for name in (*_START_FIELDS, "created")}
    return {**provenance, "last_start": newest, "revisions": list(dict.fromkeys(revisions))}


def _with_starts_of(born: Mapping[str, Any], workers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The provenance of a run with the newest start and the revisions of all of its workers, by the times of their starts.

    Of a worker's file only its first and its newest start have a time; the revisions between follow its first start.
    """
    newest, starts = last_start(born), list[tuple[str, int, str | None]]()
    for one in (born, *workers):
        latest = last_start(one)
        revisions = one.get("revisions", [one.get("revision")])
        for place, revision in enumerate(revisions):
            is_newest = place > 0 and revision == latest.get("revision")
            starts.append((str((latest if is_newest else one).get("created", "")), place, revision))
        if str(latest.get("created", "")) > str(newest.get("created", "")):
            newest = latest
    merged = {**born, "revisions": list(dict.fromkeys(revision for *_, revision in sorted(starts, key=lambda one: one[:2])))}
    return merged if newest is born else merged | {"last_start": {name: newest.get(name) for name in (*_START_FIELDS, "created")}}


def last_start(provenance: Mapping[str, Any]) -> Mapping[str, Any]:
    """The newest start of a run: its command, and the revision and the packages that it ran with."""
    newest: Mapping[str, Any] = provenance.get("last_start", provenance)
    return newest


def revisions_text(provenance: Mapping[str, Any]) -> str:
    """The revisions of the code that made the run, in the order of its starts."""
    known = [one for one in provenance.get("revisions", [provenance.get("revision")]) if one]
    return ", ".join(known)


def _package_versions() -> Iterator[tuple[str, str]]:
    for package in PROVENANCE_PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            yield package, importlib.metadata.version(package)


def source_revision() -> str | None:
    """The git revision that permix runs from, with "+" if files are changed; None if permix is installed as a package."""
    here = Path(__file__).resolve().parent
    try:
        revision = _git(here, "rev-parse", "--short=12", "HEAD")
        return revision + ("+" if _git(here, "status", "--porcelain", "--untracked-files=no", ".") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(folder: Path, *words: str) -> str:
    return subprocess.run(["git", "-C", str(folder), *words], check=True, capture_output=True, text=True).stdout.strip()
