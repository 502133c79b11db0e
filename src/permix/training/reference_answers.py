"""Generates the reference answers: the base model answers open-ended questions of the train split as each persona.

Character replay keeps the trained model close to these answers, and the classifier of the expressivity bonus learns from them.
They are the records of a grid in `reference_answers/` of the run directory, so an interrupted start continues, and nothing is
generated twice.
"""

from collections.abc import Sequence

from permix.config import CharacterConfig, ModelConfig, PersonasConfig, TrainConfig
from permix.errors import ConfigError, IncompleteRunError
from permix.evals.grid import PromptFormat, build_grid, run_cells
from permix.inference import load_model
from permix.inference.hardware import release_memory
from permix.personas.loading import load_roleplay
from permix.personas.pool import PersonaPool
from permix.prompts import template_hash
from permix.storage.run_dir import RunDir
from permix.types import Cell, Question, Sampling


def generate_reference_answers(config: TrainConfig, cells: Sequence[Cell]) -> list[Cell]:
    """Answer the pending ones of `cells` with the model that training starts from.

    Returns the answered cells in the order of `cells`. Raises IncompleteRunError if answers are missing.
    """
    sampling = Sampling(temperature=config.character.temperature, max_new_tokens=config.character.max_new_tokens)
    model = load_model(ModelConfig(name=config.model.name), config.threads)
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
            raise IncompleteRunError(f"{run.path}: {pending} of {len(cells)} answers are missing; run the same command again")
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
