"""Figures are written, of the expected size, the same each time, and survive what is missing or hostile."""

import struct
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure

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
    plots.plot_best_of_k(summaries, tmp_path / "b.png")
    assert png_size(tmp_path / "a.png")[0] == png_size(tmp_path / "b.png")[0] == 1200
    plots.plot_best_of_k(summaries, tmp_path / "again.png")
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_training_seeds_share_a_row_with_their_mean_and_range(summaries: dict[str, StabilitySummary], tmp_path: Path) -> None:
    one = summaries["RLVR"]
    by_seed = {"base": summaries["_base $1$"], **{f"RLVR {seed}": one for seed in range(1, 7)}}
    pooled = theme.styles_for(by_seed, {label: "RLVR" for label in by_seed if label != "base"})
    plots.plot_persona_accuracy(by_seed, tmp_path / "seven.png")
    plots.plot_persona_accuracy(by_seed, tmp_path / "two.png", pooled)
    seven, two = (png_size(tmp_path / name)[1] for name in ("seven.png", "two.png"))
    assert seven - two > 3 * 5 * 0.13 * 150 - 60  # 3 personas × 5 rows fewer; the note and the legend differ by some lines
    plotted = axes_of(by_seed, pooled)
    assert len(plotted.containers) == 3 + 2  # one bar for each persona with a score: base has 3, RLVR 2
    assert [line.get_marker() for line in plotted.lines].count("|") == 2
    assert len(plotted.patches) == 1  # the band of base; RLVR has no score without a persona


def axes_of(by_seed: dict[str, StabilitySummary], styles: dict[str, theme.Style]) -> Axes:
    """The axes of the figure of accuracy by persona, which is not saved."""
    saved: list[Figure] = []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(theme, "save_figure", lambda fig, path: saved.append(fig))
        plots.plot_persona_accuracy(by_seed, Path("unused.png"), styles)
    return saved[0].axes[0]


@pytest.mark.parametrize("right", range(11))
def test_seeds_of_equal_accuracy_have_a_bar_without_length(right: int) -> None:
    """The mean of three equal values can be rounded to the number below or above them: .1, .1, .1."""
    one = summarize_stability([[[1.0]] * right + [[0.0]] * (10 - right)], persona_ids=["poet"], resamples=10)
    labels = ["a 1", "a 2", "a 3"]
    plotted = axes_of(dict.fromkeys(labels, one), theme.styles_for(labels, dict.fromkeys(labels, "a")))
    (bar,) = plotted.containers
    assert isinstance(bar, ErrorbarContainer)
    (ends,) = bar.lines[2][0].get_segments()
    assert [x for x, _ in ends] == [right / 10] * 2


def test_the_bar_of_several_seeds_reaches_from_the_lowest_to_the_highest() -> None:
    low, high = (summarize_stability([[[hit]] * 4], persona_ids=["poet"], resamples=10) for hit in (0.0, 1.0))
    plotted = axes_of(
        {"a 1": low, "a 2": high, "a 3": high}, theme.styles_for(["a 1", "a 2", "a 3"], dict.fromkeys(["a 1", "a 2", "a 3"], "a"))
    )
    (bar,) = plotted.containers
    assert isinstance(bar, ErrorbarContainer)
    (segment,) = bar.lines[2][0].get_segments()
    assert segment[:, 0].tolist() == [0.0, 1.0]
    assert list(np.asarray(bar.lines[0].get_xdata())) == [pytest.approx(2 / 3)]


def test_heatmap_with_unscored_cells(tmp_path: Path) -> None:
    mean_P_Q = np.array([[1.0, 0.0, NAN], [0.5, NAN, NAN]])
    plots.plot_heatmap(mean_P_Q, ["a", "b"], tmp_path / "with.png", "base", np.array([1.0, NAN, 0.0]))
    plots.plot_heatmap(mean_P_Q, ["a", "b"], tmp_path / "without.png", "base")
    assert png_size(tmp_path / "with.png")[1] - png_size(tmp_path / "without.png")[1] == pytest.approx(0.24 * 150, abs=1)


def test_learning_curves_of_runs_of_different_length_with_gaps(tmp_path: Path) -> None:
    log: list[dict[str, Any]] = [{"step": n, "reward": None if n == 3 else 0.1 * n, "completion_tokens": 20} for n in range(1, 8)]
    plots.plot_learning_curves({"RLVR": log, "PerMix": log[:4]}, tmp_path / "a.png")
    assert png_size(tmp_path / "a.png")[0] == 1200


