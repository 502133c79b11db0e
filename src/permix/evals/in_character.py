"""Measure right and in character from the records of a stability run (`metrics.right_in_character`); asks no model.

Contract: the measure is computed from the records of the run and of its reference alone, so it works for any finished run. Every
cell of a persona and a question (samples, templates, contexts) is one answer of that persona to that question. Of a sequential
run only the questions of the first round count, since later rounds do not ask all personas.
"""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from permix.config import StabilityConfig
from permix.errors import ConfigError, DataError, option_context
from permix.evals.grid import GridResults, grid_results, read_grid_results
from permix.evals.strategies import STRATEGIES
from permix.evals.strategies.base import EvalSetup
from permix.metrics.identifiability import MIN_ANSWERS
from permix.metrics.right_in_character import N_FOLDS, RightInCharacter, SampledTexts, summarize_right_in_character
from permix.metrics.statistics import Array
from permix.prompts import persona_prompt
from permix.storage.run_dir import RunReader, require_run
from permix.types import Cell, CellKey


class PersonaAnswers(NamedTuple):
    """The answers of a run by persona and question, in the order of the ids. A missing answer or score is None or NaN.

    `values_Q` are each question's right answer and the answers that the scorer read, of all personas; `persona_texts` the texts
    that state the personas.
    """

    persona_ids: tuple[str, ...]
    question_ids: tuple[str, ...]
    texts_P_Q_S: SampledTexts
    scores_P_Q_S: Array
    persona_texts: tuple[str, ...]
    values_Q: tuple[frozenset[str], ...]


def measure_right_in_character(
    run: Path, reference: Path | None = None, results: GridResults | None = None, resamples: int | None = None
) -> RightInCharacter:
    """Measure right and in character from a stability run's records.

    The classifier is trained on the answers of the stability run `reference`, or on the run's own answers without one. `results`
    are the results of `read_grid_results(run)`, if the caller has them; `resamples` replaces the number in the run's
    configuration. Raises DataError, with the reason, if the answers do not allow it or the reference does not fit.
    """
    reader = RunReader(run)
    results = results or read_grid_results(run)
    question_ids = _questions_of_all(reader, results)
    own = read_persona_answers(results, results.persona_ids, question_ids)
    trained = None
    if reference is not None:
        check_character_reference(reference, results.persona_ids, _golds(results, question_ids))
        trained = read_persona_answers(read_grid_results(reference), results.persona_ids, question_ids)
    values_Q = own.values_Q if trained is None else [a | b for a, b in zip(own.values_Q, trained.values_Q, strict=True)]
    return summarize_right_in_character(
        own.texts_P_Q_S, own.scores_P_Q_S, own.persona_texts,
        persona_ids=own.persona_ids, question_ids=own.question_ids, values_Q=values_Q,
        reference_P_Q_S=None if trained is None else trained.texts_P_Q_S,
        reference_name="own answers" if reference is None else f"answers of {RunReader(reference).label or reference}",
        seed=int(reader.config["seed"]), resamples=resamples or int(reader.config["resamples"]),
    )  # fmt: skip


def _questions_of_all(reader: RunReader, results: GridResults) -> tuple[str, ...]:
    """The questions that every persona was asked: those of the first round in a sequential run."""
    rounds = reader.grid.get("rounds")
    return results.question_ids[: rounds[0]["until"]] if rounds else results.question_ids


def read_persona_answers(results: GridResults, persona_ids: Sequence[str], question_ids: Sequence[str]) -> PersonaAnswers:
    """The recorded answers of these personas to these questions."""
    cells = _cells_by_pair(results)
    texts = [[[_answer_text(cell) for cell in cells.get((p, q), ())] for q in question_ids] for p in persona_ids]
    scores = [[[_score(cell) for cell in cells.get((p, q), ())] for q in question_ids] for p in persona_ids]
    S = max(1, *(len(row) for rows in texts for row in rows)) if texts and question_ids else 1
    return PersonaAnswers(
        tuple(persona_ids),
        tuple(question_ids),
        texts,
        np.array([[[*row, *[np.nan] * (S - len(row))] for row in rows] for rows in scores], dtype=float),
        tuple(_persona_text(results, [cell for q in question_ids for cell in cells.get((p, q), ())]) for p in persona_ids),
        tuple(frozenset(_values([cell for p in persona_ids for cell in cells.get((p, q), ())])) for q in question_ids),
    )


