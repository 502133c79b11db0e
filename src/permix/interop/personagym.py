"""`permix import --personagym`: answers that PersonaGym's code or a fork of it has saved, as a fidelity run that can be judged.

A folder holds `{persona}_qa.json` of one model: task → [[question, answer], ...]. The released code and the forks that were
looked at (OpenCharacter's among them) write the same. Contract: nothing is generated, nothing is scored, and everything is read
before anything is written. What the code wrote in place of an answer when its calls had failed is a missing answer, and counted.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from permix.config import ImportConfig, ImportedFidelityConfig, ImportedModelConfig, PersonaGymConfig, PersonaGymTask
from permix.errors import DataError
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
from permix.types import Cell, Completion, Failure, Message, Persona, canonical_text

ANSWERS_FILE_SUFFIX = "_qa.json"

FAILED_CALL_TEXTS = frozenset({"Error", "As an AI Model I cannot answer"})
"""What stands for an answer where every call had failed, for OpenAI's and Together's models and for Anthropic's."""


class PersonaGymImport(NamedTuple):
    """Of one model. `cells`: what was answered, or failed; a question without a cell is missing."""

    personas: tuple[Persona, ...]
    questions: tuple[PersonaGymQuestion, ...]
    cells: tuple[Cell, ...]

    @property
    def n_failed(self) -> int:
        return sum(cell.completion is None for cell in self.cells)


def import_personagym_answers(config: ImportConfig, folder: Path) -> PersonaGymCounts:
    """Read, check and write the run. Raises ConfigError or DataError before anything is written."""
    found = read_personagym_answers(folder, config.personagym_questions)
    name = folder.resolve().name
    about = ImportedFidelityConfig(
        label=config.label,
        model=ImportedModelConfig(name=name),
        personagym=PersonaGymConfig(path=config.personagym_questions or folder),
        seed=config.seed,
        resamples=config.resamples,
        imported=config,
    )
    identity = {"model": name, "kind": "personagym", "imported": "personagym"}
    with RunDir.open(config.out, about, identity, found.cells) as run:
        write_json(run.path / "grid.json", describe_personagym(found.personas, found.questions, ()))
        known = run.cells()
        run.append(cell for cell in found.cells if known.get(cell.key) != cell)
        result = count_personagym_answers(run.path)
        write_fidelity_metrics(run.path, result, measure_text_metrics(run.path))
    print_status(f"imported {result.answers.n_answered} answers of {result.n_personas} personas")
    if missing := result.answers.n_asked - result.answers.n_answered:
        print_status(f"note: {missing} of {result.answers.n_asked} answers are missing, {found.n_failed} of them failed calls")
    return result


def describe_personagym_import(config: ImportConfig, folder: Path) -> dict[str, str]:
    """What an import would make, for `permix check`."""
    found = read_personagym_answers(folder, config.personagym_questions)
    return {
        "model": folder.resolve().name,
        "personas": str(len(found.personas)),
        "questions": str(len(found.questions)),
        "answers": f"{len(found.cells) - found.n_failed}, and {found.n_failed} failed calls",
    }


def read_personagym_answers(folder: Path, questions: Path | None) -> PersonaGymImport:
    """Everything in a folder of results, held to the questions that were to be answered where they are given."""
    if not folder.is_dir():
        raise DataError(f"personagym = {folder}: no such folder")
    files = index_persona_files(folder, ANSWERS_FILE_SUFFIX)
    if not files.by_name:
        raise DataError(f"personagym = {folder}: holds no file *{ANSWERS_FILE_SUFFIX}")
    if questions is None:
        answered = [one for text, file in files.by_name.items() for one in _read_answers_file(file, _parse_persona(text, file))]
        personas = {one.question.persona_id: Persona(id=one.question.persona_id, text=one.question.persona) for one in answered}
        return PersonaGymImport(tuple(personas.values()), tuple(one.question for one in answered), tuple(map(_to_cell, answered)))
    everybody, asked = read_personagym(PersonaGymConfig(path=questions))
    of_persona = {persona.id: file for persona in everybody if (file := files.find(persona.text)) is not None}
    for file in set(files.by_name.values()) - set(of_persona.values()):
        raise DataError(f"{file}: no persona of {questions} is called so")
    answered = [
        one for persona in everybody if persona.id in of_persona for one in _read_answers_file(of_persona[persona.id], persona)
    ]
    return PersonaGymImport(everybody, asked, tuple(_to_cell(one) for one in _with_question_ids(answered, asked, questions)))


class SavedAnswer(NamedTuple):
    """A question and what stands beside it; None where that is no answer."""

    question: PersonaGymQuestion
    text: str | None
    where: str


def _parse_persona(text: str, file: Path) -> Persona:
    try:
        return persona_from_personagym(text)
    except ValueError as error:
        raise DataError(f"{file}: its name is no persona: {error}") from error


def _read_answers_file(file: Path, persona: Persona) -> Iterator[SavedAnswer]:
    fields, seen = read_json_value(file), set[str]()
    if not isinstance(fields, dict):
        raise DataError(f"{file}: must hold an object, task → [[question, answer], ...]")
    for name, pairs in fields.items():
        task = parse_task_name(name, str(file))
        if not isinstance(pairs, list):
            raise DataError(f"{file}: task {task!r}: must be a list of [question, answer]")
        for place, pair in enumerate(pairs, 1):
            found = _parse_pair(pair, persona, task, f"{file}: task {task!r}, answer {place}")
            if found.question.id in seen:
                raise DataError(f"{found.where}: question {quote_value(found.question.text)} is answered before")
            seen.add(found.question.id)
            yield found


def _parse_pair(pair: object, persona: Persona, task: PersonaGymTask, where: str) -> SavedAnswer:
    """A null is what an endpoint gave that had nothing to say; it is no answer either."""
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
    """The same with the ids that the questions have where they were asked from. DataError for one that was not asked."""
    known = {(one.persona_id, one.task, canonical_text(one.text)): one for one in gym_questions}
    for one in saved:
        key = (one.question.persona_id, one.question.task, canonical_text(one.question.text))
        if key not in known:
            raise DataError(f"{one.where}: question {quote_value(one.question.text)} is none of {questions}")
        yield one._replace(question=known[key])


def _to_cell(saved: SavedAnswer) -> Cell:
    """Of the messages only the question is known: the code and its forks bring a persona in by words of their own."""
    said: dict[str, Completion | Failure] = {"failure": Failure(type="NoAnswer", message="PersonaGym's call failed")}
    if saved.text is not None:
        said = {"completion": Completion(text=saved.text, prompt_tokens=None, completion_tokens=None, finish=None)}
    messages = (Message(role="user", content=saved.question.text),)
    cell = Cell(persona_id=saved.question.persona_id, question_id=saved.question.id, seed=0, messages=messages)
    return cell.model_copy(update=said)
