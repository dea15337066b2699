"""Calibration: whether events with a predicted probability of 30 % occur in 30 % of the cases.

Each label of each image is one binary forecast. A forecast can be calibrated but uninformative: the class rates, given
to every image, have an expected calibration error near zero. So the error should be read with the Brier score, whose
decomposition (Murphy 1973) shows how well the forecasts distinguish images.

Resampling adds noise to each bin's rate, which always increases a sum of absolute gaps, so the intervals of the
calibration error are centred on the value. For the same reason a small sample of a perfectly calibrated model has an
error above zero; `by_luck` is that expected error.

There are two kinds of bins: `width` cuts [0, 1] into equal parts (Guo et al. 2017, Naeini et al. 2015), `mass` cuts at
quantiles of the probabilities, so that all bins hold about the same number. With rare labels nearly all forecasts fall
into the first bins of equal width; bins of equal mass resolve them. Equal probabilities always share a bin.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from raymotion.errors import InputError
from raymotion.learning.bootstrap import interval, ranking_resamples, ratio, resampled

Strategy = Literal["width", "mass"]
BINS = 10
# Forecasts drawn for `by_luck`, about a second of work; at least 20 draws of the whole sample.
LUCK_BUDGET = 20_000_000


@dataclass(frozen=True)
class CalibrationBin:
    """Forecasts in (low, high]; the first bin includes its lower end.

    Attributes:
        mean_probability: mean forecast.
        rate: observed frequency.
        count: number of forecasts; empty bins are left out.
        rate_low, rate_high: 95 % bootstrap interval of the rate over samples; None if not requested.
    """

    low: float
    high: float
    mean_probability: float
    rate: float
    count: int
    rate_low: float | None = None
    rate_high: float | None = None

    @property
    def gap(self) -> float:
        """Absolute difference of the mean forecast and the observed frequency."""
        return abs(self.mean_probability - self.rate)


def reliability(
    targets: np.ndarray,
    probabilities: np.ndarray,
    *,
    bins: int = BINS,
    strategy: Strategy = "width",
    bootstrap: int = 0,
    seed: int = 0,
    units: np.ndarray | None = None,
) -> list[CalibrationBin]:
    """Computes the reliability diagram of all forecasts pooled: the non-empty bins, from low to high.

    Args:
        targets: (n, L) or (n,) in [0, 1]; 0 and 1, or shares of annotators.
        probabilities: of the same shape, in [0, 1].
        strategy: `width` or `mass`.
        bootstrap: number of resamples of the rows for the interval of each rate; 0 for none.
        units: resampled units; see `resample_counts`.

    Raises:
        InputError: shapes that do not match, no forecasts, values outside [0, 1], or no bins.
    """
    truth, p = _checked(targets, probabilities)
    edges = bin_edges(p, bins, strategy)
    count, hits, said = _binned(truth, p, edges)
    totals = count.sum(axis=0)
    means = ratio(said.sum(axis=0), totals)
    rates, drawn = resampled(
        lambda weights: ratio(weights @ hits, weights @ count), len(p), resamples=bootstrap, seed=seed, units=units
    )
    band = [interval(drawn[:, i]) or (None, None) for i in range(bins)]
    return [
        CalibrationBin(
            low=float(edges[i]),
            high=float(edges[i + 1]),
            mean_probability=float(means[i]),
            rate=float(rates[i]),
            count=int(totals[i]),
            rate_low=band[i][0],
            rate_high=band[i][1],
        )
        for i in range(bins)
        if totals[i] > 0
    ]


def expected_calibration_error(
    targets: np.ndarray, probabilities: np.ndarray, *, bins: int = BINS, strategy: Strategy = "width"
) -> float:
    """Returns the ECE: the mean gap of the bins, weighted by count, labels pooled. 0 is perfect. See `reliability`."""
    found = reliability(targets, probabilities, bins=bins, strategy=strategy)
    return sum(item.count * item.gap for item in found) / sum(item.count for item in found)


def maximum_calibration_error(
    targets: np.ndarray, probabilities: np.ndarray, *, bins: int = BINS, strategy: Strategy = "width"
) -> float:
    """Returns the MCE: the largest gap of any bin, regardless of its count."""
    return max(item.gap for item in reliability(targets, probabilities, bins=bins, strategy=strategy))


def class_calibration_errors(
    targets: np.ndarray, probabilities: np.ndarray, *, bins: int = BINS, strategy: Strategy = "width"
) -> np.ndarray:
    """Returns the ECE of each label separately, (L,). Their mean is the class-wise ECE (Kull et al. 2019)."""
    truth, p = _checked(targets, probabilities)
    return np.array(
        [expected_calibration_error(truth[:, j], p[:, j], bins=bins, strategy=strategy) for j in range(p.shape[1])]
    )


@dataclass(frozen=True)
class CalibrationScores:
    """Calibration with one kind of bins.

    Attributes:
        error, low, high: ECE of all forecasts pooled, with its 95 % interval.
        class_error, class_low, class_high: mean of the labels' own ECEs, with its interval.
        maximum: MCE, pooled. It has no interval of its own: it is the gap of a single bin, which has one.
        by_luck, class_by_luck: expected errors of a perfectly calibrated model with these probabilities.
        prior, class_prior: errors of the training split's class rates, given to every image.
        resamples: number of resamples for the intervals.
        curve: the reliability diagram.
    """

    strategy: Strategy
    bins: int
    error: float
    low: float | None
    high: float | None
    class_error: float
    class_low: float | None
    class_high: float | None
    maximum: float
    by_luck: float
    class_by_luck: float
    prior: float
    class_prior: float
    resamples: int
    curve: list[CalibrationBin]

    def to_dict(self) -> dict[str, Any]:
        """Returns a dictionary for JSON."""
        return asdict(self)


def calibrate(
    targets: np.ndarray,
    probabilities: np.ndarray,
    *,
    prior: np.ndarray | Sequence[float],
    bins: int = BINS,
    strategy: Strategy = "width",
    bootstrap: int = 1000,
    seed: int = 0,
    units: np.ndarray | None = None,
) -> CalibrationScores:
    """Computes all calibration scores of (n, L) forecasts; `prior` is (L,). Raises like `reliability`."""
    truth, p = _checked(targets, probabilities)
    n, width = p.shape
    layout = _Layout(p, bins, strategy)
    resamples = ranking_resamples(bootstrap, n, width)
    point, drawn = resampled(
        lambda weights: layout.errors(truth, weights), n, resamples=resamples, seed=seed, units=units
    )
    error, class_error = point.tolist()
    (low, high), (class_low, class_high) = (interval(drawn[:, i], point[i]) or (None, None) for i in (0, 1))
    by_luck, class_by_luck = layout.by_luck(p, seed)
    constant = np.broadcast_to(np.asarray(prior, dtype=np.float64), p.shape)
    return CalibrationScores(
        strategy=strategy,
        bins=bins,
        error=error,
        low=low,
        high=high,
        class_error=class_error,
        class_low=class_low,
        class_high=class_high,
        maximum=maximum_calibration_error(truth, p, bins=bins, strategy=strategy),
        by_luck=by_luck,
        class_by_luck=class_by_luck,
        prior=expected_calibration_error(truth, constant, bins=bins, strategy=strategy),
        class_prior=float(class_calibration_errors(truth, constant, bins=bins, strategy=strategy).mean()),
        resamples=resamples,
        curve=reliability(truth, p, bins=bins, strategy=strategy, bootstrap=resamples, seed=seed, units=units),
    )


class _Layout:
    """The bin of each forecast, pooled and per label; fixed while samples are resampled."""

    def __init__(self, p: np.ndarray, bins: int, strategy: Strategy) -> None:
        n, width = p.shape
        self.p, self.bins = p, bins
        self.pooled = np.searchsorted(bin_edges(p, bins, strategy)[1:-1], p, side="left")
        own = np.empty(p.shape, dtype=np.int64)
        for j in range(width):
            own[:, j] = np.searchsorted(bin_edges(p[:, j], bins, strategy)[1:-1], p[:, j], side="left")
        self.own = own + np.arange(width) * bins
        self.rows = np.arange(n)[:, None]

    def errors(self, truth: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Returns pooled and class-wise ECE (B, 2) for weights (B, n): sum of |hits - forecasts| over bins / total."""
        width = self.p.shape[1]
        gap = truth - self.p
        pooled = self._sums(self.pooled, gap, self.bins)
        by_class = self._sums(self.own, gap, self.bins * width)
        total = weights.sum(axis=1) * width
        return np.stack([np.abs(weights @ sums).sum(axis=1) / total for sums in (pooled, by_class)], axis=1)

    def by_luck(self, p: np.ndarray, seed: int) -> tuple[float, float]:
        """Returns the expected errors if each label is true with exactly its probability, independent of the others."""
        rng = np.random.default_rng(seed)
        all_once = np.ones((1, len(p)))
        draws = max(20, min(200, LUCK_BUDGET // p.size))
        found = [self.errors((rng.random(p.shape) < p).astype(np.float64), all_once)[0] for _ in range(draws)]
        pooled, by_class = np.mean(found, axis=0).tolist()
        return pooled, by_class

    def _sums(self, place: np.ndarray, values: np.ndarray, bins: int) -> np.ndarray:
        n = len(values)
        flat = np.bincount((place + self.rows * bins).ravel(), values.ravel(), minlength=n * bins)
        return flat.reshape(n, bins)


@dataclass(frozen=True)
class BrierParts:
    """Murphy's decomposition: score = miscalibration - resolution + uncertainty + within_bins, averaged over labels.

    Attributes:
        score: mean squared error of the probabilities.
        miscalibration: squared gap of the bins (0 is best; often called reliability).
        resolution: variance of the bins' rates around the label's rate: how well the forecasts distinguish images.
        uncertainty: rate x (1 - rate), the score of a constant that knows the rates.
        within_bins: variation inside the bins (Stephenson et al. 2008); 0 if each bin holds one probability.
    """

    score: float
    miscalibration: float
    resolution: float
    uncertainty: float
    within_bins: float


def decompose_brier(
    targets: np.ndarray, probabilities: np.ndarray, *, bins: int = BINS, strategy: Strategy = "mass"
) -> BrierParts:
    """Decomposes the Brier score of (n, L) forecasts, separately for each label and then averaged.

    Pooled forecasts would get credit for knowing that some labels are rare.
    """
    truth, p = _checked(targets, probabilities)
    n, width = p.shape
    miscalibration = resolution = uncertainty = 0.0
    for j in range(width):
        rate = float(truth[:, j].mean())
        uncertainty += rate * (1.0 - rate) / width
        for item in reliability(truth[:, j], p[:, j], bins=bins, strategy=strategy):
            miscalibration += item.count * item.gap**2 / (n * width)
            resolution += item.count * (item.rate - rate) ** 2 / (n * width)
    score = float(((p - truth) ** 2).mean())
    within = score - (miscalibration - resolution + uncertainty)
    return BrierParts(score, miscalibration, resolution, uncertainty, within)


def bin_edges(probabilities: np.ndarray, bins: int, strategy: Strategy) -> np.ndarray:
    """Returns the bin edges, (bins + 1,): equal parts of [0, 1], or quantiles (which may coincide)."""
    if bins < 1:
        raise InputError(f"{bins} bins are too few")
    if strategy == "width":
        return np.linspace(0.0, 1.0, bins + 1)
    if strategy == "mass":
        return np.asarray(np.quantile(probabilities, np.linspace(0.0, 1.0, bins + 1)))
    raise InputError(f"bins of equal {strategy!r} are not known", remedy="Use width or mass.")


def _binned(truth: np.ndarray, p: np.ndarray, edges: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns number of forecasts, positives, and sum of probabilities for each sample and bin; each (n, bins)."""
    n, bins = len(p), len(edges) - 1
    place = np.searchsorted(edges[1:-1], p, side="left") + np.arange(n)[:, None] * bins

    def add(weights: np.ndarray | None) -> np.ndarray:
        flat = None if weights is None else weights.ravel()
        return np.bincount(place.ravel(), flat, minlength=n * bins).reshape(n, bins).astype(np.float64)

    return add(None), add(truth), add(p)


def _checked(targets: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Validates both and returns them as float64 of shape (n, L)."""
    truth, p = np.asarray(targets, dtype=np.float64), np.asarray(probabilities, dtype=np.float64)
    if truth.shape != p.shape:
        raise InputError(f"targets of shape {truth.shape} do not fit probabilities of shape {p.shape}")
    if p.ndim not in (1, 2) or p.size == 0:
        raise InputError(
            f"probabilities of shape {p.shape} have no calibration: samples x labels, at least one of each"
        )
    for name, values in (("targets", truth), ("probabilities", p)):
        if not np.isfinite(values).all() or values.min() < 0 or values.max() > 1:
            raise InputError(f"{name} are not all between 0 and 1")
    return truth.reshape(len(p), -1), p.reshape(len(p), -1)
