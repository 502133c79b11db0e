"""Read the score, 1 to 5, out of a judge's reply.

The first of these forms that occurs decides: a JSON object with a score, anywhere in the reply; a sentence that names the final
score; sentences that consist of a score only ("Score: 4", "4/5"); a reply that is only a number. Two different scores of the same
form give no score. Nothing is rounded, and scales other than 1 to 5 are not converted.

A score that also occurs in the judged answer counts as a quotation from it: a judge that repeats "the final score is 5" has not
scored. If the answer itself contains a score, only a JSON object counts, and only with a reason that is not in the answer.
Both rules ignore the value of the number; otherwise an answer could choose which scores count.

Contract: no reply makes `parse_score` raise. Without a score the result carries an error that says why.
"""

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from permix.thinking import split_thinking
from permix.types import canonical_text

_NUMBER = r"([-−+]?\d+(?:\.\d+)?)(?:\s*(?:/|out\s+of)\s*(\d+(?:\.\d+)?))?"

_NUMBER_ONLY = re.compile(_NUMBER)

_LINKING_WORDS = r"[\s*_:=]{0,8}(?:is|of)?[\s*_:=]{0,8}"

# The negative lookahead keeps "4 or 5", "15 to 20" and "4/10 or so" from being read in part.
_FINAL_SCORE = re.compile(rf"final (?:score|rating){_LINKING_WORDS}{_NUMBER}(?!\.?\d|\s*(?:/|out of|-|–|to|or|and)\s*\d)")

_SCORE_SENTENCE = re.compile(
    r"(?:(?:therefore|thus|so|hence|overall|in total)\W+)?(?:(?:the|my|a|this is a)\s+)?(?:overall\s+)?"
    rf"(?:(?:score|rating)[\s*_:]{{0,8}}(?:is|of)?[\s*_:]{{0,8}}{_NUMBER}|([-−+]?\d+(?:\.\d+)?)\s*(?:/|out\s+of)\s*(\d+(?:\.\d+)?))"
)

_SENTENCE_END = re.compile(r"\n|</think>|[.!?;](?=\s|$)")

_WORD = re.compile(r"[^\W_]+|/")

_MARKUP_CHARS = "*_`#>\"'()[] \t\r\n"


REPEATED_SCORE_ERROR = "the only score in the reply is one that stands in the answer"
"""The error of a reply whose score can be a quotation from the answer, whatever its number.

Recorded judgements contain this text and `judges.results` compares with it, so it must not change.
"""


class ParsedScore(NamedTuple):
    """A score, or the error that says why there is no score; exactly one of the two is None."""

    score: int | None
    error: str | None = None


class ScoreMention(NamedTuple):
    """A passage that names a score: its full text, the value as written, and the reasons that come with it."""

    text: str
    value: object
    reasons: tuple[str, ...] = ()


def parse_score(reply: str, answer: str) -> ParsedScore:
    """Read the score out of a judge's reply; never raises.

    `answer` is the quoted text that the judge saw; a score that can be a quotation from it does not count.
    """
    text = _strip_thinking(reply)
    if text is None:
        return ParsedScore(None, "no score in the reply: its thinking never ends")
    if not text.strip():
        return ParsedScore(None, "the reply is empty")
    answer_text = _AnswerText(answer)
    mentions_by_form = (
        _json_mentions(text),
        _final_score_mentions(text),
        _score_sentence_mentions(text),
        _number_only_mentions(text),
    )
    for mentions in mentions_by_form:
        if judge_mentions := [mention for mention in mentions if answer_text.is_from_judge(mention)]:
            return _resolve_mentions(judge_mentions)
    return ParsedScore(None, REPEATED_SCORE_ERROR if any(mentions_by_form) else "no score in the reply")


def _strip_thinking(reply: str) -> str | None:
    """Return the text after the last </think> that is outside a JSON verdict; None if an initial <think> is never closed.

    A </think> without a <think> counts too: some chat templates open the thinking block in the prompt.
    """
    verdicts = [(start, start + len(raw)) for start, raw, _ in _score_objects(reply)] if "</think>" in reply else []
    ends = [tag for tag in re.finditer("</think>", reply) if not any(start < tag.start() < end for start, end in verdicts)]
    if ends:
        return reply[ends[-1].end() :]
    if "</think>" in reply:
        return None if reply.lstrip().startswith("<think>") else reply
    parts = split_thinking(reply)
    return None if parts.unclosed else parts.answer


