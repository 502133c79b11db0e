"""The model in this process: batches change nothing, draws follow the distribution, and what cannot be used is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from permix.config import ModelConfig
from permix.errors import ConfigError, PermixError
from permix.models import open_model
from permix.models.hf import (
    HFModel,
    SeededSampler,
    _invert,
    decode,
    default_system_text,
    draw,
    encode_chat,
    folder_fingerprint,
    load_tokenizer,
)
from permix.types import Completion, Failure, Message, Request, Sampling
from tests.tiny import (
    CHATML,
    CHATML_DEFAULT,
    DEFAULT_SYSTEM,
    MARK,
    SYSTEM_IGNORED,
    SYSTEM_REFUSED,
    make_folder,
    make_network,
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


@pytest.fixture(scope="module")
def wild() -> tuple[Any, Any]:
    """An untaught network: what it says depends on the whole prompt, and it hardly ever stops."""
    tokenizer = make_tokenizer()
    tokenizer.padding_side = "left"
    return make_network(len(tokenizer)).eval(), tokenizer


def answers(model: HFModel, requests: list[Request], sampling: Sampling) -> list[Completion | Failure]:
    found = dict(model.complete(requests, sampling))
    assert sorted(found) == list(range(len(requests)))
    return [found[place] for place in range(len(requests))]


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED, Sampling(temperature=0.7, top_p=0.8, max_new_tokens=16)])
def test_a_completion_alone_equals_the_same_one_in_any_batch(tiny_model: Path, model: HFModel, sampling: Sampling) -> None:
    alone = [answers(model, [request], sampling)[0] for request in REQUESTS]
    assert answers(model, REQUESTS, sampling) == alone
    assert answers(model, REQUESTS[::-1], sampling) == alone[::-1]
    wider = HFModel(ModelConfig(name=str(tiny_model), dtype="float32", batch_size=64))
    assert answers(wider, REQUESTS, sampling) == alone


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED])
def test_long_completions_too_equal_themselves_in_a_batch(wild: tuple[Any, Any], sampling: Sampling) -> None:
    network, tokenizer = wild
    prompts = [encode_chat(tokenizer, request.messages) for request in REQUESTS]
    together = decode(network, tokenizer, prompts, range(9), sampling)
    assert together == [decode(network, tokenizer, [prompt], [seed], sampling)[0] for seed, prompt in enumerate(prompts)]
    assert len({tuple(ids) for ids in together}) > 1


def test_a_sample_follows_its_seed_and_nothing_else(model: HFModel) -> None:
    same, other, again = answers(model, [ask("What is 3 + 4?", seed) for seed in (1, 2, 1)], SAMPLED)
    assert same == again != other


def test_longest_prompts_go_first(model: HFModel) -> None:
    results = [answer.result for answer in model.complete(REQUESTS, GREEDY)]
    lengths = [one.prompt_tokens for one in results if isinstance(one, Completion)]
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[0] > lengths[-1]


def test_greedy_is_the_argmax_of_the_plain_forward_pass(wild: tuple[Any, Any]) -> None:
    network, tokenizer = wild
    prompt = encode_chat(tokenizer, REQUESTS[1].messages)
    ids = list(prompt)
    for _ in range(8):
        ids.append(int(network(torch.tensor([ids])).logits[0, -1].argmax()))
    assert decode(network, tokenizer, [prompt], [0], Sampling(max_new_tokens=8)) == [ids[len(prompt) :]]


def test_a_completion_ends_at_its_first_stop_token_which_is_counted_and_not_shown(model: HFModel) -> None:
    prompt = encode_chat(model.tokenizer, ask("What is 1 + 1?").messages)
    ids_B = decode(model.network, model.tokenizer, [prompt] * 12, range(12), SAMPLED)
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


def test_stop_ids_of_the_generation_config_count_too(wild: tuple[Any, Any]) -> None:
    network, tokenizer = wild
    prompt = encode_chat(tokenizer, REQUESTS[1].messages)
    (free,) = decode(network, tokenizer, [prompt], [0], GREEDY)
    own = network.generation_config.eos_token_id
    network.generation_config.eos_token_id = [own, free[5]]
    try:
        assert decode(network, tokenizer, [prompt], [0], GREEDY) == [free[: free.index(free[5]) + 1]]
    finally:
        network.generation_config.eos_token_id = own


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED])
def test_a_models_own_generation_defaults_change_nothing_and_stay_as_they_were(wild: tuple[Any, Any], sampling: Sampling) -> None:
    network, tokenizer = wild
    prompt = encode_chat(tokenizer, REQUESTS[1].messages)
    plain = decode(network, tokenizer, [prompt], [0], sampling)
    network.generation_config.update(repetition_penalty=5.0, do_sample=True, temperature=0.1, top_k=2, no_repeat_ngram_size=1)
    try:
        assert decode(network, tokenizer, [prompt], [0], sampling) == plain
        assert network.generation_config.repetition_penalty == 5.0
    finally:
        network.generation_config = type(network.generation_config)(eos_token_id=1, pad_token_id=1)


def test_a_prompt_too_long_fails_its_own_cell_only(model: HFModel) -> None:
    long = ask("What is 1 + 1? " * 200)
    first, second, third = answers(model, [ask("What is 1 + 1?"), long, ask("What is 2 + 2?")], GREEDY)
    assert isinstance(first, Completion)
    assert isinstance(third, Completion)
    assert isinstance(second, Failure)
    assert second.type == "PromptTooLong"
    tokens = len(encode_chat(model.tokenizer, long.messages))
    assert second.message == f"the prompt has {tokens} tokens; 496 fit beside 16 new ones"


def test_draws_follow_the_distribution() -> None:
    probs_V = torch.softmax(torch.linspace(-2, 2, 600), dim=0)
    count = 100_000
    uniform_B = torch.rand(count, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    drawn_B = torch.cat([draw(probs_V.expand(len(part), -1), part, 1.0) for part in torch.chunk(uniform_B, 5)])
    expected_V = count * probs_V.double()
    chi_square = float(((torch.bincount(drawn_B, minlength=600) - expected_V) ** 2 / expected_V).sum())
    assert chi_square == pytest.approx(599, abs=5 * (2 * 599) ** 0.5), "mean and standard deviation of chi-square: 599, 34.6"


def test_draw_keeps_the_nucleus_worked_by_hand() -> None:
    # Sorted .5 .3 .15 .05: up to .79 only .5 falls short of the rest, so tokens 2 and 0 stay, as 5/8 and 3/8.
    probs_B_V = torch.tensor([[0.3, 0.05, 0.5, 0.15]]).expand(4, -1)
    uniform_B = torch.tensor([0.0, 0.624, 0.626, 0.999], dtype=torch.float64)
    assert draw(probs_B_V, uniform_B, 0.79).tolist() == [2, 2, 0, 0]
    assert draw(probs_B_V, uniform_B, 0.51).tolist() == [2, 2, 0, 0]
    assert draw(probs_B_V, uniform_B, 0.49).tolist() == [2, 2, 2, 2]
    assert draw(probs_B_V, uniform_B, 0.01).tolist() == [2, 2, 2, 2], "the likeliest token always stays"
    assert draw(probs_B_V, torch.tensor([0.0, 0.299, 0.301, 0.999], dtype=torch.float64), 1.0).tolist() == [0, 0, 1, 3]


ALMOST_ONE = 1 - 2.0**-53


@pytest.mark.parametrize("size", [1, 3, 255, 256, 257, 700])
def test_the_ends_of_the_distribution_are_its_first_and_last_token_of_any_mass(size: int) -> None:
    mass_B_V = torch.full((2, size), 0.1)
    ends_B = torch.tensor([0.0, ALMOST_ONE], dtype=torch.float64)
    assert _invert(mass_B_V, ends_B).tolist() == [0, size - 1]


def test_a_token_without_mass_is_never_drawn() -> None:
    mass_V = torch.zeros(1000)
    mass_V[[3, 255, 256, 700, 701]] = 0.2
    uniform_B = torch.tensor([0.0, 0.19, 0.2, 0.4, 0.6, 0.8, 0.81, ALMOST_ONE], dtype=torch.float64)
    assert set(_invert(mass_V.expand(8, -1), uniform_B).tolist()) == {3, 255, 256, 700, 701}
    many_B = torch.rand(5000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert set(_invert(mass_V.expand(5000, -1), many_B).tolist()) == {3, 255, 256, 700, 701}


def test_rounding_never_draws_past_the_last_token_of_any_mass() -> None:
    # Masses so unequal that a block's sum and its running sum differ in their last bits.
    mass_B_V = torch.softmax(10 * torch.randn(3000, 300, generator=torch.Generator().manual_seed(0)), dim=-1)
    mass_B_V[:, 290:] = 0
    drawn_B = _invert(mass_B_V, torch.full((3000,), ALMOST_ONE, dtype=torch.float64))
    assert int(drawn_B.max()) <= 289
    assert bool((mass_B_V.gather(1, drawn_B[:, None]) > 0).all())


def test_temperature_divides_the_logits() -> None:
    logits_B_V = torch.tensor([[2.0, 0.0]]).expand(4000, -1)
    seeds = range(4000)
    width = torch.zeros(4000, 3, dtype=torch.long)
    for temperature, expected in ((1.0, 0.8808), (2.0, 0.7311), (0.5, 0.9820)):  # sigmoid(2 / temperature)
        sampler = SeededSampler(seeds, Sampling(temperature=temperature, max_new_tokens=1), prompt_width=3)
        chosen_B = sampler(width, logits_B_V).argmax(-1)
        assert float((chosen_B == 0).double().mean()) == pytest.approx(expected, abs=0.03)


@pytest.mark.parametrize("top_p", [1.0, 0.9])
def test_a_diverged_model_is_named_as_one(top_p: float) -> None:
    with pytest.raises(PermixError, match="diverged"):
        draw(torch.full((1, 300), torch.nan), torch.tensor([0.5], dtype=torch.float64), top_p)


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
        load_tokenizer(str(tmp_path))


def test_a_name_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.name = .*nowhere.*no such folder"):
        open_model(ModelConfig(name=str(tmp_path / "nowhere")))


def test_a_folder_with_a_tokenizer_and_no_weights_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    (folder / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match="cannot be loaded"):
        open_model(ModelConfig(name=str(folder)))


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
