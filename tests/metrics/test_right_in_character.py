"""Right and in character on answers whose persona and result are known by construction: P personas × Q questions."""

from typing import Any

import numpy as np
import pytest

from permix.errors import DataError
from permix.metrics import right_in_character as module
from permix.metrics.persona_classifier import mask_answers
from permix.metrics.right_in_character import (
    RightInCharacter,
    aligned_shares,
    pool_right_in_character,
    right_in_character_difference,
    summarize_right_in_character,
    swap_test_p,
)
from permix.metrics.statistics import Array

P, Q = 4, 20
IDS = ("sailor", "nurse", "monk", "clerk")
TEXTS = ("a retired sailor", "a cheerful nurse", "a silent monk", "an exact clerk")
QUESTIONS = tuple(f"q{number:02}" for number in range(Q))
STYLE = ("arrr", "dearie", "hmm", "precisely")
Texts = list[list[list[str | None]]]


def checkered(p: int, q: int) -> float:
    """Every persona is right on three of four questions, each on others."""
    return float((p + q) % 4 != 0)


def grid(say: Any, score: Any = checkered, samples: int = 1) -> tuple[Texts, Array]:
    texts = [[[say(p, q) for _ in range(samples)] for q in range(Q)] for p in range(P)]
    return texts, np.array([[[score(p, q)] * samples for q in range(Q)] for p in range(P)])


def measure(texts: Texts, scores: Array, **changed: Any) -> RightInCharacter:
    settings: dict[str, Any] = {"persona_ids": IDS, "question_ids": QUESTIONS, "resamples": 200}
    return summarize_right_in_character(texts, scores, changed.pop("persona_texts", TEXTS), **{**settings, **changed})


def in_style(p: int, q: int) -> str:
    """The persona's own word, and an answer whose value depends on whether it is right."""
    return f"{STYLE[p]} the answer is {q if checkered(p, q) else 99}"


def test_with_a_word_of_ones_own_the_share_is_the_accuracy() -> None:
    found = measure(*grid(in_style))
    assert found.right.value == found.share.value == 0.75
    assert found.recognised.value == found.recognised_if_right.value == found.recognised_if_wrong.value == 1.0
    assert (found.chance, found.n_answers, found.n_asked, found.n_questions, found.left_out) == (0.25, 80, 80, 20, ())
    assert [(one.id, one.share.value, one.right.value, one.recognised.value) for one in found.personas] == [
        (id, 0.75, 0.75, 1.0) for id in IDS
    ]
    assert found.share.n == 20
    assert found.length_only.value is not None


def test_equal_texts_are_at_chance() -> None:
    """Of four equal answers to a question one is attributed rightly, whoever is right; so a quarter of the accuracy remains."""
    found = measure(*grid(lambda p, q: f"the answer is {q}", lambda p, q: 1.0))
    assert (found.right.value, found.recognised.value, found.share.value) == (1.0, 0.25, 0.25)
    assert (found.permuted.value, found.share_by_chance.value, found.length_only.value) == (0.25, 0.25, 0.25)
    assert found.recognised_if_wrong.value is None


def test_right_only_out_of_character_is_never_right_in_character() -> None:
    """Even questions: in style and wrong. Odd ones: right, in the same words for all."""
    found = measure(*grid(lambda p, q: f"the answer is {q}" if q % 2 else f"{STYLE[p]} no", lambda p, q: float(q % 2)))
    assert found.right.value == 0.5
    assert found.recognised_if_wrong.value == 1.0
    assert found.recognised_if_right.value == 0.25
    assert found.share.value == 0.125


@pytest.mark.parametrize("value", ["{}", "{:.2f}", "-{}", "{},000", "1/{}", "{} hundred", "\\boxed{{{}}}"])
def test_being_always_wrong_names_nobody(value: str) -> None:
    """Answers of numbers alone; one persona is always wrong and its numbers are different. The score alone would name it."""

    def number(p: int, q: int) -> str:
        return value.format(q + (1000 * (q + 1) if p == 2 else 0))

    found = measure(*grid(number, lambda p, q: float(p != 2)))
    assert found.recognised.value == 0.25
    assert found.score_only.value == 0.5  # the always wrong one, and one of the three others
    assert found.share.value is not None
    assert found.right.value == 0.75
    assert found.length_only.value == 0.25


def test_extracted_answers_in_words_are_masked_in_all_answers_of_a_question() -> None:
    texts, scores = grid(lambda p, q: "maybe" if p == 2 else "yes", lambda p, q: float(p != 2))
    assert measure(texts, scores).recognised.value == 0.5
    found = measure(texts, scores, values_Q=[("yes", "maybe")] * Q)
    assert found.recognised.value == 0.25


