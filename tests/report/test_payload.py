"""What charts draw, as data: numbers that can be checked by hand, nothing that JSON or a reader cannot bear."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from permix.config import DevEvalConfig
from permix.metrics.dev_curve import DevCurve, DevEvalPoint
from permix.report.comparisons import Comparison
from permix.report.html import charts
from permix.report.html.charts import build_charts, persona_infos, thin_log, training_panel_keys
from permix.report.html.values import json_estimate, json_number, printable_text, unique_display_names
from permix.report.methods import group_methods
from permix.report.pooled import pool_seeds
from permix.report.runs import ModelRuns, collect_models
from permix.report.tradeoff import pooled_judge_score
from permix.types import Cell, Completion, Estimate, Message, Verdict
from tests.report.test_judged import by_hand, fives, judged_run, keen
from tests.seeded import share, stability_run, write_run, write_study

__all__ = ["by_hand"]

EVIL = "<img src=x onerror=alert(1)>\u202e\x1b[31m"


def drawn(models: list[ModelRuns], *comparisons: Comparison) -> dict[str, Any]:
    found = group_methods(models)
    made = build_charts(models, found, [pool_seeds(one) for one in found], comparisons)
    return json.loads(json.dumps(made, allow_nan=False))  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> list[ModelRuns]:
    return collect_models([write_study(tmp_path_factory.mktemp("study"))])


def test_numbers_are_rounded_and_finite_or_none() -> None:
    assert [json_number(one) for one in (1 / 3, 123456.7, math.nan, math.inf, None, 0.0)] == [
        0.33333,
        123460.0,
        None,
        None,
        None,
        0.0,
    ]
    assert json_estimate(Estimate(value=2 / 3, low=0.5, high=None, n=4)) == {"value": 0.66667, "low": 0.5, "high": None, "n": 4}
    assert json_estimate(None) is None


def test_texts_are_one_printable_line_and_names_stay_apart() -> None:
    assert printable_text(f"{EVIL}\nb") == "<img src=x onerror=alert(1)>\\u202e\\x1b[31m b"
    assert len(printable_text("x" * 1000)) == 80
    long = "y" * 100
    assert unique_display_names([f"{long}1", f"{long}2", "a", f"{long}1"]) == {
        f"{long}1": "y" * 79 + "…", f"{long}2": "y" * 73 + "… (2)", "a": "a",
    }  # fmt: skip


@pytest.mark.slow
def test_tradeoff_has_a_point_a_method_its_seeds_and_arrows(study: list[ModelRuns]) -> None:
    found = drawn(study)["tradeoff"]
    assert found["arrows"] == [["base", "RLVR"], ["RLVR", "PerMix-RLVR"]]
    points = {one["name"]: one for one in found["points"]}
    assert points["RLVR"]["labels"] == [one["label"] for one in points["RLVR"]["seeds"]] == ["rlvr 1", "rlvr 2"]
    assert points["base"]["seeds"] == [], "a lone model is its own point"
    seeds = [one["y"] for one in points["RLVR"]["seeds"]]
    assert points["RLVR"]["y"]["value"] == pytest.approx(sum(seeds) / 2, abs=1e-4)
    assert points["RLVR"]["y"]["low"] < points["RLVR"]["y"]["value"] < points["RLVR"]["y"]["high"]
    (measure,) = found["measures"]
    assert (measure["key"], measure["chance"]) == ("identifiability", 0.25)
    assert "n = 20 questions (PSS)" in measure["note"]


def test_tradeoff_leaves_out_what_may_not_be_held_against_the_first(study: list[ModelRuns]) -> None:
    def left(**reasons: Any) -> list[str]:
        return [one["name"] for one in drawn(study, Comparison(label="rlvr 2", against="base", **reasons))["tradeoff"]["points"]]

    assert left() == ["base", "PerMix-RLVR", "RLVR"]
    assert left(reasons=("Not the same task",)) == left(fidelity_reasons=("Not the same words",)) == ["base", "PerMix-RLVR"]
    assert left(judged_reasons=("Not the same judge",)) == ["base", "PerMix-RLVR", "RLVR"]


def test_personas_and_lottery_by_hand(study: list[ModelRuns]) -> None:
    found = drawn(study)
    base = found["personas"]["models"]["base"]
    assert base["no_persona"]["value"] == 0.8
    assert {id: one["value"] for id, one in base["of"].items()} == {"p0": 0.2, "p1": 0.4, "p2": 0.6, "p3": 0.8}
    assert [one["value"] for one in base["difference"].values()] == pytest.approx([-0.6, -0.4, -0.2, 0.0])
    assert found["personas"]["ids"][0] == {"id": "p0", "text": "You are persona 0.", "tags": []}
    assert list(found["personas"]["models"]) == list(found["lottery"]["models"]) == [one.label for one in study]
    best = [one["value"] for one in found["lottery"]["models"]["base"]["best"]]
    assert (best[0], best[3]) == (pytest.approx(0.5), 0.8)
    assert best[1] == pytest.approx((3 * 0.8 + 2 * 0.6 + 0.4) / 6, abs=1e-4), "of six pairs p3 is the best of three, p2 of two"


def test_confusion_holds_every_answer_once(study: list[ModelRuns]) -> None:
    for model in study:
        found = drawn(study)["confusion"]["models"][model.label]
        assert model.identifiability is not None
        assert sum(count for _, _, count in found["cells"]) == model.identifiability.n_answered == 80
        right = sum(count for row, column, count in found["cells"] if row == column)
        assert right / 80 == pytest.approx(model.identifiability.accuracy.value)
        for who, place in zip(model.identifiability.persona_ids, model.identifiability.confusion, strict=True):
            row = found["ids"].index(who)
            assert sorted(count for one, _, count in found["cells"] if one == row) == sorted(filter(None, place))


def test_charts_without_data_are_left_out(study: list[ModelRuns]) -> None:
    assert set(drawn(study)) == {"tradeoff", "personas", "lottery", "learnt", "confusion"}


def test_hostile_labels_and_personas_are_shown_and_a_missing_score_is_none(tmp_path: Path) -> None:
    messages = (Message(role="system", content=f"You are {EVIL}."), Message(role="user", content="1 + 1?"))
    done = Completion(text="2", prompt_tokens=1, completion_tokens=1, finish="stop")
    cells = [
        Cell(
            persona_id=EVIL, question_id="q", seed=1, messages=messages, completion=done, verdict=Verdict(correct=None, error="x")
        )
    ]
    settings = {"stage": "stability", "label": EVIL, "model": {"name": "m"}, "seed": 1, "resamples": 20, "samples": 1}
    write_run(tmp_path / "evil", settings, cells)
    stability_run(tmp_path / "plain", "plain", "m", share(3))
    found = drawn(collect_models([tmp_path / "plain", tmp_path / "evil"]))
    shown = "<img src=x onerror=alert(1)>\\u202e\\x1b[31m"
    evil = found["personas"]["models"][shown]
    assert evil["of"][shown] == {"value": None, "low": None, "high": None, "n": 0}
    assert found["personas"]["ids"][-1] == {"id": shown, "text": f"You are {shown}.", "tags": []}
    assert not {"\u202e", "\x1b"} & set(json.dumps(found, ensure_ascii=False))


def test_tags_are_believed_where_the_text_is_the_one_that_was_asked(tmp_path: Path) -> None:
    pool_file = tmp_path / "pool.jsonl"
    rows = [{"id": "p0", "text": "persona 0", "tags": ["sea", "old"]}, {"id": "p1", "text": "someone else", "tags": ["land"]}]
    pool_file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    stability_run(tmp_path / "run", "base", "m", share(3), personas={"pool": str(pool_file)})
    stability_run(tmp_path / "gone", "gone", "m", share(3), personas={"pool": str(tmp_path / "none.jsonl")})
    found = persona_infos(collect_models([tmp_path / "run"]))
    assert {who: one.tags for who, one in found.items()} == {"p0": ("sea", "old"), "p1": (), "p2": (), "p3": ()}
    assert persona_infos(collect_models([tmp_path / "gone"]))["p0"].tags == ()


def test_a_training_log_is_thinned_to_means_and_gaps_stay_gaps() -> None:
    log = [{"step": n, "reward": None if n in (3, 4) else float(n), "completion_tokens": 10 * n} for n in range(1, 6)]
    assert thin_log(log, ["reward", "completion_tokens"], 2) == [
        {"step": 2, "reward": 1.5, "completion_tokens": 15.0},
        {"step": 4, "reward": None, "completion_tokens": 35.0},
        {"step": 5, "reward": 5.0, "completion_tokens": 50.0},
    ]
    assert thin_log([{"step": 1, "reward": math.nan}], ["reward"], 1) == [{"step": 1, "reward": None}]


def test_a_training_without_rewards_is_followed_by_its_loss() -> None:
    assert training_panel_keys([{"step": 1, "loss": 0.5, "reward": 1.0}]) == [
        "reward",
        "completion_tokens",
        "frac_nonzero_advantage_groups",
        "kl",
    ]
    assert training_panel_keys([{"step": 1, "loss": 0.5}]) == ["loss", "completion_tokens"]


def test_logs_become_curves_of_at_most_400_points(tmp_path: Path) -> None:
    for name, steps, key in (("long", 1000, "reward"), ("short", 3, "loss")):
        path = write_run(tmp_path / name, {"stage": "train", "label": name, "model": {"name": "m"}})
        (path / "log.jsonl").write_text("".join(json.dumps({"step": n, key: 0.5}) + "\n" for n in range(1, steps + 1)))
    found = drawn(collect_models([tmp_path]))["training"]
    assert {label: len(rows) for label, rows in found["models"].items()} == {"long": 334, "short": 1}
    assert [panel["key"] for panel in found["panels"]] == ["reward", "loss"]
    assert found["note"] == "n = 1000 / 3 steps, one run each, so no interval; thin: means of 3 steps"


def probe_point(step: int, worst: float | None) -> DevEvalPoint:
    one = Estimate(value=worst, low=None if worst is None else 0.0, high=None if worst is None else 0.9, n=12)
    return DevEvalPoint(
        step=step,
        measures={"mean": one, "baseline": one, "worst": one, "best": one, "pss": one},
        identifiability=one,
        chance=0.25,
        completion_tokens=9.0,
        n_questions=12,
        n_scored=36,
        n_asked=36,
    )


def test_dev_evaluations_name_the_selected_step() -> None:
    config = DevEvalConfig(every=10, metric="worst", select="best")
    found = charts._dev_curve_chart({"a": DevCurve((probe_point(0, 0.2), probe_point(10, 0.4), probe_point(20, None)), config)})
    assert found["models"]["a"]["selected_step"] == 10
    assert [one["worst"]["value"] for one in found["models"]["a"]["points"]] == [0.2, 0.4, None]
    assert [panel["name"] for panel in found["panels"]] == [
        "mean accuracy over personas",
        "worst persona's accuracy",
        "identifiability",
    ]
    assert charts._dev_curve_chart({}) == {}


def test_judges_say_whether_they_are_trusted(tmp_path: Path) -> None:
    judged_run(tmp_path / "run", "base", {"keen": keen, "<fives>": fives})
    found = drawn(collect_models([tmp_path / "run"]))
    (kind,) = found["judged"]
    valid = {judge["judge"]: judge["models"]["base"]["valid"] for judge in kind["judges"]}
    assert valid == {"keen": True, "<fives>": False}
    worst = next(judge for judge in kind["judges"] if judge["judge"] == "<fives>")
    assert worst["tasks"][0] == "PersonaScore"
    assert [one["value"] for one in worst["models"]["base"]["scores"]] == [5.0] * len(worst["tasks"])
    assert "hollow" in kind["note"]
    panels = {one["judge"]: one for one in found["trial"]["kinds"][0]["panels"]}
    assert set(panels) == {"keen", "<fives> †"}
    assert all(bar["counts"][:4] == [0, 0, 0, 0] and bar["counts"][4] > 0 for bar in panels["<fives> †"]["bars"])


def test_a_judges_score_of_several_seeds_is_their_mean_and_has_no_interval() -> None:
    def scored(value: float) -> Estimate:
        return Estimate(value=value, low=value - 1, high=value + 1, n=9)

    assert pooled_judge_score([scored(3.0)]) == Estimate(value=3.0, low=2.0, high=4.0, n=9)
    assert pooled_judge_score([scored(3.0), scored(4.0)]) == Estimate(value=3.5, n=9)
    assert pooled_judge_score([scored(3.0), None]) is None
