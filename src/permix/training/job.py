"""A training, prepared: what its configuration names is loaded here once, checked, and handed down in parts.

Nothing of the model is loaded here, and nothing is written, so `permix check` prepares a training just as `permix train` does.
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
    """All that a training needs besides the model."""

    config: TrainConfig
    plan: Plan
    """The rows to train on, in order."""
    curriculum_builder: PlanBuilder | None
    """Builds the rows of later blocks anew, under a curriculum; None when the plan stays as it is."""
    reference_cells: Sequence[Cell]
    """What the base model is to answer in character before training; empty when nothing holds the trained model to it."""
    dev_eval: DevEval | None

    @property
    def label(self) -> str:
        """What people call the trained model."""
        return self.config.label or self.config.out.name

    @property
    def trainable_personas(self) -> frozenset[str]:
        """Ids of the personas that the plan holds, or that a curriculum may still draw."""
        return _trainable_personas(self.plan, self.curriculum_builder)


def prepare_training(config: TrainConfig) -> TrainJob:
    """Load the personas, the questions of each split and the plan once, and build what is asked beside the plan's rows.

    Raises ConfigError or DataError for whatever of it cannot be used.
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
