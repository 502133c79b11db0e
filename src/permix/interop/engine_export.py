"""What the exports to training engines share: the plan to export, what becomes of each setting, and the folder.

An engine is a table of `SettingRule`, one for each setting of a training, and a function that turns a `PlanExport` into files. A
setting that the engine cannot honour is refused with its reason before anything is written; none is dropped in silence. The
folder is written whole: into a new folder, or over the files of the same export.
"""

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel

from permix import __version__
from permix.config import CharacterConfig, DevEvalConfig, OptimConfig, RolloutPlanConfig, TrainableModelConfig, TrainConfig
from permix.errors import ConfigError, DataError
from permix.plan import Plan, write_plan
from permix.storage.files import guard_writes, read_json, replace_when_done, write_json
from permix.types import PlanRow, digest

EXPORT_FILE = "permix.json"
"""The file that describes an export: format, plan, settings, versions, and what has no counterpart in the engine."""

PLAN_FILE = "plan.parquet"
"""The plan itself, in every export: with it the rollouts of a training can be read back."""

EXPORTED_SECTIONS: Mapping[str, type[BaseModel]] = {
    "model": TrainableModelConfig,
    "plan": RolloutPlanConfig,
    "train": OptimConfig,
    "character": CharacterConfig,
    "dev_eval": DevEvalConfig,
}
"""The sections of a training whose every field has a `SettingRule` in each engine."""


class SettingRule(NamedTuple):
    """What becomes of one setting in an engine.

    target: the engine's own name for it; empty if it has none.
    note: why a setting without a target may be left out, or how the engine's setting differs.
    is_reported: whether the note is reported to the user when the setting does not have its default value.
    refuses: values that the engine cannot honour.
    reason: why it cannot, and what to give instead; completes "train.beta = 0.1: ".
    """

    target: str = ""
    note: str = ""
    is_reported: bool = False
    refuses: Callable[[Any], bool] | None = None
    reason: str = ""


def mapped(target: str, *, refuses: Callable[[Any], bool] | None = None, reason: str = "", note: str = "") -> SettingRule:
    """The rule of a setting that the engine has under the name `target`. `note`: how it differs there, to be reported."""
    return SettingRule(target, note, bool(note), refuses, reason)


def harmless(note: str) -> SettingRule:
    """The rule of a setting that the engine does not need to know; `note` says why."""
    return SettingRule(note=note)


def dropped(note: str) -> SettingRule:
    """The rule of a setting that the engine does not follow, though it may train; `note` says what it does instead."""
    return SettingRule(note=note, is_reported=True)


def refused(refuses: Callable[[Any], bool], reason: str) -> SettingRule:
    """The rule of a setting that the engine does not have: values that `refuses` picks are refused for the `reason`."""
    return SettingRule(refuses=refuses, reason=reason)


