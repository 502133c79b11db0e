r"""How often the verifier accepts golds that were changed a little, and refuses golds that were rewritten with the same meaning.

    python -m bench.mutations train.json test.jsonl

The field `answer` of each row is read (MATH and MATH-500 as published); without a file, golds in the forms of MATH are made up.
Printed is one JSON line for each kind of change and one for the rewritings: `n` is the number of tries, `otherwise` the number
that the verifier judged otherwise, and `which` the first of them. A change that leaves the value as it is (-0 for 0) is counted
too.
"""

import argparse
import json
import random
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

from permix.tasks import TASKS, verify_completion
from permix.verification.latex import clean_latex
from permix.verification.math_verifier import answers_equal

UNITS = ("cm", "feet", "miles", "hours", "minutes", "dollars", "degrees", "kg")


def golds(rng: random.Random, n: int) -> Iterator[str]:
    """Yield `n` golds with random numbers, letters and units."""

    def integer(low: int = 2, high: int = 99) -> int:
        return rng.randint(low, high)

    letter = iter("xyzabnt" * n)
    forms = (
        lambda: str(integer(1, 2000)),
        lambda: f"-{integer()}",
        lambda: f"{integer()}.{integer(1, 99)}",
        lambda: rf"\frac{{{integer()}}}{{{integer()}}}",
        lambda: rf"-\dfrac{{{integer()}}}{{{integer()}}}",
        lambda: rf"{integer(2, 9)}\frac{{{integer(1, 4)}}}{{{integer(5, 9)}}}",
        lambda: rf"{integer()}\sqrt{{{integer()}}}",
        lambda: rf"\frac{{{integer()}+\sqrt{{{integer()}}}}}{{{integer()}}}",
        lambda: rf"{integer()}\pi",
        lambda: rf"{integer()}-{integer()}i",
        lambda: f"{integer()}{next(letter)}^{integer(2, 5)}-{integer()}{next(letter)}+{integer()}",
        lambda: rf"\frac{{{next(letter)}+{integer()}}}{{{integer()}}}",
        lambda: f"({integer()},{integer()})",
        lambda: rf"({integer()}, -\frac{{{integer()}}}{{{integer()}}}]",
        lambda: rf"(-\infty,{integer()})\cup({integer(100, 200)},\infty)",
        lambda: f"{integer()}, {integer(100, 200)}, {integer(201, 300)}",
        lambda: rf"\begin{{pmatrix}} {integer()} & {integer()} \\ -{integer()} & {integer()} \end{{pmatrix}}",
        lambda: f"{integer()}_{{{integer(3, 9)}}}",
        lambda: rf"{integer()}\text{{ {rng.choice(UNITS)}}}",
        lambda: rf"{integer()}^\circ",
        lambda: rf"\${integer()}.{integer(10, 99)}",
        lambda: rf"{integer()}\%",
        lambda: f"{next(letter)}={integer()}{next(letter)}+{integer()}",
        lambda: f"{integer(1, 12)}:{integer(10, 59)}" + rf" \text{{ {rng.choice(['a.m.', 'p.m.'])}}}",
        lambda: rf"{integer()}^{{{integer(10, 40)}}} + {integer()}x",
        lambda: rf"\{{{integer()}, {integer(100, 200)}\}}",
        lambda: rf"e^{{{integer()}x}}",
        lambda: rf"{integer()} \pm {integer()}\sqrt{{{integer()}}}",
    )
    for index in range(n):
        yield forms[index % len(forms)]()


def mutations(gold: str, rng: random.Random) -> Iterator[tuple[str, str]]:
    """Yield (kind, changed gold) for each kind of change that the gold has a part for."""
    digit = rng.choice(list(re.finditer(r"[0-9]", gold)))
    yield "digit", gold[: digit.start()] + str((int(digit[0]) + rng.randint(1, 9)) % 10) + gold[digit.end() :]
    if minus := list(re.finditer("-", gold)):
        start = rng.choice(minus).start()
        before = gold[:start].rstrip()
        yield "sign", gold[:start] + ("" if not before or before[-1] in "({,&[=\\" else "+") + gold[start + 1 :]
    elif gold[0].isdigit() and ":" not in gold and "_" not in gold:
        yield "sign", f"-{gold}"
    if exponent := re.search(r"\^\{?([0-9]+)\}?", gold):
        yield "exponent", gold[: exponent.start()] + f"^{{{int(exponent[1]) + 1}}}" + gold[exponent.end() :]
    if radical := re.search(r"\\sqrt\{([0-9]+)\}", gold):
        yield "radical", gold.replace(radical[0], rf"\sqrt{{{int(radical[1]) + 1}}}")
        yield "radical", gold.replace(radical[0], radical[1])
        yield "radical", gold.replace(radical[0], rf"\sqrt[3]{{{radical[1]}}}")
    if unit := re.search(r"\\text\{ (" + "|".join(UNITS) + ")", gold):
        yield "unit", gold.replace(unit[1], rng.choice([other for other in UNITS if other != unit[1]]))
    if "^\\circ" in gold:
        yield "unit", gold.replace("^\\circ", r"\text{ cm}")
    if "\\$" in gold:
        yield "unit", gold.replace("\\$", "€")
    if half := re.search(r"([ap])\.m\.", gold):
        yield "half of the day", gold.replace(half[0], f"{'a' if half[1] == 'p' else 'p'}.m.")
    if base := re.search(r"_\{?([0-9])\}?$", gold):
        yield "base", gold.replace(base[0], f"_{{{int(base[1]) + 1}}}")
    if pair := re.fullmatch(r"\(([^(),]+),([^(),]+)([)\]])", gold):
        if pair[1].strip() != pair[2].strip():
            yield "order", f"({pair[2]},{pair[1]}{pair[3]}"
        yield "bracket", f"[{gold[1:]}"
    if "\\pi" in gold:
        yield "constant", gold.replace("\\pi", "")
    if "\\infty" in gold:
        yield "bracket", gold.replace(")\\cup", "]\\cup")
    if gold.count(",") == 2 and "&" not in gold and "(" not in gold:
        yield "item", gold.rpartition(",")[0]
        yield "item", f"{gold}, 7"
    if variable := re.search(r"(?<![a-z\\])[xyzabnt](?![a-z])", re.sub(r"\\[a-z]+\{[^{}]*\}", lambda m: "." * len(m[0]), gold)):
        yield "letter", gold[: variable.start()] + "w" + gold[variable.end() :]


