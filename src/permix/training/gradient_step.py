"""One optimizer step's arithmetic: from rollouts to gradients, pack by pack.

Nothing here generates, verifies or writes. A pack is one forward and backward pass; the sum over packs, and over processes, is
the gradient of the step's whole loss (`permix.training.loss`) and of character replay (`permix.training.replay`).
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, Literal, NamedTuple

import torch

from permix.config import TrainConfig
from permix.inference.generation import Scores, score
from permix.inference.shared_prefix import Branches, completion_logits, plain_logits, shares_prompts
from permix.training import distributed
from permix.training.compatibility import sharding
from permix.training.loss import TokenTerms, importance, token_losses, token_weights
from permix.training.replay import Teacher, forward_kl
from permix.training.rollouts import Pack, Sample, family, pack


class Replayed(NamedTuple):
    """This process's part of the in-character answers that a step replays.

    With `teachers`, one an answer, the base model's distributions are matched; without, the answers carry its log-probabilities.
    """

    weight: float
    samples: Sequence[Sample]
    teachers: Sequence[Teacher]


class Objective:
    """What a step minimises. `accelerator` is the trainer's, `pad` any token id, read by networks that need padded rows."""

    def __init__(self, config: TrainConfig, accelerator: Any, pad: int) -> None:
        self.config, self.accelerator, self.pad = config, accelerator, pad

    def accumulate(
        self, model: Any, samples: Sequence[Sample], replayed: Replayed | None = None
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """Add the gradient of these rollouts' loss and of character replay, pack by pack; returns the loss and figures.

        Rollouts and answers are this process's, loss and figures those of all: each process adds its packs' share of the step's
        one loss, and the processes' gradients are averaged, so a share counts as often as there are processes. A rollout's `old`
        log-probabilities are filled in when they are not known.
        """
        tokens, rows = self._over_processes(sum(len(sample.completion) for sample in samples), len(samples))
        live = [sample for sample in samples if sample.advantage != 0 or self.config.beta != 0.0]
        tally = Tally()
        sizes = {"rows": rows, "tokens": tokens, "longest": self.config.max_new_tokens}
        jobs: list[Callable[[], torch.Tensor]] = [
            partial(self._policy_loss, model, one, sizes=sizes, tally=tally) for one in pack(live, self.config.micro_tokens)
        ]
        if replayed is not None:
            jobs += self._replay_jobs(model, replayed, tally)
        # DeepSpeed steps inside a backward pass, so there must be one.
        passes = max(self.most(len(jobs)), int(sharding().startswith("zero")))
        jobs += [partial(self._nothing, model)] * (passes - len(jobs))
        total = torch.zeros((), device=self.accelerator.device)
        for number, job in enumerate(jobs, start=1):
            with self._travelling(model, last=number == passes):
                loss = job()
                self.accelerator.backward(loss * self.accelerator.num_processes)
            total += loss.detach()
        if passes == 0:
            _give_zero_gradients(model)
        tally.live = len(live)
        return self.accelerator.reduce(total), Tally.of(distributed.gathered(tally)).figures()

    def _travelling(self, model: Any, last: bool) -> AbstractContextManager[None]:
        """Gradients travel between processes once a step, after the last pack; where weights are shared out, after every pack:
        gradients of whole weights would not fit."""
        if sharding().startswith("zero"):
            self.accelerator.gradient_state._set_sync_gradients(last)  # the backward pass that ends in DeepSpeed's step
        if last or sharding() != "none":
            return nullcontext()
        return self.accelerator.no_sync(model)  # type: ignore[no-any-return]

    def _policy_loss(self, model: Any, chosen: Pack, *, sizes: Mapping[str, int], tally: "Tally") -> torch.Tensor:
        """The loss of one pack of rollouts."""
        ordered = [sample for own in chosen for sample in own]
        weights = token_weights(self.config.loss, [len(sample.completion) for sample in ordered], **sizes)
        terms, scores = self._terms(model, chosen, self.config.beta)
        old_N, sampler_N = flat(ordered, "old", scores.logp_N), flat(ordered, "sampler", scores.logp_N)
        gap_N = None if sampler_N is None or old_N is None else (old_N - sampler_N).abs()
        tally.add(entropy=scores.entropy_N, clipped=terms.clipped_N, kl=terms.kl_N, sampler_gap=gap_N)
        tally.trained += sum(family(own).cost for own in chosen)
        return (terms.loss_N * by_token(weights, ordered, terms.loss_N)).sum()

    def _terms(self, model: Any, chosen: Pack, beta: float) -> tuple[TokenTerms, Scores]:
        ordered = [sample for own in chosen for sample in own]
        scores = self._scores(model, chosen)
        for sample, logps in zip(ordered, split(scores.logp_N.detach(), ordered), strict=True):
            if sample.old is None:
                sample.old = logps.tolist()
        old_N, sampler_N = flat(ordered, "old", scores.logp_N), flat(ordered, "sampler", scores.logp_N)
        assert old_N is not None
        cap = self.config.importance_cap
        terms = token_losses(
            scores.logp_N, old_N, by_token([sample.advantage for sample in ordered], ordered, scores.logp_N),
            clip_low=self.config.clip_low, clip_high=self.config.clip_high or self.config.clip_low, beta=beta,
            correction_N=None if sampler_N is None or cap is None else importance(old_N, sampler_N, cap),
            reference_N=flat(ordered, "reference", scores.logp_N) if beta > 0 else None,
        )  # fmt: skip
        return terms, scores

    def _nothing(self, model: Any) -> torch.Tensor:
        """The least a process can run while others still have packs."""
        return self._scores(model, [[Sample((self.pad,), [self.pad], 0.0)]]).logp_N.sum() * 0.0

    def _replay_jobs(self, model: Any, replayed: Replayed, tally: "Tally") -> list[Callable[[], torch.Tensor]]:
        """One job a pack of in-character answers; the term is a mean over the step's tokens, of all processes."""
        (tokens,) = self._over_processes(sum(len(sample.completion) for sample in replayed.samples))
        teachers = {id(one): own for one, own in zip(replayed.samples, replayed.teachers, strict=bool(replayed.teachers))}
        loss = self._matched if teachers else self._anchored
        packs = pack(replayed.samples, self.config.micro_tokens)

        def job(one: Pack) -> torch.Tensor:
            kl, term = loss(model, one, teachers)
            tally.replay_kl += float(kl.detach().sum()) / tokens
            return replayed.weight * term.sum() / tokens

        tally.has_replay = True
        return [partial(job, one) for one in packs]

    def _matched(self, model: Any, chosen: Pack, teachers: Mapping[int, Teacher]) -> tuple[torch.Tensor, torch.Tensor]:
        """KL(base || trained) on the base model's own answers: (to show, to differentiate)."""
        ordered = [sample for own in chosen for sample in own]
        logits_M_V, source_N, _ = self._logits(model, chosen)
        token_N_K = torch.cat([teachers[id(sample)].token_T_K for sample in ordered]).to(source_N.device)
        logp_N_K = torch.cat([teachers[id(sample)].logp_T_K for sample in ordered]).to(source_N.device)
        kl_N = forward_kl(logits_M_V, source_N, token_N_K, logp_N_K)
        return kl_N, kl_N

    def _anchored(self, model: Any, chosen: Pack, _: Mapping[int, Teacher]) -> tuple[torch.Tensor, torch.Tensor]:
        """KL(trained || base) on the trained model's answers, as for rollouts with a reference and no advantage."""
        terms, _scores = self._terms(model, chosen, beta=1.0)
        assert terms.kl_N is not None
        return terms.kl_N, terms.loss_N

    def logps(self, model: Any, samples: Sequence[Sample]) -> list[list[float]]:
        """Log-probabilities of each rollout's tokens, without gradient. Every process must ask at once, if only about nothing."""
        found: dict[int, list[float]] = {}
        packs = pack(samples, self.config.micro_tokens)
        with torch.no_grad():
            for _ in range(self.most(len(packs)) - len(packs)):
                self._nothing(model)
            for one in packs:
                ordered = [sample for own in one for sample in own]
                for sample, logps in zip(ordered, split(self._scores(model, one).logp_N, ordered), strict=True):
                    found[id(sample)] = logps.tolist()
        return [found[id(sample)] for sample in samples]

    def _scores(self, model: Any, chosen: Pack) -> Scores:
        """Log-probabilities of a pack's completion tokens, by prompt, rollout and place."""
        return score(*self._logits(model, chosen), self.config.temperature)

    def _logits(self, model: Any, chosen: Pack) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Logits [M, V], and of each completion token `N` the row that predicts it and its id."""
        families = [family(own) for own in chosen]
        device = self.accelerator.device
        with self.accelerator.autocast():
            if shares_prompts(inner(self.accelerator.unwrap_model(model))):
                branches = Branches.of(families, device)
                return completion_logits(model, branches), branches.source_N, branches.target_N
            logits_N_V = plain_logits(model, families, pad=self.pad, device=device)
        target_N = torch.tensor([one for each in families for own in each.completions for one in own], device=device)
        return logits_N_V, torch.arange(len(logits_N_V), device=device), target_N

    def _over_processes(self, *numbers: int) -> list[int]:
        """Sums over all processes."""
        return [int(one) for one in self.accelerator.reduce(torch.tensor(numbers, device=self.accelerator.device)).tolist()]

    def most(self, number: int) -> int:
        """The largest over all processes: each must run as many passes as the others."""
        return int(self.accelerator.gather(torch.tensor([number], device=self.accelerator.device)).max())


class Tally:
    """Means over the completion tokens that a step trained on."""

    def __init__(self) -> None:
        self.live, self.trained = 0, 0
        self._sums: dict[str, float] = {}
        self._count = 0
        self.has_replay, self.replay_kl = False, 0.0

    def add(self, **each_N: torch.Tensor | None) -> None:
        known = {name: values.detach().float() for name, values in each_N.items() if values is not None}
        for name, values in known.items():
            self._sums[name] = self._sums.get(name, 0.0) + float(values.nansum())
        self._count += len(next(iter(known.values())))

    @classmethod
    def of(cls, parts: Sequence["Tally"]) -> "Tally":
        """What several processes counted, as if one had."""
        whole = cls()
        for part in parts:
            whole.live += part.live
            whole.trained += part.trained
            whole._count += part._count
            whole.has_replay |= part.has_replay
            whole.replay_kl += part.replay_kl
            for name, value in part._sums.items():
                whole._sums[name] = whole._sums.get(name, 0.0) + value
        return whole

    def figures(self) -> dict[str, float]:
        means = {name: total / self._count for name, total in self._sums.items()}
        replay = {"replay_kl": self.replay_kl} if self.has_replay else {}
        return {"live_rollouts": self.live, "trained_tokens": self.trained, **means, **replay}


def split(flat_N: torch.Tensor, ordered: Sequence[Sample]) -> Sequence[torch.Tensor]:
    """Values of all tokens, rollout by rollout."""
    return torch.split(flat_N, [len(sample.completion) for sample in ordered])


def by_token(values: Sequence[float], ordered: Sequence[Sample], like_N: torch.Tensor) -> torch.Tensor:
    """One value a rollout, repeated for each of its tokens."""
    lengths = torch.tensor([len(sample.completion) for sample in ordered], device=like_N.device)
    return torch.tensor(values, device=like_N.device).repeat_interleave(lengths)


def flat(ordered: Sequence[Sample], name: Literal["old", "sampler", "reference"], like_N: torch.Tensor) -> torch.Tensor | None:
    """A log-probability of every token, or None where it is not known."""
    if getattr(ordered[0], name) is None:
        return None
    return torch.tensor([value for sample in ordered for value in getattr(sample, name)], device=like_N.device)


def inner(network: Any) -> Any:
    """The causal language model inside an adapter's wrapping."""
    return network.get_base_model() if hasattr(network, "peft_config") else network


def _give_zero_gradients(model: Any) -> None:
    """What a backward of nothing leaves: without it a step of only dead rows would also skip AdamW's momentum."""
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
