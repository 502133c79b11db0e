r"""LaTeX and Unicode mathematics: one spelling for each thing, tokens, formulas of a text.

`clean_latex` removes notation without meaning (`$`, `\left`, thin spaces, the d of `\dfrac`), and writes Unicode mathematics as
LaTeX (`√5` is `\sqrt{5}`, `x²` is `x^{2}`). `tokenize` splits a cleaned text into tokens and skips none of it.
"""

import re
import unicodedata
from fractions import Fraction
from typing import NamedTuple

INVISIBLE = re.compile(r"[\x00-\x08\x0e-\x1f\x7f-\x9f\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufe0e\ufe0f\ufeff]")

MINUS_SIGNS = str.maketrans(dict.fromkeys("\u2212\u2013\ufe63\uff0d", "-"))

_SUPERSCRIPTS = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁼⁽⁾ⁿⁱ", "0123456789+-=()ni", strict=True))

_SUBSCRIPTS = dict(zip("₀₁₂₃₄₅₆₇₈₉₊₋₌₍₎ₙₓₐ", "0123456789+-=()nxa", strict=True))

_FRACTIONS = {character: unicodedata.normalize("NFKC", character).split("\u2044") for character in "½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅐⅛⅜⅝⅞⅑⅒"}

_GREEK_NAMES = """
    alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi rho sigma tau upsilon phi chi psi omega
    Gamma Delta Theta Lambda Xi Sigma Phi Psi Omega
"""

_GREEK_LETTERS = dict(zip("αβγδεζηθικλμνξρστυφχψωΓΔΘΛΞΣΦΨΩ", _GREEK_NAMES.split(), strict=True))

_SIGNS = {
    "·": r"\cdot ", "⋅": r"\cdot ", "∙": r"\cdot ", "×": r"\times ", "✕": r"\times ", "÷": r"\div ", "∗": "*", "∕": "/", "⁄": "/",
    "≤": r"\le ", "⩽": r"\le ", "≥": r"\ge ", "⩾": r"\ge ", "≠": r"\ne ", "≈": r"\approx ", "≡": r"\equiv ",
    "±": r"\pm ", "∓": r"\mp ", "∞": r"\infty ", "∈": r"\in ",
    "∪": r"\cup ", "∩": r"\cap ", "∅": r"\emptyset ", "∖": r"\setminus ",
    "𝜋": r"\pi ", "ℝ": r"\mathbb{R}", "ℤ": r"\mathbb{Z}", "ℕ": r"\mathbb{N}", "ℚ": r"\mathbb{Q}", "ℂ": r"\mathbb{C}",
    "°": r"^{\circ}", "º": r"^{\circ}", "∘": r"\circ ", "′": "'", "’": "'", "‘": "'", "“": '"', "”": '"',
    "⟨": r"\langle ", "⟩": r"\rangle ",
    "⌊": r"\lfloor ", "⌋": r"\rfloor ", "⌈": r"\lceil ", "⌉": r"\rceil ", "∑": r"\sum ", "∏": r"\prod ", "∫": r"\int ",
    "…": r"\ldots ", "⋯": r"\ldots ", "→": r"\to ", "∠": r"\angle ", "‖": r"\|", "∣": "|",
}  # fmt: skip

_ROOTS = {"√": r"\sqrt", "∛": r"\sqrt[3]", "∜": r"\sqrt[4]"}

_UNICODE_ROOT = re.compile(r"([√∛∜])\s*(?:([0-9]+(?:\.[0-9]+)?|[A-Za-z]|\\pi )|(?=[({\\]))?")

_RAISED = re.compile(f"[{''.join(_SUPERSCRIPTS)}]+")

_LOWERED = re.compile(f"[{''.join(_SUBSCRIPTS)}]+")

_SPECIAL = re.compile(f"[{''.join(map(re.escape, [*_SIGNS, *_GREEK_LETTERS]))}]")

TEXT_COMMAND = re.compile(r"\\(?:text(?:bf|it|rm|normal|sf|tt|up)?|mbox|hbox|mathrm|mathsf|mathit|emph|operatorname\*?) ?\{")

# In upright type these letters are numbers, not units.
_UPRIGHT_CONSTANT = re.compile(r"\\(?:mathrm|text|textrm|operatorname) ?\{ ?([ei]|\\pi) ?\}")

