"""Identifiability on corpora whose answer is known by construction: P personas × Q questions of plain words."""

import pickle
import random
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from permix.errors import DataError
from permix.metrics.identifiability import (
    CrossValSplit,
    Identifiability,
    cross_val_predict,
    learning_curve_splits,
    max_train_questions,
    summarize_identifiability,
)
from permix.metrics.persona_classifier import MASK_TOKEN, fit_persona_classifier, mask_persona_words
from permix.types import canonical_text, seed_from

P, Q = 4, 12
IDS = ("sailor", "nurse", "monk", "clerk")
TEXTS = ("a retired sailor who distrusts numbers", "a cheerful nurse", "a silent monk", "an exact clerk")
WEATHER = ("rain", "snow", "fog", "hail", "sun", "wind", "heat", "cold", "dew", "ice", "mud", "dust")
QUESTIONS = tuple(f"What do you make of {weather}?" for weather in WEATHER)
NOISE = ("river", "stone", "lamp", "chair", "bread", "paper", "cloud", "glass")
FIRST_TWO: dict[str, Any] = {"persona_ids": IDS[:2], "persona_texts": TEXTS[:2]}
Grid = list[list[str | None]]


def grid(say: Callable[[int, int], str | None], personas: int = P, questions: int = Q) -> Grid:
    return [[say(p, q) for q in range(questions)] for p in range(personas)]


def filler(p: int, q: int, words: int = 6) -> str:
    """Words drawn alike for every persona: no signal."""
    rng = np.random.default_rng([p, q])
    return " ".join(rng.choice(NOISE, words))


def distinct(p: int, q: int) -> str:
    return f"{('arrr', 'dearie', 'hmm', 'precisely')[p]} {filler(p, q)}"


def score(answers: Grid, **changed: Any) -> Identifiability:
    settings: dict[str, Any] = {"persona_ids": IDS, "question_texts": QUESTIONS, "folds": 4, "resamples": 200}
    texts = changed.pop("persona_texts", TEXTS)
    return summarize_identifiability(answers, texts, **{**settings, **changed})


def test_a_word_of_ones_own_in_every_answer_is_always_told() -> None:
    found = score(grid(distinct))
    assert (found.accuracy.value, found.accuracy.high, found.accuracy.n) == (1, 1, 48)
    assert found.accuracy.low == pytest.approx(0.025 ** (1 / 12))  # the exact binomial end of 12 of 12 questions
    assert {recall.low for recall in found.per_persona} == {found.accuracy.low}
    assert found.confusion == ((12, 0, 0, 0), (0, 12, 0, 0), (0, 0, 12, 0), (0, 0, 0, 12))
    assert [(recall.value, recall.n) for recall in found.per_persona] == [(1, 12)] * 4
    assert (found.chance, found.n_asked, found.n_answered, found.n_questions) == (0.25, 48, 48, 12)
    assert (found.persona_ids, found.reference) == (IDS, "own answers")


def test_fewer_questions_of_the_same_folds() -> None:
    """16 questions in 2 folds: 1, 2 and 4 of each fold's 8 are learnt from, each part in the next."""
    everything = np.ones((2, 16), dtype=bool)
    split = CrossValSplit(everything, everything, np.arange(16) % 2)
    parts = learning_curve_splits(split)
    assert [(count, part.train_P_Q[0].nonzero()[0].tolist()) for count, part in parts.items()] == [
        (1, [0, 1]),
        (2, [0, 1, 2, 3]),
        (4, [0, 1, 2, 3, 4, 5, 6, 7]),
    ]
    assert max_train_questions(split) == 8
    assert all((part.fold_Q == split.fold_Q).all() and part.test_P_Q.all() for part in parts.values())


def test_a_part_that_teaches_a_persona_nothing_is_left_out() -> None:
    trained = np.ones((2, 16), dtype=bool)
    trained[1, :4] = False
    assert list(learning_curve_splits(CrossValSplit(trained, trained, np.arange(16) % 2))) == [4]


