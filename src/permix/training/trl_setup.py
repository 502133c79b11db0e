"""Builds the arguments of TRL's trainers and their callbacks: dev evaluations while training, and the clock from the first step.
Stops a training that has diverged.

Contract:
- Training with dev evaluations gives the same weights as training without, bit for bit. A dev evaluation draws from its cells'
  seeds and restores the global random generators.
- Every answer is written when it comes. A dev evaluation that was killed continues, and no answer is generated twice.
- With `select = "best"`, the weights are on disk before a line of `dev_eval.jsonl` calls them the best. Weights that a run
  could not choose, from whichever checkpoint it resumes, are deleted once a checkpoint is complete.
- No optimizer step is taken with a loss or a gradient that is not finite, so the weights of a checkpoint are finite. (DeepSpeed
  takes its step in the backward pass; there the training stops after it.)
- The main process asks and writes. The other processes contribute their shards of the weights and wait.
"""

import contextlib
import math
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import PrinterCallback, Trainer, TrainerCallback
from trl import GRPOConfig

from permix.config import DevEvalConfig, OptimConfig
from permix.errors import IncompleteRunError, PermixError
from permix.evals import open_ended, stability
from permix.inference.hardware import pick_device, pick_dtype, pick_microbatch_tokens
from permix.inference.hf import LocalModel
from permix.metrics.dev_curve import (
    DevCurve,
    DevEvalPoint,
    DevSelection,
    select_checkpoint,
    selected_step,
    selection_scores,
    selection_text,
)
from permix.metrics.measures import MEASURE_VIEWS
from permix.plan import Plan
from permix.progress import print_status
from permix.storage.files import write_jsonl
from permix.storage.run_dir import RunReader
from permix.trackers import TrackerLog
from permix.training import distributed
from permix.training.checkpoints import checkpoint_step, checkpoint_steps, write_checkpoint
from permix.training.compatibility import has_sharded_weights
from permix.training.dev_eval import (
    DEV_EVAL_LOG,
    DEV_EVAL_WEIGHTS,
    DevEval,
    delete_dev_eval_weights,
    dev_eval_dir,
    dev_eval_steps,
    dev_point_from_metrics,
)
from permix.training.job import TrainJob
from permix.training.network import full_tensor, load_weights, save_weights
from permix.training.run_log import StepClock, read_log_until, read_training_log
from permix.types import digest

FINGERPRINT_VALUES_PER_TENSOR = 256
"""About how many numbers of each tensor a fingerprint reads."""


class TrainerHooks(NamedTuple):
    """The parts of a trainer that a dev evaluation uses."""

    tokenizer: Any
    generation_network: Callable[[], AbstractContextManager[Any]]
    """Yields the network that generates rollouts."""
    unwrapped_model: Callable[[], Any]
    """Returns the network that is trained, with its adapters."""
    clock: StepClock
    log_to_trackers: Callable[[dict[str, float]], None]
    """Sends metrics to the experiment trackers and nowhere else."""


