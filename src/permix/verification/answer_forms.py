r"""The forms of a final answer: `read_form` reads a whole text, `forms_equal` compares two forms.

A form is a number or an expression with its unit, a list, a tuple, an interval, a set, a matrix, an equation, an inequality, a
ratio, a time of day, or a number in a base.

The gold decides what an answer must look like: where the gold has a plain number, the answer must have one (`26-13` is no answer
for 13).
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise

from permix.verification.expressions import (
    FUNCTIONS,
    MAX_DEPTH,
    Node,
    UnreadableError,
    are_proportional,
    expressions_equal,
    is_less,
    is_plain_number,
    number_node,
    parse_expression,
    variables_of,
)
from permix.verification.latex import Token, UnreadableTokenError, has_value_words, tokenize, unwrap_text

MAX_ITEMS = 60

# One spelling for each unit. Units of other words (apples, students) are read and ignored.
_UNIT_SPELLINGS = """
    mm millimeter millimetre; cm centimeter centimetre; m meter metre; km kilometer kilometre;
    in inch inche; ft foot feet; yd yard; mi mile; acre;
    s sec second; min minute; h hr hour; day; week wk; month; year yr; am; pm;
    mg milligram; g gram; kg kilogram; t ton tonne; lb pound; oz ounce;
    ml milliliter millilitre; l liter litre; gal gallon; qt quart; pt pint; cup;
    dollar usd $; cent ¢; euro eur €; gbp £; yen ¥; rupee ₹; % percent pct;
    degree deg °; rad radian; celsius; fahrenheit; kelvin;
    mph; km/h kph kmh; hz hertz; j joule; n newton; w watt
"""

_UNITS = {spelling: unit.split()[0] for unit in _UNIT_SPELLINGS.split(";") for spelling in unit.split()}

# These words may follow a number without `\text`. Single letters may not: they are variables.
_BARE_UNITS = frozenset(spelling for spelling in _UNITS if len(spelling) > 1 and spelling.isalpha()) - {"am", "pm"}

_UNIT_FILLERS = frozenset(["unit", "square", "cubic", "sq", "cu", "of", "the", "a", "an", "per", "each", "total", "about"])

_WORDS_WITH_VALUE = """
    pi base am pm and if when where for no none times
