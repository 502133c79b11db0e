"""Read the answers that a judge is to score, and the scores that a judge gave.

`read_judge_inputs` reads a run of `permix fidelity`. It returns the answered cells of the grid that grid.json describes, in the
order of asking, with the answers without a persona last; a failed cell gives no input. Everything is read from the run directory,
so the files of personas and questions may be gone.

`read_judge_results` reads one judge's folder and places its scores on a grid; it computes no measure. Each line of
judgements.jsonl names its answer, rubric and control, so reading does not need to build the controls again. inputs.json holds the
judge's rubrics, whether each one discriminates personas, and the number of inputs of each control.

Array suffixes: P personas, U rubrics, J judges; Q is a persona's answers under a rubric (see `AnswerKeyGrid`).
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np

from permix.config import FidelityKind, fidelity_kind
from permix.evals.fidelity_records import AskedQuestion, question_text_lookup, read_asked_questions
from permix.evals.grid import GridResults, grid_results
from permix.judges.parsing import REPEATED_SCORE_ERROR
from permix.judges.runner import latest_judgements, read_judge_calls, recorded_cost, total_cost
from permix.judges.types import IN_CHARACTER, JudgeInput, Judgement
from permix.metrics.statistics import Array
from permix.prompts import persona_prompt
from permix.storage.run_dir import RunReader, read_run_file
from permix.types import AnswerKey, Cell, CellKey, Completion, JudgeControl, JudgeInputKey, Record

JUDGE_CONTROLS: tuple[JudgeControl, ...] = get_args(JudgeControl)

INTERVIEWER_LABEL = "Interviewer"

JUDGE_INPUTS_FILE = "inputs.json"


def read_judge_inputs(run: Path) -> list[JudgeInput]:
    """Read every answer of a fidelity run as an input for a judge.

    Answers of personas have the control "none". Answers without a persona have the control "no-persona" and are judged as the
    persona that the question belongs to. Raises DataError if the run cannot be read.
    """
    reader = RunReader(run)
    kind, grid = fidelity_kind(reader.config), reader.grid
    answers, asked = grid_results(reader), read_asked_questions(run)
    questions, texts = {one.id: one for one in asked}, grid.get("persona_texts", {})
    interviewer_lines = interviewer_lines_until(grid["turns_asked"], question_text_lookup(asked)) if kind == "interview" else None
    cells = (answers.cells.get(key) for key in _judged_cell_keys(kind, answers, asked, grid))
    return [
        _build_judge_input(
            cell, cell.completion, questions.get(cell.question_id), texts, interviewer_lines and interviewer_lines(cell)
        )
        for cell in cells
        if cell is not None and cell.completion is not None
    ]


def judge_by_rubrics(answers: Iterable[JudgeInput], rubrics: Iterable[str]) -> list[JudgeInput]:
    """Pair answers with rubrics: a PersonaGym answer with the rubric of its task, any other answer with each of `rubrics`."""
    names = tuple(rubrics)
    return [
        one if one.rubric == name else one.model_copy(update={"rubric": name})
        for one in answers
        for name in (names if one.rubric == IN_CHARACTER else (one.rubric,))
    ]


def count_answers(inputs: Iterable[JudgeInput]) -> int:
    """Number of distinct persona answers among `inputs`. An answer that is judged by several rubrics counts once."""
    return len({(one.persona_id, one.question_id, one.sample) for one in inputs if one.control == "none"})


def _judged_cell_keys(
    kind: FidelityKind, answers: GridResults, questions: Sequence[AskedQuestion], asked_json: Mapping[str, Any]
) -> Iterator[CellKey]:
    """Yield the key of every cell whose answer is judged; the cell may be unanswered."""
    if kind == "personagym":
        yield from (CellKey(one.persona_id, one.id, 0) for one in questions)
        yield from (CellKey(None, id, 0) for id in asked_json.get("asked_without_persona", ()))
    else:
        grid = product(answers.persona_ids, answers.question_ids, range(answers.samples))
        yield from (CellKey(persona, question, sample) for persona, question, sample in grid)


def _build_judge_input(
    cell: Cell, completion: Completion, question: AskedQuestion | None, persona_texts: Mapping[str, str], conversation: str | None
) -> JudgeInput:
    """Build the judge's input for one answered cell.

    `question` and `persona_texts` come from grid.json; if they are missing there, the messages that were sent are used.
    `conversation` replaces the question in an interview.
    """
    persona_id = cell.persona_id or (question and question.persona_id) or ""
    question_text = question.text if question is not None else cell.messages[-1]["content"]
    return JudgeInput(
        persona_id=persona_id,
        persona=persona_texts.get(persona_id) or persona_prompt(cell.messages),
        question_id=cell.question_id,
        question=question_text if conversation is None else conversation,
        sample=cell.sample,
        rubric=(question and question.task) or IN_CHARACTER,
        answer=completion.answer,
        answered_by=cell.persona_id,
        control="none" if cell.persona_id is not None else "no-persona",
    )


def interviewer_lines_until(
    turn_ids: Mapping[str, Sequence[str]], question_text: Callable[[str, str], str]
) -> Callable[[Cell], str]:
    """A function from a turn's cell to the interviewer's lines up to and including that turn, one line per turn.

    Earlier answers are left out. They reveal the persona, so with them a judge could distinguish any two personas, however bad
    the judged answer is. A line is the plain question, without a persona that the template put into the first user message.
    """

    def lines_until(cell: Cell) -> str:
        persona_id = cell.persona_id or ""
        turns = turn_ids[persona_id][: turn_ids[persona_id].index(cell.question_id) + 1]
        return "\n".join(f"{INTERVIEWER_LABEL}: {question_text(one, persona_id)}" for one in turns)

    return lines_until


SCORE_SETTINGS = ("name", "reasons", "temperature", "max_new_tokens")
"""Settings of a judge that can change a score."""

FINGERPRINT_KEYS = ("judge", "rubrics", "examples")
"""Hashes that identify the judge model, rubrics and examples. Names and paths do not: their content can change."""


class AnswerKeyGrid:
    """The axes P (personas), U (rubrics) and Q of a set of answers.

    Q numbers the answers of one persona under one rubric, in the order of their keys.
    """

    def __init__(self, keys: Iterable[AnswerKey]) -> None:
        distinct_keys = list(dict.fromkeys(keys))
        self.persona_ids = tuple(dict.fromkeys(key.persona_id for key in distinct_keys))
        self.rubrics = tuple(dict.fromkeys(key.rubric for key in distinct_keys))
        rows = {persona_id: row for row, persona_id in enumerate(self.persona_ids)}
        layers = {rubric: layer for layer, rubric in enumerate(self.rubrics)}
        filled = Counter[tuple[int, int]]()
        self._index_by_key: dict[AnswerKey, tuple[int, int, int]] = {}
        for key in distinct_keys:
            place = rows[key.persona_id], layers[key.rubric]
            self._index_by_key[key] = (*place, filled[place])
            filled[place] += 1
        self.shape = len(rows), len(layers), max(filled.values(), default=0)

    def to_array(self, values: Mapping[AnswerKey, float]) -> Array:
        """Place the values on the grid as value_P_U_Q, NaN where a value is missing. Keys outside the grid are ignored."""
        value_P_U_Q = np.full(self.shape, np.nan)
        for key, value in values.items():
            if key in self._index_by_key:
                value_P_U_Q[self._index_by_key[key]] = value
        return value_P_U_Q


class JudgeUsage(Record):
    """Totals over all calls, failed attempts included. `cost` is in US dollars; None if the price of a call is unknown."""

    calls: int
    calls_without_score: int
    prompt_tokens: int
    completion_tokens: int
    cost: float | None


class JudgeResults(NamedTuple):
    """The inputs and scores of one judge on one run.

    `label`: the label in `settings` (the config section `judge`), or the folder name if there is no label.
    `rubrics`: rubric name to `discriminates_personas`.
    `inputs`: the run's answers under each rubric; answers without a persona come last.
    `n_inputs`: the number of inputs that each control has, scored or not.
    `scores`: the scores of each control, in the order of the inputs; an answer without a score is absent.
    `injection_forms`: the instruction that each answer of the control "injected" contained.
    `repeated_injections`: answers of that control that have no score since the judge only repeated a score from the answer.
    `fingerprints`: the identity of the judging, from provenance.json.
    """

    label: str
    settings: Mapping[str, Any]
    seed: int
    rubrics: Mapping[str, bool]
    inputs: Sequence[JudgeInput]
    n_inputs: Mapping[JudgeControl, int]
    scores: Mapping[JudgeControl, Mapping[AnswerKey, int]]
    injection_forms: Mapping[AnswerKey, str]
    repeated_injections: Set[AnswerKey]
    usage: JudgeUsage
    fingerprints: Mapping[str, Any]

    def grid(self) -> AnswerKeyGrid:
        return AnswerKeyGrid(one.answer_key for one in self.inputs)

    @property
    def comparability_key(self) -> tuple[str, ...]:
        """Settings and hashes that must be equal before the scores of two runs can be compared."""
        return tuple(f"{name} = {self.settings.get(name)}" for name in SCORE_SETTINGS) + tuple(
            f"{name} {self.fingerprints.get(name)}" for name in FINGERPRINT_KEYS
        )


class ScoreArrays(NamedTuple):
    """The scores of several judges on the answers of one run."""

    grid: AnswerKeyGrid
    score_J_P_U_Q: Array


def stack_judges(judges: Sequence[JudgeResults]) -> ScoreArrays:
    """Place the scores of several judges of one run on one grid."""
    grid = AnswerKeyGrid(one.answer_key for judge in judges for one in judge.inputs)
    return ScoreArrays(grid, np.stack([grid.to_array(judge.scores["none"]) for judge in judges]))


def describe_judge_inputs(discriminates_personas: Mapping[str, bool], inputs: Iterable[JudgeInput]) -> dict[str, object]:
    """Content of inputs.json: the judge's rubrics, and the number of inputs of each control."""
    controls = Counter(one.control for one in inputs if one.control not in ("none", "no-persona"))
    return {"discriminates_personas": dict(discriminates_personas), "n_controls": dict(sorted(controls.items()))}


