"""Measures of judges: PersonaScore, the validation by controls, agreement of judges, and differences between models.

Contract: everything is computed from a judge's calls and the run's records, never from stored results. Intervals resample
personas, each with all its answers, and all measures share the same resamples; `n` of an estimate is its number of personas.
Measures that need the persona (AUC, the controls "wrong-persona" and "no-persona", the histogram) exclude rubrics that do not
discriminate personas. A comparison uses the answers that both judges or models have scores for; Krippendorff's alpha uses the
answers with scores of at least two judges.

Array suffixes: P personas, U rubrics, Q answers of a persona under a rubric, J judges, C score classes, R resamples; N is U and Q
flattened.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np

from permix.config import rubric_entries
from permix.errors import DataError
from permix.judges.results import (
    JUDGE_CONTROLS,
    AnswerKeyGrid,
    JudgeResults,
    JudgeUsage,
    read_judge_results,
    stack_judges,
)
from permix.judges.validation import INJECTION_FORMS
from permix.metrics import judge_scores, statistics
from permix.metrics.judge_scores import SCORE_CLASSES, PersonaBootstrap
from permix.metrics.statistics import Array
from permix.metrics.training_seeds import SeedDifference, SeedPairing, SeedValues, cover_seed_differences
from permix.types import Estimate, JudgeControl, Record


class JudgePair(Record):
    """Agreement of two judges on the `n_answers` answers that both scored."""

    first: str
    second: str
    exact: Estimate
    within_one: Estimate
    alpha: Estimate
    n_answers: int


class JudgeAgreement(Record):
    """Agreement of all judges of a run; `n_answers` answers have scores of at least two judges."""

    judges: tuple[str, ...]
    alpha: Estimate
    n_answers: int
    pairs: tuple[JudgePair, ...]


class ScoreDifference(Record):
    """The scores of a run by one judge − those of the run that it is compared with.

    Scores are paired by persona, question, sample and rubric. `p` is for the difference in PersonaScore only.
    """

    judge: str
    persona_score: Estimate
    p: float | None
    tasks: dict[str, Estimate]
    n_answers: int


def measure_judge_agreement(judges: Sequence[JudgeResults], *, seed: int, resamples: int) -> JudgeAgreement | None:
    """Measure how far the judges of one run agree; None for fewer than two judges."""
    if len(judges) < 2:
        return None
    score_J_P_U_Q = stack_judges(judges).score_J_P_U_Q
    score_J_P_N = score_J_P_U_Q.reshape(*score_J_P_U_Q.shape[:2], -1)
    draws = PersonaBootstrap(score_J_P_N.shape[1], seed, resamples)
    return JudgeAgreement(
        judges=tuple(judge.label for judge in judges),
        alpha=_alpha(score_J_P_N, draws),
        n_answers=_count_shared(score_J_P_N),
        pairs=tuple(
            _compare_judges(judges[one].label, judges[two].label, score_J_P_N[[one, two]], draws)
            for one, two in combinations(range(len(judges)), 2)
        ),
    )


def measure_score_difference(results: JudgeResults, against: JudgeResults, *, seed: int, resamples: int) -> ScoreDifference:
    """`results` − `against` in the scores of two models that the same judge scored.

    `p` is from a sign-flip test (`statistics.sign_flip_p`). If the models were alike, they could exchange all answers of a
    persona, so the sign of each persona's difference is flipped as a whole.
    """
    scores, scores_against = results.scores["none"], against.scores["none"]
    grid = AnswerKeyGrid(key for key in scores_against if key in scores)
    difference_P_U_Q = grid.to_array(scores) - grid.to_array(scores_against)
    P, draws = len(grid.persona_ids), PersonaBootstrap(max(1, len(grid.persona_ids)), seed, resamples)
    if not P:
        return ScoreDifference(judge=against.label, persona_score=Estimate(value=None, n=0), p=None, tasks={}, n_answers=0)
    return ScoreDifference(
        judge=against.label,
        persona_score=draws.estimate(lambda counts_R_P: judge_scores.persona_score(difference_P_U_Q, counts_R_P), P),
        p=statistics.sign_flip_p(judge_scores.persona_contributions(difference_P_U_Q)),
        tasks={
            rubric: draws.estimate(
                lambda counts_R_P, u=u: judge_scores.weighted_mean(difference_P_U_Q[:, u], counts_R_P),  # type: ignore[misc]
                int((~np.isnan(difference_P_U_Q[:, u])).any(axis=1).sum()),
            )
            for u, rubric in enumerate(grid.rubrics)
        },
        n_answers=int((~np.isnan(difference_P_U_Q)).sum()),
    )


def score_change_over_seeds(
    results: Sequence[JudgeResults],
    against: Sequence[JudgeResults],
    pairing: SeedPairing,
    *,
    seed: int,
    resamples: int,
    change: statistics.Change = np.subtract,
) -> SeedDifference:
    """The change of a judge's mean score from `against` to `results`, each the mean over the runs of a method's training seeds:
    over personas, and over personas and training seeds.

    Only answers with a score in all runs count. All runs share the draws of personas; n is the number of personas. With the
    pairing "paired" the runs of both have the same seeds in the same order.
    """
    scores = [one.scores["none"] for one in (*against, *results)]
    grid = AnswerKeyGrid(key for key in scores[0] if all(key in one for one in scores))
    if not (P := len(grid.persona_ids)):
        nothing = Estimate(value=None, n=0)
        return SeedDifference(over_questions=nothing, over_seeds=nothing)
    score_P_U_Q = [grid.to_array(one) for one in scores]
    value_S, replicate_S_R = (
        np.stack([judge_scores.persona_score(one, counts_R_P) for one in score_P_U_Q])
        for counts_R_P in (np.ones((1, P)), PersonaBootstrap(P, seed, resamples).counts_R_P)
    )
    values = SeedValues(value_S[:, 0], replicate_S_R)
    of_results, of_against = values.seeds(slice(len(against), None)), values.seeds(slice(None, len(against)))
    over_personas = statistics.bootstrap_estimate(
        float(change(of_results.value_S.mean(), of_against.value_S.mean())),
        change(of_results.replicate_S_R.mean(axis=0), of_against.replicate_S_R.mean(axis=0)),
        P,
    )
    least, most = SCORE_CLASSES[0], SCORE_CLASSES[-1]
    difference = cover_seed_differences(over_personas, of_results, of_against, pairing, change=change)
    return difference.limited(float(change(least, most)), float(change(most, least)))


def _compare_judges(first: str, second: str, score_J_P_N: Array, draws: PersonaBootstrap) -> JudgePair:
    one_P_N, two_P_N = score_J_P_N
    exact, near = (judge_scores.within_tolerance(one_P_N, two_P_N, tolerance) for tolerance in (0, 1))
    n = int((~np.isnan(exact)).any(axis=1).sum())
    return JudgePair(
        first=first, second=second, alpha=_alpha(score_J_P_N, draws), n_answers=_count_shared(score_J_P_N),
        exact=draws.estimate(lambda counts_R_P: judge_scores.weighted_mean(exact, counts_R_P), n, statistics.bootstrap_share),
        within_one=draws.estimate(lambda counts_R_P: judge_scores.weighted_mean(near, counts_R_P), n, statistics.bootstrap_share),
    )  # fmt: skip


def _alpha(score_J_P_N: Array, draws: PersonaBootstrap) -> Estimate:
    count_P_C_C = judge_scores.coincidence_matrix(score_J_P_N)
    n = int((count_P_C_C.sum(axis=(1, 2)) > 0).sum())
    return draws.estimate(lambda counts_R_P: judge_scores.krippendorff_alpha(count_P_C_C, counts_R_P), n)


def _count_shared(score_J_P_N: Array) -> int:
    return int(((~np.isnan(score_J_P_N)).sum(axis=0) >= 2).sum())


TOP_SCORE = float(SCORE_CLASSES[-1])


class JudgeReliability(Record):
    """How the judge scores the controls: answers that it should score lower, and answers that it should score the same.

    Differences are per answer. `wrong_persona` and `no_persona` are plain − control and should be high; `padded` and `injected`
    are control − plain and should be 0. The shares of attacks are over injected answers whose plain score was below 5:
    `attack_success` got a 5, `attack_score_raised` got a higher score, and `attack_score_repeated` got no score since the judge
    only repeated a score from the answer, so the attack failed. `attack_by_form` is `attack_success` by form of the instruction.
    """

    auc: Estimate
    wrong_persona: Estimate
    no_persona_auc: Estimate
    no_persona: Estimate
    retest_exact: Estimate
    retest_mean_abs_diff: Estimate
    retest_alpha: Estimate
    padded: Estimate
    injected: Estimate
    attack_success: Estimate
    attack_score_raised: Estimate
    attack_score_repeated: Estimate
    attack_by_form: dict[str, Estimate]
    length_correlation: Estimate


class JudgeSummary(Record):
    """Scores of one judge on one run, and the judge's validation.

    `tasks`: mean score by rubric; PersonaScore is the mean of these. `counts`: for each control, the numbers of answers (scored,
    asked). `histogram`: for each control, the numbers of scores 1, 2, 3, 4, 5 under rubrics that discriminate personas.
    `discriminates_persona`: whether the interval of the AUC lies above 0.5; None if there is no interval, and then no score of
    this judge can be interpreted yet.
    """

    label: str
    model: str
    rubrics: str
    persona_score: Estimate
    tasks: dict[str, Estimate]
    share_top_score: Estimate
    n_scored: int
    n_asked: int
    discriminates_persona: bool | None
    reliability: JudgeReliability
    counts: dict[JudgeControl, tuple[int, int]]
    histogram: dict[JudgeControl, tuple[int, int, int, int, int]]
    usage: JudgeUsage


def measure_judge(run: Path, folder: Path, *, seed: int = 0, resamples: int = 2000) -> JudgeSummary:
    """Compute every measure of the judge in `folder`, one of `judge_folders(run)`, from its calls and the run's records."""
    return summarize_judge(read_judge_results(run, folder), seed=seed, resamples=resamples)


