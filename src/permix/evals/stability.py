"""`permix stability`: how much accuracy personas cost a model, and whether the difference is noise.

Asks every question under every persona and without one, keeps each cell, and measures from the records alone: `measure(run)`
gives the same numbers wherever the run directory is.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from permix.config import ModelConfig, StabilityStage
from permix.errors import OwedCellsError
from permix.evals.grid import Wording, describe_asked, fill, lay_out, note_seen_personas
from permix.evals.stability_summary import StabilitySummary, summarize
from permix.models import open_model
from permix.personas.choose import choose_personas
from permix.prompting import template_hash
from permix.records import RunDir, read_cells, read_json, write_json
from permix.tasks import load_questions, refuse_overlap, verify
from permix.tasks.overlap import read_seen
from permix.train.plan import read_plan
from permix.types import CellKey
from permix.verify import Verifier

__all__ = ["StabilityGrid", "StabilitySummary", "grids", "measure", "stability", "summarize"]


def stability(config: StabilityStage) -> StabilitySummary:
    """Run, or go on with, an evaluation; writes metrics.json and returns it.

    Raises OwedCellsError at the end when cells have no score: run the same again to fill them.
    """
    task, questions = load_questions(config.task)
    pool = choose_personas(config.personas)
    refuse_overlap(questions, seen_hashes(config.model, config.exclude_plans))
    note_seen_personas(config.model, pool)
    wording = Wording(task.prompt, config.personas.template, config.personas.bare)
    asked = lay_out([None, *pool.personas], questions, wording, samples=config.samples, seed=config.seed)
    model = open_model(config.model, config.threads)
    identity = {
        "model": model.fingerprint,
        "task": task.name,
        "prompt": task.prompt_hash,
        "template": template_hash(config.personas.template),
        "bare": config.personas.bare,
        "default_system": None if config.personas.bare else model.default_system,
        "sampling": config.sampling.model_dump(),
        "seed": config.seed,
    }
    with RunDir.open(config.out, config, identity, asked) as run:
        write_json(run.path / "asked.json", describe_asked(pool, questions, config.samples))
        with run.accounted(), Verifier() as verifier:
            what = f"stability {config.label or model.name}"
            owed = fill(model, asked, config.sampling, run, lambda text, gold: verify(task, text, gold, verifier), what)
        summary = measure(run.path)
        write_json(run.path / "metrics.json", summary)
    if owed:
        raise OwedCellsError(f"{config.out}: {owed} of {len(asked)} cells have no score; run the same command again to fill them")
    return summary


def seen_hashes(model: ModelConfig, plans: Sequence[Path]) -> frozenset[str]:
    """Content hashes of the questions that the model, or any of the plans, was trained on."""
    seen = read_seen(Path(model.name)).questions
    return seen.union(*({row.question_hash for row in read_plan(plan).rows} for plan in plans))


class StabilityGrid(NamedTuple):
    """Scores by cell: 1 right, 0 wrong, NaN not scored."""

    correct_P_Q_S: npt.NDArray[np.float64]
    baseline_Q_S: npt.NDArray[np.float64]
    persona_ids: tuple[str, ...]
    question_ids: tuple[str, ...]


def grids(run: Path) -> StabilityGrid:
    """The scores of a run directory. Cells that were asked but have no record are there, unscored."""
    cells = read_cells(run / "records.jsonl")
    if (run / "asked.json").exists():
        asked = read_json(run / "asked.json")
        personas, questions, samples = asked["persona_ids"], asked["question_ids"], asked["samples"]
    else:
        personas = list(dict.fromkeys(key.persona_id for key in cells if key.persona_id is not None))
        questions = list(dict.fromkeys(key.question_id for key in cells))
        samples = 1 + max((key.sample for key in cells), default=0)
    score = {key: cell.verdict.reward for key, cell in cells.items() if cell.verdict is not None}
    table = [
        [[score.get(CellKey(persona, question, sample)) for sample in range(samples)] for question in questions]
        for persona in (None, *personas)
    ]
    scores = np.array(table, dtype=np.float64)  # None becomes NaN
    return StabilityGrid(scores[1:], scores[0], tuple(personas), tuple(questions))


def measure(run: Path) -> StabilitySummary:
    """Every measure of a run, from its records."""
    config = read_json(run / "config.json")
    grid = grids(run)
    return summarize(
        grid.correct_P_Q_S, grid.baseline_Q_S, persona_ids=grid.persona_ids, seed=config["seed"], resamples=config["resamples"]
    )
