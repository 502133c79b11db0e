"""`permix train`: a plan and a model in, a trained model folder and its log out.

    plan.parquet       what was trained on
    plan_blocks.jsonl  how personas were weighted, where they adapt
    log.jsonl          one line a step
    rollouts.jsonl     one line a rollout: everything the run generated
    samples.md         some of them, for reading
    reference_answers/ what the base model says in character, where something holds the model to it
    dev_eval/          the records of its probes, of a run that has some (`permix.training.dev_eval`); dev_eval.jsonl: a line
    a probe checkpoints/       the newest one, until the run has ended
    model/             the result: a plain Hugging Face folder with its card

(The supervised methods have no rollouts.jsonl; `permix.pipelines.train` says what they leave.)
Started again, the run goes on after its newest whole checkpoint; what was logged after that is dropped and done again. Several
processes train as one (`permix.training.distributed`): the main one holds the run directory and writes, the others compute.

Reinforcement learning with the verifier's reward, plain or persona-mixed: what `permix train` sets up around `PlanGRPOTrainer`.

The supervised methods of `permix train`: choose what to learn from, keep it, learn it.

`sft` and `sft-personas` learn the gold solutions of the plan's rows, `seqkd` a teacher's right samples of them. What a run leaves
besides the files of every training:

    examples.jsonl, examples.json    what is learnt from, and how it was counted
    samples.md                       some of it, for reading
    records.jsonl, teacher.json      seqkd: every sample of the teacher, judged; who the teacher was
"""

import contextlib
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from permix.config import RUNTIME_ONLY_FIELDS, SUPERVISED_METHODS, TrainConfig
from permix.errors import ConfigError
from permix.inference.hardware import release_memory, set_threads
from permix.inference.hf import (
    context_window,
    encode_chat,
    encode_completion,
    folder_fingerprint,
    load_tokenizer,
    resolve_model_source,
)
from permix.personas.pool import select_personas
from permix.plan import Plan, load_or_build_plan, plan_builder_from_config, write_plan
from permix.progress import print_status, progress_bar
from permix.storage.run_dir import RunDir, cpu_seconds
from permix.tasks.contamination import TrainedOn, read_trained_on, write_trained_on
from permix.training import distributed
from permix.training.checkpoints import (
    autocast_context,
    build_lora_config,
    check_world_size,
    checkpoint_step,
    load_trainable_model,
    newest_checkpoint,
    seed_trainer,
)
from permix.training.compatibility import check_context_window, check_launch, check_plan, detect_launch, longest_prompt_tokens
from permix.training.curriculum import Curriculum, logged_outcomes
from permix.training.dev_eval import DevEval, build_dev_eval, delete_dev_eval_weights
from permix.training.reference_answers import generate_reference_answers
from permix.training.rewards import ExpressivityReward
from permix.training.run_log import MetricsLogger, NullLogger, RolloutLogger, read_training_log
from permix.training.sft_data import (
    SFTDataset,
    SFTExample,
    check_teacher,
    examples_by_step,
    format_sft_counts,
    gold_examples,
    load_sft_dataset,
    save_sft_dataset,
    teacher_examples,
    teacher_identity,
)
from permix.types import Cell
from permix.verification.math_verifier import Verifier

if TYPE_CHECKING:
    from permix.training.grpo_trainer import RolloutRecorder
    from permix.training.replay import CharacterReplay


