r"""The verifier: `\boxed{}` and number extraction, exact numbers, symbolic equality, and its bounds in time and memory."""

import subprocess
import sys
import threading
import time
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from permix.verification.extraction import extract_boxed, last_result
from permix.verification.latex import plain_expressions_in
from permix.verification.math_verifier import answers_equal, check_answer, numbers_equal

MILLION = 1_000_000
NESTED = r"\frac{" * 50 + "1" + "}{2}" * 50
NEVER_ENDS = "9^{9^{9^{9}}}"
TOO_BIG = "(x+y+z)^{3000}"  # 4.5 million terms when expanded


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"so \boxed{5}", "5"),
        (r"\boxed{1} no, \boxed{2}", "2"),
        (r"\fbox{7}", "7"),
        (r"\boxed {7}", "7"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),  # escaped braces are not braces
        (r"\boxed{\left\{ x \right.}", r"\left\{ x \right."),
        (r"\boxed{\boxed{5}}", "5"),
        (r"\boxed{5} then \boxed{6", "5"),  # cut off in mid-answer
        (r"\boxed{6 \boxed{5}", "5"),
        (r"{ stray \boxed{5}", "5"),
        (r"} stray \boxed{5}", "5"),
        (r"\boxed{}", ""),
        (r"\boxed 5", None),
        (r"\boxedx{5}", None),
        ("no box", None),
        ("", None),
    ],
)
def test_extract_boxed(text: str, content: str | None) -> None:
    assert extract_boxed(text) == content


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("it costs 1,234.50 in all", "1234.5"),
        ("it is -7", "-7"),
        ("it is \u22127", "-7"),
        ("x = 3/4", "3/4"),
        ("0 and .5", "0.5"),
        ("0 or .5", None),
        ("about 12%", "12%"),
        (r"about 12\%", "12%"),
        ("$18", "18"),
        ("-$18", "-18"),
        ("$-18", "-18"),
        ("5-3", None),
        ("5 - 3", None),
        ("(x)-3", None),
        ("x-3", "3"),  # a sign only if there is nothing on its left to subtract from
        ("(-3)", "-3"),
        ("The answer is 42.", "42"),
        ("is 1,000.", "1000"),
        ("3, 4", "4"),
        ("3,4", "4"),
        ("1,2345", "2345"),
        ("**42**", "42"),
        ("42 kg of CO2", "42"),
        ("6e3", "6e3"),
        ("007", "7"),
        ("-0", "0"),
        ("none", None),
        ("", None),
    ],
)
def test_last_result(text: str, number: str | None) -> None:
    assert last_result(text) == number


@pytest.mark.parametrize(
    ("a", "b", "equal"),
    [
        ("1/2", r"\frac12", True),
        ("0.5", r"\frac{1}{2}", True),
        (r"\dfrac{3}{4}", r"\tfrac{3}{4}", True),
        (r"-\frac{1}{2}", r"\frac{-1}{2}", True),
        (r"3\frac{1}{2}", "7/2", True),
        ("2 1/2", "2.5", True),
        ("2 1/2", "21/2", False),
        ("1,234", "1234.0", True),
        (r"10{,}000", "10000", True),
        (r"11,\! 111,\! 100", "11111100", True),
        (r"\$18.00", "18", True),
        ("$18", "18", True),
        ("18 dollars", "18", True),
        (r"5\text{ cm}^2", "5", True),
        (r"90^\circ", "90", True),
        (r"10\%", "10", True),
        ("12%", "0.12", True),
        ("12%", "1.2", False),
        ("1e3", "1000", True),
        ("2.0000000000000000000001", "2", False),  # exact, not as floats
        ("0.333333", "1/3", False),
        ("\u22125", "-5", True),
        ("5.", "5", True),
        ("1/0", "1", None),
        ("1e9999", "1", None),
        ("5 m", "5", None),  # m may be a variable
        (r"5\text{ million}", "5", False),
        ("3, 4", "34", None),
        ("3 4", "34", None),
        ("x", "5", None),
        ("", "", None),
    ],
)
def test_numbers_equal(a: str, b: str, equal: bool | None) -> None:
    assert numbers_equal(a, b) is equal
    assert numbers_equal(b, a) is equal


