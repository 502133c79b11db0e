"""Parse the replies of a model that writes situations, questions and example answers, and keep the usable items.

Lists and objects are read, in this order, as JSON (also inside a code fence or prose), as Python literals, and, if a reply is
malformed or cut off, as the complete texts in it. Nothing is executed (`ast.literal_eval` reads literals only), and at most
`MAX_REPLY_CHARS` characters of a reply are read.

The checks of a text are formal: length, characters, repetition, and whether it asks something. Whether a question suits its
persona and task is left to a human reader.

Contract: the filters are pure functions of the replies in the order of the requests. Every rejected item is counted under its
reason. A reply of None is a failed call and contributes nothing.
"""

import ast
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple

from permix.config import PersonaGymTask
from permix.personas.loading import check_plain_text
from permix.personas.pool import NEAR_DUPLICATE_THRESHOLD, char_trigrams
from permix.types import canonical_text

SCORE_KEYS = ("1", "2", "3", "4", "5")
"""Keys of a reply with example answers: one answer per score."""

MAX_REPLY_CHARS = 40_000
"""Number of characters of a reply that are read; a hundred long questions need about half of it."""

_MAX_JSON_STARTS = 50  # places where parsing is tried: prose can contain brackets too

_BULLET = re.compile(r"(?:\(?\d{1,3}[.):]|[-*•–])\s+(?P<text>\S.*)")

_QUOTED_STRING = re.compile(r'(?<!\\)"(?P<text>(?:[^"\\\n]|\\.){1,2000}+)"(?P<key>\s*+:)?+')

_KEY_VALUE_PAIR = re.compile(r'(?<!\\)"(?P<key>[^"\\\n]{1,40})"\s*:\s*(?P<text>"(?:[^"\\]|\\.){0,4000}")')

_TEXT_KEYS = ("question", "situation", "setting", "text", "answer")


def parse_list(reply: str) -> list[object] | None:
    """Read the items of the first list in the reply, mostly texts; None if nothing looks like a list."""
    text = reply[:MAX_REPLY_CHARS]
    for value in _parse_values(text):
        if (items := _find_list(value)) is not None:
            return [_unwrap_item(item) for item in items]
    lines = [line.strip() for line in text.split("\n")]
    bullets = [match["text"] for line in lines if (match := _BULLET.fullmatch(line))]
    texts = list(_quoted_lines(lines)) or bullets or [one["text"] for one in _QUOTED_STRING.finditer(text) if not one["key"]]
    return [_strip_markup(one) for one in texts] or None


def parse_object(reply: str) -> dict[str, object] | None:
    """Read the first non-empty object in the reply. Of an object that cannot be parsed, read its complete key-value pairs."""
    text = reply[:MAX_REPLY_CHARS]
    for value in _parse_values(text):
        if isinstance(value, dict) and value:
            return {str(key): _unwrap_item(item) for key, item in value.items()}
    pairs = {one["key"]: _strip_markup(one["text"]) for one in _KEY_VALUE_PAIR.finditer(text)}
    return dict(pairs) or None