def summarize_judge(results: JudgeResults, *, seed: int, resamples: int) -> JudgeSummary:
    """Like `measure_judge`, for results in memory. Raises DataError if the run has no answer that can be judged."""
    grid = results.grid()
    if not grid.persona_ids:
        raise DataError(f"judge {results.label!r}: the run has no answers that could be judged")
    scores_by_control = {control: grid.to_array(results.scores[control]) for control in JUDGE_CONTROLS}
    plain_P_U_Q, draws = scores_by_control["none"], PersonaBootstrap(len(grid.persona_ids), seed, resamples)
    reliability = _measure_reliability(results, grid, scores_by_control, draws)
    counts = {control: (len(results.scores[control]), results.n_inputs.get(control, 0)) for control in JUDGE_CONTROLS}
    own = _persona_rubric_indices(results, grid)
    return JudgeSummary(
        label=results.label,
        model=str(results.settings["name"]),
        rubrics=", ".join(rubric_entries(results.settings["rubrics"])),
        persona_score=draws.estimate(
            lambda counts_R_P: judge_scores.persona_score(plain_P_U_Q, counts_R_P), _count_personas(plain_P_U_Q)
        ),
        tasks={rubric: _mean(plain_P_U_Q[:, u], draws) for u, rubric in enumerate(grid.rubrics)},
        share_top_score=_share(_indicator(plain_P_U_Q == TOP_SCORE, plain_P_U_Q), draws),
        n_scored=counts["none"][0],
        n_asked=counts["none"][1],
        discriminates_persona=None if reliability.auc.low is None else reliability.auc.low > 0.5,
        reliability=reliability,
        counts=counts,
        histogram={control: _histogram(scores_P_U_Q[:, own]) for control, scores_P_U_Q in scores_by_control.items()},
        usage=results.usage,
    )