# None of these patterns may match the second backslash of `\\`, the end of a matrix row.
_LEFT_RIGHT = re.compile(r"(?<!\\)\\(?:left|right|bigg?[lrm]?|Bigg?[lrm]?)(?![A-Za-z])(?: ?\.)?")

_SIZES = r"(?:tiny|small|normalsize|large|Large|LARGE|huge|Huge)"

_STYLE = re.compile(rf"(?<!\\)\\(?:displaystyle|textstyle|scriptstyle|limits|nolimits|{_SIZES})(?![A-Za-z])")

_MATH_MARKS = re.compile(r"(?<!\\)\\[()\[\]!]|(?<!\\)\$")

_PHANTOM = re.compile(r"\\[hv]?phantom ?(?:\{[^{}]*\}|.)")

_TYPE = r"(?:mathbf|bf|boldsymbol|bm|underline)"

# Type of numbers, and text that holds a number: the number counts.
_TYPE_AROUND = re.compile(rf"\\(?:{_TYPE}|text) ?\{{ ?((?:[^{{}}]|\{{[^{{}}]*\}})*[0-9](?:[^{{}}]|\{{[^{{}}]*\}})*)\}}")

_TYPE_AROUND_LABEL = re.compile(rf"(?:(?<!\\)\\{_TYPE} ?\{{|\{{ ?\\bf(?:series)?) ?(\([A-J]\)) ?\}}")

# `\bf` and its like before a number or a label. Before a letter they stay: a bold letter is a vector.
_TYPE_SWITCH = re.compile(r"(?<!\\)\\(?:bf|bfseries|it|itshape|rm|sf|tt)(?![A-Za-z]) ?(?=[-+.0-9$]|\\\$|\([A-J]\))")

# Type around words and numbers. A single letter keeps it.
_TYPE_AROUND_WORDS = re.compile(
    rf"\\(?:{_TYPE} ?\{{(?=[^{{}}]*(?:[0-9]|\w\w))|(?:{_SIZES}|boldmath)(?![A-Za-z])"
    r"|(?:bf|bfseries|it|itshape|rm|sf|tt)(?![A-Za-z])(?=[^{}\\]*(?:[0-9]|\w\w)))"
)

_ANY_TYPE = re.compile(rf"\\(?:{_TYPE}|{_SIZES}|boldmath|bfseries|it|itshape|rm|sf|tt)(?![A-Za-z])")

_SPACES = re.compile(r"(?<!\\)\\(?:[,;: >]|q?quad|hspace ?\{[^{}]*\}|enspace(?![A-Za-z])|thinspace(?![A-Za-z]))|~")

# A separator of thousands that cannot be anything else: `10{,}000`, `11,\! 111`, `12\,000`, a no-break or thin space.
_THOUSANDS = re.compile(r"(?<=[0-9])(?:\{,\}|, ?\\! ?|\\,|\\ |\\thinspace |[\u00a0\u2009\u202f'])(?=[0-9]{3}(?![0-9]))")

_SAME = (
    (re.compile(r"\\[dtc]frac(?![A-Za-z])"), r"\\frac"),
    (re.compile(r"\\frac ?([0-9]) ?([0-9])"), r"\\frac{\1}{\2}"),
    (re.compile(r"(?<![A-Za-z_^\]])\{([^{}\\]+) ?\\over(?![A-Za-z]) ?([^{}\\]+)\}"), r"\\frac{\1}{\2}"),
    (re.compile(r"\\[dt]binom(?![A-Za-z])"), r"\\binom"),
    (re.compile(r"\\(?:leqslant|leqq?|lt=)(?![A-Za-z])|<="), r"\\le "),
    (re.compile(r"\\(?:geqslant|geqq?|gt=)(?![A-Za-z])|>="), r"\\ge "),
    (re.compile(r"\\neq(?![A-Za-z])|\\not ?=|!="), r"\\ne "),
    (re.compile(r"\\lt(?![A-Za-z])"), "<"),
    (re.compile(r"\\gt(?![A-Za-z])"), ">"),
    (re.compile(r"\\(?:lvert|rvert|vert|mid)(?![A-Za-z])"), "|"),
    (re.compile(r"\\(?:lbrace)(?![A-Za-z])"), r"\\{"),
    (re.compile(r"\\(?:rbrace)(?![A-Za-z])"), r"\\}"),
    (re.compile(r"\\(?:varnothing)(?![A-Za-z])|\\\{ *\\\}"), r"\\emptyset "),
    (re.compile(r"\\degree(?![A-Za-z])"), r"^{\\circ}"),
    (re.compile(r"\^ ?\{? ?\\circ ?\}?"), r"^{\\circ}"),
    (re.compile(r"\\(?:dots|cdots|ldots|dotsc|dotsb)(?![A-Za-z])|\.\.\."), r"\\ldots "),
    (re.compile(r"(?<=[\w)}])\*\*(?=[\w({-])"), "^"),
    (re.compile(r"\\\\ ?\[[^\[\]]*\](?= |[-\\0-9a-z])"), r"\\\\ "),
)


