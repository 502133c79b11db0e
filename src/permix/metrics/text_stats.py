"""Measure texts without a judge: character breaks, variety, repetition, and echoes of the persona's words.

Contract: pure functions; no model, no global random state, no files except `breaks.toml`. None and NaN mean no answer and are
left out; "" is an answer. Words are sequences of letters and digits, case-folded, for languages that put spaces between words.
No measure here shows that an answer is good, true to the persona, or sensible. "Not measured" in a docstring names the limits of
a measure.

Two words have two senses. *Repetition* is within an answer (`has_repeated_ngram`) or of earlier answers of a conversation
(`repetition_shares`). An *echo* is of the words of the persona's text (`persona_word_echoes`) or of the question
(`question_echo_share`).

Axes: N answers, P personas, K resampled units, R resamples, G different n-grams.

`find_character_breaks` applies the rules of `breaks.toml` to an answer. The persona's text decides which rules apply: a persona
that is a machine does not break character by saying so. The rules find explicit statements in English. They miss an answer that
is bland, wrong for the persona or in another voice. A human persona that lies about being a robot counts as a break.
`python -m bench.breaks` counts their errors on answers labelled by hand.
"""

import re
import tomllib
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib.resources import files
from typing import Any, NamedTuple

import numpy as np
from scipy.special import gammaln, stdtrit
from scipy.stats import binomtest

from permix.metrics.persona_classifier import STOP_WORDS, WORD_PATTERN, persona_words
from permix.metrics.statistics import Array, bootstrap_estimate
from permix.types import Estimate

PLACEHOLDER = re.compile(r"<([A-Z_]+)>")

APOSTROPHES = "’‘ʼ`´′"

MARKUP = "*_~"

QUOTATION = re.compile(r'"[^"\n]{1,2000}"|“[^“”\n]{1,2000}”|«[^«»\n]{1,2000}»')

PERSONA_PREFIX = re.compile(
    r"^(?:you are|adopt the identity of|this is who you are:|act as|imagine (?:that )?you are|i am|my name is)\s+", re.I
)

HEAD_PHRASE_END = re.compile(
    r"[.,;:!?()\n]|\s(?:who|whose|which|that|from|of|in|on|at|with|without|for|to|and|under|by|living|working|named|called)\b",
    re.I,
)

SELF_REFERENCE = r"(?:^|[,:;.(]\s*|\b(?:are|is|am|being|identity of|become)\s+)(?:(?:an?|the|your)\s+)?"

MODIFIER_WORDS = r"(?:(?!(?:of|in|on|at|for|with|by|to|and|or|who|that|which|whose|from|about|against)\b)[\w'-]+\s+){0,3}?"

SPEECH_WINDOW_CHARS = 80
"""How far before a match a phrase may attribute it to another speaker, and how far after a quotation "said X" may follow."""


class BreakRule(NamedTuple):
    """A rule of breaks.toml. `patterns`: alternative regular expressions. `exempt_kind`: personas it does not apply to."""

    name: str
    description: str
    patterns: tuple[str, ...]
    exempt_kind: str | None


class CharacterBreak(NamedTuple):
    """A match of a rule: `answer[start:end]`."""

    rule: str
    start: int
    end: int


def find_character_breaks(answer: str, persona_text: str = "") -> list[CharacterBreak]:
    """Every place where the answer breaks the character of `persona_text`, in the order of the text.

    Quotations and reported speech of others do not count. Matches of one rule do not overlap; those of two rules may.
    """
    text = normalize_characters(answer)
    quoted = _quoted_spans(text)
    breaks = [
        CharacterBreak(name, match.start(), match.end())
        for name, pattern in _patterns_for_persona(_strip_persona_prefix(persona_text))
        for match in pattern.finditer(text)
        if not any(start <= match.start() and match.end() <= end for start, end in quoted)
        if not _reported_speech_pattern().search(text, max(0, match.start() - SPEECH_WINDOW_CHARS), match.start())
    ]
    return sorted(breaks, key=lambda one: (one.start, one.end, one.rule))


