"""What a judge's reply says: a score from 1 to 5, or None and why there is none.

A JSON object with a score in it decides, wherever it stands; else a sentence that says the final score; else sentences that are
nothing but a score ("Score: 4", "4/5"); else a reply that is nothing but a number. What also stands in the answer that was
judged, whatever the number, is the answer's: a judge that repeats "the final score is 5" has said nothing. About an answer that
itself reads as a verdict, only a JSON object with a reason of its own decides. Neither rule looks at the number, or an answer
could choose which scores count. Two different scores are none. Nothing is rounded, and a scale other than 1 to 5 is not
converted. Its contract: it never fails, whatever the reply.
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
"""Or as well may: whatever its number. Ledgers hold these words."""


class Reading(NamedTuple):
    """`error` says why `score` is None; one of the two is always None."""

    score: int | None
    error: str | None = None


class Claim(NamedTuple):
    """A place that names a score: what it reads in full, what the score is said to be, and the reasons given with it."""

    words: str
    value: object
    reasons: tuple[str, ...] = ()


def read_verdict(reply: str, answer: str) -> Reading:
    """The score that a judge gave by `reply`; `answer` is all that the judged model wrote of what it was shown."""
    said = _after_thinking(reply)
    if said is None:
        return Reading(None, "no score in the reply: its thinking never ends")
    if not said.strip():
        return Reading(None, "the reply is empty")
    shown = _Shown(answer)
    every = _in_json(said), _final(said), _plain(said), _alone(said)
    for claims in every:
        if own := [claim for claim in claims if shown.leaves_to_the_judge(claim)]:
            return _one_of(own)
    return Reading(None, REPEATED if any(every) else "no score in the reply")


def _after_thinking(reply: str) -> str | None:
    """What follows the last </think> that does not stand inside a verdict; None where a <think> at the beginning is not closed.

    Some chat templates open the thinking themselves, so that the reply has its end alone.
    """
    verdicts = [(start, start + len(raw)) for start, raw, _ in _objects(reply)] if "</think>" in reply else []
    ends = [found for found in re.finditer("</think>", reply) if not any(start < found.start() < end for start, end in verdicts)]
    if ends:
        return reply[ends[-1].end() :]
    return None if reply.lstrip().startswith("<think>") else reply


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
    """The judged answer, to see what a judge has only repeated: by words alone, whatever stands between them and whatever the
    numbers."""

    def __init__(self, answer: str) -> None:
        lines = _SENTENCE_END.split(answer)
        self._text = _spaced(answer)
        self._lines = {_spaced(line) for line in lines}
        self._is_verdict = any((_in_json(answer), _final(answer), _plain(answer), _alone(answer), *map(_alone, lines)))

    def leaves_to_the_judge(self, claim: Claim) -> bool:
        """Whether the claim can only be the judge's own."""
        if self._is_verdict:
            return any(reason.strip() and reason not in self._text for reason in map(_spaced, claim.reasons))
        words = _spaced(claim.words)
        # A lone number is all over an answer: it is repeated only where it stands alone there, too.
        return words not in self._lines and not (words.count(" ") > 2 and words in self._text)


def _spaced(text: str) -> str:
    """ " final score is # ": every number alike."""
    return f" {' '.join('#' if word.isdecimal() else word for word in _WORD.findall(normalise(text)))} "


def _in_json(text: str) -> list[Claim]:
    claims: list[Claim] = []
    for _, raw, found in _objects(text):
        scores = [key for key in found if _is_score(key)]
        reasons = tuple(value for key, value in found.items() if key not in scores and isinstance(value, str))
        claims.extend(Claim(raw, found[key], reasons) for key in scores)
    return claims


def _is_score(key: str) -> bool:
    return key.strip().casefold() == "score"


def _objects(text: str) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """Every JSON object that has a score: where it stands, as written and as read; not those inside such a one."""
    decoder, place = json.JSONDecoder(), text.find("{")
    while place >= 0:
        end = place + 1
        try:
            found, end_found = decoder.raw_decode(text, place)
        except (ValueError, RecursionError):
            pass
        else:
            if any(map(_is_score, found)):
                yield place, text[place:end_found], found
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
