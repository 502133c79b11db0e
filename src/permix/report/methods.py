"""Groups models whose trainings differ only in seeds into methods.

Contract: methods are found from the training runs, or named by the user ("NAME=LABEL,LABEL"). Every model is in exactly one
method, and methods keep the order of their first model. Names are unique; a method with one model has that model's label.

`find_training_run` finds the training behind a model from the configurations of its runs. A recorded configuration is read as it
is: what it holds was valid when the training ran, also if a new training would be refused today. A training that cannot be found,
or whose config.json is damaged, is None; the model is then known only by its answers. `permix.report.pooled` has the numbers of
methods.
"""

import json
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, get_args

from permix.config import (
    CHANGEABLE_FIELDS,
    DEFAULT_MIX,
    ENGINE_FIELDS,
    IGNORED_FIELDS,
    IGNORED_PLAN_FIELDS,
    RUNTIME_ONLY_FIELDS,
    SUPERVISED_METHODS,
    RolloutPlanConfig,
    TrainConfig,
    TrainMethod,
)
from permix.errors import ConfigError, DataError
from permix.plan import read_plan
from permix.report.runs import ModelRuns
from permix.storage.run_dir import RunReader

Role = Literal["base", "rlvr", "permix", "other"]


RECIPE_IGNORED_FIELDS = {"out", "label", "threads", "seed"}
"""Fields of any section that do not change what is learnt: the output folder, the label, the number of threads, and seeds."""

WEIGHT_NEUTRAL_SETTINGS = {
    *RUNTIME_ONLY_FIELDS,
    *CHANGEABLE_FIELDS,
    "gradient_checkpointing",
}
"""Settings of [train] that do not change the weights, except through the order of a sum."""

TEACHER_ENDPOINT_FIELDS = {
    "base_url", "api_key_env", "headers", "prices", "batch_size", "concurrency", "timeout_s", "retries", "same_weights",
    *ENGINE_FIELDS,
}  # fmt: skip
"""Settings of [teacher] that describe the endpoint or the engine and not the teacher."""


_PLAN_DEFAULTS = {**RolloutPlanConfig().model_dump(mode="json"), "mix": None, "seed": None}

_TRAINING_DEFAULTS: Mapping[str, Any] = MappingProxyType({**TrainConfig().model_dump(mode="json"), "plan": _PLAN_DEFAULTS})
"""What a recorded configuration has where it lacks a field, since an earlier revision recorded it."""


class TrainingRun(NamedTuple):
    """A training run: its directory, its method, and its recorded configuration, with defaults for what it lacks."""

    run_dir: Path
    method: TrainMethod
    config: Mapping[str, Any]

    @property
    def is_imported(self) -> bool:
        """Whether another engine trained."""
        return "imported" in self.config

    @property
    def model_name(self) -> str | None:
        """The model that the training started from; None if it is not known."""
        name: str | None = self.config["model"].get("name")
        return name

    @property
    def recipe(self) -> dict[str, Any]:
        """The settings without seeds and without those that have no effect: trainings with equal recipes differ by chance alone.

        Not all settings of a training of another engine are known here, so its recipe is like no other.
        """
        if self.is_imported:
            return {"run": str(self.run_dir)}
        recipe: dict[str, Any] = _drop_fields(self.config, RECIPE_IGNORED_FIELDS)
        ignored = {
            "train": {*WEIGHT_NEUTRAL_SETTINGS, *IGNORED_FIELDS[self.method]},
            "plan": set(IGNORED_PLAN_FIELDS[self.method]),
            "teacher": TEACHER_ENDPOINT_FIELDS,
        }
        recipe |= {section: _drop_fields(recipe[section], fields) for section, fields in ignored.items()}
        if self.method != "seqkd":
            del recipe["teacher"]
        if self.method in SUPERVISED_METHODS:
            del recipe["character"]
        if recipe["dev_eval"]["select"] == "last" and recipe["dev_eval"]["patience"] is None:
            del recipe["dev_eval"]  # dev evaluations that neither choose the weights nor stop the training do not change it
        return recipe

    @property
    def seed(self) -> int | None:
        """The plan's seed, which chooses questions, personas and rollouts; None for a training of another engine."""
        return None if self.is_imported else self.config["plan"].get("seed")

    @property
    def role(self) -> Role:
        """ "rlvr" or "permix" for a training by reward, without or with personas; "other" for supervised training."""
        if self.method in SUPERVISED_METHODS:
            return "other"
        return "permix" if self._mixes_personas() else "rlvr"

    def _mixes_personas(self) -> bool:
        if self.is_imported:
            return self.method == "permix"
        plan = self.run_dir / "plan.parquet"
        if self.config["plan_file"] is not None and plan.exists():
            return any(row.persona_id is not None for row in read_plan(plan).rows)
        mix = self.config["plan"].get("mix")
        return bool(DEFAULT_MIX[self.method] if mix is None else mix)


