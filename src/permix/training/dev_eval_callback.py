"""Probing a model while it trains: how it is asked, what is kept of it, and what the trainer is told.

Contract: training is what it would be without probes, bit for bit. A probe asks the network that generates rollouts, draws from
its cells' own seeds and leaves the global generators as they were. Its records are kept as they come: a probe that was killed
goes on, and nothing is generated twice. Before a line of `dev_eval.jsonl` says that a probe is the best, its weights are on
the disk
(`select = "best"`); those that no resumed run could choose any more are dropped once a checkpoint is whole. Of several processes
the main one asks and writes; the others lend their part of the weights and wait.
"""

import contextlib
import json
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import TrainerCallback

from permix.config import DevEvalConfig
from permix.errors import ConfigError, IncompleteRunError
from permix.evals import open_ended, stability
from permix.inference.hf import LocalModel, encode_chat
from permix.metrics.dev_curve import (
    DevCurve,
    DevEvalPoint,
    DevSelection,
    select_checkpoint,
    selected_step,
    selection_scores,
    selection_text,
)
from permix.progress import print_status
from permix.storage.files import write_text
from permix.storage.run_dir import read_provenance
from permix.training import distributed
from permix.training.checkpoints import save_weights
from permix.training.dev_eval import (
    DEV_EVAL_LOG,
    DEV_EVAL_WEIGHTS,
    DevEval,
    delete_dev_eval_weights,
    dev_eval_dir,
    dev_eval_steps,
    dev_point_from_metrics,
)
from permix.training.run_log import StepClock, read_training_log
from permix.types import digest

FINGERPRINT_VALUES_PER_TENSOR = 256
"""Numbers of one tensor that a fingerprint reads."""

TRACKED_METRICS = ("mean", "worst", "pss", "baseline", "identifiability")


class TrainerHooks(NamedTuple):
    """What a probe needs of a trainer: the network that generates, lent; the one that is trained, adapters and all; its clock;
    and a way to hand figures to the trackers alone."""

    tokenizer: Any
    generation_network: Callable[[], AbstractContextManager[Any]]
    unwrapped_model: Callable[[], Any]
    clock: StepClock
    log_to_trackers: Callable[[dict[str, float]], None]


class DevEvalCallback(TrainerCallback):  # type: ignore[misc]
    """Probes before the first step, every so many steps and after the last one; ends training when patience has run out."""

    def __init__(self, dev_eval: DevEval, done_steps: int, hooks: TrainerHooks) -> None:
        """`done_steps`: steps that lie behind the run. Lines after them are of a process that died, and their probes are
        done again."""
        self._dev_eval, self._config, self._out, self._hooks = dev_eval, dev_eval.config, dev_eval.train_config.out, hooks
        self._log_lines: list[dict[str, Any]] = []
        if distributed.is_main():
            self._log_lines = [line for line in read_training_log(self._out / DEV_EVAL_LOG) if line["step"] <= done_steps]
            self._write_log()
            self._delete_weights()

    # What the trainer calls

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 0:
            self._evaluate_if_pending(0, control)
            self._hooks.clock.restart()  # what came before the first step is no step's time

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        step, last = state.global_step, state.max_steps
        if step not in dev_eval_steps(self._config, last):
            return
        with self._hooks.clock.part("dev_eval"):
            stop = self._evaluate_if_pending(step, control)
        if stop and step < last:
            # No checkpoint of this step: a run that was killed before its model is written would go on from it by another step.
            control.should_training_stop, control.should_save = True, False

    def on_save(self, *_: Any, **__: Any) -> None:
        if distributed.is_main():
            self._delete_weights()

    def _evaluate_if_pending(self, step: int, control: Any) -> bool:
        """Probe, unless that was done; whether training is to end. Every process comes here, and hears the same."""
        if not distributed.broadcast(all(line["step"] != step for line in self._log_lines)):
            return False
        started = time.monotonic()
        with preserve_rng_state(), self._hooks.generation_network() as network:
            points = distributed.broadcast(self._run_evaluations(step, network) if distributed.is_main() else [])
        choice = select_checkpoint(points, self._config.metric, self._config.patience)
        if self._config.select == "best" and choice.best_step == step:
            save_weights(self._hooks.unwrapped_model(), dev_eval_dir(self._out, step) / DEV_EVAL_WEIGHTS)
        if distributed.is_main():
            should_log = control.should_log
            self._record_point(points, choice, round(time.monotonic() - started, 1))
            control.should_log = should_log  # a tracker's entry passes for the step's own
        return choice.should_stop

    # One probe

    def _run_evaluations(self, step: int, network: Any) -> list[DevEvalPoint]:
        """Let the model as it is now answer what this step's probe still owes; all points with this one."""
        probe = self._dev_eval
        model = TrainingModel(
            network, self._hooks.tokenizer, probe.stability_config.model.batch_size, probe.stability_config.model.name
        )
        _set_aside_stale_records(dev_eval_dir(self._out, step), model.fingerprint)
        # A verifier that fails leaves a cell without a score: counted in the point, and no reason to end the training.
        with contextlib.suppress(IncompleteRunError):
            stability.evaluate_setup(model, probe.stability_config_at(step), probe.task, probe.setup)
        if probe.open_ended_set is not None:
            open_ended.evaluate_open_ended(
                model,
                probe.fidelity_config_at(step, probe.open_ended_set),
                probe.open_ended_set.personas,
                probe.open_ended_set.questions,
            )
        return [*parse_dev_points(self._log_lines), dev_point_from_metrics(self._out, step, self._config)]

    def _record_point(self, points: Sequence[DevEvalPoint], choice: DevSelection, seconds: float) -> None:
        """Write the line, say it, and let the trackers have it."""
        point, score = points[-1], selection_scores(points, self._config.metric)[-1]
        chosen = {"score": score, "best_step": choice.best_step, "stop": choice.should_stop, "seconds": seconds}
        self._log_lines.append(point.model_dump(mode="json") | chosen)
        self._write_log()
        best = "" if choice.best_step is None else f"; best by {choice.metric}: step {choice.best_step}"
        print_status(f"probe at step {point.step}: {point}{best}; {seconds} s")
        found = {name: getattr(point, name) for name in TRACKED_METRICS}
        self._hooks.log_to_trackers(
            {f"dev_eval/{name}": one.value for name, one in found.items() if one and one.value is not None}
        )

    # What is kept

    def _write_log(self) -> None:
        write_text(self._out / DEV_EVAL_LOG, "".join(json.dumps(line) + "\n" for line in self._log_lines))

    def _delete_weights(self) -> None:
        points = parse_dev_points(self._log_lines)
        delete_dev_eval_weights(self._out, keep_step=select_checkpoint(points, self._config.metric).best_step if points else None)


