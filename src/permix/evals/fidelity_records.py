"""Functions for all kinds of fidelity run: choose its personas, answer its cells, and read its answers and questions.

Contract: `grid.json` holds the full texts of personas and questions, so a judge can score the answers without the original files.
Fidelity answers have no verdict. A missing answer is counted and stays pending.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

from permix.config import FidelityConfig, PersonasConfig
from permix.evals.grid import fidelity_identity, read_grid_results, run_cells
from permix.evals.reference_runs import describe_reference
from permix.evals.shards import OwnPart, divide_cells, end_run, missing_text
from permix.inference.addresses import check_addresses
from permix.inference.base import Model
from permix.personas.pool import PersonaPool, select_recorded_personas
from permix.storage.files import write_json
from permix.storage.run_dir import RunDir, RunReader
from permix.tasks.base import read_trained_on
from permix.trackers import log_measures
from permix.types import Cell, Message, Persona, Question, Record

FidelityResult = TypeVar("FidelityResult", bound=Record)


class AskedQuestion(Record):
    """A question in grid.json. `task`: its PersonaGym task, or None; `persona_id`: the persona asked, None for all personas."""

    id: str
    text: str
    task: str | None = None
    persona_id: str | None = None


def select_fidelity_personas(config: FidelityConfig) -> tuple[PersonasConfig, PersonaPool]:
    """The personas of a run, and their section of the configuration with the split that is used."""
    return select_recorded_personas(config.personas, read_trained_on(Path(config.model.name)).persona_ids)


def describe_texts(personas: Sequence[Persona], questions: Sequence[AskedQuestion]) -> dict[str, object]:
    """Part of grid.json: the texts of personas and questions by id."""
    return {
        "persona_texts": {persona.id: persona.text for persona in personas},
        "questions_asked": [question.model_dump() for question in questions],
    }


def run_fidelity_cells(
    model: Model,
    config: FidelityConfig,
    cells: Sequence[Cell],
    grid_description: Mapping[str, object],
    measure: Callable[[Path], FidelityResult],
    measure_text: Callable[[Path], Record],
    measure_more: Callable[[Path], Mapping[str, object]] = lambda run: {},
    **identity: object,
) -> FidelityResult:
    """Answer the pending cells, write grid.json and metrics.json, and return the result of `measure`.

    With `config.shard` only the cells of that part are asked; OtherShardsPendingError is raised, and no metrics.json written, if
    that part is finished and others are not.
    `measure` computes the measures of this kind, `measure_text` the measures of all kinds, `measure_more` further entries of
    metrics.json. `identity` is added to the identity of the run. Raises IncompleteRunError if answers are missing, or the
    DataError of `measure` if no answer is missing.
    """
    common = {"model": model.fingerprint} | fidelity_identity(config)
    endpoint, shard = check_addresses(model, config.out), config.worker_shard
    divided = None if shard is None else divide_cells(cells, shard)
    own = cells if divided is None else divided.own
    opened = RunDir.open(
        config.out, config, common | identity, own, endpoints=[endpoint], shard=shard, grid=grid_description
    )  # fmt: skip
    name = config.label or model.name

    def write_metrics() -> FidelityResult:
        result = measure(config.out)
        metrics = write_fidelity_metrics(config.out, result, measure_text(config.out), measure_more(config.out))
        log_measures(config.report_to, config.out, name, metrics)
        return result

    with opened as run:
        with run.track_usage():
            description = f"fidelity {name}" + ("" if shard is None else f" of shard {shard}")
            pending = run_cells(model, own, config.sampling, run, None, description)
        part = None if divided is None else OwnPart(divided.shard, len(own), "answers", divided.count_without_completion)
        missing = missing_text(run, model, pending, len(own), "answers")
        return end_run(run, model, pending, missing, part, write_metrics)


def write_fidelity_metrics(
    run: Path, result: Record, text_metrics: Record, more: Mapping[str, object] = MappingProxyType({})
) -> dict[str, Any]:
    """Write metrics.json and return it: the measures of the kind, under "unjudged" the text metrics of all kinds, `more`, and the
    mark of the reference run."""
    metrics = result.model_dump(mode="json") | {"unjudged": text_metrics.model_dump(mode="json")} | dict(more)
    metrics |= describe_reference(run)
    write_json(run / "metrics.json", metrics)
    return metrics


def read_persona_cells(run: Path) -> list[Cell]:
    """Read the recorded cells with a persona, in the order of the grid, whoever finished first. If a run was made smaller, cells
    outside its present grid are left out.
    """
    results = read_grid_results(run)
    axes = (results.persona_ids, results.question_ids, results.templates, results.contexts)
    personas, questions, templates, contexts = ({id: place for place, id in enumerate(axis)} for axis in axes)
    keys = [key for key in results.grid_summaries if key.persona_id is not None]
    keys.sort(
        key=lambda key: (
            personas[key.persona_id or ""], templates[key.template], contexts[key.context], questions[key.question_id],
            key.sample,
        )
    )  # fmt: skip
    return [results.cells[key] for key in keys]


class AnswerGrid(NamedTuple):
    """The recorded cells of a run of open-ended questions, by persona and question."""

    cells: dict[tuple[str, str], Cell]

    @property
    def persona_ids(self) -> list[str]:
        return list(dict.fromkeys(persona for persona, _ in self.cells))

    @property
    def question_ids(self) -> list[str]:
        return list(dict.fromkeys(question for _, question in self.cells))

    @property
    def question_texts(self) -> list[str]:
        """The text of each question, or its id if the user message also contains the persona: the text must not depend on it."""
        messages = {question: self.first_messages(question=question) for question in self.question_ids}
        return [one[-1]["content"] if _has_system_prompt(one) else question for question, one in messages.items()]

    @property
    def answers_P_Q(self) -> list[list[str | None]]:
        return self.select(self.persona_ids, self.question_ids)

    def select(self, persona_ids: Sequence[str], question_ids: Sequence[str]) -> list[list[str | None]]:
        """The answers of these personas to these questions; None where there is none."""
        return [[self._answer(persona, question) for question in question_ids] for persona in persona_ids]

    def _answer(self, persona: str, question: str) -> str | None:
        cell = self.cells.get((persona, question))
        return None if cell is None or cell.completion is None else cell.completion.answer

    def first_messages(self, *, persona: str | None = None, question: str | None = None) -> tuple[Message, ...]:
        """The messages of the first cell of a persona or of a question."""
        return next(cell.messages for (own, asked), cell in self.cells.items() if own == persona or asked == question)


def read_answer_grid(run: Path) -> AnswerGrid:
    cells = read_persona_cells(run)
    return AnswerGrid({(cell.persona_id, cell.question_id): cell for cell in cells if cell.persona_id is not None})


def _has_system_prompt(messages: Sequence[Message]) -> bool:
    return any(message["role"] == "system" and message["content"] for message in messages)


def question_text_lookup(questions: Sequence[AskedQuestion]) -> Callable[[str, str], str]:
    """A function (question id, persona id) -> text of the question for that persona; "" if it is unknown."""
    text_by_key = {(one.id, one.persona_id): one.text for one in questions}
    return lambda question, persona: text_by_key.get((question, persona)) or text_by_key.get((question, None), "")


def read_asked_questions(run: Path) -> tuple[AskedQuestion, ...]:
    """Read the questions in grid.json; empty if grid.json has no texts of questions."""
    return tuple(AskedQuestion.model_validate(one) for one in RunReader(run).grid.get("questions_asked", ()))


def question_at_turn(turn: int, question: Question) -> Question:
    """A copy of the question whose id also names the turn ("turn-03-evening")."""
    return question.model_copy(update={"id": f"turn-{turn:02}-{question.id}"})


def interviewer_question_id(turn: int) -> str:
    """The question id of the cell in which an interviewer model writes the question of a turn: "ask-03"."""
    return f"ask-{turn:02}"


def is_interviewer_question(question_id: str) -> bool:
    """Whether it is an `interviewer_question_id`."""
    name, _, number = question_id.partition("-")
    return name == "ask" and len(number) >= 2 and number.isdecimal()


def turn_number(question_id: str) -> int | None:
    """The turn in a question id: 3 for "turn-03-evening" and "turn-03"; None if the id is not of a turn."""
    name, _, rest = question_id.partition("-")
    number = rest.partition("-")[0]
    return int(number) if name == "turn" and number.isdecimal() else None


def bare_question_id(question_id: str) -> str:
    """The id without the turn: "evening" for "turn-03-evening"; "turn-03" and ids of other forms stay as they are."""
    parts = question_id.split("-", 2)
    return parts[2] if turn_number(question_id) is not None and len(parts) == 3 else question_id
