r"""Find the final answer in a completion, for each kind of answer: a number, mathematics, a text, a letter.

Each function takes a completion without its thinking and the question's text, and is a `Task.extract`. All look in this order:
the last box, `<answer>` tags, the last "answer is"; and then, where none of these is, for what the kind allows: the last number
that is not a part of an expression, the last formula, the last line, the last letter that is offered.
"""

import re
from collections.abc import Callable, Iterator, Sequence

from permix.types import canonical_text
from permix.verification.extraction import (
    choice_letter,
    digits_for_words,
    extract_boxed,
    extract_last_formula,
    extract_named_answer,
    extract_tagged,
    first_number,
    has_digit,
    is_bare_expression,
    is_list_of_letters,
    is_list_of_numbers,
    is_number_alone,
    last_choice_letter,
    last_result,
    last_written_number,
    leading_clause,
    letter_and_rest,
    number_in_box,
    offered_choices,
    shorten_blanks,
    stated_number,
    without_boxes,
    written_number_in_box,
)
from permix.verification.latex import FRACTION_WORDS, MAGNITUDES, has_value_words, without_text_commands
from permix.verification.math_verifier import is_number_text, result_of_equation


def _stated_answers(completion: str) -> Iterator[str]:
    """What a completion marks as its answer: the content of its last box, of its last tags, and what "answer is" names."""
    for extract in (extract_boxed, extract_tagged, extract_named_answer):
        text = extract(completion)
        if text is not None and text.strip():
            yield text


def extract_number(completion: str, question: str = "") -> str | None:
    """A plain number. A box with an expression holds no answer: the verifier would evaluate `12*13`."""
    return _find_number(completion, question, lambda text: None, last_result)


def extract_number_as_written(completion: str, question: str = "") -> str | None:
    """A plain number in the notation of any language: "1.500", "2,5"."""
    return _find_number(completion, question, written_number_in_box, last_written_number)


def _find_number(
    completion: str, question: str, read: Callable[[str], str | None], last: Callable[[str], str | None]
) -> str | None:
    """The number that is marked; if nothing is, the last one.

    A box or tags that hold something are the answer, or there is none. So is what "answer is" names, if it is alternatives
    ("3 or 4") or a calculation and no more ("18 - x"). `read` reads a marked text before all else does.
    """
    completion = _SURE.sub("", _without_asked_magnitude(shorten_blanks(completion), question))
    is_in_words = not has_digit(completion)
    completion = digits_for_words(completion)

    def stated(*texts: str | None) -> str | None:
        found = (read(one) or _stated_number(one, question) for one in texts if one is not None)
        return next((one for one in found if one is not None), None)

    if (boxed := extract_boxed(completion)) is not None and re.search(r"\w", boxed):
        return stated(digits_for_words(boxed))
    if (tagged := extract_tagged(completion)) is not None and re.search(r"\w", tagged):
        tagged = digits_for_words(tagged)
        return stated(tagged, leading_clause(tagged))
    rest = without_boxes(_without_heading_numbers(completion))
    if (named := extract_named_answer(completion)) is not None:
        if (corrected := _CORRECTION.search(completion, completion.rfind(named))) is not None:
            return last(corrected[1])
        named = named.strip("_ ")
        if is_number_alone(in_digits := digits_for_words(named)):
            named = in_digits
        if (number := stated(named, leading_clause(named))) is not None:
            return number
        if is_list_of_numbers(named):
            return None
        if is_bare_expression(named):
            if "=" in named and (result := last(named)) is not None:
                return result
            rest = rest.replace(named, " ")  # "18 - x"; but "6 * 9, which is 54" has a result
        elif len(re.findall(_DIGITS_AND_COMMAS, named)) == 1 and any(
            has_value_words(part) for part in re.split("[,;]", re.sub(_DIGITS_AND_COMMAS, " # ", named)) if "#" in part
        ):
            rest = rest.replace(named, " ")  # "less than 18", "not 18"
    return stated_number(rest) if is_in_words else last(rest)


_DIGITS_AND_COMMAS = "[0-9][0-9.,]*"

# What is said of the answer, and is no number: "18, 100% sure".
_SURE = re.compile(r",?\s(?:I(?:'m| am) )?[0-9]{1,3}\s?\\?%\s(?:sure|certain|confident)\b", re.IGNORECASE)

