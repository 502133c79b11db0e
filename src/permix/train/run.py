"""`permix train`: a plan and a model in, a trained model folder and its log out.

    plan.parquet       what was trained on
    log.jsonl          one line a step
    rollouts.jsonl     one line a rollout: everything the run generated
    samples.md         some of them, for reading
    checkpoints/       the newest one, until the run has ended
    model/             the result: a plain Hugging Face folder with its card

(The supervised methods have no rollouts.jsonl; `permix.train.supervised` says what they leave.)
Started again, the run goes on after its newest whole checkpoint; what was logged after that is dropped and done again.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from permix.config import SUPERVISED, TrainConfig, TrainStage
from permix.errors import ConfigError, PermixError
from permix.models.hf import encode_chat, folder_fingerprint, load_tokenizer, load_weights, resolve
from permix.models.machine import pick_device, pick_dtype, pin_threads
from permix.personas.choose import choose_personas
from permix.progress import meter
from permix.records import RunDir, read_json
from permix.tasks.overlap import Seen, read_seen, write_seen
from permix.train.adaptive import Curriculum, recorded
from permix.train.bank import fill_bank
from permix.train.card import write_card
from permix.train.distill import refuse_absent, teacher_identity
from permix.train.expressivity import Expressivity
from permix.train.log import StepLog, read_log
from permix.train.plan import Plan, plan_for, recipe_from, write_plan
from permix.types import Cell
from permix.verify import Verifier

if TYPE_CHECKING:
    from trl import GRPOConfig

    from permix.train.replay import Replay


def train(config: TrainStage) -> Path:
    """Run or go on with the training; returns the folder of the trained model."""
    plan = plan_for(config)
    pin_threads(config.threads)
    source = resolve(config.model.name)
    if config.method == "seqkd":
        refuse_absent(config)
    with RunDir.open(config.out, config, _identity(config, plan, source)) as run:
        target = run.path / "model"
        if not (target / "config.json").exists():
            write_plan(plan, run.path / "plan.parquet")
            with run.accounted():
                if config.method in SUPERVISED:
                    from permix.train.supervised import supervise

                    supervise(config, plan, source, run, target)
                else:
                    _optimise(config, plan, source, run.path, target)
        if not config.train.keep_checkpoints:
            shutil.rmtree(run.path / "checkpoints", ignore_errors=True)
        return target


def _identity(config: TrainStage, plan: Plan, source: str) -> dict[str, Any]:
    common = {"plan": plan.hash, "model": _fingerprint(source), "train": config.train.model_dump(mode="json")}
    common["character"] = config.character.model_dump(mode="json")
    teacher = {"teacher": teacher_identity(config)} if config.method == "seqkd" else {}
    return common | {"method": config.method} | teacher


def _fingerprint(source: str) -> str:
    return folder_fingerprint(Path(source)) if Path(source).is_dir() else source


def _optimise(config: TrainStage, plan: Plan, source: str, out: Path, target: Path) -> None:
    from permix.train.grpo import PlanTrainer

    cells = fill_bank(config) if config.character.needs_answers else []
    tokenizer = load_tokenizer(source)
    network = _network(source)
    _refuse_too_long(longest_prompt(plan, tokenizer, config.train.max_prompt_tokens), config.train, network)
    seen = seen_after(plan, source) | _may_be_drawn(config)
    write_seen(out / "checkpoints", seen)
    checkpoint = newest_checkpoint(out / "checkpoints")
    done = _step_of(checkpoint)
    arguments = grpo_arguments(config, plan, out / "checkpoints")
    replay = _replay(config, cells, tokenizer, network)
    expressivity = Expressivity(cells, config.character.expressivity) if config.character.expressivity > 0 else None
    with Verifier() as verifier, meter(f"train {config.label or out.name}", arguments.max_steps, "steps") as shown:
        shown.start_at(done)
        log = StepLog(out, done, config.train.samples_every, shown)
        curriculum = _curriculum(config, out)
        trainer = PlanTrainer(
            plan=plan, verifier=verifier, recorder=log, config=config.train, args=arguments, model=network,
            processing_class=tokenizer, peft_config=_lora(config.train), replay=replay, expressivity=expressivity,
            curriculum=curriculum,
        )  # fmt: skip
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    _write_model(trainer, tokenizer, plan, seen, config, out, target)


def _network(source: str) -> Any:
    import torch

    return load_weights(source, torch.float32, pick_device()).train()


def _replay(config: TrainStage, cells: Sequence[Cell], tokenizer: Any, network: Any) -> "Replay | None":
    """Character replay as configured. Off-policy it learns here what the base model would have said: `network` still is that."""
    from permix.models.shared import evaluating
    from permix.train.replay import Replay, samples_of

    character = config.character
    if character.replay == 0:
        return None
    replay = Replay(samples_of(cells, tokenizer), character.replay_answers, character.replay, config.train.seed)
    if character.replay_policy == "off":
        with evaluating(network), autocast(config.train):
            replay.learn_base(network, tokenizer.pad_token_id, config.train.micro_tokens)
    return replay


def _curriculum(config: TrainStage, out: Path) -> Curriculum | None:
    """Adaptive personas as configured, knowing what has been recorded."""
    if config.plan.adaptive == 0 or config.plan_file is not None:
        return None
    recipe, _ = recipe_from(config.task, config.personas, config.plan)
    curriculum = Curriculum(recipe)
    curriculum.note(recorded(read_log(out / "rollouts.jsonl"), config.train.iterations))
    return curriculum


def autocast(config: TrainConfig) -> Any:
    """The precision in which the trainer runs its forward passes."""
    import torch

    device = pick_device()
    dtype = pick_dtype(config.precision, device)
    return torch.autocast(device, dtype=dtype, enabled=dtype == torch.bfloat16)


def _lora(config: TrainConfig) -> Any:
    if config.lora_rank == 0:
        return None
    from peft import LoraConfig

    return LoraConfig(r=config.lora_rank, lora_alpha=config.lora_alpha, target_modules="all-linear", task_type="CAUSAL_LM")


def longest_prompt(plan: Plan, tokenizer: Any, limit: int) -> int:
    """Tokens of the plan's longest prompt. Raises ConfigError when it is over the limit, naming the row."""
    longest = 0
    for row in {row.messages.__repr__(): row for row in plan.rows}.values():
        count = len(encode_chat(tokenizer, row.messages))
        if count > limit:
            raise ConfigError(
                f"train.max_prompt_tokens = {limit}: the prompt of step {row.step}, group {row.group} "
                f"(question {row.question_id}, persona {row.persona_id}) has {count} tokens; raise the limit or drop the question"
            )
        longest = max(longest, count)
    return longest


