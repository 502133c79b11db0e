"""What of a model's replies is kept: pure functions of the replies, in the order in which they were asked for.

Whatever is left out is counted under its reason. A reply is None where the call failed; it adds nothing.

A list, or an object, read out of a model's reply, which may hold anything.

In order: JSON as asked for, also in a code fence or with prose around it; the same as Python would print it; and of a reply that
is no such thing, or was cut off, the texts that stand whole in it. Nothing is ever run: `ast.literal_eval` reads literals alone,
and no more than `MOST` characters of a reply are looked at. What the texts say is not judged here.

Whether one text that a model wrote can be used as a question, or as an example answer; `RefusedError` says why not.

The checks are of form: what can be seen without understanding the text. Whether a question suits its persona and its task is for
a person to look at.
"""

import ast
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple

from permix.config import GymTask
from permix.personas.loading import plain_text
from permix.personas.similarity import NEAR, grams
from permix.types import normalise

SCORE_KEYS = ("1", "2", "3", "4", "5")
"""The keys of a reply that holds one example answer a score."""

MOST = 40_000
"""Characters of a reply that are read. A hundred long questions are about half of that."""

_TRIES = 50  # places at which JSON may begin: prose may hold brackets of its own

_BULLET = re.compile(r"(?:\(?\d{1,3}[.):]|[-*•–])\s+(?P<text>\S.*)")

_QUOTED = re.compile(r'(?<!\\)"(?P<text>(?:[^"\\\n]|\\.){1,2000}+)"(?P<key>\s*+:)?+')

_PAIR = re.compile(r'(?<!\\)"(?P<key>[^"\\\n]{1,40})"\s*:\s*(?P<text>"(?:[^"\\]|\\.){0,4000}")')

_WORDED = ("question", "situation", "setting", "text", "answer")


def read_list(reply: str) -> list[object] | None:
    """The items of the first list in the reply, texts in the main; None when nothing in it looks like a list."""
    text = reply[:MOST]
    for value in _values(text):
        if (items := _items(value)) is not None:
            return [_unwrapped(item) for item in items]
    lines = [line.strip() for line in text.split("\n")]
    bullets = [found["text"] for line in lines if (found := _BULLET.fullmatch(line))]
    texts = list(_quoted_lines(lines)) or bullets or [one["text"] for one in _QUOTED.finditer(text) if not one["key"]]
    return [_plain(one) for one in texts] or None


def read_object(reply: str) -> dict[str, object] | None:
    """The first object in the reply, keys as text; of one that was cut off or badly quoted, the pairs that are whole."""
    text = reply[:MOST]
    for value in _values(text):
        if isinstance(value, dict) and value:
            return {str(key): _unwrapped(item) for key, item in value.items()}
    pairs = {one["key"]: _plain(one["text"]) for one in _PAIR.finditer(text)}
    return dict(pairs) or None