class DevEvalCallback(TrainerCallback):  # type: ignore[misc]
    """Evaluates before the first step, every `dev_eval.every` steps and after the last; stops training when patience runs out."""

    def __init__(self, dev_eval: DevEval, done_steps: int, hooks: TrainerHooks) -> None:
        """`done_steps`: optimizer steps that the checkpoint contains. Evaluations logged after it are dropped and run again.

        Without a checkpoint all are, from the answers on disk: the weights of step 0 may be gone. Raises DataError if the weights
        that the evaluations chose up to the checkpoint are missing or damaged.
        """
        self._dev_eval, self._config, self._out, self._hooks = dev_eval, dev_eval.config, dev_eval.out, hooks
        self._log_lines: list[dict[str, Any]] = []
        if distributed.is_main():
            self._log_lines = read_log_until(self._out / DEV_EVAL_LOG, done_steps) if done_steps else []
            best = self._best_step()
            if self._config.select == "best" and best is not None:
                load_weights(dev_eval_dir(self._out, best) / DEV_EVAL_WEIGHTS)  # now, and not when training has ended
            self._write_log()
            self._delete_weights()

    # Called by the trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 0:
            self._evaluate_if_pending(0, control)
            self._hooks.clock.restart()  # time before the first step counts for no step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        step, last = state.global_step, state.max_steps
        if step not in dev_eval_steps(self._config, last):
            return
        with self._hooks.clock.part("dev_eval"):
            stop = self._evaluate_if_pending(step, control)
        if stop and step < last:
            # No checkpoint here: a resumed trainer takes a step before it looks whether to stop, and would train one too many.
            control.should_training_stop, control.should_save = True, False

    def on_save(self, *_: Any, **__: Any) -> None:
        if distributed.is_main():
            self._delete_weights()

    def _evaluate_if_pending(self, step: int, control: Any) -> bool:
        """Evaluate unless it is done; returns whether training must stop. All processes call it and get the same result."""
        if not distributed.broadcast(all(line["step"] != step for line in self._log_lines)):
            return False
        started = time.monotonic()
        with preserve_rng_state(), self._hooks.generation_network() as network:
            points = distributed.broadcast(self._run_evaluations(step, network) if distributed.is_main() else [])
        choice = select_checkpoint(points, self._config.metric, self._config.patience)
        # Weights first, line second: a run killed between the two evaluates again, and never names weights that do not exist.
        if self._config.select == "best" and choice.best_step == step:
            save_weights(self._hooks.unwrapped_model(), dev_eval_dir(self._out, step) / DEV_EVAL_WEIGHTS)
        if distributed.is_main():
            should_log = control.should_log
            self._record_point(points, choice, round(time.monotonic() - started, 1))
            control.should_log = should_log  # Trainer.log clears it, and the step's own line would be missing
        return choice.should_stop

    # One dev evaluation

    def _run_evaluations(self, step: int, network: Any) -> list[DevEvalPoint]:
        """Answer the pending cells of this step with the current weights; returns all points including this one."""
        dev_eval = self._dev_eval
        model = TrainingModel(
            network, self._hooks.tokenizer, dev_eval.stability_config.model.batch_size, dev_eval.stability_config.model.name
        )
        _set_aside_stale_records(dev_eval_dir(self._out, step), model.fingerprint)
        # If the verifier fails, the cell has no score. The point counts such cells, and training continues.
        with contextlib.suppress(IncompleteRunError):
            stability.evaluate_setup(model, dev_eval.stability_config_at(step), dev_eval.task, dev_eval.setup)
        if dev_eval.open_ended_set is not None:
            open_ended.evaluate_open_ended(
                model,
                dev_eval.fidelity_config_at(step, dev_eval.open_ended_set),
                dev_eval.open_ended_set.personas,
                dev_eval.open_ended_set.questions,
            )
        return [*parse_dev_points(self._log_lines), dev_point_from_metrics(self._out, step, self._config)]

    def _record_point(self, points: Sequence[DevEvalPoint], choice: DevSelection, seconds: float) -> None:
        """Write the point to dev_eval.jsonl, print it, and send it to the trackers."""
        point, score = points[-1], selection_scores(points, self._config.metric)[-1]
        chosen = {"score": score, "best_step": choice.best_step, "stop": choice.should_stop, "seconds": seconds}
        self._log_lines.append(point.model_dump(mode="json") | chosen)
        self._write_log()
        best = "" if choice.best_step is None else f"; best by {choice.metric}: step {choice.best_step}"
        print_status(f"dev evaluation at step {point.step}: {point}{best}; {seconds} s")
        estimates = {name: point.estimate(name) for name in (*MEASURE_VIEWS["dev_eval_log"], "identifiability")}
        shares = {} if point.cut_off is None else {"dev_eval/cut_off": point.cut_off}
        self._hooks.log_to_trackers(
            {f"dev_eval/{name}": one.value for name, one in estimates.items() if one and one.value is not None} | shares
        )

    # Files

    def _write_log(self) -> None:
        write_jsonl(self._out / DEV_EVAL_LOG, self._log_lines)

    def _delete_weights(self) -> None:
        """Delete the weights that are not the best now, and were not when a checkpoint on disk was written."""
        ends = [*checkpoint_steps(self._out / "checkpoints"), None]
        delete_dev_eval_weights(self._out, {step for end in ends if (step := self._best_step(end)) is not None})

    def _best_step(self, end: int | None = None) -> int | None:
        """The best of the evaluations up to step `end`; None if there are none, or none with a score."""
        points = [point for point in parse_dev_points(self._log_lines) if end is None or point.step <= end]
        return select_checkpoint(points, self._config.metric).best_step if points else None


