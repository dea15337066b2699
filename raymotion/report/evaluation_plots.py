"""Figures of an evaluation as PNG bytes.

Drawn with matplotlib's Agg canvas and without pyplot, so that nothing is shared between figures or threads and no
display is needed.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from raymotion.evaluation.measure import ClassResult, Measured
from raymotion.learning.metrics.calibration import CalibrationBin

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from raymotion.evaluation.evaluate import Numbers

DPI = 110
# The colours of the HTML pages.
INK, SOFT, LINE, BAR, MARK = "#1b1f24", "#57606a", "#d5dae0", "#2f6db3", "#9a3c00"


def draw_numbers(numbers: Numbers) -> dict[str, bytes]:
    """True against predicted values of each dimension, by its name."""
    from matplotlib.figure import Figure

    figures = {}
    low, high = numbers.scale
    for j, name in enumerate(numbers.names):
        known = ~np.isnan(numbers.truth[:, j])
        figure = Figure(figsize=(4.6, 4.2), dpi=DPI, layout="constrained")
        axes = figure.subplots()
        axes.plot([low, high], [low, high], color=LINE, linestyle="--", zorder=1)
        axes.scatter(numbers.truth[known, j], numbers.values[known, j], s=10, alpha=0.5, color=BAR, linewidths=0)
        axes.set_xlim(low, high)
        axes.set_xlabel(f"true {name}", color=SOFT)
        axes.set_ylabel(f"predicted {name}", color=SOFT)
        axes.set_title(f"{name}: {int(known.sum()):,} samples", color=INK, fontsize=10)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
        figures[name] = buffer.getvalue()
    return figures


def draw(measured: Measured, targets: np.ndarray, probabilities: np.ndarray) -> dict[str, bytes]:
    """All figures of an evaluation, by name; targets and probabilities are (n, L)."""
    figures = {}
    for scores in measured.calibration:
        kind = {"width": "equal width", "mass": "equal mass"}[scores.strategy]
        figures[f"reliability_{scores.strategy}"] = reliability_figure(
            scores.curve,
            title=f"Reliability, bins of {kind}",
            note=f"ECE {scores.error:.3f}, by luck {scores.by_luck:.3f}",
        )
    return {
        **figures,
        "average_precision": class_figure(
            measured.classes,
            lambda row: (row.ap, row.ap_low, row.ap_high, row.prevalence),
            title="Average precision of each label",
            baseline="chance: share of samples with the label",
        ),
        "f1": class_figure(
            measured.classes,
            lambda row: (row.f1, row.f1_low, row.f1_high, row.f1_constant),
            title="F1 of each label at its threshold",
            baseline="the label for every sample",
        ),
        "probabilities": probability_figure(targets, probabilities),
    }


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
    counts = [b.count for b in bins]
    if max(counts) > 20 * min(counts):
        # Most forecasts of a multi-label model are near zero: a linear axis would show one bar.
        bottom.set_yscale("log")
        bottom.set_ylim(bottom=0.7)
    for axes in (top, bottom):
        _plain(axes)
    return _png(figure)


def class_figure(
    classes: Sequence[ClassResult],
    values: Callable[[ClassResult], tuple[float | None, float | None, float | None, float | None]],
    *,
    title: str,
    baseline: str,
) -> bytes:
    """One line for each label, the most frequent on top: its value with its interval, beside its baseline.

    Args:
        values: of a label, its (value, low, high, baseline); a label without a value keeps its empty line.
    """
    rows = sorted(classes, key=lambda row: row.prevalence)
    figure = _figure(7.2, 1.3 + 0.24 * len(rows))
    axes = figure.subplots()
    for place, row in enumerate(rows):
        value, low, high, base = values(row)
        if base is not None:
            axes.plot(base, place, marker="|", color=MARK, markersize=11, markeredgewidth=2.4)
        if value is None:
            continue
        if low is not None and high is not None:
            axes.plot([low, high], [place, place], color=BAR, alpha=0.45, linewidth=3, solid_capstyle="butt")
        axes.plot(value, place, marker="o", color=BAR, markersize=5)
    axes.plot([], [], marker="o", color=BAR, linewidth=3, alpha=0.8, label="this model, 95 % interval")
    axes.plot([], [], marker="|", color=MARK, markersize=11, markeredgewidth=2.4, linestyle="none", label=baseline)
    axes.set_yticks(range(len(rows)), [f"{row.label} ({row.positives:,})" for row in rows])
    axes.set(xlim=(0, 1), ylim=(-0.7, len(rows) - 0.3), title=title)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    _plain(axes)
    axes.spines[["left"]].set_visible(False)
    return _png(figure)


def probability_figure(targets: np.ndarray, probabilities: np.ndarray, *, bins: int = 40) -> bytes:
    """How probabilities are spread, of labels that are true and of those that are not: (n, L) each."""
    figure = _figure(5.6, 3.8)
    axes = figure.subplots()
    truth, p = np.asarray(targets) > 0, np.asarray(probabilities, dtype=np.float64)
    edges = np.linspace(0.0, 1.0, bins + 1).tolist()
    for values, colour, name in ((p[~truth], SOFT, "label is not true"), (p[truth], BAR, "label is true")):
        if values.size:
            share = np.full(values.size, 1.0 / values.size)
            axes.hist(values, edges, weights=share, color=colour, alpha=0.35)
            axes.hist(values, edges, weights=share, color=colour, histtype="step", linewidth=1.6, label=name)
    axes.set(xlim=(0, 1), xlabel="predicted probability", ylabel="share of its kind", title="Spread of the predictions")
    axes.legend(frameon=False)
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
