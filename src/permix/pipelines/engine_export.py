"""Run `permix export PLAN --format verl|verifiers`: write a training plan for another engine.

PLAN is a training configuration (methods permix and rlvr) or a plan file of `permix plan`. Everything is loaded and checked, with
the code that `permix train` uses, before anything is written.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from permix.config import (
    CONFIG_SUFFIXES,
    SUPERVISED_METHODS,
    EngineFormat,
    ExportConfig,
    RolloutPlanConfig,
    TrainConfig,
    build_config,
    quote_input,
    read_config_values,
)
from permix.errors import ConfigError, error_context, is_installed, option_context
from permix.evals.strategies import STRATEGIES
from permix.inference.hf import BUNDLED_HUB_ID, load_tokenizer, resolve_model_source
from permix.interop.engine_export import PlanExport, TrainingEngine, check_engine_settings, exported_settings, write_export
from permix.interop.verifiers_export import VERIFIERS
from permix.interop.verl_export import VERL
from permix.plan import Plan, compile_plan_from_config, describe_plan, load_training_plan, read_plan
from permix.tasks import check_task_name
from permix.training.compatibility import check_context_window, check_plan, longest_prompt_tokens
from permix.training.dev_eval import DevEval
from permix.training.job import TrainJob, prepare_training
from permix.types import PlanRow

ENGINES: Mapping[EngineFormat, TrainingEngine] = {"verl": VERL, "verifiers": VERIFIERS}
"""The engine of each format of `permix export` that takes a plan."""


def export_plan(config: ExportConfig) -> dict[str, str]:
    """Write the plan for the engine of `config.format`; returns facts to print.

    Raises ConfigError or DataError, before anything is written, for a plan or a setting that the engine cannot honour.
    """
    engine, export = prepare_export(config)
    return write_export(engine, config.format, export, config.out)


def prepare_export(config: ExportConfig) -> tuple[TrainingEngine, PlanExport]:
    """Load and check everything that an export needs; writes nothing. Raises ConfigError or DataError."""
    engine = ENGINES[config.format]  # type: ignore[index]
    training = load_exported_training(config)
    if training.method in SUPERVISED_METHODS:
        raise ConfigError(
            f'method = "{training.method}": {engine.name} gets prompts and rewards, and a supervised method learns from given '
            'completions; give method "permix" or "rlvr", or train with `permix train`'
        )
    check_engine_settings(engine, exported_settings(training))
    job = prepare_training(training)
    check_plan(job.plan, job.config.train)
    tokenizer, notes = _load_tokenizer_if_possible(config, job)
    return engine, PlanExport(
        plan=job.plan,
        config=job.config,
        model=exported_model_name(config, training),
        tokenizer=tokenizer,
        dev_rows=() if job.dev_eval is None else dev_eval_rows(job.dev_eval),
        nnodes=config.nnodes,
        gpus_per_node=config.n_gpus_per_node,
        notes=tuple(notes),
    )


def describe_export(config: ExportConfig) -> dict[str, str]:
    """Facts about the plan that would be exported, for `permix check`. Raises ConfigError or DataError."""
    engine, export = prepare_export(config)
    return {"engine": engine.name, "model": export.model} | describe_plan(export.plan)


def load_exported_training(config: ExportConfig) -> TrainConfig:
    """The training of `config.plan`. Its section [plan] describes the rows of the plan, also those of a plan file.

    Raises ConfigError for a configuration of another command, or for one that is given with a plan file and has another plan.
    """
    assert config.plan is not None, "ExportConfig checks that the formats of engines have a plan"
    if config.plan.suffix in CONFIG_SUFFIXES:
        if config.config is not None:
            raise ConfigError(
                f"config = {config.config}: plan = {config.plan} is a training configuration already; give one of the two"
            )
        training = _read_training(config.plan)
    else:
        training = _training_of_plan_file(config.plan, config.config)
    if training.plan_file is None:
        return training
    plan = load_training_plan(training.plan_file, training.method, training.task.name)
    return training.model_copy(update={"plan": describe_rows(plan, training.plan_file)})


def _read_training(path: Path) -> TrainConfig:
    values = read_config_values(path)
    if (stage := values.get("stage", "train")) != "train":
        raise ConfigError(f"{path}: configures stage {quote_input(stage)}; give a configuration of `permix train` or a plan file")
    training = build_config(TrainConfig, values, source=str(path))
    check_task_name(training, str(path))
    return training


def _training_of_plan_file(path: Path, config: Path | None) -> TrainConfig:
    """The training that follows the plan file: with the settings of `config`, else with the defaults."""
    with option_context("plan", path):
        plan = read_plan(path)
    if config is None:
        has_personas = any(row.persona_id is not None for row in plan.rows)
        return TrainConfig(plan_file=path, method="permix" if has_personas else "rlvr")
    training = _read_training(config)
    other = None
    if training.plan_file is not None:
        with option_context("plan_file", training.plan_file):
            other = read_plan(training.plan_file)
    elif training.model_fields_set & {"task", "personas", "plan"}:
        other = compile_plan_from_config(training.task, training.personas, training.plan)
    if other is not None and other.hash != plan.hash:
        raise ConfigError(
            f"plan = {path}: has the hash {plan.hash}, and the plan of config = {config} has {other.hash}; give a configuration "
            "of this plan, or one without plan_file and the sections task, personas and plan"
        )
    return training.model_copy(update={"plan_file": path})


def describe_rows(plan: Plan, path: Path) -> RolloutPlanConfig:
    """The section [plan] behind a plan file: what its rows are, and how they were drawn, as the file's metadata say.

    Settings that the metadata lack are not set (`exported_settings` leaves them out); so are those of a curriculum, which draws
    nothing more in a finished plan. Raises ConfigError for rows that are no plan to train on, such as groups of one rollout.
    """
    groups = {(row.step, row.group) for row in plan.rows}
    drawn_by = plan.metadata.get("plan")
    drawn_by = drawn_by if isinstance(drawn_by, dict) else {}
    is_adaptive = bool(drawn_by.get("curriculum_strength"))
    known = {
        name: value
        for name, value in drawn_by.items()
        if name in RolloutPlanConfig.model_fields and not (is_adaptive and name.startswith("curriculum_"))
    }
    values = known | {
        "steps": plan.steps,
        "questions_per_step": plan.groups_per_step,
        "group_size": plan.group_size,
        "dynamic_sampling_groups": plan.dynamic_sampling_groups,
        "scope": "group" if len(groups) == len(plan.rows) else "rollout",
    }
    return build_config(RolloutPlanConfig, values, source=f"plan {path}")


def exported_model_name(config: ExportConfig, training: TrainConfig) -> str:
    """The model's name on the machines that train: `--model`, or the training's own; the bundled model's is its hub id."""
    if config.model is not None:
        return config.model
    return BUNDLED_HUB_ID if training.model.name == "bundled" else training.model.name


