"""`permix power`: how many questions and training seeds are needed to show a difference of two methods, from pilot runs.

Contract: calls no model. The variances come from the difference of the two methods as the report computes it
(`permix.report.pooled.method_difference`), the power from `permix.metrics.training_seeds`. With one seed of a method the
variance of seeds is not known: assumed standard deviations replace it, and each line says so. The result is for the pilot runs'
personas.
"""

from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table as TerminalTable
from rich.text import Text
from scipy.special import chdtri

from permix.config import PowerConfig
from permix.errors import ConfigError, DataError
from permix.metrics.measures import CHARACTER_MEASURES, MEASURE_VIEWS, STABILITY_MEASURES
from permix.metrics.stability import question_noise
from permix.metrics.statistics import TARGET_POWER
from permix.metrics.training_seeds import SeedDifference, SeedVarianceComponents, power_over_seeds, scale_questions
from permix.progress import add_result
from permix.rendering.table import one_line, terminal_table
from permix.report.methods import ReportMethod, group_methods
from permix.report.pooled import MethodDifference, measured_models, method_difference
from permix.report.runs import collect_models
from permix.sanitize import escape_control
from permix.storage.files import write_json
from permix.types import Record

DEFAULT_EFFECTS = {
    "pss": (0.05, 0.1),
    "worst": (0.05,),
    "worst_minus_baseline": (0.05,),
    "mean_minus_baseline": (0.03,),
    "identifiability": (0.03,),
}
"""The differences that are planned for by default, by measure."""

UPPER_SHARE = 0.8
"""The upper bound of a measured variance of seeds is above the true one with this probability."""


ASSUMED_SHARED_NOISE = 0.5
"""The share of the question noise that all seeds have in common; used where one seed does not show it.

Source: the differences of RLVR and PerMix-RLVR with three seeds in docs/history/training.md (mean accuracy and identifiability).
"""


class PlannedPower(Record):
    """The power for one difference and number of seeds of each method, by number of questions.

    `seed_sd` is the standard deviation of the difference between pairs of seeds, and `source` where it comes from.
    """

    measure: str
    effect: float
    seed_sd: float
    source: str
    seeds: int
    power: dict[int, float]


class SeedAssumption(NamedTuple):
    """A standard deviation of the difference of one pair of seeds, and its source in words."""

    sd: float
    source: str


def run_power(config: PowerConfig) -> None:
    """Run `permix power`: print the table, and write power.json to `config.out` when it is set.

    Raises ConfigError unless the runs are of two methods and have every measure of `config.effects`, and DataError where the
    methods cannot be compared.
    """
    effects = parse_effects(config.effects)
    against, method = _two_methods(group_methods(collect_models(config.runs), config.methods))
    difference = method_difference(method, against)
    if not difference.over_seeds:
        why = "; ".join(escape_control(reason) for reason in (*difference.reasons, *difference.fidelity_reasons))
        raise DataError(f"{against.name} and {method.name} cannot be compared: {why or 'they have no measure in common'}")
    lines = list(plan_power(difference, effects, config))
    planned = {line.measure for line in lines}
    if missing := [name for name in effects if name not in planned and config.effects]:  # a default measure may be missing
        reasons = dict.fromkeys(escape_control(reason) for name in missing for reason in difference.reasons_for(name))
        why = f" ({'; '.join(reasons)})" if reasons else ""
        raise ConfigError(f"effects: {' and '.join(missing)}: not measured in these runs{why}; give other effects, or other runs")
    if not lines:
        raise DataError(f"effects: none of {', '.join(effects)} is measured in these runs")
    add_result(power=[line.model_dump(mode="json") for line in lines])
    console = Console()
    for note in describe_pilot(difference, planned):
        console.print(one_line(note, 1000), markup=False, highlight=False, soft_wrap=not console.is_terminal)
    console.print(terminal_power_table(lines, config.questions))
    if config.out is not None:
        content = {
            "against": difference.against,
            "name": difference.name,
            "power": [line.model_dump(mode="json") for line in lines],
        }
        write_json(config.out / "power.json", content)
        add_result(paths={"power": config.out / "power.json"})


def parse_effects(given: Sequence[str]) -> dict[str, tuple[float, ...]]:
    """The differences by measure from texts like "pss=0.1"; the default ones without any. Raises ConfigError."""
    if not given:
        return DEFAULT_EFFECTS
    known = (*MEASURE_VIEWS["seed_differences"], *CHARACTER_MEASURES)
    effects: dict[str, tuple[float, ...]] = {}
    for text in given:
        name, _, size = text.partition("=")
        try:
            effect = float(size)
        except ValueError:
            effect = np.nan
        if name not in known or not 0 < effect <= 1:
            raise ConfigError(f"effects: {text!r} is not MEASURE=SIZE, with a size in (0, 1] and one of {', '.join(known)}")
        effects[name] = (*effects.get(name, ()), effect)
    return effects


def _two_methods(methods: Sequence[ReportMethod]) -> tuple[ReportMethod, ReportMethod]:
    """The two methods; the untrained base model, which fidelity runs refer to, counts only if one of two."""
    measured = [method for method in methods if any(measured_models(method))]
    if len(measured) > 2:
        measured = [method for method in measured if method.role != "base"]
    if len(measured) != 2:
        found = ", ".join(repr(one_line(method.name)) for method in measured) or "none"
        raise ConfigError(
            f"runs: power takes stability or fidelity runs of two methods; found {len(measured)}: {found}; name other runs, or "
            'say with methods which models are one method ("NAME=LABEL,LABEL")'
        )
    return measured[0], measured[1]


