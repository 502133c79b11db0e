"""The units of a study on disk: which parts are finished, with which settings they were started, and how a unit is run.

A part is finished if unit.json says so and its files exist. The settings of every part that was started are recorded. A study
with other settings is refused, since results of different settings would be mixed. With keep_models = false a trained model is
deleted when all evaluations of it are finished, never before.
"""

import contextlib
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from permix.config import (
    BASE_UNIT,
    ENGINE_FIELDS,
    RUNTIME_ONLY_FIELDS,
    TRAIN_PART,
    FidelityConfig,
    PartConfig,
    StabilityConfig,
    StudyConfig,
    StudyUnit,
    TrainConfig,
    merge_values,
)
from permix.errors import ConfigError, DataError, IncompleteRunError, PermixError
from permix.progress import command_output, print_status
from permix.storage.files import guard_writes, read_json, write_json
from permix.storage.run_dir import SET_ASIDE_PREFIX, UNIT_FILE, describe_setting_differences, free_key_fields
from permix.storage.workers import is_claimed

CHANGEABLE_SETTINGS: Mapping[str, str] = {
    "out": "the folder of the study; each part keeps its place in it",
    "threads": "changes at most the last bits of a sum",
    "cache": "completions of a model with the same fingerprint",
    "shard": "a study sets none",
    "context_turns": "a path; the turns themselves are compared by their hash (`study_content`)",
    "base_url": "an address; the model is recorded by its name",
    "same_weights": "says that an address serves the same model",
    "api_key_env": "names a variable of the environment",
    "headers": "go with a request and are no part of it",
    "batch_size": "requests at the same time",
    "concurrency": "requests at the same time",
    "timeout_s": "a request that takes longer is asked again",
    "retries": "an answer that is missing stays pending",
    "attempts": "an answer without a score stays pending",
    "prices": "change the dollars that are shown",
    "max_cost": "a judge that stops there leaves its answers pending",
    "report_to": "says where measures are sent",
    "save_every": "when checkpoints are written",
    "samples_every": "when samples are written down",
    "keep_checkpoints": "whether the last checkpoint is kept",
    "microbatch_tokens": "changes at most the last bits of a sum",
    "gradient_checkpointing": "computes the same activations a second time",
    **dict.fromkeys(RUNTIME_ONLY_FIELDS, "where rollouts are generated, not what is computed"),
    **dict.fromkeys(ENGINE_FIELDS, "how an engine uses the GPUs"),
}
"""Last parts of the settings of a part that may differ between two starts of a study: why no number of another unit depends on
each of them."""

WAIT_S = 2.0
"""Pause between two looks at the untrained model's run, which another process is making."""


class UnitRecord(NamedTuple):
    """The content of unit.json: the settings of the parts that were started, and the names of those that are finished.

    `model`: the fingerprint of the trained model that the finished evaluations have measured; None if it is not recorded.
    """

    settings: Mapping[str, Any]
    finished: tuple[str, ...]
    model: str | None = None


def read_unit_record(unit: StudyUnit) -> UnitRecord:
    """The record of a unit; empty if the unit was not started. Raises DataError for a damaged file."""
    path = unit.folder / UNIT_FILE
    values = read_json(path) if path.exists() else {}
    parts, finished, model = values.get("parts", {}), values.get("finished", []), values.get("model")
    if not isinstance(parts, dict) or not all(isinstance(one, dict) for one in parts.values()) or not isinstance(finished, list):
        raise DataError(
            f"{path}: must hold the settings of each part, and a list of those that are finished; it was edited or is damaged"
        )
    return UnitRecord(parts, tuple(map(str, finished)), None if model is None else str(model))


def pending_parts(unit: StudyUnit) -> list[str]:
    """The parts of a unit that are not finished, in order.

    A training is pending as long as its model is missing and an evaluation needs it.
    """
    finished = finished_parts(unit)
    evaluations = [name for name in unit.evaluations if name not in finished]
    if unit.training is None:
        return evaluations
    return [TRAIN_PART, *evaluations] if evaluations and not has_model(unit) else evaluations


def finished_parts(unit: StudyUnit) -> list[str]:
    """The parts that are recorded as finished and whose files are there, and a training whose model is there."""
    recorded = read_unit_record(unit).finished
    files = {name: "config.json" if name == TRAIN_PART else "metrics.json" for name in unit.parts}
    done = [name for name, part in unit.parts.items() if name in recorded and (part.out / files[name]).exists()]
    return [TRAIN_PART, *done] if TRAIN_PART not in done and has_model(unit) else done


