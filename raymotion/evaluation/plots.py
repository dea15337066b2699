"""Figures of an evaluation as PNG bytes.

Drawn with matplotlib's Agg canvas and without pyplot, so that nothing is shared between figures or threads and no
display is needed.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from raymotion.learning.calibration import CalibrationBin

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 110
# The colours of the HTML pages.
INK, SOFT, LINE, BAR, MARK = "#1b1f24", "#57606a", "#d5dae0", "#2f6db3", "#9a3c00"


def reliability_figure(
    bins: Sequence[CalibrationBin], *, title: str = "Reliability", what: str = "label is true", note: str = ""
) -> bytes:
    """Reliability diagram: how often each forecast came true, above how many forecasts each bin holds.

    Args:
        bins: from `calibration.reliability`; where they have intervals, those are drawn as a band.
        what: the event, for the axis.
        note: a short line in the corner, such as the ECE.
    """
    figure = _figure(5.6, 6.0)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    x, y = [b.mean_probability for b in bins], [b.rate for b in bins]
    top.plot([0, 1], [0, 1], color=SOFT, linewidth=1, linestyle=(0, (4, 3)), label="perfectly calibrated")
    banded = [b for b in bins if b.rate_low is not None and b.rate_high is not None]
    if banded:
        low = [b.rate - (b.rate if b.rate_low is None else b.rate_low) for b in banded]
        high = [(b.rate if b.rate_high is None else b.rate_high) - b.rate for b in banded]
        ends = np.maximum([low, high], 0.0)
        at = ([b.mean_probability for b in banded], [b.rate for b in banded])
        top.errorbar(*at, yerr=ends, fmt="none", ecolor=BAR, alpha=0.55, capsize=3, label="95 % interval")
    top.plot(x, y, color=BAR, marker="o", markersize=5, linewidth=1.6, label="this model")
    top.set(xlim=(0, 1), ylim=(0, 1), ylabel=f"share where the {what}", title=title)
    top.legend(loc="upper left", frameon=False)
    if note:
        top.text(0.98, 0.04, note, ha="right", va="bottom", transform=top.transAxes, color=SOFT)
    bottom.bar(
        [b.low for b in bins],
        [b.count for b in bins],
        width=[max(b.high - b.low, 0.004) for b in bins],
        align="edge",
        color=BAR,
        edgecolor="white",
        linewidth=0.6,
    )
    bottom.set(xlabel="predicted probability", ylabel="forecasts")
    # Most forecasts of a multi-label model are near zero; a linear axis would show one bar.
    bottom.set_yscale("log")
    for axes in (top, bottom):
        _plain(axes)
    return _png(figure)


def _figure(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(SOFT)
    axes.tick_params(colors=INK, labelsize=9)
    axes.grid(color=LINE, linewidth=0.6)
    axes.set_axisbelow(True)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    # Without the program's name and version, the same figure is the same bytes.
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