@contextlib.contextmanager
def preserve_rng_state() -> Iterator[None]:
    """Restore the global random generators after the block. Some libraries draw even when imported (scikit-learn does)."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)


class TrainingModel(LocalModel):
    """Answers with the current weights of the network in training; implements `permix.inference.base.Model`."""

    def __init__(self, network: Any, tokenizer: Any, batch_size: int | None, name: str) -> None:
        super().__init__(network, tokenizer, batch_size)
        self.name, self.fingerprint = name, weights_fingerprint(network)


def weights_fingerprint(network: Any) -> str:
    """Hash of a sample of the numbers of every tensor. An optimizer step changes nearly all numbers, so it changes the hash."""
    with torch.no_grad():
        sampled = [
            one.flatten()[:: max(1, one.numel() // FINGERPRINT_VALUES_PER_TENSOR)].float()
            for _, one in sorted(network.named_parameters())
        ]
        dtypes = sorted({str(one.dtype) for one in network.parameters()})
        return digest(torch.cat(sampled).cpu().numpy().tobytes().hex(), *dtypes)


def parse_dev_points(lines: Sequence[dict[str, Any]]) -> list[DevEvalPoint]:
    """The points in the lines of dev_eval.jsonl."""
    names = DevEvalPoint.json_keys()
    return [DevEvalPoint.model_validate({name: line[name] for name in names if name in line}) for line in lines]


def _set_aside_stale_records(folder: Path, model_fingerprint: str) -> None:
    """Rename records of other weights: a step that is repeated on another machine may give slightly other weights."""
    for provenance in sorted(folder.glob("*/provenance.json")):
        if RunReader(provenance.parent).identity.get("model") != model_fingerprint:
            names = (folder.with_name(f"{folder.name}-set-aside-{number}") for number in count(1))
            folder.rename(next(name for name in names if not name.exists()))
            return


def selected_weights_path(out: Path, config: DevEvalConfig) -> Path | None:
    """Print which weights the dev evaluations chose; returns their file, or None if they are the last weights."""
    curve = DevCurve(tuple(parse_dev_points(read_training_log(out / DEV_EVAL_LOG))), config)
    print_status(selection_text(curve))
    step = selected_step(curve)
    return None if step == curve.points[-1].step else dev_eval_dir(out, step) / DEV_EVAL_WEIGHTS


class StepClockCallback(TrainerCallback):  # type: ignore[misc]
    """Restarts the clock when training begins, so that setup and loading a checkpoint do not count for the first step."""

    def __init__(self, clock: StepClock) -> None:
        self._clock = clock

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._clock.restart()


class TrackerCallback(TrainerCallback):  # type: ignore[misc]
    """Sends what the trainer logs to the experiment trackers, as "train/loss"; names with "/" stay as they are.

    transformers' own callbacks write into checkpoints/, which is removed, and end the training when a tracker fails.
    """

    def __init__(self, trackers: TrackerLog) -> None:
        self._trackers = trackers

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **_: Any) -> None:
        values = {name if "/" in name else f"train/{name}": value for name, value in (logs or {}).items()}
        self._trackers.log(values, state.global_step)


class PlanTrainer(Trainer):  # type: ignore[misc]
    """What the trainers over a plan have in common. It stands before TRL's trainer among the bases, so `super()` is TRL's."""

    _clock: StepClock

    def _prepare_loop(self) -> None:
        """Measure the times of a step, print no logs, and stop on divergence. Call it once TRL's trainer is constructed."""
        self.remove_callback(PrinterCallback)
        self.add_callback(StepClockCallback(self._clock))
        stop_on_divergence(self)

    def generation_network(self) -> AbstractContextManager[Any]:
        """Yields the network that generates, with the current weights."""
        raise NotImplementedError

    def unwrapped_model(self) -> Any:
        """The network that is trained, with its adapters."""
        return self.accelerator.unwrap_model(self.model)

    def dev_eval_hooks(self) -> TrainerHooks:
        """The parts of this trainer that a dev evaluation uses. Call it before training begins."""
        # Not self.log: TRL and the trainers over a plan would take it for the metrics of the step.
        track = partial(Trainer.log, self)
        return TrainerHooks(self.processing_class, self.generation_network, self.unwrapped_model, self._clock, track)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        checkpoint = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        with self._clock.part("saving"), write_checkpoint(checkpoint):
            super()._save_checkpoint(model, trial)


def run_trainer(trainer: PlanTrainer, job: TrainJob, checkpoint: Path | None) -> None:
    """Train to the end of the plan, from `checkpoint` if there is one, with the trackers and dev evaluations of the job."""
    trainer.add_callback(TrackerCallback(job.trackers))
    if job.dev_eval is not None:
        trainer.add_callback(DevEvalCallback(job.dev_eval, checkpoint_step(checkpoint), trainer.dev_eval_hooks()))
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)


def stop_on_divergence(trainer: Any) -> None:
    """Make the trainer raise PermixError before its optimizer step if the norm of the gradient is not finite."""
    # All supported releases of transformers take the norm from here, once a step. Their own methods for it have other names.
    clip = trainer.accelerator.clip_grad_norm_

    def clip_and_check(*arguments: Any, **options: Any) -> Any:
        norm = clip(*arguments, **options)
        if norm is not None:  # DeepSpeed may not know it yet
            check_finite(trainer, "norm of the gradient", float(full_tensor(norm)))
        return norm

    trainer.accelerator.clip_grad_norm_ = clip_and_check


