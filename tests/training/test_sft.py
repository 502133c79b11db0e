"""The supervised trainer: the loss is the cross-entropy of the completions' tokens alone, step by step of the plan."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from permix.config import OptimConfig
from permix.errors import PermixError
from permix.inference.chat_template import encode_chat
from permix.inference.generation import end_of_turn_id
from permix.inference.hf import load_causal_lm, load_tokenizer
from permix.training.sft_data import SFTExample
from permix.training.sft_trainer import (
    PlanSFTTrainer,
    _StepCollator,
    sft_arguments,
    split_into_microbatches,
    tokenize_example,
)
from permix.types import Message
from tests.tiny import CHATML, MARK, SYSTEM_IGNORED, make_network, make_tokenizer

QUICK = OptimConfig(lr=1e-2, precision="float32", save_every=1000)
ANSWERS = ("7 + 5 = 12.", "3.", "the answer is 4", "1 + 1 = 2.", "a sailor is 9")


def example(number: int, *, step: int = 0, persona: str | None = None, ended: bool = True) -> SFTExample:
    user = Message(role="user", content=f"What is {number} + {number}?")
    system = [Message(role="system", content=f"You are {persona}.")] if persona else []
    return SFTExample(
        step=step, group=number, persona_id=persona, question_id=f"q{number}", gold="0", messages=(*system, user),
        completion=ANSWERS[number % 5], ended=ended,
    )  # fmt: skip


STEP = [example(0), example(1, persona="a sailor"), example(2, ended=False), example(3, persona="a poet"), example(4)]
"""Prompts and completions of unequal lengths; one completion was cut off."""


class Notes:
    """A recorder that keeps everything."""

    def __init__(self) -> None:
        self.figures: list[dict[str, Any]] = []

    def log_metrics(self, step: int, metrics: dict[str, Any]) -> None:
        assert step == len(self.figures) + 1
        self.figures.append(metrics)


class Watched(PlanSFTTrainer):
    """Keeps the tokens of every step."""

    stepped: list[list[list[int]]]

    def training_step(self, model: Any, inputs: dict[str, torch.Tensor], num_items_in_batch: Any = None) -> torch.Tensor:
        mask_B_T = inputs["attention_mask"]
        rows = [ids[mask == 1].tolist() for ids, mask in zip(inputs["input_ids"], mask_B_T, strict=True)]
        self.stepped = [*getattr(self, "stepped", []), rows]
        return super().training_step(model, inputs, num_items_in_batch)


def trainer_of(
    tiny_model: Path, out: Path, steps: Sequence[Sequence[SFTExample]], microbatch_tokens: int = 256, config: OptimConfig = QUICK
) -> tuple[Watched, Notes]:
    torch.set_num_threads(1)
    notes, config = Notes(), config.model_copy(update={"microbatch_tokens": microbatch_tokens})
    trainer = Watched(
        steps=steps, config=config, recorder=notes, args=sft_arguments(config, len(steps), out),
        model=load_causal_lm(str(tiny_model), torch.float32, "cpu").train(), processing_class=load_tokenizer(str(tiny_model)),
    )  # fmt: skip
    return trainer, notes


def loss_by_hand(network: Any, tokenizer: Any, examples: Sequence[SFTExample]) -> torch.Tensor:
    """Each example alone and without padding: minus the log-probability of its completion's tokens, over all their number."""
    total, tokens = torch.zeros(()), 0
    for one in examples:
        prompt = encode_chat(tokenizer, one.messages)
        text = tokenizer(one.completion, add_special_tokens=False)["input_ids"]
        completion = [*text, tokenizer.convert_tokens_to_ids(MARK)] if one.ended else text
        logits_T_V = network(input_ids=torch.tensor([prompt + completion])).logits[0].float()
        for place, token in enumerate(completion, start=len(prompt) - 1):
            total = total - torch.log_softmax(logits_T_V[place], dim=-1)[token]
        tokens += len(completion)
    return total / tokens


def spoil_step(trainer: PlanSFTTrainer, step: int, what: str) -> None:
    """Make the loss of one step, or one number of its gradient, NaN."""
    original = trainer.compute_loss

    def compute_loss(model: Any, *arguments: Any, **options: Any) -> Any:
        loss = original(model, *arguments, **options)
        if trainer.state.global_step + 1 != step:
            return loss
        if what == "loss":
            return loss * float("nan")
        first = next(model.parameters())
        first.register_hook(lambda gradient: gradient * float("nan"))
        return loss

    trainer.compute_loss = compute_loss


