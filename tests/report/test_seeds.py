"""Seeds pooled: means that a person can make from the seeds' own numbers, and intervals that draw the questions once."""

import json
from pathlib import Path

import numpy as np
import pytest

from permix.metrics import statistics
from permix.metrics.recognisability import Recognisability
from permix.rendering.table import format_p_value
from permix.report.builder import build_report
from permix.report.claim import build_claim
from permix.report.methods import ReportMethod, group_methods
from permix.report.pooled import method_difference, pool_seeds, reference_differences
from permix.report.runs import ModelRuns, collect_models
from permix.report.tables import method_table, pooled_character_cell, seed_difference_table
from permix.types import Estimate
from tests.seeded import Right, estimate_of, share, stability_run, torn, train_run, write_study


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ReportMethod]:
    return {one.name: one for one in group_methods(collect_models([write_study(tmp_path_factory.mktemp("study"))]))}


def value(one: Estimate | None) -> float:
    assert one is not None
    assert one.value is not None
    return one.value


def width(one: Estimate | None) -> float:
    assert one is not None
    assert one.low is not None
    assert one.high is not None
    return one.high - one.low


def test_measuring_many_models_shows_progress_and_few_do_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [stability_run(tmp_path / f"{number}", f"model {number}", "tiny", share(3), questions=4) for number in range(8)]
    assert len(collect_models(runs[:7])) == 7
    assert capsys.readouterr().err == ""
    assert len(collect_models(runs, "measures of accuracy")) == 8
    assert capsys.readouterr().err.startswith("measures of accuracy: 8/8 models (")


@pytest.mark.slow
def test_numbers_of_a_method_are_means_of_its_seeds(study: dict[str, ReportMethod]) -> None:
    assert [(one.name, one.role, one.labels) for one in study.values()] == [
        ("base", "base", ("base",)),
        ("PerMix-RLVR", "permix", ("mixed 1", "mixed 2")),
        ("RLVR", "rlvr", ("rlvr 1", "rlvr 2")),
    ]
    found, seeds = pool_seeds(study["RLVR"]), study["RLVR"].models
    assert (found.labels, found.n_stability, found.n_fidelity) == (("rlvr 1", "rlvr 2"), 2, 2)
    assert value(found.measures["baseline"]) == pytest.approx(0.7)  # .8 and .6 without persona
    assert value(found.mean) == pytest.approx(0.55)  # (.2 + .4 + .6 + .8) / 4, and .6
    for name in ("pss", "worst"):
        assert value(found.measures[name]) == pytest.approx(np.mean([value(getattr(one.stability, name)) for one in seeds]))
    told = [one.identifiability.accuracy for one in seeds if one.identifiability is not None]
    assert value(found.identifiability) == pytest.approx(np.mean([value(one) for one in told]))
    assert (found.chance, found.identifiability and found.identifiability.n, found.pss and found.pss.n) == (0.25, 160, 20)


def test_a_lone_model_keeps_its_own_numbers(study: dict[str, ReportMethod]) -> None:
    found, (model,) = pool_seeds(study["base"]), study["base"].models
    assert model.stability is not None
    assert model.identifiability is not None
    mine = (
        model.stability.baseline,
        model.stability.mean,
        model.stability.worst,
        model.stability.pss,
        model.identifiability.accuracy,
    )
    assert (found.measures["baseline"], found.mean, found.worst, found.pss, found.identifiability) == mine


def test_a_model_beside_its_copy_is_no_better_known(study: dict[str, ReportMethod]) -> None:
    """Seeds share the questions: a second one that answers just as the first adds nothing, and takes nothing away."""
    model = study["base"].models[0]
    twice, alone = pool_seeds(ReportMethod("twice", "other", (model, model))), pool_seeds(study["base"])
    for name in ("baseline", "mean", "worst", "pss", "identifiability"):
        here, there = estimate_of(twice, name), estimate_of(alone, name)
        assert value(here) == pytest.approx(value(there))
        assert width(here) == pytest.approx(width(there), rel=0.35)