_SPACED_THOUSANDS = re.compile(r"[-+]?[0-9]{1,3}(?: [0-9]{3})+(?:\.[0-9]+)?")

_LEADING_RELATION = re.compile(r"\A(?:[:,=]|\\approx(?![A-Za-z]))+ ?")


def fold_digits(text: str) -> str:
    """Full-width digits, letters and signs (１２) as plain ones. Other characters stay as they are."""
    if text.isascii():
        return text
    return "".join(unicodedata.normalize("NFKC", one) if "\uff01" <= one <= "\uff5e" else one for one in text)


def unicode_to_latex(text: str) -> str:
    r"""Write Unicode mathematics as LaTeX: roots, fractions, powers, indices, Greek letters and signs."""
    if text.isascii():
        return text
    text = fold_digits(text)
    for character, (top, bottom) in _FRACTIONS.items():
        if character in text:
            text = text.replace(character, rf"\frac{{{top}}}{{{bottom}}}")
    text = text.replace("π", r"\pi ")  # before roots: √π is a root of a command
    text = _UNICODE_ROOT.sub(lambda m: _ROOTS[m[1]] + (f"{{{m[2]}}}" if m[2] else ""), text)
    text = _RAISED.sub(lambda m: "^{" + "".join(_SUPERSCRIPTS[one] for one in m[0]) + "}", text)
    text = _LOWERED.sub(lambda m: "_{" + "".join(_SUBSCRIPTS[one] for one in m[0]) + "}", text)
    return _SPECIAL.sub(lambda m: _SIGNS.get(m[0]) or f"\\{_GREEK_LETTERS[m[0]]} ", text)


def clean_latex(text: str) -> str:
    r"""One spelling for each thing, without notation that has no meaning; a final full stop or comma is removed."""
    text = INVISIBLE.sub("", text).translate(MINUS_SIGNS)
    text = _THOUSANDS.sub("", text)
    text = unicode_to_latex(text)
    if "\\" in text or "$" in text or "~" in text:
        text = text.replace("\\%", "%").replace("\\&", "&").replace("\\#", "#")
        text = _UPRIGHT_CONSTANT.sub(lambda m: f" {m[1]} ", text)
        text = _MATH_MARKS.sub("", _STYLE.sub(" ", _SPACES.sub(" ", text)))
        text = _LEFT_RIGHT.sub("", text)
        text = _PHANTOM.sub("", TEXT_COMMAND.sub(r"\\text{", text))
        text = _TYPE_SWITCH.sub("", _TYPE_AROUND_LABEL.sub(r"\\text{\1}", text))
        while (unwrapped := _TYPE_AROUND.sub(r" \1 ", text)) != text:
            text = unwrapped
    for pattern, plain in _SAME:
        text = pattern.sub(plain, text)
    text = " ".join(text.replace("**", "").split()) if text.startswith("**") else " ".join(text.split())
    text = _LEADING_RELATION.sub("", text.rstrip(".,;: "))
    return text.replace(" ", "") if _SPACED_THOUSANDS.fullmatch(text) else text


def unwrap_text(text: str, after: str = "") -> str:
    r"""A text that `clean_latex` returned, with what `\text{...}` holds in place of the command; `after` follows each."""
    while (unwrapped := re.sub(r"\\text ?\{([^{}]*)\}", rf"\1{after}", text)) != text:
        text = unwrapped
    return text


