"""Figures are written, of the expected size, the same each time, and survive what is missing or hostile."""

import struct
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from permix.config import DevEvalConfig
from permix.metrics.dev_curve import DevCurve, DevEvalPoint
from permix.metrics.stability import StabilitySummary, summarize_stability
from permix.rendering import plots, theme
from permix.types import Estimate

NAN = float("nan")


def png_size(path: Path) -> tuple[int, int]:
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG")
    assert len(data) > 5000
    width, height = struct.unpack(">II", data[16:24])
    return width, height


@pytest.fixture(scope="module")
def summaries() -> dict[str, StabilitySummary]:
    rng = np.random.default_rng(0)
    one = (rng.random((3, 12, 1)) < 0.5).astype(float)
    two = one.copy()
    two[2] = NAN
    ids = ["poet", "$cost$ of a very long persona identifier", "_x"]
    return {
        "_base $1$": summarize_stability(one, one[0], persona_ids=ids, resamples=100),
        "RLVR": summarize_stability(two, None, persona_ids=ids, resamples=100),
    }


def test_persona_figures(summaries: dict[str, StabilitySummary], tmp_path: Path) -> None:
    plots.plot_persona_accuracy(summaries, tmp_path / "a.png")
    plots.plot_lottery(summaries, tmp_path / "b.png")
    assert png_size(tmp_path / "a.png")[0] == png_size(tmp_path / "b.png")[0] == 1200
    plots.plot_lottery(summaries, tmp_path / "again.png")
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_heatmap_with_unscored_cells(tmp_path: Path) -> None:
    mean_P_Q = np.array([[1.0, 0.0, NAN], [0.5, NAN, NAN]])
    plots.plot_heatmap(mean_P_Q, ["a", "b"], tmp_path / "with.png", "base", np.array([1.0, NAN, 0.0]))
    plots.plot_heatmap(mean_P_Q, ["a", "b"], tmp_path / "without.png", "base")
    assert png_size(tmp_path / "with.png")[1] - png_size(tmp_path / "without.png")[1] == pytest.approx(0.24 * 150, abs=1)


def test_learning_curves_of_runs_of_different_length_with_gaps(tmp_path: Path) -> None:
    log: list[dict[str, Any]] = [{"step": n, "reward": None if n == 3 else 0.1 * n, "completion_tokens": 20} for n in range(1, 8)]
    plots.plot_learning_curves({"RLVR": log, "PerMix": log[:4]}, tmp_path / "a.png")
    assert png_size(tmp_path / "a.png")[0] == 1200


def probe_point(step: int, worst: float | None, characters: bool = True) -> DevEvalPoint:
    one = Estimate(value=worst, low=None if worst is None else 0.0, high=None if worst is None else 0.9, n=12)
    return DevEvalPoint(
        step=step,
        measures={"mean": one, "baseline": one, "worst": one, "best": one, "pss": one},
        identifiability=one if characters else None,
        chance=0.25 if characters else None,
        completion_tokens=9.0,
        n_questions=12,
        n_scored=36,
        n_asked=36,
    )


def test_probe_curves_with_and_without_characters_and_with_what_was_not_measured(tmp_path: Path) -> None:
    config = DevEvalConfig(every=10, metric="worst", select="best")
    whole = DevCurve(tuple(probe_point(step, None if step == 20 else 0.01 * step) for step in (0, 10, 20, 25)), config)
    without = DevCurve(tuple(probe_point(step, 0.3, characters=False) for step in (0, 10)), config)
    plots.plot_dev_curves({"$RLVR$": whole, "PerMix": without}, tmp_path / "a.png")
    plots.plot_dev_curves({"PerMix": without}, tmp_path / "b.png")
    plots.plot_dev_curves({"nothing": DevCurve((probe_point(0, None),), config)}, tmp_path / "c.png")
    (wide, tall), (_, short) = png_size(tmp_path / "a.png"), png_size(tmp_path / "b.png")
    assert wide == 1200
    assert tall > short, "a panel less without characters"
    plots.plot_dev_curves({"$RLVR$": whole, "PerMix": without}, tmp_path / "again.png")
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "a.png").read_bytes()


def test_moving_average_leaves_out_missing_values() -> None:
    assert plots.moving_average(np.array([1.0, NAN, 5.0, 3.0]), 3).tolist() == [1.0, 3.0, 4.0, 4.0]
    assert np.isnan(plots.moving_average(np.array([NAN]), 3)).all()


def test_personas_are_sorted_by_the_first_model_and_the_unscored_stand_last() -> None:
    right = [[[0.0]] * 4, [[1.0]] * 4, [[NAN]] * 4]
    first = summarize_stability(right, persona_ids=["low", "high", "unscored"], resamples=100)
    second = summarize_stability(right[:1], persona_ids=["other"], resamples=100)
    assert plots._persona_order([first, second]) == ["high", "low", "unscored", "other"]


def test_models_differ_in_colour_marker_and_line() -> None:
    styles = theme.styles_for("abcdefg").values()
    for look in zip(*styles, strict=True):
        assert len(set(map(str, look))) == 7


def test_beyond_seven_a_colour_comes_with_another_marker_and_line() -> None:
    styles = list(theme.styles_for(map(str, range(49))).values())
    assert (
        len({(style.colour, style.marker) for style in styles})
        == len({(style.colour, str(style.line)) for style in styles})
        == 49
    )
    assert styles[7][:3] == (styles[0].colour, styles[1].marker, styles[1].line)


def test_seeds_of_a_method_look_alike_and_stand_once_in_the_legend() -> None:
    styles = theme.styles_for(["base", "a 1", "a 2", "b"], {"a 1": "A", "a 2": "A"})
    assert styles["a 1"] == styles["a 2"] != styles["base"]
    assert styles["b"].colour == theme.PALETTE[2].colour
    assert theme.labels_by_legend_name(list(styles), styles) == {"base": ["base"], "A, 2 seeds": ["a 1", "a 2"], "b": ["b"]}
    assert theme.labels_by_legend_name(["a 2"], styles) == {"a 2": ["a 2"]}


def test_svg_stands_beside_the_png_the_same_each_time_and_hostile_text_is_text(tmp_path: Path) -> None:
    evil = "--><script>alert(1)</script>]]>&\u202e\x1b[2J"
    summary = summarize_stability([[[1.0], [0.0]], [[0.0], [1.0]]], persona_ids=[evil, "b"], resamples=100)
    for name in ("one", "two"):
        plots.plot_persona_accuracy({evil: summary}, tmp_path / f"{name}.png")
    text = (tmp_path / "one.svg").read_text(encoding="utf-8")
    assert text == (tmp_path / "two.svg").read_text(encoding="utf-8")
    assert "<script" not in text
    assert not {"\u202e", "\x1b"} & set(text)
    tags = {one.tag.rpartition("}")[2] for one in ElementTree.fromstring(text).iter()}
    assert tags <= {"svg", "metadata", "RDF", "Work", "type", "format", "defs", "style", "g", "path", "use", "clipPath", "rect"}
