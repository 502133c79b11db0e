"""Recognisability: how often the persona text nearest to an answer, by a sentence embedder, is that of the persona that gave it.

Contract: texts and an embedder in, one record out; no files, no global random state. Nothing is trained. Identifiability asks
whether personas differ from one another; recognisability asks whether an answer is like the text of its own persona. It is not a
PersonaScore: it measures similarity of content, not whether a character is played well.

- *Persona words removed.* Every content word of any persona's text is removed from all answers (`mask_persona_words`), so an
  answer that only repeats the words of its persona's text is not recognised by them.
- *The question's mean subtracted.* From the vector of an answer the mean over the personas that answered the same question is
  subtracted, and from the vector of each persona's text the mean over the texts of the same personas. What all answers to a
  question share says nothing about a persona. Both means are over the same personas, so a missing answer shifts neither side
  against the other.
- *Nearest text.* The prediction is the persona whose text has the largest cosine. Equal cosines share an answer: of n equal ones
  each gets 1 / n. So answers that are the same under all personas, and answers without a word left, give exactly chance.
- *Missing is not wrong.* None means no answer: it is left out and counted. A question that only one persona answered has no mean
  to compare with, so its answer is not scored. "" is an answer.

Three controls go through the same steps: the question in place of the answer (exactly chance); the answer's length alone (each of
its words replaced by the same word); and the persona texts assigned to the personas at random.

Result and intervals depend on the content of personas and questions and on the seed, not on their order. Intervals resample
questions.

Axes: P personas, Q questions, D dimensions of a vector, R resamples or shuffles. The second P of an array is that of the texts.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from permix.errors import DataError
from permix.metrics.identifiability import (
    AnswerTexts,
    BoolArray,
    TextGrid,
    canonical_order,
    check_grid_names,
    sum_by_question,
    to_text_grid,
)
from permix.metrics.persona_classifier import MASK_TOKEN, WORD_PATTERN, mask_persona_words
from permix.metrics.statistics import (
    TIE_TOLERANCE,
    Array,
    bootstrap_estimate,
    bootstrap_share,
    permutation_p,
    safe_divide,
)
from permix.types import Estimate, Record, canonical_text, seed_from

EmbedTexts = Callable[[Sequence[str]], NDArray[Any]]
"""N texts -> N vectors, [N, D]. The same text has the same vector, whatever other texts there are."""

FILLER_WORD = "word"
"""Takes the place of every word in the control of length."""

ZERO_TOLERANCE = 1e-6
"""A difference of vectors shorter than this share of the vectors is rounding, and counts as 0."""


class TextPair(Record):
    """The two personas whose texts are most alike, by the cosine of their vectors."""

    first: str
    second: str
    cosine: float


class Recognisability(Record):
    """Share of answers whose nearest persona text is that of their persona, with controls.

    `n` of each estimate is the number of scored answers. `margin` is the mean of an answer's cosine to its own persona's text
    minus its mean cosine to the other texts; 0 is chance. `shuffled` is the mean share if the texts are assigned to the personas
    at random, with the 2.5 and 97.5 percentiles of these shares; `shuffled_p` is how often such a share reaches `accuracy`.
    `confusion[true][predicted]` counts answers (equal cosines share one) and `per_persona` has the share of each persona, both in
    the order of `persona_ids`. `removed_words` is the share of the answers' words that the mask removes. `right_by_question` has
    for each question's text the answers recognised and the answers scored, which a paired comparison of two models resamples.
    """

    accuracy: Estimate
    chance: float
    margin: Estimate
    question_only: Estimate
    length_only: Estimate
    shuffled: Estimate
    shuffled_p: float
    persona_ids: tuple[str, ...]
    confusion: tuple[tuple[float, ...], ...]
    per_persona: tuple[Estimate, ...]
    n_asked: int
    n_answered: int
    n_scored: int
    n_questions: int
    removed_words: float
    closest_texts: TextPair
    embedder: str
    right_by_question: dict[str, tuple[float, int]]


class NearestTexts(NamedTuple):
    """For each answer, its cosine to every persona's text and the share of it that each text gets; NaN where it is not scored."""

    cosine_P_Q_P: Array
    share_P_Q_P: Array

    @property
    def own_share_P_Q(self) -> Array:
        """1 where the nearest text is the persona's own, less with equal cosines; NaN where the answer is not scored."""
        return np.asarray(np.diagonal(self.share_P_Q_P, axis1=0, axis2=2).T)

    @property
    def margin_P_Q(self) -> Array:
        """Cosine to the own text minus the mean cosine to the other texts."""
        own_P_Q, P = np.diagonal(self.cosine_P_Q_P, axis1=0, axis2=2).T, len(self.cosine_P_Q_P)
        return np.asarray(own_P_Q - (self.cosine_P_Q_P.sum(axis=2) - own_P_Q) / (P - 1))


