"""What a run of interviews says of drift: every measure by turn, its slope and late − early, with intervals over personas.

Contract: everything comes from the run's records, asked.json and what judges scored. A missing turn is left out and counted.
The opening of a balanced interview stands in the curves and in no slope: all are asked it first, so it cannot be told from its
turn.

Is a character still told late in an interview? A classifier that knows it from answers given afresh names who answers.

Contract: texts in, one array out. The classifier is that of `identify`: persona words masked, trained on the answers of another
run of the same personas, here one of single questions. It is not trained on the interview: the answers of one conversation repeat
one another, so a model that only repeats itself would be told ever better. What both runs were asked is not trained on either.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import numpy as np

from permix.errors import DataError
from permix.evals.fidelity_records import questions_asked, turn_of, wording
from permix.evals.grid import read_answers
from permix.metrics.identifiability import MIN_ANSWERS
from permix.metrics.linear_models import Questions, echoed, late_from, repeated, turn_effect, turns_from
from permix.metrics.persona_classifier import (
    Classifier,
    Features,
    length_classifier,
    length_features,
    linear_classifier,
    mask_persona_words,
    text_features,
)
from permix.metrics.statistics import Array, bootstrap, bootstrap_mean, estimate, share
from permix.metrics.text_stats import breaks, words_of
from permix.storage.files import read_json
from permix.types import Cell, CellKey, Estimate, ItemKey, Record, normalise, seed_from


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


Order = Literal["balanced", "written", "model"]

BLOCK = 500

TELLS = {
    "identifiability": "the persona is told by a classifier taught by its answers to single questions",
    "breaks": "answers in which the character is broken outright",
    "repetition": "of an answer's runs of four words, those said earlier in the interview",
    "echo": "of an answer's runs of three words, those of the question just put",
    "words": "words of an answer",
}

SHARES = ("identifiability", "breaks")


class Course(Record):
    """One measure over the turns. `slope` is its change a turn; `late_minus_early` that from the first half of the turns to the
    second. Intervals resample personas; there is none where every score is the same. `judge`: the label of the one whose
    scores they are, None of what needs no judge; `trusted`: whether it told personas apart, None where it was not tried.
    """

    name: str
    judge: str | None = None
    trusted: bool | None = None
    by_turn: tuple[Estimate, ...]
    overall: Estimate
    slope: Estimate
    late_minus_early: Estimate
    n_scored: int
    n_asked: int


class Drift(Record):
    """Interviews of P personas over `turns` turns. `slopes_from`: the first turn that slopes stand on.

    `order`: "balanced" (turn and question are told apart), "written" (all asked alike, so they are not), or "model" (a model
    asked, and what it asks late is part of the slope). `chance`, `length_only`, `permuted` belong to identifiability, which is
    missing where the run has no reference.
    """

    turns: int
    persona_ids: tuple[str, ...]
    order: Order
    slopes_from: int
    courses: tuple[Course, ...]
    chance: float
    length_only: Estimate | None
    permuted: Estimate | None
    reference: str | None
    n_answered: int
    n_asked: int
    n_cut_off: int

    def course(self, name: str) -> Course | None:
        return next((one for one in self.courses if one.name == name), None)


class ByJudge(NamedTuple):
    """What a judge of the run scored, and whether it told personas apart; None where it was not tried."""

    scores: Mapping[ItemKey, int | None]
    trusted: bool | None


class Talks(NamedTuple):
    """The records of a run's interviews: `cells[p][t]`, None where a turn is owed; `questions[p][t]` in words."""

    persona_ids: tuple[str, ...]
    persona_texts: tuple[str, ...]
    cells: tuple[tuple[Cell | None, ...], ...]
    questions: tuple[tuple[str, ...], ...]
    order: Order

    @property
    def answers(self) -> list[list[str | None]]:
        return [[cell.completion.text if cell and cell.completion else None for cell in row] for row in self.cells]

    @property
    def question_numbers(self) -> Questions:
        """question_P_T: a number for each question; one for all where an order says nothing about them."""
        shape = len(self.cells), len(self.cells[0])
        if self.order != "balanced":
            return np.zeros(shape, dtype=np.int64)
        numbers = {text: number for number, text in enumerate(dict.fromkeys(text for row in self.questions for text in row))}
        return np.array([[numbers[text] for text in row] for row in self.questions], dtype=np.int64)


def read_talks(run: Path) -> Talks:
    """DataError for what is no run of interviews, or when nobody has answered anything."""
    config, asked = read_json(run / "config.json"), read_json(run / "asked.json")
    if "turns_asked" not in asked:
        raise DataError(f"{run}: holds no interviews; they are made with permix fidelity --interview.turns")
    known, turns = read_answers(run).cells, config["interview"]["turns"]
    ids = tuple(asked["persona_ids"])
    names = {who: _padded(asked["turns_asked"][who], turns) for who in ids}
    cells = tuple(tuple(_answered(known.get(CellKey(who, one, 0))) for one in names[who]) for who in ids)
    if not any(cell for row in cells for cell in row):
        raise DataError(f"{run}: no turn of any interview was answered")
    said = wording(questions_asked(run))
    return Talks(
        persona_ids=ids,
        persona_texts=tuple(asked["persona_texts"][who] for who in ids),
        cells=cells,
        questions=tuple(tuple(said(one, who) for one in names[who]) for who in ids),
        order=_order(config),
    )


def _padded(names: Sequence[str], turns: int) -> list[str]:
    return [*names, *[""] * (turns - len(names))]


def _answered(cell: Cell | None) -> Cell | None:
    return cell if cell is not None and cell.completion is not None else None


