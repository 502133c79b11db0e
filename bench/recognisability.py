"""Recognisability: how often its intervals hold the truth, by simulation; and its agreement with identifiability, on real runs.

Simulated vectors: an answer's is `strength` times its persona's text, plus a part that the question gives to all personas, plus
noise; texts, questions and noise are normal in 16 dimensions. Questions differ in strength (log-normal, sd 0.5), so the answers
to one question are recognised together. The truth is the value over 1500 questions. A Markdown table.

    python -m bench.recognisability --data-sets 400

With runs of open-ended questions, answer by answer: does the embedder recognise the persona, and does the classifier of
identifiability name it, trained on the run's own answers to other questions? Of a judged run also, for each judge: how often the
score of a recognised answer is above that of another one (ties count half), and the same for named answers. Intervals draw
questions. One JSON line a figure.

    python -m bench.recognisability docs/recorded/quickstart/*-fidelity
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bench.figures import show
from permix.evals.fidelity_records import read_answer_grid
from permix.evals.open_ended import RunEmbedder
from permix.evals.text_metrics import read_persona_texts
from permix.judges.results import read_judge_results
from permix.judges.runner import judge_folders
from permix.metrics.persona_classifier import fit_persona_classifier
from permix.metrics.recognisability import (
    Recognisability,
    nearest_texts,
    remove_persona_words,
    summarize_recognisability,
)
from permix.metrics.statistics import Array, bootstrap_estimate
from permix.storage.run_dir import RunReader
from permix.types import Estimate, canonical_text, seed_from

DIMENSIONS, TRUTH_QUESTIONS = 16, 1500


class Setting(NamedTuple):
    """A kind of run. `swapped`: each persona talks like the next one. `missing`: the share of answers that are not there."""

    personas: int
    questions: int
    strength: float
    swapped: bool = False
    missing: float = 0.0


SETTINGS = (
    Setting(9, 40, 0.0), Setting(9, 40, 0.3), Setting(9, 40, 0.7), Setting(9, 40, 1.5), Setting(4, 10, 0.0), Setting(4, 10, 0.7),
    Setting(9, 40, 0.7, missing=0.2), Setting(9, 40, 0.7, swapped=True), Setting(30, 52, 0.5),
)  # fmt: skip


def simulate_vectors(setting: Setting, text_P_D: Array, questions: int, rng: np.random.Generator) -> Array:
    """vector_P_Q_D of the answers; NaN where an answer is missing."""
    spoken_P_D = np.roll(text_P_D, 1, axis=0) if setting.swapped else text_P_D
    strength_Q = setting.strength * np.exp(rng.normal(0, 0.5, size=questions))
    vector_P_Q_D = strength_Q[:, None] * spoken_P_D[:, None] + rng.normal(size=(questions, DIMENSIONS)) * 2
    vector_P_Q_D += rng.normal(size=vector_P_Q_D.shape)
    vector_P_Q_D[rng.random(vector_P_Q_D.shape[:2]) < setting.missing] = np.nan
    return np.asarray(vector_P_Q_D)


def measure(vector_P_Q_D: Array, text_P_D: Array, seed: int, resamples: int) -> Recognisability:
    """The measure on texts that stand for these vectors. The control of length has one vector for all answers."""
    P, Q, _ = vector_P_Q_D.shape
    vectors = {f"answer{p}x{q}": vector_P_Q_D[p, q] for p in range(P) for q in range(Q)}
    vectors |= {f"persona{p}": text_P_D[p] for p in range(P)}
    answers = [[None if np.isnan(vector_P_Q_D[p, q]).any() else f"answer{p}x{q}" for q in range(Q)] for p in range(P)]
    return summarize_recognisability(
        answers, [f"persona{p}" for p in range(P)],
        lambda texts: np.stack([vectors.get(text, np.ones(DIMENSIONS)) for text in texts]),
        persona_ids=[f"p{p:02}" for p in range(P)], question_texts=[f"q{q}" for q in range(Q)], seed=seed, resamples=resamples,
    )  # fmt: skip


def simulate(setting: Setting, data_sets: int, resamples: int, seed: int) -> list[str]:
    """A row of the table: what was drawn, the true share, and in per cent how often each interval held the truth."""
    rng = np.random.default_rng([seed, *(round(100 * value) for value in setting)])
    truths, found = [], list[Recognisability]()
    for data_set in range(data_sets):
        text_P_D = rng.normal(size=(setting.personas, DIMENSIONS))
        many = nearest_texts(
            simulate_vectors(setting._replace(missing=0.0), text_P_D, TRUTH_QUESTIONS, rng),
            np.ones((setting.personas, TRUTH_QUESTIONS), dtype=bool),
            text_P_D,
        )
        truths.append((many.own_share_P_Q.mean(), many.margin_P_Q.mean(), many.own_share_P_Q.mean(axis=1)))
        found.append(measure(simulate_vectors(setting, text_P_D, setting.questions, rng), text_P_D, data_set, resamples))
    share, margin = ([float(truth[part]) for truth in truths] for part in (0, 1))
    recall = [
        _held(one.per_persona[p], float(truth[2][p]))
        for one, truth in zip(found, truths, strict=True)
        for p in range(setting.personas)
    ]
    pairs = list(zip(found, share, margin, strict=True))
    return [
        f"{setting.personas} × {setting.questions}",
        f"{setting.strength:g}" + ", swapped" * setting.swapped + (f", {setting.missing:.0%} missing" if setting.missing else ""),
        f"{np.mean(share):.3f}",
        f"{np.mean([(one.accuracy.value or 0) - true for one, true, _ in pairs]):+.3f}".replace("-", "−"),
        f"{100 * np.mean([_held(one.accuracy, true) for one, true, _ in pairs]):.0f}",
        f"{100 * np.mean([_held(one.margin, true) for one, _, true in pairs]):.0f}",
        f"{100 * np.mean(recall):.0f}",
        f"{np.mean([one.question_only.value for one in found]):.3f}",
        f"{np.mean([one.shuffled.value for one in found]):.3f}",
        f"{100 * np.mean([one.shuffled_p < 0.05 for one in found]):.0f}",
    ]


def _held(found: Estimate, truth: float) -> bool:
    return found.low is not None and found.high is not None and found.low - 1e-9 <= truth <= found.high + 1e-9


HEADINGS = (
    "personas × questions", "strength", "true share", "bias", "share held", "margin held", "a persona's share held",
    "question only", "texts shuffled", "p < .05",
)  # fmt: skip


class Verdicts(NamedTuple):
    """Of each answer: whether the embedder recognised it, and whether the classifier named its persona; NaN without an answer."""

    persona_ids: list[str]
    question_ids: list[str]
    recognised_P_Q: Array
    named_P_Q: Array
    margin_P_Q: Array


def read_verdicts(run: Path) -> Verdicts:
    grid, config = read_answer_grid(run), RunReader(run).config
    texts_by_id = read_persona_texts(run, list(grid.cells.values()))
    texts = [texts_by_id[persona] for persona in grid.persona_ids]
    answers_P_Q = grid.answers_P_Q
    answered_P_Q = np.array([[answer is not None for answer in row] for row in answers_P_Q])
    embed = RunEmbedder(run, str(config.get("embedder", "auto")), config.get("threads"))
    text_P_D = np.asarray(embed(texts), dtype=float)
    vectors = embed([remove_persona_words(answer or "", texts) for row in answers_P_Q for answer in row]).astype(float)
    vector_P_Q_D = vectors.reshape(*answered_P_Q.shape, -1)
    vector_P_Q_D[~answered_P_Q] = np.nan
    near = nearest_texts(vector_P_Q_D, answered_P_Q, text_P_D)
    named_P_Q = _named_by_classifier(grid.persona_ids, texts, answers_P_Q, grid.question_texts, config)
    return Verdicts(grid.persona_ids, grid.question_ids, near.own_share_P_Q, named_P_Q, near.margin_P_Q)


def _named_by_classifier(
    persona_ids: Sequence[str],
    texts: Sequence[str],
    answers_P_Q: Sequence[Sequence[str | None]],
    questions: Sequence[str],
    config: Any,
) -> Array:
    """1 where the classifier of identifiability names the persona, with its folds of questions; else 0."""
    order = sorted(range(len(questions)), key=lambda q: seed_from(config["seed"], canonical_text(questions[q])))
    fold_Q = np.empty(len(questions), dtype=int)
    fold_Q[order] = np.arange(len(questions)) % config["folds"]
    named_P_Q = np.full((len(persona_ids), len(questions)), np.nan)
    for fold in range(config["folds"]):
        answers = [(p, q, text) for p, row in enumerate(answers_P_Q) for q, text in enumerate(row) if text is not None]
        taught = [answer for answer in answers if fold_Q[answer[1]] != fold]
        asked = [answer for answer in answers if fold_Q[answer[1]] == fold]
        classifier = fit_persona_classifier([text for _, _, text in taught], [persona_ids[p] for p, _, _ in taught], texts)
        for (p, q, _), name in zip(asked, classifier.predict([text for _, _, text in asked]), strict=True):
            named_P_Q[p, q] = name == persona_ids[p]
    return named_P_Q


def report_agreement(run: Path, seed: int, resamples: int) -> None:
    found = read_verdicts(run)
    label, Q = str(RunReader(run).config.get("label") or run.name), found.named_P_Q.shape[1]
    draws_R_Q = np.random.default_rng(seed).integers(Q, size=(resamples, Q))
    right_P_Q, named_P_Q = ((value_P_Q > 0.5).astype(float) for value_P_Q in (found.recognised_P_Q, found.named_P_Q))
    table = {
        f"{'recognised' if one else 'not recognised'}, {'named' if two else 'not named'}": int(
            ((right_P_Q == one) & (named_P_Q == two)).sum()
        )
        for one in (True, False)
        for two in (True, False)
    }
    show("answers", right_P_Q.size, run=label, personas=len(right_P_Q), questions=Q, **table)
    measures: dict[str, Callable[[NDArray[np.int64]], float]] = {
        "recognised": lambda at: float(found.recognised_P_Q[:, at].mean()),
        "named": lambda at: float(named_P_Q[:, at].mean()),
        "agreement": lambda at: float((right_P_Q[:, at] == named_P_Q[:, at]).mean()),
        "kappa": lambda at: kappa(right_P_Q[:, at], named_P_Q[:, at]),
        "kappa_within_personas": lambda at: kappa_within(right_P_Q[:, at], named_P_Q[:, at]),
        "auc_of_margin_for_named": lambda at: area(found.margin_P_Q[:, at], named_P_Q[:, at]),
        "persona_correlation": lambda at: correlation(right_P_Q[:, at].mean(axis=1), named_P_Q[:, at].mean(axis=1)),
    }
    for judge, score_P_Q in read_scores(run, found).items():
        values, counts = np.unique(score_P_Q[~np.isnan(score_P_Q)], return_counts=True)
        given = {f"{score:g}": int(count) for score, count in zip(values, counts, strict=True)}
        show("scored_answers", sum(given.values()), run=label, judge=judge, scores=given)
        for verdict, right in (("recognised", right_P_Q), ("named", named_P_Q)):
            measures[f"auc_of_score_for_{verdict}, {judge}"] = lambda at, score_P_Q=score_P_Q, right=right: area(  # type: ignore[misc]
                score_P_Q[:, at], right[:, at]
            )
    for name, formula in measures.items():
        value = float(formula(np.arange(Q)))
        estimate = bootstrap_estimate(value, np.array([formula(draw_Q) for draw_Q in draws_R_Q]), Q)
        ends = [None if end is None else round(end, 3) for end in (estimate.low, estimate.high)]
        show(name, value, run=label, low=ends[0], high=ends[1], questions=Q)
    for persona, recognised, named in zip(found.persona_ids, right_P_Q.mean(axis=1), named_P_Q.mean(axis=1), strict=True):
        show("persona", float(recognised), run=label, persona=persona, named=round(float(named), 3))


def read_scores(run: Path, found: Verdicts) -> dict[str, Array]:
    """score_P_Q of each judge of the run, by its label: the mean over rubrics and samples; NaN where an answer has no score."""
    scores = {}
    for folder in judge_folders(run):
        results = read_judge_results(run, folder)
        of_answer: dict[tuple[str, str], list[float]] = {}
        for key, score in results.scores["none"].items():
            of_answer.setdefault((key.persona_id, key.question_id), []).append(score)
        means = {answer: float(np.mean(given)) for answer, given in of_answer.items()}
        scores[results.label] = np.array(
            [[means.get((persona, question), np.nan) for question in found.question_ids] for persona in found.persona_ids]
        )
    return scores


def kappa(one_P_Q: Array, two_P_Q: Array) -> float:
    """Cohen's kappa of two verdicts."""
    agree, expected = (one_P_Q == two_P_Q).mean(), one_P_Q.mean() * two_P_Q.mean() + (1 - one_P_Q.mean()) * (1 - two_P_Q.mean())
    return float((agree - expected) / (1 - expected)) if expected < 1 else float("nan")


