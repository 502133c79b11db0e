"""Identifiability: can a classifier tell which persona wrote an answer, on neutral questions that all personas share?

Its contract: texts in, one record out; no language model, no files, no global random state. It measures distinctness, not
correctness: eight personas that are all played wrongly, each in its own way, score 1. It is never a PersonaScore.

Suffixes name axes: P personas, Q questions, L labellings of the training answers, S shuffles of them, R bootstrap resamples.

- *Held out by question.* Questions are dealt into folds. For each fold a classifier is trained on the reference answers to the
  questions outside the fold and names the persona of every answer to the questions in it. No question stands on both sides
  and every answer is scored exactly once. To compare checkpoints, train on the base model's answers (`reference_P_Q`):
  the question is then whether the character is still *that* character, and no checkpoint brings its own ruler.
- *Persona words masked.* Every content word of any persona's text becomes one and the same token in all answers, trained on or
  scored. The union is masked, so what is masked depends on no label and masking can only take signal away. How often an answer
  falls on a masked word stays visible.
- *Never alone.* The accuracy stands beside four controls under the same folds: question text only, length only, labels shuffled
  within the question, and chance. With no answer missing, question-only is exactly 1 / P, since it must say the same of all P.
- *Missing is not wrong.* None is no answer: left out and counted. "" is an answer: a model with nothing to say as that persona.

Result and intervals do not depend on the order of personas or questions, only on their content and the seed. Intervals
resample questions and hold the trained classifiers fixed; `permuted` resamples its shuffles too.

Training on the questions of all folds but one and naming the voices in that one; and the same from fewer questions.

Contract: pure functions of arrays of texts. No question stands on both sides of a fold. P personas, Q questions, L labellings.
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
from permix.metrics.statistics import Array, bootstrap_estimate, permute_within_question
from permix.types import Estimate, Record, canonical_text, require_unique, seed_from

TextGrid = NDArray[np.object_]  # str or None

BoolArray = NDArray[np.bool_]

LabelArray = NDArray[np.int64]


TRAIN_SHARES = (1 / 8, 1 / 4, 1 / 2)
"""Of the questions that could be learnt from: few, since each costs a fit, and halving shows what doubling would bring."""


class CrossValSplit(NamedTuple):
    """Which cells (P, Q) are trained on, which are scored, and the fold of each question (Q)."""

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
    """said_L_P_Q: the label each scored text is given, −1 where none is scored, after training on each of the L labellings.

    The texts in a fold are read by features and classifiers that were fitted on the taught texts outside it.
    """
    said_L_P_Q = [np.full(test_text_P_Q.shape, -1) for _ in labels_L_P_Q]
    for fold in np.unique(split.fold_Q):
        train_P_Q = split.train_P_Q & (split.fold_Q != fold)
        held_P_Q = split.test_P_Q & (split.fold_Q == fold)
        if not held_P_Q.any():
            continue
        reader = make_features()
        train_rows = reader.fit_transform(train_text_P_Q[train_P_Q])
        held_rows = reader.transform(test_text_P_Q[held_P_Q])
        for labels_P_Q, said_P_Q in zip(labels_L_P_Q, said_L_P_Q, strict=True):
            learner = make_classifier()
            learner.fit(train_rows, labels_P_Q[train_P_Q])
            said_P_Q[held_P_Q] = learner.predict(held_rows)
    return said_L_P_Q


def learning_curve_splits(split: CrossValSplit) -> dict[int, CrossValSplit]:
    """The same folds, trained on the first eighth, quarter and half of each fold's questions; by how many that comes to at most.

    Each part holds the one before it. What would leave a persona without any answer to learn from in some fold is left out.
    """
    place_Q = np.array([np.count_nonzero(split.fold_Q[:q] == fold) for q, fold in enumerate(split.fold_Q)])
    size = int(place_Q.max()) + 1
    counts = sorted({max(1, round(size * share)) for share in TRAIN_SHARES} - {size})
    parts = [split._replace(train_P_Q=split.train_P_Q & (place_Q < count)) for count in counts]
    return {max_train_questions(part): part for part in parts if _trains_every_persona(part)}


def max_train_questions(split: CrossValSplit) -> int:
    """Of how many questions the classifiers of a fold know an answer, at most."""
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

MIN_ANSWERS = 10  # per persona: below that a persona's recall is an anecdote

N_LABEL_SHUFFLES = 5


class LearningCurvePoint(Record):
    """Accuracy of classifiers that learnt from the answers to at most so many questions of each persona."""

    questions: int
    accuracy: Estimate


class Identifiability(Record):
    """How often the persona behind an answer is told, beside what must be at chance if the test is sound.

    `n` of each estimate is the number of answers scored. `confusion[true][said]` counts answers, in the order of `persona_ids`.
    `learning_curve`, by questions: the last one is `accuracy` itself. Where it still climbs, more questions would tell more.
    `right_by_question` holds, by the question's text, how many of its answers were told right and how many were scored: what a
    paired comparison of two models resamples.
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
    """Score `answers_P_Q` (None = no answer) with classifiers trained on `reference_P_Q`, or on the answers themselves when None.

    Raises DataError for anything that would make the number meaningless: fewer than two personas, repeated ids or questions,
    fewer questions than folds, fewer than MIN_ANSWERS answers of a persona on either side, a persona absent from a training fold,
    or a grid of another shape.
    """
    _check_names(persona_ids, persona_texts, question_texts, folds)
    P, Q = len(persona_ids), len(question_texts)
    personas = sorted(range(P), key=lambda p: persona_ids[p])
    questions = sorted(range(Q), key=lambda q: seed_from(seed, canonical_text(question_texts[q])))

    answer_P_Q = _to_text_grid(answers_P_Q, "answers", (P, Q))[np.ix_(personas, questions)]
    taught_P_Q = (
        answer_P_Q if reference_P_Q is None else _to_text_grid(reference_P_Q, "reference", (P, Q))[np.ix_(personas, questions)]
    )
    split = CrossValSplit(_is_answered(taught_P_Q), _is_answered(answer_P_Q), np.arange(Q) % folds)
    _check_answers(split, [persona_ids[p] for p in personas])

    rng = np.random.default_rng(seed_from(seed, "identify"))
    true_P_Q = np.repeat(np.arange(P)[:, None], Q, axis=1)
    shuffled_S_P_Q = [_shuffle_labels(true_P_Q, split.train_P_Q, rng) for _ in range(N_LABEL_SHUFFLES)]
    mask = partial(mask_persona_words, persona_texts=persona_texts)
    masked_P_Q, masked_taught_P_Q = _map_texts(mask, answer_P_Q), _map_texts(mask, taught_P_Q)
    asked_P_Q = _map_texts(mask, np.array([[question_texts[q] for q in questions]] * P, dtype=object))

    said_L_P_Q = cross_val_predict(
        masked_taught_P_Q, masked_P_Q, [true_P_Q, *shuffled_S_P_Q], split, text_features, linear_classifier
    )
    asked_said_P_Q = cross_val_predict(asked_P_Q, asked_P_Q, [true_P_Q], split, text_features, linear_classifier)[0]
    length_said_P_Q = cross_val_predict(taught_P_Q, answer_P_Q, [true_P_Q], split, length_features, length_classifier)[0]

    right_L_P_Q = [_correctness(said_P_Q, true_P_Q) for said_P_Q in said_L_P_Q]
    counts_R_Q = rng.multinomial(Q, np.full(Q, 1 / Q), size=resamples).astype(float)
    accuracy = partial(_accuracy, counts_R_Q=counts_R_Q, rng=rng)
    fewer = {
        count: cross_val_predict(masked_taught_P_Q, masked_P_Q, [true_P_Q], part, text_features, linear_classifier)[0]
        for count, part in learning_curve_splits(split).items()
    }
    recall_P = [accuracy([right_Q[None]]) for right_Q in right_L_P_Q[0]]
    caller = np.argsort(personas)
    every = accuracy(right_L_P_Q[:1])
    learnt = [
        LearningCurvePoint(questions=count, accuracy=accuracy([_correctness(said, true_P_Q)])) for count, said in fewer.items()
    ]
    return Identifiability(
        accuracy=every,
        chance=1 / P,
        question_only=accuracy([_correctness(asked_said_P_Q, true_P_Q)]),
        length_only=accuracy([_correctness(length_said_P_Q, true_P_Q)]),
        permuted=accuracy(right_L_P_Q[1:]),
        persona_ids=tuple(persona_ids),
        confusion=_to_tuples(_confusion_counts(said_L_P_Q[0])[np.ix_(caller, caller)]),
        per_persona=tuple(recall_P[p] for p in caller),
        n_asked=P * Q,
        n_answered=int(split.test_P_Q.sum()),
        n_questions=Q,
        classifier=CLASSIFIER_DESCRIPTION.format(folds=folds),
        reference=reference_name,
        right_by_question=_correct_by_question(right_L_P_Q[0], [question_texts[q] for q in questions]),
        learning_curve=(*learnt, LearningCurvePoint(questions=max_train_questions(split), accuracy=every)),
    )


