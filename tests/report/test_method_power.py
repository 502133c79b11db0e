"""`permix power`: pilot runs of two methods, what is planned from them, and what is refused."""

import json
import re
import shutil
from pathlib import Path

import pytest
from scipy.stats import chi2

from permix import cli
from permix.config import PowerConfig
from permix.metrics.measures import CHARACTER_MEASURES, MEASURE_VIEWS
from permix.metrics.training_seeds import SeedDifference, SeedVarianceComponents, power_over_seeds, scale_questions
from permix.report.method_power import describe_pilot, parse_effects, plan_power, seed_assumptions, upper_seed_variance
from permix.report.methods import group_methods
from permix.report.pooled import ComparedSeeds, MethodDifference, method_difference, reference_differences
from permix.report.runs import collect_models
from permix.types import Estimate
from tests.seeded import stability_run, torn, write_study

MEASURED = SeedVarianceComponents(seed=0.0004, own=0.0002, shared=0.0001)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_study(tmp_path_factory.mktemp("study"))


def difference(components: SeedVarianceComponents, seeds: int) -> MethodDifference:
    known = SeedDifference(
        over_questions=Estimate(value=0.1, low=0.0, high=0.2, n=100),
        over_seeds=Estimate(value=0.1, n=100),
        components=components,
    )
    return MethodDifference(name="b", against="a", n_seeds=(seeds, seeds), over_seeds={"mean": known})


def test_each_line_is_the_power_at_the_planned_number_of_questions() -> None:
    config = PowerConfig(seeds=(3, 5), questions=(100, 400))
    lines = list(plan_power(difference(MEASURED, 3), {"mean": (0.05,), "worst": (0.05,)}, config))
    assert [(one.measure, one.seeds, one.source) for one in lines] == [
        ("mean", 3, "measured"), ("mean", 5, "measured"), ("mean", 3, "80% bound"), ("mean", 5, "80% bound"),
    ]  # fmt: skip
    assert lines[1].seed_sd == pytest.approx(0.02)
    assert lines[1].power[100] == pytest.approx(power_over_seeds(0.05, MEASURED, 5))
    assert lines[1].power[400] == pytest.approx(power_over_seeds(0.05, scale_questions(MEASURED, 100, 400), 5))
    assert lines[1].power[100] < lines[1].power[400]
    assert lines[3].power[400] < lines[1].power[400]


def test_the_bound_of_the_seeds_by_hand() -> None:
    """Three seeds have 2 degrees of freedom: (.0004 + .0002) × 2 / .4463 − .0002 = .0025."""
    assert chi2.ppf(0.2, 2) == pytest.approx(0.4463, abs=1e-4)
    assert upper_seed_variance(MEASURED, 3) == pytest.approx(0.0006 * 2 / 0.446287 - 0.0002, rel=1e-5)


@pytest.mark.parametrize("counts", [(3, 1), (1, 3)])
def test_an_untrained_model_takes_no_degree_of_freedom(counts: tuple[int, int]) -> None:
    """The variance of three seeds is known whichever method has the one model without a training."""
    untrained = {"mean": ComparedSeeds(pairing="untrained", n=counts)}
    change = difference(MEASURED, 3).model_copy(update={"n_seeds": counts, "compared_seeds": untrained})
    config = PowerConfig(seeds=(3,), questions=(100,))
    measured, bound = plan_power(change, {"mean": (0.05,)}, config)
    assert (measured.source, bound.source) == ("measured", "80% bound")
    assert bound.seed_sd == pytest.approx(upper_seed_variance(MEASURED, 3) ** 0.5)
    assert bound.seed_sd > measured.seed_sd
    (note,) = describe_pilot(change, ["mean"])  # no seed is said to be alone
    assert "Planned: the seeds of the method that is trained, against one model without a training, and the personas" in note


def test_the_notes_are_about_the_measures_that_are_planned() -> None:
    alone = difference(SeedVarianceComponents(seed=None, own=0.0004, shared=0.0), 1).over_seeds["mean"]
    change = difference(MEASURED, 3)
    change = change.model_copy(update={"over_seeds": {**change.over_seeds, "identifiability": alone}})
    (note,) = describe_pilot(change, ["mean"])
    assert "Planned: equally many seeds of both methods, the same in both, and the personas" in note
    assert describe_pilot(change, ["mean", "identifiability"])[1].startswith("A method has one training seed here.")


def test_one_pair_of_seeds_has_no_bound() -> None:
    with pytest.raises(ValueError, match="pilot_seeds is 1; a variance of seeds needs at least 2"):
        upper_seed_variance(MEASURED, 1)


def test_with_one_seed_the_sds_are_assumed_and_so_is_half_of_the_noise() -> None:
    alone = SeedVarianceComponents(seed=None, own=0.0004, shared=0.0)
    change = difference(alone, 1)
    found = seed_assumptions(change.over_seeds["mean"], 1, (0.0, 0.02))
    assert [(round(one.sd, 4), one.source) for one in found] == [(0.0, "assumed: 0 of each"), (0.0283, "assumed: 0.02 of each")]
    config = PowerConfig(seeds=(3,), questions=(100,), seed_sds=(0.02,))
    (line,) = plan_power(change, {"mean": (0.05,)}, config)
    assumed = SeedVarianceComponents(seed=2 * 0.02**2, own=0.0002, shared=0.0002)
    assert line.power[100] == pytest.approx(power_over_seeds(0.05, assumed, 3))


