"""What the logs of one model hold, gathered into one grid; what does not belong together is refused.

Contract: a reader turns each log into a `Source`, whose cells are ours already. `gather` puts them together only when they asked
the same model the same questions in the same way, and raises DataError naming the field that differs otherwise. Cells that one
persona lacks are no difference: they are missing, and counted as such.

A stability run as the writers of other programs' files want it.

Contract: from the records alone; DataError for what is no stability run, holds no records, or is more than a log can say.

A score of another program as a verdict of ours: right, wrong, or none.

Contract: 1 is right and 0 is wrong, in whatever dress the program gives them. NaN and None are no score. Whatever lies between
has no place in a verdict and is refused with its value: rounding it would invent a result.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from permix.config import ImportedSampling
from permix.errors import ConfigError, DataError
from permix.evals.grid import Answers, read_answers
from permix.evals.stability import read_rounds
from permix.storage.files import read_json
from permix.types import Cell, CellKey, Persona, Question, Verdict, digest, normalise


class Exported(NamedTuple):
    """What the writers are given: a run's configuration and identity, when it was made, and its grid."""

    config: Mapping[str, Any]
    identity: Mapping[str, Any]
    created: str
    answers: Answers

    @property
    def model(self) -> str:
        return str(self.config["model"]["name"])

    @property
    def task(self) -> str:
        return str(self.identity["task"])

    @property
    def date(self) -> str:
        """As both programs write it into a file's name."""
        return self.created[:19].replace(":", "-")

    @property
    def sampling(self) -> Mapping[str, Any]:
        sampling: Mapping[str, Any] = self.config["sampling"]
        return sampling

    def cells(self, persona_id: str | None) -> list[Cell]:
        """The recorded cells of one persona, in the order they were asked."""
        every = (
            self.answers.get(persona_id, question, sample)
            for question in self.answers.question_ids
            for sample in range(self.answers.samples)
        )
        return [cell for cell in every if cell is not None]


def read_run(path: Path) -> Exported:
    config = read_json(path / "config.json")
    if config.get("stage") != "stability":
        raise DataError(f"{path}: config.json has stage {config.get('stage')!r}; a stability run can be exported")
    provenance = read_json(path / "provenance.json")
    answers = read_answers(path)
    if not answers.grid:
        raise DataError(f"{path}: holds no records yet")
    if read_rounds(path):
        raise DataError(f"{path}: its cells were spent where they decide (budget, precision); a log knows of whole grids alone")
    if answers.templates != ("",):
        raise DataError(f"{path}: asks in {len(answers.templates)} wordings (templates); a log knows of one")
    return Exported(config, provenance["identity"], provenance["created"], answers)


def slug(text: str) -> str:
    """A part of a file's name that reads like the text; different texts may have the same."""
    return re.sub(r"[^a-z0-9]+", "-", text.casefold()).strip("-")[:40]


WORDS = {"C": True, "I": False, "N": False}
"""inspect_ai's letters: correct, incorrect, no answer. Its P, partially correct, is neither right nor wrong."""


