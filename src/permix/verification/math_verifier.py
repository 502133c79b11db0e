r"""Check mathematical answers. The training reward and the evaluation's score use the same verifier.

`check_answer` returns a verdict for any text, in bounded time, and raises for none; it needs no other process. An answer is
right if it is read whole (`answer_forms`) and has the gold's form and value, or if it is the gold's text. What is not read whole
is wrong:

- plain numbers are compared as exact fractions, other expressions by their values at several points (`expressions`);
- where the gold has a plain number, the answer must have one: `12 \cdot 13` is no answer for 156;
- an answer may use a logarithm, a trigonometric function, a factorial or a binomial only where the gold has one of that kind;
- where a formula of the question has the gold's value, the task is to give it another form: an answer must be made of the same
  numbers, letters and commands as the gold, in any order. Expressions outside of LaTeX's marks ("Factor 2x + 2y") count too.

docs/verification.md has a table of what is accepted; `tests/verification/test_verification_table.py` checks every row of it.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

from permix.types import Verdict
from permix.verification.answer_forms import forms_equal, read_form
from permix.verification.expressions import UnreadableError
from permix.verification.extraction import DIGITS, canonical_decimal, digits_for_words, has_digit, number_readings
from permix.verification.latex import (
    MAGNITUDES,
    Token,
    UnreadableTokenError,
    clean_latex,
    formulas_in,
    has_value_words,
    plain_expressions_in,
    tokenize,
    unwrap_text,
)

VERIFIER_VERSION = "6"
"""Part of a run's provenance: scores of different versions are not compared."""

MAX_ANSWER_CHARS = 10_000

MAX_RATIONAL_DIGITS = 4_000  # int(str) refuses more than 4300

_PLAIN_NUMBER = re.compile(
    rf"(?P<sign>[-+]?) ?(?:(?:(?P<whole>[0-9]+) ?(?=\\frac)|(?P<whole2>[0-9]+) (?=[0-9]+/))?"
    rf"(?:\\frac ?(?:\{{(?P<sign2>-?)(?P<top>{DIGITS})\}}\{{(?P<bottom>{DIGITS})\}}|(?P<top2>[0-9]) ?(?P<bottom2>[0-9]))"
    rf"|(?P<top3>{DIGITS})(?: ?/ ?(?P<bottom3>{DIGITS}))?(?:[eE](?P<exponent>[-+]?[0-9]{{1,3}})(?![0-9])"
    r"| ?\\(?:times|cdot) ?10 ?\^ ?(?:\{ ?(?P<power>[-+]?[0-9]{1,3}) ?\}|(?P<power1>[0-9])))?))"
)

_PERCENT = re.compile(r"\\?%|\\text\{ ?percent\}|percent")

_DOLLAR_BEFORE = re.compile(r"(-?)\\\$ ?")

_DEGREE = r"\^ ?\{? ?\\circ ?\}?|°|\\degree"

_WORD_UNIT = (
    r"dollars?|cents?|degrees?|seconds?|minutes?|hours?|days?|weeks?|months?|years?|units?"
    r"|[ckm]m|feet|foot|inch(?:es)?|miles?|kg|pounds?"
)

_UNIT = re.compile(rf"{_DEGREE}|(?:\\text\{{[a-zA-Z ./]*\}}|(?:square |cubic )?(?:{_WORD_UNIT}))(?: ?\^ ?\{{?[23]\}}?)?")

# Words that no unit may hold, besides those of `has_value_words`.
_NO_UNIT = re.compile(r"pi\b|base|[ap]\.? ?m\b")

_MAGNITUDE = re.compile(rf"(\\text ?\{{ ?)?({'|'.join(MAGNITUDES)})\b ?(.*)", re.DOTALL)


