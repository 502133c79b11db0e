"""Computes the gradient of one optimizer step from its rollouts, pack by pack.

A pack is one forward and backward pass. The sum over all packs and processes is the gradient of the step's whole loss
and of character replay (both in `permix.training.loss`), however the rollouts are packed. This module neither generates nor
verifies nor writes.

Axes: N completion tokens of a pack, M rows of logits, V vocabulary, K kept tokens of a base distribution.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, Literal, NamedTuple

import torch

from permix.config import OptimConfig
from permix.inference.generation import TokenLogprobs, token_logprobs
from permix.inference.shared_prefix import PackedGroups, completion_logits, padded_logits, supports_shared_prefix
from permix.training import distributed
from permix.training.compatibility import detect_sharding
from permix.training.loss import (
    LOSSES,
    TeacherTopK,
    TokenLosses,
    TokenTerms,
    clipped_token_losses,
    forward_kl,
    importance_weights,
)
from permix.training.rollouts import Pack, Sample, pack_samples


class ReplayBatch(NamedTuple):
    """The answers in character that a step replays in this process.

    Off-policy: `teacher_topk` has the base model's distributions, one item for each answer. On-policy: it is empty, and each
    answer has `ref_logprobs`.
    """

    weight: float
    samples: Sequence[Sample]
    teacher_topk: Sequence[TeacherTopK]


class PackLogprobs(NamedTuple):
    """Log-probabilities of a pack's completion tokens [N], in nats.

    `current`: of the weights in training. `old_N`: of those that sampled the rollouts, in the trainer's precision. `sampler_N`:
    of the network that sampled them, in its own precision; None where it is not known.
    """

    current: TokenLogprobs
    old_N: torch.Tensor
    sampler_N: torch.Tensor | None


class GradientStep:
    """The loss of a step. `accelerator` is the trainer's. `pad_token_id` may be any token id: no real token sees it.

    A pass reads at most `microbatch_tokens` tokens.
    """

    def __init__(self, config: OptimConfig, accelerator: Any, pad_token_id: int, microbatch_tokens: int) -> None:
        self.config, self.accelerator, self.pad_token_id = config, accelerator, pad_token_id
        self.microbatch_tokens = microbatch_tokens

    def accumulate(
        self, model: Any, samples: Sequence[Sample], replay_batch: ReplayBatch | None = None
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """Add the gradient of the rollouts' loss and of character replay to the parameters; returns loss and metrics.

        Rollouts and answers are those of this process; loss and metrics are those of all processes. Sets `old_logprobs` of
        rollouts that have none.
        """
        # The loss divides by counts of the whole step, over all processes and with rollouts of advantage 0. Otherwise its scale
        # would depend on the packs and on how many groups happen to have equal rewards.
        tokens, rows = self._sum_over_ranks(sum(len(sample.completion) for sample in samples), len(samples))
        # A rollout of advantage 0 has loss 0 unless there is a KL term, so its pass is saved.
        live = [sample for sample in samples if sample.advantage != 0 or self.config.beta != 0.0]
        step_metrics = StepMetrics()
        sizes = {"n_rollouts": rows, "n_tokens": tokens, "max_tokens": self.config.max_new_tokens}
        jobs: list[Callable[[], torch.Tensor]] = [
            partial(self._policy_loss, model, one, sizes=sizes, step_metrics=step_metrics)
            for one in pack_samples(live, self.microbatch_tokens)
        ]
        if replay_batch is not None:
            jobs += self._replay_losses(model, replay_batch, step_metrics)
        # A pass may exchange weights or gradients with the other processes, so all must run the same number, or they hang.
        # DeepSpeed takes its optimizer step inside a backward pass, so it needs at least one.
        passes = max(self.max_over_ranks(len(jobs)), int(detect_sharding().startswith("zero")))
        jobs += [partial(self._dummy_pass, model)] * (passes - len(jobs))
        total = torch.zeros((), device=self.accelerator.device)
        for number, job in enumerate(jobs, start=1):
            with self._grad_sync_context(model, last=number == passes):
                loss = job()
                # Each process has its share of one sum, but gradients are averaged over processes: undo the division.
                self.accelerator.backward(loss * self.accelerator.num_processes)
            total += loss.detach()
        if passes == 0:
            _give_zero_gradients(model)
        step_metrics.live_rollouts = len(live)
        metrics = StepMetrics.merged(distributed.all_gather(step_metrics)).as_dict()
        return self.accelerator.reduce(total), metrics | {"microbatch_tokens": self.microbatch_tokens}

    def _grad_sync_context(self, model: Any, last: bool) -> AbstractContextManager[None]:
        """Exchange gradients between processes once, after the last pack. With sharded weights exchange them after every pack,
        since gradients of whole weights would not fit into memory."""
        if detect_sharding().startswith("zero"):
            self.accelerator.gradient_state._set_sync_gradients(last)  # only the last backward pass may take DeepSpeed's step
        if last or detect_sharding() != "none":
            return nullcontext()
        return self.accelerator.no_sync(model)  # type: ignore[no-any-return]

    def _policy_loss(self, model: Any, pack: Pack, *, sizes: Mapping[str, int], step_metrics: "StepMetrics") -> torch.Tensor:
        """The share of one pack in the loss of the step; adds the pack's metrics to `step_metrics`."""
        loss = LOSSES[self.config.loss]
        weights = loss.token_weights([len(sample.completion) for sample in pack.samples], **sizes)
        logps = self._pack_logprobs(model, pack)
        terms = self._token_terms(pack, logps, loss.token_losses, self.config.beta)
        gap_N = None if logps.sampler_N is None else (logps.old_N - logps.sampler_N).abs()
        step_metrics.add(entropy=logps.current.entropy_N, clipped=terms.clipped_N, kl=terms.kl_N, rollout_logprob_gap=gap_N)
        step_metrics.trained_tokens += pack.forward_tokens
        return (terms.loss_N * expand_to_tokens(weights, pack.samples, terms.loss_N)).sum()

    def _pack_logprobs(self, model: Any, pack: Pack) -> PackLogprobs:
        """Pass the pack through the model; sets `old_logprobs` of rollouts that have none."""
        samples, current = pack.samples, self._token_logprobs(model, pack)
        for sample, logps in zip(samples, split_by_sample(current.logprob_N.detach(), samples), strict=True):
            # The first pass runs with the weights that sampled the rollout, so its values are the old ones without another pass.
            # The sampling engine's values have another precision: with them the first ratio would not be exactly 1.
            if sample.old_logprobs is None:
                sample.old_logprobs = logps.tolist()
        old_N = flat_logprobs(samples, "old_logprobs", current.logprob_N)
        assert old_N is not None
        return PackLogprobs(current, old_N, flat_logprobs(samples, "rollout_logprobs", current.logprob_N))

    def _token_terms(self, pack: Pack, logps: PackLogprobs, losses: TokenLosses, beta: float) -> TokenTerms:
        """Loss terms of a pack's completion tokens."""
        samples, cap = pack.samples, self.config.importance_ratio_cap
        logp_N, old_N, sampler_N = logps.current.logprob_N, logps.old_N, logps.sampler_N
        return losses(
            logp_N, old_N, expand_to_tokens([sample.advantage for sample in samples], samples, logp_N),
            sequence_N=expand_to_tokens(range(len(samples)), samples, logp_N),
            clip_low=self.config.clip_low, clip_high=self.config.clip_high or self.config.clip_low, beta=beta,
            importance_weight_N=None if sampler_N is None or cap is None else importance_weights(old_N, sampler_N, cap),
            ref_logp_N=flat_logprobs(samples, "ref_logprobs", logp_N) if beta > 0 else None,
        )  # fmt: skip

    def _dummy_pass(self, model: Any) -> torch.Tensor:
        """The smallest possible pass, with gradient 0, for a process that has no packs left while others have."""
        pack = Pack([[Sample((self.pad_token_id,), [self.pad_token_id], 0.0)]])
        return self._token_logprobs(model, pack).logprob_N.sum() * 0.0

    def _replay_losses(
        self, model: Any, replay_batch: ReplayBatch, step_metrics: "StepMetrics"
    ) -> list[Callable[[], torch.Tensor]]:
        """One job for each pack of answers in character; their sum over processes is a mean over the tokens of the step."""
        (tokens,) = self._sum_over_ranks(sum(len(sample.completion) for sample in replay_batch.samples))
        # By identity: packing reorders the answers, and two of them may be equal.
        teachers = {
            id(one): own
            for one, own in zip(replay_batch.samples, replay_batch.teacher_topk, strict=bool(replay_batch.teacher_topk))
        }
        loss = self._offpolicy_kl if teachers else self._onpolicy_kl
        packs = pack_samples(replay_batch.samples, self.microbatch_tokens)

        def job(one: Pack) -> torch.Tensor:
            kl, term = loss(model, one, teachers)
            step_metrics.replay_kl += float(kl.detach().sum()) / tokens
            return replay_batch.weight * term.sum() / tokens

        step_metrics.has_replay = True
        return [partial(job, one) for one in packs]

    def _offpolicy_kl(self, model: Any, pack: Pack, teacher_topk: Mapping[int, TeacherTopK]) -> tuple[torch.Tensor, torch.Tensor]:
        """KL(base || trained) [N] on the base model's own answers, as (metric, loss)."""
        logits_M_V, source_N, _ = self._logits(model, pack)
        token_N_K = torch.cat([teacher_topk[id(sample)].token_T_K for sample in pack.samples]).to(source_N.device)
        logp_N_K = torch.cat([teacher_topk[id(sample)].logp_T_K for sample in pack.samples]).to(source_N.device)
        kl_N = forward_kl(logits_M_V, source_N, token_N_K, logp_N_K)
        return kl_N, kl_N

    def _onpolicy_kl(self, model: Any, pack: Pack, _: Mapping[int, TeacherTopK]) -> tuple[torch.Tensor, torch.Tensor]:
        """KL(trained || base) [N] on the trained model's answers, as (metric, loss): that of rollouts without advantage."""
        terms = self._token_terms(pack, self._pack_logprobs(model, pack), clipped_token_losses, beta=1.0)
        assert terms.kl_N is not None
        return terms.kl_N, terms.loss_N

    def completion_logprobs(self, model: Any, samples: Sequence[Sample]) -> list[list[float]]:
        """Log-probabilities of each rollout's tokens, without gradient. All processes must call it, even without rollouts."""
        by_sample: dict[int, list[float]] = {}
        packs = pack_samples(samples, self.microbatch_tokens)
        with torch.no_grad():
            for _ in range(self.max_over_ranks(len(packs)) - len(packs)):
                self._dummy_pass(model)
            for pack in packs:
                logp_N = self._token_logprobs(model, pack).logprob_N
                for sample, logps in zip(pack.samples, split_by_sample(logp_N, pack.samples), strict=True):
                    by_sample[id(sample)] = logps.tolist()
        return [by_sample[id(sample)] for sample in samples]

    def _token_logprobs(self, model: Any, pack: Pack) -> TokenLogprobs:
        """Log-probabilities [N] of a pack's completion tokens, ordered by prompt, rollout and position."""
        return token_logprobs(*self._logits(model, pack), self.config.temperature)

    def _logits(self, model: Any, pack: Pack) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Logits [M, V]; for each completion token [N] the row of the logits that predicts it; its token id [N]."""
        groups = pack.prompt_groups
        device = self.accelerator.device
        with self.accelerator.autocast():
            if supports_shared_prefix(unwrap_peft(self.accelerator.unwrap_model(model))):
                packed = PackedGroups.pack(groups, device)
                return completion_logits(model, packed), packed.logit_row_N, packed.target_N
            logits_N_V = padded_logits(model, groups, pad=self.pad_token_id, device=device)
        target_N = torch.tensor(
            [token for group in groups for completion in group.completions for token in completion], device=device
        )
        return logits_N_V, torch.arange(len(logits_N_V), device=device), target_N

    def _sum_over_ranks(self, *values: int) -> list[int]:
        """The sum of each value over all processes."""
        return [int(one) for one in self.accelerator.reduce(torch.tensor(values, device=self.accelerator.device)).tolist()]

    def max_over_ranks(self, value: int) -> int:
        """The largest value over all processes."""
        return int(self.accelerator.gather(torch.tensor([value], device=self.accelerator.device)).max())


class StepMetrics:
    """Metrics of a step, most of them means over the completion tokens that it trained on."""

    def __init__(self) -> None:
        self.live_rollouts, self.trained_tokens = 0, 0
        self._sums: dict[str, float] = {}
        self._token_count = 0
        self.has_replay, self.replay_kl = False, 0.0

    def add(self, **values_N: torch.Tensor | None) -> None:
        # Sums and counts, not means: means of unequal packs and processes could not be merged.
        known = {name: values.detach().float() for name, values in values_N.items() if values is not None}
        for name, values in known.items():
            self._sums[name] = self._sums.get(name, 0.0) + float(values.nansum())
        self._token_count += len(next(iter(known.values())))

    @classmethod
    def merged(cls, parts: Sequence["StepMetrics"]) -> "StepMetrics":
        """The metrics of several processes, as if one had counted all."""
        whole = cls()
        for part in parts:
            whole.live_rollouts += part.live_rollouts
            whole.trained_tokens += part.trained_tokens
            whole._token_count += part._token_count
            whole.has_replay |= part.has_replay
            whole.replay_kl += part.replay_kl
            for name, value in part._sums.items():
                whole._sums[name] = whole._sums.get(name, 0.0) + value
        return whole

    def as_dict(self) -> dict[str, float]:
        means = {name: total / self._token_count for name, total in self._sums.items()}
        replay = {"replay_kl": self.replay_kl} if self.has_replay else {}
        return {"live_rollouts": self.live_rollouts, "trained_tokens": self.trained_tokens, **means, **replay}


def split_by_sample(values_N: torch.Tensor, samples: Sequence[Sample]) -> Sequence[torch.Tensor]:
    """Values [N] of all tokens, split into one tensor for each rollout."""
    return torch.split(values_N, [len(sample.completion) for sample in samples])


def expand_to_tokens(values: Sequence[float], samples: Sequence[Sample], like_N: torch.Tensor) -> torch.Tensor:
    """One value for each rollout, repeated for its tokens [N]; `like_N` gives the device."""
    lengths = torch.tensor([len(sample.completion) for sample in samples], device=like_N.device)
    return torch.tensor(values, device=like_N.device).repeat_interleave(lengths)


def flat_logprobs(
    samples: Sequence[Sample], field: Literal["old_logprobs", "rollout_logprobs", "ref_logprobs"], like_N: torch.Tensor
) -> torch.Tensor | None:
    """The log-probability of every token [N]; None if the rollouts have none. `like_N` gives the device."""
    if getattr(samples[0], field) is None:
        return None
    return torch.tensor([value for sample in samples for value in getattr(sample, field)], device=like_N.device)


def unwrap_peft(network: Any) -> Any:
    """The causal language model inside an adapter's wrapping."""
    return network.get_base_model() if hasattr(network, "peft_config") else network


def _give_zero_gradients(model: Any) -> None:
    """Zero gradients for a step without passes: without any, AdamW would skip its update by momentum and weight decay too."""
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
