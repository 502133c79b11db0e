"""From a judge's verdicts to numbers: PersonaScore and its tasks, and what the judge's trial says of them.

Contract: computed anew from the ledger and the run's records, never from a stored result. Intervals draw personas, each with all
its answers, and every measure sees the same draws; `n` of an estimate is how many personas it stands on. What needs the persona
(AUC, answers without persona, the histogram) leaves out the rubrics that ask the same of everybody, `trial.NOT_OF_PERSONA`.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from permix.errors import DataError
from permix.evals import stats
from permix.evals.stats import Array
from permix.judging import agreement, scores
from permix.judging.base import Control, Item
from permix.judging.injections import FORMS, form_of
from permix.judging.scores import SCORES, Draws
from permix.judging.trial import NOT_OF_PERSONA
from permix.judging.verdicts import Bill, Grid, Verdicts, place_of, read_bill, read_verdicts, words_of
from permix.types import Estimate, Record

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
        persona_score=draws.estimate(lambda counts_R_P: scores.persona_score(plain_P_T_Q, counts_R_P), _personas(plain_P_T_Q)),
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
    pairs_P_C_C = agreement.coincidences(np.stack([again_P_T_Q, found["retest"]]).reshape(2, len(plain_P_T_Q), -1))
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
        retest_alpha=draws.estimate(lambda counts_R_P: agreement.alpha(pairs_P_C_C, counts_R_P), _personas(changed_P_T_Q)),
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
            lambda counts_R_P: scores.length_correlation(plain_P_T_Q, words_P_T_Q, counts_R_P), _personas(plain_P_T_Q)
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
    return draws.estimate(lambda counts_R_P: scores.auc(right_P_T_Q, other_P_T_Q, counts_R_P), n, stats.share)


def _mean(value_P_T_Q: Array, draws: Draws) -> Estimate:
    return draws.estimate(lambda counts_R_P: scores.mean(value_P_T_Q, counts_R_P), _personas(value_P_T_Q))


def _share(value_P_T_Q: Array, draws: Draws) -> Estimate:
    return draws.estimate(lambda counts_R_P: scores.mean(value_P_T_Q, counts_R_P), _personas(value_P_T_Q), stats.share)


def _where(yes_P_T_Q: object, known_P_T_Q: Array) -> Array:
    """1 or 0, NaN where `known_P_T_Q` is."""
    return np.where(np.isnan(known_P_T_Q), np.nan, np.asarray(yes_P_T_Q, dtype=float))


def _personas(value_P_T_Q: Array) -> int:
    """How many personas have a value."""
    return int((~np.isnan(value_P_T_Q.reshape(len(value_P_T_Q), -1))).any(axis=1).sum())


def _histogram(score_P_T_Q: Array) -> tuple[int, int, int, int, int]:
    one, two, three, four, five = (int((score_P_T_Q == score).sum()) for score in SCORES)
    return one, two, three, four, five