def _parse_values(text: str) -> Iterator[object]:
    """Yield the values that parse as JSON, then as Python literals; outer values come first."""
    starts = [match.start() for match in re.finditer(r"[\[{]", text)][:_MAX_JSON_STARTS]
    decoder = json.JSONDecoder(strict=False)  # accepts line breaks inside a string
    for start in starts:
        with suppress(ValueError, RecursionError):
            yield decoder.raw_decode(text, start)[0]
    for start in starts:
        end = text.rfind("]" if text[start] == "[" else "}") + 1
        with suppress(ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
            yield ast.literal_eval(text[start:end])


def _find_list(value: object) -> list[object] | None:
    """The value if it is a list with texts or objects, or the only such list inside an object."""
    if isinstance(value, dict):
        lists = [one for one in value.values() if isinstance(one, list)]
        value = lists[0] if len(lists) == 1 else None
    # A list of numbers only can be a reference in prose, such as "[1]".
    has_items = isinstance(value, list) and any(isinstance(one, str | dict) for one in value)
    return value if isinstance(value, list) and has_items else None


def _quoted_lines(lines: Iterable[str]) -> Iterator[str]:
    """Yield lines that consist of one quoted text; it may contain unescaped quotes."""
    for line in lines:
        bare = line.strip("[]{},; ")
        if len(bare) > 2 and bare[0] == bare[-1] == '"' and not re.search(r'",\s?"', bare):
            yield bare


def _unwrap_item(item: object) -> object:
    """The text of an item such as {"question": "..."}; any other item is returned unchanged."""
    if not isinstance(item, dict):
        return item
    texts = [one for one in item.values() if isinstance(one, str)]
    named = [item[name] for name in _TEXT_KEYS if isinstance(item.get(name), str)]
    return named[0] if named else texts[0] if len(texts) == 1 else item


def _strip_markup(text: str) -> str:
    """Remove quotes, Markdown and list punctuation around a text."""
    text = text.strip("*_`, \t")
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'":
        with suppress(ValueError):
            return str(json.loads(text, strict=False))
        return text[1:-1].strip()
    return text


MIN_QUESTION_WORDS, MAX_QUESTION_CHARS = 4, 800
"""Limits of a question. Long questions first describe a situation and an action, in about 300 characters."""

MAX_EXAMPLE_CHARS = 2000


_QUESTION_MARK = re.compile(r"[?？][\"'”’»)\]]*$")

_SENTENCE_END = re.compile(r"(?<=[.!?:;])\s+")

_REQUEST_VERB_LIST = """
    address answer argue choose comfort compare compose convince craft create decide defend deliver demonstrate describe detail
    discuss explain express give greet help illustrate introduce justify lay list make name narrate offer outline persuade present
    provide recall recite recount relate reply respond say share show sing speak summarise summarize take talk teach tell walk
    warn write
"""

_REQUEST_VERBS = frozenset(_REQUEST_VERB_LIST.split())

_REQUEST_PREFIXES = frozenset(["please", "now", "so", "then", "and", "just", "kindly"])

_LEADING_CLAUSE = re.compile(r"(after|as|at|before|by|during|from|if|imagine|in|on|to|when|while|with)\b[^,]*,\s*", re.IGNORECASE)

_TEST_VOCABULARY = re.compile(
    r"\b(expected action|toxicity|linguistic habits?|persona consistency|action justification|(this|the|your) persona|rubric)\b",
    re.IGNORECASE,
)

_SCORE_PREFIX = re.compile(r"^\W*(?:score|rating)\W{0,3}[1-5]\b\W*", re.IGNORECASE)

_SCORE_WORDING = re.compile(r"\b(?:score|rating)\s*(?:of|is|=|:)?\s*[1-5]\b", re.IGNORECASE)


class InvalidItemError(Exception):
    """A text cannot be used. The message is the reason under which the rejection is counted."""


def validate_question(item: object) -> str:
    """The item as a question to a persona. Raises InvalidItemError."""
    text = _validate_text(item, MAX_QUESTION_CHARS)
    if (text[0], text[-1]) in (('"', '"'), ("“", "”")):
        text = text[1:-1].strip()
    if len(text.split()) < MIN_QUESTION_WORDS:
        raise InvalidItemError("too short")
    if _TEST_VOCABULARY.search(text):
        raise InvalidItemError("names the test")
    if not is_question_or_request(text):
        raise InvalidItemError("asks nothing")
    return text


def is_question_or_request(text: str) -> bool:
    """Whether the text ends with a question mark, or its last sentence is a request ("At the gate, describe ...")."""
    if _QUESTION_MARK.search(text):
        return True
    last = _SENTENCE_END.split(text)[-1]
    words = re.findall(r"[a-z]+", (last[found.end() :] if (found := _LEADING_CLAUSE.match(last)) else last).casefold())
    return next((word for word in words if word not in _REQUEST_PREFIXES), "") in _REQUEST_VERBS


def validate_examples(answers: Mapping[str, object]) -> tuple[str, ...]:
    """The five example answers in the order of scores, without a leading "Score 3:". Raises InvalidItemError."""
    by_score = {one[0]: text for key, text in answers.items() if (one := re.findall(r"[1-5]", key))}
    if not all(score in by_score for score in SCORE_KEYS):
        raise InvalidItemError("not five answers")
    texts = tuple(_validate_example(by_score[score]) for score in SCORE_KEYS)
    if len(set(map(canonical_text, texts))) < len(texts):
        raise InvalidItemError("repeated")
    return texts


def _validate_example(item: object) -> str:
    text = _validate_text(
        _SCORE_PREFIX.sub("", item, count=1) if isinstance(item, str) and _SCORE_PREFIX.match(item) else item, MAX_EXAMPLE_CHARS
    )
    if _SCORE_WORDING.search(text):
        raise InvalidItemError("names its score")
    return text


def _validate_text(item: object, max_chars: int) -> str:
    if not isinstance(item, str):
        raise InvalidItemError("not a text")
    if not item.strip():
        raise InvalidItemError("empty")
    if len(item) > max_chars:
        raise InvalidItemError("too long")
    try:
        return check_plain_text(item)
    except ValueError:
        raise InvalidItemError("holds control characters") from None


Replies = Sequence[str | None]


MIN_SITUATIONS, MAX_SITUATIONS = 3, 10


class FilterResult(NamedTuple):
    """Kept items in order, and the number of rejected items by reason."""

    kept: tuple[str, ...]
    rejected: Counter[str]


def filter_situations(replies: Replies, candidates: Sequence[str]) -> FilterResult:
    """Keep up to `MAX_SITUATIONS` situations that are in the list of candidates, in the spelling of the list."""
    known, kept, rejected = {normalize_situation(one): one for one in candidates}, list[str](), Counter[str]()
    for item in _parse_items(replies, rejected):
        situation = known.get(normalize_situation(item)) if isinstance(item, str) else None
        if situation is None:
            rejected["not in the list"] += 1
        elif situation in kept:
            rejected["repeated"] += 1
        elif len(kept) == MAX_SITUATIONS:
            rejected["more than asked for"] += 1
        else:
            kept.append(situation)
    return FilterResult(tuple(kept), rejected)


def filter_questions(replies: Mapping[PersonaGymTask, Replies], n: int) -> dict[PersonaGymTask, FilterResult]:
    """Keep the first `n` usable questions of each task; near-duplicates of an earlier question of the persona are rejected.

    The first replies of all tasks are read before any second reply, and no reply is read before an earlier one that is still
    missing. So later replies never change which questions were kept.
    """
    kept: dict[PersonaGymTask, list[str]] = {task: [] for task in replies}
    rejected = {task: Counter[str]() for task in replies}
    kept_trigrams: list[frozenset[str]] = []
    for call in range(max(map(len, replies.values()), default=0)):
        for task in replies:
            if call >= len(replies[task]) and len(kept[task]) < n:
                return {task: FilterResult(tuple(kept[task]), rejected[task]) for task in replies}
            for item in _parse_items(replies[task][call : call + 1], rejected[task]):
                try:
                    text = _validate_new_question(item, kept_trigrams)
                    if len(kept[task]) == n:
                        raise InvalidItemError("more than asked for")
                except InvalidItemError as reason:
                    rejected[task][str(reason)] += 1
                    continue
                kept[task].append(text)
                kept_trigrams.append(char_trigrams(text))
    return {task: FilterResult(tuple(kept[task]), rejected[task]) for task in replies}


def filter_examples(replies: Replies) -> FilterResult:
    """Keep the five answers, for the scores 1 to 5, of the first valid reply; keep nothing if no reply is valid."""
    rejected = Counter[str]()
    for reply in replies:
        if reply is None:
            continue
        try:
            answers = parse_object(reply)
            if answers is None:
                raise InvalidItemError("no object in the reply")
            return FilterResult(validate_examples(answers), rejected)
        except InvalidItemError as reason:
            rejected[str(reason)] += 1
    return FilterResult((), rejected)


def match_situation(question: str, situations: Sequence[str]) -> str | None:
    """The situation whose words occur in the question; None if no situation or several match."""
    question_text = canonical_text(question)
    matches = [one for one in situations if normalize_situation(one) in question_text]
    return matches[0] if len(matches) == 1 else None


def _parse_items(replies: Replies, rejected: Counter[str]) -> Iterator[object]:
    """Yield all items of all replies; a reply without a list is counted as rejected."""
    for reply in replies:
        if reply is None:
            continue
        items = parse_list(reply)
        if items is None:
            rejected["no list in the reply"] += 1
        yield from items or []


def _validate_new_question(item: object, accepted_ngrams: Sequence[frozenset[str]]) -> str:
    text = validate_question(item)
    trigrams = char_trigrams(text)
    if any(len(trigrams & one) >= NEAR_DUPLICATE_THRESHOLD * (len(trigrams) * len(one)) ** 0.5 for one in accepted_ngrams):
        raise InvalidItemError("repeated")
    return text


def normalize_situation(situation: str) -> str:
    """Normalize a situation for comparison: no case, no leading article, no punctuation at the ends."""
    return re.sub(r"^(an?|the)\s", "", canonical_text(situation).strip(" .,;:!-–\"'*"))