def test_words_of_the_personas_are_masked() -> None:
    assert measure(*grid(lambda p, q: f"{IDS[p]} says {q}")).recognised.value == 0.25


def test_every_sample_is_an_answer_of_its_cell() -> None:
    """The second sample of each answer is right in half of the questions, in style in all: the mean over both is 0.625."""
    texts, scores = grid(in_style, samples=2)
    scores[:, :, 1] = np.arange(Q) % 2
    found = measure(texts, scores)
    assert found.n_answers == 160
    assert found.right.value == found.share.value == pytest.approx((0.75 + 0.5) / 2)


def test_samples_stay_in_the_fold_of_their_question() -> None:
    """Each cell has a word of its own in both samples: only a classifier that had trained on the cell would know it."""
    rng = np.random.default_rng(3)
    words = ["".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz"), 12)) for _ in range(P * Q)]
    found = measure(*grid(lambda p, q: words[p * Q + q], samples=2))
    assert found.recognised.value == pytest.approx(0.25, abs=0.15)


def test_missing_answers_and_scores_are_left_out_and_counted() -> None:
    texts, scores = grid(in_style, lambda p, q: 1.0)
    texts[0][0][0], texts[1][3][0] = None, None
    scores[2, 5, 0] = np.nan
    found = measure(texts, scores)
    assert (found.n_answers, found.n_asked) == (77, 80)
    assert found.share.value == found.recognised.value == 1.0
    assert [one.share.n for one in found.personas] == [19, 19, 19, 20]


def test_an_empty_answer_is_an_answer() -> None:
    texts, scores = grid(lambda p, q: "", lambda p, q: 0.0)
    found = measure(texts, scores)
    assert (found.n_answers, found.share.value, found.recognised.value) == (80, 0.0, 0.25)
    assert found.recognised_if_right.value is None
    assert found.share.high is not None
    assert found.share.high > 0.1  # the exact binomial end of twenty questions without a success


def test_a_persona_with_too_few_answers_is_left_out_and_named() -> None:
    texts, scores = grid(in_style)
    texts[1][:11] = [[None] for _ in range(11)]
    found = measure(texts, scores)
    assert found.left_out == ("nurse",)
    assert [one.id for one in found.personas] == ["sailor", "monk", "clerk"]
    assert found.chance == pytest.approx(1 / 3)
    assert found.n_answers == 69


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"persona_ids": IDS[:1], "persona_texts": TEXTS[:1]}, "at least 2 personas, got 1"),
        ({"persona_texts": TEXTS[:3]}, "3 persona texts for 4 persona ids"),
        ({"persona_ids": ("sailor", "nurse", "monk", "monk")}, "persona id 'monk' occurs twice"),
        ({"question_ids": ("q00", *QUESTIONS[:-1])}, "question id 'q00' occurs twice"),
        ({"question_ids": QUESTIONS[:9]}, "9 questions in 5 folds"),
        ({"question_ids": (*QUESTIONS, "q20")}, "expected 4 personas × 21 questions"),
        ({"folds": 1}, "at least 2 folds"),
        ({"reference_P_Q_S": [[["a"]]]}, "reference: rows of"),
    ],
)
def test_bad_input_is_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        measure(*grid(in_style), **changed)


def test_bad_scores_are_refused() -> None:
    texts, scores = grid(in_style)
    with pytest.raises(DataError, match="2 is outside"):
        measure(texts, scores * 2)
    with pytest.raises(DataError, match="shape"):
        measure(texts, scores[:, :, [0, 0]])


def test_too_few_answers_give_a_reason_and_no_number() -> None:
    texts, scores = grid(in_style)
    scores[1:, 5:] = np.nan
    with pytest.raises(DataError, match=r"1 of 4 personas have answers to 10 questions or more.*'clerk' has 5 with a score"):
        measure(texts, scores)


def test_a_reference_trains_the_classifier() -> None:
    """The model speaks like the reference's personas, each like its neighbour: no answer is recognised as its own."""
    reference, _ = grid(lambda p, q: f"{STYLE[p]} {q}", samples=3)
    texts, scores = grid(lambda p, q: f"{STYLE[(p + 1) % P]} {q}")
    found = measure(texts, scores, reference_P_Q_S=reference, reference_name="answers of base")
    assert (found.recognised.value, found.share.value, found.reference) == (0.0, 0.0, "answers of base")
    assert measure(texts, scores).recognised.value == 1.0


