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

from permix.types import canonical_text

_NUMBER = r"([-−+]?\d+(?:\.\d+)?)(?:\s*(?:/|out\s+of)\s*(\d+(?:\.\d+)?))?"

_NUMBER_ONLY = re.compile(_NUMBER)

_LINKING_WORDS = r"[\s*_:=]{0,8}(?:is|of)?[\s*_:=]{0,8}"

# Without what may not follow, "4 or 5", "15 to 20" and "4/10 or so" would be read in part.
_FINAL_SCORE = re.compile(rf"final (?:score|rating){_LINKING_WORDS}{_NUMBER}(?!\.?\d|\s*(?:/|out of|-|–|to|or|and)\s*\d)")

_SCORE_SENTENCE = re.compile(
    r"(?:(?:therefore|thus|so|hence|overall|in total)\W+)?(?:(?:the|my|a|this is a)\s+)?(?:overall\s+)?"
    rf"(?:(?:score|rating)[\s*_:]{{0,8}}(?:is|of)?[\s*_:]{{0,8}}{_NUMBER}|([-−+]?\d+(?:\.\d+)?)\s*(?:/|out\s+of)\s*(\d+(?:\.\d+)?))"
)

_SENTENCE_END = re.compile(r"\n|</think>|[.!?;](?=\s|$)")

_WORD = re.compile(r"[^\W_]+|/")

_MARKUP_CHARS = "*_`#>\"'()[] \t\r\n"


REPEATED_SCORE_ERROR = "the only score in the reply is one that stands in the answer"
"""Or as well may: whatever its number. Ledgers hold these words."""


class ParsedScore(NamedTuple):
    """`error` says why `score` is None; one of the two is always None."""

    score: int | None
    error: str | None = None


class ScoreMention(NamedTuple):
    """A place that names a score: what it reads in full, what the score is said to be, and the reasons given with it."""

    text: str
    value: object
    reasons: tuple[str, ...] = ()


def parse_score(reply: str, answer: str) -> ParsedScore:
    """The score that a judge gave by `reply`; `answer` is all that the judged model wrote of what it was shown."""
    said = _strip_thinking(reply)
    if said is None:
        return ParsedScore(None, "no score in the reply: its thinking never ends")
    if not said.strip():
        return ParsedScore(None, "the reply is empty")
    shown = _AnswerText(answer)
    every = _json_mentions(said), _final_score_mentions(said), _score_sentence_mentions(said), _number_only_mentions(said)
    for claims in every:
        if own := [claim for claim in claims if shown.is_from_judge(claim)]:
            return _resolve_mentions(own)
    return ParsedScore(None, REPEATED_SCORE_ERROR if any(every) else "no score in the reply")


def _strip_thinking(reply: str) -> str | None:
    """What follows the last </think> that does not stand inside a verdict; None where a <think> at the beginning is not closed.

    Some chat templates open the thinking themselves, so that the reply has its end alone.
    """
    verdicts = [(start, start + len(raw)) for start, raw, _ in _score_objects(reply)] if "</think>" in reply else []
    ends = [found for found in re.finditer("</think>", reply) if not any(start < found.start() < end for start, end in verdicts)]
    if ends:
        return reply[ends[-1].end() :]
    return None if reply.lstrip().startswith("<think>") else reply


def _resolve_mentions(mentions: Iterable[ScoreMention]) -> ParsedScore:
    readings = list(dict.fromkeys(_parse_value(claim.value) for claim in mentions))
    if len(readings) == 1:
        return readings[0]
    values = ", ".join(_short_repr(claim.value) for claim in mentions)
    return ParsedScore(None, f"several different scores ({values[:80]}), and none of them said to be the final one")


