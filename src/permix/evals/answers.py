"""What the kinds of fidelity runs share: answers without a verdict, asked once, and a description of what was asked.

`asked.json` names the personas and questions in full, so that answers can be judged later without the files they came from.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from permix.config import FidelityStage
from permix.errors import DataError, OwedCellsError
from permix.evals.grid import fill
from permix.evals.unjudged import measure_unjudged
from permix.models import Model
from permix.prompting import template_hash
from permix.records import RunDir, read_json, write_json
from permix.types import Cell, Persona, Record

Kind = Literal["open", "personagym", "interview"]
Result = TypeVar("Result", bound=Record)


class AskedQuestion(Record):
    """A question as asked.json tells it. `task`: which of PersonaGym's, if any; `persona_id`: who is asked it, None for all."""

    id: str
    text: str
    task: str | None = None
    persona_id: str | None = None


def in_words(personas: Sequence[Persona], questions: Sequence[AskedQuestion]) -> dict[str, object]:
    """For asked.json: what the ids there stand for."""
    return {
        "persona_texts": {persona.id: persona.text for persona in personas},
        "questions_asked": [question.model_dump() for question in questions],
    }


def kind_of(config: Mapping[str, Any]) -> Kind:
    """The kind of a fidelity run, from its config.json; runs older than the other kinds are open."""
    if (config.get("interview") or {}).get("turns"):
        return "interview"
    gym = config.get("personagym") or {}
    return "personagym" if gym.get("path") or gym.get("hub") else "open"


def questions_asked(run: Path) -> tuple[AskedQuestion, ...]:
    """What a run asked, in words; empty for a run that is older than that."""
    path = run / "asked.json"
    found = read_json(path).get("questions_asked", ()) if path.exists() else ()
    return tuple(AskedQuestion.model_validate(one) for one in found)


def answer(
    model: Model,
    config: FidelityStage,
    asked: Sequence[Cell],
    about: Mapping[str, object],
    measure: Callable[[Path], Result],
    **identity: object,
) -> Result:
    """Have every cell answered, or go on; write asked.json (`about`) and metrics.json (what `measure` makes of the run).

    `identity`: what else all records of the run have in common. Raises OwedCellsError when answers are missing, and what
    `measure` raises when none are.
    """
    common = {
        "model": model.fingerprint,
        "template": template_hash(config.personas.template),
        "sampling": config.sampling.model_dump(),
        "seed": config.seed,
    }
    with RunDir.open(config.out, config, common | identity, asked) as run:
        write_json(run.path / "asked.json", about)
        with run.accounted():
            owed = fill(model, asked, config.sampling, run, None, f"fidelity {config.label or model.name}")
        missing = f"{config.out}: {owed} of {len(asked)} answers are missing; run the same command again to fill them"
        try:
            result = measure(run.path)
        except DataError as error:
            raise (OwedCellsError(missing) if owed else error) from error
        write_metrics(run.path, result)
    if owed:
        raise OwedCellsError(missing)
    return result


def write_metrics(run: Path, result: Record) -> None:
    """metrics.json: what the kind measures, and under "unjudged" what is measured of all kinds."""
    write_json(run / "metrics.json", result.model_dump(mode="json") | {"unjudged": measure_unjudged(run).model_dump(mode="json")})
