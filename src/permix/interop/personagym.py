"""`permix import --personagym`: turn answers saved by PersonaGym's code or a fork into a fidelity run that can be judged.

A folder holds one model's answers in files `{persona}_qa.json`: task → [[question, answer], ...]. The released code and its known
forks (OpenCharacter's among them) write this format. The import generates and scores nothing, and it reads all files before it
writes. The texts that the code saves for failed calls count as missing answers.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from permix.config import ImportConfig, ImportedFidelityConfig, ImportedModelConfig, PersonaGymConfig, PersonaGymTask
from permix.errors import DataError, option_context
from permix.evals.fidelity_records import write_fidelity_metrics
from permix.evals.personagym import PersonaGymCounts, count_personagym_answers, describe_personagym
from permix.evals.text_metrics import measure_text_metrics
from permix.personas.personagym import (
    PersonaGymQuestion,
    index_persona_files,
    make_personagym_question,
    parse_task_name,
    persona_from_personagym,
    read_json_value,
    read_personagym,
)
from permix.progress import print_status
from permix.storage.files import write_json
from permix.storage.rows import quote_value
from permix.storage.run_dir import RunDir
from permix.types import Cell, Completion, Failure, Message, Persona, canonical_text, count_text

ANSWERS_FILE_SUFFIX = "_qa.json"

FAILED_CALL_TEXTS = frozenset({"Error", "As an AI Model I cannot answer"})
"""Texts that the code saves when every call failed: the first for OpenAI's and Together's models, the second for Anthropic's."""


class PersonaGymImport(NamedTuple):
    """The answers of one model. A cell has an answer or a failure; a question without a cell is missing."""

    personas: tuple[Persona, ...]
    questions: tuple[PersonaGymQuestion, ...]
    cells: tuple[Cell, ...]

    @property
    def n_failed(self) -> int:
        return sum(cell.completion is None for cell in self.cells)


def import_personagym_answers(config: ImportConfig, folder: Path) -> PersonaGymCounts:
    """Read, check and write the run. Raises ConfigError or DataError before anything is written."""
    imported = read_personagym_answers(folder, config.personagym_questions)
    name = folder.resolve().name
    run_config = ImportedFidelityConfig(
        label=config.label,
        model=ImportedModelConfig(name=name),
        personagym=PersonaGymConfig(path=config.personagym_questions or folder),
        seed=config.seed,
        resamples=config.resamples,
        imported=config,
    )
    identity = {"model": name, "kind": "personagym", "imported": "personagym"}
    with RunDir.open(config.out, run_config, identity, imported.cells) as run:
        write_json(run.path / "grid.json", describe_personagym(imported.personas, imported.questions, ()))
        known = run.cells()
        run.append(cell for cell in imported.cells if known.get(cell.key) != cell)
        result = count_personagym_answers(run.path)
        write_fidelity_metrics(run.path, result, measure_text_metrics(run.path))
    print_status(f"imported {result.answers.n_answered} answers of {count_text(result.n_personas, 'persona')}")
    if missing := result.answers.n_asked - result.answers.n_answered:
        print_status(f"note: {missing} of {result.answers.n_asked} answers are missing, {imported.n_failed} of them failed calls")
    return result


def describe_personagym_import(config: ImportConfig, folder: Path) -> dict[str, str]:
    """Facts about the run that an import would write, for `permix check`."""
    imported = read_personagym_answers(folder, config.personagym_questions)
    return {
        "model": folder.resolve().name,
        "personas": str(len(imported.personas)),
        "questions": str(len(imported.questions)),
        "answers": f"{len(imported.cells) - imported.n_failed}, and {imported.n_failed} failed calls",
    }


