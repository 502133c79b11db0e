"""One GRPO step by TRL's own trainer and by ours: same plan, weights and settings. One JSON line a figure.

    python -m bench.train_step [--model bundled|tiny|PATH] [--prompt-tokens 60] [--pairs 3] ...

Each arm is a process of its own (`bench.arms`) that runs its trainer's real loop; steps are interleaved (A B, B A ...), and only
one arm works at a time. Seconds are CPU seconds of the arm's process (on a GPU, wall seconds after synchronising), threads are
pinned, and ratios are TRL's over ours within a pair: the median of `n`, the least and the greatest. A pair is

- a whole step, each arm generating its own rollouts with its own sampler from the same prompts, all groups alive;
- a training step of both on the rollouts that TRL's arm generated, all groups alive: no advantage is 0;
- the same with `--alive` of the groups alive, as in a run where the others are all right or all wrong.

The learning rate is so small that no weight changes, so that every pair does the same work. TRL runs in micro-batches of 8 rows
and in the largest that memory allows; the better one is the base.
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
from bench.process import Arm
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
"""TRL's rows a pass: what a small machine's run would take, and a word for the most that fit."""
EXACT_GROUPS = 2
"""Groups on which numbers are compared in float32."""
NO_CHANGE = 1e-12
"""A learning rate at which AdamW does its work and no float32 weight moves."""
ROOM = 0.6
"""Share of the free memory that a larger micro-batch may take: the machine has other users."""


def main() -> None:
    options = parser().parse_args()
    set_passive_threads()
    if options.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(options, source(options.model, Path(scratch)), Path(scratch))
        for tokens in options.prompt_tokens:
            bench.shape(tokens)


def parser() -> argparse.ArgumentParser:
    gpu = pick_device() == "cuda"
    parser = argparse.ArgumentParser(description="A GRPO step by TRL's own trainer and by ours.")
    parser.add_argument("--model", default="bundled", help="bundled, tiny (made on the spot), or a folder or hub id")
    parser.add_argument("--prompt-tokens", type=int, nargs="+", default=[60], help="about how long prompts are; a run for each")
    parser.add_argument("--groups", type=int, default=32 if gpu else 6, help="groups of a step")
    parser.add_argument("--group-size", type=int, default=8, help="rollouts of a group")
    parser.add_argument("--new-tokens", type=int, default=28, help="longest completion")
    parser.add_argument("--pairs", type=int, default=3, help="pairs of each measure")
    parser.add_argument(
        "--alive", type=float, default=0.5, help="share of groups with advantages in the second measure of training"
    )
    parser.add_argument(
        "--micro-batch", type=int, nargs="+", default=[SMALL_BATCH, LARGEST], help="TRL's rows a pass; 0: the most that fit"
    )
    parser.add_argument("--micro-tokens", type=int, help="our tokens a pass; permix chooses when not given")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if gpu else "cpu")
    parser.add_argument("--threads", type=int, help="CPU threads; the machine's cores when not given")
    return parser


def source(model: str, scratch: Path) -> str:
    if model != "tiny":
        return resolve_model_source(model)
    from tests.tiny import make_folder

    return str(make_folder(scratch / "tiny"))


class Pair(NamedTuple):
    """What one arm reported of one pair."""

    step: Any
    training: Any
    training_partly: Any


class Bench:
    """All figures of one model."""

    def __init__(self, options: argparse.Namespace, model: str, scratch: Path) -> None:
        self.options, self.model, self.scratch = options, model, scratch
        self.tokenizer = load_tokenizer(model)
        self._files = 0

    def shape(self, prompt_tokens: int) -> None:
        """All figures of one length of prompts."""
        plan = self.plan(prompt_tokens, self.options.groups)
        lengths = [len(encode_chat(self.tokenizer, row.messages)) for row in plan.rows]
        about = {
            "model": self.options.model, "prompt_tokens": round(statistics.mean(lengths)), "groups": self.options.groups,
            "group_size": self.options.group_size, "new_tokens": self.options.new_tokens, "device": self.options.device,
        }  # fmt: skip
        self.exactness(prompt_tokens, about)
        fits: int | None = None
        found = []
        for rows in self.options.micro_batch:
            if (size := rows or fits) is None:
                show("skipped", 0, **about, why="no larger micro-batch of TRL's divides the step and fits into memory")
                continue
            median, fits = self.compare(plan, size, about)
            found.append((median, size))
        if found:
            median, size = min(found)
            show("step_ratio_to_the_better", median, **about, trl_rows_a_pass=size)

    def plan(self, prompt_tokens: int, groups: int) -> Plan:
        """Every group under a persona of its own, whose text is lengthened by friends and their friends."""
        task = TaskConfig(split="train", levels=QUICKSTART_LEVELS, n=300)
        pool = select_personas(PersonasConfig(split="train")).personas
        asked, questions = load_questions(task)
        alone = build_messages(Persona(id="nobody", text="a"), asked.prompt(questions[0]))
        tokens = prompt_tokens - len(encode_chat(self.tokenizer, alone))
        longer = self.file("jsonl")
        with longer.open("w", encoding="utf-8") as lines:
            for place, persona in enumerate(pool):
                print(json.dumps({"id": persona.id, "text": self._lengthened(pool, place, tokens)}), file=lines)
        # Whole steps, training steps of both kinds, one to warm up and one that is never taken.
        config = RolloutPlanConfig(
            mix=1.0, steps=3 * self.options.pairs + 2, questions_per_step=groups, group_size=self.options.group_size
        )
        return compile_plan_from_config(task, PersonasConfig(pool=str(longer), split="all"), config)

    def _lengthened(self, pool: Sequence[Persona], place: int, tokens: int) -> str:
        """With as many friends as bring its text nearest to so many tokens."""
        text = pool[place].text
        short = tokens - self._count(text)
        for friend in islice(cycle(pool), place + 1, None):
            longer = f"{text}, and a friend of {friend.text}"
            if abs(left := tokens - self._count(longer)) >= abs(short):
                break
            text, short = longer, left
        return text

    def _count(self, text: str) -> int:
        return len(self.tokenizer(text)["input_ids"])

    @contextlib.contextmanager
    def arms(self, plan: Plan, micro_batch: int, precision: str = "auto") -> Iterator[dict[str, Arm]]:
        """TRL's and ours, ready."""
        from bench.arms import Setup, run_arm

        config = OptimConfig.model_validate({
            "lr": NO_CHANGE, "temperature": 0.7, "max_new_tokens": self.options.new_tokens, "precision": precision,
            "microbatch_tokens": self.options.micro_tokens, "save_every": 10_000,
        })  # fmt: skip
        stage = TrainConfig(
            out=self.scratch / "run", model=TrainableModelConfig(name=self.model), train=config, threads=self.options.threads
        )
        made: dict[str, Arm] = {}
        try:
            for name, rows in (("trl", micro_batch), ("ours", None)):
                made[name] = Arm(run_arm, Setup(stage, plan, rows), device=self.options.device)
            yield made
        finally:
            for arm in made.values():
                arm.close()

    def file(self, suffix: str = "pt") -> Path:
        self._files += 1
        return self.scratch / f"{self._files}.{suffix}"

    def advantages(self, groups: int, alive: int) -> list[float]:
        """Of rollouts by group: plus and minus one in turn, and 0 in groups that are not alive."""
        return [
            (-1.0) ** number if group < alive else 0.0 for group in range(groups) for number in range(self.options.group_size)
        ]

    def exactness(self, prompt_tokens: int, about: dict[str, Any]) -> None:
        """Log-probabilities and gradients of both arms in float32, on the same rollouts."""
        import torch

        from bench.arms import Step

        groups = min(EXACT_GROUPS, self.options.groups)
        batch, gradients = self.file(), {"trl": self.file(), "ours": self.file()}
        advantages = self.advantages(groups, groups)
        rows = min(SMALL_BATCH, len(advantages))
        with self.arms(self.plan(prompt_tokens, groups), rows, "float32") as arms:
            arms["trl"].ask(Step(advantages, keep=batch, gradient=gradients["trl"]))
            arms["ours"].ask(Step(advantages, batch=batch, gradient=gradients["ours"]))
            self.show_logps("logp_difference_float32", arms, batch, about)
        theirs, ours = (torch.load(gradients[name]) for name in ("trl", "ours"))
        show("gradient_difference_float32", float((ours - theirs).norm() / theirs.norm()), **about)
        for path in gradients.values():
            path.unlink()

    def show_logps(self, figure: str, arms: dict[str, Arm], batch: Path, about: dict[str, Any]) -> None:
        """The largest and the mean difference of the arms' training log-probabilities."""
        import torch

        from bench.arms import Logps

        logps = {name: self.file() for name in arms}
        for name, arm in arms.items():
            arm.ask(Logps(batch, logps[name]))
        real_B_T = torch.load(batch)["completion_mask"].bool().cpu()
        off_N = (torch.load(logps["trl"]) - torch.load(logps["ours"]))[real_B_T].abs()
        show(figure, float(off_N.max()), mean=float(off_N.mean()), tokens=len(off_N), **about)

    def compare(self, plan: Plan, micro_batch: int, about: dict[str, Any]) -> tuple[float, int | None]:
        """Figures against TRL in micro-batches of so many rows; returns the step's ratio, and the largest that fits."""
        from bench.arms import Rate, Step

        groups, batch = self.options.groups, self.file()
        alive = self.advantages(groups, groups)
        partly = self.advantages(groups, max(1, round(self.options.alive * groups)))
        about = about | {"trl_rows_a_pass": micro_batch}
        found: dict[str, list[Pair]] = {"trl": [], "ours": []}
        with self.arms(plan, micro_batch) as arms:
            for arm in arms.values():
                arm.ask(Step(alive))
            for number in range(self.options.pairs):
                order = ("trl", "ours") if number % 2 == 0 else ("ours", "trl")
                whole = {name: arms[name].ask(Step(alive, keep=batch if name == "trl" else None)) for name in order}
                same = {name: arms[name].ask(Step(alive, batch=batch)) for name in reversed(order)}
                some = {name: arms[name].ask(Step(partly, batch=batch)) for name in order}
                for name in order:
                    found[name].append(Pair(whole[name], same[name], some[name]))
            if arms["trl"].ready.bfloat16:
                self.show_logps("logp_difference_bfloat16", arms, batch, about)
            read = sum(one.prompt + sum(one.completions) - len(one.completions) for one in found["ours"][0].training.lengths)
            rates = arms["ours"].ask(Rate(groups * self.options.group_size, min(read, arms["ours"].ready.micro_tokens)))
            ready = arms["trl"].ready
        median = show_ratios(found, about)
        show_parts(found, about)
        show_floor(found["ours"], rates, about)
        peaks = show_memory(found, about)
        return median, self.largest(ready, peaks["trl"], micro_batch)

    def largest(self, ready: Any, peak: int, micro_batch: int) -> int | None:
        """The largest micro-batch that divides the step and fits, by what this one took; None when that is no larger."""
        rows = self.options.groups * self.options.group_size
        fixed = ready.resident + 3 * ready.weights  # gradients and AdamW's two moments come with the first step
        a_row = max(peak - fixed, 0) / micro_batch
        for passes in range(1, rows // micro_batch):
            if rows % passes == 0 and fixed + a_row * rows / passes <= ROOM * free_memory():
                return int(rows // passes)
        return None


def show_ratios(found: dict[str, list[Pair]], about: dict[str, Any]) -> float:
    """TRL's seconds over ours, pair by pair; returns the whole step's."""
    pairs = list(zip(found["trl"], found["ours"], strict=True))
    generation = [theirs.step.seconds["generation"] / ours.step.seconds["generation"] for theirs, ours in pairs]
    of_generation = {name: [one.step.tokens for one in each] for name, each in found.items()}
    show_spread("generation_ratio", generation, **about, tokens_trl=of_generation["trl"], tokens_ours=of_generation["ours"])
    per_token = [one * ours.step.tokens / theirs.step.tokens for one, (theirs, ours) in zip(generation, pairs, strict=True)]
    show_spread("generation_ratio_per_token", per_token, **about)
    show_spread("training_ratio", [theirs.training.training / ours.training.training for theirs, ours in pairs], **about)
    partly = [theirs.training_partly.training / ours.training_partly.training for theirs, ours in pairs]
    show_spread("training_ratio_partly_alive", partly, **about)
    step = [theirs.step.whole / ours.step.whole for theirs, ours in pairs]
    show_spread("step_ratio", step, **about)
    # Generation of the whole step and training of the last: not one step that ran.
    composed = [
        (theirs.step.seconds["generation"] + theirs.training_partly.training)
        / (ours.step.seconds["generation"] + ours.training_partly.training)
        for theirs, ours in pairs
    ]
    show_spread("step_ratio_partly_alive", composed, **about)
    return float(statistics.median(step))


def show_parts(found: dict[str, list[Pair]], about: dict[str, Any]) -> None:
    """Where the seconds of a whole step go; the sum of the medians of its parts."""
    for name, pairs in found.items():
        parts = {part: statistics.median(one.step.seconds[part] for one in pairs) for part in pairs[0].step.seconds}
        show(f"step_seconds_{name}", sum(parts.values()), **{part: round(spent, 2) for part, spent in parts.items()}, **about)


def show_floor(pairs: list[Pair], rates: Any, about: dict[str, Any]) -> None:
    """What share of our seconds the matrix products alone would take at this machine's rate."""
    generation = [rates.forward(one.step.lengths) / rates.decoding / one.step.seconds["generation"] for one in pairs]
    training = [3 * rates.forward(one.training.lengths) / rates.training / one.training.training for one in pairs]
    show_spread("floor_share_of_generation", generation, **about, matrix_gflops=round(rates.decoding / 1e9, 1))
    show_spread("floor_share_of_training", training, **about, matrix_gflops=round(rates.training / 1e9, 1))


def show_memory(found: dict[str, list[Pair]], about: dict[str, Any]) -> dict[str, int]:
    """The peak of each arm's own process (on a GPU, of its allocations there)."""
    peaks = {name: max(report.peak for pair in pairs for report in pair) for name, pairs in found.items()}
    for name, peak in peaks.items():
        show(f"peak_memory_gib_{name}", peak / 2**30, **about)
    return peaks


def free_memory() -> int:
    """Bytes that can still be had, on the device that is used."""
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.mem_get_info()[0])
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main()
