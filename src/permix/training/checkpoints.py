"""Loads the network that is trained, finds and completes checkpoints, and writes the trained model.

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
from typing import IO, TYPE_CHECKING, Any

from permix.config import OptimConfig
from permix.errors import ConfigError, DataError
from permix.inference.hardware import pick_device, pick_dtype
from permix.inference.hf import load_causal_lm, load_empty_causal_lm
from permix.progress import print_status
from permix.storage.files import guard_writes, read_json, replace_when_done, write_error, write_json
from permix.storage.run_dir import read_provenance
from permix.training import distributed
from permix.training.compatibility import detect_sharding, has_sharded_weights
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


def load_trainable_model(source: str) -> Any:
    """The network to train, in float32. Under FSDP2 only the main process reads the weights; the others get shards later."""
    import torch

    # float32 even if train.precision is bfloat16: bfloat16 weights would lose small updates. Autocast is for forward passes only.
    if detect_sharding() == "fsdp2" and not distributed.is_main():
        return load_empty_causal_lm(source, torch.float32).train()
    return load_causal_lm(source, torch.float32, "cpu" if has_sharded_weights() else pick_device()).train()


def seed_trainer(seed: int) -> None:
    """Seed torch's global generator. TRL draws LoRA's first weights before it seeds anything, and all processes need the same."""
    import torch

    torch.manual_seed(seed)


def autocast_context(config: OptimConfig) -> Any:
    """A context with the precision of the trainer's forward passes."""
    import torch

    device = pick_device()
    dtype = pick_dtype(config.precision, device)
    return torch.autocast(device, dtype=dtype, enabled=dtype == torch.bfloat16)


def build_lora_config(config: OptimConfig) -> Any:
    """peft's configuration of adapters on every linear layer; None without LoRA."""
    if config.lora_rank == 0:
        return None
    from peft import LoraConfig

    return LoraConfig(r=config.lora_rank, lora_alpha=config.lora_alpha, target_modules="all-linear", task_type="CAUSAL_LM")


def save_model(
    trainer: Any, tokenizer: Any, config: OptimConfig, source: str, folder: Path, selected_weights: Path | None
) -> None:
    """Write a trainer's network, adapters merged, and the tokenizer into `folder`. Every process calls it; the main one writes.

    `source` is the model that training began with. `selected_weights`: a file of `save_weights` that replaces the last weights.
    """
    network, state = _merged_model(trainer, config, source, selected_weights)
    if not distributed.is_main():
        return
    import torch
    from safetensors import SafetensorError

    from permix.inference.generation import stop_at_end_of_turn

    stop_at_end_of_turn(network, tokenizer)  # adapters may have been merged into a newly loaded network
    if config.save_dtype == "bfloat16":
        state = _cast_state(network.state_dict() if state is None else state, torch.bfloat16)
    with guard_writes(folder, SafetensorError):
        network.save_pretrained(folder, state_dict=state)
        tokenizer.save_pretrained(folder)
        if config.save_dtype != "float32":  # save_pretrained writes the dtype of the network, which was not cast
            write_json(folder / "config.json", read_json(folder / "config.json") | {"dtype": config.save_dtype})
        _make_readable(folder)


def _cast_state(state: Mapping[str, Any], dtype: Any) -> dict[str, Any]:
    """The floating-point tensors of a state in another format. Tied tensors stay one tensor, so that they are saved once."""
    cast: dict[tuple[int, tuple[int, ...]], Any] = {}
    return {
        name: cast.setdefault((value.data_ptr(), tuple(value.shape)), value.to(dtype)) if value.is_floating_point() else value
        for name, value in state.items()
    }


def _make_readable(folder: Path) -> None:
    """Give every file the permissions of a new file: safetensors writes files that only their owner may read."""
    mask = os.umask(0)
    os.umask(mask)
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(0o666 & ~mask)


def _merged_model(
    trainer: Any, config: OptimConfig, source: str, selected_weights: Path | None
) -> tuple[Any, dict[str, Any] | None]:
    """The trained network with adapters merged. With sharded weights: and its state; (None, None) in other processes."""
    network, state = trainer.accelerator.unwrap_model(trainer.model), None
    if has_sharded_weights():
        state = trainer.accelerator.get_state_dict(trainer.model_wrapped)  # collective: before the other processes return
        if not distributed.is_main():
            return None, None
        restore_weights(network, selected_weights, state)
        if hasattr(network, "merge_and_unload"):  # shards cannot be merged: load the whole weights into a new network
            from peft import get_peft_model

            network, full_state = get_peft_model(load_trainable_model(source), build_lora_config(config)), state
            network.load_state_dict(full_state, assign=True)
            network.get_base_model().tie_weights()
            state = None
    else:
        restore_weights(network, selected_weights)
    return (network.merge_and_unload() if hasattr(network, "merge_and_unload") else network), state


def save_weights(network: Any, path: Path) -> None:
    """Write the trainable weights and their hash to one file, whole or not at all. All processes call it; the main one writes."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    from permix.training.weight_sync import full_tensor

    kept: dict[str, Any] = {}
    for name, one in network.named_parameters():
        if one.requires_grad:
            tensor = full_tensor(one.detach())  # collective: all processes must call it, though one keeps the result
            kept |= {name: tensor.cpu().contiguous()} if distributed.is_main() else {}
    if distributed.is_main():
        with guard_writes(path, SafetensorError), replace_when_done(path) as scratch:
            save_file(kept, scratch, {"sha256": _tensors_sha256(kept)})


def load_weights(path: Path) -> dict[str, Any]:
    """The weights that `save_weights` wrote, by name. Raises DataError if the file is missing or damaged."""
    from safetensors import SafetensorError, safe_open

    weights: dict[str, Any] = {}
    with contextlib.suppress(OSError, SafetensorError), safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
        if (file.metadata() or {}).get("sha256") == _tensors_sha256(tensors):
            weights = tensors
    if not weights:
        raise DataError(
            f"{path}: the weights that the dev evaluations chose are missing or damaged; restore the file, or remove this run's "
            "checkpoints to train again"
        )
    return weights


def _tensors_sha256(tensors: Mapping[str, Any]) -> str:
    import torch

    sha = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        sha.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        sha.update(tensor.flatten().view(torch.uint8).numpy())
    return sha.hexdigest()


def restore_weights(network: Any, path: Path | None, state: dict[str, Any] | None = None) -> None:
    """Copy the weights that `save_weights` wrote into the network, or into `state` if the network holds shards only.

    Does nothing if `path` is None. Raises DataError if the file is missing or damaged.
    """
    if path is None:
        return
    import torch

    kept = load_weights(path)
    names = {id(one): name for name, one in reversed(list(network.named_parameters()))}
    with torch.no_grad():
        # Tied weights have several names, and the file holds the first of them.
        for name, one in network.named_parameters(remove_duplicate=False):
            if names[id(one)] not in kept:
                continue
            if state is None:
                one.copy_(kept[names[id(one)]])
            else:
                state[name] = kept[names[id(one)]]