def without_text_commands(text: str) -> str:
    r"""A text as it was written, with `\text{`, `\textbf{` and their like as plain opening braces.

    `\mathbf{`, `\bf` and their like are removed around numbers and words, and sizes everywhere.
    """
    return _TYPE_AROUND_WORDS.sub(lambda m: "{" if m[0].endswith("{") else " ", TEXT_COMMAND.sub("{", text))


def without_type(text: str) -> str:
    r"""A text as it was written, without commands for type, also around a single letter: `\mathbf{C}` is C."""
    return _ANY_TYPE.sub(" ", text)


_SMALL_NUMBER_WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen "
    "nineteen"
)

_TENS_WORDS = "twenty thirty forty fifty sixty seventy eighty ninety"

_NUMBER_OF_WORD = {word: value for value, word in enumerate(_SMALL_NUMBER_WORDS.split())} | {
    word: 10 * tens for tens, word in enumerate(_TENS_WORDS.split(), start=2)
}

MAGNITUDES = {
    "hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12, "lakh": 5, "crore": 7, "mn": 6, "bn": 9,
}  # fmt: skip
"""The words that multiply a number by a power of ten."""

# Quarters and pairs are units too: "How many quarters has he?"
FRACTION_WORDS = "halves|(?:third|fourth|fifth|sixth|seventh|eighth|ninth|tenth|hundredth|thousandth)s"

DENIALS = (
    r"\b(?:not|never|cannot|can not|nor|except|anything but|everything but|(?<!none )other than|rather than|instead of)\b"
    r"|n['\u2019]t\b"
)
"""What follows these words is denied."""

_VALUE_WORDS = re.compile(
    rf"\b(?:{'|'.join(MAGNITUDES)}|dozen)s?\b|\b(?:{FRACTION_WORDS})\b|\b(?:third|quarter|fifth|tenth) of\b"
    r"|\b(?:plus|minus|negative|divided|multiplied|subtract(?:ed)?|squared|cubed|root|sqrt|factorial|modulo|mod|choose|half"
    r"|ppm|wrong|incorrect|false|impossible)\b(?!-)|\bto the \w+ power\b|\bper mille\b"
    rf"|\btoo (?:big|small|many|few|much|large|high|low)\b|{DENIALS}|\bor\b(?! so\b)|\bat (?:least|most)\b"
    r"|\b(?:twice|thrice|double|triple|quadruple|times|over|under|below|above|between|nearly|almost|up to|log|ln|sin|cos|tan"
    r"|(?:more|less|fewer|greater|smaller|larger|higher|lower) than)\s+[-$]*#",
    re.IGNORECASE,
)

NUMERALS_IN_WORDS = "|".join(_NUMBER_OF_WORD)

_ONES = "|".join(_SMALL_NUMBER_WORDS.split()[1:10])

_NUMBER_WORD = re.compile(
    rf"\b(?:({_TENS_WORDS.replace(' ', '|')})(?:[- ]({_ONES}))?"
    rf"|({_SMALL_NUMBER_WORDS.replace(' ', '|')}))\b(?!-)",
    re.IGNORECASE,
)


def has_value_words(text: str, number: str = "") -> bool:
    """Whether words around a number change its value: "half", "not", "or nineteen", "thousand". In `text` it may stand as "#".

    The number itself in words changes nothing: "18 (eighteen)".
    """
    if _VALUE_WORDS.search(text):
        return True
    return any(
        str(sum(_NUMBER_OF_WORD[one.lower()] for one in match.groups() if one)) != number.strip(" $+%")
        for match in _NUMBER_WORD.finditer(text)
    )


_BELOW_100 = rf"(?:(?:{_TENS_WORDS.replace(' ', '|')})(?:[- ](?:{_ONES}))?|{_SMALL_NUMBER_WORDS.replace(' ', '|')})"

_BELOW_1000 = rf"(?:(?:a|{_BELOW_100}) hundred(?:(?: and)? {_BELOW_100})?|{_BELOW_100})"