@settings(deadline=None)  # the machine may be busy
@given(st.integers(), st.booleans())
def test_integer_survives_formatting(n: int, comma: bool) -> None:
    written = f"{n:,}" if comma else str(n)
    assert numbers_equal(written, f"{n}.00") is True
    assert numbers_equal(written, str(n + 1)) is False
    assert last_result(f"it is {written}.") == str(n)


@settings(deadline=None)
@given(st.decimals(allow_nan=False, allow_infinity=False, places=6))
def test_decimal_survives_formatting(d: Decimal) -> None:
    assert numbers_equal(f"{d:f}", f"{d:f}000") is True
    assert numbers_equal(last_result(f"it is {d:f}") or "", str(d)) is True


@settings(deadline=None)
@given(st.fractions(), st.fractions())
def test_fractions_compare_as_rationals(a: object, b: object) -> None:
    assert numbers_equal(str(a), str(b)) is (a == b)


@settings(deadline=None)
@given(st.text() | st.text(alphabet="\\{}boxedfrc$%,. -+/0123456789eE^_\ud800\u202e\x00"))
def test_any_text_is_extracted_and_judged_quickly_without_raising(text: str) -> None:
    extract_boxed(text)
    last_result(text)
    assert numbers_equal(text, text) in (True, None)
    assert answers_equal(text, "41.5") in (True, False)
    assert answers_equal(text, r"\frac{x}{2}, [0, 3)") in (True, False)