def test_difference_is_that_of_the_means_and_has_an_interval(study: dict[str, ReportMethod]) -> None:
    one, other = study["PerMix-RLVR"], study["RLVR"]
    found, pooled = method_difference(one, other), [pool_seeds(one), pool_seeds(other)]
    assert (found.name, found.against, found.n_seeds, found.n_fidelity_seeds, found.n_personas) == (
        one.name,
        "RLVR",
        (2, 2),
        (2, 2),
        4,
    )
    assert value(found.measures["mean"]) == pytest.approx(0.8 - 0.55)
    for name in ("mean", "pss", "worst", "identifiability"):
        mine, theirs = (value(estimate_of(each, name)) for each in pooled)
        assert value(estimate_of(found, name)) == pytest.approx(mine - theirs)
    assert found.measures["mean"].low is not None
    assert found.measures["mean"].low > 0
    assert found.identifiability
    assert found.identifiability.low is not None
    assert found.identifiability.low > 0


def test_a_method_against_itself_differs_in_nothing(study: dict[str, ReportMethod]) -> None:
    found = method_difference(study["RLVR"], study["RLVR"])
    assert [value(found.pss), value(found.measures["mean"]), value(found.identifiability)] == [0.0, 0.0, 0.0]
    unseen = 1 - 0.025 ** (1 / 20)  # what may still differ, where no question of 20 does
    assert [width(found.measures["mean"]), width(found.identifiability)] == pytest.approx([2 * unseen, 2 * unseen])


def test_seeds_that_were_asked_otherwise_are_not_pooled(tmp_path: Path) -> None:
    stability_run(tmp_path / "a", "a 1", "x", share(4))
    stability_run(tmp_path / "b", "a 2", "x", torn, questions=15)
    stability_run(tmp_path / "c", "c", "x", torn)
    two, other = group_methods(collect_models([tmp_path]), ["a=a 1,a 2"])
    found = pool_seeds(two)
    assert (found.pss, found.mean, found.n_stability) == (None, None, 2)
    assert found.reasons == ("Not the same questions (20 against 15, 15 in common)",)
    against = method_difference(two, other)
    assert (against.pss, against.reasons) == (None, ("Not the same questions (20 against 15, 15 in common)",))


def test_a_seed_that_was_not_measured_is_not_counted(tmp_path: Path, study: dict[str, ReportMethod]) -> None:
    measured = study["RLVR"].models[0]
    found = pool_seeds(ReportMethod("RLVR", "rlvr", (measured, measured._replace(label="rlvr 9", stability=None, grid=None))))
    assert (found.n_stability, found.n_fidelity) == (1, 2)
    assert measured.stability is not None
    assert found.pss == measured.stability.pss


def test_a_cell_names_the_seeds_that_were_measured(study: dict[str, ReportMethod]) -> None:
    one, other = study["RLVR"].models
    alone = other._replace(stability=None, grid=None, runs={"fidelity": other.runs["fidelity"]})
    method = ReportMethod("RLVR", "rlvr", (one, alone))
    table = method_table([method], [pool_seeds(method)])
    cells = {heading: cell for heading, cell in zip(table.headings, table.rows[0], strict=True) if cell.sources}
    assert {source.label for source in cells["mean over personas"].sources} == {one.label}
    assert cells["mean over personas"].note == "n = 20; 1 of 2 training seeds"
    assert {source.label for source in cells["identifiability"].sources} == {one.label, alone.label}
    assert "training seeds" not in cells["identifiability"].note


# Over questions and seeds


