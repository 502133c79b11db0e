"""From a run of `permix fidelity` to the answers a judge is shown."""

from pathlib import Path

from permix.judging.base import Item


def read_items(run: Path) -> list[Item]:
    """Every answer of the run as it is to be judged (control "none"), and those given without persona ("no-persona")."""
    raise NotImplementedError