@pytest.mark.slow
@pytest.mark.parametrize(
    "text",
    [
        r"\boxed{" + "{" * MILLION,
        r"\boxed{" * (MILLION // 7),
        r"\boxed" + " " * MILLION,
        "1" * MILLION,
        "a" + "1" * MILLION,
        "1" + ",111" * (MILLION // 4) + "1",
        "1." * MILLION,
        "1/" * MILLION,
        "-" * MILLION,
        "1" + " " * MILLION,
        r"\text{" * (MILLION // 6),
        "$" * MILLION,
    ],
    ids=lambda text: text[:8],
)
def test_a_megabyte_takes_linear_time(text: str) -> None:
    start = time.process_time()
    extract_boxed(text)
    last_result(text)
    numbers_equal(text, text + "2")
    assert check_answer(text, "5").correct is False
    assert time.process_time() - start < 5  # about 0.5 s; quadratic would be hours


def test_numbers_longer_than_python_converts_compare_by_their_digits() -> None:
    digits = "7" * MILLION
    assert numbers_equal(digits, "00" + digits + ".0") is True
    assert numbers_equal(digits, digits + "7") is False


@pytest.mark.parametrize(
    ("answer", "gold", "correct"),
    [
        (None, "5", False),
        ("", "5", False),
        ("", "", False),
        (r"\text{Evelyn}", "Evelyn", True),
        ("evelyn", r"\text{Evelyn}", True),
        ("Amy", "May", False),  # as products of letters they are equal
        ("on", "no", False),
        ("No", "on", False),
        ("oN", "No", False),
        ("no", "No", True),
        (r"n \cdot o", "no", False),
        ("ba", "ab", True),  # products, and so are "yx" and "2xy"
        ("yx", "xy", True),
        ("2yx", "2xy", True),
        (r"\mathbf{(C)}\ 18", "18", True),
        (r"{\bf (C)} 18", "18", True),
        (r"\mathbf{(C)}", r"\text{(C)}", True),
        (r"\underline{18}", "18", True),
        (r"\large 18", "18", True),
        ("v", r"\mathbf{v}", False),
        ("12~000", "12000", True),
        (r"\text{(C)}", "C", True),
        ("p - q", "p-q", True),
        (r"\left( 3, \frac{\pi}{2} \right)", r"(3, \frac{\pi}{2})", True),
        (r"(3, \frac{2\pi}{4})", r"\left( 3, \frac{\pi}{2} \right)", True),
        ("x=5", "5", True),
        ("5", "x = 5", True),
        (r"\frac{\sqrt{2}}{2}", r"\frac{1}{\sqrt2}", True),
        ("(x+1)^2", "x^2+2x+1", True),
        ("x^2+2x+2", "(x+1)^2", False),
        (r"\{2,1\}", r"\{1,2\}", True),
        ("-2, 1", "1,-2", True),
        ("1, 2, 3", "2", False),  # a list that contains the gold is not the gold
        ("(4,3)", "(3,4)", False),
        ("[3,4]", "(3,4)", False),
        (r"(2,3]\cup[0,1)", r"[0,1) \cup (2,3]", True),
        (r"\begin{pmatrix}1\\-2\end{pmatrix}", r"\begin{pmatrix} 1 \\ -2 \end{pmatrix}", True),
        ("3 5", "8", False),
        ("5$ $6", "6", False),
        ("5x", "5", False),
        (r"\pi", "3.14", False),
        (r"3\frac{5}23x", "5x", False),  # 3 · 5/2 · 3x, where no digit may be lost
        (r"3\frac{5}{2}x", r"\frac{15x}{2}", True),
        (r"2\frac53!", r"2 \cdot \frac{5}{3}!", True),
        (r"2\frac{1}{2}x", r"\frac{5x}{2}", True),
        (r"x^2\frac{1}{2}", r"\frac{x^2}{2}", True),  # the exponent is no mixed number
        (r"x^2\frac{1}{2}", r"x^{5/2}", False),
        (r"y\log_2\frac{1}{3}", r"-y\log_2 3", True),
    ],
)
def test_check(answer: str | None, gold: str, correct: bool) -> None:
    verdict = check_answer(answer, gold)
    assert (verdict.correct, verdict.extracted, verdict.error) == (correct, answer, None)


@pytest.mark.parametrize(
    ("answer", "gold", "correct"),
    [
        (r"\$30", r"30\text{ cents}", False),
        (r"\$30", r"30\text{ cm}", False),
        (r"30\%", r"\$30", False),
        (r"30\%", r"30\text{ cm}", False),
        (r"30^\circ", r"30\%", False),
        (r"30\text{ km}", r"30\text{ km/h}", False),
        (r"\$30", "30", True),
        (r"30\%", "30", True),
        (r"\$30", r"30\text{ dollars}", True),
        (r"-\$30", "-30 dollars", True),
        (r"\$30.00", r"\$30", True),
        (r"\$30\text{ per hour}", r"\$30", True),
        (r"\$30", r"30\text{ dollars per hour}", True),
        (r"12\frac12\%", r"12.5\text{ percent}", True),
        ("2 1/2 dollars", r"\$2\frac12", True),
        (r"30\%", r"30\text{ percent of the class}", True),
        (r"30\%", r"0.3\text{ percent}", False),
    ],
)
def test_units_that_differ_are_wrong_and_one_that_is_left_out_is_not(answer: str, gold: str, correct: bool) -> None:
    assert check_answer(answer, gold).correct is correct
    assert check_answer(gold, answer).correct is correct


FACTOR, DIVIDE, SIMPLIFY = "Factor 2x + 2y.", "What is 156/12?", "Simplify 6/8."


@pytest.mark.parametrize(
    ("question", "answer", "gold", "correct"),
    [
        (FACTOR, "2x+2y", "2(x+y)", False),
        (FACTOR, "2y + 2x", "2(x+y)", False),
        (FACTOR, r"\frac{2(2x+2y)}{2}", "2(x+y)", False),
        (FACTOR, "2(y+x)", "2(x+y)", True),
        ("Factor ab + 5b + 2a + 10 completely.", "ab+5b+2a+10", "(a+5)(b+2)", False),
        ("Factor ab + 5b + 2a + 10 completely.", "(b+2)(a+5)", "(a+5)(b+2)", True),
        ("Expand (x + 1)² and sort.", "(x+1)^2", "x^2+2x+1", False),
        ("Factor `x² − 4`.", "x^2-4", "(x-2)(x+2)", False),
        ("Factor **x**2-4**.", "x^2-4", "(x-2)(x+2)", False),
        (r"Expand \log_2 (8x).", r"\log_2 8x", r"3+\log_2 x", False),
        ("Simplify a + a + b.", "b+2a", "2a+b", True),
        ("Simplify √180.", r"\sqrt{180}", r"6\sqrt5", False),
        ("Simplify sqrt(180).", r"\sqrt{180}", r"6\sqrt5", False),
        (r"Simplify \frac{3}{\sqrt{27}}.", r"\frac{3}{\sqrt{27}}", r"\frac{\sqrt3}{3}", False),
        (r"Simplify \begin{align*}2x&+2y\end{align*}", "2x+2y", "2(x+y)", False),
        (r"Simplify \[\begin{aligned}\frac{6}{8}\end{aligned}\]", r"\frac68", r"\frac34", False),
        (r"$\text{What is } 6/8?$", r"\frac68", r"\frac34", False),
        (DIVIDE, "156/12", "13", False),
        (DIVIDE, r"\frac{156}{12}", "13", False),
        (DIVIDE, "13", "13", True),
        (DIVIDE, r"13\text{ cakes}", "13", True),
        ("What is 156 divided by 12?", "156/12", "13", False),
        ("He pays $156 / 12 for a cake and $3 for tea.", "156/12", "13", False),
        ("Of 13 cakes, how many are left?", "13", "13", True),
        (SIMPLIFY, "6/8", r"\frac34", False),
        (SIMPLIFY, r"\frac{6}{8}", "0.75", False),
        (SIMPLIFY, "3/4", "0.75", True),  # no expression of the question
        ("Which is larger, 3/4 or 2/3?", "3/4", r"\frac34", True),
        ("Which is larger, 3/4 or 2/3?", "0.75", r"\frac34", True),
        ("Half is 0.5 of it.", "0.5", r"\frac12", True),  # the question mentions a number, and no more
        ("Is it x or y?", "x", "x", True),
    ],
)
def test_an_expression_of_the_question_is_no_answer(question: str, answer: str, gold: str, correct: bool) -> None:
    assert check_answer(answer, gold, question).correct is correct


@pytest.mark.parametrize(
    ("text", "expressions"),
    [
        ("Is a 6/8 of b?", ["Is", "a", "6/8", "of", "b"]),
        ("Factor ab + 5b, or x -5; 3 (y)", ["ab + 5b", "or", "x", "-5", "3", "(y)"]),
        (r"Simplify:\tan x + 2 \tan 2x", [r"\tan x + 2 \tan 2x"]),
        ("(it is 12 times 3)", ["it", "is", "12 * 3"]),
        ("$x+1$ and $5 or 7/2 for a cake, $3", ["5", "or", "7/2", "a", "3"]),
        ("an and/or", ["an"]),
    ],
)
def test_plain_expressions(text: str, expressions: list[str]) -> None:
    assert plain_expressions_in(text) == expressions


@pytest.mark.parametrize(
    "unit", ["1 + ", "(", "x ", "2 -5 ", r"\sin ", "{ ", "$", "1/", r"\begin{align}", r"\frac{", "((1", "\\"]
)
def test_a_hostile_question_takes_linear_time(unit: str) -> None:
    start = time.process_time()
    check_answer("2(x+y)", "2x+2y", unit * (10_000 // len(unit)))
    assert time.process_time() - start < 5  # a tenth of a second; quadratic would be minutes


@pytest.mark.parametrize(
    "answer",
    ["\x00", "\ud800", "\u202e7", "😀", "%", "[[[[[[", "}{", r"\frac{", "{5}", "1e999999999"],
    ids=ascii,
)
def test_hostile_answers_are_wrong_and_serialisable(answer: str) -> None:
    verdict = check_answer(answer, "x+1")
    assert verdict.correct is False
    verdict.model_dump_json()


def test_a_long_answer_is_wrong_and_its_record_is_short() -> None:
    verdict = check_answer("x+" * 10_000 + "x", "x")
    assert verdict.correct is False
    assert len(verdict.extracted or "") == 10_000


@pytest.mark.parametrize(
    "answer",
    [
        NEVER_ENDS,
        NESTED,
        TOO_BIG,
        r"\binom{10^9}{5\cdot10^8}",
        "(" * 34 + "1" + ")" * 34,
        "(" * 3000 + "1" + ")" * 3000,
        "10^{10^{10}}!",
        "9" * 5000 + "^{2}",
        "x^{" * 50 + "2" + "}" * 50,
        r"\sqrt{" * 60 + "2" + "}" * 60,
        "+".join(["x^{999}"] * 99),
        ",".join(["1"] * 5000),
        r"\sum_{k=1}^{10^9} k",
        "|" * 300,
        "2^" * 300,
        "!" * 300 + "5",
        "5" + "!" * 60,
    ],
    ids=lambda text: text[:12],
)
@pytest.mark.parametrize("gold", ["7", r"6\sqrt{5}", "x^2+1", "(1, 2)", "05\\!:\\!00"])
def test_an_answer_cannot_buy_a_missing_verdict(answer: str, gold: str) -> None:
    """A tower of powers is a wrong answer, after a bounded time, and never a cell without a score."""
    start = time.process_time()
    verdict = check_answer(answer, gold)
    assert (verdict.correct, verdict.error) == (False, None)
    assert time.process_time() - start < 2  # milliseconds; without a bound it would not end


@pytest.mark.parametrize("gold", [NEVER_ENDS, r"\oint_C f", "05\\!:\\!00", r"x \neq 3", r"\text{October 30}", "???"])
def test_a_gold_that_cannot_be_computed_is_compared_as_text(gold: str) -> None:
    assert check_answer(gold, gold).correct is True
    assert check_answer(f" {gold} ", gold).correct is True
    assert check_answer("12", gold).correct is False
    assert check_answer(r"x \neq 4", gold).correct is False


def test_nested_mixed_numbers_take_linear_time() -> None:
    nested = "1"
    for _ in range(20):
        nested = rf"1\frac{{{nested}}}{{2}}"
    start = time.process_time()
    assert not answers_equal(nested, "y")
    assert time.process_time() - start < 2  # a millisecond; reading a fraction twice at each level would take 16 s


def test_check_works_off_the_main_thread() -> None:
    found: list[bool | None] = []
    threads = [threading.Thread(target=lambda n=n: found.append(check_answer(f"x+{n}", f"{n}+x").correct)) for n in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 4


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys; from permix.verification.math_verifier import check_answer; print(check_answer('3', '4').correct,"
        " sorted({'sympy', 'math_verify', 'torch', 'mpmath'} & set(sys.modules)), check_answer('x+1', '1+x').correct)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["False", "[]", "True"]


def test_simple_answers_are_fast() -> None:
    pairs = [("1,234.50", "1234.5"), (r"\frac{3}{4}", "0.75"), ("42", "41"), ("x + 1", "x+1"), (r"\text{Evelyn}", "Evelyn")]
    start = time.process_time()
    for _ in range(200):
        for pair in pairs:
            check_answer(*pair)
    assert 1000 / (time.process_time() - start) > 500  # ten times that and more is usual
