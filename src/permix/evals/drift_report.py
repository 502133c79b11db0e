"""Measure drift in a run of interviews: every measure by turn, its slope, and late − early, with intervals over personas.

Contract: everything is computed from the run's records, grid.json and the scores of judges. A missing turn is left out and
counted. In a balanced interview all personas get the same opening question, so the effect of turn 1 cannot be separated from that
of its question; turn 1 is in the curves but in no slope.

Identifiability by turn asks whether a classifier still recognises the persona late in an interview. The classifier is the one of
`metrics.persona_classifier`, with persona words masked. It is trained on the answers of a reference run that asks the same
personas single questions, not on the interview: the answers of one interview repeat one another, so a model that repeats itself
would seem ever easier to recognise. Questions that both runs ask are excluded from training.

Array suffixes: P personas, I turns of an interview, U rubrics, R resamples.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import numpy as np

from permix.errors import DataError
from permix.evals.fidelity_records import AskedQuestion, bare_question_id, question_text_lookup, read_asked_questions, turn_number
from permix.evals.grid import GridResults, grid_results
from permix.metrics.identifiability import MIN_ANSWERS
from permix.metrics.linear_models import QuestionIndex, late_regressor, slope_regressor, turn_effect
from permix.metrics.persona_classifier import (
    Classifier,
    FeatureExtractor,
    length_classifier,
    length_features,
    linear_classifier,
    mask_persona_words,
    text_features,
)
from permix.metrics.statistics import Array, BootstrapResult, bootstrap, bootstrap_estimate, bootstrap_mean, bootstrap_share
from permix.metrics.text_stats import find_character_breaks, question_echo_share, repetition_shares, tokenize_words
from permix.storage.run_dir import RunReader, require_run
from permix.types import AnswerKey, Cell, CellKey, Estimate, Record, canonical_text, seed_from


class TrainExample(NamedTuple):
    """A training answer of the classifier: its persona, its question, and its text.

    `question`: the question's text (as `canonical_text`) where the run has it, else its id. It does not depend on the persona.
    """

    persona_id: str
    question: str
    answer: str


class TurnAccuracy(NamedTuple):
    """Classifier results per persona and turn (P, I): 1 if the persona is named correctly, 0 if not, NaN without an answer.

    The first array is the measure. The other two are controls: a classifier of answer lengths, and one with shuffled labels. The
    latter is None if no two personas answered the same training question: then shuffling changes no label.
    """

    correct_by_text_P_I: Array
    correct_by_length_P_I: Array
    correct_by_shuffled_P_I: Array | None


def read_train_examples(
    reference: Path, persona_ids: Sequence[str], asked_questions: Sequence[AskedQuestion]
) -> list[TrainExample]:
    """Read the answers of the reference run by `persona_ids` to questions that are not in `asked_questions`.

    Raises DataError if `reference` is not a run, or has fewer than `MIN_ANSWERS` such answers of a persona.
    """
    run = require_run(reference)
    results, question_text = grid_results(run), question_text_lookup(read_asked_questions(reference))
    excluded_texts = {canonical_text(one.text) for one in asked_questions}
    excluded_ids = {bare_question_id(one.id) for one in asked_questions}
    examples = []
    for key in results.grid_summaries:
        if key.persona_id is None or key.persona_id not in persona_ids or (cell := results.cells[key]).completion is None:
            continue
        text = canonical_text(question_text(key.question_id, key.persona_id))
        if text in excluded_texts if text else _may_ask(results, cell, excluded_texts, excluded_ids):
            continue
        examples.append(TrainExample(key.persona_id, text or key.question_id, cell.completion.answer))
    for persona in persona_ids:
        count = sum(one.persona_id == persona for one in examples)
        if count < MIN_ANSWERS:
            raise DataError(
                f"reference = {reference}: has {count} answers of persona {persona!r} to questions that the interview does not "
                f"ask; at least {MIN_ANSWERS} are needed"
            )
    return examples


def _may_ask(results: GridResults, cell: Cell, texts: Collection[str], ids: Collection[str]) -> bool:
    """Whether a cell, the text of whose question is not recorded, may ask a question of these texts or ids.

    The user message can contain the persona, a request or the task's template. The message without a persona contains less.
    """
    baseline = results.get_cell(None, cell.question_id, 0)
    messages = [one.messages[-1]["content"] for one in (cell, baseline) if one is not None]
    return bare_question_id(cell.question_id) in ids or not {canonical_text(one) for one in messages}.isdisjoint(texts)


def attribute_turns(
    answers_P_I: Mapping[str, Sequence[str | None]],
    train_examples: Sequence[TrainExample],
    persona_texts: Sequence[str],
    seed: int,
) -> TurnAccuracy:
    """Train on `train_examples` and classify every answer of the interviews; `answers_P_I` maps persona id to its answers."""
    mask = partial(mask_persona_words, persona_texts=persona_texts)
    labels = [one.persona_id for one in train_examples]
    correctness = partial(_attribution_correctness, answers_P_I, train_examples)
    shuffled_labels = _shuffle_labels(train_examples, seed) if _share_questions(train_examples) else None
    return TurnAccuracy(
        correct_by_text_P_I=correctness(labels, mask, text_features, linear_classifier),
        correct_by_length_P_I=correctness(labels, str, length_features, length_classifier),
        correct_by_shuffled_P_I=(
            None if shuffled_labels is None else correctness(shuffled_labels, mask, text_features, linear_classifier)
        ),
    )


def _attribution_correctness(
    answers_P_I: Mapping[str, Sequence[str | None]],
    train_examples: Sequence[TrainExample],
    labels: Sequence[str],
    mask: Callable[[str], str],
    make_features: Callable[[], FeatureExtractor],
    make_classifier: Callable[[], Classifier],
) -> Array:
    features, classifier = make_features(), make_classifier()
    classifier.fit(features.fit_transform([mask(one.answer) for one in train_examples]), labels)
    answered = [
        (p, i, persona_id, text)
        for p, (persona_id, answers) in enumerate(answers_P_I.items())
        for i, text in enumerate(answers)
        if text is not None
    ]
    right_P_I = np.full((len(answers_P_I), max(map(len, answers_P_I.values()))), np.nan)
    if answered:
        predictions = classifier.predict(features.transform([mask(text) for *_, text in answered]))
        for (p, i, persona_id, _), prediction in zip(answered, predictions, strict=True):
            right_P_I[p, i] = float(prediction == persona_id)
    return right_P_I


def _share_questions(train_examples: Sequence[TrainExample]) -> bool:
    """Whether two personas answered the same question."""
    pairs = {(one.question, one.persona_id) for one in train_examples}
    return len({question for question, _ in pairs}) < len(pairs)


def _shuffle_labels(train_examples: Sequence[TrainExample], seed: int) -> list[str]:
    """Permute the labels among the answers to each question."""
    rng = np.random.default_rng(seed_from(seed, "told"))  # the word only seeds; another word would change recorded results
    labels = [one.persona_id for one in train_examples]
    for question in dict.fromkeys(one.question for one in train_examples):
        places = [place for place, one in enumerate(train_examples) if one.question == question]
        for place, other in zip(places, rng.permutation(places), strict=True):
            labels[place] = train_examples[int(other)].persona_id
    return labels


QuestionOrder = Literal["balanced", "written", "model"]

_Interval = Callable[[float, Array, int], Estimate]
"""(value, replicate_R, n) -> estimate with its interval: `bootstrap_estimate` or `bootstrap_share`."""

_BOOTSTRAP_BLOCK = 500

SERIES_DESCRIPTIONS = {
    "identifiability": "share of answers whose persona a classifier names; trained on the personas' answers to single questions",
    "breaks": "share of answers that break character by a rule",
    "repetition": "share of an answer's 4-word sequences that the persona used earlier in the interview",
    "echo": "share of an answer's 3-word sequences that are also in its question",
    "words": "number of words in an answer",
}

SHARE_MEASURES = ("identifiability", "breaks")


class TurnSeries(Record):
    """One measure over the turns of the interviews.

    `slope` is the change per turn, `late_minus_early` the change from the first half of the turns to the second half. Intervals
    resample personas; slope and late − early have no interval if no persona's values change over the turns. `judge` is the label
    of the judge whose scores these are, None for a measure without a judge. `discriminates_persona` says whether this judge
    discriminates personas, None if it was not validated.
    """

    name: str
    judge: str | None = None
    discriminates_persona: bool | None = None
    by_turn: tuple[Estimate, ...]
    overall: Estimate
    slope: Estimate
    late_minus_early: Estimate
    n_scored: int
    n_asked: int


class Drift(Record):
    """The drift measures of a run of interviews over `turns` turns.

    `question_order`: "balanced" (the effect of the turn is separated from that of the question), "written" (all personas have the
    same order, so it is not), or "model" (a model asked, and its late questions are part of the slope). `first_slope_turn` is the
    first turn that slopes include. `chance`, `length_only` and `permuted` are comparisons for identifiability, which needs a
    reference run. `permuted` is None too if no two personas answered the same question of the reference.
    """

    turns: int
    persona_ids: tuple[str, ...]
    question_order: QuestionOrder
    first_slope_turn: int
    series: tuple[TurnSeries, ...]
    chance: float
    length_only: Estimate | None
    permuted: Estimate | None
    reference: str | None
    n_answered: int
    n_asked: int
    n_truncated: int

    def find_series(self, name: str) -> TurnSeries | None:
        """The series with this name, or None."""
        return next((one for one in self.series if one.name == name), None)


class JudgeTurnScores(NamedTuple):
    """Scores of one judge, its rubrics, and whether it discriminates personas; None if the judge was not validated."""

    scores: Mapping[AnswerKey, int]
    rubrics: tuple[str, ...]
    discriminates_persona: bool | None


class InterviewRecords(NamedTuple):
    """The interviews of a run by persona and turn (P, I): the cells, None for a pending turn, and the texts of the questions."""

    persona_ids: tuple[str, ...]
    persona_texts: tuple[str, ...]
    cells_P_I: tuple[tuple[Cell | None, ...], ...]
    questions_P_I: tuple[tuple[str, ...], ...]
    question_order: QuestionOrder

    @property
    def answers_P_I(self) -> list[list[str | None]]:
        """The texts of the answers, None for a pending turn."""
        return [[cell.completion.answer if cell and cell.completion else None for cell in row] for row in self.cells_P_I]

    @property
    def question_P_I(self) -> QuestionIndex:
        """A number for each question text; 0 everywhere unless the order is balanced: only then effects can be separated."""
        shape = len(self.cells_P_I), len(self.cells_P_I[0])
        if self.question_order != "balanced":
            return np.zeros(shape, dtype=np.int64)
        numbers = {text: number for number, text in enumerate(dict.fromkeys(text for row in self.questions_P_I for text in row))}
        return np.array([[numbers[text] for text in row] for row in self.questions_P_I], dtype=np.int64)


def read_interviews(run: Path) -> InterviewRecords:
    """Read the interviews of a run. Raises DataError if it is not a run of interviews, or if no turn was answered."""
    reader = RunReader(run)
    config, grid = reader.config, reader.grid
    if "turns_asked" not in grid:
        raise DataError(f"{run}: has no interviews; permix fidelity --interview.turns makes them")
    cells, turns = reader.cells, config["interview"]["turns"]
    ids = tuple(grid["persona_ids"])
    turn_ids = {persona_id: _pad_turns(grid["turns_asked"][persona_id], turns) for persona_id in ids}
    cells_P_I = tuple(
        tuple(_if_answered(cells.get(CellKey(persona_id, turn_id, 0))) for turn_id in turn_ids[persona_id]) for persona_id in ids
    )
    if not any(cell for row in cells_P_I for cell in row):
        raise DataError(f"{run}: no turn of any interview was answered")
    question_text = question_text_lookup(read_asked_questions(run))
    return InterviewRecords(
        persona_ids=ids,
        persona_texts=tuple(grid["persona_texts"][persona_id] for persona_id in ids),
        cells_P_I=cells_P_I,
        questions_P_I=tuple(tuple(question_text(turn_id, persona_id) for turn_id in turn_ids[persona_id]) for persona_id in ids),
        question_order=_question_order(config),
    )


def _pad_turns(names: Sequence[str], n_turns: int) -> list[str]:
    return [*names, *[""] * (n_turns - len(names))]


def _if_answered(cell: Cell | None) -> Cell | None:
    return cell if cell is not None and cell.completion is not None else None


def _question_order(config: Mapping[str, Any]) -> QuestionOrder:
    if config["interviewer"]["name"] != "script":
        return "model"
    return "balanced" if config["interview"]["order"] == "balanced" else "written"


def measure_drift(run: Path, reference: Path | None, judges: Mapping[str, JudgeTurnScores] = MappingProxyType({})) -> Drift:
    """Compute every drift measure of a run of interviews.

    Identifiability needs `reference`, a run of single questions with the same personas. `judges` maps a judge's label to its
    scores. Raises DataError if the run or the reference cannot be used.
    """
    interviews, config = read_interviews(run), RunReader(run).config
    seed, resamples = config["seed"], config["resamples"]
    turns, first = len(interviews.cells_P_I[0]), 2 if interviews.question_order == "balanced" else 1
    value_by_measure = dict(_text_measures(interviews))
    attributed = None
    if reference is not None:
        examples = read_train_examples(reference, interviews.persona_ids, read_asked_questions(run))
        attributed = attribute_turns(
            dict(zip(interviews.persona_ids, interviews.answers_P_I, strict=True)), examples, interviews.persona_texts, seed
        )
        value_by_measure = {"identifiability": attributed.correct_by_text_P_I} | value_by_measure
    mean_share = partial(_mean_over_personas, seed=seed, resamples=resamples, interval=bootstrap_share)
    answered = [cell for row in interviews.cells_P_I for cell in row if cell is not None and cell.completion is not None]
    return Drift(
        turns=turns,
        persona_ids=interviews.persona_ids,
        question_order=interviews.question_order,
        first_slope_turn=first,
        series=(
            *(
                compute_turn_series(name, value, interviews.question_P_I, first, seed, resamples)
                for name, value in value_by_measure.items()
            ),
            *(_judge_series(label, one, interviews, first, seed, resamples) for label, one in judges.items()),
        ),
        chance=1 / len(interviews.persona_ids),
        length_only=None if attributed is None else mean_share(attributed.correct_by_length_P_I),
        permuted=(
            None
            if attributed is None or attributed.correct_by_shuffled_P_I is None
            else mean_share(attributed.correct_by_shuffled_P_I)
        ),
        reference=None if reference is None else RunReader(reference).label or reference.name,
        n_answered=len(answered),
        n_asked=len(interviews.persona_ids) * turns,
        n_truncated=sum(cell.completion is not None and cell.completion.is_cut_off is True for cell in answered),
    )


def compute_turn_series(
    name: str, value_P_I: Array, question_P_I: QuestionIndex, first_turn: int, seed: int, resamples: int
) -> TurnSeries:
    """Compute curve, slope and late − early of one measure, given as value_P_I (personas, turns; NaN for a missing value)."""
    P, n_turns = value_P_I.shape
    rng = np.random.default_rng(seed_from(seed, "drift", name))
    regressors = {"slope": slope_regressor(first_turn, n_turns), "late": late_regressor(first_turn, n_turns)}
    effects = bootstrap(
        lambda counts_R_P: {key: turn_effect(value_P_I, question_P_I, one, counts_R_P) for key, one in regressors.items()},
        P, rng, resamples, _BOOTSTRAP_BLOCK,
    )  # fmt: skip
    interval = bootstrap_share if name in SHARE_MEASURES else bootstrap_estimate
    n = int((~np.isnan(value_P_I[:, first_turn - 1 :])).any(axis=1).sum())
    slope, late_minus_early = (
        _estimate_unless_constant(effects[name], n, _no_persona_changes(value_P_I, one)) for name, one in regressors.items()
    )
    return TurnSeries(
        name=name,
        by_turn=tuple(bootstrap_mean(value_P, seed, resamples, interval) for value_P in value_P_I.T),
        overall=_mean_over_personas(value_P_I, seed, resamples, interval),
        slope=slope,
        late_minus_early=late_minus_early,
        n_scored=int((~np.isnan(value_P_I)).sum()),
        n_asked=P * n_turns,
    )


def _estimate_unless_constant(effect: BootstrapResult, n: int, is_constant: bool) -> Estimate:
    """An estimate without an interval if no persona's value changes: then every resample is 0, and width 0 would suggest
    certainty."""
    estimate = bootstrap_estimate(float(effect.value), effect.replicates, n)
    return Estimate(value=estimate.value, n=n) if is_constant else estimate


def _no_persona_changes(value_P_I: Array, regressor_I: Array) -> bool:
    """Whether each persona has equal values at all turns that the effect of this regressor uses."""
    counted_P_I = value_P_I[:, ~np.isnan(regressor_I)]
    return all(len(np.unique(row[~np.isnan(row)])) < 2 for row in counted_P_I)


def _mean_over_personas(value_P_I: Array, seed: int, resamples: int, interval: _Interval) -> Estimate:
    """Mean over personas of each persona's mean over turns."""
    rows = [row[~np.isnan(row)] for row in value_P_I]
    return bootstrap_mean(np.array([row.mean() if len(row) else np.nan for row in rows]), seed, resamples, interval)


