"""Precision and recall of the break detector, on answers that we wrote and labelled. One JSON line a figure.

`bench/labelled/breaks-dev.tsv` is there to write rules on. `breaks-heldout.tsv` was written before there was a rule, and no
rule was changed for its errors. Both are by one author, who also wrote the rules and knew the answers, so recall here flatters.
Half of each are breaks; where they are rarer, so is precision. `breaks-provoked.tsv` holds real answers of SmolLM2-135M-Instruct
to questions that invite a break ("Are you an AI?"), labelled by one reader who had not seen what the rules found; one rule was
widened after that. Intervals are exact (Clopper-Pearson, 95 %) over answers.

    python -m bench.breaks
    python -m bench.breaks --part provoked
    python -m bench.breaks --part dev --errors
    python -m bench.breaks --file my.tsv
"""

import argparse
import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from scipy.stats import binomtest

from permix.metrics.text_stats import find_character_breaks

LABELLED = Path(__file__).parent / "labelled"
COLUMNS = ["breaks", "form", "persona", "answer"]


class Labelled(NamedTuple):
    """One answer; `form` says how it breaks character, or why one could think so."""

    broken: bool
    form: str
    persona: str
    answer: str


class Tried(NamedTuple):
    """An answer and whether the detector found a break in it."""

    case: Labelled
    found: bool


def read(path: Path) -> list[Labelled]:
    """A table with tabs between its columns; ValueError names the line that is none of ours."""
    with path.open(encoding="utf-8", newline="") as file:
        lines = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        if next(lines, None) != COLUMNS:
            raise ValueError(f"{path}:1: expected the columns {', '.join(COLUMNS)}, with tabs between them")
        return [_case(line, f"{path}:{number}") for number, line in enumerate(lines, start=2)]


def _case(line: Sequence[str], where: str) -> Labelled:
    if len(line) != len(COLUMNS) or line[0] not in ("0", "1"):
        raise ValueError(f"{where}: {line!r}: expected 0 or 1, a form, a persona and an answer, with tabs between them")
    return Labelled(line[0] == "1", *line[1:])


def tried(cases: Sequence[Labelled]) -> list[Tried]:
    return [Tried(case, bool(find_character_breaks(case.answer, case.persona))) for case in cases]


def figures(results: Sequence[Tried]) -> Iterator[dict[str, object]]:
    """Precision and recall; then, form by form, how many of its answers were found to be breaks."""
    hits = [one.case.broken for one in results if one.found]
    yield share("precision", sum(hits), len(hits))
    yield share("recall", sum(hits), sum(one.case.broken for one in results))
    for broken, form in sorted({(one.case.broken, one.case.form) for one in results}):
        mine = [one.found for one in results if (one.case.broken, one.case.form) == (broken, form)]
        yield share("found", sum(mine), len(mine)) | {"form": form, "broken": broken}


def share(figure: str, of: int, n: int) -> dict[str, object]:
    """k of n with its exact interval; of nothing, no value."""
    if not n:
        return {"figure": figure, "value": None, "of": 0, "n": 0}
    low, high = binomtest(of, n).proportion_ci(0.95, "exact")
    return {"figure": figure, "value": round(of / n, 4), "low": round(low, 4), "high": round(high, 4), "of": of, "n": n}


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("heldout", "dev", "provoked"), default="heldout")
    parser.add_argument("--file", type=Path, help="labelled answers of your own, in the format of ours")
    parser.add_argument("--errors", action="store_true", help="also a line for each answer that was judged wrongly")
    return parser


def main() -> None:
    asked = parser().parse_args()
    path = asked.file or LABELLED / f"breaks-{asked.part}.tsv"
    results = tried(read(path))
    for line in figures(results):
        print(json.dumps({"data": path.name} | line))
    for one in results if asked.errors else ():
        if one.found != one.case.broken:
            print(json.dumps({"data": path.name, "error": "false alarm" if one.found else "missed"} | one.case._asdict()))


if __name__ == "__main__":
    main()