def _refuse_too_long(longest: int, config: TrainConfig, network: Any) -> None:
    window = network.config.max_position_embeddings
    if longest + config.max_new_tokens > window:
        raise ConfigError(
            f"train.max_new_tokens = {config.max_new_tokens}: the plan's longest prompt has {longest} tokens and the model reads "
            f"{window}; give train.max_new_tokens = {max(window - longest, 0)} or less, or shorter prompts"
        )


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was written to its end: its trainer_state.json, written last, is whole."""
    found = sorted(folder.glob("checkpoint-*"), key=_number, reverse=True)
    return next((path for path in found if _is_whole(path)), None)


def _number(checkpoint: Path) -> int:
    return int(checkpoint.name.rsplit("-", 1)[1])


def _is_whole(checkpoint: Path) -> bool:
    try:
        return bool(read_json(checkpoint / "trainer_state.json")["global_step"] == _number(checkpoint))
    except (PermixError, KeyError):
        return False


def _step_of(checkpoint: Path | None) -> int:
    return _number(checkpoint) if checkpoint else 0


def grpo_arguments(stage: TrainStage, plan: Plan, out: Path) -> "GRPOConfig":
    """TRL's arguments for this plan on this machine. One generation feeds exactly one optimizer step (per iteration)."""
    import torch
    from trl import GRPOConfig

    config, device = stage.train, pick_device()
    # TRL makes (and shards) a reference model when beta is not 0; on-policy replay needs one too.
    anchored = stage.character.replay > 0 and stage.character.replay_policy == "on"
    return GRPOConfig(
        output_dir=str(out), max_steps=plan.steps * config.iterations, num_iterations=config.iterations,
        per_device_train_batch_size=plan.groups_per_step * plan.group_size,
        num_generations=plan.group_size, shuffle_dataset=False, remove_unused_columns=False,
        learning_rate=config.lr, lr_scheduler_type=_schedule(config), warmup_steps=config.warmup_steps,
        weight_decay=config.weight_decay, max_grad_norm=config.max_grad_norm,
        beta=config.beta or float(anchored), loss_type=config.loss,
        scale_rewards=config.scale_rewards, epsilon=config.clip_low, epsilon_high=config.clip_high,
        temperature=config.temperature, top_p=config.top_p, max_completion_length=config.max_new_tokens,
        use_cpu=device == "cpu", bf16=pick_dtype(config.precision, device) == torch.bfloat16,
        gradient_checkpointing=config.gradient_checkpointing, seed=config.seed, data_seed=config.seed,
        save_steps=config.save_every * config.iterations, save_total_limit=1, logging_steps=1, disable_tqdm=True,
        report_to=list(config.report_to) or "none", dataloader_pin_memory=False,
    )  # fmt: skip


def _schedule(config: TrainConfig) -> str:
    return "constant_with_warmup" if config.lr_schedule == "constant" else config.lr_schedule


def seen_after(plan: Plan, source: str) -> Seen:
    """What the trained model has seen: this plan's questions and personas, and all that the model it starts from had seen."""
    personas = frozenset(row.persona_id for row in plan.rows if row.persona_id)
    return Seen(frozenset(row.question_hash for row in plan.rows), personas) | read_seen(Path(source))


def _may_be_drawn(config: TrainStage) -> Seen:
    """Personas that a plan which adapts may still draw: all of the pool."""
    adapts = config.plan.adaptive > 0 and config.plan_file is None
    return Seen(frozenset(), frozenset(persona.id for persona in choose_personas(config.personas).personas if adapts))


def _write_model(trainer: Any, tokenizer: Any, plan: Plan, seen: Seen, config: TrainStage, out: Path, target: Path) -> None:
    """Write the model beside its final place, then move it there, so that a folder named `model` is always whole."""
    network = trainer.accelerator.unwrap_model(trainer.model)
    if hasattr(network, "merge_and_unload"):
        network = network.merge_and_unload()
    scratch = target.with_name(".model.part")
    shutil.rmtree(scratch, ignore_errors=True)
    network.save_pretrained(scratch)
    tokenizer.save_pretrained(scratch)
    write_seen(scratch, seen)
    write_card(scratch, config, plan, out / "log.jsonl")
    scratch.rename(target)
