"""The verifier against arithmetic of our own: exact fractions, and decimals of 60 digits."""

import contextlib
import random
import re
from decimal import Decimal, localcontext
from fractions import Fraction

import pytest

from permix.verification.answer_forms import forms_equal, read_form
from permix.verification.expressions import UnreadableError
from permix.verification.latex import clean_latex
from permix.verification.math_verifier import answers_equal

N_PAIRS = 600


def random_rational(rng: random.Random, depth: int) -> tuple[str, Fraction]:
    """An expression of rational numbers in LaTeX, and its value. Compound parts are in brackets."""
    if depth == 0 or rng.random() < 0.2:
        n = rng.randint(0, 40)
        if rng.random() < 0.3:
            return f"{n}.{rng.randint(0, 99):02d}", Fraction(n) + 0
        return str(n), Fraction(n)
    (a, x), (b, y) = random_rational(rng, depth - 1), random_rational(rng, depth - 1)
    match rng.choice("+-*/^f"):
        case "+":
            return rf"({a} + {b})", x + y
        case "-":
            return rf"\left({a} - {b}\right)", x - y
        case "*":
            return rng.choice([rf"({a}) \cdot ({b})", rf"({a})({b})", rf"({a}) \times {b}"]), x * y
        case "^":
            n = rng.randint(0, 3)
            return (rf"({a})^{{{n}}}", x**n) if x != 0 else (a, x)
        case _ if y == 0:
            return rf"-({a})", -x
        case "/":
            return rf"({a}) / ({b})", x / y
        case _:
            return rf"\frac{{{a}}}{{{b}}}", x / y


@pytest.mark.parametrize("seed", range(4))
def test_rational_expressions_equal_their_values_and_no_other(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(N_PAIRS // 4):
        text, _ = random_rational(rng, 4)
        value = evaluate_exactly(text)
        if value is None:
            continue
        form = read_form(clean_latex(text))
        # The expression is the gold: an expression may not be the answer to a plain number.
        assert forms_equal(read_form(clean_latex(str(value))), form), (text, value)
        for wrong in (
            value + 1,
            -value if value else Fraction(7),
            value + Fraction(1, 10**30),
            value * (1 + Fraction(1, 10**40)) + Fraction(1, 10**50),
        ):
            assert not forms_equal(read_form(clean_latex(str(wrong))), form), (text, wrong)


def evaluate_exactly(text: str) -> Fraction | None:
    """Python's own reading of the expression, with every number a fraction; None where it divides by zero."""
    python = text.replace(r"\left", "").replace(r"\right", "").replace(r"\cdot", "*").replace(r"\times", "*")
    while r"\frac" in python:
        python = _replace_fraction(python)
    python = python.replace("{", "(").replace("}", ")").replace("^", "**")
    python = re.sub(r"\)\s*\(", ")*(", python)
    python = re.sub(r"(?<![\w.])(\d+(?:\.\d+)?)", r"F('\1')", python)
    python = re.sub(r"\*\*\(F\('(\d+)'\)\)", r"**\1", python)
    try:
        return Fraction(eval(python, {"F": Fraction}))
    except ZeroDivisionError:
        return None


def _replace_fraction(text: str) -> str:
    start = text.rindex(r"\frac{")
    top, end = _group(text, start + len(r"\frac"))
    bottom, end = _group(text, end)
    return f"{text[:start]}((({top}))/(({bottom}))){text[end:]}"


def _group(text: str, start: int) -> tuple[str, int]:
    depth = 0
    for place in range(start, len(text)):
        depth += (text[place] == "{") - (text[place] == "}")
        if depth == 0:
            return text[start + 1 : place], place + 1
    raise AssertionError(text)


def test_the_reference_is_itself_right() -> None:
    assert evaluate_exactly(r"\frac{(1 + 2)}{4}") == Fraction(3, 4)
    assert evaluate_exactly(r"(2)^{3}") == 8
    assert evaluate_exactly(r"({3}) \cdot (2)") == 6
    assert evaluate_exactly(r"(1) / (0)") is None
    assert evaluate_exactly(r"0.50") == Fraction(1, 2)


@pytest.mark.parametrize("seed", range(2))
def test_sums_of_roots_equal_only_themselves(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(100):
        terms = [(rng.randint(-9, 9), rng.randint(2, 60)) for _ in range(rng.randint(1, 3))]
        more = [(rng.randint(-9, 9), rng.randint(2, 60)) for _ in range(rng.randint(1, 3))]
        left, right = (written_roots(one, rng) for one in (terms, more))
        with localcontext() as context:
            context.prec = 60
            x, y = (sum((Decimal(c) * Decimal(r).sqrt() for c, r in one), Decimal(0)) for one in (terms, more))
            assert answers_equal(left, right) is (abs(x - y) < Decimal(10) ** -50), (left, right)
        again = written_roots(rng.sample(terms, len(terms)), rng)
        assert answers_equal(again, left), (again, left)


def written_roots(terms: list[tuple[int, int]], rng: random.Random) -> str:
    root = rng.choice([r"\sqrt{%d}", "√%d", r"%d^{1/2}", r"\sqrt[2]{%d}", r"%d^{\frac12}"])
    return " + ".join(f"({c})" + (root % r if not root.startswith("%") else rf"\cdot {root % r}") for c, r in terms)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("10^{50}+1", "10^{50}"),
        (r"\sqrt{10^{60}+1}", r"\sqrt{10^{60}}"),
        (r"9.1 \times 10^{-31} x", r"6.63 \times 10^{-34} x"),
        (r"\frac{\pi}{1999!}", r"\frac{\pi}{2001!}"),
        (r"\pi \cdot 2^{-900}", r"\pi \cdot 2^{-901}"),
        (r"\pi \cdot 10^{-300}", r"2\pi \cdot 10^{-300}"),
        (r"\sqrt2 + 10^{-40}", r"\sqrt2"),
        (r"\frac{22}{7}", r"\pi"),
        (r"\sqrt{2}+\sqrt{3}", r"\sqrt{5+2\sqrt{6}}+10^{-50}"),
        (r"|x|", "x"),
        (r"\sqrt{x^2}", "x"),
        (r"\frac{x^2-1}{x-1}", "x-1"),
        (r"x^{12}", r"x^1 \cdot 2"),
        ("e^{2x}", "e^{x^2}"),
        (r"\log x", r"\ln x"),
        (r"\sin x", r"\cos x"),
        ("a_1+a_2", "a_1+a_3"),
        (r"\vec{v}", "v"),
    ],
)
def test_close_values_are_not_equal(a: str, b: str) -> None:
    assert not answers_equal(a, b)
    assert not answers_equal(b, a)
    assert answers_equal(a, a)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (r"\sqrt{2}+\sqrt{3}", r"\sqrt{5+2\sqrt{6}}"),
        (r"(\sqrt2)^2 x", "2x"),
        (r"\frac{x^2-1}{x-1}", "x+1"),
        (r"\sin^2 x", r"1-\cos^2 x"),
        (r"\ln(ab)", r"\ln a + \ln b"),
        (r"\binom{n}{2}", r"\frac{n!}{2(n-2)!}"),
        (r"e^{i\pi}x", "-x"),
        (r"(a-b)(a+b)", "a^2-b^2"),
        (r"2^{n+1}", r"2\cdot2^n"),
        (r"\sqrt[3]{-8}x", "-2x"),
        (r"\cos(60^\circ)x^2", r"\frac{\cos 0}{2}x^2"),
        (r"\tan^{-1}(x)", r"\arctan x"),
        (r"x\sqrt{2}/2", r"\frac{x}{\sqrt2}"),
        (r"\frac12(3+\sqrt5)", r"\frac{3+\sqrt5}{2}"),
        ("10^{50}+1+y", "1+y+10^{50}"),
        (r"36x\sqrt{35x}", r"\sqrt{60x}\cdot\sqrt{12x}\cdot\sqrt{63x}"),
    ],
)
def test_equal_values_in_other_forms(a: str, b: str) -> None:
    assert answers_equal(a, b), (a, b)
    assert answers_equal(b, a), (b, a)