def _values(text: str) -> Iterator[object]:
    """What the text holds as JSON, then as Python literals, from the outside in."""
    starts = [found.start() for found in re.finditer(r"[\[{]", text)][:_TRIES]
    decoder = json.JSONDecoder(strict=False)  # a line break inside a text is no reason to lose it
    for start in starts:
        with suppress(ValueError, RecursionError):
            yield decoder.raw_decode(text, start)[0]
    for start in starts:
        end = text.rfind("]" if text[start] == "[" else "}") + 1
        with suppress(ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
            yield ast.literal_eval(text[start:end])


def _items(value: object) -> list[object] | None:
    """The list, or the only list that an object holds."""
    if isinstance(value, dict):
        lists = [one for one in value.values() if isinstance(one, list)]
        value = lists[0] if len(lists) == 1 else None
    worded = isinstance(value, list) and any(isinstance(one, str | dict) for one in value)  # else a "[1]" of the prose
    return value if isinstance(value, list) and worded else None


def _quoted_lines(lines: Iterable[str]) -> Iterator[str]:
    """The texts of lines that are one quoted text each, whatever quotes stand inside it."""
    for line in lines:
        bare = line.strip("[]{},; ")
        if len(bare) > 2 and bare[0] == bare[-1] == '"' and not re.search(r'",\s?"', bare):
            yield bare


def _unwrapped(item: object) -> object:
    """The text of an item like {"question": "..."}; any other item as it is."""
    if not isinstance(item, dict):
        return item
    texts = [one for one in item.values() if isinstance(one, str)]
    named = [item[name] for name in _WORDED if isinstance(item.get(name), str)]
    return named[0] if named else texts[0] if len(texts) == 1 else item


def _plain(text: str) -> str:
    """Without what JSON, Markdown and a list put around a text."""
    text = text.strip("*_`, \t")
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'":
        with suppress(ValueError):
            return str(json.loads(text, strict=False))
        return text[1:-1].strip()
    return text


LEAST_WORDS, MOST_CHARS = 4, 800
"""Of a question. The long ones first tell a situation and what was done in it, in about 300 characters."""

EXAMPLE_CHARS = 2000


_QUESTION_MARK = re.compile(r"[?？][\"'”’»)\]]*$")

_SENTENCE_END = re.compile(r"(?<=[.!?:;])\s+")

_REQUEST = """
    address answer argue choose comfort compare compose convince craft create decide defend deliver demonstrate describe detail
    discuss explain express give greet help illustrate introduce justify lay list make name narrate offer outline persuade present
    provide recall recite recount relate reply respond say share show sing speak summarise summarize take talk teach tell walk
    warn write
"""

_REQUESTS = frozenset(_REQUEST.split())

_BEFORE_REQUEST = frozenset(["please", "now", "so", "then", "and", "just", "kindly"])

_LEAD_IN = re.compile(r"(after|as|at|before|by|during|from|if|imagine|in|on|to|when|while|with)\b[^,]*,\s*", re.IGNORECASE)

_NAMES_TEST = re.compile(
    r"\b(expected action|toxicity|linguistic habits?|persona consistency|action justification|(this|the|your) persona|rubric)\b",
    re.IGNORECASE,
)

_SCORE_BEFORE = re.compile(r"^\W*(?:score|rating)\W{0,3}[1-5]\b\W*", re.IGNORECASE)

_NAMES_SCORE = re.compile(r"\b(?:score|rating)\s*(?:of|is|=|:)?\s*[1-5]\b", re.IGNORECASE)


class RefusedError(Exception):
    """A text that cannot be used; the message is a reason that is counted."""


def question(item: object) -> str:
    """The item as a question to a persona."""
    text = _text(item, MOST_CHARS)
    if (text[0], text[-1]) in (('"', '"'), ("“", "”")):
        text = text[1:-1].strip()
    if len(text.split()) < LEAST_WORDS:
        raise RefusedError("too short")
    if _NAMES_TEST.search(text):
        raise RefusedError("names the test")
    if not asks(text):
        raise RefusedError("asks nothing")
    return text


def asks(text: str) -> bool:
    """Whether the text ends with a question mark, or with a request ("Tell us ...", "At the gate, describe ...")."""
    if _QUESTION_MARK.search(text):
        return True
    last = _SENTENCE_END.split(text)[-1]
    words = re.findall(r"[a-z]+", (last[found.end() :] if (found := _LEAD_IN.match(last)) else last).casefold())
    return next((word for word in words if word not in _BEFORE_REQUEST), "") in _REQUESTS


def examples(found: Mapping[str, object]) -> tuple[str, ...]:
    """The five answers in an object, in the order of their scores, without a "Score 3:" before them."""
    by_score = {one[0]: text for key, text in found.items() if (one := re.findall(r"[1-5]", key))}
    if not all(score in by_score for score in SCORE_KEYS):
        raise RefusedError("not five answers")
    texts = tuple(_example(by_score[score]) for score in SCORE_KEYS)
    if len(set(map(normalise, texts))) < len(texts):
        raise RefusedError("repeated")
    return texts


def _example(item: object) -> str:
    text = _text(
        _SCORE_BEFORE.sub("", item, count=1) if isinstance(item, str) and _SCORE_BEFORE.match(item) else item, EXAMPLE_CHARS
    )
    if _NAMES_SCORE.search(text):
        raise RefusedError("names its score")
    return text


def _text(item: object, most: int) -> str:
    if not isinstance(item, str):
        raise RefusedError("not a text")
    if not item.strip():
        raise RefusedError("empty")
    if len(item) > most:
        raise RefusedError("too long")
    try:
        return plain_text(item)
    except ValueError:
        raise RefusedError("holds control characters") from None


Replies = Sequence[str | None]


LEAST_SITUATIONS, MOST_SITUATIONS = 3, 10


class Sifted(NamedTuple):
    """What was kept, in order, and how often something was left out, by reason."""

    kept: tuple[str, ...]
    refused: Counter[str]


def situations_of(replies: Replies, listed: Sequence[str]) -> Sifted:
    """The situations that were chosen from the list, as the list spells them: at most `MOST_SITUATIONS`."""
    known, kept, refused = {bare(one): one for one in listed}, list[str](), Counter[str]()
    for item in _all_items(replies, refused):
        found = known.get(bare(item)) if isinstance(item, str) else None
        if found is None:
            refused["not in the list"] += 1
        elif found in kept:
            refused["repeated"] += 1
        elif len(kept) == MOST_SITUATIONS:
            refused["more than asked for"] += 1
        else:
            kept.append(found)
    return Sifted(tuple(kept), refused)


def questions_of(replies: Mapping[GymTask, Replies], n: int) -> dict[GymTask, Sifted]:
    """The first `n` usable questions of each task that resemble none before them, of any task of this persona.

    All tasks' first replies come before any task's second, so what was kept stays kept when more is asked for.
    """
    kept: dict[GymTask, list[str]] = {task: [] for task in replies}
    refused = {task: Counter[str]() for task in replies}
    there: list[frozenset[str]] = []
    for place in range(max(map(len, replies.values()), default=0)):
        for task in replies:
            for item in _all_items(replies[task][place : place + 1], refused[task]):
                try:
                    text = _new_question(item, there)
                    if len(kept[task]) == n:
                        raise RefusedError("more than asked for")
                except RefusedError as reason:
                    refused[task][str(reason)] += 1
                    continue
                kept[task].append(text)
                there.append(grams(text))
    return {task: Sifted(tuple(kept[task]), refused[task]) for task in replies}


def examples_of(replies: Replies) -> Sifted:
    """Five answers, for the scores 1 to 5, out of the first reply that holds them; none otherwise."""
    refused = Counter[str]()
    for reply in replies:
        if reply is None:
            continue
        try:
            found = read_object(reply)
            if found is None:
                raise RefusedError("no object in the reply")
            return Sifted(examples(found), refused)
        except RefusedError as reason:
            refused[str(reason)] += 1
    return Sifted((), refused)


def setting_of(question: str, situations: Sequence[str]) -> str | None:
    """The one situation whose words stand in the question; None where that is not one."""
    plain = normalise(question)
    named = [one for one in situations if bare(one) in plain]
    return named[0] if len(named) == 1 else None


def _all_items(replies: Replies, refused: Counter[str]) -> Iterator[object]:
    """All items of all replies; a reply without a list is counted."""
    for reply in replies:
        if reply is None:
            continue
        items = read_list(reply)
        if items is None:
            refused["no list in the reply"] += 1
        yield from items or []


def _new_question(item: object, there: Sequence[frozenset[str]]) -> str:
    text = question(item)
    mine = grams(text)
    if any(len(mine & one) >= NEAR * (len(mine) * len(one)) ** 0.5 for one in there):
        raise RefusedError("repeated")
    return text


def bare(situation: str) -> str:
    """What a situation is known by: without case, article and the marks at its ends."""
    return re.sub(r"^(an?|the)\s", "", normalise(situation).strip(" .,;:!-–\"'*"))
