"""`permix check`: everything about a configuration that can be found wrong without a model."""

from pathlib import Path

from permix import config
from permix.dashboard.server import refuse_no_folder
from permix.errors import ConfigError, speaking_of
from permix.evals import interview
from permix.evals.open_ended import choose_voices, open_questions, refuse_unanswered
from permix.evals.personagym import choose_gym, spread
from permix.evals.stability import first_cells, limits_of, most_cells, set_up
from permix.evals.strategies import STRATEGIES
from permix.inference import open_model
from permix.inference.hf import refuse_missing_folder
from permix.interop.personagym import describe_answers
from permix.interop.stage import describe_sources
from permix.judges.runner import dearest
from permix.personas.pool import choose_personas
from permix.pipelines.fidelity import means_of, rubrics_of, terms_of
from permix.pipelines.fidelity import set_up as set_up_judge
from permix.pipelines.quickstart import stages as quickstart_stages
from permix.plan import Plan, compile_from, describe, plan_for
from permix.prompts import template_text
from permix.question_writer import generator
from permix.storage.files import read_json
from permix.tasks import load_questions
from permix.training import dev_eval
from permix.training.compatibility import refuse_unfit
from permix.training.reference_answers import bank_cells
from permix.training.sft_data import gold_examples, teacher_of, words
from permix.verification.math_verifier import Verifier


def check_config(path: Path) -> dict[str, str]:
    """Facts about a valid configuration; raises ConfigError or DataError for the first thing that is wrong."""
    stage = stage_of(path)
    facts: dict[str, str] = {"stage": stage.stage}
    match stage:
        case config.PlanStage() | config.TrainStage():
            facts |= _check_plan(stage)
        case config.StabilityStage():
            facts |= _check_stability(stage)
        case config.FidelityStage():
            facts |= _check_fidelity(stage)
        case config.JudgeStage():
            facts |= _check_judge(stage)
        case config.QuestionsStage():
            facts |= _check_questions(stage)
        case config.ReportStage() | config.CompareStage():
            for run in stage.runs:
                read_json(run / "config.json")
        case config.ViewStage():
            refuse_no_folder(stage)
        case config.ImportStage():
            facts |= describe_sources(stage) if stage.personagym is None else describe_answers(stage, stage.personagym)
        case config.ExportStage():
            read_json(stage.run / "config.json")
        case config.QuickstartStage():
            for parts in quickstart_stages(stage):
                for part in parts:
                    _check_part(part)
    return facts | {"result": "valid"}


def _check_part(part: config.Stage) -> None:
    """One stage of the quickstart; what it takes from an earlier one is not there yet."""
    if isinstance(part, config.TrainStage):
        _check_plan(part)
    elif isinstance(part, config.FidelityStage):
        choose_voices(part)
        open_questions(part)
    elif isinstance(part, config.StabilityStage):
        load_questions(part.task)
        choose_personas(part.personas)


def stage_of(path: Path) -> config.AnyStage:
    """The configuration in a file, of the class that its `stage` names."""
    values = config.read_values(path)
    name = values.get("stage")
    if name not in config.STAGES:
        raise ConfigError(f"{path}: stage = {name!r}: must be one of {', '.join(config.STAGES)}")
    return config.build(config.STAGES[name], values, source=str(path))


def _check_plan(stage: config.PlanStage | config.TrainStage) -> dict[str, str]:
    template_text(stage.personas.template)
    if isinstance(stage, config.PlanStage):
        return describe(compile_from(stage.task, stage.personas, stage.plan))
    refuse_missing_folder(stage.model.name)
    plan = plan_for(stage)
    found = dev_eval.set_up(stage, plan)
    probed = {} if found is None else {"probe": dev_eval.describe(found)}
    return {"method": stage.method} | describe(plan) | _check_method(stage, plan) | probed


def _check_method(stage: config.TrainStage, plan: Plan) -> dict[str, str]:
    """What a method asks of a plan, besides the plan itself."""
    match stage.method:
        case "permix" | "rlvr":
            refuse_unfit(plan, stage.train)
            return _check_character(stage)
        case "sft" | "sft-personas":
            with Verifier() as verifier:
                return {"learnt from": words(gold_examples(plan, verifier).counts)}
        case "seqkd":
            with speaking_of("teacher"):
                _check_model(teacher_of(stage))
            return {"teacher": teacher_of(stage).name}


def _check_character(stage: config.TrainStage) -> dict[str, str]:
    """What keeping the character costs, in answers."""
    kept = stage.character
    if not kept.needs_answers:
        return {}
    asked = len(bank_cells(stage))
    replayed = f"; {kept.replay_answers} replayed in each step" if kept.replay else ""
    return {"character": f"{asked} answers of the base model first, at most {asked * kept.max_new_tokens} new tokens{replayed}"}


