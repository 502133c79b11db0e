"""Measures of texts that need no judge: how varied they are, how long, how they repeat, how often they echo a persona's words.

Contract: pure functions of lists of texts and of named arrays; no model, no files, no global random state. None and NaN are no
answer and are left out, "" is an answer. Suffixes name axes: N answers, P personas, K units that are resampled. Words are runs of
letters and digits, case-folded: made for languages that put spaces between words. None of this says that an answer is good, true
to the persona, or even sensible; each docstring says what its measure leaves out.

Does an answer leave its character? Rules that a person can read, in `breaks.toml`, and what they find.

Contract: an answer and its persona's text in, the hits out, each with the rule and the place in the answer; no model, no random
numbers. A persona that is itself a machine does not break character by saying so, so the persona's text decides which rules hold.

It finds what is said outright. It does not see an answer that is merely bland, wrong for the persona or in another voice, it
knows English only, and it takes the answer's word: a human persona who lies about being a robot is a break to it. How often it
is wrong was counted on answers labelled by hand: `python -m bench.breaks`.
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

SPEECH_WINDOW_CHARS = 80  # characters before a hit in which somebody else may be named as the speaker


class BreakRule(NamedTuple):
    """A rule of breaks.toml. `patterns`: alternatives, words filled in; `exempt_kind`: the kind of persona it does not hold
    for."""

    name: str
    description: str
    patterns: tuple[str, ...]
    exempt_kind: str | None


class CharacterBreak(NamedTuple):
    """A hit: `answer[start:end]` is what the rule was met by."""

    rule: str
    start: int
    end: int


def find_character_breaks(answer: str, persona_text: str = "") -> list[CharacterBreak]:
    """Every place where the answer leaves the character of `persona_text`, in the order of the text; empty when it stays in it.

    Hits of one rule do not overlap; those of two rules may.
    """
    text = normalize_characters(answer)
    quoted = _quoted_spans(text)
    found = [
        CharacterBreak(name, match.start(), match.end())
        for name, pattern in _patterns_for_persona(_strip_persona_prefix(persona_text))
        for match in pattern.finditer(text)
        if not any(start <= match.start() and match.end() <= end for start, end in quoted)
        if not _reported_speech_pattern().search(text, max(0, match.start() - SPEECH_WINDOW_CHARS), match.start())
    ]
    return sorted(found, key=lambda one: (one.start, one.end, one.rule))


def normalize_characters(text: str) -> str:
    """The text with apostrophes, letter forms and marks of emphasis levelled, place by place: it keeps its length."""
    return "".join(_normalize_character(one) for one in text)


def _normalize_character(character: str) -> str:
    if character in APOSTROPHES:
        return "'"
    if character in MARKUP:
        return " "
    plain = unicodedata.normalize("NFKC", character)
    return plain if len(plain) == 1 else character


def head_noun(persona_text: str) -> str:
    """The noun of the first phrase, case-folded: "sailor" of "You are a retired sailor who ..."; "" where there is none."""
    phrase = PERSONA_PREFIX.sub("", normalize_characters(persona_text).strip())
    words = HEAD_PHRASE_END.split(phrase, maxsplit=1)[0].split()
    return words[-1].casefold() if words else ""


@lru_cache(maxsize=1)
def load_break_rules() -> tuple[BreakRule, ...]:
    """The rules, in the order of the file."""
    told = _load_breaks_toml()
    return tuple(
        BreakRule(
            one["name"],
            one["catches"],
            tuple(_expand_placeholders(pattern, told["words"]) for pattern in one["patterns"]),
            one.get("unless"),
        )
        for one in told["rule"]
    )


@lru_cache(maxsize=4096)
def _patterns_for_persona(persona_text: str) -> tuple[tuple[str, re.Pattern[str]], ...]:
    """(name, pattern) of the rules that hold for this persona."""
    held = [
        rule
        for rule in load_break_rules()
        if rule.exempt_kind is None or not _persona_kind_pattern(rule.exempt_kind).search(persona_text)
    ]
    noun = head_noun(persona_text)
    return tuple((rule.name, _compile_rule(rule.name, noun if _needs_persona_noun(rule) else "")) for rule in held)


def _needs_persona_noun(rule: BreakRule) -> bool:
    return any("<PERSONA>" in pattern for pattern in rule.patterns)


@lru_cache(maxsize=4096)
def _compile_rule(name: str, noun: str) -> re.Pattern[str]:
    """A rule's alternatives as one expression; those that need the persona's noun are left out where it has none."""
    rule = next(one for one in load_break_rules() if one.name == name)
    persona = rf"(?:[\w'-]+\s+){{0,3}}{re.escape(noun)}"
    usable = [pattern.replace("<PERSONA>", persona) for pattern in rule.patterns if noun or "<PERSONA>" not in pattern]
    return re.compile("|".join(f"(?:{pattern})" for pattern in usable), re.IGNORECASE)


@lru_cache(maxsize=16)
def _persona_kind_pattern(name: str) -> re.Pattern[str]:
    """Finds that a persona is of this kind: "an old robot", "HAL, the computer of a ship"; not "a robot mechanic"."""
    told = _load_breaks_toml()
    kind = _expand_placeholders(told["kinds"][name], told["words"])
    return re.compile(f"{SELF_REFERENCE}{MODIFIER_WORDS}{kind}{_expand_placeholders('<END>', told['words'])}", re.IGNORECASE)


@lru_cache(maxsize=1)
def _load_breaks_toml() -> Mapping[str, Any]:
    return tomllib.loads((files("permix.metrics") / "breaks.toml").read_text(encoding="utf-8"))


def _expand_placeholders(pattern: str, words: Mapping[str, str]) -> str:
    """The pattern with its words put in, theirs too, and every space as any white space."""
    while any(match[1] in words for match in PLACEHOLDER.finditer(pattern)):
        pattern = PLACEHOLDER.sub(lambda match: words.get(match[1], match[0]), pattern)
    return pattern.replace(" ", r"(?:\s+)")


@lru_cache(maxsize=1)
def _reported_speech_pattern() -> re.Pattern[str]:
    return re.compile(_expand_placeholders(_load_breaks_toml()["speech"]["reported"], {}), re.IGNORECASE)


@lru_cache(maxsize=1)
def _speech_tag_pattern() -> re.Pattern[str]:
    return re.compile(_expand_placeholders(_load_breaks_toml()["speech"]["tagged"], {}), re.IGNORECASE)


def _quoted_spans(text: str) -> list[tuple[int, int]]:
    """The quotations in the text that are not the answer itself.

    A small model often puts its whole answer in quotation marks: what opens the text counts as its own words unless "said X"
    follows.
    """
    spans = [match.span() for match in QUOTATION.finditer(text)]
    return [
        (start, end)
        for start, end in spans
        if text[:start].strip() or _speech_tag_pattern().search(text[end : end + SPEECH_WINDOW_CHARS])
    ]


def _strip_persona_prefix(persona_text: str) -> str:
    """The persona's text without the words that bring it in, so that it begins with who it is."""
    return PERSONA_PREFIX.sub("", normalize_characters(persona_text).strip())


