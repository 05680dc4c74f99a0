"""The two pictures of a report, as SVG: reliability, and risk against coverage.

Figures go in, a string comes out that stands in an HTML page as it is, and as a file of its own. Colours are CSS
variables with a fallback that reads on light and on dark; text stays text, so that it takes the page's font and can be
found and copied. The same figures give the same bytes.

    svg = pictures.reliability(bins_before, bins_after)
    svg = pictures.risk_coverage(curve, mark=(0.8, 0.02), max_risk=0.05)
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from html import escape
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from scipy import stats

from madewithml import selective

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INTERVAL = 0.95
# Blue and vermilion stay apart for every kind of colour vision. Each must differ from the others: that is how the SVG
# says which CSS variable it means.
COLOURS = {"after": "#2b88c4", "before": "#d06a22", "ink": "#7b7b7b", "line": "#8c8c8c", "paper": "#fefefe"}
_AFTER, _BEFORE, _INK, _LINE, _PAPER = COLOURS.values()

_SIZE = (5.6, 4.1)  # inches, at 72 units each: drawn a little smaller than shown, so that text is never below 9 px
_STYLE: dict[Any, Any] = {  # the type of a key is a list of all names, and changes with the version
    "svg.fonttype": "none",
    "font.size": 10.5,
    "axes.edgecolor": _LINE,
    "axes.labelcolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "grid.color": _LINE,
    "grid.alpha": 0.22,
    "grid.linewidth": 0.8,
    "lines.linewidth": 2.0,
    "lines.solid_capstyle": "round",
    "text.color": _INK,
    "xtick.color": _LINE,
    "ytick.color": _LINE,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "xtick.major.pad": 6,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "path.simplify_threshold": 0.5,
}
# What matplotlib writes for a file and an HTML page cannot use: metadata, a style for every element of the page, a size
# of its own (without one it takes the width it is given), and ids that two pictures would share.
_FOR_A_PAGE = (
    (r"<metadata>.*?</metadata>\s*", ""),
    (r"<defs>\s*<style.*?</style>\s*</defs>\s*", ""),
    (r'^(<svg [^>]*?)width="[^"]*" height="[^"]*"', r'\1style="stroke-linejoin: round"'),
    (r' id="[^"]*_\d+"', ""),
)


def reliability(before: Sequence[selective.ReliabilityBin] | None, after: Sequence[selective.ReliabilityBin]) -> str:
    """Accuracy against confidence, bin by bin, over a strip that shows how many rows each bin has.

    Each bar through an `after` point is the exact 95 % interval of its accuracy: with few rows, far from the diagonal
    may still mean calibrated.

    Args:
        before: Bins at temperature 1; None leaves them out.
        after: Bins at the policy's temperature.

    Returns:
        An `<svg>` element.
    """
    with _style():
        figure = _figure()
        axes = figure.add_axes((0.11, 0.30, 0.84, 0.55))
        strip = figure.add_axes((0.11, 0.12, 0.84, 0.13), sharex=axes)
        axes.plot([0, 1], [0, 1], color=_LINE, linewidth=1.2, dashes=(3, 3))
        if before is not None:
            _bins(axes, before, colour=_BEFORE, label="before calibration", hollow=True)
        _intervals(axes, after)
        _bins(axes, after, colour=_AFTER, label=_served(before), hollow=False)
        _percent_axes(figure, axes, y="share that is right", limits=(0, 1, 0, 1.03))
        axes.tick_params(labelbottom=False)
        _histogram(strip, after)
        return _svg(figure, _describe_reliability(after), salt="reliability")


def risk_coverage(
    curve: selective.RiskCoverageCurve,
    *,
    before: selective.RiskCoverageCurve | None = None,
    mark: tuple[float, float] | None = None,
    max_risk: float | None = None,
) -> str:
    """Share of errors among the accepted against the share accepted.

    Args:
        curve: At the policy's temperature.
        before: At temperature 1, drawn thin; None leaves it out.
        mark: Coverage and risk of the policy; None if it accepts nothing.
        max_risk: The certified risk, drawn as a limit; None if there is none.

    Returns:
        An `<svg>` element.
    """
    with _style():
        figure = _figure()
        axes = figure.add_axes((0.11, 0.12, 0.84, 0.73))
        if before is not None:
            _curve(axes, before, colour=_BEFORE, label="before calibration", linewidth=1.3)
        _curve(axes, curve, colour=_AFTER, label=_served(before))
        top = _highest(curve, before, mark, max_risk)
        _percent_axes(figure, axes, y="share wrong among the answered (risk)", limits=(0, 1, 0, top))
        axes.set_xlabel("share of inputs answered (coverage)", labelpad=5)
        if max_risk is not None:
            axes.axhline(max_risk, color=_INK, linewidth=1.2, dashes=(3, 3))
            _note(axes, f"certified: at most {_percent(max_risk)}", (0, max_risk), offset=(4, 5))
        if mark is not None:
            _mark(axes, mark, top=top)
        return _svg(figure, _describe_risk(curve, mark), salt="risk-coverage")


def _style() -> AbstractContextManager[None]:
    import matplotlib as mpl  # late: half a second and its font cache, for one command of all

    return mpl.rc_context(_STYLE)


def _figure() -> Figure:
    # Not pyplot: it keeps every figure alive and looks for a display.
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=_SIZE)
    FigureCanvasSVG(figure)
    return figure


def _bins(axes: Axes, bins: Sequence[selective.ReliabilityBin], *, colour: str, label: str, hollow: bool) -> None:
    seen = [b for b in bins if b["confidence"] is not None and b["accuracy"] is not None]
    confidence = [b["confidence"] or 0.0 for b in seen]
    accuracy = [b["accuracy"] or 0.0 for b in seen]
    most = max(b["count"] for b in seen)
    # A point's area grows with its rows: a bin of two rows says little and should look it.
    areas = [(6 if hollow else 9) + 60 * b["count"] / most for b in seen]
    axes.plot(confidence, accuracy, color=colour, linewidth=1.0, alpha=0.7)
    axes.scatter(
        confidence,
        accuracy,
        s=areas,
        label=label,
        marker="D" if hollow else "o",
        facecolor=_PAPER if hollow else colour,
        edgecolor=colour,
        linewidth=1.2,
        clip_on=False,
        zorder=3,
    )


def _served(before: object | None) -> str:
    return "as served" if before is None else "after calibration"


def _intervals(axes: Axes, bins: Sequence[selective.ReliabilityBin]) -> None:
    for b in bins:
        if b["confidence"] is None or b["accuracy"] is None:
            continue
        interval = stats.binomtest(round(b["accuracy"] * b["count"]), b["count"]).proportion_ci(INTERVAL)
        axes.plot([b["confidence"]] * 2, [interval.low, interval.high], color=_AFTER, linewidth=3, alpha=0.3)


def _histogram(axes: Axes, bins: Sequence[selective.ReliabilityBin]) -> None:
    counts = np.array([b["count"] for b in bins])
    width = bins[0]["upper"] - bins[0]["lower"]
    axes.bar([b["lower"] for b in bins], counts / counts.sum(), width=0.92 * width, align="edge", color=_AFTER)
    axes.grid(visible=False)
    axes.spines["left"].set_visible(False)
    axes.set_yticks([])
    axes.set_ylabel("rows", rotation=0, ha="right", va="center", labelpad=6)
    axes.set_xlabel("confidence", labelpad=5)


def _curve(axes: Axes, curve: selective.RiskCoverageCurve, *, colour: str, label: str, linewidth: float = 2.0) -> None:
    # Between two coverages that a threshold can reach, the stricter threshold still applies: a step.
    axes.step(curve.coverages, curve.risks, where="post", color=colour, label=label, linewidth=linewidth)


def _highest(
    curve: selective.RiskCoverageCurve,
    before: selective.RiskCoverageCurve | None,
    mark: tuple[float, float] | None,
    max_risk: float | None,
) -> float:
    """Upper end of the risk axis; a lone error among the first rows must not flatten all the rest."""
    settled = [c.risks[c.coverages >= 0.1].max() for c in (curve, before) if c is not None]
    return float(min(1.0, 1.45 * max(*settled, mark[1] if mark else 0.0, max_risk or 0.0, 0.02)))


def _mark(axes: Axes, mark: tuple[float, float], *, top: float) -> None:
    coverage, risk = mark
    axes.plot([coverage, coverage], [0, top], color=_INK, linewidth=1.0)
    axes.plot([coverage], [risk], marker="o", markersize=11, color=_AFTER, markeredgecolor=_PAPER, markeredgewidth=2)
    right = coverage > 0.5
    _note(
        axes, "threshold in use", (coverage, top), offset=(-7 if right else 7, -12), align="right" if right else "left"
    )


def _note(
    axes: Axes,
    text: str,
    at: tuple[float, float],
    *,
    offset: tuple[float, float],
    align: Literal["left", "right"] = "left",
) -> None:
    paper = {"boxstyle": "round,pad=0.2", "facecolor": _PAPER, "edgecolor": "none", "alpha": 0.85}
    axes.annotate(text, at, xytext=offset, textcoords="offset points", ha=align, bbox=paper)


def _percent_axes(figure: Figure, axes: Axes, *, y: str, limits: tuple[float, float, float, float]) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.set_xlim(limits[0], limits[1])
    axes.set_ylim(limits[2], limits[3])
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]))
        axis.set_major_formatter(FuncFormatter(lambda value, _: _percent(value)))
    axes.grid(visible=True)
    axes.set_axisbelow(True)
    # Above the axis and level, so that nobody has to turn their head; the key beside nothing it could cover.
    axes.annotate(y, (0, 1), xytext=(-42, 11), xycoords="axes fraction", textcoords="offset points")
    key = axes.legend(frameon=False, ncols=2, handlelength=1.4, borderaxespad=0, borderpad=0, scatterpoints=1)
    key.set_loc("upper left")
    key.set_bbox_to_anchor((0.02, 0.995), transform=figure.transFigure)


def _percent(share: float) -> str:
    return f"{100 * share:.1f}".removesuffix(".0") + "\u202f%"


def _svg(figure: Figure, description: str, *, salt: str) -> str:
    """The figure as one `<svg>` element; `salt` keeps the ids of two pictures on one page apart."""
    import matplotlib as mpl

    target = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": f"madewithml-{salt}"}):
        figure.savefig(target, format="svg", transparent=True, metadata={"Date": None})
    drawn = target.getvalue()
    svg = drawn[drawn.index("<svg") :].strip()
    for pattern, replacement in _FOR_A_PAGE:
        svg = re.sub(pattern, replacement, svg, flags=re.DOTALL)
    for name, colour in COLOURS.items():
        svg = svg.replace(colour, f"var(--chart-{name}, {colour})")
    return svg.replace("<svg ", f'<svg role="img" aria-label="{escape(description)}" ', 1)


def _describe_reliability(bins: Sequence[selective.ReliabilityBin]) -> str:
    seen = [
        f"{_percent(b['accuracy'])} right at {_percent(b['confidence'])} confidence ({count} row{'s' * (count != 1)})"
        for b in bins
        for count in [b["count"]]
        if b["confidence"] is not None and b["accuracy"] is not None
    ]
    return f"Reliability diagram: {'; '.join(seen)}"


def _describe_risk(curve: selective.RiskCoverageCurve, mark: tuple[float, float] | None) -> str:
    here = f" This model answers {_percent(mark[0])}, {_percent(mark[1])} of it wrong." if mark else ""
    return f"Risk-coverage curve: with every input answered, {_percent(float(curve.risks[-1]))} are wrong.{here}"
