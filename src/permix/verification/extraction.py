r"""Find the final answer in a completion.

In this order: what is in the last `\boxed{}` (boxes joined by "and", "or" or a comma are one answer), what is between `<answer>`
tags, what the last "answer is" names, and what the kind of task allows besides (the last number, formula, line or letter).
Thinking is removed first.
"""

import re
import unicodedata
from collections.abc import Collection, Mapping
from fractions import Fraction

from permix.verification.latex import (
    DENIALS,
    INVISIBLE,
    MAGNITUDES,
    MINUS_SIGNS,
    NUMERALS_IN_WORDS,
    clean_latex,
    fold_digits,
    has_value_words,
    unwrap_text,
    without_text_commands,
    without_type,
    words_as_digits,
)

_BOX_OR_BRACE = re.compile(r"\\(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)

_BETWEEN_BOXES = re.compile(
    r"(?:[\s$,;.&~]|\\[()\[\],;: ]|\\q?quad|\\text ?\{ ?(?:and|or)?,? ?\}|\b(?:and|or)\b|[A-Za-z](?:_\{?\d\}?)? ?="
    r"|\([A-Za-z](?:, ?[A-Za-z]){1,5}\) ?=)*"
)

_LONG_BLANK = re.compile(r"\s{9,}")


def shorten_blanks(text: str) -> str:
    """A text with long runs of white space cut to a blank or a blank line: patterns with several runs take quadratic time."""
    return _LONG_BLANK.sub(lambda m: "\n\n" if "\n" in m[0] else " ", text)


_BULLET = re.compile(r"[ \t]*(?:[-*+\u2022]|[0-9]{1,2}[.)])[ \t]+")

_ANSWER_TAG = re.compile(r"<answer>((?:(?!<answer>).)*?)</answer>", re.DOTALL | re.IGNORECASE)

_PARTICIPLES = r"(?:used|checked|divided|multiplied|based|added|subtracted|found|obtained|verified|rounded)\b"

_ANSWER_IS = re.compile(
    r"\b(?:(?:final\s+)?(?:answer|solution|result)s?\b[*_]*\s*"
    rf"(?:(?:is|are)\b(?!\s+(?:then |now |next )?{_PARTICIPLES})|[:=]|(?=\n)|(?=\$|\\[(\[]))"
    r"|answer(?:\s+(?:to|of|for)\s+(?:your|thy|yer|the|this|that)\s+\w+)?\s+(?:is|be|was|would be|equals)\b"
    rf"(?!\s+(?:then |now |next )?{_PARTICIPLES}))"
    r"(?:\s*(?:therefore|thus|simply|just|then|definitely|clearly|indeed|surely|obviously|probably)\b,?|,\s*of course,"
    r"|\s*(?:as follows|this)\s*(?=:))?[ \t*_:]*",
    re.IGNORECASE,
)

# A formula has at most 2,000 characters, so that a text of unclosed formulas takes linear time.
# A formula holds no other beginning of one: without that, text of nothing but beginnings takes 2000 steps for each.
_FORMULA = (
    r"\$\$.{1,2000}?\$\$|\\\[(?:(?!\\\[).){1,2000}?\\\]|\\\((?:(?!\\\().){1,2000}?\\\)|(?<!\\)\$(?:[^$\\\n]|\\.){1,2000}?\$"
)

_FORMULA_HERE = re.compile(rf"\s*({_FORMULA})", re.DOTALL)

_JOINS_FORMULAS = re.compile(r"\s*(?:,|and|or|,\s*and)\s*(?=\$|\\\(|\\\[)")

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

    So are the boxes of a list, if each item has nothing else than a box and its name. What is denied is none: "not \boxed{5}".
    """
    boxes = [box for box in boxes_of(text) if not _NOT_BEFORE.search(text, max(0, box[0] - OPERAND_CONTEXT_CHARS), box[0])]
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
    last_digit = max(map(completion.rfind, "0123456789"))
    found = [match for match in _ANSWER_IS.finditer(completion) if not _begins_work(completion, match, last_digit)]
    # "The answer is 18. We check the result: 18 / 2 = 9."
    best = [match for match in found if _NAMES_ANSWER.match(match[0]) and _BEGINS_WITH_VALUE.match(completion, match.end())]
    for match in reversed(best or found):
        if named := _named_after(completion, match.end()):
            return named
    return None


_NAMES_ANSWER = re.compile(r"final|answer", re.IGNORECASE)

_FIRST_ITEM = re.compile(r"\s*(?:\*\*)?(?:1[.)]\s+\S|step 1\b)", re.IGNORECASE)


def _begins_work(text: str, match: re.Match[str], last_digit: int) -> bool:
    """Whether what "solution" or "answer" heads is a list of steps or a sentence of the work: "Solution: 7 + 9 = 16. Then"."""
    if _FIRST_ITEM.match(text, match.end()):
        return True
    if _NAMES_ANSWER.match(match[0]) or match[0].rstrip(" *_\t").endswith(("is", "are")):
        return False
    sentence = _sentence_at(text, match.end())
    alone = _BEGINS_WITH_VALUE.match(sentence) and "=" not in sentence
    return not alone and last_digit >= text.find(sentence, match.end()) + len(sentence)


def _named_after(text: str, at: int) -> str | None:
    formulas = []
    while (match := _FORMULA_HERE.match(text, at)) and not _DOLLARS_WITH_WORDS.match(match[1]):
        formulas.append(match[1])
        at = match.end()
        if joined := _JOINS_FORMULAS.match(text, at):
            at = joined.end()
        else:
            break
    if formulas:
        # "$5$ million", "$5$ squared": the words belong to the value.
        rest = _SENTENCE_END.split(text[at:].partition("\n")[0], maxsplit=1)[0]
        words = _CLAUSE_END.split(_without_reason(f"0{rest}")[1:], maxsplit=1)[0].strip(" \t*.")
        return ", ".join(formulas) + (f" {words}" if has_value_words(f"# {_ANY_FORMULA.sub('#', words)}") else "")
    if quoted := _QUOTED.match(text, at):
        return quoted[1]
    sentence = _sentence_at(text, at).strip(" \t*.")
    named = _after_verb(_without_reason(sentence))
    formulas = [] if named[:1].isdigit() else _ANY_FORMULA.findall(named)
    if formulas and not named.startswith(("$", "\\")):
        before = re.split("[,:;]", named[: named.rindex(formulas[-1])])[-1]
        # "not $5$", "half of $5$": the words are a part of what is named, and make it unreadable.
        return named if has_value_words(f"{_ANY_FORMULA.sub(' # ', before)} #") else str(formulas[-1])
    if not _BEGINS_WITH_VALUE.match(named) and len(re.findall("[A-Za-z]{2,}", named)) > 2:
        return number_in_box(named) or named or None  # "Jane started 3 hours ago"
    return named or None


# "$18, since each egg is $2": amounts, and no formula between them.
_DOLLARS_WITH_WORDS = re.compile(r"\$[0-9][0-9.,]*[\s,;](?:[^\\$]*[\s,])?[A-Za-z]{2,}\s")

_QUOTED = re.compile(
    r'[\s*]*("[^"\n]{1,2000}"|\u201c[^\u201d\n]{1,2000}\u201d|\u00ab[^\u00bb\n]{1,2000}\u00bb|\u201e[^\u201c\u201d\n]{1,2000}[\u201c\u201d])'
)

_LINE = re.compile(r"\s*([^\n]*)")

_SENTENCE_END = re.compile(r"[.!?](?=\s|\Z)")

_TITLE_AT_END = re.compile(
    r"(?:\A|[\s(])(?:St|Dr|Mr|Mrs|Ms|Prof|Mt|Ft|Gen|Capt|Lt|Col|Sgt|Rev|Mme|Mlle|Vol|Op|vs|e\.g|i\.e|ca|approx)\Z"
)

_INITIAL_AT_END = re.compile(r"(?:\A|[\s.])[A-Z]\Z")

_FIRST_WORD = re.compile(r"\s+([^\s.,!?]+)")

# No name goes on with these words: "Vitamin C. It is in oranges."
_SENTENCE_WORDS = """
    the a an it its it's this that these those he she they we you i i'm i'd my our in on as so but and for if since because hope
    let here there not no to also however therefore thus then what when where why how well now please all each both
"""

_BEGINS_SENTENCE = frozenset(_SENTENCE_WORDS.split())


def _sentence_at(text: str, at: int) -> str:
    """The sentence that begins at a place of a text, on one line. The full stop of "St. Louis" or of an initial is no end."""
    match = _LINE.match(text, at)
    assert match is not None, "the pattern matches everywhere"
    line = match[1]
    for end in _SENTENCE_END.finditer(line):
        if line[end.start()] != "." or not _is_abbreviation(line[: end.start()][-OPERAND_CONTEXT_CHARS:], line[end.end() :]):
            return line[: end.start()]
    return line


def _is_abbreviation(before: str, after: str) -> bool:
    """Whether a full stop between two parts of a line belongs to an abbreviation or an initial."""
    word = _FIRST_WORD.match(after)
    if word is None:
        return False
    if _TITLE_AT_END.search(before):
        return True
    if before.strip(" *_\"'") == "No":
        return re.fullmatch(r"\s*[0-9]+\W*", after) is not None
    if not word[1][0].isupper() or not _INITIAL_AT_END.search(before):
        return False
    if before.endswith(tuple(f".{letter}" for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ")):  # "P.S. I love you"
        return word[1].lower() == "i" or word[1].lower() not in _BEGINS_SENTENCE
    rest = re.split(r"(?<=\w{2})[.!?](?:\s|\Z)", after)[0]
    return word[1].lower() not in _BEGINS_SENTENCE and len(rest.split()) <= 4 and not _VERB.search(rest)


# What "answer is" names begins with a number, a formula, a name and "=", or the letter of a choice.
_BEGINS_WITH_VALUE = re.compile(
    r"\s*(?:(?:about|approximately|exactly|around|roughly|only|just|minus|negative|either)\s+)?"
    r"(?:[-+$\u20ac\u00a3\u00a5\u20b9\\\u2212\u2013]?[\s$]*(?:\.?[0-9]|\\)|[A-Za-z] ?="
    r"|[(\[]?[A-Z][)\]](?:\W|\Z)|[A-Z](?:[.:,;]|\s*\Z|\s[-\u2013\u2014(]))"
)

_REASON_WORDS = r"since|because|although|though|even though|whereas|given that|considering"

_REASON = re.compile(
    rf"(?<=\S)(?:\s*[,;]\s*|\s+[(\[]?|\s+[-\u2013\u2014]+\s+)(?:{_REASON_WORDS})\b"
    r"|(?<=\S)(?:\s*[,;]\s*|\s+[-\u2013\u2014]+\s+)"
    r"(?:as|for|who|whose|where|while|when|but|not|rather|instead|with|if|unless|rounded)\b"
    r"|(?<=\S)\s*,\s*(?:I (?:think|believe|say|reckon|suppose)|of course|matey|my friend|sir|madam)\b"
    r"|(?<=\S)\s*\u2014\s*(?=[A-Za-z]{2})"
    r"|(?<=\S)\s+[(\[](?:see|rounded|I think|or|not|about|approximately|i\.e|e\.g)\b",
    re.IGNORECASE,
)

# After a value these words begin a remark too. After other words they may lead to the answer: "9 eggs were sold, which gives 18".
_REMARK = re.compile(
    r"(?<=\S)(?:\s*[,;]\s*|\s+|\s+[-\u2013\u2014]+\s+)"
    r"(?:as|if|when|where|while|that|which|who|so|thus|hence|therefore|then|meaning|making|assuming|provided|unless)\b"
    r"|(?<=\S)\s*[,;]\s+(?:[^,;]*\b(?:is|are|was|were|equals)\b)",
    re.IGNORECASE,
)

_AFTER_STATEMENT = re.compile(r"(?<=\S)\s*(?:,\s*which\b|;\s)", re.IGNORECASE)

_VERB_AFTER_COMMA = re.compile(r",\s*(?:is|are|was|were|equals?|comes? to|has|have)\b|,\s*=")


def _without_reason(sentence: str) -> str:
    """A sentence without the reason or the remark behind what it names: "5, since the other root was 7" -> "5"."""
    patterns = [_REASON]
    if _BEGINS_WITH_VALUE.match(sentence):
        patterns.append(_REMARK)
    else:
        first_part = re.split("[,;]", sentence, maxsplit=1)[0]
        if _VERB.search(first_part) or not re.search("[0-9]", first_part):
            patterns.append(_AFTER_STATEMENT)
    found = [match for pattern in patterns if (match := pattern.search(sentence))]
    if not found:
        return sentence
    first = min(found, key=re.Match.start)
    # "The area, since it is a square, is 16": the sentence goes on.
    return sentence if _VERB_AFTER_COMMA.search(sentence, first.end()) else sentence[: first.start()].strip(" \t*.")


def _after_verb(sentence: str) -> str:
    """The part of a sentence after its last verb or equals sign, if the sentence has words before it; else the sentence.

    A sentence that begins with a value names it: "5 apples and the number of pears was 7".
    """
    verbs = list(_VERB.finditer(sentence))
    if not verbs:
        return sentence
    before = sentence[: verbs[-1].start()]
    if len(re.findall("[A-Za-z]{2,}", before)) < 2 or (_BEGINS_WITH_VALUE.match(sentence) and _JOINS_CLAUSES.search(before)):
        return sentence
    return sentence[verbs[-1].end() :].strip(" \t*.:") or sentence


_JOINS_CLAUSES = re.compile(r"[,;(\[]|\b(?:and|but|or|while)\b")


def leading_clause(named: str) -> str | None:
    """The text before the first bracket, comma or "or" of what "answer is" names, if it begins with a value; else None.

    "18 (see step 3)" -> "18". Of several numbers in it the first counts, if a word follows it: "18 dollars for 9 eggs" -> "18".
    None for a list of numbers ("3 or 4"), which names none of them, and for a calculation.
    """
    if not _BEGINS_WITH_VALUE.match(named) or is_list_of_numbers(named):
        return None
    clause = _CLAUSE_END.split(named, maxsplit=1)[0].strip()
    if "=" in clause or _VERB.search(clause):
        return None
    found = list(_NUMBER_IN_TEXT.finditer(_normalise(clause)))
    if len(found) < 2:
        return clause
    return first_number(clause) if _WORD.match(found[0].string, found[0].end()) else None


_WORD = re.compile(r"[^\w\\]*[^\W\d_]{2}")


def is_list_of_numbers(text: str) -> bool:
    """Whether a text is several numbers and no more than a unit: "3 or 4", "3, 4 eggs", "$3$ to $4$", "6 feet 2 inches"."""
    plain = re.sub(r"\\[()\[\],;:! ]|\\q?quad|\$(?!-?[0-9.]+(?:\s|\Z))|[{}]", " ", without_text_commands(text))
    return _LIST_OF_NUMBERS.fullmatch(_normalise(plain.replace("\\pm", "\u00b1").strip())) is not None


def is_bare_expression(named: str) -> bool:
    """Whether a text is a calculation and no more: it has numbers and operators, and no word. "18 - x", "18:00", "(18, 20)"."""
    text = re.sub("</?[A-Za-z]+>", "", _normalise(named))
    numbers = len(_NUMBER_IN_TEXT.findall(text))
    if re.search(r"[^\W\d_]{2}", re.sub(r"\\[A-Za-z]+", "", text)):
        return False
    return numbers > 1 or (numbers == 1 and re.search(r"[A-Za-z+*/^=:\u00b1\u221a]|(?<=[\w)])\s*-", text) is not None)


_CLAUSE_END = re.compile(
    r"[,;:]\s|\s+--\s|\s*[(\[](?!\s*[0-9.]+\s*[)\]]?\s*\Z)|\s*\["
    r"|\s+or\b(?! (?:more|less|fewer|above|below|greater|higher|lower)\b)|\s+and\b|\s+[\u2014\u2013]\s+(?=[A-Za-z])"
)


def extract_last_formula(completion: str) -> str | None:
    """The last formula of a completion that is not denied, or None."""
    for match in reversed(list(_ANY_FORMULA.finditer(completion))):
        if not _NOT_BEFORE.search(completion, max(0, match.start() - OPERAND_CONTEXT_CHARS), match.start()):
            return match[0]
    return None


DIGITS = r"(?:(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]{1,2}(?:,[0-9]{2})+,[0-9]{3}(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)"

# A minus that is no sign is not matched: it must be seen as the operator before the number.
_NUMBER_IN_TEXT = re.compile(
    rf"((?<![\w)\]}}.])[-+](?=\$?[.0-9]))?(?:\$-?)?(?<![A-Za-z0-9])({DIGITS})"
    rf"(?:\s?/\s?({DIGITS})|([eE][-+]?[0-9]{{1,3}})(?!\w))?\s?(\\?%)?"
)

# In words too: an answer that repeats "26 take away 13" or "the sum of 5 and 8" states no result.
_OPERATOR_WORDS = (
    r"(?:[xX]|times|plus|minus|less|take[ -]away|take|subtract|deduct|without|over|mod|added to"
    r"|(?:taken|taken away|subtracted) from|(?:divided|multiplied|decreased|increased|reduced|diminished) by"
    r"|(?:more|less|fewer|greater) than|to the power of|(?:equal )?(?:groups|sets|lots|rows|copies) of)"
)

_OPERATOR_SIGN = (
    r"(?:\*\*|[-+*/\u00d7\u00f7\u00b7\u22c5\u2022\u2715\u2716\u2a2f\u2217\u2219\u2795\u2796\u2797^]"
    r"|\\times|\\cdot|\\div|\\ast|\\-|\\minus)"
)

_NUMBER_WORD = "(?:one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|twenty)"

_OPERATOR_BEFORE = re.compile(
    rf"[0-9)}}\]]\s*(?:\\?%\s*)?(?:{_OPERATOR_SIGN}|\u2014|--|,?\s*{_OPERATOR_WORDS}|(?:(?<=%)|percent)\s*of)[{{$(\[|\s\"]*\Z"
    r"|\^\s*\{?\s*\Z"  # an exponent, also of a unit: "18 m^2"
    r"|[0-9]\s*[A-Za-z]+\s*(?:[+*\u00d7\u00f7]|[xX]\s|(?:plus|minus|less|times|take away)\b)\s*[$(]*\Z"
    rf"|\b{_NUMBER_WORD}\s+(?:plus|minus|times|(?:divided|multiplied) by)\s+\Z"
    r"|\\(?:sqrt(?:\[[0-9]\])?|[dtc]?frac(?:\s*\{[^{}]*\})?|[dt]?binom(?:\s*\{[^{}]*\})?)\s*(?:\{[^{}]*)?\Z|\u221a\s*[({]?\Z"
    r"|\b(?:half|twice|thrice|double|triple|quadruple|(?:a |one[- ])?(?:third|quarter|fifth|tenth) of"
    r"|(?:square |cube )root|(?:square|cube|logarithm|factorial) of)(?: of)?\s*[$(]*\Z"
)

# No two runs of white space that may follow each other: a million spaces would take quadratic time.
_OPERATOR_AFTER = re.compile(
    r"\s*(?:[$)]+\s*)?(?:\*\*|[+*/\u00d7\u00f7\u00b7\u22c5\u2022\u2715\u2716\u2a2f\u2217\u2219\u2795\u2796\u2797^]|-(?=\s*[0-9({$|])"
    rf"|\\times|\\cdot|\\div|\\ast|\\-|\\minus|(?:,\s*)?{_OPERATOR_WORDS}|(?:(?<=%)|percent)\s*of)[{{$(\[|\s]*-?[0-9]"
    r"|\s*[A-Za-z]+\s*(?:[+*/\u00d7\u00f7]|[xX](?=\s)|(?:plus|minus|less|times|take away)\b)\s*[$(]*[0-9]"
    rf"|\s*(?:squared|cubed)\b|\s+(?:plus|minus|times|(?:divided|multiplied) by)\s+{_NUMBER_WORD}\b"
    r"|\s+(?:is|was)\s+(?:wrong|incorrect|not right|not correct)\b"
    r"|\s*(?:\u2014|--)\s*[0-9][0-9.,]*\s*(?:[?=\n]|\Z)"  # before a dash a remark may stand too: "18 \u2014 2 dollars for each"
)

_SIGN_IS_OPERATOR = re.compile(r"[0-9)}\]]%?[ \t]+\Z")

# "26 eggs - 13 eggs": a hyphen between other words is a dash.
_SAME_UNIT_BEFORE = re.compile(r"[0-9]\s*([A-Za-z]+)\s*-\s*[$(]*\Z")

_WORD_AFTER = re.compile(r"\s*([A-Za-z]+)\b")

_SAME_UNIT_AFTER = re.compile(r"\s*([A-Za-z]+)\s*-\s*[$(]*[0-9][0-9.,]*\s*([A-Za-z]+)")

_NOT_BEFORE = re.compile(
    rf"(?:{DENIALS})\s+(?:be |equal(?: to)? |exactly |the (?:answer|number) )?(?:\\[(\[]|[$(\s])*\Z", re.IGNORECASE
)

_OPERATION_OF = (
    r"\b(?:sum|total|difference|product|quotient|ratio) (?:of|between) |\b(?:add|subtract|tak|multiply|divid)(?:e|ing)? "
)

_OPERANDS_BEFORE = re.compile(
    rf"(?:{_OPERATION_OF})(?:[$(]*[0-9][0-9.,]*[$)]*,? )+(?:and |from |to |by |with )?[$(]*\Z", re.IGNORECASE
)

_OPERATION_BEFORE = re.compile(rf"(?:{_OPERATION_OF})[$(]*\Z", re.IGNORECASE)

_OPERANDS_AFTER = re.compile(r"[$)]*\s*(?:, ?(?:and )?|(?:and|from|to|by|with) )[$(]*[0-9]")

# Each number is atomic: else "1,000,000" is one number or three in 2^n ways.
_LISTED = rf"\$?-?(?>{DIGITS})%?"

_LIST_OF_NUMBERS = re.compile(
    rf"\s*(?:(?:either|between)\s+)?{_LISTED}(?:(?:\s*+(?:[,;/:=\u00b1'-]|(?:,\s*+)?(?:or|and)\b"
    rf"|(?:to|through|out of|per|R|remainder)(?![A-Za-z]))\s*+(?:maybe\s+|perhaps\s+)?|\s++){_LISTED})++"
    r"(?:\s*+[A-Za-z]++){0,2}\W*"
    rf"|{_LISTED}\s*+(?:feet|foot|ft|yards?|pounds?|lbs?|hours?|minutes?|dollars?)\b,?(?:\s++and)?\s++"
    rf"(?!0+\s){_LISTED}\s*+(?:inch(?:es)?|in|ounces?|oz|minutes?|seconds?|cents?)\W*",  # "6 feet 2 inches"
    re.IGNORECASE,
)


def canonical_decimal(digits: str) -> str:
    """A decimal without commas and superfluous zeros, so that equal numbers are equal strings."""
    whole, _, rest = digits.replace(",", "").partition(".")
    rest = rest.rstrip("0")
    return (whole.lstrip("0") or "0") + ("." + rest if rest else "")


_LATEX_GROUPING = re.compile(r"(?<=[0-9])(?:\\[,;:! ]|\{,\}|,\\!|[\u2009\u202f])(?=[0-9]{3}(?![0-9]))")


_VULGAR = {one: unicodedata.normalize("NFKC", one).replace("\u2044", "/") for one in "½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅐⅛⅜⅝⅞⅑⅒"}

_LATEX_FRACTION = re.compile(
    r"(?:(?<![0-9A-Za-z.,/^_}])([0-9]{1,9})\s?)?\\[dtc]?frac(?:\s*\{\s*([0-9]{1,15})\s*\}\s*\{\s*([0-9]{1,15})\s*\}|\s?([0-9])\s?([0-9]))"
)

_MIXED_NUMBER = re.compile(r"(?<![0-9A-Za-z.,/^_}])([0-9]{1,9}) ([0-9]{1,9})/([0-9]{1,9})(?![0-9/.,]?[0-9])")

# Type around a number: "**26** - **13**", "`26` - `13`", "_18_". In 3**4 the stars are a power.
_MARKS_AROUND_NUMBER = re.compile(
    r"(?<![0-9])\*\*|\*\*(?![0-9])|`|(?<![\w*])\*([$0-9.,%-]+)\*(?![\w*])|(?<![\w\\])_([$0-9.,%-]+)_(?!\w)"
)

_SIGN_IN_WORDS = re.compile(r"(?<![\w)\]}])(?:negative|minus)\s+(?=\$?[.0-9])", re.IGNORECASE)

# "26 eggs minus 13", "x minus 5" and "twenty minus 13" subtract; "from 3 degrees to minus 5" does not.
_SUBTRACTS = re.compile(
    rf"(?:[0-9)}}\]][%}}\s$]*(?:[A-Za-z]+\s+){{0,2}}|\b(?:[a-z]|{NUMERALS_IN_WORDS})\s+)"
    r"(?<!\bto )(?<!\bis )(?<!\bof )(?<!\band )(?<!\bequals )\Z",
    re.IGNORECASE,
)


def _sign_of_word(match: re.Match[str]) -> str:
    before = match.string[max(0, match.start() - OPERAND_CONTEXT_CHARS) : match.start()]
    return match[0] if match[0][0] in "mM" and _SUBTRACTS.search(before) else "-"


# A hyphen that does not break, a figure dash, a raised minus; the horizontal bar is a dash between clauses.
_DASHES = MINUS_SIGNS | str.maketrans("\u2010\u2011\u2012\u02d7\u207b\u2015", "-----\u2014")


def _normalise(text: str) -> str:
    r"""A text with each number written in one way.

    ASCII digits and minus signs, without the marks that LaTeX sets between thousands (`12\,000` and `12{,}000` are 12000) and
    without type around numbers; `\frac34` and ¾ are 3/4, 2½ and "2 1/2" are 5/2, and "negative 18" is -18.
    """
    text = fold_digits(INVISIBLE.sub("", text).translate(_DASHES)).replace("\\$", "$")
    text = _LATEX_GROUPING.sub("", text).replace("{,}", ",").replace("\u2044", "/")
    if not text.isascii():
        for character, fraction in _VULGAR.items():
            if character in text:
                text = re.sub(rf"(?<=[0-9])\s?{character}", f" {fraction}", text).replace(character, fraction)
    if "*" in text or "`" in text or "_" in text:
        text = _MARKS_AROUND_NUMBER.sub(lambda m: m[1] or m[2] or "", text)
    if "frac" in text:
        text = _LATEX_FRACTION.sub(_plain_fraction, text)
    if "/" in text:
        text = _MIXED_NUMBER.sub(_improper_fraction, text)
    return _SIGN_IN_WORDS.sub(_sign_of_word, text)


def _plain_fraction(match: re.Match[str]) -> str:
    top, bottom = match[2] or match[4], match[3] or match[5]
    space = " " if match.string[: match.start()][-1:].isalnum() else ""
    return f"{space}{int(match[1] or 0) * int(bottom) + int(top)}/{bottom}"


def _improper_fraction(match: re.Match[str]) -> str:
    whole, top, bottom = map(int, match.groups())
    return f"{whole * bottom + top}/{bottom}" if top < bottom else match[0]


_MAGNITUDE = re.compile(
    rf"(?:[\s~-]|\\text\w*\s*\{{\s*|\\[ ,;])*\b((?i:{'|'.join(MAGNITUDES)}|dozen))(?i:s)?\b(?!-)|([kKM])(?![\w-])"
)

_LETTER_MAGNITUDES = {"k": "thousand", "m": "million"}

MAX_DIGITS_BEFORE_MAGNITUDE = 40


def _canonical_number(match: re.Match[str]) -> str:
    """A number of a text in canonical form, times the magnitude behind it: "1.5 million" is 1500000."""
    top = canonical_decimal(match[2])
    if (magnitude := _magnitude_after(match)) is not None:
        top = _times(top, magnitude[1].lower() if magnitude[1] else _LETTER_MAGNITUDES[magnitude[2].lower()])
    negative = match[1] == "-" or "$-" in match[0]
    bottom = f"/{canonical_decimal(match[3])}" if match[3] else (match[4] or "").lower()
    return ("-" if negative and top != "0" else "") + top + bottom + ("%" if match[5] else "")


def _magnitude_after(match: re.Match[str]) -> re.Match[str] | None:
    if match[3] or match[4] or match[5] or len(match[2]) > MAX_DIGITS_BEFORE_MAGNITUDE:
        return None
    return _MAGNITUDE.match(match.string, match.end())


def _times(digits: str, magnitude: str) -> str:
    whole, _, rest = digits.partition(".")
    if magnitude == "dozen":
        product = str(int(whole + rest) * 12).zfill(len(rest) + 1)
        return canonical_decimal(f"{product[: len(product) - len(rest)]}.{product[len(product) - len(rest) :]}")
    zeros = MAGNITUDES[magnitude]
    rest = rest.ljust(zeros, "0")
    return canonical_decimal(f"{whole}{rest[:zeros]}.{rest[zeros:]}")


def first_number(text: str) -> str | None:
    """The first number in a text, in canonical form; None if there is none, or if it is a part of an expression."""
    text = _normalise(text)
    match = _NUMBER_IN_TEXT.search(text)
    return None if match is None or _is_operand(text, match) else _canonical_number(match)


OPERAND_CONTEXT_CHARS = 48


def _is_operand(text: str, match: re.Match[str]) -> bool:
    """Whether a number in a text is a part of an expression, such as the 13 of "26 - 13", or is denied: "not 13"."""
    end = match.end() - (len(match[0]) - len(match[0].rstrip()))
    if _OPERATOR_AFTER.match(text, end):  # first, since what follows searches the text before the number
        return True
    before = text[max(0, match.start() - OPERAND_CONTEXT_CHARS) : match.start()]
    if match[0][0] in "+-" and _SIGN_IS_OPERATOR.search(before):
        return True
    unit, following, units = _SAME_UNIT_BEFORE.search(before), _WORD_AFTER.match(text, end), _SAME_UNIT_AFTER.match(text, end)
    if (unit and following and unit[1] == following[1]) or (units and units[1] == units[2]):
        return True
    return bool(
        _OPERATOR_BEFORE.search(before)
        or _OPERANDS_BEFORE.search(before)
        or (_OPERATION_BEFORE.search(before) and _OPERANDS_AFTER.match(text, end))
        or _NOT_BEFORE.search(before)
    )


def last_result(text: str) -> str | None:
    """The last number in a text that is not a part of an expression, in canonical form ("1,234.50" -> "1234.5"), or None.

    "26 - 13" has none, "26 - 13 = 13" has 13, and "18 (2 × 9)" has 18. A minus is a sign only if there is nothing on its left to
    subtract from. A number at the end of a word (CO2) does not count. Takes linear time.
    """
    text = _normalise(text)
    found = reversed(list(_NUMBER_IN_TEXT.finditer(text)))
    match = next((one for one in found if not _is_operand(text, one)), None)
    return None if match is None or _is_alternative(match) else _canonical_number(match)


_HAS_DIGIT = re.compile(r"[\d\u00bc-\u00be\u2150-\u218b]")


def has_digit(text: str) -> bool:
    """Whether a text has a digit or a sign for a fraction."""
    return _HAS_DIGIT.search(text) is not None


def digits_for_words(text: str) -> str:
    """A text that has no digit, with its numbers in words as digits; any other text as it is."""
    return text if has_digit(text) else words_as_digits(text)


# In a text whose numbers in words are digits already. `said` is bounded, so that a long text takes linear time.
_NUMBER_IS_STATED = re.compile(
    r"(?:\A|[,!?:\n]|\.(?![0-9])|(?P<verb>(?:=|['\u2019]s\b"
    r"|\b(?:is|are|was|be|equals?|(?:equal|comes?|adds? up|amounts?) to|makes?|gives?|leaves?|totals?)\b)"
    r"(?: (?:about|exactly|only|just|approximately|roughly)\b)?))"
    r"[\s\"'*_#(\u201c\u2018]*"
    r"(?=(?P<said>(?:(?:minus|negative) )?[0-9](?:\.[0-9]|[^.,;:!?=\n]){0,80})(?![^.,;:!?=\n]))",
    re.IGNORECASE,
)

_FEW_WORDS = re.compile(r"(?:(?:minus|negative) )?[0-9.]+(?:\W+\w+){0,4}[\W_]*", re.IGNORECASE)

_NUMBER_ALONE = re.compile(
    r"(?:(?:minus|negative) )?[0-9.]+"
    r"(?: it is| is (?:the|my|your) (?:answer|result|total|sum)"
    r"|(?: [a-z]+)?(?: left| remain(?:ing)?| in all| in total| altogether)?)"
    r"[\W_]*",
    re.IGNORECASE,
)


def is_number_alone(text: str) -> bool:
    """Whether a text is a number, at most with a word behind it: "18 doubloons", "18 it is", "18 eggs left"."""
    return _NUMBER_ALONE.fullmatch(text) is not None


def stated_number(text: str) -> str | None:
    """The last number that is stated in a text whose numbers were in words: "2 + 2 = 4" -> "4". Linear time.

    It is stated alone in its clause ("4!", "Why, 4 doubloons!"), or behind "is", "makes" and the like. "3 is a number" states
    none.
    """
    for match in reversed(list(_NUMBER_IS_STATED.finditer(text))):
        form = _FEW_WORDS if match["verb"] else _NUMBER_ALONE
        if form.fullmatch(match["said"]) and (number := number_in_box(match["said"])) is not None:
            return number
    return None


_ALTERNATIVE_BEFORE = re.compile(
    rf"({DIGITS}(?:/[0-9]+)?%?),?\s+(?:or|maybe|perhaps)\s+(?:maybe\s+|perhaps\s+|even\s+)?[$(]*\Z", re.IGNORECASE
)


def _is_alternative(match: re.Match[str]) -> bool:
    """Whether "or" joins a number to a number of another value before it: "17 or 18", but not "1/2 or 0.5"."""
    context = match.string[max(0, match.start() - OPERAND_CONTEXT_CHARS) : match.start()]
    before = _ALTERNATIVE_BEFORE.search(context)
    return (
        before is not None and _size(before[1]) != _size(match[0])
        and not _OPERATOR_BEFORE.search(context[: before.start()])  # "9 times 2, or 18"
    )  # fmt: skip


def _size(number: str) -> Fraction | None:
    plain = number.strip(" $+").replace("$", "").replace("\\", "").replace(",", "")
    try:
        return Fraction(plain.removesuffix("%").strip()) / (100 if plain.endswith("%") else 1)
    except (ValueError, ZeroDivisionError):
        return None


_NAME_BEFORE = re.compile(r"\s*(?![a-z]{2}\b)(?:\\?[A-Za-z]+(?:_\{?\w+\}?)?|\\text\{[^{}]*\})\s*(?:=|\\approx)\s*")

_POWER_OF_UNIT = re.compile(
    r"(?<=[0-9 ])(?P<unit>[ckm]?m|ft|in|yd|mi|units?|feet|inches|miles|meters?) ?\^ ?\{? ?[23](?![0-9]) ?\}?"
)

_UNIT_AROUND = re.compile(r"\^ ?\{? ?(?:[23]|\\circ) ?\}?|°|\\degree|[€£¥₹¢]|\\?[$%]")

# "km/h", "$18/hour": words around a slash. In "18/x" it divides.
_UNIT_SLASH = re.compile(
    r"(?<=[^\W\d_]) ?/ ?(?=[^\W\d_])|/ ?(?=(?:second|minute|hour|day|week|month|year|person|kg|km|mile|pound|item)s?\b)"
)

_BRACKETS_AROUND = re.compile(r"\s*\(([^()]*)\)\s*")

_WORDS_IN_BRACKETS = re.compile(r"\( ?([^\W\d_]{2,}(?:[ .,]+[^\W\d_]{2,})*) ?\)")

# A single letter is a variable, unless it is a unit or the article. These words have a value.
_VALUE_IN_WORDS = re.compile(r"(?<![^\W\d_])(?:[A-Za-z](?![^\W\d_]|\.)|(?:pi|sqrt|log|ln|sin|cos|tan)(?![^\W\d_]))|π")

_OPERATOR = re.compile(r"[-+*/^=<>()\[\]{}|\\_×÷·⋅√±≤≥~]")


def number_in_box(content: str) -> str | None:
    r"""The one number of a box with words, units or signs around it: "18 doubloons", `\textbf{18}`, "x = 18", "€18". Else None.

    None for an expression: the question's own formula, boxed, is no answer. Words that change the value ("not 18", "half 18",
    "18 or nineteen") make an expression; "negative 18" and "1.5 million" are read.
    """
    match = _only_number(content, _NUMBER_IN_TEXT)
    return None if match is None else _canonical_number(match)


def written_number_in_box(content: str) -> str | None:
    """As `number_in_box`, in the notation of any language and as it is written: "2,5 km" holds "2,5"."""
    match = _only_number(content, _WRITTEN_NUMBER)
    return None if match is None or _MAGNITUDE.match(match.string, match.end()) else match[0]


def _only_number(content: str, number: re.Pattern[str]) -> re.Match[str] | None:
    text = re.sub("(?<=[0-9])[\u00a0~](?=[0-9]{3}(?![0-9]))", "", _normalise(INVISIBLE.sub("", content)))
    text = without_text_commands(text.replace("\\$", "$").replace("\\%", "%"))
    text = re.sub(r"\\[,;:! ]|\\q?quad|\\(?:left|right)(?=[()\[\]])|\*\*|[{}~]", " ", text)
    if brackets := _BRACKETS_AROUND.fullmatch(text):
        text = brackets[1]
    if name := _NAME_BEFORE.match(text):
        text = text[name.end() :]
    text = _POWER_OF_UNIT.sub(r"\g<unit> ", text)
    found = list(number.finditer(text))
    if len(found) != 1:
        return None
    (match,) = found
    magnitude = _MAGNITUDE.match(text, match.end())
    if has_value_words(text[: match.start()] + " # " + text[magnitude.end() if magnitude else match.end() :], match[0]):
        return None
    rest = _UNIT_AROUND.sub(" ", text[: match.start()] + " " + text[magnitude.end() if magnitude else match.end() :])
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


_JOINING_WORDS = "or and maybe perhaps possibly also even either both option choice answer"


def _names_other_letters(rest: str, letter: str, offered: Collection[str]) -> bool:
    """Whether nothing but other letters that are offered follows a letter: "B: A", "B) or maybe A", "A. B. C. D."."""
    words = [word for word in re.findall(r"[A-Za-z0-9']+", rest) if word.lower() not in _JOINING_WORDS.split()]
    if not words or any(len(word) > 1 or not word.isupper() for word in words):
        return False
    return any(word != letter and (not offered or word in offered) for word in words)


def _plain_choice(text: str) -> str:
    plain = unwrap_text(clean_latex(without_type(text)), after=" ")
    return " ".join(plain.replace("{", " ").replace("}", " ").split()).strip(" *_.\"'`")


def is_list_of_letters(text: str, offered: Collection[str]) -> bool:
    """Whether a text names two choices that are offered: "B and C"."""
    plain = _plain_choice(text)
    match = _FIRST_LETTER.match(plain)
    return match is not None and _names_other_letters(plain[match.end() :], match[1], offered)


_FIRST_LETTER = re.compile(r"(?:(?:either|both|option|choice|answer)s?\s+)*[(\[]?([A-Z])(?![A-Za-z0-9'])[)\]]?", re.IGNORECASE)

_MARKED_LETTER = re.compile(r"(?<![A-Za-z0-9'])([A-Z])[).:]\s*(.*)", re.DOTALL)

_LETTER_AND_REST = re.compile(r"[(\[]?([A-Za-z])[)\]]?[\s:.,;(\[\u2013\u2014-]+(\S.*?)\s*\Z", re.DOTALL)


def letter_and_rest(text: str) -> tuple[str, str] | None:
    """A letter and the text behind it, in a box without the usual mark between them: "B (Apple)", "B, Apple"."""
    match = _LETTER_AND_REST.match(_plain_choice(text))
    return None if match is None else (match[1].upper(), match[2])


def choice_letter(text: str, offered: Collection[str]) -> str | None:
    r"""The letter that a box or a named answer states: "C", "(c)", `\text{C}`, "C) the moon", "Option C"; None if it states none.

    Brackets of both kinds, `\mathbf{C}` and "C - the moon" are read too. A letter that is not offered counts as none. Without
    choices in `offered` every letter counts.
    """
    plain = _NOT_THE_OTHERS.sub("", _plain_choice(text))
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
    rest = plain[match.end() :]
    own = offered.get(letter, "") if isinstance(offered, Mapping) else ""
    if _names_other_letters(rest, letter, offered) and rest.strip(" ().:") != own.strip(" ().:"):
        return None
    if isinstance(offered, Mapping) and any(
        one[1] in offered and one[1] != letter and one[0] not in own and offered[one[1]] and one[2].startswith(offered[one[1]])
        for one in _MARKED_LETTER.finditer(rest)
    ):
        return None  # "B) Apple or A) Rock"
    return letter if not offered or letter in offered else None


# "B, not A", "B (not A)": the choice that is denied.
_NOT_THE_OTHERS = re.compile(r"(?<=[A-Za-z)\]])\s*[,;]?\s*\(?(?:and )?not (?:\(?[A-Z]\)?(?:,|\bor\b|\band\b|\s|\)){0,4}){1,9}\Z")

# Bounded, so that a text of letters takes linear time.
_LETTERS = r"\(?[A-Z]\)?(?:\s*(?:,|/|&|,?\s*(?:and|or|nor))\s*\(?[A-Z]\)?(?![A-Za-z0-9'])){0,9}+"

_DENIED_LETTERS = re.compile(
    rf"(?<![A-Za-z0-9'])({_LETTERS})(?:\s*(?:[:)-]\s*)?(?:(?:is|are|was|were|seems|would be|must be)\s+)?(?:all\s+)?"
    r"(?:not\b|wrong\b|incorrect\b|false\b|ruled out\b|eliminated\b)|\s+(?:isn|aren|can|doesn|don|won)['\u2019]t\b|\s+cannot\b)"
    rf"|(?:{DENIALS}|\b(?:[Nn]ot|[Nn]either|[Nn]one of|[Ee]verything (?:but|except)|over|eliminates?|rules? out|excludes?))\s+"
    rf"(?:be\s+)?(?:(?:the\s+)?(?:option|choice|answer)s?\s+)?({_LETTERS})(?![A-Za-z0-9'])"
)

_LETTER_ALONE = re.compile(r"[\s*_\"'`(\[]*([A-Z])[\s*_\"'`)\].]*")

_LETTER_BEFORE_OR = re.compile(r"(?<![A-Za-z0-9'])\(?([A-Z])\)?\s*(?:,?\s*\bor\b|/)\s*\Z|\bbetween \(?([A-Z])\)? and \(?\Z")

# "B and D", "A, B, C, D": letters and no choice.
_ONLY_LETTERS = re.compile(r"[^\w:]*+(?:(?:[A-Z](?![A-Za-z0-9'])|and\b|or\b)[^\w:]*+)++")

# A choice is stated, whatever is said of other letters behind it: "B, since D ...", "I choose B over D", "B is correct".
_CHOSEN_LETTER = re.compile(
    r"\A[\s*_\"'(]*([A-Z])[)*_]*(?:,\s*|\s+)(?:since|because|as)\b"
    r"|\b(?:I(?:'ll| will| would)? (?:choose|chose|pick|picked|select|go with)|[Mm]y (?:choice|pick) is) "
    r"(?:(?:the )?(?:option|choice|answer|letter) )?[*_(]*([A-Z])"
    r"(?![A-Za-z0-9']|[)*_]*\s*(?:,|or\b|and\b|/)\s*\(?[A-Z](?![A-Za-z']))"
    r"|(?<![A-Za-z0-9'])([A-Z])[)*_]* is (?:right|correct|the (?:(?:right|correct|best) )?(?:answer|choice|option|one))\b"
)

_SHORT_ANSWER = re.compile(r"\W*([A-Za-z])\W*")


def _letter_of_first_line(text: str, offered: Collection[str]) -> str | None:
    """The letter of a first line that is a choice and nothing else ("B) Apple"), if no later line is one: else it is a list."""
    if not isinstance(offered, Mapping):
        return None
    letters: list[str] = []
    for line in text.strip().splitlines():
        stated = _LETTER_AND_REST.match(_plain_choice(line)) if len(line) < 1000 else None
        is_choice = stated is not None and stated[2].strip(" .*_").casefold() == offered.get(stated[1], "").strip(" .").casefold()
        if not letters and not is_choice:
            return None
        letters += [stated[1]] if stated is not None and is_choice else []
    return letters[0] if len(letters) == 1 else None


def last_choice_letter(text: str, offered: Collection[str]) -> str | None:
    """The last capital letter that is a word of its own, is offered and is not denied ("not A", "A is wrong").

    A letter that "or" joins to another is none: "A or B". A first line that is a letter alone counts before the letters of an
    explanation under it, a letter that is called the choice ("I choose B") before others, and a letter that is the whole text may
    be a small one. Several letters and no other word are none. "I" and "A" before a word are words.
    """
    if len(text) < 20 and (match := _SHORT_ANSWER.fullmatch(text)) and match[1].upper() in offered:
        return match[1].upper()
    first, _, rest = text.strip().partition("\n")
    if (match := _LETTER_ALONE.fullmatch(first)) and (not offered or match[1] in offered):
        others = [one[1] for line in rest.splitlines() if (one := _LETTER_ALONE.fullmatch(line))]
        if all(one == match[1] for one in others):
            return match[1]
    if letter := _letter_of_first_line(text, offered):
        return letter
    if _ONLY_LETTERS.fullmatch(text) and len({one[1] for one in _LETTER.finditer(text)}) > 1:
        return None
    denied = frozenset(place for one in _DENIED_LETTERS.finditer(text) for place in range(one.start(), one.end()))
    for match in (*reversed(list(_CHOSEN_LETTER.finditer(text))), *reversed(list(_LETTER.finditer(text)))):
        letter = match[match.lastindex or 1]
        if (offered and letter not in offered) or match.start(match.lastindex or 1) in denied:
            continue
        bare = match[0] == letter
        if bare and letter in "IA" and (_IS_WORD.match(text, match.end()) or letter == "I"):
            continue
        other = _LETTER_BEFORE_OR.search(text, max(0, match.start() - 16), match.start())
        before = other and (other[1] or other[2])
        return None if before and before != letter and (not offered or before in offered) else letter
    return None


_WRITTEN_NUMBER = re.compile(
    r"(?<![A-Za-z\u00c0-\u024f0-9_.,])(?:(?<![\w)\]}.][ ])[-+])?[$\u20ac\u00a3]?-?"
    r"(?:[0-9]+(?:[.,][0-9]+)?\s?/\s?[0-9]+(?![0-9.,]*/)"
    r"|[0-9]+(?:(?:[.,'\u2019\u00a0\u202f\u2009]|[ ](?=[0-9]{3}(?![0-9])))[0-9]+)*"
    r"(?:[eE][-+]?[0-9]{1,3}(?!\w))?|\.[0-9]+)(?:\s?%)?"
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
    match = next((one for one in reversed(list(_WRITTEN_NUMBER.finditer(text))) if not _is_operand(text, one)), None)
    if match is None or _is_alternative(match):
        return None
    english = _NUMBER_IN_TEXT.match(text, match.start()) if _MAGNITUDE.match(text, match.end()) else None
    return match[0] if english is None else _canonical_number(english)


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
