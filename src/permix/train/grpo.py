"""PerMix-RLVR's trainer: TRL's GRPOTrainer fed from a plan, in the plan's order. The only module that imports trl.

TRL keeps the loop, the advantages, the optimizer, the logs, the checkpoints and the distributed machinery. What is ours, and why:
- a step's rows are the plan's, in its order, so that groups are the plan's and a persona is never drawn here;
- rollouts are decoded by `permix.models.decoding` from a copy of the weights in the forward pass's precision (TRL casts all
  float32 weights again at every decode step), each from its own seed, so a rollout depends on the plan and the weights alone;
- one reward, the verifier's; its None stays None;
- one optimizer step is one `training_step`: its rollouts are packed without padding, each prompt is read once for all of its
  completions (`permix.models.shared`), and rollouts without advantage are left out where the loss has no KL term. The gradient
  is the same.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Protocol

import torch
from datasets import Dataset
from torch.utils.data import Sampler
from transformers import PrinterCallback, TrainerCallback
from trl import GRPOConfig, GRPOTrainer
from trl.trainer.utils import RepeatSampler

from permix.config import TrainConfig
from permix.errors import PermixError
from permix.models.decoding import decode
from permix.models.score import Scores, score
from permix.models.shared import Branches, completion_logits, plain_logits, shares_prompts
from permix.progress import say
from permix.train.clock import StepClock
from permix.train.losses import importance, token_losses, token_weights
from permix.train.plan import Plan
from permix.train.reward import Rollout, mean_by_tag, verdicts
from permix.train.samples import Pack, Sample, family, pack
from permix.types import Sampling, seed_from
from permix.verify import Verifier


class Recorder(Protocol):
    """Where a step's rollouts and figures go."""

    def rollouts(self, step: int, rollouts: Sequence[Rollout]) -> None: ...

    def step(self, step: int, figures: dict[str, Any]) -> None: ...


def rollout_rows(plan: Plan) -> list[dict[str, Any]]:
    """One row a rollout, in plan order: row `i` of a step belongs to group `i // G`."""
    return [
        {
            "prompt": [dict(message) for message in row.messages],
            "task": row.task,
            "gold": row.gold,
            "group": row.group,
            "question_id": row.question_id,
            "persona_id": row.persona_id,
            "persona_tags": list(row.persona_tags),
            "rollout_seed": seed_from(row.seed, number),
        }
        for row in plan.rows
        for number in range(row.rollouts)
    ]


class _ClockStarter(TrainerCallback):  # type: ignore[misc]
    """Keeps setting up and loading a checkpoint out of the first step's time."""

    def __init__(self, clock: StepClock) -> None:
        self._clock = clock

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._clock.restart()


