"""`permix check`: everything about a configuration that can be found wrong without a model."""

from pathlib import Path

from permix import config
from permix.dashboard.server import require_runs_folder
from permix.errors import ConfigError, error_context
from permix.evals import interview
from permix.evals.open_ended import check_reference_answers, load_open_questions, select_open_ended_personas
from permix.evals.personagym import sample_balanced_questions, select_personagym_questions
from permix.evals.stability import build_stopping_rule, first_round_cells, max_cells, prepare_stability
from permix.evals.strategies import STRATEGIES
from permix.inference import check_model
from permix.inference.hf import check_model_folder
from permix.interop.personagym import describe_personagym_import
from permix.interop.stage import describe_import
from permix.judges.runner import max_total_cost
from permix.personas.pool import select_personas
from permix.pipelines.fidelity import build_call_settings, load_judge_setup, required_rubrics
from permix.pipelines.fidelity import prepare_judging as set_up_judge
from permix.pipelines.quickstart import quickstart_configs as quickstart_stages
from permix.plan import Plan, compile_plan_from_config, describe_plan, load_or_build_plan
from permix.prompts import template_text
from permix.question_writer import generator
from permix.storage.files import read_json
from permix.tasks import check_task_name, load_questions
from permix.training import dev_eval
from permix.training.compatibility import check_plan
from permix.training.reference_answers import reference_answer_cells
from permix.training.sft_data import format_sft_counts, gold_examples, teacher_config
from permix.verification.math_verifier import Verifier


def check_config(path: Path) -> dict[str, str]:
    """Facts about a valid configuration; raises ConfigError or DataError for the first thing that is wrong."""
    stage = read_stage_config(path)
    facts: dict[str, str] = {"stage": stage.stage}
    match stage:
        case config.PlanConfig() | config.TrainConfig():
            facts |= _check_plan(stage)
        case config.StabilityConfig():
            facts |= _check_stability(stage)
        case config.FidelityConfig():
            facts |= _check_fidelity(stage)
        case config.JudgeConfig():
            facts |= _check_judge(stage)
        case config.QuestionsConfig():
            facts |= _check_questions(stage)
        case config.ReportConfig() | config.CompareConfig():
            for run in stage.runs:
                read_json(run / "config.json")
        case config.ViewConfig():
            require_runs_folder(stage)
        case config.ImportConfig():
            facts |= describe_import(stage) if stage.personagym is None else describe_personagym_import(stage, stage.personagym)
        case config.ExportConfig():
            read_json(stage.run / "config.json")
        case config.QuickstartConfig():
            for parts in quickstart_stages(stage):
                for part in parts:
                    _check_quickstart_stage(part)
    return facts | {"result": "valid"}


def _check_quickstart_stage(stage: config.RunConfig) -> None:
    """One stage of the quickstart; what it takes from an earlier one is not there yet."""
    if isinstance(stage, config.TrainConfig):
        _check_plan(stage)
    elif isinstance(stage, config.FidelityConfig):
        select_open_ended_personas(stage)
        load_open_questions(stage)
    elif isinstance(stage, config.StabilityConfig):
        load_questions(stage.task)
        select_personas(stage.personas)


def read_stage_config(path: Path) -> config.AnyConfig:
    """The configuration in a file, of the class that its `stage` names."""
    values = config.read_config_values(path)
    name = values.get("stage")
    if name not in config.CONFIGS_BY_STAGE:
        raise ConfigError(f"{path}: stage = {name!r}: must be one of {', '.join(config.CONFIGS_BY_STAGE)}")
    found = config.build_config(config.CONFIGS_BY_STAGE[name], values, source=str(path))
    check_task_name(found, str(path))
    return found


def _check_plan(stage: config.PlanConfig | config.TrainConfig) -> dict[str, str]:
    template_text(stage.personas.template)
    if isinstance(stage, config.PlanConfig):
        return describe_plan(compile_plan_from_config(stage.task, stage.personas, stage.plan))
    check_model_folder(stage.model.name)
    plan = load_or_build_plan(stage)
    found = dev_eval.build_dev_eval(stage, plan)
    probed = {} if found is None else {"dev_eval": dev_eval.describe_dev_eval(found)}
    return {"method": stage.method} | describe_plan(plan) | _check_method(stage, plan) | probed


def _check_method(stage: config.TrainConfig, plan: Plan) -> dict[str, str]:
    """What a method asks of a plan, besides the plan itself."""
    match stage.method:
        case "permix" | "rlvr":
            check_plan(plan, stage.train)
            return _check_character(stage)
        case "sft" | "sft-personas":
            with Verifier() as verifier:
                return {"learnt from": format_sft_counts(gold_examples(plan, verifier).counts)}
        case "seqkd":
            with error_context("teacher"):
                check_model(teacher_config(stage), contact=False)
            return {"teacher": teacher_config(stage).name}