def gradient(model: Any) -> torch.Tensor:
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


def test_an_example_is_the_prompt_that_is_asked_its_answer_and_one_end(tiny_model: Path) -> None:
    tokenizer = load_tokenizer(str(tiny_model))
    end = tokenizer.convert_tokens_to_ids(MARK)
    asked = encode_chat(tokenizer, STEP[1].messages)
    ids, labels = tokenize_example(STEP[1], tokenizer, end)
    assert ids[: len(asked)] == asked
    assert tokenizer.decode(ids[len(asked) :]) == f"3.{MARK}"
    assert labels == [-100] * len(asked) + ids[len(asked) :]
    assert "You are a sailor." in tokenizer.decode(ids)
    cut_off = tokenize_example(STEP[2], tokenizer, end)
    assert tokenizer.decode([one for one in cut_off.labels if one >= 0]) == "the answer is 4"


@pytest.mark.parametrize("template", [CHATML, SYSTEM_IGNORED], ids=["written by the template", "not written by it"])
def test_the_end_of_an_answer_is_what_a_rollout_stops_at(template: str) -> None:
    tokenizer = make_tokenizer(template)
    network = make_network(len(tokenizer))
    assert end_of_turn_id(network, tokenizer) == tokenizer.convert_tokens_to_ids(MARK)


def test_an_end_of_turn_that_is_not_the_end_of_text_is_found_in_the_template() -> None:
    """As Gemma's: the tokenizer's own end is another token than the one that ends a message."""
    tokenizer = make_tokenizer(CHATML)
    network = make_network(len(tokenizer))
    network.generation_config.eos_token_id = [0, 1]
    tokenizer.eos_token = "<|im_start|>"
    assert end_of_turn_id(network, tokenizer) == tokenizer.convert_tokens_to_ids(MARK) == 1


def test_padding_stands_on_the_right_and_is_not_learnt_though_it_is_the_end_token() -> None:
    rows = [{"input_ids": [[5, 6, 7, 1], [8, 1]], "labels": [[-100, 6, 7, 1], [-100, 1]]}]
    batch = _StepCollator(pad_token_id=1)(rows)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 1], [8, 1, 1, 1]]
    assert batch["labels"].tolist() == [[-100, 6, 7, 1], [-100, 1, -100, -100]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]


def test_micro_batches_leave_out_nothing_but_padding() -> None:
    rows = [{"input_ids": [[5, 1], [8, 6, 1], [9, 6, 7, 1]], "labels": [[-100, 1], [-100, 6, 1], [-100, 6, 7, 1]]}]
    assert len(list(split_into_microbatches(_StepCollator(pad_token_id=1)(rows), 12))) == 1
    assert len(list(split_into_microbatches(_StepCollator(pad_token_id=1)(rows), 1))) == 3, "a row over the budget stands alone"
    parts = list(split_into_microbatches(_StepCollator(pad_token_id=1)(rows), 7))
    assert [part["input_ids"].tolist() for part in parts] == [[[5, 1, 1], [8, 6, 1]], [[9, 6, 7, 1]]]
    assert [part["labels"].tolist() for part in parts] == [[[-100, 1, -100], [-100, 6, 1]], [[-100, 6, 7, 1]]]
    assert parts[0]["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]


@pytest.mark.parametrize("micro_tokens", [1, 60, 120, 1000])
def test_loss_and_gradient_are_those_of_the_completions_alone(tiny_model: Path, tmp_path: Path, micro_tokens: int) -> None:
    trainer, _ = trainer_of(tiny_model, tmp_path, [STEP], micro_tokens)
    inputs = trainer.data_collator([trainer.train_dataset[0]])
    loss = trainer.training_step(trainer.model, inputs)
    ours = gradient(trainer.model)
    network = load_causal_lm(str(tiny_model), torch.float32, "cpu")
    expected = loss_by_hand(network, trainer.processing_class, STEP)
    torch.autograd.backward(expected)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)
    assert float(gradient(network).abs().max()) > 1e-2
    assert float((ours - gradient(network)).abs().max()) <= 1e-6


