"""Answers kept by what was asked, for other runs to use: the same model, words, sampling and seed are not generated again.

Contract: an answer is taken only where the whole question stands beside it, letter for letter: the model's fingerprint, every
message, the sampling, the seed where one is drawn from (a greedy answer has none), and the versions of what decodes. The key is a
hash and only finds the row. Failures are not kept. One SQLite file, `answers.sqlite`, that several processes may use at once.
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

from permix.errors import ConfigError, PermixError
from permix.inference.base import CompletionResult, Model
from permix.progress import print_status
from permix.storage.files import read_json, write_error, write_json
from permix.types import Completion, Failure, Request, Sampling

CACHE_DATABASE = "answers.sqlite"

CACHE_STATS_FILE = "cache.json"

DECODER_PACKAGES = ("permix", "torch", "transformers")

LOCK_TIMEOUT_S = 60.0
"""How long another process may hold the file."""


class CachedModel:
    """`permix.inference.base.Model` that asks another one only for what is not there. `hits` of `asked` were."""

    def __init__(self, model: Model, connection: sqlite3.Connection, path: Path) -> None:
        self.model, self.path = model, path
        self.name, self.fingerprint, self.default_system = model.name, model.fingerprint, model.default_system
        self.content_addressed = model.content_addressed
        self.hits = self.lookups = 0
        self._connection = connection

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[CompletionResult]:
        asked = [cache_key_text(self.fingerprint, request, sampling) for request in requests]
        missing = []
        for place, text in enumerate(asked):
            self.lookups += 1
            if (found := self._look_up(text)) is None:
                missing.append(place)
            else:
                self.hits += 1
                yield CompletionResult(place, found)
        if not missing:
            return
        for index, result in self.model.generate([requests[place] for place in missing], sampling):
            if not isinstance(result, Failure):
                self._store(asked[missing[index]], result)
            yield CompletionResult(missing[index], result)

    def _look_up(self, text: str) -> Completion | None:
        try:
            row = self._connection.execute("SELECT asked, answer FROM answers WHERE key = ?", (_key(text),)).fetchone()
        except sqlite3.Error as error:
            raise PermixError(f"{self.path}: {error}; remove it if it is damaged, and start again: it only saves work") from error
        with contextlib.suppress(ValueError):  # an answer that somebody edited is none
            return Completion.model_validate(json.loads(row[1])) if row is not None and row[0] == text else None
        return None

    def _store(self, text: str, completion: Completion) -> None:
        answer = json.dumps(completion.model_dump(mode="json"))  # ASCII: half a surrogate pair survives
        try:
            self._connection.execute("INSERT OR REPLACE INTO answers VALUES (?, ?, ?)", (_key(text), text, answer))
        except sqlite3.Error as error:  # a full disk, say
            raise write_error(self.path, OSError(0, str(error))) from error


def cache_key_text(fingerprint: str, request: Request, sampling: Sampling) -> str:
    """All that an answer depends on, as one text."""
    whole = {
        "model": fingerprint, "messages": list(request.messages), "sampling": sampling.model_dump(mode="json"),
        "seed": request.seed if sampling.temperature > 0 else None, "decoder": decoder_versions(),
    }  # fmt: skip
    return json.dumps(whole, sort_keys=True)


@cache
def decoder_versions() -> dict[str, str]:
    """What turns weights and words into an answer: another version may answer otherwise."""
    return {name: version(name) for name in DECODER_PACKAGES}


def _key(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@contextmanager
def cached_model(model: Model, folder: Path | None, run_dir: Path) -> Iterator[Model]:
    """The model with the answers of a folder, or the model itself without one. How many answers were there is said at the end,
    and added up in `cache.json` of the run directory: its usage does not hold what they cost.

    Raises ConfigError for a folder that cannot be used, and for a model that is not known by its content.
    """
    if folder is None:
        yield model
        return
    if not model.content_addressed:
        raise ConfigError(f"cache = {folder}: weights under the name {model.name!r} may change; leave cache out")
    path = folder / CACHE_DATABASE
    with closing(_open_database(path)) as table:
        kept = CachedModel(model, table, path)
        try:
            yield kept
        finally:
            if kept.lookups:
                print_status(f"{path}: held {kept.hits} of {kept.lookups} answers")
                before = (
                    read_json(run_dir / CACHE_STATS_FILE) if (run_dir / CACHE_STATS_FILE).exists() else {"held": 0, "asked": 0}
                )
                write_json(
                    run_dir / CACHE_STATS_FILE, {"held": before["held"] + kept.hits, "asked": before["asked"] + kept.lookups}
                )


def _open_database(path: Path) -> sqlite3.Connection:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # SQLite waits for its readers, but not for whoever makes the file
            table = sqlite3.connect(path, timeout=LOCK_TIMEOUT_S, isolation_level=None)
            try:
                table.execute("PRAGMA journal_mode = WAL")
                table.execute("PRAGMA synchronous = NORMAL")
                table.execute(
                    "CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, asked TEXT NOT NULL, answer TEXT NOT NULL)"
                )
            except sqlite3.Error:
                table.close()
                raise
    except (OSError, sqlite3.Error) as error:
        raise ConfigError(f"cache = {path.parent}: {error}; give a folder that can be written to") from error
    return table
