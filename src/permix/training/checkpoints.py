"""Finds, completes and deletes checkpoints, and keeps the rollouts in them.

The last file of a checkpoint is its manifest: the step, a hash of the run's identity, size and SHA-256 of every file, and how far
the run's logs went. A checkpoint is used only if all of this still holds; else the one before it is used (two are kept), or
training starts again from its first step, with the same result. The manifest finds damage and mistakes. It is no signature:
whoever can write the folder can write a manifest too.

With `train.updates_per_rollout` > 1 a checkpoint may fall between two optimizer steps on the same rollouts, so it holds them.
Every process writes its own rollouts as `permix_rollouts-RANK-of-COUNT.pt`, even if there are none. The file names therefore say
how many processes wrote the checkpoint, and only the same number may resume from it: with another number, gradients would be
added in another order, and the result would match neither run.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import IO, TYPE_CHECKING

from permix.errors import ConfigError, DataError
from permix.progress import print_status
from permix.storage.files import guard_writes, read_json, write_error, write_json
from permix.storage.run_dir import read_provenance
from permix.training import distributed
from permix.training.run_log import read_log_until
from permix.types import Record, digest

if TYPE_CHECKING:
    from permix.training.rollouts import Sample


def save_rollouts(checkpoint: Path, samples: "Sequence[Sample]", rank: int, world_size: int) -> None:
    """Write this process's rollouts into the checkpoint."""
    import torch

    torch.save([asdict(sample) for sample in samples], _rollouts_path(checkpoint, rank, world_size))


def load_rollouts(checkpoint: Path, rank: int, world_size: int) -> "list[Sample]":
    """The rollouts that this process wrote into the checkpoint."""
    import torch

    from permix.training.rollouts import Sample

    return [Sample(**one) for one in torch.load(_rollouts_path(checkpoint, rank, world_size), weights_only=True)]


def _rollouts_path(checkpoint: Path, rank: int, world_size: int) -> Path:
    return checkpoint / f"permix_rollouts-{rank}-of-{world_size}.pt"


def check_world_size(checkpoint: Path, world_size: int) -> None:
    """Raise ConfigError if another number of processes wrote the checkpoint, DataError if a process's file is missing."""
    counts = sorted(path.stem.rpartition("-")[2] for path in checkpoint.glob("permix_rollouts-*-of-*.pt"))
    others = [one for one in counts if one != str(world_size)]
    if others:
        raise ConfigError(
            f"{checkpoint}: was written by {others[0]} processes, and this run has {world_size}; continue with {others[0]} "
            f"(torchrun --nproc_per_node {others[0]}), or start a new run in another folder"
        )
    if len(counts) != world_size:
        raise DataError(
            f"{checkpoint}: holds the rollouts of {len(counts)} of {world_size} processes; remove it, or start in another folder"
        )


MANIFEST = "permix_manifest.json"

RUN_LOGS = ("log.jsonl", "rollouts.jsonl", "dev_eval.jsonl", "examples.jsonl")
"""Files of the run directory that a resumed run reads or continues: as far as a checkpoint knows them, they may not change."""

KEPT_CHECKPOINTS = 2

_CHECKPOINT_NAME = re.compile(r"checkpoint-([1-9][0-9]{0,17})")


class Manifest(Record):
    """What a checkpoint holds. `files` and `logs`: (size in bytes, SHA-256) by name, of a log as far as it had come.

    `run`: hash of the run's identity.
    """

    step: int
    run: str
    files: dict[str, tuple[int, str]]
    logs: dict[str, tuple[int, str]]