@dataclass(frozen=True)
class PlanExport:
    """A plan and everything that an engine needs to train on it.

    plan: has no spare groups where the engine refuses them.
    config: the training; its section [plan] describes the rows, also of a plan file as far as the file says, and
        `train.max_new_tokens` is filled in.
    model: the model's name on the machines that train.
    tokenizer: permix's own, with its chat template; None if it cannot be loaded here.
    dev_rows: the dev evaluation as rows of one rollout each, in step 0, one question and persona (or none) a group; empty without
        dev evaluations.
    notes: what the user should know, one sentence each.
    """

    plan: Plan
    config: TrainConfig
    model: str
    tokenizer: Any = None
    dev_rows: tuple[PlanRow, ...] = ()
    nnodes: int = 1
    gpus_per_node: int = 8
    notes: tuple[str, ...] = ()

    @property
    def groups(self) -> Iterator[tuple[PlanRow, ...]]:
        """The groups in training order: one row, or with scope "rollout" a row for each rollout."""
        for _, rows in groupby(self.plan.rows, key=lambda row: (row.step, row.group)):
            yield tuple(rows)

    @property
    def tasks(self) -> tuple[str, ...]:
        """The names of the tasks of the plan and of the dev evaluation, each once."""
        return tuple(dict.fromkeys(row.task for row in (*self.plan.rows, *self.dev_rows)))

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that the rules are about, by their path: {"train.lr": 1e-5, ...}."""
        return exported_settings(self.config)


@dataclass(frozen=True)
class EngineFiles:
    """What an engine's export writes. `files`: content by file name; a name in a subfolder has slashes. Scripts (.sh) become
    executable. `versions`: the releases that the files were written against. `no_counterpart`: what the engine does not do."""

    files: Mapping[str, bytes]
    versions: Mapping[str, str]
    no_counterpart: Sequence[str] = field(default=())


class TrainingEngine(NamedTuple):
    """An engine to export to: the name in messages, the rule of each setting, and the function that makes the files."""

    name: str
    settings: Mapping[str, SettingRule]
    build_files: Callable[[PlanExport], EngineFiles]


def exported_settings(config: TrainConfig) -> dict[str, Any]:
    """The settings of a training that each engine has a rule for, by their path; without those of a plan file's [plan] that the
    file does not say."""
    known = RolloutPlanConfig.model_fields if config.plan_file is None else config.plan.model_fields_set
    return {
        f"{section}.{name}": getattr(getattr(config, section), name)
        for section, cls in EXPORTED_SECTIONS.items()
        for name in cls.model_fields
        if section != "plan" or name in known
    }


def check_engine_settings(engine: TrainingEngine, settings: Mapping[str, Any]) -> None:
    """Raise ConfigError, with every setting that the engine cannot honour and the reason."""
    problems = []
    for name, rule in engine.settings.items():
        if name in settings and rule.refuses is not None and rule.refuses(settings[name]):
            problems.append(f"{name} = {settings[name]!r}: {rule.reason}")
    if problems:
        raise ConfigError("; ".join(problems))


def setting_notes(engine: TrainingEngine, settings: Mapping[str, Any]) -> list[str]:
    """One sentence for each setting that is not its default and that the engine drops, or follows in a different way."""
    notes = []
    for name, rule in engine.settings.items():
        section, _, field_name = name.partition(".")
        default = EXPORTED_SECTIONS[section].model_fields[field_name].default
        if rule.is_reported and settings.get(name, default) != default:
            notes.append(f"{name} = {settings[name]!r}: {rule.note}")
    return notes


def write_export(engine: TrainingEngine, format_name: str, export: PlanExport, out: Path) -> dict[str, str]:
    """Write the engine's files and `EXPORT_FILE` to the folder `out`; returns facts to print.

    Raises DataError if the folder has other content. The same export again writes the same files; what a training has added to
    the folder stays.
    """
    identity = export_identity(format_name, export)
    _check_folder(out, identity)
    made = engine.build_files(export)
    no_counterpart = [*made.no_counterpart, *setting_notes(engine, export.settings)]
    metadata = {
        **identity,
        "permix": __version__,
        "written_against": dict(made.versions),
        "steps": export.plan.steps,
        "questions_per_step": export.plan.groups_per_step,
        "group_size": export.plan.group_size,
        "model": export.model,
        "method": export.config.method,
        "settings": _json_values(export.settings),
        "no_counterpart": no_counterpart,
        "notes": list(export.notes),
    }
    if out.exists():
        # A shell may be in the empty folder: it stays. EXPORT_FILE comes first: with it an interrupted export goes on.
        write_json(out / EXPORT_FILE, metadata)
        _write_files(out, export.plan, made.files)
    else:
        scratch = out.with_name(f".{out.name}.part")
        with guard_writes(scratch):
            shutil.rmtree(scratch, ignore_errors=True)
            _write_files(scratch, export.plan, made.files)
            write_json(scratch / EXPORT_FILE, metadata)
            scratch.replace(out)
    return {
        "format": format_name,
        "plan": export.plan.hash,
        "rows": f"{sum(1 for _ in export.groups)} groups in {export.plan.steps} steps, {len(export.dev_rows)} dev questions",
        "model": export.model,
        "files": ", ".join([*made.files, PLAN_FILE, EXPORT_FILE]),
        **({"no counterpart": "; ".join(no_counterpart)} if no_counterpart else {}),
        **({"notes": "; ".join(export.notes)} if export.notes else {}),
    }


def export_identity(format_name: str, export: PlanExport) -> dict[str, str]:
    """What makes two exports the same one: format, plan, and a hash of model, settings, dev questions and machines."""
    settings = {name: value for name, value in _json_values(export.settings).items() if value or name not in LATER_SETTINGS}
    settings |= {name: value for name, value in FORMER_DEFAULTS.items() if settings.get(name) is None}
    parts = [repr(sorted(settings.items())), export.model, export.config.method]
    parts += [f"{export.nnodes} x {export.gpus_per_node}", *(row.model_dump_json() for row in export.dev_rows)]
    return {"format": format_name, "plan": export.plan.hash, "export": digest(*parts)}


LATER_SETTINGS = ("plan.templates", "plan.contexts", "plan.context_turns")
"""Settings that exports of earlier versions lack: where they are empty, they are no part of an export's identity."""


FORMER_DEFAULTS = {"train.microbatch_tokens": 1024}
"""Settings whose default in exports of earlier versions was a number: where they are not given, they count as that number."""


def _json_values(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: list(value) if isinstance(value, tuple) else str(value) if isinstance(value, Path) else value
        for name, value in settings.items()
    }


def _check_folder(out: Path, identity: Mapping[str, str]) -> None:
    """Raise DataError if the folder holds anything else than this export."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not out.is_dir():
        raise DataError(f"out = {out}: is a file; give a folder")
    if not (out / EXPORT_FILE).exists():
        raise DataError(f"out = {out}: has other content; give a new or empty folder")
    found = read_json(out / EXPORT_FILE)
    for name, value in identity.items():
        if found.get(name) != value:
            words = {"format": "format", "plan": "plan", "export": "model, settings, dev questions or machines"}[name]
            raise DataError(f"out = {out}: holds an export that differs in its {words}; give another folder")


def _write_files(folder: Path, plan: Plan, files: Mapping[str, bytes]) -> None:
    write_plan(plan, folder / PLAN_FILE)
    for name, content in files.items():
        with replace_when_done(folder / name) as scratch:
            scratch.write_bytes(content)
            if name.endswith(".sh"):
                scratch.chmod(0o755)
