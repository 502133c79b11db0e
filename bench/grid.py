"""CPU seconds of a persona grid by permix and by lm-evaluation-harness run once per persona. One JSON line a figure.

    python -m bench.grid --path test.jsonl [--personas 8] [--questions 100] [--new-tokens 256] [--batch-size 8 16 32 64] ...

Both arms answer the same cells greedily: held-out personas of the built-in pool × questions of GSM8K. The benchmark fails if
their prompts differ in a token id. Each arm is a process of its own (`bench.grid_arms`). Only one of them works at a time, and
they take turns by blocks of personas (A B, B A ...).

Seconds are CPU seconds of the arm's process and its children, user and system. A ratio is lm-evaluation-harness's seconds over
permix's, summed over all blocks; `min` and `max` are the ratios of single blocks. If several batch sizes are given,
lm-evaluation-harness first answers a small pilot with each, and the one with the fewest CPU seconds is used; permix uses its
default. Where two completions differ, `logit_gap_where_completions_part` is the float32 difference of the logits of the first two
tokens that differ: a gap near 0 is a tie, which rounding decides, and no disagreement.
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
from bench.grid_arms import AnswerRequest, Answers, Divergence, LogitGapRequest, Setup, run_arm
from bench.process import Worker
from permix.config import PersonasConfig, TaskConfig
from permix.evals.grid import PromptFormat, build_grid
from permix.inference.chat_template import encode_completion
from permix.inference.hardware import set_passive_threads
from permix.inference.hf import load_tokenizer, resolve_model_source
from permix.personas.pool import select_personas
from permix.tasks import load_questions
from permix.tasks.base import verify_completion
from permix.types import Cell

LM_EVAL, OURS = "lm_eval", "ours"
PILOT_QUESTIONS, PILOT_TOKENS = 64, 48
"""The pilot that chooses the batch size: questions, all under the first persona, and the most tokens of an answer."""
MAX_DIVERGENCES = 50
"""The largest number of differing completions whose logit gap is computed."""


def main() -> None:
    options = parser().parse_args()
    set_passive_threads()
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    GridBenchmark(options).run()


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--path", type=Path, required=True, help="GSM8K's published test split, a file of JSON lines")
    parser.add_argument("--model", default="bundled", help="bundled, or a folder or hub id")
    parser.add_argument("--personas", type=int, default=8)
    parser.add_argument("--questions", type=int, default=100)
    parser.add_argument("--new-tokens", type=int, default=256, help="longest completion")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16")
    parser.add_argument(
        "--batch-size",
        type=int,
        nargs="+",
        default=[8, 16, 32, 64],
        help="batch sizes of lm-evaluation-harness; the one with the fewest CPU seconds is used",
    )
    parser.add_argument("--block", type=int, default=2, help="personas that one arm answers before the other arm's turn")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each arm")
    return parser


class Block(NamedTuple):
    """Cells and the answers of both arms to them."""

    cells: Sequence[Cell]
    lm_eval: Answers
    ours: Answers


class GridBenchmark:
    """Measures and prints all figures of one model."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.model = options, resolve_model_source(options.model)
        self.tokenizer = load_tokenizer(self.model)
        self.task, questions = load_questions(TaskConfig(name="gsm8k", path=options.path, n=options.questions))
        personas = select_personas(PersonasConfig(n=options.personas)).personas
        self.cells = build_grid(
            personas, questions, PromptFormat(self.task.prompt, "you_are", empty_system_prompt=False), samples=1, seed=0
        )
        self.settings: dict[str, Any] = {
            "model": options.model, "personas": options.personas, "questions": options.questions,
            "new_tokens": options.new_tokens, "dtype": options.dtype, "threads": options.threads,
        }  # fmt: skip

    def run(self) -> None:
        """Choose the batch size, let both arms answer all cells, and print the figures."""
        batch_size = self.settings["lm_eval_batch_size"] = self.cheapest_batch_size(self.options.batch_size)
        with self.arm(self.options.new_tokens, batch_size) as lm_eval, self.arm(self.options.new_tokens, None) as ours:
            blocks = [
                self.measure_block(number, cells, {LM_EVAL: lm_eval, OURS: ours})
                for number, cells in enumerate(split_blocks(self.cells, self.options.block * self.options.questions))
            ]
            show_costs(blocks, self.settings)
            self.show_equality(blocks)
            self.show_logit_gaps(blocks, ours)

    @contextlib.contextmanager
    def arm(self, new_tokens: int, batch_size: int | None) -> Iterator[Worker]:
        """Run an arm's process while the block runs. `batch_size` is that of lm-evaluation-harness; None selects permix."""
        worker = Worker(
            run_arm, Setup(self.model, self.options.dtype, self.options.threads, new_tokens, batch_size), device="cpu"
        )
        try:
            yield worker
        finally:
            worker.close()

    def cheapest_batch_size(self, sizes: Sequence[int]) -> int:
        """Return the batch size with which lm-evaluation-harness needs the fewest CPU seconds for the pilot."""
        if len(sizes) == 1:
            return sizes[0]
        pilot = self.cells[: min(PILOT_QUESTIONS, self.options.questions)]
        cpu_seconds = {}
        for size in sizes:
            with self.arm(min(PILOT_TOKENS, self.options.new_tokens), size) as arm:
                cpu_seconds[size] = arm.call(AnswerRequest(pilot)).cpu_seconds
            show("lm_eval_pilot_cpu_seconds", cpu_seconds[size], batch_size=size, cells=len(pilot))
        return min(cpu_seconds, key=cpu_seconds.__getitem__)

    def measure_block(self, number: int, cells: Sequence[Cell], arms: dict[str, Worker]) -> Block:
        """Let both arms answer the cells, the first arm alternating by block. Raises SystemExit if their prompts differ."""
        order = (LM_EVAL, OURS) if number % 2 == 0 else (OURS, LM_EVAL)
        answers: dict[str, Answers] = {name: arms[name].call(AnswerRequest(cells)) for name in order}
        block = Block(cells, answers[LM_EVAL], answers[OURS])
        if block.lm_eval.prompts != block.ours.prompts:
            raise SystemExit("the token ids of the arms' prompts differ")
        show(
            "block_cpu_ratio", block.lm_eval.cpu_seconds / block.ours.cpu_seconds, block=number, cells=len(cells), **self.settings
        )
        return block

    def show_equality(self, blocks: Sequence[Block]) -> None:
        """Print the shares of equal completions and of equal extracted answers, and the accuracy of each arm."""
        texts = {
            LM_EVAL: [text for block in blocks for text in block.lm_eval.texts],
            OURS: [text for block in blocks for text in block.ours.texts],
        }
        golds = [cell.gold or "" for block in blocks for cell in block.cells]
        verdicts = {
            name: [verify_completion(self.task, text, gold) for text, gold in zip(of_arm, golds, strict=True)]
            for name, of_arm in texts.items()
        }
        extracted = [[verdict.extracted for verdict in of_arm] for of_arm in verdicts.values()]
        show("equal_completions", share_equal(*texts.values()), n=len(golds), **self.settings)
        show("equal_answers", share_equal(*extracted), n=len(golds), **self.settings)
        for name, of_arm in verdicts.items():
            show(f"accuracy_{name}", statistics.mean(verdict.reward or 0.0 for verdict in of_arm), n=len(golds), **self.settings)

    def show_logit_gaps(self, blocks: Sequence[Block], arm: Worker) -> None:
        """Print the median and the largest logit gap of the completions that differ; nothing if none differ."""
        divergences = [divergence for block in blocks for divergence in self.divergences(block)]
        if divergences:
            gaps = arm.call(LogitGapRequest(divergences[:MAX_DIVERGENCES]))
            counts = {"max": round(max(gaps), 4), "n": len(gaps), "of": len(divergences)}
            show("logit_gap_where_completions_part", statistics.median(gaps), **counts, **self.settings)

    def divergences(self, block: Block) -> Iterator[Divergence]:
        """Yield the divergence of each pair of completions that differ."""
        for prompt, *texts in zip(block.ours.prompts, block.lm_eval.texts, block.ours.texts, strict=True):
            if texts[0] != texts[1]:
                first, second = (encode_completion(text, self.tokenizer) for text in texts)
                yield find_divergence(prompt, first, second, self.tokenizer.eos_token_id)


