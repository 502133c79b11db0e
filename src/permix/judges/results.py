"""What one judge said of one run, read and laid out on a grid.

Contract: a judge's folder and the run's records in, arrays out; nothing is computed here. A line of judgements.jsonl says which
answer it scored, under which rubric and control, so no control is built again to read it. inputs.json has the judge's rubrics,
each with whether the same answer can be worth less under another persona, and how many answers each control was to judge.
Suffixes as in `permix.metrics.judge_scores`.

From a run of `permix fidelity` to the answers a judge is shown.

Contract: only what grid.json still asks, and only what was answered; a failed cell is no answer. Everything stands in the run
itself, so the files that personas and questions came from need not be there any more. Order: as asked, without persona last.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np

from permix.evals.fidelity_records import AskedQuestion, FidelityKind, fidelity_kind, question_text_lookup, read_asked_questions
from permix.evals.grid import GridResults, grid_results
from permix.judges.parsing import REPEATED_SCORE_ERROR
from permix.judges.pricing import recorded_cost, total_cost
from permix.judges.runner import latest_judgements, read_judge_calls
from permix.judges.types import IN_CHARACTER, JudgeInput, Judgement
from permix.metrics.statistics import Array
from permix.prompts import persona_prompt
from permix.storage.files import read_json
from permix.storage.run_dir import RunReader
from permix.types import AnswerKey, Cell, CellKey, Completion, JudgeControl, JudgeInputKey, Record

JUDGE_CONTROLS: tuple[JudgeControl, ...] = get_args(JudgeControl)

INTERVIEWER_LABEL = "Interviewer"

JUDGE_INPUTS_FILE = "inputs.json"


def read_judge_inputs(run: Path) -> list[JudgeInput]:
    """Every answer of the run as it is to be judged (control "none"), and those given without persona ("no-persona").

    An answer without persona is judged as the persona whose question it was. DataError when the run cannot be read.
    """
    reader = RunReader(run)
    kind, about = fidelity_kind(reader.config), reader.grid
    answers, asked = grid_results(reader), read_asked_questions(run)
    questions, texts = {one.id: one for one in asked}, about.get("persona_texts", {})
    told = interviewer_lines_until(about["turns_asked"], question_text_lookup(asked)) if kind == "interview" else None
    cells = (answers.cells.get(key) for key in _judged_cell_keys(kind, answers, asked, about))
    return [
        _build_judge_input(cell, cell.completion, questions.get(cell.question_id), texts, told and told(cell))
        for cell in cells
        if cell is not None and cell.completion is not None
    ]


def judge_by_rubrics(answers: Iterable[JudgeInput], rubrics: Iterable[str]) -> list[JudgeInput]:
    """An answer to a question of PersonaGym is judged by the rubric of the question's task, any other by each of `rubrics`."""
    names = tuple(rubrics)
    return [
        one if one.rubric == name else one.model_copy(update={"rubric": name})
        for one in answers
        for name in (names if one.rubric == IN_CHARACTER else (one.rubric,))
    ]


def count_answers(inputs: Iterable[JudgeInput]) -> int:
    """How many answers of personas there are among what is judged, each counted once, by however many rubrics it is judged."""
    return len({(one.persona_id, one.question_id, one.sample) for one in inputs if one.control == "none"})


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


class AnswerKeyGrid:
    """Answers as axes: personas, rubrics, and a persona's answers under a rubric in the order of their first key."""

    def __init__(self, keys: Iterable[AnswerKey]) -> None:
        every = list(dict.fromkeys(keys))
        self.persona_ids = tuple(dict.fromkeys(key.persona_id for key in every))
        self.rubrics = tuple(dict.fromkeys(key.rubric for key in every))
        rows = {persona_id: row for row, persona_id in enumerate(self.persona_ids)}
        layers = {rubric: layer for layer, rubric in enumerate(self.rubrics)}
        filled = Counter[tuple[int, int]]()
        self._index_by_key: dict[AnswerKey, tuple[int, int, int]] = {}
        for key in every:
            place = rows[key.persona_id], layers[key.rubric]
            self._index_by_key[key] = (*place, filled[place])
            filled[place] += 1
        self.shape = len(rows), len(layers), max(filled.values(), default=0)

    def to_array(self, values: Mapping[AnswerKey, float]) -> Array:
        """value_P_U_Q; NaN where there is none. Answers that the grid does not have are left out."""
        value_P_U_Q = np.full(self.shape, np.nan)
        for key, value in values.items():
            if key in self._index_by_key:
                value_P_U_Q[self._index_by_key[key]] = value
        return value_P_U_Q