def summarize_recognisability(
    answers_P_Q: AnswerTexts,
    persona_texts: Sequence[str],
    embed: EmbedTexts,
    *,
    persona_ids: Sequence[str],
    question_texts: Sequence[str],
    embedder: str = "",
    seed: int = 0,
    resamples: int = 2000,
) -> Recognisability:
    """Compare `answers_P_Q` (None: no answer) with the persona texts. `embedder` is the embedder's name in the result.

    Raises DataError where the result would mean nothing: fewer than two personas, repeated ids or questions, a grid of another
    shape, no question that two personas answered, or vectors of another shape.
    """
    check_grid_names("recognisability", persona_ids, persona_texts, question_texts)
    P, Q = len(persona_ids), len(question_texts)
    order = canonical_order(persona_ids, [canonical_text(text) for text in question_texts], seed)
    ordered_questions = [question_texts[q] for q in order.questions]
    answer_P_Q = order.sort_grid(to_text_grid(answers_P_Q, "answers", (P, Q)))
    answered_P_Q = np.array([[text is not None for text in text_Q] for text_Q in answer_P_Q])
    texts = TextsToEmbed.prepare(answer_P_Q, ordered_questions, [persona_texts[p] for p in order.personas])
    vectors = embed_distinct(texts.all_texts, embed)

    text_P_D = np.stack([vectors[text] for text in texts.persona_P])
    nearest, by_question, by_length = (
        nearest_texts(to_vector_grid(grid_P_Q, vectors), answered_P_Q, text_P_D)
        for grid_P_Q in (texts.masked_P_Q, texts.question_P_Q, texts.length_P_Q)
    )
    scored_P_Q = ~np.isnan(nearest.own_share_P_Q)
    if not scored_P_Q.any():
        raise DataError("recognisability: no question has answers of two personas")
    sample = QuestionSample.draw(scored_P_Q, np.random.default_rng(seed_from(seed, "recognise")), resamples)
    recall_P = [sample.share(nearest.own_share_P_Q, [p]) for p in range(P)]
    counts_P_P = np.nansum(nearest.share_P_Q_P, axis=1)
    accuracy = sample.share(nearest.own_share_P_Q)
    shuffled_R = shuffled_shares(counts_P_P, np.random.default_rng(seed_from(seed, "shuffled texts")), resamples)
    low, high = np.quantile(shuffled_R, (0.025, 0.975))
    callers_P = order.callers_P
    return Recognisability(
        accuracy=accuracy,
        chance=1 / P,
        margin=sample.mean(nearest.margin_P_Q),
        question_only=sample.share(by_question.own_share_P_Q),
        length_only=sample.share(by_length.own_share_P_Q),
        shuffled=Estimate(value=float(shuffled_R.mean()), low=float(low), high=float(high), n=accuracy.n),
        shuffled_p=permutation_p(float(np.trace(counts_P_P) / counts_P_P.sum()), shuffled_R),
        persona_ids=tuple(persona_ids),
        confusion=tuple(tuple(map(float, row)) for row in counts_P_P[np.ix_(callers_P, callers_P)]),
        per_persona=tuple(recall_P[p] for p in callers_P),
        n_asked=P * Q,
        n_answered=int(answered_P_Q.sum()),
        n_scored=int(scored_P_Q.sum()),
        n_questions=Q,
        removed_words=texts.removed_words,
        closest_texts=_closest_texts(text_P_D, [persona_ids[p] for p in order.personas]),
        embedder=embedder,
        right_by_question=sum_by_question(nearest.own_share_P_Q, ordered_questions),
    )


