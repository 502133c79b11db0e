r"""Read a mathematical expression in LaTeX or plain text, and compare two of them by their values.

`parse_expression` reads a whole text or raises UnreadableError; it never skips a part. `expressions_equal` compares the values
of two expressions at several points of their variables: exactly where all operations stay rational, else with PRECISION_DIGITS
digits and a bound on the rounding error. Two different expressions agree at all points with a probability that can be neglected
(Schwartz 1980, Zippel 1979).

All work is bounded: nesting, length, the size of exact numbers and of exponents. Beyond a bound the expression is unreadable.
"""

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, NamedTuple

from permix.types import seed_from
from permix.verification.latex import Token

if TYPE_CHECKING:
    import mpmath

PRECISION_DIGITS = 120

MAX_DEPTH = 40

MAX_TOKENS = 400

MAX_EXACT_BITS = 20_000

MAX_LOG2 = 1e6  # of the magnitude of a value that is not exact

MAX_FACTORIAL = 1_000

N_POINTS = 3  # for each of the two kinds of points: all variables positive, and of mixed signs


class UnreadableError(ValueError):
    """The text is not one expression that this module reads whole, or its value is beyond the bounds."""


class Node(NamedTuple):
    """An expression: an operation and its operands. `op` "number" holds a Fraction, "variable" a name."""

    op: str
    args: tuple[Any, ...]


def number_node(value: Fraction | int) -> Node:
    return Node("number", (Fraction(value),))


FUNCTIONS = {
    **{name: name for name in ("sin", "cos", "tan", "cot", "sec", "csc", "sinh", "cosh", "tanh", "ln", "log", "exp")},
    **{"arcsin": "asin", "arccos": "acos", "arctan": "atan", "lg": "log"},
}

INVERSES = {"sin": "asin", "cos": "acos", "tan": "atan"}

_GREEK_NAMES = """
    alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi rho sigma tau upsilon phi varphi
    chi psi omega Gamma Delta Theta Lambda Xi Sigma Phi Psi Omega ell
"""

GREEK = frozenset(_GREEK_NAMES.split())

_ACCENT_NAMES = "vec hat bar overline mathbf bf boldsymbol mathcal mathbb overrightarrow widehat tilde"

ACCENTS = frozenset(_ACCENT_NAMES.split())

CLOSING_OF = {"(": ")", "[": "]", "{": "}", "lfloor": "rfloor", "lceil": "rceil"}

_TIMES, _OVER = {"*", "cdot", "times", "ast"}, {"/", "div"}


