"""Identifiability: how often a classifier names the persona that wrote an answer, on neutral questions that all personas share.

Contract: texts in, one record out; no language model, no files, no global random state. It measures how distinct personas are,
not whether they are played correctly: eight personas that are all played wrongly, each in its own way, score 1. It is not a
PersonaScore.

- *Held out by question.* Questions are split into folds. For each fold a classifier is trained on the reference answers to the
  other folds' questions and names the persona of each answer to this fold's. No question is in both, and each answer is scored
  once. To compare checkpoints, train on the base model's answers (`reference_P_Q`): then all checkpoints are measured against
  the same characters.
- *Persona words masked.* Every content word of any persona's text is replaced by one token in all answers, for training and
  scoring. The words of all personas are masked in every answer, so masking does not depend on the label and can only remove
  signal. Only the number and place of masked words remain visible.
- *Controls.* The accuracy comes with four controls under the same folds: question text only, length only, labels shuffled within
  the question, and chance. Without missing answers, question-only is exactly 1 / P, since all P personas have the same question.
- *Missing is not wrong.* None is no answer: it is left out and counted. "" is an answer.

Result and intervals depend on the content of personas and questions and on the seed, not on their order. Intervals resample
questions and keep the trained classifiers fixed; that of `permuted` also resamples its shuffles.

Axes: P personas, Q questions, L labellings of the training answers, S shuffles of the labels, R bootstrap resamples.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from permix.errors import DataError
from permix.metrics.persona_classifier import (
    Classifier,
    FeatureExtractor,
    length_classifier,
    length_features,
    linear_classifier,
    mask_persona_words,
    text_features,
)
from permix.metrics.statistics import Array, bootstrap_share, permute_within_question
from permix.types import Estimate, Record, canonical_text, require_unique, seed_from

TextGrid = NDArray[np.object_]  # str or None

BoolArray = NDArray[np.bool_]

LabelArray = NDArray[np.int64]


TRAIN_SHARES = (1 / 8, 1 / 4, 1 / 2)
"""Points of the learning curve, as shares of the training questions: few, since each costs a fit in every fold."""


class CanonicalOrder(NamedTuple):
    """The order of personas and questions in which a measure computes: it depends on content and seed, not on the caller's order.

    `personas` [P] and `questions` [Q] are the places of the caller's personas and questions, in this order.
    """

    personas: tuple[int, ...]
    questions: tuple[int, ...]

    @property
    def callers_P(self) -> LabelArray:
        """The place in this order of each persona of the caller, in the caller's order."""
        return np.argsort(self.personas)

    def sort_grid(self, text_P_Q: TextGrid) -> TextGrid:
        """The caller's grid in this order."""
        return text_P_Q[np.ix_(self.personas, self.questions)]

    def of_personas(self, kept: Sequence[int]) -> "CanonicalOrder":
        """This order with the personas at these places of it alone."""
        return self._replace(personas=tuple(self.personas[place] for place in kept))


def canonical_order(persona_ids: Sequence[str], question_keys: Sequence[str], seed: int) -> CanonicalOrder:
    """Personas by id, questions by a hash of their key and the seed."""
    # Folds are dealt and labels are shuffled along this order. Another one would change every accuracy and every interval.
    return CanonicalOrder(
        tuple(sorted(range(len(persona_ids)), key=lambda p: persona_ids[p])),
        tuple(sorted(range(len(question_keys)), key=lambda q: seed_from(seed, question_keys[q]))),
    )


class CrossValSplit(NamedTuple):
    """The answers to train on, the answers to score, and the fold of each question."""

    train_P_Q: BoolArray
    test_P_Q: BoolArray
    fold_Q: LabelArray


