"""One optimizer step's arithmetic: from rollouts to gradients, pack by pack.

Nothing here generates, verifies or writes. A pack is one forward and backward pass; the sum over packs, and over processes, is
the gradient of the step's whole loss (`permix.training.loss`) and of character replay (`permix.training.replay`).
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
from permix.training.loss import TokenTerms, importance_weights, token_losses, token_weights
from permix.training.replay import TeacherTopK, forward_kl
from permix.training.rollouts import Pack, Sample, build_prompt_group, pack_samples


class ReplayBatch(NamedTuple):
    """This process's part of the in-character answers that a step replays.

    With `teachers`, one an answer, the base model's distributions are matched; without, the answers carry its log-probabilities.
    """

    weight: float
    samples: Sequence[Sample]
    teacher_topk: Sequence[TeacherTopK]


class GradientStep:
    """What a step minimises. `accelerator` is the trainer's, `pad` any token id, read by networks that need padded rows."""

    def __init__(self, config: OptimConfig, accelerator: Any, pad_token_id: int) -> None:
        self.config, self.accelerator, self.pad_token_id = config, accelerator, pad_token_id

    def accumulate(
        self, model: Any, samples: Sequence[Sample], replay_batch: ReplayBatch | None = None
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """Add the gradient of these rollouts' loss and of character replay, pack by pack; returns the loss and figures.

        Rollouts and answers are this process's, loss and figures those of all: each process adds its packs' share of the step's
        one loss, and the processes' gradients are averaged, so a share counts as often as there are processes. A rollout's `old`
        log-probabilities are filled in when they are not known.
        """
        tokens, rows = self._sum_over_ranks(sum(len(sample.completion) for sample in samples), len(samples))
        live = [sample for sample in samples if sample.advantage != 0 or self.config.beta != 0.0]
        tally = StepMetrics()
        sizes = {"n_rollouts": rows, "n_tokens": tokens, "max_tokens": self.config.max_new_tokens}
        jobs: list[Callable[[], torch.Tensor]] = [
            partial(self._policy_loss, model, one, sizes=sizes, step_metrics=tally)
            for one in pack_samples(live, self.config.microbatch_tokens)
        ]
        if replay_batch is not None:
            jobs += self._replay_losses(model, replay_batch, tally)
        # DeepSpeed steps inside a backward pass, so there must be one.
        passes = max(self.max_over_ranks(len(jobs)), int(detect_sharding().startswith("zero")))
        jobs += [partial(self._dummy_pass, model)] * (passes - len(jobs))
        total = torch.zeros((), device=self.accelerator.device)
        for number, job in enumerate(jobs, start=1):
            with self._grad_sync_context(model, last=number == passes):
                loss = job()
                self.accelerator.backward(loss * self.accelerator.num_processes)
            total += loss.detach()
        if passes == 0:
            _give_zero_gradients(model)
        tally.live_rollouts = len(live)
        return self.accelerator.reduce(total), StepMetrics.merged(distributed.all_gather(tally)).as_dict()

    def _grad_sync_context(self, model: Any, last: bool) -> AbstractContextManager[None]:
        """Gradients travel between processes once a step, after the last pack; where weights are shared out, after every pack:
        gradients of whole weights would not fit."""
        if detect_sharding().startswith("zero"):
            self.accelerator.gradient_state._set_sync_gradients(last)  # the backward pass that ends in DeepSpeed's step
        if last or detect_sharding() != "none":
            return nullcontext()
        return self.accelerator.no_sync(model)  # type: ignore[no-any-return]

    def _policy_loss(self, model: Any, pack: Pack, *, sizes: Mapping[str, int], step_metrics: "StepMetrics") -> torch.Tensor:
        """The loss of one pack of rollouts."""
        ordered = [sample for own in pack for sample in own]
        weights = token_weights(self.config.loss, [len(sample.completion) for sample in ordered], **sizes)
        terms, scores = self._token_terms(model, pack, self.config.beta)
        old_N, sampler_N = (
            flat_logprobs(ordered, "old_logprobs", scores.logprob_N),
            flat_logprobs(ordered, "rollout_logprobs", scores.logprob_N),
        )
        gap_N = None if sampler_N is None or old_N is None else (old_N - sampler_N).abs()
        step_metrics.add(entropy=scores.entropy_N, clipped=terms.clipped_N, kl=terms.kl_N, rollout_logprob_gap=gap_N)
        step_metrics.trained_tokens += sum(build_prompt_group(own).forward_tokens for own in pack)
        return (terms.loss_N * expand_to_tokens(weights, ordered, terms.loss_N)).sum()

    def _token_terms(self, model: Any, pack: Pack, beta: float) -> tuple[TokenTerms, TokenLogprobs]:
        ordered = [sample for own in pack for sample in own]
        scores = self._token_logprobs(model, pack)
        for sample, logps in zip(ordered, split_by_sample(scores.logprob_N.detach(), ordered), strict=True):
            if sample.old_logprobs is None:
                sample.old_logprobs = logps.tolist()
        old_N, sampler_N = (
            flat_logprobs(ordered, "old_logprobs", scores.logprob_N),
            flat_logprobs(ordered, "rollout_logprobs", scores.logprob_N),
        )
        assert old_N is not None
        cap = self.config.importance_ratio_cap
        terms = token_losses(
            scores.logprob_N, old_N, expand_to_tokens([sample.advantage for sample in ordered], ordered, scores.logprob_N),
            clip_low=self.config.clip_low, clip_high=self.config.clip_high or self.config.clip_low, beta=beta,
            importance_weight_N=None if sampler_N is None or cap is None else importance_weights(old_N, sampler_N, cap),
            ref_logp_N=flat_logprobs(ordered, "ref_logprobs", scores.logprob_N) if beta > 0 else None,
        )  # fmt: skip
        return terms, scores

    def _dummy_pass(self, model: Any) -> torch.Tensor:
        """The least a process can run while others still have packs."""
        return self._token_logprobs(model, [[Sample((self.pad_token_id,), [self.pad_token_id], 0.0)]]).logprob_N.sum() * 0.0

    def _replay_losses(
        self, model: Any, replay_batch: ReplayBatch, step_metrics: "StepMetrics"
    ) -> list[Callable[[], torch.Tensor]]:
        """One job a pack of in-character answers; the term is a mean over the step's tokens, of all processes."""
        (tokens,) = self._sum_over_ranks(sum(len(sample.completion) for sample in replay_batch.samples))
        teachers = {
            id(one): own
            for one, own in zip(replay_batch.samples, replay_batch.teacher_topk, strict=bool(replay_batch.teacher_topk))
        }
        loss = self._offpolicy_kl if teachers else self._onpolicy_kl
        packs = pack_samples(replay_batch.samples, self.config.microbatch_tokens)

        def job(one: Pack) -> torch.Tensor:
            kl, term = loss(model, one, teachers)
            step_metrics.replay_kl += float(kl.detach().sum()) / tokens
            return replay_batch.weight * term.sum() / tokens

        step_metrics.has_replay = True
        return [partial(job, one) for one in packs]

    def _offpolicy_kl(self, model: Any, pack: Pack, teacher_topk: Mapping[int, TeacherTopK]) -> tuple[torch.Tensor, torch.Tensor]:
        """KL(base || trained) on the base model's own answers: (to show, to differentiate)."""
        ordered = [sample for own in pack for sample in own]
        logits_M_V, source_N, _ = self._logits(model, pack)
        token_N_K = torch.cat([teacher_topk[id(sample)].token_T_K for sample in ordered]).to(source_N.device)
        logp_N_K = torch.cat([teacher_topk[id(sample)].logp_T_K for sample in ordered]).to(source_N.device)
        kl_N = forward_kl(logits_M_V, source_N, token_N_K, logp_N_K)
        return kl_N, kl_N

    def _onpolicy_kl(self, model: Any, pack: Pack, _: Mapping[int, TeacherTopK]) -> tuple[torch.Tensor, torch.Tensor]:
        """KL(trained || base) on the trained model's answers, as for rollouts with a reference and no advantage."""
        terms, _scores = self._token_terms(model, pack, beta=1.0)
        assert terms.kl_N is not None
        return terms.kl_N, terms.loss_N

    def completion_logprobs(self, model: Any, samples: Sequence[Sample]) -> list[list[float]]:
        """Log-probabilities of each rollout's tokens, without gradient. Every process must ask at once, if only about nothing."""
        found: dict[int, list[float]] = {}
        packs = pack_samples(samples, self.config.microbatch_tokens)
        with torch.no_grad():
            for _ in range(self.max_over_ranks(len(packs)) - len(packs)):
                self._dummy_pass(model)
            for one in packs:
                ordered = [sample for own in one for sample in own]
                for sample, logps in zip(
                    ordered, split_by_sample(self._token_logprobs(model, one).logprob_N, ordered), strict=True
                ):
                    found[id(sample)] = logps.tolist()
        return [found[id(sample)] for sample in samples]

    def _token_logprobs(self, model: Any, pack: Pack) -> TokenLogprobs:
        """Log-probabilities of a pack's completion tokens, by prompt, rollout and place."""
        return token_logprobs(*self._logits(model, pack), self.config.temperature)

    def _logits(self, model: Any, pack: Pack) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Logits [M, V], and of each completion token `N` the row that predicts it and its id."""
        families = [build_prompt_group(own) for own in pack]
        device = self.accelerator.device
        with self.accelerator.autocast():
            if supports_shared_prefix(unwrap_peft(self.accelerator.unwrap_model(model))):
                branches = PackedGroups.pack(families, device)
                return completion_logits(model, branches), branches.logit_row_N, branches.target_N
            logits_N_V = padded_logits(model, families, pad=self.pad_token_id, device=device)
        target_N = torch.tensor([one for each in families for own in each.completions for one in own], device=device)
        return logits_N_V, torch.arange(len(logits_N_V), device=device), target_N

    def _sum_over_ranks(self, *values: int) -> list[int]:
        """Sums over all processes."""
        return [int(one) for one in self.accelerator.reduce(torch.tensor(values, device=self.accelerator.device)).tolist()]

    def max_over_ranks(self, value: int) -> int:
        """The largest over all processes: each must run as many passes as the others."""
        return int(self.accelerator.gather(torch.tensor([value], device=self.accelerator.device)).max())


class StepMetrics:
    """Means over the completion tokens that a step trained on."""

    def __init__(self) -> None:
        self.live_rollouts, self.trained_tokens = 0, 0
        self._sums: dict[str, float] = {}
        self._token_count = 0
        self.has_replay, self.replay_kl = False, 0.0

    def add(self, **values_N: torch.Tensor | None) -> None:
        known = {name: values.detach().float() for name, values in values_N.items() if values is not None}
        for name, values in known.items():
            self._sums[name] = self._sums.get(name, 0.0) + float(values.nansum())
        self._token_count += len(next(iter(known.values())))

    @classmethod
    def merged(cls, parts: Sequence["StepMetrics"]) -> "StepMetrics":
        """What several processes counted, as if one had."""
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
    """Values of all tokens, rollout by rollout."""
    return torch.split(values_N, [len(sample.completion) for sample in samples])


def expand_to_tokens(values: Sequence[float], samples: Sequence[Sample], like_N: torch.Tensor) -> torch.Tensor:
    """One value a rollout, repeated for each of its tokens."""
    lengths = torch.tensor([len(sample.completion) for sample in samples], device=like_N.device)
    return torch.tensor(values, device=like_N.device).repeat_interleave(lengths)


def flat_logprobs(
    samples: Sequence[Sample], field: Literal["old_logprobs", "rollout_logprobs", "ref_logprobs"], like_N: torch.Tensor
) -> torch.Tensor | None:
    """A log-probability of every token, or None where it is not known."""
    if getattr(samples[0], field) is None:
        return None
    return torch.tensor([value for sample in samples for value in getattr(sample, field)], device=like_N.device)


def unwrap_peft(network: Any) -> Any:
    """The causal language model inside an adapter's wrapping."""
    return network.get_base_model() if hasattr(network, "peft_config") else network


def _give_zero_gradients(model: Any) -> None:
    """What a backward of nothing leaves: without it a step of only dead rows would also skip AdamW's momentum."""
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