class _PlainNumber(NamedTuple):
    """The canonical parts of a plain number. `has_dollar`: a dollar sign before it; `unit`: what follows it, as it is written."""

    is_negative: bool
    whole: str
    numerator: str
    denominator: str
    exponent: int
    is_percent: bool = False
    has_dollar: bool = False
    unit: str = ""

    def value(self) -> Fraction:
        size = Fraction(self.whole) + Fraction(self.numerator) / Fraction(self.denominator) * Fraction(10) ** self.exponent
        return -size if self.is_negative else size

    def without_unit(self) -> "_PlainNumber":
        return self._replace(is_percent=False, has_dollar=False, unit="")


def _parse_plain_number(text: str) -> _PlainNumber | None:
    """Parse a text that `clean_latex` returned; None if it is not a plain number."""
    dollar = _DOLLAR_BEFORE.match(text)
    if dollar is not None:
        text = dollar[1] + text[dollar.end() :]
    match = _PLAIN_NUMBER.match(text)
    if match is None:
        return None
    tail = text[match.end() :].strip()
    exponent = 0
    if magnitude := _MAGNITUDE.match(tail):  # 1.5 million
        exponent = MAGNITUDES[magnitude[2]]
        tail = (magnitude[1] or "") + magnitude[3]
        tail = tail if tail.strip("{} \\") != "text" else ""
    percent = _PERCENT.fullmatch(tail) is not None
    if tail and not percent and (len(tail) > 60 or not _UNIT.fullmatch(tail) or _NO_UNIT.search(tail) or has_value_words(tail)):
        return None
    group = match.groupdict(default="")
    bottom = canonical_decimal(group["bottom"] or group["bottom2"] or group["bottom3"] or "1")
    if bottom == "0" or (exponent and (percent or bottom != "1" or group["whole"] or group["whole2"])):
        return None
    if (power := group["power"] or group["power1"]) and not re.match(r"0*[1-9](?:\.|\Z)", group["top3"]):
        return None  # 26 \cdot 10^2 is a calculation
    negative = (group["sign"] == "-") != (group["sign2"] == "-")
    whole, top = group["whole"] or group["whole2"] or "0", group["top"] or group["top2"] or group["top3"]
    return _PlainNumber(
        negative, canonical_decimal(whole), canonical_decimal(top), bottom, exponent + int(group["exponent"] or power or 0),
        is_percent=percent, has_dollar=dollar is not None, unit=tail,
    )  # fmt: skip


# A dollar sign without a partner is no mark of a formula.
_LONE_DOLLAR = re.compile(r"\A\s*(-?)\$(?=[0-9.][^$]*\Z)")


def _clean_answer(text: str) -> str:
    return clean_latex(_LONE_DOLLAR.sub(r"\1\\$", text))


def _units_may_differ(a: _PlainNumber, b: _PlainNumber) -> bool:
    """Whether both numbers have a unit, and not the same as they are written."""
    if a.has_dollar == b.has_dollar and ("" in (a.unit, b.unit) or a.unit == b.unit):
        return False
    return all(one.has_dollar or one.unit for one in (a, b))


def _units_agree(a: _PlainNumber, b: _PlainNumber) -> bool:
    """Whether two units may be the same, such as a dollar sign and "dollars"."""
    try:
        return forms_equal(*(read_form("\\$" * one.has_dollar + f"1 {one.unit}") for one in (a, b)))
    except UnreadableError:
        return False


def _plain_numbers_equal(a: _PlainNumber, b: _PlainNumber) -> bool:
    if a == b:
        return True
    if max(len(part) for number in (a, b) for part in (number.whole, number.numerator, number.denominator)) > MAX_RATIONAL_DIGITS:
        return a[:5] == b[:5]
    if a.is_percent != b.is_percent and _units_may_differ(a, b):
        return False
    x, y = a.value(), b.value()
    # Golds write a percentage in both ways: 12% as 12 and as 0.12.
    return x == y or (a.is_percent and not b.is_percent and x == 100 * y) or (b.is_percent and not a.is_percent and y == 100 * x)


def numbers_equal(a: str, b: str) -> bool | None:
    r"""Whether two plain numbers are equal as exact rational numbers; None if one of them is not a plain number.

    Plain numbers are integers, decimals, numbers with thousands commas, `a/b`, `\frac{a}{b}`, mixed numbers and exponents up to
    999. A dollar, percent or degree sign or a unit may follow and is ignored. Above 4000 digits the written digits are compared.
    """
    first, second = _parse_plain_number(_clean_answer(a)), _parse_plain_number(_clean_answer(b))
    return None if first is None or second is None else _plain_numbers_equal(first, second)


