"""A model asked until what is wanted is whole, or until it adds nothing more.

Every call is a cell of the run, whatever came of it: its persona, what was wanted (`question_id`), and its number among the calls
for that (`sample`). A further call has a seed of its own and nothing is ever overwritten. What is still wanted follows from the
records alone, so a run that was killed goes on as if it had not been.

What a model is asked when it writes: the situations, what each task demands of a question, and our wording (`prompts.toml`).

Every request is one user message, since not every model takes a system message, and carries the JSON schema of its reply. Nothing
that stands in a persona, a situation or a question is taken for a part of the wording.
"""

import functools
import tomllib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.resources import files
from string import Template
from typing import Any, NamedTuple

from permix.config import GymTask, QuestionsStage
from permix.inference.base import Model
from permix.progress import meter
from permix.question_writer.parsing import SCORE_KEYS, Replies
from permix.storage.run_dir import RunDir
from permix.types import Cell, CellKey, Completion, Failure, Message, Request, digest, seed_from


class Prompt(NamedTuple):
    """What is sent, and the JSON schema that the reply is to obey."""

    messages: tuple[Message, ...]
    schema: Mapping[str, Any]


def builtin_situations() -> tuple[str, ...]:
    return tuple(_contents()["situations"])


def wording_hash() -> str:
    """Hash of all that is asked apart from personas, situations and criteria."""
    return digest(_source())


def ask_situations(persona: str, listed: Sequence[str], chosen: Sequence[str]) -> Prompt:
    """Which of the situations in the list suit the persona, besides those that are chosen already."""
    again = _fill("settings_again", there="; ".join(chosen)) if chosen else ""
    text = _fill("settings", persona=_bare(persona), situations=_bullets(listed), again=again)
    return _prompt(text, {"situations": _list_of({"type": "string", "enum": list(listed)})})


def ask_questions(persona: str, task: GymTask, situations: Sequence[str], n: int, there: Sequence[str]) -> Prompt:
    """`n` questions that show this task, besides those that are there already."""
    again = _fill("questions_again", there=_bullets(there)) if there else ""
    text = _fill(
        "questions",
        persona=_bare(persona), demand=_contents()["demands"][task], n=str(n), situations=_bullets(situations), again=again,
    )  # fmt: skip
    return _prompt(text, {"questions": _list_of({"type": "string"})})


def ask_examples(persona: str, question: str, criteria: str) -> Prompt:
    """An answer for each score; `criteria` says what earns which."""
    text = _fill("examples", persona=_bare(persona), question=question, criteria=criteria)
    return _prompt(text, {score: {"type": "string"} for score in SCORE_KEYS})


def _prompt(text: str, properties: Mapping[str, Any]) -> Prompt:
    schema = {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
    return Prompt((Message(role="user", content=text),), schema)


def _list_of(items: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


def _fill(name: str, **values: str) -> str:
    return Template(_contents()["wording"][name]).substitute(values)  # one pass: a "$n" in a persona stays what it is


def _bullets(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _bare(persona: str) -> str:
    return persona.rstrip(".")


def _source() -> str:
    return (files("permix.question_writer") / "prompts.toml").read_text(encoding="utf-8")


@functools.cache
def _contents() -> dict[str, Any]:
    return tomllib.loads(_source())


class Slot(NamedTuple):
    """One thing that is wanted, for one persona."""

    persona_id: str
    name: str


class Wanted(NamedTuple):
    """The next call for a slot. `missing`: how much of it is not there yet, in any unit. `asked`: calls made for it so far.

    Slots of one `circle` are checked against one another, so that none of them is asked again before all have had as many calls:
    else it would depend on chance which of two like replies came first.
    """

    slot: Slot
    circle: str
    asked: int
    missing: int
    prompt: Prompt

    def cell(self, seed: int) -> Cell:
        return Cell(
            persona_id=self.slot.persona_id, question_id=self.slot.name, sample=self.asked,
            seed=seed_from("write", seed, *self.slot, self.asked), messages=self.prompt.messages,
        )  # fmt: skip


Book = Mapping[Slot, Replies]
"""All replies so far, of each slot in the order of the calls; None where a call failed."""


def book_of(cells: Mapping[CellKey, Cell]) -> Book:
    """The replies in a run's records; a slot that was never asked for has none."""
    book: defaultdict[Slot, list[str | None]] = defaultdict(list)
    for key in sorted(cells, key=lambda key: key.sample):
        completion = cells[key].completion
        book[Slot(key.persona_id or "", key.question_id)].append(completion.text if completion else None)
    return book


def have_written(
    model: Model, config: QuestionsStage, run: RunDir, wanted: Callable[[Book], Sequence[Wanted]], what: str
) -> None:
    """Ask for what is `wanted` until nothing is, or each slot that is left has failed or was asked `attempts` times in vain."""
    patience = Patience(config.attempts)
    while calls := patience.next(wanted(book_of(run.cells()))):
        with meter(what, len(calls), "replies") as shown:
            for slot, result in _asked(model, config, run, calls):
                if isinstance(result, Failure):
                    patience.failed.add(slot)
                shown.advance(note=f"{len(patience.failed)} failed" if patience.failed else "")


def _asked(
    model: Model, config: QuestionsStage, run: RunDir, calls: Sequence[Wanted]
) -> Iterator[tuple[Slot, Completion | Failure]]:
    """What came of each call, as soon as it is in the records."""
    cells = [call.cell(config.seed) for call in calls]
    requests = [Request(cell.messages, cell.seed, call.prompt.schema) for cell, call in zip(cells, calls, strict=True)]
    for place, result in model.complete(requests, config.sampling):
        part = "failure" if isinstance(result, Failure) else "completion"
        run.append([cells[place].model_copy(update={part: result})])
        yield calls[place].slot, result


class Patience:
    """Which slots are worth another call in this start. A failed call is not asked again: the model has retries of its own."""

    def __init__(self, attempts: int) -> None:
        self.failed: set[Slot] = set()
        self._attempts = attempts
        self._last: dict[Slot, Wanted] = {}
        self._in_vain: Counter[Slot] = Counter()

    def next(self, wanted: Sequence[Wanted]) -> list[Wanted]:
        for one in wanted:
            self._note(one)
        open_ = [one for one in wanted if one.slot not in self.failed and self._in_vain[one.slot] < self._attempts]
        least: dict[str, int] = {}
        for one in open_:
            least[one.circle] = min(one.asked, least.get(one.circle, one.asked))
        return [one for one in open_ if one.asked == least[one.circle]]

    def _note(self, one: Wanted) -> None:
        before = self._last.get(one.slot, one)
        if one.asked > before.asked:
            self._in_vain[one.slot] = 0 if one.missing < before.missing else self._in_vain[one.slot] + 1
        self._last[one.slot] = one
