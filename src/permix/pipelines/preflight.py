"""`permix check`: everything about a configuration that can be found wrong without a model. Each stage checks its own."""

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
    """Facts about a valid configuration; raises ConfigError or DataError for the first thing that is wrong."""
    found = read_stage_config(path)
    return {"stage": found.stage} | PREFLIGHTS[type(found)](found) | {"result": "valid"}


def read_stage_config(path: Path) -> config.AnyConfig:
    """The configuration in a file, of the class that its `stage` names."""
    values = config.read_config_values(path)
    name = values.get("stage")
    if name not in config.CONFIGS_BY_STAGE:
        raise ConfigError(f"{path}: stage = {name!r}: must be one of {', '.join(config.CONFIGS_BY_STAGE)}")
    found = config.build_config(config.CONFIGS_BY_STAGE[name], values, source=str(path))
    check_task_name(found, str(path))
    return found


def _preflight_runs(found: config.ReportConfig | config.CompareConfig) -> dict[str, str]:
    for run in found.runs:
        require_run(run)
    return {}


def _preflight_view(found: config.ViewConfig) -> dict[str, str]:
    require_runs_folder(found)
    return {}


def _preflight_import(found: config.ImportConfig) -> dict[str, str]:
    return describe_import(found) if found.personagym is None else describe_personagym_import(found, found.personagym)


def _preflight_export(found: config.ExportConfig) -> dict[str, str]:
    require_run(found.run)
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
"""Each gives facts about a configuration of its class, and raises ConfigError or DataError for what is wrong with it."""