_FUNCTION = r"(?:a?(?:sin|cos|tan)h?|arc\w+|cot|sec|csc|log|ln|lg|exp|sqrt|[dt]?frac|[lr]floor|[lr]ceil|cdot|times|ne|neg)"

# Names of values, joined by "+" or by blanks. Of a product, a power or a function the value is not that of its letter.
_NAME_OF_VALUE = (
    r"(?>\\(?:text|operatorname)[a-z]* ?\{[^{}]*\}|\\(?:overline|vec) ?\{[A-Za-z]{1,3}\}|\\(?:angle|triangle) ?[A-Z]{1,4}"
    r"|\|[A-Z]{2}\||\[[A-Z]{3,8}\]|(?<![A-Za-z\\])[A-Z]{2}(?![A-Za-z])"
    rf"|(?<![A-Za-z\\])\\?(?!{_FUNCTION}(?![A-Za-z]))[A-Za-z]{{3,12}}(?![A-Za-z])(?:_\{{?\w+\}}?)?|\\(?:mu|nu|xi)(?![A-Za-z])"
    r"|(?<![A-Za-z\\])[A-Za-z](?![A-Za-z])(?:_\{?\w+\}?)?(?:\^\{?-1\}?(?=\())?'?(?:\([^()=]{1,12}\))?)"
)

_LEFT_WITHOUT_VALUE = re.compile(rf"{_NAME_OF_VALUE}(?:(?: ?\+ ?| ?){_NAME_OF_VALUE})*+")


def _has_no_value(left: str) -> bool:
    """Whether the left side of an equation names a value and has none: `m+n`, `|AB|`, "total cost", but not `-x` or "twice x"."""
    words = re.sub(r"\bthe answer\b|\b[A-Za-z]\b", "#", unwrap_text(left))
    return _LEFT_WITHOUT_VALUE.fullmatch(left) is not None and not has_value_words(words)


def result_of_equation(text: str, question: str = "") -> str | None:
    r"""The right side of an equation that ends in a plain number, if the left side states no other value; else None.

    `10+8=18`, `m+n=18`, `f(5)=18` and `|AB|=18` have 18: the left side has this value, or no number of its own, or is a formula
    of the question ("Find $100m+n$"). `73 \pmod{1000}` has 73.
    """
    cleaned = clean_latex(text)
    if modulo := _MODULO.fullmatch(cleaned):
        return modulo[1] if int(modulo[1]) < int(modulo[2] or modulo[3]) else None
    left, sign, right = cleaned.rpartition("=")
    left, right = left.strip(), right.strip()
    if not sign or not left or re.search(r"[<>]|\\(?:ne|le|ge|approx|equiv|in)(?![A-Za-z])", left) or not is_number_text(right):
        return None
    if "=" not in left and (_has_no_value(left) or left in {clean_latex(one) for one in formulas_in(question)}):
        return right
    try:
        sides = [_LEFT_NAME.sub("", side.strip()) for side in left.split("=")]
        value = read_form(right)
        same = all(forms_equal(read_form(side), value) or forms_equal(value, read_form(side)) for side in sides if side)
    except UnreadableError:
        return None
    return right if same and any(sides) else None


_MODULO = re.compile(r"([0-9]{1,9}) ?\(? ?(?:\\pmod ?\{? ?([0-9]{1,9}) ?\}?|\\b?mod ?\{? ?([0-9]{1,9}) ?\}?) ?\)?")

# In the chain "x = 5 + 2 = 7" the name has no value.
_LEFT_NAME = re.compile(r"\A\\?[A-Za-z]+(?:_\{?\w+\}?)?\Z")


def is_number_text(text: str) -> bool:
    """Whether a text is a plain number, as `numbers_equal` reads it."""
    return _parse_plain_number(clean_latex(text)) is not None


