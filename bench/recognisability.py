"""How often the intervals of recognisability contain the true value, by simulation; or how it agrees with identifiability, on
runs.

    python -m bench.recognisability --data-sets 400

Without runs, vectors are simulated and a Markdown table is printed. The vector of an answer is `strength` times that of its
persona's text, plus a part that the question gives to all personas, plus noise; texts, questions and noise are normal in 16
dimensions. Questions differ in strength (log-normal, sd 0.5), so the answers to one question are recognised together. The true
value is that over 1500 questions.

    python -m bench.recognisability docs/recorded/quickstart/*-fidelity

With runs of open-ended questions, two verdicts on each answer are compared: whether the embedder recognises its persona, and
whether the classifier of identifiability, trained on the run's own answers to other questions, names it. For each judge of a run,
`auc_of_score_for_recognised` is how often the score of a recognised answer is above that of another one (ties count half), and
`auc_of_score_for_named` the same for named answers. Intervals resample questions. One JSON line a figure.
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
    """A kind of run. `swapped`: the answers of a persona follow the text of another. `missing`: the share of missing answers."""

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
    """Draw `vector_P_Q_D` of the answers, with NaN where an answer is missing."""
    source_P_D = np.roll(text_P_D, 1, axis=0) if setting.swapped else text_P_D
    strength_Q = setting.strength * np.exp(rng.normal(0, 0.5, size=questions))
    vector_P_Q_D = strength_Q[:, None] * source_P_D[:, None] + rng.normal(size=(questions, DIMENSIONS)) * 2
    vector_P_Q_D += rng.normal(size=vector_P_Q_D.shape)
    vector_P_Q_D[rng.random(vector_P_Q_D.shape[:2]) < setting.missing] = np.nan
    return np.asarray(vector_P_Q_D)


def measure(vector_P_Q_D: Array, text_P_D: Array, seed: int, resamples: int) -> Recognisability:
    """Compute recognisability from these vectors instead of from texts. In the control of length all answers have one vector."""
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
    """Return the row of a setting: the setting, the true share, the bias, the coverage of intervals in per cent, the controls."""
    rng = np.random.default_rng([seed, *(round(100 * value) for value in setting)])
    truths, measured = [], list[Recognisability]()
    for data_set in range(data_sets):
        text_P_D = rng.normal(size=(setting.personas, DIMENSIONS))
        true = nearest_texts(
            simulate_vectors(setting._replace(missing=0.0), text_P_D, TRUTH_QUESTIONS, rng),
            np.ones((setting.personas, TRUTH_QUESTIONS), dtype=bool),
            text_P_D,
        )
        truths.append((true.own_share_P_Q.mean(), true.margin_P_Q.mean(), true.own_share_P_Q.mean(axis=1)))
        measured.append(measure(simulate_vectors(setting, text_P_D, setting.questions, rng), text_P_D, data_set, resamples))
    share, margin = ([float(truth[part]) for truth in truths] for part in (0, 1))
    persona_covered = [
        _contains(estimates.per_persona[p], float(truth[2][p]))
        for estimates, truth in zip(measured, truths, strict=True)
        for p in range(setting.personas)
    ]
    with_truth = list(zip(measured, share, margin, strict=True))
    return [
        f"{setting.personas} × {setting.questions}",
        f"{setting.strength:g}" + ", swapped" * setting.swapped + (f", {setting.missing:.0%} missing" if setting.missing else ""),
        f"{np.mean(share):.3f}",
        f"{np.mean([(estimates.accuracy.value or 0) - true for estimates, true, _ in with_truth]):+.3f}".replace("-", "−"),
        f"{100 * np.mean([_contains(estimates.accuracy, true) for estimates, true, _ in with_truth]):.0f}",
        f"{100 * np.mean([_contains(estimates.margin, true) for estimates, _, true in with_truth]):.0f}",
        f"{100 * np.mean(persona_covered):.0f}",
        f"{np.mean([estimates.question_only.value for estimates in measured]):.3f}",
        f"{np.mean([estimates.shuffled.value for estimates in measured]):.3f}",
        f"{100 * np.mean([estimates.shuffled_p < 0.05 for estimates in measured]):.0f}",
    ]


def _contains(estimate: Estimate, truth: float) -> bool:
    return estimate.low is not None and estimate.high is not None and estimate.low - 1e-9 <= truth <= estimate.high + 1e-9


HEADINGS = (
    "personas × questions", "strength", "true share", "bias", "share held", "margin held", "a persona's share held",
    "question only", "texts shuffled", "p < .05",
)  # fmt: skip


class Verdicts(NamedTuple):
    """Whether the embedder recognised each answer, and whether the classifier named its persona; NaN without an answer."""

    persona_ids: list[str]
    question_ids: list[str]
    recognised_P_Q: Array
    named_P_Q: Array
    margin_P_Q: Array


def read_verdicts(run: Path) -> Verdicts:
    """Embed and classify the answers of a fidelity run."""
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
    nearest = nearest_texts(vector_P_Q_D, answered_P_Q, text_P_D)
    named_P_Q = _named_by_classifier(grid.persona_ids, texts, answers_P_Q, grid.question_texts, config)
    return Verdicts(grid.persona_ids, grid.question_ids, nearest.own_share_P_Q, named_P_Q, nearest.margin_P_Q)


def _named_by_classifier(
    persona_ids: Sequence[str],
    texts: Sequence[str],
    answers_P_Q: Sequence[Sequence[str | None]],
    questions: Sequence[str],
    config: Any,
) -> Array:
    """Return `named_P_Q`: 1 where the classifier of identifiability names the persona, else 0; NaN without an answer.

    It is trained and applied by the same folds of questions as in identifiability.
    """
    order = sorted(range(len(questions)), key=lambda q: seed_from(config["seed"], canonical_text(questions[q])))
    fold_Q = np.empty(len(questions), dtype=int)
    fold_Q[order] = np.arange(len(questions)) % config["folds"]
    named_P_Q = np.full((len(persona_ids), len(questions)), np.nan)
    for fold in range(config["folds"]):
        answers = [(p, q, text) for p, row in enumerate(answers_P_Q) for q, text in enumerate(row) if text is not None]
        train = [answer for answer in answers if fold_Q[answer[1]] != fold]
        test = [answer for answer in answers if fold_Q[answer[1]] == fold]
        classifier = fit_persona_classifier([text for _, _, text in train], [persona_ids[p] for p, _, _ in train], texts)
        for (p, q, _), name in zip(test, classifier.predict([text for _, _, text in test]), strict=True):
            named_P_Q[p, q] = name == persona_ids[p]
    return named_P_Q


def report_agreement(run: Path, seed: int, resamples: int) -> None:
    """Print the figures of a run, with intervals over questions."""
    verdicts = read_verdicts(run)
    label, Q = str(RunReader(run).config.get("label") or run.name), verdicts.named_P_Q.shape[1]
    draws_R_Q = np.random.default_rng(seed).integers(Q, size=(resamples, Q))
    recognised_P_Q, named_P_Q = ((value_P_Q > 0.5).astype(float) for value_P_Q in (verdicts.recognised_P_Q, verdicts.named_P_Q))
    table = {
        f"{'recognised' if recognised else 'not recognised'}, {'named' if named else 'not named'}": int(
            ((recognised_P_Q == recognised) & (named_P_Q == named)).sum()
        )
        for recognised in (True, False)
        for named in (True, False)
    }
    show("answers", recognised_P_Q.size, run=label, personas=len(recognised_P_Q), questions=Q, **table)
    measures: dict[str, Callable[[NDArray[np.int64]], float]] = {
        "recognised": lambda draw_Q: float(verdicts.recognised_P_Q[:, draw_Q].mean()),
        "named": lambda draw_Q: float(named_P_Q[:, draw_Q].mean()),
        "agreement": lambda draw_Q: float((recognised_P_Q[:, draw_Q] == named_P_Q[:, draw_Q]).mean()),
        "kappa": lambda draw_Q: kappa(recognised_P_Q[:, draw_Q], named_P_Q[:, draw_Q]),
        "kappa_within_personas": lambda draw_Q: kappa_within(recognised_P_Q[:, draw_Q], named_P_Q[:, draw_Q]),
        "auc_of_margin_for_named": lambda draw_Q: auc(verdicts.margin_P_Q[:, draw_Q], named_P_Q[:, draw_Q]),
        "persona_correlation": lambda draw_Q: correlation(
            recognised_P_Q[:, draw_Q].mean(axis=1), named_P_Q[:, draw_Q].mean(axis=1)
        ),
    }
    for judge, score_P_Q in read_scores(run, verdicts).items():
        values, counts = np.unique(score_P_Q[~np.isnan(score_P_Q)], return_counts=True)
        count_by_score = {f"{score:g}": int(count) for score, count in zip(values, counts, strict=True)}
        show("scored_answers", sum(count_by_score.values()), run=label, judge=judge, scores=count_by_score)
        for verdict, true_P_Q in (("recognised", recognised_P_Q), ("named", named_P_Q)):
            measures[f"auc_of_score_for_{verdict}, {judge}"] = lambda draw_Q, score_P_Q=score_P_Q, true_P_Q=true_P_Q: auc(  # type: ignore[misc]
                score_P_Q[:, draw_Q], true_P_Q[:, draw_Q]
            )
    for name, formula in measures.items():
        value = float(formula(np.arange(Q)))
        estimate = bootstrap_estimate(value, np.array([formula(draw_Q) for draw_Q in draws_R_Q]), Q)
        ends = [None if end is None else round(end, 3) for end in (estimate.low, estimate.high)]
        show(name, value, run=label, low=ends[0], high=ends[1], questions=Q)
    shares = zip(verdicts.persona_ids, recognised_P_Q.mean(axis=1), named_P_Q.mean(axis=1), strict=True)
    for persona, recognised_share, named_share in shares:
        show("persona", float(recognised_share), run=label, persona=persona, named=round(float(named_share), 3))


def read_scores(run: Path, verdicts: Verdicts) -> dict[str, Array]:
    """Return `score_P_Q` by the label of each judge of a run: the mean over rubrics and samples, NaN where there is no score."""
    scores = {}
    for folder in judge_folders(run):
        results = read_judge_results(run, folder)
        scores_by_answer: dict[tuple[str, str], list[float]] = {}
        for key, score in results.scores["none"].items():
            scores_by_answer.setdefault((key.persona_id, key.question_id), []).append(score)
        means = {answer: float(np.mean(of_answer)) for answer, of_answer in scores_by_answer.items()}
        scores[results.label] = np.array(
            [[means.get((persona, question), np.nan) for question in verdicts.question_ids] for persona in verdicts.persona_ids]
        )
    return scores


def kappa(first_P_Q: Array, second_P_Q: Array) -> float:
    """Return Cohen's kappa of two verdicts of 0 and 1."""
    first, second = first_P_Q.mean(), second_P_Q.mean()
    agreement, expected = (first_P_Q == second_P_Q).mean(), first * second + (1 - first) * (1 - second)
    return float((agreement - expected) / (1 - expected)) if expected < 1 else float("nan")


