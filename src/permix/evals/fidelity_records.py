"""What the kinds of fidelity run share: which kind a run is, how cells are answered once, and what a run asked in words.

`grid.json` names the personas and questions in full, so that answers can be judged later without the files they came from.
Answers have no verdict; one that is missing is counted and asked for again, never made up.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from permix.config import FidelityConfig
from permix.errors import DataError, IncompleteRunError
from permix.evals.grid import ExpectedCells, expected_grid_cells, read_grid_results, run_cells
from permix.inference.base import Model
from permix.metrics.sequential import Round, count_cells
from permix.prompts import template_hash
from permix.storage.files import write_json
from permix.storage.run_dir import RunDir, RunReader
from permix.types import Cell, Persona, Question, Record

FidelityKind = Literal["open", "personagym", "interview"]

FidelityResult = TypeVar("FidelityResult", bound=Record)


class AskedQuestion(Record):
    """A question as grid.json tells it. `task`: which of PersonaGym's, if any; `persona_id`: who is asked it, None for all."""

    id: str
    text: str
    task: str | None = None
    persona_id: str | None = None


def describe_ids(personas: Sequence[Persona], questions: Sequence[AskedQuestion]) -> dict[str, object]:
    """For grid.json: what the ids there stand for."""
    return {
        "persona_texts": {persona.id: persona.text for persona in personas},
        "questions_asked": [question.model_dump() for question in questions],
    }


def fidelity_kind(config: Mapping[str, Any]) -> FidelityKind:
    """The kind of a fidelity run, from its config.json; runs older than the other kinds are open."""
    if (config.get("interview") or {}).get("turns"):
        return "interview"
    gym = config.get("personagym") or {}
    return "personagym" if gym.get("path") or gym.get("hub") else "open"


def run_fidelity_cells(
    model: Model,
    config: FidelityConfig,
    cells: Sequence[Cell],
    grid_description: Mapping[str, object],
    measure: Callable[[Path], FidelityResult],
    measure_text: Callable[[Path], Record],
    **identity: object,
) -> FidelityResult:
    """Have every cell answered, or go on; write grid.json and metrics.json, and return what `measure` makes of the run.

    `measure` computes what the kind measures, `measure_text` what is measured of all kinds. `identity`: what else all records of
    the run have in common. Raises IncompleteRunError when answers are missing, and what `measure` raises when none are.
    """
    common = {
        "model": model.fingerprint,
        "template": template_hash(config.personas.template),
        "sampling": config.sampling.model_dump(),
        "seed": config.seed,
    }
    with RunDir.open(config.out, config, common | identity, cells) as run:
        write_json(run.path / "grid.json", grid_description)
        with run.track_usage():
            pending = run_cells(model, cells, config.sampling, run, None, f"fidelity {config.label or model.name}")
        missing = f"{config.out}: {pending} of {len(cells)} answers are missing; run the same command again to fill them"
        try:
            result = measure(run.path)
        except DataError as error:
            raise (IncompleteRunError(missing) if pending else error) from error
        write_fidelity_metrics(run.path, result, measure_text(run.path))
    if pending:
        raise IncompleteRunError(missing)
    return result


def write_fidelity_metrics(run: Path, result: Record, text_metrics: Record) -> None:
    """Write metrics.json: what the kind measures and, under "unjudged", what is measured of the answers of all kinds."""
    write_json(run / "metrics.json", result.model_dump(mode="json") | {"unjudged": text_metrics.model_dump(mode="json")})


def read_expected_cells(run: RunReader) -> ExpectedCells:
    """The cells that a stability or fidelity run asks for, from config.json and grid.json; of another run nothing is known.

    Raises DataError, KeyError, TypeError or ValueError when the files are not what they should be.
    """
    asked = run.grid
    if not asked or run.stage not in ("stability", "fidelity"):
        return ExpectedCells()
    return _expected_fidelity_cells(asked, run.config) if run.stage == "fidelity" else _expected_stability_cells(asked)


def _expected_stability_cells(asked: Mapping[str, Any]) -> ExpectedCells:
    samples = int(asked["samples"])
    grid = expected_grid_cells(asked["persona_ids"], asked["question_ids"], samples, asked.get("templates", ("",)))
    if not asked.get("rounds"):
        return grid
    return grid._replace(total=count_cells([Round.model_validate(one) for one in asked["rounds"]], samples))


def _expected_fidelity_cells(asked: Mapping[str, Any], config: Mapping[str, Any]) -> ExpectedCells:
    personas = frozenset[str | None](asked["persona_ids"])
    match fidelity_kind(config):
        case "interview":
            # Also the turns that a model has yet to name a question for, but not what it is asked itself ("ask-03").
            turns = int(config["interview"]["turns"])
            names = frozenset(f"turn-{turn:02}" for turn in range(1, turns + 1))
            return ExpectedCells(
                len(personas) * turns, personas=personas, questions=names | frozenset(asked.get("question_ids", ()))
            )
        case "personagym":
            own = frozenset((one.get("persona_id"), one["id"]) for one in asked.get("questions_asked", ()))
            alone = frozenset((None, id) for id in asked.get("asked_without_persona", ()))
            return ExpectedCells(len(own) + len(alone), len(alone), pairs=own | alone)
        case "open":
            questions, samples = frozenset[str](asked["question_ids"]), int(asked["samples"])
            return ExpectedCells(
                len(personas) * len(questions) * samples, personas=personas, questions=questions, samples=samples
            )


def read_persona_cells(run: Path) -> list[Cell]:
    """The recorded cells of personas; of a run that was made smaller, those that it still asks."""
    answers = read_grid_results(run)
    return [answers.cells[key] for key in answers.grid_summaries if key.persona_id is not None]


def question_text_lookup(questions: Sequence[AskedQuestion]) -> Callable[[str, str], str]:
    """(question's id, persona's id) -> the question as that persona was asked it; "" for one that is not there."""
    said = {(one.id, one.persona_id): one.text for one in questions}
    return lambda question, persona: said.get((question, persona)) or said.get((question, None), "")


def read_asked_questions(run: Path) -> tuple[AskedQuestion, ...]:
    """What a run asked, in words; empty for a run that is older than that."""
    return tuple(AskedQuestion.model_validate(one) for one in RunReader(run).grid.get("questions_asked", ()))


def question_at_turn(turn: int, question: Question) -> Question:
    """The question as it is asked at this turn: its id says both ("turn-03-evening")."""
    return question.model_copy(update={"id": f"turn-{turn:02}-{question.id}"})


def turn_number(question_id: str) -> int | None:
    """3 for "turn-03-evening" and "turn-03"; None for what is no turn of an interview."""
    name, _, rest = question_id.partition("-")
    number = rest.partition("-")[0]
    return int(number) if name == "turn" and number.isdecimal() else None
