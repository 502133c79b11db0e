"""`permix import` turns logs of another program into a run directory; `permix export` turns a stability run into such logs.

Import generates no answers. It reads and checks all logs before it writes. It refuses a run directory of another origin.
Importing the same logs again changes nothing. Answers keep the verdict of their log; with `answer` they get one from permix's
verifier. Cells without a score are counted as missing.

Export reads the records alone, and exporting a run twice gives the same files. docs/interop.md lists the parts of a run that the
other program's format cannot hold.
"""

import json
from collections.abc import Sequence
from typing import Any

from permix.config import ExportConfig, ImportConfig, ImportedModelConfig, ImportedStabilityConfig
from permix.errors import ConfigError, option_context
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
from permix.types import Cell, count_text, digest


def export_run(config: ExportConfig) -> dict[str, str]:
    """Write the run in the chosen format; returns facts to print. Raises DataError for a run that cannot be exported."""
    with option_context("run", config.run):
        run = read_exportable_run(config.run)
    if config.format == "lm-eval":
        written = lm_eval.write_lm_eval_logs(run, config.out)
    else:
        from permix.interop.inspect_logs import write_inspect_log

        written = write_inspect_log(run, config.out)
    cells = run.results.grid_summaries.values()
    n_scored = sum(cell.reward is not None for cell in cells)
    return {"format": config.format, "cells": f"{len(cells)}, {n_scored} of them scored", **written}


def import_run(config: ImportConfig) -> StabilitySummary:
    """Read, check and, with `answer`, rescore the logs; then write the run. Raises ConfigError or DataError before writing."""
    merged = read_import_logs(config)
    cells = merged.cells if config.answer is None else rescore_cells(merged.cells, config.answer)
    run_config = ImportedStabilityConfig(
        label=config.label,
        model=ImportedModelConfig(name=merged.first.model),
        sampling=merged.first.sampling,
        samples=merged.samples,
        seed=config.seed,
        resamples=config.resamples,
        imported=config,
    )
    for note in merged.notes:
        print_status(f"note: {note}")
    with RunDir.open(config.out, run_config, import_identity(merged, config), merged.cells) as run:
        write_json(run.path / "grid.json", describe_grid(merged.personas, merged.questions, merged.samples))
        known = run.cells()
        run.append(cell for cell in cells if known.get(cell.key) != cell)
        summary = measure_stability(run.path)
        write_json(run.path / "metrics.json", summary)
    print_status(
        f"imported {count_text(len(cells), 'answer')}: {count_text(summary.n_personas, 'persona')} × "
        f"{count_text(summary.n_questions, 'question')} × {count_text(merged.samples, 'sample')}"
    )
    if missing := summary.n_asked - summary.n_scored:
        print_status(f"note: {missing} of {summary.n_asked} persona cells have no score; they count as missing, not as wrong")
    return summary


def describe_import(config: ImportConfig) -> dict[str, str]:
    """Facts about the run that an import would write, for `permix check`."""
    merged = read_import_logs(config)
    return {
        "model": merged.first.model or "unknown",
        "task": merged.first.task,
        "personas": ", ".join(persona.id for persona in merged.personas),
        "questions": str(len(merged.questions)),
        "answers": str(len(merged.cells)),
        "scorer": merged.first.scorer,
        **({"notes": "; ".join(merged.notes)} if merged.notes else {}),
    }


LM_EVAL_SAME_QUESTION = "two samples ask the same question if their tasks and their doc_hash are equal"

INSPECT_SAME_QUESTION = (
    "two samples ask the same question if their ids are equal (logs of one persona each), or if their texts without the system "
    "message are equal (a log of several personas); if your prompt has the persona in the user's message, give every sample the "
    'metadata permix = {"question_id": ID}, with one ID for each question'
)
"""When samples of logs have the same question, for an error."""


def read_import_logs(config: ImportConfig) -> MergedLogs:
    """Read all logs of the configuration and merge them into one grid. Raises ConfigError or DataError if that fails."""
    if bool(config.lm_eval) == bool(config.inspect):
        raise ConfigError(
            "give one of these four to import: --lm-eval none=DIR pirate=DIR, --inspect LOG, --personagym DIR, or --verl DIR "
            "with --plan" + ("; --lm-eval and --inspect are both given" if config.lm_eval else "")
        )
    if config.answer and (config.metric or config.filter):
        raise ConfigError(f"answer = {config.answer!r}: permix scores every answer again; leave metric and filter out")
    if config.inspect and config.filter:
        raise ConfigError(f"filter = {config.filter!r}: inspect_ai has no filters; give --metric, the name of a scorer")
    merged = merge_logs(_read_sources(config), LM_EVAL_SAME_QUESTION if config.lm_eval else INSPECT_SAME_QUESTION)
    if not merged.personas:
        raise ConfigError(f"{merged.first.where}: no log has a persona: name the persona of a log with NAME=PATH")
    return merged


def _read_sources(config: ImportConfig) -> Sequence[LogSource]:
    if config.lm_eval:
        entries, option = parse_log_paths(config.lm_eval, "lm_eval"), "lm_eval"
    else:
        entries, option = parse_log_paths(config.inspect, "inspect"), "inspect"
    sources: list[LogSource] = []
    for entry in entries:
        with option_context(option, entry.path):
            if config.lm_eval:
                sources.append(lm_eval.read_lm_eval_log(entry, config))
            else:
                from permix.interop.inspect_logs import read_inspect_logs

                sources += read_inspect_logs(entry, config)
    return sources


def import_identity(merged: MergedLogs, config: ImportConfig) -> dict[str, Any]:
    """The identity of the imported run. A run that permix exported keeps its own fields, so that it stays comparable."""
    default_system = {} if merged.default_system is None else {"default_system": merged.default_system}
    from_logs = {
        "model": merged.first.model,
        "task": merged.first.task,
        "sampling": merged.first.sampling.model_dump(),
        "settings": digest(json.dumps(merged.first.details, sort_keys=True)),
    }
    judge = merged.first.scorer if config.answer is None else f"permix own-{config.answer}"
    from_import = {"judge": judge, "imported": "lm-eval" if config.lm_eval else "inspect"}
    return from_logs | default_system | dict(merged.first.permix_identity or {}) | from_import


def rescore_cells(cells: Sequence[Cell], answer: str) -> list[Cell]:
    """The cells with verdicts of the task own-ANSWER. That task extracts the gold answer from the log's target."""
    task = TASKS[f"own-{answer}"]

    def rescore(cell: Cell) -> Cell:
        if cell.completion is None or cell.gold is None:
            return cell
        gold = task.extract_answer(cell.gold) or cell.gold
        return cell.model_copy(update={"verdict": verify_completion(task, cell.completion.text, gold, cell.prompt)})

    return [rescore(cell) for cell in cells]