def read_personagym_answers(folder: Path, questions: Path | None) -> PersonaGymImport:
    """All answers in a folder of results.

    `questions` is the folder of PersonaGym questions that the model was asked; without it, unanswered questions are unknown.
    Raises DataError for an unreadable file, and for an answer whose question or persona is not in `questions`.
    """
    if not folder.is_dir():
        raise DataError(f"personagym = {folder}: no such folder")
    files = index_persona_files(folder, ANSWERS_FILE_SUFFIX)
    if not files.by_name:
        raise DataError(f"personagym = {folder}: has no file *{ANSWERS_FILE_SUFFIX}")
    if questions is None:
        answered = [one for text, file in files.by_name.items() for one in _read_answers_file(file, _parse_persona(text, file))]
        personas = {one.question.persona_id: Persona(id=one.question.persona_id, text=one.question.persona) for one in answered}
        return PersonaGymImport(tuple(personas.values()), tuple(one.question for one in answered), tuple(map(_to_cell, answered)))
    with option_context("personagym_questions", questions):
        personas_asked, asked = read_personagym(PersonaGymConfig(path=questions))
    file_of = {persona.id: file for persona in personas_asked if (file := files.find(persona.text)) is not None}
    for file in set(files.by_name.values()) - set(file_of.values()):
        raise DataError(f"{file}: {questions} has no persona of that name")
    answered = [
        one for persona in personas_asked if persona.id in file_of for one in _read_answers_file(file_of[persona.id], persona)
    ]
    return PersonaGymImport(personas_asked, asked, tuple(_to_cell(one) for one in _with_question_ids(answered, asked, questions)))


class SavedAnswer(NamedTuple):
    """A question and its answer; `text` is None if the call failed. `where` names file, task and number for messages."""

    question: PersonaGymQuestion
    text: str | None
    where: str


def _parse_persona(text: str, file: Path) -> Persona:
    try:
        return persona_from_personagym(text)
    except ValueError as error:
        raise DataError(f"{file}: its name is not a valid persona: {error}") from error


def _read_answers_file(file: Path, persona: Persona) -> Iterator[SavedAnswer]:
    fields, seen = read_json_value(file), set[str]()
    if not isinstance(fields, dict):
        raise DataError(f"{file}: must be an object, task → [[question, answer], ...]")
    for name, pairs in fields.items():
        task = parse_task_name(name, str(file))
        if not isinstance(pairs, list):
            raise DataError(f"{file}: task {task!r}: must be a list of [question, answer]")
        for number, pair in enumerate(pairs, 1):
            answer = _parse_pair(pair, persona, task, f"{file}: task {task!r}, answer {number}")
            if answer.question.id in seen:
                raise DataError(f"{answer.where}: question {quote_value(answer.question.text)} has an answer already")
            seen.add(answer.question.id)
            yield answer


def _parse_pair(pair: object, persona: Persona, task: PersonaGymTask, where: str) -> SavedAnswer:
    """One saved answer. A null, which some endpoints return for an empty reply, is a missing answer too. Raises DataError."""
    if not isinstance(pair, list) or len(pair) != 2 or not isinstance(pair[1], str | None):
        raise DataError(f"{where} = {quote_value(pair)}: must be [question, answer], two texts")
    try:
        question = make_personagym_question(persona, task, pair[0])
    except ValueError as error:
        raise DataError(f"{where}: question = {quote_value(pair[0])}: {error}") from error
    return SavedAnswer(question, None if pair[1] is None or pair[1].strip() in FAILED_CALL_TEXTS else pair[1], where)


def _with_question_ids(
    saved: Sequence[SavedAnswer], gym_questions: Sequence[PersonaGymQuestion], questions: Path
) -> Iterator[SavedAnswer]:
    """The answers with the question ids of the folder `questions`. Raises DataError for a question that is not in it."""
    known = {(one.persona_id, one.task, canonical_text(one.text)): one for one in gym_questions}
    for one in saved:
        key = (one.question.persona_id, one.question.task, canonical_text(one.question.text))
        if key not in known:
            raise DataError(f"{one.where}: question {quote_value(one.question.text)} is not in {questions}")
        yield one._replace(question=known[key])


def _to_cell(saved: SavedAnswer) -> Cell:
    """The cell of an answer. Its only message is the question, since PersonaGym does not save the persona's prompt."""
    result: dict[str, Completion | Failure] = {"failure": Failure(type="NoAnswer", message="PersonaGym's call failed")}
    if saved.text is not None:
        result = {"completion": Completion(text=saved.text, prompt_tokens=None, completion_tokens=None, finish=None)}
    messages = (Message(role="user", content=saved.question.text),)
    cell = Cell(persona_id=saved.question.persona_id, question_id=saved.question.id, seed=0, messages=messages)
    return cell.model_copy(update=result)
