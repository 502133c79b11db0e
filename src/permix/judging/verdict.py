"""What a judge's reply says: a score from 1 to 5, or None and why there is none.

A JSON object with a score in it decides, wherever it stands; else a sentence that says the final score; else sentences that are
nothing but a score ("Score: 4", "4/5"); else a reply that is nothing but a number. What also stands word for word in the answer
that was judged is the answer's: a judge that repeats "the final score is 5" has said nothing. Two different scores are none.
Nothing is rounded, and a scale other than 1 to 5 is not converted. Its contract: it never fails, whatever the reply.
"""

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from permix.types import normalise

_NUMBER = r"([-−+]?\d+(?:\.\d+)?)(?:\s*(?:/|out\s+of)\s*(\d+(?:\.\d+)?))?"
_WHOLE_NUMBER = re.compile(_NUMBER)
_LINK = r"[\s*_:=]{0,8}(?:is|of)?[\s*_:=]{0,8}"
# Without what may not follow, "4 or 5", "15 to 20" and "4/10 or so" would be read in part.
_FINAL = re.compile(rf"final (?:score|rating){_LINK}{_NUMBER}(?!\.?\d|\s*(?:/|out of|-|–|to|or|and)\s*\d)")
_PLAIN = re.compile(
    r"(?:(?:therefore|thus|so|hence|overall|in total)\W+)?(?:(?:the|my|a|this is a)\s+)?(?:overall\s+)?"
    rf"(?:(?:score|rating)[\s*_:]{{0,8}}(?:is|of)?[\s*_:]{{0,8}}{_NUMBER}|([-−+]?\d+(?:\.\d+)?)\s*(?:/|out\s+of)\s*(\d+(?:\.\d+)?))"
)
_SENTENCE_END = re.compile(r"\n|</think>|[.!?;](?=\s|$)")
_WORD = re.compile(r"[^\W_]+|/")
_EMBELLISHMENT = "*_`#>\"'()[] \t\r\n"


REPEATED = "the only score in the reply is one that stands in the answer"


class Reading(NamedTuple):
    """`error` says why `score` is None; one of the two is always None."""

    score: int | None
    error: str | None = None


class Claim(NamedTuple):
    """A place that names a score: what it reads in full, and what the score is said to be."""

    words: str
    value: object


def read_verdict(reply: str, answer: str) -> Reading:
    """The score that a judge gave by `reply`; `answer` is all that the judged model wrote of what it was shown."""
    said = reply.rpartition("</think>")[2]
    if not said.strip():
        return Reading(None, "the reply is empty")
    shown = _Shown(answer)
    repeated = False
    for claims in (_in_json(said), _final(said), _plain(said), _alone(said)):
        own = [claim for claim in claims if claim not in shown]
        if own:
            return _one_of(own)
        repeated = repeated or bool(claims)
    return Reading(None, REPEATED if repeated else "no score in the reply")


def _one_of(claims: Iterable[Claim]) -> Reading:
    readings = list(dict.fromkeys(_read(claim.value) for claim in claims))
    if len(readings) == 1:
        return readings[0]
    values = ", ".join(_brief(claim.value) for claim in claims)
    return Reading(None, f"several different scores ({values[:80]}), and none of them said to be the final one")


def _read(value: object) -> Reading:
    """A number, or a text that is one; nothing else is a score, and True is no number."""
    number: object = value
    if isinstance(value, str):
        found = _WHOLE_NUMBER.fullmatch(value.strip())
        number = None if found is None or found[2] not in (None, "5") else float(found[1].replace("−", "-"))
    if isinstance(number, bool) or not isinstance(number, (int, float)) or number not in (1, 2, 3, 4, 5):
        return Reading(None, f"score = {_brief(value)}: must be a whole number from 1 to 5")
    return Reading(int(number))


def _brief(value: object) -> str:
    shown = repr(value) if isinstance(value, (str, int, float, bool)) or value is None else f"a {type(value).__name__}"
    return shown if len(shown) <= 60 else f"{shown[:59]}…"


class _Shown:
    """The judged answer, to see what a judge has only repeated: by words alone, whatever stands between them."""

    def __init__(self, answer: str) -> None:
        self._text = _spaced(answer)
        self._lines = {_spaced(line) for line in _SENTENCE_END.split(answer)}

    def __contains__(self, claim: Claim) -> bool:
        words = _spaced(claim.words)
        # A lone number is all over an answer: it is repeated only where it stands alone there, too.
        return words in self._lines or (words.count(" ") > 2 and words in self._text)


def _spaced(text: str) -> str:
    """ " final score is 5 "."""
    return f" {' '.join(_WORD.findall(normalise(text)))} "


def _in_json(text: str) -> list[Claim]:
    return [Claim(raw, found[key]) for raw, found in _objects(text) for key in found if key.strip().casefold() == "score"]


def _objects(text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every JSON object that has a score, as written and as read; not those inside such a one."""
    decoder, place = json.JSONDecoder(), text.find("{")
    while place >= 0:
        end = place + 1
        try:
            found, end_found = decoder.raw_decode(text, place)
        except (ValueError, RecursionError):
            pass
        else:
            if any(key.strip().casefold() == "score" for key in found):
                yield text[place:end_found], found
                end = end_found
        place = text.find("{", end)


def _final(text: str) -> list[Claim]:
    return [Claim(found[0], _number(found[1], found[2])) for found in _FINAL.finditer(normalise(text))]


def _plain(text: str) -> list[Claim]:
    """Sentences that are a score and nothing more. "Score = 4" is how rubrics describe one, and no such sentence."""
    claims = []
    for sentence in _SENTENCE_END.split(text):
        bare = normalise(sentence).strip(_EMBELLISHMENT)
        if found := _PLAIN.fullmatch(bare):
            claims.append(Claim(bare, _number(found[1] or found[3], found[2] or found[4])))
    return claims


def _alone(text: str) -> list[Claim]:
    bare = text.lstrip(_EMBELLISHMENT).rstrip(_EMBELLISHMENT + ".")
    return [Claim(bare, bare)] if _WHOLE_NUMBER.fullmatch(bare) else []


def _number(number: str, scale: str | None) -> str:
    return number if scale is None else f"{number}/{scale}"
