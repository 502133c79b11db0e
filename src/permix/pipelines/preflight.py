"""Run `permix check`: find what is wrong with a configuration file without loading a model. Each stage has its own checks."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from permix import config
from permix.dashboard.server import require_runs_folder
from permix.errors import ConfigError
from permix.evals.stability import preflight_stability
from permix.interop.personagym import describe_personagym_import
from permix.interop.stage import describe_import
from permix.pipelines.fidelity import preflight_fidelity, preflight_judging
from permix.pipelines.quickstart import preflight_quickstart
from permix.pipelines.train import preflight_training
from permix.plan import preflight_plan
from permix.question_writer.generator import preflight_questions
from permix.storage.run_dir import require_run
from permix.tasks import check_task_name


def check_config(path: Path) -> dict[str, str]:
    """Facts about a valid configuration, by name. Raises ConfigError or DataError for the first problem."""
    stage_config = read_stage_config(path)
    return {"stage": stage_config.stage} | PREFLIGHTS[type(stage_config)](stage_config) | {"result": "valid"}


def read_stage_config(path: Path) -> config.AnyConfig:
    """Read a configuration file into the class that its `stage` names. Raises ConfigError if the file is not valid."""
    values = config.read_config_values(path)
    name = values.get("stage")
    if not isinstance(name, str) or name not in config.CONFIGS_BY_STAGE:
        raise ConfigError(f"{path}: stage = {config.quote_input(name)}: must be one of {', '.join(config.CONFIGS_BY_STAGE)}")
    stage_config = config.build_config(config.CONFIGS_BY_STAGE[name], values, source=str(path))
    check_task_name(stage_config, str(path))
    return stage_config


def _preflight_runs(settings: config.ReportConfig | config.CompareConfig) -> dict[str, str]:
    for run in settings.runs:
        require_run(run)
    return {}


def _preflight_view(settings: config.ViewConfig) -> dict[str, str]:
    require_runs_folder(settings)
    return {}


def _preflight_import(settings: config.ImportConfig) -> dict[str, str]:
    folder = settings.personagym
    return describe_import(settings) if folder is None else describe_personagym_import(settings, folder)


def _preflight_export(settings: config.ExportConfig) -> dict[str, str]:
    require_run(settings.run)
    return {}


PREFLIGHTS: dict[type[config.ConfigSection], Callable[[Any], dict[str, str]]] = {
    config.PlanConfig: preflight_plan,
    config.TrainConfig: preflight_training,
    config.StabilityConfig: preflight_stability,
    config.FidelityConfig: preflight_fidelity,
    config.JudgeConfig: preflight_judging,
    config.QuestionsConfig: preflight_questions,
    config.ReportConfig: _preflight_runs,
    config.CompareConfig: _preflight_runs,
    config.ViewConfig: _preflight_view,
    config.ImportConfig: _preflight_import,
    config.ExportConfig: _preflight_export,
    config.QuickstartConfig: preflight_quickstart,
}
"""For each configuration class: a function that returns facts about it, and raises ConfigError or DataError for a problem."""