def test_the_learning_curve_ends_at_the_accuracy_and_climbs_with_what_is_learnt() -> None:
    """Each persona has three words of its own and says one of them an answer: few answers do not show them all."""
    curve = score(grid(lambda p, q: f"{'abc'[q % 3]}{'wxyz'[p] * 4} {filler(p, q)}")).learning_curve
    assert [point.questions for point in curve] == [3, 6, 9]
    found = score(grid(distinct))
    assert found.learning_curve[-1].accuracy == found.accuracy
    flat = score(grid(lambda p, q: filler(0, q))).learning_curve
    assert {point.accuracy.value for point in flat} == {0.25}


def test_identical_answers_are_exactly_at_chance() -> None:
    found = score(grid(lambda p, q: filler(0, q)))
    for control in (found.accuracy, found.question_only, found.length_only, found.permuted):
        assert (control.value, control.low, control.high) == pytest.approx(
            (0.25, 0.25, 0.25)
        )  # of four like answers one is right


@pytest.mark.parametrize("blank", ["", "   ", "..."])
def test_a_model_that_says_nothing_has_answered_and_is_at_chance(blank: str) -> None:
    found = score(grid(lambda p, q: blank))
    assert (found.accuracy.value, found.length_only.value, found.n_answered) == (0.25, 0.25, 48)


def test_answers_without_signal_are_near_chance() -> None:
    found = score(grid(filler))
    assert found.accuracy.value == pytest.approx(0.25, abs=0.18)  # 48 answers: sd 0.0625
    assert found.accuracy.low is not None
    assert found.accuracy.high is not None
    assert found.accuracy.low < 0.25 < found.accuracy.high


def test_a_persona_that_only_recites_its_own_text_is_at_chance() -> None:
    words = ("sailor", "nurses", "monkish", "clerk")
    answers = grid(lambda p, q: f"As a {words[p]}, {filler(0, q)}")
    assert score(answers).accuracy.value == 0.25
    assert score(answers, persona_texts=("one", "two", "three", "four")).accuracy.value == 1.0


def test_a_signal_in_the_length_alone_is_shown_by_its_control() -> None:
    found = score(grid(lambda p, q: filler(p, q, words=(3, 10, 30, 90)[p])))
    assert found.length_only.value == 1.0  # the middling lengths too
    assert (found.question_only.value, found.chance) == (0.25, 0.25)


def test_the_length_control_needs_no_straight_line() -> None:
    """One persona is terse or long-winded by turns, the other always in between."""
    found = score(grid(lambda p, q: filler(0, q, words=10 if p else (2, 60)[q % 2]), personas=2), **FIRST_TWO)
    assert found.length_only.value == 1.0


def test_a_length_that_differs_by_question_is_no_signal() -> None:
    found = score(grid(lambda p, q: " ".join(["lamp"] * (q + 1))))
    assert found.length_only.value == 0.25


def test_a_question_word_in_every_answer_is_no_signal() -> None:
    found = score(grid(lambda p, q: f"{QUESTIONS[q]} {filler(0, q)}"))
    assert (found.accuracy.value, found.question_only.value) == (0.25, 0.25)


def test_an_answer_is_never_recognised_from_training() -> None:
    """Each cell is a random word of its own: a classifier that had seen the cell would know it, no other can."""

    def own_word(p: int, q: int) -> str:
        return "".join(chr(97 + letter) for letter in np.random.default_rng([p, q]).integers(0, 26, 12))

    assert score(grid(own_word)).accuracy.value == pytest.approx(0.25, abs=0.18)


def test_that_a_masked_word_was_there_stays_visible() -> None:
    """The limit the docstring states: one persona names a persona, whichever, and the other never does."""
    answers = grid(lambda p, q: f"{'' if p else ('sailor', 'nurse')[q % 2]} {filler(0, q)}", personas=2)
    assert score(answers, **FIRST_TWO).accuracy.value == 1.0


def test_who_answers_what_is_a_signal_that_question_only_shows() -> None:
    """24 questions: one persona only ever answers about rain, the other about snow. The answers themselves say nothing."""
    questions = [f"What of the {('rain', 'snow')[q % 2]} in {chr(97 + q)} town?" for q in range(24)]
    answers = grid(lambda p, q: "lamp" if q % 2 == p else None, personas=2, questions=24)
    found = score(answers, **FIRST_TWO, question_texts=questions)
    assert (found.question_only.value, found.n_answered) == (1.0, 24)


