"""Supervised fine-tuning by TRL's SFTTrainer: one step trains on the examples of one step of the plan, in the plan's order.

Changes to TRL:
- A row of the data set is a whole step, which is split into microbatches here. Steps have unequal numbers of examples, so TRL's
  batches would mix steps. The loss is the mean over all completion tokens of the step, however it is split.
- The prompt's tokens are the same as in training with a reward and in evaluation; the completion's are its text and one stop
  token. TRL would tokenize the whole chat. It would then also train on text that the template writes after the stop token,
  and drop the end of a prompt that the template renders differently before an answer.
- Only the completion has labels; the prompt and the padding on the right have none.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from datasets import Dataset
from trl import SFTConfig, SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from permix.config import OptimConfig
from permix.inference.chat_template import encode_chat, encode_completion
from permix.inference.generation import end_of_turn_id, stop_at_end_of_turn
from permix.inference.hardware import release_memory
from permix.inference.hf import context_window
from permix.inference.shared_prefix import eval_mode, supports_shared_prefix
from permix.progress import progress_bar
from permix.storage.run_dir import RunDir
from permix.training.checkpoints import checkpoint_step
from permix.training.gradient_step import unwrap_peft
from permix.training.job import TrainJob
from permix.training.network import build_lora_config, load_trainable_model, seed_trainer
from permix.training.run_log import MetricsLogger, StepClock
from permix.training.sft_data import SFTExample, build_sft_dataset, examples_by_step, load_sft_dataset
from permix.training.trl_setup import (
    PlanTrainer,
    TrainerHooks,
    check_finite,
    choose_microbatch_tokens,
    common_arguments,
    run_trainer,
)

IGNORE_INDEX = -100
"""The label of a token that has no loss."""


class MetricsRecorder(Protocol):
    """Receives the metrics of each step."""

    def log_metrics(self, step: int, metrics: dict[str, Any]) -> None: ...


class TokenizedExample(NamedTuple):
    """The token ids of one example, and its labels (`IGNORE_INDEX` on the prompt)."""

    input_ids: list[int]
    labels: list[int]


def tokenize_example(example: SFTExample, tokenizer: Any, end_id: int) -> TokenizedExample:
    """Tokens and labels of prompt and completion; the end token only if the completion ended."""
    prompt = encode_chat(tokenizer, example.messages)
    completion = encode_completion(example.completion, tokenizer) + ([end_id] if example.ended else [])
    return TokenizedExample(prompt + completion, [IGNORE_INDEX] * len(prompt) + completion)


def build_step_dataset(steps: Sequence[Sequence[SFTExample]], tokenizer: Any, end_id: int) -> Dataset:
    """One row for each step: the tokens and labels of its examples."""
    tokens = [[tokenize_example(example, tokenizer, end_id) for example in step] for step in steps]
    return Dataset.from_list(
        [{"input_ids": [one.input_ids for one in step], "labels": [one.labels for one in step]} for step in tokens]
    )


class _StepCollator:
    """Pads the examples of one step on the right, to the longest of them."""

    def __init__(self, pad_token_id: int) -> None:
        self._collate = DataCollatorForLanguageModeling(pad_token_id=pad_token_id)

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        (step,) = rows
        pairs = zip(step["input_ids"], step["labels"], strict=True)
        return dict(self._collate([{"input_ids": ids, "labels": labels} for ids, labels in pairs]))


def split_into_microbatches(inputs: Mapping[str, torch.Tensor], token_budget: int) -> Iterator[dict[str, torch.Tensor]]:
    """Split a batch [B, T] into consecutive rows that hold at most `token_budget` tokens with padding, at least one row each.

    Columns that hold only padding are cut off.
    """
    lengths = inputs["attention_mask"].sum(1).tolist()
    start = 0
    while start < len(lengths):
        end = start + 1
        while end < len(lengths) and max(lengths[start : end + 1]) * (end + 1 - start) <= token_budget:
            end += 1
        yield {name: value_B_T[start:end, : max(lengths[start:end])] for name, value_B_T in inputs.items()}
        start = end


class PlanSFTTrainer(PlanTrainer, SFTTrainer):  # type: ignore[misc]
    """`SFTTrainer` over the steps of a plan. `train.microbatch_tokens` counts padding."""

    def __init__(
        self,
        *,
        steps: Sequence[Sequence[SFTExample]],
        config: OptimConfig,
        recorder: MetricsRecorder,
        model: Any,
        processing_class: Any,
        args: SFTConfig,
        **options: Any,
    ) -> None:
        self._recorder = recorder
        self._clock = StepClock()
        self._step_metrics: dict[str, Any] = {}
        super().__init__(
            model=model, args=args, processing_class=processing_class,
            train_dataset=build_step_dataset(steps, processing_class, end_of_turn_id(model, processing_class)),
            data_collator=_StepCollator(processing_class.pad_token_id), **options,
        )  # fmt: skip
        self._microbatch_tokens = choose_microbatch_tokens(config, self.model, completions_per_prompt=1, bfloat16=self.args.bf16)
        self._prepare_loop()

    def training_step(self, model: Any, inputs: dict[str, torch.Tensor], num_items_in_batch: Any = None) -> torch.Tensor:
        """Forward and backward passes of one optimizer step; returns its loss, the mean over its completion tokens.

        Raises PermixError if the loss is not finite.
        """
        label_count = (inputs["labels"] != IGNORE_INDEX).sum().to(self.accelerator.device)
        microbatches = split_into_microbatches(inputs, self._microbatch_tokens)
        # The count of the whole step, not of the microbatch: else tokens of a short microbatch would weigh more.
        losses = [super(PlanSFTTrainer, self).training_step(model, part, label_count) for part in microbatches]
        loss = torch.stack(losses).sum()
        check_finite(self, "loss", loss.item())
        examples = len(inputs["labels"])
        self._step_metrics = {
            "examples": examples,
            "completion_tokens": int(label_count) / examples,
            "tokens": int(label_count),
            "trained_tokens": int(inputs["attention_mask"].sum()),
            "microbatch_tokens": self._microbatch_tokens,
        }
        return loss

    def dev_eval_hooks(self) -> TrainerHooks:
        # Make the trial of shared prefixes now: once training has begun, the forward pass runs under autocast.
        supports_shared_prefix(unwrap_peft(self.unwrapped_model()))
        return super().dev_eval_hooks()

    @contextmanager
    def generation_network(self) -> Iterator[Any]:
        """The network in training, in evaluation mode and in the precision of its forward passes."""
        network = unwrap_peft(self.unwrapped_model())
        with eval_mode(network), self.accelerator.autocast():
            yield network

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        super().log(logs, start_time)
        if "loss" in logs:
            trl_metrics = self.state.log_history[-1]
            metrics = {ours: trl_metrics.get(theirs) for ours, theirs in SFT_METRIC_NAMES.items()}
            self._recorder.log_metrics(self.state.global_step, metrics | self._step_metrics | self._clock.lap())


SFT_METRIC_NAMES = {"loss": "loss", "grad_norm": "grad_norm", "lr": "learning_rate"}


def sft_arguments(config: OptimConfig, steps: int, out: Path) -> SFTConfig:
    """TRL's arguments for `steps` steps in each epoch on this machine. A row of the data set, and so a batch, is a step."""
    return SFTConfig(
        **common_arguments(config, steps * config.epochs, out), per_device_train_batch_size=1, gradient_accumulation_steps=1,
        train_sampling_strategy="sequential", max_length=None,
    )  # fmt: skip


def train_supervised(job: TrainJob, source: str, tokenizer: Any, run: RunDir, checkpoint: Path | None) -> PlanSFTTrainer:
    """Train the model `source`, or resume from `checkpoint`; returns the trainer, which holds the trained network."""
    config, out, done = job.config.train, run.path, checkpoint_step(checkpoint)
    window = context_window(source)
    dataset = load_sft_dataset(out) or build_sft_dataset(job.config, job.plan, run, tokenizer, window)
    release_memory()  # a teacher in this process is no longer needed
    steps = examples_by_step(dataset.examples)
    arguments = sft_arguments(config, len(steps), out / "checkpoints")
    with progress_bar(f"train {job.label}", arguments.max_steps, "steps") as bar:
        bar.start_at(done)
        network = load_trainable_model(source)
        stop_at_end_of_turn(network, tokenizer)
        seed_trainer(config.seed)
        trainer = PlanSFTTrainer(
            steps=steps, config=config, recorder=MetricsLogger(out, done, bar), args=arguments,
            model=network, processing_class=tokenizer, peft_config=build_lora_config(config),
        )  # fmt: skip
        run_trainer(trainer, job, checkpoint)
    return trainer