_NUMERAL = re.compile(
    rf"(?:(?:a|{_BELOW_1000}) thousand(?:,? (?:and )?{_BELOW_1000})?|{_BELOW_1000})(?P<decimals> point(?: zero| (?:{_ONES}))+)?",
    re.IGNORECASE,
)

_ANY_NUMERAL_WORD = rf"(?:{NUMERALS_IN_WORDS}|hundred|thousand)\b"

# All words for numbers that follow each other.
_NUMERAL_WORDS = re.compile(
    rf"(?<![\w-])(?:a (?=hundred|thousand))?{_ANY_NUMERAL_WORD}(?:(?:[- ]|,? and |, | point ){_ANY_NUMERAL_WORD})*+",
    re.IGNORECASE,
)

_IS_CONTINUED = re.compile("-| and a ", re.IGNORECASE)  # "twenty-first", "two and a half"

_BEFORE_ONE = re.compile(
    r"(?:\A|[^\w\s]|\b(?:is|are|was|be|equals?|equal to|makes?|gives?|leaves?|plus|minus|times|by))\s*\Z", re.IGNORECASE
)

_AFTER_ONE = re.compile(r"\s*(?:\Z|[^\w\s]|(?:plus|minus|times|divided by|equals?|is|makes)\b)", re.IGNORECASE)


def words_as_digits(text: str) -> str:
    """The text with its numbers in words as digits: "Three hundred and six" -> "306".

    Words that together are no number stay ("three one"), and so does "one" where it may be a pronoun ("the one", "one of them").
    """
    return _NUMERAL_WORDS.sub(_digits_of_run, text)


def _digits_of_run(run: re.Match[str]) -> str:
    numeral = _NUMERAL.fullmatch(run[0])
    # What follows is read here and not in the pattern, which would try each word of a run again.
    if numeral is None or _IS_CONTINUED.match(run.string, run.end()):
        return run[0]
    before = run.string[max(0, run.start() - 16) : run.start()]
    if run[0].lower() == "one" and not (_BEFORE_ONE.search(before) and _AFTER_ONE.match(run.string, run.end())):
        return run[0]
    decimals = numeral["decimals"] or ""
    digits = "".join(str(_NUMBER_OF_WORD[word]) for word in decimals.lower().split()[1:])
    return str(_value_of_words(run[0].removesuffix(decimals))) + (f".{digits}" if digits else "")


def _value_of_words(numeral: str) -> int:
    total = below_1000 = 0
    for word in re.findall("[a-z]+", numeral.lower()):
        if word == "thousand":
            total, below_1000 = (below_1000 or 1) * 1000, 0
        elif word == "hundred":
            below_1000 = (below_1000 or 1) * 100
        else:
            below_1000 += _NUMBER_OF_WORD.get(word, 0)  # nothing for "a" and "and"
    return total + below_1000


class Token(NamedTuple):
    """A token of cleaned LaTeX. `kind`: number, letter, word (two letters or more), command, text (what `\\text` holds) or sign.

    `text` is the name of a command without its backslash. `value` is the value of a number, exact.
    """

    kind: str
    text: str
    value: Fraction = Fraction(0)


_NUMBER = r"(?:[0-9]+(?:\.[0-9]+)?|\.[0-9]+)"

_TOKEN = re.compile(
    r"(?P<repeating>[0-9]*\.[0-9]*(?:\\(?:overline|bar|dot) ?\{?[0-9]+\}?(?:[0-9]*\\dot ?\{?[0-9]\}?)?|\([0-9]+\))"
    r"|[0-9]*\.[0-9]{3,}(?= ?\\ldots))"
    r"|(?P<grouped>[0-9]{1,3}(?:,[0-9]{3})+(?![0-9]|\.[0-9]*,))(?P<decimals>\.[0-9]+)?"
    rf"|(?P<number>{_NUMBER})"
    r"|\\text\{(?P<text>[^{}]*)\}"
    r"|\\(?:begin|end) ?\{(?P<environment>[a-zA-Z*]+)\}"
    r"|\\(?P<command>[A-Za-z]+)"
    r"|(?P<word>[A-Za-z]+)"
    r"|(?P<sign>\\[{}\\|$]|\\.|[^\s])"
    r"|\s+",
    re.DOTALL,
)

MAX_NUMBER_DIGITS = 300


