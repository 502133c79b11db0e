"""Trains with a reward: TRL's GRPOTrainer, fed with the rows of a plan in the plan's order.

TRL keeps the loop, the advantages, the optimizer, the logs, the checkpoints and the distribution over processes. Changes to it:
- The rows of a step are the plan's, in its order. Groups are the plan's, and no persona is drawn here.
- `permix.inference.generation` generates the rollouts from a copy of the weights in the precision of the forward pass (TRL casts
  all float32 weights again at every decode step). Each rollout has its own seed, so it depends on the plan and the weights alone.
- The verifier's verdict is the only reward, plus the expressivity bonus where it is on. A missing reward stays None.
- Several processes train as one. Each has whole groups of a step; metrics and records cover all, in the plan's order.
- A checkpoint between two optimizer steps on the same rollouts holds these rollouts.
- One optimizer step is one `training_step`, computed by `permix.training.gradient_step`: rollouts are packed without padding, a
  prompt is read once for all of its completions, and without a KL term rollouts of advantage 0 are left out.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import torch
from datasets import Dataset
from torch.distributed.tensor import DTensor
from torch.utils.data import Sampler
from trl import GRPOConfig, GRPOTrainer
from trl.trainer.utils import RepeatSampler, use_adapter

from permix.config import OptimConfig
from permix.inference.chat_template import decode_completion, encode_chat
from permix.inference.generation import generate_tokens, stop_at_end_of_turn, stop_token_ids
from permix.inference.shared_prefix import DEFAULT_ATTENTION, SHARED_PREFIX_ATTENTION, eval_mode, supports_shared_prefix
from permix.plan import Plan
from permix.progress import print_status
from permix.thinking import answer_of
from permix.training import distributed
from permix.training.checkpoints import (
    check_world_size,
    checkpoint_step,
    load_rollouts,
    save_rollouts,
)
from permix.training.compatibility import check_vllm_logprobs_mode, detect_sharding
from permix.training.curriculum import Curriculum, resume_curriculum, rollout_outcomes
from permix.training.gradient_step import GradientStep, ReplayBatch, unwrap_peft
from permix.training.job import TrainJob, generate_reference_answers
from permix.training.loss import CharacterReplay, build_character_replay
from permix.training.network import build_lora_config, inference_copy, load_trainable_model, seed_trainer, sync_weights
from permix.training.rewards import ExpressivityReward, Rollout, mean_or_none, mean_reward_by_tag, verify_completions
from permix.training.rollouts import (
    Sample,
    ScoredRollout,
    has_nonzero_advantage,
    merge_in_plan_order,
    rollout_rows,
    samples_from_trl_batch,
    split_into_groups,
    trl_metrics,
)
from permix.training.run_log import StepClock, open_rollout_log
from permix.training.trl_setup import PlanTrainer, check_finite, choose_microbatch_tokens, grpo_arguments, run_trainer
from permix.types import Message, Sampling, reward_tags, seed_from


class RolloutRecorder(Protocol):
    """Receives the rollouts and metrics of each step, and the plan when a curriculum changes it."""

    def log_rollouts(self, step: int, rollouts: Sequence[Rollout]) -> None: ...

    def log_metrics(self, step: int, metrics: dict[str, Any]) -> None: ...

    def log_plan(self, plan: Plan, blocks: Sequence[dict[str, Any]]) -> None: ...


class PlanGRPOTrainer(PlanTrainer, GRPOTrainer):  # type: ignore[misc]
    """`GRPOTrainer` over the rows of a plan; `options` are arguments of `GRPOTrainer`."""

    def __init__(
        self,
        *,
        plan: Plan,
        recorder: RolloutRecorder,
        config: OptimConfig,
        args: GRPOConfig,
        replay: CharacterReplay | None = None,
        expressivity: ExpressivityReward | None = None,
        curriculum: Curriculum | None = None,
        **options: Any,
    ) -> None:
        self.config, self._replay, self._expressivity = config, replay, expressivity
        self._recorder = recorder
        self._plan, self._curriculum = plan, curriculum
        self._scored_rollouts: list[ScoredRollout] = []
        self._empty_system_prompt = bool(plan.metadata.get("empty_system_prompt"))
        self._current_rows: list[dict[str, Any]] = []
        self._rollout_seeds: list[int] = []
        self._samples: list[Sample] = []
        self._inference_copy: Any = None
        self._inference_copy_synced = False
        self._clock = StepClock()
        self._step_metrics: dict[str, Any] = {}
        # The data loader yields positions in the plan. Rows are looked up when they are needed: a curriculum may change them.
        rollouts = plan.steps * plan.groups_per_step * plan.group_size
        places = Dataset.from_dict({"place": range(rollouts)})
        super().__init__(reward_funcs=self._reward, train_dataset=places, args=args, **options)
        self._stop_ids = stop_token_ids(unwrap_peft(self.model), self.processing_class)
        self._gradient_step = GradientStep(
            config, self.accelerator, self.processing_class.pad_token_id,
            choose_microbatch_tokens(config, self.model, completions_per_prompt=plan.group_size, bfloat16=self.args.bf16),
        )  # fmt: skip
        self._prepare_loop()
        if detect_sharding() != "zero3":  # DeepSpeed's network cannot run before training begins; its first pass makes the trial
            self._enable_shared_prefix()
        if detect_sharding() == "fsdp2" and not self.use_vllm:
            self._inference_copy = inference_copy(unwrap_peft(self.model), self._rollout_dtype, self.accelerator.device)
        if self.use_vllm and config.vllm_mode == "server" and config.importance_ratio_cap and self.accelerator.is_main_process:
            check_vllm_logprobs_mode(self.vllm_generation.vllm_client.get_server_info())

    def _enable_shared_prefix(self) -> None:
        for network in (self.model, self.ref_model):
            if network is not None and not sync_shared_prefix_support(unwrap_peft(network)):
                if distributed.is_main():
                    print_status(
                        "note: this model does not support shared prefixes; a prompt is read again for each of its completions"
                    )
                break

    def _get_train_sampler(self, dataset: Dataset | None = None) -> Sampler[int]:
        """Yield each step's rows once for each update on them. TRL's own sampler would repeat every row G times and shuffle."""
        sampler: Sampler[int] = RepeatSampler(
            data_source=self.train_dataset if dataset is None else dataset,
            mini_repeat_count=1,
            batch_size=self.args.generation_batch_size,
            repeat_count=self.num_iterations,
            shuffle=False,
        )
        return sampler

    # Rollouts

    def _prepare_inputs(self, batch: list[dict[str, int]]) -> list[Sample]:
        """The rollouts of this optimizer step: new ones, or the last ones again for `train.updates_per_rollout` steps."""
        step, update = divmod(self.state.global_step, self.num_iterations)
        if update == 0:
            self._extend_plan(step)
            size = self._plan.groups_per_step * self._plan.group_size
            rows = rollout_rows(row for row in self._plan.rows_at(step) if not row.spare)
            self._scored_rollouts = []
            samples = self._generate_samples([rows[one["place"] % size] for one in batch])
            self._samples = self._resample_zero_variance_groups(samples, step)
            self._log_rollouts()
        return self._samples

    def _extend_plan(self, step: int) -> None:
        """With a curriculum: draw the rows up to the block of this step, unless they are drawn."""
        extended = self._curriculum.extend_plan(self._plan, step) if self._curriculum is not None else None
        if self._curriculum is not None and extended is not None:
            self._plan = extended
            self._recorder.log_plan(extended, self._curriculum.block_records)

    def _generate_samples(self, rows: list[dict[str, Any]]) -> list[Sample]:
        """One scored rollout for each row."""
        self._current_rows = rows
        # Dropout draws from torch's global generator. Seeded here, it depends on these rows alone, so a resumed run draws
        # the same.
        torch.manual_seed(rows[0]["rollout_seed"])
        return samples_from_trl_batch(self._generate_and_score_completions(rows))

    def _resample_zero_variance_groups(self, samples: list[Sample], step: int) -> list[Sample]:
        """Dynamic sampling: replace groups without advantage by the step's spare groups, in the plan's order, while any is left.

        Collective. The result does not depend on which process holds which group.
        """
        groups = split_into_groups(samples, self._plan.group_size)
        spare = split_into_groups(rollout_rows(row for row in self._plan.rows_at(step) if row.spare), self._plan.group_size)
        while spare:
            flat = distributed.all_gather([place for place, group in enumerate(groups) if not has_nonzero_advantage(group)])
            places = [(rank, place) for rank, own in enumerate(flat) for place in own]
            candidates, spare = spare[: len(places)], spare[len(places) :]
            if not candidates:
                break
            useful = filter(has_nonzero_advantage, self._generate_groups(candidates))
            for (rank, place), group in zip(places, useful, strict=False):
                if rank == self.accelerator.process_index:
                    groups[place] = group
        return [sample for group in groups for sample in group]

    def _generate_groups(self, groups: Sequence[Sequence[dict[str, Any]]]) -> list[Sequence[Sample]]:
        """The rollouts of these groups, in their order, in every process.

        Generation is collective, so every process generates the same number of groups. A process with too few generates the last
        group again and drops the copies.
        """
        size, share = self._plan.group_size, -(-len(groups) // self.accelerator.num_processes)
        own = groups[self.accelerator.process_index * share :][:share]
        n_copies = share - len(own)
        sampled = split_into_groups(
            self._generate_samples([row for group in [*own, *[groups[-1]] * n_copies] for row in group]), size
        )
        del self._scored_rollouts[len(self._scored_rollouts) - n_copies * size :]
        return list(chain.from_iterable(distributed.all_gather(sampled[: len(own)])))

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        # TRL passes only prompts on to _generate_single_turn. Seeds belong to rows of the plan, not to processes: a rollout is
        # the same however many processes there are.
        self._rollout_seeds = [row["rollout_seed"] for row in inputs]
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
            with self.generation_network() as network:
                completions = generate_tokens(network, self.processing_class, prompt_ids, self._rollout_seeds, sampling)
            return [one.token_ids for one in completions], [one.logprobs for one in completions]

    @property
    def _rollout_dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.args.bf16 else torch.float32

    @contextmanager
    def generation_network(self) -> Iterator[Any]:
        """The network that generates: an updated copy of the trained one, or the trained one itself if no copy is needed.

        In bfloat16 a copy saves casting the weights at every token. With sharded weights a copy is necessary: every pass of the
        trained network needs all processes, and these generate for different numbers of passes, so they would hang.
        """
        trained = unwrap_peft(self.unwrapped_model())
        if self._inference_copy is None and not self.args.bf16:
            with eval_mode(trained):
                yield trained
            return
        if self._inference_copy is None:
            self._inference_copy = inference_copy(trained, self._rollout_dtype)
        sync_weights(self._inference_copy, trained, include_frozen=not self._inference_copy_synced)
        self._inference_copy_synced = True
        yield self._inference_copy

    def _reward(self, prompts: list[Any], completions: list[Any], completion_ids: list[list[int]], **columns: Any) -> list[Any]:
        # Not TRL's texts: they lack the tags of thinking, where the template opens it or the tags are special tokens.
        texts = [decode_completion(self.processing_class, ids, self._stop_ids) for ids in completion_ids]
        with self._clock.part("verification"):
            verdicts = verify_completions(texts, columns["task"], columns["gold"], [one[-1]["content"] for one in prompts])
        rewards = [verdict.reward for verdict in verdicts]
        shaped = rewards
        shares: Sequence[float | None] = [None] * len(rewards)
        if self._expressivity is not None:
            shares = expressivities = self._expressivity.score_completions(list(map(answer_of, texts)), columns["persona_id"])
            shaped = self._expressivity.shaped_rewards(rewards, expressivities)
        step = self.state.global_step + 1
        rollouts = [
            Rollout(step, group, persona, question, prompt[-1]["content"], text, len(ids), gold, verdict)
            for group, persona, question, prompt, text, ids, gold, verdict in zip(
                columns["group"], columns["persona_id"], columns["question_id"], prompts, texts, completion_ids,
                columns["gold"], verdicts, strict=True,
            )
        ]  # fmt: skip
        ends = {*self.eos_token_ids, self.processing_class.pad_token_id}
        self._scored_rollouts += [
            ScoredRollout(rollout, tags, share, reward, ids[-1] not in ends)
            for rollout, tags, share, reward, ids in zip(
                rollouts, columns["persona_tags"], shares, shaped, completion_ids, strict=True
            )
        ]
        return shaped

    def _log_rollouts(self) -> None:
        """Log the rollouts of all processes, spare groups included, and give their outcomes to the curriculum."""
        scored = merge_in_plan_order(distributed.all_gather(self._scored_rollouts))
        rollouts = [one.rollout for one in scored]
        rewards = [rollout.verdict.reward for rollout in rollouts]
        self._recorder.log_rollouts(self.state.global_step + 1, rollouts)
        # TRL has a value for each generation of the step, spare groups and copies as one of them, and would log their plain mean.
        self._metrics["train"].update({name: [value] for name, value in trl_metrics(scored).items()})
        self._step_metrics |= {
            "reward_by_tag": mean_reward_by_tag(
                rewards, [reward_tags(one.rollout.persona_id, one.persona_tags) for one in scored]
            ),
            "unscored": rewards.count(None),
            "tokens": sum(rollout.tokens for rollout in rollouts),
            "reward": mean_or_none([reward for reward in rewards if reward is not None]),
        }
        if self._expressivity is not None:
            self._step_metrics["expressivity"] = mean_or_none(
                [one.expressivity for one in scored if one.expressivity is not None and one.rollout.persona_id is not None]
            )
        if self._plan.dynamic_sampling_groups:
            self._step_metrics["resampled_rollouts"] = len(rollouts) - len(self._samples) * self.accelerator.num_processes
        if self._curriculum is not None:
            self._curriculum.update(rollout_outcomes(rollouts, self.num_iterations))

    def _get_per_token_logps_and_entropies(
        self, model: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor, logits_to_keep: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, None, None]:
        """Reference log-probabilities [B, T] of the rollouts, padded with 0 on the right; TRL calls this."""
        logp_B_T = torch.zeros(len(input_ids), logits_to_keep, device=input_ids.device)
        if self.config.beta == 0.0:  # only character replay uses the reference, and not for these rollouts
            return logp_B_T, None, None
        is_token_B_T = attention_mask.bool()  # TRL pads prompts on the left and completions on the right
        parts = [(ids[:-logits_to_keep][mask[:-logits_to_keep]], ids[-logits_to_keep:][mask[-logits_to_keep:]])
                 for ids, mask in zip(input_ids, is_token_B_T, strict=True)]  # fmt: skip
        prompts = [tuple(prompt.tolist()) for prompt, _ in parts]
        if self.config.kl_reference_prompt == "no-persona":
            prompts = self._prompts_without_persona()
        samples = [Sample(prompt, completion.tolist(), 0.0) for prompt, (_, completion) in zip(prompts, parts, strict=True)]
        for row, logps in enumerate(self._gradient_step.completion_logprobs(model, samples)):
            logp_B_T[row, : len(logps)] = torch.tensor(logps)
        return logp_B_T, None, None

    def _prompts_without_persona(self) -> list[tuple[int, ...]]:
        """The token ids of the current rollouts' prompts without the persona."""
        questions = [[message for message in row["prompt"] if message["role"] != "system"] for row in self._current_rows]
        empty = [Message(role="system", content="")] if self._empty_system_prompt else []
        return [tuple(encode_chat(self.processing_class, [*empty, *messages])) for messages in questions]

    # The optimizer step

    def training_step(self, model: Any, inputs: list[dict[str, int]], num_items_in_batch: Any = None) -> torch.Tensor:
        """Forward and backward passes of one optimizer step; returns its loss. Raises PermixError if the loss is not finite."""
        model.train()
        samples = self._prepare_inputs(inputs)
        total, metrics = self._gradient_step.accumulate(model, samples, self._replay_batch())
        check_finite(self, "loss", total.item())
        self._step_metrics |= metrics
        self._step += 1
        return total

    # Character replay

    def _replay_batch(self) -> ReplayBatch | None:
        """The answers that this process replays in this step; None without character replay."""
        if self._replay is None:
            return None
        own = slice(self.accelerator.process_index, None, self.accelerator.num_processes)
        places = self._replay.answer_indices(self.state.global_step)[own]
        # Copies: the step sets their old_logprobs, which must not last into a later step.
        answers = [replace(self._replay.answers[place]) for place in places]
        if self._replay.teacher_topk:
            return ReplayBatch(self._replay.weight, answers, [self._replay.teacher_topk[place] for place in places])
        # Numbers of the step, not of the process: with any number of processes an answer has the same seed.
        numbers = range(own.start, own.start + own.step * len(places), own.step)
        seeds = [seed_from("replay", self.config.seed, self.state.global_step, number) for number in numbers]
        return ReplayBatch(
            self._replay.weight, self._generate_onpolicy_answers(answers, seeds, self._replay.max_answer_tokens), ()
        )

    def _generate_onpolicy_answers(self, answers: Sequence[Sample], seeds: Sequence[int], max_new_tokens: int) -> list[Sample]:
        """Answers of the model in training to the prompts of `answers`, with the reference's log-probabilities."""
        with self._clock.part("generation"), self.generation_network() as network:
            sampling = Sampling(temperature=self.temperature, max_new_tokens=max_new_tokens)
            prompts = [list(one.prompt) for one in answers]
            completions = generate_tokens(network, self.processing_class, prompts, seeds, sampling) if prompts else []
        samples = [
            Sample(answer.prompt, completion.token_ids, 0.0, rollout_logprobs=completion.logprobs)
            for answer, completion in zip(answers, completions, strict=True)
        ]
        with self._reference_model() as reference:
            for sample, logps in zip(samples, self._gradient_step.completion_logprobs(reference, samples), strict=True):
                sample.ref_logprobs = logps
        return samples

    @contextmanager
    def _reference_model(self) -> Iterator[Any]:
        """The frozen base model: a second network, or with LoRA the trained one without its adapters."""
        if self.ref_model is not None:
            yield self.ref_model
        else:
            with use_adapter(self.unwrapped_model(), adapter_name=None):
                yield self.model

    # Records

    def _save_rng_state(self, output_dir: str) -> None:
        """Also saves the rollouts: each process's last file before the main one writes trainer_state.json, which completes it."""
        super()._save_rng_state(output_dir)
        unfinished = self.state.global_step % self.num_iterations != 0
        rank, count = self.accelerator.process_index, self.accelerator.num_processes
        save_rollouts(Path(output_dir), self._samples if unfinished else [], rank, count)
        distributed.barrier()  # no checkpoint may look complete while the rollouts of another process are missing

    def _load_rng_state(self, checkpoint: str) -> None:
        super()._load_rng_state(checkpoint)
        self._samples = load_rollouts(Path(checkpoint), self.accelerator.process_index, self.accelerator.num_processes)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        by_tag = self._step_metrics.get("reward_by_tag", {})
        super().log(logs | {f"reward_by_tag/{tag}": mean for tag, mean in by_tag.items()}, start_time)
        if "loss" in logs:
            self._recorder.log_metrics(self.state.global_step, self._collect_step_metrics(self.state.log_history[-1]))

    def _collect_step_metrics(self, logs: dict[str, float]) -> dict[str, Any]:
        """The metrics of a step: TRL's under the names of log.jsonl, our own, and the times."""
        trl_metrics = {ours: logs.get(theirs) for ours, theirs in GRPO_METRIC_NAMES.items()}
        flat = trl_metrics.pop("flat_groups")
        trl_metrics["frac_nonzero_advantage_groups"] = None if flat is None else 1 - flat
        own_metrics, self._step_metrics = self._step_metrics, {}
        # Only a step that generated rollouts has a reward; a second update on the same rollouts has none of its own.
        return {"reward": None} | trl_metrics | own_metrics | self._step_times()

    def _step_times(self) -> dict[str, dict[str, float]]:
        """Wall seconds of this process and CPU seconds of all, by part of the step."""
        laps = distributed.all_gather(self._clock.lap())
        cpu = {part: round(sum(lap["cpu_seconds"][part] for lap in laps), 3) for part in laps[0]["cpu_seconds"]}
        return {"seconds": laps[distributed.rank()]["seconds"], "cpu_seconds": cpu}


