"""How often the verifier disagrees with published verdicts on model output, compared with math-verify.

    python -m bench.verifier math_cot_100.jsonl example_model_solutions.jsonl
    python -m bench.verifier runs/study/*/accuracy --errors

Printed is one JSON line for each file and arm. A false positive is an answer that is called right though the published verdict
calls it wrong; a false negative is the reverse. Published verdicts may be wrong too: `--errors` prints each disagreement.
Intervals are exact (Clopper-Pearson, 95 %). `cpu_s` is the CPU time of this process and its children. math-verify is optional
(`pip install 'math-verify[antlr4_13_2]'`).

A stability run is read too. Its verdicts are those that an earlier verifier recorded, so the disagreements show what has changed.
The formats of files are recognised by their fields:

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
    """A completion, and its published verdict `right`."""

    task: str
    question: str
    completion: str
    gold: str
    right: bool


def read_run(path: Path) -> Iterator[Labelled]:
    """Yield the scored completions of a stability run, with their recorded verdicts."""
    run = RunReader(path)
    for key, summary in run.cells.summaries.items():
        cell = run.cells.parse_uncached(key)
        if summary.reward is not None and cell.completion is not None and cell.gold is not None:
            yield Labelled(run.config["task"]["name"], cell.prompt, cell.completion.text, cell.gold, right=summary.reward == 1)


def read(path: Path) -> Iterator[Labelled]:
    """Yield the labelled completions of a file or of a run. Raises ValueError for a line of another format."""
    if path.is_dir():
        yield from read_run(path)
        return
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
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
                raise ValueError(f"{path}:{number}: fields {', '.join(row)}: not a format that is known")


def by_permix(cases: Sequence[Labelled]) -> list[bool | None]:
    """Return permix's verdicts."""
    return [verify_completion(TASKS[case.task], case.completion, case.gold, case.question).correct for case in cases]


def by_math_verify(cases: Sequence[Labelled]) -> list[bool | None]:
    """Return the verdicts of math-verify, used as its documentation shows: parse both texts, then verify."""
    from math_verify import parse, verify

    return [bool(verify(parse(f"${case.gold}$"), parse(case.completion))) for case in cases]


def figure(name: str, arm: str, cases: Sequence[Labelled], verdicts: Sequence[bool | None], cpu_s: float) -> dict[str, object]:
    """Return the figure of one arm: the counts of both kinds of errors with their intervals."""
    on_wrong, on_right = (
        [verdict for case, verdict in zip(cases, verdicts, strict=True) if case.right is published] for published in (False, True)
    )
    return {
        "figure": "verifier", "data": name, "arm": arm, "n": len(cases), "published_right": len(on_right),
        "false_positives": share(sum(verdict is True for verdict in on_wrong), len(on_wrong)),
        "false_negatives": share(sum(verdict is False for verdict in on_right), len(on_right)),
        "no_verdict": sum(verdict is None for verdict in verdicts), "cpu_s": round(cpu_s, 2),
    }  # fmt: skip


def share(k: int, n: int) -> list[object]:
    """Return [k, n, low, high], with the exact 95 % interval of k / n; its ends are None if `n` is 0."""
    if n == 0:
        return [0, 0, None, None]
    low, high = binomtest(k, n).proportion_ci(0.95, "exact")
    return [k, n, round(low, 4), round(high, 4)]


def cpu_seconds() -> float:
    """Return the CPU seconds of this process and its children, user and system."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, help="files of labelled completions, or stability runs")
    parser.add_argument("--errors", action="store_true", help="also print each disagreement with the published verdicts")
    return parser


def main() -> None:
    options = parser().parse_args()
    arms: dict[str, Callable[[Sequence[Labelled]], list[bool | None]]] = {"permix": by_permix}
    try:
        import math_verify  # noqa: F401

        arms["math-verify"] = by_math_verify
    except ImportError:
        pass
    for path in options.files:
        cases = list(read(path))
        name = str(path) if path.is_dir() else path.name
        for arm, verify_all in arms.items():
            start = cpu_seconds()
            verdicts = verify_all(cases)
            print(json.dumps(figure(name, arm, cases, verdicts, cpu_seconds() - start)), flush=True)
            for case, verdict in zip(cases, verdicts, strict=True) if options.errors else ():
                if verdict is not case.right:
                    print(json.dumps({"arm": arm, "verdict": verdict, **case._asdict(), "completion": case.completion[-200:]}))


if __name__ == "__main__":
    main()
