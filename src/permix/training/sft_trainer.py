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

from permix.config import TrainConfig
from permix.inference.generation import stop_ids
from permix.inference.hf import PROBE, completion_ids, encode_chat
from permix.inference.shared_prefix import evaluating, shares_prompts
from permix.training.dev_eval_callback import ClockStarter, Probed
from permix.training.gradient_step import inner
from permix.training.run_log import StepClock
from permix.training.sft_data import Example
from permix.training.trainer_args import common_arguments

IGNORED = -100
"""The label of a token that is not learnt."""


class Recorder(Protocol):
    """Where a step's figures go."""

    def step(self, step: int, figures: dict[str, Any]) -> None: ...


class Tokens(NamedTuple):
    """One example as the model reads it."""

    input_ids: list[int]
    labels: list[int]


def end_of_turn(network: Any, tokenizer: Any) -> int:
    """The token that ends an answer: the first stop token that the chat template writes behind one, else the tokenizer's own."""
    chat = [{"role": "user", "content": "?"}, {"role": "assistant", "content": PROBE}]
    _, _, behind = tokenizer.apply_chat_template(chat, tokenize=False).partition(PROBE)
    stops = stop_ids(network, tokenizer)
    written = tokenizer(behind, add_special_tokens=False)["input_ids"]
    return int(next((one for one in written if one in stops), tokenizer.eos_token_id))


def tokens_of(example: Example, tokenizer: Any, end: int) -> Tokens:
    """Prompt and completion; the end only where the completion had one."""
    prompt = encode_chat(tokenizer, example.messages)
    completion = completion_ids(example.completion, tokenizer) + ([end] if example.ended else [])
    return Tokens(prompt + completion, [IGNORED] * len(prompt) + completion)


def dataset_of(steps: Sequence[Sequence[Example]], tokenizer: Any, end: int) -> Dataset:
    """One row a step: the tokens and labels of its examples."""
    tokens = [[tokens_of(example, tokenizer, end) for example in step] for step in steps]
    return Dataset.from_list(
        [{"input_ids": [one.input_ids for one in step], "labels": [one.labels for one in step]} for step in tokens]
    )


class _StepCollator:
    """The examples of one step, padded on the right to the longest of them."""

    def __init__(self, pad: int) -> None:
        self._collate = DataCollatorForLanguageModeling(pad_token_id=pad)

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        (step,) = rows
        pairs = zip(step["input_ids"], step["labels"], strict=True)
        return dict(self._collate([{"input_ids": ids, "labels": labels} for ids, labels in pairs]))


def micro_batches(inputs: Mapping[str, torch.Tensor], budget: int) -> Iterator[dict[str, torch.Tensor]]:
    """Consecutive rows, as many as fill `budget` tokens when padded to their longest, and at least one; no column only pads."""
    lengths = inputs["attention_mask"].sum(1).tolist()
    start = 0
    while start < len(lengths):
        end = start + 1
        while end < len(lengths) and max(lengths[start : end + 1]) * (end + 1 - start) <= budget:
            end += 1
        yield {name: value_B_T[start:end, : max(lengths[start:end])] for name, value_B_T in inputs.items()}
        start = end


class ExampleTrainer(SFTTrainer):  # type: ignore[misc]
    """`SFTTrainer` over the steps of a plan; up to `micro_tokens` tokens in one forward and backward pass."""

    def __init__(
        self, *, steps: Sequence[Sequence[Example]], micro_tokens: int, recorder: Recorder, model: Any, processing_class: Any,
        args: SFTConfig, **options: Any,
    ) -> None:  # fmt: skip
        self._micro_tokens, self._recorder = micro_tokens, recorder
        self._clock = StepClock()
        self._figures: dict[str, Any] = {}
        super().__init__(
            model=model, args=args, processing_class=processing_class,
            train_dataset=dataset_of(steps, processing_class, end_of_turn(model, processing_class)),
            data_collator=_StepCollator(processing_class.pad_token_id), **options,
        )  # fmt: skip
        self.remove_callback(PrinterCallback)
        self.add_callback(ClockStarter(self._clock))

    def training_step(self, model: Any, inputs: dict[str, torch.Tensor], num_items_in_batch: Any = None) -> torch.Tensor:
        """Forward and backward over the whole step; the loss of each part is its share of the step's mean."""
        learnt = (inputs["labels"] != IGNORED).sum().to(self.accelerator.device)
        cut = micro_batches(inputs, self._micro_tokens)
        losses = [super(ExampleTrainer, self).training_step(model, part, learnt) for part in cut]
        examples = len(inputs["labels"])
        self._figures = {
            "examples": examples,
            "completion_tokens": int(learnt) / examples,
            "tokens": int(learnt),
            "trained_tokens": int(inputs["attention_mask"].sum()),
        }
        return torch.stack(losses).sum()

    def probed(self) -> Probed:
        """This trainer, as `permix.training.dev_eval_callback` needs it. Called before training begins, while the network
        has one precision."""
        shares_prompts(inner(self._trained()))
        track = partial(Trainer.log, self)  # past what this class does with a step's own figures
        return Probed(self.processing_class, self._answering, self._trained, self._clock, track)

    def _trained(self) -> Any:
        return self.accelerator.unwrap_model(self.model)

    @contextmanager
    def _answering(self) -> Iterator[Any]:
        """The network in training, in evaluation mode and in the precision of its training."""
        network = inner(self._trained())
        with evaluating(network), self.accelerator.autocast():
            yield network

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        with self._clock.part("saving"):
            super()._save_checkpoint(model, trial)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        super().log(logs, start_time)
        if "loss" in logs:
            measured = self.state.log_history[-1]
            figures = {ours: measured.get(theirs) for ours, theirs in METRICS.items()}
            self._recorder.step(self.state.global_step, figures | self._figures | self._clock.lap())


METRICS = {"loss": "loss", "grad_norm": "grad_norm", "lr": "learning_rate"}


def sft_arguments(config: TrainConfig, steps: int, out: Path) -> SFTConfig:
    """TRL's arguments for `steps` steps an epoch on this machine. A row of the data set is a step, and so is a batch."""
    return SFTConfig(
        **common_arguments(config, steps * config.epochs, out), per_device_train_batch_size=1, gradient_accumulation_steps=1,
        train_sampling_strategy="sequential", max_length=None,
    )  # fmt: skip
