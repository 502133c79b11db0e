"""What one judge said of one run, read and laid out on a grid.

Contract: the ledger and the run's records in, arrays out; nothing is computed here. An answer has one place, whoever judges it
and under whatever control: the persona that gave it (of an answer without persona, the one it is held against), the rubric, the
question and the sample. Suffixes as in `permix.metrics.judge_scores`.

From a run of `permix fidelity` to the answers a judge is shown.

Contract: only what asked.json still asks, and only what was answered; a failed cell is no answer. Everything stands in the run
itself, so the files that personas and questions came from need not be there any more. Order: as asked, without persona last.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from permix.evals.fidelity_records import AskedQuestion, Kind, kind_of, questions_asked, wording
from permix.evals.grid import Answers, read_answers
from permix.judges.parsing import REPEATED
from permix.judges.pricing import paid, total
from permix.judges.runner import read_calls, read_judgements
from permix.judges.types import IN_CHARACTER, Item
from permix.judges.validation import controls
from permix.metrics.statistics import Array
from permix.prompts import brought_in_by
from permix.storage.files import read_json
from permix.types import Cell, CellKey, Completion, Control, ItemKey, Record

INTERVIEWER = "Interviewer"


def read_items(run: Path) -> list[Item]:
    """Every answer of the run as it is to be judged (control "none"), and those given without persona ("no-persona").

    An answer without persona is judged as the persona whose question it was. DataError when the run cannot be read.
    """
    kind, path = kind_of(read_json(run / "config.json")), run / "asked.json"
    about = read_json(path) if path.exists() else {}
    answers, asked = read_answers(run), questions_asked(run)
    questions, texts = {one.id: one for one in asked}, about.get("persona_texts", {})
    told = asked_until(about["turns_asked"], wording(asked)) if kind == "interview" else None
    cells = (answers.cells.get(key) for key in _keys(kind, answers, asked, about))
    return [
        _item(cell, cell.completion, questions.get(cell.question_id), texts, told and told(cell))
        for cell in cells
        if cell is not None and cell.completion is not None
    ]


def _keys(kind: Kind, answers: Answers, asked: Sequence[AskedQuestion], about: Mapping[str, Any]) -> Iterator[CellKey]:
    """Every cell that holds an answer to be judged, if it was answered."""
    if kind == "personagym":
        yield from (CellKey(one.persona_id, one.id, 0) for one in asked)
        yield from (CellKey(None, id, 0) for id in about.get("asked_without_persona", ()))
    else:
        grid = product(answers.persona_ids, answers.question_ids, range(answers.samples))
        yield from (CellKey(persona, question, sample) for persona, question, sample in grid)


def _item(cell: Cell, completion: Completion, question: AskedQuestion | None, texts: Mapping[str, str], talk: str | None) -> Item:
    """`question`, `texts`: as asked.json has them; where it does not, in the words that were sent. `talk`: of an interview."""
    persona_id = cell.persona_id or (question and question.persona_id) or ""
    said = question.text if question is not None else cell.messages[-1]["content"]
    return Item(
        persona_id=persona_id,
        persona=texts.get(persona_id) or brought_in_by(cell.messages),
        question_id=cell.question_id,
        question=said if talk is None else talk,
        sample=cell.sample,
        rubric=(question and question.task) or IN_CHARACTER,
        answer=completion.text,
        answered_by=cell.persona_id,
        control="none" if cell.persona_id is not None else "no-persona",
    )


def asked_until(turns: Mapping[str, Sequence[str]], said: Callable[[str, str], str]) -> Callable[[Cell], str]:
    """Of a turn: what the interviewer has said up to it, a line a turn.

    What the model answered before is left out: it tells who speaks, whatever the answer that is judged is worth, so a judge would
    tell any two personas apart. The words are the questions' own, without a persona that stood beside the first.
    """

    def told(cell: Cell) -> str:
        who = cell.persona_id or ""
        until = turns[who][: turns[who].index(cell.question_id) + 1]
        return "\n".join(f"{INTERVIEWER}: {said(one, who)}" for one in until)

    return told


SETTINGS = ("name", "reasons", "temperature", "max_new_tokens")
"""Settings of a judge that may change a score."""

BORN = ("judge", "rubrics", "examples")
"""And what a judge was born with, by fingerprint and hash: a name, or a path, may stand for another one tomorrow."""


class Place(NamedTuple):
    """One answer."""

    persona_id: str
    rubric: str
    question_id: str
    sample: int


class Grid:
    """Places as axes: personas, rubrics, and a persona's answers under a rubric in the order of their first item."""

    def __init__(self, places: Iterable[Place]) -> None:
        every = list(dict.fromkeys(places))
        self.persona_ids = tuple(dict.fromkeys(place.persona_id for place in every))
        self.rubrics = tuple(dict.fromkeys(place.rubric for place in every))
        rows = {persona_id: row for row, persona_id in enumerate(self.persona_ids)}
        layers = {rubric: layer for layer, rubric in enumerate(self.rubrics)}
        filled: dict[tuple[int, int], int] = {}
        self._at: dict[Place, tuple[int, int, int]] = {}
        for place in every:
            cell = rows[place.persona_id], layers[place.rubric]
            self._at[place] = (*cell, filled.get(cell, 0))
            filled[cell] = filled.get(cell, 0) + 1
        self.shape = len(rows), len(layers), max(filled.values(), default=0)

    def lay(self, values: Mapping[Place, float]) -> Array:
        """value_P_T_Q; NaN where there is none. Places that the grid does not have are left out."""
        value_P_T_Q = np.full(self.shape, np.nan)
        for place, value in values.items():
            if place in self._at:
                value_P_T_Q[self._at[place]] = value
        return value_P_T_Q