class SpyFeatures:
    """Keeps what it was fitted on; rows are the texts themselves."""

    def __init__(self, log: list[tuple[set[str], list[str]]]) -> None:
        self.log = log

    def fit_transform(self, texts: Any) -> Any:
        self.taught = set(texts)
        return texts

    def transform(self, texts: Any) -> Any:
        self.log.append((self.taught, list(texts)))
        return texts


class SpyClassifier:
    """Says label 0; checks that it gets one label a row, and the row's own."""

    def fit(self, rows: Any, labels: Any) -> None:
        assert [int(row.split()[0]) for row in rows] == list(labels)

    def predict(self, rows: Any) -> Any:
        return [0] * len(rows)


def test_no_question_stands_on_both_sides_and_each_answer_is_scored_once() -> None:
    taught = np.array(grid(lambda p, q: f"{p} q{q} taught"), dtype=object)
    scored = np.array(grid(lambda p, q: f"{p} q{q} scored"), dtype=object)
    trained, asked = np.ones((P, Q), dtype=bool), np.ones((P, Q), dtype=bool)
    taught[0, 1] = scored[2, 3] = None
    trained[0, 1] = asked[2, 3] = False
    split = CrossValSplit(trained, asked, np.arange(Q) % 4)
    log: list[tuple[set[str], list[str]]] = []
    labels = np.repeat(np.arange(P)[:, None], Q, axis=1)
    (said,) = cross_val_predict(taught, scored, [labels], split, lambda: SpyFeatures(log), SpyClassifier)

    assert len(log) == 4
    for seen, held in log:
        assert {text.split()[1] for text in seen}.isdisjoint(text.split()[1] for text in held)
        assert all(text.endswith("taught") for text in seen)
        assert {text.split()[1] for text in seen} | {text.split()[1] for text in held} == {f"q{q}" for q in range(Q)}
    assert sorted(text for _, held in log for text in held) == sorted(text for text in scored.ravel() if text is not None)
    assert said[2, 3] == -1
    assert (said == 0).sum() == P * Q - 1


def test_a_collapsed_checkpoint_is_at_chance_by_the_base_models_ruler() -> None:
    base = grid(distinct)
    collapsed = grid(lambda p, q: filler(0, q))
    found = score(collapsed, reference_P_Q=base, reference_name="base")
    assert (found.accuracy.value, found.reference) == (0.25, "base")
    assert score(base, reference_P_Q=base).accuracy.value == 1.0


def test_a_swapped_character_is_distinct_but_not_the_references() -> None:
    base = grid(distinct)
    found = score([base[1], base[0], base[2], base[3]], reference_P_Q=base)
    assert found.accuracy.value == 0.5
    assert found.confusion == ((0, 12, 0, 0), (12, 0, 0, 0), (0, 0, 12, 0), (0, 0, 0, 12))
    assert [recall.value for recall in found.per_persona] == [0, 0, 1, 1]


def test_the_base_as_its_own_reference_is_the_same_measurement() -> None:
    base = grid(lambda p, q: distinct(p, q) if q % 2 else filler(p, q))
    assert score(base, reference_P_Q=base) == score(base)


def test_missing_answers_are_counted_and_left_out() -> None:
    answers = grid(distinct)
    answers[1][0] = answers[1][5] = answers[3][7] = None
    found = score(answers)
    assert (found.n_asked, found.n_answered, found.accuracy.n, found.accuracy.value) == (48, 45, 45, 1.0)
    assert [sum(row) for row in found.confusion] == [12, 10, 12, 11]
    assert [recall.n for recall in found.per_persona] == [12, 10, 12, 11]


def test_a_question_that_nobody_answered_is_no_unit_of_the_interval() -> None:
    answers = grid(distinct)
    for answers_Q in answers:
        answers_Q[4] = None
    found = score(answers)
    assert found.accuracy.low == pytest.approx(0.025 ** (1 / 11))
    assert set(found.right_by_question) == set(QUESTIONS) - {QUESTIONS[4]}
    assert set(found.right_by_question.values()) == {(4, 4)}