def has_model(unit: StudyUnit) -> bool:
    """Whether the trained model of a unit is there."""
    return unit.training is not None and (unit.training.out / "model" / "config.json").exists()


def require_content(config: StudyConfig) -> None:
    """Raise ConfigError for a study without an evaluation: nothing could be reported."""
    if not config.evaluations:
        raise ConfigError("evaluations: names no evaluation; give one or more, such as [evaluations.accuracy]")


def run_unit(config: StudyConfig, unit: StudyUnit) -> None:
    """Run the pending parts of a unit, one after the other, in this process. The caller has claimed the unit.

    An evaluation that fails does not stop the others; its error is raised at the end.
    """
    from permix.inference.hardware import release_memory

    errors: list[PermixError] = []
    record_model(unit)
    pending = pending_parts(unit)
    while pending:
        name, *pending = pending
        part = unit.parts[name]
        _write_record(unit, name, finished=False)
        print_status(f"{unit.name}: {name}")
        try:
            _await_reference(config, part)
            run_part(part)
            if isinstance(part, TrainConfig):
                record_model(unit)
                # More than before, if the training was repeated and gave other weights.
                pending = [one for one in pending_parts(unit) if one != TRAIN_PART]
            else:
                _write_record(unit, name, finished=True)
        except PermixError as error:
            if isinstance(part, TrainConfig):
                raise
            print_status(f"{unit.name}: {name}: {error}")
            errors.append(error)
        release_memory()
    if errors:
        raise next((one for one in errors if not isinstance(one, IncompleteRunError)), errors[0])
    if not config.keep_models:
        delete_model(unit)


def record_model(unit: StudyUnit) -> None:
    """Record a training whose model is whole as finished, also one that another command ended. The caller has claimed the unit.

    If the model has other weights than the one that the finished evaluations measured, their runs are moved to
    UNIT/other-weights-FINGERPRINT/, and they are pending again: the numbers of a unit are of one model.

    Raises ConfigError for a training that was not started by the study, and with other settings.
    """
    from permix.inference.hf import folder_fingerprint

    training, record = unit.training, read_unit_record(unit)
    if training is None or not has_model(unit):
        return
    _check_found_training(unit, record)
    fingerprint = folder_fingerprint(training.out / "model")
    if record.model not in (None, fingerprint):
        _move_evaluations(unit, record)
        record = record._replace(settings={TRAIN_PART: record.settings.get(TRAIN_PART, {})}, finished=())
    _save_record(unit, record._replace(model=fingerprint))
    _write_record(unit, TRAIN_PART, finished=True)


def _move_evaluations(unit: StudyUnit, record: UnitRecord) -> None:
    """Move all evaluations of the unit's earlier model into a folder of their own, and say so."""
    folders = [unit.folder / name for name in {**unit.evaluations, **record.settings} if name != TRAIN_PART]
    moved = [folder for folder in folders if folder.exists()]
    target = unit.folder / f"{SET_ASIDE_PREFIX}{record.model}"
    while any((target / folder.name).exists() for folder in moved):
        target = target.with_name(f"{target.name}+")
    with guard_writes(target):
        for folder in moved:
            target.mkdir(parents=True, exist_ok=True)
            folder.rename(target / folder.name)
    print_status(
        f"warning: {unit.name}: the model that is there has other weights than the one that was measured, so its evaluations are "
        f"pending again{f'; the earlier runs are in {target}' if moved else ''}"
    )


def delete_model(unit: StudyUnit) -> None:
    """Delete the trained model of a unit, unless an evaluation of it is pending. The caller has claimed the unit.

    An evaluation is also pending if another command has started it, and this study does not name it.
    """
    record = read_unit_record(unit)
    if unit.training is None or pending_parts(unit) or record.settings.keys() - {TRAIN_PART} - set(record.finished):
        return
    model, doomed = unit.training.out / "model", unit.training.out / ".model.deleted"
    shutil.rmtree(doomed, ignore_errors=True)  # of a process that was killed while it deleted
    with contextlib.suppress(FileNotFoundError):  # deleted before, or by another command just now
        model.rename(doomed)  # a folder named `model` is whole, also if this process is killed
    shutil.rmtree(doomed, ignore_errors=True)