class TextsToEmbed(NamedTuple):
    """The texts of a run that an embedder reads. A text without a word in it is None: it has no vector."""

    masked_P_Q: TextGrid
    question_P_Q: TextGrid
    length_P_Q: TextGrid
    persona_P: tuple[str, ...]
    removed_words: float

    @classmethod
    def prepare(cls, answer_P_Q: TextGrid, question_texts: Sequence[str], persona_texts: Sequence[str]) -> "TextsToEmbed":
        """The answers and questions without persona words, and each answer as a filler word repeated as often as it has words."""
        masked_P_Q = _map_texts(lambda text: remove_persona_words(text, persona_texts), answer_P_Q)
        before, after = (sum(map(_count_words, _all_texts(grid))) for grid in (answer_P_Q, masked_P_Q))
        question_Q = [remove_persona_words(text, persona_texts) for text in question_texts]
        return cls(
            masked_P_Q,
            _map_texts(str, np.array([question_Q] * len(answer_P_Q), dtype=object)),
            _map_texts(lambda text: " ".join([FILLER_WORD] * _count_words(text)), masked_P_Q),
            tuple(persona_texts),
            1 - after / before if before else 0.0,
        )

    @property
    def all_texts(self) -> tuple[str, ...]:
        """Every distinct text, sorted."""
        grids = (self.masked_P_Q, self.question_P_Q, self.length_P_Q)
        return tuple(sorted({*self.persona_P, *(text for grid in grids for text in _all_texts(grid))}))


def _all_texts(text_P_Q: TextGrid) -> list[str]:
    return [str(text) for text in text_P_Q.ravel().tolist() if text is not None]


def remove_persona_words(text: str, persona_texts: Sequence[str]) -> str:
    """`text` without the words that `mask_persona_words` masks.

    They are removed and not replaced: the word "persona" of the mask token would itself have a meaning to the embedder, and
    answers with many masked words would be alike.
    """
    return " ".join(mask_persona_words(text, persona_texts).replace(MASK_TOKEN, " ").split())


def _count_words(text: str) -> int:
    return len(WORD_PATTERN.findall(text))


def _map_texts(transform: Callable[[str], str], text_P_Q: TextGrid) -> TextGrid:
    """The transformed texts; None for no text and for a text without a word."""
    mapped = [[None if text is None else transform(text) for text in text_Q] for text_Q in text_P_Q]
    return np.array([[text if text and _count_words(text) else None for text in text_Q] for text_Q in mapped], dtype=object)


def embed_distinct(texts: Sequence[str], embed: EmbedTexts) -> dict[str, Array]:
    """The vector of each of these distinct texts. Raises DataError unless the embedder gives finite vectors of one length."""
    vector_N_D = np.asarray(embed(texts), dtype=float)
    if vector_N_D.ndim != 2 or len(vector_N_D) != len(texts) or not np.isfinite(vector_N_D).all():
        raise DataError(
            f"embedder: gave an array {list(vector_N_D.shape)} for {len(texts)} texts; expected a finite vector for each"
        )
    return dict(zip(texts, vector_N_D, strict=True))


def to_vector_grid(text_P_Q: TextGrid, vectors: dict[str, Array]) -> Array:
    """vector_P_Q_D of the texts; NaN where there is no text."""
    nothing_D = np.full(len(next(iter(vectors.values()))), np.nan)
    return np.array([[nothing_D if text is None else vectors[text] for text in text_Q] for text_Q in text_P_Q])


def nearest_texts(vector_P_Q_D: Array, answered_P_Q: BoolArray, text_P_D: Array) -> NearestTexts:
    """Compare each answer with each persona's text, both without the mean over the personas that have a vector at the question.

    An answer without a vector (NaN) has cosine 0 to every text. Answers to a question that fewer than two personas answered are
    NaN in the result.
    """
    P, Q, _ = vector_P_Q_D.shape
    cosine_P_Q_P = np.full((P, Q, P), np.nan)
    for q in np.flatnonzero(answered_P_Q.sum(axis=0) > 1):
        vector_P_D = vector_P_Q_D[:, q]
        present_P = ~np.isnan(vector_P_D).any(axis=1)
        cosine_P_P = np.zeros((P, P))
        if present_P.any():
            centred_P_D = np.nan_to_num(vector_P_D - vector_P_D[present_P].mean(axis=0))
            centred_text_P_D = text_P_D - text_P_D[present_P].mean(axis=0)
            scales = (_largest_norm(vector_P_D[present_P]), _largest_norm(text_P_D))
            cosine_P_P = _unit_rows(centred_P_D, scales[0]) @ _unit_rows(centred_text_P_D, scales[1]).T
        cosine_P_Q_P[:, q] = np.where(answered_P_Q[:, q, None], cosine_P_P, np.nan)
    return NearestTexts(cosine_P_Q_P, _shares_of_nearest(cosine_P_Q_P))