"""

_CURRENCIES = {"\\$": "dollar", "$": "dollar", "€": "euro", "£": "gbp", "¥": "yen", "₹": "rupee", "¢": "cent", "%": "%"}

_RELATIONS = {
    "=": "=", "approx": "=", "<": "<", ">": ">", "le": "<=", "ge": ">=", "ne": "!=", "in": "in", "sim": "~", "equiv": "==",
}  # fmt: skip

_FLIPPED = {"<": ">", ">": "<", "<=": ">=", ">=": "<="}

_OPENING = frozenset({"(", "[", "{", "\\{", "langle", "lfloor", "lceil", "begin"})

_CLOSING = frozenset({")", "]", "}", "\\}", "rangle", "rfloor", "rceil", "end"})

INFINITY = Node("infinity", ())


@dataclass(frozen=True)
class Quantity:
    """An expression with its unit. `unit` is empty where there is none, or only words such as "apples"."""

    node: Node
    unit: str = ""


@dataclass(frozen=True)
class Assignment:
    """`x = 5`, `f(x) = x^2`: a name and a form. The name is empty where it is a text."""

    name: str
    value: "Form"


@dataclass(frozen=True)
class ItemCollection:
    """Several forms. `brackets`: "()", "[)" and the like for a tuple or an interval, "{}" for a set, "" for a list."""

    brackets: str
    items: tuple["Form", ...]


@dataclass(frozen=True)
class IntervalUnion:
    """A union of intervals, sorted. Each is (low, high, low is included, high is included)."""

    intervals: tuple[tuple[Node, Node, bool, bool], ...]


@dataclass(frozen=True)
class Matrix:
    """Rows of forms."""

    rows: tuple[tuple["Form", ...], ...]


@dataclass(frozen=True)
class Relation:
    """An equation or inequality between two expressions: `left <relation> right`. A ">" is written as "<"."""

    relation: str
    left: Node
    right: Node


@dataclass(frozen=True)
class Ratio:
    """`3 : 4`, or a time of day without its half. `clock`: the time, if it can be one."""

    parts: tuple[Node, ...]
    clock: str = ""


@dataclass(frozen=True)
class Words:
    """A text that is compared letter by letter, such as a time of day or a number in a base."""

    text: str
    without_mark: str = ""


Form = Quantity | Assignment | ItemCollection | IntervalUnion | Matrix | Relation | Ratio | Words


def read_form(text: str) -> Form:
    """The form of a text that `clean_latex` returned. Raises UnreadableError if a part of it cannot be read."""
    try:
        if (written := _time_or_base(text)) is not None:
            return written
        text = _one_interval_notation(text)
        tokens = tokenize(text)
        if text[:1] in "([<\\{" and "," in text and any(token.text in _OPENING for token in tokens):
            tokens = tokenize(text, thousands=False)  # in (1,200) the comma separates two coordinates
        return _read_list(_commands_for_words(tokens), depth=0)
    except UnreadableTokenError as error:
        raise UnreadableError(str(error)) from None
    except RecursionError:
        raise UnreadableError("nested too deeply") from None


# ]2, 3[ is (2, 3), and [2, 3[ is [2, 3).
_INTERVAL_OF_SQUARE_BRACKETS = re.compile(r" ?([\[\]])([^\[\]]+,[^\[\]]+)([\[\]]) ?")

_SET_BUILDER = re.compile(
    r"\\\{ ?([A-Za-z])(?: ?\\in ?(?:\\mathbb ?\{? ?R ?\}?|\\R\b))? ?(?:\||:|\\text ?\{ ?such that ?\}) ?"
    r"((?:(?!\\\}).)*(?:[<>]|\\[lg]e(?![A-Za-z]))(?:(?!\\\}).)*)\\\}"
)

_ABSOLUTE_BOUND = re.compile(r"\| ?([A-Za-z]) ?\| ?(<|>|\\le(?![A-Za-z])|\\ge(?![A-Za-z])) ?([0-9]+(?:[./][0-9]+)?)")


def _one_interval_notation(text: str) -> str:
    r"""A text with intervals in the notation that is read, not as `]2,\infty[`, `(1) U (2)`, `\{x \mid x>2\}`, `|x|>1`."""
    if (builder := _SET_BUILDER.fullmatch(text)) is not None:
        text = builder[2].strip()
    if (bound := _ABSOLUTE_BOUND.fullmatch(text)) is not None:
        name, sign, size = bound.groups()
        opposite = {"<": ">", ">": "<", "\\le": "\\ge", "\\ge": "\\le"}[sign]
        joint = "or" if sign in (">", "\\ge") else None
        return (
            f"{name} {opposite} -{size} \\text{{ or }} {name} {sign} {size}" if joint else f"-{size} {sign} {name} {sign} {size}"
        )
    if text[:1] == "]" or text[-1:] == "[":
        begins, ends = {"]": "(", "[": "["}, {"[": ")", "]": "]"}
        parts = map(_INTERVAL_OF_SQUARE_BRACKETS.fullmatch, text.split("\\cup"))
        return "\\cup".join(f"{begins[one[1]]}{one[2]}{ends[one[3]]}" if one else "?" for one in parts)
    return re.sub(r"(?<=[)\]]) ?U ?(?=[(\[])", r"\\cup ", text)


_TIME = re.compile(r"([0-9]{1,2}) ?: ?([0-9]{2})(?: ?: ?([0-9]{2}))? ?(?:\\text ?\{ ?)?([ap]) ?\.? ?m\.? ?\}?", re.IGNORECASE)

_HOUR = re.compile(r"([0-9]{1,2}) ?(?:\\text ?\{ ?)?([ap]) ?\.? ?m\.? ?\}?", re.IGNORECASE)

_IN_BASE = re.compile(r"(-?[0-9A-Za-z]+(?:\.[0-9A-Za-z]+)?) ?_ ?(?:\{ ?(?:\\text\{)?([0-9]+|[a-z]+)\}?(?: ?\})?|([0-9]))")


_BASE_IN_OTHER_WORDS = re.compile(
    r"\(? ?(-?[0-9A-Za-z]+) ?\)? ?(?:_[ {]*([0-9]+|[a-z]+)[ }]*|_?[ {(]*(?:in )?base ?([0-9]+|[a-z]+)[ )}]*)"
)

_BASES = {"two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7", "eight": "8", "nine": "9", "ten": "10"}


def _time_or_base(text: str) -> Words | None:
    if match := _HOUR.fullmatch(text):
        return Words(f"{int(match[1])}:00{match[2].lower()}m")
    if match := _TIME.fullmatch(text):
        clock = f"{int(match[1])}:{match[2]}" + (f":{match[3]}" if match[3] else "")
        return Words(f"{clock}{match[4].lower()}m", without_mark=clock)
    if (match := _IN_BASE.fullmatch(text) or _BASE_IN_OTHER_WORDS.fullmatch(unwrap_text(text))) and match[1].lstrip("-")[
        :1
    ].isdigit():
        digits = match[1].upper().lstrip("0") or "0"
        base = match[2] or match[3]
        return Words(f"{digits}_{_BASES.get(base, base)}", without_mark=digits)
    return None


def _commands_for_words(tokens: list[Token]) -> list[Token]:
    """Words that are functions become commands; short other words become products of letters, as in `xy`."""
    found: list[Token] = []
    for token in tokens:
        low = token.text.lower()
        if token.kind != "word":
            found.append(token)
        elif low in FUNCTIONS or low in ("sqrt", "pi", "theta", "alpha", "beta"):
            found.append(Token("command", low))
        elif low in ("infinity", "inf", "infty"):
            found.append(Token("command", "infty"))
        elif low in ("and", "or") or low in _BARE_UNITS or low.rstrip("s") in _BARE_UNITS or low.rstrip("s") in _UNIT_FILLERS:
            found.append(Token("text", low))
        elif len(token.text) <= 4:
            found.extend(Token("letter", letter) for letter in token.text)
        else:
            found.append(Token("text", token.text))
    return found


def _depth_change(token: Token) -> int:
    """1 for a token that opens a bracket or an environment, -1 for one that closes it, else 0."""
    mark = token.text if token.kind in ("sign", "command") else token.kind if token.kind in ("begin", "end") else ""
    return (mark in _OPENING) - (mark in _CLOSING)


def _split(tokens: Sequence[Token], is_separator: Callable[[Token], bool]) -> list[list[Token]]:
    """The parts between separators that are outside of all brackets."""
    parts: list[list[Token]] = [[]]
    depth = 0
    for token in tokens:
        depth += _depth_change(token)
        if depth == 0 and is_separator(token):
            parts.append([])
        else:
            parts[-1].append(token)
    return parts


def _is_comma(token: Token) -> bool:
    return (token.kind == "sign" and token.text in (",", ";")) or (
        token.kind == "text" and token.text.strip(" ,").lower() in ("and", "or", "and/or")
    ) or (token.kind == "command" and token.text in ("wedge", "vee", "land", "lor"))  # fmt: skip


def _read_list(tokens: Sequence[Token], depth: int) -> Form:
    if depth > MAX_DEPTH:
        raise UnreadableError("nested too deeply")
    parts = _split(tokens, _is_comma)
    if len(parts) == 1:
        return _read_one(parts[0], depth)
    parts = [part for part in parts if part]  # "a, and b"
    items = [_read_one(part, depth) for part in parts]
    if len(items) == 1:
        return items[0]
    if all(isinstance(one, IntervalUnion) for one in items) and any(_is_or(token) for token in tokens):
        return _union([interval for one in items if isinstance(one, IntervalUnion) for interval in one.intervals])
    if (union := _union_of_inequalities(items, is_or=any(_is_or(token) for token in tokens))) is not None:
        return union
    return ItemCollection("", _expand_pairs(items))


def _union_of_inequalities(items: Sequence[Form], *, is_or: bool) -> Assignment | None:
    """`x<-1 \\text{ or } x>1` as a union; None for other items. With a comma between them the two must have nothing in common."""
    names = {one.name for one in items if isinstance(one, Assignment) and isinstance(one.value, IntervalUnion)}
    values = [one.value for one in items if isinstance(one, Assignment) and isinstance(one.value, IntervalUnion)]
    if len(names) != 1 or len(values) != len(items):
        return None
    intervals = [interval for value in values for interval in value.intervals]
    if not is_or and not (len(intervals) == 2 and _are_apart(intervals)):
        return None
    return Assignment(names.pop(), _union(intervals))


def _are_apart(intervals: Sequence[tuple[Node, Node, bool, bool]]) -> bool:
    """Whether of two intervals one ends where the other begins, or before, and neither has a second bound."""
    left = next((one for one in intervals if one[0] == Node("neg", (INFINITY,))), None)
    right = next((one for one in intervals if one[1] == INFINITY), None)
    if left is None or right is None or left is right or INFINITY in (left[1], right[0]):
        return False
    return not is_less(right[0], left[1])


def _is_or(token: Token) -> bool:
    return (token.kind == "text" and "or" in token.text.lower()) or token.text in ("vee", "lor")


def _expand_pairs(items: Sequence[Form]) -> tuple[Form, ...]:
    r"""The items, with the two values of a `\pm` among them."""
    found: list[Form] = []
    for one in items:
        found.extend(one.items if isinstance(one, ItemCollection) and one.brackets == "" else (one,))
    if not found or len(found) > MAX_ITEMS:
        raise UnreadableError("no items, or too many")
    return tuple(found)


def _read_one(tokens: Sequence[Token], depth: int) -> Form:
    if depth > MAX_DEPTH:
        raise UnreadableError("nested too deeply")
    tokens = _without_text_around(tokens)
    if not tokens:
        raise UnreadableError("nothing to read")
    if any(token.text in ("pm", "mp") and token.kind == "command" for token in tokens):
        return _plus_and_minus(tokens, depth)
    if any(map(_is_relation, tokens)):
        parts = _split(tokens, _is_relation)
        if len(parts) > 1:
            signs = [_RELATIONS[token.text] for token in _outer(tokens) if _is_relation(token)]
            return _read_relation(parts, signs, depth)
    if any(token.kind == "command" and token.text == "cup" for token in tokens):
        return _read_union(_split(tokens, lambda token: token.kind == "command" and token.text == "cup"), depth)
    if tokens[0].text == "{" and _is_one_group(tokens):
        return _read_list(tokens[1:-1], depth + 1)
    if (bracketed := _read_bracketed(tokens, depth)) is not None:
        return bracketed
    if any(token.text == ":" and token.kind == "sign" for token in tokens):
        return _read_ratio(tokens)
    return _read_quantity(tokens)


def _read_ratio(tokens: Sequence[Token]) -> Ratio:
    parts = _split(tokens, lambda token: token.text == ":" and token.kind == "sign")
    texts = ["".join(token.text for token in part) for part in parts]
    is_clock = all(text.isdigit() for text in texts) and len(texts[0]) <= 2 and all(len(text) == 2 for text in texts[1:])
    return Ratio(tuple(map(parse_expression, parts)), ":".join([str(int(texts[0])), *texts[1:]]) if is_clock else "")


def _is_relation(token: Token) -> bool:
    return token.kind in ("command", "sign") and token.text in _RELATIONS


def _outer(tokens: Sequence[Token]) -> list[Token]:
    """The tokens outside of all brackets."""
    found, depth = [], 0
    for token in tokens:
        depth += _depth_change(token)
        if depth == 0:
            found.append(token)
    return found


def _without_text_around(tokens: Sequence[Token]) -> list[Token]:
    """The tokens without blank texts at the start and the end."""
    found = list(tokens)
    while found and found[0].kind == "text" and not found[0].text.strip(" .,:"):
        found.pop(0)
    while found and found[-1].kind == "text" and not found[-1].text.strip(" .,:"):
        found.pop()
    return found


def _plus_and_minus(tokens: Sequence[Token], depth: int) -> Form:
    signs = {"pm": "+-", "mp": "-+"}
    both = [
        [
            Token("sign", signs[token.text][which]) if token.kind == "command" and token.text in signs else token
            for token in tokens
        ]
        for which in (0, 1)
    ]
    first, second = (_read_one(one, depth + 1) for one in both)
    if isinstance(first, Assignment) and isinstance(second, Assignment):
        return Assignment(first.name, ItemCollection("", _expand_pairs([first.value, second.value])))
    return ItemCollection("", _expand_pairs([first, second]))


def _read_bracketed(tokens: Sequence[Token], depth: int) -> Form | None:
    """A set, tuple, interval or matrix that is the whole of the tokens; None if they are something else."""
    first, last = tokens[0], tokens[-1]
    if first.kind == "begin":
        return _read_matrix(tokens, depth)
    if first.kind not in ("sign", "command") or first.text not in ("(", "[", "\\{", "langle", "<") or not _is_one_group(tokens):
        return None
    opening = {"langle": "<"}.get(first.text, first.text)
    closing = {"rangle": ">"}.get(last.text, last.text)
    inside = tokens[1:-1]
    items = _split(inside, lambda token: token.kind == "sign" and token.text in (",", ";"))
    if opening == "\\{":
        if not inside:
            return Words("\\emptyset")
        return ItemCollection("{}", _expand_pairs([_read_one(part, depth + 1) for part in items]))
    if len(items) == 1 and opening == "(" and closing == ")":
        inner = _read_list(inside, depth + 1)
        return inner if not isinstance(inner, Quantity) else _read_quantity(tokens)
    return ItemCollection(opening + closing, _expand_pairs([_read_item(part, depth + 1) for part in items]))


def _read_item(tokens: Sequence[Token], depth: int) -> Form:
    infinite = _infinity(tokens)
    return Quantity(infinite) if infinite is not None else _read_one(tokens, depth)


def _infinity(tokens: Sequence[Token]) -> Node | None:
    texts = [token.text for token in tokens]
    if texts in (["infty"], ["+", "infty"]):
        return INFINITY
    return Node("neg", (INFINITY,)) if texts == ["-", "infty"] else None


def _is_one_group(tokens: Sequence[Token]) -> bool:
    """Whether the first token opens a bracket that the last one closes."""
    depth = 0
    for place, token in enumerate(tokens):
        depth += _depth_change(token)
        if depth == 0:
            return place == len(tokens) - 1 and place > 0
    return False


def _read_matrix(tokens: Sequence[Token], depth: int) -> Matrix:
    name = tokens[0].text.rstrip("*")
    if name not in ("pmatrix", "bmatrix", "matrix", "Bmatrix", "smallmatrix", "array") or tokens[-1].kind != "end":
        raise UnreadableError(f"cannot read {name}")
    inside = list(tokens[1:-1])
    if name == "array" and inside and inside[0].text == "{":
        inside = inside[[token.text for token in inside].index("}") + 1 :]
    rows = [row for row in _split(inside, lambda token: token.text == "\\\\") if row]
    found = tuple(
        tuple(_read_one(cell, depth + 1) for cell in _split(row, lambda token: token.text == "&" and token.kind == "sign"))
        for row in rows
    )
    if not found or len({len(row) for row in found}) != 1 or sum(map(len, found)) > MAX_ITEMS:
        raise UnreadableError("rows of different lengths, or too many cells")
    return Matrix(found)


def _read_relation(parts: list[list[Token]], signs: list[str], depth: int) -> Form:
    if signs == ["in"]:
        return Assignment(_name_of(parts[0]), _read_list(parts[1], depth + 1))
    if set(signs) == {"="}:
        return _read_equation(parts, depth)
    nodes = [_bound(part) for part in parts]
    if signs == ["!="] and nodes[0].op == "variable" and not variables_of(nodes[1]):
        low = Node("neg", (INFINITY,))
        return Assignment(nodes[0].args[0], _union([(low, nodes[1], False, False), (nodes[1], INFINITY, False, False)]))
    if set(signs) <= _FLIPPED.keys() and (interval := _interval_of(nodes, signs)) is not None:
        return interval
    if len(signs) == 1 and signs[0] in (*_FLIPPED, "!="):
        left, right, sign = nodes[0], nodes[1], signs[0]
        return Relation(_FLIPPED[sign], right, left) if sign in (">", ">=") else Relation(sign, left, right)
    raise UnreadableError("a relation that is not read")


def _bound(tokens: list[Token]) -> Node:
    """One side of an inequality: an expression, an infinity, or a name such as `f(x)`, which is a variable."""
    if (infinite := _infinity(tokens)) is not None:
        return infinite
    if tokens and tokens[0].kind == "letter" and _is_name(tokens):
        return Node("variable", ("".join(token.text for token in tokens),))
    return _read_quantity(tokens).node


def _interval_of(nodes: list[Node], signs: list[str]) -> Form | None:
    """The interval that a chain such as `0 < t <= 5` gives for its one variable; None if it is another kind of inequality."""
    names = [place for place, node in enumerate(nodes) if node.op == "variable"]
    if len(names) != 1 or any(_has_variables(node) for place, node in enumerate(nodes) if place != names[0]) or len(nodes) > 3:
        return None
    if len(nodes) == 3 and (names[0] != 1 or {sign[0] for sign in signs} not in ({"<"}, {">"})):
        return None
    low, high = (Node("neg", (INFINITY,)), False), (INFINITY, False)
    for place, sign in enumerate(signs):
        is_left = names[0] == place  # the variable is on the left of this sign
        bound, closed = nodes[place + 1] if is_left else nodes[place], sign.endswith("=")
        if (sign[0] == "<") == is_left:
            high = (bound, closed)
        else:
            low = (bound, closed)
    return Assignment(nodes[names[0]].args[0], IntervalUnion(((low[0], high[0], low[1], high[1]),)))


def _has_variables(node: Node) -> bool:
    return node not in (INFINITY, Node("neg", (INFINITY,))) and bool(variables_of(node))


def _read_equation(parts: list[list[Token]], depth: int) -> Form:
    name = _name_of(parts[0]) if _is_name(parts[0]) else None
    if name is not None and len(parts) == 2:
        return Assignment(name, _read_one(parts[1], depth + 1))
    values = [_read_quantity(part) for part in (parts if name is None else parts[1:])]
    if name is None and len(parts) == 2 and (variables_of(values[0].node) or variables_of(values[1].node)):
        return Relation("=", values[0].node, values[1].node)
    # "2/3 = 0.67 = 67%": the parts of a chain must be equal, whatever they are written as.
    if not all(_quantities_equal(left, right) or _quantities_equal(right, left) for left, right in pairwise(values)):
        raise UnreadableError("a chain of equations that does not hold")
    return values[-1] if name is None else Assignment(name, values[-1])


def _is_name(tokens: Sequence[Token]) -> bool:
    r"""Whether the tokens name what a value is given to: `x`, `a_1`, `f(x)`, `(x, y)`, `AB`, `\frac{AB}{CD}`, `\text{Area}`."""
    if not tokens or tokens[0].kind == "number":
        return False
    if any(token.kind == "sign" and token.text in "+-*/^<>" for token in tokens):
        return False
    if tokens[0].kind == "text":
        return not any(token.kind == "text" and has_value_words(f"{token.text} #") for token in tokens)
    try:
        if parse_expression(tokens).op == "variable":
            return True
    except UnreadableError:
        pass
    letters = [token.text for token in tokens if token.kind == "letter"]
    if tokens[0].kind == "letter" and len(tokens) > 1 and tokens[1].text == "(":
        return len(tokens) > 3 and _is_one_group(tokens[1:])
    if tokens[0].text == "(":
        return _is_one_group(tokens) and all(token.kind == "letter" or token.text in "(),_{}" for token in tokens)
    # Points and segments have capital letters.
    return all(letter.isupper() for letter in letters) and all(
        token.kind in ("letter", "number")
        or token.text in ("{", "}", "_", "|", ":", "frac", "angle", "triangle", "overline", "/")
        for token in tokens
    )


def _name_of(tokens: Sequence[Token]) -> str:
    try:
        node = parse_expression(tokens)
    except UnreadableError:
        return ""
    return node.args[0] if node.op == "variable" else ""


def _read_union(parts: list[list[Token]], depth: int) -> Form:
    found: list[tuple[Node, Node, bool, bool]] = []
    for part in parts:
        form = _read_one(part, depth + 1)
        if isinstance(form, Assignment) and isinstance(form.value, IntervalUnion):
            found.extend(form.value.intervals)
        elif (as_union := _as_union(form)) is not None:
            found.extend(as_union.intervals)
        else:
            raise UnreadableError("a union of something else than intervals")
    return _union(found)


def _union(intervals: Sequence[tuple[Node, Node, bool, bool]]) -> IntervalUnion:
    def key(interval: tuple[Node, Node, bool, bool]) -> float:
        # How many of the others begin below it: ends are expressions, and these have no order but that of `is_less`.
        low = interval[0]
        if low == Node("neg", (INFINITY,)):
            return float("-inf")
        below = sum(
            is_less(other[0], low) for other in intervals if INFINITY not in (other[0], *other[0].args) and other[0] != low
        )
        return float(below)

    if any(_has_variables(bound) for interval in intervals for bound in interval[:2]):
        raise UnreadableError("an interval with variable bounds")
    return IntervalUnion(tuple(sorted(intervals, key=key)))


def _as_union(form: Form) -> IntervalUnion | None:
    """An interval or a set of numbers as a union; None if the form is neither."""
    if isinstance(form, IntervalUnion):
        return form
    if isinstance(form, ItemCollection) and len(form.items) == 2 and form.brackets in ("()", "[]", "(]", "[)"):
        low, high = form.items
        if isinstance(low, Quantity) and isinstance(high, Quantity):
            return IntervalUnion(((low.node, high.node, form.brackets[0] == "[", form.brackets[1] == "]"),))
    if isinstance(form, ItemCollection) and form.brackets == "{}" and all(isinstance(one, Quantity) for one in form.items):
        return IntervalUnion(tuple((one.node, one.node, True, True) for one in form.items if isinstance(one, Quantity)))
    return None


def _read_quantity(tokens: Sequence[Token]) -> Quantity:
    """An expression with a currency sign before it or a unit after it."""
    rest = list(tokens)
    unit = ""
    if rest and rest[0].kind == "sign" and rest[0].text in _CURRENCIES:
        unit = _CURRENCIES[rest.pop(0).text]
    elif len(rest) > 1 and rest[0].text == "-" and rest[1].text in _CURRENCIES:
        unit = _CURRENCIES[rest.pop(1).text]
    units: list[str] = []
    while rest:
        if rest[-1].kind == "text":
            units.insert(0, rest.pop().text)
        elif rest[-1].kind == "sign" and rest[-1].text in _CURRENCIES:
            units.insert(0, _CURRENCIES[rest.pop().text])
        elif [token.text for token in rest[-4:]] == ["^", "{", "circ", "}"]:
            rest = rest[:-4]
            if rest and rest[-1].text in ("C", "F") and rest[-1].kind == "letter":
                raise UnreadableError("a temperature")
            units.insert(0, "degree")
        elif (power := _unit_power(rest)) is not None:
            rest = rest[: -power[1]]
            units.insert(0, f"^{power[0]}")
        else:
            break
    if not rest:
        raise UnreadableError("a text without a number")
    if any(token.kind == "text" for token in rest):
        raise UnreadableError("a text within an expression")
    if units or unit:
        unit = _unit_name(" ".join([unit, *units]))
    return Quantity(_scientific(rest) or parse_expression(rest), unit)


def _unit_power(tokens: list[Token]) -> tuple[str, int] | None:
    r"""The power of a unit at the end (`\text{ cm}^2`, `\text{cm}^{3}`) and its number of tokens."""
    texts = [token.text for token in tokens]
    for length, power in ((2, texts[-1:]), (4, texts[-2:-1])):
        if texts[-length:] in (["^", *power], ["^", "{", *power, "}"]) and power in (["2"], ["3"]) and len(tokens) > length:
            return (power[0], length) if tokens[-length - 1].kind == "text" else None
    return None


def _unit_name(words: str) -> str:
    """One name for a unit; empty if it is none that this module knows. Raises UnreadableError for words that change the value."""
    words = words.lower().replace("per cent", "percent")
    if has_value_words(words):
        raise UnreadableError("words that change the value")
    power = "2" if re.search(r"\bsq(?:uare)?\b", words) else "3" if re.search(r"\bcu(?:bic)?\b", words) else ""
    names = []
    for word in re.findall(r"\^[23]|[a-z%$°¢€£¥₹]+(?:/[a-z]+)?", words.replace(".", "")):
        if word.startswith("^"):
            power = word[1]
        elif word in _WORDS_WITH_VALUE.split():
            raise UnreadableError(f"{word!r} is not a unit")
        elif word not in _UNIT_FILLERS:
            names.append(_UNITS.get(word) or _UNITS.get(word.removesuffix("s")) or "")
    known = [name for name in names if name]
    return "/".join(known) + (f"^{power}" if power else "")


def _scientific(tokens: list[Token]) -> Node | None:
    r"""A number such as `1.2 \times 10^{3}` or `1.2e3` as one plain number, where its value is not too large to be exact."""
    texts = [token.text for token in tokens]
    negative = texts[:1] == ["-"]
    rest = tokens[negative:]
    texts = texts[negative:]
    if len(rest) < 3 or rest[0].kind != "number":
        return None
    if texts[1] in ("e", "E"):
        exponent = "".join(texts[2:])
    elif texts[1] in ("times", "cdot", "*") and texts[2:4] == ["10", "^"]:
        exponent = "".join(texts[4:]).removeprefix("{").removesuffix("}")
    else:
        return None
    if not re.fullmatch("[-+]?[0-9]{1,3}", exponent):
        return None
    value = rest[0].value * Fraction(10) ** int(exponent)
    return Node("neg", (number_node(value),)) if negative else number_node(value)


def forms_equal(answer: Form, gold: Form) -> bool:
    """Whether an answer equals a gold. Raises UnreadableError if their values cannot be computed."""
    if isinstance(answer, Assignment) or isinstance(gold, Assignment):
        return _assignments_equal(answer, gold)
    if isinstance(answer, Words) or isinstance(gold, Words):
        return _words_equal(answer, gold)
    if isinstance(answer, Ratio) != isinstance(gold, Ratio):
        return _ratio_as_fraction_equal(answer, gold)
    if isinstance(gold, Quantity):
        return isinstance(_single(answer), Quantity) and _quantities_equal(_single(answer), gold)  # type: ignore[arg-type]
    if isinstance(answer, Quantity):
        return _single(gold) is not gold and forms_equal(answer, _single(gold))
    if isinstance(gold, IntervalUnion) or isinstance(answer, IntervalUnion):
        left, right = _as_union(answer), _as_union(gold)
        return left is not None and right is not None and _unions_equal(left, right)
    if isinstance(gold, ItemCollection) and isinstance(answer, ItemCollection):
        return _collections_equal(answer, gold)
    if isinstance(gold, Matrix) and isinstance(answer, Matrix):
        return len(answer.rows) == len(gold.rows) and all(
            len(a) == len(b) and all(map(forms_equal, a, b)) for a, b in zip(answer.rows, gold.rows, strict=True)
        )
    if isinstance(gold, Relation) and isinstance(answer, Relation):
        return answer.relation == gold.relation and are_proportional(
            Node("sub", (answer.left, answer.right)), Node("sub", (gold.left, gold.right)), positive=gold.relation in ("<", "<=")
        )
    if isinstance(gold, Ratio) and isinstance(answer, Ratio):
        return _ratios_equal(answer, gold)
    return False


def _ratios_equal(answer: Ratio, gold: Ratio) -> bool:
    if answer.clock or gold.clock:
        return answer.clock == gold.clock or (":00" not in answer.clock + gold.clock and _parts_proportional(answer, gold))
    return _parts_proportional(answer, gold)


def _ratio_as_fraction_equal(answer: Form, gold: Form) -> bool:
    r"""3:1 and `\frac{3}{1}`. A ratio is no whole number and no decimal."""
    ratio, other = (answer, gold) if isinstance(answer, Ratio) else (gold, answer)
    return (
        isinstance(ratio, Ratio) and len(ratio.parts) == 2 and isinstance(other, Quantity) and other.node.op == "div"
        and expressions_equal(Node("div", ratio.parts), other.node)
    )  # fmt: skip


def _parts_proportional(answer: Ratio, gold: Ratio) -> bool:
    return len(answer.parts) == len(gold.parts) and all(
        expressions_equal(Node("mul", (a, d)), Node("mul", (c, b)))
        for (a, b), (c, d) in pairwise(zip(answer.parts, gold.parts, strict=True))
    )


def _single(form: Form) -> Form:
    """The one item of a set with one item; any other form as it is."""
    return form.items[0] if isinstance(form, ItemCollection) and len(form.items) == 1 and form.brackets == "{}" else form


def _words_equal(answer: Form, gold: Form) -> bool:
    if isinstance(answer, Words) and isinstance(gold, Words):
        return answer.text == gold.text
    words, other = (answer, gold) if isinstance(answer, Words) else (gold, answer)
    if isinstance(other, Ratio):
        return isinstance(words, Words) and other.clock == words.without_mark != ""
    # A number in a base, and its digits without the base.
    return bool(
        isinstance(words, Words) and words.without_mark and isinstance(other, Quantity)
        and other.node.op == "number" and str(other.node.args[0]) == words.without_mark
    )  # fmt: skip


def _assignments_equal(answer: Form, gold: Form) -> bool:
    if isinstance(answer, Assignment) and isinstance(gold, Assignment):
        same = answer.name == gold.name or "" in (answer.name, gold.name)
        return same and forms_equal(answer.value, gold.value)
    assignment, other = (answer, gold) if isinstance(answer, Assignment) else (gold, answer)
    assert isinstance(assignment, Assignment)
    if isinstance(other, Relation):
        if other.relation != "=" or not isinstance(assignment.value, Quantity) or not assignment.name:
            return False
        difference = Node("sub", (Node("variable", (assignment.name,)), assignment.value.node))
        return are_proportional(difference, Node("sub", (other.left, other.right)))
    return forms_equal(assignment.value, other) if assignment is answer else forms_equal(other, assignment.value)


def _quantities_equal(answer: Quantity, gold: Quantity) -> bool:
    if not _units_agree(answer.unit, gold.unit):
        return False
    if gold.node == INFINITY or answer.node == INFINITY or INFINITY in (*gold.node.args, *answer.node.args):
        return answer.node == gold.node
    if is_plain_number(gold.node) and not is_plain_number(answer.node):
        return False
    if expressions_equal(answer.node, gold.node):
        return True
    if (answer.unit == "%") == (gold.unit == "%"):
        return False
    # Golds write a percentage in both ways: 12% as 12 and as 0.12.
    hundredth = Quantity(Node("div", ((answer if answer.unit == "%" else gold).node, number_node(100))))
    other = gold if answer.unit == "%" else answer
    return expressions_equal(hundredth.node, other.node)


def _units_agree(answer: str, gold: str) -> bool:
    """Whether two units may be the same. A missing unit agrees with all, and "units" with every unit of the same power."""
    if not answer or not gold or answer == gold:
        return True
    if answer.partition("/")[0] == gold.partition("/")[0] == "dollar" and "dollar" in (answer, gold):
        return True  # a dollar sign, and "dollars per hour"
    (name, _, power), (other, _, other_power) = answer.partition("^"), gold.partition("^")
    return power == other_power and "" in (name, other)


def _unions_equal(answer: IntervalUnion, gold: IntervalUnion) -> bool:
    return len(answer.intervals) == len(gold.intervals) and all(
        a[2:] == b[2:] and all(_quantities_equal(Quantity(x), Quantity(y)) for x, y in zip(a[:2], b[:2], strict=True))
        for a, b in zip(answer.intervals, gold.intervals, strict=True)
    )


def _collections_equal(answer: ItemCollection, gold: ItemCollection) -> bool:
    if len(answer.items) != len(gold.items):
        return False
    brackets = {answer.brackets, gold.brackets}
    if brackets <= {"", "{}"}:
        return _same_items(answer.items, gold.items)
    if len(brackets) == 1:
        return all(map(forms_equal, answer.items, gold.items))
    if brackets == {"", "()"}:  # "x = 3, y = 2" and (3, 2)
        left, right = ([_without_name(one) for one in side.items] for side in (answer, gold))
        return all(map(forms_equal, left, right))
    return False


def _without_name(form: Form) -> Form:
    return replace(form, name="") if isinstance(form, Assignment) else form


def _same_items(answer: Sequence[Form], gold: Sequence[Form]) -> bool:
    """Whether the two have the same items in any order."""
    left = list(gold)
    for one in answer:
        place = next((place for place, other in enumerate(left) if forms_equal(one, other)), None)
        if place is None:
            return False
        left.pop(place)
    return not left
