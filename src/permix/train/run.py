"""`permix train`: a plan and a model in, a trained model folder and its log out.

    plan.parquet       what was trained on
    log.jsonl          one line a step
    rollouts.jsonl     one line a rollout: everything the run generated
    samples.md         some of them, for reading
    checkpoints/       the newest one, until the run has ended
    model/             the result: a plain Hugging Face folder with its card

Started again, the run goes on after its newest whole checkpoint; what was logged after that is dropped and done again. Several
processes train as one (`permix.train.processes`): the main one holds the run directory and writes, the others compute.
"""

import contextlib
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from permix.config import PLACES, TrainConfig, TrainStage
from permix.errors import ConfigError, PermixError
from permix.models.hf import context_window, encode_chat, folder_fingerprint, load_skeleton, load_tokenizer, load_weights, resolve
from permix.models.machine import pick_device, pick_dtype, pin_threads
from permix.progress import meter
from permix.records import RunDir, cpu_seconds, read_json, writing
from permix.tasks.overlap import Seen, read_seen, write_seen
from permix.train import processes
from permix.train.bank import fill_bank
from permix.train.buffer import refuse_other_count
from permix.train.card import write_card
from permix.train.expressivity import Expressivity
from permix.train.fit import launch, refuse_launch, refuse_unfit, sharding, weights_are_spread
from permix.train.log import NoLog, StepLog
from permix.train.plan import Plan, compile_from, read_plan, write_plan
from permix.types import Cell
from permix.verify import Verifier

if TYPE_CHECKING:
    from trl import GRPOConfig

    from permix.train.grpo import Recorder
    from permix.train.replay import Replay


def train(config: TrainStage) -> Path:
    """Run or go on with the training, together with the processes started beside this one; returns the trained model's folder."""
    with processes.together():
        pin_threads(config.threads)
        plan = read_plan(config.plan_file) if config.plan_file else compile_from(config.task, config.personas, config.plan)
        refuse_unfit(plan, config.train)
        refuse_launch(plan, config, launch())
        with processes.main_first():
            source = resolve(config.model.name)
        target = config.out / "model"
        with _held(config, plan, source) as run:
            if not processes.agreed((target / "config.json").exists()):
                with _accounted(run):
                    _optimise(config, plan, source, config.out, target)
            if run is not None and not config.train.keep_checkpoints:
                shutil.rmtree(config.out / "checkpoints", ignore_errors=True)
        return target


@contextlib.contextmanager
def _held(config: TrainStage, plan: Plan, source: str) -> Iterator[RunDir | None]:
    """The run directory, for the main process; the others wait until it has it, and get None."""
    if not processes.is_main():
        processes.wait()
        yield None
        return
    settings = config.train.model_dump(mode="json", exclude=set(PLACES))
    identity = {"plan": plan.hash, "model": _fingerprint(source), "train": settings}
    identity["character"] = config.character.model_dump(mode="json")
    with RunDir.open(config.out, config, identity) as run:
        processes.wait()
        yield run


@contextlib.contextmanager
def _accounted(run: RunDir | None) -> Iterator[None]:
    """The CPU seconds of all processes go into the main one's usage.json; after an error, only its own."""
    if run is not None:
        with run.accounted(processes.summed):
            yield
        return
    before = cpu_seconds()
    yield
    processes.summed(cpu_seconds() - before)


def _fingerprint(source: str) -> str:
    return folder_fingerprint(Path(source)) if Path(source).is_dir() else source


def _optimise(config: TrainStage, plan: Plan, source: str, out: Path, target: Path) -> None:
    from permix.train.grpo import PlanTrainer

    tokenizer = load_tokenizer(source)
    _refuse_too_long(longest_prompt(plan, tokenizer, config.train.max_prompt_tokens), config.train, source)
    checkpoint = processes.agreed(newest_checkpoint(out / "checkpoints"))
    if checkpoint:
        refuse_other_count(checkpoint, processes.count())
    seen = seen_after(plan, source)
    if processes.is_main():
        write_plan(plan, out / "plan.parquet")
        write_seen(out / "checkpoints", seen)
    cells = processes.agreed(fill_bank(config) if config.character.needs_answers and processes.is_main() else [])
    # Before the weights: the arguments say whether those are shared out over processes, and so how they are loaded.
    arguments = grpo_arguments(config, plan, out / "checkpoints")
    network = _network(source)
    replay = _replay(config, cells, tokenizer, network)
    expressivity = Expressivity(cells, config.character.expressivity) if config.character.expressivity > 0 else None
    with Verifier() as verifier, _recorder(config, out, _step_of(checkpoint), arguments.max_steps) as recorder:
        _seed(config.train.seed)
        trainer = PlanTrainer(
            plan=plan, verifier=verifier, recorder=recorder, config=config.train, args=arguments, model=network,
            processing_class=tokenizer, peft_config=_lora(config.train), replay=replay, expressivity=expressivity,
        )  # fmt: skip
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    _write_model(trainer, tokenizer, plan, seen, config, out, target)


@contextlib.contextmanager
def _recorder(config: TrainStage, out: Path, done: int, steps: int) -> "Iterator[Recorder]":
    """The run's log, kept by the main process."""
    if not processes.is_main():
        yield NoLog()
        return
    with meter(f"train {config.label or out.name}", steps, "steps") as shown:
        shown.start_at(done)
        yield StepLog(out, done, config.train.samples_every * config.train.iterations, shown)


