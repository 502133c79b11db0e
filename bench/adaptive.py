"""How many cells sequential allocation saves at an equal interval of PSS, and whether its intervals hold the truth.

Simulated: grids as in `bench.calibration`, their questions more than a whole grid asks. The whole grid's first questions are
measured; then the sequential run goes through the same answers until its interval of PSS is no wider. Recorded: the same on the
answers of a real run, `--part` of whose questions is the whole grid, over shuffles of the questions; the truth is not known
there. One JSON line a setting.

    python -m bench.adaptive > adaptive.jsonl
    python -m bench.adaptive --recorded runs/many --part 0.5 --data-sets 10
    python -m bench.adaptive --page adaptive.jsonl
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bench.calibration import LEVEL, Setting, grid, world
from permix.evals.stability import read_stability_grid
from permix.metrics import priors, sequential
from permix.metrics.sequential import Round, StoppingRule
from permix.metrics.stability import StabilitySummary, summarize_stability
from permix.metrics.statistics import Array, mean_over_samples
from permix.types import Estimate

MORE = 4
"""Questions that the sequential run may go through, in those of the whole grid."""
HELD = ("pss", "worst", "best", "spread", "worst_minus_baseline", "mean", "baseline", "mean_minus_baseline")
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
    """A whole grid, and a sequential run through the same answers to an interval of PSS no wider. Cells are those of personas."""

    whole: StabilitySummary
    sequential: StabilitySummary
    rounds: tuple[Round, ...]
    reached: bool

    @property
    def ratio(self) -> float:
        return self.whole.n_asked / self.sequential.n_asked


def trial(correct_P_Q_S: Array, baseline_Q_S: Array, whole: int, *, seed: int, resamples: int) -> Trial:
    """`whole`: questions of the whole grid, the first ones; the sequential run may go on to the last."""
    ids = [str(place) for place in range(len(correct_P_Q_S))]
    against = summarize_stability(correct_P_Q_S[:, :whole], baseline_Q_S[:whole], persona_ids=ids, seed=seed, resamples=resamples)
    limits = StoppingRule(None, width(against.pss) / 2)
    rounds, seen = allocate(correct_P_Q_S, baseline_Q_S, ids, limits, seed=seed, resamples=resamples)
    found = sequential.summarize_rounds(seen, baseline_Q_S[: seen.shape[1]], rounds, ids, seed=seed, resamples=resamples)
    return Trial(against, found, rounds, width(found.pss) <= width(against.pss))


def allocate(
    correct_P_Q_S: Array, baseline_Q_S: Array, ids: Sequence[str], limits: StoppingRule, *, seed: int, resamples: int
) -> tuple[tuple[Round, ...], Array]:
    """The rounds of a sequential run that gets these answers; and those it got, NaN for the others."""
    _, Q, S = correct_P_Q_S.shape
    rounds = [sequential.first_round(ids, Q)]
    while True:
        seen = of_rounds(correct_P_Q_S, rounds, ids)
        found = sequential.measure_rounds(
            mean_over_samples(seen), mean_over_samples(baseline_Q_S[: seen.shape[1]]), rounds, ids, seed=seed, resamples=resamples
        )
        one = sequential.next_round(rounds, sequential.sequential_progress(found, ids), limits, n_questions=Q, n_samples=S)
        if one is None:
            return tuple(rounds), seen
        rounds.append(one)


def of_rounds(correct_P_Q_S: Array, rounds: Sequence[Round], ids: Sequence[str]) -> Array:
    """The answers that these rounds ask for."""
    seen = np.full_like(correct_P_Q_S[:, : rounds[-1].until], np.nan)
    before = 0
    for one in rounds:
        rows = [ids.index(id) for id in one.personas]
        seen[rows, before : one.until] = correct_P_Q_S[rows, before : one.until]
        before = one.until
    return seen


def width(one: Estimate) -> float:
    return float("inf") if one.low is None or one.high is None else one.high - one.low


def simulate(setting: Setting, data_sets: int, resamples: int, seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    of = world(setting, rng)
    trials = []
    for _ in range(data_sets):
        answers = grid(setting._replace(questions=MORE * setting.questions), of, rng)
        trials.append(trial(*answers, setting.questions, seed=int(rng.integers(2**31)), resamples=resamples))
    return setting._asdict() | {"seed": seed, "resamples": resamples} | told(trials, of.truth())


def recorded(run: Path, part: float, data_sets: int, resamples: int, seed: int) -> dict[str, Any]:
    """On a run's answers, its questions shuffled anew in every trial."""
    found, rng = read_stability_grid(run), np.random.default_rng(seed)
    P, Q, _ = found.correct_P_Q_S.shape
    trials = []
    for _ in range(data_sets):
        order_Q = rng.permutation(Q)
        answers = found.correct_P_Q_S[:, order_Q], found.baseline_Q_S[order_Q]
        trials.append(trial(*answers, round(part * Q), seed=int(rng.integers(2**31)), resamples=resamples))
    about = {"run": str(run), "personas": P, "questions": Q, "part": part, "seed": seed, "resamples": resamples}
    return about | told(trials, {})