def train_rl(config: TrainConfig, plan: Plan, dev_eval: DevEval | None, source: str, out: Path, checkpoint: Path | None) -> Any:
    """Run or go on with the training; returns the trainer, which holds the trained network."""
    from permix.training.callbacks import DevEvalCallback
    from permix.training.grpo_trainer import PlanGRPOTrainer
    from permix.training.trainer_args import grpo_arguments

    if checkpoint:
        check_world_size(checkpoint, distributed.world_size())
    tokenizer = load_tokenizer(source)
    cells = distributed.broadcast(
        generate_reference_answers(config) if config.character.needs_base_answers and distributed.is_main() else []
    )
    # Before the weights: the arguments say whether those are shared out over processes, and so how they are loaded.
    onpolicy = config.character.replay > 0 and config.character.replay_policy == "on"
    arguments = grpo_arguments(config.train, plan, out / "checkpoints", with_reference=onpolicy)
    network = load_trainable_model(source)
    replay = _build_replay(config, cells, tokenizer, network)
    expressivity = ExpressivityReward(cells, config.character.expressivity) if config.character.expressivity > 0 else None
    with Verifier() as verifier, _rollout_logger(config, out, checkpoint_step(checkpoint), arguments.max_steps) as recorder:
        seed_trainer(config.train.seed)
        trainer = PlanGRPOTrainer(
            plan=plan, verifier=verifier, recorder=recorder, config=config.train, args=arguments, model=network,
            processing_class=tokenizer, peft_config=build_lora_config(config.train), replay=replay, expressivity=expressivity,
            curriculum=_build_curriculum(config, out),
        )  # fmt: skip
        if dev_eval is not None:
            trainer.add_callback(DevEvalCallback(dev_eval, checkpoint_step(checkpoint), trainer.dev_eval_hooks()))
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    return trainer


@contextlib.contextmanager
def _rollout_logger(config: TrainConfig, out: Path, done_steps: int, total_steps: int) -> "Iterator[RolloutRecorder]":
    """The run's log, kept by the main process."""
    if not distributed.is_main():
        yield NullLogger()
        return
    with progress_bar(f"train {config.label or out.name}", total_steps, "steps") as shown:
        shown.start_at(done_steps)
        yield RolloutLogger(out, done_steps, config.train.samples_every * config.train.updates_per_rollout, shown)


def _build_replay(config: TrainConfig, cells: Sequence[Cell], tokenizer: Any, network: Any) -> "CharacterReplay | None":
    """Character replay as configured. Off-policy it learns here what the base model would have said: `network` still is that."""
    from permix.inference.shared_prefix import eval_mode
    from permix.training.replay import CharacterReplay, TeacherTopK, samples_from_cells

    character = config.character
    if character.replay == 0:
        return None
    replay = CharacterReplay(samples_from_cells(cells, tokenizer), character.replay_answers, character.replay, config.train.seed)
    if character.replay_policy == "off":
        if distributed.is_main():  # where weights are shared out, the others hold none of them yet
            with eval_mode(network), autocast_context(config.train):
                replay.cache_base_topk(network, tokenizer.pad_token_id, config.train.microbatch_tokens)
        replay.teacher_topk = distributed.broadcast([TeacherTopK(*(one.cpu() for one in own)) for own in replay.teacher_topk])
    return replay


def _build_curriculum(config: TrainConfig, out: Path) -> Curriculum | None:
    """Adaptive personas as configured, knowing what has been recorded."""
    if config.plan.curriculum_strength == 0 or config.plan_file is not None:
        return None
    recipe, _ = plan_builder_from_config(config.task, config.personas, config.plan)
    curriculum = Curriculum(recipe)
    curriculum.update(
        logged_outcomes(distributed.broadcast(read_training_log(out / "rollouts.jsonl")), config.train.updates_per_rollout)
    )
    return curriculum


def train_supervised(
    config: TrainConfig, plan: Plan, dev_eval: DevEval | None, source: str, run: RunDir, checkpoint: Path | None
) -> Any:
    """Run or go on with a supervised training; returns the trainer, which holds the trained network."""
    tokenizer = load_tokenizer(source)
    chosen = load_sft_dataset(run.path) or _build_sft_dataset(config, plan, run, tokenizer, context_window(source))
    release_memory()  # a teacher in this process is not needed any more
    return _run_sft_trainer(config, chosen, dev_eval, tokenizer, source, run.path, checkpoint)