def verdict_of(value: Any, extracted: str | None, *, field: str, where: str) -> Verdict:
    """Raises DataError naming the field and the value of what is neither 0 nor 1 nor missing."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return Verdict(correct=None, extracted=extracted, error=f"{field} is {value}: not scored")
    if isinstance(value, str) and value in WORDS:
        return Verdict(correct=WORDS[value], extracted=extracted)
    if isinstance(value, bool | int | float) and value in (0, 1):
        return Verdict(correct=bool(value), extracted=extracted)
    raise DataError(
        f"{where}: {field} = {value!r}: a verdict is right or wrong (1 or 0, true or false, C or I); name another score with "
        "--metric, or have every answer judged again with --answer"
    )


def chosen(found: list[str], wanted: str | None, *, field: str, where: str) -> str:
    """The one that counts, of those there are. Raises DataError naming them when it is not there, or was not chosen."""
    if wanted is None and len(found) == 1:
        return found[0]
    if wanted in found:
        return str(wanted)
    known = ", ".join(found) or "none"
    if wanted is None and found:
        raise DataError(f"{where}: more than one {field}: {known}; choose with --{field}")
    raise DataError(
        f"{where}: {field} {'is missing' if wanted is None else f'= {wanted!r}: there is no such one'}; it has {known}"
    )


NONE = "none"
"""The name that means no persona, where a persona is named on the command line."""

SHOWN = 80


class Entry(NamedTuple):
    """One "NAME=PATH" or "PATH" of a configuration; `name` is None where the log itself says who was asked."""

    name: str | None
    path: Path

    @property
    def persona_id(self) -> str | None:
        """Of an entry with a name."""
        return None if self.name == NONE else self.name


class Answered(NamedTuple):
    """A cell of a log. `words`: the question as it was put, without the persona; None where the two cannot be told apart."""

    cell: Cell
    words: str | None
    where: str


class Source(NamedTuple):
    """One log: what must be the same in all of them, who was asked (id → text), and the cells.

    `details` is all else that must agree; `question_ids` those that were asked, also without a cell; `born` the identity of the
    permix run that the log was exported from.
    """

    where: str
    model: str
    task: str
    sampling: ImportedSampling
    judge: str
    details: Mapping[str, Any]
    personas: Mapping[str, str]
    answered: Sequence[Answered]
    question_ids: Sequence[str] = ()
    samples: int = 1
    default_system: str | None = None
    born: Mapping[str, Any] | None = None

    @property
    def agreed(self) -> dict[str, Any]:
        plain = {"model": self.model, "task": self.task, "sampling": self.sampling.model_dump(), "judge": self.judge}
        return plain | dict(self.details) | ({"permix": dict(self.born)} if self.born else {})


class Gathered(NamedTuple):
    """The grid of all sources. `first` speaks for all where they agree."""

    first: Source
    personas: tuple[Persona, ...]
    questions: tuple[Question, ...]
    samples: int
    cells: tuple[Cell, ...]
    default_system: str | None


def entries(given: Sequence[str], field: str) -> list[Entry]:
    """Raises ConfigError for an empty name or path, and for a name or a path that was given twice."""
    found = [_entry(one, field) for one in given]
    for kind, values in (("name", [one.name for one in found]), ("path", [one.path.resolve() for one in found])):
        known = [one for one in values if one is not None]
        for value in known:
            if known.count(value) > 1:
                raise ConfigError(f"{field}: the {kind} {str(value)!r} is given twice; every persona has logs of its own")
    return found


def _entry(text: str, field: str) -> Entry:
    name, equals, path = text.partition("=")
    if not equals:
        name, path = "", text
    if not path.strip() or (equals and not name.strip()):
        raise ConfigError(f"{field} = {text!r}: give NAME=PATH, {NONE}=PATH for no persona, or a PATH")
    return Entry(name.strip() or None, Path(path).expanduser())


def gather(sources: Sequence[Source]) -> Gathered:
    """One grid of all sources. Raises DataError for a mixture, naming what differs and where."""
    first = sources[0]
    for other in sources[1:]:
        refuse_difference(first.agreed, other.agreed, first.where, other.where)
    personas = _personas(sources)
    by_key = _each_once(one for source in sources for one in source.answered)
    if not by_key:
        raise DataError(f"{first.where}: holds no answers")
    return Gathered(
        first=first,
        personas=personas,
        questions=_questions(first, [one for source in sources for one in source.question_ids], list(by_key.values())),
        samples=max(*(source.samples for source in sources), *(key.sample + 1 for key in by_key), 1),
        cells=tuple(one.cell for one in by_key.values()),
        default_system=next((source.default_system for source in sources if source.default_system is not None), None),
    )


def refuse_difference(one: Any, two: Any, here: str, there: str, field: str = "") -> None:
    """Raise DataError for the first field, however deep, in which two descriptions differ."""
    if isinstance(one, Mapping) and isinstance(two, Mapping):
        for key in dict.fromkeys([*one, *two]):
            refuse_difference(one.get(key), two.get(key), here, there, f"{field}.{key}" if field else str(key))
    elif one != two:
        raise DataError(
            f"{there}: {field} = {shown(two)}, and {here} has {shown(one)}; one run is one model asked the same in the same way"
        )


def shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."


def _personas(sources: Sequence[Source]) -> tuple[Persona, ...]:
    """By first appearance. One text under two names is one persona asked twice; one name for two texts is a mixture."""
    text_of: dict[str, tuple[str, str]] = {}
    id_of: dict[str, str] = {}
    for source in sources:
        for id, text in source.personas.items():
            known, where = text_of.setdefault(id, (text, source.where))
            if known != text:
                raise DataError(f"{source.where}: persona {id!r} is {shown(text)}, and in {where} it is {shown(known)}")
            if id_of.setdefault(text, id) != id:
                raise DataError(f"{source.where}: personas {id_of[text]!r} and {id!r} are the same: {shown(text)}")
    return tuple(Persona(id=id, text=text) for id, (text, _) in text_of.items())


def _each_once(answered: Iterable[Answered]) -> dict[CellKey, Answered]:
    found: dict[CellKey, Answered] = {}
    for one in answered:
        other = found.setdefault(one.cell.key, one)
        if other is not one:
            who = "no persona" if one.cell.persona_id is None else f"persona {one.cell.persona_id!r}"
            what = f"question {one.cell.question_id!r}, sample {one.cell.sample}, under {who}"
            raise DataError(f"{one.where}: {what} is in {other.where} already")
    return found


def _questions(source: Source, asked: Sequence[str], answered: Sequence[Answered]) -> tuple[Question, ...]:
    """Every question by first appearance, put in the same words and with the same right answer to all.

    A text that is not known is its id. The questions of a run that permix exported were held to this when it was made, maybe from
    prompts that cannot be told from a persona any more: they are not held to it again.
    """
    strict = source.born is None
    words = _same_to_all("question", answered, [one.words for one in answered], strict)
    golds = _same_to_all("target", answered, [one.cell.gold for one in answered], strict)
    ids = dict.fromkeys([*(one.cell.question_id for one in answered), *asked])
    return tuple(Question(id=id, task=source.task, text=words.get(id) or id, gold=golds.get(id) or "") for id in ids)


def _same_to_all(field: str, answered: Sequence[Answered], values: Sequence[str | None], strict: bool) -> dict[str, str]:
    """The first known value of each question; raises DataError where a later one differs, if `strict`."""
    first: dict[str, tuple[str, str]] = {}
    for one, value in zip(answered, values, strict=True):
        if value is None:
            continue
        known, where = first.setdefault(one.cell.question_id, (value, one.where))
        if strict and known != value:
            about = f"question {one.cell.question_id!r}: {field}"
            raise DataError(f"{one.where}: {about} = {shown(value)}, and {where} has {shown(known)}")
    return {id: value for id, (value, _) in first.items()}


def judge_of(born: Mapping[str, Any] | None, theirs: str) -> str:
    """Who judged: permix itself where it did and its verdicts came back, else `theirs`."""
    return theirs if born is None else str(born.get("judge", "permix"))


def text_id(text: str) -> str:
    """A question's id where its log has none: the hash of its words."""
    return digest(normalise(text))


def plain(value: Any) -> Any:
    """As JSON would give it back, so that what is compared with a file compares equal."""
    return json.loads(json.dumps(value, default=str))
