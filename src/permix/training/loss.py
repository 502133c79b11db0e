"""The policy losses, and character replay: a term that keeps a model's answers in character close to the base model's.

The policy loss of a step is a weighted sum over the completion tokens `N` of its rollouts.

Per token: −min(r A, clip(r) A) · w + β r (e^d − d − 1), where r = π(token) / π_old(token), A is the rollout's advantage,
w = min(π_old / π_sampler, cap) corrects for the numerical difference between the network that samples and the one that trains
(truncated importance sampling, Yao et al. 2025), and d = log π_ref − log π. The last term is the k3 estimate of the KL to the
reference (Schulman 2020), times r, so that its gradient is unbiased for the reverse KL (DeepSeek-V3.2, 2025; TRL's default).

A loss's `token_weights` average the tokens, under TRL's names: `grpo` (Shao et al. 2024) averages each rollout and then the
rollouts; `bnpo` and `dapo` (Yu et al. 2025) average all tokens; `dr_grpo` (Liu et al. 2025) divides by the longest length
allowed, so that a token's weight does not depend on its rollout's length. Weights come from counts of the whole step, so the sum
over its packs is the same however they are packed.

Character replay, off-policy: on answers that the base model sampled, KL(base || trained) of each token, over the base's
`REPLAY_TOP_K` likeliest tokens and all others as one. The base probabilities are computed once, before training. On-policy: on
new answers of the model in training, KL(trained || base) by the same k3 estimator, with log-probabilities of the reference
model. The term is our own; docs/results.md has its first measurement.

Axes: N completion tokens of a pack, T of one answer, K kept tokens, V vocabulary, M rows of logits.
"""

import random
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch

from permix.config import CharacterConfig, OptimConfig
from permix.errors import ConfigError
from permix.inference.generation import end_of_turn_id, token_logprobs
from permix.inference.hardware import MIN_MICROBATCH_TOKENS
from permix.inference.shared_prefix import (
    PackedGroups,
    PromptGroup,
    completion_logits,
    eval_mode,
    padded_logits,
    supports_shared_prefix,
)
from permix.training import distributed
from permix.training.network import autocast_context
from permix.training.rollouts import Sample, pack_samples
from permix.types import Cell, seed_from


class TokenTerms(NamedTuple):
    """One number for each completion token; `kl_N` is None without a reference."""

    loss_N: torch.Tensor
    ratio_N: torch.Tensor
    clipped_N: torch.Tensor
    kl_N: torch.Tensor | None


def clipped_token_losses(
    logp_N: torch.Tensor,
    old_logp_N: torch.Tensor,
    advantage_N: torch.Tensor,
    *,
    clip_low: float,
    clip_high: float,
    sequence_N: torch.Tensor | None = None,
    importance_weight_N: torch.Tensor | None = None,
    ref_logp_N: torch.Tensor | None = None,
    beta: float = 0.0,
) -> TokenTerms:
    """The loss of the module docstring for each token; ignores `sequence_N`. Gradients flow through `logp_N` alone."""
    ratio_N = torch.exp(logp_N - old_logp_N)
    clamped_N = ratio_N.clamp(1 - clip_low, 1 + clip_high)
    loss_N = -torch.minimum(ratio_N * advantage_N, clamped_N * advantage_N)
    clipped_N = ((ratio_N < 1 - clip_low) & (advantage_N < 0)) | ((ratio_N > 1 + clip_high) & (advantage_N > 0))
    if importance_weight_N is not None:
        loss_N = loss_N * importance_weight_N
    if ref_logp_N is None:
        return TokenTerms(loss_N, ratio_N, clipped_N, None)
    kl_N = torch.exp(ref_logp_N - logp_N) - (ref_logp_N - logp_N) - 1
    return TokenTerms(loss_N + beta * ratio_N * kl_N, ratio_N, clipped_N, kl_N)


def importance_weights(old_logp_N: torch.Tensor, rollout_logp_N: torch.Tensor, cap: float) -> torch.Tensor:
    """min(π_old / π_sampler, cap) of each token, no gradient. A token whose π_sampler is unknown (NaN) has weight 1."""
    return torch.exp((old_logp_N - rollout_logp_N).detach().nan_to_num(nan=0.0)).clamp(max=cap)


class TokenWeights(Protocol):
    """The weight of one token of each rollout `B` of a pack."""

    def __call__(self, length_B: Sequence[int], *, n_rollouts: int, n_tokens: int, max_tokens: int) -> list[float]:
        """`length_B` are the completions' lengths in tokens. `n_rollouts` and `n_tokens` count the whole step, over all processes
        and rollouts without advantage too; `max_tokens` is the longest completion allowed."""


def mean_over_rollouts(length_B: Sequence[int], *, n_rollouts: int, n_tokens: int, max_tokens: int) -> list[float]:
    """The mean over rollouts of the mean over a rollout's tokens: weights 1 / (rollouts · length)."""
    return [1 / (n_rollouts * length) for length in length_B]


