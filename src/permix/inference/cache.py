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
from permix.inference.base import Answer, Model
from permix.progress import say
from permix.storage.files import read_json, unwritten, write_json
from permix.types import Completion, Failure, Request, Sampling

FILE = "answers.sqlite"

NOTE = "cache.json"

DECODER = ("permix", "torch", "transformers")

PATIENCE_S = 60.0
"""How long another process may hold the file."""


class Cached:
    """`permix.inference.base.Model` that asks another one only for what is not there. `hits` of `asked` were."""

    def __init__(self, model: Model, table: sqlite3.Connection, path: Path) -> None:
        self.model, self.path = model, path
        self.name, self.fingerprint, self.default_system = model.name, model.fingerprint, model.default_system
        self.addressed = model.addressed
        self.hits = self.asked = 0
        self._table = table

    def complete(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[Answer]:
        asked = [question(self.fingerprint, request, sampling) for request in requests]
        missing = []
        for place, text in enumerate(asked):
            self.asked += 1
            if (found := self._known(text)) is None:
                missing.append(place)
            else:
                self.hits += 1
                yield Answer(place, found)
        if not missing:
            return
        for index, result in self.model.complete([requests[place] for place in missing], sampling):
            if not isinstance(result, Failure):
                self._keep(asked[missing[index]], result)
            yield Answer(missing[index], result)

    def _known(self, text: str) -> Completion | None:
        try:
            row = self._table.execute("SELECT asked, answer FROM answers WHERE key = ?", (_key(text),)).fetchone()
        except sqlite3.Error as error:
            raise PermixError(f"{self.path}: {error}; remove it if it is damaged, and start again: it only saves work") from error
        with contextlib.suppress(ValueError):  # an answer that somebody edited is none
            return Completion.model_validate(json.loads(row[1])) if row is not None and row[0] == text else None
        return None

    def _keep(self, text: str, completion: Completion) -> None:
        answer = json.dumps(completion.model_dump(mode="json"))  # ASCII: half a surrogate pair survives
        try:
            self._table.execute("INSERT OR REPLACE INTO answers VALUES (?, ?, ?)", (_key(text), text, answer))
        except sqlite3.Error as error:  # a full disk, say
            raise unwritten(self.path, OSError(0, str(error))) from error


def question(fingerprint: str, request: Request, sampling: Sampling) -> str:
    """All that an answer depends on, as one text."""
    whole = {
        "model": fingerprint, "messages": list(request.messages), "sampling": sampling.model_dump(mode="json"),
        "seed": request.seed if sampling.temperature > 0 else None, "decoder": decoder(),
    }  # fmt: skip
    return json.dumps(whole, sort_keys=True)


@cache
def decoder() -> dict[str, str]:
    """What turns weights and words into an answer: another version may answer otherwise."""
    return {name: version(name) for name in DECODER}


def _key(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@contextmanager
def cached(model: Model, folder: Path | None, run: Path) -> Iterator[Model]:
    """The model with the answers of a folder, or the model itself without one. How many answers were there is said at the end,
    and added up in `cache.json` of the run directory: its usage does not hold what they cost.

    Raises ConfigError for a folder that cannot be used, and for a model that is not known by its content.
    """
    if folder is None:
        yield model
        return
    if not model.addressed:
        raise ConfigError(f"cache = {folder}: weights under the name {model.name!r} may change; leave cache out")
    path = folder / FILE
    with closing(_open(path)) as table:
        kept = Cached(model, table, path)
        try:
            yield kept
        finally:
            if kept.asked:
                say(f"{path}: held {kept.hits} of {kept.asked} answers")
                before = read_json(run / NOTE) if (run / NOTE).exists() else {"held": 0, "asked": 0}
                write_json(run / NOTE, {"held": before["held"] + kept.hits, "asked": before["asked"] + kept.asked})


def _open(path: Path) -> sqlite3.Connection:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # SQLite waits for its readers, but not for whoever makes the file
            table = sqlite3.connect(path, timeout=PATIENCE_S, isolation_level=None)
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
