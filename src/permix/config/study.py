"""The configuration of `permix study`: arms × seeds × evaluations, and the configuration of each part of a study.

A study has one unit for the base model and one for each arm and seed. A unit of an arm is a training, whose seed goes into
plan.seed, train.seed and task.seed, and an evaluation of the trained model by each entry of `evaluations`. No seed of a unit goes
into an evaluation, so all models are asked the same cells. `StudyConfig.units` lists the units with the configuration of each
part.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args

from pydantic import AfterValidator, Field, TypeAdapter, ValidationError, ValidationInfo, field_validator, model_validator

from permix.config.base import ConfigSection, build_config, format_validation_error, quote_input, require_known_keys
from permix.config.stages import FidelityConfig, StabilityConfig, TrainableModelConfig, TrainConfig
from permix.config.training import IGNORED_FIELDS, IGNORED_PLAN_FIELDS, NO_PERSONA_METHODS, SUPERVISED_METHODS, TrainMethod
from permix.errors import ConfigError, closest_match

BASE_UNIT = "base"
"""The name of the unit that measures the untrained model, and what the `REFERENCE_FIELDS` of an evaluation call it."""

REFERENCE_FIELDS = ("reference", "character_reference")
"""Fields of an evaluation that name the run whose answers train the classifier of personas."""

TRAIN_PART = "train"
"""The name of the training among the parts of a unit."""

FILE_ONLY_FIELDS = ("seeds", TRAIN_PART, "arms", "evaluations", "headlines")
"""Fields of a study that a flag cannot replace as a whole."""

OVERRIDABLE_SECTIONS = (TRAIN_PART, "arms", "evaluations")
"""Sections of a study of which a flag may replace one value: --train.plan.steps 50."""

ARM_FIELDS = ("label", "seeds")
"""Fields of an arm besides those of a training."""

EVALUATION_CONFIGS: Mapping[str, type[StabilityConfig | FidelityConfig]] = {
    "stability": StabilityConfig,
    "fidelity": FidelityConfig,
}

SEED_SECTIONS = ("plan", TRAIN_PART, "task")
"""The sections of a training whose `seed` is that of the unit."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

PartConfig = TrainConfig | StabilityConfig | FidelityConfig


def _require_distinct_seeds(seeds: tuple[int, ...]) -> tuple[int, ...]:
    if repeated := [seed for seed, count in Counter(seeds).items() if count > 1]:
        raise ValueError(f"seed {repeated[0]} is given twice; give each seed once")
    if not seeds:
        raise ValueError("names no seed; give one or more, such as [1, 2, 3]")
    return seeds


StudySeeds = Annotated[tuple[Annotated[int, Field(ge=0)], ...], AfterValidator(_require_distinct_seeds)]

_SEEDS = TypeAdapter(StudySeeds)


class StudyBaseConfig(TrainableModelConfig):
    """The model that is measured untrained and that every arm trains."""

    label: str = "base"
    """Name of the untrained model in tables."""


class HeadlineConfig(ConfigSection):
    """A published figure: the relative change of a measure from one arm to another, (arm − against) / against."""

    evaluation: str
    """The evaluation of the study that measures it."""
    measure: str
    """pss, worst, mean, relative_persona_sd, identifiability, or score: a judge's mean score, such as PersonaScore."""
    arm: str
    """The arm, or "base"."""
    against: str
    """The arm that `arm` is compared with, or "base"."""
    published: float
    """The published relative change: 0.212 is +21.2 %."""
    source: str = ""
    """Where it was published."""


class StudyRatesConfig(ConfigSection):
    """Measured speeds of the machine. --dry-run uses them for parts whose time no finished part of the study shows."""

    generation_tokens_per_s: float | None = Field(default=None, gt=0)
    """New tokens generated per second on one device."""
    training_tokens_per_s: float | None = Field(default=None, gt=0)
    """Completion tokens trained on per second on one device."""
    measured_on: str = ""
    """Where and when both rates were measured."""


