"""What the kinds of single-question fidelity runs share, and how all kinds are measured: cells answered once, metrics.json.

Contract: answers have no verdict; what is missing is owed and said, never made up.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from permix.config import FidelityStage
from permix.errors import DataError, OwedCellsError
from permix.evals.grid import fill
from permix.evals.text_metrics import measure_unjudged
from permix.inference.base import Model
from permix.prompts import template_hash
from permix.storage.files import write_json
from permix.storage.run_dir import RunDir
from permix.types import Cell, Record

Result = TypeVar("Result", bound=Record)


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