class PlanTrainer(GRPOTrainer):  # type: ignore[misc]
    """`GRPOTrainer` over the rows of a plan."""

    def __init__(
        self, *, plan: Plan, verifier: Verifier, recorder: Recorder, config: TrainConfig, args: GRPOConfig, **options: Any
    ) -> None:
        self.config = config
        self._verifier, self._recorder = verifier, recorder
        self._rows = rollout_rows(plan)
        self._seeds: list[int] = []
        self._samples: list[Sample] = []
        self._sampler_network: Any = None
        self._clock = StepClock()
        self._figures: dict[str, Any] = {}
        # The loader hands out places in the plan; what stands there is looked up when it is needed.
        places = Dataset.from_dict({"place": range(len(self._rows))})
        super().__init__(reward_funcs=self._reward, train_dataset=places, args=args, **options)
        self.remove_callback(PrinterCallback)
        self.add_callback(_ClockStarter(self._clock))
        for network in (self.model, self.ref_model):
            if network is not None and not shares_prompts(_inner(network)):
                say("note: this model cannot read a prompt once for many completions; every copy of a prompt is read in full")
                break

    def _get_train_sampler(self, dataset: Dataset | None = None) -> Sampler[int]:
        """Each step's rows once per iteration over them; TRL's own would repeat every row G times and shuffle."""
        sampler: Sampler[int] = RepeatSampler(
            data_source=self.train_dataset if dataset is None else dataset,
            mini_repeat_count=1,
            batch_size=self.args.generation_batch_size,
            repeat_count=self.num_iterations,
            shuffle=False,
        )
        return sampler

    # Rollouts

    def _prepare_inputs(self, places: list[dict[str, int]]) -> list[Sample]:
        """The rollouts of this optimizer step: fresh ones, or the last ones again while `iterations` asks for them."""
        if self.state.global_step % self.num_iterations == 0 or not self._samples:
            rows = [self._rows[one["place"]] for one in places]
            # What is drawn from torch's global generator (dropout) depends on this step and on nothing before it.
            torch.manual_seed(rows[0]["rollout_seed"])
            self._samples = samples_of(self._generate_and_score_completions(rows))
        return self._samples

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self._seeds = [row["rollout_seed"] for row in inputs]
        return dict(super()._generate_and_score_completions(inputs))

    def _generate_single_turn(
        self, prompt_ids: list[list[int]], *rest: Any, **more: Any
    ) -> tuple[list[list[int]], list[list[float]]]:
        with self._clock.part("generation"):
            if self.use_vllm:
                return super()._generate_single_turn(prompt_ids, *rest, **more)  # type: ignore[no-any-return]
            sampling = Sampling(
                temperature=self.args.temperature, top_p=self.args.top_p, max_new_tokens=self.args.max_completion_length
            )
            with self._rollout_network() as network:
                drawn = decode(network, self.processing_class, prompt_ids, self._seeds, sampling)
            return [one.ids for one in drawn], [one.logps for one in drawn]

    @contextmanager
    def _rollout_network(self) -> Iterator[Any]:
        """The network that decodes: a bfloat16 copy brought up to date, or the trained one where a copy would not help."""
        trained = _inner(self.accelerator.unwrap_model(self.model))
        if not self.args.bf16:
            was = trained.training
            trained.eval()
            try:
                yield trained
            finally:
                trained.train(was)
            return
        if self._sampler_network is None:
            self._sampler_network = bfloat16_copy(trained)
        with torch.no_grad():
            for ours, theirs in zip(self._sampler_network.parameters(), trained.parameters(), strict=True):
                if theirs.requires_grad:
                    ours.copy_(theirs)
        yield self._sampler_network

    def _reward(self, prompts: list[Any], completions: list[Any], completion_ids: list[list[int]], **columns: Any) -> list[Any]:
        texts = [completion[0]["content"] for completion in completions]
        with self._clock.part("verification"):
            found = verdicts(texts, columns["task"], columns["gold"], self._verifier)
        rewards = [verdict.reward for verdict in found]
        step = self.state.global_step + 1
        self._recorder.rollouts(
            step,
            [
                Rollout(step, group, persona, question, prompt[-1]["content"], text, len(ids), gold, verdict)
                for group, persona, question, prompt, text, ids, gold, verdict in zip(
                    columns["group"], columns["persona_id"], columns["question_id"], prompts, texts, completion_ids,
                    columns["gold"], found, strict=True,
                )
            ],
        )  # fmt: skip
        self._figures |= {
            "reward_by_tag": mean_by_tag(rewards, columns["persona_tags"]),
            "unscored": rewards.count(None),
            "tokens": sum(map(len, completion_ids)),
        }
        return rewards

    def _get_per_token_logps_and_entropies(
        self, model: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor, logits_to_keep: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, None, None]:
        """What TRL asks of the reference model: log-probabilities [B, T], right-padded with 0."""
        real_B_T = attention_mask.bool()
        parts = [(ids[:-logits_to_keep][real[:-logits_to_keep]], ids[-logits_to_keep:][real[-logits_to_keep:]])
                 for ids, real in zip(input_ids, real_B_T, strict=True)]  # fmt: skip
        samples = [Sample(tuple(prompt.tolist()), completion.tolist(), 0.0) for prompt, completion in parts]
        logp_B_T = torch.zeros(len(samples), logits_to_keep, device=input_ids.device)
        row = {id(sample): number for number, sample in enumerate(samples)}
        for one in pack(samples, self.config.micro_tokens):
            ordered = [sample for own in one for sample in own]
            for sample, logps in zip(ordered, self._split(self._scores(model, one).logp_N, ordered), strict=True):
                logp_B_T[row[id(sample)], : len(logps)] = logps
        return logp_B_T, None, None

    # The optimizer step

    def training_step(self, model: Any, inputs: list[dict[str, int]], num_items_in_batch: Any = None) -> torch.Tensor:
        """Forward and backward of one whole optimizer step; returns its loss. Raises PermixError when that is not a number."""
        model.train()
        total, figures = self.accumulate(model, self._prepare_inputs(inputs))
        if not bool(torch.isfinite(total)):
            raise PermixError(
                f"step {self.state.global_step + 1}: the loss is {total.item()}; training has diverged. The last checkpoint is "
                "whole: go on from it with a smaller train.lr or train.max_grad_norm, or in a higher train.precision"
            )
        self._figures |= figures
        self._step += 1
        return total

    def accumulate(self, model: Any, samples: Sequence[Sample]) -> tuple[torch.Tensor, dict[str, float]]:
        """Add the gradient of these rollouts' loss, pack by pack; returns the loss and figures."""
        tokens, rows = self._over_processes(sum(len(sample.completion) for sample in samples), len(samples))
        live = [sample for sample in samples if sample.advantage != 0 or self.beta != 0.0]
        packs = pack(live, self.config.micro_tokens)
        passes = self._most(len(packs))
        tally = Tally()
        total = torch.zeros((), device=self.accelerator.device)
        for number in range(passes):
            # Gradients travel between processes once a step, after the last pack.
            with nullcontext() if number + 1 == passes else self.accelerator.no_sync(model):
                chosen = packs[number] if number < len(packs) else [[_bystander(samples)]]
                loss = self._loss(model, chosen, rows=rows, tokens=tokens, tally=tally, counts=number < len(packs))
                self.accelerator.backward(loss * self.accelerator.num_processes)
            total += loss.detach()
        if passes == 0:
            _give_zero_gradients(model)
        return total, tally.figures() | {"live_rollouts": len(live)}

    def _loss(self, model: Any, chosen: Pack, *, rows: int, tokens: int, tally: "Tally", counts: bool) -> torch.Tensor:
        ordered = [sample for own in chosen for sample in own]
        scores = self._scores(model, chosen)
        if not counts:
            return scores.logp_N.sum() * 0.0
        device = scores.logp_N.device
        lengths = [len(sample.completion) for sample in ordered]
        for sample, logps in zip(ordered, self._split(scores.logp_N.detach(), ordered), strict=True):
            if sample.old is None:
                sample.old = logps.tolist()

        def by_token(values: Sequence[float]) -> torch.Tensor:
            return torch.tensor(values, device=device).repeat_interleave(torch.tensor(lengths, device=device))

        def flat(name: str) -> torch.Tensor | None:
            if getattr(ordered[0], name) is None:
                return None
            return torch.tensor([value for sample in ordered for value in getattr(sample, name)], device=device)

        old_N, sampler_N, reference_N = flat("old"), flat("sampler"), flat("reference")
        assert old_N is not None
        cap = self.config.importance_cap
        correction_N = None if sampler_N is None or cap is None else importance(old_N, sampler_N, cap)
        terms = token_losses(
            scores.logp_N, old_N, by_token([sample.advantage for sample in ordered]), clip_low=self.epsilon_low,
            clip_high=self.epsilon_high, correction_N=correction_N, reference_N=reference_N, beta=self.beta,
        )  # fmt: skip
        weights = token_weights(self.config.loss, lengths, rows=rows, tokens=tokens, longest=self.args.max_completion_length)
        tally.add(
            entropy=scores.entropy_N, clipped=terms.clipped_N, kl=terms.kl_N,
            sampler_gap=None if sampler_N is None else (old_N - sampler_N).abs(),
        )  # fmt: skip
        tally.trained += sum(family(own).cost for own in chosen)
        return (terms.loss_N * by_token(weights)).sum()

    def _scores(self, model: Any, chosen: Pack) -> Scores:
        """Log-probabilities of a pack's completion tokens, by prompt, rollout and place."""
        families = [family(own) for own in chosen]
        with self.accelerator.autocast():
            if shares_prompts(_inner(self.accelerator.unwrap_model(model))):
                branches = Branches.of(families, self.accelerator.device)
                logits_M_V, source_N, target_N = completion_logits(model, branches), branches.source_N, branches.target_N
            else:
                logits_M_V = plain_logits(model, families, pad=self.processing_class.pad_token_id, device=self.accelerator.device)
                source_N = torch.arange(len(logits_M_V), device=logits_M_V.device)
                target_N = torch.tensor(
                    [one for each in families for own in each.completions for one in own], device=source_N.device
                )
        return score(logits_M_V, source_N, target_N, self.temperature)

    def _split(self, flat_N: torch.Tensor, ordered: Sequence[Sample]) -> Sequence[torch.Tensor]:
        return torch.split(flat_N, [len(sample.completion) for sample in ordered])

    def _over_processes(self, *numbers: int) -> list[int]:
        """Sums over all processes."""
        return [int(one) for one in self.accelerator.reduce(torch.tensor(numbers, device=self.accelerator.device)).tolist()]

    def _most(self, number: int) -> int:
        """The largest over all processes: each must run as many passes as the others."""
        return int(self.accelerator.gather(torch.tensor([number], device=self.accelerator.device)).max())

    # Records

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        with self._clock.part("saving"):
            super()._save_checkpoint(model, trial)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        by_tag = self._figures.get("reward_by_tag", {})
        super().log(logs | {f"reward_by_tag/{tag}": mean for tag, mean in by_tag.items()}, start_time)
        if "loss" in logs:
            self._recorder.step(self.state.global_step, self._step_figures(self.state.log_history[-1]))

    def _step_figures(self, logs: dict[str, float]) -> dict[str, Any]:
        """TRL's metrics under this project's names, our own, and where the step's time went."""
        figures = {ours: logs.get(theirs) for ours, theirs in METRICS.items()}
        flat = figures.pop("flat_groups")
        figures["signal_groups"] = None if flat is None else 1 - flat
        fresh, self._figures = self._figures, {}
        return figures | fresh | self._clock.lap()