# "The answer is 18. No, wait, it's 20."
_CORRECTION = re.compile(
    r"(?:\b(?:wait|mistake|scratch that|no,)(?![A-Za-z])[^\n]{0,80}?"
    r"(?:\bit(?:['\u2019]s| is| should be)|\bactually|\bmake (?:that|it)|\bshould be)|\bcorrection[:,])"
    r"(?:\s+(?:actually|really))?\s+(?!not\b)([$*\\(-]{0,6}[0-9][^\s!?]*)",
    re.IGNORECASE,
)


def _stated_number(text: str, question: str) -> str | None:
    """The number that a marked text states: alone, with a unit, or as the result of an equation."""
    if is_number_text(text):
        return text
    if (number := number_in_box(text)) is not None:
        return number
    return result_of_equation(text, question)


_ASKED_WORDS = f"{'|'.join(MAGNITUDES)}|dozen|{FRACTION_WORDS}"

_ASKED_MAGNITUDE = re.compile(
    rf"\b(?:how many|number of)\s+(?:\w+ )?({_ASKED_WORDS})s?\b|\bin\s+({_ASKED_WORDS})s\b", re.IGNORECASE
)


def _without_asked_magnitude(completion: str, question: str) -> str:
    """The text with "3 dozen" as "3 units", where the question asks how many dozens there are."""
    for match in _ASKED_MAGNITUDE.finditer(question):
        completion = re.sub(rf"\b{match[1] or match[2]}s?\b", "units", completion, flags=re.IGNORECASE)
    return completion


# The mark is a heading of Markdown too: in "#### Cost of 2 shirts" a word is before the number, in "#### Total: 18" a colon is.
_NUMBER_AFTER_MARK = re.compile(r"(?:\D*[:=])?[\W_]*\d")


def extract_marked_number(completion: str, question: str = "") -> str | None:
    """A plain number; without a box it is the number after the first "####" that marks one, as in GSM8K's solutions."""
    completion = shorten_blanks(completion)
    if extract_boxed(completion) is None:
        for after in _without_heading_numbers(completion).split("####")[1:]:
            line = after.strip().partition("\n")[0]
            if _NUMBER_AFTER_MARK.match(line) and (number := first_number(line)) is not None:
                return number
    return extract_number(completion, question)


# A list number counts only with text under its heading: "#### 18. That is all." at the end is an answer.
_HEADING_NUMBER = re.compile(
    r"^[ \t]*#+[ \t]*[*_]*(?:(?:step|part)[ \t]+[0-9]{1,2}\b|([0-9]{1,2})(?=[.)][*_]*[ \t]+[^\d\s][^\n]*\n\s*\S))",
    re.IGNORECASE | re.MULTILINE,
)


def _without_heading_numbers(completion: str) -> str:
    """The text without "## Step 2" in headings, and without "#### 2" where such headings count: from 1, or on from the last."""
    last = 0

    def replace(match: re.Match[str]) -> str:
        nonlocal last
        if match[1] is not None:
            if int(match[1]) not in (1, last + 1):
                return match[0]
            last = int(match[1])
        return ""

    return _HEADING_NUMBER.sub(replace, completion)


def extract_expression(completion: str, question: str = "") -> str | None:
    """Mathematics of any form."""
    completion = shorten_blanks(completion)
    answer = next(_stated_answers(completion), None) or extract_last_formula(without_boxes(completion))
    return answer if answer is None else _NEGATIVE.sub(lambda m: f"-({m[1]})" if m[1] else "-", answer)


_NEGATIVE = re.compile(
    r"\A\s*(?:minus|(?:the )?negative(?: of)?)\s+(?:(\$[^$]*\$|\\\(.*\\\))\Z|(?=[0-9.]))", re.IGNORECASE | re.DOTALL
)


def extract_text(completion: str, question: str = "") -> str | None:
    """A text: without a box or an "answer is", the last line that is not blank."""
    completion = shorten_blanks(completion)
    lines = (line.strip() for line in reversed(completion.splitlines()) if line.strip())
    return next(_stated_answers(completion), None) or next(lines, None)


