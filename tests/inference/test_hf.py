"""The model in this process: batches change nothing, draws follow the distribution, and what cannot be used is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from permix.config import ModelConfig, ThinkingSwitch
from permix.errors import ConfigError
from permix.inference import load_model
from permix.inference.base import balanced_batches
from permix.inference.chat_template import (
    decode_completion,
    default_system_text,
    encode_chat,
    encode_completion,
    opened_thinking,
    takes_system_message,
)
from permix.inference.generation import generate_tokens
from permix.inference.hf import (
    HFModel,
    folder_fingerprint,
    load_causal_lm,
    load_empty_causal_lm,
    load_tokenizer,
)
from permix.inference.shared_prefix import prefill
from permix.progress import print_status_once
from permix.thinking import answer_of
from permix.types import Completion, Failure, Message, Request, Sampling, digest
from tests.tiny import (
    CHATML,
    CHATML_DEFAULT,
    DEFAULT_SYSTEM,
    MARK,
    SYSTEM_IGNORED,
    SYSTEM_REFUSED,
    make_base_folder,
    make_folder,
    make_tokenizer,
)

GREEDY, SAMPLED = Sampling(max_new_tokens=16), Sampling(temperature=1.0, max_new_tokens=16)


def ask(text: str, seed: int = 0, persona: str | None = None) -> Request:
    system = (Message(role="system", content=persona),) if persona else ()
    return Request((*system, Message(role="user", content=text)), seed)


REQUESTS = [ask(f"What is {n} + 5?", seed=n, persona="You are a sailor. " * (n % 4) or None) for n in range(9)]


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> HFModel:
    return HFModel(ModelConfig(name=str(tiny_model), dtype="float32", batch_size=4))


def answers(model: HFModel, requests: list[Request], sampling: Sampling) -> list[Completion | Failure]:
    found = dict(model.generate(requests, sampling))
    assert sorted(found) == list(range(len(requests)))
    return [found[place] for place in range(len(requests))]


@pytest.mark.slow
@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED, Sampling(temperature=0.7, top_p=0.8, max_new_tokens=16)])
def test_a_completion_alone_equals_the_same_one_in_any_batch(tiny_model: Path, model: HFModel, sampling: Sampling) -> None:
    alone = [answers(model, [request], sampling)[0] for request in REQUESTS]
    assert answers(model, REQUESTS, sampling) == alone
    assert answers(model, REQUESTS[::-1], sampling) == alone[::-1]
    wider = HFModel(ModelConfig(name=str(tiny_model), dtype="float32", batch_size=64))
    assert answers(wider, REQUESTS, sampling) == alone


def test_a_sample_follows_its_seed_and_nothing_else(model: HFModel) -> None:
    same, other, again = answers(model, [ask("What is 3 + 4?", seed) for seed in (1, 2, 1)], SAMPLED)
    assert same == again != other


def test_prompts_that_begin_alike_are_read_together(model: HFModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """With those of about their length, the longest first; as many as have ended, a quarter of a batch or more."""
    read = list[list[str]]()

    def note(network: Any, prompts: list[tuple[int, ...]], prompt_indices: list[int]) -> Any:
        read.append([model.tokenizer.decode(prompt) for prompt in prompts])
        return prefill(network, prompts, prompt_indices)

    monkeypatch.setattr("permix.inference.generation.prefill", note)
    sums = ("7 + 1", "3 + 2", "5 + 9")
    requests = [ask(f"What is {one}?{' Well?' * often}") for one in sums for often in (40, 0, 80)]
    answers(model, requests, GREEDY)
    assert len(read[0]) == 4
    lengths = [length for part in read for length in sorted((text.count("Well?") for text in part), reverse=True)]
    assert lengths == [80, 80, 80, 40, 40, 40, 0, 0, 0]
    assert len({text for part in read for text in part}) == 9


def test_batches_are_even_and_no_more_than_needed() -> None:
    assert [len(batch) for batch in balanced_batches(range(200), 64)] == [50] * 4
    assert balanced_batches(range(5), 2) == [range(0, 1), range(1, 3), range(3, 5)]
    assert balanced_batches(range(3), 64) == [range(3)]
    assert balanced_batches([], 64) == []


def test_longest_prompts_go_first_where_each_is_read_by_itself(model: HFModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model.network, "shared_prefix_enabled", False, raising=False)  # it is looked up when first asked
    monkeypatch.setattr(model.network.config, "_attn_implementation", "sdpa")
    results = [answer.result for answer in model.generate(REQUESTS, GREEDY)]
    lengths = [one.prompt_tokens or 0 for one in results if isinstance(one, Completion)]
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[0] > lengths[-1]


def test_a_completion_ends_at_its_first_stop_token_which_is_counted_and_not_shown(model: HFModel) -> None:
    prompt = encode_chat(model.tokenizer, ask("What is 1 + 1?").messages)
    ids_B = [one.token_ids for one in generate_tokens(model.network, model.tokenizer, [prompt] * 12, range(12), SAMPLED)]
    completions = answers(model, [ask("What is 1 + 1?", seed) for seed in range(12)], SAMPLED)
    stopped = [(ids, one) for ids, one in zip(ids_B, completions, strict=True) if ids[-1] == model.tokenizer.eos_token_id]
    assert len({len(ids) for ids, _ in stopped}) > 1, "all stop at one place, so no row was padded after its stop"
    for ids, one in stopped:
        assert ids.index(model.tokenizer.eos_token_id) == len(ids) - 1
        text = model.tokenizer.decode(ids[:-1])
        assert MARK not in text
        assert one == Completion(text=text, prompt_tokens=len(prompt), completion_tokens=len(ids), finish="stop")


def test_a_completion_that_is_cut_off_says_so(model: HFModel) -> None:
    (cut,) = answers(model, [ask("What is 1 + 1?")], Sampling(max_new_tokens=1))
    assert isinstance(cut, Completion)
    assert (cut.finish, cut.completion_tokens) == ("length", 1)


def test_a_prompt_too_long_fails_its_own_cell_only(model: HFModel) -> None:
    long = ask("What is 1 + 1? " * 200)
    first, second, third = answers(model, [ask("What is 1 + 1?"), long, ask("What is 2 + 2?")], GREEDY)
    assert isinstance(first, Completion)
    assert isinstance(third, Completion)
    assert isinstance(second, Failure)
    assert second.type == "PromptTooLong"
    tokens = len(encode_chat(model.tokenizer, long.messages))
    assert second.message == f"the prompt has {tokens} tokens; the model takes at most 496 with max_new_tokens = 16"


@pytest.mark.parametrize(
    ("template", "text"),
    [(CHATML, None), (CHATML_DEFAULT, DEFAULT_SYSTEM), (SYSTEM_IGNORED, None), (SYSTEM_REFUSED, None)],
)
def test_default_system_text(template: str, text: str | None) -> None:
    assert default_system_text(make_tokenizer(template)) == text


def test_default_system_text_of_a_model_is_what_stands_in_its_prompt(model: HFModel) -> None:
    prompt = model.tokenizer.decode(encode_chat(model.tokenizer, ask("Hello").messages))
    assert model.default_system == DEFAULT_SYSTEM
    assert prompt == f"<|im_start|>system\n{DEFAULT_SYSTEM}{MARK}\n<|im_start|>user\nHello{MARK}\n<|im_start|>assistant\n"


@pytest.mark.parametrize(
    ("template", "reason"),
    [("", "no chat template"), (SYSTEM_IGNORED, "takes no system message"), (SYSTEM_REFUSED, "takes no system message")],
)
def test_a_tokenizer_that_cannot_be_given_a_persona_is_refused(tmp_path: Path, template: str, reason: str) -> None:
    make_tokenizer(template or None).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=f"{reason}, so it cannot be given a persona"):
        encode_chat(load_tokenizer(str(tmp_path)), [{"role": "system", "content": "p"}, {"role": "user", "content": "q"}])


@pytest.mark.parametrize("template", [SYSTEM_IGNORED, SYSTEM_REFUSED])
def test_a_template_without_a_system_role_takes_a_persona_in_the_question(tmp_path: Path, template: str) -> None:
    make_tokenizer(template).save_pretrained(tmp_path)
    tokenizer = load_tokenizer(str(tmp_path))
    assert not takes_system_message(tokenizer)
    assert encode_chat(tokenizer, [{"role": "user", "content": "You are p. q"}])
    with pytest.raises(ConfigError, match=r"give --personas\.template in_question"):
        encode_chat(tokenizer, [{"role": "system", "content": "p"}, {"role": "user", "content": "q"}])


OPENS_THINKING = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|><think>\n"
    "{% if enable_thinking is defined and not enable_thinking %}\n</think>\n\n{% endif %}{% endif %}"
)


def test_thinking_that_the_template_opens_belongs_to_the_completion(tmp_path: Path) -> None:
    make_tokenizer(OPENS_THINKING).save_pretrained(tmp_path)
    assert opened_thinking(load_tokenizer(str(tmp_path))) == "<think>\n"
    assert opened_thinking(load_tokenizer(str(tmp_path), "on")) == "<think>\n"
    off = load_tokenizer(str(tmp_path), "off")
    assert opened_thinking(off) == ""
    shown = off.apply_chat_template([{"role": "user", "content": "q"}], tokenize=False, add_generation_prompt=True)
    assert shown.endswith("</think>\n\n")


def test_what_is_learnt_closes_the_thinking_that_the_template_opens(tmp_path: Path) -> None:
    make_tokenizer(OPENS_THINKING).save_pretrained(tmp_path)
    tokenizer = load_tokenizer(str(tmp_path))

    def learnt(text: str) -> str:
        return str(tokenizer.decode(encode_completion(text, tokenizer)))

    assert learnt("3 + 4 = 7.") == "\n</think>\n\n3 + 4 = 7."
    assert learnt("<think>\nhm\n</think>\n\n7") == "hm\n</think>\n\n7"
    assert learnt("hm\n</think>\n\n7") == "hm\n</think>\n\n7"
    plain = load_tokenizer(str(tmp_path), "off")
    assert plain.decode(encode_completion("3 + 4 = 7.", plain)) == "3 + 4 = 7."


def test_a_switch_that_the_template_does_not_have_is_refused(tmp_path: Path) -> None:
    make_tokenizer(SYSTEM_IGNORED).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"model\.thinking = 'off': the chat template of .* has no switch"):
        load_tokenizer(str(tmp_path), "off")


def test_a_base_model_stops_where_its_template_ends_a_turn(
    tiny_model: Path, tmp_path: Path, model: HFModel, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_base_folder(tiny_model, tmp_path / "base")
    print_status_once.cache_clear()
    config = ModelConfig(name=str(folder), dtype="float32")
    base, again = HFModel(config), HFModel(config)
    note = f"note: the chat template ends a turn with {MARK}, which is no stop token of the model; answers end there\n"
    assert capsys.readouterr().err == note
    assert answers(base, REQUESTS, SAMPLED) == answers(model, REQUESTS, SAMPLED)
    assert {one.finish for one in answers(base, REQUESTS, SAMPLED) if isinstance(one, Completion)} == {"stop"}
    assert base.fingerprint == again.fingerprint == digest(folder_fingerprint(folder), "torch.float32", "stops at 1")


def test_a_template_without_an_end_of_turn_changes_nothing(tiny_model: Path, tmp_path: Path) -> None:
    """Its answers run into the limit, and say so."""
    folder = make_base_folder(tiny_model, tmp_path / "base")
    (folder / "chat_template.jinja").write_text(CHATML_DEFAULT.replace(MARK, "[end]"))
    base = HFModel(ModelConfig(name=str(folder), dtype="float32"))
    assert base.fingerprint == digest(folder_fingerprint(folder), "torch.float32")
    assert base.network.generation_config.eos_token_id == 0
    found = answers(base, REQUESTS[:3], GREEDY)
    assert [one.is_cut_off for one in found if isinstance(one, Completion)] == [True] * 3


def test_a_date_belongs_to_what_a_model_is(tiny_model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    (folder / "chat_template.jinja").write_text("{{ strftime_now('%d.%-m.%y') }}" + CHATML)
    model = HFModel(ModelConfig(name=str(folder), dtype="float32"))
    assert model.fingerprint == digest(folder_fingerprint(folder), "torch.float32", "date 2024-07-26")
    assert model.content_addressed
    assert model.tokenizer.decode(encode_chat(model.tokenizer, ask("q").messages)).startswith("26.7.24<|im_start|>user")
    model.tokenizer.save_pretrained(tmp_path / "trained")
    assert load_tokenizer(str(tmp_path / "trained")).chat_template == model.tokenizer.chat_template


@pytest.mark.parametrize("thinking", ["default", "on"])
def test_what_is_written_before_a_template_changes_nothing_else(tmp_path: Path, thinking: ThinkingSwitch) -> None:
    """The line break that ends it is no part of the prompt, and the template's own first white space stays."""
    template = "\n  {% if enable_thinking is defined and enable_thinking %}on{% endif %}" + CHATML
    make_tokenizer(template).save_pretrained(tmp_path)
    shown = load_tokenizer(str(tmp_path), thinking).apply_chat_template([{"role": "user", "content": "q"}], tokenize=False)
    assert shown == ("\non" if thinking == "on" else "\n") + "<|im_start|>user\nq<|im_end|>\n"


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ({"tool_use": CHATML, "rag": CHATML}, r"none of its chat templates \(tool_use, rag\) is named default"),
        ("{{ raise_exception('no chat') }}", "refuses or leaves out the user's message"),
        ("{{ messages[0].text }}", "refuses or leaves out the user's message"),
    ],
)
def test_a_template_that_writes_no_question_is_refused(tmp_path: Path, template: Any, reason: str) -> None:
    make_tokenizer(template).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=reason):
        load_tokenizer(str(tmp_path))


