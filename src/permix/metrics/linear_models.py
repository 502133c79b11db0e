"""Linear models: effects of templates, contexts and personas on accuracy, and drift over the turns of an interview.

Contract: pure functions; no files, no global random state. NaN is no score: left out, never zero.
Axes: W templates, X contexts, P personas, Q questions, S samples, I turns, R resamples of personas.

*Templates.* Does the persona change the accuracy, or the template that brings it into the prompt? Templates and personas are
fixed effects and questions are random. So an effect is compared with its variation over questions, and every interval is over
questions. The standard deviations are variance components of a three-way analysis of variance, on the questions with a score
under every template and persona. Other questions count only in each template's own row.

*Contexts.* How does the context in which a persona is asked change the accuracy? Each context is measured by itself, and against
the first one by the paired differences of the same personas and questions.

*Drift.* How does a measure change with the turn? Turn and question are separated by least squares on
value_pi = a_p + c_q(p,i) + b z_i + noise: a level for each persona, a level for each question that all personas share, and the
effect b of the turn. `question_P_I` numbers the question of each persona and turn. In a balanced order each question is at every
turn equally often; then the c cancel, and b is the mean of the personas' own slopes. If all questions have the same number, b is
the effect of turn and question together.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from permix.metrics import statistics
from permix.metrics.measures import MeasureRecord, select_measures
from permix.metrics.stability import resamples_per_block, summarize_stability
from permix.metrics.statistics import TIE_TOLERANCE, Array
from permix.types import Estimate, Record


class TemplateSummary(MeasureRecord):
    """The stability of one template by itself; measures as in `StabilitySummary`."""

    VIEW = "templates"

    id: str
    text: str
    measures: dict[str, Estimate]


class TemplateEffects(Record):
    """`persona_sd`: standard deviation of personas' true accuracies, averaged over templates. `template_sd`: of templates' true
    accuracies, averaged over personas. `persona_template_sd`: of their interaction. n counts questions complete in all templates.
    """

    templates: tuple[TemplateSummary, ...]
    persona_sd: Estimate
    template_sd: Estimate
    persona_template_sd: Estimate


def summarize_template_effects(
    correct_W_P_Q_S: ArrayLike, baseline_Q_S: ArrayLike, template_texts: dict[str, str], *, seed: int = 0, resamples: int = 2000
) -> TemplateEffects:
    """Stability under each template, and the variance components.

    Scores lie in [0, 1]; NaN is no score. `template_texts` has the text of each template by id, in the order of axis W. Raises
    ValueError as `summarize_stability` does.
    """
    correct = np.asarray(correct_W_P_Q_S, dtype=float)
    summaries = [summarize_stability(one_P_Q_S, baseline_Q_S, seed=seed, resamples=resamples) for one_P_Q_S in correct]
    rows = [
        TemplateSummary(id=id, text=text, measures=select_measures("templates", one.measures))
        for (id, text), one in zip(template_texts.items(), summaries, strict=True)
    ]
    return TemplateEffects(templates=tuple(rows), **variance_components(statistics.mean_over_samples(correct))._asdict())


class VarianceComponents(NamedTuple):
    persona_sd: Estimate
    template_sd: Estimate
    persona_template_sd: Estimate


def variance_components(mean_W_P_Q: Array) -> VarianceComponents:
    """The components of mean_W_P_Q with their 95 % intervals.

    No value for a factor with one level, or with fewer than two complete questions.

    For x_wpq = μ + b_w + a_p + (ab)_wp + q + (bq) + (aq) + e with random questions, the error of a mean square of effects is the
    mean square of their interaction with questions: sd_w² = (MS_w − MS_wq) / (P Q), sd_p² = (MS_p − MS_pq) / (W Q),
    sd_wp² = (MS_wp − MS_wpq) / Q.
    """
    whole_W_P_Q = mean_W_P_Q[:, :, ~np.isnan(mean_W_P_Q).any(axis=(0, 1))]
    W, P, Q = whole_W_P_Q.shape
    by_question = {
        "persona_sd": (whole_W_P_Q.mean(axis=0) - whole_W_P_Q.mean(axis=(0, 1)), P - 1, W),
        "template_sd": (whole_W_P_Q.mean(axis=1) - whole_W_P_Q.mean(axis=(0, 1)), W - 1, P),
        "persona_template_sd": (_interaction(whole_W_P_Q).reshape(W * P, Q), (W - 1) * (P - 1), 1),
    }
    return VarianceComponents(**{name: _variance_component(*one) for name, one in by_question.items()})


def _interaction(complete_W_P_Q: Array) -> Array:
    """The interaction of template and persona on each question [W, P, Q]: x_wpq − x_w.q − x_.pq + x_..q."""
    means = [complete_W_P_Q.mean(axis=axis, keepdims=True) for axis in (1, 0, (0, 1))]
    return np.asarray(complete_W_P_Q - means[0] - means[1] + means[2])


def _variance_component(effect_N_Q: Array, df: int, scores_per_effect: int) -> Estimate:
    """`effect_N_Q`: the effect of each level on each question, a mean of `scores_per_effect` scores; adds up to 0 over levels."""
    Q = effect_N_Q.shape[1]
    if df < 1 or Q < 2:
        return Estimate(value=None, n=Q)
    effect_N = effect_N_Q.mean(axis=1)
    square = scores_per_effect * Q * float((effect_N**2).sum()) / df
    error = scores_per_effect * float(((effect_N_Q - effect_N[:, None]) ** 2).sum()) / (df * (Q - 1))
    return statistics.variance_component_sd(square, error, df, df * (Q - 1), scores_per_effect * Q)


def split_by_template(correct_P_Q_S: Array, templates: Sequence[str]) -> Array:
    """correct_W_P_Q_S from scores whose axis S holds the samples of the first template, then of the second, and so on."""
    P, Q, _ = correct_P_Q_S.shape
    return np.moveaxis(correct_P_Q_S.reshape(P, Q, len(templates), -1), 2, 0)


class ContextSummary(MeasureRecord):
    """The stability in one context by itself; measures as in `StabilitySummary`.

    `mean_minus_first`: mean accuracy over personas minus that in the run's first context, on the personas and questions with a
    score in both; without a value for the first context itself. `n_scored` and `n_asked` count cells of personas.
    """

    VIEW = "contexts"

    id: str
    measures: dict[str, Estimate]
    mean_minus_first: Estimate
    n_scored: int
    n_asked: int


def summarize_contexts(
    correct_X_P_Q_S: ArrayLike, baseline_Q_S: ArrayLike, contexts: Sequence[str], *, seed: int = 0, resamples: int = 2000
) -> tuple[ContextSummary, ...]:
    """Stability in each context, and its difference to the first one. Scores lie in [0, 1]; NaN is no score.

    Raises ValueError as `summarize_stability` does.
    """
    correct = np.asarray(correct_X_P_Q_S, dtype=float)
    mean_X_P_Q = statistics.mean_over_samples(correct)
    rows = []
    for place, (id, one_P_Q_S) in enumerate(zip(contexts, correct, strict=True)):
        summary = summarize_stability(one_P_Q_S, baseline_Q_S, seed=seed, resamples=resamples)
        difference = Estimate(value=None, n=0)
        if place:
            difference = paired_difference(mean_X_P_Q[0], mean_X_P_Q[place], seed=seed, resamples=resamples)
        rows.append(
            ContextSummary(
                id=id,
                measures=select_measures("contexts", summary.measures),
                mean_minus_first=difference,
                n_scored=summary.n_scored,
                n_asked=summary.n_asked,
            )
        )
    return tuple(rows)


def paired_difference(first_P_Q: Array, other_P_Q: Array, *, seed: int, resamples: int) -> Estimate:
    """Mean over personas of their mean difference other − first over questions, with its 95 % interval over questions.

    Only cells with both scores count; n is the number of questions with such a cell. No value without any.
    """
    difference_P_Q = other_P_Q - first_P_Q
    paired_P_Q = difference_P_Q[~np.isnan(difference_P_Q).all(axis=1)]
    if not len(paired_P_Q):
        return Estimate(value=None, n=0)

    def mean(counts_R_Q: Array) -> dict[str, Array]:
        return {"mean": statistics.weighted_question_mean(paired_P_Q, counts_R_Q).mean(axis=1)}

    rng, block_size = np.random.default_rng(seed), resamples_per_block(paired_P_Q)
    found = statistics.bootstrap(mean, paired_P_Q.shape[1], rng, resamples, block_size)["mean"]
    return statistics.bootstrap_paired(float(found.value), found.replicates, statistics.mean_over_samples(paired_P_Q.T))


def split_by_context(correct_P_Q_S: Array, n_templates: int, contexts: Sequence[str]) -> Array:
    """correct_X_P_Q_S from scores whose axis S holds, for each template in turn, the samples of each context in turn."""
    P, Q, _ = correct_P_Q_S.shape
    by_context_P_Q_W_X_S = correct_P_Q_S.reshape(P, Q, n_templates, len(contexts), -1)
    return np.moveaxis(by_context_P_Q_W_X_S, 3, 0).reshape(len(contexts), P, Q, -1)


QuestionIndex = NDArray[np.int64]


def turn_effect(value_P_I: Array, question_P_I: QuestionIndex, regressor_I: Array, counts_R_P: Array) -> Array:
    """b of the drift model for each row of persona weights, value_R; turns where the regressor z is NaN are left out.

    Persona levels are removed by centring each persona on its scored turns, question levels by the Schur complement of the normal
    equations: b = (S_zx − S_zq S_qq⁺ S_qx) / (S_zz − S_zq S_qq⁺ S_qz). NaN where questions and turns are confounded, as when all
    personas of a resample got the questions in the same order.
    """
    known_P_I = ~np.isnan(value_P_I) & ~np.isnan(regressor_I)
    asked_P_I_Q = np.eye(int(question_P_I.max()) + 1)[question_P_I]
    regressor_P_I_1 = np.broadcast_to(np.nan_to_num(regressor_I), value_P_I.shape)[:, :, None]
    design_P_I_D = _center_by_persona(np.concatenate([asked_P_I_Q, regressor_P_I_1], axis=2), known_P_I)
    value_P_I_1 = _center_by_persona(np.nan_to_num(value_P_I)[:, :, None], known_P_I)

    normal_R_D_D = np.tensordot(counts_R_P, design_P_I_D.transpose(0, 2, 1) @ design_P_I_D, axes=1)
    moment_R_D = np.tensordot(counts_R_P, design_P_I_D.transpose(0, 2, 1) @ value_P_I_1, axes=1)[:, :, 0]
    inverse_R_Q_Q = np.linalg.pinv(normal_R_D_D[:, :-1, :-1], rcond=TIE_TOLERANCE, hermitian=True)
    explained_R_Q = np.einsum("rq,rqk->rk", normal_R_D_D[:, -1, :-1], inverse_R_Q_Q)
    own_variation_R = normal_R_D_D[:, -1, -1] - (explained_R_Q * normal_R_D_D[:, :-1, -1]).sum(axis=1)
    own_covariation_R = moment_R_D[:, -1] - (explained_R_Q * moment_R_D[:, :-1]).sum(axis=1)
    # Where little variation of the regressor is left after removing the questions, rounding errors would decide the value.
    is_identified_R = own_variation_R > 1e-6 * np.maximum(normal_R_D_D[:, -1, -1], TIE_TOLERANCE)
    return np.asarray(
        np.divide(own_covariation_R, own_variation_R, out=np.full(len(own_variation_R), np.nan), where=is_identified_R)
    )


def _center_by_persona(value_P_I_D: Array, known_P_I: NDArray[np.bool_]) -> Array:
    """Values minus each persona's mean over its known turns; 0 where the value is unknown."""
    known_P_I_1 = known_P_I[:, :, None]
    count_P_1_1 = np.maximum(known_P_I_1.sum(axis=1, keepdims=True), 1)
    mean_P_1_D = (value_P_I_D * known_P_I_1).sum(axis=1, keepdims=True) / count_P_1_1
    return np.asarray((value_P_I_D - mean_P_1_D) * known_P_I_1)


def slope_regressor(first_turn: int, n_turns: int) -> Array:
    """The regressor of a slope: the turn's number, NaN before turn `first_turn`."""
    turn_I = np.arange(1, n_turns + 1, dtype=float)
    return np.where(turn_I < first_turn, np.nan, turn_I)


def late_regressor(first_turn: int, n_turns: int) -> Array:
    """The regressor of late − early: 0 in the first half of the turns from `first_turn` on, 1 in the second, NaN elsewhere."""
    place_I = np.arange(1, n_turns + 1) - first_turn
    half = (n_turns - first_turn + 1) // 2
    early_I, late_I = (place_I >= 0) & (place_I < half), place_I >= n_turns - first_turn + 1 - half
    return np.where(late_I, 1.0, np.where(early_I, 0.0, np.nan))
