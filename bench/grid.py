"""The same cells by permix's grid and by lm-evaluation-harness run once per persona. One JSON line a figure.

    python -m bench.grid --path test.jsonl [--personas 8] [--questions 100] [--new-tokens 256] [--batch-size 8 16 32 64] ...

Held-out personas of the built-in pool × questions of GSM8K, greedy, in the same words: equal token ids are asserted. Each arm is
a process of its own (`bench.grid_arms`) and only one works at a time, block of personas by block of personas (A B, B A ...).
Seconds are CPU seconds of the arm's process, user and system, with its children; ratios are theirs over ours: of all blocks
together, and the least and the greatest of one. With several batch sizes, lm-evaluation-harness answers a small pilot in each
first, and gets the one that was cheapest; ours has its default. Where completions differ, the logits of the two tokens they part
with are looked at in float32: a tie in the precision that was used is no disagreement.
"""

import argparse
import contextlib
import os
import statistics
from collections.abc import Iterator, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

from bench.figures import show
from bench.grid_arms import Ask, Parting, Setup, Told, Weigh, run_arm
from bench.process import Arm
from permix.config import PersonasConfig, TaskConfig
from permix.evals.grid import PromptFormat, build_grid
from permix.inference.chat_template import encode_completion
from permix.inference.hardware import set_passive_threads
from permix.inference.hf import load_tokenizer, resolve_model_source
from permix.personas.pool import select_personas
from permix.tasks import load_questions
from permix.tasks.base import verify_completion
from permix.types import Cell

THEIRS, OURS = "lm_eval", "ours"
PILOT_QUESTIONS, PILOT_TOKENS = 64, 48
"""What batch sizes are chosen by: so many questions of the first persona, and so many tokens of each answer."""
PARTINGS = 50
"""Pairs of completions at most whose parting is looked at."""


def main() -> None:
    options = parser().parse_args()
    set_passive_threads()
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    Bench(options).run()


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="A grid by permix and by lm-evaluation-harness, persona by persona.")
    parser.add_argument("--path", type=Path, required=True, help="GSM8K's published test split, a file of JSON lines")
    parser.add_argument("--model", default="bundled", help="bundled, or a folder or hub id")
    parser.add_argument("--personas", type=int, default=8)
    parser.add_argument("--questions", type=int, default=100)
    parser.add_argument("--new-tokens", type=int, default=256, help="longest completion")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16")
    parser.add_argument(
        "--batch-size", type=int, nargs="+", default=[8, 16, 32, 64], help="lm-evaluation-harness's; of several, the cheapest"
    )
    parser.add_argument("--block", type=int, default=2, help="personas that an arm answers for before the other one's turn")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each arm")
    return parser


class Block(NamedTuple):
    """Cells that both arms answered."""

    cells: Sequence[Cell]
    theirs: Told
    ours: Told