def find_training_run(model: ModelRuns) -> TrainingRun | None:
    """The model's training run, or None.

    It is the training run in the report, or else the run whose folder `model` the model's evaluations used.
    """
    if "train" in model.runs:
        return _read_training_run(model.runs["train"].path)
    for run in model.runs.values():
        recorded, parent = Path(run.model_name), run.path.parent
        if recorded.name == "model":
            # The recorded path, or next to this run when both were moved.
            for folder in (recorded.parent, parent / recorded.parent.name):
                if (training := _read_training_run(folder)) is not None:
                    return training
    return None


def untrained_model_names(model: ModelRuns) -> set[str]:
    """The names under which an untrained model was asked. A training that started from this model names one of them."""
    return {resolve_model_name(run.model_name) for run in model.runs.values()}


def resolve_model_name(model: str) -> str:
    """A model's name; for a folder, its resolved path."""
    return str(Path(model).resolve()) if Path(model).is_dir() else model


def _read_training_run(folder: Path) -> TrainingRun | None:
    """The training run in a folder; None if there is none, or if its config.json is damaged."""
    try:
        recorded = RunReader(folder).config
    except (DataError, OSError):
        return None
    config = {name: _fill(default, recorded.get(name, default)) for name, default in _TRAINING_DEFAULTS.items()}
    is_whole = all(
        isinstance(config[name], Mapping) for name, default in _TRAINING_DEFAULTS.items() if isinstance(default, Mapping)
    )
    if recorded.get("stage") != "train" or not is_whole or config["method"] not in get_args(TrainMethod):
        return None
    return TrainingRun(folder, config["method"], {**recorded, **config})


def _fill(default: Any, value: Any) -> Any:
    """The value; of an object, with the default for each field that it lacks."""
    return {**default, **value} if isinstance(default, Mapping) and isinstance(value, Mapping) else value


def _drop_fields(value: Any, fields: Collection[str]) -> Any:
    """The value without these fields, at every level."""
    if not isinstance(value, Mapping):
        return value
    return {name: _drop_fields(one, fields) for name, one in value.items() if name not in fields}


_ROLE_NAMES: dict[Role, str] = {"rlvr": "RLVR", "permix": "PerMix-RLVR"}
"""Name of a method with several seeds when it is the only method with its role."""


class ReportMethod(NamedTuple):
    """Models that differ only in their training seeds, one model for each seed. A method may have a single model."""

    name: str
    role: Role
    models: tuple[ModelRuns, ...]

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(model.label for model in self.models)

    @property
    def pss_reason(self) -> str | None:
        """Why PSS of some model has no value, and so the mean over the seeds has none; None if that is not known."""
        reasons = (model.stability.pss_reason for model in self.models if model.stability is not None)
        return next(filter(None, reasons), None)


def group_methods(models: Sequence[ModelRuns], specs: Sequence[str] = ()) -> list[ReportMethod]:
    """The methods, in the order of their first model. Raises ConfigError when `specs` is malformed or names unknown
    labels.
    """
    return group_assigned_methods(models, _parse_method_specs(specs, [model.label for model in models]))


def group_assigned_methods(models: Sequence[ModelRuns], assigned: Mapping[str, str]) -> list[ReportMethod]:
    """The methods, in the order of their first model; `assigned` names the methods of some models, by label."""
    trainings = {model.label: find_training_run(model) for model in models}
    groups: dict[str, list[ModelRuns]] = {}
    for model in models:
        groups.setdefault(_group_key(model.label, trainings[model.label], assigned), []).append(model)
    roles = [_group_role(group, trainings) for group in groups.values()]
    names = _name_groups(list(groups.values()), roles, assigned)
    return [ReportMethod(name, role, tuple(group)) for name, role, group in zip(names, roles, groups.values(), strict=True)]


def method_names(methods: Sequence[ReportMethod]) -> dict[str, str]:
    """{label: name of its method}."""
    return {label: method.name for method in methods for label in method.labels}