def _build_sft_dataset(config: TrainConfig, plan: Plan, run: RunDir, tokenizer: Any, window: int) -> SFTDataset:
    """What will be learnt from, as it was written down."""
    with Verifier() as verifier:
        if config.method == "seqkd":
            chosen = drop_overlong_examples(teacher_examples(config, plan, run, verifier), tokenizer, window)
        else:
            chosen = gold_examples(plan, verifier)
            check_solution_lengths(chosen.examples, tokenizer, config.train.max_new_tokens)
    print_status(f"train {config.label or config.out.name}: {format_sft_counts(chosen.counts)}")
    return save_sft_dataset(run.path, chosen, config.train.samples_every)


def check_solution_lengths(examples: Sequence[SFTExample], tokenizer: Any, limit: int) -> None:
    """Raise ConfigError when a solution is longer than a completion may be, naming the longest."""
    size, longest = max(((_completion_length(one, tokenizer), one) for one in examples), key=lambda pair: pair[0])
    if size > limit:
        raise ConfigError(
            f"train.max_new_tokens = {limit}: the solution of question {longest.question_id} has {size} tokens with its end, the "
            f"most of all; give train.max_new_tokens = {size} or more, or other questions"
        )


def drop_overlong_examples(dataset: SFTDataset, tokenizer: Any, window: int) -> SFTDataset:
    """What the model can read: a teacher counts in tokens of its own, and a sample may be more of this model's."""
    fitting = tuple(
        one
        for one in dataset.examples
        if len(encode_chat(tokenizer, one.messages)) + _completion_length(one, tokenizer) <= window
    )
    if not fitting:
        raise ConfigError(
            f"train.max_new_tokens: no right sample of the teacher fits into the {window} tokens that the model reads; "
            "give a smaller limit and another folder"
        )
    dropped = {"right samples left out, as the model cannot read so much": len(dataset.examples) - len(fitting)}
    return SFTDataset(
        fitting, dataset.counts | {"examples": len(fitting)} | (dropped if len(fitting) < len(dataset.examples) else {})
    )


def _completion_length(example: SFTExample, tokenizer: Any) -> int:
    """Tokens of a completion, with its end where it has one."""
    return len(encode_completion(example.completion, tokenizer)) + example.ended


def _run_sft_trainer(
    config: TrainConfig,
    dataset: SFTDataset,
    dev_eval: DevEval | None,
    tokenizer: Any,
    source: str,
    out: Path,
    checkpoint: Path | None,
) -> Any:
    from permix.training.callbacks import DevEvalCallback
    from permix.training.sft_trainer import PlanSFTTrainer, sft_arguments

    done, steps = checkpoint_step(checkpoint), examples_by_step(dataset.examples)
    arguments = sft_arguments(config.train, len(steps), out / "checkpoints")
    with progress_bar(f"train {config.label or config.out.name}", arguments.max_steps, "steps") as shown:
        shown.start_at(done)
        network = load_trainable_model(source)
        seed_trainer(config.train.seed)
        trainer = PlanSFTTrainer(
            steps=steps,
            microbatch_tokens=config.train.microbatch_tokens,
            recorder=MetricsLogger(out, done, shown),
            args=arguments,
            model=network,
            processing_class=tokenizer,
            peft_config=build_lora_config(config.train),
        )
        if dev_eval is not None:
            trainer.add_callback(DevEvalCallback(dev_eval, done, trainer.dev_eval_hooks()))
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    return trainer


def run_training(config: TrainConfig) -> Path:
    """Run or go on with the training, together with the processes started beside this one; returns the trained model's folder."""
    with distributed.process_group():
        set_threads(config.threads)
        plan = load_or_build_plan(config)
        check_plan(plan, config.train)
        check_launch(plan, config, detect_launch())
        probe = build_dev_eval(config, plan)
        with distributed.main_process_first():
            source = resolve_model_source(config.model.name)
        if config.method == "seqkd":
            check_teacher(config)
        target = config.out / "model"
        with _open_run_dir(config, plan, source) as run:
            if not distributed.broadcast((target / "config.json").exists()):
                with _track_usage(run):
                    _train_and_save(config, plan, probe, source, run, target)
            if run is not None:
                delete_dev_eval_weights(config.out)
                if not config.train.keep_checkpoints:
                    shutil.rmtree(config.out / "checkpoints", ignore_errors=True)
        return target


