"""Shared parts of all figures: colours, axes, and a plot of one value per label.

Figures do not use pyplot and its global state, so they are independent of each other, thread-safe, and need no display.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 110
# The colours of the HTML pages.
INK, SOFT, LINE, BAR, MARK = "#1b1f24", "#57606a", "#d5dae0", "#2f6db3", "#9a3c00"


class ClassLine(NamedTuple):
    """A label's line in `class_figure`: its value, the two ends of its bar, and its baseline."""

    name: str
    value: float | None
    low: float | None
    high: float | None
    baseline: float | None


def class_figure(
    lines: Sequence[ClassLine],
    *,
    baseline: str,
    value: str = "this model, 95 % interval",
    title: str = "",
    published: Mapping[str, float] | None = None,
) -> bytes:
    """Draws each label's value and baseline on one line, the first on top; a line without a value is empty.

    Args:
        value, baseline: legends of the two.
        published: another study's values, by name of the line.
    """
    figure = new_figure(7.2, 1.3 + 0.24 * len(lines))
    axes = figure.subplots()
    open_diamond: dict[str, Any] = {"marker": "D", "markerfacecolor": "none", "markeredgecolor": SOFT, "markersize": 5}
    for place, line in enumerate(reversed(lines)):
        if line.baseline is not None:
            axes.plot(line.baseline, place, marker="|", color=MARK, markersize=11, markeredgewidth=2.4)
        if line.value is not None:
            if line.low is not None and line.high is not None:
                ends = [line.low, line.high]
                axes.plot(ends, [place, place], color=BAR, alpha=0.45, linewidth=3, solid_capstyle="butt")
            axes.plot(line.value, place, marker="o", color=BAR, markersize=5)
        if published and line.name in published:
            axes.plot(published[line.name], place, **open_diamond)
    axes.plot([], [], marker="o", color=BAR, linewidth=3, alpha=0.8, label=value)
    axes.plot([], [], marker="|", color=MARK, markersize=11, markeredgewidth=2.4, linestyle="none", label=baseline)
    if published:
        axes.plot([], [], linestyle="none", label="published final", **open_diamond)
    axes.set_yticks(range(len(lines)), [line.name for line in reversed(lines)])
    axes.set(xlim=(0, 1), ylim=(-0.7, len(lines) - 0.3), title=title)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    style_axes(axes)
    axes.spines[["left"]].set_visible(False)
    return png(figure)


def new_figure(width: float, height: float) -> Figure:
    """Creates an empty figure; the size is in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def style_axes(axes: Axes) -> None:
    """Applies the style of the pages to axes."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(SOFT)
    axes.tick_params(colors=INK, labelsize=9)
    axes.grid(color=LINE, linewidth=0.6)
    axes.set_axisbelow(True)


def png(figure: Figure) -> bytes:
    """Converts a figure to PNG bytes, deterministically."""
    buffer = io.BytesIO()
    # Omits the program's name and version.
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def data_address(data: bytes, kind: str = "png") -> str:
    """Returns a picture as a data URL for the `src` of an HTML image."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