def normalize_characters(text: str) -> str:
    """The text with apostrophes, letter forms (NFKC) and emphasis marks normalised, character by character.

    The length does not change, so positions in the result are positions in the text.
    """
    return "".join(_normalize_character(one) for one in text)


def _normalize_character(character: str) -> str:
    if character in APOSTROPHES:
        return "'"
    if character in MARKUP:
        return " "
    plain = unicodedata.normalize("NFKC", character)
    return plain if len(plain) == 1 else character


def head_noun(persona_text: str) -> str:
    """The last word of the first phrase, case-folded: "sailor" for "You are a retired sailor who ..."; "" if there is none."""
    phrase = PERSONA_PREFIX.sub("", normalize_characters(persona_text).strip())
    words = HEAD_PHRASE_END.split(phrase, maxsplit=1)[0].split()
    return words[-1].casefold() if words else ""


@lru_cache(maxsize=1)
def load_break_rules() -> tuple[BreakRule, ...]:
    """The rules, in the order of the file."""
    content = _load_breaks_toml()
    return tuple(
        BreakRule(
            one["name"],
            one["description"],
            tuple(_expand_placeholders(pattern, content["words"]) for pattern in one["patterns"]),
            one.get("exempt_kind"),
        )
        for one in content["rule"]
    )


@lru_cache(maxsize=4096)
def _patterns_for_persona(persona_text: str) -> tuple[tuple[str, re.Pattern[str]], ...]:
    """(name, pattern) of the rules that apply to this persona."""
    rules = [
        rule
        for rule in load_break_rules()
        if rule.exempt_kind is None or not _persona_kind_pattern(rule.exempt_kind).search(persona_text)
    ]
    noun = head_noun(persona_text)
    return tuple((rule.name, _compile_rule(rule.name, noun if _needs_persona_noun(rule) else "")) for rule in rules)


def _needs_persona_noun(rule: BreakRule) -> bool:
    return any("<PERSONA>" in pattern for pattern in rule.patterns)


@lru_cache(maxsize=4096)
def _compile_rule(name: str, noun: str) -> re.Pattern[str]:
    """A rule's patterns as one regular expression; if `noun` is "", without the patterns that need the persona's noun."""
    rule = next(one for one in load_break_rules() if one.name == name)
    persona = rf"(?:[\w'-]+\s+){{0,3}}{re.escape(noun)}"
    usable = [pattern.replace("<PERSONA>", persona) for pattern in rule.patterns if noun or "<PERSONA>" not in pattern]
    return re.compile("|".join(f"(?:{pattern})" for pattern in usable), re.IGNORECASE)


@lru_cache(maxsize=16)
def _persona_kind_pattern(name: str) -> re.Pattern[str]:
    """Matches the text of a persona of this kind: "an old robot", "HAL, the computer of a ship"; not "a robot mechanic"."""
    content = _load_breaks_toml()
    kind = _expand_placeholders(content["kinds"][name], content["words"])
    return re.compile(f"{SELF_REFERENCE}{MODIFIER_WORDS}{kind}{_expand_placeholders('<END>', content['words'])}", re.IGNORECASE)


@lru_cache(maxsize=1)
def _load_breaks_toml() -> Mapping[str, Any]:
    return tomllib.loads((files("permix.metrics") / "breaks.toml").read_text(encoding="utf-8"))


def _expand_placeholders(pattern: str, words: Mapping[str, str]) -> str:
    """The pattern with placeholders replaced, also inside replacements, and with every space matching any white space."""
    while any(match[1] in words for match in PLACEHOLDER.finditer(pattern)):
        pattern = PLACEHOLDER.sub(lambda match: words.get(match[1], match[0]), pattern)
    return pattern.replace(" ", r"(?:\s+)")


@lru_cache(maxsize=1)
def _reported_speech_pattern() -> re.Pattern[str]:
    return re.compile(_expand_placeholders(_load_breaks_toml()["speech"]["reported"], {}), re.IGNORECASE)


