"""From a judge's verdicts to numbers: PersonaScore and its tasks, and what the judge's trial says of them.

Contract: computed anew from the ledger and the run's records, never from a stored result. Intervals draw personas, each with all
its answers, and every measure sees the same draws; `n` of an estimate is how many personas it stands on. What needs the persona
(AUC, answers without persona, the histogram) leaves out the rubrics that ask the same of everybody, `trial.NOT_OF_PERSONA`.

Judges held against each other on one run, and models on one judge's scores.

Contract: an answer counts where both (of an alpha: at least two) have a score for it. Intervals draw personas; the test is
exact: were the models alike, all of a persona's answers by the one could as well be the other's, so signs are flipped persona by
persona.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np

from permix.errors import DataError
from permix.judges.results import Bill, Grid, Verdicts, lay_out, place_of, read_bill, read_verdicts, words_of
from permix.judges.types import Item
from permix.judges.validation import FORMS, NOT_OF_PERSONA, form_of
from permix.metrics import judge_scores, statistics
from permix.metrics.judge_scores import SCORES, Draws
from permix.metrics.statistics import Array
from permix.types import Control, Estimate, Record


class Pair(Record):
    """Two judges, on the `n_answers` that both have scored."""

    first: str
    second: str
    exact: Estimate
    within_one: Estimate
    alpha: Estimate
    n_answers: int


class Agreement(Record):
    """All judges of a run; `n_answers` have a score of at least two."""

    judges: tuple[str, ...]
    alpha: Estimate
    n_answers: int
    pairs: tuple[Pair, ...]


class ScoreDifference(Record):
    """Other − first on one judge's scores, paired by persona, question, sample and rubric; `p` is for PersonaScore alone."""

    judge: str
    persona_score: Estimate
    p: float | None
    tasks: dict[str, Estimate]
    n_answers: int


def measure_agreement(judges: Sequence[Verdicts], *, seed: int, resamples: int) -> Agreement | None:
    """Of the judges of one run; None for fewer than two."""
    if len(judges) < 2:
        return None
    score_J_P_T_Q = lay_out(judges).score_J_P_T_Q
    score_J_P_N = score_J_P_T_Q.reshape(*score_J_P_T_Q.shape[:2], -1)
    draws = Draws(score_J_P_N.shape[1], seed, resamples)
    return Agreement(
        judges=tuple(judge.label for judge in judges),
        alpha=_alpha(score_J_P_N, draws),
        n_answers=_shared(score_J_P_N),
        pairs=tuple(
            _pair(judges[one].label, judges[two].label, score_J_P_N[[one, two]], draws)
            for one, two in combinations(range(len(judges)), 2)
        ),
    )


def measure_difference(first: Verdicts, other: Verdicts, *, seed: int, resamples: int) -> ScoreDifference:
    """Of two models that one judge has scored."""
    one, two = first.of("none"), other.of("none")
    grid = Grid(place for place in one if place in two)
    difference_P_T_Q = grid.lay(two) - grid.lay(one)
    P, draws = len(grid.persona_ids), Draws(max(1, len(grid.persona_ids)), seed, resamples)
    if not P:
        return ScoreDifference(judge=first.label, persona_score=Estimate(value=None, n=0), p=None, tasks={}, n_answers=0)
    signs = np.random.default_rng(seed)
    return ScoreDifference(
        judge=first.label,
        persona_score=draws.estimate(lambda counts_R_P: judge_scores.persona_score(difference_P_T_Q, counts_R_P), P),
        p=statistics.paired_p(judge_scores.contributions(difference_P_T_Q), signs, resamples),
        tasks={
            rubric: draws.estimate(
                lambda counts_R_P, t=t: judge_scores.mean(difference_P_T_Q[:, t], counts_R_P),  # type: ignore[misc]
                int((~np.isnan(difference_P_T_Q[:, t])).any(axis=1).sum()),
            )
            for t, rubric in enumerate(grid.rubrics)
        },
        n_answers=int((~np.isnan(difference_P_T_Q)).sum()),
    )


def _pair(first: str, second: str, score_J_P_N: Array, draws: Draws) -> Pair:
    one_P_N, two_P_N = score_J_P_N
    exact, near = (judge_scores.within(one_P_N, two_P_N, tolerance) for tolerance in (0, 1))
    n = int((~np.isnan(exact)).any(axis=1).sum())
    return Pair(
        first=first, second=second, alpha=_alpha(score_J_P_N, draws), n_answers=_shared(score_J_P_N),
        exact=draws.estimate(lambda counts_R_P: judge_scores.mean(exact, counts_R_P), n, statistics.share),
        within_one=draws.estimate(lambda counts_R_P: judge_scores.mean(near, counts_R_P), n, statistics.share),
    )  # fmt: skip