def told(trials: Sequence[Trial], truth: dict[str, float]) -> dict[str, Any]:
    """Cells and widths of both; of what has a known truth, how often the sequential run's interval holds it."""
    ratios = [one.ratio for one in trials]
    whole, found = [one.whole for one in trials], [one.sequential for one in trials]
    return {
        "data_sets": len(trials),
        "cells_whole": whole[0].n_asked,
        "cells_sequential": round(float(np.mean([one.n_asked for one in found])), 1),
        "fewer": round(float(whole[0].n_asked / np.mean([one.n_asked for one in found])), 2),
        "fewer_between": [round(float(end), 2) for end in np.quantile(ratios, (0.1, 0.9))],
        "reached": round(float(np.mean([one.reached for one in trials])), 3),
        "pss_width": [round(float(np.mean([width(one.pss) for one in some])), 4) for some in (whole, found)],
        "pss": [
            round(float(np.mean([one.pss.value for one in some if one.pss.value is not None])), 4) for some in (whole, found)
        ],
        "held": {name: _share([holds(one.measures[name], truth[name]) for one in found]) for name in HELD if name in truth},
        "rejected": {
            "permutation": [_share([_below(one.permutation_p.value) for one in some]) for some in (whole, found)],
            "any persona, Holm": [
                _share([any(_below(p.holm_p) for p in one.personas) for one in some]) for some in (whole, found)
            ],
        },
    }


def holds(one: Estimate, truth: float) -> bool:
    return one.low is not None and one.high is not None and one.low <= truth <= one.high


def _below(p: float | None) -> bool:
    return p is not None and p < LEVEL


def _share(some: Sequence[bool]) -> float:
    return round(float(np.mean(some)), 3)


def page(lines: Sequence[dict[str, Any]]) -> str:
    """Markdown: what was saved, then what held."""
    saved = [
        "| grid | cells, whole | sequential | fewer | [10, 90 %] | width of PSS | reached |",
        "|---|---:|---:|---:|---|---|---:|",
    ]
    held = [f"| grid | {' | '.join(HELD)} | any effect | a persona |", f"|---|{'---:|' * (len(HELD) + 2)}"]
    for one in lines:
        wide, (low, high) = " / ".join(f"{value:.3f}" for value in one["pss_width"]), one["fewer_between"]
        cells = f"{one['cells_whole']:,} | {one['cells_sequential']:,.0f} | {one['fewer']:.1f} × | [{low:.1f}, {high:.1f}]"
        saved.append(f"| {_name(one)} | {cells} | {wide} | {one['reached']:.0%} |")
        if one["held"]:
            shares = [*(one["held"][name] for name in HELD), *(both[1] for both in one["rejected"].values())]
            held.append(f"| {_name(one)} | {' | '.join(f'{share:.0%}' for share in shares)} |")
    return "\n".join([*saved, "", *held])


def _name(one: dict[str, Any]) -> str:
    if "run" in one:
        return f"{one['run']}, {one['personas']} × {one['questions']}"
    return f"{one['effect']} {one['size']:g}, {one['personas']} × {one['questions']}, accuracy {one['accuracy']:g}"


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(prog="python -m bench.adaptive", description=(__doc__ or "").partition("\n")[0])
    options.add_argument("--data-sets", type=int, default=40, help="grids of each setting, or shuffles of a recorded run")
    options.add_argument("--resamples", type=int, default=200)
    options.add_argument("--draws", type=int, default=2000)
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--only", type=int, nargs="*", help="these settings, counted from 0; each has a seed of its own")
    options.add_argument("--recorded", type=Path, help="a stability run, in place of simulated grids")
    options.add_argument("--part", type=float, default=0.5, help="share of the recorded questions that the whole grid asks")
    options.add_argument("--page", type=Path, help="print the tables of a file of such lines, and measure nothing")
    return options


def main() -> None:
    options = parser().parse_args()
    if options.page is not None:
        print(page([json.loads(line) for line in options.page.read_text().splitlines()]))
        return
    priors.N_DRAWS = priors.MAX_CHAIN_PERSONAS = options.draws
    if options.recorded is not None:
        print(json.dumps(recorded(options.recorded, options.part, options.data_sets, options.resamples, options.seed)))
        return
    for place in range(len(SETTINGS)) if options.only is None else options.only:
        print(json.dumps(simulate(SETTINGS[place], options.data_sets, options.resamples, options.seed + place)), flush=True)


if __name__ == "__main__":
    main()
