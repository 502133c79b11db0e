"""The two arms of `bench.train_step`: a trainer that waits for a request before every optimizer step and reports its time.

The trainer's own `train()` runs. What this module adds reads the clock, and replaces the generation of rollouts where a request
names a batch. Both arms get their weights, arguments and threads from the functions that `permix train` uses.
"""

import contextlib
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
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
from permix.tasks import TASKS, find_task
from permix.training.grpo_trainer import PlanGRPOTrainer
from permix.training.rewards import Rollout, verify_completions
from permix.training.rollouts import samples_from_trl_batch
from permix.training.trl_setup import grpo_arguments
from permix.types import Verdict

MATMUL_S = 0.2
"""Seconds for which matrices of each shape are multiplied to measure the machine's rate."""


class Setup(NamedTuple):
    """The settings of an arm. `micro_batch` is the rows of a forward pass of TRL; None selects permix's trainer."""

    stage: TrainConfig
    plan: Plan
    micro_batch: int | None


class StepRequest(NamedTuple):
    """Asks for one optimizer step with these advantages, one for each rollout. The paths are files of tensors."""

    advantages: list[float]
    batch: Path | None = None
    """The rollouts to train on; None: the trainer generates them."""
    keep: Path | None = None
    """Where to write the rollouts."""
    gradient: Path | None = None
    """Where to write the gradient, before it is clipped."""


class LogprobsRequest(NamedTuple):
    """Asks for the training log-probabilities `logp_B_T` of a batch, written to the file `out`."""

    batch: Path
    out: Path


class MatmulRateRequest(NamedTuple):
    """Asks for the rate of products with the model's matrices: of `rows` tokens as in decoding, of `tokens` as in training."""

    rows: int
    tokens: int


class Ready(NamedTuple):
    """The first message of an arm, sent when its trainer is built."""

    resident: int
    """Bytes of memory in use."""
    weights: int
    """Bytes of the trained weights."""
    bfloat16: bool
    """Whether the forward pass multiplies in bfloat16."""
    micro_tokens: int
    """Tokens of a forward pass of permix's trainer; 0 for TRL, which counts rows."""


class GroupLengths(NamedTuple):
    """The number of tokens of a group's prompt and of each of its completions."""

    prompt: int
    completions: list[int]


class StepReport(NamedTuple):
    """The reply to a `StepRequest`. Seconds are CPU seconds, on a GPU wall seconds."""

    seconds: dict[str, float]
    """By part: generation, forward, backward, optimizer."""
    lengths: list[GroupLengths]
    peak: int
    """Peak memory of the process so far, in bytes."""

    @property
    def step_seconds(self) -> float:
        """The seconds of the whole step."""
        return sum(self.seconds.values())

    @property
    def training_seconds(self) -> float:
        """The seconds of the step without generation."""
        return self.step_seconds - self.seconds["generation"]

    @property
    def tokens(self) -> int:
        """The number of completion tokens of all groups."""
        return sum(sum(group.completions) for group in self.lengths)


class MatmulRates(NamedTuple):
    """The floating-point operations a second of this machine, and the operations that a forward pass needs."""

    decoding: float
    """Operations a second in matrix products of the shapes of decoding."""
    training: float
    """The same in those of a forward and a backward pass."""
    per_token: float
    """Operations of the layers' matrices for one token, without attention scores and head."""
    per_prediction: float
    """Operations of the head for one position."""
    per_attended_pair: float
    """Operations of all layers' attention for one token that attends to one other."""

    def forward(self, lengths: Sequence[GroupLengths]) -> float:
        """Return the operations of a forward pass over each prompt, once, and over every completion without its last token."""
        total = 0.0
        for prompt, completions in lengths:
            inputs = sum(n - 1 for n in completions)
            pairs = prompt * (prompt + 1) / 2 + sum((n - 1) * prompt + n * (n - 1) / 2 for n in completions)
            total += self.per_token * (prompt + inputs) + self.per_prediction * (1 + inputs) + self.per_attended_pair * pairs
        return total


class _NoMoreRequestsError(Exception):
    """Ends `train()` when the parent process sends None."""


def _call_all_right(plan: Plan) -> None:
    """Call every answer to the tasks of a plan right, so that verification takes no time in either arm."""
    for name in {row.task for row in plan.rows}:
        task = find_task(name)
        TASKS[name] = replace(
            task, extract=partial(_extract_any, task.extract), scorer=lambda answer, gold: Verdict(correct=True, extracted=answer)
        )


def _extract_any(extract: Callable[[str, str], str | None], completion: str, question: str) -> str:
    return extract(completion, question) or ""


class _NullRecorder:
    """A recorder that writes nothing."""

    def log_rollouts(self, step: int, rollouts: Sequence[Rollout]) -> None: ...

    def log_metrics(self, step: int, metrics: dict[str, Any]) -> None: ...

    def log_plan(self, plan: Plan, blocks: Sequence[dict[str, Any]]) -> None: ...


class _BeforeStep(TrainerCallback):  # type: ignore[misc]
    """Calls a function before every optimizer step."""

    def __init__(self, wait: Callable[[], None]) -> None:
        self._wait = wait

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self._wait()