def _check_character(stage: config.TrainConfig) -> dict[str, str]:
    """What keeping the character costs, in answers."""
    kept = stage.character
    if not kept.needs_base_answers:
        return {}
    asked = len(reference_answer_cells(stage))
    replayed = f"; {kept.replay_answers} replayed in each step" if kept.replay else ""
    return {"character": f"{asked} answers of the base model first, at most {asked * kept.max_new_tokens} new tokens{replayed}"}


def _check_stability(stage: config.StabilityConfig) -> dict[str, str]:
    template_text(stage.personas.template)
    strategy, (_, setup) = STRATEGIES[stage.strategy], prepare_stability(stage)
    check_model(stage.model, contact=False)
    if limits := build_stopping_rule(stage):
        cells, most = len(first_round_cells(setup, limits)), max_cells(setup, limits)
        return {
            "questions": f"{len(setup.questions)} at most", "personas": f"{len(setup.pool)}, and none",
            "cells": f"{cells} first, at most {most}, at most {most * stage.sampling.max_new_tokens} new tokens",
        }  # fmt: skip
    cells, then = len(strategy.initial_cells(setup)), strategy.max_followups(setup)
    more = f", then at most {then}" if then else ""
    facts = {
        "questions": str(len(setup.questions)),
        "personas": f"{len(setup.pool)}, and none",
        "cells": f"{cells}{more}, at most {(cells + then) * stage.sampling.max_new_tokens} new tokens",
    }
    return facts if stage.strategy == "none" else {"strategy": stage.strategy} | facts


def _check_fidelity(stage: config.FidelityConfig) -> dict[str, str]:
    template_text(stage.personas.template)
    check_model(stage.model, contact=False)
    if stage.judge.name != "none":
        load_judge_setup(stage.judge, required_rubrics(stage))
        _check_judge_model(stage.judge)
    match stage.kind:
        case "personagym":
            return _check_personagym(stage)
        case "interview":
            return _check_interview(stage)
        case "open":
            return _check_open(stage)


def _check_open(stage: config.FidelityConfig) -> dict[str, str]:
    personas, questions = select_open_ended_personas(stage), load_open_questions(stage)
    if stage.reference is not None:
        check_reference_answers(
            stage.reference, {(persona.id, question.id) for persona in personas.personas for question in questions}
        )
    return {"personas": str(len(personas)), "questions": str(len(questions)), "answers": str(len(personas) * len(questions))}


def _check_personagym(stage: config.FidelityConfig) -> dict[str, str]:
    pool, questions = select_personagym_questions(stage)
    without = len(sample_balanced_questions(questions, stage.personagym.without_persona, stage.seed))
    answers = len(questions) + without
    return {
        "personas": str(len(pool)),
        "questions": f"{len(questions)}, each of one persona; {without} also without",
        "answers": f"{answers}, at most {answers * stage.sampling.max_new_tokens} new tokens",
    }


def _check_judge(stage: config.JudgeConfig) -> dict[str, str]:
    means, prompts = set_up_judge(stage)
    _check_judge_model(stage.judge)
    tried = sum(prompt.judge_input.control != "none" for prompt in prompts)
    most = max_total_cost(prompts, build_call_settings(stage, means.price))
    return {
        "answers": str(len(prompts) - tried), "answers to try the judge": str(tried),
        "calls": f"{len(prompts)}, at most {len(prompts) * stage.judge.max_new_tokens} new tokens",
        "cost": "unknown: no price" if most is None else f"at most {most:.4f} US dollars where each is answered at once",
    }  # fmt: skip


def _check_judge_model(judge: config.JudgeModelConfig) -> None:
    with error_context("judge"):
        check_model(judge, contact=False)


def _check_questions(stage: config.QuestionsConfig) -> dict[str, str]:
    """What is to be written, in as many calls when no reply is refused."""
    work = generator.build_writing_job(stage)
    check_model(stage.model, contact=False)
    personas, written = len(work.personas), len(work.personas) * len(work.tasks) * work.n_per_task
    calls = 0 if work.given_questions else personas * (1 + len(work.tasks))
    questions = (
        f"{len(work.given_questions)}, given"
        if work.given_questions
        else f"{written}, {work.n_per_task} of each persona × {len(work.tasks)} tasks"
    )
    examples = (len(work.given_questions) or written) * work.with_examples
    most = (calls + examples) * stage.sampling.max_new_tokens
    return {
        "personas": str(personas),
        "questions": questions,
        "examples": f"{examples} × 5 answers",
        "calls": f"{calls + examples} or more, at most {most} new tokens in as many",
    }


def _check_interview(stage: config.FidelityConfig) -> dict[str, str]:
    pool, turns = interview.prepare_interview(stage).pool, stage.interview.turns
    if stage.interviewer.is_model:
        check_model(stage.interviewer, contact=False)
    return {
        "personas": str(len(pool)),
        "turns": f"{turns}, asked by {stage.interviewer.name if stage.interviewer.is_model else 'a script'}",
        "answers": f"{len(pool) * turns}, at most {len(pool) * turns * stage.sampling.max_new_tokens} new tokens",
    }
