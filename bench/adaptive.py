"""How many cells sequential allocation saves at an equal width of the interval of PSS, and how often its intervals are right.

A full grid is measured. Then a sequential run, which chooses the cells of each round, goes through the same answers until its
interval of PSS is no wider. The answers are simulated as in `bench.calibration`, with four times the questions of the full grid.
With --recorded they are those of a real run: the full grid gets the share `--part` of its questions, which are shuffled anew in
every trial, and the true values are not known.

    python -m bench.adaptive > adaptive.jsonl
    python -m bench.adaptive --recorded runs/many --part 0.5 --data-sets 10
    python -m bench.adaptive --page adaptive.jsonl

Printed is one JSON line a setting: `fewer` is the cells of the full grid over those of the sequential run, `reached` the share of
runs whose interval became narrow enough, and `held` the share of the sequential run's intervals that contain the true value.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bench.calibration import LEVEL, Setting, draw_grid, draw_model
from permix.evals.stability import read_stability_grid
from permix.metrics import priors, sequential
from permix.metrics.sequential import Round, StoppingRule
from permix.metrics.stability import StabilitySummary, summarize_stability
from permix.metrics.statistics import Array, mean_over_samples
from permix.types import Estimate

QUESTION_FACTOR = 4
"""The questions that a simulated sequential run may use, as a multiple of those of the full grid."""
MEASURES = ("pss", "worst", "best", "spread", "worst_minus_baseline", "mean", "baseline", "mean_minus_baseline")
SETTINGS = (
    Setting("none", 0, 64, 300, 0.5),
    Setting("one bad", 1.5, 64, 300, 0.5),
    Setting("one bad", 0.7, 64, 300, 0.7),
    Setting("half bad", 0.7, 64, 300, 0.5),
    Setting("graded", 0.2, 64, 300, 0.7),
    Setting("graded", 0.4, 64, 300, 0.3),
    Setting("graded", 0.6, 64, 300, 0.5),
    Setting("graded", 0.6, 16, 300, 0.5),
    Setting("graded", 0.6, 64, 1000, 0.5),
)


class Trial(NamedTuple):
    """The summaries of a full grid and of a sequential run on the same answers. `n_asked` counts cells with a persona."""

    full: StabilitySummary
    sequential: StabilitySummary
    rounds: tuple[Round, ...]
    reached: bool
    """Whether the sequential run's interval of PSS is no wider than that of the full grid."""


def run_trial(correct_P_Q_S: Array, baseline_Q_S: Array, full_questions: int, *, seed: int, resamples: int) -> Trial:
    """Measure the first `full_questions` questions as a full grid; then run sequentially, with all questions available."""
    ids = [str(p) for p in range(len(correct_P_Q_S))]
    full = summarize_stability(
        correct_P_Q_S[:, :full_questions], baseline_Q_S[:full_questions], persona_ids=ids, seed=seed, resamples=resamples
    )
    limits = StoppingRule(None, width(full.pss) / 2)
    rounds, asked_P_Q_S = allocate(correct_P_Q_S, baseline_Q_S, ids, limits, seed=seed, resamples=resamples)
    asked_baseline_Q_S = baseline_Q_S[: asked_P_Q_S.shape[1]]
    summary = sequential.summarize_rounds(asked_P_Q_S, asked_baseline_Q_S, rounds, ids, seed=seed, resamples=resamples)
    return Trial(full, summary, rounds, width(summary.pss) <= width(full.pss))