def _cells_by_pair(results: GridResults) -> dict[tuple[str, str], list[Cell]]:
    """The cells of each persona and question, in the order of their keys."""
    by_pair: dict[tuple[str, str], list[Cell]] = {}
    for key in sorted((key for key in results.grid_summaries if key.persona_id is not None), key=_sort_key):
        by_pair.setdefault((key.persona_id or "", key.question_id), []).append(results.read_cell(key))
    return by_pair


def _sort_key(key: CellKey) -> tuple[str, ...]:
    return tuple(f"{part:09}" if isinstance(part, int) else part or "" for part in key)


def _answer_text(cell: Cell) -> str | None:
    """The answer without its thinking; None without a completion."""
    return None if cell.completion is None else cell.completion.answer


def _score(cell: Cell) -> float:
    reward = None if cell.verdict is None else cell.verdict.reward
    return np.nan if reward is None else reward


def _values(cells: Sequence[Cell]) -> set[str]:
    read = (cell.verdict.extracted for cell in cells if cell.verdict is not None)
    return {value for value in (*(cell.gold for cell in cells), *read) if value}


def _persona_text(results: GridResults, cells: Sequence[Cell]) -> str:
    """The text that states the persona, without the question where both are in one message; "" without a cell."""
    if not cells:
        return ""
    first = cells[0]
    alone = results.get_cell(None, first.question_id, 0)
    text = persona_prompt(first.messages)
    return text.replace(alone.prompt, " ") if alone is not None and alone.prompt else text


def _golds(results: GridResults, question_ids: Collection[str]) -> dict[str, str | None]:
    """The right answer of each question that has a recorded cell."""
    keys = {key.question_id: key for key in results.grid_summaries}
    return {id: results.read_cell(keys[id]).gold for id in question_ids if id in keys}


def check_character_reference(reference: Path, persona_ids: Collection[str], gold_by_question: Mapping[str, str | None]) -> None:
    """Raise DataError unless the reference is a stability run that asked these personas these questions.

    Questions are the same if their id and their right answer are.
    """
    with option_context("character_reference", reference):
        run = require_run(reference)
    if run.stage != "stability":
        raise DataError(f"character_reference = {reference}: is a run of permix {run.stage}; give a run of permix stability")
    asked = grid_results(run)
    known = _golds(asked, asked.question_ids)
    personas = sorted(set(persona_ids) - set(asked.persona_ids))
    questions = sorted(id for id, gold in gold_by_question.items() if id not in known or known[id] != gold)
    lacks = [("personas", personas, len(persona_ids)), ("questions", questions, len(gold_by_question))]
    if missing := [f"{len(ids)} of {n} {what} are missing, such as {ids[0]!r}" for what, ids, n in lacks if ids]:
        raise DataError(
            f"character_reference = {reference}: must have answers to the same questions by the same personas; "
            f"{' and '.join(missing)}"
        )


def check_right_in_character(config: StabilityConfig, setup: EvalSetup) -> None:
    """Raise ConfigError or DataError if right and in character cannot be measured with this configuration."""
    strategy = STRATEGIES[config.strategy]
    if config.strategy != "none" and not strategy.is_full_grid:
        raise ConfigError(
            f'right_in_character = true: strategy = "{config.strategy}" does not ask every question with every persona; leave '
            "one of the two out"
        )
    if len(setup.pool) < 2:
        raise ConfigError(
            f"right_in_character = true: only the persona {setup.pool.personas[0].id!r} is selected; a classifier needs two"
        )
    if len(setup.questions) < max(N_FOLDS, MIN_ANSWERS):
        raise ConfigError(
            f"right_in_character = true: {len(setup.questions)} questions; give {max(N_FOLDS, MIN_ANSWERS)} or more (task.n)"
        )
    if config.character_reference is not None:
        # A sequential run asks an unknown part of its questions; of its first round the reference is checked when it is measured.
        is_sequential = config.budget is not None or config.precision is not None
        golds = {} if is_sequential else {question.id: question.gold or None for question in setup.questions}
        check_character_reference(config.character_reference, [one.id for one in setup.pool.personas], golds)