@contextlib.contextmanager
def _open_run_dir(config: TrainConfig, plan: Plan, source: str) -> Iterator[RunDir | None]:
    """The run directory, for the main process; the others wait until it has it, and get None."""
    if not distributed.is_main():
        distributed.barrier()
        yield None
        return
    with RunDir.open(config.out, config, _run_identity(config, plan, source)) as run:
        distributed.barrier()
        yield run


@contextlib.contextmanager
def _track_usage(run: RunDir | None) -> Iterator[None]:
    """The CPU seconds of all processes go into the main one's usage.json; after an error, only its own."""
    if run is not None:
        with run.track_usage(distributed.all_reduce_sum):
            yield
        return
    before = cpu_seconds()
    yield
    distributed.all_reduce_sum(cpu_seconds() - before)


def _run_identity(config: TrainConfig, plan: Plan, source: str) -> dict[str, Any]:
    """What a run must have in common with its continuation. Where it generates and how wide is not in it."""
    return {
        "method": config.method,
        "plan": plan.hash,
        "model": _model_fingerprint(source),
        "train": config.train.model_dump(mode="json", exclude=set(RUNTIME_ONLY_FIELDS)),
        "character": config.character.model_dump(mode="json"),
        **({"teacher": teacher_identity(config)} if config.method == "seqkd" else {}),
        **({"dev_eval": config.dev_eval.model_dump(mode="json")} if config.dev_eval.every else {}),
    }


def _model_fingerprint(source: str) -> str:
    return folder_fingerprint(Path(source)) if Path(source).is_dir() else source


def _train_and_save(
    config: TrainConfig, plan: Plan, dev_eval: DevEval | None, source: str, run: RunDir | None, target: Path
) -> None:
    """Train by the method and write the model."""
    from permix.training import callbacks
    from permix.training.checkpoints import write_model

    tokenizer = load_tokenizer(source)
    check_context_window(longest_prompt_tokens(plan, tokenizer, config.train.max_prompt_tokens), config.train, source)
    if dev_eval is not None:
        callbacks.check_dev_eval_prompts(dev_eval, tokenizer, context_window(source))
    checkpoint = distributed.broadcast(newest_checkpoint(config.out / "checkpoints"))
    seen = build_trained_on(plan, source) | _drawable_personas(config)
    if run is not None:
        write_plan(plan, config.out / "plan.parquet")
        write_trained_on(config.out / "checkpoints", seen)
    if config.method in SUPERVISED_METHODS:
        assert run is not None
        trainer = train_supervised(config, plan, dev_eval, source, run, checkpoint)
    else:
        trainer = train_rl(config, plan, dev_eval, source, config.out, checkpoint)
    chosen = callbacks.selected_weights_path(config.out, config.dev_eval) if dev_eval is not None and run is not None else None
    write_model(trainer, tokenizer, plan, seen, config, config.out, target, chosen)


def build_trained_on(plan: Plan, source: str) -> TrainedOn:
    """What the trained model has seen: this plan's questions and personas, and all that the model it starts from had seen."""
    personas = frozenset(row.persona_id for row in plan.rows if row.persona_id)
    return TrainedOn(frozenset(row.question_hash for row in plan.rows), personas) | read_trained_on(Path(source))


def _drawable_personas(config: TrainConfig) -> TrainedOn:
    """Personas that a plan which adapts may still draw: all of the pool."""
    adapts = config.plan.curriculum_strength > 0 and config.plan_file is None
    return TrainedOn(frozenset(), frozenset(persona.id for persona in select_personas(config.personas).personas if adapts))