def kappa_within(first_P_Q: Array, second_P_Q: Array) -> float:
    """Return kappa, with the agreement that is expected from the shares of each persona."""
    first_P, second_P = first_P_Q.mean(axis=1), second_P_Q.mean(axis=1)
    expected = (first_P * second_P + (1 - first_P) * (1 - second_P)).mean()
    return float(((first_P_Q == second_P_Q).mean() - expected) / (1 - expected)) if expected < 1 else float("nan")


def auc(value_P_Q: Array, label_P_Q: Array) -> float:
    """Return how often the value of an answer with label 1 is above that of one with label 0; ties count half.

    Answers whose value is NaN are left out. Returns NaN if a label has no answer.
    """
    is_known = ~np.isnan(value_P_Q)
    high, low = value_P_Q[is_known & (label_P_Q > 0.5)], value_P_Q[is_known & (label_P_Q < 0.5)]
    if not len(high) or not len(low):
        return float("nan")
    return float((high[:, None] > low).mean() + (high[:, None] == low).mean() / 2)


def correlation(first_P: Array, second_P: Array) -> float:
    """Return Pearson's correlation over personas; NaN if a side does not vary."""
    return float(np.corrcoef(first_P, second_P)[0, 1]) if first_P.std() and second_P.std() else float("nan")


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "runs", nargs="*", type=Path, help="fidelity runs of open-ended questions; without one, the simulation runs"
    )
    parser.add_argument("--data-sets", type=int, default=400, help="simulated runs of each setting")
    parser.add_argument("--resamples", type=int, default=1000, help="bootstrap resamples of questions")
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
