"""Provides the common parts of all figures: styles, the sheet with title, note and legend, and intervals for matplotlib.

Contract: no pyplot and no global state. Sheets are 8 inches wide at 150 dpi, readable at 800 pixels. The same input gives the
same bytes, as PNG and as SVG. Colours are Okabe and Ito's; markers and line styles differ too, so that they can be
distinguished in grey and by colour-blind readers.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from permix.sanitize import escape_for_figure
from permix.storage.files import guard_writes
from permix.types import Estimate

# matplotlib is optional and is imported only when a figure is drawn: styles and texts serve the HTML page too.
if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.transforms import Bbox

PlotArray = NDArray[np.float64]


DPI = 150

FIGURE_WIDTH_IN = 8.0

TITLE_HEIGHT_IN = 0.36

NOTE_LINE_HEIGHT_IN = 0.17

QUESTION_INTERVAL_NOTE = "95 % intervals over questions"


class Style(NamedTuple):
    """How a model looks in every figure. Training seeds of one `method` look the same."""

    colour: str
    marker: str
    line: Any
    method: str = ""


PALETTE = (
    Style("#000000", "o", "-"),
    Style("#D55E00", "s", (0, (5, 1.5))),
    Style("#0072B2", "^", (0, (1, 1))),
    Style("#009E73", "D", (0, (4, 1, 1, 1))),
    Style("#CC79A7", "v", (0, (8, 2))),
    Style("#E69F00", "P", (0, (3, 1, 1, 1, 1, 1))),
    Style("#56B4E9", "X", (0, (2, 2))),
)


def styles_for(labels: Iterable[str], methods: Mapping[str, str] = MappingProxyType({})) -> dict[str, Style]:
    """A style for each label. `methods` maps a label to its method where several labels are training seeds of one method.

    Methods get the palette's styles in order. From the eighth on, colours repeat with the marker and line of the next style.
    """
    method_of = {label: methods.get(label, label) for label in labels}
    number_of = {method: number for number, method in enumerate(dict.fromkeys(method_of.values()))}
    return {label: _style_at(number_of[method])._replace(method=method) for label, method in method_of.items()}


def _style_at(number: int) -> Style:
    cycle, within = divmod(number, len(PALETTE))
    return Style(PALETTE[within].colour, *PALETTE[(within + cycle) % len(PALETTE)][1:])


HOLLOW_MARKER_NOTE = "; hollow: the judge does not tell right from wrong persona, or was not validated"
"""Part of the note of a figure that shows scores of such a judge."""


def new_figure(height: float, title: str, note: str) -> Figure:
    """An empty figure: `height` inches of room for plots, under a title and a note in small type (n, intervals, marks)."""
    from matplotlib.figure import Figure

    lines = textwrap.wrap(note, 126)
    above = TITLE_HEIGHT_IN + NOTE_LINE_HEIGHT_IN * len(lines) + 0.06
    fig = Figure(figsize=(FIGURE_WIDTH_IN, height + above), dpi=DPI, layout="constrained")
    layout = fig.get_layout_engine()
    assert layout is not None
    layout.set(rect=(0, 0, 1, height / (height + above)))  # type: ignore[call-arg]
    fig.text(0.012, 1 - 0.08 / (height + above), escape_for_figure(title, 76), fontsize=12, fontweight="bold", va="top")
    fig.text(0.012, 1 - TITLE_HEIGHT_IN / (height + above), "\n".join(lines), fontsize=8.5, color="0.3", va="top")
    return fig


def stacked_axes(fig: Figure, count: int) -> list[Axes]:
    """`count` plots below each other with a common x axis."""
    axes = list(fig.subplots(count, 1, sharex=True, squeeze=False)[:, 0])
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(alpha=0.3)
    return axes


def integer_ticks(ax: Axes, **options: Any) -> None:
    """Put the ticks of the x axis at whole numbers; `options` are those of matplotlib's MaxNLocator."""
    from matplotlib.ticker import MaxNLocator

    ax.xaxis.set_major_locator(MaxNLocator(integer=True, **options))


def draw_legend(fig: Figure, labels: Sequence[str], styles: Mapping[str, Style], *, marker: bool = True) -> None:
    """The legend, below all plots; seeds of one method have one entry with their number."""
    from matplotlib.lines import Line2D

    groups = labels_by_legend_name(labels, styles)
    looks = [styles[group[0]] for group in groups.values()]
    handles = [Line2D([], [], color=one.colour, ls=one.line, lw=1.8, marker=one.marker if marker else "") for one in looks]
    columns = max(1, min(len(groups), 3 if max(map(len, groups), default=0) <= 32 else 2))
    fig.legend(
        handles, [escape_for_figure(name, 44) for name in groups], loc="outside lower center", ncols=columns, frameon=False
    )


