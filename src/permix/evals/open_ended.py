"""The kind "open" of `permix fidelity`: asks every persona the same open-ended questions.

Identifiability measures how distinct the personas' answers are. It does not measure whether an answer fits its persona.
Recognisability compares each answer with the persona texts, if a sentence embedder is installed. `permix fidelity` writes the
vectors to `embeddings.npz` in the run directory, so later measurements need no embedder. Texts without a stored vector, as in a
run of an older version, are embedded again, and their vectors are not written. Without an embedder a run still has all of its
other measures.
"""

import zipfile
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from permix.config import FidelityConfig
from permix.errors import ConfigError, DataError, option_context
from permix.evals.fidelity_records import (
    AskedQuestion,
    describe_texts,
    read_answer_grid,
    run_fidelity_cells,
    select_fidelity_personas,
)
from permix.evals.grid import PromptFormat, build_grid, describe_grid, open_evaluated_model
from permix.evals.shards import estimate_shard
from permix.evals.text_metrics import measure_text_metrics, read_persona_texts
from permix.inference.base import Model
from permix.inference.embedder import MissingEmbedderError, load_embedder, resolve_embedder
from permix.metrics.identifiability import MIN_ANSWERS, Identifiability, summarize_identifiability
from permix.metrics.recognisability import EmbedTexts, Recognisability, summarize_recognisability
from permix.personas.loading import load_roleplay
from permix.personas.pool import PersonaPool, warn_of_misfits
from permix.progress import print_status_once
from permix.prompts import persona_prompt
from permix.storage.files import open_regular, replace_when_done
from permix.storage.run_dir import RunReader, require_run
from permix.types import Cell, Measured, Question, digest

VECTORS_FILE = "embeddings.npz"


def run_open_ended(
    config: FidelityConfig,
    model: Model | None = None,
    given_pool: PersonaPool | None = None,
    given_questions: Sequence[Question] | None = None,
) -> Identifiability:
    """Start or resume an open-ended run; writes metrics.json and returns identifiability. `config.shard` as in
    `run_fidelity_cells`.

    `model`, `given_pool` and `given_questions` are Python objects that replace what the configuration names. Raises ConfigError
    if the configuration is invalid, IncompleteRunError if answers are missing, and DataError if there are too few to measure.
    """
    pool, questions = prepare_open_ended(config, given_pool, given_questions)
    with open_evaluated_model(config, pool, model) as asked:
        return evaluate_open_ended(asked, config, pool, questions)


def preflight_open_ended(config: FidelityConfig) -> dict[str, str]:
    """Facts about the run without calling a model. Raises ConfigError or DataError if the configuration is invalid."""
    pool, questions = prepare_open_ended(config)
    facts = {"personas": str(len(pool)), "questions": str(len(questions)), "answers": str(len(pool) * len(questions))}
    return facts | estimate_shard("fidelity", config, build_open_ended_cells(config, pool, questions))


def prepare_open_ended(
    config: FidelityConfig, given_pool: PersonaPool | None = None, given_questions: Sequence[Question] | None = None
) -> tuple[PersonaPool, tuple[Question, ...]]:
    """Choose personas and questions, and check embedder and reference; calls no model.

    Raises ConfigError if the configuration is invalid, DataError for a reference that lacks answers.
    """
    check_embedder(config.embedder)
    pool, questions = select_open_ended_personas(config, given_pool), load_open_questions(config, given_questions)
    if config.reference is not None:
        check_reference_answers(
            config.reference, {(persona.id, question.id) for persona in pool.personas for question in questions}
        )
    return pool, questions


def build_open_ended_cells(config: FidelityConfig, pool: PersonaPool, questions: Sequence[Question]) -> list[Cell]:
    """Build the cells: every persona × every open-ended question, one sample."""
    prompt_format = PromptFormat(lambda question: question.text, config.personas.template, config.personas.empty_system_prompt)
    return build_grid(pool.personas, questions, prompt_format, samples=1, seed=config.seed)


def evaluate_open_ended(
    model: Model, config: FidelityConfig, pool: PersonaPool, questions: Sequence[Question]
) -> Identifiability:
    """Like `run_open_ended`, for a loaded model and chosen personas and questions."""
    cells = build_open_ended_cells(config, pool, questions)
    asked_questions = [AskedQuestion(id=question.id, text=question.text) for question in questions]
    grid_json = describe_grid(pool.personas, questions, samples=1) | describe_texts(pool.personas, asked_questions)
    measure = partial(measure_identifiability, reference=config.reference)
    return run_fidelity_cells(model, config, cells, grid_json, measure, measure_text_metrics, describe_recognisability)


