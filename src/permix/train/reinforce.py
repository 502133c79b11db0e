"""Reinforcement learning with the verifier's reward, plain or persona-mixed: what `permix train` sets up around `PlanTrainer`."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from permix.config import TrainStage
from permix.models.hf import load_tokenizer
from permix.progress import meter
from permix.train import processes
from permix.train.adaptive import Curriculum, recorded
from permix.train.bank import fill_bank
from permix.train.buffer import refuse_other_count
from permix.train.checkpoints import step_of
from permix.train.expressivity import Expressivity
from permix.train.log import NoLog, StepLog, read_log
from permix.train.plan import Plan, recipe_from
from permix.train.probe import Probe
from permix.train.weights import autocast, lora, network_of, seed_trainer
from permix.types import Cell
from permix.verify import Verifier

if TYPE_CHECKING:
    from permix.train.grpo import Recorder
    from permix.train.replay import Replay


def reinforce(config: TrainStage, plan: Plan, probe: Probe | None, source: str, out: Path, checkpoint: Path | None) -> Any:
    """Run or go on with the training; returns the trainer, which holds the trained network."""
    from permix.train.arguments import grpo_arguments
    from permix.train.grpo import PlanTrainer
    from permix.train.prober import Prober

    if checkpoint:
        refuse_other_count(checkpoint, processes.count())
    tokenizer = load_tokenizer(source)
    cells = processes.agreed(fill_bank(config) if config.character.needs_answers and processes.is_main() else [])
    # Before the weights: the arguments say whether those are shared out over processes, and so how they are loaded.
    arguments = grpo_arguments(config, plan, out / "checkpoints")
    network = network_of(source)
    replay = _replay(config, cells, tokenizer, network)
    expressivity = Expressivity(cells, config.character.expressivity) if config.character.expressivity > 0 else None
    with Verifier() as verifier, _recorder(config, out, step_of(checkpoint), arguments.max_steps) as recorder:
        seed_trainer(config.train.seed)
        trainer = PlanTrainer(
            plan=plan, verifier=verifier, recorder=recorder, config=config.train, args=arguments, model=network,
            processing_class=tokenizer, peft_config=lora(config.train), replay=replay, expressivity=expressivity,
            curriculum=_curriculum(config, out),
        )  # fmt: skip
        if probe is not None:
            trainer.add_callback(Prober(probe, step_of(checkpoint), trainer.probed()))
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    return trainer


@contextlib.contextmanager
def _recorder(config: TrainStage, out: Path, done: int, steps: int) -> "Iterator[Recorder]":
    """The run's log, kept by the main process."""
    if not processes.is_main():
        yield NoLog()
        return
    with meter(f"train {config.label or out.name}", steps, "steps") as shown:
        shown.start_at(done)
        yield StepLog(out, done, config.train.samples_every * config.train.iterations, shown)


def _replay(config: TrainStage, cells: Sequence[Cell], tokenizer: Any, network: Any) -> "Replay | None":
    """Character replay as configured. Off-policy it learns here what the base model would have said: `network` still is that."""
    from permix.models.shared import evaluating
    from permix.train.replay import Replay, Teacher, samples_of

    character = config.character
    if character.replay == 0:
        return None
    replay = Replay(samples_of(cells, tokenizer), character.replay_answers, character.replay, config.train.seed)
    if character.replay_policy == "off":
        if processes.is_main():  # where weights are shared out, the others hold none of them yet
            with evaluating(network), autocast(config.train):
                replay.learn_base(network, tokenizer.pad_token_id, config.train.micro_tokens)
        replay.teachers = processes.agreed([Teacher(*(one.cpu() for one in own)) for own in replay.teachers])
    return replay


def _curriculum(config: TrainStage, out: Path) -> Curriculum | None:
    """Adaptive personas as configured, knowing what has been recorded."""
    if config.plan.adaptive == 0 or config.plan_file is not None:
        return None
    recipe, _ = recipe_from(config.task, config.personas, config.plan)
    curriculum = Curriculum(recipe)
    curriculum.note(recorded(processes.agreed(read_log(out / "rollouts.jsonl")), config.train.iterations))
    return curriculum
