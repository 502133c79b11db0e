"""Precision and recall of the detector of character breaks, on answers that were labelled by hand. One JSON line a figure.

    python -m bench.breaks
    python -m bench.breaks --part provoked
    python -m bench.breaks --part dev --errors
    python -m bench.breaks --file my.tsv

Rules are written on `bench/labelled/breaks-dev.tsv`. `breaks-heldout.tsv` was written before the first rule, and no rule was
changed because of its errors. Both were made up by the author of the rules, who knew the answers, so their recall is too high.
Half of the answers in each are breaks; where breaks are rarer, precision is lower. `breaks-provoked.tsv` has real answers of
SmolLM2-135M-Instruct to questions that invite a break ("Are you an AI?"), labelled by one reader who had not seen the detector's
results; one rule was widened afterwards. Intervals are exact (Clopper-Pearson, 95 %) over answers.
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
    """A labelled answer. `form` names the way in which it breaks character, or why it could seem to."""

    broken: bool
    form: str
    persona: str
    answer: str


class Detection(NamedTuple):
    """A labelled answer, and whether the detector found a break in it."""

    case: Labelled
    found: bool


def read(path: Path) -> list[Labelled]:
    """Read a table with tabs between its columns. Raises ValueError with file and line if the format is another."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        if next(rows, None) != COLUMNS:
            raise ValueError(f"{path}:1: expected the columns {', '.join(COLUMNS)}, with tabs between them")
        return [_parse_row(row, f"{path}:{number}") for number, row in enumerate(rows, start=2)]


def _parse_row(row: Sequence[str], where: str) -> Labelled:
    if len(row) != len(COLUMNS) or row[0] not in ("0", "1"):
        raise ValueError(f"{where}: {row!r}: expected 0 or 1, a form, a persona and an answer, with tabs between them")
    return Labelled(row[0] == "1", *row[1:])


def detect(cases: Sequence[Labelled]) -> list[Detection]:
    """Run the detector on each answer."""
    return [Detection(case, bool(find_character_breaks(case.answer, case.persona))) for case in cases]


def figures(results: Sequence[Detection]) -> Iterator[dict[str, object]]:
    """Yield precision and recall; then for each form the share of its answers in which a break was found."""
    hits = [result.case.broken for result in results if result.found]
    yield share("precision", sum(hits), len(hits))
    yield share("recall", sum(hits), sum(result.case.broken for result in results))
    for broken, form in sorted({(result.case.broken, result.case.form) for result in results}):
        found = [result.found for result in results if (result.case.broken, result.case.form) == (broken, form)]
        yield share("found", sum(found), len(found)) | {"form": form, "broken": broken}


def share(figure: str, count: int, n: int) -> dict[str, object]:
    """Return the figure count / n with its exact 95 % interval; its value is None if `n` is 0."""
    if not n:
        return {"figure": figure, "value": None, "of": 0, "n": 0}
    low, high = binomtest(count, n).proportion_ci(0.95, "exact")
    return {"figure": figure, "value": round(count / n, 4), "low": round(low, 4), "high": round(high, 4), "of": count, "n": n}


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("heldout", "dev", "provoked"), default="heldout", help="which of our files is read")
    parser.add_argument("--file", type=Path, help="a file of your own labelled answers, in the same format")
    parser.add_argument("--errors", action="store_true", help="also print a line for each error of the detector")
    return parser


def main() -> None:
    options = parser().parse_args()
    path = options.file or LABELLED / f"breaks-{options.part}.tsv"
    results = detect(read(path))
    for line in figures(results):
        print(json.dumps({"data": path.name} | line))
    for result in results if options.errors else ():
        if result.found != result.case.broken:
            print(json.dumps({"data": path.name, "error": "false alarm" if result.found else "missed"} | result.case._asdict()))


if __name__ == "__main__":
    main()