PIECES = [
    r"1",
    r"23",
    r".5",
    r"x",
    r"y",
    r"e",
    r"i",
    r"a_1",
    r"(",
    r")",
    r"[",
    r"]",
    r"{",
    r"}",
    r"\{",
    r"\}",
    r"\frac",
    r"\sqrt",
    r"\sqrt[3]",
    r"^",
    r"_",
    r"+",
    r"-",
    r"*",
    r"/",
    r"\cdot",
    r"=",
    r"<",
    r">",
    r"\le",
    r"\in",
    r"\cup",
    r"\infty",
    r"\pm",
    r"\text{cm}",
    r",",
    r";",
    r":",
    r"|",
    r"!",
    r"%",
    r"\pi",
    r"\log",
    r"\sin",
    r"\binom",
    r"\begin{pmatrix}",
    r"\end{pmatrix}",
    r"&",
    r"\\",
    r"\lfloor",
    r"\rfloor",
    r"\ldots",
    r"\overline{3}",
    r"°",
    r"√",
    r"²",
    r"½",
    r"\circ",
    r"\mathrm{e}",
    r"\neq",
    r"\angle",
    r"AB",
    r"abc",
    r"hours",
    r"\$",
    r"'",
    r"\left",
    r"\right",
    r"\langle",
    r"\rangle",
    r"\dot",
    r"\vec",
    r"\emptyset",
    r"\mp",
    r"\approx",
    r"\boxed{",
    r"\phantom",
    r"\quad",
    r"\text{",
    r"}",
]


@pytest.mark.parametrize("seed", range(4))
def test_no_text_raises_anything_else_than_unreadable(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(1500):
        text = "".join(rng.choice(PIECES) for _ in range(rng.randint(1, 14)))
        gold = rng.choice([text, "7", r"\sqrt2", "(1,2]", "x^2+1", r"\frac{x}{2}", "1,2,3", "x=5", "0<x<1"])
        with contextlib.suppress(UnreadableError):
            assert forms_equal(read_form(clean_latex(text)), read_form(clean_latex(gold))) in (True, False)