@lru_cache(maxsize=1)
def _speech_tag_pattern() -> re.Pattern[str]:
    return re.compile(_expand_placeholders(_load_breaks_toml()["speech"]["tag"], {}), re.IGNORECASE)


def _quoted_spans(text: str) -> list[tuple[int, int]]:
    """(start, end) of quotations of other speakers.

    A small model often puts its whole answer in quotation marks, so a quotation at the beginning is the answer itself unless
    "said X" follows.
    """
    spans = [match.span() for match in QUOTATION.finditer(text)]
    return [
        (start, end)
        for start, end in spans
        if text[:start].strip() or _speech_tag_pattern().search(text[end : end + SPEECH_WINDOW_CHARS])
    ]


def _strip_persona_prefix(persona_text: str) -> str:
    """The persona's text without an introduction such as "You are"."""
    return PERSONA_PREFIX.sub("", normalize_characters(persona_text).strip())


REPEAT_NGRAM = 4
"""Words of an n-gram that counts as repeated, in an answer or in a conversation: four in a row rarely recur by chance."""

ECHO_NGRAM = 3
"""Words of an n-gram that counts as taken from the question."""


def tokenize_words(text: str) -> list[str]:
    """The words of a text, in order, case-folded after NFKC."""
    return WORD_PATTERN.findall(unicodedata.normalize("NFKC", text).casefold())


def ngrams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    """All n-grams of the words, in order, with repetitions."""
    return list(zip(*(words[start:] for start in range(n)), strict=False))


def rarefied_distinct_n(counts: Sequence[int] | Array, n_drawn: int) -> float:
    """Distinct-n at a fixed number of n-grams: the expected share of different ones among `n_drawn` drawn without replacement.

    Σ_g (1 − C(N − c_g, m) / C(N, m)) / m for c_g occurrences of gram g, N = Σ c_g and m = `n_drawn`: rarefaction, computed
    exactly. The plain ratio different / all falls with length, so it mostly measures length; this one does not. NaN for N < m or
    m < 1.
    Source: Hurlbert (1971), The nonconcept of species diversity, Ecology 52.

    Not measured: meaning. Synonyms count as variety, and nonsense counts most; a persona may be right to say little.
    """
    count_G = np.asarray(counts, dtype=float)
    N = count_G.sum()
    if n_drawn > N or n_drawn < 1:
        return float("nan")
    rest_G = N - count_G
    possible_G = np.where(rest_G >= n_drawn, rest_G, n_drawn)
    log_missed_G = _log_choose(possible_G, n_drawn) - _log_choose(N, n_drawn)
    missed_G = np.where(rest_G >= n_drawn, np.exp(log_missed_G), 0.0)
    return float((1 - missed_G).sum() / n_drawn)


def _log_choose(n: Array | float, k: int) -> Array:
    return np.asarray(gammaln(np.asarray(n) + 1) - gammaln(k + 1) - gammaln(np.asarray(n) - k + 1))


def distinct_n_overall(texts: Sequence[str], unit_N: Sequence[str], n: int, n_drawn: int) -> Estimate:
    """`rarefied_distinct_n` of all texts together, with a 95 % interval by the jackknife over units; n is the number of units.

    value ± t √((K − 1) / K · Σ_k (θ_k − mean θ)²) with θ_k the value without unit k and t of K − 1 degrees of freedom. A
    bootstrap would be biased: a unit drawn twice repeats its own words, so every replicate would look less varied than the texts.

    Not measured: as in `rarefied_distinct_n`; also, personas that each have a small vocabulary, but different ones, look varied.
    """
    by_unit = _ngram_counts_by_unit(texts, unit_N, n)
    all_counts = sum(by_unit.values(), Counter[tuple[str, ...]]())
    value, K = rarefied_distinct_n(list(all_counts.values()), n_drawn), len(by_unit)
    if np.isnan(value):
        return Estimate(value=None, n=K)
    without_K = np.array(
        [rarefied_distinct_n(list((all_counts - unit_counts).values()), n_drawn) for unit_counts in by_unit.values()]
    )
    if K < 2 or np.isnan(without_K).any():
        return Estimate(value=value, n=K)
    half = float(stdtrit(K - 1, 0.975) * np.sqrt((K - 1) / K * ((without_K - without_K.mean()) ** 2).sum()))
    return Estimate(value=value, low=max(0.0, value - half), high=min(1.0, value + half), n=K)


