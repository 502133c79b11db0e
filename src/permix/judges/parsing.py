r"""Read the score, 1 to 5, out of a judge's reply.

The first of these forms that occurs decides: a JSON object with a "score" or "rating", anywhere in the reply, or a reply that is
such an object in Python's quotes; `<score>` tags; a sentence that names the final score; sentences that consist of a score, at
most with a word for it or a reason ("Score: 4", "Score (1-5): 4", "Score: 4 (good)", "4/5", "[[4]]"); a reply that is only a
number. Two different scores of the same form give no score. Nothing is rounded, and scales other than 1 to 5 are not converted.

Two forms are not read, since they may be something else than a score: an object without its last bracket, whose number may go on,
and a bare `\boxed{4}`, with which a model solves the question that it is to judge.

JSON may have four defects: an escape that JSON does not know, a line break inside a string, a comma before a bracket, and quotes
inside a string. An object with quotes inside a string extends to the next line that begins with "{"; it gives a score only if
it names a score once and contains no other object. So a verdict that the reason quotes is never taken for the judge's own.

A score of the first two forms does not count if its sentence denies it or makes it a condition or an example ("I would not give
a final score of 5", "a final score of 2 would be for ..."); a question gives no score.

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

SCORE_WORDS = (
    "score", "rating", "puntuación", "puntaje", "calificación", "pontuação", "punteggio", "bewertung", "punktzahl", "оценка",
    "评分", "得分", "分数", "評分", "スコア", "評価", "점수", "평점",
)  # fmt: skip
"""The words that name a score before a number, as `canonical_text` writes them. A word with another common meaning, such as
the French "note", is not one."""

_NUMBER = r"([-−+]?\d+(?:\.\d+)?)(?:[\s*_]*(?:/|out\s+of)[\s*_]*(\d+(?:\.\d+)?))?"

_NUMBER_ONLY = re.compile(_NUMBER)

_SCALE = r"(?:[\[(]?(?:on a scale )?(?:of |from )?1 ?(?:-|–|—|~|to) ?5[\])]?|\((?:out )?of 5\)?)"

_SCALE_BEFORE_COLON = rf"(?:[\s*_]{{0,8}}{_SCALE}[\s*_]{{0,8}}(?=:|is\b))?"

_LINKING_WORDS = r"[\s*_:=\[]{0,8}(?:is|of)?[\s*_:=\[]{0,8}"

# The negative lookahead keeps "4 or 5", "15 to 20" and "4/10 or so" from being read in part.
_FINAL_SCORE = re.compile(
    rf"final (?:score|rating){_SCALE_BEFORE_COLON}{_LINKING_WORDS}{_NUMBER}(?!\.?\d|\s*(?:/|out of|-|–|to|or|and)\s*\d)"
)

_SCORE_SENTENCE = re.compile(
    r"(?:(?:therefore|thus|so|hence|overall|in total)\W+)?(?:(?:the|my|a|this is a)\s+)?"
    r"(?:overall\s+|(?:最终|最終|总|综合|최종)\s?)?"
    rf"(?:(?:{'|'.join(SCORE_WORDS)}){_SCALE_BEFORE_COLON}"
    rf"[\s*_:\[]{{0,8}}(?:is|of|是|为|為|は)?[\s*_:\[]{{0,8}}{_NUMBER}\s?[分点점]?\s?{_SCALE}?"
    r"|([-−+]?\d+(?:\.\d+)?)\s*(?:/|out\s+of)\s*(\d+(?:\.\d+)?))"
)

# Words that can only be about the score: another text in brackets may say that the number is one of several, or not meant.
_QUALITY = (
    r"(?:(?:very|quite|fairly|mostly|rather)\s+)?(?:excellent|perfect|outstanding|great|good|strong|high|solid|fair|decent|average"
    r"|moderate|medium|acceptable|adequate|satisfactory|mediocre|okay|ok|neutral|weak|low|poor|bad|terrible)"
)

_OTHER_NUMBER = r"\d|\b(?:zero|one|two|three|four|five|six|seven|eight|nine|ten|half)\b"

_SCORE_WITH_REASON = re.compile(
    rf"(?:(?:overall|final)\s+)?(?:score|rating){_SCALE_BEFORE_COLON}[\s*_]{{0,8}}:[\s*_]{{0,8}}{_NUMBER}[\s*_]{{0,8}}{_SCALE}?"
    rf"(?:\({_QUALITY}\)|,\s*{_QUALITY}|\s[-–—]\s+{_QUALITY}"
    rf"|,?\s+(?:because|since|given that|due to)\b(?:(?!{_OTHER_NUMBER}).)*)"
)

_TAGGED_SCORE = re.compile(rf"<(score|rating)>[\s*_]{{0,8}}{_NUMBER}[\s*_]{{0,8}}</\1>", re.IGNORECASE)

# A label with its number on a line of its own, and no list of numbers.
_LABEL_BEFORE_LINE = re.compile(
    rf"^([ \t>#*_`]{{0,8}}(?:{'|'.join(SCORE_WORDS)})[ \t*_`]{{0,8}}[:：][ \t*_`]{{0,8}})\n\s{{0,8}}"
    rf"(?=[*_`]{{0,8}}{_NUMBER}[ \t*_`.]{{0,8}}(?:\Z|\n(?!\s{{0,8}}[\W_]{{0,8}}\d)))",
    re.IGNORECASE | re.MULTILINE,
)

_LABELLED_BOX = re.compile(
    r"((?:score|rating)[\s*_:]{0,8}(?:is|of)?[\s*_:]{0,8})\$?\\{1,2}boxed\{([^{}\n]{1,20})\}\$?", re.IGNORECASE
)

_BRACKETED_SCORE = re.compile(rf"[\s*_`>#]*\[\[\s*{_NUMBER}\s*\]\][\s*_`]*")

_SENTENCE_END = re.compile(r"\n|</think>|[.!?;](?=\s|$)|[。！？；]")

_CONDITIONAL_SENTENCE = re.compile(r"\W*(?:(?:and|but|even|only|or) )?(?:if|unless|suppose|for example|for instance)\b")

_HEDGED_CLAUSE = re.compile(
    r"\b(?:not|never|cannot|hardly|unless|whether|until|examples?(?: \w+){0,2}\W*$)|n['’]t\b|(?<!as )\bif\b"
)

_HEDGE_AFTER = re.compile(
    r"[\s*_`\"')\]]{0,8}"
    r"(?:\?|(?:would|could|should|might|may|only|if|when|unless|means?|requires?|is (?:for|only|reserved|given))\b)"
)

_HEDGE_CHARS = 300
"""Number of characters before a score in which its sentence is looked for."""

_WORD = re.compile(r"[^\W_]+|/")

_MARKUP_CHARS = "*_`#>\"'()[] \t\r\n"

_ESCAPE = re.compile(r"\\(?:(?P<known>[\"\\/bfnrt]|u[0-9a-fA-F]{4})|)")

_COMMA_BEFORE_BRACKET = re.compile(r",(?=\s*[}\]])")

MAX_JUDGE_REPLY_CHARS, _MAX_JSON_STARTS = 400_000, 2000
"""Bounds on the time that reading takes: a longer reply gives no score, and only so many braces may begin an object."""

_OBJECT_START = re.compile(r"\{\s*\"")

_BROKEN_OBJECT_START = re.compile(r"\{\s*\"[^\"\n]{1,60}\"\s*:")

_NEXT_OBJECT_LINE = re.compile(r"\n[ \t]*\{")

_SCORE_KEY = re.compile(r"([\"'])\s*(?:score|rating)\s*\1\s*:", re.IGNORECASE)

# An object in Python's quotes. Its strings contain no escapes, and so no quotes of their own kind.
_PYTHON_FIELD = r"'([^'\\\n]{1,60})'\s*:\s*('[^'\\]*'|\"[^\"\\]*\"|[^\s'\",{}\[\]\\]{1,20})"
_PYTHON_PAIR = re.compile(_PYTHON_FIELD)
_PYTHON_OBJECT = re.compile(rf"\s*(?:```\w*\s*)?(\{{\s*{_PYTHON_FIELD}\s*(?:,\s*{_PYTHON_FIELD}\s*)*(?:,\s*)?\}})\s*(?:```\s*)?")

# An object that may have quotes inside its strings, and ends with its line. Its strings contain no start of an object.
_FIRST_KEY = r'"[^"\n]{1,60}"\s*:\s*"'
_STRINGS = r'(?:(?!\{\s*").)*'
_BROKEN_VERDICT = re.compile(
    rf'\{{\s*(?:{_FIRST_KEY}(?P<before>{_STRINGS})"\s*,\s*)?"\s*(?:score|rating)\s*"\s*:\s*"?(?P<score>[^\s",{{}}\[\]][^",{{}}\[\]\n]{{0,19}}?)"?\s*'
    rf'(?:,\s*{_FIRST_KEY}(?P<after>{_STRINGS})"\s*)?\}}(?=[ \t`\]}}]*(?:\n|\Z))',
    re.DOTALL | re.IGNORECASE,
)


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
    if len(reply) > MAX_JUDGE_REPLY_CHARS:
        return ParsedScore(None, f"the reply has {len(reply)} characters, more than {MAX_JUDGE_REPLY_CHARS}")
    text = _strip_thinking(_mend_json(reply))
    if text is None:
        return ParsedScore(None, "no score in the reply: its thinking never ends")
    if not text.strip():
        return ParsedScore(None, "the reply is empty")
    answer_text = _AnswerText(answer)
    mentions_by_form = (
        _json_mentions(text) or _python_mentions(text),
        _tagged_mentions(text),
        _final_score_mentions(text),
        _score_sentence_mentions(text),
        _number_only_mentions(text),
    )
    for mentions in mentions_by_form:
        if judge_mentions := [mention for mention in mentions if answer_text.is_from_judge(mention)]:
            return _resolve_mentions(judge_mentions)
    return ParsedScore(None, REPEATED_SCORE_ERROR if any(mentions_by_form) else "no score in the reply")


def _strip_thinking(reply: str) -> str | None:
    """The text after the last </think> that is outside a JSON verdict; None if an initial <think> is never closed.

    A </think> without a <think> counts too: some chat templates open the thinking block in the prompt.
    """
    verdicts = list(_score_objects(reply)) if "</think>" in reply else []
    ends = [tag for tag in re.finditer("</think>", reply) if not any(one.start < tag.start() < one.end for one in verdicts)]
    if "</think>" in reply and not ends:
        return None if reply.lstrip().startswith("<think>") else reply
    rest = reply[ends[-1].end() :] if ends else reply
    if "</think>" in rest:  # inside a JSON verdict
        return rest
    parts = split_thinking(rest)
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
        answer = _mend_json(answer)
        lines = _SENTENCE_END.split(answer)
        self._normalized_text = _normalize_words(answer)
        self._normalized_lines = {_normalize_words(line) for line in lines}
        self._reads_as_score = any(
            (
                _SCORE_KEY.search(answer),
                _json_mentions(answer),
                _tagged_mentions(answer),
                _final_score_mentions(answer),
                _score_sentence_mentions(answer),
                _number_only_mentions(answer),
                *map(_number_only_mentions, lines),
            )
        )

    def is_from_judge(self, mention: ScoreMention) -> bool:
        """Whether the mention cannot be a quotation from the answer."""
        words = _normalize_words(mention.text)
        if self._reads_as_score:
            return words not in self._normalized_text and any(
                reason.strip() and reason not in self._normalized_text for reason in map(_normalize_words, mention.reasons)
            )
        # A short mention, such as one number, occurs in many answers by chance. It is a quotation only if it is a whole line.
        return words not in self._normalized_lines and not (words.count(" ") > 2 and words in self._normalized_text)


def _normalize_words(text: str) -> str:
    """Words separated by single spaces, every number replaced by "#", such as " final score is # "."""
    return f" {' '.join('#' if word.isdecimal() else word for word in _WORD.findall(canonical_text(text)))} "


def _mend_json(text: str) -> str:
    """Double the backslashes of escapes that JSON does not know, and drop the commas before a closing bracket."""
    doubled = _ESCAPE.sub(lambda match: match[0] if match["known"] else "\\\\", text)
    return _COMMA_BEFORE_BRACKET.sub("", doubled)


def _json_mentions(text: str) -> list[ScoreMention]:
    mentions: list[ScoreMention] = []
    for one in _score_objects(text):
        scores = [key for key in one.fields if _is_score_key(key)]
        reasons = tuple(value for key, value in one.fields.items() if key not in scores and isinstance(value, str))
        if not _is_hedged(text, one.start, one.end):
            mentions.extend(ScoreMention(one.quotable, one.fields[key], reasons) for key in scores)
    return mentions


def _python_mentions(text: str) -> list[ScoreMention]:
    """The scores of a reply that is an object in Python's quotes, and nothing else."""
    if not (whole := _PYTHON_OBJECT.fullmatch(text)):
        return []
    fields = _PYTHON_PAIR.findall(whole[1])
    reasons = tuple(value[1:-1] for name, value in fields if not _is_score_key(name) and value[0] in "'\"")
    return [ScoreMention(whole[1], value.strip("'\""), reasons) for name, value in fields if _is_score_key(name)]