class UnreadableTokenError(ValueError):
    """The text holds a number that is too long, or a repeating decimal whose period is unclear."""


def tokenize(text: str, *, thousands: bool = True) -> list[Token]:
    """The tokens of a text that `clean_latex` returned. `thousands`: 1,234 is one number, else two numbers and a comma.

    Raises UnreadableTokenError.
    """
    found: list[Token] = []
    at = 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise UnreadableTokenError(f"cannot read {text[at]!r}")
        end = match.end()
        kind = match.lastgroup
        if kind in ("grouped", "decimals"):
            if thousands:
                digits = match[0].replace(",", "")
                found.append(Token("number", digits, _decimal(digits)))
            else:
                end = at + match[0].index(",")
                found.append(Token("number", text[at:end], _decimal(text[at:end])))
        elif kind == "repeating":
            token, end = _repeating(text, match)
            found.append(token)
        elif kind == "number":
            found.append(Token("number", match[0], _decimal(match[0])))
        elif kind == "text":
            found.append(Token("text", match["text"]))
        elif kind == "environment":
            found.append(Token("begin" if match[0].startswith("\\begin") else "end", match["environment"]))
        elif kind == "command":
            found.append(Token("command", match["command"]))
        elif kind == "word":
            found.append(Token("letter" if len(match["word"]) == 1 else "word", match["word"]))
        elif kind == "sign":
            found.append(Token("sign", match["sign"]))
        at = end
    return found


def _decimal(digits: str) -> Fraction:
    if len(digits) > MAX_NUMBER_DIGITS:
        raise UnreadableTokenError("too long a number")
    return Fraction(digits if not digits.startswith(".") else f"0{digits}")


_MARKED_PERIOD = re.compile(r"([0-9]*)(?:\\(?:overline|bar|dot) ?\{?([0-9]+)\}?(?:([0-9]*)\\dot ?\{?([0-9])\}?)?|\(([0-9]+)\))")


def _repeating(text: str, match: re.Match[str]) -> tuple[Token, int]:
    r"""A repeating decimal: `0.1\overline{6}`, `0.(3)`, `0.3\dot{6}`, or written out and followed by dots (0.333...)."""
    whole, _, rest = match[0].partition(".")
    end = match.end()
    if marked := _MARKED_PERIOD.match(rest):
        start = marked[1]
        period = (marked[2] or "") + (marked[3] or "") + (marked[4] or "") or marked[5]
    else:
        dots = re.match(r" ?\\ldots ?", text[end:])
        end += len(dots[0]) if dots else 0
        start, period = _period_of(rest)
    if len(whole) + len(start) + len(period) > MAX_NUMBER_DIGITS:
        raise UnreadableTokenError("too long a number")
    value = Fraction(int(whole or 0)) + Fraction(int(start or 0), 10 ** len(start))
    value += Fraction(int(period), (10 ** len(period) - 1) * 10 ** len(start))
    return Token("number", text[match.start() : end], value), end