class Bill(Record):
    """What all calls came to, every attempt counted. `cost` is in US dollars; None where the price of some call is not known."""

    calls: int
    without_score: int
    prompt_tokens: int
    completion_tokens: int
    cost: float | None


class Verdicts(NamedTuple):
    """One judge of one run: what it was to judge, and what it scored. `settings`: its section `judge`.

    `label`: what the section calls it; else its folder, which may have had to leave out characters.
    """

    label: str
    settings: Mapping[str, Any]
    seed: int
    items: tuple[Item, ...]
    scores: Mapping[ItemKey, int | None]
    born: Mapping[str, Any] = MappingProxyType({})
    """The identity of the judging, from provenance.json."""
    repeated: frozenset[ItemKey] = frozenset()
    """What has no score because the judge only repeated one out of the answer."""

    def of(self, control: Control) -> dict[Place, float]:
        """The scores of one control by the place of the answer."""
        keys = (item.key for item in self.items if item.control == control)
        return {place_of(key): float(score) for key in keys if (score := self.scores.get(key)) is not None}

    def asked(self, control: Control) -> int:
        return sum(item.control == control for item in self.items)

    def grid(self) -> Grid:
        """Of the answers to be scored, and of those that are without persona."""
        return Grid(place_of(item.key) for item in self.items if item.control in ("none", "no-persona"))

    @property
    def identity(self) -> tuple[str, ...]:
        """What must be the same where scores of two runs are held against each other."""
        return tuple(f"{name} = {self.settings.get(name)}" for name in SETTINGS) + tuple(
            f"{name} {self.born.get(name)}" for name in BORN
        )


class Laid(NamedTuple):
    """The answers of one run as judges scored them."""

    grid: Grid
    score_J_P_T_Q: Array


def lay_out(judges: Sequence[Verdicts]) -> Laid:
    """Judges of one run on one grid."""
    grid = judges[0].grid()
    return Laid(grid, np.stack([grid.lay(judge.of("none")) for judge in judges]))


def read_verdicts(run: Path, folder: Path, items: Sequence[Item] | None = None) -> Verdicts:
    """The judge in `folder` (one of `judges_of(run)`); `items` are the run's, where they were read before."""
    config = read_json(folder / "config.json")
    answers = read_items(run) if items is None else items
    tried = controls(answers, int(config["judge"]["trial"]), int(config["seed"]))
    judgements = read_judgements(folder)
    return Verdicts(
        config["judge"].get("label") or folder.name,
        config["judge"],
        int(config["seed"]),
        (*answers, *tried),
        {key: judgement.score for key, judgement in judgements.items()},
        read_json(folder / "provenance.json")["identity"],
        frozenset(key for key, judgement in judgements.items() if judgement.error == REPEATED),
    )


def place_of(key: ItemKey) -> Place:
    return Place(key.answered_by or key.persona_id, key.rubric, key.question_id, key.sample)


def words_of(items: Iterable[Item]) -> dict[Place, float]:
    """How many words each answer has."""
    return {place_of(item.key): float(len(item.answer.split())) for item in items if item.control == "none"}


def read_bill(folder: Path) -> Bill:
    """Every line of `judgements.jsonl`; a torn last one is passed over. DataError names the line that is none."""
    calls = read_calls(folder)
    tokens = [call.reply or call.failure for call in calls]
    return Bill(
        calls=len(calls),
        without_score=sum(call.score is None for call in calls),
        prompt_tokens=sum(used.prompt_tokens or 0 for used in tokens if used),
        completion_tokens=sum(used.completion_tokens or 0 for used in tokens if used),
        cost=total(map(paid, calls)),
    )