def test_the_prompt_is_read_and_not_learnt(tiny_model: Path, tmp_path: Path) -> None:
    """With the end of the answer as the only label, the loss is that one token's."""
    trainer, _ = trainer_of(tiny_model, tmp_path, [STEP[:1]])
    inputs = trainer.data_collator([trainer.train_dataset[0]])
    inputs["labels"][0, :-1] = -100
    logits_T_V = load_causal_lm(str(tiny_model), torch.float32, "cpu")(input_ids=inputs["input_ids"]).logits[0]
    expected = -torch.log_softmax(logits_T_V[-2], dim=-1)[inputs["input_ids"][0, -1]]
    assert trainer.training_step(trainer.model, inputs).item() == pytest.approx(expected.item(), abs=1e-6)


def test_steps_come_in_the_plans_order_whole_and_again_in_every_epoch(tiny_model: Path, tmp_path: Path) -> None:
    steps = [[example(4, step=0), example(1, step=0)], [example(0, step=3)], [example(n, step=4) for n in (2, 3, 0)]]
    trainer, notes = trainer_of(tiny_model, tmp_path, steps, 64, QUICK.model_copy(update={"epochs": 2}))
    trainer.train()
    end = end_of_turn_id(trainer.model, trainer.processing_class)
    expected = [[tokenize_example(one, trainer.processing_class, end).input_ids for one in step] for step in steps]
    assert trainer.stepped == expected * 2
    assert [figures["examples"] for figures in notes.figures] == [2, 1, 3] * 2


def test_a_steps_figures(tiny_model: Path, tmp_path: Path) -> None:
    trainer, notes = trainer_of(tiny_model, tmp_path, [STEP, STEP[:2]], 64)
    before = loss_by_hand(load_causal_lm(str(tiny_model), torch.float32, "cpu"), trainer.processing_class, STEP)
    trainer.train()
    first, second = notes.figures
    learnt = [[one for one in row["labels"][0] if one >= 0] for row in trainer.train_dataset]
    assert first["loss"] == pytest.approx(before.item(), abs=1e-6)
    assert second["loss"] < first["loss"]
    assert (first["examples"], second["examples"]) == (5, 2)
    assert second["tokens"] == len(learnt[1]) + 3  # "3.": two tokens and the end
    assert second["completion_tokens"] == second["tokens"] / 2
    assert first["trained_tokens"] == sum(map(len, trainer.stepped[0]))
    assert first["microbatch_tokens"] == 64
    assert first["lr"] == 1e-2
    assert first["grad_norm"] > 0
    assert set(first["seconds"]) == set(first["cpu_seconds"]) == {"generation", "verification", "dev_eval", "saving", "training"}


@pytest.mark.parametrize("spoilt", ["loss", "norm of the gradient"])
def test_a_loss_or_gradient_that_is_no_number_stops_the_run_before_its_step(
    tiny_model: Path, tmp_path: Path, spoilt: str
) -> None:
    """The second step is spoilt: the weights stay those of the first, and no line of the log hides it."""
    trainer, notes = trainer_of(tiny_model, tmp_path, [STEP, STEP[:2], STEP], config=QUICK.model_copy(update={"save_every": 1}))
    spoil_step(trainer, 2, spoilt)
    with pytest.raises(PermixError) as stopped:
        trainer.train()
    assert str(stopped.value) == (
        f"step 2: the {spoilt} is nan; training has diverged. Start a new run in another folder (--out NEW) with a smaller "
        f"train.lr; --model.name {tmp_path / 'checkpoint-1'} begins it with the weights of the last checkpoint"
    )
    assert len(notes.figures) == 1
    begun = load_causal_lm(str(tmp_path / "checkpoint-1"), torch.float32, "cpu")
    for ours, theirs in zip(trainer.model.parameters(), begun.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.slow
def test_what_is_learnt_is_said(tiny_model: Path, tmp_path: Path) -> None:
    config = QUICK.model_copy(update={"lr": 3e-3, "epochs": 60})
    trainer, notes = trainer_of(tiny_model, tmp_path, [STEP], config=config)
    trainer.train()
    assert notes.figures[-1]["loss"] < 0.1 < 1 < notes.figures[0]["loss"]
    network, tokenizer = trainer.model.eval(), trainer.processing_class
    prompt = torch.tensor([encode_chat(tokenizer, STEP[1].messages)], device=network.device)
    said = network.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=8, do_sample=False)[0]
    assert tokenizer.decode(said[prompt.shape[1] :]) == f"3.{MARK}"