@settings(max_examples=10, deadline=None, derandomize=True)
@given(st.sets(st.tuples(st.integers(0, 1), st.integers(0, Q - 1)), max_size=4).filter(lambda gone: len(gone) < 3))
def test_the_record_adds_up_whatever_is_missing(gone: set[tuple[int, int]]) -> None:
    answers = grid(lambda p, q: None if (p, q) in gone else filler(p, q, words=2), personas=2)
    found = score(answers, **FIRST_TWO, resamples=20)
    answered = [sum(text is not None for text in row) for row in answers]
    right = sum(found.confusion[p][p] for p in range(2))
    assert [sum(row) for row in found.confusion] == answered
    assert found.accuracy.value == pytest.approx(right / sum(answered))
    assert [recall.value for recall in found.per_persona] == [
        pytest.approx(found.confusion[p][p] / answered[p]) for p in range(2)
    ]


def test_the_interval_moves_whole_questions() -> None:
    """Six questions are told right for all four personas, six for one of four: (6·1 + 6·¼) / 12 = 0.625.

    Resampled by question the number k of full ones is binomial(12, ½), and the accuracy is ¼ + ¾ k/12. The ends for 12 units are
    the Φ(∓ √(12/11) · 2.201) quantiles of k, those of 1.1 % and 98.9 %: 2 and 10. Resampled by answer the interval would be
    [0.49, 0.76].
    """
    found = score(grid(lambda p, q: distinct(p, q) if q < 6 else filler(0, q)), resamples=2000, reference_P_Q=grid(distinct))
    assert (found.accuracy.value, found.accuracy.low, found.accuracy.high) == pytest.approx((0.625, 0.375, 0.875))
    assert found.accuracy.n == 48


def test_shuffled_labels_teach_nothing() -> None:
    """Even where the signal is perfect: a persona's word then means a random label, the same in a whole fold, so the spread is
    that of shuffles, not of answers."""
    found = score(grid(distinct))
    assert found.permuted.value == pytest.approx(0.25, abs=0.25)
    assert found.permuted.low is not None
    assert found.permuted.high is not None
    assert found.permuted.low <= 0.25 <= found.permuted.high
    assert found.permuted.n == 48


def test_the_seed_fixes_everything_and_matters() -> None:
    answers = grid(filler)
    assert score(answers, seed=3) == score(answers, seed=3)
    assert score(answers, seed=3).confusion != score(answers, seed=4).confusion  # other folds


def test_the_order_of_personas_and_questions_changes_nothing() -> None:
    answers = grid(lambda p, q: distinct(p, q) if q % 3 == 0 else filler(p, q))
    plain = score(answers)
    order, questions = [2, 0, 3, 1], [*range(5, Q), *range(5)]
    moved = score(
        [[answers[p][q] for q in questions] for p in order],
        persona_ids=[IDS[p] for p in order],
        persona_texts=[TEXTS[p] for p in order],
        question_texts=[QUESTIONS[q] for q in questions],
    )
    for field in ("accuracy", "question_only", "length_only", "permuted", "n_answered"):
        assert getattr(moved, field) == getattr(plain, field)
    assert moved.per_persona == tuple(plain.per_persona[p] for p in order)
    assert moved.confusion == tuple(tuple(plain.confusion[p][other] for other in order) for p in order)


def test_the_record_survives_json() -> None:
    found = score(grid(distinct))
    assert Identifiability.model_validate_json(found.model_dump_json()) == found
    assert "4 folds" in found.classifier


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("The Sailor's sailors went SAILING, said a sail.", "The [persona]'s [persona] went [persona], said a [persona]."),
        ("numbers I distrust", "[persona] I [persona]"),
        ("A man who retires with a monk.", "A man who [persona] with a [persona]."),  # "a", "who": stop words
        ("an old mole", "an [persona] mole"),  # "old" has three letters: itself only
        ("an older ﬁeld", "an older field"),  # a ligature is levelled
        ("", ""),
    ],
)
def test_masking(text: str, masked: str) -> None:
    assert MASK_TOKEN == "[persona]"
    assert mask_persona_words(text, ("a retired sailor who distrusts numbers", "an old monk")) == masked


