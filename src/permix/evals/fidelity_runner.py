"""What the kinds of single-question fidelity runs share, and how all kinds are measured: cells answered once, metrics.json.

Contract: answers have no verdict; what is missing is owed and said, never made up.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from permix.config import FidelityConfig
from permix.errors import DataError, IncompleteRunError
from permix.evals.grid import run_cells
from permix.evals.text_metrics import measure_text_metrics
from permix.inference.base import Model
from permix.prompts import template_hash
from permix.storage.files import write_json
from permix.storage.run_dir import RunDir
from permix.types import Cell, Record

FidelityResult = TypeVar("FidelityResult", bound=Record)


def run_fidelity_cells(
    model: Model,
    config: FidelityConfig,
    cells: Sequence[Cell],
    grid_description: Mapping[str, object],
    measure: Callable[[Path], FidelityResult],
    **identity: object,
) -> FidelityResult:
    """Have every cell answered, or go on; write grid.json (`grid_description`) and metrics.json (what `measure` makes of
    the run).

    `identity`: what else all records of the run have in common. Raises OwedCellsError when answers are missing, and what
    `measure` raises when none are.
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
            owed = run_cells(model, cells, config.sampling, run, None, f"fidelity {config.label or model.name}")
        missing = f"{config.out}: {owed} of {len(cells)} answers are missing; run the same command again to fill them"
        try:
            result = measure(run.path)
        except DataError as error:
            raise (IncompleteRunError(missing) if owed else error) from error
        write_fidelity_metrics(run.path, result)
    if owed:
        raise IncompleteRunError(missing)
    return result


def write_fidelity_metrics(run: Path, result: Record) -> None:
    """metrics.json: what the kind measures, and under "unjudged" what is measured of all kinds."""
    write_json(
        run / "metrics.json", result.model_dump(mode="json") | {"unjudged": measure_text_metrics(run).model_dump(mode="json")}
    )