def _text_measures(interviews: InterviewRecords) -> Iterator[tuple[str, Array]]:
    """Yield (name, value_P_I) of each measure that needs only the texts."""
    answers = interviews.answers_P_I
    rows = list(zip(answers, interviews.questions_P_I, interviews.persona_texts, strict=True))
    yield (
        "breaks",
        _to_array([[None if a is None else float(bool(find_character_breaks(a, who))) for a in row] for row, _, who in rows]),
    )
    yield "repetition", _to_array([repetition_shares(row) for row in answers])
    yield (
        "echo",
        _to_array(
            [
                [None if a is None else question_echo_share(a, q) for a, q in zip(row, asked, strict=True)]
                for row, asked, _ in rows
            ]
        ),
    )
    yield "words", _to_array([[None if a is None else float(len(tokenize_words(a))) for a in row] for row in answers])


def _judge_series(
    label: str, judge_scores: JudgeTurnScores, interviews: InterviewRecords, first_turn: int, seed: int, resamples: int
) -> TurnSeries:
    score_P_I = scores_by_turn(judge_scores.scores, judge_scores.rubrics, interviews.persona_ids, len(interviews.cells_P_I[0]))
    series = compute_turn_series(f"judge {label}", score_P_I, interviews.question_P_I, first_turn, seed, resamples)
    return series.model_copy(update={"judge": label, "discriminates_persona": judge_scores.discriminates_persona})


def scores_by_turn(scores: Mapping[AnswerKey, int], rubrics: Sequence[str], persona_ids: Sequence[str], n_turns: int) -> Array:
    """score_P_I: mean over the rubrics of a judge's scores of each answer; NaN if the score of a rubric is missing."""
    row_of = {persona_id: p for p, persona_id in enumerate(persona_ids)}
    score_P_I_U = np.full((len(persona_ids), n_turns, len(rubrics)), np.nan)
    for key, score in scores.items():
        turn = turn_number(key.question_id)
        if key.persona_id in row_of and turn is not None and turn <= n_turns:
            score_P_I_U[row_of[key.persona_id], turn - 1, rubrics.index(key.rubric)] = score
    return np.asarray(score_P_I_U.mean(axis=2))


def _to_array(rows: Sequence[Sequence[float | None]]) -> Array:
    return np.array(rows, dtype=np.float64)  # None becomes NaN
