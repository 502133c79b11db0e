"""A list, or an object, read out of a model's reply, which may hold anything.

In order: JSON as asked for, also in a code fence or with prose around it; the same as Python would print it; and of a reply that
is no such thing, or was cut off, the texts that stand whole in it. Nothing is ever run: `ast.literal_eval` reads literals alone,
and no more than `MOST` characters of a reply are looked at. What the texts say is not judged here.
"""

import ast
import json
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress

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