def dev_eval_rows(dev_eval: DevEval) -> tuple[PlanRow, ...]:
    """The task questions of a dev evaluation as rows: questions without a persona and under each dev persona."""
    questions = {question.id: question for question in dev_eval.setup.questions}
    tags = {persona.id: persona.tags for persona in dev_eval.setup.pool.personas}
    rows = []
    for group, cell in enumerate(STRATEGIES["none"].initial_cells(dev_eval.setup)):
        question = questions[cell.question_id]
        rows.append(
            PlanRow(
                step=0,
                group=group,
                rollouts=1,
                task=question.task,
                question_id=question.id,
                question_hash=question.content_hash,
                persona_id=cell.persona_id,
                persona_tags=() if cell.persona_id is None else tags[cell.persona_id],
                seed=cell.seed,
                messages=cell.messages,
                gold=question.gold,
            )
        )
    return tuple(rows)


def _load_tokenizer_if_possible(config: ExportConfig, job: TrainJob) -> tuple[Any, list[str]]:
    """The tokenizer, with which the prompts' lengths are checked, and notes; (None, ...) if it cannot be loaded here.

    Raises ConfigError for a prompt over the limit, or one whose completion does not fit into the model's context window.
    """
    name = config.model if config.model is not None and Path(config.model).is_dir() else job.config.model.name
    try:
        source = resolve_model_source(name)
        tokenizer = load_tokenizer(source, job.config.model.thinking)
    except ConfigError as error:
        if Path(name).is_dir() and is_installed("transformers"):
            raise
        return None, [
            f"the tokenizer of {name} cannot be loaded here, so the lengths of the prompts were not checked; a longer one than "
            f"train.max_prompt_tokens = {job.config.train.max_prompt_tokens} ends its rollout with an error ({error})"
        ]
    longest = longest_prompt_tokens(job.plan, tokenizer, job.config.train.max_prompt_tokens)
    check_context_window(longest, job.config.train, source)
    if job.dev_eval is not None:
        with error_context("[dev_eval]"):
            longest_prompt_tokens(Plan(dev_eval_rows(job.dev_eval), {}), tokenizer, job.config.train.max_prompt_tokens)
    return tokenizer, []