class ControlledTrainer(GRPOTrainer):  # type: ignore[misc]
    """A trainer that, before each step, reports the last step and waits for a request."""

    def serve(self, connection: Connection) -> None:
        """Send `Ready`, then train step by step as requested until a request is None."""
        self._connection = connection
        self._request: StepRequest | None = None
        self._batch: dict[str, Any] | None = None
        self._parts: dict[str, float] = {}
        self._lengths: list[GroupLengths] = []
        self.add_callback(_BeforeStep(self._wait))
        backward = self.accelerator.backward

        def timed_backward(*args: Any, **kwargs: Any) -> None:
            with self._timed("backward"):
                backward(*args, **kwargs)

        self.accelerator.backward = timed_backward
        weights = sum(parameter.numel() * parameter.element_size() for parameter in self.model.parameters())
        connection.send(Ready(resident_bytes(), weights, bool(self.args.bf16), self.micro_tokens()))
        with contextlib.suppress(_NoMoreRequestsError):
            self.train()

    def _wait(self) -> None:
        """Report the last step, and answer requests until one is for the next step."""
        if self._request is not None:
            self._connection.send(self._report())
        while not isinstance(request := self._connection.recv(), StepRequest):
            match request:
                case LogprobsRequest():
                    torch.save(self.logps(torch.load(request.batch)), request.out)
                    self._connection.send(None)
                case MatmulRateRequest():
                    dtype = torch.bfloat16 if self.args.bf16 else torch.float32
                    self._connection.send(measure_matmul_rates(self.model, request, dtype))
                case _:
                    raise _NoMoreRequestsError
        self._request = request
        self._batch = torch.load(request.batch) if request.batch else None
        # "training_step" contains "generation" and "backward".
        self._parts = dict.fromkeys(("generation", "backward", "training_step"), 0.0)
        self._started = now()

    def _report(self) -> StepReport:
        step_seconds, parts = now() - self._started, self._parts
        forward = parts["training_step"] - parts["generation"] - parts["backward"]
        seconds = {
            "generation": parts["generation"],
            "forward": forward,
            "backward": parts["backward"],
            "optimizer": step_seconds - parts["training_step"],
        }
        return StepReport(seconds, self._lengths, peak_bytes())

    @contextlib.contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        started = now()
        yield
        self._parts[name] += now() - started

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        assert self._request is not None
        with self._timed("generation"):
            scored = self._batch or dict(super()._generate_and_score_completions(inputs))
            scored["advantages"] = torch.tensor(self._request.advantages, device=self.accelerator.device)
        if self._request.keep:
            torch.save({name: scored[name] for name in BATCH_FIELDS}, self._request.keep)
        self._lengths = group_lengths(scored, self.num_generations)
        return scored

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        assert self._request is not None
        with self._timed("training_step"):
            loss: torch.Tensor = super().training_step(*args, **kwargs)
        if self._request.gradient and self.accelerator.sync_gradients:
            torch.save(
                torch.cat([parameter.grad.flatten().cpu() for parameter in self.model.parameters()]), self._request.gradient
            )
        return loss

    def micro_tokens(self) -> int:
        """Return the tokens of a forward pass; 0 if passes are limited in rows."""
        return 0

    def logps(self, batch: dict[str, Any]) -> torch.Tensor:
        """Return `logp_B_T` as the trainer's own loss computes it, in passes of the same size as in training."""
        raise NotImplementedError


class PermixTrainer(ControlledTrainer, PlanGRPOTrainer):
    """`permix.training.grpo_trainer.PlanGRPOTrainer`, controlled by requests."""

    def _log_rollouts(self) -> None:
        """Write nothing: rollouts that a request names were not generated by this trainer."""

    def micro_tokens(self) -> int:
        return self._gradient_step.microbatch_tokens

    def logps(self, batch: dict[str, Any]) -> torch.Tensor:
        logp_B_T = torch.zeros(batch["completion_ids"].shape)
        for row, logps in enumerate(self._gradient_step.completion_logprobs(self.model, samples_from_trl_batch(batch))):
            logp_B_T[row, : len(logps)] = torch.tensor(logps)
        return logp_B_T


class TrlTrainer(ControlledTrainer):
    """`trl.GRPOTrainer`, controlled by requests."""

    def logps(self, batch: dict[str, Any]) -> torch.Tensor:
        ids_B_T, mask_B_T = (torch.cat([batch[f"prompt_{kind}"], batch[f"completion_{kind}"]], dim=1) for kind in ("ids", "mask"))
        keep, rows = batch["completion_ids"].shape[1], self.args.per_device_train_batch_size
        with torch.no_grad():
            logp_B_T, *_ = self._get_per_token_logps_and_entropies(self.model, ids_B_T, mask_B_T, keep, batch_size=rows)
        return torch.as_tensor(logp_B_T).float().cpu()


def run_arm(setup: Setup, connection: Connection) -> None:
    """Build the trainer and serve requests until one is None. A `bench.process.Worker` runs this function."""
    sys.stdout = sys.stderr  # stdout is for figures only, and the parent prints them
    set_threads(setup.stage.threads)
    (_permix_trainer if setup.micro_batch is None else _trl_trainer)(setup).serve(connection)