def _correct_by_question(correct_P_Q: NDArray[np.float64], question_texts: Sequence[str]) -> dict[str, tuple[int, int]]:
    counts = zip(np.nansum(correct_P_Q, axis=0), (~np.isnan(correct_P_Q)).sum(axis=0), strict=True)
    return {text: (int(right), int(answered)) for text, (right, answered) in zip(question_texts, counts, strict=True)}


def _shuffle_labels(true_P_Q: LabelArray, train_P_Q: BoolArray, rng: np.random.Generator) -> LabelArray:
    """The labels dealt anew among the trained answers of each question; elsewhere −1, never read."""
    dealt_P_Q = permute_within_question(np.where(train_P_Q, true_P_Q, np.nan), rng)
    return np.where(train_P_Q, dealt_P_Q, -1).astype(np.int64)


def _correctness(predicted_P_Q: LabelArray, true_P_Q: LabelArray) -> Array:
    """right_P_Q: 1 or 0, NaN where nothing was scored."""
    return np.where(predicted_P_Q < 0, np.nan, (predicted_P_Q == true_P_Q).astype(float))


def _accuracy(correct_S_P_Q: Sequence[Array], counts_R_Q: Array, rng: np.random.Generator) -> Estimate:
    """Share of the scored answers that were told right, averaged over S trainings; resampled over questions and trainings.

    Σ_q c_q right_q / Σ_q c_q answers_q for a question drawn c_q times: all answers to a question travel together.
    """
    S, R = len(correct_S_P_Q), len(counts_R_Q)
    told_Q = np.nansum(correct_S_P_Q, axis=(0, 1)) / S
    told_Q_S = np.nansum(correct_S_P_Q, axis=1).T
    answers_Q = (~np.isnan(correct_S_P_Q[0])).sum(axis=0)
    trainings_R_S = rng.multinomial(S, np.full(S, 1 / S), size=R) / S
    answers_R = counts_R_Q @ answers_Q
    told_R = (trainings_R_S * (counts_R_Q @ told_Q_S)).sum(axis=1)
    replicate_R = told_R / np.where(answers_R > 0, answers_R, np.nan)
    return bootstrap_estimate(float(told_Q.sum() / answers_Q.sum()), replicate_R, int(answers_Q.sum()))


