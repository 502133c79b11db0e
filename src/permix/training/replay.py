"""Character replay: a term that holds a model, on personas answering open-ended questions, to what the base model says there.

Off-policy: the base model's own sampled answers, and per token KL(base || trained) over the base's `TOP` likeliest tokens and the
rest as one. Those base probabilities are computed once, before training. On-policy: fresh answers of the model in training, and
KL(trained || base) by the estimator of `permix.training.loss`; the reference model scores them.

The term is our own; its first measurement stands in docs/results.md.
"""

import random
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from permix.inference.generation import score
from permix.inference.shared_prefix import Branches, Family, completion_logits, plain_logits, shares_prompts
from permix.training.rollouts import Sample, pack
from permix.types import Cell, seed_from

TOP = 64
"""Tokens of a base distribution that are kept one by one."""


class Teacher(NamedTuple):
    """What the base model would have said at each token of an answer; the tokens' probabilities at temperature 1."""

    token_T_K: torch.Tensor
    logp_T_K: torch.Tensor


class Replay:
    """The in-character prompts, their base answers, and which of them a step replays."""

    def __init__(self, answers: Sequence[Sample], per_step: int, weight: float, seed: int) -> None:
        """`answers` are the base model's; on-policy they only give prompts and the longest length."""
        self.answers, self.weight = list(answers), weight
        self._per_step, self._seed = min(per_step, len(self.answers)), seed
        self.teachers: list[Teacher] = []
        self.longest = max(len(answer.completion) for answer in self.answers)

    def chosen(self, step: int) -> list[int]:
        """Places of the answers that this step replays: each as often as any other, in an order drawn anew for every pass."""
        first, last = step * self._per_step, (step + 1) * self._per_step
        return [self._order(at // len(self.answers))[at % len(self.answers)] for at in range(first, last)]

    def _order(self, pass_number: int) -> list[int]:
        order = list(range(len(self.answers)))
        random.Random(seed_from("replay", self._seed, pass_number)).shuffle(order)
        return order

    def learn_base(self, network: Any, pad: int, budget: int) -> None:
        """Keep the base model's distributions over its own answers. Call it before the first optimizer step."""
        kept: dict[int, Teacher] = {}
        for each in pack(self.answers, budget):
            ordered = [sample for own in each for sample in own]
            logits_N_V = answer_logits(network, [Family(own[0].prompt, [one.completion for one in own]) for own in each], pad)
            logp_N_V = torch.log_softmax(logits_N_V.float(), -1)
            logp_N_K, token_N_K = logp_N_V.topk(min(TOP, logp_N_V.shape[-1]), dim=-1)
            lengths = [len(sample.completion) for sample in ordered]
            for sample, tokens, logps in zip(
                ordered, torch.split(token_N_K, lengths), torch.split(logp_N_K, lengths), strict=True
            ):
                kept[id(sample)] = Teacher(tokens.clone(), logps.clone())
        self.teachers = [kept[id(sample)] for sample in self.answers]


def answer_logits(network: Any, families: Sequence[Family], pad: int) -> torch.Tensor:
    """Logits [N, V] at every completion token, without gradient."""
    with torch.no_grad():
        if shares_prompts(network):
            branches = Branches.of(families, network.device)
            return completion_logits(network, branches)[branches.source_N]
        return plain_logits(network, families, pad=pad, device=network.device)


def samples_of(cells: Sequence[Cell], tokenizer: Any) -> list[Sample]:
    """Recorded answers as token ids; one that came to its end has its stop token again. Empty answers are left out."""
    from permix.inference.hf import encode_chat

    found = []
    for cell in cells:
        assert cell.completion is not None
        ids = list(tokenizer(cell.completion.text, add_special_tokens=False)["input_ids"])
        if cell.completion.finish == "stop":
            ids.append(tokenizer.eos_token_id)
        if ids:
            found.append(Sample(tuple(encode_chat(tokenizer, cell.messages)), ids, 0.0))
    return found


def forward_kl(logits_M_V: torch.Tensor, source_N: torch.Tensor, token_N_K: torch.Tensor, logp_N_K: torch.Tensor) -> torch.Tensor:
    """KL(base || trained) [N] over the K kept tokens and the rest as one, which is never more than the whole KL."""
    count = token_N_K.shape[1]
    ours = score(logits_M_V, source_N.repeat_interleave(count), token_N_K.flatten(), 1.0).logp_N.view(-1, count)
    kept = (logp_N_K.exp() * (logp_N_K - ours)).sum(-1)
    rest = log_rest(logp_N_K)
    return kept + rest.exp() * (rest - log_rest(ours))


def log_rest(logp_T_K: torch.Tensor) -> torch.Tensor:
    """log(1 - sum of the kept probabilities), kept off minus infinity where rounding leaves nothing."""
    return torch.log1p(-logp_T_K.exp().sum(-1).clamp(max=1 - 1e-6))
