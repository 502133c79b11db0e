"""What the base model says in character, before any training: personas × open-ended questions of the training side.

Character replay holds a model to these answers and the expressivity reward learns from them who sounds how. They lie in
`reference_answers/` of the run directory as the records of a grid, so an interrupted start goes on where it was and nothing
is generated twice.
"""

from collections.abc import Sequence

from permix.config import CharacterConfig, ModelConfig, TrainConfig
from permix.errors import ConfigError, IncompleteRunError
from permix.evals.grid import PromptFormat, build_grid, run_cells
from permix.inference import load_model
from permix.inference.hardware import release_memory
from permix.personas.loading import load_roleplay
from permix.personas.pool import PersonaPool, select_personas
from permix.prompts import template_hash
from permix.storage.run_dir import RunDir
from permix.types import Cell, Question, Sampling


def generate_reference_answers(config: TrainConfig) -> list[Cell]:
    """Every answer, in order of personas and questions. Raises OwedCellsError when some could not be had."""
    asked = reference_answer_cells(config)
    sampling = Sampling(temperature=config.character.temperature, max_new_tokens=config.character.max_new_tokens)
    model = load_model(ModelConfig(name=config.model.name), config.threads)
    identity = {
        "model": model.fingerprint,
        "template": template_hash(config.personas.template),
        "sampling": sampling.model_dump(),
        "seed": config.train.seed,
    }
    with RunDir.open(config.out / "reference_answers", config, identity, asked) as run:
        with run.track_usage():
            owed = run_cells(model, asked, sampling, run, None, "in-character answers of the base model")
        if owed:
            raise IncompleteRunError(f"{run.path}: {owed} of {len(asked)} answers are missing; run the same command again")
        known = run.cells()
    del model
    release_memory()
    return [known[cell.key] for cell in asked]


def reference_answer_cells(config: TrainConfig) -> list[Cell]:
    """The cells that the bank asks for. Raises ConfigError when there are too few personas or questions."""
    questions = reference_answer_questions(config.character)
    pool = reference_answer_personas(config)
    wording = PromptFormat(lambda question: question.text, config.personas.template, config.personas.empty_system_prompt)
    return build_grid(pool.personas, questions, wording, samples=1, seed=config.train.seed)


def reference_answer_questions(config: CharacterConfig) -> Sequence[Question]:
    """The first of the built-in questions that stand on the training side."""
    questions = load_roleplay("builtin", "train")
    if config.questions > len(questions):
        raise ConfigError(
            f"character.questions = {config.questions}: the training side has {len(questions)} open-ended questions"
        )
    return questions[: config.questions]


def reference_answer_personas(config: TrainConfig) -> PersonaPool:
    """The personas that answer. The expressivity reward needs to know every voice that the plan may draw."""
    pool = select_personas(config.personas)
    if config.character.expressivity > 0:
        if len(pool) < 2:
            raise ConfigError("character.expressivity: one persona cannot be told from others; widen the pool or set it to 0")
        return pool
    return pool.select(n=min(config.character.personas, len(pool)), seed=config.train.seed)