def kappa_within(one_P_Q: Array, two_P_Q: Array) -> float:
    """Kappa with the agreement that is expected from each persona's own shares."""
    one_P, two_P = one_P_Q.mean(axis=1), two_P_Q.mean(axis=1)
    expected = (one_P * two_P + (1 - one_P) * (1 - two_P)).mean()
    return float(((one_P_Q == two_P_Q).mean() - expected) / (1 - expected)) if expected < 1 else float("nan")


def area(value_P_Q: Array, label_P_Q: Array) -> float:
    """AUC: how often the value of a labelled answer is above that of another one, ties half. Values that are NaN are left out."""
    is_known = ~np.isnan(value_P_Q)
    high, low = value_P_Q[is_known & (label_P_Q > 0.5)], value_P_Q[is_known & (label_P_Q < 0.5)]
    if not len(high) or not len(low):
        return float("nan")
    return float((high[:, None] > low).mean() + (high[:, None] == low).mean() / 2)


def correlation(one_P: Array, two_P: Array) -> float:
    return float(np.corrcoef(one_P, two_P)[0, 1]) if one_P.std() and two_P.std() else float("nan")


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path, help="fidelity runs of open-ended questions; none: the simulation")
    parser.add_argument("--data-sets", type=int, default=400, help="runs of a setting")
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=7)
    return parser


def main() -> None:
    options = parser().parse_args()
    for run in options.runs:
        report_agreement(run, options.seed, options.resamples)
    if not options.runs:
        print(_row(HEADINGS) + "\n|" + "---:|" * len(HEADINGS), flush=True)
        for setting in SETTINGS:
            print(_row(simulate(setting, options.data_sets, options.resamples, options.seed)), flush=True)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
