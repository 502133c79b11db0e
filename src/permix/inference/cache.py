"""Cache completions for several runs: the same request to the same model is generated once.

Contract: a completion is reused only if everything it depends on is equal, as text: the model's fingerprint, every message, the
sampling, the seed (except for greedy decoding), and the versions of the decoding packages. A row's key is a hash of
that text; the text itself is stored in the row and compared. Failures are not cached. The cache is one SQLite file,
`answers.sqlite`, which several processes may use at the same time.
"""

import contextlib
import fcntl
import hashlib
import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from functools import cache
from importlib.metadata import version
from pathlib import Path

from permix.errors import ConfigError, DataError, PermixError
from permix.inference.base import CompletionResult, Model
from permix.progress import print_status
from permix.storage.files import PARSE_ERRORS, read_json, write_error, write_json
from permix.storage.workers import hold_shared_files
from permix.types import Completion, Failure, Request, Sampling

CACHE_DATABASE = "answers.sqlite"

CACHE_STATS_FILE = "cache.json"

DECODER_PACKAGES = ("permix", "torch", "transformers")
"""Packages that decode; a model names further ones in `decoder_packages`."""

LOCK_TIMEOUT_S = 60.0
"""Longest wait while another process has the file locked."""


class CachedModel:
    """Implements `Model`: asks another model only for completions that are not cached. Of `lookups`, `hits` were cached."""

    def __init__(self, model: Model, connection: sqlite3.Connection, path: Path) -> None:
        self.model, self.path = model, path
        self.name, self.fingerprint, self.default_system = model.name, model.fingerprint, model.default_system
        self.content_addressed = model.content_addressed
        self.context_window: int | None = getattr(model, "context_window", None)
        self.hits = self.lookups = 0
        self._connection = connection

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[CompletionResult]:
        packages = (*DECODER_PACKAGES, *getattr(self.model, "decoder_packages", ()))
        key_texts = [cache_key_text(self.fingerprint, request, sampling, packages) for request in requests]
        missing = []
        for index, key_text in enumerate(key_texts):
            self.lookups += 1
            if (cached := self._look_up(key_text)) is None:
                missing.append(index)
            else:
                self.hits += 1
                yield CompletionResult(index, cached)
        if not missing:
            return
        for index, result in self.model.generate([requests[each] for each in missing], sampling):
            if not isinstance(result, Failure):
                self._store(key_texts[missing[index]], result)
            yield CompletionResult(missing[index], result)

    def _look_up(self, text: str) -> Completion | None:
        try:
            row = self._connection.execute("SELECT asked, answer FROM answers WHERE key = ?", (_key(text),)).fetchone()
        except sqlite3.Error as error:
            raise PermixError(f"{self.path}: {error}; if it is damaged, delete it and start again: it is only a cache") from error
        with contextlib.suppress(*PARSE_ERRORS):  # a row that was edited by hand counts as missing
            return Completion.model_validate(json.loads(row[1])) if row is not None and row[0] == text else None
        return None

    def _store(self, text: str, completion: Completion) -> None:
        answer = json.dumps(completion.model_dump(mode="json"))  # as ASCII, since a lone surrogate has no UTF-8
        try:
            self._connection.execute("INSERT OR REPLACE INTO answers VALUES (?, ?, ?)", (_key(text), text, answer))
        except sqlite3.Error as error:  # such as a full disk
            raise write_error(self.path, OSError(0, str(error))) from error


def cache_key_text(fingerprint: str, request: Request, sampling: Sampling, packages: tuple[str, ...] = DECODER_PACKAGES) -> str:
    """Everything that a completion depends on, as JSON with sorted keys."""
    fields = {
        "model": fingerprint, "messages": list(request.messages), "sampling": sampling.model_dump(mode="json"),
        "seed": request.seed if sampling.temperature > 0 else None, "decoder": decoder_versions(packages),
    }  # fmt: skip
    return json.dumps(fields, sort_keys=True)


@cache
def decoder_versions(packages: tuple[str, ...] = DECODER_PACKAGES) -> dict[str, str]:
    """Versions of the packages that decode: with another version the same request may give another completion."""
    return {name: version(name) for name in packages}


def _key(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@contextmanager
def cached_model(model: Model, folder: Path | None, run_dir: Path) -> Iterator[Model]:
    """The model behind the cache in `folder`; the model itself if `folder` is None.

    At the end a status line states the hits, and cache.json in the run directory sums them over all starts, since usage.json does
    not count the cost of cached completions. Raises ConfigError for a folder that cannot be used, and for a model whose
    fingerprint does not identify its weights.
    """
    if folder is None:
        yield model
        return
    if not model.content_addressed:
        raise ConfigError(f"cache = {folder}: weights under the name {model.name!r} may change; leave cache out")
    path, stats_path = folder / CACHE_DATABASE, run_dir / CACHE_STATS_FILE
    _read_stats(stats_path)  # a damaged file is refused now, and not after the work
    with closing(_open_database(path)) as connection:
        cached = CachedModel(model, connection, path)
        try:
            yield cached
        finally:
            if cached.lookups:
                print_status(f"{path}: {cached.hits} of {cached.lookups} answers were cached")
                with hold_shared_files(run_dir):
                    before = _read_stats(stats_path)
                    write_json(stats_path, {"held": before["held"] + cached.hits, "asked": before["asked"] + cached.lookups})


def _read_stats(path: Path) -> dict[str, int]:
    """The hits ("held") and lookups ("asked") of earlier starts. Raises DataError for a damaged file."""
    stats = read_json(path) if path.exists() else {"held": 0, "asked": 0}
    if stats.keys() != {"held", "asked"} or not all(type(count) is int for count in stats.values()):
        raise DataError(f"{path}: not the counts of cached answers, held and asked; delete it to count from 0 again")
    return stats


def _open_database(path: Path) -> sqlite3.Connection:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.with_suffix(".lock").open("w") as lock:
            # SQLite's timeout covers readers and writers, but not two processes that create the file at the same time.
            fcntl.flock(lock, fcntl.LOCK_EX)
            connection = sqlite3.connect(path, timeout=LOCK_TIMEOUT_S, isolation_level=None)
            try:
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute("PRAGMA synchronous = NORMAL")
                connection.execute(
                    "CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, asked TEXT NOT NULL, answer TEXT NOT NULL)"
                )
            except sqlite3.Error:
                connection.close()
                raise
    except (OSError, sqlite3.Error) as error:
        raise ConfigError(f"cache = {path.parent}: {error}; give a folder that can be written to") from error
    return connection
