"""Recognisability of a run of open-ended questions, from its records and the vectors of its texts.

`permix fidelity` writes the vectors to `embeddings.npz` in the run directory, so later measurements need no embedder. Texts
without a stored vector, as in a run of an older version, are embedded again, and their vectors are not written. Without an
embedder a run still has all of its other measures.
"""

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from permix.errors import ConfigError, DataError
from permix.evals.fidelity_records import read_answer_grid
from permix.evals.text_metrics import read_persona_texts
from permix.inference.embedder import MissingEmbedderError, load_embedder, resolve_embedder
from permix.metrics.recognisability import EmbedTexts, Recognisability, summarize_recognisability
from permix.progress import print_status_once
from permix.storage.files import open_regular, replace_when_done
from permix.storage.run_dir import RunReader
from permix.types import digest

VECTORS_FILE = "embeddings.npz"


def check_embedder(name: str) -> None:
    """Raise ConfigError if a named embedder cannot be found. "auto" is no error: without the extra the measure is left out."""
    if name not in ("auto", "none"):
        resolve_embedder(name)


class StoredVectors(NamedTuple):
    """The vectors of a run's texts: `vectors` by the hash of the text, `name` as in the configuration's `embedder`."""

    name: str
    description: str
    vectors: Mapping[str, NDArray[Any]]


class RunEmbedder:
    """Texts -> vectors: those that a run has stored, else by the run's embedder, which is loaded when it is first needed.

    Vectors of another embedder than the configured one, or of other weights, are not used.
    """

    def __init__(self, run: Path, name: str, threads: int | None = None) -> None:
        self.name, self.threads = name, threads
        stored = read_stored_vectors(run / VECTORS_FILE)
        has_same = stored is not None and stored.name == name
        self.stored = stored if stored is not None and has_same else StoredVectors(name, "", {})
        self.embedded: dict[str, NDArray[Any]] = {}

    @property
    def description(self) -> str:
        """The embedder of the vectors; empty before any text has one."""
        return self.stored.description

    def __call__(self, texts: Sequence[str]) -> NDArray[Any]:
        """Raises ConfigError if a text has no vector and the embedder cannot be loaded."""
        keys = [digest(text) for text in texts]
        if any(key not in self.stored.vectors for key in keys):
            self._embed_missing(texts, keys)
        return np.stack([self.stored.vectors[key] for key in keys])

    def _embed_missing(self, texts: Sequence[str], keys: Sequence[str]) -> None:
        embedder = load_embedder(self.name, self.threads)
        known = self.stored.vectors if self.stored.description == embedder.description else {}
        missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in known}
        self.embedded = dict(zip(missing, embedder(list(missing.values())), strict=True))
        self.stored = StoredVectors(self.name, embedder.description, {**known, **self.embedded})

    def write(self, path: Path) -> None:
        """Write all vectors to the file, unless it has them already."""
        if self.embedded or not path.exists():
            write_stored_vectors(path, self.stored)


def read_stored_vectors(path: Path) -> StoredVectors | None:
    """The vectors in the file; None without the file, or if it is damaged: they can be computed again."""
    try:
        with open_regular(path) as file, np.load(file, allow_pickle=False) as arrays:
            keys, vector_N_D = arrays["text"], arrays["vector"]
            if vector_N_D.ndim != 2 or len(keys) != len(vector_N_D) or not np.isfinite(vector_N_D).all():
                return None
            return StoredVectors(str(arrays["name"]), str(arrays["embedder"]), dict(zip(map(str, keys), vector_N_D, strict=True)))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, DataError):
        return None


def write_stored_vectors(path: Path, stored: StoredVectors) -> None:
    keys = sorted(stored.vectors)
    with replace_when_done(path) as scratch, scratch.open("wb") as file:
        np.savez_compressed(
            file,
            text=np.array(keys),
            vector=np.stack([stored.vectors[key] for key in keys]),
            name=np.array(stored.name),
            embedder=np.array(stored.description),
        )


def measure_recognisability(run: Path, resamples: int | None = None, *, embed: EmbedTexts | None = None) -> Recognisability:
    """Recognisability from a run's records. `resamples` replaces the number in the run's configuration.

    `embed` replaces the configured embedder. Raises ConfigError if there is no embedder, DataError if there are too few answers.
    """
    if embed is not None:
        return _summarize(run, embed, "given in Python", resamples)
    embedder = _open_embedder(run)
    found = _summarize(run, embedder, "", resamples)
    return found.model_copy(update={"embedder": embedder.description})


def measure_or_explain(run: Path, resamples: int | None = None) -> tuple[Recognisability | None, str]:
    """(recognisability, ""), or (None, why it is not measured)."""
    try:
        return measure_recognisability(run, resamples), ""
    except MissingEmbedderError as error:
        return None, error.reason
    except (ConfigError, DataError) as error:
        return None, str(error)


def describe_recognisability(run: Path) -> Mapping[str, object]:
    """The entries of metrics.json on recognisability, after writing the vectors of the run's texts to its folder.

    If it cannot be measured, the terminal says why and what to install; the run's other measures do not depend on it.
    """
    try:
        embedder = _open_embedder(run)
        found = _summarize(run, embedder, "", None).model_copy(update={"embedder": embedder.description})
        embedder.write(run / VECTORS_FILE)
    except (ConfigError, DataError) as error:
        if RunReader(run).config.get("embedder", "auto") != "none":
            print_status_once(f"note: recognisability was not measured: {error}")
        reason = error.reason if isinstance(error, MissingEmbedderError) else str(error)
        return {"recognisability": None, "recognisability_reason": reason}
    return {"recognisability": found.model_dump(mode="json")}


def _open_embedder(run: Path) -> RunEmbedder:
    config = RunReader(run).config
    name = str(config.get("embedder", "auto"))
    if name == "none":
        raise ConfigError('embedder = "none"')
    return RunEmbedder(run, name, config.get("threads"))


def _summarize(run: Path, embed: EmbedTexts, embedder: str, resamples: int | None) -> Recognisability:
    grid, config = read_answer_grid(run), RunReader(run).config
    texts = read_persona_texts(run, list(grid.cells.values()))
    return summarize_recognisability(
        grid.answers_P_Q,
        [texts[persona] for persona in grid.persona_ids],
        embed,
        persona_ids=grid.persona_ids,
        question_texts=grid.question_texts,
        embedder=embedder,
        seed=config["seed"],
        resamples=resamples or config["resamples"],
    )