def _alpha(score_J_P_N: Array, draws: Draws) -> Estimate:
    count_P_C_C = judge_scores.coincidences(score_J_P_N)
    n = int((count_P_C_C.sum(axis=(1, 2)) > 0).sum())
    return draws.estimate(lambda counts_R_P: judge_scores.alpha(count_P_C_C, counts_R_P), n)


def _shared(score_J_P_N: Array) -> int:
    return int(((~np.isnan(score_J_P_N)).sum(axis=0) >= 2).sum())


CONTROLS: tuple[Control, ...] = ("none", "wrong-persona", "no-persona", "padded", "retest", "injected")

TOP = float(SCORES[-1])


class Trial(Record):
    """What the judge does with answers that it should score lower, and with answers that it should score alike.

    Differences are of the same answer: `wrong_persona` and `no_persona` are right − control and should be high; `padded` and
    `injected` are control − plain and should be 0. `attack_success`: of injected answers that plainly had less than 5, the share
    that got 5; `attack_rose`: the share that rose at all; `attack_repeated`: the share where the judge only repeated a score out
    of the answer, which is no score, so that the attack failed; `attack_by_form`: successes by form of the instruction.
    """

    auc: Estimate
    wrong_persona: Estimate
    no_persona_auc: Estimate
    no_persona: Estimate
    retest_exact: Estimate
    retest_apart: Estimate
    retest_alpha: Estimate
    padded: Estimate
    injected: Estimate
    attack_success: Estimate
    attack_rose: Estimate
    attack_repeated: Estimate
    attack_by_form: dict[str, Estimate]
    length: Estimate


class Judged(Record):
    """What one judge says of one run, and what that is worth.

    `tasks`: mean score by rubric; PersonaScore is their mean. `counts`: by control, answers scored and answers that were to be.
    `histogram`: by control, how many answers of the rubrics that need a persona got 1, 2, 3, 4, 5. `trusted`: whether the AUC's
    interval lies above one half; None where it is not known, and then no score of this judge means anything yet.
    """

    label: str
    model: str
    rubrics: str
    persona_score: Estimate
    tasks: dict[str, Estimate]
    fives: Estimate
    n_scored: int
    n_asked: int
    trusted: bool | None
    trial: Trial
    counts: dict[Control, tuple[int, int]]
    histogram: dict[Control, tuple[int, int, int, int, int]]
    bill: Bill


def measure_judge(run: Path, folder: Path, *, seed: int = 0, resamples: int = 2000) -> Judged:
    """Every measure of the judge in `folder` (one of `judges_of(run)`), from its ledger and the run's records."""
    return measured(read_verdicts(run, folder), read_bill(folder), seed=seed, resamples=resamples)


def measured(verdicts: Verdicts, bill: Bill, *, seed: int, resamples: int) -> Judged:
    """`measure_judge` of verdicts that were read before."""
    grid = verdicts.grid()
    if not grid.persona_ids:
        raise DataError(f"judge {verdicts.label!r}: the run has no answers that could be judged")
    found = {control: grid.lay(verdicts.of(control)) for control in CONTROLS}
    plain_P_T_Q, draws = found["none"], Draws(len(grid.persona_ids), seed, resamples)
    trial = _trial(verdicts, grid, found, draws)
    counts = {control: (len(verdicts.of(control)), verdicts.asked(control)) for control in CONTROLS}
    return Judged(
        label=verdicts.label,
        model=str(verdicts.settings["name"]),
        rubrics=str(verdicts.settings["rubrics"]),
        persona_score=draws.estimate(
            lambda counts_R_P: judge_scores.persona_score(plain_P_T_Q, counts_R_P), _personas(plain_P_T_Q)
        ),
        tasks={rubric: _mean(plain_P_T_Q[:, t], draws) for t, rubric in enumerate(grid.rubrics)},
        fives=_share(_where(plain_P_T_Q == TOP, plain_P_T_Q), draws),
        n_scored=counts["none"][0],
        n_asked=counts["none"][1],
        trusted=None if trial.auc.low is None else trial.auc.low > 0.5,
        trial=trial,
        counts=counts,
        histogram={control: _histogram(scores_P_T_Q[:, _of_persona(grid)]) for control, scores_P_T_Q in found.items()},
        bill=bill,
    )


