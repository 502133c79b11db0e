"""`permix questions`: questions for one's own personas, written by a model, checked and kept.

    records.jsonl      one `Cell` a call, whatever came of it
    questions.jsonl    one `GymQuestion` a line: those of each persona's tasks that have all of theirs
    examples.jsonl     one `ScoreExample` a line, where examples were asked for
    metrics.json       calls, what was kept, what was left out and why, tokens

Both files are made anew from the records whenever a start ends, also when it is interrupted.

What `permix questions` is to have written, what of it is there, and which calls are wanted for the rest.

All of it follows from the configuration and the replies so far. First each persona's situations are chosen, then questions are
written in them, task by task, then examples of answers to the questions of the tasks that have theirs.

What came of a run of `permix questions`, counted from its records.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from permix.config import GymTask, QuestionsStage
from permix.errors import ConfigError, DataError, OwedCellsError
from permix.inference import open_model
from permix.inference.base import Model
from permix.personas.loading import plain_text
from permix.personas.personagym import TASKS, GymQuestion, ScoreExample, as_question, read_gym
from permix.personas.pool import choose_personas
from permix.progress import say
from permix.question_writer.parsing import (
    LEAST_SITUATIONS,
    SCORE_KEYS,
    Sifted,
    bare,
    examples_of,
    questions_of,
    setting_of,
    situations_of,
)
from permix.question_writer.requests import (
    Book,
    Slot,
    Wanted,
    ask_examples,
    ask_questions,
    ask_situations,
    book_of,
    builtin_situations,
    have_written,
    wording_hash,
)
from permix.sanitize import visible
from permix.storage.files import write_json, write_text
from permix.storage.rows import read_rows, show
from permix.storage.run_dir import RunDir
from permix.types import Cell, CellKey, Persona, Record, digest, seed_from


class Work(NamedTuple):
    """`listed`: situations to choose from. `given`: questions that are there already, so that none are written. `examples`:
    whether example answers are wanted. `criteria`: of each task, what earns which score.
    """

    personas: tuple[Persona, ...]
    tasks: tuple[GymTask, ...]
    n: int
    listed: tuple[str, ...]
    given: tuple[GymQuestion, ...]
    examples: bool
    criteria: Mapping[GymTask, str]

    @property
    def least(self) -> int:
        """Situations that a persona needs."""
        return min(LEAST_SITUATIONS, len(self.listed))


SETTINGS, EXAMPLES_OF = "settings", "examples of "
"""What cells of situations and of examples are named by; those of questions are named by their task."""


def situations_slot(persona: Persona) -> Slot:
    return Slot(persona.id, SETTINGS)


def examples_slot(question: GymQuestion) -> Slot:
    return Slot(question.persona_id, f"{EXAMPLES_OF}{question.id}")


# Of one persona, one question


def situations(work: Work, book: Book, persona: Persona) -> Sifted:
    return situations_of(book.get(situations_slot(persona), ()), work.listed)


def questions_for(work: Work, book: Book, persona: Persona) -> dict[GymTask, Sifted]:
    return questions_of({task: book.get(Slot(persona.id, task), ()) for task in work.tasks}, work.n)


def examples(book: Book, question: GymQuestion) -> Sifted:
    return examples_of(book.get(examples_slot(question), ()))


# Which calls are wanted


def wanted_situations(work: Work, book: Book) -> list[Wanted]:
    found = []
    for persona in () if work.given else work.personas:
        slot, chosen = situations_slot(persona), situations(work, book, persona).kept
        if len(chosen) < work.least:
            prompt = ask_situations(persona.text, _dealt(work.listed, persona), chosen)
            found.append(Wanted(slot, persona.id, len(book.get(slot, ())), work.least - len(chosen), prompt))
    return found


def wanted_questions(work: Work, book: Book) -> list[Wanted]:
    """Of the personas that have their situations."""
    found = []
    for persona in () if work.given else work.personas:
        chosen = situations(work, book, persona).kept
        if len(chosen) < work.least:
            continue
        for task, there in questions_for(work, book, persona).items():
            slot, missing = Slot(persona.id, task), work.n - len(there.kept)
            if missing:
                prompt = ask_questions(persona.text, task, chosen, missing, there.kept)
                found.append(Wanted(slot, persona.id, len(book.get(slot, ())), missing, prompt))
    return found


def wanted_examples(work: Work, book: Book) -> list[Wanted]:
    found = []
    for question in whole_questions(work, book) if work.examples else ():
        slot = examples_slot(question)
        if not examples(book, question).kept:
            prompt = ask_examples(question.persona, question.text, work.criteria[question.task])
            found.append(Wanted(slot, question.id, len(book.get(slot, ())), len(SCORE_KEYS), prompt))
    return found


# What is there


def whole_questions(work: Work, book: Book) -> tuple[GymQuestion, ...]:
    """The given ones; else those of the tasks that have all of theirs, persona by persona."""
    return work.given or tuple(
        _question(persona, task, text, situations(work, book, persona).kept)
        for persona in work.personas
        for task, there in questions_for(work, book, persona).items()
        if len(there.kept) == work.n
        for text in there.kept
    )


def whole_examples(work: Work, book: Book) -> tuple[ScoreExample, ...]:
    return tuple(
        ScoreExample(question_id=question.id, score=score, text=text)
        for question in (whole_questions(work, book) if work.examples else ())
        for score, text in enumerate(examples(book, question).kept, start=1)
    )


def owed(work: Work, book: Book) -> list[str]:
    """What is not there, in words."""
    found = [f"situations of {one.slot.persona_id!r}" for one in wanted_situations(work, book)]
    found += [
        f"{one.slot.persona_id!r} × {one.slot.name} ({work.n - one.missing} of {work.n} questions)"
        for one in wanted_questions(work, book)
    ]
    return found + [one.slot.name for one in wanted_examples(work, book)]


def _dealt(listed: Sequence[str], persona: Persona) -> list[str]:
    """The list in an order of this persona's own: a model that hardly chooses takes what stands first."""
    return sorted(listed, key=lambda one: seed_from("situation", persona.text, one))


