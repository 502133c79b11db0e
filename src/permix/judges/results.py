"""What one judge said of one run, read and laid out on a grid.

Contract: the ledger and the run's records in, arrays out; nothing is computed here. An answer has one place, whoever judges it
and under whatever control: the persona that gave it (of an answer without persona, the one it is held against), the rubric, the
question and the sample. Suffixes as in `permix.metrics.judge_scores`.

From a run of `permix fidelity` to the answers a judge is shown.

Contract: only what grid.json still asks, and only what was answered; a failed cell is no answer. Everything stands in the run
itself, so the files that personas and questions came from need not be there any more. Order: as asked, without persona last.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from permix.evals.fidelity_records import AskedQuestion, FidelityKind, fidelity_kind, question_text_lookup, read_asked_questions
from permix.evals.grid import GridResults, read_grid_results
from permix.judges.parsing import REPEATED_SCORE_ERROR
from permix.judges.pricing import recorded_cost, total_cost
from permix.judges.runner import read_judge_calls, read_latest_judgements
from permix.judges.types import IN_CHARACTER, JudgeInput
from permix.judges.validation import build_control_inputs
from permix.metrics.statistics import Array
from permix.prompts import persona_prompt
from permix.storage.files import read_json
from permix.storage.run_dir import read_provenance
from permix.types import Cell, CellKey, Completion, JudgeControl, JudgeInputKey, Record

INTERVIEWER_LABEL = "Interviewer"


def read_judge_inputs(run: Path) -> list[JudgeInput]:
    """Every answer of the run as it is to be judged (control "none"), and those given without persona ("no-persona").

    An answer without persona is judged as the persona whose question it was. DataError when the run cannot be read.
    """
    kind, path = fidelity_kind(read_json(run / "config.json")), run / "grid.json"
    about = read_json(path) if path.exists() else {}
    answers, asked = read_grid_results(run), read_asked_questions(run)
    questions, texts = {one.id: one for one in asked}, about.get("persona_texts", {})
    told = interviewer_lines_until(about["turns_asked"], question_text_lookup(asked)) if kind == "interview" else None
    cells = (answers.cells.get(key) for key in _judged_cell_keys(kind, answers, asked, about))
    return [
        _build_judge_input(cell, cell.completion, questions.get(cell.question_id), texts, told and told(cell))
        for cell in cells
        if cell is not None and cell.completion is not None
    ]


def _judged_cell_keys(
    kind: FidelityKind, answers: GridResults, questions: Sequence[AskedQuestion], asked_json: Mapping[str, Any]
) -> Iterator[CellKey]:
    """Every cell that holds an answer to be judged, if it was answered."""
    if kind == "personagym":
        yield from (CellKey(one.persona_id, one.id, 0) for one in questions)
        yield from (CellKey(None, id, 0) for id in asked_json.get("asked_without_persona", ()))
    else:
        grid = product(answers.persona_ids, answers.question_ids, range(answers.samples))
        yield from (CellKey(persona, question, sample) for persona, question, sample in grid)


def _build_judge_input(
    cell: Cell, completion: Completion, question: AskedQuestion | None, persona_texts: Mapping[str, str], conversation: str | None
) -> JudgeInput:
    """`question`, `texts`: as grid.json has them; where it does not, in the words that were sent. `conversation`: of an
    interview."""
    persona_id = cell.persona_id or (question and question.persona_id) or ""
    said = question.text if question is not None else cell.messages[-1]["content"]
    return JudgeInput(
        persona_id=persona_id,
        persona=persona_texts.get(persona_id) or persona_prompt(cell.messages),
        question_id=cell.question_id,
        question=said if conversation is None else conversation,
        sample=cell.sample,
        rubric=(question and question.task) or IN_CHARACTER,
        answer=completion.text,
        answered_by=cell.persona_id,
        control="none" if cell.persona_id is not None else "no-persona",
    )


def interviewer_lines_until(
    turn_ids: Mapping[str, Sequence[str]], question_text: Callable[[str, str], str]
) -> Callable[[Cell], str]:
    """Of a turn: what the interviewer has said up to it, a line a turn.

    What the model answered before is left out: it tells who speaks, whatever the answer that is judged is worth, so a judge would
    tell any two personas apart. The words are the questions' own, without a persona that stood beside the first.
    """

    def told(cell: Cell) -> str:
        who = cell.persona_id or ""
        until = turn_ids[who][: turn_ids[who].index(cell.question_id) + 1]
        return "\n".join(f"{INTERVIEWER_LABEL}: {question_text(one, who)}" for one in until)

    return told


SCORE_SETTINGS = ("name", "reasons", "temperature", "max_new_tokens")
"""Settings of a judge that may change a score."""

FINGERPRINT_KEYS = ("judge", "rubrics", "examples")
"""And what a judge was born with, by fingerprint and hash: a name, or a path, may stand for another one tomorrow."""


class AnswerKey(NamedTuple):
    """One answer."""

    persona_id: str
    rubric: str
    question_id: str
    sample: int


class AnswerKeyGrid:
    """Places as axes: personas, rubrics, and a persona's answers under a rubric in the order of their first item."""

    def __init__(self, keys: Iterable[AnswerKey]) -> None:
        every = list(dict.fromkeys(keys))
        self.persona_ids = tuple(dict.fromkeys(place.persona_id for place in every))
        self.rubrics = tuple(dict.fromkeys(place.rubric for place in every))
        rows = {persona_id: row for row, persona_id in enumerate(self.persona_ids)}
        layers = {rubric: layer for layer, rubric in enumerate(self.rubrics)}
        filled: dict[tuple[int, int], int] = {}
        self._index_by_key: dict[AnswerKey, tuple[int, int, int]] = {}
        for place in every:
            cell = rows[place.persona_id], layers[place.rubric]
            self._index_by_key[place] = (*cell, filled.get(cell, 0))
            filled[cell] = filled.get(cell, 0) + 1
        self.shape = len(rows), len(layers), max(filled.values(), default=0)

    def to_array(self, values: Mapping[AnswerKey, float]) -> Array:
        """value_P_U_Q; NaN where there is none. Places that the grid does not have are left out."""
        value_P_U_Q = np.full(self.shape, np.nan)
        for place, value in values.items():
            if place in self._index_by_key:
                value_P_U_Q[self._index_by_key[place]] = value
        return value_P_U_Q


