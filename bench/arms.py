"""One trainer in a process of its own that stops before every optimizer step and waits for orders: an arm of `bench.train_step`.

The trainer's own `train()` runs; what is added only watches the clock, and stands in for the rollouts where an order names a
batch. Both arms get their weights, arguments and threads from the functions that `permix train` uses.
"""

import contextlib
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import torch
from datasets import Dataset
from transformers import PrinterCallback, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from permix.config import TrainConfig
from permix.inference.hardware import pick_device, set_threads
from permix.inference.hf import load_causal_lm, load_tokenizer
from permix.plan import Plan
from permix.training.grpo_trainer import PlanGRPOTrainer
from permix.training.rewards import Rollout, verify_completions
from permix.training.rollouts import samples_from_trl_batch
from permix.training.trl_setup import grpo_arguments
from permix.types import Verdict

ENOUGH_S = 0.2
"""How long each shape of matrix is multiplied to learn the machine's rate."""


class Setup(NamedTuple):
    """What an arm is made from. `micro_batch` is TRL's rows a pass; None is our trainer."""

    stage: TrainConfig
    plan: Plan
    micro_batch: int | None


class Step(NamedTuple):
    """An order for one optimizer step, with these advantages. The paths are files of tensors."""

    advantages: list[float]
    batch: Path | None = None
    """Train on these rollouts instead of generating some."""
    keep: Path | None = None
    """Write the rollouts here."""
    gradient: Path | None = None
    """Write the gradient here, before it is clipped."""


class Logps(NamedTuple):
    """An order to write the training log-probabilities [B, T] of a batch."""

    batch: Path
    out: Path


class Rate(NamedTuple):
    """An order to multiply matrices of the model's shapes: by `rows` tokens when decoding, by `tokens` when training."""

    rows: int
    tokens: int


class Ready(NamedTuple):
    """What an arm says when it has been made."""

    resident: int
    """Bytes of memory."""
    weights: int
    """Bytes of the trained weights."""
    bfloat16: bool
    """Whether the forward pass multiplies in bfloat16."""
    micro_tokens: int
    """Our tokens a pass; 0 for TRL, which counts rows."""


class Lengths(NamedTuple):
    """Tokens of a prompt and of its completions."""

    prompt: int
    completions: list[int]


class Report(NamedTuple):
    """Of one step: seconds (of CPU; on a GPU of wall time) by part, all of it, what was in it, and the peak of memory so far."""

    seconds: dict[str, float]
    lengths: list[Lengths]
    peak: int

    @property
    def whole(self) -> float:
        return sum(self.seconds.values())

    @property
    def training(self) -> float:
        return self.whole - self.seconds["generation"]

    @property
    def tokens(self) -> int:
        """Completion tokens."""
        return sum(sum(one.completions) for one in self.lengths)


class Rates(NamedTuple):
    """Matrix operations a second, and how many a forward pass needs."""

    decoding: float
    training: float
    a_token: float
    """Operations of all layers on one token, attention's scores aside."""
    a_prediction: float
    """Of the head, for one place that is predicted from."""
    a_glance: float
    """Of all layers' scores, for one token that sees one other."""

    def forward(self, lengths: Sequence[Lengths]) -> float:
        """Operations of reading each prompt once and all but the last token of every completion."""
        total = 0.0
        for prompt, completions in lengths:
            read = sum(one - 1 for one in completions)
            seen = prompt * (prompt + 1) / 2 + sum((one - 1) * prompt + one * (one - 1) / 2 for one in completions)
            total += self.a_token * (prompt + read) + self.a_prediction * (1 + read) + self.a_glance * seen
        return total


class _OverError(Exception):
    """No more orders."""


def _right(answer: str | None, gold: str, question: str = "") -> Verdict:
    """Every answer is right: the reward costs nothing, in both arms."""
    return Verdict(correct=True, extracted=answer)


class _Nowhere:
    """A recorder that keeps nothing."""

    def log_rollouts(self, step: int, rollouts: Sequence[Rollout]) -> None: ...

    def log_metrics(self, step: int, metrics: dict[str, Any]) -> None: ...

    def log_plan(self, plan: Plan, blocks: Sequence[dict[str, Any]]) -> None: ...


class _Gate(TrainerCallback):  # type: ignore[misc]
    def __init__(self, wait: Callable[[], None]) -> None:
        self._wait = wait

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self._wait()


