"""Training backends: each trains a model by a plan with one engine.

A backend decides how the plan's rows become weights. `permix.pipelines.train` does what all backends have in common: it prepares
the training, opens the run directory, checks the prompts, and writes the plan, the record of the training data and the card.
"""

from pathlib import Path
from typing import Any, Protocol

from permix.config import SUPERVISED_METHODS
from permix.storage.run_dir import RunDir
from permix.training import distributed
from permix.training.compatibility import check_launch, check_plan, detect_launch
from permix.training.job import TrainJob


class TrainerBackend(Protocol):
    """An engine that trains. Its methods are called in this order, each in every process of the run."""

    def check(self, job: TrainJob) -> None:
        """Raise ConfigError for a plan or a setting that this engine does not support. `permix check` calls it too."""

    def check_launch(self, job: TrainJob) -> None:
        """Raise ConfigError if the engine cannot train with these processes or on this machine. Nothing is loaded yet."""

    def train(self, job: TrainJob, source: str, tokenizer: Any, run: RunDir | None, folder: Path) -> None:
        """Train the model `source`, a folder or hub id, and write weights, configuration and tokenizer into the new `folder`.

        After an interruption the next call resumes from the files in the run directory, `job.config.out`. The main process writes
        there, by `permix.training.run_log`: a line for each step to `log.jsonl` and for each rollout to `rollouts.jsonl`. `run`
        is that directory in the main process and None in the others.
        """


class TRLBackend:
    """TRL's trainers, in the processes of this command: GRPO for methods with a reward, SFT for supervised methods."""

    def check(self, job: TrainJob) -> None:
        check_plan(job.plan, job.config.train)

    def check_launch(self, job: TrainJob) -> None:
        check_launch(job.plan, job.config, detect_launch())

    def train(self, job: TrainJob, source: str, tokenizer: Any, run: RunDir | None, folder: Path) -> None:
        from permix.training.checkpoints import delete_older_checkpoints, newest_checkpoint
        from permix.training.grpo_trainer import train_by_reward
        from permix.training.network import save_model
        from permix.training.sft_trainer import train_supervised
        from permix.training.trl_setup import selected_weights_path

        config, checkpoints = job.config, job.config.out / "checkpoints"
        checkpoint = distributed.broadcast(newest_checkpoint(checkpoints) if distributed.is_main() else None)
        if config.method in SUPERVISED_METHODS:
            assert run is not None  # check_launch allows these methods one process only
            trainer: Any = train_supervised(job, source, tokenizer, run, checkpoint)
        else:
            trainer = train_by_reward(job, source, tokenizer, checkpoint)
        selected = selected_weights_path(config.out, config.dev_eval) if job.dev_eval is not None and run is not None else None
        save_model(trainer, tokenizer, config.train, source, folder, selected)
        if distributed.is_main():
            delete_older_checkpoints(checkpoints / f"checkpoint-{trainer.state.global_step + 1}", keep=1)


TRAINER_BACKENDS: dict[str, TrainerBackend] = {"trl": TRLBackend()}
"""Every backend that the setting `backend` may name. A test compares the names with `permix.config.TrainerBackendName`."""