def select_open_ended_personas(config: FidelityConfig, given_pool: PersonaPool | None = None) -> PersonaPool:
    """Select the personas. Raises ConfigError if there is only one, since identifiability needs two."""
    pool = select_fidelity_personas(config)[1] if given_pool is None else given_pool
    warn_of_misfits(pool, [config.personas.template])
    if len(pool) < 2:
        raise ConfigError(f"personas: only {pool.personas[0].id!r} is selected; identifiability needs at least two personas")
    return pool


def load_open_questions(config: FidelityConfig, given: Sequence[Question] | None = None) -> tuple[Question, ...]:
    """The first `n_questions` of `given`, or of the configured file and split.

    Raises ConfigError if there are fewer, or too few to measure identifiability.
    """
    if given is None:
        with option_context("questions", config.questions):
            questions = load_roleplay(config.questions, config.questions_split)
    else:
        questions = tuple(given)
    count, minimum = config.n_questions or len(questions), max(config.folds, MIN_ANSWERS)
    if not minimum <= count <= len(questions):
        raise ConfigError(
            f"n_questions = {count}: give {minimum} (one per fold, and {MIN_ANSWERS} answers per persona) to {len(questions)}, "
            f"the number in {config.questions!r} for questions_split = {config.questions_split!r}"
        )
    return questions[:count]


def check_reference_answers(reference: Path, persona_question_pairs: Collection[tuple[str | None, str]]) -> None:
    """Raise DataError if the reference is not a run, or lacks a record for one of the (persona, question) pairs."""
    with option_context("reference", reference):
        require_run(reference)
    missing = set(persona_question_pairs) - set(read_answer_grid(reference).cells)
    if missing:
        raise DataError(
            f"reference = {reference}: must have answers to the same questions by the same personas; "
            f"{len(missing)} of {len(persona_question_pairs)} are missing, such as {min(missing, key=str)}"
        )


def measure_identifiability(run: Path, reference: Path | None, resamples: int | None = None) -> Identifiability:
    """Measure identifiability from a run's records.

    The classifier is trained on the answers of `reference`, or on the run's own answers without a reference. `resamples` replaces
    the number in the run's configuration.
    """
    config, grid = RunReader(run).config, read_answer_grid(run)
    if reference is not None:
        check_reference_answers(reference, grid.cells)
    return summarize_identifiability(
        grid.answers_P_Q,
        [persona_prompt(grid.first_messages(persona=persona)) for persona in grid.persona_ids],
        persona_ids=grid.persona_ids,
        question_texts=grid.question_texts,
        reference_P_Q=None if reference is None else read_answer_grid(reference).select(grid.persona_ids, grid.question_ids),
        reference_name=_reference_name(reference) if reference else "own answers",
        folds=config["folds"],
        seed=config["seed"],
        resamples=resamples or config["resamples"],
    )


def _reference_name(reference: Path) -> str:
    return f"answers of {RunReader(reference).label or reference}"


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
        return _summarize_recognisability(run, embed, "given in Python", resamples)
    embedder = _open_embedder(run)
    found = _summarize_recognisability(run, embedder, "", resamples)
    return found.model_copy(update={"embedder": embedder.description})


def try_recognisability(run: Path, resamples: int | None = None) -> Measured[Recognisability]:
    """`measure_recognisability`, or why it is not measured."""
    try:
        return Measured(measure_recognisability(run, resamples))
    except (ConfigError, DataError) as error:
        return Measured(None, _unmeasured_reason(error))


def _unmeasured_reason(error: Exception) -> str:
    return error.reason if isinstance(error, MissingEmbedderError) else str(error)


def describe_recognisability(run: Path) -> Mapping[str, object]:
    """The entries of metrics.json on recognisability, after writing the vectors of the run's texts to its folder.

    If it cannot be measured, the terminal says why and what to install; the run's other measures do not depend on it.
    """
    try:
        embedder = _open_embedder(run)
        found = _summarize_recognisability(run, embedder, "", None).model_copy(update={"embedder": embedder.description})
        embedder.write(run / VECTORS_FILE)
    except (ConfigError, DataError) as error:
        if RunReader(run).config.get("embedder", "auto") != "none":
            print_status_once(f"note: recognisability was not measured: {error}")
        return {"recognisability": None, "recognisability_reason": _unmeasured_reason(error)}
    return {"recognisability": found.model_dump(mode="json")}


def _open_embedder(run: Path) -> RunEmbedder:
    config = RunReader(run).config
    name = str(config.get("embedder", "auto"))
    if name == "none":
        raise ConfigError('embedder = "none"')
    return RunEmbedder(run, name, config.get("threads"))


def _summarize_recognisability(run: Path, embed: EmbedTexts, embedder: str, resamples: int | None) -> Recognisability:
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