def test_the_result_does_not_depend_on_the_order_of_personas_and_questions() -> None:
    rng = np.random.default_rng(0)
    texts, scores = grid(lambda p, q: " ".join(rng.choice([STYLE[p], "river", "stone", "lamp"], 3)))
    persona_order, question_order = [2, 0, 3, 1], rng.permutation(Q).tolist()
    shuffled = [[texts[p][q] for q in question_order] for p in persona_order]
    found = measure(texts, scores)
    other = measure(
        shuffled, scores[np.ix_(persona_order, question_order)],
        persona_ids=[IDS[p] for p in persona_order], persona_texts=[TEXTS[p] for p in persona_order],
        question_ids=[QUESTIONS[q] for q in question_order],
    )  # fmt: skip
    assert found.share == other.share
    assert found.recognised_if_wrong == other.recognised_if_wrong
    assert {one.id: one for one in found.personas} == {one.id: one for one in other.personas}


def test_training_is_limited_to_whole_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    mask = np.ones((8, Q), dtype=bool)
    mask[0, 1] = False
    monkeypatch.setattr(module, "MAX_TRAIN_ANSWERS", 23)
    assert module._limit_training(mask).sum(axis=0).tolist() == [8, 7, 8] + [0] * 17
    monkeypatch.setattr(module, "MAX_TRAIN_ANSWERS", 8)
    texts, scores = grid(in_style)
    assert measure(texts, scores).recognised.value == 1.0  # two questions in two folds


def lucky(share: float, seed: int, recognised: bool = True) -> RightInCharacter:
    rng = np.random.default_rng(seed)
    right = rng.random((P, Q)) < share
    return measure(*grid(lambda p, q: f"{STYLE[p] if recognised else 'ah'} {q}", lambda p, q: float(right[p, q])))


def test_the_difference_of_two_models_is_paired_by_cell() -> None:
    first, other = lucky(0.4, 1), lucky(0.9, 2)
    difference = right_in_character_difference([other], [first], 0, 400)
    assert first.share.value is not None
    assert other.share.value is not None
    assert difference.value == pytest.approx(other.share.value - first.share.value)
    assert difference.low is not None
    assert difference.low > 0
    assert difference.n == Q
    assert swap_test_p(first, other, 0, 999) == pytest.approx(0.001)
    assert swap_test_p(first, first, 0, 99) == 1.0
    assert pool_right_in_character([first], 0, 400) == first.share
    pooled = pool_right_in_character([first, other], 0, 400)
    assert pooled.value == pytest.approx((first.share.value + other.share.value) / 2)


def test_a_comparison_uses_the_cells_that_both_have() -> None:
    texts, scores = grid(in_style, lambda p, q: 1.0)
    few: Texts = [[[None] if q == 4 or (p == 1 and q > 8) else texts[p][q] for q in range(Q)] for p in range(P)]
    first, other = measure(texts, scores), measure(few, scores)
    assert other.left_out == ("nurse",)
    assert aligned_shares([first, other]).shape == (2, 3, Q)
    assert np.isnan(aligned_shares([first, other])).sum() == 6
    assert right_in_character_difference([other], [first], 0, 200).n == Q - 1


def test_what_a_comparison_needs_is_not_written_to_json() -> None:
    found = lucky(0.5, 1)
    assert not {"share_P_Q", "question_ids"} & set(found.model_dump(mode="json"))
    assert RightInCharacter.model_validate(found.model_dump(mode="json")).share == found.share


@pytest.mark.parametrize(
    ("text", "answers", "masked"),
    [
        ("Aye, 42 it be!", (), "Aye, [answer] it be!"),
        ("12 + -30 = −18.", (), "[answer] + [answer] = [answer]."),
        ("1,234.50 and ½ of 1/2, 3rd", (), "[answer] of [answer], [answer]"),
        ("one hundred and five", (), "[answer]"),
        ("Twenty-one, forty two; someone alone", (), "[answer], [answer]; someone alone"),
        ("x2 is 7-5", (), "x[answer] is [answer]"),
        ("The answer is B, but A bee", ("B",), "The answer is [answer], but A bee"),
        ("yes, YES and yesterday", ("yes", ""), "[answer], [answer] and yesterday"),
        (r"so \frac{x}{2} it is", (r"\frac{x}{2}",), "so [answer] it is"),
        ("Arrr, 12.5 km", ("12",), "Arrr, [answer] km"),
    ],
)
def test_what_is_masked(text: str, answers: tuple[str, ...], masked: str) -> None:
    assert mask_answers(text, answers) == masked
