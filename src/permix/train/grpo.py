"""PerMix-RLVR's trainer: TRL's GRPOTrainer fed from a plan, in the plan's order. trl is imported here and in `sft.py`.

What it changes in TRL, and why:
- rows come in plan order and each as often as the plan says, so that groups are the plan's and a persona is never drawn here;
- rollouts are decoded by `permix.models.hf.decode` from a copy of the weights in the forward pass's precision (TRL casts all
  float32 weights again at every decode step), each from its own seed, so a rollout depends on the plan and the weights alone;
- one reward, the verifier's; its None stays None;
- rows without advantage cost no forward and no backward where the loss has no KL term (the gradient is the same).
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from datasets import Dataset
from torch.utils.data import Sampler
from transformers import PrinterCallback, TrainerCallback
from trl import GRPOConfig, GRPOTrainer
from trl.trainer.utils import RepeatSampler

from permix.models.hf import decode
from permix.train.clock import StepClock
from permix.train.plan import Plan
from permix.train.reward import Rollout, mean_by_tag, verdicts
from permix.types import Sampling, seed_from
from permix.verify import Verifier


class Recorder(Protocol):
    """Where a step's rollouts and figures go."""

    def rollouts(self, step: int, rollouts: Sequence[Rollout]) -> None: ...

    def step(self, step: int, figures: dict[str, Any]) -> None: ...


def dataset_of(plan: Plan) -> Dataset:
    """One row a rollout, in plan order: row `i` of a step belongs to group `i // G`."""
    return Dataset.from_list(
        [
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
    )


class _ClockStarter(TrainerCallback):  # type: ignore[misc]
    """Keeps setting up and loading a checkpoint out of the first step's time."""

    def __init__(self, clock: StepClock) -> None:
        self._clock = clock

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._clock.restart()


class PlanTrainer(GRPOTrainer):  # type: ignore[misc]
    """`GRPOTrainer` over the rows of a plan."""

    def __init__(self, *, plan: Plan, verifier: Verifier, recorder: Recorder, args: GRPOConfig, **options: Any) -> None:
        self._verifier, self._recorder = verifier, recorder
        self._seeds: list[int] = []
        self._sampler_network: Any = None
        self._clock = StepClock()
        self._trained_tokens = 0
        self._figures: dict[str, Any] = {}
        super().__init__(reward_funcs=self._reward, train_dataset=dataset_of(plan), args=args, **options)
        self.remove_callback(PrinterCallback)
        self.add_callback(_ClockStarter(self._clock))

    def _get_train_sampler(self, dataset: Dataset | None = None) -> Sampler[int]:
        """Each step's rows once per forward pass that uses them; TRL's own would repeat every row G times and shuffle."""
        sampler: Sampler[int] = RepeatSampler(
            data_source=self.train_dataset if dataset is None else dataset,
            mini_repeat_count=1,
            batch_size=self.args.generation_batch_size,
            repeat_count=self.num_iterations * self.args.steps_per_generation,
            shuffle=False,
        )
        return sampler

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self._seeds = [row["rollout_seed"] for row in inputs]
        # TRL shuffles the scored batch with the global generator: seeding it here makes a step depend on nothing before it.
        torch.manual_seed(self._seeds[0])
        return dict(super()._generate_and_score_completions(inputs))

    def _generate_single_turn(self, prompt_ids: list[list[int]], *rest: Any, **more: Any) -> tuple[list[list[int]], None]:
        if self.use_vllm or self.is_fsdp_enabled or self.is_deepspeed_enabled:
            with self._clock.part("generation"):
                return super()._generate_single_turn(prompt_ids, *rest, **more)  # type: ignore[no-any-return]
        sampling = Sampling(
            temperature=self.args.temperature, top_p=self.args.top_p, max_new_tokens=self.args.max_completion_length
        )
        with self._clock.part("generation"), self._rollout_network() as network:
            return decode(network, self.processing_class, prompt_ids, self._seeds, sampling), None

    @contextmanager
    def _rollout_network(self) -> Iterator[Any]:
        """The network that decodes: a bfloat16 copy brought up to date, or the trained one where a copy would not help."""
        trained = self.accelerator.unwrap_model(self.model)
        if self.args.bf16 and not hasattr(trained, "peft_config"):
            if self._sampler_network is None:
                self._sampler_network = bfloat16_copy(trained)
            with torch.no_grad():
                for ours, theirs in zip(self._sampler_network.parameters(), trained.parameters(), strict=True):
                    ours.copy_(theirs)
            yield self._sampler_network
        else:
            trained.eval()
            try:
                # Adapters sit inside the base model; generating through peft would overwrite its generation settings.
                with self.accelerator.autocast():
                    yield trained.get_base_model() if hasattr(trained, "peft_config") else trained
            finally:
                trained.train()

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        # Several processes gather per-row metrics, so there every one must keep all its rows.
        if self.beta != 0.0 or self.loss_type == "bnpo" or self.accelerator.num_processes > 1:
            return self._whole_loss(model, inputs)
        live = live_rows(inputs)
        rows, kept = len(inputs["advantages"]), len(live["advantages"])
        if kept == 0:
            _give_zero_gradients(model)
            return torch.zeros((), device=self.accelerator.device, requires_grad=True)
        loss = self._whole_loss(model, live)
        # "dapo" divides by the tokens of the whole step, the others by the rows they were given.
        return loss if self.loss_type == "dapo" else loss * (kept / rows)

    def _whole_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        self._trained_tokens += int(inputs["prompt_mask"].sum() + inputs["completion_mask"].sum())
        loss: torch.Tensor = super()._compute_loss(model, inputs)
        return loss

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
        self._figures = {
            "reward_by_tag": mean_by_tag(rewards, columns["persona_tags"]),
            "unscored": rewards.count(None),
            "tokens": sum(map(len, completion_ids)),
        }
        return rewards

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
        trained, self._trained_tokens = self._trained_tokens, 0
        return figures | fresh | {"trained_tokens": trained} | self._clock.lap()


def bfloat16_copy(network: Any) -> Any:
    """A frozen copy with its weights in bfloat16. Buffers stay as they are: rotary frequencies in bfloat16 are wrong ones."""
    twin = copy.deepcopy(network).eval().requires_grad_(False)
    for parameter in twin.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
    return twin


def _give_zero_gradients(model: Any) -> None:
    """What a backward of nothing leaves: without it a step of only dead rows would also skip AdamW's momentum."""
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)