def plan_power(
    difference: MethodDifference, effects: dict[str, tuple[float, ...]], config: PowerConfig
) -> Iterator[PlannedPower]:
    """One line for each measured difference, assumption about seeds and number of seeds."""
    for name, sizes in effects.items():
        found = difference.over_seeds.get(name)
        if found is None or found.components is None or found.over_questions.low is None:
            continue
        noise = question_noise(STABILITY_MEASURES[name]) if name in STABILITY_MEASURES else "shared"
        for effect in sizes:
            for assumption in seed_assumptions(found, _pilot_seeds(difference, name), config.seed_sds):
                for seeds in config.seeds:
                    components = _planned_components(found.components, assumption)
                    power = {
                        questions: power_over_seeds(
                            effect, scale_questions(components, found.over_questions.n, questions), seeds, noise
                        )
                        for questions in config.questions
                    }
                    yield PlannedPower(
                        measure=name, effect=effect, seed_sd=assumption.sd, source=assumption.source, seeds=seeds, power=power
                    )


def _planned_components(measured: SeedVarianceComponents, assumption: SeedAssumption) -> SeedVarianceComponents:
    """The measured variances with that of seeds as assumed, and, with one seed, `ASSUMED_SHARED_NOISE`."""
    if measured.seed is not None:
        return measured.model_copy(update={"seed": assumption.sd**2})
    noise = measured.own + measured.shared
    return SeedVarianceComponents(
        seed=assumption.sd**2, own=noise * (1 - ASSUMED_SHARED_NOISE), shared=noise * ASSUMED_SHARED_NOISE
    )


def _pilot_seeds(difference: MethodDifference, name: str) -> int:
    """The number of seeds that the variance of seeds is measured from. An untrained model has none: it is compared with each
    seed."""
    compared = difference.seeds_of(name)
    return max(compared.n) if compared.pairing == "untrained" else min(compared.n)


def seed_assumptions(found: SeedDifference, pilot_seeds: int, assumed_sds: Sequence[float]) -> list[SeedAssumption]:
    """The standard deviations between pairs of seeds to plan with.

    Several seeds: the measured one, and its upper bound. One seed: the assumed ones of a single method, times √2 for a pair.
    """
    components = found.components
    if components is None or components.seed is None:
        return [SeedAssumption(sd * float(np.sqrt(2)), f"assumed: {sd:g} of each") for sd in assumed_sds]
    upper = upper_seed_variance(components, pilot_seeds)
    return [
        SeedAssumption(float(np.sqrt(components.seed)), "measured"),
        SeedAssumption(float(np.sqrt(upper)), f"{UPPER_SHARE:.0%} bound"),
    ]


def upper_seed_variance(components: SeedVarianceComponents, pilot_seeds: int) -> float:
    """The variance of seeds that is exceeded with probability 1 − `UPPER_SHARE`, from that of `pilot_seeds` pairs of seeds.

    (S − 1) s² / χ² with the chi-squared quantile of S − 1 degrees of freedom, less the question noise that s² holds too. Raises
    ValueError for fewer than two pairs, which show no variance.
    """
    freedom = pilot_seeds - 1
    if components.seed is None or freedom < 1:
        raise ValueError(f"pilot_seeds is {pilot_seeds}; a variance of seeds needs at least 2")
    return max(0.0, (components.seed + components.own) * freedom / float(chdtri(freedom, UPPER_SHARE)) - components.own)


def describe_pilot(difference: MethodDifference, planned: Collection[str]) -> list[str]:
    """Sentences about what was measured and what the numbers are; `planned`: the measures of the lines."""
    if any(difference.seeds_of(name).pairing == "untrained" for name in planned):
        seeds = "the seeds of the method that is trained, against one model without a training"
    else:
        seeds = "equally many seeds of both methods, the same in both"
    lines = [
        f"Power to show a difference of {difference.name} against {difference.against}, in per cent (two-sided .05, by the "
        f"interval over questions and training seeds); * marks {100 * TARGET_POWER:.0f} or more. Planned: {seeds}, and the "
        "personas of these runs."
    ]
    components = [difference.over_seeds[name].components for name in planned]
    if any(one is not None and one.seed is None for one in components):
        lines.append(
            "A method has one training seed here. So it is not known how much seeds differ; the table states what is assumed. It "
            f"is not known either how much of the question noise the seeds share; {ASSUMED_SHARED_NOISE:.0%} is assumed."
        )
    return lines


def terminal_power_table(lines: Sequence[PlannedPower], questions: Sequence[int]) -> TerminalTable:
    """The table for a terminal: a row for each line, a column for each number of questions."""
    table = terminal_table()
    for heading in ("measure", "difference", "sd of pairs of seeds", "seeds", *(f"{n} questions" for n in questions)):
        table.add_column(heading, overflow="fold")
    previous = None
    for line in lines:
        label = STABILITY_MEASURES[line.measure].label if line.measure in STABILITY_MEASURES else line.measure
        about = (label, f"{line.effect:g}", f"{line.seed_sd:.3f} ({line.source})")
        cells = [_power_text(line.power[n]) for n in questions]
        table.add_row(*map(Text, about if about != previous else ("", "", "")), Text(str(line.seeds)), *map(Text, cells))
        previous = about
    return table


def _power_text(power: float) -> str:
    return f"{100 * power:.0f}{'*' if power >= TARGET_POWER else ''}"