class _Reader:
    """A recursive-descent parser of one list of tokens."""

    def __init__(self, tokens: Sequence[Token]) -> None:
        if len(tokens) > MAX_TOKENS:
            raise UnreadableError("too long")
        self.tokens, self.at, self.depth, self.inside_bars = tokens, 0, 0, 0
        self.read_ahead: tuple[Node, int] | None = None  # the fraction that begins at `at`, and where it ends

    def peek(self) -> str:
        """The text of the next token if it is a sign or a command, else a name for its kind; empty at the end."""
        if self.at >= len(self.tokens):
            return ""
        token = self.tokens[self.at]
        return token.text if token.kind in ("sign", "command") else f"<{token.kind}>"

    def take(self) -> Token:
        if self.at >= len(self.tokens):
            raise UnreadableError("ends too early")
        self.at += 1
        return self.tokens[self.at - 1]

    def expect(self, text: str) -> None:
        if self.peek() != text:
            raise UnreadableError(f"{text!r} expected")
        self.at += 1

    def whole(self) -> Node:
        node = self.sum()
        if self.at < len(self.tokens):
            raise UnreadableError(f"cannot read {self.tokens[self.at].text!r}")
        return node

    def sum(self) -> Node:
        self.depth += 1
        if self.depth > 2 * MAX_DEPTH:
            raise UnreadableError("nested too deeply")
        node = self.signed_product()
        while self.peek() in ("+", "-"):
            sign = self.take().text
            node = Node("add" if sign == "+" else "sub", (node, self.signed_product()))
        self.depth -= 1
        return node

    def signed_product(self) -> Node:
        negative = False
        while self.peek() in ("+", "-"):
            negative ^= self.take().text == "-"
        node = self.product()
        return Node("neg", (node,)) if negative else node

    def product(self) -> Node:
        node = self.power()
        while True:
            sign = self.peek()
            if sign in _TIMES or sign in _OVER:
                self.take()
                negative = self.peek() == "-"
                if negative:
                    self.take()
                right = self.power()
                right = Node("neg", (right,)) if negative else right
                node = Node("mul" if sign in _TIMES else "div", (node, right))
            elif self.starts_factor():
                node = Node("mul", (node, self.power()))
            else:
                return node

    def starts_factor(self) -> bool:
        """Whether a factor without a multiplication sign follows. A number never does: "2 3" and "x 3" are not products."""
        sign = self.peek()
        if sign == "|":
            return not self.inside_bars
        return sign in ("<letter>", "(", "[", "{", "frac", "sqrt", "binom", "lfloor", "lceil", "pi") or (
            sign in FUNCTIONS or sign in GREEK or sign in ACCENTS
        )

    def power(self) -> Node:
        node = self.postfix()
        if self.peek() == "^":
            if self.at_degree():
                self.at += 4
                return Node("degrees", (node,))
            self.take()
            if self.peek() in ("prime", "'", "*"):
                raise UnreadableError("not a power")
            exponent = self.argument(signed=True)
            node = Node("pow", (node, exponent))
            if self.peek() == "^":
                raise UnreadableError("two exponents")
        return node

    def postfix(self) -> Node:
        node = self.atom()
        if self.peek() == "!":
            self.take()
            if self.peek() == "!":
                raise UnreadableError("a double factorial")
            node = Node("factorial", (node,))
        return node

    def argument(self, *, signed: bool = False) -> Node:
        """The argument of a command or an exponent: a group in braces, or one number, letter or command."""
        if self.peek() == "{":
            return self.group()
        negative = signed and self.peek() == "-"
        if negative:
            self.take()
        # "x^2\frac{1}{2}" has the exponent 2: without braces a number is never a mixed one.
        node = Node("number", (self.take().value,)) if self.peek() == "<number>" else self.atom()
        return Node("neg", (node,)) if negative else node

    def group(self) -> Node:
        opening = self.take().text
        bars, self.inside_bars = self.inside_bars, 0
        node = self.sum()
        self.inside_bars = bars
        self.expect(CLOSING_OF[opening])
        return {"lfloor": Node("floor", (node,)), "lceil": Node("ceil", (node,))}.get(opening, node)

    def atom(self) -> Node:
        self.depth += 1
        if self.depth > 2 * MAX_DEPTH:
            raise UnreadableError("nested too deeply")
        node = self.one_atom()
        self.depth -= 1
        return node

    def one_atom(self) -> Node:
        sign = self.peek()
        if sign == "<number>":
            return self.number_or_mixed()
        if sign in CLOSING_OF:
            return self.group()
        if sign == "|":
            self.take()
            self.inside_bars += 1
            node = self.sum()
            self.inside_bars -= 1
            self.expect("|")
            return Node("abs", (node,))
        if sign == "<letter>" or sign in GREEK or sign in ACCENTS:
            return self.variable()
        self.take()
        match sign:
            case "pi":
                return Node("constant", ("pi",))
            case "frac":
                if self.read_ahead is not None:
                    (fraction, self.at), self.read_ahead = self.read_ahead, None
                    return fraction
                top = self.single_digit_or_argument()
                return Node("div", (top, self.single_digit_or_argument()))
            case "binom":
                top = self.single_digit_or_argument()
                return Node("binomial", (top, self.single_digit_or_argument()))
            case "sqrt":
                return self.root()
        if sign in FUNCTIONS:
            return self.function(FUNCTIONS[sign])
        raise UnreadableError(f"cannot read {self.tokens[self.at - 1].text!r}")

    def number_or_mixed(self) -> Node:
        token = self.take()
        value = Node("number", (token.value,))
        if token.text.isdigit() and self.peek() == "frac":
            before = self.at
            fraction = self.atom()
            if _is_proper_fraction(fraction):
                return Node("add", (value, fraction))  # a mixed number
            # The fraction is the next factor. It may not be read again: that would take twice as long at each level of nesting,
            # and `single_digit_or_argument` has replaced tokens within it.
            self.at, self.read_ahead = before, (fraction, self.at)
        return value

    def single_digit_or_argument(self) -> Node:
        r"""An argument of `\frac`: of digits without braces, LaTeX takes the first one (`\frac12` is one half).

        Then the rest of the digits takes the token's place, so what has been read cannot be read again.
        """
        if self.peek() == "<number>" and self.tokens[self.at].text.isdigit() and len(self.tokens[self.at].text) > 1:
            digits = self.tokens[self.at].text
            rest = Token("number", digits[1:], Fraction(digits[1:]))
            self.tokens = [*self.tokens[: self.at], rest, *self.tokens[self.at + 1 :]]
            return number_node(int(digits[0]))
        return self.argument()

    def root(self) -> Node:
        degree = number_node(2)
        if self.peek() == "[":
            degree = self.group()
        return Node("root", (self.argument(), degree))

    def variable(self) -> Node:
        token = self.take()
        name = token.text
        if name in ACCENTS:
            inner = self.take_name_argument()
            name = f"{name} {inner}"
        elif name == "e":
            return Node("constant", ("e",))
        elif name == "i":
            return Node("constant", ("i",))
        if self.peek() == "_":
            self.take()
            name = f"{name}_{self.take_name_argument()}"
        if self.peek() == "'":
            raise UnreadableError("a derivative")
        return Node("variable", (name,))

    def take_name_argument(self) -> str:
        """The text of an index or of what an accent is over: one token or a group of letters and digits."""
        if self.peek() != "{":
            token = self.take()
            if token.kind not in ("letter", "number") and token.text not in GREEK:
                raise UnreadableError("an index that is no name")
            return token.text
        self.take()
        parts = []
        while self.peek() != "}":
            token = self.take()
            if token.kind not in ("letter", "number", "text") and token.text not in GREEK:
                raise UnreadableError("an index that is no name")
            parts.append(token.text)
        self.take()
        return "".join(parts)

    def function(self, name: str) -> Node:
        base: Node | None = None
        if self.peek() == "_":
            if name != "log":
                raise UnreadableError("an index of a function")
            self.take()
            base = self.argument()
        exponent: Node | None = None
        if self.peek() == "^":
            self.take()
            exponent = self.argument(signed=True)
            if exponent == Node("neg", (number_node(1),)) and name in INVERSES:
                name, exponent = INVERSES[name], None
        node = Node(name, (self.function_argument(),) if base is None else (self.function_argument(), base))
        return node if exponent is None else Node("pow", (node, exponent))

    def function_argument(self) -> Node:
        r"""The argument of a function: a group, or all factors without a sign up to the next function (`\sin 2x \cos x`)."""
        if self.peek() in ("(", "[", "{"):
            node = self.group()
            if self.at_degree():
                self.at += 4
                node = Node("degrees", (node,))
        else:
            negative = self.peek() == "-"
            if negative:
                self.take()
            node = self.power()
            while self.starts_factor() and self.peek() not in FUNCTIONS and self.peek() not in ("(", "["):
                node = Node("mul", (node, self.power()))
            node = Node("neg", (node,)) if negative else node
        return node

    def at_degree(self) -> bool:
        r"""Whether `^{\circ}` follows, as `clean_latex` writes it."""
        return [token.text for token in self.tokens[self.at : self.at + 4]] == ["^", "{", "circ", "}"]