def _question(persona: Persona, task: GymTask, text: str, chosen: Sequence[str]) -> GymQuestion:
    return as_question(persona, task, text).model_copy(update={"setting": setting_of(text, chosen)})


class Part(Record):
    """`kept`: situations, questions or example answers that can be used. `refused`: those that cannot, by reason."""

    calls: int
    failed: int
    kept: int
    refused: dict[str, int]


class Written(Record):
    """`owed` names what is missing; `last_failure` is what the last call said that failed. Tokens are those of all calls."""

    situations: Part
    questions: Part
    examples: Part
    prompt_tokens: int
    completion_tokens: int
    owed: tuple[str, ...]
    last_failure: str | None


def tally(work: Work, cells: Mapping[CellKey, Cell]) -> Written:
    """Every number of a run, from its records alone."""
    book, calls = book_of(cells), list(cells.values())
    questions = {} if work.given else {persona.id: questions_for(work, book, persona) for persona in work.personas}
    by_part: dict[str, list[Cell]] = {"situations": [], "questions": [], "examples": []}
    for cell in calls:
        by_part[_part_of(cell)].append(cell)
    charged = [part for cell in calls if (part := cell.completion or cell.failure)]
    failures = [cell.failure for cell in calls if cell.failure]
    return Written(
        situations=_part(by_part["situations"], [] if work.given else [situations(work, book, one) for one in work.personas]),
        questions=_part(by_part["questions"], [one for tasks in questions.values() for one in tasks.values()]),
        examples=_part(by_part["examples"], [examples(book, one) for one in whole_questions(work, book)]),
        prompt_tokens=sum(part.prompt_tokens or 0 for part in charged),
        completion_tokens=sum(part.completion_tokens or 0 for part in charged),
        owed=tuple(owed(work, book)),
        last_failure=visible(f"{failures[-1].type}: {failures[-1].message}") if failures else None,
    )


def words(written: Written) -> list[str]:
    """What a person is told at the end, a line a part."""
    parts = {"situations": written.situations, "questions": written.questions, "example answers": written.examples}
    lines = []
    for name, part in parts.items():
        if part.calls:
            refused = ", ".join(f"{reason} {n}" for reason, n in part.refused.items())
            failed = f", {part.failed} failed" if part.failed else ""
            lines.append(f"{name}: {part.kept} kept, of {part.calls} calls{failed}; left out: {refused or 'none'}")
    return [*lines, f"tokens: {written.prompt_tokens} read, {written.completion_tokens} written"]


def _part_of(cell: Cell) -> str:
    if cell.question_id == SETTINGS:
        return "situations"
    return "examples" if cell.question_id.startswith(EXAMPLES_OF) else "questions"


def _part(calls: Iterable[Cell], sifted: Iterable[Sifted]) -> Part:
    calls, sifted = list(calls), list(sifted)
    refused = sum((one.refused for one in sifted), Counter[str]())
    return Part(
        calls=len(calls),
        failed=sum(cell.failure is not None for cell in calls),
        kept=sum(len(one.kept) for one in sifted),
        refused=dict(sorted(refused.items(), key=lambda item: (-item[1], item[0]))),
    )


