"""Prepares a training: loads the personas, questions and plan that the configuration names, once, and checks them.

It loads nothing of the model and writes nothing, so `permix check` prepares a training in the same way as `permix train`.
"""

from collections.abc import Sequence
from typing import NamedTuple

from permix.config import SUPERVISED_METHODS, TrainConfig
from permix.personas.pool import PersonaSource
from permix.plan import Plan, PlanBuilder, compile_plan, load_training_plan, plan_builder_from_config
from permix.training.dev_eval import DevEval, build_dev_eval
from permix.training.reference_answers import reference_answer_cells
from permix.types import Cell


class TrainJob(NamedTuple):
    """Everything that a training needs except the model."""

    config: TrainConfig
    plan: Plan
    """The rows to train on, in order."""
    curriculum_builder: PlanBuilder | None
    """Builds the rows of later blocks under a curriculum; None without one."""
    reference_cells: Sequence[Cell]
    """The cells of the reference answers; empty without character replay and expressivity bonus."""
    dev_eval: DevEval | None

    @property
    def label(self) -> str:
        """The label of the configuration, else the name of the run directory."""
        return self.config.label or self.config.out.name

    @property
    def trainable_personas(self) -> frozenset[str]:
        """Ids of the personas that the plan holds, or that a curriculum may still draw."""
        return _trainable_personas(self.plan, self.curriculum_builder)


def prepare_training(config: TrainConfig) -> TrainJob:
    """Load personas, questions and plan, and build the cells of dev evaluations and reference answers.

    Raises ConfigError or DataError if one of them cannot be used.
    """
    personas = PersonaSource(config.personas.pool)
    builder = None
    if config.plan_file is None:
        builder, sources = plan_builder_from_config(config.task, config.personas, config.plan, personas)
        plan = compile_plan(builder, sources)
    else:
        plan = load_training_plan(config.plan_file, config.method)
    curriculum_builder = builder if config.plan.curriculum_strength > 0 else None
    dev_eval = build_dev_eval(config, plan, personas, _trainable_personas(plan, curriculum_builder))
    return TrainJob(config, plan, curriculum_builder, _reference_cells(config, personas), dev_eval)


def _trainable_personas(plan: Plan, curriculum_builder: PlanBuilder | None) -> frozenset[str]:
    drawable = curriculum_builder.persona_sampler.personas if curriculum_builder is not None else ()
    return frozenset(row.persona_id for row in plan.rows if row.persona_id) | {persona.id for persona in drawable}


def _reference_cells(config: TrainConfig, personas: PersonaSource) -> Sequence[Cell]:
    if config.method in SUPERVISED_METHODS or not config.character.needs_base_answers:
        return ()
    return reference_answer_cells(personas.select(config.personas), config.personas, config.character, config.train.seed)