class Tally:
    """Means over the completion tokens that a step trained on."""

    def __init__(self) -> None:
        self.trained = 0
        self._sums: dict[str, float] = {}
        self._count = 0

    def add(self, **each_N: torch.Tensor | None) -> None:
        known = {name: values.detach().float() for name, values in each_N.items() if values is not None}
        for name, values in known.items():
            self._sums[name] = self._sums.get(name, 0.0) + float(values.nansum())
        self._count += len(next(iter(known.values())))

    def figures(self) -> dict[str, float]:
        means = {name: total / self._count for name, total in self._sums.items()}
        return {"trained_tokens": self.trained, **means}


def samples_of(scored: dict[str, Any]) -> list[Sample]:
    """TRL's padded batch as rollouts without padding."""
    prompt_B_T, completion_B_T = scored["prompt_mask"].bool(), scored["completion_mask"].bool()
    columns = {name: scored.get(f"{theirs}_per_token_logps") for name, theirs in (("sampler", "sampling"), ("reference", "ref"))}
    samples = []
    for row, advantage in enumerate(scored["advantages"].tolist()):
        own = completion_B_T[row]
        logps = {name: None if values is None else values[row][own].tolist() for name, values in columns.items()}
        prompt = tuple(scored["prompt_ids"][row][prompt_B_T[row]].tolist())
        samples.append(Sample(prompt, scored["completion_ids"][row][own].tolist(), advantage, **logps))
    return samples


def bfloat16_copy(network: Any) -> Any:
    """A frozen copy with its weights in bfloat16. Buffers stay as they are: rotary frequencies in bfloat16 are wrong ones."""
    twin = copy.deepcopy(network).eval().requires_grad_(False)
    for parameter in twin.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
    return twin


def _inner(network: Any) -> Any:
    """The causal language model inside an adapter's wrapping."""
    return network.get_base_model() if hasattr(network, "peft_config") else network


def _bystander(samples: Sequence[Sample]) -> Sample:
    """The least a process can run while others still have packs."""
    return Sample(samples[0].prompt[:1], samples[0].completion[:1], 0.0)


def _give_zero_gradients(model: Any) -> None:
    """What a backward of nothing leaves: without it a step of only dead rows would also skip AdamW's momentum."""
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)


METRICS = {
    "reward": "reward",
    "reward_std": "reward_std",
    "flat_groups": "frac_reward_zero_std",
    "completion_tokens": "completions/mean_length",
    "truncated": "completions/clipped_ratio",
    "loss": "loss",
    "grad_norm": "grad_norm",
    "lr": "learning_rate",
}
