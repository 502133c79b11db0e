"""Recognisability with an embedder of known vectors: they count the meanings of words, and some words share a meaning."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from permix.errors import DataError
from permix.metrics.recognisability import (
    FILLER_WORD,
    Recognisability,
    nearest_texts,
    remove_persona_words,
    shuffled_shares,
    summarize_recognisability,
)
from permix.metrics.statistics import Array
from permix.types import digest

IDS = ("sailor", "nurse", "baker")
TEXTS = ("a sailor", "a nurse", "a baker")
MEANINGS = {
    "sailor": 0, "ship": 0, "waves": 0, "nurse": 1, "fever": 1, "ward": 1, "baker": 2, "bread": 2, "oven": 2, FILLER_WORD: 3,
}  # fmt: skip
OWN = ("ship", "fever", "bread")
DIMENSIONS = 64
Grid = list[list[str | None]]


def count_meanings(texts: Sequence[str]) -> Array:
    """Vectors that count the words of each meaning; words without an entry have one of the other dimensions, by their hash."""
    vector_N_D = np.zeros((len(texts), DIMENSIONS))
    for place, text in enumerate(texts):
        for word in text.lower().replace(".", "").split():
            other = 4 + int(digest(word), 16) % (DIMENSIONS - 4)
            vector_N_D[place, MEANINGS.get(word, other)] += 1
    return vector_N_D


def score(answers: Grid, texts: Sequence[str] = TEXTS, **changed: Any) -> Recognisability:
    questions = [f"What about {letter}?" for letter in "abcdefghijkl"[: len(answers[0])]]
    named: dict[str, Any] = {"persona_ids": IDS[: len(answers)], "question_texts": questions, "resamples": 400} | changed
    return summarize_recognisability(answers, texts, named.pop("embed", count_meanings), **named)


def own_words(questions: int = 5) -> Grid:
    return [[f"I like {word}" for _ in range(questions)] for word in OWN]


def test_answers_of_the_meaning_of_their_persona_are_all_recognised() -> None:
    found = score(own_words())
    assert (found.accuracy.value, found.accuracy.n, found.chance) == (1, 15, 1 / 3)
    # All five questions are alike, so no resample differs: the exact binomial bound of five questions, 0.025^(1/5).
    assert found.accuracy.high == 1
    assert found.accuracy.low == pytest.approx(0.025**0.2)
    assert list(map(list, found.confusion)) == [[5, 0, 0], [0, 5, 0], [0, 0, 5]]
    assert [one.value for one in found.per_persona] == [1, 1, 1]
    # Less their means, answers and texts are corners of a triangle: cosine 1 to the own text and −1/2 to the others.
    assert found.margin.value == pytest.approx(1.5)
    assert (found.n_asked, found.n_answered, found.n_scored, found.n_questions) == (15, 15, 15, 5)
    assert found.right_by_question == {f"What about {letter}?": (3.0, 3) for letter in "abcde"}


def test_all_played_wrongly_but_each_in_its_own_way() -> None:
    """What identifiability cannot see: each persona talks like the next one."""
    answers = own_words()
    found = score([answers[1], answers[2], answers[0]])
    assert found.accuracy.value == 0
    assert found.margin.value == pytest.approx(-0.75)
    assert list(map(list, found.confusion)) == [[0, 5, 0], [0, 0, 5], [5, 0, 0]]


def test_the_words_of_a_personas_text_do_not_count() -> None:
    """ "Sailor" and "sailing" go out of every answer, also out of the nurse's; nothing is left that differs."""
    found = score([["I am the sailor sailing"] * 4, ["I am the nurse nursing"] * 4, ["I am the baker bakers"] * 4])
    assert found.accuracy.value == pytest.approx(1 / 3)
    assert found.confusion[0] == pytest.approx((4 / 3, 4 / 3, 4 / 3))
    assert found.removed_words == pytest.approx(2 / 5)
    assert remove_persona_words("The sailor, a Nurse! Sailing on.", TEXTS) == "The , a ! on."


def test_what_all_answers_to_a_question_share_does_not_count() -> None:
    """At a question about the sea all talk of ships; the nurse says "fever" once more, the baker "bread"."""
    sea: Grid = [["waves ship ship"] * 4, ["waves ship fever"] * 4, ["waves ship bread"] * 4]
    assert score(sea).accuracy.value == 1
    uncentred = count_meanings([str(one[0]) for one in sea]) @ count_meanings(TEXTS).T
    assert uncentred.argmax(axis=1).tolist() == [0, 0, 0]


def test_equal_answers_are_chance_exactly_and_so_is_the_question_alone() -> None:
    found = score([["So it is."] * 4] * 3)
    for one in (found.accuracy, found.question_only, found.length_only):
        assert [one.value, one.low, one.high] == pytest.approx([1 / 3] * 3)
    assert found.margin.value == 0
    assert score(own_words()).question_only.value == pytest.approx(1 / 3)


def test_an_answer_without_a_word_left_is_scored_as_chance_and_shifts_no_mean() -> None:
    """It has no vector: the other two are compared with each other, as if the nurse had not answered."""
    answers = own_words()
    answers[1] = ["", "...", "nursing nurse", "Nurse!", "!"]
    found = score(answers)
    assert [one.value for one in found.per_persona] == [1, pytest.approx(1 / 3), 1]
    assert found.n_scored == 15