def cross_val_predict(
    train_text_P_Q: TextGrid,
    test_text_P_Q: TextGrid,
    labels_L_P_Q: Sequence[LabelArray],
    split: CrossValSplit,
    make_features: Callable[[], FeatureExtractor],
    make_classifier: Callable[[], Classifier],
) -> list[LabelArray]:
    """predicted_L_P_Q: for each of L labellings of the training texts, the label predicted for each test text; −1 elsewhere.

    Texts of a fold are predicted by features and a classifier fitted on the training texts of the other folds.
    """
    predicted_L_P_Q = [np.full(test_text_P_Q.shape, -1) for _ in labels_L_P_Q]
    for fold in np.unique(split.fold_Q):
        train_P_Q = split.train_P_Q & (split.fold_Q != fold)
        test_P_Q = split.test_P_Q & (split.fold_Q == fold)
        if not test_P_Q.any():
            continue
        features = make_features()
        train_rows = features.fit_transform(train_text_P_Q[train_P_Q])
        test_rows = features.transform(test_text_P_Q[test_P_Q])
        for labels_P_Q, predicted_P_Q in zip(labels_L_P_Q, predicted_L_P_Q, strict=True):
            classifier = make_classifier()
            classifier.fit(train_rows, labels_P_Q[train_P_Q])
            predicted_P_Q[test_P_Q] = classifier.predict(test_rows)
    return predicted_L_P_Q


def learning_curve_splits(split: CrossValSplit) -> dict[int, CrossValSplit]:
    """Splits with the same folds that train on the first eighth, quarter and half of each fold's questions.

    Keys are their `max_train_questions`. Each split contains the smaller ones. A split is left out if some persona would have no
    training answer outside some fold.
    """
    index_in_fold_Q = np.array([np.count_nonzero(split.fold_Q[:q] == fold) for q, fold in enumerate(split.fold_Q)])
    fold_size = int(index_in_fold_Q.max()) + 1
    counts = sorted({max(1, round(fold_size * share)) for share in TRAIN_SHARES} - {fold_size})
    parts = [split._replace(train_P_Q=split.train_P_Q & (index_in_fold_Q < count)) for count in counts]
    return {max_train_questions(part): part for part in parts if _trains_every_persona(part)}


def max_train_questions(split: CrossValSplit) -> int:
    """Most questions with a training answer that the classifier of any fold has."""
    known_Q = np.asarray(split.train_P_Q.any(axis=0))
    return max(int(known_Q[np.flatnonzero(split.fold_Q != fold)].sum()) for fold in np.unique(split.fold_Q))


def _trains_every_persona(split: CrossValSplit) -> bool:
    return all(
        bool(split.train_P_Q[:, np.flatnonzero(split.fold_Q != fold)].any(axis=1).all()) for fold in np.unique(split.fold_Q)
    )


AnswerTexts = Sequence[Sequence[str | None]]


CLASSIFIER_DESCRIPTION = (
    "linear SVM on TF-IDF of word 1–2-grams and character 2–4-grams, persona words masked, {folds} folds by question"
)

MIN_ANSWERS = 10
"""Fewest answers per persona: with fewer, a persona's recall would mean little."""

N_LABEL_SHUFFLES = 5


class LearningCurvePoint(Record):
    """Accuracy of classifiers trained on at most `questions` questions of each persona."""

    questions: int
    accuracy: Estimate


class Identifiability(Record):
    """Share of answers whose persona the classifier names, with controls that must be near chance if the test is sound.

    `n` of each estimate is the number of scored answers. `confusion[true][predicted]` counts answers and `per_persona` has the
    recall, both in the order of `persona_ids`. `learning_curve` is by ascending questions, and its last point is `accuracy`;
    where it still rises, more questions would give a higher accuracy. `right_by_question` has for each question's text the
    numbers of answers attributed correctly and of answers scored, which a paired comparison of two models resamples.
    """

    accuracy: Estimate
    chance: float
    question_only: Estimate
    length_only: Estimate
    permuted: Estimate
    persona_ids: tuple[str, ...]
    confusion: tuple[tuple[int, ...], ...]
    per_persona: tuple[Estimate, ...]
    n_asked: int
    n_answered: int
    n_questions: int
    classifier: str
    reference: str
    right_by_question: dict[str, tuple[int, int]]
    learning_curve: tuple[LearningCurvePoint, ...] = ()


