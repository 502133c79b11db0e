"""Character replay: the KL by hand, every answer as often as the next, and a term that pulls back to the base model."""

import copy
import math
from collections import Counter
from itertools import pairwise
from typing import Any

import pytest
import torch

from permix.config import CharacterConfig, OptimConfig
from permix.errors import ConfigError
from permix.inference.shared_prefix import PromptGroup
from permix.training.loss import (
    REPLAY_TOP_K,
    CharacterReplay,
    answer_logits,
    build_character_replay,
    forward_kl,
    log_remaining_mass,
    samples_from_cells,
)
from permix.training.rollouts import Sample
from permix.types import Cell, Completion, Message
from tests.networks import NETWORKS
from tests.tiny import make_network, make_tokenizer


def answers(count: int) -> list[Sample]:
    return [Sample((5, 6, 7 + number), [8, 9, 10 + number], 0.0) for number in range(count)]


def test_the_divergence_by_hand() -> None:
    # Base (1/2, 1/4 | 1/4 for the rest), trained (1/4, 1/4 | 1/2): 1/2 ln 2 + 0 - 1/4 ln 2 = 1/4 ln 2.
    logits_M_V = torch.log(torch.tensor([[0.25, 0.25, 0.3, 0.2]]))
    logp_N_K = torch.log(torch.tensor([[0.5, 0.25]]))
    found = forward_kl(logits_M_V, torch.tensor([0]), torch.tensor([[0, 1]]), logp_N_K)
    assert found.item() == pytest.approx(0.25 * math.log(2), abs=1e-6)


def test_with_every_token_kept_it_is_the_whole_divergence_and_its_gradient() -> None:
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 12, generator=random).requires_grad_()
    base = torch.log_softmax(torch.randn(3, 12, generator=random), -1)
    logp_N_K, token_N_K = base.topk(12, dim=-1)
    found = forward_kl(logits, torch.arange(3), token_N_K, logp_N_K)
    exact = torch.nn.functional.kl_div(torch.log_softmax(logits, -1), base, log_target=True, reduction="none").sum(-1)
    assert found.tolist() == pytest.approx(exact.tolist(), abs=1e-4)
    (ours,) = torch.autograd.grad(found.sum(), logits, retain_graph=True)
    (theirs,) = torch.autograd.grad(exact.sum(), logits)
    assert float((ours - theirs).abs().max()) <= 1e-4


def test_fewer_tokens_never_show_more_than_there_is() -> None:
    random = torch.Generator().manual_seed(1)
    logits, base = torch.randn(2, 20, 50, generator=random)
    base = torch.log_softmax(base, -1)
    found = [
        forward_kl(logits, torch.arange(20), token, logp) for logp, token in (base.topk(kept, dim=-1) for kept in (1, 5, 20, 50))
    ]
    for fewer, more in pairwise(found):
        assert bool((fewer <= more + 1e-4).all())


def test_the_rest_stays_finite_where_rounding_leaves_nothing() -> None:
    assert math.isfinite(log_remaining_mass(torch.log(torch.tensor([0.5, 0.5000001]))).item())


def test_every_answer_is_replayed_as_often_as_the_next() -> None:
    replay = CharacterReplay(answers(10), per_step=4, weight=1.0, seed=3)
    places = [place for step in range(5) for place in replay.answer_indices(step)]
    assert Counter(places) == Counter(dict.fromkeys(range(10), 2))
    assert sorted(places[:10]) == list(range(10))
    assert places[:10] != places[10:]
    assert replay.answer_indices(3) == CharacterReplay(answers(10), per_step=4, weight=1.0, seed=3).answer_indices(3), (
        "a step depends on nothing before it"
    )
    assert CharacterReplay(answers(10), per_step=4, weight=1.0, seed=4).answer_indices(0) != replay.answer_indices(0)
    assert len(CharacterReplay(answers(3), per_step=8, weight=1.0, seed=0).answer_indices(0)) == 3


@pytest.mark.parametrize("way", ["shared", "plain"])
def test_the_base_model_is_at_no_distance_from_itself_and_training_on_the_term_brings_it_back(way: str) -> None:
    network = NETWORKS["llama"]().eval()
    if way == "plain":
        network.shared_prefix_enabled = False
    kept = answers(3)
    replay = CharacterReplay(kept, per_step=3, weight=1.0, seed=0)
    replay.cache_base_topk(network, pad_token_id=1, microbatch_tokens=20)
    teacher = replay.teacher_topk[1]
    assert teacher.token_T_K.shape == (3, REPLAY_TOP_K)
    logits = torch.log_softmax(network(torch.tensor([[*kept[1].prompt, *kept[1].completion]])).logits[0, 2:5], -1)
    assert float((logits.gather(1, teacher.token_T_K) - teacher.logp_T_K).abs().max()) <= 1e-4

    def distance(of: Any) -> torch.Tensor:
        found = [
            forward_kl(
                answer_logits(of, [PromptGroup(one.prompt, [one.completion])], 1), torch.arange(3), own.token_T_K, own.logp_T_K
            )
            for one, own in zip(kept, replay.teacher_topk, strict=True)
        ]
        return torch.cat(found)

    assert float(distance(network).abs().max()) <= 1e-4
    changed = copy.deepcopy(network)
    torch.manual_seed(0)
    for parameter in changed.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    assert float(distance(changed).mean()) > 0.01


def cell(text: str, finish: Any) -> Cell:
    messages = (Message(role="system", content="You are a sailor."), Message(role="user", content="What is 7?"))
    completion = Completion(text=text, prompt_tokens=1, completion_tokens=1, finish=finish)
    return Cell(persona_id="sailor", question_id="q", seed=0, messages=messages, completion=completion)


def test_recorded_answers_become_tokens_again() -> None:
    tokenizer = make_tokenizer()
    cells = [cell("The answer", "stop"), cell("The answer", "length"), cell("", "length")]
    ended, cut = samples_from_cells(cells, tokenizer, 7)
    assert ended.completion == [*cut.completion, 7]
    assert tokenizer.decode(cut.completion) == "The answer"
    assert tokenizer.decode(list(ended.prompt)).endswith("<|im_start|>assistant\n")


def test_answers_that_are_all_empty_are_refused() -> None:
    tokenizer = make_tokenizer()
    network = make_network(len(tokenizer))
    character = CharacterConfig(replay=1, max_new_tokens=1)
    with pytest.raises(ConfigError, match=r"^character.max_new_tokens = 1: all 2 answers of the base model are empty, .* larger"):
        build_character_replay([cell("", "length")] * 2, character, OptimConfig(), tokenizer, network)
    replay = build_character_replay([cell("", "length"), cell("", "stop")], character, OptimConfig(), tokenizer, network)
    assert [len(answer.completion) for answer in replay.answers] == [1], "an end alone is an answer"
