"""Decoding: what a row says does not depend on who is beside it, on whose prompt was read for it, or on who has left."""

import random
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from itertools import pairwise
from typing import Any

import pytest
import torch

from permix.inference.chat_template import encode_chat
from permix.inference.generation import CompletionTokens, generate_tokens, stream_tokens
from permix.inference.sampler import SeededSampler, ThinkingBudget
from permix.inference.shared_prefix import decode_step, prefill, supports_shared_prefix
from permix.types import Message, Sampling
from tests.networks import NETWORKS
from tests.tiny import CHATML, make_network, make_tokenizer

GREEDY, SAMPLED = Sampling(max_new_tokens=16), Sampling(temperature=1.0, max_new_tokens=16)


def chat(text: str, persona: str = "") -> list[Message]:
    system = [Message(role="system", content=persona)] if persona else []
    return [*system, Message(role="user", content=text)]


CHATS = [chat(f"What is {n} + 5?", persona="You are a sailor. " * (n % 4)) for n in range(9)]


@pytest.fixture(scope="module")
def wild() -> tuple[Any, Any]:
    """An untaught network: what it says depends on the whole prompt, and it hardly ever stops."""
    tokenizer = make_tokenizer()
    tokenizer.padding_side = "left"
    return make_network(len(tokenizer)).eval(), tokenizer


@contextmanager
def plainly(network: Any) -> Iterator[None]:
    """The network as if it could not read a prompt once for many."""
    supports_shared_prefix(network)
    network.shared_prefix_enabled = False
    try:
        yield
    finally:
        network.shared_prefix_enabled = True


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED])
def test_long_completions_too_equal_themselves_in_a_batch(wild: tuple[Any, Any], sampling: Sampling) -> None:
    network, tokenizer = wild
    prompts = [encode_chat(tokenizer, messages) for messages in CHATS]
    together = generate_tokens(network, tokenizer, prompts, range(9), sampling)
    alone = [generate_tokens(network, tokenizer, [prompt], [seed], sampling)[0].token_ids for seed, prompt in enumerate(prompts)]
    assert [one.token_ids for one in together] == alone
    assert len({tuple(one.token_ids) for one in together}) > 1


def test_greedy_is_the_argmax_of_the_plain_forward_pass(wild: tuple[Any, Any]) -> None:
    network, tokenizer = wild
    prompt = encode_chat(tokenizer, CHATS[1])
    ids = list(prompt)
    for _ in range(8):
        ids.append(int(network(torch.tensor([ids])).logits[0, -1].argmax()))
    assert generate_tokens(network, tokenizer, [prompt], [0], Sampling(max_new_tokens=8))[0].token_ids == ids[len(prompt) :]


def test_stop_ids_of_the_generation_config_count_too(wild: tuple[Any, Any]) -> None:
    network, tokenizer = wild
    prompt = encode_chat(tokenizer, CHATS[1])
    free = generate_tokens(network, tokenizer, [prompt], [0], GREEDY)[0].token_ids
    own = network.generation_config.eos_token_id
    network.generation_config.eos_token_id = [own, free[5]]
    try:
        assert generate_tokens(network, tokenizer, [prompt], [0], GREEDY) == [
            CompletionTokens(free[: free.index(free[5]) + 1], [])
        ]
    finally:
        network.generation_config.eos_token_id = own


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED])
def test_a_models_own_generation_defaults_change_nothing_and_stay_as_they_were(wild: tuple[Any, Any], sampling: Sampling) -> None:
    network, tokenizer = wild
    prompt = encode_chat(tokenizer, CHATS[1])
    plain = generate_tokens(network, tokenizer, [prompt], [0], sampling)
    network.generation_config.update(repetition_penalty=5.0, do_sample=True, temperature=0.1, top_k=2, no_repeat_ngram_size=1)
    try:
        assert generate_tokens(network, tokenizer, [prompt], [0], sampling) == plain
        assert network.generation_config.repetition_penalty == 5.0
    finally:
        network.generation_config = type(network.generation_config)(eos_token_id=1, pad_token_id=1)


