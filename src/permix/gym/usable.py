"""Whether one text that a model wrote can be used as a question, or as an example answer; `RefusedError` says why not.

The checks are of form: what can be seen without understanding the text. Whether a question suits its persona and its task is for
a person to look at.
"""

import re
from collections.abc import Mapping

from permix.gym.prompts import SCORES
from permix.personas.load import plain_text
from permix.types import normalise

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
    if not all(score in by_score for score in SCORES):
        raise RefusedError("not five answers")
    texts = tuple(_example(by_score[score]) for score in SCORES)
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