class StudyUnit(NamedTuple):
    """The untrained model, or one arm with one seed. `parts`: the configurations of its run directories by name, the training
    first; `folder` contains them. `arm` and `seed` are None for the untrained model."""

    name: str
    arm: str | None
    seed: int | None
    label: str
    folder: Path
    parts: Mapping[str, PartConfig]

    @property
    def training(self) -> TrainConfig | None:
        """The training; None for the untrained model."""
        found = self.parts.get(TRAIN_PART)
        return found if isinstance(found, TrainConfig) else None

    @property
    def evaluations(self) -> dict[str, StabilityConfig | FidelityConfig]:
        return {name: part for name, part in self.parts.items() if not isinstance(part, TrainConfig)}


class StudyConfig(ConfigSection):
    """Configuration of `permix study`."""

    stage: Literal["study"] = "study"
    """Fixed: names the command in a configuration file."""
    out: Path = Path("runs/study")
    """The folder of the study: one folder for each unit (the untrained model, and each arm with each seed), and report/."""
    seeds: StudySeeds = (1,)
    """The seeds of every arm without seeds of its own."""
    base: StudyBaseConfig = StudyBaseConfig()
    train: dict[str, Any] = Field(default={})
    """A configuration of `permix train` that all arms share, without out, label, model and seeds. Settings that a method ignores
    are left out of its arms."""
    arms: dict[str, dict[str, Any]] = Field(default={})
    """The settings of each arm: `method`, any other fields of a configuration of `permix train`, `label` and `seeds`."""
    evaluations: dict[str, dict[str, Any]] = Field(default={})
    """Configurations of `permix stability` and `permix fidelity`, each with its `stage`. Every model is measured by each of them.
    `reference = "base"` and `character_reference = "base"` name the untrained model's run of the same evaluation."""
    against: str | None = None
    """The arm that the report compares all others with. When not given: rlvr, if there is such an arm."""
    headlines: tuple[HeadlineConfig, ...] = ()
    """Published figures; the report shows them next to those of the study."""
    rates: StudyRatesConfig = StudyRatesConfig()
    keep_models: bool = True
    """Keep the trained models. Otherwise a training's folder model/ is deleted when all evaluations of the model are complete."""
    only: tuple[str, ...] = ()
    """Run only these arms and the untrained model; all arms when not given. The report of a study that is run has everything that
    is finished; with `report` it has these arms alone, in report-only/."""
    only_seeds: tuple[int, ...] = ()
    """Run only these of the study's seeds (short: --seeds); all when not given."""
    unit: str | None = None
    """Run only this unit, in this process: base, or ARM-SEED."""
    jobs: int = Field(default=1, gt=0)
    """Number of units that run at the same time, each in its own process, with its own GPUs or its share of the cores."""
    threads: int | None = Field(default=None, gt=0)
    """CPU threads of each of these processes; the cores divided by jobs when not given."""
    report: bool = False
    """Run no unit; only write the report of everything that is finished, or of what `only` and `only_seeds` choose."""

    @field_validator("train")
    @classmethod
    def _check_train(cls, values: dict[str, Any]) -> dict[str, Any]:
        _raise_as_value_error(lambda: _check_training_fields(values))
        return values

    @field_validator("arms")
    @classmethod
    def _check_arms(cls, arms: dict[str, dict[str, Any]], info: ValidationInfo) -> dict[str, dict[str, Any]]:
        for name in arms:
            _check_name(name, taken=(BASE_UNIT,))
        if "train" in info.data and "base" in info.data and "seeds" in info.data:
            _raise_as_value_error(lambda: _check_arms_differ(arms, info.data))
        return arms

    @field_validator("evaluations")
    @classmethod
    def _check_evaluations(cls, evaluations: dict[str, dict[str, Any]], info: ValidationInfo) -> dict[str, dict[str, Any]]:
        for name in evaluations:
            _check_name(name, taken=(TRAIN_PART, *info.data.get("arms", ())), also="an arm or a folder")
        for name, values in evaluations.items():
            _raise_as_value_error(lambda name=name, values=values: build_evaluation(name, values))  # type: ignore[misc]
        return evaluations

    @field_validator("against")
    @classmethod
    def _check_against(cls, against: str | None, info: ValidationInfo) -> str | None:
        if against is not None and "arms" in info.data:
            _require_one_of(against, info.data["arms"], "arms")
        return against

    @field_validator("headlines")
    @classmethod
    def _check_headlines(cls, headlines: tuple[HeadlineConfig, ...], info: ValidationInfo) -> tuple[HeadlineConfig, ...]:
        for number, one in enumerate(headlines, 1) if "arms" in info.data and "evaluations" in info.data else ():
            _require_one_of(one.evaluation, info.data["evaluations"], f"evaluations (headline {number})")
            for side in (one.arm, one.against):
                _require_one_of(side, [BASE_UNIT, *info.data["arms"]], f"arms (headline {number})")
            if one.arm == one.against:
                raise ValueError(f"headline {number} compares {quote_input(one.arm)} with itself")
        return headlines

    @field_validator("only")
    @classmethod
    def _check_only(cls, only: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        for name in only if "arms" in info.data else ():
            _require_one_of(name, info.data["arms"], "arms")
        return only

    @model_validator(mode="after")
    def _check_choice(self) -> "StudyConfig":
        known = {seed for arm in self.arms for seed in self.seeds_of(arm)}
        if strangers := [seed for seed in self.only_seeds if seed not in known]:
            seeds = ", ".join(map(str, sorted(known))) or "none"
            raise ValueError(f"only_seeds = {strangers[0]}: no arm has this seed; seeds: {seeds}")
        if self.unit is not None:
            if self.only or self.only_seeds or self.jobs > 1 or self.report:
                raise ValueError(f'unit = "{self.unit}": runs one unit in this process; leave out only, seeds, jobs and report')
            _require_one_of(self.unit, [unit.name for unit in self.units()], "units")
        return self

    @property
    def report_folder(self) -> Path:
        """Where the report goes: report/, or report-only/ if `report` writes one of chosen arms or seeds alone."""
        is_part = self.report and bool(self.only or self.only_seeds)
        return self.out / ("report-only" if is_part else "report")

    @property
    def against_arm(self) -> str | None:
        """The arm that the others are compared with: `against`, or its default; None without one."""
        return self.against or ("rlvr" if "rlvr" in self.arms else None)

    def seeds_of(self, arm: str) -> tuple[int, ...]:
        """The seeds of an arm: its own, or the study's."""
        return tuple(self.arms[arm].get("seeds", self.seeds))

    def label_of(self, arm: str) -> str:
        """The name of an arm in tables."""
        return str(self.arms[arm].get("label", arm))

    def units(self) -> list[StudyUnit]:
        """The untrained model, then the arms by seed and in the order of the file, so that a stopped study has whole seeds."""
        seeds = sorted({seed for arm in self.arms for seed in self.seeds_of(arm)}, key=self._place_of_seed)
        trained = [self._arm_unit(arm, seed) for seed in seeds for arm in self.arms if seed in self.seeds_of(arm)]
        return [self._base_unit(), *trained]

    def chosen_units(self) -> list[StudyUnit]:
        """The units that `only`, `only_seeds` and `unit` choose. Without `unit` the untrained model is always among them."""
        if self.unit is not None:
            return [unit for unit in self.units() if unit.name == self.unit]
        return [
            unit
            for unit in self.units()
            if unit.arm is None
            or ((not self.only or unit.arm in self.only) and (not self.only_seeds or unit.seed in self.only_seeds))
        ]

    def _place_of_seed(self, seed: int) -> tuple[int, int]:
        return (self.seeds.index(seed) if seed in self.seeds else len(self.seeds), seed)

    def _base_unit(self) -> StudyUnit:
        folder = self.out / BASE_UNIT
        own: dict[str, Any] = {"name": self.base.name}
        if self.base.thinking != "default":
            own["thinking"] = self.base.thinking
        parts = {name: self._evaluation(name, folder, self.base.label, own) for name in self.evaluations}
        return StudyUnit(BASE_UNIT, None, None, self.base.label, folder, parts)

    def _arm_unit(self, arm: str, seed: int) -> StudyUnit:
        name, label = f"{arm}-{seed}", _model_label(self.label_of(arm), seed)
        folder = self.out / name
        training = build_training(
            arm, self.train, self.arms[arm], self.base, seed, out=folder / TRAIN_PART, label=label, threads=self.threads
        )
        parts: dict[str, PartConfig] = {TRAIN_PART: training}
        for evaluation in self.evaluations:
            parts[evaluation] = self._evaluation(evaluation, folder, label, {"name": str(training.out / "model")})
        return StudyUnit(name, arm, seed, label, folder, parts)

    def _evaluation(self, name: str, folder: Path, label: str, model: Mapping[str, Any]) -> StabilityConfig | FidelityConfig:
        values = _with_heldout_side(self.evaluations[name], self.train)
        for field in REFERENCE_FIELDS:
            if values.get(field) == BASE_UNIT:
                values[field] = None if folder.name == BASE_UNIT else self.out / BASE_UNIT / name
        values |= {"out": folder / name, "label": label, "model": {**model, **values.get("model", {})}}
        values.setdefault("threads", self.threads)
        return build_evaluation(name, values, of_unit=True)


def build_training(
    arm: str,
    shared: Mapping[str, Any],
    own: Mapping[str, Any],
    base: TrainableModelConfig,
    seed: int,
    **fields: Any,
) -> TrainConfig:
    """The training of an arm with a seed; `fields` are set by the study. Raises ConfigError, naming the arm."""
    mine = {name: value for name, value in own.items() if name not in ARM_FIELDS}
    values = merge_values(_without_ignored(shared, own.get("method")), mine)
    for section in SEED_SECTIONS:
        given_section = values.get(section, {})
        values[section] = {**given_section, "seed": seed} if isinstance(given_section, Mapping) else given_section
    model = {"name": base.name, **({} if base.thinking == "default" else {"thinking": base.thinking})}
    given = {name: value for name, value in fields.items() if value is not None and not (name == "threads" and name in values)}
    return build_config(TrainConfig, values | {"model": model} | given, source=arm)


def build_evaluation(name: str, values: Mapping[str, Any], *, of_unit: bool = False) -> StabilityConfig | FidelityConfig:
    """An evaluation of the study; with `of_unit` the values contain the fields that the study sets. Raises ConfigError."""
    stage = values.get("stage")
    if not isinstance(stage, str) or stage not in EVALUATION_CONFIGS:
        shown = "is missing" if stage is None else f"= {quote_input(stage)}"
        raise ConfigError(f"{name}: stage {shown}: an evaluation has stage = {' or '.join(map(repr, EVALUATION_CONFIGS))}")
    if not of_unit:
        _refuse_fields(values, ("out", "label", "shard"), name)
        if isinstance(values.get("model"), Mapping):
            _refuse_fields(values["model"], ("name", "base_url"), f"{name}: model")
    return build_config(EVALUATION_CONFIGS[stage], values, source=name)


def _check_training_fields(values: Mapping[str, Any], owner: str = "") -> None:
    """Raise ConfigError for a key that no training has, and for a field that the study sets."""
    prefix = f"{owner}: " if owner else ""
    require_known_keys(TrainConfig, values, source=owner)
    if values.get("stage", TRAIN_PART) != TRAIN_PART:
        raise ConfigError(f"{prefix}stage = {quote_input(values['stage'])}: must be 'train', or left out")
    _refuse_fields(values, ("out", "model", *(() if owner else ("label",))), owner)
    for section in SEED_SECTIONS:
        if isinstance(values.get(section), Mapping):
            _refuse_fields(values[section], ("seed",), f"{prefix}{section}")


def _check_arms_differ(arms: Mapping[str, Mapping[str, Any]], data: Mapping[str, Any]) -> None:
    """Raise ConfigError for an arm that is no valid training, for two equal trainings, and for models with the same label."""
    found: dict[str, str] = {}
    labels = {data["base"].label: BASE_UNIT}
    for arm, values in arms.items():
        _check_training_fields({key: value for key, value in values.items() if key not in ARM_FIELDS}, arm)
        if values.get("method") not in get_args(TrainMethod):
            shown = "is missing" if "method" not in values else f"= {quote_input(values['method'])}"
            raise ConfigError(f"{arm}: method {shown}: must be one of {', '.join(get_args(TrainMethod))}")
        label, seeds = _label_and_seeds(arm, values, data["seeds"])
        training = build_training(arm, data["train"], values, data["base"], seed=0)
        recipe = training.model_dump_json(exclude={"out", "label", "threads"})
        if recipe in found:
            raise ConfigError(f"{arm}: is the same training as {found[recipe]}; leave one of the two out, or give more seeds")
        found[recipe] = arm
        for name in {label, *(_model_label(label, seed) for seed in seeds)}:
            if name in labels:
                raise ConfigError(f"{arm}: label = {quote_input(label)}: {labels[name]} has a model of this label; give another")
            labels[name] = arm


def _label_and_seeds(arm: str, values: Mapping[str, Any], default: Sequence[int]) -> tuple[str, Sequence[int]]:
    label = values.get("label", arm)
    if not isinstance(label, str) or not label.strip():
        raise ConfigError(f"{arm}: label = {quote_input(label)}: must be a text")
    try:
        return label, _SEEDS.validate_python(values["seeds"]) if "seeds" in values else default
    except ValidationError as error:
        raise ConfigError(f"{arm}: {format_validation_error(error, 'seeds.')}") from error


def _model_label(label: str, seed: int) -> str:
    return f"{label} {seed}"


def _without_ignored(shared: Mapping[str, Any], method: Any) -> dict[str, Any]:
    """The shared settings without those that have no effect with the method, which `TrainConfig` would refuse."""
    values = {name: dict(value) if isinstance(value, Mapping) else value for name, value in shared.items() if name != "method"}
    dropped = [(TRAIN_PART, name) for name in IGNORED_FIELDS.get(method, ())]
    if method in NO_PERSONA_METHODS:
        dropped.append(("plan", "mix"))
    dropped += [("plan", name) for name in IGNORED_PLAN_FIELDS.get(method, ())]
    if method in SUPERVISED_METHODS:
        values.pop("character", None)
    for section, name in dropped:
        if isinstance(values.get(section), dict):
            values[section].pop(name, None)
    if method != "seqkd":
        values.pop("teacher", None)
    return values


def _with_heldout_side(values: Mapping[str, Any], train: Mapping[str, Any]) -> dict[str, Any]:
    """The evaluation, on the held-out part of a file of your own that is also used for training.

    Without a split a trained model would be asked the held-out part, and the untrained one all of it.
    """
    found = dict(values)
    for section, field in (("task", "path"), ("personas", "pool")):
        asked, trained = found.get(section), train.get(section)
        if isinstance(asked, Mapping) and isinstance(trained, Mapping) and asked.get(field) == trained.get(field) is not None:
            found[section] = {"split": "heldout", **asked}
    return found


def merge_values(shared: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """The shared values with those of `own`, at any depth."""
    return {
        **shared,
        **{
            name: merge_values(shared[name], value)
            if isinstance(value, Mapping) and isinstance(shared.get(name), Mapping)
            else value
            for name, value in own.items()
        },
    }


def _refuse_fields(values: Mapping[str, Any], names: Sequence[str], owner: str) -> None:
    for name in names:
        if name in values:
            raise ConfigError(f"{f'{owner}: ' if owner else ''}{name}: the study sets it; leave it out")


def _check_name(name: str, taken: Sequence[str], also: str = "a folder") -> None:
    if not _NAME.fullmatch(name):
        raise ValueError(f"{quote_input(name)}: a name has letters, digits, '-', '_' and '.', and names a folder")
    if name in taken:
        raise ValueError(f"{quote_input(name)}: {also} of the study has this name; choose another")


def _require_one_of(name: str, known: Any, what: str) -> None:
    if name not in known:
        near = closest_match(name, known)
        hint = f"did you mean {near}?" if near else f"known: {', '.join(known) or 'none'}"
        raise ValueError(f"{quote_input(name)} is not among the {what}; {hint}")


def _raise_as_value_error(check: Callable[[], object]) -> None:
    try:
        check()
    except ConfigError as error:
        raise ValueError(str(error)) from error