@pytest.mark.slow
def test_rows_of_one_prompt_are_decoded_as_if_each_had_its_own(wild: tuple[Any, Any]) -> None:
    network, tokenizer = wild
    prompts = [encode_chat(tokenizer, messages) for messages in CHATS[:3]]
    mixed = [prompts[n] for n in (2, 0, 1, 0, 2, 0, 0, 1)]
    sampling = Sampling(temperature=1.5, max_new_tokens=100)
    together = generate_tokens(network, tokenizer, mixed, range(8), sampling)
    assert [one.token_ids for one in together] == [
        generate_tokens(network, tokenizer, [prompt], [seed], sampling)[0].token_ids for seed, prompt in enumerate(mixed)
    ]
    lengths = {len(one.token_ids) for one in together}
    assert len(lengths) > 3, "rows are to leave at different times"
    assert max(lengths) > 64, "one is to outgrow the room it begins with"


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("batch_size", [1, 2, 5, 8])
def test_prompts_that_take_the_place_of_ended_rows_are_answered_as_alone(name: str, batch_size: int) -> None:
    """Rows of unlike lengths, in a window's network too; prompts are read while others are in the middle of their answers."""
    network, tokenizer = NETWORKS[name]().eval(), make_tokenizer()
    rng = random.Random(1)
    prompts = [[rng.randrange(320) for _ in range(rng.randrange(1, 24))] for _ in range(9)]
    rows = [prompts[n] for n in (0, 0, 1, 2, 2, 2, 3, 4, 5, 5, 6, 7, 8)]
    sampling = Sampling(temperature=1.5, max_new_tokens=80)
    stops = torch.arange(0, 320, 16).tolist()  # a token in 16 ends a row
    network.generation_config.eos_token_id = stops
    assert supports_shared_prefix(network)
    streamed = list(stream_tokens(network, tokenizer, rows, range(13), sampling, batch_size))
    alone = [generate_tokens(network, tokenizer, [row], [seed], sampling)[0] for seed, row in enumerate(rows)]
    assert sorted(index for index, _ in streamed) == list(range(13))
    for index, completion in streamed:
        assert completion.token_ids == alone[index].token_ids
        assert completion.logprobs == pytest.approx(alone[index].logprobs, abs=1e-4)
    lengths = [len(one.token_ids) for one in alone]
    assert len(set(lengths)) > 5, "rows are to leave at different times"
    if batch_size == 1:
        assert [index for index, _ in streamed] == list(range(13))


def test_under_autocast_too_where_keys_and_values_have_two_types(wild: tuple[Any, Any]) -> None:
    """A rotary embedding leaves the keys in float32, and the values are in bfloat16."""
    network, tokenizer = wild
    prompts = [encode_chat(tokenizer, messages) for messages in CHATS]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = dict(stream_tokens(network, tokenizer, prompts, range(9), GREEDY, 4))
    assert sorted(found) == list(range(9))
    assert all(len(one.token_ids) == 16 or one.token_ids[-1] == 1 for one in found.values())


