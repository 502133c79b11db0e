"""Right and in character in a report: its table, its figure, its comparisons, and where it cannot be measured."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from permix.dashboard.live_metrics import measure_live
from permix.metrics import statistics
from permix.metrics.measures import CHARACTER_MEASURES
from permix.report.builder import build_report
from permix.report.comparisons import compare_models, compare_runs
from permix.report.html.charts import build_charts
from permix.report.methods import group_methods
from permix.report.pooled import method_difference, pool_seeds
from permix.report.runs import ModelRuns, collect_models
from permix.report.tables import (
    method_table,
    models_table,
    right_in_character_table,
    seed_difference_table,
)
from permix.report.tradeoff import build_tradeoffs
from permix.types import Verdict
from tests.seeded import PERSONAS, QUESTIONS, VOICES, Right, cell, share, torn, train_run, write_run

RIGHT_IN_CHARACTER_HEADING = CHARACTER_MEASURES["right_in_character"].label


def answered_run(path: Path, label: str, asked: str, right: Right, flat: float, **config: Any) -> Path:
    """Each persona answers in its own voice, but in a flat one in a share of the cells."""
    rng = random.Random(label)
    cells = []
    for p in (None, *range(PERSONAS)):
        for q in range(QUESTIONS):
            voice = "so" if p is None or rng.random() < flat else VOICES[p]
            correct = right(-1 if p is None else p, q)
            said = f"{voice}, it is {2 * q if correct else 1}"
            cells.append(cell(p, q, f"What is {q} + {q}?", said, Verdict(correct=correct)))
    settings = {"stage": "stability", "label": label, "model": {"name": asked}, "seed": 3, "resamples": 100, "samples": 1}
    return write_run(path, {**settings, "right_in_character": True, **config}, cells)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Base; RLVR, which is right and drops the character; PerMix-RLVR by two seeds, which keeps both."""
    folder = tmp_path_factory.mktemp("study")
    base = answered_run(folder / "base", "base", "tiny", torn, 0.0)
    reference = {"character_reference": str(base)}
    for label, method, flat in (("rlvr", "rlvr", 1.0), ("mixed 1", "permix", 0.0), ("mixed 2", "permix", 0.0)):
        asked = str(train_run(folder / f"{label}-train", label, int(label[-1:] == "2"), method=method) / "model")
        answered_run(folder / label, label, asked, share(4), flat, **reference)
    return folder


@pytest.fixture(scope="module")
def models(study: Path) -> list[ModelRuns]:
    return collect_models([study])


def test_each_model_has_its_numbers(models: list[ModelRuns]) -> None:
    rows = {model.label: model.row for model in models}
    found = {label: row.right_in_character and row.right_in_character.value for label, row in rows.items()}
    # Half of base's answers are right, all in character. Of RLVR's equal answers one of four is attributed rightly.
    assert found == {
        "base": 0.5, "mixed 1": pytest.approx(0.8), "mixed 2": pytest.approx(0.8), "rlvr": pytest.approx(0.2),
    }  # fmt: skip
    assert rows["rlvr"].right_in_character_by_chance == pytest.approx(0.2, abs=0.01)
    table = models_table([model.row for model in models])
    assert RIGHT_IN_CHARACTER_HEADING in table.headings
    details = right_in_character_table({model.label: model.right_in_character for model in models if model.right_in_character})
    assert [line[-1].text for line in details.rows] == ["own answers", *["answers of base"] * 3]


def test_models_are_compared_cell_by_cell(models: list[ModelRuns]) -> None:
    by_label = {model.label: model for model in models}
    difference = compare_models(by_label["mixed 1"], by_label["rlvr"]).right_in_character
    assert difference is not None
    assert difference.value == pytest.approx(0.6)
    assert difference.low is not None
    assert difference.low > 0
    compared = compare_runs(by_label["rlvr"].runs["stability"].path, by_label["mixed 1"].runs["stability"].path, resamples=100)
    assert compared.right_in_character is not None
    assert compared.right_in_character.difference.value == pytest.approx(0.6)
    assert compared.right_in_character.p == pytest.approx(1 / 101)


