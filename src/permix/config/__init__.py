"""Every configuration class: declared once, frozen, importable without torch.

A stage's configuration is one class made of sections; a TOML file mirrors it (`[train] lr = 1e-5`), a flag names the same field
(`--train.lr 1e-5`), and the resolved whole is written to the run directory. Unknown keys are refused with the nearest known one.
"""

from permix.config.asking import ModelConfig, PersonasConfig, TaskConfig
from permix.config.base import Section
from permix.config.interop import ExportStage, ImportedAnswers, ImportedModel, ImportedRun, ImportedSampling, ImportStage
from permix.config.judging import GymConfig, GymTask, InterviewConfig, InterviewerConfig, JudgeConfig
from permix.config.read import SUFFIXES, build, explain, load, read_values
from permix.config.stages import (
    STAGES,
    AnyStage,
    CompareStage,
    FidelityStage,
    JudgeStage,
    PlanStage,
    QuestionsStage,
    QuickstartStage,
    ReportStage,
    StabilityStage,
    Stage,
    TeacherConfig,
    TrainedModel,
    TrainStage,
    ViewStage,
)
from permix.config.training import (
    IDLE,
    MIX,
    PLACES,
    SUPERVISED,
    WITHOUT_PERSONAS,
    CharacterConfig,
    LossName,
    Method,
    PlanConfig,
    ProbeConfig,
    ProbeMetric,
    TrainConfig,
    mix_of,
)

__all__ = [
    "IDLE",
    "MIX",
    "PLACES",
    "STAGES",
    "SUFFIXES",
    "SUPERVISED",
    "WITHOUT_PERSONAS",
    "AnyStage",
    "CharacterConfig",
    "CompareStage",
    "ExportStage",
    "FidelityStage",
    "GymConfig",
    "GymTask",
    "ImportStage",
    "ImportedAnswers",
    "ImportedModel",
    "ImportedRun",
    "ImportedSampling",
    "InterviewConfig",
    "InterviewerConfig",
    "JudgeConfig",
    "JudgeStage",
    "LossName",
    "Method",
    "ModelConfig",
    "PersonasConfig",
    "PlanConfig",
    "PlanStage",
    "ProbeConfig",
    "ProbeMetric",
    "QuestionsStage",
    "QuickstartStage",
    "ReportStage",
    "Section",
    "StabilityStage",
    "Stage",
    "TaskConfig",
    "TeacherConfig",
    "TrainConfig",
    "TrainStage",
    "TrainedModel",
    "ViewStage",
    "build",
    "explain",
    "load",
    "mix_of",
    "read_values",
]
