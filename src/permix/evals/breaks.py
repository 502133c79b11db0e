"""Does an answer leave its character? Rules that a person can read, in `breaks.toml`, and what they find.

Contract: an answer and its persona's text in, the hits out, each with the rule and the place in the answer; no model, no random
numbers. A persona that is itself a machine does not break character by saying so, so the persona's text decides which rules hold.

It finds what is said outright. It does not see an answer that is merely bland, wrong for the persona or in another voice, it
knows English only, and it takes the answer's word: a human persona who lies about being a robot is a break to it. How often it
is wrong was counted on answers labelled by hand: `python -m bench.breaks`.
"""

import re
import tomllib
import unicodedata
from collections.abc import Mapping
from functools import lru_cache
from importlib.resources import files
from typing import Any, NamedTuple

WORD = re.compile(r"<([A-Z_]+)>")
APOSTROPHES = "’‘ʼ`´′"
MARKUP = "*_~"
QUOTED = re.compile(r'"[^"\n]{1,2000}"|“[^“”\n]{1,2000}”|«[^«»\n]{1,2000}»')
BRINGS_IN = re.compile(
    r"^(?:you are|adopt the identity of|this is who you are:|act as|imagine (?:that )?you are|i am|my name is)\s+", re.I
)
HEAD_ENDS = re.compile(
    r"[.,;:!?()\n]|\s(?:who|whose|which|that|from|of|in|on|at|with|without|for|to|and|under|by|living|working|named|called)\b",
    re.I,
)
SPEAKS_OF_ITSELF = r"(?:^|[,:;.(]\s*|\b(?:are|is|am|being|identity of|become)\s+)(?:(?:an?|the|your)\s+)?"
OF_SORTS = r"(?:(?!(?:of|in|on|at|for|with|by|to|and|or|who|that|which|whose|from|about|against)\b)[\w'-]+\s+){0,3}?"
REPORT_REACH = 80  # characters before a hit in which somebody else may be named as the speaker


class Rule(NamedTuple):
    """A rule of breaks.toml. `patterns`: alternatives, words filled in; `unless`: the kind of persona it does not hold for."""

    name: str
    catches: str
    patterns: tuple[str, ...]
    unless: str | None


class Break(NamedTuple):
    """A hit: `answer[start:end]` is what the rule was met by."""

    rule: str
    start: int
    end: int


def breaks(answer: str, persona_text: str = "") -> list[Break]:
    """Every place where the answer leaves the character of `persona_text`, in the order of the text; empty when it stays in it.

    Hits of one rule do not overlap; those of two rules may.
    """
    text = levelled(answer)
    quoted = _others_words(text)
    found = [
        Break(name, match.start(), match.end())
        for name, pattern in _rules_for(_levelled_persona(persona_text))
        for match in pattern.finditer(text)
        if not any(start <= match.start() and match.end() <= end for start, end in quoted)
        if not _reported().search(text, max(0, match.start() - REPORT_REACH), match.start())
    ]
    return sorted(found, key=lambda one: (one.start, one.end, one.rule))


def levelled(text: str) -> str:
    """The text with apostrophes, letter forms and marks of emphasis levelled, place by place: it keeps its length."""
    return "".join(_level(one) for one in text)


def _level(character: str) -> str:
    if character in APOSTROPHES:
        return "'"
    if character in MARKUP:
        return " "
    plain = unicodedata.normalize("NFKC", character)
    return plain if len(plain) == 1 else character


def noun_of(persona_text: str) -> str:
    """The noun of the first phrase, case-folded: "sailor" of "You are a retired sailor who ..."; "" where there is none."""
    phrase = BRINGS_IN.sub("", levelled(persona_text).strip())
    words = HEAD_ENDS.split(phrase, maxsplit=1)[0].split()
    return words[-1].casefold() if words else ""


@lru_cache(maxsize=1)
def rules() -> tuple[Rule, ...]:
    """The rules, in the order of the file."""
    told = _told()
    return tuple(
        Rule(
            one["name"],
            one["catches"],
            tuple(_filled(pattern, told["words"]) for pattern in one["patterns"]),
            one.get("unless"),
        )
        for one in told["rule"]
    )


@lru_cache(maxsize=4096)
def _rules_for(persona_text: str) -> tuple[tuple[str, re.Pattern[str]], ...]:
    """(name, pattern) of the rules that hold for this persona."""
    held = [rule for rule in rules() if rule.unless is None or not _kind(rule.unless).search(persona_text)]
    noun = noun_of(persona_text)
    return tuple((rule.name, _compiled(rule.name, noun if _names_persona(rule) else "")) for rule in held)


def _names_persona(rule: Rule) -> bool:
    return any("<PERSONA>" in pattern for pattern in rule.patterns)


@lru_cache(maxsize=4096)
def _compiled(name: str, noun: str) -> re.Pattern[str]:
    """A rule's alternatives as one expression; those that need the persona's noun are left out where it has none."""
    rule = next(one for one in rules() if one.name == name)
    persona = rf"(?:[\w'-]+\s+){{0,3}}{re.escape(noun)}"
    usable = [pattern.replace("<PERSONA>", persona) for pattern in rule.patterns if noun or "<PERSONA>" not in pattern]
    return re.compile("|".join(f"(?:{pattern})" for pattern in usable), re.IGNORECASE)


@lru_cache(maxsize=16)
def _kind(name: str) -> re.Pattern[str]:
    """Finds that a persona is of this kind: "an old robot", "HAL, the computer of a ship"; not "a robot mechanic"."""
    told = _told()
    kind = _filled(told["kinds"][name], told["words"])
    return re.compile(f"{SPEAKS_OF_ITSELF}{OF_SORTS}{kind}{_filled('<END>', told['words'])}", re.IGNORECASE)


@lru_cache(maxsize=1)
def _told() -> Mapping[str, Any]:
    return tomllib.loads((files("permix.evals") / "breaks.toml").read_text(encoding="utf-8"))


def _filled(pattern: str, words: Mapping[str, str]) -> str:
    """The pattern with its words put in, theirs too, and every space as any white space."""
    while any(match[1] in words for match in WORD.finditer(pattern)):
        pattern = WORD.sub(lambda match: words.get(match[1], match[0]), pattern)
    return pattern.replace(" ", r"(?:\s+)")


@lru_cache(maxsize=1)
def _reported() -> re.Pattern[str]:
    return re.compile(_filled(_told()["speech"]["reported"], {}), re.IGNORECASE)


@lru_cache(maxsize=1)
def _tagged() -> re.Pattern[str]:
    return re.compile(_filled(_told()["speech"]["tagged"], {}), re.IGNORECASE)


def _others_words(text: str) -> list[tuple[int, int]]:
    """The quotations in the text that are not the answer itself.

    A small model often puts its whole answer in quotation marks: what opens the text counts as its own words unless "said X"
    follows.
    """
    spans = [match.span() for match in QUOTED.finditer(text)]
    return [(start, end) for start, end in spans if text[:start].strip() or _tagged().search(text[end : end + REPORT_REACH])]


def _levelled_persona(persona_text: str) -> str:
    """The persona's text without the words that bring it in, so that it begins with who it is."""
    return BRINGS_IN.sub("", levelled(persona_text).strip())