def training_arrows(methods: Sequence[ReportMethod]) -> list[tuple[str, str]]:
    """Pairs of method names, one for each step of training: base to RLVR, RLVR to PerMix-RLVR.

    Without an RLVR method, the second step starts from base.
    """
    names: dict[str, list[str]] = {role: [one.name for one in methods if one.role == role] for role in ("base", "rlvr", "permix")}
    steps = [("base", "rlvr"), ("rlvr" if names["rlvr"] else "base", "permix")]
    return [(start, end) for one, other in steps for start in names[one] for end in names[other]]


def _group_key(label: str, training: TrainingRun | None, assigned: Mapping[str, str]) -> str:
    """A key that is equal for models of the same method."""
    if label in assigned:
        return f"said {assigned[label]}"
    return f"alone {label}" if training is None else f"trained {json.dumps(training.recipe, sort_keys=True)}"


def _parse_method_specs(specs: Sequence[str], labels: Sequence[str]) -> dict[str, str]:
    """{label: name of the method} from the user's specifications."""
    assigned: dict[str, str] = {}
    for one in specs:
        name, equals, listed = one.partition("=")
        members = [label.strip() for label in listed.split(",") if label.strip()]
        name = name.strip()
        if not equals or not name or not members:
            raise ConfigError(f'methods: {one!r} is not NAME=LABEL,LABEL; for example "RLVR=rlvr 1,rlvr 2"')
        if name in assigned.values():
            raise ConfigError(f"methods: {name!r} is given twice; list all its models in one entry")
        for label in members:
            if label not in labels:
                raise ConfigError(
                    f"methods: {one!r}: no model has the label {label!r}; labels are {', '.join(map(repr, labels))}"
                )
            if label in assigned:
                raise ConfigError(f"methods: {label!r} is in {assigned[label]!r} and in {name!r}; a model belongs to one method")
            assigned[label] = name
        if name in labels and name not in members:
            raise ConfigError(f"methods: {name!r} is also the label of a model outside this method; choose another")
    return assigned


def _group_role(group: Sequence[ModelRuns], trainings: Mapping[str, TrainingRun | None]) -> Role:
    """The role that all models of a group share; "other" when they differ."""
    names = (training.model_name for training in trainings.values() if training is not None)
    starts = {resolve_model_name(name) for name in names if name is not None}
    roles: set[Role] = set()
    for model in group:
        training = trainings[model.label]
        if training is not None:
            roles.add(training.role)
        else:
            roles.add("base" if untrained_model_names(model) & starts else "other")
    return roles.pop() if len(roles) == 1 else "other"


def _name_groups(groups: Sequence[Sequence[ModelRuns]], roles: Sequence[Role], assigned: Mapping[str, str]) -> list[str]:
    """The name of each group.

    Names from the user and labels of single models are kept. Other groups are named after their role or, when another group has
    the same role, after their labels.
    """
    of_role, names = Counter(roles), dict[int, str]()
    for place, group in enumerate(groups):
        if group[0].label in assigned:
            names[place] = assigned[group[0].label]
        elif len(group) == 1:
            names[place] = group[0].label
    for place, (group, role) in enumerate(zip(groups, roles, strict=True)):
        if place not in names:
            labels = [model.label for model in group]
            tries = [_ROLE_NAMES[role]] if role in _ROLE_NAMES and of_role[role] == 1 else []
            names[place] = _first_free_name([*tries, common_label_prefix(labels), ", ".join(labels)], names.values())
    return [names[place] for place in range(len(groups))]


def _first_free_name(candidates: Sequence[str], used: Collection[str]) -> str:
    """The first candidate that is not empty and not in use. Marks are added to the last candidate when all are in use."""
    for name in candidates:
        if name and name not in used:
            return name
    return _first_free_name([f"{candidates[-1]}′"], used)


def common_label_prefix(labels: Sequence[str]) -> str:
    """What the labels of several seeds begin with, in whole words: "replay" for "replay 1" and "replay 2". Empty when they
    differ.
    """
    words = [re.findall(r"\d+|[^\W\d_]+|[\W_]+", label) for label in labels]
    alike = takewhile(lambda column: len(set(column)) == 1, zip(*words, strict=False))
    shared = "".join(column[0] for column in alike)
    return re.sub(r"(?:(?:^|[\W_]+)seed)?[\W_]*$", "", shared, flags=re.IGNORECASE)
