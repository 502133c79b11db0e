"""The trade-off figure: which methods stand in it, where, and what leads where."""

import struct
from pathlib import Path

import pytest

from permix.report.methods import ReportMethod, group_methods, method_names, training_arrows
from permix.report.pooled import pool_seeds
from permix.report.runs import collect_models
from permix.report.score_plots import TradeoffPoint, common_chance, plot_tradeoff, tradeoff_points
from permix.types import Estimate
from tests.seeded import write_study

AT = Estimate(value=0.5, low=0.4, high=0.6, n=20)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> list[ReportMethod]:
    return group_methods(collect_models([write_study(tmp_path_factory.mktemp("study"))]))


@pytest.mark.slow
def test_a_point_a_method_and_a_small_one_a_seed(study: list[ReportMethod]) -> None:
    pooled = [pool_seeds(one) for one in study]
    points = tradeoff_points(study, pooled)
    assert [point.name for point in points] == ["base", "PerMix-RLVR", "RLVR"]
    assert [len(point.seeds) for point in points] == [0, 2, 2], "a lone model is its own point"
    for point in points[1:]:
        xs, ys = zip(*point.seeds, strict=True)
        assert point.xy == pytest.approx((sum(xs) / 2, sum(ys) / 2))
    assert common_chance(pooled) == 0.25
    assert common_chance([*pooled, pooled[0].model_copy(update={"chance": 0.5})]) is None


def test_a_method_with_a_model_that_may_not_be_compared_is_left_out(study: list[ReportMethod]) -> None:
    points = tradeoff_points(study, [pool_seeds(one) for one in study], excluded={"rlvr 2"})
    assert [point.name for point in points] == ["base", "PerMix-RLVR"]


def test_a_method_without_one_of_the_numbers_is_left_out(study: list[ReportMethod]) -> None:
    gone = pool_seeds(study[0]).model_copy(update={"measures": {"pss": Estimate(value=None, n=0)}})
    untold = pool_seeds(study[1]).model_copy(update={"identifiability": None})
    assert tradeoff_points(study[:2], [gone, untold]) == []


def test_arrows_lead_from_base_to_rlvr_to_every_variant(study: list[ReportMethod]) -> None:
    base, mixed, plain = study
    variant = mixed._replace(name="replay")
    assert training_arrows([mixed, base, plain, variant]) == [("base", "RLVR"), ("RLVR", "PerMix-RLVR"), ("RLVR", "replay")]
    assert training_arrows([base, mixed]) == [("base", "PerMix-RLVR")]
    assert training_arrows([mixed, plain]) == [("RLVR", "PerMix-RLVR")]
    assert training_arrows([base]) == []
    assert method_names(study[:2]) == {"base": "base", "mixed 1": "PerMix-RLVR", "mixed 2": "PerMix-RLVR"}


def test_figure_is_drawn_with_and_without_intervals_and_chance(tmp_path: Path) -> None:
    points = [TradeoffPoint("base", AT, AT), TradeoffPoint("$x_1$", Estimate(value=0.9, n=1), AT, ((0.4, 0.8), (0.6, 1.0)))]
    plot_tradeoff(points, [("base", "$x_1$"), ("base", "not there")], 0.25, tmp_path / "a.png")
    plot_tradeoff(points, [], None, tmp_path / "b.png")
    plot_tradeoff(points, [("base", "$x_1$"), ("base", "not there")], 0.25, tmp_path / "again.png")
    data = (tmp_path / "a.png").read_bytes()
    assert struct.unpack(">I", data[16:20]) == (1200,)
    assert data == (tmp_path / "again.png").read_bytes() != (tmp_path / "b.png").read_bytes()
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "again.svg").read_bytes()