def allocate(
    correct_P_Q_S: Array, baseline_Q_S: Array, ids: Sequence[str], limits: StoppingRule, *, seed: int, resamples: int
) -> tuple[tuple[Round, ...], Array]:
    """Return the rounds of a sequential run on these answers, and the answers of these rounds (see `answers_of_rounds`)."""
    _, Q, S = correct_P_Q_S.shape
    rounds = [sequential.first_round(ids, Q)]
    while True:
        asked_P_Q_S = answers_of_rounds(correct_P_Q_S, rounds, ids)
        asked_baseline_Q = mean_over_samples(baseline_Q_S[: asked_P_Q_S.shape[1]])
        measured = sequential.measure_rounds(
            mean_over_samples(asked_P_Q_S), asked_baseline_Q, rounds, ids, seed=seed, resamples=resamples
        )
        progress = sequential.sequential_progress(measured, ids)
        next_round = sequential.next_round(rounds, progress, limits, n_questions=Q, n_samples=S)
        if next_round is None:
            return tuple(rounds), asked_P_Q_S
        rounds.append(next_round)


def answers_of_rounds(correct_P_Q_S: Array, rounds: Sequence[Round], ids: Sequence[str]) -> Array:
    """Return `correct_P_Q_S` up to the last question of the rounds, with NaN in the cells that no round asks."""
    asked_P_Q_S = np.full_like(correct_P_Q_S[:, : rounds[-1].until], np.nan)
    start = 0
    for each in rounds:
        rows = [ids.index(id) for id in each.personas]
        asked_P_Q_S[rows, start : each.until] = correct_P_Q_S[rows, start : each.until]
        start = each.until
    return asked_P_Q_S


def width(estimate: Estimate) -> float:
    """Return the width of an interval; infinity if there is none."""
    return float("inf") if estimate.low is None or estimate.high is None else estimate.high - estimate.low


def simulate(setting: Setting, data_sets: int, resamples: int, seed: int) -> dict[str, Any]:
    """Return the line of a setting, from trials on simulated answers."""
    rng = np.random.default_rng(seed)
    model = draw_model(setting, rng)
    trials = []
    for _ in range(data_sets):
        answers = draw_grid(setting._replace(questions=QUESTION_FACTOR * setting.questions), model, rng)
        trials.append(run_trial(*answers, setting.questions, seed=int(rng.integers(2**31)), resamples=resamples))
    return setting._asdict() | {"seed": seed, "resamples": resamples} | summarize_trials(trials, model.true_values())


def replay_recorded(run: Path, part: float, data_sets: int, resamples: int, seed: int) -> dict[str, Any]:
    """Return the line of a recorded run, from trials on its answers with the questions shuffled."""
    grid, rng = read_stability_grid(run), np.random.default_rng(seed)
    P, Q, _ = grid.correct_P_Q_S.shape
    trials = []
    for _ in range(data_sets):
        order_Q = rng.permutation(Q)
        answers = grid.correct_P_Q_S[:, order_Q], grid.baseline_Q_S[order_Q]
        trials.append(run_trial(*answers, round(part * Q), seed=int(rng.integers(2**31)), resamples=resamples))
    settings = {"run": str(run), "personas": P, "questions": Q, "part": part, "seed": seed, "resamples": resamples}
    return settings | summarize_trials(trials, {})


def summarize_trials(trials: Sequence[Trial], true_values: dict[str, float]) -> dict[str, Any]:
    """Return the fields of a line that trials determine. Pairs are values of the full grid and of the sequential run.

    `held` is the coverage of the sequential run's intervals, for each measure with a true value.
    """
    full, sequential_runs = [trial.full for trial in trials], [trial.sequential for trial in trials]
    both = full, sequential_runs
    mean_cells = np.mean([summary.n_asked for summary in sequential_runs])
    ratios = [trial.full.n_asked / trial.sequential.n_asked for trial in trials]
    return {
        "data_sets": len(trials),
        "cells_whole": full[0].n_asked,
        "cells_sequential": round(float(mean_cells), 1),
        "fewer": round(float(full[0].n_asked / mean_cells), 2),
        "fewer_between": [round(float(end), 2) for end in np.quantile(ratios, (0.1, 0.9))],
        "reached": round(float(np.mean([trial.reached for trial in trials])), 3),
        "pss_width": [round(float(np.mean([width(summary.pss) for summary in summaries])), 4) for summaries in both],
        "pss": [
            round(float(np.mean([each.pss.value for each in summaries if each.pss.value is not None])), 4) for summaries in both
        ],
        "held": {
            name: _share([contains(summary.measures[name], true_values[name]) for summary in sequential_runs])
            for name in MEASURES
            if name in true_values
        },
        "rejected": {
            "permutation": [_share([_rejects(each.permutation_p.value) for each in summaries]) for summaries in both],
            "any persona, Holm": [
                _share([any(_rejects(persona.holm_p) for persona in each.personas) for each in summaries]) for summaries in both
            ],
        },
    }


