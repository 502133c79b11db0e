"""PerMix-RLVR's trainer: TRL's GRPOTrainer fed from a plan, in the plan's order.

TRL keeps the loop, the advantages, the optimizer, the logs, the checkpoints and the distributed machinery. What is ours, and why:
- a step's rows are the plan's, in its order, so that groups are the plan's and a persona is never drawn here;
- rollouts are decoded by `permix.inference.generation` from a copy of the weights in the forward pass's precision (TRL casts all
  float32 weights again at every decode step), each from its own seed, so a rollout depends on the plan and the weights alone;
- one reward, the verifier's; its None stays None;
- several processes train as one: each has whole groups of a step, figures and records are those of all, in the plan's order;
- a checkpoint may fall between two optimizer steps on the same rollouts, and then holds them;
- one optimizer step is one `training_step`, whose arithmetic is `permix.training.gradient_step`: rollouts packed without
padding, each
  prompt read once for all of its completions, those without advantage left out where the loss has no KL term.
"""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import torch
from datasets import Dataset
from safetensors import SafetensorError
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.tensor import DTensor
from torch.utils.data import Sampler
from transformers import PrinterCallback, Trainer
from trl import GRPOConfig, GRPOTrainer
from trl.trainer.utils import RepeatSampler, use_adapter

from permix.config import TrainConfig
from permix.errors import PermixError
from permix.inference.generation import decode
from permix.inference.hf import encode_chat
from permix.inference.shared_prefix import NAME, ORDINARY, shares_prompts
from permix.plan import Plan
from permix.progress import say
from permix.storage.files import unwritten
from permix.training import distributed
from permix.training.checkpoints import read_buffer, write_buffer
from permix.training.compatibility import refuse_raw_logprobs, sharding
from permix.training.curriculum import Curriculum, outcomes
from permix.training.dev_eval_callback import ClockStarter, Probed
from permix.training.gradient_step import Objective, Replayed, inner
from permix.training.replay import Replay
from permix.training.rewards import Expressivity, Rollout, mean_by_tag, mean_of, verdicts
from permix.training.rollouts import Sample, Told, has_signal, in_groups, in_plan_order, rollout_rows, samples_of
from permix.training.run_log import StepClock
from permix.training.weight_sync import bring_up_to_date, rollout_copy
from permix.types import Message, Sampling, seed_from
from permix.verification.math_verifier import Verifier


class Recorder(Protocol):
    """Where a step's rollouts and figures go."""

    def rollouts(self, step: int, rollouts: Sequence[Rollout]) -> None: ...

    def step(self, step: int, figures: dict[str, Any]) -> None: ...

    def plan(self, plan: Plan, blocks: Sequence[dict[str, Any]]) -> None: ...