def _network(source: str) -> Any:
    """The weights to train, in float32. Where FSDP2 is going to share them out, only the main process has them until then."""
    import torch

    if sharding() == "fsdp2" and not processes.is_main():
        return load_skeleton(source, torch.float32).train()
    return load_weights(source, torch.float32, "cpu" if weights_are_spread() else pick_device()).train()


def _seed(seed: int) -> None:
    """What the trainer draws as it is made (LoRA's first weights) depends on the seed alone, and is the same in every process."""
    import torch

    torch.manual_seed(seed)


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


def _refuse_too_long(longest: int, config: TrainConfig, source: str) -> None:
    window = context_window(source)
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
    """TRL's arguments for this plan on this machine, for one of its processes.

    One generation feeds exactly one optimizer step (per iteration); its groups are dealt to the processes whole, in their order.
    """
    import torch
    from trl import GRPOConfig

    config, device = stage.train, pick_device()
    # TRL makes (and shards) a reference model when beta is not 0; on-policy replay needs one too.
    anchored = stage.character.replay > 0 and stage.character.replay_policy == "on"
    return GRPOConfig(
        output_dir=str(out), max_steps=plan.steps * config.iterations, num_iterations=config.iterations,
        per_device_train_batch_size=plan.groups_per_step // processes.count() * plan.group_size,
        num_generations=plan.group_size, shuffle_dataset=False, remove_unused_columns=False,
        learning_rate=config.lr, lr_scheduler_type=_schedule(config), warmup_steps=config.warmup_steps,
        weight_decay=config.weight_decay, max_grad_norm=config.max_grad_norm,
        beta=config.beta or float(anchored), loss_type=config.loss,
        scale_rewards=config.scale_rewards, epsilon=config.clip_low, epsilon_high=config.clip_high,
        temperature=config.temperature, top_p=config.top_p, max_completion_length=config.max_new_tokens,
        use_cpu=device == "cpu", bf16=pick_dtype(config.precision, device) == torch.bfloat16,
        gradient_checkpointing=config.gradient_checkpointing, seed=config.seed, data_seed=config.seed,
        save_steps=config.save_every, save_total_limit=1, logging_steps=1, disable_tqdm=True,
        report_to=list(config.report_to) or "none", dataloader_pin_memory=False,
        use_cache=True,  # else the trained model's configuration would say that it keeps none
        **vllm_arguments(config),
    )  # fmt: skip


def vllm_arguments(config: TrainConfig) -> dict[str, Any]:
    """TRL's arguments for rollouts by vLLM. The correction for its numerics is ours (train.importance_cap), so TRL's is off."""
    if not config.use_vllm:
        return {}
    return {
        "use_vllm": True,
        "vllm_mode": config.vllm_mode,
        "vllm_server_base_url": config.vllm_server_base_url,
        "vllm_server_host": config.vllm_server_host,
        "vllm_server_port": config.vllm_server_port,
        "vllm_gpu_memory_utilization": config.vllm_gpu_memory_utilization,
        "vllm_tensor_parallel_size": config.vllm_tensor_parallel_size,
        "vllm_max_model_length": config.max_prompt_tokens + config.max_new_tokens,
        "vllm_importance_sampling_correction": False,
    }


def _schedule(config: TrainConfig) -> str:
    return "constant_with_warmup" if config.lr_schedule == "constant" else config.lr_schedule


def seen_after(plan: Plan, source: str) -> Seen:
    """What the trained model has seen: this plan's questions and personas, and all that the model it starts from had seen."""
    personas = frozenset(row.persona_id for row in plan.rows if row.persona_id)
    return Seen(frozenset(row.question_hash for row in plan.rows), personas) | read_seen(Path(source))


def _write_model(trainer: Any, tokenizer: Any, plan: Plan, seen: Seen, config: TrainStage, out: Path, target: Path) -> None:
    """Write the model beside its final place, then move it there, so that a folder named `model` is always whole."""
    network, state = _trained(trainer, config.train, resolve(config.model.name))
    if not processes.is_main():
        return
    from safetensors import SafetensorError

    scratch = target.with_name(".model.part")
    shutil.rmtree(scratch, ignore_errors=True)
    with writing(scratch, SafetensorError):
        network.save_pretrained(scratch, state_dict=state)
        tokenizer.save_pretrained(scratch)
        write_seen(scratch, seen)
        write_card(scratch, config, plan, out / "log.jsonl")
        scratch.rename(target)


def _trained(trainer: Any, config: TrainConfig, source: str) -> tuple[Any, dict[str, Any] | None]:
    """The trained network with its adapters merged, and its weights where it does not hold them itself: the main process's."""
    network, state = trainer.accelerator.unwrap_model(trainer.model), None
    if weights_are_spread():
        state = trainer.accelerator.get_state_dict(trainer.model_wrapped)
        if not processes.is_main():
            return None, None
        if hasattr(network, "merge_and_unload"):  # a part of a weight cannot be merged: put the whole ones into a new network
            from peft import get_peft_model

            network, whole = get_peft_model(_network(source), _lora(config)), state
            network.load_state_dict(whole, assign=True)
            network.get_base_model().tie_weights()
            state = None
    return (network.merge_and_unload() if hasattr(network, "merge_and_unload") else network), state