@contextlib.contextmanager
def preserve_rng_state() -> Iterator[None]:
    """Whatever a library draws in the block, at its import perhaps (scikit-learn does), the global generators stand as before."""
    python, own = random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(own)


class TrainingModel(LocalModel):
    """`permix.inference.base.Model` over the network in training, as it is now."""

    def __init__(self, network: Any, tokenizer: Any, batch_size: int, name: str) -> None:
        super().__init__(network, tokenizer, batch_size)
        self.name, self.fingerprint = name, weights_fingerprint(network)


def weights_fingerprint(network: Any) -> str:
    """Changes when the weights do: by numbers spread over every tensor, nearly all of which an optimizer step moves."""
    with torch.no_grad():
        some = [
            one.flatten()[:: max(1, one.numel() // FINGERPRINT_VALUES_PER_TENSOR)].float()
            for _, one in sorted(network.named_parameters())
        ]
        dtypes = sorted({str(one.dtype) for one in network.parameters()})
        return digest(torch.cat(some).cpu().numpy().tobytes().hex(), *dtypes)


def parse_dev_points(lines: Sequence[dict[str, Any]]) -> list[DevEvalPoint]:
    """The points of dev_eval.jsonl."""
    return [DevEvalPoint.model_validate({name: line[name] for name in DevEvalPoint.model_fields}) for line in lines]


def check_dev_eval_prompts(dev_eval: DevEval, tokenizer: Any, window: int) -> None:
    """Raise ConfigError for a prompt of the probe that leaves no room for its answer."""
    for cell, sampling in dev_eval.cells():
        read, field = len(encode_chat(tokenizer, cell.messages)), "max_new_tokens" if cell.gold else "roleplay_max_new_tokens"
        if read + sampling.max_new_tokens > window:
            raise ConfigError(
                f"dev_eval.{field} = {sampling.max_new_tokens}: question {cell.question_id} as persona "
                f"{cell.persona_id} has {read} "
                f"tokens and the model reads {window}; give dev_eval.{field} = {max(window - read, 0)} or less"
            )


def _set_aside_stale_records(folder: Path, model_fingerprint: str) -> None:
    """Rename the records of other weights: steps done again on another machine need not give the same bits."""
    for born in sorted(folder.glob("*/provenance.json")):
        if read_provenance(born.parent)["identity"].get("model") != model_fingerprint:
            names = (folder.with_name(f"{folder.name}-set-aside-{number}") for number in count(1))
            folder.rename(next(name for name in names if not name.exists()))
            return


def selected_weights_path(out: Path, config: DevEvalConfig) -> Path | None:
    """At the end of training: say what the probes chose; the file of those weights, or None when they are the last ones."""
    curve = DevCurve(tuple(parse_dev_points(read_training_log(out / DEV_EVAL_LOG))), config)
    print_status(selection_text(curve))
    step = selected_step(curve)
    return None if step == curve.points[-1].step else dev_eval_dir(out, step) / DEV_EVAL_WEIGHTS


class StepClockCallback(TrainerCallback):  # type: ignore[misc]
    """Keeps setting up and loading a checkpoint out of the first step's time."""

    def __init__(self, clock: StepClock) -> None:
        self._clock = clock

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._clock.restart()
