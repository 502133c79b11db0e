"""`permix import --personagym`: answers that PersonaGym's code or a fork of it has saved, as a fidelity run that can be judged.

A folder holds `{persona}_qa.json` of one model: task → [[question, answer], ...]. The released code and the forks that were
looked at (OpenCharacter's among them) write the same. Contract: nothing is generated, nothing is scored, and everything is read
before anything is written. What the code wrote in place of an answer when its calls had failed is a missing answer, and counted.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from permix.config import GymConfig, GymTask, ImportedAnswers, ImportedModel, ImportStage
from permix.errors import DataError
from permix.evals.fidelity_runner import write_metrics
from permix.evals.personagym import GymAnswers, asked_of, measure
from permix.personas.personagym import GymQuestion, as_persona, as_question, persona_files, read_gym, read_value, task_named
from permix.progress import say
from permix.storage.files import write_json
from permix.storage.rows import show
from permix.storage.run_dir import RunDir
from permix.types import Cell, Completion, Failure, Message, Persona, normalise

ENDING = "_qa.json"

FAILED = frozenset({"Error", "As an AI Model I cannot answer"})
"""What stands for an answer where every call had failed, for OpenAI's and Together's models and for Anthropic's."""


class Answers(NamedTuple):
    """Of one model. `cells`: what was answered, or failed; a question without a cell is missing."""

    personas: tuple[Persona, ...]
    questions: tuple[GymQuestion, ...]
    cells: tuple[Cell, ...]

    @property
    def failed(self) -> int:
        return sum(cell.completion is None for cell in self.cells)


def import_answers(config: ImportStage, folder: Path) -> GymAnswers:
    """Read, check and write the run. Raises ConfigError or DataError before anything is written."""
    found = read_answers(folder, config.personagym_questions)
    name = folder.resolve().name
    about = ImportedAnswers(
        label=config.label, model=ImportedModel(name=name), personagym=GymConfig(path=config.personagym_questions or folder),
        seed=config.seed, resamples=config.resamples, imported=config,
    )  # fmt: skip
    identity = {"model": name, "kind": "personagym", "imported": "personagym"}
    with RunDir.open(config.out, about, identity, found.cells) as run:
        write_json(run.path / "asked.json", asked_of(found.personas, found.questions, ()))
        known = run.cells()
        run.append(cell for cell in found.cells if known.get(cell.key) != cell)
        result = measure(run.path)
        write_metrics(run.path, result)
    say(f"imported {result.answers.n_answered} answers of {result.n_personas} personas")
    if missing := result.answers.n_asked - result.answers.n_answered:
        say(f"note: {missing} of {result.answers.n_asked} answers are missing, {found.failed} of them failed calls")
    return result


def describe_answers(config: ImportStage, folder: Path) -> dict[str, str]:
    """What an import would make, for `permix check`."""
    found = read_answers(folder, config.personagym_questions)
    return {
        "model": folder.resolve().name,
        "personas": str(len(found.personas)),
        "questions": str(len(found.questions)),
        "answers": f"{len(found.cells) - found.failed}, and {found.failed} failed calls",
    }


def read_answers(folder: Path, questions: Path | None) -> Answers:
    """Everything in a folder of results, held to the questions that were to be answered where they are given."""
    if not folder.is_dir():
        raise DataError(f"personagym = {folder}: no such folder")
    files = persona_files(folder, ENDING)
    if not files.exact:
        raise DataError(f"personagym = {folder}: holds no file *{ENDING}")
    if questions is None:
        answered = [one for text, file in files.exact.items() for one in _answered(file, _persona(text, file))]
        personas = {one.question.persona_id: Persona(id=one.question.persona_id, text=one.question.persona) for one in answered}
        return Answers(tuple(personas.values()), tuple(one.question for one in answered), tuple(map(_cell, answered)))
    everybody, asked = read_gym(GymConfig(path=questions))
    of_persona = {persona.id: file for persona in everybody if (file := files.get(persona.text)) is not None}
    for file in set(files.exact.values()) - set(of_persona.values()):
        raise DataError(f"{file}: no persona of {questions} is called so")
    answered = [one for persona in everybody if persona.id in of_persona for one in _answered(of_persona[persona.id], persona)]
    return Answers(everybody, asked, tuple(_cell(one) for one in _known(answered, asked, questions)))


class Answered(NamedTuple):
    """A question and what stands beside it; None where that is no answer."""

    question: GymQuestion
    text: str | None
    where: str


def _persona(text: str, file: Path) -> Persona:
    try:
        return as_persona(text)
    except ValueError as error:
        raise DataError(f"{file}: its name is no persona: {error}") from error


def _answered(file: Path, persona: Persona) -> Iterator[Answered]:
    fields, seen = read_value(file), set[str]()
    if not isinstance(fields, dict):
        raise DataError(f"{file}: must hold an object, task → [[question, answer], ...]")
    for name, pairs in fields.items():
        task = task_named(name, str(file))
        if not isinstance(pairs, list):
            raise DataError(f"{file}: task {task!r}: must be a list of [question, answer]")
        for place, pair in enumerate(pairs, 1):
            found = _pair(pair, persona, task, f"{file}: task {task!r}, answer {place}")
            if found.question.id in seen:
                raise DataError(f"{found.where}: question {show(found.question.text)} is answered before")
            seen.add(found.question.id)
            yield found


def _pair(pair: object, persona: Persona, task: GymTask, where: str) -> Answered:
    """A null is what an endpoint gave that had nothing to say; it is no answer either."""
    if not isinstance(pair, list) or len(pair) != 2 or not isinstance(pair[1], str | None):
        raise DataError(f"{where} = {show(pair)}: must be [question, answer], two texts")
    try:
        question = as_question(persona, task, pair[0])
    except ValueError as error:
        raise DataError(f"{where}: question = {show(pair[0])}: {error}") from error
    return Answered(question, None if pair[1] is None or pair[1].strip() in FAILED else pair[1], where)


def _known(answered: Sequence[Answered], asked: Sequence[GymQuestion], questions: Path) -> Iterator[Answered]:
    """The same with the ids that the questions have where they were asked from. DataError for one that was not asked."""
    known = {(one.persona_id, one.task, normalise(one.text)): one for one in asked}
    for one in answered:
        key = (one.question.persona_id, one.question.task, normalise(one.question.text))
        if key not in known:
            raise DataError(f"{one.where}: question {show(one.question.text)} is none of {questions}")
        yield one._replace(question=known[key])


def _cell(one: Answered) -> Cell:
    """Of the messages only the question is known: the code and its forks bring a persona in by words of their own."""
    said: dict[str, Completion | Failure] = {"failure": Failure(type="NoAnswer", message="PersonaGym's call failed")}
    if one.text is not None:
        said = {"completion": Completion(text=one.text, prompt_tokens=None, completion_tokens=None, finish=None)}
    messages = (Message(role="user", content=one.question.text),)
    cell = Cell(persona_id=one.question.persona_id, question_id=one.question.id, seed=0, messages=messages)
    return cell.model_copy(update=said)