def test_a_method_has_both_intervals_and_the_table_names_them(study: dict[str, ReportMethod]) -> None:
    """Accuracies of .5 and .6 as a mean over personas: .55 ± 12.7 × .0707 / √2 = .64, so within [0, 1] everything."""
    methods = list(study.values())
    pooled = [pool_seeds(one) for one in methods]
    over = pooled[2].over_seeds["mean"]
    assert value(over) == pytest.approx(0.55)
    assert (over.low, over.high) == (0.0, 1.0)
    assert pooled[0].over_seeds == {}  # one model
    table = method_table(methods, pooled)
    (column,) = (place for place, heading in enumerate(table.headings) if heading == "mean over personas")
    assert table.rows[2][column].note == "n = 20; over questions and seeds [0.00, 1.00]"
    assert table.rows[0][column].note == "n = 20"
    alone = [study["RLVR"], study["PerMix-RLVR"]._replace(name="one", models=study["PerMix-RLVR"].models[:1])]
    rows = method_table(alone, [pool_seeds(one) for one in alone]).rows
    assert [row[0].note for row in rows] == ["mean of 2 training seeds", "one model; other training seeds are not covered"]


def test_differences_of_methods_are_shown_over_questions_and_over_seeds(study: dict[str, ReportMethod]) -> None:
    differences = reference_differences(list(study.values()))
    table = seed_difference_table(differences)
    assert table is not None
    assert len(table.rows) == 2 * 7
    cells = {(row[0].text, row[2].text): [cell.text for cell in row[3:]] for row in table.rows}
    found = differences[1].over_seeds["identifiability"]
    assert cells["PerMix-RLVR", "identifiability"] == [
        found.over_questions.format_difference(), found.over_seeds.format_difference(), format_p_value(found.p), "higher",
        "2 of each, paired",
    ]  # fmt: skip
    mean = differences[1].over_seeds["mean"]
    assert mean.over_questions == differences[1].measures["mean"]
    # .3 and .2 in the two seeds: .25 ± √((12.7 × .0707)² / 2 + ...), while every question interval excludes 0.
    assert mean.over_questions.low is not None
    assert mean.over_seeds.low is not None
    assert mean.over_seeds.low < 0 < mean.over_questions.low
    assert cells["PerMix-RLVR", "mean over personas"][3] == "no difference shown"
    assert cells["base", "mean over personas"][4] == "1 and 2, one of them not trained"


def test_one_seed_of_a_trained_method_is_not_covered(study: dict[str, ReportMethod]) -> None:
    alone = study["PerMix-RLVR"]._replace(models=study["PerMix-RLVR"].models[:1])
    table = seed_difference_table(reference_differences([study["RLVR"], alone]))
    assert table is not None
    assert {row[6].text for row in table.rows} == {"seeds not covered: one seed of a trained method"}
    assert {row[4].text for row in table.rows} == {"–"}
    assert seed_difference_table([]) is None


@pytest.mark.slow
def test_both_intervals_are_in_the_report(tmp_path: Path) -> None:
    build_report([write_study(tmp_path / "study")], tmp_path / "out")
    data = json.loads((tmp_path / "out" / "table.json").read_text())
    (mixed,) = (one for one in data["method_differences"] if one["name"] == "PerMix-RLVR")
    assert mixed["over_seeds"]["pss"]["over_questions"] == mixed["pss"]
    assert set(data["methods"][1]["over_seeds"]) == {
        "baseline", "mean", "worst", "pss", "persona_sd", "relative_persona_sd", "identifiability",
    }  # fmt: skip
    report = (tmp_path / "out" / "report.md").read_text()
    assert "## Differences of methods over training seeds" in report
    assert (tmp_path / "out" / "tables" / "method-differences.csv").exists()


# Seeds that only one method has


def trained(folder: Path, label: str, method: str, seed: int, right: Right) -> None:
    asked = str(train_run(folder / f"{method}-{seed}-train", f"{label} {seed}", seed, method=method) / "model")
    stability_run(folder / f"{method}-{seed}", f"{label} {seed}", asked, right)