def _period_of(digits: str) -> tuple[str, str]:
    """The digits before the period, and the period: the shortest one that the digits end with twice, or a digit three times."""
    for length in range(1, len(digits) // 2 + 1):
        period, times = digits[-length:], 3 if length == 1 else 2
        if len(digits) >= times * length and digits.endswith(period * times):
            start = digits
            while start.endswith(period):
                start = start[:-length]
            return start, period
    raise UnreadableTokenError("a decimal that goes on without a clear period")


_DISPLAYS = r"(?:align|aligned|alignat|equation|gather|gathered|multline|eqnarray|flalign|split)\*?"

_FORMULA = re.compile(
    r"\$\$(.{1,2000}?)\$\$|\\\[((?:(?!\\\[).){1,2000}?)\\\]|\\\(((?:(?!\\\().){1,2000}?)\\\)|(?<!\\)\$((?:[^$\\]|\\.){1,2000}?)\$"
    rf"|\\begin\{{{_DISPLAYS}\}}((?:(?!\\begin\{{{_DISPLAYS}\}}).){{1,2000}}?)\\end\{{{_DISPLAYS}\}}",
    re.DOTALL,
)

_DISPLAY_MARK = re.compile(rf"\\(?:begin|end)\{{{_DISPLAYS}\}}")


def formulas_in(text: str) -> list[str]:
    r"""The formulas of a text, in order: what is between `$`, `$$`, `\(` and `\)`, `\[` and `\]`.

    `\begin{align*}` and its like enclose a formula too, and are left out of it.
    """
    return [_content_of(match) for match in _FORMULA.finditer(text)]


def _content_of(formula: re.Match[str]) -> str:
    content = next(group for group in formula.groups() if group is not None)
    return _DISPLAY_MARK.sub("", content).strip()


_PROSE = re.compile(r"(?<![\\A-Za-z{])[A-Za-z]{3,}\s")

_OPERATIONS_IN_WORDS = (
    (re.compile(r"\b(?:divided by|over)\b"), "/"),
    (re.compile(r"\b(?:times|multiplied by)\b"), "*"),
    (re.compile(r"\bplus\b"), "+"),
    (re.compile(r"\bminus\b"), "-"),
)

_PLAIN_MATHEMATICS = re.compile(
    r"(?:\\[A-Za-z]+|sqrt|(?<![A-Za-z])[A-Za-z]{1,2}(?![A-Za-z])|(?<=[0-9)}])[A-Za-z]{3}(?![A-Za-z])"
    r"|[-+*/^=<>()\[\]{}.,|!_%0-9×÷·⋅√∛π≤≥⁄½⅓⅔¼¾²³⁴⁵⁶⁷⁸⁹])+"
)

_ENDS_OPEN = re.compile(r"[-+*/^=<>(×÷·⋅√]\Z|\\[A-Za-z]+(?:_\{?\w+\}?)?\Z")

_BEGINS_OPEN = re.compile(r"[*/^=<>)×÷·⋅]|\\(?:cdot|times|div|sin|cos|tan|cot|sec|csc|log|ln)(?![A-Za-z])|[-+]\Z")

MAX_PLAIN_EXPRESSIONS, MAX_PLAIN_CHARS = 200, 400


def plain_expressions_in(text: str) -> list[str]:
    r"""The expressions that a text writes outside of LaTeX's marks: "Factor 2x + 2y." has "2x + 2y".

    Neighbours are one expression only if an operation joins them. Single numbers and letters are among them.
    """
    text = _FORMULA.sub(lambda m: m[0].replace("$", " ") if _PROSE.search(m[0]) else "\n", text.translate(MINUS_SIGNS))
    for words, sign in _OPERATIONS_IN_WORDS:
        text = words.sub(sign, text)
    found: list[str] = []
    for line in text.splitlines():
        is_open = False  # whether the next piece may go on with the last expression
        for piece in re.sub(r"(?<=[A-Za-z]{2})[:;]", ". ", line.replace("$", "")).split():
            plain = piece.lstrip("\"'“‘`").rstrip("\"'”’`.,;:?")
            if not _PLAIN_MATHEMATICS.fullmatch(plain):
                is_open = False
                continue
            if is_open and _goes_on(found[-1], plain):
                found[-1] += f" {plain}"
            else:
                found.append(plain)
            is_open = plain == piece.lstrip("\"'“‘`") and len(found[-1]) < MAX_PLAIN_CHARS
    return list(dict.fromkeys(map(_without_loose_ends, found)))[:MAX_PLAIN_EXPRESSIONS]


def _goes_on(expression: str, piece: str) -> bool:
    """Whether a piece after a space belongs to the expression: "+" or "-5" after "2x", "2y" after "2x +", but not 2 after "a"."""
    if _ENDS_OPEN.search(expression) or _BEGINS_OPEN.match(piece) or expression.count("{") > expression.count("}"):
        return True
    return piece[0] in "-+" and expression[-1:].isalnum() and any(map(str.isdigit, expression))


def _without_loose_ends(expression: str) -> str:
    """An expression without operations at its ends, and without brackets that have no partner."""
    expression = expression.lstrip(" +*=<>/×÷·⋅").rstrip(" +-*=<>/×÷·⋅")
    while expression.count(")") > expression.count("(") and expression.endswith(")"):
        expression = expression[:-1].rstrip()
    while expression.count("(") > expression.count(")") and expression.startswith("("):
        expression = expression[1:].lstrip()
    return expression
