"""The trade-off figure: which methods stand in it, where, and what leads where."""

import re
import struct
from pathlib import Path

import pytest

from permix.report.builder import draw_report_figures
from permix.report.comparisons import Comparison
from permix.report.html.charts import _tradeoff_axis as tradeoff_axis
from permix.report.html.charts import build_charts
from permix.report.methods import ReportMethod, group_methods, method_names, training_arrows
from permix.report.pooled import PooledMethod, pool_seeds
from permix.report.runs import collect_models
from permix.report.score_plots import plot_tradeoff
from permix.report.tradeoff import IDENTIFIABILITY_VIEW, Tradeoff, TradeoffPoint, TradeoffView, build_tradeoffs
from permix.types import Estimate
from tests.seeded import write_study

AT = Estimate(value=0.5, low=0.4, high=0.6, n=20)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> list[ReportMethod]:
    return group_methods(collect_models([write_study(tmp_path_factory.mktemp("study"))]))


@pytest.mark.slow
def test_a_point_a_method_and_a_small_one_a_seed(study: list[ReportMethod]) -> None:
    pooled = [pool_seeds(one) for one in study]
    tradeoff = identifiability(study, pooled)
    points = list(tradeoff.points.values())
    assert [point.name for point in points] == ["base", "PerMix-RLVR", "RLVR"]
    assert [len(point.seeds) for point in points] == [0, 2, 2], "a lone model is its own point"
    for point in points[1:]:
        xs, ys = zip(*point.seeds.values(), strict=True)
        assert point.xy == pytest.approx((sum(xs) / 2, sum(ys) / 2))
    assert tradeoff.chance == 0.25
    assert identifiability(study, [*pooled[:2], pooled[2].model_copy(update={"chance": 0.5})]).chance is None


def identifiability(methods: list[ReportMethod], pooled: list[PooledMethod], *comparisons: Comparison) -> Tradeoff:
    """The trade-off against identifiability, the only one of these runs."""
    models = [model for method in methods for model in method.models]
    (tradeoff,) = build_tradeoffs(models, methods, pooled, comparisons).tradeoffs
    assert tradeoff.view is IDENTIFIABILITY_VIEW
    return tradeoff


def test_a_method_with_a_model_that_may_not_be_compared_is_left_out(study: list[ReportMethod]) -> None:
    pooled = [pool_seeds(one) for one in study]
    for refused in (
        Comparison(label="rlvr 2", against="base", reasons=("Not the same task",)),
        Comparison(label="rlvr 2", against="base", fidelity_reasons=("Not the same words",)),
    ):
        assert list(identifiability(study, pooled, refused).points) == ["base", "PerMix-RLVR"]


def test_figure_and_page_have_the_same_points_arrows_and_chance(study: list[ReportMethod], tmp_path: Path) -> None:
    """RLVR was measured on two more personas: the step to PerMix-RLVR starts from base, and the others have one chance."""
    pooled = [pool_seeds(one) for one in study]
    pooled[2] = pooled[2].model_copy(update={"chance": 1 / 6})
    refused = Comparison(label="rlvr 1", against="base", reasons=("Not the same personas",))
    tradeoff = identifiability(study, pooled, refused)
    assert (list(tradeoff.points), tradeoff.arrows, tradeoff.chance) == (
        ["base", "PerMix-RLVR"],
        (("base", "PerMix-RLVR"),),
        0.25,
    )

    drawn: list[Tradeoff] = []
    models = [model for method in study for model in method.models]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("permix.report.builder.plot_tradeoff", lambda given, *_: drawn.append(given))
        for name in ("plot_persona_accuracy", "plot_best_of_k", "plot_heatmap", "plot_identifiability_figures"):
            patch.setattr(f"permix.rendering.plots.{name}", lambda *_: {})
        draw_report_figures(models, study, pooled, [refused], tmp_path)
    assert drawn == [tradeoff]
    page = build_charts(models, study, pooled, [refused])["tradeoff"]
    assert [point["name"] for point in page["points"]] == list(tradeoff.points)
    assert page["arrows"] == [list(pair) for pair in tradeoff.arrows]
    assert [measure["chance"] for measure in page["measures"]] == [tradeoff.chance]