def test_two_personas_with_one_text_share_their_answers() -> None:
    found = score(own_words(), texts=("a sailor", "a nurse", "a nurse."), persona_ids=IDS)
    assert [one.value for one in found.per_persona] == [1, 0.5, pytest.approx(1 / 3)]  # bread is like no text
    assert list(found.confusion[1]) == [0, 2.5, 2.5]
    assert (found.closest_texts.first, found.closest_texts.second, found.closest_texts.cosine) == ("baker", "nurse", 1)


def test_missing_answers_are_left_out_and_a_question_with_one_answer_is_not_scored() -> None:
    answers = own_words()
    answers[0][0] = answers[1][0] = None
    answers[2][1] = None
    found = score(answers)
    assert (found.n_asked, found.n_answered, found.n_scored) == (15, 12, 11)
    assert (found.accuracy.value, found.accuracy.n) == (1, 11)
    assert set(found.right_by_question) == {f"What about {letter}?" for letter in "bcde"}
    assert found.accuracy.low == pytest.approx(0.025**0.25)  # four questions are left


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_missing_answers_bias_nothing_where_answers_are_the_text_and_a_question_effect(seed: int) -> None:
    """Both means are over the personas that answered, so that e_pq = 2 t_p + b_q is recognised whoever is missing."""
    rng = np.random.default_rng(seed)
    P, Q, D = 5, 6, 8
    text_P_D = rng.normal(size=(P, D))
    vector_P_Q_D = 2 * text_P_D[:, None] + 3 * rng.normal(size=(Q, D))
    answered_P_Q = rng.random((P, Q)) < 0.6
    vector_P_Q_D[~answered_P_Q] = np.nan
    share_P_Q = nearest_texts(vector_P_Q_D, answered_P_Q, text_P_D).own_share_P_Q
    assert (np.isnan(share_P_Q) == (~answered_P_Q | (answered_P_Q.sum(axis=0) < 2))).all()
    assert (share_P_Q[~np.isnan(share_P_Q)] == 1).all()


def test_length_alone() -> None:
    """The texts have 2 and 6 words of the filler's meaning, the answers 3 and 8 words: length names both."""
    texts = (f"{FILLER_WORD} {FILLER_WORD}", " ".join([FILLER_WORD] * 6))
    found = score([["one two three"] * 4, ["one two three four five six seven eight"] * 4], texts=texts)
    assert found.length_only.value == 1
    assert score(own_words()).length_only.value == pytest.approx(1 / 3)  # all have three words


def test_texts_given_to_the_wrong_personas() -> None:
    """Of the 6 orders of three texts one gives all answers right, three a third of them and two none: 1/3 in the mean."""
    found = score(own_words(), resamples=3000)
    assert found.shuffled.value == pytest.approx(1 / 3, abs=0.02)
    assert (found.shuffled.low, found.shuffled.high) == (0, 1)
    assert found.shuffled_p == pytest.approx(1 / 6, abs=0.03)
    shares = shuffled_shares(np.diag([5.0, 5.0, 5.0]), np.random.default_rng(0), 300)
    assert {round(one, 6) for one in shares.tolist()} == {0.0, 0.333333, 1.0}


def test_the_order_of_personas_and_questions_does_not_matter() -> None:
    rng = np.random.default_rng(1)
    answers: Grid = [[" ".join(rng.choice(OWN, 4)) + f" {own}" for _ in range(6)] for own in OWN]
    questions = [f"What about {letter}?" for letter in "abcdef"]
    found = score(answers, question_texts=questions)
    turned = score([row[::-1] for row in answers[::-1]], TEXTS[::-1], persona_ids=IDS[::-1], question_texts=questions[::-1])
    assert turned.per_persona == found.per_persona[::-1]
    assert turned.confusion == tuple(row[::-1] for row in found.confusion[::-1])
    same = {"accuracy", "margin", "length_only", "shuffled", "shuffled_p", "right_by_question", "closest_texts"}
    assert turned.model_dump(include=same) == found.model_dump(include=same)
    assert score(answers, question_texts=questions, seed=1).accuracy.low != found.accuracy.low


def test_each_text_is_embedded_once() -> None:
    asked: list[str] = []

    def count(texts: Sequence[str]) -> Array:
        asked.extend(texts)
        return count_meanings(texts)

    score(own_words(), embed=count)
    # Three answers, five questions, one length and three persona texts.
    assert len(asked) == len(set(asked)) == 12


@pytest.mark.parametrize(
    ("answers", "changed", "message"),
    [
        ([["a", "b"]], {}, "recognisability needs at least 2 personas, got 1"),
        ([["a"], ["b"], ["c"]], {"texts": TEXTS[:2]}, "2 persona texts for 3 persona ids"),
        ([["a", "b"]] * 3, {"question_texts": ["Why?", "why?"]}, "question"),
        ([["a"], [None], [None]], {}, "no question has answers of two personas"),
        ([["a", "b"], ["a"], ["a", "b"]], {}, "answers: rows of"),
        ([["a"], [3], ["b"]], {}, r"answers: entry \[1\]\[0\] is int"),
        ([["a"]] * 3, {"embed": lambda texts: np.zeros((1, 4))}, r"embedder: gave an array \[1, 4\] for 6 texts"),
        ([["a"]] * 3, {"embed": lambda texts: np.full((len(texts), 4), np.nan)}, "expected a finite vector for each"),
    ],
)
def test_what_cannot_be_measured_is_refused(answers: Any, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        score(answers, **changed)
