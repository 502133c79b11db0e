"""Is a character still told late in an interview? A classifier that knows it from answers given afresh names who answers.

Contract: texts in, one array out. The classifier is that of `identify`: persona words masked, trained on the answers of another
run of the same personas, here one of single questions. It is not trained on the interview: the answers of one conversation repeat
one another, so a model that only repeats itself would be told ever better. What both runs were asked is not trained on either.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from permix.errors import DataError
from permix.evals.grid import read_answers
from permix.evals.identify import MIN_ANSWERS
from permix.evals.stats import Array
from permix.evals.voices import (
    Classifier,
    Features,
    length_classifier,
    length_features,
    linear_classifier,
    mask_persona_words,
    text_features,
)
from permix.records import read_json
from permix.types import normalise, seed_from


class Taught(NamedTuple):
    """An answer to learn from: whose, to which question (levelled), and the text."""

    persona_id: str
    question: str
    answer: str


class Told(NamedTuple):
    """right_P_T: 1 where an answer's persona is told, 0 where it is not, NaN without an answer; by text, and the controls."""

    by_text: Array
    by_length: Array
    by_shuffled: Array


def read_taught(reference: Path, persona_ids: Sequence[str], asked: Sequence[str]) -> list[Taught]:
    """What the reference's personas answered to other questions than `asked`.

    DataError when it is no run, or has fewer than MIN_ANSWERS such answers of a persona.
    """
    read_json(reference / "config.json")
    answers, known = read_answers(reference), {normalise(text) for text in asked}
    taught = [
        Taught(key.persona_id, question, cell.completion.text)
        for key in answers.grid
        if key.persona_id is not None and key.persona_id in persona_ids
        if (cell := answers.cells[key]).completion is not None
        if (question := normalise(cell.messages[-1]["content"])) not in known
    ]
    for persona in persona_ids:
        count = sum(one.persona_id == persona for one in taught)
        if count < MIN_ANSWERS:
            raise DataError(
                f"reference = {reference}: {count} answers of persona {persona!r} to questions that the interview does not ask; "
                f"needs {MIN_ANSWERS}"
            )
    return taught


def told(
    answers_P_T: Mapping[str, Sequence[str | None]], taught: Sequence[Taught], persona_texts: Sequence[str], seed: int
) -> Told:
    """Name the persona of every answer of the interviews, given by persona id."""
    mask = partial(mask_persona_words, persona_texts=persona_texts)
    labels = [one.persona_id for one in taught]
    right = partial(_right, answers_P_T, taught)
    return Told(
        by_text=right(labels, mask, text_features, linear_classifier),
        by_length=right(labels, str, length_features, length_classifier),
        by_shuffled=right(_shuffled(taught, seed), mask, text_features, linear_classifier),
    )


def _right(
    answers_P_T: Mapping[str, Sequence[str | None]],
    taught: Sequence[Taught],
    labels: Sequence[str],
    mask: Callable[[str], str],
    features: Callable[[], Features],
    classifier: Callable[[], Classifier],
) -> Array:
    rows, learnt = features(), classifier()
    learnt.fit(rows.fit_transform([mask(one.answer) for one in taught]), labels)
    given = [
        (p, t, who, text) for p, (who, said) in enumerate(answers_P_T.items()) for t, text in enumerate(said) if text is not None
    ]
    right_P_T = np.full((len(answers_P_T), max(map(len, answers_P_T.values()))), np.nan)
    if given:
        guessed = learnt.predict(rows.transform([mask(text) for *_, text in given]))
        for (p, t, who, _), guess in zip(given, guessed, strict=True):
            right_P_T[p, t] = float(guess == who)
    return right_P_T


def _shuffled(taught: Sequence[Taught], seed: int) -> list[str]:
    """The labels dealt anew among the answers to each question."""
    rng, labels = np.random.default_rng(seed_from(seed, "told")), [one.persona_id for one in taught]
    for question in dict.fromkeys(one.question for one in taught):
        places = [place for place, one in enumerate(taught) if one.question == question]
        for place, other in zip(places, rng.permutation(places), strict=True):
            labels[place] = taught[int(other)].persona_id
    return labels
