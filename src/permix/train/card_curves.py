"""The curves of a card: figures of a training and of its probes, drawn beside the card, and the probes' numbers as a table.

Contract: the figures are those of a report on the run, from its logs and records. matplotlib is imported here, and only when
called: a training that has not ended yet has not loaded it.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from permix.train.probe import Curve, Point


def draw_curves(folder: Path, name: str, log: Sequence[Mapping[str, Any]], curve: Curve | None) -> list[str]:
    """Write training.png (of a training by reward) and probes.png into `folder`; return a section in Markdown, or none."""
    from permix.report import plots

    parts = []
    if any(line.get("reward") is not None for line in log):
        plots.learning_curves({name: log}, folder / "training.png")
        parts.append("![Learning curves](training.png)")
    if curve is not None and curve.points:
        plots.probe_curves({name: curve}, folder / "probes.png")
        parts += ["![Probes while training](probes.png)", _table(curve.points)]
    return ["## Learning curves", *parts] if parts else []


def _table(points: Sequence[Point]) -> str:
    from permix.report.table import grid
    from permix.report.tables import estimate, of

    headings = ["step", "no persona", "mean over personas", "worst persona", "PSS", "identifiability", "scored of asked"]
    lines = [
        [
            str(point.step),
            *(estimate(one).markdown for one in (point.baseline, point.mean, point.worst, point.pss, point.identifiability)),
            of(point.n_scored, point.n_asked),
        ]
        for point in points
    ]
    return grid(headings, lines)