def _is_proper_fraction(node: Node) -> bool:
    """Whether the node is a fraction of two whole numbers, smaller than 1."""
    if node.op != "div" or any(part.op != "number" or part.args[0].denominator != 1 for part in node.args):
        return False
    top, bottom = node.args[0].args[0], node.args[1].args[0]
    return bool(0 < top < bottom)


def parse_expression(tokens: Sequence[Token]) -> Node:
    """The expression that the tokens write. Raises UnreadableError unless all of them are read."""
    return _Reader(tokens).whole()


def is_plain_number(node: Node) -> bool:
    """Whether the node is a number as one writes a result: an integer, a decimal, a fraction or a mixed number, with its sign."""
    if node.op == "neg":
        return is_plain_number(node.args[0]) and node.args[0].op != "neg"
    if node.op == "number":
        return True
    if node.op == "div":
        return all(_is_signed_number(part) for part in node.args)
    if node.op == "add":
        return node.args[0].op == "number" and _is_proper_fraction(node.args[1])
    return False


def _is_signed_number(node: Node) -> bool:
    return node.op == "number" or (node.op == "neg" and node.args[0].op == "number")


def variables_of(node: Node) -> frozenset[str]:
    """The names of the variables in an expression."""
    found, pending = set(), [node]
    while pending:
        one = pending.pop()
        if one.op == "variable":
            found.add(str(one.args[0]))
        elif one.op not in ("number", "constant"):
            pending.extend(one.args)
    return frozenset(found)