def _shared_arguments(setup: Setup) -> dict[str, Any]:
    return {
        "model": load_causal_lm(setup.stage.model.name, torch.float32, pick_device()).train(),
        "processing_class": load_tokenizer(setup.stage.model.name),
        "args": grpo_config(setup),
    }


def grpo_config(setup: Setup) -> GRPOConfig:
    """Return the arguments that `permix train` uses; for TRL with micro-batches that add up to the same step.

    Raises SystemExit if the rows of a step are not a multiple of the micro-batch.
    """
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


def _permix_trainer(setup: Setup) -> ControlledTrainer:
    _call_all_right(setup.plan)
    return PermixTrainer(
        plan=setup.plan,
        recorder=_NullRecorder(),
        config=setup.stage.train,
        **_shared_arguments(setup),
    )


def _trl_trainer(setup: Setup) -> ControlledTrainer:
    def reward(completions: list[Any], task: list[str], gold: list[str], **_: Any) -> list[Any]:
        texts = [messages[0]["content"] for messages in completions]
        return [verdict.reward for verdict in verify_completions(texts, task, gold)]

    _call_all_right(setup.plan)
    rows = [{"prompt": [dict(turn) for turn in row.messages], "task": row.task, "gold": row.gold} for row in setup.plan.rows]
    trainer = TrlTrainer(reward_funcs=reward, train_dataset=Dataset.from_list(rows), **_shared_arguments(setup))
    trainer.remove_callback(PrinterCallback)
    return trainer


BATCH_FIELDS = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "advantages", "num_items_in_batch")
"""The fields of TRL's generation that its loss reads."""


def group_lengths(batch: dict[str, Any], group_size: int) -> list[GroupLengths]:
    """Return the lengths of each group of a batch."""
    prompts, completions = (batch[f"{part}_mask"].sum(1).tolist() for part in ("prompt", "completion"))
    return [GroupLengths(prompts[row], completions[row : row + group_size]) for row in range(0, len(prompts), group_size)]


def now() -> float:
    """Return the CPU seconds of this process; on a GPU wall seconds, after all kernels have finished."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def resident_bytes() -> int:
    """Return the memory in use: of this process, or of its allocations on the GPU."""
    return int(torch.cuda.memory_allocated()) if torch.cuda.is_available() else _proc_status_bytes("VmRSS")


def peak_bytes() -> int:
    """Return the peak memory: of this process, or of its allocations on the GPU."""
    return int(torch.cuda.max_memory_allocated()) if torch.cuda.is_available() else _proc_status_bytes("VmHWM")


def _proc_status_bytes(name: str) -> int:
    """Return a field of /proc/self/status in bytes; 0 where /proc is missing.

    The peak of getrusage would not do: a process inherits it through exec from the program that started it.
    """
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(name):
                return int(line.split()[1]) << 10
    return 0


def measure_matmul_rates(network: Any, request: MatmulRateRequest, dtype: torch.dtype) -> MatmulRates:
    """Measure the machine's rate on matrices of this network's shapes, and count the operations that the network needs."""
    head = network.get_output_embeddings().weight
    linear = [module for module in network.modules() if isinstance(module, torch.nn.Linear)]
    shapes = [tuple(module.weight.shape) for module in linear if module.weight is not head]
    config = network.config.get_text_config()
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    shapes_and_head = [*shapes, tuple(head.shape)]
    return MatmulRates(
        decoding=_matmul_rate(shapes_and_head, request.rows, dtype, backward=False),
        training=_matmul_rate(shapes_and_head, request.tokens, dtype, backward=True),
        per_token=2.0 * sum(map(math.prod, shapes)),
        per_prediction=2.0 * head.numel(),
        per_attended_pair=4.0 * config.num_hidden_layers * config.num_attention_heads * head_dim,
    )


def _matmul_rate(shapes: Sequence[tuple[int, ...]], tokens: int, dtype: torch.dtype, *, backward: bool) -> float:
    """Return the operations a second of products with all weights of these shapes: of a forward pass, or also of its backward."""
    device, seconds = pick_device(), 0.0
    for shape in set(shapes):
        n_out, n_in = shape
        x, weight, y = (torch.randn(*size, dtype=dtype, device=device) for size in ((tokens, n_in), shape, (tokens, n_out)))

        def multiply(x: torch.Tensor = x, weight: torch.Tensor = weight, y: torch.Tensor = y) -> None:
            torch.nn.functional.linear(x, weight)
            if backward:
                y @ weight
                y.t() @ x

        seconds += shapes.count(shape) * _mean_seconds(multiply)
    return (6.0 if backward else 2.0) * tokens * sum(map(math.prod, shapes)) / seconds


def _mean_seconds(work: Callable[[], None]) -> float:
    """Return the mean seconds of a call over `MATMUL_S` seconds of calls, after one call to warm up."""
    work()
    started, calls = now(), 0
    while (elapsed := now() - started) < MATMUL_S:
        work()
        calls += 1
    return elapsed / calls