class Bench:
    """All figures of one model."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.model = options, resolve_model_source(options.model)
        self.tokenizer = load_tokenizer(self.model)
        self.task, questions = load_questions(TaskConfig(name="gsm8k", path=options.path, n=options.questions))
        personas = select_personas(PersonasConfig(n=options.personas)).personas
        self.cells = build_grid(
            personas, questions, PromptFormat(self.task.prompt, "you_are", empty_system_prompt=False), samples=1, seed=0
        )
        self.about: dict[str, Any] = {
            "model": options.model, "personas": options.personas, "questions": options.questions,
            "new_tokens": options.new_tokens, "dtype": options.dtype, "threads": options.threads,
        }  # fmt: skip

    def run(self) -> None:
        self.about["lm_eval_batch_size"] = self.cheapest(self.options.batch_size)
        theirs = self.setup(self.options.new_tokens, self.about["lm_eval_batch_size"])
        with self.arm(theirs) as their, self.arm(self.setup(self.options.new_tokens, None)) as our:
            blocks = [
                self.block(number, cells, {THEIRS: their, OURS: our})
                for number, cells in enumerate(cut(self.cells, self.options.block * self.options.questions))
            ]
            show_costs(blocks, self.about)
            self.show_equality(blocks)
            self.show_partings(blocks, our)

    def setup(self, new_tokens: int, batch_size: int | None) -> Setup:
        return Setup(self.model, self.options.dtype, self.options.threads, new_tokens, batch_size)

    @contextlib.contextmanager
    def arm(self, setup: Setup) -> Iterator[Arm]:
        made = Arm(run_arm, setup, device="cpu")
        try:
            yield made
        finally:
            made.close()

    def cheapest(self, sizes: Sequence[int]) -> int:
        """The batch size in which lm-evaluation-harness needs the fewest CPU seconds for the pilot."""
        if len(sizes) == 1:
            return sizes[0]
        pilot = self.cells[: min(PILOT_QUESTIONS, self.options.questions)]
        spent = {}
        for size in sizes:
            with self.arm(self.setup(min(PILOT_TOKENS, self.options.new_tokens), size)) as arm:
                spent[size] = arm.ask(Ask(pilot)).cpu_seconds
            show("lm_eval_pilot_cpu_seconds", spent[size], batch_size=size, cells=len(pilot))
        return min(spent, key=spent.__getitem__)

    def block(self, number: int, cells: Sequence[Cell], arms: dict[str, Arm]) -> Block:
        order = (THEIRS, OURS) if number % 2 == 0 else (OURS, THEIRS)
        told: dict[str, Told] = {name: arms[name].ask(Ask(cells)) for name in order}
        if told[THEIRS].prompts != told[OURS].prompts:
            raise SystemExit("the arms did not ask the same token ids")
        block = Block(cells, told[THEIRS], told[OURS])
        show("block_cpu_ratio", block.theirs.cpu_seconds / block.ours.cpu_seconds, block=number, cells=len(cells), **self.about)
        return block

    def show_equality(self, blocks: Sequence[Block]) -> None:
        """How often the arms say the same, word for word, and answer the same; and how often each is right."""
        theirs = [text for block in blocks for text in block.theirs.texts]
        ours = [text for block in blocks for text in block.ours.texts]
        golds = [cell.gold or "" for block in blocks for cell in block.cells]
        verdicts = [[verify_completion(self.task, *pair) for pair in zip(said, golds, strict=True)] for said in (theirs, ours)]
        answers = [[one.extracted for one in each] for each in verdicts]
        show("equal_completions", share_equal(theirs, ours), n=len(golds), **self.about)
        show("equal_answers", share_equal(*answers), n=len(golds), **self.about)
        for name, each in zip((THEIRS, OURS), verdicts, strict=True):
            show(f"accuracy_{name}", statistics.mean(one.reward or 0.0 for one in each), n=len(golds), **self.about)

    def show_partings(self, blocks: Sequence[Block], arm: Arm) -> None:
        """In float32, how far the logits of the two tokens lie apart where completions part."""
        found = [parting for block in blocks for parting in self.partings(block)]
        if found:
            gaps = arm.ask(Weigh(found[:PARTINGS]))
            about = {"max": round(max(gaps), 4), "n": len(gaps), "of": len(found)}
            show("logit_gap_where_completions_part", statistics.median(gaps), **about, **self.about)

    def partings(self, block: Block) -> Iterator[Parting]:
        for prompt, theirs, ours in zip(block.ours.prompts, block.theirs.texts, block.ours.texts, strict=True):
            if theirs != ours:
                one, other = (encode_completion(text, self.tokenizer) for text in (theirs, ours))
                yield part(prompt, one, other, self.tokenizer.eos_token_id)


def cut(cells: Sequence[Cell], size: int) -> list[Sequence[Cell]]:
    """Blocks of so many cells; the last may be smaller."""
    return [cells[start : start + size] for start in range(0, len(cells), size)]


def part(prompt: Sequence[int], one: Sequence[int], other: Sequence[int], stop: int) -> Parting:
    """Where two different completions part; one that the other begins with has its stop token there."""
    alike = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))
    return Parting([*prompt, *one[:alike]], *(next(iter(each[alike:]), stop) for each in (one, other)))


def share_equal(one: Sequence[str | None], other: Sequence[str | None]) -> float:
    """Of pairs, how many are the same; two without an answer are."""
    return statistics.mean(float(left == right) for left, right in zip(one, other, strict=True))


def show_costs(blocks: Sequence[Block], about: dict[str, Any]) -> None:
    """Seconds of each arm over all blocks, and theirs over ours."""
    for clock in ("cpu_seconds", "wall_seconds"):
        theirs, ours = ([getattr(told, clock) for told in arm] for arm in zip(*(block[1:] for block in blocks), strict=True))
        found = ratio(theirs, ours)
        show(f"{clock}_ratio", found.value, min=round(found.least, 3), max=round(found.greatest, 3), blocks=len(blocks), **about)
        show(f"{clock}_{THEIRS}", sum(theirs), **about)
        show(f"{clock}_{OURS}", sum(ours), **about)


class Ratio(NamedTuple):
    """Of two sums, and the least and the greatest of one pair."""

    value: float
    least: float
    greatest: float


def ratio(theirs: Sequence[float], ours: Sequence[float]) -> Ratio:
    by_block = [one / other for one, other in zip(theirs, ours, strict=True)]
    return Ratio(sum(theirs) / sum(ours), min(by_block), max(by_block))


if __name__ == "__main__":
    main()
