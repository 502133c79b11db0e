"""Character replay: a term of the loss that keeps a model's answers in character close to the base model's.

Off-policy: on answers that the base model sampled, KL(base || trained) of each token, over the base's `REPLAY_TOP_K` likeliest
tokens and all others as one. The base probabilities are computed once, before training. On-policy: on new answers of the model in
training, KL(trained || base) by the estimator of `permix.training.loss`, with log-probabilities of the reference model.

The term is our own; docs/results.md has its first measurement.

Axes: N completion tokens of a pack, T of one answer, K kept tokens, V vocabulary, M rows of logits.
"""

import random
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from permix.config import CharacterConfig, OptimConfig
from permix.inference.generation import token_logprobs
from permix.inference.shared_prefix import (
    PackedGroups,
    PromptGroup,
    completion_logits,
    eval_mode,
    padded_logits,
    supports_shared_prefix,
)
from permix.training import distributed
from permix.training.checkpoints import autocast_context
from permix.training.rollouts import Sample, pack_samples
from permix.types import Cell, seed_from

REPLAY_TOP_K = 64
"""Tokens (K) of a base distribution whose probabilities are kept."""


class TeacherTopK(NamedTuple):
    """The base model's likeliest tokens at each token of an answer, and their log-probabilities (nats) at temperature 1."""

    token_T_K: torch.Tensor
    logp_T_K: torch.Tensor


class CharacterReplay:
    """The prompts in character, the base model's answers, and the choice of answers for each step."""

    def __init__(self, answers: Sequence[Sample], per_step: int, weight: float, seed: int) -> None:
        """`answers` are the base model's; on-policy only their prompts and the greatest length are used."""
        self.answers, self.weight = list(answers), weight
        self._per_step, self._seed = min(per_step, len(self.answers)), seed
        self.teacher_topk: list[TeacherTopK] = []
        self.max_answer_tokens = max(len(answer.completion) for answer in self.answers)

    def answer_indices(self, step: int) -> list[int]:
        """Indices of the answers of this step. Passes over all answers follow each other, each shuffled by its own seed."""
        first, last = step * self._per_step, (step + 1) * self._per_step
        return [self._shuffled_order(at // len(self.answers))[at % len(self.answers)] for at in range(first, last)]

    def _shuffled_order(self, pass_number: int) -> list[int]:
        order = list(range(len(self.answers)))
        random.Random(seed_from("replay", self._seed, pass_number)).shuffle(order)
        return order

    def cache_base_topk(self, network: Any, pad_token_id: int, microbatch_tokens: int) -> None:
        """Set `teacher_topk` from the base model `network`. Call it before the first optimizer step."""
        by_answer: dict[int, TeacherTopK] = {}  # by identity: packing reorders the answers, and two of them may be equal
        for each in pack_samples(self.answers, microbatch_tokens):
            ordered = [sample for own in each for sample in own]
            logits_N_V = answer_logits(
                network, [PromptGroup(own[0].prompt, [one.completion for one in own]) for own in each], pad_token_id
            )
            logp_N_V = torch.log_softmax(logits_N_V.float(), -1)
            logp_N_K, token_N_K = logp_N_V.topk(min(REPLAY_TOP_K, logp_N_V.shape[-1]), dim=-1)
            lengths = [len(sample.completion) for sample in ordered]
            for sample, tokens, logps in zip(
                ordered, torch.split(token_N_K, lengths), torch.split(logp_N_K, lengths), strict=True
            ):
                # Copies: a view would be pickled with the tensor of its whole pack when it is sent to the other processes.
                by_answer[id(sample)] = TeacherTopK(tokens.clone(), logps.clone())
        self.teacher_topk = [by_answer[id(sample)] for sample in self.answers]


def build_character_replay(
    cells: Sequence[Cell], character: CharacterConfig, config: OptimConfig, tokenizer: Any, network: Any
) -> CharacterReplay:
    """Replay of the base model's answers `cells`. `network` is the base model, which off-policy gives its distributions."""
    replay = CharacterReplay(samples_from_cells(cells, tokenizer), character.replay_answers, character.replay, config.seed)
    if character.replay_policy == "off":
        if distributed.is_main():  # under FSDP2 the other processes have no weights yet
            with eval_mode(network), autocast_context(config):
                replay.cache_base_topk(network, tokenizer.pad_token_id, config.microbatch_tokens)
        replay.teacher_topk = distributed.broadcast([TeacherTopK(*(one.cpu() for one in own)) for own in replay.teacher_topk])
    return replay


def answer_logits(network: Any, prompt_groups: Sequence[PromptGroup], pad_token_id: int) -> torch.Tensor:
    """Logits [N, V] that predict each completion token, without gradient."""
    with torch.no_grad():
        if supports_shared_prefix(network):
            packed = PackedGroups.pack(prompt_groups, network.device)
            return completion_logits(network, packed)[packed.logit_row_N]
        return padded_logits(network, prompt_groups, pad=pad_token_id, device=network.device)


def samples_from_cells(cells: Sequence[Cell], tokenizer: Any) -> list[Sample]:
    """Recorded answers as token ids, with the stop token if the answer was complete. Empty answers are left out."""
    from permix.inference.hf import encode_chat

    samples = []
    for cell in cells:
        assert cell.completion is not None
        ids = list(tokenizer(cell.completion.text, add_special_tokens=False)["input_ids"])
        if cell.completion.finish == "stop":
            ids.append(tokenizer.eos_token_id)
        if ids:
            samples.append(Sample(tuple(encode_chat(tokenizer, cell.messages)), ids, 0.0))
    return samples


def forward_kl(logits_M_V: torch.Tensor, source_N: torch.Tensor, token_N_K: torch.Tensor, logp_N_K: torch.Tensor) -> torch.Tensor:
    """KL(base || trained) [N] over the K kept tokens and the rest as one token. It is at most the KL over all tokens.

    `logits_M_V` are the trained model's; `source_N` is the row of logits of each completion token.
    """
    count = token_N_K.shape[1]
    ours = token_logprobs(logits_M_V, source_N.repeat_interleave(count), token_N_K.flatten(), 1.0).logprob_N.view(-1, count)
    kept = (logp_N_K.exp() * (logp_N_K - ours)).sum(-1)
    rest = log_remaining_mass(logp_N_K)
    return kept + rest.exp() * (rest - log_remaining_mass(ours))


def log_remaining_mass(logp_T_K: torch.Tensor) -> torch.Tensor:
    """log(1 - sum of the kept probabilities) [T], at least log(1e-6): rounding may leave 0, whose gradient would be infinite."""
    return torch.log1p(-logp_T_K.exp().sum(-1).clamp(max=1 - 1e-6))