_QUOTES = str.maketrans(
    {
        **dict.fromkeys("\u2018\u2019\u201a\u201b\u02bc\u2039\u203a", "'"),
        **dict.fromkeys("\u201c\u201d\u201e\u201f\u00ab\u00bb\u300c\u300d\u300e\u300f", '"'),
    }
)


def normalise_text(text: str) -> str:
    """A text without case, spacing, Unicode form, quotation marks and type around it, LaTeX's `\\text`, and a final full stop.

    LaTeX's `\\%`, `\\&`, `\\#`, `\\_` and `\\$` are the signs themselves, and its `~` between two words is a space. A text of
    nothing but such marks ("*", "...") stands as it is, without quotation marks around it.
    """
    plain = re.sub(r"(?<=\w)~(?=\w)", " ", without_text_commands(text))
    if "\\" in plain or "{" in plain:
        plain = re.sub(r"\\([%&#_$])", r"\1", re.sub(r"(?<!\\)[{}$]|\\[ ,;{}]", " ", plain))
    plain = canonical_text(plain.translate(_QUOTES))
    as_it_stands = canonical_text(text.translate(_QUOTES))
    return plain.strip(" *_`\"'.,!") or plain.strip(" \"'`") or as_it_stands.strip(" \"'`") or as_it_stands


def same_text(answer: str, gold: str) -> bool:
    """Whether two texts are equal as `normalise_text` writes them, and not blank."""
    return normalise_text(answer) == normalise_text(gold) != ""


def are_distinct(texts: Sequence[str]) -> bool:
    """Whether no two texts differ in case, spacing, a final full stop or marks on both sides alone. "f" and "f'" are distinct."""
    return len({*map(_without_paired_marks, texts)}) == len(texts)


MAX_MARK_CHARS = 1_000
"""Type, quotation marks and spaces around a text are at most as many characters."""


def find_same_text(text: str, texts: Sequence[str]) -> int | None:
    """The place of the text that is the same; of several that `same_text` takes for the same, the one with the same marks."""
    if len(text) > max(map(len, texts), default=0) + MAX_MARK_CHARS:
        return None
    marked, plain = _without_paired_marks(text), normalise_text(text)
    exact = [place for place, one in enumerate(texts) if _without_paired_marks(one) == marked]
    same = exact or [place for place, one in enumerate(texts) if normalise_text(one) == plain != ""]
    return same[0] if len(same) == 1 else None


def _without_paired_marks(text: str) -> str:
    plain = canonical_text(text.translate(_QUOTES))
    while re.search(r"\w", plain):
        if len(plain) > 2 and plain[0] == plain[-1] and plain[0] in "*_`\"'" and re.search(r"\w", plain[1:-1]):
            plain = plain[1:-1].strip()
        elif plain.endswith("."):
            plain = plain[:-1].strip()
        else:
            break
    return plain


def extract_choice(completion: str, question: str = "") -> str | None:
    """The letter of a choice that the question offers; a choice's text counts for its letter."""
    completion, offered = shorten_blanks(completion), offered_choices(question)
    for text in (extract_boxed(completion), extract_tagged(completion)):
        if text is not None and text.strip():
            return _letter_stated(text, offered) or text
    named = extract_named_answer(completion)
    if named is not None:
        if is_list_of_letters(named, offered):
            return named  # "B and C"
        if letter := choice_letter(_first_clause(named), offered) or _letter_stated(named, offered):
            return letter
        if letter := _letter_of_text(_first_clause(named), offered):
            return letter  # "Apple, rich in vitamin C"
    return last_choice_letter(completion, offered) or _letter_of_text(completion, offered)


def _letter_stated(text: str, offered: dict[str, str]) -> str | None:
    """The letter that a box, tags or "answer is" states: alone, with its choice's text behind it in any form, or by the text."""
    if letter := choice_letter(text, offered) or _letter_of_text(text, offered):
        return letter
    letter, rest = letter_and_rest(text) or ("", "")
    choice = offered.get(letter)
    return letter if choice is not None and same_text(rest.strip(" ()"), choice.strip(" ()")) else None


def _first_clause(named: str) -> str:
    """ "(B), since A ..." -> "(B)"."""
    return re.split(r",|;| (?:since|because|as|and|not|for)\b", named)[0]


def _letter_of_text(text: str, offered: dict[str, str]) -> str | None:
    place = find_same_text(text, list(offered.values()))
    return None if place is None else list(offered)[place]