class JudgeUsage(Record):
    """What all calls came to, every attempt counted. `cost` is in US dollars; None where the price of some call is not known."""

    calls: int
    calls_without_score: int
    prompt_tokens: int
    completion_tokens: int
    cost: float | None


class JudgeResults(NamedTuple):
    """One judge of one run: what it was to judge, and what it scored. `settings`: its section `judge`.

    `label`: what the section calls it; else its folder, which may have had to leave out characters.
    """

    label: str
    settings: Mapping[str, Any]
    seed: int
    inputs: tuple[JudgeInput, ...]
    scores: Mapping[JudgeInputKey, int | None]
    fingerprints: Mapping[str, Any] = MappingProxyType({})
    """The identity of the judging, from provenance.json."""
    repeated_from_answer: frozenset[JudgeInputKey] = frozenset()
    """What has no score because the judge only repeated one out of the answer."""

    def scores_for(self, control: JudgeControl) -> dict[AnswerKey, float]:
        """The scores of one control by the place of the answer."""
        keys = (item.key for item in self.inputs if item.control == control)
        return {answer_key(key): float(score) for key in keys if (score := self.scores.get(key)) is not None}

    def count_inputs(self, control: JudgeControl) -> int:
        return sum(item.control == control for item in self.inputs)

    def grid(self) -> AnswerKeyGrid:
        """Of the answers to be scored, and of those that are without persona."""
        return AnswerKeyGrid(answer_key(item.key) for item in self.inputs if item.control in ("none", "no-persona"))

    @property
    def comparability_key(self) -> tuple[str, ...]:
        """What must be the same where scores of two runs are held against each other."""
        return tuple(f"{name} = {self.settings.get(name)}" for name in SCORE_SETTINGS) + tuple(
            f"{name} {self.fingerprints.get(name)}" for name in FINGERPRINT_KEYS
        )


class ScoreArrays(NamedTuple):
    """The answers of one run as judges scored them."""

    grid: AnswerKeyGrid
    score_J_P_U_Q: Array


def stack_judges(judges: Sequence[JudgeResults]) -> ScoreArrays:
    """Judges of one run on one grid."""
    grid = judges[0].grid()
    return ScoreArrays(grid, np.stack([grid.to_array(judge.scores_for("none")) for judge in judges]))


def read_judge_results(run: Path, folder: Path, inputs: Sequence[JudgeInput] | None = None) -> JudgeResults:
    """The judge in `folder` (one of `judges_of(run)`); `items` are the run's, where they were read before."""
    config = read_json(folder / "config.json")
    answers = read_judge_inputs(run) if inputs is None else inputs
    tried = build_control_inputs(answers, int(config["judge"]["answers_per_control"]), int(config["seed"]))
    judgements = read_latest_judgements(folder)
    return JudgeResults(
        config["judge"].get("label") or folder.name,
        config["judge"],
        int(config["seed"]),
        (*answers, *tried),
        {key: judgement.score for key, judgement in judgements.items()},
        read_provenance(folder)["identity"],
        frozenset(key for key, judgement in judgements.items() if judgement.error == REPEATED_SCORE_ERROR),
    )


def answer_key(key: JudgeInputKey) -> AnswerKey:
    return AnswerKey(key.answered_by or key.persona_id, key.rubric, key.question_id, key.sample)


def answer_word_counts(inputs: Iterable[JudgeInput]) -> dict[AnswerKey, float]:
    """How many words each answer has."""
    return {answer_key(item.key): float(len(item.answer.split())) for item in inputs if item.control == "none"}


def read_judge_usage(folder: Path) -> JudgeUsage:
    """Every line of `judgements.jsonl`; a torn last one is passed over. DataError names the line that is none."""
    calls = read_judge_calls(folder)
    tokens = [call.reply or call.failure for call in calls]
    return JudgeUsage(
        calls=len(calls),
        calls_without_score=sum(call.score is None for call in calls),
        prompt_tokens=sum(used.prompt_tokens or 0 for used in tokens if used),
        completion_tokens=sum(used.completion_tokens or 0 for used in tokens if used),
        cost=total_cost(map(recorded_cost, calls)),
    )