def summarize_identifiability(
    answers_P_Q: AnswerTexts,
    persona_texts: Sequence[str],
    *,
    persona_ids: Sequence[str],
    question_texts: Sequence[str],
    reference_P_Q: AnswerTexts | None = None,
    reference_name: str = "own answers",
    folds: int = 5,
    seed: int = 0,
    resamples: int = 2000,
) -> Identifiability:
    """Score `answers_P_Q` (None: no answer) with classifiers trained on `reference_P_Q`, or on the answers themselves if None.

    Raises DataError where the result would mean nothing: fewer than two personas, repeated ids or questions, fewer questions than
    folds, fewer than `MIN_ANSWERS` answers or reference answers of a persona, a persona without reference answers outside some
    fold, or a grid of another shape.
    """
    check_grid_names("identifiability", persona_ids, persona_texts, question_texts)
    _check_folds(len(question_texts), folds)
    P, Q = len(persona_ids), len(question_texts)
    order = canonical_order(persona_ids, [canonical_text(text) for text in question_texts], seed)
    ordered_questions = [question_texts[q] for q in order.questions]
    answer_P_Q = order.sort_grid(to_text_grid(answers_P_Q, "answers", (P, Q)))
    train_text_P_Q = answer_P_Q if reference_P_Q is None else order.sort_grid(to_text_grid(reference_P_Q, "reference", (P, Q)))
    split = CrossValSplit(_is_answered(train_text_P_Q), _is_answered(answer_P_Q), np.arange(Q) % folds)
    _check_answers(split, [persona_ids[p] for p in order.personas])

    rng = np.random.default_rng(seed_from(seed, "identify"))
    predicted = _predict_personas(answer_P_Q, train_text_P_Q, ordered_questions, persona_texts, split, rng)
    correct_L_P_Q = [_correctness(predicted_P_Q) for predicted_P_Q in predicted.by_text_L_P_Q]
    counts_R_Q = rng.multinomial(Q, np.full(Q, 1 / Q), size=resamples).astype(float)
    accuracy = partial(_accuracy, counts_R_Q=counts_R_Q, rng=rng)
    # `accuracy` draws from `rng` at each call, so another order of the calls would change the intervals.
    recall_P = [accuracy([correct_Q[None]]) for correct_Q in correct_L_P_Q[0]]
    overall = accuracy(correct_L_P_Q[:1])
    smaller_points = [
        LearningCurvePoint(questions=count, accuracy=accuracy([_correctness(predicted_P_Q)]))
        for count, predicted_P_Q in predicted.by_count.items()
    ]
    callers_P = order.callers_P
    return Identifiability(
        accuracy=overall,
        chance=1 / P,
        question_only=accuracy([_correctness(predicted.by_question_P_Q)]),
        length_only=accuracy([_correctness(predicted.by_length_P_Q)]),
        permuted=accuracy(correct_L_P_Q[1:]),
        persona_ids=tuple(persona_ids),
        confusion=_to_tuples(_confusion_counts(predicted.by_text_L_P_Q[0])[np.ix_(callers_P, callers_P)]),
        per_persona=tuple(recall_P[p] for p in callers_P),
        n_asked=P * Q,
        n_answered=int(split.test_P_Q.sum()),
        n_questions=Q,
        classifier=CLASSIFIER_DESCRIPTION.format(folds=folds),
        reference=reference_name,
        right_by_question={
            text: (int(n_correct), n_scored)
            for text, (n_correct, n_scored) in sum_by_question(correct_L_P_Q[0], ordered_questions).items()
        },
        learning_curve=(*smaller_points, LearningCurvePoint(questions=max_train_questions(split), accuracy=overall)),
    )


class _Predictions(NamedTuple):
    """The place of the persona that a classifier names for each answer; −1 for answers that are not scored.

    `by_text_L_P_Q`: classifiers of the masked texts, first that of the true labels, then those of shuffled ones. `by_count`:
    those of the learning curve, by their `max_train_questions`.
    """

    by_text_L_P_Q: list[LabelArray]
    by_question_P_Q: LabelArray
    by_length_P_Q: LabelArray
    by_count: dict[int, LabelArray]


