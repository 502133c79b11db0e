"""Run `permix check`: find what is wrong with a configuration file without loading a model. Each stage has its own checks."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from permix import config
from permix.dashboard.server import require_runs_folder
from permix.errors import ConfigError, DataError, error_context, option_context
from permix.evals.interview import load_interview_script
from permix.evals.open_ended import load_open_questions, select_open_ended_personas
from permix.evals.personagym import select_personagym_questions
from permix.evals.stability import preflight_stability, trained_question_hashes
from permix.inference import check_model, require_model_packages
from permix.inference.hf import check_model_folder
from permix.interop.personagym import describe_personagym_import
from permix.interop.stage import describe_import
from permix.judges.judging import load_judge_setup, preflight_judging
from permix.personas.pool import select_personas
from permix.pipelines.engine_export import describe_export
from permix.pipelines.fidelity import preflight_fidelity, required_rubrics
from permix.pipelines.quickstart import preflight_quickstart
from permix.pipelines.study_cost import preflight_study
from permix.pipelines.train import preflight_training, require_training_packages
from permix.pipelines.verl_import import describe_verl_training
from permix.plan import load_training_plan, preflight_plan
from permix.prompts import template_text
from permix.question_writer.generator import preflight_questions
from permix.storage.run_dir import require_run
from permix.tasks import check_task_name, load_questions


class InvalidConfigError(ConfigError):
    """A configuration with one or more problems; `problems` has a line for each."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


def check_config(path: Path) -> dict[str, str]:
    """Facts about a valid configuration, by name. Raises InvalidConfigError with all problems that can be found.

    Fields that are not valid hide problems of the data that they name: those are found when the fields are valid.
    """
    try:
        stage_config = read_stage_config(path)
    except (ConfigError, DataError) as error:
        raise InvalidConfigError([str(error)]) from error
    try:
        facts = PREFLIGHTS[type(stage_config)](stage_config)
    except (ConfigError, DataError) as error:
        # A preflight stops at its first problem, on which others may depend. So each part is also checked by itself.
        problems = [str(error), *_problems_of_parts(stage_config)]
        raise InvalidConfigError(list(dict.fromkeys(problems))) from error
    return {"stage": stage_config.stage} | facts | _missing_packages(stage_config) | {"result": "valid"}


def _missing_packages(settings: config.AnyConfig) -> dict[str, str]:
    """A fact about packages that this machine lacks. It is no problem of the file, which may be for another machine."""
    models = (getattr(settings, name, None) for name in ("model", "judge", "interviewer"))
    used = [one for one in models if isinstance(one, config.ModelConfig) and one.name not in ("none", "script")]
    try:
        if isinstance(settings, config.TrainConfig):
            require_training_packages("training", settings.train.lora_rank)
        elif isinstance(settings, config.QuickstartConfig):
            require_training_packages("the quickstart")
        elif isinstance(settings, config.StudyConfig) and settings.arms:
            require_training_packages("the arms")
        for model in used:
            if model.capabilities.is_local:
                require_model_packages(model)
    except ConfigError as error:
        return {"on this machine": str(error)}
    return {}


def _problems_of_parts(settings: config.ConfigSection) -> list[str]:
    """The message of each part of a configuration that cannot be used."""
    problems = []
    for check in _part_checks(settings):
        try:
            check()
        except (ConfigError, DataError) as error:
            problems.append(str(error))
    return problems


