"""Completions that mean harm, through the whole scorer of every kind of task: bounded time and memory, and no process left."""

import random
import resource
import time
from pathlib import Path

import pytest

from permix.tasks import TASKS
from permix.tasks.base import MAX_COMPLETION_CHARS, verify_completion
from permix.types import Verdict

SECONDS = 2.0
"""CPU time of one verdict; the slowest takes less than half a second on an idle core, and quadratic time would be minutes."""

GOLDS = {
    "gsm8k": "7",
    "math": r"\frac{x}{2}",
    "own-math": "7",
    "own-number": "7",
    "own-exact": "paris",
    "own-choice": "C",
    "mmlu": "C",
}
PROMPT = "Which one? (A) 1 (B) 2 (C) 3 (D) 4"

PIECES = (
    "{", "}", r"\frac", r"\frac{1}{", r"\boxed{", r"\boxed{1} ", r"\boxed{1}, \boxed{2} ", "9^{", "9^", "2^{2^{", "9",
    "1,", "1.", "1/", "$", "$$", r"\[", r"\(", r"\]", r"\)", r"\[x", r"\sqrt{", r"\left(", r"\begin{pmatrix}", "&", r"\\",
    "(", "[", "|", "!", "^", "_", "-", "+", " ", "\n", "\t", "\u202e", "\ud800", "\x00", "\u200b", "٣", "５", "½", "²",
    "√", "∞", "∪", "answer is ", "The final answer is ", "A) ", "A. ", "(A) ", "I ", "#### ", "<think>", "</think>",
    "<answer>", "</answer>", "assistantfinal", "**", r"\text{", r"\mathrm{", r"\pm", "=", "<", ">", ",", r"\cup", "e",
    r"\binom{9}{", r"\sum_{k=1}^{", r"\oint", "x", "x^{9}", "1e9", "1e", "%", r"\%", r"\,", ":", "12:30 ", r"\neq ",
    r"\overline{", r"\dots", "...", r"\log_{", r"\infty", "i", "π", "x = ", "n \\in ", "and ", "or ", "\r\n", "é", "数",
    "😀", ",000", ",234", "apple pie ", "A or ", "not A ", "is wrong ", "1 or ",
)  # fmt: skip

FRAMES = ("{}", r"\boxed{{{}}}", "The answer is {}", "The answer is 18{} x", "B{} x")


def verdict_of(task: str, text: str) -> Verdict:
    started = time.process_time()
    verdict = verify_completion(TASKS[task], text, GOLDS[task], PROMPT)
    assert time.process_time() - started < SECONDS, (task, text[:40], len(text))
    assert verdict.correct is not None, (task, text[:40], verdict.error)
    assert len(verdict.extracted or "") <= MAX_COMPLETION_CHARS
    return verdict


def children() -> list[str]:
    return [path.read_text() for path in Path("/proc/self/task").glob("*/children") if path.read_text().strip()]


@pytest.mark.parametrize("task", GOLDS)
def test_long_runs_take_linear_time(task: str) -> None:
    """The first of these took seconds for 10,000 characters, and hours for 160."""
    started = time.process_time()
    for piece in (" ", "\t", "\n", "apple pie ", ",000", ",234", "A or ", "not A ", "is wrong "):
        for frame in FRAMES:
            verdict_of(task, frame.format((piece * 10_000)[:10_000]))
    verdict_of(task, "The answer is 1" + ",000" * 30 + " dollars for all 2 ships.")
    assert time.process_time() - started < 5


@pytest.mark.slow
@pytest.mark.parametrize("task", GOLDS)
def test_each_piece_100_000_times(task: str) -> None:
    before, left = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, children()
    for piece in PIECES:
        text = (piece * 100_000)[:100_000]
        for frame in FRAMES:
            verdict_of(task, frame.format(text))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000, "KiB"
    assert children() == left


TOWERS = (
    r"\frac{1}{" * 10_000 + "2" + "}" * 10_000,
    r"\frac" * 10_000,
    r"1\frac{" * 25 + "1" + "}{2}" * 25,
    "9^{9^{9^9}}",
    "9^" * 9 + "9",
    "10^{10^{10}}!",
    "9" * 10**6,
    "-" + "9" * 10**6 + "." + "9" * 10**6,
    "1/" + "9" * 10**6,
    "0." + "0" * 10**6 + "1",
    "1e" + "9" * 10**5,
    r"\boxed{7} " * 10**5,
    r"\boxed{" * 10**5 + "7" + "}" * 10**5,
    "{" * 10**5 + "7" + "}" * 10**5,
    r"\sqrt{" * 10**4 + "2" + "}" * 10**4,
    "(" * 10**5 + "7" + ")" * 10**5,
    r"\left(" * 10**4 + "7" + r"\right)" * 10**4,
    "+".join(["x^{999}"] * 10**4),
    ",".join(map(str, range(10**5))),
    "\\{" + ",".join(map(str, range(10**5))) + "\\}",
    "x" * 10**6,
    r"\binom{10^9}{5\cdot 10^8}",
    r"\begin{pmatrix}" + "1 & " * 10**5 + r"\end{pmatrix}",
    r"\sum_{k=1}^{10^{99}} k",
    r"\int_0^{" * 10**4,
    "=".join(["x"] * 10**5),
    "|" * 10**5,
    r"\log_{2}" * 10**4 + "8",
    "!".join(["5"] * 10**5),
    "\u0663" * 10**6,
    "７" * 10**6,
    "½" * 10**6,
    "e\u0301" * 10**5,
)


@pytest.mark.slow
@pytest.mark.parametrize("tower", range(len(TOWERS)))
def test_towers(tower: int) -> None:
    for task in GOLDS:
        for text in (TOWERS[tower], r"\boxed{" + TOWERS[tower] + "}"):
            verdict_of(task, text)


@pytest.mark.slow
def test_20_000_random_texts() -> None:
    rng, tasks, left = random.Random(0), list(GOLDS), children()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(20_000):
        pieces = [rng.choice(PIECES) * rng.choice((1, 1, 1, 2, 30)) for _ in range(rng.randint(1, 12))]
        text = "".join(pieces) * rng.choice((1, 1, 1, 20))
        verdict_of(tasks[number % len(tasks)], rng.choice((text, r"\boxed{" + text + "}", f"Answer: {text}")))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000, "KiB"
    assert children() == left