@pytest.mark.parametrize("batch_size", [8, None])
def test_a_batch_is_filled_while_prompts_wait(
    wild: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch, batch_size: int | None
) -> None:
    """As soon as a quarter of its rows have ended; the mode of gradients is the caller's in between."""
    network, tokenizer = wild
    chosen = list[tuple[int, int]]()

    def choose(network: Any, prompts: list[list[int]], max_new_tokens: int) -> int:
        chosen.append((len(prompts), max_new_tokens))
        return 8

    monkeypatch.setattr("permix.inference.generation.pick_batch_size", choose)
    passes = list[tuple[str, int]]()

    def note_read(network: Any, prompts: Any, prompt_indices: list[int]) -> Any:
        passes.append(("read", len(prompt_indices)))
        return prefill(network, prompts, prompt_indices)

    def note_step(network: Any, kv_cache: Any, rows_N: torch.Tensor, token_N: torch.Tensor) -> torch.Tensor:
        passes.append(("step", len(rows_N)))
        return decode_step(network, kv_cache, rows_N, token_N)

    monkeypatch.setattr("permix.inference.generation.prefill", note_read)
    monkeypatch.setattr("permix.inference.generation.decode_step", note_step)
    monkeypatch.setattr(network.generation_config, "eos_token_id", list(range(0, 320, 16)))
    prompts = [encode_chat(tokenizer, chat(f"What is {n} + 5?")) for n in range(40)]
    ended = list[int]()
    sampling = Sampling(temperature=1.5, max_new_tokens=60)
    for index, _ in stream_tokens(network, tokenizer, prompts, range(40), sampling, batch_size):
        assert not torch.is_inference_mode_enabled()
        ended.append(index)
    assert sorted(ended) == list(range(40))
    n_waiting = 40
    for (kind, n_rows), following in pairwise(passes):
        n_waiting -= n_rows if kind == "read" else 0
        assert n_rows <= 8
        if kind == "step" and n_waiting:
            assert (following[0] == "read") == (n_rows <= 6)
            assert following[0] == "step" or following[1] == min(8 - n_rows, n_waiting)
    assert n_waiting == 0
    assert passes[-1] == ("step", 1)
    assert chosen == ([] if batch_size else [(40, 60)])


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(temperature=1, top_p=0.9, max_new_tokens=16)])
@pytest.mark.parametrize("name", NETWORKS)
def test_reading_prompts_once_says_what_transformers_says(name: str, sampling: Sampling) -> None:
    network, tokenizer = NETWORKS[name]().eval(), make_tokenizer()
    tokenizer.padding_side = "left"
    rng = random.Random(0)

    def text(length: int) -> list[int]:
        return [rng.randrange(320) for _ in range(length)]

    long = text(21)
    prompts = [text(3), long, long[:13] + text(8), long[:12], text(1)]  # the fourth is what two others begin with
    rows = [prompts[n] for n in (0, 0, 0, 1, 2, 2, 3, 3, 4)]
    assert supports_shared_prefix(network)
    shared = generate_tokens(network, tokenizer, rows, range(9), sampling)
    with plainly(network):
        plain = generate_tokens(network, tokenizer, rows, range(9), sampling)
    assert [one.token_ids for one in shared] == [one.token_ids for one in plain]
    for ours, theirs in zip(shared, plain, strict=True):
        assert ours.logprobs == pytest.approx(theirs.logprobs, abs=1e-3)
        assert len(ours.logprobs) == (0 if sampling.temperature == 0 else len(ours.token_ids))


def test_log_probabilities_are_the_forward_passes(wild: tuple[Any, Any]) -> None:
    network, tokenizer = wild
    prompt = encode_chat(tokenizer, CHATS[1])
    (drawn,) = generate_tokens(network, tokenizer, [prompt], [3], Sampling(temperature=0.7, max_new_tokens=12))
    with torch.no_grad():
        logits_T_V = network(torch.tensor([prompt + drawn.token_ids])).logits[0, len(prompt) - 1 : -1]
    expected = torch.log_softmax(logits_T_V / 0.7, -1).gather(1, torch.tensor(drawn.token_ids)[:, None])[:, 0]
    assert drawn.logprobs == pytest.approx(expected.tolist(), abs=1e-4)


# A bound on thinking

OPENS = CHATML.replace("<|im_start|>assistant\n", "<|im_start|>assistant\n<think>\n")
CLOSING = "\n</think>\n\n"


