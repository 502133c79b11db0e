r"""Find the final answer in a completion.

In this order: what is in the last `\boxed{}` (boxes joined by "and", "or" or a comma are one answer), what is between `<answer>`
tags, what the last "answer is" names, and what the kind of task allows besides (the last number, formula, line or letter).
Thinking is removed first.
"""

import re
from collections.abc import Collection

from permix.verification.latex import (
    INVISIBLE,
    MINUS_SIGNS,
    clean_latex,
    fold_digits,
    unwrap_text,
    without_text_commands,
    without_type,
)

_BOX_OR_BRACE = re.compile(r"\\(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)

_BETWEEN_BOXES = re.compile(
    r"(?:[\s$,;.&~]|\\[()\[\],;: ]|\\q?quad|\\text ?\{ ?(?:and|or)?,? ?\}|\b(?:and|or)\b|[A-Za-z](?:_\{?\d\}?)? ?="
    r"|\([A-Za-z](?:, ?[A-Za-z]){1,5}\) ?=)*"
)

_BULLET = re.compile(r"[ \t]*(?:[-*+\u2022]|[0-9]{1,2}[.)])[ \t]+")

_ANSWER_TAG = re.compile(r"<answer>((?:(?!<answer>).)*?)</answer>", re.DOTALL | re.IGNORECASE)

_ANSWER_IS = re.compile(
    r"\b(?:final\s+)?(?:answer|solution|result)s?\b[*_]*\s*(?:(?:is|are)\b|[:=]|(?=\n)|(?=\$|\\[(\[]))"
    r"(?:\s*(?:therefore|thus|simply|just|then)\b,?)?[ \t*_:]*",
    re.IGNORECASE,
)

# A formula has at most 2,000 characters, so that a text of unclosed formulas takes linear time.
# A formula holds no other beginning of one: without that, text of nothing but beginnings takes 2000 steps for each.
_FORMULA = (
    r"\$\$.{1,2000}?\$\$|\\\[(?:(?!\\\[).){1,2000}?\\\]|\\\((?:(?!\\\().){1,2000}?\\\)|(?<!\\)\$(?:[^$\\\n]|\\.){1,2000}?\$"
)

_FORMULA_HERE = re.compile(rf"\s*({_FORMULA})", re.DOTALL)

_JOINS_FORMULAS = re.compile(r"\s*(?:,|and|or|,\s*and)\s*(?=\$|\\\(|\\\[)")

_SENTENCE = re.compile(r"[ \t*]*(.+?)(?=[.!?](?:\s|$)|[.!?]?[ \t]*(?:\n|$))")

_VERB = re.compile(r"\b(?:is|are|equals?|was|be)\b(?: to)?|(?<![<>=!\\])=(?!=)")

_ANY_FORMULA = re.compile(_FORMULA, re.DOTALL)


def boxes_of(text: str) -> list[tuple[int, int, str]]:
    r"""The `\boxed{...}` and `\fbox{...}` with balanced braces: (start, end, content), in order of their ends. Takes linear time.

    Of nested boxes only the inner one counts. A box that is never closed (a truncated completion) is left out.
    """
    first = min((at for at in (text.find("\\boxed"), text.find("\\fbox")) if at >= 0), default=-1)
    if first < 0:
        return []
    opened: list[tuple[int, int]] = []  # for each open brace: where its box starts (or -1), and where its content starts
    found: list[tuple[int, int, str]] = []
    for token in _BOX_OR_BRACE.finditer(text, first):
        mark = token.group()
        if mark[-1] == "{" and mark != "\\{":
            opened.append((token.start() if len(mark) > 1 else -1, token.end()))
        elif mark == "}" and opened:
            start, content = opened.pop()
            if start >= 0 and not (found and found[-1][0] > start):
                found.append((start, token.end(), text[content : token.start()]))
    return found


def extract_boxed(text: str) -> str | None:
    r"""The content of the last box, or None. Boxes that only "and", "or", commas or `x =` separate are one answer: "-3, 8".

    So are the boxes of a list, if each item has nothing else than a box and its name.
    """
    boxes = boxes_of(text)
    if not boxes:
        return None
    contents = [boxes[-1][2]]
    for before, after in zip(boxes[-2::-1], boxes[:0:-1], strict=True):
        if not _are_joined(text, before, after) or not before[2].strip():
            break
        contents.insert(0, before[2])
    return ", ".join(dict.fromkeys(contents))


def _are_joined(text: str, before: tuple[int, int, str], after: tuple[int, int, str]) -> bool:
    """Whether two boxes that follow each other are parts of one answer."""
    if _BETWEEN_BOXES.fullmatch(text, before[1], after[0]):
        return True
    rest, _, item = text[before[1] : after[0]].rpartition("\n")
    bullet, first_bullet = _BULLET.match(item), _BULLET.match(text, text.rfind("\n", 0, before[0]) + 1, before[0])
    return bool(
        bullet and first_bullet
        and _BETWEEN_BOXES.fullmatch(rest) and _BETWEEN_BOXES.fullmatch(item, bullet.end())
        and _BETWEEN_BOXES.fullmatch(text, first_bullet.end(), before[0])
    )  # fmt: skip


def without_boxes(text: str) -> str:
    """The text without its boxes and what they hold."""
    kept, at = [], 0
    for start, end, _ in boxes_of(text):
        kept.append(text[at:start])
        at = end
    return " ".join([*kept, text[at:]])


def extract_tagged(text: str) -> str | None:
    """What the last `<answer>...</answer>` holds, or None."""
    found = _ANSWER_TAG.findall(text)
    return found[-1].strip() or None if found else None


def extract_named_answer(completion: str) -> str | None:
    """What the last "answer is", "answer:" or heading "Final Answer" of a completion names, or None.

    A formula that follows, also on the next line, is the answer; several formulas joined by "and" or "or" are one. Else the
    sentence is: "The area equals 24 square units." names "24 square units".
    """
    for match in reversed(list(_ANSWER_IS.finditer(completion))):
        if named := _named_after(completion, match.end()):
            return named
    return None


def _named_after(text: str, at: int) -> str | None:
    formulas = []
    while match := _FORMULA_HERE.match(text, at):
        formulas.append(match[1])
        at = match.end()
        if joined := _JOINS_FORMULAS.match(text, at):
            at = joined.end()
        else:
            break
    if formulas:
        return ", ".join(formulas)
    at += len(text[at:]) - len(text[at:].lstrip())
    sentence = _SENTENCE.match(text, at)
    if sentence is None:
        return None
    named = _after_verb(sentence[1].strip(" \t*."))
    formulas = _ANY_FORMULA.findall(named)
    if formulas and not named.startswith(("$", "\\")):
        return str(formulas[-1])
    if len(re.findall("[A-Za-z]{2,}", named)) > 2 and (number := number_in_box(named)) is not None:
        return number  # "Jane started 3 hours ago"
    return named or None


def _after_verb(sentence: str) -> str:
    """The part of a sentence after its last verb or equals sign, if the sentence has words before it; else the sentence."""
    verbs = list(_VERB.finditer(sentence))
    if not verbs or len(re.findall("[A-Za-z]{2,}", sentence[: verbs[-1].start()])) < 2:
        return sentence
    return sentence[verbs[-1].end() :].strip(" \t*.:") or sentence


def extract_last_formula(completion: str) -> str | None:
    """The last formula of a completion, or None."""
    found = _ANY_FORMULA.findall(completion)
    return found[-1] if found else None


DIGITS = r"(?:(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]{1,2}(?:,[0-9]{2})+,[0-9]{3}(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)"

# A minus that is no sign is not matched: it must be seen as the operator before the number.
_NUMBER_IN_TEXT = re.compile(
    rf"((?<![\w)\]}}.])[-+](?=\$?[.0-9]))?(?:\$-?)?(?<![A-Za-z0-9])({DIGITS})"
    rf"(?:\s?/\s?({DIGITS})|([eE][-+]?[0-9]{{1,3}})(?!\w))?\s?(\\?%)?"
)

# In words too: an answer that repeats "26 take away 13" or "the sum of 5 and 8" states no result.
_OPERATOR_WORDS = (
    r"(?:[xX]|times|plus|minus|less|take away|added to|(?:taken|taken away|subtracted) from|(?:divided|multiplied) by"
    r"|(?:more|less|fewer|greater) than)"
)

_OPERATOR_BEFORE = re.compile(rf"[0-9)}}\]]\s*(?:[-+*/×÷·⋅^]|\\times|\\cdot|\\div|{_OPERATOR_WORDS})\s*[$(]*\Z")

_OPERATOR_AFTER = re.compile(rf"\s*[$)]*\s*(?:[+*×÷·⋅^/]|-(?=\s*[0-9(])|\\times|\\cdot|\\div|{_OPERATOR_WORDS})\s*[$(]*[0-9]")

_OPERATION_OF = (
    r"\b(?:sum|total|difference|product|quotient|ratio) (?:of|between) |\b(?:add|subtract|tak|multiply|divid)(?:e|ing)? "
)

_OPERANDS_BEFORE = re.compile(
    rf"(?:{_OPERATION_OF})(?:[$(]*[0-9][0-9.,]*[$)]*,? )+(?:and |from |to |by |with )?[$(]*\Z", re.IGNORECASE
)

_OPERATION_BEFORE = re.compile(rf"(?:{_OPERATION_OF})[$(]*\Z", re.IGNORECASE)

_OPERANDS_AFTER = re.compile(r"[$)]*\s*(?:, ?(?:and )?|(?:and|from|to|by|with) )[$(]*[0-9]")


def canonical_decimal(digits: str) -> str:
    """A decimal without commas and superfluous zeros, so that equal numbers are equal strings."""
    whole, _, rest = digits.replace(",", "").partition(".")
    rest = rest.rstrip("0")
    return (whole.lstrip("0") or "0") + ("." + rest if rest else "")


_LATEX_GROUPING = re.compile(r"(?<=[0-9])(?:\\[,;:! ]|\{,\}|,\\!|[\u2009\u202f])(?=[0-9]{3}(?![0-9]))")


def _normalise(text: str) -> str:
    r"""ASCII digits and minus signs, without the marks that LaTeX sets between thousands: `12\,000` and `12{,}000` are 12000."""
    return _LATEX_GROUPING.sub("", fold_digits(text.translate(MINUS_SIGNS))).replace("{,}", ",")


def _canonical_number(match: re.Match[str]) -> str:
    top = canonical_decimal(match[2])
    negative = match[1] == "-" or "$-" in match[0]
    bottom = f"/{canonical_decimal(match[3])}" if match[3] else (match[4] or "").lower()
    return ("-" if negative and top != "0" else "") + top + bottom + ("%" if match[5] else "")


def first_number(text: str) -> str | None:
    """The first number in a text, in canonical form; None if there is none, or if it is a part of an expression."""
    text = _normalise(text)
    match = _NUMBER_IN_TEXT.search(text)
    return None if match is None or _is_operand(text, match) else _canonical_number(match)


OPERAND_CONTEXT_CHARS = 48


def _is_operand(text: str, match: re.Match[str]) -> bool:
    """Whether a number in a text is a part of an expression, such as the 13 of "26 - 13"."""
    before = text[max(0, match.start() - OPERAND_CONTEXT_CHARS) : match.start()]
    return bool(
        _OPERATOR_BEFORE.search(before)
        or _OPERATOR_AFTER.match(text, match.end())
        or _OPERANDS_BEFORE.search(before)
        or (_OPERATION_BEFORE.search(before) and _OPERANDS_AFTER.match(text, match.end()))
    )


def last_result(text: str) -> str | None:
    """The last number in a text that is not a part of an expression, in canonical form ("1,234.50" -> "1234.5"), or None.

    "26 - 13" has none, "26 - 13 = 13" has 13, and "18 (2 × 9)" has 18. A minus is a sign only if there is nothing on its left to
    subtract from. A number at the end of a word (CO2) does not count. Takes linear time.
    """
    text = _normalise(text)
    found = reversed(list(_NUMBER_IN_TEXT.finditer(text)))
    return next((_canonical_number(match) for match in found if not _is_operand(text, match)), None)


_NAME_BEFORE = re.compile(r"\s*(?:\\?[A-Za-z]+(?:_\{?\w+\}?)?|\\text\{[^{}]*\})\s*(?:=|\\approx)\s*")

_UNIT_AROUND = re.compile(r"\^ ?\{? ?(?:[23]|\\circ) ?\}?|°|\\degree|[€£¥₹¢]|\\?[$%]")

# "km/h", "$18/hour": words around a slash. In "18/x" it divides.
_UNIT_SLASH = re.compile(
    r"(?<=[^\W\d_]) ?/ ?(?=[^\W\d_])|/ ?(?=(?:second|minute|hour|day|week|month|year|person|kg|km|mile|pound|item)s?\b)"
)

_WORDS_IN_BRACKETS = re.compile(r"\( ?([^\W\d_]{2,}(?:[ .,]+[^\W\d_]{2,})*) ?\)")

# A single letter is a variable, unless it is a unit or the article. These words have a value.
_VALUE_IN_WORDS = re.compile(r"(?<![^\W\d_])(?:[A-Za-z](?![^\W\d_]|\.)|(?:pi|sqrt)(?![^\W\d_]))|π")

_OPERATOR = re.compile(r"[-+*/^=<>()\[\]{}|\\_×÷·⋅√±≤≥~]")


def number_in_box(content: str) -> str | None:
    r"""The one number of a box with words, units or signs around it: "18 doubloons", `\textbf{18}`, "x = 18", "€18". Else None.

    None for an expression: the question's own formula, boxed, is no answer.
    """
    match = _only_number(content, _NUMBER_IN_TEXT)
    return None if match is None else _canonical_number(match)


def written_number_in_box(content: str) -> str | None:
    """As `number_in_box`, in the notation of any language and as it is written: "2,5 km" holds "2,5"."""
    match = _only_number(content, _WRITTEN_NUMBER)
    return None if match is None else match[0]


def _only_number(content: str, number: re.Pattern[str]) -> re.Match[str] | None:
    text = re.sub("(?<=[0-9])[\u00a0~](?=[0-9]{3}(?![0-9]))", "", _normalise(INVISIBLE.sub("", content)))
    text = without_text_commands(text.replace("\\$", "$").replace("\\%", "%"))
    text = re.sub(r"\\[,;:! ]|\\q?quad|\*\*|[{}~]", " ", text)
    if name := _NAME_BEFORE.match(text):
        text = text[name.end() :]
    found = list(number.finditer(text))
    if len(found) != 1:
        return None
    (match,) = found
    rest = _UNIT_AROUND.sub(" ", text[: match.start()] + " " + text[match.end() :])
    rest = _UNIT_SLASH.sub(" ", _WORDS_IN_BRACKETS.sub(r" \1 ", rest))
    if _OPERATOR.search(rest) or _VALUE_IN_WORDS.search(re.sub(r"\b[mgshlLCFK]\b|\ba\b", "", rest)):
        return None
    return match


_CHOICE_IN_BOX = re.compile(
    r"(?:option|choice|answer)?\s*[:\-]?\s*[(\[]?([A-Za-z])[)\]]?"
    r"(?:[).:]|\s[-\u2014](?=\s(?:\w\w|[0-9$\\]))|\s*$|\s+(?=[A-Za-z\\])|$)",
    re.IGNORECASE,
)

_OTHER_LETTER = re.compile(r"\s*(?:or|and|[,;/&-])\s*[(\[]?([A-Z])(?![A-Za-z0-9']|\s+[a-z])")

_LETTER = re.compile(r"(?<![A-Za-z0-9'])\(?([A-Z])\)?(?![A-Za-z0-9'])")

_IS_WORD = re.compile(r"\s+[a-z']|'[a-z]+")

_OFFERED_LINE = re.compile(r"^\(?([A-Z])[).] ?(.*)$", re.MULTILINE)


def offered_choices(question: str) -> dict[str, str]:
    """The choices of a question, by letter: its lines "A) ...", "B) ..." in order; empty if it has none."""
    found = _OFFERED_LINE.findall(question)
    for start in range(len(found)):
        letters = [letter for letter, _ in found[start:]]
        if letters == [chr(65 + place) for place in range(len(letters))] and len(letters) > 1:
            return dict(found[start:])
    return {}


def choice_letter(text: str, offered: Collection[str]) -> str | None:
    r"""The letter that a box or a named answer states: "C", "(c)", `\text{C}`, "C) the moon", "Option C"; None if it states none.

    Brackets of both kinds, `\mathbf{C}` and "C - the moon" are read too. A letter that is not offered counts as none. Without
    choices in `offered` every letter counts.
    """
    plain = unwrap_text(clean_latex(without_type(text)), after=" ")
    plain = " ".join(plain.replace("{", " ").replace("}", " ").split()).strip(" *_.\"'`")
    match = _CHOICE_IN_BOX.match(plain)
    if match is None:
        return None
    letter = match[1].upper()
    alone = match.end() >= len(plain)
    marked = plain[: match.end()].strip().endswith((")", "]", ".", ":", "-", "\u2014")) or re.match(
        "(?:option|choice|answer)", plain, re.I
    )
    if not alone and not marked:
        return None  # "A fine riddle": a word, or "C the moon"
    other = _OTHER_LETTER.match(plain, match.end())
    if other and other[1] != letter and (not offered or other[1] in offered):
        return None  # "(A) or (B)"
    return letter if not offered or letter in offered else None


def last_choice_letter(text: str, offered: Collection[str]) -> str | None:
    """The last capital letter that is a word of its own and is offered. "I" and "A" before a word are words."""
    for match in reversed(list(_LETTER.finditer(text))):
        letter = match[1]
        if offered and letter not in offered:
            continue
        bare = match[0] == letter
        if bare and letter in "IA" and (_IS_WORD.match(text, match.end()) or letter == "I"):
            continue
        return letter
    return None


_WRITTEN_NUMBER = re.compile(
    r"(?<![A-Za-z\u00c0-\u024f0-9_.,])(?:(?<![\w)\]}.][ ])[-+])?[$\u20ac\u00a3]?-?"
    r"[0-9]+(?:(?:[.,'\u2019\u00a0\u202f\u2009]|[ ](?=[0-9]{3}(?![0-9])))[0-9]+)*(?:\s?%)?"
)

_NOTATIONS = (
    (re.compile(DIGITS), ",", "."),  # 1,234.5 and 1,50,000
    (re.compile(r"[0-9]{1,3}(?:\.[0-9]{3})+(?:,[0-9]+)?|[0-9]+,[0-9]+"), ".", ","),  # 1.234,5
    (re.compile(r"[0-9]{1,3}(?:[ \u00a0\u202f\u2009][0-9]{3})+(?:[.,][0-9]+)?"), " \u00a0\u202f\u2009", ".,"),  # 1 234,5
    (re.compile(r"[0-9]{1,3}(?:['\u2019][0-9]{3})+(?:\.[0-9]+)?"), "'\u2019", "."),  # 1'234.5
)


def last_written_number(text: str) -> str | None:
    """The last number of a text that is not a part of an expression, as it is written: "1.500", "2,5", "1 500", "12%"."""
    text = _normalise(text)
    found = reversed(list(_WRITTEN_NUMBER.finditer(text)))
    return next((match[0] for match in found if not _is_operand(text, match)), None)


def number_readings(written: str) -> set[str]:
    """What a number may mean in the notations of different languages, in canonical form: 1.500 is 1.5 or 1500, and 2,5 is 2.5."""
    percent = "%" if written.rstrip().endswith("%") else ""
    digits = written.strip(" %$\u20ac\u00a3+").replace("$", "")
    negative = "-" if digits.startswith("-") or written.strip().startswith("-") else ""
    digits = digits.lstrip("-$\u20ac\u00a3")
    found = set()
    for pattern, grouping, decimal in _NOTATIONS:
        if pattern.fullmatch(digits):
            plain = "".join("." if one in decimal else one for one in digits if one not in grouping)
            found.add(canonical_decimal(plain))
    if " " in digits:
        found.add(canonical_decimal(digits.rpartition(" ")[2].replace(",", "")))  # "5 100 dollar bills": two numbers
    return {("" if one == "0" else negative) + one + percent for one in found}