def test_a_chat_that_the_template_refuses_is_named(tmp_path: Path) -> None:
    make_tokenizer(CHATML + "{% if messages | length > 1 %}{{ raise_exception('one at most') }}{% endif %}").save_pretrained(
        tmp_path
    )
    chat = [Message(role="user", content="q"), Message(role="assistant", content="a"), Message(role="user", content="q")]
    with pytest.raises(ConfigError, match="refuses a chat of the messages user, assistant, user: one at most"):
        encode_chat(load_tokenizer(str(tmp_path)), chat)


def test_tags_of_thinking_that_are_special_tokens_stay_in_the_text(tmp_path: Path) -> None:
    tokenizer = make_tokenizer(CHATML)
    tokenizer.add_special_tokens({"additional_special_tokens": ["[THINK]", "[/THINK]", "[pause]"]})
    ids = tokenizer("[THINK]hm[pause][/THINK]The answer is 12.<|im_end|>", add_special_tokens=False)["input_ids"]
    assert decode_completion(tokenizer, ids, {1}) == "[THINK]hm[/THINK]The answer is 12."
    assert decode_completion(tokenizer, ids[:-1], {1}) == "[THINK]hm[/THINK]The answer is 12."


@pytest.mark.parametrize(
    ("special", "generated", "text"),
    [
        (
            ["<|channel>", "<channel|>", "<pad>"],
            "<|channel>thought\nhm<pad><channel|>12",
            "<|channel>thought\nhm<channel|>12",
        ),
        (
            ["<|start|>", "<|channel|>", "<|message|>", "<|end|>"],
            "<|channel|>analysis<|message|>we add<|end|><|start|>assistant<|channel|>final<|message|>12",
            "<|channel|>analysis<|message|>we add<|start|>assistant<|channel|>final<|message|>12",
        ),
        (["<|message|>", "<|start|>"], "<|start|>a<|message|>12", "a12"),  # no channels
    ],
)
def test_thinking_between_special_tokens_is_no_part_of_the_answer(special: list[str], generated: str, text: str) -> None:
    tokenizer = make_tokenizer(CHATML)
    tokenizer.add_special_tokens({"additional_special_tokens": special})
    ids = tokenizer(f"{generated}<|im_end|>", add_special_tokens=False)["input_ids"]
    shown = decode_completion(tokenizer, ids, {1})
    assert shown == text
    assert answer_of(shown).endswith("12")
    assert "hm" not in answer_of(shown)
    assert "add" not in answer_of(shown)


