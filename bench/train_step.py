"""CPU seconds of one GRPO step by TRL's own trainer and by permix's, with the same plan, weights and settings.

    python -m bench.train_step [--model bundled|tiny|PATH] [--prompt-tokens 60] [--pairs 3] ...

Each arm is a process of its own (`bench.arms`) that runs its trainer's real loop. The arms take turns (A B, B A ...), and only
one of them works at a time. Threads are pinned. Seconds are CPU seconds of the arm's process (on a GPU wall seconds,
synchronized). A ratio is TRL's seconds over permix's within a pair of steps; printed are the median of `n` pairs, the least and
the greatest. There are three kinds of pairs:

- a whole step: each arm generates its own rollouts from the same prompts, and no group has advantages of 0;
- a training step of both arms on the rollouts that TRL's arm generated, with the same advantages;
- the same with a share `--alive` of the groups. The other groups have advantages of 0, as groups that are all right or all wrong.

The learning rate is so small that no weight changes, so all pairs do the same work. TRL runs with micro-batches of 8 rows and
with the largest that fit into memory; `step_ratio_to_the_better` compares permix with the faster of the two. One JSON line a
figure.
"""

import argparse
import contextlib
import json
import os
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any, NamedTuple

from bench.figures import show, show_spread
from bench.process import Worker
from permix.config import OptimConfig, PersonasConfig, RolloutPlanConfig, TaskConfig, TrainableModelConfig, TrainConfig
from permix.inference.chat_template import encode_chat
from permix.inference.hardware import pick_device, set_passive_threads
from permix.inference.hf import load_tokenizer, resolve_model_source
from permix.personas.pool import select_personas
from permix.pipelines.quickstart import QUICKSTART_LEVELS
from permix.plan import Plan, compile_plan_from_config
from permix.prompts import build_messages
from permix.tasks import load_questions
from permix.types import Persona

SMALL_BATCH, LARGEST = 8, 0
"""Rows of a forward pass of TRL: a common choice on a small machine; 0 is replaced by the most that fit into memory."""
EXACT_GROUPS = 2
"""The number of groups on which log-probabilities and gradients are compared in float32."""
TINY_LR = 1e-12
"""A learning rate at which AdamW does all its work but no float32 weight changes."""
MEMORY_SHARE = 0.6
"""The share of the free memory that a larger micro-batch may use; other users of the machine need the rest."""


def main() -> None:
    options = parser().parse_args()
    set_passive_threads()
    if options.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    with tempfile.TemporaryDirectory() as scratch:
        benchmark = StepBenchmark(options, model_source(options.model, Path(scratch)), Path(scratch))
        for prompt_tokens in options.prompt_tokens:
            benchmark.run(prompt_tokens)


def parser() -> argparse.ArgumentParser:
    gpu = pick_device() == "cuda"
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="bundled", help="bundled, tiny (random weights), or a folder or hub id")
    parser.add_argument(
        "--prompt-tokens", type=int, nargs="+", default=[60], help="approximate tokens of a prompt; each length is measured"
    )
    parser.add_argument("--groups", type=int, default=32 if gpu else 6, help="groups of a step")
    parser.add_argument("--group-size", type=int, default=8, help="rollouts of a group")
    parser.add_argument("--new-tokens", type=int, default=28, help="longest completion")
    parser.add_argument("--pairs", type=int, default=3, help="pairs of steps of each kind")
    parser.add_argument("--alive", type=float, default=0.5, help="share of groups with advantages in the third kind of pairs")
    parser.add_argument(
        "--micro-batch",
        type=int,
        nargs="+",
        default=[SMALL_BATCH, LARGEST],
        help="rows of a forward pass of TRL; 0: the most that fit into memory",
    )
    parser.add_argument("--micro-tokens", type=int, help="tokens of a forward pass of permix; by default permix chooses")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if gpu else "cpu")
    parser.add_argument("--threads", type=int, help="CPU threads of each arm; by default all cores")
    return parser


def model_source(model: str, scratch: Path) -> str:
    """Return the folder or hub id of a model; the tiny model is written to `scratch`."""
    if model != "tiny":
        return resolve_model_source(model)
    from tests.tiny import make_folder

    return str(make_folder(scratch / "tiny"))


class ArmReports(NamedTuple):
    """The `bench.arms.StepReport` of one arm for each kind of pair."""

    step: Any
    training: Any
    training_partly: Any