class Conducted(GRPOTrainer):  # type: ignore[misc]
    """Before each step, reports the last one and waits for an order."""

    def conduct(self, line: Connection) -> None:
        self._line = line
        self._order: Step | None = None
        self._batch: dict[str, Any] | None = None
        self._parts: dict[str, float] = {}
        self._lengths: list[Lengths] = []
        self.add_callback(_Gate(self._wait))
        backward = self.accelerator.backward

        def timed(*given: Any, **more: Any) -> None:
            with self._part("backward"):
                backward(*given, **more)

        self.accelerator.backward = timed
        weights = sum(one.numel() * one.element_size() for one in self.model.parameters())
        line.send(Ready(resident(), weights, bool(self.args.bf16), self.micro_tokens()))
        with contextlib.suppress(_OverError):
            self.train()

    def _wait(self) -> None:
        if self._order is not None:
            self._line.send(self._report())
        while not isinstance(order := self._line.recv(), Step):
            match order:
                case Logps():
                    torch.save(self.logps(torch.load(order.batch)), order.out)
                    self._line.send(None)
                case Rate():
                    self._line.send(rates(self.model, order, torch.bfloat16 if self.args.bf16 else torch.float32))
                case _:
                    raise _OverError
        self._order = order
        self._batch = torch.load(order.batch) if order.batch else None
        self._parts = dict.fromkeys(("generation", "backward", "inside"), 0.0)
        self._started = now()

    def _report(self) -> Report:
        spent, parts = now() - self._started, self._parts
        forward = parts["inside"] - parts["generation"] - parts["backward"]
        seconds = {
            "generation": parts["generation"],
            "forward": forward,
            "backward": parts["backward"],
            "optimizer": spent - parts["inside"],
        }
        return Report(seconds, self._lengths, peak())

    @contextlib.contextmanager
    def _part(self, name: str) -> Iterator[None]:
        started = now()
        yield
        self._parts[name] += now() - started

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        assert self._order is not None
        with self._part("generation"):
            scored = self._batch or dict(super()._generate_and_score_completions(inputs))
            scored["advantages"] = torch.tensor(self._order.advantages, device=self.accelerator.device)
        if self._order.keep:
            torch.save({name: scored[name] for name in BATCH}, self._order.keep)
        self._lengths = lengths_of(scored, self.num_generations)
        return scored

    def training_step(self, *given: Any, **more: Any) -> torch.Tensor:
        assert self._order is not None
        with self._part("inside"):
            loss: torch.Tensor = super().training_step(*given, **more)
        if self._order.gradient and self.accelerator.sync_gradients:
            torch.save(torch.cat([one.grad.flatten().cpu() for one in self.model.parameters()]), self._order.gradient)
        return loss

    def micro_tokens(self) -> int:
        return 0

    def logps(self, batch: dict[str, Any]) -> torch.Tensor:
        """Training log-probabilities [B, T] by what the trainer's own loss asks, in the passes of its training."""
        raise NotImplementedError


class Ours(Conducted, PlanGRPOTrainer):
    """`permix.training.grpo_trainer.PlanGRPOTrainer`, conducted."""

    def _log_rollouts(self) -> None:
        """Rollouts that are given were not generated here, and a run leaves nothing behind."""

    def micro_tokens(self) -> int:
        return self._gradient_step.microbatch_tokens

    def logps(self, batch: dict[str, Any]) -> torch.Tensor:
        logp_B_T = torch.zeros(batch["completion_ids"].shape)
        for row, logps in enumerate(self._gradient_step.completion_logprobs(self.model, samples_from_trl_batch(batch))):
            logp_B_T[row, : len(logps)] = torch.tensor(logps)
        return logp_B_T


class Trls(Conducted):
    """`trl.GRPOTrainer`, conducted."""

    def logps(self, batch: dict[str, Any]) -> torch.Tensor:
        ids, mask = (torch.cat([batch[f"prompt_{one}"], batch[f"completion_{one}"]], dim=1) for one in ("ids", "mask"))
        keep, rows = batch["completion_ids"].shape[1], self.args.per_device_train_batch_size
        with torch.no_grad():
            logp_B_T, *_ = self._get_per_token_logps_and_entropies(self.model, ids, mask, keep, batch_size=rows)
        return torch.as_tensor(logp_B_T).float().cpu()


def run_arm(setup: Setup, line: Connection) -> None:
    """What the process does, from its making to the end of the orders."""
    sys.stdout = sys.stderr  # the figures alone go to stdout
    set_threads(setup.stage.threads)
    (_ours if setup.micro_batch is None else _trls)(setup).conduct(line)


