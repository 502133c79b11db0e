"""`permix questions`: questions for one's own personas, written by a model, checked and kept.

    records.jsonl      one `Cell` a call, whatever came of it
    questions.jsonl    one `GymQuestion` a line: those of each persona's tasks that have all of theirs
    examples.jsonl     one `ScoreExample` a line, where examples were asked for
    metrics.json       calls, what was kept, what was left out and why, tokens

Both files are made anew from the records whenever a start ends, also when it is interrupted.
"""

from collections.abc import Iterable
from functools import partial
from pathlib import Path

from permix.config import GymTask, QuestionsStage
from permix.errors import ConfigError, DataError, OwedCellsError
from permix.gym import work as gym
from permix.gym.asking import book_of, have_written
from permix.gym.names import TASKS
from permix.gym.prompts import builtin_situations, wording_hash
from permix.gym.read import read_gym
from permix.gym.sift import bare
from permix.gym.tally import Written, tally, words
from permix.gym.work import Work
from permix.models import Model, open_model
from permix.personas.choose import choose_personas
from permix.personas.load import plain_text
from permix.personas.rows import read_rows, show
from permix.progress import say
from permix.records import RunDir, write_json, write_text
from permix.types import Record, digest

WANTED = {"situations": gym.wanted_situations, "questions": gym.wanted_questions, "examples": gym.wanted_examples}
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
    first = [one.cell(config.seed) for one in (*gym.wanted_situations(work, {}), *gym.wanted_examples(work, {}))]
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
        _write_lines(run.path / "questions.jsonl", gym.whole_questions(work, book))
    if work.examples:
        _write_lines(run.path / "examples.jsonl", gym.whole_examples(work, book))
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
    from permix.judging.rubrics import load_rubrics

    rubrics = load_rubrics("permix", TASKS)
    before = {task: rubrics[task].template.partition("{persona}")[0].strip() for task in TASKS}
    return {task: text.rpartition("\n\n")[0] for task, text in before.items()}  # without the heading of what follows


def _write_lines(path: Path, records: Iterable[Record]) -> None:
    write_text(path, "".join(one.model_dump_json() + "\n" for one in records))
