"""Probing a model while it trains: how it is asked, what is kept of it, and what the trainer is told.

Contract: training is what it would be without probes, bit for bit. A probe asks the network that generates rollouts, draws from
its cells' own seeds and leaves the global generators as they were. Its records are kept as they come: a probe that was killed
goes on, and nothing is generated twice. Before a line of `probe.jsonl` says that a probe is the best, its weights are on the disk
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

from permix.config import ProbeConfig
from permix.errors import ConfigError, OwedCellsError
from permix.evals import open_ended, stability
from permix.inference.hf import Loaded, encode_chat
from permix.metrics.dev_curve import Choice, Curve, Point, choose, scores, taken, told
from permix.progress import say
from permix.storage.files import read_json, write_text
from permix.training import distributed
from permix.training.checkpoints import keep_weights
from permix.training.dev_eval import LINES, WEIGHTS, Probe, drop_weights, folder_of, noted, probed_steps
from permix.training.run_log import StepClock, read_log
from permix.types import digest

READ = 256
"""Numbers of one tensor that a fingerprint reads."""

TRACKED = ("mean", "worst", "pss", "baseline", "identifiability")


class Probed(NamedTuple):
    """What a probe needs of a trainer: the network that generates, lent; the one that is trained, adapters and all; its clock;
    and a way to hand figures to the trackers alone."""

    tokenizer: Any
    network: Callable[[], AbstractContextManager[Any]]
    trained: Callable[[], Any]
    clock: StepClock
    track: Callable[[dict[str, float]], None]


class Prober(TrainerCallback):  # type: ignore[misc]
    """Probes before the first step, every so many steps and after the last one; ends training when patience has run out."""

    def __init__(self, probe: Probe, done: int, trainer: Probed) -> None:
        """`done`: steps that lie behind the run. Lines after them are of a process that died, and their probes are done again."""
        self._probe, self._config, self._out, self._trainer = probe, probe.config, probe.train.out, trainer
        self._lines: list[dict[str, Any]] = []
        if distributed.is_main():
            self._lines = [line for line in read_log(self._out / LINES) if line["step"] <= done]
            self._write_lines()
            self._drop_weights()

    # What the trainer calls

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 0:
            self._turn(0, control)
            self._trainer.clock.restart()  # what came before the first step is no step's time

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        step, last = state.global_step, state.max_steps
        if step not in probed_steps(self._config, last):
            return
        with self._trainer.clock.part("probe"):
            stop = self._turn(step, control)
        if stop and step < last:
            # No checkpoint of this step: a run that was killed before its model is written would go on from it by another step.
            control.should_training_stop, control.should_save = True, False

    def on_save(self, *_: Any, **__: Any) -> None:
        if distributed.is_main():
            self._drop_weights()

    def _turn(self, step: int, control: Any) -> bool:
        """Probe, unless that was done; whether training is to end. Every process comes here, and hears the same."""
        if not distributed.agreed(all(line["step"] != step for line in self._lines)):
            return False
        started = time.monotonic()
        with generators_kept(), self._trainer.network() as network:
            points = distributed.agreed(self._ask(step, network) if distributed.is_main() else [])
        choice = choose(points, self._config.metric, self._config.patience)
        if self._config.select == "best" and choice.best == step:
            keep_weights(self._trainer.trained(), folder_of(self._out, step) / WEIGHTS)
        if distributed.is_main():
            should_log = control.should_log
            self._note(points, choice, round(time.monotonic() - started, 1))
            control.should_log = should_log  # a tracker's entry passes for the step's own
        return choice.stop

    # One probe

    def _ask(self, step: int, network: Any) -> list[Point]:
        """Let the model as it is now answer what this step's probe still owes; all points with this one."""
        probe = self._probe
        model = InTraining(network, self._trainer.tokenizer, probe.stage.model.batch_size, probe.stage.model.name)
        _set_aside_others(folder_of(self._out, step), model.fingerprint)
        # A verifier that fails leaves a cell without a score: counted in the point, and no reason to end the training.
        with contextlib.suppress(OwedCellsError):
            stability.evaluate(model, probe.stability_at(step), probe.task, probe.setup)
        if probe.voices is not None:
            open_ended.evaluate(model, probe.fidelity_at(step, probe.voices), probe.voices.personas, probe.voices.questions)
        return [*points_in(self._lines), noted(self._out, step, self._config)]

    def _note(self, points: Sequence[Point], choice: Choice, seconds: float) -> None:
        """Write the line, say it, and let the trackers have it."""
        point, score = points[-1], scores(points, self._config.metric)[-1]
        chosen = {"score": score, "best_step": choice.best, "stop": choice.stop, "seconds": seconds}
        self._lines.append(point.model_dump(mode="json") | chosen)
        self._write_lines()
        best = "" if choice.best is None else f"; best by {choice.metric}: step {choice.best}"
        say(f"probe at step {point.step}: {point}{best}; {seconds} s")
        found = {name: getattr(point, name) for name in TRACKED}
        self._trainer.track({f"probe/{name}": one.value for name, one in found.items() if one and one.value is not None})

    # What is kept

    def _write_lines(self) -> None:
        write_text(self._out / LINES, "".join(json.dumps(line) + "\n" for line in self._lines))

    def _drop_weights(self) -> None:
        points = points_in(self._lines)
        drop_weights(self._out, but=choose(points, self._config.metric).best if points else None)