def test_of_methods_with_other_seeds_the_common_ones_are_compared(tmp_path: Path) -> None:
    """RLVR has .5, .6, .2 and .4 by seed, PerMix .8 in two of them and 1 in one of its own: .8 − .6 and .8 − .2, mean .4."""
    for seed, right in enumerate((torn, share(3), share(1), share(2)), 1):
        trained(tmp_path, "rlvr", "rlvr", seed, right)
    for seed, right in ((3, share(4)), (2, share(4)), (9, share(5))):
        trained(tmp_path, "mixed", "permix", seed, right)
    methods = {one.name: one for one in group_methods(collect_models([tmp_path]))}
    plain, mixed = methods["RLVR"], methods["PerMix-RLVR"]
    found = method_difference(mixed, plain)
    assert (found.n_seeds, found.seed_pairing, found.compared_seeds["mean"].n_left_out) == ((2, 2), "paired", (1, 2))
    assert value(found.measures["mean"]) == pytest.approx(0.4)
    covered = found.over_seeds["mean"]
    # .2 and .6 in the two seeds: a standard error of .2, times 12.7
    assert covered.over_seeds.low == -1.0
    assert covered.p is not None
    assert 0.29 < covered.p < 0.31  # t = 2 with one degree of freedom: 1 − 2 arctan(2) / π = .295, and the question noise
    assert value(pool_seeds(plain).mean) == pytest.approx((0.5 + 0.6 + 0.2 + 0.4) / 4)
    table = seed_difference_table([found])
    assert table is not None
    assert {row[-1].text for row in table.rows} == {
        "2 of each, paired; 1 further seed of PerMix-RLVR left out; 2 further seeds of RLVR left out"
    }
    assert "2 further seeds of RLVR count in the method's own mean alone" in build_claim([plain, mixed]).support
    one_common = mixed._replace(models=mixed.models[1:])  # seeds 3 and 9
    assert method_difference(one_common, plain).compared_seeds["mean"].model_dump() == {
        "pairing": "unpaired", "n": (2, 4), "n_left_out": (0, 0),
    }  # fmt: skip


# Recognisability


def recognised(model: ModelRuns, tenths: int) -> ModelRuns:
    by_question = {f"question {q}": (float(tenths), 10) for q in range(20)}
    found = Recognisability.model_construct(
        accuracy=Estimate(value=tenths / 10, n=200), embedder="embedder", right_by_question=by_question
    )
    return model._replace(recognisability=found)


def test_recognisability_has_an_interval_over_seeds(study: dict[str, ReportMethod]) -> None:
    """.6 − .2 and .8 − .3: .45 ± 12.7 × .0707 / √2 = .635, while all questions are alike."""
    one, other = (
        study[name]._replace(models=tuple(map(recognised, study[name].models, tenths)))
        for name, tenths in (("PerMix-RLVR", (6, 8)), ("RLVR", (2, 3)))
    )
    pooled = pool_seeds(one)
    assert value(pooled.recognisability) == pytest.approx(0.7)
    over = pooled.over_seeds["recognisability"]
    assert (over.low, over.high) == (0.0, 1.0)  # .7 ± 12.7 × .141 / √2 = 1.27
    assert pooled_character_cell(pooled, "recognisability").note.endswith("; over questions and seeds [0.00, 1.00]")
    assert "recognisability" not in pool_seeds(one._replace(models=one.models[:1])).over_seeds
    found = method_difference(one, other)
    assert value(found.recognisability) == pytest.approx(0.45)
    covered = found.over_seeds["recognisability"]
    assert covered.over_questions == found.recognisability
    assert covered.over_seeds.low == pytest.approx(0.45 - 12.7062 * 0.05, abs=1e-4)
    assert covered.over_seeds.high == 1.0
    table = seed_difference_table([found])
    assert table is not None
    cells = {row[2].text: [cell.text for cell in row[3:]] for row in table.rows}
    assert cells["recognisability"][-2:] == ["no difference shown", "2 of each, paired"]
    relative = method_difference(one, other, statistics.relative_change)
    assert value(relative.recognisability) == pytest.approx(0.7 / 0.25 - 1)
    # To first order a seed's value is .6 / .25 − 2.8 × .2 / .25 = .16, and of the other seed −.16: 1.8 ± 12.7 × .16.
    assert relative.over_seeds["recognisability"].over_seeds.low == pytest.approx(1.8 - 12.7062 * 0.16, abs=1e-4)
    assert relative.over_seeds["recognisability"].over_seeds.high == pytest.approx(1.8 + 12.7062 * 0.16, abs=1e-4)