def check_finite(trainer: Any, name: str, value: float) -> None:
    """Raise PermixError if the value of this step, a loss or a norm, is not finite. Call it before the optimizer step."""
    if math.isfinite(value):
        return
    checkpoint = _loadable_checkpoint(Path(trainer.args.output_dir))
    begin = "" if checkpoint is None else f"; --model.name {checkpoint} begins it with the weights of the last checkpoint"
    raise PermixError(
        f"step {trainer.state.global_step + 1}: the {name} is {value}; training has diverged. Start a new run in another folder "
        f"(--out NEW) with a smaller train.lr{begin}"
    )


def _loadable_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint in `folder`, if it is a whole model: adapters and shards are none."""
    checkpoints = [folder / f"checkpoint-{step}" for step in checkpoint_steps(folder)]
    is_model = bool(checkpoints) and not has_sharded_weights() and (checkpoints[-1] / "config.json").exists()
    return checkpoints[-1] if is_model else None


TRL_LOSS_TYPE = "dapo"
"""A value that passes TRL's check of its arguments. The loss itself is one of `permix.training.loss.LOSSES`, whose names TRL may
not know."""


def common_arguments(config: OptimConfig, steps: int, out: Path) -> dict[str, Any]:
    """Arguments for optimizer, precision, logs and checkpoints of `steps` optimizer steps; checkpoints go to `out`."""
    device = pick_device()
    bf16 = pick_dtype(config.precision, device) == torch.bfloat16
    # transformers writes its choice into the environment, where a later run in this process, or a child process, would find it.
    os.environ["ACCELERATE_MIXED_PRECISION"] = "bf16" if bf16 else "no"
    return {
        "output_dir": str(out),
        "max_steps": steps,
        "shuffle_dataset": False,
        "remove_unused_columns": False,  # GRPO's only column, "place", is no argument of a network
        "learning_rate": config.lr,
        "lr_scheduler_type": "constant_with_warmup" if config.lr_schedule == "constant" else config.lr_schedule,
        "warmup_steps": config.warmup_steps,
        "weight_decay": config.weight_decay,
        "max_grad_norm": config.max_grad_norm,
        "use_cpu": device == "cpu",
        "bf16": bf16,
        "gradient_checkpointing": config.gradient_checkpointing,
        "seed": config.seed,
        "data_seed": config.seed,
        "save_steps": config.save_every,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,  # else the log has an earlier loss in place of one that is not finite
        "disable_tqdm": True,
        "report_to": "none",  # TrackerCallback reports
        "dataloader_pin_memory": False,
        "use_cache": True,  # else the trained model's configuration would turn its KV cache off
    }


def choose_microbatch_tokens(config: OptimConfig, network: Any, *, completions_per_prompt: int, bfloat16: bool) -> int:
    """`train.microbatch_tokens`, or the number for this network and device. Call it before training begins."""
    if config.microbatch_tokens is not None:
        return config.microbatch_tokens
    tokens = pick_microbatch_tokens(
        network, bfloat16=bfloat16, completions_per_prompt=completions_per_prompt,
        checkpointing=config.gradient_checkpointing, processes=distributed.world_size(), is_sharded=has_sharded_weights(),
    )  # fmt: skip
    if distributed.is_main() and pick_device() != "cpu":
        print_status(f"note: a pass reads at most {tokens} tokens (train.microbatch_tokens), by the free memory of the GPU")
    return tokens


def grpo_arguments(config: OptimConfig, plan: Plan, out: Path, *, with_reference: bool = False) -> GRPOConfig:
    """TRL's arguments for this plan, for one of the processes.

    One generation gives the rollouts of one step of the plan. Each process gets whole groups, in the plan's order.
    `with_reference`: the trainer needs a reference model even if the loss has no KL term.
    """
    # Only a beta other than 0 makes TRL load (and shard) a reference model. The loss takes its beta from `config`.
    return GRPOConfig(
        **common_arguments(config, plan.steps * config.updates_per_rollout, out), **vllm_arguments(config),
        num_iterations=config.updates_per_rollout, num_generations=plan.group_size,
        per_device_train_batch_size=plan.groups_per_step // distributed.world_size() * plan.group_size,
        beta=config.beta or float(with_reference), loss_type=TRL_LOSS_TYPE, scale_rewards=config.scale_rewards,
        epsilon=config.clip_low, epsilon_high=config.clip_high,
        temperature=config.temperature, top_p=config.top_p, max_completion_length=config.max_new_tokens,
    )  # fmt: skip


def vllm_arguments(config: OptimConfig) -> dict[str, Any]:
    """TRL's arguments for rollouts by vLLM. TRL's importance sampling is off: train.importance_ratio_cap replaces it."""
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
