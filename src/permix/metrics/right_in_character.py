"""Right and in character: the share of a task's answers that are right and that a classifier attributes to their persona.

Contract: texts and scores in, one record out; no language model, no files, no global random state. A model may stay right under a
persona because it drops the persona. Stability (on the task) and identifiability (on open questions) are measured on different
answers and do not show that. This measure uses the same answers for both.

- *Held out by question*, and *persona words masked*, as in `identifiability`. All answers of a persona to a question (samples,
  templates) are in the fold of the question. To compare checkpoints, train on the answers of one run (`reference_P_Q_S`).
- *Answers masked.* Every number and number word, and each of the question's `values_Q` (its right answer and all answers that
  were extracted), is replaced by one token in all answers to the question. So the masking depends neither on the persona nor on
  whether the answer is right. `score_only` is how often the score alone names the persona: an upper bound on what the score could
  contribute if the text showed it.
- *Missing is not wrong.* Only answers with a text and a score count. A persona with such answers to fewer than `MIN_ANSWERS`
  questions is left out, and named.

Personas have equal weight, as in the measure `mean` of stability. Intervals resample questions and keep the classifiers fixed.

Axes: P personas, Q questions, S answers of a persona to a question, N rows of answers (P × S), L labellings, R resamples.
"""

from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from pydantic import Field

from permix.errors import DataError
from permix.metrics import statistics
from permix.metrics.identifiability import (
    CLASSIFIER_DESCRIPTION,
    MIN_ANSWERS,
    N_LABEL_SHUFFLES,
    BoolArray,
    CanonicalOrder,
    CrossValSplit,
    LabelArray,
    TextGrid,
    canonical_order,
    cross_val_predict,
    shuffle_labels,
)
from permix.metrics.persona_classifier import (
    length_classifier,
    length_features,
    linear_classifier,
    mask_answers,
    mask_persona_words,
    score_classifier,
    score_features,
    text_features,
)
from permix.metrics.statistics import Array, BootstrapResult
from permix.metrics.training_seeds import (
    SeedDifference,
    SeedPairing,
    SeedValues,
    cover_seed_differences,
    cover_training_seeds,
    limit_ends,
)
from permix.types import Estimate, Record, require_unique, seed_from

SampledTexts = Sequence[Sequence[Sequence[str | None]]]
"""Texts by persona, question and sample; None is no answer. Lists of samples may differ in length."""

N_FOLDS = 5

MAX_TRAIN_ANSWERS = 6000
"""Most answers that classifiers are trained on, in all folds together: of more only those to the first questions are used, in the
order of the folds. Without a limit 64 personas and 1,319 questions would take hours."""

BLOCK_FLOATS = 2_000_000
"""Floats in the largest array of one bootstrap block."""


class PersonaInCharacter(Record):
    """One persona's shares of right, recognised, and right and recognised answers; `n` counts questions."""

    id: str
    share: Estimate
    right: Estimate
    recognised: Estimate


class RightInCharacter(Record):
    """Share of answers that are right and recognised as their persona's, with its parts and controls; `n` counts questions.

    `share`: right and recognised. `right`, `recognised`: each alone, on the same answers. `recognised_if_right` is
    share / right and `recognised_if_wrong` (recognised − share) / (1 − right).

    `share_by_chance`: `share` with classifiers trained on shuffled labels, about right × chance. `chance` is 1 / personas.
    `permuted`, `length_only`, `score_only`: `recognised` with shuffled labels, by the length of the masked answer alone, and by
    its score alone.

    `left_out` has the ids of personas with too few answers. `n_answers` of `n_asked` answers of all personas have a text and a
    score. `share_P_Q`, by persona and question in the order of `personas` and `question_ids`, is what a paired comparison of two
    models resamples; both are not written to JSON.
    """

    share: Estimate
    right: Estimate
    recognised: Estimate
    recognised_if_right: Estimate
    recognised_if_wrong: Estimate
    chance: float
    share_by_chance: Estimate
    permuted: Estimate
    length_only: Estimate
    score_only: Estimate
    personas: tuple[PersonaInCharacter, ...]
    left_out: tuple[str, ...]
    n_answers: int
    n_asked: int
    n_questions: int
    classifier: str
    reference: str
    question_ids: tuple[str, ...] = Field(default=(), exclude=True, repr=False)
    share_P_Q: tuple[tuple[float | None, ...], ...] = Field(default=(), exclude=True, repr=False)