def test_seeds_are_pooled(models: list[ModelRuns]) -> None:
    methods = {method.name: method for method in group_methods(models)}
    pooled = pool_seeds(methods["PerMix-RLVR"])
    assert pooled.right_in_character is not None
    assert pooled.right_in_character.value == pytest.approx(0.8)
    assert pooled.right_in_character_by_chance == pytest.approx(0.2, abs=0.05)
    change = method_difference(methods["PerMix-RLVR"], methods["rlvr"])
    assert change.right_in_character is not None
    assert change.right_in_character.value == pytest.approx(0.6)
    assert not change.covers_seeds("right_in_character")  # rlvr has one seed
    assert change.claimed_difference("right_in_character") == change.right_in_character


def test_a_seed_without_the_measure_is_not_left_out_silently(models: list[ModelRuns]) -> None:
    methods = {method.name: method for method in group_methods(models)}
    one, other = methods["PerMix-RLVR"].models
    method = methods["PerMix-RLVR"]._replace(models=(one, other._replace(right_in_character=None)))
    reasons = (f"Right and in character is not measured for {other.label}",)
    pooled = pool_seeds(method)
    assert (pooled.right_in_character, pooled.right_in_character_reasons) == (None, reasons)
    change = method_difference(method, methods["rlvr"])
    assert (change.right_in_character, change.right_in_character_reasons) == (None, reasons)
    neither = method._replace(models=tuple(model._replace(right_in_character=None) for model in method.models))
    assert pool_seeds(neither).right_in_character_reasons == ()


def test_right_and_in_character_has_an_interval_over_seeds(tmp_path: Path) -> None:
    """.8 − .2 and .75 − .2: .575 ± 12.7 × .0354 / √2 = .318, and the question noise that both seeds share."""
    base = answered_run(tmp_path / "base", "base", "tiny", torn, 0.0)
    for label, method, seed, right, flat in (
        ("rlvr 1", "rlvr", 1, share(4), 1.0),
        ("rlvr 2", "rlvr", 2, share(4), 1.0),
        ("mixed 1", "permix", 1, share(4), 0.0),
        ("mixed 2", "permix", 2, lambda p, q: q < 15, 0.0),
    ):
        asked = str(train_run(tmp_path / f"{label}-train", label, seed, method=method) / "model")
        answered_run(tmp_path / label, label, asked, right, flat, character_reference=str(base))
    methods = {method.name: method for method in group_methods(collect_models([tmp_path]))}
    pooled = pool_seeds(methods["PerMix-RLVR"])
    over = pooled.over_seeds["right_in_character"]
    assert over.value == pytest.approx(0.775)
    assert over.low is not None
    assert over.low <= 0.775 - 12.7062 * 0.025
    assert over.high == 1.0
    whole = method_table(list(methods.values()), [pool_seeds(one) for one in methods.values()])
    notes = {row[0].text: dict(zip(whole.headings, row, strict=True))[RIGHT_IN_CHARACTER_HEADING].note for row in whole.rows}
    assert "by chance 0." in notes["PerMix-RLVR"]
    assert "; over questions and seeds [" in notes["PerMix-RLVR"]
    change = method_difference(methods["PerMix-RLVR"], methods["RLVR"])
    assert change.right_in_character is not None
    assert change.right_in_character.value == pytest.approx(0.575)
    found = change.over_seeds["right_in_character"]
    assert found.over_questions == change.right_in_character
    assert found.over_seeds.low is not None
    assert found.over_questions.low is not None
    assert found.over_questions.low > 0.4
    assert 0 < found.over_seeds.low <= 0.575 - 12.7062 * 0.025
    assert change.seeds_of("right_in_character").n == (2, 2)
    table = seed_difference_table([change])
    assert table is not None
    assert RIGHT_IN_CHARACTER_HEADING in [row[2].text for row in table.rows]
    relative = method_difference(methods["PerMix-RLVR"], methods["RLVR"], statistics.relative_change)
    assert relative.right_in_character is not None
    assert relative.right_in_character.value == pytest.approx(0.775 / 0.2 - 1)
    assert relative.right_in_character.low is not None
    assert relative.right_in_character.low > 1