def _shares_of_nearest(cosine_P_Q_P: Array) -> Array:
    """1 / n for each of the n texts whose cosine is the largest, 0 for the others; NaN where the cosines are NaN."""
    nearest_P_Q_P = cosine_P_Q_P >= cosine_P_Q_P.max(axis=2, keepdims=True) - TIE_TOLERANCE
    return safe_divide(nearest_P_Q_P.astype(float), nearest_P_Q_P.sum(axis=2, keepdims=True).astype(float))


def _largest_norm(vector_N_D: Array) -> float:
    return float(np.linalg.norm(vector_N_D, axis=1).max())


def _unit_rows(vector_N_D: Array, scale: float) -> Array:
    """The rows with length 1; rows that are rounding errors of vectors of length `scale` become 0."""
    norm_N = np.linalg.norm(vector_N_D, axis=1)
    return np.nan_to_num(safe_divide(vector_N_D, np.where(norm_N > ZERO_TOLERANCE * scale, norm_N, 0.0)[:, None]))


def shuffled_shares(counts_P_P: Array, rng: np.random.Generator, n_shuffles: int) -> Array:
    """share_R of answers recognised when the texts are given to the personas at random.

    The texts get other names and nothing else changes, so the nearest text of each answer stays the nearest one.
    """
    P = len(counts_P_P)
    order_R_P = rng.permuted(np.tile(np.arange(P), (n_shuffles, 1)), axis=1)
    return np.asarray(counts_P_P[np.arange(P), order_R_P].sum(axis=1) / counts_P_P.sum())


class QuestionSample(NamedTuple):
    """Bootstrap draws of the questions with scored answers; every estimate uses the same draws."""

    scored_P_Q: BoolArray
    counts_R_Q: Array

    @classmethod
    def draw(cls, scored_P_Q: BoolArray, rng: np.random.Generator, resamples: int) -> "QuestionSample":
        asked_Q = np.asarray(scored_P_Q.any(axis=0))
        n = int(asked_Q.sum())
        counts_R_Q = np.zeros((resamples, len(asked_Q)))
        counts_R_Q[:, asked_Q] = rng.multinomial(n, np.full(n, 1 / n), size=resamples)
        return cls(scored_P_Q, counts_R_Q)

    def share(self, value_P_Q: Array, personas: Sequence[int] | None = None) -> Estimate:
        """Mean of values in [0, 1] over the scored answers, of these personas only if given."""
        return self._estimate(value_P_Q, bootstrap_share, personas)

    def mean(self, value_P_Q: Array) -> Estimate:
        """Mean of values of any size over the scored answers."""
        return self._estimate(value_P_Q, bootstrap_estimate)

    def _estimate(
        self, value_P_Q: Array, interval: Callable[[float, Array, int], Estimate], personas: Sequence[int] | None = None
    ) -> Estimate:
        """Σ_q c_q value_q / Σ_q c_q answers_q for a question drawn c_q times. The width is that of as many units as questions;
        n is the number of answers."""
        rows = list(range(len(value_P_Q))) if personas is None else list(personas)
        answers_Q = np.asarray(self.scored_P_Q[rows].sum(axis=0))
        if not answers_Q.any():
            return Estimate(value=None, n=0)
        total_Q = np.where(self.scored_P_Q[rows], value_P_Q[rows], 0.0).sum(axis=0)
        replicate_R = safe_divide(self.counts_R_Q @ total_Q, self.counts_R_Q @ answers_Q)
        found = interval(float(total_Q.sum() / answers_Q.sum()), replicate_R, int((answers_Q > 0).sum()))
        return found.model_copy(update={"n": int(answers_Q.sum())})


def _closest_texts(text_P_D: Array, persona_ids: Sequence[str]) -> TextPair:
    unit_P_D = _unit_rows(text_P_D, _largest_norm(text_P_D))
    cosine_P_P = np.where(np.tri(len(persona_ids), dtype=bool), -np.inf, unit_P_D @ unit_P_D.T)
    first, second = divmod(int(cosine_P_P.argmax()), len(persona_ids))
    return TextPair(first=persona_ids[first], second=persona_ids[second], cosine=round(float(cosine_P_P[first, second]), 4))
