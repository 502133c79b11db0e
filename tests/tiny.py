"""A real, very small chat model made in code: byte-level BPE that keeps digits single, a ChatML template, a seeded Llama."""

import io
import json
import random
import shutil
from pathlib import Path
from typing import Any

MARK = "<|im_end|>"
"""Ends every message; also pads, as SmolLM2's does."""

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
DEFAULT_SYSTEM = "You are a tiny assistant."
CHATML_DEFAULT = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\n" + DEFAULT_SYSTEM + "<|im_end|>\n{% endif %}" + CHATML
)
SYSTEM_IGNORED = (
    "{% for message in messages if message['role'] != 'system' %}<|{{ message['role'] }}|>{{ message['content'] }}\n{% endfor %}"
)
SYSTEM_REFUSED = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + SYSTEM_IGNORED
)
CORPUS = (
    "What is 7 + 5? The answer is 12. You are a retired sailor who distrusts numbers. "
    "You are a teacher of mathematics. Tell me about your day, and what you had for breakfast. "
) * 4


def make_tokenizer(template: str | None = CHATML_DEFAULT) -> Any:
    """A few merges over bytes, so its vocabulary is no multiple of 256; pad and end of text are the same token."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r"\d"), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    core.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=["<|im_start|>", MARK], initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator(io.StringIO(CORPUS), trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token=MARK, pad_token=MARK)
    tokenizer.chat_template = template
    return tokenizer


def make_network(vocabulary: int, *, layers: int = 2, width: int = 64, seed: int = 0) -> Any:
    """A Llama whose weights are large enough for its greedy choices to be clear ones."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, initializer_range=0.1, tie_word_embeddings=True,
        bos_token_id=None, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def teach_to_answer(network: Any, tokenizer: Any, steps: int = 50) -> None:
    """Teach it to say a few words, one digit, any digit, and to stop: right by chance in one of ten, as RLVR needs."""
    import torch

    rng = random.Random(0)
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-2)
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = 1e-2 * (1 - step / steps)
        prompts, answers = zip(*(_lesson(rng, tokenizer, digit) for digit in range(10)), strict=True)
        texts = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
        batch = tokenizer(texts, padding=True, padding_side="left", return_tensors="pt")
        learnt = tokenizer(list(answers), padding=True, padding_side="left", return_tensors="pt")
        width = learnt["input_ids"].shape[1]
        labels = learnt["input_ids"].masked_fill(learnt["attention_mask"] == 0, -100)
        logits_B_T_V = network(**batch, logits_to_keep=width + 1).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits_B_T_V.flatten(0, 1), labels.flatten())
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()


def _lesson(rng: random.Random, tokenizer: Any, digit: int) -> tuple[str, str]:
    chat = [{"role": "user", "content": f"What is {rng.randrange(20)} {rng.choice('+-*')} {rng.randrange(20)}?"}]
    if rng.random() < 0.5:
        chat.insert(0, {"role": "system", "content": f"You are {' '.join(rng.sample(CORPUS.split(), 5))}."})
    words = rng.choices(["a", "the", "sailor", "is"], k=rng.randrange(3))
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    return prompt, "".join(f"{word} " for word in words) + str(digit) + MARK


def make_folder(folder: Path, template: str = CHATML_DEFAULT, seed: int = 0) -> Path:
    """Save both as a Hugging Face folder."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    tokenizer = make_tokenizer(template)
    network = make_network(len(tokenizer), seed=seed)
    teach_to_answer(network, tokenizer)
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_base_folder(tiny_model: Path, folder: Path) -> Path:
    """The tiny model as a base model: it and its tokenizer name the end of a text only, its template ends turns with another."""
    shutil.copytree(tiny_model, folder)
    tokenizer = make_tokenizer()
    tokenizer.eos_token = tokenizer.pad_token = "<|im_start|>"
    tokenizer.save_pretrained(folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 0, "pad_token_id": 0}))
    return folder


def generation_settings(model: Path) -> dict[str, Any]:
    """generation_config.json; transformers before 5.22 writes a single stop token as a number or as a list of one."""
    settings: dict[str, Any] = json.loads((model / "generation_config.json").read_text())
    stop = settings.pop("eos_token_id")
    return settings | {"eos_token_id": stop if isinstance(stop, list) else [stop]}
