"""`permix compare`: is one model more stable than another? Every measure of two stability runs, with interval and test.

Contract: from the runs' records alone, as the report; two runs that were not asked the same, or not judged the same, are refused
with the reason. Names may be hostile text.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from permix.config import CompareStage
from permix.errors import ConfigError, DataError
from permix.escape import visible
from permix.evals.paired import Difference, Paired, PersonaDifference, paired
from permix.evals.stability import grids
from permix.records import write_json, write_text
from permix.report import reading, tables
from permix.report.runs import WHOLE_GRID, Run, find, label_of
from permix.report.table import MISSING, grid, one_line

NAMES = {
    "baseline": "no persona", "mean": "mean over personas", "worst": "worst persona", "best": "best persona",
    "pss": "PSS", "pss_crossfit": "PSS cross-fitted", "spread": "best − worst", "persona_sd": "sd of personas",
    "shift": "mean − no persona", "worst_minus_baseline": "worst − no persona", "case_worst": "each question's worst persona",
}  # fmt: skip
NOTE = (
    "Second − first, paired by persona and question, with 95 % intervals over {questions} questions; p: the models "
    "swapped question by question, two-sided, for each measure alone. Personas: sign-flip test, corrected for their number "
    "(Holm)."
)


class Compared(NamedTuple):
    """What stands in the tables."""

    first: Run
    other: Run
    found: Paired

    @property
    def labels(self) -> tuple[str, str]:
        runs = (self.first, self.other)
        named = [label_of(run, runs) for run in runs]
        one, two = named if named[0] != named[1] else [str(run.path) for run in runs]
        return one, two


def compare_stage(config: CompareStage) -> None:
    """The command: print both tables; write them where the configuration says."""
    if len(config.runs) != 2:
        raise ConfigError(f"runs: compare takes two, and {len(config.runs)} came: permix compare FIRST SECOND [--out DIR]")
    compared = compare(*config.runs, seed=config.seed, resamples=config.resamples)
    console = Console()
    for table in terminal(compared):
        console.print(table)
    console.print(NOTE.format(questions=compared.found.n_questions), markup=False, highlight=False)
    if config.out is not None:
        write_text(config.out / "comparison.md", document(compared))
        about = {"first": str(compared.first.path), "other": str(compared.other.path)}
        write_json(config.out / "comparison.json", about | compared.found.model_dump(mode="json"))
        console.print(str(config.out / "comparison.md"), markup=False, highlight=False, soft_wrap=True)


def compare(first: Path, other: Path, *, seed: int = 0, resamples: int = 2000) -> Compared:
    """Two stability runs, or folders that hold one each. Raises DataError when they are not that, or may not be compared."""
    one, two = _stability_run(first), _stability_run(other)
    grid, there = grids(one.path), grids(two.path)
    if reasons := reading.unlike(one, two, grid, there):
        raise DataError(f"{one.path} and {two.path} cannot be compared: {'; '.join(reasons).lower()}")
    scores = (reading.in_order_of(grid, one_grid) for one_grid in (grid, there))
    rows = [np.vstack([under_P_Q, without_Q[None]]) for under_P_Q, without_Q in scores]
    return Compared(one, two, paired(rows[0], rows[1], grid.persona_ids, seed=seed, resamples=resamples))


def _stability_run(path: Path) -> Run:
    whole = [run for run in find(path) if run.stage == "stability" and run.strategy in {"none", *WHOLE_GRID}]
    if len(whole) != 1:
        held = ", ".join(str(run.path) for run in whole) or "none"
        raise DataError(f"{path}: give one stability run; it holds {held}")
    return whole[0]


def terminal(compared: Compared) -> list[Table]:
    """For a terminal: measures, then personas, the one that lost most first."""
    labels = [Text(one_line(label)) for label in compared.labels]
    found = []
    for heading, lines in (("", _measures(compared.found)), ("persona", _personas(compared.found))):
        table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
        table.add_column(heading)
        for column in (*labels, Text("second − first"), Text("p")):
            table.add_column(column, overflow="fold")
        for line in lines:
            table.add_row(*(Text(visible(cell)) for cell in line))
        found.append(table)
    return found


def document(compared: Compared) -> str:
    """The same as Markdown."""
    one, two = map(tables.label, compared.labels)
    parts = [
        f"# {two} against {one}",
        NOTE.format(questions=compared.found.n_questions),
        grid(["", one, two, "second − first", "p"], _measures(compared.found)),
        grid(
            ["persona", one, two, "second − first", "p"],
            [[tables.label(line[0]), *line[1:]] for line in _personas(compared.found)],
        ),
    ]
    return "\n\n".join(parts) + "\n"


def _measures(found: Paired) -> list[Sequence[str]]:
    return [(NAMES[one.name], *_cells(one, one.p)) for one in found.measures]


def _personas(found: Paired) -> list[Sequence[str]]:
    ordered = sorted(found.personas, key=lambda one: (one.difference.value is None, one.difference.value or 0.0, one.id))
    return [(one.id, *_cells(one, one.holm_p)) for one in ordered]


def _cells(one: Difference | PersonaDifference, p: float | None) -> tuple[str, ...]:
    signed = MISSING if one.difference.value is None else one.difference.signed()
    alone = (tables.number(value).replace("-", "−") for value in (one.first, one.other))
    return (*alone, signed, tables.probability(p))