def _resolve_mentions(mentions: Iterable[ScoreMention]) -> ParsedScore:
    readings = list(dict.fromkeys(_parse_value(mention.value) for mention in mentions))
    if len(readings) == 1:
        return readings[0]
    values = ", ".join(_short_repr(mention.value) for mention in mentions)
    return ParsedScore(None, f"several different scores ({values[:80]}), and no score is called final")


def _parse_value(value: object) -> ParsedScore:
    """Read a number, or a text that is a number. Nothing else is a score; True is excluded although bool is an int."""
    number: object = value
    if isinstance(value, str):
        match = _NUMBER_ONLY.fullmatch(value.strip())
        number = None if match is None or match[2] not in (None, "5") else float(match[1].replace("−", "-"))
    if isinstance(number, bool) or not isinstance(number, (int, float)) or number not in (1, 2, 3, 4, 5):
        return ParsedScore(None, f"score = {_short_repr(value)}: must be a whole number from 1 to 5")
    return ParsedScore(int(number))


def _short_repr(value: object) -> str:
    text = repr(value) if isinstance(value, (str, int, float, bool)) or value is None else f"a {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:59]}…"


class _AnswerText:
    """The judged answer, for deciding whether a judge only repeated it.

    Texts are compared word by word, ignoring punctuation, case and the value of numbers.
    """

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
        """Whether the mention cannot be a quotation from the answer."""
        if self._reads_as_score:
            return any(
                reason.strip() and reason not in self._normalized_text for reason in map(_normalize_words, mention.reasons)
            )
        words = _normalize_words(mention.text)
        # A short mention, such as one number, occurs in many answers by chance. It is a quotation only if it is a whole line.
        return words not in self._normalized_lines and not (words.count(" ") > 2 and words in self._normalized_text)


def _normalize_words(text: str) -> str:
    """Words separated by single spaces, every number replaced by "#", such as " final score is # "."""
    return f" {' '.join('#' if word.isdecimal() else word for word in _WORD.findall(canonical_text(text)))} "


def _json_mentions(text: str) -> list[ScoreMention]:
    mentions: list[ScoreMention] = []
    for _, raw, fields in _score_objects(text):
        scores = [key for key in fields if _is_score_key(key)]
        reasons = tuple(value for key, value in fields.items() if key not in scores and isinstance(value, str))
        mentions.extend(ScoreMention(raw, fields[key], reasons) for key in scores)
    return mentions


def _is_score_key(key: str) -> bool:
    return key.strip().casefold() == "score"


def _score_objects(text: str) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """Yield (start, raw text, parsed object) of every JSON object with a score; objects nested in such an object are skipped."""
    decoder, start = json.JSONDecoder(), text.find("{")
    while start >= 0:
        end = start + 1
        try:
            fields, object_end = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            pass
        else:
            if any(map(_is_score_key, fields)):
                yield start, text[start:object_end], fields
                end = object_end
        start = text.find("{", end)


def _final_score_mentions(text: str) -> list[ScoreMention]:
    return [ScoreMention(match[0], _format_number(match[1], match[2])) for match in _FINAL_SCORE.finditer(canonical_text(text))]


def _score_sentence_mentions(text: str) -> list[ScoreMention]:
    """Find sentences that consist of a score only. "Score = 4" does not count, since PersonaGym's rubrics describe scores so."""
    mentions = []
    for sentence in _SENTENCE_END.split(text):
        bare = canonical_text(sentence).strip(_MARKUP_CHARS)
        if match := _SCORE_SENTENCE.fullmatch(bare):
            mentions.append(ScoreMention(bare, _format_number(match[1] or match[3], match[2] or match[4])))
    return mentions


def _number_only_mentions(text: str) -> list[ScoreMention]:
    bare = text.lstrip(_MARKUP_CHARS).rstrip(_MARKUP_CHARS + ".")
    return [ScoreMention(bare, bare)] if _NUMBER_ONLY.fullmatch(bare) else []


def _format_number(number: str, scale: str | None) -> str:
    return number if scale is None else f"{number}/{scale}"
