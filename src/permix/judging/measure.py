"""From a judge's verdicts to numbers: PersonaScore and its tasks, and what the judge's trial says of them."""

from pathlib import Path

from permix.types import Record


class Judged(Record):
    """What one judge says of one run, and what that is worth."""


def measure_judge(run: Path, folder: Path, *, seed: int = 0, resamples: int = 2000) -> Judged:
    """Every measure of the judge in `folder` (one of `judges_of(run)`), from its ledger and the run's records."""
    raise NotImplementedError