def _confusion_counts(predicted_P_Q: LabelArray) -> LabelArray:
    """counts[true][said] over the scored answers."""
    P = len(predicted_P_Q)
    return np.stack([np.bincount(said_Q[said_Q >= 0], minlength=P) for said_Q in predicted_P_Q])


def _to_tuples(counts: LabelArray) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(map(int, row)) for row in counts)


def _map_texts(transform: Callable[[str], str], text_P_Q: TextGrid) -> TextGrid:
    return np.array([[None if text is None else transform(text) for text in text_Q] for text_Q in text_P_Q], dtype=object)


def _is_answered(text_P_Q: TextGrid) -> BoolArray:
    return np.array([[text is not None for text in text_Q] for text_Q in text_P_Q])


def _to_text_grid(text_P_Q: AnswerTexts, what: str, shape: tuple[int, int]) -> TextGrid:
    """The texts as an array; DataError unless every persona has one entry (a string or None) for every question."""
    lengths = [len(text_Q) for text_Q in text_P_Q]
    if len(lengths) != shape[0] or set(lengths) != {shape[1]}:
        raise DataError(f"{what}: rows of {lengths} entries; expected {shape[0]} personas × {shape[1]} questions")
    for p, text_Q in enumerate(text_P_Q):
        for q, text in enumerate(text_Q):
            if not isinstance(text, str | None):
                raise DataError(f"{what}: entry [{p}][{q}] is {type(text).__name__}; expected a string, or None for no answer")
    return np.array([list(text_Q) for text_Q in text_P_Q], dtype=object)


def _check_names(persona_ids: Sequence[str], persona_texts: Sequence[str], question_texts: Sequence[str], folds: int) -> None:
    if len(persona_ids) < 2:
        raise DataError(f"identifiability needs at least 2 personas to tell apart, got {len(persona_ids)}")
    if len(persona_texts) != len(persona_ids):
        raise DataError(f"{len(persona_texts)} persona texts for {len(persona_ids)} persona ids; expected one each")
    if not 2 <= folds <= len(question_texts):
        raise DataError(
            f"{len(question_texts)} questions in {folds} folds; expected at least 2 folds and as many questions as folds"
        )
    try:
        require_unique(persona_ids, "persona")
        require_unique([canonical_text(text) for text in question_texts], "question")  # a repeated one could stand in two folds
    except ValueError as err:
        raise DataError(str(err)) from err


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
