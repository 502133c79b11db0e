"""Where a number comes from: what the page says of the run behind it.

Contract: a run is told once, and numbers refer to it by its place. Commands and paths may be hostile text and are made visible.
"""

from collections.abc import Sequence

from permix.escape import clip, visible
from permix.report.runs import ModelRuns, Run
from permix.report.sections import command_of, seed_of, settings_hash
from permix.report.table import Source

WIDTH = 2000


class Runs:
    """Every run of a report, by what numbers name as their source."""

    def __init__(self, models: Sequence[ModelRuns]) -> None:
        every = [(model.label, kind, run) for model in models for kind, run in model.every_run.items()]
        self.told = [_told(label, kind, run) for label, kind, run in every]
        self._place = {Source(label, kind): place for place, (label, kind, _) in enumerate(every)}

    def places(self, sources: Sequence[Source]) -> list[int]:
        """Of the runs that there are."""
        known = (source if source in self._place else source._replace(kind=source.kind.partition(",")[0]) for source in sources)
        return [self._place[source] for source in known if source in self._place]


def _told(label: str, kind: str, run: Run) -> dict[str, str]:
    facts = {
        "label": label,
        "kind": run.described if kind == "train" else kind,
        "path": str(run.path),
        "command": command_of(run),
        "configuration": settings_hash(run),
        "seed": seed_of(run),
        "revision": str(run.provenance.get("revision") or ""),
        "created": str(run.provenance.get("created") or ""),
    }
    return {name: clip(visible(text).replace("\n", " "), WIDTH) for name, text in facts.items()}
