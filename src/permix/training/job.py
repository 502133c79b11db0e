"""Prepares a training: loads the personas, questions and plan that the configuration names, once, and checks them.

`TrainJob` loads nothing of the model and writes nothing, so `permix check` prepares a training in the same way as `permix train`.

`generate_reference_answers` lets the base model answer open-ended questions of the train split as each persona. Character replay
keeps the trained model close to these answers, and the classifier of the expressivity bonus learns from them. They are the
records of a grid in `reference_answers/` of the run directory, so an interrupted start continues, and nothing is generated twice.
"""

from collections.abc import Sequence
from typing import NamedTuple

from permix.config import SUPERVISED_METHODS, CharacterConfig, ModelConfig, PersonasConfig, TrainConfig
from permix.errors import ConfigError, IncompleteRunError
from permix.evals.grid import PromptFormat, build_grid, run_cells
from permix.inference import load_model
from permix.inference.hardware import release_memory
from permix.personas.loading import load_roleplay
from permix.personas.pool import PersonaPool, PersonaSource
from permix.plan import Plan, PlanBuilder, compile_plan, load_training_plan, plan_builder_from_config
from permix.prompts import template_hash
from permix.storage.failures import explain_missing, find_failures
from permix.storage.run_dir import RunDir
from permix.tasks import find_task
from permix.tasks.base import answer_token_limit
from permix.trackers import TrackerLog
from permix.training.dev_eval import DevEval, build_dev_eval
from permix.types import Cell, Question, Sampling


class TrainJob(NamedTuple):
    """Everything that a training needs except the model. `config` states the limit of new tokens, also if it was not given."""

    config: TrainConfig
    plan: Plan
    """The rows to train on, in order. Under a curriculum only the first block is trained as it is here; later blocks keep their
    questions and get other personas, and plan.parquet of the run directory holds the rows that are trained."""
    curriculum_builder: PlanBuilder | None
    """Builds the rows of later blocks under a curriculum; None without one."""
    reference_cells: Sequence[Cell]
    """The cells of the reference answers; empty without character replay and expressivity bonus."""
    dev_eval: DevEval | None
    trackers: TrackerLog = TrackerLog()
    """Where the metrics of the steps go besides log.jsonl; the main process of a training opens it."""

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
    personas = PersonaSource(config.personas.pool, config.personas.column)
    builder = None
    if config.plan_file is None:
        builder, sources = plan_builder_from_config(config.task, config.personas, config.plan, personas)
        plan = compile_plan(builder, sources)
    else:
        plan = load_training_plan(config.plan_file, config.method, config.task.name)
    config = _fill_token_limit(config, plan)
    curriculum_builder = builder if config.plan.curriculum_strength > 0 else None
    dev_eval = build_dev_eval(config, plan, personas, _trainable_personas(plan, curriculum_builder))
    return TrainJob(config, plan, curriculum_builder, _reference_cells(config, personas), dev_eval)


def _fill_token_limit(config: TrainConfig, plan: Plan) -> TrainConfig:
    """Fill in `train.max_new_tokens`, if it is not given: the largest limit of the plan's tasks."""
    if "max_new_tokens" in config.train.model_fields_set:
        return config
    names = dict.fromkeys(row.task for row in plan.rows)
    limit = max(answer_token_limit(find_task(name), config.model.thinking) for name in names)
    return config.model_copy(update={"train": config.train.model_copy(update={"max_new_tokens": limit})})


def _trainable_personas(plan: Plan, curriculum_builder: PlanBuilder | None) -> frozenset[str]:
    drawable = curriculum_builder.persona_sampler.personas if curriculum_builder is not None else ()
    return frozenset(row.persona_id for row in plan.rows if row.persona_id) | {persona.id for persona in drawable}


def _reference_cells(config: TrainConfig, personas: PersonaSource) -> Sequence[Cell]:
    if config.method in SUPERVISED_METHODS or not config.character.needs_base_answers:
        return ()
    return reference_answer_cells(personas.select(config.personas), config.personas, config.character, config.train.seed)


def generate_reference_answers(config: TrainConfig, cells: Sequence[Cell]) -> list[Cell]:
    """Answer the pending ones of `cells` with the model that training starts from.

    Returns the answered cells in the order of `cells`. Raises IncompleteRunError if answers are missing.
    """
    sampling = Sampling(temperature=config.character.temperature, max_new_tokens=config.character.max_new_tokens)
    model = load_model(ModelConfig(name=config.model.name, thinking=config.model.thinking), config.threads)
    identity = {
        "model": model.fingerprint,
        "template": template_hash(config.personas.template),
        "sampling": sampling.model_dump(),
        "seed": config.train.seed,
    }
    with RunDir.open(config.out / "reference_answers", config, identity, cells) as run:
        with run.track_usage():
            pending = run_cells(model, cells, sampling, run, None, "in-character answers of the base model")
        if pending:
            why = explain_missing(find_failures(run.cells(), scored=False))
            raise IncompleteRunError(f"{run.path}: {pending} of {len(cells)} answers are missing{why}", pending)
        answered = run.cells()
    del model  # training loads the weights again, and two copies may not fit
    release_memory()
    return [answered[cell.key] for cell in cells]


def reference_answer_cells(pool: PersonaPool, personas: PersonasConfig, character: CharacterConfig, seed: int) -> list[Cell]:
    """The cells that the base model answers: personas × open-ended questions. `pool` has the personas that training may draw.

    Raises ConfigError if there are too few personas or questions.
    """
    questions = reference_answer_questions(character)
    prompt_format = PromptFormat(lambda question: question.text, personas.template, personas.empty_system_prompt)
    chosen = reference_answer_personas(pool, character, seed)
    return build_grid(chosen.personas, questions, prompt_format, samples=1, seed=seed)


def describe_reference_answers(cells: Sequence[Cell], character: CharacterConfig) -> dict[str, str]:
    """The cost of the reference answers, in answers and tokens; empty without any."""
    if not cells:
        return {}
    replayed = f"; {character.replay_answers} replayed in each step" if character.replay else ""
    most = len(cells) * character.max_new_tokens
    return {"character": f"{len(cells)} answers of the base model first, at most {most} new tokens{replayed}"}


def reference_answer_questions(config: CharacterConfig) -> Sequence[Question]:
    """The first `character.questions` of the built-in questions of the train split. Raises ConfigError if there are fewer."""
    questions = load_roleplay("builtin", "train")
    if config.questions > len(questions):
        raise ConfigError(f"character.questions = {config.questions}: the train split has {len(questions)} open-ended questions")
    return questions[: config.questions]


def reference_answer_personas(pool: PersonaPool, character: CharacterConfig, seed: int) -> PersonaPool:
    """The personas of the reference answers: all of the pool for the expressivity bonus, whose classifier must know each."""
    if character.expressivity > 0:
        if len(pool) < 2:
            raise ConfigError(
                f"character.expressivity = {character.expressivity}: the bonus compares personas and the pool has one; "
                "widen the pool or give 0"
            )
        return pool
    return pool.select(n=min(character.personas, len(pool)), seed=seed)