@pytest.fixture(scope="module")
def thinker() -> tuple[Any, Any]:
    """The untaught network, with a template that opens the thinking: it never closes it."""
    tokenizer = make_tokenizer(OPENS)
    tokenizer.padding_side = "left"
    return make_network(len(tokenizer)).eval(), tokenizer


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("limit", [0, 1, 5])
def test_thinking_over_its_budget_is_closed_and_the_answer_follows(thinker: tuple[Any, Any], limit: int, shared: bool) -> None:
    """As if the closing text were part of the prompt."""
    network, tokenizer = thinker
    closing = tokenizer(CLOSING)["input_ids"]
    prompts = [encode_chat(tokenizer, messages) for messages in CHATS]
    sampling = Sampling(max_new_tokens=limit + len(closing) + 6)
    with nullcontext() if shared else plainly(network):
        free = generate_tokens(network, tokenizer, prompts, range(9), sampling)
        bounded = generate_tokens(network, tokenizer, prompts, range(9), sampling, limit)
        begun = [[*prompt, *one.token_ids[:limit], *closing] for prompt, one in zip(prompts, free, strict=True)]
        answers = generate_tokens(network, tokenizer, begun, range(9), Sampling(max_new_tokens=6))
    for prompt, start, one, answer in zip(prompts, begun, bounded, answers, strict=True):
        assert [*prompt, *one.token_ids] == [*start, *answer.token_ids]
        assert one.thinking_cut


def test_a_bounded_row_does_not_depend_on_its_batch(thinker: tuple[Any, Any]) -> None:
    network, tokenizer = thinker
    prompts = [encode_chat(tokenizer, messages) for messages in CHATS]
    together = generate_tokens(network, tokenizer, prompts, range(9), SAMPLED, 3)
    alone = [generate_tokens(network, tokenizer, [prompt], [seed], SAMPLED, 3)[0] for seed, prompt in enumerate(prompts)]
    assert [(one.token_ids, one.thinking_cut) for one in together] == [(one.token_ids, one.thinking_cut) for one in alone]
    assert all(len(one.logprobs) == len(one.token_ids) for one in together)