def labels_by_legend_name(labels: Sequence[str], styles: Mapping[str, Style]) -> dict[str, list[str]]:
    """The labels of each style under the name of its legend entry: {"RLVR, 3 seeds": [...], "base": ["base"]}."""
    by_style: dict[Style, list[str]] = {}
    for label in labels:
        by_style.setdefault(styles[label], []).append(label)
    return {group[0] if len(group) == 1 else f"{style.method}, {len(group)} seeds": group for style, group in by_style.items()}


def save_figure(fig: Figure, path: Path) -> None:
    """Write the figure as PNG to `path`, and as SVG next to it."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    with guard_writes(path), rc_context({"svg.hashsalt": "permix"}):  # without it the SVG's ids are random
        path.parent.mkdir(parents=True, exist_ok=True)
        FigureCanvasAgg(fig).print_png(path, metadata={"Software": None})
        fig.set_layout_engine("none")  # the SVG has the layout of the PNG, which takes a third of the time to compute
        FigureCanvasSVG(fig).print_svg(path.with_suffix(".svg"), metadata={"Date": None, "Creator": None})


def join_distinct_counts(values: Iterable[int]) -> str:
    """ "100"; "100 / 80" where models differ."""
    return " / ".join(str(one) for one in dict.fromkeys(values))


def interval_ends(estimate: Estimate) -> tuple[float, float]:
    """(low, high) of the interval; the value twice where there is no interval, NaN where there is no value."""
    value = math.nan if estimate.value is None else estimate.value
    return (value if estimate.low is None else estimate.low, value if estimate.high is None else estimate.high)


def error_bar_lengths(estimate: Estimate) -> list[list[float]]:
    """Lengths of both sides of the interval, as Axes.errorbar takes them: [[below], [above]]."""
    (low, high), value = interval_ends(estimate), estimate.value or 0.0
    return [[max(0.0, value - low)], [max(0.0, high - value)]]


def label_points(
    ax: Axes, positions: Mapping[str, tuple[float, float]], obstacles: Sequence[Bbox], styles: Mapping[str, Style]
) -> None:
    """Write each label next to its point, where it overlaps least with points, labels and `obstacles` (data coordinates)."""
    from matplotlib.transforms import Bbox

    ax.figure.draw_without_rendering()  # type: ignore[union-attr]
    inside = ax.get_window_extent()
    occupied = [Bbox.from_bounds(x - 9, y - 9, 18, 18) for x, y in (ax.transData.transform(xy) for xy in positions.values())]
    occupied += [ax.transData.transform_bbox(bar).padded(4) for bar in obstacles]
    for label, xy in positions.items():
        tries = [_add_label(ax, label, xy, styles[label], right, up) for up in (6, -6, 22, -22) for right in (9, -9)]
        boxes = [one.get_window_extent() for one in tries]
        # The part of a label outside the plot counts four times: an overlap can still be read, a cut label cannot.
        costs = [
            sum(_overlap_area(box, other) for other in occupied) + 4 * (_overlap_area(box, box) - _overlap_area(box, inside))
            for box in boxes
        ]
        best = int(np.argmin(costs))
        occupied.append(boxes[best])
        for index, one in enumerate(tries):
            if index != best:
                one.remove()


def _add_label(ax: Axes, label: str, xy: tuple[float, float], style: Style, dx: int, dy: int) -> Any:
    from matplotlib.patheffects import withStroke

    look: dict[str, Any] = {"ha": "left" if dx > 0 else "right", "va": "bottom" if dy > 0 else "top"}
    look |= {
        "color": style.colour,
        "fontweight": "bold",
        "fontsize": 9.5,
        "path_effects": [withStroke(linewidth=3, foreground="w")],
    }
    return ax.annotate(escape_for_figure(label, 36), xy, xytext=(dx, dy), textcoords="offset points", zorder=5, **look)


def _overlap_area(one: Bbox, other: Bbox) -> float:
    """Area in square pixels that two boxes share."""
    from matplotlib.transforms import Bbox

    shared = Bbox.intersection(one, other)
    return 0.0 if shared is None else float(shared.width * shared.height)
