"""The plot of `serving.py`: requests a second of each contender, at each number of connections, and the limit, as SVG.

A dot for each number of connections, larger for more; a line from the least to the most of the rounds through it.
Colours read on light and on dark, text stays text, and the same figures give the same bytes.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from madewithml import pictures

if TYPE_CHECKING:
    from matplotlib.axes import Axes

OURS, PEER = pictures.COLOURS["after"], pictures.COLOURS["before"]
INK, LINE = pictures.COLOURS["ink"], pictures.COLOURS["line"]
STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "madewithml-serving",
    "font.size": 10.5,
    "axes.edgecolor": LINE,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "grid.color": LINE,
    "grid.alpha": 0.22,
    "text.color": INK,
    "xtick.labelcolor": INK,
    "xtick.major.size": 0,
    "ytick.labelcolor": INK,
    "ytick.major.size": 0,
}


def rates(contenders: Sequence[Mapping[str, Any]], limit: Mapping[str, float]) -> str:
    """Draw what `summary.contenders` gave.

    Args:
        contenders: The highest rate first.
        limit: Rows a second of the engine in two processes: median, least and most.

    Returns:
        An SVG document.
    """
    shown = [row for row in contenders if row["loads"]]
    counts = sorted({load["connections"] for row in shown for load in row["loads"]})
    with mpl.rc_context(STYLE):  # type: ignore[arg-type]
        figure = Figure(figsize=(8.2, 1.5 + 0.34 * len(shown)), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        axes.axvspan(limit["min"], limit["max"], color=LINE, alpha=0.25, linewidth=0)
        axes.axvline(limit["median"], color=INK, linewidth=1.2, dashes=(3, 3))
        at = (limit["median"], -0.9)
        axes.annotate("the engine, no server", at, xytext=(-4, 3), textcoords="offset points", ha="right", va="bottom")
        for place, row in enumerate(shown):
            _dots(axes, row, place, counts)
        _axes(axes, [row["title"] for row in shown])
        _key(figure, counts)
        target = io.StringIO()
        figure.savefig(target, format="svg", transparent=True, metadata={"Date": None})
    return target.getvalue()


def _dots(axes: Axes, row: Mapping[str, Any], place: int, counts: Sequence[int]) -> None:
    colour = OURS if row["ours"] else PEER
    for load in row["loads"]:
        rate = load["rate"]
        axes.plot([rate["min"], rate["max"]], [place, place], color=colour, linewidth=3, alpha=0.35)
        size = _size(load["connections"], counts)
        axes.scatter([rate["median"]], [place], s=size, color=colour, alpha=0.85, linewidth=0, zorder=3)


def _size(connections: int, counts: Sequence[int]) -> float:
    return 14 + 20 * counts.index(connections)


def _axes(axes: Axes, titles: Sequence[str]) -> None:
    axes.set_yticks(range(len(titles)), titles)
    axes.set_ylim(len(titles) - 0.5, -1.0)
    axes.set_xlim(left=0)
    axes.grid(visible=True, axis="both")
    axes.set_axisbelow(True)
    axes.set_xlabel("requests a second")


def _key(figure: Figure, counts: Sequence[int]) -> None:
    from matplotlib.lines import Line2D

    def dot(size: float, colour: str, label: str) -> Line2D:
        return Line2D([], [], marker="o", linestyle="", color=colour, markersize=size**0.5, label=label)

    sizes = [dot(_size(count, counts), INK, f"{count}") for count in counts]
    sizes[0].set_label(f"{counts[0]} connection{'s' * (counts[0] > 1)}")
    sides = [dot(40, OURS, "Made With ML"), dot(40, PEER, "others")]
    figure.legend(handles=[*sides, *sizes], frameon=False, ncols=len(sides) + len(sizes), loc="outside upper left")
