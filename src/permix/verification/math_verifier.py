"""Extract and check mathematical answers. The training reward and the evaluation's score use the same verifier.

`Verifier.check` returns a verdict for any text, within bounds of time and memory, and never raises an error. `correct` is True or
False if the answer could be checked; an answer that cannot be parsed is wrong (False). `correct` is None if the verifier itself
failed (time, memory, crash); `error` then names the bound. No score is not zero.

Equal texts, plain numbers and words are compared in this process, exactly and in microseconds. All other answers go to
math-verify (sympy) in worker processes (`math_worker.py`). Importing this module imports neither of them.
"""

import os
import queue
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from types import TracebackType
from typing import NamedTuple

from permix.types import Verdict
from permix.verification.math_worker import SymbolicWorker, WorkerLostError

MAX_ANSWER_CHARS = 10_000

MAX_RATIONAL_DIGITS = 4_000  # int(str) refuses more than 4300 digits

MIN_WORKER_MEMORY_BYTES = 256 << 20  # sympy alone needs about 70 MiB


_BOX_OR_BRACE = re.compile(r"\\(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)

_DIGITS = r"(?:(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)"

_MINUS_SIGNS = str.maketrans(dict.fromkeys("\u2212\u2013\ufe63\uff0d", "-"))

_NUMBER_IN_TEXT = re.compile(
    rf"((?<![\w)\]}}.])[-+](?=\$?[.0-9]))?\$?-?(?<![A-Za-z0-9])({_DIGITS})"
    rf"(?:\s?/\s?({_DIGITS})|([eE][-+]?[0-9]{{1,3}})(?!\w))?\s?(\\?%)?"
)

_PLAIN_NUMBER = re.compile(
    rf"(?P<sign>[-+]?) ?(?:(?:(?P<whole>[0-9]+) ?(?=\\frac)|(?P<whole2>[0-9]+) (?=[0-9]+/))?"
    rf"(?:\\frac ?(?:\{{(?P<sign2>-?)(?P<top>{_DIGITS})\}}\{{(?P<bottom>{_DIGITS})\}}|(?P<top2>[0-9]) ?(?P<bottom2>[0-9]))"
    rf"|(?P<top3>{_DIGITS})(?: ?/ ?(?P<bottom3>{_DIGITS}))?(?:[eE](?P<exponent>[-+]?[0-9]{{1,3}})(?![0-9]))?))"
)

_PERCENT = re.compile(r"\\?%|\\text\{ ?percent\}|percent")

_DEGREE = r"\^ ?\{? ?\\circ ?\}?|°|\\degree"

_WORD_UNIT = (
    r"dollars?|cents?|degrees?|seconds?|minutes?|hours?|days?|weeks?|months?|years?|units?"
    r"|[ckm]m|feet|foot|inch(?:es)?|miles?|kg|pounds?"
)

_UNIT = re.compile(rf"{_DEGREE}|(?:\\text\{{[a-zA-Z ./]*\}}|(?:square |cubic )?(?:{_WORD_UNIT}))(?: ?\^ ?\{{?[23]\}}?)?")

_MAGNITUDE = re.compile(r"hundred|thousand|million|billion|trillion|dozen|half|pi\b|base")

_INVISIBLE = re.compile(r"[\x00-\x08\x0e-\x1f\x7f-\x9f\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]")

_TEXT_COMMAND = re.compile(r"\\(?:text(?:bf|it|rm|normal)?|mbox|hbox|mathrm|mathbf|textsf) ?\{")

# None of these patterns may match the second backslash of `\\`, the end of a matrix row.
_DELIMITERS = re.compile(r"(?<!\\)\\(?:left|right)(?![A-Za-z])|(?<!\\)\\[()\[\]!]|\\?\$")

_SPACES = re.compile(r"(?<!\\)\\(?:[,;: ]|q?quad(?![A-Za-z]))|~")


def extract_boxed(text: str) -> str | None:
    r"""Content of the last `\boxed{...}` or `\fbox{...}` with balanced braces, or None. Takes linear time.

    Of nested boxes the inner one counts, since it opens last. A box that is never closed (a truncated completion) is skipped.
    """
    first = min((at for at in (text.find("\\boxed"), text.find("\\fbox")) if at >= 0), default=-1)
    if first < 0:
        return None
    opened: list[int] = []  # for each open brace: where its content starts if it is a box's, else -1
    best, best_end = -1, -1
    for token in _BOX_OR_BRACE.finditer(text, first):
        mark = token.group()
        if mark[-1] == "{" and mark != "\\{":
            opened.append(token.end() if len(mark) > 1 else -1)
        elif mark == "}" and opened and (start := opened.pop()) > best:
            best, best_end = start, token.start()
    return text[best:best_end] if best >= 0 else None


def _canonical_decimal(digits: str) -> str:
    """A decimal without commas and superfluous zeros, so that equal numbers are equal strings."""
    whole, _, rest = digits.replace(",", "").partition(".")
    rest = rest.rstrip("0")
    return (whole.lstrip("0") or "0") + ("." + rest if rest else "")


def last_number(text: str) -> str | None:
    """The last number in a text, in canonical form, or None: "1,234.50" -> "1234.5", ".5" -> "0.5", "$18" -> "18", "3/4", "12%".

    "5-3" ends in 3: a minus is a sign only if nothing on its left could be the first number of a difference. A number at the end
    of a word (CO2) does not count. Takes linear time.
    """
    last = None
    for last in _NUMBER_IN_TEXT.finditer(text.translate(_MINUS_SIGNS)):  # noqa: B007 - only the last match matters
        pass
    if last is None:
        return None
    top = _canonical_decimal(last[2])
    negative = last[1] == "-" or "$-" in last[0]
    bottom = f"/{_canonical_decimal(last[3])}" if last[3] else (last[4] or "").lower()
    return ("-" if negative and top != "0" else "") + top + bottom + ("%" if last[5] else "")


class _PlainNumber(NamedTuple):
    """The canonical parts of a plain number; `is_percent` if it has a percent sign."""

    is_negative: bool
    whole: str
    numerator: str
    denominator: str
    exponent: int
    is_percent: bool

    def value(self) -> Fraction:
        size = Fraction(self.whole) + Fraction(self.numerator) / Fraction(self.denominator) * Fraction(10) ** self.exponent
        return -size if self.is_negative else size


def clean_latex(text: str) -> str:
    r"""Remove notation without meaning: invisible characters, `$`, `\left`, thin spaces, a final full stop, the d of `\dfrac`."""
    text = _INVISIBLE.sub("", text).translate(_MINUS_SIGNS).replace("{,}", ",")
    if "\\" in text or "$" in text:
        text = re.sub(r", ?\\! ?(?=[0-9])", ",", text.replace("\\%", "%"))
        text = re.sub(r"\\[dtc]frac(?![A-Za-z])", r"\\frac", text)
        text = _TEXT_COMMAND.sub(r"\\text{", _DELIMITERS.sub("", _SPACES.sub(" ", text)))
    return " ".join(text.split()).rstrip(". ")


def _parse_plain_number(text: str) -> _PlainNumber | None:
    """Parse a text that `clean_latex` returned; None if it is not a plain number."""
    match = _PLAIN_NUMBER.match(text)
    if match is None:
        return None
    tail = text[match.end() :].strip()
    percent = _PERCENT.fullmatch(tail) is not None
    if tail and not percent and (len(tail) > 60 or not _UNIT.fullmatch(tail) or _MAGNITUDE.search(tail)):
        return None
    group = match.groupdict(default="")
    bottom = _canonical_decimal(group["bottom"] or group["bottom2"] or group["bottom3"] or "1")
    if bottom == "0":
        return None
    negative = (group["sign"] == "-") != (group["sign2"] == "-")
    whole, top = group["whole"] or group["whole2"] or "0", group["top"] or group["top2"] or group["top3"]
    return _PlainNumber(
        negative, _canonical_decimal(whole), _canonical_decimal(top), bottom, int(group["exponent"] or 0), percent
    )


def _plain_numbers_equal(a: _PlainNumber, b: _PlainNumber) -> bool:
    if a == b:
        return True
    if max(len(part) for number in (a, b) for part in (number.whole, number.numerator, number.denominator)) > MAX_RATIONAL_DIGITS:
        return a._replace(is_percent=False) == b._replace(is_percent=False)
    x, y = a.value(), b.value()
    # Golds write a percentage in both ways: 12% as 12 and as 0.12.
    return x == y or (a.is_percent and not b.is_percent and x == 100 * y) or (b.is_percent and not a.is_percent and y == 100 * x)


def numbers_equal(a: str, b: str) -> bool | None:
    r"""Whether two plain numbers are equal as exact rational numbers; None if one of them is not a plain number.

    Plain numbers are integers, decimals, numbers with thousands commas, `a/b`, `\frac{a}{b}`, mixed numbers and exponents up to
    999. A dollar, percent or degree sign or a unit may follow and is ignored. Above 4000 digits the written digits are compared.
    """
    first, second = _parse_plain_number(clean_latex(a)), _parse_plain_number(clean_latex(b))
    return None if first is None or second is None else _plain_numbers_equal(first, second)


def _strip_latex_spacing(text: str) -> str:
    """Remove spaces and `\\text{}` from a text of `clean_latex`. A space between two digits stays: "1 2" is not 12."""
    while (stripped := re.sub(r"\\text\{([^{}]*)\}", r"\1", text)) != text:
        text = stripped
    text = re.sub(r"(?<![0-9]) | (?![0-9])", "", text)
    choice = re.fullmatch(r"\(([A-Za-z])\)", text)
    return choice[1] if choice else text


def _is_word(answer: str) -> bool:
    """Whether the answer is a word, such as a name or "yes". For the engine a word is a product of letters, and Amy = May."""
    return len(answer) >= 3 and answer.isalpha()


def match_without_engine(answer: str, gold: str) -> bool | None:
    """Whether two texts from `clean_latex` are equal; None if the comparison needs the symbolic engine."""
    first, second = _parse_plain_number(answer), _parse_plain_number(gold)
    if first is not None and second is not None:
        return _plain_numbers_equal(first, second)
    if max(len(answer), len(gold)) > MAX_ANSWER_CHARS:
        return answer == gold  # too long for an answer; the engine would only run into its time bound
    left, right = _strip_latex_spacing(answer), _strip_latex_spacing(gold)
    if left == right:
        return left != ""
    if _is_word(right):
        return left.casefold() == right.casefold()
    if not left or re.fullmatch(r"[0-9]+(?: [0-9]+)+", left):
        return False  # the engine reads "3 5" as 3 + 5
    return None


def same_answer(a: str, b: str) -> bool:
    """Whether two extracted answers are equal, without the symbolic engine.

    0.5, 1/2 and .50 are equal, and so are 12 and $12, or Paris and paris. 2x and x*2 are not.
    """
    return match_without_engine(clean_latex(a), clean_latex(b)) is True


def truncate_for_record(answer: str) -> str:
    """An answer for a record: its first MAX_ANSWER_CHARS characters; a lone surrogate, which UTF-8 cannot encode, becomes "?"."""
    return answer[:MAX_ANSWER_CHARS].encode("utf-8", "replace").decode()


class Verifier:
    """Checks answers against golds, from any thread. A context manager; `close` stops every worker process.

    seconds: wall time for one symbolic check.
    memory_bytes: address space of one worker process.
    workers: number of symbolic checks at the same time; a worker starts when it is first needed.
    Raises ValueError for bounds in which nothing can run.
    """

    def __init__(self, seconds: float = 5.0, memory_bytes: int = 1 << 30, workers: int = 1) -> None:
        if seconds <= 0 or workers < 1 or memory_bytes < MIN_WORKER_MEMORY_BYTES:
            raise ValueError(f"need seconds > 0, workers >= 1, memory_bytes >= {MIN_WORKER_MEMORY_BYTES}")
        self._timeout_seconds, self._memory_bytes, self._n_workers = seconds, memory_bytes, workers
        self._create_slots()

    def _create_slots(self) -> None:
        self._owner_pid = os.getpid()
        self._slots: queue.LifoQueue[SymbolicWorker | None] = queue.LifoQueue()
        for _ in range(self._n_workers):
            self._slots.put(None)

    def __enter__(self) -> "Verifier":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Stop every worker, after the checks in progress. A later check starts a new worker."""
        if self._owner_pid != os.getpid():
            return
        for worker in [self._slots.get() for _ in range(self._n_workers)]:
            if worker is not None:
                worker.close()
            self._slots.put(None)

    def check(self, answer: str | None, gold: str) -> Verdict:
        """The verdict on one extracted answer. An answer of None (none was found) is wrong."""
        if answer is None:
            return Verdict(correct=False)
        mine, theirs = clean_latex(answer), clean_latex(gold)
        correct, error = match_without_engine(mine, theirs), None
        if correct is None:
            correct, error = self._check_symbolically(mine, theirs)
        return Verdict(correct=correct, extracted=truncate_for_record(answer), error=error)

    def check_many(self, pairs: Iterable[tuple[str | None, str]]) -> list[Verdict]:
        """The verdict on each (answer, gold), in order. Equal pairs are checked once."""
        pairs = list(pairs)
        distinct = list(dict.fromkeys(pairs))
        if self._n_workers == 1:
            verdicts = [self.check(*pair) for pair in distinct]
        else:
            with ThreadPoolExecutor(self._n_workers) as threads:
                verdicts = list(threads.map(lambda pair: self.check(*pair), distinct))
        known = dict(zip(distinct, verdicts, strict=True))
        return [known[pair] for pair in pairs]

    def _check_symbolically(self, answer: str, gold: str) -> tuple[bool | None, str | None]:
        if self._owner_pid != os.getpid():
            self._create_slots()  # after a fork: the workers belong to the parent process
        slots = self._slots
        worker, kept = slots.get(), None
        try:
            if worker is None or not worker.is_alive():
                worker = SymbolicWorker(self._timeout_seconds, self._memory_bytes)
            reply = worker.check(answer, gold)
            kept = None if reply.get("retire") else worker
            return reply.get("correct"), reply.get("error")
        except (WorkerLostError, OSError) as lost:
            return None, str(lost)
        finally:
            # Also after Ctrl-C: a worker with a pending reply would send it as the reply to the next question.
            if worker is not None and worker is not kept:
                worker.close()
            slots.put(kept)