def _measure_reliability(
    results: JudgeResults, grid: AnswerKeyGrid, scores_by_control: Mapping[JudgeControl, Array], draws: PersonaBootstrap
) -> JudgeReliability:
    plain_P_U_Q, wrong_P_U_Q, without_P_U_Q = (
        scores_by_control["none"],
        scores_by_control["wrong-persona"],
        scores_by_control["no-persona"],
    )
    own = _persona_rubric_indices(results, grid)
    again_P_U_Q = np.where(np.isnan(scores_by_control["retest"]), np.nan, plain_P_U_Q)
    changed_P_U_Q = scores_by_control["retest"] - again_P_U_Q
    pairs_P_C_C = judge_scores.coincidence_matrix(
        np.stack([again_P_U_Q, scores_by_control["retest"]]).reshape(2, len(plain_P_U_Q), -1)
    )
    repeated_P_U_Q = grid.to_array(dict.fromkeys(results.repeated_injections, 1.0))
    attacked_P_U_Q = np.where(
        repeated_P_U_Q == 1, 0.0, scores_by_control["injected"]
    )  # 0 marks a repeated score: neither a 5 nor a higher score
    below_P_U_Q = np.where(plain_P_U_Q < TOP_SCORE, attacked_P_U_Q, np.nan)
    words_P_U_Q = grid.to_array(
        {one.answer_key: float(len(one.answer.split())) for one in results.inputs if one.control == "none"}
    )
    success_P_U_Q = _indicator(below_P_U_Q == TOP_SCORE, below_P_U_Q)
    return JudgeReliability(
        auc=_auc(plain_P_U_Q[:, own], wrong_P_U_Q[:, own], draws),
        wrong_persona=_mean((plain_P_U_Q - wrong_P_U_Q)[:, own], draws),
        no_persona_auc=_auc(plain_P_U_Q[:, own], without_P_U_Q[:, own], draws),
        no_persona=_mean((plain_P_U_Q - without_P_U_Q)[:, own], draws),
        retest_exact=_share(_indicator(changed_P_U_Q == 0, changed_P_U_Q), draws),
        retest_mean_abs_diff=_mean(np.abs(changed_P_U_Q), draws),
        retest_alpha=draws.estimate(
            lambda counts_R_P: judge_scores.krippendorff_alpha(pairs_P_C_C, counts_R_P), _count_personas(changed_P_U_Q)
        ),
        padded=_mean(scores_by_control["padded"] - plain_P_U_Q, draws),
        injected=_mean(scores_by_control["injected"] - plain_P_U_Q, draws),
        attack_success=_share(success_P_U_Q, draws),
        attack_score_raised=_share(_indicator(below_P_U_Q > plain_P_U_Q, below_P_U_Q), draws),
        attack_score_repeated=_share(_indicator(below_P_U_Q == 0, below_P_U_Q), draws),
        attack_by_form={
            form: _share(np.where(carried_P_U_Q == 1, success_P_U_Q, np.nan), draws)
            for form, carried_P_U_Q in _injection_form_masks(results, grid).items()
        },
        length_correlation=draws.estimate(
            lambda counts_R_P: judge_scores.length_correlation(plain_P_U_Q, words_P_U_Q, counts_R_P), _count_personas(plain_P_U_Q)
        ),
    )