@pytest.mark.slow
def test_pilot_runs_give_a_table(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run_cli(["power", str(folder), "--seeds", "3", "--questions", "100", "--out", str(tmp_path / "out")]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "Power to show a difference of RLVR against PerMix-RLVR, in per cent" in said
    assert "worst − no persona 0.05" in said
    assert "one training seed" not in said
    lines = json.loads((tmp_path / "out" / "power.json").read_text())["power"]
    assert {(one["measure"], one["effect"]) for one in lines} == {
        ("pss", 0.05), ("pss", 0.1), ("worst", 0.05), ("worst_minus_baseline", 0.05), ("mean_minus_baseline", 0.03),
        ("identifiability", 0.03),
    }  # fmt: skip
    assert all(0 <= one["power"]["100"] <= 1 for one in lines)


def test_one_seed_each_is_said(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("rlvr-1", "mixed-1"):
        for kind in ("train", "stability"):
            shutil.copytree(folder / f"{name}-{kind}", tmp_path / "one" / f"{name}-{kind}")
    assert cli.run_cli(["power", str(tmp_path / "one"), "--effects", "pss=0.2", "--seeds", "3", "--questions", "50"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "A method has one training seed here." in said
    assert "(assumed: 0.04 of each)" in said


def test_a_given_measure_that_is_not_in_the_runs_is_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of the default measures those are planned that the runs have; one that is asked for is not left out."""
    for name in ("rlvr-1", "mixed-1"):
        for kind in ("train", "stability"):
            shutil.copytree(folder / f"{name}-{kind}", tmp_path / "one" / f"{name}-{kind}")
    asked = ["--effects", "pss=0.1", "recognisability=0.05", "right_in_character=0.1", "--out", str(tmp_path / "out")]
    assert cli.run_cli(["power", str(tmp_path / "one"), *asked]) == 2
    said = capsys.readouterr()
    assert "effects: recognisability and right_in_character: not measured in these runs" in said.err
    assert said.out == ""
    assert not (tmp_path / "out").exists()
    assert cli.run_cli(["power", str(tmp_path / "one"), "--seeds", "3", "--questions", "50"]) == 0


def test_the_help_names_every_measure_that_can_be_planned() -> None:
    described = str(PowerConfig.model_fields["effects"].description)
    assert all(re.search(rf"\b{name}\b", described) for name in (*MEASURE_VIEWS["seed_differences"], *CHARACTER_MEASURES))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--effects", "psx=0.1"], "effects: 'psx=0.1' is not MEASURE=SIZE, with a size in (0, 1] and one of pss, "),
        (["--effects", "pss=2"], "effects: 'pss=2' is not MEASURE=SIZE"),
        (["--effects", "pss"], "effects: 'pss' is not MEASURE=SIZE"),
        (["--seeds", "1"], "seeds.0 = 1: must be greater than or equal to 2"),
        (["--methods", "x=base"], "methods"),
    ],
)
def test_what_cannot_be_planned_is_refused(
    options: list[str], text: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = cli.run_cli(["power", str(folder), *options])
    if options[0] == "--methods":
        assert status == 0  # the base model under another name is left out all the same
    else:
        assert status == 2
        assert text in capsys.readouterr().err


def test_runs_of_one_method_or_of_other_questions_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stability_run(tmp_path / "a", "a", "x", torn)
    assert cli.run_cli(["power", str(tmp_path / "a")]) == 2
    assert "two methods; found 1: 'a'; name other runs" in capsys.readouterr().err
    stability_run(tmp_path / "b", "b", "y", torn, questions=15)
    assert cli.run_cli(["power", str(tmp_path)]) == 2
    assert "cannot be compared: Not the same questions (20 against 15, 15 in common)" in capsys.readouterr().err


def test_sizes_of_one_measure_are_collected() -> None:
    assert parse_effects(["pss=0.1", "mean=0.02", "pss=0.2"]) == {"pss": (0.1, 0.2), "mean": (0.02,)}
    assert parse_effects([f"{name}=0.1" for name in CHARACTER_MEASURES]) == dict.fromkeys(CHARACTER_MEASURES, (0.1,))


# How seeds belong together


@pytest.mark.slow
def test_seeds_of_both_trainings_are_paired_and_a_base_model_has_none(folder: Path) -> None:
    base, mixed, plain = group_methods(collect_models([folder]))
    turned = mixed._replace(models=mixed.models[::-1])
    found, again = method_difference(mixed, plain), method_difference(turned, plain)
    assert (found.seed_pairing, found.fidelity_seed_pairing) == ("paired", "paired")
    assert again.over_seeds["mean"].over_seeds.low == pytest.approx(found.over_seeds["mean"].over_seeds.low)
    against = method_difference(mixed, base)
    assert against.seed_pairing == "untrained"
    assert against.covers_seeds("mean")
    assert [(one.name, one.against) for one in reference_differences([base, mixed, plain])] == [
        ("base", "RLVR"),
        ("PerMix-RLVR", "RLVR"),
    ]
    alone = mixed._replace(models=mixed.models[:1])
    assert method_difference(alone, plain).seed_pairing == "unpaired"
    assert not method_difference(alone, plain).covers_seeds("pss")
    assert reference_differences([base, alone]) == []


def test_measures_of_draws_are_planned_with_all_their_question_noise() -> None:
    config = PowerConfig(seeds=(5,), questions=(100,))
    change = difference(MEASURED, 3).model_copy(update={"over_seeds": {"pss": difference(MEASURED, 3).over_seeds["mean"]}})
    line, _ = plan_power(change, {"pss": (0.05,)}, config)
    assert line.power[100] == pytest.approx(power_over_seeds(0.05, MEASURED, 5, "whole"))
    assert line.power[100] < power_over_seeds(0.05, MEASURED, 5)