def live_rows(inputs: dict[str, Any]) -> dict[str, Any]:
    """The rows of a micro-batch that have a gradient, without the columns that only pad.

    At beta 0 a row whose advantage is 0 adds nothing to the gradient of the loss, so it needs no forward and no backward.
    """
    keep_B = inputs["advantages"] != 0
    live = {name: value[keep_B] if _has_rows(value, keep_B) else value for name, value in inputs.items()}
    for part, side in (("prompt", "left"), ("completion", "right")):
        mask_B_T = live[f"{part}_mask"]
        width = int(mask_B_T.sum(1).max()) if len(mask_B_T) else 0
        whole = mask_B_T.shape[1]
        columns = slice(whole - width, whole) if side == "left" else slice(0, width)
        for name, value in live.items():
            if isinstance(value, torch.Tensor) and value.dim() == 2 and (name.startswith(part) or _is_token_wise(name, part)):
                live[name] = value[:, columns]
    return live


def _has_rows(value: Any, keep_B: torch.Tensor) -> bool:
    return isinstance(value, torch.Tensor) and value.dim() > 0 and len(value) == len(keep_B)


def _is_token_wise(name: str, part: str) -> bool:
    """TRL's per-token columns that lie over the completion."""
    return part == "completion" and (name.endswith("per_token_logps") or name in ("tool_mask", "importance_sampling_ratio"))


METRICS = {
    "reward": "reward",
    "reward_std": "reward_std",
    "flat_groups": "frac_reward_zero_std",
    "completion_tokens": "completions/mean_length",
    "truncated": "completions/clipped_ratio",
    "kl": "kl",
    "loss": "loss",
    "grad_norm": "grad_norm",
    "lr": "learning_rate",
}
