"""How often the verifier errs on model output with published verdicts, beside plain math-verify. One JSON line for each set and
arm.

A false positive is an answer that is paid though the published verdict calls it wrong; a false negative is the reverse. The
published verdicts are no truth: `--errors` prints each disagreement. Intervals are exact (Clopper-Pearson, 95 %). `cpu_s` is the
time of this process and its children, reading included. math-verify is optional (`pip install 'math-verify[antlr4_13_2]'`).

    python -m bench.verifier math_cot_100.jsonl example_model_solutions.jsonl

A stability run is read too: its verdicts are those that an earlier verifier recorded, so the disagreements show what has changed.

    python -m bench.verifier runs/study/*/accuracy --errors

Formats of files, recognised by their fields:

    Qwen2.5-Math, evaluation/data/eval_rm_maj_example/math_cot_100.jsonl     question, gt, code (completions), score (verdicts)
    openai/grade-school-math, data/example_model_solutions.jsonl             question, ground_truth, {model: {solution,
    is_correct}}
"""

import argparse
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from scipy.stats import binomtest

from permix.storage.run_dir import RunReader
from permix.tasks import TASKS, verify_completion


class Labelled(NamedTuple):
    """A completion and its published verdict."""

    task: str
    question: str
    completion: str
    gold: str
    right: bool


def read_run(path: Path) -> Iterator[Labelled]:
    """The scored completions of a stability run, with their recorded verdicts."""
    run = RunReader(path)
    for key, summary in run.cells.summaries.items():
        cell = run.cells.parse_uncached(key)
        if summary.reward is not None and cell.completion is not None and cell.gold is not None:
            yield Labelled(run.config["task"]["name"], cell.prompt, cell.completion.text, cell.gold, right=summary.reward == 1)


def read(path: Path) -> Iterator[Labelled]:
    """The labelled completions of a file or of a run. Raises ValueError for a line of another format."""
    if path.is_dir():
        yield from read_run(path)
        return
    with path.open(encoding="utf-8") as file:
        for place, line in enumerate(file, start=1):
            row = json.loads(line)
            if "ground_truth" in row:
                gold = row["ground_truth"].rpartition("A:")[2].strip().replace(",", "")
                for answer in row.values():
                    if isinstance(answer, dict) and "is_correct" in answer:
                        yield Labelled("gsm8k", row["question"], answer["solution"], gold, answer["is_correct"])
            elif "code" in row and "score" in row:
                for completion, right in zip(row["code"], row["score"], strict=True):
                    yield Labelled("math", row["question"], completion, row["gt"], bool(right))
            else:
                raise ValueError(f"{path}:{place}: fields {', '.join(row)}: not a format that is known")


def by_permix(cases: Sequence[Labelled]) -> list[bool | None]:
    return [verify_completion(TASKS[one.task], one.completion, one.gold, one.question).correct for one in cases]


def by_math_verify(cases: Sequence[Labelled]) -> list[bool | None]:
    """math-verify as its documentation shows it: parse both texts, verify."""
    from math_verify import parse, verify

    return [bool(verify(parse(f"${one.gold}$"), parse(one.completion))) for one in cases]


def figure(name: str, arm: str, cases: Sequence[Labelled], found: Sequence[bool | None], cpu_s: float) -> dict[str, object]:
    """The two error rates with their intervals."""
    wrong, right = (
        [verdict for one, verdict in zip(cases, found, strict=True) if one.right is wanted] for wanted in (False, True)
    )
    return {
        "figure": "verifier", "data": name, "arm": arm, "n": len(cases), "published_right": len(right),
        "false_positives": share(sum(verdict is True for verdict in wrong), len(wrong)),
        "false_negatives": share(sum(verdict is False for verdict in right), len(right)),
        "no_verdict": sum(verdict is None for verdict in found), "cpu_s": round(cpu_s, 2),
    }  # fmt: skip


def share(k: int, n: int) -> list[object]:
    """k, n, and the exact 95 % interval of k / n."""
    if n == 0:
        return [0, 0, None, None]
    low, high = binomtest(k, n).proportion_ci(0.95, "exact")
    return [k, n, round(low, 4), round(high, 4)]


def cpu_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("files", nargs="+", type=Path)
    options.add_argument("--errors", action="store_true", help="also a line for each disagreement with the published verdict")
    return options


def main() -> None:
    given = parser().parse_args()
    arms: dict[str, Callable[[Sequence[Labelled]], list[bool | None]]] = {"permix": by_permix}
    try:
        import math_verify  # noqa: F401

        arms["math-verify"] = by_math_verify
    except ImportError:
        pass
    for path in given.files:
        cases = list(read(path))
        for arm, verdicts in arms.items():
            start = cpu_seconds()
            found = verdicts(cases)
            print(
                json.dumps(figure(str(path) if path.is_dir() else path.name, arm, cases, found, cpu_seconds() - start)),
                flush=True,
            )
            for one, verdict in zip(cases, found, strict=True) if given.errors else ():
                if verdict is not one.right:
                    print(json.dumps({"arm": arm, "verdict": verdict, **one._asdict(), "completion": one.completion[-200:]}))


if __name__ == "__main__":
    main()