def split_blocks(cells: Sequence[Cell], size: int) -> list[Sequence[Cell]]:
    """Return the cells in blocks of `size` cells; the last block may be smaller."""
    return [cells[start : start + size] for start in range(0, len(cells), size)]


def find_divergence(prompt: Sequence[int], first: Sequence[int], second: Sequence[int], stop: int) -> Divergence:
    """Return where two different completions diverge. If one is the beginning of the other, its next token is `stop`."""
    shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False)))
    return Divergence([*prompt, *first[:shared]], *(next(iter(tokens[shared:]), stop) for tokens in (first, second)))


def share_equal(first: Sequence[str | None], second: Sequence[str | None]) -> float:
    """Return the share of pairs that are equal; a pair of two missing answers is equal."""
    return statistics.mean(float(left == right) for left, right in zip(first, second, strict=True))


def show_costs(blocks: Sequence[Block], settings: dict[str, Any]) -> None:
    """Print the seconds of each arm over all blocks and their ratio, for CPU time and wall time."""
    for clock in ("cpu_seconds", "wall_seconds"):
        lm_eval = [getattr(block.lm_eval, clock) for block in blocks]
        ours = [getattr(block.ours, clock) for block in blocks]
        ratio = cost_ratio(lm_eval, ours)
        show(
            f"{clock}_ratio", ratio.value, min=round(ratio.least, 3), max=round(ratio.greatest, 3), blocks=len(blocks), **settings
        )
        show(f"{clock}_{LM_EVAL}", sum(lm_eval), **settings)
        show(f"{clock}_{OURS}", sum(ours), **settings)


class CostRatio(NamedTuple):
    """The ratio of two sums over blocks, and the least and the greatest ratio of a single block."""

    value: float
    least: float
    greatest: float


def cost_ratio(lm_eval: Sequence[float], ours: Sequence[float]) -> CostRatio:
    """Return lm-evaluation-harness's seconds over permix's, given the seconds of each block."""
    by_block = [lm_eval_s / ours_s for lm_eval_s, ours_s in zip(lm_eval, ours, strict=True)]
    return CostRatio(sum(lm_eval) / sum(ours), min(by_block), max(by_block))


if __name__ == "__main__":
    main()