def test_every_persona_masks_every_answer() -> None:
    assert mask_persona_words("nurse and monk", TEXTS) == f"{MASK_TOKEN} and {MASK_TOKEN}"
    assert mask_persona_words("nurse and monk", ()) == "nurse and monk"


def test_a_fitted_classifier_masks_says_labels_and_pickles() -> None:
    answers = [distinct(p, q) for p in range(P) for q in range(Q)]
    labels = [IDS[p] for p in range(P) for _ in range(Q)]
    kept = pickle.loads(pickle.dumps(fit_persona_classifier(answers, labels, TEXTS)))
    assert list(kept.predict(["arrr the lamp", "precisely the lamp"])) == ["sailor", "clerk"]
    assert kept.decision_function(["arrr"]).shape == (1, 4)
    assert np.array_equal(kept.decision_function(["the sailor"]), kept.decision_function(["the monks"]))


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"persona_ids": ("a", "a", "b", "c")}, "persona id 'a' occurs twice"),
        ({"persona_texts": TEXTS[:3]}, "3 persona texts for 4"),
        ({"question_texts": (*QUESTIONS[:-1], "what do  you make of RAIN?")}, "question id .* occurs twice"),
        ({"question_texts": QUESTIONS[:-1]}, "answers: rows of .* 4 personas × 11 questions"),
        ({"folds": 13}, "12 questions in 13 folds"),
        ({"folds": 1}, "12 questions in 1 folds"),
        ({"reference_P_Q": grid(distinct, questions=11)}, "reference: rows of"),
        ({"reference_P_Q": grid(distinct, personas=3)}, "reference: rows of"),
        ({"reference_P_Q": grid(lambda p, q: None if p == 2 and q > 3 else "x")}, "'monk': 4 reference answers of 12"),
    ],
)
def test_what_cannot_be_measured_is_refused_with_the_reason(changed: dict[str, Any], reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        score(grid(distinct), **changed)


def test_too_few_personas_and_too_few_answers_are_refused() -> None:
    with pytest.raises(DataError, match="at least 2 personas"):
        score(grid(distinct, personas=1), persona_ids=IDS[:1], persona_texts=TEXTS[:1])
    with pytest.raises(DataError, match="'nurse': 9 answers of 12; needs 10"):
        score(grid(lambda p, q: None if p == 1 and q < 3 else "x"))
    with pytest.raises(DataError, match=r"\[0\]\[1\] is float"):
        score([["x", float("nan")] + ["x"] * 10, *grid(distinct)[1:]])  # type: ignore[list-item]


def test_a_persona_absent_from_a_training_fold_is_refused() -> None:
    """20 questions in 2 folds, and every answer of one persona falls into one of them."""
    questions = [f"question {q}" for q in range(20)]
    inside = {q for q in range(20) if _fold(questions, q) == 0}
    answers = grid(lambda p, q: None if p == 0 and q not in inside else "x", personas=2, questions=20)
    with pytest.raises(DataError, match="'sailor' has no reference answer outside fold 0"):
        score(answers, **FIRST_TWO, question_texts=questions, folds=2)


def _fold(questions: list[str], q: int) -> int:
    """Fold of a question, from the contract: dealt in the order of the seeded hash of its text."""
    order = sorted(questions, key=lambda text: seed_from(0, canonical_text(text)))
    return order.index(questions[q]) % 2


def test_importing_the_module_does_not_import_scikit_learn() -> None:
    code = "import sys, permix.metrics.identifiability; sys.exit('sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_no_global_generator_is_touched() -> None:
    """A probe measures amid a training: what it drew there would be missing there."""
    import sklearn.svm  # noqa: F401 - whose import alone draws some

    answers = [[f"{voice} day {q}" for q in range(10)] for voice in ("arr matey", "beep boop")]
    before = (random.getstate(), str(np.random.get_state()))
    summarize_identifiability(
        answers, ["a pirate", "a robot"], persona_ids=["a", "b"], question_texts=[f"day {q}?" for q in range(10)]
    )
    assert (random.getstate(), str(np.random.get_state())) == before