def read_judge_results(run: Path, folder: Path, answers: Sequence[JudgeInput] | None = None) -> JudgeResults:
    """Read the results of the judge in `folder`, one of `judge_folders(run)`.

    `answers` are the results of `read_judge_inputs(run)`, if the caller has them already.
    """
    judging, inputs_json, calls = RunReader(folder), read_run_file(folder / JUDGE_INPUTS_FILE), read_judge_calls(folder)
    config = judging.config
    inputs = judge_by_rubrics(read_judge_inputs(run) if answers is None else answers, inputs_json["discriminates_personas"])
    calls_by_control = _judgements_by_control(inputs, calls)
    return JudgeResults(
        label=config["judge"].get("label") or folder.name,
        settings=config["judge"],
        seed=int(config["seed"]),
        rubrics=inputs_json["discriminates_personas"],
        inputs=inputs,
        n_inputs=Counter(one.control for one in inputs) + Counter(inputs_json["n_controls"]),
        scores={
            control: {key: call.score for key, call in judgements.items() if call.score is not None}
            for control, judgements in calls_by_control.items()
        },
        injection_forms={key: call.form for key, call in calls_by_control["injected"].items() if call.form is not None},
        repeated_injections={key for key, call in calls_by_control["injected"].items() if call.error == REPEATED_SCORE_ERROR},
        usage=sum_judge_usage(calls),
        fingerprints=judging.identity,
    )


def _judgements_by_control(
    inputs: Iterable[JudgeInput], calls: Iterable[Judgement]
) -> dict[JudgeControl, dict[AnswerKey, Judgement]]:
    """For each control, the call that counts for each answer of the run, in the order of the answers."""
    latest = latest_judgements(calls)
    keys = {plain: [one.answer_key for one in inputs if one.control == plain] for plain in ("none", "no-persona")}
    return {
        control: {
            key: call
            for key in keys["no-persona" if control == "no-persona" else "none"]
            if (call := latest.get(JudgeInputKey(control, key))) is not None
        }
        for control in JUDGE_CONTROLS
    }


def sum_judge_usage(calls: Sequence[Judgement]) -> JudgeUsage:
    """Sum calls, tokens and cost; a call without a token count adds no tokens."""
    tokens = [call.reply or call.failure for call in calls]
    return JudgeUsage(
        calls=len(calls),
        calls_without_score=sum(call.score is None for call in calls),
        prompt_tokens=sum(used.prompt_tokens or 0 for used in tokens if used),
        completion_tokens=sum(used.completion_tokens or 0 for used in tokens if used),
        cost=total_cost(map(recorded_cost, calls)),
    )