@dataclass(frozen=True)
class Value:
    """A value: exact as a fraction, or a complex number with a bound on its error."""

    exact: Fraction | None
    inexact: Any = None
    error: Any = None


_LOCAL = threading.local()  # mpmath's contexts hold their precision, so each thread has its own


def _context() -> "mpmath.MPContext":
    if not hasattr(_LOCAL, "context"):
        import mpmath

        _LOCAL.context = mpmath.MPContext()
        _LOCAL.context.dps = PRECISION_DIGITS
    return _LOCAL.context


def _exact(value: Fraction) -> Value:
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > MAX_EXACT_BITS:
        return _rounded(_to_real(value))
    return Value(value)


def _to_real(value: Fraction) -> Any:
    mp = _context()
    return mp.mpf(value.numerator) / value.denominator


def _rounded(value: Any, error: Any = 0) -> Value:
    """A value that is not exact, whose operands have caused `error`; adds the rounding of the last operation."""
    mp = _context()
    if not mp.isfinite(value):
        raise UnreadableError("no finite value")
    size = abs(value)
    if size and abs(mp.mag(size)) > MAX_LOG2:
        raise UnreadableError("too large or too small")
    return Value(None, value, error + size * mp.eps * 4)


def _value_and_error(value: Value) -> tuple[Any, Any]:
    if value.exact is not None:
        real = _to_real(value.exact)
        return real, abs(real) * _context().eps
    return value.inexact, value.error


def _add(a: Value, b: Value, sign: int = 1) -> Value:
    if a.exact is not None and b.exact is not None:
        return _exact(a.exact + sign * b.exact)
    (x, ex), (y, ey) = _value_and_error(a), _value_and_error(b)
    return _rounded(x + sign * y, ex + ey)


def _mul(a: Value, b: Value) -> Value:
    if a.exact is not None and b.exact is not None:
        return _exact(a.exact * b.exact)
    if 0 in (a.exact, b.exact):
        return Value(Fraction(0))
    (x, ex), (y, ey) = _value_and_error(a), _value_and_error(b)
    return _rounded(x * y, abs(x) * ey + abs(y) * ex)


def _div(a: Value, b: Value) -> Value:
    if b.exact is not None and a.exact is not None:
        if b.exact == 0:
            raise UnreadableError("division by zero")
        return _exact(a.exact / b.exact)
    (x, ex), (y, ey) = _value_and_error(a), _value_and_error(b)
    if abs(y) <= ey:
        raise UnreadableError("division by zero")
    return _rounded(x / y, (ex + abs(x / y) * ey) / abs(y))