TAGGED: list[dict[str, Any]] = [
    {"step": 1, "reward": 0.5, "reward_by_tag": {"none": 0.5, "expert": 0.25, "work": 1.0}},
    {"step": 2, "reward": 0.5, "reward_by_tag": {"none": 0.0, "expert": 0.75}},
    {"step": 3, "reward": 0.5, "reward_by_tag": {"expert": None, "$x_1$": 0.5, "harmful": True, "mood": "high"}},
    {"step": 4, "reward": 0.5, "reward_by_tag": ["none"]},
    {"step": 5, "reward": 0.5},
]
"""Two steps of experts, one of work and of a hostile tag; what is no number is no reward."""


def test_tags_are_those_of_most_steps_and_no_persona_comes_last() -> None:
    assert plots.frequent_tags([TAGGED], min_steps=1) == (["expert", "$x_1$", "work", "none"], 4)
    assert [plots.reward_of_tag(line, "expert") for line in TAGGED] == [0.25, 0.75, None, None, None]
    short = [{"step": 1, "reward_by_tag": {"work": 0.5, "none": 1.0}}]
    assert plots.frequent_tags([TAGGED, short], min_steps=1)[0] == ["work", "expert", "$x_1$", "none"]  # first what both have
    assert plots.frequent_tags([[{"step": 1, "reward_by_tag": {"none": 1.0}}], []], min_steps=1) == ([], 0)


def test_a_tag_of_few_steps_has_no_curve() -> None:
    """Counted in each training alone: 4 steps here and 4 there are two short curves."""
    log = [{"step": n, "reward_by_tag": {"expert": 0.5} | ({"work": 0.5} if n < 5 else {})} for n in range(1, 6)]
    assert plots.frequent_tags([log, log]) == (["expert"], 2)
    assert plots.frequent_tags([log[:4], log[:4]]) == ([], 0)


def test_the_least_frequent_tags_are_left_out_and_counted(tmp_path: Path) -> None:
    """Seven tags in 5 to 11 steps, rollouts without a persona in 5: six panels, the last without a persona."""
    log = [
        {
            "step": step,
            "reward_by_tag": {f"tag {n}": 0.1 * n for n in range(7) if step <= 5 + n} | ({"none": 1.0} if step < 6 else {}),
        }
        for step in range(1, 12)
    ]
    tags, n_tags = plots.frequent_tags([log])
    assert (tags, n_tags) == (["tag 6", "tag 5", "tag 4", "tag 3", "tag 2", "none"], 8)
    assert plots.tag_count_note(len(tags), n_tags) == "; 6 of 8 tags, those in most steps"
    assert plots.tag_count_note(8, 8) == ""
    plots.plot_reward_by_tag({"PerMix": log}, tmp_path / "tags.png")
    assert png_size(tmp_path / "tags.png")[0] == 1200


def test_rewards_by_tag_of_several_runs_with_hostile_names(tmp_path: Path) -> None:
    log = [{"step": step, "reward_by_tag": {"$x_1$": 0.5, "expert": None if step == 3 else 0.25}} for step in range(1, 9)]
    for name in ("a.png", "b.png"):
        plots.plot_reward_by_tag({"_base $1$": log, "RLVR": log[:6], "short": TAGGED}, tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert png_size(tmp_path / "a.png")[0] == 1200


def test_a_panel_that_no_run_has_is_left_out(tmp_path: Path) -> None:
    """A training of another engine may say nothing of lengths; one with a KL term has a panel more."""
    log = [{"step": n, "reward": 0.5} for n in range(1, 4)]
    heights = {}
    for name, line in (("reward", {}), ("all", {"completion_tokens": 9.0, "frac_nonzero_advantage_groups": 1.0, "kl": 0.1})):
        plots.plot_learning_curves({"PerMix": [one | line for one in log]}, tmp_path / f"{name}.png")
        heights[name] = png_size(tmp_path / f"{name}.png")[1]
    assert heights["reward"] < heights["all"]


def test_the_ring_is_explained_only_where_the_selected_weights_are_known() -> None:
    curve = DevCurve((probe_point(0, 0.5),), DevEvalConfig(every=1))
    unknown = curve._replace(chooses_weights=False)
    no_persona = "thin dashed lines without markers: no persona"
    assert plots.dev_curve_marks([unknown], has_chance=False) == no_persona
    assert plots.dev_curve_marks([unknown, curve], has_chance=True) == f"ring: the selected weights; {no_persona}; dotted: chance"


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