def _part_checks(settings: config.ConfigSection) -> Iterator[Callable[[], object]]:
    """A check of each part of a configuration that does not depend on the others."""
    task, personas, plan_file = (getattr(settings, name, None) for name in ("task", "personas", "plan_file"))
    if isinstance(personas, config.PersonasConfig):
        yield partial(template_text, personas.template)
    if isinstance(settings, config.TrainConfig) and plan_file is not None:
        yield partial(load_training_plan, plan_file, settings.method)
    elif isinstance(task, config.TaskConfig):
        yield partial(load_questions, task)
    if isinstance(settings, config.FidelityConfig) and settings.kind != "personagym":
        yield partial(select_open_ended_personas, settings)
    elif isinstance(personas, config.PersonasConfig) and plan_file is None and not isinstance(settings, config.QuestionsConfig):
        yield partial(select_personas, personas)
    if isinstance(settings, config.FidelityConfig):
        if settings.kind == "open":
            yield partial(load_open_questions, settings)
        elif settings.kind == "interview" and not settings.interviewer.is_model:
            yield partial(load_interview_script, settings.interview)
        elif settings.kind == "personagym":
            yield partial(select_personagym_questions, settings)
        if settings.judge.name != "none":
            yield partial(load_judge_setup, settings.judge, required_rubrics(settings))
        if settings.reference is not None:
            yield partial(_require_reference, settings.reference, "reference")
    if isinstance(settings, config.StabilityConfig) and settings.character_reference is not None:
        yield partial(_require_reference, settings.character_reference, "character_reference")
    for plan in getattr(settings, "exclude_plans", ()):
        yield partial(trained_question_hashes, config.ModelConfig(), [plan])
    for name in ("model", "judge", "teacher", "interviewer"):
        model = getattr(settings, name, None)
        if isinstance(model, config.ModelConfig) and model.name not in ("none", "self", "script"):
            yield partial(_check_model_part, model, "" if name == "model" else name)
        elif isinstance(model, config.TrainableModelConfig):
            yield partial(check_model_folder, model.name)
    if isinstance(settings, config.ReportConfig | config.CompareConfig | config.PowerConfig):
        for run in settings.runs:
            yield partial(_require_runs_in, run)


def _check_model_part(model: config.ModelConfig, owner: str) -> None:
    with error_context(owner) if owner else nullcontext():
        check_model(model, contact=False)


def _require_reference(run: Path, field: str) -> None:
    with option_context(field, run):
        require_run(run)


def _require_runs_in(path: Path) -> None:
    from permix.report.runs import find_runs  # takes a second to import, which only these commands need

    with option_context("runs", path):
        list(find_runs(path))


def read_stage_config(path: Path) -> config.AnyConfig:
    """Read a configuration file into the class that its `stage` names. Raises ConfigError if the file is not valid."""
    values = config.read_config_values(path)
    name = values.get("stage")
    stages = ", ".join(config.CONFIGS_BY_STAGE)
    if "stage" not in values:
        raise ConfigError(f"{path}: stage is missing: name the command that the file configures, one of {stages}")
    if not isinstance(name, str) or name not in config.CONFIGS_BY_STAGE:
        raise ConfigError(f"{path}: stage = {config.quote_input(name)}: must be one of {stages}")
    stage_config = config.build_config(config.CONFIGS_BY_STAGE[name], values, source=str(path))
    check_task_name(stage_config, str(path))
    config.require_own_folder(path, stage_config)
    return stage_config


def _preflight_runs(settings: config.ReportConfig | config.CompareConfig | config.PowerConfig) -> dict[str, str]:
    """Check that every path holds a run, and that there are as many runs as the command needs."""
    from permix.report.comparisons import require_two_runs
    from permix.report.runs import find_all_runs

    for path in settings.runs:
        _require_runs_in(path)
    if isinstance(settings, config.CompareConfig):
        require_two_runs(settings)
    return {"runs": str(len(find_all_runs(settings.runs)))}


def _preflight_view(settings: config.ViewConfig) -> dict[str, str]:
    require_runs_folder(settings)
    return {}


def _preflight_import(settings: config.ImportConfig) -> dict[str, str]:
    if settings.verl is not None:
        return describe_verl_training(settings, settings.verl)
    folder = settings.personagym
    return describe_import(settings) if folder is None else describe_personagym_import(settings, folder)


def _preflight_export(settings: config.ExportConfig) -> dict[str, str]:
    if settings.plan is not None:
        return describe_export(settings)
    with option_context("run", settings.run):
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
    config.PowerConfig: _preflight_runs,
    config.ViewConfig: _preflight_view,
    config.ImportConfig: _preflight_import,
    config.ExportConfig: _preflight_export,
    config.QuickstartConfig: preflight_quickstart,
    config.StudyConfig: preflight_study,
}
"""For each configuration class: a function that returns facts about it, and raises ConfigError or DataError for a problem."""