def _check_stability(stage: config.StabilityStage) -> dict[str, str]:
    template_text(stage.personas.template)
    strategy, (_, setup) = STRATEGIES[stage.strategy], set_up(stage)
    _check_model(stage.model)
    if limits := limits_of(stage):
        cells, most = len(first_cells(setup, limits)), most_cells(setup, limits)
        return {
            "questions": f"{len(setup.questions)} at most", "personas": f"{len(setup.pool)}, and none",
            "cells": f"{cells} first, at most {most}, at most {most * stage.sampling.max_new_tokens} new tokens",
        }  # fmt: skip
    cells, then = len(strategy.first(setup)), strategy.most(setup)
    more = f", then at most {then}" if then else ""
    facts = {
        "questions": str(len(setup.questions)),
        "personas": f"{len(setup.pool)}, and none",
        "cells": f"{cells}{more}, at most {(cells + then) * stage.sampling.max_new_tokens} new tokens",
    }
    return facts if stage.strategy == "none" else {"strategy": stage.strategy} | facts


def _check_fidelity(stage: config.FidelityStage) -> dict[str, str]:
    template_text(stage.personas.template)
    _check_model(stage.model)
    if stage.judge.name != "none":
        means_of(stage.judge, rubrics_of(stage))
        _check_judge_model(stage.judge)
    match stage.kind:
        case "personagym":
            return _check_gym(stage)
        case "interview":
            return _check_interview(stage)
        case "open":
            return _check_open(stage)


def _check_open(stage: config.FidelityStage) -> dict[str, str]:
    personas, questions = choose_voices(stage), open_questions(stage)
    if stage.reference is not None:
        refuse_unanswered(stage.reference, {(persona.id, question.id) for persona in personas.personas for question in questions})
    return {"personas": str(len(personas)), "questions": str(len(questions)), "answers": str(len(personas) * len(questions))}


def _check_gym(stage: config.FidelityStage) -> dict[str, str]:
    pool, questions = choose_gym(stage)
    without = len(spread(questions, stage.personagym.without_persona, stage.seed))
    answers = len(questions) + without
    return {
        "personas": str(len(pool)),
        "questions": f"{len(questions)}, each of one persona; {without} also without",
        "answers": f"{answers}, at most {answers * stage.sampling.max_new_tokens} new tokens",
    }


def _check_judge(stage: config.JudgeStage) -> dict[str, str]:
    means, prompts = set_up_judge(stage)
    _check_judge_model(stage.judge)
    tried = sum(prompt.item.control != "none" for prompt in prompts)
    most = dearest(prompts, terms_of(stage, means.price))
    return {
        "answers": str(len(prompts) - tried), "answers to try the judge": str(tried),
        "calls": f"{len(prompts)}, at most {len(prompts) * stage.judge.max_new_tokens} new tokens",
        "cost": "unknown: no price" if most is None else f"at most {most:.4f} US dollars where each is answered at once",
    }  # fmt: skip


def _check_judge_model(judge: config.JudgeConfig) -> None:
    with speaking_of("judge"):
        _check_model(judge)


def _check_questions(stage: config.QuestionsStage) -> dict[str, str]:
    """What is to be written, in as many calls when no reply is refused."""
    work = generator.set_up(stage)
    _check_model(stage.model)
    personas, written = len(work.personas), len(work.personas) * len(work.tasks) * work.n
    calls = 0 if work.given else personas * (1 + len(work.tasks))
    questions = f"{len(work.given)}, given" if work.given else f"{written}, {work.n} of each persona × {len(work.tasks)} tasks"
    examples = (len(work.given) or written) * work.examples
    most = (calls + examples) * stage.sampling.max_new_tokens
    return {
        "personas": str(personas),
        "questions": questions,
        "examples": f"{examples} × 5 answers",
        "calls": f"{calls + examples} or more, at most {most} new tokens in as many",
    }


def _check_interview(stage: config.FidelityStage) -> dict[str, str]:
    pool, turns = interview.set_up(stage).pool, stage.interview.turns
    if stage.interviewer.is_model:
        _check_model(stage.interviewer)
    return {
        "personas": str(len(pool)),
        "turns": f"{turns}, asked by {stage.interviewer.name if stage.interviewer.is_model else 'a script'}",
        "answers": f"{len(pool) * turns}, at most {len(pool) * turns * stage.sampling.max_new_tokens} new tokens",
    }


def _check_model(model: config.ModelConfig) -> None:
    """An endpoint's address and key, without asking it anything; a model folder that is named as one."""
    if model.backend == "transformers":
        refuse_missing_folder(model.name)
    if model.backend == "openai":
        open_model(model)