WANTED = {"situations": wanted_situations, "questions": wanted_questions, "examples": wanted_examples}

SITUATION_CHARS = 200

NAMED = 5
"""Of what is owed, so many are named."""


def write_questions(config: QuestionsStage) -> Path:
    """Have them written, or go on; returns the file of questions, or of examples where the questions were given.

    Raises OwedCellsError, naming what is missing, when not all of it could be had.
    """
    work = set_up(config)
    result = write(open_model(config.model, config.threads), config, work)
    for line in words(result):
        say(line)
    if result.owed:
        named = ", ".join(result.owed[:NAMED]) + (f" and {len(result.owed) - NAMED} more" if len(result.owed) > NAMED else "")
        failed = f"; the last call that failed said {result.last_failure}" if result.last_failure else ""
        raise OwedCellsError(f"{config.out}: missing are {named}{failed}; run the same command again to have them written")
    return config.out / ("examples.jsonl" if work.given else "questions.jsonl")


def set_up(config: QuestionsStage) -> Work:
    """What is to be written. Raises ConfigError or DataError for whatever can be found wrong without a model."""
    tasks = tuple(task for task in TASKS if not config.tasks or task in config.tasks)
    rest = (config.examples, _criteria())
    if config.personagym.path or config.personagym.hub:
        source = config.personagym.model_copy(update={"tasks": config.tasks or config.personagym.tasks})
        personas, given = read_gym(source)
        return Work(personas, tasks, config.n, (), given, *rest)
    return Work(choose_personas(config.personas).personas, tasks, config.n, read_situations(config.settings), (), *rest)


def write(model: Model, config: QuestionsStage, work: Work) -> Written:
    """`write_questions` by a model that is there already; what is owed stands in the result."""
    first = [one.cell(config.seed) for one in (*wanted_situations(work, {}), *wanted_examples(work, {}))]
    with RunDir.open(config.out, config, _identity(model, config, work), first) as run:
        try:
            with run.accounted():
                for what, wanted in WANTED.items():
                    have_written(model, config, run, partial(wanted, work), what)
        finally:
            result = _settle(run, work)
    return result


def _settle(run: RunDir, work: Work) -> Written:
    """What the records amount to, as files."""
    cells = run.cells()
    book = book_of(cells)
    if not work.given:
        _write_lines(run.path / "questions.jsonl", whole_questions(work, book))
    if work.examples:
        _write_lines(run.path / "examples.jsonl", whole_examples(work, book))
    result = tally(work, cells)
    write_json(run.path / "metrics.json", result)
    return result


def read_situations(path: Path | None) -> tuple[str, ...]:
    """The built-in list, or a text file's lines."""
    if path is None:
        return builtin_situations()
    if not path.is_file():
        raise ConfigError(
            f"settings = {path}: no such file; give a .txt file with a situation a line, or leave it out for the built-in list"
        )
    found: dict[str, str] = {}
    for row in read_rows(path, "situation", (".txt",)):
        try:
            text = plain_text(row.fields["text"])
        except ValueError as error:
            raise DataError(f"{row.where}: {show(row.fields['text'])}: {error}") from error
        if len(text) > SITUATION_CHARS:
            raise DataError(f"{row.where}: {show(text)}: {len(text)} characters; a situation has at most {SITUATION_CHARS}")
        if bare(text) in found:
            raise DataError(f"{row.where}: {show(text)}: stands there before as {show(found[bare(text)])}; give each once")
        found[bare(text)] = text
    return tuple(found.values())


def _identity(model: Model, config: QuestionsStage, work: Work) -> dict[str, object]:
    return {
        "model": model.fingerprint,
        "sampling": config.sampling.model_dump(),
        "seed": config.seed,
        "wording": wording_hash(),
        "criteria": digest(*(f"{task}\n{text}" for task, text in sorted(work.criteria.items()))),
        "questions": "given" if work.given else {"n": work.n, "tasks": list(work.tasks), "situations": digest(*work.listed)},
    }


def _criteria() -> dict[GymTask, str]:
    """Of each task, what earns which score: what stands before the character in the rubrics that we wrote."""
    from permix.judges.prompts import load_rubrics

    rubrics = load_rubrics("permix", TASKS)
    before = {task: rubrics[task].template.partition("{persona}")[0].strip() for task in TASKS}
    return {task: text.rpartition("\n\n")[0] for task, text in before.items()}  # without the heading of what follows


def _write_lines(path: Path, records: Iterable[Record]) -> None:
    write_text(path, "".join(one.model_dump_json() + "\n" for one in records))