@pytest.mark.slow
def test_the_report_draws_the_view_and_writes_the_numbers(study: Path, tmp_path: Path) -> None:
    build_report([study], tmp_path)
    assert (tmp_path / "tradeoff-right-in-character.png").exists()
    assert not (tmp_path / "tradeoff.png").exists()  # no model has identifiability
    assert "## Right and in character" in (tmp_path / "report.md").read_text()
    written = json.loads((tmp_path / "table.json").read_text())
    assert written["right_in_character"]["base"]["share"]["value"] == 0.5
    assert (tmp_path / "tables" / "right-in-character.csv").exists()


def test_a_point_of_the_view_has_its_own_chance(models: list[ModelRuns]) -> None:
    methods = group_methods(models)
    pooled = [pool_seeds(method) for method in methods]
    (tradeoff,) = build_tradeoffs(models, methods, pooled, []).tradeoffs  # no model has identifiability
    assert (tradeoff.view.measure, tradeoff.chance) == ("right_in_character", None)
    assert tradeoff.points["base"].chance == pytest.approx(0.125, abs=0.06)
    assert [x for x, _ in tradeoff.points["PerMix-RLVR"].seeds.values()] == pytest.approx([0.8, 0.8])
    chart = build_charts(models, methods, pooled, [])["tradeoff"]
    assert [measure["key"] for measure in chart["measures"]] == ["right_in_character"]


def test_models_with_other_classifiers_are_not_compared(tmp_path: Path) -> None:
    answered_run(tmp_path / "a", "a", "tiny", share(3), 0.0)
    answered_run(tmp_path / "b", "b", "other", share(4), 0.0)
    against, model = collect_models([tmp_path])
    compared = compare_models(model, against)
    assert compared.right_in_character is None
    assert compared.right_in_character_reasons == ("Not the same classifier of character (trained on other answers)",)
    assert compare_runs(tmp_path / "a", tmp_path / "b", resamples=100).right_in_character is None


def test_a_report_without_the_switch_says_nothing_of_it(tmp_path: Path) -> None:
    answered_run(tmp_path / "a", "a", "tiny", share(3), 0.0, right_in_character=False)
    build_report([tmp_path / "a"], tmp_path / "report")
    assert "ight and in character" not in (tmp_path / "report" / "report.md").read_text()
    assert "right_in_character" not in json.loads((tmp_path / "report" / "table.json").read_text())


def test_the_reason_is_shown_where_it_cannot_be_measured(tmp_path: Path) -> None:
    run = answered_run(tmp_path / "a", "a", "tiny", share(3), 0.0)
    lines = (run / "records.jsonl").read_text().splitlines(keepends=True)
    (run / "records.jsonl").write_text("".join(line for line in lines if int(json.loads(line)["question_id"][1:]) < 9))
    (model,) = collect_models([run])
    assert model.right_in_character is None
    assert "9 questions in 5 folds" in model.unmeasured_reasons[0]
    answered_run(tmp_path / "b", "b", "tiny", share(3), 0.0, character_reference="gone")
    (model,) = collect_models([tmp_path / "b"])
    assert "its reference run gone was not found; right and in character" in model.unmeasured_reasons[0]


def test_the_live_page_shows_it_when_the_run_has_ended(study: Path) -> None:
    names = [[line.name for line in measure_live(study / "base", "stability", live=live).lines] for live in (True, False)]
    assert ["right and in character" in one for one in names] == [False, True]
