"""Training on the questions of all folds but one and naming the voices in that one; and the same from fewer questions.

Contract: pure functions of arrays of texts. No question stands on both sides of a fold. P personas, Q questions, L labellings.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from permix.evals.voices import Classifier, Features

Grid = NDArray[np.object_]  # str or None
Mask = NDArray[np.bool_]
Labels = NDArray[np.int64]

LEARNT_SHARES = (1 / 8, 1 / 4, 1 / 2)
"""Of the questions that could be learnt from: few, since each costs a fit, and halving shows what doubling would bring."""


class Split(NamedTuple):
    """Which cells (P, Q) are trained on, which are scored, and the fold of each question (Q)."""

    trained: Mask
    scored: Mask
    fold: Labels


def cross_said(
    taught_P_Q: Grid,
    text_P_Q: Grid,
    labels_L_P_Q: Sequence[Labels],
    split: Split,
    features: Callable[[], Features],
    classifier: Callable[[], Classifier],
) -> list[Labels]:
    """said_L_P_Q: the label each scored text is given, −1 where none is scored, after training on each of the L labellings.

    The texts in a fold are read by features and classifiers that were fitted on the taught texts outside it.
    """
    said_L_P_Q = [np.full(text_P_Q.shape, -1) for _ in labels_L_P_Q]
    for fold in np.unique(split.fold):
        train_P_Q = split.trained & (split.fold != fold)
        held_P_Q = split.scored & (split.fold == fold)
        if not held_P_Q.any():
            continue
        reader = features()
        train_rows = reader.fit_transform(taught_P_Q[train_P_Q])
        held_rows = reader.transform(text_P_Q[held_P_Q])
        for labels_P_Q, said_P_Q in zip(labels_L_P_Q, said_L_P_Q, strict=True):
            learner = classifier()
            learner.fit(train_rows, labels_P_Q[train_P_Q])
            said_P_Q[held_P_Q] = learner.predict(held_rows)
    return said_L_P_Q


def fewer_questions(split: Split) -> dict[int, Split]:
    """The same folds, trained on the first eighth, quarter and half of each fold's questions; by how many that comes to at most.

    Each part holds the one before it. What would leave a persona without any answer to learn from in some fold is left out.
    """
    place_Q = np.array([np.count_nonzero(split.fold[:q] == fold) for q, fold in enumerate(split.fold)])
    size = int(place_Q.max()) + 1
    counts = sorted({max(1, round(size * share)) for share in LEARNT_SHARES} - {size})
    parts = [split._replace(trained=split.trained & (place_Q < count)) for count in counts]
    return {most_learnt(part): part for part in parts if _teaches_all(part)}


def most_learnt(split: Split) -> int:
    """Of how many questions the classifiers of a fold know an answer, at most."""
    known_Q = np.asarray(split.trained.any(axis=0))
    return max(int(known_Q[np.flatnonzero(split.fold != fold)].sum()) for fold in np.unique(split.fold))


def _teaches_all(split: Split) -> bool:
    return all(bool(split.trained[:, np.flatnonzero(split.fold != fold)].any(axis=1).all()) for fold in np.unique(split.fold))