class _UnusableError(Exception):
    """A checkpoint that cannot be used; the message names the file and what is wrong with it."""


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint in `folder`, the run's `checkpoints`, whose files are those that were written; None without one.

    Prints a line for each newer one, which names the file that is wrong. Raises DataError if the run's logs are not those that
    the checkpoint was written with. All files of a checkpoint are hashed: call it in one process.
    """
    problems, found = [], None
    for path in sorted(folder.glob("checkpoint-*"), key=lambda path: (_step_in_name(path), path.name), reverse=True):
        try:
            manifest = _verified_manifest(path)
        except _UnusableError as error:
            problems.append(str(error))
            continue
        found = path
        _check_logs(path, manifest.logs)
        break
    outcome = f"training continues from {found.name}" if found else "training starts again from its first step"
    for problem in problems:
        print_status(f"note: {problem}, so it is not used; {outcome}")
    return found


def checkpoint_step(checkpoint: Path | None) -> int:
    """Number of optimizer steps that the checkpoint contains; 0 without one."""
    return _step_in_name(checkpoint) if checkpoint else 0


def checkpoint_steps(folder: Path) -> list[int]:
    """The steps of all checkpoints in `folder`, usable or not, in order."""
    return sorted(filter(None, map(_step_in_name, folder.glob("checkpoint-*"))))


def _step_in_name(path: Path) -> int:
    """The step in a checkpoint's name; 0 for any other name."""
    name = _CHECKPOINT_NAME.fullmatch(path.name)
    return int(name[1]) if name else 0


def _verified_manifest(checkpoint: Path) -> Manifest:
    """The manifest of a checkpoint of this run. Raises _UnusableError unless the checkpoint has the files that it names."""
    if not _step_in_name(checkpoint):
        raise _UnusableError(f"{checkpoint}: its name has no step")
    if not checkpoint.is_dir():
        raise _UnusableError(f"{checkpoint}: is not a folder")
    if not (checkpoint / MANIFEST).is_file():
        raise _UnusableError(f"{checkpoint}: is incomplete, since it has no {MANIFEST}")
    try:
        manifest = Manifest.model_validate(read_json(checkpoint / MANIFEST))
    except (DataError, ValueError, RecursionError) as error:
        raise _UnusableError(f"{checkpoint / MANIFEST}: is damaged") from error
    if (manifest.step, manifest.run) != (_step_in_name(checkpoint), _identity_hash(checkpoint.parent.parent)):
        raise _UnusableError(f"{checkpoint}: was written at step {manifest.step} of another run, or renamed")
    _check_files(checkpoint, manifest.files)
    return manifest


def _check_files(checkpoint: Path, expected: Mapping[str, tuple[int, str]]) -> None:
    """Raise _UnusableError for the first file that is missing, damaged or added."""
    found = _checkpoint_files(checkpoint)
    for name in sorted(expected.keys() | found.keys()):
        if name not in found:
            raise _UnusableError(f"{checkpoint / name}: is missing")
        if name not in expected:
            raise _UnusableError(f"{checkpoint / name}: is not a file of this checkpoint")
        if found[name].is_file() and found[name].stat().st_size != expected[name][0]:  # before hashing, which takes longer
            raise _UnusableError(f"{checkpoint / name}: is damaged, since its size has changed")
    for name, described in _describe_files(found).items():
        if described != expected[name]:
            raise _UnusableError(f"{checkpoint / name}: is damaged, since its content has changed")


def _check_logs(checkpoint: Path, logs: Mapping[str, tuple[int, str]]) -> None:
    """Raise DataError if a log of the run does not begin as it was when the checkpoint was written."""
    for name, (size, sha) in logs.items():
        path = checkpoint.parent.parent / name
        if not path.is_file():
            raise DataError(f"{path}: is missing{_logs_advice(checkpoint)}")
        read_log_until(path, 0)  # names the line of one that is torn
        with path.open("rb") as file:
            if _sha256(file, size) != sha:
                raise DataError(f"{path}: its first {size} bytes have changed{_logs_advice(checkpoint)}")


def _logs_advice(checkpoint: Path) -> str:
    remedy = f"restore the file, or remove {checkpoint.parent} to train again from the first step"
    return f", and {checkpoint.name} was written with it; {remedy}"