def word_unit_of_number(text: str) -> str:
    """The unit in words behind a plain number, as it is written; empty if there is none, or if the text is no plain number."""
    number = _parse_plain_number(clean_latex(text))
    return (
        "" if number is None or number.is_percent or not re.search("[A-Za-z]", number.unit.replace("circ", "")) else number.unit
    )


def same_number_in_some_notation(answer: str, gold: str) -> bool:
    """Whether an answer is the gold number in the notation of some language: 1.500 and 1 500 for 1500, 2,5 for 2.5."""
    if numbers_equal(answer, gold):
        return True
    signs = {"%" if one.rstrip().endswith("%") else "$" if one.lstrip("-\\ ").startswith("$") else "" for one in (answer, gold)}
    return signs != {"%", "$"} and any(numbers_equal(reading, gold) for reading in number_readings(answer))


def _strip_latex_spacing(text: str) -> str:
    """Remove spaces and `\\text{}` from a text of `clean_latex`. A space between two digits stays: "1 2" is not 12."""
    text = re.sub(r"(?<![0-9]) | (?![0-9])", "", unwrap_text(text)).rstrip(".,")
    text = text.removeprefix("+") if text == "+\\infty" else text
    choice = re.fullmatch(r"\(([A-Za-z])\)", text)
    return choice[1] if choice else text


# Words of two letters that are no product of variables. In "at", "by" or "my" each letter may be a variable.
_TWO_LETTER_WORDS = frozenset(["no", "on", "up", "ok", "so", "to", "do", "go", "of", "or"])


def _is_word(answer: str) -> bool:
    """Whether the answer is a word, such as a name or "yes". As mathematics a word is a product of letters, and Amy = May."""
    return (len(answer) >= 3 and answer.isalpha()) or answer.casefold() in _TWO_LETTER_WORDS


def same_answer(a: str, b: str) -> bool:
    """Whether two extracted answers are the same number or the same text, without reading expressions: quick, for votes.

    0.5, 1/2 and .50 are equal, and so are 12 and $12, or Paris and paris. 2x and x*2 are not.
    """
    mine, theirs = clean_latex(a[:MAX_ANSWER_CHARS]), clean_latex(b[:MAX_ANSWER_CHARS])
    first, second = _parse_plain_number(mine), _parse_plain_number(theirs)
    if first is not None and second is not None:
        return _plain_numbers_equal(first, second)
    return _same_text(mine, theirs)


def _same_text(answer: str, gold: str) -> bool:
    left, right = _strip_latex_spacing(answer), _strip_latex_spacing(gold)
    return left != "" and (left == right or (_is_word(right) and left.casefold() == right.casefold()))


_OPERATION_KINDS = {
    **dict.fromkeys(
        ["sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan", "sinh", "cosh", "tanh"], "trigonometric"
    ),
    **dict.fromkeys(["ln", "log", "lg"], "logarithm"),
    **dict.fromkeys(("binom", "!"), "factorial"),
    **dict.fromkeys(("lfloor", "lceil"), "rounding"),
    **dict.fromkeys(["sum", "prod", "int", "lim", "gcd", "lcm", "max", "min", "det", "bmod", "pmod"], "large"),
}


def _operations(tokens: Iterable[Token]) -> set[str]:
    """The kinds of operations that leave a computation to the reader."""
    return {_OPERATION_KINDS[token.text] for token in tokens if token.text in _OPERATION_KINDS}


_SIGNS_WITHOUT_VALUE = "{ } ( ) [ ] \\{ \\} cdot times * + , ; | . ~ ast \\$ $ € £ % circ"

_WITHOUT_VALUE = frozenset(_SIGNS_WITHOUT_VALUE.split())

_ONE_SPELLING = {"frac": "/", "div": "/"}

_RELATION_SIGN = re.compile(r"=|<|>|\\(?:le|ge|ne|approx|equiv|in|to)(?![A-Za-z])|,|;|&|\\\\")