def _tagged_mentions(text: str) -> list[ScoreMention]:
    return [
        ScoreMention(match[0], _format_number(match[2], match[3]))
        for match in _TAGGED_SCORE.finditer(text)
        if not _is_hedged(text, match.start(), match.end())
    ]


def _is_score_key(key: str) -> bool:
    return key.strip().casefold() in ("score", "rating")


class _ScoreObject(NamedTuple):
    """A JSON object with a score. `quotable` is the part that shows, where the answer has it too, that the object is quoted."""

    start: int
    end: int
    quotable: str
    fields: dict[str, Any]


def _score_objects(text: str) -> Iterator[_ScoreObject]:
    """Yield every JSON object with a score; objects nested in such an object are skipped.

    An object that cannot be parsed is skipped too, as a whole: an object inside it may be a quotation in its reason.
    """
    decoder, end = json.JSONDecoder(strict=False, object_pairs_hook=_keep_repeated_scores), 0
    for opening in list(_OBJECT_START.finditer(text))[:_MAX_JSON_STARTS]:
        start = opening.start()
        if start < end:
            continue
        try:
            fields, object_end = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            if _BROKEN_OBJECT_START.match(text, start):
                next_object = _NEXT_OBJECT_LINE.search(text, start)
                end = len(text) if next_object is None else next_object.start()
                if verdict := _read_broken_object(text, start, end):
                    yield verdict
        else:
            if any(map(_is_score_key, fields)):
                yield _ScoreObject(start, object_end, text[start:object_end], fields)
                end = object_end