def _parse_value(value: object) -> ParsedScore:
    """A number, or a text that is one; nothing else is a score, and True is no number."""
    number: object = value
    if isinstance(value, str):
        found = _NUMBER_ONLY.fullmatch(value.strip())
        number = None if found is None or found[2] not in (None, "5") else float(found[1].replace("−", "-"))
    if isinstance(number, bool) or not isinstance(number, (int, float)) or number not in (1, 2, 3, 4, 5):
        return ParsedScore(None, f"score = {_short_repr(value)}: must be a whole number from 1 to 5")
    return ParsedScore(int(number))


def _short_repr(value: object) -> str:
    shown = repr(value) if isinstance(value, (str, int, float, bool)) or value is None else f"a {type(value).__name__}"
    return shown if len(shown) <= 60 else f"{shown[:59]}…"


class _AnswerText:
    """The judged answer, to see what a judge has only repeated: by words alone, whatever stands between them and whatever the
    numbers."""

    def __init__(self, answer: str) -> None:
        lines = _SENTENCE_END.split(answer)
        self._normalized_text = _normalize_words(answer)
        self._normalized_lines = {_normalize_words(line) for line in lines}
        self._reads_as_score = any(
            (
                _json_mentions(answer),
                _final_score_mentions(answer),
                _score_sentence_mentions(answer),
                _number_only_mentions(answer),
                *map(_number_only_mentions, lines),
            )
        )

    def is_from_judge(self, mention: ScoreMention) -> bool:
        """Whether the claim can only be the judge's own."""
        if self._reads_as_score:
            return any(
                reason.strip() and reason not in self._normalized_text for reason in map(_normalize_words, mention.reasons)
            )
        words = _normalize_words(mention.text)
        # A lone number is all over an answer: it is repeated only where it stands alone there, too.
        return words not in self._normalized_lines and not (words.count(" ") > 2 and words in self._normalized_text)


def _normalize_words(text: str) -> str:
    """ " final score is # ": every number alike."""
    return f" {' '.join('#' if word.isdecimal() else word for word in _WORD.findall(canonical_text(text)))} "


def _json_mentions(text: str) -> list[ScoreMention]:
    claims: list[ScoreMention] = []
    for _, raw, found in _score_objects(text):
        scores = [key for key in found if _is_score_key(key)]
        reasons = tuple(value for key, value in found.items() if key not in scores and isinstance(value, str))
        claims.extend(ScoreMention(raw, found[key], reasons) for key in scores)
    return claims


def _is_score_key(key: str) -> bool:
    return key.strip().casefold() == "score"


def _score_objects(text: str) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """Every JSON object that has a score: where it stands, as written and as read; not those inside such a one."""
    decoder, place = json.JSONDecoder(), text.find("{")
    while place >= 0:
        end = place + 1
        try:
            found, end_found = decoder.raw_decode(text, place)
        except (ValueError, RecursionError):
            pass
        else:
            if any(map(_is_score_key, found)):
                yield place, text[place:end_found], found
                end = end_found
        place = text.find("{", end)


def _final_score_mentions(text: str) -> list[ScoreMention]:
    return [ScoreMention(found[0], _format_number(found[1], found[2])) for found in _FINAL_SCORE.finditer(canonical_text(text))]


def _score_sentence_mentions(text: str) -> list[ScoreMention]:
    """Sentences that are a score and nothing more. "Score = 4" is how rubrics describe one, and no such sentence."""
    claims = []
    for sentence in _SENTENCE_END.split(text):
        bare = canonical_text(sentence).strip(_MARKUP_CHARS)
        if found := _SCORE_SENTENCE.fullmatch(bare):
            claims.append(ScoreMention(bare, _format_number(found[1] or found[3], found[2] or found[4])))
    return claims


def _number_only_mentions(text: str) -> list[ScoreMention]:
    bare = text.lstrip(_MARKUP_CHARS).rstrip(_MARKUP_CHARS + ".")
    return [ScoreMention(bare, bare)] if _NUMBER_ONLY.fullmatch(bare) else []


def _format_number(number: str, scale: str | None) -> str:
    return number if scale is None else f"{number}/{scale}"