def test_completions_of_such_a_model_start_with_the_tag(tiny_model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    (folder / "chat_template.jinja").write_text(OPENS_THINKING)
    model = load_model(ModelConfig(name=str(folder)))
    (found,) = [one.result for one in model.generate([ask("q")], Sampling(max_new_tokens=4))]
    assert isinstance(found, Completion)
    assert found.text.startswith("<think>\n")
    assert (found.answer, found.is_thinking_unclosed) == ("", True)


def test_a_name_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.name = .*nowhere.*no such folder"):
        load_model(ModelConfig(name=str(tmp_path / "nowhere")))


def test_a_folder_with_a_tokenizer_and_no_weights_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    (folder / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match="cannot be loaded"):
        load_model(ModelConfig(name=str(folder)))


def test_a_skeleton_is_the_network_but_for_its_weights(tiny_model: Path) -> None:
    whole, bare = load_causal_lm(str(tiny_model), torch.float32, "cpu"), load_empty_causal_lm(str(tiny_model), torch.float32)
    shapes = [{name: (one.shape, one.dtype) for name, one in network.named_parameters()} for network in (whole, bare)]
    assert shapes[0] == shapes[1]
    assert bare.lm_head.weight is bare.model.embed_tokens.weight, "tied as the whole one's are"
    for (name, ours), (_, theirs) in zip(bare.named_buffers(), whole.named_buffers(), strict=True):
        assert torch.equal(ours, theirs), name
    assert bare.generation_config.to_dict() == whole.generation_config.to_dict()
    assert bare.name_or_path == whole.name_or_path


@pytest.mark.slow
def test_fingerprint_changes_with_weights_and_template_and_with_nothing_else(tiny_model: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny_model, tmp_path / "copy"))
    (copy / "README.md").write_text("a card")
    assert folder_fingerprint(copy) == folder_fingerprint(tiny_model)
    template = copy / "chat_template.jinja"
    template.write_text(template.read_text() + " ")
    assert folder_fingerprint(copy) != folder_fingerprint(tiny_model)
    assert folder_fingerprint(make_folder(tmp_path / "other", seed=1)) != folder_fingerprint(tiny_model)


def test_fingerprint_of_a_model_tells_precisions_apart(tiny_model: Path, model: HFModel) -> None:
    assert HFModel(ModelConfig(name=str(tiny_model), dtype="float32", batch_size=1)).fingerprint == model.fingerprint
    assert HFModel(ModelConfig(name=str(tiny_model), dtype="bfloat16")).fingerprint != model.fingerprint


def test_a_tokenizer_without_padding_pads_with_its_end(tmp_path: Path) -> None:
    make_tokenizer().save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    del settings["pad_token"]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = load_tokenizer(str(tmp_path))
    assert (tokenizer.pad_token, tokenizer.padding_side) == (MARK, "left")