def _ngram_counts_by_unit(texts: Sequence[str], unit_N: Sequence[str], n: int) -> dict[str, Counter[tuple[str, ...]]]:
    counts_by_unit: dict[str, Counter[tuple[str, ...]]] = {}
    for text, unit in zip(texts, unit_N, strict=True):
        counts_by_unit.setdefault(unit, Counter()).update(ngrams(tokenize_words(text), n))
    return counts_by_unit


def distinct_n_per_persona(texts: Sequence[str], persona_N: Sequence[str], n: int, n_drawn: int) -> dict[str, float]:
    """`rarefied_distinct_n` of the texts of each persona, by persona; NaN for fewer than `n_drawn` n-grams.

    Not measured: as in `rarefied_distinct_n`; nor whether two personas differ, which identifiability measures.
    """
    return {
        persona: rarefied_distinct_n(list(counts.values()), n_drawn)
        for persona, counts in _ngram_counts_by_unit(texts, persona_N, n).items()
    }


def has_repeated_ngram(text: str) -> bool:
    """Whether some `REPEAT_NGRAM` words in a row occur twice in the text, a sign of a model in a loop.

    Not measured: repetition between answers, and paraphrases. A long text has more chances to repeat itself, and refrains count.
    """
    grams = ngrams(tokenize_words(text), REPEAT_NGRAM)
    return len(set(grams)) < len(grams)


def repetition_shares(answers: Sequence[str | None]) -> list[float]:
    """For each answer of a conversation, the share of its different 4-grams of words that an earlier answer contains.

    NaN for the first answer and for an answer of fewer than four words. Repetition within an answer does not count: see
    `has_repeated_ngram`.
    """
    earlier: set[tuple[str, ...]] = set()
    shares: list[float] = []
    for answer in answers:
        grams = _ngram_set(answer or "", REPEAT_NGRAM)
        shares.append(_overlap_share(grams, earlier) if any(one is not None for one in answers[: len(shares)]) else np.nan)
        earlier |= grams
    return shares


def question_echo_share(answer: str, question: str) -> float:
    """The share of an answer's different 3-grams of words that occur in its question; NaN for fewer than three words.

    `persona_word_echoes` is about the words of the persona's text.
    """
    return _overlap_share(_ngram_set(answer, ECHO_NGRAM), _ngram_set(question, ECHO_NGRAM))


def _overlap_share(grams: set[tuple[str, ...]], reference: set[tuple[str, ...]]) -> float:
    return len(grams & reference) / len(grams) if grams else np.nan


def _ngram_set(text: str, n: int) -> set[tuple[str, ...]]:
    return set(ngrams(tokenize_words(text), n))


def persona_word_echoes(texts: Sequence[str], persona_texts: Sequence[str]) -> Array:
    """echo_N_P: 1 where a text contains a content word of persona p's text, else 0; NaN for a persona without content words.

    Words match by stem as in `mask_persona_words`: "sailing" matches "sailor". Words in every persona's text (those of the
    template) do not count.

    Not measured: whether the word fits. "I know nothing of ships" echoes a sailor; an answer about rigging alone does not.
    """
    own_P = [set(tokenize_words(text)) - STOP_WORDS for text in persona_texts]
    common = set.intersection(*own_P) if len(own_P) > 1 else set()
    patterns_P = [persona_words((" ".join(sorted(own - common)),)) for own in own_P]
    words_N = [set(tokenize_words(text)) for text in texts]
    matches_by_word = {word: _matching_personas(word, patterns_P) for word in set().union(*words_N)}
    echo_N_P = np.array([_any_by_column([matches_by_word[word] for word in words], len(own_P)) for words in words_N], dtype=float)
    echo_N_P = echo_N_P.reshape(len(texts), len(own_P))
    echo_N_P[:, [not words for words, _ in patterns_P]] = np.nan
    return echo_N_P


