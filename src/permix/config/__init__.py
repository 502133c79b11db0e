"""The configuration classes: each option is declared once. Importing this package does not import torch.

The configuration of a stage is one frozen class made of sections. A TOML file mirrors it (`[train] lr = 1e-5`), a flag names the
same field (`--train.lr 1e-5`), and the resolved configuration is written to the run directory. Unknown keys are refused, naming
the nearest known key. Attribute docstrings are the help texts of `permix VERB --help`.
"""

from permix.config.base import (
    CONFIG_SUFFIXES,
    ConfigSection,
    build_config,
    format_validation_error,
    load_config,
    quote_input,
    read_config_values,
)
from permix.config.data import (
    ANSWER_KINDS,
    BACKENDS,
    BATCH_BACKEND,
    ENGINE_FIELDS,
    OWN_OBJECT_NAME,
    TRACKER_PACKAGES,
    BackendCapabilities,
    InterviewConfig,
    InterviewerConfig,
    JudgeModelConfig,
    ModelConfig,
    PersonaGymConfig,
    PersonaGymTask,
    PersonasConfig,
    TaskConfig,
    ThinkingSwitch,
    configurable_backends,
    rubric_entries,
)
from permix.config.stages import (
    DEFAULTS_FROM_DATA,
    ENGINE_FORMATS,
    CompareConfig,
    EngineFormat,
    ExportConfig,
    FidelityConfig,
    ImportConfig,
    ImportedFidelityConfig,
    ImportedModelConfig,
    ImportedSamplingConfig,
    ImportedStabilityConfig,
    ImportedTrainConfig,
    JudgeConfig,
    PlanConfig,
    PowerConfig,
    QuestionsConfig,
    QuickstartConfig,
    ReportConfig,
    RunConfig,
    StabilityConfig,
    TeacherConfig,
    TrainableModelConfig,
    TrainConfig,
    ViewConfig,
)
from permix.config.study import (
    BASE_UNIT,
    FILE_ONLY_FIELDS,
    OVERRIDABLE_SECTIONS,
    TRAIN_PART,
    HeadlineConfig,
    PartConfig,
    StudyConfig,
    StudyRatesConfig,
    StudyUnit,
    merge_values,
)
from permix.config.training import (
    CHANGEABLE_FIELDS,
    DEFAULT_MIX,
    IGNORED_FIELDS,
    NO_PERSONA_METHODS,
    RUNTIME_ONLY_FIELDS,
    SUPERVISED_METHODS,
    CharacterConfig,
    DevEvalConfig,
    DevMetric,
    LossName,
    OptimConfig,
    RolloutPlanConfig,
    TrainerBackendName,
    TrainMethod,
    resolve_mix,
)

AnyConfig = (
    PlanConfig
    | TrainConfig
    | StabilityConfig
    | FidelityConfig
    | JudgeConfig
    | QuestionsConfig
    | ReportConfig
    | CompareConfig
    | PowerConfig
    | ViewConfig
    | ImportConfig
    | ExportConfig
    | QuickstartConfig
    | StudyConfig
)

CONFIGS_BY_STAGE: dict[str, type[AnyConfig]] = {
    "plan": PlanConfig,
    "train": TrainConfig,
    "stability": StabilityConfig,
    "fidelity": FidelityConfig,
    "judge": JudgeConfig,
    "questions": QuestionsConfig,
    "report": ReportConfig,
    "compare": CompareConfig,
    "power": PowerConfig,
    "view": ViewConfig,
    "import": ImportConfig,
    "export": ExportConfig,
    "quickstart": QuickstartConfig,
    "study": StudyConfig,
}

__all__ = [
    "ANSWER_KINDS",
    "BACKENDS",
    "BASE_UNIT",
    "BATCH_BACKEND",
    "CHANGEABLE_FIELDS",
    "CONFIGS_BY_STAGE",
    "CONFIG_SUFFIXES",
    "DEFAULTS_FROM_DATA",
    "DEFAULT_MIX",
    "ENGINE_FIELDS",
    "ENGINE_FORMATS",
    "FILE_ONLY_FIELDS",
    "IGNORED_FIELDS",
    "NO_PERSONA_METHODS",
    "OVERRIDABLE_SECTIONS",
    "OWN_OBJECT_NAME",
    "RUNTIME_ONLY_FIELDS",
    "SUPERVISED_METHODS",
    "TRACKER_PACKAGES",
    "TRAIN_PART",
    "AnyConfig",
    "BackendCapabilities",
    "CharacterConfig",
    "CompareConfig",
    "ConfigSection",
    "DevEvalConfig",
    "DevMetric",
    "EngineFormat",
    "ExportConfig",
    "FidelityConfig",
    "HeadlineConfig",
    "ImportConfig",
    "ImportedFidelityConfig",
    "ImportedModelConfig",
    "ImportedSamplingConfig",
    "ImportedStabilityConfig",
    "ImportedTrainConfig",
    "InterviewConfig",
    "InterviewerConfig",
    "JudgeConfig",
    "JudgeModelConfig",
    "LossName",
    "ModelConfig",
    "OptimConfig",
    "PartConfig",
    "PersonaGymConfig",
    "PersonaGymTask",
    "PersonasConfig",
    "PlanConfig",
    "PowerConfig",
    "QuestionsConfig",
    "QuickstartConfig",
    "ReportConfig",
    "RolloutPlanConfig",
    "RunConfig",
    "StabilityConfig",
    "StudyConfig",
    "StudyRatesConfig",
    "StudyUnit",
    "TaskConfig",
    "TeacherConfig",
    "ThinkingSwitch",
    "TrainConfig",
    "TrainMethod",
    "TrainableModelConfig",
    "TrainerBackendName",
    "ViewConfig",
    "build_config",
    "configurable_backends",
    "format_validation_error",
    "load_config",
    "merge_values",
    "quote_input",
    "read_config_values",
    "resolve_mix",
    "rubric_entries",
]