def _predict_personas(
    answer_P_Q: TextGrid,
    train_text_P_Q: TextGrid,
    question_texts: Sequence[str],
    persona_texts: Sequence[str],
    split: CrossValSplit,
    rng: np.random.Generator,
) -> _Predictions:
    """Train and apply every classifier; `rng` shuffles the labels, and nothing else is drawn."""
    true_P_Q = _true_labels(answer_P_Q.shape)
    shuffled_S_P_Q = [shuffle_labels(true_P_Q, split.train_P_Q, rng) for _ in range(N_LABEL_SHUFFLES)]
    mask = partial(mask_persona_words, persona_texts=persona_texts)
    masked_P_Q, masked_train_P_Q = map_texts(mask, answer_P_Q), map_texts(mask, train_text_P_Q)
    question_P_Q = map_texts(mask, np.array([question_texts] * len(answer_P_Q), dtype=object))
    by_text = partial(cross_val_predict, make_features=text_features, make_classifier=linear_classifier)
    # A control: without the answers an accuracy above chance would mean that the folds leak.
    (by_question_P_Q,) = by_text(question_P_Q, question_P_Q, [true_P_Q], split)
    (by_length_P_Q,) = cross_val_predict(train_text_P_Q, answer_P_Q, [true_P_Q], split, length_features, length_classifier)
    return _Predictions(
        by_text(masked_train_P_Q, masked_P_Q, [true_P_Q, *shuffled_S_P_Q], split),
        by_question_P_Q,
        by_length_P_Q,
        {
            count: by_text(masked_train_P_Q, masked_P_Q, [true_P_Q], part)[0]
            for count, part in learning_curve_splits(split).items()
        },
    )


def _true_labels(shape: tuple[int, ...]) -> LabelArray:
    """true_P_Q: the place of each answer's own persona."""
    P, Q = shape
    return np.repeat(np.arange(P)[:, None], Q, axis=1)


def sum_by_question(share_P_Q: Array, question_texts: Sequence[str]) -> dict[str, tuple[float, int]]:
    """By question with a scored answer (not NaN): the sum of the answers' shares, and how many answers are scored."""
    sums = zip(np.nansum(share_P_Q, axis=0), (~np.isnan(share_P_Q)).sum(axis=0), strict=True)
    return {text: (float(total), int(n_scored)) for text, (total, n_scored) in zip(question_texts, sums, strict=True) if n_scored}


def shuffle_labels(true_P_Q: LabelArray, train_P_Q: BoolArray, rng: np.random.Generator) -> LabelArray:
    """The labels shuffled among the training answers to each question; −1, which is never read, elsewhere."""
    shuffled_P_Q = permute_within_question(np.where(train_P_Q, true_P_Q, np.nan), rng)
    return np.where(train_P_Q, shuffled_P_Q, -1).astype(np.int64)


def _correctness(predicted_P_Q: LabelArray) -> Array:
    """correct_P_Q: 1 or 0; NaN without a prediction."""
    return np.where(predicted_P_Q < 0, np.nan, (predicted_P_Q == _true_labels(predicted_P_Q.shape)).astype(float))


def _accuracy(correct_S_P_Q: Sequence[Array], counts_R_Q: Array, rng: np.random.Generator) -> Estimate:
    """Share of scored answers attributed correctly, averaged over S trainings; the interval resamples questions and trainings.

    Σ_q c_q correct_q / Σ_q c_q answers_q for a question drawn c_q times: all answers to a question are drawn together. The width
    is that of as many units as questions; n is the number of answers.
    """
    S, R = len(correct_S_P_Q), len(counts_R_Q)
    correct_Q = np.nansum(correct_S_P_Q, axis=(0, 1)) / S
    correct_Q_S = np.nansum(correct_S_P_Q, axis=1).T
    answers_Q = (~np.isnan(correct_S_P_Q[0])).sum(axis=0)
    weight_R_S = rng.multinomial(S, np.full(S, 1 / S), size=R) / S
    answers_R = counts_R_Q @ answers_Q
    correct_R = (weight_R_S * (counts_R_Q @ correct_Q_S)).sum(axis=1)
    replicate_R = correct_R / np.where(answers_R > 0, answers_R, np.nan)
    found = bootstrap_share(float(correct_Q.sum() / answers_Q.sum()), replicate_R, int((answers_Q > 0).sum()))
    return found.model_copy(update={"n": int(answers_Q.sum())})


