"""The rollouts that a checkpoint was written in the midst of: with `train.iterations` > 1 one generation serves several steps.

Every process leaves its own in the checkpoint, as `permix_rollouts-RANK-of-COUNT.pt`, also when there are none to keep; so a
checkpoint says how many processes wrote it. Only as many can go on from it: another number would add gradients in another order,
and its result would be neither run's.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from permix.errors import ConfigError, DataError
from permix.train.samples import Sample


def write_buffer(checkpoint: Path, samples: Sequence[Sample], rank: int, count: int) -> None:
    torch.save([asdict(sample) for sample in samples], _path(checkpoint, rank, count))


def read_buffer(checkpoint: Path, rank: int, count: int) -> list[Sample]:
    return [Sample(**one) for one in torch.load(_path(checkpoint, rank, count), weights_only=True)]


def _path(checkpoint: Path, rank: int, count: int) -> Path:
    return checkpoint / f"permix_rollouts-{rank}-of-{count}.pt"


def refuse_other_count(checkpoint: Path, count: int) -> None:
    """Raise ConfigError when another number of processes wrote the checkpoint, DataError when a process's part is missing."""
    found = sorted(path.stem.rpartition("-")[2] for path in checkpoint.glob("permix_rollouts-*-of-*.pt"))
    others = [one for one in found if one != str(count)]
    if others:
        raise ConfigError(
            f"{checkpoint}: was written by {others[0]} processes, and this run has {count}; go on with {others[0]} "
            f"(torchrun --nproc_per_node {others[0]}), or begin anew in another folder"
        )
    if len(found) != count:
        raise DataError(
            f"{checkpoint}: holds the rollouts of {len(found)} of {count} processes; remove it, or begin in another folder"
        )