def _matching_personas(word: str, persona_words_P: Sequence[tuple[frozenset[str], tuple[str, ...]]]) -> list[bool]:
    return [word in words or word.startswith(stems) for words, stems in persona_words_P]


def _any_by_column(rows: Sequence[Sequence[bool]], width: int) -> list[bool]:
    return [any(column) for column in zip(*rows, strict=True)] if rows else [False] * width


def own_and_other_echoes(echo_N_P: Array, persona_N: Sequence[int]) -> tuple[Array, Array]:
    """(own_N, others_N): for each answer the echo of its own persona, and the mean echo of all other personas.

    Chance and the questions cause the second; only the excess of the first over it is due to the persona. NaN without another
    persona.
    """
    mine_N_P = np.arange(echo_N_P.shape[1]) == np.asarray(persona_N, dtype=int)[:, None]
    own_N = np.where(mine_N_P, echo_N_P, 0.0).sum(axis=1) if echo_N_P.size else np.full(len(echo_N_P), np.nan)
    counted_N_P = ~mine_N_P & ~np.isnan(echo_N_P)
    total_N, count_N = np.where(counted_N_P, echo_N_P, 0.0).sum(axis=1), counted_N_P.sum(axis=1)
    return own_N, np.divide(total_N, count_N, out=np.full(len(echo_N_P), np.nan), where=count_N > 0)


def clustered_mean(value_N: Array, unit_N: Sequence[str], rng: np.random.Generator, resamples: int) -> Estimate:
    """Mean of the values that are not NaN, with a 95 % bootstrap interval over units: all values of a unit are drawn together.

    Σ_k c_k Σ_{i in k} x_i / Σ_k c_k n_k for a unit k drawn c_k times; n is the number of units.
    """
    kept = [(value, unit) for value, unit in zip(value_N.tolist(), unit_N, strict=True) if not np.isnan(value)]
    place: Mapping[str, int] = {unit: at for at, unit in enumerate(dict.fromkeys(unit for _, unit in kept))}
    K = len(place)
    if not K:
        return Estimate(value=None, n=0)
    unit_of_N = [place[unit] for _, unit in kept]
    total_K = np.bincount(unit_of_N, weights=[value for value, _ in kept], minlength=K)
    size_K = np.bincount(unit_of_N, minlength=K).astype(float)
    counts_R_K = rng.multinomial(K, np.full(K, 1 / K), size=resamples).astype(float)
    return bootstrap_estimate(float(total_K.sum() / size_K.sum()), (counts_R_K @ total_K) / (counts_R_K @ size_K), K)


def clustered_rate(value_N: Array, unit_N: Sequence[str], rng: np.random.Generator, resamples: int) -> Estimate:
    """`clustered_mean` of values 0 or 1, with an interval at least as wide as Clopper and Pearson's exact binomial interval.

    The bootstrap cannot see rare events that did not occur: for 0 of 360 its interval is [0, 0]. The exact interval, which
    assumes independent answers, reaches 0.01. Each end is the wider one of the two.
    """
    estimate = clustered_mean(value_N, unit_N, rng, resamples)
    scored_N = value_N[~np.isnan(value_N)]
    if estimate.value is None:
        return estimate
    exact = binomtest(int(scored_N.sum()), len(scored_N)).proportion_ci(0.95, "exact")
    low, high = (end if end is not None else estimate.value for end in (estimate.low, estimate.high))
    return estimate.model_copy(update={"low": min(low, float(exact.low)), "high": max(high, float(exact.high))})