def _ingredients(tokens: Iterable[Token]) -> Counter[object]:
    """The numbers, letters and commands of a formula, whatever their order; without 0, 1 and signs that change no value."""
    found: Counter[object] = Counter()
    for token in tokens:
        if token.kind == "number":
            if token.value not in (0, 1):
                found[token.value] += 1
        elif token.kind != "text" and not (token.kind in ("sign", "command") and token.text in _WITHOUT_VALUE):
            found[_ONE_SPELLING.get(token.text, token.text)] += 1
    return found


class _StatedForms(NamedTuple):
    """The ingredients of the question's expressions that have the gold's value in another form: in formulas, in plain text."""

    in_formulas: list[Counter[object]]
    in_text: list[Counter[object]]


_TEXT_COMMAND_PART = re.compile(r"\\text ?\{[^{}]*\}")


@lru_cache(maxsize=4096)
def _stated_by_question(question: str, gold: str) -> _StatedForms:
    """What the question states of the gold. Such a question asks for a form: "factor", "simplify", "as a common fraction"."""
    question = question[:MAX_ANSWER_CHARS]
    formulas = [part for one in formulas_in(question) for part in _formula_parts(clean_latex(one))]
    in_text = [part for one in plain_expressions_in(question) for part in _formula_parts(clean_latex(one))]
    return _StatedForms(
        _with_value_of(gold, formulas),
        # A single number of a text is no formula: a question that mentions 0.5 does not ask for 1/2.
        [one for one in _with_value_of(gold, in_text) if one.total() > 1],
    )


def _formula_parts(formula: str) -> set[str]:
    """A formula and its parts between relations, with and without the marks of aligned rows, and without words."""
    aligned = _RELATION_SIGN.split(formula.replace("&", ""))
    parts = [formula, *_RELATION_SIGN.split(formula), *aligned, *_TEXT_COMMAND_PART.split(formula)]
    return {part.strip().rstrip("?: ") for part in parts}


def _with_value_of(gold: str, parts: Iterable[str]) -> list[Counter[object]]:
    """The ingredients of the parts that have the gold's value and other ingredients than the gold."""
    found: list[Counter[object]] = []
    try:
        own, form = _ingredients(tokenize(gold)), read_form(gold)
    except (UnreadableError, UnreadableTokenError):
        return found
    for part in parts:
        try:
            ingredients = _ingredients(tokenize(part))
            if ingredients != own and forms_equal(read_form(part), form):
                found.append(ingredients)
        except (UnreadableError, UnreadableTokenError):
            continue
    return found


def _is_sum(tokens: Sequence[Token]) -> bool:
    """Whether a formula has a plus or a minus outside of all brackets, behind something that it adds to."""
    depth, before = 0, ""
    for token in tokens:
        if token.text in ("(", "[", "{", "\\{", "begin") or token.kind == "begin":
            depth += 1
        elif token.text in (")", "]", "}", "\\}", "end") or token.kind == "end":
            depth -= 1
        elif depth == 0 and token.text in ("+", "-") and before not in ("", "=", ",", "^", "cdot", "times", "*", "/"):
            return True
        before = token.text
    return False


def _lacks_golds_form(tokens: Sequence[Token], gold: str, question: str) -> bool:
    """Whether the question states the gold in another form, and an answer of these tokens does not have the gold's.

    A gold that is no sum, such as a product of factors, has answers that are none: `x\\cdot x-3\\cdot3` is not `(x-3)(x+3)`.

    Where the gold is a plain number and only the text of the question states it, the answer must hold what is stated there:
    many texts mention numbers.
    """
    own, gold_tokens = _ingredients(tokens), tokenize(_ASSIGNED.sub("", gold))
    if own == _ingredients(gold_tokens):
        return _is_sum(tokens) and not _is_sum(gold_tokens) and any(_stated_by_question(question, gold))
    stated = _stated_by_question(question, gold)
    if stated.in_formulas or (stated.in_text and _parse_plain_number(gold) is None):
        return True
    return any(one <= own for one in stated.in_text)


_CALCULATES = frozenset({"/", "^"})