def test_nothing_is_kept_of_rows_that_have_ended(thinker: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A call may have a million prompts; a row's tokens and uniform numbers are kept while it grows."""
    network, tokenizer = thinker
    made: list[SeededSampler] = []

    def make(*given: Any) -> SeededSampler:
        made.append(SeededSampler(*given))
        return made[-1]

    monkeypatch.setattr("permix.inference.generation.SeededSampler", make)
    prompts = [encode_chat(tokenizer, messages) for messages in CHATS]
    for n_ended, (_, completion) in enumerate(stream_tokens(network, tokenizer, prompts, range(9), SAMPLED, 3, 4), start=1):
        assert completion.thinking_cut
        assert made[0].budget is not None
        assert max(len(made[0].budget._rows), len(made[0]._uniforms)) <= min(3, 9 - n_ended + 2)
    assert made[0].budget is not None
    assert (made[0].budget._rows, made[0]._uniforms) == ({}, {})


def test_completions_that_have_ended_are_not_lost_when_the_next_pass_fails(
    wild: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    network, tokenizer = wild
    monkeypatch.setattr(network.generation_config, "eos_token_id", list(range(0, 320, 16)))
    prompts = [encode_chat(tokenizer, chat(f"What is {n} + 5?")) for n in range(12)]
    sampling = Sampling(temperature=1.5, max_new_tokens=60)
    lengths = [len(one.token_ids) for one in generate_tokens(network, tokenizer, prompts, range(12), sampling)]
    n_passes = 0

    def fail_at_the_fourth(*given: Any) -> torch.Tensor:
        nonlocal n_passes
        n_passes += 1
        if n_passes == 4:
            raise MemoryError
        return decode_step(*given)

    monkeypatch.setattr("permix.inference.generation.decode_step", fail_at_the_fourth)
    ended = set[int]()

    def collect() -> None:
        for index, _ in stream_tokens(network, tokenizer, prompts, range(12), sampling, 12):
            ended.add(index)

    with pytest.raises(MemoryError):
        collect()
    assert ended == {index for index, length in enumerate(lengths) if length <= 4}
    assert ended


def test_a_budget_that_is_not_reached_changes_nothing(wild: tuple[Any, Any], thinker: tuple[Any, Any]) -> None:
    for network, tokenizer, limit in [(*wild, 0), (*thinker, 16)]:  # no thinking; as much as there is room for
        prompts = [encode_chat(tokenizer, messages) for messages in CHATS]
        free = generate_tokens(network, tokenizer, prompts, range(9), SAMPLED)
        assert generate_tokens(network, tokenizer, prompts, range(9), SAMPLED, limit) == free


def make_bytewise_tokenizer(template: str) -> Any:
    """One token a byte."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = {one: number for number, one in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    core = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core)
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize(
    ("template", "sampled", "written"),
    [
        (OPENS, "ab\n</think>\n\n7", "ab\n</think>\n\n7"),  # closes within its budget of 12
        (OPENS, "a" * 20, "a" * 12 + CLOSING + "aaaa"),
        (CHATML, "So: <think>" + "b" * 20, "So: <think>" + "b" * 12 + CLOSING + "bbbb"),
        (CHATML, "<think>a</think>7", "<think>a</think>7"),
        (CHATML, "<think>abc</think>d<think>" + "e" * 20, "<think>abc</think>d<think>e" + CLOSING + "eeee"),
        (CHATML, "[THINK]" + "c" * 20, "[THINK]" + "c" * 12 + "[/THINK]cccc"),
        (CHATML, "◁think▷" + "c" * 20, "◁think▷" + "c" * 12 + "◁/think▷cccc"),
        (CHATML, "<|START_THINKING|>" + "c" * 20, "<|START_THINKING|>" + "c" * 12 + "<|END_THINKING|>cccc"),
        (
            CHATML,
            "<|channel|>analysis<|message|>" + "c" * 20,
            "<|channel|>analysis<|message|>" + "c" * 12 + "<|end|><|start|>assistant<|channel|>final<|message|>cccc",
        ),
        (CHATML, "<|channel>" + "c" * 20, "<|channel>" + "c" * 12 + "\n<channel|>cccc"),
        (CHATML, "<think >" + "c" * 20, "<think >" + "c" * 12 + CLOSING.replace(">", " >") + "cccc"),
        (CHATML, "<|channel|>final<|message|>" + "c" * 20, "<|channel|>final<|message|>" + "c" * 20),
        (CHATML, "no thinking at all, whatever its length", "no thinking at all, whatever its length"),
    ],
)
def test_thinking_is_bounded_however_it_is_opened(template: str, sampled: str, written: str) -> None:
    """One token a byte: 12 of them in all, tags not counted but for the part that closes a block."""
    tokenizer = make_bytewise_tokenizer(template)
    budget = ThinkingBudget(12, tokenizer, frozenset())
    ids = [budget.next_token(0, token) for token in tokenizer(sampled)["input_ids"]]
    shown = tokenizer.decode(ids)
    assert budget.cut_rows == ({0} if shown != sampled else set())
    assert shown.startswith(written[: len(shown)]) or written.startswith(shown)


def test_a_row_that_has_ended_is_left_alone() -> None:
    """In a padded batch it goes on drawing until the others have ended."""
    tokenizer = make_tokenizer(OPENS)
    budget = ThinkingBudget(2, tokenizer, frozenset({1}))
    assert [budget.next_token(0, one) for one in (9, 1, 9, 9, 9)] == [9, 1, 9, 9, 9]
    assert budget.cut_rows == set()
    assert [budget.next_token(1, one) for one in (9, 9, 1)] == [9, 9, tokenizer(CLOSING)["input_ids"][0]]
    assert budget.cut_rows == {1}
