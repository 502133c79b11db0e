"""Supervised fine-tuning by TRL's SFTTrainer: a step learns the examples of one step of the plan, in the plan's order.

What it changes in TRL, and why:
- a row of the data set is a whole step, and the step is cut into micro-batches here: steps have unequal numbers of examples, and
  TRL's batches would run across them. The loss is the mean over all completion tokens of the step, whatever the micro-batch;
- the prompt's tokens are those that the model is asked with in training by reward and in evaluation, and the completion's are
  its text and one stop token. TRL would tokenise the whole chat, and so also teach what a template writes behind the stop token,
  and drop the end of a prompt that the template renders otherwise before an answer;
- only the completion has labels; prompt and padding, which stands on the right, have none.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from datasets import Dataset
from transformers import PrinterCallback, Trainer
from trl import SFTConfig, SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from permix.config import OptimConfig
from permix.inference.generation import stop_token_ids
from permix.inference.hardware import release_memory
from permix.inference.hf import TEMPLATE_MARKER, context_window, encode_chat, encode_completion
from permix.inference.shared_prefix import eval_mode, supports_shared_prefix
from permix.progress import progress_bar
from permix.storage.run_dir import RunDir
from permix.training.callbacks import DevEvalCallback, StepClockCallback, TrainerHooks
from permix.training.checkpoints import build_lora_config, checkpoint_step, load_trainable_model, seed_trainer
from permix.training.gradient_step import unwrap_peft
from permix.training.job import TrainJob
from permix.training.run_log import MetricsLogger, StepClock
from permix.training.sft_data import SFTExample, build_sft_dataset, examples_by_step, load_sft_dataset
from permix.training.trainer_args import common_arguments

IGNORE_INDEX = -100
"""The label of a token that is not learnt."""


class MetricsRecorder(Protocol):
    """Where a step's figures go."""

    def log_metrics(self, step: int, metrics: dict[str, Any]) -> None: ...


class TokenizedExample(NamedTuple):
    """One example as the model reads it."""

    input_ids: list[int]
    labels: list[int]


def end_of_turn_id(network: Any, tokenizer: Any) -> int:
    """The token that ends an answer: the first stop token that the chat template writes behind one, else the tokenizer's own."""
    chat = [{"role": "user", "content": "?"}, {"role": "assistant", "content": TEMPLATE_MARKER}]
    _, _, behind = tokenizer.apply_chat_template(chat, tokenize=False).partition(TEMPLATE_MARKER)
    stops = stop_token_ids(network, tokenizer)
    written = tokenizer(behind, add_special_tokens=False)["input_ids"]
    return int(next((one for one in written if one in stops), tokenizer.eos_token_id))


def tokenize_example(example: SFTExample, tokenizer: Any, end_id: int) -> TokenizedExample:
    """Prompt and completion; the end only where the completion had one."""
    prompt = encode_chat(tokenizer, example.messages)
    completion = encode_completion(example.completion, tokenizer) + ([end_id] if example.ended else [])
    return TokenizedExample(prompt + completion, [IGNORE_INDEX] * len(prompt) + completion)


def build_step_dataset(steps: Sequence[Sequence[SFTExample]], tokenizer: Any, end_id: int) -> Dataset:
    """One row a step: the tokens and labels of its examples."""
    tokens = [[tokenize_example(example, tokenizer, end_id) for example in step] for step in steps]
    return Dataset.from_list(
        [{"input_ids": [one.input_ids for one in step], "labels": [one.labels for one in step]} for step in tokens]
    )


class _StepCollator:
    """The examples of one step, padded on the right to the longest of them."""

    def __init__(self, pad_token_id: int) -> None:
        self._collate = DataCollatorForLanguageModeling(pad_token_id=pad_token_id)

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        (step,) = rows
        pairs = zip(step["input_ids"], step["labels"], strict=True)
        return dict(self._collate([{"input_ids": ids, "labels": labels} for ids, labels in pairs]))


def split_into_microbatches(inputs: Mapping[str, torch.Tensor], token_budget: int) -> Iterator[dict[str, torch.Tensor]]:
    """Consecutive rows, as many as fill `token_budget` tokens when padded to their longest, and at least one; no column only
    pads."""
    lengths = inputs["attention_mask"].sum(1).tolist()
    start = 0
    while start < len(lengths):
        end = start + 1
        while end < len(lengths) and max(lengths[start : end + 1]) * (end + 1 - start) <= token_budget:
            end += 1
        yield {name: value_B_T[start:end, : max(lengths[start:end])] for name, value_B_T in inputs.items()}
        start = end


