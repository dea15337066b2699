"""Figures of an evaluation as PNG bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from raymotion.evaluation.classes import MeasuredClasses
from raymotion.evaluation.measure import ClassResult, Measured
from raymotion.learning.metrics.calibration import CalibrationBin
from raymotion.report.plots import BAR, INK, SOFT, ClassLine, class_figure, new_figure, png, style_axes

if TYPE_CHECKING:
    from raymotion.evaluation.evaluate import Numbers

# Labels of a confusion matrix whose cells have room for a number.
MOST_NUMBERS = 15


def draw_numbers(numbers: Numbers) -> dict[str, bytes]:
    """Draws true against predicted values of each dimension, and the distributions of both, by name."""
    figures = {}
    low, high = numbers.scale
    for j, name in enumerate(numbers.names):
        known = ~np.isnan(numbers.truth[:, j])
        figure = new_figure(4.6, 4.2)
        axes = figure.subplots()
        style_axes(axes)
        axes.plot([low, high], [low, high], color=SOFT, linestyle="--", linewidth=1)
        axes.scatter(numbers.truth[known, j], numbers.values[known, j], s=10, alpha=0.5, color=BAR, linewidths=0)
        axes.set_xlim(low, high)
        axes.set_xlabel(f"true {name}")
        axes.set_ylabel(f"predicted {name}")
        axes.set_title(f"{name}: {int(known.sum()):,} samples", fontsize=10)
        figures[name] = png(figure)
        figures[f"{name}_distribution"] = distribution_figure(
            [("true", numbers.truth[known, j], SOFT), ("predicted", numbers.values[known, j], BAR)],
            ends=numbers.scale, what=name,
        )  # fmt: skip
    return figures


def draw_classes(measured: MeasuredClasses) -> dict[str, bytes]:
    """Draws all figures of one label a sample, by name."""
    figures = {"confusion": confusion_figure(measured), "answers": answers_figure(measured)}
    for scores in measured.calibration:
        figures[f"reliability_{scores.strategy}"] = reliability_figure(
            scores.curve,
            title=f"Reliability, bins of equal {scores.strategy}",
            what="answer is right",
            note=f"ECE {scores.error:.3f}, by luck {scores.by_luck:.3f}",
        )
    return figures


def confusion_figure(measured: MeasuredClasses) -> bytes:
    """Draws the confusion matrix: a row for each true label, coloured by the share of its samples."""
    labels, counts = [row.label for row in measured.classes], measured.confusion
    width = len(labels)
    size = 2.2 + 0.55 * width
    figure = new_figure(size + 0.8, size)
    axes = figure.subplots()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1.0)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if width <= MOST_NUMBERS:
        for i, j in np.ndindex(width, width):
            colour = "white" if shares[i, j] > 0.6 else INK
            axes.text(j, i, f"{counts[i, j]:g}", ha="center", va="center", fontsize=8, color=colour)
    axes.set_xticks(range(width), labels, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(width), labels)
    axes.set(xlabel="answer", ylabel="true label", title="Confusion")
    axes.tick_params(colors=INK, labelsize=9)
    figure.colorbar(image, ax=axes, fraction=0.046, label="share of the true label")
    return png(figure)


def answers_figure(measured: MeasuredClasses) -> bytes:
    """Draws how often each label is said, beside how often it is true."""
    rows = sorted(measured.classes, key=lambda row: row.support)
    n = measured.evaluation.samples
    figure = new_figure(5.6, 1.5 + 0.42 * len(rows))
    axes = figure.subplots()
    style_axes(axes)
    places = np.arange(len(rows))
    axes.barh(places + 0.2, [row.support / n for row in rows], 0.38, color=SOFT, label="true")
    axes.barh(places - 0.2, [row.said / n for row in rows], 0.38, color=BAR, label="said")
    axes.set_yticks(places, [row.label for row in rows])
    axes.set(xlabel="share of the samples", title="What is true, and what is said")
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return png(figure)


def draw(measured: Measured, targets: np.ndarray, probabilities: np.ndarray) -> dict[str, bytes]:
    """Draws all figures of an evaluation, by name; targets and probabilities are (n, L)."""
    figures = {}
    for scores in measured.calibration:
        kind = {"width": "equal width", "mass": "equal mass"}[scores.strategy]
        figures[f"reliability_{scores.strategy}"] = reliability_figure(
            scores.curve,
            title=f"Reliability, bins of {kind}",
            note=f"ECE {scores.error:.3f}, by luck {scores.by_luck:.3f}",
        )
    classes = sorted(measured.classes, key=lambda row: -row.prevalence)
    return {
        **figures,
        "average_precision": class_figure(
            [ClassLine(_counted(row), row.ap, row.ap_low, row.ap_high, row.prevalence) for row in classes],
            title="Average precision of each label",
            baseline="chance: share of samples with the label",
        ),
        "f1": class_figure(
            [ClassLine(_counted(row), row.f1, row.f1_low, row.f1_high, row.f1_constant) for row in classes],
            title="F1 of each label at its threshold",
            baseline="the label for every sample",
        ),
        "probabilities": probability_figure(targets, probabilities),
    }


def _counted(row: ClassResult) -> str:
    return f"{row.label} ({row.positives:,})"


def reliability_figure(
    bins: Sequence[CalibrationBin], *, title: str = "Reliability", what: str = "label is true", note: str = ""
) -> bytes:
    """Draws a reliability diagram: observed rates by forecast, above the number of forecasts in each bin.

    Args:
        bins: from `calibration.reliability`; intervals, if any, are drawn as a band.
        what: the event, for the axis label.
        note: a short line in the corner, such as the ECE.
    """
    figure = new_figure(5.6, 6.0)
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
        # Most forecasts of a multi-label model are near zero: on a linear axis only one bar would be visible.
        bottom.set_yscale("log")
        bottom.set_ylim(bottom=0.7)
    for axes in (top, bottom):
        style_axes(axes)
    return png(figure)


def probability_figure(targets: np.ndarray, probabilities: np.ndarray, *, bins: int = 40) -> bytes:
    """Draws the distributions of probabilities of true and of false labels; both arguments are (n, L)."""
    truth, p = np.asarray(targets) > 0, np.asarray(probabilities, dtype=np.float64)
    return distribution_figure(
        [("label is not true", p[~truth], SOFT), ("label is true", p[truth], BAR)],
        ends=(0.0, 1.0), what="predicted probability", title="Spread of the predictions", share="share of its kind",
        bins=bins,
    )  # fmt: skip


def distribution_figure(
    kinds: Sequence[tuple[str, np.ndarray, str]],
    *,
    ends: tuple[float, float],
    what: str,
    title: str = "",
    share: str = "share of the samples",
    bins: int = 40,
) -> bytes:
    """Draws distributions over each other.

    Args:
        kinds: name, values (n,) and colour of each. ends: of the axis, which is named `what`.
    """
    figure = new_figure(5.6, 3.8)
    axes = figure.subplots()
    edges = np.linspace(*ends, bins + 1).tolist()
    for name, values, colour in kinds:
        if values.size:
            weights = np.full(values.size, 1.0 / values.size)
            axes.hist(values, edges, weights=weights, color=colour, alpha=0.35)
            axes.hist(values, edges, weights=weights, color=colour, histtype="step", linewidth=1.6, label=name)
    axes.set(xlim=ends, xlabel=what, ylabel=share, title=title or f"Distribution of {what}")
    if any(values.size for _, values, _ in kinds):
        axes.legend(frameon=False)
    style_axes(axes)
    return png(figure)