def _order(config: Mapping[str, Any]) -> Order:
    if config["interviewer"]["name"] != "script":
        return "model"
    return "balanced" if config["interview"]["order"] == "balanced" else "written"


def measure_drift(run: Path, reference: Path | None, judges: Mapping[str, ByJudge] = MappingProxyType({})) -> Drift:
    """Every measure of the run at `run`; identifiability only with a reference of single questions. `judges`: by label."""
    talks, config = read_talks(run), read_json(run / "config.json")
    seed, resamples = config["seed"], config["resamples"]
    turns, first = len(talks.cells[0]), 2 if talks.order == "balanced" else 1
    named = dict(_texts(talks))
    heard = None
    if reference is not None:
        taught = read_taught(reference, talks.persona_ids, [text for row in talks.questions for text in row])
        heard = told(dict(zip(talks.persona_ids, talks.answers, strict=True)), taught, talks.persona_texts, seed)
        named = {"identifiability": heard.by_text} | named
    known = [cell for row in talks.cells for cell in row if cell is not None and cell.completion is not None]
    return Drift(
        turns=turns,
        persona_ids=talks.persona_ids,
        order=talks.order,
        slopes_from=first,
        courses=(
            *(course(name, value, talks.question_numbers, first, seed, resamples) for name, value in named.items()),
            *(_by_judge(label, one, talks, first, seed, resamples) for label, one in judges.items()),
        ),
        chance=1 / len(talks.persona_ids),
        length_only=None if heard is None else _overall(heard.by_length, seed, resamples),
        permuted=None if heard is None else _overall(heard.by_shuffled, seed, resamples),
        reference=None if reference is None else str(read_json(reference / "config.json").get("label") or reference.name),
        n_answered=len(known),
        n_asked=len(talks.persona_ids) * turns,
        n_cut_off=sum(cell.completion is not None and cell.completion.finish == "length" for cell in known),
    )


def course(name: str, value_P_T: Array, question_P_T: Questions, first: int, seed: int, resamples: int) -> Course:
    """One measure's curve, slope and late − early."""
    P, T = value_P_T.shape
    rng = np.random.default_rng(seed_from(seed, "drift", name))
    regressors = {"slope": turns_from(first, T), "late": late_from(first, T)}
    found = bootstrap(
        lambda counts_R_P: {key: turn_effect(value_P_T, question_P_T, one, counts_R_P) for key, one in regressors.items()},
        P, rng, resamples, BLOCK,
    )  # fmt: skip
    interval = share if name in SHARES else estimate
    n = int((~np.isnan(value_P_T[:, first - 1 :])).any(axis=1).sum())
    flat = len(np.unique(value_P_T[~np.isnan(value_P_T)])) < 2
    slope, late = (_estimate(float(one.value), one.replicates, n, flat) for one in (found["slope"], found["late"]))
    return Course(
        name=name,
        by_turn=tuple(bootstrap_mean(value_P, seed, resamples, interval) for value_P in value_P_T.T),
        overall=_overall(value_P_T, seed, resamples),
        slope=slope,
        late_minus_early=late,
        n_scored=int((~np.isnan(value_P_T)).sum()),
        n_asked=P * T,
    )


def _estimate(value: float, replicate_R: Array, n: int, flat: bool) -> Estimate:
    """Where every score is the same no resample differs, and an interval of no width would claim to know."""
    found = estimate(value, replicate_R, n)
    return Estimate(value=found.value, n=n) if flat else found


def _overall(value_P_T: Array, seed: int, resamples: int) -> Estimate:
    """Mean over personas of their own means."""
    rows = [row[~np.isnan(row)] for row in value_P_T]
    return bootstrap_mean(np.array([row.mean() if len(row) else np.nan for row in rows]), seed, resamples)


def _texts(talks: Talks) -> Iterator[tuple[str, Array]]:
    """What is counted in the answers alone."""
    answers = talks.answers
    rows = list(zip(answers, talks.questions, talks.persona_texts, strict=True))
    yield "breaks", _array([[None if a is None else float(bool(breaks(a, who))) for a in row] for row, _, who in rows])
    yield "repetition", _array([repeated(row) for row in answers])
    yield (
        "echo",
        _array([[None if a is None else echoed(a, q) for a, q in zip(row, asked, strict=True)] for row, asked, _ in rows]),
    )
    yield "words", _array([[None if a is None else float(len(words_of(a))) for a in row] for row in answers])


def _by_judge(label: str, one: ByJudge, talks: Talks, first: int, seed: int, resamples: int) -> Course:
    score_P_T = scores_by_turn(one.scores, talks.persona_ids, len(talks.cells[0]))
    found = course(f"judge {label}", score_P_T, talks.question_numbers, first, seed, resamples)
    return found.model_copy(update={"judge": label, "trusted": one.trusted})


def scores_by_turn(scores: Mapping[ItemKey, int | None], persona_ids: Sequence[str], turns: int) -> Array:
    """score_P_T: a judge's scores of the answers themselves (control "none"); NaN where there is none."""
    place = {who: p for p, who in enumerate(persona_ids)}
    found = np.full((len(persona_ids), turns), np.nan)
    for key, score in scores.items():
        turn = turn_of(key.question_id)
        if key.control == "none" and key.persona_id in place and turn is not None and turn <= turns and score is not None:
            found[place[key.persona_id], turn - 1] = score
    return found


def _array(rows: Sequence[Sequence[float | None]]) -> Array:
    return np.array(rows, dtype=np.float64)  # None becomes NaN