class _AnswerRows(NamedTuple):
    """Answers as rows: row p · S + s has the texts [N, Q] and scores [N, Q] of sample s of persona p."""

    text_N_Q: TextGrid
    score_N_Q: Array
    persona_N: LabelArray

    @property
    def label_N_Q(self) -> LabelArray:
        return np.repeat(self.persona_N[:, None], self.text_N_Q.shape[1], axis=1)

    @property
    def has_text_N_Q(self) -> BoolArray:
        return np.array([[text is not None for text in text_Q] for text_Q in self.text_N_Q], dtype=bool)

    @property
    def is_scored_N_Q(self) -> BoolArray:
        return self.has_text_N_Q & ~np.isnan(self.score_N_Q)

    def count_questions(self, mask_N_Q: BoolArray) -> LabelArray:
        """For each persona [P], the number of questions with a row in the mask."""
        P = int(self.persona_N.max()) + 1
        return np.array([mask_N_Q[self.persona_N == p].any(axis=0).sum() for p in range(P)])

    def of_personas(self, kept: Sequence[int]) -> "_AnswerRows":
        """The rows of these personas, which are renumbered from 0."""
        rows = np.concatenate([np.flatnonzero(self.persona_N == p) for p in kept])
        numbers = np.repeat(np.arange(len(kept)), len(rows) // len(kept))
        return _AnswerRows(self.text_N_Q[rows], self.score_N_Q[rows], numbers)

    def sorted_by(self, order: CanonicalOrder) -> "_AnswerRows":
        """The rows of the caller's personas and questions in this order."""
        rows, questions = self.of_personas(order.personas), list(order.questions)
        return rows._replace(text_N_Q=rows.text_N_Q[:, questions], score_N_Q=rows.score_N_Q[:, questions])


def summarize_right_in_character(
    answers_P_Q_S: SampledTexts,
    scores_P_Q_S: ArrayLike,
    persona_texts: Sequence[str],
    *,
    persona_ids: Sequence[str],
    question_ids: Sequence[str],
    values_Q: Sequence[Collection[str]] | None = None,
    reference_P_Q_S: SampledTexts | None = None,
    reference_name: str = "own answers",
    folds: int = N_FOLDS,
    seed: int = 0,
    resamples: int = 2000,
) -> RightInCharacter:
    """Measure how many answers are right and recognisably their persona's.

    `scores_P_Q_S` are in [0, 1], with NaN for no score, in the shape of the answers padded to the longest list of samples.
    `values_Q`: for each question the answers to mask in addition to numbers: its right answer and all extracted ones, including
    those of the reference. `reference_P_Q_S`: the texts that train the classifier, with any number of samples; the answers
    themselves if None.

    Raises DataError, with the reason, where the result would mean nothing: another shape, a score outside [0, 1], repeated ids,
    fewer questions than folds or than `MIN_ANSWERS`, or fewer than two personas with enough answers.
    """
    P, Q = len(persona_ids), len(question_ids)
    _check_names(persona_ids, persona_texts, question_ids, folds)
    all_personas = canonical_order(persona_ids, question_ids, seed)
    own = _to_rows(answers_P_Q_S, scores_P_Q_S, (P, Q)).sorted_by(all_personas)
    train = own if reference_P_Q_S is None else _to_rows(reference_P_Q_S, None, (P, Q)).sorted_by(all_personas)
    kept = _personas_with_enough(own, train, [persona_ids[p] for p in all_personas.personas])
    n_answers, n_asked = int(own.is_scored_N_Q.sum()), own.text_N_Q.size
    order = all_personas.of_personas(kept)
    kept_ids = [persona_ids[p] for p in order.personas]
    own, train = own.of_personas(kept), train.of_personas(kept)
    split = CrossValSplit(_limit_training(train.has_text_N_Q), own.is_scored_N_Q, np.arange(Q) % folds)
    _check_trained(split, train.persona_N, kept_ids)

    values = [values_Q[q] if values_Q is not None else () for q in order.questions]
    texts_to_mask = tuple(persona_texts[p] for p in order.personas)
    masked, masked_train = (_mask_rows(rows.text_N_Q, texts_to_mask, values) for rows in (own, train))
    rng = np.random.default_rng(seed_from(seed, "right in character"))
    # The draws: shuffles of the labels, then those of `estimates` and of `persona_estimates`. In another order every interval
    # would be another one.
    cells = _predict_cells(own, train, masked, masked_train, split, rng)
    estimates, by_persona = cells.estimates(rng, resamples), cells.persona_estimates(kept_ids, rng, resamples)
    callers_P = order.callers_P
    return RightInCharacter(
        **estimates,
        chance=1 / len(kept),
        personas=tuple(by_persona[place] for place in callers_P),
        left_out=tuple(id for id in persona_ids if id not in kept_ids),
        n_answers=n_answers,
        n_asked=n_asked,
        n_questions=Q,
        classifier=CLASSIFIER_DESCRIPTION.format(folds=folds) + ", numbers and answers masked",
        reference=reference_name,
        question_ids=tuple(question_ids[q] for q in order.questions),
        share_P_Q=tuple(
            tuple(None if np.isnan(value) else float(value) for value in cells.share_P_Q[place]) for place in callers_P
        ),
    )


def _predict_cells(
    own: _AnswerRows,
    train: _AnswerRows,
    masked_N_Q: TextGrid,
    masked_train_N_Q: TextGrid,
    split: CrossValSplit,
    rng: np.random.Generator,
) -> "_CellMeans":
    """Train and apply every classifier; `rng` shuffles the labels, and nothing else is drawn."""
    true, shuffled = train.label_N_Q, [shuffle_labels(train.label_N_Q, split.train_P_Q, rng) for _ in range(N_LABEL_SHUFFLES)]
    predicted_L = cross_val_predict(masked_train_N_Q, masked_N_Q, [true, *shuffled], split, text_features, linear_classifier)
    (by_length,) = cross_val_predict(masked_train_N_Q, masked_N_Q, [true], split, length_features, length_classifier)
    scores = own.score_N_Q.astype(object)
    own_split = CrossValSplit(_limit_training(own.is_scored_N_Q), own.is_scored_N_Q, split.fold_Q)
    (by_score,) = cross_val_predict(scores, scores, [own.label_N_Q], own_split, score_features, score_classifier)
    return _CellMeans.of(own, predicted_L, by_length, by_score)


class _CellMeans(NamedTuple):
    """Means over the answers of each persona to each question [P, Q], of answers with a score; NaN without one."""

    right_P_Q: Array
    share_L_P_Q: Array
    recognised_L_P_Q: Array
    length_P_Q: Array
    score_P_Q: Array

    @classmethod
    def of(cls, own: _AnswerRows, predicted_L: Sequence[LabelArray], by_length: LabelArray, by_score: LabelArray) -> "_CellMeans":
        score_N_Q = np.where(own.is_scored_N_Q, own.score_N_Q, np.nan)

        def mean(value_N_Q: Array) -> Array:
            P, (N, Q) = int(own.persona_N.max()) + 1, value_N_Q.shape
            return statistics.nanmean_along(value_N_Q.reshape(P, N // P, Q), axis=1)

        def recognised(predicted_N_Q: LabelArray) -> Array:
            return np.where(own.is_scored_N_Q, (predicted_N_Q == own.label_N_Q).astype(float), np.nan)

        return cls(
            mean(score_N_Q),
            np.stack([mean(score_N_Q * recognised(one)) for one in predicted_L]),
            np.stack([mean(recognised(one)) for one in predicted_L]),
            mean(recognised(by_length)),
            mean(recognised(by_score)),
        )

    @property
    def share_P_Q(self) -> Array:
        """Right and recognised, with the classifiers trained on the true labels."""
        return np.asarray(self.share_L_P_Q[0])

    def estimates(self, rng: np.random.Generator, resamples: int) -> dict[str, Estimate]:
        """The estimates of the record by name."""
        wrong_P_Q = 1 - self.right_P_Q
        S = len(self.share_L_P_Q) - 1
        weights = rng.multinomial(S, np.full(S, 1 / S), size=resamples) / S

        def measures(counts_R_Q: Array) -> dict[str, Array]:
            grids = {"right": self.right_P_Q, "length_only": self.length_P_Q, "score_only": self.score_P_Q}
            means = {name: _persona_mean(grid, counts_R_Q) for name, grid in grids.items()}
            share_R_L, recognised_R_L = (
                np.stack([_persona_mean(one, counts_R_Q) for one in grid_L], axis=1)
                for grid_L in (self.share_L_P_Q, self.recognised_L_P_Q)
            )
            share, recognised = share_R_L[:, 0], recognised_R_L[:, 0]
            return means | {
                "share": share,
                "recognised": recognised,
                "recognised_if_right": statistics.safe_divide(share, means["right"]),
                "recognised_if_wrong": statistics.safe_divide(recognised - share, _persona_mean(wrong_P_Q, counts_R_Q)),
                "share_by_chance": share_R_L[:, 1:],
                "permuted": recognised_R_L[:, 1:],
            }

        drawn = _bootstrap(measures, self.right_P_Q.shape, rng, resamples)
        for name in ("share_by_chance", "permuted"):
            by_shuffle = drawn[name]
            drawn[name] = BootstrapResult(by_shuffle.value.mean(), (weights * by_shuffle.replicates).sum(axis=1))
        n = {"recognised_if_right": _count_questions(self.right_P_Q > 0), "recognised_if_wrong": _count_questions(wrong_P_Q > 0)}
        n_all = _count_questions(~np.isnan(self.right_P_Q))
        return {
            name: statistics.bootstrap_share(float(one.value), one.replicates, n.get(name, n_all)) for name, one in drawn.items()
        }

    def persona_estimates(self, persona_ids: Sequence[str], rng: np.random.Generator, resamples: int) -> list[PersonaInCharacter]:
        """The three shares of each persona."""
        grids = {"share": self.share_P_Q, "right": self.right_P_Q, "recognised": np.asarray(self.recognised_L_P_Q[0])}
        drawn = _bootstrap(
            lambda counts_R_Q: {name: statistics.weighted_question_mean(grid, counts_R_Q) for name, grid in grids.items()},
            self.right_P_Q.shape, rng, resamples,
        )  # fmt: skip
        n_P = (~np.isnan(self.right_P_Q)).sum(axis=1)

        def estimate(name: str, p: int) -> Estimate:
            value_P, replicate_R_P = drawn[name]
            return statistics.bootstrap_share(float(value_P[p]), replicate_R_P[:, p], int(n_P[p]))

        return [PersonaInCharacter(id=id, **{name: estimate(name, p) for name in grids}) for p, id in enumerate(persona_ids)]


def _persona_mean(value_P_Q: Array, counts_R_Q: Array) -> Array:
    """mean_p mean_q of the values [R]; NaN where a resample has no question of some persona."""
    return np.asarray(statistics.weighted_question_mean(value_P_Q, counts_R_Q).mean(axis=1))


def _bootstrap(
    measures: Callable[[Array], dict[str, Array]], shape: tuple[int, ...], rng: np.random.Generator, resamples: int
) -> dict[str, BootstrapResult]:
    P, Q = shape
    return statistics.bootstrap(measures, Q, rng, resamples, block_size=max(1, BLOCK_FLOATS // max(P, Q)))


def _count_questions(mask_P_Q: BoolArray) -> int:
    return int(mask_P_Q.any(axis=0).sum())


def right_in_character_difference(
    results: Sequence[RightInCharacter],
    against: Sequence[RightInCharacter],
    seed: int,
    resamples: int,
    change: statistics.Change = np.subtract,
) -> Estimate:
    """`results` − `against`, or another change, in `share`, where each is the mean over its models.

    Only cells (persona, question) count that every model has, and all models share the bootstrap's draws of questions. n is the
    number of these questions. No value if the models have no persona or no question in common.
    """
    cells_N_P_Q = aligned_shares([*against, *results])
    if not cells_N_P_Q.size:
        return Estimate(value=None, n=0)
    mean_P_Q, against_P_Q = cells_N_P_Q[len(against) :].mean(axis=0), cells_N_P_Q[: len(against)].mean(axis=0)
    if change is not np.subtract:
        changes = _bootstrap(
            lambda counts_R_Q: {"share": change(_persona_mean(mean_P_Q, counts_R_Q), _persona_mean(against_P_Q, counts_R_Q))},
            against_P_Q.shape, np.random.default_rng(seed), resamples,
        )["share"]  # fmt: skip
        return statistics.bootstrap_estimate(float(changes.value), changes.replicates, _count_questions(~np.isnan(against_P_Q)))
    difference_P_Q = mean_P_Q - against_P_Q
    drawn = _bootstrap(
        lambda counts_R_Q: {"share": _persona_mean(difference_P_Q, counts_R_Q)},
        difference_P_Q.shape, np.random.default_rng(seed), resamples,
    )["share"]  # fmt: skip
    return statistics.bootstrap_paired(float(drawn.value), drawn.replicates, statistics.nanmean_along(difference_P_Q, axis=0))


def right_in_character_seed_difference(
    results: Sequence[RightInCharacter],
    against: Sequence[RightInCharacter],
    pairing: SeedPairing,
    over_questions: Estimate,
    seed: int,
    resamples: int,
) -> SeedDifference:
    """`over_questions`, the difference of the same results, with an interval over questions and training seeds too.

    With the pairing "paired" the results of both have the same seeds in the same order.
    """
    cells_N_P_Q = aligned_shares([*against, *results])
    if not cells_N_P_Q.size:
        return SeedDifference(over_questions=over_questions, over_seeds=Estimate(value=None, n=0))
    values = _share_by_seed(cells_N_P_Q, seed, resamples)
    of_results, of_against = values.seeds(slice(len(against), None)), values.seeds(slice(None, len(against)))
    return cover_seed_differences(over_questions, of_results, of_against, pairing).limited(-1.0, 1.0)


def _share_by_seed(cells_N_P_Q: Array, seed: int, resamples: int) -> SeedValues:
    """`share` of each result [N], with the bootstrap's draws of questions, which all results have in common."""
    drawn = _bootstrap(
        lambda counts_R_Q: {"share": np.stack([_persona_mean(cells_P_Q, counts_R_Q) for cells_P_Q in cells_N_P_Q], axis=1)},
        cells_N_P_Q.shape[1:], np.random.default_rng(seed), resamples,
    )["share"]  # fmt: skip
    return SeedValues(drawn.value, drawn.replicates.T)


def swap_test_p(first: RightInCharacter, other: RightInCharacter, seed: int, n_swaps: int) -> float | None:
    """Two-sided p of the test that the two models have the same `share`; None if they have no cell in common.

    If the models were alike, the answers of one to a question could as well be those of the other: p = (1 + m) / (1 + n_swaps)
    for m of n_swaps random swaps, question by question, with a difference as large (as in `metrics.model_comparison`).
    """
    cells_N_P_Q = aligned_shares([first, other])
    if not cells_N_P_Q.size:
        return None
    difference_P_Q = cells_N_P_Q[1] - cells_N_P_Q[0]
    rng = np.random.default_rng(seed)
    sign_R_Q = rng.choice([-1.0, 1.0], size=(n_swaps, difference_P_Q.shape[1]))
    value_P_Q, scored_P_Q = np.nan_to_num(difference_P_Q), (~np.isnan(difference_P_Q)).sum(axis=1, keepdims=True)
    null_R = sign_R_Q @ (value_P_Q / scored_P_Q).mean(axis=0)
    observed = float((value_P_Q / scored_P_Q).sum(axis=1).mean())
    return statistics.permutation_p(abs(observed), np.abs(null_R))


def pool_right_in_character(results: Sequence[RightInCharacter], seed: int, resamples: int) -> Estimate:
    """The mean of `share` over the models of several training seeds, on the cells that all of them have."""
    if len(results) == 1:
        return results[0].share
    cells_N_P_Q = aligned_shares(results)
    if not cells_N_P_Q.size:
        return Estimate(value=None, n=0)
    mean_P_Q = cells_N_P_Q.mean(axis=0)
    drawn = _bootstrap(
        lambda counts_R_Q: {"share": _persona_mean(mean_P_Q, counts_R_Q)},
        mean_P_Q.shape, np.random.default_rng(seed), resamples,
    )["share"]  # fmt: skip
    return statistics.bootstrap_share(float(drawn.value), drawn.replicates, _count_questions(~np.isnan(mean_P_Q)))


def right_in_character_over_seeds(
    results: Sequence[RightInCharacter], over_questions: Estimate, seed: int, resamples: int
) -> Estimate:
    """`over_questions`, the `pool_right_in_character` of the same results, with an interval over questions and training seeds."""
    cells_N_P_Q = aligned_shares(results)
    if not cells_N_P_Q.size:
        return Estimate(value=over_questions.value, n=over_questions.n)
    covered = cover_training_seeds(over_questions, [_share_by_seed(cells_N_P_Q, seed, resamples)])
    return limit_ends(covered.over_seeds, 0.0, 1.0)


def aligned_shares(results: Sequence[RightInCharacter]) -> Array:
    """`share_P_Q` of each result [N, P, Q], on the personas and questions that all have, in one order.

    NaN where one result lacks a cell; personas without any common cell are left out.
    """
    persona_ids = sorted(set.intersection(*({one.id for one in result.personas} for result in results)))
    question_ids = sorted(set.intersection(*(set(result.question_ids) for result in results)))
    cells_N_P_Q = np.array([_select_cells(result, persona_ids, question_ids) for result in results])
    complete_N_P_Q = np.where(np.isnan(cells_N_P_Q).any(axis=0), np.nan, cells_N_P_Q)
    return complete_N_P_Q[:, ~np.isnan(complete_N_P_Q[0]).all(axis=1)]


def _select_cells(result: RightInCharacter, persona_ids: Sequence[str], question_ids: Sequence[str]) -> Array:
    rows, columns = [one.id for one in result.personas], result.question_ids
    cells_P_Q = np.array(result.share_P_Q, dtype=float).reshape(len(rows), len(columns))
    return cells_P_Q[np.ix_([rows.index(id) for id in persona_ids], [columns.index(id) for id in question_ids])]


def _to_rows(texts_P_Q_S: SampledTexts, scores_P_Q_S: ArrayLike | None, shape: tuple[int, int]) -> _AnswerRows:
    """The answers as rows; without scores they are NaN. Raises DataError for another shape or a score outside [0, 1]."""
    what = "reference" if scores_P_Q_S is None else "answers"
    lengths = [len(text_Q_S) for text_Q_S in texts_P_Q_S]
    if len(lengths) != shape[0] or set(lengths) != {shape[1]}:
        raise DataError(f"{what}: rows of {lengths} entries; expected {shape[0]} personas × {shape[1]} questions")
    S = max(1, *(len(text_S) for text_Q_S in texts_P_Q_S for text_S in text_Q_S))
    padded = [[[*text_S, *[None] * (S - len(text_S))] for text_S in text_Q_S] for text_Q_S in texts_P_Q_S]
    text_P_Q_S = np.array(padded, dtype=object)
    score_P_Q_S = np.full((*shape, S), np.nan) if scores_P_Q_S is None else np.asarray(scores_P_Q_S, dtype=float)
    if score_P_Q_S.shape != (*shape, S):
        raise DataError(f"scores have the shape {score_P_Q_S.shape}; expected {(*shape, S)}, as the answers")
    known = score_P_Q_S[~np.isnan(score_P_Q_S)]
    if ((known < 0) | (known > 1)).any():
        raise DataError(f"scores: {known[(known < 0) | (known > 1)][0]:g} is outside [0, 1]")
    N = shape[0] * S
    text_N_Q, score_N_Q = (grid.transpose(0, 2, 1).reshape(N, shape[1]) for grid in (text_P_Q_S, score_P_Q_S))
    return _AnswerRows(text_N_Q, score_N_Q, np.repeat(np.arange(shape[0]), S))


def _mask_rows(text_N_Q: TextGrid, persona_texts: tuple[str, ...], values_Q: Sequence[Collection[str]]) -> TextGrid:
    masked_N_Q = np.full(text_N_Q.shape, None, dtype=object)
    for q, values in enumerate(values_Q):
        for row in np.flatnonzero([text is not None for text in text_N_Q[:, q]]):
            masked_N_Q[row, q] = mask_persona_words(mask_answers(text_N_Q[row, q], values), persona_texts)
    return masked_N_Q


def _limit_training(mask_N_Q: BoolArray) -> BoolArray:
    """The mask of the first questions that together have at most `MAX_TRAIN_ANSWERS` answers."""
    kept_Q = np.cumsum(mask_N_Q.sum(axis=0)) <= MAX_TRAIN_ANSWERS
    return mask_N_Q & kept_Q


def _check_names(persona_ids: Sequence[str], persona_texts: Sequence[str], question_ids: Sequence[str], folds: int) -> None:
    if len(persona_ids) < 2:
        raise DataError(f"right in character needs at least 2 personas, got {len(persona_ids)}")
    if len(persona_texts) != len(persona_ids):
        raise DataError(f"{len(persona_texts)} persona texts for {len(persona_ids)} persona ids; expected one each")
    if folds < 2 or len(question_ids) < max(folds, MIN_ANSWERS):
        raise DataError(
            f"{len(question_ids)} questions in {folds} folds; right in character needs at least 2 folds and "
            f"{max(folds, MIN_ANSWERS)} questions"
        )
    try:
        require_unique(persona_ids, "persona")
        require_unique(question_ids, "question")
    except ValueError as error:
        raise DataError(str(error)) from error


def _personas_with_enough(own: _AnswerRows, train: _AnswerRows, persona_ids: Sequence[str]) -> list[int]:
    """The places of the personas with enough scored answers and answers to train on. Raises DataError if they are under two."""
    n_scored_P, n_train_P = own.count_questions(own.is_scored_N_Q), train.count_questions(train.has_text_N_Q)
    kept = [p for p in range(len(persona_ids)) if min(n_scored_P[p], n_train_P[p]) >= MIN_ANSWERS]
    if len(kept) < 2:
        fewest = min(range(len(persona_ids)), key=lambda p: min(n_scored_P[p], n_train_P[p]))
        raise DataError(
            f"{len(kept)} of {len(persona_ids)} personas have answers to {MIN_ANSWERS} questions or more, and two are needed; "
            f"persona {persona_ids[fewest]!r} has {n_scored_P[fewest]} with a score, and {n_train_P[fewest]} to train on"
        )
    return kept


def _check_trained(split: CrossValSplit, persona_N: LabelArray, persona_ids: Sequence[str]) -> None:
    for p, persona_id in enumerate(persona_ids):
        trained_Q = split.train_P_Q[persona_N == p].any(axis=0)
        if any(not trained_Q[split.fold_Q != fold].any() for fold in np.unique(split.fold_Q)):
            raise DataError(f"persona {persona_id!r} has no answer to train on outside some fold; answer more of the questions")