class PlanTrainer(GRPOTrainer):  # type: ignore[misc]
    """`GRPOTrainer` over the rows of a plan."""

    def __init__(
        self, *, plan: Plan, verifier: Verifier, recorder: Recorder, config: TrainConfig, args: GRPOConfig,
        replay: Replay | None = None, expressivity: Expressivity | None = None, curriculum: Curriculum | None = None,
        **options: Any,
    ) -> None:  # fmt: skip
        self.config, self._replay, self._expressivity = config, replay, expressivity
        self._verifier, self._recorder = verifier, recorder
        self._plan, self._curriculum = plan, curriculum
        self._told: list[Told] = []
        self._bare = bool(plan.about.get("bare"))
        self._current: list[dict[str, Any]] = []
        self._seeds: list[int] = []
        self._samples: list[Sample] = []
        self._sampler_network: Any = None
        self._sampler_filled = False
        self._clock = StepClock()
        self._figures: dict[str, Any] = {}
        # The loader hands out places in the plan; what stands there is looked up when it is needed.
        rollouts = plan.steps * plan.groups_per_step * plan.group_size
        places = Dataset.from_dict({"place": range(rollouts)})
        super().__init__(reward_funcs=self._reward, train_dataset=places, args=args, **options)
        self._objective = Objective(config, self.accelerator, self.processing_class.pad_token_id)
        self.remove_callback(PrinterCallback)
        self.add_callback(ClockStarter(self._clock))
        if sharding() != "zero3":  # DeepSpeed's networks run once training has begun: there the first pass tries
            self._try_to_share_prompts()
        if sharding() == "fsdp2" and not self.use_vllm:
            self._sampler_network = rollout_copy(inner(self.model), self._precision, self.accelerator.device)
        if self.use_vllm and config.vllm_mode == "server" and config.importance_cap and self.accelerator.is_main_process:
            refuse_raw_logprobs(self.vllm_generation.vllm_client.get_server_info())

    def _try_to_share_prompts(self) -> None:
        for network in (self.model, self.ref_model):
            if network is not None and not share_prompts_alike(inner(network)):
                if distributed.is_main():
                    say("note: this model cannot read a prompt once for many completions; every copy of it is read in full")
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
        step, again = divmod(self.state.global_step, self.num_iterations)
        if again == 0:
            self._lay_block(step)
            size = self._plan.groups_per_step * self._plan.group_size
            rows = rollout_rows(row for row in self._plan.of_step(step) if not row.spare)
            self._told = []
            samples = self._sampled([rows[one["place"] % size] for one in places])
            self._samples = self._with_signal(samples, step)
            self._record()
        return self._samples

    def _lay_block(self, step: int) -> None:
        """Where personas adapt: draw the block of this step, if it has not been drawn."""
        drawn = self._curriculum.lay(self._plan, step) if self._curriculum is not None else None
        if self._curriculum is not None and drawn is not None:
            self._plan = drawn
            self._recorder.plan(drawn, [block.record for block in self._curriculum.blocks])

    def _sampled(self, rows: list[dict[str, Any]]) -> list[Sample]:
        """One rollout of each row, scored."""
        self._current = rows
        # What is drawn from torch's global generator (dropout) depends on these rows and on nothing before them.
        torch.manual_seed(rows[0]["rollout_seed"])
        return samples_of(self._generate_and_score_completions(rows))

    def _with_signal(self, samples: list[Sample], step: int) -> list[Sample]:
        """Groups whose rollouts all earn the same give way to the step's spare ones, in the plan's order, until none is left.

        The same spare groups take the same places whatever process holds them.
        """
        groups = in_groups(samples, self._plan.group_size)
        spare = in_groups(rollout_rows(row for row in self._plan.of_step(step) if row.spare), self._plan.group_size)
        while spare:
            flat = distributed.gathered([place for place, group in enumerate(groups) if not has_signal(group)])
            places = [(rank, place) for rank, own in enumerate(flat) for place in own]
            asked, spare = spare[: len(places)], spare[len(places) :]
            if not asked:
                break
            for (rank, place), group in zip(places, filter(has_signal, self._answered(asked)), strict=False):
                if rank == self.accelerator.process_index:
                    groups[place] = group
        return [sample for group in groups for sample in group]

    def _answered(self, asked: Sequence[Sequence[dict[str, Any]]]) -> list[Sequence[Sample]]:
        """Rollouts of these groups, in their order, in every process; each generates as many groups as any other.

        Where they cannot be shared out evenly, the last group fills up a share; what it says then is not told.
        """
        size, share = self._plan.group_size, -(-len(asked) // self.accelerator.num_processes)
        own = asked[self.accelerator.process_index * share :][:share]
        filling = share - len(own)
        sampled = in_groups(self._sampled([row for group in [*own, *[asked[-1]] * filling] for row in group]), size)
        del self._told[len(self._told) - filling * size :]
        return list(chain.from_iterable(distributed.gathered(sampled[: len(own)])))

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

    @property
    def _precision(self) -> torch.dtype:
        return torch.bfloat16 if self.args.bf16 else torch.float32

    @contextmanager
    def _rollout_network(self) -> Iterator[Any]:
        """The network that decodes: a copy brought up to date, or the trained one where a copy would not help.

        A copy helps in bfloat16, and where weights are shared out: processes decode for different lengths, and a network whose
        every pass needs all of them would wait for ever.
        """
        trained = inner(self.accelerator.unwrap_model(self.model))
        if self._sampler_network is None and not self.args.bf16:
            was = trained.training
            trained.eval()
            try:
                yield trained
            finally:
                trained.train(was)
            return
        if self._sampler_network is None:
            self._sampler_network = rollout_copy(trained, self._precision)
        bring_up_to_date(self._sampler_network, trained, frozen_too=not self._sampler_filled)
        self._sampler_filled = True
        yield self._sampler_network

    def _reward(self, prompts: list[Any], completions: list[Any], completion_ids: list[list[int]], **columns: Any) -> list[Any]:
        texts = [completion[0]["content"] for completion in completions]
        with self._clock.part("verification"):
            found = verdicts(texts, columns["task"], columns["gold"], self._verifier)
        rewards = [verdict.reward for verdict in found]
        paid = rewards
        shares: Sequence[float | None] = [None] * len(rewards)
        if self._expressivity is not None:
            shares = expressive = self._expressivity.of(texts, columns["persona_id"])
            paid = self._expressivity.bonus(rewards, expressive)
        step = self.state.global_step + 1
        rollouts = [
            Rollout(step, group, persona, question, prompt[-1]["content"], text, len(ids), gold, verdict)
            for group, persona, question, prompt, text, ids, gold, verdict in zip(
                columns["group"], columns["persona_id"], columns["question_id"], prompts, texts, completion_ids,
                columns["gold"], found, strict=True,
            )
        ]  # fmt: skip
        self._told += zip(rollouts, columns["persona_tags"], shares, strict=True)
        return paid

    def _record(self) -> None:
        """Write down what all processes generated, spare groups and all, and let the curriculum know."""
        rollouts, tags, shares = zip(*in_plan_order(distributed.gathered(self._told)), strict=True)
        rewards = [rollout.verdict.reward for rollout in rollouts]
        self._recorder.rollouts(self.state.global_step + 1, rollouts)
        self._figures |= {
            "reward_by_tag": mean_by_tag(rewards, tags),
            "unscored": rewards.count(None),
            "tokens": sum(rollout.tokens for rollout in rollouts),
            "reward": mean_of([reward for reward in rewards if reward is not None]),
        }
        if self._expressivity is not None:
            self._figures["expressivity"] = mean_of(
                [share for share, rollout in zip(shares, rollouts, strict=True) if rollout.persona_id is not None]
            )
        if self._plan.spares:
            self._figures["spare_rollouts"] = len(rollouts) - len(self._samples) * self.accelerator.num_processes
        if self._curriculum is not None:
            self._curriculum.note(outcomes(rollouts, self.num_iterations))

    def _get_per_token_logps_and_entropies(
        self, model: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor, logits_to_keep: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, None, None]:
        """What TRL asks of the reference model about the rollouts: log-probabilities [B, T], right-padded with 0."""
        logp_B_T = torch.zeros(len(input_ids), logits_to_keep, device=input_ids.device)
        if self.config.beta == 0.0:  # the reference is there for character replay alone
            return logp_B_T, None, None
        real_B_T = attention_mask.bool()
        parts = [(ids[:-logits_to_keep][real[:-logits_to_keep]], ids[-logits_to_keep:][real[-logits_to_keep:]])
                 for ids, real in zip(input_ids, real_B_T, strict=True)]  # fmt: skip
        prompts = [tuple(prompt.tolist()) for prompt, _ in parts]
        if self.config.anchor == "no-persona":
            prompts = self._without_persona()
        samples = [Sample(prompt, completion.tolist(), 0.0) for prompt, (_, completion) in zip(prompts, parts, strict=True)]
        for row, logps in enumerate(self._objective.logps(model, samples)):
            logp_B_T[row, : len(logps)] = torch.tensor(logps)
        return logp_B_T, None, None

    def _without_persona(self) -> list[tuple[int, ...]]:
        """The prompts of the current rollouts as they are without persona."""
        questions = [[message for message in row["prompt"] if message["role"] != "system"] for row in self._current]
        empty = [Message(role="system", content="")] if self._bare else []
        return [tuple(encode_chat(self.processing_class, [*empty, *messages])) for messages in questions]

    # The optimizer step

    def training_step(self, model: Any, inputs: list[dict[str, int]], num_items_in_batch: Any = None) -> torch.Tensor:
        """Forward and backward of one whole optimizer step; returns its loss. Raises PermixError when that is not a number."""
        model.train()
        samples = self._prepare_inputs(inputs)
        total, figures = self._objective.accumulate(model, samples, self._replayed())
        if not bool(torch.isfinite(total)):
            raise PermixError(
                f"step {self.state.global_step + 1}: the loss is {total.item()}; training has diverged. The last checkpoint is "
                "whole: go on from it with a smaller train.lr or train.max_grad_norm, or in a higher train.precision"
            )
        self._figures |= figures
        self._step += 1
        return total

    # Character replay

    def _replayed(self) -> Replayed | None:
        """This process's part of the answers that the step replays."""
        if self._replay is None:
            return None
        own = slice(self.accelerator.process_index, None, self.accelerator.num_processes)
        places = self._replay.chosen(self.state.global_step)[own]
        # Copies: what a step learns of an answer (its log-probabilities) is not the next step's.
        answers = [replace(self._replay.answers[place]) for place in places]
        if self._replay.teachers:
            return Replayed(self._replay.weight, answers, [self._replay.teachers[place] for place in places])
        numbers = range(own.start, own.start + own.step * len(places), own.step)
        seeds = [seed_from("replay", self.config.seed, self.state.global_step, number) for number in numbers]
        return Replayed(self._replay.weight, self._answers_now(answers, seeds, self._replay.longest), ())

    def _answers_now(self, asked: Sequence[Sample], seeds: Sequence[int], longest: int) -> list[Sample]:
        """What the model in training says to the same prompts, scored by the reference."""
        with self._clock.part("generation"), self._rollout_network() as network:
            sampling = Sampling(temperature=self.temperature, max_new_tokens=longest)
            prompts = [list(one.prompt) for one in asked]
            drawn = decode(network, self.processing_class, prompts, seeds, sampling) if prompts else []
        samples = [Sample(one.prompt, said.ids, 0.0, sampler=said.logps) for one, said in zip(asked, drawn, strict=True)]
        with self._reference() as reference:
            for sample, logps in zip(samples, self._objective.logps(reference, samples), strict=True):
                sample.reference = logps
        return samples

    @contextmanager
    def _reference(self) -> Iterator[Any]:
        if self.ref_model is not None:
            yield self.ref_model
        else:
            with use_adapter(self.accelerator.unwrap_model(self.model), adapter_name=None):
                yield self.model

    # Probes

    def probed(self) -> Probed:
        """This trainer, as `permix.training.dev_eval_callback` needs it."""
        track = partial(Trainer.log, self)  # past what this class and TRL do with a step's own figures
        return Probed(self.processing_class, self._rollout_network, self._trained, self._clock, track)

    def _trained(self) -> Any:
        return self.accelerator.unwrap_model(self.model)

    # Records

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Raises PermixError where the system refuses to write; what was begun is then taken away, and the last one is whole."""
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        with self._clock.part("saving"):
            try:
                super()._save_checkpoint(model, trial)
            except (OSError, RuntimeError, SafetensorError, CheckpointException) as error:
                if distributed.peer_lost(error):
                    raise
                shutil.rmtree(folder, ignore_errors=True)
                cause = next(iter(error.failures.values()))[0] if isinstance(error, CheckpointException) else error
                raise unwritten(folder, cause) from error

    def _save_rng_state(self, output_dir: str) -> None:
        """The last that each process saves before the main one writes trainer_state.json, which makes the checkpoint count."""
        super()._save_rng_state(output_dir)
        unfinished = self.state.global_step % self.num_iterations != 0
        rank, count = self.accelerator.process_index, self.accelerator.num_processes
        write_buffer(Path(output_dir), self._samples if unfinished else [], rank, count)
        distributed.wait()

    def _load_rng_state(self, checkpoint: str) -> None:
        super()._load_rng_state(checkpoint)
        self._samples = read_buffer(Path(checkpoint), self.accelerator.process_index, self.accelerator.num_processes)

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
        # Only a step that generated has a reward: a second pass over the same rollouts has none of its own.
        return {"reward": None} | figures | fresh | self._laps()

    def _laps(self) -> dict[str, dict[str, float]]:
        """Wall seconds of this process, CPU seconds of all."""
        laps = distributed.gathered(self._clock.lap())
        cpu = {part: round(sum(lap["cpu_seconds"][part] for lap in laps), 3) for part in laps[0]["cpu_seconds"]}
        return {"seconds": laps[distributed.rank()]["seconds"], "cpu_seconds": cpu}


def share_prompts_alike(network: Any) -> bool:
    """Whether all processes' networks can share prompts. The main one's trial counts: others may hold no weights yet."""
    blank = sharding() == "fsdp2" and not distributed.is_main() and not isinstance(next(network.parameters()), DTensor)
    tried = not blank and shares_prompts(network)
    found = distributed.agreed(tried)
    if found != tried:
        network.set_attn_implementation(NAME if found else ORDINARY)
    network.shares_prompts = found
    return found


METRICS = {
    "reward_std": "reward_std",
    "flat_groups": "frac_reward_zero_std",
    "completion_tokens": "completions/mean_length",
    "truncated": "completions/clipped_ratio",
    "loss": "loss",
    "grad_norm": "grad_norm",
    "lr": "learning_rate",
}
