"""The registry of stability measures: what it declares, how it is written to disk, and that a new measure shows everywhere."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError
from rich.console import Console

from permix.config import DevEvalConfig
from permix.dashboard.live_metrics import measure_live
from permix.metrics.dev_curve import DevCurve, DevEvalPoint
from permix.metrics.linear_models import TemplateSummary
from permix.metrics.measures import (
    CHARACTER_MEASURES,
    MEASURE_VIEWS,
    STABILITY_MEASURES,
    StabilityMeasure,
    measures_estimated_by,
    select_measures,
)
from permix.metrics.stability import StabilitySummary, summarize_stability
from permix.metrics.statistics import Array
from permix.rendering.plots import dev_curve_panels
from permix.report.builder import build_report
from permix.report.comparisons import Comparison, compare_runs, comparison_markdown, terminal_comparison_tables
from permix.report.methods import group_methods
from permix.report.pooled import MethodDifference, PooledMethod, method_difference, pool_seeds
from permix.report.runs import ModelRow, collect_models
from permix.training.dev_eval import dev_point_from_records
from permix.training.model_card import draw_curves
from permix.types import Estimate
from tests.seeded import PERSONAS, QUESTIONS, share, stability_run, torn, write_study

ONE, NOTHING = Estimate(value=0.5, low=0.4, high=0.6, n=9), Estimate(value=None, n=0)
COUNTS = {"n_scored": 4, "n_asked": 4, "n_questions": 2, "n_personas": 2}

# What is declared


def test_every_measure_has_its_name_and_the_formula_that_its_estimator_needs() -> None:
    assert [measure.name for measure in STABILITY_MEASURES.values()] == list(STABILITY_MEASURES)
    assert all(measure.formula for measure in measures_estimated_by("posterior", "hull", "permuted"))
    assert all(measure.formula or measure.scores_formula for measure in STABILITY_MEASURES.values())


def test_views_hold_measures_that_are_there() -> None:
    assert {name for names in MEASURE_VIEWS.values() for name in names} <= set(STABILITY_MEASURES)
    assert all(len(set(names)) == len(names) for names in MEASURE_VIEWS.values())
    assert set(MEASURE_VIEWS["main_table"]) <= set(MEASURE_VIEWS["table_row"])
    assert set(MEASURE_VIEWS["method_table"]) == set(MEASURE_VIEWS["methods"])
    for shown in ("dev_eval_log", "dev_eval_card", "dev_eval_curves"):
        assert set(MEASURE_VIEWS[shown]) <= set(MEASURE_VIEWS["dev_eval"])


def test_draws_need_a_formula_of_accuracies() -> None:
    measure = StabilityMeasure("toy", "toy", "posterior", scores_formula=lambda scores: scores.baseline_R)
    with pytest.raises(TypeError, match=r"toy has no formula of accuracies, which its estimator \(posterior\) needs"):
        measure.of_accuracies(np.ones((1, 2)), np.ones(1))


# What is written


def test_a_summary_is_flat_in_json_and_read_again() -> None:
    summary = summarize_stability([[[1.0], [0.0]], [[0.0], [0.0]]], [[1.0], [1.0]], resamples=20)
    written = json.loads(summary.model_dump_json())
    assert list(written) == [
        "pss", "pss_observed", "pss_null", "pss_crossfit", "worst", "best", "mean", "baseline", "mean_minus_baseline",
        "worst_minus_baseline", "spread", "persona_sd", "relative_persona_sd",
        "worst_per_question", "permutation_p", "minimum_detectable_effect",
        "expected_best_of_k", "personas", "n_scored", "n_asked", "n_questions", "n_personas",
    ]  # fmt: skip
    assert written["pss"] == summary.pss.model_dump()
    assert summary.model_dump(mode="json") == written
    assert StabilitySummary.model_validate(written) == summary
    assert list(StabilitySummary.json_keys()) == list(written)


def test_what_was_not_measured_is_null_in_json() -> None:
    row = ModelRow(label="m", measures={"pss": ONE})
    written = row.model_dump(mode="json")
    assert list(written)[:11] == [
        "label", "baseline", "mean", "worst", "pss", "persona_sd", "relative_persona_sd", "pss_observed", "pss_null",
        "pss_crossfit", "identifiability",
    ]  # fmt: skip
    assert (written["mean"], written["pss"]) == (None, ONE.model_dump())
    assert ModelRow.model_validate(written) == row
    against = Comparison(label="b", against="a", measures={"mean": ONE})
    assert list(against.model_dump())[:7] == [
        "label", "against", "pss", "relative_persona_sd", "worst", "mean", "identifiability",
    ]  # fmt: skip
    change = MethodDifference(name="b", against="a")
    assert list(change.model_dump())[:7] == [
        "name", "against", "pss", "relative_persona_sd", "worst", "mean", "identifiability",
    ]  # fmt: skip
    pooled = PooledMethod(name="b", labels=("b",))
    assert list(pooled.model_dump())[:9] == [
        "name", "labels", "baseline", "mean", "worst", "pss", "persona_sd", "relative_persona_sd", "identifiability",
    ]  # fmt: skip


def test_what_must_be_there_is_missed_and_what_is_unknown_refused() -> None:
    point = {"step": 3, "identifiability": None, "chance": None, "completion_tokens": 2.0}
    point |= {"n_questions": 9, "n_scored": 18, "n_asked": 18}
    measures = {name: ONE.model_dump() for name in ("mean", "baseline", "worst", "best", "pss")}
    assert DevEvalPoint.model_validate(point | measures).model_dump(mode="json").items() >= measures.items()
    with pytest.raises(ValidationError, match="measures: worst, pss: missing"):
        DevEvalPoint.model_validate(point | {name: measures[name] for name in ("mean", "baseline", "best")})
    with pytest.raises(ValidationError, match="persona_sd\n  Extra inputs are not permitted"):
        DevEvalPoint.model_validate(point | measures | {"persona_sd": ONE.model_dump()})
    with pytest.raises(ValidationError, match="measures: spread: not among mean, worst, pss, mean_minus_baseline"):
        TemplateSummary(id="a", text="A", measures=dict.fromkeys((*MEASURE_VIEWS["templates"], "spread"), ONE))


def test_a_view_takes_what_is_there_in_its_order() -> None:
    assert list(select_measures("differences", {"mean": ONE, "spread": ONE, "pss": NOTHING})) == ["pss", "mean"]


# A measure that is added, as CONTRIBUTING.md has it: an entry of the registry, and its name in the views


def median(accuracy_R_P: Array, _: Array) -> Array:
    return np.asarray(np.median(accuracy_R_P, axis=1))


def median_against_none(accuracy_R_P: Array, baseline_R: Array) -> Array:
    return median(accuracy_R_P, baseline_R) - baseline_R


TOY = StabilityMeasure("toy", "median persona", "bootstrap", median, phrase="the median persona's accuracy")
TOYS = {
    "bootstrap": TOY,
    "share": replace(TOY, estimator="share"),
    "hull": replace(TOY, estimator="hull"),
    "posterior": replace(TOY, estimator="posterior"),
    "of scores": replace(TOY, scores_formula=lambda scores: median(scores.accuracy_R_P, scores.baseline_R)),
    "against none": replace(TOY, estimator="posterior", formula=median_against_none, questions="both", is_difference=True),
}


@pytest.fixture(params=TOYS)
def toy(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> StabilityMeasure:
    """The accuracy under the median persona, or that less none's: .5 of `torn`, whose accuracy without persona is .8."""
    measure = TOYS[request.param]
    monkeypatch.setitem(STABILITY_MEASURES, measure.name, measure)
    for view, names in MEASURE_VIEWS.items():
        monkeypatch.setitem(MEASURE_VIEWS, view, (*names, measure.name))
    return measure