def sync_shared_prefix_support(network: Any) -> bool:
    """Whether all networks support shared prefixes. The main process's trial counts: the others may have no weights yet."""
    has_no_weights = (
        detect_sharding() == "fsdp2" and not distributed.is_main() and not isinstance(next(network.parameters()), DTensor)
    )
    own_result = not has_no_weights and supports_shared_prefix(network)
    supported = distributed.broadcast(own_result)
    if supported != own_result:
        network.set_attn_implementation(SHARED_PREFIX_ATTENTION if supported else DEFAULT_ATTENTION)
    network.shared_prefix_enabled = supported
    return supported


GRPO_METRIC_NAMES = {
    "reward_std": "reward_std",
    "flat_groups": "frac_reward_zero_std",
    "completion_tokens": "completions/mean_length",
    "truncated": "completions/clipped_ratio",
    "loss": "loss",
    "grad_norm": "grad_norm",
    "lr": "learning_rate",
}


def train_by_reward(job: TrainJob, source: str, tokenizer: Any, checkpoint: Path | None) -> PlanGRPOTrainer:
    """Train the model `source`, or resume from `checkpoint`; returns the trainer, which holds the trained network."""
    config, character, out, done = job.config.train, job.config.character, job.config.out, checkpoint_step(checkpoint)
    if checkpoint:
        check_world_size(checkpoint, distributed.world_size())
    generates = distributed.is_main() and len(job.reference_cells) > 0
    cells = distributed.broadcast(generate_reference_answers(job.config, job.reference_cells) if generates else [])
    # Before the weights are loaded: making the arguments sets up sharding, and loading depends on it.
    onpolicy = character.replay > 0 and character.replay_policy == "on"
    arguments = grpo_arguments(config, job.plan, out / "checkpoints", with_reference=onpolicy)
    network = load_trainable_model(source)
    added_stop = stop_at_end_of_turn(network, tokenizer)
    if config.use_vllm and added_stop is not None:  # vLLM reads the generation config of `source`
        arguments.generation_kwargs = {"stop_token_ids": [added_stop]}
    replay = build_character_replay(cells, character, config, tokenizer, network) if character.replay > 0 else None
    expressivity = ExpressivityReward(cells, character.expressivity) if character.expressivity > 0 else None
    updates = config.updates_per_rollout
    log = open_rollout_log(out, job.label, done, arguments.max_steps, config.samples_every * updates)
    with log as recorder:
        plan, curriculum = job.plan, None
        if job.curriculum_builder is not None:
            curriculum, plan = resume_curriculum(job.curriculum_builder, plan, out, updates, done)
            recorder.log_plan(plan, curriculum.block_records)
        seed_trainer(config.seed)
        trainer = PlanGRPOTrainer(
            plan=plan, recorder=recorder, config=config, args=arguments, model=network,
            processing_class=tokenizer, peft_config=build_lora_config(config), replay=replay, expressivity=expressivity,
            curriculum=curriculum,
        )  # fmt: skip
        run_trainer(trainer, job, checkpoint)
    return trainer