def test_the_page_names_the_lines_and_arrows_that_it_draws_and_no_others(study: list[ReportMethod]) -> None:
    pooled = [pool_seeds(one) for one in study]

    def note(*numbers: int, chances: tuple[float, ...] = (0.25, 0.25, 0.25)) -> str:
        methods = [study[number] for number in numbers]
        found = [pooled[number].model_copy(update={"chance": chances[number]}) for number in numbers]
        models = [model for method in methods for model in method.models]
        (measure,) = build_charts(models, methods, found, [])["tradeoff"]["measures"]
        return str(measure["note"])

    assert note(0, 1, 2).endswith("; dotted: chance; arrows: steps of training")
    assert note(0).endswith("; dotted: chance")
    assert note(0, 1, chances=(0.25, 0.5, 0.25)).endswith("; arrows: steps of training")
    assert not re.search("dotted|arrows", note(0, 1, chances=(0.25, 0.5, 0.25)).removesuffix("arrows: steps of training"))
    neither = tradeoff_axis(Tradeoff(IDENTIFIABILITY_VIEW, {"a": TradeoffPoint("a", AT, AT)}))["note"]
    judged = Tradeoff(TradeoffView("score", "", "", ""), {"a": TradeoffPoint("a", AT, AT)}, (("a", "b"),))
    assert not re.search("dotted|arrows|chance", neither)
    assert "; arrows: steps of training; hollow" in tradeoff_axis(judged)["note"]


def test_a_method_without_one_of_the_numbers_is_left_out(study: list[ReportMethod]) -> None:
    gone = pool_seeds(study[0]).model_copy(update={"measures": {"pss": Estimate(value=None, n=0)}})
    untold = pool_seeds(study[1]).model_copy(update={"identifiability": None})
    models = [model for method in study[:2] for model in method.models]
    assert build_tradeoffs(models, study[:2], [gone, untold], []).tradeoffs == ()


def test_arrows_lead_from_base_to_rlvr_to_every_variant(study: list[ReportMethod]) -> None:
    base, mixed, plain = study
    variant = mixed._replace(name="replay")
    assert training_arrows([mixed, base, plain, variant]) == [("base", "RLVR"), ("RLVR", "PerMix-RLVR"), ("RLVR", "replay")]
    assert training_arrows([base, mixed]) == [("base", "PerMix-RLVR")]
    assert training_arrows([mixed, plain]) == [("RLVR", "PerMix-RLVR")]
    assert training_arrows([base]) == []
    assert method_names(study[:2]) == {"base": "base", "mixed 1": "PerMix-RLVR", "mixed 2": "PerMix-RLVR"}


def test_figure_is_drawn_with_and_without_intervals_and_chance(tmp_path: Path) -> None:
    seeds = {"$x_1$ 1": (0.4, 0.8), "$x_1$ 2": (0.6, 1.0)}
    points = {
        "base": TradeoffPoint("base", AT, AT),
        "$x_1$": TradeoffPoint("$x_1$", Estimate(value=0.9, n=1), AT, seeds),
    }
    whole = Tradeoff(IDENTIFIABILITY_VIEW, points, (("base", "$x_1$"),), 0.25)
    plot_tradeoff(whole, tmp_path / "a.png")
    plot_tradeoff(Tradeoff(IDENTIFIABILITY_VIEW, points), tmp_path / "b.png")
    plot_tradeoff(whole, tmp_path / "again.png")
    data = (tmp_path / "a.png").read_bytes()
    assert struct.unpack(">I", data[16:20]) == (1200,)
    assert data == (tmp_path / "again.png").read_bytes() != (tmp_path / "b.png").read_bytes()
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "again.svg").read_bytes()