def is_near(toy: StabilityMeasure, estimate: Estimate, value: float) -> bool:
    """Draws take noise off, so theirs lies near the value observed."""
    if estimate.value is None or estimate.low is None or estimate.high is None:
        return False
    return bool(abs(estimate.value - value) < (0.1 if toy.estimator == "posterior" else 1e-9) and estimate.low < estimate.high)


def test_it_is_measured_and_written(toy: StabilityMeasure) -> None:
    right_P_Q = np.array([[torn(p, q) for q in range(QUESTIONS)] for p in range(-1, PERSONAS)], dtype=float)
    summary = summarize_stability(right_P_Q[1:, :, None], right_P_Q[0][:, None], resamples=100)
    assert is_near(toy, summary.measures["toy"], 0.5 - 0.8 if toy.is_difference else 0.5)
    assert summary.measures["toy"].n == QUESTIONS
    assert StabilitySummary.model_validate_json(summary.model_dump_json()) == summary
    assert summary.model_dump()["toy"] == summary.measures["toy"].model_dump()


@pytest.mark.slow
def test_it_stands_in_a_report(toy: StabilityMeasure, tmp_path: Path) -> None:
    rows = build_report([write_study(tmp_path / "study")], tmp_path / "out")
    data = json.loads((tmp_path / "out" / "table.json").read_text())
    found = rows[0].measures["toy"].model_dump()
    assert found["value"] is not None
    assert data["rows"][0]["toy"] == data["stability"]["base"]["toy"] == data["methods"][0]["toy"] == found
    assert all(one["toy"]["low"] <= one["toy"]["value"] <= one["toy"]["high"] for one in data["comparisons"] + data["methods"])
    report = (tmp_path / "out" / "report.md").read_text()
    assert report.count("| median persona") >= 2  # of models, and of methods
    assert "median persona" in report.partition("Differences")[2]
    headings = [path.read_text().splitlines()[0] for path in (tmp_path / "out" / "tables").glob("*.csv")]
    assert sum("median persona" in heading for heading in headings) >= 2