class PlanSFTTrainer(SFTTrainer):  # type: ignore[misc]
    """`SFTTrainer` over the steps of a plan; up to `microbatch_tokens` tokens in one forward and backward pass."""

    def __init__(
        self,
        *,
        steps: Sequence[Sequence[SFTExample]],
        microbatch_tokens: int,
        recorder: MetricsRecorder,
        model: Any,
        processing_class: Any,
        args: SFTConfig,
        **options: Any,
    ) -> None:
        self._microbatch_tokens, self._recorder = microbatch_tokens, recorder
        self._clock = StepClock()
        self._step_metrics: dict[str, Any] = {}
        super().__init__(
            model=model, args=args, processing_class=processing_class,
            train_dataset=build_step_dataset(steps, processing_class, end_of_turn_id(model, processing_class)),
            data_collator=_StepCollator(processing_class.pad_token_id), **options,
        )  # fmt: skip
        self.remove_callback(PrinterCallback)
        self.add_callback(StepClockCallback(self._clock))

    def training_step(self, model: Any, inputs: dict[str, torch.Tensor], num_items_in_batch: Any = None) -> torch.Tensor:
        """Forward and backward over the whole step; the loss of each part is its share of the step's mean."""
        learnt = (inputs["labels"] != IGNORE_INDEX).sum().to(self.accelerator.device)
        cut = split_into_microbatches(inputs, self._microbatch_tokens)
        losses = [super(PlanSFTTrainer, self).training_step(model, part, learnt) for part in cut]
        examples = len(inputs["labels"])
        self._step_metrics = {
            "examples": examples,
            "completion_tokens": int(learnt) / examples,
            "tokens": int(learnt),
            "trained_tokens": int(inputs["attention_mask"].sum()),
        }
        return torch.stack(losses).sum()

    def dev_eval_hooks(self) -> TrainerHooks:
        """This trainer, as `permix.training.callbacks` needs it. Called before training begins, while the network
        has one precision."""
        supports_shared_prefix(unwrap_peft(self._unwrapped_model()))
        track = partial(Trainer.log, self)  # past what this class does with a step's own figures
        return TrainerHooks(self.processing_class, self._generation_network, self._unwrapped_model, self._clock, track)

    def _unwrapped_model(self) -> Any:
        return self.accelerator.unwrap_model(self.model)

    @contextmanager
    def _generation_network(self) -> Iterator[Any]:
        """The network in training, in evaluation mode and in the precision of its training."""
        network = unwrap_peft(self._unwrapped_model())
        with eval_mode(network), self.accelerator.autocast():
            yield network

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        with self._clock.part("saving"):
            super()._save_checkpoint(model, trial)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        super().log(logs, start_time)
        if "loss" in logs:
            measured = self.state.log_history[-1]
            figures = {ours: measured.get(theirs) for ours, theirs in SFT_METRIC_NAMES.items()}
            self._recorder.log_metrics(self.state.global_step, figures | self._step_metrics | self._clock.lap())


SFT_METRIC_NAMES = {"loss": "loss", "grad_norm": "grad_norm", "lr": "learning_rate"}


def sft_arguments(config: OptimConfig, steps: int, out: Path) -> SFTConfig:
    """TRL's arguments for `steps` steps an epoch on this machine. A row of the data set is a step, and so is a batch."""
    return SFTConfig(
        **common_arguments(config, steps * config.epochs, out), per_device_train_batch_size=1, gradient_accumulation_steps=1,
        train_sampling_strategy="sequential", max_length=None,
    )  # fmt: skip


def train_supervised(job: TrainJob, source: str, tokenizer: Any, run: RunDir, checkpoint: Path | None) -> PlanSFTTrainer:
    """Train the model `source`, going on after `checkpoint`; returns the trainer, which holds the trained network."""
    config, out, done = job.config.train, run.path, checkpoint_step(checkpoint)
    window = context_window(source)
    dataset = load_sft_dataset(out) or build_sft_dataset(job.config, job.plan, run, tokenizer, window)
    release_memory()  # a teacher in this process is not needed any more
    steps = examples_by_step(dataset.examples)
    arguments = sft_arguments(config, len(steps), out / "checkpoints")
    with progress_bar(f"train {job.label}", arguments.max_steps, "steps") as shown:
        shown.start_at(done)
        network = load_trainable_model(source)
        seed_trainer(config.seed)
        trainer = PlanSFTTrainer(
            steps=steps, microbatch_tokens=config.microbatch_tokens, recorder=MetricsLogger(out, done, shown), args=arguments,
            model=network, processing_class=tokenizer, peft_config=build_lora_config(config),
        )  # fmt: skip
        if job.dev_eval is not None:
            trainer.add_callback(DevEvalCallback(job.dev_eval, done, trainer.dev_eval_hooks()))
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    return trainer