def _shared(setup: Setup) -> dict[str, Any]:
    return {
        "model": load_causal_lm(setup.stage.model.name, torch.float32, pick_device()).train(),
        "processing_class": load_tokenizer(setup.stage.model.name),
        "args": arguments(setup),
    }


def arguments(setup: Setup) -> GRPOConfig:
    """`permix train`'s, for TRL in micro-batches that add up to the same step."""
    args = grpo_arguments(setup.stage.train, setup.plan, setup.stage.out)
    if setup.micro_batch is not None:
        args.loss_type = setup.stage.train.loss
        passes, rest = divmod(args.generation_batch_size, setup.micro_batch)
        if rest:
            raise SystemExit(
                f"a step of {args.generation_batch_size} rows cannot be cut into micro-batches of {setup.micro_batch}"
            )
        args.per_device_train_batch_size = setup.micro_batch
        args.gradient_accumulation_steps = args.steps_per_generation = passes
    return args


def _ours(setup: Setup) -> Conducted:
    return Ours(plan=setup.plan, check=_right, recorder=_Nowhere(), config=setup.stage.train, **_shared(setup))


def _trls(setup: Setup) -> Conducted:
    def reward(completions: list[Any], task: list[str], gold: list[str], **_: Any) -> list[Any]:
        return [one.reward for one in verify_completions([said[0]["content"] for said in completions], task, gold, check=_right)]

    rows = [{"prompt": [dict(one) for one in row.messages], "task": row.task, "gold": row.gold} for row in setup.plan.rows]
    trainer = Trls(reward_funcs=reward, train_dataset=Dataset.from_list(rows), **_shared(setup))
    trainer.remove_callback(PrinterCallback)
    return trainer


BATCH = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "advantages", "num_items_in_batch")
"""What TRL's generation leaves for its loss."""


def lengths_of(scored: dict[str, Any], group_size: int) -> list[Lengths]:
    prompts, completions = (scored[f"{one}_mask"].sum(1).tolist() for one in ("prompt", "completion"))
    return [Lengths(prompts[at], completions[at : at + group_size]) for at in range(0, len(prompts), group_size)]


def now() -> float:
    """Seconds of CPU time of this process; on a GPU, of wall time after all that was asked of it."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def resident() -> int:
    return int(torch.cuda.memory_allocated()) if torch.cuda.is_available() else _of_status("VmRSS")


def peak() -> int:
    return int(torch.cuda.max_memory_allocated()) if torch.cuda.is_available() else _of_status("VmHWM")


def _of_status(name: str) -> int:
    """Bytes, of this process alone: what getrusage tells survives exec. 0 where /proc is missing."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(name):
                return int(line.split()[1]) << 10
    return 0


def rates(network: Any, order: Rate, dtype: torch.dtype) -> Rates:
    """The rate of the machine on this network's own matrices, and how much work they are."""
    head = network.get_output_embeddings().weight
    shapes = [tuple(one.weight.shape) for one in network.modules() if isinstance(one, torch.nn.Linear) and one.weight is not head]
    config = network.config.get_text_config()
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    shapes_and_head = [*shapes, tuple(head.shape)]
    return Rates(
        decoding=_rate(shapes_and_head, order.rows, dtype, backward=False),
        training=_rate(shapes_and_head, order.tokens, dtype, backward=True),
        a_token=2.0 * sum(map(math.prod, shapes)),
        a_prediction=2.0 * head.numel(),
        a_glance=4.0 * config.num_hidden_layers * config.num_attention_heads * size,
    )


def _rate(shapes: Sequence[tuple[int, ...]], tokens: int, dtype: torch.dtype, *, backward: bool) -> float:
    """Operations a second over all of these weights, as a forward pass, or a forward and a backward pass, multiplies them."""
    device, seconds = pick_device(), 0.0
    for shape in set(shapes):
        out, into = shape
        x, weight, y = (torch.randn(*one, dtype=dtype, device=device) for one in ((tokens, into), (out, into), (tokens, out)))

        def multiply(x: torch.Tensor = x, weight: torch.Tensor = weight, y: torch.Tensor = y) -> None:
            torch.nn.functional.linear(x, weight)
            if backward:
                y @ weight
                y.t() @ x

        seconds += shapes.count(shape) * _seconds(multiply)
    return (6.0 if backward else 2.0) * tokens * sum(map(math.prod, shapes)) / seconds


def _seconds(act: Callable[[], None]) -> float:
    """Mean over as many runs as fill `ENOUGH_S`, after one that warms up."""
    act()
    started, runs = now(), 0
    while (spent := now() - started) < ENOUGH_S:
        act()
        runs += 1
    return spent / runs