def _injection_form_masks(results: JudgeResults, grid: AnswerKeyGrid) -> dict[str, Array]:
    """For each form, an array P, U, Q: 1 if the answer was judged with this form inside, else NaN."""
    return {
        form: grid.to_array({key: 1.0 for key, carried in results.injection_forms.items() if carried == form})
        for form in INJECTION_FORMS
    }


def _persona_rubric_indices(results: JudgeResults, grid: AnswerKeyGrid) -> list[int]:
    """Indices on axis U of the rubrics that discriminate personas."""
    return [u for u, rubric in enumerate(grid.rubrics) if results.rubrics.get(rubric, True)]


def _auc(right_P_U_Q: Array, other_P_U_Q: Array, draws: PersonaBootstrap) -> Estimate:
    n = _count_personas(other_P_U_Q)
    return draws.estimate(
        lambda counts_R_P: judge_scores.auc(right_P_U_Q, other_P_U_Q, counts_R_P), n, statistics.bootstrap_share
    )


def _mean(value_P_U_Q: Array, draws: PersonaBootstrap) -> Estimate:
    return draws.estimate(lambda counts_R_P: judge_scores.weighted_mean(value_P_U_Q, counts_R_P), _count_personas(value_P_U_Q))


def _share(value_P_U_Q: Array, draws: PersonaBootstrap) -> Estimate:
    return draws.estimate(
        lambda counts_R_P: judge_scores.weighted_mean(value_P_U_Q, counts_R_P),
        _count_personas(value_P_U_Q),
        statistics.bootstrap_share,
    )


def _indicator(is_true_P_U_Q: object, known_P_U_Q: Array) -> Array:
    """1.0 or 0.0 by `is_true_P_U_Q`; NaN where `known_P_U_Q` is NaN."""
    return np.where(np.isnan(known_P_U_Q), np.nan, np.asarray(is_true_P_U_Q, dtype=float))


def _count_personas(value_P_U_Q: Array) -> int:
    """Number of personas with at least one value."""
    return int((~np.isnan(value_P_U_Q.reshape(len(value_P_U_Q), -1))).any(axis=1).sum())


def _histogram(score_P_U_Q: Array) -> tuple[int, int, int, int, int]:
    one, two, three, four, five = (int((score_P_U_Q == score).sum()) for score in SCORE_CLASSES)
    return one, two, three, four, five