def rewritings(gold: str) -> Iterator[str]:
    """Yield completions that state the gold in another way."""
    yield rf"The answer is $\boxed{{{gold}}}$."
    yield rf"The answer is ${gold}$."
    yield rf"So the final answer is \({gold}\). Arr, and 3 more!"
    yield f"**Final Answer**\n\n$$\n{gold}\n$$\n"
    yield f"Final Answer: The final answer is ${gold}$. I hope it is correct."
    yield rf"<think>maybe \boxed{{3}}</think>Thus \boxed{{{gold}}}"
    yield rf"<answer>{gold}</answer>"
    yield rf"\boxed{{ {gold} }}"
    yield rf"\boxed{{\displaystyle {gold}}}"
    yield "\\boxed{" + re.sub(r"\\[dt]?frac", r"\\tfrac", gold) + "}"
    if re.fullmatch(r"-?[0-9]+", gold):
        yield from (
            rf"\boxed{{{gold}.0}}",
            rf"\boxed{{\textbf{{{gold}}}}}",
            rf"\boxed{{x = {gold}}}",
            rf"\boxed{{{int(gold):,}}}",
        )
        yield rf"\boxed{{{gold}\text{{ apples}}}}"
    if "\\sqrt" in gold:
        yield "\\boxed{" + re.sub(r"[\\]sqrt{([0-9]+)}", r"√\1", gold) + "}"
    if "\\pi" in gold:
        yield "\\boxed{" + gold.replace("\\pi", "π") + "}"
    if re.fullmatch(r"[^\\()\[\]{},]+(, [^\\()\[\]{},]+){2}", gold):
        items = [item.strip() for item in gold.split(",")]
        yield "The answers are " + ", ".join(rf"$\boxed{{{item}}}$" for item in reversed(items)) + "."


def read_golds(path: Path) -> list[str]:
    """Return the distinct golds of a .json or .jsonl file."""
    text = path.read_text(encoding="utf-8")
    rows = json.loads(text) if path.suffix == ".json" else [json.loads(line) for line in text.splitlines()]
    return list(dict.fromkeys(str(row["answer"]) for row in rows if row.get("answer") not in (None, "")))


def figures(golds: Iterable[str], seed: int = 0) -> Iterator[dict[str, object]]:
    """Yield one figure for each kind of change, and one for the rewritings."""
    rng = random.Random(seed)
    tried: dict[str, int] = defaultdict(int)
    otherwise: dict[str, list[list[str]]] = defaultdict(list)
    for gold in golds:
        for kind, changed in mutations(gold, rng) if re.search("[0-9]", gold) else ():
            if clean_latex(changed) != clean_latex(gold):
                tried[kind] += 1
                if answers_equal(changed, gold):
                    otherwise[kind].append([gold, changed])
        for completion in rewritings(gold):
            tried["rewritten"] += 1
            if not verify_completion(TASKS["math"], completion, gold).correct:
                otherwise["rewritten"].append([gold, completion])
    for kind, n in sorted(tried.items()):
        yield {"figure": "mutation", "kind": kind, "n": n, "otherwise": len(otherwise[kind]), "which": otherwise[kind][:20]}


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, help="files with golds; without one, golds are made up")
    return parser


def main() -> None:
    options = parser().parse_args()
    golds_of_files = list(dict.fromkeys(gold for path in options.files for gold in read_golds(path)))
    for figure in figures(golds_of_files or golds(random.Random(0), 2000)):
        print(json.dumps(figure, ensure_ascii=False))


if __name__ == "__main__":
    main()