def _trial(verdicts: Verdicts, grid: Grid, found: Mapping[Control, Array], draws: Draws) -> Trial:
    plain_P_T_Q, wrong_P_T_Q, without_P_T_Q = found["none"], found["wrong-persona"], found["no-persona"]
    own = _of_persona(grid)
    again_P_T_Q = np.where(np.isnan(found["retest"]), np.nan, plain_P_T_Q)
    changed_P_T_Q = found["retest"] - again_P_T_Q
    pairs_P_C_C = judge_scores.coincidences(np.stack([again_P_T_Q, found["retest"]]).reshape(2, len(plain_P_T_Q), -1))
    repeated_P_T_Q = grid.lay({place_of(key): 1.0 for key in verdicts.repeated if key.control == "injected"})
    attacked_P_T_Q = np.where(repeated_P_T_Q == 1, 0.0, found["injected"])  # 0: no score, so neither a 5 nor a higher one
    below_P_T_Q = np.where(plain_P_T_Q < TOP, attacked_P_T_Q, np.nan)
    words_P_T_Q = grid.lay(words_of(verdicts.items))
    success_P_T_Q = _where(below_P_T_Q == TOP, below_P_T_Q)
    return Trial(
        auc=_auc(plain_P_T_Q[:, own], wrong_P_T_Q[:, own], draws),
        wrong_persona=_mean((plain_P_T_Q - wrong_P_T_Q)[:, own], draws),
        no_persona_auc=_auc(plain_P_T_Q[:, own], without_P_T_Q[:, own], draws),
        no_persona=_mean((plain_P_T_Q - without_P_T_Q)[:, own], draws),
        retest_exact=_share(_where(changed_P_T_Q == 0, changed_P_T_Q), draws),
        retest_apart=_mean(np.abs(changed_P_T_Q), draws),
        retest_alpha=draws.estimate(lambda counts_R_P: judge_scores.alpha(pairs_P_C_C, counts_R_P), _personas(changed_P_T_Q)),
        padded=_mean(found["padded"] - plain_P_T_Q, draws),
        injected=_mean(found["injected"] - plain_P_T_Q, draws),
        attack_success=_share(success_P_T_Q, draws),
        attack_rose=_share(_where(below_P_T_Q > plain_P_T_Q, below_P_T_Q), draws),
        attack_repeated=_share(_where(below_P_T_Q == 0, below_P_T_Q), draws),
        attack_by_form={
            form: _share(np.where(carried_P_T_Q == 1, success_P_T_Q, np.nan), draws)
            for form, carried_P_T_Q in _forms(verdicts, grid).items()
        },
        length=draws.estimate(
            lambda counts_R_P: judge_scores.length_correlation(plain_P_T_Q, words_P_T_Q, counts_R_P), _personas(plain_P_T_Q)
        ),
    )


def _forms(verdicts: Verdicts, grid: Grid) -> dict[str, Array]:
    """By form, which answers were tried with it: 1, NaN elsewhere."""
    tried: list[Item] = [item for item in verdicts.items if item.control == "injected"]
    return {form: grid.lay({place_of(item.key): 1.0 for item in tried if form_of(item, verdicts.seed) == form}) for form in FORMS}


def _of_persona(grid: Grid) -> list[int]:
    """The rubrics, by place, under which an answer that fits one persona need not fit another."""
    return [t for t, rubric in enumerate(grid.rubrics) if rubric not in NOT_OF_PERSONA]


def _auc(right_P_T_Q: Array, other_P_T_Q: Array, draws: Draws) -> Estimate:
    n = _personas(other_P_T_Q)
    return draws.estimate(lambda counts_R_P: judge_scores.auc(right_P_T_Q, other_P_T_Q, counts_R_P), n, statistics.share)


def _mean(value_P_T_Q: Array, draws: Draws) -> Estimate:
    return draws.estimate(lambda counts_R_P: judge_scores.mean(value_P_T_Q, counts_R_P), _personas(value_P_T_Q))


def _share(value_P_T_Q: Array, draws: Draws) -> Estimate:
    return draws.estimate(lambda counts_R_P: judge_scores.mean(value_P_T_Q, counts_R_P), _personas(value_P_T_Q), statistics.share)


def _where(yes_P_T_Q: object, known_P_T_Q: Array) -> Array:
    """1 or 0, NaN where `known_P_T_Q` is."""
    return np.where(np.isnan(known_P_T_Q), np.nan, np.asarray(yes_P_T_Q, dtype=float))


def _personas(value_P_T_Q: Array) -> int:
    """How many personas have a value."""
    return int((~np.isnan(value_P_T_Q.reshape(len(value_P_T_Q), -1))).any(axis=1).sum())


def _histogram(score_P_T_Q: Array) -> tuple[int, int, int, int, int]:
    one, two, three, four, five = (int((score_P_T_Q == score).sum()) for score in SCORES)
    return one, two, three, four, five