@contextlib.contextmanager
def generators_kept() -> Iterator[None]:
    """Whatever a library draws in the block, at its import perhaps (scikit-learn does), the global generators stand as before."""
    python, own = random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(own)


class InTraining(Loaded):
    """`permix.inference.base.Model` over the network in training, as it is now."""

    def __init__(self, network: Any, tokenizer: Any, batch_size: int, name: str) -> None:
        super().__init__(network, tokenizer, batch_size)
        self.name, self.fingerprint = name, fingerprint(network)


def fingerprint(network: Any) -> str:
    """Changes when the weights do: by numbers spread over every tensor, nearly all of which an optimizer step moves."""
    with torch.no_grad():
        some = [one.flatten()[:: max(1, one.numel() // READ)].float() for _, one in sorted(network.named_parameters())]
        dtypes = sorted({str(one.dtype) for one in network.parameters()})
        return digest(torch.cat(some).cpu().numpy().tobytes().hex(), *dtypes)


def points_in(lines: Sequence[dict[str, Any]]) -> list[Point]:
    """The points of probe.jsonl."""
    return [Point.model_validate({name: line[name] for name in Point.model_fields}) for line in lines]


def refuse_too_long(probe: Probe, tokenizer: Any, window: int) -> None:
    """Raise ConfigError for a prompt of the probe that leaves no room for its answer."""
    for cell, sampling in probe.cells():
        read, field = len(encode_chat(tokenizer, cell.messages)), "max_new_tokens" if cell.gold else "roleplay_max_new_tokens"
        if read + sampling.max_new_tokens > window:
            raise ConfigError(
                f"probe.{field} = {sampling.max_new_tokens}: question {cell.question_id} as persona {cell.persona_id} has {read} "
                f"tokens and the model reads {window}; give probe.{field} = {max(window - read, 0)} or less"
            )


def _set_aside_others(folder: Path, ours: str) -> None:
    """Rename the records of other weights: steps done again on another machine need not give the same bits."""
    for born in sorted(folder.glob("*/provenance.json")):
        if read_json(born)["identity"].get("model") != ours:
            names = (folder.with_name(f"{folder.name}-set-aside-{number}") for number in count(1))
            folder.rename(next(name for name in names if not name.exists()))
            return


def chosen_weights(out: Path, config: ProbeConfig) -> Path | None:
    """At the end of training: say what the probes chose; the file of those weights, or None when they are the last ones."""
    curve = Curve(tuple(points_in(read_log(out / LINES))), config)
    say(told(curve))
    step = taken(curve)
    return None if step == curve.points[-1].step else folder_of(out, step) / WEIGHTS


class ClockStarter(TrainerCallback):  # type: ignore[misc]
    """Keeps setting up and loading a checkpoint out of the first step's time."""

    def __init__(self, clock: StepClock) -> None:
        self._clock = clock

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._clock.restart()