def contains(estimate: Estimate, truth: float) -> bool:
    """Return whether the interval contains the true value; False if there is no interval."""
    return estimate.low is not None and estimate.high is not None and estimate.low <= truth <= estimate.high


def _rejects(p: float | None) -> bool:
    return p is not None and p < LEVEL


def _share(flags: Sequence[bool]) -> float:
    return round(float(np.mean(flags)), 3)


def markdown_tables(lines: Sequence[dict[str, Any]]) -> str:
    """Return two Markdown tables of lines: the cells that were saved, and the coverage of the intervals."""
    saved = [
        "| grid | cells, whole | sequential | fewer | [10, 90 %] | width of PSS | reached |",
        "|---|---:|---:|---:|---|---|---:|",
    ]
    held = [f"| grid | {' | '.join(MEASURES)} | any effect | a persona |", f"|---|{'---:|' * (len(MEASURES) + 2)}"]
    for line in lines:
        widths, (low, high) = " / ".join(f"{value:.3f}" for value in line["pss_width"]), line["fewer_between"]
        cells = f"{line['cells_whole']:,} | {line['cells_sequential']:,.0f} | {line['fewer']:.1f} × | [{low:.1f}, {high:.1f}]"
        saved.append(f"| {_grid_name(line)} | {cells} | {widths} | {line['reached']:.0%} |")
        if line["held"]:
            shares = [*(line["held"][name] for name in MEASURES), *(both[1] for both in line["rejected"].values())]
            held.append(f"| {_grid_name(line)} | {' | '.join(f'{share:.0%}' for share in shares)} |")
    return "\n".join([*saved, "", *held])


def _grid_name(line: dict[str, Any]) -> str:
    if "run" in line:
        return f"{line['run']}, {line['personas']} × {line['questions']}"
    return f"{line['effect']} {line['size']:g}, {line['personas']} × {line['questions']}, accuracy {line['accuracy']:g}"


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.adaptive", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data-sets", type=int, default=40, help="trials of each setting, or of the recorded run")
    parser.add_argument("--resamples", type=int, default=200, help="bootstrap resamples of each trial")
    parser.add_argument("--draws", type=int, default=2000, help="posterior draws of each trial")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", type=int, nargs="*", help="indices of the settings, from 0; the index is added to the seed")
    parser.add_argument("--recorded", type=Path, help="a stability run whose answers replace simulated ones")
    parser.add_argument("--part", type=float, default=0.5, help="share of the recorded questions that the full grid asks")
    parser.add_argument("--page", type=Path, help="print the tables of the lines in this file, and measure nothing")
    return parser


def main() -> None:
    options = parser().parse_args()
    if options.page is not None:
        print(markdown_tables([json.loads(line) for line in options.page.read_text().splitlines()]))
        return
    priors.N_DRAWS = priors.MAX_CHAIN_PERSONAS = options.draws
    if options.recorded is not None:
        print(json.dumps(replay_recorded(options.recorded, options.part, options.data_sets, options.resamples, options.seed)))
        return
    for index in range(len(SETTINGS)) if options.only is None else options.only:
        print(json.dumps(simulate(SETTINGS[index], options.data_sets, options.resamples, options.seed + index)), flush=True)


if __name__ == "__main__":
    main()
