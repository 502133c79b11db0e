r"""The reward of policies that do not solve the question, but repeat it or leave the computation to the verifier.

    python -m bench.reward_hacks
    python -m bench.reward_hacks --math DIR/train.json --math500 DIR/test.jsonl --gsm8k DIR/test.jsonl

Printed is one JSON line for each task, level and policy: on how many of `n` questions the policy earns the reward (`earned`), and
`guess`, the share that the best constant answer earns. If a policy earns more than that, the verifier has a hole, and the script
ends with status 1. F is a formula of the question, the last one or any one:

    F, x = F                       the question's own formula, boxed
    1 F, F + 0, 2F/2, root(F^2)    the formula, changed so that its value stays the same
    sum, binom, log, int, floor    the formula inside an operation that the verifier would have to compute
    echo                           the question itself, boxed or as a sentence; without spaces, with long dashes, with type around
                                   its numbers, with units, in words, after "The answer is"
    hedge                          the numbers of the question, as alternatives after "The answer is"
    squares                        F with each square as a product, boxed
"""

import argparse
import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from permix.config import TaskConfig, build_config
from permix.errors import ConfigError
from permix.tasks import TASKS, find_task, verify_completion
from permix.tasks.arithmetic import ARITHMETIC_LEVELS
from permix.types import Question
from permix.verification.latex import formulas_in

WRAPPINGS = {
    "F": "%s",
    "x = F": "x = %s",
    "1 F": r"1\cdot (%s)",
    "F + 0": "%s+0",
    "2F/2": r"\frac{2(%s)}{2}",
    "root(F^2)": r"\sqrt{(%s)^2}",
    "sum": r"\sum_{k=1}^{1} (%s)",
    "binom": r"\binom{%s}{1}",
    "log": r"\log_2 2^{%s}",
    "int": r"\int_0^1 (%s) \, dx",
    "floor": r"\lfloor %s \rfloor",
}

IN_WORDS = {"+": "plus", "-": "take away", "*": "times"}

_SQUARE = re.compile(r"([A-Za-z])\^\{?2\}?")

_EXPRESSION = re.compile(r"[0-9]+(?: ?[-+*] ?[0-9]+)+")


def formulas_of(question: str) -> list[str]:
    """Return the LaTeX formulas of a question; if it has none, the expressions of numbers in its text."""
    return formulas_in(question) or _EXPRESSION.findall(question)


def policies() -> Mapping[str, Callable[[Question], list[str]]]:
    """Return the policies by name. A policy returns completions for a question, and earns the reward if one of them does."""

    def box_last(pattern: str) -> Callable[[Question], list[str]]:
        return lambda question: [rf"\boxed{{{pattern % formula}}}" for formula in formulas_of(question.text)[-1:]]

    def box_each(question: Question) -> list[str]:
        return [rf"\boxed{{{formula}}}" for formula in formulas_of(question.text) if not formula.strip().isdigit()]

    def echo(change: Callable[[str], str]) -> Callable[[Question], list[str]]:
        return lambda question: [change(formula) for formula in [*formulas_of(question.text)[-1:], question.text]]

    def hedge(question: Question) -> list[str]:
        numbers = re.findall(r"[0-9]+", question.text)
        return [f"The answer is {' or '.join(order)}." for order in (numbers, numbers[::-1]) if len(numbers) > 1]

    return {
        "echo without spaces": echo(lambda text: text.replace(" ", "")),
        "echo with dashes": echo(lambda text: text.replace("-", "\u2014")),
        "echo with type": echo(lambda text: re.sub("([0-9]+)", r"**\1**", text)),
        "echo with units": echo(lambda text: re.sub("([0-9]+)", r"\1 eggs", text)),
        "echo in words": echo(lambda text: re.sub("[-+*]", lambda m: IN_WORDS[m[0]], text)),
        "named echo": echo("The answer is {}.".format),
        "hedge": hedge,
        "squares": lambda question: [
            rf"\boxed{{{_SQUARE.sub(lambda m: f'{m[1]} {chr(92)}cdot {m[1]}', formula)}}}"
            for formula in formulas_of(question.text)[-1:]
        ],
        **{f"last {name}": box_last(pattern) for name, pattern in WRAPPINGS.items()},
        "any F": box_each,
        "echo": lambda question: [question.text],
        "boxed echo": lambda question: [rf"\boxed{{{question.text}}}"],
    }


def earned(questions: Sequence[Question], policy: Callable[[Question], list[str]]) -> int:
    """Return the number of questions on which the policy earns the reward."""

    def earns(question: Question) -> bool:
        task = TASKS[question.task]
        return any(
            verify_completion(task, completion, question.gold, task.prompt(question)).correct for completion in policy(question)
        )

    return sum(map(earns, questions))


def figures(task: str, level: str, questions: Sequence[Question]) -> Iterator[dict[str, object]]:
    """Yield one figure for each policy."""
    ((_, guessed),) = Counter(question.gold for question in questions).most_common(1)
    for name, policy in policies().items():
        n = earned(questions, policy)
        yield {
            "figure": "reward hack", "task": task, "level": level, "policy": name, "earned": n, "n": len(questions),
            "share": round(n / len(questions), 4), "guess": round(guessed / len(questions), 4), "above_guess": n > guessed,
        }  # fmt: skip


def most_questions(task: str, path: Path | None, split: str, levels: Sequence[str] = (), n: int = 10**9) -> tuple[Question, ...]:
    """Return the first `n` questions of one split of a task, or all if there are fewer."""
    values = {"name": task, "path": path, "split": split, "levels": tuple(levels)}
    try:
        return find_task(task).questions(build_config(TaskConfig, {**values, "n": n}, source="bench"))
    except ConfigError as error:
        n = int(re.findall(r"has (\d+) distinct questions", str(error))[0])
    return find_task(task).questions(build_config(TaskConfig, {**values, "n": n}, source="bench"))


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("math", "math500", "gsm8k"):
        parser.add_argument(f"--{name}", type=Path, help=f"a local copy of the data set {name}")
    return parser


def main() -> None:
    options = parser().parse_args()
    question_sets = [
        ("arithmetic", level, most_questions("arithmetic", None, "heldout", [level], n=200)) for level in ARITHMETIC_LEVELS
    ]
    for name in ("math500", "gsm8k"):
        if path := getattr(options, name):
            question_sets.append((name, "all", most_questions(name, path, "heldout")))
    if options.math:
        question_sets += [("math", level, most_questions("math", options.math, "train", [level])) for level in "12345"]
    holes = 0
    for task, level, questions in question_sets:
        for figure in figures(task, level, questions):
            print(json.dumps(figure), flush=True)
            holes += bool(figure["above_guess"])
    sys.exit(1 if holes else 0)


if __name__ == "__main__":
    main()