@contextlib.contextmanager
def write_checkpoint(checkpoint: Path) -> Iterator[None]:
    """Complete the checkpoint that the block writes with its manifest. Every process of the run calls it.

    Room is made first: of the checkpoints before it only the newest stays. Raises PermixError if the system refuses to write; the
    incomplete checkpoint is deleted, and the previous one stays.
    """
    from safetensors import SafetensorError
    from torch.distributed.checkpoint.api import CheckpointException

    if distributed.is_main():
        with guard_writes(checkpoint):
            delete_older_checkpoints(checkpoint, keep=KEPT_CHECKPOINTS - 1)
            _delete(checkpoint)
    distributed.barrier()
    try:
        yield
        if distributed.is_main():
            _write_manifest(checkpoint)
    except (OSError, RuntimeError, SafetensorError, CheckpointException) as error:
        cause = next(iter(error.failures.values()))[0] if isinstance(error, CheckpointException) else error
        if not _is_failed_write(cause):
            raise cause from None
        shutil.rmtree(checkpoint, ignore_errors=True)
        raise write_error(checkpoint, cause) from error


_FAILED_WRITE_SIGNS = ("inline_container", "PytorchStreamWriter", "iostream error", "Parent directory")
"""Parts of the messages of `torch.save` for a file that cannot be written. Other RuntimeErrors have other causes, such as a GPU
without memory or a lost process."""


def _is_failed_write(error: BaseException) -> bool:
    from safetensors import SafetensorError

    has_sign = isinstance(error, RuntimeError) and any(sign in str(error) for sign in _FAILED_WRITE_SIGNS)
    return isinstance(error, (OSError, SafetensorError)) or has_sign


def delete_older_checkpoints(checkpoint: Path, keep: int) -> None:
    """Delete the checkpoints of earlier steps than that of `checkpoint`, but for the last `keep`."""
    older = [step for step in checkpoint_steps(checkpoint.parent) if step < _step_in_name(checkpoint)]
    for step in older[: len(older) - keep]:
        _delete(checkpoint.with_name(f"checkpoint-{step}"))


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _write_manifest(checkpoint: Path) -> None:
    out = checkpoint.parent.parent
    files = _describe_files(_checkpoint_files(checkpoint))
    logs = {name: _describe_log(out / name) for name in RUN_LOGS if (out / name).exists()}
    write_json(checkpoint / MANIFEST, Manifest(step=_step_in_name(checkpoint), run=_identity_hash(out), files=files, logs=logs))


def _identity_hash(out: Path) -> str:
    """Hash of the run's identity; empty without provenance, as where Python started a trainer without a run directory."""
    if not (out / "provenance.json").exists():
        return ""
    return digest(json.dumps(read_provenance(out)["identity"], sort_keys=True))


def _checkpoint_files(checkpoint: Path) -> dict[str, Path]:
    """Every file of a checkpoint but its manifest, by its path in the checkpoint."""
    found = (path for path in checkpoint.rglob("*") if not path.is_dir() and path.name != MANIFEST)
    return {path.relative_to(checkpoint).as_posix(): path for path in sorted(found)}


def _describe_files(paths: Mapping[str, Path]) -> dict[str, tuple[int, str]]:
    """(size in bytes, SHA-256) of each file; (0, "") for what is no regular file, such as a pipe."""
    with ThreadPoolExecutor(max_workers=4) as threads:  # hashing releases the GIL
        return dict(zip(paths, threads.map(_describe_file, paths.values()), strict=True))


def _describe_file(path: Path) -> tuple[int, str]:
    if not path.is_file():
        return 0, ""
    with path.open("rb") as file:
        return path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()


def _describe_log(path: Path) -> tuple[int, str]:
    with path.open("rb") as file:
        os.fsync(file.fileno())  # a crash of the machine must not take lines that the checkpoint counts on
        size = path.stat().st_size
        return size, _sha256(file, size)


def _sha256(file: IO[bytes], size: int) -> str:
    """SHA-256 of the next `size` bytes, or of fewer if the file ends before."""
    sha = hashlib.sha256()
    while size > 0 and (chunk := file.read(min(size, 1 << 20))):
        sha.update(chunk)
        size -= len(chunk)
    return sha.hexdigest()
