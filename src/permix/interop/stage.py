"""`permix import`: runs that another program has made, as a run directory that every report and measure reads.

Contract: nothing is generated. Everything is read and checked before anything is written; importing onto a run of another origin
is refused, and importing the same again changes nothing. Answers keep the verdict of their log, or with `answer` get one from our
own verifier. What has no score stays without one and is counted.

`permix export`: a stability run's grid in the files of another program, for its viewers and for `permix import`.

Contract: from the records alone, and writing the same twice gives the same files. What the other program has no place for is
lost: docs/interop.md says what.
"""

import json
from collections.abc import Sequence
from typing import Any

from permix.config import ExportConfig, ImportConfig, ImportedModelConfig, ImportedStabilityConfig
from permix.errors import ConfigError
from permix.evals.grid import describe_grid
from permix.evals.stability import measure_stability
from permix.interop import lm_eval
from permix.interop.merging import LogSource, MergedLogs, merge_logs, parse_log_paths, read_exportable_run
from permix.metrics.stability import StabilitySummary
from permix.progress import print_status
from permix.storage.files import write_json
from permix.storage.run_dir import RunDir
from permix.tasks import TASKS
from permix.tasks.base import verify_completion
from permix.types import Cell, digest
from permix.verification.math_verifier import Verifier


def export_run(config: ExportConfig) -> dict[str, str]:
    """Write the files; returns facts about them. Raises DataError for what is no stability run, or has no records."""
    run = read_exportable_run(config.run)
    if config.format == "lm-eval":
        from permix.interop.lm_eval import write_lm_eval_logs

        written = write_lm_eval_logs(run, config.out)
    else:
        from permix.interop.inspect_logs import write_inspect_log

        written = write_inspect_log(run, config.out)
    cells = run.results.grid_summaries.values()
    scored = sum(brief.reward is not None for brief in cells)
    return {"format": config.format, "cells": f"{len(cells)}, {scored} of them scored", **written}


def import_run(config: ImportConfig) -> StabilitySummary:
    """Read, check, judge if asked to, and write the run. Raises ConfigError or DataError before anything is written."""
    found = read_import_logs(config)
    about = ImportedStabilityConfig(
        label=config.label,
        model=ImportedModelConfig(name=found.first.model),
        sampling=found.first.sampling,
        samples=found.samples,
        seed=config.seed,
        resamples=config.resamples,
        imported=config,
    )
    with RunDir.open(config.out, about, import_identity(found, config), found.cells) as run:
        write_json(run.path / "grid.json", describe_grid(found.personas, found.questions, found.samples))
        known = run.cells()
        cells = found.cells if config.answer is None else rescore_cells(found.cells, config.answer)
        run.append(cell for cell in cells if known.get(cell.key) != cell)
        summary = measure_stability(run.path)
        write_json(run.path / "metrics.json", summary)
    print_status(
        f"imported {len(cells)} answers: {summary.n_personas} personas × {summary.n_questions} questions × {found.samples}"
    )
    if missing := summary.n_asked - summary.n_scored:
        print_status(f"note: {missing} of {summary.n_asked} persona cells have no score: they are missing, not wrong")
    return summary


def describe_import(config: ImportConfig) -> dict[str, str]:
    """What an import would make, for `permix check`."""
    found = read_import_logs(config)
    return {
        "model": found.first.model,
        "task": found.first.task,
        "personas": ", ".join(persona.id for persona in found.personas),
        "questions": str(len(found.questions)),
        "answers": str(len(found.cells)),
        "judged by": found.first.scorer,
    }


def read_import_logs(config: ImportConfig) -> MergedLogs:
    """Every log that the configuration names, as one grid with personas in it."""
    if bool(config.lm_eval) == bool(config.inspect):
        raise ConfigError(
            "lm_eval, inspect: give the logs of one of the two, such as --lm-eval none=DIR pirate=DIR, or --personagym DIR"
        )
    if config.answer and (config.metric or config.filter):
        raise ConfigError(f"answer = {config.answer!r}: every answer is judged anew; leave metric and filter out")
    if config.inspect and config.filter:
        raise ConfigError(f"filter = {config.filter!r}: inspect_ai has no filters; give --metric, the name of a scorer")
    found = merge_logs(_read_sources(config))
    if not found.personas:
        raise ConfigError(f"{found.first.where}: nobody was asked as a persona: give NAME=PATH for logs that were")
    return found


def _read_sources(config: ImportConfig) -> Sequence[LogSource]:
    if config.lm_eval:
        return [lm_eval.read_lm_eval_log(entry, config) for entry in parse_log_paths(config.lm_eval, "lm_eval")]
    from permix.interop import inspect_logs

    return [
        source for entry in parse_log_paths(config.inspect, "inspect") for source in inspect_logs.read_inspect_logs(entry, config)
    ]


def import_identity(merged: MergedLogs, config: ImportConfig) -> dict[str, Any]:
    """What all records have in common. A run of ours that was exported keeps its own, so that it can be compared as before."""
    system = {} if merged.default_system is None else {"default_system": merged.default_system}
    plain = {
        "model": merged.first.model,
        "task": merged.first.task,
        "sampling": merged.first.sampling.model_dump(),
        "settings": digest(json.dumps(merged.first.details, sort_keys=True)),
    }
    judge = merged.first.scorer if config.answer is None else f"permix own-{config.answer}"
    here = {"judge": judge, "imported": "lm-eval" if config.lm_eval else "inspect"}
    return plain | system | dict(merged.first.permix_identity or {}) | here


def rescore_cells(cells: Sequence[Cell], answer: str) -> list[Cell]:
    """Every answer judged by the task own-ANSWER; the right answer is what that task reads in the log's target."""
    task = TASKS[f"own-{answer}"]
    with Verifier() as verifier:

        def judge(cell: Cell) -> Cell:
            if cell.completion is None or cell.gold is None:
                return cell
            gold = task.extract_answer(cell.gold) or cell.gold
            return cell.model_copy(update={"verdict": verify_completion(task, cell.completion.text, gold, verifier)})

        return [judge(cell) for cell in cells]