def mean_over_tokens(length_B: Sequence[int], *, n_rollouts: int, n_tokens: int, max_tokens: int) -> list[float]:
    """The mean over all tokens of the step: weights 1 / tokens."""
    return [1 / n_tokens] * len(length_B)


def mean_over_max_length(length_B: Sequence[int], *, n_rollouts: int, n_tokens: int, max_tokens: int) -> list[float]:
    """The sum over all tokens, divided by the most tokens that the step could have: weights 1 / (rollouts · max_tokens)."""
    return [1 / (n_rollouts * max_tokens)] * len(length_B)


class TokenLosses(Protocol):
    """The unweighted loss of each completion token `N` of a pack; gradients flow through `logp_N` alone.

    A pack holds whole rollouts. `sequence_N` numbers each token's rollout in the pack, from 0: a loss of whole sequences averages
    over the tokens of one number. Without a KL term, rollouts whose advantage is 0 are left out of the packs, so their
    loss must be 0.
    """

    def __call__(
        self,
        logp_N: torch.Tensor,
        old_logp_N: torch.Tensor,
        advantage_N: torch.Tensor,
        *,
        sequence_N: torch.Tensor,
        clip_low: float,
        clip_high: float,
        importance_weight_N: torch.Tensor | None,
        ref_logp_N: torch.Tensor | None,
        beta: float,
    ) -> TokenTerms: ...


class Loss(NamedTuple):
    """A policy loss: Σ weight · loss over the tokens of a step."""

    token_weights: TokenWeights
    token_losses: TokenLosses = clipped_token_losses


LOSSES: dict[str, Loss] = {
    "grpo": Loss(mean_over_rollouts),
    "dr_grpo": Loss(mean_over_max_length),
    "dapo": Loss(mean_over_tokens),
    "bnpo": Loss(mean_over_tokens),
}
"""Every loss that `train.loss` may name. A test compares the names with `permix.config.LossName`."""


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
        for pack in pack_samples(self.answers, microbatch_tokens):
            logits_N_V = answer_logits(network, pack.prompt_groups, pad_token_id)
            logp_N_V = torch.log_softmax(logits_N_V.float(), -1)
            logp_N_K, token_N_K = logp_N_V.topk(min(REPLAY_TOP_K, logp_N_V.shape[-1]), dim=-1)
            lengths = [len(sample.completion) for sample in pack.samples]
            for sample, tokens, logps in zip(
                pack.samples, torch.split(token_N_K, lengths), torch.split(logp_N_K, lengths), strict=True
            ):
                # Copies: a view would be pickled with the tensor of its whole pack when it is sent to the other processes.
                by_answer[id(sample)] = TeacherTopK(tokens.clone(), logps.clone())
        self.teacher_topk = [by_answer[id(sample)] for sample in self.answers]


def build_character_replay(
    cells: Sequence[Cell], character: CharacterConfig, config: OptimConfig, tokenizer: Any, network: Any
) -> CharacterReplay:
    """Replay of the base model's answers `cells`. `network` is the base model, which off-policy gives its distributions.

    Raises ConfigError if all answers are empty.
    """
    answers = samples_from_cells(cells, tokenizer, end_of_turn_id(network, tokenizer))
    if not answers:
        raise ConfigError(
            f"character.max_new_tokens = {character.max_new_tokens}: all {len(cells)} answers of the base model are empty, so "
            "there is nothing to replay; give a larger limit and another run directory (out), or character.replay = 0"
        )
    replay = CharacterReplay(answers, character.replay_answers, character.replay, config.seed)
    if character.replay_policy == "off":
        if distributed.is_main():  # under FSDP2 the other processes have no weights yet
            with eval_mode(network), autocast_context(config):
                replay.cache_base_topk(network, tokenizer.pad_token_id, config.microbatch_tokens or MIN_MICROBATCH_TOKENS)
        replay.teacher_topk = distributed.broadcast([TeacherTopK(*(one.cpu() for one in own)) for own in replay.teacher_topk])
    return replay


def answer_logits(network: Any, prompt_groups: Sequence[PromptGroup], pad_token_id: int) -> torch.Tensor:
    """Logits [N, V] that predict each completion token, without gradient."""
    with torch.no_grad():
        if supports_shared_prefix(network):
            packed = PackedGroups.pack(prompt_groups, network.device)
            return completion_logits(network, packed)[packed.logit_row_N]
        return padded_logits(network, prompt_groups, pad=pad_token_id, device=network.device)


def samples_from_cells(cells: Sequence[Cell], tokenizer: Any, end_id: int) -> list[Sample]:
    """Recorded answers as token ids, with the token `end_id` if the answer was complete. Empty answers are left out."""
    from permix.inference.chat_template import encode_chat, encode_completion

    samples = []
    for cell in cells:
        assert cell.completion is not None
        ids = encode_completion(cell.completion.text, tokenizer)
        if cell.completion.finish == "stop":
            ids.append(end_id)
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