def _read_broken_object(text: str, start: int, end: int) -> _ScoreObject | None:
    """Read an object with quotes inside its strings; None unless it names one score, and that at its beginning or end."""
    keys, verdict = list(_SCORE_KEY.finditer(text, start, end)), _BROKEN_VERDICT.match(text, start, end)
    if verdict is None or len(keys) != 1:
        return None
    return _ScoreObject(start, verdict.end(), text[keys[0].start() : verdict.end("score")], verdict.groupdict(default=""))


def _keep_repeated_scores(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The fields of an object. A second, different "score" is kept under the key "score ", since two scores decide nothing."""
    fields: dict[str, Any] = {}
    for key, value in pairs:
        is_second = key in fields and _is_score_key(key)
        if not is_second or value != fields[key]:
            fields[f"{key} " if is_second else key] = value
    return fields


def _is_hedged(text: str, start: int, end: int) -> bool:
    """Whether the sentence around `text[start:end]` denies the score, makes it a condition or an example, or asks."""
    sentence = _SENTENCE_END.split(text[max(0, start - _HEDGE_CHARS) : start].casefold())[-1]
    clause = re.split("[,，]|[:：] ", sentence.rstrip(" :："))[-1]
    after = text[end : end + _HEDGE_CHARS].casefold()
    return bool(_CONDITIONAL_SENTENCE.match(sentence) or _HEDGED_CLAUSE.search(clause) or _HEDGE_AFTER.match(after))


def _final_score_mentions(text: str) -> list[ScoreMention]:
    lines = "\n".join(map(canonical_text, _LABELLED_BOX.sub(r"\1\2", text).split("\n")))
    return [
        ScoreMention(match[0], _format_number(match[1], match[2]))
        for match in _FINAL_SCORE.finditer(lines)
        if not _is_hedged(lines, match.start(), match.end())
    ]


def _score_sentence_mentions(text: str) -> list[ScoreMention]:
    """Find sentences that consist of a score. "Score = 4" does not count, since PersonaGym's rubrics describe scores so."""
    mentions = []
    for sentence in _statements(_LABEL_BEFORE_LINE.sub(r"\1 ", _LABELLED_BOX.sub(r"\1\2", text))):
        plain = canonical_text(sentence)
        bare = plain.strip(_MARKUP_CHARS)
        if match := _BRACKETED_SCORE.fullmatch(plain):
            mentions.append(ScoreMention(bare, _format_number(match[1], match[2])))
        elif match := _SCORE_SENTENCE.fullmatch(bare):
            mentions.append(ScoreMention(bare, _format_number(match[1] or match[3], match[2] or match[4])))
        elif match := _SCORE_WITH_REASON.fullmatch(plain.lstrip(_MARKUP_CHARS).rstrip("*_`")):
            mentions.append(ScoreMention(bare, _format_number(match[1], match[2])))
    return mentions


def _statements(text: str) -> Iterator[str]:
    """The sentences of a text that are not questions."""
    start = 0
    for end in _SENTENCE_END.finditer(text):
        if end[0] not in "?？":
            yield text[start : end.start()]
        start = end.end()
    yield text[start:]


def _number_only_mentions(text: str) -> list[ScoreMention]:
    bare = text.lstrip(_MARKUP_CHARS).rstrip(_MARKUP_CHARS + ".。")
    return [ScoreMention(bare, bare)] if _NUMBER_ONLY.fullmatch(bare) else []


def _format_number(number: str, scale: str | None) -> str:
    return number if scale is None else f"{number}/{scale}"
