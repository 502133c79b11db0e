"""Measures of texts, on texts whose answers can be counted by hand."""

from itertools import combinations

import numpy as np
import pytest

from permix.metrics.text_stats import (
    clustered_mean,
    clustered_rate,
    distinct_n_overall,
    distinct_n_per_persona,
    has_repeated_ngram,
    ngrams,
    own_and_other_echoes,
    persona_word_echoes,
    rarefied_distinct_n,
    tokenize_words,
)


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_words() -> None:
    assert tokenize_words("Aye, the SEA – it's 2 deep!") == ["aye", "the", "sea", "it", "s", "2", "deep"]
    assert tokenize_words("") == []
    assert tokenize_words("🦜 !?") == []
    assert tokenize_words("Ｓｅａ") == ["sea"]
    assert ngrams(["a", "b", "c"], 2) == [("a", "b"), ("b", "c")]


def test_distinct_is_the_mean_over_all_draws() -> None:
    grams = "aabbbc"  # counts 2, 3, 1
    for drawn in range(1, 7):
        every = [len(set(draw)) / drawn for draw in combinations(grams, drawn)]
        assert rarefied_distinct_n([2, 3, 1], drawn) == pytest.approx(np.mean(every))
    assert rarefied_distinct_n([2, 3, 1], 6) == pytest.approx(3 / 6)


def test_distinct_needs_enough() -> None:
    assert np.isnan(rarefied_distinct_n([2, 3, 1], 7))
    assert np.isnan(rarefied_distinct_n([], 1))


def test_distinct_does_not_fall_with_length_as_the_plain_share_does() -> None:
    """Words drawn alike often: a text ten times as long has a tenth of the plain share."""
    draw = rng().integers(0, 100, size=20_000)
    short, long = (np.unique(draw[:n], return_counts=True)[1] for n in (2_000, 20_000))
    assert len(short) / 2_000 == pytest.approx(10 * len(long) / 20_000)
    assert rarefied_distinct_n(short.tolist(), 50) == pytest.approx(rarefied_distinct_n(long.tolist(), 50), abs=0.01)


def test_distinct_of_a_run_and_of_each_persona() -> None:
    texts = ["a b", "a c", "x y", "x x"]
    personas = ["p", "p", "q", "q"]
    assert distinct_n_per_persona(texts, personas, 1, 4) == {"p": pytest.approx(3 / 4), "q": pytest.approx(2 / 4)}
    found = distinct_n_overall(texts, personas, 1, 8)
    assert found.value == pytest.approx(5 / 8)
    assert (found.low, found.n) == (None, 2)  # without one of the two nothing is left to draw
    found = distinct_n_overall(texts, personas, 1, 4)
    assert found.low is not None
    assert found.low <= 0.75 <= (found.high or 0)
    assert distinct_n_overall(["a"], ["p"], 1, 2).value is None


def test_the_jackknife_by_hand() -> None:
    """Units a, a and b: leaving one out gives 1, 1 and 1/2 of two drawn; mean 5/6, Σ(θ − mean)² = 1/6, half = t √(2/3 · 1/6)."""
    found = distinct_n_overall(["a", "a", "b"], ["1", "2", "3"], 1, 2)
    assert found.value == pytest.approx((1 / 3) * 0.5 + (2 / 3) * 1)
    assert found.low == pytest.approx(max(0.0, found.value - 4.302653 * (2 / 3 / 6) ** 0.5))
    assert found.high == 1.0


def test_repetition_within_an_answer() -> None:
    assert has_repeated_ngram("I want to play. I want to play.")
    assert not has_repeated_ngram("I want to play, and I want to sleep.")
    assert not has_repeated_ngram("")
    assert has_repeated_ngram("woof woof woof woof woof")


def test_echo_counts_stems_of_the_persona_s_own_words() -> None:
    personas = ["a retired sailor", "a strict nurse", "you"]
    echo_N_P = persona_word_echoes(["Sailing the sea.", "Nursing a sailor.", "", "Aye."], personas)
    assert echo_N_P[:, :2].tolist() == [[1, 0], [1, 1], [0, 0], [0, 0]]
    assert np.isnan(echo_N_P[:, 2]).all()  # "you" is no content word


def test_echo_leaves_out_what_stands_in_every_persona() -> None:
    template = "Adopt the identity of {}. Answer every message."
    personas = [template.format("a sailor"), template.format("a nurse")]
    assert persona_word_echoes(["Every message has an identity to adopt."], personas).tolist() == [[0, 0]]


def test_own_against_others() -> None:
    echo_N_P = np.array([[1.0, 0.0, 1.0], [1.0, 0.0, np.nan]])
    own_N, others_N = own_and_other_echoes(echo_N_P, [0, 1])
    assert own_N.tolist() == [1.0, 0.0]
    assert others_N.tolist() == [0.5, 1.0]
    alone = own_and_other_echoes(np.array([[1.0]]), [0])
    assert alone[0].tolist() == [1.0]
    assert np.isnan(alone[1]).all()


def test_a_mean_over_units() -> None:
    found = clustered_mean(np.array([1.0, 1.0, 0.0, np.nan]), ["p", "p", "q", "r"], rng(), 500)
    assert found.value == pytest.approx(2 / 3)
    assert found.n == 2
    assert clustered_mean(np.array([np.nan]), ["p"], rng(), 100).value is None
    assert clustered_mean(np.array([]), [], rng(), 100).n == 0


def test_units_and_not_answers_are_resampled() -> None:
    """Ten copies of an answer tell no more than one."""
    value_N = np.array([1.0, 0.0, 0.0, 1.0, 0.0])
    once = clustered_mean(value_N, list("abcde"), rng(), 500)
    copied = clustered_mean(np.repeat(value_N, 10), list(np.repeat(list("abcde"), 10)), rng(), 500)
    assert once == copied


def test_a_rare_thing_is_not_known_to_be_absent() -> None:
    none = clustered_rate(np.zeros(360), [str(q % 40) for q in range(360)], rng(), 500)
    assert (none.value, none.low) == (0.0, 0.0)
    assert none.high == pytest.approx(1 - 0.025 ** (1 / 360))
    one = clustered_rate(np.array([1.0] + [0.0] * 359), [str(q % 40) for q in range(360)], rng(), 500)
    assert (one.high or 0) > (none.high or 1)