def run_part(part: PartConfig) -> None:
    """Run or resume a training or an evaluation in this process."""
    from permix.evals.stability import run_stability
    from permix.pipelines.fidelity import run_fidelity
    from permix.pipelines.train import run_training

    match part:
        case TrainConfig():
            run_training(part)
        case StabilityConfig():
            run_stability(part)
        case FidelityConfig():
            run_fidelity(part)


def _await_reference(config: StudyConfig, part: PartConfig) -> None:
    """Wait while another process works on the untrained model's run that this part is compared with.

    Raises ConfigError if that run is not finished and no process works on it.
    """
    reference = _reference_of(part)
    base = config.units()[0]
    if reference is None or reference.parent != base.folder:
        return
    waited = False
    while reference.name not in finished_parts(base):
        if not is_claimed(base.folder) and reference.name not in finished_parts(base):
            raise ConfigError(f'reference = "{BASE_UNIT}": {reference} is not finished, and no process is running unit base')
        if not waited:
            print_status(f"waiting for {reference}, which another process is making")
        waited = True
        time.sleep(WAIT_S)


def _reference_of(part: PartConfig) -> Path | None:
    """The run whose answers train the classifier of this part."""
    if isinstance(part, FidelityConfig):
        return part.reference
    return part.character_reference if isinstance(part, StabilityConfig) else None


# The settings of parts


def check_same_settings(config: StudyConfig) -> None:
    """Raise ConfigError for a part that was started with other settings than the study has now; results would be mixed."""
    for unit in config.units():
        recorded = read_unit_record(unit).settings
        for name in unit.parts:
            if name not in recorded:
                continue
            _check_part_settings(unit, name, recorded[name])


def check_found_trainings(config: StudyConfig) -> None:
    """Raise ConfigError for a trained model in the study's folder that the study did not train, and of other settings."""
    for unit in config.units():
        _check_found_training(unit, read_unit_record(unit))


def _check_found_training(unit: StudyUnit, record: UnitRecord) -> None:
    from permix.training.job import prepare_training

    if unit.training is None or TRAIN_PART in record.settings or not has_model(unit):
        return
    with command_output(as_json=False, is_quiet=True):  # notes on the data are printed where the training is checked or run
        job = prepare_training(unit.training)  # the run's own settings state what depends on the data
    filled = unit._replace(parts={**unit.parts, TRAIN_PART: job.config})
    _check_part_settings(filled, TRAIN_PART, read_json(unit.training.out / "config.json"))


def _check_part_settings(unit: StudyUnit, name: str, recorded: Mapping[str, Any]) -> None:
    """Raise ConfigError if the part was started with other settings than the study has now."""
    part, out = unit.parts[name], unit.folder.parent
    # A setting that an earlier version did not have counts as its default.
    known = merge_values(type(part)().model_dump(mode="json"), recorded)
    found = describe_setting_differences(known, _part_settings(out, part), CHANGEABLE_SETTINGS, free_key_fields(part))
    if found:
        raise ConfigError(
            f"out = {out}: {unit.name}/{name} was started with {'; '.join(found)}; give another folder, or the "
            f"same settings to go on with it; or delete {unit.folder}"
        )


def _part_settings(out: Path, part: PartConfig) -> dict[str, Any]:
    """The settings of a part without the paths of the study's own folders, so that a study may be moved."""
    values = part.model_dump(mode="json")
    if not isinstance(part, TrainConfig) and Path(part.model.name).is_relative_to(out):
        values["model"]["name"] = TRAIN_PART
    reference = _reference_of(part)
    if reference is not None and reference.is_relative_to(out):
        values["reference" if isinstance(part, FidelityConfig) else "character_reference"] = BASE_UNIT
    return values


def _write_record(unit: StudyUnit, name: str, *, finished: bool) -> None:
    """Record that a part was started, with its settings, or that it is finished."""
    record = read_unit_record(unit)
    done = [one for one in record.finished if one != name] + ([name] if finished else [])
    settings = {**record.settings, name: _part_settings(unit.folder.parent, unit.parts[name])}
    _save_record(unit, record._replace(settings=settings, finished=tuple(done)))


def _save_record(unit: StudyUnit, record: UnitRecord) -> None:
    model = {} if record.model is None else {"model": record.model}
    write_json(unit.folder / UNIT_FILE, {"parts": record.settings, "finished": list(record.finished)} | model)