class StepBenchmark:
    """Measures and prints all figures of one model."""

    def __init__(self, options: argparse.Namespace, model: str, scratch: Path) -> None:
        self.options, self.model, self.scratch = options, model, scratch
        self.tokenizer = load_tokenizer(model)
        self._files = 0

    def run(self, prompt_tokens: int) -> None:
        """Measure and print all figures for prompts of this length."""
        plan = self.plan(prompt_tokens, self.options.groups)
        lengths = [len(encode_chat(self.tokenizer, row.messages)) for row in plan.rows]
        settings = {
            "model": self.options.model, "prompt_tokens": round(statistics.mean(lengths)), "groups": self.options.groups,
            "group_size": self.options.group_size, "new_tokens": self.options.new_tokens, "device": self.options.device,
        }  # fmt: skip
        self.exactness(prompt_tokens, settings)
        largest: int | None = None
        ratios = []
        for rows in self.options.micro_batch:
            if (size := rows or largest) is None:
                show("skipped", 0, **settings, why="no larger micro-batch of TRL's divides the step and fits into memory")
                continue
            ratio, largest = self.compare(plan, size, settings)
            ratios.append((ratio, size))
        if ratios:
            ratio, size = min(ratios)
            show("step_ratio_to_the_better", ratio, **settings, trl_rows_a_pass=size)

    def plan(self, prompt_tokens: int, groups: int) -> Plan:
        """Return a plan in which every group has another persona, whose text is lengthened until the prompt has the length.

        The personas' texts become longer by naming other personas of the pool as friends.
        """
        task = TaskConfig(split="train", levels=QUICKSTART_LEVELS, n=300)
        pool = select_personas(PersonasConfig(split="train")).personas
        loaded_task, questions = load_questions(task)
        shortest = build_messages(Persona(id="shortest", text="a"), loaded_task.prompt(questions[0]))
        persona_tokens = prompt_tokens - len(encode_chat(self.tokenizer, shortest))
        pool_file = self.new_file("jsonl")
        with pool_file.open("w", encoding="utf-8") as lines:
            for index, persona in enumerate(pool):
                print(json.dumps({"id": persona.id, "text": self._lengthened(pool, index, persona_tokens)}), file=lines)
        # Three kinds of steps, one step to warm up, and one that is never run: the trainer waits before it.
        config = RolloutPlanConfig(
            mix=1.0, steps=3 * self.options.pairs + 2, questions_per_step=groups, group_size=self.options.group_size
        )
        return compile_plan_from_config(task, PersonasConfig(pool=str(pool_file), split="all"), config)

    def _lengthened(self, pool: Sequence[Persona], index: int, tokens: int) -> str:
        """Return the text of a persona with as many friends as bring its length nearest to `tokens`."""
        text = pool[index].text
        missing = tokens - self._count_tokens(text)
        for friend in islice(cycle(pool), index + 1, None):
            longer = f"{text}, and a friend of {friend.text}"
            if abs(still_missing := tokens - self._count_tokens(longer)) >= abs(missing):
                break
            text, missing = longer, still_missing
        return text

    def _count_tokens(self, text: str) -> int:
        return len(self.tokenizer(text)["input_ids"])

    @contextlib.contextmanager
    def arms(self, plan: Plan, micro_batch: int, precision: str = "auto") -> Iterator[dict[str, Worker]]:
        """Run the processes of both arms while the block runs, and yield them by name, "trl" and "ours"."""
        from bench.arms import Setup, run_arm

        config = OptimConfig.model_validate({
            "lr": TINY_LR, "temperature": 0.7, "max_new_tokens": self.options.new_tokens, "precision": precision,
            "microbatch_tokens": self.options.micro_tokens, "save_every": 10_000,
        })  # fmt: skip
        stage = TrainConfig(
            out=self.scratch / "run", model=TrainableModelConfig(name=self.model), train=config, threads=self.options.threads
        )
        workers: dict[str, Worker] = {}
        try:
            for name, rows in (("trl", micro_batch), ("ours", None)):
                workers[name] = Worker(run_arm, Setup(stage, plan, rows), device=self.options.device)
            yield workers
        finally:
            for worker in workers.values():
                worker.close()

    def new_file(self, suffix: str = "pt") -> Path:
        """Return the path of a temporary file that does not exist yet."""
        self._files += 1
        return self.scratch / f"{self._files}.{suffix}"

    def advantages(self, groups: int, alive: int) -> list[float]:
        """Return an advantage for each rollout: 1 and −1 in turn in the first `alive` groups, 0 in the others."""
        return [
            (-1.0) ** number if group < alive else 0.0 for group in range(groups) for number in range(self.options.group_size)
        ]

    def exactness(self, prompt_tokens: int, settings: dict[str, Any]) -> None:
        """Print how far log-probabilities and gradients of the arms differ in float32, on the same rollouts."""
        import torch

        from bench.arms import StepRequest

        groups = min(EXACT_GROUPS, self.options.groups)
        batch, gradients = self.new_file(), {"trl": self.new_file(), "ours": self.new_file()}
        advantages = self.advantages(groups, groups)
        rows = min(SMALL_BATCH, len(advantages))
        with self.arms(self.plan(prompt_tokens, groups), rows, "float32") as arms:
            arms["trl"].call(StepRequest(advantages, keep=batch, gradient=gradients["trl"]))
            arms["ours"].call(StepRequest(advantages, batch=batch, gradient=gradients["ours"]))
            self.show_logps("logp_difference_float32", arms, batch, settings)
        trl, ours = (torch.load(gradients[name]) for name in ("trl", "ours"))
        show("gradient_difference_float32", float((ours - trl).norm() / trl.norm()), **settings)
        for path in gradients.values():
            path.unlink()

    def show_logps(self, figure: str, arms: dict[str, Worker], batch: Path, settings: dict[str, Any]) -> None:
        """Print the largest and the mean absolute difference of the arms' training log-probabilities."""
        import torch

        from bench.arms import LogprobsRequest

        logps = {name: self.new_file() for name in arms}
        for name, arm in arms.items():
            arm.call(LogprobsRequest(batch, logps[name]))
        mask_B_T = torch.load(batch)["completion_mask"].bool().cpu()
        difference_N = (torch.load(logps["trl"]) - torch.load(logps["ours"]))[mask_B_T].abs()
        show(figure, float(difference_N.max()), mean=float(difference_N.mean()), tokens=len(difference_N), **settings)

    def compare(self, plan: Plan, micro_batch: int, settings: dict[str, Any]) -> tuple[float, int | None]:
        """Compare with TRL in micro-batches of `micro_batch` rows and print the figures.

        Returns the median ratio of whole steps, and the largest micro-batch that fits into memory (`largest_micro_batch`).
        """
        from bench.arms import MatmulRateRequest

        groups, batch = self.options.groups, self.new_file()
        alive = self.advantages(groups, groups)
        partly = self.advantages(groups, max(1, round(self.options.alive * groups)))
        settings = settings | {"trl_rows_a_pass": micro_batch}
        with self.arms(plan, micro_batch) as arms:
            reports = self.run_pairs(arms, alive, partly, batch)
            if arms["trl"].ready.bfloat16:
                self.show_logps("logp_difference_bfloat16", arms, batch, settings)
            lengths = reports["ours"][0].training.lengths
            inputs = sum(group.prompt + sum(group.completions) - len(group.completions) for group in lengths)
            rates = arms["ours"].call(
                MatmulRateRequest(groups * self.options.group_size, min(inputs, arms["ours"].ready.micro_tokens))
            )
            ready = arms["trl"].ready
        ratio = show_ratios(reports, settings)
        show_parts(reports, settings)
        show_floor(reports["ours"], rates, settings)
        peaks = show_memory(reports, settings)
        return ratio, self.largest_micro_batch(ready, peaks["trl"], micro_batch)

    def run_pairs(
        self, arms: dict[str, Worker], alive: list[float], partly: list[float], batch: Path
    ) -> dict[str, list[ArmReports]]:
        """Run one step to warm up and all pairs, the first arm alternating. The file `batch` gets TRL's last rollouts."""
        from bench.arms import StepRequest

        reports: dict[str, list[ArmReports]] = {"trl": [], "ours": []}
        for arm in arms.values():
            arm.call(StepRequest(alive))
        for number in range(self.options.pairs):
            order = ("trl", "ours") if number % 2 == 0 else ("ours", "trl")
            whole = {name: arms[name].call(StepRequest(alive, keep=batch if name == "trl" else None)) for name in order}
            training = {name: arms[name].call(StepRequest(alive, batch=batch)) for name in reversed(order)}
            training_partly = {name: arms[name].call(StepRequest(partly, batch=batch)) for name in order}
            for name in order:
                reports[name].append(ArmReports(whole[name], training[name], training_partly[name]))
        return reports

    def largest_micro_batch(self, ready: Any, peak: int, micro_batch: int) -> int | None:
        """Return the largest micro-batch that divides the step and fits into memory, estimated from the peak with `micro_batch`.

        Returns None if no micro-batch above `micro_batch` fits.
        """
        rows = self.options.groups * self.options.group_size
        fixed = ready.resident + 3 * ready.weights  # the first step allocates the gradients and AdamW's two moments
        bytes_per_row = max(peak - fixed, 0) / micro_batch
        for passes in range(1, rows // micro_batch):
            if rows % passes == 0 and fixed + bytes_per_row * rows / passes <= MEMORY_SHARE * free_memory():
                return int(rows // passes)
        return None


def show_ratios(reports: dict[str, list[ArmReports]], settings: dict[str, Any]) -> float:
    """Print TRL's seconds over permix's by pair, for each part of a step. Returns the median ratio of whole steps."""
    pairs = list(zip(reports["trl"], reports["ours"], strict=True))
    generation = [trl.step.seconds["generation"] / ours.step.seconds["generation"] for trl, ours in pairs]
    tokens = {name: [report.step.tokens for report in of_arm] for name, of_arm in reports.items()}
    show_spread("generation_ratio", generation, **settings, tokens_trl=tokens["trl"], tokens_ours=tokens["ours"])
    per_token = [ratio * ours.step.tokens / trl.step.tokens for ratio, (trl, ours) in zip(generation, pairs, strict=True)]
    show_spread("generation_ratio_per_token", per_token, **settings)
    show_spread(
        "training_ratio", [trl.training.training_seconds / ours.training.training_seconds for trl, ours in pairs], **settings
    )
    partly = [trl.training_partly.training_seconds / ours.training_partly.training_seconds for trl, ours in pairs]
    show_spread("training_ratio_partly_alive", partly, **settings)
    step = [trl.step.step_seconds / ours.step.step_seconds for trl, ours in pairs]
    show_spread("step_ratio", step, **settings)
    # Composed of the generation of the whole step and the training of the partly alive step: no such step was run.
    composed = [
        (trl.step.seconds["generation"] + trl.training_partly.training_seconds)
        / (ours.step.seconds["generation"] + ours.training_partly.training_seconds)
        for trl, ours in pairs
    ]
    show_spread("step_ratio_partly_alive", composed, **settings)
    return float(statistics.median(step))


def show_parts(reports: dict[str, list[ArmReports]], settings: dict[str, Any]) -> None:
    """Print for each arm the median seconds of each part of a whole step, and their sum."""
    for name, of_arm in reports.items():
        parts = {part: statistics.median(report.step.seconds[part] for report in of_arm) for part in of_arm[0].step.seconds}
        rounded = {part: round(seconds, 2) for part, seconds in parts.items()}
        show(f"step_seconds_{name}", sum(parts.values()), **rounded, **settings)


def show_floor(reports: list[ArmReports], rates: Any, settings: dict[str, Any]) -> None:
    """Print the share of permix's seconds that the matrix products alone would take at this machine's rate."""
    generation = [rates.forward(each.step.lengths) / rates.decoding / each.step.seconds["generation"] for each in reports]
    training = [3 * rates.forward(each.training.lengths) / rates.training / each.training.training_seconds for each in reports]
    show_spread("floor_share_of_generation", generation, **settings, matrix_gflops=round(rates.decoding / 1e9, 1))
    show_spread("floor_share_of_training", training, **settings, matrix_gflops=round(rates.training / 1e9, 1))


def show_memory(reports: dict[str, list[ArmReports]], settings: dict[str, Any]) -> dict[str, int]:
    """Print and return the peak memory of each arm in bytes: of its process, or of its allocations on the GPU."""
    peaks = {name: max(report.peak for each in of_arm for report in each) for name, of_arm in reports.items()}
    for name, peak in peaks.items():
        show(f"peak_memory_gib_{name}", peak / 2**30, **settings)
    return peaks


def free_memory() -> int:
    """Return the free bytes of the device that is used."""
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.mem_get_info()[0])
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main()