def _pow(a: Value, b: Value) -> Value:
    mp = _context()
    if b.exact is not None and b.exact.denominator == 1:
        n = int(b.exact)
        if a.exact is not None:
            if a.exact == 0 and n <= 0:
                raise UnreadableError("a power of zero")
            bits = max(a.exact.numerator.bit_length(), a.exact.denominator.bit_length())
            if bits * abs(n) <= MAX_EXACT_BITS or abs(a.exact) in (0, 1):
                return _exact(Fraction(a.exact) ** (n if abs(a.exact) not in (0, 1) else n % 2 + 2))
    (x, ex), (y, ey) = _value_and_error(a), _value_and_error(b)
    if abs(x) <= ex:
        if abs(y) > ey and mp.re(y) > 0:
            return Value(Fraction(0))
        raise UnreadableError("a power of zero")
    log = mp.log(x)
    exponent = y * log
    if abs(exponent) > MAX_LOG2:
        raise UnreadableError("too large or too small")
    value = mp.exp(exponent)
    return _rounded(_drop_rounding(value), abs(value) * (abs(y) * ex / abs(x) + abs(log) * ey + abs(exponent) * mp.eps * 4))


def _drop_rounding(value: Any) -> Any:
    """A complex value whose imaginary part is mere rounding, as a real one. The error bound covers what is dropped."""
    mp = _context()
    if isinstance(value, mp.mpc) and abs(value.imag) <= abs(value.real) * mp.eps * 1024:
        return value.real
    return value


def _root(a: Value, degree: Value) -> Value:
    if degree.exact is None or degree.exact.denominator != 1 or not 2 <= degree.exact <= 100:
        raise UnreadableError("the degree of a root")
    n = int(degree.exact)
    if a.exact is not None:
        root = _exact_root(abs(a.exact), n)
        if root is not None and (a.exact >= 0 or n % 2):
            return Value(root if a.exact >= 0 else -root)
        if a.exact < 0 and n % 2:  # the real root, as school mathematics takes it
            positive = _root(Value(-a.exact), degree)
            return _rounded(-positive.inexact, positive.error)
    return _pow(a, Value(Fraction(1, n)))


def _exact_root(value: Fraction, n: int) -> Fraction | None:
    roots = [_integer_root(part, n) for part in (value.numerator, value.denominator)]
    return None if roots[0] is None or roots[1] is None else Fraction(roots[0], roots[1])