REPEAT_NGRAM = 4
"""Words in a row that count as repeated when they stand twice in one answer: chance rarely repeats so many."""


def tokenize_words(text: str) -> list[str]:
    """The words of a text, in order, case-folded after NFKC."""
    return WORD_PATTERN.findall(unicodedata.normalize("NFKC", text).casefold())


def ngrams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    """Every n words in a row."""
    return list(zip(*(words[start:] for start in range(n)), strict=False))


def count_ngrams(texts: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    """How often each n-gram stands in the texts; none reaches from one text into the next."""
    return Counter(gram for text in texts for gram in ngrams(tokenize_words(text), n))


def rarefied_distinct_n(counts: Sequence[int] | Array, n_drawn: int) -> float:
    """Distinct-n at an equal number of n-grams: the share of different ones to expect among `n_drawn` of all, drawn blindly.

    Σ_g (1 − C(N − c_g, m) / C(N, m)) / m, for c_g times gram g, N = Σ c_g and m = `n_drawn`: rarefaction, exact, no random draw.
    The plain ratio different / all falls as a text grows, so that it mostly measures length; this one does not. NaN where there
    are fewer than m. Source: Hurlbert (1971), The nonconcept of species diversity, Ecology 52.

    Not measured: meaning. Synonyms count as variety, nonsense as most of all; and a persona may be right to say little.
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
    """`rarefied_distinct_n` of all texts together; its interval by the jackknife, a unit left out at a time.

    value ± t √((K − 1) / K · Σ_k (θ_k − mean θ)²), t of K − 1 degrees of freedom. A bootstrap would not do: a unit drawn twice
    repeats its own words, and every replicate would look less varied than the texts are.

    Not measured: as `rarefied_distinct_n`; and personas that differ from each other, each with a small vocabulary of its
    own, look varied.
    """
    by_unit = _ngram_counts_by_unit(texts, unit_N, n)
    every = sum(by_unit.values(), Counter[tuple[str, ...]]())
    value, K = rarefied_distinct_n(list(every.values()), n_drawn), len(by_unit)
    if np.isnan(value):
        return Estimate(value=None, n=K)
    without_K = np.array([rarefied_distinct_n(list((every - mine).values()), n_drawn) for mine in by_unit.values()])
    if K < 2 or np.isnan(without_K).any():
        return Estimate(value=value, n=K)
    half = float(stdtrit(K - 1, 0.975) * np.sqrt((K - 1) / K * ((without_K - without_K.mean()) ** 2).sum()))
    return Estimate(value=value, low=max(0.0, value - half), high=min(1.0, value + half), n=K)


def _ngram_counts_by_unit(texts: Sequence[str], unit_N: Sequence[str], n: int) -> dict[str, Counter[tuple[str, ...]]]:
    found: dict[str, Counter[tuple[str, ...]]] = {}
    for text, unit in zip(texts, unit_N, strict=True):
        found.setdefault(unit, Counter()).update(ngrams(tokenize_words(text), n))
    return found


def distinct_n_per_persona(texts: Sequence[str], persona_N: Sequence[str], n: int, n_drawn: int) -> dict[str, float]:
    """`rarefied_distinct_n` of each persona's texts by themselves; NaN where a persona has fewer than `n_drawn`.

    Not measured: as `rarefied_distinct_n`; whether two personas differ, too, which is identifiability's business.
    """
    return {
        persona: rarefied_distinct_n(list(counts.values()), n_drawn)
        for persona, counts in _ngram_counts_by_unit(texts, persona_N, n).items()
    }


def has_repeated_ngram(text: str) -> bool:
    """Whether RUN words in a row stand in the text more than once: the sign of a model in a loop.

    Not measured: repetition from one answer to the next, or in other words. A long text has more chances to repeat itself, and
    refrains are repetition too.
    """
    runs = ngrams(tokenize_words(text), REPEAT_NGRAM)
    return len(set(runs)) < len(runs)


def persona_word_echoes(texts: Sequence[str], persona_texts: Sequence[str]) -> Array:
    """echo_N_P: 1 where a text holds a content word of persona p's text, else 0; a column of NaN for one without content words.

    Words count as in `voices.mask_persona_words`: by stem, "sailing" for "sailor". What stands in every persona's text (the
    wording of a template) says nothing of any and is left out.

    Not measured: whether the word is used rightly. "I know nothing of ships" echoes a sailor; a sailor who talks of nothing but
    rigging and never says "sailor" does not.
    """
    own_P = [set(tokenize_words(text)) - STOP_WORDS for text in persona_texts]
    everyone = set.intersection(*own_P) if len(own_P) > 1 else set()
    looked_for_P = [persona_words((" ".join(sorted(own - everyone)),)) for own in own_P]
    words_N = [set(tokenize_words(text)) for text in texts]
    met_P = {word: _matching_personas(word, looked_for_P) for word in set().union(*words_N)}
    echo_N_P = np.array([_any_by_column([met_P[word] for word in words], len(own_P)) for words in words_N], dtype=float)
    echo_N_P = echo_N_P.reshape(len(texts), len(own_P))
    echo_N_P[:, [not words for words, _ in looked_for_P]] = np.nan
    return echo_N_P


def _matching_personas(word: str, persona_words_P: Sequence[tuple[frozenset[str], tuple[str, ...]]]) -> list[bool]:
    return [word in words or word.startswith(stems) for words, stems in persona_words_P]


def _any_by_column(rows: Sequence[Sequence[bool]], width: int) -> list[bool]:
    return [any(column) for column in zip(*rows, strict=True)] if rows else [False] * width


def own_and_other_echoes(echo_N_P: Array, persona_N: Sequence[int]) -> tuple[Array, Array]:
    """(own_N, others_N): of each answer, the echo of its own persona's text, and the mean of those of all other personas.

    The second is what chance and the questions bring; only what the first has over it was brought by the persona. It is NaN
    where there is no other persona.
    """
    mine_N_P = np.arange(echo_N_P.shape[1]) == np.asarray(persona_N, dtype=int)[:, None]
    own_N = np.where(mine_N_P, echo_N_P, 0.0).sum(axis=1) if echo_N_P.size else np.full(len(echo_N_P), np.nan)
    counted_N_P = ~mine_N_P & ~np.isnan(echo_N_P)
    total_N, count_N = np.where(counted_N_P, echo_N_P, 0.0).sum(axis=1), counted_N_P.sum(axis=1)
    return own_N, np.divide(total_N, count_N, out=np.full(len(echo_N_P), np.nan), where=count_N > 0)


def clustered_mean(value_N: Array, unit_N: Sequence[str], rng: np.random.Generator, resamples: int) -> Estimate:
    """Mean of the values that are not NaN, its interval by the bootstrap over units: all values of a unit travel together.

    Σ_u c_u Σ_{i in u} x_i / Σ_u c_u n_u for a unit drawn c_u times; n is the number of units.
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
    """`clustered_mean` of values that are 0 or 1, never narrower than the exact binomial interval of so many answers.

    A bootstrap of a rare thing knows only what was met: of 0 in 360 it would say that there is none. Clopper and Pearson's
    interval, which takes answers for independent, says at most 1 in 100; the wider end of the two counts.
    """
    found = clustered_mean(value_N, unit_N, rng, resamples)
    scored_N = value_N[~np.isnan(value_N)]
    if found.value is None:
        return found
    exact = binomtest(int(scored_N.sum()), len(scored_N)).proportion_ci(0.95, "exact")
    low, high = (end if end is not None else found.value for end in (found.low, found.high))
    return found.model_copy(update={"low": min(low, float(exact.low)), "high": max(high, float(exact.high))})