@pytest.mark.slow
def test_it_is_compared_and_pooled(toy: StabilityMeasure, tmp_path: Path) -> None:
    base, mixed, plain = group_methods(collect_models([write_study(tmp_path / "study")]))
    assert [base.name, mixed.name, plain.name] == ["base", "PerMix-RLVR", "RLVR"]
    pooled = pool_seeds(plain)
    less = 0.8 if toy.is_difference else 0.0
    other = 0.6 - (0.6 if toy.is_difference else 0.0)
    assert is_near(toy, pooled.measures["toy"], ((0.5 - less) + other) / 2)
    assert method_difference(mixed, plain).measures["toy"].value is not None
    assert pool_seeds(base).measures["toy"] == base.models[0].row.measures["toy"]
    compared = compare_runs(tmp_path / "study" / "base-stability", tmp_path / "study" / "rlvr-2-stability", resamples=50)
    (one,) = (one for one in compared.result.measures if one.name == "toy")
    assert is_near(toy, one.difference, other - (0.5 - less))
    assert one.p is not None
    assert "| median persona |" in comparison_markdown(compared)
    console = Console(width=120, record=True)
    console.print(terminal_comparison_tables(compared)[0])
    assert "median persona" in console.export_text()


def test_it_is_followed_while_a_model_trains_and_while_a_run_goes_on(toy: StabilityMeasure, tmp_path: Path) -> None:
    run = stability_run(tmp_path / "dev_eval" / "step-0000" / "stability", "m", "x", share(4))
    run = stability_run(tmp_path / "dev_eval" / "step-0010" / "stability", "m", "x", torn)
    config = DevEvalConfig(every=10, characters=0, metric="worst")
    points = [dev_point_from_records(tmp_path, step, config) for step in (0, 10)]
    value = points[1].measures["toy"].value
    assert value is not None
    assert f"median persona {value:.3f}" in str(points[1])
    assert points[1].model_dump(mode="json")["toy"] == points[1].measures["toy"].model_dump()
    assert dev_curve_panels(with_identifiability=False)[-1] == ("toy", "the median persona's accuracy")
    *_, table = draw_curves(tmp_path, "m", [], DevCurve(tuple(points), config))
    assert "| median persona |" in table.splitlines()[0]
    (line,) = (one for one in measure_live(run, "stability", live=False).lines if one.name == "median persona")
    assert line.estimate == points[1].measures["toy"]
    assert line.is_difference == toy.is_difference


def test_a_measure_of_character_is_a_field_with_its_chance_and_its_reasons() -> None:
    shares = {name: Estimate(value=0.1 * place, n=5) for place, name in enumerate(CHARACTER_MEASURES, 1)}
    pooled = PooledMethod(
        name="a", labels=("a",), measures={"pss": ONE}, chance=0.25, right_in_character_by_chance=0.125, reasons=("cells",),
        fidelity_reasons=("persona",), right_in_character_reasons=("answers",),
    ).model_copy(update=shares)  # fmt: skip
    assert {name: pooled.estimate(name) for name in CHARACTER_MEASURES} == shares
    assert (pooled.estimate("pss"), pooled.estimate("mean")) == (ONE, None)
    assert [pooled.chance_of(name) for name in CHARACTER_MEASURES] == [0.125, 0.25, 0.25]
    assert [pooled.reasons_for(name) for name in CHARACTER_MEASURES] == [("answers",), ("persona",), ()]
    assert pooled.reasons_for("pss") == ("cells",)
    records = (ModelRow, PooledMethod, MethodDifference, Comparison)
    assert all(set(CHARACTER_MEASURES) <= set(record.model_fields) for record in records)
    assert {one.chance_field for one in CHARACTER_MEASURES.values()} <= set(PooledMethod.model_fields) & set(
        ModelRow.model_fields
    )
    assert {one.reasons_field for one in CHARACTER_MEASURES.values()} <= set(Comparison.model_fields)
