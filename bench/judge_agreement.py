"""How the scores of a judge agree with identifiability, over judged runs of open-ended questions.

    python -m bench.judge_agreement --judge qwen-1.5b --reference runs/base-long runs/base runs/rlvr runs/permix

The runs are for example those of a base model and of the models trained from it. One classifier names the persona of every judged
answer. It is trained on the answers of the run `--reference` (the base model's) to questions that no run judges, so that all
models are measured by the same classifier. Intervals resample personas. One JSON line a figure:

    identifiability, score      of each run, and their differences from the first run
    score_told_minus_missed     the mean score of the answers whose persona was named less that of the others, within a run and
                                persona; auc_told_missed: how often the former is above the latter, over pairs within a run
    persona_correlation         Pearson's correlation, over personas and runs, of the share of answers that were named and the
    mean
                                score, after subtracting each run's mean
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bench.figures import show
from permix.judges.results import read_judge_inputs, read_judge_results
from permix.judges.runner import judge_folder
from permix.judges.types import JudgeInput
from permix.metrics.judge_scores import PersonaBootstrap, PersonaMeasure, auc, weighted_mean
from permix.metrics.persona_classifier import fit_persona_classifier
from permix.metrics.statistics import Array
from permix.storage.files import read_json


class Judged(NamedTuple):
    """By persona, run and question: the judge's score, and 1 if the classifier named the persona, else 0; NaN where unknown."""

    names: tuple[str, ...]
    score_P_M_Q: Array
    named_P_M_Q: Array


def read_judged(runs: Sequence[Path], judge: str, reference: Path) -> Judged:
    """Read the judge's scores, train the classifier on the reference run, and let it name the persona of each judged answer."""
    inputs_by_run = [_judged_answers(run) for run in runs]
    personas, questions = (sorted({key[axis] for inputs in inputs_by_run for key in inputs}) for axis in (0, 1))
    train = [item for key, item in _judged_answers(reference).items() if key[1] not in questions and key[0] in personas]
    texts = sorted({item.persona for item in train})
    classifier = fit_persona_classifier([item.answer for item in train], [item.persona_id for item in train], texts)
    shape = len(personas), len(runs), len(questions)
    score_P_M_Q, named_P_M_Q = np.full(shape, np.nan), np.full(shape, np.nan)
    for m, (run, inputs) in enumerate(zip(runs, inputs_by_run, strict=True)):
        predicted = dict(zip(inputs, classifier.predict([item.answer for item in inputs.values()]), strict=True))
        scores = read_judge_results(run, judge_folder(run, judge)).scores["none"]
        for (persona, question), item in inputs.items():
            place = personas.index(persona), m, questions.index(question)
            named_P_M_Q[place] = predicted[persona, question] == persona
            score = scores.get(item.answer_key)
            score_P_M_Q[place] = np.nan if score is None else score
    return Judged(tuple(_label(run) for run in runs), score_P_M_Q, named_P_M_Q)


def _judged_answers(run: Path) -> dict[tuple[str, str], JudgeInput]:
    return {(item.persona_id, item.question_id): item for item in read_judge_inputs(run) if item.control == "none"}


def _label(run: Path) -> str:
    return str(read_json(run / "config.json").get("label") or run.name)


def report(judged: Judged, draws: PersonaBootstrap) -> None:
    """Print all figures."""
    names, score_P_M_Q, named_P_M_Q = judged
    for figure, value_P_M_Q in (("identifiability", named_P_M_Q), ("score", score_P_M_Q)):
        for m, name in enumerate(names):
            _show(figure, lambda counts, x=value_P_M_Q[:, m]: weighted_mean(x, counts), draws, run=name)  # type: ignore[misc]
            if m:
                change = value_P_M_Q[:, m] - value_P_M_Q[:, 0]
                _show(f"{figure}_difference", lambda counts, x=change: weighted_mean(x, counts), draws, run=name, to=names[0])  # type: ignore[misc]
    score_if_named_P_M_Q, score_if_missed_P_M_Q = (np.where(named_P_M_Q == named, score_P_M_Q, np.nan) for named in (1, 0))
    _show("auc_told_missed", lambda counts: auc(score_if_named_P_M_Q, score_if_missed_P_M_Q, counts), draws)
    centred_P_M_Q = score_P_M_Q - np.nanmean(score_P_M_Q, axis=2, keepdims=True)
    centred = [np.where(named_P_M_Q == named, centred_P_M_Q, np.nan) for named in (1, 0)]
    _show("score_told_minus_missed", lambda counts: weighted_mean(centred[0], counts) - weighted_mean(centred[1], counts), draws)
    share_P_M, level_P_M = (np.nanmean(value_P_M_Q, axis=2) for value_P_M_Q in (named_P_M_Q, score_P_M_Q))
    _show("persona_correlation", lambda counts: correlation(share_P_M, level_P_M, counts), draws)


def correlation(x_P_M: Array, y_P_M: Array, counts_R_P: Array) -> Array:
    """Return Pearson's correlation over personas and runs in each resample [R], after subtracting each run's mean over personas.

    `counts_R_P` is how often a resample draws a persona. The correlation is NaN where a side does not vary.
    """
    x_R_P_M, y_R_P_M = (value - _mean_over_personas(value, counts_R_P)[:, None, :] for value in (x_P_M[None], y_P_M[None]))
    weight_R_P_1 = counts_R_P[:, :, None]
    products = x_R_P_M * y_R_P_M, x_R_P_M**2, y_R_P_M**2
    covariance_R, x_variance_R, y_variance_R = ((weight_R_P_1 * product).sum(axis=(1, 2)) for product in products)
    scale_R = x_variance_R * y_variance_R
    return np.asarray(np.divide(covariance_R, np.sqrt(scale_R), out=np.full(len(scale_R), np.nan), where=scale_R > 1e-18))


def _mean_over_personas(value_1_P_M: Array, counts_R_P: Array) -> Array:
    return np.asarray(np.einsum("rp,pm->rm", counts_R_P, value_1_P_M[0]) / counts_R_P.sum(axis=1, keepdims=True))


def _show(figure: str, measure: PersonaMeasure, draws: PersonaBootstrap, **settings: object) -> None:
    estimate = draws.estimate(measure, draws.counts_R_P.shape[1])
    low, high = (None if end is None else round(end, 3) for end in (estimate.low, estimate.high))
    show(figure, float("nan") if estimate.value is None else estimate.value, low=low, high=high, personas=estimate.n, **settings)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="judged fidelity runs of the same personas and questions")
    parser.add_argument("--judge", required=True, help="the judge's label")
    parser.add_argument(
        "--reference", required=True, type=Path, help="a run with other questions, on which the classifier is trained"
    )
    parser.add_argument("--seed", type=int, default=0)
    return parser


def main() -> None:
    options = parser().parse_args()
    judged = read_judged(options.runs, options.judge, options.reference)
    report(judged, PersonaBootstrap(len(judged.score_P_M_Q), options.seed, 2000))


if __name__ == "__main__":
    main()