def repeats_fraction(answer: str, gold: str, question: str) -> bool:
    r"""Whether a number is a fraction of the question, and the gold is written otherwise ("156/12" for 13): no value is asked.

    The same for `2\times10^3`. The gold is a plain number, in any notation.
    """
    try:
        own, other = (_ingredients(tokenize(clean_latex(one))) for one in (answer, gold))
        if not question or own == other or not _CALCULATES & own.keys():
            return False
        stated = _stated_by_question(question, clean_latex(gold))
    except UnreadableTokenError:
        return False
    return any(_CALCULATES & one.keys() and one <= own for one in (*stated.in_formulas, *stated.in_text))


_CHOICE_LABEL = re.compile(r"\\text ?\{ ?\(?([A-J])[).]?[).]? ?\}[ ,:]*(?=.)|\(([A-J])\) ?(?=[\\$0-9])")

_ASSIGNED = re.compile(r"\A(?:\\?[A-Za-z]+(?:_\{?\w+\}?)?|[A-Za-z]\([^()=]{1,12}\)) ?= ?(?=[^=]*\Z)")


def answers_equal(answer: str, gold: str, question: str = "") -> bool:
    """Whether an extracted answer is the gold. `question`: its text, with formulas between dollar signs or LaTeX's brackets."""
    if max(len(answer), len(gold)) > MAX_ANSWER_CHARS:
        return _long_answers_equal(answer, gold)
    mine, theirs = _clean_answer(answer), _clean_answer(gold)
    if _same_text(mine, theirs):
        return True
    if _is_word(_strip_latex_spacing(theirs)):
        return False
    if (label := _CHOICE_LABEL.match(mine)) and not _CHOICE_LABEL.match(theirs):
        if _strip_latex_spacing(theirs) == (label[1] or label[2]):
            return True
        mine = mine[label.end() :]
    if _values_equal(mine, theirs, question):
        return True
    result = result_of_equation(mine, question) if _parse_plain_number(theirs) is not None else None
    return result is not None and _LEFT_WITHOUT_RELATION.search(mine) is None and _values_equal(result, theirs, question)


_LEFT_WITHOUT_RELATION = re.compile(r",|;|\\text ?\{ ?(?:and|or)")


def _long_answers_equal(answer: str, gold: str) -> bool:
    equal = numbers_equal(answer, gold)
    return answer == gold if equal is None else equal


def _values_equal(mine: str, theirs: str, question: str) -> bool:
    first, second = _parse_plain_number(mine), _parse_plain_number(theirs)
    if first is not None and second is not None:
        if _units_may_differ(first, second):
            if not _units_agree(first, second):
                return False
            first, second = first.without_unit(), second.without_unit()
        if not _plain_numbers_equal(first, second):
            return False
    else:
        try:
            if not forms_equal(read_form(mine), read_form(theirs)):
                return False
        except UnreadableError:
            return _strip_latex_spacing(mine).casefold() == _strip_latex_spacing(theirs).casefold() != ""
    try:
        tokens, gold_tokens = tokenize(_ASSIGNED.sub("", mine)), tokenize(_ASSIGNED.sub("", theirs))
    except UnreadableTokenError:
        return True  # a number of thousands of digits: no formula
    if _operations(tokens) - _operations(gold_tokens):
        return False
    return not question or not _lacks_golds_form(tokens, theirs, question)


def truncate_for_record(answer: str) -> str:
    """An answer for a record: its first MAX_ANSWER_CHARS characters; a lone surrogate, which UTF-8 cannot encode, becomes "?"."""
    return answer[:MAX_ANSWER_CHARS].encode("utf-8", "replace").decode()


def check_answer(answer: str | None, gold: str, question: str = "") -> Verdict:
    """The verdict on one extracted answer, from any thread. An answer of None (none was found) is wrong."""
    if answer is None:
        return Verdict(correct=False)
    # A gold in words ("Amy", "two") is compared as it is written.
    compared = digits_for_words(answer) if has_digit(gold) else answer
    return Verdict(correct=answers_equal(compared, gold, question), extracted=truncate_for_record(answer))
