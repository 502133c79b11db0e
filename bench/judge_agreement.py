"""Do identifiability and a judge agree? Over judged runs of open-ended questions, such as a base model's and its trained ones'.

One classifier is trained on the answers of `--reference` (the base model's) to the questions that are judged nowhere, so no
checkpoint brings its own ruler, and names the persona of every judged answer. Intervals draw personas. One JSON line a figure:

    identifiability, score      of each run; and their differences to the first
    score_told_minus_missed     mean score of the answers whose persona was told less that of the others, over all runs, within
                                a run and persona; and auc_told_missed, over pairs within a run
    persona_correlation         Pearson's of a persona's share told and mean score, over personas and runs, run means taken off

    python -m bench.judge_agreement --judge qwen-1.5b --reference runs/base-long runs/base runs/rlvr runs/permix
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
    """By persona, run and question: what the judge gave, and whether the classifier told the persona; NaN where unknown."""

    names: tuple[str, ...]
    score_P_M_Q: Array
    told_P_M_Q: Array


def read(runs: Sequence[Path], judge: str, reference: Path) -> Judged:
    judged = [_answers(run) for run in runs]
    personas, questions = (sorted({key[axis] for one in judged for key in one}) for axis in (0, 1))
    taught = [item for key, item in _answers(reference).items() if key[1] not in questions and key[0] in personas]
    texts = sorted({item.persona for item in taught})
    teller = fit_persona_classifier([item.answer for item in taught], [item.persona_id for item in taught], texts)
    shape = len(personas), len(runs), len(questions)
    score_P_M_Q, told_P_M_Q = np.full(shape, np.nan), np.full(shape, np.nan)
    for m, (run, items) in enumerate(zip(runs, judged, strict=True)):
        said = dict(zip(items, teller.predict([item.answer for item in items.values()]), strict=True))
        scores = read_judge_results(run, judge_folder(run, judge)).scores["none"]
        for (persona, question), item in items.items():
            at = personas.index(persona), m, questions.index(question)
            told_P_M_Q[at] = said[persona, question] == persona
            score = scores.get(item.answer_key)
            score_P_M_Q[at] = np.nan if score is None else score
    return Judged(tuple(_name(run) for run in runs), score_P_M_Q, told_P_M_Q)


def _answers(run: Path) -> dict[tuple[str, str], JudgeInput]:
    return {(item.persona_id, item.question_id): item for item in read_judge_inputs(run) if item.control == "none"}


def _name(run: Path) -> str:
    return str(read_json(run / "config.json").get("label") or run.name)


def report(found: Judged, draws: PersonaBootstrap) -> None:
    names, score_P_M_Q, told_P_M_Q = found
    for what, value_P_M_Q in (("identifiability", told_P_M_Q), ("score", score_P_M_Q)):
        for m, name in enumerate(names):
            _show(what, lambda counts, x=value_P_M_Q[:, m]: weighted_mean(x, counts), draws, run=name)  # type: ignore[misc]
            if m:
                change = value_P_M_Q[:, m] - value_P_M_Q[:, 0]
                _show(f"{what}_difference", lambda counts, x=change: weighted_mean(x, counts), draws, run=name, to=names[0])  # type: ignore[misc]
    of_told, of_missed = (np.where(told_P_M_Q == right, score_P_M_Q, np.nan) for right in (1, 0))
    _show("auc_told_missed", lambda counts: auc(of_told, of_missed, counts), draws)
    centred = score_P_M_Q - np.nanmean(score_P_M_Q, axis=2, keepdims=True)
    inside = [np.where(told_P_M_Q == right, centred, np.nan) for right in (1, 0)]
    _show("score_told_minus_missed", lambda counts: weighted_mean(inside[0], counts) - weighted_mean(inside[1], counts), draws)
    share_P_M, level_P_M = (np.nanmean(one, axis=2) for one in (told_P_M_Q, score_P_M_Q))
    _show("persona_correlation", lambda counts: correlation(share_P_M, level_P_M, counts), draws)


def correlation(x_P_M: Array, y_P_M: Array, counts_R_P: Array) -> Array:
    """Pearson's over personas and runs, each run's mean over personas taken off, value_R."""
    x, y = (one - _weighted(one, counts_R_P)[:, None, :] for one in (x_P_M[None], y_P_M[None]))
    weight = counts_R_P[:, :, None]
    cross, across, down = ((weight * product).sum(axis=(1, 2)) for product in (x * y, x * x, y * y))
    return np.asarray(np.divide(cross, np.sqrt(across * down), out=np.full(len(cross), np.nan), where=across * down > 1e-18))


def _weighted(value_1_P_M: Array, counts_R_P: Array) -> Array:
    return np.asarray(np.einsum("rp,pm->rm", counts_R_P, value_1_P_M[0]) / counts_R_P.sum(axis=1, keepdims=True))


def _show(figure: str, measure: PersonaMeasure, draws: PersonaBootstrap, **about: object) -> None:
    found = draws.estimate(measure, draws.counts_R_P.shape[1])
    ends = [None if end is None else round(end, 3) for end in (found.low, found.high)]
    show(figure, float("nan") if found.value is None else found.value, low=ends[0], high=ends[1], personas=found.n, **about)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="judged fidelity runs of the same personas and questions")
    parser.add_argument("--judge", required=True, help="the judge's label")
    parser.add_argument("--reference", required=True, type=Path, help="a run of more questions, to train the classifier on")
    parser.add_argument("--seed", type=int, default=0)
    return parser


def main() -> None:
    args = parser().parse_args()
    found = read(args.runs, args.judge, args.reference)
    report(found, PersonaBootstrap(len(found.score_P_M_Q), args.seed, 2000))


if __name__ == "__main__":
    main()