class JudgeUsage(Record):
    """What all calls came to, every attempt counted. `cost` is in US dollars; None where the price of some call is not known."""

    calls: int
    calls_without_score: int
    prompt_tokens: int
    completion_tokens: int
    cost: float | None


class JudgeResults(NamedTuple):
    """One judge of one run: what it was to judge, and what it scored.

    `label`: what `settings`, its section `judge`, calls it; else its folder, which may have had to leave out characters.
    `rubrics`: by name, whether an answer that fits one persona may not fit another. `inputs`: the run's answers under each
    rubric, those without persona last; `n_inputs`: how many there are to judge under each control. `scores`: those that there
    are, in the order of the inputs. `injection_forms`: which instruction an answer carried where it was judged with one inside;
    `repeated_injections`: such answers without a score because the judge only repeated one out of the answer. `fingerprints`:
    the identity of the judging, from provenance.json.
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
    grid = AnswerKeyGrid(one.answer_key for judge in judges for one in judge.inputs)
    return ScoreArrays(grid, np.stack([grid.to_array(judge.scores["none"]) for judge in judges]))


def describe_judge_inputs(discriminates_personas: Mapping[str, bool], inputs: Iterable[JudgeInput]) -> dict[str, object]:
    """For inputs.json: the judge's rubrics, and how many of all that it is to judge belong to each control."""
    controls = Counter(one.control for one in inputs if one.control not in ("none", "no-persona"))
    return {"discriminates_personas": dict(discriminates_personas), "n_controls": dict(sorted(controls.items()))}


def read_judge_results(run: Path, folder: Path, answers: Sequence[JudgeInput] | None = None) -> JudgeResults:
    """The judge in `folder` (one of `judge_folders(run)`); `answers` are the run's, where they were read before."""
    judging, asked, calls = RunReader(folder), read_json(folder / JUDGE_INPUTS_FILE), read_judge_calls(folder)
    config = judging.config
    inputs = judge_by_rubrics(read_judge_inputs(run) if answers is None else answers, asked["discriminates_personas"])
    found = _judgements_by_control(inputs, calls)
    return JudgeResults(
        label=config["judge"].get("label") or folder.name,
        settings=config["judge"],
        seed=int(config["seed"]),
        rubrics=asked["discriminates_personas"],
        inputs=inputs,
        n_inputs=Counter(one.control for one in inputs) + Counter(asked["n_controls"]),
        scores={
            control: {key: call.score for key, call in judgements.items() if call.score is not None}
            for control, judgements in found.items()
        },
        injection_forms={key: call.form for key, call in found["injected"].items() if call.form is not None},
        repeated_injections={key for key, call in found["injected"].items() if call.error == REPEATED_SCORE_ERROR},
        usage=sum_judge_usage(calls),
        fingerprints=judging.identity,
    )


def _judgements_by_control(
    inputs: Iterable[JudgeInput], calls: Iterable[Judgement]
) -> dict[JudgeControl, dict[AnswerKey, Judgement]]:
    """The call that counts for each answer of the run, in the order of the answers. Most controls are of answers in character."""
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
    tokens = [call.reply or call.failure for call in calls]
    return JudgeUsage(
        calls=len(calls),
        calls_without_score=sum(call.score is None for call in calls),
        prompt_tokens=sum(used.prompt_tokens or 0 for used in tokens if used),
        completion_tokens=sum(used.completion_tokens or 0 for used in tokens if used),
        cost=total_cost(map(recorded_cost, calls)),
    )