def _integer_root(value: int, n: int) -> int | None:
    if value in (0, 1):
        return value
    low, high = 1, 1 << (value.bit_length() // n + 1)
    while low <= high:
        middle = (low + high) // 2
        power = middle**n
        if power == value:
            return middle
        low, high = (middle + 1, high) if power < value else (low, middle - 1)
    return None


def _elementary(function: Callable[[Any], Any], slope: Callable[[Any, Any], Any]) -> Callable[[Value], Value]:
    """A function of one value. `slope(x, f(x))`: a bound on its derivative, for the error."""

    def apply(a: Value) -> Value:
        x, error = _value_and_error(a)
        if abs(x) > MAX_LOG2:
            raise UnreadableError("too large an argument")
        try:
            value = function(x)
            return _rounded(_drop_rounding(value), error * slope(x, value))
        except (ValueError, ZeroDivisionError):
            raise UnreadableError("no value") from None

    return apply


def _elementary_functions() -> Mapping[str, Callable[[Value], Value]]:
    """The functions of one value, in this thread's context."""
    mp = _context()
    if not hasattr(_LOCAL, "functions"):
        _LOCAL.functions = _make_functions(mp)
    functions: Mapping[str, Callable[[Value], Value]] = _LOCAL.functions
    return functions


def _make_functions(mp: Any) -> Mapping[str, Callable[[Value], Value]]:
    def inverse(x: Any, _: Any) -> Any:
        return 1 + 1 / (abs(1 - x * x) + mp.eps)

    return {
        "sin": _elementary(mp.sin, lambda x, v: 1 + abs(mp.cos(x))),
        "cos": _elementary(mp.cos, lambda x, v: 1 + abs(mp.sin(x))),
        "tan": _elementary(mp.tan, lambda x, v: 1 + abs(v) ** 2),
        "cot": _elementary(mp.cot, lambda x, v: 1 + abs(v) ** 2),
        "sec": _elementary(mp.sec, lambda x, v: 1 + abs(v) ** 2),
        "csc": _elementary(mp.csc, lambda x, v: 1 + abs(v) ** 2),
        "sinh": _elementary(mp.sinh, lambda x, v: 1 + abs(mp.cosh(x))),
        "cosh": _elementary(mp.cosh, lambda x, v: 1 + abs(mp.sinh(x))),
        "tanh": _elementary(mp.tanh, lambda x, v: 1 + abs(v) ** 2),
        "exp": _elementary(mp.exp, lambda x, v: abs(v)),
        "ln": _elementary(mp.log, lambda x, v: 1 / abs(x)),
        "asin": _elementary(mp.asin, inverse),
        "acos": _elementary(mp.acos, inverse),
        "atan": _elementary(mp.atan, lambda x, v: 1),
    }


def _log(a: Value, base: Value | None) -> Value:
    ln = _elementary_functions()["ln"]
    if a.exact == 0 or (base is not None and base.exact in (0, 1)):
        raise UnreadableError("a logarithm of zero")
    # A logarithm without a base is natural for some authors and decimal for others. Any other constant keeps all the laws of the
    # logarithm, and makes it equal to neither.
    return _div(ln(a), ln(Value(Fraction(170141, 10007)) if base is None else base))


def _factorial(a: Value) -> Value:
    mp = _context()
    if a.exact is not None and a.exact.denominator == 1:
        if not a.exact >= 0:
            raise UnreadableError("a factorial of a negative number")
        if a.exact <= MAX_FACTORIAL:
            return _exact(Fraction(math.factorial(int(a.exact))))
    x, error = _value_and_error(a)
    if abs(x) > 1e6:
        raise UnreadableError("too large a factorial")
    value = mp.gamma(x + 1)
    return _rounded(value, abs(value) * error * (1 + abs(mp.log(abs(x) + 2))) + abs(value) * abs(x) * mp.eps * 64)


def _binomial(a: Value, b: Value) -> Value:
    if b.exact is not None and b.exact.denominator == 1 and 0 <= b.exact <= MAX_FACTORIAL:
        value = Value(Fraction(1))
        for step in range(int(b.exact)):
            value = _div(_mul(value, _add(a, Value(Fraction(step)), -1)), Value(Fraction(step + 1)))
        return value
    return _div(_factorial(a), _mul(_factorial(b), _factorial(_add(a, b, -1))))


def _real(value: Value) -> Any:
    x, error = _value_and_error(value)
    if abs(_context().im(x)) > error:
        raise UnreadableError("not a real number")
    return _context().re(x)


def _rounded_to_integer(a: Value, direction: int) -> Value:
    mp = _context()
    if a.exact is not None:
        return Value(Fraction(a.exact.__floor__() if direction < 0 else a.exact.__ceil__()))
    x = _real(a)
    return Value(Fraction(int(mp.floor(x) if direction < 0 else mp.ceil(x))))


def _abs(a: Value) -> Value:
    if a.exact is not None:
        return Value(abs(a.exact))
    return _rounded(abs(a.inexact), a.error)


def evaluate(node: Node, point: Mapping[str, Fraction]) -> Value:
    """The value of an expression at a point. Raises UnreadableError where it has none within the bounds."""
    mp = _context()
    match node.op:
        case "number":
            return _exact(node.args[0])
        case "variable":
            if node.args[0] not in point:
                raise UnreadableError(f"{node.args[0]} has no value")
            return Value(point[node.args[0]])
        case "infinity":
            raise UnreadableError("infinity is no number")
        case "constant":
            # The plus rounds the constant to the precision of this context. Without it mpmath computes it at each use.
            return _rounded({"pi": +mp.pi, "e": +mp.e, "i": mp.mpc(0, 1)}[node.args[0]])
        case "add" | "sub" | "mul":
            return _evaluate_chain(node, point)
    args = [evaluate(part, point) for part in node.args]
    match node.op:
        case "neg":
            return _mul(Value(Fraction(-1)), args[0])
        case "div":
            return _div(*args)
        case "pow":
            return _pow(*args)
        case "root":
            return _root(*args)
        case "abs":
            return _abs(*args)
        case "floor":
            return _rounded_to_integer(args[0], -1)
        case "ceil":
            return _rounded_to_integer(args[0], 1)
        case "factorial":
            return _factorial(*args)
        case "binomial":
            return _binomial(*args)
        case "log":
            return _log(args[0], args[1] if len(args) > 1 else None)
        case "degrees":
            return _mul(args[0], _rounded(mp.pi / 180))
    return _elementary_functions()[node.op](*args)


def _evaluate_chain(node: Node, point: Mapping[str, Fraction]) -> Value:
    """The value of a sum or product of many terms, without a call for each: Python's stack is short."""
    rest: list[Node] = []
    while node.op in ("add", "sub", "mul"):
        rest.append(node)
        node = node.args[0]
    value = evaluate(node, point)
    for one in reversed(rest):
        right = evaluate(one.args[1], point)
        value = _mul(value, right) if one.op == "mul" else _add(value, right, 1 if one.op == "add" else -1)
    return value


def values_equal(a: Value, b: Value) -> bool:
    """Whether two values are equal: exactly, or within the bounds on their errors."""
    if a.exact is not None and b.exact is not None:
        return a.exact == b.exact
    (x, ex), (y, ey) = _value_and_error(a), _value_and_error(b)
    return bool(abs(x - y) <= 4 * (ex + ey))


def is_real(value: Value) -> bool:
    """Whether the value has no imaginary part."""
    if value.exact is not None:
        return True
    return bool(abs(_context().im(value.inexact)) <= value.error)


def sample_points(names: Sequence[str]) -> list[tuple[bool, dict[str, Fraction]]]:
    """The points at which expressions are compared, each with whether all its coordinates are positive."""
    found = []
    for index in range(2 * N_POINTS if names else 1):
        mixed = index >= N_POINTS
        point = {name: Fraction(seed_from("point", name, index) % 9973 + 2000, 4999) for name in names}
        if mixed:
            point = {
                name: -value if (place + index) % 2 == 0 or len(names) == 1 else value
                for place, (name, value) in enumerate(point.items())
            }
        found.append((not mixed, point))
    return found


def expressions_equal(a: Node, b: Node) -> bool:
    """Whether two expressions have the same value wherever both are real, and at all points with positive variables.

    Raises UnreadableError if they cannot be evaluated at a point.
    """
    names = sorted(variables_of(a) | variables_of(b))
    compared = 0
    for positive, point in sample_points(names):
        try:
            left, right = evaluate(a, point), evaluate(b, point)
        except UnreadableError:
            if not names:
                raise
            continue  # a pole, or a logarithm of a negative number
        if not positive and not (is_real(left) and is_real(right)):
            continue
        compared += 1
        if not values_equal(left, right):
            return False
    if not compared:
        raise UnreadableError("no point at which both have a value")
    return True


def are_proportional(a: Node, b: Node, *, positive: bool = False) -> bool:
    """Whether a / b is the same constant at every point, so that a = 0 and b = 0 are the same equation.

    `positive`: the constant must be above 0, as for inequalities. Raises UnreadableError if they cannot be evaluated.
    """
    names = sorted(variables_of(a) | variables_of(b))
    ratios = []
    for _, point in sample_points(names):
        try:
            left, right = evaluate(a, point), evaluate(b, point)
            if any(values_equal(one, Value(Fraction(0))) for one in (left, right)):
                if not all(values_equal(one, Value(Fraction(0))) for one in (left, right)):
                    return False
                continue
            ratios.append(_div(left, right))
        except UnreadableError:
            continue
    if len(ratios) < 2:
        raise UnreadableError("no points at which both have a value")
    return all(values_equal(ratios[0], one) for one in ratios[1:]) and (not positive or bool(_real(ratios[0]) > 0))


def is_less(a: Node, b: Node) -> bool:
    """Whether a < b, for two real numbers. Raises UnreadableError."""
    return bool(_real(evaluate(a, {})) < _real(evaluate(b, {})))