def _confusion_counts(predicted_P_Q: LabelArray) -> LabelArray:
    """counts[true][predicted] over the scored answers."""
    P = len(predicted_P_Q)
    return np.stack([np.bincount(predicted_Q[predicted_Q >= 0], minlength=P) for predicted_Q in predicted_P_Q])


def _to_tuples(counts: LabelArray) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(map(int, row)) for row in counts)


def map_texts(transform: Callable[[str], str], text_P_Q: TextGrid) -> TextGrid:
    return np.array([[None if text is None else transform(text) for text in text_Q] for text_Q in text_P_Q], dtype=object)


def _is_answered(text_P_Q: TextGrid) -> BoolArray:
    return np.array([[text is not None for text in text_Q] for text_Q in text_P_Q])


def to_text_grid(text_P_Q: AnswerTexts, what: str, shape: tuple[int, int]) -> TextGrid:
    """The texts as an array [P, Q]. Raises DataError unless every persona has an entry, a string or None, for every question."""
    lengths = [len(text_Q) for text_Q in text_P_Q]
    if len(lengths) != shape[0] or set(lengths) != {shape[1]}:
        raise DataError(f"{what}: rows of {lengths} entries; expected {shape[0]} personas × {shape[1]} questions")
    for p, text_Q in enumerate(text_P_Q):
        for q, text in enumerate(text_Q):
            if not isinstance(text, str | None):
                raise DataError(f"{what}: entry [{p}][{q}] is {type(text).__name__}; expected a string, or None for no answer")
    return np.array([list(text_Q) for text_Q in text_P_Q], dtype=object)


def check_grid_names(
    measure: str, persona_ids: Sequence[str], persona_texts: Sequence[str], question_texts: Sequence[str]
) -> None:
    """Raise DataError for fewer than two personas, ids without a text, and repeated ids or questions."""
    if len(persona_ids) < 2:
        raise DataError(f"{measure} needs at least 2 personas, got {len(persona_ids)}")
    if len(persona_texts) != len(persona_ids):
        raise DataError(f"{len(persona_texts)} persona texts for {len(persona_ids)} persona ids; expected one each")
    try:
        require_unique(persona_ids, "persona")
        require_unique([canonical_text(text) for text in question_texts], "question")  # a repeated one could be in two folds
    except ValueError as error:
        raise DataError(str(error)) from error


def _check_folds(n_questions: int, folds: int) -> None:
    if not 2 <= folds <= n_questions:
        raise DataError(f"{n_questions} questions in {folds} folds; expected at least 2 folds and as many questions as folds")


def _check_answers(split: CrossValSplit, persona_ids: Sequence[str]) -> None:
    for what, present_P_Q in (("answers", split.test_P_Q), ("reference answers", split.train_P_Q)):
        for persona_id, present_Q in zip(persona_ids, present_P_Q, strict=True):
            if present_Q.sum() < MIN_ANSWERS:
                raise DataError(f"persona {persona_id!r}: {present_Q.sum()} {what} of {len(present_Q)}; needs {MIN_ANSWERS}")
    for persona_id, trained_Q in zip(persona_ids, split.train_P_Q, strict=True):
        for fold in np.unique(split.fold_Q):
            if not trained_Q[split.fold_Q != fold].any():
                raise DataError(
                    f"persona {persona_id!r} has no reference answer outside fold {fold}; answer more or use other folds"
                )
